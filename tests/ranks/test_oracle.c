/* The oracle against examples worked by hand: two ranks, two experts each, two tokens each, top-2. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/num.h"
#include "oracle/oracle.h"

/* Rank 0: token 0 to experts 0 and 1 (both on rank 0), token 1 to 3 (rank 1) twice.
 * Rank 1: token 0 to 2 and 0, token 1 to nobody and 1. */
static const int64_t idx[2][4] = {{0, 1, 3, 3}, {2, 0, -1, 1}};
static const float weights[2][4] = {{0.5f, 0.25f, 1, 2}, {3, 4, 5, 6}};
static const float rows[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {8, 9, 10, 11, 12, 13, 14, 15}};

static oracle *make(ferry_layout layout, ferry_mode mode, int alignment, int64_t expert_capacity,
                    int64_t rank_capacity) {
    oracle_config config = {.ranks = 2,
                            .experts = 4,
                            .topk = 2,
                            .max_tokens = 3,
                            .layout = layout,
                            .mode = mode,
                            .alignment = alignment,
                            .expert_capacity = expert_capacity,
                            .rank_capacity = rank_capacity,
                            .columns = 4,
                            .dtype = FERRY_FP32};
    oracle_tokens tokens[2];
    for (int r = 0; r < 2; r++) tokens[r] = (oracle_tokens){2, idx[r], weights[r], (const uint8_t *)rows[r], NULL};
    oracle *o = oracle_new(&config, tokens);
    assert_non_null(o);
    return o;
}

typedef struct expected {
    int source, token, local;
    int64_t slot;
    float weight;
} expected;

static void check_rows(const oracle *o, int rank, const expected *e, int n) {
    const oracle_rank *k = oracle_rank_of(o, rank);
    assert_int_equal(k->received, n);
    for (int i = 0; i < n; i++) {
        assert_int_equal(k->row[i].source, e[i].source);
        assert_int_equal(k->row[i].token, e[i].token);
        assert_int_equal(k->row[i].local, e[i].local);
        assert_int_equal(k->row[i].slot, e[i].slot);
        assert_true(k->row[i].weight == e[i].weight);
        float data[4];
        oracle_row_data(o, &k->row[i], (uint8_t *)data, NULL);
        assert_memory_equal(data, rows[e[i].source] + 4 * e[i].token, sizeof data);
    }
}

static void test_rank_layout(void **state) {
    (void)state;
    const expected zero[] = {{0, 0, -1, 0, 0}, {1, 0, -1, 1, 0}, {1, 1, -1, 2, 0}},
                   one[] = {{0, 1, -1, 0, 0}, {1, 0, -1, 1, 0}};
    oracle *o = make(FERRY_LAYOUT_RANK, FERRY_THROUGHPUT, 0, 0, 0);
    check_rows(o, 0, zero, 3);
    check_rows(o, 1, one, 2);
    const oracle_rank *k = oracle_rank_of(o, 0);
    int32_t local[2];
    float w[2];
    oracle_row_topk(o, 0, &k->row[1], local, w); /* rank 1's token 0 on rank 0: only its second choice */
    assert_true(local[0] == -1 && local[1] == 0 && w[0] == 0 && w[1] == 4);
    assert_true(k->counts[0] == 1 && k->counts[1] == 2 && k->starts[1] == 1 && k->rows == 3);
    assert_true(k->sent == 2 && k->rank_rows[0] == 1 && k->rank_rows[1] == 1);
    assert_true(k->expert_rows[0] == 2 && k->expert_rows[1] == 2);
    oracle_free(o);
    const expected fixed[] = {{0, 0, -1, 0, 0}, {1, 0, -1, 3, 0}, {1, 1, -1, 4, 0}};
    o = make(FERRY_LAYOUT_RANK, FERRY_LATENCY, 0, 0, 0);
    check_rows(o, 0, fixed, 3);
    oracle_free(o);
}

static void test_expert_layout(void **state) {
    (void)state;
    const expected zero[] = {{0, 0, 0, 0, 0.5f}, {1, 0, 0, 1, 4}, {0, 0, 1, 4, 0.25f}, {1, 1, 1, 5, 6}};
    const expected one[] = {{1, 0, 0, 0, 3}, {0, 1, 1, 4, 3}};
    oracle *o = make(FERRY_LAYOUT_EXPERT, FERRY_THROUGHPUT, 4, 0, 0);
    check_rows(o, 0, zero, 4);
    check_rows(o, 1, one, 2); /* the same expert twice: one row, weights 1 + 2 */
    const oracle_rank *k = oracle_rank_of(o, 0);
    assert_true(k->rows == 8 && k->expert_start[1] == 4 && k->counts[3] == 1 && k->starts[3] == 5);
    assert_int_equal(oracle_dropped(o), 0);
    oracle_free(o);
}

static void test_slots_layout(void **state) {
    (void)state;
    const expected packed[] = {{0, 0, 0, 0, 0.5f}, {1, 0, 0, 1, 4}, {0, 0, 1, 6, 0.25f}, {1, 1, 1, 7, 6}};
    const expected fixed[] = {{0, 0, 0, 0, 0.5f}, {1, 0, 0, 3, 4}, {0, 0, 1, 6, 0.25f}, {1, 1, 1, 9, 6}};
    oracle *o = make(FERRY_LAYOUT_SLOTS, FERRY_THROUGHPUT, 0, 0, 0);
    check_rows(o, 0, packed, 4);
    oracle_free(o);
    o = make(FERRY_LAYOUT_SLOTS, FERRY_LATENCY, 0, 0, 0);
    check_rows(o, 0, fixed, 4);
    assert_int_equal(oracle_rank_of(o, 0)->rows, 12);
    oracle_free(o);
}

static void test_capacities(void **state) {
    (void)state;
    const expected by_expert[] = {{0, 0, 0, 0, 0.5f}, {0, 0, 1, 1, 0.25f}},
                   by_rank[] = {{0, 0, 0, 0, 0.5f}, {1, 0, 0, 1, 4}, {0, 0, 1, 2, 0.25f}};
    oracle *o = make(FERRY_LAYOUT_EXPERT, FERRY_THROUGHPUT, 0, 1, 0);
    check_rows(o, 0, by_expert, 2);
    assert_true(oracle_rank_of(o, 1)->dropped == 2 && oracle_rank_of(o, 0)->refused == 2 && oracle_dropped(o) == 2);
    oracle_free(o);
    o = make(FERRY_LAYOUT_EXPERT, FERRY_THROUGHPUT, 0, 0, 3);
    check_rows(o, 0, by_rank, 3);
    assert_true(oracle_dropped(o) == 1 && oracle_rank_of(o, 0)->rows == 3);
    oracle_free(o);
}

/* Expert outputs: 100 * (rank + 1) + slot in every column. */
static void answer(void *context, int rank, int64_t slot, uint8_t *data) {
    (void)context;
    for (int i = 0; i < 4; i++) {
        float y = (float)(100 * (rank + 1) + slot);
        memcpy(data + 4 * i, &y, 4);
    }
}

static float weight_back(void *context, int rank, int64_t slot, int choice) {
    (void)context;
    return (float)(1000 * rank + 10 * slot + choice);
}

static void check_sum(const oracle *o, bool weighted, int source, int token, float wanted,
                      const float *wanted_weights) {
    oracle_combine m = {.columns = 4,
                        .in_type = FERRY_FP32,
                        .out_type = FERRY_FP32,
                        .weighted = weighted,
                        .weights = weights[source],
                        .row = answer,
                        .weight = weight_back};
    float out[4], back[2], scratch[8];
    oracle_combine_token(o, &m, source, token, (uint8_t *)out, back, scratch);
    for (int i = 0; i < 4; i++) assert_true(out[i] == wanted);
    assert_memory_equal(back, wanted_weights, sizeof back);
}

/* A row of one float for each rank, of which only the order tells the sum. */
static void answer_far_apart(void *context, int rank, int64_t slot, uint8_t *data) {
    static const float y[] = {1, 1e8f, -1e8f};
    (void)context, (void)slot;
    memcpy(data, &y[rank], sizeof y[rank]);
}

static void test_order(void **state) {
    (void)state;
    const int64_t choices[] = {0, 2, 4, 1}; /* ranks 0, 1, 2, 0 */
    const oracle_tokens tokens[3] = {{.tokens = 1, .topk_idx = choices}, {0}, {0}};
    for (int order = FERRY_ORDER_RANK; order <= FERRY_ORDER_CHOICE; order++) {
        oracle_config config = {.ranks = 3,
                                .experts = 6,
                                .topk = 4,
                                .max_tokens = 1,
                                .layout = FERRY_LAYOUT_RANK,
                                .columns = 4,
                                .dtype = FERRY_FP32,
                                .order = (ferry_order)order};
        oracle *o = oracle_new(&config, tokens);
        assert_non_null(o);
        oracle_combine m = {.columns = 1, .in_type = FERRY_FP32, .out_type = FERRY_FP32, .row = answer_far_apart};
        float out, scratch[2];
        oracle_combine_token(o, &m, 0, 0, (uint8_t *)&out, NULL, scratch);
        assert_true(out == (order == FERRY_ORDER_RANK ? 0 : 1)); /* (1 + 1e8) - 1e8, and (1e8 - 1e8) + 1 */
        oracle_free(o);
    }
}

static void test_combine(void **state) {
    (void)state;
    oracle *o = make(FERRY_LAYOUT_EXPERT, FERRY_THROUGHPUT, 0, 0, 0); /* rank 0: slots 0..3, rank 1: slots 0, 1 */
    check_sum(o, false, 0, 0, 100 + 102, (float[]){0, 21});
    check_sum(o, false, 0, 1, 201, (float[]){1010, 1011}); /* twice the same expert: added once */
    check_sum(o, true, 0, 1, 3 * 201, (float[]){1010, 1011});
    check_sum(o, true, 1, 1, 6 * 103, (float[]){0, 31});
    oracle_free(o);
    o = make(FERRY_LAYOUT_RANK, FERRY_THROUGHPUT, 0, 0, 0);
    check_sum(o, false, 0, 0, 100, (float[]){0, 1}); /* both experts on one rank: one row */
    check_sum(o, true, 0, 0, 75, (float[]){0, 1});
    oracle_free(o);
}

static void test_copies_take_turns(void **state) {
    (void)state;
    static const int32_t first[] = {0, 2, 3}, rank[] = {1, 0, 1};
    static const int64_t choices[3] = {0, 0, 0};
    oracle_config config = {.ranks = 2,
                            .experts = 2,
                            .topk = 1,
                            .max_tokens = 3,
                            .expert_first = first,
                            .expert_rank = rank,
                            .layout = FERRY_LAYOUT_RANK,
                            .columns = 4,
                            .dtype = FERRY_FP32};
    oracle_tokens tokens[2] = {{3, choices, NULL, NULL, NULL}, {3, choices, NULL, NULL, NULL}};
    oracle *o = oracle_new(&config, tokens);
    int64_t slot;
    assert_non_null(o);
    for (int s = 0; s < 2; s++) /* (source + token) mod 2: copy 0 is on rank 1, copy 1 on rank 0 */
        for (int t = 0; t < 3; t++) assert_int_equal(oracle_place(o, s, t, 0, &slot), (s + t) % 2 == 0 ? 1 : 0);
    assert_int_equal(oracle_rank_of(o, 0)->local_experts, 1);
    assert_int_equal(oracle_rank_of(o, 1)->local_experts, 2);
    oracle_free(o);
}

static void test_casts(void **state) {
    (void)state;
    uint16_t row[144];
    uint8_t data[144];
    for (int i = 0; i < 144; i++) row[i] = fe_bf16_from_f32(i < 128 ? (float)(i - 64) : 0);
    static const int64_t zero = 0;
    oracle_config config = {.ranks = 1,
                            .experts = 1,
                            .topk = 1,
                            .max_tokens = 1,
                            .layout = FERRY_LAYOUT_RANK,
                            .columns = 144,
                            .dtype = FERRY_BF16};
    oracle_tokens tokens = {1, &zero, NULL, (const uint8_t *)row, NULL};
    for (int cast = FERRY_CAST_E4M3; cast <= FERRY_CAST_E4M3_UE8M0; cast++) {
        config.cast = (ferry_cast)cast;
        oracle *o = oracle_new(&config, &tokens);
        assert_non_null(o);
        float scales[2] = {0, 0};
        assert_int_equal(oracle_row_bytes(o), 144);
        assert_int_equal(oracle_scale_bytes(o), cast == FERRY_CAST_E4M3_UE8M0 ? 4 : 8);
        oracle_row_data(o, oracle_rank_of(o, 0)->row, data, (uint8_t *)scales);
        if (cast == FERRY_CAST_E4M3) assert_true(scales[0] == 64.0f / 448.0f && scales[1] == 1e-4f / 448.0f);
        if (cast == FERRY_CAST_E4M3_POW2) assert_true(scales[0] == 0.25f && scales[1] == 0x1p-22f);
        if (cast == FERRY_CAST_E4M3_UE8M0)
            assert_true(((uint8_t *)scales)[0] == 125 && ((uint8_t *)scales)[1] == 105 && ((uint8_t *)scales)[2] == 0);
        assert_int_equal(data[64], 0);
        assert_int_equal(data[0], cast == FERRY_CAST_E4M3 ? 0xfe : 0xf8); /* -448, and -64 / 0.25 = -256 */
        oracle_free(o);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rank_layout),       cmocka_unit_test(test_expert_layout),
        cmocka_unit_test(test_slots_layout),      cmocka_unit_test(test_capacities),
        cmocka_unit_test(test_combine),           cmocka_unit_test(test_order),
        cmocka_unit_test(test_copies_take_turns), cmocka_unit_test(test_casts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
