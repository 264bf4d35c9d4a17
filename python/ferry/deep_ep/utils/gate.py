"""Scores from which DeepEP's test scripts choose experts."""

from __future__ import annotations

import torch


def _scores(tokens: int, experts: int, favoured: int, factor: float) -> torch.Tensor:
    scores = torch.rand((tokens, experts), dtype=torch.float32)
    scores[:, :favoured] *= factor
    return scores


def _imbalance(scores: torch.Tensor, ranks: int, topk: int) -> float:
    """Tokens that go to rank 0, over the mean of those that go to each other one."""
    tokens, experts = scores.shape
    homes = scores.topk(topk).indices // (experts // ranks)
    there = torch.zeros((tokens, ranks), dtype=torch.float32).scatter_(1, homes, 1).sum(0)
    return float(there[0] / there[1:].mean())


def get_unbalanced_scores(
    num_tokens: int, num_experts: int, num_ranks: int, num_topk: int, ratio: float, precise: bool
) -> torch.Tensor:
    """float32 [tokens, experts], uniform; with ratio above 1 rank 0 gets about ratio times as many tokens as another.

    precise: not here.
    """
    if precise:
        raise NotImplementedError("precise=True: no such distribution is made here")
    favoured, low, high = num_experts // num_ranks, 1.0, 100.0
    for _ in range(20 if ratio > 1 and num_ranks > 1 else 0):
        middle = (low + high) / 2
        if _imbalance(_scores(num_tokens, num_experts, favoured, middle), num_ranks, num_topk) > ratio:
            high = middle
        else:
            low = middle
    return _scores(num_tokens, num_experts, favoured, low)
