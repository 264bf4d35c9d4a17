"""Events of the current stream, as DeepEP hands them around. On the CPU every call is complete when it returns."""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch


class EventHandle:
    """A point in the stream that is current when it is made. Without a CUDA context it has already happened."""

    def __init__(self) -> None:
        self.cuda_event: Optional[torch.cuda.Event] = None
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self.cuda_event = torch.cuda.Event()
            self.cuda_event.record()

    def current_stream_wait(self) -> None:
        """The current stream goes on when the event has happened."""
        if self.cuda_event is not None:
            torch.cuda.current_stream().wait_event(self.cuda_event)


class EventOverlap:
    """An event (None: nothing to wait for), and the tensors that must live until it is waited for.

    A context manager: work inside overlaps with what the event ends, and the current stream waits on the way out.
    """

    def __init__(self, event: Optional[EventHandle] = None, extra_tensors: Optional[Tuple[Any, ...]] = None):
        self.event = event
        self.extra_tensors = extra_tensors
        self.hook_after_wait: Optional[Callable[[], Any]] = None
        self._release = False

    def current_stream_wait(self, release_handle: bool = False) -> None:
        """The current stream waits for the event; then the hook, if one is registered, is called."""
        assert self.event is not None, "there is no event: the call was not asynchronous"
        self.event.current_stream_wait()
        hook, self.hook_after_wait = self.hook_after_wait, None
        if hook is not None:
            hook()
        if release_handle:
            self.event = None

    def register_hook_after_wait(self, hook_after_wait: Callable[[], Any]) -> None:
        assert self.hook_after_wait is None, "a hook is registered already"
        self.hook_after_wait = hook_after_wait

    def __call__(self, release_handle: bool = False) -> "EventOverlap":
        self._release = release_handle
        return self

    def __enter__(self) -> "EventOverlap":
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if self.event is not None:
            self.current_stream_wait(release_handle=self._release)
        self._release = False


def event_of(previous: Any) -> Optional[EventHandle]:
    """The EventHandle in an EventOverlap, an EventHandle itself, or None."""
    return getattr(previous, "event", previous)
