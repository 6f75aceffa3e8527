"""`flowmrd gate`: gate files by a template or by another program's gates, without clinical context."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowmrd.cli import EXIT_SOME_FAILED
from flowmrd.cli.options import execute, settings_from, settings_options

if TYPE_CHECKING:
    from flowmrd.documents.gate_set import GateSet
    from flowmrd.gating.template import GatingTemplate

# What the document itself decides, or what only a template needs.
_TEMPLATE_ONLY = {
    "matrix": "file",
    "state": "raw",
    "scaled_range": None,
    "templates": None,
    "reference": None,
    "resume": False,
}


@click.command(name="gate", short_help="Gate FCS files by a template or a foreign document.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--template", "-t", help="Template id (see `flowmrd template list`) or a .toml file.")
@click.option(
    "--strategy",
    "-s",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Instead of a template: Gating-ML 2.0, a FlowJo workspace, FACSDiva, Kaluza or openCyto document.",
)
@click.option(
    "--gate-set",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --template: a subject's own gates (TOML), in place of the template's on all FILES.",
)
@click.option(
    "--diagnosis",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --template: an earlier FCS file of the same subject, or the phenotype.json that a run kept of it: its "
    "blasts are looked for in all FILES (MRD-OWN).",
)
@click.option("--tube", help="With --strategy: the tube or sample of the document, where its file name does not say.")
@click.option("--out", "-o", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@settings_options
def command(
    files: tuple[Path, ...],
    template: str | None,
    strategy: Path | None,
    gate_set: Path | None,
    diagnosis: Path | None,
    tube: str | None,
    out: Path,
    **options: Any,
) -> None:
    """Gate FILES: populations, measurement, findings and a report, without subject or visit.

    With --strategy the gates of another program are evaluated as they stand: no measurement, and a gate that cannot be
    evaluated on a file is a finding (exit code 3).
    """
    if (template is None) == (strategy is None):
        raise click.UsageError("give one of --template and --strategy")
    stems: dict[str, Path] = {}
    for path in files:
        if path.stem in stems:
            raise click.UsageError(
                f"two files have the name {path.stem!r}: {stems[path.stem]} and {path}; "
                "their results would overwrite each other"
            )
        stems[path.stem] = path
    if template is not None:
        from flowmrd.gating.template import find_template
        from flowmrd.pipeline import Acquisition

        if tube is not None:
            raise click.UsageError("--tube goes with --strategy")
        settings = settings_from(options)
        # A typo is told before anything is written.
        found = find_template(template, None if settings.templates is None else Path(settings.templates))
        own = None if gate_set is None else _own_gates(gate_set, found)
        earlier = None if diagnosis is None else str(diagnosis)
        acquisitions = [
            Acquisition(name=path.stem, path=str(path), tube=template, gate_set=own, diagnosis=earlier)
            for path in files
        ]
        execute(acquisitions, out, settings, options)
        return
    assert strategy is not None
    if gate_set is not None:
        raise click.UsageError("--gate-set goes with --template")
    if diagnosis is not None:
        raise click.UsageError("--diagnosis goes with --template")
    refused = [f"--{name.replace('_', '-')}" for name, usual in _TEMPLATE_ONLY.items() if options[name] != usual]
    if refused:
        raise click.UsageError(f"{', '.join(refused)}: the document of --strategy decides this itself")
    _gate_by(strategy, files, tube, out, options)


def _own_gates(path: Path, template: GatingTemplate) -> GateSet:
    """Read a gate set and check it against the template; every fault is told before anything is written."""
    from flowmrd.documents.gate_set import load_gate_set
    from flowmrd.documents.loader import raise_faults
    from flowmrd.errors import SettingsError
    from flowmrd.gating.gate_set import gate_set_faults

    read = load_gate_set(path, error=SettingsError)
    raise_faults(gate_set_faults(read, template, error=SettingsError), source=path.name)
    return read


def _gate_by(strategy: Path, files: tuple[Path, ...], tube: str | None, out: Path, options: dict[str, Any]) -> None:
    from flowmrd.foreign import gate_by_document, write_runs
    from flowmrd.records import write_membership

    runs = []
    for number, path in enumerate(files, start=1):
        run = gate_by_document(path, strategy, tube=tube, dataset=options["dataset"], panels=options["report"])
        runs.append(run)
        if options["membership"] and run.evaluation is not None:
            write_membership(run.memberships(), out / "membership" / f"{path.stem}.parquet")
        click.echo(
            f"[{number}/{len(files)}] {path.stem}: {len(run.names)} populations, {run.result.events:,} events", err=True
        )
        for finding in run.result.findings:
            if finding.level != "info":
                click.echo(f"{finding.level}: {finding.message}", err=True)
    record = write_runs(runs, strategy, out)
    click.echo(f"{sum(run.evaluation is not None for run in runs)} of {len(runs)} files gated; results in {out}")
    if options["report"]:
        from flowmrd.reporting.report import render_report

        page = render_report([run.result for run in runs], record, out / "report", single_file=options["single_file"])
        click.echo(f"report: {page}")
    if not all(run.complete for run in runs):
        sys.exit(EXIT_SOME_FAILED)
