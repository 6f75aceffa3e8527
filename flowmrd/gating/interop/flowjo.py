"""FlowJo workspaces: the gate tree of one sample, with its scales, compensation and stored counts.

FlowJo 10 writes gates in Gating-ML's vocabulary but not in its meaning: boundaries are linear values, the scale of a
channel belongs to the sample, ellipses are in display space, and compensated channels carry a prefix. Polygons and
ellipses are evaluated by FlowJo on a raster of 256 channels (`gateResolution`); ours are exact, and
`vendor_scales.binning_bound` says how far the two can differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import unquote
from xml.etree.ElementTree import Element

import numpy as np

from flowmrd.cytometry.transforms import Arcsinh, Hyperlog, Logicle
from flowmrd.errors import InputError, Level, QcFinding
from flowmrd.fcs import ChannelKind, FcsFile
from flowmrd.gating.gates import Boolean, Ellipsoid, Gate, Polygon, Rectangle, Whole
from flowmrd.gating.interop import flowjo_mac
from flowmrd.gating.interop.document import (
    FROM_FILE,
    UNCOMPENSATED,
    Dimension,
    ForeignGate,
    ForeignStrategy,
    Matrix,
    Scale,
)
from flowmrd.gating.interop.expressions import Term
from flowmrd.gating.interop.vendor_scales import BINS, FlowJoLinear, FlowJoLog, flowjo_biex
from flowmrd.gating.interop.xml import FreePaths, check_gates, local, parse_xml

KIND = "flowjo"
_DISPLAY = 256.0
_BOOLEAN = {"AndNode": "and", "OrNode": "or", "NotNode": "not"}
_MAX_SAMPLES_NAMED = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One population of a workspace, as its tree shows it: no FCS file needed."""

    sample: str
    path: str
    name: str
    kind: str
    count: int | None
    group: str
    axes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Reading:
    """What is gathered while one sample's tree is read."""

    name: str
    fcs: FcsFile
    sample: Element
    old: bool
    scales: dict[str, Scale]
    unreadable: dict[str, str]
    matrix: Matrix | None
    prefix: str
    suffix: str
    gains: dict[str, float]
    dimensions: dict[str, Dimension] = field(default_factory=dict)
    gates: list[ForeignGate] = field(default_factory=list)
    findings: list[QcFinding] = field(default_factory=list)


def read_tree(data: bytes, name: str) -> tuple[Node, ...]:
    """List every population of every sample with its stored count, without an FCS file.

    Parameters
    ----------
    data : the workspace's bytes
    name : its file name, for messages

    Raises
    ------
    InputError
        It is not a FlowJo workspace.
    """
    root = _workspace(data, name)
    nodes = []
    for sample in _samples(root):
        label = _label(sample)
        for element, path, _ in _walk(_checked(_sample_node(sample), name)):
            gate = _gate_element(element)
            kind = _BOOLEAN.get(
                local(element.tag), "" if gate is None else local(gate.tag).removesuffix("Gate").lower()
            )
            nodes.append(
                Node(
                    sample=label,
                    path=path,
                    name=_name(element),
                    kind=kind or "population",
                    count=_count(element),
                    group=_attribute(element, "owningGroup") or "",
                    axes=() if gate is None else _axis_names(gate),
                )
            )
    return tuple(nodes)


def read_strategy(data: bytes, name: str, fcs: FcsFile, *, tube: str | None = None) -> ForeignStrategy:
    """Read the gates of the sample that a file is.

    Parameters
    ----------
    data : the workspace's bytes
    name : its file name, for messages
    fcs : the file to gate; the sample is found by its file name, then `$FIL`
    tube : sample name (or id) to take instead

    Raises
    ------
    InputError
        It is not a FlowJo workspace, or no sample (or more than one) fits the file.
    """
    root = _workspace(data, name)
    sample = _sample_of(root, name, fcs, tube)
    node = _checked(_sample_node(sample), name)
    old = _child(sample, "Transformations") is None
    findings: list[QcFinding] = []
    if old:
        matrix, prefix, suffix = _old_compensation(root, sample, name)
        scales, unreadable = flowjo_mac.scales(root, sample, (prefix, suffix))
    else:
        matrix, prefix, suffix, findings = _compensation(sample, name)
        scales, unreadable = _transforms(sample)
    reading = _Reading(
        name=name,
        fcs=fcs,
        sample=sample,
        old=old,
        scales=scales,
        unreadable=unreadable,
        matrix=matrix,
        prefix=prefix,
        suffix=suffix,
        gains=_gains(sample),
        findings=findings,
    )
    counts_apply = True
    if next(_walk(node), None) is None:
        node, group = _group_tree(root, sample)
        _checked(node, name)
        counts_apply = False
        if group:
            reading.findings.append(
                _finding(Level.INFO, "GROUP_GATES", f"The sample has no gates; those of group {group} are used.")
            )
    if node is not None:
        for element, path, parent in _walk(node):
            _read_population(reading, element, path, parent, counted=counts_apply)
    if old and reading.gates:
        said = "FlowJo 9's gates have no published meaning; they are read as LabKey Flow does: compare the counts."
        reading.findings.append(_finding(Level.WARNING, "FLOWJO_9", said))
    sample_node = _sample_node(sample)
    events = _count(sample_node) if sample_node is not None else None
    return ForeignStrategy(
        source=name,
        kind=KIND,
        dimensions=reading.dimensions,
        scales=reading.scales,
        matrices={} if matrix is None else {matrix.id: matrix},
        gates=tuple(reading.gates),
        events=events,
        findings=tuple(reading.findings),
        unread=frozenset(one.where for one in reading.findings if one.code == "GATE_LEFT_OUT"),
    )


# --------------------------------------------------------------------------------------------------------- the document


def _axis_names(gate: Element) -> tuple[str, ...]:
    """Return what the axes of a drawn gate are called."""
    parameters = (_child(one, "fcs-dimension") for one in _children(gate, "dimension"))
    names = [_attribute(one, "name") or "" for one in parameters if one is not None]
    # FlowJo 9 names them on what is drawn.
    old = next((one for one in gate if one.get("xAxisName")), None)
    return tuple(names if old is None else filter(None, (old.get("xAxisName"), old.get("yAxisName"))))


def _workspace(data: bytes, name: str) -> Element:
    root = parse_xml(data, name)
    if local(root.tag) != "Workspace":
        raise InputError(f"expected a FlowJo workspace (<Workspace>), got <{local(root.tag)}>", source=name)
    # FlowJo 8 keeps the trees apart from the samples.
    samples = {_attribute(sample, "sampleID"): sample for sample in _samples(root)}
    for group in _children(root, "SampleAnalyses"):
        for tree in _children(group, "Sample"):
            sample = samples.get(_attribute(tree, "sampleID"))
            if sample is not None and _sample_node(sample) is None:
                tree.tag = "SampleNode"
                sample.append(tree)
    return root


def _children(element: Element, *names: str) -> list[Element]:
    return [child for child in element if local(child.tag) in names]


def _child(element: Element, name: str) -> Element | None:
    return next((child for child in element if local(child.tag) == name), None)


def _attribute(element: Element, name: str) -> str | None:
    """Return an attribute whatever its namespace."""
    value = element.get(name)
    if value is not None:
        return value
    return next((value for key, value in element.attrib.items() if local(key) == name), None)


def _samples(root: Element) -> list[Element]:
    # FlowJo 9.7 calls the list Samples.
    return [sample for group in _children(root, "SampleList", "Samples") for sample in _children(group, "Sample")]


def _sample_node(sample: Element) -> Element | None:
    return _child(sample, "SampleNode")


def _name(element: Element) -> str:
    # FlowJo 9.7 writes nodeName.
    return (_attribute(element, "name") or _attribute(element, "nodeName") or "").strip()


def _count(element: Element) -> int | None:
    """Return the stored count; FlowJo writes -1 where it has not counted."""
    text = _attribute(element, "count")
    try:
        count = int(text) if text else -1
    except ValueError:
        return None
    return count if count >= 0 else None


def _label(sample: Element) -> str:
    node = _sample_node(sample)
    label = _name(node) if node is not None else ""
    return label or _base_name(sample) or (_sample_id(sample) or "?")


def _base_name(sample: Element) -> str:
    data_set = _child(sample, "DataSet")
    uri = "" if data_set is None else (_attribute(data_set, "uri") or "")
    return unquote(uri).replace("\\", "/").rpartition("/")[2]


def _sample_id(sample: Element) -> str | None:
    for element in (_child(sample, "DataSet"), _sample_node(sample), sample):
        if element is not None and (found := _attribute(element, "sampleID")):
            return found
    return None


def _keyword(sample: Element, name: str) -> str:
    for keyword in (one for group in _children(sample, "Keywords", "FCSHeader") for one in group):
        if (_attribute(keyword, "name") or "").upper() == name:
            return (_attribute(keyword, "value") or "").strip()
    return ""


def _sample_of(root: Element, name: str, fcs: FcsFile, tube: str | None) -> Element:
    samples = _samples(root)
    if not samples:
        raise InputError("the workspace holds no samples", source=name)
    labels = ", ".join(_label(sample) for sample in samples[:_MAX_SAMPLES_NAMED])
    if len(samples) > _MAX_SAMPLES_NAMED:
        labels += f" and {len(samples) - _MAX_SAMPLES_NAMED} more"
    if tube is not None:
        found = [s for s in samples if tube in {_label(s), _base_name(s), _sample_id(s)}]
        if not found:
            raise InputError(f"no sample {tube!r} in the workspace", source=name, hint=f"it has {labels}")
        return _one(found, name, fcs)
    file_name = fcs.path.replace("\\", "/").rpartition("/")[2].casefold()
    fil = fcs.keywords.get("$FIL", "").strip().casefold()
    # The sample's name is what FlowJo shows; its location may be that of a copy under another name.
    for wanted, given in (
        (file_name, _label),
        (file_name, _base_name),
        (file_name, lambda s: _keyword(s, "$FIL")),
        (fil, lambda s: _keyword(s, "$FIL")),
        (fil, _label),
        (fil, _base_name),
    ):
        found = [s for s in samples if wanted and given(s).casefold() == wanted]
        if found:
            return _one(found, name, fcs)
    raise InputError(
        "no sample of the workspace is this file, by file name or $FIL",
        source=name,
        hint=f"name one with --tube; it has {labels}",
    )


def _one(found: list[Element], name: str, fcs: FcsFile) -> Element:
    if len(found) > 1:
        same = [s for s in found if (node := _sample_node(s)) is not None and _count(node) == fcs.event_count]
        found = same or found
    if len(found) > 1:
        ids = ", ".join(_sample_id(s) or "?" for s in found)
        raise InputError(
            f"{len(found)} samples of the workspace are this file", source=name, hint=f"name one with --tube: {ids}"
        )
    return found[0]


def _group_tree(root: Element, sample: Element) -> tuple[Element | None, str]:
    """Return the gates of the first group that holds the sample and has gates, and the group's name."""
    wanted = _sample_id(sample)
    for groups in _children(root, "Groups"):
        for node in _children(groups, "GroupNode"):
            members = {
                _attribute(reference, "sampleID")
                for group in _children(node, "Group")
                for references in _children(group, "SampleRefs")
                for reference in _children(references, "SampleRef")
            }
            if wanted in members and next(_walk(node), None) is not None:
                return node, _name(node)
    return None, ""


def _checked(node: Element | None, name: str) -> Element | None:
    """Return a tree of gates, refused where it has more than are evaluated."""
    if node is not None:
        check_gates(sum(local(one.tag) in {"Population", *_BOOLEAN} for one in node.iter()), name)
    return node


def _walk(node: Element | None) -> Iterator[tuple[Element, str, str]]:
    """Yield (population, path, parent's path) in document order; names that repeat among siblings get a number."""
    waiting: list[tuple[Element, str]] = [] if node is None else [(node, "")]
    while waiting:
        parent, parent_path = waiting.pop()
        taken = FreePaths()
        # FlowJo 10 keeps children in Subpopulations, FlowJo 9 directly in the population.
        holders = (parent, *_children(parent, "Subpopulations"))
        children = [child for holder in holders for child in _children(holder, "Population", *_BOOLEAN)]
        below = [(child, taken.free(f"{parent_path}/{_name(child) or 'unnamed'}")) for child in children]
        for child, path in below:
            yield child, path, parent_path
        waiting.extend(reversed(below))


# ------------------------------------------------------------------------------------------------ scales, compensation


def _number(element: Element, name: str, missing: float | None = None) -> float:
    text = _attribute(element, name) or _attribute(element, name.lower())
    if text is None or not text.strip():
        if missing is None:
            raise _Unreadable(f"<{local(element.tag)}> has no {name}")
        return missing
    try:
        value = float(text)
    except ValueError:
        raise _Unreadable(f"{name} of <{local(element.tag)}> is not a number") from None
    if not math.isfinite(value):
        raise _Unreadable(f"{name} of <{local(element.tag)}> is not finite")
    return value


class _Unreadable(Exception):  # noqa: N818 - becomes a finding, never leaves this module
    """A part of the document that cannot be used, and why."""


def _transforms(sample: Element) -> tuple[dict[str, Scale], dict[str, str]]:
    """Return the scale of each channel, and why a channel has none."""
    scales: dict[str, Scale] = {}
    unreadable: dict[str, str] = {}
    for group in _children(sample, "Transformations"):
        for element in group:
            parameter = _child(element, "parameter")
            channel = "" if parameter is None else (_attribute(parameter, "name") or "")
            try:
                scales[channel] = _scale(element)
            except (_Unreadable, ValueError) as error:
                unreadable[channel] = str(error)
    return scales, unreadable


def _gains(sample: Element) -> dict[str, float]:
    """Return the gain of each linear scale that states one."""
    gains = {}
    for element in (one for group in _children(sample, "Transformations") for one in _children(group, "linear")):
        parameter = _child(element, "parameter")
        try:
            gain = _number(element, "gain", 1.0)
        except _Unreadable:
            continue
        gains["" if parameter is None else (_attribute(parameter, "name") or "")] = gain
    return gains


def _scale(element: Element) -> Scale:
    match local(element.tag):
        case "linear":
            # The gain is the file's own ($PnG), which values read from the file already have; for time see `_clock`.
            return FlowJoLinear(low=_number(element, "minRange", 0.0), high=_number(element, "maxRange"))
        case "log":
            return FlowJoLog(offset=_number(element, "offset"), decades=_number(element, "decades"))
        case "biex":
            return flowjo_biex(
                top=_number(element, "maxRange"),
                positive=_number(element, "pos"),
                negative=_number(element, "neg"),
                width=_number(element, "width"),
            )
        case "logicle":
            return Logicle(
                T=_number(element, "T"),
                W=_number(element, "W"),
                M=_number(element, "M"),
                A=_number(element, "A", 0.0),
            )
        case "hyperlog":
            return Hyperlog(
                T=_number(element, "T"),
                W=_number(element, "W"),
                M=_number(element, "M"),
                A=_number(element, "A", 0.0),
            )
        case "fasinh" | "asinh" | "arcsinh":
            return Arcsinh(T=_number(element, "T"), M=_number(element, "M"), A=_number(element, "A", 0.0))
        case kind:
            raise _Unreadable(f"FlowJo's scale {kind!r} has no published definition")


def _compensation(sample: Element, name: str) -> tuple[Matrix | None, str, str, list[QcFinding]]:
    found = _children(sample, "spilloverMatrix")
    if not found:
        return None, "Comp-", "", []
    findings = []
    if len(found) > 1:
        findings.append(
            _finding(
                Level.WARNING,
                "MATRIX_UNUSED",
                f"The sample has {len(found)} matrices; the last is used.",
            )
        )
    element = found[-1]
    prefix = _attribute(element, "prefix")
    suffix = _attribute(element, "suffix") or ""
    prefix = "Comp-" if prefix is None else prefix
    algorithm = _attribute(element, "weightOptAlgorithmType") or "OLS"
    if _attribute(element, "spectral") == "1" and algorithm != "OLS":
        findings.append(
            _finding(
                Level.WARNING,
                "UNMIXING_DIFFERS",
                f"FlowJo unmixed by {algorithm}; here ordinary least squares is used, so counts can differ.",
            )
        )
    try:
        matrix = _matrix(element)
    except _Unreadable as error:
        raise InputError(f"the sample's compensation cannot be read: {error}", source=name) from None
    return matrix, prefix, suffix, findings


def _old_compensation(root: Element, sample: Element, name: str) -> tuple[Matrix | None, str, str]:
    try:
        return flowjo_mac.matrix(root, sample)
    except ValueError as error:
        raise InputError(f"the sample's compensation cannot be read: {error}", source=name) from None


def _matrix(element: Element) -> Matrix:
    rows = _children(element, "spillover")
    if not rows:
        raise _Unreadable("it has no rows")
    detectors: dict[str, None] = {}
    cells: list[tuple[str, dict[str, float]]] = []
    for row in rows:
        fluorochrome = _attribute(row, "parameter") or ""
        shares = {_attribute(cell, "parameter") or "": _number(cell, "value") for cell in _children(row, "coefficient")}
        detectors.update(dict.fromkeys(shares))
        cells.append((fluorochrome, shares))
    names = tuple(detectors)
    fluorochromes = tuple(fluorochrome for fluorochrome, _ in cells)
    if len(set(fluorochromes)) != len(fluorochromes) or len(names) < len(fluorochromes):
        raise _Unreadable(f"it has {len(fluorochromes)} dyes and {len(names)} detectors")
    if set(names) == set(fluorochromes):
        names = fluorochromes
    values = np.array([[row.get(detector, 0.0) for detector in names] for _, row in cells], np.float64)
    if np.linalg.matrix_rank(values) < len(fluorochromes):
        raise _Unreadable("it cannot be inverted")
    values.flags.writeable = False
    label = _attribute(element, "name") or _attribute(element, "id") or "matrix"
    return Matrix(id=label, fluorochromes=fluorochromes, detectors=names, values=values)


# ---------------------------------------------------------------------------------------------------------------- gates


def _gate_element(population: Element) -> Element | None:
    gate = _child(population, "Gate")
    if gate is not None:
        return next(iter(gate), None)
    return next((child for child in population if local(child.tag).endswith("Gate")), None)


def _read_population(reading: _Reading, element: Element, path: str, parent: str, *, counted: bool) -> None:
    count = _count(element) if counted else None
    drawn = _gate_element(element)
    gate: Gate
    info: dict[str, str]
    try:
        if drawn is not None and local(drawn.tag) == "BooleanGate" and local(element.tag) not in _BOOLEAN:
            nested = ForeignGate(name=_name(element) or "unnamed", path=path, parent=parent, gate=Whole())
            gate, info, complement = _read_expression(reading, nested, drawn), {}, False
        else:
            gate, info, complement = _gate(reading, element)
    except (_Unreadable, ValueError) as error:
        reading.findings.append(
            QcFinding(
                level=Level.WARNING,
                code="GATE_LEFT_OUT",
                message=f"Gate {_name(element)} is left out: {error}.",
                where=path,
            )
        )
        return
    group = _attribute(element, "owningGroup")
    one = ForeignGate(
        name=_name(element) or "unnamed",
        path=path,
        parent=parent,
        gate=gate,
        count=count,
        info={**info, **({"group": group} if group else {})},
    )
    if complement:
        # The drawn gate holds what FlowJo leaves out; it becomes a population of its own, which the gate negates.
        inside = replace(one, name=f"{one.name} (drawn)", path=f"{path} (drawn)", count=None)
        reading.gates.append(inside)
        one = replace(one, gate=Boolean(operator="and", operands=((inside.path, True),)), info={})
    reading.gates.append(one)


def _gate(reading: _Reading, element: Element) -> tuple[Gate, dict[str, str], bool]:
    tag = local(element.tag)
    if tag in _BOOLEAN:
        return _boolean(element, _BOOLEAN[tag]), {}, False
    gate = _gate_element(element)
    if gate is None:
        raise _Unreadable("it has no gate that FlowJo 10 would write; save the workspace again with FlowJo 10")
    complement = _attribute(gate, "eventsInside") == "0"
    match local(gate.tag):
        case "PolygonGate" if drawn := flowjo_mac.shapes(gate):
            return _old_shape(reading, drawn)
        case "RectangleGate":
            return _rectangle(reading, gate), {}, complement
        case "PolygonGate":
            return _polygon(reading, gate), {BINS: _bins(gate)}, complement
        case "EllipsoidGate":
            return _ellipse(reading, gate), {BINS: _bins(gate)}, complement
        case kind if kind.startswith("Curly"):
            raise _Unreadable("it is a curly quadrant, whose curve FlowJo does not publish; draw it as a quadrant")
        case kind:
            raise _Unreadable(f"its gate is a {kind}, which no FlowJo workspace is known to hold")


def _bins(gate: Element) -> str:
    resolution = _number(gate, "gateResolution", _DISPLAY)
    return str(int(resolution)) if 1 <= resolution <= 65536 else str(int(_DISPLAY))


def _old_shape(reading: _Reading, drawn: list[flowjo_mac.Shape]) -> tuple[Gate, dict[str, str], bool]:
    """Return a gate of FlowJo 9: vertices in linear values, edges straight on the display."""
    if len(drawn) > 1:
        raise _Unreadable(f"it is drawn {len(drawn)} times over")
    shape = drawn[0]
    scaled = shape.kind in {"polygon", "ellipse"}
    keys = [_axis(reading, name, scaled=scaled) for name in shape.axes]
    columns = []
    for key, values in zip(keys, shape.vertices.T, strict=True):
        channel = reading.dimensions[key].channel
        parameter = flowjo_mac.parameter_of(reading.sample, channel)
        linear = flowjo_mac.coarse_axis(parameter, values, channel, reading.fcs)
        columns.append(np.array(_forward(reading, key, [float(value) for value in linear])))
    corners = np.stack(columns, axis=1)
    if not np.isfinite(corners).all():
        raise _Unreadable("a vertex is not finite on its scale")
    if not scaled:
        low, high = corners.min(axis=0), corners.max(axis=0)
        box = Rectangle(markers=tuple(keys), low=tuple(map(float, low)), high=tuple(map(float, high)))
        return box, {}, shape.inverted
    info = {BINS: str(int(_DISPLAY))}
    if shape.kind == "polygon":
        vertices = tuple((float(x), float(y)) for x, y in corners)
        return Polygon(markers=(keys[0], keys[1]), vertices=vertices), info, shape.inverted
    # The ends of one axis of the ellipse, then those of the other.
    along, across = (corners[0] - corners[1]) / 2.0, (corners[2] - corners[3]) / 2.0
    covariance = np.outer(along, along) + np.outer(across, across)
    if np.linalg.matrix_rank(covariance) < 2:
        raise _Unreadable("an ellipse without extent")
    mean = corners[:4].mean(axis=0)
    ellipse = Ellipsoid(
        markers=tuple(keys),
        mean=tuple(float(value) for value in mean),
        covariance=tuple(tuple(float(value) for value in row) for row in covariance),
        distance_square=1.0,
    )
    return ellipse, info, shape.inverted


def _read_expression(reading: _Reading, one: ForeignGate, gate: Element) -> Boolean:
    """Return a boolean gate of FlowJo 9; what is nested in its expression becomes a population of its own."""
    term = flowjo_mac.expression(gate, one.parent)

    def operand(part: Term) -> tuple[str, bool]:
        if part.operator == "name":
            return part.name, False
        if part.operator == "not":
            path, flag = operand(part.parts[0])
            return path, not flag
        number = sum(other.path.startswith(f"{one.path} (part ") for other in reading.gates) + 1
        name, path = f"{one.name} (part {number})", f"{one.path} (part {number})"
        inner = Boolean(operator=part.operator, operands=tuple(operand(each) for each in part.parts))
        reading.gates.append(replace(one, name=name, path=path, gate=inner, count=None))
        return path, False

    parts = term.parts if term.operator in {"and", "or"} else (term,)
    return Boolean(operator="or" if term.operator == "or" else "and", operands=tuple(operand(part) for part in parts))


def _boolean(element: Element, operator: str) -> Boolean:
    names = []
    for group in _children(element, "Dependents"):
        names += [_name(one) for one in _children(group, "Dependent")]
    if not names or not all(names):
        raise _Unreadable("it names no populations")
    if operator == "not" and len(names) != 1:
        raise _Unreadable(f"a not of {len(names)} populations has no meaning")
    return Boolean(
        operator="or" if operator == "or" else "and",
        operands=tuple(("/" + name.strip("/"), operator == "not") for name in names),
    )


def _dimension(reading: _Reading, element: Element, *, scaled: bool) -> str:
    """Return the key of a gate's axis, defining it on first use."""
    parameter = next((child for child in element if local(child.tag) in {"fcs-dimension", "new-dimension"}), None)
    name = "" if parameter is None else (_attribute(parameter, "name") or "")
    if not name:
        raise _Unreadable("an axis has no name")
    return _axis(reading, name, scaled=scaled)


def _axis(reading: _Reading, name: str, *, scaled: bool) -> str:
    scale = name if scaled else None
    if scaled and name not in reading.scales:
        why = reading.unreadable.get(name)
        if why:
            raise _Unreadable(f"the scale of {name} cannot be read: {why}")
        scale = None
    key = f"{name} scaled" if scale is not None else name
    if key in reading.dimensions:
        return key
    channel, compensation = name, UNCOMPENSATED
    literal = any(name in {c.pnn, c.pns} for c in reading.fcs.channels)
    prefix, suffix = reading.prefix, reading.suffix
    if not literal and (prefix or suffix) and name.startswith(prefix) and name.endswith(suffix):
        channel = name[len(prefix) : len(name) - len(suffix)]
        compensation = FROM_FILE if reading.matrix is None else reading.matrix.id
    elif reading.matrix is not None and not (prefix or suffix) and name in reading.matrix.fluorochromes:
        compensation = reading.matrix.id
    display = name if name in reading.scales else None
    dimension = Dimension(key=key, channel=channel, compensation=compensation, scale=scale, display=display)
    reading.dimensions[key] = _clock(reading, dimension)
    return key


def _clock(reading: _Reading, dimension: Dimension) -> Dimension:
    """Put a dimension of time on FlowJo's own seconds.

    FlowJo stretches the clock so that the run lasts from `$BTIM` to `$ETIM`, and writes the seconds of a tick as the
    gain of its linear scale; a gain of 1 means `$TIMESTEP`.
    """
    gain = reading.gains.get(dimension.channel, 1.0)
    clock = next((c for c in reading.fcs.channels if c.pnn == dimension.channel and c.kind is ChannelKind.TIME), None)
    if clock is None or gain == 1.0 or gain <= 0.0:
        return dimension
    drawn = None if dimension.scale is None else reading.scales[dimension.scale]
    low, high = (drawn.low, drawn.high) if isinstance(drawn, FlowJoLinear) else (0.0, 1.0)
    name = f"{dimension.key} of ticks"
    # Values in ticks are divided by $PnG.
    reading.scales[name] = FlowJoLinear(low=low, high=high, gain=gain * clock.gain)
    return replace(dimension, scale=name, display=None, ticks=True)


def _axes(reading: _Reading, gate: Element, *, scaled: bool) -> tuple[list[str], list[Element]]:
    elements = _children(gate, "dimension")
    return [_dimension(reading, element, scaled=scaled) for element in elements], elements


def _rectangle(reading: _Reading, gate: Element) -> Rectangle:
    # Boundaries are linear values and scales increase, so the comparison needs no scale and is exact.
    keys, elements = _axes(reading, gate, scaled=False)
    if not keys or len(set(keys)) != len(keys):
        raise _Unreadable("a rectangle needs different axes")
    low = tuple(_number(element, "min", -math.inf) for element in elements)
    high = tuple(_number(element, "max", math.inf) for element in elements)
    return Rectangle(markers=tuple(keys), low=low, high=high)


def _vertices(element: Element) -> list[tuple[float, ...]]:
    return [
        tuple(_number(coordinate, "value") for coordinate in _children(vertex, "coordinate"))
        for vertex in _children(element, "vertex")
    ]


def _forward(reading: _Reading, key: str, values: list[float]) -> list[float]:
    scale = reading.dimensions[key].scale
    if scale is None:
        return values
    drawn = reading.scales[scale]
    if isinstance(drawn, FlowJoLinear):
        drawn = replace(drawn, gain=1.0)  # boundaries are in seconds, not in ticks
    return [float(value) for value in drawn.forward(np.array(values, np.float64))]


def _polygon(reading: _Reading, gate: Element) -> Polygon:
    keys, _ = _axes(reading, gate, scaled=True)
    vertices = _vertices(gate)
    if len(keys) != 2 or len(vertices) < 3 or any(len(vertex) != 2 for vertex in vertices):
        raise _Unreadable("a polygon needs two axes and three or more vertices")
    x = _forward(reading, keys[0], [vertex[0] for vertex in vertices])
    y = _forward(reading, keys[1], [vertex[1] for vertex in vertices])
    if not np.all(np.isfinite([x, y])):
        raise _Unreadable("a vertex is not finite on its scale")
    return Polygon(markers=(keys[0], keys[1]), vertices=tuple(zip(x, y, strict=True)))


def _ellipse(reading: _Reading, gate: Element) -> Ellipsoid:
    """Return the ellipse of two foci and four points of its edge, all in display channels of 256.

    The long half axis is the farthest edge point's distance; the short one follows from it and the foci, as the
    stored short-axis points are rounded to the screen.
    """
    keys, _ = _axes(reading, gate, scaled=True)
    foci_element, edge_element = _child(gate, "foci"), _child(gate, "edge")
    foci = np.array([] if foci_element is None else _vertices(foci_element), np.float64)
    edge = np.array([] if edge_element is None else _vertices(edge_element), np.float64)
    if len(keys) != 2 or foci.shape != (2, 2) or edge.ndim != 2 or edge.shape[0] < 2 or edge.shape[1] != 2:
        raise _Unreadable("an ellipse needs two axes, two foci and points of its edge")
    if any(reading.dimensions[key].scale is None for key in keys):
        raise _Unreadable("an ellipse is drawn on the display, and an axis has no scale")
    centre = foci.mean(axis=0)
    axis = foci[1] - foci[0]
    half_focal = float(np.hypot(*axis)) / 2.0
    long = float(np.hypot(*(edge - centre).T).max())
    if long <= half_focal:
        raise _Unreadable("the edge of the ellipse lies between its foci")
    short = math.sqrt(long * long - half_focal * half_focal)
    along = axis / (2.0 * half_focal) if half_focal > 0 else np.array([1.0, 0.0])
    across = np.array([-along[1], along[0]])
    covariance = (long**2 * np.outer(along, along) + short**2 * np.outer(across, across)) / _DISPLAY**2
    return Ellipsoid(
        markers=tuple(keys),
        mean=tuple(float(value) for value in centre / _DISPLAY),
        covariance=tuple(tuple(float(value) for value in row) for row in covariance),
        distance_square=1.0,
    )


def _finding(level: Level, code: str, message: str, where: str = "") -> QcFinding:
    return QcFinding(level=level, code=code, message=message, where=where)


def stored_counts(strategy: ForeignStrategy) -> Mapping[str, int]:
    """Return path → FlowJo's own count, where it has counted."""
    return {one.path: one.count for one in strategy.gates if one.count is not None}
