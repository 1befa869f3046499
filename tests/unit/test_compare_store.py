"""What is kept is whole, or it is made again."""

import pytest
import torch

from tapvideo.compare.clips import step_error
from tapvideo.compare.store import Reference, Store, digest, fingerprint_sources, half
from tapvideo.weights import fingerprint_weights


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_entry_comes_back(store):
    store.path("k", "video.mp4").parent.mkdir()
    store.path("k", "video.mp4").write_bytes(b"clip")
    store.write("k", {"psnr": 30.5, "note": "x"}, ("video.mp4",))
    assert store.read("k") == {"psnr": 30.5, "note": "x"}
    assert store.read("other") is None


@pytest.mark.parametrize("harm", ["truncated json", "changed value", "no video", "changed video", "not an object"])
def test_entry_that_is_not_whole_counts_as_missing(store, harm):
    video, entry = store.path("k", "video.mp4"), store.path("k", "entry.json")
    video.parent.mkdir()
    video.write_bytes(b"clip")
    store.write("k", {"psnr": 30.5}, ("video.mp4",))
    text = entry.read_text()
    if harm == "truncated json":
        entry.write_text(text[: len(text) // 2])
    elif harm == "changed value":
        entry.write_text(text.replace("30.5", "31.5"))
    elif harm == "no video":
        video.unlink()
    elif harm == "changed video":
        video.write_bytes(b"clop")
    else:
        entry.write_text("[]")
    assert store.read("k") is None


def test_reference_comes_back_bit_for_bit(store):
    frames, latents = torch.rand(3, 4, 4, 3), half([torch.randn(1, 2, 1, 2, 2) for _ in range(5)])
    store.write_reference("k", Reference(frames, latents, 1.5, 50.0))
    kept = store.read_reference("k")
    assert torch.equal(kept.frames, frames)
    assert torch.equal(kept.latents, latents)
    assert (kept.seconds, kept.full_passes) == (1.5, 50.0)


def test_truncated_reference_counts_as_missing(store):
    store.write_reference("k", Reference(torch.rand(2, 4, 4, 3), half([torch.randn(1, 2, 1, 2, 2)]), 1.0, 1.0))
    path = store.path("k", "reference.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    assert store.read_reference("k") is None


def test_copy_replaces_what_differs(store, tmp_path):
    store.path("k", "video.mp4").parent.mkdir()
    store.path("k", "video.mp4").write_bytes(b"whole clip")
    target = tmp_path / "videos" / "a.mp4"
    target.parent.mkdir()
    target.write_bytes(b"half")
    store.copy("k", "video.mp4", target)
    assert target.read_bytes() == b"whole clip"


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2.0]}) == digest({"b": [2.0], "a": 1}) != digest({"a": 1, "b": [2.5]})


def test_weights_fingerprint_sees_both_ends_and_the_size(tmp_path):
    path = tmp_path / "m.safetensors"
    seen = set()
    for content in (b"a" * 3_000_000, b"b" + b"a" * 2_999_999, b"a" * 2_999_999 + b"b", b"a" * 3_000_001):
        path.write_bytes(content)
        seen.add(fingerprint_weights(tmp_path))
    assert len(seen) == 4


def test_sources_fingerprint_is_stable():
    assert fingerprint_sources() == fingerprint_sources()


def test_step_error_is_relative_and_empty_where_steps_differ():
    reference = torch.ones(3, 1, 2, 1, 2, 2)
    assert step_error(reference * 1.5, reference) == pytest.approx([0.5] * 3)
    assert step_error(reference, reference) == [0.0] * 3
    assert step_error(reference[:2], reference) == [None, None]
