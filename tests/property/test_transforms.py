"""Laws of the scales: monotone, inverse of inverse, parameters round trip."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.cytometry.transforms import Arcsinh, Bounded, Linear, Log, Logicle, Transform, make_transform, ticks


@st.composite
def logicles(draw: st.DrawFn) -> Logicle:
    M = draw(st.floats(3.0, 6.0))
    W = draw(st.floats(0.0, min(1.5, M / 2)))
    A = draw(st.floats(0.0, min(2.0, M - 2 * W)))
    return Logicle(T=draw(st.sampled_from([1024.0, 65536.0, 262144.0, 1048576.0, 16777216.0])), W=W, M=M, A=A)


def transforms() -> st.SearchStrategy[Transform]:
    top = st.floats(1.0, 1e7)
    decades = st.floats(2.0, 6.0)
    return st.one_of(
        logicles(),
        st.builds(Arcsinh, T=top, M=decades, A=st.floats(0.0, 2.0)),
        st.builds(Linear, T=top, A=st.just(0.0)),
        st.builds(Log, T=top, M=decades),
    )


@settings(max_examples=60, deadline=None)
@given(scale=transforms(), seed=st.integers(0, 2**32 - 1))
def test_inverse_of_forward_is_the_identity_on_the_scale(scale: Transform, seed: int) -> None:
    y = np.random.default_rng(seed).uniform(-0.1, 1.05, 500)
    assert np.abs(scale.forward(scale.inverse(y)) - y).max() <= 1e-9


@settings(max_examples=60, deadline=None)
@given(scale=transforms(), seed=st.integers(0, 2**32 - 1))
def test_more_light_never_has_a_lower_position(scale: Transform, seed: int) -> None:
    assert not isinstance(scale, Bounded)
    rng = np.random.default_rng(seed)
    x = np.sort(np.concatenate([rng.uniform(-scale.T, 5 * scale.T, 400), rng.normal(0, scale.T / 1e4, 400), [0.0]]))
    y = scale.forward(x)
    y = y[np.isfinite(y)]  # the log scale has no position for zero and below
    # Rounding may turn neighbours around by the last bits where the table's segments meet.
    assert np.diff(y).min() >= -1e-11


@settings(max_examples=40, deadline=None)
@given(scale=transforms())
def test_parameters_rebuild_the_same_scale(scale: Transform) -> None:
    assert make_transform(scale.params()) == scale


@settings(max_examples=40, deadline=None)
@given(scale=transforms(), lo=st.floats(-0.5, 0.8), width=st.floats(0.05, 1.5))
def test_ticks_lie_on_the_axis_in_order_without_repeats(scale: Transform, lo: float, width: float) -> None:
    major, minor = ticks(scale, lo, lo + width)
    positions = [position for position, _ in major]
    assert positions == sorted(set(positions))
    assert all(lo - 1e-9 <= position <= lo + width + 1e-9 for position in [*positions, *minor])
