"""Training of the embedded model's `WanTransformer3DModel`: rectified flow on the frozen VAE's latents."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from tapvideo.tiny import scenes, text, vae

CONFIG = {
    "patch_size": (1, 1, 1),
    "num_attention_heads": 6,
    "attention_head_dim": 32,
    "in_channels": vae.LATENT_CHANNELS,
    "out_channels": vae.LATENT_CHANNELS,
    "text_dim": text.TEXT_DIM,
    "freq_dim": 128,
    "ffn_dim": 768,
    "num_layers": 8,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 64,
}
FLOW_SHIFT = 3.0
_CAPTION_DROPOUT = 0.1
_PIPELINE_TEXT_TOKENS = (64, 512)  # what `max_sequence_length` may be at inference


class MatrixAttention:
    """Wan's attention as plain matrix products, whose backward pass is far faster on a CPU than the fused kernel's.

    In cross-attention the last text token stands for many identical padding tokens: `WanPipeline` pads every prompt
    with zeros up to `max_sequence_length`, and a log(count) bias on one such key is the same as `count` of them. So
    training covers every length at the price of one.
    """

    def __init__(self, bias: Float[Tensor, "1 1 1 l"] | None = None) -> None:
        self.bias = bias

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        """The output of a `WanAttention`; the signature is that of diffusers' processors."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads = (attn.heads, -1)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, heads)
        key = attn.norm_k(attn.to_k(context)).unflatten(2, heads)
        value = attn.to_v(context).unflatten(2, heads).transpose(1, 2)
        if rotary_emb is not None:
            query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
        scores = (query.transpose(1, 2) * query.shape[-1] ** -0.5) @ key.permute(0, 2, 3, 1)
        if self.bias is not None:
            scores = scores + self.bias.to(scores.dtype)
        mixed = (torch.softmax(scores, -1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return attn.to_out[0](mixed)


def rotate(x: Float[Tensor, "b n heads d"], cos: Tensor, sin: Tensor) -> Float[Tensor, "b n heads d"]:
    """Rotary position embedding of interleaved pairs, as `WanAttnProcessor` has it."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)


def build() -> WanTransformer3DModel:
    """A new transformer: damped residual branches and a zero head."""
    model = WanTransformer3DModel(**CONFIG)
    with torch.no_grad():
        for block in model.blocks:
            for branch in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
                branch.weight.mul_(0.2)
        nn.init.zeros_(model.proj_out.weight)
        nn.init.zeros_(model.proj_out.bias)
    return model


def use_matrix_attention(model: WanTransformer3DModel) -> Float[Tensor, "1 1 1 l"]:
    """Put `MatrixAttention` everywhere and return the padding bias that all cross-attentions share."""
    bias = torch.zeros(1, 1, 1, text.CAPTION_TOKENS + 1, device=model.device)
    for block in model.blocks:
        block.attn1.set_processor(MatrixAttention())
        block.attn2.set_processor(MatrixAttention(bias))
    return bias


@dataclass(slots=True)
class LatentPool:
    """Latents and captions' embeddings to draw batches from; new clips replace the oldest, so it never goes stale."""

    latents: Float[Tensor, "pool c t h w"]
    text: Float[Tensor, "pool l d"]
    filled: int = 0
    cursor: int = 0

    def push(self, latents: Tensor, embedded: Tensor) -> None:
        """Store new clips over the oldest ones."""
        for latent, words in zip(latents, embedded, strict=True):
            self.latents[self.cursor], self.text[self.cursor] = latent, words
            self.cursor = (self.cursor + 1) % len(self.latents)
            self.filled = min(self.filled + 1, len(self.latents))

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random batch of latents and text."""
        rows = torch.randint(self.filled, (batch,), generator=generator).to(self.latents.device)
        return self.latents[rows].float(), self.text[rows].float()


@dataclass(slots=True)
class LatentSource:
    """Draws clips, encodes them with the frozen VAE and text encoder, and keeps a pool of them."""

    vae: AutoencoderKLWan
    tokenizer: PreTrainedTokenizerFast
    encoder: UMT5EncoderModel
    rng: random.Random
    generator: torch.Generator
    pool: LatentPool
    mean: Tensor
    std: Tensor

    @classmethod
    def create(
        cls,
        autoencoder: AutoencoderKLWan,
        tokenizer: PreTrainedTokenizerFast,
        encoder: UMT5EncoderModel,
        *,
        seed: int,
        size: int,
    ) -> "LatentSource":
        """An empty pool of `size` clips on the autoencoder's device."""
        device, channels = autoencoder.device, autoencoder.config.z_dim
        mean, std = (
            torch.tensor(v, device=device).view(1, -1, 1, 1, 1)
            for v in (autoencoder.config.latents_mean, autoencoder.config.latents_std)
        )
        frames, side = (scenes.FRAMES - 1) // 4 + 1, scenes.SIZE // autoencoder.config.scale_factor_spatial
        pool = LatentPool(
            torch.zeros(size, channels, frames, side, side, dtype=torch.float16, device=device),
            torch.zeros(size, text.CAPTION_TOKENS, text.TEXT_DIM, dtype=torch.float16, device=device),
        )
        return cls(
            autoencoder, tokenizer, encoder, random.Random(seed), torch.Generator().manual_seed(seed), pool, mean, std
        )

    @torch.no_grad()
    def refill(self, count: int) -> None:
        """Add `count` fresh clips."""
        batch = [scenes.sample_scene(self.rng) for _ in range(count)]
        clips = scenes.render(batch, self.generator).to(self.vae.device)
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(clips.device.type, torch.bfloat16):
            latents = self.vae.encode(clips).latent_dist.mode().float()
        self.pool.push(
            ((latents - self.mean) / self.std).half(),
            text.embed(self.tokenizer, self.encoder, [scenes.caption(s) for s in batch]).half(),
        )


def batches(
    source: LatentSource, empty: Float[Tensor, "1 l d"], batch: int, fresh: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of latents and text with caption dropout; each adds `fresh` new clips to the pool."""
    while True:
        source.refill(fresh)
        latents, words = source.pool.draw(batch, source.generator)
        dropped = torch.rand(batch, generator=source.generator).to(words.device) < _CAPTION_DROPOUT
        words[dropped] = empty.to(words)
        yield latents, nn.functional.pad(words, (0, 0, 0, 1))


def sample_sigma(batch: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Noise levels: mostly logit-normal, towards noise as `FLOW_SHIFT` has it at inference; a fifth uniform."""
    normal = torch.sigmoid(torch.randn(batch, generator=generator) * 1.1 + 1.5)
    uniform = torch.rand(batch, generator=generator)
    return torch.where(torch.rand(batch, generator=generator) < 0.2, uniform, normal)


def loss(
    model: nn.Module,
    bias: Tensor,
    latents: Float[Tensor, "b c t h w"],
    words: Float[Tensor, "b l d"],
    weights: Float[Tensor, " c"],
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error, weighted by channel, of the velocity `noise - latents` at random noise levels."""
    longest = math.log(_PIPELINE_TEXT_TOKENS[1] - text.CAPTION_TOKENS)
    usual = math.log(_PIPELINE_TEXT_TOKENS[0] - text.CAPTION_TOKENS)
    is_usual = torch.rand((), generator=generator) < 0.5
    bias[..., -1] = usual if is_usual else longest * torch.rand((), generator=generator)
    sigma = sample_sigma(len(latents), generator).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    level = sigma.view(-1, 1, 1, 1, 1)
    with torch.autocast(latents.device.type, torch.bfloat16):
        velocity = model((1 - level) * latents + level * noise, sigma * 1000, words, return_dict=False)[0]
    error = (velocity.float() - (noise - latents)).square()
    return (error * weights.view(1, -1, 1, 1, 1)).mean()
