/* Errors: a status, and a sentence per thread that says which rank, which value, which limit. */
#ifndef FERRY_BASE_STATUS_H
#define FERRY_BASE_STATUS_H

#include "ferry/ferry.h"

/* Keeps the sentence for ferry_last_error() in this thread, logs it at WARN, and returns status: `return fe_fail(...)`. */
ferry_status fe_fail(ferry_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same for a failed system call: appends ": " and errno's text. */
ferry_status fe_fail_errno(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Hands a sentence made in another thread (a stream's) to this one, and returns status. Not logged again. */
ferry_status fe_fail_again(ferry_status status, const char *sentence);

#define FE_SENTENCE 512 /* bytes of the longest sentence, with its NUL */

#define FE_TRY(call)                                           \
    do {                                                       \
        ferry_status fe_try_status_ = (call);                  \
        if (fe_try_status_ != FERRY_OK) return fe_try_status_; \
    } while (0)

#endif
