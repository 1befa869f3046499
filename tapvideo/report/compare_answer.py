"""The answer at the top of the page: who is closest at each budget, and where TAP stands."""

from dataclasses import dataclass

from tapvideo.compare.results import Comparison, MethodSummary, PairedDifference, is_bound, ours
from tapvideo.report.compare_methods import reference_keys
from tapvideo.report.compare_metrics import Metric, budget_text, number

HEADLINE_BUDGET = 2.5
_TOLERANCE = 0.05  # where the settings name no `tolerance`


@dataclass(frozen=True, slots=True)
class Gap:
    """How far TAP is from the best other method, positive where TAP is ahead, in the metric's unit."""

    rival: str
    mean: float
    low: float | None
    high: float | None
    """Both None: no paired interval was computed."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The order at one budget."""

    budget: float
    ranked: list[MethodSummary]
    """Best first."""
    num_unranked: int
    """Over budget, or without a figure."""
    tap: int | None
    """TAP's place in `ranked`, from 0."""
    gap: Gap | None


def standings(comparison: Comparison, metric: Metric | None) -> list[Standing]:
    """The order at every budget at which a method has a figure."""
    budgets = sorted({row.budget for row in comparison.table if row.budget is not None})
    if metric is None:
        return []
    found = [_standing(comparison, metric, budget) for budget in budgets]
    return [standing for standing in found if standing.ranked]


def chosen(found: list[Standing]) -> Standing | None:
    """The order that the first sentence speaks of: at 2.5x, or at the budget nearest to it."""
    return min(found, key=lambda s: abs(s.budget - HEADLINE_BUDGET), default=None)


def full_steps(comparison: Comparison) -> float | None:
    """Full passes of the un-accelerated clips."""
    first = reference_keys(comparison)[:1]
    rows = [*comparison.table, *comparison.clips]
    return next((row.full_passes for row in rows if row.method in first and row.full_passes), None)


def tolerance(comparison: Comparison) -> float:
    """How many more full passes than the budget's a method may run and still be ranked, as a share."""
    asked = comparison.settings.get("tolerance")
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not asked >= 0:
        return _TOLERANCE
    return float(asked)


def over_budget(comparison: Comparison, row: MethodSummary) -> bool:
    """Whether a method ran more full passes than its budget allows, so that ranking it would be unfair."""
    steps = full_steps(comparison)
    if row.budget is None or row.full_passes is None or steps is None:
        return False
    return row.full_passes > (1 + tolerance(comparison)) * steps / row.budget * (1 + 1e-9)


def _standing(comparison: Comparison, metric: Metric, budget: float) -> Standing:
    rows = [row for row in comparison.table if row.budget == budget]
    fair = [(value, row) for row in rows if (value := _value(row, metric)) is not None]
    fair = [(value, row) for value, row in fair if not (over_budget(comparison, row) or is_bound(row.method))]
    ranked = [row for _, row in sorted(fair, key=lambda pair: -metric.goodness(pair[0]))]
    own = ours(row.method for row in ranked)
    places = [i for i, row in enumerate(ranked) if row.method == own]
    places += [i for i, row in enumerate(ranked) if row.method.startswith("tap-")]
    tap = places[0] if places else None
    return Standing(budget, ranked, len(rows) - len(ranked), tap, _gap(comparison.differences, metric, ranked, tap))


def _value(row: MethodSummary, metric: Metric) -> float | None:
    value = row.mean.get(metric.key)
    return None if value is None or value != value else value


def _gap(
    differences: list[PairedDifference], metric: Metric, ranked: list[MethodSummary], tap: int | None
) -> Gap | None:
    if tap is None or len(ranked) < 2:
        return None
    own, others = ranked[tap], [row for row in ranked[1:] if not row.method.startswith("tap-")]
    rival = ranked[0] if tap else (others or ranked[1:])[0]  # ahead of all: how far, of what others have made
    sign = -1 if metric.better == "lower" else 1
    for found in differences:
        if (found.metric, found.budget) != (metric.key, own.budget) or metric.better == "zero":
            continue
        if (found.method, found.rival) == (own.method, rival.method):
            return _signed(rival.label, found, sign)
        if (found.method, found.rival) == (rival.method, own.method):
            return _signed(rival.label, found, -sign)
    own_value, rival_value = _value(own, metric), _value(rival, metric)
    assert own_value is not None
    assert rival_value is not None
    mean = metric.goodness(own_value) - metric.goodness(rival_value)
    return Gap(rival.label, mean, None, None) if mean == mean else None


def _signed(rival: str, found: PairedDifference, sign: int) -> Gap:
    low, high = sorted((sign * found.low, sign * found.high))
    return Gap(rival, sign * found.mean, low, high)


def answer(standing: Standing | None, metric: Metric | None, steps: float | None, draws: int = 1) -> str:
    """One to three sentences; `draws` is how often every clip was made."""
    if standing is None or metric is None:
        return "Nothing is ranked: no method has a figure at any budget."
    best = standing.ranked[0]
    passes = f" ({number(steps / standing.budget, 1).removesuffix('.0')} of {steps:g} full passes)" if steps else ""
    count, again = best.num_clips, f", {draws} draws each" if draws > 1 and best.num_clips % draws == 0 else ""
    count = count // draws if again else count
    clips = f"over {count} clip{'s' if count != 1 else ''}{again}"
    score = f"{metric.text(best.mean[metric.key])}{_unit(metric)} {metric.label} on average {clips}"
    text = f"At {budget_text(standing.budget)}{passes}, {best.label} is closest to the un-accelerated video: {score}"
    if standing.tap == 0:
        return f"{text}{_ahead(standing.gap, metric)}."
    return f"{text}. {place(standing, metric)}." if standing.tap is not None else f"{text}."


def place(standing: Standing, metric: Metric) -> str:
    """TAP's rank, with its distance from the best and what the clips say of it."""
    if standing.tap is None:
        return ""
    label, of = standing.ranked[standing.tap].label, len(standing.ranked)
    rank = f"{label} is {_ordinal(standing.tap + 1)} of {of}"
    if standing.gap is None:
        return rank
    if standing.tap == 0:
        return rank + _ahead(standing.gap, metric)
    side = "behind" if standing.gap.mean <= 0 else "ahead in pairs"
    return f"{rank}, {_distance(standing.gap, metric)} {side}{_interval(standing.gap, metric)}"


def _ahead(gap: Gap | None, metric: Metric) -> str:
    if gap is None:
        return ""
    side = "ahead of" if gap.mean >= 0 else "behind, in pairs,"
    return f", {_distance(gap, metric)} {side} {gap.rival}{_interval(gap, metric)}"


def _interval(gap: Gap, metric: Metric) -> str:
    """The interval of the distance as the sentence says it, from the side that is named."""
    if gap.low is None or gap.high is None:
        return ""
    low, high = (gap.low, gap.high) if gap.mean > 0 else (-gap.high, -gap.low)
    text = f"95\u00a0% interval {metric.text(low)} to {metric.text(high)}"
    return f" ({text}: these clips do not settle it)" if low <= 0 <= high else f" ({text})"


def _distance(gap: Gap, metric: Metric) -> str:
    return f"{metric.text(abs(gap.mean))}{_unit(metric) or ' ' + metric.label}"


def _unit(metric: Metric) -> str:
    return f"\u00a0{metric.unit}" if metric.unit else ""


def _ordinal(rank: int) -> str:
    ending = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending}"
