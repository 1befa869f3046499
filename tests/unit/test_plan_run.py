"""Plans of whole runs: seconds, meshes, and what the command says."""

import json

import pytest
from calibrations import made_up
from hydra import compose, initialize_config_dir

from tapvideo.config import TapConfig, config_dir
from tapvideo.parallel import plan
from tapvideo.parallel.arch import Architecture
from tapvideo.parallel.estimate import Machine, Mesh, estimate, method_of
from tapvideo.parallel.ledger import Tally
from tapvideo.parallel.plan_tables import as_json, as_markdown
from tapvideo.schedule import StepKind, full_plan, interval_plan


def planned(*arguments):
    return plan.make(plan.read(list(arguments)))


# -- seconds

MACHINE = Machine(tflops=500, memory=2500, nvlink=400, internode=40, latency=10, gpus_per_node=8)


@pytest.mark.parametrize(
    ("mesh", "gpus_per_node", "share", "halves"),
    [
        (Mesh(1, 1, 8), 8, 0, False),
        (Mesh(1, 2, 8), 8, 0, True),
        (Mesh(2, 2, 4), 8, 0, False),
        (Mesh(1, 1, 16), 8, 8 / 15, False),
        (Mesh(1, 1, 12), 8, 8 / 11, False),
        (Mesh(1, 1, 1), 8, 0, False),
    ],
)
def test_peers_on_other_nodes(mesh, gpus_per_node, share, halves):
    """Of the rank that has most of them."""
    assert mesh.far(gpus_per_node) == (pytest.approx(share), halves)


def test_seconds_in_closed_form():
    """Ten ranks on nodes of eight: the last two have one peer beside them and eight on the other node."""
    clip = planned("world=8", "scaling=[1]").clip
    clip = type(clip)(clip.arch, clip.grid, clip.text, clip.dtype, 1)
    found = estimate(clip, TapConfig(), full_plan(50), Mesh(1, 1, 10), "auto", MACHINE).steps["full"]
    bytes_ = 40 * 4 * 9 / 100 * 75600 * 5120 * 2 + 64 * 75600 * 9 / 10 * 2
    near, far = bytes_ * 1 / 9, bytes_ * 8 / 9
    assert found.received == pytest.approx(bytes_)
    assert found.links == pytest.approx(near / 400e9 + far / 40e9 + 81 * 10e-6)
    assert found.compute == found.flops / 500e12


def test_a_run_is_the_sum_of_its_steps():
    clip = planned("world=8", "scaling=[1]").clip
    steps = interval_plan(50, interval=4, warmup=3, last=1)
    found = estimate(clip, TapConfig(), steps, Mesh(1, 2, 4), "auto", MACHINE)
    assert found.seconds == pytest.approx(15 * found.steps["full"].seconds + 35 * found.steps["forecast"].seconds)
    assert found.seconds_full == pytest.approx(50 * found.steps["full"].seconds)
    assert found.steps["full"].messages["full", "guidance"] == Tally(64 * 75600 * 2, 1)


def test_candidates_are_counted_as_they_are_made():
    """At four steps from the last full one: its reuse, and four distances of order 1 and of order 2."""
    steps = interval_plan(50, interval=5, warmup=3, last=1)
    assert method_of(TapConfig(), steps).candidates == 9
    assert method_of(TapConfig(orders=[1], lookback=0.0), steps).candidates == 1


# -- the command


def test_scaling_takes_the_faster_mesh_and_counts_clips():
    table = planned("world=8").tables
    rows = {row.gpus: row for row in table["internode"]}
    assert list(rows) == [1, 2, 4, 8, 16, 32, 64]
    assert (rows[16].plain.mesh, rows[16].plain.attention) == (Mesh(1, 2, 8), "ulysses")
    assert rows[32].plain.attention == "allgather_kv"  # 16 ranks do not divide 40 heads
    assert rows[64].plain.seconds_full > table["nvlink"][-1].plain.seconds_full
    twice = as_json(planned("world=8", "parallel.dp=2", "scaling=[1,2,4]"))
    assert [row["gpus"] for row in twice["scaling"]["nvlink"]] == [2, 4]
    assert twice["scaling"]["nvlink"][0]["unaccelerated"]["speedup"] == pytest.approx(2)


def test_json_has_every_message_and_adds_up():
    found = as_json(planned("model=wan", "world=12", "parallel.cfg=2", "tap.recompute.budget=0.25", "scaling=[1,2]"))
    assert json.loads(json.dumps(found)) == found
    steps = found["chosen"]["steps"]
    assert {m["what"] for step in steps.values() for m in step["messages"]} == {
        "attention",
        "output",
        "errors",
        "guidance",
    }
    for step in steps.values():
        assert step["bytes_received"] == sum(m["bytes"] for m in step["messages"])
    assert found["chosen"]["recomputed_tokens"] == 32760 // 4


def test_command_prints_markdown_or_json(capsys):
    plan.main(["model=wan_tiny", "world=2", "scaling=[1,2]"])
    assert capsys.readouterr().out.startswith("# wan_tiny, 17 frames of 64 x 64, 2 ranks\n")
    plan.main(["model=wan_tiny", "world=2", "scaling=[1,2]", "--json"])
    assert json.loads(capsys.readouterr().out)["tokens"] == 320
    plan.main(["--help"])
    assert "gpus_per_node" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("foo", "'foo' is not key=value; allowed: e.g. model=wan_14b world=8"),
        ("model=foo", "model='foo' is not known; allowed: "),
        ("heigth=3", "heigth=3: there is no key 'heigth'; allowed: model, "),
        ("tap.recompute.bugdet=1", "there is no key 'tap.recompute.bugdet'; allowed: tap.recompute.budget, "),
        ("world.x=1", "there is no key 'world.x'; allowed: world"),
        ("tap.recompute=1", "'tap.recompute' is a group of keys; allowed: tap.recompute.budget, "),
        ("+world=1", "there is no key '+world'"),
        ("world=[", "world=[ cannot be read; allowed: key=NUMBER"),
        ("world=abc", "world: Value 'abc' of type 'str' could not be converted to Integer"),
        ("world=0", "world=0 is too small; allowed: 1 or more"),
        ("world=8 parallel.sp=3", "makes 3 ranks, and there are 8; allowed: a product of 8"),
        ("height=100", "height=100 is not of whole tokens; allowed: multiples of 16"),
        ("num_frames=80", "num_frames=80 is not of whole tokens; allowed: 1, 5, .."),
        ("world=16 parallel.attention=ulysses", "16 ranks do not divide 40; allowed: 1, 2, 4, 5, 8, 10, 20, 40"),
        ("guidance=1 parallel.cfg=2", "parallel.cfg=2 splits guidance, and there is none; allowed: 1"),
        ("model=wan_tiny world=400", "parallel.sp=400 ranks cannot share 320 tokens; allowed: 1 to 320"),
        ("tap.recompute.kv_layers=[40]", "tap.recompute.kv_layers=[40] of 40 blocks; allowed: 0 to 39"),
        ("tap.probe=block_output tap.probe_depth=40", "tap.probe_depth=40 of 40 blocks; allowed: 1 to 39"),
        ("schedule=explicit steps=20", "outside this run; allowed: 0 to 19"),
        ("parallel.attention=usp parallel.groups=xfuser", "parallel.attention='usp' sends what we do not count"),
        ("arch.patch_size=[1,2]", "arch.patch_size=[1, 2] is not a size; allowed: three integers from 1"),
        ("efficiency=2", "efficiency=2.0 is a share; allowed: above 0, up to 1"),
        ("gpu_gib=nan", "gpu_gib=nan is not positive and finite"),
        ("scaling=[0]", "scaling=[0] is not a list of numbers of GPUs; allowed: integers from 1"),
        ("format=xml", "format='xml' is not known; allowed: markdown, json"),
    ],
)
def test_bad_input_is_one_line_with_key_value_and_what_is_allowed(capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        plan.main(arguments.split())
    told = capsys.readouterr()
    assert (stopped.value.code, told.out) == (2, "")
    assert told.err.count("\n") == 1
    assert said in told.err


def test_calibrated_methods_are_planned_without_a_calibration():
    """What a run costs depends on how many steps are full, and not on which; there is one candidate and no probe."""
    found = planned("model=wan", "tap=default", "schedule.speedup=2.5", "steps=50")
    assert found.chosen.plan.count(StepKind.FULL) == 20
    simpler = planned("model=wan", "tap=reuse", "schedule=spread", "schedule.speedup=2.5", "tap.anchors=3", "steps=50")
    assert found.chosen.seconds == pytest.approx(simpler.chosen.seconds, rel=1e-3)


def test_two_experts_are_planned_as_they_run():
    """Both lie on the GPU, unless one is taken off it; full steps are as many as the command line makes."""
    one, two = planned("model=wan_14b", "steps=40"), planned("model=wan22")
    sizes = [planned("model=wan22", f"offload={how}").chosen.room.transformer for how in ("none", "model", "group")]
    assert sizes == [2 * one.chosen.room.transformer, one.chosen.room.transformer, 0]
    assert "40 layers of each of 2 experts" in as_markdown(two)
    spread = planned("model=wan22", "tap=default", "schedule.speedup=2.5").chosen.plan
    assert spread.count(StepKind.FULL) == 16
    assert two.chosen.plan[26:29] == (StepKind.FULL,) * 3
    assert planned("model=wan22", "tap=off").chosen.plan == full_plan(40)
    forecast = planned("model=wan22", "tap=calibrated", "schedule=calibrated", "schedule.speedup=2.5")
    paper = planned("model=wan22", "tap=paper", "schedule=spread", "schedule.speedup=2.5")
    assert forecast.chosen.room == paper.chosen.room  # as a run would do without a calibration


def test_two_experts_are_planned_by_their_calibration(tmp_path, monkeypatch):
    monkeypatch.setenv("TAPVIDEO_HOME", str(tmp_path))
    of = {"weights": "Wan-AI/Wan2.2-T2V-A14B-Diffusers", "flow_shift": 12.0, "boundary": 0.875, "guidance_2": 3.0}
    made = made_up(steps=40, guidance=4.0, starts=(0, 26), **of)
    made.save(tmp_path / "calibrations" / "two.safetensors")
    plan = planned("model=wan22", "tap=default", "schedule.speedup=2.5").chosen.plan
    assert [step for step, kind in enumerate(plan) if kind is StepKind.FULL] == made.best_steps(16)


def test_a_model_of_unknown_sizes_is_refused(monkeypatch):
    monkeypatch.setattr(plan, "_names", lambda group: ("wan", "other") if group == "model" else ("wan",))
    with pytest.raises(ValueError, match="model=other: nothing is known of its sizes; allowed with it: arch=wan"):
        plan.read(["model=other"])


def test_config_file_has_the_keys_and_defaults_of_its_dataclass():
    with initialize_config_dir(str(config_dir().resolve()), version_base="1.3"):
        raw = compose("plan")
    assert set(raw) == set(plan.PlanConfig.__dataclass_fields__)
    own, groups = plan.PlanConfig(), {*plan.GROUPS, "model"}
    read = plan.read([])
    assert all(getattr(read, key) == getattr(own, key) for key in raw if key not in groups)
    assert set(raw.arch) == set(Architecture.__dataclass_fields__)
