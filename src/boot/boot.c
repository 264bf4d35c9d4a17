#include "boot/boot.h"
#include "base/env.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/os.h"
#include "boot/hub.h"
#include "boot/net.h"
#include "boot/place.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>

#define GRACE_NS 700000000 /* the hub speaks first when a deadline passes, since it knows who is missing */

struct fe_boot {
    int rank, ranks;
    int64_t timeout_ns;
    int fd; /* -1: by callback */
    uint32_t round;
    ferry_allgather_fn allgather;
    void *context;
    ferry_status failed; /* of the first allgather that did not work: no later one is tried, nor waited for */
    char why[FE_SENTENCE];
};

/* ---- the unique id: "ferry1:SECRET@ADDRESS:PORT", SECRET of 32 hex digits, padded with NUL ---- */

static const char prefix[] = "ferry1:";

ferry_status ferry_unique_id_create(ferry_unique_id *id) {
    if (!id) return fe_fail(FERRY_INVALID, "id is NULL");
    uint8_t secret[FE_WIRE_SECRET];
    char hex[2 * FE_WIRE_SECRET + 1];
    const char *address = fe_env_text(FE_ENV_FERRY_BOOT_ADDRESS);
    int port = 0;
    if (!address) address = "127.0.0.1";
    if (strlen(address) >= FE_HOST_MAX)
        return fe_fail(FERRY_INVALID, "FERRY_BOOT_ADDRESS has %zu characters, at most %d", strlen(address),
                       FE_HOST_MAX - 1);
    if (getrandom(secret, sizeof secret, 0) != (ssize_t)sizeof secret) return fe_fail_errno("drawing a secret");
    FE_TRY(fe_hub_start(address, &port, secret));
    for (int i = 0; i < FE_WIRE_SECRET; i++) snprintf(hex + 2 * i, 3, "%02x", secret[i]);
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "%s%s@%s:%d", prefix, hex, address, port);
    return FERRY_OK;
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static ferry_status parse_id(const ferry_unique_id *id, fe_place *place) {
    char text[sizeof id->bytes + 1];
    memcpy(text, id->bytes, sizeof id->bytes);
    text[sizeof id->bytes] = '\0';
    const char *at = text + sizeof prefix - 1;
    if (strncmp(text, prefix, sizeof prefix - 1) != 0) return fe_fail(FERRY_INVALID, "this is no unique id of Ferry's");
    for (int i = 0; i < FE_WIRE_SECRET; i++, at += 2) {
        int high = hex_digit(at[0]), low = high < 0 ? -1 : hex_digit(at[1]);
        if (low < 0) return fe_fail(FERRY_INVALID, "the secret of this unique id is damaged");
        place->secret[i] = (uint8_t)(high << 4 | low);
    }
    if (*at != '@') return fe_fail(FERRY_INVALID, "this unique id is damaged after its secret");
    return fe_place_parse(at + 1, "the unique id", place);
}

/* ---- joining ---- */

static ferry_status hub_silent(const fe_boot *b, bool late, const char *doing) {
    if (late)
        return fe_fail(FERRY_TIMEOUT, "rank %d: %lld ms passed while %s, and the meeting place says nothing", b->rank,
                       (long long)(b->timeout_ns / 1000000), doing);
    return fe_fail(FERRY_TIMEOUT, "rank %d: the meeting place (the process that made the unique id) is gone while %s",
                   b->rank, doing);
}

/* The header of the next message; an ERROR becomes our status and sentence. */
static ferry_status expect(fe_boot *b, fe_wire_type type, uint32_t bytes, int64_t deadline, const char *doing) {
    uint8_t raw[FE_WIRE_HEADER], payload[FE_WIRE_ERROR_MAX];
    fe_wire_head head;
    bool late;
    if (!fe_net_recv(b->fd, raw, sizeof raw, deadline, &late)) return hub_silent(b, late, doing);
    if (!fe_wire_get_head(raw, UINT32_MAX, &head))
        return fe_fail(FERRY_REFUSED, "rank %d: whoever answers while %s is not Ferry", b->rank, doing);
    if (head.type == type && head.bytes == bytes) return FERRY_OK;
    if (head.type != FE_ERROR || head.bytes < 4 || head.bytes > sizeof payload)
        return fe_fail(FERRY_REFUSED, "rank %d: an answer that makes no sense while %s", b->rank, doing);
    if (!fe_net_recv(b->fd, payload, head.bytes, deadline, &late)) return hub_silent(b, late, doing);
    for (uint32_t i = 4; i < head.bytes; i++) /* whoever answers there: its words, but nothing that steers a terminal */
        if (payload[i] < ' ' || payload[i] == 0x7f) payload[i] = '?';
    ferry_status status = fe_status_heard(fe_wire_get_u32(payload)); /* fe_fail: an error, whatever it says */
    return fe_fail(status, "%.*s", (int)(head.bytes - 4), (const char *)payload + 4);
}

static ferry_status greet(fe_boot *b, const fe_place *place, bool retry) {
    int64_t deadline = fe_now_ns() + b->timeout_ns;
    uint8_t message[FE_WIRE_HEADER + FE_WIRE_HELLO_BYTES];
    fe_hello hello = {.rank = b->rank,
                      .ranks = b->ranks,
                      .library = ferry_version(),
                      .timeout_ms = (int32_t)(b->timeout_ns / 1000000)};
    bool late;
    memcpy(hello.secret, place->secret, FE_WIRE_SECRET);
    fe_wire_put_head(message, FE_HELLO, FE_WIRE_HELLO_BYTES);
    fe_wire_put_hello(message + FE_WIRE_HEADER, &hello);
    FE_TRY(fe_net_connect(place->host, place->port, retry, deadline, &b->fd));
    if (!fe_net_send(b->fd, message, sizeof message, deadline, &late)) return hub_silent(b, late, "greeting");
    return expect(b, FE_WELCOME, 0, deadline + GRACE_NS, "greeting");
}

static fe_boot *new_boot(int rank, int ranks, int timeout_ms) {
    fe_boot *b = calloc(1, sizeof *b);
    if (b) *b = (fe_boot){.rank = rank, .ranks = ranks, .timeout_ns = (int64_t)timeout_ms * 1000000, .fd = -1};
    return b;
}

static ferry_status join(const fe_place *place, bool retry, int rank, int ranks, int timeout_ms, fe_boot **boot) {
    fe_boot *b = new_boot(rank, ranks, timeout_ms);
    if (!b) return fe_fail(FERRY_NOMEM, "no memory to meet %d ranks", ranks);
    ferry_status status = greet(b, place, retry);
    if (status != FERRY_OK) {
        fe_boot_leave(b);
        return status;
    }
    *boot = b;
    return FERRY_OK;
}

ferry_status fe_boot_join(const ferry_unique_id *id, int rank, int ranks, int timeout_ms, fe_boot **boot) {
    fe_place place;
    FE_TRY(parse_id(id, &place));
    return join(&place, false, rank, ranks, timeout_ms, boot);
}

ferry_status fe_boot_callback(ferry_allgather_fn allgather, void *context, int rank, int ranks, fe_boot **boot) {
    fe_boot *b = new_boot(rank, ranks, 0);
    if (!b) return fe_fail(FERRY_NOMEM, "no memory to meet %d ranks", ranks);
    b->allgather = allgather;
    b->context = context;
    *boot = b;
    return FERRY_OK;
}

/* A host's own name may mean its loopback alone (Debian's /etc/hosts), or an address in front of it (a Kubernetes service): where a name
 * is given, all addresses are listened on, IPv6 and IPv4, or IPv4 alone. This process itself then comes by loopback. */
static ferry_status open_hub(fe_place *place) {
    if (strcmp(place->host, "localhost") == 0 || fe_net_is_number(place->host))
        return fe_hub_start(place->host, &place->port, place->secret);
    ferry_status status = fe_hub_start("::", &place->port, place->secret);
    bool v6 = status == FERRY_OK;
    if (!v6) status = fe_hub_start("0.0.0.0", &place->port, place->secret);
    snprintf(place->host, sizeof place->host, "%s", v6 ? "::1" : "127.0.0.1");
    return status;
}

ferry_status fe_boot_environment(const fe_launch *launch, int timeout_ms, fe_boot **boot) {
    fe_place place = launch->place;
    if (launch->rank == 0) FE_TRY(open_hub(&place));
    return join(&place, true, launch->rank, launch->ranks, timeout_ms, boot);
}

/* ---- allgather ---- */

typedef struct question { /* to the hub, and its answer */
    fe_wire_type ask, answer;
    const uint8_t *before; /* what comes before the data, .. */
    size_t before_bytes;
    uint8_t *who; /* ... and in the answer: [ranks], or NULL */
} question;

static ferry_status talk(fe_boot *b, const question *q, const void *mine, void *all, size_t bytes) {
    static const char doing[] = "the group was made";
    int64_t deadline = fe_now_ns() + b->timeout_ns;
    uint8_t head[FE_WIRE_HEADER + 4], round[4];
    bool late;
    size_t answer = (size_t)b->ranks * bytes, who = q->who ? (size_t)b->ranks : 0;
    fe_wire_put_head(head, q->ask, (uint32_t)(4 + q->before_bytes + bytes));
    fe_wire_put_u32(head + FE_WIRE_HEADER, b->round);
    if (!fe_net_send(b->fd, head, sizeof head, deadline, &late) ||
        (q->before_bytes && !fe_net_send(b->fd, q->before, q->before_bytes, deadline, &late)) ||
        !fe_net_send(b->fd, mine, bytes, deadline, &late))
        return hub_silent(b, late, doing);
    FE_TRY(expect(b, q->answer, (uint32_t)(4 + who + answer), deadline + GRACE_NS, doing));
    if (!fe_net_recv(b->fd, round, sizeof round, deadline + GRACE_NS, &late) ||
        (who && !fe_net_recv(b->fd, q->who, who, deadline + GRACE_NS, &late)) ||
        !fe_net_recv(b->fd, all, answer, deadline + GRACE_NS, &late))
        return hub_silent(b, late, doing);
    if (fe_wire_get_u32(round) != b->round)
        return fe_fail(FERRY_MISMATCH, "rank %d is at step %u of making the group, the others at %u", b->rank, b->round,
                       fe_wire_get_u32(round));
    b->round++;
    return FERRY_OK;
}

/* Against damage, not malice: who sits on the path knows the secret, too (docs/security.md). */
static uint64_t seal_of(uint32_t round, int rank, const uint8_t *data, size_t bytes) {
    uint64_t hash = fe_hash_add(fe_hash_add(FE_HASH_BEGIN, round), (uint64_t)rank);
    for (size_t i = 0; i < bytes; i++) hash = fe_hash_add(hash, data[i]);
    return hash;
}

static void put_seal(uint8_t *to, uint64_t seal) {
    fe_wire_put_u32(to, (uint32_t)seal);
    fe_wire_put_u32(to + 4, (uint32_t)(seal >> 32));
}

/* Of a rank that has not come: the hub sends zeros. */
static bool is_blank(const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i]) return false;
    return true;
}

/* A spoilt byte would else be believed wherever it makes sense: one of a machine's name makes two hosts of one. */
static ferry_status open_seals(const fe_boot *b, uint32_t round, const uint8_t *sealed, uint8_t *all, size_t bytes) {
    for (int r = 0; r < b->ranks; r++, sealed += bytes + FE_WIRE_SEAL, all += bytes) {
        uint8_t seal[FE_WIRE_SEAL];
        put_seal(seal, seal_of(round, r, sealed, bytes));
        if (bytes) memcpy(all, sealed, bytes);
        if (memcmp(seal, sealed + bytes, sizeof seal) != 0 && !is_blank(sealed, bytes + FE_WIRE_SEAL))
            return fe_fail(FERRY_SYSTEM, "rank %d: what rank %d said while the group was made came spoilt", b->rank, r);
    }
    return FERRY_OK;
}

static ferry_status ask_hub(fe_boot *b, const question *q, const void *mine, void *all, size_t bytes) {
    size_t each = bytes + FE_WIRE_SEAL;
    uint32_t round = b->round;
    uint8_t *own = malloc(((size_t)b->ranks + 1) * each);
    if (!own) return fe_fail(FERRY_NOMEM, "rank %d: no memory to meet %d ranks", b->rank, b->ranks);
    if (bytes) memcpy(own, mine, bytes);
    put_seal(own + bytes, seal_of(round, b->rank, own, bytes));
    ferry_status status = talk(b, q, own, own + each, each);
    if (status == FERRY_OK) status = open_seals(b, round, own + each, all, bytes);
    free(own);
    return status;
}

static ferry_status gather_by_hub(fe_boot *b, const void *mine, void *all, size_t bytes) {
    question q = {.ask = FE_GATHER, .answer = FE_ALL};
    return ask_hub(b, &q, mine, all, bytes);
}

ferry_status fe_boot_muster(fe_boot *b, const uint8_t *say, const int *unit, const void *mine, uint8_t *who, void *all,
                            size_t bytes) {
    uint8_t before[3 * FERRY_MAX_RANKS];
    question q = {
        .ask = FE_MUSTER, .answer = FE_ROLL, .before = before, .before_bytes = 3 * (size_t)b->ranks, .who = who};
    if (bytes > FE_BOOT_MAX) return fe_fail(FERRY_INVALID, "%zu bytes to gather, at most %d", bytes, FE_BOOT_MAX);
    memcpy(before, say, (size_t)b->ranks);
    for (int r = 0; r < b->ranks; r++) {
        before[b->ranks + 2 * r] = (uint8_t)unit[r];
        before[b->ranks + 2 * r + 1] = (uint8_t)(unit[r] >> 8);
    }
    b->failed = ask_hub(b, &q, mine, all, bytes);
    if (b->failed != FERRY_OK) snprintf(b->why, sizeof b->why, "%s", ferry_last_error());
    return b->failed;
}

static ferry_status gather_by_caller(fe_boot *b, const void *mine, void *all, size_t bytes) {
    int result = b->allgather(b->context, mine, all, bytes);
    if (result == 0) return FERRY_OK;
    return fe_fail(FERRY_SYSTEM, "rank %d: the caller's allgather of %zu bytes returned %d", b->rank, bytes, result);
}

ferry_status fe_boot_allgather(fe_boot *b, const void *mine, void *all, size_t bytes) {
    if (b->failed != FERRY_OK) return fe_fail_again(b->failed, b->why);
    if (bytes > FE_BOOT_MAX) return fe_fail(FERRY_INVALID, "%zu bytes to gather, at most %d", bytes, FE_BOOT_MAX);
    b->failed = (b->allgather ? gather_by_caller : gather_by_hub)(b, mine, all, bytes);
    if (b->failed != FERRY_OK) snprintf(b->why, sizeof b->why, "%s", ferry_last_error());
    return b->failed;
}

ferry_status fe_boot_agree(fe_boot *b, ferry_status status, const char *doing) {
    uint32_t mine = (uint32_t)status, *all = calloc((size_t)b->ranks, sizeof *all);
    char sentence[FE_SENTENCE];
    snprintf(sentence, sizeof sentence, "%s", ferry_last_error());
    if (!all) return fe_fail(FERRY_NOMEM, "rank %d: no memory to meet %d ranks", b->rank, b->ranks);
    ferry_status met = fe_boot_allgather(b, &mine, all, sizeof mine);
    for (int r = 0; status == FERRY_OK && met == FERRY_OK && r < b->ranks; r++)
        if (all[r] != FERRY_OK) met = fe_fail(fe_status_heard(all[r]), "rank %d could not %s", r, doing);
    free(all);
    /* Who misses a rank may miss one that has left for want of another: the meeting place knows who was first. */
    bool knows_better = status == FERRY_TIMEOUT && met != FERRY_OK;
    return status != FERRY_OK && !knows_better ? fe_fail_again(status, sentence) : met;
}

void fe_boot_address(const fe_boot *b, char address[FE_BOOT_ADDRESS]) {
    struct sockaddr_storage own;
    socklen_t size = sizeof own;
    address[0] = '\0';
    if (b->fd < 0 || getsockname(b->fd, (struct sockaddr *)&own, &size) != 0) return;
    if (getnameinfo((struct sockaddr *)&own, size, address, FE_BOOT_ADDRESS, NULL, 0, NI_NUMERICHOST) != 0)
        address[0] = '\0';
}

void fe_boot_leave(fe_boot *b) {
    if (b && b->fd >= 0) close(b->fd);
    free(b);
}
