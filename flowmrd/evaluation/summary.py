"""Scores of many files → rates, limits, agreement, coverage and time, each with its interval and the number behind it.

Rules of counting, the same for every method:

* a file without one true blast is a *negative*; one with at least the detection rule's events is a *positive*; anything
  between, and a draw of a low level that holds no blast, is *not assessable*: no method can find what is not there;
* only the call `positive` finds disease. `review` is counted apart; in sensitivity it is not found, and so is a file
  that the method refused. In specificity reviewed files are left out and their share stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flowmrd.errors import QuantificationError
from flowmrd.evaluation.defaults import Defaults, StatisticDefaults
from flowmrd.evaluation.scores import ASSESSED, NEGATIVE, NOT_ASSESSABLE, POSITIVE, Outcome, Score, is_found
from flowmrd.evaluation.statistics import Agreement, Detection, agreement, median_interval, probit, wilson
from flowmrd.quantification.rare_events import (
    Call,
    RareEventRules,
    blank_limits,
    find_lloq,
    rank_limit_of_blank,
)
from flowmrd.quantification.rare_events import Level as LloqLevel

ALL = "all"
NO_DISEASE = "0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure: of which method, group of files and level; with its interval, and `k` of `n` where it is a rate."""

    level: str
    metric: str
    value: float | None
    method: str = ""
    group: str = ""
    low: float | None = None
    high: float | None = None
    k: int | None = None
    n: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A file and what one method made of it."""

    score: Score
    outcome: Outcome


def methods_of(scores: Sequence[Score]) -> tuple[str, ...]:
    """Return the names of the methods, the template's own first."""
    return tuple(dict.fromkeys(one.method for score in scores for one in score.outcomes))


def groups_of(scores: Sequence[Score]) -> tuple[tuple[str, tuple[Score, ...]], ...]:
    """Return the groups of files by name: all, then one for each value of each key, in order."""
    found: list[tuple[str, tuple[Score, ...]]] = [(ALL, tuple(scores))]
    keys = dict.fromkeys(key for score in scores for key in score.groups)
    for key in keys:
        values = sorted({score.groups.get(key, "") for score in scores}, key=_natural)
        for value in values:
            members = tuple(score for score in scores if score.groups.get(key, "") == value)
            found.append((f"{key} = {value or 'not said'}", members))
    return tuple(found)


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


def pairs_of(scores: Iterable[Score], method: str) -> tuple[Pair, ...]:
    """Return the files that a method was run on, with what it made of them."""
    return tuple(Pair(score=score, outcome=one) for score in scores for one in score.outcomes if one.method == method)


def summarise(
    scores: Sequence[Score], *, rules: RareEventRules, levels: Sequence[float], defaults: Defaults
) -> tuple[Metric, ...]:
    """Compute every figure of the evaluation.

    Parameters
    ----------
    scores : of all files, in order
    rules : events for detection and quantification
    levels : true fractions by which files are pooled
    defaults : conventions (confidence, percentile, fewest files)
    """
    wanted = defaults.statistics
    found: list[Metric] = []
    for method in methods_of(scores):
        for group, members in groups_of(scores):
            pairs = pairs_of(members, method)
            figures = [
                *_negatives(pairs, wanted),
                *(
                    one
                    for level, inside in level_pairs(pairs, levels, defaults.levels.from_fractions)
                    for one in _positives(inside, level, wanted)
                ),
                *_limits(pairs, rules, levels, wanted),
                *_agreement(pairs),
                *_time(pairs, wanted),
            ]
            found.extend(replace(one, method=method, group=group) for one in figures)
    return tuple(found)


def level_pairs(
    pairs: Sequence[Pair], levels: Sequence[float], from_fractions: Sequence[float]
) -> tuple[tuple[str, tuple[Pair, ...]], ...]:
    """Return files with disease by level: each level that occurs, from and below each pooled one, and all."""
    ill = [one for one in pairs if one.score.standing in {POSITIVE, NOT_ASSESSABLE}]
    parts = [
        (level_name(level), inside)
        for level in sorted(levels)
        if (inside := tuple(one for one in ill if one.score.level == level))
    ]
    for edge in sorted(from_fractions):
        # A nominal level stands on the edge, and a draw of it falls on either side.
        at_least = tuple(one for one in ill if (_fraction(one.score) or 0.0) >= edge * (1 - 1e-9))
        below = tuple(one for one in ill if one not in at_least)
        pooled = ((f">= {level_name(edge)}", at_least), (f"< {level_name(edge)}", below))
        parts += [(name, inside) for name, inside in pooled if inside]
    if ill:
        parts.append((ALL, tuple(ill)))
    return tuple(parts)


def level_name(level: float) -> str:
    """Write a level as it is said: 1e-4, 3e-5, 0.1 is 1e-1.

    Examples
    --------
    >>> level_name(1e-4), level_name(3e-5), level_name(0.1), level_name(1.0), level_name(0)
    ('1e-4', '3e-5', '1e-1', '1', '0')
    """
    if level in {0, 1}:
        return f"{level:g}"
    mantissa, exponent = f"{level:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _fraction(score: Score) -> float | None:
    return score.nominal_fraction or score.truth_fraction


# ------------------------------------------------------------------------------------------------------------- parts


def _negatives(pairs: Sequence[Pair], rules: StatisticDefaults) -> Iterator[Metric]:
    """Say how often disease is seen where there is none."""
    healthy = [one for one in pairs if one.score.standing == NEGATIVE]
    if not healthy:
        return
    answered = [one for one in healthy if one.outcome.status == ASSESSED]
    calls = [one.outcome.call for one in answered]
    clear, wrong, review = (calls.count(str(call)) for call in (Call.NOT_DETECTED, Call.POSITIVE, Call.REVIEW))
    yield _metric(NO_DISEASE, "cases", len(healthy))
    yield _metric(NO_DISEASE, "refused", len(healthy) - len(answered))
    yield _rate(NO_DISEASE, "specificity", clear, clear + wrong, rules, note="files under review left out")
    yield _rate(NO_DISEASE, "false_positive", wrong, len(answered), rules, note="of all files with an answer")
    yield _rate(NO_DISEASE, "review", review, len(answered), rules)
    fractions = [one.outcome.fraction for one in answered if one.outcome.fraction is not None]
    if fractions:
        note = f"{rules.percentile:g}th percentile, linear between ranks"
        yield _metric(
            NO_DISEASE, "called_fraction_p95", _percentile(fractions, rules.percentile), n=len(fractions), note=note
        )
        yield _metric(NO_DISEASE, "called_fraction_max", max(fractions), n=len(fractions))


def _positives(pairs: Sequence[Pair], level: str, rules: StatisticDefaults) -> Iterator[Metric]:
    """Say how much of the disease is found at one level."""
    able = [one for one in pairs if one.score.standing == POSITIVE]
    poor = [one for one in pairs if one.score.standing == NOT_ASSESSABLE]
    answered = [one.outcome for one in able if one.outcome.status == ASSESSED]
    calls = [one.call for one in answered]
    yield _metric(level, "cases", len(pairs))
    yield _metric(level, "not_assessable", len(poor))
    if poor:
        yield _rate(level, "found_not_assessable", sum(is_found(one.outcome) for one in poor), len(poor), rules)
    # Every file with a blast has an F1, also where no rule could find so few.
    every = [one.outcome.f1 for one in pairs if one.outcome.status == ASSESSED and one.outcome.f1 is not None]
    if every:
        yield _median(level, "f1_median_any", every, rules)
    if not able:
        return
    yield _metric(level, "assessable", len(able))
    yield _metric(level, "refused", len(able) - len(answered))
    found = sum(is_found(one.outcome) for one in able)
    yield _rate(level, "sensitivity", found, len(able), rules, note="review and refused files are not found")
    yield _rate(level, "review", calls.count(str(Call.REVIEW)), len(able), rules)
    yield _rate(level, "not_detected", calls.count(str(Call.NOT_DETECTED)), len(able), rules)
    scores = [one.f1 for one in answered if one.f1 is not None]
    if scores:
        yield _median(level, "f1_median", scores, rules)
        yield _metric(level, "f1_mean", float(np.mean(scores)), n=len(scores))
        good = sum(value > rules.good_f1 for value in scores)
        yield _rate(level, "f1_above_half", good, len(scores), rules, note=f"F1 above {rules.good_f1:g}")
    widened = [one.f1_with_candidates for one in answered if one.f1_with_candidates is not None]
    if widened:
        yield _median(level, "f1_median_with_candidates", widened, rules)
    for name, values in (
        ("precision_median", [one.precision for one in answered]),
        ("recall_median", [one.recall for one in answered]),
        ("abs_log10_error_median", [abs(e) if (e := one.log10_error) is not None else None for one in answered]),
    ):
        if known := [value for value in values if value is not None]:
            yield _median(level, name, known, rules)
    covered = [one.covered for one in answered if one.covered is not None]
    note = "interval of the result against the labelled fraction"
    yield _rate(level, "coverage", sum(covered), len(covered), rules, note=note)
    nominal = [one.covered_nominal for one in answered if one.covered_nominal is not None]
    if nominal:
        note = "interval of the result against the fraction that the file was drawn with"
        yield _rate(level, "coverage_nominal", sum(nominal), len(nominal), rules, note=note)


def _limits(
    pairs: Sequence[Pair], rules: RareEventRules, levels: Sequence[float], wanted: StatisticDefaults
) -> Iterator[Metric]:
    """Give limits of blank, detection and quantitation, each with its method."""
    healthy = [one.outcome.fraction for one in pairs if one.score.standing == NEGATIVE]
    blanks = [fraction for fraction in healthy if fraction is not None]
    low = low_positives(pairs, wanted.min_low_cases)
    try:
        note = "EP17-A2, non-parametric: 95th percentile of the blanks by rank 0.5 + 0.95 B"
        yield _metric("", "lob_rank", rank_limit_of_blank(blanks), n=len(blanks), note=note)
    except QuantificationError as error:
        yield _metric("", "lob_rank", None, n=len(blanks), note=str(error))
    try:
        # The formula of the blank does not look at the second sample.
        blank = blank_limits(blanks, blanks).lob
        yield _metric("", "lob_normal", blank, n=len(blanks), note="EP17-A2, normal: mean + 1.645 SD of the blanks")
    except QuantificationError as error:
        yield _metric("", "lob_normal", None, n=len(blanks), note=str(error))
    if low is None:
        text = f"needs a level with {wanted.min_low_cases} assessable files"
        for name in ("lod_ep17", "lod_ep17_corrected"):
            yield _metric("", name, None, n=0, note=text)
    else:
        level, results = low
        text = f"{len(results)} files at {level_name(level)}"
        try:
            limits = blank_limits(blanks, results)
        except QuantificationError as error:
            for name in ("lod_ep17", "lod_ep17_corrected"):
                yield _metric("", name, None, n=len(results), note=str(error))
        else:
            note = f"EP17-A2, classical: LoB (normal) + 1.645 SD of the errors of {text}"
            yield _metric("", "lod_ep17", limits.lod, n=len(results), note=note)
            note = f"the same with EP17's factor for few results; {text}"
            yield _metric("", "lod_ep17_corrected", limits.lod_corrected, n=len(results), note=note)
    curve = detection_of(pairs, wanted)
    yield _detected("lod_probit", curve, _probit(curve))
    curve = detection_of(pairs, wanted, by_events=True)
    note = f"in events; {_probit(curve, events=True)}"
    yield _detected("lod_probit_events", curve, note)
    replicates = lloq_levels(pairs, levels, wanted.min_level_cases)
    if not replicates:
        yield _metric("", "lloq", None, n=0, note=f"needs a level with {wanted.min_level_cases} assessable files")
        return
    try:
        search = find_lloq(replicates, rules=rules)
    except QuantificationError as error:
        yield _metric("", "lloq", None, n=len(replicates), note=str(error))
        return
    note = (
        f"lowest of {len(replicates)} levels with CV and bias of recovery within the goals "
        f"and {rules.lloq_events} events in each file"
    )
    if search.lloq is None:
        note = "no level meets the goals of CV, bias and events"
    elif search.failing_above:
        note += f"; higher levels that do not: {', '.join(map(level_name, search.failing_above))}"
    yield _metric("", "lloq", search.lloq, n=len(replicates), note=note)


def _detected(metric: str, curve: Detection, note: str) -> Metric:
    return Metric(
        level="",
        metric=metric,
        value=curve.lod,
        low=curve.low,
        high=curve.high,
        k=curve.detected,
        n=curve.n,
        note=note,
    )


def low_positives(pairs: Sequence[Pair], least: int) -> tuple[float, list[float]] | None:
    """Return the lowest level with enough assessable files, and their results moved to that level.

    Each file has its own true fraction; what counts for a limit is the error, so a file's result stands for
    level + (estimate − truth).
    """
    errors: dict[float, list[float]] = {}
    for one in pairs:
        level, truth, estimate = one.score.level, one.score.truth_fraction, one.outcome.fraction
        if one.score.standing == POSITIVE and level is not None and truth is not None and estimate is not None:
            errors.setdefault(level, []).append(level + estimate - truth)
    usable = [level for level, values in errors.items() if len(values) >= least]
    return (min(usable), errors[min(usable)]) if usable else None


def lloq_levels(pairs: Sequence[Pair], levels: Sequence[float], least: int) -> list[LloqLevel]:
    """Return the replicates of each level: recovery (estimate by truth) of each file, times the level."""
    found = []
    for level in sorted(levels):
        members = [
            one
            for one in pairs
            if one.score.standing == POSITIVE
            and one.score.level == level
            and one.score.truth_fraction
            and one.outcome.fraction is not None
        ]
        if len(members) >= least:
            results = tuple(
                level * (one.outcome.fraction or 0.0) / (one.score.truth_fraction or 1.0) for one in members
            )
            events = tuple(one.outcome.called_events or 0 for one in members)
            found.append(LloqLevel(expected=level, results=results, events=events))
    return found


def detection_of(pairs: Sequence[Pair], rules: StatisticDefaults, *, by_events: bool = False) -> Detection:
    """Fit detection over the true fraction of the assessable files, or over the true events of all with disease."""
    chosen = [
        (
            float(one.score.truth_events or 0) if by_events else float(one.score.truth_fraction or 0.0),
            is_found(one.outcome),
        )
        for one in pairs
        if one.score.standing == POSITIVE or (by_events and one.score.standing == NOT_ASSESSABLE)
    ]
    known = [(level, hit) for level, hit in chosen if level > 0]
    return probit(
        [level for level, _ in known],
        [hit for _, hit in known],
        probability=rules.detection,
        confidence=rules.confidence,
    )


def _probit(curve: Detection, *, events: bool = False) -> str:
    if curve.lod is not None:
        return f"EP17-A2, {curve.note}"
    write: Callable[[float], str] = (lambda value: f"{value:.0f}") if events else (lambda value: f"{value:.2g}")
    parts = [f"EP17-A2, probit: {curve.note}"]
    if curve.below is not None:
        parts.append(f"highest missed {write(curve.below)}")
    if curve.above is not None:
        parts.append(f"lowest found {write(curve.above)}")
    return "; ".join(parts)


def quantified(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Return assessable files with a number to compare: both fractions above 0."""
    return tuple(one for one in pairs if one.score.standing == POSITIVE and one.outcome.log10_error is not None)


def agreement_of(pairs: Sequence[Pair]) -> Agreement:
    """Compare estimates with truths of the assessable files that have both."""
    known = quantified(pairs)
    return agreement([one.score.truth_fraction or 0.0 for one in known], [one.outcome.fraction or 0.0 for one in known])


def _agreement(pairs: Sequence[Pair]) -> Iterator[Metric]:
    able = [one for one in pairs if one.score.standing == POSITIVE]
    if not able:
        return
    one = agreement_of(pairs)
    left_out = len(able) - one.n
    note = "assessable files with a count above 0" + (f"; {left_out} without left out" if left_out else "")
    text = f"interval: limits of agreement (bias ± 1.96 SD); {note}"
    yield Metric(level="", metric="log10_bias", value=one.bias, low=one.low, high=one.high, n=one.n, note=text)
    yield _metric("", "log10_bias_median", one.median, n=one.n, note=note)
    yield _metric("", "abs_log10_error_median", one.median_absolute, n=one.n, note=note)
    yield _metric("", "log10_sd", one.sd, n=one.n, note=note)
    yield _metric("", "r2", one.r2, n=one.n, note=f"squared correlation of the logarithms; {note}")
    yield _metric("", "r2_identity", one.r2_identity, n=one.n, note=f"variance explained by estimate = truth; {note}")


def _time(pairs: Sequence[Pair], rules: StatisticDefaults) -> Iterator[Metric]:
    timed = [
        (one.outcome.seconds, one.score.events or 0)
        for one in pairs
        if one.outcome.seconds is not None and one.outcome.status == ASSESSED
    ]
    if not timed:
        return
    seconds = [value for value, _ in timed]
    yield _metric("", "seconds_median", float(np.median(seconds)), n=len(timed))
    yield _metric("", "seconds_p95", _percentile(seconds, rules.percentile), n=len(timed))
    yield _metric("", "seconds_max", max(seconds), n=len(timed))
    total = sum(seconds)
    if total > 0:
        yield _metric("", "events_per_second", sum(events for _, events in timed) / total, n=len(timed))


def _metric(level: str, metric: str, value: float | None, *, n: int | None = None, note: str = "") -> Metric:
    return Metric(level=level, metric=metric, value=value, n=n, note=note)


def _rate(level: str, metric: str, k: int, n: int, rules: StatisticDefaults, note: str = "") -> Metric:
    rate = wilson(k, n, confidence=rules.confidence)
    return Metric(level=level, metric=metric, value=rate.value, low=rate.low, high=rate.high, k=k, n=n, note=note)


def _median(level: str, metric: str, values: Sequence[float], rules: StatisticDefaults) -> Metric:
    low, high = median_interval(values, confidence=rules.confidence) or (None, None)
    return Metric(level=level, metric=metric, value=float(np.median(values)), low=low, high=high, n=len(values))


def _percentile(values: Sequence[float], percentile: float) -> float:
    return float(np.percentile(np.asarray(values, np.float64), percentile))


def as_tree(metrics: Iterable[Metric]) -> dict[str, object]:
    """Return the figures as method → group → level → metric, for JSON; the levelless ones stand under `overall`."""
    tree: dict[str, dict[str, dict[str, dict[str, object]]]] = {}
    for one in metrics:
        content = {"value": one.value, "low": one.low, "high": one.high, "k": one.k, "n": one.n, "note": one.note}
        level = tree.setdefault(one.method, {}).setdefault(one.group, {}).setdefault(one.level or "overall", {})
        level[one.metric] = {
            name: value for name, value in content.items() if value not in {None, ""} or name == "value"
        }
    return dict(tree)


def find(metrics: Mapping[tuple[str, str, str, str], Metric], *key: str) -> Metric | None:
    """Return one figure by method, group, level and name."""
    return metrics.get((key[0], key[1], key[2], key[3]))


def by_key(metrics: Iterable[Metric]) -> dict[tuple[str, str, str, str], Metric]:
    """Index figures by method, group, level and name."""
    return {(one.method, one.group, one.level, one.metric): one for one in metrics}
