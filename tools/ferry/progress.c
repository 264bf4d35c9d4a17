#include "progress.h"
#include "base/os.h"
#include <stdio.h>

#define WIDTH 32

void fe_progress_draw(fe_progress *progress, int done, int total, const char *note) {
    int64_t now = fe_now_ns();
    if (!progress->action || total <= 0 || !isatty(STDERR_FILENO)) return;
    if (progress->shown && now - progress->drawn < 100000000 && done < total) return;
    if (done > total) done = total;
    char bar[WIDTH + 1];
    int full = (int)((int64_t)done * WIDTH / total);
    for (int i = 0; i < WIDTH; i++) bar[i] = i < full ? '#' : '.';
    bar[WIDTH] = 0;
    fprintf(stderr, "\r\033[K%s [%s] %3d%%%s%s", progress->action, bar, (int)((int64_t)done * 100 / total),
            note ? "  " : "", note ? note : "");
    fflush(stderr);
    progress->shown = true;
    progress->drawn = now;
}

void fe_progress_end(fe_progress *progress) {
    if (progress->shown) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
    }
    progress->shown = false;
}
