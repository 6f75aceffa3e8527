"""The manifest: one row an acquisition (CSV or JSON), validated completely before the first FCS file is opened.

Columns follow domain reference 6-lims 6.1; `docs/reference/manifest.md` lists them. A cell is either valid, empty
(missing) or a fault; every fault of a file is reported at once, with row, column, what was expected and what was found.
Pseudonyms, requesters and comments are never repeated in a message.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flowmrd.documents.gate_set import GateSet, load_gate_set
from flowmrd.documents.loader import CsvRow, nearest, raise_faults, read_table
from flowmrd.errors import InputError, Level, ManifestError, QcFinding


class SpecimenType(StrEnum):
    """What was drawn."""

    BM = "BM"
    PB = "PB"
    CSF = "CSF"
    PRODUCT = "PRODUCT"


class Answer(StrEnum):
    """Yes, no, unknown."""

    YES = "Y"
    NO = "N"
    UNKNOWN = "U"


class Timepoint(StrEnum):
    """Planned visits that a manifest may name."""

    BL = "BL"
    D7 = "D7"
    D14 = "D14"
    D28 = "D28"
    M3 = "M3"
    M6 = "M6"
    M12 = "M12"
    UNS = "UNS"


class ControlKind(StrEnum):
    """What a control acquisition is (domain reference 4-cart 4.4, in order of preference).

    `positive` has many cells of the kind that is looked for (the product): it says how bright they are.
    """

    PRE_INFUSION = "pre_infusion"
    FMO = "fmo"
    HEALTHY_DONOR = "healthy_donor"
    UNTRANSDUCED = "untransduced"
    POSITIVE = "positive"


class ManifestRow(BaseModel):
    """One acquisition and what is known about its specimen; `None` is missing.

    `acquisition` is the file's stem where the column is empty; `visit` is the column's label or else the window of
    `study_day`. `matrix` is `file`, `none` or the path of a matrix file; `fcs_path` and `matrix_path` are resolved
    against the manifest's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    row: int
    acquisition: str
    patient_pseudonym: str
    specimen_type: SpecimenType
    study_day: int
    tube: str
    fcs_filename: str
    fcs_path: Path
    visit: str
    matrix: str = "file"
    matrix_path: Path | None = None
    accession: str | None = None
    study_id: str | None = None
    site: str | None = None
    specimen_site: str | None = None
    pull_number: int | None = None
    collected_at: datetime | None = None
    received_at: datetime | None = None
    stained_at: datetime | None = None
    acquired_at: datetime | None = None
    timepoint: Timepoint | None = None
    infusion_date_offset: int | None = None
    course: int | None = None
    panel_id: str | None = None
    panel_version: str | None = None
    instrument_id: str | None = None
    cytometer_setup_id: str | None = None
    fcs_sha256: str | None = None
    gate_set: str | None = None
    gate_set_sha256: str | None = None
    control_acquisition: tuple[str, ...] = ()
    control_kind: tuple[ControlKind, ...] = ()
    car_reagent: str | None = None
    car_clone: str | None = None
    car_lot: str | None = None
    beads_lot: str | None = None
    beads_added: float | None = None
    blood_volume_ul: float | None = None
    dilution_factor: float | None = None
    wbc_1e9_l: float | None = None
    wbc_at: datetime | None = None
    lymph_pct: float | None = None
    copies_per_ug: float | None = None
    prior_anti_cd19: Answer | None = None
    prior_anti_cd22: Answer | None = None
    prior_anti_cd20: Answer | None = None
    prior_anti_cd38: Answer | None = None
    priority: str | None = None
    requester: str | None = None
    comment: str | None = None

    @property
    def after_cd19_therapy(self) -> bool:
        """Whether the specimen was taken after therapy against CD19: after infusion, or such therapy is on record."""
        return self.study_day > 0 or self.prior_anti_cd19 is Answer.YES


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedGateSet:
    """A gate set and the row that names it (the first, where several do)."""

    gate_set: GateSet
    row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A validated manifest.

    `digest` is the SHA-256 of the file's bytes. `warnings` maps an acquisition to findings that do not stop a run.
    `gate_sets` maps (pseudonym, tube) to the gate set named in any row of them, and the first such row.
    """

    rows: tuple[ManifestRow, ...]
    digest: str
    path: Path
    warnings: Mapping[str, tuple[QcFinding, ...]]
    gate_sets: Mapping[tuple[str, str], NamedGateSet]

    def gate_set_of(self, row: ManifestRow) -> GateSet | None:
        """Return the gate set that applies to an acquisition: that of its subject and tube, whichever row names it."""
        named = self.gate_sets.get((row.patient_pseudonym, row.tube))
        return None if named is None else named.gate_set


REQUIRED = ("patient_pseudonym", "specimen_type", "study_day", "tube", "fcs_filename")
# Fields that are worked out, not read.
_DERIVED = {"row", "fcs_path", "matrix_path"}
COLUMNS = tuple(name for name in ManifestRow.model_fields if name not in _DERIVED)
_TIMES = ("collected_at", "received_at", "stained_at", "acquired_at")
# Cells that may name a person are not repeated in messages (they go to logs and screens).
_PRIVATE = {"patient_pseudonym", "requester", "comment"}
_MISSING_WORDS = {"na", "n/a", "n.a.", "nan", "-", "--", "null", "none", "missing"}


def load_manifest(path: Path, *, known_tubes: Collection[str] | None = None) -> Manifest:
    """Read and validate a manifest; the FCS files must exist but are not opened.

    Parameters
    ----------
    path : a CSV file, or a JSON list of row objects; file names in it are relative to its folder
    known_tubes : template ids that `tube` may name; `None` = not checked here

    Raises
    ------
    ManifestError : the file cannot be read as a table
    ExceptionGroup : of `ManifestError`: missing or unknown columns, or every faulty cell
    """
    table = read_table(path, error=ManifestError)
    source = path.name
    # An empty JSON list has no header to judge.
    raise_faults(_header_faults(table.header, source) if table.header else (), source=source)
    calendar = load_visits()
    faults: list[InputError] = list(table.faults)
    read: list[tuple[CsvRow, dict[str, Any]]] = []
    for row in table.rows:
        values, found = _read_row(row, source, path.parent, calendar, known_tubes)
        faults.extend(found)
        read.append((row, values))
    if not table.rows and not table.faults:
        below = " below the header" if table.header else ""
        faults.append(ManifestError(f"expected at least one row{below}; got none", source=source))
    faults.extend(_across_rows(read, source))
    gate_sets: dict[tuple[str, str], NamedGateSet] = {}
    faults.extend(_gate_set_faults(read, path, gate_sets))
    raise_faults(sorted(faults, key=_row_number), source=source)
    rows = tuple(ManifestRow.model_validate(values) for _, values in read)
    return Manifest(rows=rows, digest=table.digest, path=path, warnings=_warnings(rows, calendar), gate_sets=gate_sets)


def acquisition_name_fault(name: str) -> str:
    """Say why a name cannot be that of an acquisition; empty if it can.

    Names become file names and parts of web addresses, on every operating system and next to each other.

    Examples
    --------
    >>> acquisition_name_fault("S042 D28_BM (1)"), bool(acquisition_name_fault("../x"))
    ('', True)
    """
    if len(name) > 120:
        return f"expected at most 120 characters; got {len(name)}"
    if wrong := sorted(set(re.findall(r"[^A-Za-z0-9 ._()+,=@-]", name))):
        return (
            f"expected letters, digits, blanks and . _ - ( ) + , = @; got {' '.join(repr(sign) for sign in wrong[:5])}"
        )
    if not re.match(r"[A-Za-z0-9(]", name) or name.endswith((".", " ")):
        return f"expected a letter or digit first, and no blank or point last; got {name!r}"
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, flags=re.IGNORECASE):
        return f"expected another name than {name!r}, which Windows reserves"
    return ""


# -------------------------------------------------------------------------------------------------------------- visits


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitWindow:
    """Days after infusion that belong to a visit, ends included."""

    name: str
    first_day: int
    last_day: int

    def holds(self, study_day: int) -> bool:
        """Whether the day belongs to the visit."""
        return self.first_day <= study_day <= self.last_day


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitCalendar:
    """Visit windows, names without a window of the trial, and the labels of all other days."""

    version: str
    baseline: str
    unscheduled: str
    windows: tuple[VisitWindow, ...]
    named: tuple[VisitWindow, ...]


def load_visits() -> VisitCalendar:
    """Read the visit windows that ship with flowmrd (`visits.toml`, with their source)."""
    with Path(__file__).with_name("visits.toml").open("rb") as stream:
        data = tomllib.load(stream)
    return VisitCalendar(
        version=data["version"],
        baseline=data["baseline"],
        unscheduled=data["unscheduled"],
        windows=tuple(VisitWindow(**window) for window in data["window"]),
        named=tuple(VisitWindow(**window) for window in data["named"]),
    )


def visit_of(study_day: int, timepoint: str | None = None, *, calendar: VisitCalendar | None = None) -> str:
    """Return the visit that a day belongs to; the day decides, a planned timepoint only names days without a window.

    Parameters
    ----------
    study_day : days after infusion; 0 and earlier is the baseline
    timepoint : planned visit, as of the manifest
    calendar : windows; by default the shipped ones

    Examples
    --------
    >>> visit_of(30), visit_of(-3), visit_of(60), visit_of(8, "D7")
    ('D28', 'BL', 'UNS', 'D7')
    """
    calendar = calendar or load_visits()
    if study_day <= 0:
        return calendar.baseline
    for window in calendar.windows:
        if window.holds(study_day):
            return window.name
    for window in calendar.named:
        if window.name == timepoint and window.holds(study_day):
            return window.name
    return calendar.unscheduled


# --------------------------------------------------------------------------------------------------------------- cells


class _CellError(Exception):
    """A cell does not hold what its column expects."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def _text(cell: str) -> str:
    if len(cell) > 2000:
        raise _CellError(f"expected at most 2000 characters; got {len(cell)}")
    if any(ord(sign) < 32 and sign not in "\t\n\r" for sign in cell):
        raise _CellError("expected printable text; got a control character")
    return cell


def _label(cell: str) -> str:
    if len(cell) > 64 or not cell.isprintable():
        raise _CellError("expected a short label of at most 64 printable characters")
    return cell


def _pseudonym(cell: str) -> str:
    text = _label(cell)
    if re.search(r"(?<!\d)(\d{4}-\d{2}-\d{2}|\d{1,2}[./]\d{1,2}[./]\d{4})(?!\d)", text):
        raise _CellError("expected a pseudonym; got something with a full date in it", "a birth date names a person")
    return text


def _integer(least: int | None = None) -> Callable[[str], int]:
    def parse(cell: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,9}", cell.replace("−", "-")):
            raise _CellError(f"expected a whole number; got {cell!r}")
        value = int(cell.replace("−", "-"))
        if least is not None and value < least:
            raise _CellError(f"expected a whole number of at least {least}; got {value}")
        return value

    return parse


def _number(
    *, above: float | None = None, least: float | None = None, most: float | None = None
) -> Callable[[str], float]:
    expected = "a number" + (f" above {above:g}" if above is not None else "")
    if least is not None:
        expected += f" from {least:g} to {most:g}" if most is not None else f" of at least {least:g}"

    def parse(cell: str) -> float:
        if re.fullmatch(r"[+-]?\d+,\d+", cell):
            raise _CellError(f"expected {expected}; got {cell!r}", "write decimals with a point")
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", cell):
            raise _CellError(f"expected {expected}; got {cell!r}")
        value = float(cell)
        low = (above is not None and value <= above) or (least is not None and value < least)
        if low or (most is not None and value > most) or value == float("inf"):
            raise _CellError(f"expected {expected}; got {cell}")
        return value

    return parse


def _code(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    codes = [member.value for member in kind]

    def parse(cell: str) -> StrEnum:
        if cell not in codes:
            same = [code for code in codes if code.casefold() == cell.casefold()]
            hint = f"write {same[0]}" if same else ""
            raise _CellError(f"expected one of {', '.join(codes)}; got {cell!r}", hint)
        return kind(cell)

    return parse


def _time(cell: str) -> datetime:
    try:
        value = datetime.fromisoformat(cell)
    except ValueError:
        value = None
    if value is None or "T" not in cell.upper().replace(" ", "T"):
        raise _CellError(f"expected an ISO 8601 time such as 2026-03-12T08:30:00+01:00; got {cell!r}")
    if value.tzinfo is None:
        raise _CellError(f"expected a time with its offset from UTC; got {cell!r}", "append +01:00, or Z for UTC")
    return value


def _digest(cell: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", cell):
        raise _CellError(f"expected 64 hexadecimal digits (SHA-256); got {len(cell)} characters")
    return cell.lower()


def _list(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse_all(cell: str) -> tuple[Any, ...]:
        parts = [part.strip() for part in cell.split(";")]
        if not all(parts):
            raise _CellError(f"expected names separated by single semicolons; got {cell!r}")
        return tuple(parse(part) for part in parts)

    return parse_all


def _acquisition(cell: str) -> str:
    if fault := acquisition_name_fault(cell):
        raise _CellError(fault)
    return cell


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "acquisition": _acquisition,
    "patient_pseudonym": _pseudonym,
    "specimen_type": _code(SpecimenType),
    "study_day": _integer(),
    "tube": _label,
    "visit": _label,
    "pull_number": _integer(1),
    "collected_at": _time,
    "received_at": _time,
    "stained_at": _time,
    "acquired_at": _time,
    "timepoint": _code(Timepoint),
    "infusion_date_offset": _integer(),
    "course": _integer(1),
    "fcs_sha256": _digest,
    "gate_set_sha256": _digest,
    "control_acquisition": _list(str),
    "control_kind": _list(_code(ControlKind)),
    "beads_added": _number(above=0),
    "blood_volume_ul": _number(above=0),
    "dilution_factor": _number(above=0),
    "wbc_1e9_l": _number(least=0),
    "wbc_at": _time,
    "lymph_pct": _number(least=0, most=100),
    "copies_per_ug": _number(least=0),
    "prior_anti_cd19": _code(Answer),
    "prior_anti_cd22": _code(Answer),
    "prior_anti_cd20": _code(Answer),
    "prior_anti_cd38": _code(Answer),
    "comment": str,
}


# ---------------------------------------------------------------------------------------------------------------- rows


def _header_faults(header: Sequence[str], source: str) -> Iterator[ManifestError]:
    for name in header:
        if name not in COLUMNS:
            yield ManifestError(f"unknown column {name!r}", source=source, where="header", hint=nearest(name, COLUMNS))
    for name in REQUIRED:
        if name not in header:
            yield ManifestError(
                f"missing column {name}", source=source, where="header", hint=f"required are {', '.join(REQUIRED)}"
            )


def _read_row(
    row: CsvRow, source: str, folder: Path, calendar: VisitCalendar, known_tubes: Collection[str] | None
) -> tuple[dict[str, Any], list[InputError]]:
    values: dict[str, Any] = {"row": row.number}
    faults: list[InputError] = []

    def fault(column: str, message: str, hint: str = "") -> None:
        where = f"row {row.number}, column {column}"
        faults.append(ManifestError(message, source=source, where=where, hint=hint))

    for column, cell in row.cells.items():
        if not cell:
            if column in REQUIRED:
                fault(column, "expected a value; got an empty cell")
            continue
        if column != "comment" and cell.casefold() in _MISSING_WORDS and not (column == "matrix" and cell == "none"):
            fault(column, f"expected an empty cell for a missing value; got {cell!r}")
            continue
        try:
            values[column] = _PARSERS.get(column, _text)(cell)
        except _CellError as error:
            message = error.message
            if column in _PRIVATE:
                message = message.replace(cell, "…")
            fault(column, message, error.hint)
    if "fcs_filename" in values:
        _locate(values, folder, fault)
    if known_tubes is not None and "tube" in values and values["tube"] not in known_tubes:
        hint = nearest(values["tube"], known_tubes) or f"known are {', '.join(sorted(known_tubes))}"
        fault("tube", f"expected the id of a gating template; got {values['tube']!r}", hint)
    for earlier, later in itertools.pairwise([name for name in _TIMES if name in values]):
        if values[later] < values[earlier]:
            fault(later, f"expected a time not before {earlier}; got {row.cells[later]} before {row.cells[earlier]}")
    if len(values.get("control_kind", ())) not in {0, 1, len(values.get("control_acquisition", ()))}:
        fault("control_kind", "expected one kind for all controls, or one for each of control_acquisition")
    if "study_day" in values:
        values.setdefault("visit", visit_of(values["study_day"], values.get("timepoint"), calendar=calendar))
    return values, faults


def _locate(values: dict[str, Any], folder: Path, fault: Callable[..., None]) -> None:
    """Resolve the file names of a row and name the acquisition."""
    name = values["fcs_filename"]
    path = folder / name
    exists = _is_file(path)
    if not exists:
        hint = "names are relative to the manifest's folder"
        fault(
            "fcs_filename",
            f"expected an existing file; got {name!r}",
            "write / instead of \\" if "\\" in name else hint,
        )
    values["fcs_path"] = path
    if "acquisition" not in values:
        values["acquisition"] = path.stem
        if exists and (why := acquisition_name_fault(path.stem)):
            fault("fcs_filename", f"the file's name cannot name the acquisition: {why}", "fill the column acquisition")
    if values.setdefault("matrix", "file") not in {"file", "none"}:
        values["matrix_path"] = folder / values["matrix"]
        if not _is_file(values["matrix_path"]):
            got = values["matrix"]
            fault(
                "matrix",
                f"expected file, none, or an existing matrix file; got {got!r}",
                nearest(got, ("file", "none")),
            )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False


def _across_rows(read: Sequence[tuple[CsvRow, dict[str, Any]]], source: str) -> Iterator[ManifestError]:
    """Faults that show only between rows: repeated names, unknown controls, an accession of two specimens."""
    first: dict[str, int] = {}
    for row, values in read:
        if (name := values.get("acquisition")) is None:
            continue
        # Two names that differ in case only would be one file on some systems.
        if (other := first.setdefault(name.casefold(), row.number)) != row.number:
            yield ManifestError(
                f"expected each acquisition once; got {name!r} in row {other} too",
                source=source,
                where=f"row {row.number}, column acquisition",
                hint="the name is the file's stem unless the column acquisition gives another",
            )
    names = {values["acquisition"] for _, values in read if "acquisition" in values}
    specimens: dict[str, tuple[int, tuple[Any, ...]]] = {}
    for row, values in read:
        for control in values.get("control_acquisition", ()):
            where = f"row {row.number}, column control_acquisition"
            if control == values.get("acquisition"):
                yield ManifestError("expected another acquisition; got the row's own", source=source, where=where)
            elif control not in names:
                text = f"expected an acquisition of this manifest; got {control!r}"
                yield ManifestError(text, source=source, where=where, hint=nearest(control, names))
        if accession := values.get("accession"):
            specimen = tuple(values.get(name) for name in ("patient_pseudonym", "specimen_type", "study_day"))
            other, expected = specimens.setdefault(accession, (row.number, specimen))
            if specimen != expected:
                yield ManifestError(
                    f"expected one specimen for an accession; row {other} has another patient, specimen type or day",
                    source=source,
                    where=f"row {row.number}, column accession",
                )


def _gate_set_faults(
    read: Sequence[tuple[CsvRow, dict[str, Any]]], path: Path, found: dict[tuple[str, str], NamedGateSet]
) -> Iterator[ManifestError]:
    """Read every gate set that a row names into `found`; faults name the row and its column."""
    seen: dict[Path, GateSet | None] = {}
    for row, values in read:
        column = "gate_set"

        def fault(message: str, hint: str = "", column: str = column, row: CsvRow = row) -> ManifestError:
            where = f"row {row.number}, column {column}"
            return ManifestError(message, source=path.name, where=where, hint=hint)

        name = values.get(column)
        if name is None:
            if "gate_set_sha256" in values:
                yield fault("expected a file in column gate_set; got none", column="gate_set_sha256")
            continue
        place = path.parent / name
        if not _is_file(place):
            yield fault(f"expected an existing gate set; got {name!r}", "names are relative to the manifest's folder")
            continue
        if place not in seen:
            seen[place] = None  # faults of one file are told once
            try:
                seen[place] = load_gate_set(place, error=ManifestError)
            except ManifestError as error:
                yield fault(str(error))
            except ExceptionGroup as group:
                yield from (fault(str(error)) for error in group.exceptions)
        if (gate_set := seen[place]) is None:
            continue
        expected = values.get("gate_set_sha256")
        if expected is not None and expected != gate_set.digest:
            text = f"expected {expected} for {name}; got {gate_set.digest}"
            yield fault(text, "the gate set changed since it was listed", column="gate_set_sha256")
        head = gate_set.gate_set
        if "patient_pseudonym" in values and head.subject != values["patient_pseudonym"]:
            # Pseudonyms are not repeated in messages.
            text = "expected a gate set of the row's patient_pseudonym; got one of another subject"
            yield fault(text, f"compare gate_set.subject in {name}")
            continue
        if "tube" in values and head.template != values["tube"]:
            text = f"expected a gate set for the row's tube {values['tube']!r}; got one for {head.template!r}"
            yield fault(text, f"name {name} in a row of that tube, or correct gate_set.template in it")
            continue
        if not {"patient_pseudonym", "tube"} <= values.keys():
            continue
        key = (values["patient_pseudonym"], values["tube"])
        other = found.setdefault(key, NamedGateSet(gate_set=gate_set, row=row.number))
        if other.gate_set.digest != gate_set.digest:
            text = f"expected one gate set for a subject and tube; got {name}, and {other.gate_set.path.name} in row"
            yield fault(f"{text} {other.row}", "a set named in one row applies to all acquisitions of subject and tube")


def _warnings(rows: Sequence[ManifestRow], calendar: VisitCalendar) -> dict[str, tuple[QcFinding, ...]]:
    found: dict[str, list[QcFinding]] = {}

    def warn(row: ManifestRow, code: str, message: str, column: str) -> None:
        finding = QcFinding(level=Level.WARNING, code=code, message=message, where=f"row {row.row}, column {column}")
        found.setdefault(row.acquisition, []).append(finding)

    files: dict[Path, ManifestRow] = {}
    scheduled = {window.name for window in (*calendar.windows, *calendar.named)} | {calendar.baseline}
    for row in rows:
        by_day = visit_of(row.study_day, row.timepoint, calendar=calendar)
        if row.timepoint is not None and row.timepoint != by_day:
            text = f"The timepoint is {row.timepoint}, but day {row.study_day} belongs to {by_day}; the day counts."
            warn(row, "TIMEPOINT_MISMATCH", text, "timepoint")
        if row.visit in scheduled and row.visit not in {by_day, row.timepoint}:
            text = f"The visit is labelled {row.visit}, but day {row.study_day} belongs to {by_day}."
            warn(row, "VISIT_MISMATCH", text, "visit")
        if (other := files.setdefault(row.fcs_path, row)) is not row:
            text = f"The same file is listed for {other.acquisition} (row {other.row}) too."
            warn(row, "FILE_REPEATED", text, "fcs_filename")
    return {acquisition: tuple(items) for acquisition, items in found.items()}


def _row_number(fault: InputError) -> int:
    match = re.match(r"row (\d+)", fault.where)
    return int(match.group(1)) if match else 0
