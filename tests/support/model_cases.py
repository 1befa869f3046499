"""Tiny random models of every architecture, called as their pipelines call them: the rows of the table of models."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel, WanVACETransformer3DModel
from torch import Tensor, nn
from wan_random import WAN
from wan_random import random_transformer as random_wan

STEPS = 12


@dataclass(frozen=True)
class Case:
    """One architecture in one way of use."""

    name: str
    transformer: Callable[[], nn.Module]
    """With random weights, the same every time."""
    noise: Callable[[], Tensor]
    inputs: Callable[[Tensor, float, str], dict[str, Any]]
    """(latents, timestep from 1000 to 0, guidance branch) -> arguments of the transformer."""
    block_lists: tuple[str, ...] = ("blocks",)
    first_attention: Callable[[nn.Module], nn.Module] = field(default=lambda t: t.blocks[0].attn1)
    """Its first input is the probe."""
    branches: tuple[str, ...] = ("cond", "uncond")
    """Names that the pipeline gives its calls."""
    refused: str = ""
    """What the refusal says, where the architecture is not supported."""


def denoise(case: Case, transformer: nn.Module, *, steps: int = STEPS) -> Tensor:
    """Final latents of a plain Euler loop with guidance."""
    dtype = next(p.dtype for p in transformer.parameters() if p.is_floating_point())
    latents = case.noise()
    for step in range(steps):
        outputs = []
        for branch in case.branches:
            arguments = {
                name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
                for name, value in case.inputs(latents, 1000.0 * (1 - step / steps), branch).items()
            }
            context = transformer.cache_context(branch, step_index=step, num_inference_steps=steps)
            with torch.no_grad(), context:
                outputs.append(transformer(**arguments, return_dict=False)[0].float())
        velocity = outputs[0] if len(outputs) == 1 else 3 * outputs[0] - 2 * outputs[1]
        latents = latents - velocity / steps
    return latents


def seeded(*shape: int, seed: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _wan(**changes: Any) -> Callable[[], nn.Module]:
    return lambda: random_wan(num_attention_heads=4, attention_head_dim=12, **changes)


def _wan_inputs(latents: Tensor, timestep: float, branch: str) -> dict[str, Any]:
    text = seeded(1, 6, 8, seed=3 if branch == "cond" else 4)
    return {"hidden_states": latents, "timestep": torch.tensor([timestep]), "encoder_hidden_states": text}


def _wan_i2v_inputs(latents: Tensor, timestep: float, branch: str) -> dict[str, Any]:
    """Wan 2.1 I2V: condition and mask as further channels, CLIP's view of the image as further keys."""
    latents = torch.cat([latents, seeded(1, 5, *latents.shape[2:], seed=5)], 1)
    image = seeded(1, 5, 10, seed=6)
    return _wan_inputs(latents, timestep, branch) | {"encoder_hidden_states_image": image}


def _wan_first_last_inputs(latents: Tensor, timestep: float, branch: str) -> dict[str, Any]:
    """Wan 2.1 FLF2V: two images, whose tokens have positions."""
    return _wan_i2v_inputs(latents, timestep, branch) | {"encoder_hidden_states_image": seeded(2, 5, 10, seed=6)}


def _wan_ti2v_inputs(latents: Tensor, timestep: float, branch: str) -> dict[str, Any]:
    """Wan 2.2 TI2V: the first frame is given, so its tokens are at timestep 0."""
    frames, rows, columns = latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2
    timesteps = torch.full((1, frames, rows * columns), timestep)
    timesteps[:, 0] = 0
    return _wan_inputs(latents, timestep, branch) | {"timestep": timesteps.flatten(1)}


def _wan_noise() -> Tensor:
    return seeded(1, 4, 3, 10, 14, seed=1)  # 3 x 5 x 7 = 105 tokens


def _skyreels(**changes: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        sizes = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 3}
        return SkyReelsV2Transformer3DModel(**WAN | sizes | changes).eval()

    return build


CASES = [
    Case("Wan 2.1 T2V", _wan(), _wan_noise, _wan_inputs),
    Case("Wan 2.1 I2V", _wan(in_channels=9, image_dim=10, added_kv_proj_dim=48), _wan_noise, _wan_i2v_inputs),
    Case(
        "Wan 2.1 FLF2V",
        _wan(in_channels=9, image_dim=10, added_kv_proj_dim=48, pos_embed_seq_len=10),
        _wan_noise,
        _wan_first_last_inputs,
    ),
    Case("Wan 2.2 TI2V", _wan(), _wan_noise, _wan_ti2v_inputs),
    Case("SkyReels-V2 T2V", _skyreels(), _wan_noise, _wan_inputs),
    Case(
        "Wan 2.1 VACE",
        lambda: WanVACETransformer3DModel(**WAN, num_layers=2, vace_layers=[0], vace_in_channels=4),
        _wan_noise,
        _wan_inputs,
        refused="VACE adds hints between the blocks, which a forecast of the whole stack would drop",
    ),
]
