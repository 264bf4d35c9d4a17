/* What a user of the installed library might begin with; C and C++. */
#include <ferry/ferry.h>
#include <stdio.h>

int main(void) {
    ferry_group_config cfg = FERRY_GROUP_CONFIG_INIT;
    ferry_unique_id id;
    ferry_group *group = NULL;
    cfg.experts = 4, cfg.hidden = 64, cfg.max_tokens = 8, cfg.max_topk = 2;
    ferry_status status = ferry_unique_id_create(&id);
    if (status == FERRY_OK) status = ferry_group_create(&id, 0, 1, &cfg, &group);
    if (status == FERRY_OK) status = ferry_barrier(group, NULL);
    printf("ferry %d: %s %s\n", ferry_version(), ferry_status_name(status), ferry_last_error());
    ferry_group_destroy(group);
    return status != FERRY_OK ||
           ferry_version() != FERRY_VERSION_MAJOR * 10000 + FERRY_VERSION_MINOR * 100 + FERRY_VERSION_PATCH;
}
