/* The exchange as it is written with MPI_Alltoallv: rows are packed by destination, exchanged, and arrive ordered by
 * source rank and token, which is their final place; the experts' rows go back the same way and are summed. */
#include "peer.h"
#include <stdlib.h>
#include <string.h>

static MPI_Datatype row_type;
static uint16_t *packed, *arrived, *returned, *collected;
static int *others_sent, *others_received; /* the counts without this rank's own, for --own direct */

static bool open_buffers(peer *p) {
    size_t out = (size_t)p->first[p->tokens] * p->row_bytes, in = (size_t)p->received_rows * p->row_bytes;
    MPI_Type_contiguous((int)p->row_bytes, MPI_BYTE, &row_type);
    MPI_Type_commit(&row_type);
    packed = peer_alloc(out);
    collected = peer_alloc(out);
    arrived = peer_alloc(in);
    returned = peer_alloc(in);
    others_sent = malloc((size_t)p->ranks * sizeof *others_sent);
    others_received = malloc((size_t)p->ranks * sizeof *others_received);
    if (!packed || !collected || !arrived || !returned || !others_sent || !others_received) return false;
    memcpy(others_sent, p->sent, (size_t)p->ranks * sizeof *others_sent);
    memcpy(others_received, p->received, (size_t)p->ranks * sizeof *others_received);
    if (p->own) others_sent[p->rank] = others_received[p->rank] = 0;
    return true;
}

static void dispatch(peer *p) {
    size_t hidden = (size_t)p->hidden;
    for (int t = 0; t < p->tokens; t++) {
        for (int i = p->first[t]; i < p->first[t + 1]; i++) {
            const peer_copy *c = &p->copy[i];
            bool straight = p->own && c->rank == p->rank;
            uint16_t *to = straight ? arrived + (size_t)(p->received_start[p->rank] + c->at) * hidden
                                    : packed + (size_t)(p->sent_start[c->rank] + c->at) * hidden;
            memcpy(to, p->rows + (size_t)t * hidden, p->row_bytes);
        }
    }
    MPI_Alltoallv(packed, others_sent, p->sent_start, row_type, arrived, others_received, p->received_start, row_type,
                  MPI_COMM_WORLD);
}

static void combine(peer *p) {
    size_t hidden = (size_t)p->hidden;
    MPI_Alltoallv(returned, others_received, p->received_start, row_type, collected, others_sent, p->sent_start,
                  row_type, MPI_COMM_WORLD);
    for (int t = 0; t < p->tokens; t++) {
        const uint16_t *rows[64];
        int n = 0;
        for (int i = p->first[t]; i < p->first[t + 1]; i++) {
            const peer_copy *c = &p->copy[i];
            bool straight = p->own && c->rank == p->rank;
            rows[n++] = straight ? returned + (size_t)(p->received_start[p->rank] + c->at) * hidden
                                 : collected + (size_t)(p->sent_start[c->rank] + c->at) * hidden;
        }
        peer_sum(p->result + (size_t)t * hidden, rows, n, p->hidden);
    }
}

static void close_buffers(peer *p) {
    (void)p;
    MPI_Type_free(&row_type);
    free(packed);
    free(collected);
    free(arrived);
    free(returned);
    free(others_sent);
    free(others_received);
}

static uint16_t *get_arrived(peer *p) {
    (void)p;
    return arrived;
}

static uint16_t *get_returned(peer *p) {
    (void)p;
    return returned;
}

int main(int argc, char **argv) {
    static const peer_program program = {"mpi_alltoallv", "Dispatch and combine over MPI_Alltoallv.",
                                         open_buffers,    dispatch,
                                         combine,         close_buffers,
                                         get_arrived,     get_returned};
    return peer_main(argc, argv, &program);
}
