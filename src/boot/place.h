/* Where to meet, and who we are, as a launcher's environment says it. */
#ifndef FERRY_BOOT_PLACE_H
#define FERRY_BOOT_PLACE_H

#include "boot/net.h"
#include "boot/wire.h"

typedef struct fe_place {
    char host[FE_HOST_MAX];
    int port;
    uint8_t secret[FE_WIRE_SECRET];
} fe_place;

struct fe_launch {
    int rank, ranks;
    fe_place place;
};

/* "host:port" or "[v6]:port" into host and port; `what` names the text in the sentence. */
ferry_status fe_place_parse(const char *text, const char *what, fe_place *place);

#endif
