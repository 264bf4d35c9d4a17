#include "base/env.h"

#include <errno.h>
#include <stdlib.h>

static const ferry_env_entry table[] = {
#define FE_ENV_ENTRY(name, fallback, meaning) {#name, fallback, meaning},
    FE_ENV_TABLE(FE_ENV_ENTRY)
#undef FE_ENV_ENTRY
};

const ferry_env_entry *ferry_env_table(size_t *count) {
    if (count) *count = FE_ENV_COUNT;
    return table;
}

const char *fe_env_text(fe_env_name name) {
    const char *text = getenv(table[name].name);
    return text && *text && strcmp(text, "auto") != 0 ? text : NULL;
}

ferry_status fe_env_number(fe_env_name name, int64_t fallback, int64_t low, int64_t high, int64_t *value) {
    const char *text = fe_env_text(name);
    *value = fallback;
    if (!text) return FERRY_OK;
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (errno || end == text || *end || number < low || number > high)
        return fe_fail(FERRY_INVALID, "%s=%s is not a whole number from %lld to %lld", table[name].name, text,
                       (long long)low, (long long)high);
    *value = number;
    return FERRY_OK;
}
