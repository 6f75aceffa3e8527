"""From a path to an `FcsFile`: open to stream, read into memory, scan values, pair Beckman's two data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import FcsError, QcFinding
from flowmrd.fcs.data import Columns, DataLayout, iter_chunks, open_unbuffered
from flowmrd.fcs.fcsfile import Channel, ChannelKind, FcsFile, Verdict, file_stamp
from flowmrd.fcs.integrity import check_crc, listed, locate_data, read_parameters
from flowmrd.fcs.segments import VERSIONS, Header, info, quoted, to_integer, to_real, violation, walk_datasets, warning
from flowmrd.fcs.spillover import check_spillover, detector_number, read_dfc, read_spillover

_PARAMETER_KEYWORD = "$P"
_RARE = 0.01  # share of events below which bits above the range are overflow, not tags


def open_fcs(path: str | Path, *, dataset: int | None = None) -> FcsFile:
    """Parse and check an FCS file; its events stay on disk and are streamed by `FcsFile.blocks`.

    Parameters
    ----------
    path : the file
    dataset : which data set of several, from 1. By default the first, except that a Beckman pair (the same events in
        10 and 20 bits) is read as one: values of the second, marker names of the first.

    Raises
    ------
    FcsError : the file is not what it says it is; source, where and hint say what and what to do
    OSError : the file cannot be opened
    """
    source = Path(path).name
    size = file_stamp(path)[0]
    with open_unbuffered(path) as handle:
        datasets, chain = walk_datasets(handle, size, source)
        count = len(datasets)
        if dataset is not None and not 1 <= dataset <= count:
            raise FcsError(f"there is no data set {dataset}: the file has {count}", source=source, hint="count from 1")
        if dataset is None and count == 2 and (pair := _read_pair(handle, datasets, path, size)) is not None:
            return replace(pair, findings=pair.findings + tuple(chain))
        number = dataset or 1
        fcs = _read_dataset(handle, datasets[number - 1], path, size, number, count)
        if dataset is None and count > 1:
            chain.append(
                warning(
                    "MULTIPLE_DATASETS",
                    f"the file has {count} data sets; the first is read, choose one by number",
                    "$NEXTDATA",
                )
            )
        return replace(fcs, findings=fcs.findings + tuple(chain))


def read_fcs(path: str | Path, *, dataset: int | None = None) -> FcsFile:
    """Like `open_fcs`, with all events in memory (columns, in the file's own width) and their values checked.

    Peak memory is the data's size plus a small buffer.
    """
    fcs = open_fcs(path, dataset=dataset)
    dtypes = fcs.layout.dtypes
    k, n = len(fcs.channels), fcs.event_count
    uniform = len(set(dtypes)) == 1
    if uniform:
        whole = np.empty((k, n), dtypes[0])
        stored = tuple(whole)
    else:
        stored = tuple(np.empty(n, dtype) for dtype in dtypes)
    scan = _Scan(fcs.layout)
    with open_unbuffered(path) as handle:
        chunks = iter_chunks(handle, fcs.layout, on_raw=scan.raw, native=False, source=Path(path).name)
        for start, columns in chunks:
            m = columns.shape[1] if isinstance(columns, np.ndarray) else len(columns[0])
            if uniform and isinstance(columns, np.ndarray):
                part = whole[:, start : start + m]
                np.copyto(part, columns)
                scan.block(part)
            else:
                for i, column in enumerate(columns):
                    stored[i][start : start + m] = column
                scan.columns(columns)
    if uniform:
        whole.flags.writeable = False
    for column in stored:
        column.flags.writeable = False
    return replace(fcs, stored=stored, findings=fcs.findings + tuple(scan.findings(fcs.channels)))


def scan_values(fcs: FcsFile) -> FcsFile:
    """Check every value of a streamed file (NaN, infinity, range) in one pass; returns it with the findings added."""
    if fcs.stored is not None:
        return fcs  # reading has checked them
    scan = _Scan(fcs.layout)
    with open_unbuffered(fcs.path) as handle:
        for _, columns in iter_chunks(handle, fcs.layout, on_raw=scan.raw, source=Path(fcs.path).name):
            scan.columns(columns)
    return replace(fcs, findings=fcs.findings + tuple(scan.findings(fcs.channels)))


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def inspect_fcs(path: str | Path, *, dataset: int | None = None) -> dict[str, Any]:
    """Everything `flowmrd inspect --json` says about one file; a refused file is described, not raised.

    Raises
    ------
    OSError : the file cannot be opened
    """
    digest = file_sha256(path)
    try:
        fcs = scan_values(open_fcs(path, dataset=dataset))
    except FcsError as error:
        message = f"{error.message} ({error.hint})" if error.hint else error.message
        refusal = violation("REFUSED", message, error.where)
        return {
            "file": str(path),
            "dataset": dataset,
            "datasets": None,
            "version": _stated_version(path),
            "events": None,
            "channels": [],
            "spillover": None,
            "findings": [_finding(refusal)],
            "sha256": digest,
            "verdict": str(Verdict.REFUSED),
        }
    spillover = fcs.spillover
    return {
        "file": str(path),
        "dataset": fcs.dataset,
        "datasets": fcs.datasets,
        "version": fcs.version,
        "events": fcs.event_count,
        "channels": [{"index": c.index, "pnn": c.pnn, "pns": c.pns, "kind": str(c.kind)} for c in fcs.channels],
        "spillover": None
        if spillover is None
        else {"channels": list(spillover.channels), "matrix": spillover.matrix.tolist()},
        "findings": [_finding(f) for f in fcs.findings],
        "sha256": digest,
        "verdict": str(fcs.verdict),
    }


def _stated_version(path: str | Path) -> str | None:
    """The version a refused file claims, if it is one."""
    with Path(path).open("rb") as handle:
        magic = handle.read(6)
    version = magic[3:].decode("latin-1")
    return version if magic.startswith(b"FCS") and version in VERSIONS else None


def _finding(finding: QcFinding) -> dict[str, str]:
    return {"level": str(finding.level), "code": finding.code, "message": finding.message, "where": finding.where}


# ------------------------------------------------------------------------------------------------------- one data set

_Dataset = tuple[Header, dict[str, str], list[QcFinding]]


def _read_dataset(handle: BinaryIO, parsed: _Dataset, path: str | Path, size: int, number: int, count: int) -> FcsFile:
    header, keywords, findings = parsed
    source = Path(path).name
    findings = list(findings)
    parameters, more = read_parameters(header, keywords, source)
    findings += more
    layout, parameters, more = locate_data(handle, header, keywords, parameters, size=size, source=source)
    findings += more
    findings += check_crc(handle, header, _last_byte(header, keywords, layout, size))
    time_step, more = _time_step(keywords, parameters.channels)
    findings += more
    spillover, more = read_spillover(keywords, parameters.channels)
    findings += more
    return FcsFile(
        path=str(path),
        version=header.version,
        dataset=number,
        datasets=count,
        keywords=MappingProxyType(keywords),
        channels=parameters.channels,
        event_count=layout.events,
        spillover=spillover,
        findings=tuple(findings),
        time_step=time_step,
        layout=layout,
        stamp=file_stamp(path),
    )


def _last_byte(header: Header, keywords: Mapping[str, str], layout: DataLayout, size: int) -> int:
    """Absolute byte where the last segment of a data set ends."""
    stated = (to_integer(keywords.get(key)) for key in ("$ENDSTEXT", "$ENDANALYSIS"))
    others = [header.base + end for end in stated if end and header.base + end < size]
    return max(layout.begin + layout.nbytes - 1, header.base + header.text[1], *others)


def _time_step(keywords: Mapping[str, str], channels: Sequence[Channel]) -> tuple[float | None, list[QcFinding]]:
    clock = next((c for c in channels if c.kind is ChannelKind.TIME), None)
    if clock is None:
        return None, [info("TIME_MISSING", "the file has no time channel")]
    text = keywords.get("$TIMESTEP", "")
    step = to_real(text)
    if step is not None and step > 0:
        return step, []
    why = "is missing" if not text.strip() else f"is {quoted(text)}, not a number of seconds"
    return None, [info("TIME_TICKS", f"$TIMESTEP {why}; {clock.pnn} stays in ticks", "$TIMESTEP")]


# ------------------------------------------------------------------------------------------------------ Beckman's pair


def _read_pair(handle: BinaryIO, datasets: Sequence[_Dataset], path: str | Path, size: int) -> FcsFile | None:
    """Two data sets of the same events, coarse (FCS 2.0) and fine (FCS 3.0), as one; `None` where they are not that."""
    coarse_header, fine_header = datasets[0][0], datasets[1][0]
    if coarse_header.version != "2.0" or fine_header.version == "2.0":
        return None
    counts = [to_integer(keywords.get("$TOT")) for _, keywords, _ in datasets]
    if counts[0] is None or counts[0] != counts[1]:
        return None
    try:
        coarse = _read_dataset(handle, datasets[0], path, size, 1, 2)
        fine = _read_dataset(handle, datasets[1], path, size, 2, 2)
    except FcsError:
        return None
    if coarse.event_count != fine.event_count or {*coarse.layout.types, *fine.layout.types} != {"I"}:
        return None
    if max(c.range for c in coarse.channels) >= max(c.range for c in fine.channels):
        return None
    channels, named = _with_labels(fine.channels, coarse.channels)
    structural = {"$PAR", "$TOT", "$MODE", "$DATATYPE", "$BYTEORD", "$NEXTDATA", "$TIMESTEP"}
    keywords = {
        key: value
        for key, value in coarse.keywords.items()
        if key not in structural and not key.startswith((_PARAMETER_KEYWORD, "$BEGIN", "$END"))
    }
    keywords.update(fine.keywords)
    spillover, findings = read_spillover(fine.keywords, channels)
    if spillover is None:
        spillover = read_dfc(coarse.keywords, channels, findings)
        findings += check_spillover(spillover) if spillover is not None else []
    where = "no spillover" if spillover is None else f"spillover of {spillover.source}"
    ours = [f for f in fine.findings if not f.code.startswith("SPILLOVER")] + findings
    ours.append(
        info(
            "LMD_PAIR",
            f"two data sets of the same {fine.event_count:,} events read as one: values of the second,"
            f" {named} channel names of the first, {where}",
            "$NEXTDATA",
        )
    )
    return replace(
        fine,
        keywords=MappingProxyType(keywords),
        channels=channels,
        spillover=spillover,
        findings=tuple(ours),
        pair=True,
    )


def _with_labels(fine: Sequence[Channel], coarse: Sequence[Channel]) -> tuple[tuple[Channel, ...], int]:
    """Give the fine channels the marker names of the coarse ones: by detector, else by position.

    A coarse label that only repeats the detector's name says nothing. A detector may be stored twice, log and linear.
    """
    named = [c for c in coarse if c.pns.strip() and c.pns.strip() != c.pnn.strip()]
    if any(detector_number(c.pnn) is not None for c in fine):
        labels = {_identity(c): c.pns for c in reversed(named)}
    elif len(fine) == len(coarse):
        labels = {_identity(f): c.pns for f, c in zip(fine, coarse, strict=True) if c in named}
    else:
        labels = {}
    result = tuple(
        replace(c, pns=labels[_identity(c)]) if not c.pns.strip() and _identity(c) in labels else c for c in fine
    )
    return result, sum(1 for old, new in zip(fine, result, strict=True) if old.pns != new.pns)


def _identity(channel: Channel) -> object:
    number = detector_number(channel.pnn)
    if number is not None:
        return number
    head = channel.pnn.strip().upper().replace("-", " ").split()
    return head[0] if head else ""


# --------------------------------------------------------------------------------------------------------------- values


class _Scan:
    """Running minimum, maximum and count of unusable values per channel.

    Mutable on purpose: it is filled inside the reading loop, where a new value per chunk would cost more than the
    check itself.
    """

    __slots__ = ("highest", "infinite", "layout", "lowest", "masked", "nan", "outside")

    def __init__(self, layout: DataLayout) -> None:
        k = len(layout.types)
        self.layout = layout
        self.lowest, self.highest = np.full(k, np.inf), np.full(k, -np.inf)
        self.nan, self.infinite = [0] * k, [0] * k
        self.masked = np.zeros(k, np.int64) if any(layout.masks) else None
        self.outside: NDArray[Any] | None = None

    def raw(self, table: NDArray[Any]) -> None:
        """(m, k) integers before masking: count those with bits outside the mask."""
        if self.masked is None:
            return
        if self.outside is None:
            bits = 8 * table.dtype.itemsize
            self.outside = np.array([~m & (1 << bits) - 1 if m else 0 for m in self.layout.masks], table.dtype)
        if table.size and np.any(np.bitwise_or.reduce(table, axis=0) & self.outside):
            self.masked += np.count_nonzero(table & self.outside, axis=0)

    def block(self, part: NDArray[Any]) -> None:
        """(k, m) values, each channel contiguous and still in cache."""
        self._update(part.min(axis=1), part.max(axis=1), part)

    def columns(self, columns: Columns) -> None:
        """Check the columns of one chunk as they come from the file."""
        if isinstance(columns, np.ndarray):
            low, high = _extremes(columns.T)
            self._update(low, high, columns)
            return
        for i, values in enumerate(columns):
            low, high = values.min(), values.max()
            if np.isfinite(low) and np.isfinite(high):
                self._widen(i, float(low), float(high))
            else:
                self._unusable(i, values)

    def _update(self, low: NDArray[Any], high: NDArray[Any], columns: NDArray[Any]) -> None:
        if low.dtype.kind != "f" or (np.isfinite(low).all() and np.isfinite(high).all()):
            np.minimum(self.lowest, low, out=self.lowest)
            np.maximum(self.highest, high, out=self.highest)
            return
        for i in range(len(low)):
            if np.isfinite(low[i]) and np.isfinite(high[i]):
                self._widen(i, float(low[i]), float(high[i]))
            else:
                self._unusable(i, columns[i])

    def _widen(self, i: int, low: float, high: float) -> None:
        self.lowest[i] = min(self.lowest[i], low)
        self.highest[i] = max(self.highest[i], high)

    def _unusable(self, i: int, values: NDArray[Any]) -> None:
        nan = int(np.count_nonzero(np.isnan(values)))
        self.nan[i] += nan
        self.infinite[i] += int(np.count_nonzero(~np.isfinite(values))) - nan
        usable = values[np.isfinite(values)]
        if usable.size:
            self._widen(i, float(usable.min()), float(usable.max()))

    def findings(self, channels: Sequence[Channel]) -> list[QcFinding]:
        found: list[QcFinding] = []
        for code, what, counts in (("VALUES_NAN", "NaN", self.nan), ("VALUES_INFINITE", "infinite", self.infinite)):
            hit = [(c, n) for c, n in zip(channels, counts, strict=True) if n]
            if hit:
                each = listed(f"{c.pnn}: {n:,}" for c, n in hit)
                found.append(
                    violation(
                        code,
                        f"{sum(n for _, n in hit):,} values are {what} ({each}); their events cannot be gated",
                        hit[0][0].pnn,
                    )
                )
        beyond = [
            c
            for c, kind, top in zip(channels, self.layout.types, self.highest.tolist(), strict=True)
            if kind == "I" and c.range and top >= c.range
        ]
        if beyond:
            found.append(
                warning(
                    "RANGE_EXCEEDED", f"integers of {listed(c.pnn for c in beyond)} reach or pass $PnR", beyond[0].pnn
                )
            )
        above = [
            c
            for c, kind, top in zip(channels, self.layout.types, self.highest.tolist(), strict=True)
            if kind != "I" and c.range and c.kind is not ChannelKind.TIME and top > c.range
        ]
        if above:
            found.append(info("RANGE_PASSED", f"values of {listed(c.pnn for c in above)} lie above $PnR", above[0].pnn))
        hit = [] if self.masked is None else [(c, n) for c, n in zip(channels, self.masked.tolist(), strict=True) if n]
        if hit:
            # Tags stand in every event; bits in a few are values that did not fit their range.
            rare = any(n < self.layout.events * _RARE for _, n in hit)
            each = listed(f"{c.pnn}: {n:,}" for c, n in hit)
            message = f"values hold bits above $PnR ({each}), which FCS masks"
            make = warning if rare else info
            found.append(make("BITS_MASKED", message + (": values beyond the range" if rare else ""), hit[0][0].pnn))
        return found


def _extremes(table: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Minimum and maximum of each column of an (m, k) table.

    numpy reduces long rows far faster than short ones, so several events are folded into one row first.
    """
    m, k = table.shape
    fold = min(m, max(1, 1024 // k))
    whole = m - m % fold
    wide = table[:whole].reshape(-1, fold * k)
    parts = [(wide.min(axis=0).reshape(fold, k), wide.max(axis=0).reshape(fold, k))]
    if whole < m:
        parts.append((table[whole:], table[whole:]))
    lows, highs = zip(*((low.min(axis=0), high.max(axis=0)) for low, high in parts), strict=True)
    return np.minimum.reduce(lows), np.maximum.reduce(highs)
