"""What an expert, a simulator or a model says of each event: labels beside a file → one answer an event.

Two passes. `survey_labels` looks at a document (which column, which values, how many rows), so that one reading can be
chosen for the whole batch before any file is gated; `read_labels` then applies it. A fault is an `InputError` that
names the labels' file, what was expected, and what to do.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowmrd.documents.loader import nearest
from flowmrd.errors import InputError, SettingsError
from flowmrd.evaluation.defaults import LabelDefaults

if TYPE_CHECKING:
    import polars as pl

FORMATS = (".npy", ".csv", ".csv.gz", ".parquet")
# Values named in a message; a column of numbers may hold a million different ones.
_NAMED = 12
_ENDINGS = {".npy", ".csv", ".parquet"}
_NO_COLUMN = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a labels document holds: the column to read, its different values (plain words), and its rows."""

    column: str
    values: tuple[str, ...]
    kind: str  # "words" | "numbers" | "truth values"
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a batch's labels are read: values that mean the disease, and columns (`None`: as surveyed)."""

    positive: tuple[str, ...]
    column: str | None = None
    denominator: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labels:
    """One answer an event, in file order, both (events,): diseased, and counted in the denominator (`None`: unsaid)."""

    positive: NDArray[np.bool_]
    denominator: NDArray[np.bool_] | None
    denominator_column: str


def find_labels(fcs: Path, defaults: LabelDefaults) -> Path:
    """Find the labels beside a file, `<stem>.labels.…`.

    Raises
    ------
    InputError : there are none, or several
    """
    found = [path for suffix in defaults.suffixes if (path := fcs.with_name(f"{fcs.stem}{suffix}")).is_file()]
    if not found:
        endings = ",".join(suffix.removeprefix(".labels.") for suffix in defaults.suffixes)
        raise InputError(
            "no labels beside the file",
            source=fcs.name,
            hint=f"expected {fcs.stem}.labels.{{{endings}}}, or --labels FILE",
        )
    if len(found) > 1:
        raise InputError(
            f"several labels beside the file: {', '.join(path.name for path in found)}",
            source=fcs.name,
            hint="keep one, or name it with --labels FILE",
        )
    return found[0]


def survey_labels(path: Path, defaults: LabelDefaults, *, column: str | None, events: int | None) -> Survey:
    """Look at a labels document: choose the column and list its values.

    Parameters
    ----------
    path : .npy, .csv, .csv.gz or .parquet
    column : name of the column; without one the only column, or the one that `defaults` knows
    events : events of the labelled file, which tell a header from a first label; `None` where the file is unreadable

    Raises
    ------
    InputError : the document cannot be read, is of another length, lacks the column, or has rows without a label
    """
    data = _bytes(path)
    frame = _frame(path, data, events)
    if events is not None:
        _check_length(path, frame.height, events)
    name = _column(frame, path, defaults.columns, column)
    values, kind, _ = _plain(frame[name], path)
    return Survey(
        column=name, values=tuple(values), kind=kind, rows=frame.height, sha256=hashlib.sha256(data).hexdigest()
    )


def choose_positive(
    surveys: Sequence[Survey], defaults: LabelDefaults, given: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Say which values mean the disease in all documents of a batch.

    One reading for the batch, because a file without disease cannot say it: in a drawn marrow 0 and 1 may stand for "no
    B cell" and "normal B cell", and only its neighbours hold the 2 that is a blast.

    Parameters
    ----------
    surveys : of every labels document that can be read
    given : values named by the user; without any, 1 or true, or the words that `defaults` knows

    Returns
    -------
    The values, and those of them that no document has (right for a batch without disease, else a mistake).

    Raises
    ------
    SettingsError : nothing says which value it is, or a named value looks misspelt
    """
    seen = {value: None for survey in surveys for value in survey.values}
    usual = [value for value in seen if value.casefold() in defaults.positive]
    if given:
        wanted = tuple(dict.fromkeys(_canonical(value, surveys) for value in given))
        absent = tuple(value for value in wanted if value not in seen)
        others = [value for value in seen if value not in wanted and not _is_number(value)]
        for value in absent:
            hint = nearest(value, others)
            if hint or set(usual) & set(others):
                raise SettingsError(
                    f"no event of any file is labelled {value!r}; found: {_listed(tuple(seen))}",
                    where="--positive",
                    hint=hint,
                )
        return wanted, absent
    if usual:
        return tuple(usual), ()
    kinds = {survey.kind for survey in surveys}
    if surveys and kinds <= {"numbers", "truth values"} and set(seen) <= {"0", "1"}:
        return ("1",), ()
    if not surveys:
        return (), ()
    raise SettingsError(
        f"which label means the disease? The labels are {_listed(tuple(seen))}",
        where="--positive",
        hint="name it: --positive VALUE, as often as needed",
    )


def read_labels(path: Path, reading: Reading, defaults: LabelDefaults, *, events: int) -> Labels:
    """Read the labels of a file.

    Parameters
    ----------
    path : the document
    reading : columns, and values that mean the disease
    events : events of the labelled file

    Raises
    ------
    InputError : as `survey_labels`; or the number of rows is not that of the events
    """
    frame = _frame(path, _bytes(path), events)
    _check_length(path, frame.height, events)
    name = _column(frame, path, defaults.columns, reading.column)
    counted = reading.denominator
    if counted is None:
        # A column of this name may hold anything; only 0 and 1 say what it is for.
        usual = [one for one in defaults.denominator if one in frame.columns and one != name]
        counted = next((one for one in usual if _is_two_valued(frame[one])), None)
    elif counted not in frame.columns:
        raise _absent(path, counted, frame.columns, "--denominator")
    denominator = None
    if counted is not None:
        values, _, _ = _plain(frame[counted], path)
        if not set(values) <= {"0", "1"}:
            raise InputError(f"expected 0 and 1; got {_listed(values)}", source=path.name, where=f"column {counted!r}")
        denominator = _is_any(frame[counted], path, ("1",))
    return Labels(
        positive=_is_any(frame[name], path, reading.positive),
        denominator=denominator,
        denominator_column=counted or "",
    )


# ------------------------------------------------------------------------------------------------------------ documents


def _bytes(path: Path) -> bytes:
    if not any(path.name.lower().endswith(ending) for ending in FORMATS):
        raise InputError(f"unknown format of labels; expected {', '.join(FORMATS)}", source=path.name)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", source=path.name) from None


def _frame(path: Path, data: bytes, events: int | None) -> pl.DataFrame:
    """Read a document as a table; a single nameless column is called ''."""
    import polars as pl

    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            return pl.read_parquet(io.BytesIO(data))
        if name.endswith(".npy"):
            return _from_array(np.load(io.BytesIO(data), allow_pickle=False), path)
        return _from_csv(gzip.decompress(data) if name.endswith(".gz") else data, path, events)
    except InputError:
        raise
    # Every reader has its own errors, and none of them is our user's language.
    except (OSError, ValueError, EOFError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"not a readable {path.suffix} file: {reason}", source=path.name) from None


def _from_array(array: NDArray[Any], path: Path) -> pl.DataFrame:
    import polars as pl

    if array.dtype.names is not None:
        return pl.DataFrame({name: np.ascontiguousarray(array[name]) for name in array.dtype.names})
    flat = array.reshape(-1) if array.ndim > 1 and sum(size > 1 for size in array.shape) <= 1 else array
    if flat.ndim != 1:
        raise InputError(f"expected one label an event; got an array of shape {array.shape}", source=path.name)
    if flat.dtype.kind == "S":
        flat = np.char.decode(flat, "utf-8")
    return pl.DataFrame({_NO_COLUMN: flat})


def _from_csv(data: bytes, path: Path, events: int | None) -> pl.DataFrame:
    import polars as pl

    head = data[:65536].decode("utf-8-sig", errors="replace").splitlines()
    if not head:
        raise InputError("the file is empty", source=path.name)
    # A spreadsheet of another country separates by semicolons; a label holds none of these.
    separator = max(",;\t", key=head[0].count)
    bare = separator not in head[0] and _is_bare(data, head[0], events)
    frame = pl.read_csv(
        io.BytesIO(data),
        has_header=not bare,
        separator=separator,
        infer_schema=False,
        encoding="utf8",
    )
    return frame.rename({frame.columns[0]: _NO_COLUMN}) if bare else frame


def _is_bare(data: bytes, first: str, events: int | None) -> bool:
    """Say whether a single column begins with a label: a header is one line more, and its word stands nowhere else."""
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if events is not None and lines == events + 1:
        return False
    # Some programs head a nameless column by 0; with one line more that was answered above.
    return _is_number(first.strip().strip('"')) or b"\n" + first.strip().encode() in data


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_length(path: Path, rows: int, events: int) -> None:
    if rows != events:
        raise InputError(
            f"{rows:,} labels for {events:,} events; expected one row an event, in file order", source=path.name
        )


def _column(frame: pl.DataFrame, path: Path, usual: Sequence[str], wanted: str | None) -> str:
    names = frame.columns
    if wanted is not None and names != [_NO_COLUMN]:
        if wanted not in names:
            raise _absent(path, wanted, names, "--column")
        return wanted
    if len(names) == 1:
        return names[0]
    found = next((name for name in usual if name in names), None)
    if found is None:
        raise InputError(
            f"several columns: {_listed(tuple(names))}", source=path.name, hint="name one with --column NAME"
        )
    return found


def _absent(path: Path, wanted: str, names: Sequence[str], option: str) -> InputError:
    return InputError(
        f"no column {wanted!r}; the columns are {_listed(tuple(name or 'nameless' for name in names))}",
        source=path.name,
        where=option,
        hint=nearest(wanted, names),
    )


# --------------------------------------------------------------------------------------------------------------- values


def _plain(series: pl.Series, path: Path) -> tuple[list[str], str, dict[Any, str]]:
    """Return a column's different values as plain words in order, their kind, and raw value → word."""
    import polars as pl

    where = f"column {series.name!r}" if series.name else ""
    if isinstance(series.dtype, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    if not (isinstance(series.dtype, pl.String | pl.Boolean) or series.dtype.is_numeric()):
        raise InputError(
            f"expected whole numbers, truth values or words; got {series.dtype}", source=path.name, where=where
        )
    raw = series.unique().to_list()
    texts = {value: _word(value) for value in raw}
    if empty := [value for value, text in texts.items() if text == ""]:
        first = next(i for i, value in enumerate(series) if value in empty or value is None or value != value)  # noqa: PLR0124 -- NaN
        raise InputError(f"no label in row {first + 1:,}", source=path.name, where=where)
    words = set(texts.values())
    if isinstance(series.dtype, pl.Boolean) or ({word.casefold() for word in words} <= {"true", "false"} and words):
        return (
            sorted({str(int(word.casefold() == "true")) for word in words}),
            "truth values",
            {value: str(int(text.casefold() == "true")) for value, text in texts.items()},
        )
    if words and all(_is_number(word) for word in words):
        whole = {}
        for value, text in texts.items():
            number = float(text)
            if not number.is_integer():
                raise InputError(f"expected whole numbers or words; got {text}", source=path.name, where=where)
            whole[value] = str(int(number))
        return sorted(set(whole.values()), key=int), "numbers", whole
    return sorted(words), "words", texts


def _word(value: object) -> str:
    if value is None or value != value:  # noqa: PLR0124 -- NaN
        return ""
    return str(value).strip()


def _is_two_valued(series: pl.Series) -> bool:
    import polars as pl

    if isinstance(series.dtype, pl.Boolean):
        return series.null_count() == 0
    if not (isinstance(series.dtype, pl.String) or series.dtype.is_integer()):
        return False
    return {str(value).strip() for value in series.unique().to_list()} <= {"0", "1"}


def _is_any(series: pl.Series, path: Path, wanted: Sequence[str]) -> NDArray[np.bool_]:
    import polars as pl

    if isinstance(series.dtype, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    _, _, words = _plain(series, path)
    chosen = [value for value, word in words.items() if word in wanted]
    mask: NDArray[np.bool_] = series.is_in(chosen).to_numpy().astype(np.bool_)
    return mask


def _canonical(value: str, surveys: Sequence[Survey]) -> str:
    """Write a value of the command line as the labels are written: `1.0` is 1, and `true` is 1 among truth values."""
    text = value.strip()
    kinds = {survey.kind for survey in surveys}
    if "truth values" in kinds and text.casefold() in {"true", "false"}:
        return str(int(text.casefold() == "true"))
    if kinds & {"numbers", "truth values"} and _is_number(text) and float(text).is_integer():
        return str(int(float(text)))
    return text


def _listed(values: Sequence[str]) -> str:
    shown = ", ".join(values[:_NAMED])
    return f"{shown} and {len(values) - _NAMED:,} more" if len(values) > _NAMED else shown
