"""CAR+ fractions: intervals, detection, what a control changes, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.errors import QuantificationError
from flowmrd.quantification.cart import (
    Background,
    Estimate,
    measure_car,
    newcombe,
    product_interval,
    quotient_interval,
    subset_shares,
    vector_copies,
    wilson,
)
from flowmrd.quantification.rare_events import Call, Category

CONTROL = Background(events=10, parent_events=40_000)


@pytest.mark.parametrize(
    ("events", "parent", "control", "category"),
    [
        (0, 41_000, CONTROL, Category.UNDETECTED),
        (19, 41_000, Background(events=0, parent_events=40_000), Category.UNDETECTED),  # fewer than 20 events
        (20, 41_000, Background(events=0, parent_events=40_000), Category.DETECTED_BELOW_LLOQ),
        (50, 41_000, CONTROL, Category.QUANTIFIABLE),
        (50, 41_000, Background(events=49, parent_events=40_000), Category.UNDETECTED),  # no more than the control has
        (3, 1_500, CONTROL, Category.UNDETECTED_INSUFFICIENT),  # LOD 20 / 1,500 is above 1 % of CD3+
        (0, 2_000, CONTROL, Category.UNDETECTED),  # LOD exactly 1 %
    ],
)
def test_category_follows_events_interval_and_the_samples_own_limit(
    events: int, parent: int, control: Background, category: Category
) -> None:
    assert measure_car(events=events, parent_events=parent, controls=[control]).category is category


def test_controls_of_one_kind_are_pooled_by_counts_not_by_percentages() -> None:
    two = [Background(events=1, parent_events=1_000), Background(events=9, parent_events=39_000)]
    assert measure_car(events=96, parent_events=41_000, controls=two).background_fraction == 10 / 40_000


def test_below_the_assays_limit_of_blank_nothing_is_detected() -> None:
    free = measure_car(events=60, parent_events=40_000, controls=[CONTROL])
    bound = measure_car(events=60, parent_events=40_000, controls=[CONTROL], assay_lob=0.002)
    assert free.detected
    assert not bound.detected
    assert bound.flags == ("WITHIN_BACKGROUND",)


def test_below_the_assays_lloq_no_number_is_reported() -> None:
    result = measure_car(events=60, parent_events=40_000, controls=[CONTROL], assay_lloq=0.003)
    assert result.category is Category.DETECTED_BELOW_LLOQ
    assert result.value_percent is None
    assert result.wording == "CAR-T detected, below LLOQ (< 0.3% of CD3+ T cells)"


def test_without_a_control_a_detection_is_preliminary_and_goes_to_review() -> None:
    result = measure_car(events=96, parent_events=41_000)
    assert result.preliminary
    assert result.call is Call.REVIEW
    assert not result.proved
    assert result.wording.endswith("(preliminary: without a control)")
    assert measure_car(events=8_000, parent_events=40_000).proved  # far above any background


def test_an_estimate_from_all_intensities_stands_for_the_net_share() -> None:
    estimate = Estimate(fraction=0.004, ci_low=0.003, ci_high=0.005)
    result = measure_car(events=96, parent_events=41_000, controls=[CONTROL], estimate=estimate)
    assert result.fraction == 0.004
    assert result.net_fraction == pytest.approx(96 / 41_000 - 10 / 40_000)
    doubtful = Estimate(fraction=0.004, ci_low=-0.001, ci_high=0.009)
    assert not measure_car(events=96, parent_events=41_000, controls=[CONTROL], estimate=doubtful).detected


def test_no_parent_events_is_not_evaluable_and_has_no_number() -> None:
    result = measure_car(events=0, parent_events=0, controls=[CONTROL])
    assert result.fraction is None
    assert result.category is Category.UNDETECTED_INSUFFICIENT
    assert result.wording == "CAR-T not evaluable: no CD3+ T cells"


def test_a_negative_net_share_is_kept_and_floored_for_display_only() -> None:
    result = measure_car(events=2, parent_events=40_000, controls=[Background(events=20, parent_events=40_000)])
    assert result.fraction is not None
    assert result.fraction < 0
    assert result.shown_fraction == 0.0


def test_impossible_counts_are_refused_with_the_counts() -> None:
    with pytest.raises(QuantificationError, match="got 5 of 4"):
        measure_car(events=5, parent_events=4)
    with pytest.raises(QuantificationError, match="got 5 of 4"):
        Background(events=5, parent_events=4)
    with pytest.raises(QuantificationError, match="assay_lob: expected a fraction inside 0…1; got 2"):
        measure_car(events=1, parent_events=4, assay_lob=2)


def test_subsets_of_fewer_than_a_hundred_car_cells_are_not_reported() -> None:
    assert subset_shares({"naive": 10}, 99) == {"naive": None}
    assert subset_shares({"naive": 10}, 100) == {"naive": 0.1}


def test_vector_copies_without_a_copy_number_give_no_share_of_cells() -> None:
    assert vector_copies(1000).car_fraction_of_nucleated is None
    with pytest.raises(QuantificationError, match="copies of at least 0"):
        vector_copies(-1)


counts = st.integers(1, 60_000).flatmap(lambda size: st.tuples(st.integers(0, size), st.just(size)))


@settings(max_examples=60, deadline=None)
@given(counts, counts)
def test_newcombes_interval_holds_the_difference_and_turns_with_its_sides(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    low, high = newcombe(*first, *second)
    assert low <= first[0] / first[1] - second[0] / second[1] <= high
    back_low, back_high = newcombe(*second, *first)
    assert (low, high) == pytest.approx((-back_high, -back_low))


@settings(max_examples=60, deadline=None)
@given(counts)
def test_wilsons_interval_holds_the_share_and_stays_between_none_and_all(one: tuple[int, int]) -> None:
    low, high = wilson(*one)
    assert 0 <= low <= one[0] / one[1] <= high <= 1


def test_a_product_of_estimates_is_as_wide_as_both_errors_together() -> None:
    low, high = product_interval(0.2, (0.18, 0.22), 100.0, (90.0, 110.0))
    assert low == pytest.approx(20 * (1 - (0.1**2 + 0.1**2) ** 0.5))
    assert high == pytest.approx(20 * (1 + (0.1**2 + 0.1**2) ** 0.5))
    assert product_interval(0.0, (0.0, 0.01), 100.0, (90.0, 110.0)) == pytest.approx((0.0, 1.1))
    with pytest.raises(QuantificationError, match="divisor above 0"):
        quotient_interval(0.1, (0.0, 0.2), 1.0, (0.0, 2.0))


def test_what_is_not_detected_but_may_be_above_the_lod_says_so() -> None:
    control = Background(events=60, parent_events=10_000)
    hidden = measure_car(events=80, parent_events=10_000, controls=[control])
    assert not hidden.detected
    assert hidden.wording == "CAR-T not detected (LOD 0.2% of CD3+ T cells); up to 0.44% not excluded"
    clear = measure_car(events=2, parent_events=10_000, controls=[Background(events=2, parent_events=10_000)])
    assert clear.wording == "CAR-T not detected (LOD 0.2% of CD3+ T cells)"
