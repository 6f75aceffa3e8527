"""Gates of one Kaluza protocol: their kinds, the coordinates they are stored in, and the axes they lie on.

What is known of the format, from where, and what is assumed stands in `docs/reference/interop-vendors.md`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.transforms import Logicle
from flowmrd.errors import Level, QcFinding
from flowmrd.gating.gates import Boolean, Ellipsoid, Gate, Polygon, Rectangle
from flowmrd.gating.interop import kaluza_logic
from flowmrd.gating.interop.document import UNCOMPENSATED, Dimension, Matrix, Scale
from flowmrd.gating.interop.vendor_scales import Clipped, FlowJoLinear, LogBelowTop
from flowmrd.gating.interop.xml import MAX_DEPTH, local

F64 = NDArray[np.float64]
# A display scale without its ends.
Display = Logicle | LogBelowTop | FlowJoLinear

# Kaluza itself allows 318 gates in a protocol.
MAX_GATES = 10_000
_LARGEST = 1e15
_MOST_DECADES = 20.0
_CHANNELS = 1024.0
# What lies beyond the plot is drawn on its first or last channel; gates drawn to the border end half a channel from it,
# and the edge of a polygon is nobody's.
_BOTTOM, _TOP = 0.75 / _CHANNELS, 1.0 - 0.75 / _CHANNELS
_BORDER = 0.5 / _CHANNELS
_SCALES = {"I": "LinearScale", "O": "LogScale", "C": "LogicleScale"}
_DEFAULTS = {"LinearScale": {}, "LogScale": {"D": "4"}, "LogicleScale": {"D": "4.5", "W": "0.1"}}
# Sides (x low, x high, y low, y high) that a part of a divider or of a quadrant leaves open.
_OPEN = {
    "LG": (True, False, False, False),
    "RG": (False, True, False, False),
    "ULG": (True, False, False, True),
    "URG": (False, True, False, True),
    "LLG": (True, False, True, False),
    "LRG": (False, True, True, False),
}


class Unreadable(Exception):  # noqa: N818 - becomes a finding, never leaves the reader
    """A part of the document that cannot be used, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measurement of a protocol.

    `channel` is what the file calls it, `top` the top of its range in the file's linear values, `gain` the file's gain,
    and `scales` the attributes of its scales by the element's name, folded. With `coarse` the file has only the 10-bit
    logarithmic twin of the signal, which the cytometer compensated.
    """

    name: str
    channel: str
    detector: str
    pulse: str
    top: float
    gain: float = 1.0
    coarse: bool = False
    scales: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One gate as the document holds it, before any file is known; `gate` is `None` where it cannot be used."""

    data_set: str
    path: str
    parent: str
    name: str
    axes: tuple[str, ...]
    scales: tuple[str, ...]
    gate: Gate | None
    why_not: str = ""


@dataclass(slots=True)
class Reading:
    """What is known before the gates of one protocol are read, and what is gathered from them.

    `background` is, by channel, what compensation adds to the compensated value.
    """

    measurements: Mapping[str, Measurement]
    matrix: Matrix | None = None
    compensation: str = UNCOMPENSATED
    background: Mapping[str, float] = field(default_factory=dict)
    dimensions: dict[str, Dimension] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)
    findings: list[QcFinding] = field(default_factory=list)
    displays: dict[str, Display] = field(default_factory=dict)

    def assume(self, what: str, where: str) -> None:
        """Note once that something was read by an assumption."""
        finding = QcFinding(level=Level.WARNING, code="KALUZA_ASSUMED", message=what, where=where)
        if finding not in self.findings:
            self.findings.append(finding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """A display scale of compensated values that had their background taken away and given back."""

    display: Display
    background: float
    low: float
    high: float

    def forward(self, x: F64, out: F64 | None = None) -> F64:
        """Linear values to 0 … 1 of the axis, what lies beyond on its ends."""
        y = self.display.forward(np.asarray(x, np.float64) + self.background)
        return np.clip(y, self.low, self.high, out=y if out is None else out)

    def inverse(self, y: F64) -> F64:
        """0 … 1 of the axis to linear values, without regard to its ends."""
        y = np.asarray(y, np.float64)
        match self.display:
            case FlowJoLinear(low=low, high=high):
                x = low + y * (high - low)
            case LogBelowTop(top=top, decades=decades):
                x = top * 10.0 ** (decades * (y - 1.0))
            case logicle:
                x = logicle.inverse(y)
        return np.asarray(x - self.background, np.float64)


# ------------------------------------------------------------------------------------------------------------ elements


def children(element: Element | None, name: str) -> list[Element]:
    """Return the children of a name, in whatever case and namespace."""
    if element is None:
        return []
    return [one for one in element if isinstance(one.tag, str) and local(one.tag).casefold() == name.casefold()]


def child(element: Element | None, name: str) -> Element | None:
    """Return the first child of a name, or nothing."""
    return next(iter(children(element, name)), None)


def text_of(element: Element | None, name: str) -> str:
    """Return the text of the first child of a name; empty where there is none."""
    found = child(element, name)
    return "" if found is None else (found.text or "").strip()


def attribute(element: Element, name: str) -> str:
    """Return an attribute in whatever case and namespace; empty where there is none."""
    value = element.get(name)
    if value is None:
        folded = name.casefold()
        value = next((given for key, given in element.attrib.items() if local(key).casefold() == folded), "")
    return value.strip()


def number(text: str | None, what: str) -> float:
    """Return a number, with a point or a decimal comma.

    Raises
    ------
    Unreadable
        It is not a finite number of a size that an instrument could give.
    """
    plain = (text or "").strip()
    if "." not in plain and plain.count(",") == 1:
        plain = plain.replace(",", ".")
    try:
        value = float(plain)
    except ValueError:
        raise Unreadable(f"{what} is not a number") from None
    if not math.isfinite(value):
        raise Unreadable(f"{what} is not finite")
    if abs(value) > _LARGEST:
        raise Unreadable(f"{what} is out of range")
    return value


def _vertex(point: Element, axes: int) -> tuple[float, ...]:
    """Return a vertex `x,y`; where a comma is the decimal sign, `x;y` or `x,x,y,y`."""
    given = attribute(point, "O") or (point.text or "").strip()
    parts = given.split(";") if ";" in given else given.split(",")
    if ";" not in given and "." not in given and len(parts) == 4:
        parts = [f"{parts[0]}.{parts[1]}", f"{parts[2]}.{parts[3]}"]
    values = tuple(number(part, "a vertex") for part in parts)
    if not axes <= len(values) <= 2:
        raise Unreadable("a vertex has another number of coordinates than the gate has axes")
    # A range on a histogram has a height too, which says where it is drawn.
    return values[:axes]


def _vertices(element: Element, axes: int) -> list[tuple[float, ...]]:
    return [_vertex(point, axes) for point in children(child(element, "P"), "P")]


def _axes(element: Element) -> list[tuple[str, str]]:
    axes = children(child(element, "A"), "A")
    return [(attribute(axis, "M"), (attribute(axis, "S") or "I").upper()) for axis in axes]


# --------------------------------------------------------------------------------------------------------------- a tree


def read_gates(reading: Reading, protocol: Element, data_set: str) -> list[Node]:
    """Return every gate of a protocol, the unusable ones with the reason.

    Names are unique in a Kaluza protocol, and parents and operands are named by them; a name that repeats cannot be
    referred to.
    """
    every = [one for one in child(protocol, "Gates") or () if attribute(one, "N")]
    by_name: dict[str, list[Element]] = {}
    for element in every:
        by_name.setdefault(attribute(element, "N"), []).append(element)
    paths = {label: _path(label, by_name) for label in by_name}
    walk = _Walk(
        reading=reading,
        data_set=data_set,
        by_name=by_name,
        paths=paths,
        open_sides=_open_sides(protocol),
        in_values=_in_values(reading, every),
    )
    return [node for element in every for node in walk.nodes(element)]


def _path(label: str, by_name: Mapping[str, Sequence[Element]]) -> str | None:
    """Return a gate's path; nothing where its parents go in a circle or on for too long."""
    parts = [label]
    seen = {label}
    while parent := attribute(by_name[parts[-1]][0], "G"):
        if parent in seen or len(parts) >= MAX_DEPTH:
            return None
        parts.append(parent)
        seen.add(parent)
        if parent not in by_name:
            break
    return "/" + "/".join(reversed(parts))


def _open_sides(protocol: Element) -> dict[str, tuple[bool, bool, bool, bool]]:
    """Return which sides of a gate are open because it is part of a divider or of a quadrant."""
    found: dict[str, tuple[bool, bool, bool, bool]] = {}
    for constraint in child(protocol, "GateConstraints") or ():
        if not isinstance(constraint.tag, str):
            continue
        for key, label in constraint.attrib.items():
            role = local(key).upper()
            if role in _OPEN and (len(role) == 3 or "divider" in local(constraint.tag).casefold()):
                found[label.strip()] = _OPEN[role]
    return found


def _in_values(reading: Reading, every: Sequence[Element]) -> bool:
    """Say whether vertices are linear values (Kaluza 2) and not display channels (Kaluza 1).

    Kaluza 1 keeps vertices within the plot's channels. Of twenty-bit values some vertex lies far above.
    """
    for element in every:
        axes = _axes(element)
        try:
            vertices = _vertices(element, len(axes)) if axes else []
        except Unreadable:
            continue
        for column, (name, letter) in enumerate(axes):
            channels = _channels(reading.measurements.get(name), letter)
            if any(not -0.1 * channels <= vertex[column] <= 1.1 * channels for vertex in vertices):
                return True
    return False


def _channels(measurement: Measurement | None, letter: str) -> float:
    """Return over how many channels an axis is drawn."""
    given = {} if measurement is None else measurement.scales.get(_SCALES.get(letter, "").casefold(), {})
    try:
        channels = number(given.get("DR"), "DR")
    except Unreadable:
        return _CHANNELS
    return channels if channels >= 1 else _CHANNELS


@dataclass(slots=True, kw_only=True)
class _Walk:
    """One pass over the gates of a protocol."""

    reading: Reading
    data_set: str
    by_name: Mapping[str, Sequence[Element]]
    paths: Mapping[str, str | None]
    open_sides: Mapping[str, tuple[bool, bool, bool, bool]]
    in_values: bool
    told: Counter[str] = field(default_factory=Counter)

    def nodes(self, element: Element) -> Iterator[Node]:
        """Yield the terms of a gate that have no name, then the gate."""
        label, above = attribute(element, "N"), attribute(element, "G")
        parent = (self.paths.get(above) or f"/{above}") if above else ""
        own = self.paths[label]
        path = own or f"{parent}/{label}"
        if element is not self.by_name[label][0]:
            path = f"{parent}/{label}"
        self.told[path] += 1
        if self.told[path] > 1:
            path = f"{path} ({self.told[path]})"
        axes = _axes(element)
        gate: Gate | None = None
        helpers: list[tuple[str, Boolean]] = []
        why = ""
        try:
            if own is None:
                raise Unreadable("its parents go in a circle, or are too many")  # noqa: TRY301
            self._check_parent(element, above)
            if local(element.tag).casefold() == "b" or (not axes and child(element, "P") is None):
                gate, helpers = self._boolean(element, path)
            else:
                gate = self._drawn(element, axes, path)
        except (Unreadable, ValueError) as error:
            why = str(error)
        for name, helper in helpers:
            yield self._node(f"{parent}/{name}", parent, name, (), helper)
        yield self._node(path, parent, label, axes, gate, why)

    def _node(
        self,
        path: str,
        parent: str,
        name: str,
        axes: Sequence[tuple[str, str]],
        gate: Gate | None,
        why: str = "",
    ) -> Node:
        return Node(
            data_set=self.data_set,
            path=path,
            parent=parent,
            name=name,
            axes=tuple(measurement for measurement, _ in axes),
            scales=tuple(scale for _, scale in axes),
            gate=gate,
            why_not=why,
        )

    def _check_parent(self, element: Element, above: str) -> None:
        if not above:
            return
        if above not in self.by_name:
            raise Unreadable(f"its parent {above} is not there")
        if len(self.by_name[above]) > 1:
            raise Unreadable(f"its parent {above} is the name of several gates")
        part = attribute(element, "J")
        if part not in {"", "0"}:
            raise Unreadable(f"its parent is part {part} of {above}, and what that is is not known")

    # ------------------------------------------------------------------------------------------------- drawn gates

    def _drawn(self, element: Element, axes: Sequence[tuple[str, str]], path: str) -> Gate:
        kind = local(element.tag).upper()
        if kind not in {"L", "R", "P", "E"} or len(axes) != (1 if kind == "L" else 2):
            raise Unreadable(f"the meaning of Kaluza's gate type {kind} with {len(axes)} axes is not known")
        points = _vertices(element, len(axes))
        lines = [self._axis(name, letter) for name, letter in axes]
        corners = [tuple(line.place(v) for line, v in zip(lines, point, strict=True)) for point in points]
        keys = tuple(line.key for line in lines)
        if kind == "E":
            return self._ellipse(element, points, lines, path)
        if kind in {"L", "R"}:
            if len(corners) < 2:
                raise Unreadable("it has fewer than two corners")
            return _rectangle(keys, corners, self.open_sides.get(attribute(element, "N"), (False,) * 4))
        if len(corners) < 3:
            raise Unreadable("it has fewer than three vertices")
        vertices = tuple((x, y) for x, y in corners)
        if _area(vertices) == 0.0:
            raise Unreadable("its vertices enclose nothing (the corners of a hinged quadrant are not stored)")
        return Polygon(markers=(keys[0], keys[1]), vertices=vertices)

    def _ellipse(self, element: Element, points: list[tuple[float, ...]], lines: list[_Line], path: str) -> Ellipsoid:
        coefficients = [
            number(one.text, "a coefficient of the ellipse") for one in child(element, "Coefficients") or ()
        ]
        if len(points) != 1 or len(coefficients) != 2 or min(coefficients) <= 0:
            raise Unreadable("an ellipse of another form than a centre and two coefficients is not known")
        if self.in_values and any(line.letter != "I" for line in lines):
            raise Unreadable("how an ellipse in linear values lies on a logarithmic axis is not known")
        turned = number(attribute(element, "L") or "0", "the angle of the ellipse") % 180.0
        if turned and coefficients[0] != coefficients[1]:
            raise Unreadable("which way round Kaluza turns an ellipse is not known")
        unit = [line.top if self.in_values else line.channels for line in lines]
        x, y = (value / width**2 for value, width in zip(coefficients, unit, strict=True))
        if max(x, y) > 4.0:
            raise Unreadable("its half axes are longer than the plot")
        self.reading.assume(
            "An ellipse's coefficients are read as the squares of its half axes along x and y; no count confirms this.",
            path,
        )
        mean = tuple(line.place(v) for line, v in zip(lines, points[0], strict=True))
        return Ellipsoid(
            markers=tuple(line.key for line in lines),
            mean=mean,
            covariance=((x, 0.0), (0.0, y)),
            distance_square=1.0,
        )

    def _axis(self, name: str, letter: str) -> _Line:
        reading = self.reading
        measurement = reading.measurements.get(name)
        if measurement is None:
            raise Unreadable(f"the protocol has no measurement {name!r}")
        kind = _SCALES.get(letter)
        if kind is None:
            raise Unreadable(f"the meaning of Kaluza's scale {letter!r} is not known")
        key = f"{name} {kind.removesuffix('Scale').lower()}"
        if key not in reading.displays:
            reading.displays[key] = _display(kind, measurement, reading)
        inner = reading.displays[key]
        if key not in reading.dimensions:
            background = reading.background.get(measurement.channel, 0.0)
            compensated = reading.matrix is None or measurement.channel in reading.matrix.fluorochromes
            reading.scales[key] = (
                Raised(display=inner, background=background, low=_BOTTOM, high=_TOP)
                if background
                else Clipped(scale=inner, low=_BOTTOM, high=_TOP)
            )
            reading.dimensions[key] = Dimension(
                key=key,
                channel=measurement.channel,
                compensation=reading.compensation if compensated else UNCOMPENSATED,
                scale=key,
            )
        return _Line(
            key=key,
            letter=letter,
            channels=_channels(measurement, letter),
            top=measurement.top,
            gain=measurement.gain,
            scale=inner if self.in_values else None,
        )

    # ----------------------------------------------------------------------------------------------- boolean gates

    def _boolean(self, element: Element, path: str) -> tuple[Gate, list[tuple[str, Boolean]]]:
        label = attribute(element, "N")
        given = text_of(element, "ExpressionText")
        if not given:
            # Other spellings of the element: the only text that speaks of gates.
            others = [other for other in self.by_name if other != label]
            texts = [(one.text or "").strip() for one in element]
            texts += [value for key, value in element.attrib.items() if local(key).upper() not in {"N", "G", "J"}]
            given = next((text for text in texts if text and any(other in text for other in others)), "")
        if not given:
            kind = local(element.tag)
            raise Unreadable(f"the meaning of Kaluza's gate type {kind} without vertices or an expression is not known")
        expression = kaluza_logic.parse(given, list(self.by_name))
        if isinstance(expression, kaluza_logic.Name):
            return Boolean(operator="and", operands=(self._operand(expression),)), []
        helpers: list[tuple[str, Boolean]] = []
        gate = self._split(expression, label, attribute(element, "G"), helpers)
        if helpers:
            names = ", ".join(name for name, _ in helpers)
            message = (
                f"The expression of {label} has several operators; its terms are populations of their own: {names}."
            )
            self.reading.findings.append(QcFinding(level=Level.INFO, code="BOOLEAN_SPLIT", message=message, where=path))
        return gate, helpers

    def _split(
        self, expression: kaluza_logic.Joined, label: str, above: str, helpers: list[tuple[str, Boolean]]
    ) -> Boolean:
        """Turn a term into a boolean of one operator; its own terms become helpers before it."""
        operands = []
        for term in expression.terms:
            if isinstance(term, kaluza_logic.Name):
                operands.append(self._operand(term))
                continue
            inner = self._split(term, label, above, helpers)
            parent = (self.paths.get(above) or f"/{above}") if above else ""
            count = len(helpers) + 1
            while f"{parent}/{label} (term {count})" in self.told or f"{label} (term {count})" in self.by_name:
                count += 1
            name = f"{label} (term {count})"
            self.told[f"{parent}/{name}"] += 1
            helpers.append((name, inner))
            operands.append((f"{parent}/{name}", False))
        return Boolean(operator=expression.operator, operands=tuple(operands))

    def _operand(self, term: kaluza_logic.Name) -> tuple[str, bool]:
        if len(self.by_name[term.gate]) > 1:
            raise Unreadable(f"its expression names {term.gate}, which several gates are called")
        return self.paths[term.gate] or f"/{term.gate}", term.complement


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """One axis of a gate; `scale` only where vertices are linear values."""

    key: str
    letter: str
    channels: float
    top: float
    gain: float
    scale: Display | None

    def place(self, value: float) -> float:
        """Return where a vertex lies on the axis, 0 … 1; on the border where it is as good as there."""
        if self.scale is None:
            return value / self.channels
        y = float(self.scale.forward(np.array([value / self.gain]))[0])
        return 0.0 if y <= _BOTTOM else 1.0 if y >= _TOP else y


def _rectangle(
    keys: tuple[str, ...], corners: Sequence[tuple[float, ...]], opened: tuple[bool, bool, bool, bool]
) -> Rectangle:
    """Return the rectangle around the corners; a side on the border of the plot (half a channel) is open."""
    low = [min(corner[axis] for corner in corners) for axis in range(len(keys))]
    high = [max(corner[axis] for corner in corners) for axis in range(len(keys))]
    return Rectangle(
        markers=keys,
        low=tuple(-math.inf if v <= _BORDER or opened[2 * i] else v for i, v in enumerate(low)),
        high=tuple(math.inf if v >= 1.0 - _BORDER or opened[2 * i + 1] else v for i, v in enumerate(high)),
    )


def _area(vertices: Sequence[tuple[float, float]]) -> float:
    """Return how large the box around the vertices is; a polygon that crosses itself may have no area of its own."""
    xs, ys = [x for x, _ in vertices], [y for _, y in vertices]
    return (max(xs) - min(xs)) * (max(ys) - min(ys))


def _display(kind: str, measurement: Measurement, reading: Reading) -> Display:
    """Return the scale of an axis, from linear values to 0 … 1, without its ends."""
    given = measurement.scales.get(kind.casefold())
    if given is None:
        given = _DEFAULTS[kind]
        what = ", ".join(f"{key} = {value}" for key, value in given.items())
        if what:
            reading.assume(f"The protocol states no {kind} for {measurement.name}; Kaluza's own {what} is used.", "")
    if kind == "LinearScale":
        bottom = number(given.get("OFF") or "0", f"the offset of {measurement.name}") / measurement.gain
        if bottom:
            reading.assume(f"The linear axis of {measurement.name} is read as beginning at its OFF, {bottom:g}.", "")
        return FlowJoLinear(low=bottom, high=bottom + measurement.top)
    defaults = _DEFAULTS[kind]
    decades = number(given.get("D") or defaults["D"], f"the number of decades of {measurement.name}")
    if not 0.1 <= decades <= _MOST_DECADES:
        raise Unreadable(f"the number of decades of {measurement.name} is out of range")
    if kind == "LogScale":
        return LogBelowTop(top=measurement.top, decades=decades)
    # W is a share of the scale, as in Moore and Parks' normalised form, not decades; no share exceeds a half.
    share = number(given.get("W") or defaults["W"], f"the width of {measurement.name}")
    width = share * decades if share <= 0.5 else share
    return Logicle(T=measurement.top, W=max(width, 0.0), M=decades)
