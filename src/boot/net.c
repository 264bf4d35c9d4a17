#include "boot/net.h"
#include "base/os.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>

static ferry_status resolve(const char *host, int port, int flags, struct addrinfo **list) {
    char service[16];
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | flags};
    snprintf(service, sizeof service, "%d", port);
    int error = getaddrinfo(host, service, &hints, list);
    if (error) return fe_fail(FERRY_SYSTEM, "looking up %s: %s", host, gai_strerror(error));
    return FERRY_OK;
}

bool fe_net_is_number(const char *host) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_flags = AI_NUMERICHOST}, *list;
    if (getaddrinfo(host, NULL, &hints, &list) != 0) return false;
    freeaddrinfo(list);
    return true;
}

static int new_socket(const struct addrinfo *a) {
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol), on = 1;
    if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static int bound_port(int fd) {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address = {0};
    socklen_t length = sizeof address;
    if (getsockname(fd, &address.any, &length) != 0) return -1;
    return ntohs(address.any.sa_family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port);
}

ferry_status fe_net_listen(const char *address, int *port, int *fd) {
    struct addrinfo *list;
    int on = 1;
    FE_TRY(resolve(address, *port, AI_PASSIVE, &list));
    *fd = new_socket(list);
    if (*fd >= 0) setsockopt(*fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    bool good = *fd >= 0 && bind(*fd, list->ai_addr, list->ai_addrlen) == 0 && listen(*fd, 1024) == 0;
    ferry_status status = good ? FERRY_OK : fe_fail_errno("listening on %s port %d", address, *port);
    freeaddrinfo(list);
    if (good) *port = bound_port(*fd);
    if (!good && *fd >= 0) close(*fd);
    return status;
}

/* Waits for the socket; false when the deadline passed. */
static bool await_socket(int fd, short events, int64_t deadline) {
    for (;;) {
        int64_t left = deadline - fe_now_ns();
        if (left <= 0) return false;
        struct pollfd p = {.fd = fd, .events = events};
        int n = poll(&p, 1, (int)((left + 999999) / 1000000));
        if (n > 0) return true;
        if (n < 0 && errno != EINTR) return true; /* the call that follows says what is wrong */
    }
}

/* One try at one address: the socket, or -1 with errno. */
static int try_connect(const struct addrinfo *a, int64_t deadline) {
    int fd = new_socket(a), error = 0;
    socklen_t length = sizeof error;
    if (fd < 0) return -1;
    if (connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
        if (errno != EINPROGRESS)
            error = errno;
        else if (!await_socket(fd, POLLOUT, deadline))
            error = ETIMEDOUT;
        else
            getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    }
    if (!error) return fd;
    close(fd);
    errno = error;
    return -1;
}

ferry_status fe_net_connect(const char *host, int port, bool retry, int64_t deadline, int *fd) {
    struct addrinfo *list;
    FE_TRY(resolve(host, port, 0, &list));
    for (;;) {
        *fd = -1;
        for (const struct addrinfo *a = list; a && *fd < 0; a = a->ai_next) *fd = try_connect(a, deadline);
        if (*fd >= 0 || !retry || fe_now_ns() > deadline) break;
        struct timespec pause = {.tv_nsec = 2000000}; /* rank 0 is still starting */
        nanosleep(&pause, NULL);
    }
    int error = errno;
    freeaddrinfo(list);
    errno = error;
    if (*fd >= 0) return FERRY_OK;
    if (retry || error == ETIMEDOUT)
        return fe_fail(FERRY_TIMEOUT, "nobody let us in at %s port %d before the deadline (errno %d)", host, port,
                       error);
    return fe_fail_errno("connecting to %s port %d", host, port);
}

int fe_net_accept(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK), on = 1;
    if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

bool fe_net_send(int fd, const void *bytes, size_t n, int64_t deadline, bool *late) {
    const char *at = bytes;
    *late = false;
    while (n > 0) {
        ssize_t sent = send(fd, at, n, MSG_NOSIGNAL);
        if (sent > 0) {
            at += sent;
            n -= (size_t)sent;
        } else if (sent < 0 && errno == EAGAIN) {
            *late = !await_socket(fd, POLLOUT, deadline);
            if (*late) return false;
        } else if (!(sent < 0 && errno == EINTR)) {
            return false;
        }
    }
    return true;
}

bool fe_net_recv(int fd, void *bytes, size_t n, int64_t deadline, bool *late) {
    char *at = bytes;
    *late = false;
    while (n > 0) {
        ssize_t got = recv(fd, at, n, 0);
        if (got > 0) {
            at += got;
            n -= (size_t)got;
        } else if (got < 0 && errno == EAGAIN) {
            *late = !await_socket(fd, POLLIN, deadline);
            if (*late) return false;
        } else if (!(got < 0 && errno == EINTR)) {
            return false;
        }
    }
    return true;
}
