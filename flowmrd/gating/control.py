"""Where a dim population begins, told by control acquisitions: its cut, its background, its fraction.

The events are those of one parent (T cells), the channel that of one reagent, in linear compensated units. A control is
the same parent without the population (a sample from before the infusion, for one). Three ways, from weak to strong:
a quantile of the controls, the tail of the sample itself, and `anchored`, which brings the controls to the negative
events of the sample first:

1. **Residual spillover.** What is left of other dyes in the channel after compensation differs from file to file and
   weighs with composition, so it is measured on the negative events and taken out (`residual_spillover`).
2. **Composition.** Events of a control are weighed so that its strata (subsets of the parent) are those of the
   sample's negative events.
3. **Drift.** A gain and an offset make the upper flank of a control's negative peak that of the sample. The flank is
   told from the population by fitting both in turn.
4. **Positives.** Their brightness is a shifted log-normal, fitted on the sample, and on a sample of many positives (the
   product) where there is one. It says what share of them lies above a cut.
5. **The cut** is where the fraction's error is least: counting in sample and control, what the match of the tails
   leaves in doubt, and the brightness of the positives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import GatingError

F64: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorSettings:
    """Numbers of `anchored`.

    Attributes
    ----------
    least_events : of the sample and of each control; fewer are refused
    sd_mean, sd_spread : log10 spread of positives, expected and its uncertainty
    brightness_units, brightness_sd : log10 brightness of positives, expected in widths of the negative peak's lower
        part, and its uncertainty; used without a product
    brightness_drift_sd : of the positives' log10 brightness between sample and product, beyond that of the controls
    flank_doubt : relative error of positives that hide in the flank
    shape_doubt : relative error of the negatives' share in a bin after matching
    dim_side_doubt : the same for the dimmer half, which the match does not look at
    tail_shape_doubt : log of the factor by which the whole upper tail of the negatives may be longer or shorter after
        matching; what such a factor explains is not taken for positives
    tail_doubt : relative standard error of the background above a cut that matching one control leaves; the sample's
        own day remains however many controls there are
    least_separation : share of positives that lie above 99 % of the negatives at least; what is dimmer cannot be told
        from negatives that the match did not bring together
    recovery_doubt : standard error of the recovery, as a share of the positives below the cut; twice that without a
        product, whose positives show the shape
    gating_doubt : relative standard error of the fraction from the gates before it, which treat positives (larger,
        with less of the parent's marker) not quite as negatives
    interval_factor : of the half-widths that follow from all of these: on simulated patients they alone held 91 % of
        the truths at a confidence of 95 %
    far_better : by how much a fit with positives must be better (half a chi-square) than one without
    most_drift : log10 of the brightness by which sample and controls may differ before positives are likelier
    least_known_recovery : without a product, fitted positives of which fewer lie above their best cut are not told
        from what the match did not bring together, unless the fit is ten times as much better
    target_fraction : the cut is chosen for at least this fraction
    least_recovery : share of positives above the cut, less the background, that a cut must have
    most_background : a cut below more of the background is not taken
    """

    least_events: int = 200
    flank_doubt: float = 0.3
    shape_doubt: float = 0.05
    dim_side_doubt: float = 0.15
    tail_shape_doubt: float = 0.25
    brightness_units: float = 12.0
    brightness_sd: float = 0.35
    sd_mean: float = 0.31
    sd_spread: float = 0.08
    brightness_drift_sd: float = 0.07
    tail_doubt: float = 0.3
    least_separation: float = 0.3
    gating_doubt: float = 0.01
    interval_factor: float = 1.15
    far_better: float = 100.0
    most_drift: float = 0.3
    least_known_recovery: float = 0.5
    recovery_doubt: float = 0.1
    target_fraction: float = 0.001
    least_recovery: float = 0.05
    most_background: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Intensities:
    """Events of the parent in one acquisition.

    `values` (n,) linear compensated units of the channel; `others` (k, n) of the other stained channels; `strata` (n,)
    small whole numbers, one a subset of the parent.
    """

    values: F64
    others: F64
    strata: NDArray[np.intp]

    def __post_init__(self) -> None:
        size = self.values.shape[0]
        if self.others.ndim != 2 or self.others.shape[1] != size or self.strata.shape != (size,):
            raise GatingError(
                f"intensities: expected one value an event; got {self.others.shape} and {self.strata.shape} for {size}"
            )
        for array in (self.values, self.others, self.strata):
            array.flags.writeable = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How one control was brought to the sample: `gain` and `offset` of its values, and its weighted events' number."""

    gain: float
    offset: float
    events: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anchored:
    """A cut with what it rests on. Values are linear, residual spillover taken out.

    `spillover` (k,) is what was taken out of the sample, per unit of the other channels. `events` of `parent_events`
    lie above `cut`; of the matched controls the share `background` does, which counts like `background_events` of
    `background_parent_events`. `recovery` is the share of positives above the cut with its standard error. `fraction`
    is the population's, dim cells included, with its interval. `positive_log10` are mean and spread of the positives'
    log10 brightness above `positive_offset`.
    """

    cut: float
    spillover: F64
    events: int
    parent_events: int
    background: float
    background_events: int
    background_parent_events: int
    recovery: float
    recovery_se: float
    fraction: float
    ci_low: float
    ci_high: float
    matches: tuple[Match, ...]
    positive_log10: tuple[float, float]
    positive_offset: float
    negatives: F64 = field(repr=False)
    negative_weights: F64 = field(repr=False)


# ------------------------------------------------------------------------------------------------------- simple methods


def control_quantile(controls: Sequence[F64], quantile: float) -> float:
    """Value that the share `quantile` of all controls' events stays below.

    Raises
    ------
    GatingError : no events
    """
    values = np.concatenate([np.asarray(one, np.float64) for one in controls]) if controls else np.empty(0)
    if values.size == 0:
        raise GatingError("control quantile: expected events in the controls; got none")
    return float(np.quantile(values, quantile))


def tail_of_sample(values: F64, *, distance: float = 4.0) -> float:
    """Value `distance` spreads above the negative peak of the sample itself; the spread is that of its dim side.

    Parameters
    ----------
    values : (n,) linear compensated units
    distance : in standard deviations of a normal distribution with the dim side's spread, on a scale that is linear
        near zero and logarithmic above
    """
    values = np.asarray(values, np.float64)
    if values.size < 50:
        raise GatingError(f"tail of the sample: expected at least 50 events; got {values.size}")
    unit = _unit(values)
    scaled = np.arcsinh(values / unit)
    peak = _lowest_mode(scaled)
    dim = scaled[scaled < peak]
    return float(unit * np.sinh(peak + distance * 1.4826 * np.median(peak - dim)))


# ------------------------------------------------------------------------------------------------- residual spillover


def residual_spillover(values: F64, others: F64, *, rounds: int = 10) -> F64:
    """Share of each other channel that is left in the channel after compensation, measured on the negative events.

    Parameters
    ----------
    values : (n,) linear compensated units of the channel
    others : (k, n) of the other channels

    Returns
    -------
    (k,) coefficients: `values - coefficients @ others` is free of them

    Notes
    -----
    Least squares with bounded influence below the fit (Huber) and none two spreads above it, where positives lie.
    """
    count, size = others.shape
    if count == 0 or size < 50 * (count + 1):
        return np.zeros(count)
    scale = np.std(others, axis=1)
    used = scale > 0
    design = np.ones((int(used.sum()) + 1, size))
    design[:-1] = (others[used] - others[used].mean(axis=1, keepdims=True)) / scale[used, None]
    unit = _unit(values)
    centre = float(unit * np.sinh(_lowest_mode(np.arcsinh(values / unit))))
    solution: F64 = np.zeros(design.shape[0], np.float64)
    solution[-1] = centre
    for _ in range(rounds):
        left = values - solution @ design
        below = left[left < 0]
        spread = 1.4826 * float(np.median(-below)) if below.size else 1.0
        weight = np.clip(1.5 * spread / np.maximum(np.abs(left), 1e-9), 0.0, 1.0)
        weight[left > 2.0 * spread] = 0.0
        weighted = design * weight
        normal = weighted @ design.T + 1e-6 * np.eye(design.shape[0])
        solution = np.asarray(np.linalg.solve(normal, weighted @ values), np.float64)
    coefficients = np.zeros(count)
    coefficients[used] = solution[:-1] / scale[used]
    return coefficients


def _unit(values: F64) -> float:
    """Width of the linear part: the spread of the lower half of the events around their lowest quarter's end."""
    low, quarter = np.quantile(values, (0.02, 0.3))
    return max(float(quarter - low), 1e-6)


def _lowest_mode(scaled: F64) -> float:
    """Lowest peak of a smoothed histogram that holds a fair part of the highest one's density."""
    low, high = np.quantile(scaled, (0.001, 0.999))
    edges = np.linspace(low, high + 1e-9, 257)
    counts = np.histogram(scaled, edges)[0].astype(np.float64)
    kernel = np.exp(-0.5 * (np.arange(-24, 25) / 8.0) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum(), mode="same")
    inner = (smooth[1:-1] >= smooth[:-2]) & (smooth[1:-1] > smooth[2:]) & (smooth[1:-1] > 0.2 * smooth.max())
    peaks = np.flatnonzero(inner) + 1
    place = int(peaks[0]) if peaks.size else int(np.argmax(smooth))
    return float((edges[place] + edges[place + 1]) / 2)


# ------------------------------------------------------------------------------------------------------------ anchored


def anchored(
    sample: Intensities,
    controls: Sequence[Intensities],
    *,
    product: Intensities | None = None,
    settings: AnchorSettings | None = None,
    confidence: float = 0.95,
) -> Anchored:
    """Place the cut by controls that are brought to the sample's negative events, and measure the fraction.

    Parameters
    ----------
    sample : the acquisition to measure
    controls : the same parent without the population, each with the reagent's background; two are better than one
    product : a sample with many positives of the same kind, which says how bright they are
    settings : numbers of the method
    confidence : of the interval

    Raises
    ------
    GatingError : no control, or too few events
    """
    numbers = settings or AnchorSettings()
    if not controls:
        raise GatingError("anchored cut: expected at least one control; got none")
    for what, one in (("sample", sample), *(("control", one) for one in controls)):
        if one.values.size < numbers.least_events:
            raise GatingError(
                f"anchored cut: expected at least {numbers.least_events} events in the {what}; got {one.values.size}"
            )
    spillover, values = _cleaned(sample)
    cleaned = [_cleaned(one)[1] for one in controls]
    anchor: _Fit | None = None
    if product is not None and product.values.size >= numbers.least_events:
        of_product = _fit(_cleaned(product)[1], product.strata, cleaned, controls, numbers)
        if of_product.fraction > 0.02:
            anchor = of_product
    few, many = _both(values, sample.strata, cleaned, controls, numbers, anchor=anchor)
    best = min(few, many, key=lambda one: one.loss)
    # A match without positives is kept unless one with them explains the sample far better: few dim positives can stand
    # for whatever the match did not bring together. They are then counted above the cut all the same, with the
    # brightness that the product has, or that is expected of them.
    none = _fit_from(values, sample.strata, cleaned, controls, numbers, anchor=anchor, start=None)
    better = none.loss - best.loss
    # Unless it takes the sample for far brighter than its controls, where positives would do without.
    far_off = _drift(none) > numbers.most_drift >= _drift(best)
    if better < numbers.far_better and not (far_off and best.fraction > 0):
        return _best_cut(values, spillover, none, numbers, confidence)
    found = _best_cut(values, spillover, best, numbers, confidence)
    seen = found.recovery >= numbers.least_known_recovery or better >= 10 * numbers.far_better
    if anchor is not None or seen or far_off:
        return found
    return _best_cut(values, spillover, none, numbers, confidence)


def _drift(fit: _Fit) -> float:
    return max(abs(math.log10(match.gain)) for match in fit.matches)


def _cleaned(one: Intensities) -> tuple[F64, F64]:
    coefficients = residual_spillover(one.values, one.others)
    return coefficients, one.values - coefficients @ one.others


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    """Sample as a mixture of matched controls and positives; `covariance` (2, 2) of mean and log spread."""

    loss: float
    anchored: bool
    fraction: float
    mean: float
    sd: float
    offset: float
    covariance: F64
    negatives: F64
    weights: F64
    matches: tuple[Match, ...]


def _fit(
    values: F64,
    strata: NDArray[np.intp],
    cleaned: Sequence[F64],
    controls: Sequence[Intensities],
    numbers: AnchorSettings,
    *,
    anchor: _Fit | None = None,
) -> _Fit:
    """Fit from a start without positives and from one with many; what explains the sample better is kept."""
    return min(_both(values, strata, cleaned, controls, numbers, anchor=anchor), key=lambda one: one.loss)


def _both(
    values: F64,
    strata: NDArray[np.intp],
    cleaned: Sequence[F64],
    controls: Sequence[Intensities],
    numbers: AnchorSettings,
    *,
    anchor: _Fit | None = None,
) -> tuple[_Fit, _Fit]:
    few, many, most = (
        _fit_from(values, strata, cleaned, controls, numbers, anchor=anchor, start=start)
        for start in (_FEW, _MANY, _MOST)
    )
    return few, min(many, most, key=lambda one: one.loss)


def _fit_from(
    values: F64,
    strata: NDArray[np.intp],
    cleaned: Sequence[F64],
    controls: Sequence[Intensities],
    numbers: AnchorSettings,
    *,
    anchor: _Fit | None,
    start: float | None,
) -> _Fit:
    """Match and fit in turn from a share of positives to start with; `None` = there are none."""
    from scipy.special import ndtr

    unit = _unit(values)
    top = max(int(one.max(initial=0)) for one in (strata, *(one.strata for one in controls))) + 1
    here = np.bincount(strata, minlength=top).astype(np.float64)
    there = [np.bincount(one.strata, minlength=top).astype(np.float64) for one in controls]
    ranked = np.sort(values)
    # In the order of their values, which no gain changes; what is joined of two then sorts fast.
    orders = [np.argsort(one) for one in cleaned]
    sorted_controls = [one[order] for one, order in zip(cleaned, orders, strict=True)]
    sorted_strata = [one.strata[order] for one, order in zip(controls, orders, strict=True)]
    codes = np.concatenate(sorted_strata)
    if start == _MOST:
        gains = [_gain_of_dim_side(ranked, one, _MOST) for one in sorted_controls]
    else:
        gains = [_first_gain(values, one) for one in cleaned]
    per_stratum = np.zeros(top)
    fraction, mean, sd, offset = 0.0, 0.0, 1.0, 0.0
    for turn in range(_TURNS):
        negative = here * (1.0 - per_stratum)
        weights = [
            np.divide(negative, count, out=np.zeros(top), where=count > 0)[one]
            for one, count in zip(sorted_strata, there, strict=True)
        ]
        if turn > 0 or start is None or start < _MANY:
            flank = _flank(ranked, fraction, mean, sd, offset, numbers)
            gains = [_gain_of_flank(one, weight, *flank) for one, weight in zip(sorted_controls, weights, strict=True)]
        joined = np.concatenate([gain * one + move for (gain, move), one in zip(gains, sorted_controls, strict=True)])
        # Controls count by their events, whatever the share of them that has a stratum of the sample.
        joined_weights = np.concatenate([weight * (weight.size / weight.sum()) for weight in weights])
        order = np.argsort(joined, kind="stable")
        cumulated = np.cumsum(joined_weights[order])
        cumulated /= cumulated[-1]
        fine = np.interp(_LEVELS, cumulated, joined[order])
        offset = max(float(np.interp(0.25, _LEVELS, fine)), 0.0)
        found = _positives(
            values,
            fine,
            offset=offset,
            unit=unit,
            numbers=numbers,
            anchor=anchor,
            brighter=_brighter(gains, anchor),
            guess=start if turn == 0 or start is None else (fraction, mean, sd),
        )
        fraction, mean, sd = found.fraction, found.mean, found.sd
        if start is None:
            continue
        # The share of positives in each stratum, by the counts above a cut that most background stays below.
        cut = float(np.interp(0.99, _LEVELS, fine))
        above = float(ndtr(-(math.log10(max(cut - offset, 1e-3)) - mean) / sd))
        sample_above = np.bincount(strata[values > cut], minlength=top)
        over = joined > cut
        control_above = np.bincount(codes[over], joined_weights[over], minlength=top)
        control_whole = np.bincount(codes, joined_weights, minlength=top)
        control_events = np.bincount(codes, minlength=top)
        for code in range(top):
            share = fraction
            if here[code] >= 50 and control_events[code] >= 50 and above > 0.05:
                p = float(sample_above[code] / here[code])
                q = float(control_above[code] / max(control_whole[code], 1e-9))
                share = (p - q) / max(above - q, 0.02)
            per_stratum[code] = min(max(share, 0.0), 0.95)
    return _Fit(
        loss=found.loss,
        anchored=anchor is not None,
        fraction=fraction,
        mean=mean,
        sd=sd,
        offset=offset,
        covariance=found.covariance,
        negatives=joined,
        weights=joined_weights,
        matches=tuple(
            Match(gain=gain, offset=move, events=one.size) for (gain, move), one in zip(gains, cleaned, strict=True)
        ),
    )


def _brighter(gains: Sequence[tuple[float, float]], anchor: _Fit | None) -> float:
    """By how much positives of the sample are brighter than the product's, log10: the same controls matched to either.

    Half of what the flank says: the noise in it does not grow with the staining.
    """
    if anchor is None:
        return 0.0
    steps = [math.log10(gain / match.gain) for (gain, _), match in zip(gains, anchor.matches, strict=True)]
    return 0.5 * math.fsum(steps) / len(steps)


_TURNS = 5
_FEW, _MANY, _MOST = 0.002, 0.3, 0.7
_NO_SHARE = -30.0  # logit
_LEVELS = np.concatenate([np.linspace(0.0, 0.9, 1801)[:-1], 1.0 - np.geomspace(0.1, 1e-6, 1200), [1.0]])
_UPPER = np.geomspace(0.3, 0.008, 40)
# Many dim positives can stand where a brighter control would: the dim side of the peak tells them apart.
_DIM_SIDE = np.array([0.03, 0.1, 0.25, 0.45])
_BINS = np.concatenate([[0.4, 0.3], np.geomspace(0.2, 0.001, 16)])


def _flank(
    ranked: F64, fraction: float, mean: float, sd: float, offset: float, numbers: AnchorSettings
) -> tuple[F64, F64]:
    """Values that the upper shares `_UPPER` of the sample's negative events lie above, and how far each is trusted."""
    from scipy.special import ndtr

    size = ranked.size
    grid = np.unique(
        np.quantile(ranked, np.concatenate([np.linspace(0.02, 0.98, 400), 1 - np.geomspace(0.02, 10 / size, 200)]))
    )
    survival = 1.0 - np.searchsorted(ranked, grid, side="right") / size
    positive = ndtr(-(np.log10(np.maximum(grid - offset, 1e-3)) - mean) / sd)
    negative = np.minimum.accumulate((survival - fraction * positive) / max(1.0 - fraction, 0.01))
    values = np.interp(-_UPPER, -negative, grid)
    hidden = fraction * (1.0 - np.interp(values, grid, positive))
    doubt = np.hypot(0.02, numbers.flank_doubt * hidden / _UPPER)
    return values, 1.0 / doubt


def _gain_of_flank(ranked: F64, weights: F64, wanted: F64, trust: F64) -> tuple[float, float]:
    """Gain and offset that bring the upper flank of a control's weighted events to the wanted values."""
    cumulated = np.cumsum(weights)
    cumulated = (cumulated - 0.5 * weights) / cumulated[-1]
    own = np.interp(1.0 - _UPPER, cumulated, ranked)
    # A share's error moves its value by the error over the density, which falls with the share itself.
    reach = np.gradient(wanted, np.log(_UPPER))
    weight = trust / np.maximum(np.abs(reach), 1e-9)
    design = np.stack([own, np.ones_like(own)], axis=1) * weight[:, None]
    gain, move = np.linalg.lstsq(design, wanted * weight, rcond=None)[0]
    return float(np.clip(gain, 0.3, 3.0)), float(move)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Positives:
    loss: float
    fraction: float
    mean: float
    sd: float
    covariance: F64


def _positives(
    values: F64,
    negatives: F64,
    *,
    offset: float,
    unit: float,
    numbers: AnchorSettings,
    anchor: _Fit | None,
    brighter: float,
    guess: float | tuple[float, float, float] | None,
) -> _Positives:
    """Fraction, log10 mean and spread of positives beside negatives whose quantiles at `_LEVELS` are given.

    Least squares over bins with counting error and an error in proportion to the negatives, since their match is never
    perfect and their events are many. With `guess` of `None` there are no positives; mean and spread are the expected.
    """
    from scipy.optimize import minimize
    from scipy.special import ndtr

    size = values.size
    inside = np.interp(np.concatenate([_DIM_SIDE, 1.0 - _BINS]), _LEVELS, negatives)
    top = max(float(np.quantile(values, 0.9999)), 40.0 * unit, inside[-1] * 1.5)
    edges = np.unique(np.concatenate([inside, np.geomspace(max(inside[-1], unit), top, 16)[1:]]))
    counts = np.histogram(values, np.concatenate([[-np.inf], edges, [np.inf]]))[0].astype(np.float64)
    levels = np.interp(edges, negatives, _LEVELS)
    n = np.diff(levels, prepend=0.0, append=1.0)
    doubt = np.where(np.append(levels, 1.0) < 0.5, numbers.dim_side_doubt, numbers.shape_doubt)
    # How far up the tail a bin lies: 0 below the flank, 1 from the last hundredth on.
    middle = np.concatenate([[0.0], levels[:-1] + 0.5 * np.diff(levels), [1.0]])
    depth = np.clip(np.log(0.3 / np.maximum(1.0 - middle, 1e-9)) / math.log(0.3 / 0.01), 0.0, 1.0)
    logs = np.log10(np.maximum(edges - offset, 1e-3))
    border = math.log10(max(float(np.interp(0.99, _LEVELS, negatives)) - offset, 1e-3))
    if anchor is None:
        mean_prior = (math.log10(max(numbers.brightness_units * unit, 1e-3)), numbers.brightness_sd)
        sd_prior = (math.log(numbers.sd_mean), numbers.sd_spread / numbers.sd_mean)
    else:
        # What makes the same control's cells brighter makes the positives brighter: voltages, dye, staining.
        mean_prior = (
            anchor.mean + brighter,
            math.hypot(numbers.brightness_drift_sd, math.sqrt(anchor.covariance[0, 0])),
        )
        sd_prior = (math.log(anchor.sd), math.hypot(0.03, math.sqrt(anchor.covariance[1, 1])))

    def loss(theta: F64) -> float:
        share = _share(theta[0])
        p = np.diff(ndtr((logs - theta[1]) / math.exp(theta[2])), prepend=0.0, append=1.0)
        hidden = (1.0 - share) * n * np.exp(theta[3] * depth) * size
        expected = hidden + share * p * size + 0.5
        variance = expected + (doubt * hidden) ** 2
        value = 0.5 * float(((counts - expected) ** 2 / variance + np.log(variance)).sum())
        above = float(ndtr((theta[1] - border) / math.exp(theta[2])))
        value += 0.5 * (max(numbers.least_separation - above, 0.0) / 0.02) ** 2
        value += 0.5 * (theta[3] / numbers.tail_shape_doubt) ** 2
        value += 0.5 * ((theta[1] - mean_prior[0]) / mean_prior[1]) ** 2
        return float(value + 0.5 * ((theta[2] - sd_prior[0]) / sd_prior[1]) ** 2)

    if guess is None:
        theta = np.array([_NO_SHARE, mean_prior[0], sd_prior[0], 0.0])
        lengths = np.linspace(-3.0, 3.0, 121) * numbers.tail_shape_doubt
        least = min(loss(np.array([*theta[:3], length])) for length in lengths)
        return _Positives(
            loss=least,
            fraction=0.0,
            mean=mean_prior[0],
            sd=math.exp(sd_prior[0]),
            covariance=np.diag(np.square([mean_prior[1], sd_prior[1]])),
        )
    share, mean, sd = guess if isinstance(guess, tuple) else (guess, mean_prior[0], math.exp(sd_prior[0]))
    share = min(max(share, 1e-5), 0.99)
    start = np.array([math.log(share / (1 - share)), mean, math.log(sd), 0.0])
    simplex = np.concatenate([start[None], start + np.diag([0.7, 0.15, 0.15, 0.1])])
    best = minimize(
        loss,
        start,
        method="Nelder-Mead",
        options={"initial_simplex": simplex, "xatol": 1e-4, "fatol": 1e-4, "maxfev": 900},
    )
    theta = best.x
    return _Positives(
        loss=float(best.fun),
        fraction=_share(theta[0]),
        mean=float(theta[1]),
        sd=math.exp(theta[2]),
        covariance=_covariance(loss, theta),
    )


def _share(logit: float) -> float:
    """Share of a logit; where no event speaks for positives, a search for it runs on to ever lower ones."""
    return 1.0 / (1.0 + math.exp(-min(max(float(logit), _NO_SHARE), -_NO_SHARE)))


def _first_gain(values: F64, control: F64) -> tuple[float, float]:
    """Gain and offset that bring the dim side and the peak of a control to those of the sample, whatever lies above."""
    unit = _unit(values)
    peak = float(unit * np.sinh(_lowest_mode(np.arcsinh(values / unit))))
    other_unit = _unit(control)
    other = float(other_unit * np.sinh(_lowest_mode(np.arcsinh(control / other_unit))))
    spread = float(np.median(peak - values[values < peak]))
    other_spread = float(np.median(other - control[control < other]))
    gain = min(max(spread / max(other_spread, 1e-9), 0.4), 2.5)
    return gain, peak - gain * other


def _gain_of_dim_side(ranked: F64, control: F64, share: float) -> tuple[float, float]:
    """Gain and offset that bring a control's dim side to that of a sample with this share of positives above it."""
    levels = np.linspace(0.03, 0.35, 12)
    own = np.interp(levels, np.linspace(0.0, 1.0, control.size), control)
    wanted = np.interp(levels * (1.0 - share), np.linspace(0.0, 1.0, ranked.size), ranked)
    gain, _ = np.polyfit(own, wanted, 1)
    gain = min(max(float(gain), 0.4), 2.5)
    return gain, float(np.mean(wanted) - gain * np.mean(own))


def _covariance(loss: object, theta: F64) -> F64:
    """Covariance of mean and log spread with all else free, from second differences of the loss."""
    step = np.array([0.05, 0.02, 0.03, 0.03])
    size = theta.size
    hessian = np.zeros((size, size))
    centre = loss(theta)  # type: ignore[operator]
    eye = np.diag(step)
    plus = [loss(theta + eye[i]) for i in range(size)]  # type: ignore[operator]
    minus = [loss(theta - eye[i]) for i in range(size)]  # type: ignore[operator]
    for i in range(size):
        hessian[i, i] = (plus[i] + minus[i] - 2 * centre) / step[i] ** 2
        for j in range(i):
            both = loss(theta + eye[i] + eye[j]) + loss(theta - eye[i] - eye[j])  # type: ignore[operator]
            mixed = (both - plus[i] - minus[i] - plus[j] - minus[j] + 2 * centre) / (2 * step[i] * step[j])
            hessian[i, j] = hessian[j, i] = mixed
    value, vector = np.linalg.eigh(hessian)
    inverse = vector @ np.diag(1.0 / np.maximum(value, 0.5)) @ vector.T
    return np.asarray(inverse[1:3, 1:3])


def _best_cut(values: F64, spillover: F64, fit: _Fit, numbers: AnchorSettings, confidence: float) -> Anchored:
    from scipy.special import ndtr, ndtri

    order = np.argsort(fit.negatives, kind="stable")
    ranked, weights = fit.negatives[order], fit.weights[order]
    total, squares = float(weights.sum()), float((weights**2).sum())
    above_w = np.concatenate([np.cumsum(weights[::-1])[::-1], [0.0]])
    above_w2 = np.concatenate([np.cumsum((weights**2)[::-1])[::-1], [0.0]])
    sorted_values = np.sort(values)
    size = values.size
    effective = total**2 / squares
    cuts = np.unique(np.quantile(ranked, 1 - np.geomspace(min(0.5, numbers.most_background), 8 / ranked.size, 160)))

    def at(cut: float) -> tuple[float, float, float, float, float]:
        place = int(np.searchsorted(ranked, cut, side="right"))
        q = float(above_w[place]) / total
        q_var = max(float(above_w2[place]) / total**2, 1.0 / effective**2)
        p = 1.0 - float(np.searchsorted(sorted_values, cut, side="right")) / size
        z = (math.log10(max(cut - fit.offset, 1e-3)) - fit.mean) / fit.sd
        r = float(ndtr(-z))
        slope = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        gradient = np.array([slope / fit.sd, slope * z])
        r_se = math.hypot(math.sqrt(max(float(gradient @ fit.covariance @ gradient), 0.0)), recovery_doubt * (1 - r))
        return q, q_var, p, r, r_se

    share = max(fit.fraction, numbers.target_fraction)
    recovery_doubt = numbers.recovery_doubt * (1.0 if fit.anchored else 2.0)
    tail_doubt = numbers.tail_doubt * math.sqrt((1.0 + 1.0 / len(fit.matches)) / 2.0)

    def error(cut: float) -> float:
        q, q_var, _, r, r_se = at(cut)
        if r - q < numbers.least_recovery:
            return math.inf
        expected = share * r + (1 - share) * q
        variance = expected * (1 - expected) / size
        variance += (1 - share) ** 2 * (q_var + (tail_doubt * q) ** 2) + (share * r_se) ** 2
        return variance / (r - q) ** 2

    errors = np.array([error(float(cut)) for cut in cuts])
    cut = float(cuts[int(np.argmin(errors))]) if np.isfinite(errors).any() else float(cuts[-1])
    q, q_var, p, r, r_se = at(cut)
    events = size - int(np.searchsorted(sorted_values, cut, side="right"))
    from statistics import NormalDist

    z = NormalDist().inv_cdf((1 + confidence) / 2)
    n_eff = q * (1 - q) / q_var if 0 < q < 1 else effective
    p_low, p_high = _score(p, size, z)
    q_low, q_high = _score(q, n_eff, z)
    doubt = z * tail_doubt * q
    fraction = (p - q) / (r - q)
    low = (p - q - math.hypot(p - p_low, math.hypot(q_high - q, doubt))) / (r - q)
    high = (p - q + math.hypot(p_high - p, math.hypot(q - q_low, doubt))) / (r - q)
    # In spreads of the positives, where its error is symmetric: of cells that may be dimmer than expected, far more
    # can lie below the cut than the same step brighter takes away.
    place = -float(ndtri(min(max(r, 1e-9), 1 - 1e-9)))
    step = z * r_se * math.sqrt(2 * math.pi) * math.exp(0.5 * place * place)
    r_low, r_high = float(ndtr(-(place + step))), float(ndtr(-(place - step)))
    up = (r - q) / max(r_low - q, numbers.least_recovery / 2) - 1.0
    down = 1.0 - (r - q) / (r_high - q)
    if fraction < 0:
        up, down = down, up
    gated = z * numbers.gating_doubt * fraction
    below = numbers.interval_factor * math.hypot(fraction - low, down * fraction, gated)
    above = numbers.interval_factor * math.hypot(high - fraction, up * fraction, gated)
    return Anchored(
        cut=cut,
        spillover=spillover,
        events=events,
        parent_events=size,
        background=q,
        background_events=round(q * n_eff),
        background_parent_events=round(n_eff),
        recovery=r,
        recovery_se=r_se,
        fraction=fraction,
        ci_low=fraction - below,
        ci_high=fraction + above,
        matches=fit.matches,
        positive_log10=(fit.mean, fit.sd),
        positive_offset=fit.offset,
        negatives=fit.negatives,
        negative_weights=fit.weights,
    )


def _score(share: float, size: float, z: float) -> tuple[float, float]:
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size)) / (1 + z * z / size)
    return max(0.0, centre - half), min(1.0, centre + half)
