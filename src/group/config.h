/* The config of a group: is it right, and do all ranks say the same? */
#ifndef FERRY_GROUP_CONFIG_H
#define FERRY_GROUP_CONFIG_H

#include "boot/boot.h"

ferry_status fe_config_check(const ferry_group_config *cfg);
/* [collective over boot] FERRY_MISMATCH names the field, the rank and both values. who: [ranks] those that have come; NULL: all. */
ferry_status fe_config_agree(const ferry_group_config *cfg, fe_boot *boot, int rank, int ranks, const uint8_t *who);
/* All but the map of experts, which may change; FERRY_INVALID names the field. */
ferry_status fe_config_same(const ferry_group_config *now, const ferry_group_config *wanted);
/* Of the map; 0: the default. */
uint64_t fe_config_hash(const ferry_group_config *cfg);

#endif
