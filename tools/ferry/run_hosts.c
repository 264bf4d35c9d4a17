/* Which rank goes to which host. Hosts are filled in the order of the file, so that the ranks of one are neighbours. */
#include "ferry/ferry.h"
#include "run.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct place {
    char name[FE_RUN_HOST];
    int slots, taken;
} place;

static bool is_here(const char *name) {
    char own[FE_RUN_HOST] = "";
    gethostname(own, sizeof own - 1);
    return strcmp(name, "localhost") == 0 || strcmp(name, "127.0.0.1") == 0 || strcmp(name, own) == 0;
}

/* false: the line makes no sense; an empty one leaves the name empty. */
static bool read_line(char *line, place *p) {
    *p = (place){.slots = 1};
    line[strcspn(line, "#\n")] = 0;
    char *save, *name = strtok_r(line, " \t\r", &save), *end;
    if (!name) return true;
    /* a leading dash would be an option of ssh's */
    if (strlen(name) >= FE_RUN_HOST || name[0] == '-' || strchr(name, '=')) return false;
    snprintf(p->name, sizeof p->name, "%s", name);
    for (char *word; (word = strtok_r(NULL, " \t\r", &save));) {
        if (strncmp(word, "slots=", 6) != 0) return false;
        long slots = strtol(word + 6, &end, 10);
        if (end == word + 6 || *end || slots < 1 || slots > FERRY_MAX_RANKS) return false;
        p->slots = (int)slots;
    }
    return true;
}

/* A host that is named twice gets the sum of its slots, where it stood first. */
static bool add(place **list, int *count, const place *p) {
    for (int i = 0; i < *count; i++) {
        if (strcmp((*list)[i].name, p->name) != 0) continue;
        (*list)[i].slots += p->slots;
        return true;
    }
    place *grown = realloc(*list, ((size_t)*count + 1) * sizeof *grown);
    if (!grown) return false;
    *list = grown;
    grown[(*count)++] = *p;
    return true;
}

static bool read_file(const char *path, place **list, int *count, char *why) {
    FILE *file = fopen(path, "r");
    char line[1024];
    bool good = true;
    if (!file) {
        snprintf(why, FE_RUN_WHY, "%.200s: %s", path, strerror(errno));
        return false;
    }
    for (int number = 1; good && fgets(line, sizeof line, file); number++) {
        char text[128];
        place p;
        snprintf(text, sizeof text, "%.*s", (int)strcspn(line, "\n"), line);
        good = read_line(line, &p) && (!p.name[0] || add(list, count, &p));
        if (!good) snprintf(why, FE_RUN_WHY, "%.200s, line %d: \"%s\" is no 'name [slots=N]'", path, number, text);
    }
    fclose(file);
    if (good && *count == 0) snprintf(why, FE_RUN_WHY, "%.200s names no host", path);
    return good && *count > 0;
}

static bool deal(fe_run *run, place *list, int count) {
    run->rank = calloc((size_t)run->ranks, sizeof *run->rank);
    run->hosts = calloc((size_t)count, FE_RUN_HOST);
    if (!run->rank || !run->hosts) return false;
    for (int i = 0, r = 0; i < count; i++) {
        char *name = run->hosts + (size_t)i * FE_RUN_HOST;
        memcpy(name, list[i].name, FE_RUN_HOST);
        int here = run->ranks - r < list[i].slots ? run->ranks - r : list[i].slots;
        for (int k = 0; k < here; k++, r++) {
            run->rank[r].host = is_here(name) ? NULL : name;
            run->rank[r].local_rank = k;
            run->rank[r].local_ranks = here;
        }
    }
    return true;
}

bool fe_run_hosts(fe_run *run, const char *file, char why[FE_RUN_WHY]) {
    place *list = NULL, here = {.name = "localhost", .slots = run->ranks};
    int count = 0, slots = 0;
    bool good = file ? read_file(file, &list, &count, why) : run->ranks > 0 && add(&list, &count, &here);
    if (!good && !file) snprintf(why, FE_RUN_WHY, "say how many ranks: -n N, or --hosts FILE");
    for (int i = 0; i < count; i++) slots += list[i].slots;
    if (good && !run->ranks) run->ranks = slots;
    if (good && run->ranks > slots) {
        snprintf(why, FE_RUN_WHY, "%d ranks, but %.200s has %d slots", run->ranks, file, slots);
        good = false;
    } else if (good && run->ranks > FERRY_MAX_RANKS) {
        snprintf(why, FE_RUN_WHY, "%d ranks, but a group has at most %d", run->ranks, FERRY_MAX_RANKS);
        good = false;
    }
    if (good && !deal(run, list, count)) {
        snprintf(why, FE_RUN_WHY, "no memory for %d ranks", run->ranks);
        good = false;
    }
    free(list);
    return good;
}
