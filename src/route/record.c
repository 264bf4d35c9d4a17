#include "route/record.h"

void fe_route_records(const fe_shape *shape, const fe_table *table, const fe_far_route *far) {
    int hosts = far->hosts->count;
    memset(far->kept_count, 0xff, (size_t)hosts * sizeof *far->kept_count); /* -1: nothing has come yet */
    memset(far->records, 0, (size_t)hosts * sizeof *far->records);
    memset(far->record, 0xff, (size_t)hosts * (size_t)shape->tokens * sizeof *far->record); /* -1 */
    for (int64_t t = 0; t < shape->tokens; t++) {
        const uint8_t *order = table->order + t * shape->topk;
        for (int i = 0; i < table->fan[t]; i++) {
            int host = fe_record_host(shape->map, far->hosts, table->home[t * shape->topk + order[i]]);
            int32_t *number = &far->record[(size_t)host * (size_t)shape->tokens + (size_t)t];
            if (*number < 0) *number = far->records[host]++;
        }
    }
}
