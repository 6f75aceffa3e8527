"""What an FCS file holds, as values: channels, spillover, verdict, and the events in linear units."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import FcsError, Level, QcFinding
from flowmrd.fcs.data import Columns, DataLayout, iter_chunks, open_unbuffered

BLOCK_EVENTS = 65536
_CACHE_EVENTS = 8192  # events converted at a time, so that a chunk of stored and of converted values stays in cache
_TABLE_BITS = 16  # integers up to this width are linearised through a table


class ChannelKind(StrEnum):
    """What a channel measures."""

    SCATTER = "scatter"
    FLUOR = "fluor"
    TIME = "time"
    OTHER = "other"


class Verdict(StrEnum):
    """Whether a file can be trusted: as it is, after reading its findings, or not at all."""

    OK = "ok"
    WARNING = "warning"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One parameter of the file.

    `pnn`, `pns` are `$PnN` and `$PnS` as stored, `range` is `$PnR` (0 where the file has none), `gain` is `$PnG` (1
    where it has none), `bits` the stored width. `log_decades` and `log_offset` are `$PnE` (0, 0 = linear).
    """

    index: int
    pnn: str
    pns: str = ""
    kind: ChannelKind = ChannelKind.FLUOR
    range: float = 262144.0
    gain: float = 1.0
    bits: int = 32
    log_decades: float = 0.0
    log_offset: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spillover:
    """How much of each dye (row) falls into each detector (column), and where that was said.

    `channels` are `$PnN` names, `matrix` is square with the same order, `source` a keyword or a file name.
    """

    channels: tuple[str, ...]
    matrix: NDArray[np.float64]
    source: str

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, np.float64)
        if matrix.shape != (len(self.channels), len(self.channels)):
            msg = f"a spillover matrix of {len(self.channels)} channels must be square, got {matrix.shape}"
            raise ValueError(msg)
        matrix.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FcsFile:
    """One data set of an FCS file, or a Beckman pair read as one.

    Values are handed out linear, by the convention of FlowIO's `preprocess=True`: integers masked and, where `$PnE`
    says so, taken from the log scale; divided by `$PnG` where that is set; the time channel in seconds where
    `$TIMESTEP` is given. Float data are already linear.

    `stored` holds the columns in the file's own width when the file was read into memory, and is `None` when `blocks`
    streams from the disk.
    """

    path: str
    version: str
    dataset: int
    datasets: int
    keywords: Mapping[str, str]
    channels: tuple[Channel, ...]
    event_count: int
    spillover: Spillover | None
    findings: tuple[QcFinding, ...]
    time_step: float | None
    pair: bool = False
    layout: DataLayout = field(repr=False)
    stored: tuple[NDArray[Any], ...] | None = field(default=None, repr=False)
    stamp: tuple[int, int] = field(default=(0, 0), repr=False)

    def __reduce__(self) -> tuple[object, ...]:
        # Files cross process borders in a batch; the read-only view of the keywords cannot.
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return _restored, ({**values, "keywords": dict(self.keywords)},)

    @property
    def verdict(self) -> Verdict:
        """`ok`, or `warning` where any finding is more than information. A refused file is an `FcsError` instead."""
        return Verdict.WARNING if any(f.level is not Level.INFO for f in self.findings) else Verdict.OK

    def blocks(
        self, indices: Sequence[int] | None = None, *, block_events: int = BLOCK_EVENTS
    ) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Walk through the events in linear units.

        Parameters
        ----------
        indices : channels wanted, 0-based; all by default
        block_events : events per block

        Yields
        ------
        (start, values) : row of the first event, and (k, m) float64. The array is **reused**: copy what you keep.

        Raises
        ------
        FcsError : the file changed since it was opened
        """
        wanted = list(range(len(self.channels))) if indices is None else [int(i) for i in indices]
        for i in wanted:
            if not 0 <= i < len(self.channels):
                msg = f"channel index {i} is outside 0..{len(self.channels) - 1}"
                raise IndexError(msg)
        if block_events < 1:
            msg = f"block_events must be positive, got {block_events}"
            raise ValueError(msg)
        return self._walk(wanted, block_events)

    def _walk(self, wanted: list[int], block_events: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
        n = self.event_count
        out = np.empty((len(wanted), min(block_events, n)), np.float64)
        scales = [_Scale.of(self.channels[i], self.layout.types[i], self.time_step) for i in wanted]
        if self.stored is not None:
            for start in range(0, n, block_events):
                m = min(block_events, n - start)
                for j, i in enumerate(wanted):
                    scales[j].apply(self.stored[i][start : start + m], out[j, :m])
                yield start, out[:, :m]
            return
        runs = _runs(wanted, scales)
        filled = base = 0
        with open_unbuffered(self.path) as handle:
            self._check_unchanged()
            chunk = min(_CACHE_EVENTS, -(-block_events // 8) * 8)
            chunks = iter_chunks(handle, self.layout, chunk_events=chunk, native=False, source=self._name)
            for start, columns in chunks:
                m = min(chunk, n - start)
                taken = 0
                while taken < m:
                    step = min(m - taken, block_events - filled)
                    _fill(out[:, filled : filled + step], columns, taken, wanted, scales, runs)
                    taken += step
                    filled += step
                    if filled == block_events or base + filled == n:
                        yield base, out[:, :filled]
                        base += filled
                        filled = 0

    def column(self, index: int) -> NDArray[np.float64]:
        """One channel in linear units, (n,) float64."""
        out = np.empty(self.event_count, np.float64)
        for start, values in self.blocks([index]):
            out[start : start + values.shape[1]] = values[0]
        return out

    def events(self, indices: Sequence[int] | None = None) -> NDArray[np.float32] | NDArray[np.float64]:
        """All values in linear units, (k, n), read-only.

        float32 where every value is exact in it (float32 data, or integers of at most 24 bits, unscaled), else float64.
        """
        wanted = list(range(len(self.channels))) if indices is None else list(indices)
        scales = [_Scale.of(self.channels[i], self.layout.types[i], self.time_step) for i in wanted]
        exact = all(s.identity for s in scales) and all(
            self.layout.types[i] == "F"
            or (self.layout.types[i] == "I" and (self.layout.masks[i] or 2 ** self.layout.bits[i] - 1) < 1 << 24)
            for i in wanted
        )
        if exact and self.stored is not None and indices is None:
            whole = self.stored[0].base
            if isinstance(whole, np.ndarray) and whole.dtype == np.float32 and whole.shape == self._shape:
                return whole
        out = np.empty((len(wanted), self.event_count), np.float32 if exact else np.float64)
        for start, values in self.blocks(wanted):
            out[:, start : start + values.shape[1]] = values
        out.flags.writeable = False
        return out

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.channels), self.event_count

    @property
    def _name(self) -> str:
        return Path(self.path).name

    def _check_unchanged(self) -> None:
        if self.stamp != file_stamp(self.path):
            raise FcsError(
                "the file changed after it was opened",
                source=self._name,
                hint="open it again, after the acquisition or copy has finished",
            )


def _restored(values: dict[str, Any]) -> FcsFile:
    return FcsFile(**{**values, "keywords": MappingProxyType(values["keywords"])})


def file_stamp(path: str | Path) -> tuple[int, int]:
    """Size and time of last change, to notice a file that is still being written."""
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scale:
    """From stored to linear values of one channel."""

    factor: float = 1.0
    divisor: float = 1.0
    decades: float = 0.0
    offset: float = 1.0
    span: float = 1.0
    table: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, channel: Channel, data_type: str, time_step: float | None) -> _Scale:
        if channel.kind is ChannelKind.TIME:
            # A gain on time makes no sense, yet Diva writes one; FlowIO drops it too.
            return cls(factor=1.0 if time_step is None else time_step)
        if data_type == "I" and channel.log_decades > 0 and channel.range > 0:
            scale = cls(decades=channel.log_decades, offset=channel.log_offset, span=channel.range)
            if channel.bits <= _TABLE_BITS:
                table = np.arange(2**channel.bits, dtype=np.float64)
                with np.errstate(all="ignore"):
                    scale._power(table)
                return cls(decades=channel.log_decades, table=table)
            return scale
        gain = channel.gain
        if channel.log_decades > 0 or not np.isfinite(gain) or gain <= 0:
            gain = 1.0
        return cls(divisor=gain)

    @property
    def identity(self) -> bool:
        return self.factor == self.divisor == 1.0 and not self.decades

    def _power(self, values: NDArray[np.float64]) -> None:
        np.multiply(values, self.decades, out=values)
        np.divide(values, self.span, out=values)
        np.power(10.0, values, out=values)
        np.multiply(values, self.offset, out=values)

    def apply(self, stored: NDArray[Any], out: NDArray[np.float64]) -> None:
        if self.table is not None:
            np.take(self.table, stored, out=out, mode="clip")
            return
        # Values that are not finite are reported once, by the scan; arithmetic on them is not news.
        with np.errstate(all="ignore"):
            np.copyto(out, stored)
            self.finish(out)

    def finish(self, out: NDArray[np.float64]) -> None:
        """Take stored values, already in `out`, to linear units (where no table does it)."""
        if self.decades:
            self._power(out)
        elif self.factor != 1.0:
            np.multiply(out, self.factor, out=out)
        elif self.divisor != 1.0:
            np.divide(out, self.divisor, out=out)


def _runs(wanted: Sequence[int], scales: Sequence[_Scale]) -> list[tuple[int, int, int]]:
    """Join channels that follow each other into (first wanted, past the last wanted, first channel); tables apart."""
    runs: list[tuple[int, int, int]] = []
    for j, (i, scale) in enumerate(zip(wanted, scales, strict=True)):
        if scale.table is not None:
            continue
        if runs and runs[-1][1] == j and runs[-1][2] + j - runs[-1][0] == i:
            runs[-1] = (runs[-1][0], j + 1, runs[-1][2])
        else:
            runs.append((j, j + 1, i))
    return runs


def _fill(
    out: NDArray[np.float64],
    columns: Columns,
    at: int,
    wanted: Sequence[int],
    scales: Sequence[_Scale],
    runs: Sequence[tuple[int, int, int]],
) -> None:
    """Convert the events from `at` of a chunk into `out` (k, m)."""
    m = out.shape[1]
    if not isinstance(columns, np.ndarray):
        for j, i in enumerate(wanted):
            scales[j].apply(columns[i][at : at + m], out[j])
        return
    # One call for channels that lie side by side: the chunk is transposed while it is converted.
    with np.errstate(all="ignore"):
        for first, last, channel in runs:
            np.copyto(out[first:last], columns[channel : channel + last - first, at : at + m])
        for j, scale in enumerate(scales):
            if scale.table is not None:
                np.take(scale.table, columns[wanted[j], at : at + m], out=out[j], mode="clip")
            elif not scale.identity:
                scale.finish(out[j])


# What instruments call things that are neither light scatter nor fluorescence. Names of detectors, never of markers.
_SCATTER = re.compile(
    r"(?:^|[^A-Z])[VBYRUG]{0,2}(?:FSC|SSC)(?:$|[^A-Z]|[AHW](?:$|[^A-Z]))"  # FSC-A, SSC1-Height, 488-FSC, VSSC-A, FSCW
    r"|^(?:FS|SS)(?:$|[^A-Z])"  # FS INT, SS-A, FS00-A
    r"|^(?:FALS|RALS|LALS)(?:$|[^A-Z])|^(?:FORWARD|SIDE) ?SCATTER"
)
_WIDTH = re.compile(r"(?:[-_ ]W|[-_ ]?WIDTH|TOF|\dW)$")
_OTHER = re.compile(
    r"^EVENT|^HDR[-_]|^INDEX$|^(?:PULSE )?WIDTH$|^CELL[-_ ]?LENGTH$|^TIME.|^COMPUTED TIME$|^UNUSED"
    r"|^(?:EV|DC|RMI)$|^(?:CENTER|OFFSET|RESIDUAL|AMPLITUDE)$|^BEAD[-_ ]?DIST$|^BC[-_]SEPARATION|^MAHALANOBIS"
    r"|^FILE(?:[-_ ].*|NUM.*)?$|^SAMPLE[-_ ]?(?:ID|NUMBER)$|^(?:DROP|SORT)[-_ ]|^CLASSIFIER$|^OBJECT ?NUMBER$"
    r"|EVENT ?(?:NUMBER|COUNT)$|(?:^|[-_ ])ID$"
)


def channel_kind(pnn: str, pns: str = "") -> ChannelKind:
    """Judge from its names what a channel measures.

    The detector name decides; the label only reveals a clock under a vendor's name (`HDR-TM` labelled `Time`).
    """
    name = " ".join(pnn.upper().split())
    if name == "TIME":
        return ChannelKind.TIME
    if _SCATTER.search(name):
        return ChannelKind.SCATTER
    if _OTHER.search(name):
        return ChannelKind.TIME if " ".join(pns.upper().split()) == "TIME" else ChannelKind.OTHER
    if _WIDTH.search(name):
        return ChannelKind.OTHER
    return ChannelKind.FLUOR
