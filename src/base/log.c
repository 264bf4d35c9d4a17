#include "base/log.h"
#include "base/env.h"
#include "base/os.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int wanted_level;
static unsigned wanted_subsystems = ~0u;
static FILE *target;

static unsigned subsystem_bit(const char *name, size_t length) {
    static const struct {
        const char *name;
        unsigned bits;
    } known[] = {{"INIT", FE_INIT}, {"BOOT", FE_BOOT}, {"HEAP", FE_HEAP}, {"ROUTE", FE_ROUTE},
                 {"MOVE", FE_MOVE}, {"ENV", FE_ENV},   {"ALL", ~0u}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == length && strncasecmp(known[i].name, name, length) == 0) return known[i].bits;
    return 0;
}

static unsigned parse_subsystems(const char *text) {
    bool except = *text == '^';
    if (except) text++;
    unsigned bits = 0;
    while (*text) {
        size_t length = strcspn(text, ",");
        bits |= subsystem_bit(text, length);
        text += length + (text[length] == ',');
    }
    return except ? ~bits : bits;
}

void fe_expand_path(const char *pattern, int rank, char *path, size_t size) {
    char host[65] = "";
    gethostname(host, sizeof host - 1);
    size_t used = 0;
    for (const char *c = pattern; *c && used + 1 < size; c++) {
        int wrote = 1;
        if (c[0] == '%' && (c[1] == 'h' || c[1] == 'p' || (c[1] == 'r' && rank >= 0))) {
            c++;
            wrote = *c == 'h' ? snprintf(path + used, size - used, "%s", host)
                              : snprintf(path + used, size - used, "%d", *c == 'r' ? rank : (int)getpid());
        } else {
            path[used] = *c;
        }
        used += (size_t)wrote;
    }
    path[used < size ? used : size - 1] = '\0';
}

static void start(void) {
    const char *level = fe_env_text(FE_ENV_FERRY_DEBUG);
    if (!level) return;
    wanted_level = strcasecmp(level, "TRACE") == 0 ? FE_TRACE : strcasecmp(level, "INFO") == 0 ? FE_INFO : FE_WARN;
    const char *subsystems = fe_env_text(FE_ENV_FERRY_DEBUG_SUBSYS);
    if (subsystems) wanted_subsystems = parse_subsystems(subsystems);
    const char *file = fe_env_text(FE_ENV_FERRY_DEBUG_FILE);
    target = stderr;
    if (!file || strcmp(file, "stderr") == 0) return;
    char path[4096];
    fe_expand_path(file, -1, path, sizeof path);
    FILE *opened = fopen(path, "ae");
    if (opened) target = opened;
}

bool fe_log_on(fe_level level, fe_subsystem subsystem) {
    pthread_once(&once, start);
    /* What went wrong is told whatever the subsystems asked for, as NCCL does. */
    return (int)level <= wanted_level && (level == FE_WARN || (wanted_subsystems & subsystem));
}

void fe_log_line(fe_level level, fe_subsystem subsystem, const char *format, ...) {
    static const char *const names[] = {[FE_WARN] = "WARN", [FE_INFO] = "INFO", [FE_TRACE] = "TRACE"};
    char line[FE_SENTENCE + 128];
    int head =
        snprintf(line, sizeof line, "ferry[%d] %.6f %s ", (int)getpid(), (double)fe_now_ns() * 1e-9, names[level]);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line + head, sizeof line - (size_t)head, format, arguments);
    va_end(arguments);
    (void)subsystem;
    fprintf(target, "%s\n", line); /* one call, one line: stdio locks the stream */
    fflush(target);
}
