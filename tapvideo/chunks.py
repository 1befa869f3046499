"""Working through tokens in pieces, so that fp32 temporaries stay small whatever the size of the video."""

from collections.abc import Iterator

import torch

_CPU_ELEMENTS = 1 << 17  # a piece and its temporaries stay in a core's cache
_GPU_ELEMENTS = 1 << 23  # large enough to fill a GPU, 32 MiB per fp32 temporary


def token_chunks(tokens: int, dim: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `tokens` tokens of `dim` features."""
    elements = _CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS
    chunk = max(1, elements // dim)
    for start in range(0, tokens, chunk):
        yield slice(start, min(start + chunk, tokens))
