"""`Buffer`: DeepEP V1's calls."""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple, Union

import numpy as np
import torch

import ferry

from ._config import Config, recommended
from ._event import EventHandle, EventOverlap
from ._groups import Groups, Need, meet, round_up, where
from ._handles import NormalHandle, route_of
from ._lane import Lane, refuse_capture
from ._low_latency import LowLatency

Rows = Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]


class Buffer:
    """Dispatch and combine with DeepEP V1's calls, in normal and in low-latency mode.

    Attributes: rank, group, group_size, num_nvl_bytes, num_rdma_bytes, low_latency_mode, explicitly_destroy, enable_shrink, and
    the class's num_sms.

    Nothing is allocated when a Buffer is made: the byte counts are kept, and not used. The Ferry groups behind it are made by
    the first call that needs one, on all ranks at once (docs/migrating-from-deepep.md, "When memory is taken").
    """

    num_sms: int = 20
    _sms_asked = False

    def __init__(
        self,
        group: Any = None,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        use_fabric: bool = False,
        explicitly_destroy: bool = False,
        enable_shrink: bool = False,
        comm: Any = None,
    ):
        """[collective] Ranks meet through `group` (a torch.distributed process group) or `comm` (mpi4py)."""
        self.rank, self.group_size, allgather = meet(group, comm)
        self.group = group if group is not None else comm
        self.num_nvl_bytes, self.num_rdma_bytes = num_nvl_bytes, num_rdma_bytes
        self.low_latency_mode, self.explicitly_destroy = low_latency_mode, explicitly_destroy
        self.enable_shrink = enable_shrink
        self._groups = Groups(self.rank, self.group_size, allgather, timeout=100)
        self._lane = Lane()
        self._low = LowLatency(self._groups, self._lane, enable_shrink)

    def destroy(self) -> None:
        """Waits for the GPU, as DeepEP does, and frees everything; only with explicitly_destroy=True. Meets no other rank."""
        assert self.explicitly_destroy, "explicitly_destroy=True was not given"
        self._groups.close()

    # ---- knobs and hints ----

    @staticmethod
    def is_sm90_compiled() -> bool:
        """Whether FP8 rows can be used: always, where this PyTorch has float8."""
        return hasattr(torch, "float8_e4m3fn")

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        """The most SMs of a step, for the groups that are made from now on; less where ranks that share a GPU would not fit."""
        assert new_num_sms % 2 == 0, f"{new_num_sms} SMs: an even number is wanted"
        Buffer.num_sms, Buffer._sms_asked = new_num_sms, True

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        return recommended(num_ranks, Buffer.num_sms, combine=False)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        return recommended(num_ranks, Buffer.num_sms, combine=True)

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        """The bytes that the low-latency group of these shapes takes on each rank."""
        return ferry.group_bytes(
            num_ranks, experts=num_experts, hidden=hidden, max_tokens=num_max_dispatch_tokens_per_rank, layouts="slots"
        )

    @staticmethod
    def capture() -> EventOverlap:
        """An event in the current CUDA stream."""
        return EventOverlap(EventHandle())

    def get_comm_stream(self) -> Any:
        """The CUDA stream of asynchronous calls."""
        return self._lane.comm

    def get_local_buffer_tensor(
        self, dtype: torch.dtype, size: Any = None, offset: int = 0, use_rdma_buffer: bool = False
    ) -> torch.Tensor:
        """An empty tensor, for those who clear the buffer: there is none to look into, each of a Buffer's groups has its own."""
        if size is not None or offset:
            raise ferry.UnsupportedError(
                "there is no single buffer to look into: each of a Buffer's groups has its own"
            )
        return torch.empty(0, dtype=dtype, device=_here())

    # ---- normal mode ----

    def get_dispatch_layout(
        self,
        topk_idx: torch.Tensor,
        num_experts: int,
        previous_event: Optional[EventOverlap] = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> Tuple[torch.Tensor, None, torch.Tensor, torch.Tensor, EventOverlap]:
        """Counts from topk_idx [T, K] (-1: none), without communication.

        Returns num_tokens_per_rank int32 [R]; None (all ranks are on one host); num_tokens_per_expert int32 [E];
        is_token_in_rank bool [T, R]; event.
        """
        ranks, local = self.group_size, num_experts // self.group_size
        with self._lane.run(topk_idx.is_cuda, previous_event, async_finish) as call:
            chosen = topk_idx.long().masked_fill(topk_idx < 0, num_experts)
            per_expert = topk_idx.new_zeros(num_experts + 1, dtype=torch.int32)
            per_expert.index_add_(0, chosen.flatten(), torch.ones_like(chosen, dtype=torch.int32).flatten())
            homes = (chosen // local).clamp_(max=ranks)
            in_rank = torch.zeros((len(topk_idx), ranks + 1), dtype=torch.bool, device=topk_idx.device)
            in_rank.scatter_(1, homes, True)
            in_rank = in_rank[:, :ranks].contiguous()
            per_rank = in_rank.sum(0, dtype=torch.int32)
            call.touch(topk_idx, per_expert, in_rank, per_rank)
        return per_rank, None, per_expert[:num_experts], in_rank, call.event

    def dispatch(
        self,
        x: Rows,
        handle: Optional[Tuple] = None,
        num_tokens_per_rank: Optional[torch.Tensor] = None,
        num_tokens_per_rdma_rank: Optional[torch.Tensor] = None,
        is_token_in_rank: Optional[torch.Tensor] = None,
        num_tokens_per_expert: Optional[torch.Tensor] = None,
        topk_idx: Optional[torch.Tensor] = None,
        topk_weights: Optional[torch.Tensor] = None,
        expert_alignment: int = 1,
        num_worst_tokens: int = 0,
        config: Optional[Config] = None,
        previous_event: Optional[EventOverlap] = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> Tuple[Rows, Optional[torch.Tensor], Optional[torch.Tensor], Optional[List[int]], Any, EventOverlap]:
        """[collective] Every token once to each rank that has one of its experts.

        Args:
            x: [T, H] bfloat16, or (float8_e4m3fn [T, H], scales [T, n] of 4-byte elements, any strides).
            handle: of an earlier dispatch: rows travel the same way, without top-k and without a host wait.
            is_token_in_rank, num_tokens_per_expert: of get_dispatch_layout. With topk_idx only the number of experts is
                taken from them; without, they say where tokens go.
            topk_idx, topk_weights: [T, K] integers, float32.
            expert_alignment: the counts in the list are rounded up to multiples of it.
            num_worst_tokens: results have this many rows, nothing waits on the host, the list is empty; -1 in
                recv_topk_idx where there is no row. The same on every rank, and at least the sum of all ranks' tokens.

        Returns (recv_x, recv_topk_idx, recv_topk_weights, list of rows of each local expert, handle, event): rows by
        source rank, then token; recv_topk_idx [N, K] local experts, -1 when not on this rank; weights 0 there.
        """
        rows, scales = x if isinstance(x, tuple) else (x, None)
        flat = scales is not None and scales.dim() == 1
        if flat:
            scales = scales[:, None]  # type: ignore[index]
        if handle is None and not num_worst_tokens:
            refuse_capture(rows, "dispatch without num_worst_tokens and without a handle")
        counts: Optional[List[int]] = None
        made: Any = None
        ids = weights = None
        with self._lane.run(rows.is_cuda, previous_event, async_finish) as call:
            if handle is not None:
                assert topk_idx is None and topk_weights is None, "a handle has its top-k already"
                got = route_of(handle, NormalHandle).dispatch(rows, scales=scales, topk=False)
            else:
                assert (
                    is_token_in_rank is not None and num_tokens_per_expert is not None
                ), "get_dispatch_layout's results are wanted"
                route = self._route(
                    rows, is_token_in_rank, num_tokens_per_expert, topk_idx, topk_weights, num_worst_tokens
                )
                got = route.dispatch(rows, scales=scales)
                if topk_idx is not None:
                    ids, weights = got.topk_idx.to(topk_idx.dtype), got.topk_weights
                if num_worst_tokens:
                    counts = []
                    if ids is not None:
                        beyond = torch.arange(route.rows, device=rows.device) >= got.counts.sum()
                        ids.masked_fill_(beyond[:, None], -1)
                else:
                    counts = self._counts(route, num_tokens_per_expert, topk_idx is not None, expert_alignment)
                prefix = self._prefix(route, got.counts)
                source = got.source.remainder(route.group.max_tokens)
                made = NormalHandle((prefix, None, None, source, is_token_in_rank, None), route)
            call.touch(rows, scales, topk_idx, topk_weights, got.rows, got.scales, ids, weights, *(made or ())[:4])
        recv_scales = got.scales[:, 0] if flat else got.scales
        recv_x = got.rows if scales is None else (got.rows, recv_scales)
        return recv_x, ids, weights, counts, made, call.event

    def combine(
        self,
        x: torch.Tensor,
        handle: Tuple,
        topk_weights: Optional[torch.Tensor] = None,
        bias: Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor], None] = None,
        config: Optional[Config] = None,
        previous_event: Optional[EventOverlap] = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor], EventOverlap]:
        """[collective] Rows back to their tokens: the plain sum over ranks, ascending, in float32, begun from the biases.

        x: bfloat16 [N, H] in the rows of the dispatch. topk_weights: float32 [N, K], summed over ranks likewise.
        bias: none, one or two of [T, H].

        Returns (combined_x [T, H], combined_topk_weights [T, K] or None, event).
        """
        route = route_of(handle, NormalHandle)
        with self._lane.run(x.is_cuda, previous_event, async_finish) as call:
            y = route.combine(x, bias=bias).rows
            weights = None if topk_weights is None else self._sum_weights(route, topk_weights)
            call.touch(x, topk_weights, y, weights, *(bias if isinstance(bias, tuple) else (bias,)))
        return y, weights, call.event

    def _route(
        self, x: torch.Tensor, in_rank: torch.Tensor, per_expert: torch.Tensor, idx: Any, weights: Any, worst: int
    ) -> ferry.Route:
        experts, ranks = per_expert.numel(), self.group_size
        assert experts % ranks == 0, f"{experts} experts do not divide by {ranks} ranks"
        if idx is None:  # where a token goes is all there is: the first expert of each of its ranks stands for it
            first = torch.arange(0, experts, experts // ranks, dtype=torch.int32, device=x.device)
            idx = first.expand(in_rank.shape).masked_fill(~in_rank, -1)
        if worst:
            tokens = worst  # of one rank, at most
        else:
            names = ("hidden", "topk", "experts", "use of FP8")
            same = (x.shape[1], idx.shape[1], experts, int(x.element_size() == 1))
            tokens = self._groups.largest(len(x), names, same)
        self._groups.sms = Buffer.num_sms if Buffer._sms_asked else 0
        topk, hidden = min(ferry._c.MAX_TOPK, max(idx.shape[1], ranks, 16)), max(x.shape[1], 128)
        group = self._groups.find(Need(where(x), "rank", hidden, experts, round_up(max(tokens, 1), 128), topk, worst))
        return ferry.Route(group, idx, weights, mode="latency" if worst else "throughput", packed=worst > 0)

    def _counts(self, route: ferry.Route, per_expert: torch.Tensor, by_topk: bool, alignment: int) -> List[int]:
        """Rows of each local expert, rounded up. Without top-k the caller's counts of all ranks say it."""
        counts = route.expert_rows
        if not by_topk:
            all_ = self._groups.gather(per_expert.cpu().numpy()).sum(0)
            counts = all_.reshape(self.group_size, -1)[self.rank]
        return [round_up(int(n), max(1, alignment)) for n in counts]  # type: ignore[union-attr]

    def _prefix(self, route: ferry.Route, counts: torch.Tensor) -> torch.Tensor:
        """rank_prefix_matrix int32 [R, R]: rows from ranks 0..i to rank j. Without a host wait only this rank's column is known."""
        if route.mode == "throughput":
            sent = np.cumsum(self._groups.gather(route.rank_rows), axis=0, dtype=np.int32)
            return torch.from_numpy(sent).to(counts.device, non_blocking=True)
        matrix = counts.new_zeros((self.group_size, self.group_size))
        matrix[:, self.rank] = counts.cumsum(0)
        return matrix

    @staticmethod
    def _sum_weights(route: ferry.Route, weights: torch.Tensor) -> torch.Tensor:
        """DeepEP adds what each rank has for a choice, also for choices of other ranks: a combine of small float32 rows."""
        topk = weights.shape[1]
        padded = torch.nn.functional.pad(weights.float(), (0, -topk % 4))
        return route.combine(padded).rows[:, :topk].contiguous()

    # ---- low-latency mode ----

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int) -> None:
        """[collective] Makes the group of these shapes, if there is none yet. There is nothing to clean."""
        self._low.group(_here(), num_max_dispatch_tokens_per_rank, hidden, num_experts)

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: Optional[torch.Tensor] = None,
        dispatch_wait_recv_cost_stats: Optional[torch.Tensor] = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> Tuple[Rows, torch.Tensor, Tuple, EventOverlap, Optional[Callable[[], None]]]:
        """[collective] Every token once to each of its experts, cast to FP8 on the way.

        Args:
            x: bfloat16 [T, H], T at most M = num_max_dispatch_tokens_per_rank.
            topk_idx: [T, K], -1 for none.
            cumulative_local_expert_recv_stats: int32 [L], to which the counts are added.
            use_fp8, round_scale, use_ue8m0: float scales amax/448 of 128 channels; powers of two; those as UE8M0.
            return_recv_hook: send only; call the hook to receive.

        Returns (recv_x, recv_count int32 [L], handle, event, hook). recv_x: bfloat16 [L, R * M, H], or (float8_e4m3fn of that
        shape, scales float32 [L, R * M, H / 128] or int32 [L, R * M, H / 512], stored column by column). The first
        recv_count[e] rows of an expert are valid, by source rank, then token. recv_x is the library's buffer, and is
        overwritten by the second dispatch after this one.
        """
        if dispatch_wait_recv_cost_stats is not None:
            raise ferry.UnsupportedError("dispatch_wait_recv_cost_stats: the time of each wait is not measured")
        cast = (use_fp8, round_scale, use_ue8m0)
        return self._low.dispatch(
            x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts, cumulative_local_expert_recv_stats, cast,
            async_finish, return_recv_hook,
        )  # fmt: skip

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: Tuple,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: Optional[torch.Tensor] = None,
        combine_wait_recv_cost_stats: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, EventOverlap, Optional[Callable[[], None]]]:
        """[collective] Rows back to their tokens, summed by topk_weights float32 [T, K], in float32, in choice order.

        x: bfloat16 [L, R * M, H] in the slots of the dispatch; with zero_copy the buffer of
        get_next_low_latency_combine_buffer is taken instead. topk_idx is that of the dispatch, which the handle has.

        Returns (combined_x bfloat16 [T, H], or `out`; event; hook).
        """
        if use_logfmt:
            raise ferry.UnsupportedError("use_logfmt: rows travel as bfloat16 here; LogFMT is not built")
        if combine_wait_recv_cost_stats is not None:
            raise ferry.UnsupportedError("combine_wait_recv_cost_stats: the time of each wait is not measured")
        return self._low.combine(x, topk_weights, handle, zero_copy, async_finish, return_recv_hook, out)

    def get_next_low_latency_combine_buffer(self, handle: Tuple) -> torch.Tensor:
        """bfloat16 [L, R * M, H]: the library's buffer for the next combine, to be filled, then zero_copy=True."""
        return self._low.next_buffer(handle)

    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        """[collective] of the ranks that go on: the low-latency groups go on without the rank, or with it again.

        Handles from before are void. A rank that is to come back calls low_latency_clean_mask_buffer meanwhile.
        """
        self._low.mask.update(rank_to_mask, mask)

    def low_latency_query_mask_buffer(self, mask_status: torch.Tensor) -> None:
        """Fills int32 [R] with 1 for ranks that are masked. With enable_shrink, where a step has failed here: [collective] of the
        ranks that can still come, which agree to go on without the others."""
        self._low.mask.query(mask_status)

    def low_latency_clean_mask_buffer(self) -> None:
        """Takes all ranks back: [collective] of all, those that were masked too. Nothing where nobody is masked."""
        self._low.mask.clean()


def _here() -> str:
    """The device of calls that are given no tensor."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu"
