/* The formulas. All quantities are of one rank, on average over random routing; ranks are alike. */
#include "model.h"
#include <math.h>

/* The expected number of `parts` (each with experts/parts of them) that `topk` different experts touch. */
static double touched(double experts, double parts, int topk) {
    if (parts > experts) parts = experts; /* the others have none */
    double missed = 1, part = experts / parts;
    for (int i = 0; i < topk; i++) missed *= fmax(0, experts - part - i) / fmax(1, experts - i);
    return parts * (1 - missed);
}

fe_traffic fe_model_traffic(const fe_topology *t, const fe_shape *s) {
    fe_traffic f = {.hosts = s->hosts ? s->hosts : (s->ranks + t->ranks_per_host - 1) / t->ranks_per_host};
    f.local = (s->ranks + f.hosts - 1) / f.hosts;
    double groups = s->groups > 0 && s->groups < f.hosts ? s->groups : f.hosts,
           least = (double)s->topk * f.hosts / s->experts;
    if (groups < least) groups = fmin(f.hosts, ceil(least)); /* as many as have top-k experts */
    double experts = s->experts * groups / f.hosts; /* that a token can choose from, once its hosts are drawn */
    double ranks_hit = touched(experts, groups * f.local, s->topk), tokens = s->tokens;
    double elsewhere = 1 - 1.0 / f.hosts, beside = t->near_own ? 1 : 1 - 1.0 / f.local;
    f.hosts_hit = touched(experts, groups, s->topk);
    if (s->per_expert) { /* each row straight to its expert's rank */
        f.all_rows = tokens * s->topk;
        f.far_rows = f.all_rows * elsewhere;
        f.near_rows = f.all_rows * (1 - elsewhere) * beside;
        return f;
    }
    /* One row per host crosses, to the rank there with the sender's local index, which writes it to all ranks of its host that want it:
     * of those it is itself one in `local`. What a rank fans out for others is on average what others fan out for it. */
    f.all_rows = tokens * ranks_hit;
    f.far_rows = tokens * f.hosts_hit * elsewhere;
    f.near_rows = f.all_rows * beside;
    return f;
}

double fe_model_row_bytes(const fe_shape *s, bool combine) {
    int scales = (s->hidden + 127) / 128; /* floats */
    return combine || !s->fp8 ? 2.0 * s->hidden : s->hidden + 4.0 * scales;
}

/* Writes that a rank posts: in THROUGHPUT batches to the one rank of each other host, in LATENCY rows and counts to every far rank. */
static double writes(const fe_topology *t, const fe_shape *s, const fe_traffic *f, double row) {
    if (f->hosts == 1) return 0;
    if (s->latency) return 2.0 * (s->ranks - f->local);
    return (f->hosts - 1) * fmax(1, ceil(f->far_rows * row / (f->hosts - 1) / t->write_bytes));
}

/* What takes longest; the others go on beside it. */
static void find_bound(fe_prediction *p) {
    const double part[] = {p->near_us, p->nic_us, p->message_us, p->sm_us};
    for (int i = 0; i < 4; i++) {
        if (part[i] <= p->us) continue;
        p->us = part[i];
        p->bound = (fe_bound)i;
    }
}

/* Pretend hosts: whatever is done, one of the few cores does it, for all ranks. A byte that crosses takes a core's time at both ends. */
static void share_cores(const fe_topology *t, const fe_shape *s, fe_prediction *p) {
    p->us = (p->near_us + 2 * p->nic_us + p->message_us) * s->ranks / t->cores;
    p->bound = FE_BOUND_CORES;
}

fe_prediction fe_model_predict(const fe_topology *t, const fe_shape *s, bool combine) {
    fe_traffic f = fe_model_traffic(t, s);
    double row = fe_model_row_bytes(s, combine), gbps = combine ? t->near_sum_gbps : t->near_gbps;
    bool cached = 2 * f.all_rows * row <= t->cache_bytes; /* read and written */
    if (cached && t->cached_gbps > 0) gbps = t->cached_gbps;
    double packed = s->latency || f.hosts == 1 ? 0 : f.far_rows; /* rows are put together before they cross */
    double crossed = f.hosts == 1 ? 0 : t->nic_latency_us, posted = fmax(t->message_us, t->proxy_us);
    double sums = combine && t->near_own ? s->tokens : 0; /* written to the memory that rows are read from */
    fe_prediction p = {.near_us = (f.near_rows + sums) * row / gbps / 1e3,
                       .nic_us = f.far_rows * row / (t->nic_gbps * t->nics_per_rank) / 1e3,
                       .message_us = writes(t, s, &f, row) * posted};
    if (t->cores) p.near_us += packed * row / t->near_gbps / 1e3;
    if (t->sm_gbps > 0) p.sm_us = (f.all_rows + packed) * row / (t->sm_gbps * (s->sms ? s->sms : t->sms)) / 1e3;
    p.fixed_us = (s->latency ? t->latency_step_us : t->step_us) + crossed;
    if (t->cores)
        share_cores(t, s, &p);
    else
        find_bound(&p);
    p.us += p.fixed_us;
    return p;
}

static double both(const fe_topology *t, const fe_shape *s) {
    return fe_model_predict(t, s, false).us + fe_model_predict(t, s, true).us;
}

int fe_model_sms(const fe_topology *t, const fe_shape *s) {
    fe_shape some = *s;
    if (t->sm_gbps <= 0) return 0;
    some.sms = t->sms;
    double dispatch = fe_model_predict(t, &some, false).us, combine = fe_model_predict(t, &some, true).us;
    for (some.sms = 1; some.sms < t->sms; some.sms++)
        if (fe_model_predict(t, &some, false).us <= 1.02 * dispatch &&
            fe_model_predict(t, &some, true).us <= 1.02 * combine)
            break;
    return some.sms;
}

int fe_model_rails(const fe_topology *t, const fe_shape *s) {
    fe_topology more = *t;
    int now = (int)fmax(1, floor(t->nics_per_rank)), rails = now;
    if (t->cores || fe_model_traffic(t, s).hosts == 1) return 0;
    for (double before = both(t, s);; rails++) {
        more.nics_per_rank = rails + 1;
        double after = both(&more, s);
        if (after > 0.95 * before) break;
        before = after;
    }
    return rails > now ? rails : 0;
}
