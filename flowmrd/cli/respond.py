"""`flowmrd respond`: a clinical table in, a response class for every visit out."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="respond", short_help="Class the response at each visit of a clinical table.")
@click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="CSV to write, one row a visit."
)
@click.option("--criteria", "-c", help="Criteria id or TOML file.  [default: mbcart19]")
@click.option(
    "--evidence",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write, for each visit, the rule in words and the cells that made it fire (CSV).",
)
def command(table: Path, out: Path, criteria: str | None, evidence: Path | None) -> None:
    """Class every visit of TABLE (CSV, one row a planned visit of a patient).

    The output has one row an input row, in the same order: class, marrow grade, MRD category, flags, event and the rule
    that fired. A faulty cell stops the command before anything is written; all faults are told at once.
    """
    from flowmrd.clinical.response import alerts, classify, evidence_frame, response_frame
    from flowmrd.clinical.rules import load_criteria
    from flowmrd.clinical.table import read_clinical_table
    from flowmrd.records import written

    rules = load_criteria(criteria)
    read = read_clinical_table(table, visits=rules.visits)
    calls = classify(read, rules)
    for finding in (*read.findings, *alerts(calls)):
        click.echo(f"{finding.level}: {finding.where}: {finding.code}: {finding.message}", err=True)
    frames = {out: response_frame(calls)} | ({} if evidence is None else {evidence: evidence_frame(calls)})
    for path, frame in frames.items():
        try:
            with written(path) as temporary:
                frame.write_csv(temporary)
        except OSError as error:
            raise click.UsageError(f"{path} cannot be written: {error.strerror}") from None
    patients = len({call.patient_id for call in calls})
    visits, subjects = ("visit" if len(calls) == 1 else "visits"), ("patient" if patients == 1 else "patients")
    click.echo(f"{len(calls)} {visits} of {patients} {subjects} classed by {rules.id} {rules.version}; table: {out}")
