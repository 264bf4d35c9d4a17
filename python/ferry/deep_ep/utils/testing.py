"""How DeepEP's test scripts take times. Ferry's kernels have other names than those asked for: the times are of whole calls."""

from __future__ import annotations

from typing import Any, Callable, Optional, Tuple

import torch


def bench(
    fn: Callable[[], Any],
    num_warmups: int = 50,
    num_tests: int = 50,
    post_fn: Optional[Callable[[], Any]] = None,
    flush_l2: bool = True,
) -> Tuple[float, float, float]:
    """(mean, least, most) seconds of a call by CUDA events, after a write that empties the GPU's cache."""
    for _ in range(num_warmups):
        fn()
    torch.cuda.synchronize()
    pairs = []
    for _ in range(num_tests):
        if flush_l2:
            torch.empty(64 << 20, dtype=torch.int32, device="cuda").zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        fn()
        end.record()
        pairs.append((begin, end))
        if post_fn is not None:
            post_fn()
    torch.cuda.synchronize()
    times = [begin.elapsed_time(end) / 1e3 for begin, end in pairs][1:]
    return sum(times) / len(times), min(times), max(times)


def bench_kineto(
    fn: Callable[[], Any], kernel_names: Any, num_tests: int = 30, num_kernels_per_period: int = 1, **_: Any
) -> Any:
    """For each name asked for, its equal share of a call's mean time: only their sum is a measurement."""
    names = (kernel_names,) if isinstance(kernel_names, str) else tuple(kernel_names)
    share = bench(fn, 5, num_tests)[0] / len(names)
    each = share if num_kernels_per_period == 1 else [share / num_kernels_per_period] * num_kernels_per_period
    return each if isinstance(kernel_names, str) else tuple(each for _ in names)
