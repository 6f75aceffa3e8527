"""The histogram tools of the density methods say what scipy's say."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from flowmrd.gating.methods.density import BINS, WIDTH, peaks, smooth


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=3, max_size=60))
def test_peaks_are_those_of_scipy_plateaus_included(heights: list[int]) -> None:
    density = np.array(heights, np.float64)
    assert peaks(density).tolist() == find_peaks(density)[0].tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.002, 0.03))
def test_smoothing_is_that_of_scipy(seed: int, bandwidth: float) -> None:
    counts = np.random.default_rng(seed).poisson(3.0, BINS).astype(np.float64)
    expected = gaussian_filter1d(counts, bandwidth / WIDTH, mode="constant", truncate=4.0)
    np.testing.assert_allclose(smooth(counts, bandwidth), expected, atol=1e-11)
