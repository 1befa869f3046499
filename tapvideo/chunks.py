"""Working through tokens in pieces, and in honest fp32 whatever the surroundings."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

_CPU_ELEMENTS = 1 << 17  # a piece and its temporaries stay in a core's cache
_GPU_ELEMENTS = 1 << 23  # large enough to fill a GPU, 32 MiB per fp32 temporary


def token_chunks(tokens: int, dim: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `tokens` tokens of `dim` features."""
    chunk = max(1, _elements(device) // dim)
    for start in range(0, tokens, chunk):
        yield slice(start, min(start + chunk, tokens))


def is_one_piece(tensor: Tensor) -> bool:
    """Whether a tensor is small enough to be worked through at once: slicing it would take longer than the work."""
    return tensor.numel() <= _elements(tensor.device)


def by_pieces(
    make: Callable[..., Tensor], like: Float[Tensor, "b n d"], *others: Float[Tensor, "#b #n _"]
) -> Float[Tensor, "b n d"]:
    """`make` of `like` and others, token by token, in the dtype of `like`; its temporaries stay as small as a piece."""
    if is_one_piece(like):
        return make(like, *others).to(like.dtype)
    batch, tokens, dim = like.shape
    others = tuple(other.expand(batch, tokens, -1) for other in others)
    out = torch.empty_like(like)
    for row in range(batch):
        for part in token_chunks(tokens, dim, like.device):
            out[row, part] = make(like[row, part], *(other[row, part] for other in others))
    return out


def _elements(device: torch.device) -> int:
    return _CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS


@contextmanager
def exact_fp32(device: torch.device) -> Generator[None]:
    """No autocast and no TF32 inside: a choice between near-equal errors must not hang on ten bits of mantissa."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
