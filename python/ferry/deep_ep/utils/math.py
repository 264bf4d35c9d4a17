"""Helpers that DeepEP's test scripts import: FP8 casts, comparisons and hashes of tensors."""

from __future__ import annotations

from typing import Any, Tuple

import torch


def align(x: int, y: int) -> int:
    """x rounded up to a multiple of y."""
    return -(-x // y) * y


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def safe_div(a: Any, b: Any) -> float:
    """a / b, and 0 where b is 0."""
    return 0.0 if b == 0 else a / b


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 minus twice the scalar product of x + 1 and y + 1 over the sum of their squares, in float64: 0 for equal tensors."""
    a, b = x.double() + 1, y.double() + 1
    return float(1 - 2 * (a * b).sum() / (a.square() + b.square()).sum()) if a.numel() else 0.0


def per_token_cast_to_fp8(x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """[T, H] as float8_e4m3fn [T, H], and float32 scales [T, ceil(H / 128)]: amax / 448, amax at least 1e-4."""
    tokens, hidden = x.shape
    blocks = torch.nn.functional.pad(x, (0, -hidden % 128)).view(tokens, -1, 128).float()
    amax = blocks.abs().amax(2).clamp(min=1e-4)
    q = (blocks * (448.0 / amax)[..., None]).to(getattr(torch, "float8_e4m3fn"))
    return q.view(tokens, -1)[:, :hidden].contiguous(), amax / 448.0


def per_token_cast_back(x_fp8: torch.Tensor, x_scales: torch.Tensor) -> torch.Tensor:
    """bfloat16 [T, H]. Scales of integers hold UE8M0 exponents, four to each."""
    if x_fp8.numel() == 0:
        return x_fp8.to(torch.bfloat16)
    if x_scales.dtype == torch.int32:
        packed = x_scales.clone(memory_format=torch.contiguous_format)  # a lone column may have any stride
        exponents = packed.view(torch.uint8).to(torch.int32)
        x_scales = (exponents << 23).view(torch.float32)
    tokens, hidden = x_fp8.shape
    factors = x_scales.reshape(tokens, -1).float().repeat_interleave(128, dim=1)[:, :hidden]
    return (x_fp8.float() * factors).to(torch.bfloat16)


def inplace_unique(x: torch.Tensor, num_slots: int) -> None:
    """Each row of integers becomes its distinct values below num_slots, then -1."""
    seen = torch.zeros((len(x), num_slots + 1), dtype=torch.int32, device=x.device)
    seen.scatter_(1, x.masked_fill(x < 0, num_slots).long(), 1)
    slots = torch.arange(num_slots, device=x.device).expand(len(x), num_slots)
    listed = slots.masked_fill(seen[:, :num_slots] == 0, num_slots).sort(1).values
    width = min(x.shape[1], num_slots)
    x.fill_(-1)
    x[:, :width] = listed[:, :width].masked_fill(listed[:, :width] == num_slots, -1).to(x.dtype)


def hash_tensor(t: torch.Tensor) -> int:
    """The sum of its bytes, taken as integers of four."""
    return int(t.contiguous().view(-1).view(torch.int32).sum(dtype=torch.int64).item())


def hash_tensors(*tensors: Any) -> int:
    value = 0
    for t in tensors:
        if isinstance(t, (tuple, list)):
            value ^= hash_tensors(*t)
        elif t is not None:
            value ^= hash_tensor(t)
    return value


def count_bytes(*tensors: Any) -> int:
    total = 0
    for t in tensors:
        if isinstance(t, (tuple, list)):
            total += count_bytes(*t)
        elif t is not None:
            total += t.numel() * t.element_size()
    return total
