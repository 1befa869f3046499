"""Training of the embedded model's `AutoencoderKLWan` on drawn clips."""

import random
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResidualBlock, unpatchify
from jaxtyping import Float
from torch import Tensor, nn

from tapvideo.tiny import scenes

LATENT_CHANNELS = 48
CONFIG = {
    "base_dim": 16,
    "decoder_base_dim": 24,
    "z_dim": LATENT_CHANNELS,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "is_residual": True,
    "temperal_downsample": [True, True],
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * LATENT_CHANNELS,
    "latents_std": [1.0] * LATENT_CHANNELS,
}
_KL_WEIGHT = 1e-4


def build() -> AutoencoderKLWan:
    """A new autoencoder whose residual branches start at zero, which trains far faster than the stock start."""
    vae = AutoencoderKLWan(**CONFIG)
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            nn.init.zeros_(module.conv2.weight)
        if isinstance(module, WanAttentionBlock):
            nn.init.zeros_(module.proj.weight)
    return channels_last(vae)


def channels_last(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """The same autoencoder with 3-d kernels laid out for fast CPU convolutions."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


def decode_unclamped(
    vae: AutoencoderKLWan, latents: Float[Tensor, "b c t h w"]
) -> Float[Tensor, "b 3 frames height width"]:
    """`vae.decode` without its final clamp, whose gradient is zero where training needs it most."""
    vae.clear_cache()
    x = vae.post_quant_conv(latents)
    chunks = []
    for i in range(x.shape[2]):
        vae._conv_idx = [0]
        frame = x[:, :, i : i + 1]
        chunks.append(vae.decoder(frame, feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0))
    vae.clear_cache()
    return unpatchify(torch.cat(chunks, 2), patch_size=CONFIG["patch_size"])


def loss(
    vae: AutoencoderKLWan, clip: Float[Tensor, "b 3 t h w"], *, freeze_encoder: bool, latents_std: Tensor
) -> tuple[Tensor, float]:
    """Reconstruction loss (absolute and squared error, and KL while the encoder learns) and its mean squared error."""
    with torch.set_grad_enabled(not freeze_encoder):
        posterior = vae.encode(clip).latent_dist
        latents = posterior.mode() if freeze_encoder else posterior.sample()
    if freeze_encoder:  # what the DiT makes is never exact
        latents = latents + 0.03 * latents_std * torch.randn_like(latents)
    error = decode_unclamped(vae, latents).float() - clip
    squared = error.square().mean()
    total = 0.5 * error.abs().mean() + 4 * squared
    if not freeze_encoder:
        total = total + _KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
    return total, squared.item()


def clip_batches(
    seed: int, batch: int, device: torch.device, *, pool: int = 64
) -> Iterator[Float[Tensor, "b 3 t h w"]]:
    """Endless random crops in time (5, 9 or 13 frames) of freshly drawn clips; each pool serves several times."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    while True:
        clips = scenes.render([scenes.sample_scene(rng) for _ in range(pool)], generator)
        for _ in range(pool):
            frames = rng.choices((5, 9, 13), weights=(6, 3, 1))[0]
            rows = torch.randint(pool, (max(1, batch * 5 // frames),), generator=generator)
            start = rng.randrange(scenes.FRAMES - frames + 1)
            yield clips[rows, :, start : start + frames].to(device).contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def measure(vae: AutoencoderKLWan, *, num_clips: int = 48, seed: int = 10_000) -> tuple[float, float, Tensor, Tensor]:
    """Mean and worst PSNR (dB) of held-out clips, and the mean and standard deviation of their latents per channel."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    clips = scenes.render([scenes.sample_scene(rng, held_out=True) for _ in range(num_clips)], generator).to(vae.device)
    latents = torch.cat([vae.encode(c).latent_dist.mode() for c in clips.split(8)])
    decoded = torch.cat([vae.decode(z).sample for z in latents.split(8)])
    psnr = 10 * torch.log10(4 / (decoded - clips).square().flatten(1).mean(1))
    return psnr.mean().item(), psnr.min().item(), latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))


@torch.no_grad()
def channel_weights(vae: AutoencoderKLWan, *, power: float = 0.75, seed: int = 0) -> Float[Tensor, " c"]:
    """How much each latent channel shows in the picture, of mean 1; the DiT's loss is weighted by it.

    Measured by the change of the decoded clips when one channel gets noise of half its standard deviation. Channels of
    normalised latents all have unit variance, while a few carry most of the picture and some carry next to nothing.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    clips = scenes.render([scenes.sample_scene(rng) for _ in range(3)], generator).to(vae.device)
    latents = vae.encode(clips).latent_dist.mode()
    decoded = vae.decode(latents).sample
    shown = []
    for channel, std in enumerate(vae.config.latents_std):
        disturbed = latents.clone()
        disturbed[:, channel] += 0.5 * std * torch.randn(latents[:, channel].shape, generator=generator).to(latents)
        shown.append((vae.decode(disturbed).sample - decoded).square().mean())
    weights = torch.stack(shown).pow(power)
    return weights / weights.mean()
