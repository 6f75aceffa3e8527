"""Stretches of time in which the signals are those of the rest of the acquisition."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flowmrd.cytometry.quality import load_limits, mad_outliers
from flowmrd.gating.gates import Gate, Intervals
from flowmrd.gating.methods import Found, GateMethod, NotFound, Params, Sample
from flowmrd.gating.methods.geometric import Values


class TimeStableParams(Params):
    """Keep the stretches of time whose median signals stay in the band `median ± mad_threshold × 1.4826 × MAD`.

    The first channel is the clock, the others are judged. Bins hold whole ticks of the clock and about equal numbers of
    events, so neither the order of events in the file nor ties can matter: a clock that is drawn at random finds
    nothing to drop. The limits of `cytometry/quality.toml` (domain 7.1, PeacoQC's MAD rule) apply unless given here; a
    trend over the whole run is a finding of the acquisition checks, not a reason to drop events.
    """

    mad_threshold: float | None = Field(default=None, gt=0)
    min_bin_events: int | None = Field(default=None, ge=10)
    max_bins: int | None = Field(default=None, ge=3)
    # Under this shift (scaled units) a bin stays, however steady the rest: such a shift moves no gate.
    min_shift: float = Field(default=0.01, ge=0)
    max_removed: float = Field(default=0.5, gt=0, le=1)


def _tick_edges(clock: NDArray[np.float32], bins: int) -> NDArray[np.intp]:
    """Return the first events of about equal bins of a sorted clock that end where the clock ticks, and the end."""
    ticks = np.concatenate([[0], np.flatnonzero(np.diff(clock) > 0) + 1, [clock.size]])
    wanted = np.linspace(0, clock.size, bins + 1)
    edges: NDArray[np.intp] = np.unique(ticks[np.searchsorted(ticks, wanted)])
    return edges


def _one_sided(values: NDArray[np.float32], edges: NDArray[np.intp], usual: float, z: float) -> NDArray[np.bool_]:
    """Say which bins hold more events on one side of the usual value than chance allows (sign test, `z` deviations).

    Where half of the events are positive, a bin's median jumps between two peaks by chance alone.
    """
    above = values > usual
    share = float(above.mean())
    sizes = np.diff(edges)
    counted = np.add.reduceat(above.astype(np.int64), edges[:-1])
    allowed = z * np.sqrt(sizes * share * (1.0 - share))
    shifted: NDArray[np.bool_] = np.abs(counted - sizes * share) > allowed
    return shifted


def _find_stable(sample: Sample, params: TimeStableParams) -> Found:
    limits = load_limits().drift
    threshold = params.mad_threshold or limits.mad_threshold
    clock, *names = sample.markers
    times = sample.events[clock]
    if not np.isfinite(times).all():
        raise NotFound("the clock holds values that are not numbers")
    bins = min(params.max_bins or limits.max_bins, times.size // (params.min_bin_events or limits.min_bin_events))
    order = None if bool(np.all(times[1:] >= times[:-1])) else np.argsort(times, kind="stable")
    ordered = times if order is None else times[order]
    edges = _tick_edges(ordered, bins) if bins >= 3 else np.array([0, times.size])
    if edges.size < 4:
        raise NotFound(f"{times.size} events and {max(edges.size - 1, 0)} stretches of {clock}: too few to judge")
    flagged = np.zeros(edges.size - 1, np.bool_)
    shifted: dict[str, int] = {}
    for name in names:
        values = sample.events[name] if order is None else sample.events[name][order]
        medians = np.array([np.median(values[a:b]) for a, b in pairwise(edges.tolist())], np.float64)
        bad, _ = mad_outliers(medians, threshold=threshold, floor=limits.mad_floor_range)
        bad &= np.abs(medians - np.median(medians)) > params.min_shift
        bad &= _one_sided(values, edges, float(np.median(medians)), limits.sign_test_z)
        if bad.any():
            shifted[name] = int(bad.sum())
            flagged |= bad
    removed = float(np.diff(edges)[flagged].sum() / times.size)
    if removed > params.max_removed:
        raise NotFound(
            f"{removed:.0%} of the events lie in shifted stretches, more than the {params.max_removed:.0%} allowed"
        )
    starts = ordered[edges[:-1]].astype(np.float64)
    note = f"{int(flagged.sum())} of {flagged.size} stretches dropped, {removed:.1%} of the events"
    if shifted:
        note += f" ({', '.join(f'{name} {count}' for name, count in shifted.items())})"
    return Found(values={"removed": removed}, extra=_ranges(starts, flagged), note=note)


def _ranges(starts: NDArray[np.float64], flagged: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Join neighbouring kept bins; the first and the last are open, for the file begins and ends there."""
    borders = [-np.inf, *starts[1:].tolist(), np.inf]
    ranges: list[tuple[float, float]] = []
    for low, high, bad in zip(borders[:-1], borders[1:], flagged.tolist(), strict=True):
        if bad:
            continue
        if ranges and ranges[-1][1] == low:
            ranges[-1] = (ranges[-1][0], high)
        else:
            ranges.append((low, high))
    return tuple((float(low), float(high)) for low, high in ranges)


def _build_stable(markers: tuple[str, ...], _params: TimeStableParams, found: Found, _values: Values) -> Gate:
    return Intervals(marker=markers[0], ranges=found.extra)


METHODS = (
    GateMethod(
        name="time_stable",
        params=TimeStableParams,
        find=_find_stable,
        build=_build_stable,
        selects=lambda channels: channels[:1],
    ),
)
