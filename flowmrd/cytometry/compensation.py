"""Applying a spillover matrix: the unmixing matrix over a file's channels, matrix files, conditioning checks."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.quality import SpilloverLimits, load_limits
from flowmrd.errors import CompensationError, InputError, Level, QcFinding
from flowmrd.fcs.fcsfile import Channel, ChannelKind, Spillover

# Numerical rank: beyond this condition number the inverse is noise (float64 has 16 digits).
_UNUSABLE_CONDITION = 1e12
_MATRIX_FILE_MAX_BYTES = 4_000_000  # 300 x 300 channels with 40 characters a number


def unmixing_matrix(spillover: Spillover, channels: Sequence[Channel]) -> NDArray[np.float64]:
    """Return the matrix that compensates a file's events: `compensated = raw @ unmixing` (events in rows).

    Channels that the spillover does not name keep their value: their row and column are those of the identity.

    Parameters
    ----------
    spillover : `matrix[i, j]` is the share of dye i that falls into detector j
    channels : the file's channels, in file order

    Returns
    -------
    (k, k) float64, read-only, k = number of channels

    Raises
    ------
    CompensationError : the matrix names a channel that the file lacks, or cannot be inverted

    Examples
    --------
    >>> from flowmrd.fcs import Channel
    >>> half = Spillover(channels=("B", "A"), matrix=np.array([[1.0, 0.0], [0.5, 1.0]]), source="example")
    >>> unmixing_matrix(half, [Channel(index=0, pnn="A"), Channel(index=1, pnn="B")]).tolist()
    [[1.0, -0.5], [0.0, 1.0]]

    References
    ----------
    Bagwell CB, Adams EG. Fluorescence spectral overlap compensation for any number of flow cytometry parameters.
    Ann N Y Acad Sci 1993;677:167-184.
    """
    places, unknown = _places(spillover, channels)
    if unknown:
        raise CompensationError(
            f"spillover of {spillover.source}: names {_some(unknown)}, which the file does not have; "
            f"expected names among {_some([c.pnn for c in channels])}"
        )
    matrix = spillover.matrix
    if not np.isfinite(matrix).all():
        raise CompensationError(
            f"spillover of {spillover.source}: expected finite numbers; got NaN or infinite entries"
        )
    if _condition(matrix) > _UNUSABLE_CONDITION:
        raise CompensationError(
            f"spillover of {spillover.source}: expected a matrix that can be inverted; got a singular one "
            "(two dyes with the same row, or an empty row)"
        )
    full = np.eye(len(channels))
    indices = [place for place in places if place is not None]
    full[np.ix_(indices, indices)] = np.linalg.inv(matrix)
    full.flags.writeable = False
    return full


def check_spillover(
    spillover: Spillover, channels: Sequence[Channel], *, limits: SpilloverLimits | None = None
) -> tuple[QcFinding, ...]:
    """Judge a matrix before it is used; what passes is stated with its condition number (domain reference 7-qc 7.2).

    Parameters
    ----------
    spillover : the matrix that will be applied
    channels : the file's channels
    limits : ranges of diagonal, off-diagonal and condition number; by default those of `quality.toml`
    """
    limits = limits or load_limits().spillover
    source, names, matrix = spillover.source, spillover.channels, spillover.matrix
    places, unknown = _places(spillover, channels)
    findings: list[QcFinding] = []

    def add(level: Level, code: str, message: str, where: str = source) -> None:
        findings.append(QcFinding(level=level, code=code, message=message, where=where))

    if unknown:
        text = f"The matrix of {source} names {_some(unknown)}, which the file does not have."
        add(Level.VIOLATION, "SPILLOVER_UNKNOWN_CHANNEL", text)
    if not np.isfinite(matrix).all():
        add(Level.VIOLATION, "SPILLOVER_NOT_FINITE", f"The matrix of {source} holds entries that are not numbers.")
        return tuple(findings)
    diagonal = np.diag(matrix)
    for i in np.flatnonzero(np.abs(diagonal - 1.0) > limits.diagonal_tolerance):
        text = f"{names[i]} spills {diagonal[i]:.4g} into its own detector; expected 1."
        add(Level.WARNING, "SPILLOVER_DIAGONAL", text, names[i])
    off = matrix.copy()
    np.fill_diagonal(off, 0.0)
    for i, j in np.argwhere((off < limits.off_diagonal_low) | (off > limits.off_diagonal_high)):
        text = (
            f"{names[i]} spills {off[i, j]:.4g} into {names[j]}; expected "
            f"{limits.off_diagonal_low:g} to {limits.off_diagonal_high:g}."
        )
        add(Level.WARNING, "SPILLOVER_RANGE", text, f"{names[i]} -> {names[j]}")
    for name, place, spills, receives in zip(names, places, off, off.T, strict=True):
        dyeless = place is not None and channels[place].kind in {ChannelKind.SCATTER, ChannelKind.TIME}
        if dyeless and (spills.any() or receives.any()):
            text = f"The matrix of {source} mixes {name} with other channels; scatter and time carry no dye."
            add(Level.WARNING, "SPILLOVER_SCATTER", text, name)
    condition = _condition(matrix)
    if condition > _UNUSABLE_CONDITION:
        add(Level.VIOLATION, "SPILLOVER_SINGULAR", f"The matrix of {source} is singular and cannot be inverted.")
    elif condition > limits.condition_fail:
        text = (
            f"The matrix of {source} has condition number {condition:.3g}; above {limits.condition_fail:g} "
            "compensation multiplies noise."
        )
        add(Level.VIOLATION, "SPILLOVER_ILL_CONDITIONED", text)
    if len(names) > limits.identity_colours and not off.any():
        text = f"The matrix of {source} is the identity over {len(names)} colours: nothing would be compensated."
        add(Level.VIOLATION, "SPILLOVER_IDENTITY", text)
    if not findings:
        text = f"The matrix of {source} covers {len(names)} channels, condition number {condition:.3g}."
        add(Level.INFO, "SPILLOVER_CONDITION", text)
    return tuple(findings)


def matrix_digest(spillover: Spillover) -> str:
    """SHA-256 of names and values; the same for the same matrix with its channels in another order."""
    order = sorted(range(len(spillover.channels)), key=lambda i: spillover.channels[i])
    digest = hashlib.sha256()
    for i in order:
        name = spillover.channels[i].encode()
        digest.update(len(name).to_bytes(4, "little") + name)
    values = spillover.matrix[np.ix_(order, order)] + 0.0  # adding zero turns -0.0 into 0.0
    digest.update(values.astype("<f8").tobytes())
    return digest.hexdigest()


def read_matrix_file(path: Path) -> Spillover:
    """Read a spillover matrix from a text file.

    Accepted: comma, tab or semicolon between cells; a header row of channel names (a leading `#` is ignored); rows in
    the header's order, or each with its own name in a first column; FlowJo's `Comp-` prefixes and `NAME :: LABEL`
    headings; percent matrices as Diva shows them (every diagonal entry 100), divided by 100; or the one-line text of a
    `$SPILLOVER` keyword. The decimal sign is a point.

    Parameters
    ----------
    path : the file

    Raises
    ------
    InputError : with the line and column of the fault, what was expected and what was found
    """
    source = path.name
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MATRIX_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", source=source, hint="check the path of the matrix"
        ) from None
    if len(raw) > _MATRIX_FILE_MAX_BYTES:
        raise InputError("expected a text file of at most 4 MB; got more", source=source, hint="is this a matrix?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8 text; got byte {raw[error.start]:#04x}", source=source, where=f"byte {error.start}"
        ) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise InputError("expected a header row and one row a channel; got an empty file", source=source)
    if len(lines) == 1:
        return _from_keyword(lines[0][1], source)
    return _from_table(lines, source)


# -------------------------------------------------------------------------------------------------------------- names


def _places(spillover: Spillover, channels: Sequence[Channel]) -> tuple[list[int | None], list[str]]:
    """Index of each of the matrix's channels in the file, and the names that fit none (or more than one)."""
    places = [_place(name, channels) for name in spillover.channels]
    unknown = [name for name, place in zip(spillover.channels, places, strict=True) if place is None]
    taken = [place for place in places if place is not None]
    for name, place in zip(spillover.channels, places, strict=True):
        if place is not None and taken.count(place) > 1:
            unknown.append(f"{name} (a second name of {channels[place].pnn})")
    return places, unknown


def _place(name: str, channels: Sequence[Channel]) -> int | None:
    """Find the channel by $PnN, then without regard to case, blanks and FlowJo's spelling, then by $PnS."""
    for wanted, spelled in (
        (name, [c.pnn for c in channels]),
        (_plain(name), [_plain(c.pnn) for c in channels]),
        (_plain(name), [_plain(c.pns) for c in channels]),
    ):
        found = [index for index, text in enumerate(spelled) if text == wanted]
        if len(found) == 1:
            return found[0]
    return None


def _plain(name: str) -> str:
    """Spell a channel name as FlowJo and its users do: no `Comp-`, `/` as `_`, no case, no blanks."""
    text = re.sub(r"^comp-", "", name.strip(), flags=re.IGNORECASE)
    return re.sub(r"\s+", "", text).replace("/", "_").casefold()


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return f"{shown} and {len(names) - 6} more" if len(names) > 6 else shown


def _condition(matrix: NDArray[np.float64]) -> float:
    # The 2-norm condition number; a zero singular value gives infinity.
    singular = np.linalg.svd(matrix, compute_uv=False)
    return float(singular[0] / singular[-1]) if singular.size and singular[-1] > 0 else math.inf


# --------------------------------------------------------------------------------------------------------------- files


def _from_keyword(text: str, source: str) -> Spillover:
    cells = [cell.strip() for cell in text.split(",")]
    where = "line 1"
    if not cells[0].isdigit() or int(cells[0]) < 1:
        raise InputError(
            "expected a header row and one row a channel, or the text of a $SPILLOVER keyword; got one line",
            source=source,
            where=where,
        )
    size = int(cells[0])
    if len(cells) != 1 + size + size * size:
        raise InputError(
            f"expected {1 + size + size * size} cells for {size} channels; got {len(cells)}", source=source, where=where
        )
    names = cells[1 : 1 + size]
    _check_names(names, source, where)
    values = [
        [
            _number(cells[1 + size + row * size + column], source, f"{where}, cell {2 + size + row * size + column}")
            for column in range(size)
        ]
        for row in range(size)
    ]
    return _spillover(names, values, source)


def _from_table(lines: list[tuple[int, str]], source: str) -> Spillover:
    number, first = lines[0]
    delimiter = max(("\t", ";", ","), key=first.count)
    if delimiter not in first:
        raise InputError(
            "expected a header row of channel names separated by comma, tab or semicolon",
            source=source,
            where=f"line {number}",
        )
    header = _cells(first.lstrip("#"), delimiter)
    rows = [(line_number, _cells(line, delimiter)) for line_number, line in lines[1:]]
    # A line stripped of a trailing blank cell, and a header without the corner cell, are both common.
    named = not _is_number(rows[0][1][0])
    if named and len(header) == len(rows[0][1]):
        header = header[1:]
    names = [_heading(cell) for cell in header]
    _check_names(names, source, f"line {number}")
    if len(rows) != len(names):
        raise InputError(f"expected {len(names)} rows below the header, one a channel; got {len(rows)}", source=source)
    values: dict[str, list[float]] = {}
    for place, (line_number, cells) in enumerate(rows):
        where = f"line {line_number}"
        name = _heading(cells[0]) if named else names[place]
        numbers = cells[1:] if named else cells
        if name not in names or name in values:
            raise InputError(
                f"expected a row for one of {_some([n for n in names if n not in values])}; got {name!r}",
                source=source,
                where=where,
            )
        if len(numbers) != len(names):
            raise InputError(f"expected {len(names)} numbers; got {len(numbers)}", source=source, where=where)
        values[name] = [
            _number(cell, source, f"{where}, column {column}")
            for column, cell in enumerate(numbers, start=2 if named else 1)
        ]
    return _spillover(names, [values[name] for name in names], source)


def _spillover(names: Sequence[str], values: Sequence[Sequence[float]], source: str) -> Spillover:
    matrix = np.array(values, np.float64)
    if np.all(np.diag(matrix) == 100.0):
        return Spillover(channels=tuple(names), matrix=matrix / 100.0, source=f"{source} (percent)")
    return Spillover(channels=tuple(names), matrix=matrix, source=source)


def _check_names(names: Sequence[str], source: str, where: str) -> None:
    if not all(names):
        raise InputError("expected a channel name in every column; got an empty one", source=source, where=where)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"expected each channel once; got {_some(repeated)} more than once", source=source, where=where
        )
    if all(_is_number(name) for name in names):
        raise InputError("expected a header row of channel names; got numbers", source=source, where=where)


def _heading(cell: str) -> str:
    return cell.split(" :: ", maxsplit=1)[0].strip()


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, source: str, where: str) -> float:
    hint = "write decimals with a point" if re.fullmatch(r"-?\d+,\d+", cell) else ""
    try:
        value = float(cell)
    except ValueError:
        raise InputError(f"expected a number; got {cell!r}", source=source, where=where, hint=hint) from None
    if not math.isfinite(value):
        raise InputError(f"expected a finite number; got {cell!r}", source=source, where=where)
    return value
