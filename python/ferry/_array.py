"""Arrays in and out: NumPy, PyTorch and DLPack memory as ferry_tensors, and the library's memory as arrays.

Each array library is an `Arrays` with three verbs: describe (array to ferry_tensor), empty, and wrap (memory of the
library's to array). Nothing is copied here.
"""

from __future__ import annotations

import ctypes as C
import sys
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import numpy as np

from . import _c

try:
    import ml_dtypes
except ImportError:  # only bfloat16 and float8 NumPy arrays need it
    ml_dtypes = None  # type: ignore[assignment]

DTYPES = {
    "bytes": _c.BYTES,
    "bfloat16": _c.BF16,
    "float16": _c.FP16,
    "float32": _c.FP32,
    "float8_e4m3fn": _c.E4M3,
    "int32": _c.INT32,
    "int64": _c.INT64,
    "ue8m0x4": _c.UE8M0X4,
}
NAMES = {code: name for name, code in DTYPES.items()}
BYTES_OF = {_c.BYTES: 1, _c.BF16: 2, _c.FP16: 2, _c.FP32: 4, _c.E4M3: 1, _c.INT32: 4, _c.INT64: 8, _c.UE8M0X4: 4}

# "Data is NULL" says that there is no tensor; an empty one that is given points here.
_NOWHERE = C.create_string_buffer(256)
_nowhere = C.addressof(_NOWHERE) + (-C.addressof(_NOWHERE) % 64)


def dtype_code(dtype: Any) -> int:
    """A ferry_dtype from a name ("bfloat16"), a NumPy dtype or a torch dtype."""
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dtype, torch.dtype):
        return TORCH.code(dtype)
    return NUMPY.code(np.dtype(dtype))


def tensor(data: int, code: int, shape: Sequence[int], strides: Optional[Sequence[int]] = None) -> _c.Tensor:
    """A ferry_tensor; strides are in elements, None: contiguous."""
    n = len(shape)
    if n > _c.MAX_DIMS:
        raise TypeError(f"{n} dimensions; at most {_c.MAX_DIMS} are taken")
    return _c.Tensor(data or _nowhere, code, n, tuple(shape), () if strides is None else tuple(strides))


def _broadcast(t: _c.Tensor) -> bool:
    # All strides zero would mean contiguous to the library.
    if any(t.strides):
        return False
    shape = t.shape[: t.ndim]
    return any(n > 1 for n in shape) and all(n > 0 for n in shape)


class Memory:
    """Memory of the library's, held by `owner`, that array libraries can look at without a copy.

    Speaks the array interface (CPU), the CUDA array interface and DLPack.
    """

    def __init__(self, owner: Any, t: _c.Tensor, device: Tuple[int, int]):
        self.owner, self.data, self.code, self.device = owner, t.data or 0, t.dtype, device
        self.shape = tuple(t.shape[: t.ndim])
        strides = tuple(t.strides[: t.ndim])
        self.strides = strides if any(strides) else contiguous(self.shape)

    def _interface(self, typestr: str) -> Dict[str, Any]:
        size = BYTES_OF[self.code]
        return {
            "shape": self.shape,
            "typestr": typestr,
            "data": (self.data, False),
            "strides": tuple(s * size for s in self.strides),
            "version": 3,
        }

    @property
    def __array_interface__(self) -> Dict[str, Any]:
        if self.device[0] != _DL_CPU:
            raise AttributeError("memory of a GPU has no __array_interface__")
        return self._interface(_PLAIN_TYPE[BYTES_OF[self.code]])

    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]:
        if self.device[0] != _DL_CUDA:
            raise AttributeError("memory of the CPU has no __cuda_array_interface__")
        return self._interface(_PLAIN_TYPE[BYTES_OF[self.code]])

    def __dlpack_device__(self) -> Tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: Any = None, **_: Any) -> Any:
        from ._dlpack import export

        return export(self)

    def __repr__(self) -> str:
        return f"<ferry memory {NAMES[self.code]}{list(self.shape)} at {self.data:#x}>"


_DL_CPU, _DL_CUDA, _DL_PINNED, _DL_MANAGED = 1, 2, 3, 13
_PLAIN_TYPE = {1: "|u1", 2: "<u2", 4: "<i4", 8: "<i8"}  # bits of that size: the caller gives them their dtype


def contiguous(shape: Sequence[int]) -> Tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


class NumpyArrays:
    name = "numpy"

    def __init__(self) -> None:
        self._to: Dict[int, np.dtype] = {
            _c.BYTES: np.dtype(np.uint8),
            _c.FP16: np.dtype(np.float16),
            _c.FP32: np.dtype(np.float32),
            _c.INT32: np.dtype(np.int32),
            _c.INT64: np.dtype(np.int64),
            _c.UE8M0X4: np.dtype(np.int32),
        }
        if ml_dtypes is not None:
            self._to[_c.BF16] = np.dtype(ml_dtypes.bfloat16)
            self._to[_c.E4M3] = np.dtype(ml_dtypes.float8_e4m3fn)
        self._from = {d: c for c, d in self._to.items() if c != _c.UE8M0X4}
        self._from[np.dtype(np.int8)] = _c.BYTES

    def code(self, dtype: np.dtype) -> int:
        if dtype in self._from:
            return self._from[dtype]
        raise TypeError(f"dtype {dtype} is none of {', '.join(DTYPES)}; carry others as bytes: x.view(numpy.uint8)")

    def dtype(self, code: int) -> np.dtype:
        if code in self._to:
            return self._to[code]
        raise ImportError(f"NumPy arrays of {NAMES[code]} need the package ml_dtypes")

    def describe(self, x: Any, device: Tuple[int, int]) -> _c.Tensor:
        if device[0] != _DL_CPU:
            raise TypeError("the group is on a GPU, and a NumPy array is not in memory that it can address")
        if not x.flags.aligned or x.dtype.byteorder == ">":
            raise TypeError("the array is not aligned, or not in this machine's byte order")
        size = x.itemsize
        if any(s % size for s in x.strides):
            raise TypeError(f"strides {x.strides} are no multiples of the {size} bytes of an element")
        return tensor(x.ctypes.data, self.code(x.dtype), x.shape, [s // size for s in x.strides])

    def empty(self, shape: Sequence[int], code: int, like: Any, zero: bool = False) -> np.ndarray:
        return (np.zeros if zero else np.empty)(shape, self.dtype(code))

    def wrap(self, owner: Any, t: _c.Tensor, device: Tuple[int, int]) -> Any:
        if device[0] != _DL_CPU:
            return Memory(owner, t, device)
        if not all(t.shape[: t.ndim]):
            return np.empty(t.shape[: t.ndim], self.dtype(t.dtype))
        return np.asarray(Memory(owner, t, device)).view(self.dtype(t.dtype))


class TorchArrays:
    name = "torch"

    def __init__(self) -> None:
        self._to: Dict[int, Any] = {}
        self._from: Dict[Any, int] = {}

    def _tables(self) -> None:
        torch = sys.modules["torch"]
        self._to = {
            _c.BYTES: torch.uint8,
            _c.BF16: torch.bfloat16,
            _c.FP16: torch.float16,
            _c.FP32: torch.float32,
            _c.INT32: torch.int32,
            _c.INT64: torch.int64,
            _c.UE8M0X4: torch.int32,
            # PyTorch before 2.1 has no float8: its bytes are carried as what they are.
            _c.E4M3: getattr(torch, "float8_e4m3fn", torch.uint8),
        }
        self._from = {d: c for c, d in self._to.items() if c != _c.UE8M0X4}
        self._from[torch.uint8] = self._from[torch.int8] = _c.BYTES

    def code(self, dtype: Any) -> int:
        if not self._from:
            self._tables()
        if dtype in self._from:
            return self._from[dtype]
        raise TypeError(f"dtype {dtype} is none of {', '.join(DTYPES)}; carry others as bytes: x.view(torch.uint8)")

    def dtype(self, code: int) -> Any:
        if not self._to:
            self._tables()
        return self._to[code]

    def describe(self, x: Any, device: Tuple[int, int]) -> _c.Tensor:
        on_gpu = device[0] == _DL_CUDA
        if x.is_cuda != on_gpu and not (on_gpu and x.is_pinned()):
            raise TypeError(f"the group is on {('the CPU', 'a GPU')[on_gpu]}, the tensor on {x.device}")
        if x.is_cuda and x.device.index != device[1]:
            raise TypeError(f"the group is on cuda:{device[1]}, the tensor on {x.device}")
        return tensor(x.data_ptr(), self.code(x.dtype), tuple(x.shape), x.stride())

    def empty(self, shape: Sequence[int], code: int, like: Any, zero: bool = False) -> Any:
        torch = sys.modules["torch"]
        return (torch.zeros if zero else torch.empty)(tuple(shape), dtype=self.dtype(code), device=like.device)

    def wrap(self, owner: Any, t: _c.Tensor, device: Tuple[int, int]) -> Any:
        torch = sys.modules["torch"]
        memory = Memory(owner, t, device)
        dtype = self.dtype(t.dtype)
        if not all(memory.shape):
            where = "cpu" if device[0] == _DL_CPU else f"cuda:{device[1]}"
            return torch.empty(memory.shape, dtype=dtype, device=where)
        if device[0] == _DL_CUDA:
            bits = torch.as_tensor(_Bits(memory), device=f"cuda:{device[1]}")
        else:
            bits = torch.from_numpy(np.asarray(_Bits(memory)))
        return bits.view(dtype)


class _Bits:
    """Memory under integer types that PyTorch knows in every release (it has no uint16)."""

    def __init__(self, memory: Memory):
        interface = memory._interface({1: "|u1", 2: "<i2", 4: "<i4", 8: "<i8"}[BYTES_OF[memory.code]])
        self.memory = memory
        if memory.device[0] == _DL_CUDA:
            self.__cuda_array_interface__ = interface
        else:
            self.__array_interface__ = interface


class DlpackArrays:
    """Whatever else speaks DLPack (CuPy, JAX, ...). It brings memory; new arrays are NumPy's or `Memory`."""

    name = "dlpack"

    def describe(self, x: Any, device: Tuple[int, int]) -> _c.Tensor:
        from ._dlpack import describe

        return describe(x, device)

    def empty(self, shape: Sequence[int], code: int, like: Any, zero: bool = False) -> Any:
        if like.__dlpack_device__()[0] in (_DL_CUDA, _DL_MANAGED):
            raise TypeError("out= must be given (or view=True asked for): Ferry has no allocator for this array's GPU")
        return NUMPY.empty(shape, code, like, zero)

    def wrap(self, owner: Any, t: _c.Tensor, device: Tuple[int, int]) -> Any:
        return NUMPY.wrap(owner, t, device)


NUMPY, TORCH, DLPACK = NumpyArrays(), TorchArrays(), DlpackArrays()
Arrays = Union[NumpyArrays, TorchArrays, DlpackArrays]


def arrays_of(x: Any) -> Arrays:
    if isinstance(x, np.ndarray):
        return NUMPY
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return TORCH
    if hasattr(x, "__dlpack__"):
        return DLPACK
    raise TypeError(f"{type(x).__name__} is no array: NumPy arrays, PyTorch tensors and DLPack tensors are taken")


def describe(x: Any, device: Tuple[int, int], name: str, keep: list, written: bool = False) -> _c.Tensor:
    """The ferry_tensor of an array that is an input or, written, an output; what must outlive the call is put into keep."""
    try:
        arrays = arrays_of(x)
        t = arrays.describe(x, device)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    if written and any(s == 0 and n > 1 for s, n in zip(t.strides, t.shape[: t.ndim])) and all(t.shape[: t.ndim]):
        raise TypeError(f"{name}: the array is broadcast, and cannot be written: several elements are one")
    if written and arrays is NUMPY and not x.flags.writeable:
        raise TypeError(f"{name}: the array is read-only")
    if _broadcast(t):
        x = x.contiguous() if arrays is TORCH else np.ascontiguousarray(x)
        t = arrays_of(x).describe(x, device)
    keep.append(x)
    return t
