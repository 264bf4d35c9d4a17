#include "boot/meeting.h"

#include <stdio.h>
#include <stdlib.h>

int fe_meeting_enter(fe_meeting *m, int64_t now) {
    for (int g = 0; g < FE_GUESTS; g++) {
        if (m->guest[g].here) continue;
        m->guest[g] = (fe_guest){.here = true, .rank = -1, .deadline_ns = now + (int64_t)FE_HELLO_MS * 1000000};
        return g;
    }
    return -1;
}

static bool say(fe_meeting *m, int guest, fe_wire_type type, const void *payload, uint32_t bytes) {
    uint8_t message[FE_WIRE_HEADER + FE_WIRE_ERROR_MAX];
    fe_wire_put_head(message, type, bytes);
    memcpy(message + FE_WIRE_HEADER, payload, bytes);
    return m->send(m->context, guest, message, FE_WIRE_HEADER + bytes);
}

static void say_error(fe_meeting *m, int guest, ferry_status status, const char *sentence) {
    uint8_t payload[FE_WIRE_ERROR_MAX];
    size_t n = strnlen(sentence, FE_SENTENCE - 1);
    fe_wire_put_u32(payload, (uint32_t)status);
    memcpy(payload + 4, sentence, n);
    say(m, guest, FE_ERROR, payload, (uint32_t)(4 + n));
}

/* The lowest rank comes last: it is most often the one whose process the hub lives in, and that may end once it is told. */
static void say_error_to_waiting(fe_meeting *m, ferry_status status, const char *sentence) {
    for (int r = m->ranks - 1; r >= 0; r--) {
        fe_guest *g = m->guest_of[r] ? &m->guest[m->guest_of[r] - 1] : NULL;
        if (!g || !g->gathered || !g->deadline_ns) continue;
        g->deadline_ns = 0; /* told; it stays gathered: a rank that came is not to be blamed */
        say_error(m, m->guest_of[r] - 1, status, sentence);
    }
}

/* Somebody has left: whoever waits for him, or comes to, is told at once. */
static void mourn(fe_meeting *m) {
    char sentence[FE_SENTENCE];
    snprintf(sentence, sizeof sentence, "rank %d went away while the group was made", m->left - 1);
    say_error_to_waiting(m, FERRY_TIMEOUT, sentence);
}

/* The refusal's status, with its sentence; FERRY_OK: welcome. */
static ferry_status judge_hello(const fe_meeting *m, const fe_hello *h, char sentence[FE_SENTENCE]) {
    if (!fe_wire_same_secret(h->secret, m->secret)) {
        snprintf(sentence, FE_SENTENCE, "the secret is not the one of the group that meets here");
        return FERRY_REFUSED;
    }
    if (h->ranks < 1 || h->ranks > FERRY_MAX_RANKS || h->rank < 0 || h->rank >= h->ranks) {
        snprintf(sentence, FE_SENTENCE, "rank %d of %d is no rank", h->rank, h->ranks);
        return FERRY_INVALID;
    }
    if (m->ranks && h->ranks != m->ranks) {
        snprintf(sentence, FE_SENTENCE, "ranks is %d at rank %d, %d at those who came before", h->ranks, h->rank,
                 m->ranks);
        return FERRY_MISMATCH;
    }
    if (m->ranks && h->library != m->library) {
        snprintf(sentence, FE_SENTENCE, "library version is %d at rank %d, %d at those who came before", h->library,
                 h->rank, m->library);
        return FERRY_MISMATCH;
    }
    if (m->absent[h->rank]) {
        snprintf(sentence, FE_SENTENCE, "rank %d: the other ranks have met without it", h->rank);
        return FERRY_REFUSED;
    }
    if (m->guest_of[h->rank]) {
        snprintf(sentence, FE_SENTENCE, "rank %d is taken: another rank says that it is %d of %d", h->rank, h->rank,
                 h->ranks);
        return FERRY_MISMATCH;
    }
    return FERRY_OK;
}

static bool hear_hello(fe_meeting *m, int guest, int64_t now) {
    fe_guest *g = &m->guest[guest];
    fe_hello hello;
    char sentence[FE_SENTENCE];
    if (g->rank >= 0 || g->message.bytes != FE_WIRE_HELLO_BYTES) return false;
    fe_wire_get_hello(g->payload, &hello);
    ferry_status status = judge_hello(m, &hello, sentence);
    if (status != FERRY_OK) {
        say_error(m, guest, status, sentence);
        return false;
    }
    m->ranks = hello.ranks;
    m->library = hello.library;
    m->guest_of[hello.rank] = guest + 1;
    if (m->left == hello.rank + 1) m->left = 0; /* back again */
    m->present++;
    m->came[hello.rank] = true;
    g->rank = hello.rank;
    g->timeout_ns = (int64_t)(hello.timeout_ms > 0 ? hello.timeout_ms : 1) * 1000000;
    if (!m->begun) m->begun_ns = now;
    if (m->begun_ns + g->timeout_ns > m->late_ns) m->late_ns = m->begun_ns + g->timeout_ns;
    m->begun = true;
    g->deadline_ns = 0;
    return say(m, guest, FE_WELCOME, "", 0);
}

static fe_guest *guest_of(fe_meeting *m, int rank) {
    return m->guest_of[rank] ? &m->guest[m->guest_of[rank] - 1] : NULL;
}

static bool send_zeros(fe_meeting *m, int guest, uint32_t bytes) {
    static const uint8_t zeros[4096];
    bool there = true;
    for (uint32_t n; there && bytes; bytes -= n) {
        n = bytes < sizeof zeros ? bytes : (uint32_t)sizeof zeros;
        there = m->send(m->context, guest, zeros, n);
    }
    return there;
}

/* A rank that sends nothing to all others: the whole answer is sent in one go, rank by rank. beside: what comes first, a byte for each rank;
 * skip: bytes that each has sent before its data. */
static void answer_all(fe_meeting *m, fe_wire_type type, const uint8_t *beside, uint32_t skip, uint32_t bytes) {
    uint8_t head[FE_WIRE_HEADER + 4];
    uint32_t first = beside ? (uint32_t)m->ranks : 0;
    fe_wire_put_head(head, type, 4 + first + (uint32_t)m->ranks * bytes);
    fe_wire_put_u32(head + FE_WIRE_HEADER, m->round);
    for (int to = m->ranks - 1; to >= 0; to--) { /* as errors: the lowest comes last */
        if (m->absent[to]) continue;
        int guest = m->guest_of[to] - 1;
        bool there =
            m->send(m->context, guest, head, sizeof head) && (!beside || m->send(m->context, guest, beside, first));
        for (int from = 0; there && bytes && from < m->ranks; from++)
            there = m->absent[from] ? send_zeros(m, guest, bytes)
                                    : m->send(m->context, guest, guest_of(m, from)->payload + 4 + skip, bytes);
    }
    for (int r = 0; r < m->ranks; r++) {
        fe_guest *g = guest_of(m, r);
        if (!g || m->absent[r]) continue;
        free(g->payload);
        g->payload = NULL;
        g->gathered = false;
        g->deadline_ns = 0;
    }
    m->round++;
}

/* ---- who comes, where not all need ---- */

static uint32_t muster_head(const fe_meeting *m) {
    return 3 * (uint32_t)m->ranks;
}

static bool one_unit(const fe_guest *g, int ranks, int a, int b) {
    const uint8_t *unit = g->payload + 4 + ranks;
    return unit[2 * a] == unit[2 * b] && unit[2 * a + 1] == unit[2 * b + 1];
}

/* What is said of each rank, all in all: by those of the group, in ascending order; who is out by then is not asked, and takes its unit
 * along. */
static void weigh(fe_meeting *m, uint8_t *said) {
    memset(said, FE_SAY_WAIT, (size_t)m->ranks);
    for (int r = 0; r < m->ranks; r++) {
        const fe_guest *g = guest_of(m, r);
        if (!g || !g->gathered || g->payload[4 + r] != FE_SAY_WAIT || said[r] == FE_SAY_OUT) continue;
        for (int other = 0; other < m->ranks; other++) {
            uint8_t now = g->payload[4 + other];
            if (now == FE_SAY_OUT || (now == FE_SAY_BACK && said[other] != FE_SAY_OUT) ||
                (now == FE_SAY_AWAY && said[other] == FE_SAY_WAIT))
                said[other] = now;
            for (int r2 = 0; now == FE_SAY_OUT && r2 < m->ranks; r2++)
                if (one_unit(g, m->ranks, other, r2)) said[r2] = FE_SAY_OUT;
        }
    }
}

/* A unit of which one is missing is missing. Any guest that has gathered knows the units. */
static void drop_torn(fe_meeting *m, uint8_t *who) {
    const fe_guest *knows = NULL;
    uint8_t whole[FERRY_MAX_RANKS] = {0};
    for (int r = 0; r < m->ranks && !knows; r++)
        if (who[r]) knows = guest_of(m, r);
    for (int r = 0; r < m->ranks && knows; r++) {
        whole[r] = 1;
        for (int other = 0; other < m->ranks; other++)
            if (!who[other] && one_unit(knows, m->ranks, r, other)) whole[r] = 0;
    }
    for (int r = 0; r < m->ranks; r++) who[r] = who[r] && whole[r];
}

static bool comes(uint8_t said) {
    return said == FE_SAY_WAIT || said == FE_SAY_BACK;
}

/* Who has come by now, and may, is of it; the others are sent away. */
static void call_roll(fe_meeting *m, uint32_t bytes) {
    uint8_t said[FERRY_MAX_RANKS], who[FERRY_MAX_RANKS];
    char sentence[FE_SENTENCE];
    weigh(m, said);
    m->called = true;
    for (int r = 0; r < m->ranks; r++) {
        fe_guest *g = guest_of(m, r);
        who[r] = g && g->gathered && comes(said[r]);
    }
    drop_torn(m, who);
    for (int r = 0; r < m->ranks; r++) {
        fe_guest *g = guest_of(m, r);
        m->absent[r] = !who[r];
        if (who[r] || !g) continue;
        snprintf(sentence, sizeof sentence, "rank %d: the other ranks go on without it", r);
        g->deadline_ns = 0;
        say_error(m, m->guest_of[r] - 1, FERRY_REFUSED, sentence);
    }
    answer_all(m, FE_ROLL, who, muster_head(m), bytes);
}

static bool hear_muster(fe_meeting *m, int guest, int64_t now) {
    fe_guest *g = &m->guest[guest];
    uint8_t said[FERRY_MAX_RANKS];
    if (g->rank < 0 || g->message.bytes < 4 + muster_head(m) || m->round || m->called ||
        fe_wire_get_u32(g->payload) != 0 || m->gathers)
        return false;
    m->musters = true;
    g->gathered = true;
    g->deadline_ns = now + g->timeout_ns;
    weigh(m, said);
    for (int r = 0; r < m->ranks; r++) {
        const fe_guest *other = guest_of(m, r);
        if (other && other->gathered && other->message.bytes != g->message.bytes) return false;
        if (comes(said[r]) && !(other && other->gathered)) return true; /* somebody is still to come */
    }
    call_roll(m, g->message.bytes - 4 - muster_head(m));
    return true;
}

static bool hear_gather(fe_meeting *m, int guest, int64_t now) {
    fe_guest *g = &m->guest[guest];
    if (g->rank < 0 || g->message.bytes < 4 || fe_wire_get_u32(g->payload) != m->round) return false;
    if (m->absent[g->rank] || (m->musters && !m->called)) return false;
    m->gathers = true;
    g->gathered = true;
    g->deadline_ns = now + g->timeout_ns;
    if (m->left) mourn(m);
    for (int r = 0; r < m->ranks; r++) {
        const fe_guest *other = guest_of(m, r);
        if (m->absent[r]) continue;
        if (!other || !other->gathered) return true; /* somebody is still to come */
        if (other->message.bytes == g->message.bytes) continue;
        char sentence[FE_SENTENCE];
        snprintf(sentence, sizeof sentence, "rank %d gathers %u bytes, rank %d %u", g->rank, g->message.bytes - 4, r,
                 other->message.bytes - 4);
        say_error_to_waiting(m, FERRY_MISMATCH, sentence);
        return true;
    }
    answer_all(m, FE_ALL, NULL, 0, g->message.bytes - 4);
    return true;
}

static bool hear_message(fe_meeting *m, int guest, int64_t now) {
    fe_guest *g = &m->guest[guest];
    bool good = g->message.type == FE_HELLO    ? hear_hello(m, guest, now)
                : g->message.type == FE_GATHER ? hear_gather(m, guest, now)
                : g->message.type == FE_MUSTER ? hear_muster(m, guest, now)
                                               : false;
    if (!g->gathered) { /* a contribution is kept until it is answered */
        free(g->payload);
        g->payload = NULL;
    }
    g->head_have = 0;
    return good;
}

bool fe_meeting_hear(fe_meeting *m, int guest, const uint8_t *bytes, size_t n, int64_t now) {
    fe_guest *g = &m->guest[guest];
    while (n > 0) {
        if (g->gathered) return false; /* it waits for an answer and has nothing to say */
        if (g->head_have < FE_WIRE_HEADER) {
            g->head[g->head_have++] = *bytes++;
            n--;
            if (g->head_have < FE_WIRE_HEADER) continue;
            uint32_t most = g->rank < 0 ? FE_WIRE_HELLO_BYTES : FE_WIRE_GATHER_MAX;
            if (!fe_wire_get_head(g->head, most, &g->message)) return false;
            g->have = 0;
            g->payload = malloc(g->message.bytes + 1);
            if (!g->payload) return false;
        } else {
            uint32_t wanted = g->message.bytes - g->have, take = n < wanted ? (uint32_t)n : wanted;
            memcpy(g->payload + g->have, bytes, take);
            g->have += take;
            bytes += take;
            n -= take;
        }
        if (g->have == g->message.bytes && !hear_message(m, guest, now)) return false;
    }
    return true;
}

void fe_meeting_leave(fe_meeting *m, int guest) {
    fe_guest *g = &m->guest[guest];
    if (!g->here) return;
    int rank = g->rank;
    free(g->payload);
    *g = (fe_guest){.rank = -1};
    if (rank < 0) return;
    m->guest_of[rank] = 0;
    m->present--;
    if (m->absent[rank] || (m->musters && !m->called)) return; /* nobody counts on it */
    if (!m->left) m->left = rank + 1;
    mourn(m);
}

static void name_missing(const fe_meeting *m, int64_t timeout_ns, char sentence[FE_SENTENCE]) {
    int used = snprintf(sentence, FE_SENTENCE, "%lld ms passed while the group was made, without",
                        (long long)(timeout_ns / 1000000));
    for (int r = 0; r < m->ranks && used < FE_SENTENCE - 32; r++) {
        const fe_guest *g = m->guest_of[r] ? &m->guest[m->guest_of[r] - 1] : NULL;
        if (!m->absent[r] && (!g || !g->gathered))
            used += snprintf(sentence + used, (size_t)(FE_SENTENCE - used), " rank %d", r);
    }
}

/* Those who are late for a group that will not be: who comes yet reads why. One that never does (a stopped process) is not waited for. */
static void send_home(fe_meeting *m, ferry_status status, const char *sentence,
                      void (*close)(void *context, int guest)) {
    for (int r = 0; r < m->ranks; r++) {
        int guest = m->guest_of[r] - 1;
        if (guest < 0 || m->guest[guest].gathered) continue;
        say_error(m, guest, status, sentence);
        close(m->context, guest);
        free(m->guest[guest].payload);
        m->guest[guest] = (fe_guest){.rank = -1};
        m->guest_of[r] = 0;
        m->present--;
    }
}

/* One has left: no round will have all any more. Who is still here reads what it was told and goes; one that does not (a stopped process)
 * is not waited for longer than it would have waited itself. */
static void see_off(const fe_meeting *m, fe_guest *g, int64_t now) {
    if (g->rank < 0 || g->gathered) return;
    if (!m->left)
        g->deadline_ns = 0;
    else if (!g->deadline_ns)
        g->deadline_ns = now + g->timeout_ns;
}

int64_t fe_meeting_tick(fe_meeting *m, int64_t now, void (*close)(void *context, int guest)) {
    int64_t next = INT64_MAX;
    for (int i = 0; i < FE_GUESTS; i++) {
        fe_guest *g = &m->guest[i];
        if (!g->here) continue;
        see_off(m, g, now);
        if (!g->deadline_ns) continue;
        if (now < g->deadline_ns) {
            if (g->deadline_ns < next) next = g->deadline_ns;
        } else if (g->gathered && m->musters && !m->called) {
            call_roll(m, g->message.bytes - 4 - muster_head(m));
        } else if (g->gathered) {
            char sentence[FE_SENTENCE];
            name_missing(m, g->timeout_ns, sentence);
            say_error_to_waiting(m, FERRY_TIMEOUT, sentence); /* without this rank there will be no group for any */
            send_home(m, FERRY_TIMEOUT, sentence, close);
        } else {
            close(m->context, i);
            fe_meeting_leave(m, i);
        }
    }
    if (m->begun && !m->present && m->late_ns < next) next = m->late_ns;
    return next;
}

/* Where a rank has died, the others are told and go at once; one that was about to come is to read why, not that there is nobody. */
bool fe_meeting_over(const fe_meeting *m, int64_t now) {
    if (!m->begun || m->present) return false;
    for (int r = 0; m->lingers && r < m->ranks; r++)
        if (!m->came[r] && !m->absent[r]) return now >= m->late_ns;
    return true;
}

void fe_meeting_free(fe_meeting *m) {
    for (int g = 0; g < FE_GUESTS; g++) free(m->guest[g].payload);
}
