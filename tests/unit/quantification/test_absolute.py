"""Cells per microlitre: beads, recorded volume, blood count; every reason against a count has its name."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.errors import QuantificationError
from flowmrd.quantification.absolute import (
    AbsoluteCount,
    Counted,
    Platform,
    Share,
    acquisition_seconds,
    bead_count,
    check_blood_count_time,
    compare_platforms,
    count_by_beads,
    dual_platform_count,
    lymphocytes_per_ul,
    part_of,
    rate_interval,
    recorded_volume,
    volume_count,
)


def counted(**changes: object) -> Counted:
    given_values: dict[str, object] = {
        "target_events": 1842,
        "bead_events": 12_500,
        "beads_added": 52_300.0,
        "beads_lot": "B7",
        "sample_volume_ul": 100.0,
    }
    return count_by_beads(**{**given_values, **changes})  # type: ignore[arg-type]


def codes(one: Counted) -> list[str]:
    return [f"{finding.level}: {finding.code}" for finding in one.findings]


def test_enough_beads_of_a_stated_lot_give_a_count_without_remark() -> None:
    result = counted()
    assert result.findings == ()
    assert result.count is not None
    assert result.count.cells_per_ul == pytest.approx(77.06928)


@pytest.mark.parametrize(
    ("changes", "code", "has_count"),
    [
        ({"beads_lot": None}, "warning: BEAD_LOT_MISSING", True),
        ({"beads_lot": ""}, "warning: BEAD_LOT_MISSING", True),
        ({"bead_events": 0}, "violation: BEADS_ABSENT", False),
        ({"bead_events": 999}, "violation: BEADS_TOO_FEW", False),
        ({"bead_events": 1000}, "warning: BEADS_FEW", True),
        ({"bead_events": 4999}, "warning: BEADS_FEW", True),
        ({"beads_added": None}, "warning: BEADS_NOT_STATED", False),
        ({"sample_volume_ul": None}, "warning: BLOOD_VOLUME_MISSING", False),
    ],
)
def test_what_makes_a_bead_count_doubtful_or_impossible_is_named(
    changes: dict[str, object], code: str, has_count: int
) -> None:
    result = counted(**changes)
    assert codes(result) == [code]
    assert (result.count is not None) == has_count


def test_a_tube_without_beads_has_nothing_to_say() -> None:
    assert counted(bead_events=3, beads_added=None, beads_lot=None) == Counted(count=None)


def test_a_dilution_before_pipetting_raises_the_count() -> None:
    plain, diluted = counted().count, counted(dilution_factor=2.0).count
    assert plain is not None
    assert diluted is not None
    assert diluted.cells_per_ul == pytest.approx(2 * plain.cells_per_ul)
    assert diluted.lod_per_ul == pytest.approx(2 * plain.lod_per_ul)


def test_the_interval_holds_the_errors_of_target_and_beads() -> None:
    many = bead_count(target_events=100, bead_events=100_000, beads_added=1e5, sample_volume_ul=100)
    few = bead_count(target_events=100, bead_events=1_000, beads_added=1e3, sample_volume_ul=100)
    assert many.cells_per_ul == few.cells_per_ul
    assert few.ci_high - few.ci_low > many.ci_high - many.ci_low


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_the_interval_of_a_ratio_holds_the_ratio(events: int, beads: int) -> None:
    low, high = rate_interval(events, beads)
    assert low <= events / beads <= high


def test_no_beads_or_no_volume_is_refused() -> None:
    with pytest.raises(QuantificationError, match="got 0, 1000, 100 and 1"):
        bead_count(target_events=5, bead_events=0, beads_added=1000, sample_volume_ul=100)
    with pytest.raises(QuantificationError, match="volume and a dilution above 0"):
        volume_count(target_events=5, volume_ul=0)


# ------------------------------------------------------------------------------------------------------------- $VOL


def test_volume_is_in_nanolitres_as_the_standard_says() -> None:
    read = recorded_volume({"$VOL": "46000", "$CYT": "Attune NxT"}, seconds=15)
    assert read.microlitres == 46
    assert read.findings == ()


def test_an_aurora_writes_microlitres_which_is_found_out_and_said() -> None:
    read = recorded_volume({"$VOL": "         30.5", "$CYT": "Aurora"}, seconds=28.1)
    assert read.microlitres == 30.5
    assert [finding.code for finding in read.findings] == ["VOLUME_IN_MICROLITRES"]
    # A later version that writes nanolitres is read by the standard.
    assert recorded_volume({"$VOL": "30500", "$CYT": "Aurora"}, seconds=28.1).microlitres == 30.5


@pytest.mark.parametrize(
    ("keywords", "code"),
    [
        ({"$VOL": "30.5", "$CYT": "Another"}, "VOLUME_IMPLAUSIBLE"),
        ({"$VOL": "1e12", "$CYT": "Aurora"}, "VOLUME_IMPLAUSIBLE"),
        ({"$VOL": "0"}, "VOLUME_UNUSABLE"),
        ({"$VOL": "much"}, "VOLUME_UNUSABLE"),
    ],
)
def test_a_volume_that_cannot_be_gives_no_count_and_says_why(keywords: dict[str, str], code: str) -> None:
    read = recorded_volume(keywords, seconds=30.0)
    assert read.microlitres is None
    assert [finding.code for finding in read.findings] == [code]


def test_no_volume_is_no_finding() -> None:
    assert recorded_volume({}, seconds=30.0).findings == ()


@pytest.mark.parametrize(
    ("begin", "end", "seconds"),
    [("13:42:44.68", "13:43:12.78", 28.1), ("23:59:30", "00:00:30", 60.0), ("11:56:19:31", "11:58:49:31", 150.0)],
)
def test_the_length_of_an_acquisition_is_read_over_midnight_too(begin: str, end: str, seconds: float) -> None:
    assert acquisition_seconds({"$BTIM": begin, "$ETIM": end}) == pytest.approx(seconds)
    assert acquisition_seconds({"$BTIM": begin}) is None


def test_a_count_by_volume_is_events_over_volume_times_dilution() -> None:
    count = volume_count(target_events=2193, volume_ul=30.5, dilution_factor=20)
    assert count.cells_per_ul == pytest.approx(2193 / 30.5 * 20)
    assert count.ci_low < count.cells_per_ul < count.ci_high
    assert count.lod_per_ul == pytest.approx(20 / 30.5 * 20)
    assert volume_count(target_events=0, volume_ul=30).ci_low == 0


# ---------------------------------------------------------------------------------------------------- dual platform


def test_the_analysers_imprecision_widens_the_interval() -> None:
    exact = (Share(fraction=0.5, ci_low=0.5, ci_high=0.5),)
    count = dual_platform_count(wbc_1e9_l=3.2, lymph_pct=24, shares=exact)
    # 3 % and 5 % together are 5.8 %; its 95 % interval is about twice as wide on each side.
    assert count.ci_low / count.cells_per_ul == pytest.approx(0.892, abs=0.005)
    assert lymphocytes_per_ul(wbc_1e9_l=3.2, lymph_pct=24).fraction == pytest.approx(768)
    with pytest.raises(QuantificationError, match="0 to 100 % lymphocytes; got 3 and 101"):
        lymphocytes_per_ul(wbc_1e9_l=3, lymph_pct=101)


def test_a_blood_count_is_used_within_a_day_of_the_sample() -> None:
    at = datetime(2026, 3, 12, 8, tzinfo=UTC)
    assert check_blood_count_time(at - timedelta(hours=24), at) == (True, ())
    usable, findings = check_blood_count_time(at + timedelta(hours=24, minutes=6), at)
    assert not usable
    assert [finding.code for finding in findings] == ["WBC_TOO_OLD"]
    assert findings[0].message == (
        "The blood count lies 24.1 h from the flow sample, more than 24 h: no dual-platform count."
    )
    usable, findings = check_blood_count_time(None, at)
    assert usable
    assert [finding.code for finding in findings] == ["WBC_TIME_UNKNOWN"]


def made(value: float, platform: Platform) -> AbsoluteCount:
    return AbsoluteCount(
        cells_per_ul=value, ci_low=value, ci_high=value, lod_per_ul=0.1, lloq_per_ul=0.2, platform=platform
    )


@pytest.mark.parametrize(
    ("single", "dual", "said"), [(100, 126, True), (100, 125, False), (100, 70, True), (8, 2, False), (0, 11, True)]
)
def test_platforms_more_than_a_quarter_apart_disagree_above_ten_cells(single: float, dual: float, said: int) -> None:
    findings = compare_platforms(made(single, Platform.BEADS), made(dual, Platform.DUAL))
    assert [finding.code for finding in findings] == (["COUNTS_DISAGREE"] if said else [])
    assert compare_platforms(made(single, Platform.BEADS), None) == ()


def test_a_part_of_a_count_has_the_limits_of_the_share() -> None:
    whole = counted().count
    assert whole is not None
    part = part_of(whole, Share(fraction=0.1, ci_low=0.09, ci_high=0.11), lod_fraction=0.001, lloq_fraction=0.002)
    assert part.cells_per_ul == pytest.approx(7.706928)
    assert part.lod_per_ul == pytest.approx(0.07706928)
