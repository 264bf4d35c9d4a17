"""DeepEP's tuning knobs and size hints. Ferry chooses for itself: they are kept so that callers find them."""

from __future__ import annotations

# num_ranks: send and receive chunks of (dispatch, combine), as DeepEP recommends them
_CHUNKS = {
    2: ((24, 256, 6, 128), (10, 256, 6, 128)),
    4: ((6, 256, 6, 128), (9, 256, 6, 128)),
    8: ((6, 256, 6, 128), (4, 256, 6, 128)),
    16: ((36, 288, 20, 128), (4, 288, 12, 128)),
    96: ((20, 480, 12, 128), (1, 480, 8, 128)),
    128: ((20, 560, 12, 128), (1, 560, 8, 128)),
    144: ((32, 720, 12, 128), (2, 720, 8, 128)),
    160: ((28, 720, 12, 128), (2, 720, 8, 128)),
}
_CHUNKS.update({n: ((32, 288, 8, 128), (1, 288, 8, 128)) for n in (24, 32, 48, 64)})


class Config:
    """Chunk sizes, in tokens. Ferry writes rows straight into their place, in no chunks: nothing here changes anything."""

    def __init__(
        self,
        num_sms: int = 20,
        num_max_nvl_chunked_send_tokens: int = 6,
        num_max_nvl_chunked_recv_tokens: int = 256,
        num_max_rdma_chunked_send_tokens: int = 6,
        num_max_rdma_chunked_recv_tokens: int = 256,
    ):
        self.num_sms = num_sms
        self.num_max_nvl_chunked_send_tokens = num_max_nvl_chunked_send_tokens
        self.num_max_nvl_chunked_recv_tokens = num_max_nvl_chunked_recv_tokens
        self.num_max_rdma_chunked_send_tokens = num_max_rdma_chunked_send_tokens
        self.num_max_rdma_chunked_recv_tokens = num_max_rdma_chunked_recv_tokens

    def get_nvl_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """Bytes that a buffer of DeepEP's would take: callers compare such numbers. Ferry takes what docs/gpu.md says."""
        channels, local, hosts = max(1, self.num_sms // 2), min(num_ranks, 8), max(1, num_ranks // 8)
        token = hidden_bytes + 8 + 128 * (8 + 4 + 4)
        size = channels * local * ((2 * hosts + 3) * 4 + self.num_max_nvl_chunked_recv_tokens * token)
        return -(-size // 128) * 128

    def get_rdma_buffer_size_hint(self, hidden_bytes: int, num_ranks: int) -> int:
        """0: all ranks of a Ferry group are on one host."""
        return 0


def recommended(num_ranks: int, num_sms: int, combine: bool) -> Config:
    chunks = _CHUNKS.get(num_ranks, _CHUNKS[8])
    return Config(num_sms, *chunks[1 if combine else 0])
