"""Clean-up gates on pulse shape and light scatter: the singlet band and the debris line."""

from __future__ import annotations

import sys
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flowmrd.gating.gates import Gate, Polygon
from flowmrd.gating.methods import Found, GateMethod, NotFound, Params, Sample
from flowmrd.gating.methods.geometric import Values

Floats = NDArray[np.float64]

# Beyond the scale on every side, so that a band or line has no end inside the data.
FAR_LOW, FAR_HIGH = -0.5, 2.0
_CHUNK = 65536


class SingletBandParams(Params):
    """A band around the course of single events in two pulse measures.

    The course is the running median of the second channel over the first; its spread the running 1.4826 × MAD.
    Coincident events leave the course on one side (a longer pulse for its area), so the band is `lower` and `upper`
    spreads wide. At the large end coincident events outnumber single ones: from the first bin that leaves the course of
    the bulk by more than `leave` of its spreads, the course goes on as it was heading. Source of the median + k × MAD
    form: PeacoQC's doublet rule (domain 7.3).
    """

    lower: float = Field(default=5.0, gt=0)
    upper: float = Field(default=5.0, gt=0)
    min_spread: float = Field(default=0.004, gt=0)
    bin_events: int = Field(default=400, ge=50)
    max_bins: int = Field(default=24, ge=3)
    max_removed: float = Field(default=0.4, gt=0, lt=1)
    leave: float = Field(default=2.0, gt=0)


def _course_of_singles(centre: Floats, middle: Floats, spread: Floats, leave: float) -> tuple[Floats, Floats, Floats]:
    """Return the bins that follow the course of single events, without the spread that coincident ones add."""
    spread = spread.copy()
    for last in range(max(centre.size // 2, 3), centre.size):
        # Slope and level of the eight bins before, by medians, so that one odd bin does not matter.
        before = slice(max(last - 8, 0), last)
        x, y = centre[before], middle[before]
        steps = np.subtract.outer(x, x)
        slope = float(np.median(np.subtract.outer(y, y)[steps > 0] / steps[steps > 0]))
        level = float(np.median(y - slope * x))
        # The noise of a pulse is at most proportional to the pulse.
        usual = float(np.median(spread[before] / np.maximum(x, 1e-6))) * float(centre[last])
        usual = max(usual, float(np.median(spread[before])))
        if abs(middle[last] - (level + slope * centre[last])) > leave * usual:
            return centre[:last], middle[:last], spread[:last]
        spread[last] = min(spread[last], 1.5 * usual)
    return centre, middle, spread


def _by_first(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return pairs in ascending order of x.

    Each pair is sorted as one integer, ten times as fast as finding the order of x and gathering y by it: the bits of a
    float ascend with it, once those of negative ones are turned round.
    """
    pair = np.empty((x.size, 2), np.uint32)
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    bits = x.view(np.uint32)
    np.bitwise_xor(bits, np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(1 << 31)), out=pair[:, high])
    pair[:, low] = y.view(np.uint32)
    pair.view(np.uint64).reshape(-1).sort()
    bits = pair[:, high]
    bits = bits ^ np.where(bits >> 31, np.uint32(1 << 31), np.uint32(0xFFFFFFFF))
    return bits.view(np.float32), pair[:, low].copy().view(np.float32)


def _quantiles(ascending: NDArray[np.float32], shares: Floats) -> Floats:
    """Return quantiles of sorted values, between neighbours by the rule of `numpy.quantile`."""
    place = shares * (ascending.size - 1)
    before = np.floor(place).astype(np.intp)
    a, b = (ascending[np.minimum(at, ascending.size - 1)].astype(np.float64) for at in (before, before + 1))
    part = place - before
    return np.where(part < 0.5, a + (b - a) * part, b - (b - a) * (1.0 - part))


def _find_band(sample: Sample, params: SingletBandParams) -> Found:
    first, second = (sample.events[marker] for marker in sample.markers)
    finite = np.isfinite(first) & np.isfinite(second)
    lost = int(first.size - np.count_nonzero(finite))
    x, y = _by_first(first[finite], second[finite]) if lost else _by_first(first, second)
    if not x.size:
        raise NotFound("too few events for a singlet band")
    bins = int(np.clip(x.size // params.bin_events, 1, params.max_bins))
    edges = _quantiles(x, np.linspace(0.0, 1.0, bins + 1))
    centres, middles, spreads = [], [], []
    for low, high in pairwise(edges.tolist()):
        inside = slice(np.searchsorted(x, low, side="left"), np.searchsorted(x, high, side="right"))
        values = y[inside].astype(np.float64)
        if values.size < 20:
            continue
        centres.append(float(np.median(x[inside].astype(np.float64))))
        middles.append(float(np.median(values)))
        spreads.append(max(1.4826 * float(np.median(np.abs(values - middles[-1]))), params.min_spread))
    if not centres:
        raise NotFound("too few events for a singlet band")
    centre, middle, spread = np.array(centres), np.array(middles), np.array(spreads)
    keep = np.r_[True, np.diff(centre) > 1e-6]
    centre, middle, spread = centre[keep], middle[keep], spread[keep]
    centre, middle, spread = _course_of_singles(centre, middle, spread, params.leave)
    # Past the outermost bins the course goes on with the slope it has there.
    if centre.size > 1:
        slopes = (
            (middle[1] - middle[0]) / (centre[1] - centre[0]),
            (middle[-1] - middle[-2]) / (centre[-1] - centre[-2]),
        )
    else:
        slopes = (0.0, 0.0)
    centre = np.r_[FAR_LOW, centre, FAR_HIGH]
    ends = (middle[0] + slopes[0] * (FAR_LOW - centre[1]), middle[-1] + slopes[1] * (FAR_HIGH - centre[-2]))
    middle = np.r_[ends[0], middle, ends[1]]
    spread = np.r_[spread[0], spread, spread[-1]]
    outside = lost  # a pulse that is not a number is no single event's
    for start in range(0, x.size, _CHUNK):
        here, there = x[start : start + _CHUNK], y[start : start + _CHUNK]
        below = there < np.interp(here, centre, middle - params.lower * spread)
        above = there > np.interp(here, centre, middle + params.upper * spread)
        outside += int(np.count_nonzero(below | above))
    removed = outside / first.size
    if removed > params.max_removed:
        raise NotFound(
            f"a singlet band would remove {removed:.0%} of the events, more than the {params.max_removed:.0%} allowed"
        )
    course = tuple((float(c), float(m), float(s)) for c, m, s in zip(centre, middle, spread, strict=True))
    return Found(
        values={"removed": removed, "spread": float(np.median(spread[1:-1]))},
        extra=course,
        note=f"band of {centre.size - 2} segments, {removed:.1%} outside",
    )


def _build_band(markers: tuple[str, ...], params: SingletBandParams, found: Found, _values: Values) -> Gate:
    lower = [(x, middle - params.lower * spread) for x, middle, spread in found.extra]
    upper = [(x, middle + params.upper * spread) for x, middle, spread in found.extra]
    vertices = tuple((float(x), float(y)) for x, y in (*lower, *reversed(upper)))
    return Polygon(markers=(markers[0], markers[1]), vertices=vertices)


class DebrisLineParams(Params):
    """Events smaller than `ratio` × the median forward scatter of a reference population are debris.

    The line leans to the right with side scatter by `slope` (apoptotic cells: small and granular). A file whose events
    all lie right of the line loses nothing.
    """

    population: str
    ratio: float = Field(gt=0, lt=1)
    slope: float = Field(default=0.0, ge=0)
    min_reference: int = Field(default=50, ge=1)
    keep: Literal["right"] = "right"


def _find_debris(sample: Sample, params: DebrisLineParams) -> Found:
    forward = sample.markers[0]
    reference = sample.references[params.population][forward].astype(np.float64)
    if reference.size < params.min_reference:
        raise NotFound(
            f"reference {params.population} has {reference.size} events, at least {params.min_reference} needed"
        )
    size = float(np.median(reference))
    return Found(
        values={"cut": params.ratio * size, "reference_size": size},
        note=f"{params.ratio:g} × median {forward} of {params.population}",
    )


def _build_debris(markers: tuple[str, ...], params: DebrisLineParams, found: Found, _values: Values) -> Gate:
    cut = found.values["cut"]
    top = FAR_HIGH
    return Polygon(
        markers=(markers[0], markers[1]),
        vertices=(
            (cut, FAR_LOW),
            (cut, 0.0),
            (cut + params.slope * top, top),
            (FAR_HIGH + params.slope * top, top),
            (FAR_HIGH + params.slope * top, FAR_LOW),
        ),
    )


def _debris_references(params: Any) -> tuple[str, ...]:
    return (params.population,)


METHODS = (
    GateMethod(name="singlet_band", params=SingletBandParams, find=_find_band, build=_build_band),
    GateMethod(
        name="debris_line",
        params=DebrisLineParams,
        find=_find_debris,
        build=_build_debris,
        references=_debris_references,
    ),
)
