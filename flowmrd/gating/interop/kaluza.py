"""Kaluza analyses and protocols (.analysis, .protocol): the gate tree of one data set, with scales and compensation.

The container is a zip of XML documents (and of the data, which are not read). Gates are drawn in 1024 display channels;
each axis of a gate names a measurement and one of its scales: linear (I), log (O) or logicle (C).
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

import numpy as np

from flowmrd.cytometry.transforms import Logicle
from flowmrd.errors import InputError, Level, QcFinding
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
from flowmrd.gating.interop.vendor_scales import Clipped, FlowJoLinear, LogBelowTop
from flowmrd.gating.interop.xml import MAX_BYTES, local, parse_xml

KIND = "kaluza"
MAX_ENTRIES = 4096
MAX_TOTAL_BYTES = 4 * 2**30
MAX_RATIO = 200
# Below this size a member cannot hurt, however well it was packed.
_SMALL = 2**20
_MAX_NAMED = 12
_DISPLAY = 1024.0
_SCALES = {"I": "LinearScale", "O": "LogScale", "C": "LogicleScale"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measurement of a protocol: what the file calls it, its detector, top of range, and its scales."""

    name: str
    channel: str
    detector: str
    pulse: str
    top: float
    scales: Mapping[str, Mapping[str, str]]


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
class _Reading:
    """What is gathered while the gates of one protocol are read."""

    measurements: Mapping[str, Measurement]
    compensated: frozenset[str]
    compensation: str
    dimensions: dict[str, Dimension] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)
    findings: list[QcFinding] = field(default_factory=list)


class _Unreadable(Exception):  # noqa: N818 - becomes a finding, never leaves this module
    """A part of the document that cannot be used, and why."""


def read_strategy(data: bytes, name: str, fcs: FcsFile, *, tube: str | None = None) -> ForeignStrategy:
    """Read the gates of the data set that a file is.

    Parameters
    ----------
    data : the container's bytes (or those of its XML document)
    name : its file name, for messages
    fcs : the file to gate; the data set is found by its name, `$FIL`, the file's GUID, or the number of events
    tube : name of the data set to take instead

    Raises
    ------
    InputError
        It is not a Kaluza container, a cap is exceeded, or no data set (or more than one) fits the file.
    """
    entry, findings = _entry(_documents(data, name), name, fcs, tube)
    protocol = _descendant(entry, "Protocol")
    if protocol is None:
        raise InputError("the data set has no protocol, so no gates", source=name, where=_label(entry))
    measurements = _measurements(entry, protocol, {channel.pnn: channel.gain for channel in fcs.channels})
    matrix, compensation, more = _compensation(protocol, measurements, fcs)
    reading = _Reading(
        measurements=measurements,
        compensated=frozenset(() if matrix is None else matrix.fluorochromes),
        compensation=compensation,
        findings=[*findings, *more],
    )
    gates = []
    for node in _gates(reading, protocol, _label(entry)):
        if node.gate is None:
            message = f"Gate {node.name} is left out: {node.why_not}."
            reading.findings.append(
                QcFinding(level=Level.WARNING, code="GATE_LEFT_OUT", message=message, where=node.path)
            )
        else:
            gates.append(ForeignGate(name=node.name, path=node.path, parent=node.parent, gate=node.gate))
    total = _keyword(entry, "$TOT")
    return ForeignStrategy(
        source=name,
        kind=KIND,
        dimensions=reading.dimensions,
        scales=reading.scales,
        matrices={} if matrix is None else {matrix.id: matrix},
        gates=tuple(gates),
        events=int(total) if total.isdecimal() else None,
        findings=tuple(reading.findings),
    )


def read_tree(data: bytes, name: str) -> tuple[Node, ...]:
    """List the gates of every data set with their axes and scales, without an FCS file.

    Raises
    ------
    InputError
        It is not a Kaluza container, or a cap is exceeded.
    """
    nodes: list[Node] = []
    for entry in _entries(_documents(data, name)):
        protocol = _descendant(entry, "Protocol")
        if protocol is None:
            continue
        measurements = _measurements(entry, protocol, {})
        reading = _Reading(measurements=measurements, compensated=frozenset(), compensation=UNCOMPENSATED)
        nodes += _gates(reading, protocol, _label(entry))
    return tuple(nodes)


# -------------------------------------------------------------------------------------------------------- the container


def _documents(data: bytes, name: str) -> list[Element]:
    """Return the analyses of a container, every member checked before any is unpacked."""
    if not data.startswith(b"PK"):
        root = parse_xml(data, name)
        if local(root.tag) != "Analysis":
            raise InputError(f"expected a Kaluza container or <Analysis>, got <{local(root.tag)}>", source=name)
        return [root]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_members(members, name)
            found = [
                parse_xml(_unpacked(archive, member, name), f"{name}/{member.filename}")
                for member in members
                if member.filename.casefold().endswith(".xml")
            ]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"the container is not a readable zip: {error}", source=name) from None
    analyses = [root for root in found if local(root.tag) == "Analysis"]
    if not analyses:
        raise InputError("the container holds no Kaluza analysis", source=name)
    return analyses


def _check_members(members: Sequence[zipfile.ZipInfo], name: str) -> None:
    if len(members) > MAX_ENTRIES:
        raise InputError(f"the container has {len(members)} members, more than the {MAX_ENTRIES} allowed", source=name)
    total = 0
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts or ":" in parts[0]:
            raise InputError("the container has a member with an absolute path or one that leaves it", source=name)
        total += member.file_size
        if member.file_size > _SMALL and member.file_size > MAX_RATIO * max(member.compress_size, 1):
            raise InputError(
                f"a member unpacks to {member.file_size / max(member.compress_size, 1):.0f} times its size,"
                f" more than the {MAX_RATIO} allowed",
                source=name,
                where=member.filename,
            )
    if total > MAX_TOTAL_BYTES:
        raise InputError(
            f"the container unpacks to {total / 1e9:.1f} GB, more than the {MAX_TOTAL_BYTES / 1e9:.1f} GB allowed",
            source=name,
        )


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> bytes:
    # The sizes that a zip states may lie, so what comes out is counted too.
    with archive.open(member) as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InputError(
            f"an XML document unpacks to more than {MAX_BYTES / 1e6:.0f} MB", source=name, where=member.filename
        )
    return content


# --------------------------------------------------------------------------------------------------------- the document


def _children(element: Element | None, name: str) -> list[Element]:
    return [] if element is None else [child for child in element if local(child.tag) == name]


def _child(element: Element | None, name: str) -> Element | None:
    return next(iter(_children(element, name)), None)


def _descendant(element: Element, name: str) -> Element | None:
    return next((child for child in element.iter() if local(child.tag) == name), None)


def _text(element: Element | None, name: str) -> str:
    child = _child(element, name)
    return "" if child is None else (child.text or "").strip()


def _real(text: str | None, what: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise _Unreadable(f"{what} is not a number") from None
    if not math.isfinite(value):
        raise _Unreadable(f"{what} is not finite")
    return value


def _entries(documents: Sequence[Element]) -> list[Element]:
    """Return the elements that hold a data set and its protocol."""
    return [entry for root in documents for entry in root.iter() if _child(entry, "Protocol") is not None]


def _label(entry: Element) -> str:
    data_set = _child(entry, "DataSet")
    return "" if data_set is None else (data_set.get("N") or "")


def _keyword(entry: Element, key: str) -> str:
    for pair in _children(_child(_child(entry, "DataSet"), "Metadata"), "Entry"):
        if _text(pair, "Key").upper() == key:
            return _text(pair, "Value")
    return ""


def _entry(documents: Sequence[Element], name: str, fcs: FcsFile, tube: str | None) -> tuple[Element, list[QcFinding]]:
    entries = _entries(documents)
    if not entries:
        raise InputError("the analysis holds no data set with a protocol", source=name)
    some = ", ".join(_label(entry) or "unnamed" for entry in entries[:_MAX_NAMED])
    if len(entries) > _MAX_NAMED:
        some += f" and {len(entries) - _MAX_NAMED} more"
    if tube is not None:
        found = [entry for entry in entries if _label(entry) == tube]
        if not found:
            raise InputError(f"no data set {tube!r} in the analysis", source=name, hint=f"it has {some}")
        return _only(found, name, fcs), []
    file_name = fcs.path.replace("\\", "/").rpartition("/")[2].casefold()
    stem = file_name.rpartition(".")[0] or file_name
    fil = fcs.keywords.get("$FIL", "").strip().casefold()
    guid = fcs.keywords.get("@FILEGUID", "").strip()
    rules = (
        [entry for entry in entries if _label(entry).casefold() in {file_name, stem}],
        [entry for entry in entries if _keyword(entry, "$FIL").casefold() in {file_name, fil} - {""}],
        [entry for entry in entries if guid and _keyword(entry, "@FILEGUID") == guid],
        [entry for entry in entries if _keyword(entry, "$TOT") == str(fcs.event_count)],
    )
    for found in rules:
        if found:
            return _only(found, name, fcs), []
    if len(entries) == 1:
        message = "The analysis was made on another file; its only gates are applied as they are."
        return entries[0], [QcFinding(level=Level.WARNING, code="OTHER_FILE", message=message)]
    raise InputError(
        "no data set of the analysis is this file, by name, $FIL, GUID or number of events",
        source=name,
        hint=f"name one with --tube; it has {some}",
    )


def _only(found: Sequence[Element], name: str, fcs: FcsFile) -> Element:
    if len(found) > 1:
        found = [entry for entry in found if _keyword(entry, "$TOT") == str(fcs.event_count)] or found
    if len(found) > 1:
        raise InputError(
            f"{len(found)} data sets of the analysis are this file", source=name, hint="name one with --tube"
        )
    return found[0]


def _measurements(entry: Element, protocol: Element, gains: Mapping[str, float]) -> dict[str, Measurement]:
    """Return the measurements by name; a measurement's column tells what the file calls it.

    `gains` are those of the file's channels: Kaluza's range is of stored values, ours are divided by the gain.
    """
    originals: dict[str, str] = {}
    for column in _children(_child(_child(entry, "DataSet"), "Columns"), "Column"):
        label, original = column.get("N") or "", _text(column, "OriginalName")
        if label and original:
            originals[label] = original
    found = {}
    for element in _children(_child(protocol, "Measurements"), "Measurement"):
        label = element.get("N") or ""
        detector, pulse = _text(element, "Detector"), element.get("T") or ""
        given = originals.get(label, "")
        spellings = (given, label, f"{detector}-{pulse}", detector)
        channel = next((one for one in spellings if one and one in gains), given or label)
        try:
            top = _real(_text(element, "Range"), "the range")
        except _Unreadable:
            top = _DISPLAY
        found[label] = Measurement(
            name=label,
            channel=channel,
            detector=detector,
            pulse=pulse,
            top=(top if top > 0 else _DISPLAY) / _gain(gains, channel),
            scales={local(scale.tag): dict(scale.attrib) for scale in _child(element, "Scales") or ()},
        )
    return found


def _gain(gains: Mapping[str, float], channel: str) -> float:
    gain = gains.get(channel, 1.0)
    return gain if math.isfinite(gain) and gain > 0 else 1.0


def _compensation(
    protocol: Element, measurements: Mapping[str, Measurement], fcs: FcsFile
) -> tuple[Matrix | None, str, list[QcFinding]]:
    """Return the matrix that the protocol applies: V of the light of colour C is seen in detector S."""
    element = _child(protocol, "Compensation")
    otherwise = UNCOMPENSATED if fcs.spillover is None else FROM_FILE
    if element is None:
        return None, otherwise, []
    cells = [cell for group in _children(element, "S") for cell in _children(group, "SV")]
    if not cells:
        return None, UNCOMPENSATED, []
    detectors = [(d.text or "").strip() for d in _child(element, "CompensatedDetectors") or ()]
    names = {
        one.detector: one.channel for one in measurements.values() if one.detector in detectors and one.pulse == "A"
    }
    order = tuple(detector for detector in detectors if detector in names)
    values = np.eye(len(order))
    try:
        for cell in cells:
            seen, colour = cell.get("S") or "", cell.get("C") or ""
            if seen in order and colour in order and seen != colour:
                values[order.index(colour), order.index(seen)] = _real(cell.get("V"), "a spillover value")
    except _Unreadable as error:
        message = f"The protocol's compensation cannot be read ({error}); the file's is used."
        return None, otherwise, [QcFinding(level=Level.WARNING, code="MATRIX_UNUSED", message=message)]
    channels = tuple(names[detector] for detector in order)
    if len(set(channels)) != len(channels) or not order or np.linalg.matrix_rank(values) < len(order):
        message = "The protocol's compensation cannot be inverted; the file's is used."
        return None, otherwise, [QcFinding(level=Level.WARNING, code="MATRIX_UNUSED", message=message)]
    findings = []
    if not set(channels) <= {channel.pnn for channel in fcs.channels}:
        message = "The file lacks detectors that the protocol compensates; the file's own compensation is used."
        return None, otherwise, [QcFinding(level=Level.WARNING, code="MATRIX_UNUSED", message=message)]
    if fcs.spillover is not None and set(channels) <= set(fcs.spillover.channels):
        places = [fcs.spillover.channels.index(channel) for channel in channels]
        stored = fcs.spillover.matrix[np.ix_(places, places)]
        if float(np.max(np.abs(stored - values))) > 5e-3:
            message = "The protocol's compensation is not the file's; the protocol's is used."
            findings.append(QcFinding(level=Level.INFO, code="MATRIX_DIFFERS", message=message))
    values.flags.writeable = False
    matrix = Matrix(id="kaluza", fluorochromes=channels, detectors=channels, values=values)
    return matrix, matrix.id, findings


# ---------------------------------------------------------------------------------------------------------------- gates


def _gates(reading: _Reading, protocol: Element, data_set: str) -> Iterator[Node]:
    """Yield every gate; names are unique in a Kaluza protocol, so a gate's path follows from its parents' names."""
    elements = {}
    for element in _child(protocol, "Gates") or ():
        label = (element.get("N") or "").strip()
        if not label:
            continue
        if label in elements:
            raise InputError(f"two gates are called {label!r}", where="Gates", source="the Kaluza protocol")
        elements[label] = element
    paths = {label: _path(label, elements) for label in elements}
    for label, element in elements.items():
        parent = (element.get("G") or "").strip()
        path = paths[label] or f"/{label}"
        gate: Gate | None = None
        why, axes = "", _axes(element)
        try:
            if paths[label] is None:
                raise _Unreadable("its parents go in a circle")  # noqa: TRY301
            if parent and parent not in elements:
                raise _Unreadable(f"its parent {parent} is not there")  # noqa: TRY301
            if parent and (element.get("J") or "0") != "0":
                raise _Unreadable(f"its parent is part {element.get('J')} of {parent}, a gate of several regions")  # noqa: TRY301
            gate = _gate(reading, element, axes, paths)
        except (_Unreadable, ValueError) as error:
            why = str(error)
        yield Node(
            data_set=data_set,
            path=path,
            parent=(paths.get(parent) or f"/{parent}") if parent else "",
            name=label,
            axes=tuple(measurement for measurement, _ in axes),
            scales=tuple(scale for _, scale in axes),
            gate=gate,
            why_not=why,
        )


def _path(label: str, elements: Mapping[str, Element]) -> str | None:
    parts = [label]
    while parent := (elements[parts[0]].get("G") or "").strip():
        if parent in parts:
            return None
        parts.insert(0, parent)
        if parent not in elements:
            break
    return "/" + "/".join(parts)


def _axes(element: Element) -> list[tuple[str, str]]:
    return [(axis.get("M") or "", axis.get("S") or "I") for axis in _children(_child(element, "A"), "A")]


def _points(element: Element) -> list[tuple[float, ...]]:
    return [
        tuple(_real(part, "a vertex") for part in (point.get("O") or "").split(","))
        for point in _children(_child(element, "P"), "P")
    ]


def _gate(reading: _Reading, element: Element, axes: list[tuple[str, str]], paths: Mapping[str, str | None]) -> Gate:
    kind = local(element.tag)
    points = _points(element)
    if not axes and not points:
        return _boolean(element, kind, paths)
    keys = [_dimension(reading, measurement, scale) for measurement, scale in axes]
    if any(len(point) < len(keys) for point in points):
        raise _Unreadable("a vertex has fewer coordinates than the gate has axes")
    corners = [tuple(value / _DISPLAY for value in point[: len(keys)]) for point in points]
    if len(keys) == 1 and len(corners) == 2:
        return _open_at_ends((keys[0],), corners)
    if len(keys) == 2 and kind == "R" and len(corners) == 2:
        return _open_at_ends((keys[0], keys[1]), corners)
    if len(keys) == 2 and kind in {"P", "F", "A"} and len(corners) >= 3:
        return Polygon(markers=(keys[0], keys[1]), vertices=tuple((x, y) for x, y in corners))
    shape = f"{kind} with {len(keys)} axes and {len(corners)} points"
    raise _Unreadable(f"the meaning of Kaluza's gate type {shape} is not known")


def _open_at_ends(keys: tuple[str, ...], corners: list[tuple[float, ...]]) -> Rectangle:
    """Return the rectangle between two corners; a side on the border of the plot (half a channel) is open."""
    low = [min(corner[axis] for corner in corners) for axis in range(len(keys))]
    high = [max(corner[axis] for corner in corners) for axis in range(len(keys))]
    margin = 0.5 / _DISPLAY
    return Rectangle(
        markers=keys,
        low=tuple(-math.inf if side <= margin else side for side in low),
        high=tuple(math.inf if side >= 1.0 - margin else side for side in high),
    )


def _dimension(reading: _Reading, name: str, letter: str) -> str:
    measurement = reading.measurements.get(name)
    if measurement is None:
        raise _Unreadable(f"the protocol has no measurement {name!r}")
    kind = _SCALES.get(letter)
    if kind is None:
        raise _Unreadable(f"the meaning of Kaluza's scale {letter!r} is not known")
    scale_id = f"{name} {kind.removesuffix('Scale').lower()}"
    if scale_id not in reading.dimensions:
        reading.scales[scale_id] = _scale(kind, measurement)
        compensated = not reading.compensated or measurement.channel in reading.compensated
        reading.dimensions[scale_id] = Dimension(
            key=scale_id,
            channel=measurement.channel,
            compensation=reading.compensation if compensated else UNCOMPENSATED,
            scale=scale_id,
        )
    return scale_id


def _scale(kind: str, measurement: Measurement) -> Scale:
    given = measurement.scales.get(kind, {})
    # What lies beyond the plot is drawn on its first or last channel; gates drawn to the border end half a channel
    # from it, and the edge of a polygon is nobody's.
    low, high = 0.75 / _DISPLAY, 1.0 - 0.75 / _DISPLAY
    if kind == "LinearScale":
        return Clipped(scale=FlowJoLinear(low=0.0, high=measurement.top), low=low, high=high)
    decades = _real(given.get("D", "4" if kind == "LogScale" else "4.5"), f"the decades of {measurement.name}")
    if kind == "LogScale":
        return Clipped(scale=LogBelowTop(top=measurement.top, decades=decades), low=low, high=high)
    # W is a share of the scale, as in Moore and Parks' normalised form, not decades.
    share = _real(given.get("W", "0.1"), f"the width of {measurement.name}")
    width = min(max(share, 0.0), 0.5) * decades
    return Clipped(scale=Logicle(T=measurement.top, W=width, M=decades), low=low, high=high)


_TOKEN = re.compile(r"\s*(?:(\()|(\))|(\bAND\b|&&?|\*)|(\bOR\b|\|\|?|\+)|(\bNOT\b|!|~))", re.IGNORECASE)


def _boolean(element: Element, kind: str, paths: Mapping[str, str | None]) -> Boolean:
    """Read a gate that is an expression over other gates: one operator, names with or without NOT."""
    texts = [*element.attrib.values(), *((child.text or "").strip() for child in element)]
    own = (element.get("N") or "").strip()
    for text in texts:
        if text == own or not text:
            continue
        found = _expression(text, [label for label in paths if label != own])
        if found is not None:
            operator, names = found
            return Boolean(
                operator=operator, operands=tuple((paths[label] or f"/{label}", flag) for label, flag in names)
            )
    raise _Unreadable(f"Kaluza's gate type {kind} has neither points nor an expression over gates that could be read")


def _expression(text: str, labels: Sequence[str]) -> tuple[str, list[tuple[str, bool]]] | None:
    """Parse `A AND NOT B …` with one operator throughout; `None` where the text is something else."""
    ordered = sorted(labels, key=len, reverse=True)
    names: list[tuple[str, bool]] = []
    operators: set[str] = set()
    at, negated, expect = 0, False, True
    body = text.strip()
    while body.startswith("(") and body.endswith(")") and body.count("(") == 1:
        body = body[1:-1].strip()
    while at < len(body):
        if expect:
            rest = body[at:].lstrip()
            at = len(body) - len(rest)
            quoted = rest[:1] in {'"', "'", "["}
            label = next((one for one in ordered if rest[quoted:].startswith(one)), None)
            token = _TOKEN.match(body, at)
            if label is not None:
                at += len(label) + 2 * quoted
                names.append((label, negated))
                negated, expect = False, False
            elif token is not None and token[5]:
                negated, at = not negated, token.end()
            else:
                return None
            continue
        token = _TOKEN.match(body, at)
        if token is None or not (token[3] or token[4]):
            return None if body[at:].strip() else (_operator(operators), names)
        operators.add("and" if token[3] else "or")
        at, expect = token.end(), True
    if expect or not names or len(operators) > 1 or (len(names) == 1 and not names[0][1]):
        return None
    return _operator(operators), names


def _operator(operators: set[str]) -> str:
    return next(iter(operators), "and")
