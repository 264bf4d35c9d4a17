"""What the tests of the drop-in for deep_ep share: everybody's inputs, and what must arrive of them."""

import sys
from contextlib import contextmanager

from harness import DEVICE, draw

EXPERTS, HIDDEN, TOPK, M = 8, 256, 3, 16


def tokens_of(rank):
    return (M, 5, 0, 9)[rank % 4]


def everybody(env, seed, tokens=tokens_of):
    """Rows, choices and weights of all ranks."""
    import torch

    drawn = [draw(seed, r, tokens(r), TOPK, EXPERTS, HIDDEN) for r in range(env.ranks)]
    to = [[torch.from_numpy(a).to(DEVICE) for a in d] for d in drawn]
    return [t[0].bfloat16() for t in to], [t[1] for t in to], [t[2] for t in to]


def arrivals(env, idx):
    """(source, token) of each row that comes to this rank, in order."""
    local = EXPERTS // env.ranks
    return [
        (s, t)
        for s in range(env.ranks)
        for t, row in enumerate(idx[s].tolist())
        if any(e >= 0 and e // local == env.rank for e in row)
    ]


def local_ids(env, row):
    local = EXPERTS // env.ranks
    return [e - env.rank * local if e >= 0 and e // local == env.rank else -1 for e in row]


def buffer_of(env, **options):
    from ferry.deep_ep import Buffer

    return Buffer(env.process_group(), 1 << 20, 0, explicitly_destroy=True, **options)


def bits(x):
    """The bytes of a tensor; an empty one's are hard to come by."""
    import torch

    shape = tuple(x.shape[:-1]) + (x.shape[-1] * x.element_size(),)
    return x.contiguous().view(torch.uint8) if x.numel() else torch.empty(shape, dtype=torch.uint8, device=x.device)


def equal_bits(a, b):
    import torch

    return torch.equal(bits(a), bits(b))


def e4m3(x):
    """Some FP8 rows [T, HIDDEN] for rows of bfloat16: half of their bytes."""
    import torch

    rows = bits(x)[:, :HIDDEN].contiguous()
    return rows.view(getattr(torch, "float8_e4m3fn", torch.uint8))


def dequantised(rx, kind):
    import torch

    if kind == "bf16":
        return rx.float()
    rows, scales = rx
    lead = tuple(rows.shape[:2])
    if kind == "ue8m0":
        assert scales.dtype == torch.int32 and tuple(scales.shape) == lead + (HIDDEN // 512 + 1,)
        exponents = torch.stack([(scales >> (8 * b)) & 255 for b in range(4)], -1).flatten(2)[..., : HIDDEN // 128]
        factor = torch.pow(2.0, exponents.float() - 127)
    else:
        assert scales.dtype == torch.float32 and tuple(scales.shape) == lead + (HIDDEN // 128,)
        factor = scales
    assert scales.stride(1) == 1  # column by column
    values = rows.float() if rows.dtype != torch.uint8 else _e4m3(rows)
    return values * factor.repeat_interleave(128, -1)


def _e4m3(bits):
    import torch

    table = []
    for b in range(256):
        sign, exponent, fraction = b >> 7, (b >> 3) & 15, b & 7
        value = fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
        table.append(-value if sign else value)
    return torch.tensor(table)[bits.long()]


@contextmanager
def stand_in():
    """`import deep_ep` inside it is Ferry's."""
    import ferry.deep_ep

    def theirs():
        return [name for name in sys.modules if name.split(".")[0] == "deep_ep"]

    before = {name: sys.modules[name] for name in theirs()}
    try:
        sys.modules["deep_ep"] = ferry.deep_ep
        yield ferry.deep_ep
    finally:
        for name in theirs():
            del sys.modules[name]
        sys.modules.update(before)
