/* TCP with deadlines. Everything is non-blocking underneath; no call here waits past its deadline. */
#ifndef FERRY_BOOT_NET_H
#define FERRY_BOOT_NET_H

#include "base/status.h"
#include <stdbool.h>
#include <stdint.h>

#define FE_HOST_MAX 64 /* of an address or host name, with its NUL */

/* An IPv4 or IPv6 address in figures. */
bool fe_net_is_number(const char *host);
/* Listens on address:port (port 0: any free one; the port taken goes to *port). */
ferry_status fe_net_listen(const char *address, int *port, int *fd);
/* Connects. retry: nobody listening yet is no error until the deadline. */
ferry_status fe_net_connect(const char *host, int port, bool retry, int64_t deadline, int *fd);
/* A new connection, or -1 when none is waiting. */
int fe_net_accept(int listener);
/* All n bytes. false: the other side is gone, or the deadline passed (*late is set then). */
bool fe_net_send(int fd, const void *bytes, size_t n, int64_t deadline, bool *late);
bool fe_net_recv(int fd, void *bytes, size_t n, int64_t deadline, bool *late);

#endif
