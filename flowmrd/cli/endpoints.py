"""`flowmrd endpoints`: a cohort's clinical table or a run folder in, the trial's endpoints, tables and a page out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowmrd.cli.options import beside, say_findings

if TYPE_CHECKING:
    from flowmrd.clinical.baseline import BaselineTable
    from flowmrd.clinical.endpoints import Outcomes
    from flowmrd.clinical.rules import Criteria
    from flowmrd.clinical.safety import Safety

# Tables that are taken from beside the clinical table where no option names them.
_BESIDE = {"baseline": "baseline.csv", "adverse_events": "adverse_events.csv", "counts": "counts.csv"}


@click.command(name="endpoints", short_help="Compute a cohort's endpoints: response, survival, persistence, safety.")
@click.argument("source", metavar="RUN_OR_TABLE", type=click.Path(exists=True, path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option(
    "--criteria", "-c", help="Criteria id or TOML file.  [default: mbcart19; of a run with --clinical, the run's]"
)
@click.option(
    "--clinical",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With a run folder: the clinical table.  [default: that of the run]",
)
@click.option(
    "--baseline",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Dose, lymphodepletion, bridging, burden (CSV, one row a patient).  [default: baseline.csv beside the table]",
)
@click.option(
    "--adverse-events",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Adverse events (CSV).  [default: adverse_events.csv beside the table]",
)
@click.option(
    "--counts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CAR+ cells per µL (CSV, as of `flowmrd kinetics`).  [default: counts.csv beside the table; a run's own]",
)
@click.option("--page/--no-page", default=True, show_default=True, help="Write the cohort page (cohort.html).")
def command(
    source: Path,
    out: Path,
    criteria: str | None,
    clinical: Path | None,
    baseline: Path | None,
    adverse_events: Path | None,
    counts: Path | None,
    page: bool,
) -> None:
    """Compute the endpoints of a cohort from a clinical table (CSV, as of `flowmrd respond`) or from the folder of
    `flowmrd run`, whose MRD and CAR-T cells are then the run's.

    Writes every estimate with its interval and number at risk (endpoints.csv, endpoints.json), the curves behind them,
    safety and baseline tables, ADaM-like data sets (CSV and Parquet), and one page that shows it all.

    A table may also be already summarised, one row a patient (patient_id, remission, remission_day, relapse_day,
    death_day, allosct_day, last_contact_day): then there are survival and relapse, but no visits to count.
    """
    from flowmrd.clinical.datasets import all_findings, datasets
    from flowmrd.records import write_frame, write_json

    named = {"baseline": baseline, "adverse_events": adverse_events}
    if source.is_dir():
        if counts is not None:
            raise click.UsageError("--counts: the CAR-T cells of a run folder are its own; leave the option out")
        cohort = _of_run(source, clinical, criteria, named)
    else:
        if clinical is not None:
            raise click.UsageError(f"--clinical needs a run folder; {source.name} is a table itself")
        cohort = _of_table(source, criteria, {**named, "counts": counts})
    outcomes, rules = cohort.outcomes, cohort.outcomes.criteria
    say_findings(all_findings(outcomes, cohort.baseline, cohort.safety))
    try:
        for name, frame in datasets(outcomes, baseline=cohort.baseline, safety=cohort.safety).items():
            write_frame(frame, out / name)
        write_json(
            {**outcomes.summary, "criteria": _provenance(rules), "inputs": cohort.inputs}, out / "endpoints.json"
        )
    except OSError as error:
        raise click.UsageError(f"--out: {out} cannot be written: {error.strerror}") from None
    if page:
        from flowmrd.reporting.cohort_page import render_cohort

        render_cohort(
            outcomes, out / "cohort.html", baseline=cohort.baseline, safety=cohort.safety, inputs=cohort.inputs
        )
    _say(outcomes, out, rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cohort:
    outcomes: Outcomes
    baseline: BaselineTable | None
    safety: Safety | None
    inputs: Mapping[str, object]


def _of_run(folder: Path, clinical: Path | None, criteria: str | None, named: Mapping[str, Path | None]) -> _Cohort:
    from flowmrd.clinical.rules import load_criteria
    from flowmrd.errors import InputError
    from flowmrd.trial import BESIDE, conclude, inputs_of_run, load_inputs, results_of_run

    results = results_of_run(folder)
    if clinical is not None:
        inputs = load_inputs(clinical, load_criteria(criteria), **beside(clinical, named, BESIDE))
    else:
        for name, path in named.items():
            if path is not None:
                raise InputError(
                    "needs --clinical, too: the run has tables of its own", where=f"--{name.replace('_', '-')}"
                )
        inputs = inputs_of_run(folder, None if criteria is None else load_criteria(criteria))
    trial = conclude(inputs, results)
    record = {"run": _digest(folder / "run.json"), **inputs.digests}
    return _Cohort(outcomes=trial.outcomes, baseline=trial.baseline, safety=trial.safety, inputs=record)


def _of_table(table: Path, criteria: str | None, named: dict[str, Path | None]) -> _Cohort:
    from flowmrd.clinical.baseline import by_patient_id, read_baseline
    from flowmrd.clinical.rules import load_criteria
    from flowmrd.clinical.safety import read_adverse_events

    rules = load_criteria(criteria)
    paths = beside(table, named, _BESIDE)
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
    inputs = {name: _digest(path) for name, path in {"table": table, **paths}.items() if path is not None}
    return _Cohort(outcomes=outcomes, baseline=before, safety=safety, inputs=inputs)


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


def _digest(path: Path) -> dict[str, str]:
    from hashlib import sha256

    return {"file": path.name, "sha256": sha256(path.read_bytes()).hexdigest()}


def _say(outcomes: Outcomes, out: Path, rules: Criteria) -> None:
    click.echo(f"{len(outcomes.subjects)} patients by {rules.id} {rules.version}; results in {out}")
    for row in outcomes.rows:
        if row.role.value == "primary" and row.estimate is not None:
            interval = "" if row.ci_low is None else f" (95% CI {row.ci_low:.1f} to {row.ci_high:.1f}%)"
            click.echo(f"{row.title} at {row.visit}: {row.k} of {row.n}, {row.estimate:.1f}%{interval}")
