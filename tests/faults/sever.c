/* What an operator may find: links that are gone, and a /dev/shm that is full. */
#include "faults/act.h"
#include <dirent.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

/* A connected TCP socket of this process; the meeting place's are closed once the group is made. */
static bool is_link(int fd) {
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer, kind_size = sizeof(int);
    int kind = 0;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &kind_size) == 0 && kind == SOCK_STREAM &&
           getpeername(fd, (struct sockaddr *)&peer, &size) == 0 &&
           (peer.ss_family == AF_INET || peer.ss_family == AF_INET6);
}

int sever_all(bool deaf) {
    /* A filter that takes nothing: the kernel drops every segment, acknowledgements too, and no side is told. */
    struct sock_filter nothing = {.code = BPF_RET | BPF_K, .k = 0};
    struct sock_fprog program = {.len = 1, .filter = &nothing};
    DIR *d = opendir("/proc/self/fd");
    int severed = 0;
    for (struct dirent *e; d && (e = readdir(d));) {
        int fd = atoi(e->d_name);
        if (e->d_name[0] == '.' || !is_link(fd)) continue;
        bool done = deaf ? setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0
                         : shutdown(fd, SHUT_RDWR) == 0;
        severed += done;
    }
    if (d) closedir(d);
    return severed;
}

bool fill_shm(void) {
    char page[4096] = {0};
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) return false;
    if (mount("full", "/dev/shm", "tmpfs", 0, "size=4k") != 0) return false;
    int fd = open("/dev/shm/full", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    if (fd < 0) return false;
    while (write(fd, page, sizeof page) > 0) {
    }
    close(fd);
    return true;
}
