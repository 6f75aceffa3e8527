"""`flowmrd gates`: gates from and to other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowmrd.cli import EXIT_SOME_FAILED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flowmrd.cytometry.events import EventSource
    from flowmrd.errors import QcFinding
    from flowmrd.fcs import FcsFile
    from flowmrd.foreign import CountRow
    from flowmrd.gating.interop.document import ForeignStrategy
    from flowmrd.gating.template import GatingTemplate

_DOCUMENT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(name="gates", short_help="List and convert gates of other programs; compare counts.")
def command() -> None:
    """Gates of Gating-ML 2.0, FlowJo, FACSDiva, Kaluza and openCyto: converted, and their counts compared with ours."""


@command.command()
@click.argument("document")
@click.option(
    "--to", "target", required=True, type=click.Choice(["template", "gatingml", "gate-set"]), help="What to write."
)
@click.option("--out", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--fcs", "fcs_path", type=_DOCUMENT, help="File to convert for; workspaces hold the gates of many.")
@click.option("--tube", help="The tube or sample of the document, where the file's name does not say.")
@click.option("--dataset", type=click.IntRange(1), help="Data set to read in files that hold several.")
@click.option("--template", "-t", help="With --to gate-set: the template whose gates are replaced.")
@click.option("--subject", help="With --to gate-set: `patient_pseudonym` of the manifest.")
@click.option("--author", help="With --to gate-set: who drew the gates.")
@click.option("--date", type=click.DateTime(["%Y-%m-%d"]), help="With --to gate-set: when; by default today.")
@click.option("--source", help="With --to gate-set: from which acquisition; by default the document's name.")
@click.option("--reason", help="With --to gate-set: why the template's gates do not serve.")
@click.option(
    "--gate",
    "pairs",
    multiple=True,
    metavar="POPULATION=NAME",
    help="With --to gate-set: take this gate for that population; by default those whose names agree.",
)
def convert(
    document: str,
    target: str,
    out: Path,
    fcs_path: Path | None,
    tube: str | None,
    dataset: int | None,
    **about: Any,
) -> None:
    """Convert DOCUMENT to a flowmrd template, to Gating-ML 2.0, or to a subject's gate set.

    DOCUMENT is a file of another program; with --to gatingml also a template (id or .toml), whose gates are placed on
    the file of --fcs. A gate set takes gates from DOCUMENT by name. What cannot be carried over is listed, and the exit
    code is 3.
    """
    from flowmrd.fcs import read_fcs

    if target != "gate-set" and (given := [name for name, value in about.items() if value]):
        named = ", ".join("--gate" if name == "pairs" else f"--{name}" for name in given)
        raise click.UsageError(f"{named}: only with --to gate-set")
    fcs = None if fcs_path is None else read_fcs(fcs_path, dataset=dataset)
    if target == "template" and _is_opencyto(Path(document)):
        if not _methods_to_template(Path(document), out, fcs):
            sys.exit(EXIT_SOME_FAILED)
        return
    if target == "gate-set":
        if not Path(document).is_file() or document.endswith(".toml"):
            raise click.UsageError(f"{document}: --to gate-set takes a file of another program")
        if not _to_gate_set(Path(document), _strategy(document, fcs, tube), out, fcs, tube, about):
            sys.exit(EXIT_SOME_FAILED)
        return
    strategy = _strategy(document, fcs, tube)
    if target == "gatingml":
        from flowmrd.gating.interop.export import export_gatingml

        data, findings = export_gatingml(strategy)
        _write(out, data)
        complete = not findings and not strategy.unread
        _list((*strategy.findings, *findings))
        click.echo(f"{out}: Gating-ML 2.0, {len(strategy.gates)} gates read")
    else:
        complete = _to_template(strategy, out, fcs)
    if not complete:
        sys.exit(EXIT_SOME_FAILED)


def _to_gate_set(
    document: Path, strategy: ForeignStrategy, out: Path, fcs: FcsFile | None, tube: str | None, about: dict[str, Any]
) -> bool:
    """Write a gate set; with a file at hand, check that its gates can stand on the template's scales."""
    import datetime as dt
    import os

    from flowmrd.fcs import file_sha256
    from flowmrd.gating.interop.as_gate_set import gate_set_text, match_gates
    from flowmrd.gating.interop.onto_template import onto_template
    from flowmrd.gating.template import find_template

    if missing := [f"--{name}" for name in ("template", "subject", "author", "reason") if not about[name]]:
        raise click.UsageError(f"--to gate-set needs {', '.join(missing)}")
    pairs = dict(pair.partition("=")[::2] for pair in about["pairs"])
    if not all(pairs.values()):
        raise click.UsageError("--gate: expected POPULATION=NAME")
    template = find_template(about["template"])
    matched = match_gates(strategy, template, pairs)
    for line in matched.left_out:
        click.echo(f"left out: {line}", err=True)
    if not matched.gates:
        click.echo("no gate of the document has a population's name; pair them with --gate POPULATION=NAME", err=True)
        return False
    if fcs is not None:
        source = _source(template, fcs)
        for one in matched.gates.values():
            onto_template(one, strategy, fcs, source)
    text = gate_set_text(
        matched,
        strategy,
        template,
        set_id=out.stem,
        subject=about["subject"],
        author=about["author"],
        date=about["date"].date() if about["date"] else dt.datetime.now().astimezone().date(),
        source=about["source"] or f"{document.name} ({strategy.kind})",
        reason=about["reason"],
        document=Path(os.path.relpath(document.resolve(), out.resolve().parent)).as_posix(),
        sha256=file_sha256(document),
        tube=tube,
    )
    _write(out, text.encode())
    click.echo(f"{out}: gate set, {', '.join(matched.gates)}")
    return not matched.left_out


def _source(template: GatingTemplate, fcs: FcsFile) -> EventSource:
    from flowmrd.cytometry.events import EventSource, resolve_panel

    panel = resolve_panel(template.channel, fcs.channels, tube=template.template.id)
    return EventSource(fcs, panel, template.channel, spillover=fcs.spillover)


def _to_template(strategy: ForeignStrategy, out: Path, fcs: FcsFile | None) -> bool:
    from flowmrd.gating.interop.as_template import to_template

    converted = to_template(strategy, template_id=out.stem, fcs=fcs)
    _write(out, converted.text.encode())
    _list(converted.findings)
    click.echo(f"{out}: template, {len(converted.names)} of {len(strategy.gates)} gates")
    how = converted.compensation
    if converted.matrix is not None:
        channels, values = converted.matrix
        path = out.with_suffix(".matrix.tsv")
        rows = ["\t".join(("", *channels))]
        rows += ["\t".join((name, *map(repr, map(float, row)))) for name, row in zip(channels, values, strict=True)]
        _write(path, ("\n".join(rows) + "\n").encode())
        how = str(path)
    click.echo(f"run it with: flowmrd gate FILE --template {out} --matrix {how} --out DIR")
    return converted.complete


def _is_opencyto(path: Path) -> bool:
    from flowmrd.gating.interop.load import detect
    from flowmrd.gating.interop.xml import read_document

    return path.is_file() and path.suffix != ".toml" and detect(read_document(path), path.name) == "opencyto"


def _methods_to_template(path: Path, out: Path, fcs: FcsFile | None) -> bool:
    """Write an openCyto template's methods as ours; they are placed on each file anew."""
    from flowmrd.gating.interop.opencyto import convert as convert_opencyto

    text, findings = convert_opencyto(path.read_bytes(), path.name, fcs)
    _write(out, text.encode())
    for finding in findings:
        click.echo(f"{finding.level}: {finding.message}", err=True)
    click.echo(f"{out}: template of openCyto's methods")
    return all(finding.level == "info" for finding in findings)


def _strategy(document: str, fcs: FcsFile | None, tube: str | None) -> ForeignStrategy:
    """Read a foreign document, or place a template's gates on the file."""
    from flowmrd.gating.interop.gatingml import read_gatingml
    from flowmrd.gating.interop.load import detect, load_strategy
    from flowmrd.gating.interop.xml import read_document

    path = Path(document)
    if document.endswith(".toml") or not path.is_file():
        if fcs is None:
            raise click.UsageError(
                f"{document}: a template's gates are placed on a file; give it as --fcs"
                if document.endswith(".toml") or "." not in document
                else f"no such file: {document}"
            )
        return _placed(document, fcs)
    if fcs is not None:
        return load_strategy(path, fcs, tube=tube)
    data = read_document(path)
    if detect(data, path.name) != "gatingml":
        raise click.UsageError(f"{path.name} holds gates of many files; say which with --fcs")
    return read_gatingml(data, path.name)


def _placed(template: str, fcs: FcsFile) -> ForeignStrategy:
    from flowmrd.gating.engine import apply_template
    from flowmrd.gating.interop.export import strategy_of
    from flowmrd.gating.template import find_template

    found = find_template(template)
    source = _source(found, fcs)
    return strategy_of(apply_template(source, found), source, fcs)


@command.command()
@click.argument("document", type=_DOCUMENT)
@click.argument("files", nargs=-1, required=True, type=_DOCUMENT)
@click.option(
    "--tolerance",
    type=click.FloatRange(0.0),
    default=0.0,
    show_default=True,
    help="Largest difference that still agrees, as a fraction of their count.",
)
@click.option("--tube", help="The tube or sample of the document, where the file's name does not say.")
@click.option("--dataset", type=click.IntRange(1), help="Data set to read in files that hold several.")
@click.option("--out", "-o", type=click.Path(file_okay=False, path_type=Path), help="Folder for table and report.")
def compare(
    document: Path, files: tuple[Path, ...], tolerance: float, tube: str | None, dataset: int | None, out: Path | None
) -> None:
    """Compare the counts stored in DOCUMENT with ours on FILES.

    Exit code 0: every stored count agrees; 3: one differs, or a gate or file could not be evaluated. A program that
    evaluates its gates on the raster of its display may be off by the events within one step of an edge: `raster`.
    """
    from flowmrd.fcs import read_fcs
    from flowmrd.foreign import compare_counts, differing, gate_by_document, write_comparison, write_runs

    rows: list[CountRow] = []
    results, runs = [], []
    for path in files:
        run = gate_by_document(path, document, tube=tube, dataset=dataset, panels=False)
        runs.append(run)
        if run.strategy is None:
            results.append(run.result)
            _list(run.result.findings)
            continue
        fcs = read_fcs(path, dataset=dataset)
        mine = compare_counts(run, fcs, tolerance=tolerance)
        rows.extend(mine)
        results.append(differing(run, fcs, mine) if out is not None else run.result)
        _list(run.evaluation.findings if run.evaluation is not None else ())
    _print(rows, document)
    if out is not None:
        from dataclasses import replace

        from flowmrd.reporting.report import render_report

        write_comparison(rows, out)
        record = write_runs([replace(run, result=one) for run, one in zip(runs, results, strict=True)], document, out)
        click.echo(f"report: {render_report(results, record, out / 'report')}")
    if any(row.agrees is False for row in rows) or not all(run.complete for run in runs):
        sys.exit(EXIT_SOME_FAILED)


@command.command(name="list")
@click.argument("document", type=_DOCUMENT)
@click.option("--out", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Also write the list as CSV.")
def list_(document: Path, out: Path | None) -> None:
    """List the gates of DOCUMENT with axes, scales and stored counts; no FCS file is needed.

    Exit code 3: a gate cannot be read; its reason stands beside it.
    """
    from flowmrd.gating.interop.tree import read_tree, tree_csv

    rows = read_tree(document)
    if out is not None:
        _write(out, tree_csv(rows).encode())
    sample = None
    for row in rows:
        if row.sample != sample:
            sample = row.sample
            if sample:
                click.echo(sample)
        count = "-" if row.their_events is None else f"{row.their_events:,}"
        axes = " × ".join(row.axes)
        scales = f" ({', '.join(row.scales)})" if row.scales else ""
        about = f"left out: {row.left_out}" if row.left_out else f"{row.kind} {axes}{scales}".strip()
        click.echo(f"  {row.path}  {count}  {about}")
    stored = sum(row.their_events is not None for row in rows)
    click.echo(f"{document.name}: {len(rows)} gates, {stored} stored counts")
    if any(row.left_out for row in rows):
        sys.exit(EXIT_SOME_FAILED)


def _print(rows: Sequence[CountRow], document: Path) -> None:
    width = max([len(f"{row.acquisition} {row.population}") for row in rows], default=10)
    click.echo(f"{'population':{width}} {'theirs':>10} {'ours':>10} {'difference':>11} {'raster':>7}")
    for row in rows:
        theirs, ours = (("-" if n is None else f"{n:,}") for n in (row.their_events, row.our_events))
        difference = "-" if row.difference is None else f"{100 * row.difference:+.2f} %"
        verdict = {True: "", False: "  differs", None: ""}[row.agrees]
        name = f"{row.acquisition} {row.population}"
        click.echo(f"{name:{width}} {theirs:>10} {ours:>10} {difference:>11} {row.raster_events:>7,}{verdict}")
    stored = [row for row in rows if row.agrees is not None]
    if not stored:
        click.echo(f"{document.name} stores no counts for these files")
        return
    click.echo(f"{sum(bool(row.agrees) for row in stored)} of {len(stored)} stored counts agree")


def _list(findings: Sequence[QcFinding]) -> None:
    for finding in findings:
        if finding.level != "info":
            click.echo(f"{finding.level}: {finding.message}", err=True)


def _write(path: Path, data: bytes) -> None:
    from flowmrd.records import written

    with written(path) as temporary:
        temporary.write_bytes(data)
