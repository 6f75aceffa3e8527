"""A subject document: the visits of one or more subjects in TOML, written as files with a manifest.

`[subject]` holds defaults, every `[[visit]]` may override them. The patient's constants (immunophenotype, receptor
brightness) come from `patient_seed`, so they stay over the visits.
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import io
import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowmrd.clinical.safety import EVENT_COLUMNS
from flowmrd.clinical.table import COLUMNS
from flowmrd.errors import SettingsError
from flowmrd.simulation.acquisition import SIMULATOR_VERSION as _VERSION
from flowmrd.simulation.acquisition import Parameters, check_parameters, parameter_record, simulate
from flowmrd.simulation.profile import load_instrument, load_profile, packaged_document, read_toml
from flowmrd.simulation.writing import ByteOrder, DataType, WrittenFiles, write_simulated, written_files

MANIFEST_NAME = "manifest.csv"
DEMO_SUBJECT = "demo-subject"
_DEMO_CLINICAL = "demo-clinical"

# The worklist's columns, in its order; those empty in every row are left out.
MANIFEST_COLUMNS = (
    "accession",
    "patient_pseudonym",
    "study_id",
    "site",
    "specimen_type",
    "specimen_site",
    "pull_number",
    "collected_at",
    "received_at",
    "stained_at",
    "acquired_at",
    "timepoint",
    "study_day",
    "infusion_date_offset",
    "course",
    "tube",
    "panel_id",
    "panel_version",
    "instrument_id",
    "cytometer_setup_id",
    "fcs_filename",
    "fcs_sha256",
    "control_acquisition",
    "control_kind",
    "car_reagent",
    "car_clone",
    "car_lot",
    "beads_lot",
    "beads_added",
    "blood_volume_ul",
    "dilution_factor",
    "wbc_1e9_l",
    "wbc_at",
    "lymph_pct",
    "copies_per_ug",
    "prior_anti_cd19",
    "prior_anti_cd22",
    "prior_anti_cd20",
    "prior_anti_cd38",
    "priority",
    "requester",
    "comment",
)


class Visit(BaseModel):
    """One acquisition of a subject document, defaults of `[subject]` filled in.

    Keys of the document that are not named here are those of `Parameters`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
    seed: Annotated[int, Field(ge=0)]
    pseudonym: str
    study_day: int
    timepoint: str = ""
    infusion_date: dt.date | None = None
    datatype: DataType = DataType.FLOAT
    byte_order: ByteOrder = ByteOrder.LITTLE
    manifest: Mapping[str, str | int | float] = {}
    parameters: Parameters


_VISIT_KEYS = set(Visit.model_fields) - {"parameters"}
_PARAMETER_KEYS = {entry.name for entry in fields(Parameters)} - {"date"}  # the date follows from `study_day`


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectDocument:
    """Visits in document order."""

    visits: tuple[Visit, ...]


def load_subject(path: Path) -> SubjectDocument:
    """Read a subject document.

    Raises
    ------
    SettingsError : unreadable, or one faulty value
    ExceptionGroup : several
    """
    return _document(read_toml(path), source=str(path), folder=path.parent)


def demo_subject() -> SubjectDocument:
    """The shipped demo: before the infusion, then day 28 and months 3, 6 and 12."""
    return _document(tomllib.loads(packaged_document(DEMO_SUBJECT)), source=f"{DEMO_SUBJECT}.toml", folder=Path())


def write_demo_tables(out: Path) -> Path:
    """Write the demo subject's clinical, baseline and adverse-event tables; the MRD columns are a run's to fill.

    Returns
    -------
    path of the clinical table

    Raises
    ------
    SettingsError : the folder cannot be written
    """
    document = tomllib.loads(packaged_document(_DEMO_CLINICAL))
    patient = document["patient"]
    rows = [{**document["every"], **patient, **visit} for visit in document["visit"]]
    own = {"patient_id": patient["patient_id"]}
    write_table(out / "baseline.csv", [*own, *document["baseline"]], [{**own, **document["baseline"]}])
    write_table(out / "adverse_events.csv", EVENT_COLUMNS, [{**own, **event} for event in document["event"]])
    return write_table(out / "clinical.csv", COLUMNS, rows)


def write_subject(
    document: SubjectDocument,
    out: Path,
    *,
    reuse: Path | None = None,
    jobs: int = 1,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Write every visit's files and `manifest.csv`.

    Parameters
    ----------
    out : folder, made if it does not exist
    reuse : folder with files of an earlier simulation: a visit whose file is there, made with the same seed, parameters
        and simulator, is referred to instead of being made again
    jobs : processes; the bytes do not depend on it
    report : called with one line for each visit

    Returns
    -------
    path of the manifest

    Raises
    ------
    SettingsError : a visit's parameter is out of range (nothing is written then), or the folder cannot be written
    """
    for visit in document.visits:  # all of them before the first file
        try:
            check_parameters(visit.parameters, visit.seed)
        except SettingsError as error:
            raise SettingsError(
                error.message, source=error.source, where=f"visit {visit.name}, {error.where}", hint=error.hint
            ) from error
    found = {visit.name: _reusable(visit, reuse) if reuse is not None else None for visit in document.visits}
    rows = []
    with _mapper(jobs) as apply:
        made = apply(_written, [(visit, out) for visit in document.visits if found[visit.name] is None])
        for visit in document.visits:
            have = found[visit.name]
            files = have or next(made)
            if report is not None:
                suffix = " (as it was)" if have else ""
                report(f"{visit.pseudonym} {visit.timepoint or visit.name}: {files.fcs}{suffix}")
            rows.append(_row(visit, files, out))
    columns = [column for column in MANIFEST_COLUMNS if any(row.get(column) not in {None, ""} for row in rows)]
    return write_table(out / MANIFEST_NAME, columns, rows)


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> Path:
    """Write a CSV table.

    Raises
    ------
    SettingsError : it cannot be written
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot be written: {error.strerror or error}", source=str(path)) from error
    return path


def visit_of(row: Mapping[str, Any], *, source: str, where: str, folder: Path) -> Visit:
    """Check one visit.

    Parameters
    ----------
    row : keys of `Visit` and of `Parameters`
    source, where : what messages say
    folder : what a relative `profile` refers to

    Raises
    ------
    SettingsError : one faulty value
    ExceptionGroup : several
    """
    own = {key: value for key, value in row.items() if key in _VISIT_KEYS}
    rest = {key: value for key, value in row.items() if key in _PARAMETER_KEYS}
    errors = []
    try:
        visit = Visit.model_validate({**own, "parameters": rest})
    except ValidationError as error:
        for fault in error.errors():
            steps = [str(step) for step in fault["loc"] if step not in {"parameters", "Parameters"}]
            errors.append(SettingsError(fault["msg"], source=source, where=f"{where}, {'.'.join(steps)}"))
    errors.extend(
        SettingsError("unknown key", source=source, where=f"{where}, {key}") for key in row if key not in (*own, *rest)
    )
    errors.extend(
        SettingsError(f"unknown manifest column {column!r}", source=source, where=f"{where}, manifest")
        for column in row.get("manifest", {})
        if column not in MANIFEST_COLUMNS
    )
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"{source}, {where}: {len(errors)} faults", errors)
    parameters = visit.parameters
    if parameters.profile is not None:
        parameters = replace(parameters, profile=folder / parameters.profile)
    infusion = visit.infusion_date or dt.date.fromisoformat(load_instrument().date)
    parameters = replace(parameters, date=infusion + dt.timedelta(days=visit.study_day))
    return visit.model_copy(update={"parameters": parameters})


def _document(document: Mapping[str, Any], *, source: str, folder: Path) -> SubjectDocument:
    unknown = sorted(set(document) - {"subject", "visit"})
    if unknown:
        raise SettingsError(f"unknown key {unknown[0]!r}", source=source, hint="[subject] and [[visit]]")
    defaults, rows = document.get("subject", {}), document.get("visit", [])
    if not isinstance(defaults, dict) or not isinstance(rows, list) or not rows:
        raise SettingsError("expected a table [subject] and at least one [[visit]]", source=source)
    merged = [
        {**defaults, **row, "manifest": {**defaults.get("manifest", {}), **row.get("manifest", {})}} for row in rows
    ]
    places = [f"visit {number}" for number in range(1, len(rows) + 1)]
    return document_of(merged, source=source, places=places, folder=folder)


def document_of(
    rows: Sequence[Mapping[str, Any]], *, source: str, places: Sequence[str], folder: Path
) -> SubjectDocument:
    """Check all visits of a document.

    Raises
    ------
    SettingsError : one fault
    ExceptionGroup : several
    """
    visits: list[Visit] = []
    errors: list[SettingsError] = []
    for where, row in zip(places, rows, strict=True):
        try:
            visit = visit_of(row, source=source, where=where, folder=folder)
        except SettingsError as error:
            errors.append(error)
            continue
        except ExceptionGroup as group:
            errors.extend(error for error in group.exceptions if isinstance(error, SettingsError))
            continue
        if visit.name in {other.name for other in visits}:
            errors.append(SettingsError(f"name {visit.name!r} occurs twice", source=source, where=where))
        visits.append(visit)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"{source}: {len(errors)} faults", errors)
    return SubjectDocument(visits=tuple(visits))


@contextmanager
def _mapper(jobs: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map` in this process or over several; results come in order."""
    if jobs <= 1:
        yield map
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield pool.map


def _written(task: tuple[Visit, Path]) -> WrittenFiles:
    visit, out = task
    return write_simulated(
        simulate(visit.parameters, visit.seed),
        out,
        visit.name,
        datatype=visit.datatype,
        byte_order=visit.byte_order,
    )


def _reusable(visit: Visit, folder: Path) -> WrittenFiles | None:
    parameters = visit.parameters
    files = written_files(folder, visit.name)
    if not files.fcs.is_file() or not files.truth.is_file():
        return None
    try:
        truth = json.loads(files.truth.read_text(encoding="utf-8"))
        wanted = parameter_record(parameters)
        if parameters.blasts is None:  # drawn: the truth says what came out
            wanted["blasts"] = truth["mrd"]["level"]
        same = (
            truth["simulator_version"] == _VERSION
            and truth["seed"] == visit.seed
            and truth["parameters"] == wanted
            and truth["profile"]["sha256"] == load_profile(parameters.tube, override=parameters.profile).digest
            and truth["file"] == {"datatype": visit.datatype.value, "byte_order": visit.byte_order.value}
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"is not a truth file of this simulator: {error}", source=str(files.truth)) from error
    return files if same else None


def _row(visit: Visit, files: WrittenFiles, out: Path) -> dict[str, object]:
    truth = json.loads(files.truth.read_text(encoding="utf-8"))
    tube = visit.parameters.tube
    row: dict[str, object] = {
        "accession": f"{visit.pseudonym}-{visit.timepoint or visit.name}",
        "patient_pseudonym": visit.pseudonym,
        "specimen_type": load_profile(tube).profile.profile.specimen_type,
        "timepoint": visit.timepoint,
        "study_day": visit.study_day,
        "tube": tube,
        "fcs_filename": Path(os.path.relpath(files.fcs, out)).as_posix(),
        "fcs_sha256": hashlib.sha256(files.fcs.read_bytes()).hexdigest(),
    }
    if "beads" in truth:
        row |= {key: truth["beads"][key] for key in ("beads_added", "blood_volume_ul")}
    return {**row, **visit.manifest}
