/* A pass, act by act. */
#include "cpu/cpu.h"
#include "device/record.h"

#include <fenv.h>

#define TIMED_BYTES \
    65536 /* a move of fewer takes less than spinning does, and its end is not looked up: see fe_step_pass */

/* To other hosts first: that takes longest, and the proxy does it beside. */
static ferry_status tell_far(const fe_engine *engine, const fe_pass *pass, const fe_note *note) {
    uint64_t at = 0;
    size_t bytes = 0;
    if (!engine->far || fe_reach_of(note->kind) == FE_REACH_NEAR) return FERRY_OK;
    if (note->kind == FE_MEET) FE_TRY(fe_far_quiet(engine->far)); /* who has met sees what was put before */
    if (note->kind == FE_COUNTS) fe_cpu_counts_place(pass, engine->heap.rank, &at, &bytes);
    return fe_far_tell(engine->far, -1, note->kind, note->half, note->epoch, note->word, at, bytes);
}

static ferry_status tell_all(const fe_engine *engine, const fe_pass *pass, const fe_note *note) {
    const fe_heap *heap = &engine->heap;
    if (!note->used) return FERRY_OK;
    FE_TRY(tell_far(engine, pass, note));
    /* Starting behind oneself spreads the stores of many ranks over different owners. */
    for (int i = 1; i <= heap->ranks; i++) {
        int owner = (heap->rank + i) % heap->ranks;
        if (fe_heap_reaches(heap, owner)) fe_link_signal(heap, owner, note->kind, note->half, note->word, note->epoch);
    }
    return FERRY_OK;
}

static ferry_status hear_all(const fe_crew *crew, const fe_pass *pass, const fe_await *await, fe_step *step) {
    if (!await->used) return FERRY_OK;
    const fe_heap *heap = &crew->engine->heap;
    FE_TRY(fe_watch_cells(&crew->engine->watch, await->kind, await->half, await->epoch, pass->step, step));
    for (int r = 0; await->same && r < heap->ranks; r++) {
        if (!fe_heap_hears(heap, await->kind, r) || !fe_heap_reads(heap, await->kind, r)) continue;
        const uint64_t *theirs = fe_link_words(heap, await->kind, await->half, r);
        for (int i = 0; i < FE_CELL_WORDS; i++)
            if ((await->same >> i & 1) && theirs[i] != await->word[i])
                return pass->explain(pass->step, heap->rank, await->word, r, theirs);
    }
    return FERRY_OK;
}

static ferry_status move(const fe_crew *crew, const fe_pass *pass) {
    switch (pass->move) {
    case FE_MOVE_NOTHING: break;
    case FE_MOVE_COUNT: return fe_cpu_count(crew, pass);
    case FE_MOVE_SPREAD: return fe_cpu_spread(crew, pass);
    case FE_MOVE_PLACE: return fe_cpu_place(crew, pass);
    case FE_MOVE_SCATTER: return fe_cpu_scatter(crew, pass);
    case FE_MOVE_DELIVER: fe_cpu_deliver(crew, pass); break;
    case FE_MOVE_GATHER: fe_cpu_gather(crew, pass); return fe_cpu_send_weights(crew, pass);
    case FE_MOVE_REDUCE: fe_cpu_reduce(crew, pass); break;
    case FE_MOVE_PUBLISH: return fe_cpu_publish(crew, pass);
    case FE_MOVE_COLLECT: fe_cpu_collect(crew, pass); break;
    case FE_MOVE_TRANSFER: return fe_cpu_transfer(crew, pass);
    case FE_MOVE_UNTIL: return fe_cpu_until(crew, pass);
    case FE_MOVE_FANOUT: return fe_cpu_fanout(crew, pass);
    case FE_MOVE_SUMS: return fe_cpu_sums(crew, pass);
    case FE_MOVE_ATOMIC: return fe_cpu_atomic(crew, pass);
    }
    return FERRY_OK;
}

/* One that was stopped, and that the others have gone on without, finds what they said before. It may have read what they have written since;
 * and its scatter leaves off (cpu/scatter.c), rows for itself among those not written: whatever it has done is not what the group has done.
 * They mark it before they write; where it has read of others, a full fence, so that its reads come before this look. */
static ferry_status still_counts(const fe_heap *heap, fe_move move) {
    if (move == FE_MOVE_REDUCE || move == FE_MOVE_COLLECT) fe_link_fence();
    return fe_watch_still_counts(heap);
}

static ferry_status act(const fe_crew *crew, const fe_pass *pass, fe_step *step) {
    fe_recorder *recorder = crew->engine->watch.recorder;
    FE_TRY(hear_all(crew, pass, &pass->await, step));
    if (pass->await.used) fe_step_pass(recorder, step, FE_STEP_HEARD, fe_step_waited(step));
    ferry_status moved = move(crew, pass);
    if (moved == FERRY_OK) moved = still_counts(&crew->engine->heap, pass->move);
    /* An overflow is known to all ranks and stops all of them alike: the notes still go out, so that nobody is missed. */
    if (moved != FERRY_OK && moved != FERRY_OVERFLOW) return moved;
    FE_TRY(tell_all(crew->engine, pass, &pass->signal));
    if (pass->settle.used) fe_step_pass(recorder, step, FE_STEP_MOVED, step && fe_record_bytes(pass) >= TIMED_BYTES);
    fe_record_moved(recorder, pass); /* after the note, which others wait for */
    FE_TRY(hear_all(crew, pass, &pass->settle, step));
    if (pass->counts_last) fe_cpu_deliver(crew, pass);
    fe_record_arrived(recorder, pass);
    return moved;
}

/* What can be told first is told before the record begins: others wait for it. */
static ferry_status run(const fe_crew *crew, const fe_pass *pass) {
    fe_recorder *recorder = crew->engine->watch.recorder;
    FE_TRY(tell_all(crew->engine, pass, &pass->announce));
    fe_step *step = fe_record_begin(recorder, pass, crew->lane);
    ferry_status status = act(crew, pass, step);
    fe_step_end(recorder, step, status, step ? fe_record_bytes(pass) : 0, true);
    return status;
}

ferry_status fe_cpu_pass(const fe_crew *crew, const fe_pass *pass) {
    fe_fault *fault = &crew->engine->fault;
    FE_TRY(fe_fault_check(fault, &crew->engine->heap, pass->step));
    /* A caller that flushes subnormals or rounds otherwise gets the same bits (docs/numerics.md). */
    fenv_t callers;
    fegetenv(&callers);
    fesetenv(FE_DFL_ENV);
    ferry_status status = run(crew, pass);
    fesetenv(&callers);
    /* Over several hosts a note that nobody heard may still be on its way: its box is not to be written again. */
    bool sent = crew->engine->far && pass->signal.used && status != FERRY_MISMATCH;
    if (fe_fault_fatal(status) && (!pass->lenient || sent)) fe_fault_note(fault, status, true);
    return status;
}
