/* mpi.c - Ferry inside an MPI program: MPI_Allgather introduces the ranks, and MPI's calls and Ferry's take turns.
 *
 *     mpicc -std=c11 mpi.c -o mpi $(pkg-config --cflags --libs ferry)
 *     mpirun -n 4 ./mpi
 *
 * Expert e adds e + 1 to a row. Every rank sends its tokens to two experts and gets their sum back, so the right answer is known:
 * a token of value x that went to a and b comes back as 2 x + a + b + 2. In each step MPI sums what Ferry brought. */
#include <ferry/ferry.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { EXPERTS = 8, TOKENS = 16, TOPK = 2, HIDDEN = 32, STEPS = 5 };

typedef struct member {
    MPI_Comm comm;
    int rank, ranks;
    ferry_group *group;
    int32_t choice[TOKENS][TOPK];
    float x[TOKENS][HIDDEN], y[TOKENS][HIDDEN];
} member;

#define TRY(call)                                                                                   \
    do {                                                                                            \
        ferry_status status_ = (call);                                                              \
        if (status_ != FERRY_OK) {                                                                  \
            fprintf(stderr, "%s: %s: %s\n", #call, ferry_status_name(status_), ferry_last_error()); \
            return false;                                                                           \
        }                                                                                           \
    } while (0)

/* All that Ferry asks of MPI. It is called while the group is made, and never afterwards. */
static int allgather(void *context, const void *mine, void *all, size_t bytes) {
    const MPI_Comm *comm = context;
    return MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, *comm);
}

static bool join(member *m) {
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    cfg.experts = EXPERTS;
    cfg.hidden = HIDDEN;
    cfg.dtype = FERRY_FP32;
    cfg.max_tokens = TOKENS;
    cfg.max_topk = TOPK;
    cfg.threads = 1;
    TRY(ferry_group_create_with(allgather, &m->comm, m->rank, m->ranks, &cfg, &m->group));
    return true;
}

static void draw(member *m, int step) {
    for (int t = 0; t < TOKENS; t++) {
        m->choice[t][0] = (m->rank + t + step) % EXPERTS;
        m->choice[t][1] = (m->rank + 3 * t + step + 1 + (t % 2)) % EXPERTS;
        if (m->choice[t][1] == m->choice[t][0]) m->choice[t][1] = (m->choice[t][0] + 1) % EXPERTS;
        for (int c = 0; c < HIDDEN; c++) m->x[t][c] = (float)(m->rank + t + step);
    }
}

static void run_experts(const member *m, const ferry_route_info *info, const float *x, float *y) {
    const int32_t *expert;
    int experts = ferry_group_local_experts(m->group, m->rank, &expert);
    for (int e = 0; e < experts; e++)
        for (int64_t i = info->expert_start[e] * HIDDEN; i < (info->expert_start[e] + info->expert_rows[e]) * HIDDEN;
             i++)
            y[i] = x[i] + (float)(expert[e] + 1);
}

/* There and back. *rows: how many came here. */
static bool carry(member *m, ferry_route *route, int64_t *rows) {
    ferry_route_info info = FERRY_ROUTE_INFO_INIT;
    ferry_dispatch_in in = FERRY_DISPATCH_IN_INIT;
    ferry_dispatch_out out = FERRY_DISPATCH_OUT_INIT;
    ferry_combine_in back = FERRY_COMBINE_IN_INIT;
    ferry_combine_out result = FERRY_COMBINE_OUT_INIT;
    in.rows = ferry_tensor_2d(m->x, FERRY_FP32, TOKENS, HIDDEN);
    result.rows = ferry_tensor_2d(m->y, FERRY_FP32, TOKENS, HIDDEN);
    TRY(ferry_route_get_info(route, &info));
    TRY(ferry_dispatch(route, &in, &out, NULL, NULL));
    TRY(ferry_combine_buffer(route, FERRY_FP32, HIDDEN, &back.rows, NULL));
    run_experts(m, &info, out.rows.data, back.rows.data);
    MPI_Barrier(m->comm); /* not needed: it shows that the two do not get into each other's way */
    TRY(ferry_combine(route, &back, &result, NULL, NULL));
    *rows = 0;
    for (int e = 0; e < ferry_group_local_experts(m->group, m->rank, NULL); e++) *rows += info.expert_rows[e];
    return true;
}

static int wrong_tokens(const member *m) {
    int wrong = 0;
    for (int t = 0; t < TOKENS; t++) {
        float right = 2 * m->x[t][0] + (float)(m->choice[t][0] + m->choice[t][1] + 2);
        bool good = true;
        for (int c = 0; c < HIDDEN; c++) good = good && m->y[t][c] == right;
        wrong += !good;
    }
    return wrong;
}

static bool take_step(member *m, int step) {
    ferry_route_config cfg = FERRY_ROUTE_CONFIG_INIT;
    ferry_route *route;
    draw(m, step);
    cfg.topk_idx = ferry_tensor_2d(m->choice, FERRY_INT32, TOKENS, TOPK);
    cfg.layout = FERRY_LAYOUT_EXPERT;
    TRY(ferry_route_create(m->group, &cfg, &route, NULL));
    int64_t mine[2], all[2];
    bool good = carry(m, route, &mine[0]);
    ferry_route_destroy(route);
    if (!good) return false;
    mine[1] = wrong_tokens(m);
    MPI_Allreduce(mine, all, 2, MPI_INT64_T, MPI_SUM, m->comm);
    if (m->rank == 0)
        printf("step %d: %d rows carried among %d ranks, %d tokens wrong\n", step, (int)all[0], m->ranks, (int)all[1]);
    return all[0] == (int64_t)m->ranks * TOKENS * TOPK && all[1] == 0;
}

int main(int argc, char **argv) {
    static member m;
    bool good = MPI_Init(&argc, &argv) == MPI_SUCCESS;
    m.comm = MPI_COMM_WORLD;
    MPI_Comm_rank(m.comm, &m.rank);
    MPI_Comm_size(m.comm, &m.ranks);
    good = good && join(&m);
    for (int step = 0; good && step < STEPS; step++) good = take_step(&m, step);
    if (!good) MPI_Abort(m.comm, 1); /* as MPI's own errors do: the others may be waiting */
    ferry_group_destroy(m.group);
    MPI_Finalize();
    return 0;
}
