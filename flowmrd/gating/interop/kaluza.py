"""Kaluza analyses and protocols (.analysis, .protocol): the gate tree of one data set, with scales and compensation.

The container is a zip of XML documents and of the data. This module finds the data set that a file is, its
measurements and its compensation; the gates are read in `kaluza_gates`.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import InputError, Level, QcFinding
from flowmrd.fcs import Channel, ChannelKind, FcsFile
from flowmrd.gating.interop.document import FROM_FILE, UNCOMPENSATED, ForeignGate, ForeignStrategy, Matrix
from flowmrd.gating.interop.kaluza_gates import (
    MAX_GATES,
    Measurement,
    Node,
    Reading,
    Unreadable,
    attribute,
    child,
    children,
    number,
    read_gates,
    text_of,
)
from flowmrd.gating.interop.xml import MAX_BYTES, local, parse_xml

F64 = NDArray[np.float64]

KIND = "kaluza"
MAX_ENTRIES = 4096
MAX_TOTAL_BYTES = 4 * 2**30
MAX_RATIO = 200
# Below this size a member cannot hurt, however well it was packed.
_SMALL = 2**20
_MAX_NAMED = 12
_PULSES = ("A", "H", "W", "U")
_ENDS = {"int": "a", "integral": "a", "peak": "h", "tof": "w"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Container:
    """The analyses of a container, and (bytes, CRC-32) of its members by name."""

    roots: tuple[Element, ...]
    members: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A data set with its protocol; a protocol of its own has no data set."""

    data_set: Element | None
    protocol: Element

    @property
    def label(self) -> str:
        return "" if self.data_set is None else attribute(self.data_set, "N")

    def keyword(self, key: str) -> str:
        for pair in children(child(self.data_set, "Metadata"), "Entry"):
            if text_of(pair, "Key").upper() == key:
                return text_of(pair, "Value")
        return ""


def read_strategy(data: bytes, name: str, fcs: FcsFile, *, tube: str | None = None) -> ForeignStrategy:
    """Read the gates of the data set that a file is.

    Parameters
    ----------
    data : the container's bytes (or those of its XML document)
    name : its file name, for messages
    fcs : the file to gate; the data set is found by its name, `$FIL`, the file's GUID, the copy of the file in the
        container, or the number of events
    tube : name of the data set to take instead

    Raises
    ------
    InputError
        It is not a Kaluza container, a cap is exceeded, or no data set (or more than one) fits the file.
    """
    entry, findings = _chosen(_container(data, name), name, fcs, tube)
    measurements = _measurements(entry, fcs)
    reading = _reading(entry, measurements, fcs)
    reading.findings[:0] = findings
    _check_gates(entry, name)
    gates, unread = [], []
    for node in read_gates(reading, entry.protocol, entry.label):
        if node.gate is None:
            unread.append(node.path)
            message = f"Gate {node.name} is left out: {node.why_not}."
            reading.findings.append(
                QcFinding(level=Level.WARNING, code="GATE_LEFT_OUT", message=message, where=node.path)
            )
        else:
            gates.append(ForeignGate(name=node.name, path=node.path, parent=node.parent, gate=node.gate))
    total = entry.keyword("$TOT")
    return ForeignStrategy(
        source=name,
        kind=KIND,
        dimensions=reading.dimensions,
        scales=reading.scales,
        matrices={} if reading.matrix is None else {reading.matrix.id: reading.matrix},
        gates=tuple(gates),
        events=int(total) if total.isdecimal() else None,
        findings=tuple(reading.findings),
        unread=frozenset(unread),
    )


def read_tree(data: bytes, name: str) -> tuple[Node, ...]:
    """List the gates of every data set with their axes and scales, without an FCS file.

    Raises
    ------
    InputError
        It is not a Kaluza container, or a cap is exceeded.
    """
    nodes: list[Node] = []
    for entry in _entries(_container(data, name)):
        _check_gates(entry, name)
        reading = Reading(measurements=_measurements(entry, None))
        nodes += read_gates(reading, entry.protocol, entry.label)
    return tuple(nodes)


def _check_gates(entry: _Entry, name: str) -> None:
    count = len(child(entry.protocol, "Gates") or ())
    if count > MAX_GATES:
        raise InputError(f"the protocol has {count:,} gates, more than the {MAX_GATES:,} that are read", source=name)


# -------------------------------------------------------------------------------------------------------- the container


def _container(data: bytes, name: str) -> _Container:
    """Return the analyses of a container, every member checked before any is unpacked."""
    if not data.startswith(b"PK"):
        root = parse_xml(data, name)
        if _kind(root) not in {"analysis", "protocol"}:
            raise InputError(f"expected a Kaluza container or <Analysis>, got <{local(root.tag)}>", source=name)
        return _Container(roots=(root,), members={})
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_members(members, name)
            found = [
                parse_xml(_unpacked(archive, member, name), f"{name}/{member.filename}")
                for member in members
                if member.filename.casefold().endswith(".xml")
            ]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"the container is not a readable zip: {error}", source=name) from None
    roots = tuple(root for root in found if _kind(root) in {"analysis", "protocol"})
    if not roots:
        raise InputError("the container holds no Kaluza analysis", source=name)
    return _Container(
        roots=roots, members={member.filename.casefold(): (member.file_size, member.CRC) for member in members}
    )


def _kind(root: Element) -> str:
    return local(root.tag).casefold()


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


# --------------------------------------------------------------------------------------------------------- the data set


def _entries(container: _Container) -> list[_Entry]:
    """Return the data sets with their protocols; one without has that of the entry around it."""
    found: list[_Entry] = []
    for root in container.roots:
        if _kind(root) == "protocol":
            found.append(_Entry(data_set=None, protocol=root))
            continue
        # Depth first, in the order of the document, without recursion: how deep it goes is the document's.
        stack: list[tuple[Element, Element | None]] = [(root, None)]
        while stack:
            element, above = stack.pop()
            protocol, data_set = child(element, "Protocol"), child(element, "DataSet")
            current = above if protocol is None else protocol
            if current is not None and (protocol is not None or data_set is not None):
                found.append(_Entry(data_set=data_set, protocol=current))
            stack.extend((one, current) for one in reversed(element) if isinstance(one.tag, str))
    return found


def _chosen(container: _Container, name: str, fcs: FcsFile, tube: str | None) -> tuple[_Entry, list[QcFinding]]:
    entries = _entries(container)
    if not entries:
        raise InputError("the analysis holds no data set with a protocol", source=name)
    some = ", ".join(entry.label or "unnamed" for entry in entries[:_MAX_NAMED])
    if len(entries) > _MAX_NAMED:
        some += f" and {len(entries) - _MAX_NAMED} more"
    if tube is not None:
        wanted = _names(tube)
        found = [entry for entry in entries if entry.label == tube] or [
            entry for entry in entries if _names(entry.label) & wanted
        ]
        if not found:
            raise InputError(f"no data set {tube!r} in the analysis", source=name, hint=f"it has {some}")
        entry = _only(found, name, fcs)
        return entry, _other_events(entry, fcs)
    file_names = _names(fcs.path.replace("\\", "/").rpartition("/")[2])
    own_names = _names(fcs.keywords.get("$FIL", ""))
    guid = fcs.keywords.get("@FILEGUID", "").strip()
    rules: tuple[Callable[[], list[_Entry]], ...] = (
        lambda: [entry for entry in entries if _names(entry.label) & file_names],
        lambda: [entry for entry in entries if _names(entry.keyword("$FIL")) & (file_names | own_names)],
        lambda: [entry for entry in entries if guid and entry.keyword("@FILEGUID") == guid],
        lambda: [entry for entry in entries if _is_copied(entry, container, fcs)],
        lambda: [entry for entry in entries if entry.keyword("$TOT") == str(fcs.event_count)],
    )
    for rule in rules:
        found = rule()
        if found:
            entry = _only(found, name, fcs)
            return entry, _other_events(entry, fcs)
    if len(entries) == 1:
        if entries[0].data_set is None:
            return entries[0], []
        message = "The analysis was made on another file; its only gates are applied as they are."
        return entries[0], [QcFinding(level=Level.WARNING, code="OTHER_FILE", message=message)]
    raise InputError(
        "no data set of the analysis is this file, by name, $FIL, GUID, content or number of events",
        source=name,
        hint=f"name one with --tube; it has {some}",
    )


def _other_events(entry: _Entry, fcs: FcsFile) -> list[QcFinding]:
    total = entry.keyword("$TOT")
    if not total.isdecimal() or int(total) == fcs.event_count:
        return []
    message = f"The data set of the analysis has {int(total):,} events, the file {fcs.event_count:,}."
    return [QcFinding(level=Level.WARNING, code="OTHER_FILE", message=message)]


def _names(text: str) -> set[str]:
    """Return a file's name and its stem, folded; a data set is mostly called by the stem."""
    folded = text.strip().casefold()
    stem = re.sub(r"\.(lmd|fcs)$", "", folded)
    return {folded, stem} - {""}


def _is_copied(entry: _Entry, container: _Container, fcs: FcsFile) -> bool:
    """Say whether the container holds this very file as the data of a data set."""
    for segment in children(child(entry.data_set, "Segments"), "Segment"):
        stated = container.members.get(attribute(segment, "N").casefold())
        if stated is None:
            continue
        path = Path(fcs.path)
        try:
            if path.stat().st_size != stated[0]:
                continue
            crc = 0
            with path.open("rb") as handle:
                while block := handle.read(2**20):
                    crc = zlib.crc32(block, crc)
        except OSError:
            continue
        if crc == stated[1]:
            return True
    return False


def _only(found: Sequence[_Entry], name: str, fcs: FcsFile) -> _Entry:
    if len(found) > 1:
        found = [entry for entry in found if entry.keyword("$TOT") == str(fcs.event_count)] or found
    if len(found) > 1:
        raise InputError(
            f"{len(found)} data sets of the analysis are this file", source=name, hint="name one with --tube"
        )
    return found[0]


# --------------------------------------------------------------------------------------------------------- measurements


def _measurements(entry: _Entry, fcs: FcsFile | None) -> dict[str, Measurement]:
    """Return the measurements by name; a measurement's column tells what the file calls it."""
    originals: dict[str, str] = {}
    for column in children(child(entry.data_set, "Columns"), "Column"):
        label, original = attribute(column, "N"), text_of(column, "OriginalName")
        if label and original:
            originals.setdefault(label, original)
    found: dict[str, Measurement] = {}
    for element in children(child(entry.protocol, "Measurements"), "Measurement"):
        label = attribute(element, "N")
        if not label or label in found:
            continue
        detector, pulse = text_of(element, "Detector"), attribute(element, "T").upper()
        given = originals.get(label, "")
        try:
            top = number(text_of(element, "Range"), "the range")
        except Unreadable:
            top = 0.0
        channel, exact = _channel((given, label, f"{detector}-{pulse}", detector), fcs)
        coarse = channel is not None and channel.log_decades > 0 and not exact
        found[label] = Measurement(
            name=label,
            channel=(given or label) if channel is None else channel.pnn,
            detector=detector,
            pulse=pulse,
            top=_top(channel, top, fcs, exact=exact),
            gain=_gain(channel),
            coarse=coarse,
            scales={
                local(scale.tag).casefold(): {local(key).upper(): value.strip() for key, value in scale.attrib.items()}
                for scale in child(element, "Scales") or ()
                if isinstance(scale.tag, str)
            },
        )
    return found


def _channel(spellings: Sequence[str], fcs: FcsFile | None) -> tuple[Channel | None, bool]:
    """Return the channel of the file that a measurement is, and whether its name is the very one."""
    if fcs is None:
        return None, False
    by_name = {channel.pnn: channel for channel in reversed(fcs.channels)}
    wanted = [name for name in spellings if name]
    for name in wanted[:2]:
        if name in by_name:
            return by_name[name], True
    for name in wanted:
        hits = [channel for channel in fcs.channels if _plain(channel.pnn) == _plain(name)]
        # Of a logarithmic and a linear column of one signal the logarithmic is what the 10-bit data set is drawn from.
        hits = [hit for hit in hits if hit.log_decades > 0] or hits
        if len(hits) == 1:
            return hits[0], hits[0].pnn == name
    for name in wanted[:2]:
        hits = [channel for channel in fcs.channels if channel.pns.strip() == name]
        if len(hits) == 1:
            return hits[0], True
    return None, False


def _plain(name: str) -> str:
    """Return a channel's name as the 20-bit data set writes it: `FL1 INT LOG` and `FL1-A` are one."""
    words = re.split(r"[\s_-]+", name.strip().casefold())
    if len(words) > 1 and words[-1] in {"lin", "log"}:
        words.pop()
    words[-1] = _ENDS.get(words[-1], words[-1])
    return "-".join(words)


def _gain(channel: Channel | None) -> float:
    """Return what the file's values were divided by."""
    if channel is None or channel.kind is ChannelKind.TIME or channel.log_decades > 0:
        return 1.0
    return channel.gain if math.isfinite(channel.gain) and channel.gain > 0 else 1.0


def _top(channel: Channel | None, stated: float, fcs: FcsFile | None, *, exact: bool) -> float:
    """Return the top of a measurement's range in the file's linear values.

    The protocol's range is of stored values. Where the file given is the other of a Beckman pair (10 bits for 20), the
    axis ends at the same place of its own range.
    """
    top = stated if stated >= 1 else 1024.0
    if channel is None:
        return top
    if channel.log_decades > 0:
        return float((channel.log_offset or 1.0) * 10.0**channel.log_decades)
    if 1 <= channel.range <= 1e15 and (not exact or stated < 1):
        top = channel.range
    if channel.kind is ChannelKind.TIME:
        return top * (fcs.time_step or 1.0) if fcs is not None else top
    return top / _gain(channel)


# --------------------------------------------------------------------------------------------------------- compensation


def _reading(entry: _Entry, measurements: Mapping[str, Measurement], fcs: FcsFile) -> Reading:
    """Return what the protocol applies to the data before its gates."""
    reading = Reading(measurements=measurements)
    source = child(child(entry.data_set, "SourceCompensation"), "Spillover")
    if any(attribute(cell, "Row") != attribute(cell, "Column") and _is_spill(cell) for cell in source or ()):
        reading.assume("The data set's source was compensated; only the protocol's compensation is applied.", "")
    element = child(entry.protocol, "Compensation")
    otherwise = UNCOMPENSATED if fcs.spillover is None else FROM_FILE
    cells = [cell for group in children(element, "S") for cell in children(group, "SV")]
    if element is None or not cells:
        # A protocol that states no spillover subtracts none; one that states nothing leaves it to the file.
        reading.compensation = otherwise if element is None else UNCOMPENSATED
        return reading
    try:
        order = _primary(element, entry, measurements, fcs, reading)
        values, background = _stated(element, cells, order)
    except Unreadable as error:
        reading.compensation = otherwise
        message = f"The protocol's compensation is not used: {error}; the file's is."
        reading.findings.append(QcFinding(level=Level.WARNING, code="MATRIX_UNUSED", message=message))
        return reading
    if any(one.coarse for one in order):
        message = "The protocol's compensation is not used: the file's 10-bit values are compensated already."
        reading.findings.append(QcFinding(level=Level.WARNING, code="MATRIX_UNUSED", message=message))
        return reading
    # Values here are divided by the file's gains.
    gains = np.array([one.gain for one in order])
    values = values * gains[:, None] / gains[None, :]
    values.flags.writeable = False
    channels = tuple(one.channel for one in order)
    if fcs.spillover is not None and set(channels) <= set(fcs.spillover.channels):
        places = [fcs.spillover.channels.index(channel) for channel in channels]
        stored = fcs.spillover.matrix[np.ix_(places, places)]
        if float(np.max(np.abs(stored - values))) > 5e-3:
            message = "The protocol's compensation is not the file's; the protocol's is used."
            reading.findings.append(QcFinding(level=Level.INFO, code="MATRIX_DIFFERS", message=message))
    if np.any(background):
        # Kaluza takes the background b away, compensates, and gives it back: (x - b) S^-1 + b.
        shift = background - background @ np.linalg.inv(values)
        reading.background = {channel: float(v) for channel, v in zip(channels, shift, strict=True)}
        message = (
            f"Compensation leaves the protocol's autofluorescence ({float(np.max(background)):.4g}) in each detector."
        )
        reading.findings.append(QcFinding(level=Level.INFO, code="BACKGROUND_KEPT", message=message))
    reading.matrix = Matrix(id="kaluza", fluorochromes=channels, detectors=channels, values=values)
    reading.compensation = reading.matrix.id
    return reading


def _is_spill(cell: Element) -> bool:
    try:
        return number(cell.text or "0", "a spillover value") != 0.0
    except Unreadable:
        return True


def _primary(
    element: Element, entry: _Entry, measurements: Mapping[str, Measurement], fcs: FcsFile, reading: Reading
) -> list[Measurement]:
    """Return one measurement of each compensated detector, by the data set's order of pulses (area first)."""
    priority = children(child(entry.data_set, "SignalPriority"), "Signal")
    pulses = dict.fromkeys([*((one.text or "").strip().upper() for one in priority), *_PULSES])
    rank = {pulse: i for i, pulse in enumerate(pulses)}
    present = {channel.pnn for channel in fcs.channels}
    order: list[Measurement] = []
    lacking: list[str] = []
    for one in child(element, "CompensatedDetectors") or ():
        detector = (one.text or "").strip()
        own = [other for other in measurements.values() if other.detector == detector and other.channel in present]
        if not own:
            lacking.append(detector)
        elif all(other.detector != detector for other in order):
            order.append(min(own, key=lambda other: rank.get(other.pulse, len(rank))))
    if not order or len({one.channel for one in order}) != len(order):
        raise Unreadable("the file has none of its detectors" if not order else "two detectors are one channel")
    if lacking:
        some = ", ".join(lacking[:_MAX_NAMED])
        reading.assume(f"The file has no {some}, which the protocol compensates; the others are compensated.", "")
    return order


def _stated(element: Element, cells: Sequence[Element], order: Sequence[Measurement]) -> tuple[F64, F64]:
    """Return the spillover (dye, detector) and the background of each detector."""
    rows = {one.detector: i for i, one in enumerate(order)}
    values = np.eye(len(order))
    for cell in cells:
        # V of the light of the dye of C is seen in S.
        seen, dye = rows.get(attribute(cell, "S")), rows.get(attribute(cell, "C"))
        share = number(attribute(cell, "V"), "a spillover value")
        if seen is not None and dye is not None and seen != dye:
            values[dye, seen] = share
    if np.linalg.matrix_rank(values) < len(order):
        raise Unreadable("it cannot be inverted")
    shares = np.zeros(len(order))
    stated = [
        (attribute(one, "D") or attribute(one, "S"), number(attribute(one, "V") or one.text, "an autofluorescence"))
        for one in child(element, "AF") or ()
    ]
    # One without a detector is what all have that are not named.
    for detector, share in sorted(stated, key=lambda one: one[0]):
        if not detector:
            shares[:] = share
        elif detector in rows:
            shares[rows[detector]] = share
    return values, shares * np.array([one.top for one in order])
