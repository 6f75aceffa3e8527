"""From linear values to display bins, as bytes: equal bins in scaled units, without scaling every event.

A bin's edges are taken to linear values once. A table by the upper half of a float32 (sign, exponent, 7 bits) then
gives the bin of the lowest value that shares it, and one comparison with the next edge the rest: 3 ns a value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.transforms import Linear, Transform

BINS = 256
Binner = Callable[[NDArray[np.float64]], NDArray[np.uint8]]
_HALVES = 1 << 16


def make_binner(transform: Transform, lo: float, hi: float) -> Binner:
    """Make the function that bins linear values of one channel.

    Parameters
    ----------
    transform : scale of the axis
    lo, hi : ends of the axis, scaled units; `BINS` equal bins lie between them

    Returns
    -------
    a function of linear values (n,) that returns their bins (n,). What lies outside is in the border bins, NaN in
    bin 0. Values are rounded to float32 first: one within that rounding of an edge may be in the bin beside it.

    Examples
    --------
    >>> make_binner(Linear(T=1000.0), 0.0, 1.0)(np.array([-5.0, 0.0, 500.0, 999.0, 2000.0])).tolist()
    [0, 0, 128, 255, 255]
    """
    if isinstance(transform, Linear):
        factor = BINS / (hi - lo)
        return partial(
            _bin_linear, slope=factor / (transform.T + transform.A), start=(float(transform.forward(0.0)) - lo) * factor
        )
    with np.errstate(over="ignore"):
        edges = transform.inverse(lo + (hi - lo) / BINS * np.arange(1, BINS)).astype(np.float32)
    first, several = _first_bins(edges)
    if several:
        return partial(_bin_scaled, transform=transform, lo=lo, factor=BINS / (hi - lo))
    return partial(
        _bin_by_table, first=first, following=np.append(edges, np.float32(np.nan))
    )  # no edge follows the last bin


def _bin_linear(values: NDArray[np.float64], *, slope: float, start: float) -> NDArray[np.uint8]:
    return _as_bins(np.add(place := np.multiply(values, slope), start, out=place))


def _bin_scaled(values: NDArray[np.float64], *, transform: Transform, lo: float, factor: float) -> NDArray[np.uint8]:
    place = np.subtract(transform.forward(values), lo)
    return _as_bins(np.multiply(place, factor, out=place))


def _as_bins(place: NDArray[np.float64]) -> NDArray[np.uint8]:
    np.fmax(place, 0.0, out=place)  # NaN becomes 0, too
    np.fmin(place, BINS - 1, out=place)
    return place.astype(np.uint8)


def _bin_by_table(
    values: NDArray[np.float64], *, first: NDArray[np.uint8], following: NDArray[np.float32]
) -> NDArray[np.uint8]:
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype("<f4")
    bins: NDArray[np.uint8] = np.take(first, narrow.view("<u2")[1::2])
    bins += narrow >= np.take(following, bins)
    return bins


def _first_bins(edges: NDArray[np.float32]) -> tuple[NDArray[np.uint8], bool]:
    """Return each upper half's lowest bin, and whether any half holds more than one edge, which no table could tell."""
    halves = np.arange(_HALVES, dtype=np.uint32) << 16
    near, far = halves.view(np.float32), (halves | 0xFFFF).view(np.float32)
    lowest = np.where(halves >> 31, far, near)
    highest = np.where(halves >> 31, near, far)
    number = np.isfinite(near)
    first = np.where(number, np.searchsorted(edges, lowest, side="right"), 0)
    last = np.where(number, np.searchsorted(edges, highest, side="right"), 0)
    several = bool(np.any(last - first > 1))
    first[halves == 0x7F800000] = BINS - 1  # infinity; NaN that come from a conversion have other halves, and bin 0
    return first.astype(np.uint8), several
