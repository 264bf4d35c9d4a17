/* The command ferry: finds the subcommand. */
#include "ferry/ferry.h"
#include "options.h"
#include <stdio.h>

static const struct command {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"demo", "train a small mixture-of-experts model over several ranks, and verify it", ferry_cmd_demo},
    {"bench", "measure dispatch and combine against plain copies of the same bytes", ferry_cmd_bench},
    {"run", "start the ranks of a program, here or by ssh", ferry_cmd_run},
    {"trace", "show what each rank of a group is doing, also of one that hangs", ferry_cmd_trace},
    {"info", "show version, build, devices, CPU and environment variables", ferry_cmd_info},
};

static void print_help(FILE *to) {
    fprintf(to, "usage: ferry COMMAND [options]\n\n"
                "Ferry carries mixture-of-experts tokens to their experts and back.\n\ncommands:\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(to, "  %-8s %s\n", commands[i].name, commands[i].summary);
    fprintf(to, "  %-8s %s\n\n", "help", "the help of a command: ferry help COMMAND, or ferry COMMAND --help");
    fprintf(to, "  --version  print the version\n"
                "  --help     this text\n\n"
                "Exit status: 0 all went well, 1 something failed, 2 the command line is wrong.\n");
}

static const struct command *find(const char *name) {
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    fprintf(stderr, "ferry: '%s' is no command; see 'ferry help'\n", name);
    return NULL;
}

static int help(int argc, char **argv) {
    char option[] = "--help";
    if (argc < 2) {
        print_help(stdout);
        return FE_EXIT_OK;
    }
    const struct command *command = find(argv[1]);
    char *args[] = {argv[1], option, NULL};
    return command ? command->run(2, args) : FE_EXIT_USAGE;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        print_help(stderr);
        return FE_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "version") == 0) {
        int v = ferry_version();
        printf("ferry %d.%d.%d\n", v / 10000, v / 100 % 100, v % 100);
        return FE_EXIT_OK;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0)
        return help(argc - 1, argv + 1);
    const struct command *command = find(argv[1]);
    return command ? command->run(argc - 1, argv + 1) : FE_EXIT_USAGE;
}
