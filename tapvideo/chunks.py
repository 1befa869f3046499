"""Working through tokens in pieces, and in honest fp32 whatever the surroundings."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch

_CPU_ELEMENTS = 1 << 17  # a piece and its temporaries stay in a core's cache
_GPU_ELEMENTS = 1 << 23  # large enough to fill a GPU, 32 MiB per fp32 temporary


def token_chunks(tokens: int, dim: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `tokens` tokens of `dim` features."""
    elements = _CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS
    chunk = max(1, elements // dim)
    for start in range(0, tokens, chunk):
        yield slice(start, min(start + chunk, tokens))


@contextmanager
def exact_fp32(device: torch.device) -> Generator[None]:
    """No autocast and no TF32 inside: a choice between near-equal errors must not hang on ten bits of mantissa."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
