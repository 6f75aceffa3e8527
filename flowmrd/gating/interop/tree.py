"""The gates of a document as it shows them, without a file to gate: tree, axes, scales and stored counts."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from flowmrd.gating.gates import gate_markers
from flowmrd.gating.interop.load import detect
from flowmrd.gating.interop.xml import read_document

# Kaluza's letters of its scales.
_KALUZA_SCALES = {"I": "linear", "O": "log", "C": "logicle"}
COLUMNS = ("sample", "path", "kind", "axes", "scales", "their_events", "left_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRow:
    """One gate of a document.

    `sample` is the tube, sample or data set that it belongs to, empty where the document holds for any file; `axes` and
    `scales` are those of the gate, `their_events` the stored count, `left_out` why it cannot be read.
    """

    sample: str
    path: str
    kind: str
    axes: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    their_events: int | None = None
    left_out: str = ""


def read_tree(path: Path) -> tuple[TreeRow, ...]:
    """List every gate of a document.

    Parameters
    ----------
    path : Gating-ML 2.0, a FlowJo workspace, a FACSDiva experiment, a Kaluza container, or an openCyto template

    Raises
    ------
    InputError
        The document is none of these, or cannot be trusted.
    """
    data = read_document(path)
    match detect(data, path.name):
        case "flowjo":
            return _flowjo(data, path.name)
        case "diva":
            return _diva(data, path.name)
        case "kaluza":
            return _kaluza(data, path.name)
        case "opencyto":
            return _opencyto(data, path.name)
        case _:
            return _gatingml(data, path.name)


def _flowjo(data: bytes, name: str) -> tuple[TreeRow, ...]:
    from flowmrd.gating.interop import flowjo

    return tuple(
        TreeRow(sample=one.sample, path=one.path, kind=one.kind, axes=one.axes, their_events=one.count)
        for one in flowjo.read_tree(data, name)
    )


def _diva(data: bytes, name: str) -> tuple[TreeRow, ...]:
    from flowmrd.gating.interop import diva

    return tuple(
        TreeRow(
            sample=one.sample, path=one.path, kind=one.kind, axes=one.axes, scales=one.scales, their_events=one.count
        )
        for one in diva.read_tree(data, name)
    )


def _kaluza(data: bytes, name: str) -> tuple[TreeRow, ...]:
    from flowmrd.gating.interop import kaluza

    return tuple(
        TreeRow(
            sample=one.data_set,
            path=one.path,
            kind="" if one.gate is None else type(one.gate).__name__.lower(),
            axes=one.axes,
            scales=tuple(_KALUZA_SCALES.get(scale, scale) for scale in one.scales),
            left_out=one.why_not,
        )
        for one in kaluza.read_tree(data, name)
    )


def _opencyto(data: bytes, name: str) -> tuple[TreeRow, ...]:
    """Return the populations that the rows become: openCyto's methods have no gates before they are placed."""
    import tomllib

    from flowmrd.gating.interop.opencyto import convert

    rows: list[TreeRow] = []
    paths = {"root": ""}
    for one in tomllib.loads(convert(data, name)[0])["population"]:
        paths[one["name"]] = path = f"{paths[one['parent']]}/{one.get('title') or one['name']}"
        lost = one.get("purpose", "").startswith("NOT MAPPED")
        rows.append(
            TreeRow(
                sample="",
                path=path,
                kind="" if lost else one["method"],
                axes=tuple(one.get("channels", ())),
                left_out=one["purpose"] if lost else "",
            )
        )
    return tuple(rows)


def _gatingml(data: bytes, name: str) -> tuple[TreeRow, ...]:
    from flowmrd.gating.interop.gatingml import read_gatingml

    strategy = read_gatingml(data, name)
    rows = []
    for one in strategy.gates:
        used = [strategy.dimensions[key] for key in gate_markers(one.gate)]
        rows.append(
            TreeRow(
                sample="",
                path=one.path,
                kind=type(one.gate).__name__.lower(),
                axes=tuple(each.channel if each.ratio is None else " / ".join(each.ratio[:2]) for each in used),
                scales=tuple(each.scale or "linear" for each in used),
            )
        )
    why = {one.where: one.message for one in strategy.findings}
    rows += [TreeRow(sample="", path=lost, kind="", left_out=why.get(lost, "")) for lost in sorted(strategy.unread)]
    return tuple(rows)


def tree_csv(rows: tuple[TreeRow, ...]) -> str:
    """Return the rows as CSV; several axes or scales are joined by ` × `."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        events = "" if row.their_events is None else row.their_events
        axes, scales = " × ".join(row.axes), " × ".join(row.scales)
        writer.writerow((row.sample, row.path, row.kind, axes, scales, events, row.left_out))
    return text.getvalue()
