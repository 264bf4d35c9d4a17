"""`import deep_ep` for DeepEP's own test scripts, with ranks that share one GPU: Ferry's drop-in, and torch.distributed told of it.

Those scripts ask for NCCL and for a GPU of each rank's own. NCCL does not serve ranks that share one, gloo does. What gloo may
not take of a GPU, or not of this shape, goes through the CPU.
"""

import sys

import torch
import torch.distributed as dist

import ferry.deep_ep

_init, _set_device = dist.init_process_group, torch.cuda.set_device


def init_process_group(backend=None, device_id=None, **options):
    return _init("gloo", **options)


def set_device(device):
    return _set_device(device % torch.cuda.device_count() if isinstance(device, int) else device)


def all_gather_into_tensor(output_tensor, input_tensor, group=None, async_op=False):
    """gloo's own wants ranks one behind another in the first dimension; NCCL's also takes them in a dimension of their own."""
    ranks = dist.get_world_size(group)
    parts = torch.empty((ranks, *input_tensor.shape), dtype=input_tensor.dtype, device="cpu")
    dist.all_gather(list(parts.unbind()), input_tensor.cpu(), group)
    output_tensor.copy_(parts.view(output_tensor.shape))


dist.init_process_group, torch.cuda.set_device = init_process_group, set_device
dist.all_gather_into_tensor = all_gather_into_tensor
sys.modules["deep_ep"] = ferry.deep_ep
