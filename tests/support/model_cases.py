"""Tiny random models of every architecture, called as their pipelines call them: the rows of the table of models."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cogvideox_random
import hunyuan_random
import image_random
import ltx2_random
import ltx_random
import mochi_random
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
    noise: Callable[[nn.Module], Tensor]
    inputs: Callable[[nn.Module, Tensor, float, str], dict[str, Any]]
    """(transformer, latents, timestep from 1000 to 0, guidance branch) -> its arguments."""
    block_lists: tuple[str, ...] = ("transformer_blocks",)
    first_attention: Callable[[nn.Module], nn.Module] = field(default=lambda t: t.transformer_blocks[0].attn)
    """Its first input is the probe."""
    branches: tuple[str, ...] = ("cond", "uncond")
    """Names that the pipeline gives its calls; one call of both has a doubled batch."""
    refused: str = ""
    """What the refusal says, where the architecture is not supported."""


def denoise(case: Case, transformer: nn.Module, *, steps: int = STEPS) -> Tensor:
    """Final latents of a plain Euler loop with guidance."""
    dtype = next(p.dtype for p in transformer.parameters() if p.is_floating_point())
    latents = case.noise(transformer)
    for step in range(steps):
        outputs: list[Tensor] = []
        for branch in case.branches:
            arguments = {
                name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
                for name, value in case.inputs(transformer, latents, 1000.0 * (1 - step / steps), branch).items()
            }
            context = transformer.cache_context(branch, step_index=step, num_inference_steps=steps)
            with torch.no_grad(), context:
                made = transformer(**arguments, return_dict=False)[0].float()
            outputs += made.chunk(len(made) // len(latents))
        velocity = outputs[0] if len(outputs) == 1 else 3 * outputs[0] - 2 * outputs[1]
        latents = latents - velocity[:, : latents.shape[1]] / steps  # of an edit, the image that is made
    return latents


def seeded(*shape: int, seed: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _wan_inputs(_: nn.Module, latents: Tensor, timestep: float, branch: str, words: int = 6) -> dict[str, Any]:
    text = seeded(1, words, 8, seed=3 if branch == "cond" else 4)
    return {"hidden_states": latents, "timestep": torch.tensor([timestep]), "encoder_hidden_states": text}


def _wan_i2v_inputs(wan: nn.Module, latents: Tensor, timestep: float, branch: str, images: int = 1) -> dict[str, Any]:
    """Condition and mask as further channels; in Wan 2.1, CLIP's view of the images as further keys."""
    latents = torch.cat([latents, seeded(1, 5, *latents.shape[2:], seed=5)], 1)
    if not images:
        return _wan_inputs(wan, latents, timestep, branch)
    views = seeded(images, 5, 10, seed=6)  # of first and last frame, tokens have positions
    # Diffusers takes the last 512 keys for the text's: with fewer, no key of the images would be looked at.
    return _wan_inputs(wan, latents, timestep, branch, words=512) | {"encoder_hidden_states_image": views}


def _wan_ti2v_inputs(wan: nn.Module, latents: Tensor, timestep: float, branch: str) -> dict[str, Any]:
    """Wan 2.2 TI2V: the first frame is given, so its tokens are at timestep 0."""
    frames, rows, columns = latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2
    timesteps = torch.full((1, frames, rows * columns), timestep)
    timesteps[:, 0] = 0
    return _wan_inputs(wan, latents, timestep, branch) | {"timestep": timesteps.flatten(1)}


def _wan_noise(_: nn.Module) -> Tensor:
    return seeded(1, 4, 3, 10, 14, seed=1)  # 3 x 5 x 7 = 105 tokens


def _wan_case(name: str, inputs: Callable[..., dict[str, Any]] = _wan_inputs, **changes: Any) -> Case:
    transformer = partial(random_wan, num_attention_heads=4, attention_head_dim=12, **changes)
    return Case(name, transformer, _wan_noise, inputs, ("blocks",), lambda t: t.blocks[0].attn1)


def _random_skyreels(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 3}
    return SkyReelsV2Transformer3DModel(**WAN | sizes | changes).eval()


def _skyreels_case(name: str, inputs: Callable[..., dict[str, Any]] = _wan_inputs, **changes: Any) -> Case:
    transformer = partial(_random_skyreels, **changes)
    return Case(name, transformer, _wan_noise, inputs, ("blocks",), lambda t: t.blocks[0].attn1)


def _random_vace() -> nn.Module:
    return WanVACETransformer3DModel(**WAN, num_layers=2, vace_layers=[0], vace_in_channels=4)


def _hunyuan(name: str, variant: str) -> Case:
    return Case(
        name,
        partial(hunyuan_random.random_transformer, variant),
        hunyuan_random.noise,
        hunyuan_random.inputs,
        ("transformer_blocks", "single_transformer_blocks"),
    )


def _hunyuan15(name: str, task: str) -> Case:
    return Case(
        name,
        partial(mochi_random.random_hunyuan15, task_type=task),
        mochi_random.hunyuan15_noise,
        partial(mochi_random.hunyuan15_inputs, image=task == "i2v"),
    )


def _cogvideox(name: str, variant: str) -> Case:
    return Case(
        name,
        partial(cogvideox_random.random_transformer, variant),
        cogvideox_random.noise,
        lambda transformer, latents, timestep, _: cogvideox_random.inputs(transformer, latents, int(timestep)),
        first_attention=lambda t: t.transformer_blocks[0].attn1,
        branches=("cond_uncond",),
    )


def _ltx_inputs(
    _: nn.Module, latents: Tensor, timestep: float, branch: str, *, per_token: bool = False
) -> dict[str, Any]:
    """Latents of both branches; of their text, the last tokens are masked."""
    given = ltx_random.call_inputs(0, tokens=(3, 5, 7), per_token=per_token)
    timesteps = given["timestep"] / 1000 * timestep  # a clean first frame stays at 0
    kept = {name: value for name, value in given.items() if name != "return_dict"}
    return kept | {"hidden_states": torch.cat([latents] * 2), "timestep": timesteps}


def _ltx(name: str, inputs: Callable[..., dict[str, Any]]) -> Case:
    return Case(
        name,
        partial(ltx_random.random_transformer, num_attention_heads=6),
        lambda _: seeded(1, 105, 8, seed=1),
        inputs,
        first_attention=lambda t: t.transformer_blocks[0].attn1,
        branches=("cond_uncond",),
    )


def _ltx2(name: str, build: Callable[[], nn.Module], *, guided: bool = False, **changes: Any) -> Case:
    """With a second call a step where video and sound do not attend to each other, if guided by that."""
    return Case(
        name,
        build,
        ltx2_random.noise,
        partial(ltx2_random.inputs, **changes),
        first_attention=lambda t: t.transformer_blocks[0].attn1,
        branches=("cond_uncond", "uncond_modality") if guided else ("cond_uncond",),
    )


def _image(name: str, build: Callable[[], nn.Module], inputs: Callable[..., dict[str, Any]], **more: Any) -> Case:
    return Case(name, build, image_random.noise, inputs, **more)


CASES = [
    _wan_case("Wan 2.1 T2V"),
    _wan_case("Wan 2.1 I2V", _wan_i2v_inputs, in_channels=9, image_dim=10, added_kv_proj_dim=48),
    _wan_case(
        "Wan 2.1 FLF2V",
        partial(_wan_i2v_inputs, images=2),
        in_channels=9,
        image_dim=10,
        added_kv_proj_dim=48,
        pos_embed_seq_len=10,
    ),
    _wan_case("Wan 2.2 I2V", partial(_wan_i2v_inputs, images=0), in_channels=9),
    _wan_case("Wan 2.2 TI2V", _wan_ti2v_inputs),
    _skyreels_case("SkyReels-V2 T2V"),
    _skyreels_case("SkyReels-V2 I2V", _wan_i2v_inputs, in_channels=9, image_dim=10, added_kv_proj_dim=48),
    _hunyuan("HunyuanVideo T2V", "t2v"),
    _hunyuan("HunyuanVideo I2V, latents", "i2v-latents"),
    _hunyuan("HunyuanVideo I2V, tokens", "i2v-tokens"),
    _hunyuan15("HunyuanVideo 1.5 T2V", "t2v"),
    _hunyuan15("HunyuanVideo 1.5 I2V", "i2v"),
    Case(
        "Mochi",
        mochi_random.random_mochi,
        mochi_random.noise,
        mochi_random.mochi_inputs,
        first_attention=lambda t: t.transformer_blocks[0].attn1,
        branches=("cond_uncond",),
    ),
    _cogvideox("CogVideoX 2B", "2b"),
    _cogvideox("CogVideoX 5B", "5b"),
    _cogvideox("CogVideoX 5B I2V", "5b-i2v"),
    _cogvideox("CogVideoX 1.5", "1.5"),
    _cogvideox("CogVideoX 1.5 I2V", "1.5-i2v"),
    _ltx("LTX-Video T2V", _ltx_inputs),
    _ltx("LTX-Video I2V", partial(_ltx_inputs, per_token=True)),
    _ltx2("LTX-2 T2V", ltx2_random.random_transformer),
    _ltx2("LTX-2 I2V", ltx2_random.random_transformer, per_token=True),
    _ltx2("LTX-2.3 T2V", ltx2_random.random_newer_transformer, guided=True, cross=True),
    _image(
        "FLUX.1",
        image_random.random_flux,
        image_random.flux_inputs,
        block_lists=("transformer_blocks", "single_transformer_blocks"),
        branches=("cond",),
    ),
    _image("Qwen-Image", image_random.random_qwen, image_random.qwen_inputs),
    _image("Qwen-Image Edit", partial(image_random.random_qwen, zero_cond_t=True), image_random.qwen_edit_inputs),
    Case(
        "CogView4",
        image_random.random_cogview4,
        image_random.cogview4_noise,
        image_random.cogview4_inputs,
        first_attention=lambda t: t.transformer_blocks[0].attn1,
    ),
    Case(
        "Wan 2.1 VACE",
        _random_vace,
        _wan_noise,
        _wan_inputs,
        refused="VACE adds hints between the blocks, which a forecast of the whole stack would drop",
    ),
]
