"""Where the calls of a Buffer run: in the current CUDA stream, or beside it in the communication stream; on the CPU, at once."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Iterator, List, Optional

import torch

import ferry

from ._event import EventHandle, EventOverlap, event_of


class CpuStream:
    """What get_comm_stream returns where there is no GPU: calls are complete when they return."""

    def synchronize(self) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass


def on_stream(x: torch.Tensor) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """A hook whose work goes to the stream that is current now, whichever is when it is called."""
    stream = torch.cuda.current_stream(x.device) if x.is_cuda else None

    def mark(hook: Callable[[], None]) -> Callable[[], None]:
        def there() -> None:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                hook()

        return there

    return mark


def refuse_capture(x: torch.Tensor, what: str) -> None:
    """The call waits on the host, which a capture cannot hold."""
    if capturing(x):
        raise ferry.UnsupportedError(f"{what} waits for counts on the host, which a CUDA graph's capture cannot hold")


def capturing(x: torch.Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


class Lane:
    def __init__(self) -> None:
        self._comm: Any = None

    @property
    def comm(self) -> Any:
        """The communication stream of a Buffer, made when it is first needed."""
        if self._comm is None:
            self._comm = torch.cuda.Stream(priority=-1) if torch.cuda.is_available() else CpuStream()
        return self._comm

    @contextmanager
    def run(self, on_gpu: bool, previous: Any, asynchronous: bool) -> Iterator["Call"]:
        """The body's calls come after `previous` and, unless that is given, after the current stream's work so far.

        Without `asynchronous` the current stream itself carries them: waiting for another one would come to the same.
        """
        call = Call(asynchronous)
        given = previous if isinstance(previous, tuple) else (previous,)
        events = [e for e in map(event_of, given) if e is not None and e.cuda_event is not None]
        if not on_gpu:
            yield call
            call.finish(None)
            return
        current = torch.cuda.current_stream()
        if not asynchronous:
            for event in events:
                event.current_stream_wait()
            yield call
            call.finish(None)
            return
        comm = self.comm
        for event in events:
            comm.wait_event(event.cuda_event)
        if not events:
            comm.wait_stream(current)
        with torch.cuda.stream(comm):
            yield call
            call.finish(current)


class Call:
    """One call: the tensors that it touches, and the event that ends it."""

    def __init__(self, asynchronous: bool):
        self.asynchronous = asynchronous
        self.tensors: List[torch.Tensor] = []
        self.event = EventOverlap()
        self.later: Optional[Callable[[], Any]] = None

    def touch(self, *tensors: Any) -> None:
        self.tensors += [t for t in tensors if isinstance(t, torch.Tensor)]

    def finish(self, current: Any) -> None:
        if not self.asynchronous:
            return
        if current is not None:
            # Inputs belong to the current stream, results to the communication stream: each is used on both.
            comm: Any = torch.cuda.current_stream()
            if not torch.cuda.is_current_stream_capturing():
                for t in self.tensors:
                    if t.is_cuda:
                        t.record_stream(comm)
                        t.record_stream(current)
        self.event = EventOverlap(EventHandle(), tuple(self.tensors))
