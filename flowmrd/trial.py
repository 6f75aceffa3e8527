"""From a run's measurements and a clinical table to responses and endpoints: what `--clinical` adds to a run folder.

MRD and CAR-T cells come from the acquisitions, everything else from the tables. What is written holds pseudonyms and
the columns that are read, never other columns of the input.
"""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmrd import __version__
from flowmrd.clinical.baseline import BaselineTable, baseline_columns, by_patient_id, read_baseline
from flowmrd.clinical.datasets import FINDINGS, all_findings
from flowmrd.clinical.endpoints import Outcomes, outcomes_of
from flowmrd.clinical.measured import CODES, MEASURED_COLUMNS, Measured, agreement, with_measurements
from flowmrd.clinical.outcomes import courses_of_samples
from flowmrd.clinical.response import OUTPUT, ResponseCall, evidence_frame
from flowmrd.clinical.rules import Criteria, criteria_paths, load_criteria
from flowmrd.clinical.safety import EVENT_COLUMNS, Safety, read_adverse_events
from flowmrd.clinical.table import COLUMNS, Assessment, ClinicalTable, read_clinical_table
from flowmrd.documents.loader import read_csv
from flowmrd.errors import InputError, Level, QcFinding
from flowmrd.quantification.kinetics import Sample
from flowmrd.quantification.rare_events import Call, Category
from flowmrd.records import AcquisitionResult, MeasurementRow, StoredResults, write_frame, written

if TYPE_CHECKING:
    import polars as pl

# Tables that are taken from beside the clinical table where no option names them.
BESIDE = {"baseline": "baseline.csv", "adverse_events": "adverse_events.csv"}
TABLE_NAME = "clinical.csv"
# The column of the completed table that says where its MRD columns come from.
SOURCE_COLUMN = "mrd_acquisition"
_TABLES = ("responses", "response_evidence", "response_findings")
# `responses` beyond the columns of `flowmrd respond`.
_MORE = ("day", SOURCE_COLUMN, "sentence", "criteria", "criteria_version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Checked tables of a trial; `completed` says that the table's MRD columns already are a run's."""

    criteria: Criteria
    table: ClinicalTable
    baseline: BaselineTable | None
    paths: Mapping[str, Path]
    digests: Mapping[str, Mapping[str, str]]
    completed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a trial's tables and a run's measurements say together; `samples` are by row of the table."""

    inputs: Inputs
    table: ClinicalTable
    outcomes: Outcomes
    safety: Safety | None
    samples: Mapping[int, Measured]
    findings: tuple[QcFinding, ...]

    @property
    def baseline(self) -> BaselineTable | None:
        """The baseline table, where there is one."""
        return self.inputs.baseline

    def source_of(self, call: ResponseCall) -> str:
        """Return the acquisition that a call's MRD comes from; empty where it is the table's own or there is none."""
        return self.outcomes.assessments[call.row].sources.get("mrd_events", "")


# -------------------------------------------------------------------------------------------------------------- inputs


def load_inputs(
    table: Path, criteria: Criteria, *, baseline: Path | None = None, adverse_events: Path | None = None
) -> Inputs:
    """Read and check all tables, before any measurement is there.

    Parameters
    ----------
    table : the clinical table; the columns that a run measures may be absent
    criteria : rules and visits
    baseline, adverse_events : further tables, where there are any

    Raises
    ------
    InputError : a file cannot be read as a table
    ExceptionGroup : of `InputError`, every faulty cell of one table
    """
    read = read_clinical_table(table, visits=criteria.visits, optional=MEASURED_COLUMNS)
    named = {"table": table, "baseline": baseline, "adverse_events": adverse_events}
    paths = {name: path for name, path in named.items() if path is not None}
    inputs = Inputs(
        criteria=criteria,
        table=read,
        baseline=None if baseline is None else read_baseline(baseline, criteria),
        paths=paths,
        digests={name: _digest(path) for name, path in paths.items()},
    )
    conclude(inputs, ())  # faults of the adverse events show before the first file is opened
    return inputs


def inputs_of_run(folder: Path, criteria: Criteria | None = None) -> Inputs:
    """Read the tables that a run with `--clinical` kept, by the run's own criteria unless others are given.

    Raises
    ------
    InputError : the run had no clinical table, or its criteria are not shipped and none were given
    """
    path = folder / TABLE_NAME
    if not path.is_file():
        raise InputError(
            f"expected {TABLE_NAME} of a run with `--clinical`; got none",
            source=folder.name,
            hint="give the clinical table: --clinical TABLE.csv",
        )
    rules = criteria if criteria is not None else _criteria_of(folder)
    paths = {name: folder / file for name, file in BESIDE.items() if (folder / file).is_file()}
    inputs = load_inputs(path, rules, **paths)
    sources = {row.number: row.cells.get(SOURCE_COLUMN, "") for row in read_csv(path, error=InputError).rows}
    rows = tuple(
        replace(one, sources=dict.fromkeys(MEASURED_COLUMNS, sources[one.row])) if sources.get(one.row) else one
        for one in inputs.table.assessments
    )
    said = tuple(_kept_findings(folder))
    table = replace(inputs.table, assessments=rows, findings=(*inputs.table.findings, *said))
    return replace(inputs, table=table, completed=True)


def _kept_findings(folder: Path) -> Iterator[QcFinding]:
    """What was found when the measurements met the table; the completed table no longer shows it."""
    path = folder / "response_findings.csv"
    for row in read_csv(path, error=InputError).rows if path.is_file() else ():
        cells = row.cells
        if cells["code"] in CODES:
            yield QcFinding(
                level=Level(cells["level"]), code=cells["code"], message=cells["message"], where=cells["where"]
            )


def _criteria_of(folder: Path) -> Criteria:
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))["clinical"]["criteria"]
    found = load_criteria(record["id"]) if record["id"] in criteria_paths() else None
    if found is None or found.digest != record["sha256"]:
        raise InputError(
            f"the run's criteria, {record['id']} {record['version']}, are not those that ship with this flowmrd",
            source=folder.name,
            hint="name them: --criteria FILE.toml",
        )
    return found


def _digest(path: Path) -> dict[str, str]:
    from hashlib import sha256

    return {"file": path.name, "sha256": sha256(path.read_bytes()).hexdigest()}


# ------------------------------------------------------------------------------------------------------------ the trial


def results_of_run(folder: Path) -> StoredResults:
    """Return the kept results of a run folder, in the order of its manifest.

    Raises
    ------
    InputError : the folder is not a run's, or a result is missing
    """
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        names = [one["acquisition"] for one in record["acquisitions"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            "expected a run folder with run.json; got another folder",
            source=folder.name,
            hint="the folder of `flowmrd run --out`",
        ) from None
    places = [folder / "acquisitions" / name for name in names]
    missing = [place.name for place in places if not (place / "result.json").is_file()]
    if missing:
        raise InputError(
            f"expected the result of {missing[0]}; got none", source=folder.name, hint="run again, with --resume"
        )
    return StoredResults(places)


def conclude(inputs: Inputs, results: Iterable[AcquisitionResult]) -> Trial:
    """Put a run's measurements into the clinical table, class every visit, compute the endpoints.

    Parameters
    ----------
    inputs : checked tables
    results : of the run's acquisitions, gone through once
    """
    measured: list[Measured] = []
    points: list[tuple[str, int, Sample]] = []
    for result in results:
        measured.extend(_measured(result))
        if result.point is not None and result.subject:
            points.append((result.subject, result.course, result.point))
    criteria, before = inputs.criteria, inputs.baseline
    table = inputs.table
    samples: dict[int, Measured] = {}
    if not inputs.completed:
        completed = with_measurements(table, measured, criteria.visits)
        table, samples = completed.table, dict(completed.samples)
    else:
        by_name = {one.acquisition: one for one in measured}
        samples = {one.row: by_name[name] for one in table.assessments if (name := _source(one)) in by_name}
        named = {row: f"{one.denominator} cells" for row, one in samples.items() if one.usable}
        rows = tuple(replace(one, denominator=named.get(one.row, "")) for one in table.assessments)
        table = replace(table, assessments=rows)
    not_infused = () if before is None else before.not_infused
    outcomes = outcomes_of(
        table,
        criteria,
        not_infused=not_infused,
        courses=lambda subjects: courses_of_samples(points, subjects, where="the run"),
    )
    said = agreement(outcomes.calls, samples)
    if said:
        outcomes = replace(outcomes, findings=(*outcomes.findings, *said))
    safety = None
    if (path := inputs.paths.get("adverse_events")) is not None:
        own = by_patient_id(before)
        safety = read_adverse_events(
            path,
            outcomes.subjects,
            last_day=criteria.keys.safety_last_day,
            prior_allosct=None if before is None else {name: one.prior_allosct for name, one in own.items()},
            ages={name: one.age_years for name, one in own.items()},
        )
    return Trial(
        inputs=inputs,
        table=table,
        outcomes=outcomes,
        safety=safety,
        samples=samples,
        findings=all_findings(outcomes, before, safety),
    )


@cache
def _contract() -> Mapping[str, str]:
    """What the clinical table's measured columns mean among a run's tables."""
    document = tomllib.loads((files("flowmrd.clinical") / "table.toml").read_text(encoding="utf-8"))
    found: Mapping[str, str] = document["measured"]
    return found


def _measured(result: AcquisitionResult) -> Iterator[Measured]:
    contract = _contract()
    if result.specimen_type != contract["specimen_type"] or result.study_day is None:
        return
    for row, wording in zip(result.measurements, result.wording, strict=True):
        if row.analyte != contract["analyte"]:
            continue
        independent = all(one.code != contract["gated_only"] for one in result.findings)
        antigen = next(
            (one for one in result.antigens if one.antigen == contract["target"] and one.population == row.numerator),
            None,
        )
        yield Measured(
            acquisition=result.acquisition,
            subject=result.subject,
            study_day=result.study_day,
            denominator=row.denominator,
            events=row.numerator_events,
            denominator_events=row.denominator_events,
            target_independent=independent,
            target_positive=None if antigen is None else antigen.positive_events,
            target_cells=0 if antigen is None else antigen.events,
            category=row.category,
            mrd_neg_1e4=row.mrd_neg_1e4,
            call=row.call,
            withheld=result.withheld or (_unproved(row) if independent else ()),
            wording=wording,
            text=f"{result.file_name}, SHA-256 {result.file_sha256 or 'unknown'}; template {result.tube} "
            f"{result.template_version} ({result.template_digest}); flowmrd {__version__}",
        )


def _unproved(row: MeasurementRow) -> tuple[str, ...]:
    """Say why an absence that a person has not confirmed is none: groups wait for judgement, no reference, or the like.

    After therapy directed at the gate's only way to the lineage the criteria themselves decide.
    """
    inadequate = row.category == Category.UNDETECTED_GATING_INADEQUATE and row.call == Call.REVIEW
    return ("nothing was called, and a person has to judge what the search left open",) if inadequate else ()


# ---------------------------------------------------------------------------------------------------------- run folder


def write_trial(trial: Trial, out: Path) -> None:
    """Write the completed table, responses, evidence and findings into a run folder, and keep the other tables."""
    for name, frame in trial_frames(trial).items():
        write_frame(frame, out / name)
    rows = ([*(one.cells[name] for name in COLUMNS), _source(one)] for one in trial.table.assessments)
    _write_csv(out / TABLE_NAME, (*COLUMNS, SOURCE_COLUMN), rows)
    known = {"baseline": baseline_columns(trial.inputs.criteria), "adverse_events": EVENT_COLUMNS}
    for name, file in BESIDE.items():
        path = trial.inputs.paths.get(name)
        if path is None:
            (out / file).unlink(missing_ok=True)
            continue
        read = read_csv(path, error=InputError)
        columns = [column for column in read.header if column in known[name]]
        _write_csv(out / file, columns, ([row.cells[column] for column in columns] for row in read.rows))


def remove_trial(out: Path) -> None:
    """Take away what an earlier run with a clinical table left: it is not of this run."""
    for name in _TABLES:
        for suffix in (".csv", ".parquet"):
            (out / f"{name}{suffix}").unlink(missing_ok=True)
    if (out / TABLE_NAME).is_file():
        for file in (TABLE_NAME, *BESIDE.values()):
            (out / file).unlink(missing_ok=True)


def trial_frames(trial: Trial) -> dict[str, pl.DataFrame]:
    """Return the tables of a run with a clinical table, by file name without ending."""
    import polars as pl

    rules = trial.inputs.criteria
    rows = [
        (*call.cells(), call.day, trial.source_of(call) or None, call.sentence, rules.id, rules.version)
        for call in trial.outcomes.calls
    ]
    kinds: dict[str, Any] = dict.fromkeys((*OUTPUT, *_MORE), pl.String) | {"day": pl.Int64}
    findings = [(str(one.level), one.code, one.message, one.where or None) for one in trial.findings]
    return {
        "responses": pl.DataFrame(rows, schema=kinds, orient="row"),
        "response_evidence": evidence_frame(trial.outcomes.calls, acquisitions=True),
        "response_findings": pl.DataFrame(
            findings, schema={name: getattr(pl, kind) for name, kind in FINDINGS.items()}, orient="row"
        ),
    }


def trial_record(trial: Trial) -> dict[str, Any]:
    """Return what `run.json` says of the trial: criteria, digests of the tables, each call with its rule and flags."""
    rules = trial.inputs.criteria
    return {
        "criteria": {
            "id": rules.id,
            "version": rules.version,
            "sha256": rules.digest,
            "keys": rules.keys.model_dump(mode="json"),
        },
        "inputs": {name: dict(one) for name, one in trial.inputs.digests.items()},
        "responses": [
            {
                "patient_id": call.patient_id,
                "timepoint": call.timepoint,
                "response": call.response.value,
                "rule_id": call.rule_id,
                "flags": [flag.value for flag in call.flags],
                SOURCE_COLUMN: trial.source_of(call),
            }
            for call in trial.outcomes.calls
        ],
        "findings": dict(sorted(Counter(one.code for one in trial.findings).items())),
    }


def _source(one: Assessment) -> str:
    return one.sources.get("mrd_events", "")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(header)
    out.writerows(rows)
    with written(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
