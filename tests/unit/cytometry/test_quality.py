"""Acquisition checks: the worked example, the limits' boundaries, planted disturbances, and real files."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.cytometry import quality
from flowmrd.cytometry.quality import Blocks, ChannelMargin, TimeQuality, load_limits, mad_outliers, time_quality
from flowmrd.cytometry.transforms import Linear, Log, Logicle, Transform
from flowmrd.errors import Level, QcFinding

LIMITS = load_limits()
LOGICLE = Logicle(T=262144.0, W=0.5, M=4.5)
SCALES: Mapping[str, Transform] = {"A": LOGICLE, "B": LOGICLE, "C": LOGICLE}
EVENTS = 60_000
Floats = NDArray[np.float64]


def in_blocks(values: Floats, size: int = 7777) -> Iterator[tuple[int, Floats]]:
    for start in range(0, values.shape[1], size):
        yield start, values[:, start : start + size]


@dataclass(frozen=True)
class Recording:
    seconds: Floats
    values: Floats

    def judge(self, **options: Any) -> TimeQuality:
        scales = options.pop("scales", SCALES)
        count = self.values.shape[1]
        return time_quality(self.seconds, in_blocks(self.values), event_count=count, scales=scales, **options)


def steady(seed: int = 1, events: int = EVENTS, length: float = 120.0) -> Recording:
    """Return a well-behaved acquisition; channel A is half positive, as many are."""
    rng = np.random.default_rng(seed)
    positive = rng.random(events) < 0.5
    a = np.where(positive, rng.normal(0.7, 0.05, events), rng.normal(0.2, 0.05, events))
    values = np.stack([a, rng.normal(0.4, 0.1, events), rng.normal(0.3, 0.02, events)])
    return Recording(np.sort(rng.uniform(0, length, events)), values)


def named(findings: tuple[QcFinding, ...] | list[QcFinding], code: str) -> QcFinding:
    (finding,) = [finding for finding in findings if finding.code == code]
    return finding


def levels(result: TimeQuality) -> dict[str, Level]:
    return {finding.code: finding.level for finding in result.findings}


# -------------------------------------------------------------------------------------------------------- the MAD rule


def test_the_worked_example_of_the_mad_rule_reproduces(shared: Path) -> None:
    items = json.loads((shared / "domain" / "worked_examples.json").read_text(encoding="utf-8"))
    item = next(item for item in items if item["id"] == "W26")
    values = np.array(item["inputs"]["bin_medians"], np.float64)
    bad, score = mad_outliers(values, threshold=item["inputs"]["mad_threshold"], floor=1.0)
    expected = item["expected"]
    assert float(np.median(values)) == expected["median"]
    assert score == pytest.approx(expected["score"], rel=1e-9)
    assert np.flatnonzero(bad).tolist() == expected["bad_bins"]
    assert 100 * bad.mean() == pytest.approx(expected["percent_events_removed_equal_bins"], rel=1e-9)
    assert LIMITS.drift.mad_threshold == item["inputs"]["mad_threshold"]


def test_without_spread_a_share_of_the_range_stands_in() -> None:
    values = np.array([0.5, 0.5, 0.5, 0.5, 0.559, 0.561])
    assert mad_outliers(values, threshold=6.0, floor=0.01)[0].tolist() == [False] * 5 + [True]


# ------------------------------------------------------------------------------------------------- signal over time


def test_a_steady_acquisition_passes_every_check_and_keeps_every_event() -> None:
    result = steady().judge()
    assert set(levels(result).values()) == {Level.INFO}
    assert set(levels(result)) == {"TIME_ORDER", "CLOGS", "FLOW_RATE", "SIGNAL_DRIFT"}
    assert result.kept.all()
    assert result.kept_share == 1.0
    assert result.medians.shape == (400, 3)
    assert result.rate == pytest.approx(500.0, rel=0.4)
    assert result.seconds[0] < result.seconds[-1] <= 120.0
    assert result.time_source == "Time in seconds"


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_planted_disturbance_is_masked_and_nothing_else(channel: int) -> None:
    recording = steady()
    recording.values[channel, 20_000:24_500] += 0.15
    result = recording.judge()
    disturbed = np.zeros(EVENTS, np.bool_)
    disturbed[20_000:24_500] = True
    # The bins at its two ends are mixed.
    assert np.count_nonzero(~result.kept & disturbed) >= 4500 - 300
    assert np.count_nonzero(~result.kept & ~disturbed) <= 300
    finding = named(result.findings, "SIGNAL_DRIFT")
    assert finding.level is Level.WARNING
    assert re.fullmatch(
        r"7\.\d % of events lie in \d\d of 400 bins with a shifted signal \([ABC] \d\d\); expected at most 5 %\.",
        finding.message,
    )


def test_more_than_a_fifth_disturbed_fails() -> None:
    recording = steady()
    recording.values[1, :14_000] -= 0.3
    finding = named(recording.judge().findings, "SIGNAL_DRIFT")
    assert finding.level is Level.VIOLATION
    assert finding.message.endswith("expected at most 20 %.")


def test_a_channel_of_two_peaks_does_not_flag_bins_by_chance() -> None:
    # The median of a half-positive channel jumps between the peaks from bin to bin.
    for seed in range(5):
        result = steady(seed).judge()
        assert not result.flagged.any()


def test_the_mask_does_not_single_out_rare_cells() -> None:
    recording = steady()
    rare = np.random.default_rng(5).choice(EVENTS, 60, replace=False)
    recording.values[:, rare] = 0.95
    recording.values[1, 30_000:33_000] += 0.3
    result = recording.judge()
    assert np.count_nonzero(result.kept[rare]) >= 50  # 57 expected: the same 5 % as of all events


def test_a_trend_is_told_in_decades_and_fails_in_gating_channels_only() -> None:
    recording = steady()
    recording.values[2] += np.linspace(0, 0.25 / 4.5, EVENTS)
    finding = named(recording.judge().findings, "SIGNAL_TREND")
    assert finding.level is Level.VIOLATION
    assert finding.message == "C drifts by +0.25 decades from start to end; expected at most ±0.2."
    assert named(recording.judge(gating={"A"}).findings, "SIGNAL_TREND").level is Level.WARNING
    recording.values[2] -= np.linspace(0, 0.10 / 4.5, EVENTS)
    assert "SIGNAL_TREND" not in levels(recording.judge())


def test_a_trend_on_a_linear_scale_is_the_ratio_of_its_ends() -> None:
    rng = np.random.default_rng(3)
    scale = Linear(T=262144.0)
    channel = rng.normal(0.3, 0.02, EVENTS) * 10 ** np.linspace(-0.15, 0.15, EVENTS)
    recording = Recording(steady().seconds, channel[None, :])
    finding = named(recording.judge(scales={"FSC": scale}).findings, "SIGNAL_TREND")
    assert finding.message.startswith("FSC drifts by +0.30 decades")


def test_medians_of_the_log_scale_below_its_range_are_finite() -> None:
    recording = Recording(steady().seconds, np.full((1, EVENTS), -np.inf))
    result = recording.judge(scales={"L": Log(T=1e4, M=4.0)})
    assert np.isfinite(result.medians).all()
    assert result.kept.all()


def test_bins_hold_at_least_150_events_and_are_at_most_500() -> None:
    small = steady(events=1000).judge()
    assert small.medians.shape[0] == 6
    assert np.diff(small.edges).min() >= 150
    assert steady(events=200_000).judge().medians.shape[0] == 500


def test_medians_do_not_depend_on_the_size_of_the_blocks() -> None:
    recording = steady(events=10_001)
    expected = recording.judge().medians
    for size in (1, 97, 10_001):
        count = recording.values.shape[1]
        found = time_quality(
            recording.seconds, in_blocks(recording.values, size), event_count=count, scales=SCALES
        ).medians
        assert np.array_equal(found, expected)
    bins = np.split(recording.values, np.linspace(0, 10_001, 67).astype(int)[1:-1], axis=1)
    assert expected == pytest.approx(np.array([np.median(part, axis=1) for part in bins]), abs=1e-6)


@pytest.mark.parametrize("events", [0, 1, 2, 149, 449])
def test_tiny_files_pass_with_what_can_be_said(events: int) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.5, 0.1, (3, events))
    for seconds in (None, np.sort(rng.uniform(0, 10, events))):
        result = time_quality(seconds, in_blocks(values), event_count=events, scales=SCALES)
        assert {finding.level for finding in result.findings} == {Level.INFO}
        assert result.kept.shape == (events,)
        assert (
            named(result.findings, "SIGNAL_DRIFT").message
            == f"{events:,} events: too few to judge the signal over time."
        )


def test_blocks_that_skip_or_lack_events_are_an_error() -> None:
    values = np.zeros((3, 1000))
    with pytest.raises(ValueError, match="blocks: expected 1000 events; got 900"):
        time_quality(None, [(0, values[:, :900])], event_count=1000, scales=SCALES)
    with pytest.raises(ValueError, match="blocks: expected events from 100; got a block at 200"):
        time_quality(None, [(0, values[:, :100]), (200, values[:, 200:])], event_count=1000, scales=SCALES)
    with pytest.raises(ValueError, match=re.escape("expected one time for each of 1000 events; got shape (5,)")):
        time_quality(np.zeros(5), [(0, values)], event_count=1000, scales=SCALES)


# ------------------------------------------------------------------------------------------------------------- clock


def test_files_without_a_clock_pass_and_nothing_is_masked() -> None:
    recording = steady()
    recording.values[1, :6000] += 0.3  # sorted by population, as drawn files may be
    result = time_quality(None, in_blocks(recording.values), event_count=EVENTS, scales=SCALES)
    assert result.kept.all()
    assert result.flagged.any()
    assert np.isnan(result.rate).all()
    assert result.time_source == "event order"
    assert named(result.findings, "TIME_ORDER").level is Level.INFO
    assert named(result.findings, "SIGNAL_DRIFT").level is Level.WARNING
    recording.values[1, :20_000] += 0.3
    again = time_quality(None, in_blocks(recording.values), event_count=EVENTS, scales=SCALES)
    assert named(again.findings, "SIGNAL_DRIFT").level is not Level.VIOLATION


def test_events_in_random_order_pass_with_a_statement() -> None:
    recording = steady()
    shuffled = Recording(np.random.default_rng(2).permutation(recording.seconds), recording.values)
    result = shuffled.judge()
    assert set(levels(result).values()) == {Level.INFO}
    assert named(result.findings, "TIME_ORDER").message == (
        "Events are not in the order of acquisition (times are shuffled); "
        "signal stability is shown by event order, nothing is masked."
    )


def test_a_clock_that_wraps_is_joined_with_a_warning() -> None:
    recording = steady()
    wrapped = Recording(recording.seconds % 50.0, recording.values)
    result = wrapped.judge()
    finding = named(result.findings, "TIME_ORDER")
    assert finding.level is Level.WARNING
    assert finding.message == "The clock was reset 2 times; the parts were joined."
    assert result.seconds == pytest.approx(recording.judge().seconds, abs=0.1)
    assert named(result.findings, "CLOGS").level is Level.INFO


def test_small_steps_back_are_no_reset() -> None:
    recording = steady()
    jittered = Recording(recording.seconds + np.random.default_rng(1).choice([0.0, 0.003], EVENTS), recording.values)
    assert named(jittered.judge().findings, "TIME_ORDER").level is Level.INFO


@pytest.mark.parametrize(
    ("seconds", "level", "message"),
    [
        (np.full(1000, 3.0), Level.WARNING, "The clock stands still"),
        (np.where(np.arange(1000) == 7, np.nan, np.arange(1000.0)), Level.VIOLATION, "Times that are not numbers"),
        (np.tile(np.arange(20.0), 50), Level.VIOLATION, "The clock runs back 49 times"),
    ],
)
def test_a_clock_that_cannot_be_used_says_so(seconds: Floats, level: Level, message: str) -> None:
    result = time_quality(seconds, in_blocks(np.full((3, 1000), 0.5)), event_count=1000, scales=SCALES)
    finding = named(result.findings, "TIME_ORDER")
    assert finding.level is level
    assert finding.message.startswith(message)
    assert result.time_source == "event order"


def test_a_clock_without_a_unit_orders_events_and_gives_no_rate() -> None:
    recording = steady()
    recording.values[1, 20_000:24_500] += 0.3
    result = Recording(recording.seconds * 100, recording.values).judge(in_seconds=False)
    assert set(levels(result)) == {"TIME_ORDER", "SIGNAL_DRIFT"}
    assert np.isnan(result.rate).all()
    assert not result.kept.all()
    assert result.time_source == "Time without a unit"


# --------------------------------------------------------------------------------------------------------- flow rate


def with_gaps(*gaps: tuple[float, float]) -> TimeQuality:
    recording = steady()
    seconds = recording.seconds.copy()
    for at, length in gaps:
        seconds[recording.seconds > at] += length
    return Recording(seconds, recording.values).judge()


@pytest.mark.parametrize(
    ("gaps", "clogs", "rate"),
    [
        (((40.0, 0.9),), Level.INFO, Level.INFO),
        (((40.0, 1.5),), Level.WARNING, Level.INFO),
        (((40.0, 1.5), (80.0, 1.2)), Level.WARNING, None),
        (((20.0, 1.5), (40.0, 1.5), (80.0, 1.5)), Level.VIOLATION, None),
        (((40.0, 5.5),), Level.WARNING, Level.VIOLATION),
    ],
)
def test_clogs_and_gaps(gaps: tuple[tuple[float, float], ...], clogs: Level, rate: Level | None) -> None:
    found = levels(with_gaps(*gaps))
    assert found["CLOGS"] is clogs
    if rate is not None:
        assert found["FLOW_RATE"] is rate


def test_a_long_gap_is_told_in_seconds() -> None:
    message = named(with_gaps((40.0, 6.0)).findings, "FLOW_RATE").message
    assert re.search(r"and a gap of 6\.0 s; expected none above 5 s\.$", message)


def test_pauses_of_a_slow_tube_are_no_clogs() -> None:
    rng = np.random.default_rng(4)
    events = 900
    slow = Recording(np.sort(rng.uniform(0, 900.0, events)), rng.normal(0.5, 0.1, (3, events)))
    assert np.diff(slow.seconds).max() > 5.0
    assert levels(slow.judge())["CLOGS"] is Level.INFO
    assert levels(slow.judge())["FLOW_RATE"] is Level.INFO


def test_whole_seconds_on_the_clock_are_no_clogs() -> None:
    recording = steady()
    assert set(levels(Recording(np.floor(recording.seconds), recording.values).judge()).values()) == {Level.INFO}


@pytest.mark.parametrize(("share", "level"), [(0.01, Level.INFO), (0.05, Level.WARNING), (0.2, Level.VIOLATION)])
def test_an_unsteady_flow_is_judged_by_its_share_of_the_time(share: float, level: Level) -> None:
    rng = np.random.default_rng(6)
    length = 120.0
    burst = np.sort(rng.uniform(0, share * length, int(3 * 500 * share * length)))
    rest = np.sort(rng.uniform(share * length, length, int(500 * (1 - share) * length)))
    seconds = np.concatenate([burst, rest])
    recording = Recording(seconds, rng.normal(0.5, 0.05, (3, seconds.size)))
    assert levels(recording.judge())["FLOW_RATE"] is level


# ------------------------------------------------------------------------------------------------------------ margins


@dataclass(frozen=True)
class Detector:
    pnn: str
    range: float = 1024.0
    gain: float = 1.0
    log_decades: float = 0.0
    log_offset: float = 0.0


def margin(values: list[float], detector: Detector, block: int = 3) -> ChannelMargin:
    blocks: Blocks = list(in_blocks(np.array([values]), block))
    (found,) = quality.margin_counts(blocks, [detector])
    return found


def test_margin_events_are_counted_at_both_ends() -> None:
    found = margin([0, 0, 5, 1022.9, 1023, 1024, 7, 0], Detector("FL1"))
    assert (found.low_events, found.high_events, found.events) == (3, 2, 8)
    assert (found.floor, found.ceiling, found.declared) == (0.0, 1023.0, True)


def test_a_single_smallest_event_is_no_floor_and_a_lower_one_moves_it() -> None:
    assert margin([3, 2, 1, 5], Detector("FL1")).low_events == 0
    assert margin([-1, -1, -1, -2, -2], Detector("FL1"), block=2).low_events == 2


def test_the_ceiling_follows_gain_and_log_amplification() -> None:
    assert margin([127.9, 128], Detector("FL1", gain=8.0)).ceiling == pytest.approx(1023 / 8)
    log = margin([1.0, 9910.4, 9910.5], Detector("FL1", log_decades=4.0, log_offset=1.0))
    assert log.ceiling == pytest.approx(10 ** (4 * 1023 / 1024))
    assert log.high_events == 1


def test_a_range_that_bounds_nothing_is_no_ceiling() -> None:
    found = margin([5, 3000, 4000, 4000], Detector("FL1"))
    assert (found.declared, found.ceiling, found.high_events) == (False, 4000.0, 2)
    assert margin([5, 3000, 4000], Detector("FL1")).high_events == 0
    assert margin([5, 6, 6], Detector("FL1", range=0.0)).high_events == 0


def test_nan_and_empty_blocks_are_no_margin_events() -> None:
    assert margin([math.nan, 3, math.nan, 1023, 5], Detector("FL1")).high_events == 1
    (found,) = quality.margin_counts([(0, np.empty((1, 0)))], [Detector("FL1")])
    assert (found.events, found.low_events, found.high_events) == (0, 0, 0)


def channel_margin(high: int, events: int = 1000) -> ChannelMargin:
    return ChannelMargin(
        channel="FL1", low_events=0, high_events=high, events=events, floor=0.0, ceiling=1023.0, declared=True
    )


@pytest.mark.parametrize(
    ("high", "gating", "level"),
    [
        (10, None, Level.INFO),
        (11, None, Level.WARNING),
        (50, None, Level.WARNING),
        (51, None, Level.VIOLATION),
        (51, {"FL1"}, Level.VIOLATION),
        (51, {"FL2"}, Level.WARNING),
    ],
)
def test_the_limits_of_margin_events(high: int, gating: set[str] | None, level: Level) -> None:
    (finding,) = quality.check_margins([channel_margin(high)], limits=LIMITS.margin, gating=gating)
    assert (finding.level, finding.code) == (level, "MARGIN_EVENTS")


def test_a_margin_finding_says_where_and_how_many() -> None:
    (finding,) = quality.check_margins([channel_margin(60)], limits=LIMITS.margin)
    assert finding.where == "FL1"
    assert finding.message == (
        "6.0 % of events lie at an end of FL1: 0 at the floor, 60 at or beyond 1023; expected at most 1 %."
    )


# ------------------------------------------------------------------------------------------------- counts and roll-up


@pytest.mark.parametrize(
    ("events", "tube", "level"),
    [
        (500_000, "mrd", Level.INFO),
        (499_999, "mrd", Level.WARNING),
        (200_000, "mrd", Level.WARNING),
        (199_999, "mrd", Level.VIOLATION),
        (0, "mrd", Level.VIOLATION),
        (20_000, "car", Level.INFO),
        (10, "car", Level.WARNING),
    ],
)
def test_the_limits_of_the_denominator(events: int, tube: str, level: Level) -> None:
    assert quality.check_denominator(events, name="viable", limits=LIMITS.events, tube=tube).level is level


@pytest.mark.parametrize(
    ("part", "level"), [(800, Level.INFO), (799, Level.WARNING), (600, Level.WARNING), (599, Level.VIOLATION)]
)
def test_the_limits_of_singlets(part: int, level: Level) -> None:
    found = quality.check_share(
        part, 1000, code="SINGLET_SHARE", what="singlets of all events", limits=LIMITS.singlets, where="singlets"
    )
    assert (found.level, found.code, found.where) == (level, "SINGLET_SHARE", "singlets")


def test_a_share_of_nothing_fails_without_a_division() -> None:
    found = quality.check_share(0, 0, code="VIABILITY", what="viable cells", limits=LIMITS.viability)
    assert (found.level, found.message) == (Level.VIOLATION, "No events to judge viable cells by.")


@pytest.mark.parametrize(
    ("aborted", "level"), [(50, Level.INFO), (51, Level.WARNING), (100, Level.WARNING), (101, Level.VIOLATION)]
)
def test_the_limits_of_aborted_events(aborted: int, level: Level) -> None:
    (found,) = quality.check_abort(aborted, 1000, limits=LIMITS.abort)
    assert found.level is level


def test_aborts_that_the_file_does_not_state_are_not_judged() -> None:
    assert quality.check_abort(None, 1000, limits=LIMITS.abort) == ()
    assert quality.check_abort(5, 0, limits=LIMITS.abort) == ()


@pytest.mark.parametrize(
    ("first", "rest", "level"), [(10, 90, Level.WARNING), (1, 99, Level.INFO), (2, 20, Level.INFO), (0, 0, Level.INFO)]
)
def test_carry_over_needs_an_excess_beyond_chance(first: int, rest: int, level: Level) -> None:
    found = quality.check_carry_over(
        first_target=first, first_events=1000, rest_target=rest, rest_events=99_000, limits=LIMITS.carry_over
    )
    assert found.level is level


def finding(level: Level, code: str = "X") -> QcFinding:
    return QcFinding(level=level, code=code, message="It is so.", where="")


def test_the_worst_finding_decides() -> None:
    assert quality.overall([]) == "PASS"
    assert quality.overall([finding(Level.INFO)]) == "PASS"
    assert quality.overall([finding(Level.INFO), finding(Level.WARNING)]) == "WARN"
    assert quality.overall([finding(Level.WARNING), finding(Level.VIOLATION)]) == "FAIL"


def test_failures_of_time_are_lowered_only_where_enough_is_left() -> None:
    found = [finding(Level.VIOLATION, "FLOW_RATE"), finding(Level.VIOLATION, "MARGIN_EVENTS")]

    def lowered(share: float, events: int) -> list[Level]:
        result = quality.lower_time_failures(found, kept_share=share, denominator_events=events, limits=LIMITS)
        return [item.level for item in result]

    assert lowered(0.80, 500_000) == [Level.WARNING, Level.VIOLATION]
    assert lowered(0.79, 500_000) == [Level.VIOLATION] * 2
    assert lowered(0.80, 499_999) == [Level.VIOLATION] * 2


# ---------------------------------------------------------------------------------------------------------- real files


def judged(path: Path) -> tuple[TimeQuality, NDArray[np.float64]]:
    from flowmrd.cytometry.compensation import unmixing_matrix
    from flowmrd.fcs import ChannelKind, read_fcs

    fcs = read_fcs(path)
    clock = next(channel.index for channel in fcs.channels if channel.kind is ChannelKind.TIME)
    raw = np.concatenate([values.copy() for _, values in fcs.blocks()], axis=1)
    assert fcs.spillover is not None
    compensated = unmixing_matrix(fcs.spillover, fcs.channels).T @ raw
    colours = [channel for channel in fcs.channels if channel.kind is ChannelKind.FLUOR and channel.pnn.endswith("-A")]
    scaled = np.stack([LOGICLE.forward(compensated[channel.index]) for channel in colours])
    scales = {channel.pnn: LOGICLE for channel in colours}
    result = time_quality(raw[clock], in_blocks(scaled), event_count=raw.shape[1], scales=scales)
    return result, raw[clock]


def test_the_disturbed_start_of_a_real_file_is_masked(shared_fcs: Path) -> None:
    # The green laser's channels lie 0.3 scale units too low in the first 900 of 10,000 events (FlowCAP IV, 111.fcs).
    result, _ = judged(shared_fcs / "timeqc" / "111.fcs")
    assert np.flatnonzero(result.flagged).tolist() == list(range(6))
    assert np.flatnonzero(~result.kept).tolist() == list(range(909))
    assert named(result.findings, "SIGNAL_DRIFT").level is Level.WARNING
    assert named(result.findings, "TIME_ORDER").level is Level.INFO
    assert named(result.findings, "FLOW_RATE").level is Level.INFO


@pytest.mark.parametrize("name", ["47333tubeB10001.fcs", "123991.fcs"])
def test_real_marrows_keep_their_events(shared_fcs: Path, name: str) -> None:
    result, _ = judged(shared_fcs / "ball_mrd_real" / name)
    assert result.kept_share == 1.0
    assert named(result.findings, "SIGNAL_DRIFT").level is Level.INFO


def test_a_change_of_the_flow_rate_in_a_real_marrow_is_seen(shared_fcs: Path) -> None:
    # In this tube the rate doubles after two thirds of the time.
    result, _ = judged(shared_fcs / "ball_mrd_real" / "47333tubeB10001.fcs")
    assert named(result.findings, "FLOW_RATE").level is Level.VIOLATION
    assert result.rate[-60] > 1.8 * result.rate[20]


def test_drawn_marrows_pass(shared_fcs: Path) -> None:
    for name in ("SIMS01.fcs", "SIMS04.fcs"):
        result, _ = judged(shared_fcs / "ball_mrd_sim" / name)
        assert result.kept_share == 1.0
        assert named(result.findings, "SIGNAL_DRIFT").level is Level.INFO


def test_a_million_events_of_ten_channels_take_a_tenth_of_a_second() -> None:
    rng = np.random.default_rng(1)
    events = 1_000_000
    values = rng.normal(0.5, 0.1, (10, events))
    seconds = np.sort(rng.uniform(0, 300, events))
    scales = {f"c{i}": LOGICLE for i in range(10)}
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        time_quality(seconds, in_blocks(values, 65536), event_count=events, scales=scales)
        best = min(best, time.process_time() - start)
    assert best < 0.3  # measured 0.04 s on an idle machine; the margin is for a busy one


def test_each_limit_is_named_in_the_document_once() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", LIMITS.version)
    assert LIMITS.margin.warn < LIMITS.margin.fail
    assert LIMITS.singlets.warn > LIMITS.singlets.fail
