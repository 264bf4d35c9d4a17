#include "base/status.h"
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

static _Thread_local char sentence[FE_SENTENCE];

const char *ferry_last_error(void) {
    return sentence;
}

ferry_status fe_fail_(ferry_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    fe_log(FE_WARN, FE_INIT, "%s: %s", ferry_status_name(status), sentence);
    return status;
}

ferry_status fe_fail_errno_(const char *format, ...) {
    int error = errno;
    char what[FE_SENTENCE / 2];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    char text[128];
    const char *reason = strerror_r(error, text, sizeof text);
    return fe_fail(error == ENOMEM ? FERRY_NOMEM : FERRY_SYSTEM, "%s: %s (errno %d)", what, reason, error);
}

ferry_status fe_fail_again(ferry_status status, const char *text) {
    snprintf(sentence, sizeof sentence, "%s", text);
    return status;
}

const char *ferry_status_name(ferry_status status) {
    static const char *const names[] = {
        [FERRY_OK] = "FERRY_OK",
        [FERRY_INVALID] = "FERRY_INVALID",
        [FERRY_NOMEM] = "FERRY_NOMEM",
        [FERRY_SYSTEM] = "FERRY_SYSTEM",
        [FERRY_TIMEOUT] = "FERRY_TIMEOUT",
        [FERRY_ABORTED] = "FERRY_ABORTED",
        [FERRY_MISMATCH] = "FERRY_MISMATCH",
        [FERRY_OVERFLOW] = "FERRY_OVERFLOW",
        [FERRY_UNSUPPORTED] = "FERRY_UNSUPPORTED",
        [FERRY_REFUSED] = "FERRY_REFUSED",
    };
    size_t i = (size_t)status;
    return i < sizeof names / sizeof *names ? names[i] : "unknown status";
}

int ferry_version(void) {
    return FERRY_VERSION_MAJOR * 10000 + FERRY_VERSION_MINOR * 100 + FERRY_VERSION_PATCH;
}

size_t ferry_dtype_bytes(ferry_dtype dtype) {
    static const unsigned char bytes[] = {
        [FERRY_BYTES] = 1, [FERRY_BF16] = 2,  [FERRY_FP16] = 2,  [FERRY_FP32] = 4,
        [FERRY_E4M3] = 1,  [FERRY_INT32] = 4, [FERRY_INT64] = 8, [FERRY_UE8M0X4] = 4,
    };
    size_t i = (size_t)dtype;
    return i < sizeof bytes ? bytes[i] : 0;
}
