"""Ranks that leave and come: a new process in a lost rank's place, and experts that move."""

import os
import signal
import threading
import time

import numpy as np
from harness import alone, draw, on_ranks, raises

import ferry

RANKS, PLACE, SPARE = 3, 1, 3  # of the group; who goes; the harness's process that takes its place
EXPERTS, TOKENS, COLUMNS = 6, 8, 64
CONFIG = dict(experts=EXPERTS, hidden=COLUMNS, max_tokens=TOKENS, max_topk=2, dtype="float32", threads=1, timeout=20)
MOVED = [[2], [0], [1], [0], [2], [1]]  # another map, and from behind one more


def made(rank, uid, **config):
    return ferry.Group(unique_id=uid, rank=rank, ranks=RANKS, **{**CONFIG, "heap_bytes": 1 << 16, **config})


def joined(uid, **config):
    return ferry.Group.join(uid, PLACE, RANKS, **{**CONFIG, "heap_bytes": 1 << 16, **config})


def inputs(rank):
    """Small integers, and weights in eighths: every sum is exact."""
    x, idx, weights = draw(3, rank, TOKENS, 2, EXPERTS, COLUMNS)
    return np.rint(4 * x), idx, np.rint(8 * weights) / 8


def step(g):
    """A dispatch and a combine, against what those who are there give: expert e multiplies a row by e + 1."""
    x, idx, weights = inputs(g.rank)
    with g.route(idx, weights, layout="expert") as route:
        got = route.dispatch(x)
        y = np.empty_like(got.rows)
        for e, first, n in zip(g.local_experts(), route.expert_start, route.expert_rows):
            there = [(r, t) for r in range(RANKS) if not g.masked[r] for t in range(TOKENS) if e in inputs(r)[1][t]]
            block = got.rows[first : first + n]
            assert got.source[first : first + n].tolist() == [r * TOKENS + t for r, t in there]
            assert block.tolist() == [inputs(r)[0][t].tolist() for r, t in there]
            y[first : first + n] = block * (e + 1)
        served = {e for r in range(RANKS) if not g.masked[r] for e in g.local_experts(r).tolist()}
        factors = np.where(np.isin(idx, list(served)), weights * (idx + 1), 0).sum(1)
        assert (route.combine(y, weighted=True).rows == x * factors[:, None]).all()


def homes(g):
    """[[rank] of each expert], by what the group says."""
    found = {e: [r] for r in range(g.ranks) for e in g.local_experts(r).tolist()}
    return [found[e] for e in range(g.experts)]


def on_threads(function, *arguments):
    """function(rank, uid, a second id, *arguments) on the group's ranks as threads; what one raised is raised here."""
    ids, errors = (ferry.unique_id(), ferry.unique_id()), []

    def run(rank):
        try:
            function(rank, *ids, *arguments)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(r,)) for r in range(RANKS)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    if errors:
        raise errors[0]


def allocated(g):
    """An array in the heap behind a hole, so that the allocations are no mere sequence."""
    hole, data = g.heap.alloc(100), g.heap.alloc((4, 8))
    data[:] = 10 + g.rank
    g.heap.free(hole)
    return data


def whole(g, data=None):
    """All are there again, at the same offsets; data: of a rank that stayed."""
    at = np.array([0 if data is None else g.heap.offset(data)])
    g.broadcast(at)
    same = g.heap.at(int(at[0]), (4, 8))
    if data is not None:
        assert same.ctypes.data == data.ctypes.data and (data == 10 + g.rank).all()
    g.barrier()
    g.heap.put(same[1], np.full(8, 20 + g.rank, np.float32), (g.rank + 1) % RANKS)
    g.barrier()
    assert (same[1] == 20 + (g.rank - 1) % RANKS).all()
    more = g.heap.alloc(1000)
    offsets = g.allgather(np.array([g.heap.offset(more)]))
    assert (offsets == offsets[0]).all() and offsets[0] != at
    g.heap.free(same)
    step(g)
    g.barrier()


def test_a_rank_leaves_and_another_takes_its_place():
    on_ranks(4, leaves)


def leaves(env):
    """It keeps its group open until the end: its word is enough. The map is another one afterwards."""
    everybody = env.group()
    ids = np.frombuffer(ferry.unique_id() + ferry.unique_id(), np.uint8).copy()  # rank 0's count
    everybody.broadcast(ids)
    first, second = ids.tobytes()[:128], ids.tobytes()[128:]
    if env.rank == SPARE:
        g = joined(second, expert_ranks=MOVED)
        assert g.rank == PLACE and homes(g) == MOVED and not g.masked.any()
        whole(g)
    else:
        g = made(env.rank, first)
        data, old = allocated(g), g.route(inputs(env.rank)[1])
        step(g)
        g.barrier()
        if env.rank == PLACE:
            g.leave()
            with raises(ferry.AbortedError, ""):
                g.barrier()
        else:
            assert not g.reconfigure(second, expert_ranks=MOVED).any()
            with raises(ferry.InvalidError, "agreement"):
                old.dispatch(inputs(env.rank)[0])
            assert homes(g) == MOVED
            whole(g, data)
    everybody.barrier()
    g.close()
    everybody.close()


def test_a_rank_dies_and_another_takes_its_place():
    on_ranks(4, dies, ferry.unique_id(), dies=PLACE)


def dies(env, second):
    if env.rank == SPARE:
        g = joined(second)
        whole(g)
    else:
        g = made(env.rank, env.uid, timeout=3)
        data = allocated(g)
        step(g)
        g.barrier()
        if env.rank == PLACE:
            os.kill(os.getpid(), signal.SIGKILL)
        with raises(ferry.FerryError, "rank"):
            step(g)
        assert g.agree().tolist() == [r == PLACE for r in range(RANKS)]
        step(g)
        assert not g.reconfigure(second).any()
        whole(g, data)
    g.close()


def test_experts_move():
    on_ranks(3, move)


def move(env):
    with made(env.rank, env.uid) as g:
        data = allocated(g)
        for new in (None, MOVED, None, MOVED[::-1]):
            before = homes(g)
            assert not g.reconfigure(expert_ranks=new).any()
            assert homes(g) == (new or before)
            step(g)
        assert (data == 10 + env.rank).all()
        for wrong, text in (
            ({"expert_ranks": [[0]]}, "expert_ranks has 1 entries, one for each of 6"),
            ({"expert_ranks": [[0, 1]] + MOVED[1:]}, "room for no more"),
            ({"expert_ranks": [[0]] * 6}, "room for no more"),
            ({"expert_ranks": [[3]] + MOVED[1:]}, "expert_rank[0] is 3 (expert 0), ranks are 0..2"),
            ({"unique_id": b"abc"}, "unique_id has 3 bytes, not 128"),
            ({"mask": [3]}, "ferry_group_mask_set: rank is 3, ranks are 0 to 2"),
            ({"mask": [env.rank]}, f"rank {env.rank} is this one"),
        ):
            with raises(ferry.InvalidError, text):
                g.reconfigure(**wrong)
        step(g)  # as it was
        with raises(ferry.MismatchError, "the map of experts differs on rank"):
            g.reconfigure(expert_ranks=(MOVED, MOVED[::-1])[env.rank % 2])
        assert not g.agree().any() and homes(g) == MOVED[::-1]
        step(g)


def test_a_place_that_stays_empty():
    """It is waited for until the deadline, or not at all, and the group goes on without it; who comes later finds nobody."""
    over = threading.Barrier(RANKS)

    def run(rank, first, second, mask):
        with made(rank, first, timeout=30 if mask else 2) as g:
            g.barrier()
            if rank == PLACE:
                g.leave()
            else:
                begun = time.monotonic()
                assert g.reconfigure(second, mask=mask).tolist() == [r == PLACE for r in range(RANKS)]
                took = time.monotonic() - begun
                assert took < 15 if mask else took > 1
                step(g)
                g.barrier()
        over.wait(30)
        if rank == PLACE:
            with raises(ferry.SystemCallError, "refused"):
                joined(second, timeout=0.5)

    on_threads(run, [])
    on_threads(run, [PLACE])


def test_a_masked_rank_comes_back():
    def run(rank, first, second):
        with made(rank, first) as g:
            if rank == PLACE:
                with raises(ferry.RefusedError, "go on without it"):
                    g.agree()
            else:
                assert g.agree(mask=[PLACE])[PLACE]
            assert not g.reconfigure(second).any()
            step(g)
            g.barrier()

    on_threads(run)


def test_a_newcomer_with_another_config():
    def run(rank, first, second):
        g = made(rank, first)
        g.barrier()
        if rank == PLACE:
            g.leave()
            with raises(ferry.MismatchError, "hidden"):
                joined(second, hidden=2 * COLUMNS)
            return
        with raises(ferry.MismatchError, "hidden"):
            g.reconfigure(second)
        assert g.agree().tolist() == [r == PLACE for r in range(RANKS)]
        step(g)
        g.close()

    on_threads(run)


def test_joining_wrongly():
    for arguments, config, text in (
        ((b"abc", 0, 1), {}, "unique_id has 3 bytes, not 128"),
        ((ferry.unique_id(), 3, 3), {}, "rank"),
        ((ferry.unique_id(), 0, 1), {"hidden": 7}, "16"),
        ((ferry.unique_id(), 0, 1), {"allgather": list}, "one of them"),
        ((ferry.unique_id(), 0, 1), {}, "no rank of a group has come that newcomers could join"),
    ):
        with raises(ferry.InvalidError, text):
            ferry.Group.join(*arguments, **{**CONFIG, **config})


def test_who_has_left_wakes_nobody():
    """An exception in `with` aborts the group, but not that of the others when the rank has left it before."""

    def run(rank, first, _):
        try:
            with made(rank, first) as g:
                g.barrier()
                if rank == PLACE:
                    g.leave()
                    raise ZeroDivisionError
                assert g.agree().tolist() == [r == PLACE for r in range(RANKS)]
                step(g)
                g.barrier()
        except ZeroDivisionError:
            assert rank == PLACE

    on_threads(run)


def test_closed():
    g = alone()
    g.close()
    for call in (g.leave, g.reconfigure):
        with raises(ferry.InvalidError, "the group is closed"):
            call()
