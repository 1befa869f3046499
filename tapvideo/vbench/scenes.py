"""Whether clips of the drawn world show what their captions say: colour, presence, motion; no learned weights."""

from tapvideo.checks import ConfigError
from tapvideo.console import Console
from tapvideo.record import package_versions
from tapvideo.tiny.scenes import parse_caption
from tapvideo.tiny.score import ClipScore, score_clip
from tapvideo.vbench.clips import Clip, check_pairs, read_baseline, read_clips
from tapvideo.vbench.config import ScenesConfig
from tapvideo.vbench.page import write_page
from tapvideo.vbench.paired import Row, make_row
from tapvideo.vbench.results import ClipScores, Results, folder_name, problems, render, results_folder, save
from tapvideo.video_read import VideoError, read_video

MEASURES = {
    "background": "background's colour",
    "objects": "objects are there",
    "directions": "direction of motion",
    "motions": "motion",
}
_NOTES = [
    "an object is there if its colour fills the area of a small shape in most frames; shapes are not told apart",
    "direction is of objects that should move left, right, up or down; motion also of those that grow, shrink or stand",
]


def run_scenes(config: ScenesConfig, *, command: str = "") -> Results:
    """Score every clip, write results.json, results.csv and report.html, and print the table.

    Raises:
        ConfigError: if a folder has no videos, the two are not of the same clips, or a caption is of another world.
    """
    console = Console(verbose=config.verbose)
    videos = read_clips(config.videos)
    baseline = read_baseline(config.videos, config.baseline) if config.baseline else None
    _check_captions(videos)
    if baseline is not None:
        check_pairs(videos, baseline)
    clips = [judge("videos", clip) for clip in videos] + [judge("baseline", clip) for clip in baseline or []]
    results = Results(
        title=f"Scenes of {folder_name(config.videos)}",
        command=command,
        videos=config.videos,
        baseline=config.baseline,
        settings={},
        versions=package_versions(),
        rows=[_row(name, clips, compared=baseline is not None) for name in MEASURES],
        notes=list(_NOTES),
        clips=clips,
    )
    folder = results_folder("scenes", config.output_dir, config.videos, config.baseline)
    save(folder, results)
    if config.report:
        write_page(folder / "report.html", results)
    console.say("\n".join([render(results), *problems(results), str(folder)]))
    return results


def judge(folder: str, clip: Clip) -> ClipScores:
    """One clip's answers, 1 for right and 0 for wrong, by what was asked; a clip that cannot be read has errors."""
    scores = ClipScores(folder=folder, file=clip.path.name, prompt=clip.prompt, seed=clip.seed)
    if clip.path.name in ("video.mp4", "baseline.mp4"):  # of a run: the folder tells clips apart
        scores.file = f"{clip.path.parent.name}/{clip.path.name}"
    try:
        frames = read_video(clip.path)
    except VideoError as error:
        scores.errors = dict.fromkeys(MEASURES, str(error))
        return scores
    scores.values = _answers(score_clip(frames.movedim(-1, 1), clip.prompt))
    return scores


def _answers(score: ClipScore) -> dict[str, list[float]]:
    asked = {"background": (score.background,), "objects": score.objects}
    asked |= {"directions": score.directions, "motions": score.motions}
    return {name: [float(answer) for answer in answers] for name, answers in asked.items()}


def _check_captions(clips: list[Clip]) -> None:
    strange = []
    for clip in clips:
        try:
            parse_caption(clip.prompt)
        except ValueError:
            strange.append(clip)
    if strange:
        first = f"{strange[0].path.name}: {strange[0].prompt[:120]!r}"
        example = "'a red circle moving left on a blue striped background'"
        raise ConfigError(
            f"videos: {len(strange)} of {len(clips)} prompts are no captions of the drawn world ({first}); "
            f"allowed: such as {example}, for others eval/vbench.py"
        )


def _row(name: str, clips: list[ClipScores], *, compared: bool) -> Row:
    ours, theirs = (
        {(clip.prompt, clip.seed): clip.values.get(name, []) for clip in clips if clip.folder == folder}
        for folder in ("videos", "baseline")
    )
    lacking = sum(clip.folder == "videos" and name in clip.errors for clip in clips)
    count = sum(map(len, ours.values()))
    return make_row(name, MEASURES[name], ours, theirs if compared else None, expected=count + lacking)
