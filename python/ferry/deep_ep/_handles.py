"""Handles: the tuples that callers of DeepEP carry from dispatch to combine, with the route that belongs to them."""

from __future__ import annotations

from typing import Any

from ferry import Route


class _Handle(tuple):
    route: Route

    def __new__(cls, fields: Any, route: Route) -> Any:
        self = super().__new__(cls, fields)
        self.route = route
        return self


class NormalHandle(_Handle):
    """(rank_prefix_matrix, None, None, recv_src_idx, is_token_in_rank, None): of six fields, those that have a meaning
    here; recv_src_idx is the token's number on its source rank. Ferry has no channels and no queues, so there are no channel matrices and no send_head.
    """


class LowLatencyHandle(_Handle):
    """(src_info, layout_range, num_max_dispatch_tokens_per_rank, hidden, num_experts). src_info int32 [L, R * M]: the token's
    number on its source rank; layout_range int64 [L, R]: rows from each rank, and 2^32 times where they begin."""


def route_of(handle: Any, kind: Any) -> Route:
    if not isinstance(handle, kind):
        raise TypeError(f"the handle is a {type(handle).__name__}: wanted is the very object that dispatch returned")
    return handle.route
