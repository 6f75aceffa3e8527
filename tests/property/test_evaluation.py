"""Laws of an evaluation: intervals hold their rate, better calls never score worse, order does not matter."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.evaluation.defaults import load_defaults
from flowmrd.evaluation.labels import Survey, choose_positive
from flowmrd.evaluation.statistics import agreement, median_interval, overlap, probit, wilson
from flowmrd.quantification.rare_events import clopper_pearson

DEFAULTS = load_defaults().labels
MASKS = st.integers(1, 60).flatmap(
    lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n) for _ in range(2)])
)
FRACTIONS = st.floats(1e-7, 1.0, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 5_000), data=st.data())
def test_wilsons_interval_holds_the_rate_and_lies_inside_0_and_1(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    rate = wilson(k, n)
    assert rate.low is not None
    assert rate.high is not None
    assert 0 <= rate.low <= k / n <= rate.high <= 1
    mirrored = wilson(n - k, n)
    assert mirrored.high is not None
    assert abs(mirrored.high - (1 - rate.low)) < 1e-12
    # The exact interval is the wider one on the side away from the middle.
    low, high = clopper_pearson(k, n)
    assert low <= rate.high
    assert rate.low <= high


@settings(max_examples=100, deadline=None)
@given(k=st.integers(0, 50), n=st.integers(50, 500))
def test_more_files_of_the_same_rate_narrow_the_interval(k: int, n: int) -> None:
    one, ten = wilson(k, n), wilson(10 * k, 10 * n)
    assert one.low is not None
    assert one.high is not None
    assert ten.low is not None
    assert ten.high is not None
    assert ten.high - ten.low < one.high - one.low


@settings(max_examples=150, deadline=None)
@given(masks=MASKS)
def test_f1_lies_between_precision_and_recall_and_is_the_same_both_ways(masks: tuple[list[bool], list[bool]]) -> None:
    found, true = (np.array(mask) for mask in masks)
    one, other = overlap(found, true), overlap(true, found)
    if one.f1 is not None and other.f1 is not None:
        assert one.f1 == other.f1
    if one.f1 is not None and one.precision is not None and one.recall is not None:
        assert min(one.precision, one.recall) - 1e-12 <= one.f1 <= max(one.precision, one.recall) + 1e-12
    if true.any():
        better = overlap(found | true, true)
        assert better.f1 is not None
        assert one.f1 is not None
        assert better.f1 >= one.f1


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=80))
def test_the_interval_of_a_median_holds_the_median(values: list[float]) -> None:
    bounds = median_interval(values)
    if bounds is not None:
        assert bounds[0] <= float(np.median(values)) <= bounds[1]
    assert (bounds is not None) == (len(values) >= 6)


@settings(max_examples=80, deadline=None)
@given(cases=st.lists(st.tuples(st.floats(1e-6, 1e-1), st.booleans()), min_size=1, max_size=40), order=st.randoms())
def test_a_detection_curve_rises_and_does_not_depend_on_order_or_unit(
    cases: list[tuple[float, bool]], order: np.random.Generator
) -> None:
    curve = probit([level for level, _ in cases], [hit for _, hit in cases])
    shuffled = list(cases)
    order.shuffle(shuffled)
    again = probit([level for level, _ in shuffled], [hit for _, hit in shuffled])
    assert (curve.lod is None) == (again.lod is None)
    percent = probit([100 * level for level, _ in cases], [hit for _, hit in cases])
    assert (curve.lod is None) == (percent.lod is None)
    if curve.lod is not None and again.lod is not None and percent.lod is not None:
        assert curve.slope is not None
        assert curve.slope > 0
        assert np.isclose(np.log10(curve.lod), np.log10(again.lod), atol=1e-5)
        if 1e-200 < curve.lod < 1e200:
            assert np.isclose(np.log10(percent.lod), np.log10(curve.lod) + 2, atol=1e-3)
        assert curve.low is not None
        assert curve.high is not None
        assert curve.low <= curve.lod <= curve.high
    else:
        assert curve.note


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=2, max_size=40), factor=st.floats(0.1, 10))
def test_scaling_every_estimate_moves_the_bias_and_nothing_else(
    pairs: list[tuple[float, float]], factor: float
) -> None:
    truth, estimate = [t for t, _ in pairs], [e for _, e in pairs]
    one, scaled = agreement(truth, estimate), agreement(truth, [factor * value for value in estimate])
    assert one.bias is not None
    assert scaled.bias is not None
    assert np.isclose(scaled.bias - one.bias, np.log10(factor), atol=1e-9)
    assert one.sd is not None
    assert scaled.sd is not None
    assert np.isclose(one.sd, scaled.sd, atol=1e-9)
    if one.r2 is not None and scaled.r2 is not None:
        assert np.isclose(one.r2, scaled.r2, atol=1e-6)
        assert 0 <= one.r2 <= 1
    if one.r2_identity is not None:
        assert one.r2_identity <= 1


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.sampled_from(["blast", "nonB", "normal_B", "T cell"]), min_size=1, max_size=4, unique=True),
    others=st.lists(st.sampled_from(["blast", "nonB", "normal_B", "T cell"]), min_size=1, max_size=4, unique=True),
)
def test_the_reading_of_a_batch_does_not_depend_on_the_order_of_its_files(values: list[str], others: list[str]) -> None:
    batch = [Survey(column="x", values=tuple(one), kind="words", rows=1, sha256="") for one in (values, others)]
    if "blast" in {*values, *others}:
        assert choose_positive(batch, DEFAULTS, ()) == (("blast",), ())
        assert choose_positive(batch[::-1], DEFAULTS, ()) == (("blast",), ())
