"""Workspaces of FlowJo for the Mac up to 9.7: the parts that FlowJo 10 writes otherwise.

Gates are named elements with vertices in linear values; an edge is straight on the display, whose channels are listed
in a calibration table of the document. There is no published definition: the reading follows that of LabKey Flow
(Apache licence), which imports such workspaces, and is shown on documents built by hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from flowmrd.fcs import FcsFile
from flowmrd.gating.interop.document import Matrix, Scale
from flowmrd.gating.interop.expressions import Term, parse_expression
from flowmrd.gating.interop.vendor_scales import FlowJoLinear, FlowJoLog, FlowJoTable
from flowmrd.gating.interop.xml import local

F64 = NDArray[np.float64]

_SHAPES = {"Polygon": "polygon", "PolyRect": "rectangle", "Range": "range", "Ellipse": "ellipse"}
# FlowJo 9 draws parameters of 18 bits on this many channels and stores their vertices so.
_CHANNELS = 4096.0
# Vertices may be nudged a little above the scale.
_ABOVE = 1.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """One drawn gate: `kind` is polygon, rectangle, range or ellipse; `vertices` (n, 2) are as stored."""

    kind: str
    axes: tuple[str, ...]
    vertices: F64
    inverted: bool


def shapes(gate: Element) -> list[Shape]:
    """Return what is drawn in a `PolygonGate`; empty where FlowJo for the Mac did not write it.

    Raises
    ------
    ValueError
        A vertex is not a number, or an axis has no name.
    """
    found = []
    for element in gate:
        kind = _SHAPES.get(local(element.tag))
        if kind is None:
            continue
        names = [element.get("xAxisName") or "", element.get("yAxisName") or ""][: 1 if kind == "range" else 2]
        if not all(names):
            raise ValueError("an axis has no name")
        vertices = [
            [_number(vertex.get(side)) for side in ("x", "y")[: len(names)]]
            for polygon in element
            if local(polygon.tag) == "Polygon"
            for vertex in polygon
            if local(vertex.tag) == "Vertex"
        ]
        least = {"polygon": 3, "ellipse": 4}.get(kind, 2)
        if len(vertices) < least:
            raise ValueError(f"it has {len(vertices)} vertices, at least {least} are needed")
        found.append(
            Shape(
                kind=kind,
                axes=tuple(names),
                vertices=np.array(vertices, np.float64),
                inverted=element.get("negated") == "1" or element.get("eventsInside") == "0",
            )
        )
    return found


def _number(text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise ValueError(f"a vertex is not a number: {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"a vertex is not finite: {text!r}")
    return value


def expression(gate: Element, parent: str) -> Term:
    """Return the expression of a `BooleanGate` over the paths of populations.

    Parameters
    ----------
    gate : has `specification`, as `G0 & !G1`, and the populations in their order
    parent : path of the population that it is gated on; paths that begin with `/` are below it, each further `/` goes
        up a level

    Raises
    ------
    ValueError
        The expression cannot be read, or names more populations than are listed.
    """
    listed = [text for element in gate.iter() if local(element.tag) == "String" for text in [element.text or ""]]
    paths = [_absolute(text.strip(), parent) for text in listed]

    def placed(term: Term) -> Term:
        if term.operator != "name":
            return Term(operator=term.operator, parts=tuple(placed(part) for part in term.parts))
        number = term.name.removeprefix("G")
        if not number.isdecimal() or int(number) >= len(paths):
            raise ValueError(f"{term.name!r} is none of the {len(paths)} populations that it lists")
        return Term(operator="name", name=paths[int(number)])

    return placed(parse_expression(gate.get("specification") or ""))


def _absolute(path: str, parent: str) -> str:
    if not path.startswith("/"):
        return f"/{path}"
    above = parent
    for _ in range(len(path) - len(path.lstrip("/")) - 1):
        above = above.rpartition("/")[0]
    return f"{above}/{path.lstrip('/')}"


def scales(root: Element, sample: Element, affixes: tuple[str, str]) -> tuple[dict[str, Scale], dict[str, str]]:
    """Return the scale of each parameter (also under its compensated name), and why one has none."""
    tables = [
        element.text or ""
        for group in root
        if local(group.tag) == "CalibrationTables"
        for element in group
        if local(element.tag) == "Table"
    ]
    found: dict[str, Scale] = {}
    unreadable: dict[str, str] = {}
    for element in sample:
        name = element.get("name") or ""
        if local(element.tag) != "Parameter" or not name:
            continue
        for label in (name, name.join(affixes)):
            try:
                found.setdefault(label, _scale(element, tables))
            except ValueError as error:
                unreadable[label] = str(error)
    return found, unreadable


def _scale(parameter: Element, tables: Sequence[str]) -> Scale:
    index = (parameter.get("calibrationIndex") or "0").strip()
    if index.isdecimal() and 0 < int(index) <= len(tables):
        return FlowJoTable(values=_table(tables[int(index) - 1]))
    high = _given(parameter, "highValue", _CHANNELS)
    if parameter.get("log") == "1":
        low = max(_given(parameter, "lowValue", 1.0), 1.0)
        return FlowJoLog(offset=low, decades=math.log10(high / low) if high > low else 1.0)
    return FlowJoLinear(low=0.0, high=high)


def _given(element: Element, name: str, missing: float) -> float:
    try:
        value = float(element.get(name) or "")
    except ValueError:
        return missing
    return value if math.isfinite(value) and value > 0 else missing


def _table(text: str) -> tuple[float, ...]:
    """Return the linear value of each display channel: of the pairs listed, one number runs evenly, which is it not."""
    cells = [cell for cell in text.replace("\n", ",").split(",") if cell.strip()]
    try:
        numbers = np.array([float(cell) for cell in cells])
    except ValueError:
        raise ValueError("its calibration table is not a list of numbers") from None
    if numbers.size < 4 or numbers.size % 2 or not np.isfinite(numbers).all():
        raise ValueError("its calibration table is not a list of pairs")
    first, second = numbers[::2], numbers[1::2]
    channels, values = (second, first) if _even(second) and not _even(first) else (first, second)
    if not _even(channels) or not np.all(np.diff(values) > 0):
        raise ValueError("its calibration table does not rise from channel to channel")
    return tuple(float(value) for value in values)


def _even(numbers: F64) -> bool:
    steps = np.diff(numbers)
    return bool(np.all(steps > 0) and np.ptp(steps) <= 1e-6 * steps[0])


def coarse_axis(parameter: Element | None, values: F64, name: str, fcs: FcsFile) -> F64:
    """Return stored vertices in linear values: FlowJo 9 puts linear axes of 18 bits on 4096 channels."""
    if parameter is None or parameter.get("log") == "1" or (parameter.get("calibrationIndex") or "0") != "0":
        return values
    ranges = [channel.range for channel in fcs.channels if channel.pnn == name]
    coarse = {_given(parameter, "range", 0.0), _given(parameter, "highValue", 0.0)} == {_CHANNELS}
    if not coarse or not ranges or ranges[0] <= _CHANNELS or values.max(initial=0.0) > _CHANNELS * _ABOVE:
        return values
    return values * (ranges[0] / _CHANNELS)


def parameter_of(sample: Element, name: str) -> Element | None:
    """Return the `Parameter` of a name."""
    return next((one for one in sample if local(one.tag) == "Parameter" and one.get("name") == name), None)


def matrix(root: Element, sample: Element) -> tuple[Matrix | None, str, str]:
    """Return the sample's matrix, and what goes before and after a compensated parameter's name.

    `compensationID` counts the document's matrices from 1; with another number the file's own is meant.

    Raises
    ------
    ValueError
        The matrix cannot be read.
    """
    listed = [
        element
        for group in root
        if local(group.tag) == "CompensationMatrices"
        for element in group
        if local(element.tag) == "CompensationMatrix"
    ]
    index = (sample.get("compensationID") or "").strip()
    if not index.isdecimal() or not 0 < int(index) <= len(listed):
        return None, "<", ">"
    element = listed[int(index) - 1]
    rows: dict[str, Mapping[str, float]] = {}
    for channel in element:
        if local(channel.tag) == "Channel":
            cells = {cell.get("name") or "": _number(cell.get("value")) for cell in channel}
            rows[channel.get("name") or ""] = cells
    names = tuple(rows)
    if not names or any(set(row) != set(names) for row in rows.values()):
        raise ValueError("its rows and columns name different parameters")
    values = np.array([[row[detector] for detector in names] for row in rows.values()], np.float64)
    if np.linalg.matrix_rank(values) < len(names):
        raise ValueError("it cannot be inverted")
    # Percent, where every dye counts 100 in its own detector.
    if np.all(np.diag(values) == 100.0):
        values /= 100.0
    values.flags.writeable = False
    label = element.get("name") or "matrix"
    found = Matrix(id=label, fluorochromes=names, detectors=names, values=values)
    prefix, suffix = element.get("prefix"), element.get("suffix")
    return found, "<" if prefix is None else prefix, ">" if suffix is None else suffix
