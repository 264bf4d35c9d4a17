"""The drop-in for deep_ep: V1, normal mode."""

from contextlib import nullcontext

from deep_ep_cases import EXPERTS, HIDDEN, M, arrivals, buffer_of, e4m3, equal_bits, everybody, local_ids
from harness import DEVICE, each, on_ranks, raises, torch_or_skip

import ferry


@each(fp8=(False, True), asynchronous=(False, True), previous=(False, True))
def test_normal(fp8, asynchronous, previous):
    torch_or_skip()
    on_ranks(4, normal, fp8, asynchronous, previous)


def normal(env, fp8, asynchronous, previous):
    import torch

    x, idx, w = everybody(env, 1)
    mine, choice, weights = x[env.rank], idx[env.rank], w[env.rank]
    scales = [
        torch.arange(len(r) * 2, dtype=torch.float32, device=DEVICE).reshape(2, -1).t() + 100 * i
        for i, r in enumerate(x)
    ]
    sent = (e4m3(mine), scales[env.rank]) if fp8 else mine
    buffer = buffer_of(env)
    per_rank, per_rdma, per_expert, in_rank, event = buffer.get_dispatch_layout(choice, EXPERTS)
    assert per_rdma is None and event.event is None
    check_layout(env, choice, per_rank, per_expert, in_rank)
    layout = dict(num_tokens_per_rank=per_rank, is_token_in_rank=in_rank, num_tokens_per_expert=per_expert)
    options = dict(async_finish=asynchronous, previous_event=buffer.capture() if previous else None)

    def done(event):
        assert (event.event is not None) == asynchronous
        if asynchronous:
            event.current_stream_wait()

    rx, ri, rw, counts, handle, event = buffer.dispatch(
        sent,
        topk_idx=choice,
        topk_weights=weights,
        expert_alignment=4,
        config=buffer.get_dispatch_config(8),
        **layout,
        **options,
    )
    done(event)
    arrived = arrivals(env, idx)
    rows, rscales = rx if fp8 else (rx, None)
    check_received(env, arrived, rows, rscales, ri, rw, x, scales, idx, w, fp8)
    local = EXPERTS // env.ranks
    assert counts == [-(-sum(row.count(i) for row in ri.tolist()) // 4) * 4 for i in range(local)]
    assert isinstance(handle, tuple) and handle[4] is in_rank and handle[3].tolist() == [t for _, t in arrived]
    starts = [sum(1 for s, _ in arrived if s <= r) for r in range(env.ranks)]
    assert handle[0][:, env.rank].tolist() == starts
    assert handle[0][env.rank].tolist() == [
        sum(1 for s in range(env.rank + 1) for _ in _to(env, idx[s], r)) for r in range(env.ranks)
    ]

    again = buffer.dispatch(sent, handle=handle, **options)
    done(again[5])
    assert again[1:5] == (None, None, None, None)
    assert equal_bits((again[0][0] if fp8 else again[0]), rows)

    # Without top-k: is_token_in_rank says where tokens go.
    bare = buffer.dispatch(sent, **layout, **options)
    done(bare[5])
    assert bare[1] is None and bare[2] is None and equal_bits(bare[0][0] if fp8 else bare[0], rows)
    assert bare[3] == [sum(row.count(i) for row in ri.tolist()) for i in range(local)]

    values = torch.zeros(rows.shape, device=DEVICE, dtype=torch.bfloat16)
    for row, (s, t) in enumerate(arrived):
        values[row] = x[s][t]
    for h in (handle, bare[4]):
        y, yw, event = buffer.combine(values, h, topk_weights=rw, **options)
        done(event)
        times = in_rank.sum(1, keepdim=True)
        assert torch.equal(y, (mine.float() * times).bfloat16())
        if len(mine):
            assert torch.allclose(yw, torch.where(choice >= 0, weights, torch.zeros_like(weights)))
    y2, none, event = buffer.combine(values, handle, bias=(mine, mine), **options)
    done(event)
    assert none is None and torch.allclose(y2.float(), mine.float() * (times + 2), rtol=1e-2)
    buffer.destroy()


def _to(env, idx, rank):
    local = EXPERTS // env.ranks
    return [t for t, row in enumerate(idx.tolist()) if any(e >= 0 and e // local == rank for e in row)]


def check_layout(env, choice, per_rank, per_expert, in_rank):
    import torch

    rows = choice.tolist()
    assert per_expert.dtype == per_rank.dtype == torch.int32 and in_rank.dtype == torch.bool
    assert per_expert.tolist() == [sum(row.count(e) for row in rows) for e in range(EXPERTS)]
    assert per_rank.tolist() == [len(_to(env, choice, r)) for r in range(env.ranks)]
    assert in_rank.tolist() == [[t in _to(env, choice, r) for r in range(env.ranks)] for t in range(len(rows))]


def check_received(env, arrived, rows, rscales, ri, rw, x, scales, idx, w, fp8):
    assert len(rows) == len(ri) == len(rw) == len(arrived) and ri.dtype == idx[0].dtype
    for row, (s, t) in enumerate(arrived):
        ids = local_ids(env, idx[s][t].tolist())
        assert ri[row].tolist() == ids
        assert rw[row].tolist() == [v if i >= 0 else 0 for i, v in zip(ids, w[s][t].tolist())]
        if fp8:
            assert rscales[row].tolist() == scales[s][t].tolist()
        assert equal_bits(rows[row : row + 1], e4m3(x[s][t : t + 1]) if fp8 else x[s][t : t + 1])


def test_worst_tokens():
    torch_or_skip()
    on_ranks(4, worst_tokens)


def worst_tokens(env):
    import torch

    x, idx, w = everybody(env, 2)
    mine, choice = x[env.rank], idx[env.rank]
    buffer, worst = buffer_of(env), 4 * M
    _, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(choice, EXPERTS)
    layout = dict(is_token_in_rank=in_rank, num_tokens_per_expert=per_expert, topk_idx=choice, topk_weights=w[env.rank])
    exact = buffer.dispatch(mine, **layout)
    for _ in range(3):
        rx, ri, rw, counts, handle, _ = buffer.dispatch(mine, num_worst_tokens=worst, **layout)
        n = len(exact[0])
        assert counts == [] and rx.shape == (worst, HIDDEN) and len(ri) == len(rw) == worst
        assert torch.equal(rx[:n], exact[0]) and torch.equal(ri[:n], exact[1]) and torch.equal(rw[:n], exact[2])
        assert (ri[n:] == -1).all() and torch.equal(handle[0][:, env.rank], exact[4][0][:, env.rank])
        y = buffer.combine(rx, handle)[0]
        assert torch.equal(y, (mine.float() * in_rank.sum(1, keepdim=True)).bfloat16())
    buffer.destroy()


def test_groups_grow():
    """More tokens, a wider row, more choices than before: new groups, while old handles go on."""
    torch_or_skip()
    on_ranks(2, growing)


def growing(env):
    import torch

    buffer, old = buffer_of(env), []
    for tokens, hidden, topk in ((3, 128, 1), (200, 128, 1), (200, 512, 2), (700, 512, 2), (1, 128, 1)):
        n = tokens if env.rank == 0 else 2  # only one rank has more
        x = torch.randn(n, hidden, device=DEVICE).bfloat16()
        idx = torch.arange(n * topk, device=DEVICE).reshape(n, topk) % EXPERTS
        _, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
        got = buffer.dispatch(x, is_token_in_rank=in_rank, num_tokens_per_expert=per_expert, topk_idx=idx.int())
        assert got[1].dtype == torch.int32 and got[2] is None
        old.append((x, in_rank, got[4]))
        for was, there, handle in old:
            y = buffer.combine(buffer.dispatch(was, handle=handle)[0], handle)[0]
            assert torch.equal(y, (was.float() * there.sum(1, keepdim=True)).bfloat16())
    assert len(buffer._groups._made) <= 4
    with raises(ferry.MismatchError, "hidden is"):
        wide = torch.zeros(1, 128 * (1 + env.rank), device=DEVICE, dtype=torch.bfloat16)
        one = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
        _, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(one, EXPERTS)
        buffer.dispatch(wide, is_token_in_rank=in_rank, num_tokens_per_expert=per_expert, topk_idx=one)
    buffer.destroy()
    with raises(ferry.InvalidError, "destroyed"):
        buffer.dispatch(wide, is_token_in_rank=in_rank, num_tokens_per_expert=per_expert, topk_idx=one)


def test_a_group_in_a_graph_stays():
    torch_or_skip()
    on_ranks(1, in_a_graph)


def in_a_graph(env):
    import torch

    buffer = buffer_of(env)

    def step(tokens, hidden):
        x, idx = torch.ones(tokens, hidden, device=DEVICE).bfloat16(), torch.zeros(tokens, 1, dtype=int, device=DEVICE)
        _, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
        return buffer.dispatch(x, is_token_in_rank=in_rank, num_tokens_per_expert=per_expert, topk_idx=idx)[4]

    def capture(group):
        with group.stream() if DEVICE == "cpu" else nullcontext() as stream:
            group._capturing = lambda: True
            group.route(torch.zeros(1, 1, dtype=int, device=DEVICE), stream=stream)
            del group._capturing

    groups = [step(1, 128).route.group]
    capture(groups[0])
    handle = step(1, 256)
    groups.append(handle.route.group)
    step(1, 512)
    assert not set(groups) & set(buffer._groups._made.values())
    capture(handle.route.group)  # which its handle alone has kept so far
    assert buffer._groups._in_graphs == groups and not any(g.closed for g in groups)
    buffer.destroy()
    assert all(g.closed for g in groups)
