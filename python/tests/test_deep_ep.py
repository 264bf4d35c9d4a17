"""The drop-in for deep_ep as a module: what is not there, hints, helpers. Its calls are in test_deep_ep_*.py."""

from deep_ep_cases import EXPERTS, HIDDEN, M, buffer_of, stand_in
from harness import DEVICE, on_ranks, raises, torch_or_skip

import ferry


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
    with raises(ferry.InvalidError, "rank 0"):
        buffer.low_latency_update_mask_buffer(0, True)
    with raises(ferry.UnsupportedError, "no single buffer"):
        buffer.get_local_buffer_tensor(torch.int8, torch.Size([16]))
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
    for given in (scales, scales.as_strided((1, 1), (1, 128))):
        assert math.per_token_cast_back(ones, given).tolist() == [[8.0] * 128 + [0.5] * 128]
    assert math.hash_tensors(a, (a + 1, None)) == math.hash_tensor(a) ^ math.hash_tensor(a + 1)
    if hasattr(torch, "float8_e4m3fn"):
        assert math.calc_diff(math.per_token_cast_back(*math.per_token_cast_to_fp8(a)), a) < 1e-3


def test_scores():
    torch = torch_or_skip()
    from ferry.deep_ep.utils import gate

    torch.manual_seed(1)
    for ratio in (1.0, 2.0):
        scores = gate.get_unbalanced_scores(2000, 32, 4, 4, ratio, False)
        assert scores.dtype == torch.float32 and abs(gate._imbalance(scores, 4, 4) - ratio) < 0.1
    with raises(NotImplementedError, "precise"):
        gate.get_unbalanced_scores(1, 4, 2, 1, 2.0, True)


def test_stands_in_for_deep_ep():
    torch_or_skip()
    with stand_in():
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
