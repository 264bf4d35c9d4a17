#include "group/config.h"
#include "base/hash.h"
#include "base/structs.h"

#include <stddef.h>
#include <stdlib.h>

static ferry_status check_range(const char *name, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return FERRY_OK;
    return fe_fail(FERRY_INVALID, "group config: %s is %lld, allowed are %lld to %lld", name, (long long)value,
                   (long long)low, (long long)high);
}

static ferry_status check_row(const ferry_group_config *cfg) {
    size_t element = ferry_dtype_bytes(cfg->dtype ? cfg->dtype : FERRY_BF16);
    if (!element) return fe_fail(FERRY_INVALID, "group config: dtype is %d, which is no dtype", (int)cfg->dtype);
    FE_TRY(check_range("hidden", cfg->hidden, 1, 1 << 24));
    if ((size_t)cfg->hidden * element % 16 != 0)
        return fe_fail(FERRY_INVALID,
                       "group config: hidden %d of %zu bytes each is %zu bytes a row, not a multiple of 16",
                       cfg->hidden, element, (size_t)cfg->hidden * element);
    return FERRY_OK;
}

ferry_status fe_config_check(const ferry_group_config *cfg) {
    FE_CHECK_STRUCT(cfg, FERRY_MAGIC_GROUP_CONFIG, "group config");
    FE_TRY(check_range("device", cfg->device, FERRY_CPU, FERRY_CUDA));
    FE_TRY(check_range("experts", cfg->experts, 1, 1 << 20));
    FE_TRY(check_row(cfg));
    FE_TRY(check_range("max_tokens", cfg->max_tokens, 1, 1 << 24));
    FE_TRY(check_range("max_topk", cfg->max_topk, 1, FERRY_MAX_TOPK));
    FE_TRY(check_range("layouts", cfg->layouts, 0, FERRY_LAYOUT_RANK | FERRY_LAYOUT_EXPERT | FERRY_LAYOUT_SLOTS));
    FE_TRY(check_range("max_recv_rows", cfg->max_recv_rows, 0, INT32_MAX));
    FE_TRY(check_range("heap_bytes", cfg->heap_bytes, 0, (int64_t)1 << 46));
    FE_TRY(check_range("timeout_ms", cfg->timeout_ms, 0, 1 << 30));
    FE_TRY(check_range("threads", cfg->threads, 0, 1024));
    FE_TRY(check_range("sms", cfg->sms, 0, 4096));
    if (!cfg->expert_first != !cfg->expert_rank)
        return fe_fail(FERRY_INVALID, "group config: of expert_first and expert_rank only one is given");
    return FERRY_OK;
}

/* What ranks compare, in the order in which it is told. */
typedef struct digest {
    int64_t version, device, experts, hidden, max_tokens, max_topk, dtype, layouts, max_recv_rows, heap_bytes, copies,
        map;
} digest;

static const struct {
    const char *name;
    size_t offset;
} fields[] = {
    {"library version", offsetof(digest, version)},
    {"device", offsetof(digest, device)},
    {"experts", offsetof(digest, experts)},
    {"hidden", offsetof(digest, hidden)},
    {"max_tokens", offsetof(digest, max_tokens)},
    {"max_topk", offsetof(digest, max_topk)},
    {"dtype", offsetof(digest, dtype)},
    {"layouts", offsetof(digest, layouts)},
    {"max_recv_rows", offsetof(digest, max_recv_rows)},
    {"heap_bytes", offsetof(digest, heap_bytes)},
    {"expert_first[experts]", offsetof(digest, copies)},
    {"expert_first and expert_rank (their hash)", offsetof(digest, map)},
};

static digest digest_of(const ferry_group_config *cfg) {
    digest d = {.version = ferry_version(),
                .device = cfg->device,
                .experts = cfg->experts,
                .hidden = cfg->hidden,
                .max_tokens = cfg->max_tokens,
                .max_topk = cfg->max_topk,
                .dtype = cfg->dtype ? cfg->dtype : FERRY_BF16,
                .layouts = cfg->layouts,
                .max_recv_rows = cfg->max_recv_rows,
                .heap_bytes = cfg->heap_bytes};
    if (!cfg->expert_first) return d;
    d.copies = cfg->expert_first[cfg->experts];
    uint64_t map = fe_hash_words(FE_HASH_BEGIN, cfg->expert_first, (int64_t)cfg->experts + 1);
    d.map = (int64_t)fe_hash_words(map, cfg->expert_rank, d.copies);
    return d;
}

static int64_t field_of(const digest *d, size_t i) {
    int64_t value;
    memcpy(&value, (const char *)d + fields[i].offset, sizeof value);
    return value;
}

static ferry_status compare(const digest *all, int r, int first) {
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (field_of(&all[r], i) != field_of(&all[first], i))
            return fe_fail(FERRY_MISMATCH, "group config: %s is %lld on rank %d, %lld on rank %d", fields[i].name,
                           (long long)field_of(&all[r], i), r, (long long)field_of(&all[first], i), first);
    return FERRY_OK;
}

ferry_status fe_config_agree(const ferry_group_config *cfg, fe_boot *boot, int rank, int ranks, const uint8_t *who) {
    digest mine = digest_of(cfg), *all = calloc((size_t)ranks, sizeof *all);
    if (!all) return fe_fail(FERRY_NOMEM, "rank %d: no memory to meet %d ranks", rank, ranks);
    ferry_status status = fe_boot_allgather(boot, &mine, all, sizeof mine);
    int first = 0;
    while (who && !who[first]) first++; /* this rank is there at least */
    for (int r = first; status == FERRY_OK && r < ranks; r++)
        if (!who || who[r]) status = compare(all, r, first);
    free(all);
    return status;
}

ferry_status fe_config_same(const ferry_group_config *now, const ferry_group_config *wanted) {
    ferry_group_config without_map = *wanted; /* which may be read only when `experts` is right */
    without_map.expert_first = without_map.expert_rank = NULL;
    digest a = digest_of(now), b = digest_of(&without_map);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (field_of(&a, i) != field_of(&b, i))
            return fe_fail(FERRY_INVALID, "group config: %s is %lld, and was %lld when the group was made",
                           fields[i].name, (long long)field_of(&b, i), (long long)field_of(&a, i));
    return FERRY_OK;
}

uint64_t fe_config_hash(const ferry_group_config *cfg) {
    digest d = digest_of(cfg);
    return (uint64_t)d.map;
}
