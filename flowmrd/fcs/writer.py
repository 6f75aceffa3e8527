"""Write FCS 3.1, strictly: what leaves here follows the standard, or is refused before a byte is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import FcsError
from flowmrd.fcs.fcsfile import Channel, Spillover
from flowmrd.fcs.segments import HEADER_BYTES

_HEADER_LIMIT = 99_999_999
_CHUNK_EVENTS = 16384
_DELIMITERS = "|/\\\x0c~^!"
_WIDTHS = (8, 16, 24, 32, 64)
_NO_CRC = b"0" * 8
# Keywords that the writer derives from the data; giving them could only contradict it.
_DERIVED = {
    "$BEGINANALYSIS", "$BEGINDATA", "$BEGINSTEXT", "$BYTEORD", "$DATATYPE", "$ENDANALYSIS", "$ENDDATA", "$ENDSTEXT",
    "$MODE", "$NEXTDATA", "$PAR", "$TOT", "$SPILLOVER",
}  # fmt: skip
_DERIVED_OF_PARAMETER = tuple("NSBERG")


def write_fcs(
    path: str | Path,
    columns: NDArray[Any] | Sequence[NDArray[Any]],
    channels: Sequence[Channel],
    *,
    keywords: Mapping[str, str] | None = None,
    spillover: Spillover | None = None,
    datatype: Literal["F", "D", "I"] = "F",
    byte_order: Literal["little", "big"] = "little",
    delimiter: str | None = None,
) -> None:
    """Write one data set as FCS 3.1.

    Equal input gives equal bytes. The file appears under its name only when it is complete.

    Parameters
    ----------
    path : where to write; an existing file is replaced
    columns : values **as stored**, channel-major: (k, n), or k arrays of n. A reader divides them by `$PnG`, multiplies
        the time channel by `$TIMESTEP` and takes integers on a log scale to linear.
    channels : one per column. Written: `pnn`, `pns` (if any), `range`, `gain` (if not 1), the log scale, and for
        integers `bits` (8, 16, 24, 32 or 64).
    keywords : further keywords, such as `$CYT` or `$TIMESTEP`; not those that follow from the data
    spillover : of channels of this file
    datatype : F float32, D float64, I unsigned integers
    byte_order : of the values
    delimiter : of keywords; by default one that occurs in none of them

    Raises
    ------
    FcsError : anything that FCS 3.1 does not allow, or a value that the type cannot hold
    OSError : the file cannot be written
    """
    path = Path(path)
    source = path.name
    k = len(channels)
    if len(columns) != k or not k:
        raise FcsError(f"got {len(columns)} columns for {k} channels; give one array per channel", source=source)
    arrays = [np.asarray(column) for column in columns]
    n = arrays[0].shape[0] if arrays[0].ndim == 1 else -1
    if any(array.shape != (n,) for array in arrays):
        raise FcsError("columns must be one-dimensional and of equal length", source=source)
    if datatype not in {"F", "D", "I"} or byte_order not in {"little", "big"}:
        raise FcsError("datatype must be F, D or I, and byte_order little or big", source=source)
    _check_channels(channels, datatype, source)
    for channel, array in zip(channels, arrays, strict=True):
        _check_values(channel, array, datatype, source)
    pairs = _keywords(channels, n, keywords or {}, spillover, datatype, byte_order, source)
    mark = _delimiter(pairs, delimiter, source)
    dtypes = [_stored(datatype, channel.bits, byte_order) for channel in channels]
    header, text = _head(pairs, mark, n * sum(width for _, width in dtypes), source)
    part = path.with_name(f".{source}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            out.write(header)
            out.write(text)
            for start in range(0, n, _CHUNK_EVENTS):
                out.write(_rows([array[start : start + _CHUNK_EVENTS] for array in arrays], dtypes, byte_order))
            out.write(_NO_CRC)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def _check_channels(channels: Sequence[Channel], datatype: str, source: str) -> None:
    names = [c.pnn for c in channels]
    for c in channels:
        where = f"channel {c.pnn}"
        if not c.pnn or "," in c.pnn or c.pnn != c.pnn.strip():
            raise FcsError(f"{c.pnn!r} cannot be a $PnN: no commas, no blanks around it, not empty", source=source)
        if names.count(c.pnn) > 1:
            raise FcsError("a $PnN may stand only once", source=source, where=where)
        if not np.isfinite(c.range) or c.range <= 0:
            raise FcsError(f"range {c.range:g} is not positive", source=source, where=where)
        if not np.isfinite(c.gain) or c.gain <= 0:
            raise FcsError(f"gain {c.gain:g} is not positive", source=source, where=where)
        if datatype == "I":
            if c.bits not in _WIDTHS:
                raise FcsError(f"{c.bits} bits; integers have one of {_WIDTHS}", source=source, where=where)
            if c.range > 2.0**c.bits or c.range != int(c.range):
                raise FcsError(f"range {c.range:g} is not a whole number up to 2^{c.bits}", source=source, where=where)
        elif c.log_decades:
            raise FcsError("float values are linear; log_decades must be 0", source=source, where=where)
        if c.log_decades < 0 or (c.log_decades > 0) != (c.log_offset > 0):
            raise FcsError("a log scale needs positive decades and a positive offset", source=source, where=where)
        if c.log_decades and c.gain != 1.0:
            raise FcsError("a channel on a log scale has no gain", source=source, where=where)


def _check_values(channel: Channel, array: NDArray[Any], datatype: str, source: str) -> None:
    where = f"channel {channel.pnn}"
    if array.dtype.kind not in "fiu":
        raise FcsError(f"values of type {array.dtype} are not numbers", source=source, where=where)
    if not array.size:
        return
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise FcsError("values must be finite", source=source, where=where)
    if datatype == "F" and max(abs(float(low)), abs(float(high))) > float(np.finfo(np.float32).max):
        raise FcsError("a value is too large for float32", source=source, where=where, hint="use datatype D")
    if datatype == "I":
        if float(low) < 0 or int(high) >= channel.range:
            raise FcsError(
                f"integers must lie in 0..{channel.range - 1:.0f}, got {float(low):g}..{float(high):g}",
                source=source,
                where=where,
            )
        if array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
            raise FcsError("values of an integer file must be whole numbers", source=source, where=where)


def _stored(datatype: str, bits: int, byte_order: str) -> tuple[np.dtype[Any], int]:
    """Type to convert to, and bytes of it that are written."""
    sign = "<" if byte_order == "little" else ">"
    if datatype == "F":
        return np.dtype(f"{sign}f4"), 4
    if datatype == "D":
        return np.dtype(f"{sign}f8"), 8
    return np.dtype(f"{sign}u{4 if bits == 24 else bits // 8}"), bits // 8


def _rows(arrays: Sequence[NDArray[Any]], dtypes: Sequence[tuple[np.dtype[Any], int]], byte_order: str) -> bytes:
    m = len(arrays[0])
    if len(set(dtypes)) == 1 and dtypes[0][0].itemsize == dtypes[0][1]:
        table = np.empty((m, len(arrays)), dtypes[0][0])
        for i, array in enumerate(arrays):
            table[:, i] = array
        return table.tobytes()
    parts = []
    for array, (dtype, width) in zip(arrays, dtypes, strict=True):
        words = array.astype(dtype).view(np.uint8).reshape(m, dtype.itemsize)
        parts.append(words[:, :width] if byte_order == "little" else words[:, dtype.itemsize - width :])
    return np.hstack(parts).tobytes()


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _keywords(
    channels: Sequence[Channel],
    n: int,
    extra: Mapping[str, str],
    spillover: Spillover | None,
    datatype: str,
    byte_order: str,
    source: str,
) -> list[tuple[str, str]]:
    width = {"F": 4, "D": 8, "I": 4}[datatype]
    order = range(1, width + 1) if byte_order == "little" else range(width, 0, -1)
    pairs = [
        ("$BEGINANALYSIS", "0"),
        ("$ENDANALYSIS", "0"),
        ("$BEGINSTEXT", "0"),
        ("$ENDSTEXT", "0"),
        ("$NEXTDATA", "0"),
        ("$MODE", "L"),
        ("$DATATYPE", datatype),
        ("$BYTEORD", ",".join(map(str, order))),
        ("$PAR", str(len(channels))),
        ("$TOT", str(n)),
    ]
    bits = {"F": 32, "D": 64}
    for i, c in enumerate(channels, 1):
        pairs += [
            (f"$P{i}N", c.pnn),
            (f"$P{i}B", str(bits.get(datatype, c.bits))),
            (f"$P{i}E", f"{_number(c.log_decades)},{_number(c.log_offset)}" if c.log_decades else "0,0"),
            (f"$P{i}R", _number(c.range)),
        ]
        if c.pns:
            pairs.append((f"$P{i}S", c.pns))
        if c.gain != 1.0:
            pairs.append((f"$P{i}G", _number(c.gain)))
    if spillover is not None:
        pairs.append(("$SPILLOVER", _spillover(spillover, channels, source)))
    taken = {key for key, _ in pairs}
    for key, value in extra.items():
        name = key.upper()
        if name in taken or name in _DERIVED or _of_parameter(name):
            raise FcsError(f"keyword {name} follows from the data or stands twice", source=source, where=name)
        if not name or name != name.strip() or not all(" " <= letter <= "~" for letter in name):
            raise FcsError(f"{name!r} cannot be a keyword: printable ASCII, no blanks around it", source=source)
        if not isinstance(value, str) or not value:
            raise FcsError("a keyword needs a text that is not empty", source=source, where=name)
        taken.add(name)
        pairs.append((name, value))
    return pairs


def _of_parameter(name: str) -> bool:
    return name.startswith("$P") and name[2:-1].isdigit() and name[-1] in _DERIVED_OF_PARAMETER


def _spillover(spillover: Spillover, channels: Sequence[Channel], source: str) -> str:
    known = {c.pnn for c in channels}
    if not set(spillover.channels) <= known or len(set(spillover.channels)) != len(spillover.channels):
        raise FcsError("spillover names a channel twice or one that is not written", source=source, where="$SPILLOVER")
    if not np.all(np.isfinite(spillover.matrix)) or not len(spillover.channels):
        raise FcsError("spillover must be finite and not empty", source=source, where="$SPILLOVER")
    cells = [_number(value) for value in spillover.matrix.ravel().tolist()]
    return ",".join([str(len(spillover.channels)), *spillover.channels, *cells])


def _delimiter(pairs: Sequence[tuple[str, str]], wanted: str | None, source: str) -> str:
    texts = [part for pair in pairs for part in pair]
    if any("\x00" in text for text in texts):
        raise FcsError("keywords must not hold NUL", source=source)
    if wanted is None:
        unused = [mark for mark in _DELIMITERS if not any(mark in text for text in texts)]
        wanted = unused[0] if unused else "\x1e"
    if len(wanted) != 1 or not "\x01" <= wanted <= "~" or wanted.isalnum() or wanted == "$":
        raise FcsError(f"{wanted!r} cannot be the delimiter", source=source)
    if any(wanted in key for key, _ in pairs):
        raise FcsError(f"the delimiter {wanted!r} stands in a keyword", source=source)
    return wanted


def _head(pairs: list[tuple[str, str]], mark: str, data_bytes: int, source: str) -> tuple[bytes, bytes]:
    """HEADER and TEXT, whose offsets depend on TEXT's own length."""
    fixed = mark + "".join(f"{key}{mark}{value.replace(mark, mark + mark)}{mark}" for key, value in pairs)
    begin = end = 0
    while True:
        offsets = f"$BEGINDATA{mark}{begin}{mark}$ENDDATA{mark}{end}{mark}"
        text = (fixed + offsets).encode("utf-8")
        at = HEADER_BYTES + len(text) if data_bytes else 0
        if at == begin:
            break
        begin, end = at, at + data_bytes - 1
    text_end = HEADER_BYTES + len(text) - 1
    if text_end > _HEADER_LIMIT:
        raise FcsError("TEXT is too long for the HEADER", source=source)
    data = (begin, end) if end <= _HEADER_LIMIT else (0, 0)
    header = "FCS3.1    " + "".join(f"{value:>8d}" for value in (HEADER_BYTES, text_end, *data, 0, 0))
    return header.encode("ascii"), text
