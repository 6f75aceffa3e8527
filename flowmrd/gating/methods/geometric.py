"""Gates given by numbers: whole, interval, rectangle, quadrant, polygon, ellipse, boolean.

A number may be borrowed from a value that another gate found: `"cd19.cut"`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from flowmrd.errors import GatingError
from flowmrd.gating.gates import Boolean, Ellipsoid, Gate, Polygon, Rectangle, Whole
from flowmrd.gating.methods import Found, GateMethod, Params

Number = float | str
Values = Mapping[str, Mapping[str, float]]


def borrowed(value: Number | None, found: Values, missing: float) -> float:
    """Return a number, looking up `population.value` where a name is given."""
    if value is None:
        return missing
    if isinstance(value, str):
        population, _, name = value.partition(".")
        try:
            return found[population][name]
        except KeyError:
            raise GatingError(f"{value} was not found on this file") from None
    return float(value)


def lenders(*values: Number | None) -> tuple[str, ...]:
    """Return the populations that the given numbers are borrowed from."""
    return tuple(sorted({value.partition(".")[0] for value in values if isinstance(value, str)}))


class WholeParams(Params):
    """No parameters."""


def _whole(_markers: tuple[str, ...], _params: Any, _found: Found, _values: Values) -> Gate:
    return Whole()


class IntervalParams(Params):
    """`low <= x < high`; a missing side is open."""

    low: Number | None = None
    high: Number | None = None


def _interval(markers: tuple[str, ...], params: IntervalParams, _found: Found, values: Values) -> Gate:
    low, high = borrowed(params.low, values, -math.inf), borrowed(params.high, values, math.inf)
    return Rectangle(markers=markers, low=(low,), high=(high,))


class RectangleParams(Params):
    """Sides by marker; a missing side is open."""

    low: dict[str, Number] = Field(default_factory=dict)
    high: dict[str, Number] = Field(default_factory=dict)


def _rectangle(markers: tuple[str, ...], params: RectangleParams, _found: Found, values: Values) -> Gate:
    return Rectangle(
        markers=markers,
        low=tuple(borrowed(params.low.get(m), values, -math.inf) for m in markers),
        high=tuple(borrowed(params.high.get(m), values, math.inf) for m in markers),
    )


class QuadrantParams(Params):
    """Dividers of two markers and the quadrant to keep: `++`, `+-`, `-+` or `--`."""

    x: Number
    y: Number
    quadrant: Literal["++", "+-", "-+", "--"]


def _quadrant(markers: tuple[str, ...], params: QuadrantParams, _found: Found, values: Values) -> Gate:
    dividers = (borrowed(params.x, values, 0.0), borrowed(params.y, values, 0.0))
    low = tuple(d if s == "+" else -math.inf for d, s in zip(dividers, params.quadrant, strict=True))
    high = tuple(math.inf if s == "+" else d for d, s in zip(dividers, params.quadrant, strict=True))
    return Rectangle(markers=markers, low=low, high=high)


class PolygonParams(Params):
    """At least three (x, y) vertices.

    `shift` moves the polygon, mostly to a value found on this file, so that a shape drawn around a reference population
    follows its staining: `shift = [0.0, "cd58_ruler.cut"]`. `closed` takes in every event on an edge, as Gating-ML
    does; otherwise the right and upper edges belong to the neighbour.
    """

    vertices: tuple[tuple[float, float], ...] = Field(min_length=3)
    shift: tuple[Number, Number] = (0.0, 0.0)
    closed: bool = False


def _polygon(markers: tuple[str, ...], params: PolygonParams, _found: Found, values: Values) -> Gate:
    right, up = (borrowed(side, values, 0.0) for side in params.shift)
    return Polygon(
        markers=(markers[0], markers[1]),
        vertices=tuple((x + right, y + up) for x, y in params.vertices),
        closed=params.closed,
    )


class EllipseParams(Params):
    """Centre, covariance and the squared distance that bounds it."""

    mean: tuple[float, ...] = Field(min_length=2)
    covariance: tuple[tuple[float, ...], ...] = Field()
    distance_square: float = Field(gt=0)

    @model_validator(mode="after")
    def _is_positive_definite(self) -> EllipseParams:
        import numpy as np

        matrix = np.asarray(self.covariance)
        size = len(self.mean)
        if matrix.shape != (size, size) or not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix).min() <= 0:
            raise ValueError("covariance must be a symmetric positive-definite matrix of the mean's size")
        return self


def _ellipse(markers: tuple[str, ...], params: EllipseParams, _found: Found, _values: Values) -> Gate:
    return Ellipsoid(
        markers=markers, mean=params.mean, covariance=params.covariance, distance_square=params.distance_square
    )


class BooleanParams(Params):
    """Populations joined by `and` or `or`; a leading `!` complements one."""

    operator: Literal["and", "or"]
    populations: tuple[str, ...] = Field(min_length=1)
    # A population that a file's panel cannot evaluate drops out of an `or`.


def _boolean(_markers: tuple[str, ...], params: BooleanParams, _found: Found, _values: Values) -> Gate:
    return Boolean(
        operator=params.operator,
        operands=tuple((name.removeprefix("!"), name.startswith("!")) for name in params.populations),
    )


METHODS = (
    GateMethod(name="whole", params=WholeParams, build=_whole),
    GateMethod(name="interval", params=IntervalParams, build=_interval, borrows=lambda p: lenders(p.low, p.high)),
    GateMethod(
        name="rectangle",
        params=RectangleParams,
        build=_rectangle,
        borrows=lambda p: lenders(*p.low.values(), *p.high.values()),
    ),
    GateMethod(name="quadrant", params=QuadrantParams, build=_quadrant, borrows=lambda p: lenders(p.x, p.y)),
    GateMethod(name="polygon", params=PolygonParams, build=_polygon, borrows=lambda p: lenders(*p.shift)),
    GateMethod(name="ellipse", params=EllipseParams, build=_ellipse),
    GateMethod(
        name="boolean",
        params=BooleanParams,
        build=_boolean,
    ),
)
