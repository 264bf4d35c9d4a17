"""What PyTorch programs need: groups from torch.distributed, and dispatch and combine with gradients.

    group = ferry.Group.from_process_group(experts=64, hidden=1024, max_tokens=4096, max_topk=2)
    rows, weights, route = ferry.torch.dispatch(group, x, topk_idx, topk_weights, layout="expert")
    y = ferry.torch.combine(experts(rows, route) * weights[:, None], route)

Tensors are used in place, on the CPU or a GPU; there the calls go to the current CUDA stream.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch
import torch.distributed as dist

from .group import Group
from .route import Route


def allgather_of(group: Any = None) -> Tuple[int, int, Callable[[bytes], Sequence[bytes]]]:
    """(rank, ranks, allgather) of a process group (None: the default one), for `ferry.Group`."""
    ranks = dist.get_world_size(group)

    def allgather(mine: bytes) -> List[bytes]:
        parts: List[Any] = [None] * ranks
        dist.all_gather_object(parts, mine, group=group)
        return parts

    return dist.get_rank(group), ranks, allgather


class FerryAllToAll(torch.autograd.Function):
    """Dispatch and combine along a route, each the other's backward pass.

    `FerryAllToAll.apply(route, "dispatch", x, topk_weights)` gives (rows, row weights or None): x [tokens, columns] goes to
    its experts; topk_weights [tokens, K] float32 are those that the route was made with, or None. Its backward pass sums the
    rows' gradients by a combine, which also brings back those of the weights.

    `FerryAllToAll.apply(route, "combine", rows, None)` gives (y [tokens, columns], None): the unweighted sum. Its backward pass
    is a dispatch of the gradient along the same route.

    Every rank calls backward, since that communicates too. `dispatch` and `combine` below are the same in fewer words.
    """

    @staticmethod
    def forward(ctx: Any, route: Route, step: str, x: torch.Tensor, weights: Optional[torch.Tensor]) -> Any:
        ctx.route, ctx.step, ctx.weighted = route, step, weights is not None
        if step == "combine":
            return route.combine(x).rows, None
        if step != "dispatch":
            raise ValueError(f"step is {step!r}; there are 'dispatch' and 'combine'")
        got = route.dispatch(x, zero_padding=True)  # autograd multiplies with all rows
        return got.rows, got.topk_weights if ctx.weighted else None

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, weights_grad: Optional[torch.Tensor]) -> Any:
        route = ctx.route
        if ctx.step == "combine":
            return None, None, route.dispatch(grad.contiguous(), topk=False, zero_padding=True).rows, None
        # Ranks agree on whether weights travel: by the route, never by what this rank's graph happens to need.
        weights = weights_grad.float().contiguous() if ctx.weighted and weights_grad is not None else None
        back = route.combine(grad.contiguous(), weights=weights)
        return None, None, back.rows, back.weights


def dispatch(
    group: Group, x: torch.Tensor, topk_idx: torch.Tensor, topk_weights: Optional[torch.Tensor] = None, **options: Any
) -> Tuple[torch.Tensor, Optional[torch.Tensor], Route]:
    """[collective] (rows, row weights, route): x to its experts, with gradients for x and topk_weights.

    Args:
        x: [tokens, columns] of the group's dtype.
        topk_idx: int32 or int64 [tokens, K]; -1 for none.
        topk_weights: float32 [tokens, K], or None.
        options: those of `ferry.Route` (layout, mode, expert_alignment, capacities).

    Row weights are [N, K] in layout "rank" (0 for choices of other ranks), [N] in "expert" and "slots".
    """
    weights = None if topk_weights is None else topk_weights.detach()
    route = Route(group, topk_idx, weights, **options)
    rows, row_weights = FerryAllToAll.apply(route, "dispatch", x, topk_weights)
    return rows, row_weights, route


def combine(rows: torch.Tensor, route: Route) -> torch.Tensor:
    """[collective] [tokens, columns]: the unweighted sum of each token's rows, with a gradient for rows."""
    return FerryAllToAll.apply(route, "combine", rows, None)[0]
