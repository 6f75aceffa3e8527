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

from flowmrd.cytometry.transforms import Arcsinh, Biex, Bounded, Logicle
from flowmrd.fcs import FcsFile
from flowmrd.gating.engine import Memberships
from flowmrd.gating.gates import Boolean, Mask, contains, gate_markers
from flowmrd.gating.interop.document import DimensionSource, ForeignGate, ForeignStrategy

F64 = NDArray[np.float64]

# Key of `ForeignGate.info` that says over how many display channels the foreign program rasterises the gate.
BINS = "bins"

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

    def inverse(self, y: F64) -> F64:
        """0 … 1 of the axis to linear values."""
        return np.asarray((np.asarray(y, np.float64) * (self.high - self.low) + self.low) / self.gain)


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

    def inverse(self, y: F64) -> F64:
        """0 … 1 of the axis to linear values."""
        return np.asarray(self.offset * np.power(10.0, np.asarray(y, np.float64) * self.decades))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowJoTable:
    """A calibration table of FlowJo 9: the linear value of each display channel, straight between them, then clamped.

    Parameters
    ----------
    values : rising
    """

    values: tuple[float, ...]
    _values: F64 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require(len(self.values) > 1, "two channels or more", len(self.values))
        values = np.array(self.values, np.float64)
        _require(bool(np.isfinite(values).all() and np.all(np.diff(values) > 0)), "rising values", "others")
        values.flags.writeable = False
        object.__setattr__(self, "_values", values)

    def forward(self, x: F64, out: F64 | None = None) -> F64:
        """Linear values to 0 … 1 of the axis."""
        channels = np.interp(np.asarray(x, np.float64), self._values, np.arange(float(self._values.size)))
        return _given(channels / (self._values.size - 1), out)

    def inverse(self, y: F64) -> F64:
        """0 … 1 of the axis to linear values."""
        channels = np.asarray(y, np.float64) * (self._values.size - 1)
        return np.asarray(np.interp(channels, np.arange(float(self._values.size)), self._values))


def flowjo_biex(*, top: float, positive: float, negative: float, width: float) -> Bounded:
    """Return FlowJo's biexponential axis (`maxRange`, `pos`, `neg`, `width`), which ends where its table does."""
    return Bounded(scale=Biex(T=top, pos=positive, neg=negative, width=width), low=0.0, high=1.0)


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

    def inverse(self, y: F64) -> F64:
        """0 … 1 of the axis to linear values."""
        return np.asarray(self.top * np.power(10.0, (np.asarray(y, np.float64) - 1.0) * self.decades))


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
