"""Laws of rare counts: the interval covers, limits improve with events, categories follow one another."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.quantification import rare_events as rare
from flowmrd.quantification.rare_events import Category, Negativity, RareEventRules, measure_mrd

DENOMINATORS = st.integers(1, 10_000_000)
RULES = st.tuples(st.integers(1, 60), st.integers(0, 60)).map(
    lambda pair: RareEventRules(lod_events=pair[0], lloq_events=pair[0] + pair[1])
)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    size = draw(DENOMINATORS)
    return draw(st.one_of(st.integers(0, min(200, size)), st.integers(0, size))), size


def measure(n: int, size: int, rules: RareEventRules, *, independent: bool = True) -> rare.MrdResult:
    return measure_mrd(
        numerator_events=n, denominator_events=size, rules=rules, cd19_independent=independent, after_cd19_therapy=True
    )


@settings(max_examples=150, deadline=None)
@given(pair=counts())
def test_every_interval_contains_the_fraction(pair: tuple[int, int]) -> None:
    n, size = pair
    low, high = rare.clopper_pearson(n, size)
    assert 0 <= low <= n / size <= high <= 1
    assert rare.upper_limit(n, size) <= high + 1e-15
    poisson_low, poisson_high = rare.poisson_interval(n, size)
    assert poisson_low <= n / size <= poisson_high


@settings(max_examples=60, deadline=None)
@given(pair=counts())
def test_the_exact_interval_is_the_one_of_its_definition(pair: tuple[int, int]) -> None:
    from scipy.special import bdtr, bdtrc

    n, size = pair
    low, high = rare.clopper_pearson(n, size)
    if 0 < n < size:
        assert bdtrc(n - 1, size, low) == pytest.approx(0.025, rel=1e-6)
        assert bdtr(n, size, high) == pytest.approx(0.025, rel=1e-6)


@settings(max_examples=80, deadline=None)
@given(size=DENOMINATORS, more=st.integers(0, 1_000_000), rules=RULES)
def test_more_events_never_raise_the_lod(size: int, more: int, rules: RareEventRules) -> None:
    before, after = measure(0, size, rules), measure(0, size + more, rules)
    assert before.lod_fraction is not None
    assert after.lod_fraction is not None
    assert after.lod_fraction <= before.lod_fraction


@settings(max_examples=150, deadline=None)
@given(pair=counts(), rules=RULES, independent=st.booleans())
def test_a_category_never_comes_without_its_limits_and_never_says_more_than_the_counts(
    pair: tuple[int, int], rules: RareEventRules, *, independent: bool
) -> None:
    n, size = pair
    result = measure(n, size, rules, independent=independent)
    assert result.lod_fraction is not None
    assert (result.category is Category.QUANTIFIABLE) == (n >= rules.lloq_events)
    assert (n < rules.lod_events) == (result.category.value.startswith("UNDETECTED"))
    if result.mrd_neg_1e4 is Negativity.YES:
        assert independent
        assert result.lod_fraction <= rules.target_fraction
        assert n < rules.lod_events or n / size < rules.target_fraction
    assert math.isclose(result.value_percent or 0.0, 100 * n / size if n >= rules.lloq_events else 0.0)
    assert "nan" not in result.wording


@settings(max_examples=80, deadline=None)
@given(pair=counts(), more=st.integers(1, 1000), rules=RULES)
def test_more_blasts_never_turn_a_no_into_a_yes(pair: tuple[int, int], more: int, rules: RareEventRules) -> None:
    n, size = pair
    more = min(more, size - n)
    if measure(n, size, rules).mrd_neg_1e4 is Negativity.NO:
        assert measure(n + more, size, rules).mrd_neg_1e4 is Negativity.NO


@settings(max_examples=60, deadline=None)
@given(events=st.integers(1, 200), target=st.floats(1e-7, 0.5))
def test_the_required_denominator_gives_its_assurance(events: int, target: float) -> None:
    from scipy.special import pdtrc

    needed = rare.required_denominator(events, target_fraction=target)
    assert pdtrc(events - 1, needed.expected_events) == pytest.approx(0.95, rel=1e-9)
    assert needed.denominator_events >= needed.min_denominator
    assert needed.denominator_events * target >= needed.expected_events * (1 - 1e-11)
