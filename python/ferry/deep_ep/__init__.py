"""DeepEP's Python interface, served by Ferry: on one host, with or without GPUs.

    import sys, ferry.deep_ep
    sys.modules["deep_ep"] = ferry.deep_ep          # before vLLM, SGLang or Megatron-Core look for it

`Buffer` is that of DeepEP V1 (normal and low-latency mode), `ElasticBuffer` that of V2. CUDA tensors and CPU tensors are
taken. docs/migrating-from-deepep.md has a table of every call: what it is here, what differs, and why.
"""

import torch

from ._config import Config
from ._event import EventHandle, EventOverlap
from .buffer import Buffer
from .elastic import ElasticBuffer, EPHandle

topk_idx_t = torch.int64
__version__ = "2.1.0"  # of the interface

__all__ = ["Buffer", "Config", "ElasticBuffer", "EPHandle", "EventHandle", "EventOverlap", "topk_idx_t"]
