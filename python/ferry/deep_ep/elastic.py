"""`ElasticBuffer` and `EPHandle`: DeepEP V2's calls for expert parallelism."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple, Union

import torch

import ferry

from ._event import EventHandle, EventOverlap
from ._fold import distinct, sum_by_token, weights_by_token
from ._groups import Groups, Need, meet, round_up, where
from ._lane import Lane, refuse_capture

Rows = Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]
_SMS = 24  # Ferry's own choice where a rank has a GPU to itself (docs/gpu.md)


class EPHandle:
    """What a dispatch found out, for a later combine or a cached dispatch.

    R ranks, L local experts, K topk, N received tokens (the worst case, num_max_tokens_per_rank * R, without CPU sync).

    do_expand, num_experts, expert_alignment, num_max_tokens_per_rank, num_sms: as given.
    topk_idx: [T, K], a copy unless do_handle_copy=False.
    num_recv_tokens, num_expanded_tokens: N, and the rows of an expanded result (0 otherwise).
    num_recv_tokens_per_expert_list: aligned, on the host; empty without CPU sync.
    psum_num_recv_tokens_per_scaleup_rank: int32 [R], inclusive sums of tokens by source rank.
    psum_num_recv_tokens_per_expert: int32 [L]: inclusive sums of aligned counts; expanded: the aligned start plus the count.
    num_unaligned_recv_tokens_per_expert: int32 [L].
    recv_src_metadata: int32 [N, 2 + K]: source rank * num_max_tokens_per_rank + token; source rank * K + last choice that is
        here; for each choice its expanded row, or -1.
    dst_buffer_slot_idx: empty (slots are in the route); token_metadata_at_forward, channel_linked_list: None (one host).
    """

    def __init__(self, route: ferry.Route, tokens: Optional[ferry.Route], **fields: Any):
        self.route = route
        self._tokens = tokens  # of an expanded dispatch: the route by which each token came once
        self._places: Any = None  # and int32 [N, K], which expanded row each of its choices is, or -1
        self._terms: Any = None  # likewise, a repeated expert once
        self.do_expand: bool = False
        self.num_experts: int = 0
        self.expert_alignment: int = 1
        self.num_max_tokens_per_rank: int = 0
        self.num_sms: int = 0
        self.topk_idx: Any = None
        self.num_recv_tokens: int = 0
        self.num_expanded_tokens: int = 0
        self.num_recv_tokens_per_expert_list: List[int] = []
        self.psum_num_recv_tokens_per_scaleup_rank: Any = None
        self.psum_num_recv_tokens_per_expert: Any = None
        self.num_unaligned_recv_tokens_per_expert: Any = None
        self.recv_src_metadata: Any = None
        self.dst_buffer_slot_idx: Any = None
        self.token_metadata_at_forward: Any = None
        self.channel_linked_list: Any = None
        self.__dict__.update(fields)


class ElasticBuffer:
    """Dispatch and combine with DeepEP V2's calls. Engram, pipeline and all-gather sessions are not here.

    Attributes: group, rank_idx, num_ranks, num_bytes, num_max_tokens_per_rank, the flags as given; num_scaleout_ranks 1,
    num_scaleup_ranks and num_nvlink_ranks R, num_rdma_ranks 1: all ranks are on one host.
    """

    def __init__(
        self,
        group: Any,
        num_bytes: Optional[int] = None,
        num_cpu_bytes: int = 0,
        num_max_tokens_per_rank: int = 0,
        hidden: int = 0,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
        deterministic: bool = False,
        allow_hybrid_mode: bool = True,
        allow_multiple_reduction: bool = True,
        prefer_overlap_with_compute: bool = True,
        sl_idx: int = 3,
        num_allocated_qps: int = 0,
        num_cpu_timeout_secs: int = 300,
        num_gpu_timeout_secs: int = 100,
        explicitly_destroy: bool = False,
    ):
        """[collective] Ranks meet through `group`, a torch.distributed process group. Memory is taken by the first calls."""
        self.rank_idx, self.num_ranks, allgather = meet(group, None)
        self.group = group
        self.num_max_tokens_per_rank, self.hidden, self.num_topk = num_max_tokens_per_rank, hidden, num_topk
        self.deterministic, self.explicitly_destroy = deterministic, explicitly_destroy
        self.allow_hybrid_mode, self.allow_multiple_reduction = allow_hybrid_mode, allow_multiple_reduction
        self.prefer_overlap_with_compute = prefer_overlap_with_compute
        self.num_allocated_qps = num_allocated_qps or 1
        self.num_scaleout_ranks, self.num_scaleup_ranks = self.get_logical_domain_size()
        self.scaleout_rank_idx, self.scaleup_rank_idx = 0, self.rank_idx
        self.num_rdma_ranks, self.num_nvlink_ranks = self.get_physical_domain_size()
        if num_bytes is None:
            num_bytes = self.get_buffer_size_hint(group, num_max_tokens_per_rank, hidden) if hidden else 0
        self.num_bytes = num_bytes
        self._groups = Groups(
            self.rank_idx, self.num_ranks, allgather, timeout=max(num_cpu_timeout_secs, num_gpu_timeout_secs)
        )
        self._lane = Lane()

    def destroy(self) -> None:
        """Waits for the GPU, as DeepEP does, and frees everything; only with explicitly_destroy=True. Meets no other rank."""
        assert self.explicitly_destroy, "explicitly_destroy=True was not given"
        self._groups.close()

    @staticmethod
    def get_buffer_size_hint(
        group: Any,
        num_max_tokens_per_rank: int,
        hidden: int,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,
        allow_hybrid_mode: bool = True,
        allow_multiple_reduction: bool = True,
    ) -> int:
        """The bytes, in units of 2 MiB, that the group of an unexpanded dispatch takes on each rank."""
        ranks = meet(group, None)[1]
        taken = ferry.group_bytes(
            ranks, experts=ranks, hidden=hidden, max_tokens=max(1, num_max_tokens_per_rank), layouts="rank"
        )
        return round_up(taken, 2 << 20)

    @staticmethod
    def capture() -> EventHandle:
        """An event in the current CUDA stream."""
        return EventHandle()

    def get_comm_stream(self) -> Any:
        """The CUDA stream of asynchronous calls."""
        return self._lane.comm

    def get_physical_domain_size(self) -> Tuple[int, int]:
        """(hosts, ranks of a host)."""
        return 1, self.num_ranks

    def get_logical_domain_size(self) -> Tuple[int, int]:
        return 1, self.num_ranks

    def get_theoretical_num_sms(self, num_experts: int, num_topk: int, *_: Any, **__: Any) -> int:
        """SMs that a step uses at most, where a rank has a GPU to itself."""
        return _SMS

    def get_theoretical_num_qps(self, num_sms: int) -> int:
        """1: there are no queue pairs, and callers want some."""
        return 1

    def barrier(self, use_comm_stream: bool = True, with_cpu_sync: bool = False, sequential: bool = True) -> None:
        """[collective] On the host; before it the GPU finishes what is queued."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._groups.barrier()

    # ---- dispatch ----

    def dispatch(
        self,
        x: Rows,
        topk_idx: Optional[torch.Tensor] = None,
        topk_weights: Optional[torch.Tensor] = None,
        cumulative_local_expert_recv_stats: Optional[torch.Tensor] = None,
        num_experts: Optional[int] = None,
        num_max_tokens_per_rank: Optional[int] = None,
        expert_alignment: Optional[int] = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: Any = None,
        previous_event_before_epilogue: Any = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
        handle: Optional[EPHandle] = None,
        do_handle_copy: bool = True,
        do_cpu_sync: Optional[bool] = None,
        do_expand: bool = False,
        do_zero_padding: bool = False,
        use_tma_aligned_col_major_sf: bool = False,
    ) -> Tuple[Rows, Optional[torch.Tensor], Optional[torch.Tensor], EPHandle, EventOverlap]:
        """[collective] Tokens to their experts' ranks.

        Args:
            x: [T, H] bfloat16, or (float8_e4m3fn [T, H], scale factors [T, n] of 4-byte elements, any strides).
            topk_idx, topk_weights: [T, K] integers (-1: none), float32. With a handle topk_idx is None.
            cumulative_local_expert_recv_stats: int32 [L], to which the counts are added.
            num_max_tokens_per_rank: at least T; the same on every rank.
            expert_alignment: expanded: each expert's block begins at a multiple of it. Counts are rounded up to it.
            do_cpu_sync: exact sizes; False: worst-case sizes, nothing waits on the host.
            do_expand: a row for each token and local expert, by expert; else a row for each token.
            do_zero_padding: expanded: padding between experts is zero.
            use_tma_aligned_col_major_sf: received scale factors are stored column by column, columns aligned to 16 bytes.

        Returns (recv_x, recv_topk_idx [N, K] or None when expanded, recv_topk_weights [N, K] or [rows], handle, event).
        Rows of a block are in the order of source rank, then token, always.
        """
        rows, sf = x if isinstance(x, tuple) else (x, None)
        if handle is None and do_cpu_sync is not False:
            refuse_capture(rows, "dispatch with do_cpu_sync and without a handle")
        with self._lane.run(
            rows.is_cuda, (previous_event, previous_event_before_epilogue), async_with_compute_stream
        ) as call:
            if handle is None:
                assert topk_idx is not None and num_experts is not None, "topk_idx and num_experts, or a handle"
                most = num_max_tokens_per_rank or self.num_max_tokens_per_rank
                handle = self._plan(
                    rows, topk_idx, topk_weights, num_experts, most, expert_alignment or 1, do_cpu_sync is not False, do_expand,
                    do_handle_copy, num_sms or _SMS,
                )  # fmt: skip
                fresh = True
            else:
                assert topk_idx is None, "the handle has the top-k"
                assert not do_cpu_sync, "a cached dispatch does not wait for the host"
                fresh = False
                if topk_weights is not None:  # other weights of the same choices travel by a route of their own
                    handle.route = self._reroute(handle, topk_weights)
            got, recv_sf = self._carry(handle, rows, sf, do_zero_padding, use_tma_aligned_col_major_sf)
            ids = None if handle.do_expand else self._ids(handle, got)
            weights = got.topk_weights if topk_weights is not None else None
            if fresh:
                self._describe(handle, got, ids)
            if cumulative_local_expert_recv_stats is not None:
                cumulative_local_expert_recv_stats.add_(handle.num_unaligned_recv_tokens_per_expert)
            call.touch(rows, sf, topk_idx, topk_weights, got.rows, recv_sf, ids, weights, handle.recv_src_metadata)
        return got.rows if sf is None else (got.rows, recv_sf), ids, weights, handle, call.event

    def _plan(
        self, x: torch.Tensor, idx: torch.Tensor, weights: Any, experts: int, most: int, alignment: int, sync: bool,
        expand: bool, copy: bool, sms: int,
    ) -> EPHandle:  # fmt: skip
        assert experts % self.num_ranks == 0, f"{experts} experts do not divide by {self.num_ranks} ranks"
        assert most >= len(x), f"{len(x)} tokens, num_max_tokens_per_rank is {most}"
        mode, device, hidden, topk = "throughput" if sync else "latency", where(x), max(x.shape[1], 128), idx.shape[1]
        need = Need(device, "rank", hidden, experts, most, max(topk, 16))
        tokens = ferry.Route(self._groups.find(need), idx, weights, mode=mode, **self._by_token(most, sync))
        route = tokens
        if expand:
            local = experts // self.num_ranks
            worst = self.num_ranks * most * min(topk, local) + (alignment - 1) * local
            rows = round_up(worst, alignment)
            wide = self._groups.find(need._replace(layout="expert", tokens=most, topk=topk, rows=rows))
            route = ferry.Route(wide, idx, weights, layout="expert", mode=mode, expert_alignment=alignment)
        kept = idx.clone() if copy else idx
        return EPHandle(
            route, tokens if expand else None, do_expand=expand, num_experts=experts, expert_alignment=alignment,
            num_max_tokens_per_rank=most, num_sms=sms, topk_idx=kept, num_recv_tokens=tokens.rows,
            num_expanded_tokens=route.rows if expand else 0,
        )  # fmt: skip

    def _by_token(self, most: int, sync: bool) -> Dict[str, Any]:
        """A route of a row for each token. Without CPU sync they are packed, `most` of each rank at worst."""
        return dict(order="choice") if sync else dict(order="choice", packed=True, rank_capacity=most * self.num_ranks)

    def _reroute(self, handle: EPHandle, weights: torch.Tensor) -> ferry.Route:
        old = handle.route
        options: Dict[str, Any] = dict(layout=old.layout, mode=old.mode)
        if handle.do_expand:
            options["expert_alignment"] = handle.expert_alignment
        else:
            options.update(self._by_token(handle.num_max_tokens_per_rank, old.mode == "throughput"))
        return ferry.Route(old.group, handle.topk_idx, weights, **options)

    @staticmethod
    def _carry(
        handle: EPHandle, x: torch.Tensor, sf: Any, zero: bool, column_major: bool
    ) -> Tuple[ferry.Received, Any]:
        route, out = handle.route, None
        if sf is not None and column_major:
            stored = (sf.new_zeros if zero else sf.new_empty)((sf.shape[1], round_up(route.rows, 4)))
            out = stored.t()[: route.rows]
        got = route.dispatch(x, scales=sf, out_scales=out, zero_padding=zero)
        return got, got.scales

    @staticmethod
    def _ids(handle: EPHandle, tokens: ferry.Received) -> torch.Tensor:
        """Local expert of each choice; -1 also in rows past the last."""
        ids = tokens.topk_idx
        if handle.route.mode == "latency":
            beyond = torch.arange(len(ids), device=ids.device) >= tokens.counts.sum()
            ids.masked_fill_(beyond[:, None], -1)
        return ids.to(handle.topk_idx.dtype)

    def _describe(self, handle: EPHandle, got: ferry.Received, ids: Any) -> None:
        """The handle's tables, from what came with the rows. Nothing here waits for the host."""
        tokens, alignment = got, handle.expert_alignment
        if handle.do_expand:
            # Rows by expert do not say which choice they were. Each token once more, as 16 bytes, does.
            note = torch.zeros((len(handle.topk_idx), 16), dtype=torch.uint8, device=got.rows.device)
            tokens = handle._tokens.dispatch(note)  # type: ignore[union-attr]
            ids = self._ids(handle, tokens)
        local = handle.num_experts // self.num_ranks
        one_hot = torch.zeros((len(ids), local + 1), dtype=torch.int32, device=ids.device)
        one_hot.scatter_(1, ids.long().masked_fill(ids < 0, local), 1)
        one_hot = one_hot[:, :local]
        counts = one_hot.sum(0, dtype=torch.int32)
        aligned = (counts + (alignment - 1)) // alignment * alignment
        ends = aligned.cumsum(0, dtype=torch.int32)
        handle.num_unaligned_recv_tokens_per_expert = counts
        handle.psum_num_recv_tokens_per_expert = ends - aligned + counts if handle.do_expand else ends
        handle.psum_num_recv_tokens_per_scaleup_rank = tokens.counts.cumsum(0, dtype=torch.int32)
        handle.dst_buffer_slot_idx = torch.empty(0, dtype=torch.int32, device=ids.device)
        if handle.route.mode == "throughput":
            rows = handle.route.expert_rows
            handle.num_recv_tokens_per_expert_list = [round_up(int(n), alignment) for n in rows]  # type: ignore[union-attr]
        handle.recv_src_metadata = self._metadata(handle, tokens, ids, one_hot, ends - aligned)

    def _metadata(
        self, handle: EPHandle, tokens: ferry.Received, ids: torch.Tensor, one_hot: torch.Tensor, starts: torch.Tensor
    ) -> torch.Tensor:
        n, topk = ids.shape
        per_rank = (handle._tokens or handle.route).group.max_tokens  # num_max_tokens_per_rank, or more
        table = torch.full((n, 2 + topk), -1, dtype=torch.int32, device=ids.device)
        source = torch.div(tokens.source, per_rank, rounding_mode="floor")
        table[:, 0] = tokens.source - source * (per_rank - handle.num_max_tokens_per_rank)
        choice = torch.arange(topk, dtype=torch.int32, device=ids.device).expand(n, topk)
        last = choice.masked_fill(ids < 0, -1).amax(1) if n else source
        table[:, 1] = source * topk + last
        if handle.do_expand:
            before = one_hot.cumsum(0, dtype=torch.int32) - one_hot + starts
            handle._places = before.gather(1, ids.long().clamp(min=0)).masked_fill(ids < 0, -1)
            handle._terms = distinct(handle._places)
            table[:, 2:] = handle._places
        return table

    # ---- combine ----

    def combine(
        self,
        x: torch.Tensor,
        handle: EPHandle,
        topk_weights: Optional[torch.Tensor] = None,
        bias: Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor], None] = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: Any = None,
        previous_event_before_epilogue: Any = None,
        async_with_compute_stream: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor], EventOverlap]:
        """[collective] Rows back to their tokens: the plain sum in float32, begun from the biases, and rounded.

        x: bfloat16 in the rows of the dispatch. The sum is over ranks, each in the place of its last choice. Expanded rows are
        first summed on the experts' rank, in choice order in float32, and rounded; with allow_multiple_reduction=False each
        travels by itself, and the sum is over experts in choice order.
        topk_weights: float32 [N, K], or [rows] expanded: brought back to the choice they belong to.

        Returns (combined_x [T, H], combined_topk_weights [T, K] or None, event).
        """
        with self._lane.run(
            x.is_cuda, (previous_event, previous_event_before_epilogue), async_with_compute_stream
        ) as call:
            route, rows, weights = handle.route, x, topk_weights
            if handle._tokens is not None and self.allow_multiple_reduction:
                route, rows = handle._tokens, sum_by_token(x, handle._terms)
                weights = None if topk_weights is None else weights_by_token(topk_weights, handle._places)
            back = route.combine(rows, weights=weights, bias=bias)
            call.touch(x, topk_weights, back.rows, back.weights, *(bias if isinstance(bias, tuple) else (bias,)))
        return back.rows, back.weights, call.event
