/* Reads topologies and measurements. */
#include "model.h"
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static bool say(char *why, const char *format, ...) __attribute__((format(printf, 2, 3)));
static bool say(char *why, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(why, FE_MODEL_WHY, format, args);
    va_end(args);
    return false;
}

static cJSON *read_json(const char *path, char *why) {
    FILE *file = fopen(path, "r");
    char *text = NULL;
    size_t used = 0, room = 0;
    if (!file) {
        say(why, "%.200s: %s", path, strerror(errno));
        return NULL;
    }
    for (bool more = true; more;) {
        if (used + 1 >= room) {
            char *grown = room < 1 << 26 ? realloc(text, room = room ? 2 * room : 1 << 16) : NULL;
            if (!grown) break;
            text = grown;
        }
        size_t n = fread(text + used, 1, room - used - 1, file);
        used += n;
        more = n > 0;
    }
    fclose(file);
    if (text) text[used] = 0;
    cJSON *json = text ? cJSON_Parse(text) : NULL;
    free(text);
    if (!json) say(why, "%.200s is no JSON", path);
    return json;
}

/* ---- topologies ---- */

typedef struct field {
    const char *group, *name;  /* group NULL: at the top */
    double *to, low, fallback; /* fallback NAN: it must be there */
} field;

static bool read_field(const cJSON *json, const field *f, char *why) {
    const cJSON *in = f->group ? cJSON_GetObjectItem(json, f->group) : json, *item = cJSON_GetObjectItem(in, f->name);
    const char *group = f->group ? f->group : "", *dot = f->group ? "." : "";
    *f->to = f->fallback;
    if (!item && !isnan(f->fallback)) return true;
    if (!item || !cJSON_IsNumber(item)) return say(why, "%s%s%s must be there, and a number", group, dot, f->name);
    *f->to = item->valuedouble;
    if (!(*f->to >= f->low) || *f->to > 1e12)
        return say(why, "%s%s%s is %g, must be at least %g", group, dot, f->name, *f->to, f->low);
    return true;
}

static bool check_names(const cJSON *in, const char *group, const field *fields, size_t count, char *why) {
    const cJSON *item;
    cJSON_ArrayForEach(item, in) {
        bool known = cJSON_IsString(item) || cJSON_IsObject(item) || strcmp(item->string, "own_rows") == 0;
        for (size_t i = 0; i < count; i++)
            known = known || ((group ? fields[i].group && strcmp(fields[i].group, group) == 0 : !fields[i].group) &&
                              strcmp(fields[i].name, item->string) == 0);
        if (!known) return say(why, "%s%s%.80s is not known", group ? group : "", group ? "." : "", item->string);
    }
    return true;
}

static bool read_topology(const cJSON *json, fe_topology *t, char *why) {
    double local, sms, cores;
    const field fields[] = {{NULL, "ranks_per_host", &local, 1, NAN},
                            {NULL, "step_us", &t->step_us, 0, NAN},
                            {NULL, "latency_step_us", &t->latency_step_us, 0, NAN},
                            {NULL, "cores", &cores, 0, 0},
                            {"near", "gbps", &t->near_gbps, 1e-3, NAN},
                            {"near", "sum_gbps", &t->near_sum_gbps, 0, 0},
                            {"near", "cached_gbps", &t->cached_gbps, 0, 0},
                            {"near", "cache_bytes", &t->cache_bytes, 0, 0},
                            {"nic", "gbps", &t->nic_gbps, 1e-3, NAN},
                            {"nic", "per_rank", &t->nics_per_rank, 1e-3, 1},
                            {"nic", "latency_us", &t->nic_latency_us, 0, NAN},
                            {"nic", "message_us", &t->message_us, 0, NAN},
                            {"nic", "write_bytes", &t->write_bytes, 1, 1 << 20},
                            {"proxy", "command_us", &t->proxy_us, 0, 0},
                            {"sm", "gbps", &t->sm_gbps, 0, 0},
                            {"sm", "count", &sms, 0, 0}};
    enum { FIELDS = sizeof fields / sizeof *fields };
    static const char *const groups[] = {NULL, "near", "nic", "proxy", "sm"};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        if (!check_names(groups[i] ? cJSON_GetObjectItem(json, groups[i]) : json, groups[i], fields, FIELDS, why))
            return false;
    for (size_t i = 0; i < FIELDS; i++)
        if (!read_field(json, &fields[i], why)) return false;
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItem(json, "name"));
    snprintf(t->name, sizeof t->name, "%s", name ? name : "without a name");
    t->near_own = cJSON_IsTrue(cJSON_GetObjectItem(cJSON_GetObjectItem(json, "near"), "own_rows"));
    if (t->near_sum_gbps == 0) t->near_sum_gbps = t->near_gbps;
    if (local > FE_MODEL_RANKS || sms > 1024 || cores > 65536)
        return say(why, "ranks_per_host, sm.count or cores is too large");
    if (t->sm_gbps > 0 && sms < 1) return say(why, "sm.gbps wants sm.count");
    t->ranks_per_host = (int)local;
    t->sms = (int)sms;
    t->cores = (int)cores;
    return true;
}

bool fe_topology_read(const char *path, fe_topology *t, char why[FE_MODEL_WHY]) {
    char what[FE_MODEL_WHY / 2];
    cJSON *json = read_json(path, why);
    if (!json) return false;
    memset(t, 0, sizeof *t);
    bool good = read_topology(json, t, what);
    if (!good) say(why, "%.200s: %.200s", path, what);
    cJSON_Delete(json);
    return good;
}

/* ---- measurements ---- */

static double number_of(const cJSON *in, const char *name, double fallback) {
    const cJSON *item = cJSON_GetObjectItem(in, name);
    return cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble < 1e9 ? item->valuedouble : fallback;
}

static bool is_text(const cJSON *in, const char *name, const char *text) {
    const char *value = cJSON_GetStringValue(cJSON_GetObjectItem(in, name));
    return value && strcmp(value, text) == 0;
}

/* The shape of a row, or of the "config" of a bench. */
static bool read_shape(const cJSON *in, fe_measured *m, char *why) {
    fe_shape *s = &m->shape;
    *s = (fe_shape){.ranks = (int)number_of(in, "ranks", 0),
                    .tokens = (int)number_of(in, "tokens", 0),
                    .hidden = (int)number_of(in, "hidden", 0),
                    .topk = (int)number_of(in, "topk", 0),
                    .experts = (int)number_of(in, "experts", 0),
                    .groups = (int)number_of(in, "groups", 0),
                    .hosts = (int)number_of(in, "hosts", 0),
                    .sms = (int)number_of(in, "sms", 0),
                    .latency = is_text(in, "mode", "latency"),
                    .fp8 = is_text(in, "dtype", "fp8"),
                    .per_expert = is_text(in, "layout", "slots") || is_text(in, "layout", "expert")};
    if (s->ranks < 1 || s->ranks > FE_MODEL_RANKS || s->tokens < 1 || s->hidden < 1 || s->topk < 1 ||
        s->experts < s->topk || s->hosts > s->ranks)
        return say(why, "a row has no ranks (1 to %d), tokens, hidden, topk or experts that make sense",
                   FE_MODEL_RANKS);
    return true;
}

/* A time as it was measured, or from GB/s as DeepEP counts them: all rows received, its own included; between hosts a row for each host that
 * a token goes to, its own included. */
static double time_of(const cJSON *row, const fe_topology *t, const fe_measured *m, bool combine) {
    const char *name = combine ? "combine" : "dispatch";
    char key[32];
    const fe_shape *s = &m->shape;
    snprintf(key, sizeof key, "%s_us", name);
    double us = number_of(row, key, 0), median = number_of(cJSON_GetObjectItem(row, name), "median_us", 0);
    if (us > 0 || median > 0) return us > 0 ? us : median;
    snprintf(key, sizeof key, "%s_gbps", name);
    double gbps = number_of(row, key, 0);
    if (gbps <= 0) return 0;
    fe_traffic f = fe_model_traffic(t, s);
    double rows = f.hosts > 1 && !s->per_expert ? s->tokens * f.hosts_hit : f.all_rows;
    return rows * fe_model_row_bytes(s, combine) / gbps / 1e3;
}

static bool has_word(const cJSON *list, const char *word) {
    const cJSON *item;
    cJSON_ArrayForEach(item, list) {
        if (cJSON_IsString(item) && strcmp(item->valuestring, word) == 0) return true;
    }
    return false;
}

static bool read_row(const cJSON *row, const fe_topology *t, fe_measured *m, char *why) {
    const cJSON *config = cJSON_GetObjectItem(row, "config"), *uses = cJSON_GetObjectItem(row, "calibrates");
    if (!read_shape(config ? config : row, m, why)) return false;
    if (config && !m->shape.hosts) m->shape.hosts = 1; /* a bench without pretend hosts */
    if (config && cJSON_IsTrue(cJSON_GetObjectItem(config, "cast"))) m->shape.fp8 = true;
    for (int i = 0; i < 2; i++) {
        m->us[i] = time_of(row, t, m, i == 1);
        m->calibrates[i] = has_word(uses, i ? "combine" : "dispatch");
    }
    if (m->us[0] <= 0 && m->us[1] <= 0) return say(why, "a row of %d ranks has no times and no GB/s", m->shape.ranks);
    fe_traffic f = fe_model_traffic(t, &m->shape);
    const fe_shape *s = &m->shape;
    snprintf(m->name, sizeof m->name, "%s, %d x %d, %d tokens, %s%s", s->latency ? "latency" : "throughput", f.hosts,
             f.local, s->tokens, s->fp8 ? "fp8" : "bf16", s->per_expert ? ", per expert" : "");
    return true;
}

bool fe_measured_read(const char *path, const fe_topology *t, fe_measured **rows, int *count, char why[FE_MODEL_WHY]) {
    char what[FE_MODEL_WHY / 2];
    cJSON *json = read_json(path, why);
    if (!json) return false;
    const cJSON *list = cJSON_IsArray(json) ? json : cJSON_GetObjectItem(json, "rows"), *row;
    int n = list ? cJSON_GetArraySize(list) : 1, at = 0;
    *rows = calloc((size_t)n + 1, sizeof **rows);
    bool good = *rows && n > 0;
    if (!good) snprintf(what, sizeof what, "no rows");
    if (good && !list) good = read_row(json, t, &(*rows)[at++], what);
    cJSON_ArrayForEach(row, list) {
        if (good) good = read_row(row, t, &(*rows)[at++], what);
    }
    *count = n;
    cJSON_Delete(json);
    if (good) return true;
    free(*rows);
    *rows = NULL;
    return say(why, "%.200s: %.200s", path, what);
}
