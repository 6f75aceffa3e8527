"""Courses: areas, half-life, persistence, aplasia and recovery on small series that a clinician can check."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.errors import QuantificationError
from flowmrd.quantification.kinetics import (
    Completeness,
    Persistence,
    Sample,
    Trapezoid,
    area_under_curve,
    course_kinetics,
    fit_slope,
    loss_of_persistence,
    persistence_at,
    persistence_duration,
    recovery_day,
    subject_courses,
    terminal_slope,
)


def series(*pairs: tuple[float, float], lod: float = 0.2) -> list[Sample]:
    return [Sample(day=day, car_per_ul=value, lod_per_ul=lod) for day, value in pairs]


def codes(samples: list[Sample]) -> list[str]:
    return [finding.code for finding in course_kinetics(samples, subject="S").findings]


# ------------------------------------------------------------------------------------------------------------- areas


def test_a_value_below_its_lod_is_zero_and_one_at_it_counts() -> None:
    found = course_kinetics(series((7, 0.19), (14, 0.2)), subject="S").kinetics
    assert (found.cmax, found.tmax) == (0.2, 14)
    assert found.auc0_28_linear == pytest.approx(0.7)


def test_the_day_of_the_peak_is_the_first_of_equal_ones() -> None:
    assert course_kinetics(series((7, 80), (14, 80)), subject="S").kinetics.tmax == 7


@pytest.mark.parametrize(
    ("last", "status", "end"),
    [
        (23.9, Completeness.PARTIAL, 23.9),
        (24, Completeness.COMPLETE, 24),
        (28, Completeness.COMPLETE, 28),
        (40, Completeness.COMPLETE, 28),
    ],
)
def test_an_area_is_partial_when_the_last_sample_is_early_and_never_extrapolated(
    last: float, status: Completeness, end: float
) -> None:
    area = area_under_curve([(7.0, 10.0), (last, 10.0)], to_day=28, complete_from=24, method=Trapezoid.LINEAR)
    assert area is not None
    assert (area.completeness, area.to_day) == (status, end)
    assert area.value == pytest.approx(35 + 10 * (end - 7))


def test_partial_areas_are_flagged_by_name() -> None:
    found = course_kinetics(series((7, 80), (14, 20), (60, 5)), subject="S").kinetics
    assert found.flags == "PARTIAL_AUC0_90"
    assert (found.auc0_28_status, found.auc0_90_status) == (Completeness.COMPLETE, Completeness.PARTIAL)


def test_a_fall_to_zero_is_a_straight_line_for_both_methods() -> None:
    points = [(7.0, 10.0), (14.0, 0.0), (28.0, 0.0)]
    both = [area_under_curve(points, to_day=28, complete_from=24, method=method) for method in Trapezoid]
    assert [one.value for one in both if one] == [70.0, 70.0]


falling = st.lists(st.floats(0.5, 500), min_size=2, max_size=8)


@settings(max_examples=50, deadline=None)
@given(falling)
def test_the_logarithmic_area_is_never_larger_than_the_linear_one(values: list[float]) -> None:
    points = [(4.0 * (step + 1), value) for step, value in enumerate(values)]
    linear, log = (
        area_under_curve(points, to_day=28, complete_from=24, method=one)
        for one in (Trapezoid.LINEAR, Trapezoid.LINUP_LOGDOWN)
    )
    assert linear is not None
    assert log is not None
    assert log.value <= linear.value * (1 + 1e-12)


@settings(max_examples=50, deadline=None)
@given(falling, st.floats(0.1, 10))
def test_peak_and_area_scale_with_the_counts_and_the_half_life_does_not(values: list[float], factor: float) -> None:
    def found(scale: float) -> object:
        samples = [
            Sample(day=4.0 * (step + 1), car_per_ul=value * scale, lod_per_ul=0.001)
            for step, value in enumerate(values)
        ]
        return course_kinetics(samples, subject="S").kinetics

    one, other = found(1.0), found(factor)
    assert other.cmax == pytest.approx(factor * one.cmax)  # type: ignore[attr-defined]
    assert other.auc0_28_linear == pytest.approx(factor * one.auc0_28_linear)  # type: ignore[attr-defined]
    if one.half_life_days is not None and one.adj_r2 > 0.81:  # type: ignore[attr-defined]
        assert other.half_life_days == pytest.approx(one.half_life_days)  # type: ignore[attr-defined]


# --------------------------------------------------------------------------------------------------------- half-life


def test_an_exact_exponential_gives_its_half_life() -> None:
    found = course_kinetics(series((10, 512), (20, 256), (30, 128), (40, 64)), subject="S").kinetics
    assert found.half_life_days == pytest.approx(10)
    assert found.adj_r2 == pytest.approx(1)
    assert found.lambda_z_points == 3


def test_two_points_after_the_peak_give_no_slope() -> None:
    assert terminal_slope([(10.0, 9.0), (20.0, 4.0), (30.0, 2.0)], tmax=10) is None


def test_a_poor_fit_is_reported_and_gives_no_half_life() -> None:
    samples = series((7, 500), (10, 1), (20, 300), (30, 2), (40, 280))
    found = course_kinetics(samples, subject="S")
    assert found.kinetics.half_life_days is None
    assert found.kinetics.lambda_z_accepted is False
    assert found.kinetics.adj_r2 is not None
    assert "HALF_LIFE_REFUSED" in [finding.code for finding in found.findings]


def test_marked_points_are_fitted_and_those_before_the_peak_are_left_out() -> None:
    days = ((7, 100), (10, 900), (20, 450), (30, 225), (40, 110))
    samples = [Sample(day=d, car_per_ul=v, lod_per_ul=0.2, terminal=d in {7, 20, 30, 40}) for d, v in days]
    found = course_kinetics(samples, subject="S")
    assert found.slope is not None
    assert (found.slope.points, found.slope.from_day, found.slope.to_day) == (3, 20, 40)
    assert [finding.code for finding in found.findings] == ["TERMINAL_POINTS_LEFT_OUT"]


def test_equal_values_have_no_slope_to_trust() -> None:
    slope = fit_slope([(1.0, 5.0), (2.0, 5.0), (3.0, 5.0)])
    assert slope is not None
    assert not slope.accepted


# ------------------------------------------------------------------------------------------------------- persistence


def test_a_sample_whose_lod_is_above_one_percent_of_t_cells_proves_no_absence() -> None:
    blind = Sample(day=28, car_per_ul=0.0, lod_per_ul=1.0, lod_fraction=0.011)
    assert persistence_at(blind) is Persistence.NOT_EVALUABLE
    assert persistence_at(Sample(day=28)) is Persistence.NOT_EVALUABLE
    assert persistence_at(Sample(day=28, car_per_ul=0.0, lod_per_ul=1.0, lod_fraction=0.01)) is Persistence.NOT_DETECTED


@pytest.mark.parametrize(
    ("pairs", "loss"),
    [
        (((7, 50), (28, 9), (60, 0), (74, 0)), 60),  # confirmed 14 days later
        (((7, 50), (28, 9), (60, 0), (73, 0)), None),  # 13 days are too few
        (((7, 50), (60, 0), (67, 0), (74, 0)), 60),  # a sample between does not restart the clock
        (((7, 50), (60, 0), (67, 2), (91, 0)), None),  # detected between
        (((7, 50), (60, 0)), None),  # one sample alone
        (((7, 0), (28, 0)), None),  # never there
    ],
)
def test_loss_is_the_first_of_not_detected_samples_over_fourteen_days(
    pairs: tuple[tuple[float, float], ...], loss: float | None
) -> None:
    assert loss_of_persistence(series(*pairs)) == loss


def test_duration_is_censored_at_the_last_sample_or_at_an_event() -> None:
    samples = series((7, 50), (28, 9), (91, 3))
    plain = persistence_duration(samples)
    transplanted = persistence_duration(samples, censor_day=60, censored_by="alloSCT")
    assert plain is not None
    assert transplanted is not None
    assert (plain.days, plain.lost, plain.censored_by) == (91, False, "last sample")
    assert (transplanted.days, transplanted.lost, transplanted.censored_by) == (28, False, "alloSCT")
    assert persistence_duration(series((7, 0))) is None


def test_a_reinfusion_is_a_course_of_its_own_and_ends_the_one_before() -> None:
    first, second = subject_courses(
        [
            ("S", 2, Sample(day=10, car_per_ul=7, lod_per_ul=0.2)),
            ("S", 1, Sample(day=10, car_per_ul=90, lod_per_ul=0.2)),
        ]
    )
    assert (first.kinetics.course, first.kinetics.cmax, first.kinetics.censored_by) == (1, 90, "re-infusion")
    assert (second.kinetics.course, second.kinetics.cmax, second.kinetics.censored_by) == (2, 7, "last sample")


def test_car_t_and_b_cells_of_two_tubes_of_one_day_are_one_sample() -> None:
    car = Sample(day=28, car_per_ul=9, lod_per_ul=0.2)
    (one,) = subject_courses([("S", 1, car), ("S", 1, Sample(day=28, cd19_per_ul=0.0))])
    assert len(one.samples) == 1
    assert (one.samples[0].car_per_ul, one.samples[0].cd19_per_ul) == (9, 0.0)
    (two,) = subject_courses([("S", 1, car), ("S", 1, Sample(day=28, car_per_ul=5, lod_per_ul=0.2))])
    assert [finding.code for finding in two.findings] == ["DUPLICATE_VISIT"]
    assert two.kinetics.cmax == 9


# --------------------------------------------------------------------------------------------------------- B cells


def test_recovery_needs_a_second_sample_two_weeks_later() -> None:
    def b_cells(*pairs: tuple[float, float]) -> float | None:
        return recovery_day([Sample(day=day, cd19_per_ul=value) for day, value in pairs])

    assert b_cells((28, 0), (90, 10), (104, 10)) == 90
    assert b_cells((28, 0), (90, 10), (103, 10)) is None
    assert b_cells((28, 0), (90, 9.99), (104, 30)) is None
    assert b_cells((-7, 80), (28, 0)) is None


def test_without_an_absolute_count_the_share_of_lymphocytes_decides() -> None:
    found = course_kinetics([Sample(day=28, b_fraction=0.009), Sample(day=60, b_fraction=0.01)], subject="S").kinetics
    assert (found.bca_ever, found.bca_last) == (True, False)


def test_recovery_up_to_day_180_is_an_alert() -> None:
    early = [Sample(day=day, cd19_per_ul=value) for day, value in ((28, 0), (180, 30), (200, 30))]
    late = [Sample(day=day, cd19_per_ul=value) for day, value in ((28, 0), (181, 30), (200, 30))]
    assert codes(early) == ["EARLY_B_CELL_RECOVERY"]
    assert codes(late) == []


# ---------------------------------------------------------------------------------------------------------- findings


def test_days_before_the_infusion_are_named_and_no_part_of_the_kinetics() -> None:
    assert codes(series((-7, 5), (7, 80))) == ["NEGATIVE_DAY"]
    found = course_kinetics(series((-7, 5000), (7, 80)), subject="S").kinetics
    assert (found.cmax, found.samples) == (80, 1)


def test_a_positive_day_zero_counts_as_none_and_is_named() -> None:
    assert codes(series((0, 12), (7, 80))) == ["DAY_ZERO_POSITIVE"]
    assert course_kinetics(series((0, 12), (7, 80)), subject="S").kinetics.auc0_28_linear == 280


def test_a_course_of_two_reagents_is_no_series_and_named() -> None:
    samples = [Sample(day=day, car_per_ul=9, lod_per_ul=0.2, reagent=one) for day, one in ((7, "FMC63"), (28, "L"))]
    assert codes(samples) == ["REAGENT_CHANGED"]
    assert codes(samples[:1]) == []


def test_a_count_without_a_limit_is_named() -> None:
    assert codes([Sample(day=7, car_per_ul=3.0)]) == ["LOD_MISSING"]


def test_nothing_detected_has_no_peak_day_and_says_so() -> None:
    found = course_kinetics(series((7, 0), (28, 0.1)), subject="S").kinetics
    assert (found.cmax, found.tmax, found.clast, found.flags) == (0.0, None, None, "NEVER_DETECTED|PARTIAL_AUC0_90")


def test_no_sample_after_the_infusion_gives_an_empty_row() -> None:
    found = course_kinetics(series((-3, 5)), subject="S").kinetics
    assert (found.cmax, found.auc0_28_linear, found.persistence_days) == (None, None, None)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(QuantificationError, match="car_per_ul of at least 0; got -1"):
        Sample(day=1, car_per_ul=-1)


def test_memory_shares_and_copies_are_in_the_rows_of_samples() -> None:
    sample = Sample(
        day=10, car_per_ul=5, lod_per_ul=0.2, copies_per_ug=34_700, memory_shares=(("naive", 0.1), ("temra", None))
    )
    (row,) = course_kinetics([sample], subject="S").visits
    assert (row.naive, row.temra) == (0.1, None)
    assert row.copies_per_cell == pytest.approx(0.22902)
