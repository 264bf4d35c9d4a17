"""DLPack (https://dmlc.github.io/dlpack), read and written through ctypes: no compiled extension is needed."""

from __future__ import annotations

import ctypes as C
from typing import Any, Dict, Tuple

from . import _array, _c


class _DlDevice(C.Structure):
    _fields_ = [("type", C.c_int32), ("id", C.c_int32)]


class _DlType(C.Structure):
    _fields_ = [("code", C.c_uint8), ("bits", C.c_uint8), ("lanes", C.c_uint16)]


class _DlTensor(C.Structure):
    _fields_ = [
        ("data", C.c_void_p),
        ("device", _DlDevice),
        ("ndim", C.c_int32),
        ("dtype", _DlType),
        ("shape", C.POINTER(C.c_int64)),
        ("strides", C.POINTER(C.c_int64)),
        ("byte_offset", C.c_uint64),
    ]


class _DlManaged(C.Structure):
    pass


_Deleter = C.CFUNCTYPE(None, C.POINTER(_DlManaged))
_DlManaged._fields_ = [("tensor", _DlTensor), ("context", C.c_void_p), ("deleter", _Deleter)]

_NAME = b"dltensor"
_INT, _UINT, _FLOAT, _BFLOAT, _E4M3FN = 0, 1, 2, 4, 10
_FROM = {
    (_UINT, 8): _c.BYTES,
    (_INT, 8): _c.BYTES,
    (_BFLOAT, 16): _c.BF16,
    (_FLOAT, 16): _c.FP16,
    (_FLOAT, 32): _c.FP32,
    (_E4M3FN, 8): _c.E4M3,
    (_INT, 32): _c.INT32,
    (_INT, 64): _c.INT64,
}
_TO = {
    _c.BYTES: (_UINT, 8),
    _c.BF16: (_BFLOAT, 16),
    _c.FP16: (_FLOAT, 16),
    _c.FP32: (_FLOAT, 32),
    _c.E4M3: (_E4M3FN, 8),
    _c.INT32: (_INT, 32),
    _c.INT64: (_INT, 64),
    _c.UE8M0X4: (_INT, 32),
}

_get = C.pythonapi.PyCapsule_GetPointer
_get.restype, _get.argtypes = C.c_void_p, [C.py_object, C.c_char_p]
_valid = C.pythonapi.PyCapsule_IsValid
_valid.restype, _valid.argtypes = C.c_int, [C.py_object, C.c_char_p]
_CapsuleDestructor = C.CFUNCTYPE(None, C.c_void_p)
_new = C.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = C.py_object, [C.c_void_p, C.c_char_p, _CapsuleDestructor]
# In a capsule's destructor the capsule has no references left, so there it is a plain address.
_get_raw = C.PYFUNCTYPE(C.c_void_p, C.c_void_p, C.c_char_p)(("PyCapsule_GetPointer", C.pythonapi))
_valid_raw = C.PYFUNCTYPE(C.c_int, C.c_void_p, C.c_char_p)(("PyCapsule_IsValid", C.pythonapi))


def describe(x: Any, device: Tuple[int, int]) -> _c.Tensor:
    """The ferry_tensor of a DLPack producer. The caller keeps x alive; the capsule is looked at and let go."""
    where = x.__dlpack_device__()[0]
    on_gpu = where in (_array._DL_CUDA, _array._DL_MANAGED)
    wanted = device[0] == _array._DL_CUDA
    if on_gpu != wanted and not (wanted and where == _array._DL_PINNED):
        raise TypeError(f"the group is on {('the CPU', 'a GPU')[wanted]}, the array on DLPack device {where}")
    # -1: the producer need not make any stream wait; the order is that of the stream the call is given.
    capsule = x.__dlpack__(stream=-1) if on_gpu else x.__dlpack__()
    if not _valid(capsule, _NAME):
        raise TypeError("its __dlpack__ gives no 'dltensor' capsule")
    dl = C.cast(_get(capsule, _NAME), C.POINTER(_DlManaged)).contents.tensor
    code = _FROM.get((dl.dtype.code, dl.dtype.bits)) if dl.dtype.lanes == 1 else None
    if code is None:
        raise TypeError(
            f"DLPack type (code {dl.dtype.code}, {dl.dtype.bits} bits, {dl.dtype.lanes} lanes) is not taken"
        )
    if dl.ndim > _c.MAX_DIMS:
        raise TypeError(f"{dl.ndim} dimensions; at most {_c.MAX_DIMS} are taken")
    shape = dl.shape[: dl.ndim]
    strides = dl.strides[: dl.ndim] if dl.strides else _array.contiguous(shape)
    return _array.tensor((dl.data or 0) + dl.byte_offset, code, shape, strides)


_alive: Dict[int, Any] = {}  # what a consumer holds, by the address of its DLManagedTensor


@_Deleter
def _delete(managed: Any) -> None:
    _alive.pop(C.addressof(managed.contents), None)


@_CapsuleDestructor
def _drop(capsule: int) -> None:
    if _valid_raw(capsule, _NAME):  # nobody took it
        _alive.pop(_get_raw(capsule, _NAME), None)


def export(memory: "_array.Memory") -> Any:
    """A capsule named "dltensor" over memory of the library's. Its owner lives as long as the consumer."""
    n = len(memory.shape)
    shape, strides = (C.c_int64 * n)(*memory.shape), (C.c_int64 * n)(*memory.strides)
    managed = _DlManaged(
        _DlTensor(memory.data, _DlDevice(*memory.device), n, _DlType(*_TO[memory.code], 1), shape, strides, 0),
        None,
        _delete,
    )
    _alive[C.addressof(managed)] = (managed, shape, strides, memory)
    return _new(C.addressof(managed), _NAME, _drop)
