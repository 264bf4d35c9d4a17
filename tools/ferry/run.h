/* ferry run, inside: run.c reads the command line and guards, run_hosts.c says which rank goes where, run_start.c starts one, run_watch.c
 * carries output and signals and sees who ends how, run_tree.c ends everything that was ever started.
 *
 * Two processes: the guard, which the user started, and its child the supervisor, which starts the ranks. Both adopt orphans
 * (PR_SET_CHILD_SUBREAPER), and each ends everything below it when the other is gone. */
#ifndef FERRY_TOOL_RUN_H
#define FERRY_TOOL_RUN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum { FE_RUN_HOST = 256, FE_RUN_WHY = 512, FE_RUN_LINE = 1 << 16 };

typedef struct fe_run_stream { /* of one rank: its standard output, or error */
    int fd;                    /* -1: ended */
    int to;                    /* where it goes */
    size_t used;
    char line[FE_RUN_LINE]; /* what has no end yet */
} fe_run_stream;

typedef struct fe_run_rank {
    const char *host; /* NULL: this one */
    int local_rank, local_ranks;
    pid_t pid; /* of the rank, or of its ssh; 0: ended */
    int line;  /* to the host's shell; -1: none */
    int status;
    fe_run_stream out, err;
} fe_run_rank;

typedef struct fe_run {
    int ranks, grace_s, timeout_s;
    bool prefix;
    const char *variables; /* names, separated by commas, that go to other hosts too */
    char **command;        /* ends with NULL */
    char place[FE_RUN_HOST + 16], secret[33];
    fe_run_rank *rank;
    char *hosts; /* the names that rank[].host points into */
} fe_run;

/* run_hosts.c: gives every rank its host, in the order of the file: `name [slots=N]` a line, # begins a comment. file NULL: all of them
 * here. ranks 0: as many as there are slots. false: why. */
bool fe_run_hosts(fe_run *run, const char *file, char why[FE_RUN_WHY]);

/* run_start.c. The rank's process leads a process group of its own. false: why. */
bool fe_run_start(fe_run *run, int rank, char why[FE_RUN_WHY]);
/* What the host's shell is told, in one line, with nothing in it that any shell would misread; to be freed. NULL: no memory. */
char *fe_run_script(const fe_run *run, int rank);

/* run_watch.c: the supervisor. Its exit status. */
int fe_run_supervise(fe_run *run);
/* The pipe end on which every signal that this process gets arrives, a byte each. -1: errno. */
int fe_run_signals(void);

/* run_tree.c: kills and reaps all descendants of this process, until there are none. */
void fe_run_end_all(void);

#endif
