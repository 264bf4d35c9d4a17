/* A group without a network, for what arrives from one: four ranks on two hosts, of which ranks 0 and 1 are here, in this process's
 * memory, and the inbox is rank 1's. */
#ifndef FERRY_TESTS_UNIT_FAR_CASES_H
#define FERRY_TESTS_UNIT_FAR_CASES_H

#include "link/inbox.h"

#define FAR_TAG 0x1357u

typedef struct far_case {
    fe_heap heap;
    fe_inbox inbox;
    int host_of[4], index_of[4], rank_at[4];
    char *base[4], *space[4], *post[4];
    int replies, answers, stops;
    fe_mail reply; /* the last */
    void *memory, *device;
} far_case;

far_case *far_case_new(void); /* NULL: no memory */
/* A device's, whose space the network does not reach; the caller's verbs. */
far_case *far_case_staged(const fe_memory *memory);
/* As new, without the cost. false: no memory. */
bool far_case_reset(far_case *c);
void far_case_free(far_case *c);

/* Where rank 3 writes a note for rank 1, and where a far rank writes a request. */
fe_letter *far_case_letter(far_case *c, fe_kind kind, int half);
fe_mail *far_case_mail(far_case *c, int source);

#endif
