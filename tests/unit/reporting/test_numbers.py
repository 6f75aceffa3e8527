"""Counts and shares as text."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.reporting import numbers
from flowmrd.reporting.numbers import (
    format_channel_value,
    format_count,
    format_percent,
    format_share,
    significant,
    supported_digits,
)


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(numbers).failed == 0


@pytest.mark.parametrize(
    ("events", "parent", "text"),
    [
        (0, 80_401, "0%"),
        (1, 80_401, "0.001%"),
        (20, 80_401, "0.02%"),
        (50, 500_000, "0.010%"),
        (16_189, 80_401, "20.1%"),
        (80_400, 80_401, "> 99.99%"),
        (80_401, 80_401, "100%"),
        (0, 0, "–"),
        (249_990, 5_000_000, "5.00%"),
    ],
)
def test_a_share_has_the_digits_that_its_count_supports(events: int, parent: int, text: str) -> None:
    assert format_share(events, parent) == text


@settings(max_examples=200, deadline=None)
@given(parent=st.integers(1, 10**7), share=st.floats(0, 1))
def test_a_share_reads_back_within_its_counting_error(parent: int, share: float) -> None:
    events = round(parent * share)
    text = format_share(events, parent)
    assert "e" not in text
    assert (text == "100%") == (events == parent)
    assert (text == "0%") == (events == 0)
    if text.startswith(">"):
        assert events / parent > 0.9999
    else:
        exact = 100 * events / parent
        digits = supported_digits(events)
        assert (
            abs(float(text.removesuffix("%")) - exact)
            <= 0.5 * 10 ** (math.floor(math.log10(exact)) - digits + 1 if events else 0) * (1 + 1e-9)
            or exact > 99
        )


@settings(max_examples=200, deadline=None)
@given(value=st.floats(1e-8, 1e7), digits=st.integers(1, 4))
def test_a_number_has_the_asked_digits_and_no_exponent(value: float, digits: int) -> None:
    text = significant(value, digits)
    shown = text.replace(".", "").lstrip("0")
    assert "e" not in text
    assert math.isclose(float(text), value, rel_tol=0.5000001 * 10 ** (1 - digits))
    assert len(shown) >= digits
    assert len(shown) == digits or "." not in text


def test_a_missing_count_or_fraction_is_a_dash() -> None:
    assert format_count(None) == "–"
    assert format_percent(None) == "–"


def test_channel_values_are_short_and_keep_their_sign() -> None:
    texts = [format_channel_value(v) for v in (-1e-12, 0.41234, 98.76, -1234.0, 262143.0, math.inf)]
    assert texts == ["0", "0.412", "98.8", "−1,230", "262,000", "∞"]
