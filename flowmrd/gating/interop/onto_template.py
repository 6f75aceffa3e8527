"""One gate of a foreign document on a template's markers and scales, so that it can stand in for a template's gate.

Channels are matched by what they hold: a marker is a dimension's if both are the same weighted sum of the file's
channels. Sides of rectangles keep every event on its side; where a polygon or an ellipse was drawn on another scale,
its edges are bent to follow that scale, to within `TOLERANCE` of the template's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.compensation import unmixing_matrix
from flowmrd.cytometry.events import DataState, EventSource
from flowmrd.cytometry.transforms import Bounded, Linear, Log, Transform
from flowmrd.errors import GatingError
from flowmrd.fcs import FcsFile
from flowmrd.gating.gates import Boolean, Ellipsoid, Gate, Intervals, Nothing, Polygon, Rectangle, Whole, gate_markers
from flowmrd.gating.interop.document import DimensionSource, ForeignGate, ForeignStrategy, Scale
from flowmrd.gating.interop.export import first_at, native_scale, straightened
from flowmrd.registry import nearest

F64 = NDArray[np.float64]

# How far, in scaled units, a bent edge may be from the true one: 1/4000 of a bin of a plot.
TOLERANCE = 1e-6
# Weights that differ by less are the same compensation: FACSDiva's documents hold four decimals of the file's matrix.
_SAME_WEIGHT = 2e-4
# A difference that is more than rounding of float64 is told.
_EXACT = 1e-9
_ELLIPSE_POINTS = 1024
# Edges are tried in this many pieces, so that a bend both ways is seen; not where a polygon has been cut up already.
_FIRST_PIECES = 16
_MANY = 100
_HALVINGS = 50
_NAMES = 12


def find_gate(strategy: ForeignStrategy, name: str) -> ForeignGate:
    """Return the gate of a name or `/`-path.

    Raises
    ------
    GatingError
        There is none, there are several of that name, or the reader left it out.
    """
    path = "/" + name.strip("/")
    hits = [one for one in strategy.gates if "/" + one.path.strip("/") == path]
    hits = hits or [one for one in strategy.gates if one.name == name]
    if len(hits) > 1:
        paths = ", ".join(one.path for one in hits[:_NAMES])
        raise GatingError(f"{strategy.source} has {len(hits)} gates named {name!r}; give one's path: {paths}")
    if hits:
        return hits[0]
    if any("/" + lost.strip("/") == path or lost.rpartition("/")[2] == name for lost in strategy.unread):
        raise GatingError(f"gate {name!r} of {strategy.source} could not be read")
    names = tuple(dict.fromkeys(one.name for one in strategy.gates))
    hint = nearest(name, names)
    more = ", …" if len(names) > _NAMES else ""
    raise GatingError(
        f"{strategy.source} has no gate {name!r}; it has {', '.join(names[:_NAMES]) or 'none'}{more}"
        + (f" ({hint})" if hint else "")
    )


def onto_template(one: ForeignGate, strategy: ForeignStrategy, fcs: FcsFile, source: EventSource) -> tuple[Gate, str]:
    """Return a foreign gate over a template's markers, and in words what is not exactly as it was drawn.

    Parameters
    ----------
    one : a gate of `strategy`; its ancestors are not part of it
    strategy : as read for `fcs`
    fcs : the file
    source : the template's panel, compensation and scales on that file

    Raises
    ------
    GatingError
        The gate is not geometric, or a dimension is a ratio, has no marker in the panel, is compensated otherwise than
        the template, or lies where the template's scale does not reach.
    """
    gate = one.gate
    if isinstance(gate, Boolean):
        raise GatingError(f"gate {one.name!r} is boolean; only a geometric gate can be taken")
    if isinstance(gate, Whole | Nothing):
        return gate, ""
    keys = tuple(dict.fromkeys(gate_markers(gate)))
    markers, note = _markers(keys, strategy, fcs, source)
    drawn = {key: _scale(key, strategy) for key in keys}
    shown = {key: source.transforms[markers[key]] for key in keys}
    if all(_same(drawn[key], shown[key]) for key in keys):
        return _renamed(gate, markers), note
    match gate:
        case Rectangle(markers=names, low=low, high=high):
            sides = [
                tuple(_side(v, drawn[key], shown[key], markers[key]) for key, v in zip(names, ends, strict=True))
                for ends in (low, high)
            ]
            return _renamed(replace(gate, low=sides[0], high=sides[1]), markers), note
        case Intervals(marker=key, ranges=ranges):
            moved = tuple(
                (_side(a, drawn[key], shown[key], markers[key]), _side(b, drawn[key], shown[key], markers[key]))
                for a, b in ranges
            )
            return _renamed(replace(gate, ranges=moved), markers), note
        case Ellipsoid() if all(_line(drawn[key]) and isinstance(shown[key], Linear) for key in keys):
            return _renamed(_stretched(gate, drawn, shown), markers), note
        case Ellipsoid():
            gate = _as_polygon(gate, one.name)
    bent = f"edges bent to this template's scales within {TOLERANCE:g}"
    return _renamed(_bent(gate, drawn, shown, one.name), markers), ", ".join(filter(None, (bent, note)))


def _markers(
    keys: Sequence[str], strategy: ForeignStrategy, fcs: FcsFile, source: EventSource
) -> tuple[dict[str, str], str]:
    """Return dimension key → marker of the panel that holds the same values, and by how much they may differ."""
    if source.state is DataState.SCALED:
        raise GatingError("the data are declared scaled; gates of another program lie on scales of their own")
    foreign = DimensionSource(fcs, strategy)
    unmixing = (
        np.eye(len(fcs.channels)) if source.spillover is None else unmixing_matrix(source.spillover, fcs.channels)
    )
    found: dict[str, str] = {}
    furthest = 0.0
    for key in keys:
        dimension = strategy.dimensions[key]
        if dimension.ratio is not None:
            raise GatingError(f"dimension {key!r} is a ratio of two channels, which a template does not have")
        if why := foreign.why_not(key):
            raise GatingError(why)
        try:
            weights = foreign.weights(key)
        except LookupError as error:
            raise GatingError(str(error.args[0])) from None
        columns = {marker: unmixing[:, channel.index] for marker, channel in source.panel.channels.items()}
        off = {marker: float(np.abs(own - weights).max()) for marker, own in columns.items()}
        best = min(off, key=off.__getitem__)
        if off[best] > _SAME_WEIGHT:
            # The channel that weighs most is the one that the dimension is about.
            index = int(np.argmax(np.abs(weights)))
            holds = next((m for m, channel in source.panel.channels.items() if channel.index == index), None)
            if holds is None:
                raise GatingError(f"the template's panel has no marker on channel {dimension.channel!r}")
            raise GatingError(
                f"channel {dimension.channel!r} ({holds}) is not compensated as here but by {dimension.compensation}"
            )
        found[key] = best
        furthest = max(furthest, off[best])
    if len(set(found.values())) < len(found):
        raise GatingError("two dimensions are the same channel")
    return found, f"the document's matrix differs by up to {furthest:.1g}" if furthest > _EXACT else ""


def _scale(key: str, strategy: ForeignStrategy) -> Scale | None:
    """Return the scale of a dimension, ours where it is the same; `None` for linear values."""
    name = strategy.dimensions[key].scale
    if name is None:
        return None
    return native_scale(strategy.scales[name]) or strategy.scales[name]


def _same(drawn: Scale | None, shown: Transform) -> bool:
    return getattr(drawn, "params", dict)() == shown.params()


def _renamed(gate: Gate, markers: Mapping[str, str]) -> Gate:
    match gate:
        case Polygon(markers=(x, y)):
            return replace(gate, markers=(markers[x], markers[y]))
        case Rectangle() | Ellipsoid():
            return replace(gate, markers=tuple(markers[key] for key in gate.markers))
        case Intervals(marker=key):
            return replace(gate, marker=markers[key])
        case _:
            return gate


def _side(edge: float, drawn: Scale | None, shown: Transform, marker: str) -> float:
    """Return the same side on the template's scale: the smallest channel value at or above it decides."""
    if not math.isfinite(edge) or _same(drawn, shown):
        return edge
    value = edge if drawn is None else first_at(drawn, edge)
    return _place(value, shown, marker)


def _place(value: float, shown: Transform, marker: str) -> float:
    if not math.isfinite(value):
        return value
    position = float(shown.forward(np.array([value]))[0])
    if isinstance(shown, Bounded):
        reached = shown.low < position < shown.high
    else:
        reached = not isinstance(shown, Log) or value > 0
    if not reached or not math.isfinite(position):
        raise GatingError(f"the template's scale of {marker} does not reach the gate's side at {value:.6g}")
    return position


def _line(drawn: Scale | None) -> tuple[float, float] | None:
    """Return the channel values at 0 and 1 of a straight scale without ends."""
    if drawn is None:
        return 0.0, 1.0
    if isinstance(drawn, Linear):
        zero, one = drawn.inverse(np.array([0.0, 1.0]))
        return float(zero), float(one)
    low, high, gain = (getattr(drawn, name, None) for name in ("low", "high", "gain"))
    return None if low is None or high is None or gain is None else (low / gain, high / gain)


def _stretched(gate: Ellipsoid, drawn: Mapping[str, Scale | None], shown: Mapping[str, Transform]) -> Ellipsoid:
    """Take an ellipse from straight scales to straight scales, where it stays one."""
    shift, width = [], []
    for key in gate.markers:
        line = _line(drawn[key])
        assert line is not None
        zero, one = shown[key].forward(np.array(line))
        shift.append(float(zero))
        width.append(float(one - zero))
    covariance = np.asarray(gate.covariance) * np.outer(width, width)
    return replace(
        gate,
        mean=tuple(float(v) for v in np.array(shift) + np.array(gate.mean) * np.array(width)),
        covariance=tuple(tuple(float(v) for v in row) for row in covariance),
    )


def _as_polygon(gate: Ellipsoid, name: str) -> Polygon:
    if len(gate.markers) != 2:
        raise GatingError(f"gate {name!r} is an ellipsoid of {len(gate.markers)} dimensions on scales of its own")
    try:
        reach = np.linalg.cholesky(np.asarray(gate.covariance)) * math.sqrt(gate.distance_square)
    except (np.linalg.LinAlgError, ValueError):
        raise GatingError(f"gate {name!r} is no ellipse: its covariance matrix is not positive definite") from None
    angle = np.linspace(0.0, 2.0 * math.pi, _ELLIPSE_POINTS, endpoint=False)
    corners = (reach @ np.stack([np.cos(angle), np.sin(angle)])).T + np.asarray(gate.mean)
    x, y = gate.markers
    return Polygon(markers=(x, y), vertices=tuple((float(a), float(b)) for a, b in corners), closed=True)


def _bent(gate: Gate, drawn: Mapping[str, Scale | None], shown: Mapping[str, Transform], name: str) -> Polygon:
    """Draw a polygon again on the template's scales."""
    for key, scale in shown.items():
        if isinstance(scale, Bounded) and not _same(drawn[key], scale):
            raise GatingError(f"gate {name!r} lies on another scale, and the template's is cut off at its ends")
    # Scales with ends, and tables, are first taken to linear values: what they clamp lies beyond every finite edge.
    ended = {key: scale for key, scale in drawn.items() if scale is not None and not _open(scale)}
    linear = straightened(gate, ended) if ended else gate
    assert isinstance(linear, Polygon)
    corners = np.asarray(linear.vertices, np.float64)
    ways = [_way(None if key in ended else drawn[key], shown[key]) for key in linear.markers]
    points = _followed(corners, ways)
    if not np.isfinite(points).all():
        raise GatingError(f"gate {name!r} reaches beyond what the template's scales can show")
    points = _thinned(points, 0.1 * TOLERANCE)
    return replace(linear, vertices=tuple((float(x), float(y)) for x, y in points))


def _open(scale: Scale) -> bool:
    return native_scale(scale) is not None and not isinstance(scale, Bounded)


def _way(drawn: Scale | None, shown: Transform) -> Callable[[F64], F64]:
    """Return the function from positions on the drawn scale to positions on the template's."""
    if drawn is None:
        return lambda values: np.asarray(shown.forward(values), np.float64)
    native = native_scale(drawn)
    assert native is not None
    if _same(native, shown):
        return lambda values: values
    return lambda values: np.asarray(shown.forward(native.inverse(values)), np.float64)


def _followed(corners: F64, ways: Sequence[Callable[[F64], F64]]) -> F64:
    """Return a polygon's corners (n, 2) on the template's scales; edges are halved until they are straight enough."""
    start, along = corners, np.roll(corners, -1, axis=0) - corners
    level = (along == 0).any(axis=1)  # along an axis every scale leaves an edge straight
    pieces = _FIRST_PIECES if len(corners) <= _MANY else 1
    edge = np.repeat(np.arange(len(corners)), np.where(level, 1, pieces))
    share = np.concatenate([np.arange(1 if flat else pieces) / (1 if flat else pieces) for flat in level])

    def at(edge: NDArray[np.intp], share: F64) -> F64:
        return np.stack([way(start[edge, i] + share * along[edge, i]) for i, way in enumerate(ways)], axis=1)

    points = at(edge, share)
    for _ in range(_HALVINGS):
        end = np.where(np.roll(edge, -1) == edge, np.roll(share, -1), 1.0)
        middle = 0.5 * (share + end)
        open_ = ~level[edge] & (middle > share) & (middle < end)
        between = at(edge, middle)
        with np.errstate(invalid="ignore"):
            off = open_ & (_distance(between, points, np.roll(points, -1, axis=0)) > TOLERANCE)
        if not off.any():
            break
        places = np.flatnonzero(off) + 1
        points = np.insert(points, places, between[off], axis=0)
        edge, share = np.insert(edge, places, edge[off]), np.insert(share, places, middle[off])
    return points


def _distance(points: F64, first: F64, last: F64) -> F64:
    """Return the distance of points from the lines through `first` and `last`."""
    along = last - first
    length = np.hypot(along[..., 0], along[..., 1])
    aside = along[..., 0] * (points[..., 1] - first[..., 1]) - along[..., 1] * (points[..., 0] - first[..., 0])
    straight = np.hypot(points[..., 0] - first[..., 0], points[..., 1] - first[..., 1])
    return np.asarray(np.where(length > 0, np.abs(aside) / np.where(length > 0, length, 1.0), straight), np.float64)


def _thinned(points: F64, tolerance: float) -> F64:
    """Leave out corners that lie within `tolerance` of the line between those that are kept (Douglas and Peucker)."""
    # The corner furthest from the first splits the ring in two lines.
    split = int(np.argmax(np.hypot(*(points - points[0]).T)))
    ring = np.concatenate([points, points[:1]])
    keep = np.zeros(len(ring), np.bool_)
    keep[[0, split, len(points)]] = True
    todo = [(0, split), (split, len(points))]
    while todo:
        first, last = todo.pop()
        if last - first < 2:
            continue
        distance = _distance(ring[first + 1 : last], ring[first], ring[last])
        worst = int(np.argmax(distance))
        if distance[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            todo += [(first, middle), (middle, last)]
    return ring[:-1][keep[:-1]]
