"""The calls that vLLM, SGLang and Megatron-Core make, in their order, with their keywords and their unpacking.

What lies between the calls is made plain here: expert e multiplies a row by 1 + e. They were read at these commits:
vLLM 055e47c28003 (fused_moe/prepare_finalize/deepep_ht.py, deepep_ll.py), 02bd2a494f5c (deepep_v2.py), 001430048e81
(device_communicators/all2all.py), 0057b59d8ee7 (utils/import_utils.py); SGLang 003a81bf2870 (moe/token_dispatcher/deepep.py),
0134da0b075f (deepep_v2.py); Megatron-LM d98e8a64ddf3 (core/transformer/moe/fused_a2a.py, token_dispatcher.py).
"""

import importlib.util
from concurrent.futures import ThreadPoolExecutor

from deep_ep_cases import EXPERTS, HIDDEN, TOPK, M, dequantised, e4m3, everybody, stand_in
from harness import DEVICE, each, on_ranks, torch_or_skip


def by_turns(*batches):
    """Micro-batches, each in a thread of its own, which hands over at every yield."""
    pools = [ThreadPoolExecutor(1) for _ in batches]
    running = list(zip(pools, batches))
    while running:
        running = [(pool, batch) for pool, batch in running if pool.submit(next, batch, "over").result() != "over"]
    for pool in pools:
        pool.shutdown()


def scaled(x, choice, weights):
    """float32: what the experts make of the rows, summed by weights. -1 adds nothing."""
    factor = (weights * (choice + 1)).masked_fill(choice < 0, 0).sum(1, keepdim=True)
    return x.float() * factor


def close(y, want):
    return (y.float() - want).abs().max() <= 2e-2 * want.abs().max().clamp(min=1) if len(want) else len(y) == 0


# ---- vLLM ----


@each(asynchronous=(True, False), fp8=(False, True))
def test_vllm_high_throughput(asynchronous, fp8):
    torch_or_skip()
    on_ranks(4, vllm_high_throughput, asynchronous, fp8)


def vllm_high_throughput(env, asynchronous, fp8):
    """asynchronous: as without micro-batches; otherwise two by turns in threads (dual batch overlap)."""
    import torch

    with stand_in():
        assert importlib.util.find_spec("deep_ep") is not None
        import deep_ep

        cpu_group = env.process_group()
        deep_ep.Buffer.set_num_sms(20)
        buffer = deep_ep.Buffer(
            group=cpu_group,
            num_nvl_bytes=1 << 30,
            num_rdma_bytes=0,
            low_latency_mode=False,
            num_qps_per_rank=1,
            explicitly_destroy=True,
        )
        handles, drawn = [None, None], [everybody(env, seed) for seed in (51, 52)]

        def batch(i):
            a1, topk_ids, topk_weights = (part[env.rank] for part in drawn[i])
            scales = torch.arange(len(a1) * 2, device=DEVICE, dtype=torch.float32).view(-1, 2)
            previous_event = None if asynchronous else buffer.capture()
            yield
            per_rank, per_rdma_rank, per_expert, in_rank, event = buffer.get_dispatch_layout(
                topk_idx=topk_ids,
                num_experts=EXPERTS,
                previous_event=previous_event,
                async_finish=False,
                allocate_on_comm_stream=False,
            )
            token_data, ids, weights, counts, handle, event = buffer.dispatch(
                x=(e4m3(a1), scales) if fp8 else a1,
                handle=None,
                num_tokens_per_rank=per_rank,
                num_tokens_per_rdma_rank=per_rdma_rank,
                is_token_in_rank=in_rank,
                num_tokens_per_expert=per_expert,
                topk_idx=topk_ids,
                topk_weights=topk_weights,
                expert_alignment=1,
                config=deep_ep.Buffer.get_dispatch_config(env.ranks),
                previous_event=previous_event,
                async_finish=asynchronous,
                allocate_on_comm_stream=False,
            )
            handles[i] = handle
            yield
            if event.event is not None:
                event.current_stream_wait()
            assert (event.event is not None) == asynchronous
            local, offset = EXPERTS // env.ranks, env.rank * EXPERTS // env.ranks
            elsewhere = EXPERTS - 1 if offset == 0 else 0
            globally = torch.where(ids == -1, elsewhere, ids + offset)
            assert torch.tensor(counts, dtype=torch.int32).tolist() == [int((ids == e).sum()) for e in range(local)]
            if fp8:
                rows, row_scales = token_data
                assert rows.shape == (len(ids), HIDDEN) and row_scales.shape == (len(ids), 2)
                out = torch.zeros((len(rows), HIDDEN), dtype=torch.bfloat16, device=DEVICE)
            else:
                expert_map = torch.full((EXPERTS,), -1, device=DEVICE)
                expert_map[offset : offset + local] = torch.arange(local, device=DEVICE)
                mine = torch.where(expert_map[globally] >= 0, globally, -1)
                out = scaled(token_data, mine, weights).bfloat16()
            previous_event = None if asynchronous else buffer.capture()
            yield
            combined_x, _, event = buffer.combine(
                x=out,
                handle=handles[i],
                topk_weights=None,
                config=deep_ep.Buffer.get_combine_config(env.ranks),
                previous_event=previous_event,
                async_finish=asynchronous,
                allocate_on_comm_stream=False,
            )
            yield
            if event.event is not None:
                event.current_stream_wait()
            output = torch.full_like(a1, 7)
            output.copy_(combined_x, non_blocking=True)
            assert close(output, torch.zeros(a1.shape, device=DEVICE) if fp8 else scaled(a1, topk_ids, topk_weights))

        if asynchronous:
            for i in (0, 1):
                list(batch(i))
        else:
            by_turns(batch(0), batch(1))
        buffer.destroy()
        deep_ep.Buffer._sms_asked = False


@each(kind=("bf16", "fp8", "ue8m0"), overlapped=(False, True))
def test_vllm_low_latency(kind, overlapped):
    torch_or_skip()
    on_ranks(2, vllm_low_latency, kind, overlapped)


def vllm_low_latency(env, kind, overlapped):
    import torch

    with stand_in():
        import deep_ep

        hint = deep_ep.Buffer.get_low_latency_rdma_size_hint(
            num_max_dispatch_tokens_per_rank=M, hidden=HIDDEN, num_ranks=env.ranks, num_experts=EXPERTS
        )
        buffer = deep_ep.Buffer(
            group=env.process_group(),
            num_nvl_bytes=1 << 30,
            num_rdma_bytes=hint,
            low_latency_mode=True,
            num_qps_per_rank=EXPERTS // env.ranks,
            allow_nvlink_for_low_latency_mode=True,
            allow_mnnvl=False,
            explicitly_destroy=True,
            enable_shrink=True,
        )
        local, first = EXPERTS // env.ranks, env.rank * EXPERTS // env.ranks
        experts = torch.arange(first, first + local, device=DEVICE)

        def batch(seed):
            x, idx, w = everybody(env, seed)
            a1, topk_ids, topk_weights = x[env.rank], idx[env.rank], w[env.rank]
            expert_x, expert_num_tokens, handle, _, hook = buffer.low_latency_dispatch(
                a1,
                topk_ids,
                M,
                EXPERTS,
                use_fp8=kind != "bf16",
                round_scale=kind == "ue8m0",
                use_ue8m0=kind == "ue8m0",
                async_finish=False,
                return_recv_hook=True,
            )
            yield
            hook()
            chosen = torch.cat([i.flatten() for i in idx])
            assert expert_num_tokens.tolist() == [int((chosen == e).sum()) for e in experts.tolist()]
            assert kind == "bf16" or (
                expert_x[0].is_contiguous() and expert_x[1].contiguous().shape[1] == env.ranks * M
            )
            out = (dequantised(expert_x, kind) * (experts + 1)[:, None, None]).bfloat16()
            yield
            output = torch.full_like(a1, 7)
            _, _, recv_hook = buffer.low_latency_combine(
                out,
                topk_ids,
                topk_weights,
                handle,
                async_finish=False,
                zero_copy=False,
                return_recv_hook=overlapped,
                out=output,
            )
            yield
            assert (recv_hook is not None) == overlapped
            if recv_hook is not None:
                recv_hook()
            want = scaled(a1, topk_ids, topk_weights)
            assert (output.float() - want).abs().max() <= (0.02 if kind == "bf16" else 0.1) * want.abs().max()

        for turn in range(2):
            by_turns(*(batch(60 + 2 * turn + i) for i in range(2 if overlapped else 1)))
        mask = torch.ones(env.ranks, dtype=torch.int32, device=DEVICE)
        buffer.low_latency_query_mask_buffer(mask)
        assert mask.tolist() == [0] * env.ranks
        buffer.get_local_buffer_tensor(dtype=torch.int8, use_rdma_buffer=True).zero_()
        buffer.low_latency_clean_mask_buffer()
        buffer.destroy()


@each(decode=(True, False), scales=(False, True))
def test_vllm_v2(decode, scales):
    torch_or_skip()
    on_ranks(4, vllm_v2, decode, scales)


def vllm_v2(env, decode, scales):
    """Decode: worst-case rows, nothing known to the host. Prefill: a row for each expert, exact. scales: MXFP8's, packed."""
    import torch

    with stand_in():
        import deep_ep

        buffer = deep_ep.ElasticBuffer(
            group=env.process_group(),
            num_max_tokens_per_rank=3 * M,
            hidden=HIDDEN,
            num_topk=TOPK,
            use_fp8_dispatch=scales,
            allow_hybrid_mode=False,
            prefer_overlap_with_compute=True,
            allow_multiple_reduction=True,
            num_cpu_timeout_secs=1800,
            num_gpu_timeout_secs=1800,
            explicitly_destroy=True,
        )
        assert buffer.get_theoretical_num_sms(num_experts=EXPERTS, num_topk=TOPK) > 0
        offset, local = env.rank * EXPERTS // env.ranks, EXPERTS // env.ranks
        for turn in range(2):
            x, idx, w = everybody(env, 70 + turn)
            a1, topk_ids, topk_weights = x[env.rank], idx[env.rank], w[env.rank]
            packed = torch.arange(len(a1) * 2, dtype=torch.int32, device=DEVICE).view(-1, 2) + 1000 * env.rank
            recv_x, recv_topk_idx, recv_topk_weights, handle, event = buffer.dispatch(
                x=(e4m3(a1), packed) if scales else a1,
                topk_idx=topk_ids,
                topk_weights=topk_weights,
                num_experts=EXPERTS,
                num_max_tokens_per_rank=min(1 << (M - 1).bit_length(), 3 * M) if decode else None,
                do_expand=not decode,
                do_cpu_sync=not decode,
                async_with_compute_stream=False,
            )
            assert event.event is None
            rows, row_scales = recv_x if scales else (recv_x, None)
            counts = handle.num_recv_tokens_per_expert_list
            if decode:
                assert counts == [] and len(rows) == env.ranks * M
                received = int(handle.psum_num_recv_tokens_per_scaleup_rank[-1])
                globally = recv_topk_idx + offset
                there = torch.arange(len(rows), device=DEVICE)[:, None] < received
                globally = torch.where((recv_topk_idx >= 0) & (globally < EXPERTS) & there, globally, -1)
            else:
                assert recv_topk_idx is None and sum(counts) == len(rows)
                ids = torch.arange(local, device=DEVICE) + offset
                number = torch.tensor(counts, dtype=torch.int32, device=DEVICE)
                globally = torch.repeat_interleave(ids, number, output_size=len(rows)).unsqueeze(1)
                recv_topk_weights = recv_topk_weights.unsqueeze(1)
            if scales:
                valid = (globally >= 0).any(1)
                assert ((row_scales[valid] % 1000) < 2 * M).all() and row_scales.dtype == torch.int32
                out = torch.zeros((len(rows), HIDDEN), dtype=torch.bfloat16, device=DEVICE)
            else:
                out = scaled(rows, globally, recv_topk_weights).bfloat16()
            combined_x, _, event = buffer.combine(
                x=out,
                handle=handle,
                topk_weights=None,
                async_with_compute_stream=True,
                allocate_on_comm_stream=True,
            )
            if event.event is not None:
                event.current_stream_wait()
            assert scales or close(combined_x, scaled(a1, topk_ids, topk_weights))
        buffer.destroy()


# ---- SGLang ----


@each(asynchronous=(False, True), hook=(False, True))
def test_sglang(asynchronous, hook):
    torch_or_skip()
    on_ranks(4, sglang, asynchronous, hook)


def sglang(env, asynchronous, hook):
    """One buffer for both modes, prefill and decode by turns; it is never destroyed, only dropped."""

    with stand_in():
        from deep_ep import Buffer, Config

        group, nvl, rdma = env.process_group(), 0, 0
        tuned = dict(num_sms=24, num_max_nvl_chunked_send_tokens=6, num_max_nvl_chunked_recv_tokens=256)
        tuned.update(num_max_rdma_chunked_send_tokens=6, num_max_rdma_chunked_recv_tokens=128)
        for config in (Config(**tuned), Buffer.get_combine_config(group.size())):
            nvl = max(config.get_nvl_buffer_size_hint(HIDDEN * 2, group.size()), nvl)
            rdma = max(config.get_rdma_buffer_size_hint(HIDDEN * 2, group.size()), rdma)
        rdma = max(Buffer.get_low_latency_rdma_size_hint(M, HIDDEN, group.size(), EXPERTS), rdma)
        qps = max(Buffer.num_sms, EXPERTS // group.size())
        buffer = Buffer(group, nvl, rdma, low_latency_mode=True, num_qps_per_rank=qps, allow_mnnvl=True)
        for turn in range(2):
            sglang_prefill(env, buffer, Config(**tuned), asynchronous, turn)
            assert buffer.low_latency_mode
            buffer.clean_low_latency_buffer(M, HIDDEN, EXPERTS)
            sglang_decode(env, buffer, hook, turn)


def sglang_prefill(env, buffer, config, asynchronous, turn):
    import torch
    from deep_ep import Buffer

    x, idx, w = everybody(env, 80 + turn)
    hidden_states, topk_ids, topk_weights = x[env.rank], idx[env.rank].to(torch.int64), w[env.rank]
    previous_event = Buffer.capture() if asynchronous else None
    per_rank, per_rdma_rank, per_expert, in_rank, previous_event = buffer.get_dispatch_layout(
        topk_ids,
        EXPERTS,
        previous_event=previous_event,
        async_finish=asynchronous,
        allocate_on_comm_stream=previous_event is not None,
    )
    recv_x, recv_topk_ids, recv_topk_weights, counts, handle, event = buffer.dispatch(
        hidden_states,
        topk_idx=topk_ids,
        topk_weights=topk_weights,
        num_tokens_per_rank=per_rank,
        num_tokens_per_rdma_rank=per_rdma_rank,
        is_token_in_rank=in_rank,
        num_tokens_per_expert=per_expert,
        previous_event=previous_event,
        async_finish=asynchronous,
        allocate_on_comm_stream=(previous_event is not None) and asynchronous,
        expert_alignment=128,
        config=config,
    )
    event.current_stream_wait() if asynchronous else ()
    assert all(n % 128 == 0 for n in counts) and len(counts) == EXPERTS // env.ranks
    offset = env.rank * EXPERTS // env.ranks
    out = scaled(recv_x, torch.where(recv_topk_ids >= 0, recv_topk_ids + offset, -1), recv_topk_weights).bfloat16()
    previous_event = Buffer.capture() if asynchronous else None
    combined_x, _, event = buffer.combine(
        out,
        handle,
        async_finish=asynchronous,
        previous_event=previous_event,
        allocate_on_comm_stream=previous_event is not None,
        config=config,
    )
    event.current_stream_wait() if asynchronous else ()
    assert close(combined_x, scaled(hidden_states, topk_ids, topk_weights))


def sglang_decode(env, buffer, hook_wanted, turn):
    import torch

    x, idx, w = everybody(env, 90 + turn)
    hidden_states, topk_ids, topk_weights = x[env.rank], idx[env.rank], w[env.rank]
    assert (hidden_states.shape[0] * buffer.group_size * topk_ids.shape[1] + EXPERTS) // EXPERTS >= 1
    packed, masked_m, handle, event, hook = buffer.low_latency_dispatch(
        hidden_states,
        topk_ids,
        M,
        EXPERTS,
        use_fp8=False,
        async_finish=not hook_wanted,
        return_recv_hook=hook_wanted,
    )
    hook() if hook_wanted else event.current_stream_wait()
    first, local = env.rank * EXPERTS // env.ranks, EXPERTS // env.ranks
    assert packed.shape == (local, env.ranks * M, HIDDEN) and masked_m.shape == (local,)
    factor = torch.arange(first + 1, first + local + 1, device=DEVICE)[:, None, None]
    combined, event, hook = buffer.low_latency_combine(
        x=(packed.float() * factor).bfloat16(),
        topk_idx=topk_ids,
        topk_weights=topk_weights,
        handle=handle,
        async_finish=not hook_wanted,
        return_recv_hook=hook_wanted,
    )
    hook() if hook_wanted else event.current_stream_wait()
    assert close(combined, scaled(hidden_states, topk_ids, topk_weights))


@each(decode=(True, False), fp8=(False, True))
def test_sglang_v2(decode, fp8):
    torch_or_skip()
    on_ranks(4, sglang_v2, decode, fp8)


def sglang_v2(env, decode, fp8):
    """Decode: expanded, aligned, nothing known to the host; an expert's rows are where the sums say. Prefill: exact rows of tokens, a
    rank without any sends a dummy."""
    import torch

    with stand_in():
        from deep_ep import ElasticBuffer

        buffer = ElasticBuffer(
            env.process_group(),
            num_max_tokens_per_rank=M,
            hidden=HIDDEN,
            num_topk=TOPK,
            use_fp8_dispatch=fp8,
            allow_hybrid_mode=False,
            sl_idx=0,
            prefer_overlap_with_compute=False,
        )
        assert buffer.num_bytes > 0
        sms = buffer.get_theoretical_num_sms(EXPERTS, TOPK)
        qps = buffer.get_theoretical_num_qps(sms)
        x, idx, w = everybody(env, 100)
        hidden_states, topk_ids, topk_weights = x[env.rank], idx[env.rank].to(torch.int64), w[env.rank]
        dummy = not decode and len(hidden_states) == 0
        if dummy:
            hidden_states, topk_weights = hidden_states.new_zeros((1, HIDDEN)), topk_weights.new_zeros((1, TOPK))
            topk_ids = torch.arange(TOPK, device=DEVICE).unsqueeze(0)
        sf = torch.arange(len(hidden_states) * 2, dtype=torch.float32, device=DEVICE).view(2, -1).t()
        recv_x, recv_topk_idx, recv_topk_weights, handle, event = buffer.dispatch(
            (e4m3(hidden_states), sf) if fp8 else hidden_states,
            topk_idx=topk_ids,
            topk_weights=topk_weights,
            num_experts=EXPERTS,
            num_max_tokens_per_rank=M,
            expert_alignment=128,
            num_sms=sms,
            num_qps=qps,
            use_tma_aligned_col_major_sf=fp8,
            do_cpu_sync=not decode,
            do_expand=decode,
        )
        if event.event is not None:
            event.current_stream_wait()
        rows = recv_x[0] if fp8 else recv_x
        out = torch.full((len(rows), HIDDEN), float("nan"), device=DEVICE).bfloat16()
        first, local = env.rank * EXPERTS // env.ranks, EXPERTS // env.ranks
        if decode:
            assert recv_topk_idx is None
            begin = 0
            for i, end in enumerate(handle.psum_num_recv_tokens_per_expert.tolist()):
                made = torch.zeros(end - begin, HIDDEN, device=DEVICE) if fp8 else rows[begin:end].float()
                out[begin:end] = (made * (first + i + 1) * recv_topk_weights[begin:end, None]).bfloat16()
                begin = -(-end // 128) * 128
        else:
            n = int(handle.psum_num_recv_tokens_per_scaleup_rank[-1].item())
            assert n == len(rows) and len(handle.num_recv_tokens_per_expert_list) == local
            globally = torch.where(recv_topk_idx >= 0, recv_topk_idx + first, -1)
            out = scaled(
                torch.zeros(rows.shape, device=DEVICE) if fp8 else rows, globally, recv_topk_weights
            ).bfloat16()
        combined_x, _, event = buffer.combine(out, handle=handle, topk_weights=None, num_sms=sms, num_qps=qps)
        if event.event is not None:
            event.current_stream_wait()
        want = scaled(hidden_states, topk_ids, topk_weights)
        assert close(combined_x, torch.zeros_like(want) if fp8 else want)
        assert not dummy or combined_x[:0].shape == (0, HIDDEN)


# ---- Megatron-Core ----


@each(asynchronous=(False, True))
def test_megatron(asynchronous):
    torch_or_skip()
    on_ranks(2, megatron, asynchronous)


class Megatron:
    """fused_a2a.py: one buffer in the process, made anew for a wider row; dispatch and combine as autograd functions."""

    def __init__(self, asynchronous):
        self.buffer, self.asynchronous = None, asynchronous

    def get_buffer(self, group, x):
        from deep_ep import Buffer

        hidden_bytes, nvl, rdma = x.size(1) * max(x.element_size(), 2), 0, 0
        for config in (Buffer.get_dispatch_config(group.size()), Buffer.get_combine_config(group.size())):
            nvl = max(config.get_nvl_buffer_size_hint(hidden_bytes, group.size()), nvl)
            rdma = max(config.get_rdma_buffer_size_hint(hidden_bytes, group.size()), rdma)
        have = self.buffer
        if have is None or have.group != group or have.num_nvl_bytes < nvl or have.num_rdma_bytes < rdma:
            self.buffer = Buffer(group, nvl, rdma)
        return self.buffer

    def step(self):
        """(previous_event, keywords): of each call."""
        from deep_ep.utils import EventHandle, EventOverlap

        previous = EventOverlap(EventHandle()) if self.asynchronous else None
        return previous, dict(async_finish=self.asynchronous, allocate_on_comm_stream=self.asynchronous)

    def wait(self, event):
        if self.asynchronous:
            event.current_stream_wait()


def megatron_functions(m, group):
    import torch

    class Dispatch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, indices, probs):
            previous_event, how = m.step()
            buffer = m.get_buffer(group, x)
            per_rank, per_rdma_rank, per_expert, in_rank, event = buffer.get_dispatch_layout(
                indices, EXPERTS, previous_event=previous_event, **how
            )
            recv_x, recv_indices, recv_probs, counts, handle, after = buffer.dispatch(
                x,
                topk_idx=indices,
                topk_weights=probs,
                num_tokens_per_rank=per_rank,
                num_tokens_per_rdma_rank=per_rdma_rank,
                is_token_in_rank=in_rank,
                num_tokens_per_expert=per_expert,
                previous_event=event,
                **how,
            )
            m.wait(after)
            ctx.handle = handle
            return recv_x, recv_indices, recv_probs, torch.tensor(counts), handle

        @staticmethod
        def backward(ctx, grad, grad_indices, grad_probs, grad_counts, grad_handle):
            previous_event, how = m.step()
            grad_x, grad_probs, after = m.get_buffer(group, grad).combine(
                grad.contiguous(), ctx.handle, topk_weights=grad_probs.float(), previous_event=previous_event, **how
            )
            m.wait(after)
            return grad_x, None, grad_probs

    class Combine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, handle):
            previous_event, how = m.step()
            combined_x, _, after = m.get_buffer(group, x).combine(
                x, handle=handle, previous_event=previous_event, **how
            )
            m.wait(after)
            ctx.handle = handle
            return combined_x, None

        @staticmethod
        def backward(ctx, grad, previous_event=None):
            previous_event, how = m.step()
            grad_x, _, _, _, _, after = m.get_buffer(group, grad).dispatch(
                grad.contiguous(), handle=ctx.handle, previous_event=previous_event, **how
            )
            m.wait(after)
            return grad_x, None

    return Dispatch, Combine


def megatron(env, asynchronous):
    """Two layers, the second with wider rows: its buffer takes the first's place, whose handles are still needed."""
    import torch

    with stand_in():
        from deep_ep import Buffer

        Buffer.set_num_sms(20)
        m, group = Megatron(asynchronous), env.process_group()
        dispatch, combine = megatron_functions(m, group)
        layers, offset = [], env.rank * EXPERTS // env.ranks
        for hidden in (HIDDEN, 2 * HIDDEN):
            _, idx, w = everybody(env, 110)
            x = torch.randn(len(idx[env.rank]), hidden, device=DEVICE).bfloat16().requires_grad_()
            probs = w[env.rank].clone().requires_grad_()
            rows, indices, row_probs, counts, handle = dispatch.apply(x, idx[env.rank], probs)
            assert counts.tolist() == [int((indices == e).sum()) for e in range(EXPERTS // env.ranks)]
            globally = torch.where(indices >= 0, indices + offset, -1)
            y, _ = combine.apply(scaled(rows, globally, row_probs).bfloat16(), handle)
            layers.append((x, probs, idx[env.rank], y, m.buffer))
        assert layers[0][4] is not layers[1][4] and layers[0][4] is not m.buffer
        for x, probs, choice, y, _ in reversed(layers):
            assert close(y.detach(), scaled(x.detach(), choice, probs.detach()))
            grad = torch.randn(y.shape, device=DEVICE).bfloat16()
            y.backward(grad)
            plain = [t.detach().float().requires_grad_() for t in (x, probs)]
            scaled(plain[0], choice, plain[1]).backward(grad.float())
            assert close(x.grad, plain[0].grad) and close(probs.grad, plain[1].grad)
        Buffer._sms_asked = False
