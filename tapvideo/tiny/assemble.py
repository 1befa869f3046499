"""Put the trained parts together as a `WanPipeline` on disk."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
from safetensors.torch import load_file
from transformers import UMT5EncoderModel

from tapvideo.tiny import dit, text


def assemble(folder: Path, init: Path | None = None) -> Path:
    """Save `folder/wan_tiny` from the checkpoints in `folder`, in bf16, as `WanPipeline.save_pretrained` does.

    Parts that were not trained there come from the pipeline in `init`.
    """

    def part(name: str) -> Path:
        return init / name if init and not (folder / name).exists() else folder / name

    transformer = dit.build()
    averaged = {
        k.removeprefix("ema/"): v for k, v in load_file(folder / "dit.safetensors").items() if k.startswith("ema/")
    }
    transformer.load_state_dict(averaged)
    pipeline = WanPipeline(
        tokenizer=text.build_tokenizer(),
        text_encoder=UMT5EncoderModel.from_pretrained(part("text_encoder"), dtype=torch.bfloat16),
        transformer=transformer.to(torch.bfloat16),
        vae=AutoencoderKLWan.from_pretrained(part("vae"), torch_dtype=torch.bfloat16),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=dit.FLOW_SHIFT
        ),
    )
    target = folder / "wan_tiny"
    pipeline.save_pretrained(target, safe_serialization=True)
    _tidy(target)
    return target


def _tidy(target: Path) -> None:
    """Name the tokenizer class as all versions of transformers know it, and forget where parts were loaded from."""
    edits = {
        "model_index.json": {"tokenizer": ["transformers", "PreTrainedTokenizerFast"]},
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    for path in target.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8")) | edits.get(path.relative_to(target).as_posix(), {})
        if path.name != "tokenizer.json":
            content = {k: v for k, v in content.items() if k not in ("_name_or_path", "backend")}
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
