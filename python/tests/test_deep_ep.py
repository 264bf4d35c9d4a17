"""The drop-in for deep_ep, by what DeepEP documents and its callers count on."""

import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

from harness import DEVICE, draw, each, on_ranks, raises, torch_or_skip

import ferry

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


# ---- V1, normal mode ----


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
    assert isinstance(handle, tuple) and handle[4] is in_rank
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


# ---- V1, low-latency mode ----


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
                assert int(source[i, at]) == s * M + t
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


def test_what_is_not_here_says_so():
    torch_or_skip()
    on_ranks(1, not_here)


def not_here(env):
    import torch

    buffer = buffer_of(env, low_latency_mode=True)
    x = torch.zeros(1, HIDDEN, device=DEVICE, dtype=torch.bfloat16)
    idx, w = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    rx, _, handle, _, _ = buffer.low_latency_dispatch(x, idx, 4, EXPERTS, use_fp8=False)
    with raises(ferry.UnsupportedError, "LogFMT"):
        buffer.low_latency_combine(rx, idx, w, handle, use_logfmt=True)
    with raises(TypeError, "the very object that dispatch returned"):
        buffer.low_latency_combine(rx, idx, w, tuple(handle))
    with raises(AssertionError, "get_next_low_latency_combine_buffer"):
        buffer.low_latency_combine(rx, idx, w, handle, zero_copy=True)
    status = torch.ones(1, dtype=torch.int32, device=DEVICE)
    buffer.low_latency_query_mask_buffer(status)
    assert status.tolist() == [0]
    buffer.low_latency_clean_mask_buffer()
    buffer.low_latency_update_mask_buffer(0, False)
    with raises(ferry.UnsupportedError, "rank 0 cannot be masked"):
        buffer.low_latency_update_mask_buffer(0, True)
    with raises(ferry.UnsupportedError, "no single buffer"):
        buffer.get_local_buffer_tensor(torch.int8, use_rdma_buffer=True)
    buffer.explicitly_destroy = False
    with raises(AssertionError, "explicitly_destroy"):
        buffer.destroy()


def test_a_capture_of_what_waits_is_refused():
    torch_or_skip()
    on_ranks(1, captured_waits)


def captured_waits(env):
    """Up front: before anything of it is in the graph."""
    import torch

    from ferry.deep_ep import ElasticBuffer, _lane

    x, idx = torch.zeros(1, HIDDEN, device=DEVICE).bfloat16(), torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
    buffer = buffer_of(env)
    elastic = ElasticBuffer(env.process_group(), num_max_tokens_per_rank=M, hidden=HIDDEN, explicitly_destroy=True)
    _, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
    layout = dict(is_token_in_rank=in_rank, num_tokens_per_expert=per_expert, topk_idx=idx)
    capturing, _lane.capturing = _lane.capturing, lambda x: True
    try:
        with raises(ferry.UnsupportedError, "dispatch without num_worst_tokens"):
            buffer.dispatch(x, **layout)
        for sync in (None, True):
            with raises(ferry.UnsupportedError, "dispatch with do_cpu_sync"):
                elastic.dispatch(x, topk_idx=idx, num_experts=EXPERTS, do_cpu_sync=sync)
        assert not buffer._groups._made and not elastic._groups._made
        handle = buffer.dispatch(x, num_worst_tokens=M, **layout)[4]
        buffer.dispatch(x, handle=handle)
        handle = elastic.dispatch(x, topk_idx=idx, num_experts=EXPERTS, do_cpu_sync=False)[3]
        elastic.dispatch(x, handle=handle)
    finally:
        _lane.capturing = capturing
    buffer.destroy(), elastic.destroy()


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


def test_hints_and_configs():
    torch_or_skip()
    from ferry.deep_ep import Buffer, Config

    assert Buffer.get_dispatch_config(8).num_max_nvl_chunked_send_tokens == 6
    assert Buffer.get_combine_config(16).num_max_rdma_chunked_send_tokens == 12
    config = Config(24, 8, 256)
    assert config.get_nvl_buffer_size_hint(14336, 8) % 128 == 0 and config.get_rdma_buffer_size_hint(14336, 8) == 0
    small, large = (Buffer.get_low_latency_rdma_size_hint(m, 256, 2, 8) for m in (16, 64))
    assert 2 * 4 * 32 * 512 < small < large
    with raises(AssertionError, "even"):
        Buffer.set_num_sms(3)


def test_helpers():
    torch = torch_or_skip()
    from ferry.deep_ep.utils import math

    x = torch.tensor([[3, 3, -1, 0], [2, -1, 2, 2], [-1, -1, -1, -1]])
    math.inplace_unique(x, 4)
    assert x.tolist() == [[0, 3, -1, -1], [2, -1, -1, -1], [-1, -1, -1, -1]]
    a = torch.randn(5, 256)
    assert math.calc_diff(a, a) < 1e-12 < math.calc_diff(a, -a)
    assert math.hash_tensor(a) != math.hash_tensor(a + 1) and math.count_bytes(a, (a, None)) == 2 * 5 * 1024
    scales = torch.tensor([[127 + 3 | 126 << 8]], dtype=torch.int32)
    ones = torch.ones(1, 256, dtype=torch.float32)
    assert math.per_token_cast_back(ones, scales).tolist() == [[8.0] * 128 + [0.5] * 128]
    if hasattr(torch, "float8_e4m3fn"):
        assert math.calc_diff(math.per_token_cast_back(*math.per_token_cast_to_fp8(a)), a) < 1e-3


def test_stands_in_for_deep_ep():
    torch_or_skip()
    import ferry.deep_ep as mine

    before = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "deep_ep"}
    try:
        sys.modules["deep_ep"] = mine
        import deep_ep
        from deep_ep.utils import EventHandle, EventOverlap

        assert EventOverlap is deep_ep.EventOverlap and EventHandle is deep_ep.EventHandle
        for name in ("Buffer", "Config", "ElasticBuffer", "EPHandle", "topk_idx_t", "__version__"):
            assert hasattr(deep_ep, name), name
        assert not hasattr(deep_ep, "HybridEPBuffer")
        event = EventOverlap(EventHandle())
        calls = []
        event.register_hook_after_wait(lambda: calls.append(1))
        with event(release_handle=True):
            pass
        assert calls == [1] and event.event is None
    finally:
        for name in [n for n in sys.modules if n.split(".")[0] == "deep_ep"]:
            del sys.modules[name]
        sys.modules.update(before)


# ---- V2 ----


@each(expand=(False, True), sync=(True, False), alignment=(1, 8), fp8=(False, True))
def test_elastic(expand, sync, alignment, fp8):
    torch_or_skip()
    on_ranks(4, elastic, expand, sync, alignment, fp8)


def elastic(env, expand, sync, alignment, fp8):
    import torch

    from ferry.deep_ep import ElasticBuffer

    x, idx, w = everybody(env, 30)
    mine, choice, weights = x[env.rank], idx[env.rank], w[env.rank]
    factors = [
        torch.arange(len(r) * 2, dtype=torch.float32, device=DEVICE).reshape(-1, 2) + 100 * i for i, r in enumerate(x)
    ]
    sent = (e4m3(mine), factors[env.rank]) if fp8 else mine
    buffer = ElasticBuffer(env.process_group(), num_max_tokens_per_rank=M, hidden=HIDDEN, explicitly_destroy=True)
    assert buffer.num_bytes % (2 << 20) == 0 and buffer.get_logical_domain_size() == (1, env.ranks)
    local = EXPERTS // env.ranks
    stats = torch.zeros(local, dtype=torch.int32, device=DEVICE)
    rx, ri, rw, handle, event = buffer.dispatch(
        sent, topk_idx=choice, topk_weights=weights, num_experts=EXPERTS, expert_alignment=alignment, do_cpu_sync=sync,
        do_expand=expand, do_zero_padding=expand, cumulative_local_expert_recv_stats=stats, use_tma_aligned_col_major_sf=True,
        async_with_compute_stream=True, previous_event=buffer.capture(), allocate_on_comm_stream=True,
    )  # fmt: skip
    event.current_stream_wait()
    rows, rf = rx if fp8 else (rx, None)
    if fp8:
        assert rf.stride(0) == 1 and (rf.shape[1] == 1 or rf.stride(1) % 4 == 0)
    arrived = arrivals(env, idx)
    check_ep_handle(env, handle, arrived, idx, sync, alignment, stats)
    check_elastic(env, handle, rows, rf, ri, rw, arrived, x, factors, idx, w, alignment)

    cached = buffer.dispatch(sent, handle=handle, do_expand=expand, do_zero_padding=expand)
    assert cached[3] is handle and cached[2] is None
    valid = (
        torch.arange(len(arrived), device=DEVICE)
        if not expand
        else handle.recv_src_metadata[: len(arrived), 2:].flatten()
    )
    valid = valid[valid >= 0].long()
    assert torch.equal(bits(cached[0][0] if fp8 else cached[0])[valid], bits(rows)[valid])
    other = buffer.dispatch(sent, handle=handle, topk_weights=weights * 2, do_expand=expand)
    assert torch.equal(other[2][valid], 2 * rw[valid])

    values = torch.zeros(len(rows), HIDDEN, device=DEVICE).bfloat16()
    for row, (s, t) in enumerate(arrived):
        for at in [row] if not expand else [r for r in handle.recv_src_metadata[row, 2:].tolist() if r >= 0]:
            values[at] = x[s][t]
    y, yw, event = buffer.combine(values, handle, topk_weights=rw, bias=(mine, mine))
    times = (
        torch.tensor(
            [[len({e // (1 if expand else local) for e in row if e >= 0})] for row in choice.tolist()], device=DEVICE
        )
    ).reshape(-1, 1)
    assert event.event is None and torch.allclose(y.float(), mine.float() * (times + 2), rtol=1e-2)
    assert torch.equal(yw, torch.where(choice >= 0, weights, torch.zeros_like(weights)))
    buffer.barrier()
    buffer.destroy()


def check_ep_handle(env, handle, arrived, idx, sync, alignment, stats):
    local = EXPERTS // env.ranks
    counts = [
        sum(row.count(env.rank * local + i) for s in range(env.ranks) for row in idx[s].tolist()) for i in range(local)
    ]
    aligned = [-(-n // alignment) * alignment for n in counts]
    assert stats.tolist() == handle.num_unaligned_recv_tokens_per_expert.tolist() == counts
    assert handle.num_recv_tokens_per_expert_list == (aligned if sync else [])
    ends = [sum(aligned[: i + 1]) for i in range(local)]
    if handle.do_expand:
        ends = [end - a + n for end, a, n in zip(ends, aligned, counts)]
    assert handle.psum_num_recv_tokens_per_expert.tolist() == ends
    assert handle.psum_num_recv_tokens_per_scaleup_rank.tolist() == [
        sum(1 for s, _ in arrived if s <= r) for r in range(env.ranks)
    ]
    assert handle.num_recv_tokens == (len(arrived) if sync else M * env.ranks)
    assert handle.topk_idx.data_ptr() != idx[env.rank].data_ptr() or not len(idx[env.rank])
    assert handle.recv_src_metadata[: len(arrived), 0].tolist() == [s * M + t for s, t in arrived]
    for row, (s, t) in enumerate(arrived):
        ids = local_ids(env, idx[s][t].tolist())
        assert int(handle.recv_src_metadata[row, 1]) == s * TOPK + max(k for k in range(TOPK) if ids[k] >= 0)


def check_elastic(env, handle, rows, rf, ri, rw, arrived, x, factors, idx, w, alignment):
    local, checked = EXPERTS // env.ranks, 0
    for row, (s, t) in enumerate(arrived):
        ids = local_ids(env, idx[s][t].tolist())
        if not handle.do_expand:
            assert ri[row].tolist() == ids
            assert rw[row].tolist() == [v if i >= 0 else 0 for i, v in zip(ids, w[s][t].tolist())]
            places = [row]
        else:
            places = handle.recv_src_metadata[row, 2:].tolist()
            assert [p >= 0 for p in places] == [i >= 0 for i in ids]
            for place, i, weight in zip(places, ids, w[s][t].tolist()):
                assert place < 0 or (float(rw[place]) == weight and starts(handle, alignment)[i] <= place)
            places = [p for p in places if p >= 0]
        for place in places:
            sent = x[s][t : t + 1]
            assert equal_bits(rows[place : place + 1], sent if rf is None else e4m3(sent))
            assert rf is None or rf[place].tolist() == factors[s][t].tolist()
            checked += 1
    if handle.do_expand:
        assert ri is None and checked == sum(handle.num_unaligned_recv_tokens_per_expert.tolist())
        ends = handle.psum_num_recv_tokens_per_expert.tolist()
        for i in range(local - 1):
            assert not rows[ends[i] : starts(handle, alignment)[i + 1]].float().any()  # zeroed padding
    elif handle.route.mode == "latency":
        assert (ri[len(arrived) :] == -1).all()


def starts(handle, alignment):
    counts = handle.num_unaligned_recv_tokens_per_expert.tolist()
    return [e - n for e, n in zip(handle.psum_num_recv_tokens_per_expert.tolist(), counts)]
