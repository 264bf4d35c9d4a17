"""The symmetric heap: memory with the same offset on every rank, that every rank of the host can load and store.

`group.heap` is its door. Names are those of ferry.h: put, get, put_signal, fetch_add, compare_swap, fence, quiet,
wait_until.
"""

from __future__ import annotations

import ctypes as C
import sys
import weakref
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import numpy as np

from . import _array, _c, errors
from ._c import lib
from ._stream import StreamLike

if TYPE_CHECKING:
    from .group import Group

_COMPARES = {"==": _c.EQ, "!=": _c.NE, ">": _c.GT, ">=": _c.GE, "<": _c.LT, "<=": _c.LE}
_SIGNALS = {"set": _c.SIGNAL_SET, "add": _c.SIGNAL_ADD}


class Heap:
    """The heap of a group with heap_bytes. Arrays from `alloc` are this rank's part of memory that all ranks have."""

    def __init__(self, group: "Group"):
        self._group_ref = weakref.ref(group)

    @property
    def _group(self) -> "Group":
        group = self._group_ref()
        if group is None:
            raise errors.InvalidError("the group is closed")
        return group

    def alloc(self, shape: Sequence[int], dtype: Any = "float32") -> Any:
        """[collective] An array in the heap, contents not defined; the same shape and dtype on every rank.

        On the CPU it is a NumPy array (torch.from_numpy makes a tensor of it), on a GPU a PyTorch tensor where PyTorch
        is imported, else memory that speaks the CUDA array interface and DLPack.

        Raises NoMemoryError when the heap is full (the sentence has what is left), MismatchError.
        """
        group, code = self._group, _array.dtype_code(dtype)
        shape, size = _extent(shape, code)
        pointer = C.c_void_p()
        lib.ferry_heap_alloc(group._c, size, C.byref(pointer))
        return self._array(pointer.value or 0, code, shape)

    def free(self, array: Any) -> None:
        """[collective] Gives an array of `alloc` back, or of `at` where one begins, after all ranks have come. It must not
        be used afterwards."""
        lib.ferry_heap_free(self._group._c, self._address(array, "array"))

    def offset(self, array: Any) -> int:
        """Where an array in the heap begins, in bytes from the heap's beginning: the same on every rank."""
        offset = lib.ferry_heap_offset(self._group._c, self._address(array, "array"))
        if offset < 0:
            raise errors.InvalidError("the array is not in the heap")
        return offset

    def at(self, offset: int, shape: Sequence[int], dtype: Any = "float32") -> Any:
        """The heap's memory `offset` bytes from its beginning, as an array like those of `alloc`. Not collective: nothing is
        allocated. So a rank that has joined finds what the others had allocated; it is the caller's to fill."""
        group, code = self._group, _array.dtype_code(dtype)
        shape, size = _extent(shape, code)
        first, last = (lib.ferry_heap_at(group._c, at) for at in (offset, offset + size - 1))
        if not first or not last:
            raise errors.InvalidError(f"{size} bytes at offset {offset} are not in the heap")
        return self._array(first, code, shape)

    def peer(self, array: Any, rank: int) -> Any:
        """The same place in rank `rank`'s heap, as an array that this rank can load and store: CPU groups."""
        group = self._group
        t = _array.describe(array, group._where, "array", [])
        there = lib.ferry_heap_ptr(group._c, t.data, rank)
        if not there:
            raise errors.InvalidError(f"the array is not in the heap, or rank {rank} is not of the group")
        view = _array.tensor(there, t.dtype, t.shape[: t.ndim], t.strides[: t.ndim])
        return _array.arrays_of(array).wrap(group._held, view, group._where)

    def put(self, target: Any, source: Any, rank: int, *, stream: StreamLike = None) -> None:
        """Copies `source` (any memory) to `target`'s place in rank `rank`'s heap. Complete locally on return."""
        group, keep = self._group, []  # type: ignore[var-annotated]
        size, where = self._span(source, "source"), group._stream(stream, target)
        lib.ferry_put(group._c, self._room(target, size), self._address(source, "source", keep), size, rank, where)
        group._hold(where, keep)

    def get(self, target: Any, source: Any, rank: int, *, stream: StreamLike = None) -> None:
        """Copies what lies at `source`'s place in rank `rank`'s heap to `target` (any memory)."""
        from .group import _bytes_of

        group, keep = self._group, []  # type: ignore[var-annotated]
        into, where = _array.describe(target, group._where, "target", keep, written=True), group._stream(stream, source)
        size = _bytes_of(into, "target")
        lib.ferry_get(group._c, into.data, self._room(source, size), size, rank, where)
        group._hold(where, keep)

    def put_signal(
        self,
        target: Any,
        source: Any,
        signal: Any,
        value: int,
        rank: int,
        *,
        op: str = "set",
        stream: StreamLike = None,
    ) -> None:
        """put, then sets or adds `value` at the word `signal` (an int64 array of one element in the heap): whoever sees
        the signal sees the data."""
        group, keep = self._group, []  # type: ignore[var-annotated]
        size, where = self._span(source, "source"), group._stream(stream, target)
        room, from_ = self._room(target, size), self._address(source, "source", keep)
        lib.ferry_put_signal(group._c, room, from_, size, self._word(signal), value, _SIGNALS[op], rank, where)
        group._hold(where, keep)

    def fetch_add(self, word: Any, value: int, rank: int) -> int:
        """Adds to rank `rank`'s word (int64, one element), atomically; returns what it held."""
        old = C.c_uint64()
        lib.ferry_fetch_add(self._group._c, self._word(word), value, rank, C.byref(old))
        return old.value

    def compare_swap(self, word: Any, expected: int, desired: int, rank: int) -> int:
        """Stores `desired` in rank `rank`'s word if it holds `expected`, atomically; returns what it held."""
        old = C.c_uint64()
        lib.ferry_compare_swap(self._group._c, self._word(word), expected, desired, rank, C.byref(old))
        return old.value

    def fence(self) -> None:
        """Puts and signals of this thread before the fence are seen by each rank before those after it."""
        lib.ferry_fence(self._group._c)

    def quiet(self) -> None:
        """All puts, gets and signals of this thread so far are complete everywhere."""
        lib.ferry_quiet(self._group._c)

    def wait_until(
        self, word: Any, compare: str, value: int, *, timeout: Optional[float] = None, stream: StreamLike = None
    ) -> None:
        """Waits until this rank's own word compares true ("==", "!=", ">", ">=", "<", "<=") with value.

        Raises DeadlineError with the value that was seen, after `timeout` seconds (None: the group's).
        """
        if compare not in _COMPARES:
            raise errors.InvalidError(f"compare is {compare!r}; there are {', '.join(map(repr, _COMPARES))}")
        group, ms = self._group, 0 if timeout is None else max(1, int(timeout * 1000))
        lib.ferry_wait_until(group._c, self._word(word), _COMPARES[compare], value, ms, group._stream(stream, word))

    # ---- addresses ----

    def _array(self, pointer: int, code: int, shape: Sequence[int]) -> Any:
        group = self._group
        arrays: Any = _array.TORCH if group.device == "cuda" and "torch" in sys.modules else _array.NUMPY
        return arrays.wrap(group._held, _array.tensor(pointer, code, shape), group._where)

    def _address(self, array: Any, name: str, keep: Optional[List[Any]] = None) -> int:
        return _array.describe(array, self._group._where, name, [] if keep is None else keep).data

    def _span(self, array: Any, name: str) -> int:
        from .group import _bytes_of

        return _bytes_of(_array.describe(array, self._group._where, name, []), name)

    def _room(self, array: Any, size: int) -> int:
        if self._span(array, "the array in the heap") < size:
            raise errors.InvalidError(f"{size} bytes do not fit the array in the heap")
        return self._address(array, "the array in the heap")

    def _word(self, array: Any) -> int:
        if self._span(array, "the word") != 8:
            raise errors.InvalidError("a word is an int64 array of one element in the heap")
        return self._address(array, "the word")


def _extent(shape: Sequence[int], code: int) -> Tuple[Tuple[int, ...], int]:
    """The shape as a tuple, and its bytes."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return shape, max(1, int(np.prod(shape, dtype=np.int64)) * _array.BYTES_OF[code])
