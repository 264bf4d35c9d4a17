"""The Ferry groups behind a Buffer, made when a call first needs one.

A Ferry group knows hidden size, tokens and experts when it is made; a Buffer learns them from its calls. So each call looks for
a group that serves it, and makes one otherwise. That is safe because all ranks decide alike: by arguments that DeepEP too
wants equal on all ranks, or, for the number of tokens in normal mode, which may differ, by the largest of all ranks', which a
small group on the CPU (`control`) finds out in some microseconds. Handles hold on to the group that they were made with.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch

import ferry

_KEPT = (
    4  # groups of one kind; the one that was used least recently goes first, and lives on in the handles that need it
)


class Need(NamedTuple):
    """What a group must serve."""

    device: str  # of the tensors: "cpu", "cuda:1"
    layout: str
    hidden: int
    experts: int
    tokens: int
    topk: int
    rows: int = 0  # max_recv_rows

    def fits(self, have: "Need") -> bool:
        same = self[:2] == have[:2] and self.experts == have.experts and self.rows == have.rows
        exact = self.layout == "rank" or self.tokens == have.tokens  # tokens are part of the shapes otherwise
        return same and exact and all(a <= b for a, b in zip(self[2:], have[2:]))


class Groups:
    def __init__(self, rank: int, ranks: int, allgather: Any, timeout: float):
        self.rank, self.ranks = rank, ranks
        self._timeout = None if os.environ.get("FERRY_TIMEOUT_MS") else timeout
        self._made: Dict[Need, ferry.Group] = {}
        self._in_graphs: List[ferry.Group] = []  # that graphs may be replayed with: until close
        self.sms = 0
        self.control: Optional[ferry.Group] = ferry.Group(
            rank=rank, ranks=ranks, allgather=allgather, experts=ranks, hidden=8, max_tokens=1, max_topk=1, threads=1,
            timeout=self._timeout,
        )  # fmt: skip

    def gather(self, values: Any) -> np.ndarray:
        """[collective] int64 [ranks, n] of everybody's n numbers, on the host."""
        if self.control is None:
            raise ferry.InvalidError("the buffer is destroyed")
        return self.control.allgather(np.asarray(values, dtype=np.int64))

    def largest(self, tokens: int, names: Tuple[str, ...], same: Tuple[int, ...]) -> int:
        """[collective] The most tokens of all ranks. The other numbers must be equal on all ranks."""
        all_ = self.gather((tokens,) + same)
        for i, name in enumerate(names):
            for rank in range(self.ranks):
                if all_[rank, i + 1] != same[i]:
                    raise ferry.MismatchError(
                        f"{name} is {same[i]} on rank {self.rank}, {all_[rank, i + 1]} on rank {rank}"
                    )
        return int(all_[:, 0].max())

    def find(self, need: Need) -> ferry.Group:
        """[collective when there is none yet] A group that serves the need."""
        for have in list(self._made):
            if need.fits(have):
                group = self._made.pop(have)
                self._made[have] = group  # to the end: used last
                return group
        if need.device != "cpu" and torch.cuda.is_current_stream_capturing():
            raise ferry.UnsupportedError(
                f"a group for {need} has to be made, which a capture cannot hold: run once before"
            )
        smaller = [have for have in self._made if have.fits(need)]
        kind = [have for have in self._made if have[:2] == need[:2]]
        for have in smaller or kind[: max(0, len(kind) - _KEPT + 1)]:
            self._drop(have)
        self._made[need] = self._make(need)
        return self._made[need]

    def made(self) -> List[Tuple[Need, ferry.Group]]:
        """Those that calls find, in the same order on all ranks."""
        return list(self._made.items())

    def _drop(self, have: Need) -> None:
        group = self._made.pop(have)
        if not group._captured:
            _settle(group)

    def _make(self, need: Need) -> ferry.Group:
        def allgather(mine: bytes) -> List[bytes]:
            parts = self.control.allgather(np.frombuffer(mine, np.uint8))  # type: ignore[union-attr]
            return [p.tobytes() for p in parts]

        group = ferry.Group(
            rank=self.rank, ranks=self.ranks, allgather=allgather, device=need.device, layouts=(need.layout,),
            hidden=need.hidden, experts=need.experts, max_tokens=need.tokens, max_topk=need.topk,
            max_recv_rows=need.rows, timeout=self._timeout, sms=self._sms(need.device),
        )  # fmt: skip
        group._keeper = self._in_graphs
        return group

    def _sms(self, device: str) -> int:
        """[collective] What set_num_sms asked for, as far as all ranks on this card fit; 0: Ferry's own rule."""
        if device == "cpu":
            return 0
        card = torch.cuda.get_device_properties(torch.device(device))
        name = str(getattr(card, "uuid", "")) or f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {device}"
        number = int.from_bytes(name.encode()[-7:], "little")
        here = int((self.gather((number,))[:, 0] == number).sum())  # by every rank, whoever called set_num_sms
        if not self.sms:
            return 0
        return max(1, min(self.sms, card.multi_processor_count // here))

    def barrier(self) -> None:
        if self.control is None:
            raise ferry.InvalidError("the buffer is destroyed")
        self.control.barrier()

    def close(self) -> None:
        """What is on the GPU's streams is done first, as DeepEP has it. Ferry's own kernels end at their deadline."""
        groups = (*self._made.values(), *self._in_graphs)
        try:
            for group in groups:
                _settle(group)
        finally:
            for group in groups:
                group.close()
            self._made.clear()
            self._in_graphs.clear()
            if self.control is not None:
                self.control.close()
            self.control = None


def _settle(group: ferry.Group) -> None:
    if group.device == "cuda":
        torch.cuda.synchronize(group.device_index)  # what is in flight would be given up with the group


def meet(group: Any, comm: Any) -> Tuple[int, int, Any]:
    """(rank, ranks, allgather) of a torch process group, or of an mpi4py communicator."""
    if group is not None:
        from ferry.torch import allgather_of

        return allgather_of(group)
    if comm is not None:
        return comm.Get_rank(), comm.Get_size(), comm.allgather
    raise ValueError("either group (torch.distributed) or comm (mpi4py) must be given")


def where(x: torch.Tensor) -> str:
    return str(x.device) if x.is_cuda else "cpu"


def round_up(n: int, to: int) -> int:
    return -(-n // to) * to
