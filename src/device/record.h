/* A pass, as the flight recorder and the counters keep it (watch/recorder.h). */
#ifndef FERRY_DEVICE_RECORD_H
#define FERRY_DEVICE_RECORD_H

#include "device/device.h"

/* Hands the pass to the engine's device. What a device does not record by itself is recorded here, as far as the host knows it. */
ferry_status fe_submit(fe_engine *engine, ferry_stream *stream, const fe_pass *pass);

/* For a device that records by itself. NULL where the recorder is. lane: who runs it, see fe_step_about. */
fe_step *fe_record_begin(fe_recorder *recorder, const fe_pass *pass, int lane);
/* That its move carries: known when it has run. */
uint64_t fe_record_bytes(const fe_pass *pass);
/* The pass has moved: rows sent, or returned. */
void fe_record_moved(fe_recorder *recorder, const fe_pass *pass);
/* The pass has delivered. */
void fe_record_arrived(fe_recorder *recorder, const fe_pass *pass);

#endif
