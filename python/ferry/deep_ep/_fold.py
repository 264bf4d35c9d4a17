"""The sums that an expanded combine makes before rows travel: on the experts' rank, a row for each token."""

from __future__ import annotations

import torch


def distinct(places: torch.Tensor) -> torch.Tensor:
    """places, with -1 where an earlier choice of the token is the same row."""
    same = places[:, :, None] == places[:, None, :]
    return places.masked_fill(same.tril(-1).any(2), -1)


def sum_by_token(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """[N, H]: each token's rows of x, summed in float32 in choice order, rounded once. places [N, K]: their rows, or -1."""
    if not (len(x) and len(places)):
        return x.new_zeros((len(places), x.shape[1]))
    with torch.no_grad():
        return _bags(x, places) if x.is_cuda else _one_by_one(x, places)


def _one_by_one(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((len(places), x.shape[1]), dtype=torch.float32, device=x.device)
    for place in places.long().unbind(1):
        total += x[place.clamp(min=0)].float().masked_fill((place < 0)[:, None], 0)  # other rows may be NaN
    return total.to(x.dtype)


def _bags(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """On a GPU each row is read once: a thread of PyTorch's kernel takes a column of a bag, and adds it up in float32, in order.

    A token has two bags, one for its rows and one, thrown away, for the rest of its choices: sizes stay those of `places`, and
    nothing waits for the host.
    """
    n, topk = places.shape
    none = places < 0
    listed = places.gather(1, none.to(torch.int8).sort(dim=1, stable=True).indices).clamp_(min=0)
    begins = torch.arange(0, n * topk, topk, dtype=places.dtype, device=x.device)
    ends = begins + (topk - none.sum(1, dtype=places.dtype))
    bags = torch.stack((begins, ends), 1).flatten()
    return torch.nn.functional.embedding_bag(listed.flatten(), x, bags, mode="sum").view(n, 2, x.shape[1])[:, 0]


def weights_by_token(weights: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """float32 [N, K] of weights [rows]: 0 for choices that are not here."""
    if weights.shape[0] == 0:
        return weights.new_zeros(places.shape, dtype=torch.float32)
    return weights.float()[places.long().clamp(min=0)].masked_fill(places < 0, 0)
