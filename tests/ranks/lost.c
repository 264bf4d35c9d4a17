#include "ranks/lost.h"

#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

void nap_ms(int ms) {
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

bool open_group(rank_env *env, int timeout_ms, ferry_group **g) {
    ferry_group_config cfg = ranks_config(8, 16, 8, 2);
    cfg.timeout_ms = timeout_ms;
    cfg.heap_bytes = 1 << 16;
    return ranks_group(env, &cfg, g);
}

/* mask: bit r for each rank that must be masked, and no other. */
bool check_mask(rank_env *env, const ferry_group *g, unsigned mask) {
    uint8_t masked[CASE_RANKS];
    RANK_OK(env, ferry_group_mask_get(g, masked));
    for (int r = 0; r < ferry_group_ranks(g); r++)
        if (masked[r] != (mask >> r & 1)) return ranks_fail(env, "masked[%d] is %d", r, masked[r]);
    return true;
}

bool agree(rank_env *env, ferry_group *g, unsigned mask) {
    ranks_step(env, "ferry_group_agree");
    RANK_OK(env, ferry_group_agree(g, NULL, NULL));
    return check_mask(env, g, mask);
}

/* Everything but rows works among the ranks that are left: meetings, allocation, puts. */
bool check_space(rank_env *env, ferry_group *g, ferry_stream *stream) {
    uint8_t masked[RANKS];
    int32_t *word = NULL, mine = env->rank + 100, next = env->rank;
    int64_t *all = ranks_new(env, RANKS * sizeof *all), offset;
    for (int r = 0; r < env->ranks; r++) all[r] = -7;
    RANK_OK(env, ferry_group_error(g));
    RANK_OK(env, ferry_group_mask_get(g, masked));
    RANK_OK(env, ferry_heap_alloc(g, 300, (void **)&word));
    char *base = ferry_heap_ptr(g, word, env->rank);
    RANK_CHECK(env, base == (char *)word);
    do next = (next + 1) % env->ranks;
    while (masked[next]);
    RANK_OK(env, ferry_put(g, word, &mine, sizeof mine, next, NULL));
    RANK_OK(env, ferry_quiet(g));
    RANK_OK(env, ferry_barrier(g, stream));
    if (stream) RANK_OK(env, ferry_stream_sync(stream));
    all[env->rank] = env->rank * 11;
    RANK_OK(env, ferry_allgather(g, &all[env->rank], all, sizeof offset, NULL));
    for (int r = 0; r < env->ranks; r++) RANK_CHECK(env, all[r] == (masked[r] ? -7 : r * 11));
    for (int r = 0; r < env->ranks; r++) {
        if (!masked[r]) continue;
        RANK_STATUS(env, FERRY_INVALID, ferry_put(g, word, &mine, sizeof mine, r, NULL));
        RANK_CHECK(env, strstr(ferry_last_error(), "is masked"));
        RANK_STATUS(env, FERRY_INVALID, ferry_broadcast(g, all, 8, r, NULL));
        RANK_CHECK(env, ferry_heap_ptr(g, word, r) == NULL);
    }
    RANK_OK(env, ferry_heap_free(g, word));
    return true;
}

bool part(rank_env *env, ferry_group *g) {
    if (ranks_device() == FERRY_CUDA && !ranks_meet(env)) return false;
    ferry_group_destroy(g);
    return true;
}

bool be_gone(rank_env *env, end how, ferry_group *g) {
    if (how == LEAVES) {
        ferry_group_destroy(g);
        return true;
    }
    ranks_doom(env);
    kill(getpid(), how == KILLED ? SIGKILL : SIGSTOP);
    pause();
    return false;
}
