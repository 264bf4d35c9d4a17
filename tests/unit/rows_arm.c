/* The row kernels' cases without a test framework, for machines that are only emulated. Prints TAP. */
#include "unit/rows_cases.h"
#include <stdio.h>

int main(void) {
    int failed = 0, number = 0;
    for (const fe_rows *const *t = fe_rows_available(); *t; t++)
        for (int i = 0; i < rows_case_count; i++) {
            const char *wrong = rows_cases[i].run(*t, (uint64_t)i + 1);
            printf("%sok %d - %s: %s%s%s\n", *wrong ? "not " : "", ++number, (*t)->name, rows_cases[i].name,
                   *wrong ? ": " : "", wrong);
            failed += *wrong != 0;
        }
    printf("1..%d\n", number);
    return failed != 0;
}
