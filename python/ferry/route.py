"""Routes: one routing decision, exchanged between the ranks; dispatch and combine travel along it."""

from __future__ import annotations

import ctypes as C
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

import numpy as np

from . import _array, _c, errors
from ._c import lib
from ._stream import StreamLike, drop

if TYPE_CHECKING:
    from .group import Group

LAYOUTS = {"rank": _c.LAYOUT_RANK, "expert": _c.LAYOUT_EXPERT, "slots": _c.LAYOUT_SLOTS}
_MODES = {"throughput": _c.THROUGHPUT, "latency": _c.LATENCY}
_OVERFLOWS = {"error": _c.OVERFLOW_ERROR, "drop": _c.OVERFLOW_DROP}
_ORDERS = {"rank": _c.ORDER_RANK, "choice": _c.ORDER_CHOICE}
_CASTS = {
    None: _c.CAST_NONE,
    "e4m3": _c.CAST_E4M3,
    "e4m3_pow2": _c.CAST_E4M3_POW2,
    "e4m3_ue8m0": _c.CAST_E4M3_UE8M0,
}


class Received(NamedTuple):
    """What a dispatch brought. R ranks, M max_tokens, L local experts, K topk; N = route.rows.

    rows: [N, columns]; SLOTS: [L, R * M, columns].
    scales: like rows with n columns, or None without scales or cast.
    topk_idx: RANK: int32 [N, K], the local expert of each choice, -1 when it is not on this rank; else None.
    topk_weights: RANK: float32 [N, K]; EXPERT, SLOTS: float32 [N], the token's weight for this expert; None without.
    source: int32 [N]: source rank * M + token; -1 in padding of EXPERT.
    counts: int32, RANK [R]: rows from each rank; EXPERT, SLOTS: [L, R].
    starts: int32, shaped like counts: first row of that block (SLOTS: first slot inside the expert).
    """

    rows: Any
    scales: Any
    topk_idx: Any
    topk_weights: Any
    source: Any
    counts: Any
    starts: Any


class Combined(NamedTuple):
    """What a combine brought back: rows [tokens, columns]; weights float32 [tokens, K], or None if none were sent."""

    rows: Any
    weights: Any


class Route:
    """[collective] A routing decision: who sends how many rows to whom, and at which slot each row lands.

    Args:
        group: the group.
        topk_idx: int32 or int64 [tokens, K], any strides: logical experts, or -1 for none. The same expert twice in a
            token is carried once. 0 tokens are fine.
        topk_weights: float32 [tokens, K], or None (on every rank).
        layout: of the rows received. "rank": a token once per rank. "expert": packed by local expert, each expert's
            block beginning at a multiple of expert_alignment. "slots": [L, R * M, columns], shapes that do not depend
            on data.
        mode: "throughput": exact counts, known to the host. "latency": no host wait on a stream; worst-case shapes, counts
            come with the rows; so too of "throughput" in the capture of a CUDA graph.
        expert_alignment: EXPERT: 0 and 1 mean packed.
        expert_capacity: EXPERT, SLOTS: the most rows a local expert takes in; 0: no limit.
        rank_capacity: RANK, EXPERT: the most row slots a rank takes in; 0: the group's max_recv_rows.
        packed: "latency": rows of RANK and SLOTS lie packed as in "throughput", for which counts are exchanged.
        renormalise: weights of choices whose expert lives on masked ranks alone are spread over the token's others.
        order: RANK: in which order an unweighted combine sums a token's rows. "rank": ranks ascending. "choice": each rank where
            the last of the token's choices stands that went there.
        overflow: "error" (CapacityError on all ranks), or "drop": the last rows are left out, and counted.
        stream: see `Group.stream`. None: complete on return; for CUDA tensors of PyTorch its current stream.

    Raises:
        InvalidError (an index that is no expert is named with token and choice), CapacityError, MismatchError,
        DeadlineError, NoMemoryError.

    A route serves any number of dispatches and combines. It is a context manager. Its memory is freed when the streams
    that it was used on have passed it; that of a route that was not closed, but is no longer referred to, when the
    group's next route is made. Used in the capture of a CUDA graph by PyTorch, it stays as long as the group.
    """

    def __init__(
        self,
        group: "Group",
        topk_idx: Any,
        topk_weights: Any = None,
        *,
        layout: str = "rank",
        mode: str = "throughput",
        expert_alignment: int = 0,
        expert_capacity: int = 0,
        rank_capacity: int = 0,
        overflow: str = "error",
        packed: bool = False,
        renormalise: bool = False,
        order: str = "rank",
        stream: StreamLike = None,
    ):
        keep: List[Any] = []
        config = _c.RouteConfig()
        config.topk_idx = _array.describe(topk_idx, group._where, "topk_idx", keep)
        if topk_weights is not None:
            config.topk_weights = _array.describe(topk_weights, group._where, "topk_weights", keep)
        config.layout = choose(LAYOUTS, layout, "layout")
        config.mode = choose(_MODES, mode, "mode")
        config.expert_alignment, config.expert_capacity = expert_alignment, expert_capacity
        config.rank_capacity, config.overflow = rank_capacity, choose(_OVERFLOWS, overflow, "overflow")
        config.packed, config.renormalise = int(packed), int(renormalise)
        config.order = choose(_ORDERS, order, "order")
        pointer = C.c_void_p()
        where = group._stream(stream, topk_idx)
        group._sweep()
        lib.ferry_route_create(group._c, C.byref(config), C.byref(pointer), where)
        self._pointer: Optional[int] = pointer.value
        self._held, self.group = group._held, group
        self._used: Set[int] = set()
        self._captured = False
        self._use(where)
        group._hold(where, keep)
        group._children.add(self)
        self.layout, self.mode, self._weights = layout, mode, topk_weights is not None
        self._read_info()

    def _read_info(self) -> None:
        info = _c.RouteInfo()
        lib.ferry_route_get_info(self._c, C.byref(info))
        self.tokens: int = info.tokens
        self.topk: int = info.topk
        self.local_experts: int = info.local_experts
        self.rows: int = info.rows  # that an output holds, padding included; LATENCY: the worst case
        self.received: int = info.received  # without padding; like the next two, -1 when the host does not know
        self.sent: int = info.sent
        self.dropped: int = info.dropped

        def array(pointer: Any, n: int) -> Optional[np.ndarray]:
            return np.array(pointer[:n], dtype=np.int32) if pointer else None

        self.expert_rows = array(
            info.expert_rows, info.local_experts
        )  # THROUGHPUT: int32 [L]; LATENCY: None, like all these
        self.expert_start = array(info.expert_start, info.local_experts)  # EXPERT, SLOTS: int32 [L]
        self.source_rows = array(info.source_rows, info.ranks)  # int32 [R]
        self.source_start = array(info.source_start, info.ranks)  # RANK: int32 [R]
        self.rank_rows = array(info.rank_rows, info.ranks)  # int32 [R]: rows that this rank sends to each

    @property
    def _c(self) -> int:
        if self._pointer is None:
            raise errors.InvalidError("the route is closed")
        return self._pointer

    def _use(self, where: Optional[int]) -> None:
        if where is not None:
            self._used.add(where)
            if self.group._capturing():
                self._captured = True
                self.group._enter_graph()

    # ---- dispatch ----

    def dispatch(
        self,
        x: Any,
        *,
        scales: Any = None,
        cast: Optional[str] = None,
        out: Any = None,
        out_scales: Any = None,
        view: bool = False,
        topk: bool = True,
        zero_padding: bool = False,
        stream: StreamLike = None,
    ) -> Received:
        """[collective] Sends every token's row to its experts, and receives the rows for this rank's experts.

        Args:
            x: [tokens, columns], rows contiguous inside, of any dtype; bytes of a row: a multiple of 16.
            scales: [tokens, n] of a 4-byte dtype, any strides; carried as given. Not with a cast.
            cast: None, or from bfloat16: "e4m3" (one float32 scale per 128 channels), "e4m3_pow2" (rounded up to a
                power of two), "e4m3_ue8m0" (the same as UE8M0, four to an int32).
            out: an array for the rows, of at least route.rows rows. In the symmetric heap it is written in place.
            out_scales: an array for the scales, any strides.
            view: True: rows, scales and the rest are views of the library's buffer (no copy), valid until the second
                dispatch after this one begins on this rank; counts and starts are always arrays of the caller's own.
                False: so are all.
            topk: False: topk_idx, topk_weights and source are not delivered.
            zero_padding: EXPERT: rows between an expert's last row and the next block are set to zero, and new scales are zero there. Where the host does
                not know the counts, and in SLOTS, new arrays are zero, weights too, where there is no row.
            stream: as for `Route`.

        Raises InvalidError, MismatchError, DeadlineError, AbortedError.
        """
        call = _Dispatch(self, x, scales, cast, out, out_scales, view, topk, zero_padding, stream)
        lib.ferry_dispatch(self._c, C.byref(call.into), C.byref(call.out), C.byref(call.options), call.where)
        return call.received()

    def dispatch_send(self, x: Any, **options: Any) -> "PendingDispatch":
        """[collective] The first half of `dispatch`, with its arguments: posts this rank's rows. `.recv()` is the second.

        At most two dispatches of a group may be sent and not yet received.
        """
        names = ("scales", "cast", "out", "out_scales", "view", "topk", "zero_padding", "stream")
        defaults: Dict[str, Any] = dict(zip(names, (None, None, None, None, False, True, False, None)))
        unknown = set(options) - set(names)
        if unknown:
            raise TypeError(f"dispatch_send: {', '.join(sorted(unknown))}: not known")
        call = _Dispatch(self, x, *{**defaults, **options}.values())
        lib.ferry_dispatch_send(self._c, C.byref(call.into), C.byref(call.out), C.byref(call.options), call.where)
        self.group._hold(call.where, call.keep)
        return PendingDispatch(call)

    # ---- combine ----

    def combine(
        self,
        rows: Any,
        *,
        weights: Any = None,
        weighted: bool = False,
        topk_weights: Any = None,
        bias: Union[Any, Sequence[Any], None] = None,
        out: Any = None,
        out_dtype: Any = None,
        stream: StreamLike = None,
    ) -> Combined:
        """[collective] Brings the experts' outputs back to the tokens' owners, summed in float32 in a fixed order.

        Args:
            rows: bfloat16, float16 or float32 in the slots of the dispatch: [route.rows, columns] or
                [L, R * M, columns]. Rows in the symmetric heap (a view, `combine_buffer`) are read in place.
            weights: float32, RANK: [N, K]; EXPERT, SLOTS: [N]; brought back for each choice. The backward pass of
                topk_weights. None on every rank: not brought.
            weighted: True: the sum is weighted by topk_weights, below or the route's. In a weighted RANK combine, every
                choice counts the row of its rank.
            topk_weights: float32 [tokens, K], instead of the route's; implies weighted.
            bias: one or two arrays [tokens, columns] of rows' dtype, where the sum begins.
            out: an array [tokens, columns] for the result; None: a new one of out_dtype, or of rows' dtype.
            stream: as for `Route`.
        """
        call = _Combine(self, rows, weights, weighted, topk_weights, bias, stream)
        call.result(out, out_dtype, call.where)
        lib.ferry_combine(self._c, C.byref(call.into), C.byref(call.out), C.byref(call.options), call.where)
        return call.combined()

    def combine_send(
        self,
        rows: Any,
        *,
        weights: Any = None,
        weighted: bool = False,
        topk_weights: Any = None,
        bias: Union[Any, Sequence[Any], None] = None,
        stream: StreamLike = None,
    ) -> "PendingCombine":
        """[collective] The first half of `combine`: offers this rank's rows. `.recv(out=...)` pulls and sums."""
        call = _Combine(self, rows, weights, weighted, topk_weights, bias, stream)
        lib.ferry_combine_send(self._c, C.byref(call.into), C.byref(call.options), call.where)
        self.group._hold(call.where, call.keep)
        return PendingCombine(call)

    def combine_buffer(
        self, columns: Optional[int] = None, dtype: Any = "bfloat16", like: Any = None, *, stream: StreamLike = None
    ) -> Any:
        """A view, in the shape that combine wants, of the library's buffer for the group's next combine: experts that
        write there save a copy. It may be written when the stream has passed the call, which waits until the combine before the
        last has let go of it.

        like: an array whose library (NumPy, PyTorch) the view shall be of; None: NumPy's on the CPU.
        stream: as for `Route`.
        """
        t = _c.Tensor()
        where = self.group._stream(stream, like)
        self._use(where)
        lib.ferry_combine_buffer(self._c, _array.dtype_code(dtype), columns or self.group.hidden, C.byref(t), where)
        arrays = _array.NUMPY if like is None else _array.arrays_of(like)
        return arrays.wrap(self._held, t, self.group._where)

    def close(self) -> None:
        """Frees the route, once the streams that use it have passed it. Not collective."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            self.group._retire(pointer, self._used, self._captured)

    def _abandon(self) -> None:
        self._pointer = None  # freed with the group

    def __enter__(self) -> "Route":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        drop(self, "route", (getattr(self, "_used", None), getattr(self, "_captured", True)))

    def __repr__(self) -> str:
        return (
            f"<ferry.Route {self.layout} {self.mode}: {self.tokens} tokens of top-{self.topk}, {self.rows} rows here>"
        )


class PendingDispatch:
    """A dispatch whose rows are sent. Nothing of the device is held until `recv`."""

    def __init__(self, call: "_Dispatch"):
        self._call = call

    def recv(self, *, stream: StreamLike = None) -> Received:
        """[collective] Waits for the others' rows."""
        call = self._call
        where = call.where if stream is None else call.route.group._stream(stream, call.x)
        call.route._use(where)
        lib.ferry_dispatch_recv(call.route._c, C.byref(call.out), where)
        return call.received(where)

    @property
    def views(self) -> Received:
        """The arrays that `recv` returns; what they show is there after it."""
        return self._call.received(self._call.where)


class PendingCombine:
    """A combine whose rows are offered; they must stay untouched until `recv` is complete."""

    def __init__(self, call: "_Combine"):
        self._call = call

    def recv(self, *, out: Any = None, out_dtype: Any = None, stream: StreamLike = None) -> Combined:
        """[collective] Pulls and sums this rank's tokens, into out or a new array."""
        call = self._call
        where = call.where if stream is None else call.route.group._stream(stream, call.rows)
        call.route._use(where)
        call.result(out, out_dtype, where)
        lib.ferry_combine_recv(call.route._c, C.byref(call.out), where)
        return call.combined(where)


class _Dispatch:
    """The structs of one dispatch, and the arrays that they point at."""

    def __init__(
        self,
        route: Route,
        x: Any,
        scales: Any,
        cast: Any,
        out: Any,
        out_scales: Any,
        view: bool,
        topk: bool,
        pad: bool,
        stream: Any,
    ):
        group = route.group
        self.route, self.x = route, x
        self.where = group._stream(stream, x)
        self.on = group._streams.get(self.where or 0)  # which its second half may need
        self.keep: List[Any] = []
        self.into, self.out = _c.DispatchIn(), _c.DispatchOut()
        self.into.rows = _array.describe(x, group._where, "x", self.keep)
        self.arrays = _array.arrays_of(x)
        if scales is not None:
            self.into.scales = _array.describe(scales, group._where, "scales", self.keep)
        self.options = _c.DispatchOptions(
            cast=choose(_CASTS, cast, "cast"), skip_topk=int(not topk), zero_padding=int(pad)
        )
        gaps = pad and (route.layout == "slots" or route.received < 0)
        self.made: Dict[str, Any] = {"rows": out, "scales": out_scales}
        with group._allocating(self.where):
            for name, (shape, code) in self._wanted(scales, cast, topk).items():
                # A view of the tables would be the route's memory, which nothing would keep.
                if self.made.get(name) is None and (not view or name in ("counts", "starts")):
                    blank = pad and name == "scales" or gaps and name in ("rows", "topk_weights")
                    self.made[name] = self.arrays.empty(shape, code, x, blank)
                if self.made.get(name) is None:
                    self.made[name] = self  # a view: its place is known after the call
                    continue
                given = _array.describe(self.made[name], group._where, f"out ({name})", self.keep, written=True)
                if (given.dtype, code) == (_c.BYTES, _c.E4M3):
                    given.dtype = code  # an array library without float8 has its bytes
                setattr(self.out, name, given)
        route._use(self.where)

    def _wanted(self, scales: Any, cast: Any, topk: bool) -> Dict[str, Tuple[Tuple[int, ...], int]]:
        """Shape and dtype of each tensor that the step makes."""
        route, rows = self.route, self.into.rows
        n, by_rank = route.rows, route.layout == "rank"
        lead = (route.local_experts, route.group.ranks * route.group.max_tokens) if route.layout == "slots" else (n,)
        columns = rows.shape[1]
        wanted = {"rows": (lead + (columns,), rows.dtype if cast is None else _c.E4M3)}
        if cast is not None:
            blocks = -(-columns // 128)
            packed = cast == "e4m3_ue8m0"
            wanted["scales"] = (lead + (-(-blocks // 4) if packed else blocks,), _c.UE8M0X4 if packed else _c.FP32)
        elif scales is not None:
            wanted["scales"] = (lead + (self.into.scales.shape[1],), self.into.scales.dtype)
        table = (route.group.ranks,) if by_rank else (route.local_experts, route.group.ranks)
        wanted["counts"] = wanted["starts"] = (table, _c.INT32)
        if topk:
            wanted["source"] = ((n,), _c.INT32)
            if by_rank:
                wanted["topk_idx"] = ((n, route.topk), _c.INT32)
            if route._weights:
                wanted["topk_weights"] = ((n, route.topk) if by_rank else (n,), _c.FP32)
        return wanted

    def received(self, where: Any = False) -> Received:
        route, group = self.route, self.route.group
        group._hold(self.where if where is False else where, self.keep)
        for name, array in self.made.items():
            if array is self:
                self.made[name] = self.arrays.wrap(route._held, getattr(self.out, name), group._where)
        return Received(*(self.made.get(name) for name in Received._fields))


class _Combine:
    """The structs of one combine, and the arrays that they point at."""

    def __init__(
        self, route: Route, rows: Any, weights: Any, weighted: bool, topk_weights: Any, bias: Any, stream: Any
    ):
        group = route.group
        self.route, self.rows = route, rows
        self.keep: List[Any] = []
        self.into, self.out, self.options = _c.CombineIn(), _c.CombineOut(), _c.CombineOptions()
        self.into.rows = _array.describe(rows, group._where, "rows", self.keep)
        self.arrays = _array.arrays_of(rows)
        self.brings = weights is not None
        if weights is not None:
            self.into.weights = _array.describe(weights, group._where, "weights", self.keep)
        self.options.weighted = int(weighted or topk_weights is not None)
        if topk_weights is not None:
            self.options.weights = _array.describe(topk_weights, group._where, "topk_weights", self.keep)
        biases = () if bias is None else bias if isinstance(bias, (tuple, list)) else (bias,)
        if len(biases) > 2:
            raise errors.InvalidError(f"{len(biases)} biases; one or two are taken")
        for i, b in enumerate(biases):
            if b is not None:
                self.options.bias[i] = _array.describe(b, group._where, f"bias[{i}]", self.keep)
        self.where = group._stream(stream, rows)
        self.on = group._streams.get(self.where or 0)  # which its second half may need
        route._use(self.where)
        self.made: Any = None
        self.weights: Any = None

    def result(self, out: Any, out_dtype: Any, where: Optional[int]) -> None:
        group, columns = self.route.group, self.into.rows.shape[self.into.rows.ndim - 1]
        if out is None:
            code = self.into.rows.dtype if out_dtype is None else _array.dtype_code(out_dtype)
            with group._allocating(where):
                out = self.arrays.empty((self.route.tokens, columns), code, self.rows)
        self.made = out
        self.out.rows = _array.describe(out, group._where, "out", self.keep, written=True)
        if self.brings:
            with group._allocating(where):
                self.weights = self.arrays.empty((self.route.tokens, self.route.topk), _c.FP32, self.rows)
            self.out.weights = _array.describe(self.weights, group._where, "weights", self.keep)

    def combined(self, where: Any = False) -> Combined:
        self.route.group._hold(self.where if where is False else where, self.keep)
        return Combined(self.made, self.weights)


def choose(table: Dict[Any, int], value: Any, name: str) -> int:
    if value in table:
        return table[value]
    raise errors.InvalidError(f"{name} is {value!r}; there are {', '.join(map(repr, table))}")


def dispatch(route: Route, x: Any, **options: Any) -> Received:
    """[collective] `route.dispatch(x, ...)`: rows travel to their experts."""
    return route.dispatch(x, **options)


def combine(route: Route, rows: Any, **options: Any) -> Combined:
    """[collective] `route.combine(rows, ...)`: and come back, summed."""
    return route.combine(rows, **options)
