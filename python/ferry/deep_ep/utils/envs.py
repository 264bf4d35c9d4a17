"""How DeepEP's test scripts begin: a process group, this rank's GPU, seeds and defaults."""

from __future__ import annotations

import os
import random
from typing import Any, Tuple

import torch
import torch.distributed as dist

_seeds = {"global": 0, "local": 0}


def init_seed(global_seed: int) -> None:
    """Seeds PyTorch and Python with the number plus this rank's."""
    _seeds.update({"global": global_seed, "local": global_seed + dist.get_rank()})
    torch.manual_seed(_seeds["local"])
    random.seed(_seeds["local"])


def get_global_seed() -> int:
    return _seeds["global"]


def get_local_seed() -> int:
    return _seeds["local"]


def init_dist(local_rank: int, num_local_ranks: int, seed: int = 0) -> Tuple[int, int, Any]:
    """(rank, ranks, group). NCCL where each rank has a GPU to itself; gloo where ranks share one, which NCCL does not."""
    address, port = os.getenv("MASTER_ADDR", "127.0.0.1"), os.getenv("MASTER_PORT", "8361")
    ranks = int(os.getenv("WORLD_SIZE", "1")) * num_local_ranks
    rank = int(os.getenv("RANK", "0")) * num_local_ranks + local_rank
    cards = torch.cuda.device_count()
    dist.init_process_group(
        "nccl" if cards >= num_local_ranks else "gloo",
        init_method=f"tcp://{address}:{port}",
        rank=rank,
        world_size=ranks,
    )
    torch.set_default_dtype(torch.bfloat16)
    if cards:
        getattr(torch, "set_default_device")("cuda")
        torch.cuda.set_device(local_rank % cards)
    init_seed(seed)
    return rank, ranks, dist.new_group(list(range(ranks)))


def dist_print(s: str = "", once_in_node: bool = False) -> None:
    """Prints by turns of the ranks, or rank 0 alone."""
    for rank in range(1 if once_in_node else dist.get_world_size()):
        if rank == dist.get_rank():
            print(s, flush=True)
        dist.barrier()
