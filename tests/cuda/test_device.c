/* ferry/device.cuh: what kernels of the caller's do with other ranks' memory, each function on four ranks that share a GPU. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "cuda/device_kernels.h"
#include "ranks/harness.h"
#include <stdio.h>

enum { RANKS = 4 };

#define CUDA_OK(env, call)                                                                                    \
    do {                                                                                                      \
        cudaError_t error_ = (call);                                                                          \
        if (error_ != cudaSuccess)                                                                            \
            return ranks_fail((env), "%s:%d: %s: %s", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
    } while (0)

typedef struct device_rank {
    rank_env *env;
    ferry_group *group;
    ferry_device_group handle;
    cudaStream_t stream;
    device_area *area;
    uint8_t *own;
    device_answer *answer;
} device_rank;

static bool open_rank(device_rank *d) {
    ferry_group_config cfg = ranks_config(RANKS, 16, 8, 1);
    void *area;
    cfg.heap_bytes = 1 << 20;
    if (!ranks_group(d->env, &cfg, &d->group)) return false;
    RANK_OK(d->env, ferry_heap_alloc(d->group, sizeof *d->area, &area));
    d->area = area;
    d->handle = FERRY_DEVICE_GROUP_INIT;
    RANK_OK(d->env, ferry_group_device(d->group, &d->handle));
    d->own = ranks_new(d->env, 4 * DEVICE_SPAN);
    d->answer = ranks_new(d->env, sizeof *d->answer);
    CUDA_OK(d->env, cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking));
    return true;
}

static bool close_rank(device_rank *d) {
    CUDA_OK(d->env, cudaStreamDestroy(d->stream));
    ferry_group_destroy(d->group);
    return true;
}

/* On areas that all have just filled. */
static bool launch(device_rank *d, device_kernel *kernel) {
    CUDA_OK(d->env, device_fill(&d->handle, d->area, d->own, d->answer, d->stream));
    CUDA_OK(d->env, cudaStreamSynchronize(d->stream));
    RANK_OK(d->env, ferry_barrier(d->group, NULL));
    CUDA_OK(d->env, kernel(&d->handle, d->area, d->own, d->answer, d->stream));
    return true;
}

static bool kernel_rank(rank_env *env) {
    device_rank d = {.env = env};
    if (!open_rank(&d) || !launch(&d, *(device_kernel **)env->arg)) return false;
    CUDA_OK(env, cudaStreamSynchronize(d.stream));
    if (d.answer->wrong) return ranks_fail(env, "checks of the kernel that failed: 0x%x", d.answer->wrong);
    RANK_OK(env, ferry_barrier(d.group, NULL)); /* before an area goes that another's kernel may read */
    return close_rank(&d);
}

/* A wait of the caller's own limit returns false then, and leaves the group as it is. */
static bool short_rank(rank_env *env) {
    device_rank d = {.env = env};
    if (!open_rank(&d) || !launch(&d, device_short_wait)) return false;
    CUDA_OK(env, cudaStreamSynchronize(d.stream));
    RANK_CHECK(env, d.answer->wrong == 0);
    RANK_CHECK(env, d.answer->waited_ns >= DEVICE_SHORT_NS && d.answer->waited_ns < 1000000000);
    RANK_OK(env, ferry_group_error(d.group));
    return close_rank(&d);
}

/* Kernels that wait for ever, by the group's deadline, are ended by ferry_group_abort of one rank. */
static bool abort_rank(rank_env *env) {
    device_rank d = {.env = env};
    if (!open_rank(&d) || !launch(&d, device_long_wait)) return false;
    RANK_CHECK(env, ranks_meet(env));
    RANK_CHECK(env, cudaStreamQuery(d.stream) == cudaErrorNotReady);
    RANK_CHECK(env, ranks_meet(env));
    int64_t begun = ranks_now_ms();
    if (env->rank == 1) ferry_group_abort(d.group);
    CUDA_OK(env, cudaStreamSynchronize(d.stream));
    RANK_CHECK(env, ranks_now_ms() - begun < 2000);
    RANK_CHECK(env, d.answer->wrong == 0);
    RANK_CHECK(env, ranks_meet(env));
    return close_rank(&d);
}

static void need_gpu(void) {
    if (ranks_device() == FERRY_CUDA) return;
    printf("SKIP the in-kernel API: FERRY_TEST_DEVICE is not cuda\n");
    fflush(stdout);
    skip();
}

static void check_kernel(device_kernel *kernel) {
    need_gpu();
    RANKS_ASSERT(RANKS_THREADS, RANKS, kernel_rank, &kernel);
}

static void test_put(void **state) {
    (void)state;
    check_kernel(device_puts);
}

static void test_get(void **state) {
    (void)state;
    check_kernel(device_gets);
}

static void test_put_signal(void **state) {
    (void)state;
    check_kernel(device_signals);
}

static void test_atomics(void **state) {
    (void)state;
    check_kernel(device_atomics);
}

static void test_barrier(void **state) {
    (void)state;
    check_kernel(device_barriers);
}

static void test_wait_with_a_limit(void **state) {
    (void)state;
    need_gpu();
    RANKS_ASSERT(RANKS_THREADS, RANKS, short_rank, NULL);
}

static void test_abort(void **state) {
    (void)state;
    need_gpu();
    RANKS_ASSERT(RANKS_THREADS, RANKS, abort_rank, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_put),     cmocka_unit_test(test_get),     cmocka_unit_test(test_put_signal),
        cmocka_unit_test(test_atomics), cmocka_unit_test(test_barrier), cmocka_unit_test(test_wait_with_a_limit),
        cmocka_unit_test(test_abort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
