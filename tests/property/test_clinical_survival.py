"""Kaplan–Meier against lifelines and Aalen–Johansen against statsmodels on tied data; what must hold for any data."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.clinical.survival import (
    cumulative_incidence,
    event_free_at,
    incidence_at,
    kaplan_meier,
    median_time,
    rate,
    survival_at,
)

# Visit days: most events of a trial are tied on them.
DAYS = np.array([28, 28, 28, 91, 91, 183, 183, 365, 40, 77, 120, 200, 300, 365])


def tied(seed: int, causes: int) -> tuple[list[float], list[int]]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 60))
    times = rng.choice(DAYS, n).astype(float)
    kinds = rng.integers(0, causes + 1, n)
    return times.tolist(), kinds.tolist()


def test_two_hundred_tied_data_sets_agree_with_lifelines() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lifelines import KaplanMeierFitter

        for seed in range(200):
            times, kinds = tied(seed, 1)
            events = [kind == 1 for kind in kinds]
            ours = kaplan_meier(times, events)
            theirs = KaplanMeierFitter().fit(times, events)
            at = theirs.survival_function_.iloc[:, 0]
            np.testing.assert_allclose(ours.survival, at.loc[ours.time].to_numpy(), rtol=1e-9, atol=1e-12)
            band = theirs.confidence_interval_
            exists = np.isfinite(ours.ci_low)
            np.testing.assert_array_equal(exists, (ours.survival > 0) & (ours.survival < 1))
            for own, column in ((ours.ci_low, 0), (ours.ci_high, 1)):
                other = band.loc[ours.time].to_numpy()[:, column]
                np.testing.assert_allclose(own[exists], other[exists], rtol=1e-9)
            median = theirs.median_survival_time_
            # A product that is one half exactly is a rounding above it there; ours is exact (test below).
            if not np.isclose(ours.survival, 0.5, rtol=0, atol=1e-12).any():
                assert median_time(ours) == (None if np.isinf(median) else median), seed
            table = theirs.event_table.loc[ours.time]
            np.testing.assert_array_equal(ours.at_risk, table["at_risk"])
            np.testing.assert_array_equal(ours.events, table["observed"])


def test_two_hundred_tied_data_sets_agree_with_statsmodels() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from statsmodels.duration.survfunc import CumIncidenceRight

        for seed in range(200):
            times, kinds = tied(seed, 3)
            present = max(kinds)
            if present == 0:
                continue
            ours = cumulative_incidence(times, kinds, causes=3)
            theirs = CumIncidenceRight(np.array(times), np.array(kinds))
            np.testing.assert_array_equal(ours.time, theirs.times)
            for k in range(present):
                np.testing.assert_allclose(ours.incidence[k], theirs.cinc[k], rtol=1e-9, atol=1e-12)
                # Its standard error is 0/0 on a day on which all at risk have an event.
                known = np.isfinite(theirs.cinc_se[k])
                np.testing.assert_allclose(ours.se[k][known], theirs.cinc_se[k][known], rtol=1e-6, atol=1e-9)


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3)), min_size=1, max_size=40),
    day=st.integers(0, 420),
)
def test_all_incidences_and_the_event_free_share_add_up_to_one(data: list[tuple[int, int]], day: int) -> None:
    found = cumulative_incidence([time for time, _ in data], [kind for _, kind in data], causes=3)
    np.testing.assert_allclose(found.incidence.sum(axis=0) + found.event_free, 1, rtol=0, atol=1e-12)
    parts = [incidence_at(found, day, cause).value for cause in (1, 2, 3)]
    assert sum(parts) + event_free_at(found, day) == pytest.approx(1, abs=1e-12)
    assert all(part >= 0 for part in parts)
    # Event-free is the Kaplan–Meier estimate of any event.
    both = kaplan_meier([time for time, _ in data], [kind > 0 for _, kind in data])
    np.testing.assert_allclose(found.event_free, both.survival, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2)), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
)
def test_the_order_of_patients_changes_no_estimate(data: list[tuple[int, int]], seed: int) -> None:
    shuffled = [data[i] for i in np.random.default_rng(seed).permutation(len(data))]
    a = cumulative_incidence([time for time, _ in data], [kind for _, kind in data], causes=2)
    b = cumulative_incidence([time for time, _ in shuffled], [kind for _, kind in shuffled], causes=2)
    np.testing.assert_array_equal(a.incidence, b.incidence)
    np.testing.assert_array_equal(a.se, b.se)


@settings(max_examples=100, deadline=None)
@given(data=st.lists(st.tuples(st.integers(0, 400), st.booleans()), min_size=1, max_size=30))
def test_survival_is_the_product_of_the_shares_that_pass_each_day(data: list[tuple[int, bool]]) -> None:
    found = kaplan_meier([time for time, _ in data], [event for _, event in data])
    survival = Fraction(1)
    for day in sorted({time for time, _ in data}):
        at_risk = sum(time >= day for time, _ in data)
        events = sum(time == day and event for time, event in data)
        survival *= Fraction(at_risk - events, at_risk)
        read = survival_at(found, day)
        assert read.value == pytest.approx(float(survival), abs=1e-12)
        assert read.at_risk == at_risk
        # The median is the first day at one half or below, exactly.
        if survival <= Fraction(1, 2):
            median = median_time(found)
            assert median is not None
            assert median <= day
        else:
            assert median_time(found) != day
    assert survival_at(found, -1).value == 1


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 200), data=st.data())
def test_an_interval_of_a_rate_contains_it(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    one = rate(k, n)
    assert one.cp95_percent is not None
    assert one.wilson95_percent is not None
    assert one.percent is not None
    for low, high in (one.cp95_percent, one.wilson95_percent):
        assert 0 <= low <= one.percent <= high <= 100
