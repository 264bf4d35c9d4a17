#include "hardware.h"
#include "base/os.h"
#include "cpu/rows.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/utsname.h>

/* The value of the first "key : value" line of /proc/cpuinfo with that key; "" when there is none. */
static const char *cpuinfo(const char *key, char *value, size_t size) {
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[4096];
    value[0] = 0;
    while (file && !value[0] && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, key, strlen(key)) != 0) continue;
        snprintf(value, size, "%.*s", (int)strcspn(colon + 1 + strspn(colon + 1, " \t"), "\n"),
                 colon + 1 + strspn(colon + 1, " \t"));
    }
    if (file) fclose(file);
    return value;
}

/* The CPU's flags that the row kernels or their like ask about. */
static void add_features(cJSON *object) {
    static const char *const wanted[] = {"sse4_2",    "avx",      "avx2",     "fma",      "f16c",
                                         "avx512f",   "avx512bw", "avx512vl", "avx512dq", "avx512_bf16",
                                         "movdir64b", "asimd",    "asimdhp",  "bf16",     "sve"};
    char flags[4096];
    cJSON *list = cJSON_AddArrayToObject(object, "features");
    if (!*cpuinfo("flags", flags, sizeof flags)) cpuinfo("Features", flags, sizeof flags);
    for (char *save, *word = strtok_r(flags, " ", &save); word; word = strtok_r(NULL, " ", &save))
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
            if (strcmp(word, wanted[i]) == 0) cJSON_AddItemToArray(list, cJSON_CreateString(word));
}

static bool read_line(const char *path, char *text, int size) {
    FILE *file = fopen(path, "r");
    bool good = file && fgets(text, size, file);
    if (good) text[strcspn(text, "\n")] = 0;
    if (file) fclose(file);
    return good;
}

static void add_caches(cJSON *object) {
    cJSON *list = cJSON_AddArrayToObject(object, "caches");
    for (int i = 0; i < 8; i++) {
        char path[96], level[16] = "", type[32] = "", size[32] = "", text[96];
        const char *names[] = {"level", "type", "size"};
        char *into[] = {level, type, size};
        int room[] = {sizeof level, sizeof type, sizeof size}, got = 0;
        for (int n = 0; n < 3; n++) {
            snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/%s", i, names[n]);
            got += read_line(path, into[n], room[n]);
        }
        if (got < 3) break;
        snprintf(text, sizeof text, "L%s %s %s", level, type, size);
        cJSON_AddItemToArray(list, cJSON_CreateString(text));
    }
}

static void add_kernels(cJSON *object) {
    cJSON *list = cJSON_AddArrayToObject(object, "row_kernels");
    for (const fe_rows *const *table = fe_rows_available(); *table; table++)
        cJSON_AddItemToArray(list, cJSON_CreateString((*table)->name));
    const fe_rows *chosen;
    bool good = fe_rows_choose(&chosen) == FERRY_OK;
    cJSON_AddStringToObject(object, "row_kernels_chosen", good ? chosen->name : ferry_last_error());
}

cJSON *fe_hardware_json(void) {
    cJSON *object = cJSON_CreateObject();
    struct utsname system;
    char model[256], text[256];
    cJSON_AddStringToObject(object, "cpu", *cpuinfo("model name", model, sizeof model) ? model : "unknown");
    cJSON_AddNumberToObject(object, "cores", fe_cores());
    cJSON_AddNumberToObject(object, "memory_bytes", (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE));
    if (uname(&system) == 0) {
        snprintf(text, sizeof text, "%.60s %.80s %.60s", system.sysname, system.release, system.machine);
        cJSON_AddStringToObject(object, "system", text);
    }
    add_caches(object);
    add_features(object);
    add_kernels(object);
    return object;
}

bool fe_json_write(const cJSON *object, const char *path, const char *command) {
    char *text = object ? cJSON_Print(object) : NULL;
    FILE *file = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    bool good = text && file && fprintf(file, "%s\n", text) > 0 && fflush(file) == 0;
    if (!good)
        fprintf(stderr, "ferry %s: the JSON could not be written to %s: %s\n", command, path,
                text ? strerror(errno) : "no memory");
    if (file && file != stdout) fclose(file);
    cJSON_free(text);
    return good;
}
