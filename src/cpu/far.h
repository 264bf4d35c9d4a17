/* The CPU device's part in steps over several hosts (docs/protocol.md, "Several hosts"). */
#ifndef FERRY_CPU_FAR_H
#define FERRY_CPU_FAR_H

#include "cpu/target.h"
#include "group/body.h"

/* Records on their way out: one box of the outbox for each other host. */
typedef struct fe_pack {
    const fe_far_route *far; /* NULL: all ranks are near */
    const fe_crew *crew;
    const fe_pass *pass;
    size_t stride;
    uint64_t epoch;
    fe_part part; /* which is being sent */
} fe_pack;

void fe_cpu_pack_open(fe_pack *pack, const fe_crew *crew, const fe_pass *pass);
/* A token's record for each host where it has a place. Any worker. */
void fe_cpu_pack(const fe_pack *pack, int64_t token, const char *row, const char *scales);
/* Hands the records of tokens [from, to) to the network: to each host in one write. */
ferry_status fe_cpu_push_records(const fe_pack *pack, int64_t from, int64_t to);
/* Says LANDED, of the part. */
ferry_status fe_cpu_pack_close(const fe_pack *pack);

/* In a column's rank: where the records of `host` land. */
static inline uint64_t fe_cpu_landing(const fe_far_route *far, int half, int host) {
    return far->boxes->landing[half] + (uint64_t)host * far->boxes->box_bytes;
}

/* Rows of this rank in each unit of `rank`. */
void fe_cpu_tail(const fe_route_data *route, int rank, int32_t *tail);

#endif
