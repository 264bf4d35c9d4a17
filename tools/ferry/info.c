/* ferry info: what this library is, what it finds here, and what can be set. */
#include "device/core.h"
#include "ferry/ferry.h"
#include "hardware.h"
#include "memory.h"
#include "options.h"
#include <stdio.h>
#include <stdlib.h>

#ifndef FERRY_BUILD_FLAGS
#define FERRY_BUILD_FLAGS "not recorded"
#endif
#if defined(__clang__)
#define COMPILER __VERSION__
#else
#define COMPILER "GCC " __VERSION__
#endif

static cJSON *env_json(void) {
    cJSON *list = cJSON_CreateArray();
    size_t count;
    const ferry_env_entry *table = ferry_env_table(&count);
    for (size_t i = 0; i < count; i++) {
        const char *value = getenv(table[i].name);
        cJSON *entry = cJSON_CreateObject();
        cJSON_AddStringToObject(entry, "name", table[i].name);
        cJSON_AddItemToObject(entry, "value", value ? cJSON_CreateString(value) : cJSON_CreateNull());
        cJSON_AddStringToObject(entry, "default", table[i].fallback);
        cJSON_AddStringToObject(entry, "meaning", table[i].meaning);
        cJSON_AddItemToArray(list, entry);
    }
    return list;
}

static cJSON *info_json(void) {
    cJSON *object = cJSON_CreateObject();
    char version[32];
    int v = ferry_version();
    snprintf(version, sizeof version, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
    cJSON_AddStringToObject(object, "version", version);
    cJSON_AddStringToObject(object, "compiler", COMPILER);
    cJSON_AddStringToObject(object, "build_flags", FERRY_BUILD_FLAGS);
    cJSON *devices = cJSON_AddObjectToObject(object, "devices");
    cJSON_AddStringToObject(devices, "cpu", "available");
    const fe_device *cuda;
    char gpu[256];
    bool loads = fe_device_load_cuda(&cuda) == FERRY_OK;
    if (loads) fe_memory_describe(gpu, sizeof gpu);
    cJSON_AddStringToObject(devices, "cuda", loads ? gpu : ferry_last_error());
    cJSON_AddItemToObject(object, "hardware", fe_hardware_json());
    cJSON_AddItemToObject(object, "environment", env_json());
    return object;
}

static const char *text_of(const cJSON *object, const char *name) {
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItem(object, name));
    return text ? text : "unknown";
}

static void print_list(const char *title, const cJSON *list, const char *between) {
    const cJSON *item;
    const char *separator = "";
    printf("%-14s", title);
    cJSON_ArrayForEach(item, list) {
        printf("%s%s", separator, cJSON_GetStringValue(item));
        separator = between;
    }
    putchar('\n');
}

static void print_info(const cJSON *info) {
    const cJSON *hardware = cJSON_GetObjectItem(info, "hardware"), *entry;
    printf("%-14s%s\n", "ferry", text_of(info, "version"));
    printf("%-14s%s\n", "compiler", text_of(info, "compiler"));
    printf("%-14s%s\n", "build flags", text_of(info, "build_flags"));
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(info, "devices")) {
        printf("%-14s%s: %s\n", "device", entry->string, cJSON_GetStringValue(entry));
    }
    printf("%-14s%s\n", "cpu", text_of(hardware, "cpu"));
    printf("%-14s%d\n", "cores", cJSON_GetObjectItem(hardware, "cores")->valueint);
    printf("%-14s%.1f GiB\n", "memory", cJSON_GetObjectItem(hardware, "memory_bytes")->valuedouble / 0x1p30);
    printf("%-14s%s\n", "system", text_of(hardware, "system"));
    print_list("caches", cJSON_GetObjectItem(hardware, "caches"), ", ");
    print_list("features", cJSON_GetObjectItem(hardware, "features"), " ");
    print_list("row kernels", cJSON_GetObjectItem(hardware, "row_kernels"), " ");
    printf("%-14s%s\n", "in use", text_of(hardware, "row_kernels_chosen"));
    printf("\nenvironment (see ferry-env(7)):\n");
    cJSON_ArrayForEach(entry, cJSON_GetObjectItem(info, "environment")) {
        const char *value = cJSON_GetStringValue(cJSON_GetObjectItem(entry, "value")),
                   *fallback = text_of(entry, "default");
        printf("  %-20s %-12s %s\n", text_of(entry, "name"), value ? value : "not set", text_of(entry, "meaning"));
        if (*fallback) printf("  %-20s %-12s default: %s\n", "", "", fallback);
    }
}

/* Text in a man page: a backslash or a leading dot would be a command. */
static void print_roff(const char *text) {
    if (*text == '.') fputs("\\&", stdout);
    for (; *text; text++) fputs(*text == '\\' ? "\\e" : *text == '-' ? "\\-" : (char[]){*text, 0}, stdout);
}

/* ferry-env(7), from the one table that the library reads. */
static void print_man(void) {
    size_t count;
    const ferry_env_entry *table = ferry_env_table(&count);
    printf(".Dd November 24, 2026\n.Dt FERRY-ENV 7\n.Os\n.Sh NAME\n.Nm ferry-env\n"
           ".Nd environment variables of the library\n.Sh DESCRIPTION\n"
           "They are read when a group is made; those of the log, at the first line of it.\n"
           "A variable that is empty or\n.Ql auto\ncounts as not set.\n.Bl -tag -width Ds\n");
    for (size_t i = 0; i < count; i++) {
        printf(".It Ev %s\n", table[i].name);
        print_roff(table[i].meaning);
        if (*table[i].fallback) {
            printf(".\nDefault:\n.Ql ");
            print_roff(table[i].fallback);
        }
        puts(*table[i].fallback ? "" : ".");
    }
    printf(".El\n.Sh SEE ALSO\n.Xr ferry-info 1 ,\n.Xr ferry 7\n");
}

int ferry_cmd_info(int argc, char **argv) {
    const char *json = NULL;
    bool man = false;
    const fe_option table[] = {
        {"json", FE_OPTION_TEXT, &json, "FILE", 0, 0, "write it as JSON to FILE, or to standard output for -", NULL},
        {"man", FE_OPTION_FLAG, &man, NULL, 0, 0, "print ferry-env(7), the manual page of the variables", NULL},
    };
    const fe_usage usage = {"info", "Shows the version, the build, devices, the CPU, and every environment variable.",
                            NULL};
    fe_parsed parsed = fe_options_parse(&usage, table, sizeof table / sizeof *table, argc, argv);
    if (parsed != FE_PARSED_RUN) return parsed == FE_PARSED_HELP ? FE_EXIT_OK : FE_EXIT_USAGE;
    if (man) {
        print_man();
        return FE_EXIT_OK;
    }
    cJSON *info = info_json();
    bool good = true;
    if (json)
        good = fe_json_write(info, json, "info");
    else
        print_info(info);
    cJSON_Delete(info);
    return good ? FE_EXIT_OK : FE_EXIT_FAILED;
}
