/* ferry demo: the options, and the order of things. */
#include "demo.h"
#include "base/os.h"
#include "hardware.h"
#include "options.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static const char notes[] =
    "What it does\n"
    "  Trains a byte-level language model whose layers are mixtures of experts: every rank holds some of the\n"
    "  experts and a part of each batch. Rows go to their experts by ferry_dispatch and come back by\n"
    "  ferry_combine; the gradients take the same routes: a cached dispatch of the combine's gradient, and a\n"
    "  combine of the dispatch's, with the gradients of the top-k weights. Then eight sequences are continued in\n"
    "  LATENCY mode, a byte each a step. Then all of it runs once more on one rank, and must give the same. A\n"
    "  line's loss is the mean since the line before.\n"
    "\n"
    "Why the bits are equal on any number of ranks\n"
    "  - Ferry's combine sums a token's experts in the order of its choices, in float32, wherever they live.\n"
    "  - Ferry orders the rows of an expert by source rank, then token. A rank's part of the batch is contiguous,\n"
    "    so this is the order of the batch; an expert's weight gradients are summed over its rows in that order.\n"
    "  - A batch has eight shards on any number of ranks. Each sums its own gradients of the shared weights and\n"
    "    its own loss; ferry_allgather brings all shards to all ranks, and each rank adds them in the order of\n"
    "    the shards.\n"
    "  - Each element of a matrix product is a sum of its own, in rising order, however many rows are worked on\n"
    "    at once.\n"
    "  - Random numbers depend on seed, step, shard and token; in the sample on seed, sequence and position.\n"
    "  Compared are the loss of each step, the held-out loss, all weights (by hashes), and the sampled bytes.\n";

enum { OPTIONS = 16 };

static void list_options(fe_demo *d, fe_option *table) {
    const fe_option all[OPTIONS] = {
        {"ranks", FE_OPTION_INT, &d->ranks, "N", 1, FE_DEMO_SHARDS, "ranks, all on this machine: 1, 2, 4 or 8", NULL},
        {"ranks-as", FE_OPTION_CHOICE, &d->ranks_as, "processes|threads", 0, 0, "what a rank is",
         "processes; cuda: threads"},
        {"device", FE_OPTION_CHOICE, &d->device, "cpu|cuda", 0, 0,
         "what carries the rows; experts are computed on the CPU", NULL},
        {"sms", FE_OPTION_INT, &d->sms, "N", 1, 1024, "cuda: SMs that a step of each rank uses",
         "FERRY_SMS, or the GPU's share of a rank"},
        {"text", FE_OPTION_TEXT, &d->text_path, "FILE", 0, 0, "text to learn, or a folder of texts; 64 MiB at most",
         "/usr/share/common-licenses, or Ferry's documentation"},
        {"steps", FE_OPTION_INT, &d->steps, "N", 1, 100000, "training steps", "1500; short: 150"},
        {"batch", FE_OPTION_INT, &d->batch, "N", FE_DEMO_SHARDS, 1 << 14, "tokens of a step, a multiple of 8", NULL},
        {"rate", FE_OPTION_REAL, &d->rate, "X", 0, 1, "learning rate, at its highest", NULL},
        {"sample", FE_OPTION_INT, &d->sample, "N", 2, FE_DEMO_SAMPLE_MAX, "bytes to write in each of 8 sequences",
         "300; short: 80"},
        {"prompt", FE_OPTION_TEXT, &d->prompt, "TEXT", 0, 0, "what the sequences continue; its last 16 bytes count",
         "held-out text"},
        {"temperature", FE_OPTION_REAL, &d->temperature, "X", 0.01, 10, "below 1: likely bytes become likelier", NULL},
        {"seed", FE_OPTION_INT, &d->seed, "N", 0, 2147483647, "of weights, batches and sample", NULL},
        {"short", FE_OPTION_FLAG, &d->brief, NULL, 0, 0, "few steps: for a quick check", NULL},
        {"svg", FE_OPTION_TEXT, &d->svg, "FILE", 0, 0, "heat map of the rows sent to each expert; none: no file", NULL},
        {"json", FE_OPTION_TEXT, &d->json, "FILE", 0, 0,
         "also write JSON to FILE; -: to standard output, and nothing else", NULL},
        {"deadline", FE_OPTION_INT, &d->deadline_s, "S", 1, 86400, "seconds that each of the two runs may take", NULL},
    };
    memcpy(table, all, sizeof all);
}

static bool refuse(const char *what, int value) {
    fprintf(stderr, "ferry demo: %s, not %d; see 'ferry demo --help'\n", what, value);
    return false;
}

static bool derive(fe_demo *d) {
    if (FE_DEMO_SHARDS % d->ranks) return refuse("--ranks must be 1, 2, 4 or 8", d->ranks);
    if (d->batch % FE_DEMO_SHARDS) return refuse("--batch must be a multiple of 8", d->batch);
    if (d->ranks_as < 0) d->ranks_as = d->device == 1;
    if (!d->steps) d->steps = d->brief ? 150 : 1500;
    if (!d->sample) d->sample = d->brief ? 80 : 300;
    if (strcmp(d->svg, "none") == 0) d->svg = NULL;
    d->quiet = d->json && strcmp(d->json, "-") == 0;
    return true;
}

/* Better now than after all the work. */
static bool can_write(const char *path, char *why) {
    if (!path || strcmp(path, "-") == 0) return true;
    FILE *file = fopen(path, "a");
    if (file) return fclose(file) == 0;
    snprintf(why, FE_DEMO_WHY, "%.400s cannot be written: %s", path, strerror(errno));
    return false;
}

static bool prepare(fe_demo *d, char *why) {
    if (!fe_demo_text_read(d->text_path, &d->text, why) || !can_write(d->svg, why) || !can_write(d->json, why))
        return false;
    d->result_bytes = sizeof *d->many + sizeof(double) * (size_t)d->steps;
    d->many = fe_shared_new(d->result_bytes);
    d->one = fe_shared_new(d->result_bytes);
    if (d->many && d->one) return true;
    snprintf(why, FE_DEMO_WHY, "no room to map %zu bytes for the results", 2 * d->result_bytes);
    return false;
}

static bool run(const fe_demo *d, int ranks, fe_demo_result *result, bool lines, char *why) {
    fe_demo_job job = {d, result, lines && !d->quiet};
    fe_ranks_config config = {.ranks = ranks,
                              .processes = d->ranks_as == 0,
                              .deadline_ms = d->deadline_s * 1000,
                              .action = lines ? "training" : "once more on 1 rank",
                              .device = d->device ? FERRY_CUDA : FERRY_CPU};
    return fe_ranks_run(&config, fe_demo_rank, &job, why);
}

/* Both runs, and what is said between them. */
static bool run_both(const fe_demo *d, char *why) {
    if (!d->quiet) fe_demo_print_head(d);
    if (!run(d, d->ranks, d->many, true, why) || !fe_demo_check_run(d, d->many, why)) return false;
    if (!d->quiet) fe_demo_print_run(d);
    if (!run(d, 1, d->one, false, why) || !fe_demo_check_equal(d, why)) return false;
    if (d->quiet) return true;
    printf("once more on 1 rank: %d losses, all weights and %d bytes of sample are equal, bit for bit (%.1f s; %.1f s "
           "on %d "
           "rank%s)\n",
           d->steps, d->sample * FE_DEMO_SHARDS, d->one->train_s, d->many->train_s, d->ranks, d->ranks == 1 ? "" : "s");
    return true;
}

static bool write_files(const fe_demo *d, bool verified, char *why) {
    bool good = true;
    char trouble[FE_DEMO_WHY];
    if (d->svg && d->many->sample_bytes[0] > 0) {
        good = fe_demo_svg(d, d->svg, trouble);
        if (good && !d->quiet) printf("heat map: %s\n", d->svg);
        if (!good) fprintf(stderr, "ferry demo: %s\n", trouble);
    }
    if (!d->json) return good;
    cJSON *json = fe_demo_json(d, verified ? NULL : why);
    good = fe_json_write(json, d->json, "demo") && good;
    cJSON_Delete(json);
    return good;
}

int ferry_cmd_demo(int argc, char **argv) {
    static fe_demo d;
    d = (fe_demo){.ranks = 4,
                  .batch = 1024,
                  .rate = 0.01,
                  .temperature = 0.6,
                  .seed = 1,
                  .deadline_s = 600,
                  .ranks_as = -1,
                  .svg = "ferry-demo.svg"};
    fe_option table[OPTIONS];
    list_options(&d, table);
    const fe_usage usage = {
        "demo", "Trains a small mixture-of-experts model on text over several ranks, samples from it, and verifies it.",
        notes};
    fe_parsed parsed = fe_options_parse(&usage, table, OPTIONS, argc, argv);
    if (parsed != FE_PARSED_RUN) return parsed == FE_PARSED_HELP ? FE_EXIT_OK : FE_EXIT_USAGE;
    if (!derive(&d)) return FE_EXIT_USAGE;
    char why[FE_RANKS_WHY] = "";
    bool ready = prepare(&d, why), verified = ready && run_both(&d, why);
    bool good = ready && write_files(&d, verified, why) && verified;
    if (!verified) fprintf(stderr, "ferry demo: %s%s\n", ready ? "not verified: " : "", why);
    if (good && !d.quiet) printf("verified\n");
    fe_shared_free(d.many, d.result_bytes);
    fe_shared_free(d.one, d.result_bytes);
    fe_demo_text_free(&d.text);
    return good ? FE_EXIT_OK : FE_EXIT_FAILED;
}
