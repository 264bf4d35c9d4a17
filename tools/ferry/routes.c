#include "routes.h"
#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static fe_routes_kind bad(char *why, const char *format, ...) __attribute__((format(printf, 2, 3)));
static fe_routes_kind bad(char *why, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(why, FE_ROUTES_WHY, format, args);
    va_end(args);
    return FE_ROUTES_BAD;
}

/* A whole number in low..high: cJSON's own valueint is clamped, and hides 1e300 and 1.5. */
static bool whole(const cJSON *item, double low, double high, int *value) {
    if (!cJSON_IsNumber(item)) return false;
    double number = item->valuedouble;
    if (!(number >= low && number <= high) || number != floor(number)) return false;
    *value = (int)number;
    return true;
}

static fe_routes_kind take_meta(const cJSON *object, fe_routes_line *line, char *why) {
    const cJSON *experts = cJSON_GetObjectItemCaseSensitive(object, "num_experts");
    if (experts && !whole(experts, 1, FE_ROUTES_EXPERT_MAX, &line->experts))
        return bad(why, "num_experts is no whole number from 1 to %d", FE_ROUTES_EXPERT_MAX);
    return FE_ROUTES_META;
}

static fe_routes_kind take_weights(const cJSON *object, fe_routes_line *line, char *why) {
    const cJSON *weights = cJSON_GetObjectItemCaseSensitive(object, "topk_weights"), *item;
    int k = 0;
    for (int i = 0; i < line->topk; i++) line->weights[i] = 1.0f / (float)line->topk;
    if (!weights || cJSON_IsNull(weights)) return FE_ROUTES_ROUTE;
    if (!cJSON_IsArray(weights)) return bad(why, "topk_weights is no array");
    cJSON_ArrayForEach(item, weights) {
        if (k == line->topk) return bad(why, "topk_weights has more entries than topk_ids (%d)", line->topk);
        if (!cJSON_IsNumber(item) || !(fabs(item->valuedouble) <= 3e38))
            return bad(why, "topk_weights[%d] is no number that a float32 holds", k);
        line->weights[k++] = (float)item->valuedouble;
    }
    return k == line->topk ? FE_ROUTES_ROUTE : bad(why, "topk_weights has %d entries, topk_ids %d", k, line->topk);
}

static fe_routes_kind take_route(const cJSON *object, fe_routes_line *line, char *why) {
    const cJSON *layer = cJSON_GetObjectItemCaseSensitive(object, "layer");
    const cJSON *ids = cJSON_GetObjectItemCaseSensitive(object, "topk_ids"), *item;
    if (layer && !whole(layer, 0, 1 << 20, &line->layer))
        return bad(why, "layer is no whole number from 0 to %d", 1 << 20);
    if (!cJSON_IsArray(ids)) return bad(why, "a route needs an array topk_ids");
    cJSON_ArrayForEach(item, ids) {
        int id;
        if (line->topk == FERRY_MAX_TOPK) return bad(why, "topk_ids has more than %d entries", FERRY_MAX_TOPK);
        if (!whole(item, -1, FE_ROUTES_EXPERT_MAX - 1, &id))
            return bad(why, "topk_ids[%d] is no whole number from -1 to %d", line->topk, FE_ROUTES_EXPERT_MAX - 1);
        line->ids[line->topk++] = id;
    }
    if (line->topk == 0) return bad(why, "topk_ids is empty");
    return take_weights(object, line, why);
}

static fe_routes_kind take_object(const cJSON *object, fe_routes_line *line, char *why) {
    if (!cJSON_IsObject(object)) return bad(why, "this is no JSON object");
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, "type"));
    if (!type) return bad(why, "the object has no string \"type\"");
    if (strcmp(type, "meta") == 0) return take_meta(object, line, why);
    if (strcmp(type, "route") == 0) return take_route(object, line, why);
    return FE_ROUTES_OTHER;
}

fe_routes_kind fe_routes_parse(const char *text, size_t length, fe_routes_line *line, char *why) {
    memset(line, 0, sizeof *line);
    why[0] = 0;
    while (length > 0 && strchr("\r\n\t ", text[length - 1]) && text[length - 1]) length--;
    if (length == 0) return line->kind = FE_ROUTES_OTHER;
    if (length > FE_ROUTES_LINE_MAX)
        return line->kind = bad(why, "the line is longer than %d bytes", FE_ROUTES_LINE_MAX);
    if (memchr(text, 0, length)) return line->kind = bad(why, "the line holds a NUL byte");
    /* cJSON before 1.7.18 reads one byte past a length-limited buffer that ends after a comma (CVE-2023-53154): it gets a
     * copy that ends in a few NULs. */
    char *copy = calloc(1, length + 8);
    if (!copy) return line->kind = bad(why, "no memory for a line of %zu bytes", length);
    memcpy(copy, text, length);
    const char *end = NULL;
    cJSON *object = cJSON_ParseWithLengthOpts(copy, length + 1, &end, 1);
    if (object)
        line->kind = take_object(object, line, why);
    else
        line->kind = bad(why, "this is no JSON: wrong at byte %td", end ? end - copy : (ptrdiff_t)0);
    cJSON_Delete(object);
    free(copy);
    return line->kind;
}

/* The kept lines while their number and the widest are not known yet. */
typedef struct kept {
    fe_routes_line *line;
    int count, room;
} kept;

static bool keep(kept *k, const fe_routes_line *line) {
    if (k->count == k->room) {
        int room = k->room ? 2 * k->room : 1024;
        fe_routes_line *grown = realloc(k->line, (size_t)room * sizeof *grown);
        if (!grown) return false;
        k->line = grown;
        k->room = room;
    }
    k->line[k->count++] = *line;
    return true;
}

static bool flatten(const kept *k, fe_routes *trace) {
    int highest = -1;
    for (int t = 0; t < k->count; t++) {
        if (k->line[t].topk > trace->topk) trace->topk = k->line[t].topk;
        for (int i = 0; i < k->line[t].topk; i++)
            if (k->line[t].ids[i] > highest) highest = k->line[t].ids[i];
    }
    if (trace->experts == 0) trace->experts = highest + 1 > 0 ? highest + 1 : 1;
    trace->tokens = k->count;
    size_t cells = (size_t)k->count * (size_t)trace->topk;
    trace->ids = malloc(cells * sizeof *trace->ids + 1);
    trace->weights = calloc(cells + 1, sizeof *trace->weights);
    if (!trace->ids || !trace->weights) return false;
    for (size_t i = 0; i < cells; i++) trace->ids[i] = -1;
    for (int t = 0; t < k->count; t++) {
        size_t at = (size_t)t * (size_t)trace->topk, n = (size_t)k->line[t].topk;
        memcpy(trace->ids + at, k->line[t].ids, n * sizeof *trace->ids);
        memcpy(trace->weights + at, k->line[t].weights, n * sizeof *trace->weights);
    }
    return true;
}

static bool sentence(char *why, const char *path, int number, const char *what) {
    snprintf(why, FE_ROUTES_WHY, "%.80s:%d: %.140s", path, number, what);
    return false;
}

/* Reads up to the next line end, at most FE_ROUTES_LINE_MAX + 1 bytes: enough for the parser to see that it is too long. */
static bool next_line(FILE *file, char *text, size_t *length) {
    int c = EOF;
    size_t n = 0;
    while (n <= FE_ROUTES_LINE_MAX && (c = getc_unlocked(file)) != EOF && c != '\n') text[n++] = (char)c;
    *length = n;
    return n > 0 || c != EOF;
}

static bool read_lines(FILE *file, const char *path, int most, kept *k, fe_routes *trace, char *why) {
    char *text = malloc(FE_ROUTES_LINE_MAX + 1), what[FE_ROUTES_WHY];
    size_t length;
    fe_routes_line line;
    bool good = text || sentence(why, path, 0, "no memory for a line");
    for (int number = 1; good && k->count < most && next_line(file, text, &length); number++) {
        fe_routes_kind kind = fe_routes_parse(text, length, &line, what);
        if (kind == FE_ROUTES_BAD) good = sentence(why, path, number, what);
        if (kind == FE_ROUTES_META && line.experts > 0) trace->experts = line.experts;
        if (kind != FE_ROUTES_ROUTE) continue;
        if (trace->layer < 0) trace->layer = line.layer;
        if (line.layer != trace->layer) continue;
        for (int i = 0; good && i < line.topk; i++)
            if (trace->experts > 0 && line.ids[i] >= trace->experts)
                good = sentence(why, path, number, "an expert number is not below the meta line's num_experts");
        if (good && !keep(k, &line)) good = sentence(why, path, number, "no memory for the lines so far");
    }
    free(text);
    return good;
}

bool fe_routes_read(const char *path, int layer, int most, fe_routes *trace, char *why) {
    memset(trace, 0, sizeof *trace);
    trace->layer = layer;
    FILE *file = fopen(path, "r");
    if (!file) {
        snprintf(why, FE_ROUTES_WHY, "%.120s: %s", path, strerror(errno));
        return false;
    }
    kept k = {0};
    bool good = read_lines(file, path, most, &k, trace, why);
    if (good && ferror(file)) good = sentence(why, path, k.count, "the file could not be read to its end");
    if (good && k.count == 0) {
        snprintf(why, FE_ROUTES_WHY, "%.120s: no routes%s", path, layer < 0 ? "" : " of this layer");
        good = false;
    }
    if (good && !flatten(&k, trace)) good = sentence(why, path, k.count, "no memory for the routes");
    fclose(file);
    free(k.line);
    if (!good) fe_routes_free(trace);
    return good;
}

void fe_routes_free(fe_routes *trace) {
    free(trace->ids);
    free(trace->weights);
    memset(trace, 0, sizeof *trace);
}
