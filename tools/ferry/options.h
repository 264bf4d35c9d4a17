/* One small option parser for every subcommand: a table says what there is, reads it, and prints the help. */
#ifndef FERRY_TOOL_OPTIONS_H
#define FERRY_TOOL_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

typedef enum fe_option_type {
    FE_OPTION_FLAG,   /* bool: --name */
    FE_OPTION_INT,    /* int in low..high */
    FE_OPTION_REAL,   /* double in low..high */
    FE_OPTION_TEXT,   /* const char *, not empty */
    FE_OPTION_CHOICE, /* int: the place of the word in `value`, "a|b|c" */
} fe_option_type;

typedef struct fe_option {
    const char *name; /* without the dashes; one of a single letter is written with one dash */
    fe_option_type type;
    void *target;             /* holds the default before, and the value after */
    const char *value;        /* what the help calls it; CHOICE: the words */
    double low, high;         /* INT, REAL */
    const char *help;         /* one line; "" default: see default_text */
    const char *default_text; /* what the help says instead of the target's value; NULL: the value, "": nothing */
} fe_option;

typedef struct fe_usage {
    const char *command; /* "bench" */
    const char *summary; /* one sentence */
    const char *notes;   /* printed after the options; may be NULL */
} fe_usage;

typedef enum fe_parsed {
    FE_PARSED_RUN,  /* go on */
    FE_PARSED_HELP, /* help was printed: exit 0 */
    FE_PARSED_BAD   /* a sentence was printed on stderr: exit 2 */
} fe_parsed;

/* What stands before the command's name in sentences and help: "ferry ". */
extern const char *fe_options_program;

/* Exit codes of every subcommand. */
enum { FE_EXIT_OK = 0, FE_EXIT_FAILED = 1, FE_EXIT_USAGE = 2 };

/* argv[0] is the subcommand's name. Options are --name value or --name=value; --help and -h are always there. Ends at the
 * first thing it does not know, with a sentence. */
fe_parsed fe_options_parse(const fe_usage *usage, const fe_option *table, size_t count, int argc, char **argv);
/* The same, for a command line that another one follows: ends before the first word that is no option, or after a "--"; *used words of
 * argv were options. */
fe_parsed fe_options_parse_front(const fe_usage *usage, const fe_option *table, size_t count, int argc, char **argv,
                                 int *used);

void fe_options_help(const fe_usage *usage, const fe_option *table, size_t count);

/* The i-th word of "a|b|c", into buffer. */
const char *fe_option_word(const char *words, int i, char *buffer, size_t size);

/* Each subcommand: argv[0] is its name; returns an exit code. */
int ferry_cmd_bench(int argc, char **argv);
int ferry_cmd_demo(int argc, char **argv);
int ferry_cmd_info(int argc, char **argv);
int ferry_cmd_run(int argc, char **argv);
int ferry_cmd_trace(int argc, char **argv);

#endif
