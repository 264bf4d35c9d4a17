/* Who sent how much to which expert, as a picture: one panel a layer, a row for each source rank, a column for each expert. */
#include "demo.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum {
    E = FE_DEMO_EXPERTS,
    CELL_W = 50,
    CELL_H = 30,
    LEFT = 76,
    TOP = 64,
    PANEL_TOP = 58,
    PANEL_GAP = 26,
    LEGEND = 260
};

/* The picture follows the viewer's light or dark scheme; the cells bring their own ground and so stay as they are. */
static const char style[] =
    "<style>"
    "text{font:12px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}"
    ".paper{fill:#fff}.title{font-size:17px;font-weight:600}.head{font-size:13px;font-weight:600}.mute{fill:#59636e}"
    ".line{stroke:#8c959f}.own{fill:none;stroke:#bc4c00;stroke-width:2}.pale{fill:#0b1c2c}.deep{fill:#fff}"
    ".end{text-anchor:end}.mid{text-anchor:middle}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.paper{fill:#0d1117}.mute{fill:#9198a1}.line{stroke:#656c76}"
    ".own{stroke:#f0883e}}"
    "</style>\n";

typedef struct picture {
    FILE *file;
    const fe_demo *demo;
    uint64_t most;
} picture;

static void color(double t, char *to, size_t size) {
    static const double stop[3][3] = {{239, 246, 252}, {107, 174, 214}, {8, 48, 107}};
    int i = t < 0.5 ? 0 : 1, c[3];
    double part = (t - 0.5 * i) * 2;
    for (int j = 0; j < 3; j++) c[j] = (int)(stop[i][j] + (stop[i + 1][j] - stop[i][j]) * part + 0.5);
    snprintf(to, size, "#%02x%02x%02x", c[0], c[1], c[2]);
}

static const char *brief(uint64_t n, char *to, size_t size) {
    if (n < 1000)
        snprintf(to, size, "%d", (int)n);
    else if (n < 999950)
        snprintf(to, size, "%.*fk", n < 99950 ? 1 : 0, (double)n / 1e3);
    else
        snprintf(to, size, "%.*fM", n < 99950000 ? 1 : 0, (double)n / 1e6);
    return to;
}

static void draw_cell(const picture *p, int layer, int rank, int expert, int x, int y) {
    const fe_demo_result *r = p->demo->many;
    uint64_t n = r->sent[rank][layer][expert], all = 0;
    char fill[8], text[24];
    double t = p->most ? (double)n / (double)p->most : 0;
    for (int e = 0; e < E; e++) all += r->sent[rank][layer][e];
    color(t, fill, sizeof fill);
    fprintf(p->file,
            "<g><title>layer %d: rank %d sent %llu rows to expert %d, which lives on rank %d; %.1f%% of the rows it "
            "sent</title>",
            layer, rank, (unsigned long long)n, expert, r->expert_rank[expert],
            all ? 100 * (double)n / (double)all : 0);
    fprintf(p->file, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"3\" fill=\"%s\"/>", x + 1, y + 1,
            CELL_W - 2, CELL_H - 2, fill);
    if (r->expert_rank[expert] == rank)
        fprintf(p->file, "<rect class=\"own\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"3\"/>", x + 2, y + 2,
                CELL_W - 4, CELL_H - 4);
    fprintf(p->file, "<text class=\"mid %s\" x=\"%d\" y=\"%d\">%s</text></g>\n", t > 0.68 ? "deep" : "pale",
            x + CELL_W / 2, y + CELL_H / 2 + 4, brief(n, text, sizeof text));
}

/* Above the columns: the experts' numbers, and the ranks where they live. */
static void draw_columns(const picture *p, int y) {
    const int *home = p->demo->many->expert_rank;
    for (int e = 0, first = 0; e < E; e++) {
        fprintf(p->file, "<text class=\"mid mute\" x=\"%d\" y=\"%d\">%d</text>\n", LEFT + e * CELL_W + CELL_W / 2,
                y - 6, e);
        if (e + 1 < E && home[e + 1] == home[e]) continue;
        int from = LEFT + first * CELL_W, to = LEFT + (e + 1) * CELL_W;
        fprintf(p->file, "<path class=\"line\" d=\"M%d %dH%d\"/><text class=\"mid\" x=\"%d\" y=\"%d\">%s %d</text>\n",
                from + 4, y - 22, to - 4, (from + to) / 2, y - 28, to - from > 120 ? "experts of rank" : "rank",
                home[e]);
        first = e + 1;
    }
}

static void draw_panel(const picture *p, int layer, int y) {
    fprintf(p->file, "<text class=\"head\" x=\"14\" y=\"%d\">Layer %d</text>\n", y + 16, layer);
    y += PANEL_TOP;
    draw_columns(p, y);
    fprintf(p->file, "<text class=\"end mute\" x=\"%d\" y=\"%d\">expert</text>\n", LEFT - 8, y - 6);
    for (int rank = 0; rank < p->demo->ranks; rank++) {
        int at = y + rank * CELL_H;
        fprintf(p->file, "<text class=\"end\" x=\"%d\" y=\"%d\">from %d</text>\n", LEFT - 8, at + CELL_H / 2 + 4, rank);
        for (int e = 0; e < E; e++) draw_cell(p, layer, rank, e, LEFT + e * CELL_W, at);
    }
}

static void draw_legend(const picture *p, int y) {
    char fill[8], text[24];
    fprintf(p->file, "<defs><linearGradient id=\"ramp\">");
    for (int i = 0; i <= 2; i++) {
        color(i / 2.0, fill, sizeof fill);
        fprintf(p->file, "<stop offset=\"%g\" stop-color=\"%s\"/>", i / 2.0, fill);
    }
    fprintf(p->file,
            "</linearGradient></defs>\n<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"12\" rx=\"3\" "
            "fill=\"url(#ramp)\"/>\n",
            LEFT, y, LEGEND);
    fprintf(p->file, "<text class=\"end\" x=\"%d\" y=\"%d\">0</text><text x=\"%d\" y=\"%d\">%s rows</text>\n", LEFT - 8,
            y + 11, LEFT + LEGEND + 8, y + 11, brief(p->most, text, sizeof text));
    int x = LEFT + LEGEND + 120;
    fprintf(p->file,
            "<rect class=\"own\" x=\"%d\" y=\"%d\" width=\"20\" height=\"14\" rx=\"3\"/><text x=\"%d\" y=\"%d\">the "
            "rank's own "
            "experts: rows that stay at home</text>\n",
            x, y - 1, x + 28, y + 11);
}

static void draw_all(const picture *p) {
    const fe_demo *d = p->demo;
    const int panel = PANEL_TOP + d->ranks * CELL_H + PANEL_GAP, width = LEFT + E * CELL_W + 16;
    const int height = TOP + FE_DEMO_LAYERS * panel + 34;
    fprintf(p->file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\" "
            "aria-labelledby=\"title about\">\n<title id=\"title\">Rows sent to each expert</title>\n",
            width, height, width, height);
    fprintf(p->file, "<desc id=\"about\">Rows that each of %d ranks sent to each of %d experts in training.</desc>\n%s",
            d->ranks, E, style);
    fprintf(p->file, "<rect class=\"paper\" width=\"%d\" height=\"%d\"/>\n", width, height);
    fprintf(p->file, "<text class=\"title\" x=\"14\" y=\"28\">Who sent how much to which expert</text>\n");
    fprintf(p->file,
            "<text class=\"mute\" x=\"14\" y=\"48\">ferry demo: rows dispatched in %d training steps of %d tokens, "
            "top-%d, by "
            "source rank and expert</text>\n",
            d->steps, d->batch, FE_DEMO_TOPK);
    for (int layer = 0; layer < FE_DEMO_LAYERS; layer++) draw_panel(p, layer, TOP + layer * panel);
    draw_legend(p, TOP + FE_DEMO_LAYERS * panel);
    fprintf(p->file, "</svg>\n");
}

bool fe_demo_svg(const fe_demo *d, const char *path, char *why) {
    picture p = {fopen(path, "w"), d, 0};
    for (int r = 0; r < d->ranks; r++)
        for (int layer = 0; layer < FE_DEMO_LAYERS; layer++)
            for (int e = 0; e < E; e++)
                if (d->many->sent[r][layer][e] > p.most) p.most = d->many->sent[r][layer][e];
    if (p.file) draw_all(&p);
    bool good = p.file && !ferror(p.file);
    if (p.file) good = fclose(p.file) == 0 && good;
    if (!good) snprintf(why, FE_DEMO_WHY, "the heat map could not be written to %.400s: %s", path, strerror(errno));
    return good;
}
