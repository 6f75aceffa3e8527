"""Panels for the report: density of every event of a parent, the gates drawn on it, and each target event.

Binning is by byte: each marker of a block is turned into a bin number once, and a panel is a count of pairs of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.events import EventSource, Role
from flowmrd.cytometry.transforms import Transform
from flowmrd.gating.engine import GatingResult, Placed
from flowmrd.gating.gates import Boolean, Ellipsoid, Intervals, Polygon, Rectangle
from flowmrd.gating.template import ROOT, GatingTemplate, Population
from flowmrd.records import BINS, Axis, GateShape, PlotPanel

ELLIPSE_POINTS = 72
OPEN = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A parent on two markers, and the populations whose gates belong on it."""

    parent: str
    x: str
    y: str
    rows: tuple[str, ...]
    purpose: str


def build_panels(source: EventSource, result: GatingResult) -> tuple[PlotPanel, ...]:
    """Bin every event for every view of the strategy, in one pass over the file."""
    template = result.template
    views = _views(template, source.markers)
    axes = _axes(source, template, {marker for view in views for marker in (view.x, view.y)})
    target = template.target
    density = [np.zeros(BINS * BINS, np.uint32) for _ in views]
    points: list[list[NDArray[np.float32]]] = [[] for _ in views]
    markers = tuple(marker for marker in source.markers if marker in axes)
    parents = sorted({view.parent for view in views})
    for start, block in source.blocks(markers):
        bins: dict[str, NDArray[np.uint8]] = {}
        rows: dict[str, NDArray[np.intp] | None] = {ROOT: None}
        for parent in parents:
            if parent != ROOT:
                rows[parent] = np.flatnonzero(result.memberships.mask(parent, start, block.size))
        hits = result.memberships.mask(target, start, block.size) if target else np.zeros(block.size, np.bool_)
        target_rows = np.flatnonzero(hits)
        for k, view in enumerate(views):
            here = rows[view.parent]
            if here is not None and here.size == 0:
                continue
            x, y = (_bins(bins, marker, block.scaled(marker), axes[marker]) for marker in (view.x, view.y))
            if here is None:
                pair = y.astype(np.uint16)
                pair <<= 8
                pair |= x
            else:
                pair = y[here].astype(np.uint16)
                pair <<= 8
                pair |= x[here]
            density[k] += np.bincount(pair, minlength=BINS * BINS).astype(np.uint32)
            if target_rows.size:
                inside = target_rows
                if here is not None:
                    inside = target_rows[result.memberships.mask(view.parent, start, block.size)[target_rows]]
                if inside.size:
                    points[k].append(
                        np.stack([block.scaled(view.x)[inside], block.scaled(view.y)[inside]]).astype(np.float32)
                    )
    panels = []
    for k, view in enumerate(views):
        count = source.event_count if view.parent == ROOT else result.counts[view.parent]
        panels.append(
            PlotPanel(
                parent=view.parent,
                parent_path=template.path(view.parent) if view.parent != ROOT else "/root",
                parent_events=count,
                x=axes[view.x],
                y=axes[view.y],
                density=density[k].reshape(BINS, BINS),
                gates=tuple(_shape(template, result, name, view, count) for name in view.rows),
                target=np.concatenate(points[k], axis=1) if points[k] else np.empty((2, 0), np.float32),
                target_name=target,
                purpose=view.purpose,
            )
        )
    return tuple(panels)


def _bins(
    cache: dict[str, NDArray[np.uint8]], marker: str, values: NDArray[np.float64], axis: Axis
) -> NDArray[np.uint8]:
    found = cache.get(marker)
    if found is None:
        scaled = (values - axis.lo) * (BINS / (axis.hi - axis.lo))
        np.clip(scaled, 0, BINS - 1, out=scaled)
        found = np.nan_to_num(scaled, copy=False, nan=0.0).astype(np.uint8)
        cache[marker] = found
    return found


def _views(template: GatingTemplate, markers: Sequence[str]) -> list[_View]:
    known = set(markers)
    order: list[tuple[str, str, str]] = []
    rows: dict[tuple[str, str, str], list[str]] = {}
    purposes: dict[tuple[str, str, str], str] = {}
    for row in template.population:
        axes = _plot_axes(template, row, known)
        if axes is None:
            continue
        key = (row.parent, *axes)
        flipped = (row.parent, axes[1], axes[0])
        key = flipped if flipped in rows and key not in rows else key
        if key not in rows:
            order.append(key)
            rows[key] = []
            purposes[key] = " ".join(row.purpose.split())
        rows[key].append(row.name)
    for plot in template.plot:
        key = (plot.parent, plot.x, plot.y)
        if {plot.x, plot.y} <= known and key not in rows:
            order.append(key)
            rows[key] = []
            purposes[key] = plot.purpose
    return [_View(parent=key[0], x=key[1], y=key[2], rows=tuple(rows[key]), purpose=purposes[key]) for key in order]


def _plot_axes(template: GatingTemplate, row: Population, known: set[str]) -> tuple[str, str] | None:
    """Return the axes a row is drawn on: its own, its two channels, or its channel against a scatter."""
    usable = [choice.channels for choice in row.choices if choice.channels and known.issuperset(choice.channels)]
    if usable and len(usable[0]) == 2 and (row.plot is None or not known.issuperset(row.plot)):
        return usable[0][0], usable[0][1]
    if row.plot is not None and known.issuperset(row.plot):
        return row.plot
    if not usable:
        return None
    scatter = [spec.marker for spec in template.channel if spec.role is Role.SCATTER and spec.marker in known]
    other = next((marker for marker in reversed(scatter) if marker != usable[0][0]), None)
    return (usable[0][0], other) if other else None


def _axes(source: EventSource, template: GatingTemplate, markers: set[str]) -> dict[str, Axis]:
    axes = {}
    for spec in template.channel:
        if spec.marker not in markers:
            continue
        transform = source.transforms[spec.marker]
        low, high = (-0.1, 1.05) if spec.role is Role.FLUOR else (0.0, 1.02)
        if spec.role is Role.TIME:
            low, high = _extent(source, spec.marker)
        channel = source.panel.channels[spec.marker]
        axes[spec.marker] = Axis(marker=spec.marker, channel=channel.pnn, transform=_params(transform), lo=low, hi=high)
    return axes


def _params(transform: Transform) -> Mapping[str, float | str]:
    return transform.params()


def _extent(source: EventSource, marker: str) -> tuple[float, float]:
    """Return the range of a marker whose scale has no fixed end (time)."""
    low, high = math.inf, -math.inf
    for _, block in source.blocks((marker,)):
        values = block.scaled(marker)
        low, high = min(low, float(np.nanmin(values))), max(high, float(np.nanmax(values)))
    if not math.isfinite(low) or high <= low:
        return 0.0, 1.0
    return low, high + (high - low) * 1e-3


def _shape(template: GatingTemplate, result: GatingResult, name: str, view: _View, count: int) -> GateShape:
    placed = result.placed[name]
    kind, outline = _outline(placed, view.x, view.y)
    return GateShape(
        population=name,
        path=template.path(name),
        kind=kind,
        outline=outline,
        events=result.counts[name],
        parent_events=count,
        method=placed.method,
        detail="; ".join(filter(None, (placed.bound_hit, placed.reason))),
    )


def _box(x: tuple[float, float], y: tuple[float, float]) -> NDArray[np.float64]:
    """Return the four corners of a rectangle; infinite sides stay infinite."""
    return np.array([[x[0], x[1], x[1], x[0]], [y[0], y[0], y[1], y[1]]])


def _outline(placed: Placed, x: str, y: str) -> tuple[str, NDArray[np.float64]]:
    """Return kind and outline of a gate as seen on two markers; a gate on other markers is not drawn."""
    none = np.empty((2, 0))
    match placed.gate:
        case Rectangle(markers=markers, low=low, high=high):
            sides = {marker: (a, b) for marker, a, b in zip(markers, low, high, strict=True)}
            if x in sides and y in sides:
                return "rectangle", _box(sides[x], sides[y])
            if x in sides:
                return "interval-x", _box(sides[x], OPEN)
            if y in sides:
                return "interval-y", _box(OPEN, sides[y])
            return "boolean", none
        case Polygon(markers=(first, second), vertices=vertices):
            corners = np.array(vertices).T
            if (first, second) == (x, y):
                return "polygon", corners
            return ("polygon", corners[::-1]) if (first, second) == (y, x) else ("boolean", none)
        case Ellipsoid(markers=markers) as ellipse if set(markers) == {x, y} and len(markers) == 2:
            angle = np.linspace(0.0, 2.0 * math.pi, ELLIPSE_POINTS, endpoint=False)
            axes = np.linalg.cholesky(np.asarray(ellipse.covariance)) * math.sqrt(ellipse.distance_square)
            outline = axes @ np.stack([np.cos(angle), np.sin(angle)]) + np.asarray(ellipse.mean)[:, None]
            return "ellipse", outline if markers == (x, y) else outline[::-1]
        case Intervals(marker=marker, ranges=ranges) if marker in (x, y):
            # Kept stretches as one path of rectangles would hide the gaps; the drawn outline is their outer ends.
            ends = (ranges[0][0], ranges[-1][1]) if ranges else (0.0, 0.0)
            return ("interval-x", _box(ends, OPEN)) if marker == x else ("interval-y", _box(OPEN, ends))
        case Boolean() | _:
            return "boolean", none
