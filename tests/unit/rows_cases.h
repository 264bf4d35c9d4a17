/* A table of row kernels against the scalar one, bit by bit. Needs no test framework: aarch64 runs it under an emulator. */
#ifndef FERRY_TESTS_ROWS_CASES_H
#define FERRY_TESTS_ROWS_CASES_H

#include "cpu/rows.h"

typedef struct rows_case {
    const char *name;
    /* "" when the table's bits are right; otherwise a sentence, valid until the next call. */
    const char *(*run)(const fe_rows *table, uint64_t seed);
} rows_case;

extern const rows_case rows_cases[];
extern const int rows_case_count;

#endif
