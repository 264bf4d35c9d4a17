/* A man in the middle of a rank and its meeting place, who spoils one byte or hangs up. */
#include "faults/act.h"
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct middle {
    pthread_t thread;
    int listener, port; /* the meeting place's port */
    bool up, cut;
    int64_t amount;
    _Atomic bool over;
} middle;

static struct sockaddr_in loopback(int port) {
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static bool send_all(int fd, const uint8_t *bytes, ssize_t n) {
    while (n > 0) {
        ssize_t sent = send(fd, bytes, (size_t)n, MSG_NOSIGNAL);
        if (sent <= 0) return false;
        bytes += sent;
        n -= sent;
    }
    return true;
}

/* Passes on what has come. false: that was all. */
static bool pass_on(const middle *m, int from, int to, bool spoilt, int64_t *passed) {
    uint8_t bytes[4096];
    ssize_t n = recv(from, bytes, sizeof bytes, 0);
    if (n <= 0) return false;
    bool here = spoilt && m->amount >= *passed && m->amount < *passed + n;
    if (here && m->cut) {
        send_all(to, bytes, (ssize_t)(m->amount - *passed));
        return false;
    }
    if (here) bytes[m->amount - *passed] ^= (uint8_t)(1u << m->amount % 8);
    *passed += n;
    return send_all(to, bytes, n);
}

static void carry(const middle *m, int rank, int hub) {
    struct pollfd both[2] = {{.fd = rank, .events = POLLIN}, {.fd = hub, .events = POLLIN}};
    int64_t passed[2] = {0, 0};
    while (!atomic_load(&m->over)) {
        if (poll(both, 2, 20) <= 0) continue;
        if (both[0].revents && !pass_on(m, rank, hub, m->up, &passed[0])) return;
        if (both[1].revents && !pass_on(m, hub, rank, !m->up, &passed[1])) return;
    }
}

static void *serve(void *argument) {
    middle *m = argument;
    struct pollfd door = {.fd = m->listener, .events = POLLIN};
    while (!atomic_load(&m->over)) {
        if (poll(&door, 1, 20) <= 0) continue;
        struct sockaddr_in there = loopback(m->port);
        int rank = accept4(m->listener, NULL, NULL, SOCK_CLOEXEC), hub = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (rank >= 0 && hub >= 0 && connect(hub, (struct sockaddr *)&there, sizeof there) == 0) carry(m, rank, hub);
        if (rank >= 0) close(rank);
        if (hub >= 0) close(hub);
    }
    return NULL;
}

middle *middle_open(ferry_unique_id *id, bool up, int64_t amount, bool cut) {
    middle *m = calloc(1, sizeof *m);
    struct sockaddr_in own = loopback(0);
    socklen_t size = sizeof own;
    char *port = strrchr(id->bytes, ':');
    if (!m || !port) abort();
    *m = (middle){.port = atoi(port + 1), .up = up, .cut = cut, .amount = amount};
    m->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (m->listener < 0 || bind(m->listener, (struct sockaddr *)&own, size) != 0 || listen(m->listener, 4) != 0 ||
        getsockname(m->listener, (struct sockaddr *)&own, &size) != 0 ||
        pthread_create(&m->thread, NULL, serve, m) != 0)
        abort();
    size_t at = (size_t)(port + 1 - id->bytes);
    memset(port + 1, 0, sizeof id->bytes - at);
    snprintf(port + 1, sizeof id->bytes - at, "%d", ntohs(own.sin_port));
    return m;
}

void middle_close(middle *m) {
    if (!m) return;
    atomic_store(&m->over, true);
    pthread_join(m->thread, NULL);
    close(m->listener);
    free(m);
}
