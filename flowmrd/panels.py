"""Panels for the report: density of every event of a parent, the gates drawn on it, and each target event.

Binning is by byte: each marker of a block is turned into bin numbers once, and a panel is a count of pairs of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.binning import Binner, make_binner
from flowmrd.cytometry.events import Block, EventSource, Role
from flowmrd.cytometry.transforms import Transform
from flowmrd.gating.containment import Members
from flowmrd.gating.engine import GatingResult, Placed
from flowmrd.gating.gates import Boolean, Ellipsoid, Intervals, MemberList, Polygon, Rectangle, gate_markers
from flowmrd.gating.template import ROOT, GatingTemplate, Population
from flowmrd.records import BINS, Axis, GateShape, PlotPanel

ELLIPSE_POINTS = 72
_BLOCK_EVENTS = 65536
_COUNT_AT_ONCE = 1 << 18
# Where an ancestor's gate ends on a linear axis, the axis ends a quarter further on: nothing lies beyond.
_ROOM = 1.25
OPEN = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A parent on two markers, and the populations whose gates belong on it."""

    parent: str
    x: str
    y: str
    rows: tuple[str, ...]
    purpose: str


# A marker and the end of its axis: what tells one set of bins from another.
_Key = tuple[str, float]


def build_panels(source: EventSource, result: GatingResult) -> tuple[PlotPanel, ...]:
    """Bin every event for every view of the strategy, in one pass over the file."""
    template = result.template
    views = _views(template, source.markers, result.placed)
    whole = _axes(source, template, {marker for view in views for marker in (view.x, view.y)})
    axes = [tuple(_zoomed(whole[marker], view.parent, result) for marker in (view.x, view.y)) for view in views]
    binners = {
        (axis.marker, axis.hi): make_binner(source.transforms[axis.marker], axis.lo, axis.hi)
        for pair in axes
        for axis in pair
    }
    target = template.target
    parents = {view.parent for view in views}
    pairs = [_Pairs() for _ in views]
    hits = _Hits()
    markers = tuple(marker for marker in source.markers if marker in whole)
    # Views of one parent follow each other: what is gathered for its events serves them all.
    order = sorted(range(len(views)), key=lambda k: views[k].parent)
    for start, block in source.blocks(markers, block_events=_BLOCK_EVENTS):
        bins = _BlockBins(block, binners)
        inside = {parent: Members(result.memberships.mask(parent, start, block.size)) for parent in parents}
        # A bin is some 10¹³ times as wide as the last bit of a value.
        block.compensate_together(sorted({m for v in views if not inside[v.parent].sparse for m in (v.x, v.y)}))
        for k in order:
            members = inside[views[k].parent]
            if members.count:
                x, y = axes[k]
                pairs[k].add(bins.pairs((x.marker, x.hi), (y.marker, y.hi), members))
        if target:
            hits.add(block, Members(result.memberships.mask(target, start, block.size)), markers, inside)
    shown = hits.scaled(source)
    panels = []
    for k, view in enumerate(views):
        count = source.event_count if view.parent == ROOT else result.counts[view.parent]
        panels.append(
            PlotPanel(
                parent=view.parent,
                parent_path=template.path(view.parent) if view.parent != ROOT else "/root",
                parent_events=count,
                x=axes[k][0],
                y=axes[k][1],
                density=pairs[k].density(),
                gates=tuple(_shape(template, result, name, view, count) for name in view.rows),
                target=hits.of(view, shown),
                target_name=target,
                purpose=view.purpose,
            )
        )
    return tuple(panels)


class _BlockBins:
    """Bins of the markers of one block: of all its events, or of a small population's only."""

    __slots__ = ("_binners", "_block", "_few", "_few_of", "_whole")

    def __init__(self, block: Block, binners: Mapping[_Key, Binner]) -> None:
        self._block = block
        self._binners = binners
        self._whole: dict[_Key, NDArray[np.uint8]] = {}
        self._few: dict[_Key, NDArray[np.uint8]] = {}
        self._few_of: Members | None = None

    def pairs(self, x: _Key, y: _Key, members: Members) -> NDArray[np.uint16]:
        """Return `256 * y + x` of each member."""
        few = members.sparse
        if few and self._few_of is not members:
            self._few, self._few_of = {}, members
        known = self._few if few else self._whole
        for key in (x, y):
            if key not in known:
                linear = self._block.linear(key[0], members.rows if few else None)
                known[key] = self._binners[key](linear)
        pair = known[y].astype(np.uint16)
        pair <<= 8
        pair |= known[x]
        return pair if few or members.count == self._block.size else pair[members.rows]


class _Hits:
    """Linear values of every target event, and which parents hold it."""

    __slots__ = ("_linear", "_parents")

    def __init__(self) -> None:
        self._linear: dict[str, list[NDArray[np.float64]]] = {}
        self._parents: dict[str, list[NDArray[np.bool_]]] = {}

    def add(self, block: Block, target: Members, markers: Sequence[str], inside: Mapping[str, Members]) -> None:
        """Take the target events of a block."""
        if target.count:
            for marker in markers:
                # A copy: where every event is a target, the block hands out its own column.
                self._linear.setdefault(marker, []).append(block.linear(marker, target.rows).copy())
            for parent, members in inside.items():
                self._parents.setdefault(parent, []).append(members.mask[target.rows])

    def scaled(self, source: EventSource) -> dict[str, NDArray[np.float32]]:
        """Return all target events' scaled values by marker."""
        return {
            marker: source.transforms[marker].forward(np.concatenate(parts)).astype(np.float32)
            for marker, parts in self._linear.items()
        }

    def of(self, view: _View, scaled: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return x and y (2, n) of the target events inside a view's parent."""
        if not scaled:
            return np.empty((2, 0), np.float32)
        here = np.concatenate(self._parents[view.parent])
        return np.stack([scaled[view.x][here], scaled[view.y][here]])


class _Pairs:
    """Counts of pairs of bytes, many at a time, because each counting goes through all 65,536 cells."""

    __slots__ = ("_counts", "_size", "_waiting")

    def __init__(self) -> None:
        self._counts = np.zeros(BINS * BINS, np.int64)
        self._waiting: list[NDArray[np.uint16]] = []
        self._size = 0

    def add(self, pairs: NDArray[np.uint16]) -> None:
        self._waiting.append(pairs)
        self._size += pairs.size
        if self._size >= _COUNT_AT_ONCE:
            self._count()

    def density(self) -> NDArray[np.uint32]:
        """Return the counts (BINS, BINS), `[iy, ix]`."""
        self._count()
        return self._counts.astype(np.uint32).reshape(BINS, BINS)

    def _count(self) -> None:
        if self._waiting:
            self._counts += np.bincount(np.concatenate(self._waiting), minlength=BINS * BINS)
            self._waiting, self._size = [], 0


def _views(template: GatingTemplate, markers: Sequence[str], placed: Mapping[str, Placed]) -> list[_View]:
    known = set(markers)
    order: list[tuple[str, str, str]] = []
    rows: dict[tuple[str, str, str], list[str]] = {}
    purposes: dict[tuple[str, str, str], str] = {}
    for row in template.population:
        axes = _own_axes(template, placed[row.name], known) or _plot_axes(template, row, known)
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


def _own_axes(template: GatingTemplate, placed: Placed, known: set[str]) -> tuple[str, str] | None:
    """Return the axes of a gate that took the place of the template's, which may lie on other markers."""
    own = tuple(dict.fromkeys(gate_markers(placed.gate)))
    if placed.method != "override" or not own or not known.issuperset(own):
        return None
    row = template.row(placed.population)
    usual = _plot_axes(template, row, known)
    if usual is not None and set(own) <= set(usual):
        return usual
    if len(own) > 1:
        return own[0], own[1]
    scatter = [spec.marker for spec in template.channel if spec.role is Role.SCATTER and spec.marker in known]
    other = next((marker for marker in reversed(scatter) if marker != own[0]), None)
    return (own[0], other) if other else None


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


def _zoomed(axis: Axis, parent: str, result: GatingResult) -> Axis:
    """Return a linear axis that ends where the gates above a parent end; other axes stay, so that views compare."""
    end = axis.hi
    while parent != ROOT and axis.transform["kind"] == "linear":
        match result.placed[parent].gate:
            case Rectangle(markers=markers, high=high) if axis.marker in markers:
                side = high[markers.index(axis.marker)]
                if 0.0 < side < math.inf:
                    end = min(end, _ROOM * side)
            case _:
                pass
        parent = result.template.row(parent).parent
    return replace(axis, hi=end)


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
    listed = f"list of events found by {placed.method}" if kind == "members" and placed.method != "override" else ""
    return GateShape(
        population=name,
        path=template.path(name),
        kind=kind,
        outline=outline,
        events=result.counts[name],
        parent_events=count,
        method=placed.method,
        detail="; ".join(filter(None, (listed, placed.bound_hit, placed.reason))),
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
        case MemberList():
            return "members", none
        case Boolean() | _:
            return "boolean", none
