"""What files alone tell of a batch; times are given, so that rates are exact."""

import json

import pytest

from tapvideo.batch.items import Item
from tapvideo.batch.status import read_status
from tapvideo.batch.store import BatchFolder, Shard
from tapvideo.checks import ConfigError
from tapvideo.cli.status import describe, duration, main

ITEMS = [Item(f"p{n}-0.mp4", f"p{n}", 0, 0) for n in range(8)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = BatchFolder(tmp_path / "run")
    folder.claim({"steps": 2}, ITEMS, {})
    locked = set()
    monkeypatch.setattr(BatchFolder, "is_locked", lambda self, shard: shard in locked)

    def write(number, *events, count=2, lock=False, torn=""):
        """Events as (time, name, number of a clip or nothing, other values)."""
        shard = Shard(number, count)
        lines = []
        for when, event, *more in events:
            values = more[1] if len(more) > 1 else {}
            file = {"file": ITEMS[more[0]].file} if more and more[0] is not None else {}
            lines.append(json.dumps({"event": event, "time": when, **file, **values}) + "\n")
            if event == "done":
                (folder.videos / ITEMS[more[0]].file).touch()
        folder.manifest(shard).write_text("".join(lines) + torn)
        locked.update({shard} if lock else ())

    folder_and_write = folder, write
    return folder_and_write


def test_nothing_has_begun(folder):
    status = read_status(folder[0].root)
    assert (status.clips, status.done, status.missing, status.shards) == (8, 0, 8, [])
    assert status.seconds_left is None


def test_done_running_failed_missing_and_the_time_left(folder):
    root, write = folder[0].root, folder[1]
    start = {"host": "n1", "job": "5_0", "pid": 1}
    write(
        0, (0, "start", None, start), (100, "begin", 0), (110, "done", 0), (110, "begin", 2),
        (120, "failed", 2, {"error": "RunFailed: NaN"}), (120, "begin", 4), (130, "done", 4), (130, "begin", 6),
        lock=True, torn='{"event": "do',
    )  # fmt: skip
    write(1, (0, "start", None, start), (100, "begin", 1), (105, "done", 1), (105, "begin", 3))
    status = read_status(root, now=135)
    assert (status.done, status.running, status.failed, status.missing) == (3, 1, 1, 3)
    first, second = status.shards
    assert (first.state, first.running, first.host, first.job) == ("running", ["p6-0.mp4"], "n1", "5_0")
    assert first.clips_per_hour == pytest.approx(2 / 30 * 3600)
    assert first.seconds_left == pytest.approx(15)
    assert (second.state, second.running, second.missing) == ("killed", [], 3)
    assert second.clips_per_hour == pytest.approx(720)
    assert second.seconds_left is None
    assert status.clips_per_hour == first.clips_per_hour
    assert status.seconds_left is None  # nobody makes what the killed shard left
    assert status.errors == {"p2-0.mp4": "RunFailed: NaN"}


def test_a_clip_that_takes_longer_slows_the_rate(folder):
    root, write = folder[0].root, folder[1]
    write(0, (0, "start"), (0, "begin", 0), (10, "done", 0), (10, "begin", 2), lock=True)
    assert read_status(root, now=12).shards[0].clips_per_hour == pytest.approx(360)
    assert read_status(root, now=40).shards[0].clips_per_hour == pytest.approx(90)


def test_the_slowest_shard_says_when_it_is_over(folder):
    root, write = folder[0].root, folder[1]
    write(0, (0, "start"), (0, "begin", 0), (10, "done", 0), (10, "begin", 2), lock=True)
    write(1, (0, "start"), (0, "begin", 1), (20, "done", 1), (20, "begin", 3), lock=True)
    status = read_status(root, now=20)
    assert status.clips_per_hour == pytest.approx(360 + 180)
    assert status.seconds_left == pytest.approx(60)


def test_what_is_tried_again_is_not_failed_and_a_video_counts_whatever_is_written(folder):
    root, write = folder[0].root, folder[1]
    write(
        0, (0, "start"), (1, "begin", 0), (2, "failed", 0, {"error": "x"}), (2, "end", None, {"outcome": "failed"}),
        (3, "start"), (4, "begin", 0), (4, "failed", 2, {"error": "y"}), lock=True,
    )  # fmt: skip
    (folder[0].videos / ITEMS[2].file).touch()  # renamed, and killed before the line
    (folder[0].videos / "stranger.mp4").touch()
    status = read_status(root, now=5)
    assert (status.failed, status.running, status.done) == (0, 1, 1)
    assert status.shards[0].restarts == 1
    assert status.strangers == ["stranger.mp4"]


@pytest.mark.parametrize("outcome", ["done", "failed", "stopped"])
def test_state_of_a_shard_that_has_ended(folder, outcome):
    folder[1](0, (0, "start"), (1, "begin", 0), (2, "end", None, {"outcome": outcome}))
    assert [s.state for s in read_status(folder[0].root).shards] == [outcome, "not begun"]


def test_loading_is_running_without_a_clip(folder):
    folder[1](0, (0, "start"), lock=True)
    assert read_status(folder[0].root).shards[0].state == "loading"


def test_the_latest_number_of_shards_is_shown(folder):
    folder[1](0, (0, "start"), (1, "begin", 0), (2, "done", 0), (3, "end", None, {"outcome": "stopped"}))
    folder[1](2, (9, "start"), count=4)
    status = read_status(folder[0].root)
    assert [(s.shard, s.clips, s.done) for s in status.shards] == [(0, 2, 1), (1, 2, 0), (2, 2, 0), (3, 2, 0)]


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not the folder of a batch"):
        read_status(tmp_path)


def leave(*arguments):
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return left.value.code


def test_command_line(folder, capsys):
    root, write = folder[0].root, folder[1]
    write(0, (0, "start"), *((n, "done", n) for n in range(8)), (9, "end", None, {"outcome": "done"}), count=1)
    assert leave(root, "--complete", "--watch") == 0
    assert "8 clips: 8 done, 0 running, 0 failed, 0 missing" in capsys.readouterr().out
    assert leave(root / "videos", "--json") == 0
    assert json.loads(capsys.readouterr().out)["shards"][0]["done"] == 8
    (root / "videos" / ITEMS[0].file).unlink()
    assert leave(root, "--complete") == 1
    assert leave(root.parent) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_long_lists_of_errors_are_cut(folder):
    folder[1](0, (0, "start"), *((1, "failed", n, {"error": "x"}) for n in range(8)), count=1)
    text = describe(read_status(folder[0].root))
    assert text.count("failed: p") == 8
    assert "8 failed" in text


def test_duration():
    assert [duration(s) for s in (0, 89, 90, 5300, 5400, 86400)] == [
        "0 s",
        "89 s",
        "2 min",
        "88 min",
        "1 h 30",
        "24 h 00",
    ]
