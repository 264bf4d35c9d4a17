"""Streams and events: the order of calls that are not waited for."""

from __future__ import annotations

import ctypes as C
import sys
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Callable, ContextManager, List, Optional, Union

from . import _c, errors
from ._c import lib

if TYPE_CHECKING:
    from .group import Group


class Stream:
    """A queue of Ferry calls, carried out in order beside the caller.

    `Stream(group)` makes one of the group's device: on the CPU a thread with workers of its own. `Stream(group, native)`
    wraps a CUDA stream of the caller's (its address, or an object with `cuda_stream`, as PyTorch's have), so that Ferry's
    calls are ordered with everything else on it.

    A call with `stream=` returns at once. Its results are there after `sync()`; until then the stream keeps the arrays of
    its calls alive. A context manager: leaving it waits and closes.
    """

    def __init__(self, group: "Group", native: Any = None):
        # Weak: the group holds the streams that it wraps.
        self._group = weakref.ref(group)
        held: Any = group._held
        self._held = held
        pointer = C.c_void_p()
        if native is None:
            lib.ferry_stream_create(group._c, C.byref(pointer))
        else:
            lib.ferry_stream_wrap(group._c, native_of(native), C.byref(pointer))
        self._pointer: Optional[int] = pointer.value
        self.native = native_of(native) if native is not None else None
        # What calls on it may still look at; and an object of the caller's that is gone takes its CUDA stream along.
        self._keep: List[Any] = []
        self._caller = native
        held.streams[pointer.value or 0] = self._keep
        if native is None or type(native).__module__.startswith("torch."):
            held.awaited.add(pointer.value or 0)
        group._children.add(self)
        group._streams[pointer.value or 0] = self

    @property
    def _c(self) -> int:
        if self._pointer is None:
            raise errors.InvalidError("the stream is closed")
        return self._pointer

    def _hold(self, things: List[Any]) -> None:
        group = self._group()
        capturing = group is not None and group._capturing()
        if self.native is not None:
            on_gpu = [x for x in things if _is_torch(x) and x.is_cuda]
            things = [x for x in things if not (_is_torch(x) and x.is_cuda)]
            other = self._if_not_current() if on_gpu and not capturing else None
            if other is not None:
                # PyTorch's allocator gives their memory out again in the order of the stream that it is of.
                for x in on_gpu:
                    x.record_stream(other)
        if len(self._keep) > 64 and not capturing and self.idle:
            self._keep.clear()
        self._keep.extend(things)

    def _if_not_current(self) -> Any:
        """The wrapped stream as PyTorch's, where that is not the current one."""
        group, torch = self._group(), sys.modules.get("torch")
        if self.native is None or group is None or torch is None:
            return None
        if torch.cuda.current_stream(group.device_index).cuda_stream == self.native:
            return None
        if self.native == 0:  # which is none for ExternalStream
            return torch.cuda.default_stream(group.device_index)
        return torch.cuda.ExternalStream(self.native, device=group.device_index)

    def _allocating(self) -> ContextManager[Any]:
        """Inside it PyTorch's new tensors are of this stream."""
        other = self._if_not_current()
        return nullcontext() if other is None else sys.modules["torch"].cuda.stream(other)

    @property
    def idle(self) -> bool:
        """True when everything on the stream is done. Never waits."""
        return bool(lib.ferry_stream_idle(self._c))

    def sync(self) -> None:
        """Waits until all calls on the stream are done; raises the first error among them since the last sync."""
        try:
            lib.ferry_stream_sync(self._c)
        finally:
            self._keep.clear()

    def wait(self, event: "Event") -> None:
        """Later calls on this stream start after the event has happened."""
        lib.ferry_stream_wait_event(self._c, event._c)

    def call(self, function: Callable[[], Any]) -> None:
        """Puts a Python function at the end of a CPU stream: compute that is ordered with communication.

        It is called also after an error on the stream. An exception of its own is printed, and goes no further.
        """
        callback = _c.StreamFn(lambda _: function())
        self._keep.append(callback)
        lib.ferry_stream_call(self._c, callback, None)

    def record(self) -> "Event":
        """An event that happens when all calls now on the stream are done."""
        group = self._group()
        if group is None:
            raise errors.InvalidError("the group is closed")
        event = Event(group)
        event.record(self)
        return event

    def close(self) -> None:
        """Waits until the stream is empty and frees it. A wrapped CUDA stream itself stays."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None and self._held.pointer:
            destroy_stream(self._held, pointer)

    def _abandon(self) -> None:
        self._pointer = None  # freed with the group, which waits for nobody

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        try:
            if kind is None:
                self.sync()
        finally:
            self.close()

    def __del__(self) -> None:
        drop(self, "stream")


def destroy_stream(held: Any, pointer: int) -> None:
    """Waits until it is empty. On the group's own thread."""
    lib.ferry_stream_destroy(pointer)
    held.awaited.discard(pointer)
    held.streams.pop(pointer).clear()


def destroy_event(held: Any, pointer: int) -> None:
    held.events.discard(pointer)
    lib.ferry_event_destroy(pointer)


def drop(it: Any, what: str, more: Any = None) -> None:
    """Nothing refers to it any more, in whichever thread: the group's own frees it (ferry/_held.py)."""
    pointer, it._pointer = getattr(it, "_pointer", None), None
    if pointer is not None:
        it._held.dropped.append((what, pointer, more))


class Event:
    """A point in a stream. Never recorded, it has happened."""

    def __init__(self, group: "Group"):
        held: Any = group._held
        self._held = held
        pointer = C.c_void_p()
        lib.ferry_event_create(group._c, C.byref(pointer))
        self._pointer: Optional[int] = pointer.value
        held.events.add(pointer.value or 0)
        group._children.add(self)

    @property
    def _c(self) -> int:
        if self._pointer is None:
            raise errors.InvalidError("the event is closed")
        return self._pointer

    def record(self, stream: Optional[Stream] = None) -> None:
        """It happens when all calls now on the stream are done (None: now). Recording again replaces that."""
        lib.ferry_event_record(self._c, stream._c if stream else None)

    @property
    def done(self) -> bool:
        """Whether it has happened. Never waits."""
        return bool(lib.ferry_event_done(self._c))

    def sync(self) -> None:
        """Waits for it on the host, at most the group's timeout."""
        lib.ferry_event_sync(self._c)

    def close(self) -> None:
        pointer, self._pointer = self._pointer, None
        if pointer is not None and self._held.pointer:
            destroy_event(self._held, pointer)

    def _abandon(self) -> None:
        self.close()

    def __del__(self) -> None:
        drop(self, "event")


StreamLike = Union[Stream, int, Any, None]


def native_of(stream: Any) -> int:
    """The address of a CUDA stream: an int, PyTorch's (`cuda_stream`), CuPy's (`ptr`), or `__cuda_stream__`."""
    if isinstance(stream, int):
        return stream
    for name in ("cuda_stream", "ptr"):
        if isinstance(getattr(stream, name, None), int):
            return getattr(stream, name)
    if hasattr(stream, "__cuda_stream__"):
        return stream.__cuda_stream__()[1]
    raise TypeError(
        f"{type(stream).__name__} is no stream: ferry.Stream, the address of a CUDA stream, or an object of one"
    )


def _is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)
