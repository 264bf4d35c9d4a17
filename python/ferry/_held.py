"""The C group, and what of it nothing refers to any more.

Whichever thread drops the last reference to a stream, an event or a route (autograd's, the garbage collector's) only writes that down:
the group's own thread, which may be in a call of the group meanwhile, frees it when it next makes a route, a stream or an event. The
group itself is left by the thread that drops the last of its handles: no other can be in a call of it then.
"""

from __future__ import annotations

import atexit
import sys
from collections import deque
from typing import Any, Deque, Dict, List, Set, Tuple

from . import errors
from ._c import lib

Dropped = Tuple[
    str, int, Any
]  # "stream", "event" or "route"; its address; what `Group._retire` wants to know of a route


class Held:
    """The C group. It is left when the last that needs it is gone: the Group, its routes, views of its memory."""

    _lib, _errors, _sys = lib, errors, sys  # a module may be empty when the interpreter ends

    def __init__(self, pointer: int):
        self.pointer = pointer
        self.streams: Dict[int, List[Any]] = {}  # of the C library's streams: what their calls may still look at
        self.awaited: Set[int] = set()  # those of them that are certain to exist as long as this
        self.events: Set[int] = set()  # of the C library's
        self.dropped: Deque[Dropped] = deque()  # that nothing refers to; any thread appends
        self.given_up = False  # by Group.close: what is on the streams need not be waited for

    def __del__(self) -> None:
        # The garbage collector may come here before a route or a stream of the same heap of garbage: they look at `pointer`.
        if not self.pointer:
            return
        pointer, self.pointer = self.pointer, 0
        if capturing():
            _parked.append((pointer, self))  # nothing may be freed during a capture, nor waited for
        else:
            self._leave(pointer)

    def _leave(self, pointer: int) -> None:
        while self.events:
            self._lib.ferry_event_destroy(self.events.pop())
        if not self.given_up and not self._sys.is_finalizing():
            for stream in self.awaited:
                try:
                    self._lib.ferry_stream_sync(stream)  # bounded: each call on it is
                except self._errors.FerryError:
                    pass  # nobody is left to hear of it
        self._lib.ferry_group_destroy(pointer)
        self.streams.clear()


def capturing() -> bool:
    """Whether this thread is capturing a CUDA graph."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


_parked: Deque[Tuple[int, Held]] = deque()


def leave_parked() -> None:
    """Leaves the groups whose last handle was dropped during a capture."""
    while _parked and not capturing():
        pointer, held = _parked.popleft()
        held._leave(pointer)


atexit.register(leave_parked)
