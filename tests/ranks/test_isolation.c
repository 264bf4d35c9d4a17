/* What docs/security.md says about a group's memory and sockets: who can reach them, and what is not taken for a heap. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/os.h"
#include "boot/net.h"
#include "boot/wire.h"
#include "ranks/harness.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define RANKS 2

typedef bool (*fd_fn)(rank_env *env, int fd);

/* Calls the function for each descriptor of this process whose link begins so. false when one call said so, or there was none. */
static bool each_fd(rank_env *env, const char *begins, bool may_be_none, fd_fn function) {
    DIR *d = opendir("/proc/self/fd");
    bool good = d != NULL;
    int found = 0;
    for (struct dirent *e; good && (e = readdir(d));) {
        char path[300], link[300] = "";
        snprintf(path, sizeof path, "/proc/self/fd/%s", e->d_name);
        if (readlink(path, link, sizeof link - 1) < 0 || strncmp(link, begins, strlen(begins)) != 0) continue;
        good = function(env, (int)strtol(e->d_name, NULL, 10));
        found++;
    }
    if (d) closedir(d);
    if (good && !found && !may_be_none) return ranks_fail(env, "no descriptor of %s", begins);
    return good;
}

/* ---- what a group makes ---- */

static bool private_heap(rank_env *env, int fd) {
    struct stat about;
    RANK_CHECK(env, fstat(fd, &about) == 0);
    RANK_CHECK(env, (about.st_mode & 07777) == (S_IRUSR | S_IWUSR));
    RANK_CHECK(env, about.st_uid == geteuid());
    RANK_CHECK(env, about.st_nlink == 0); /* no name leads to it */
    RANK_CHECK(env, fcntl(fd, F_GETFD) & FD_CLOEXEC);
    RANK_CHECK(env, fcntl(fd, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL));
    RANK_CHECK(env, ftruncate(fd, about.st_size / 2) != 0 && errno == EPERM);
    RANK_CHECK(env, ftruncate(fd, about.st_size * 2) != 0 && errno == EPERM);
    return true;
}

static bool loopback_socket(rank_env *env, int fd) {
    struct sockaddr_in address = {0};
    socklen_t length = sizeof address;
    RANK_CHECK(env, getsockname(fd, (struct sockaddr *)&address, &length) == 0);
    RANK_CHECK(env, address.sin_family == AF_INET); /* AF_UNIX, of either kind, is none */
    RANK_CHECK(env, address.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    RANK_CHECK(env, fcntl(fd, F_GETFD) & FD_CLOEXEC);
    return true;
}

static bool private_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 4, 2);
    ferry_group *g;
    cfg.heap_bytes = 1 << 16;
    int files = ranks_held().shm_files;
    bool only_ours = ranks_device() == FERRY_CPU; /* a driver may have sockets of its own */
    if (only_ours && !each_fd(env, "socket:", true, loopback_socket)) return false;
    if (!ranks_group(env, &cfg, &g)) return false;
    if (!each_fd(env, "/memfd:ferry-heap", false, private_heap)) return false;
    if (only_ours && !each_fd(env, "socket:", true, loopback_socket)) return false;
    RANK_CHECK(env, ranks_held().shm_files == files);
    RANK_OK(env, ferry_barrier(g, NULL));
    ferry_group_destroy(g);
    return true;
}

static void test_heaps_and_sockets_are_private(void **state) {
    (void)state;
    RANKS_ASSERT(RANKS_PROCESSES, RANKS, private_rank, NULL);
}

/* ---- what a group is offered ---- */

/* Of what ranks tell each other of their heaps (heap.c): where the number of the descriptor is. */
enum { INTRODUCTION = 144, AT_BYTES = 0, AT_FD = 28 };

typedef enum offer { UNSEALED, OPEN_TO_ALL, TOO_SMALL, A_PIPE, OFFERS } offer;

typedef struct impostor {
    rank_env *env;
    offer what;
    int fd, other;
    bool introduced;
} impostor;

/* A copy of the heap that the rank has made, right to the last byte, but for one thing. */
static bool make_offer(impostor *m, int heap, size_t bytes) {
    char *from = mmap(NULL, bytes, PROT_READ, MAP_SHARED, heap, 0);
    int ends[2] = {-1, -1};
    if (from == MAP_FAILED || pipe(ends) != 0) return false;
    m->other = ends[1];
    m->fd = m->what == A_PIPE ? ends[0] : memfd_create("impostor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    size_t size = m->what == TOO_SMALL ? bytes / 2 : bytes;
    bool good = m->fd >= 0;
    if (m->what != A_PIPE) {
        close(ends[0]);
        good = good && ftruncate(m->fd, (off_t)size) == 0 && pwrite(m->fd, from, size, 0) == (ssize_t)size &&
               fchmod(m->fd, m->what == OPEN_TO_ALL ? 0666 : 0600) == 0 &&
               (m->what == UNSEALED || fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    }
    munmap(from, bytes);
    return good;
}

static int gather(void *context, const void *mine, void *all, size_t bytes) {
    impostor *m = context;
    uint8_t *board = (uint8_t *)(uintptr_t)ranks_words(m->env), *own = board + (size_t)m->env->rank * 1024;
    if (bytes > 1024) return 1;
    memcpy(own, mine, bytes);
    if (bytes == INTRODUCTION && m->env->rank == 1) {
        int32_t fd;
        uint64_t size;
        memcpy(&fd, own + AT_FD, sizeof fd);
        memcpy(&size, own + AT_BYTES, sizeof size);
        if (!make_offer(m, fd, (size_t)size)) return 1;
        memcpy(own + AT_FD, &m->fd, sizeof m->fd);
        m->introduced = true;
    }
    if (!ranks_meet(m->env)) return 1;
    for (int r = 0; r < m->env->ranks; r++) memcpy((uint8_t *)all + bytes * (size_t)r, board + (size_t)r * 1024, bytes);
    return ranks_meet(m->env) ? 0 : 1;
}

static bool impostor_rank(rank_env *env) {
    ferry_group_config cfg = ranks_config(4, 16, 4, 2);
    ferry_group *g = NULL;
    impostor m = {.env = env, .what = *(offer *)env->arg, .fd = -1, .other = -1};
    ferry_status status = ferry_group_create_with(gather, &m, env->rank, env->ranks, &cfg, &g);
    RANK_CHECK(env, status == FERRY_SYSTEM && g == NULL);
    if (env->rank == 0) RANK_CHECK(env, strstr(ferry_last_error(), "is not a sealed heap of this user's") != NULL);
    RANK_CHECK(env, m.introduced == (env->rank == 1));
    if (m.fd >= 0) close(m.fd);
    if (m.other >= 0) close(m.other);
    return true;
}

static void test_what_is_no_heap_is_not_mapped(void **state) {
    (void)state;
    if (ranks_device() != FERRY_CPU) skip();
    for (offer what = UNSEALED; what < OFFERS; what++) RANKS_ASSERT(RANKS_PROCESSES, RANKS, impostor_rank, &what);
}

/* ---- who answers in the meeting place's stead ---- */

static const char said[] = "\033[31mred\a\r\n\177text";

static void *false_hub(void *listener) {
    uint8_t hello[FE_WIRE_HEADER + FE_WIRE_HELLO_BYTES], answer[FE_WIRE_HEADER + 4 + sizeof said - 1];
    int64_t deadline = fe_now_ns() + 10000000000;
    bool late;
    int fd;
    while ((fd = fe_net_accept(*(int *)listener)) < 0 && fe_now_ns() < deadline) sched_yield();
    fe_wire_put_head(answer, FE_ERROR, 4 + sizeof said - 1);
    fe_wire_put_u32(answer + FE_WIRE_HEADER, FERRY_REFUSED);
    memcpy(answer + FE_WIRE_HEADER + 4, said, sizeof said - 1);
    if (fe_net_recv(fd, hello, sizeof hello, deadline, &late)) fe_net_send(fd, answer, sizeof answer, deadline, &late);
    close(fd);
    return NULL;
}

static void test_an_answer_steers_no_terminal(void **state) {
    (void)state;
    ferry_unique_id id = {{0}};
    ferry_group_config cfg = ranks_config(4, 16, 4, 2);
    ferry_group *g = NULL;
    pthread_t thread;
    int port = 0, listener;
    cfg.device = FERRY_CPU;
    assert_int_equal(fe_net_listen("127.0.0.1", &port, &listener), FERRY_OK);
    assert_int_equal(pthread_create(&thread, NULL, false_hub, &listener), 0);
    snprintf(id.bytes, sizeof id.bytes, "ferry1:%032d@127.0.0.1:%d", 0, port);
    assert_int_equal(ferry_group_create(&id, 0, 1, &cfg, &g), FERRY_REFUSED);
    assert_string_equal(ferry_last_error(), "?[31mred????text");
    pthread_join(thread, NULL);
    close(listener);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_heaps_and_sockets_are_private),
        cmocka_unit_test(test_what_is_no_heap_is_not_mapped),
        cmocka_unit_test(test_an_answer_steers_no_terminal),
    };
    setenv("FERRY_TOUCH_MB", "1", 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
