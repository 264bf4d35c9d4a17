/* The config of a group: is it right, and do all ranks say the same? */
#ifndef FERRY_GROUP_CONFIG_H
#define FERRY_GROUP_CONFIG_H

#include "boot/boot.h"

ferry_status fe_config_check(const ferry_group_config *cfg);
/* [collective over boot] FERRY_MISMATCH names the field, the rank and both values. */
ferry_status fe_config_agree(const ferry_group_config *cfg, fe_boot *boot, int rank, int ranks);

#endif
