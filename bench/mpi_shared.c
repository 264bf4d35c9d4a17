/* The exchange as it is written with MPI_Win_allocate_shared: each row is copied straight to its slot in the receiver's part of
 * the window, then a barrier; combine reads the experts' rows where they lie, between two barriers. */
#include "peer.h"
#include <stdlib.h>
#include <string.h>

static MPI_Win window;
static MPI_Comm host;
static uint16_t **part; /* [ranks] each rank's part: received rows, then the rows to be returned */
static int *part_rows;  /* [ranks] received rows of each */

static bool open_window(peer *p) {
    uint16_t *mine;
    size_t rows = 2 * (size_t)p->received_rows;
    part = malloc((size_t)p->ranks * sizeof *part);
    part_rows = malloc((size_t)p->ranks * sizeof *part_rows);
    if (!part || !part_rows) return false;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, p->rank, MPI_INFO_NULL, &host);
    MPI_Win_allocate_shared((MPI_Aint)(rows * p->row_bytes), 1, MPI_INFO_NULL, host, &mine, &window);
    memset(mine, 0, rows * p->row_bytes);
    for (int r = 0; r < p->ranks; r++) {
        MPI_Aint bytes;
        int unit;
        MPI_Win_shared_query(window, r, &bytes, &unit, &part[r]);
    }
    MPI_Allgather(&p->received_rows, 1, MPI_INT, part_rows, 1, MPI_INT, MPI_COMM_WORLD);
    MPI_Win_lock_all(MPI_MODE_NOCHECK, window);
    return true;
}

static void meet(void) {
    MPI_Win_sync(window);
    MPI_Barrier(host);
    MPI_Win_sync(window);
}

static void dispatch(peer *p) {
    size_t hidden = (size_t)p->hidden;
    for (int t = 0; t < p->tokens; t++) {
        for (int i = p->first[t]; i < p->first[t + 1]; i++) {
            const peer_copy *c = &p->copy[i];
            memcpy(part[c->rank] + (size_t)(p->begin[c->rank] + c->at) * hidden, p->rows + (size_t)t * hidden,
                   p->row_bytes);
        }
    }
    meet();
}

static void combine(peer *p) {
    size_t hidden = (size_t)p->hidden;
    meet();
    for (int t = 0; t < p->tokens; t++) {
        const uint16_t *rows[64];
        int n = 0;
        for (int i = p->first[t]; i < p->first[t + 1]; i++) {
            const peer_copy *c = &p->copy[i];
            rows[n++] = part[c->rank] + (size_t)(part_rows[c->rank] + p->begin[c->rank] + c->at) * hidden;
        }
        peer_sum(p->result + (size_t)t * hidden, rows, n, p->hidden);
    }
    meet();
}

static void close_window(peer *p) {
    (void)p;
    MPI_Win_unlock_all(window);
    MPI_Win_free(&window);
    MPI_Comm_free(&host);
    free(part);
    free(part_rows);
}

static uint16_t *get_arrived(peer *p) {
    return part[p->rank];
}

static uint16_t *get_returned(peer *p) {
    return part[p->rank] + (size_t)p->received_rows * (size_t)p->hidden;
}

int main(int argc, char **argv) {
    static const peer_program program = {"mpi_shared", "Dispatch and combine over MPI_Win_allocate_shared.",
                                         open_window,  dispatch,
                                         combine,      close_window,
                                         get_arrived,  get_returned};
    return peer_main(argc, argv, &program);
}
