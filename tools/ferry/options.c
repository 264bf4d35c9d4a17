#include "options.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *fe_options_program = "ferry ";

const char *fe_option_word(const char *words, int i, char *buffer, size_t size) {
    for (; i > 0 && words; i--) {
        words = strchr(words, '|');
        if (words) words++;
    }
    if (!words) words = "";
    size_t n = strcspn(words, "|");
    if (n >= size) n = size - 1;
    memcpy(buffer, words, n);
    buffer[n] = 0;
    return buffer;
}

static void print_default(const fe_option *o) {
    char word[64];
    if (o->default_text) {
        if (*o->default_text) printf(" (default %s)", o->default_text);
        return;
    }
    switch (o->type) {
    case FE_OPTION_FLAG: break;
    case FE_OPTION_INT: printf(" (default %d)", *(int *)o->target); break;
    case FE_OPTION_REAL: printf(" (default %g)", *(double *)o->target); break;
    case FE_OPTION_TEXT:
        if (*(const char **)o->target) printf(" (default %s)", *(const char **)o->target);
        break;
    case FE_OPTION_CHOICE:
        printf(" (default %s)", fe_option_word(o->value, *(int *)o->target, word, sizeof word));
        break;
    }
}

static const char *dashes(const char *name) {
    return strlen(name) == 1 ? "-" : "--";
}

void fe_options_help(const fe_usage *usage, const fe_option *table, size_t count) {
    printf("usage: %s%s [options]\n\n%s\n\noptions:\n", fe_options_program, usage->command, usage->summary);
    for (size_t i = 0; i < count; i++) {
        char left[80];
        snprintf(left, sizeof left, "%s%s%s%s", dashes(table[i].name), table[i].name, table[i].value ? " " : "",
                 table[i].value ? table[i].value : "");
        printf("  %-34s %s", left, table[i].help);
        print_default(&table[i]);
        putchar('\n');
    }
    printf("  %-34s %s\n", "--help", "this text");
    if (usage->notes) printf("\n%s", usage->notes);
}

static fe_parsed bad(const fe_usage *usage, const char *name, size_t length, const char *what) {
    fprintf(stderr, "%s%s: %s%.*s %s; see '%s%s --help'\n", fe_options_program, usage->command,
            length == 1 ? "-" : "--", (int)length, name, what, fe_options_program, usage->command);
    return FE_PARSED_BAD;
}

static fe_parsed bad_number(const fe_usage *usage, const fe_option *o, const char *value) {
    char what[256];
    snprintf(what, sizeof what, "%.100s is not a %snumber from %.15g to %.15g", value,
             o->type == FE_OPTION_INT ? "whole " : "", o->low, o->high);
    return bad(usage, o->name, strlen(o->name), what);
}

static fe_parsed take_number(const fe_usage *usage, const fe_option *o, const char *value) {
    char *end;
    errno = 0;
    double number = o->type == FE_OPTION_INT ? (double)strtoll(value, &end, 10) : strtod(value, &end);
    if (errno || end == value || *end || !isfinite(number) || number < o->low || number > o->high)
        return bad_number(usage, o, value);
    if (o->type == FE_OPTION_INT)
        *(int *)o->target = (int)number;
    else
        *(double *)o->target = number;
    return FE_PARSED_RUN;
}

static fe_parsed take_choice(const fe_usage *usage, const fe_option *o, const char *value) {
    char word[64], what[256];
    for (int i = 0; *fe_option_word(o->value, i, word, sizeof word); i++) {
        if (strcmp(word, value) != 0) continue;
        *(int *)o->target = i;
        return FE_PARSED_RUN;
    }
    snprintf(what, sizeof what, "%.100s is none of %s", value, o->value);
    return bad(usage, o->name, strlen(o->name), what);
}

static fe_parsed take(const fe_usage *usage, const fe_option *o, const char *value) {
    switch (o->type) {
    case FE_OPTION_FLAG: *(bool *)o->target = true; return FE_PARSED_RUN;
    case FE_OPTION_INT:
    case FE_OPTION_REAL: return take_number(usage, o, value);
    case FE_OPTION_CHOICE: return take_choice(usage, o, value);
    case FE_OPTION_TEXT: break;
    }
    if (!*value) return bad(usage, o->name, strlen(o->name), "needs a text that is not empty");
    *(const char **)o->target = value;
    return FE_PARSED_RUN;
}

static const fe_option *find(const fe_option *table, size_t count, const char *name, size_t length) {
    for (size_t i = 0; i < count; i++)
        if (strlen(table[i].name) == length && strncmp(table[i].name, name, length) == 0) return &table[i];
    return NULL;
}

/* One option, argv[*at] and its value: *at moves to its last word. */
static fe_parsed take_option(const fe_usage *usage, const fe_option *table, size_t count, int argc, char **argv,
                             int *at) {
    const char *word = argv[*at], *name = word + 1 + (word[1] == '-'), *value = strchr(name, '=');
    size_t length = value ? (size_t)(value - name) : strlen(name);
    bool right = length > 0 && (length == 1) == (word[1] != '-'); /* -n, --name, and not --n or -name */
    const fe_option *o = right ? find(table, count, name, length) : NULL;
    if (!o) return bad(usage, name, length, "is not known");
    if (o->type == FE_OPTION_FLAG && value) return bad(usage, name, length, "takes no value");
    if (o->type != FE_OPTION_FLAG && !value && *at + 1 >= argc) return bad(usage, name, length, "needs a value");
    if (o->type != FE_OPTION_FLAG) value = value ? value + 1 : argv[++*at];
    return take(usage, o, value);
}

fe_parsed fe_options_parse_front(const fe_usage *usage, const fe_option *table, size_t count, int argc, char **argv,
                                 int *used) {
    int i = 1;
    for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fe_options_help(usage, table, count);
            return FE_PARSED_HELP;
        }
        if (strcmp(argv[i], "--") == 0) {
            i++;
            break;
        }
        fe_parsed parsed = take_option(usage, table, count, argc, argv, &i);
        if (parsed != FE_PARSED_RUN) return parsed;
    }
    *used = i;
    return FE_PARSED_RUN;
}

fe_parsed fe_options_parse(const fe_usage *usage, const fe_option *table, size_t count, int argc, char **argv) {
    int used = 0;
    fe_parsed parsed = fe_options_parse_front(usage, table, count, argc, argv, &used);
    if (parsed != FE_PARSED_RUN || (used == argc && strcmp(argv[used - 1], "--") != 0)) return parsed;
    fprintf(stderr, "%s%s: '%s' is no option; see '%s%s --help'\n", fe_options_program, usage->command,
            argv[used < argc ? used : used - 1], fe_options_program, usage->command);
    return FE_PARSED_BAD;
}
