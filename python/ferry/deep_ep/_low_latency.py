"""Low-latency mode: layout SLOTS in mode LATENCY, nothing waits on the host, shapes do not depend on data."""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch

import ferry

from ._event import EventOverlap
from ._groups import Groups, Need, where
from ._handles import LowLatencyHandle, route_of
from ._lane import Lane, on_stream

_TOPK = 16  # of a group that is made before the first dispatch


class RankMask:
    """Ranks that a step leaves out. This version of Ferry has no such mask: nobody can be masked, and nobody is.

    This is the one place for it: what follows a rank's mask in the C library belongs in these three.
    """

    def __init__(self, ranks: int):
        self.ranks = ranks

    def query(self, status: torch.Tensor) -> None:
        assert status.numel() == self.ranks, f"mask_status has {status.numel()} elements, not {self.ranks}"
        status.zero_()

    def update(self, rank: int, mask: bool) -> None:
        if mask:
            raise ferry.UnsupportedError(
                f"rank {rank} cannot be masked: masking ranks is not in this version of Ferry (a lost rank ends the group "
                "with a DeadlineError that names it)"
            )

    def clean(self) -> None:
        pass


def _cast(use_fp8: bool, round_scale: bool, use_ue8m0: bool) -> Optional[str]:
    if not use_fp8:
        return None
    assert round_scale or not use_ue8m0, "use_ue8m0 needs round_scale=True"
    return "e4m3_ue8m0" if use_ue8m0 else "e4m3_pow2" if round_scale else "e4m3"


class LowLatency:
    """The low-latency calls of a Buffer."""

    def __init__(self, groups: Groups, lane: Lane):
        self.groups, self.lane = groups, lane
        self.mask = RankMask(groups.ranks)
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
