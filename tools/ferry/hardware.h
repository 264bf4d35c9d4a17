/* What the machine is: for ferry info and for the results of ferry bench. */
#ifndef FERRY_TOOL_HARDWARE_H
#define FERRY_TOOL_HARDWARE_H

#include <cjson/cJSON.h>
#include <stdbool.h>

/* {"cpu", "cores", "memory_bytes", "system", "caches": [..], "features": [..], "row_kernels": [..], "row_kernels_chosen"};
 * NULL without memory. */
cJSON *fe_hardware_json(void);

/* Writes the object to the file, or to stdout for "-". false: a sentence went to stderr. */
bool fe_json_write(const cJSON *object, const char *path, const char *command);

#endif
