/* The place where the ranks of one group meet: a listening socket and a thread of this process. */
#ifndef FERRY_BOOT_HUB_H
#define FERRY_BOOT_HUB_H

#include "boot/wire.h"

/* Starts it on address:*port (0: any). Its thread ends by itself: when all who came have left, on a port of its own (any) also all who may
 * still come, or when for FE_HUB_IDLE_S seconds nobody has come. */
#define FE_HUB_IDLE_S 600
ferry_status fe_hub_start(const char *address, int *port, const uint8_t secret[FE_WIRE_SECRET]);

#endif
