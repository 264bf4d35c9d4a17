"""Groups: the ranks that exchange rows."""

from __future__ import annotations

import ctypes as C
import os
import sys
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Dict, List, Optional, Sequence, Set, Tuple, Union

import numpy as np

from . import _array, _c, errors
from ._c import lib
from ._held import Held, capturing, leave_parked
from ._stream import Event, Stream, StreamLike, destroy_event, destroy_stream, native_of
from .heap import Heap
from .route import LAYOUTS, Route, choose


def unique_id() -> bytes:
    """Makes an id, 128 bytes, and starts in this process the thread at which the ranks of ONE group meet.

    Give it to every rank (`Group(unique_id=...)`), and keep it private: it has a secret inside. The thread listens on
    FERRY_BOOT_ADDRESS (127.0.0.1) and ends when the group is made, or when nobody has come for ten minutes.
    """
    made = _c.UniqueId()
    lib.ferry_unique_id_create(C.byref(made))
    return bytes(bytearray(made))


@dataclass(frozen=True)
class Counters:
    """`Group.counters()`. Arrays are uint64 [ranks], `expert_rows` [local experts]."""

    routes: int
    dispatches: int
    combines: int
    meetings: int
    rows_sent: np.ndarray
    bytes_sent: np.ndarray
    rows_received: np.ndarray
    bytes_received: np.ndarray
    rows_returned: np.ndarray
    bytes_returned: np.ndarray
    rows_dropped: np.ndarray
    waits: np.ndarray
    wait_ns: np.ndarray
    expert_rows: np.ndarray


class Group:
    """A group of ranks. Making one is collective: every rank makes it, with the same values.

    Args:
        unique_id: from `ferry.unique_id()` of some rank; with `rank` and `ranks`.
        allgather: instead, a function of the caller's by which ranks meet: takes this rank's bytes, returns the list of
            all ranks' bytes in rank order; with `rank` and `ranks`. With neither, the launcher's environment tells
            (FERRY_RANK and FERRY_RANKS, torchrun, mpirun, srun).
        experts: number of logical experts, E.
        hidden: channels of the widest row; hidden * bytes of an element must be a multiple of 16.
        max_tokens: M, the most tokens that one rank dispatches in one step.
        max_topk: the most choices of a token, up to 64.
        dtype: the widest element of a row ("bfloat16", "float32", numpy.float32, torch.bfloat16, ...).
        device: "cpu", "cuda", or "cuda:1" (which makes it PyTorch's current device while the group is made).
        layouts: those that will be used, out of "rank", "expert", "slots"; they set the size of the receive buffer.
        max_recv_rows: rows that a receive buffer holds; 0: the worst case of the layouts.
        heap_bytes: symmetric heap for `group.heap`, beside Ferry's own buffers.
        timeout: deadline of every wait, in seconds; None: FERRY_TIMEOUT_MS, or 30.
        threads: CPU workers of this rank; 0: FERRY_THREADS, or its share of the cores.
        sms: CUDA: the most SMs that a step of this rank uses; 0: FERRY_SMS, or its share.
        expert_ranks: for each expert the ranks that hold a copy of it; None: expert e on the rank r of its block,
            r*E/R <= e < (r+1)*E/R.

    Raises:
        InvalidError, MismatchError (naming what differs between ranks), DeadlineError (a rank never came), RefusedError,
        NoMemoryError, SystemCallError, UnsupportedError.

    A group is used by one thread at a time. `with Group(...) as g:` leaves it at the end; leaving waits for nobody, and
    memory that arrays still look at stays until they are gone. After a DeadlineError, an AbortedError or a MismatchError
    in a step the group accepts `agree` and `close` alone.

    >>> with ferry.Group(unique_id=uid, rank=0, ranks=1, experts=4, hidden=64, max_tokens=8, max_topk=2) as g:
    ...     route = g.route(topk_idx, topk_weights)
    ...     received = route.dispatch(x)
    ...     y = route.combine(received.rows).rows
    """

    def __init__(
        self,
        *,
        experts: int,
        hidden: int,
        max_tokens: int,
        max_topk: int = 8,
        rank: Optional[int] = None,
        ranks: Optional[int] = None,
        unique_id: Optional[bytes] = None,
        allgather: Optional[Callable[[bytes], Sequence[bytes]]] = None,
        dtype: Any = "bfloat16",
        device: str = "cpu",
        layouts: Sequence[str] = (),
        max_recv_rows: int = 0,
        heap_bytes: int = 0,
        timeout: Optional[float] = None,
        threads: int = 0,
        sms: int = 0,
        expert_ranks: Optional[Sequence[Sequence[int]]] = None,
    ):
        config = _config(locals())
        pointer = C.c_void_p()
        leave_parked()
        with _device(device) as self.device_index:
            _create(config, rank, ranks, unique_id, allgather, pointer)
        self._config = config  # with the map of experts in force
        self._left = False  # by leave()
        self._held: Optional[Held] = Held(pointer.value or 0)
        self._children: "weakref.WeakSet[Any]" = weakref.WeakSet()
        self._streams: "weakref.WeakValueDictionary[int, Stream]" = weakref.WeakValueDictionary()
        self._wrapped: Dict[int, Stream] = {}  # by the address of the CUDA stream
        self._fading: Set[int] = set()  # streams that nothing refers to, and that are not empty yet
        self._retired: List[Tuple[int, List[Event]]] = []  # routes that streams have yet to pass
        self._captured = False  # a graph that may be replayed uses it
        self._keeper: Optional[List["Group"]] = None  # of groups that are captured
        self.rank: int = lib.ferry_group_rank(pointer)
        self.ranks: int = lib.ferry_group_ranks(pointer)
        self.experts, self.hidden, self.max_tokens, self.max_topk = experts, hidden, max_tokens, max_topk
        self.device = "cuda" if config.device == _c.CUDA else "cpu"
        self._device = config.device
        self.heap = Heap(self)

    @classmethod
    def from_process_group(cls, group: Any = None, **config: Any) -> "Group":
        """[collective] A group of the ranks of a torch.distributed process group (None: the default one), which meet
        through its all_gather. `config` as for `Group`. The process group is not used afterwards."""
        from .torch import allgather_of

        rank, ranks, allgather = allgather_of(group)
        return cls(rank=rank, ranks=ranks, allgather=allgather, **config)

    @classmethod
    def from_mpi(cls, comm: Any, **config: Any) -> "Group":
        """[collective] A group of the ranks of an mpi4py communicator. `config` as for `Group`."""
        return cls(rank=comm.Get_rank(), ranks=comm.Get_size(), allgather=comm.allgather, **config)

    @classmethod
    def join(cls, unique_id: bytes, rank: int, ranks: int, **config: Any) -> "Group":
        """[collective] with `reconfigure` of the ranks that are there: a new process takes the place of rank `rank`, which
        has left or whose process is gone. One host.

        Args:
            unique_id: from `ferry.unique_id()` of one of those who are there, made for this meeting.
            rank: the place, 0..ranks-1.
            ranks: of the group, as when it was made.
            config: as for `Group`, with the others' values; expert_ranks: the map that is in force afterwards.

        The heap has the others' allocations at the same offsets, contents not defined: `group.heap.at(offset, shape,
        dtype)`, with what another rank has from `group.heap.offset`.

        Raises:
            InvalidError (also: none of the others came before this rank's deadline), MismatchError (naming what differs
            from the others), DeadlineError (one was lost meanwhile), RefusedError or SystemCallError (they have met
            without this rank), NoMemoryError, UnsupportedError.
        """
        return cls(unique_id=_Place(unique_id), rank=rank, ranks=ranks, **config)

    @property
    def _c(self) -> int:
        if self._held is None:
            raise errors.InvalidError("the group is closed")
        return self._held.pointer

    def local_experts(self, rank: Optional[int] = None) -> np.ndarray:
        """int32 [L]: the logical expert of each local expert of a rank (None: this one), ascending."""
        experts = C.POINTER(C.c_int32)()
        n = lib.ferry_group_local_experts(self._c, self.rank if rank is None else rank, C.byref(experts))
        if n < 0:
            raise errors.InvalidError(f"rank {rank} is none of the group's {self.ranks}")
        return np.array(experts[:n], dtype=np.int32)

    def counters(self) -> Counters:
        """What this rank has moved, waited for and left out since the group began; `ferry.h` says what counts when."""
        c = _c.Counters()
        lib.ferry_group_counters(self._c, C.byref(c))
        peers = {
            name: np.array([getattr(c.peers[r], name) for r in range(c.ranks)], dtype=np.uint64)
            for name in _c.PEER_COUNTERS
        }
        experts = np.array(c.expert_rows[: c.local_experts], dtype=np.uint64)
        return Counters(c.routes, c.dispatches, c.combines, c.meetings, expert_rows=experts, **peers)

    def write_metrics(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """The counters as a file in Prometheus' text format."""
        lib.ferry_group_metrics_write(self._c, os.fsencode(path))

    def route(self, topk_idx: Any, topk_weights: Any = None, **options: Any) -> "Route":
        """[collective] `ferry.Route(self, topk_idx, topk_weights, ...)`."""
        return Route(self, topk_idx, topk_weights, **options)

    def stream(self, native: Any = None) -> Stream:
        """A stream of the group's device, or one that wraps a CUDA stream of the caller's: see `ferry.Stream`."""
        self._sweep()
        return Stream(self, native)

    def event(self) -> Event:
        self._sweep()
        return Event(self)

    def barrier(self, *, stream: StreamLike = None) -> None:
        """[collective] Waits until all ranks have come."""
        lib.ferry_barrier(self._c, self._stream(stream))

    def allgather(self, mine: Any, *, stream: StreamLike = None) -> Any:
        """[collective] Every rank's array, stacked: [ranks, *mine.shape]. Same shape and dtype on all ranks.

        Arrays must be contiguous. On a GPU: tensors that it can address.
        """
        keep: List[Any] = []
        t = _array.describe(mine, self._where, "mine", keep)
        where = self._stream(stream, mine)
        with self._allocating(where):
            out = _array.arrays_of(mine).empty((self.ranks, *t.shape[: t.ndim]), t.dtype, mine)
        into = _array.describe(out, self._where, "out", keep)
        lib.ferry_allgather(self._c, t.data, into.data, _bytes_of(t, "mine"), where)
        self._hold(where, keep)
        return out

    def broadcast(self, array: Any, root: int = 0, *, stream: StreamLike = None) -> None:
        """[collective] Fills every rank's contiguous array with that of rank `root`."""
        keep: List[Any] = []
        t = _array.describe(array, self._where, "array", keep, written=self.rank != root)
        where = self._stream(stream, array)
        lib.ferry_broadcast(self._c, t.data, _bytes_of(t, "array"), root, where)
        self._hold(where, keep)

    def abort(self) -> None:
        """Wakes every wait of every rank of the group: they raise AbortedError, as do all later calls. Any thread."""
        lib.ferry_group_abort(self._c)

    def check(self) -> None:
        """Raises the first error that this rank met, if any: those of streams, and those that ended the group."""
        lib.ferry_group_error(self._c)

    def agree(self, mask: Sequence[int] = (), unmask: Sequence[int] = ()) -> np.ndarray:
        """[collective] of the ranks that can still come. Goes on without the ranks that cannot, and those in `mask`; takes back
        those in `unmask`, which call it too. Returns `masked`, the same on all who go on.

        Routes must be made anew afterwards. RefusedError: the others go on without this rank. See docs/faults.md.
        """
        for rank in mask:
            lib.ferry_group_mask_set(self._c, rank, 1)
        for rank in unmask:
            lib.ferry_group_mask_set(self._c, rank, 0)
        lib.ferry_group_agree(self._c, None, None)
        return self.masked

    def leave(self) -> None:
        """Says that this rank leaves, at the end of a step: nobody need wait for it at an agreement, and a new process can
        take its place (`join`). Not collective; waits for this rank's streams only.

        Afterwards the group accepts `close` alone; until then its memory stays where it is.
        """
        lib.ferry_group_leave(self._c)
        self._left = True

    def reconfigure(
        self,
        unique_id: Optional[bytes] = None,
        *,
        expert_ranks: Optional[Sequence[Sequence[int]]] = None,
        mask: Sequence[int] = (),
    ) -> np.ndarray:
        """[collective] of every rank that goes on, at the end of a step: a new map of experts, newcomers in the places of
        ranks that are gone (`join`), or both. All else of the config stays. One host.

        Args:
            unique_id: from `ferry.unique_id()` of one of these ranks, made for this meeting and sent to the others and to
                the newcomers. Each place is waited for until the first deadline: a rank that is there, a newcomer, or a
                masked rank that comes back by this call. One that stays empty is masked; rank 0's must be filled.
                None: the ranks that there are.
            expert_ranks: the new map, as for `Group`: no more copies of experts, in all and on one rank, than in the map
                that the group was made with. None: the map stays.
            mask: with unique_id: ranks that nobody waits for, and that are masked.

        Returns `masked`, the same on all who go on. As after `agree`, routes must be made anew and CUDA graphs captured
        anew; the heap's contents and addresses stay.

        Raises:
            InvalidError (no room for the map, ...: the group is as it was, but `mask` stays proposed), MismatchError (the
            maps differ between ranks, or a newcomer's config), DeadlineError (a rank was lost meanwhile), AbortedError,
            RefusedError (the others go on without this rank), UnsupportedError (several hosts, or rank 0's place is
            empty). After all but InvalidError: `agree`, or `close`. See docs/faults.md.
        """
        config = self._config if expert_ranks is None else _with_map(self._config, expert_ranks)
        uid = None if unique_id is None else C.byref(_uid(unique_id))
        for rank in mask:
            lib.ferry_group_mask_set(self._c, rank, 1)
        lib.ferry_group_reconfigure(self._c, uid, C.byref(config))
        self._config = config
        return self.masked

    @property
    def masked(self) -> np.ndarray:
        """bool [ranks]: the ranks that the group goes on without."""
        masked = (C.c_uint8 * self.ranks)()
        lib.ferry_group_mask_get(self._c, masked)
        return np.array(masked, dtype=bool)

    @property
    def closed(self) -> bool:
        return self._held is None

    def close(self) -> None:
        """Leaves the group, and closes its routes, streams and events. Not collective, and waits for no other rank:
        what is still on a stream is given up, so sync it before."""
        held, self._held = self._held, None
        if held is None:
            return
        held.given_up = True
        for child in list(self._children):
            child._abandon()
        self._wrapped.clear()
        self._retired.clear()  # freed with the group

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is not None and self._held is not None and not self._left:
            # The exception would otherwise keep the other ranks waiting until their deadline.
            lib.ferry_group_abort(self._held.pointer)
        self.close()

    def __repr__(self) -> str:
        if self._held is None:
            return "<ferry.Group, closed>"
        return (
            f"<ferry.Group rank {self.rank} of {self.ranks} on {self.device}: {self.experts} experts, hidden "
            f"{self.hidden}, {self.max_tokens} tokens of top-{self.max_topk}>"
        )

    # ---- for the other modules ----

    @property
    def _where(self) -> Tuple[int, int]:
        """The group's device as DLPack numbers it."""
        return (2, self.device_index) if self._device == _c.CUDA else (1, 0)

    def _stream(self, stream: StreamLike, like: Any = None) -> Optional[int]:
        """The ferry_stream of a stream argument. None means: wait; for CUDA tensors of PyTorch its current stream."""
        if isinstance(stream, Stream):
            return stream._c
        if stream is None:
            torch = sys.modules.get("torch")
            if self._device == _c.CPU or torch is None or not isinstance(like, torch.Tensor):
                return None
            stream = torch.cuda.current_stream(self.device_index)
        native = native_of(stream)
        if native not in self._wrapped:
            self._wrapped[native] = Stream(self, stream)
        return self._wrapped[native]._c

    def _capturing(self) -> bool:
        return self._device == _c.CUDA and capturing()

    def _enter_graph(self) -> None:
        if not self._captured and self._keeper is not None:
            self._keeper.append(self)
        self._captured = True

    def _retire(self, route: int, used: Set[int], captured: bool) -> None:
        """Frees a route when the streams that it was used on have passed it."""
        held = self._held
        if held is None or not held.pointer or captured or self._capturing():
            return  # freed with the group: a graph that is replayed still uses it
        busy = [self._record(p) for p in used if p in held.streams and not lib.ferry_stream_idle(p)]
        if busy:
            self._retired.append((route, busy))
        else:
            lib.ferry_route_destroy(route)

    def _record(self, stream: int) -> Event:
        event = Event(self)
        lib.ferry_event_record(event._c, stream)
        return event

    def _sweep(self) -> None:
        """Frees what nothing refers to any more. Only the group's own thread comes here."""
        held = self._held
        if held is None or not (held.dropped or self._retired or self._fading) or self._capturing():
            return
        while held.dropped:
            what, pointer, of_route = held.dropped.popleft()
            if what == "event":
                destroy_event(held, pointer)
            elif what == "stream":
                self._fading.add(pointer)
            else:
                self._retire(pointer, *of_route)
        done = [r for r in self._retired if all(e.done for e in r[1])]
        self._retired = [r for r in self._retired if r not in done]
        for route, _ in done:
            lib.ferry_route_destroy(route)
        for pointer in [p for p in self._fading if lib.ferry_stream_idle(p)]:
            self._fading.remove(pointer)
            destroy_stream(held, pointer)

    def _allocating(self, where: Optional[int]) -> ContextManager[Any]:
        """New arrays of a call are made inside it."""
        return nullcontext() if where is None else self._streams[where]._allocating()

    def _hold(self, where: Optional[int], things: List[Any]) -> None:
        """What a call on a stream was given lives until the stream has passed it."""
        if where is not None:
            self._streams[where]._hold(things)


def group_bytes(ranks: int, **config: Any) -> int:
    """Bytes of shared memory that each rank of such a group reserves, without making it. `config` as for `Group`."""
    defaults: Dict[str, Any] = dict(Group.__init__.__kwdefaults__ or {})
    unknown = set(config) - set(defaults) - {"experts", "hidden", "max_tokens"}
    if unknown:
        raise TypeError(f"group_bytes: {', '.join(sorted(unknown))}: not known")
    made = _config({**defaults, **config})
    result = C.c_int64()
    lib.ferry_group_bytes(C.byref(made), ranks, C.byref(result))
    return result.value


def _bytes_of(t: _c.Tensor, name: str) -> int:
    shape = tuple(t.shape[: t.ndim])
    if all(shape) and any(s != w for s, w, n in zip(t.strides, _array.contiguous(shape), shape) if n > 1):
        raise TypeError(f"{name} is not contiguous")
    return int(np.prod(shape, dtype=np.int64)) * _array.BYTES_OF[t.dtype]


def _config(given: Dict[str, Any]) -> _c.GroupConfig:
    config = _c.GroupConfig()
    device = str(given["device"])
    config.device = _c.CUDA if device.startswith("cuda") else choose({"cpu": _c.CPU}, device, "device")
    for name in ("experts", "hidden", "max_tokens", "max_topk", "max_recv_rows", "heap_bytes", "threads", "sms"):
        setattr(config, name, given[name])
    config.dtype = _array.dtype_code(given["dtype"])
    layouts = given["layouts"]
    for layout in (layouts,) if isinstance(layouts, str) else layouts:
        config.layouts |= choose(LAYOUTS, layout, "layout")
    if given["timeout"] is not None:
        config.timeout_ms = max(1, int(given["timeout"] * 1000))
    return config if given["expert_ranks"] is None else _with_map(config, given["expert_ranks"])


def _with_map(config: _c.GroupConfig, expert_ranks: Sequence[Sequence[int]]) -> _c.GroupConfig:
    """A copy with another map of experts, which it keeps."""
    made = _c.GroupConfig.from_buffer_copy(config)
    lists = [list(r) for r in expert_ranks]
    if len(lists) != made.experts:
        raise errors.InvalidError(
            f"expert_ranks has {len(lists)} entries, one for each of {made.experts} experts is wanted"
        )
    ends = np.cumsum([0] + [len(r) for r in lists]).tolist()
    made.expert_first = (C.c_int32 * len(ends))(*ends)
    made.expert_rank = (C.c_int32 * max(1, ends[-1]))(*[r for copies in lists for r in copies])
    return made


class _Place(bytes):
    """The id of a group that is there already, at which a newcomer takes a place."""


def _uid(unique_id: bytes) -> _c.UniqueId:
    if len(unique_id) != C.sizeof(_c.UniqueId):
        raise errors.InvalidError(f"unique_id has {len(unique_id)} bytes, not {C.sizeof(_c.UniqueId)}")
    return _c.UniqueId.from_buffer_copy(unique_id)


class _device:
    """PyTorch's current GPU while a group is made: the library takes the one that is current in the thread."""

    def __init__(self, device: str):
        name, _, index = str(device).partition(":")
        self.torch = sys.modules.get("torch") if name == "cuda" else None
        if name == "cuda" and index and self.torch is None:
            raise errors.UnsupportedError("device 'cuda:N' needs PyTorch to be imported; or set CUDA_VISIBLE_DEVICES")
        self.index = int(index) if index else None

    def __enter__(self) -> int:
        if self.torch is None:
            return 0
        self.before = self.torch.cuda.current_device()
        self.torch.cuda.set_device(self.before if self.index is None else self.index)
        return self.torch.cuda.current_device()

    def __exit__(self, *_: Any) -> None:
        if self.torch is not None:
            self.torch.cuda.set_device(self.before)


def _create(config: _c.GroupConfig, rank: Any, ranks: Any, uid: Any, allgather: Any, pointer: C.c_void_p) -> None:
    if uid is None and allgather is None:
        if rank is not None or ranks is not None:
            raise errors.InvalidError(
                "rank and ranks go with unique_id or allgather; without, the environment tells them"
            )
        lib.ferry_group_create_env(C.byref(config), C.byref(pointer))
        return
    if rank is None or ranks is None or (uid is not None and allgather is not None):
        raise errors.InvalidError("unique_id or allgather (one of them) goes with rank and ranks")
    if uid is not None:
        call = lib.ferry_group_join if isinstance(uid, _Place) else lib.ferry_group_create
        call(C.byref(_uid(uid)), rank, ranks, C.byref(config), C.byref(pointer))
        return
    raised: List[BaseException] = []
    function = _c.AllgatherFn(lambda _, mine, all_, size: _gather(allgather, ranks, mine, all_, size, raised))
    try:
        lib.ferry_group_create_with(function, None, rank, ranks, C.byref(config), C.byref(pointer))
    except errors.FerryError as error:
        raise error from (raised[0] if raised else None)


def _gather(allgather: Any, ranks: int, mine: int, all_: int, size: int, raised: List[BaseException]) -> int:
    try:
        parts = allgather(C.string_at(mine, size))
        whole = b"".join(bytes(p) for p in parts)
        if len(whole) != ranks * size:
            raise ValueError(f"allgather returned {len(whole)} bytes of {len(parts)} ranks, not {ranks} times {size}")
        C.memmove(all_, whole, len(whole))
        return 0
    except BaseException as error:  # an exception must not cross the C library; it becomes the cause of its error
        raised.append(error)
        return 1
