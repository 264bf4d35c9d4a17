"""Groups: how ranks meet, what is said when something is wrong, who may wait for whom."""

import gc
import queue
import socket
import tempfile
import threading
import time
import weakref
from pathlib import Path

import numpy as np
from harness import alone, each, on_ranks, raises

import ferry


def test_ranks_as_threads():
    """Every blocking call lets the other Python threads run: here they are the other ranks."""
    uid, sums = ferry.unique_id(), {}

    def run(rank):
        with ferry.Group(
            unique_id=uid,
            rank=rank,
            ranks=3,
            experts=3,
            hidden=64,
            max_tokens=4,
            max_topk=1,
            dtype="float32",
            timeout=30,
        ) as g:
            for _ in range(5):
                g.barrier()
            route = g.route(np.full((2, 1), (rank + 1) % 3))
            got = route.dispatch(np.full((2, 64), rank, np.float32))
            sums[rank] = (got.rows[:, 0].tolist(), route.combine(got.rows).rows[:, 0].tolist())
            g.barrier()

    threads = [threading.Thread(target=run, args=(r,)) for r in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sums == {r: ([(r + 2) % 3] * 2, [r] * 2) for r in range(3)}


def test_allgather_of_the_callers():
    """Ranks that meet through a function of the caller's, here of threads."""
    meeting, parts, seen = threading.Barrier(2), {}, []

    def gather(rank, data):
        meeting.wait()
        parts[rank] = data
        meeting.wait()
        return [parts[r] for r in range(2)]

    def run(rank):
        config = dict(experts=2, hidden=64, max_tokens=1, timeout=30)
        with ferry.Group(allgather=lambda d: gather(rank, d), rank=rank, ranks=2, **config) as g:
            seen.append(g.allgather(np.array([rank])).tolist())

    threads = [threading.Thread(target=run, args=(r,)) for r in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert seen == [[[0], [1]]] * 2


def test_an_allgather_that_raises_is_the_cause():
    def gather(data):
        raise KeyError("the store is gone")

    try:
        ferry.Group(allgather=gather, rank=0, ranks=2, experts=2, hidden=64, max_tokens=1, timeout=5)
    except ferry.FerryError as error:
        assert isinstance(error.__cause__, KeyError)
    else:
        raise AssertionError("the group was made")


@each(
    wrong=(
        ({"hidden": 7}, "16"),
        ({"experts": 0}, "experts"),
        ({"max_topk": 65}, "max_topk"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"expert_ranks": [[0]]}, "expert_ranks has 1 entries"),
        ({"expert_ranks": [[0], [1]], "experts": 2}, "rank"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"layouts": ("rows",)}, "layout is 'rows'"),
    )
)
def test_wrong_config(wrong):
    config, text = wrong
    with raises(ferry.InvalidError, text):
        alone(**config)


def test_how_to_meet():
    config = dict(experts=2, hidden=64, max_tokens=1)
    with raises(ferry.InvalidError, "go with unique_id or allgather"):
        ferry.Group(rank=0, ranks=1, **config)
    with raises(ferry.InvalidError, "goes with rank and ranks"):
        ferry.Group(unique_id=ferry.unique_id(), **config)
    with raises(ferry.InvalidError, "3 bytes"):
        ferry.Group(unique_id=b"abc", rank=0, ranks=1, **config)
    with raises(ferry.FerryError, "id"):
        ferry.Group(unique_id=bytes(128), rank=0, ranks=1, **config)


def test_environment():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    on_ranks(2, environment, port)


def environment(env, port):
    import os

    os.environ.update(FERRY_RANK=str(env.rank), FERRY_RANKS="2", FERRY_BOOT=f"127.0.0.1:{port}")
    try:
        with ferry.Group(experts=2, hidden=64, max_tokens=1, timeout=30) as g:
            assert (g.rank, g.ranks) == (env.rank, 2)
            g.barrier()
    finally:
        for name in ("FERRY_RANK", "FERRY_RANKS", "FERRY_BOOT"):
            del os.environ[name]


def test_mismatch_is_named():
    on_ranks(2, mismatch)


def mismatch(env):
    with raises(ferry.MismatchError, "hidden"):
        env.group(hidden=256 * (env.rank + 1))


def test_a_late_rank_is_named():
    on_ranks(2, late)


def late(env):
    g = env.group(timeout=0.3)
    if env.rank == 0:
        begun = time.monotonic()
        with raises(TimeoutError, "rank 1") as _:
            g.barrier()
        assert time.monotonic() - begun < 20
        with raises(ferry.FerryError, ""):
            g.check()
        with raises(ferry.FerryError, ""):
            g.barrier()
    else:
        time.sleep(1.5)
    g.close()


def test_abort_wakes_the_others():
    on_ranks(2, abort)


def abort(env):
    g = env.group(timeout=60)
    if env.rank == 0:
        g.abort()
    with raises(ferry.AbortedError, ""):
        g.barrier()
    g.close()


def test_going_on_without_a_rank():
    on_ranks(3, lose)


def lose(env):
    g = env.group(timeout=60)
    if env.rank == 1:
        with raises(ferry.RefusedError, "go on without it"):
            g.agree()
    else:
        assert list(g.agree(mask=[1])) == [False, True, False] == list(g.masked)
        assert [int(r) for r in g.allgather(np.full(1, env.rank, np.int32))[[0, 2], 0]] == [0, 2]
    if env.rank == 1:
        assert list(g.agree()) == [False] * 3
    else:
        assert list(g.agree(unmask=[1])) == [False] * 3
    g.barrier()
    g.close()


def test_an_exception_in_with_wakes_the_others():
    on_ranks(2, failing)


def failing(env):
    with raises((ZeroDivisionError, ferry.AbortedError)[env.rank], ""):
        with env.group(timeout=60) as g:
            if env.rank == 0:
                raise ZeroDivisionError
            g.barrier()


def test_closed_things_say_so():
    g = alone()
    route, stream, event = g.route(np.zeros((1, 1), np.int64)), g.stream(), g.event()
    assert not g.closed and "rank 0 of 1" in repr(g)
    g.close()
    g.close()
    assert g.closed and "closed" in repr(g)
    for thing, what in ((g, "group"), (route, "route"), (stream, "stream"), (event, "event")):
        with raises(ferry.InvalidError, f"the {what} is closed"):
            thing._c
    with raises(ferry.InvalidError, "closed"):
        g.barrier()


def test_garbage_in_any_order():
    """A group, its routes and streams in one cycle that only the garbage collector ends."""
    for _ in range(5):
        g = alone()
        things = {"group": g, "routes": [g.route(np.zeros((1, 1), np.int64)) for _ in range(3)], "stream": g.stream()}
        things["event"], things["view"] = things["stream"].record(), things["routes"][0].combine_buffer()
        things["self"] = things
        del g, things
        gc.collect()


def test_routes_dropped_by_other_threads():
    """Threads that are not the group's drop the last reference, as autograd's do: its own one frees the route."""
    lib, freed, handed = ferry._c.lib, [], queue.Queue()
    destroy = lib.ferry_route_destroy
    lib.ferry_route_destroy = lambda route: (freed.append(threading.get_ident()), destroy(route))

    def drop():
        while handed.get() is not None:
            pass

    threads = [threading.Thread(target=drop) for _ in range(3)]
    [t.start() for t in threads]
    try:
        with alone() as g:
            idx, x = np.zeros((4, 1), np.int64), np.ones((4, 256), np.float16)
            for _ in range(1000):
                route = g.route(idx)
                assert (route.dispatch(x).rows == 1).all()
                handed.put(route)
                del route
            [handed.put(None) for _ in threads]
            [t.join() for t in threads]
            g.route(idx).close()
            assert freed == [threading.get_ident()] * 1001
    finally:
        lib.ferry_route_destroy = destroy


def test_streams_dropped_by_other_threads():
    """So with streams and events; and what a stream's calls use lives until it is empty."""
    lib, freed, names = ferry._c.lib, [], ("ferry_stream_destroy", "ferry_event_destroy")
    before = {name: getattr(lib, name) for name in names}
    for name in names:
        setattr(lib, name, lambda it, to=before[name]: (freed.append(threading.get_ident()), to(it)))
    try:
        with alone() as g:
            stream, there, go = g.stream(), [np.zeros(256, np.float32)], threading.Event()
            array, gone = weakref.ref(there[0]), []
            weakref.finalize(there[0], gone.append, 1)
            stream.call(go.wait)
            g.broadcast(there[0], stream=stream)  # which keeps the array
            there.append(stream.record())
            there.append(stream)
            del stream
            thread = threading.Thread(target=there.clear)
            thread.start()
            thread.join()
            gc.collect()
            assert not freed and array() is not None
            g.event().close()  # the stream waits: it is looked at, and left alone
            assert len(freed) == 2 and array() is not None
            go.set()
            while not gone:
                g.event().close()
            assert set(freed) == {threading.get_ident()}
    finally:
        for name in names:
            setattr(lib, name, before[name])


def test_a_half_keeps_its_stream():
    with alone() as g:
        route = g.route(np.zeros((4, 1), np.int64))
        pending = route.dispatch_send(np.ones((4, 256), np.float16), stream=g.stream())
        gc.collect()
        [g.event() for _ in range(3)]
        got = pending.recv().rows
        pending._call.on.sync()
        assert (got == 1).all()


def test_a_group_dropped_while_it_works():
    """The last handle is dropped with calls on a stream: they are carried out before the group is left."""
    g, slept = alone(), []
    stream, route = g.stream(), g.route(np.zeros((4, 1), np.int64))
    stream.call(lambda: (time.sleep(0.2), slept.append(1)))
    got = route.dispatch(np.ones((4, 256), np.float16), stream=stream).rows
    del g, stream, route
    gc.collect()
    assert slept == [1] and (got == 1).all()


def test_a_group_dropped_in_a_capture():
    """Nothing is freed during a capture; what was dropped meanwhile is, when the next group is made."""
    import ferry._held as held

    lib, left, captures = ferry._c.lib, [], [True]
    destroy, asked = lib.ferry_group_destroy, held.capturing
    lib.ferry_group_destroy = lambda group: (left.append(1), destroy(group))
    held.capturing = lambda: captures[0]
    try:
        g = alone()
        del g
        gc.collect()
        assert not left
        captures[0] = False
        alone().close()
        assert left == [1, 1]
    finally:
        lib.ferry_group_destroy, held.capturing = destroy, asked


def test_broadcast_and_allgather():
    on_ranks(3, collectives)


def collectives(env):
    with env.group() as g:
        a = np.arange(6, dtype=np.float32).reshape(2, 3) * (env.rank + 1)
        assert g.allgather(a).tolist() == [(np.arange(6).reshape(2, 3) * (r + 1)).tolist() for r in range(3)]
        g.broadcast(a, root=2)
        assert a.tolist() == (np.arange(6).reshape(2, 3) * 3).tolist()
        with raises(TypeError, "not contiguous"):
            g.broadcast(a.T)
        with raises(ferry.InvalidError, "root"):
            g.broadcast(a, root=3)


def test_agreement():
    on_ranks(3, agreed)


def agreed(env):
    """Rank 1 goes; the others go on without it, by routes made anew."""
    group = env.group(experts=3, dtype="float32", timeout=10)
    idx, x = np.array([[0, 1, 2]]), np.full((1, 256), env.rank + 1, np.float32)
    weights = np.full((1, 3), 2, np.float32)
    old = group.route(idx, weights)
    assert (old.combine(old.dispatch(x).rows).rows == 3 * x).all() and not group.masked.any()
    if env.rank == 1:
        group.close()
        return
    with raises(ferry.FerryError, "rank 1"):
        old.combine(old.dispatch(x).rows)
    assert group.agree().tolist() == [False, True, False] == group.masked.tolist()
    with raises(ferry.InvalidError, "agreement"):
        old.dispatch(x)
    old.close()
    for renormalise, weight in ((False, 2), (True, 3)):
        route = group.route(idx, weights, renormalise=renormalise)
        got = route.dispatch(x)
        assert got.counts.tolist() == [1, 0, 1] and got.topk_weights.max() == weight
        assert (route.combine(got.rows, weighted=True).rows == 2 * weight * x).all()
    with raises(ferry.InvalidError, "rank"):
        group.agree(mask=[7])
    group.close()


def test_expert_ranks():
    on_ranks(2, moved_experts)


def moved_experts(env):
    with env.group(experts=3, expert_ranks=[[1], [0, 1], [0]], dtype="float32") as g:
        assert g.local_experts(0).tolist() == [1, 2] and g.local_experts(1).tolist() == [0, 1]
        route = g.route(np.ones((4, 1), np.int64), layout="expert")
        assert route.rank_rows.tolist() == [2, 2]  # copies are chosen by turns
        with raises(ferry.InvalidError, "none of the group's 2"):
            g.local_experts(2)


def test_group_bytes():
    config = dict(experts=8, hidden=256, max_tokens=16)
    assert ferry.group_bytes(2, **{**config, "hidden": 512}) > ferry.group_bytes(2, **config) > 0
    assert ferry.group_bytes(2, heap_bytes=1 << 24, **config) >= ferry.group_bytes(2, **config) + (1 << 24)
    with raises(TypeError, "tokens: not known"):
        ferry.group_bytes(2, tokens=3, **config)


def test_counters():
    """What three ranks sent each other, and the file that Prometheus reads."""
    uid, seen = ferry.unique_id(), {}

    def run(rank):
        config = dict(experts=3, hidden=64, max_tokens=4, max_topk=1, dtype="float32", timeout=30)
        with ferry.Group(unique_id=uid, rank=rank, ranks=3, **config) as g:
            route = g.route(np.full((2, 1), (rank + 1) % 3))
            for _ in range(4):
                route.combine(route.dispatch(np.zeros((2, 64), np.float32)).rows)
            with tempfile.TemporaryDirectory() as inside:
                g.write_metrics(Path(inside, "ferry.prom"))
                seen[rank] = g.counters(), Path(inside, "ferry.prom").read_text()
            with raises(ferry.SystemCallError, "/nowhere/at/all"):
                g.write_metrics("/nowhere/at/all")
            g.barrier()

    threads = [threading.Thread(target=run, args=(r,)) for r in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert sorted(seen) == [0, 1, 2]
    for rank, (counters, text) in seen.items():
        there, back = (rank + 1) % 3, (rank + 2) % 3
        assert (counters.routes, counters.dispatches, counters.combines) == (1, 4, 4)
        assert counters.rows_sent.tolist() == [8 * (r == there) for r in range(3)]
        assert counters.bytes_sent.tolist() == [8 * 256 * (r == there) for r in range(3)]
        assert counters.rows_received.tolist() == [8 * (r == back) for r in range(3)]
        assert counters.rows_returned.tolist() == counters.rows_sent.tolist()
        assert counters.expert_rows.tolist() == [8] and not counters.rows_dropped.any()
        assert f'rank="{rank}",peer="{there}"}} 8\n' in text and "# TYPE ferry_rows_sent_total counter" in text
