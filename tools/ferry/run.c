/* ferry run: starts a program's ranks on this machine, or by ssh on others. */
#include "run.h"
#include "base/os.h"
#include "options.h"
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>

enum { PORT_FIRST = 12000, PORTS = 20000 }; /* below those that systems give out by themselves */

static const char notes[] =
    "  ferry run [options] [--] CMD [ARGUMENTS]\n"
    "\n"
    "Every rank gets FERRY_RANK, FERRY_RANKS, FERRY_LOCAL_RANK, FERRY_LOCAL_RANKS, FERRY_BOOT and a FERRY_BOOT_SECRET "
    "of the\n"
    "job's own: what ferry_group_create_env reads. Its standard input is empty; what it prints comes out in whole "
    "lines.\n"
    "\n"
    "A hosts file has a host a line, 'name' or 'name slots=N' (ranks it takes, 1 where nothing is said); # begins a "
    "comment.\n"
    "Hosts are filled in that order. Ranks of localhost, and of this host's own name, are started directly, others by\n"
    "'ssh -o BatchMode=yes': in this folder, with the FERRY_ variables of this environment and those that --env "
    "names.\n"
    "\n"
    "When a rank fails the others get SIGTERM, after the grace time SIGKILL. Signals are passed on. Whatever a rank "
    "has started ends\n"
    "with the job, also when this command is killed itself.\n"
    "\n"
    "Exit status: of the rank that failed first, or 128 + its signal; 124 after --timeout; 127 when the command could "
    "not be\n"
    "run; 2 when the command line is wrong.\n";

static bool port_is_free(uint32_t address, int port) {
    struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(address), .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool good = fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0;
    if (fd >= 0) close(fd);
    return good;
}

/* Where ranks meet: at this host's loopback when all are here, else at rank 0's host, by a name that the others know. */
static bool find_place(fe_run *run) {
    uint32_t drawn[5];
    if (getrandom(drawn, sizeof drawn, 0) != (ssize_t)sizeof drawn) return false;
    snprintf(run->secret, sizeof run->secret, "%08x%08x%08x%08x", drawn[0], drawn[1], drawn[2], drawn[3]);
    int port = PORT_FIRST + (int)(drawn[4] % PORTS);
    for (int i = 0; !run->rank[0].host && i < PORTS && !port_is_free(INADDR_ANY, port); i++)
        port = PORT_FIRST + (port - PORT_FIRST + 1) % PORTS;
    if (run->place[0]) return true; /* --boot */
    char own[FE_RUN_HOST] = "127.0.0.1";
    bool alone = true;
    for (int r = 0; r < run->ranks; r++) alone = alone && !run->rank[r].host;
    if (!alone && gethostname(own, sizeof own - 1) != 0) return false;
    const char *host = run->rank[0].host ? run->rank[0].host : own, *at = strrchr(host, '@');
    bool v6 = strchr(host, ':') != NULL;
    snprintf(run->place, sizeof run->place, v6 ? "[%s]:%d" : "%s:%d", at ? at + 1 : host, port);
    return true;
}

/* Passes signals on. A supervisor that does not end in time after one is killed, and all below it are this process's then. */
static int guard(pid_t supervisor, int signals, int grace_s) {
    int64_t kill_ns = 0;
    for (;;) {
        struct pollfd p = {.fd = signals, .events = POLLIN};
        int status;
        unsigned char byte;
        poll(&p, 1, kill_ns ? 100 : -1);
        while (read(signals, &byte, 1) == 1) {
            if (byte == SIGCHLD) continue;
            kill(supervisor, byte);
            if (byte != SIGUSR1 && byte != SIGUSR2 && !kill_ns)
                kill_ns = fe_now_ns() + ((int64_t)grace_s + 3) * 1000000000;
        }
        if (kill_ns && fe_now_ns() > kill_ns) kill(supervisor, SIGKILL);
        if (waitpid(supervisor, &status, WNOHANG) != supervisor) continue;
        fe_run_end_all();
        if (WIFEXITED(status)) return WEXITSTATUS(status);
        fprintf(stderr, "ferry run: its supervisor was killed by signal %d; the ranks with it\n", WTERMSIG(status));
        return 128 + WTERMSIG(status);
    }
}

static int run_guarded(fe_run *run) {
    sigset_t all, before;
    pid_t own = getpid();
    int signals = fe_run_signals();
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before); /* the child must not hear on this one's pipe */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t supervisor = signals < 0 ? -1 : fork();
    if (supervisor == 0) {
        setpgid(0, 0); /* the terminal's signals come by the guard alone */
        signal(SIGTTOU, SIG_IGN);
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != own) _exit(1);
        sigprocmask(SIG_SETMASK, &before, NULL);
        int status = fe_run_supervise(run);
        exit(status);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (supervisor > 0) return guard(supervisor, signals, run->grace_s);
    fprintf(stderr, "ferry run: %s\n", strerror(errno));
    return FE_EXIT_FAILED;
}

static bool check_boot(fe_run *run, const char *boot) {
    if (!boot) return true;
    const char *colon = strrchr(boot, ':');
    if (!colon || colon == boot || strlen(boot) >= sizeof run->place) return false;
    snprintf(run->place, sizeof run->place, "%s", boot);
    return true;
}

int ferry_cmd_run(int argc, char **argv) {
    fe_run run = {.grace_s = 5};
    const char *hosts = NULL, *boot = NULL;
    int output = 0, used = 0;
    const fe_option table[] = {
        {"n", FE_OPTION_INT, &run.ranks, "N", 1, 1024, "ranks", "the slots of --hosts"},
        {"hosts", FE_OPTION_TEXT, &hosts, "FILE", 0, 0, "where they run", "all of them here"},
        {"output", FE_OPTION_CHOICE, &output, "plain|prefix", 0, 0, "prefix: 'RANK| ' before each line", NULL},
        {"env", FE_OPTION_TEXT, &run.variables, "A,B,..", 0, 0, "variables that other hosts get too", NULL},
        {"boot", FE_OPTION_TEXT, &boot, "HOST:PORT", 0, 0, "where rank 0 listens",
         "its host, and a port drawn at random"},
        {"grace", FE_OPTION_INT, &run.grace_s, "S", 0, 3600, "seconds between SIGTERM and SIGKILL", NULL},
        {"timeout", FE_OPTION_INT, &run.timeout_s, "S", 1, 1 << 30, "seconds that the job may take", "no limit"},
    };
    const fe_usage usage = {"run", "Starts the ranks of a program, here or by ssh, and ends them together.", notes};
    char why[FE_RUN_WHY];
    fe_parsed parsed = fe_options_parse_front(&usage, table, sizeof table / sizeof *table, argc, argv, &used);
    if (parsed != FE_PARSED_RUN) return parsed == FE_PARSED_HELP ? FE_EXIT_OK : FE_EXIT_USAGE;
    run.command = argv + used;
    run.prefix = output == 1;
    bool good = false;
    if (used >= argc)
        snprintf(why, sizeof why, "no command to run; see 'ferry run --help'");
    else if (!check_boot(&run, boot))
        snprintf(why, sizeof why, "--boot %.100s is no HOST:PORT", boot);
    else
        good = fe_run_hosts(&run, hosts, why);
    if (!good) {
        fprintf(stderr, "ferry run: %s\n", why);
        return FE_EXIT_USAGE;
    }
    if (!find_place(&run)) {
        fprintf(stderr, "ferry run: finding where to meet: %s\n", strerror(errno));
        return FE_EXIT_FAILED;
    }
    int status = run_guarded(&run);
    free(run.rank);
    free(run.hosts);
    return status;
}
