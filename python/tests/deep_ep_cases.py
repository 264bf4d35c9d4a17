"""What the tests of the drop-in for deep_ep share: everybody's inputs, and what must arrive of them."""

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
