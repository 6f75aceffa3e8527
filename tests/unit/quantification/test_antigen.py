"""Target antigens on blasts, by the numbers of the domain reference (2-antigen-loss 2.3)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta

from flowmrd.quantification.antigen import Presence, antigen_index, change, is_dim, load_antigen_rules, presence

T_CELLS: NDArray[np.float64] = np.linspace(-50.0, 150.0, 1001)


def blasts(positive: int, negative: int, *, at: float = 2000.0) -> NDArray[np.float64]:
    return np.concatenate([np.full(positive, at), np.zeros(negative)])


@pytest.mark.parametrize(
    ("positive", "of", "expected"),
    [(800, 1000, "pos"), (799, 1000, "partial"), (200, 1000, "partial"), (199, 1000, "neg"), (0, 60, "neg")],
)
def test_positive_from_eighty_and_partial_from_twenty_percent(positive: int, of: int, expected: str) -> None:
    index = antigen_index(blasts(positive, of - positive), T_CELLS)
    assert index.presence == expected
    assert index.share == positive / of


def test_the_threshold_is_the_99th_percentile_of_the_internal_negatives() -> None:
    index = antigen_index(blasts(3, 4), T_CELLS)
    assert index.threshold == np.quantile(T_CELLS, 0.99)
    assert index.negative_mfi == 50.0


def test_a_value_at_the_threshold_is_not_above_it() -> None:
    threshold = float(np.quantile(T_CELLS, 0.99))
    assert antigen_index(np.full(60, threshold), T_CELLS).presence == "neg"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_the_interval_is_exact_and_holds_the_share(positive: int, negative: int) -> None:
    index = antigen_index(blasts(positive, negative), T_CELLS)
    n = positive + negative
    if n == 0:
        assert (index.share, index.ci_low, index.presence) == (None, None, None)
        return
    assert index.ci_low is not None
    assert index.ci_high is not None
    assert index.share is not None
    assert index.ci_low <= index.share <= index.ci_high
    if positive:
        assert index.ci_low == pytest.approx(float(beta.ppf(0.025, positive, n - positive + 1)))
    if negative:
        assert index.ci_high == pytest.approx(float(beta.ppf(0.975, positive + 1, n - positive)))


def test_fewer_than_fifty_blasts_are_indicative_only() -> None:
    assert antigen_index(blasts(49, 0), T_CELLS).indicative
    assert not antigen_index(blasts(50, 0), T_CELLS).indicative


def test_dim_is_below_half_of_normal_b_cells_linear_and_of_the_positive_part_only() -> None:
    normal = np.full(80, 2000.0)
    # Half of the blasts are negative: the median of all would be dim, that of the positive part is not.
    assert antigen_index(blasts(50, 60, at=1001.0), T_CELLS, normal).dim is False
    assert antigen_index(blasts(50, 60, at=999.0), T_CELLS, normal).dim is True


def test_without_enough_normal_cells_or_positive_blasts_nothing_is_called_dim() -> None:
    assert antigen_index(blasts(50, 0, at=300.0), T_CELLS, np.full(49, 2000.0)).dim is None
    assert antigen_index(blasts(9, 50, at=300.0), T_CELLS, np.full(80, 2000.0)).dim is None
    assert antigen_index(blasts(50, 0, at=300.0), T_CELLS).dim is None
    assert is_dim(300.0, -5.0) is None


def test_without_enough_t_cells_there_is_no_threshold_and_no_status() -> None:
    index = antigen_index(blasts(60, 0), T_CELLS[:99])
    assert (index.threshold, index.share, index.presence, index.positive_events) == (None, None, None, None)
    assert index.mfi == 2000.0


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1))
def test_more_positive_blasts_never_lower_the_presence(share: float) -> None:
    order = [Presence.NEGATIVE, Presence.PARTIAL, Presence.POSITIVE]
    assert order.index(presence(share)) <= order.index(presence(min(1.0, share + 0.1)))


def test_a_change_has_no_value_against_a_baseline_at_or_below_zero() -> None:
    assert change(100.0, 0.0) is None
    assert change(None, 100.0) is None
    assert change(50.0, 200.0) == 0.25


def test_the_rules_name_their_version() -> None:
    assert load_antigen_rules().version == "1.0.0"
