"""The drop-in for deep_ep: V2."""

from deep_ep_cases import EXPERTS, HIDDEN, TOPK, M, arrivals, bits, e4m3, equal_bits, everybody, local_ids
from harness import DEVICE, each, on_ranks, torch_or_skip


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


@each(expand=(False, True), multiple=(True, False), sync=(True, False))
def test_elastic_sums_in_its_order(expand, multiple, sync):
    torch_or_skip()
    on_ranks(4, elastic_sums, expand, multiple, sync)


def elastic_sums(env, expand, multiple, sync):
    """Bit for bit, with answers of which every other order of summation gives another sum."""
    import torch

    from ferry.deep_ep import ElasticBuffer
    from ferry.deep_ep.utils import refs

    x, idx, w = everybody(env, 31)
    mine, choice, weights = x[env.rank], idx[env.rank], w[env.rank]
    buffer = ElasticBuffer(env.process_group(), allow_multiple_reduction=multiple, explicitly_destroy=True)
    rows, ids, rw, handle, _ = buffer.dispatch(
        mine, choice, weights, num_experts=EXPERTS, num_max_tokens_per_rank=M, do_expand=expand, do_cpu_sync=sync
    )
    want_rows, want_ids, _, source, per_rank = refs.dispatch(mine, choice, weights, M, EXPERTS)
    n = len(source)
    assert torch.equal(handle.recv_src_metadata[:n, 0], source) and per_rank.sum() == n
    assert expand or (equal_bits(rows[:n], want_rows) and torch.equal(ids[:n], want_ids))

    kinds = torch.tensor([1.0, 2.0**30, -(2.0**30), 3.0, -(2.0**20)], device=DEVICE).bfloat16()
    generator = torch.Generator().manual_seed(7)
    drawn = torch.randint(len(kinds), (env.ranks * M, TOPK, HIDDEN), generator=generator).to(DEVICE)
    answers = kinds[drawn]  # of each choice of each token
    here = answers[source.long()].masked_fill((want_ids < 0)[..., None], 0)
    back = torch.full((len(rows), HIDDEN), float("nan"), device=DEVICE).bfloat16()
    if expand:
        places = handle.recv_src_metadata[:n, 2:].long()
        back[places[places >= 0]] = here[places >= 0]
    else:
        back[:n] = refs.ordered_accumulate(here)
    asked = answers[env.rank * M : env.rank * M + len(mine)].masked_fill((choice < 0)[..., None], 0)
    for bias in (None, mine, (mine, mine * 3)):
        y, yw, _ = buffer.combine(back, handle, topk_weights=rw, bias=bias)
        want = refs.combine(asked, choice, 1, env.ranks, EXPERTS, bias, multiple or not expand, False)
        assert equal_bits(y, want)
        assert torch.equal(yw, weights.masked_fill(choice < 0, 0))
    buffer.destroy()  # waits for its kernels: a rank without tokens has compared nothing, and waited for none


def test_rows_are_summed_by_token():
    """The GPU's way of it too, as far as a CPU can tell: whole numbers, which every order sums alike."""
    torch = torch_or_skip()
    from ferry.deep_ep import _fold

    x = torch.randint(-100, 100, (7, 4)).float()
    x[5] = float("nan")  # which no token has
    places = torch.tensor([[3, -1, 1], [-1, -1, -1], [-1, 6, 4], [0, 2, 1]], dtype=torch.int32)
    want = torch.stack([x[[p for p in row if p >= 0]].sum(0) for row in places.tolist()])
    assert torch.equal(_fold.sum_by_token(x, places), want) and torch.equal(_fold._bags(x, places), want)
    for rows, tokens in ((0, 3), (7, 0), (0, 0)):
        none = torch.full((tokens, 2), -1, dtype=torch.int32)
        assert torch.equal(_fold.sum_by_token(x[:rows], none), torch.zeros(tokens, 4))
        assert torch.equal(_fold.weights_by_token(x[:rows, 0], none), torch.zeros(tokens, 2))
    again = torch.tensor([[2, 5, 2], [-1, -1, 1]], dtype=torch.int32)
    assert _fold.distinct(again).tolist() == [[2, 5, -1], [-1, -1, 1]]


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
