"""A gate made ready answers as the plain definition does, for every event, whatever stands beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flowmrd.cytometry.events import Block, Mixture, edge_on
from flowmrd.cytometry.transforms import Arcsinh, Linear, Log, Logicle, Transform
from flowmrd.gating.containment import Members, prepare, rasterise
from flowmrd.gating.gates import (
    Ellipsoid,
    Gate,
    Intervals,
    Mask,
    Nothing,
    Polygon,
    Rectangle,
    Whole,
    contains,
    points_in_polygon,
)

SCALES: Mapping[str, Transform] = {
    "logicle": Logicle(T=262144.0, W=0.8, M=4.5, A=0.0),
    "linear": Linear(T=262144.0),
    "arcsinh": Arcsinh(T=262144.0, M=4.5, A=1.0),
    "log": Log(T=262144.0, M=4.5),
}
MANY, FEW = 1_000_000, 1000  # events of a file, with and without rasters


class Foreign:
    """A scale that cannot be inverted."""

    def forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(np.abs(x)) / 512


def draw(seed: int, size: int) -> dict[str, NDArray[np.float64]]:
    """Values over the whole scale and beyond, some repeated, some not numbers."""
    rng = np.random.default_rng(seed)
    columns = {}
    for marker in (*SCALES, "foreign"):
        values = np.where(rng.random(size) < 0.3, -1.0, 1.0) * 10 ** rng.uniform(-1, 6, size)
        values[rng.random(size) < 0.2] = np.round(values[rng.random(size) < 0.2][:1], 0) if size else 0.0
        for odd in (math.nan, math.inf, -math.inf, 0.0):
            values[rng.random(size) < 0.01] = odd
        columns[marker] = values
    return columns


def make_block(columns: Mapping[str, NDArray[np.float64]]) -> Block:
    scales: dict[str, object] = {**SCALES, "foreign": Foreign()}
    return Block(columns, scales, next(iter(columns.values())).size)  # type: ignore[arg-type]


def expected(gate: Gate, block: Block, parent: Mask) -> Mask:
    with np.errstate(invalid="ignore"):
        return contains(gate, block.scaled, block.size) & parent


numbers = st.floats(-0.6, 1.6, allow_nan=False)
markers = st.sampled_from(("logicle", "linear", "arcsinh", "log", "foreign"))


@st.composite
def gates(draw_one: st.DrawFn) -> Gate:
    kind = draw_one(st.sampled_from(("rectangle", "polygon", "ellipsoid", "intervals")))
    first, second = draw_one(st.permutations(("logicle", "linear", "arcsinh", "log", "foreign")))[:2]
    a, b, c, d = (draw_one(numbers) for _ in range(4))
    if kind == "rectangle":
        open_low, open_high = draw_one(st.booleans()), draw_one(st.booleans())
        low = (-math.inf if open_low else min(a, b), min(c, d))
        return Rectangle(markers=(first, second), low=low, high=(max(a, b), math.inf if open_high else max(c, d)))
    if kind == "polygon":
        corners = draw_one(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=9))
        return Polygon(markers=(first, second), vertices=tuple(corners))
    if kind == "ellipsoid":
        wide, tall = 0.001 + a * a, 0.001 + b * b
        slant = 0.9 * math.sqrt(wide * tall) * math.copysign(1.0, c)
        covariance = ((wide, slant), (slant, tall))
        return Ellipsoid(markers=(first, second), mean=(c, d), covariance=covariance, distance_square=1.5)
    return Intervals(marker=first, ranges=tuple(sorted([(min(a, b), max(a, b)), (min(c, d), max(c, d))])))


@settings(max_examples=80, deadline=None)
@given(
    gate=gates(),
    seed=st.integers(0, 9),
    share=st.sampled_from((1.0, 0.6, 0.05, 0.0)),
    count=st.sampled_from((MANY, FEW)),
)
def test_a_prepared_gate_holds_the_events_that_its_definition_holds(
    gate: Gate, seed: int, share: float, count: int
) -> None:
    block = make_block(draw(seed, 600))
    parent = np.random.default_rng(seed).random(600) < share
    with np.errstate(invalid="ignore"):
        got = prepare(gate, block.transforms, event_count=count)(block, Members(parent))
    np.testing.assert_array_equal(got, expected(gate, block, parent))


@settings(max_examples=60, deadline=None)
@given(
    corners=st.lists(st.tuples(st.floats(-1, 2), st.floats(-1, 2)), min_size=3, max_size=12),
    seed=st.integers(0, 99),
    snap=st.sampled_from((0, 2, 1)),
)
def test_a_raster_agrees_with_the_exact_test_at_every_point(
    corners: list[tuple[float, float]], seed: int, snap: int
) -> None:
    polygon = np.array(corners)
    if snap:  # corners and points that fall together, upright and level edges
        polygon = polygon.round(snap)
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-1.5, 2.5, (2, 3000))
    if snap:
        x, y = x.round(snap), y.round(snap)
    x[: len(polygon)], y[: len(polygon)] = polygon.T
    np.testing.assert_array_equal(rasterise(polygon).holds(x, y), points_in_polygon(polygon, x, y))


@pytest.mark.parametrize("marker", sorted(SCALES))
def test_an_event_exactly_on_a_side_counts_as_the_scale_says(marker: str) -> None:
    values = np.array([0.5, 1.0, 2.0, 1000.0, 12345.678, 262144.0, 1e6, -3.0])
    scaled = SCALES[marker].forward(values)
    for value in scaled[np.isfinite(scaled)]:
        near = np.nextafter(values, math.inf), values, np.nextafter(values, -math.inf)
        block = Block({marker: np.concatenate(near)}, SCALES, 3 * values.size)
        edge = edge_on(SCALES[marker], float(value))
        np.testing.assert_array_equal(block.at_least(marker, edge), block.scaled(marker) >= value)
        np.testing.assert_array_equal(block.under(marker, edge), block.scaled(marker) < value)


def test_whole_and_nothing_keep_all_and_none_of_the_parent() -> None:
    block = make_block(draw(1, 50))
    parent = Members(np.arange(50) % 3 == 0)
    np.testing.assert_array_equal(prepare(Whole(), block.transforms, event_count=FEW)(block, parent), parent.mask)
    assert not prepare(Nothing(), block.transforms, event_count=FEW)(block, parent).any()


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 400), seed=st.integers(0, 99))
def test_a_compensated_value_does_not_depend_on_the_events_beside_it(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    detectors = rng.normal(0, 1e4, (9, size))
    weights = {"x": rng.normal(0, 1, 9)}
    whole = Block({}, SCALES, size, Mixture(detectors=detectors, weights=weights)).linear("x")
    rows = np.flatnonzero(rng.random(size) < rng.random())
    part = Block({}, SCALES, size, Mixture(detectors=detectors, weights=weights)).linear("x", rows)
    assert part.tobytes() == whole[rows].tobytes()
    np.testing.assert_allclose(whole, weights["x"] @ detectors, rtol=1e-9, atol=1e-6)
