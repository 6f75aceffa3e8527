"""Gating-ML 2.0 out: our placed gates, or any foreign strategy, as a document that other programs read.

The bytes depend on nothing but the strategy. Ids are legal and unique XML ids; where a population's name is not, its
name stands beside the id in `custom_info`, from which our reader takes it back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.events import EventSource
from flowmrd.cytometry.transforms import Arcsinh, Biex, Bounded, Linear, Log, Logicle, Transform
from flowmrd.errors import ExportError, Level, QcFinding
from flowmrd.fcs import ChannelKind, FcsFile
from flowmrd.fcs.fcsfile import channel_kind
from flowmrd.gating.engine import GatingResult
from flowmrd.gating.gates import (
    Boolean,
    Ellipsoid,
    Gate,
    Intervals,
    MemberList,
    Nothing,
    Polygon,
    Rectangle,
    Whole,
    gate_markers,
)
from flowmrd.gating.interop.document import (
    FROM_FILE,
    UNCOMPENSATED,
    Dimension,
    ForeignGate,
    ForeignStrategy,
    Matrix,
    Scale,
)
from flowmrd.gating.interop.gatingml import DATATYPES, GATING, OURS, TRANSFORMS
from flowmrd.gating.interop.scales import element_of
from flowmrd.gating.template import ROOT

F64 = NDArray[np.float64]

# Keywords that other programs know as the file's own compensation.
_FILE_KEYWORDS = {"$SPILLOVER", "SPILL", "SPILLOVER", "$COMP"}
_ID = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# A scale that the standard lacks is straightened: edges of a polygon are cut where they cross one of so many steps.
_STEPS = 4096
# Beyond the axis only so far, in lengths of it.
_BEYOND = 2.0
_FAR = 1e30
_NEARLY = 1e-12
_ELLIPSE_POINTS = 1024


# ------------------------------------------------------------------------------------------------------ our own results


def strategy_of(result: GatingResult, source: EventSource, fcs: FcsFile) -> ForeignStrategy:
    """Return placed gates as a strategy of channels, under the template's titles of populations, or else names.

    Parameters
    ----------
    result : placed gates
    source : the panel, scales and matrix that they were placed with
    fcs : the file; its own matrix is referred to as `FCS` where other programs would find it
    """
    compensation, matrices = _matrix_of(source, fcs)
    scales: dict[str, Scale] = {}
    dimensions = {}
    for marker, transform in source.transforms.items():
        name = _scale_name(transform.params())
        scales[name] = transform
        dimensions[marker] = Dimension(
            key=marker, channel=source.panel.channels[marker].pnn, compensation=compensation, scale=name
        )
    gates = []
    findings = []
    unread = []
    parents = {row.name: row.parent for row in result.template.population}
    titles = {row.name: row.title or row.name for row in result.template.population}
    paths = _paths(parents, titles)
    for name in parents:
        gate = result.placed[name].gate
        if isinstance(gate, MemberList):
            unread.append(paths[name])
            message = f"{titles[name]} is left out: it lists {gate.count:,} events that no outline holds."
            findings.append(QcFinding(level=Level.WARNING, code="GATE_LEFT_OUT", message=message, where=paths[name]))
            continue
        if isinstance(gate, Boolean):
            gate = Boolean(
                operator=gate.operator, operands=tuple((paths[other], flag) for other, flag in gate.operands)
            )
        gates.append(
            ForeignGate(
                name=titles[name],
                path=paths[name],
                parent=paths[parents[name]],
                gate=gate,
                count=result.counts[name],
            )
        )
    return ForeignStrategy(
        source=result.template.template.id,
        kind="flowmrd template",
        dimensions=dimensions,
        scales=scales,
        matrices=matrices,
        gates=tuple(gates),
        events=source.event_count,
        findings=tuple(findings),
        unread=frozenset(unread),
    )


def _paths(parents: Mapping[str, str], titles: Mapping[str, str]) -> dict[str, str]:
    """Return each population's path of titles; a title that is there already gets a number."""
    paths = {ROOT: ""}
    used: set[str] = set()

    def path(name: str) -> str:
        if name not in paths:
            wanted = found = f"{path(parents[name])}/{titles[name].replace('/', '∕')}"
            number = 2
            while found in used:
                found, number = f"{wanted} #{number}", number + 1
            used.add(found)
            paths[name] = found
        return paths[name]

    for name in parents:
        path(name)
    return paths


def _matrix_of(source: EventSource, fcs: FcsFile) -> tuple[str, dict[str, Matrix]]:
    spillover = source.spillover
    if spillover is None:
        return UNCOMPENSATED, {}
    own = fcs.spillover
    if (
        own is not None
        and own.source in _FILE_KEYWORDS
        and own.channels == spillover.channels
        and np.array_equal(own.matrix, spillover.matrix)
    ):
        return FROM_FILE, {}
    names = tuple(spillover.channels)
    name = "compensation"
    return name, {name: Matrix(id=name, fluorochromes=names, detectors=names, values=np.array(spillover.matrix))}


def _scale_name(params: Mapping[str, float | str]) -> str:
    numbers = [_digits(float(value)) for key, value in params.items() if key != "kind"]
    return "_".join([str(params["kind"]), *numbers])


def _digits(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


# ------------------------------------------------------------------------------- scales that the standard does not have


def portable(
    strategy: ForeignStrategy, *, known: Callable[[Scale], Transform | None] | None = None
) -> tuple[ForeignStrategy, tuple[QcFinding, ...]]:
    """Return a strategy whose scales are all known, with the same members, and what that cost.

    A gate on another scale is drawn again on linear values: the sides of a rectangle become the first value on the
    other side, the edges of a polygon are cut into pieces that are straight on both scales. An ellipse there becomes a
    polygon, and other gates are left out; both are findings.

    Parameters
    ----------
    known : gives the same scale in a form that is known, or nothing; `standard_scale` by default
    """
    scales: dict[str, Scale] = {}
    for key, scale in strategy.scales.items():
        native = (known or standard_scale)(scale)
        if native is not None:
            scales[key] = native
    foreign = {key for key, one in strategy.dimensions.items() if one.scale is not None and one.scale not in scales}
    dimensions = {key: replace(one, scale=None) if key in foreign else one for key, one in strategy.dimensions.items()}
    findings: list[QcFinding] = []
    gates = []
    lost = set(strategy.unread)
    for one in strategy.gates:
        if not foreign & set(gate_markers(one.gate)):
            gates.append(one)
            continue
        own = {
            key: strategy.scales[str(strategy.dimensions[key].scale)]
            for key in gate_markers(one.gate)
            if key in foreign
        }
        gate = straightened(one.gate, own)
        if gate is None:
            lost.add(one.path)
            reason = "its scale is none of Gating-ML's, and it is neither a rectangle nor a polygon nor an ellipse"
            findings.append(_finding("GATE_NOT_EXPORTED", f"Gate {one.name} is left out: {reason}.", one.path))
            continue
        if isinstance(one.gate, Ellipsoid):
            what = f"Gate {one.name}: its scale is none of Gating-ML's, so the ellipse became a polygon"
            findings.append(_finding("ELLIPSE_AS_POLYGON", f"{what} of {_ELLIPSE_POINTS} edges.", one.path))
        gates.append(replace(one, gate=gate))
    return (
        replace(strategy, scales=scales, dimensions=dimensions, gates=tuple(gates), unread=frozenset(lost)),
        tuple(findings),
    )


def _finding(code: str, message: str, where: str) -> QcFinding:
    return QcFinding(level=Level.WARNING, code=code, message=message, where=where)


def standard_scale(scale: Scale) -> Transform | None:
    """Return the same scale with parameters that Gating-ML has, or nothing."""
    native = native_scale(scale)
    inner = native.scale if isinstance(native, Bounded) else native
    return None if isinstance(inner, Biex) else native


def native_scale(scale: Scale) -> Transform | None:
    """Return the same scale with parameters that our templates have, or nothing."""
    from flowmrd.gating.interop import vendor_scales as vendor

    if isinstance(scale, Transform):
        return scale
    low, high = -math.inf, math.inf
    if isinstance(scale, vendor.Clipped):
        low, high, scale = scale.low, scale.high, scale.scale
    inner: Transform
    match scale:
        case Logicle() | Arcsinh():
            inner = scale
        # The arithmetic is the same, to the last bit for lines.
        case vendor.FlowJoLinear(low=bottom, high=top, gain=gain) if gain == 1 and 0 <= -bottom <= top:
            inner = Linear(T=top, A=0.0 - bottom)
        case vendor.LogBelowTop(top=top, decades=decades):
            inner, low = Log(T=top, M=decades), max(low, 0.0)
        case vendor.FlowJoLog(offset=offset, decades=decades):
            inner, low = Log(T=offset * 10.0**decades, M=decades), max(low, 0.0)
        case _:
            return None
    return inner if (low, high) == (-math.inf, math.inf) else Bounded(scale=inner, low=low, high=high)


def straightened(gate: Gate, own: Mapping[str, Scale]) -> Gate | None:
    """Draw a gate again on linear values along the markers in `own`, which maps them to the scale it was drawn on.

    Sides keep every event on its side, polygons follow the scale to within a step of 1/4096; an ellipse becomes a
    polygon unless the scales are straight. `None` where there is no such gate.
    """
    match gate:
        case Rectangle(markers=markers, low=low, high=high):
            return Rectangle(
                markers=markers,
                low=tuple(first_at(own[m], v) if m in own else v for m, v in zip(markers, low, strict=True)),
                high=tuple(first_at(own[m], v) if m in own else v for m, v in zip(markers, high, strict=True)),
            )
        case Intervals(marker=marker, ranges=ranges):
            scale = own[marker]
            return Intervals(marker=marker, ranges=tuple((first_at(scale, a), first_at(scale, b)) for a, b in ranges))
        case Polygon(markers=markers, vertices=vertices):
            return replace(gate, vertices=_bent(np.asarray(vertices), markers, own, closed=gate.closed))
        case Ellipsoid() if all(_affine(scale) for scale in own.values()):
            return _stretched(gate, own)
        case Ellipsoid(markers=(x, y), mean=mean, covariance=covariance, distance_square=limit):
            angle = np.linspace(0.0, 2.0 * math.pi, _ELLIPSE_POINTS, endpoint=False)
            try:
                reach = np.linalg.cholesky(np.asarray(covariance)) * math.sqrt(limit)
            except np.linalg.LinAlgError:
                return None
            corners = (reach @ np.stack([np.cos(angle), np.sin(angle)])).T + np.asarray(mean)
            return Polygon(markers=(x, y), vertices=_bent(corners, (x, y), own, closed=True), closed=True)
        case _:
            return None


def _affine(scale: Scale) -> tuple[float, float] | None:
    """Return (value at 0, value at 1) of a scale that is a straight line without ends."""
    from flowmrd.gating.interop.vendor_scales import FlowJoLinear

    return (scale.low / scale.gain, scale.high / scale.gain) if isinstance(scale, FlowJoLinear) else None


def _stretched(gate: Ellipsoid, own: Mapping[str, Scale]) -> Gate:
    """Take an ellipse from straight scales to linear values."""
    lines = [_affine(own[marker]) if marker in own else (0.0, 1.0) for marker in gate.markers]
    zeros, widths = (np.array(part) for part in zip(*((a, b - a) for a, b in filter(None, lines)), strict=True))
    covariance = np.asarray(gate.covariance) * np.outer(widths, widths)
    return replace(
        gate,
        mean=tuple(float(v) for v in zeros + np.asarray(gate.mean) * widths),
        covariance=tuple(tuple(float(v) for v in row) for row in covariance),
    )


def first_at(scale: Scale, edge: float) -> float:
    """Return the smallest value whose position is at or above an edge: `x >= it` is `scale(x) >= edge` for every x."""
    if not math.isfinite(edge):
        return edge
    ends = np.array([-_FAR, _FAR])
    bottom, top = scale.forward(ends)
    if edge <= bottom:
        return -math.inf
    if edge > top:
        return math.inf
    # Bisection over the order of the floating-point numbers.
    low, high = (int(i) for i in _ordered(ends))
    while high - low > 1:
        middle = (low + high) // 2
        value = _from_order(middle)
        if float(scale.forward(np.array([value]))[0]) >= edge:
            high = middle
        else:
            low = middle
    return _from_order(high)


def _ordered(values: F64) -> NDArray[np.int64]:
    bits = values.view(np.int64)
    return np.where(bits < 0, np.int64(-(2**63)) - bits, bits)


def _from_order(order: int) -> float:
    bits = order if order >= 0 else -(2**63) - order
    return float(np.array([bits], np.int64).view(np.float64)[0])


def _bent(
    corners: F64, markers: Sequence[str], own: Mapping[str, Scale], *, closed: bool
) -> tuple[tuple[float, float], ...]:
    """Cut a polygon's edges at each step of its foreign scales and take the pieces to linear values.

    What is clamped to an end of a scale lies beyond every linear value there. So a piece beyond an end, or along one
    whose events are inside, is drawn at `_FAR`.
    """
    ways = [_way(own[marker]) if marker in own else None for marker in markers]
    points: list[tuple[float, float]] = []

    def add(x: float, y: float) -> None:
        # From near to far along one axis at a time: what lies between is no event's place.
        if points and points[-1][0] != x and points[-1][1] != y and _FAR in {abs(v) for v in (x, y, *points[-1])}:
            points.append((x, points[-1][1]))
        if not points or points[-1] != (x, y):
            points.append((x, y))

    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        cuts = [np.array([0.0, 1.0])]
        for axis, way in enumerate(ways):
            if way is not None and not way.straight and start[axis] != end[axis]:
                cuts.append((way.steps(start[axis], end[axis]) - start[axis]) / (end[axis] - start[axis]))
        share = np.unique(np.concatenate(cuts))
        share = share[(share >= 0.0) & (share <= 1.0)]
        places = start + share[:, None] * (end - start)
        places[-1] = end
        before, after = zip(*(_pieces(places[:, i], way, closed) for i, way in enumerate(ways)), strict=True)
        for x0, y0, x1, y1 in zip(*before, *after, strict=True):
            add(float(x0), float(y0))
            add(float(x1), float(y1))
    return tuple(points)


def _pieces(places: F64, way: _Way | None, closed: bool) -> tuple[F64, F64]:  # noqa: FBT001
    """Return the linear values at the beginning and the end of each piece, along one axis."""
    if way is None:
        return places[:-1], places[1:]
    values = way.value(places)
    before, after = values[:-1].copy(), values[1:].copy()
    # Cutting leaves a billionth of a step of rounding at the ends of the scale.
    least, most = np.minimum(places[:-1], places[1:]), np.maximum(places[:-1], places[1:])
    under = most <= way.low + _NEARLY
    over = least >= way.high - _NEARLY
    if not closed:
        over &= most > way.high + _NEARLY
    for side, far in ((under, -_FAR), (over, _FAR)):
        before[side] = after[side] = far
    return before, after


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """From positions on a scale to linear values; what lies beyond `low` and `high` is clamped there."""

    value: Callable[[F64], F64]
    low: float
    high: float
    straight: bool = False

    def steps(self, start: float, end: float) -> F64:
        """Return where an edge is cut: at the steps that it crosses, and where the scale ends."""
        least, most = min(start, end), max(start, end)
        low, high = max(least, self.low, -_BEYOND), min(most, self.high, 1.0 + _BEYOND)
        steps = np.arange(math.floor(low * _STEPS) + 1, math.ceil(high * _STEPS)) / _STEPS
        return np.concatenate([steps, [v for v in (self.low, self.high) if least < v < most]])


def _way(scale: Scale) -> _Way:
    from flowmrd.gating.interop.vendor_scales import Clipped

    line = _affine(scale)
    if line is not None:
        zero, one = line
        return _Way(value=lambda y: zero + y * (one - zero), low=-math.inf, high=math.inf, straight=True)
    ends = np.asarray(scale.forward(np.array([-_FAR, -_FAR / 10, _FAR / 10, _FAR])), np.float64)
    low = float(ends[0]) if ends[0] == ends[1] else -math.inf
    high = float(ends[3]) if ends[3] == ends[2] else math.inf
    # What a clipped scale does beyond its ends matters to nobody.
    inner = scale.scale if isinstance(scale, Bounded | Clipped) else scale
    inverse = getattr(inner, "inverse", None)
    if inverse is not None:
        return _Way(value=lambda y: np.asarray(inverse(np.clip(y, low, high)), np.float64), low=low, high=high)
    steps = np.arange(_STEPS + 1) / _STEPS
    values = np.array([first_at(scale, float(step)) for step in steps])
    return _Way(value=lambda y: np.asarray(np.interp(y, steps, values)), low=low, high=high)


# -------------------------------------------------------------------------------------------------------------- writing


def export_gatingml(strategy: ForeignStrategy) -> tuple[bytes, tuple[QcFinding, ...]]:
    """Write a strategy as Gating-ML 2.0; return the document, and a finding for what could not be written as it is."""
    carried, findings = portable(strategy)
    left: list[QcFinding] = list(findings)
    known = {""}
    kept = []
    needed = {one.path: {one.parent} | _operands(one.gate) for one in carried.gates}
    moved = True
    while moved:
        moved = False
        for one in carried.gates:
            if one.path not in known and needed[one.path] <= known:
                known.add(one.path)
                moved = True
    for one in carried.gates:
        if one.path in known:
            kept.append(one)
        else:
            lacking = ", ".join(sorted(needed[one.path] - known))
            left.append(_finding("GATE_NOT_EXPORTED", f"Gate {one.name} is left out: it needs {lacking}.", one.path))
    return _Writer(replace(carried, gates=tuple(kept))).document(), tuple(left)


def write_gatingml(strategy: ForeignStrategy) -> bytes:
    """Write a strategy as Gating-ML 2.0, whole or not at all.

    Raises
    ------
    ExportError
        A gate cannot be written with the same members.
    """
    data, findings = export_gatingml(strategy)
    lost = [one for one in strategy.findings if one.where in strategy.unread]
    if lost or findings:
        raise ExportError("; ".join(one.message for one in (*lost, *findings)))
    return data


def _operands(gate: Gate) -> set[str]:
    return {name for name, _ in gate.operands} if isinstance(gate, Boolean) else set()


class _Writer:
    """The state of writing one document: ids given so far, lines written so far."""

    def __init__(self, strategy: ForeignStrategy) -> None:
        self.strategy = strategy
        self.lines: list[str] = []
        self.taken: set[str] = set()
        self.scale_ids: dict[str, str] = {}
        self.ratio_ids: dict[str, str] = {}
        self.matrix_ids = {FROM_FILE: FROM_FILE, UNCOMPENSATED: UNCOMPENSATED}
        self.gate_ids: dict[str, str] = {}

    def document(self) -> bytes:
        used = [key for one in self.strategy.gates for key in gate_markers(one.gate)]
        # A gate without sides of its own still needs a dimension to stand on.
        dimensions = [self.strategy.dimensions[key] for key in dict.fromkeys(used)]
        self.any_dimension = next(iter([*dimensions, *self.strategy.dimensions.values()]), None)
        # Gates get their ids first: they are what people see.
        for one in self.strategy.gates:
            self.gate_ids[one.path] = self._gate_id(one)
        self._line(0, '<?xml version="1.0" encoding="UTF-8"?>')
        self._line(
            0,
            f"<gating:Gating-ML xmlns:gating={quoteattr(GATING)} xmlns:transforms={quoteattr(TRANSFORMS)} "
            f"xmlns:data-type={quoteattr(DATATYPES)}>",
        )
        if self.any_dimension is not None and self.any_dimension not in dimensions:
            dimensions.append(self.any_dimension)
        for dimension in dimensions:
            self._definitions(dimension)
        for one in self.strategy.gates:
            self._gate(one)
        self._line(0, "</gating:Gating-ML>")
        return ("\n".join(self.lines) + "\n").encode()

    def _line(self, depth: int, text: str) -> None:
        self.lines.append("  " * depth + text)

    # -- ids --------------------------------------------------------------------------------------------------------

    def _unique(self, *wishes: str) -> str:
        for wish in wishes:
            name = _legal(wish)
            if name not in self.taken:
                self.taken.add(name)
                return name
        number = 2
        while f"{_legal(wishes[-1])}_{number}" in self.taken:
            number += 1
        return self._unique(f"{wishes[-1]}_{number}")

    def _gate_id(self, one: ForeignGate) -> str:
        """Return the name, else the name after those of its ancestors, as in `T_cells.CD4`."""
        parts = [part for part in one.path.split("/") if part]
        return self._unique(one.name, ".".join(parts) if parts else one.name)

    # -- definitions ------------------------------------------------------------------------------------------------

    def _definitions(self, dimension: Dimension) -> None:
        scale, compensation = dimension.scale, dimension.compensation
        if compensation not in self.matrix_ids:
            self.matrix_ids[compensation] = self._unique(compensation)
            self._matrix(self.strategy.matrices[compensation], self.matrix_ids[compensation])
        if scale is not None and scale not in self.scale_ids:
            params = self.strategy.scales[scale].params()  # type: ignore[attr-defined]
            element, numbers, bounds = element_of(params)
            self.scale_ids[scale] = self._unique(scale)
            self._transformation(
                self.scale_ids[scale], bounds, f"<transforms:{element} {_attributes('transforms', numbers)} />"
            )
        if dimension.ratio is not None and dimension.key not in self.ratio_ids:
            x, y, a, b, c = dimension.ratio
            self.ratio_ids[dimension.key] = self._unique(f"{x}_by_{y}", f"ratio_{dimension.key}")
            low, high = dimension.ratio_bounds
            bounds = {name: end for name, end in (("boundMin", low), ("boundMax", high)) if math.isfinite(end)}
            self._transformation(
                self.ratio_ids[dimension.key],
                bounds,
                f"<transforms:fratio {_attributes('transforms', {'A': a, 'B': b, 'C': c})}>",
                f"  <data-type:fcs-dimension data-type:name={quoteattr(x)} />",
                f"  <data-type:fcs-dimension data-type:name={quoteattr(y)} />",
                "</transforms:fratio>",
            )

    def _transformation(self, own: str, bounds: Mapping[str, float], *body: str) -> None:
        ends = f" {_attributes('transforms', bounds)}" if bounds else ""
        self._line(1, f"<transforms:transformation transforms:id={quoteattr(own)}{ends}>")
        for line in body:
            self._line(2, line)
        self._line(1, "</transforms:transformation>")

    def _matrix(self, matrix: Matrix, own: str) -> None:
        inverted = ' transforms:matrix-inverted-already="true"' if matrix.inverted else ""
        self._line(1, f"<transforms:spectrumMatrix transforms:id={quoteattr(own)}{inverted}>")
        for part, names in (("fluorochromes", matrix.fluorochromes), ("detectors", matrix.detectors)):
            self._line(2, f"<transforms:{part}>")
            for name in names:
                self._line(3, f"<data-type:fcs-dimension data-type:name={quoteattr(name)} />")
            self._line(2, f"</transforms:{part}>")
        for row in matrix.values:
            self._line(2, "<transforms:spectrum>")
            for value in row:
                self._line(3, f'<transforms:coefficient transforms:value="{_text(float(value))}" />')
            self._line(2, "</transforms:spectrum>")
        self._line(1, "</transforms:spectrumMatrix>")

    # -- gates ------------------------------------------------------------------------------------------------------

    def _gate(self, one: ForeignGate) -> None:
        own, parent = self.gate_ids[one.path], self.gate_ids.get(one.parent, "")
        match one.gate:
            case Whole() | Nothing():
                if self.any_dimension is None:
                    raise ExportError(f"gate {one.name} holds everything or nothing, and the document has no dimension")
                # Of equal ends min <= x < max holds no event (section 4.1).
                empty = {"min": 0.0, "max": 0.0} if isinstance(one.gate, Nothing) else {}
                self._rectangle(own, parent, one.name, [(self.any_dimension, empty)])
            case Rectangle(markers=markers, low=low, high=high):
                sides: dict[str, tuple[float, float]] = {}
                for marker, lo, hi in zip(markers, low, high, strict=True):
                    before = sides.get(marker, (-math.inf, math.inf))
                    sides[marker] = (max(lo, before[0]), min(hi, before[1]))
                self._rectangle(own, parent, one.name, [self._side(m, *ends) for m, ends in sides.items()])
            case Intervals(marker=marker, ranges=ranges):
                self._intervals(one, own, parent, marker, ranges)
            case Polygon(markers=markers, vertices=vertices):
                # Of the right and upper edges the standard and we may think differently: our reader is told.
                note = "" if one.gate.closed else ' closed="false"'
                self._open("PolygonGate", own, parent, one.name, note + self._clock(markers))
                for marker in markers:
                    self._dimension(self.strategy.dimensions[marker], {})
                for vertex in vertices:
                    self._line(2, "<gating:vertex>")
                    self._coordinates("coordinate", vertex)
                    self._line(2, "</gating:vertex>")
                self._line(1, "</gating:PolygonGate>")
            case Ellipsoid(markers=markers, mean=mean, covariance=covariance, distance_square=limit):
                self._open("EllipsoidGate", own, parent, one.name, self._clock(markers))
                for marker in markers:
                    self._dimension(self.strategy.dimensions[marker], {})
                self._line(2, "<gating:mean>")
                self._coordinates("coordinate", mean)
                self._line(2, "</gating:mean>")
                self._line(2, "<gating:covarianceMatrix>")
                for row in covariance:
                    self._line(3, "<gating:row>")
                    self._coordinates("entry", row, depth=4)
                    self._line(3, "</gating:row>")
                self._line(2, "</gating:covarianceMatrix>")
                self._line(2, f'<gating:distanceSquare data-type:value="{_text(limit)}" />')
                self._line(1, "</gating:EllipsoidGate>")
            case Boolean(operator=operator, operands=operands):
                if operator == "and" and (one.parent, False) in operands:
                    # A gate holds events of its parent anyway; FlowKit loses a gate that names its parent as operand.
                    operands = tuple(pair for pair in operands if pair != (one.parent, False))
                    if not operands:
                        self._gate(replace(one, gate=Whole()))
                        return
                references = [(self.gate_ids[path], flag) for path, flag in operands]
                self._boolean(own, parent, one.name, operator, references)

    def _open(self, kind: str, own: str, parent: str, name: str, note: str = "") -> None:
        above = f" gating:parent_id={quoteattr(parent)}" if parent else ""
        self._line(1, f"<gating:{kind} gating:id={quoteattr(own)}{above}>")
        if name != own or note:
            called = f" name={quoteattr(name)}" if name != own else ""
            self._line(2, "<data-type:custom_info>")
            self._line(3, f"<flowmrd:gate xmlns:flowmrd={quoteattr(OURS)}{called}{note} />")
            self._line(2, "</data-type:custom_info>")

    def _clock(self, markers: Sequence[str]) -> str:
        """Say beside the id that a gate's times are seconds, as FlowKit reads them; the standard has ticks (4.2)."""
        dimensions = [self.strategy.dimensions[marker] for marker in markers]
        seconds = any(
            not one.ticks and channel_kind(str(name)) is ChannelKind.TIME
            for one in dimensions
            for name in (one.ratio[:2] if one.ratio else (one.channel,))
        )
        return ' time="seconds"' if seconds else ""

    def _side(self, marker: str, low: float, high: float) -> tuple[Dimension, dict[str, float]]:
        if low == math.inf or high == -math.inf:
            low = high = 0.0  # no value is there; equal ends say so in finite numbers
        ends = {name: end for name, end in (("min", low), ("max", high)) if math.isfinite(end)}
        return self.strategy.dimensions[marker], ends

    def _rectangle(
        self, own: str, parent: str, name: str, sides: Sequence[tuple[Dimension, Mapping[str, float]]]
    ) -> None:
        self._open("RectangleGate", own, parent, name, self._clock([dimension.key for dimension, _ in sides]))
        for dimension, ends in sides:
            self._dimension(dimension, ends)
        self._line(1, "</gating:RectangleGate>")

    def _intervals(
        self, one: ForeignGate, own: str, parent: str, marker: str, ranges: Sequence[tuple[float, float]]
    ) -> None:
        if len(ranges) < 2:
            low, high = ranges[0] if ranges else (math.inf, -math.inf)
            self._rectangle(own, parent, one.name, [self._side(marker, low, high)])
            return
        references = []
        for number, (low, high) in enumerate(ranges, start=1):
            part = self._unique(f"{own}.part{number}")
            self._rectangle(part, parent, part, [self._side(marker, low, high)])
            references.append((part, False))
        self._boolean(own, parent, one.name, "or", references)

    def _boolean(self, own: str, parent: str, name: str, operator: str, references: list[tuple[str, bool]]) -> None:
        if operator == "not":
            references = [(ref, not flag) for ref, flag in references]
        if len(references) == 1:
            # `and` and `or` take two operands or more (schema, TwoAndMoreOperands_BoolGate_Type).
            references, operator = ([(references[0][0], False)], "not") if references[0][1] else (references * 2, "and")
        elif operator == "not":
            operator = "and"
        self._open("BooleanGate", own, parent, name)
        self._line(2, f"<gating:{operator}>")
        for ref, flag in references:
            complement = ' gating:use-as-complement="true"' if flag else ""
            self._line(3, f"<gating:gateReference gating:ref={quoteattr(ref)}{complement} />")
        self._line(2, f"</gating:{operator}>")
        self._line(1, "</gating:BooleanGate>")

    def _dimension(self, dimension: Dimension, ends: Mapping[str, float]) -> None:
        attributes = f"gating:compensation-ref={quoteattr(self.matrix_ids[dimension.compensation])}"
        if dimension.scale is not None:
            attributes += f" gating:transformation-ref={quoteattr(self.scale_ids[dimension.scale])}"
        if ends:
            attributes += f" {_attributes('gating', ends)}"
        self._line(2, f"<gating:dimension {attributes}>")
        if dimension.ratio is None:
            self._line(3, f"<data-type:fcs-dimension data-type:name={quoteattr(dimension.channel)} />")
        else:
            reference = quoteattr(self.ratio_ids[dimension.key])
            self._line(3, f"<data-type:new-dimension data-type:transformation-ref={reference} />")
        self._line(2, "</gating:dimension>")

    def _coordinates(self, element: str, values: Sequence[float], depth: int = 3) -> None:
        for value in values:
            self._line(depth, f'<gating:{element} data-type:value="{_text(value)}" />')


def _legal(name: str) -> str:
    """Return a name as an XML id (NCName), which has no spaces, slashes or leading digits."""
    if _ID.fullmatch(name):
        return name
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return safe if _ID.fullmatch(safe) else f"_{safe}"


def _attributes(prefix: str, numbers: Mapping[str, float]) -> str:
    return " ".join(f'{prefix}:{name}="{_text(value)}"' for name, value in numbers.items())


def _text(value: float) -> str:
    """Return the shortest text that reads back as the same number."""
    return repr(float(value))
