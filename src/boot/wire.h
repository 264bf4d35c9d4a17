/* What travels between a rank and the hub at which a group meets: messages of a 16-byte header and a payload, little
 * endian. Pure functions: no sockets. Whatever the bytes are, parsing reads nothing outside of them and accepts no length past
 * the bounds below.
 *
 *   header   "FRYB", version u16, type u16, payload bytes u32, zero u32
 *   HELLO    rank -> hub   secret[16], rank i32, ranks i32, library version i32, timeout_ms i32
 *   WELCOME  hub -> rank   empty
 *   GATHER   rank -> hub   round u32, data
 *   ALL      hub -> rank   round u32, data of all ranks, in rank order
 *   MUSTER   rank -> hub   round u32 (0), an fe_say byte of each rank, a u16 of each: ranks of one number come together or not at all, data
 *   ROLL     hub -> rank   round u32, a byte of each rank (1: it has come), data of all ranks, zeros of who has not
 *   ERROR    hub -> rank   ferry_status i32, a sentence
 *
 * Data of a rank ends with a seal of 8 bytes, which the hub does not look at: the other ranks know by it that they read what was sent.
 */
#ifndef FERRY_BOOT_WIRE_H
#define FERRY_BOOT_WIRE_H

#include "base/status.h"
#include "boot/boot.h"
#include <stdbool.h>

enum {
    FE_WIRE_VERSION = 2,
    FE_WIRE_HEADER = 16,
    FE_WIRE_SECRET = 16,
    FE_WIRE_HELLO_BYTES = FE_WIRE_SECRET + 16,
    FE_WIRE_SEAL = 8,
    FE_WIRE_GATHER_MAX = 4 + 3 * FERRY_MAX_RANKS + FE_BOOT_MAX + FE_WIRE_SEAL, /* the largest that a hub accepts */
    FE_WIRE_ERROR_MAX = 4 + FE_SENTENCE
};

typedef enum fe_wire_type { FE_HELLO = 1, FE_WELCOME, FE_GATHER, FE_ALL, FE_ERROR, FE_MUSTER, FE_ROLL } fe_wire_type;

typedef struct fe_wire_head {
    fe_wire_type type;
    uint32_t bytes;
} fe_wire_head;

typedef struct fe_hello {
    uint8_t secret[FE_WIRE_SECRET];
    int32_t rank, ranks, library, timeout_ms;
} fe_hello;

void fe_wire_put_head(uint8_t head[FE_WIRE_HEADER], fe_wire_type type, uint32_t bytes);
/* false: not Ferry's, another version, an unknown type, or more payload than `most`. */
bool fe_wire_get_head(const uint8_t head[FE_WIRE_HEADER], uint32_t most, fe_wire_head *out);

void fe_wire_put_hello(uint8_t payload[FE_WIRE_HELLO_BYTES], const fe_hello *hello);
void fe_wire_get_hello(const uint8_t payload[FE_WIRE_HELLO_BYTES], fe_hello *hello);

void fe_wire_put_u32(uint8_t *to, uint32_t value);
uint32_t fe_wire_get_u32(const uint8_t *from);

/* Takes as long for any two secrets. */
bool fe_wire_same_secret(const uint8_t a[FE_WIRE_SECRET], const uint8_t b[FE_WIRE_SECRET]);

#endif
