#include "device/pass.h"

static char *add_text(char *at, const char *end, const char *text) {
    while (*text && at < end) *at++ = *text++;
    return at;
}

void fe_pass_name(fe_pass *pass, const char *what, uint64_t number, const char *part) {
    char digits[21], *first = digits + sizeof digits - 1, *at = pass->step, *end = at + sizeof pass->step - 1;
    *first = 0;
    do *--first = (char)('0' + number % 10);
    while (number /= 10);
    at = add_text(add_text(add_text(add_text(at, end, what), end, " "), end, first), end, part);
    memset(at, 0, (size_t)(pass->step + sizeof pass->step - at)); /* a record takes all of it */
}
