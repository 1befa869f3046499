"""LPIPS over AlexNet, where its trunk lies on disk; nothing is ever downloaded."""

import hashlib
import io
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, relu

from tapvideo.metrics.clips import MetricUnavailable, check_pair, check_side

TRUNK_NAME = "alexnet-owt-7be5be79.pth"  # torchvision's name; the figures begin its SHA-256
TRUNK_URL = f"https://download.pytorch.org/models/{TRUNK_NAME}"
_LAYERS = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}  # index in AlexNet's features: stride, padding
_POOLED = (3, 6)  # layers after a max pooling
_SMALLEST = 63  # pixels to a side that leave AlexNet's last layers 3 x 3 places, what LPIPS was fitted on (64) has

Weights = dict[str, Tensor]


def trunk_path() -> Path:
    """Where torchvision would keep AlexNet: `hub/checkpoints` under `$TORCH_HOME`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / TRUNK_NAME


def lpips(video: Float[Tensor, "frames height width 3"], reference: Float[Tensor, "frames height width 3"]) -> float:
    """Learned perceptual distance (LPIPS 0.1, AlexNet; Zhang et al. 2018), the mean over frames; 0 where equal.

    Raises:
        ValueError: if the clips differ in shape, are not of floating point or are too small.
        MetricUnavailable: if the trunk's weights are not on disk, or are others.
    """
    check_pair(video, reference)
    check_side("LPIPS", video, _SMALLEST)
    trunk, heads = load_trunk(trunk_path()), load_heads()
    pairs = zip(video, reference, strict=True)
    return sum(frame_distance(a, b, trunk, heads) for a, b in pairs) / len(video)


@lru_cache(maxsize=1)
def load_trunk(path: Path) -> Weights:
    """AlexNet's convolutions, from the very file that torchvision publishes.

    The file is a pickle, so it is opened only if its SHA-256 begins as its name says, and then as plain tensors
    (`weights_only`): other contents would be no LPIPS anyway.

    Raises:
        MetricUnavailable: if there is no such file, or it is another one.
    """
    if not path.is_file():
        raise MetricUnavailable(f"no AlexNet weights on disk: put {TRUNK_URL} at {path}")
    raw = path.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if not digest.startswith("7be5be79"):
        found = f"{path}: SHA-256 begins with {digest[:8]}, not 7be5be79"
        raise MetricUnavailable(f"{found}; put {TRUNK_URL} there")
    state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    return {name: value.float() for name, value in state.items() if name.startswith("features.")}


def load_heads() -> list[Float[Tensor, "1 channels 1 1"]]:
    """LPIPS' own weights of AlexNet's channels, which torchmetrics ships inside its package."""
    packed = files("torchmetrics.functional.image") / "lpips_models" / "alex.pth"
    state = torch.load(io.BytesIO(packed.read_bytes()), map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].float() for i in range(len(_LAYERS))]


@torch.no_grad()
def frame_distance(
    frame: Float[Tensor, "height width 3"],
    reference: Float[Tensor, "height width 3"],
    trunk: Weights,
    heads: list[Tensor],
) -> float:
    """LPIPS of one frame: weighted squares of the differences of unit-length features, summed over five layers."""
    both = torch.stack([frame, reference]).float().cpu().permute(0, 3, 1, 2)
    total = 0.0
    for features, head in zip(_features(both, trunk), heads, strict=True):
        unit = features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
        total += conv2d((unit[:1] - unit[1:]).square(), head).mean().item()
    return total


def _features(images: Float[Tensor, "b 3 height width"], trunk: Weights) -> list[Tensor]:
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    x = (images * 2 - 1 - shift) / scale
    found: list[Tensor] = []
    for index, (stride, padding) in _LAYERS.items():
        if index in _POOLED:
            x = max_pool2d(x, kernel_size=3, stride=2)
        weight, bias = trunk[f"features.{index}.weight"], trunk[f"features.{index}.bias"]
        x = relu(conv2d(x, weight, bias, stride=stride, padding=padding))
        found.append(x)
    return found
