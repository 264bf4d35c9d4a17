/* Plans: reading, printing, and what must come of them. */
#include "faults/plan.h"
#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

static const struct {
    const char *name;
    fate fate;
} faults[] = {
#define FAULT_ROW(name, who) {#name, who},
    FAULTS(FAULT_ROW)
#undef FAULT_ROW
};

const char *plan_fault_name(fault f) {
    return faults[f].name;
}

fate plan_lost(const plan *p) {
    return faults[p->fault].fate;
}

/* ---- JSON ---- */

typedef struct field {
    const char *name;
    size_t at, size; /* size 0: an int; 1: an int64_t; more: a text */
} field;

#define TEXT(name) \
    { #name, offsetof(plan, name), sizeof(((plan *)0)->name) }
#define NUMBER(name) \
    { #name, offsetof(plan, name), 0 }
#define LONG(name) \
    { #name, offsetof(plan, name), 1 }

static const field fields[] = {TEXT(name),    LONG(seed),          NUMBER(ranks),  NUMBER(hosts),
                               NUMBER(steps), NUMBER(deadline_ms), NUMBER(victim), NUMBER(step),
                               TEXT(call),    NUMBER(nth),         TEXT(note),     LONG(after_us),
                               TEXT(detail),  LONG(amount),        TEXT(status),   TEXT(says)};
#define FIELDS (sizeof fields / sizeof *fields)

static void *place(const plan *p, const field *f) {
    return (char *)(uintptr_t)p + f->at;
}

static bool take(plan *p, const cJSON *item) {
    for (size_t i = 0; i < FIELDS; i++) {
        const field *f = &fields[i];
        if (strcmp(f->name, item->string) != 0) continue;
        if (f->size > 1) {
            if (!cJSON_IsString(item) || strlen(item->valuestring) >= f->size) return false;
            memcpy(place(p, f), item->valuestring, strlen(item->valuestring) + 1);
            return true;
        }
        if (!cJSON_IsNumber(item)) return false;
        if (f->size)
            *(int64_t *)place(p, f) = (int64_t)item->valuedouble;
        else
            *(int *)place(p, f) = item->valueint;
        return true;
    }
    if (!cJSON_IsString(item)) return false;
    if (strcmp(item->string, "case") == 0) return case_parse(item->valuestring, &p->c);
    for (int f = 0; strcmp(item->string, "fault") == 0 && f < FAULT_KINDS; f++) {
        if (strcmp(item->valuestring, faults[f].name) != 0) continue;
        p->fault = (fault)f;
        return true;
    }
    return strcmp(item->string, "why") == 0; /* for whoever reads the plan */
}

void plan_environment(int hosts) {
    char text[16];
    snprintf(text, sizeof text, "%d", hosts);
    setenv("FERRY_HOSTS", text, 1);
}

bool plan_agrees(const plan *p) {
    return p->hosts == 1 && p->fault != FAULT_abort && strcmp(p->call, "group_create") != 0;
}

/* Makes one whole of what is given. */
static bool settle(plan *p) {
    if (p->ranks < 2 || p->ranks > CASE_RANKS || p->victim < 0 || p->victim >= p->ranks) return false;
    if (p->steps < 1 || p->steps > PLAN_STEPS || p->step < 0 || p->step >= p->steps || p->deadline_ms < 50)
        return false;
    if (p->hosts < 1 || p->ranks % p->hosts != 0) return false;
    plan_environment(p->hosts);
    p->c.processes = 1;
    p->c.ranks = p->ranks;
    p->c.drop = 1;
    case_fix(&p->c);
    return true;
}

bool plan_read(const char *json, plan *p, char *why, size_t size) {
    cJSON *root = cJSON_Parse(json);
    const cJSON *item = NULL;
    bool good = root != NULL;
    *p = (plan){.seed = -1, .ranks = 3, .hosts = 1, .steps = 1, .deadline_ms = 500, .victim = 1};
    snprintf(why, size, "no JSON");
    if (!case_parse(
            "ranks=3 experts=6 tokens=7 topk=2 columns=16 dtype=1 in_type=1 out_type=1 layout=1 back=3 rounds=1",
            &p->c))
        return false;
    for (item = good ? root->child : NULL; good && item; item = item->next) {
        good = take(p, item);
        if (!good) snprintf(why, size, "\"%s\" is not known, or is not what it should be", item->string);
    }
    if (good && !settle(p)) {
        snprintf(why, size, "its numbers make no plan");
        good = false;
    }
    cJSON_Delete(root);
    return good;
}

char *plan_print(const plan *p) {
    static const plan none;
    char text[CASE_TEXT];
    cJSON *root = cJSON_CreateObject();
    cJSON_AddStringToObject(root, "fault", faults[p->fault].name);
    for (size_t i = 0; i < FIELDS; i++) {
        const field *f = &fields[i];
        size_t bytes = f->size > 1 ? f->size : f->size ? sizeof(int64_t) : sizeof(int);
        bool whole = f->at == offsetof(plan, victim) || f->at == offsetof(plan, step);
        if (!whole && memcmp(place(p, f), place(&none, f), bytes) == 0) continue;
        if (f->size > 1)
            cJSON_AddStringToObject(root, f->name, place(p, f));
        else
            cJSON_AddNumberToObject(root, f->name,
                                    f->size ? (double)*(int64_t *)place(p, f) : (double)*(int *)place(p, f));
    }
    case_print(&p->c, text);
    cJSON_AddStringToObject(root, "case", text);
    char *json = cJSON_PrintUnformatted(root);
    cJSON_Delete(root);
    return json;
}

/* ---- what must come of it ---- */

#define BIT(status) (1u << FERRY_##status)

static unsigned named_statuses(const char *text) {
    unsigned bits = 0;
    for (int s = FERRY_INVALID; s <= FERRY_REFUSED; s++) {
        const char *name = ferry_status_name((ferry_status)s) + strlen("FERRY_"), *at = strstr(text, name);
        if (at && (at == text || at[-1] == '|')) bits |= 1u << s;
    }
    return bits;
}

bool plan_keeps_to_itself(const plan *p) {
    return p->fault == FAULT_wrong && strcmp(p->call, "dispatch_recv") == 0;
}

/* By the kind of the fault alone. */
static verdict usual(const plan *p) {
    bool making = strcmp(p->call, "group_create") == 0;
    switch (p->fault) {
    case FAULT_kill:
    case FAULT_stop:
    case FAULT_delay:
    case FAULT_stuck: return (verdict){.may_fail = true, .statuses = BIT(TIMEOUT), .named = true, .alone = true};
    case FAULT_leave: return (verdict){.may_fail = true, .statuses = BIT(TIMEOUT), .named = true, .alone = true};
    case FAULT_abort: return (verdict){.may_fail = true, .statuses = BIT(ABORTED)};
    case FAULT_wrong: /* a victim that finds out for itself may have made no other call than the others */
        return (verdict){.may_pass = plan_keeps_to_itself(p),
                         .may_fail = true,
                         .statuses = BIT(MISMATCH) | BIT(TIMEOUT),
                         .named = true,
                         .alone = true};
    case FAULT_differ: return (verdict){.may_fail = true, .statuses = BIT(MISMATCH), .named = true, .alone = true};
    case FAULT_memory:
    case FAULT_file_size:
    case FAULT_descriptors:
        if (!making) break;
        return (verdict){.may_fail = true, .statuses = BIT(NOMEM) | BIT(SYSTEM), .named = true, .alone = true};
    case FAULT_flip:
    case FAULT_cut:
        return (verdict){.may_pass = true,
                         .may_fail = true,
                         .statuses = BIT(NOMEM) | BIT(SYSTEM) | BIT(TIMEOUT) | BIT(MISMATCH) | BIT(UNSUPPORTED) |
                                     BIT(REFUSED) | BIT(INVALID)};
    case FAULT_shut: return (verdict){.may_pass = true, .may_fail = true, .statuses = BIT(TIMEOUT) | BIT(SYSTEM)};
    case FAULT_hole: /* what the victim says is still heard, and may be all that others want */
        return (verdict){.may_pass = true, .may_fail = true, .statuses = BIT(TIMEOUT) | BIT(SYSTEM)};
    default: break;
    }
    return (verdict){.may_pass = true};
}

/* Over several hosts a rank may hear of a loss through somebody who is lost for it, too. */
verdict plan_verdict(const plan *p) {
    verdict v = usual(p);
    bool making = strcmp(p->call, "group_create") == 0;
    if (p->hosts > 1) v.alone = false;
    if (p->hosts > 1 && (v.statuses & BIT(TIMEOUT))) v.statuses |= BIT(SYSTEM);
    if (making && p->victim == 0 &&
        plan_lost(p) != NOBODY) { /* the meeting place goes with it, or is not there at all */
        v.named = v.alone = false;
        v.statuses |= BIT(SYSTEM);
    }
    if (p->fault == FAULT_differ && making) v.alone = false; /* rank 0's value is told beside */
    if (strcmp(p->status, "OK") == 0) return (verdict){.may_pass = true};
    if (!*p->status) return v;
    v.statuses = named_statuses(p->status);
    v.may_fail = true;
    v.may_pass = false;
    return v;
}
