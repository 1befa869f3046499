"""`python -m tapvideo.cli.score`: how near videos on disk are to their references."""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath

from tapvideo.compare.statistics import bootstrap_mean
from tapvideo.metrics import IDENTICAL, METRICS, evaluate
from tapvideo.video_read import Decoder, VideoError, VideoFacts, probe_video, read_video

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi", ".gif")
EXIT_FAILED, EXIT_USAGE = 1, 2


@dataclass(kw_only=True)
class Score:
    """One video against its reference."""

    video: str
    reference: str
    error: str | None = None
    """Why the pair could not be scored; there are no metrics then."""
    metrics: dict[str, float | None] = field(default_factory=dict[str, float | None])
    not_computed: dict[str, str] = field(default_factory=dict[str, str])
    titles: dict[str, str] = field(default_factory=dict[str, str])
    """What each metric is called on frames of this size."""
    lossy: list[str] = field(default_factory=list[str])
    """Codec and pixel format of the two, where they do not keep frames as they were."""


def main(argv: list[str] | None = None) -> int:
    """Entry point; 1 where a pair, or a metric that was asked for by name, could not be scored."""
    args = _arguments(argv)
    try:
        names, pairs = _names(args.metrics), find_pairs(args.video, args.reference)
    except ValueError as error:
        print(f"score: {error}", file=sys.stderr)
        return EXIT_USAGE
    scores: list[Score] = []
    for video, reference in pairs:
        scores.append(score(video, reference, names, args.decoder))
        _tell(scores[-1], quiet=args.json)
    _warn(scores)
    if not args.json:
        _tell_means(scores, names)
    else:
        print(json.dumps([asdict(score) for score in scores], indent=2, ensure_ascii=False, allow_nan=False))
    failed = [score for score in scores if score.error or (args.metrics and _misses(score))]
    if failed:
        print(f"score: {len(failed)} of {len(scores)} pairs failed", file=sys.stderr)
    return EXIT_FAILED if failed else 0


def find_pairs(video: Path, reference: Path) -> list[tuple[Path, Path]]:
    """Two files, or the videos of two folders by their relative paths; a partner may be missing.

    Raises:
        ValueError: if one is a folder and the other is not, or there is no video in either.
    """
    if video.is_dir() != reference.is_dir():
        raise ValueError(f"{video} and {reference}: allowed: two files or two folders")
    if not video.is_dir():
        return [(video, reference)]
    names = _relative(video) | _relative(reference)
    if not names:
        raise ValueError(f"{video} and {reference} have no videos; looked for {', '.join(SUFFIXES)}")
    return [(video / name, reference / name) for name in sorted(names)]


def score(video: Path, reference: Path, names: list[str], decoder: Decoder) -> Score:
    """Score one pair; a video that cannot be read, or is not like its reference, is an error in the result."""
    result = Score(video=str(video), reference=str(reference))
    try:
        theirs, ours = probe_video(reference), probe_video(video)
        expected = read_video(reference, decoder=decoder)
        size = (theirs.height, theirs.width)
        found = read_video(video, num_frames=len(expected), size=size, fps=theirs.fps, decoder=decoder)
    except (VideoError, ModuleNotFoundError) as error:
        result.error = str(error)
        return result
    result.metrics, result.not_computed = evaluate(found, expected, names)
    result.titles = {name: METRICS[name].title(*size) for name in names}
    result.lossy = sorted({_make(facts) for facts in (theirs, ours) if not facts.is_lossless})
    return result


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tapvideo.cli.score", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", type=Path, help="a video, or a folder of them")
    parser.add_argument("reference", type=Path, help="what it should be like: a video, or a folder with the same names")
    parser.add_argument("--metrics", help=f"of {','.join(METRICS)}; default: all that can be computed here")
    parser.add_argument("--decoder", choices=("ffmpeg", "decord"), default="ffmpeg")
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of lines")
    return parser.parse_args(argv)


def _names(given: str | None) -> list[str]:
    names = [name.strip() for name in given.split(",")] if given else list(METRICS)
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f"--metrics={given}: unknown {unknown}; allowed: {', '.join(METRICS)}")
    return names


def _relative(folder: Path) -> set[PurePath]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return {path.relative_to(folder) for path in files if path.is_file() and not path.name.startswith(".")}


def _make(facts: VideoFacts) -> str:
    return f"{facts.codec} {facts.pixel_format}"


def _misses(score: Score) -> bool:
    return any(reason != IDENTICAL for reason in score.not_computed.values())


def _tell(score: Score, *, quiet: bool) -> None:
    if score.error:
        print(f"score: {score.error}", file=sys.stderr)
    if score.error or quiet:
        return
    print(score.video)
    for name, value in score.metrics.items():
        reason = score.not_computed.get(name, "")
        missing = reason if reason == IDENTICAL else f"not computed: {reason}"
        shown = missing if value is None else f"{value:.4f} {METRICS[name].unit}"
        print(f"  {score.titles[name]:24} {shown.rstrip()}")


def _tell_means(scores: list[Score], names: list[str]) -> None:
    """Means over clips with their 95 % bootstrap intervals."""
    for name in names:
        values = [value for score in scores if (value := score.metrics.get(name)) is not None]
        if len(values) > 1:
            mean = bootstrap_mean(values)
            interval = f"[{mean.low:.4f}, {mean.high:.4f}]"
            print(f"mean of {len(values)} clips: {METRICS[name].label} {mean.mean:.4f} {interval} {METRICS[name].unit}")


def _warn(scores: list[Score]) -> None:
    makes = sorted({make for score in scores for make in score.lossy})
    if makes:
        text = "is lossy: compression hides small differences and adds its own, so these figures are no fidelity on raw"
        print(f"score: warning: {', '.join(makes)} {text} frames; compare lossless files (ffv1, bgr0)", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
