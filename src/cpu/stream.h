/* A CPU stream: a thread with workers of its own that runs commands in the order in which they were queued. */
#ifndef FERRY_CPU_STREAM_H
#define FERRY_CPU_STREAM_H

#include "cpu/cpu.h"

typedef struct fe_cpu_event {
    ferry_event base;
    _Atomic int holders;       /* the caller, and commands that mention it: the last one frees */
    _Atomic uint32_t recorded; /* how often it was recorded */
    _Atomic uint32_t happened; /* the last record that was reached; futex word */
} fe_cpu_event;

typedef struct fe_command {
    struct fe_command *next;
    enum { FE_RUN_PASS, FE_RUN_CALL, FE_RUN_RECORD, FE_RUN_AWAIT } kind;
    union {
        fe_pass pass;
        struct {
            void (*function)(void *);
            void *argument;
        } call;
        struct {
            fe_cpu_event *event;
            uint32_t number;
        } mark;
    };
} fe_command;

typedef struct fe_cpu_stream {
    ferry_stream base;
    struct fe_cpu_stream *next; /* in fe_cpu's list */
    fe_crew crew;
    fe_pool pool;
    pthread_t thread;
    pthread_mutex_t lock; /* of the queue and the error */
    fe_command *first, **last;
    ferry_status error; /* first since the last sync */
    char sentence[FE_SENTENCE];
    _Atomic bool stop;
    _Alignas(64) _Atomic uint32_t queued; /* commands so far; futex word of the thread */
    _Alignas(64) _Atomic uint32_t done;   /* commands run; futex word of those who sync */
} fe_cpu_stream;

/* Puts a command, which the stream will free, at the end. */
void fe_cpu_enqueue(fe_cpu_stream *stream, fe_command *command);

/* Forgets its error. */
void fe_cpu_stream_forgive(fe_cpu_stream *stream);

/* event.c, for the stream's thread */
void fe_cpu_event_reach(fe_cpu_event *event, uint32_t number);
ferry_status fe_cpu_event_wait(fe_cpu_event *event, uint32_t number, const char *who);
void fe_cpu_event_release(fe_cpu_event *event);

#endif
