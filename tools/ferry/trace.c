/* ferry trace: the options, the list and the table. */
#include "trace.h"
#include "hardware.h"
#include "options.h"

static const char notes[] =
    "TARGET is the number of a process, or of a group as the list shows it, or the beginning of one. Without it all\n"
    "groups of this user on this machine are listed.\n"
    "\n"
    "The table says of each rank in which step it is, since when, and for which note of which ranks it waits. It is\n"
    "read out of the ranks' shared memory: a rank may hang or be stopped, and is not disturbed. docs/trace.md shows\n"
    "how to read it.\n";

static void print_list(const fe_trace_groups *found) {
    printf("%-16s  %9s  %s\n", "group", "ranks", "processes");
    for (int i = 0; i < found->count; i++) {
        const fe_trace_group *g = &found->group[i];
        printf("%016llx  %4d of %-4d", (unsigned long long)g->group, g->count, g->count ? g->snap[0].ranks : 0);
        for (int r = 0, last = 0; r < g->count; last = g->snap[r++].pid)
            if (g->snap[r].pid != last) printf(" %d", g->snap[r].pid);
        putchar('\n');
    }
}

static int fail(const char *what, const char *target) {
    fprintf(stderr, "ferry trace: %s%s%s; 'ferry trace' lists what there is\n", what, target ? " " : "",
            target ? target : "");
    return FE_EXIT_FAILED;
}

static int export(const fe_trace_group *g, const char *perfetto, const char *html) {
    char why[FE_TRACE_WHY];
    bool good = true;
    if (perfetto) {
        cJSON *json = fe_trace_perfetto(g);
        good = fe_json_write(json, perfetto, "trace");
        cJSON_Delete(json);
    }
    if (good && html && !fe_trace_html(g, html, why)) {
        fprintf(stderr, "ferry trace: %s\n", why);
        good = false;
    }
    return good ? FE_EXIT_OK : FE_EXIT_FAILED;
}

static int show(const fe_trace_groups *found, const char *target, const char *perfetto, const char *html) {
    if (!target && !perfetto && !html) {
        if (!found->count) puts("no group of this user's runs on this machine");
        if (found->count) print_list(found);
        return FE_EXIT_OK;
    }
    if (!found->count) return fail("no process and no group of this user's is called", target);
    if (!perfetto && !html) {
        for (int i = 0; i < found->count; i++) fe_hang_print(stdout, found->group[i].snap, found->group[i].count);
        return FE_EXIT_OK;
    }
    if (found->count > 1) return fail("a file has room for one group, and there are more", target);
    return export(&found->group[0], perfetto, html);
}

int ferry_cmd_trace(int argc, char **argv) {
    const char *perfetto = NULL, *html = NULL, *target = NULL;
    const fe_option table[] = {
        {"perfetto", FE_OPTION_TEXT, &perfetto, "FILE", 0, 0,
         "write a timeline for ui.perfetto.dev or chrome://tracing; -: to standard output", ""},
        {"html", FE_OPTION_TEXT, &html, "FILE", 0, 0, "write a page that shows it, and needs nothing else", ""},
    };
    enum { OPTIONS = sizeof table / sizeof *table };
    const fe_usage usage = {"trace [TARGET]", "Shows what each rank of a group is doing, and who waits for whom.",
                            notes};
    int used;
    fe_parsed parsed = fe_options_parse_front(&usage, table, OPTIONS, argc, argv, &used);
    if (parsed == FE_PARSED_RUN && used < argc) { /* options may come after the target too */
        target = argv[used];
        parsed = fe_options_parse(&usage, table, OPTIONS, argc - used, argv + used);
    }
    if (parsed != FE_PARSED_RUN) return parsed == FE_PARSED_HELP ? FE_EXIT_OK : FE_EXIT_USAGE;
    fe_trace_groups found;
    int code = FE_EXIT_FAILED;
    if (fe_trace_find(target, &found))
        code = show(&found, target, perfetto, html);
    else
        fprintf(stderr, "ferry trace: out of memory\n");
    fe_trace_free(&found);
    return code;
}
