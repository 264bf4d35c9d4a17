/* Prints predictions, advice, and what they are worth: errors against measured rows. */
#include "model.h"
#include "options.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const bounds[] = {"near", "NICs", "messages", "SMs", "cores"};

static int fail(const char *why) {
    fprintf(stderr, "ferry bench: %s\n", why);
    return FE_EXIT_FAILED;
}

static void print_prediction(const fe_topology *t, const fe_shape *s) {
    fe_traffic f = fe_model_traffic(t, s);
    fe_prediction there = fe_model_predict(t, s, false), back = fe_model_predict(t, s, true);
    int sms = fe_model_sms(t, s), rails = fe_model_rails(t, s);
    printf("%6d %6d %9.2f %9.2f %11.1f  %-9s %11.1f  %-9s", s->ranks, f.hosts, f.all_rows / s->tokens,
           f.hosts > 1 ? f.far_rows / s->tokens : 0, there.us, bounds[there.bound], back.us, bounds[back.bound]);
    if (sms) printf(" %5d", sms);
    if (rails) {
        fe_topology more = *t;
        more.nics_per_rank = rails;
        printf("  %d NICs a rank: %.1f and %.1f us", rails, fe_model_predict(&more, s, false).us,
               fe_model_predict(&more, s, true).us);
    }
    putchar('\n');
}

static void print_head(const fe_topology *t, const fe_shape *s, const char *at_least) {
    printf("%s: %d ranks a host; %s, %d tokens a rank, hidden %d, top-%d of %s%d experts", t->name, t->ranks_per_host,
           s->latency ? "LATENCY" : "THROUGHPUT", s->tokens, s->hidden, s->topk, at_least, s->experts);
    if (s->groups) printf(" on %d hosts at most", s->groups);
    printf(", %s, a row per %s\npredicted, not measured\n\n", s->fp8 ? "fp8 there and bf16 back" : "bf16",
           s->per_expert ? "expert" : "rank");
    printf("%6s %6s %9s %9s %11s  %-9s %11s  %-9s %s\n", "ranks", "hosts", "rows", "of far", "dispatch us", "bound",
           "combine us", "bound", t->sm_gbps > 0 ? "  SMs  rails" : "");
}

/* What is not said: 256, or one for each rank where there are more. */
static int experts_of(const fe_bench_options *o, int ranks) {
    return o->experts ? o->experts : ranks > 256 ? ranks : 256;
}

static void print_all(const fe_topology *t, const fe_shape *s, const fe_bench_options *o) {
    fe_shape one = *s;
    print_head(t, s, o->experts || s->ranks ? "" : "at least ");
    if (s->ranks) {
        print_prediction(t, s);
        fe_prediction p[2] = {fe_model_predict(t, s, false), fe_model_predict(t, s, true)};
        printf("\n%-10s %9s %9s %9s %9s %9s\n", "parts, us", "fixed", "near", "NICs", "messages", "SMs");
        for (int i = 0; i < 2; i++)
            printf("%-10s %9.1f %9.1f %9.1f %9.1f %9.1f\n", i ? "combine" : "dispatch", p[i].fixed_us, p[i].near_us,
                   p[i].nic_us, p[i].message_us, p[i].sm_us);
        return;
    }
    for (one.ranks = t->ranks_per_host; one.ranks <= FE_MODEL_RANKS; one.ranks *= 2) {
        one.experts = experts_of(o, one.ranks);
        print_prediction(t, &one);
        if (t->cores && one.ranks >= 4 * t->ranks_per_host) break; /* pretend hosts are few */
    }
}

/* Errors: predicted / measured - 1. */
static int print_errors(const fe_topology *t, const fe_measured *rows, int count, double within) {
    double sum = 0, worst = 0;
    int checked = 0, used = 0;
    printf("%-44s %-9s %11s %11s %8s  %-9s\n", t->name, "", "measured us", "model us", "error", "bound");
    for (int i = 0; i < 2 * count; i++) {
        const fe_measured *m = &rows[i / 2];
        if (m->us[i % 2] <= 0) continue;
        fe_prediction p = fe_model_predict(t, &m->shape, i % 2 == 1);
        double error = p.us / m->us[i % 2] - 1;
        printf("%-44s %-9s %11.1f %11.1f %+7.1f%%  %-9s%s\n", m->name, i % 2 ? "combine" : "dispatch", m->us[i % 2],
               p.us, 100 * error, bounds[p.bound], m->calibrates[i % 2] ? " calibrates" : "");
        if (m->calibrates[i % 2]) {
            used++;
            continue;
        }
        checked++;
        sum += fabs(error);
        worst = fmax(worst, fabs(error));
    }
    printf("\n%d of %d times were used to calibrate; error on the %d others: %.1f%% on average, %.1f%% at most\n", used,
           used + checked, checked, checked ? 100 * sum / checked : 0, 100 * worst);
    if (within <= 0 || 100 * worst <= within) return FE_EXIT_OK;
    printf("more than the %g%% of --within\n", within);
    return FE_EXIT_FAILED;
}

static int check(const fe_topology *t, const char *against, double within) {
    char why[FE_MODEL_WHY];
    fe_measured *rows;
    int count;
    if (!fe_measured_read(against, t, &rows, &count, why)) return fail(why);
    int status = print_errors(t, rows, count, within);
    free(rows);
    return status;
}

int fe_model_run(const fe_bench_options *o) {
    char why[FE_MODEL_WHY];
    fe_topology t;
    if (!fe_topology_read(o->topology, &t, why)) return fail(why);
    if (o->against) return check(&t, o->against, o->within);
    fe_shape s = {.ranks = o->ranks,
                  .tokens = o->tokens ? o->tokens
                            : o->mode ? 128
                                      : 4096,
                  .hidden = o->hidden,
                  .topk = o->topk ? o->topk : 8,
                  .experts = experts_of(o, o->ranks),
                  .groups = o->groups,
                  .sms = o->sms,
                  .latency = o->mode == 1,
                  .fp8 = o->dtype == 1 || o->cast,
                  .per_expert = o->layout != 0};
    if (s.topk > s.experts) return fail("--topk is more than --experts");
    print_all(&t, &s, o);
    return FE_EXIT_OK;
}
