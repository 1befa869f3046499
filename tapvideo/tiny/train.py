"""`python -m tapvideo.tiny.train`: train the embedded model, part after part, and assemble the pipeline.

Parts: text (minutes on a CPU), vae, decoder (the VAE's decoder alone, on frozen latents), dit. Every part keeps a
checkpoint in the output folder and goes on from it; `--init` starts from the weights of an assembled pipeline, such as
the one that ships with the package. Under `torchrun` every process takes its own share of the clips.
"""

import argparse
import math
import os
import random
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import UMT5EncoderModel

from tapvideo.tiny import dit, loop, optim, text, vae
from tapvideo.tiny.assemble import assemble

PARTS = ("text", "vae", "decoder", "dit", "assemble")

PARTS_ON_INIT = ("decoder", "dit", "assemble")
"""Text encoder and latents stay what the DiT was trained on."""


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = _parse(argv)
    torch.set_num_threads(args.threads or max(1, (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", "1"))))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
        if args.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.manual_seed(args.seed)
    rank = dist.get_rank() if dist.is_initialized() else 0
    trainers = {"text": _train_text, "vae": _train_vae, "decoder": _train_decoder, "dit": _train_dit}
    for part in args.parts or (PARTS if args.init is None else PARTS_ON_INIT):
        if part == "assemble":
            if rank == 0:
                assemble(args.out, args.init)
            continue
        seed = args.seed + 1_000_003 * rank + loop.steps_done(args.out, part)  # a run taken up again sees new clips
        trainers[part](args, seed)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tapvideo.tiny.train", description="Train the embedded model wan_tiny."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("wan_tiny_training"), help="folder for checkpoints and the assembled pipeline"
    )
    parser.add_argument(
        "--init", type=Path, help="assembled pipeline to start from, e.g. the package's own tapvideo/assets/wan_tiny"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        help="what to train, in order (default: all; with --init decoder, dit, assemble)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads per process (default: cores / processes)")
    for part, minutes in (("text", 3.0), ("vae", 30.0), ("decoder", 10.0), ("dit", 100.0)):
        parser.add_argument(
            f"--minutes-{part}", type=float, default=minutes, help=f"budget of this part (default {minutes:g})"
        )
    parser.add_argument(
        "--batch", type=int, default=16, help="clips per process and DiT step (default 16; 256 suits a GPU)"
    )
    parser.add_argument("--fresh", type=int, default=4, help="new clips drawn and encoded per DiT step (default 4)")
    parser.add_argument(
        "--short", type=float, default=0.2, help="share of the DiT's budget on clips of two latent frames (default 0.2)"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="factor on every learning rate (default 1)")
    parser.add_argument("--no-compile", action="store_true", help="do not compile the DiT's blocks")
    return parser.parse_args(argv)


def _optimizers(
    matrices: list, rest: list, muon_rate: float, adam_rate: float, factor: float
) -> list[torch.optim.Optimizer]:
    return [
        optim.Muon(matrices, muon_rate * factor),
        torch.optim.AdamW(rest, adam_rate * factor, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def _train_text(args: argparse.Namespace, seed: int) -> None:
    tokenizer = text.build_tokenizer()
    encoder = text.build_encoder(len(tokenizer))
    if args.init:
        encoder = UMT5EncoderModel.from_pretrained(args.init / "text_encoder", dtype=torch.float32)
    encoder, heads = encoder.to(args.device), text.AttributeHeads().to(args.device)
    both = torch.nn.ModuleList([encoder, heads])
    rng = random.Random(seed)

    def loss_step() -> tuple[Tensor, str]:
        total, accuracy = text.train_step(tokenizer, encoder, heads, rng)
        return total, f"right {accuracy:.3f}"

    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(both.parameters(), 3e-3 * args.rate)]
    both.load_state_dict(loop.run(loop.TrainingRun("text", args.out, args.minutes_text, both, optimizers, loss_step)))
    if _is_first():
        encoder.eval().save_pretrained(args.out / "text_encoder")
        tokenizer.save_pretrained(args.out / "tokenizer")
    _wait_for_all()


def _load_vae(args: argparse.Namespace) -> AutoencoderKLWan:
    for folder in (args.out / "vae", *([args.init / "vae"] if args.init else [])):
        if folder.exists():
            return vae.channels_last(AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32))
    return vae.build()


def _train_vae(args: argparse.Namespace, seed: int) -> None:
    if (args.out / "decoder.safetensors").exists():
        print("vae: left as it is, since the decoder has been trained further on its latents")
        return
    _fit_vae(args, seed, "vae", args.minutes_vae, freeze_encoder=False)


def _train_decoder(args: argparse.Namespace, seed: int) -> None:
    _fit_vae(args, seed, "decoder", args.minutes_decoder, freeze_encoder=True)


def _fit_vae(args: argparse.Namespace, seed: int, part: str, minutes: float, *, freeze_encoder: bool) -> None:
    model = _load_vae(args).to(args.device)
    if freeze_encoder:
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    std = torch.tensor(model.config.latents_std, device=args.device).view(1, -1, 1, 1, 1)
    clips = vae.clip_batches(seed, 6 if args.device == "cpu" else 64, torch.device(args.device))
    smooth = Smooth()

    def loss_step() -> tuple[Tensor, str]:
        with torch.autocast(args.device, torch.bfloat16):
            total, squared = vae.loss(model, next(clips), freeze_encoder=freeze_encoder, latents_std=std)
        return total, f"PSNR {10 * math.log10(4 / smooth(squared)):.2f} dB"

    matrices, rest = optim.split_parameters(model)
    optimizers = _optimizers(matrices, rest, 0.02, 2e-3, args.rate)
    model.load_state_dict(loop.run(loop.TrainingRun(part, args.out, minutes, model, optimizers, loss_step, hold=0.3)))
    if _is_first():
        mean_psnr, worst, mean, std = vae.measure(model.eval())
        print(f"{part}: held-out clips at {mean_psnr:.2f} dB, the worst at {worst:.2f} dB")
        if not freeze_encoder:  # latents are what they were, and so must their statistics be
            model.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
        model.save_pretrained(args.out / "vae")
    _wait_for_all()


def _train_dit(args: argparse.Namespace, seed: int) -> None:
    tokenizer = text.build_tokenizer()
    encoder = UMT5EncoderModel.from_pretrained(_first(args, "text_encoder"), dtype=torch.float32).eval().to(args.device)
    model = dit.build()
    if args.init and (args.init / "transformer").exists():
        model = WanTransformer3DModel.from_pretrained(args.init / "transformer", torch_dtype=torch.float32)
    model.to(args.device)
    bias = dit.use_matrix_attention(model)
    autoencoder = _load_vae(args).eval().to(args.device)
    weights = vae.channel_weights(autoencoder)
    source = dit.LatentSource.create(autoencoder, tokenizer, encoder, seed=seed, size=max(4096, 16 * args.batch))
    for _ in range(16):
        source.refill(2 * args.batch)
    batches = dit.batches(source, text.embed(tokenizer, encoder, [""]), args.batch, args.fresh)
    generator, smooth = torch.Generator().manual_seed(seed), Smooth()
    if not args.no_compile:
        for block in model.blocks:
            block.compile(dynamic=False)

    def loss_step() -> tuple[Tensor, str]:
        latents, words = next(batches)
        if training.elapsed < 60 * args.minutes_dit * args.short:  # looks before motion, at under half the price
            latents = latents[:, :, :2]
        total = dit.loss(model, bias, latents, words, weights, generator)
        return total, f"loss {smooth(total.item()):.4f}"

    matrices, rest = optim.split_parameters(model, inside="blocks")
    optimizers = _optimizers(matrices, rest, 0.02, 2e-3, args.rate)
    training = loop.TrainingRun("dit", args.out, args.minutes_dit, model, optimizers, loss_step, ema_decay=0.998)
    model.load_state_dict(loop.run(training))


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def _first(args: argparse.Namespace, part: str) -> Path:
    own = args.out / part
    return own if own.exists() or args.init is None else args.init / part


class Smooth:
    """A running mean for the progress bar."""

    def __init__(self) -> None:
        self.value: float | None = None

    def __call__(self, new: float) -> float:
        """The mean after one more value."""
        self.value = new if self.value is None else 0.98 * self.value + 0.02 * new
        return self.value


if __name__ == "__main__":
    main()
