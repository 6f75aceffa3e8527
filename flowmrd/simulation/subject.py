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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowmrd.errors import SettingsError
from flowmrd.simulation.acquisition import SIMULATOR_VERSION as _VERSION
from flowmrd.simulation.acquisition import (
    ChannelSet,
    Parameters,
    PhenotypeDraw,
    check_parameters,
    parameter_record,
    simulate,
)
from flowmrd.simulation.marrow import Immunophenotype, TargetStatus
from flowmrd.simulation.profile import load_profile, packaged_document, read_toml
from flowmrd.simulation.writing import ByteOrder, DataType, WrittenFiles, write_simulated, written_files

MANIFEST_NAME = "manifest.csv"
DEMO_SUBJECT = "demo-subject"

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
    "beads_lot",
    "beads_added",
    "blood_volume_ul",
    "wbc_1e9_l",
    "wbc_at",
    "lymph_pct",
    "prior_anti_cd19",
    "prior_anti_cd22",
    "prior_anti_cd20",
    "prior_anti_cd38",
    "priority",
    "requester",
    "comment",
)


class Visit(BaseModel):
    """One acquisition of a subject document, defaults of `[subject]` filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
    seed: Annotated[int, Field(ge=0)]
    pseudonym: str
    study_day: int
    timepoint: str = ""
    tube: str = "ball-mrd-10c"
    events: int = 100_000
    blasts: float = 0.0
    scenario: str = "normal"
    phenotype: Immunophenotype | PhenotypeDraw = PhenotypeDraw.RANDOM
    cd19: TargetStatus = TargetStatus.POSITIVE
    batch: float = 1.0
    lab: str = ""
    car: float = 0.0
    beads: bool | None = None
    fmo: bool = False
    channels: ChannelSet = ChannelSet.FULL
    patient_seed: int | None = None
    infusion_date: dt.date | None = None
    profile: str = ""
    datatype: DataType = DataType.FLOAT
    byte_order: ByteOrder = ByteOrder.LITTLE
    manifest: Mapping[str, str | int | float] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectDocument:
    """Visits in document order, and the folder that relative paths in it refer to."""

    visits: tuple[Visit, ...]
    folder: Path


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


def write_subject(
    document: SubjectDocument,
    out: Path,
    *,
    reuse: Path | None = None,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Write every visit's files and `manifest.csv`.

    Parameters
    ----------
    out : folder, made if it does not exist
    reuse : folder with files of an earlier simulation: a visit whose file is there, made with the same seed, parameters
        and simulator, is referred to instead of being made again
    report : called with one line for each visit

    Returns
    -------
    path of the manifest

    Raises
    ------
    SettingsError : a visit's parameter is out of range (nothing is written then), or the folder cannot be written
    """
    cases = [(visit, parameters_of(visit, document.folder)) for visit in document.visits]
    for visit, parameters in cases:  # all of them before the first file
        try:
            check_parameters(parameters, visit.seed)
        except SettingsError as error:
            raise SettingsError(
                error.message, source=error.source, where=f"visit {visit.name}, {error.where}", hint=error.hint
            ) from error
    rows = []
    for visit, parameters in cases:
        found = _reusable(visit, parameters, reuse) if reuse is not None else None
        files = found or write_simulated(
            simulate(parameters, visit.seed),
            out,
            visit.name,
            datatype=visit.datatype,
            byte_order=visit.byte_order,
        )
        if report is not None:
            report(f"{visit.pseudonym} {visit.timepoint or visit.name}: {files.fcs}{' (as it was)' if found else ''}")
        rows.append(_row(visit, files, out))
    columns = [column for column in MANIFEST_COLUMNS if any(row.get(column) not in {None, ""} for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    path = out / MANIFEST_NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot be written: {error.strerror or error}", source=str(path)) from error
    return path


def _document(document: Mapping[str, Any], *, source: str, folder: Path) -> SubjectDocument:
    unknown = sorted(set(document) - {"subject", "visit"})
    if unknown:
        raise SettingsError(f"unknown key {unknown[0]!r}", source=source, hint="[subject] and [[visit]]")
    defaults, rows = document.get("subject", {}), document.get("visit", [])
    if not isinstance(defaults, dict) or not isinstance(rows, list) or not rows:
        raise SettingsError("expected a table [subject] and at least one [[visit]]", source=source)
    visits: list[Visit] = []
    errors: list[SettingsError] = []
    for number, row in enumerate(rows, start=1):
        merged = {**defaults, **row, "manifest": {**defaults.get("manifest", {}), **row.get("manifest", {})}}
        try:
            visit = Visit.model_validate(merged)
        except ValidationError as error:
            errors.extend(
                SettingsError(
                    fault["msg"], source=source, where=f"visit {number}, {'.'.join(str(s) for s in fault['loc'])}"
                )
                for fault in error.errors()
            )
            continue
        errors.extend(
            SettingsError(f"unknown manifest column {column!r}", source=source, where=f"visit {number}, manifest")
            for column in visit.manifest
            if column not in MANIFEST_COLUMNS
        )
        if visit.name in {other.name for other in visits}:
            errors.append(SettingsError(f"name {visit.name!r} occurs twice", source=source, where=f"visit {number}"))
        visits.append(visit)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"{source}: {len(errors)} faults", errors)
    return SubjectDocument(visits=tuple(visits), folder=folder)


def parameters_of(visit: Visit, folder: Path) -> Parameters:
    """Simulation parameters of a visit; `folder` is what a relative `profile` refers to."""
    profile = folder / visit.profile if visit.profile else None
    loaded = load_profile(visit.tube, override=profile).profile
    infusion = visit.infusion_date or dt.date.fromisoformat(loaded.instrument.date)
    return Parameters(
        tube=visit.tube,
        events=visit.events,
        blasts=visit.blasts,
        scenario=visit.scenario,
        phenotype=visit.phenotype,
        cd19=visit.cd19,
        batch=visit.batch,
        lab=visit.lab,
        car=visit.car,
        beads=visit.beads,
        fmo=visit.fmo,
        channels=visit.channels,
        patient_seed=visit.patient_seed,
        date=infusion + dt.timedelta(days=visit.study_day),
        profile=profile,
    )


def _reusable(visit: Visit, parameters: Parameters, folder: Path) -> WrittenFiles | None:
    files = written_files(folder, visit.name)
    if not files.fcs.is_file() or not files.truth.is_file():
        return None
    try:
        truth = json.loads(files.truth.read_text(encoding="utf-8"))
        same = (
            truth["simulator_version"] == _VERSION
            and truth["seed"] == visit.seed
            and truth["parameters"] == parameter_record(parameters)
            and truth["profile"]["sha256"] == load_profile(visit.tube, override=parameters.profile).digest
            and truth["file"] == {"datatype": visit.datatype.value, "byte_order": visit.byte_order.value}
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"is not a truth file of this simulator: {error}", source=str(files.truth)) from error
    return files if same else None


def _row(visit: Visit, files: WrittenFiles, out: Path) -> dict[str, object]:
    truth = json.loads(files.truth.read_text(encoding="utf-8"))
    row: dict[str, object] = {
        "accession": f"{visit.pseudonym}-{visit.timepoint or visit.name}",
        "patient_pseudonym": visit.pseudonym,
        "specimen_type": load_profile(visit.tube).profile.profile.specimen_type,
        "timepoint": visit.timepoint,
        "study_day": visit.study_day,
        "tube": visit.tube,
        "fcs_filename": Path(os.path.relpath(files.fcs, out)).as_posix(),
        "fcs_sha256": hashlib.sha256(files.fcs.read_bytes()).hexdigest(),
    }
    if "beads" in truth:
        row |= {key: truth["beads"][key] for key in ("beads_added", "blood_volume_ul")}
    return {**row, **visit.manifest}
