/* The environment table, the log and the sentences. The log reads its variables once in a process, so each of its cases
 * runs in a child of its own; this process itself must not fail a call of the library before they are all done: see
 * main. */
#include "base/env.h"
#include "base/log.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ------------------------------------------------------------------------------------------------------------------
 * Children
 * ---------------------------------------------------------------------------------------------------------------- */

/* What a case sets before the log is first used; NULL: not set. */
typedef struct settings {
    const char *debug, *subsystems, *file;
} settings;

static void set(const char *name, const char *value) {
    if (value ? setenv(name, value, 1) : unsetenv(name)) _exit(9);
}

static char said[65536]; /* what the child wrote to its standard error */

/* Runs `act` in a child with these variables. Returns its process id, when it has ended well. */
static pid_t in_child(const settings *with, void (*act)(void)) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        set("FERRY_DEBUG", with->debug);
        set("FERRY_DEBUG_SUBSYS", with->subsystems);
        set("FERRY_DEBUG_FILE", with->file);
        if (dup2(ends[1], STDERR_FILENO) < 0) _exit(9);
        close(ends[0]);
        close(ends[1]);
        act();
        _exit(0);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t n; (n = read(ends[0], said + used, sizeof said - 1 - used)) > 0;) used += (size_t)n;
    said[used] = '\0';
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail_msg("the child ended with status %#x: %s", status, said);
    return child;
}

/* The log's lines are `ferry[PID] SECONDS LEVEL text`: what follows the seconds in line number `index`, NULL when there
 * is no such line or it does not begin so. */
static const char *line_of(char *text, pid_t pid, int index) {
    static char line[2048];
    for (; index > 0; index--) {
        text = strchr(text, '\n');
        if (!text) return NULL;
        text++;
    }
    char head[32], *end = strchr(text, '\n');
    if (!end || (size_t)(end - text) >= sizeof line) return NULL;
    memcpy(line, text, (size_t)(end - text));
    line[end - text] = '\0';
    snprintf(head, sizeof head, "ferry[%d] ", (int)pid);
    if (strncmp(line, head, strlen(head)) != 0) return NULL;
    char *number = line + strlen(head);
    if (strtod(number, &end) <= 0 || *end != ' ') return NULL;
    return end + 1;
}

static void assert_line(pid_t pid, int index, const char *wanted) {
    const char *line = line_of(said, pid, index);
    assert_non_null(line);
    assert_string_equal(line, wanted);
}

/* ------------------------------------------------------------------------------------------------------------------
 * The log
 * ---------------------------------------------------------------------------------------------------------------- */

static void fail_and_tell(void) {
    if (fe_fail(FERRY_INVALID, "seven is %d", 7) != FERRY_INVALID) _exit(8);
    fe_log(FE_INFO, FE_HEAP, "some %s", "information");
    fe_log(FE_TRACE, FE_MOVE, "a trace");
}

static void test_levels(void **state) {
    (void)state;
    static const char *const silent[] = {NULL, "", "auto"};
    for (size_t i = 0; i < sizeof silent / sizeof *silent; i++) {
        in_child(&(settings){.debug = silent[i], .subsystems = "ALL"}, fail_and_tell);
        assert_string_equal(said, "");
    }
    static const struct {
        const char *debug;
        int lines;
    } cases[] = {{"WARN", 1},  {"warn", 1},  {"INFO", 2}, {"Info", 2},
                 {"TRACE", 3}, {"trace", 3}, {"1", 1},    {"INFOS", 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pid_t pid = in_child(&(settings){.debug = cases[i].debug}, fail_and_tell);
        assert_line(pid, 0, "WARN FERRY_INVALID: seven is 7");
        if (cases[i].lines > 1) assert_line(pid, 1, "INFO some information");
        if (cases[i].lines > 2) assert_line(pid, 2, "TRACE a trace");
        assert_null(line_of(said, pid, cases[i].lines));
    }
    /* What went wrong is told whatever the subsystems. */
    pid_t pid = in_child(&(settings){.debug = "TRACE", .subsystems = "ENV"}, fail_and_tell);
    assert_line(pid, 0, "WARN FERRY_INVALID: seven is 7");
    assert_null(line_of(said, pid, 1));
}

/* Says, one letter a subsystem, whose information is wanted. */
static void tell_wanted(void) {
    static const fe_subsystem all[] = {FE_INIT, FE_BOOT, FE_HEAP, FE_ROUTE, FE_MOVE, FE_ENV};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) fputc(fe_log_on(FE_INFO, all[i]) ? "IBHRME"[i] : '-', stderr);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (fe_log_on(FE_TRACE, all[i])) _exit(8);
    fflush(stderr);
}

static void test_subsystems(void **state) {
    (void)state;
    static const struct {
        const char *list, *wanted;
    } cases[] = {
        {NULL, "IBHRME"},
        {"", "IBHRME"},
        {"ALL", "IBHRME"},
        {"all", "IBHRME"},
        {"HEAP", "--H---"},
        {"heap,Move", "--H-M-"},
        {"INIT,BOOT,HEAP,ROUTE,MOVE,ENV", "IBHRME"},
        {",,ROUTE,,", "---R--"},
        {"HEA", "------"}, /* whole names only */
        {"HEAPS", "------"},
        {"NET,ENV", "-----E"}, /* a name that is none does no harm */
        {"^HEAP", "IB-RME"},
        {"^heap,INIT", "-B-RME"},
        {"^NET", "IBHRME"},
        {"^ALL", "------"},
        {"^", "IBHRME"},
        {"HEAP,^INIT", "--H---"}, /* ^ goes before the list, not into it */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        in_child(&(settings){.debug = "INFO", .subsystems = cases[i].list}, tell_wanted);
        if (strcmp(said, cases[i].wanted) != 0)
            fail_msg("FERRY_DEBUG_SUBSYS=%s wants %s, not %s", cases[i].list ? cases[i].list : "(not set)", said,
                     cases[i].wanted);
    }
}

static void fail_at_length(void) {
    char text[2000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    fe_fail(FERRY_SYSTEM, "%s", text);
    if (strlen(ferry_last_error()) != FE_SENTENCE - 1) _exit(8);
    fe_log(FE_INFO, FE_HEAP, "%s", text);
    fe_log(FE_INFO, FE_HEAP, "the next");
}

/* A sentence as long as they get fits a line; a longer text is cut, and its line still ends. */
static void test_long_lines(void **state) {
    (void)state;
    pid_t pid = in_child(&(settings){.debug = "INFO"}, fail_at_length);
    const char *line = line_of(said, pid, 0);
    assert_non_null(line);
    assert_int_equal(strlen(line), strlen("WARN FERRY_SYSTEM: ") + FE_SENTENCE - 1);
    line = line_of(said, pid, 1);
    assert_non_null(line);
    assert_int_equal(strncmp(line, "INFO xxx", 8), 0);
    assert_line(pid, 2, "INFO the next");
}

#define THREADS 4
#define LINES   40

static void *chatter(void *name) {
    for (int i = 0; i < LINES; i++) fe_log(FE_INFO, FE_BOOT, "%s %d", (const char *)name, i);
    return NULL;
}

static void chatter_together(void) {
    static char names[THREADS][8];
    pthread_t thread[THREADS];
    for (int i = 0; i < THREADS; i++) {
        snprintf(names[i], sizeof names[i], "t%d", i);
        if (pthread_create(&thread[i], NULL, chatter, names[i]) != 0) _exit(9);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(thread[i], NULL);
}

static void test_whole_lines(void **state) {
    (void)state;
    pid_t pid = in_child(&(settings){.debug = "INFO"}, chatter_together);
    int heard[THREADS] = {0};
    for (int i = 0; i < THREADS * LINES; i++) {
        const char *line = line_of(said, pid, i);
        int thread, number, used = 0;
        if (!line || sscanf(line, "INFO t%d %d%n", &thread, &number, &used) != 2 || line[used])
            fail_msg("line %d is not whole: %s", i, line ? line : "(none)");
        else
            assert_int_equal(heard[thread]++, number);
    }
    assert_null(line_of(said, pid, THREADS * LINES));
}

/* ---- files ---- */

static char directory[] = "/tmp/ferry-test-XXXXXX";

/* Reads a file of the directory into `said`, and removes it. */
static void take_file(const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "r");
    if (!file) fail_msg("there is no %s: %s", path, strerror(errno));
    said[fread(said, 1, sizeof said - 1, file)] = '\0';
    fclose(file);
    assert_int_equal(unlink(path), 0);
}

static pid_t log_to(const char *pattern) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, pattern);
    pid_t pid = in_child(&(settings){.debug = "INFO", .file = path}, fail_and_tell);
    assert_string_equal(said, ""); /* standard error stays quiet */
    return pid;
}

static void test_files(void **state) {
    (void)state;
    assert_non_null(mkdtemp(directory));
    char host[65] = "", name[256];
    gethostname(host, sizeof host - 1);

    pid_t pid = log_to("log");
    take_file("log");
    assert_line(pid, 0, "WARN FERRY_INVALID: seven is 7");
    assert_line(pid, 1, "INFO some information");
    assert_null(line_of(said, pid, 2));

    pid = log_to("%h.%p.log");
    snprintf(name, sizeof name, "%s.%d.log", host, (int)pid);
    take_file(name);
    assert_line(pid, 0, "WARN FERRY_INVALID: seven is 7");

    pid = log_to("%p%p-%x-%%-%"); /* only %h and %p mean something */
    snprintf(name, sizeof name, "%d%d-%%x-%%%%-%%", (int)pid, (int)pid);
    take_file(name);
    assert_line(pid, 1, "INFO some information");

    pid_t first = log_to("shared"); /* a file that exists is continued */
    pid = log_to("shared");
    take_file("shared");
    assert_line(first, 0, "WARN FERRY_INVALID: seven is 7");
    assert_line(pid, 2, "WARN FERRY_INVALID: seven is 7");
    assert_int_equal(rmdir(directory), 0);
}

/* What cannot be opened is no reason to be silent. */
static void test_no_file(void **state) {
    (void)state;
    char endless[6000];
    memset(endless, 'd', sizeof endless - 1);
    memcpy(endless, "/nowhere/%h/", 12);
    endless[sizeof endless - 1] = '\0';
    const char *const files[] = {NULL, "", "stderr", "/", "/nowhere/at/all/%p", endless};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        pid_t pid = in_child(&(settings){.debug = "WARN", .file = files[i]}, fail_and_tell);
        assert_line(pid, 0, "WARN FERRY_INVALID: seven is 7");
        assert_null(line_of(said, pid, 1));
    }
}

/* ------------------------------------------------------------------------------------------------------------------
 * The environment
 * ---------------------------------------------------------------------------------------------------------------- */

static void test_table(void **state) {
    (void)state;
    size_t count = 0;
    const ferry_env_entry *table = ferry_env_table(&count);
    assert_int_equal(count, FE_ENV_COUNT);
    assert_ptr_equal(ferry_env_table(NULL), table);
    for (size_t i = 0; i < count; i++) {
        const ferry_env_entry *e = &table[i];
        assert_int_equal(strncmp(e->name, "FERRY_", 6), 0);
        assert_non_null(e->fallback);
        assert_true(strlen(e->meaning) > 10 && !strchr(e->meaning, '\n'));
        if (i > 0 && strcmp(table[i - 1].name, e->name) >= 0) fail_msg("%s is out of order", e->name);
    }
    assert_string_equal(table[FE_ENV_FERRY_THREADS].name, "FERRY_THREADS");
    assert_string_equal(table[FE_ENV_FERRY_TIMEOUT_MS].fallback, "30000");
}

static void test_text(void **state) {
    (void)state;
    assert_int_equal(unsetenv("FERRY_SPIN"), 0);
    assert_null(fe_env_text(FE_ENV_FERRY_SPIN));
    static const struct {
        const char *value, *text;
    } cases[] = {{"", NULL}, {"auto", NULL}, {"Auto", "Auto"}, {"autos", "autos"}, {" ", " "}, {"0", "0"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(setenv("FERRY_SPIN", cases[i].value, 1), 0);
        if (cases[i].text)
            assert_string_equal(fe_env_text(FE_ENV_FERRY_SPIN), cases[i].text);
        else
            assert_null(fe_env_text(FE_ENV_FERRY_SPIN));
    }
    assert_int_equal(unsetenv("FERRY_SPIN"), 0);
}

static void test_number(void **state) {
    (void)state;
    int64_t value = 0;
    assert_int_equal(unsetenv("FERRY_SPIN"), 0);
    assert_int_equal(fe_env_number(FE_ENV_FERRY_SPIN, 77, 0, 10, &value), FERRY_OK); /* the fallback is not judged */
    assert_int_equal(value, 77);
    static const struct {
        const char *text;
        int64_t value;
    } good[] = {{"-5", -5}, {"0", 0}, {"10", 10}, {"+3", 3}, {"007", 7}, {"auto", 77}, {"", 77}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(setenv("FERRY_SPIN", good[i].text, 1), 0);
        assert_int_equal(fe_env_number(FE_ENV_FERRY_SPIN, 77, -5, 10, &value), FERRY_OK);
        assert_int_equal(value, good[i].value);
    }
    static const char *const bad[] = {
        "-6", "11", "x", "1x", "1 ", "1.0", "1e1", "0x1", " ", "-", "99999999999999999999", "1,2", "--1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char sentence[128];
        snprintf(sentence, sizeof sentence, "FERRY_SPIN=%s is not a whole number from -5 to 10", bad[i]);
        assert_int_equal(setenv("FERRY_SPIN", bad[i], 1), 0);
        assert_int_equal(fe_env_number(FE_ENV_FERRY_SPIN, 77, -5, 10, &value), FERRY_INVALID);
        assert_string_equal(ferry_last_error(), sentence);
    }
    assert_int_equal(setenv("FERRY_SPIN", "9223372036854775807", 1), 0);
    assert_int_equal(fe_env_number(FE_ENV_FERRY_SPIN, 77, INT64_MIN, INT64_MAX, &value), FERRY_OK);
    assert_int_equal(value, INT64_MAX);
    assert_int_equal(unsetenv("FERRY_SPIN"), 0);
}

/* ------------------------------------------------------------------------------------------------------------------
 * Statuses and sentences
 * ---------------------------------------------------------------------------------------------------------------- */

static void test_names(void **state) {
    (void)state;
    static const char *const names[] = {"FERRY_OK",          "FERRY_INVALID", "FERRY_NOMEM",    "FERRY_SYSTEM",
                                        "FERRY_TIMEOUT",     "FERRY_ABORTED", "FERRY_MISMATCH", "FERRY_OVERFLOW",
                                        "FERRY_UNSUPPORTED", "FERRY_REFUSED"};
    for (int i = 0; i < 10; i++) assert_string_equal(ferry_status_name((ferry_status)i), names[i]);
    assert_string_equal(ferry_status_name((ferry_status)10), "unknown status");
    assert_string_equal(ferry_status_name((ferry_status)-1), "unknown status");
    static const size_t bytes[] = {1, 2, 2, 4, 1, 4, 8, 4};
    for (int i = 0; i < 8; i++) assert_int_equal(ferry_dtype_bytes((ferry_dtype)i), bytes[i]);
    assert_int_equal(ferry_dtype_bytes((ferry_dtype)8), 0);
    assert_int_equal(ferry_dtype_bytes((ferry_dtype)-1), 0);
    assert_int_equal(ferry_version(), FERRY_VERSION_MAJOR * 10000 + FERRY_VERSION_MINOR * 100 + FERRY_VERSION_PATCH);
}

static ferry_status try_it(ferry_status first, int *went_on) {
    FE_TRY(first);
    *went_on += 1;
    return FERRY_OK;
}

static void *other_thread(void *good) {
    *(bool *)good = strcmp(ferry_last_error(), "") == 0; /* it has not failed yet, whatever others did */
    fe_fail(FERRY_NOMEM, "of the other thread");
    *(bool *)good &= strcmp(ferry_last_error(), "of the other thread") == 0;
    return NULL;
}

static void test_sentences(void **state) {
    (void)state;
    assert_int_equal(fe_fail(FERRY_TIMEOUT, "rank %d of %s", 3, "four"), FERRY_TIMEOUT);
    assert_string_equal(ferry_last_error(), "rank 3 of four");
    pthread_t thread;
    bool good = false;
    assert_int_equal(pthread_create(&thread, NULL, other_thread, &good), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(good);
    assert_string_equal(ferry_last_error(), "rank 3 of four");
    assert_int_equal(fe_fail_again(FERRY_ABORTED, "as it was said"), FERRY_ABORTED);
    assert_string_equal(ferry_last_error(), "as it was said");
    int went_on = 0;
    assert_int_equal(try_it(FERRY_REFUSED, &went_on), FERRY_REFUSED);
    assert_int_equal(try_it(FERRY_OK, &went_on), FERRY_OK);
    assert_int_equal(went_on, 1);
    assert_string_equal(ferry_last_error(), "as it was said"); /* success leaves it */
}

static void test_system_errors(void **state) {
    (void)state;
    errno = EACCES;
    assert_int_equal(fe_fail_errno("opening %s", "it"), FERRY_SYSTEM);
    assert_string_equal(ferry_last_error(), "opening it: Permission denied (errno 13)");
    errno = ENOMEM;
    assert_int_equal(fe_fail_errno("mapping"), FERRY_NOMEM);
    assert_non_null(strstr(ferry_last_error(), "mapping: "));
    assert_non_null(strstr(ferry_last_error(), "(errno 12)"));
    errno = 9999;
    assert_int_equal(fe_fail_errno("that"), FERRY_SYSTEM);
    assert_non_null(strstr(ferry_last_error(), "(errno 9999)"));
    char text[2000];
    memset(text, 'y', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    errno = EACCES;
    assert_int_equal(fe_fail_errno("%s", text), FERRY_SYSTEM); /* however long: the number is there */
    assert_true(strlen(ferry_last_error()) < FE_SENTENCE);
    assert_non_null(strstr(ferry_last_error(), "(errno 13)"));
}

int main(void) {
    /* Those that read or write the log in a child come first: see above. */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_levels),      cmocka_unit_test(test_subsystems), cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_whole_lines), cmocka_unit_test(test_files),      cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_table),       cmocka_unit_test(test_text),       cmocka_unit_test(test_number),
        cmocka_unit_test(test_names),       cmocka_unit_test(test_sentences),  cmocka_unit_test(test_system_errors)};
    return cmocka_run_group_tests_name("env_log", tests, NULL, NULL);
}
