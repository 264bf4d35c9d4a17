/* Errors: a status, and a sentence per thread that says which rank, which value, which limit. */
#ifndef FERRY_BASE_STATUS_H
#define FERRY_BASE_STATUS_H

#include "ferry/ferry.h"

/* Keeps the sentence for ferry_last_error() in this thread, logs it at WARN, and returns status: `return fe_fail(...)`. */
#define fe_fail(...) fe_failed(fe_fail_(__VA_ARGS__))
ferry_status fe_fail_(ferry_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same for a failed system call: appends ": " and errno's text. */
#define fe_fail_errno(...) fe_failed(fe_fail_errno_(__VA_ARGS__))
ferry_status fe_fail_errno_(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Hands a sentence made in another thread (a stream's) to this one, and returns status. Not logged again. */
ferry_status fe_fail_again(ferry_status status, const char *sentence);

/* What has failed has not succeeded: compilers and analysers see it here, and need not follow a path on which it has. */
static inline ferry_status fe_failed(ferry_status status) {
    return status == FERRY_OK ? FERRY_SYSTEM : status;
}

/* A status that another process has sent: one that there is not, from a line that flips bits, say, counts as FERRY_SYSTEM. */
static inline ferry_status fe_status_heard(uint32_t status) {
    return status <= FERRY_REFUSED ? (ferry_status)status : FERRY_SYSTEM;
}

#define FE_SENTENCE 512 /* bytes of the longest sentence, with its NUL */

#define FE_TRY(call)                                           \
    do {                                                       \
        ferry_status fe_try_status_ = (call);                  \
        if (fe_try_status_ != FERRY_OK) return fe_try_status_; \
    } while (0)

#endif
