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
