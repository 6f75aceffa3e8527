"""Compensation judged on cells, clean-up by phenotype, age of the specimen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flowmrd.cytometry.plausibility import (
    check_age,
    check_leaks,
    check_over_compensation,
    clean_up_verdict,
    leaks,
    over_compensation,
    share_far_below,
)
from flowmrd.cytometry.quality import load_limits
from flowmrd.cytometry.transforms import Logicle
from flowmrd.errors import Level

LIMITS = load_limits()
SCALE = Logicle(T=262144.0, W=1.0, M=4.5, A=0.0)
Values = NDArray[np.float64]


def cells(
    rng: np.random.Generator, *, taken: float, offset: float = 0.0
) -> tuple[dict[str, Values], dict[str, Values]]:
    """Two channels: few cells are bright in A; B loses `taken` of A's signal, and is `offset` off zero."""
    a = rng.normal(0, 60, 20_000)
    a[:600] = rng.normal(20_000, 3000, 600)
    b = rng.normal(offset, 60, 20_000) - taken * a
    linear = {"A": a, "B": b}
    return linear, {name: SCALE.forward(values) for name, values in linear.items()}


def residuals(taken: float, *, offset: float = 0.0) -> float:
    linear, scaled = cells(np.random.default_rng(3), taken=taken, offset=offset)
    found = over_compensation(linear, scaled, limits=LIMITS.over_compensation)
    return found[0].share if found else 0.0


@settings(max_examples=15, deadline=None)
@given(st.floats(0.06, 0.5))
def test_what_is_taken_too_much_is_measured_as_a_share_of_the_bright_signal(taken: float) -> None:
    assert residuals(taken) == pytest.approx(taken, rel=0.25)


@settings(max_examples=15, deadline=None)
@given(st.floats(-0.4, 0.015))
def test_right_or_missing_compensation_is_no_over_compensation(taken: float) -> None:
    assert residuals(taken) == 0.0


def test_a_baseline_below_zero_is_no_residual() -> None:
    assert residuals(0.0, offset=-700.0) == 0.0


def test_more_than_five_percent_of_the_primary_signal_fails() -> None:
    linear, scaled = cells(np.random.default_rng(3), taken=0.12)
    found = over_compensation(linear, scaled, limits=LIMITS.over_compensation)
    (finding,) = check_over_compensation(found, {}, limits=LIMITS.over_compensation)
    assert (finding.level, finding.code, finding.where) == (Level.VIOLATION, "OVER_COMPENSATED", "B")
    assert "B by 12 % of A" in finding.message or "B by 11 % of A" in finding.message


def test_between_two_and_five_percent_warns_and_nothing_passes() -> None:
    linear, scaled = cells(np.random.default_rng(3), taken=0.04)
    found = over_compensation(linear, scaled, limits=LIMITS.over_compensation)
    assert check_over_compensation(found, {}, limits=LIMITS.over_compensation)[0].level is Level.WARNING
    assert check_over_compensation((), {}, limits=LIMITS.over_compensation)[0].level is Level.INFO


def test_many_events_far_below_the_negatives_warn() -> None:
    negatives = np.random.default_rng(1).normal(0, 50, 2000)
    values = np.concatenate([np.full(60, -400.0), np.zeros(940)])
    share = share_far_below(values, negatives, rsd=3.0)
    assert share == 0.06
    (finding,) = check_over_compensation((), {"CD1": share}, limits=LIMITS.over_compensation)
    assert (finding.level, finding.where) == (Level.WARNING, "CD1")
    assert share_far_below(values, negatives[:10], rsd=3.0) is None


def test_few_cells_prove_nothing_about_compensation() -> None:
    linear = {"A": np.full(20, 1e4), "B": np.full(20, -5e3)}
    assert over_compensation(linear, linear, limits=LIMITS.over_compensation) == ()


@pytest.mark.parametrize(
    ("events", "removed", "gone", "verdict"),
    [
        (1000, 940, 500, "FAIL"),  # the valley that cut a leukemia
        (1000, 450, 500, "WARN"),
        (1000, 450, 3500, "PASS"),  # the gate took as much of everything
        (1000, 390, 500, "PASS"),
        (99, 99, 500, "PASS"),  # too few to say
    ],
)
def test_a_gate_that_takes_a_phenotype_is_told(events: int, removed: int, gone: int, verdict: str) -> None:
    assert clean_up_verdict(events, removed, 10_000, gone, limits=LIMITS.clean_up) == verdict


def test_a_phenotype_too_rare_to_tell_from_debris_only_warns() -> None:
    assert clean_up_verdict(120, 110, 1_000_000, 50_000, limits=LIMITS.clean_up) == "WARN"


@settings(max_examples=30, deadline=None)
@given(st.integers(100, 5000), st.floats(0, 1), st.floats(0, 1))
def test_taking_more_of_a_phenotype_never_helps(events: int, share: float, more: float) -> None:
    order = ["PASS", "WARN", "FAIL"]

    def verdict(part: float) -> int:
        return order.index(clean_up_verdict(events, int(part * events), 20_000, 1000, limits=LIMITS.clean_up))

    assert verdict(min(share, more)) <= verdict(max(share, more))


@pytest.mark.parametrize(
    ("hours", "viable", "level"),
    [
        (24.0, 0.9, Level.INFO),
        (48.0, 0.9, Level.INFO),
        (49.0, 0.9, Level.WARNING),
        (72.0, 0.2, Level.WARNING),
        (73.0, 0.9, Level.WARNING),
        (73.0, 0.6, Level.VIOLATION),
        (73.0, None, Level.VIOLATION),
    ],
)
def test_an_old_specimen_is_reported_only_if_viable(hours: float, viable: float | None, level: Level) -> None:
    (finding,) = check_age(hours, viable, limits=LIMITS.adequacy)
    assert (finding.level, finding.code) == (level, "SPECIMEN_AGE")


def test_a_specimen_without_times_is_not_judged() -> None:
    assert check_age(None, 0.9, limits=LIMITS.adequacy) == ()


def negatives(left: float, *, cells: int = 4000, sd: float = 0.35) -> tuple[dict[str, Values], dict[str, Values]]:
    """Cells with very different amounts of A, no C at all, and `left` of A's signal in C."""
    rng = np.random.default_rng(5)
    a = 10.0 ** rng.normal(3.0, sd, cells)
    linear = {"A": a, "C": rng.normal(30, 40, cells) + left * a}
    return linear, {name: SCALE.forward(values) for name, values in linear.items()}


def leak(left: float, *, cells: int = 4000, sd: float = 0.35) -> float:
    found = leaks(*negatives(left, cells=cells, sd=sd), ("C",), limits=LIMITS.leak)
    return found[0].share if found else 0.0


@settings(max_examples=15, deadline=None)
@given(st.floats(0.07, 0.4), st.sampled_from([1, -1]))
def test_what_a_marker_leaves_in_a_channel_that_the_cells_are_negative_in_is_its_share(share: float, sign: int) -> None:
    assert leak(sign * share) == pytest.approx(sign * share, rel=0.2)


@settings(max_examples=15, deadline=None)
@given(st.floats(-0.02, 0.02))
def test_what_noise_hides_or_a_good_matrix_leaves_is_no_leak(share: float) -> None:
    assert leak(share) == 0.0


def test_few_cells_and_cells_alike_in_the_source_prove_no_leak() -> None:
    assert leak(0.3, cells=LIMITS.leak.events_least - 1) == 0.0
    assert leak(0.3, sd=0.05) == 0.0, "without a spread of the source there is nothing to compare"


def test_other_cells_among_the_negatives_are_no_leak_because_the_brightest_of_them_have_no_more_of_it() -> None:
    rng = np.random.default_rng(6)
    other = np.arange(4000) < 1200  # as monocytes among T cells: more autofluorescence in every channel
    a = np.where(other, 10.0 ** rng.normal(3.1, 0.4, 4000), rng.normal(40, 30, 4000))
    linear = {"A": a, "C": rng.normal(30, 40, 4000) + 160 * other}
    scaled = {name: SCALE.forward(values) for name, values in linear.items()}
    middle = [
        float(np.median(linear["C"][chosen])) for chosen in (a >= np.quantile(a, 0.75), a <= np.quantile(a, 0.25))
    ]
    assert middle[0] - middle[1] > 0.1 * float(np.median(a[a >= np.quantile(a, 0.75)])), (
        "the two quarters alone would fail"
    )
    found = leaks(linear, scaled, ("C",), limits=LIMITS.leak)
    assert all(one.share < 0.6 * LIMITS.leak.fail for one in found)


def test_a_leak_of_more_than_a_tenth_fails_and_a_smaller_one_warns() -> None:
    failed, warned = (
        check_leaks(leaks(*negatives(share), ("C",), limits=LIMITS.leak), limits=LIMITS.leak) for share in (0.2, 0.08)
    )
    assert [one.level for one in (*failed, *warned)] == [Level.VIOLATION, Level.WARNING]
    assert "+20 % of A in C" in failed[0].message
    assert "expected at most 10 %" in failed[0].message
    assert "was not applied" in failed[0].message
    assert check_leaks((), limits=LIMITS.leak) == ()
