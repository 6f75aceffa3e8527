"""The closed set of gates: which side an edge belongs to, and the JSON form."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.errors import GatingError
from flowmrd.gating.gates import (
    Boolean,
    Ellipsoid,
    Gate,
    Intervals,
    Nothing,
    Polygon,
    Rectangle,
    Whole,
    contains,
    gate_from_json,
    gate_markers,
    gate_to_json,
    points_in_polygon,
)

INF = math.inf


def inside(gate: Gate, **columns: list[float]) -> list[bool]:
    values = {marker: np.asarray(column, np.float64) for marker, column in columns.items()}
    size = next(iter(values.values())).size
    return [bool(one) for one in contains(gate, lambda marker: values[marker], size)]


def test_a_range_holds_its_low_end_and_not_its_high_end() -> None:
    gate = Rectangle(markers=("x",), low=(0.2,), high=(0.6,))
    assert inside(gate, x=[0.2, np.nextafter(0.2, 0), 0.6, np.nextafter(0.6, 0), math.nan]) == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_an_open_side_holds_everything_on_it() -> None:
    gate = Rectangle(markers=("x", "y"), low=(-INF, 0.5), high=(INF, INF))
    assert inside(gate, x=[-9.0, 9.0, 0.0], y=[0.5, 0.4, 7.0]) == [True, False, True]
    assert inside(Rectangle(markers=("x",), low=(-INF,), high=(INF,)), x=[-9.0, 9.0]) == [True, True]


def test_neighbouring_stretches_share_no_event_and_lose_none() -> None:
    gate = Intervals(marker="t", ranges=((-INF, 1.0), (2.0, 3.0), (3.0, 4.0)))
    assert inside(gate, t=[0.0, 1.0, 1.5, 2.0, 3.0, 4.0]) == [True, False, False, True, True, False]


def test_whole_and_nothing_need_no_values() -> None:
    assert inside(Whole(), x=[0.0, math.nan]) == [True, True]
    assert inside(Nothing(), x=[0.0, 1.0]) == [False, False]
    assert gate_markers(Whole()) == gate_markers(Nothing()) == gate_markers(Boolean(operator="or", operands=())) == ()


SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


def test_a_polygon_holds_its_left_and_lower_edges_so_that_neighbours_share_no_event() -> None:
    gate = Polygon(markers=("x", "y"), vertices=SQUARE)
    corners = {"x": [0.0, 1.0, 1.0, 0.0], "y": [0.0, 0.0, 1.0, 1.0]}
    assert inside(gate, **corners) == [True, False, False, False]
    edges = {"x": [0.0, 0.5, 1.0, 0.5, 0.5], "y": [0.5, 0.0, 0.5, 1.0, 0.5]}
    assert inside(gate, **edges) == [True, True, False, False, True]
    right = Polygon(markers=("x", "y"), vertices=tuple((x + 1.0, y) for x, y in SQUARE))
    assert inside(right, **edges) == [False, False, True, False, False]


@pytest.mark.parametrize(
    "vertices",
    [
        SQUARE,
        tuple(reversed(SQUARE)),
        ((0.1, 0.1), (0.9, 0.2), (0.5, 0.5), (0.8, 0.9), (0.2, 0.8)),  # a dent
        ((0.1, 0.1), (0.9, 0.9), (0.9, 0.1), (0.1, 0.9)),  # crosses itself
    ],
)
def test_a_polygon_agrees_with_flowutils_inside_outside_and_on_its_edge(
    vertices: tuple[tuple[float, float], ...],
) -> None:
    corners = np.asarray(vertices)
    rng = np.random.default_rng(3)
    along = rng.random((len(corners), 50))[..., None]
    on_edge = (corners[:, None] * (1 - along) + np.roll(corners, -1, axis=0)[:, None] * along).reshape(-1, 2)
    points: NDArray[np.float64] = np.concatenate([rng.random((2000, 2)) * 1.2 - 0.1, on_edge, corners])
    gate = Polygon(markers=("x", "y"), vertices=vertices)
    found = contains(gate, lambda marker: points[:, 0] if marker == "x" else points[:, 1], len(points))
    np.testing.assert_array_equal(found, points_in_polygon(corners, points[:, 0], points[:, 1]))
    assert found.any()
    assert not found.all()


def test_an_ellipsoid_holds_its_border() -> None:
    gate = Ellipsoid(markers=("x", "y"), mean=(0.0, 0.0), covariance=((4.0, 0.0), (0.0, 1.0)), distance_square=1.0)
    assert inside(gate, x=[2.0, 0.0, 2.0, 2.0000001], y=[0.0, 1.0, 0.1, 0.0]) == [True, True, False, False]


def test_an_ellipsoid_may_have_more_than_two_markers() -> None:
    unit = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    gate = Ellipsoid(markers=("x", "y", "z"), mean=(0.0, 0.0, 0.0), covariance=unit, distance_square=1.0)
    assert inside(gate, x=[0.5, 0.6], y=[0.5, 0.6], z=[0.5, 0.6]) == [True, False]


def test_a_boolean_gate_is_not_evaluated_on_values() -> None:
    with pytest.raises(GatingError, match=r"^a boolean gate is evaluated by the engine, over populations$"):
        inside(Boolean(operator="and", operands=(("a", False),)), x=[1.0])


@pytest.mark.parametrize(
    "gate",
    [
        Whole(),
        Nothing(),
        Rectangle(markers=("CD19", "CD10"), low=(0.1, -INF), high=(INF, 0.123456789012345)),
        Intervals(marker="Time", ranges=((-INF, 1.5), (2.25, INF))),
        Polygon(markers=("CD10", "CD45"), vertices=((0.1, 0.2), (0.3, 0.4), (1 / 3, 0.7))),
        Ellipsoid(markers=("x", "y"), mean=(0.1, 0.2), covariance=((0.01, 0.002), (0.002, 0.03)), distance_square=5.99),
        Boolean(operator="or", operands=(("blasts", False), ("hematogones", True))),
    ],
    ids=lambda gate: type(gate).__name__,
)
def test_a_gate_survives_json_bit_for_bit(gate: Gate) -> None:
    assert gate_from_json(json.loads(json.dumps(gate_to_json(gate), allow_nan=False))) == gate


def test_an_unknown_kind_of_gate_is_refused() -> None:
    with pytest.raises(GatingError, match=r"^unknown gate kind 'spline'$"):
        gate_from_json({"kind": "spline"})
