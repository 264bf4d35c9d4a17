/* ferry demo, inside: demo.c reads the options and keeps the order of things, demo_text.c reads the text and cuts it into
 * windows, demo_run.c is what a rank does, demo_check.c compares two runs, demo_report.c prints and makes the JSON,
 * demo_svg.c draws who sent how much to whom. The model is in demo_model.h. */
#ifndef FERRY_TOOL_DEMO_H
#define FERRY_TOOL_DEMO_H

#include "demo_model.h"
#include "ranks.h"
#include <cjson/cJSON.h>

enum {
    FE_DEMO_SHARDS =
        8, /* parts of a batch and of the text, and sequences of the sample; a rank holds an equal number */
    FE_DEMO_HELD_BATCHES = 8,
    FE_DEMO_TEXT_MIN = 8192,
    FE_DEMO_TEXT_MAX = 1 << 26,
    FE_DEMO_SAMPLE_MAX = 4096,
    FE_DEMO_WHY = FE_RANKS_WHY
};

/* Cut into FE_DEMO_SHARDS parts of `part` bytes; a shard's tokens come from its own part. The first `train` bytes of each are
 * trained on, the rest is held out. */
typedef struct fe_demo_text {
    uint8_t *bytes;
    int64_t length, part, train;
    int files;
    char name[256];
    uint64_t hash;
} fe_demo_text;

/* A file, or the plain files of a folder in the order of their names; NULL: the first default with enough text. false:
 * why[FE_DEMO_WHY] has a sentence. */
bool fe_demo_text_read(const char *path, fe_demo_text *text, char *why);
void fe_demo_text_free(fe_demo_text *text);
/* Fills the model's windows and targets: a full batch, drawn from seed, step, shard and token alone. Held-out batches are
 * numbered apart from training steps. */
void fe_demo_batch(const fe_demo_text *text, fe_demo_model *m, uint64_t seed, int step, bool held_out);
/* What stands before a sequence: the end of the prompt, filled up with spaces at its front; without a prompt held-out text. */
void fe_demo_start(const fe_demo_text *text, const char *prompt, int sequence, uint8_t *window);
/* Text that neither a terminal nor a JSON reader stumbles over, NUL at its end: control characters and what is not UTF-8 become
 * '?'. to has room for n + 1. */
void fe_demo_printable(char *to, const uint8_t *from, int n);

typedef struct fe_demo_result {                                         /* of one run, in memory that its ranks share */
    double held_out;                                                    /* bits per byte */
    double train_s, decode_us;                                          /* a decode step gives each sequence a byte */
    uint64_t train_bytes[FE_DEMO_SHARDS], sample_bytes[FE_DEMO_SHARDS]; /* moved by Ferry, [rank] */
    uint64_t dense_hash[FE_DEMO_SHARDS];                                /* [rank] */
    uint64_t expert_hash[FE_DEMO_EXPERTS];
    int expert_rank[FE_DEMO_EXPERTS];                               /* where it lived */
    uint64_t sent[FE_DEMO_SHARDS][FE_DEMO_LAYERS][FE_DEMO_EXPERTS]; /* rows, [source rank], in training */
    uint64_t received[FE_DEMO_LAYERS][FE_DEMO_EXPERTS];             /* rows, as counted where they arrived */
    uint8_t start[FE_DEMO_SHARDS][FE_DEMO_WINDOW], sample[FE_DEMO_SHARDS][FE_DEMO_SAMPLE_MAX];
    double loss[]; /* [steps], bits per byte */
} fe_demo_result;

typedef struct fe_demo {
    int ranks, steps, batch, sample, seed, deadline_s, ranks_as, device,
        sms; /* ranks_as, device: places in the words of the option table */
    double rate, temperature;
    bool brief, quiet; /* quiet: nothing but JSON goes to standard output */
    const char *text_path, *prompt, *svg, *json;
    fe_demo_text text;
    fe_demo_result *many, *one; /* the run on `ranks` ranks, and on one */
    size_t result_bytes;
} fe_demo;

typedef struct fe_demo_job {
    const fe_demo *demo;
    fe_demo_result *result;
    bool lines; /* print the falling loss */
} fe_demo_job;

/* One rank of one run; self->arg is an fe_demo_job. */
bool fe_demo_rank(fe_rank *self);

/* What can be known from one run: rows sent and rows received, the ranks' dense weights, the loss. */
bool fe_demo_check_run(const fe_demo *d, const fe_demo_result *r, char *why);
/* Bit for bit. */
bool fe_demo_check_equal(const fe_demo *d, char *why);

void fe_demo_print_head(const fe_demo *d);
/* The mean loss of steps first..step. Runs in rank 0. */
void fe_demo_print_step(const fe_demo *d, const fe_demo_result *r, int first, int step, int64_t since_ns,
                        uint64_t bytes);
void fe_demo_print_run(const fe_demo *d);
/* why NULL: verified. */
cJSON *fe_demo_json(const fe_demo *d, const char *why);

/* false: a sentence is in why. */
bool fe_demo_svg(const fe_demo *d, const char *path, char *why);

#endif
