"""What must arrive, computed plainly in NumPy from everybody's inputs: docs/concepts.md and docs/numerics.md."""

import numpy as np


def local_experts(rank, ranks, experts):
    return [e for e in range(experts) if _home(e, ranks, experts) == rank]


def _home(expert, ranks, experts):
    return next(r for r in range(ranks) if r * experts // ranks <= expert < (r + 1) * experts // ranks)


def arrivals(rank, ranks, experts, choices):
    """By layout: for "rank" a list of (source, token); for "expert" and "slots" a list of those for each local expert."""
    mine = local_experts(rank, ranks, experts)
    once, by_expert = [], [[] for _ in mine]
    for source in range(ranks):
        for token, row in enumerate(choices[source]):
            if any(e in mine for e in row):
                once.append((source, token))
            for i, e in enumerate(mine):
                if e in row:
                    by_expert[i].append((source, token))
    return once, by_expert


def local_ids(row, mine):
    return [mine.index(e) if e in mine else -1 for e in row]


def weight_for(row, weights, expert):
    total = np.float32(0)
    for e, w in zip(row, weights):
        if e == expert:
            total = np.float32(total + w)
    return total


def fma(w, y, acc):
    # A float32 product is exact in float64. The sum may round twice here: rarely the last bit differs.
    return (np.float64(w) * y.astype(np.float64) + acc.astype(np.float64)).astype(np.float32)


def combine(layout, ranks, experts, row, weights, weighted, result_of):
    """The sum of one token; result_of(rank or expert) is what came back for it, float32."""
    total = None
    if layout == "rank" and not weighted:
        keys = sorted({_home(e, ranks, experts) for e in row if e >= 0})
        terms = [(None, k) for k in keys]
    elif not weighted:
        terms = [(None, k) for k in dict.fromkeys(e for e in row if e >= 0)]
    else:
        terms = [(w, _home(e, ranks, experts) if layout == "rank" else e) for e, w in zip(row, weights) if e >= 0]
    for w, key in terms:
        y = result_of(key)
        total = np.zeros_like(y) if total is None else total
        total = total + y if w is None else fma(w, y, total)
    return total


def e4m3_scale(x, pow2):
    """amax/448 for each block of 128 channels of float32 rows [n, columns]."""
    blocks = x.reshape(len(x), -1, 128)
    scale = np.maximum(np.abs(blocks).max(-1), np.float32(1e-4)) / np.float32(448)
    if not pow2:
        return scale
    bits = (scale.view(np.uint32) + np.uint32(0x007FFFFF)) & np.uint32(0x7F800000)
    return bits.view(np.float32)
