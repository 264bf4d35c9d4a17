/* The supervisor: starts the ranks, carries their lines out and signals in, and sees how each ends. */
#include "base/os.h"
#include "run.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>

typedef struct job {
    fe_run *run;
    struct pollfd *polls;
    int live, signals;
    int first;           /* rank that failed first; -1: none */
    int status;          /* ferry run's own */
    bool ending;         /* the others were told to end */
    int64_t kill_ns;     /* when they are killed; 0: not to be */
    int64_t deadline_ns; /* of the job; 0: none */
} job;

/* ---- signals as bytes ---- */

static int signal_pipe = -1;

static void on_signal(int number) {
    int error = errno;
    unsigned char byte = (unsigned char)number;
    ssize_t n = write(signal_pipe, &byte, 1); /* a full pipe has news enough in it */
    (void)n;
    errno = error;
}

int fe_run_signals(void) {
    static const int wanted[] = {SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return -1;
    signal_pipe = ends[1];
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        struct sigaction old, new = {.sa_handler = on_signal};
        sigemptyset(&new.sa_mask);
        if (sigaction(wanted[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN) continue; /* nohup, or a shell's & */
        sigaction(wanted[i], &new, NULL);
    }
    signal(SIGPIPE, SIG_IGN);
    return ends[0];
}

static const char *signal_name(int number, char text[64]) {
    snprintf(text, 64, "signal %d (%s)", number, strsignal(number));
    return text;
}

/* To a rank and all of its process group; elsewhere the host's shell does it. */
static void pass_on(const fe_run_rank *r, int number) {
    char line[16];
    if (r->pid <= 0) return;
    if (!r->host) {
        kill(-r->pid, number);
        return;
    }
    int n = snprintf(line, sizeof line, "%s\n", sigabbrev_np(number));
    ssize_t sent = write(r->line, line, (size_t)n); /* when the ssh is gone there is nobody to tell */
    (void)sent;
}

static void tell_all(const job *j, int number) {
    for (int r = 0; r < j->run->ranks; r++) pass_on(&j->run->rank[r], number);
}

/* A second time, with whatever signal: there is no more waiting. */
static void end_all(job *j, int number, int grace_s) {
    tell_all(j, number);
    j->kill_ns = fe_now_ns() + (j->ending ? 0 : (int64_t)grace_s * 1000000000);
    j->ending = true;
}

/* ---- output ---- */

/* Whoever writes to a reader that is gone gets SIGPIPE, as without a launcher in between. */
static void close_stream(fe_run_stream *s) {
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
}

static bool write_all(int to, struct iovec *part, int count) {
    while (count > 0) {
        ssize_t n = part->iov_len ? writev(to, part, count) : 0;
        if (n < 0 && errno != EINTR) return false;
        for (; count > 0 && n >= (ssize_t)part->iov_len; part++, count--) n -= (ssize_t)part->iov_len;
        if (count == 0 || n <= 0) continue;
        part->iov_base = (char *)part->iov_base + n;
        part->iov_len -= (size_t)n;
    }
    return true;
}

/* One line, or what there is of it, in one write: lines of ranks do not mix. */
static bool put_line(const job *j, const fe_run_rank *r, const fe_run_stream *s, const char *line, size_t n) {
    char head[16] = "", end[] = "\n";
    bool closed = n > 0 && line[n - 1] == '\n';
    if (j->run->prefix) snprintf(head, sizeof head, "%d| ", (int)(r - j->run->rank));
    struct iovec part[3] = {{head, strlen(head)}, {(void *)line, n}, {end, j->run->prefix && !closed ? 1 : 0}};
    return write_all(s->to, part, 3);
}

static void put_lines(const job *j, const fe_run_rank *r, fe_run_stream *s, bool last) {
    size_t at = 0;
    for (const char *end; (end = memchr(s->line + at, '\n', s->used - at));) {
        size_t n = (size_t)(end - s->line) + 1 - at;
        if (!put_line(j, r, s, s->line + at, n)) {
            close_stream(s);
            return;
        }
        at += n;
    }
    if (at < s->used && (last || (at == 0 && s->used == sizeof s->line))) { /* it ends without a newline; too long */
        if (!put_line(j, r, s, s->line + at, s->used - at)) close_stream(s);
        at = s->used;
    }
    memmove(s->line, s->line + at, s->used - at);
    s->used -= at;
}

static void pump(const job *j, const fe_run_rank *r, fe_run_stream *s) {
    ssize_t n = read(s->fd, s->line + s->used, sizeof s->line - s->used);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n > 0) s->used += (size_t)n;
    put_lines(j, r, s, n <= 0);
    if (n <= 0) close_stream(s);
}

/* ---- ends ---- */

static void describe(const job *j, int rank, int status, char *text, size_t size) {
    const char *host = j->run->rank[rank].host;
    char name[64], where[FE_RUN_HOST + 8] = "";
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    if (host) snprintf(where, sizeof where, " on %.200s", host);
    if (WIFSIGNALED(status))
        snprintf(text, size, "rank %d%s was killed by %s", rank, where, signal_name(WTERMSIG(status), name));
    else if (host && code == 255)
        snprintf(text, size, "rank %d%s: ssh ended with exit status 255: no connection, or the rank's own", rank,
                 where);
    else if (host && code > 128 && code < 128 + NSIG) /* a shell tells it so */
        snprintf(text, size, "rank %d%s ended with exit status %d, which is %s", rank, where, code,
                 signal_name(code - 128, name));
    else
        snprintf(text, size, "rank %d%s ended with exit status %d", rank, where, code);
}

static void note_end(job *j, int rank, int status) {
    char text[FE_RUN_WHY];
    j->run->rank[rank].pid = 0;
    j->live--;
    if (status == 0 || j->first >= 0 || j->ending) return;
    j->first = rank;
    j->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    describe(j, rank, status, text, sizeof text);
    fprintf(stderr, "ferry run: %s%s\n", text, j->live ? "; the others are told to end" : "");
    if (j->live) end_all(j, SIGTERM, j->run->grace_s);
}

/* What a rank leaves behind in its process group ends with it: before it is reaped, as its number is its own until then. */
static void reap(job *j) {
    for (int r = 0; r < j->run->ranks; r++) {
        siginfo_t info = {0};
        int status;
        pid_t pid = j->run->rank[r].pid;
        if (pid <= 0 || waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || !info.si_pid) continue;
        kill(-pid, SIGKILL);
        if (waitpid(pid, &status, 0) == pid) note_end(j, r, status);
    }
}

static void hear_signals(job *j) {
    unsigned char byte;
    while (read(j->signals, &byte, 1) == 1) {
        char name[64];
        if (byte == SIGCHLD)
            reap(j);
        else if (byte == SIGUSR1 || byte == SIGUSR2)
            tell_all(j, byte);
        else {
            if (!j->ending) {
                fprintf(stderr, "ferry run: %s; passed on to the ranks\n", signal_name(byte, name));
                j->status = 128 + byte;
            }
            end_all(j, byte, j->run->grace_s);
        }
    }
}

static void mind_time(job *j) {
    int64_t now = fe_now_ns();
    if (j->deadline_ns && now >= j->deadline_ns && !j->ending) {
        fprintf(stderr, "ferry run: %d s passed, and still running:", j->run->timeout_s);
        for (int r = 0; r < j->run->ranks; r++)
            if (j->run->rank[r].pid > 0) fprintf(stderr, " rank %d", r);
        fputc('\n', stderr);
        j->status = 124; /* as timeout(1) */
        end_all(j, SIGTERM, j->run->grace_s);
    }
    if (!j->kill_ns || now < j->kill_ns) return;
    for (int r = 0; r < j->run->ranks; r++)
        if (j->run->rank[r].pid > 0) kill(-j->run->rank[r].pid, SIGKILL);
    j->kill_ns = 0;
}

static int wait_ms(const job *j) {
    int64_t next = j->kill_ns ? j->kill_ns : j->ending ? 0 : j->deadline_ns, left = next - fe_now_ns();
    if (!next) return -1;
    return left <= 0 ? 0 : left > 3600000000000 ? 3600000 : (int)(left / 1000000 + 1);
}

static fe_run_stream *stream_of(const job *j, int i) {
    fe_run_rank *r = &j->run->rank[i / 2];
    return i % 2 ? &r->err : &r->out;
}

static void turn(job *j, int ms) {
    int n = 2 * j->run->ranks;
    for (int i = 0; i < n; i++) j->polls[i] = (struct pollfd){.fd = stream_of(j, i)->fd, .events = POLLIN};
    j->polls[n] = (struct pollfd){.fd = j->signals, .events = POLLIN};
    if (poll(j->polls, (nfds_t)n + 1, ms) <= 0) return;
    for (int i = 0; i < n; i++)
        if (j->polls[i].revents && stream_of(j, i)->fd >= 0) pump(j, &j->run->rank[i / 2], stream_of(j, i));
    if (j->polls[n].revents) hear_signals(j);
}

static bool streams_open(const job *j) {
    for (int i = 0; i < 2 * j->run->ranks; i++)
        if (stream_of(j, i)->fd >= 0) return true;
    return false;
}

static bool start_all(job *j) {
    char why[FE_RUN_WHY];
    for (int r = 0; r < j->run->ranks; r++) {
        if (fe_run_start(j->run, r, why)) {
            j->live++;
            continue;
        }
        fprintf(stderr, "ferry run: %s\n", why);
        j->status = 127;
        return false;
    }
    return true;
}

int fe_run_supervise(fe_run *run) {
    job j = {.run = run, .first = -1, .signals = fe_run_signals()};
    j.polls = calloc(2 * (size_t)run->ranks + 1, sizeof *j.polls);
    if (j.signals < 0 || !j.polls) {
        fprintf(stderr, "ferry run: %s\n", strerror(errno));
        free(j.polls);
        return 1;
    }
    for (int r = 0; r < run->ranks; r++) run->rank[r].out.fd = run->rank[r].err.fd = run->rank[r].line = -1;
    if (run->timeout_s) j.deadline_ns = fe_now_ns() + (int64_t)run->timeout_s * 1000000000;
    if (start_all(&j))
        while (j.live > 0) {
            turn(&j, wait_ms(&j));
            mind_time(&j);
        }
    fe_run_end_all(); /* whoever may still hold the other end of a pipe */
    while (streams_open(&j)) turn(&j, 0);
    free(j.polls);
    return j.status;
}
