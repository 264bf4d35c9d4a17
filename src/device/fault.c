#include "device/fault.h"

#include <stdio.h>

void fe_fault_open(fe_fault *fault) {
    *fault = (fe_fault){.status = FERRY_OK};
    pthread_mutex_init(&fault->lock, NULL);
}

void fe_fault_close(fe_fault *fault) {
    pthread_mutex_destroy(&fault->lock);
}

void fe_fault_note(fe_fault *fault, ferry_status status, bool fatal) {
    pthread_mutex_lock(&fault->lock);
    if (fault->status == FERRY_OK) {
        fault->status = status;
        snprintf(fault->sentence, sizeof fault->sentence, "%s", ferry_last_error());
    }
    pthread_mutex_unlock(&fault->lock);
    if (fatal) atomic_store(&fault->broken, true);
}

void fe_fault_clear(fe_fault *fault) {
    pthread_mutex_lock(&fault->lock);
    fault->status = FERRY_OK;
    pthread_mutex_unlock(&fault->lock);
    atomic_store(&fault->broken, false);
}

ferry_status fe_fault_first(fe_fault *fault) {
    pthread_mutex_lock(&fault->lock);
    ferry_status status = fault->status;
    if (status != FERRY_OK) fe_fail_again(status, fault->sentence);
    pthread_mutex_unlock(&fault->lock);
    return status;
}

ferry_status fe_fault_check(fe_fault *fault, const fe_heap *heap, const char *step) {
    FE_TRY(fe_watch_aborted(heap));
    if (!atomic_load(&fault->broken)) return FERRY_OK;
    char first[FE_SENTENCE];
    pthread_mutex_lock(&fault->lock);
    snprintf(first, sizeof first, "%s", fault->sentence);
    pthread_mutex_unlock(&fault->lock);
    return fe_fail(FERRY_ABORTED, "rank %d: %s is not run, the group failed before: %.300s", heap->rank, step, first);
}
