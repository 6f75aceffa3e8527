"""Placing the labels of gates."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flowmrd.reporting.labels import Placement, place_labels

Floats = NDArray[np.float64]
EMPTY, NOWHERE = np.zeros((16, 16)), np.zeros((16, 16), np.bool_)


def box(x0: float, x1: float, y0: float, y1: float) -> Floats:
    return np.array([[x0, x1, x1, x0], [y0, y0, y1, y1]])


def place(
    outlines: list[Floats], size: tuple[float, float] = (0.3, 0.12), busy: Floats = EMPTY
) -> tuple[Placement, ...]:
    count = len(outlines)
    return place_labels(outlines, [size] * count, busy, NOWHERE, open_sided=[False] * count)


def overlap(a: Placement, b: Placement) -> bool:
    return min(a.box[2], b.box[2]) > max(a.box[0], b.box[0]) and min(a.box[3], b.box[3]) > max(a.box[1], b.box[1])


@settings(max_examples=40, deadline=None)
@given(
    gates=st.lists(
        st.tuples(st.floats(0, 0.9), st.floats(0.02, 0.6), st.floats(0, 0.9), st.floats(0.02, 0.6)),
        min_size=1,
        max_size=6,
    )
)
def test_labels_stay_in_the_plot_and_off_one_another(gates: list[tuple[float, float, float, float]]) -> None:
    outlines = [box(x, min(1.0, x + w), y, min(1.0, y + h)) for x, w, y, h in gates]
    places = place(outlines)
    for one in places:
        assert one.box[0] >= 0
        assert one.box[1] >= 0
        assert one.box[2] <= 1
        assert one.box[3] <= 1
    assert not any(overlap(a, b) for i, a in enumerate(places) for b in places[:i])


@settings(max_examples=20, deadline=None)
@given(x=st.floats(0, 0.6), y=st.floats(0, 0.6), scale=st.floats(1.0, 3.0))
def test_on_a_larger_plot_a_label_stays_within_the_place_it_was_given(x: float, y: float, scale: float) -> None:
    (one,) = place([box(x, x + 0.3, y, y + 0.3)])
    width, height = 0.3 / scale, 0.12 / scale
    left = one.x - {"left": 0.0, "center": 0.5, "right": 1.0}[one.xanchor] * width
    bottom = one.y - {"bottom": 0.0, "middle": 0.5, "top": 1.0}[one.yanchor] * height
    assert left >= one.box[0] - 1e-9
    assert bottom >= one.box[1] - 1e-9
    assert left + width <= one.box[2] + 1e-9
    assert bottom + height <= one.box[3] + 1e-9


def test_a_large_empty_gate_is_labelled_inside() -> None:
    (one,) = place([box(0.2, 0.9, 0.2, 0.9)])
    assert one.box[0] >= 0.2
    assert one.box[2] <= 0.9
    assert one.leader is None


def test_the_label_of_an_open_gate_lies_on_its_own_side_of_the_line() -> None:
    busy = np.zeros((16, 16))
    busy[:, 8:] = 1.0  # all events are in the gate, and the empty side would be the easier place
    outlines = [box(0.5, 1.0, 0.0, 1.0)]
    (one,) = place_labels(outlines, [(0.3, 0.12)], busy, NOWHERE, open_sided=[True])
    assert one.box[0] >= 0.5


def test_a_label_keeps_off_the_events_that_must_be_seen() -> None:
    precious = np.zeros((16, 16), np.bool_)
    precious[10:14, 4:12] = True
    (one,) = place_labels([box(0.2, 0.8, 0.55, 0.95)], [(0.3, 0.12)], EMPTY, precious, open_sided=[False])
    rows = slice(math.floor(one.box[1] * 16), math.ceil(one.box[3] * 16))
    columns = slice(math.floor(one.box[0] * 16), math.ceil(one.box[2] * 16))
    assert not precious[rows, columns].any()


def test_a_gate_without_a_shape_still_gets_a_label() -> None:
    first, second = place([box(0.1, 0.4, 0.1, 0.4), np.zeros((2, 0))])
    assert not overlap(first, second)
    assert second.leader is None


def test_no_gates_need_no_labels() -> None:
    assert place([]) == ()
