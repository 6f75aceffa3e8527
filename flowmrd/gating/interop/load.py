"""Open a gate document of any program: the format is told by the content, never by the file's name."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from flowmrd.errors import InputError
from flowmrd.fcs import FcsFile
from flowmrd.gating.interop.document import ForeignStrategy
from flowmrd.gating.interop.gatingml import GATING
from flowmrd.gating.interop.xml import ZIP_START, check_gates, local, outermost, read_document

_XML_STARTS = (b"<", b"\xef\xbb\xbf<", b"\xff\xfe<", b"\xfe\xff\x00<")
_ROOTS = {"Workspace": "flowjo", "bdfacs": "diva"}
_OPENCYTO_COLUMNS = {"alias", "pop", "parent", "dims", "gating_method"}


class _Reader(Protocol):
    def __call__(self, data: bytes, name: str, fcs: FcsFile, *, tube: str | None) -> ForeignStrategy: ...


def load_strategy(path: Path, fcs: FcsFile, *, tube: str | None = None) -> ForeignStrategy:
    """Read a gate document for one file.

    Parameters
    ----------
    path : Gating-ML 2.0, a FlowJo workspace, a FACSDiva experiment, a Kaluza container, or an openCyto template
    fcs : the file to be gated; workspaces hold gates of many
    tube : which tube or sample of the document to take, where its file name does not say so

    Raises
    ------
    InputError
        The document is none of these, or cannot be trusted.
    GatingError
        The document has no gates for this file.
    """
    data = read_document(path)
    kind = detect(data, path.name)
    if kind == "opencyto":
        return _placed(data, path.name, fcs)
    strategy = reader_of(kind)(data, path.name, fcs, tube=tube)
    check_gates(len(strategy.gates), path.name)
    return strategy


def _placed(data: bytes, name: str, fcs: FcsFile) -> ForeignStrategy:
    """Place the methods of an openCyto template on the file; what they find are the gates."""
    from flowmrd.cytometry.events import EventSource
    from flowmrd.gating.engine import apply_template
    from flowmrd.gating.gates import Nothing
    from flowmrd.gating.interop.export import strategy_of
    from flowmrd.gating.interop.opencyto import convert, panel_of
    from flowmrd.gating.template import load_template

    text, findings = convert(data, name, fcs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "opencyto.toml"
        path.write_text(text, encoding="utf-8")
        template = load_template(path)
    panel = panel_of(template.channel, fcs, tube=name)
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    result = apply_template(source, template)
    strategy = strategy_of(result, source, fcs)
    # The converter keeps a row that has no counterpart as a population that counts nothing, and so does the engine one
    # whose cut is not found; here they are no gates, and what needs them is left out too.
    lost: set[str] = set()
    below: set[str] = set()
    for row, one in zip(template.population, strategy.gates, strict=True):
        if row.purpose.startswith("NOT MAPPED"):
            lost.add(one.path)
        elif one.parent in lost or one.parent in below:
            below.add(one.path)
        elif isinstance(one.gate, Nothing):
            lost.add(one.path)
    return replace(
        strategy,
        source=name,
        kind="openCyto",
        gates=tuple(replace(one, count=None) for one in strategy.gates if one.path not in lost),
        findings=(*findings, *panel.findings, *result.findings, *strategy.findings),
        unread=strategy.unread | lost,
    )


def reader_of(kind: str) -> _Reader:
    """Return the reader of a kind, importing it only now."""
    module = importlib.import_module(f"flowmrd.gating.interop.{kind}")
    return cast("_Reader", module.read_strategy)


def detect(data: bytes, name: str) -> str:
    """Return the reader module of a document: gatingml, flowjo, diva, kaluza or opencyto.

    Raises
    ------
    InputError
        The content is none of these.
    """
    if data.startswith(ZIP_START):
        return "kaluza"
    start = data[:4096].lstrip()
    if start.startswith(_XML_STARTS):
        root = outermost(data, name)
        if root == f"{{{GATING}}}Gating-ML":
            return "gatingml"
        if local(root) == "Gating-ML":
            raise InputError(
                f"Gating-ML of {root[1:].partition('}')[0] or 'no namespace'} is not read",
                source=name,
                hint=f"export it as Gating-ML 2.0 ({GATING})",
            )
        if local(root) in _ROOTS:
            return _ROOTS[local(root)]
        raise _unknown(name, f"its outermost element is {local(root)!r}")
    header = start.partition(b"\n")[0].decode("utf-8", "replace").lstrip("\ufeff").replace('"', "")
    columns = {cell.strip() for cell in header.replace("\t", ",").split(",")}
    if columns >= _OPENCYTO_COLUMNS:
        return "opencyto"
    if name.lower().endswith(".toml"):
        raise InputError(
            "this is a flowmrd template, not a foreign document", source=name, hint="give it as --template"
        )
    raise _unknown(name, "it is neither XML, nor a zip, nor an openCyto table")


def _unknown(name: str, why: str) -> InputError:
    return InputError(
        f"not a gate document that flowmrd knows: {why}",
        source=name,
        hint="expected Gating-ML 2.0, a FlowJo workspace, a FACSDiva experiment, a Kaluza analysis or openCyto's CSV",
    )
