"""The weights of VBench's dimensions: what is needed, from where, to where, and what is there; it fetches nothing."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tapvideo.batch.shard import file_digest

_CLIP = "https://openaipublic.azureedge.net/clip/models"  # its folders are the files' SHA-256
_VBENCH = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main"
_DETECTION = ("object_class", "multiple_objects", "color", "spatial_relationship")
_VICLIP = ("temporal_style", "overall_consistency")


@dataclass(frozen=True, slots=True)
class Weights:
    """One file, or one folder, that dimensions need."""

    path: str
    """Relative to the cache folder."""
    dimensions: tuple[str, ...]
    source: str
    """URL, or what else to do in words."""
    megabytes: float | None
    """Roughly; None where nobody here has measured it."""
    sha256: str = ""
    """All of it or its beginning, where its publisher tells."""
    command: str = ""
    """Shell words that put it in its place, inside the cache folder; by default a download."""
    is_folder: bool = False
    """Whether the path is one file of a folder that is needed as a whole."""

    def script(self) -> str:
        """Shell lines that fetch it, inside the cache folder."""
        if self.command:
            return self.command
        path, url = shlex.quote(self.path), shlex.quote(self.source)
        return f"mkdir -p {shlex.quote(str(Path(self.path).parent))} && curl -fL -C - -o {path} {url}"


@dataclass(frozen=True, slots=True)
class Presence:
    """One of the weights on this machine."""

    weights: Weights
    place: Path
    found: int | None
    """Bytes; None where it is not there."""
    problem: str | None
    """What is wrong with it, in words."""


ALL_WEIGHTS = (
    Weights(
        "dino_model/facebookresearch_dino_main/hubconf.py",
        ("subject_consistency",),
        "https://github.com/facebookresearch/dino",
        None,
        is_folder=True,
        command="git clone https://github.com/facebookresearch/dino dino_model/facebookresearch_dino_main",
    ),
    Weights(
        "dino_model/dino_vitbase16_pretrain.pth",
        ("subject_consistency",),
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        343,
    ),
    Weights(
        "clip_model/ViT-B-32.pt",
        ("background_consistency", "appearance_style"),
        f"{_CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        354,
        sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
    Weights(
        "clip_model/ViT-L-14.pt",
        ("aesthetic_quality",),
        f"{_CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        933,
        sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    ),
    Weights(
        "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
        ("aesthetic_quality",),
        "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
        0.004,
    ),
    Weights(
        "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
        ("imaging_quality",),
        "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
        109,
        sha256="358bb6af",
    ),
    Weights(
        "amt_model/amt-s.pth",
        ("motion_smoothness",),
        "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth",
        12,
    ),
    Weights(
        "raft_model/models/raft-things.pth",
        ("dynamic_degree",),
        "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
        21,
        command="mkdir -p raft_model && curl -fL -o raft_model/models.zip "
        "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip && "
        "unzip -o -d raft_model raft_model/models.zip models/raft-things.pth && rm raft_model/models.zip",
    ),
    Weights(
        "ViCLIP/ViClip-InternVid-10M-FLT.pth",
        _VICLIP,
        f"{_VBENCH}/ViClip-InternVid-10M-FLT.pth",
        1710,
    ),
    Weights(
        "ViCLIP/bpe_simple_vocab_16e6.txt.gz",
        _VICLIP,
        "https://github.com/openai/CLIP/raw/main/clip/bpe_simple_vocab_16e6.txt.gz",
        1.4,
    ),
    Weights(
        "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
        ("human_action",),
        f"{_VBENCH}/l16_ptk710_ftk710_ftk400_f16_res224.pth",
        None,
    ),
    Weights(
        "caption_model/tag2text_swin_14m.pth",
        ("scene",),
        "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth",
        None,
    ),
    Weights(
        "grit_model/grit_b_densecap_objectdet.pth",
        _DETECTION,
        f"{_VBENCH}/grit_b_densecap_objectdet.pth",
        None,
    ),
    Weights(
        "huggingface/hub/models--bert-base-uncased/refs/main",
        (*_DETECTION, "scene"),
        "https://huggingface.co/bert-base-uncased",
        440,
        is_folder=True,
        command="HF_HOME=huggingface huggingface-cli download bert-base-uncased "
        "config.json tokenizer.json tokenizer_config.json vocab.txt model.safetensors",
    ),
)


def default_cache_dir() -> Path:
    """VBench's own: `$VBENCH_CACHE_DIR`, or `~/.cache/vbench`."""
    given = os.environ.get("VBENCH_CACHE_DIR")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "vbench"


def needed(dimensions: Iterable[str]) -> list[Weights]:
    """The weights of dimensions, each once."""
    wanted = set(dimensions)
    return [weights for weights in ALL_WEIGHTS if wanted.intersection(weights.dimensions)]


def look_up(cache_dir: Path, dimensions: Iterable[str], *, digests: bool) -> list[Presence]:
    """Which weights of dimensions are there.

    Args:
        cache_dir: where VBench looks for them.
        dimensions: names of dimensions.
        digests: whether to compare SHA-256, which reads the files.
    """
    return [_presence(weights, cache_dir / weights.path, digests=digests) for weights in needed(dimensions)]


def render(found: list[Presence]) -> str:
    """A table for the console: what is there, what is not, and from where to get it."""
    lines = []
    for one in found:
        size = "size unknown" if one.weights.megabytes is None else f"about {one.weights.megabytes:g} MB"
        state = one.problem or ("there" if one.weights.is_folder else f"there, {(one.found or 0) / 1e6:.4g} MB")
        lines += [
            f"{one.place}",
            f"    {state}; for {', '.join(one.weights.dimensions)}",
            f"    {size}, from {one.weights.source}",
        ]
    problems = sum(one.problem is not None for one in found)
    known = sum(one.weights.megabytes or 0 for one in found)
    lines.append(f"{len(found) - problems} of {len(found)} are there; all of known size together are {known:.0f} MB")
    return "\n".join(lines)


def fetch_script(cache_dir: Path, dimensions: Iterable[str]) -> str:
    """A shell script that fetches what is not there; for a machine that has a network."""
    absent = [one.weights for one in look_up(cache_dir, dimensions, digests=False) if one.problem]
    lines = ["#!/bin/sh", "set -eu", f"mkdir -p {shlex.quote(str(cache_dir))}", f"cd {shlex.quote(str(cache_dir))}"]
    return "\n".join([*lines, *(weights.script() for weights in absent)])


def _presence(weights: Weights, place: Path, *, digests: bool) -> Presence:
    if not place.is_file():
        return Presence(weights, place, None, "MISSING")
    size = place.stat().st_size
    if not size:
        return Presence(weights, place, size, "EMPTY")
    # Half of what it should be is a download that was cut, or a pointer of git-lfs.
    if weights.megabytes is not None and not weights.is_folder and size < weights.megabytes * 5e5:
        return Presence(weights, place, size, f"TOO SMALL ({size / 1e6:.4g} MB)")
    if digests and weights.sha256:
        digest = file_digest(place)
        if not digest.startswith(weights.sha256):
            return Presence(weights, place, size, f"WRONG SHA-256 ({digest[:16]}...)")
    return Presence(weights, place, size, None)
