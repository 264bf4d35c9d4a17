/* The model: traffic against counting by hand and by drawing, times that must rise and fall, files that must be refused. */
#include "model.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
/* cmocka wants these first */
#include <cmocka.h>

static fe_topology gpu(void) {
    return (fe_topology){.ranks_per_host = 8,
                         .near_gbps = 100,
                         .near_sum_gbps = 100,
                         .nic_gbps = 50,
                         .nics_per_rank = 1,
                         .nic_latency_us = 2,
                         .message_us = 0.01,
                         .write_bytes = 1 << 20,
                         .step_us = 10,
                         .latency_step_us = 20,
                         .sm_gbps = 50,
                         .sms = 132};
}

static const fe_shape shape = {.ranks = 16, .tokens = 1000, .hidden = 1024, .topk = 2, .experts = 32};

static void close_to(double wanted, double got, double by) {
    if (fabs(got - wanted) > by * fabs(wanted)) fail_msg("%g, not %g", got, wanted);
}

static void test_traffic_by_hand(void **state) {
    (void)state;
    fe_topology t = gpu();
    fe_traffic f = fe_model_traffic(&t, &shape);
    /* Two of 32 experts; 16 ranks of 2: the second is on the first one's rank in 1 of 31 cases, on its host in 15 of 31. */
    assert_int_equal(f.hosts, 2);
    assert_int_equal(f.local, 8);
    close_to(1000 * (2 - 1.0 / 31), f.all_rows, 1e-12);
    close_to(2 - 15.0 / 31, f.hosts_hit, 1e-12);
    close_to(1000 * (2 - 15.0 / 31) / 2, f.far_rows, 1e-12);
    close_to(1000 * (2 - 1.0 / 31) * 7 / 8, f.near_rows, 1e-12);
    fe_shape s = shape;
    s.per_expert = true;
    f = fe_model_traffic(&t, &s);
    close_to(1000, f.far_rows, 1e-12);
    close_to(1000 * 7.0 / 8, f.near_rows, 1e-12);
    s = shape;
    s.groups = 1; /* all of a token's experts on one host: half of the tokens cross */
    f = fe_model_traffic(&t, &s);
    close_to(1, f.hosts_hit, 1e-12);
    close_to(500, f.far_rows, 1e-12);
    s.ranks = 4096; /* more ranks than experts, and a group that has fewer experts than top-k */
    f = fe_model_traffic(&t, &s);
    close_to(2000, f.all_rows, 1e-12);
}

/* The same counted from the routes that a bench draws. */
static void test_traffic_as_drawn(void **state) {
    (void)state;
    enum { TOKENS = 4000, TOPK = 8, RANKS = 32, EXPERTS = 256 };
    fe_topology t = gpu();
    fe_shape s = {.ranks = RANKS, .tokens = TOKENS, .hidden = 16, .topk = TOPK, .experts = EXPERTS};
    fe_draw draw = {.seed = 5, .ranks = RANKS, .experts = EXPERTS, .topk = TOPK, .tokens = TOKENS};
    int64_t *ids = malloc(sizeof *ids * TOKENS * TOPK);
    float *weights = malloc(sizeof *weights * TOKENS * TOPK);
    assert_non_null(ids);
    assert_non_null(weights);
    assert_int_equal(fe_draw_routes(&draw, 0, ids, weights), 0);
    double rows = 0, far = 0;
    for (int i = 0; i < TOKENS; i++) {
        unsigned ranks = 0;
        for (int k = 0; k < TOPK; k++) ranks |= 1u << (ids[i * TOPK + k] * RANKS / EXPERTS);
        for (int r = 0; r < RANKS; r++) rows += ranks >> r & 1;
        for (int h = 1; h < RANKS / 8; h++) far += (ranks >> 8 * h & 255) != 0;
    }
    free(ids);
    free(weights);
    fe_traffic f = fe_model_traffic(&t, &s);
    close_to(rows, f.all_rows, 0.01);
    close_to(far, f.far_rows, 0.01);
}

static void test_times(void **state) {
    (void)state;
    fe_topology t = gpu();
    fe_prediction p = fe_model_predict(&t, &shape, false);
    fe_traffic f = fe_model_traffic(&t, &shape);
    close_to(f.near_rows * 2048 / 100e3, p.near_us, 1e-12);
    close_to(f.far_rows * 2048 / 50e3, p.nic_us, 1e-12);
    close_to(fmax(p.near_us, p.nic_us) + 12, p.us, 1e-12);
    assert_int_equal(p.bound, FE_BOUND_NEAR);
    double bf16 = p.us;
    fe_shape s = shape;
    s.fp8 = true;
    assert_true(fe_model_predict(&t, &s, false).us < bf16);
    close_to(bf16, fe_model_predict(&t, &s, true).us, 1e-12); /* rows come back as bf16 */
    t.nic_gbps = 10;
    assert_int_equal(fe_model_predict(&t, &shape, false).bound, FE_BOUND_NIC);
    assert_true(fe_model_rails(&t, &shape) > 1);
    t.proxy_us = 1e4;
    assert_int_equal(fe_model_predict(&t, &shape, false).bound, FE_BOUND_MESSAGES);
    t = gpu();
    assert_int_equal(fe_model_rails(&t, &shape), 0); /* near is the bound */
    s = shape;
    s.sms = 1;
    assert_int_equal(fe_model_predict(&t, &s, false).bound, FE_BOUND_SMS);
    int sms = fe_model_sms(&t, &shape);
    s.sms = sms;
    assert_true(sms > 1 && fe_model_predict(&t, &s, false).us < 1.021 * bf16);
    s.sms = sms - 1;
    assert_true(fe_model_predict(&t, &s, false).us > 1.02 * bf16 || fe_model_predict(&t, &s, true).us > 1.02 * bf16);
}

/* One machine's cores do everything: twice the ranks, twice the time; a second pretend host only adds to it. */
static void test_cores(void **state) {
    (void)state;
    fe_topology t = gpu();
    t.cores = 2;
    t.near_own = true;
    t.sm_gbps = t.step_us = 0;
    fe_shape s = shape;
    s.hosts = 1;
    s.per_expert = true;
    double one = fe_model_predict(&t, &s, false).us;
    s.ranks *= 2;
    close_to(2 * one, fe_model_predict(&t, &s, false).us, 1e-12);
    s.ranks /= 2;
    s.hosts = 2;
    assert_true(fe_model_predict(&t, &s, false).us > 1.5 * one);
}

static const char good_file[] =
    "{\"name\": \"x\", \"ranks_per_host\": 8, \"step_us\": 1, \"latency_step_us\": 1, "
    "\"near\": {\"gbps\": 100}, \"nic\": {\"gbps\": 50, \"latency_us\": 1, \"message_us\": 0}%s}";

static bool read_text(const char *text, fe_topology *t, char *why) {
    char path[] = "/tmp/ferry-model-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    bool good = fe_topology_read(path, t, why);
    unlink(path);
    return good;
}

static void test_files(void **state) {
    (void)state;
    fe_topology t;
    char text[1024], why[FE_MODEL_WHY];
    snprintf(text, sizeof text, good_file, "");
    assert_true(read_text(text, &t, why));
    assert_int_equal(t.ranks_per_host, 8);
    assert_true(t.near_sum_gbps == 100 && t.nics_per_rank == 1 && !t.near_own);
    static const struct {
        const char *more, *word;
    } bad[] = {{", \"cores\": \"two\"", "cores must be there, and a number"},
               {", \"proxy\": {\"comand_us\": 1}", "proxy.comand_us is not known"},
               {", \"sm\": {\"gbps\": 50}", "sm.gbps wants sm.count"},
               {", \"cores\": -1", "cores is -1"},
               {", \"colour\": 3", "colour is not known"},
               {", ", "is no JSON"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, good_file, bad[i].more);
        if (read_text(text, &t, why)) fail_msg("was accepted: %s", bad[i].more);
        if (!strstr(why, bad[i].word)) fail_msg("\"%s\" is not in: %s", bad[i].word, why);
    }
    assert_false(read_text("{\"ranks_per_host\": 8}", &t, why));
    assert_non_null(strstr(why, "step_us must be there"));
    assert_false(fe_topology_read("/not/there", &t, why));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_traffic_by_hand), cmocka_unit_test(test_traffic_as_drawn),
                                       cmocka_unit_test(test_times), cmocka_unit_test(test_cores),
                                       cmocka_unit_test(test_files)};
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
