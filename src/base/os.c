#include "base/os.h"

#include <fenv.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

/* A container's share of the processor (cgroup v2: "quota period", in microseconds, or "max"), rounded up; 0: not limited. */
static int quota_cores(void) {
    long long quota, period;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!file) return 0;
    char text[64] = "", *end;
    if (!fgets(text, sizeof text, file)) text[0] = 0;
    fclose(file);
    quota = strtoll(text, &end, 10); /* 0 for "max" */
    period = strtoll(end, NULL, 10);
    return quota > 0 && period > 0 ? (int)((quota + period - 1) / period) : 0;
}

int fe_cores(void) {
    cpu_set_t set;
    int quota = quota_cores();
    /* More processors than cpu_set_t has bits: the call fails, and what is online is the best guess. */
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (quota && quota < n) n = quota;
    return n > 0 ? n : 1;
}

/* The kernel says what one processor shares; sysconf(_SC_LEVEL3_CACHE_SIZE) adds up a whole socket's (320 MiB on a guest that has
 * 32 MiB of it). */
int64_t fe_cache_bytes(void) {
    long long last = 0;
    for (int level = 0; level < 8; level++) {
        char path[80], text[32] = "", *end;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", level);
        FILE *file = fopen(path, "re");
        if (!file) break;
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
        long long size = strtoll(text, &end, 10);
        if (*end == 'K') size <<= 10;
        if (*end == 'M') size <<= 20;
        if (size > last) last = size;
    }
    return last > 0 ? last : 8 << 20;
}

typedef struct start {
    void *(*function)(void *);
    void *argument;
} start;

static void *run(void *argument) {
    start s = *(start *)argument;
    free(argument);
    fesetenv(FE_DFL_ENV);
    return s.function(s.argument);
}

int fe_thread_start(pthread_t *thread, void *(*function)(void *), void *argument) {
    start *s = malloc(sizeof *s);
    sigset_t all, before;
    if (!s) return ENOMEM;
    *s = (start){function, argument};
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(thread, NULL, run, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) free(s);
    return error;
}

/* With EFBIG the kernel sends the calling thread SIGXFSZ (setrlimit(2)), which by default ends the process. */
int fe_file_resize(int fd, int64_t bytes) {
    static const struct timespec at_once = {0};
    sigset_t too_large, before;
    sigemptyset(&too_large);
    sigaddset(&too_large, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &too_large, &before);
    int error = ftruncate(fd, (off_t)bytes) == 0 ? 0 : errno;
    if (error == EFBIG) sigtimedwait(&too_large, NULL, &at_once);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}
