"""The C ABI of libferry, as ctypes sees it: include/ferry/ferry.h, name by name.

`tests/test_abi.py` compiles the header and compares every size, offset and number below with it.
"""

from __future__ import annotations

import ctypes as C
import os
from pathlib import Path
from typing import Any, Dict, List, Tuple, Type

VERSION = (
    0,
    1,
)  # of the ABI that is spelled out here: until 1.0 a minor version may break what the one before promised

OK, INVALID, NOMEM, SYSTEM, TIMEOUT, ABORTED, MISMATCH, OVERFLOW, UNSUPPORTED, REFUSED = range(10)
BYTES, BF16, FP16, FP32, E4M3, INT32, INT64, UE8M0X4 = range(8)
CPU, CUDA = range(2)
LAYOUT_RANK, LAYOUT_EXPERT, LAYOUT_SLOTS = 1, 2, 4
THROUGHPUT, LATENCY = range(2)
SIGNAL_SET, SIGNAL_ADD = range(2)
EQ, NE, GT, GE, LT, LE = range(6)
OVERFLOW_ERROR, OVERFLOW_DROP = range(2)
ORDER_RANK, ORDER_CHOICE = range(2)
CAST_NONE, CAST_E4M3, CAST_E4M3_POW2, CAST_E4M3_UE8M0 = range(4)
MAX_DIMS = 4
MAX_TOPK = 64
MAX_RANKS = 1024


class Tensor(C.Structure):
    _fields_ = [
        ("data", C.c_void_p),
        ("dtype", C.c_int),
        ("ndim", C.c_int),
        ("shape", C.c_int64 * MAX_DIMS),
        ("strides", C.c_int64 * MAX_DIMS),
    ]


class UniqueId(C.Structure):
    _fields_ = [("bytes", C.c_char * 128)]


class EnvEntry(C.Structure):
    _fields_ = [("name", C.c_char_p), ("fallback", C.c_char_p), ("meaning", C.c_char_p)]


class Sized(C.Structure):
    """A struct that begins with its size and magic, and is otherwise zero."""

    MAGIC = 0

    def __init__(self, **values: Any) -> None:
        super().__init__(size=C.sizeof(self), magic=self.MAGIC, **values)


_HEAD: List[Tuple[str, Any]] = [("size", C.c_size_t), ("magic", C.c_uint64)]
_P_INT32 = C.POINTER(C.c_int32)


class GroupConfig(Sized):
    MAGIC = 0x4647525043464731
    _fields_ = _HEAD + [
        ("device", C.c_int),
        ("experts", C.c_int),
        ("hidden", C.c_int),
        ("max_tokens", C.c_int),
        ("max_topk", C.c_int),
        ("dtype", C.c_int),
        ("layouts", C.c_int),
        ("max_recv_rows", C.c_int64),
        ("heap_bytes", C.c_int64),
        ("timeout_ms", C.c_int),
        ("threads", C.c_int),
        ("expert_first", _P_INT32),
        ("expert_rank", _P_INT32),
        ("sms", C.c_int),
    ]


class DeviceGroup(Sized):
    MAGIC = 0x4647444556475031
    _fields_ = _HEAD + [
        ("rank", C.c_int),
        ("ranks", C.c_int),
        ("space", C.c_void_p),
        ("space_bytes", C.c_uint64),
        ("barrier_at", C.c_uint64),
        ("barrier_epoch", C.c_void_p),
        ("aborted", C.c_void_p),
        ("timeout_ns", C.c_uint64),
        ("masked", C.c_void_p),
    ]


class RouteConfig(Sized):
    MAGIC = 0x464752544543464F
    _fields_ = _HEAD + [
        ("topk_idx", Tensor),
        ("topk_weights", Tensor),
        ("layout", C.c_int),
        ("mode", C.c_int),
        ("expert_alignment", C.c_int),
        ("expert_capacity", C.c_int64),
        ("rank_capacity", C.c_int64),
        ("overflow", C.c_int),
        ("packed", C.c_int),
        ("renormalise", C.c_int),
        ("order", C.c_int),
    ]


class RouteInfo(Sized):
    MAGIC = 0x464752494E464F31
    _fields_ = _HEAD + [
        ("tokens", C.c_int),
        ("topk", C.c_int),
        ("local_experts", C.c_int),
        ("ranks", C.c_int),
        ("layout", C.c_int),
        ("mode", C.c_int),
        ("rows", C.c_int64),
        ("received", C.c_int64),
        ("sent", C.c_int64),
        ("dropped", C.c_int64),
        ("expert_rows", _P_INT32),
        ("expert_start", _P_INT32),
        ("source_rows", _P_INT32),
        ("source_start", _P_INT32),
        ("rank_rows", _P_INT32),
    ]


class DispatchOptions(Sized):
    MAGIC = 0x4647444F50543031
    _fields_ = _HEAD + [("cast", C.c_int), ("skip_topk", C.c_int), ("zero_padding", C.c_int)]


class DispatchIn(Sized):
    MAGIC = 0x464744494E303031
    _fields_ = _HEAD + [("rows", Tensor), ("scales", Tensor)]


class DispatchOut(Sized):
    MAGIC = 0x4647444F55543031
    _fields_ = _HEAD + [
        ("rows", Tensor),
        ("scales", Tensor),
        ("topk_idx", Tensor),
        ("topk_weights", Tensor),
        ("source", Tensor),
        ("counts", Tensor),
        ("starts", Tensor),
    ]


class CombineOptions(Sized):
    MAGIC = 0x4647434F50543031
    _fields_ = _HEAD + [("weighted", C.c_int), ("weights", Tensor), ("bias", Tensor * 2)]


class CombineIn(Sized):
    MAGIC = 0x464743494E303031
    _fields_ = _HEAD + [("rows", Tensor), ("weights", Tensor)]


class CombineOut(Sized):
    MAGIC = 0x4647434F55543031
    _fields_ = _HEAD + [("rows", Tensor), ("weights", Tensor)]


PEER_COUNTERS = (
    "rows_sent",
    "bytes_sent",
    "rows_received",
    "bytes_received",
    "rows_returned",
    "bytes_returned",
    "rows_dropped",
    "waits",
    "wait_ns",
)


class PeerCounters(C.Structure):
    _fields_ = [(name, C.c_uint64) for name in PEER_COUNTERS]


class Counters(Sized):
    MAGIC = 0x4647434F554E5431
    _fields_ = _HEAD + [
        ("ranks", C.c_int),
        ("local_experts", C.c_int),
        ("routes", C.c_uint64),
        ("dispatches", C.c_uint64),
        ("combines", C.c_uint64),
        ("meetings", C.c_uint64),
        ("peers", C.POINTER(PeerCounters)),
        ("expert_rows", C.POINTER(C.c_uint64)),
    ]


STRUCTS: Dict[str, Type[C.Structure]] = {
    "ferry_tensor": Tensor,
    "ferry_unique_id": UniqueId,
    "ferry_env_entry": EnvEntry,
    "ferry_group_config": GroupConfig,
    "ferry_device_group": DeviceGroup,
    "ferry_route_config": RouteConfig,
    "ferry_route_info": RouteInfo,
    "ferry_dispatch_options": DispatchOptions,
    "ferry_dispatch_in": DispatchIn,
    "ferry_dispatch_out": DispatchOut,
    "ferry_combine_options": CombineOptions,
    "ferry_combine_in": CombineIn,
    "ferry_combine_out": CombineOut,
    "ferry_peer_counters": PeerCounters,
    "ferry_counters": Counters,
}

AllgatherFn = C.CFUNCTYPE(C.c_int, C.c_void_p, C.c_void_p, C.c_void_p, C.c_size_t)
StreamFn = C.CFUNCTYPE(None, C.c_void_p)

_P = C.POINTER
_pv, _int, _size, _u64, _str = C.c_void_p, C.c_int, C.c_size_t, C.c_uint64, C.c_char_p
_group = _stream = _event = _route = _pv

# name: (arguments, result). The result is a ferry_status where it is int and the name is not in _PLAIN.
FUNCTIONS: Dict[str, Tuple[List[Any], Any]] = {
    "ferry_status_name": ([_int], _str),
    "ferry_last_error": ([], _str),
    "ferry_version": ([], _int),
    "ferry_env_table": ([_P(_size)], _P(EnvEntry)),
    "ferry_dtype_bytes": ([_int], _size),
    "ferry_unique_id_create": ([_P(UniqueId)], _int),
    "ferry_group_create": ([_P(UniqueId), _int, _int, _P(GroupConfig), _P(_group)], _int),
    "ferry_group_create_env": ([_P(GroupConfig), _P(_group)], _int),
    "ferry_group_create_with": ([AllgatherFn, _pv, _int, _int, _P(GroupConfig), _P(_group)], _int),
    "ferry_group_destroy": ([_group], None),
    "ferry_group_abort": ([_group], _int),
    "ferry_group_error": ([_group], _int),
    "ferry_group_agree": ([_group, _P(UniqueId), _P(C.c_uint8)], _int),
    "ferry_group_mask_set": ([_group, _int, _int], _int),
    "ferry_group_mask_get": ([_group, _P(C.c_uint8)], _int),
    "ferry_group_leave": ([_group], _int),
    "ferry_group_join": ([_P(UniqueId), _int, _int, _P(GroupConfig), _P(_group)], _int),
    "ferry_group_reconfigure": ([_group, _P(UniqueId), _P(GroupConfig)], _int),
    "ferry_group_rank": ([_group], _int),
    "ferry_group_ranks": ([_group], _int),
    "ferry_group_local_experts": ([_group, _int, _P(_P_INT32)], _int),
    "ferry_group_bytes": ([_P(GroupConfig), _int, _P(C.c_int64)], _int),
    "ferry_group_counters": ([_group, _P(Counters)], _int),
    "ferry_group_metrics_write": ([_group, _str], _int),
    "ferry_group_device": ([_group, _P(DeviceGroup)], _int),
    "ferry_stream_create": ([_group, _P(_stream)], _int),
    "ferry_stream_wrap": ([_group, _pv, _P(_stream)], _int),
    "ferry_stream_destroy": ([_stream], None),
    "ferry_stream_sync": ([_stream], _int),
    "ferry_stream_idle": ([_stream], _int),
    "ferry_stream_call": ([_stream, StreamFn, _pv], _int),
    "ferry_event_create": ([_group, _P(_event)], _int),
    "ferry_event_destroy": ([_event], None),
    "ferry_event_record": ([_event, _stream], _int),
    "ferry_stream_wait_event": ([_stream, _event], _int),
    "ferry_event_sync": ([_event], _int),
    "ferry_event_done": ([_event], _int),
    "ferry_heap_alloc": ([_group, _size, _P(_pv)], _int),
    "ferry_heap_free": ([_group, _pv], _int),
    "ferry_heap_ptr": ([_group, _pv, _int], _pv),
    "ferry_heap_offset": ([_group, _pv], C.c_int64),
    "ferry_heap_at": ([_group, C.c_int64], _pv),
    "ferry_put": ([_group, _pv, _pv, _size, _int, _stream], _int),
    "ferry_get": ([_group, _pv, _pv, _size, _int, _stream], _int),
    "ferry_put_signal": ([_group, _pv, _pv, _size, _pv, _u64, _int, _int, _stream], _int),
    "ferry_fetch_add": ([_group, _pv, _u64, _int, _P(_u64)], _int),
    "ferry_compare_swap": ([_group, _pv, _u64, _u64, _int, _P(_u64)], _int),
    "ferry_fence": ([_group], _int),
    "ferry_quiet": ([_group], _int),
    "ferry_wait_until": ([_group, _pv, _int, _u64, _int, _stream], _int),
    "ferry_barrier": ([_group, _stream], _int),
    "ferry_allgather": ([_group, _pv, _pv, _size, _stream], _int),
    "ferry_broadcast": ([_group, _pv, _size, _int, _stream], _int),
    "ferry_route_create": ([_group, _P(RouteConfig), _P(_route), _stream], _int),
    "ferry_route_destroy": ([_route], None),
    "ferry_route_get_info": ([_route, _P(RouteInfo)], _int),
    "ferry_dispatch": ([_route, _P(DispatchIn), _P(DispatchOut), _P(DispatchOptions), _stream], _int),
    "ferry_dispatch_send": ([_route, _P(DispatchIn), _P(DispatchOut), _P(DispatchOptions), _stream], _int),
    "ferry_dispatch_recv": ([_route, _P(DispatchOut), _stream], _int),
    "ferry_combine": ([_route, _P(CombineIn), _P(CombineOut), _P(CombineOptions), _stream], _int),
    "ferry_combine_send": ([_route, _P(CombineIn), _P(CombineOptions), _stream], _int),
    "ferry_combine_recv": ([_route, _P(CombineOut), _stream], _int),
    "ferry_combine_buffer": ([_route, _int, C.c_int64, _P(Tensor), _stream], _int),
}

_PLAIN = {
    "ferry_version",
    "ferry_group_rank",
    "ferry_group_ranks",
    "ferry_group_local_experts",
    "ferry_stream_idle",
    "ferry_event_done",
}


def _find() -> str:
    """FERRY_LIBRARY, or the library in this package, or what the system's loader finds."""
    chosen = os.environ.get("FERRY_LIBRARY")
    if chosen:
        return chosen
    inside = Path(__file__).with_name("libferry.so")
    return str(inside) if inside.exists() else "libferry.so.%d.%d" % VERSION


def _load() -> C.CDLL:
    path = _find()
    try:
        library = C.CDLL(path)  # CDLL, not PyDLL: every call lets other Python threads run
    except OSError as error:
        raise ImportError(
            f"ferry: {path} cannot be loaded: {error}. Set FERRY_LIBRARY to the path of libferry.so, or install the "
            "wheel, which has one inside"
        ) from None
    for name, (arguments, result) in FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = result
    version = library.ferry_version()
    if version // 100 != VERSION[0] * 100 + VERSION[1]:
        raise ImportError(f"ferry: {path} is version {version}, this package is for {VERSION[0]}.{VERSION[1]}")
    return library


lib = _load()
path = lib._name
version = "%d.%d.%d" % (lib.ferry_version() // 10000, lib.ferry_version() // 100 % 100, lib.ferry_version() % 100)
returns_status = {n for n, (_, result) in FUNCTIONS.items() if result is _int and n not in _PLAIN}
