/* libFuzzer target: the messages that arrive at a group's meeting place. The input is a play for up to eight connections: some say
 * what ranks say, some say anything at all, and time goes by. The hub must answer in well-formed messages only, give everybody's
 * data to nobody but ranks that said the secret, and keep no memory. */
#include "boot/meeting.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { ACTORS = 8 };

typedef struct stage {
    fe_meeting meeting;
    int guest[ACTORS];     /* -1: not connected */
    bool knows[ACTORS];    /* has said the secret */
    uint32_t owed[ACTORS]; /* bytes of a message that the hub has begun and not finished */
} stage;

static void require(bool good) {
    if (!good) abort();
}

static int actor_of(const stage *s, int guest) {
    for (int a = 0; a < ACTORS; a++)
        if (s->guest[a] == guest) return a;
    abort();
}

static bool heard(void *context, int guest, const void *bytes, size_t n) {
    stage *s = context;
    int a = actor_of(s, guest);
    fe_wire_head head;
    if (s->owed[a]) { /* more of an ALL message */
        require(n <= s->owed[a]);
        s->owed[a] -= (uint32_t)n;
        return true;
    }
    require(n >= FE_WIRE_HEADER && fe_wire_get_head(bytes, UINT32_MAX, &head));
    require(n - FE_WIRE_HEADER <= head.bytes);
    s->owed[a] = head.bytes - (uint32_t)(n - FE_WIRE_HEADER);
    if (head.type == FE_ALL || head.type == FE_WELCOME) require(s->knows[a]);
    require(head.type == FE_ALL || s->owed[a] == 0);
    if (head.type == FE_ERROR) require(head.bytes >= 4 && head.bytes <= FE_WIRE_ERROR_MAX);
    return true;
}

static void gone(void *context, int guest) {
    stage *s = context;
    int a = actor_of(s, guest);
    s->guest[a] = -1;
    s->knows[a] = false;
    s->owed[a] = 0;
}

static void say(stage *s, int a, const uint8_t *bytes, size_t n, int64_t now) {
    int guest = s->guest[a];
    if (guest < 0 || fe_meeting_hear(&s->meeting, guest, bytes, n, now)) return;
    gone(s, guest);
    fe_meeting_leave(&s->meeting, guest);
}

static void say_hello(stage *s, int a, uint8_t what, int64_t now) {
    uint8_t message[FE_WIRE_HEADER + FE_WIRE_HELLO_BYTES];
    fe_hello hello = {.rank = what & 3, .ranks = (what >> 2 & 3) + 1, .library = ferry_version(), .timeout_ms = 5};
    memcpy(hello.secret, s->meeting.secret, FE_WIRE_SECRET);
    if (what & 0x80)
        hello.secret[what >> 4 & 7] ^= 1;
    else
        s->knows[a] = true;
    fe_wire_put_head(message, FE_HELLO, FE_WIRE_HELLO_BYTES);
    fe_wire_put_hello(message + FE_WIRE_HEADER, &hello);
    say(s, a, message, sizeof message, now);
}

static void say_gather(stage *s, int a, uint8_t bytes, int64_t now) {
    uint8_t message[FE_WIRE_HEADER + 4 + 255] = {0};
    fe_wire_put_head(message, FE_GATHER, 4u + bytes);
    fe_wire_put_u32(message + FE_WIRE_HEADER, s->meeting.round);
    say(s, a, message, FE_WIRE_HEADER + 4 + (size_t)bytes, now);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static stage s;
    int64_t now = 0;
    memset(&s, 0, sizeof s);
    memcpy(s.meeting.secret, "sixteen secrets!", FE_WIRE_SECRET);
    s.meeting.send = heard;
    s.meeting.context = &s;
    for (int a = 0; a < ACTORS; a++) s.guest[a] = -1;
    while (size >= 2) {
        int a = data[0] & 7;
        uint8_t act = data[0] >> 3 & 7, what = data[1];
        data += 2, size -= 2;
        if (s.guest[a] < 0) s.guest[a] = fe_meeting_enter(&s.meeting, now);
        size_t n = what < size ? what : size;
        switch (act) {
        case 0: say_hello(&s, a, what, now); break;
        case 1: say_gather(&s, a, what, now); break;
        case 2: /* anything, from somebody who might know the secret */
        case 3:
            say(&s, a, data, n, now);
            data += n, size -= n;
            break;
        case 4:
            fe_meeting_leave(&s.meeting, s.guest[a]);
            gone(&s, s.guest[a]);
            break;
        default: now += (int64_t)what * 100000000; break;
        }
        fe_meeting_tick(&s.meeting, now, gone);
        if (fe_meeting_over(&s.meeting, now)) break;
    }
    fe_meeting_free(&s.meeting);
    return 0;
}
