"""The singlet band looks at sorted pairs: their order in the file and odd values cannot matter."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flowmrd.gating.methods import Sample
from flowmrd.gating.methods.scatter import SingletBandParams, _by_first, _find_band, _quantiles

floats = st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(values=floats, seed=st.integers(0, 9))
def test_pairs_come_in_ascending_order_and_stay_together(values: list[float], seed: int) -> None:
    x = np.array(values, np.float32)
    y = np.random.default_rng(seed).normal(size=x.size).astype(np.float32)
    first, second = _by_first(x, y)
    np.testing.assert_array_equal(first, np.sort(x))
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == sorted(zip(x.tolist(), y.tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(values=floats)
def test_quantiles_are_those_of_numpy(values: list[float]) -> None:
    x = np.sort(np.array(values, np.float32))
    shares = np.linspace(0.0, 1.0, 25)
    np.testing.assert_array_equal(_quantiles(x, shares), np.quantile(x.astype(np.float64), shares))


def sample(x: NDArray[np.float32], y: NDArray[np.float32]) -> Sample:
    return Sample(markers=("FSC-A", "FSC-H"), events={"FSC-A": x, "FSC-H": y}, references={}, found={}, count=x.size)


def test_event_order_and_values_that_are_not_numbers_do_not_move_the_band() -> None:
    rng = np.random.default_rng(5)
    x = rng.lognormal(-1.5, 0.4, 20_000).astype(np.float32)
    y = (0.9 * x * rng.lognormal(0, 0.03, x.size)).astype(np.float32)
    band = _find_band(sample(x, y), SingletBandParams())
    order = rng.permutation(x.size)
    assert _find_band(sample(x[order], y[order]), SingletBandParams()) == band
    odd = np.array([np.nan, 0.2, np.inf], np.float32), np.array([0.2, np.nan, -np.inf], np.float32)
    with_odd = _find_band(sample(np.append(x, odd[0]), np.append(y, odd[1])), SingletBandParams())
    assert with_odd.extra == band.extra
    assert with_odd.values["removed"] > band.values["removed"]
