/* Logging as NCCL's users know it: FERRY_DEBUG, FERRY_DEBUG_SUBSYS, FERRY_DEBUG_FILE. Silent unless asked. */
#ifndef FERRY_BASE_LOG_H
#define FERRY_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>

typedef enum fe_level { FE_WARN = 1, FE_INFO = 2, FE_TRACE = 3 } fe_level;
typedef enum fe_subsystem {
    FE_INIT = 1,
    FE_BOOT = 2,
    FE_HEAP = 4,
    FE_ROUTE = 8,
    FE_MOVE = 16,
    FE_ENV = 32
} fe_subsystem;

/* Is this line wanted? Cheap; checked before arguments are formatted. */
bool fe_log_on(fe_level level, fe_subsystem subsystem);
void fe_log_line(fe_level level, fe_subsystem subsystem, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* In the name of a file %h becomes the host name and %p the process id, as in NCCL_DEBUG_FILE; with rank >= 0 %r becomes that. */
void fe_expand_path(const char *pattern, int rank, char *path, size_t size);

#define fe_log(level, subsystem, ...)                                                \
    do {                                                                             \
        if (fe_log_on(level, subsystem)) fe_log_line(level, subsystem, __VA_ARGS__); \
    } while (0)

#endif
