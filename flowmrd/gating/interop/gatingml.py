"""Gating-ML 2.0, the ISAC standard: read and written in full.

Names of sections are those of the Gating-ML 2.0 specification (Spidlen J et al., Cytometry A 2015;87:683-687). Reading
is forgiving: an element that is wrong costs its own gate, which becomes a finding, and the rest is read. Writing is
strict.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element

import numpy as np

from flowmrd.errors import InputError, Level, QcFinding
from flowmrd.fcs import FcsFile
from flowmrd.gating.gates import Boolean, Ellipsoid, Gate, Polygon, Rectangle, in_standard_deviations
from flowmrd.gating.interop.document import (
    FROM_FILE,
    UNCOMPENSATED,
    Dimension,
    ForeignGate,
    ForeignStrategy,
    Matrix,
    Scale,
)
from flowmrd.gating.interop.scales import ELEMENTS, PARAMETERS, scale_from
from flowmrd.gating.interop.xml import MAX_DEPTH, FreePaths, check_gates, local, parse_xml

_STANDARD = "http://www.isac-net.org/std/Gating-ML/"
GATING = _STANDARD + "v2.0/gating"
TRANSFORMS = _STANDARD + "v2.0/transformations"
DATATYPES = _STANDARD + "v2.0/datatypes"
# Where our writer keeps the name of a population that is no legal XML id.
OURS = "urn:flowmrd:gating-ml"

_GATES = ("RectangleGate", "PolygonGate", "EllipsoidGate", "QuadrantGate", "BooleanGate")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?INF")
_TRUE = {"true": True, "1": True, "false": False, "0": False}
_COMPENSATED_PREFIX = "Comp-"


class _Fault(Exception):  # noqa: N818 - a reason, caught where the gate is known
    """Why one element cannot be read."""


def read_strategy(data: bytes, name: str, fcs: FcsFile, *, tube: str | None = None) -> ForeignStrategy:  # noqa: ARG001
    """Read a Gating-ML 2.0 document; it holds for any file, so `fcs` and `tube` do not matter."""
    return read_gatingml(data, name)


def read_gatingml(data: bytes, name: str) -> ForeignStrategy:
    """Read a Gating-ML 2.0 document.

    Parameters
    ----------
    data : the document's bytes
    name : file name, for messages

    Returns
    -------
    Gates with `name` = id (a quadrant by its quadrant id); what could not be read is in `findings` and `unread`.

    Raises
    ------
    InputError
        It is not XML that can be trusted, or not Gating-ML 2.0.
    """
    root = parse_xml(data, name)
    if not is_gatingml(root):
        raise InputError(
            f"not a Gating-ML 2.0 document: the outermost element is {root.tag!r}",
            source=name,
            hint=f"expected Gating-ML of {GATING}",
        )
    return _Reader(root, name).strategy()


def is_gatingml(root: Element) -> bool:
    """Say whether a document is Gating-ML 2.0."""
    return root.tag == f"{{{GATING}}}Gating-ML"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Raw:
    """A gate as it stands in the document; a quadrant is a gate of its own, of the quadrant gate's element."""

    id: str
    name: str
    parent_id: str
    element: Element
    quadrant: Element | None = None
    within: str = ""


class _Reader:
    """The state of reading one document."""

    def __init__(self, root: Element, source: str) -> None:
        self.source = source
        self.findings: list[QcFinding] = []
        self.unread: set[str] = set()
        self.keys: dict[Dimension, str] = {}
        self.dimensions: dict[str, Dimension] = {}
        self.scales: dict[str, Scale] = {}
        self.ratios: dict[str, tuple[tuple[str, str, float, float, float], tuple[float, float]]] = {}
        self.matrices: dict[str, Matrix] = {}
        self.broken: dict[str, str] = {}
        self.quadrant_gates: set[str] = set()
        self.told: set[str] = set()
        elements = list(_elements(root))
        self._read_definitions(elements)
        self.raws = list(self._raw_gates(elements))
        check_gates(len(self.raws), source)
        self.by_id: dict[str, list[int]] = {}
        for place, raw in enumerate(self.raws):
            self.by_id.setdefault(raw.id, []).append(place)
        self.parents = [self._parent(place) for place in range(len(self.raws))]
        self.paths = self._paths()

    def strategy(self) -> ForeignStrategy:
        gates = []
        for place, raw in enumerate(self.raws):
            path = self.paths[place]
            if path in self.unread:
                continue
            parent = self.parents[place]
            try:
                gate = self._gate(place)
            except _Fault as fault:
                self._leave_out(raw.name, path, str(fault))
                continue
            gates.append(
                ForeignGate(name=raw.name, path=path, parent="" if parent is None else self.paths[parent], gate=gate)
            )
        return ForeignStrategy(
            source=self.source,
            kind="Gating-ML 2.0",
            dimensions=self.dimensions,
            scales=self.scales,
            matrices=self.matrices,
            gates=tuple(gates),
            findings=tuple(self.findings),
            unread=frozenset(self.unread),
        )

    def _leave_out(self, name: str, path: str, reason: str) -> None:
        self.unread.add(path)
        self.findings.append(
            QcFinding(
                level=Level.WARNING, code="GATE_LEFT_OUT", message=f"Gate {name} is left out: {reason}.", where=path
            )
        )

    def _note(self, code: str, message: str, where: str) -> None:
        if message not in self.told:
            self.told.add(message)
            self.findings.append(QcFinding(level=Level.INFO, code=code, message=message, where=where))

    # -- transformations and matrices (sections 6 and 7) ------------------------------------------------------------

    def _read_definitions(self, elements: Sequence[Element]) -> None:
        for element in elements:
            kind = local(element.tag)
            if kind not in {"transformation", "spectrumMatrix"}:
                continue
            own = _attribute(element, "id")
            try:
                if own in {*self.scales, *self.ratios, *self.matrices}:
                    self._note("DEFINITION_REPEATED", f"{own!r} is defined twice; the first is used.", own)
                elif kind == "transformation":
                    self._read_transformation(element, own)
                else:
                    self.matrices[own] = _matrix(element, own)
            except _Fault as fault:
                self.broken[own] = str(fault)
                what = "Transformation" if kind == "transformation" else "Matrix"
                self._note("DEFINITION_UNREADABLE", f"{what} {own!r} cannot be read: {fault}.", own)

    def _read_transformation(self, element: Element, own: str) -> None:
        low, high = _number(element, "boundMin", -math.inf), _number(element, "boundMax", math.inf)
        bodies = [child for child in element if local(child.tag) in (*ELEMENTS, "fratio")]
        if len(bodies) != 1:
            kinds = ", ".join(sorted({local(child.tag) for child in element} - {"custom_info"})) or "nothing"
            raise _Fault(f"expected one of {', '.join((*ELEMENTS, 'fratio'))}; got {kinds}")
        body = bodies[0]
        kind = local(body.tag)
        if kind == "fratio":
            names = _channel_names(body)
            if len(names) != 2:
                raise _Fault(f"fratio needs two fcs-dimension; got {len(names)}")
            a, b, c = (_number(body, key) for key in "ABC")
            self.ratios[own] = ((names[0], names[1], a, b, c), (low, high))
            return
        try:
            self.scales[own] = scale_from(kind, {key: _number(body, key) for key in PARAMETERS[kind]}, low, high)
        except ValueError as error:
            raise _Fault(str(error)) from None

    # -- the tree (section 4: ids and parents) ----------------------------------------------------------------------

    def _raw_gates(self, elements: Sequence[Element]) -> Iterator[_Raw]:
        for element in elements:
            kind = local(element.tag)
            if kind not in _GATES:
                continue
            own, parent = _attribute(element, "id"), _attribute(element, "parent_id")
            if not own:
                self._leave_out(f"(a {kind})", "/", "it has no id")
                continue
            if kind != "QuadrantGate":
                yield _Raw(id=own, name=_own(element, "name") or own, parent_id=parent, element=element)
                continue
            self.quadrant_gates.add(own)
            quadrants = [child for child in element if local(child.tag) == "Quadrant"]
            if not quadrants:
                self._leave_out(own, f"/{own}", "it is a quadrant gate without a Quadrant")
            for quadrant in quadrants:
                name = _attribute(quadrant, "id")
                if not name:
                    self._leave_out(own, f"/{own}", "one of its quadrants has no id")
                    continue
                yield _Raw(
                    id=name,
                    name=_own(quadrant, "name") or name,
                    parent_id=parent,
                    element=element,
                    quadrant=quadrant,
                    within=own,
                )

    def _parent(self, place: int) -> int | None:
        """Return the place of the parent; `None` at the top, and where there is no such gate (told later)."""
        raw = self.raws[place]
        if not raw.parent_id:
            return None
        found = self.by_id.get(raw.parent_id)
        if found is None:
            return None
        # The standard wants ids to be unique; where they repeat, documents are written depth first: the last one before
        # this gate, else the first after it. Where only the gate itself has that id, it is a circle of one.
        before = bisect_left(found, place)
        after = before + (before < len(found) and found[before] == place)
        return found[before - 1] if before else found[after] if after < len(found) else place

    def _paths(self) -> list[str]:
        """Return each gate's path; parents that are not there, or that run in a circle, leave their gates out."""
        paths: list[str] = []
        taken = FreePaths("#")
        reasons: dict[int, str] = {}
        for place, raw in enumerate(self.raws):
            chain = [place]
            met = {place}
            while (parent := self.parents[chain[-1]]) is not None and parent not in met and len(chain) < MAX_DEPTH:
                chain.append(parent)
                met.add(parent)
            names = ["/".join(filter(None, (self.raws[one].within, self.raws[one].name))) for one in reversed(chain)]
            paths.append(taken.free("/" + "/".join(names)))
            if parent is not None and parent not in met:
                reasons[place] = f"it has more than {MAX_DEPTH - 1} ancestors"
            elif parent is not None:
                circle = [*chain[chain.index(parent) :], parent]
                if place in circle:
                    reasons[place] = "circle " + " → ".join(self.raws[one].name for one in circle)
            elif raw.parent_id and self.parents[place] is None:
                reasons[place] = self._no_gate(raw.parent_id, "its parent")
        told: set[frozenset[str]] = set()
        for place, reason in reasons.items():
            raw = self.raws[place]
            if not reason.startswith("circle "):
                self._leave_out(raw.name, paths[place], reason)
                continue
            self.unread.add(paths[place])
            circle_names = reason.removeprefix("circle ")
            members = frozenset(circle_names.split(" → "))
            if members not in told:
                told.add(members)
                message = f"Gates refer to one another in a circle and are left out: {circle_names}."
                self.findings.append(
                    QcFinding(level=Level.WARNING, code="GATE_CIRCLE", message=message, where=paths[place])
                )
        return paths

    def _no_gate(self, name: str, role: str) -> str:
        if name in self.quadrant_gates:
            quadrants = [raw.name for raw in self.raws if raw.within == name]
            return (
                f"{role} {name!r} is a whole quadrant gate, which is several populations; Gating-ML 2.0 refers to one "
                f"of its quadrants: {', '.join(quadrants) or 'it has none'}"
            )
        return f"{role} {name!r} is not in the document"

    # -- gates (section 4) ------------------------------------------------------------------------------------------

    def _gate(self, place: int) -> Gate:
        raw = self.raws[place]
        if raw.quadrant is not None:
            return self._quadrant(raw.element, raw.quadrant)
        match local(raw.element.tag):
            case "RectangleGate":
                return self._rectangle(raw.element)
            case "PolygonGate":
                return self._polygon(raw.element)
            case "EllipsoidGate":
                return self._ellipsoid(raw.element, self.paths[place])
            case _:
                return self._boolean(raw.element, place)

    def _rectangle(self, element: Element) -> Gate:
        dimensions = _children(element, "dimension")
        if not dimensions:
            raise _Fault("a rectangle needs at least one dimension")
        return Rectangle(
            markers=tuple(self._dimension(one, element) for one in dimensions),
            low=tuple(_number(one, "min", -math.inf) for one in dimensions),
            high=tuple(_number(one, "max", math.inf) for one in dimensions),
        )

    def _polygon(self, element: Element) -> Gate:
        dimensions, vertices = _children(element, "dimension"), _children(element, "vertex")
        if len(dimensions) != 2:
            raise _Fault(f"a polygon needs two dimensions; got {len(dimensions)}")
        if len(vertices) < 3:
            raise _Fault(f"a polygon needs at least three vertices; got {len(vertices)}")
        corners = []
        for number, vertex in enumerate(vertices, start=1):
            values = [_finite(one, f"vertex {number}") for one in _children(vertex, "coordinate")]
            if len(values) != 2:
                raise _Fault(f"vertex {number} needs two coordinates; got {len(values)}")
            corners.append((values[0], values[1]))
        x, y = (self._dimension(one, element) for one in dimensions)
        # "The boundary should be inclusive" (compliance suite, Polygon1); ours says so where it was not.
        return Polygon(markers=(x, y), vertices=tuple(corners), closed=_own(element, "closed") != "false")

    def _ellipsoid(self, element: Element, path: str) -> Gate:
        dimensions = _children(element, "dimension")
        size = len(dimensions)
        if size < 2:
            raise _Fault(f"an ellipsoid needs at least two dimensions; got {size}")
        mean = [_finite(one, "mean") for one in _children(_child(element, "mean"), "coordinate")]
        rows = [
            [_finite(one, "covarianceMatrix") for one in _children(row, "entry")]
            for row in _children(_child(element, "covarianceMatrix"), "row")
        ]
        limit = _finite(_child(element, "distanceSquare"), "distanceSquare")
        if len(mean) != size:
            raise _Fault(f"its mean has {len(mean)} coordinates for {size} dimensions")
        if len(rows) != size or any(len(row) != size for row in rows):
            raise _Fault(f"its covarianceMatrix is not {size} × {size}")
        if limit < 0:
            raise _Fault(f"its distanceSquare is negative: {limit:g}")
        # Axes may have units as different as 0 … 1 and 0 … 10^9: a matrix is judged by its correlations.
        unit = in_standard_deviations(np.array(rows))
        if np.linalg.matrix_rank(unit) < size:
            raise _Fault("its covarianceMatrix cannot be inverted")
        if not np.allclose(unit, unit.T) or np.linalg.eigvalsh(unit).min() <= 0:
            self._note(
                "COVARIANCE_NOT_POSITIVE",
                f"Gate {path}: its covarianceMatrix is not symmetric and positive definite, so it is no ellipsoid; "
                "the formula is evaluated as it stands.",
                path,
            )
        return Ellipsoid(
            markers=tuple(self._dimension(one, element) for one in dimensions),
            mean=tuple(mean),
            covariance=tuple(tuple(row) for row in rows),
            distance_square=limit,
        )

    def _quadrant(self, element: Element, quadrant: Element) -> Gate:
        """One quadrant: for each position, the stretch between two neighbouring values of the divider that holds it."""
        dividers: dict[str, tuple[Element, list[float]]] = {}
        for divider in _children(element, "divider"):
            values = sorted(
                _parsed((one.text or "").strip(), "a divider's value") for one in _children(divider, "value")
            )
            if not values:
                raise _Fault(f"divider {_attribute(divider, 'id')!r} has no value")
            dividers[_attribute(divider, "id")] = (divider, values)
        markers, low, high = [], [], []
        positions = _children(quadrant, "position")
        if not positions:
            raise _Fault("a quadrant needs at least one position")
        for position in positions:
            name = _attribute(position, "divider_ref")
            if name not in dividers:
                raise _Fault(f"it refers to divider {name!r}, which its quadrant gate does not have")
            divider, values = dividers[name]
            location = _number(position, "location")
            markers.append(self._dimension(divider, element))
            low.append(max((value for value in values if value <= location), default=-math.inf))
            high.append(min((value for value in values if value > location), default=math.inf))
        return Rectangle(markers=tuple(markers), low=tuple(low), high=tuple(high))

    def _boolean(self, element: Element, place: int) -> Gate:
        bodies = [child for child in element if local(child.tag) in {"and", "or", "not"}]
        if len(bodies) != 1:
            raise _Fault("a boolean gate needs exactly one of and, or, not")
        operator, references = local(bodies[0].tag), _children(bodies[0], "gateReference")
        if not references or (operator == "not" and len(references) != 1):
            raise _Fault(f"{operator!r} has {len(references)} gateReference")
        operands = []
        for reference in references:
            complement = _boolean_value(reference, ("use-as-complement", "useAsComplement"))
            operands.append((self._operand(_attribute(reference, "ref"), place), complement ^ (operator == "not")))
        return Boolean(operator="or" if operator == "or" else "and", operands=tuple(operands))

    def _operand(self, name: str, place: int) -> str:
        found = self.by_id.get(name, [])
        if not found:
            raise _Fault(self._no_gate(name, "the gate that it refers to,"))
        if len(found) > 1:
            siblings = [other for other in found if self.parents[other] == self.parents[place]]
            before = [other for other in found if other < place]
            chosen = siblings[0] if siblings else before[-1] if before else found[0]
            path, own = self.paths[chosen], self.paths[place]
            self._note("REFERENCE_REPEATED", f"{own}: {name!r} is given {len(found)} times; read as {path}.", own)
            return path
        return self.paths[found[0]]

    # -- dimensions (section 5) -------------------------------------------------------------------------------------

    def _dimension(self, element: Element, gate: Element) -> str:
        """Return the key of a gate's dimension, or of a divider."""
        compensation = _attribute(element, "compensation-ref")
        # Scale values of time are ticks over gain (4.2). Ours are seconds where the gate says so; FlowJo's always are,
        # and it is known by leaving the compensation out.
        ticks = bool(compensation) and _own(gate, "time") != "seconds"
        scale = _attribute(element, "transformation-ref") or None
        if scale is not None and scale not in self.scales:
            if scale in self.ratios:
                raise _Fault(f"its transformation {scale!r} is a ratio, which makes a new dimension and is no scale")
            raise _Fault(self._undefined("transformation", scale))
        channels = _channel_names(element)
        new = _children(element, "new-dimension")
        if len(channels) + len(new) != 1:
            raise _Fault("a dimension needs exactly one fcs-dimension or new-dimension")
        if new:
            wanted = _attribute(new[0], "transformation-ref")
            if wanted not in self.ratios:
                if wanted in self.scales:
                    raise _Fault(f"a new-dimension needs a ratio; {wanted!r} is a scale")
                raise _Fault(self._undefined("transformation", wanted))
            ratio, bounds = self.ratios[wanted]
            dimension = Dimension(
                key="",
                channel=ratio[0],
                compensation=self._compensation(compensation, ratio[0])[0],
                scale=scale,
                ratio=ratio,
                ratio_bounds=bounds,
                ticks=ticks,
            )
            label = wanted
        else:
            compensation, channel = self._compensation(compensation, channels[0])
            dimension = Dimension(key="", channel=channel, compensation=compensation, scale=scale, ticks=ticks)
            label = channel
        if dimension not in self.keys:
            key = " ".join(filter(None, (label, dimension.compensation, scale)))
            while key in self.dimensions:
                key += "'"
            self.keys[dimension] = key
            self.dimensions[key] = replace(dimension, key=key)
        return self.keys[dimension]

    def _compensation(self, reference: str, channel: str) -> tuple[str, str]:
        """Return the compensation and the channel; FlowJo leaves the reference out and marks the name instead."""
        if reference in self.broken:
            raise _Fault(self._undefined("matrix", reference))
        if reference:
            if reference not in {FROM_FILE, UNCOMPENSATED, *self.matrices}:
                raise _Fault(self._undefined("matrix", reference))
            return reference, channel
        compensated = channel.startswith(_COMPENSATED_PREFIX)
        meaning = "the file's compensation" if compensated else "uncompensated"
        self._note(
            "COMPENSATION_NOT_STATED", f"Dimension {channel} states no compensation: read as {meaning}.", channel
        )
        return (FROM_FILE, channel.removeprefix(_COMPENSATED_PREFIX)) if compensated else (UNCOMPENSATED, channel)

    def _undefined(self, what: str, name: str) -> str:
        if name in self.broken:
            return f"its {what} {name!r} cannot be read: {self.broken[name]}"
        return f"the document defines no {what} {name!r}"


def _elements(root: Element) -> Iterator[Element]:
    """Yield what stands in the document, in order; wrappers are looked into, custom information is not."""
    for child in root:
        kind = local(child.tag)
        if kind == "custom_info":
            continue
        if kind in (*_GATES, "transformation", "spectrumMatrix"):
            yield child
        else:
            yield from _elements(child)


def _matrix(element: Element, own: str) -> Matrix:
    names = [_channel_names(_child(element, part)) for part in ("fluorochromes", "detectors")]
    fluorochromes, detectors = (tuple(part) for part in names)
    rows = [[_number(one, "value") for one in _children(row, "coefficient")] for row in _children(element, "spectrum")]
    inverted = _boolean_value(element, ("matrix-inverted-already",))
    for part in (fluorochromes, detectors):
        if not part or len(set(part)) != len(part):
            raise _Fault("its fluorochromes and detectors must be named, each once")
    shapes = [(len(fluorochromes), len(detectors))]
    if inverted:
        # The unmixing matrix has a row a detector.
        shapes.insert(0, shapes[0][::-1])
    shape = (len(rows), len(rows[0]) if rows else 0)
    if shape not in shapes or any(len(row) != shape[1] for row in rows):
        raise _Fault(
            f"expected {shapes[0][0]} spectrum of {shapes[0][1]} coefficients; got {shape[0]} of "
            f"{', '.join(sorted({str(len(row)) for row in rows})) or '0'}"
        )
    values = np.array(rows)
    if not np.isfinite(values).all():
        raise _Fault("a coefficient is not a finite number")
    if not inverted and len(detectors) < len(fluorochromes):
        raise _Fault(f"{len(fluorochromes)} fluorochromes cannot be told apart by {len(detectors)} detectors")
    if inverted and shape != shapes[0]:
        values = values.T
    values.flags.writeable = False
    return Matrix(id=own, fluorochromes=fluorochromes, detectors=detectors, values=values, inverted=inverted)


# -- elements and attributes ------------------------------------------------------------------------------------------


def _attribute(element: Element, name: str) -> str:
    """Return an attribute of the standard's namespaces, or without one."""
    for space in (GATING, TRANSFORMS, DATATYPES):
        value = element.get(f"{{{space}}}{name}")
        if value is not None:
            return value.strip()
    return element.get(name, "").strip()


def _children(element: Element, name: str) -> list[Element]:
    return [child for child in element if local(child.tag) == name]


def _child(element: Element, name: str) -> Element:
    found = _children(element, name)
    if len(found) != 1:
        raise _Fault(f"expected one {name}; got {len(found)}")
    return found[0]


def _channel_names(element: Element) -> list[str]:
    names = [_attribute(child, "name") for child in _children(element, "fcs-dimension")]
    if not all(names):
        raise _Fault("an fcs-dimension has no name")
    return names


def _own(element: Element, name: str) -> str:
    """Return what our writer kept beside the id: the population's `name`, if a polygon is `closed`, units of `time`."""
    for info in _children(element, "custom_info"):
        for child in info:
            if child.tag == f"{{{OURS}}}gate":
                return child.get(name, "")
    return ""


def _number(element: Element, name: str, missing: float | None = None) -> float:
    text = _attribute(element, name)
    if not text:
        if missing is None:
            raise _Fault(f"{local(element.tag)} has no {name}")
        return missing
    return _parsed(text, name)


def _parsed(text: str, what: str) -> float:
    """Read an xs:double; NaN is no edge, no vertex and no parameter."""
    if not _NUMBER.fullmatch(text):
        raise _Fault(f"{what} is not a number: {text!r}")
    return float(text)


def _finite(element: Element, what: str) -> float:
    value = _number(element, "value")
    if not math.isfinite(value):
        raise _Fault(f"{what} is not finite: {_attribute(element, 'value')!r}")
    return value


def _boolean_value(element: Element, names: Sequence[str]) -> bool:
    text = next((value for name in names if (value := _attribute(element, name))), "false")
    table: Mapping[str, bool] = _TRUE
    if text.lower() not in table:
        raise _Fault(f"{names[0]} is not true or false: {text!r}")
    return table[text.lower()]
