"""Acquisition checks: each says PASS, WARN or FAIL with its number, as a finding (info, warning, violation).

Nothing here changes or drops an event. `time_quality` marks disturbed stretches in a mask; whether and where the mask
is used is the template's decision, and the share it covers is always stated. No check sees an MRD result.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from flowmrd.cytometry.transforms import Bounded, Linear, Transform
from flowmrd.errors import Level, QcFinding

Floats: TypeAlias = NDArray[np.float64]
Blocks: TypeAlias = Iterable[tuple[int, NDArray[np.floating[Any]]]]

_MAD_TO_SD = 1.4826  # as R's mad(): a normal sample's MAD times this estimates its standard deviation
_LEVELS = {"PASS": Level.INFO, "WARN": Level.WARNING, "FAIL": Level.VIOLATION}


# -------------------------------------------------------------------------------------------------------------- limits


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SpilloverLimits(_Section):
    """Ranges of a spillover matrix."""

    diagonal_tolerance: float
    off_diagonal_low: float
    off_diagonal_high: float
    condition_fail: float
    identity_colours: int


class EventLimits(_Section):
    """Least gated denominators, in events."""

    mrd_denominator_warn: int
    mrd_denominator_fail: int
    car_denominator_warn: int


class ShareLimits(_Section):
    """A share that warns and one that fails; which side is bad is the check's business."""

    warn: float
    fail: float


class TimeLimits(_Section):
    """What a clock may do before it is called unusable."""

    jitter_seconds: float
    resets_repaired: int
    shuffled_share: float


class RateLimits(_Section):
    """Flow rate, gaps and clogs."""

    bin_seconds: float
    smooth_bins: int
    outlier_z: float
    min_relative_change: float
    outlier_warn: float
    outlier_fail: float
    gap_seconds_fail: float
    clog_seconds: float
    clog_chance: float
    clogs_warn: int
    clogs_fail: int


class DriftLimits(_Section):
    """Bins, the MAD rule and the trend."""

    min_bin_events: int
    max_bins: int
    mad_threshold: float
    mad_floor_range: float
    removed_warn: float
    removed_fail: float
    quantiles: tuple[float, ...]
    sign_test_z: float
    trend_decades_fail: float
    trend_min_bins: int
    rescue_kept: float


class CarryOverLimits(_Section):
    """Target events that cluster at the start of an acquisition."""

    first_share: float
    ratio_warn: float
    chance: float


class AdequacyLimits(_Section):
    """What no result may rest on."""

    viable_events_least: int
    viable_share_least: float
    internal_events_least: int
    negatives_least: int
    age_hours_warn: float
    age_hours_late: float
    viable_share_late: float


class OverCompensationLimits(_Section):
    """How far below the negatives compensated events may lie."""

    warn: float
    fail: float
    bright_share: float
    bright_least: float
    floor_quantile: float
    far_below_rsd: float
    far_below_warn: float


class LeakLimits(_Section):
    """How much of one channel may be left, or lacking, in another on the internal negatives."""

    warn: float
    fail: float
    events_least: int
    tail: float
    brightest: float
    bright_least: float
    range_least: float
    move_least: float


class CleanUpLimits(_Section):
    """How much of a phenotype a clean-up gate may take."""

    events_least: int
    excess: float
    warn: float
    fail: float
    fail_share_of_all: float


class QualityLimits(_Section):
    """Every limit of the acquisition checks, with the version of the document."""

    version: str
    spillover: SpilloverLimits
    events: EventLimits
    singlets: ShareLimits
    viability: ShareLimits
    margin: ShareLimits
    abort: ShareLimits
    time: TimeLimits
    rate: RateLimits
    drift: DriftLimits
    carry_over: CarryOverLimits
    adequacy: AdequacyLimits
    over_compensation: OverCompensationLimits
    leak: LeakLimits
    clean_up: CleanUpLimits


def load_limits() -> QualityLimits:
    """Read the limits that ship with flowmrd (`quality.toml`, with their sources)."""
    with Path(__file__).with_name("quality.toml").open("rb") as stream:
        return QualityLimits.model_validate(tomllib.load(stream))


# --------------------------------------------------------------------------------------------------- counts and shares


def check_denominator(events: int, *, name: str, limits: EventLimits, tube: str = "mrd") -> QcFinding:
    """Judge the gated denominator of a tube: too few events cannot carry the sensitivity that is asked of it.

    Parameters
    ----------
    events : gated denominator, in events
    name : the denominator's population name
    limits : least numbers of events
    tube : `mrd`, or `car` where the denominator is the CD3+ events of a CAR-T tube (warns only)
    """
    if tube == "car":
        verdict = "WARN" if events < limits.car_denominator_warn else "PASS"
        wanted = limits.car_denominator_warn
    else:
        verdict = _low(events, warn=limits.mrd_denominator_warn, fail=limits.mrd_denominator_fail)
        wanted = limits.mrd_denominator_fail if verdict == "FAIL" else limits.mrd_denominator_warn
    text = f"{events:,} events in the denominator {name}"
    return _finding(
        verdict, "DENOMINATOR", text if verdict == "PASS" else f"{text}; expected at least {wanted:,}", name
    )


def check_share(part: int, whole: int, *, code: str, what: str, limits: ShareLimits, where: str = "") -> QcFinding:
    """Judge a share that should be high, such as singlets of all events or viable of nucleated ones.

    Parameters
    ----------
    part, whole : events
    code : constant name of the finding, such as `SINGLET_SHARE`
    what : the share in words, such as "singlets of all events"
    limits : below `warn` it warns, below `fail` it fails
    where : population
    """
    if whole <= 0:
        return _finding("FAIL", code, f"no events to judge {what} by", where)
    share = part / whole
    verdict = _low(share, warn=limits.warn, fail=limits.fail)
    wanted = limits.fail if verdict == "FAIL" else limits.warn
    text = f"{100 * share:.1f} % {what}"
    return _finding(
        verdict, code, text if verdict == "PASS" else f"{text}; expected at least {100 * wanted:.0f} %", where
    )


def check_abort(aborted_events: int | None, acquired_events: int, *, limits: ShareLimits) -> tuple[QcFinding, ...]:
    """Judge the electronic aborts ($ABRT / $TOT); empty where the file does not state them.

    Parameters
    ----------
    aborted_events : $ABRT, or `None` where absent or unreadable
    acquired_events : $TOT
    limits : shares that warn and fail
    """
    if aborted_events is None or aborted_events < 0 or acquired_events <= 0:
        return ()
    share = aborted_events / acquired_events
    verdict = _high(share, warn=limits.warn, fail=limits.fail)
    text = f"{100 * share:.1f} % of events were aborted by the electronics"
    wanted = limits.fail if verdict == "FAIL" else limits.warn
    if verdict != "PASS":
        text = f"{text}; expected at most {100 * wanted:.0f} %"
    return (_finding(verdict, "ABORT_RATE", text, "$ABRT"),)


def check_carry_over(
    *, first_target: int, first_events: int, rest_target: int, rest_events: int, limits: CarryOverLimits
) -> QcFinding:
    """Judge whether target events crowd at the start of an acquisition, as after a high-positive sample.

    Parameters
    ----------
    first_target, first_events : target and all denominator events among the first `limits.first_share` of the file
    rest_target, rest_events : the same in the rest
    limits : ratio of the two frequencies that warns, and how rare the excess must be by chance
    """
    from scipy.special import bdtrc

    total = first_target + rest_target
    if first_events <= 0 or rest_events <= 0 or total == 0:
        return _finding("PASS", "CARRY_OVER", "no target events at the start of the acquisition", "")
    # Given the total, the number that falls into the first part is binomial if target events come evenly.
    expected = first_events / (first_events + rest_events)
    chance = float(bdtrc(first_target - 1, total, expected)) if first_target else 1.0
    ratio = math.inf if rest_target == 0 else (first_target / first_events) / (rest_target / rest_events)
    text = f"{first_target} of {total} target events fall into the first {100 * expected:.1f} % of the acquisition"
    if ratio > limits.ratio_warn and chance < limits.chance:
        return _finding("WARN", "CARRY_OVER", f"{text}; a wash or another sample may have been carried over", "")
    return _finding("PASS", "CARRY_OVER", text, "")


def overall(findings: Iterable[QcFinding]) -> str:
    """Roll findings up: FAIL with any violation, WARN with any warning, else PASS."""
    levels = {finding.level for finding in findings}
    if Level.VIOLATION in levels:
        return "FAIL"
    return "WARN" if Level.WARNING in levels else "PASS"


def lower_time_failures(
    findings: Iterable[QcFinding], *, kept_share: float, denominator_events: int, limits: QualityLimits
) -> tuple[QcFinding, ...]:
    """Turn failures of time and drift into warnings where enough undisturbed events remain (7-qc 7.6).

    Parameters
    ----------
    findings : all findings of the acquisition
    kept_share : share of events outside disturbed stretches
    denominator_events : gated denominator counted without the disturbed stretches
    limits : least share and least denominator
    """
    enough = kept_share >= limits.drift.rescue_kept and denominator_events >= limits.events.mrd_denominator_warn
    return tuple(
        QcFinding(
            level=Level.WARNING,
            code=finding.code,
            message=f"{finding.message} Lowered to a warning: {100 * kept_share:.0f} % of events and "
            f"{denominator_events:,} in the denominator remain.",
            where=finding.where,
        )
        if enough
        and finding.level is Level.VIOLATION
        and finding.code in {"FLOW_RATE", "CLOGS", "SIGNAL_DRIFT", "SIGNAL_TREND"}
        else finding
        for finding in findings
    )


# ------------------------------------------------------------------------------------------------------- margin events


class _Detector(Protocol):
    """What `margin_counts` needs to know of a channel: the fields of `flowmrd.fcs.Channel`."""

    @property
    def pnn(self) -> str: ...
    @property
    def range(self) -> float: ...
    @property
    def gain(self) -> float: ...
    @property
    def log_decades(self) -> float: ...
    @property
    def log_offset(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMargin:
    """Events piled up at the ends of one channel's range.

    `ceiling` is the channel value from which an event counts as high; `declared` is false where values lie well beyond
    $PnR, so that the ceiling is the largest value itself. `floor` is the smallest value; a single event there is none.
    """

    channel: str
    low_events: int
    high_events: int
    events: int
    floor: float
    ceiling: float
    declared: bool


def margin_counts(blocks: Blocks, channels: Sequence[_Detector]) -> tuple[ChannelMargin, ...]:
    """Count events at or beyond `$PnR - 1` and at the floor, in one pass.

    The floor is the smallest value of the channel where more than one event has exactly this value: detectors clamp
    at a value that no keyword states.

    Parameters
    ----------
    blocks : (start, (k, m) linear raw values) of exactly `channels`, as `FcsFile.blocks` yields them
    channels : the k channels, in the blocks' order
    """
    size = len(channels)
    ceilings = np.array([_ceiling(channel) for channel in channels])
    lowest, highest = np.full(size, math.inf), np.full(size, -math.inf)
    at_lowest, at_highest, beyond = (np.zeros(size, np.int64) for _ in range(3))
    events = 0
    for _, values in blocks:
        if values.shape[1] == 0:
            continue
        events += values.shape[1]
        # Comparing against the extremes first keeps the usual block, with few margin events, at two passes.
        low, high = np.fmin.reduce(values, axis=1), np.fmax.reduce(values, axis=1)
        for i in range(size):
            if low[i] <= lowest[i]:
                at_lowest[i] = (at_lowest[i] if low[i] == lowest[i] else 0) + np.count_nonzero(values[i] == low[i])
                lowest[i] = low[i]
            if high[i] >= highest[i]:
                at_highest[i] = (at_highest[i] if high[i] == highest[i] else 0) + np.count_nonzero(values[i] == high[i])
                highest[i] = high[i]
            if high[i] >= ceilings[i]:
                beyond[i] += np.count_nonzero(values[i] >= ceilings[i])
    margins = []
    for i, channel in enumerate(channels):
        # $PnR does not bound float data by the standard. Values well beyond it say that it is no ceiling here.
        declared = not highest[i] > 1.05 * ceilings[i]
        high_events = int(beyond[i]) if declared else int(at_highest[i])
        margins.append(
            ChannelMargin(
                channel=channel.pnn,
                low_events=int(at_lowest[i]) if at_lowest[i] > 1 else 0,
                high_events=high_events if declared or high_events > 1 else 0,
                events=events,
                floor=float(lowest[i]) if events else math.nan,
                ceiling=float(ceilings[i]) if declared else float(highest[i]),
                declared=declared,
            )
        )
    return tuple(margins)


def check_margins(
    margins: Iterable[ChannelMargin], *, limits: ShareLimits, gating: Collection[str] | None = None
) -> tuple[QcFinding, ...]:
    """Judge margin events a channel; one PASS finding where no channel is conspicuous.

    Parameters
    ----------
    margins : of `margin_counts`
    limits : shares that warn and fail
    gating : names ($PnN) of the channels that gates use; only these can fail. `None` = all
    """
    findings = []
    worst = 0.0
    for margin in margins:
        if not margin.events:
            continue
        share = (margin.low_events + margin.high_events) / margin.events
        worst = max(worst, share)
        verdict = _high(share, warn=limits.warn, fail=limits.fail)
        if verdict == "PASS":
            continue
        if gating is not None and margin.channel not in gating:
            verdict = "WARN"
        text = (
            f"{100 * share:.1f} % of events lie at an end of {margin.channel}: {margin.low_events:,} at the floor, "
            f"{margin.high_events:,} at or beyond {margin.ceiling:.6g}; expected at most {100 * limits.warn:g} %"
        )
        findings.append(_finding(verdict, "MARGIN_EVENTS", text, margin.channel))
    if not findings:
        findings.append(
            _finding("PASS", "MARGIN_EVENTS", f"at most {100 * worst:.2f} % of events at an end of a channel", "")
        )
    return tuple(findings)


def _ceiling(channel: _Detector) -> float:
    """`$PnR - 1` in the linear units in which events are handed out; infinite where the file states no range."""
    if channel.range <= 1:
        return math.inf
    if channel.log_decades > 0:
        return float(10 ** (channel.log_decades * (channel.range - 1) / channel.range) * (channel.log_offset or 1.0))
    return (channel.range - 1) / (channel.gain or 1.0)


# ---------------------------------------------------------------------------------------------------------------- time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeQuality:
    """An acquisition over time, in bins of equal numbers of events.

    `seconds` (b,) middle of each bin: seconds since the start, or the event index where no clock can be trusted.
    `rate` (b,) events per second, NaN without a clock. `medians` (b, k) of each of `channels` in scaled units.
    `edges` (b + 1,) first event of each bin and the end. `flagged` (b,) bins whose median or quartile left the MAD
    band in some channel. `kept` (n,) per event: false in a flagged bin; all true where the order of events is not
    known to be that of acquisition, because then a bin is no stretch of time.
    `time_source` says in words what the time axis is.
    """

    seconds: Floats
    rate: Floats
    channels: tuple[str, ...]
    medians: Floats
    edges: NDArray[np.int64]
    flagged: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    time_source: str
    findings: tuple[QcFinding, ...]

    def __post_init__(self) -> None:
        for array in (self.seconds, self.rate, self.medians, self.edges, self.flagged, self.kept):
            array.flags.writeable = False

    @property
    def kept_share(self) -> float:
        """Share of events outside flagged bins; 1 for an empty file."""
        return float(np.count_nonzero(self.kept)) / self.kept.size if self.kept.size else 1.0


def time_quality(
    seconds: NDArray[np.floating[Any]] | None,
    blocks: Blocks,
    *,
    event_count: int,
    scales: Mapping[str, Transform],
    in_seconds: bool = True,
    gating: Collection[str] | None = None,
    limits: QualityLimits | None = None,
) -> TimeQuality:
    """Judge clock, flow rate and signal stability of an acquisition in one pass over its events.

    Parameters
    ----------
    seconds : time of each event in file order, or `None` where the file has none
    blocks : (start, (k, m) scaled values) in file order, the rows in the order of `scales`
    event_count : events in the file
    scales : name → display scale of the k channels; says what a decade is, and what the range
    in_seconds : false where `seconds` has no known unit ($TIMESTEP missing): the order is used, the rate is not
    gating : names of channels whose trend fails rather than warns; `None` = all
    limits : by default those of `quality.toml`

    References
    ----------
    Monaco G et al., flowAI, Bioinformatics 2016;32:2473 (rate per 0.1 s); Emmaneel A et al., PeacoQC, Cytometry A
    2022;101:325 (bins, MAD rule). Both re-derived from their descriptions; see domain reference 7-qc 7.1.
    """
    limits = limits or load_limits()
    names = tuple(scales)
    clock = _read_clock(seconds, event_count=event_count, in_seconds=in_seconds, limits=limits.time)
    findings = list(clock.findings)
    bins = min(limits.drift.max_bins, max(event_count // limits.drift.min_bin_events, 1)) if event_count else 0
    edges = np.linspace(0, event_count, bins + 1).astype(np.int64)
    levels, spans = _bin_quantiles(blocks, edges, len(names), limits=limits.drift)
    medians = levels[limits.drift.quantiles.index(0.5)]
    middle = (edges[:-1] + edges[1:]) // 2
    rate = np.full(edges.size - 1, math.nan)
    if clock.times is None:
        where = middle.astype(np.float64)
    else:
        where = clock.times[middle] - float(clock.times[0])
        if clock.in_seconds:
            starts = clock.times[np.minimum(edges, event_count - 1)].astype(np.float64)
            rate = np.diff(edges) / np.maximum(np.diff(starts), clock.resolution)
            findings.extend(_check_rate(clock, limits.rate))
    flagged, drift = _check_drift(
        levels, spans, medians, edges, scales, gating=gating, ordered=clock.times is not None, limits=limits.drift
    )
    kept = np.ones(event_count, np.bool_)
    if clock.times is not None:
        kept = np.repeat(~flagged, np.diff(edges)) if flagged.size else kept
    return TimeQuality(
        seconds=where.astype(np.float64),
        rate=rate,
        channels=names,
        medians=medians,
        edges=edges,
        flagged=flagged,
        kept=kept,
        time_source=clock.source,
        findings=(*findings, *drift),
    )


def mad_outliers(values: Floats, *, threshold: float, floor: float) -> tuple[NDArray[np.bool_], Floats]:
    """Which values leave the band `median ± threshold * 1.4826 * MAD`, and each value's distance in those units.

    Parameters
    ----------
    values : (b,) bin medians
    threshold : width of the band
    floor : stands in for the scaled MAD where that is 0

    Examples
    --------
    >>> bad, score = mad_outliers(np.array([10.0, 11.0, 9.0, 10.0, 30.0]), threshold=6.0, floor=0.01)
    >>> bad.tolist()
    [False, False, False, False, True]
    """
    distance = np.abs(values - np.median(values))
    scaled = _MAD_TO_SD * float(np.median(distance))
    score = distance / (scaled if scaled > 0 else floor)
    return score > threshold, score


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Clock:
    """Repaired times (non-decreasing), or `None` where the order of events says nothing about time."""

    times: NDArray[np.floating[Any]] | None
    in_seconds: bool
    resolution: float
    source: str
    findings: tuple[QcFinding, ...]


_STEP = 1 << 18  # events per pass over the times: temporaries stay small on files of any size


def _read_clock(
    seconds: NDArray[np.floating[Any]] | None, *, event_count: int, in_seconds: bool, limits: TimeLimits
) -> _Clock:
    def unusable(verdict: str, text: str) -> _Clock:
        finding = _finding(
            verdict, "TIME_ORDER", f"{text}; signal stability is shown by event order, nothing is masked", "Time"
        )
        return _Clock(times=None, in_seconds=False, resolution=0.0, source="event order", findings=(finding,))

    if seconds is None:
        return unusable("PASS", "no Time channel")
    if seconds.shape != (event_count,):
        raise ValueError(f"seconds: expected one time for each of {event_count} events; got shape {seconds.shape}")
    if event_count < 2:
        return unusable("PASS", "too few events to judge the clock")
    if not all(np.isfinite(seconds[start : start + _STEP]).all() for start in range(0, event_count, _STEP)):
        return unusable("FAIL", "times that are not numbers")
    # Without a unit, jitter is judged against the whole length instead of in seconds.
    length = float(np.max(seconds)) - float(np.min(seconds))
    if length <= 0:
        return unusable("WARN", "the clock stands still")
    jitter = limits.jitter_seconds if in_seconds else 1e-3 * length
    back, smallest = 0, math.inf
    resets: list[int] = []
    for start in range(0, event_count - 1, _STEP):
        step = np.diff(seconds[start : start + _STEP + 1].astype(np.float64))
        back += int(np.count_nonzero(step < 0))
        if len(resets) <= limits.resets_repaired:
            resets.extend((np.flatnonzero(step < -jitter) + start + 1).tolist())
        forward = step[step > 0]
        smallest = min(smallest, float(forward.min())) if forward.size else smallest
    if back > limits.shuffled_share * event_count:
        return unusable("PASS", "events are not in the order of acquisition (times are shuffled)")
    if len(resets) > limits.resets_repaired:
        return unusable("FAIL", f"the clock runs back {back:,} times")
    times: NDArray[np.floating[Any]] = seconds
    if back:
        times = seconds.astype(np.float64)
        for place in resets:
            times[place:] += times[place - 1] - times[place]
        np.maximum.accumulate(times, out=times)
    if resets:
        finding = _finding(
            "WARN", "TIME_ORDER", f"the clock was reset {len(resets)} times; the parts were joined", "Time"
        )
    else:
        finding = _finding(
            "PASS", "TIME_ORDER", f"times never decrease over {length:.6g} {'s' if in_seconds else 'units'}", "Time"
        )
    source = "Time in seconds" if in_seconds else "Time without a unit"
    return _Clock(
        times=times,
        in_seconds=in_seconds,
        resolution=smallest if math.isfinite(smallest) else 0.0,
        source=source,
        findings=(finding,),
    )


def _check_rate(clock: _Clock, limits: RateLimits) -> list[QcFinding]:
    assert clock.times is not None
    times = clock.times
    first, last = float(times[0]), float(times[-1])
    length, events = last - first, times.size
    # A clock coarser than the bin would leave empty bins that are no gaps: widen the bin to whole ticks. A long file is
    # binned more coarsely, so that the number of bins stays bounded.
    width = max(limits.bin_seconds, length / 1_000_000)
    if clock.resolution > 0:
        width = clock.resolution * math.ceil(width / clock.resolution - 1e-9)
    counts = np.zeros(int(length / width) + 1, np.int64)
    gaps: list[float] = []
    for start in range(0, events, _STEP):
        part = times[start : start + _STEP + 1].astype(np.float64)
        index = ((part[:_STEP] - first) / width + 1e-6).astype(np.int64)
        np.minimum(index, counts.size - 1, out=index)
        low = int(index[0])
        found = np.bincount(index - low)
        counts[low : low + found.size] += found
        step = np.diff(part) - clock.resolution  # two ticks in a row may lie next to each other
        gaps.extend(step[step >= limits.clog_seconds].tolist())
    counts = counts[:-1] if counts.size > 1 else counts  # the last bin is rarely a whole one
    per_second = float(np.median(counts[counts > 0])) / width if counts.any() else events / length
    # In a Poisson stream the longest of n waits exceeds ln(n / p) / rate with probability p.
    natural = math.log(max(events, 2) / limits.clog_chance) / max(min(per_second, events / length), 1e-9)
    clogs = [gap for gap in gaps if gap >= natural]
    findings = [_clog_finding(clogs, limits)]
    if counts.size < 2 * limits.smooth_bins:
        text = f"{events:,} events in {length:.2f} s: too short to judge the flow rate"
        return [*findings, _finding("PASS", "FLOW_RATE", text, "Time")]
    window = limits.smooth_bins
    sums = np.concatenate([[0], np.cumsum(counts)])
    smooth = (sums[window:] - sums[:-window]) / window
    centre = float(np.median(smooth))
    poisson = math.sqrt(max(centre, 1.0 / window) / window)
    outlying, _ = mad_outliers(smooth, threshold=limits.outlier_z, floor=poisson)
    distance = np.abs(smooth - centre)
    outlying &= (distance > limits.min_relative_change * centre) & (distance > limits.outlier_z * poisson)
    share = float(np.mean(outlying))
    verdict = _high(share, warn=limits.outlier_warn, fail=limits.outlier_fail)
    text = f"{centre / width:,.0f} events/s, unsteady in {100 * share:.1f} % of the time"
    long_gaps = [gap for gap in clogs if gap > limits.gap_seconds_fail]
    if long_gaps:
        verdict = "FAIL"
        text = f"{text}, and a gap of {max(long_gaps):.1f} s; expected none above {limits.gap_seconds_fail:g} s"
    elif verdict != "PASS":
        wanted = limits.outlier_fail if verdict == "FAIL" else limits.outlier_warn
        text = f"{text}; expected at most {100 * wanted:.0f} %"
    return [*findings, _finding(verdict, "FLOW_RATE", text, "Time")]


def _clog_finding(clogs: Sequence[float], limits: RateLimits) -> QcFinding:
    if not clogs:
        return _finding("PASS", "CLOGS", "the flow never stood still", "Time")
    verdict = "FAIL" if len(clogs) >= limits.clogs_fail else "WARN" if len(clogs) >= limits.clogs_warn else "PASS"
    text = f"the flow stood still {len(clogs)} times, for {max(clogs):.1f} s at most"
    return _finding(verdict, "CLOGS", text, "Time")


def _bin_quantiles(
    blocks: Blocks, edges: NDArray[np.int64], channels: int, *, limits: DriftLimits
) -> tuple[Floats, Floats]:
    """Return quantiles (q, b, k) of each bin and channel, and their spans (2, q, b, k).

    A span reaches from one order statistic to another, `z` standard errors of the rank below and above: a sign test
    would not tell the quantile from a value inside.
    """
    widths = np.diff(edges)
    bins, widest = widths.size, int(widths.max()) if widths.size else 0
    # Order statistics of each bin: below and above each quantile's rank, then the two ends of its span.
    shares = np.array(limits.quantiles)[:, None]
    rank = shares * (widths - 1)
    below = np.floor(rank).astype(np.int64)
    reach = np.ceil(limits.sign_test_z * np.sqrt(widths * shares * (1 - shares))).astype(np.int64)
    wanted = np.stack([below, np.ceil(rank).astype(np.int64), np.maximum(below - reach, 0), below + reach])
    np.minimum(wanted, widths - 1, out=wanted)
    found = np.empty((4, shares.size, bins, channels))
    # A quantile needs no more than the seven digits of a scaled value.
    buffer = np.empty((channels, widest), np.float32)
    current, filled = 0, 0
    for start, values in blocks:
        done, size = 0, values.shape[1]
        if current < bins and start != int(edges[current]) + filled:
            raise ValueError(f"blocks: expected events from {int(edges[current]) + filled}; got a block at {start}")
        while done < size and current < bins:
            width = int(widths[current])
            take = min(size - done, width - filled)
            buffer[:, filled : filled + take] = values[:, done : done + take]
            filled, done = filled + take, done + take
            if filled == width:
                # Sorting thousands of float32 by vector instructions is faster than partitioning them at many places.
                part = buffer[:, :width]
                part.sort(axis=1)
                found[:, :, current] = np.moveaxis(part[:, wanted[:, :, current]], 0, -1)
                current, filled = current + 1, 0
    if current < bins:
        raise ValueError(f"blocks: expected {int(edges[-1])} events; got {int(edges[current]) + filled}")
    # The log scale has -inf below its range; a quantile there is as low as can be drawn.
    np.nan_to_num(found, copy=False, nan=0.0, posinf=2.0, neginf=-1.0)
    return found[0] + (rank - below)[:, :, None] * (found[1] - found[0]), found[2:]


def _check_drift(
    quantiles: Floats,
    spans: Floats,
    medians: Floats,
    edges: NDArray[np.int64],
    scales: Mapping[str, Transform],
    *,
    gating: Collection[str] | None,
    ordered: bool,
    limits: DriftLimits,
) -> tuple[NDArray[np.bool_], list[QcFinding]]:
    bins = edges.size - 1
    flagged = np.zeros(max(bins, 0), np.bool_)
    if bins < 3 or not scales:
        text = f"{int(edges[-1]):,} events: too few to judge the signal over time"
        return flagged, [_finding("PASS", "SIGNAL_DRIFT", text, "")]
    disturbed: dict[str, int] = {}
    for column, name in enumerate(scales):
        bad = np.zeros(bins, np.bool_)
        for place in range(quantiles.shape[0]):
            values = quantiles[place, :, column]
            # A unit of the display scale is its whole range.
            outside, _ = mad_outliers(values, threshold=limits.mad_threshold, floor=limits.mad_floor_range)
            # Where half of the events are positive, the median jumps between two peaks by chance alone; the sign test
            # asks whether this bin's events lie on one side of the usual value more often than chance allows.
            usual = float(np.median(values))
            bad |= outside & ((spans[0, place, :, column] > usual) | (spans[1, place, :, column] < usual))
        if bad.any():
            disturbed[name] = int(np.count_nonzero(bad))
            flagged |= bad
    share = float(np.diff(edges)[flagged].sum() / edges[-1])
    verdict = _high(share, warn=limits.removed_warn, fail=limits.removed_fail)
    text = f"{100 * share:.1f} % of events lie in {int(flagged.sum())} of {bins} bins with a shifted signal"
    if disturbed:
        shown = sorted(disturbed, key=lambda name: -disturbed[name])[:4]
        text = (
            f"{text} ({', '.join(f'{name} {disturbed[name]}' for name in shown)}{', …' if len(disturbed) > 4 else ''})"
        )
    if not ordered:
        # Bins by event order prove nothing about time: a warning at most, and no event is masked.
        verdict = "WARN" if verdict == "FAIL" else verdict
    if verdict != "PASS":
        wanted = limits.removed_fail if verdict == "FAIL" else limits.removed_warn
        text = f"{text}; expected at most {100 * wanted:.0f} %"
    findings = [_finding(verdict, "SIGNAL_DRIFT", text, "")]
    if ordered:
        for column, (name, scale) in enumerate(scales.items()):
            if (trend := _trend_decades(medians[:, column], flagged, scale, limits)) is None:
                continue
            level = "FAIL" if gating is None or name in gating else "WARN"
            most = limits.trend_decades_fail
            text = f"{name} drifts by {trend:+.2f} decades from start to end; expected at most ±{most:g}"
            findings.append(_finding(level, "SIGNAL_TREND", text, name))
    return flagged, findings


def _trend_decades(medians: Floats, flagged: NDArray[np.bool_], scale: Transform, limits: DriftLimits) -> float | None:
    """Drift from start to end, in decades, where it exceeds the limit and the scatter of the bins; else `None`."""
    if isinstance(scale, Bounded):
        scale = scale.scale
    if isinstance(scale, Linear):
        values = scale.inverse(medians)
        usable = ~flagged & (values > 0)
        y = np.log10(np.where(usable, values, 1.0))
    else:
        usable = ~flagged
        y = medians * (scale.M + getattr(scale, "A", 0.0))
    count = int(np.count_nonzero(usable))
    if count < max(limits.trend_min_bins, 3):
        return None
    x = np.linspace(-0.5, 0.5, medians.size)[usable]
    y = y[usable]
    spread = float(np.sum((x - x.mean()) ** 2))
    slope = float(np.sum((x - x.mean()) * (y - y.mean()))) / spread
    residual = y - y.mean() - slope * (x - x.mean())
    error = math.sqrt(float(np.sum(residual**2)) / (count - 2) / spread)
    return slope if abs(slope) > limits.trend_decades_fail and abs(slope) > 3 * error else None


# ------------------------------------------------------------------------------------------------------------ verdicts


def _high(value: float, *, warn: float, fail: float) -> str:
    return "FAIL" if value > fail else "WARN" if value > warn else "PASS"


def _low(value: float, *, warn: float, fail: float) -> str:
    return "FAIL" if value < fail else "WARN" if value < warn else "PASS"


def _finding(verdict: str, code: str, message: str, where: str) -> QcFinding:
    return QcFinding(level=_LEVELS[verdict], code=code, message=f"{message[0].upper()}{message[1:]}.", where=where)
