"""Reading TOML and CSV documents so that every fault can be told with file, row or key path; no meaning of any key.

A document that cannot be read at all is one error. Faults inside it are collected and raised together as an
`ExceptionGroup`, so that a person mends a file once and not once a mistake.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from flowmrd.errors import InputError

_MAX_BYTES = 50_000_000  # a document of a person; anything larger is another kind of file

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class TomlDocument:
    """A TOML file: what it says, where it lies, and the SHA-256 of its bytes."""

    path: Path
    data: Mapping[str, Any]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvRow:
    """One row as column → cell, without blanks at the cells' ends; `number` is the spreadsheet's (the header is 1)."""

    number: int
    cells: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvTable:
    """A CSV file: header, rows that hold anything, faults of shape, and the SHA-256 of its bytes."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[CsvRow, ...]
    faults: tuple[InputError, ...]
    digest: str


def load_toml(path: Path, *, error: type[InputError]) -> TomlDocument:
    """Read a TOML file.

    Parameters
    ----------
    path : the file
    error : class of the error to raise

    Raises
    ------
    InputError : of class `error`; unreadable, not UTF-8 or not TOML, with the line
    """
    raw = _read(path, error)
    try:
        data = tomllib.loads(_decode(raw, path, error))
    except tomllib.TOMLDecodeError as fault:
        text, _, place = str(fault).partition(" (at ")
        raise error(f"not valid TOML: {text}", source=path.name, where=place.rstrip(")")) from None
    return TomlDocument(path=path, data=data, digest=hashlib.sha256(raw).hexdigest())


def read_csv(path: Path, *, error: type[InputError]) -> CsvTable:
    """Read a comma-separated file with a header row (RFC 4180; a byte order mark is tolerated).

    Rows whose cells are all empty are left out, but counted. A row of another length than the header is a fault in
    the table, not an exception: the caller reports it beside its own faults.

    Parameters
    ----------
    path : the file
    error : class of the error to raise

    Raises
    ------
    InputError : of class `error`; unreadable, not UTF-8, no header, or quoting that does not end
    """
    raw = _read(path, error)
    # newline="" leaves line ends inside quotes to the reader, as RFC 4180 wants.
    reader = csv.reader(io.StringIO(_decode(raw, path, error), newline=""), strict=True)
    try:
        lines = list(enumerate(reader, start=1))
    except csv.Error as fault:
        raise error(f"not valid CSV: {fault}", source=path.name, where=f"line {reader.line_num}") from None
    filled = [
        (number, [cell.strip() for cell in cells]) for number, cells in lines if any(cell.strip() for cell in cells)
    ]
    if not filled:
        raise error("expected a header row; got an empty file", source=path.name)
    number, cells = filled[0]
    header = tuple(cells)
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise error(
            "expected commas between columns; got another separator",
            source=path.name,
            where=f"row {number}",
            hint="save the table as comma-separated CSV, UTF-8",
        )
    if not all(header):
        raise error(
            f"expected a name in every column of the header; got none in column {header.index('') + 1}",
            source=path.name,
            where=f"row {number}",
        )
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise error(
            f"expected each column once; got {', '.join(repeated)} twice", source=path.name, where=f"row {number}"
        )
    rows, faults = [], []
    for number, cells in filled[1:]:
        if len(cells) != len(header):
            text = f"expected {len(header)} cells as in the header; got {len(cells)}"
            faults.append(error(text, source=path.name, where=f"row {number}", hint="quote cells that contain a comma"))
        else:
            rows.append(CsvRow(number=number, cells=dict(zip(header, cells, strict=True))))
    return CsvTable(
        path=path, header=header, rows=tuple(rows), faults=tuple(faults), digest=hashlib.sha256(raw).hexdigest()
    )


def validate(model: type[Model], data: Mapping[str, Any], *, source: str, error: type[InputError]) -> Model:
    """Build a pydantic model from a mapping.

    Parameters
    ----------
    model : what to build
    data : the mapping, such as `TomlDocument.data`
    source : file name for the messages
    error : class of the errors

    Raises
    ------
    ExceptionGroup : of `error`, one a fault, each with its key path
    """
    try:
        return model.model_validate(data)
    except ValidationError as fault:
        found = [
            error(_message(item), source=source, where=key_path(item["loc"]), hint=_hint(item, model))
            for item in fault.errors()
        ]
    raise ExceptionGroup(f"{source}: {len(found)} faults", found)


def raise_faults(faults: Iterable[InputError], *, source: str) -> None:
    """Raise the faults together, if there are any.

    Raises
    ------
    ExceptionGroup : of all `faults`, in order
    """
    found = list(faults)
    if found:
        raise ExceptionGroup(f"{source}: {len(found)} fault{'s' if len(found) > 1 else ''}", found)


def nearest(name: str, known: Iterable[str]) -> str:
    """Hint at the known name that is spelled most like `name`; empty where none is near.

    Examples
    --------
    >>> nearest("studyday", ["study_day", "study_id"])
    'did you mean study_day?'
    """
    by_fold = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), list(by_fold), n=1, cutoff=0.6)
    return f"did you mean {by_fold[found[0]]}?" if found else ""


def key_path(keys: Iterable[str | int]) -> str:
    """Write a path of keys and list places as `population[3].params.tolerance`.

    Examples
    --------
    >>> key_path(["population", 3, "params", "tolerance"])
    'population[3].params.tolerance'
    """
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def _message(item: Any) -> str:
    if item["type"] == "missing":
        return "expected this key; got nothing"
    if item["type"] == "extra_forbidden":
        return "unknown key"
    got = item["input"]
    text = str(item["msg"])
    return text if isinstance(got, Mapping) else f"{text}; got {got!r}"


def _hint(item: Any, model: type[BaseModel]) -> str:
    loc = item["loc"]
    return nearest(str(loc[0]), model.model_fields) if item["type"] == "extra_forbidden" and len(loc) == 1 else ""


def _read(path: Path, error: type[InputError]) -> bytes:
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except OSError as fault:
        raise error(f"cannot be read: {fault.strerror}", source=path.name) from None
    if len(raw) > _MAX_BYTES:
        raise error(f"expected a document of at most {_MAX_BYTES // 1_000_000} MB; got more", source=path.name)
    return raw


def _decode(raw: bytes, path: Path, error: type[InputError]) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = raw.count(b"\n", 0, fault.start) + 1
        raise error(
            f"expected UTF-8 text; got byte {raw[fault.start]:#04x}",
            source=path.name,
            where=f"line {line}",
            hint="save the file as UTF-8",
        ) from None
