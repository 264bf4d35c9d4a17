#include "route/record.h"

static int host_of_choice(const fe_shape *shape, const fe_far_route *far, const int32_t *home, int choice) {
    return far->hosts->host_of[shape->map->home_rank[home[choice]]];
}

void fe_route_records(const fe_shape *shape, const fe_table *table, const fe_far_route *far) {
    int hosts = far->hosts->count;
    memset(far->kept_count, 0xff, (size_t)hosts * sizeof *far->kept_count); /* -1: nothing has come yet */
    memset(far->records, 0, (size_t)hosts * sizeof *far->records);
    memset(far->record, 0xff, (size_t)hosts * (size_t)shape->tokens * sizeof *far->record); /* -1 */
    for (int64_t t = 0; t < shape->tokens; t++) {
        const uint8_t *order = table->order + t * shape->topk;
        for (int i = 0; i < table->fan[t]; i++) {
            int host = host_of_choice(shape, far, table->home + t * shape->topk, order[i]);
            int32_t *number = &far->record[(size_t)host * (size_t)shape->tokens + (size_t)t];
            if (*number < 0) *number = far->records[host]++;
        }
    }
}

void fe_record_write(const fe_shape *shape, const fe_table *table, const fe_far_route *far, int host, int64_t token,
                     fe_record *r) {
    int topk = shape->topk;
    const int32_t *home = table->home + token * topk, *slot = table->slot + token * topk;
    const uint8_t *order = table->order + token * topk;
    int32_t *home_to = fe_record_home(r, topk), *slot_to = fe_record_slot(r, topk);
    r->token = (int32_t)token;
    r->fan = 0;
    for (int i = 0; i < table->fan[token]; i++)
        if (host_of_choice(shape, far, home, order[i]) == host) fe_record_order(r)[r->fan++] = order[i];
    for (int k = 0; k < topk; k++) {
        bool there = slot[k] >= 0 && host_of_choice(shape, far, home, k) == host;
        home_to[k] = there ? home[k] : -1;
        slot_to[k] = there ? slot[k] : -1;
    }
    if (table->weights) memcpy(fe_record_weight(r, topk), table->weights + token * topk, (size_t)topk * sizeof(float));
}

bool fe_record_sound(const fe_shape *shape, const fe_far_route *far, const fe_record *r) {
    int topk = shape->topk;
    const int32_t *home = fe_record_home(r, topk), *slot = fe_record_slot(r, topk);
    if (r->token < 0 || r->token >= shape->max_tokens || r->fan < 0 || r->fan > topk) return false;
    for (int k = 0; k < topk; k++) {
        if (slot[k] < 0 && home[k] < 0) continue;
        if (home[k] < 0 || home[k] >= shape->map->homes || slot[k] < 0 || slot[k] >= far->most_rows) return false;
        if (host_of_choice(shape, far, home, k) != far->hosts->mine) return false;
    }
    for (int i = 0; i < r->fan; i++)
        if (fe_record_order(r)[i] >= topk || slot[fe_record_order(r)[i]] < 0) return false;
    return true;
}
