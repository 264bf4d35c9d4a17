/* What a device in a library of its own needs of the library that loads it: a table, since neither shows its inside to the linker. */
#ifndef FERRY_DEVICE_CORE_H
#define FERRY_DEVICE_CORE_H

#include "base/env.h"
#include "base/log.h"
#include "device/device.h"

typedef struct fe_core {
    size_t size, engine_bytes,
        pass_bytes; /* as the loading library was compiled: a device of another version is not used */
    int version;
    ferry_status (*fail)(ferry_status status, const char *sentence);
    ferry_status (*fail_again)(ferry_status status, const char *sentence);
    const char *(*last_error)(void);
    void (*log)(fe_level level, fe_subsystem subsystem, const char *line);
    ferry_status (*env_number)(fe_env_name name, int64_t fallback, int64_t low, int64_t high, int64_t *value);
    ferry_status (*fault_check)(fe_fault *fault, const fe_heap *heap, const char *step);
    void (*fault_note)(fe_fault *fault, ferry_status status, bool fatal);
    ferry_status (*aborted)(const fe_heap *heap);
    ferry_status (*still_counts)(const fe_heap *heap);
    ferry_status (*ended)(const fe_heap *heap, const char *during);
    ferry_status (*blame)(const fe_watch *watch, const char *step, uint64_t epoch, const uint64_t *seen);
    void (*stir)(fe_far *far);
    ferry_status (*cross)(fe_far *far, const fe_pass *pass);
    ferry_status (*tell_index)(const fe_shape *shape, int64_t token, int choice, int64_t index);
    ferry_status (*tell_overflow)(const fe_shape *shape, const fe_totals *totals);
} fe_core;

/* "fe_cuda_entry" in libferry_cuda.so. NULL: not of this version. */
typedef const fe_device *(*fe_device_entry)(const fe_core *core);

/* The CUDA device, loaded when first asked for. FERRY_UNSUPPORTED says why there is none. */
ferry_status fe_device_load_cuda(const fe_device **device);

#endif
