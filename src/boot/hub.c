#include "boot/hub.h"
#include "base/log.h"
#include "base/os.h"
#include "boot/meeting.h"
#include "boot/net.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>

#define FULL_NS 10000000   /* before another look, when this process has no descriptor left for a guest */
#define SEND_NS 5000000000 /* a rank reads its answer at once; one that does not in five seconds is gone */

typedef struct hub {
    int listener;
    int fd[FE_GUESTS];
    struct pollfd poll[FE_GUESTS + 1];
    fe_meeting meeting;
} hub;

static bool send_to(void *context, int guest, const void *bytes, size_t n) {
    hub *h = context;
    bool late;
    return fe_net_send(h->fd[guest], bytes, n, fe_now_ns() + SEND_NS, &late);
}

static void close_guest(void *context, int guest) {
    hub *h = context;
    close(h->fd[guest]);
    h->fd[guest] = -1;
}

static void drop(hub *h, int guest) {
    close_guest(h, guest);
    fe_meeting_leave(&h->meeting, guest);
}

static void let_in(hub *h) {
    int fd;
    while ((fd = fe_net_accept(h->listener)) >= 0) {
        int guest = fe_meeting_enter(&h->meeting, fe_now_ns());
        if (guest < 0)
            close(fd);
        else
            h->fd[guest] = fd;
    }
    /* poll would come back at once, since the guest still knocks. */
    if (errno == EMFILE || errno == ENFILE) nanosleep(&(struct timespec){.tv_nsec = FULL_NS}, NULL);
}

static void listen_to(hub *h, int guest) {
    uint8_t bytes[16384];
    ssize_t n = recv(h->fd[guest], bytes, sizeof bytes, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n > 0 && fe_meeting_hear(&h->meeting, guest, bytes, (size_t)n, fe_now_ns())) return;
    if (h->meeting.guest[guest].rank < 0) fe_log(FE_WARN, FE_BOOT, "hub: a stranger's connection was closed");
    drop(h, guest);
}

static void serve_once(hub *h, int64_t idle_until) {
    int guest_of[FE_GUESTS + 1], n = 1;
    int64_t now = fe_now_ns(), next = fe_meeting_tick(&h->meeting, now, close_guest);
    if (next > idle_until) next = idle_until;
    h->poll[0] = (struct pollfd){.fd = h->listener, .events = POLLIN};
    for (int g = 0; g < FE_GUESTS; g++) {
        if (!h->meeting.guest[g].here) continue;
        guest_of[n] = g;
        h->poll[n++] = (struct pollfd){.fd = h->fd[g], .events = POLLIN};
    }
    int64_t ms = (next - now) / 1000000 + 1;
    if (poll(h->poll, (nfds_t)n, ms < 0 ? 0 : ms > 60000 ? 60000 : (int)ms) <= 0) return;
    for (int i = 1; i < n; i++)
        if (h->poll[i].revents && h->meeting.guest[guest_of[i]].here) listen_to(h, guest_of[i]);
    if (h->poll[0].revents) let_in(h);
}

static void *serve(void *argument) {
    hub *h = argument;
    int64_t idle_until = fe_now_ns() + (int64_t)FE_HUB_IDLE_S * 1000000000;
    while (!fe_meeting_over(&h->meeting, fe_now_ns()) && (h->meeting.begun || fe_now_ns() < idle_until))
        serve_once(h, h->meeting.begun ? INT64_MAX : idle_until);
    for (int g = 0; g < FE_GUESTS; g++)
        if (h->meeting.guest[g].here) close(h->fd[g]);
    close(h->listener);
    fe_meeting_free(&h->meeting);
    free(h);
    return NULL;
}

ferry_status fe_hub_start(const char *address, int *port, const uint8_t secret[FE_WIRE_SECRET]) {
    hub *h = calloc(1, sizeof *h);
    if (!h) return fe_fail(FERRY_NOMEM, "no memory for the meeting place");
    h->meeting.lingers = *port == 0; /* a port of its own: where one was given, the next group may want it */
    ferry_status status = fe_net_listen(address, port, &h->listener);
    if (status != FERRY_OK) {
        free(h);
        return status;
    }
    memcpy(h->meeting.secret, secret, FE_WIRE_SECRET);
    h->meeting.send = send_to;
    h->meeting.context = h;
    pthread_t thread;
    errno = fe_thread_start(&thread, serve, h);
    if (errno) {
        status = fe_fail_errno("starting the thread of the meeting place");
        close(h->listener);
        free(h);
        return status;
    }
    pthread_detach(thread);
    fe_log(FE_INFO, FE_BOOT, "hub: listening on %s port %d", address, *port);
    return FERRY_OK;
}
