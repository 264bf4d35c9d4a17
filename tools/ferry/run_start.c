/* Starts one rank: here by fork and exec, elsewhere by ssh. */
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

/* ---- what another host's shell is told ---- */

/* ssh joins its words with spaces and gives them to the user's login shell, whichever that is; and whoever lists processes sees them. So
 * the words are these, always, and the secret and the command come by standard input. `read` takes no byte past its line: what
 * follows are names of signals, and the end of it means that this launcher is gone. */
static const char remote_shell[] = "exec /bin/sh -c 'IFS= read -r ferry_script && eval \"$ferry_script\"'";

/* After the command is started in a group of its own ($c). The watcher holds neither output nor the way in when it is killed. */
static const char remote_watch[] =
    " 3<&- & c=$!; (while IFS= read -r s <&3; do kill -s \"$s\" -- \"-$c\"; done; kill -s TERM -- \"-$c\"; "
    "sleep %d; kill -s KILL -- \"-$c\") >/dev/null 2>&1 & w=$!; exec 3<&-; wait \"$c\"; r=$?; "
    "kill -s KILL -- \"-$c\" \"$w\" 2>/dev/null; exit \"$r\"\n";

/* 'text', as every POSIX shell reads it, and without a newline in it. */
static void quote(FILE *to, const char *text) {
    fputc('\'', to);
    for (; *text; text++) {
        if (*text == '\'')
            fputs("'\\''", to);
        else if (*text == '\n')
            fputs("'\"$nl\"'", to);
        else
            fputc(*text, to);
    }
    fputc('\'', to);
}

static void assign(FILE *to, const char *name, const char *value) {
    fprintf(to, "export %s=", name);
    quote(to, value);
    fputs("; ", to);
}

static bool is_name(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(text[i] == '_' || (text[i] >= 'A' && text[i] <= 'Z') || (text[i] >= 'a' && text[i] <= 'z') ||
              (i > 0 && text[i] >= '0' && text[i] <= '9')))
            return false;
    return n > 0;
}

static bool is_wanted(const char *list, const char *name, size_t n) {
    if (strncmp(name, "FERRY_", 6) == 0) return true;
    for (const char *at = list; at && *at; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == n && strncmp(at, name, n) == 0) return true;
    return false;
}

typedef struct number {
    const char *name;
    int value;
} number;

static void each_own(const fe_run *run, int rank, void *context,
                     void (*tell)(void *context, const char *name, const char *value)) {
    const fe_run_rank *r = &run->rank[rank];
    const number numbers[] = {{"FERRY_RANK", rank},
                              {"FERRY_RANKS", run->ranks},
                              {"FERRY_LOCAL_RANK", r->local_rank},
                              {"FERRY_LOCAL_RANKS", r->local_ranks}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", numbers[i].value);
        tell(context, numbers[i].name, text);
    }
    tell(context, "FERRY_BOOT", run->place);
    tell(context, "FERRY_BOOT_SECRET", run->secret);
}

static void tell_script(void *context, const char *name, const char *value) {
    assign(context, name, value);
}

static void tell_environment(void *context, const char *name, const char *value) {
    (void)context;
    setenv(name, value, 1);
}

char *fe_run_script(const fe_run *run, int rank) {
    char *text = NULL, *folder = getcwd(NULL, 0);
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    if (!to) {
        free(folder);
        return NULL;
    }
    fputs("nl=$(printf '\\nx'); nl=${nl%x}; ", to);
    if (folder) {
        fputs("cd -- ", to);
        quote(to, folder);
        fputs(" || exit 126; ", to);
    }
    for (char **e = environ; *e; e++) {
        size_t n = strcspn(*e, "=");
        char name[128];
        if (n >= sizeof name || !is_name(*e, n) || !is_wanted(run->variables, *e, n)) continue;
        snprintf(name, sizeof name, "%.*s", (int)n, *e);
        assign(to, name, *e + n + 1);
    }
    each_own(run, rank, to, tell_script); /* after those, which they replace */
    fputs("exec 3<&0 </dev/null; setsid", to);
    for (char **word = run->command; *word; word++) {
        fputc(' ', to);
        quote(to, *word);
    }
    fprintf(to, remote_watch, run->grace_s);
    free(folder);
    if (fclose(to) == 0) return text;
    free(text);
    return NULL;
}

/* ---- processes ---- */

/* Between fork and exec. Never returns. */
static _Noreturn void become(const fe_run *run, int rank, pid_t parent, const int *in, const int *out, const int *err,
                             int tell) {
    const fe_run_rank *r = &run->rank[rank];
    sigset_t none;
    sigemptyset(&none);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* the supervisor's death is this one's */
    if (getppid() != parent) _exit(1);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGTTOU, SIG_DFL);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (dup2(r->host ? in[0] : null, STDIN_FILENO) >= 0 && dup2(out[1], STDOUT_FILENO) >= 0 &&
        dup2(err[1], STDERR_FILENO) >= 0) {
        if (!r->host) each_own(run, rank, NULL, tell_environment);
        if (r->host)
            execlp("ssh", "ssh", "-T", "-o", "BatchMode=yes", "--", r->host, remote_shell, (char *)NULL);
        else
            execvp(run->command[0], run->command);
    }
    int error = errno;
    ssize_t told = write(tell, &error, sizeof error); /* 4 bytes into an empty pipe */
    _exit(told == (ssize_t)sizeof error ? 127 : 126);
}

static bool send_script(const fe_run *run, int rank, char *why) {
    char *script = fe_run_script(run, rank);
    bool good = script != NULL;
    for (const char *at = script; good && *at;) {
        ssize_t n = write(run->rank[rank].line, at, strlen(at));
        if (n > 0) at += n;
        good = n > 0 || errno == EINTR || errno == EPIPE; /* a ssh that has ended says by its status what is wrong */
        if (n < 0 && errno == EPIPE) break;
    }
    if (!good)
        snprintf(why, FE_RUN_WHY, "rank %d: telling %.100s what to run: %s", rank, run->rank[rank].host,
                 strerror(errno));
    free(script);
    return good;
}

static void close_both(const int *fd) {
    close(fd[0]);
    close(fd[1]);
}

bool fe_run_start(fe_run *run, int rank, char why[FE_RUN_WHY]) {
    fe_run_rank *r = &run->rank[rank];
    int pipes[4][2], made = 0, error = 0; /* in, out, err, and why exec failed */
    pid_t parent = getpid();
    while (made < 4 && pipe2(pipes[made], O_CLOEXEC) == 0) made++;
    if (made == 4 && (r->pid = fork()) == 0) become(run, rank, parent, pipes[0], pipes[1], pipes[2], pipes[3][1]);
    if (made < 4 || r->pid < 0) {
        snprintf(why, FE_RUN_WHY, "rank %d could not be started: %s", rank, strerror(errno));
        r->pid = 0;
        while (made > 0) close_both(pipes[--made]);
        return false;
    }
    setpgid(r->pid, r->pid); /* whoever of the two is first: no signal to the group may come too early */
    close(pipes[0][0]);
    close(pipes[1][1]);
    close(pipes[2][1]);
    close(pipes[3][1]);
    r->line = pipes[0][1];
    r->out = (fe_run_stream){.fd = pipes[1][0], .to = STDOUT_FILENO};
    r->err = (fe_run_stream){.fd = pipes[2][0], .to = STDERR_FILENO};
    ssize_t n;
    do n = read(pipes[3][0], &error, sizeof error); /* ends when exec closes the other side */
    while (n < 0 && errno == EINTR);
    close(pipes[3][0]);
    if (n > 0) {
        snprintf(why, FE_RUN_WHY, "rank %d: %.200s could not be run: %s", rank, r->host ? "ssh" : run->command[0],
                 strerror(error));
        return false;
    }
    if (r->host) return send_script(run, rank, why);
    close(r->line);
    r->line = -1;
    return true;
}
