/* Memory of the sort that a device wants of the library's callers, and ways to look into what the library shows them. On the CPU all
 * of it is malloc's, and views are plain memory. With CUDA new memory is pinned host memory, which host and GPU see at one address, and
 * views are GPU memory that host code reads and writes through ferry_get and ferry_put.
 *
 * CUDA itself is not linked: libferry_cuda.so is opened when the first piece is asked for, so that a process that only starts ranks
 * never touches the GPU. */
#ifndef FERRY_TOOL_MEMORY_H
#define FERRY_TOOL_MEMORY_H

#include "ferry/ferry.h"
#include <stdbool.h>

/* First of all, before threads: the device, and how many ranks this process will run. Sets what CUDA reads from the environment, unless
 * it is set already: kernels that wait for each other need a hardware queue each. */
void fe_memory_choose(ferry_device device, int ranks_here);
ferry_device fe_memory_device(void);
/* In a rank's thread, before anything else of the device's: ranks take turns over the GPUs there are. How many; 0 on the CPU. */
int fe_memory_use(int rank);
/* A number of the GPU's own, whatever each process calls it; 0: there is none. */
uint64_t fe_memory_card(void);
/* The GPU in words, or why there is none. */
void fe_memory_describe(char *text, size_t size);
/* Why CUDA's memory could not be had; "" when nothing is known. */
const char *fe_memory_trouble(void);

/* Any thread. At least 16-byte aligned; NULL: none left. What is written past the end is noticed when it is freed, and ends the
 * process. NULL may be freed. */
void *fe_memory_new(size_t bytes);
void fe_memory_free(void *memory);

/* Between host memory of any sort and this rank's own space: a view, ferry_combine_buffer, ferry_heap_alloc. */
ferry_status fe_memory_read(ferry_group *group, void *host, const void *from, size_t bytes);
ferry_status fe_memory_write(ferry_group *group, void *to, const void *host, size_t bytes);

/* The device's own memory, for measurements: the GPU's. fe_memory_copy goes between any two places, and is done when it returns. */
void *fe_memory_device_new(size_t bytes);
void fe_memory_device_free(void *memory);
bool fe_memory_copy(void *to, const void *from, size_t bytes);
/* What is put on a GPU's stream between begin and end is kept as a graph instead of run, to be replayed as a whole. */
bool fe_memory_capture_begin(ferry_stream *stream);
bool fe_memory_capture_end(ferry_stream *stream, void **graph);
bool fe_memory_replay(ferry_stream *stream, void *graph);
void fe_memory_graph_free(void *graph);
/* Bytes read and written per second by a large copy inside the GPU's memory; 0 where there is no room for one. */
bool fe_memory_copy_rate(double *bytes_per_s);
/* Bytes that every GPU sends per second while all send to their next; 0 with one GPU, without room, or where GPUs reach each other
 * through the host only. */
bool fe_memory_link_rate(double *bytes_per_s);

#endif
