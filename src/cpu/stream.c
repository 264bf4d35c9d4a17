#include "cpu/stream.h"

#include <stdio.h>
#include <stdlib.h>

static fe_cpu_stream *own(ferry_stream *stream) {
    return (fe_cpu_stream *)stream;
}

void fe_cpu_enqueue(fe_cpu_stream *s, fe_command *command) {
    pthread_mutex_lock(&s->lock);
    command->next = NULL;
    *s->last = command;
    s->last = &command->next;
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_add(&s->queued, 1);
    fe_futex_wake(&s->queued);
}

static fe_command *take(fe_cpu_stream *s) {
    pthread_mutex_lock(&s->lock);
    fe_command *command = s->first;
    if (command) s->first = command->next;
    if (!s->first) s->last = &s->first;
    pthread_mutex_unlock(&s->lock);
    return command;
}

static void keep_error(fe_cpu_stream *s, ferry_status status) {
    pthread_mutex_lock(&s->lock);
    if (s->error == FERRY_OK) {
        s->error = status;
        snprintf(s->sentence, sizeof s->sentence, "%s", ferry_last_error());
    }
    pthread_mutex_unlock(&s->lock);
    fe_fault_note(&s->crew.engine->fault, status, fe_fault_fatal(status));
}

static ferry_status run_pass(fe_cpu_stream *s, const fe_pass *pass) {
    ferry_status status = fe_cpu_pass(&s->crew, pass);
    if (!pass->outcome || status == FERRY_OK) return status;
    pass->outcome->status = status;
    snprintf(pass->outcome->sentence, sizeof pass->outcome->sentence, "%s", ferry_last_error());
    return FERRY_OK;
}

static void run(fe_cpu_stream *s, fe_command *c) {
    ferry_status status = FERRY_OK;
    switch (c->kind) {
    case FE_RUN_PASS: status = run_pass(s, &c->pass); break;
    case FE_RUN_CALL: c->call.function(c->call.argument); break;
    case FE_RUN_AWAIT:
        status = fe_cpu_event_wait(c->mark.event, c->mark.number, "a stream");
        fe_cpu_event_release(c->mark.event);
        break;
    case FE_RUN_RECORD:
        fe_cpu_event_reach(c->mark.event, c->mark.number);
        fe_cpu_event_release(c->mark.event);
        break;
    }
    if (status != FERRY_OK) keep_error(s, status);
    free(c);
    atomic_fetch_add(&s->done, 1); /* release: whoever syncs sees what the command stored */
    fe_futex_wake(&s->done);
}

static void *serve(void *argument) {
    fe_cpu_stream *s = argument;
    for (uint32_t seen = 0;;) {
        fe_command *command = take(s);
        if (command) {
            run(s, command);
            seen++;
        } else if (atomic_load(&s->stop)) {
            return NULL;
        } else {
            fe_pool_await_change(&s->queued, seen, s->pool.spin);
        }
    }
}

static void list_stream(fe_cpu *cpu, fe_cpu_stream *s) {
    pthread_mutex_lock(&cpu->lock);
    s->next = cpu->streams;
    cpu->streams = s;
    pthread_mutex_unlock(&cpu->lock);
}

static void unlist_stream(fe_cpu *cpu, const fe_cpu_stream *s) {
    pthread_mutex_lock(&cpu->lock);
    for (fe_cpu_stream **at = &cpu->streams; *at; at = &(*at)->next) {
        if (*at != s) continue;
        *at = s->next;
        break;
    }
    pthread_mutex_unlock(&cpu->lock);
}

ferry_status fe_cpu_stream_create(fe_engine *engine, ferry_stream **stream) {
    fe_cpu *cpu = engine->state;
    fe_cpu_stream *s = aligned_alloc(64, (size_t)fe_align(sizeof *s, 64));
    if (!s) return fe_fail(FERRY_NOMEM, "rank %d: no memory for a stream", engine->heap.rank);
    memset(s, 0, sizeof *s);
    s->base.engine = engine;
    s->crew = (fe_crew){.engine = engine, .rows = cpu->rows, .pool = &s->pool};
    s->crew.lane = atomic_fetch_add(&cpu->lanes, 1) + 1;
    s->last = &s->first;
    ferry_status status = fe_cpu_open_pool(engine, &s->pool);
    if (status != FERRY_OK) {
        free(s);
        return status;
    }
    pthread_mutex_init(&s->lock, NULL);
    errno = fe_thread_start(&s->thread, serve, s);
    if (errno) {
        status = fe_fail_errno("rank %d: starting the thread of a stream", engine->heap.rank);
        fe_pool_close(&s->pool);
        pthread_mutex_destroy(&s->lock);
        free(s);
        return status;
    }
    list_stream(cpu, s);
    *stream = &s->base;
    return FERRY_OK;
}

void fe_cpu_stream_destroy(ferry_stream *stream) {
    fe_cpu_stream *s = own(stream);
    unlist_stream(s->crew.engine->state, s);
    atomic_store(&s->stop, true);
    atomic_fetch_add(&s->queued, 1); /* not a command: it makes the thread look */
    fe_futex_wake(&s->queued);
    pthread_join(s->thread, NULL); /* the thread leaves when its queue is empty; every command in it is bounded */
    fe_pool_close(&s->pool);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

void fe_cpu_stream_drain(ferry_stream *stream) {
    fe_cpu_stream *s = own(stream);
    uint32_t until = atomic_load(&s->queued);
    for (;;) {
        uint32_t done = atomic_load(&s->done);
        if ((int32_t)(done - until) >= 0) return;
        fe_pool_await_change(&s->done, done, s->pool.spin);
    }
}

ferry_status fe_cpu_stream_sync(ferry_stream *stream) {
    fe_cpu_stream *s = own(stream);
    fe_cpu_stream_drain(stream);
    pthread_mutex_lock(&s->lock);
    ferry_status status = s->error;
    if (status != FERRY_OK) fe_fail_again(status, s->sentence);
    s->error = FERRY_OK;
    pthread_mutex_unlock(&s->lock);
    return status;
}

void fe_cpu_stream_forgive(fe_cpu_stream *s) {
    pthread_mutex_lock(&s->lock);
    s->error = FERRY_OK;
    pthread_mutex_unlock(&s->lock);
}

int fe_cpu_stream_idle(ferry_stream *stream) {
    fe_cpu_stream *s = own(stream);
    return atomic_load(&s->done) == atomic_load(&s->queued);
}

ferry_status fe_cpu_stream_pass(ferry_stream *stream, const fe_pass *pass) {
    fe_command *command = malloc(sizeof *command);
    if (!command) return fe_fail(FERRY_NOMEM, "no memory to queue %s", pass->step);
    command->kind = FE_RUN_PASS;
    command->pass = *pass;
    fe_cpu_enqueue(own(stream), command);
    return FERRY_OK;
}

ferry_status fe_cpu_stream_call(ferry_stream *stream, void (*function)(void *), void *argument) {
    fe_command *command = malloc(sizeof *command);
    if (!command) return fe_fail(FERRY_NOMEM, "no memory to queue a call");
    command->kind = FE_RUN_CALL;
    command->call.function = function;
    command->call.argument = argument;
    fe_cpu_enqueue(own(stream), command);
    return FERRY_OK;
}
