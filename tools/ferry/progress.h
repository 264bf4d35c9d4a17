/* A progress bar on stderr, shown only when that is a terminal. */
#ifndef FERRY_TOOL_PROGRESS_H
#define FERRY_TOOL_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct fe_progress {
    const char *action;
    bool shown;    /* something is on the line */
    int64_t drawn; /* when, in ns: redrawn ten times a second at most */
} fe_progress;

/* note: short text after the bar, or NULL. */
void fe_progress_draw(fe_progress *progress, int done, int total, const char *note);
/* Wipes the bar off the terminal. */
void fe_progress_end(fe_progress *progress);

#endif
