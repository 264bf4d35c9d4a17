/* Ends everything below this process. Both processes of ferry run adopt the orphans below them, so that whoever starts something and
 * ends, or makes a session of its own, comes back as a child. */
#include "run.h"
#include <ctype.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The parent of a process; 0 when it is gone. */
static pid_t parent_of(const char *pid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%.20s/stat", pid);
    FILE *file = fopen(path, "r");
    size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file) fclose(file);
    text[n] = 0;
    const char *end = strrchr(text, ')'); /* the name before it may hold anything */
    return end && strlen(end) > 4 ? (pid_t)strtol(end + 4, NULL, 10) : 0;
}

static int kill_children(void) {
    DIR *proc = opendir("/proc");
    int killed = 0;
    for (struct dirent *d; proc && (d = readdir(proc));) {
        if (!isdigit((unsigned char)d->d_name[0]) || parent_of(d->d_name) != getpid()) continue;
        pid_t pid = (pid_t)strtol(d->d_name, NULL, 10);
        kill(-pid, SIGKILL); /* those of its group need not be found one by one */
        kill(pid, SIGKILL);
        killed++;
    }
    if (proc) closedir(proc);
    return killed;
}

/* A killed child's own children become this process's, and are found in the next round. */
void fe_run_end_all(void) {
    do kill_children();
    while (waitpid(-1, NULL, 0) > 0);
}
