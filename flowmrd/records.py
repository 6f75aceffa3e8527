"""What one acquisition yields, as values: tables with declared schemas, drawn panels, provenance.

`AcquisitionResult` is what the pipeline hands to the run folder, the report and later the review station. It holds
everything a page needs, so nothing downstream reads an FCS file again or recomputes a number.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import Level, QcFinding
from flowmrd.quantification.kinetics import Course, Kinetics, Sample, VisitRow

if TYPE_CHECKING:
    import polars as pl

BINS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a plot: marker, channel and scale.

    `transform` is {"kind": "logicle"|"arcsinh"|"log"|"linear", "T": …, "W": …, "M": …, "A": …} (the parameters of that
    kind), as of `flowmrd.cytometry.transforms`; `lo`, `hi` bound the axis in scaled units (0 … 1 is the scale's range).
    """

    marker: str
    channel: str
    transform: Mapping[str, float | str]
    lo: float
    hi: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GateShape:
    """One drawn gate with its counts.

    `kind` is interval-x, interval-y, rectangle, polygon, ellipse, quadrant, boolean or members (a list of events).
    `outline` (2, n) are the vertices in scaled units, closed implicitly; for intervals, quadrants and open rectangles
    infinite sides are kept as ±inf and the plot clips them. Gates without a drawable shape (boolean, members) have an
    empty outline.
    """

    population: str
    path: str
    kind: str
    outline: NDArray[np.float64]
    events: int
    parent_events: int
    method: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlotPanel:
    """Density of **all** events of `parent` on two axes, the gates drawn on it, and every target event inside it.

    `density` (BINS, BINS) uint32 counts, `density[iy, ix]`, bins equal in scaled units between the axes' `lo` and `hi`;
    events outside are counted in the border bins. `target` (2, n) float32: x and y of each event of the target
    population (scaled units), `target_name` its name.
    """

    parent: str
    parent_path: str
    parent_events: int
    x: Axis
    y: Axis
    density: NDArray[np.uint32]
    gates: tuple[GateShape, ...]
    target: NDArray[np.float32]
    target_name: str
    purpose: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeSeries:
    """Acquisition over time: events per second and each channel's median per bin, with the bins that QC flagged."""

    seconds: NDArray[np.float64]
    rate: NDArray[np.float64]
    channels: tuple[str, ...]
    medians: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    time_source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOverlay:
    """The parent's events along one channel, the sample's and the controls' brought to it, in equal bins of `axis`.

    `sample` and `control` are events per bin, the control's weighed to the sample's negative events. `cut` in scaled
    units.
    """

    axis: Axis
    cut: float
    sample: tuple[float, ...]
    control: tuple[float, ...]
    controls: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginCount:
    """Events at the upper and lower end of one channel's range."""

    channel: str
    marker: str
    low_events: int
    high_events: int
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationRow:
    """One row of `populations` (the acquisition and template columns are added by the table builder)."""

    population: str
    path: str
    parent: str
    events: int
    parent_events: int

    @property
    def fraction_of_parent(self) -> float | None:
        """Share of the parent, `None` where the parent is empty."""
        return self.events / self.parent_events if self.parent_events else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedGate:
    """How one gate came to be: method, parameters, value found, and whether a bound or fallback was hit, and why."""

    population: str
    path: str
    parent: str
    method: str
    purpose: str
    channels: tuple[str, ...]
    parameters: Mapping[str, object]
    gate: Mapping[str, object]
    found: Mapping[str, float]
    bound_hit: str
    fallback: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSetRecord:
    """The gate set that stood in for gates of the template: who drew them, when, from what, and which they are.

    `sha256` is the file's digest, `documents` maps each document that gates were taken from to its digest.
    """

    id: str
    file: str
    sha256: str
    subject: str
    template_versions: str
    author: str
    date: str
    source: str
    reason: str
    populations: tuple[str, ...]
    documents: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementRow:
    """One row of `measurements`; names and vocabularies are the contract of docs/reference/tables.md."""

    subject: str
    visit: str
    acquisition: str
    analyte: str
    numerator: str
    numerator_events: int | None
    denominator: str
    denominator_events: int | None
    fraction: float | None
    ci_low: float | None
    ci_high: float | None
    lod_fraction: float | None
    lloq_fraction: float | None
    category: str
    mrd_neg_1e4: str
    call: str
    value: float | None
    unit: str
    status: str
    gate_set: str = ""
    reagent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AntigenRow:
    """One row of `antigens`: a target on the blasts of one acquisition; brightness is linear and compensated.

    `normal_from` names the acquisition whose normal cells are the yardstick of `strength`; `baseline` is the subject's
    earlier acquisition that `baseline_mfi` and `ratio` come from.
    """

    subject: str
    visit: str
    acquisition: str
    antigen: str
    population: str
    events: int
    positive_events: int | None
    share: float | None
    ci_low: float | None
    ci_high: float | None
    status: str
    strength: str  # dim | normal | "" where there is no yardstick
    indicative: str  # Y where the blasts are few
    mfi: float | None
    positive_mfi: float | None
    threshold: float | None
    negative_mfi: float | None
    normal_mfi: float | None
    normal_from: str
    baseline: str
    baseline_mfi: float | None
    ratio: float | None
    therapy: str  # given | not_given | not_stated
    masked: str  # possible | ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupRow:
    """One row of `cleanup`: how many events of a phenotype one clean-up gate removed, beside what it removed of all."""

    gate: str
    phenotype: str
    events: int
    removed_events: int
    all_events: int
    removed_all_events: int
    verdict: str  # PASS | WARN | FAIL


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRow:
    """One row of `internal_controls`: where normal cells lie in a marker, against what the template expects.

    `median` and the limits are in scaled units, counted from the median of `against` where it is given; `beyond` is the
    share of the cells that lies beyond a limit.
    """

    population: str
    against: str
    marker: str
    events: int
    median: float | None
    low: float | None
    high: float | None
    beyond: float | None
    verdict: str  # PASS | FAIL | UNSEEN
    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Aberration:
    """One marker of a group against the nearest normal stage.

    `shift` is in display units, `shift_log10` in decades (`None` where a value is not above zero, and for scatter);
    `deviations` in robust standard deviations of that stage; `direction` is over or under; `aberrant` says whether it
    is at least two deviations in a direction that blasts are known to take.
    """

    marker: str
    shift: float
    shift_log10: float | None
    deviations: float
    direction: str
    aberrant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BlastGroup:
    """One group that the search found.

    `status` is accepted, review or rejected; `probability` is the judge's; `normals_most` is the largest share of
    nucleated cells that any normal of the reference has in that place; `middle` the median of each marker (scaled
    units of the sample); `likeness` the share of the group inside the subject's own earlier phenotype, if known (LAIP
    overlap); `distance` how far its middle is from the nearest normal stage, in deviations (DfN).
    """

    name: str
    status: str
    events: int
    fraction: float
    probability: float
    stage: str
    normals_most: float
    middle: Mapping[str, float]
    aberrations: tuple[Aberration, ...]
    likeness: float | None = None
    distance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DetectionRecord:
    """How blasts were searched for: the reference, the groups, and what a reader needs to see them.

    `normals` (m, d) are normal cells of the reference on the sample's own display scale, `events` (n, d) those of the
    groups (at most a few thousand of each) and `owner` (n,) the index of each one's group; columns as `features`.
    """

    reference: str
    reference_sha256: str
    simulated: bool
    normal_marrows: int
    diagnoses: int
    seed: int
    features: tuple[str, ...]
    groups: tuple[BlastGroup, ...]
    doubts: tuple[str, ...]
    normals: NDArray[np.float32]
    events: NDArray[np.float32]
    owner: NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One marker of a subject's blasts against the diagnosis: the events that were found by the own phenotype.

    `shift` is in scaled units with its standard error, `shift_log10` in decades (`None` where a value is not above
    zero, and for scatter); `moved` says whether both say so: far enough, and surely.
    """

    marker: str
    shift: float
    error: float
    shift_log10: float | None
    moved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnRecord:
    """What the subject's own phenotype found: which one it was, its events, and what has changed since.

    `events` are those called, `expected` the sum of their probabilities, `shared` those that the general search
    accepted too. `lost` maps the marker of a therapy's target to the share of the called events that have lost it.
    """

    acquisition: str
    visit: str
    file_sha256: str
    phenotype_sha256: str
    blasts: int
    events: int
    expected: float
    shared: int
    drift: tuple[Drift, ...]
    lost: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AcquisitionResult:
    """Everything computed from one acquisition."""

    acquisition: str
    subject: str
    visit: str
    study_day: int | None
    specimen_type: str
    tube: str
    template_version: str
    template_digest: str
    file_name: str
    file_sha256: str
    events: int
    qc: str  # PASS | WARN | FAIL
    compensation: str  # where the matrix came from, in words
    populations: tuple[PopulationRow, ...]
    gates: tuple[PlacedGate, ...]
    measurements: tuple[MeasurementRow, ...]
    wording: tuple[str, ...]  # one sentence per measurement row, of domain 3.4
    findings: tuple[QcFinding, ...]
    panels: tuple[PlotPanel, ...]
    time: TimeSeries | None
    margins: tuple[MarginCount, ...]
    markers: Mapping[str, str]  # marker -> channel (pnn)
    gate_set: GateSetRecord | None = None
    course: int = 1
    reagent: str = ""  # detection reagent of engineered cells: name, clone, lot
    overlay: ControlOverlay | None = None
    point: Sample | None = None  # what the subject's course takes from this acquisition
    antigens: tuple[AntigenRow, ...] = ()
    cleanup: tuple[CleanupRow, ...] = ()
    internal_controls: tuple[ControlRow, ...] = ()
    detection: DetectionRecord | None = None
    own: OwnRecord | None = None
    phenotype: Mapping[str, Any] | None = None  # the blasts found here, for later samples (JSON)
    hemodilution: str = ""  # OK | UNCERTAIN | SUSPECT, empty where it was not judged
    withheld: tuple[str, ...] = ()  # why no result may stand, in words; empty where one may
    volume_ul: float | None = None  # of stained sample that the instrument took in, where counts may rest on it


# ------------------------------------------------------------------------------------------ tables and the run folder

SCHEMA_VERSION = 1

_TEXT, _COUNT, _REAL, _FLAG = "String", "Int64", "Float64", "Boolean"
POPULATIONS: Mapping[str, str] = {
    "acquisition": _TEXT,
    "template": _TEXT,
    "population": _TEXT,
    "path": _TEXT,
    "parent": _TEXT,
    "events": _COUNT,
    "parent_events": _COUNT,
    "fraction_of_parent": _REAL,
    "per_ul": _REAL,
}
MEASUREMENTS: Mapping[str, str] = {
    "subject": _TEXT,
    "visit": _TEXT,
    "acquisition": _TEXT,
    "analyte": _TEXT,
    "numerator": _TEXT,
    "numerator_events": _COUNT,
    "denominator": _TEXT,
    "denominator_events": _COUNT,
    "fraction": _REAL,
    "ci_low": _REAL,
    "ci_high": _REAL,
    "lod_fraction": _REAL,
    "lloq_fraction": _REAL,
    "category": _TEXT,
    "mrd_neg_1e4": _TEXT,
    "call": _TEXT,
    "value": _REAL,
    "unit": _TEXT,
    "status": _TEXT,
    "gate_set": _TEXT,
    "reagent": _TEXT,
}
FINDINGS: Mapping[str, str] = {
    "acquisition": _TEXT,
    "level": _TEXT,
    "code": _TEXT,
    "message": _TEXT,
    "where": _TEXT,
}
ANTIGENS: Mapping[str, str] = {
    "subject": _TEXT,
    "visit": _TEXT,
    "acquisition": _TEXT,
    "antigen": _TEXT,
    "population": _TEXT,
    "events": _COUNT,
    "positive_events": _COUNT,
    "share": _REAL,
    "ci_low": _REAL,
    "ci_high": _REAL,
    "status": _TEXT,
    "strength": _TEXT,
    "indicative": _TEXT,
    "mfi": _REAL,
    "positive_mfi": _REAL,
    "threshold": _REAL,
    "negative_mfi": _REAL,
    "normal_mfi": _REAL,
    "normal_from": _TEXT,
    "baseline": _TEXT,
    "baseline_mfi": _REAL,
    "ratio": _REAL,
    "therapy": _TEXT,
    "masked": _TEXT,
}
CLEANUP: Mapping[str, str] = {
    "acquisition": _TEXT,
    "gate": _TEXT,
    "phenotype": _TEXT,
    "events": _COUNT,
    "removed_events": _COUNT,
    "all_events": _COUNT,
    "removed_all_events": _COUNT,
    "verdict": _TEXT,
}
BLAST_GROUPS: Mapping[str, str] = {
    "acquisition": _TEXT,
    "group": _TEXT,
    "status": _TEXT,
    "events": _COUNT,
    "fraction": _REAL,
    "probability": _REAL,
    "stage": _TEXT,
    "normals_most": _REAL,
    "aberrant_markers": _COUNT,
    "likeness": _REAL,
    "distance": _REAL,
    "reference": _TEXT,
    "reference_sha256": _TEXT,
    "reference_simulated": _FLAG,
    "reference_normals": _COUNT,
    "reference_diagnoses": _COUNT,
    "seed": _COUNT,
}
ABERRATIONS: Mapping[str, str] = {
    "acquisition": _TEXT,
    "group": _TEXT,
    "status": _TEXT,
    "marker": _TEXT,
    "shift": _REAL,
    "shift_log10": _REAL,
    "deviations": _REAL,
    "direction": _TEXT,
    "aberrant": _FLAG,
}
INTERNAL_CONTROLS: Mapping[str, str] = {
    "acquisition": _TEXT,
    "population": _TEXT,
    "against": _TEXT,
    "marker": _TEXT,
    "events": _COUNT,
    "median": _REAL,
    "low": _REAL,
    "high": _REAL,
    "beyond": _REAL,
    "verdict": _TEXT,
    "purpose": _TEXT,
}
KINETICS_FINDINGS: Mapping[str, str] = {
    "subject": _TEXT,
    "course": _COUNT,
    "level": _TEXT,
    "code": _TEXT,
    "message": _TEXT,
}
DRIFT: Mapping[str, str] = {
    "subject": _TEXT,
    "visit": _TEXT,
    "acquisition": _TEXT,
    "diagnosis": _TEXT,
    "marker": _TEXT,
    "events": _COUNT,
    "shift": _REAL,
    "error": _REAL,
    "shift_log10": _REAL,
    "moved": _FLAG,
    "lost": _REAL,
    "phenotype_sha256": _TEXT,
}
SCHEMAS: Mapping[str, Mapping[str, str]] = {
    "populations": POPULATIONS,
    "measurements": MEASUREMENTS,
    "findings": FINDINGS,
    "antigens": ANTIGENS,
    "cleanup": CLEANUP,
    "internal_controls": INTERNAL_CONTROLS,
    "blast_groups": BLAST_GROUPS,
    "aberrations": ABERRATIONS,
    "drift": DRIFT,
}


def table_rows(results: Iterable[AcquisitionResult]) -> dict[str, list[tuple[object, ...]]]:
    """Return the rows of all tables, in the order of their schemas."""
    rows: dict[str, list[tuple[object, ...]]] = {name: [] for name in SCHEMAS}
    for result in results:
        rows["populations"].extend(
            (
                result.acquisition,
                result.tube,
                row.population,
                row.path,
                row.parent,
                row.events,
                row.parent_events,
                row.fraction_of_parent,
                row.events / result.volume_ul if result.volume_ul else None,
            )
            for row in result.populations
        )
        rows["measurements"].extend(
            tuple(getattr(row, column) for column in MEASUREMENTS) for row in result.measurements
        )
        rows["findings"].extend(
            (result.acquisition, str(finding.level), finding.code, finding.message, finding.where)
            for finding in result.findings
        )
        rows["antigens"].extend(tuple(getattr(row, column) for column in ANTIGENS) for row in result.antigens)
        for name, found in (("cleanup", result.cleanup), ("internal_controls", result.internal_controls)):
            rows[name].extend(
                (result.acquisition, *(getattr(row, column) for column in SCHEMAS[name] if column != "acquisition"))
                for row in found
            )
        if (own := result.own) is not None:
            rows["drift"].extend(
                (
                    *(result.subject, result.visit, result.acquisition, own.acquisition, one.marker, own.events),
                    *(one.shift, one.error, one.shift_log10, one.moved, own.lost.get(one.marker)),
                    own.phenotype_sha256,
                )
                for one in own.drift
            )
        if result.detection is not None:
            rows["blast_groups"].extend(_group_rows(result.acquisition, result.detection))
            rows["aberrations"].extend(
                (
                    result.acquisition,
                    group.name,
                    group.status,
                    one.marker,
                    one.shift,
                    one.shift_log10,
                    one.deviations,
                    one.direction,
                    one.aberrant,
                )
                for group in result.detection.groups
                for one in group.aberrations
            )
    return rows


def _group_rows(acquisition: str, found: DetectionRecord) -> Iterator[tuple[object, ...]]:
    for group in found.groups:
        yield (
            acquisition,
            group.name,
            group.status,
            group.events,
            group.fraction,
            group.probability,
            group.stage,
            group.normals_most,
            sum(one.aberrant for one in group.aberrations),
            group.likeness,
            group.distance,
            found.reference,
            found.reference_sha256,
            found.simulated,
            found.normal_marrows,
            found.diagnoses,
            found.seed,
        )


def write_tables(rows: Mapping[str, Sequence[tuple[object, ...]]], folder: Path) -> None:
    """Write each table as CSV (UTF-8, fixed header, nothing between commas where a value is missing) and Parquet."""
    import polars as pl

    for name, schema in SCHEMAS.items():
        frame = pl.DataFrame(
            [tuple(None if value == "" else value for value in row) for row in rows[name]],
            schema={column: getattr(pl, kind) for column, kind in schema.items()},
            orient="row",
        )
        write_frame(frame, folder / name)


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write a table as CSV and Parquet; `path` is without ending."""
    with written(path.with_name(f"{path.name}.csv")) as temporary:
        frame.write_csv(temporary)
    with written(path.with_name(f"{path.name}.parquet")) as temporary:
        frame.write_parquet(temporary, compression="zstd")


def _columns_of(row: type[Kinetics | VisitRow]) -> dict[str, str]:
    """Columns and types of a table whose rows are these values."""
    kinds = {"float": _REAL, "int": _COUNT, "bool": _FLAG}
    return {field.name: kinds.get(str(field.type).partition(" ")[0], _TEXT) for field in fields(row)}


KINETICS: Mapping[str, str] = _columns_of(Kinetics)
KINETICS_SAMPLES: Mapping[str, str] = _columns_of(VisitRow)


def write_kinetics(courses: Sequence[Course], folder: Path) -> None:
    """Write `kinetics` (a row a subject and course), `kinetics_samples` (a row a sample) and `kinetics_findings`."""
    import polars as pl

    findings = [
        (one.kinetics.subject, one.kinetics.course, str(item.level), item.code, item.message)
        for one in courses
        for item in one.findings
    ]
    tables: tuple[tuple[str, Mapping[str, str], list[tuple[object, ...]]], ...] = (
        ("kinetics", KINETICS, [_cells(one.kinetics, KINETICS) for one in courses]),
        (
            "kinetics_samples",
            KINETICS_SAMPLES,
            [_cells(row, KINETICS_SAMPLES) for one in courses for row in one.visits],
        ),
        ("kinetics_findings", KINETICS_FINDINGS, list(findings)),
    )
    for name, schema, rows in tables:
        frame = pl.DataFrame(rows, schema={column: getattr(pl, kind) for column, kind in schema.items()}, orient="row")
        write_frame(frame, folder / name)


def _cells(row: Kinetics | VisitRow, schema: Mapping[str, str]) -> tuple[object, ...]:
    """Values of a row in the order of its columns: real numbers as such, words as text, empty as missing."""
    cells: list[object] = []
    for column, kind in schema.items():
        value = getattr(row, column)
        if value is not None and kind == _REAL:
            value = float(value)
        elif value is not None and kind == _TEXT:
            value = str(value) or None
        cells.append(value)
    return tuple(cells)


def write_membership(masks: Mapping[str, NDArray[np.bool_]], path: Path) -> None:
    """Write one boolean column a population, in file order."""
    import polars as pl

    with written(path) as temporary:
        pl.DataFrame({name: pl.Series(name, mask, dtype=pl.Boolean) for name, mask in masks.items()}).write_parquet(
            temporary, compression="zstd"
        )


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, and rename it when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(data: object, path: Path) -> None:
    """Write canonical JSON: sorted keys, two spaces, no NaN."""
    with written(path) as temporary:
        temporary.write_text(
            json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def _plain(value: object) -> object:
    """Turn a value into plain JSON; arrays are left to the caller."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": repr(value)}
    if isinstance(value, np.generic):
        return _plain(value.item())
    return value


def _number(value: object) -> object:
    """Undo `_plain` for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        if set(value) == {"number"}:
            return float(value["number"])
        return {key: _number(item) for key, item in value.items()}
    return [_number(item) for item in value] if isinstance(value, list) else value


# The arrays of a detection record.
_SHOWN = ("normals", "events", "owner")


def write_result(result: AcquisitionResult, folder: Path, *, key: str) -> None:
    """Keep one acquisition's result: `result.json` and `arrays.npz`; the JSON comes last and carries `key`."""
    arrays: dict[str, NDArray[Any]] = {}
    panels = []
    for number, panel in enumerate(result.panels):
        arrays[f"panel{number}_density"] = panel.density
        arrays[f"panel{number}_target"] = panel.target
        gates = []
        for place, gate in enumerate(panel.gates):
            arrays[f"panel{number}_gate{place}"] = gate.outline
            gates.append({f.name: _plain(getattr(gate, f.name)) for f in fields(gate) if f.name != "outline"})
        panels.append(
            {
                **{
                    f.name: _plain(getattr(panel, f.name))
                    for f in fields(panel)
                    if f.name not in {"density", "target", "gates"}
                },
                "gates": gates,
            }
        )
    time = None
    if result.time is not None:
        for name in ("seconds", "rate", "medians", "flagged"):
            arrays[f"time_{name}"] = getattr(result.time, name)
        time = {"channels": list(result.time.channels), "time_source": result.time.time_source}
    detection = None
    if result.detection is not None:
        for name in _SHOWN:
            arrays[f"detection_{name}"] = getattr(result.detection, name)
        detection = {
            f.name: _plain(getattr(result.detection, f.name)) for f in fields(DetectionRecord) if f.name not in _SHOWN
        }
    apart = {"panels", "time", "detection"}
    document = {f.name: _plain(getattr(result, f.name)) for f in fields(result) if f.name not in apart}
    document |= {"panels": panels, "time": time, "detection": detection}
    with written(folder / "arrays.npz") as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_json({"schema": SCHEMA_VERSION, "key": key, "result": document}, folder / "result.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTables:
    """Of a kept result what the same subject's other acquisitions can complete, and what they need of it.

    `counts` are events by population, `unplaced` the populations that could not be evaluated.
    """

    acquisition: str
    subject: str
    visit: str
    study_day: int | None
    specimen_type: str
    tube: str
    counts: Mapping[str, int]
    unplaced: tuple[str, ...]
    antigens: tuple[AntigenRow, ...]
    wording: tuple[str, ...]
    findings: tuple[QcFinding, ...]
    hemodilution: str


def read_tables(folder: Path) -> KeptTables:
    """Read of a kept result what a comparison within the subject needs, without its pictures."""
    document: Any = _number(json.loads((folder / "result.json").read_text(encoding="utf-8"))["result"])
    return KeptTables(
        **{name: document[name] for name in ("acquisition", "subject", "visit", "study_day", "specimen_type", "tube")},
        counts={row["population"]: row["events"] for row in document["populations"]},
        unplaced=tuple(row["population"] for row in document["gates"] if row["method"] == "nothing"),
        antigens=tuple(AntigenRow(**row) for row in document.get("antigens", ())),
        wording=tuple(document["wording"]),
        findings=tuple(QcFinding(**{**row, "level": Level(row["level"])}) for row in document["findings"]),
        hemodilution=document.get("hemodilution", ""),
    )


def amend_result(folder: Path, tables: KeptTables) -> None:
    """Put completed tables into a kept result; all else of it stays as it is."""
    path = folder / "result.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    changed = ("antigens", "wording", "findings", "hemodilution")
    document["result"] |= {name: _plain(getattr(tables, name)) for name in changed}
    write_json(document, path)


def stored_key(folder: Path) -> str | None:
    """Return the key of a kept result, or `None` where there is none that can be used."""
    try:
        document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if document.get("schema") != SCHEMA_VERSION or not (folder / "arrays.npz").is_file():
        return None
    key = document.get("key")
    return key if isinstance(key, str) else None


def read_result(folder: Path) -> AcquisitionResult:
    """Read back what `write_result` kept."""
    document: Any = _number(json.loads((folder / "result.json").read_text(encoding="utf-8"))["result"])
    with np.load(folder / "arrays.npz") as arrays:
        panels = tuple(
            PlotPanel(
                **{
                    **panel,
                    "x": Axis(**panel["x"]),
                    "y": Axis(**panel["y"]),
                    "density": arrays[f"panel{number}_density"],
                    "target": arrays[f"panel{number}_target"],
                    "gates": tuple(
                        GateShape(**gate, outline=arrays[f"panel{number}_gate{place}"])
                        for place, gate in enumerate(panel["gates"])
                    ),
                }
            )
            for number, panel in enumerate(document["panels"])
        )
        time = document["time"] and TimeSeries(
            channels=tuple(document["time"]["channels"]),
            time_source=document["time"]["time_source"],
            **{name: arrays[f"time_{name}"] for name in ("seconds", "rate", "medians", "flagged")},
        )
        kept = document.get("detection")
        detection = kept and _detection(kept, {name: arrays[f"detection_{name}"] for name in _SHOWN})
    return AcquisitionResult(
        **{
            **document,
            "populations": tuple(PopulationRow(**row) for row in document["populations"]),
            "gates": tuple(PlacedGate(**{**row, "channels": tuple(row["channels"])}) for row in document["gates"]),
            "measurements": tuple(MeasurementRow(**row) for row in document["measurements"]),
            "wording": tuple(document["wording"]),
            "findings": tuple(QcFinding(**{**row, "level": Level(row["level"])}) for row in document["findings"]),
            "margins": tuple(MarginCount(**row) for row in document["margins"]),
            "gate_set": _gate_set(document.get("gate_set")),
            "antigens": tuple(AntigenRow(**row) for row in document.get("antigens", ())),
            "cleanup": tuple(CleanupRow(**row) for row in document.get("cleanup", ())),
            "internal_controls": tuple(ControlRow(**row) for row in document.get("internal_controls", ())),
            "withheld": tuple(document.get("withheld", ())),
            "point": _point(document.get("point")),
            "overlay": _overlay(document.get("overlay")),
            "panels": panels,
            "time": time,
            "detection": detection,
            "own": _own(document.get("own")),
        }
    )


def _own(kept: Any) -> OwnRecord | None:
    return None if kept is None else OwnRecord(**{**kept, "drift": tuple(Drift(**one) for one in kept["drift"])})


def _detection(kept: Any, arrays: Mapping[str, NDArray[Any]]) -> DetectionRecord:
    groups = tuple(
        BlastGroup(**{**one, "aberrations": tuple(Aberration(**row) for row in one["aberrations"])})
        for one in kept["groups"]
    )
    texts = {name: tuple(kept[name]) for name in ("features", "doubts")}
    return DetectionRecord(**{**kept, **texts, "groups": groups, **arrays})


def _gate_set(kept: Any) -> GateSetRecord | None:
    return None if kept is None else GateSetRecord(**{**kept, "populations": tuple(kept["populations"])})


def _overlay(kept: Any) -> ControlOverlay | None:
    if kept is None:
        return None
    numbers = {name: tuple(kept[name]) for name in ("sample", "control", "controls")}
    return ControlOverlay(**{**kept, **numbers, "axis": Axis(**kept["axis"])})


def _point(kept: Any) -> Sample | None:
    if kept is None:
        return None
    return Sample(**{**kept, "memory_shares": tuple((name, share) for name, share in kept["memory_shares"])})


class StoredResults(Sequence[AcquisitionResult]):
    """Results of a run folder, read one at a time so that a large run needs no large memory."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)

    def __len__(self) -> int:
        return len(self._folders)

    @overload
    def __getitem__(self, index: int) -> AcquisitionResult: ...
    @overload
    def __getitem__(self, index: slice) -> StoredResults: ...
    def __getitem__(self, index: int | slice) -> AcquisitionResult | StoredResults:
        if isinstance(index, slice):
            return StoredResults(self._folders[index])
        return read_result(self._folders[index])
