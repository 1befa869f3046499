"""From scores on disk to results: means, VBench's totals, and the change against a baseline."""

from tapvideo.checks import ConfigError
from tapvideo.record import package_versions
from tapvideo.vbench.clips import Clip, Facts
from tapvideo.vbench.config import VBenchConfig
from tapvideo.vbench.dimensions import DIMENSIONS, Summary, summarise
from tapvideo.vbench.environment import Described, Located
from tapvideo.vbench.paired import Row, make_row
from tapvideo.vbench.results import ClipScores, Results, folder_name
from tapvideo.vbench.store import Scored, ScoreStore
from tapvideo.vbench.suite import Suite

_FLICKER = "temporal_flickering"


def gather(
    config: VBenchConfig,
    suite: Suite,
    located: Located,
    described: Described | None,
    videos: list[Clip],
    baseline: list[Clip] | None,
    store: ScoreStore,
) -> Results:
    """Everything that is known of the videos, scored now or earlier.

    Args:
        config: what was asked for.
        suite: which video counts for which dimension.
        located: the VBench whose scores are meant.
        described: its environment; None where nothing was scored.
        videos: with their digests.
        baseline: clips to compare with, or None.
        store: the scores.

    Raises:
        ConfigError: if two clips that are to be compared differ in size or length.
    """
    _check_sizes(videos, baseline, facts := store.facts())
    clips = [_empty("videos", clip) for clip in videos] + [_empty("baseline", clip) for clip in baseline or []]
    every = list(zip([*videos, *(baseline or [])], clips, strict=True))
    asked = config.dimensions or ([] if config.collect else suite.dimensions)
    shown: list[str] = []
    for name in DIMENSIONS:
        known = store.scores(located.version, name)
        meant = {clip.key for clip in suite.of(name, videos)}
        own = [(clip, scores, known.get((clip.sha256, clip.prompt))) for clip, scores in every if clip.key in meant]
        found = [one for *_, one in own if one is not None and one.error is None]
        # Others may still be at work on dimensions that were not asked for: those are shown once they are whole.
        if name in asked or (found and (config.collect or len(found) == len(own))):
            shown.append(name)
            _fill_all(own, name, facts)
    return Results(
        title=f"VBench of {folder_name(config.videos)}",
        command="",
        videos=config.videos,
        baseline=config.baseline,
        settings={"protocol": suite.protocol, "GPU": (described.cuda if described else None) or "none"},
        versions={**package_versions(), "vbench": located.version, **_theirs(described)},
        rows=[_row(name, clips, compared=baseline is not None) for name in shown],
        summary=_summary(clips, "videos", shown),
        baseline_summary=_summary(clips, "baseline", shown) if baseline is not None else None,
        notes=_notes(suite, shown, videos),
        clips=clips,
    )


def _fill_all(own: list[tuple[Clip, ClipScores, Scored | None]], dimension: str, facts: dict[str, Facts]) -> None:
    for clip, scores, one in own:
        _fill(scores, dimension, one, facts.get(clip.sha256))


def _theirs(described: Described | None) -> dict[str, str]:
    return {f"{name} of VBench": number for name, number in described.versions.items()} if described else {}


def _empty(folder: str, clip: Clip) -> ClipScores:
    name = clip.path.name
    if name in ("video.mp4", "baseline.mp4"):  # of a run: the folder tells clips apart
        name = f"{clip.path.parent.name}/{name}"
    return ClipScores(folder=folder, file=name, prompt=clip.prompt, seed=clip.seed)


def _fill(scores: ClipScores, dimension: str, found: Scored | None, facts: Facts | None) -> None:
    if facts is not None and facts.error is not None:
        scores.errors[dimension] = facts.error
    elif found is None:
        scores.errors[dimension] = "not scored yet"
    elif found.error is not None:
        scores.errors[dimension] = found.error
    else:
        scores.values[dimension] = [] if found.score is None else [found.score]


def _of(clips: list[ClipScores], folder: str, dimension: str) -> dict[tuple[str, int], list[float]]:
    return {(c.prompt, c.seed): c.values[dimension] for c in clips if c.folder == folder and dimension in c.values}


def _lacking(clips: list[ClipScores], folder: str, dimension: str) -> int:
    return sum(clip.folder == folder and dimension in clip.errors for clip in clips)


def _row(name: str, clips: list[ClipScores], *, compared: bool) -> Row:
    ours = _of(clips, "videos", name)
    theirs = _of(clips, "baseline", name) if compared else None
    expected = sum(map(len, ours.values())) + _lacking(clips, "videos", name)
    return make_row(name, name, ours, theirs, expected=expected)


def _summary(clips: list[ClipScores], folder: str, dimensions: list[str]) -> Summary:
    """A dimension with a video that has no score is missing: its mean would be of other videos than the rest."""
    raw = {}
    for name in dimensions:
        values = [value for found in _of(clips, folder, name).values() for value in found]
        if values and not _lacking(clips, folder, name):
            raw[name] = sum(values) / len(values)
    return summarise(raw)


def _check_sizes(videos: list[Clip], baseline: list[Clip] | None, facts: dict[str, Facts]) -> None:
    partners = {clip.key: clip for clip in baseline or []}
    for clip in videos:
        partner = partners.get(clip.key)
        a, b = facts.get(clip.sha256), facts.get(partner.sha256) if partner else None
        if a and b and a.error is None and b.error is None and a != b:
            said = [f"{one.frames} frames of {one.width}x{one.height}" for one in (a, b)]
            place = partner.path if partner else ""
            raise ConfigError(
                f"baseline: {clip.path} has {said[0]}, {place} {said[1]}; allowed: clips of the same size"
            )


def _notes(suite: Suite, shown: list[str], videos: list[Clip]) -> list[str]:
    notes = []
    if suite.protocol == "custom":
        notes.append("prompts of your own: these scores compare folders with each other, not with VBench's leaderboard")
    absent = {name: suite.absent(name, videos) for name in shown}
    if any(absent.values()):
        said = ", ".join(f"{name} {count}" for name, count in absent.items() if count)
        notes.append(f"prompts of VBench's suite that the videos lack, so that the leaderboard is no match: {said}")
    if _FLICKER in shown:
        notes.append(
            "temporal_flickering: VBench means it for clips that stand still and leaves out those that do not; here "
            "every clip counts, so that motion counts as flicker"
        )
    return notes
