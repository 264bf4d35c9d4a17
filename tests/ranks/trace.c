#include "ranks/trace.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_TOPK 64

/* Where the value of a key begins; NULL when the line does not have it. */
static const char *value_of(const char *line, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\"", key);
    const char *at = strstr(line, quoted);
    if (!at) return NULL;
    at += strlen(quoted);
    at += strspn(at, " \t");
    if (*at != ':') return NULL;
    return at + 1 + strspn(at + 1, " \t");
}

/* The numbers of an array. Returns how many, -1 when it is none or too long. */
static int numbers_of(const char *at, double *numbers) {
    int n = 0;
    if (!at || *at != '[') return -1;
    for (at++; n < MOST_TOPK; n++) {
        char *end;
        numbers[n] = strtod(at, &end);
        if (end == at) return -1;
        at = end + strspn(end, " \t");
        if (*at == ']') return n + 1;
        if (*at++ != ',') return -1;
    }
    return -1;
}

static bool add_route(trace *t, const char *line, int64_t *room) {
    double ids[MOST_TOPK], weights[MOST_TOPK];
    int n = numbers_of(value_of(line, "topk_ids"), ids);
    if (n < 1 || numbers_of(value_of(line, "topk_weights"), weights) != n) return false;
    if (t->topk == 0) t->topk = n;
    if (n != t->topk) return false;
    if (t->tokens == *room) {
        *room = *room * 2 + 1024;
        int64_t *idx = realloc(t->idx, (size_t)*room * (size_t)n * sizeof *idx);
        if (idx) t->idx = idx;
        float *more = realloc(t->weights, (size_t)*room * (size_t)n * sizeof *more);
        if (more) t->weights = more;
        if (!idx || !more) return false;
    }
    for (int k = 0; k < n; k++) {
        t->idx[t->tokens * n + k] = (int64_t)ids[k];
        t->weights[t->tokens * n + k] = (float)weights[k];
        if (ids[k] >= t->experts) t->experts = (int)ids[k] + 1;
    }
    t->tokens++;
    return true;
}

bool trace_read(const char *path, int layer, trace *t, char *why, int why_size) {
    memset(t, 0, sizeof *t);
    FILE *file = fopen(path, "r");
    if (!file) {
        snprintf(why, (size_t)why_size, "%s: %s", path, strerror(errno));
        return false;
    }
    char *line = NULL;
    size_t length = 0;
    int64_t room = 0, number = 1;
    bool good = true;
    for (; good && getline(&line, &length, file) > 0; number++) {
        const char *experts = value_of(line, "num_experts"), *of_layer = value_of(line, "layer");
        if (experts) t->experts = atoi(experts);
        if (!value_of(line, "topk_ids") || (of_layer && atoi(of_layer) != layer)) continue;
        good = add_route(t, line, &room);
    }
    free(line);
    fclose(file);
    if (good && t->tokens > 0) return true;
    snprintf(why, (size_t)why_size, "%s: line %lld is no route of %d choices", path, (long long)number - 1, t->topk);
    trace_free(t);
    return false;
}

void trace_free(trace *t) {
    free(t->idx);
    free(t->weights);
    memset(t, 0, sizeof *t);
}
