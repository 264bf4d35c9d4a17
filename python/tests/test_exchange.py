"""Dispatch and combine over ranks as processes, against the plain reference, bit for bit."""

import gc
import threading
import weakref

import ml_dtypes
import numpy as np
import reference
from harness import alone, draw, each, on_ranks

EXPERTS, HIDDEN, TOPK, M = 7, 256, 3, 12


def tokens_of(rank):
    return (M, 0, 5, 9)[rank % 4]


def inputs(env, seed, kind):
    drawn = [draw(seed, r, tokens_of(r), TOPK, EXPERTS, HIDDEN) for r in range(env.ranks)]
    return [d[0].astype(kind) for d in drawn], [d[1] for d in drawn], [d[2] for d in drawn]


def blocks(layout, mode, alignment, ranks, by_expert):
    """(first row of each expert's block, row of each arrival) in layouts EXPERT and SLOTS."""
    start, where = 0, []
    for i, arrived in enumerate(by_expert):
        if layout == "slots":
            start = i * ranks * M
        counts = [0] * ranks
        rows = []
        for n, (source, _) in enumerate(arrived):
            rows.append(start + (source * M + counts[source] if layout == "slots" and mode == "latency" else n))
            counts[source] += 1
        where.append(rows)
        start += -(-len(arrived) // alignment) * alignment
    return where


def check_rows(env, layout, mode, alignment, got, x, idx, w):
    once, by_expert = reference.arrivals(env.rank, env.ranks, EXPERTS, idx)
    mine = reference.local_experts(env.rank, env.ranks, EXPERTS)
    flat = got.rows.reshape(-1, HIDDEN)
    if layout == "rank":
        at = [
            s * M + sum(1 for o in once[:n] if o[0] == s) if mode == "latency" else n for n, (s, _) in enumerate(once)
        ]
        for row, (s, t) in zip(at, once):
            ids = reference.local_ids(idx[s][t].tolist(), mine)
            assert flat[row].tobytes() == x[s][t].tobytes()
            assert got.topk_idx[row].tolist() == ids and got.source[row] == s * M + t
            assert got.topk_weights[row].tolist() == [w[s][t][k] if ids[k] >= 0 else 0 for k in range(TOPK)]
        assert got.counts.tolist() == [sum(1 for o in once if o[0] == s) for s in range(env.ranks)]
        return dict(zip(once, at))
    places = {}
    for e, rows, arrived in zip(mine, blocks(layout, mode, alignment, env.ranks, by_expert), by_expert):
        for row, (s, t) in zip(rows, arrived):
            assert flat[row].tobytes() == x[s][t].tobytes() and got.source[row] == s * M + t
            assert got.topk_weights[row] == reference.weight_for(idx[s][t], w[s][t], e)
            places[s, t, e] = row
    want = [[sum(1 for a in arrived if a[0] == s) for s in range(env.ranks)] for arrived in by_expert]
    assert got.counts.tolist() == want
    return places


def back_of(x, key):
    """What the rank or expert `key` makes of a row."""
    return (x.astype(np.float32) * np.float32(0.5 + key)).astype(x.dtype)


def exchange(env, layout, mode, view, kind, seed):
    alignment = 4 if layout == "expert" else 1
    kind = np.dtype(kind)
    x, idx, w = inputs(env, seed, kind)
    config = dict(experts=EXPERTS, hidden=HIDDEN, max_tokens=M, max_topk=TOPK, dtype=kind, layouts=(layout,))
    with env.group(**config) as g:
        assert g.local_experts().tolist() == reference.local_experts(env.rank, env.ranks, EXPERTS)
        with g.route(idx[env.rank], w[env.rank], layout=layout, mode=mode, expert_alignment=alignment) as route:
            for _ in range(3):  # the halves of the buffers alternate
                got = route.dispatch(x[env.rank], view=view)
                places = check_rows(env, layout, mode, alignment, got, x, idx, w)
                y = np.zeros_like(got.rows).reshape(-1, HIDDEN)
                for (s, t, *e), row in places.items():
                    y[row] = back_of(x[s][t], e[0] if e else env.rank)
                for weighted in (False, True):
                    check_sum(env, route, layout, weighted, y.reshape(got.rows.shape), x, idx, w)
                check_weights(route, layout, got, w[env.rank], idx[env.rank])


def check_sum(env, route, layout, weighted, y, x, idx, w):
    result = route.combine(y, weighted=weighted, out_dtype="float32").rows
    halves = route.combine_send(y, weighted=weighted).recv(out_dtype="float32").rows
    assert halves.tobytes() == result.tobytes()
    mine, choices, weights = x[env.rank], idx[env.rank], w[env.rank]
    for t in range(len(mine)):
        want = reference.combine(
            layout,
            env.ranks,
            EXPERTS,
            choices[t].tolist(),
            weights[t],
            weighted,
            lambda key: back_of(mine[t], key).astype(np.float32),
        )
        want = np.zeros(HIDDEN, np.float32) if want is None else want
        if weighted:  # the reference rounds twice where fma does once
            assert np.allclose(result[t], want, rtol=1e-6, atol=1e-7)
        else:
            assert (result[t] == want).all()


def check_weights(route, layout, got, weights, choices):
    """Weights that are sent back as they came reach the choice they belong to."""
    brought = route.combine(
        got.rows.astype(np.float32) if got.rows.dtype != np.float32 else got.rows, weights=got.topk_weights
    )
    assert (brought.weights == np.where(choices >= 0, weights, 0)).all()


@each(layout=("rank", "expert", "slots"), mode=("throughput", "latency"), view=(False, True))
def test_exchange(layout, mode, view):
    on_ranks(4, exchange, layout, mode, view, "float32", 1)


@each(ranks=(1, 2, 3))
def test_exchange_of_bfloat16(ranks):
    on_ranks(ranks, exchange_bfloat16)


def exchange_bfloat16(env):
    x, idx, w = inputs(env, 3, ml_dtypes.bfloat16)
    with env.group(experts=EXPERTS, max_tokens=M, max_topk=TOPK) as g:
        route = g.route(idx[env.rank].astype(np.int32), w[env.rank])
        got = route.dispatch(x[env.rank])
        check_rows(env, "rank", "throughput", 1, got, x, idx, w)
        bias = x[env.rank] * np.float32(2)
        result = route.combine(got.rows, bias=(x[env.rank], bias.astype(ml_dtypes.bfloat16))).rows
        for t, row in enumerate(x[env.rank].astype(np.float32)):
            homes = {reference._home(e, env.ranks, EXPERTS) for e in idx[env.rank][t] if e >= 0}
            total = row + (row * 2).astype(ml_dtypes.bfloat16).astype(np.float32)
            for _ in homes:
                total = total + row
            assert result[t].tobytes() == total.astype(ml_dtypes.bfloat16).tobytes()
        assert not (route.dispatch(x[env.rank], topk=False).topk_idx is not None)
        alone = g.route(idx[env.rank]).dispatch(x[env.rank])
        assert alone.topk_weights is None and alone.topk_idx.tolist() == got.topk_idx.tolist()


@each(cast=("e4m3", "e4m3_pow2", "e4m3_ue8m0"), layout=("rank", "slots"))
def test_cast(cast, layout):
    on_ranks(2, casts, cast, layout)


def casts(env, cast, layout):
    x, idx, w = inputs(env, 4, ml_dtypes.bfloat16)
    with env.group(experts=EXPERTS, max_tokens=M, max_topk=TOPK, layouts=layout) as g:
        route = g.route(idx[env.rank], layout=layout)
        got = route.dispatch(x[env.rank], cast=cast)
        assert got.rows.dtype == ml_dtypes.float8_e4m3fn
        rows, scales = got.rows.reshape(-1, HIDDEN), got.scales.reshape(-1, got.scales.shape[-1])
        once, by_expert = reference.arrivals(env.rank, env.ranks, EXPERTS, idx)
        where = [range(len(once))] if layout == "rank" else blocks(layout, "throughput", 1, env.ranks, by_expert)
        checked = 0
        for at, arrived in zip(where, [once] if layout == "rank" else by_expert):
            for row, (s, t) in zip(at, arrived):
                scale = reference.e4m3_scale(x[s][t].astype(np.float32)[None], cast != "e4m3")[0]
                factor = (
                    np.float32(1) / scale
                    if cast != "e4m3"
                    else np.float32(448)
                    / (np.maximum(np.abs(x[s][t].astype(np.float32)).reshape(-1, 128).max(-1), np.float32(1e-4)))
                )
                q = (x[s][t].astype(np.float32).reshape(-1, 128) * factor[:, None]).astype(ml_dtypes.float8_e4m3fn)
                assert rows[row].tobytes() == q.tobytes()
                if cast == "e4m3_ue8m0":
                    exponents = scales[row].view(np.uint8)[: len(scale)]
                    assert exponents.tolist() == (scale.view(np.uint32) >> 23).tolist()
                else:
                    assert scales[row].tolist() == scale.tolist()
                checked += 1
        assert checked > 0


def test_scales_are_carried():
    on_ranks(2, carried_scales)


def carried_scales(env):
    x, idx, _ = inputs(env, 5, ml_dtypes.float8_e4m3fn)
    scales = [np.arange(len(r) * 2, dtype=np.float32).reshape(2, -1).T + 100 * i for i, r in enumerate(x)]
    with env.group(experts=EXPERTS, max_tokens=M, max_topk=TOPK) as g:
        out = np.zeros((2, env.ranks * M), np.float32).T  # column-major
        route = g.route(idx[env.rank])
        got = route.dispatch(x[env.rank], scales=scales[env.rank], out_scales=out)
        once, _ = reference.arrivals(env.rank, env.ranks, EXPERTS, idx)
        assert got.scales is out and len(once) == route.rows
        for row, (s, t) in enumerate(once):
            assert got.rows[row].tobytes() == x[s][t].tobytes() and out[row].tolist() == scales[s][t].tolist()


def test_halves_and_streams():
    on_ranks(2, halves)


def halves(env):
    x, idx, w = inputs(env, 6, np.float32)
    mine = x[env.rank]
    config = dict(experts=EXPERTS, max_tokens=M, max_topk=TOPK, dtype="float32", layouts="slots")
    with env.group(**config) as g:
        first, second = (g.route(idx[env.rank], w[env.rank], layout="slots", mode="latency") for _ in range(2))
        a, b = first.dispatch_send(mine, view=True), second.dispatch_send(mine * 2, view=True)
        one = first.combine(a.recv().rows, weighted=True).rows
        two = second.combine(b.recv().rows, weighted=True).rows
        want = mine * np.where(idx[env.rank] >= 0, w[env.rank], 0).sum(1, keepdims=True)
        assert np.allclose(one, want, rtol=1e-5, atol=1e-6) and np.allclose(two, 2 * want, rtol=1e-5, atol=1e-6)
        order = []
        with g.stream() as stream, g.stream() as other:
            got = first.dispatch(mine, stream=stream)
            stream.call(lambda: order.append(got.counts.sum()))
            result = first.combine(got.rows, weighted=True, stream=stream)
            done = stream.record()
            other.wait(done)
            other.call(lambda: order.append("after"))
            other.sync()
            assert done.done
            done.sync()
            stream.sync()
            assert stream.idle
        assert order == [first.dispatch(mine).counts.sum(), "after"]
        assert result.rows.tobytes() == one.tobytes()


def test_what_was_sent_is_kept():
    """The caller lets go of everything while the stream has yet to come to it."""
    with alone() as g, g.stream() as stream:
        route, gate = g.route(np.zeros((4, 1), np.int64)), threading.Event()
        stream.call(gate.wait)
        x, y = np.ones((4, 256), np.float16), np.ones((4, 256), np.float16)
        kept = [weakref.ref(x), weakref.ref(y)]
        route.dispatch_send(x, stream=stream)
        route.combine_send(y, stream=stream)
        del x, y
        gc.collect()
        there = [k() is not None for k in kept]
        gate.set()
        stream.sync()
        assert all(there)
        assert all(k() is None for k in kept)


def test_capacity():
    on_ranks(2, capacity)


def capacity(env):
    from harness import raises

    import ferry

    idx = np.zeros((8, 1), np.int64)
    x = np.ones((8, 256), np.float32)
    with env.group(experts=2, max_tokens=8, dtype="float32") as g:
        with raises(ferry.CapacityError, "16 rows"):
            g.route(idx, layout="expert", expert_capacity=10)
        route = g.route(idx, layout="expert", expert_capacity=10, overflow="drop")
        assert route.dropped == (0 if env.rank == 0 else 6)
        got = route.dispatch(x)
        y = route.combine(got.rows).rows
        assert y[:, 0].tolist() == ([1] * 8 if env.rank == 0 else [1] * 2 + [0] * 6)
