"""Rates, Kaplan–Meier and Aalen–Johansen: worked numbers, edges and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flowmrd.clinical.survival import (
    cumulative_incidence,
    incidence_at,
    kaplan_meier,
    median_follow_up,
    median_time,
    rate,
    survival_at,
)
from flowmrd.errors import AnalysisError


@pytest.fixture(scope="module")
def examples(shared: Path) -> dict[str, dict[str, Any]]:
    entries = json.loads((shared / "domain" / "worked_examples.json").read_text(encoding="utf-8"))
    return {entry["id"]: entry for entry in entries}


@pytest.mark.parametrize("name", ["W15", "W16", "W24", "W25"])
def test_response_rates_of_the_reference(name: str, examples: dict[str, dict[str, Any]]) -> None:
    given, expected = examples[name]["inputs"], examples[name]["expected"]
    one = rate(given["responders"], given["n"])
    assert one.percent == pytest.approx(expected["rate_percent"], rel=1e-9)
    assert list(one.cp95_percent or ()) == pytest.approx(expected["cp95_percent"], rel=1e-9)
    assert list(one.wilson95_percent or ()) == pytest.approx(expected["wilson95_percent_for_contrast"], rel=1e-9)


def test_rates_at_their_ends() -> None:
    none, every, nobody = rate(0, 10), rate(10, 10), rate(0, 0)
    assert none.cp95_percent is not None
    assert every.cp95_percent is not None
    assert none.cp95_percent[0] == 0
    assert none.cp95_percent[1] == pytest.approx(30.849710781876083)
    assert every.cp95_percent[0] == pytest.approx(69.15028921812392)
    assert every.cp95_percent[1] == 100
    assert (none.wilson95_percent or (9, 9))[0] == 0
    assert (every.wilson95_percent or (9, 9))[1] == 100
    assert (nobody.percent, nobody.cp95_percent) == (None, None)
    with pytest.raises(AnalysisError, match="expected 0 <= k <= n; got 3 of 2"):
        rate(3, 2)


def test_an_event_comes_before_a_censoring_of_the_same_day() -> None:
    found = kaplan_meier([10, 10], [True, False])
    assert found.survival.tolist() == [0.5]
    assert (found.at_risk.tolist(), found.events.tolist(), found.censored.tolist()) == ([2], [1], [1])


def test_the_horizon_reads_the_last_step_at_or_before_it() -> None:
    found = kaplan_meier([100, 365, 366, 400], [True, True, True, False])
    assert [survival_at(found, day).value for day in (99, 100, 364, 365, 366, 9999)] == [1, 0.75, 0.75, 0.5, 0.25, 0.25]
    assert [survival_at(found, day).at_risk for day in (0, 100, 101, 365, 366, 401)] == [4, 4, 3, 3, 2, 0]


def test_the_interval_does_not_exist_where_survival_is_one_or_zero() -> None:
    found = kaplan_meier([1, 2, 3], [False, True, True])
    assert survival_at(found, 1).ci95 is None
    middle = survival_at(found, 2).ci95
    assert middle is not None
    assert 0 < middle[0] < 0.5 < middle[1] < 1
    assert survival_at(found, 3).ci95 is None
    assert math.isnan(found.ci_low[2])


def test_the_median_is_the_first_day_at_one_half_or_below() -> None:
    assert median_time(kaplan_meier([1, 2, 3, 4], [True, True, False, False])) == 2
    assert median_time(kaplan_meier([1, 2, 3, 4], [True, False, False, False])) is None
    # 0.7 × 5/7 is one half, though not in floating point.
    days, events = [1] * 3 + [2] * 2 + [3] * 5, [True] * 5 + [False] * 5
    assert median_time(kaplan_meier(days, events)) == 2


def test_follow_up_counts_who_was_still_watched() -> None:
    assert median_follow_up([100, 200, 300], [False, False, False]) == 200
    assert median_follow_up([10, 200, 300], [True, False, False]) == 200
    assert median_follow_up([10, 20], [True, True]) is None


def test_competing_events_on_one_day_share_it() -> None:
    found = cumulative_incidence([28, 28, 28, 91], [1, 2, 0, 3], causes=3)
    assert found.incidence[:, 0].tolist() == [0.25, 0.25, 0]
    assert found.incidence[:, 1].tolist() == [0.25, 0.25, 0.5]
    assert incidence_at(found, 27, 1).value == 0
    read = incidence_at(found, 365, 1)
    assert (read.value, read.at_risk) == (0.25, 0)
    assert read.ci95 is not None
    assert 0 < read.ci95[0] < 0.25 < read.ci95[1] < 1


def test_no_patient_gives_an_empty_curve() -> None:
    found = cumulative_incidence([], [], causes=2)
    assert (found.n, found.incidence.shape) == (0, (2, 0))
    assert kaplan_meier([], []).survival.size == 0


@pytest.mark.parametrize(
    ("times", "kinds", "text"),
    [
        ([1, -1], [0, 1], "expected days from 0 on"),
        ([1, math.nan], [0, 1], "expected days from 0 on"),
        ([1], [0, 1], "expected one a patient; got 1 times and 2 events"),
        ([1, 2], [0, 4], "expected 0 to 3; got \\[0, 4\\]"),
    ],
)
def test_times_that_cannot_be_are_refused(times: list[float], kinds: list[int], text: str) -> None:
    with pytest.raises(AnalysisError, match=text):
        cumulative_incidence(times, kinds, causes=3)


def test_estimates_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        kaplan_meier([1.0], [True]).survival[0] = 1
