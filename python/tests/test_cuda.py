"""What only a GPU can show: the current stream is honoured, and CUDA graphs. tests/cuda/run runs it."""

from harness import DEVICE, draw, each, on_ranks, skip, torch_or_skip

EXPERTS, HIDDEN, TOPK, M = 8, 512, 2, 16


def gpu_or_skip():
    torch_or_skip()
    if DEVICE != "cuda":
        skip("no GPU here: FERRY_TEST_DEVICE is not 'cuda'")


def inputs(env, seed):
    import torch

    x, idx, w = (torch.from_numpy(d).cuda() for d in draw(seed, env.rank, M, TOPK, EXPERTS, HIDDEN))
    return x.bfloat16(), idx, w


def test_the_current_stream_is_honoured():
    gpu_or_skip()
    on_ranks(2, streams)


def streams(env):
    """Inputs that are still being computed when the call is made, on streams other than the default one."""
    import torch

    x, idx, _ = inputs(env, 1)
    with env.group(experts=EXPERTS, hidden=HIDDEN, max_tokens=M, device="cuda") as g:
        torch.cuda.synchronize()
        for n in range(1, 6):
            with torch.cuda.stream(torch.cuda.Stream()) as _:
                late = torch.zeros_like(x)
                torch.cuda._sleep(20_000_000)
                late.copy_(x * n)
                with g.route(idx, mode="latency") as route:
                    y = route.combine(route.dispatch(late, view=True).rows).rows.clone()
                torch.cuda.current_stream().synchronize()
            homes = torch.zeros(M, env.ranks + 1, device="cuda")
            homes.scatter_(1, torch.where(idx < 0, env.ranks, idx * env.ranks // EXPERTS), 1)
            assert torch.equal(y, ((x * n).float() * homes[:, : env.ranks].sum(1, keepdim=True)).bfloat16())


@each(zero_copy=(False, True))
def test_low_latency_in_a_graph(zero_copy):
    gpu_or_skip()
    on_ranks(2, graph, zero_copy)


def graph(env, zero_copy):
    import torch

    from ferry.deep_ep import Buffer

    buffer = Buffer(env.process_group(), low_latency_mode=True, explicitly_destroy=True)
    x, idx, w = inputs(env, 2)

    def step():
        out = []
        for _ in range(2):  # the halves of the buffers alternate: a graph has an even number
            rx, _, handle, _, hook = buffer.low_latency_dispatch(
                x, idx, M, EXPERTS, use_fp8=False, return_recv_hook=True
            )
            hook()
            if zero_copy:
                buffer.get_next_low_latency_combine_buffer(handle).copy_(rx)
            out.append(buffer.low_latency_combine(rx, idx, w, handle, zero_copy=zero_copy)[0])
        return out

    step()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        results = step()
    for seed in range(3, 7):
        for into, new in zip((x, idx, w), inputs(env, seed)):
            into.copy_(new)
        captured.replay()
        torch.cuda.synchronize()
        want = x.float() * torch.where(idx >= 0, w, 0).sum(1, keepdim=True)
        for y in results:
            assert torch.allclose(y.float(), want, rtol=2e-2, atol=2e-2)
    del captured
    buffer.destroy()


def test_worst_tokens_in_a_graph():
    gpu_or_skip()
    on_ranks(2, worst_graph)


def worst_graph(env):
    import torch

    from ferry.deep_ep import Buffer

    buffer = Buffer(env.process_group(), 1 << 20, explicitly_destroy=True)
    x, idx, w = inputs(env, 8)

    def step():
        for _ in range(2):
            _, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(idx, EXPERTS)
            layout = dict(is_token_in_rank=in_rank, num_tokens_per_expert=per_expert, topk_idx=idx, topk_weights=w)
            rx, ri, _, _, handle, _ = buffer.dispatch(x, num_worst_tokens=M * env.ranks, **layout)
            y = buffer.combine(rx, handle)[0]
        return in_rank, ri, y

    step()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        in_rank, ri, y = step()
    for seed in range(9, 12):
        for into, new in zip((x, idx, w), inputs(env, seed)):
            into.copy_(new)
        captured.replay()
        torch.cuda.synchronize()
        assert torch.equal(y, (x.float() * in_rank.sum(1, keepdim=True)).bfloat16())
        assert int((ri >= 0).sum()) > 0
    del captured
    buffer.destroy()
