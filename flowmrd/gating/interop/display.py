"""Ranges of linear values on the scale that their channel is drawn on, for templates and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from flowmrd.gating.gates import Rectangle
from flowmrd.gating.interop.document import Dimension, ForeignStrategy, Scale
from flowmrd.gating.interop.export import first_at, native_scale

# An edge keeps its place on a scale if it comes back from there within this share of itself.
_SAME_EDGE = 1e-9


def as_displayed(strategy: ForeignStrategy) -> ForeignStrategy:
    """Put ranges of linear values on the scale that their channel is drawn on, where all their sides are on it.

    FlowJo stores rectangles in linear values and polygons on the display scale of the same axis, but a marker of a
    template has one scale, and a plot one axis.
    """
    same = {_axis_of(one): one for one in strategy.dimensions.values()}
    shown: dict[str, Dimension] = {}
    for key, linear in strategy.dimensions.items():
        name = linear.display if linear.scale is None else None
        if name is not None and native_scale(strategy.scales[name]) is not None:
            drawn = replace(linear, key=f"{key} as displayed", scale=name)
            shown[key] = same.get(_axis_of(drawn), drawn)
    gates = []
    for one in strategy.gates:
        gate = one.gate
        if isinstance(gate, Rectangle) and set(gate.markers) & set(shown):
            gate = _sides_on(gate, {key: (each.key, strategy.scales[str(each.scale)]) for key, each in shown.items()})
        gates.append(replace(one, gate=gate))
    dimensions = {**strategy.dimensions, **{drawn.key: drawn for drawn in shown.values()}}
    return replace(strategy, gates=tuple(gates), dimensions=dimensions)


def _axis_of(one: Dimension) -> Dimension:
    """Return a dimension without what does not change its values."""
    return replace(one, key="", display=None)


def _sides_on(gate: Rectangle, shown: Mapping[str, tuple[str, Scale]]) -> Rectangle:
    markers, low, high = list(gate.markers), list(gate.low), list(gate.high)
    for place, key in enumerate(gate.markers):
        if key not in shown:
            continue
        name, scale = shown[key]
        sides = [_position(scale, edge) for edge in (gate.low[place], gate.high[place])]
        if None not in sides:
            markers[place] = name
            low[place], high[place] = (float(side) for side in sides if side is not None)
    return Rectangle(markers=tuple(markers), low=tuple(low), high=tuple(high))


def _position(scale: Scale, edge: float) -> float | None:
    """Return where an edge lies on a scale; nothing where the scale ends before it, or cannot tell it apart."""
    if not math.isfinite(edge):
        return edge
    position = float(scale.forward(np.array([edge]))[0])
    if not math.isfinite(position) or abs(first_at(scale, position) - edge) > _SAME_EDGE * max(1.0, abs(edge)):
        return None
    return position
