"""The symmetric heap, over ranks as processes."""

import numpy as np
from harness import on_ranks, raises

import ferry


def test_heap():
    on_ranks(3, heap)


def heap(env):
    right, left = (env.rank + 1) % env.ranks, (env.rank - 1) % env.ranks
    with env.group(heap_bytes=1 << 16) as g:
        data, words = g.heap.alloc((4, 8)), g.heap.alloc(4, "int64")
        data[:], words[:] = env.rank, 0
        g.barrier()
        g.heap.put(data[1], np.full(8, 10 + env.rank, np.float32), right)
        g.heap.put_signal(data[2], np.full(8, 20 + env.rank, np.float32), words[:1], 7, right)
        g.heap.wait_until(words[:1], "==", 7)
        assert (data[2] == 20 + left).all()
        g.heap.quiet()
        g.barrier()
        assert (data[1] == 10 + left).all() and (data[0] == env.rank).all()
        back = np.zeros(8, np.float32)
        g.heap.get(back, data[0], left)
        assert (back == left).all() and (g.heap.peer(data, left)[0] == left).all()
        g.heap.fetch_add(words[1:2], env.rank + 1, 0)
        g.heap.fence()
        if env.rank == 0:
            g.heap.wait_until(words[1:2], ">=", 6, timeout=30)
            assert g.heap.compare_swap(words[1:2], 6, 60, 0) == 6 and words[1] == 60
            with raises(ferry.DeadlineError, "60"):
                g.heap.wait_until(words[1:2], "==", 61, timeout=0.05)
        g.barrier()
        offset = g.heap.offset(words[1:])
        assert (g.allgather(np.array([offset])) == offset).all() and offset == g.heap.offset(words) + 8
        again = g.heap.at(offset, 3, "int64")
        assert again.ctypes.data == words[1:].ctypes.data and again.shape == (3,) and again.dtype == words.dtype
        refusals(g, data, words)
        g.heap.free(data)
        with raises(ferry.InvalidError, "not the start of a heap allocation"):
            g.heap.free(words[1:])
        g.heap.free(words)


def refusals(g, data, words):
    with raises(ferry.NoMemoryError, "heap"):
        g.heap.alloc(1 << 20)
    with raises(ferry.InvalidError, "do not fit"):
        g.heap.put(data[1], np.zeros(9, np.float32), 0)
    with raises(ferry.InvalidError, ""):
        g.heap.put(np.zeros(8, np.float32), np.zeros(8, np.float32), 0)
    with raises(ferry.InvalidError, "a word is"):
        g.heap.fetch_add(words, 1, 0)
    with raises(ferry.InvalidError, "compare is"):
        g.heap.wait_until(words[:1], "=", 1)
    with raises(ferry.InvalidError, "rank 9"):
        g.heap.peer(data, 9)
    with raises(ferry.InvalidError, "not in the heap"):
        g.heap.offset(np.zeros(8, np.float32))
    for offset in (-8, (1 << 16) - 24, 1 << 16):
        with raises(ferry.InvalidError, f"32 bytes at offset {offset} are not in the heap"):
            g.heap.at(offset, 8)
