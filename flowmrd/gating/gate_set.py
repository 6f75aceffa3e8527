"""A subject's gate set against its template: checked before any file is opened, and as gates for one file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowmrd.cytometry.events import EventSource
from flowmrd.documents.gate_set import GateSet, GateSetOverride, version_in_range
from flowmrd.errors import GatingError, InputError
from flowmrd.fcs import FcsFile
from flowmrd.gating.gates import (
    Boolean,
    Ellipsoid,
    Gate,
    Intervals,
    Polygon,
    Rectangle,
    gate_from_json,
    gate_markers,
)
from flowmrd.gating.template import GatingTemplate
from flowmrd.registry import nearest

if TYPE_CHECKING:
    from flowmrd.gating.interop.document import ForeignStrategy

# The keys of each kind of gate; `closed` may be left out.
_KEYS: Mapping[str, frozenset[str]] = {
    "whole": frozenset(),
    "nothing": frozenset(),
    "rectangle": frozenset({"markers", "low", "high"}),
    "intervals": frozenset({"marker", "ranges"}),
    "polygon": frozenset({"markers", "vertices"}),
    "ellipsoid": frozenset({"markers", "mean", "covariance", "distance_square"}),
}
_OPTIONAL = {"polygon": frozenset({"closed"})}


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectGate:
    """A gate in place of a template's, and where it comes from in words."""

    gate: Gate
    origin: str


def gate_set_faults(read: GateSet, template: GatingTemplate, *, error: type[InputError]) -> Iterator[InputError]:
    """Say what of a gate set does not fit its template: id, version, populations, gates and their markers.

    Gates of a Gating-ML document are looked up too; those of other programs are looked up with the file at hand.
    """
    source = read.path.name
    head = read.gate_set
    have = template.template
    if head.template != have.id:
        yield error(
            f"expected a gate set for template {have.id!r}; got one for {head.template!r}",
            source=source,
            where="gate_set.template",
            hint="a gate is drawn on one template's scales",
        )
        return
    if not version_in_range(have.version, head.template_versions):
        yield error(
            f"expected a gate set for version {have.version} of {have.id}; got one for {head.template_versions}",
            source=source,
            where="gate_set.template_versions",
            hint="look at its gates on this version, then widen the range",
        )
    documents: dict[str, ForeignStrategy | None] = {}
    names = tuple(row.name for row in template.population)
    markers = tuple(spec.marker for spec in template.channel)
    for number, one in enumerate(read.override):
        key = f"override[{number}] ({one.population})"
        if one.population not in names:
            yield error(
                f"template {have.id} has no population {one.population!r}",
                source=source,
                where=f"{key}.population",
                hint=nearest(one.population, names),
            )
        try:
            if one.document is None:
                gate = drawn_gate(one.gate)
                for marker in gate_markers(gate):
                    if marker not in markers:
                        yield error(
                            f"template {have.id} has no channel for marker {marker!r}",
                            source=source,
                            where=f"{key}.gate",
                            hint=nearest(marker, markers),
                        )
            else:
                if one.document not in documents:
                    documents[one.document] = None  # a document that cannot be read is one fault
                    documents[one.document] = _early(read.path.parent / one.document)
                _look_up(documents[one.document], one.gate)
        except GatingError as fault:
            yield error(str(fault), source=source, where=f"{key}.gate")
        except InputError as fault:
            yield error(str(fault), source=source, where=f"{key}.document")


def _early(path: Path) -> ForeignStrategy | None:
    """Read a Gating-ML document, which needs no file; workspaces hold the gates of many."""
    from flowmrd.gating.interop.gatingml import read_gatingml
    from flowmrd.gating.interop.load import detect
    from flowmrd.gating.interop.xml import read_document

    data = read_document(path)
    return read_gatingml(data, path.name) if detect(data, path.name) == "gatingml" else None


def _look_up(document: ForeignStrategy | None, name: str) -> None:
    """Find a gate by its name, as early as can be."""
    from flowmrd.gating.interop.onto_template import find_gate

    if document is not None and isinstance((found := find_gate(document, name)).gate, Boolean):
        raise GatingError(f"gate {found.name!r} is boolean; only a geometric gate can be taken")


def subject_gates(read: GateSet, fcs: FcsFile, source: EventSource) -> dict[str, SubjectGate]:
    """Return population → gate of a set, on the markers and scales of one file.

    Parameters
    ----------
    read : the set; see `gate_set_faults`
    fcs : the file
    source : the template's panel, compensation and scales on it

    Raises
    ------
    GatingError
        A gate needs a marker that the file lacks, or a document's gate cannot be taken over; nothing is gated then,
        because the template's own gate is not what was asked for.
    """
    gates: dict[str, SubjectGate] = {}
    strategies: dict[tuple[str, str | None], ForeignStrategy] = {}
    for one in read.override:
        try:
            gate, note = _gate(read, one, fcs, source, strategies)
        except (GatingError, InputError) as fault:
            raise GatingError(f"gate set {read.gate_set.id}, {one.population}: {fault}") from None
        lacking = [marker for marker in gate_markers(gate) if marker not in source.markers]
        if lacking:
            raise GatingError(
                f"gate set {read.gate_set.id}, {one.population}: the gate needs {', '.join(lacking)}, not in this file"
            )
        gates[one.population] = SubjectGate(gate=gate, origin=_origin(read, one) + note)
    return gates


def _gate(
    read: GateSet,
    one: GateSetOverride,
    fcs: FcsFile,
    source: EventSource,
    strategies: dict[tuple[str, str | None], ForeignStrategy],
) -> tuple[Gate, str]:
    """Return a gate and a note on where it was found; `strategies` keeps the documents that were read."""
    from flowmrd.gating.interop.load import load_strategy
    from flowmrd.gating.interop.onto_template import find_gate, onto_template

    if one.document is None:
        return drawn_gate(one.gate), ""
    key = (one.document, one.tube)
    if key not in strategies:
        strategies[key] = load_strategy(read.path.parent / one.document, fcs, tube=one.tube)
    strategy = strategies[key]
    found = find_gate(strategy, one.gate)
    gate, inexact = onto_template(found, strategy, fcs, source)
    note = f"; gate {found.name!r} of {one.document}"
    return gate, ", ".join(filter(None, (note, inexact)))


def _origin(read: GateSet, one: GateSetOverride) -> str:
    head = read.gate_set
    by, source = one.by or head.author, one.source or head.source
    return f"drawn by {by} on {head.date.isoformat()} from {source}; gate set {head.id}"


def drawn_gate(data: Mapping[str, Any]) -> Gate:
    """Build a gate that a person wrote down, and check everything that its geometry needs.

    Raises
    ------
    GatingError
        An unknown kind or key, a missing key, a value that is no number, or a shape that holds no event by mistake.
    """
    kind = data.get("kind")
    if kind == "boolean":
        raise GatingError("expected a geometric gate; got a boolean one")
    if kind not in _KEYS:
        raise GatingError(f"expected kind to be one of {', '.join(_KEYS)}; got {kind!r}")
    kind = str(kind)
    given = frozenset(data) - {"kind"}
    if missing := sorted(_KEYS[kind] - given):
        raise GatingError(f"a {kind} needs {', '.join(missing)}")
    if unknown := sorted(given - _KEYS[kind] - _OPTIONAL.get(kind, frozenset())):
        raise GatingError(f"a {kind} has no {', '.join(unknown)}; it has {', '.join(sorted(_KEYS[kind]))}")
    for name in ("low", "high", "ranges", "vertices", "mean", "covariance", "distance_square"):
        if name in data:
            _require_numbers(data[name], name)
    names = data.get("markers", [data.get("marker", "")])
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise GatingError("expected names of markers")
    try:
        gate = gate_from_json(data)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise GatingError(f"a {kind} needs {', '.join(sorted(_KEYS[kind]))} of matching shape") from None
    if fault := _shape_fault(gate):
        raise GatingError(fault)
    return gate


def _require_numbers(value: object, name: str) -> None:
    if isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            _require_numbers(item, name)
    elif not isinstance(value, int | float) or isinstance(value, bool):
        raise GatingError(f"expected numbers in {name}; got {value!r}")
    elif math.isnan(value) or (math.isinf(value) and name not in {"low", "high", "ranges"}):
        raise GatingError(f"expected finite numbers in {name}; got {value}")


def _shape_fault(gate: Gate) -> str:
    match gate:
        case Rectangle(markers=markers, low=low, high=high):
            if not markers or not len(markers) == len(low) == len(high):
                return f"a rectangle needs one low and one high a marker; got {len(low)} and {len(high)}"
            if len(set(markers)) < len(markers):
                return "a rectangle needs each marker once"
            if any(a >= b for a, b in zip(low, high, strict=True)):
                return "a rectangle needs low below high"
        case Intervals(ranges=ranges):
            if not ranges or any(a >= b for a, b in ranges):
                return "intervals need ranges [low, high] with low below high"
        case Polygon(markers=markers, vertices=vertices):
            if len(set(vertices)) < 3 or markers[0] == markers[1]:
                return "a polygon needs three different vertices or more on two markers"
        case Ellipsoid(markers=markers, mean=mean, covariance=covariance, distance_square=limit):
            size = len(markers)
            if size < 2 or len(mean) != size or len(covariance) != size or any(len(row) != size for row in covariance):
                return "an ellipsoid needs a mean and a square covariance of its markers"
            matrix = np.asarray(covariance)
            if not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix).min() <= 0 or limit <= 0:
                return "an ellipsoid needs a symmetric, positive definite covariance and a distance_square above 0"
        case _:
            pass
    return ""
