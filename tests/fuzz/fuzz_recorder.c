/* libFuzzer target: a rank's memfd, as a hostile process may have written it, is read and printed. Whatever it holds, what comes out is in
 * range, and the table is text. The input is laid over a well-formed heap of two ranks, in pieces: offset (3 bytes), length (1), bytes. */
#include "trace.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool good) {
    if (!good) abort();
}

static void lay_over(char *memory, size_t bytes, const uint8_t *data, size_t size) {
    while (size > 4) {
        size_t at = data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16, n = data[3];
        data += 4;
        size -= 4;
        if (n > size) n = size;
        at %= bytes;
        if (n > bytes - at) n = bytes - at;
        memcpy(memory + at, data, n);
        data += n;
        size -= n;
    }
}

static void begin_heap(char *memory, size_t lead) {
    fe_control *control = (fe_control *)(void *)memory;
    fe_recorder *r = (fe_recorder *)(void *)(memory + FE_HEAP_RECORDER_AT);
    *control = (fe_control){.magic = FE_HEAP_MAGIC, .rank = 1, .ranks = 2, .pid = 1};
    r->magic = FE_RECORDER_MAGIC;
    r->group = 7;
    r->cells_at = lead;
    r->began_ns = 1;
    r->began_ticks = 1;
    fe_step_about about = {.text = "dispatch 17 (send)\0....................", .kind = {FE_READY, FE_ROWS}};
    about.epoch[0] = about.epoch[1] = 17;
    fe_step_begin(r, &about);
}

static void check(const fe_snap *snap) {
    for (int i = 0; i < snap->steps; i++) {
        const fe_snap_step *s = &snap->step[i];
        for (const char *c = s->text; *c; c++) require(*c >= ' ' && *c < 127 && *c != '<' && *c != '"');
        for (int k = 0; k < 2; k++) require(s->kind[k] >= -1 && s->kind[k] < FE_KINDS);
        for (int a = 0; a < FE_STEP_STAMPS; a++) require(s->at[a] <= snap->taken_ns);
        require(s->late_rank >= -1 && s->late_rank < snap->ranks);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t lead = (FE_HEAP_RECORDER_AT + fe_recorder_bytes(2) + 4095) / 4096 * 4096;
    size_t bytes = lead + (size_t)FE_KINDS * 2 * 2 * sizeof(fe_cell);
    char *memory = aligned_alloc(64, bytes), *text = NULL;
    size_t length;
    fe_snap snap;
    const char *why;
    memset(memory, 0, bytes);
    begin_heap(memory, lead);
    lay_over(memory, bytes, data, size);
    if (fe_snap_take(memory, bytes, &snap, &why)) {
        check(&snap);
        FILE *file = open_memstream(&text, &length);
        fe_hang_print(file, &snap, 1);
        fclose(file);
        for (size_t i = 0; i < length; i++) require(text[i] == '\n' || (text[i] >= ' ' && text[i] < 127));
        free(text);
        fe_trace_group group = {.group = snap.group, .snap = &snap, .count = 1};
        cJSON_Delete(fe_trace_perfetto(&group));
        cJSON_Delete(fe_trace_data(&group));
        fe_snap_free(&snap);
    }
    free(memory);
    return 0;
}
