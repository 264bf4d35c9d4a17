/* Is a run right in itself, and are two runs the same? */
#include "demo.h"
#include <math.h>
#include <stdio.h>

enum { E = FE_DEMO_EXPERTS, FALL_FROM = 60 };

static bool say(char *why, const char *text) {
    snprintf(why, FE_DEMO_WHY, "%s", text);
    return false;
}

static double mean(const double *value, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += value[i];
    return sum / n;
}

/* The losses are numbers, and fall when there are enough steps to tell. */
static bool check_loss(const fe_demo *d, const fe_demo_result *r, char *why) {
    for (int i = 0; i < d->steps; i++) {
        if (isfinite(r->loss[i])) continue;
        snprintf(why, FE_DEMO_WHY, "the loss of step %d is %g", i + 1, r->loss[i]);
        return false;
    }
    int tenth = d->steps / 10;
    if (d->steps < FALL_FROM || mean(r->loss + d->steps - tenth, tenth) < mean(r->loss, tenth)) return true;
    snprintf(why, FE_DEMO_WHY, "the loss did not fall: %.3f bits per byte at first, %.3f at last", mean(r->loss, tenth),
             mean(r->loss + d->steps - tenth, tenth));
    return false;
}

static bool check_rows(const fe_demo *d, const fe_demo_result *r, char *why) {
    for (int layer = 0; layer < FE_DEMO_LAYERS; layer++) {
        for (int e = 0; e < E; e++) {
            uint64_t sent = 0;
            for (int rank = 0; rank < d->ranks; rank++) sent += r->sent[rank][layer][e];
            if (sent == r->received[layer][e]) continue;
            snprintf(why, FE_DEMO_WHY, "layer %d: %llu rows were sent to expert %d, and %llu arrived", layer,
                     (unsigned long long)sent, e, (unsigned long long)r->received[layer][e]);
            return false;
        }
    }
    return true;
}

bool fe_demo_check_run(const fe_demo *d, const fe_demo_result *r, char *why) {
    for (int rank = 1; rank < d->ranks; rank++) {
        if (r->dense_hash[rank] == r->dense_hash[0]) continue;
        snprintf(why, FE_DEMO_WHY, "the dense weights of rank %d (hash %016llx) differ from rank 0's (%016llx)", rank,
                 (unsigned long long)r->dense_hash[rank], (unsigned long long)r->dense_hash[0]);
        return false;
    }
    return check_rows(d, r, why) && check_loss(d, r, why);
}

static bool equal_samples(const fe_demo *d, char *why) {
    for (int s = 0; s < FE_DEMO_SHARDS; s++) {
        for (int i = 0; i < d->sample; i++) {
            if (d->many->sample[s][i] == d->one->sample[s][i]) continue;
            snprintf(why, FE_DEMO_WHY, "byte %d of sample %d is %d on %d ranks, and %d on 1 rank", i, s,
                     d->many->sample[s][i], d->ranks, d->one->sample[s][i]);
            return false;
        }
    }
    return true;
}

bool fe_demo_check_equal(const fe_demo *d, char *why) {
    const fe_demo_result *many = d->many, *one = d->one;
    for (int i = 0; i < d->steps; i++) {
        if (many->loss[i] == one->loss[i]) continue; /* all are numbers, none is 0: equal bits */
        snprintf(why, FE_DEMO_WHY, "the loss of step %d is %.17g on %d ranks, and %.17g on 1 rank", i + 1,
                 many->loss[i], d->ranks, one->loss[i]);
        return false;
    }
    if (many->held_out != one->held_out) return say(why, "the held-out losses of the two runs differ");
    if (many->dense_hash[0] != one->dense_hash[0]) return say(why, "the dense weights of the two runs differ");
    for (int e = 0; e < E; e++) {
        if (many->expert_hash[e] == one->expert_hash[e]) continue;
        snprintf(why, FE_DEMO_WHY, "the weights of expert %d (on rank %d of %d) differ from those of the 1-rank run", e,
                 many->expert_rank[e], d->ranks);
        return false;
    }
    return equal_samples(d, why);
}
