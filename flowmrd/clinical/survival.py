"""Rates and times to events: exact binomial intervals, Kaplan–Meier, Aalen–Johansen. Pure functions over arrays.

Own code on purpose: a library in common use breaks ties of competing events at random, and this trial's events lie on
visit days, so that nearly all are tied. Days are counted from the origin; a time is an event or a censoring, and
events come before censorings of the same day.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import AnalysisError
from flowmrd.quantification.rare_events import clopper_pearson

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_HALF = 0.5 + 1e-12  # a product of fractions that is one half exactly may come out a rounding above it
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`k` of `n`, with the exact (Clopper–Pearson) and, for contrast, the Wilson 95 % interval; percent.

    Intervals and percentage are `None` where `n` is 0.
    """

    k: int
    n: int
    percent: float | None
    cp95_percent: tuple[float, float] | None
    wilson95_percent: tuple[float, float] | None


def rate(k: int, n: int) -> Rate:
    """Return a rate with its intervals.

    Raises
    ------
    AnalysisError : k is not between 0 and n

    References
    ----------
    Clopper CJ, Pearson ES. Biometrika 1934;26:404. Wilson EB. J Am Stat Assoc 1927;22:209.

    Examples
    --------
    >>> one = rate(61, 75)
    >>> f"{one.percent:.2f}", [f"{end:.2f}" for end in one.cp95_percent or ()]
    ('81.33', ['70.67', '89.40'])
    """
    if not 0 <= k <= n:
        raise AnalysisError(f"rate: expected 0 <= k <= n; got {k} of {n}")
    if n == 0:
        return Rate(k=0, n=0, percent=None, cp95_percent=None, wilson95_percent=None)
    low, high = clopper_pearson(k, n, confidence=CONFIDENCE)
    z = _z()
    p = k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Rate(
        k=k,
        n=n,
        percent=100 * p,
        cp95_percent=(100 * low, 100 * high),
        # At 0 and n one end is that end exactly; rounding must not carry it beyond.
        wilson95_percent=(
            0.0 if k == 0 else 100 * max(middle - half, 0.0),
            100.0 if k == n else 100 * min(middle + half, 1.0),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KaplanMeier:
    """A Kaplan–Meier estimate: one entry a day on which something happened.

    `at_risk` just before the day, `events` and `censored` on it, `survival` after it; `ci_low`, `ci_high` are the
    pointwise 95 % interval by log(−log S) with Greenwood's variance, NaN where it does not exist (S is 1 or 0).
    """

    n: int
    time: Floats
    at_risk: Counts
    events: Counts
    censored: Counts
    survival: Floats
    ci_low: Floats
    ci_high: Floats

    def __post_init__(self) -> None:
        _freeze(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CumulativeIncidence:
    """An Aalen–Johansen estimate of competing events: one entry a day on which something happened.

    `incidence` (causes, days) after each day, `se` its standard error (delta method), `event_free` what is left:
    incidences and event-free add up to 1.
    """

    n: int
    time: Floats
    at_risk: Counts
    events: Counts
    censored: Counts
    incidence: Floats
    se: Floats
    event_free: Floats

    def __post_init__(self) -> None:
        _freeze(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An estimate at a day with its 95 % interval (`None` where it does not exist) and the number still at risk."""

    day: float
    value: float
    ci95: tuple[float, float] | None
    at_risk: int


def kaplan_meier(time: Sequence[float], event: Sequence[bool]) -> KaplanMeier:
    """Estimate survival.

    Parameters
    ----------
    time : days from the origin, at least 0
    event : whether the time is an event; otherwise it is a censoring

    Raises
    ------
    AnalysisError : times that are negative or not finite, or of another number than events

    References
    ----------
    Kaplan EL, Meier P. J Am Stat Assoc 1958;53:457. Greenwood M. Reports on Public Health 1926;33.
    Interval: Kalbfleisch JD, Prentice RL. The Statistical Analysis of Failure Time Data, 2002.

    Examples
    --------
    >>> estimate = kaplan_meier([5, 8, 8, 12], [True, True, False, False])
    >>> estimate.survival.tolist()
    [0.75, 0.5, 0.5]
    """
    causes = np.asarray(event, dtype=np.int64)
    days, at_risk, by_cause, censored = _table(time, causes, 1)
    events = by_cause[0]
    survival = np.cumprod(1 - events / at_risk) if days.size else np.empty(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.cumsum(events / (at_risk * (at_risk - events)))
        # Undefined at S = 1 (log 0) and at S = 0 (everyone at risk had the event).
        half = _z() * np.sqrt(greenwood) / np.abs(np.log(survival))
        low, high = survival ** np.exp(half), survival ** np.exp(-half)
    exists = (survival > 0) & (survival < 1)
    return KaplanMeier(
        n=len(causes),
        time=days,
        at_risk=at_risk,
        events=events,
        censored=censored,
        survival=survival,
        ci_low=np.where(exists, low, np.nan),
        ci_high=np.where(exists, high, np.nan),
    )


def cumulative_incidence(time: Sequence[float], cause: Sequence[int], *, causes: int) -> CumulativeIncidence:
    """Estimate the incidence of competing events, `CIF_k(t) = Σ S(t−) d_k / n`.

    Parameters
    ----------
    time : days from the origin, at least 0
    cause : 1 … `causes`, or 0 for a censoring
    causes : how many causes there are

    Raises
    ------
    AnalysisError : times or causes that cannot be

    References
    ----------
    Aalen OO, Johansen S. Scand J Stat 1978;5:141. Standard error: Marubini E, Valsecchi MG. Analysing Survival Data
    from Clinical Trials and Observational Studies, 1995, section 10.2.

    Examples
    --------
    >>> estimate = cumulative_incidence([5, 8, 8, 12], [1, 2, 1, 0], causes=2)
    >>> estimate.incidence[:, -1].tolist(), estimate.event_free[-1].item()
    ([0.5, 0.25], 0.25)
    """
    kinds = np.asarray(cause, dtype=np.int64)
    if kinds.size and not 0 <= kinds.min() <= kinds.max() <= causes:
        raise AnalysisError(f"causes: expected 0 to {causes}; got {sorted(set(kinds.tolist()))}")
    days, at_risk, by_cause, censored = _table(time, kinds, causes)
    events = by_cause.sum(axis=0)
    free = np.cumprod(1 - events / at_risk) if days.size else np.empty(0)
    before = np.concatenate([[1.0], free[:-1]]) if days.size else free
    incidence = np.cumsum(before * by_cause / at_risk, axis=1)
    if days.size and not np.allclose(incidence.sum(axis=0) + free, 1, rtol=0, atol=1e-9):
        raise AnalysisError("cumulative incidence: the causes and what is event-free do not add up to 1")
    se = np.array([_incidence_se(incidence[k], before, by_cause[k], events, at_risk) for k in range(causes)])
    return CumulativeIncidence(
        n=kinds.size,
        time=days,
        at_risk=at_risk,
        events=by_cause,
        censored=censored,
        incidence=incidence,
        se=se.reshape(causes, days.size),
        event_free=free,
    )


def survival_at(estimate: KaplanMeier, day: float) -> Estimate:
    """Read survival at a day: the last step at or before it; at risk are those with a time of at least the day."""
    i = int(np.searchsorted(estimate.time, day, side="right")) - 1
    left = int((estimate.events + estimate.censored)[estimate.time >= day].sum())
    if i < 0:
        return Estimate(day=day, value=1.0, ci95=None, at_risk=left)
    low, high = float(estimate.ci_low[i]), float(estimate.ci_high[i])
    return Estimate(
        day=day,
        value=float(estimate.survival[i]),
        ci95=None if math.isnan(low) else (low, high),
        at_risk=left,
    )


def incidence_at(estimate: CumulativeIncidence, day: float, cause: int) -> Estimate:
    """Read the incidence of a cause (1 …) at a day; interval by log(−log) of the incidence."""
    i = int(np.searchsorted(estimate.time, day, side="right")) - 1
    left = int((estimate.events.sum(axis=0) + estimate.censored)[estimate.time >= day].sum())
    if i < 0:
        return Estimate(day=day, value=0.0, ci95=None, at_risk=left)
    value, se = float(estimate.incidence[cause - 1, i]), float(estimate.se[cause - 1, i])
    interval = None
    if 0 < value < 1 and se > 0:
        half = _z() * se / abs(value * math.log(value))
        interval = (value ** math.exp(half), value ** math.exp(-half))
    return Estimate(day=day, value=value, ci95=interval, at_risk=left)


def event_free_at(estimate: CumulativeIncidence, day: float) -> float:
    """Read the probability of no event up to a day."""
    i = int(np.searchsorted(estimate.time, day, side="right")) - 1
    return 1.0 if i < 0 else float(estimate.event_free[i])


def median_time(estimate: KaplanMeier) -> float | None:
    """Return the first day with survival of one half or less; `None` is not reached."""
    below = np.flatnonzero(estimate.survival <= _HALF)
    return float(estimate.time[below[0]]) if below.size else None


def median_follow_up(time: Sequence[float], event: Sequence[bool]) -> float | None:
    """Median follow-up by the reverse Kaplan–Meier method: censorings are its events, events its censorings.

    References
    ----------
    Schemper M, Smith TL. Control Clin Trials 1996;17:343.
    """
    return median_time(kaplan_meier(time, [not one for one in event]))


def _table(time: Sequence[float], cause: Counts, causes: int) -> tuple[Floats, Counts, Counts, Counts]:
    """Count, for each day on which something happened: at risk before it, events by cause, censorings."""
    times = np.asarray(time, dtype=np.float64)
    if times.shape != cause.shape or times.ndim != 1:
        raise AnalysisError(f"times: expected one a patient; got {times.size} times and {cause.size} events")
    if not np.isfinite(times).all() or (times < 0).any():
        raise AnalysisError("times: expected days from 0 on; got one that is negative or no number")
    days, place = np.unique(times, return_inverse=True)
    by_cause = np.array(
        [np.bincount(place[cause == k + 1], minlength=days.size) for k in range(causes)], dtype=np.int64
    ).reshape(causes, days.size)
    censored = np.bincount(place[cause == 0], minlength=days.size).astype(np.int64)
    leaving = by_cause.sum(axis=0) + censored
    at_risk = leaving[::-1].cumsum()[::-1].astype(np.int64)
    return days, at_risk, by_cause, censored


def _incidence_se(incidence: Floats, before: Floats, own: Counts, events: Counts, at_risk: Counts) -> Floats:
    if incidence.size == 0:
        return np.empty(0)
    rest = at_risk - events
    # Where everyone at risk had an event the curve ends: the term is 0, since the incidence rises no more.
    hazard = np.divide(events, at_risk * rest, out=np.zeros(events.size), where=rest > 0)
    step = before / at_risk
    variance = (
        incidence**2 * np.cumsum(hazard)
        - 2 * incidence * np.cumsum(incidence * hazard)
        + np.cumsum(incidence**2 * hazard)
        + np.cumsum(step**2 * own * (at_risk - own) / at_risk)
        - 2 * incidence * np.cumsum(step * own / at_risk)
        + 2 * np.cumsum(incidence * step * own / at_risk)
    )
    se: Floats = np.sqrt(np.maximum(variance, 0))
    return se


def _z() -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 + CONFIDENCE / 2))


def _freeze(value: KaplanMeier | CumulativeIncidence) -> None:
    for field in fields(value):
        held = getattr(value, field.name)
        if isinstance(held, np.ndarray):
            held.setflags(write=False)
