"""The clinical table: one row a planned visit of a patient, read and checked before anything is computed.

Columns are those of domain reference 5-response 5.2. An empty cell is missing and never 0; the few columns whose
emptiness means something are named in `EMPTY_MEANS`. A cell that cannot be is a fault, and all faults are told at once;
what can be but asks for a look is a finding. Both have names (docs/reference/findings.md). Pseudonyms are not repeated
in messages.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from flowmrd.clinical.rules import Visit
from flowmrd.documents.loader import CsvRow, nearest, raise_faults, read_csv
from flowmrd.errors import InputError, Level, QcFinding

if TYPE_CHECKING:
    import polars as pl

COLUMNS = (
    "patient_id",
    "timepoint",
    "day",
    "bl_bm_blast_pct",
    "bl_emd",
    "bm_status",
    "bm_blast_pct",
    "mrd_events",
    "mrd_denominator",
    "cd19_indep_gating",
    "blast_cd19_pos_pct",
    "confirm_tests_ge1pct",
    "pb_blast_pct",
    "anc",
    "plt",
    "plt_tx_7d",
    "cns",
    "emd",
    "lineage_switch",
    "allosct_day",
    "death_day",
    "last_contact_day",
)
# The same on every row of a patient.
PER_PATIENT = ("bl_bm_blast_pct", "bl_emd", "allosct_day", "death_day", "last_contact_day")
# Columns whose empty cell has a meaning of its own (5.2); in all others it is missing.
EMPTY_MEANS: Mapping[str, str] = {
    "bm_status": "not_done",
    "cd19_indep_gating": "N",
    "confirm_tests_ge1pct": "0",
    "plt_tx_7d": "N",
    "lineage_switch": "N",
}
_WORDS: Mapping[str, tuple[str, ...]] = {
    "bl_emd": ("0", "1"),
    "bm_status": ("done", "not_done", "inadequate"),
    "cd19_indep_gating": ("Y", "N"),
    "plt_tx_7d": ("Y", "N"),
    "cns": ("CNS1", "CNS2", "CNS3"),
    "emd": ("0", "1"),
    "lineage_switch": ("Y", "N"),
}
_PERCENT = ("bl_bm_blast_pct", "bm_blast_pct", "blast_cd19_pos_pct", "pb_blast_pct")
_COUNTS = ("mrd_events", "mrd_denominator", "confirm_tests_ge1pct")
_DAYS = ("day", "allosct_day", "death_day", "last_contact_day")
_LEVELS = ("anc", "plt")
_UNIT_CODES = {"anc": "ANC_UNIT", "plt": "PLT_UNIT"}
# Cells that only a visit can fill; the columns with a meaning of their own count where they say something else.
_RESULTS = (
    "bm_status",
    "bm_blast_pct",
    "mrd_events",
    "mrd_denominator",
    "blast_cd19_pos_pct",
    "confirm_tests_ge1pct",
    "pb_blast_pct",
    "anc",
    "plt",
    "plt_tx_7d",
    "cns",
    "emd",
    "lineage_switch",
)
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


class _Limits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    most: dict[str, float]
    unusual: dict[str, float]
    measured: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Everything known of one patient at one visit. Percentages and counts are exact; `None` is missing, never 0.

    `row` is the row of the table (the header is 1), `cells` its cells as written; `mrd_events` of `mrd_denominator`
    cells; `anc` and `plt` in 10⁹/L; days after infusion. `sources` names the acquisition behind each cell that does not
    come from the table, `denominator` what its cells are.
    """

    row: int
    patient_id: str
    timepoint: str
    day: int | None
    bl_bm_blast_pct: Fraction | None
    bl_emd: str | None
    bm_status: str
    bm_blast_pct: Fraction | None
    mrd_events: int | None
    mrd_denominator: int | None
    cd19_indep_gating: str
    blast_cd19_pos_pct: Fraction | None
    confirm_tests_ge1pct: int
    pb_blast_pct: Fraction | None
    anc: Fraction | None
    plt: Fraction | None
    plt_tx_7d: str
    cns: str | None
    emd: str | None
    lineage_switch: str
    allosct_day: int | None
    death_day: int | None
    last_contact_day: int | None
    cells: Mapping[str, str]
    sources: Mapping[str, str] = field(default_factory=dict)
    denominator: str = ""

    @property
    def blasts(self) -> Fraction | None:
        """Blasts in an evaluable marrow, percent: only with `bm_status` done."""
        return self.bm_blast_pct if self.bm_status == "done" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClinicalTable:
    """A checked clinical table, rows in the order of the file."""

    assessments: tuple[Assessment, ...]
    findings: tuple[QcFinding, ...]
    source: str
    digest: str


def read_clinical_table(path: Path, *, visits: Sequence[Visit], optional: Sequence[str] = ()) -> ClinicalTable:
    """Read and check a clinical table.

    Parameters
    ----------
    path : CSV; columns that are not of the table are ignored
    visits : the planned visits, as of the criteria
    optional : columns that may be absent, as if each of their cells were empty

    Raises
    ------
    InputError : the file cannot be read as a table
    ExceptionGroup : of `InputError`; missing columns, or every faulty cell
    """
    table = read_csv(path, error=InputError)
    absent = {name: "" for name in optional if name not in table.header}
    rows = [replace(row, cells={**row.cells, **absent}) for row in table.rows] if absent else table.rows
    header = (*table.header, *absent)
    return _checked(header, rows, visits, source=path.name, digest=table.digest, faults=table.faults)


def clinical_table_of(frame: pl.DataFrame, *, visits: Sequence[Visit], source: str = "table") -> ClinicalTable:
    """Check a clinical table that is already a frame; a null is an empty cell.

    Raises
    ------
    ExceptionGroup : of `InputError`, as of `read_clinical_table`
    """
    rows = [
        CsvRow(
            number=number,
            cells={
                name: "" if cell is None else str(cell).strip() for name, cell in zip(frame.columns, row, strict=True)
            },
        )
        for number, row in enumerate(frame.iter_rows(), start=2)
    ]
    return _checked(tuple(frame.columns), rows, visits, source=source, digest="", faults=())


def _checked(
    header: Sequence[str],
    rows: Sequence[CsvRow],
    visits: Sequence[Visit],
    *,
    source: str,
    digest: str,
    faults: Sequence[InputError],
) -> ClinicalTable:
    missing = [name for name in COLUMNS if name not in header]
    raise_faults(
        [
            InputError(
                f"expected a column {name!r}; got none", source=source, where="header", hint=nearest(name, header)
            )
            for name in missing
        ],
        source=source,
    )
    limits = _limits()
    found: list[InputError] = list(faults)
    read: list[Assessment] = []
    for row in rows:
        values, wrong = _read_row(row, visits, limits, source)
        found.extend(wrong)
        if not wrong:
            read.append(Assessment(row=row.number, cells={name: row.cells[name] for name in COLUMNS}, **values))
    if not rows and not faults:
        found.append(InputError("expected at least one row below the header; got none", source=source))
    found.extend(_across_rows(read, visits, source))
    raise_faults(sorted(found, key=_row_number), source=source)
    return ClinicalTable(
        assessments=tuple(read), findings=tuple(_findings(read, visits, limits)), source=source, digest=digest
    )


def _limits() -> _Limits:
    with (Path(__file__).parent / "table.toml").open("rb") as stream:
        return _Limits.model_validate(tomllib.load(stream))


def _row_number(fault: InputError) -> tuple[int, str]:
    found = re.match(r"row (\d+)", fault.where)
    return (int(found.group(1)) if found else 0, fault.where)


# --------------------------------------------------------------------------------------------------------------- cells


class _CellError(Exception):
    def __init__(self, message: str, hint: str = "", *, code: str = "") -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


def _fault(source: str, row: int, column: str, message: str, hint: str = "", *, code: str = "") -> InputError:
    """Make a fault of one cell; its name, where it has one, comes first."""
    text = f"{code}: {message}" if code else message
    return InputError(text, source=source, where=f"row {row}, {column}", hint=hint)


def _read_row(
    row: CsvRow, visits: Sequence[Visit], limits: _Limits, source: str
) -> tuple[dict[str, Any], list[InputError]]:
    values: dict[str, Any] = {}
    faults: list[InputError] = []
    for name in COLUMNS:
        cell = row.cells[name]
        try:
            values[name] = _read_cell(name, cell, visits, limits)
        except _CellError as fault:
            faults.append(_fault(source, row.number, name, fault.message, fault.hint, code=fault.code))
    faults.extend(_within_row(row, values, source))
    return values, faults


def _read_cell(name: str, cell: str, visits: Sequence[Visit], limits: _Limits) -> object:
    if name == "patient_id":
        if not cell or len(cell) > 64 or not cell.isprintable():
            raise _CellError("expected a pseudonym of 1 to 64 printable characters")
        return cell
    if name == "timepoint":
        names = [visit.name for visit in visits]
        if cell not in names:
            raise _CellError(f"expected one of {', '.join(names)}; got {cell!r}")
        return cell
    cell = cell or EMPTY_MEANS.get(name, "")
    if not cell:
        return None
    if name in _WORDS:
        words = _WORDS[name]
        if cell not in words:
            # Spreadsheets and data frames write 1 as 1.0.
            if words == ("0", "1") and _NUMBER.fullmatch(cell) and Fraction(cell) in {0, 1}:
                return str(Fraction(cell))
            raise _CellError(f"expected one of {', '.join(words)} or an empty cell; got {cell!r}", nearest(cell, words))
        return cell
    if name in _DAYS:
        return _day(name, cell, limits)
    number = _number(cell)
    if name in _COUNTS:
        if number.denominator != 1 or number < 0:
            raise _CellError(f"expected a whole number from 0 on or an empty cell; got {cell!r}")
        if number > limits.most[name]:
            raise _CellError(f"expected at most {limits.most[name]:g}; got {cell}")
        return int(number)
    if number < 0:
        raise _CellError(f"expected a number from 0 on or an empty cell; got {cell!r}")
    if name in _PERCENT and number > 100:
        raise _CellError(f"expected a percentage from 0 to 100; got {cell}")
    if name in _LEVELS and number > limits.most[name]:
        raise _CellError(
            f"expected 10⁹/L, at most {limits.most[name]:g}; got {cell}",
            f"a count in /µL? {cell}/µL is {float(number) / 1000:g} × 10⁹/L",
            code=_UNIT_CODES[name],
        )
    return number


def _number(cell: str) -> Fraction:
    if not _NUMBER.fullmatch(cell):
        hint = (
            "write decimals with a point"
            if re.fullmatch(r"[+-]?\d+,\d+", cell)
            else "leave the cell empty where the value is missing"
        )
        raise _CellError(f"expected a number or an empty cell; got {cell!r}", hint)
    return Fraction(cell)


def _day(name: str, cell: str, limits: _Limits) -> int:
    hint = "days count from the infusion, which is day 0"
    if not _NUMBER.fullmatch(cell) or Fraction(cell).denominator != 1:
        text = f"expected a whole number of days or an empty cell; got {cell!r}"
        raise _CellError(text, hint, code="IMPOSSIBLE_DAY")
    day = int(Fraction(cell))
    if day > limits.most["day"]:
        raise _CellError(f"expected at most day {limits.most['day']:g}; got {day}", hint, code="IMPOSSIBLE_DAY")
    if name == "day" and day < 0:
        raise _CellError(f"expected day 0 or later; got {day}", hint, code="VISIT_BEFORE_INFUSION")
    if name == "allosct_day" and day < 1:
        raise _CellError(
            f"expected a day after infusion; got {day}",
            "an earlier transplant belongs in the baseline table (`prior_allosct`)",
            code="ALLOSCT_BEFORE_INFUSION",
        )
    if day < 0:
        raise _CellError(f"expected day 0 or later; got {day}", hint, code="IMPOSSIBLE_DAY")
    return day


def _within_row(row: CsvRow, values: Mapping[str, Any], source: str) -> Iterator[InputError]:
    number = row.number
    if "day" in values and values["day"] is None:
        for name in _RESULTS:
            if name in values and row.cells[name] not in {"", EMPTY_MEANS.get(name, "")}:
                text = f"expected an empty cell where no visit took place (no day); got {row.cells[name]!r}"
                yield _fault(source, number, name, text, code="RESULTS_WITHOUT_VISIT")
    if not {"mrd_events", "mrd_denominator"} <= values.keys():
        return
    events, size = values["mrd_events"], values["mrd_denominator"]
    if (events is None) != (size is None):
        empty = "mrd_events" if events is None else "mrd_denominator"
        text = "expected both mrd_events and mrd_denominator or neither; got one"
        yield _fault(source, number, empty, text, "0 events is a result", code="MRD_PAIR")
    elif events is not None and size == 0:
        text = "expected at least 1 cell in the denominator; got 0"
        yield _fault(source, number, "mrd_denominator", text, code="MRD_COUNTS")
    elif events is not None and events > size:
        text = f"expected at most as many events as the denominator has; got {events} of {size}"
        yield _fault(source, number, "mrd_events", text, code="MRD_COUNTS")


# ---------------------------------------------------------------------------------------------------------- across rows


def by_patient(assessments: Iterable[Assessment]) -> dict[str, list[Assessment]]:
    """Group rows by patient, in the order in which patients first appear."""
    groups: dict[str, list[Assessment]] = {}
    for one in assessments:
        groups.setdefault(one.patient_id, []).append(one)
    return groups


def _across_rows(read: Sequence[Assessment], visits: Sequence[Visit], source: str) -> Iterator[InputError]:
    for rows in by_patient(read).values():
        first = rows[0]
        for one in rows[1:]:
            for name in PER_PATIENT:
                if getattr(one, name) != getattr(first, name):
                    text = (
                        f"expected the value of the patient's row {first.row}, {first.cells[name] or 'empty'}; "
                        f"got {one.cells[name] or 'empty'}"
                    )
                    yield _fault(source, one.row, name, text, code="PATIENT_VALUES_DIFFER")
        death = first.death_day
        if death is not None and first.allosct_day is not None and first.allosct_day > death:
            text = f"expected at most the day of death, {death}; got {first.allosct_day}"
            yield _fault(source, first.row, "allosct_day", text, code="ALLOSCT_AFTER_DEATH")
        for one in rows:
            if one.day is not None and one.death_day is not None and one.day > one.death_day:
                text = f"expected a visit up to the day of death, {one.death_day}; got day {one.day}"
                yield _fault(source, one.row, "day", text, code="DEATH_BEFORE_VISIT")
        for visit in visits:
            yield from _repeated(rows, visit, source)


def _repeated(rows: Sequence[Assessment], visit: Visit, source: str) -> Iterator[InputError]:
    """Two rows for one visit: only those outside its window, which are unscheduled visits, may stand beside another."""
    same = [one for one in rows if one.timepoint == visit.name]
    scheduled = [one for one in same if one.day is None or visit.holds(one.day)]
    for first, one in pairwise(scheduled):
        text = f"expected one row for {visit.name}; got another in row {first.row}"
        hint = f"keep the one nearest to day {visit.target_day}, of two as near the later"
        if first.bm_status == one.bm_status == "done" and first.day is not None and one.day is not None:
            yield _fault(source, one.row, "timepoint", text, hint, code="TWO_MARROWS_IN_WINDOW")
        else:
            yield _fault(source, one.row, "timepoint", text, hint, code="DUPLICATE_ROW")
    seen: dict[int, int] = {}
    for one in same:
        if one.day is None or visit.holds(one.day):
            continue
        if one.day in seen:
            text = f"expected one row for day {one.day}; got another in row {seen[one.day]}"
            yield _fault(source, one.row, "day", text, code="DUPLICATE_ROW")
        seen[one.day] = one.row


# ------------------------------------------------------------------------------------------------------------ findings


def _findings(read: Sequence[Assessment], visits: Sequence[Visit], limits: _Limits) -> Iterator[QcFinding]:
    def warning(code: str, message: str, row: int) -> QcFinding:
        return QcFinding(level=Level.WARNING, code=code, message=message, where=f"row {row}")

    for one in read:
        if one.anc is not None and one.anc > limits.unusual["anc"]:
            yield warning(
                "ANC_UNUSUAL", f"Neutrophils of {one.cells['anc']} × 10⁹/L are unusual after CAR-T cells; /µL?", one.row
            )
        if one.bm_status != "done" and one.bm_blast_pct is not None:
            yield warning(
                "BLASTS_WITHOUT_MARROW",
                f"bm_blast_pct is {one.cells['bm_blast_pct']} but bm_status is {one.bm_status}: the count is not used.",
                one.row,
            )
    for rows in by_patient(read).values():
        first = rows[0]
        last_visit = max((one.day for one in rows if one.day is not None), default=None)
        if first.last_contact_day is not None:
            if last_visit is not None and first.last_contact_day < last_visit:
                yield warning(
                    "LAST_CONTACT_BEFORE_VISIT",
                    f"last_contact_day is {first.last_contact_day}, but a visit took place on day {last_visit}; "
                    "the later day counts for survival.",
                    first.row,
                )
            if first.death_day is not None and first.last_contact_day > first.death_day:
                yield warning(
                    "CONTACT_AFTER_DEATH",
                    f"last_contact_day is {first.last_contact_day}, but death_day is {first.death_day}; death counts.",
                    first.row,
                )
        elif first.death_day is None:
            yield warning(
                "LAST_CONTACT_MISSING",
                "last_contact_day is empty: survival ends at the last visit; without one the patient is left out.",
                first.row,
            )
        yield from _window_findings(rows, visits, warning)


def _window_findings(rows: Sequence[Assessment], visits: Sequence[Visit], warning: Any) -> Iterator[QcFinding]:
    held = {
        visit.name: one
        for visit in visits
        for one in rows
        if one.timepoint == visit.name and one.day is not None and visit.holds(one.day)
    }
    for one in rows:
        day = one.day
        other = next((visit for visit in visits if day is not None and visit.holds(day)), None)
        if other is not None and other.name != one.timepoint and other.name in held:
            yield warning(
                "TWO_MARROWS_IN_WINDOW",
                f"Day {day} of this {one.timepoint} row lies in the window of {other.name}, which has row "
                f"{held[other.name].row}; it stays an unscheduled visit.",
                one.row,
            )
