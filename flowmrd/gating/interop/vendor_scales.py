"""Display scales of FlowJo, FACSDiva and Kaluza, and how far their binned gates can be from the exact ones.

Each scale maps linear channel values to 0 … 1 of the vendor's display, so that a vertex in display channels is divided
by the number of channels. The definitions and where they come from are in `docs/reference/interop-vendors.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.transforms import Arcsinh, Logicle
from flowmrd.fcs import FcsFile
from flowmrd.gating.engine import Memberships
from flowmrd.gating.gates import Boolean, Mask, contains, gate_markers
from flowmrd.gating.interop.document import DimensionSource, ForeignGate, ForeignStrategy

F64 = NDArray[np.float64]

# Key of `ForeignGate.info` that says over how many display channels the foreign program rasterises the gate.
BINS = "bins"

_LN10 = math.log(10.0)
_BIEX_CHANNELS = 4096
DIVA_CHANNELS = 4096
DIVA_DECADES = 4.5
# Diva draws gates from 0 to the last channel; what piles up there is kept this far (channels) inside such an edge.
_INSIDE = 0.25


def _given(values: F64, out: F64 | None) -> F64:
    if out is None:
        return values
    out[:] = values
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowJoLinear:
    """FlowJo's linear axis: `(x * gain - low) / (high - low)`."""

    low: float
    high: float
    gain: float = 1.0

    def __post_init__(self) -> None:
        _require(math.isfinite(self.low) and math.isfinite(self.high) and self.high > self.low, "high > low", self)
        _require(math.isfinite(self.gain) and self.gain > 0, "gain > 0", self)

    def forward(self, x: F64, out: F64 | None = None) -> F64:
        """Linear values to 0 … 1 of the axis."""
        return _given((np.asarray(x, np.float64) * self.gain - self.low) / (self.high - self.low), out)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowJoLog:
    """FlowJo's log axis: `log10(max(x, offset) / offset) / decades`; what lies below is drawn on the axis."""

    offset: float
    decades: float

    def __post_init__(self) -> None:
        _require(math.isfinite(self.offset) and self.offset > 0, "offset > 0", self)
        _require(math.isfinite(self.decades) and self.decades > 0, "decades > 0", self)

    def forward(self, x: F64, out: F64 | None = None) -> F64:
        """Linear values to 0 … 1 of the axis."""
        y = np.maximum(np.asarray(x, np.float64), self.offset) / self.offset
        return _given(np.log10(y) / self.decades, out)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowJoBiex:
    """FlowJo's biexponential: a table of 4097 channels, linear between them, clamped at both ends.

    Channel k of n holds the value `top / exp(P) * (exp(k P / n) - s exp(-k N / n) - c)`, where P is the positive range
    in natural logarithms, N the root of `2 ln(N / P) + w (P + N) = 0`, and s, c make the curve pass through zero with
    a symmetric slope at the zero channel; below it the table is the mirror image.

    Parameters
    ----------
    top : value at the last channel (`maxRange`)
    positive : decades above zero (`pos`)
    negative : extra decades below zero (`neg`)
    width : width basis (`width`), a negative value

    References
    ----------
    Parks DR, Roederer M, Moore WA. A new "Logicle" display method avoids deceptive effects of logarithmic scaling for
    low signals and compensated data. Cytometry A 2006;69:541-551. Checked against FlowKit's table in the tests.
    """

    top: float
    positive: float
    negative: float
    width: float
    _values: F64 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("top", "positive", "negative", "width"):
            _require(math.isfinite(getattr(self, name)), f"{name} finite", self)
        _require(self.top > 0 and self.positive > 0 and self.width < 0, "top > 0, positive > 0, width < 0", self)
        object.__setattr__(self, "_values", _biex_table(self.top, self.positive, self.negative, self.width))

    def forward(self, x: F64, out: F64 | None = None) -> F64:
        """Linear values to 0 … 1 of the axis."""
        channel = np.interp(np.asarray(x, np.float64), self._values, np.arange(self._values.size, dtype=np.float64))
        return _given(channel / _BIEX_CHANNELS, out)

    def inverse(self, y: F64) -> F64:
        """0 … 1 of the axis to linear values."""
        channels = np.asarray(y, np.float64) * _BIEX_CHANNELS
        return np.asarray(np.interp(channels, np.arange(self._values.size, dtype=np.float64), self._values))


def _biex_table(top: float, positive: float, negative: float, width: float) -> F64:
    half_width = math.log10(-width) / 2.0
    above = positive - half_width
    below = max(negative, 0.0) + half_width
    _require(above > 0, "width basis below 10 ** (2 pos)", f"width {width:g}, pos {positive:g}")
    zero = int(min(int(below * _BIEX_CHANNELS / (below + above)), _BIEX_CHANNELS / 2))
    if zero > 0:
        above = below * _BIEX_CHANNELS / zero
    share = half_width / above
    rise = _LN10 * above
    fall = _fall(rise, share)
    k = np.arange(_BIEX_CHANNELS + 1, dtype=np.float64) / (_BIEX_CHANNELS + 1)
    up, down = np.exp(k * rise), np.exp(-k * fall) * math.exp((rise + fall) * (share + below / above))
    values = top / math.exp(rise) * (up - down - (up[zero] - down[zero]))
    values[:zero] = -values[2 * zero : zero : -1]
    _require(
        bool(np.all(np.isfinite(values)) and np.all(np.diff(values) > 0)), "an increasing curve", (width, positive)
    )
    values.flags.writeable = False
    return np.asarray(values)


def _fall(rise: float, share: float) -> float:
    """Solve `2 ln(d / rise) + share (d + rise) = 0` for 0 < d <= rise by bisection."""
    if share <= 0:
        return rise
    low, high = 0.0, rise
    for _ in range(200):
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        if 2.0 * math.log(middle / rise) + share * (middle + rise) > 0:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipped:
    """A scale whose display ends pile up: what lies beyond is drawn on the first or last channel.

    A gate drawn to the border of the plot therefore holds what lies beyond it, as in Diva and Kaluza.
    """

    scale: Logicle | Arcsinh | FlowJoLinear | FlowJoLog | LogBelowTop
    low: float = 0.0
    high: float = 1.0

    def forward(self, x: F64, out: F64 | None = None) -> F64:
        """Linear values to 0 … 1 of the axis."""
        y = self.scale.forward(x, out)
        return np.clip(y, self.low, self.high, out=y)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogBelowTop:
    """`1 + log10(x / top) / decades`; zero and below become 0, the bottom of the axis."""

    top: float
    decades: float

    def __post_init__(self) -> None:
        _require(math.isfinite(self.top) and self.top > 0, "top > 0", self)
        _require(math.isfinite(self.decades) and self.decades > 0, "decades > 0", self)

    def forward(self, x: F64, out: F64 | None = None) -> F64:
        """Linear values to 0 … 1 of the axis."""
        y = np.maximum(np.asarray(x, np.float64), self.top * 10.0**-self.decades)
        return _given(np.log10(y / self.top) / self.decades + 1.0, out)


def diva_biexponential(scale_value: float, *, top: float = 262144.0) -> Clipped:
    """Return Diva's biexponential axis for a parameter's scale value.

    The scale value is the reference value r of the logicle definition, as a positive number: the most negative value
    that is to be seen. W = (M - log10(T / r)) / 2 with M = 4.5 decades; r = 0, "no negative values", is W = 0. Display
    channels are 4096.

    Parameters
    ----------
    scale_value : `x_parameter_scale_value` of a gate, 0 or -1 where Diva found none
    top : T, one more than the parameter's largest value

    References
    ----------
    Parks et al. 2006 (above), equation for W from the reference value r.
    """
    width = 0.0
    if scale_value > 0:
        width = min(max((DIVA_DECADES - math.log10(top / scale_value)) / 2.0, 0.0), DIVA_DECADES / 2.0)
    return Clipped(scale=Logicle(T=top, W=width, M=DIVA_DECADES), low=_INSIDE / DIVA_CHANNELS, high=_end(DIVA_CHANNELS))


def diva_log(*, top: float = 262144.0) -> Clipped:
    """Return Diva's log axis: `log10(x) / log10(top)`, values of 1 and below at the bottom."""
    decades = math.log10(top)
    high = math.log10(top - 1.0 - _INSIDE) / decades
    return Clipped(scale=LogBelowTop(top=top, decades=decades), low=_INSIDE / DIVA_CHANNELS, high=high)


def diva_linear(*, top: float = 262144.0) -> Clipped:
    """Return Diva's linear axis: `x / top`."""
    return Clipped(scale=FlowJoLinear(low=0.0, high=top), low=_INSIDE / top, high=_end(top))


def _end(channels: float) -> float:
    return (channels - 1.0 - _INSIDE) / channels


def _require(holds: bool, expected: str, got: object) -> None:  # noqa: FBT001
    if not holds:
        msg = f"expected {expected}; got {got}"
        raise ValueError(msg)


def binning_bound(strategy: ForeignStrategy, fcs: FcsFile, memberships: Memberships) -> Mapping[str, int]:
    """Bound the difference between exact gates and a program that evaluates gates on a raster of display channels.

    A raster can only differ from the geometry for events closer than one channel to a gate's edge. An event is possibly
    in a gate if some shift by at most one channel in each axis (on gates that carry `BINS`) puts it there, and
    certainly if every shift does; both go down the tree with the parents and through boolean gates.

    Parameters
    ----------
    strategy, fcs : a document and its file
    memberships : of the evaluation

    Returns
    -------
    path → events that are possibly but not certainly in the population: no raster can be further off than that
    """
    source = DimensionSource(fcs, strategy)
    gates = _resolved(strategy, memberships)
    markers = tuple(dict.fromkeys(key for one in gates for key in gate_markers(one.gate)))
    bound = {one.path: 0 for one in gates}
    for _, block in source.blocks(markers):
        everyone = np.arange(block.size, dtype=np.intp)
        scaled = {key: np.asarray(block.scaled(key, everyone), np.float64) for key in markers}
        possible = {"": np.ones(block.size, np.bool_)}
        certain = dict(possible)
        for one in gates:
            if isinstance(one.gate, Boolean):
                some, all_ = _joined(one.gate, possible, certain)
            else:
                some, all_ = _shifted(one, scaled, block.size)
            possible[one.path] = some & possible[one.parent]
            certain[one.path] = all_ & certain[one.parent]
            bound[one.path] += int(np.count_nonzero(possible[one.path])) - int(np.count_nonzero(certain[one.path]))
    return bound


def _resolved(strategy: ForeignStrategy, memberships: Memberships) -> list[ForeignGate]:
    """Return the evaluated gates with parents and operands first."""
    waiting = [one for one in strategy.gates if one.path in memberships]
    known, ordered = {""}, []
    while waiting:
        later = []
        for one in waiting:
            operands = {name for name, _ in one.gate.operands} if isinstance(one.gate, Boolean) else set()
            if {one.parent, *operands} <= known:
                ordered.append(one)
                known.add(one.path)
            else:
                later.append(one)
        if len(later) == len(waiting):
            break
        waiting = later
    return ordered


def _joined(gate: Boolean, possible: Mapping[str, Mask], certain: Mapping[str, Mask]) -> tuple[Mask, Mask]:
    some = [~certain[name] if flag else possible[name] for name, flag in gate.operands]
    all_ = [~possible[name] if flag else certain[name] for name, flag in gate.operands]
    join = np.logical_and.reduce if gate.operator == "and" else np.logical_or.reduce
    return np.asarray(join(some)), np.asarray(join(all_))


def _shifted(one: ForeignGate, scaled: Mapping[str, F64], size: int) -> tuple[Mask, Mask]:
    """Return the events that some shift by a channel puts into the gate, and those that every shift does."""
    keys = gate_markers(one.gate)
    some, all_ = np.zeros(size, np.bool_), np.ones(size, np.bool_)
    for move in _neighbours(len(keys), 1.0 / int(one.info[BINS]) if BINS in one.info else 0.0):
        moved = {key: scaled[key] + step for key, step in zip(keys, move, strict=True)}
        mask = contains(one.gate, moved.__getitem__, size)
        some |= mask
        all_ &= mask
    return some, all_


def _neighbours(dimensions: int, step: float) -> list[tuple[float, ...]]:
    if dimensions == 0 or step == 0.0:
        return [(0.0,) * dimensions]
    return [(move, *rest) for move in (0.0, -step, step) for rest in _neighbours(dimensions - 1, step)]
