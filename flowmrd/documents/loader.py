"""Reading TOML, CSV and JSON so that every fault can be told with file, row or key path; no meaning of any key.

A document that cannot be read at all is one error. Faults inside it are collected and raised together as an
`ExceptionGroup`, so that a person mends a file once and not once a mistake.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
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
    """One row as column → cell, without blanks at the cells' ends.

    `number` is the spreadsheet's (the header is 1); of a JSON list, the object's place from 1.
    """

    number: int
    cells: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvTable:
    """A table file: header, rows that hold anything, faults of shape, and the SHA-256 of its bytes."""

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


def read_table(path: Path, *, error: type[InputError]) -> CsvTable:
    """Read rows from CSV, or from JSON: a list of objects, one a row; the content decides, not the file's name.

    Parameters
    ----------
    path : the file
    error : class of the error to raise

    Raises
    ------
    InputError : of class `error`; see `read_csv` and `read_json_rows`
    """
    raw = _read(path, error)
    start = raw[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    return (read_json_rows if start[:1] in {b"[", b"{"} else read_csv)(path, error=error)


def read_json_rows(path: Path, *, error: type[InputError]) -> CsvTable:
    """Read a JSON list of row objects whose values are strings, numbers or null (missing).

    A number keeps the text it has in the file, so that a cell means the same in JSON and in CSV. The header is every
    key of any row; a row without a key has an empty cell there.

    Parameters
    ----------
    path : the file
    error : class of the error to raise

    Raises
    ------
    InputError : of class `error`; unreadable, not UTF-8, not JSON, or no list of objects
    """
    raw = _read(path, error)
    try:
        data = json.loads(
            _decode(raw, path, error),
            parse_float=_Number,
            parse_int=_Number,
            parse_constant=_Number,
            object_pairs_hook=_Pairs,
        )
    except json.JSONDecodeError as fault:
        where = f"line {fault.lineno}, column {fault.colno}"
        raise error(f"not valid JSON: {fault.msg}", source=path.name, where=where) from None
    except RecursionError:
        raise error("expected a list of row objects; got values nested too deep", source=path.name) from None
    if isinstance(data, _Pairs) or not isinstance(data, list):
        got = _json_kind(data)
        raise error(f"expected a list of row objects; got {got}", source=path.name, hint="write [ {…}, {…} ]")
    header: dict[str, None] = {}
    rows, faults = [], []
    for number, item in enumerate(data, start=1):
        where = f"row {number}"
        if not isinstance(item, _Pairs):
            faults.append(error(f"expected an object; got {_json_kind(item)}", source=path.name, where=where))
            continue
        cells: dict[str, str] = {}
        for name, value in item:
            place = f"{where}, column {name}"
            if name in cells:
                faults.append(error("expected each column once; got it twice", source=path.name, where=place))
            if value is not None and not isinstance(value, str):
                text = f"expected a string, a number or null; got {_json_kind(value)}"
                faults.append(error(text, source=path.name, where=place))
            # Left out after a fault of its own; "missing" would be a second one.
            cells[name] = value.strip() if isinstance(value, str) else ""
        header.update(dict.fromkeys(cells))
        if any(cells.values()):
            rows.append(CsvRow(number=number, cells=cells))
    names = tuple(header)
    full = tuple(CsvRow(number=row.number, cells={name: row.cells.get(name, "") for name in names}) for row in rows)
    return CsvTable(path=path, header=names, rows=full, faults=tuple(faults), digest=hashlib.sha256(raw).hexdigest())


class _Number(str):
    """A JSON number as it is written."""

    __slots__ = ()


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with repeated keys kept."""

    __slots__ = ()


def _json_kind(value: object) -> str:
    if isinstance(value, _Number):
        return f"the number {value[:40]}"
    named = {_Pairs: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return named[type(value)]


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
    text = str(item["msg"]).removeprefix("Value error, ")
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
