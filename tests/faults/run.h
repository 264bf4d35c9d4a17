/* A plan carried out by processes, and judged. */
#ifndef FERRY_TESTS_FAULTS_RUN_H
#define FERRY_TESTS_FAULTS_RUN_H

#include "faults/plan.h"

/* false: why has the sentence of what was not as it must be. */
bool run_plan(const plan *p, char why[RANKS_WHY]);
/* Why a plan of this kind cannot be run here; NULL: it can. */
const char *run_skips(const plan *p);

#endif
