#!/usr/bin/env python3
"""A mixture-of-experts layer, trained over several ranks by Ferry and once more dense in one process: the same losses.

    python3 moe.py --ranks 4 --steps 100

Each rank holds a part of the experts and of every batch. A token's rows travel to its two experts (`ferry.torch.dispatch`),
come back and are summed (`ferry.torch.combine`); autograd sends the gradients the other way. The dense layer runs every
expert on every token and masks. Both begin with the same weights and see the same batches.
"""

import argparse
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import ferry
import ferry.torch

HIDDEN, INNER, EXPERTS, TOPK, BATCH = 64, 128, 8, 2, 96


class Experts(nn.Module):
    """Two-layer perceptrons, drawn expert by expert: the same for any division among ranks."""

    def __init__(self, which):
        super().__init__()
        draws = []
        for e in which:
            g = torch.Generator().manual_seed(1000 + e)
            up = torch.randn(HIDDEN, INNER, generator=g) / HIDDEN**0.5
            draws.append((up, torch.randn(INNER, HIDDEN, generator=g) / INNER**0.5))
        self.up = nn.ParameterList([nn.Parameter(up) for up, _ in draws])
        self.down = nn.ParameterList([nn.Parameter(down) for _, down in draws])

    def forward(self, i, x):
        return torch.relu(x @ self.up[i]) @ self.down[i]


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.randn(HIDDEN, EXPERTS, generator=torch.Generator().manual_seed(7)) / HIDDEN**0.5)

    def forward(self, x):
        scores, idx = torch.topk(x @ self.gate, TOPK, dim=-1)
        return idx, torch.softmax(scores, -1)


class FerryMoE(nn.Module):
    def __init__(self, group):
        super().__init__()
        self.group, self.router = group, Router()
        self.experts = Experts(group.local_experts().tolist())

    def forward(self, x):
        idx, weights = self.router(x)
        rows, row_weights, route = ferry.torch.dispatch(self.group, x, idx, weights, layout="expert")
        parts = torch.split(rows, route.expert_rows.tolist())
        y = torch.cat([self.experts(i, part) for i, part in enumerate(parts)]) * row_weights[:, None]
        return ferry.torch.combine(y, route)


class DenseMoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.experts = Router(), Experts(range(EXPERTS))

    def forward(self, x):
        idx, weights = self.router(x)
        share = torch.zeros(len(x), EXPERTS, device=x.device).scatter(1, idx, weights)
        return sum(share[:, e, None] * self.experts(e, x) for e in range(EXPERTS))


def batch(step):
    g = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, HIDDEN, generator=g)
    return x, torch.sin(2 * x.roll(1, 1)) + x.flip(1)


def train(model, steps, part, device, finish):
    """Losses by step. `finish` sums over ranks what is each rank's share."""
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for step in range(steps):
        x, target = (t[part].to(device) for t in batch(step))
        loss = ((model(x) - target) ** 2).sum() / (BATCH * HIDDEN)
        optimizer.zero_grad()
        loss.backward()
        losses.append(finish(model, loss.detach()))
        optimizer.step()
    return losses


def over_ranks(model, loss):
    # Experts have seen all of their tokens, of every rank. The router has seen this rank's.
    for t in (model.router.gate.grad, loss):
        here = t.cpu()
        dist.all_reduce(here)
        t.copy_(here)
    return loss.item()


def run_rank(rank, args, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{args.port}", rank=rank, world_size=args.ranks)
    config = dict(experts=EXPERTS, hidden=HIDDEN, max_tokens=BATCH, max_topk=TOPK, dtype="float32", device=args.device)
    with ferry.Group.from_process_group(**config) as group:
        part = slice(rank * BATCH // args.ranks, (rank + 1) * BATCH // args.ranks)
        losses = train(FerryMoE(group).to(args.device), args.steps, part, args.device, over_ranks)
    if rank == 0:
        results.put(losses)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--port", type=int, default=29517)
    args = parser.parse_args()
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    processes = mp.spawn(run_rank, (args, results), nprocs=args.ranks, join=False)
    ours = results.get()
    while not processes.join():
        pass
    torch.set_num_threads(1)
    dense = train(DenseMoE().to(args.device), args.steps, slice(None), args.device, lambda model, loss: loss.item())
    print(f"{'step':>6} {f'{args.ranks} ranks':>10} {'dense':>10}")
    for step in sorted({0, *range(args.steps // 5 - 1, args.steps, max(1, args.steps // 5)), args.steps - 1}):
        print(f"{step + 1:6} {ours[step]:10.6f} {dense[step]:10.6f}")
    apart = max(abs(a - b) / b for a, b in zip(ours, dense))
    same = apart < 1e-3 and ours[-1] < 0.9 * ours[0]
    print(f"largest difference {apart:.1e} of the loss: {'the same curve' if same else 'NOT the same curve'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
