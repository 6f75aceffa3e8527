"""`flowmrd endpoints`: a cohort's clinical table in, the trial's endpoints, tables and a page out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from flowmrd.clinical.endpoints import Outcomes
    from flowmrd.clinical.rules import Criteria

# Tables that are taken from beside the clinical table where no option names them.
BESIDE = {"baseline": "baseline.csv", "adverse_events": "adverse_events.csv", "counts": "counts.csv"}


@click.command(name="endpoints", short_help="Compute a cohort's endpoints: response, survival, persistence, safety.")
@click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option("--criteria", "-c", help="Criteria id or TOML file.  [default: mbcart19]")
@click.option(
    "--baseline",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Dose, lymphodepletion, bridging, burden (CSV, one row a patient).  [default: baseline.csv beside TABLE]",
)
@click.option(
    "--adverse-events",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Adverse events (CSV).  [default: adverse_events.csv beside TABLE]",
)
@click.option(
    "--counts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CAR+ cells per µL (CSV, as of `flowmrd kinetics`).  [default: counts.csv beside TABLE]",
)
@click.option("--page/--no-page", default=True, show_default=True, help="Write the cohort page (cohort.html).")
def command(
    table: Path,
    out: Path,
    criteria: str | None,
    baseline: Path | None,
    adverse_events: Path | None,
    counts: Path | None,
    page: bool,
) -> None:
    """Compute the endpoints of a cohort from TABLE (CSV, as of `flowmrd respond`).

    Writes every estimate with its interval and number at risk (endpoints.csv, endpoints.json), the curves behind them,
    safety and baseline tables, ADaM-like data sets (CSV and Parquet), and one page that shows it all.

    TABLE may also be already summarised, one row a patient (patient_id, remission, remission_day, relapse_day,
    death_day, allosct_day, last_contact_day): then there are survival and relapse, but no visits to count.
    """
    from flowmrd.clinical.baseline import by_patient_id, read_baseline
    from flowmrd.clinical.datasets import all_findings, datasets
    from flowmrd.clinical.rules import load_criteria
    from flowmrd.clinical.safety import read_adverse_events
    from flowmrd.records import write_json, written

    rules = load_criteria(criteria)
    paths = _inputs(table, {"baseline": baseline, "adverse_events": adverse_events, "counts": counts})
    before = None if paths["baseline"] is None else read_baseline(paths["baseline"], rules)
    outcomes = _outcomes(table, rules, () if before is None else before.not_infused, paths["counts"])
    safety = None
    if paths["adverse_events"] is not None:
        own = by_patient_id(before)
        safety = read_adverse_events(
            paths["adverse_events"],
            outcomes.subjects,
            last_day=rules.keys.safety_last_day,
            prior_allosct=None if before is None else {name: one.prior_allosct for name, one in own.items()},
            ages={name: one.age_years for name, one in own.items()},
        )
    for finding in all_findings(outcomes, before, safety):
        place = f"{finding.where}: " if finding.where else ""
        click.echo(f"{finding.level}: {place}{finding.code}: {finding.message}", err=True)
    try:
        for name, frame in datasets(outcomes, baseline=before, safety=safety).items():
            with written(out / f"{name}.csv") as temporary:
                frame.write_csv(temporary)
            with written(out / f"{name}.parquet") as temporary:
                frame.write_parquet(temporary, compression="zstd")
        write_json(
            {**outcomes.summary, "criteria": _provenance(rules), "inputs": _digests(table, paths)},
            out / "endpoints.json",
        )
    except OSError as error:
        raise click.UsageError(f"--out: {out} cannot be written: {error.strerror}") from None
    if page:
        from flowmrd.reporting.cohort_page import render_cohort

        render_cohort(outcomes, out / "cohort.html", baseline=before, safety=safety, inputs=_digests(table, paths))
    _say(outcomes, out, rules)


def _inputs(table: Path, named: dict[str, Path | None]) -> dict[str, Path | None]:
    """Take the tables that lie beside the clinical table where no option names another."""
    found: dict[str, Path | None] = {}
    for name, path in named.items():
        beside = table.parent / BESIDE[name]
        if path is None and beside.is_file() and beside.resolve() != table.resolve():
            click.echo(f"{name.replace('_', ' ')}: {beside.name}, found beside {table.name}", err=True)
            path = beside
        found[name] = path
    return found


def _outcomes(table: Path, rules: Criteria, not_infused: tuple[str, ...], counts: Path | None) -> Outcomes:
    from flowmrd.clinical.endpoints import outcomes_of, outcomes_of_subjects
    from flowmrd.clinical.outcomes import subjects_from_rows
    from flowmrd.clinical.table import read_clinical_table
    from flowmrd.documents.counts import load_counts
    from flowmrd.documents.loader import raise_faults, read_csv
    from flowmrd.errors import InputError

    read = read_csv(table, error=InputError)
    if "remission" in read.header and "timepoint" not in read.header:
        raise_faults(read.faults, source=table.name)
        subjects = subjects_from_rows([row.cells for row in read.rows], source=table.name)
        return outcomes_of_subjects([one for one in subjects if one.patient_id not in not_infused], rules)
    clinical = read_clinical_table(table, visits=rules.visits)
    return outcomes_of(clinical, rules, not_infused=not_infused, counts=None if counts is None else load_counts(counts))


def _provenance(rules: Criteria) -> dict[str, object]:
    return {
        "id": rules.id,
        "version": rules.version,
        "sha256": rules.digest,
        "keys": rules.keys.model_dump(mode="json"),
    }


def _digests(table: Path, paths: dict[str, Path | None]) -> dict[str, object]:
    from hashlib import sha256

    return {
        name: {"file": path.name, "sha256": sha256(path.read_bytes()).hexdigest()}
        for name, path in {"table": table, **paths}.items()
        if path is not None
    }


def _say(outcomes: Outcomes, out: Path, rules: Criteria) -> None:
    click.echo(f"{len(outcomes.subjects)} patients by {rules.id} {rules.version}; results in {out}")
    for row in outcomes.rows:
        if row.role.value == "primary" and row.estimate is not None:
            interval = "" if row.ci_low is None else f" (95% CI {row.ci_low:.1f} to {row.ci_high:.1f}%)"
            click.echo(f"{row.title} at {row.visit}: {row.k} of {row.n}, {row.estimate:.1f}%{interval}")
