/* The few things asked of the operating system: a clock, a futex, the cores this process may use. */
#ifndef FERRY_BASE_OS_H
#define FERRY_BASE_OS_H

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline int64_t fe_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Sleeps while *word == seen, at most `ns`. Works between processes (no FUTEX_PRIVATE_FLAG): the word may be in shared
 * memory. Returns early at will; callers look again. */
static inline void fe_futex_wait(_Atomic uint32_t *word, uint32_t seen, int64_t ns) {
    struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0);
}

static inline void fe_futex_wake(_Atomic uint32_t *word) {
    syscall(SYS_futex, word, FUTEX_WAKE, 0x7fffffff, NULL, NULL, 0);
}

static inline void fe_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` is a no-op on most cores; isb stalls a few dozen cycles */
#endif
}

/* Cores that this process may use: its affinity mask, and its container's quota where that is less. At least 1. */
int fe_cores(void);

/* Of the last level that this processor has a part in; 8 MiB where that cannot be learnt. */
int64_t fe_cache_bytes(void);

/* A thread of the library's: signals are the host program's business and stay out of it, and its floating-point environment is the
 * default one, whatever the creating thread has set. 0, or an errno. */
int fe_thread_start(pthread_t *thread, void *(*function)(void *), void *argument);

/* ftruncate: 0, or an errno. A process whose limit (RLIMIT_FSIZE) it passes is not signalled for it. */
int fe_file_resize(int fd, int64_t bytes);

static inline int64_t fe_align(int64_t value, int64_t to) {
    return (value + to - 1) / to * to;
}

#endif
