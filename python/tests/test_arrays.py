"""Arrays in and out: dtypes, strides, DLPack, what is refused."""

import ctypes
import gc
import inspect

import ml_dtypes
import numpy as np
from harness import alone, each, raises, skip

import ferry
from ferry import _array, _c


class Producer:
    """An array of another library: it speaks DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@each(dtype=("bfloat16", "float16", "float32", "float8_e4m3fn", "int32", "int64", "bytes"), view=(False, True))
def test_rows_of_every_dtype_are_carried(dtype, view):
    kind = _array.NUMPY.dtype(_array.DTYPES[dtype])
    with alone(experts=2, max_topk=1, dtype="float32") as g:
        x = np.random.default_rng(1).integers(0, 255, (3, 16 * kind.itemsize), dtype=np.uint8).view(kind)
        got = g.route(np.zeros((3, 1), np.int32)).dispatch(x, view=view)
        assert got.rows.dtype == kind and got.rows.tobytes() == x.tobytes()
        assert got.scales is None and got.topk_weights is None


def test_a_view_is_the_librarys_memory():
    with alone() as g:
        idx, x = np.arange(4).reshape(4, 1), np.ones((4, 256), np.float16)
        route = g.route(idx)
        first = route.dispatch(x, view=True)
        route.dispatch(x * 2, view=True)
        assert (first.rows == 1).all()
        third = route.dispatch(x * 3, view=True)  # the two halves of the buffer alternate
        assert np.shares_memory(first.rows, third.rows) and (first.rows == 3).all()
        own = route.dispatch(x * 4)
        for later in (5, 6):
            route.dispatch(x * later)
        assert (own.rows == 4).all() and not np.shares_memory(own.rows, first.rows)


@each(layout=("rank", "expert", "slots"))
def test_tables_outlive_their_route(layout):
    with alone(layouts=(layout,)) as g:
        idx, x = np.arange(4).reshape(4, 1), np.ones((4, 256), np.float16)
        route = g.route(idx, layout=layout)
        got, own = route.dispatch(x, view=True), route.dispatch(x)
        route.close()
        others = [g.route(np.full((4, 1), 7), layout=layout) for _ in range(8)]  # takes the memory that was freed
        for mine, want in ((got.counts, own.counts), (got.starts, own.starts)):
            assert mine.flags.owndata and (mine == want).all()
        del others


def test_strides_are_honoured():
    with alone(experts=4) as g:
        wide = np.arange(5 * 512, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(5, 512)
        idx = np.arange(10).reshape(2, 5).T % 4
        weights = np.ones((2, 10), np.float32).T[::2]
        got = g.route(idx, weights).dispatch(wide[:, 128:384])
        assert got.rows.tobytes() == wide[:, 128:384].tobytes()
        assert (got.topk_idx == idx).all() and (got.topk_weights == 1).all()


def test_a_broadcast_array_is_not_read_as_contiguous():
    with alone() as g:
        got = g.route(np.broadcast_to(np.int64(3), (4, 2)), np.broadcast_to(np.float32(0.5), (4, 2)))
        assert got.expert_rows.tolist() == [0, 0, 0, 4, 0, 0, 0, 0]


def test_wrong_arrays_are_refused():
    with alone() as g:
        route = g.route(np.zeros((2, 1), np.int64))
        with raises(TypeError, "x: list is no array"):
            route.dispatch([1, 2])
        with raises(TypeError, "x: dtype float64 is none of"):
            route.dispatch(np.zeros((2, 256)))
        with raises(ferry.InvalidError, "contiguous"):
            route.dispatch(np.zeros((256, 2), np.float16).T)
        with raises(ferry.InvalidError, "has 3 rows"):
            route.dispatch(np.zeros((3, 256), np.float16))
        with raises(TypeError, "byte order"):
            route.dispatch(np.zeros((2, 256), ">f2"))
        with raises(ValueError, "layout is 'row'"):
            g.route(np.zeros((2, 1), np.int64), layout="row")
        with raises(ferry.InvalidError, "cast is 'fp8'"):
            route.dispatch(np.zeros((2, 256), ml_dtypes.bfloat16), cast="fp8")
        assert route.dispatch(np.zeros((2, 256), np.float16)).rows.shape == (2, 256)


def test_dlpack_in():
    with alone() as g:
        idx, x = np.arange(4).reshape(4, 1), np.arange(1024, dtype=np.float16).reshape(4, 256)
        route = g.route(Producer(idx))
        got = route.dispatch(Producer(x))
        assert got.rows.tobytes() == x.tobytes() and isinstance(got.rows, np.ndarray)
        assert route.combine(Producer(got.rows)).rows.tobytes() == x.tobytes()


def test_dlpack_out():
    if not hasattr(np, "from_dlpack"):
        skip("this NumPy has no from_dlpack")
    g = alone()
    t = _c.Tensor()
    buffer = (ctypes.c_float * 6)(*range(6))
    t.data, t.dtype, t.ndim = ctypes.addressof(buffer), _c.FP32, 2
    t.shape[:2] = (2, 3)
    memory = ferry.Memory(buffer, t, (1, 0))
    taken = np.from_dlpack(memory)
    assert taken.tolist() == [[0, 1, 2], [3, 4, 5]]
    buffer[4] = 40
    assert taken[1, 1] == 40
    del memory, buffer
    gc.collect()
    assert taken.sum() == 51  # its owner lives as long as the consumer
    from ferry import _dlpack

    del taken
    gc.collect()
    assert not _dlpack._alive
    unused = ferry.Memory(None, t, (1, 0)).__dlpack__()
    assert len(_dlpack._alive) == 1
    del unused
    assert not _dlpack._alive
    g.close()


def test_an_array_outlives_its_group():
    g = alone()
    route = g.route(np.zeros((4, 1), np.int64))
    x = np.arange(1024, dtype=np.float16).reshape(4, 256)
    rows = route.dispatch(x, view=True).rows
    g.close()
    del g, route
    gc.collect()
    assert (rows == x).all()


def test_out_is_written():
    with alone(heap_bytes=1 << 16) as g:
        route = g.route(np.zeros((4, 1), np.int64))
        x = np.arange(1024, dtype=np.float16).reshape(4, 256)
        out = np.zeros((6, 256), np.float16)
        assert route.dispatch(x, out=out).rows is out and (out[:4] == x).all() and not out[4:].any()
        place = g.heap.alloc((4, 256), "float16")
        assert route.dispatch(x, out=place).rows is place and (place == x).all()
        y = np.zeros((4, 256), np.float32)
        assert route.combine(place, out=y).rows is y and (y == x).all()
        assert route.combine(place, out_dtype="float32").rows.dtype == np.float32
        buffer = route.combine_buffer(dtype="float16")
        buffer[:] = x * 2
        assert (route.combine(buffer).rows == x * 2).all()


def test_an_output_that_cannot_be_written_is_refused():
    with alone(heap_bytes=1 << 16) as g:
        route, x = g.route(np.zeros((4, 1), np.int64)), np.ones((4, 256), np.float16)
        fixed = np.zeros((4, 256), np.float16)
        fixed.flags.writeable = False
        one_row, one = np.zeros(256, np.float16), np.zeros((), np.float16)
        with raises(TypeError, "out (rows): the array is read-only"):
            route.dispatch(x, out=fixed)
        with raises(TypeError, "out: the array is read-only"):
            route.combine(x, out=fixed)
        for base in (one_row, one):
            # as_strided, since broadcast_to is read-only already
            wide = np.lib.stride_tricks.as_strided(base, (4, 256), np.broadcast_to(base, (4, 256)).strides)
            with raises(TypeError, "out (rows): the array is broadcast"):
                route.dispatch(x, out=wide)
            with raises(TypeError, "out: the array is broadcast"):
                route.combine(x, out=wide)
        place = g.heap.alloc(256, "float16")
        with raises(TypeError, "target: the array is broadcast"):
            g.heap.get(np.lib.stride_tricks.as_strided(one, (256,), (0,)), place, 0)
        assert not fixed.any() and not one_row.any() and not one.any()
        fixed.setflags(write=True)
        route.dispatch(np.broadcast_to(np.float16(2), (4, 256)), out=fixed)  # an input may be
        assert (fixed == 2).all()


def test_everything_public_is_documented():
    for name in ferry.__all__:
        thing = getattr(ferry, name)
        if inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing):
            assert inspect.getdoc(thing), name
    for kind in (ferry.Group, ferry.Route, ferry.Stream, ferry.Heap):
        for name, member in vars(kind).items():
            public = not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
            # Group.stream, .event and the closed property say all in their names and types
            if public and name not in ("event", "closed", "close"):
                assert inspect.getdoc(member), f"{kind.__name__}.{name}"
