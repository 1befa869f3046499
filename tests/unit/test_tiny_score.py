"""The scorer against the world it judges: drawn clips pass, wrongly captioned ones fail."""

import random
from dataclasses import replace

import pytest
import torch

from tapvideo.tiny import scenes
from tapvideo.tiny.score import ClipScore, classify_colors, motion_of, score_clip, score_folder


def drawn(scene, seed=0):
    return (scenes.render([scene], torch.Generator().manual_seed(seed))[0].movedim(1, 0) + 1) / 2


def one_object(motion="moving left", color="red", background="blue"):
    return scenes.Scene((scenes.SceneObject(color, "circle", motion),), (), background, "striped")


def test_score_passes_what_was_drawn():
    rng = random.Random(0)
    several = [scenes.sample_scene(rng, held_out=True) for _ in range(24)]
    total = score_folder([score_clip(drawn(s, i), scenes.caption(s)) for i, s in enumerate(several)])
    assert total.background == 1.0
    assert (total.objects or 0.0) >= 0.95  # another object may hide it
    assert (total.directions or 0.0) >= 0.9
    assert (total.motions or 0.0) >= 0.85  # so may half of it


@pytest.mark.parametrize("motion", scenes.MOTIONS)
def test_score_reads_every_motion(motion):
    for seed in range(3):
        assert score_clip(drawn(one_object(motion), seed), scenes.caption(one_object(motion))).motions == (True,)


def test_score_fails_what_was_not_asked():
    clip = drawn(one_object())
    ask = {
        "motion": one_object("moving right"),
        "color": one_object(color="green"),
        "background": one_object(background="white"),
    }
    assert score_clip(clip, scenes.caption(ask["motion"])) == ClipScore(True, (True,), (False,), (False,))
    assert score_clip(clip, scenes.caption(ask["color"])) == ClipScore(True, (False,), (False,), (False,))
    assert not score_clip(clip, scenes.caption(ask["background"])).background


def test_score_fails_noise():
    noise = torch.rand(17, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert score_clip(noise, scenes.caption(one_object())).objects == (False,)


@pytest.mark.parametrize("color", scenes.COLORS)
def test_classify_colors_knows_tone_and_shade(color):
    for tone in (scenes.COLORS[color], scenes.shade(color)):
        pixels = torch.tensor(tone).view(1, 3, 1, 1)
        assert classify_colors(pixels).item() == list(scenes.COLORS).index(color)


def test_motion_of_a_square_that_moves_down():
    mask = torch.zeros(17, 64, 64, dtype=torch.bool)
    for t in range(17):
        mask[t, 10 + t : 20 + t, 30:40] = True
    assert motion_of(mask) == "moving down"


def test_score_folder_of_nothing_asked_is_none():
    assert score_folder([ClipScore(True, (True,), (), (True,))]).directions is None


@pytest.mark.parametrize("seed", range(3))
def test_captions_round_trip(seed):
    scene = scenes.sample_scene(random.Random(seed))
    parsed = scenes.parse_caption(scenes.caption(scene))
    assert (parsed.objects, parsed.background, parsed.texture) == (scene.objects, scene.background, scene.texture)
    assert len(parsed.extras) == len(scene.extras)


@pytest.mark.parametrize(
    "text",
    ["", "a cat", "a pink circle moving left on a blue plain background", "a red circle on a blue plain background"],
)
def test_parse_caption_refuses_other_text(text):
    with pytest.raises(ValueError, match="not a caption of this world"):
        scenes.parse_caption(text)


def test_held_out_captions_are_a_tenth_and_never_sampled_for_training():
    rng = random.Random(0)
    training = [scenes.caption(scenes.sample_scene(rng)) for _ in range(200)]
    held_out = [scenes.caption(scenes.sample_scene(rng, held_out=True)) for _ in range(20)]
    assert not any(map(scenes.is_held_out, training))
    assert all(map(scenes.is_held_out, held_out))


def test_render_is_reproducible_and_in_range():
    scene = replace(one_object(), texture="cloudy")
    a, b = (scenes.render([scene], torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == (1, 3, scenes.FRAMES, scenes.SIZE, scenes.SIZE)
    assert a.min() >= -1
    assert a.max() <= 1
