"""A table of CAR-T counts: one CSV row a subject, infusion course and day; every fault is reported at once.

Pseudonyms are never repeated in a message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowmrd.documents.loader import CsvRow, nearest, raise_faults, read_csv
from flowmrd.errors import InputError, SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRow:
    """One row; `None` is missing. `row` is the spreadsheet's number (the header is 1).

    `day` from the infusion, decimal where the time is known. Shares are fractions here, percent in the file
    (`lod_pct_cd3`, `b_pct_lymph`). `terminal` marks a point for the terminal slope.
    """

    row: int
    subject: str
    course: int
    day: float
    car_per_ul: float | None
    lod_per_ul: float | None
    ci_low: float | None
    ci_high: float | None
    cd19_per_ul: float | None
    copies_per_ug: float | None
    lod_fraction: float | None
    b_fraction: float | None
    cd4_cd8_ratio: float | None
    terminal: bool | None
    visit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CountTable:
    """Validated rows in file order, and the SHA-256 of the file's bytes."""

    rows: tuple[CountRow, ...]
    digest: str
    path: Path


REQUIRED = ("subject", "day", "car_per_ul", "lod_per_ul")
_NUMBERS = ("car_per_ul", "lod_per_ul", "ci_low", "ci_high", "cd19_per_ul", "copies_per_ug", "cd4_cd8_ratio")
_PERCENT = {"lod_pct_cd3": "lod_fraction", "b_pct_lymph": "b_fraction"}
COLUMNS = ("subject", "course", "day", *_NUMBERS, *_PERCENT, "terminal", "visit")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_ANSWERS = {"Y": True, "N": False}


def load_counts(path: Path) -> CountTable:
    """Read and validate a table of counts.

    Required columns: `subject`, `day`, `car_per_ul`, `lod_per_ul`; `course` is 1 where it is missing. Two rows of one
    subject, course and day are a fault.

    Raises
    ------
    SettingsError : the file cannot be read as a table
    ExceptionGroup : of `SettingsError`: missing or unknown columns, or every faulty cell
    """
    table = read_csv(path, error=SettingsError)
    source = path.name
    faults: list[InputError] = [
        SettingsError(f"unknown column {name!r}", source=source, where="header", hint=nearest(name, COLUMNS))
        for name in table.header
        if name not in COLUMNS
    ]
    faults += [
        SettingsError(f"missing column {name}", source=source, where="header", hint=f"required: {', '.join(REQUIRED)}")
        for name in REQUIRED
        if name not in table.header
    ]
    raise_faults(faults, source=source)
    faults = list(table.faults)
    rows: list[CountRow] = []
    first: dict[tuple[str, int, float], int] = {}
    for row in table.rows:
        one, found = _read(row, source)
        faults.extend(found)
        if one is None:
            continue
        rows.append(one)
        other = first.setdefault((one.subject, one.course, one.day), one.row)
        if other != one.row:
            text = f"duplicate visit: day {one.day:g} of the same subject and course stands in row {other} too"
            hint = "keep one result a day; a re-infusion is a course of its own"
            faults.append(SettingsError(text, source=source, where=f"row {one.row}, column day", hint=hint))
    if not table.rows and not table.faults:
        faults.append(SettingsError("expected at least one row below the header; got none", source=source))
    raise_faults(faults, source=source)
    return CountTable(rows=tuple(rows), digest=table.digest, path=path)


def _read(row: CsvRow, source: str) -> tuple[CountRow | None, list[InputError]]:
    faults: list[InputError] = []
    cells = row.cells

    def fault(column: str, message: str, hint: str = "") -> None:
        faults.append(SettingsError(message, source=source, where=f"row {row.number}, column {column}", hint=hint))

    def number(column: str, *, least: float | None = None, most: float | None = None) -> float | None:
        cell = cells.get(column, "").replace("−", "-")
        if not cell:
            return None
        value = float(cell) if _NUMBER.fullmatch(cell) else math.nan
        low, high = least is not None and value < least, most is not None and value > most
        if not math.isfinite(value) or low or high:
            limit = (
                "" if least is None else f" of at least {least:g}" if most is None else f" from {least:g} to {most:g}"
            )
            hint = "write decimals with a point; leave a missing value empty"
            if cell.startswith(("<", "≤")) or cell.casefold() in {"blq", "bloq", "nd", "neg"}:
                hint = "below the limit: write 0, and the limit in lod_per_ul"
            fault(column, f"expected a number{limit}; got {cells[column]!r}", hint)
            return None
        return value

    day = number("day")
    if not cells.get("day"):
        fault("day", "expected a day; got an empty cell")
    subject = cells["subject"]
    if not subject or len(subject) > 64 or not subject.isprintable():
        fault("subject", "expected a pseudonym of at most 64 printable characters")
    course = _course(cells, fault)
    values = {name: number(name, least=0.0) for name in _NUMBERS}
    shares = {field: number(name, least=0.0, most=100.0) for name, field in _PERCENT.items()}
    low, high = values["ci_low"], values["ci_high"]
    if low is not None and high is not None and low > high:
        fault("ci_high", f"expected a value not below ci_low; got {cells['ci_high']} below {cells['ci_low']}")
    answer = cells.get("terminal", "")
    if answer and answer not in _ANSWERS:
        fault("terminal", f"expected Y, N or nothing; got {answer!r}")
    if faults or day is None:
        return None, faults
    return (
        CountRow(
            row=row.number,
            subject=subject,
            course=course,
            day=day,
            **values,
            lod_fraction=_fraction(shares["lod_fraction"]),
            b_fraction=_fraction(shares["b_fraction"]),
            terminal=_ANSWERS.get(answer),
            visit=cells.get("visit", ""),
        ),
        faults,
    )


def _course(cells: Mapping[str, str], fault: Callable[[str, str], None]) -> int:
    cell = cells.get("course", "")
    if not cell:
        return 1
    if not re.fullmatch(r"[1-9]\d{0,3}", cell):
        fault("course", f"expected a whole number of at least 1; got {cell!r}")
        return 1
    return int(cell)


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else percent / 100
