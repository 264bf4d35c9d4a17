/* Dispatch from other hosts: what this rank's column has sent lies in the landing, and is handed on to the ranks here. A warp
 * takes a record. */
#include "cuda/launch.cuh"
#include "cuda/record.cuh"
#include "cuda/scatter.cuh"

#define WARPS 16

/* ---- what a receiver learns of a row ---- */

/* RANK: for which of the receiver's experts, with what weight. A lane is a choice. */
FE_DEVICE void write_ids(const fe_cuda_args &a, const fe_board &b, const fe_record *r, int rank, int slot) {
    int topk = a.route.shape.topk;
    const fe_map &map = a.world.map;
    int32_t *ids = (int32_t *)fe_board_at(b, rank, FE_AT_IDS) + (size_t)slot * topk;
    float *weights = (float *)fe_board_at(b, rank, FE_AT_WEIGHTS) + (size_t)slot * topk;
    for (int k = fe_lane(); k < topk; k += FE_WARP) {
        int32_t home = fe_record_home(r, topk)[k];
        bool here = fe_record_slot(r, topk)[k] >= 0 && map.home_rank[home] == rank;
        ids[k] = here ? home - map.rank_first[rank] : -1;
        if (a.route.table.weights) weights[k] = here ? fe_record_weight(r, topk)[k] : 0;
    }
}

/* EXPERT, SLOTS: the sum, in choice order, of the token's weights for the choice's expert. One lane. */
FE_DEVICE void write_weight(const fe_cuda_args &a, const fe_board &b, const fe_record *r, int rank, int choice) {
    int topk = a.route.shape.topk;
    const int32_t *home = fe_record_home(r, topk);
    float sum = 0;
    for (int k = choice; k < topk; k++)
        if (home[k] == home[choice]) sum = __fadd_rn(sum, fe_record_weight(r, topk)[k]);
    ((float *)fe_board_at(b, rank, FE_AT_WEIGHTS))[fe_record_slot(r, topk)[choice]] = fe_f32_canonical(sum);
}

FE_DEVICE void write_topk(const fe_cuda_args &a, const fe_board &b, int source, const fe_record *r) {
    const fe_shape &s = a.route.shape;
    for (int i = 0; s.layout == FERRY_LAYOUT_RANK && i < r->fan; i++) {
        int choice = fe_record_order(r)[i];
        write_ids(a, b, r, a.world.map.home_rank[fe_record_home(r, s.topk)[choice]], fe_record_slot(r, s.topk)[choice]);
    }
    for (int i = fe_lane(); i < r->fan; i += FE_WARP) {
        int choice = fe_record_order(r)[i], rank = a.world.map.home_rank[fe_record_home(r, s.topk)[choice]];
        ((int32_t *)(b.space[rank] + a.pass.scatter.source_at))[fe_record_slot(r, s.topk)[choice]] =
            (int32_t)(source * (int64_t)s.max_tokens + r->token);
        if (s.layout != FERRY_LAYOUT_RANK && a.route.table.weights) write_weight(a, b, r, rank, choice);
    }
}

/* ---- records ---- */

/* Lane i's is the place of the record's row number first + i. */
FE_DEVICE fe_cuda_place place_of(const fe_cuda_args &a, const fe_record *r, int first) {
    int topk = a.route.shape.topk, i = first + fe_lane();
    fe_cuda_place at = {-1, -1};
    if (i >= r->fan) return at;
    int choice = fe_record_order(r)[i];
    at.rank = a.world.map.home_rank[fe_record_home(r, topk)[choice]];
    at.slot = fe_record_slot(r, topk)[choice];
    return at;
}

/* One whole warp: do its places exist? */
FE_DEVICE bool is_sound(const fe_cuda_args &a, const fe_board &b, const fe_record *r) {
    bool good = fe_record_sound(&a.route.shape, &a.world.map, &a.world.hosts, a.route.far.most_rows, r);
    if (!__all_sync(FE_ALL, good)) return false;
    for (int first = 0; first < r->fan; first += FE_WARP) {
        fe_cuda_place at = place_of(a, r, first);
        if (at.slot >= 0 && at.slot >= fe_room_at(b.note[at.rank].word, &a.route.shape, &a.pass.scatter,
                                                  a.route.table.weights != NULL, a.world.space_bytes))
            good = false;
    }
    return __all_sync(FE_ALL, good);
}

/* The row goes from the landing to all of its places at once, up to 32 of them. */
FE_DEVICE void hand_on(const fe_cuda_args &a, const fe_board &b, int unit, int source, const fe_record *r,
                       const char *row) {
    const fe_scatter &s = a.pass.scatter;
    for (int first = 0; first < r->fan; first += FE_WARP) {
        fe_cuda_place to = place_of(a, r, first);
        uint32_t places = __ballot_sync(FE_ALL, to.slot >= 0);
        fe_copy_by(unit, to.slot >= 0 ? fe_row_to(b, to) : NULL, places, row, 0, (int)s.row_bytes);
        char *scales = to.slot >= 0 ? fe_scales_to(b, to) : NULL;
        for (int i = fe_lane(); i - fe_lane() < (int)(s.scale_bytes / 4); i += FE_WARP) {
            bool mine = i < (int)(s.scale_bytes / 4);
            uint32_t word = mine ? ((const uint32_t *)(row + s.row_bytes))[i] : 0;
            for (uint32_t left = places; left; left &= left - 1) {
                uint32_t *dst = (uint32_t *)fe_of_lane(scales, __ffs((int)left) - 1);
                if (mine) dst[i] = word;
            }
        }
    }
    if (s.topk) write_topk(a, b, source, r);
}

/* The first dispatch of a route keeps what combine needs; later ones bring the same. */
FE_DEVICE void keep(const fe_cuda_args &a, int host, int number, const char *header) {
    const fe_far_route &far = a.route.far;
    if (far.kept_count[host] >= 0) return;
    fe_copy_bytes((char *)fe_record_kept(&far, a.route.shape.max_tokens, host, number), header, far.header);
}

/* One whole warp. false: it is nonsense. */
FE_DEVICE bool take_record(const fe_cuda_args &a, const fe_board &b, int unit, int host, int number, char *bench) {
    const fe_far_route &far = a.route.far;
    size_t stride = fe_record_stride(far.header, a.pass.scatter.row_bytes, a.pass.scatter.scale_bytes);
    const char *landed = a.world.boxed + fe_landing(a, host) + a.world.boxes.tail_bytes + (size_t)number * stride;
    fe_copy_bytes(bench, landed,
                  far.header); /* what is checked is what is used, whatever the network writes meanwhile */
    __syncwarp();
    bool good = is_sound(a, b, (const fe_record *)bench);
    if (good) {
        keep(a, host, number, bench);
        hand_on(a, b, unit, fe_column(a.world, host), (const fe_record *)bench, landed + far.header);
    }
    __syncwarp();
    return good;
}

/* ---- notes ---- */

FE_DEVICE int64_t records_from(const fe_cuda_args &a, int host) {
    const fe_cuda_world &w = a.world;
    if (host == w.hosts.mine || fe_host_masked(w, host)) return 0;
    const fe_cell *cell = fe_cells_here(w, FE_LANDED, a.pass.half) + fe_column(w, host);
    return (int64_t) * (const volatile uint64_t *)&cell->word[FE_LANDED_RECORDS];
}

/* Whole block. Fills count; false: a host's is none. */
FE_DEVICE bool count_records(const fe_cuda_args &a, int32_t *count) {
    int liar = -1;
    for (int h = (int)threadIdx.x; h < a.world.hosts.count; h += (int)blockDim.x) {
        int64_t records = records_from(a, h);
        count[h] = (int32_t)records;
        if (records < 0 || records > a.route.shape.max_tokens) liar = h;
    }
    if (liar >= 0) fe_refuse(a, fe_column(a.world, liar));
    return !__syncthreads_or(liar >= 0);
}

/* One whole warp. Fixed slots: the counts that came before the records, to where a near sender would have written them. */
FE_DEVICE bool hand_on_tails(const fe_cuda_args &a, int host) {
    const fe_cuda_world &w = a.world;
    int width = w.map.most_local, source = fe_column(w, host);
    const volatile int32_t *tails = (const volatile int32_t *)(w.boxed + fe_landing(a, host));
    bool good = true;
    for (int i = fe_lane(); i < w.hosts.each * width; i += FE_WARP) {
        int32_t count = tails[i];
        int32_t *to = (int32_t *)(w.post[fe_hosts_rank(&w.hosts, w.hosts.mine, i / width)] + a.pass.scatter.tails_at);
        good = good && count >= 0 && count <= a.route.shape.max_tokens;
        to[((size_t)a.pass.half * w.ranks + source) * width + i % width] = good ? count : 0;
    }
    return __all_sync(FE_ALL, good);
}

/* The last warp of all. count: records of each host. On behalf of each of the column, to every rank here. */
FE_DEVICE void say_rows(const fe_cuda_args &a, const int32_t *count, uint64_t epoch) {
    const fe_cuda_world &w = a.world;
    for (int h = 0; h < w.hosts.count; h++) {
        int source = fe_column(w, h);
        if (h == w.hosts.mine || fe_host_masked(w, h)) continue;
        if (fe_slots_fixed(&a.route.shape) && !hand_on_tails(a, h)) {
            if (fe_lane() == 0) fe_refuse(a, source);
            return;
        }
        if (fe_lane() == 0 && a.route.far.kept_count[h] < 0) a.route.far.kept_count[h] = count[h];
        __syncwarp();
        if (fe_lane() == 0) __threadfence_system(); /* the other lanes' tails, before any lane's note */
        __syncwarp();
        for (int i = fe_lane(); i < w.hosts.each; i += FE_WARP) {
            int owner = fe_hosts_rank(&w.hosts, w.hosts.mine, (w.hosts.index + 1 + i) % w.hosts.each);
            fe_cell *cell = fe_cell_of(w, owner, FE_ROWS, a.pass.half, source);
            for (int k = 0; k < FE_CELL_WORDS; k++) cell->word[k] = 0;
            fe_release(&cell->epoch, fe_whole_epoch(a, epoch));
        }
        __syncwarp();
    }
}

namespace ferry {
__global__ void __launch_bounds__(WARPS *FE_WARP, 1) fan_out(const __grid_constant__ fe_cuda_args a) {
    __shared__ __align__(16) char bench[WARPS][FE_RECORD_BENCH];
    __shared__ int32_t count[FERRY_MAX_RANKS]; /* of each host */
    const fe_scatter &s = a.pass.scatter;
    int warp = (int)threadIdx.x / FE_WARP, warps = (int)(blockDim.x / FE_WARP), host = 0;
    int64_t before = 0, unsound = -1; /* records of the hosts before; 1 + the host that sent nonsense */
    uint64_t epoch;
    if (!fe_open(a, &epoch)) return;
    fe_board b = fe_board_of(a, FE_READY);
    if (!count_records(a, count)) return;
    int unit = fe_scatter_unit(a, b, (unsigned)s.row_bytes, false);
    for (int64_t i = (int64_t)blockIdx.x * warps + warp;; i += (int64_t)gridDim.x * warps) {
        while (host < a.world.hosts.count && i >= before + count[host]) before += count[host++];
        if (host == a.world.hosts.count) break;
        if (take_record(a, b, unit, host, (int)(i - before), bench[warp])) continue;
        unsound = host;
        break;
    }
    if (unsound >= 0 && fe_lane() == 0) fe_refuse(a, fe_column(a.world, (int)unsound));
    if (__syncthreads_or(unsound >= 0)) return; /* nobody says that these rows are here */
    if (!fe_last(a)) return;
    say_rows(a, count, epoch);
    fe_settle(a, epoch);
}
} // namespace ferry

cudaError_t fe_cuda_launch_fanout(fe_cuda_args *args, cudaStream_t stream) {
    int threads = fe_share_out(args, (int64_t)args->route.shape.max_tokens * (args->world.hosts.count - 1), WARPS);
    return fe_launch_pass(args, (const void *)ferry::fan_out, threads, 0, stream);
}

cudaError_t fe_cuda_prepare_fanout(void) {
    struct cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, (const void *)ferry::fan_out);
}
