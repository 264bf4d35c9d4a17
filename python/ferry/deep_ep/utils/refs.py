"""What DeepEP's test_ep.py compares with, written plainly: a dispatch by all-to-all, and a combine where nothing travels."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Tuple, Union

import torch
import torch.distributed as dist

from .envs import get_global_seed

Rows = Union[torch.Tensor, Tuple[torch.Tensor, torch.Tensor]]


def _all_to_all(into: torch.Tensor, out_of: torch.Tensor, *splits: Any) -> None:
    """[collective] Through the CPU where gloo serves GPUs."""
    if not (into.is_cuda and dist.get_backend() == "gloo"):
        dist.all_to_all_single(into, out_of, *splits)
        return
    there = torch.empty_like(into, device="cpu")
    dist.all_to_all_single(there, out_of.cpu(), *splits)
    into.copy_(there)


def _exchange(rows: torch.Tensor, sent: List[int], received: List[int]) -> torch.Tensor:
    """[collective] Rows of any dtype, as bytes: not every backend knows every dtype."""
    flat = rows.reshape(len(rows), math.prod(rows.shape[1:])).contiguous()
    there = torch.empty((sum(received), flat.shape[1]), dtype=rows.dtype, device=rows.device)
    _all_to_all(there.view(torch.uint8), flat.view(torch.uint8), received, sent)
    return there.reshape(len(there), *rows.shape[1:])


def dispatch(
    x: Rows, topk_idx: torch.Tensor, topk_weights: torch.Tensor, num_max_tokens_per_rank: int, num_experts: int
) -> Tuple[Rows, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """[collective] (recv_x, recv_topk_idx local or -1, recv_topk_weights as sent, source rank * M + token, rows of each rank on
    the host): every token once to each rank of its experts, by source rank, then token."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    local = num_experts // ranks
    rows, sf = x if isinstance(x, tuple) else (x, None)
    homes = torch.where(topk_idx >= 0, topk_idx // local, -1)
    chosen = [(homes == r).any(1).nonzero()[:, 0] for r in range(ranks)]
    sent = [len(c) for c in chosen]
    counts = torch.empty(ranks, dtype=torch.int32, device=rows.device)
    _all_to_all(counts, torch.tensor(sent, dtype=torch.int32, device=rows.device))
    received, order = counts.tolist(), torch.cat(chosen)

    def carry(t: torch.Tensor) -> torch.Tensor:
        return _exchange(t[order], sent, received)

    source = carry(torch.arange(len(rows), dtype=torch.int32, device=rows.device))
    source += torch.repeat_interleave(torch.arange(ranks, device=counts.device), counts).int() * num_max_tokens_per_rank
    ids = carry(topk_idx)
    here = torch.div(ids, local, rounding_mode="floor") == rank
    ids = torch.where(here, ids - rank * local, -1)
    recv_x = carry(rows) if sf is None else (carry(rows), carry(sf))
    return recv_x, ids, carry(topk_weights), source, counts.cpu()


def generate_pre_combine_data(
    src_token_global_idx: torch.Tensor, num_max_tokens_per_rank: int, num_topk: int, hidden: int
) -> torch.Tensor:
    """bfloat16 [tokens, topk, hidden]: what each choice's expert answers, known from the token's number alone."""
    numbers = dist.get_world_size() * num_max_tokens_per_rank * num_topk
    channel = torch.arange(1, hidden + 1, dtype=torch.float32, device=src_token_global_idx.device)
    shape = (len(src_token_global_idx), num_topk, hidden)
    answers = torch.empty(shape, dtype=torch.bfloat16, device=src_token_global_idx.device)
    for k in range(num_topk):  # a choice at a time, since float32 of all would be large
        number = (src_token_global_idx.long() * num_topk + k) * 131071 % numbers
        frequency = (number.float() + 1) / numbers
        answers[:, k] = torch.sin(frequency[:, None] * channel + math.sin(float(get_global_seed())))
    return answers


def ordered_accumulate(data: torch.Tensor, initial_value: Optional[torch.Tensor] = None) -> torch.Tensor:
    """[tokens, hidden]: data [tokens, topk, hidden] summed in choice order in float32, begun from initial_value, rounded once."""
    total = torch.zeros_like(data[:, 0], dtype=torch.float32) if initial_value is None else initial_value.clone()
    for part in data.unbind(1):
        total += part.float()
    return total.to(data.dtype)


def _by_group(y: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Each group's sum in the place of its last choice, zeros in the others."""
    out = torch.zeros_like(y)
    for k in range(y.shape[1]):
        total = torch.zeros_like(y[:, 0], dtype=torch.float32)
        for j in range(k + 1):
            total += y[:, j].float().masked_fill((group[:, j] != group[:, k])[:, None], 0)
        again = (group[:, k + 1 :] == group[:, k : k + 1]).any(1)
        out[:, k] = total.to(y.dtype).masked_fill(again[:, None], 0)
    return out


def combine(
    y: torch.Tensor,
    topk_idx: torch.Tensor,
    num_scaleout_ranks: int,
    num_scaleup_ranks: int,
    num_experts: int,
    bias: Any,
    reduce_in_local: bool,
    reduce_in_scaleup: bool,
) -> torch.Tensor:
    """[tokens, hidden]: the sum of y [tokens, topk, hidden] as DeepEP rounds it: per rank, then per host, where that is asked for."""
    per_rank = num_experts // (num_scaleout_ranks * num_scaleup_ranks)
    for asked, experts in ((reduce_in_local, per_rank), (reduce_in_scaleup, per_rank * num_scaleup_ranks)):
        if asked:
            y = _by_group(y, torch.div(topk_idx, experts, rounding_mode="floor"))
    biases = bias if isinstance(bias, tuple) else () if bias is None else (bias,)
    start = None
    for b in biases:
        start = b.float() if start is None else start + b.float()
    return ordered_accumulate(y, start)
