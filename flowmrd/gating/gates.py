"""The closed set of gate geometries: containment and JSON form.

Coordinates are scaled units of named markers (0 … 1 spans the marker's display scale). Edges follow Gating-ML 2.0 and
FlowKit: a range is `low <= x < high`, an ellipsoid is `distance <= limit`; a polygon holds its left and lower edges and
not its right and upper ones (an event on the edge between two polygons is in one of them), as flowutils counts.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import GatingError

Values = Callable[[str], NDArray[np.float64]]
Mask = NDArray[np.bool_]

# How far two products of float64 differences can differ when the exact ones are equal.
_ROUNDING = 8 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Every event of the parent (a clean-up step that had nothing to work on)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """No event (a population that cannot be evaluated on this file)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """`low <= x < high` in each marker; an interval is a rectangle of one marker. Infinite sides are ±inf."""

    markers: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Several ranges of one marker, joined by *or* (kept stretches of time)."""

    marker: str
    ranges: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Polygon:
    """Inside a polygon, or on a left or lower edge; `vertices` are (x, y) pairs, joined last to first.

    With `closed`, events on any of its edges are inside, as Gating-ML 2.0 has it; without, neighbours share no event.
    Where the polygon crosses itself, events that it winds around an even number of times are outside.
    """

    markers: tuple[str, str]
    vertices: tuple[tuple[float, float], ...]
    closed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ellipsoid:
    """Squared Mahalanobis distance to `mean` under `covariance` at most `distance_square`."""

    markers: tuple[str, ...]
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    distance_square: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Boolean:
    """`and`, `or` or `not` over other populations; an operand may be complemented."""

    operator: str
    operands: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberList:
    """Events named one by one: what a search over many markers found, which no outline holds.

    `bits` are the zlib-compressed bits of all `event_count` events of the file, the first event in the highest bit of
    the first byte; `count` of them are set.
    """

    event_count: int
    count: int
    bits: bytes

    @property
    def mask(self) -> Mask:
        """Membership of every event of the file, (event_count,)."""
        packed = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        return np.unpackbits(packed, count=self.event_count).view(np.bool_)


def member_list(mask: Mask) -> MemberList:
    """Name the events of a mask over the whole file."""
    return MemberList(
        event_count=mask.size, count=int(np.count_nonzero(mask)), bits=zlib.compress(np.packbits(mask).tobytes(), 6)
    )


Gate = Whole | Nothing | Rectangle | Intervals | Polygon | Ellipsoid | Boolean | MemberList


def gate_markers(gate: Gate) -> tuple[str, ...]:
    """Markers whose values the gate needs."""
    match gate:
        case Rectangle() | Polygon() | Ellipsoid():
            return gate.markers
        case Intervals():
            return (gate.marker,)
        case _:
            return ()


def contains(gate: Gate, values: Values, size: int) -> Mask:
    """Say for each event whether the gate holds it.

    Parameters
    ----------
    gate : any gate but `Boolean`, whose operands are populations and live in the engine
    values : marker → scaled values (size,)
    size : number of events
    """
    match gate:
        case Whole():
            return np.ones(size, np.bool_)
        case Nothing():
            return np.zeros(size, np.bool_)
        case Rectangle(markers=markers, low=low, high=high):
            mask: Mask | None = None
            for marker, lo, hi in zip(markers, low, high, strict=True):
                x = values(marker)
                if lo > -math.inf:
                    side = x >= lo
                    mask = side if mask is None else np.logical_and(mask, side, out=mask)
                if hi < math.inf:
                    side = x < hi
                    mask = side if mask is None else np.logical_and(mask, side, out=mask)
                if lo == -math.inf and hi == math.inf:
                    continue
            return np.ones(size, np.bool_) if mask is None else mask
        case Intervals(marker=marker, ranges=ranges):
            x = values(marker)
            mask = np.zeros(size, np.bool_)
            least, most = (np.fmin.reduce(x), np.fmax.reduce(x)) if size else (0.0, 0.0)
            for lo, hi in ranges:
                # Of the stretches of a long run a block of events meets one or two.
                if lo <= most and hi > least:
                    mask |= (x >= lo) & (x < hi)
            return mask
        case Polygon(markers=markers):
            return _in_polygon(gate, values(markers[0]), values(markers[1]))
        case Ellipsoid():
            return _in_ellipsoid(gate, values)
        case Boolean():
            raise GatingError("a boolean gate is evaluated by the engine, over populations")
        case MemberList():
            raise GatingError("a list of events is evaluated by the engine, over the whole file")


def _in_polygon(gate: Polygon, x: NDArray[np.float64], y: NDArray[np.float64]) -> Mask:
    corners = np.asarray(gate.vertices, np.float64)
    low, high = corners.min(axis=0), corners.max(axis=0)
    # Most events of a parent lie outside the polygon's box; the exact test is only for the rest.
    box: Mask = (x >= low[0]) & (x <= high[0]) & (y >= low[1]) & (y <= high[1])
    rows = np.flatnonzero(box)
    if rows.size:
        box[rows] = points_in_polygon(corners, x[rows], y[rows], closed=gate.closed)
    return box


def points_in_polygon(
    corners: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64], *, closed: bool = False
) -> Mask:
    """Say exactly which points a polygon of `corners` (v, 2) holds (flowutils' winding count, odd is inside).

    That count leaves out the upper and right edges; with `closed`, points on any edge, to within the rounding of their
    own coordinates, are inside.
    """
    from flowutils.gating import points_in_polygon as wound

    points = np.empty((x.size, 2))
    points[:, 0] = x
    points[:, 1] = y
    inside: Mask = wound(corners, points)
    if closed:
        outside = np.flatnonzero(~inside)
        inside[outside] = _on_edge(corners, x[outside], y[outside])
    return inside


def _on_edge(corners: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> Mask:
    """Say which points lie on an edge: the cross product with it is zero, as far as its two products are known."""
    order = np.argsort(y, kind="stable")
    x, y = x[order], y[order]
    found = np.zeros(x.size, np.bool_)
    ends = np.roll(corners, -1, axis=0)
    first = np.searchsorted(y, np.minimum(corners[:, 1], ends[:, 1]), side="left")
    last = np.searchsorted(y, np.maximum(corners[:, 1], ends[:, 1]), side="right")
    for edge in np.flatnonzero(first < last):
        (x0, y0), (x1, y1) = corners[edge], ends[edge]
        near = slice(first[edge], last[edge])
        left, right = (x1 - x0) * (y[near] - y0), (x[near] - x0) * (y1 - y0)
        level = np.abs(left - right) <= _ROUNDING * (np.abs(left) + np.abs(right))
        found[near] |= level & (x[near] >= min(x0, x1)) & (x[near] <= max(x0, x1))
    answer = np.empty_like(found)
    answer[order] = found
    return answer


def _in_ellipsoid(gate: Ellipsoid, values: Values) -> Mask:
    # Sums in a fixed order, so that an event's side does not depend on the events beside it.
    centred = [values(marker) - middle for marker, middle in zip(gate.markers, gate.mean, strict=True)]
    inverse = np.linalg.inv(np.asarray(gate.covariance))
    distance = np.zeros(centred[0].size)
    for row, left in zip(inverse, centred, strict=True):
        along = row[0] * centred[0]
        for weight, right in zip(row[1:], centred[1:], strict=True):
            along += weight * right
        along *= left
        distance += along
    inside: Mask = distance <= gate.distance_square
    return inside


def in_standard_deviations(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a covariance matrix (n, n) with each axis in its own standard deviations: the correlations.

    Whether a matrix is singular or positive definite does not depend on the units of the axes; the numerical answer
    does.
    """
    widths = np.sqrt(np.abs(np.diag(covariance)))
    widths[widths == 0] = 1.0
    return np.asarray(covariance / np.outer(widths, widths), np.float64)


def gate_to_json(gate: Gate) -> dict[str, object]:
    """Return the gate as plain values; infinities become `None`."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    match gate:
        case Whole():
            return {"kind": "whole"}
        case Nothing():
            return {"kind": "nothing"}
        case Rectangle():
            return {
                "kind": "rectangle",
                "markers": list(gate.markers),
                "low": [number(v) for v in gate.low],
                "high": [number(v) for v in gate.high],
            }
        case Intervals():
            return {
                "kind": "intervals",
                "marker": gate.marker,
                "ranges": [[number(lo), number(hi)] for lo, hi in gate.ranges],
            }
        case Polygon():
            edges: dict[str, object] = {"closed": True} if gate.closed else {}
            vertices = [list(v) for v in gate.vertices]
            return {"kind": "polygon", "markers": list(gate.markers), "vertices": vertices, **edges}
        case Ellipsoid():
            return {
                "kind": "ellipsoid",
                "markers": list(gate.markers),
                "mean": list(gate.mean),
                "covariance": [list(row) for row in gate.covariance],
                "distance_square": gate.distance_square,
            }
        case Boolean():
            return {
                "kind": "boolean",
                "operator": gate.operator,
                "operands": [{"population": name, "complement": flag} for name, flag in gate.operands],
            }
        case MemberList():
            return {
                "kind": "members",
                "events": gate.event_count,
                "count": gate.count,
                "bits": base64.b64encode(gate.bits).decode("ascii"),
            }


def gate_from_json(data: Mapping[str, object]) -> Gate:
    """Rebuild a gate from `gate_to_json`.

    Raises
    ------
    GatingError
        The kind is unknown.
    """
    d: dict[str, object] = dict(data)

    def floats(key: str, missing: float) -> tuple[float, ...]:
        items = d[key]
        assert isinstance(items, Sequence)
        return tuple(missing if v is None else float(v) for v in items)

    def strings(key: str) -> tuple[str, ...]:
        items = d[key]
        assert isinstance(items, Sequence)
        return tuple(str(v) for v in items)

    match d.get("kind"):
        case "whole":
            return Whole()
        case "nothing":
            return Nothing()
        case "rectangle":
            return Rectangle(markers=strings("markers"), low=floats("low", -math.inf), high=floats("high", math.inf))
        case "intervals":
            ranges = d["ranges"]
            assert isinstance(ranges, Sequence)
            return Intervals(
                marker=str(d["marker"]),
                ranges=tuple(
                    (-math.inf if a is None else float(a), math.inf if b is None else float(b)) for a, b in ranges
                ),
            )
        case "polygon":
            first, second = strings("markers")
            vertices = d["vertices"]
            assert isinstance(vertices, Sequence)
            return Polygon(
                markers=(first, second),
                vertices=tuple((float(x), float(y)) for x, y in vertices),
                closed=bool(d.get("closed", False)),
            )
        case "ellipsoid":
            covariance, limit = d["covariance"], d["distance_square"]
            assert isinstance(covariance, Sequence)
            assert isinstance(limit, int | float)
            return Ellipsoid(
                markers=strings("markers"),
                mean=floats("mean", math.nan),
                covariance=tuple(tuple(float(v) for v in row) for row in covariance),
                distance_square=float(limit),
            )
        case "boolean":
            operands = d["operands"]
            assert isinstance(operands, Sequence)
            return Boolean(
                operator=str(d["operator"]),
                operands=tuple((str(o["population"]), bool(o["complement"])) for o in operands),
            )
        case "members":
            return _members_from_json(d)
        case kind:
            raise GatingError(f"unknown gate kind {kind!r}")


def _members_from_json(data: Mapping[str, object]) -> MemberList:
    events, count = data["events"], data["count"]
    assert isinstance(events, int)
    assert isinstance(count, int)
    bits = base64.b64decode(str(data["bits"]), validate=True)
    # The length is checked while unpacking, so that a small text cannot fill the memory.
    unpacked = zlib.decompressobj().decompress(bits, (events + 7) // 8 + 1)
    wanted = (events + 7) // 8
    if len(unpacked) != wanted:
        raise GatingError(f"a list of events holds {len(unpacked)} bytes, {wanted} expected for {events} events")
    gate = member_list(np.unpackbits(np.frombuffer(unpacked, np.uint8), count=events).view(np.bool_))
    if gate.count != count:
        raise GatingError(f"a list of events names {gate.count} events, {count} stated")
    return gate
