"""FACSDiva experiments (XML): the gate tree of one tube, with Diva's scales, compensation and stored counts.

Diva keeps the gates where they were drawn: in the tube itself, or in the global worksheet that the tube names. A gate
stores its vertices as it is drawn: in display channels 0 … 4095 of a biexponential axis, in decades of a log axis, or
in linear values, together with the axis's scale value; so a gate is evaluated with its own scale, whatever the tube's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.compensation import unmixing_matrix
from flowmrd.errors import CompensationError, InputError, Level, QcFinding
from flowmrd.fcs import FcsFile
from flowmrd.gating.gates import Boolean, Gate, Polygon, Rectangle
from flowmrd.gating.interop.document import (
    FROM_FILE,
    UNCOMPENSATED,
    Dimension,
    ForeignGate,
    ForeignStrategy,
    Matrix,
    Scale,
)
from flowmrd.gating.interop.vendor_scales import (
    BINS,
    DIVA_CHANNELS,
    diva_biexponential,
    diva_linear,
    diva_log,
)
from flowmrd.gating.interop.xml import FreePaths, check_gates, local, parse_xml

KIND = "diva"
# Diva evaluates gates on a raster of this many channels (docs/reference/interop-vendors.md).
_RASTER = "256"
_TOP = 262144.0
_MAX_NAMED = 12
# A height follows its area, a width hardly does: how much closer (in the correlation of logarithms) the column called
# width must follow the area before the document's word is taken over the file's.
_SWAP_EVIDENCE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameter:
    """What Diva says of one parameter: its column, the top of its axis, and its row of the compensation."""

    name: str
    column: int | None
    top: float
    compensation: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One gate of a tube, as the experiment shows it: no FCS file needed."""

    sample: str
    path: str
    kind: str
    axes: tuple[str, ...]
    scales: tuple[str, ...]
    count: int | None


@dataclass(slots=True)
class _Reading:
    """What is gathered while a tube's gates are read."""

    fcs: FcsFile
    parameters: dict[str, _Parameter]
    columns: dict[str, str]
    compensation: str
    dimensions: dict[str, Dimension] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)
    gates: list[ForeignGate] = field(default_factory=list)
    findings: list[QcFinding] = field(default_factory=list)


class _Unreadable(Exception):  # noqa: N818 - becomes a finding, never leaves this module
    """A gate that cannot be used, and why."""


def read_strategy(data: bytes, name: str, fcs: FcsFile, *, tube: str | None = None) -> ForeignStrategy:
    """Read the gates of the tube that a file is.

    Parameters
    ----------
    data : the XML's bytes
    name : its file name, for messages
    fcs : the file to gate; the tube is found by `data_filename`, then `$FIL`, then the number of events
    tube : tube name (or `specimen/tube`, or a worksheet's name) to take instead

    Raises
    ------
    InputError
        It is not a Diva experiment, no tube (or more than one) fits the file, or the tube's worksheet is not there.
    """
    root = _experiment(data, name)
    element = _tube(root, name, fcs, tube)
    holder = _gate_holder(root, element, name)
    parameters = _parameters(element) or _parameters(holder)
    matrices, compensation, findings = _compensation(element, parameters, fcs)
    columns, more = _columns(parameters, fcs)
    reading = _Reading(
        fcs=fcs, parameters=parameters, columns=columns, compensation=compensation, findings=[*findings, *more]
    )
    _read_gates(reading, holder, element, name)
    return ForeignStrategy(
        source=name,
        kind=KIND,
        dimensions=reading.dimensions,
        scales=reading.scales,
        matrices=matrices,
        gates=tuple(reading.gates),
        events=_tube_events(element) or None,
        findings=tuple(reading.findings),
        unread=frozenset(one.where for one in reading.findings if one.code == "GATE_LEFT_OUT"),
    )


def read_tree(data: bytes, name: str) -> tuple[Node, ...]:
    """List the gates of every tube with the counts that are stored for it, without an FCS file.

    Parameters
    ----------
    data : the XML's bytes
    name : its file name, for messages

    Raises
    ------
    InputError
        It is not a Diva experiment, or a tube's worksheet is not there.
    """
    root = _experiment(data, name)
    nodes = []
    for tube, specimen in _named(root, "tube"):
        holder = _gate_holder(root, tube, name)
        elements, paths, counted = _placed(holder, tube, name)
        for element in elements:
            path = paths.get(element.get("fullname") or "", "")
            if not path:
                continue
            region = _child(element, "region")
            kind = (element.get("type") or "") if region is None else (region.get("type") or "")
            ends = [] if region is None else [end for end in "xy" if region.get(f"{end}parm")]
            nodes.append(
                Node(
                    sample="/".join(filter(None, (specimen, tube.get("name")))),
                    path=path,
                    kind=kind.removesuffix("_Classifier").removesuffix("_REGION").lower() or "population",
                    axes=() if region is None else tuple(region.get(f"{end}parm") or "" for end in ends),
                    scales=tuple(_scale_name(element, end) for end in ends),
                    count=_integer(element, "num_events") if counted else None,
                )
            )
    return tuple(nodes)


def _scale_name(element: Element, axis: str) -> str:
    if _text(element, f"is_{axis}_parameter_scaled") == "true":
        return "biexponential"
    return "log" if _text(element, f"is_{axis}_parameter_log") == "true" else "linear"


# --------------------------------------------------------------------------------------------------------- the document


def _experiment(data: bytes, name: str) -> Element:
    root = parse_xml(data, name)
    if local(root.tag) != "bdfacs":
        raise InputError(f"expected a FACSDiva experiment (<bdfacs>), got <{local(root.tag)}>", source=name)
    return root


def _child(element: Element, name: str) -> Element | None:
    return next((child for child in element if local(child.tag) == name), None)


def _text(element: Element, name: str) -> str:
    child = _child(element, name)
    return "" if child is None else (child.text or "").strip()


def _integer(element: Element, name: str) -> int | None:
    try:
        return int(_text(element, name))
    except ValueError:
        return None


def _real(text: str | None, what: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise _Unreadable(f"{what} is not a number") from None
    if not math.isfinite(value):
        raise _Unreadable(f"{what} is not finite")
    return value


def _named(root: Element, tag: str) -> Iterator[tuple[Element, str]]:
    """Yield every element of a tag with the name of the element around it."""
    for parent in root.iter():
        for child in parent:
            if local(child.tag) == tag:
                yield child, parent.get("name") or ""


def _tube(root: Element, name: str, fcs: FcsFile, tube: str | None) -> Element:
    tubes = list(_named(root, "tube"))
    templates = list(_named(root, "worksheet_template"))
    labels = [f"{specimen}/{element.get('name')}" for element, specimen in tubes]
    some = ", ".join(labels[:_MAX_NAMED])
    if len(labels) > _MAX_NAMED:
        some += f" and {len(labels) - _MAX_NAMED} more"
    if tube is not None:
        found = [e for e, specimen in tubes if tube in {e.get("name"), f"{specimen}/{e.get('name')}"}]
        found = found or [e for e, _ in templates if e.get("name") == tube]
        if not found:
            raise InputError(f"no tube {tube!r} in the experiment", source=name, hint=f"it has {some or 'none'}")
        return _only(found, name, fcs)
    if not tubes:
        raise InputError("the experiment holds no tubes", source=name)
    file_name = fcs.path.replace("\\", "/").rpartition("/")[2].casefold()
    fil = fcs.keywords.get("$FIL", "").strip().casefold()
    for wanted in (file_name, fil):
        found = [e for e, _ in tubes if wanted and _text(e, "data_filename").casefold() == wanted]
        if found:
            return _only(found, name, fcs)
    found = [e for e, _ in tubes if _tube_events(e) == fcs.event_count]
    if len(found) == 1:
        return found[0]
    raise InputError(
        "no tube of the experiment is this file, by data_filename, $FIL or number of events",
        source=name,
        hint=f"name one with --tube; it has {some}",
    )


def _tube_events(tube: Element) -> int | None:
    gates = _child(tube, "gates")
    for gate in () if gates is None else gates:
        if gate.get("type") == "EventSource_Classifier":
            return _integer(gate, "num_events")
    return None


def _only(found: Sequence[Element], name: str, fcs: FcsFile) -> Element:
    if len(found) > 1:
        found = [e for e in found if _tube_events(e) == fcs.event_count] or found
    if len(found) > 1:
        raise InputError(
            f"{len(found)} tubes of the experiment are this file",
            source=name,
            hint="name one with --tube specimen/tube",
        )
    return found[0]


def _gate_holder(root: Element, tube: Element, name: str) -> Element:
    """Return where the tube's gates are: in itself, or in the worksheet that it prefers."""
    gates = _child(tube, "gates")
    if gates is not None and any(g.get("type") != "EventSource_Classifier" for g in gates):
        return tube
    wanted = _text(tube, "pref_global_worksheet")
    if not wanted:
        return tube
    for template, _ in _named(root, "worksheet_template"):
        if template.get("name") == wanted:
            return template
    raise InputError(
        f"the tube's gates are in the worksheet {wanted!r}, which the document does not hold",
        source=name,
        hint="export the experiment from FACSDiva with its global worksheets",
    )


def _parameters(holder: Element) -> dict[str, _Parameter]:
    settings = _child(holder, "instrument_settings")
    found: dict[str, _Parameter] = {}
    for element in () if settings is None else settings:
        if local(element.tag) != "parameter":
            continue
        label = element.get("name") or ""
        try:
            largest = float(_text(element, "max") or "nan")
        except ValueError:
            largest = math.nan
        # A log parameter states its largest value in decades.
        top = 10.0**largest if _text(element, "is_log") == "true" and largest < 20.0 else largest + 1.0
        top = float(2 ** round(math.log2(top))) if math.isfinite(top) and 1.0 < top < 2.0**40 else _TOP
        row: tuple[float, ...] = ()
        compensation = _child(element, "compensation")
        if compensation is not None:
            try:
                row = tuple(_real(cell.text, "a compensation coefficient") for cell in compensation)
            except _Unreadable:
                row = ()
        found[label] = _Parameter(name=label, column=_integer(element, "raw_index"), top=top, compensation=row)
    return found


def _compensation(
    tube: Element, parameters: dict[str, _Parameter], fcs: FcsFile
) -> tuple[dict[str, Matrix], str, list[QcFinding]]:
    """Return the matrix that Diva applied, its id, and what does not fit.

    A parameter's `compensation` is its row of the inverted spillover: the weights of the detectors, in the order of the
    parameters that can be compensated.
    """
    settings = _child(tube, "instrument_settings")
    if settings is not None and _text(settings, "compensation_enabled") == "false":
        return {}, UNCOMPENSATED, []
    rows = [one for one in parameters.values() if one.compensation]
    names = tuple(one.name for one in rows)
    otherwise = UNCOMPENSATED if fcs.spillover is None else FROM_FILE
    if not rows:
        return {}, otherwise, []
    square = all(len(one.compensation) == len(rows) for one in rows)
    weights = np.array([one.compensation for one in rows], np.float64) if square else np.zeros((1, 1))
    if np.linalg.matrix_rank(weights) < len(rows):
        return {}, otherwise, [_note("MATRIX_UNUSED", "The tube's compensation is unreadable; the file's is used.")]
    values = np.ascontiguousarray(np.linalg.inv(weights).T, np.float64)
    values.flags.writeable = False
    findings = []
    known = {channel.pnn for channel in fcs.channels}
    if fcs.spillover is not None and set(names) <= known:
        places = [next(c.index for c in fcs.channels if c.pnn == label) for label in names]
        try:
            stored = unmixing_matrix(fcs.spillover, fcs.channels)[np.ix_(places, places)]
        except CompensationError:
            stored = None
        if stored is not None and float(np.max(np.abs(stored - weights.T))) > 1e-3:
            findings.append(
                _note("MATRIX_DIFFERS", "The experiment's compensation is not the file's; the experiment's is used.")
            )
    return {"diva": Matrix(id="diva", fluorochromes=names, detectors=names, values=values)}, "diva", findings


def _columns(parameters: dict[str, _Parameter], fcs: FcsFile) -> tuple[dict[str, str], list[QcFinding]]:
    """Return which of the file's columns a parameter is, where that is not the column of its name.

    Some exports list height before width while the data keep the order of acquisition, width before height, so the two
    columns carry each other's name. Two independent facts must say so: the experiment's `raw_index`, and the data
    (height follows area, width hardly does).
    """
    columns: dict[str, str] = {}
    findings = []
    names = [channel.pnn for channel in fcs.channels]
    for area in names:
        if not area.endswith("-A"):
            continue
        height, width = f"{area[:-1]}H", f"{area[:-1]}W"
        if not {height, width} <= set(names) or not {height, width} <= set(parameters):
            continue
        places = {label: names.index(label) for label in (height, width)}
        if parameters[height].column != places[width] or parameters[width].column != places[height]:
            continue
        x = fcs.column(names.index(area))
        if _follows(x, fcs.column(places[width])) <= _follows(x, fcs.column(places[height])) + _SWAP_EVIDENCE:
            continue
        columns[height], columns[width] = width, height
        findings.append(
            QcFinding(
                level=Level.WARNING,
                code="PULSE_COLUMNS_SWAPPED",
                message=(
                    f"The file's columns {height} and {width} hold each other's values (the experiment stores {width}"
                    f" first, and what is called {width} follows {area}); gates use the values they were drawn on."
                ),
                where=f"{height}, {width}",
            )
        )
    return columns, findings


def _follows(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return the correlation of logarithms, 0 where there is none."""
    good = (x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y)
    if np.count_nonzero(good) < 100:
        return 0.0
    a, b = np.log(x[good]), np.log(y[good])
    if float(a.std()) == 0.0 or float(b.std()) == 0.0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


# ---------------------------------------------------------------------------------------------------------------- gates


def _placed(holder: Element, tube: Element, name: str) -> tuple[list[Element], dict[str, str], bool]:
    """Return the gates of a tube or worksheet, full name → path, and whether their stored counts are the tube's."""
    container = _child(holder, "gates")
    elements = [] if container is None else [gate for gate in container if local(gate.tag) == "gate"]
    check_gates(len(elements), name)
    # A worksheet stores the counts of the tube that it showed last.
    counted = bool(_tube_events(holder)) and _tube_events(holder) == (_tube_events(tube) or _tube_events(holder))
    paths: dict[str, str] = {}
    taken = FreePaths()
    for element in elements:
        full = element.get("fullname") or ""
        if element.get("type") == "EventSource_Classifier":
            paths[full] = ""
            continue
        if element.get("type") == "Composite_Classifier":
            continue  # a quadrant's cross; its bins are gates of their own
        parent = _parent_name(element)
        label = _text(element, "name") or full.rpartition("\\")[2] or "unnamed"
        path = f"{paths.get(parent, '/' + parent.replace(chr(92), '/')) if parent else ''}/{label}"
        paths[full] = taken.free(path)
    return elements, paths, counted


def _read_gates(reading: _Reading, holder: Element, tube: Element, name: str) -> None:
    """Read all gates of a tube or worksheet."""
    elements, paths, counted = _placed(holder, tube, name)
    for element in elements:
        full = element.get("fullname") or ""
        if element.get("type") in {"EventSource_Classifier", "Composite_Classifier"}:
            continue
        path = paths[full]
        label = _text(element, "name") or full.rpartition("\\")[2] or "unnamed"
        try:
            parent = _parent(element, paths)
            gate = _gate(reading, element, paths)
        except (_Unreadable, ValueError) as error:
            message = f"Gate {label} is left out: {error}."
            reading.findings.append(QcFinding(level=Level.WARNING, code="GATE_LEFT_OUT", message=message, where=path))
            continue
        reading.gates.append(
            ForeignGate(
                name=label,
                path=path,
                parent=parent,
                gate=gate,
                count=_integer(element, "num_events") if counted else None,
                info={} if isinstance(gate, Boolean) else {BINS: _RASTER},
            )
        )


def _parent(element: Element, paths: dict[str, str]) -> str:
    parent = _parent_name(element)
    if not parent:
        return ""
    if parent not in paths:
        raise _Unreadable(f"its parent {parent} is not there")
    return paths[parent]


def _parent_name(element: Element) -> str:
    """Return the parent's full name; of a region its input is the same thing."""
    inputs = _inputs(element) if _child(element, "region") is not None else ()
    return _text(element, "parent") or (inputs[0] if len(inputs) == 1 else "")


# How Diva derives a population from others, by what its type begins with.
_DERIVED = {
    "restof": "neither",
    "not": "neither",
    "invert": "neither",
    "inverse": "neither",
    "and": "and",
    "intersect": "and",
    "or": "or",
    "join": "or",
    "union": "or",
}


def _gate(reading: _Reading, element: Element, paths: dict[str, str]) -> Gate:
    region = _child(element, "region")
    kind = (element.get("type") or "").removesuffix("_Classifier")
    if region is None:
        operator = next((how for start, how in _DERIVED.items() if kind.casefold().startswith(start)), None)
        if operator is None:
            raise _Unreadable(f"Diva's gate type {kind!r} is not known")
        return _derived(operator, _inputs(element), paths)
    points = _child(region, "points")
    vertices = [
        (_real(point.get("x"), "a vertex"), _real(point.get("y"), "a vertex") if point.get("y") is not None else 0.0)
        for point in (() if points is None else points)
    ]
    x, x_size = _dimension(reading, element, region, "x")
    match (region.get("type") or "").removesuffix("_REGION"):
        case "INTERVAL":
            _enough(vertices, 2)
            low, high = sorted((vertices[0][0] / x_size, vertices[1][0] / x_size))
            return _closed((x,), (low,), (high,))
        case "RECTANGLE":
            _enough(vertices, 2)
            y, y_size = _dimension(reading, element, region, "y")
            across, up = [vx / x_size for vx, _ in vertices], [vy / y_size for _, vy in vertices]
            return _closed((x, y), (min(across), min(up)), (max(across), max(up)))
        case "POLYGON":
            _enough(vertices, 3)
            y, y_size = _dimension(reading, element, region, "y")
            corners = tuple((vx / x_size, vy / y_size) for vx, vy in vertices)
            return Polygon(markers=(x, y), vertices=corners, closed=True)
        case shape:
            raise _Unreadable(f"Diva's region type {shape!r} is not known")


def _inputs(element: Element) -> tuple[str, ...]:
    return tuple((child.text or "").strip() for child in element if local(child.tag) == "input")


def _derived(operator: str, inputs: tuple[str, ...], paths: dict[str, str]) -> Boolean:
    """Return what a population is derived from; within its own parent, as everything that is drawn."""
    unknown = [one for one in inputs if one not in paths]
    if not inputs or unknown:
        raise _Unreadable(f"it is made of {', '.join(unknown) or 'nothing'}, which is not there")
    # All events have no outline of their own: meeting them changes nothing, joining or inverting them is no gate.
    drawn = tuple(one for one in inputs if paths[one])
    if not drawn or (operator != "and" and len(drawn) < len(inputs)):
        raise _Unreadable("it is made of all events, which is no gate")
    complement = operator == "neither"
    return Boolean(
        operator="and" if complement else operator, operands=tuple((paths[one], complement) for one in drawn)
    )


def _enough(vertices: Sequence[tuple[float, float]], least: int) -> None:
    if len(vertices) < least:
        raise _Unreadable(f"it has {len(vertices)} vertices, at least {least} are needed")


def _closed(markers: tuple[str, ...], low: tuple[float, ...], high: tuple[float, ...]) -> Rectangle:
    """Return a rectangle that includes its upper edge, so that one drawn to the border holds what piles up there."""
    return Rectangle(markers=markers, low=low, high=tuple(math.nextafter(side, math.inf) for side in high))


def _dimension(reading: _Reading, element: Element, region: Element, axis: str) -> tuple[str, float]:
    """Return the key of an axis, and what its vertices are divided by to come to 0 … 1."""
    name = region.get(f"{axis}parm") or ""
    if not name:
        raise _Unreadable(f"it has no {axis} parameter")
    parameter = reading.parameters.get(name)
    top = parameter.top if parameter is not None else _TOP
    scale: Scale
    if _text(element, f"is_{axis}_parameter_scaled") == "true":
        value = max(_real(_text(element, f"{axis}_parameter_scale_value"), f"the {axis} scale value"), 0.0)
        label, scale, size = f"biexponential {value:g}", diva_biexponential(value, top=top), float(DIVA_CHANNELS)
    elif _text(element, f"is_{axis}_parameter_log") == "true":
        label, scale, size = "log", diva_log(top=top), math.log10(top)
    else:
        label, scale, size = "linear", diva_linear(top=top), top
    scale_id = f"{label} {top:g}"
    key = f"{name} {scale_id}"
    if key not in reading.dimensions:
        reading.scales[scale_id] = scale
        reading.dimensions[key] = Dimension(
            key=key,
            channel=reading.columns.get(name, name),
            compensation=reading.compensation if _compensable(name, reading) else UNCOMPENSATED,
            scale=scale_id,
        )
    return key, size


def _compensable(name: str, reading: _Reading) -> bool:
    parameter = reading.parameters.get(name)
    return parameter is None or reading.compensation == FROM_FILE or bool(parameter.compensation)


def _note(code: str, message: str) -> QcFinding:
    return QcFinding(level=Level.WARNING, code=code, message=message)
