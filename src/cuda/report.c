#include "cuda/device.h"

#include <stdio.h>

static ferry_status ended(const fe_heap *heap, const char *step) {
    char during[80];
    snprintf(during, sizeof during, " while %s waited", step);
    return fe_cuda_core->ended(heap, during);
}

static ferry_status tell_fatal(fe_engine *engine, ferry_status status) {
    const fe_cuda_report *r = fe_cuda_of(engine)->world.report;
    const fe_heap *heap = &engine->heap;
    char step[sizeof r->step + 1] = "";
    memcpy(step, r->step, sizeof r->step);
    if (status == FERRY_ABORTED) return ended(heap, step);
    if (status == FERRY_INVALID)
        return fe_fail(status, "rank %d: %s is of a graph that was captured before the group's last agreement",
                       heap->rank, step);
    if (status == FERRY_SYSTEM && r->other < 0)
        return fe_fail(FERRY_SYSTEM, "rank %d: %s could not hand its rows to the network", heap->rank, step);
    if (status == FERRY_SYSTEM)
        return fe_fail(FERRY_SYSTEM, "rank %d: %s: rank %d, on another host, names places or counts that do not exist",
                       heap->rank, step, r->other);
    if (status == FERRY_MISMATCH && r->epoch == 0) /* no two notes differ */
        return fe_fail(FERRY_MISMATCH, "rank %d: %s: rank %d sums with its route's weights, which are none here",
                       heap->rank, step, r->other);
    if (status == FERRY_MISMATCH) return r->explain(step, heap->rank, r->ours, r->other, r->theirs);
    if (r->epoch == 0) /* no note but a word of the caller's was awaited */
        return fe_fail(FERRY_TIMEOUT, "rank %d waited too long in %s: the word is %llu", heap->rank, step,
                       (unsigned long long)r->word);
    return fe_cuda_core->blame(&engine->watch, step, r->epoch, r->seen);
}

ferry_status fe_cuda_news(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    ferry_status news = FERRY_OK;
    pthread_mutex_lock(&cuda->lock);
    ferry_status status = (ferry_status) * (volatile uint32_t *)&cuda->world.report->fatal;
    if (status != FERRY_OK && !cuda->told) {
        cuda->told = true;
        news = tell_fatal(engine, status);
        fe_cuda_core->fault_note(&engine->fault, news, true);
    }
    pthread_mutex_unlock(&cuda->lock);
    return news;
}

static ferry_status tell_soft(const fe_engine *engine, const fe_cuda_soft *soft, const fe_pass *pass) {
    const fe_cuda_report *r = fe_cuda_of(engine)->world.report;
    /* Sentences of a route need its map and rank, which are the group's. */
    fe_shape shape = {.map = engine->map, .rank = engine->heap.rank};
    if (soft->status == FERRY_INVALID) return fe_cuda_core->tell_index(&shape, soft->token, soft->choice, soft->index);
    if (soft->status == FERRY_OVERFLOW) return fe_cuda_core->tell_overflow(&shape, &soft->totals);
    if (soft->status == FERRY_MISMATCH && pass) /* of a lenient pass, which is waited for */
        return pass->explain(pass->step, shape.rank, r->ours, r->other, r->theirs);
    static const char *const signs[] = {"==", "!=", ">", ">=", "<", "<="};
    if (!pass || pass->move != FE_MOVE_UNTIL)
        return fe_fail(FERRY_TIMEOUT, "rank %d: a wait for a word was too long", shape.rank);
    return fe_fail(FERRY_TIMEOUT, "rank %d waited %lld ms until a word was %s %llu: it is %llu", shape.rank,
                   (long long)(pass->until.timeout_ns / 1000000), signs[pass->until.compare],
                   (unsigned long long)pass->until.value, (unsigned long long)soft->word);
}

ferry_status fe_cuda_take_soft(fe_engine *engine, const fe_pass *pass, uint64_t number) {
    fe_cuda *cuda = fe_cuda_of(engine);
    fe_cuda_soft *soft = &cuda->world.report->soft[pass != NULL];
    ferry_status status = FERRY_OK;
    pthread_mutex_lock(&cuda->lock);
    if (*(volatile uint32_t *)&soft->status && (!pass || soft->launch == number)) {
        status = tell_soft(engine, soft, pass);
        soft->status = FERRY_OK;
    }
    pthread_mutex_unlock(&cuda->lock);
    return status;
}

/* Kernels do not say on which stream they were: the next sync of any tells. */
static void keep(fe_cuda *cuda, ferry_status status) {
    pthread_mutex_lock(&cuda->lock);
    if (cuda->untold.status == FERRY_OK) {
        cuda->untold.status = status;
        snprintf(cuda->untold.sentence, sizeof cuda->untold.sentence, "%s", fe_cuda_core->last_error());
    }
    pthread_mutex_unlock(&cuda->lock);
}

void fe_cuda_look(fe_engine *engine) {
    ferry_status status = fe_cuda_take_soft(engine, NULL, 0);
    if (status != FERRY_OK) {
        fe_cuda_core->fault_note(&engine->fault, status, false);
        keep(fe_cuda_of(engine), status);
    }
    status = fe_cuda_news(engine);
    if (status != FERRY_OK) keep(fe_cuda_of(engine), status);
}

ferry_status fe_cuda_take_untold(fe_engine *engine) {
    fe_cuda *cuda = fe_cuda_of(engine);
    fe_cuda_look(engine);
    pthread_mutex_lock(&cuda->lock);
    ferry_status status = cuda->untold.status;
    if (status != FERRY_OK) fe_cuda_core->fail_again(status, cuda->untold.sentence);
    cuda->untold.status = FERRY_OK;
    pthread_mutex_unlock(&cuda->lock);
    return status;
}
