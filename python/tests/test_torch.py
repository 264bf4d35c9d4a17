"""PyTorch tensors: in place, on the current stream; gradients; groups from torch.distributed."""

import subprocess
import sys
import weakref
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from harness import DEVICE, alone, draw, each, on_ranks, raises, torch_or_skip

import ferry

EXPERTS, HIDDEN, TOPK, M = 6, 128, 2, 10


def tensors(env, seed=1, dtype="float32"):
    import torch

    drawn = draw(seed, env.rank, (M, 0, 4, 7)[env.rank % 4], TOPK, EXPERTS, HIDDEN)
    x, idx, w = (torch.from_numpy(d).to(DEVICE) for d in drawn)
    return x.to(getattr(torch, dtype)), idx, w


def group_of(env, dtype="float32", **config):
    config = dict(experts=EXPERTS, hidden=HIDDEN, max_tokens=M, max_topk=TOPK, device=DEVICE, dtype=dtype, **config)
    return env.group(**config)


@each(
    layout=("rank", "expert", "slots"),
    mode=("throughput", "latency"),
    dtype=("bfloat16", "float32"),
    view=(False, True),
)
def test_exchange(layout, mode, dtype, view):
    torch_or_skip()
    on_ranks(4, exchange, layout, mode, dtype, view)


def exchange(env, layout, mode, dtype, view):
    import torch

    x, idx, w = tensors(env, dtype=dtype)
    with group_of(env, dtype=dtype, layouts=(layout,)) as g:
        route = g.route(idx, w, layout=layout, mode=mode)
        got = route.dispatch(x, view=view)
        assert got.rows.dtype == x.dtype and got.rows.device == x.device and got.counts.dtype == torch.int32
        y = route.combine(got.rows).rows
        rank_of = torch.tensor([_home(e, env.ranks) for e in range(EXPERTS)] + [-1], device=idx.device)[idx]
        key = rank_of if layout == "rank" else idx
        times = torch.tensor([len({k for k in row if k >= 0}) for row in key.tolist()], device=idx.device).reshape(
            -1, 1
        )
        # multiples of up to 2 are exact in any float type
        assert torch.equal(y, (x.float() * times).to(x.dtype))


def _home(expert, ranks):
    return next(r for r in range(ranks) if r * EXPERTS // ranks <= expert < (r + 1) * EXPERTS // ranks)


def test_memory_is_shared():
    torch_or_skip()
    on_ranks(1, shared)


def shared(env):
    import torch

    x = torch.randn(4, HIDDEN, device=DEVICE)
    with group_of(env, heap_bytes=1 << 16) as g:
        route = g.route(torch.zeros(4, 1, dtype=torch.int32, device=DEVICE))
        view = route.dispatch(x, view=True).rows
        again = route.dispatch(x * 2, view=True).rows
        route.dispatch(x * 3, out=view, view=True)  # views lie in the heap: written in place
        assert torch.equal(view, x * 3) and torch.equal(again, x * 2)
        buffer = route.combine_buffer(dtype=torch.float32, like=x)
        buffer.copy_(x)
        assert torch.equal(route.combine(buffer).rows, x)
        out = torch.zeros(4, HIDDEN, device=DEVICE)
        assert route.combine(buffer * 2, out=out).rows is out and torch.equal(out, x * 2)
        strided = torch.randn(HIDDEN, 4, device=DEVICE).t()
        with raises(ferry.InvalidError, "contiguous"):
            route.dispatch(strided)
        with raises(TypeError, "dtype torch.float64"):
            route.dispatch(x.double())
        if DEVICE == "cuda":
            with raises(TypeError, "the group is on a GPU, the tensor on cpu"):
                route.dispatch(x.cpu())


def test_a_tensor_of_another_gpu_is_refused():
    torch = torch_or_skip()

    class OnGpu(torch.Tensor):
        """What describe asks a tensor on cuda:1 for."""

        is_cuda, device = True, torch.device("cuda:1")

    with raises(TypeError, "x: the group is on cuda:0, the tensor on cuda:1"):
        ferry._array.describe(torch.zeros(4).as_subclass(OnGpu), (2, 0), "x", [])
    ferry._array.describe(torch.zeros(4).as_subclass(OnGpu), (2, 1), "x", [])


def test_what_a_wrapped_stream_keeps():
    """Stand-ins for what there is on a GPU only."""
    torch = torch_or_skip()
    lib, recorded, current = ferry._c.lib, [], SimpleNamespace(cuda_stream=64)

    class OnGpu(torch.Tensor):
        is_cuda = True

        def record_stream(self, stream):
            recorded.append(stream)

    class Native:
        cuda_stream = 4096

    with ExitStack() as undo, alone() as g:
        for thing, name, instead in (
            (lib, "ferry_stream_wrap", lambda group, native, stream: lib.ferry_stream_create(group, stream)),
            (torch.cuda, "current_stream", lambda device: current),
            (torch.cuda, "ExternalStream", lambda native, device: (native, device)),
        ):
            undo.callback(setattr, thing, name, getattr(thing, name))
            setattr(thing, name, instead)
        native, on_gpu, pinned = Native(), torch.zeros(4).as_subclass(OnGpu), torch.zeros(4)
        alive = [weakref.ref(native), weakref.ref(pinned), weakref.ref(on_gpu)]
        stream = g.stream(native)
        stream._hold([pinned, on_gpu])
        assert recorded == [(4096, 0)]
        del native, pinned, on_gpu
        assert [a() is not None for a in alive] == [True, True, False]
        current.cuda_stream = 4096
        stream._hold([torch.zeros(4).as_subclass(OnGpu)])
        assert recorded == [(4096, 0)]  # of the stream that is current already
        stream.sync()
        assert alive[1]() is None


@each(cast=("e4m3", "e4m3_ue8m0"))
def test_cast(cast):
    torch_or_skip()
    on_ranks(2, casts, cast)


def casts(env, cast):
    import torch

    x, idx, _ = tensors(env, dtype="bfloat16")
    with group_of(env, dtype="bfloat16") as g:
        got = g.route(idx).dispatch(x, cast=cast)
        # PyTorch before 2.1 has no float8; the bytes are the same
        assert got.rows.dtype == getattr(torch, "float8_e4m3fn", torch.uint8)
        bytes_ = got.rows.view(torch.uint8).cpu().numpy()
        values = _e4m3(bytes_)
        scales = got.scales.cpu()
        scales = scales.numpy() if cast == "e4m3" else np.ldexp(1.0, (scales.numpy() & 255) - 127)
        all_x = [draw(1, r, (M, 0)[r], TOPK, EXPERTS, HIDDEN)[0] for r in range(env.ranks)]
        for value, scale, source in zip(values, scales, got.source.tolist()):
            want = torch.from_numpy(all_x[source // M][source % M]).bfloat16().float().numpy()
            assert np.abs(value * scale[0] - want).max() <= scale[0] * 448 / 16


def _e4m3(bits):
    sign, exponent, fraction = bits >> 7, (bits >> 3) & 15, bits & 7
    value = np.where(
        exponent == 0, np.ldexp(fraction / 8.0, -6), np.ldexp(1 + fraction / 8.0, exponent.astype(int) - 7)
    )
    return np.where(sign == 1, -value, value)


@each(layout=("rank", "expert", "slots"), mode=("throughput", "latency"))
def test_gradients(layout, mode):
    torch_or_skip()
    on_ranks(2, gradients, layout, mode)


def gradients(env, layout, mode):
    """Against the same function without Ferry: rank or expert k scales by k + 1, weights as the layout has them."""
    import torch

    import ferry.torch as ft

    x, idx, w = tensors(env)
    x.requires_grad_(), w.requires_grad_()
    one = torch.ones(HIDDEN, device=DEVICE, requires_grad=True)  # its gradient is a sum over all rows
    with group_of(env, layouts=(layout,)) as g:
        with nan_when_empty():
            rows, weights, route = ft.dispatch(g, x, idx, w, layout=layout, mode=mode)
        rows = rows * one
        if layout == "rank":
            y = ft.combine(rows * (env.rank + 1) * weights.sum(1, keepdim=True), route)
        else:
            mine = g.local_experts()
            per_row = torch.zeros(route.rows, device=DEVICE)
            starts, counts = route.dispatch(x.detach()).starts, route.dispatch(x.detach()).counts
            slots = env.ranks * M if layout == "slots" else 0
            for i, e in enumerate(mine.tolist()):
                for s in range(env.ranks):
                    first = i * slots + int(starts[i, s])
                    per_row[first : first + int(counts[i, s])] = e + 1
            scaled = rows.reshape(-1, HIDDEN) * per_row[:, None] * weights[:, None]
            y = ft.combine(scaled.reshape(rows.shape), route)
        seed = torch.linspace(-1, 1, HIDDEN, device=DEVICE)
        with nan_when_empty():
            (y * seed).sum().backward()
        home = torch.tensor([_home(e, env.ranks) for e in range(EXPERTS)] + [-1], device=DEVICE)[idx]
        factor = ((home if layout == "rank" else idx) + 1).float() * (idx >= 0)
        x2, w2 = x.detach().clone().requires_grad_(), w.detach().clone().requires_grad_()
        y2 = x2 * (w2 * factor).sum(1, keepdim=True)
        (y2 * seed).sum().backward()
        # y is linear in `one`: over all ranks their products are equal
        ends = g.allgather(torch.stack([(one.grad * one).sum(), (y * seed).sum()]).detach()).sum(0)
        for a, b in ((y, y2), (x.grad, x2.grad), (w.grad, w2.grad), (ends[0], ends[1])):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4), (a - b).abs().max()


@contextmanager
def nan_when_empty():
    """What nobody writes is seen: torch.empty gives NaN."""
    import torch

    empty = torch.empty

    def filled(*shape, **options):
        made = empty(*shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    torch.empty = filled
    try:
        yield
    finally:
        torch.empty = empty


def test_process_group():
    torch_or_skip()
    on_ranks(3, process_group)


def process_group(env):
    import torch
    import torch.distributed as dist

    world = env.process_group()
    pair = dist.new_group([2, 0])
    config = dict(experts=6, hidden=64, max_tokens=4, max_topk=1, device=DEVICE, timeout=60)
    with ferry.Group.from_process_group(world, **config) as g:
        assert (g.rank, g.ranks) == (env.rank, 3)
        t = torch.full((2,), env.rank, dtype=torch.int32, device=DEVICE)
        assert g.allgather(t).tolist() == [[0, 0], [1, 1], [2, 2]]
    if env.rank != 1:
        with ferry.Group.from_process_group(pair, **config) as g:
            assert g.ranks == 2 and g.rank == dist.get_rank(pair)
            g.barrier()


def test_example():
    torch_or_skip()
    example = Path(__file__).parents[1] / "examples" / "moe.py"
    command = [sys.executable, str(example), "--ranks", "2", "--steps", "30", "--device", DEVICE]
    out = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=170
    )
    assert out.returncode == 0 and out.stdout.rstrip().endswith("the same curve"), out.stdout
