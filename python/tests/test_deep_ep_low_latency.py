"""The drop-in for deep_ep: V1, low-latency mode."""

import os
from contextlib import contextmanager
from types import SimpleNamespace

from deep_ep_cases import EXPERTS, HIDDEN, M, buffer_of, dequantised, everybody
from harness import DEVICE, each, on_ranks, raises, torch_or_skip

import ferry


@each(kind=("bf16", "fp8", "pow2", "ue8m0"), hook=(False, True), zero_copy=(False, True))
def test_low_latency(kind, hook, zero_copy):
    torch_or_skip()
    on_ranks(4, low_latency, kind, hook, zero_copy)


def low_latency(env, kind, hook, zero_copy):
    import torch

    buffer = buffer_of(env, low_latency_mode=True, num_qps_per_rank=2)
    buffer.clean_low_latency_buffer(M, HIDDEN, EXPERTS)
    local = EXPERTS // env.ranks
    for turn in range(3):  # the halves of the buffers alternate
        x, idx, w = everybody(env, 10 + turn)
        mine, choice, weights = x[env.rank], idx[env.rank], w[env.rank]
        stats = torch.ones(local, dtype=torch.int32, device=DEVICE)
        rx, count, handle, event, receive = buffer.low_latency_dispatch(
            mine, choice, M, EXPERTS, use_fp8=kind != "bf16", round_scale=kind in ("pow2", "ue8m0"), use_ue8m0=kind == "ue8m0",
            cumulative_local_expert_recv_stats=stats, async_finish=not hook, return_recv_hook=hook,
        )  # fmt: skip
        wait(hook, event, receive)
        assert stats.tolist() == [int(n) + 1 for n in count]
        values = dequantised(rx, kind)
        check_slots(env, values, count, handle, x, idx, kind)
        if zero_copy:
            buffer.get_next_low_latency_combine_buffer(handle)[:, :, :] = values.bfloat16()
        out = torch.empty_like(mine)
        given = values.bfloat16()
        y, event, receive = buffer.low_latency_combine(
            given, choice, weights, handle, zero_copy=zero_copy, async_finish=not hook, return_recv_hook=hook, out=out
        )
        wait(hook, event, receive)
        assert y is out
        want = mine.float() * torch.where(choice >= 0, weights, torch.zeros_like(weights)).sum(1, keepdim=True)
        tolerance = {"bf16": 2e-2, "fp8": 0.15, "pow2": 0.2, "ue8m0": 0.2}[kind]
        assert torch.allclose(y.float(), want, rtol=tolerance, atol=tolerance)
    buffer.destroy()


def wait(hook, event, receive):
    assert (receive is not None) == hook and (event.event is None) == hook
    receive() if hook else event.current_stream_wait()


def check_slots(env, values, count, handle, x, idx, kind):
    source, layout_range, m, hidden, experts = handle
    assert (m, hidden, experts) == (M, HIDDEN, EXPERTS)
    local = EXPERTS // env.ranks
    for i in range(local):
        e, at = env.rank * local + i, 0
        for s in range(env.ranks):
            tokens = [t for t, row in enumerate(idx[s].tolist()) if e in row]
            packed = int(layout_range[i, s])
            assert (packed & 0xFFFFFFFF, packed >> 32) == (len(tokens), at)
            for t in tokens:
                assert int(source[i, at]) == t
                want = x[s][t].float()
                near = want.abs().max() / (1e9 if kind == "bf16" else 12)
                assert (values[i, at] - want).abs().max() <= near
                at += 1
        assert int(count[i]) == at


def test_two_low_latency_dispatches_in_flight():
    torch_or_skip()
    on_ranks(2, two_in_flight)


def two_in_flight(env):
    """Two micro-batches by turns, as vLLM and SGLang run them."""
    import torch

    buffer = buffer_of(env, low_latency_mode=True)
    x, idx, w = everybody(env, 20, lambda r: 8)
    mine, choice, weights = x[env.rank], idx[env.rank], w[env.rank]
    factor = torch.where(choice >= 0, weights, torch.zeros_like(weights)).sum(1, keepdim=True)
    for _ in range(3):
        sent = [
            buffer.low_latency_dispatch(mine * n, choice, M, EXPERTS, use_fp8=False, return_recv_hook=True)
            for n in (1, 2)
        ]
        backs = []
        for rx, _, handle, _, hook in sent:
            hook()
            backs.append(buffer.low_latency_combine(rx, choice, weights, handle, return_recv_hook=True))
        for n, (y, _, hook) in zip((1, 2), backs):
            hook()
            assert torch.allclose(y.float(), mine.float() * n * factor, rtol=2e-2, atol=2e-2)
    buffer.destroy()


def test_a_hook_works_on_the_stream_of_its_send():
    torch = torch_or_skip()
    from ferry.deep_ep._lane import on_stream

    cuda, entered = torch.cuda, []

    @contextmanager
    def stream(of):
        entered.append(of)
        yield

    current, inside = cuda.current_stream, cuda.stream
    cuda.current_stream, cuda.stream = (lambda device: "the send's"), stream
    try:
        hook = on_stream(SimpleNamespace(is_cuda=True, device="cuda:0"))(lambda: entered.append("the hook"))
        cuda.current_stream = lambda device: "the caller's"
        hook()
    finally:
        cuda.current_stream, cuda.stream = current, inside
    assert entered == ["the send's", "the hook"]


def test_a_lost_rank():
    torch_or_skip()
    on_ranks(3, without_rank_2)


def without_rank_2(env):
    """Rank 2 leaves; the others' step fails, they agree, and repeat it: its tokens and experts are left out."""
    import torch

    os.environ["FERRY_TIMEOUT_MS"] = "10000"  # DeepEP's 100 s are long
    try:
        lose_rank_2(env, torch)
    finally:
        del os.environ["FERRY_TIMEOUT_MS"]


def lose_rank_2(env, torch):
    buffer = buffer_of(env, low_latency_mode=True, enable_shrink=True)
    status = torch.ones(env.ranks, dtype=torch.int32, device=DEVICE)
    x, idx, w = everybody(env, 120, lambda r: 6)
    idx = [i % 6 for i in idx]
    mine, choice, weights = x[env.rank], idx[env.rank], w[env.rank]

    def step(lost):
        rx, count, handle, _, _ = buffer.low_latency_dispatch(mine, choice, M, 6, use_fp8=False)
        local = [2 * env.rank, 2 * env.rank + 1]
        there = torch.cat([i.flatten() for r, i in enumerate(idx) if r not in lost])
        distinct = [sum(e in row for r, i in enumerate(idx) if r not in lost for row in i.tolist()) for e in local]
        found = count.tolist() == distinct  # tolist waits for the GPU; who is missing then is the next call's to say
        y = buffer.low_latency_combine(rx, choice, weights, handle)[0]
        assert found and len(there)
        gone = torch.zeros_like(choice, dtype=torch.bool)
        for r in lost:
            gone |= torch.div(choice, 2, rounding_mode="floor") == r
        want = mine.float() * weights.masked_fill(gone, 0).sum(1, keepdim=True)
        assert torch.allclose(y.float(), want, rtol=2e-2, atol=2e-2)

    step(())
    buffer.low_latency_query_mask_buffer(status)
    assert status.tolist() == [0, 0, 0]
    if env.rank == 2:
        buffer.destroy()
        return
    with raises(ferry.FerryError, "rank"):
        step(())
    buffer.low_latency_query_mask_buffer(status)
    assert status.tolist() == [0, 0, 1]
    for _ in range(3):
        step((2,))
    buffer.destroy()


def test_a_masked_rank_comes_back():
    torch_or_skip()
    on_ranks(3, masked_for_a_while)


def masked_for_a_while(env):
    import torch

    buffer = buffer_of(env, low_latency_mode=True, enable_shrink=True)
    status = torch.ones(env.ranks, dtype=torch.int32, device=DEVICE)
    one, there = torch.ones(1, HIDDEN, device=DEVICE).bfloat16(), torch.tensor([[0, 2, 4]], device=DEVICE)
    weights = torch.ones(1, 3, device=DEVICE)

    def step():
        rx, _, handle, _, _ = buffer.low_latency_dispatch(one, there, M, 6, use_fp8=False)
        return float(buffer.low_latency_combine(rx, there, weights, handle)[0][0, 0])

    assert step() == 3
    env.process_group()
    if env.rank == 2:
        with raises(ferry.FerryError, ""):
            step()  # the others have gone on
    else:
        buffer.low_latency_update_mask_buffer(2, True)
        assert step() == 2
        buffer.low_latency_query_mask_buffer(status)
        assert status.tolist() == [0, 0, 1]
    buffer.low_latency_clean_mask_buffer()
    buffer.low_latency_query_mask_buffer(status)
    assert status.tolist() == [0, 0, 0] and step() == 3
    buffer.destroy()
