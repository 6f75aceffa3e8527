"""Cuts on one marker's density: valley, tail of a peak, quantile; all on a histogram, so event order cannot matter."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flowmrd.gating.gates import Gate, Rectangle
from flowmrd.gating.methods import Found, GateMethod, NotFound, Params, Sample
from flowmrd.gating.methods.geometric import Number, Values, borrowed, lenders

# Scaled units from below the negatives' spread to above the top of the scale, 1/1024 of the scale a bin.
LOW, HIGH, BINS = -0.5, 1.5, 2048
WIDTH = (HIGH - LOW) / BINS
# Values counted at a time: what is made on the way stays in the cache.
_CHUNK = 16384
CENTRES: NDArray[np.float64] = LOW + WIDTH * (np.arange(BINS, dtype=np.float64) + 0.5)


def histogram(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Count scaled values in the fixed bins; values outside go to the border bins."""
    counts = np.zeros(BINS, np.int64)
    place = np.empty(min(_CHUNK, values.size))
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK]
        at = place[: part.size]
        np.copyto(at, part)
        at -= LOW
        at /= WIDTH
        np.fmax(at, 0.0, out=at)  # NaN becomes 0, too
        np.fmin(at, BINS - 1, out=at)
        counts += np.bincount(at.astype(np.intp), minlength=BINS)
    return counts.astype(np.float64)


def smooth(counts: NDArray[np.float64], bandwidth: float) -> NDArray[np.float64]:
    """Convolve with a Gaussian of `bandwidth` scaled units, cut off at four standard deviations."""
    # Two lines of numpy: importing scipy.ndimage and scipy.signal takes longer than gating a file.
    spread = bandwidth / WIDTH
    reach = int(4.0 * spread + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / spread) ** 2)
    padded = np.convolve(counts, kernel / kernel.sum())
    return padded[reach : reach + counts.size]


def peaks(density: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the bins of local maxima inside the range, the middle of a flat one."""
    steps = np.flatnonzero(np.diff(density))
    first = np.concatenate([[0], steps + 1])
    last = np.concatenate([steps, [density.size - 1]])
    height = density[first]
    top = np.flatnonzero((height[1:-1] > height[:-2]) & (height[1:-1] > height[2:])) + 1
    return np.asarray((first[top] + last[top]) // 2, np.intp)


def cut_gate(markers: tuple[str, ...], params: Any, found: Found, _values: Values) -> Gate:
    """Keep what lies above or below the found cut."""
    cut = found.values["cut"]
    low, high = (cut, math.inf) if params.keep == "above" else (-math.inf, cut)
    return Rectangle(markers=markers, low=(low,), high=(high,))


class ValleyParams(Params):
    """Lowest density between two peaks.

    `search` bounds the cut, `bandwidth` smooths (scaled units), `min_peak` is the least share of events that each side
    must hold, `max_depth` the highest density at the valley relative to the lower of the two peaks beside it.
    """

    keep: Literal["above", "below"]
    search: tuple[Number, Number] = Field(default=(0.0, 1.0))
    bandwidth: float = Field(default=0.012, gt=0)
    min_peak: float = Field(default=0.002, ge=0, lt=1)
    max_depth: float = Field(default=0.8, gt=0, le=1)
    prefer: Literal["deepest", "lowest", "highest"] = "deepest"


def _floor(density: NDArray[np.float64], bottom: int, low: float, high: float) -> NDArray[np.intp]:
    """Return the bins of a flat floor around `bottom`, which few events leave, inside the searched range."""
    level = density[bottom] * (1 + 1e-9) + 1e-12
    first = last = bottom
    while first > 0 and density[first - 1] <= level and CENTRES[first - 1] >= low:
        first -= 1
    while last < BINS - 1 and density[last + 1] <= level and CENTRES[last + 1] <= high:
        last += 1
    return np.arange(first, last + 1)


def _find_valley(sample: Sample, params: ValleyParams) -> Found:
    counts = histogram(sample.events[sample.markers[0]])
    total = counts.sum()
    density = smooth(counts, params.bandwidth)
    tops = peaks(density)
    low, high = (borrowed(side, sample.found, 0.0) for side in params.search)
    running = np.cumsum(counts)
    best: tuple[float, int] | None = None
    for left, right in pairwise(tops.tolist()):
        bottom = int(left + np.argmin(density[left : right + 1]))
        if not low <= CENTRES[bottom] <= high:
            # The lowest point inside the searched range still separates when the range cuts the valley's floor.
            a, b = np.searchsorted(CENTRES, [low, high])
            a, b = max(int(a), int(left)), min(int(b), int(right) + 1)
            if a >= b:
                continue
            bottom = int(a + np.argmin(density[a:b]))
        # Heights of the tallest peak on either side, so that a ripple on a slope is not mistaken for a peak.
        left_top, right_top = density[: bottom + 1].max(), density[bottom:].max()
        share = min(running[bottom], total - running[bottom]) / total
        depth = density[bottom] / min(left_top, right_top) if min(left_top, right_top) > 0 else 1.0
        if share < params.min_peak or depth > params.max_depth:
            continue
        rank = {"deepest": depth, "lowest": CENTRES[bottom], "highest": -CENTRES[bottom]}[params.prefer]
        if best is None or (rank, bottom) < best:
            best = (float(rank), bottom)
    if best is None:
        raise NotFound(
            f"no density valley of {sample.markers[0]} between {low:.3g} and {high:.3g} "
            f"({sample.count} events, {tops.size} peaks)"
        )
    bottom = best[1]
    cut = float(CENTRES[_floor(density, bottom, low, high)].mean())
    return Found(values={"cut": cut}, note=f"density valley at {cut:.3f}")


class TailParams(Params):
    """`distance` robust standard deviations beyond the top of a peak.

    The spread is measured on the peak's other side, which the population sought does not reach: `side` is where the cut
    lies. `search` bounds the peak. Which one: the tallest, or the `outermost` on the side away from the cut, where the
    population sought lies even if another is larger; it must hold at least `least_share` and `least_events` of the
    events, and the density between it and the next taller peak must fall to `max_depth` of its own.
    """

    keep: Literal["above", "below"]
    side: Literal["upper", "lower"] = "upper"
    search: tuple[float, float] = Field(default=(-0.2, 1.2))
    distance: float = Field(gt=0)
    bandwidth: float = Field(default=0.008, gt=0)
    peak: Literal["tallest", "outermost"] = "tallest"
    least_share: float = Field(default=0.005, ge=0, lt=1)
    least_events: int = Field(default=100, ge=1)
    max_depth: float = Field(default=0.7, gt=0, le=1)


def _outermost(counts: NDArray[np.float64], density: NDArray[np.float64], params: TailParams) -> int:
    """Return the bin of the outermost peak that stands by itself; the tallest where no other does."""
    # From the far end inwards; `density` is 0 outside the searched range.
    flip = params.side == "lower"
    ordered, held = (density[::-1], counts[::-1]) if flip else (density, counts)
    running = np.cumsum(held)
    least = max(params.least_share * float(running[-1]), params.least_events)
    tops = peaks(ordered)
    found = tallest = int(np.argmax(ordered))
    for top in tops[tops < tallest]:
        taller = int(next(one for one in (*tops[tops > top], tallest) if ordered[one] > ordered[top]))
        bottom = int(top + np.argmin(ordered[top : taller + 1]))
        if ordered[bottom] <= params.max_depth * ordered[top] and running[bottom] >= least:
            found = int(top)
            break
    return BINS - 1 - found if flip else found


def _find_tail(sample: Sample, params: TailParams) -> Found:
    counts = histogram(sample.events[sample.markers[0]])
    low, high = np.searchsorted(CENTRES, params.search)
    density = np.zeros(BINS)
    density[low:high] = smooth(counts, params.bandwidth)[low:high]
    if density.sum() <= 0:
        raise NotFound(f"no events of {sample.markers[0]} in {params.search}")
    top = int(np.argmax(density)) if params.peak == "tallest" else _outermost(counts, density, params)
    half = counts[low : top + 1][::-1] if params.side == "upper" else counts[top:high]
    # 68.27 % of a half-normal lie within one standard deviation.
    running = np.cumsum(half)
    inner = int(np.searchsorted(running, 0.6827 * running[-1]))
    spread = max(inner, 1) * WIDTH
    sign = 1.0 if params.side == "upper" else -1.0
    peak = float(CENTRES[top])
    cut = peak + sign * params.distance * spread
    return Found(values={"cut": cut, "peak": peak, "spread": spread}, note=f"peak {peak:.3f}, spread {spread:.3f}")


class QuantileParams(Params):
    """A quantile of the parent, moved by `offset` scaled units."""

    keep: Literal["above", "below"]
    quantile: float = Field(ge=0, le=1)
    offset: float = 0.0


def _find_quantile(sample: Sample, params: QuantileParams) -> Found:
    values = sample.events[sample.markers[0]]
    cut = float(np.quantile(values.astype(np.float64), params.quantile)) + params.offset
    return Found(values={"cut": cut}, note=f"quantile {params.quantile:g}")


class ReferenceParams(Params):
    """A cut borrowed from another population: its median plus `distance` robust standard deviations, or its `quantile`.

    The larger of the two when both are given (the smaller when keeping what lies below). The result is multiplied by
    `factor` (for linear scatter) and moved by `offset` scaled units.
    """

    keep: Literal["above", "below"]
    population: str
    quantile: float | None = Field(default=None, ge=0, le=1)
    distance: float | None = None
    factor: float = 1.0
    offset: float = 0.0
    min_reference: int = Field(default=50, ge=1)


def _find_reference(sample: Sample, params: ReferenceParams) -> Found:
    marker = sample.markers[0]
    values = sample.references[params.population][marker].astype(np.float64)
    if values.size < params.min_reference:
        raise NotFound(
            f"reference {params.population} has {values.size} events, at least {params.min_reference} needed"
        )
    cuts = []
    if params.quantile is not None:
        cuts.append(float(np.quantile(values, params.quantile)))
    if params.distance is not None:
        middle = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - middle)))
        cuts.append(middle + params.distance * spread)
    if not cuts:
        raise NotFound("reference cut needs a quantile or a distance")
    cut = (max(cuts) if params.keep == "above" else min(cuts)) * params.factor + params.offset
    return Found(values={"cut": cut}, note=f"from {values.size} events of {params.population}")


METHODS = (
    GateMethod(
        name="valley",
        params=ValleyParams,
        find=_find_valley,
        build=cut_gate,
        borrows=lambda p: lenders(*p.search),
    ),
    GateMethod(name="tail", params=TailParams, find=_find_tail, build=cut_gate),
    GateMethod(name="quantile", params=QuantileParams, find=_find_quantile, build=cut_gate),
    GateMethod(
        name="reference",
        params=ReferenceParams,
        find=_find_reference,
        build=cut_gate,
        references=lambda p: (p.population,),
    ),
)
