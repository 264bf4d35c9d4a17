/* ferry bench: the options, and the order of things. */
#include "bench.h"
#include "base/env.h"
#include "boot/place.h"
#include "hardware.h"
#include "model.h"
#include "options.h"
#include <stdio.h>
#include <stdlib.h>

static const char notes[] =
    "What is measured\n"
    "  Every rank dispatches --tokens tokens to the experts that random numbers (or --routes) choose, and combines "
    "what\n"
    "  the experts return. All ranks start a step together, after a barrier; a step takes as long as its slowest "
    "rank.\n"
    "    route     a route is made (counts are exchanged)\n"
    "    dispatch  with a route made before, without delivery of top-k (see --deliver-topk), into the library's "
    "buffers\n"
    "    combine   out of ferry_combine_buffer, into bf16 rows of the caller's\n"
    "    round     dispatch and combine in one\n"
    "    barrier   ferry_barrier: a flag from every rank to every rank\n"
    "  Under a launcher each process is a rank; they start together after ferry_barrier, and the first one prints.\n"
    "  flag round trip: a word from rank 0 to rank 1 and back through shared memory, median of 50 times 100 trips.\n"
    "\n"
    "What is counted\n"
    "  bytes: rows that a rank receives, rows from itself included, on average over the ranks, times the bytes of a "
    "row.\n"
    "  rank layout: a token counts once for each rank that it goes to; expert and slots: once for each of its "
    "experts.\n"
    "  A row is 2 bytes a channel; in fp8 1 byte a channel and 4 bytes for each 128 channels. Combine: always bf16.\n"
    "  GB/s: bytes / median / 1e9.\n"
    "\n"
    "The floor\n"
    "  The same bytes in the same run by as many threads, without any exchange, on memory touched before: for dispatch "
    "the\n"
    "  best of libc's memcpy, the row kernel and the non-temporal row kernel, each row read where dispatch reads it "
    "and written\n"
    "  to the same (rank, slot) of two plain shared mappings by turns (with --cast: after the bare cast of each row); "
    "for\n"
    "  combine the row kernel's sum over the same rows, two copies of them by turns too. 'of floor' is the floor's "
    "median / the median.\n"
    "\n"
    "Several hosts (FERRY_HOSTS=n splits the ranks over n pretend ones)\n"
    "  on the wire: bytes that one dispatch writes to other hosts, notes and headers included, for each token that it "
    "sends;\n"
    "  rows: other hosts where a token has a place, on average: each such row crosses once. Bare writes: 1 MiB each, "
    "from "
    "every\n"
    "  rank to its partner on the next host, all at once, by libfabric alone; 'of them' is the time that a step's rows "
    "would\n"
    "  take so / the step's median. Combine sends one summed bf16 row back for each such row.\n"
    "\n"
    "On a GPU (--device cuda)\n"
    "  Inputs and results lie in GPU memory. A sample is --batch steps queued on a stream, from a host clock before "
    "the "
    "first\n"
    "  to one after the stream is empty, divided by --batch; combine and round return the rows of one buffer in all of "
    "them.\n"
    "  The floor: every row of all ranks read once and written once, at the rate at which this GPU copies 1 GiB or "
    "more "
    "in its\n"
    "  own memory, in the same run; it holds where all ranks share one GPU. Ranks that are processes want MPS.\n"
    "\n"
    "Traces\n"
    "  --routes takes one JSON object a line: {\"type\": \"route\", \"layer\": 0, \"topk_ids\": [..], "
    "\"topk_weights\": [..]};\n"
    "  a line {\"type\": \"meta\", \"num_experts\": N} may give the number of experts. Lines are dealt round robin to "
    "the ranks.\n";

enum { OPTIONS = 33 };

static void list_options(fe_bench_options *o, fe_option *table) {
    const fe_option all[OPTIONS] = {
        {"ranks", FE_OPTION_INT, &o->ranks, "N", 1, FE_MODEL_RANKS, "ranks of the group", "2, or the launcher's"},
        {"device", FE_OPTION_CHOICE, &o->device, "cpu|cuda", 0, 0, "where ranks run", NULL},
        {"sms", FE_OPTION_INT, &o->sms, "N", 1, 1024, "cuda: SMs that a step of each rank uses",
         "FERRY_SMS, or the GPU's share of a rank"},
        {"batch", FE_OPTION_INT, &o->batch, "N", 1, 1000, "cuda: steps in a sample", "20"},
        {"graph", FE_OPTION_FLAG, &o->graph, NULL, 0, 0, "cuda: replay each sample's steps as a CUDA graph", NULL},
        {"tokens", FE_OPTION_INT, &o->tokens, "N", 1, 1 << 20, "tokens of each rank, or at most this many of a trace",
         "4096; latency: 128; a trace: all"},
        {"hidden", FE_OPTION_INT, &o->hidden, "N", 16, FE_DRAW_ROW_MAX, "channels of a row, a multiple of 16", NULL},
        {"topk", FE_OPTION_INT, &o->topk, "N", 1, FERRY_MAX_TOPK, "experts of each token", "8, or the trace's"},
        {"experts", FE_OPTION_INT, &o->experts, "N", 1, 1 << 16, "experts of the group", "256, or the trace's"},
        {"layout", FE_OPTION_CHOICE, &o->layout, "rank|expert|slots", 0, 0, "layout of received rows", NULL},
        {"mode", FE_OPTION_CHOICE, &o->mode, "throughput|latency", 0, 0, "mode of the route", NULL},
        {"dtype", FE_OPTION_CHOICE, &o->dtype, "bf16|fp8", 0, 0, "rows that travel; fp8: e4m3 rows with float scales",
         NULL},
        {"cast", FE_OPTION_FLAG, &o->cast, NULL, 0, 0, "rows are given as bf16 and cast to fp8 on the way", NULL},
        {"weighted", FE_OPTION_CHOICE, &o->weighted, "auto|yes|no", 0, 0,
         "combine by top-k weights; auto: in latency mode", NULL},
        {"zero-copy", FE_OPTION_CHOICE, &o->zero_copy, "yes|no", 0, 0,
         "no: received and returned rows in the caller's memory", NULL},
        {"deliver-topk", FE_OPTION_FLAG, &o->deliver_topk, NULL, 0, 0,
         "measure dispatch with delivery of top-k and sources", NULL},
        {"ranks-as", FE_OPTION_CHOICE, &o->ranks_as, "threads|processes|launched", 0, 0,
         "what a rank is; launched: this process, by mpirun, srun, torchrun or ferry run",
         "launched by a launcher, else processes; cuda: threads"},
        {"threads", FE_OPTION_INT, &o->threads, "N", 1, 1024, "workers of each rank",
         "FERRY_THREADS, or cores / ranks"},
        {"iters", FE_OPTION_INT, &o->iters, "N", 1, 1000000, "steps that are timed", "30; latency: 500, cuda: 100"},
        {"warmup", FE_OPTION_INT, &o->warmup, "N", 0, 1000000, "steps before them", NULL},
        {"seed", FE_OPTION_INT, &o->seed, "N", 0, 2147483647, "of routing and rows", NULL},
        {"skew", FE_OPTION_REAL, &o->skew, "ZIPF", 0, 10,
         "exponent of Zipf's law for the experts' popularity; 0: all alike", NULL},
        {"routes", FE_OPTION_TEXT, &o->routes, "FILE.jsonl", 0, 0, "replay a routing trace", NULL},
        {"layer", FE_OPTION_INT, &o->layer, "N", 0, 1 << 20, "the trace's layer to use", "the first one met"},
        {"check", FE_OPTION_FLAG, &o->check, NULL, 0, 0, "compare with the oracle bit by bit, before and after", NULL},
        {"json", FE_OPTION_TEXT, &o->json, "FILE", 0, 0, "also write JSON to FILE; -: to standard output, and no table",
         NULL},
        {"timeout", FE_OPTION_INT, &o->timeout_s, "S", 1, 3600, "seconds that any wait inside the library may take",
         NULL},
        {"model", FE_OPTION_FLAG, &o->model, NULL, 0, 0, "measure nothing: predict, for --topology", NULL},
        {"topology", FE_OPTION_TEXT, &o->topology, "FILE", 0, 0, "the hardware that a model is of", NULL},
        {"groups", FE_OPTION_INT, &o->groups, "N", 1, FE_MODEL_RANKS, "model: a token's experts lie on at most N hosts",
         "any"},
        {"against", FE_OPTION_TEXT, &o->against, "FILE", 0, 0, "model: its errors against measured times", NULL},
        {"within", FE_OPTION_REAL, &o->within, "PERCENT", 0, 1000, "model: fail when an error is larger", "none"},
        {"deadline", FE_OPTION_INT, &o->deadline_s, "S", 1, 86400, "seconds that all of it may take", NULL},
    };
    memcpy(table, all, sizeof all);
}

static bool refuse(const char *what) {
    fprintf(stderr, "ferry bench: %s; see 'ferry bench --help'\n", what);
    return false;
}

/* Under a launcher with several ranks this process is one of them, unless --ranks-as says otherwise. */
static bool find_ranks(fe_bench *b) {
    fe_bench_options *o = &b->o;
    fe_launch launch = {.ranks = 1};
    bool found = o->ranks_as < 0 ? fe_launch_found() : o->ranks_as == 2;
    char what[FE_RANKS_WHY];
    if (found && fe_launch_read(&launch) != FERRY_OK) return refuse(ferry_last_error());
    b->launched = o->ranks_as == 2 || launch.ranks > 1;
    b->rank = launch.rank;
    if (b->launched && o->ranks && o->ranks != launch.ranks) {
        snprintf(what, sizeof what, "--ranks %d, but the launcher has %d; --ranks-as processes starts others", o->ranks,
                 launch.ranks);
        return refuse(what);
    }
    if (b->launched && launch.ranks > FE_RANKS_MAX) return refuse("the launcher has more ranks than the 64 of a bench");
    if (b->launched) o->ranks = launch.ranks;
    if (!o->ranks) o->ranks = 2;
    if (o->ranks > FE_RANKS_MAX) return refuse("--ranks is at most 64; only --model takes more");
    if (o->ranks_as < 0) o->ranks_as = b->launched ? 2 : b->gpu ? 0 : 1;
    b->processes = o->ranks_as != 0;
    return true;
}

static bool derive(fe_bench *b) {
    static const ferry_layout layouts[] = {FERRY_LAYOUT_RANK, FERRY_LAYOUT_EXPERT, FERRY_LAYOUT_SLOTS};
    fe_bench_options *o = &b->o;
    b->layout = layouts[o->layout];
    b->mode = o->mode ? FERRY_LATENCY : FERRY_THROUGHPUT;
    b->gpu = o->device == 1;
    if (!find_ranks(b)) return false;
    b->fp8 = o->dtype == 1 || o->cast;
    b->weighted = o->weighted == 1 || (o->weighted == 0 && b->mode == FERRY_LATENCY);
    b->zero_copy = o->zero_copy == 0;
    int64_t hosts;
    if (fe_env_number(FE_ENV_FERRY_HOSTS, 1, 1, FERRY_MAX_RANKS, &hosts) != FERRY_OK) return refuse(ferry_last_error());
    b->hosts = o->ranks > 1 ? (int)hosts : 1;
    if (o->ranks % b->hosts) return refuse("--ranks must be a multiple of FERRY_HOSTS");
    if (o->hidden % 16) return refuse("--hidden must be a multiple of 16");
    if (o->layer >= 0 && !o->routes) return refuse("--layer goes with --routes");
    if (o->routes && o->skew > 0) return refuse("--skew goes with random routing, not with --routes");
    if (o->sms && !b->gpu) return refuse("--sms goes with --device cuda");
    if (!o->iters) o->iters = b->mode == FERRY_LATENCY ? b->gpu ? 100 : 500 : 30;
    if (o->batch && !b->gpu) return refuse("--batch goes with --device cuda");
    if (!o->batch) o->batch = 20;
    if (o->graph && (!b->gpu || o->batch % 2)) return refuse("--graph goes with --device cuda and an even --batch");
    return true;
}

static int finish(const fe_bench *b, int argc, char **argv) {
    bool differs = false, good = true;
    for (int r = 0; r < b->o.ranks; r++) differs = differs || b->shared->check[r][0];
    if (b->rank == 0 && (!b->o.json || strcmp(b->o.json, "-") != 0)) fe_bench_print(b);
    if (b->rank == 0 && b->o.json) {
        cJSON *json = fe_bench_json(b, argc, argv);
        good = fe_json_write(json, b->o.json, "bench");
        cJSON_Delete(json);
    }
    return good && !differs ? FE_EXIT_OK : FE_EXIT_FAILED;
}

int ferry_cmd_bench(int argc, char **argv) {
    static fe_bench b;
    b.o = (fe_bench_options){
        .hidden = 7168, .warmup = 3, .layer = -1, .timeout_s = 30, .deadline_s = 600, .ranks_as = -1};
    fe_option table[OPTIONS];
    list_options(&b.o, table);
    const fe_usage usage = {
        "bench", "Measures dispatch and combine, and what plain copies and sums of the same bytes take.", notes};
    fe_parsed parsed = fe_options_parse(&usage, table, OPTIONS, argc, argv);
    if (parsed != FE_PARSED_RUN) return parsed == FE_PARSED_HELP ? FE_EXIT_OK : FE_EXIT_USAGE;
    if (b.o.model != (b.o.topology != NULL) || (!b.o.model && (b.o.against || b.o.groups || b.o.within > 0))) {
        refuse("--model and --topology go together, and --groups, --against and --within with them");
        return FE_EXIT_USAGE;
    }
    if (b.o.model) return fe_model_run(&b.o);
    if (!derive(&b)) return FE_EXIT_USAGE;
    char why[FE_RANKS_WHY];
    int code = FE_EXIT_FAILED;
    fe_ranks_config config = {.ranks = b.o.ranks,
                              .processes = b.processes,
                              .launched = b.launched,
                              .deadline_ms = b.o.deadline_s * 1000,
                              .action = "bench",
                              .device = b.gpu ? FERRY_CUDA : FERRY_CPU};
    if (fe_bench_plan(&b, why) && fe_ranks_run(&config, fe_bench_lane, &b, why))
        code = finish(&b, argc, argv);
    else
        fprintf(stderr, "ferry bench: %s\n", why);
    fe_bench_plan_free(&b);
    return code;
}
