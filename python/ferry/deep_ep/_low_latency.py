"""Low-latency mode: layout SLOTS in mode LATENCY, nothing waits on the host, shapes do not depend on data."""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch

import ferry

from ._event import EventOverlap
from ._groups import Groups, Need, where
from ._handles import LowLatencyHandle, route_of
from ._lane import Lane, on_stream

_TOPK = 16  # of a group that is made before the first dispatch


class RankMask:
    """Ranks that the low-latency groups go on without. All that go on agree on them: nobody masks a rank for itself."""

    def __init__(self, groups: Groups, shrinks: bool):
        self.groups, self.shrinks = groups, shrinks

    def _all(self) -> List[ferry.Group]:
        return [group for need, group in self.groups.made() if need.layout == "slots"]

    def _agree(self, groups: List[ferry.Group], mask: Sequence[int] = (), unmask: Sequence[int] = ()) -> None:
        """[collective] of the ranks that go on. What the first group finds the others need not wait for again."""
        for group in groups:
            _come(group, mask, unmask)
            if not unmask:
                mask = _ranks(group.masked)

    def query(self, status: torch.Tensor) -> None:
        assert (
            status.numel() == self.groups.ranks
        ), f"mask_status has {status.numel()} elements, not {self.groups.ranks}"
        groups = self._all()
        if self.shrinks and any(_failed(g) for g in groups):
            self._agree(groups)
        status.copy_(torch.from_numpy(groups[0].masked.astype("int32")) if groups else torch.zeros_like(status))

    def update(self, rank: int, mask: bool) -> None:
        groups = self._all()
        if mask and not groups:
            raise ferry.InvalidError(f"rank {rank} cannot be masked before the first low-latency call")
        if any(bool(g.masked[rank]) != mask for g in groups):
            self._agree(groups, *(((rank,), ()) if mask else ((), (rank,))))

    def clean(self) -> None:
        groups = self._all()
        masked = sorted({rank for g in groups for rank in _ranks(g.masked)})
        if masked or any(_failed(g) for g in groups):
            self._agree(groups, unmask=masked)


def _come(group: ferry.Group, mask: Sequence[int], unmask: Sequence[int]) -> None:
    """Comes to every agreement until one has this rank in it; a DeadlineError when none is held any more."""
    while True:
        try:
            group.agree(mask, unmask)
            return
        except ferry.RefusedError:
            continue


def _ranks(masked: Any) -> List[int]:
    return [int(rank) for rank in masked.nonzero()[0]]


def _failed(group: ferry.Group) -> bool:
    if group.device == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(group.device_index)  # errors of kernels come with their end
    try:
        group.check()
    except ferry.FerryError:
        return True
    return False


def _cast(use_fp8: bool, round_scale: bool, use_ue8m0: bool) -> Optional[str]:
    if not use_fp8:
        return None
    assert round_scale or not use_ue8m0, "use_ue8m0 needs round_scale=True"
    return "e4m3_ue8m0" if use_ue8m0 else "e4m3_pow2" if round_scale else "e4m3"


class LowLatency:
    """The low-latency calls of a Buffer."""

    def __init__(self, groups: Groups, lane: Lane, shrinks: bool):
        self.groups, self.lane = groups, lane
        self.mask = RankMask(groups, shrinks)
        self._filled: Any = None  # the buffer that the caller writes before a zero-copy combine

    def group(self, device: str, tokens: int, hidden: int, experts: int, topk: int = _TOPK) -> ferry.Group:
        assert experts % self.groups.ranks == 0, f"{experts} experts do not divide by {self.groups.ranks} ranks"
        return self.groups.find(Need(device, "slots", hidden, experts, tokens, max(topk, _TOPK)))

    def dispatch(
        self, x: torch.Tensor, topk_idx: torch.Tensor, tokens: int, experts: int, stats: Optional[torch.Tensor],
        cast: Tuple[bool, bool, bool], asynchronous: bool, hook: bool,
    ) -> Tuple[Any, torch.Tensor, LowLatencyHandle, EventOverlap, Optional[Callable[[], None]]]:  # fmt: skip
        assert not (asynchronous and hook), "async_finish and return_recv_hook exclude each other"
        assert (
            x.dim() == 2 and x.dtype == torch.bfloat16
        ), f"x is {x.dtype}{list(x.shape)}, wanted is bfloat16 [T, hidden]"
        group = self.group(where(x), tokens, x.shape[1], experts, topk_idx.shape[1])
        slots, local = group.ranks * tokens, experts // group.ranks
        kind = _cast(*cast)
        with self.lane.run(x.is_cuda, None, asynchronous) as call:
            route = ferry.Route(group, topk_idx, layout="slots", mode="latency", packed=True)
            scales = None
            if kind is not None:
                columns = -(-x.shape[1] // (512 if cast[2] else 128))
                dtype = torch.int32 if cast[2] else torch.float32
                scales = x.new_empty((local, columns, slots), dtype=dtype).transpose(1, 2)
            pending = route.dispatch_send(x, cast=kind, out_scales=scales, view=True)
            got = pending.views
            count = x.new_empty((local,), dtype=torch.int32)
            src_info = x.new_empty((local, slots), dtype=torch.int32)
            layout_range = x.new_empty((local, group.ranks), dtype=torch.int64)

            @on_stream(x)
            def receive() -> None:
                arrived = pending.recv()
                torch.remainder(arrived.source, tokens, out=src_info.view(-1))
                torch.sum(arrived.counts, 1, dtype=torch.int32, out=count)
                halves = layout_range.view(torch.int32).view(local, group.ranks, 2)
                halves[..., 0].copy_(arrived.counts)
                halves[..., 1].copy_(arrived.starts)
                if stats is not None:
                    stats.add_(count)

            if not hook:
                receive()
            call.touch(x, topk_idx, stats, scales, count, src_info, layout_range)
        handle = LowLatencyHandle((src_info, layout_range, tokens, x.shape[1], experts), route)
        recv_x = got.rows if kind is None else (got.rows, scales)
        return recv_x, count, handle, call.event, receive if hook else None

    def combine(
        self, x: torch.Tensor, weights: torch.Tensor, handle: Any, zero_copy: bool, asynchronous: bool, hook: bool,
        out: Optional[torch.Tensor],
    ) -> Tuple[torch.Tensor, EventOverlap, Optional[Callable[[], None]]]:  # fmt: skip
        assert not (asynchronous and hook), "async_finish and return_recv_hook exclude each other"
        route = route_of(handle, LowLatencyHandle)
        if zero_copy:
            assert self._filled is not None, "zero_copy without get_next_low_latency_combine_buffer before it"
            x, self._filled = self._filled, None
        with self.lane.run(x.is_cuda, None, asynchronous) as call:
            result = x.new_empty((route.tokens, x.shape[2])) if out is None else out
            pending = route.combine_send(x, topk_weights=weights)

            @on_stream(x)
            def receive() -> None:
                pending.recv(out=result)

            if not hook:
                receive()
            call.touch(x, weights, result)
        return result, call.event, receive if hook else None

    def next_buffer(self, handle: Any) -> torch.Tensor:
        route = route_of(handle, LowLatencyHandle)
        self._filled = route.combine_buffer(handle[3], "bfloat16", like=handle[1])
        return self._filled
