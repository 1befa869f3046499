"""Whether forecasts are trusted: judged in closed form, held where not, forgotten between runs."""

import pytest
import torch
from calibrations import made_up

from tapvideo import ScheduleConfig, TapConfig, enable_tap
from tapvideo.config import ConfigError, ForecastConfig, RecomputeConfig
from tapvideo.guard import HELD, Guard, sample_rows
from tapvideo.history import BranchState, StepContext
from tapvideo.parallel.attention import SequenceAttention
from tapvideo.parallel.comm import Comm
from tapvideo.parallel.shard import TokenShard
from tapvideo.predictors import calibrated_bank, candidate_bank
from tapvideo.schedule import StepKind

STEPS = 16
LINE = calibrated_bank([2.0, -1.0])  # through the two anchors, one distance on
ONE = calibrated_bank([1.2])
SHARD = TokenShard(SequenceAttention(Comm(), full="ulysses", exchange="ulysses"), layout="diagonal")
SHARD.enter((1, 2, 2), torch.device("cpu"))


class Others(Comm):
    """A rank whose peers have found so much of the opposite that it decides."""

    def mean(self, values, weight, *, what):
        return values * torch.tensor([-1.0, 1.0])


class Half(Comm):
    """The rank of one of two branches that are judged apart: it asks the other half nothing."""

    def __init__(self):
        super().__init__()
        self.size = 2

    def all_gather(self, tensor, counts, *, what):
        raise AssertionError(what)


def judged(found, branches=("cond", "uncond"), moves=(1.0, 1.0), sharing=None, given=None, across=None):
    """A guard after a full step on which every branch moved by `moves` before, and by `found` now."""
    guard = Guard(ForecastConfig(), made_up(steps=STEPS, branches=branches, guidance=5.0), across or Comm())
    for branch, move in zip(branches, moves, strict=True):
        state, context = BranchState(2), StepContext(branch, 2, STEPS, given=given)
        start = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(len(branch))) - 100  # moves alone count
        for step in range(2):
            state.push(step, float(step), None, start + step * move)
        guard.foretell(context, state, None, LINE, SHARD)
        state.trim(1)
        state.push(2, 2.0, None, start + move + found[branch])
        guard.judge(context, state, sharing or SHARD.comm)
    return guard


@pytest.mark.parametrize(
    ("cond", "uncond", "trusted"),
    [
        (1.0, 1.0, True),  # as foretold
        (0.1, 0.1, True),  # too bold, but the right way
        (-0.2, -0.2, True),  # the wrong way, but hardly
        (-0.3, -0.3, False),
        (0.7, 1.0, False),  # both the right way, and 5 x 0.7 - 4 x 1.0 = -0.5 of what guidance makes of them
        (0.9, 1.0, True),  # 0.5
        (-0.5, -1.0, True),  # both the wrong way, 1.5
    ],
)
def test_the_guided_sum_is_judged(cond, uncond, trusted):
    guard = judged({"cond": cond, "uncond": uncond})
    assert [guard.trusts(branch) for branch in ("cond", "uncond")] == [trusted, trusted]


def test_forecasts_count_as_guidance_has_it():
    guard = judged({"cond": 1.0, "uncond": 1.0}, moves=(1.0, 2.0))  # 5 x 1 - 4 x 2 = -3 foretold, and 1 found
    assert not guard.trusts("cond")


def test_what_other_ranks_found_counts():
    assert not judged({"cond": 1.0, "uncond": 1.0}, sharing=Others()).trusts("cond")
    assert judged({"cond": -1.0, "uncond": -1.0}, sharing=Others()).trusts("cond")


def test_given_tokens_do_not_count():
    first = torch.tensor([[True, False, False, False]])
    found = torch.tensor([-9.0, 1.0, 1.0, 1.0])[:, None]  # a first frame's, which is not denoised
    assert judged({"cond": found, "uncond": found}, given=first).trusts("cond")
    assert not judged({"cond": found, "uncond": found}).trusts("cond")


@pytest.mark.parametrize(("given", "moves"), [(False, True), (True, False)])
def test_given_tokens_have_no_say_in_a_choice_for_all(given, moves):
    """The first token's probe has it that everything moves on, the other three, by less, that all stands still."""
    how = {"steps_ahead": 1.0, "family": "taylor", "orders": [0, 1], "lookback": 0.0, "spacing": 1.0}
    guard = Guard(ForecastConfig(choice="sample", proxy="l2"), made_up(steps=STEPS, guidance=5.0), Comm())
    state, ones = BranchState(2), torch.ones(1, 4, 3)
    leaps = torch.tensor([1.0, 0.1, 0.1, 0.1])[:, None]
    for step in range(2):
        state.push(step, float(step), ones + step * leaps, step * ones)
    now = ones + leaps * torch.tensor([2.0, 1.0, 1.0, 1.0])[:, None]
    bank = candidate_bank([1.0, 0.0], 2.0, **how)
    mask = torch.tensor([[given, False, False, False]])
    guard.foretell(StepContext("cond", 2, STEPS, given=mask), state, now, bank, SHARD)
    assert bool(guard._moves.foretold[0, 1:].any()) == moves


def test_branches_that_are_judged_apart_ask_the_other_half_nothing():
    apart = judged({"both": -1.0}, branches=("both",), moves=(1.0,), across=Half())
    assert not apart.trusts("both")


def test_nothing_is_kept_between_steps():
    guard = judged({"cond": 1.0, "uncond": 1.0})
    assert guard._moves is None


def test_branches_are_judged_apart_where_it_is_not_known_how_they_are_mixed():
    guard = judged({"both": -1.0, "other": 0.5}, branches=("both", "other"))
    assert not guard.trusts("both")
    assert guard.trusts("other")


def test_nothing_is_trusted_before_it_was_judged():
    guard = judged({"cond": 1.0, "uncond": 1.0})
    assert guard.trusts("cond")
    guard.begin()  # a new run
    assert not guard.trusts("cond")


def test_a_single_anchor_can_be_judged_by_nothing():
    guard, state = Guard(ForecastConfig(), made_up(steps=STEPS, guidance=5.0), Comm()), BranchState(2)
    state.push(0, 0.0, None, torch.ones(1, 4, 3))
    twice = calibrated_bank([2.0])  # a calibration may well scale it
    for branch in ("cond", "uncond"):
        context = StepContext(branch, 1, STEPS)
        guard.foretell(context, state, None, twice, SHARD)
        guard.judge(context, state, SHARD.comm)
    assert not guard.trusts("cond")


@pytest.mark.parametrize(("found", "trusted"), [((1.0, 1.0), True), ((0.5, 1.0), False), ((1.0, 1.6), False)])
def test_a_branch_with_one_anchor_has_foretold_no_move(found, trusted):
    """cond has foretold 1, five times of which guidance makes; uncond's move, four times, is against it."""
    guard = Guard(ForecastConfig(), made_up(steps=STEPS, guidance=5.0), Comm())
    states = {}
    for branch, anchors, move in (("cond", 2, found[0]), ("uncond", 1, found[1])):
        states[branch], start = BranchState(3), torch.full((1, 4, 3), -100.0)
        for step in range(2 - anchors, 2):
            states[branch].push(step, float(step), None, start + (step - 1))
        guard.foretell(StepContext(branch, 2, STEPS), states[branch], None, LINE if anchors > 1 else ONE, SHARD)
        states[branch].push(2, 2.0, None, start + move)
        guard.judge(StepContext(branch, 2, STEPS), states[branch], SHARD.comm)
    assert guard.trusts("cond") == trusted


def test_a_branch_without_an_anchor_has_no_part():
    guard = judged({"cond": 1.0, "uncond": 1.0}, moves=(1.0, 1.0))
    cond, late, start = BranchState(2), BranchState(2), torch.full((1, 4, 3), -100.0)
    for step in (2, 3):
        cond.push(step, float(step), None, start + step)
    where = {branch: StepContext(branch, 4, STEPS) for branch in ("cond", "uncond")}
    guard.foretell(where["cond"], cond, None, LINE, SHARD)
    cond.trim(1)
    cond.push(4, 4.0, None, start + 4)
    guard.judge(where["cond"], cond, SHARD.comm)
    late.push(4, 4.0, None, start)
    guard.judge(where["uncond"], late, SHARD.comm)  # -4 x -100, were it to count
    assert guard.trusts("cond")
    assert torch.allclose(guard._moves.found, 5 * torch.ones(1, 4, 3))


def test_anchors_are_held_until_the_third_full_step(wan, pipe, path, monkeypatch):
    judge = Guard.judge

    def approve(self, *args):
        judge(self, *args)
        self._trusted = dict.fromkeys(self._trusted, True)

    monkeypatch.setattr(Guard, "judge", approve)
    schedule = ScheduleConfig(kind="explicit", steps=[0, 2, 4, 9], warmup=1)
    tap = enable_tap(pipe, TapConfig(family="calibrated", calibration=path, guard=True, schedule=schedule))
    wan.denoise(pipe, steps=STEPS)
    shares = tap.summary().shares
    assert [step for step, share in shares.items() if share == {HELD: 1.0}] == [1, 3]
    assert len(tap.summary().forecast_steps) == STEPS - 4


def test_a_step_that_was_not_foretold_is_not_judged():
    guard = judged({"cond": 1.0, "uncond": 1.0})
    state = BranchState(2)
    state.push(3, 3.0, None, torch.full((1, 4, 3), -9.0))
    guard.judge(StepContext("cond", 3, STEPS), state, SHARD.comm)
    assert guard.trusts("cond")


@pytest.mark.parametrize("total", [1, 320, 1024, 5000, 75_600])
def test_ranks_look_at_the_tokens_that_one_rank_would(total):
    everyone = torch.arange(total)
    whole = sample_rows(everyone, total)
    assert min(total, 1024) <= len(whole) <= 2048
    for shards in ([everyone[::3], everyone[1::3], everyone[2::3]], list(everyone.chunk(3))):
        seen = torch.cat([shard[sample_rows(shard, total)] for shard in shards])
        assert torch.equal(seen.sort().values, whole)


@pytest.fixture
def pipe(wan):
    """A tiny random `WanPipeline` of two blocks."""
    return wan.random_pipeline(num_layers=2)


@pytest.fixture
def path(tmp_path):
    """A calibration for its runs."""
    made_up(steps=STEPS).save(tmp_path / "made.safetensors")
    return str(tmp_path / "made.safetensors")


def config(path, **how):
    return TapConfig(calibration=path, schedule=ScheduleConfig(interval=4), **how)


HOW = [
    {"blend": 0.5},
    {"family": "calibrated"},
    {"blend": 0.5, "choice": "sample"},
    {"blend": 0.5, "probe": "block_residual"},
    {"blend": 0.5, "maps": False},
]


@pytest.mark.parametrize("how", HOW)
def test_without_trust_the_last_anchor_is_reused(wan, pipe, path, how, monkeypatch):
    monkeypatch.setattr(Guard, "trusts", lambda self, branch: False)
    reuse = TapConfig(family="reuse", orders=[0], lookback=0.0, anchors=1, schedule=ScheduleConfig(interval=4))
    tap = enable_tap(pipe, reuse)
    expected = wan.denoise(pipe, steps=STEPS)
    tap.disable()
    tap = enable_tap(pipe, config(path, guard=True, **how))
    assert torch.equal(wan.denoise(pipe, steps=STEPS), expected)
    assert tap.summary().shares == {step: {HELD: 1.0} for step in tap.summary().forecast_steps}


@pytest.mark.parametrize("how", HOW)
def test_trusted_forecasts_are_those_without_a_guard(wan, pipe, path, how, monkeypatch):
    monkeypatch.setattr(Guard, "trusts", lambda self, branch: True)
    runs = {}
    for guard in (False, True):
        tap = enable_tap(pipe, config(path, guard=guard, **how))
        runs[guard] = wan.denoise(pipe, steps=STEPS)
        assert {r.labels for r in tap.trace.records if r.kind is StepKind.FORECAST}.isdisjoint({(HELD,)})
        tap.disable()
    assert torch.equal(runs[True], runs[False])


def test_a_run_is_judged_anew(wan, pipe, path):
    schedule = ScheduleConfig(kind="explicit", steps=[0, 2, 4, 6, 10])
    tap = enable_tap(pipe, TapConfig(family="calibrated", calibration=path, guard=True, schedule=schedule))
    runs = []
    for _ in range(2):
        latents = wan.denoise(pipe, steps=STEPS)
        runs.append((latents, [r.labels for r in tap.trace.records if r.kind is StepKind.FORECAST]))
        pipe.transformer._diffusers_hook.get_hook("tapvideo").stack.guard._trusted[""] = True  # as it may end
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert runs[0][1][0] == (HELD,)


def test_a_branch_that_no_calibration_knows_is_refused():
    made = made_up(steps=STEPS)
    assert [made.share(branch, 3) for branch in ("cond", "uncond")] == [5.0, -4.0]
    with pytest.raises(ConfigError, match=r"tap.calibration has no branch 'other'; allowed: runs of cond, uncond"):
        made.share("other", 3)


def test_a_guard_needs_a_move_to_judge():
    with pytest.raises(ConfigError, match=r"tap.anchors=1 leaves tap.guard no move to judge; allowed: 2 or more"):
        ForecastConfig(guard=True, family="reuse", orders=[0], lookback=0.0, anchors=1)


def test_a_guard_goes_by_a_calibration(wan, pipe):
    paper = TapConfig(guard=True)
    assert paper.needs_calibration
    with pytest.raises(ConfigError, match=r"tap.calibration='auto' is looked up before TAP is enabled"):
        enable_tap(pipe, paper)


def test_tokens_are_recomputed_where_forecasts_are_held(wan, pipe, path, monkeypatch):
    monkeypatch.setattr(Guard, "trusts", lambda self, branch: False)
    how = config(path, guard=True, blend=0.5)
    how.recompute = RecomputeConfig(budget=0.25)
    tap = enable_tap(pipe, how)
    assert torch.isfinite(wan.denoise(pipe, steps=STEPS)).all()
    assert tap.summary().shares[9] == {HELD: pytest.approx(0.75), "recomputed": pytest.approx(0.25)}
