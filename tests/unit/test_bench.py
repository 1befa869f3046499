"""`python -m tapvideo.cli.bench`: what it is asked for and what it says."""

import json

import pytest

from tapvideo.cli import bench


def test_it_times_both_kinds_of_steps(capsys):
    bench.main("--dim 128 --ffn-dim 128 --layers 2 --grid 1 2 2 --repeats 1 --device cpu".split())
    record, *lines = capsys.readouterr().out.splitlines()
    found = json.loads(record)
    assert 0 < found["forecast_stack"] < found["forecast_step"]
    assert found["anchor_bytes"] == 2 * 3 * 4 * 128 * 4  # probes and residuals, anchors, tokens, width, fp32
    assert [line.split("  ")[0] for line in lines[:2]] == ["full step", "forecast step"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--dim 100", "--dim 100: heads are 128 wide; allowed: multiples of 128"),
        ("--layers 0", "--layers 0 is too small; allowed: 1 or more"),
        ("--ffn-dim 0", "--ffn-dim 0 is too small"),
        ("--repeats 0", "--repeats 0 is too small"),
        ("--grid 0 1 1", "--grid 0 1 1 has no tokens"),
        ("--recompute 5", "--recompute 5 is no share of tokens"),
        ("--recompute nan", "--recompute nan is no share of tokens"),
        ("--device cuda", "--device cuda is not there; allowed: cpu"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_a_line(arguments, told, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        bench.main(arguments.split())
    assert end.value.code == 2
    assert told in capsys.readouterr().err
