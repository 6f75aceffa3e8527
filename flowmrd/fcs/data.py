"""The DATA segment: how events lie in the file, and the loop that turns bytes into columns.

Everything here works on small buffers that are allocated once and stay in the processor's cache: a chunk is read into
place, byte-swapped and masked there, and leaves as columns. That is why reading costs little more than copying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import FcsError

CHUNK_BYTES = 1 << 19


class Packing(StrEnum):
    """How the parameters of one event follow each other."""

    BYTES = "bytes"  # every parameter in whole bytes
    BITS = "bits"  # one continuous stream of bits, no padding
    PADDED_BITS = "padded bits"  # bits within an event, each event starting on a byte


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLayout:
    """Where the events lie and how they are coded.

    `begin` is the absolute byte of the first event, `types` one of I, F, D per parameter, `bits` the width as stored,
    `byte_order` the permutation of `$BYTEORD` (1 = least significant), `masks` the bits of an integer that are data
    (0 where all are).
    """

    begin: int
    events: int
    types: tuple[str, ...]
    bits: tuple[int, ...]
    byte_order: tuple[int, ...]
    masks: tuple[int, ...]
    packing: Packing = Packing.BYTES

    @property
    def event_bits(self) -> int:
        """Bits from one event to the next."""
        total = sum(self.bits)
        return -(-total // 8) * 8 if self.packing is Packing.PADDED_BITS else total

    @property
    def nbytes(self) -> int:
        """Bytes of all events."""
        return -(-self.events * self.event_bits // 8)

    @property
    def big_endian(self) -> bool:
        """Whether the most significant byte comes first."""
        return len(self.byte_order) > 1 and self.byte_order[0] > self.byte_order[-1]

    @property
    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """Native type of each column: its own width, rounded up to one that numpy has."""
        return tuple(_native(kind, bits) for kind, bits in zip(self.types, self.bits, strict=True))


def _native(kind: str, bits: int) -> np.dtype[Any]:
    if kind in {"F", "D"}:
        return np.dtype(np.float32 if kind == "F" else np.float64)
    for width in (8, 16, 32):
        if bits <= width:
            return np.dtype(f"u{width // 8}")
    return np.dtype(np.uint64)


def straight(order: tuple[int, ...]) -> bool:
    """Whether a byte order simply ascends or descends (as opposed to 3,4,1,2)."""
    return order in {tuple(range(1, len(order) + 1)), tuple(range(len(order), 0, -1))}


Columns = NDArray[Any] | Sequence[NDArray[Any]]


def iter_chunks(
    handle: BinaryIO,
    layout: DataLayout,
    *,
    chunk_events: int = 0,
    on_raw: Callable[[NDArray[Any]], None] | None = None,
    native: bool = True,
    source: str = "",
) -> Iterator[tuple[int, Columns]]:
    """Yield (first row, columns) over the whole segment; the columns live in a buffer that the next step overwrites.

    Columns are native-endian and masked: a (k, m) view where all parameters share a type, else a list of k arrays.
    `on_raw` sees the (m, k) integers before they are masked (uniform whole-byte integers only). With `native=False`
    values that need no mask may keep the file's byte order: whoever copies them anyway swaps them in the same step.
    """
    if not layout.events:
        return
    stride = layout.event_bits / 8
    chunk = chunk_events or max(8, int(CHUNK_BYTES / stride))
    chunk = min(-(-chunk // 8) * 8, -(-layout.events // 8) * 8)  # whole bytes also where events are packed in bits
    buffer = np.empty(-(-chunk * layout.event_bits // 8), np.uint8)
    view = buffer.data
    decode = _decoder(layout, buffer, on_raw, native=native)
    handle.seek(layout.begin)
    for start in range(0, layout.events, chunk):
        m = min(chunk, layout.events - start)
        need = -(-m * layout.event_bits // 8)
        got = 0
        while got < need:
            step = handle.readinto(view[got:need])  # type: ignore[attr-defined]
            if not step:
                raise FcsError(
                    f"the file ended while reading DATA: event {start:,} of {layout.events:,}",
                    source=source,
                    where=f"byte {layout.begin + int(start * stride) + got:,}",
                    hint="the file changed or is still being copied; copy it again",
                )
            got += step
        yield start, decode(m)


def _decoder(
    layout: DataLayout, buffer: NDArray[np.uint8], on_raw: Callable[[NDArray[Any]], None] | None, *, native: bool
) -> Callable[[int], Columns]:
    """Choose the cheapest way to turn `buffer` into columns."""
    if layout.packing is not Packing.BYTES:
        return _bit_decoder(layout, buffer)
    dtypes = set(layout.dtypes)
    widths = set(layout.bits)
    k = len(layout.bits)
    plain = straight(layout.byte_order) or widths == {8}
    if len(dtypes) == len(widths) == 1 and plain and next(iter(dtypes)).itemsize * 8 == next(iter(widths)):
        if not native and not any(layout.masks):
            stored = next(iter(dtypes)).newbyteorder(">" if layout.big_endian else "<")
            table = buffer.view(stored).reshape(-1, k)
            return lambda m: table[:m].T
        return _uniform_decoder(layout, buffer, k, next(iter(dtypes)), on_raw)
    return _mixed_decoder(layout, buffer)


def _uniform_decoder(
    layout: DataLayout,
    buffer: NDArray[np.uint8],
    k: int,
    dtype: np.dtype[Any],
    on_raw: Callable[[NDArray[Any]], None] | None,
) -> Callable[[int], Columns]:
    table = buffer.view(dtype).reshape(-1, k)
    swap = dtype.itemsize > 1 and layout.big_endian != (np.dtype(np.uint16).newbyteorder(">").isnative)
    bits = table.view(f"u{dtype.itemsize}")
    masks = np.array([m or 2 ** layout.bits[0] - 1 for m in layout.masks], bits.dtype) if any(layout.masks) else None

    def decode(m: int) -> Columns:
        if swap:
            bits[:m].byteswap(inplace=True)
        if on_raw is not None:
            on_raw(bits[:m])
        if masks is not None:
            np.bitwise_and(bits[:m], masks, out=bits[:m])
        return table[:m].T

    return decode


def _mixed_decoder(layout: DataLayout, buffer: NDArray[np.uint8]) -> Callable[[int], Columns]:
    """Any mix of types and of widths in whole bytes, any byte order."""
    stride = layout.event_bits // 8
    events = buffer.size // stride
    plans: list[tuple[NDArray[Any], NDArray[np.uint8] | None, list[int], np.dtype[Any], int]] = []
    offset = 0
    for bits, dtype, mask in zip(layout.bits, layout.dtypes, layout.masks, strict=True):
        width = bits // 8
        if straight(layout.byte_order) or width == 1:
            significance = list(range(width, 0, -1)) if layout.big_endian else list(range(1, width + 1))
        else:
            significance = list(layout.byte_order)  # the reader has checked that its length is the width
        if width == dtype.itemsize and (straight(layout.byte_order) or width == 1):
            stored = dtype.newbyteorder(">" if layout.big_endian else "<")
            column: NDArray[Any] = np.ndarray((events,), stored, buffer.data, offset, (stride,))
            plans.append((column, None, [], dtype, mask))
        else:
            pad = np.zeros((events, dtype.itemsize), np.uint8)
            column = np.ndarray((events, width), np.uint8, buffer.data, offset, (stride, 1))
            plans.append((column, pad, [s - 1 for s in significance], dtype, mask))
        offset += width

    def decode(m: int) -> Columns:
        columns: list[NDArray[Any]] = []
        for column, pad, places, dtype, mask in plans:
            if pad is None:
                values = column[:m].astype(dtype)
            else:
                pad[:m, places] = column[:m]  # little-endian words, high bytes stay 0
                values = pad[:m].reshape(-1).view(dtype.newbyteorder("<")).astype(dtype)
            if mask:
                values &= values.dtype.type(mask)
            columns.append(values)
        return columns

    return decode


def _bit_decoder(layout: DataLayout, buffer: NDArray[np.uint8]) -> Callable[[int], Columns]:
    """Parameters packed bit by bit: most significant bit first where bytes are, else least significant first."""
    per_event = layout.event_bits
    big = layout.big_endian

    def decode(m: int) -> Columns:
        flat = np.unpackbits(buffer[: -(-m * per_event // 8)], bitorder="big" if big else "little")
        rows = flat[: m * per_event].reshape(m, per_event)
        columns: list[NDArray[Any]] = []
        offset = 0
        for bits, dtype, mask in zip(layout.bits, layout.dtypes, layout.masks, strict=True):
            values = np.zeros(m, np.uint64)
            for place in range(bits):
                shift = np.uint64(bits - 1 - place if big else place)
                values |= rows[:, offset + place].astype(np.uint64) << shift
            if mask:
                values &= np.uint64(mask)
            columns.append(values.astype(dtype))
            offset += bits
        return columns

    return decode


def open_unbuffered(path: str | Path) -> BinaryIO:
    """Open for reading straight into our own buffers."""
    return Path(path).open("rb", buffering=0)
