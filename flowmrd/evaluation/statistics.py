"""Figures of an evaluation: overlap of events, rates with intervals, detection curves, agreement of fractions.

All functions take plain numbers and return plain values; nothing here knows files or templates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import QuantificationError

Floats = NDArray[np.float64]


# -------------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How two sets of events agree. Ratios are `None` where there is nothing to divide by."""

    found_events: int
    true_events: int
    hit_events: int

    @property
    def precision(self) -> float | None:
        """Share of the found events that are true."""
        return self.hit_events / self.found_events if self.found_events else None

    @property
    def recall(self) -> float | None:
        """Share of the true events that are found."""
        return self.hit_events / self.true_events if self.true_events else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, 2·hits / (found + true); `None` where nothing is true."""
        return 2 * self.hit_events / (self.found_events + self.true_events) if self.true_events else None


def overlap(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> Overlap:
    """Count what two memberships of the same events share.

    Raises
    ------
    QuantificationError : memberships of different length

    Examples
    --------
    >>> overlap(np.array([True, True, False]), np.array([True, False, True])).f1
    0.5
    """
    if found.shape != true.shape:
        raise QuantificationError(f"overlap: expected as many events in both; got {found.size} and {true.size}")
    return Overlap(
        found_events=int(np.count_nonzero(found)),
        true_events=int(np.count_nonzero(true)),
        hit_events=int(np.count_nonzero(found & true)),
    )


# --------------------------------------------------------------------------------------------------------------- rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`k` of `n` with a two-sided interval; without cases there is no rate."""

    k: int
    n: int
    value: float | None
    low: float | None
    high: float | None


def wilson(k: int, n: int, *, confidence: float = 0.95) -> Rate:
    """Rate of `k` in `n` with Wilson's score interval (without continuity correction).

    Raises
    ------
    QuantificationError : not 0 <= k <= n

    References
    ----------
    Wilson EB. J Am Stat Assoc 1927;22:209-212.

    Examples
    --------
    >>> rate = wilson(61, 75)
    >>> f"{rate.low:.4f} {rate.high:.4f}"
    '0.7107 0.8854'
    """
    if not 0 <= k <= n:
        raise QuantificationError(f"rate: expected 0 <= k <= n; got {k} of {n}")
    if n == 0:
        return Rate(k=0, n=0, value=None, low=None, high=None)
    z = normal_quantile(0.5 + confidence / 2)
    share = k / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the formula is exactly 0 or 1; floating point is not.
    low = 0.0 if k == 0 else max(0.0, middle - half)
    high = 1.0 if k == n else min(1.0, middle + half)
    return Rate(k=k, n=n, value=share, low=low, high=high)


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(probability))


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float] | None:
    """Distribution-free interval of a median, between two order statistics; `None` where too few values have one.

    References
    ----------
    Conover WJ. Practical Nonparametric Statistics, 3rd ed., section 3.2.

    Examples
    --------
    >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (1.0, 6.0)
    """
    from scipy.special import bdtr

    ordered = np.sort(np.asarray(values, np.float64))
    n, tail = ordered.size, (1 - confidence) / 2
    # The largest rank r with P(fewer than r values lie below the median) <= tail.
    rank = 0
    while rank < n // 2 and float(bdtr(rank, n, 0.5)) <= tail:
        rank += 1
    return (float(ordered[rank - 1]), float(ordered[n - rank])) if rank else None


# ----------------------------------------------------------------------------------------------------------- detection


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """A probit detection curve over log10 of the level, or why there is none.

    `lod` is the level that is detected with the wanted probability, `low` and `high` its interval (delta method on the
    logarithmic scale). `intercept`, `slope` and `covariance` (variance of the intercept, of the slope, and covariance)
    describe the curve. Where the levels that were missed and found do not overlap there is no unique curve: `lod` is
    `None`, and `below` and `above` bracket it: the highest level missed, the lowest level found.
    """

    n: int
    detected: int
    note: str
    lod: float | None = None
    low: float | None = None
    high: float | None = None
    intercept: float | None = None
    slope: float | None = None
    covariance: tuple[float, float, float] | None = None
    below: float | None = None
    above: float | None = None


def probit(
    levels: Sequence[float], detected: Sequence[bool], *, probability: float = 0.95, confidence: float = 0.95
) -> Detection:
    """Fit the probability of detection by a probit curve over log10 of the level (CLSI EP17-A2, probit approach).

    Parameters
    ----------
    levels : true level of each sample, above 0
    detected : whether it was found
    probability : of detection, at which the limit is read
    confidence : of the limit's interval

    Raises
    ------
    QuantificationError : levels that are not above 0, or not one answer a level
    """
    from scipy.special import log_ndtr, ndtr

    level, hit = np.asarray(levels, np.float64), np.asarray(detected, np.bool_)
    if level.shape != hit.shape or not (level > 0).all() or not np.isfinite(level).all():
        raise QuantificationError("detection curve: expected one answer for each level, and levels above 0")
    found, missed = level[hit], level[~hit]
    plain = Detection(
        n=int(level.size),
        detected=int(hit.sum()),
        note="",
        below=float(missed.max()) if missed.size else None,
        above=float(found.min()) if found.size else None,
    )

    def without(note: str) -> Detection:
        return replace(plain, note=note)

    if level.size == 0:
        return without("no samples with disease")
    if missed.size == 0:
        return without("every sample was found: the limit lies below the lowest level")
    if found.size == 0:
        return without("no sample was found: the limit lies above the highest level")
    if missed.max() <= found.min():
        return without("levels missed and found do not overlap: the limit lies between them")
    if found.max() <= missed.min():
        return without("detection does not rise with the level")
    x = np.log10(level)
    # Centred, so that the two coefficients hardly depend on each other while they are sought.
    centre = float(x.mean())
    design = np.stack([np.ones_like(x), x - centre])
    sign = np.where(hit, 1.0, -1.0)
    beta = np.array([normal_quantile(min(max(float(hit.mean()), 0.02), 0.98)), 0.0])
    information = np.eye(2)
    settled = False
    for _ in range(200):
        score_at = sign * (beta @ design)
        ratio = sign * np.exp(-0.5 * score_at**2 - 0.5 * math.log(2 * math.pi) - log_ndtr(score_at))
        eta = beta @ design
        chance = np.clip(ndtr(eta), 1e-12, 1 - 1e-12)
        weight = np.exp(-(eta**2)) / (2 * math.pi) / (chance * (1 - chance))
        information = (design * weight) @ design.T
        if np.linalg.cond(information) > 1e12:
            break
        step = np.linalg.solve(information, design @ ratio)
        # A long first step can leave the region where the curve is informative.
        beta = beta + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        if float(np.abs(step).max()) < 1e-9:
            settled = True
            break
    if not settled:
        return without("the fit does not settle")
    if beta[1] <= 0:
        return without("detection does not rise with the level")
    variance = np.linalg.inv(information)
    slope = float(beta[1])
    intercept = float(beta[0] - slope * centre)
    limit = (normal_quantile(probability) - intercept) / slope
    away = limit - centre
    spread = (variance[0, 0] + away**2 * variance[1, 1] + 2 * away * variance[0, 1]) / slope**2
    half = normal_quantile(0.5 + confidence / 2) * math.sqrt(max(float(spread), 0.0))
    # The covariance of (intercept at x = 0, slope), for the band of the curve.
    full = (
        float(variance[0, 0] + centre**2 * variance[1, 1] - 2 * centre * variance[0, 1]),
        float(variance[1, 1]),
        float(variance[0, 1] - centre * variance[1, 1]),
    )
    return replace(
        plain,
        lod=_power(limit),
        low=_power(limit - half),
        high=_power(limit + half),
        intercept=intercept,
        slope=slope,
        covariance=full,
        note="probit over log10 of the level; interval by the delta method",
    )


def _power(exponent: float) -> float:
    # A nearly flat curve puts the limit beyond any number.
    return float(10.0 ** min(max(exponent, -300.0), 300.0))


def detection_curve(
    curve: Detection, levels: Sequence[float], *, confidence: float = 0.95
) -> tuple[Floats, Floats, Floats]:
    """Return probability of detection, and its pointwise interval, at the given levels.

    Raises
    ------
    QuantificationError : there is no curve
    """
    from scipy.special import ndtr

    if curve.intercept is None or curve.slope is None or curve.covariance is None:
        raise QuantificationError(f"detection curve: there is none ({curve.note})")
    x = np.log10(np.asarray(levels, np.float64))
    eta = curve.intercept + curve.slope * x
    at_zero, of_slope, between = curve.covariance
    half = normal_quantile(0.5 + confidence / 2) * np.sqrt(np.maximum(at_zero + x**2 * of_slope + 2 * x * between, 0))
    return ndtr(eta), ndtr(eta - half), ndtr(eta + half)


# ----------------------------------------------------------------------------------------------------------- agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How estimates follow the truth, in log10 (Bland-Altman) and as shares of explained variance.

    `bias` is the mean of log10(estimate / truth), `low` and `high` its 95 % limits of agreement (bias ± 1.96 SD). `r2`
    is the squared correlation of the logarithms, `r2_identity` the share of variance that the line estimate = truth
    explains, which a bias lowers and a correlation hides. `None` where too few pairs have one.
    """

    n: int
    bias: float | None = None
    median: float | None = None
    median_absolute: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    r2: float | None = None
    r2_identity: float | None = None


def agreement(truth: Sequence[float], estimate: Sequence[float]) -> Agreement:
    """Compare estimates with true fractions, both above 0.

    Raises
    ------
    QuantificationError : values that are not above 0, or not in pairs

    References
    ----------
    Bland JM, Altman DG. Lancet 1986;1:307-310.
    """
    true, found = np.asarray(truth, np.float64), np.asarray(estimate, np.float64)
    if true.shape != found.shape or not (true > 0).all() or not (found > 0).all():
        raise QuantificationError("agreement: expected pairs of fractions above 0")
    n = int(true.size)
    if n == 0:
        return Agreement(n=0)
    x, y = np.log10(true), np.log10(found)
    error = y - x
    bias = float(error.mean())
    sd = float(error.std(ddof=1)) if n > 1 else None
    half = None if sd is None else normal_quantile(0.975) * sd
    # Of logarithms that are all but equal the ratio below would be rounding error.
    spread = float(((x - x.mean()) ** 2).sum()) if n > 1 else 0.0
    varies = spread > 1e-12 * n
    response = float(((y - y.mean()) ** 2).sum())
    covariance = float(((x - x.mean()) * (y - y.mean())).sum())
    return Agreement(
        n=n,
        bias=bias,
        median=float(np.median(error)),
        median_absolute=float(np.median(np.abs(error))),
        sd=sd,
        low=None if half is None else bias - half,
        high=None if half is None else bias + half,
        r2=min(1.0, covariance**2 / (spread * response)) if varies and response > 1e-12 * n else None,
        r2_identity=1 - float((error**2).sum()) / spread if varies else None,
    )
