/* The demo's lines for people, and its JSON. */
#include "demo.h"
#include "hardware.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { E = FE_DEMO_EXPERTS, SHOWN = 2 };

static const char *kind(const fe_demo *d) {
    return d->ranks_as == 0 ? (d->ranks == 1 ? "process" : "processes") : d->ranks == 1 ? "thread" : "threads";
}

void fe_demo_print_head(const fe_demo *d) {
    const long weights = (long)(sizeof(fe_demo_dense) / sizeof(float)) +
                         (long)FE_DEMO_LAYERS * E * (long)(sizeof(fe_demo_expert) / sizeof(float));
    printf("text    %lld bytes, %d file%s, %s; a sixteenth is held out\n", (long long)d->text.length, d->text.files,
           d->text.files == 1 ? "" : "s", d->text.name);
    printf("model   byte after byte from the last %d; %d layers of %d experts %d-%d-%d, top-%d; %ld weights\n",
           FE_DEMO_WINDOW, FE_DEMO_LAYERS, E, FE_DEMO_HIDDEN, FE_DEMO_INNER, FE_DEMO_HIDDEN, FE_DEMO_TOPK, weights);
    printf("ranks   %d %s of %d experts each; %d steps of %d tokens; %s arithmetic\n\n", d->ranks, kind(d),
           E / d->ranks, d->steps, d->batch, fe_math_name());
    printf("training on %d rank%s\n%8s %10s %10s %14s\n", d->ranks, d->ranks == 1 ? "" : "s", "step", "bits/byte",
           "tokens/s", "MB by Ferry");
    fflush(stdout);
}

/* One write: the progress bar of the parent process may be on the terminal's line. */
void fe_demo_print_step(const fe_demo *d, const fe_demo_result *r, int first, int step, int64_t since_ns,
                        uint64_t bytes) {
    double sum = 0;
    for (int i = first; i <= step; i++) sum += r->loss[i - 1];
    const char *wipe = isatty(STDOUT_FILENO) && isatty(STDERR_FILENO) ? "\r\033[K" : "";
    printf("%s%8d %10.3f %10.0f %14.1f\n", wipe, step, sum / (step - first + 1),
           (double)step * d->batch / ((double)since_ns / 1e9), (double)bytes / 1e6);
    fflush(stdout);
}

static uint64_t total(const fe_demo *d, const uint64_t *by_rank) {
    uint64_t sum = 0;
    for (int r = 0; r < d->ranks; r++) sum += by_rank[r];
    return sum;
}

/* A sequence with its beginning, lines indented. */
static void print_sample(const fe_demo *d, int sequence) {
    char text[FE_DEMO_WINDOW + FE_DEMO_SAMPLE_MAX + 1];
    fe_demo_printable(text, d->many->start[sequence], FE_DEMO_WINDOW);
    printf("  %d | ", sequence);
    for (const char *p = text; *p; p++) fputs(*p == '\n' ? "\n    | " : (char[]){*p, 0}, stdout);
    printf("[...] ");
    fe_demo_printable(text, d->many->sample[sequence], d->sample);
    for (const char *p = text; *p; p++) fputs(*p == '\n' ? "\n    | " : (char[]){*p, 0}, stdout);
    putchar('\n');
}

void fe_demo_print_run(const fe_demo *d) {
    const fe_demo_result *r = d->many;
    printf("held-out text: %.3f bits/byte\n\n", r->held_out);
    printf("sample in LATENCY mode: %d sequences at once, %.0f us a step, %.1f us a token; %.1f MB by Ferry\n",
           FE_DEMO_SHARDS, r->decode_us, r->decode_us / FE_DEMO_SHARDS, (double)total(d, r->sample_bytes) / 1e6);
    for (int s = 0; s < SHOWN; s++) print_sample(d, s);
    putchar('\n');
    fflush(stdout);
}

static void add_hash(cJSON *object, const char *name, uint64_t hash) {
    char text[17];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
    if (name)
        cJSON_AddStringToObject(object, name, text);
    else
        cJSON_AddItemToArray(object, cJSON_CreateString(text));
}

static void add_text(cJSON *array, const uint8_t *bytes, int n) {
    char text[FE_DEMO_SAMPLE_MAX + 1];
    fe_demo_printable(text, bytes, n);
    cJSON_AddItemToArray(array, cJSON_CreateString(text));
}

static void add_config(cJSON *config, const fe_demo *d) {
    char version[32];
    int v = ferry_version();
    snprintf(version, sizeof version, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
    cJSON_AddStringToObject(config, "version", version);
    cJSON_AddNumberToObject(config, "ranks", d->ranks);
    cJSON_AddStringToObject(config, "ranks_as", d->ranks_as == 0 ? "processes" : "threads");
    cJSON_AddNumberToObject(config, "shards", FE_DEMO_SHARDS);
    cJSON_AddNumberToObject(config, "experts", E);
    cJSON_AddNumberToObject(config, "topk", FE_DEMO_TOPK);
    cJSON_AddNumberToObject(config, "layers", FE_DEMO_LAYERS);
    cJSON_AddNumberToObject(config, "hidden", FE_DEMO_HIDDEN);
    cJSON_AddNumberToObject(config, "inner", FE_DEMO_INNER);
    cJSON_AddNumberToObject(config, "window", FE_DEMO_WINDOW);
    cJSON_AddNumberToObject(config, "steps", d->steps);
    cJSON_AddNumberToObject(config, "batch", d->batch);
    cJSON_AddNumberToObject(config, "rate", d->rate);
    cJSON_AddNumberToObject(config, "seed", d->seed);
    cJSON_AddNumberToObject(config, "temperature", d->temperature);
    cJSON_AddStringToObject(config, "arithmetic", fe_math_name());
    cJSON_AddItemToObject(config, "hardware", fe_hardware_json());
    cJSON *text = cJSON_AddObjectToObject(config, "text");
    char name[sizeof d->text.name];
    fe_demo_printable(name, (const uint8_t *)d->text.name, (int)strlen(d->text.name));
    cJSON_AddStringToObject(text, "name", name);
    cJSON_AddNumberToObject(text, "bytes", (double)d->text.length);
    cJSON_AddNumberToObject(text, "files", d->text.files);
    add_hash(text, "hash", d->text.hash);
}

static void add_sample(cJSON *object, const fe_demo *d, const fe_demo_result *r) {
    cJSON *sample = cJSON_AddObjectToObject(object, "sample");
    cJSON_AddNumberToObject(sample, "us_per_step", r->decode_us);
    cJSON_AddNumberToObject(sample, "us_per_token", r->decode_us / FE_DEMO_SHARDS);
    cJSON_AddNumberToObject(sample, "bytes_moved", (double)total(d, r->sample_bytes));
    cJSON *start = cJSON_AddArrayToObject(sample, "start"), *text = cJSON_AddArrayToObject(sample, "text");
    uint64_t hash = FE_HASH_START;
    for (int s = 0; s < FE_DEMO_SHARDS; s++) {
        add_text(start, r->start[s], FE_DEMO_WINDOW);
        add_text(text, r->sample[s], d->sample);
        hash = fe_hash(hash, r->sample[s], (size_t)d->sample);
    }
    add_hash(sample, "hash", hash);
}

static void add_rows(cJSON *object, const fe_demo_result *r, int ranks) {
    cJSON *layers = cJSON_AddArrayToObject(object, "rows_sent"); /* [layer][source rank][expert] */
    for (int layer = 0; layer < FE_DEMO_LAYERS; layer++) {
        cJSON *matrix = cJSON_CreateArray();
        cJSON_AddItemToArray(layers, matrix);
        for (int rank = 0; rank < ranks; rank++) {
            cJSON *row = cJSON_CreateArray();
            for (int e = 0; e < E; e++) cJSON_AddItemToArray(row, cJSON_CreateNumber((double)r->sent[rank][layer][e]));
            cJSON_AddItemToArray(matrix, row);
        }
    }
}

/* A run that did not come to its end is left out. */
static void add_run(cJSON *object, const char *name, const fe_demo *d, const fe_demo_result *r, int ranks) {
    if (r->sample_bytes[0] == 0) return;
    cJSON *run = cJSON_AddObjectToObject(object, name);
    cJSON_AddNumberToObject(run, "ranks", ranks);
    cJSON_AddNumberToObject(run, "seconds", r->train_s);
    cJSON_AddNumberToObject(run, "tokens_per_s", r->train_s > 0 ? (double)d->steps * d->batch / r->train_s : 0);
    cJSON_AddNumberToObject(run, "bytes_moved", (double)total(d, r->train_bytes));
    cJSON_AddNumberToObject(run, "held_out", r->held_out); /* bits per byte */
    cJSON *hashes = cJSON_AddObjectToObject(run, "hashes");
    add_hash(hashes, "dense", r->dense_hash[0]);
    cJSON *experts = cJSON_AddArrayToObject(hashes, "experts");
    for (int e = 0; e < E; e++) add_hash(experts, NULL, r->expert_hash[e]);
    cJSON_AddItemToObject(run, "losses", cJSON_CreateDoubleArray(r->loss, d->steps)); /* bits per byte, of each step */
    add_sample(run, d, r);
    add_rows(run, r, ranks);
}

cJSON *fe_demo_json(const fe_demo *d, const char *why) {
    cJSON *object = cJSON_CreateObject();
    add_config(cJSON_AddObjectToObject(object, "config"), d);
    add_run(object, "run", d, d->many, d->ranks);
    add_run(object, "one_rank", d, d->one, 1);
    cJSON_AddBoolToObject(object, "verified", !why);
    if (why) cJSON_AddStringToObject(object, "why", why);
    return object;
}
