/* The demo's text: reading it, cutting it into windows, and showing bytes safely. */
#include "demo.h"
#include "draw.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { W = FE_DEMO_WINDOW };

#ifndef FERRY_DOC_DIR
#define FERRY_DOC_DIR "/usr/share/doc/ferry"
#endif
static const char *const defaults[] = {"/usr/share/common-licenses", FERRY_DOC_DIR, "docs"};

static bool say(char *why, const char *path, const char *what) {
    snprintf(why, FE_DEMO_WHY, "%.400s: %.200s", path, what);
    return false;
}

static bool append(fe_demo_text *text, const char *path, char *why) {
    FILE *file = fopen(path, "rb");
    if (!file) return say(why, path, strerror(errno));
    errno = 0;
    size_t n = fread(text->bytes + text->length, 1, (size_t)(FE_DEMO_TEXT_MAX - text->length), file);
    bool good = !ferror(file);
    int error = errno;
    fclose(file);
    if (!good) return say(why, path, strerror(error));
    text->length += (int64_t)n;
    text->files++;
    return true;
}

/* The plain files of a folder; links are left out, as they would bring a text in twice. */
static bool append_folder(fe_demo_text *text, const char *path, char *why) {
    struct dirent **entry;
    int n = scandir(path, &entry, NULL, alphasort);
    if (n < 0) return say(why, path, strerror(errno));
    bool good = true;
    for (int i = 0; i < n; i++) {
        char name[4096];
        struct stat s;
        int used = snprintf(name, sizeof name, "%s/%s", path, entry[i]->d_name);
        if (good && entry[i]->d_name[0] != '.' && used < (int)sizeof name && lstat(name, &s) == 0 && S_ISREG(s.st_mode))
            good = append(text, name, why);
        free(entry[i]);
    }
    free(entry);
    return good;
}

static bool read_one(const char *path, fe_demo_text *text, char *why) {
    struct stat s;
    text->length = text->files = 0;
    snprintf(text->name, sizeof text->name, "%s", path);
    if (stat(path, &s) != 0) return say(why, path, strerror(errno));
    if (!(S_ISDIR(s.st_mode) ? append_folder : append)(text, path, why)) return false;
    if (text->length >= FE_DEMO_TEXT_MIN) return true;
    snprintf(why, FE_DEMO_WHY, "the text %.400s has %lld bytes; the demo needs at least %d to learn from", path,
             (long long)text->length, FE_DEMO_TEXT_MIN);
    return false;
}

bool fe_demo_text_read(const char *path, fe_demo_text *text, char *why) {
    text->bytes = malloc(FE_DEMO_TEXT_MAX);
    if (!text->bytes) {
        snprintf(why, FE_DEMO_WHY, "no memory for a text of %d bytes", FE_DEMO_TEXT_MAX);
        return false;
    }
    bool good = path && read_one(path, text, why);
    for (size_t i = 0; !path && !good && i < sizeof defaults / sizeof *defaults; i++)
        good = read_one(defaults[i], text, why);
    if (!good && !path)
        snprintf(why, FE_DEMO_WHY, "none of %s, %s and ./%s has %d bytes of text; name one with --text FILE",
                 defaults[0], defaults[1], defaults[2], FE_DEMO_TEXT_MIN);
    if (!good) return false;
    text->part = text->length / FE_DEMO_SHARDS;
    text->train = text->part - text->part / 16;
    text->hash = fe_hash(FE_HASH_START, text->bytes, (size_t)text->length);
    return true;
}

void fe_demo_text_free(fe_demo_text *text) {
    free(text->bytes);
    text->bytes = NULL;
}

void fe_demo_batch(const fe_demo_text *text, fe_demo_model *m, uint64_t seed, int step, bool held_out) {
    const uint64_t key = fe_mix(fe_mix(seed) ^ ((uint64_t)step << 1 | held_out));
    const int64_t low = held_out ? text->train + W : W, high = held_out ? text->part : text->train;
    m->tokens = m->local_shards * m->shard_tokens;
    for (int i = 0; i < m->tokens; i++) {
        int token = m->rank * m->tokens + i; /* of the batch */
        const uint8_t *part = text->bytes + token / m->shard_tokens * text->part;
        int64_t at = low + (int64_t)(fe_mix(key + (uint64_t)token) % (uint64_t)(high - low));
        memcpy(m->window + (int64_t)i * W, part + at - W, W);
        m->target[i] = part[at];
    }
}

void fe_demo_start(const fe_demo_text *text, const char *prompt, int sequence, uint8_t *window) {
    memset(window, ' ', W);
    if (prompt) {
        size_t n = strlen(prompt), used = n < W ? n : W;
        memcpy(window + W - used, prompt + n - used, used);
        return;
    }
    const uint8_t *held_out = text->bytes + sequence * text->part + text->train;
    int64_t at = 0, last = text->part - text->train - W;
    while (at < last && held_out[at] != ' ') at++; /* to the beginning of a word */
    memcpy(window, held_out + (at < last ? at + 1 : 0), W);
}

/* Bytes of the character of UTF-8 at p, of n bytes; 0: none, or a control character. */
static int character(const uint8_t *p, int n) {
    if (p[0] < 0x80) return p[0] == '\n' || (p[0] >= ' ' && p[0] != 0x7f);
    int length = p[0] >= 0xc2 && p[0] < 0xe0 ? 2 : (p[0] & 0xf0) == 0xe0 ? 3 : p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : 0;
    if (!length || length > n) return 0;
    for (int i = 1; i < length; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (p[0] == 0xc2 && p[1] < 0xa0) return 0;                                     /* C1 controls */
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] >= 0xa0)) return 0; /* too long; surrogates */
    if ((p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] >= 0x90)) return 0; /* too long; too great */
    return length;
}

void fe_demo_printable(char *to, const uint8_t *from, int n) {
    for (int i = 0; i < n;) {
        int length = character(from + i, n - i);
        if (length)
            memcpy(to, from + i, (size_t)length);
        else
            *to = '?';
        if (from[i] == '\t') *to = ' ';
        to += length ? length : 1;
        i += length ? length : 1;
    }
    *to = 0;
}
