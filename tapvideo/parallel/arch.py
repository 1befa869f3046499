"""Sizes of an architecture, and what follows from them alone: tokens, parameters, operations of its parts."""

import math
from dataclasses import dataclass, field

import torch

from tapvideo.checks import ConfigError, at_least


@dataclass(kw_only=True)
class Architecture:
    """A transformer of Wan's blocks with its encoders and VAE; by default Wan 2.1 14B."""

    layers: int = 40
    heads: int = 40
    head_dim: int = 128
    ffn_dim: int = 13824
    patch_size: list[int] = field(default_factory=lambda: [1, 2, 2])
    """Latent frames, rows and columns of a token."""
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    """Numbers a text token comes with."""
    freq_dim: int = 256
    """Numbers a timestep comes with."""
    image_tokens: int = 0
    """Of the pictures that blocks attend to beside the text; 0 where there are none, or they come in the channels."""
    image_dim: int = 1280
    """Numbers such a token comes with."""
    experts: int = 1
    """Transformers of these sizes, of which every step takes one."""
    vae_stride: list[int] = field(default_factory=lambda: [4, 8, 8])
    """Frames, rows and columns of a latent."""
    text_encoder_params: int = 0
    image_encoder_params: int = 0
    vae_params: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        for key in ("layers", "heads", "head_dim", "ffn_dim", "in_channels", "out_channels", "text_dim", "freq_dim"):
            at_least(f"arch.{key}", getattr(self, key), 1)
        at_least("arch.image_dim", self.image_dim, 1)
        at_least("arch.experts", self.experts, 1)
        for key in ("image_tokens", "text_encoder_params", "image_encoder_params", "vae_params"):
            at_least(f"arch.{key}", getattr(self, key), 0)
        for key in ("patch_size", "vae_stride"):
            sizes = getattr(self, key)
            if len(sizes) != 3 or min(sizes) < 1:
                raise ConfigError(f"arch.{key}={sizes!r} is not a size; allowed: three integers from 1")

    @property
    def dim(self) -> int:
        """Width: numbers of a token inside the blocks."""
        return self.heads * self.head_dim

    @property
    def in_numbers(self) -> int:
        """Numbers of a token before the patch embedding."""
        return self.in_channels * math.prod(self.patch_size)

    @property
    def out_numbers(self) -> int:
        """Numbers of a token after the head: what ranks tell each other of it on a forecast step."""
        return self.out_channels * math.prod(self.patch_size)

    def token_grid(self, *, height: int, width: int, num_frames: int) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens of a clip.

        Raises:
            ConfigError: if the clip is not of whole tokens.
        """
        stride, patch = self.vae_stride, self.patch_size
        latent_frames, over = divmod(num_frames - 1, stride[0])
        latent_frames += 1
        if over or latent_frames % patch[0] or num_frames < 1:
            every = stride[0] * patch[0]
            first = 1 + (patch[0] - 1) * stride[0]
            raise ConfigError(
                f"num_frames={num_frames!r} is not of whole tokens; allowed: {first}, {first + every}, .."
            )
        for key, size, unit in (("height", height, stride[1] * patch[1]), ("width", width, stride[2] * patch[2])):
            if size < 1 or size % unit:
                raise ConfigError(f"{key}={size!r} is not of whole tokens; allowed: multiples of {unit}")
        return latent_frames // patch[0], height // (stride[1] * patch[1]), width // (stride[2] * patch[2])

    def parameters(self) -> tuple[int, int]:
        """Of one transformer: all, and those that diffusers keeps in fp32 (time embedding, norms, modulation)."""
        d, f = self.dim, self.ffn_dim
        time = self.freq_dim * d + d + d * d + d
        text = self.text_dim * d + d + d * d + d
        outer = self.in_numbers * d + d + time + 6 * d * d + 6 * d + text + d * self.out_numbers + self.out_numbers
        attention = 4 * (d * d + d) + 2 * d  # q, k, v, out, and the norms of q and k
        block = 2 * attention + 2 * d + 2 * d * f + f + d + 6 * d  # and cross-attention's norm, FFN, modulation
        exact = time + 2 * d + self.layers * (2 * d + 6 * d)
        if self.image_tokens:  # k and v of their own in cross-attention, and an embedding between two norms
            i = self.image_dim
            block += 2 * (d * d + d) + d
            outer += 2 * i + i * i + i + i * d + d + 2 * d
            exact += 2 * i + 2 * d
        return outer + 2 * d + self.layers * block, exact

    def transformer_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one transformer's weights in a dtype, as diffusers loads them."""
        every, exact = self.parameters()
        return (every - exact) * dtype.itemsize + exact * torch.float32.itemsize

    def pipeline_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the text encoder in a dtype, and of the pictures' encoder and the VAE in fp32."""
        exact = self.image_encoder_params + self.vae_params
        return self.text_encoder_params * dtype.itemsize + exact * torch.float32.itemsize

    def embedding_flops(self, tokens: int, text: int, timesteps: int = 1) -> int:
        """Of patches, timesteps and text; every rank does it for all tokens."""
        d = self.dim
        time = timesteps * (self.freq_dim + d + 6 * d)
        image = self.image_tokens * self.image_dim * (self.image_dim + d)
        return 2 * d * (tokens * self.in_numbers + time + text * (self.text_dim + d)) + 2 * image

    def head_flops(self, tokens: int) -> int:
        """Of the projection to latents."""
        return 2 * tokens * self.dim * self.out_numbers

    def block_flops(self, tokens: int, text: int) -> int:
        """Of one block for these tokens, but for self-attention's products with keys and values."""
        d, keys = self.dim, text + self.image_tokens
        return 12 * tokens * d * d + 4 * keys * d * d + 4 * tokens * keys * d + 4 * tokens * d * self.ffn_dim
