"""Where the labels of a plot's gates go: inside the plot, off one another, near their gate, off the events if possible.

Everything is in units of the plot area (0 … 1 both ways, y up). Sizes are those of the smallest plot a page shows; on
a larger plot a label takes a smaller share of the area and shrinks towards its anchor, which lies in its own box, so
labels that are apart here are apart at every larger size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Box: TypeAlias = tuple[float, float, float, float]

_GAP = 0.012  # between a label and the gate's edge, the plot's edge, another label
_GRID = 13  # positions all over the plot, each way, beside those at the gate
_STARTS = 6  # orders in which the gates choose first; the cheapest outcome wins
_LEADER_POINTS = np.linspace(0.1, 0.9, 7)

# Costs, in one currency. Overlap is beyond all others: only where the plot is too full to avoid it.
_OVERLAP = 1e3
_EVENTS = 0.9  # covering the densest events
_COVERED = 0.5  # covering any events
_PRECIOUS = 1.2  # covering an event that must be seen, and as much again where they fill the label's place
_FOREIGN_EDGE = 1.6  # lying across another gate's outline
_OWN_EDGE = 0.7
_DISTANCE = 2.5  # each plot width between the label and its gate
_LEADER = 0.6  # so far from the gate that a line must lead to it
_LEADER_CROSSES = 3.0  # … through another label
_OUTSIDE = 0.12  # beside the gate rather than in it
_OUTSIDE_OPEN = 1.5  # … where the gate has no closed outline: the side of the line says which events it holds
_FOREIGN_GATE = 0.9  # inside another gate but not in its own
_AMBIGUOUS = 2.0  # beside its gate, but as near to another one


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one label goes.

    `x`, `y` is its anchor, `xanchor` (left, center, right) and `yanchor` (bottom, middle, top) say which point of the
    label lies there; `box` is (x0, y0, x1, y1); `leader` is the point of the gate that a line leads to, or `None` where
    the label is next to its gate or inside it.
    """

    x: float
    y: float
    xanchor: str
    yanchor: str
    box: Box
    leader: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Choices:
    """Every place one label could take: boxes (n, 4), own costs (n,), whether a leader is needed, and its points."""

    boxes: Floats
    cost: Floats
    leads: NDArray[np.bool_]
    leader_x: Floats  # (n, points); nan where no leader is needed
    leader_y: Floats
    ends: Floats  # (n, 2) the gate's point nearest each label


def place_labels(
    outlines: Sequence[Floats],
    sizes: Sequence[tuple[float, float]],
    busy: Floats,
    precious: NDArray[np.bool_],
    *,
    open_sided: Sequence[bool],
) -> tuple[Placement, ...]:
    """Choose a place for each gate's label.

    Parameters
    ----------
    outlines : per gate (2, n) vertices in plot units, clipped to the plot; empty where the gate has no shape
    sizes : per gate the label's width and height in plot units
    busy : (k, k) density of events, 0 … 1, `busy[iy, ix]`
    precious : (k, k) where events lie that a reader must see
    open_sided : per gate whether it goes on beyond the plot, so that its label must lie on its own side of the line

    Returns
    -------
    one placement per gate, in order; the same for the same input
    """
    if not outlines:
        return ()
    edges = [_edge_points(outline) for outline in outlines]
    bounds = [_bounds(outline) for outline in outlines]
    grounds = (
        (_summed(busy), _EVENTS, 0.0),
        (_summed(busy > 0), _COVERED, 0.0),
        (_summed(precious), _PRECIOUS, _PRECIOUS),
    )
    choices = [
        _choices(i, sizes[i], bounds, edges, outlines, grounds, _OUTSIDE_OPEN if open_sided[i] else _OUTSIDE)
        for i in range(len(outlines))
    ]
    picks = _settle(choices, [(box[2] - box[0]) * (box[3] - box[1]) for box in bounds])
    return tuple(_placement(choice, pick, box) for choice, pick, box in zip(choices, picks, bounds, strict=True))


def _choices(
    index: int,
    size: tuple[float, float],
    bounds: Sequence[Box],
    edges: Sequence[Floats],
    outlines: Sequence[Floats],
    grounds: Sequence[tuple[Floats, float, float]],
    outside: float,
) -> _Choices:
    """Weigh one label's places by themselves; `grounds` are (summed values, cost of their mean, cost of any)."""
    own = bounds[index]
    corners = _candidates(own, size)
    x0, y0 = corners[:, 0], corners[:, 1]
    x1, y1 = x0 + size[0], y0 + size[1]
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    inside = _contains(outlines[index], centre_x, centre_y)
    cost: Floats = np.where(inside, 0.0, outside)
    for sums, for_mean, for_any in grounds:
        mean = _mean_under(sums, x0, y0, x1, y1)
        cost += for_mean * mean + for_any * (mean > 0)
    away = [_away(points, x0, y0, x1, y1) for points in edges]
    distance = np.where(inside, 0.0, away[index].min(axis=1)) if edges[index].size else np.zeros(x0.size)
    leads = distance > 4 * _GAP
    cost += _DISTANCE * np.maximum(distance - 2 * _GAP, 0.0) + _LEADER * leads
    for j, points in enumerate(edges):
        if points.size:
            nearest = away[j].min(axis=1)
            cost += (_OWN_EDGE if j == index else _FOREIGN_EDGE) * (nearest == 0)
            if j != index and edges[index].size:
                cost += _AMBIGUOUS * (~inside & ~leads & (nearest < distance + _GAP))
        if j != index and outlines[j].size:
            # A label in a gate that encloses its own gate is not misleading; in a sibling it is.
            cost += _FOREIGN_GATE * (_contains(outlines[j], centre_x, centre_y) & ~inside & ~_encloses(bounds[j], own))
    ends = np.stack([centre_x, centre_y], axis=1)
    if edges[index].size:
        ends = edges[index][:, away[index].argmin(axis=1)].T
    way = np.where(leads, 1.0, np.nan)[:, None]
    return _Choices(
        boxes=np.stack([x0, y0, x1, y1], axis=1),
        cost=cost,
        leads=leads,
        leader_x=way * (centre_x[:, None] + _LEADER_POINTS * (ends[:, :1] - centre_x[:, None])),
        leader_y=way * (centre_y[:, None] + _LEADER_POINTS * (ends[:, 1:] - centre_y[:, None])),
        ends=ends,
    )


def _settle(choices: Sequence[_Choices], areas: Sequence[float]) -> list[int]:
    """Let each label take its cheapest place in turn until none moves, from several orders; return the best outcome."""
    count = len(choices)
    # Small gates have the fewest places near them, so they choose first; the other orders begin with another gate.
    by_area = sorted(range(count), key=lambda i: (areas[i], i))
    orders = [by_area[k:] + by_area[:k] for k in range(min(count, _STARTS))]
    best: tuple[float, list[int]] | None = None
    for order in orders:
        picks: dict[int, int] = {}
        for _ in range(4):
            before = dict(picks)
            for i in order:
                cost = choices[i].cost.copy()
                for j, pick in picks.items():
                    if j != i:
                        cost += _pair_cost(choices[i], choices[j], pick)
                picks[i] = int(np.argmin(cost))
            if picks == before:
                break
        total = sum(float(choices[i].cost[pick]) for i, pick in picks.items()) + sum(
            float(_pair_cost(choices[i], choices[j], picks[j])[picks[i]]) for i in range(count) for j in range(i)
        )
        if best is None or total < best[0] - 1e-9:
            best = (total, [picks[i] for i in range(count)])
    assert best is not None
    return best[1]


def _pair_cost(mine: _Choices, other: _Choices, pick: int) -> Floats:
    """Cost of each of my places beside another label at its place: overlap, and leaders through labels."""
    x0, y0, x1, y1 = other.boxes[pick]
    wide = np.minimum(mine.boxes[:, 2] + _GAP, x1) - np.maximum(mine.boxes[:, 0] - _GAP, x0)
    high = np.minimum(mine.boxes[:, 3] + _GAP, y1) - np.maximum(mine.boxes[:, 1] - _GAP, y0)
    cost: Floats = _OVERLAP * ((wide > 0) & (high > 0)) * (1 + np.maximum(wide, 0) * np.maximum(high, 0))
    if mine.leads.any():
        through = (mine.leader_x >= x0) & (mine.leader_x <= x1) & (mine.leader_y >= y0) & (mine.leader_y <= y1)
        cost += _LEADER_CROSSES * through.any(axis=1)
    if other.leads[pick]:
        points = np.stack([other.leader_x[pick], other.leader_y[pick]])
        cost += _LEADER_CROSSES * _any_in_boxes(points, *mine.boxes.T)
    return cost


def _placement(choices: _Choices, pick: int, own: Box) -> Placement:
    """Anchor the label at the point of its box nearest the gate's middle, so that growing plots keep it near."""
    x0, y0, x1, y1 = (float(value) for value in choices.boxes[pick])
    x, xanchor = _side((own[0] + own[2]) / 2, x0, x1, ("left", "center", "right"))
    y, yanchor = _side((own[1] + own[3]) / 2, y0, y1, ("bottom", "middle", "top"))
    end = (float(choices.ends[pick, 0]), float(choices.ends[pick, 1])) if choices.leads[pick] else None
    return Placement(x=x, y=y, xanchor=xanchor, yanchor=yanchor, box=(x0, y0, x1, y1), leader=end)


def _side(aim: float, low: float, high: float, names: tuple[str, str, str]) -> tuple[float, str]:
    places = ((low, names[0]), ((low + high) / 2, names[1]), (high, names[2]))
    return min(places, key=lambda place: (abs(place[0] - aim), place[0]))


def _candidates(own: Box, size: tuple[float, float]) -> Floats:
    """Lower left corners: inside the gate's box, around it, and a grid over the plot; all wholly inside the plot."""
    left, bottom, right, top = own
    width, height = size
    middle_x, middle_y = (left + right - width) / 2, (bottom + top - height) / 2
    inner_x = (left + _GAP, middle_x, right - width - _GAP)
    inner_y = (top - height - _GAP, middle_y, bottom + _GAP)
    points = [(x, y) for y in inner_y for x in inner_x]
    points += [(x, y) for y in (top + _GAP, bottom - height - _GAP) for x in (*inner_x, left, right - width)]
    points += [(x, y) for x in (right + _GAP, left - width - _GAP) for y in (*inner_y, top - height, bottom)]
    free_x, free_y = 1 - width - 2 * _GAP, 1 - height - 2 * _GAP
    points += [
        (_GAP + free_x * i / (_GRID - 1), _GAP + free_y * j / (_GRID - 1)) for i in range(_GRID) for j in range(_GRID)
    ]
    corners = np.array(points)
    np.clip(corners[:, 0], _GAP, max(_GAP, 1 - width - _GAP), out=corners[:, 0])
    np.clip(corners[:, 1], _GAP, max(_GAP, 1 - height - _GAP), out=corners[:, 1])
    return corners


def _edge_points(outline: Floats) -> Floats:
    """Points along the closed outline, close enough together that no label lies across it unseen."""
    if outline.size == 0:
        return outline
    closed = np.concatenate([outline, outline[:, :1]], axis=1)
    steps = np.maximum(np.ceil(np.hypot(*np.diff(closed, axis=1)) / 0.03).astype(int), 1)
    starts = np.repeat(np.arange(steps.size), steps)
    within = np.arange(starts.size) - np.repeat(np.cumsum(steps) - steps, steps)
    points: Floats = closed[:, starts] + (closed[:, starts + 1] - closed[:, starts]) * (within / steps[starts])
    return points


def _bounds(outline: Floats) -> Box:
    if outline.size == 0:
        return (0.0, 0.0, 1.0, 1.0)
    low, high = outline.min(axis=1), outline.max(axis=1)
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _encloses(outer: Box, inner: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


def _contains(outline: Floats, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Even-odd test; labels need no exactness at the edge."""
    if outline.size == 0:
        return np.zeros(x.shape, np.bool_)
    ax, ay = outline[0][:, None], outline[1][:, None]
    bx, by = np.roll(ax, -1), np.roll(ay, -1)
    rise = np.where(ay == by, 1.0, by - ay)
    crosses = ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / rise + ax)
    odd: NDArray[np.bool_] = crosses.sum(axis=0) % 2 == 1
    return odd


def _away(points: Floats, x0: Floats, y0: Floats, x1: Floats, y1: Floats) -> Floats:
    """Distance from each box to each point, (boxes, points); 0 where the box holds the point."""
    if points.size == 0:
        return np.zeros((x0.size, 0))
    across = np.maximum(np.maximum(x0[:, None] - points[0], points[0] - x1[:, None]), 0.0)
    along = np.maximum(np.maximum(y0[:, None] - points[1], points[1] - y1[:, None]), 0.0)
    away: Floats = np.hypot(across, along)
    return away


def _any_in_boxes(points: Floats, x0: Floats, y0: Floats, x1: Floats, y1: Floats) -> NDArray[np.bool_]:
    px, py = points[0][:, None], points[1][:, None]
    hit: NDArray[np.bool_] = ((px >= x0) & (px <= x1) & (py >= y0) & (py <= y1)).any(axis=0)
    return hit


def _summed(values: NDArray[np.float64] | NDArray[np.bool_]) -> Floats:
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    sums[1:, 1:] = values.cumsum(axis=0).cumsum(axis=1)
    return sums


def _mean_under(sums: Floats, x0: Floats, y0: Floats, x1: Floats, y1: Floats) -> Floats:
    """Mean under each box, from the summed-area table."""
    rows, columns = sums.shape[0] - 1, sums.shape[1] - 1
    left, right = _span(x0, x1, columns)
    bottom, top = _span(y0, y1, rows)
    total = sums[top, right] - sums[bottom, right] - sums[top, left] + sums[bottom, left]
    mean: Floats = total / ((right - left) * (top - bottom))
    return mean


def _span(low: Floats, high: Floats, bins: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first = np.clip(np.floor(low * bins).astype(np.int64), 0, bins - 1)
    last = np.clip(np.ceil(high * bins).astype(np.int64), first + 1, bins)
    return first, last
