#include "boot/wire.h"

static const uint8_t magic[4] = {'F', 'R', 'Y', 'B'};

void fe_wire_put_u32(uint8_t *to, uint32_t value) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(value >> 8 * i);
}

uint32_t fe_wire_get_u32(const uint8_t *from) {
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

void fe_wire_put_head(uint8_t head[FE_WIRE_HEADER], fe_wire_type type, uint32_t bytes) {
    memcpy(head, magic, sizeof magic);
    fe_wire_put_u32(head + 4, FE_WIRE_VERSION | (uint32_t)type << 16);
    fe_wire_put_u32(head + 8, bytes);
    fe_wire_put_u32(head + 12, 0);
}

bool fe_wire_get_head(const uint8_t head[FE_WIRE_HEADER], uint32_t most, fe_wire_head *out) {
    uint32_t kind = fe_wire_get_u32(head + 4), bytes = fe_wire_get_u32(head + 8);
    if (memcmp(head, magic, sizeof magic) != 0 || (kind & 0xffff) != FE_WIRE_VERSION) return false;
    if (fe_wire_get_u32(head + 12) != 0 || bytes > most) return false;
    if (kind >> 16 < FE_HELLO || kind >> 16 > FE_ROLL) return false;
    *out = (fe_wire_head){.type = (fe_wire_type)(kind >> 16), .bytes = bytes};
    return true;
}

void fe_wire_put_hello(uint8_t payload[FE_WIRE_HELLO_BYTES], const fe_hello *hello) {
    memcpy(payload, hello->secret, FE_WIRE_SECRET);
    fe_wire_put_u32(payload + FE_WIRE_SECRET, (uint32_t)hello->rank);
    fe_wire_put_u32(payload + FE_WIRE_SECRET + 4, (uint32_t)hello->ranks);
    fe_wire_put_u32(payload + FE_WIRE_SECRET + 8, (uint32_t)hello->library);
    fe_wire_put_u32(payload + FE_WIRE_SECRET + 12, (uint32_t)hello->timeout_ms);
}

void fe_wire_get_hello(const uint8_t payload[FE_WIRE_HELLO_BYTES], fe_hello *hello) {
    memcpy(hello->secret, payload, FE_WIRE_SECRET);
    hello->rank = (int32_t)fe_wire_get_u32(payload + FE_WIRE_SECRET);
    hello->ranks = (int32_t)fe_wire_get_u32(payload + FE_WIRE_SECRET + 4);
    hello->library = (int32_t)fe_wire_get_u32(payload + FE_WIRE_SECRET + 8);
    hello->timeout_ms = (int32_t)fe_wire_get_u32(payload + FE_WIRE_SECRET + 12);
}

bool fe_wire_same_secret(const uint8_t a[FE_WIRE_SECRET], const uint8_t b[FE_WIRE_SECRET]) {
    uint8_t differs = 0;
    for (int i = 0; i < FE_WIRE_SECRET; i++) differs |= a[i] ^ b[i];
    return differs == 0;
}
