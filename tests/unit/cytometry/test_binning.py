"""Display bins without scaling: the same bins as by scaling each value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.cytometry.binning import BINS, make_binner
from flowmrd.cytometry.transforms import Arcsinh, Linear, Log, Logicle, Transform

SCALES: tuple[Transform, ...] = (
    Logicle(T=262144.0, W=0.5, M=4.5, A=0.0),
    Logicle(T=1048576.0, W=1.0, M=4.5, A=0.5),
    Arcsinh(T=262144.0, M=4.5, A=1.0),
    Log(T=262144.0, M=4.5),
    Linear(T=262144.0),
    Linear(T=1000.0, A=100.0),
)


@settings(max_examples=60, deadline=None)
@given(
    transform=st.sampled_from(SCALES),
    lo=st.floats(-0.3, 0.4),
    span=st.floats(0.02, 1.5),
    seed=st.integers(0, 99),
)
def test_a_bin_is_that_of_the_scaled_value(transform: Transform, lo: float, span: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(3000) < 0.3, -1.0, 1.0) * 10 ** rng.uniform(-2, 6.5, 3000)
    values = values.astype(np.float32).astype(np.float64)
    place = (transform.forward(values) - lo) * (BINS / span)
    bins = make_binner(transform, lo, lo + span)(values)
    assert bins.dtype == np.uint8
    # A value may lie on either side of an edge that is as near as float32 can tell.
    with np.errstate(invalid="ignore"):
        near = transform.forward(values * (1 + 1e-6)) - transform.forward(values)
    step = np.nan_to_num(np.abs(near)) * BINS / span + 1e-6
    np.testing.assert_array_less(np.where(bins > 0, bins - step, -math.inf), np.maximum(place, -1e9) + 1e-9)
    np.testing.assert_array_less(np.minimum(place, 1e9), np.where(bins < BINS - 1, bins + 1 + step, math.inf))


@pytest.mark.parametrize("transform", SCALES, ids=lambda scale: scale.kind)
def test_values_off_the_axis_are_in_the_border_bins(transform: Transform) -> None:
    bins = make_binner(transform, 0.1, 0.9)(np.array([-math.inf, -1e30, 1e300, math.inf, math.nan]))
    assert bins.tolist() == [0, 0, 255, 255, 0]


def test_a_scale_too_steep_for_the_table_is_still_binned_right() -> None:
    # One upper half of a float32 spans several of these bins.
    transform = Logicle(T=262144.0, W=0.5, M=4.5, A=0.0)
    values = np.linspace(9000.0, 9100.0, 1001)
    lo, hi = (float(end) for end in transform.forward(np.array([9000.0, 9100.0])))
    bins = make_binner(transform, lo, hi)(values)
    np.testing.assert_array_equal(
        bins, np.clip((transform.forward(values) - lo) * (BINS / (hi - lo)), 0, 255).astype(int)
    )
