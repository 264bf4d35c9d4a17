"""Ferry carries mixture-of-experts tokens to their experts and back: dispatch and combine, for expert parallelism.

    import ferry

    group = ferry.Group(experts=256, hidden=7168, max_tokens=4096, max_topk=8)   # rank and ranks from torchrun, mpirun, srun
    route = group.route(topk_idx, topk_weights)        # counts are exchanged here
    received = route.dispatch(x)                       # rows travel to their experts
    ...                                                # experts run on received.rows
    y = route.combine(received.rows).rows              # and come back, summed

Arrays are NumPy's (ml_dtypes' bfloat16 and float8_e4m3fn among them), PyTorch's, or any that speak DLPack; their memory is used
in place. Every call that waits lets other Python threads run. Errors are exceptions, one class for each status of the C
library, with its sentence.

`ferry.torch` has what autograd and torch.distributed need; `ferry.deep_ep` stands in for the package deep_ep. Neither
is imported here.
"""

from . import heap
from ._array import Memory
from ._c import path as library
from ._c import version as __version__
from ._stream import Event, Stream
from .errors import (
    AbortedError,
    CapacityError,
    DeadlineError,
    FerryError,
    InvalidError,
    MismatchError,
    NoMemoryError,
    RefusedError,
    SystemCallError,
    UnsupportedError,
)
from .group import Counters, Group, group_bytes, unique_id
from .heap import Heap
from .route import Combined, Received, Route, combine, dispatch

__all__ = [
    "AbortedError",
    "CapacityError",
    "Combined",
    "Counters",
    "DeadlineError",
    "Event",
    "FerryError",
    "Group",
    "Heap",
    "InvalidError",
    "Memory",
    "MismatchError",
    "NoMemoryError",
    "Received",
    "RefusedError",
    "Route",
    "Stream",
    "SystemCallError",
    "UnsupportedError",
    "__version__",
    "combine",
    "dispatch",
    "group_bytes",
    "heap",
    "library",
    "unique_id",
]
