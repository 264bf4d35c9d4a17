/* Finds libferry_cuda.so: FERRY_CUDA_LIBRARY, beside this library or program, or where the system looks. */
#include "device/core.h"

#include <dlfcn.h>
#include <stdio.h>

static ferry_status fail(ferry_status status, const char *sentence) {
    return fe_fail(status, "%s", sentence);
}

static void log_line(fe_level level, fe_subsystem subsystem, const char *line) {
    fe_log(level, subsystem, "%s", line);
}

static const fe_core core = {.size = sizeof core,
                             .engine_bytes = sizeof(fe_engine),
                             .pass_bytes = sizeof(fe_pass),
                             .version = FERRY_VERSION_MAJOR * 10000 + FERRY_VERSION_MINOR * 100 + FERRY_VERSION_PATCH,
                             .fail = fail,
                             .fail_again = fe_fail_again,
                             .last_error = ferry_last_error,
                             .log = log_line,
                             .env_number = fe_env_number,
                             .fault_check = fe_fault_check,
                             .fault_note = fe_fault_note,
                             .aborted = fe_watch_aborted,
                             .still_counts = fe_watch_still_counts,
                             .ended = fe_watch_ended,
                             .blame = fe_watch_blame,
                             .stir = fe_far_stir,
                             .cross = fe_device_cross,
                             .tell_index = fe_route_tell_index,
                             .tell_overflow = fe_route_tell_overflow};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const fe_device *loaded;

static void *open_library(char *tried, size_t size) {
    static const char name[] = "libferry_cuda.so";
    const char *set = fe_env_text(FE_ENV_FERRY_CUDA_LIBRARY), *slash;
    char path[4096];
    Dl_info here;
    void *library = NULL;
    if (set) {
        library = dlopen(set, RTLD_NOW | RTLD_LOCAL);
    } else {
        if (dladdr((const void *)&core, &here) && here.dli_fname && (slash = strrchr(here.dli_fname, '/'))) {
            snprintf(path, sizeof path, "%.*s/%s", (int)(slash - here.dli_fname), here.dli_fname, name);
            library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        }
        if (!library) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    }
    const char *why = library ? NULL : dlerror();
    snprintf(tried, size, "%s", why ? why : "");
    return library;
}

static ferry_status load(void) {
    char why[256];
    fe_device_entry entry = NULL;
    void *library = open_library(why, sizeof why);
    if (!library) return fe_fail(FERRY_UNSUPPORTED, "the CUDA device could not be loaded: %s", why);
    void *symbol = dlsym(library, "fe_cuda_entry");
    memcpy(&entry, &symbol, sizeof entry); /* ISO C knows no conversion from object to function pointers */
    loaded = entry ? entry(&core) : NULL;
    if (loaded) return FERRY_OK;
    dlclose(library);
    return fe_fail(FERRY_UNSUPPORTED, "libferry_cuda.so is not of this version of Ferry (%d.%d.%d)",
                   FERRY_VERSION_MAJOR, FERRY_VERSION_MINOR, FERRY_VERSION_PATCH);
}

ferry_status fe_device_load_cuda(const fe_device **device) {
    pthread_mutex_lock(&lock);
    ferry_status status = loaded ? FERRY_OK : load();
    *device = loaded;
    pthread_mutex_unlock(&lock);
    return status;
}
