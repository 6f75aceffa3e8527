"""Values → plotly figures, as plain dictionaries (pure functions; nothing here reads files or makes pages).

Axes are linear in scaled units and carry their own ticks in channel values, because gates live in scaled units and a
plotly logarithmic axis has no zero. Arrays travel as base64 typed arrays, which plotly.js reads natively: a 256 × 256
density is 87 kB as bytes and would be 400 kB as numbers. Every text that comes from a file is HTML-escaped, since
plotly renders links and markup in labels. WebGL is not used: a page of twenty panels would need more contexts than a
browser grants, and remote desktops have none.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.transforms import Linear, make_transform, ticks
from flowmrd.records import BINS, Axis, ControlOverlay, GateShape, PlotPanel, TimeSeries
from flowmrd.reporting.labels import Placement, place_labels
from flowmrd.reporting.numbers import format_channel_value, format_count, format_share

Figure: TypeAlias = dict[str, Any]
Floats: TypeAlias = NDArray[np.float64]

# What every drawn figure is opened with: plotly.js offers to post a figure to a cloud service unless told not to.
CONFIG: Mapping[str, Any] = {
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "displaylogo": False,
    "responsive": True,
    "doubleClick": "reset",
    "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
}

# Density is one blue ramp and the target orange: the pair that stays apart in every common colour-vision deficiency and
# in print. `density` and `raster` are colour scales from the second stop on (zero is transparent).
THEMES: Mapping[str, Mapping[str, Any]] = {
    "light": {
        "ink": "#1c2530",
        "muted": "#5b6876",
        "line": "#8592a0",
        "plot": "#ffffff",
        "label": "rgba(255,255,255,0.74)",
        "gate": "#111820",
        "target": "#d55e00",
        "targetEdge": "#ffffff",
        "flag": "rgba(213,94,0,0.20)",
        "series": "#1f5f99",
        "density": ["#b4cde4", "#86add3", "#5587bd", "#2f639d", "#18427a", "#0a2550"],
        "raster": ["#e8750f", "#c24e00"],
        "normals": ["#e3e7eb", "#cdd4db", "#b3bcc6", "#97a3af"],
        "groups": {"accepted": "#d55e00", "review": "#5b2a97", "rejected": "#4d5966"},
        "groupRaster": {"accepted": ["#e8750f", "#c24e00"], "review": ["#a98bd0", "#6b3fa0"]},
        "timeline": {
            "car": "#b84300",
            "copies": "#6b3fa0",
            "b-cells": "#1f5f99",
            "mrd": "#0b6b50",
            "band": "rgba(86,98,113,0.16)",
            "window": "rgba(86,98,113,0.09)",
        },
    },
    "dark": {
        "ink": "#e6ebf1",
        "muted": "#9fadbc",
        "line": "#66758a",
        "plot": "#10161e",
        "label": "rgba(16,22,30,0.70)",
        "gate": "#f4f7fa",
        "target": "#ff9a3c",
        "targetEdge": "#10161e",
        "flag": "rgba(255,154,60,0.28)",
        "series": "#7db4e8",
        "density": ["#24405f", "#2f5a87", "#3f78ae", "#5c98cb", "#8bbae0", "#c9e1f4"],
        "raster": ["#ff8a1f", "#ffb46b"],
        "normals": ["#222b35", "#303b47", "#44515f", "#5d6b7a"],
        "groups": {"accepted": "#ff9a3c", "review": "#cfb2fa", "rejected": "#a9b5c2"},
        "groupRaster": {"accepted": ["#ff8a1f", "#ffb46b"], "review": ["#8d6ec0", "#c3a2f2"]},
        "timeline": {
            "car": "#ff9a3c",
            "copies": "#c3a2f2",
            "b-cells": "#7db4e8",
            "mrd": "#6fd3ac",
            "band": "rgba(163,176,191,0.22)",
            "window": "rgba(163,176,191,0.11)",
        },
    },
}

FONT = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', 'Liberation Sans', Arial, sans-serif"
)

MARKERS_MAX = 1500  # target events drawn one by one; above it a raster layer colours every occupied bin
_COARSE_BELOW = 16_384  # events of the parent; fewer are drawn on bins of twice the width
_TICK_GAP = 0.085  # least distance of two tick labels, as a share of the axis, on the smallest plot
# The plot area (pixels) and label sizes on the narrowest supported page (1280 px, three plots a row).
_PLOT_PX, _CHAR_PX, _BOLD_PX, _LINE_PX, _PAD_PX, _FONT_PX = 290.0, 6.5, 7.4, 14.5, 8.0, 11
_LABEL_CHARS = 22
_LEAST_SPAN = 0.12  # of a median's plot, scaled units: about half a decade
_BUSY_BINS = 64
_NORMAL_BINS = 96  # of the normals behind a search's groups: a few thousand cells, so coarse bins
_IN_CROWD = 150  # symbols that stand in a crowd too dense for one each
# Symbols of groups that are no accepted blasts (those are dots): told apart without colour.
SYMBOLS: Mapping[str, str] = {"review": "diamond-open", "rejected": "cross-thin-open"}


def panel_figure(panel: PlotPanel, *, review: NDArray[np.float32] | None = None) -> Figure:
    """Draw one step of the gating strategy: density of all events, gates with name, count and share, target events.

    Parameters
    ----------
    panel : density in counts per bin, gates and target events in scaled units of the two axes
    review : (2, n) events that wait for a person's judgement, drawn with a symbol of their own

    Returns
    -------
    {"data": …, "layout": …} as plotly.js and `plotly.graph_objects.Figure` take them, in the light theme. Traces name
    their role in `meta` (density, target), shapes and annotations in `name`, so that a page can restyle them.
    """
    theme = THEMES["light"]
    data: list[Figure] = []
    if (density := _density_trace(panel)) is not None:
        data.append(density)
    if review is not None:
        data.extend(event_traces(review, panel.x, panel.y, status="review", role="target"))
    data.extend(event_traces(panel.target, panel.x, panel.y))
    shapes: list[Figure] = []
    for gate in panel.gates:
        shapes.extend(_gate_shapes(gate, panel))
    placements = gate_placements(panel)
    shapes.extend(_leader_shapes(panel, placements))
    annotations = _gate_annotations(panel, placements)
    if not panel.density.any():
        annotations.append(_empty_note(panel))
    layout: Figure = {
        "margin": {"l": 62, "r": 12, "t": 10, "b": 50, "pad": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": theme["plot"],
        "font": {"family": FONT, "size": _FONT_PX, "color": theme["ink"]},
        "showlegend": False,
        "hovermode": False,
        "dragmode": "zoom",
        "xaxis": plot_axis(panel.x),
        "yaxis": plot_axis(panel.y),
        "shapes": shapes,
        "annotations": annotations,
    }
    return {"data": data, "layout": layout}


def overlay_figure(overlay: ControlOverlay) -> Figure:
    """Draw the sample's parent events and the matched controls' along one channel, logarithmic, with the cut.

    The sample is a solid line over a filled area, the control a dashed line.
    """
    theme = THEMES["light"]
    axis = overlay.axis
    width = (axis.hi - axis.lo) / len(overlay.sample)
    places = axis.lo + width * (np.arange(len(overlay.sample)) + 0.5)
    top = max(*overlay.sample, *overlay.control, 1.0)

    def line(counts: Sequence[float], meta: str, dash: str) -> Figure:
        return {
            "type": "scatter",
            "mode": "lines",
            "meta": meta,
            "x": typed(places.astype(np.float32)),
            "y": typed(np.maximum(np.asarray(counts), 0.1).astype(np.float32)),
            "line": {
                "width": 1.8,
                "dash": dash,
                "color": theme["target" if meta == "car" else "series"],
                "shape": "hvh",
            },
            "hoverinfo": "skip",
        }

    return {
        "data": [line(overlay.control, "series", "dash"), line(overlay.sample, "car", "solid")],
        "layout": {
            **_series_layout(),
            "margin": {"l": 64, "r": 12, "t": 10, "b": 50},
            "xaxis": {**plot_axis(axis)},
            "yaxis": {
                **_series_axis(),
                "type": "log",
                "range": [-0.7, math.log10(top) + 0.5],
                "tickvals": [10.0**power for power in range(math.ceil(math.log10(top)) + 1)],
                "title": {"text": "Events per bin"},
            },
            "shapes": [
                {
                    "type": "line",
                    "name": "event",
                    "x0": overlay.cut,
                    "x1": overlay.cut,
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": theme["ink"], "width": 1.5, "dash": "dot"},
                }
            ],
            "annotations": [
                {
                    "name": "event",
                    "text": "cut",
                    "showarrow": False,
                    "x": overlay.cut,
                    "xanchor": "left",
                    "xshift": 4,
                    "yref": "paper",
                    "y": 1.0,
                    "yanchor": "top",
                    "font": {"size": _FONT_PX, "color": theme["ink"]},
                }
            ],
        },
    }


def rate_figure(time: TimeSeries) -> Figure | None:
    """Draw events per second over the acquisition, flagged spans shaded; `None` where no clock gives a rate."""
    if not np.isfinite(time.rate).any():
        return None
    return {
        "data": [_line(time.seconds, time.rate, "x", "y")],
        "layout": {
            **_series_layout(),
            "margin": {"l": 64, "r": 12, "t": 10, "b": 44},
            "xaxis": {**_series_axis(), "title": {"text": "Time (s)"}},
            "yaxis": {**_series_axis(), "title": {"text": "Events per second"}, "rangemode": "tozero"},
            "shapes": [_flag_shape(span, "x", "y") for span in flagged_spans(time)],
            "annotations": [],
        },
    }


def medians_figure(
    time: TimeSeries, axes: Mapping[str, Axis], labels: Mapping[str, str], *, columns: int = 4
) -> Figure:
    """Draw every channel's median over the acquisition, one small plot each, on a common time axis.

    Parameters
    ----------
    time : `medians` is (bins, channels), scaled units
    axes : channel → an axis that shows it, for labels in channel values; others are labelled in scaled units
    labels : channel → its marker; channels without one keep their own name
    columns : plots in a row

    Raises
    ------
    ValueError
        `medians` is not (bins, channels)
    """
    expected = (time.seconds.size, len(time.channels))
    if time.medians.shape != expected:
        raise ValueError(f"medians: expected (bins, channels) = {expected}; got {time.medians.shape}")
    theme = THEMES["light"]
    rows = max(1, math.ceil(len(time.channels) / columns))
    title = "Time (s)" if np.isfinite(time.rate).any() else "Event"
    data: list[Figure] = []
    layout: Figure = {
        **_series_layout(),
        "margin": {"l": 48, "r": 8, "t": 24, "b": 40},
        "shapes": [],
        "annotations": [],
    }
    spans = flagged_spans(time)
    high, wide = 1 / rows, 1 / columns
    for i, channel in enumerate(time.channels):
        row, column = divmod(i, columns)
        x, y = ("x", "y") if i == 0 else (f"x{i + 1}", f"y{i + 1}")
        low, top = 1 - (row + 1) * high + 0.16 * high, 1 - row * high - 0.14 * high
        left, right = column * wide + 0.03, (column + 1) * wide - 0.022
        last = i + columns >= len(time.channels)
        data.append(_line(time.seconds, time.medians[:, i], x, y))
        layout[f"xaxis{x[1:]}"] = {
            **_series_axis(),
            "domain": [left, right],
            "anchor": y,
            "nticks": 4,
            "showticklabels": last,
            **({"matches": "x"} if i else {}),
            **({"title": {"text": title, "standoff": 4}} if last else {}),
        }
        layout[f"yaxis{y[1:]}"] = {
            **_series_axis(),
            **_median_scale(time.medians[:, i], axes.get(channel)),
            "domain": [low, top],
            "anchor": x,
        }
        layout["annotations"].append(
            {
                "name": "title",
                "xref": f"{x} domain",
                "yref": f"{y} domain",
                "x": 0,
                "y": 1,
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
                "text": f"<b>{plot_text(labels.get(channel, channel), limit=26)}</b>",
                "font": {"size": _FONT_PX, "color": theme["ink"]},
            }
        )
        layout["shapes"].extend(_flag_shape(span, x, y) for span in spans)
    return {"data": data, "layout": layout}


def _median_scale(medians: Floats, axis: Axis | None) -> Figure:
    """Range and labels of one small plot: never so narrow that noise looks like drift, labelled in channel values."""
    finite = medians[np.isfinite(medians)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    middle, half = (low + high) / 2, max((high - low) * 0.58, _LEAST_SPAN / 2)
    places = np.array([middle - 0.7 * half, middle, middle + 0.7 * half])
    if axis is None:
        texts = [f"{place:.2f}" for place in places]
    else:
        texts = [format_channel_value(float(value)) for value in make_transform(axis.transform).inverse(places)]
    return {
        "range": [middle - half, middle + half],
        "tickmode": "array",
        "tickvals": [round(float(place), 5) for place in places],
        "ticktext": texts,
    }


def flagged_spans(time: TimeSeries) -> tuple[tuple[float, float], ...]:
    """Join neighbouring flagged bins into spans, each to the middle between it and the next bin."""
    if time.seconds.size == 0:
        return ()
    flags = np.concatenate([[False], time.flagged, [False]])
    starts = np.flatnonzero(flags[1:] & ~flags[:-1])
    stops = np.flatnonzero(flags[:-1] & ~flags[1:]) - 1
    between = (time.seconds[1:] + time.seconds[:-1]) / 2
    edges = np.concatenate([time.seconds[:1], between, time.seconds[-1:]])
    return tuple((float(edges[a]), float(edges[b + 1])) for a, b in zip(starts, stops, strict=True))


def plot_text(text: str, *, limit: int = 48) -> str:
    """Make a name from a file fit for plotly: no markup, no control characters, at most `limit` characters."""
    clean = "".join(character if character.isprintable() else "�" for character in text)
    if len(clean) > limit:
        clean = clean[: limit - 1] + "…"
    return html.escape(clean, quote=False)


def axis_title(axis: Axis) -> str:
    """Name an axis: marker and channel, or the one name where they are the same."""
    if axis.marker and axis.marker != axis.channel:
        return f"{axis.marker} ({axis.channel})"
    return axis.channel or axis.marker


def target_bins(panel: PlotPanel, bins: int) -> NDArray[np.int64]:
    """Count target events per bin, (bins, bins) as `[iy, ix]`; events beyond the axes are in the border bins."""
    return _binned(panel.target, panel.x, panel.y, bins)


# ------------------------------------------------------------------------------------------------------------- density


def _density_trace(panel: PlotPanel) -> Figure | None:
    counts = panel.density
    if panel.parent_events < _COARSE_BELOW:
        # Few events leave holes between fine bins; twice the width reads better and is a quarter of the size.
        height, width = counts.shape
        counts = counts.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3))
    return _heatmap(counts, panel.x, panel.y, "density", THEMES["light"]["density"])


def log_bytes(counts: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale counts to 0 … 255 by their logarithm; every occupied bin is at least 1."""
    top = int(counts.max(initial=0))
    if top == 0:
        return np.zeros(counts.shape, np.uint8)
    # One look-up per bin instead of one logarithm: most bins hold few events.
    if top <= 65_536:
        table = np.log1p(np.arange(top + 1)) * (254 / math.log1p(top))
        table = np.rint(table) + 1
        table[0] = 0
        levels: NDArray[np.uint8] = table.astype(np.uint8)[counts]
        return levels
    scaled = np.rint(np.log1p(counts) * (254 / math.log1p(top))) + 1
    return np.where(counts > 0, scaled, 0).astype(np.uint8)


def _heatmap(counts: NDArray[Any], x: Axis, y: Axis, role: str, colours: Sequence[str]) -> Figure | None:
    """Make a heat map of counts, cropped to its occupied rows and columns."""
    rows, columns = np.flatnonzero(counts.any(axis=1)), np.flatnonzero(counts.any(axis=0))
    if rows.size == 0:
        return None
    height, width = counts.shape
    dx, dy = (x.hi - x.lo) / width, (y.hi - y.lo) / height
    z = log_bytes(counts[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return {
        "type": "heatmap",
        "meta": role,
        "z": typed(z),
        "x0": x.lo + (float(columns[0]) + 0.5) * dx,
        "dx": dx,
        "y0": y.lo + (float(rows[0]) + 0.5) * dy,
        "dy": dy,
        "zmin": 0,
        "zmax": 255,
        "zsmooth": False,
        "showscale": False,
        "hoverinfo": "skip",
        "colorscale": _colour_scale(colours),
    }


def _colour_scale(colours: Sequence[str]) -> list[list[Any]]:
    """Transparent for zero, then the colours from the first occupied level to the last."""
    first = 1 / 255
    steps = [[first + (1 - first) * i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]
    return [[0, "rgba(0,0,0,0)"], [first * 0.99, "rgba(0,0,0,0)"], *steps]


def typed(array: NDArray[Any]) -> Figure:
    """Encode an array as plotly's typed-array specification."""
    kinds = {"uint8": "u1", "float32": "f4"}
    spec: Figure = {"dtype": kinds[array.dtype.name], "bdata": base64.b64encode(array.tobytes()).decode("ascii")}
    if array.ndim == 2:
        spec["shape"] = f"{array.shape[0]}, {array.shape[1]}"
    return spec


# -------------------------------------------------------------------------------------------------------------- target


def event_traces(
    points: NDArray[np.float32], x: Axis, y: Axis, *, status: str = "", role: str = "group"
) -> list[Figure]:
    """Draw events so that none is lost: one marker each, or for many a raster and markers for those that stand alone.

    Parameters
    ----------
    points : (2, n) in scaled units
    status : accepted, review or rejected, each with a symbol of its own; empty for the target of a panel
    role : first part of the traces' role where there is a status
    """
    events = points.shape[1]
    if events == 0:
        return []
    theme = THEMES["light"]
    name = f"{role}-{status}" if status else "target"
    px = np.clip(points[0], x.lo, x.hi).astype(np.float32)
    py = np.clip(points[1], y.lo, y.hi).astype(np.float32)
    traces: list[Figure] = []
    if events > MARKERS_MAX:
        counts = _binned(points, x, y, BINS)
        crowd = _neighbourhood(counts)[_bin_index(points[1], y, BINS), _bin_index(points[0], x, BINS)]
        if status != "rejected":
            colours = theme["groupRaster"][status] if status else theme["raster"]
            raster = _heatmap(counts, x, y, f"{name}-raster", colours)
            assert raster is not None
            traces.append(raster)
        # A bin is little over a pixel, so a lone event gets a marker that the eye can find; where symbols tell what
        # an event is, some stand in the crowd as well.
        alone = np.flatnonzero(crowd <= 3)
        keep = alone[np.lexsort((px[alone], py[alone], crowd[alone]))][:MARKERS_MAX]
        if status:
            keep = np.union1d(keep, np.arange(0, events, -(-events // _IN_CROWD)))
    else:
        keep = np.lexsort((px, py))
    if keep.size:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "meta": name,
                "x": typed(px[keep]),
                "y": typed(py[keep]),
                "hoverinfo": "skip",
                "cliponaxis": False,
                "marker": _marker(events, status),
            }
        )
    return traces


def _marker(events: int, status: str) -> Figure:
    """Give events a symbol by their status, larger where they are few."""
    theme = THEMES["light"]
    size = 7 if events <= 60 else 4.6 if events <= 400 else 3.2 if events <= MARKERS_MAX else 2.4
    if status in SYMBOLS:
        colour = theme["groups"][status]
        line = {"width": 1.3 if events <= 400 else 0.9, "color": colour}
        return {"size": size + 2.4, "symbol": SYMBOLS[status], "color": colour, "line": line}
    line = {"width": 0.8 if events <= 60 else 0, "color": theme["targetEdge"]}
    return {"size": size, "color": theme["groups"]["accepted"] if status else theme["target"], "line": line}


def _binned(points: NDArray[np.float32], x: Axis, y: Axis, bins: int) -> NDArray[np.int64]:
    index = _bin_index(points[1], y, bins) * bins + _bin_index(points[0], x, bins)
    counts: NDArray[np.int64] = np.bincount(index, minlength=bins * bins).reshape(bins, bins)
    return counts


def normals_trace(points: NDArray[np.float32], x: Axis, y: Axis) -> Figure | None:
    """Draw normal cells (2, n) as a grey density behind everything else; `None` where there are none."""
    if points.shape[1] == 0:
        return None
    return _heatmap(_binned(points, x, y, _NORMAL_BINS), x, y, "normals", THEMES["light"]["normals"])


def _bin_index(values: NDArray[np.float32], axis: Axis, bins: int) -> NDArray[np.int64]:
    position = np.floor((values.astype(np.float64) - axis.lo) * (bins / (axis.hi - axis.lo)))
    return np.clip(position, 0, bins - 1).astype(np.int64)


def _neighbourhood(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Events within two bins of each bin."""
    padded = np.pad(counts, 2)
    rows: NDArray[np.int64] = sum((padded[i : i + counts.shape[0]] for i in range(5)), np.zeros((), np.int64))
    total: NDArray[np.int64] = sum((rows[:, i : i + counts.shape[1]] for i in range(5)), np.zeros((), np.int64))
    return total


# --------------------------------------------------------------------------------------------------------------- gates


def _gate_shapes(gate: GateShape, panel: PlotPanel) -> list[Figure]:
    """Draw a gate: a line along every finite side, and a faint fill where an open side leaves the line unclosed."""
    is_target = gate.population == panel.target_name
    theme = THEMES["light"]
    colour = theme["target"] if is_target else theme["gate"]
    name = "gate-target" if is_target else "gate"
    base: Figure = {"type": "path", "layer": "above", "name": name, "xref": "x", "yref": "y"}
    base |= {"line": {"color": colour, "width": 2 if is_target else 1.4}, "fillcolor": "rgba(0,0,0,0)"}
    shapes: list[Figure] = []
    for piece in gate_pieces(gate.outline):
        clipped = _clipped(piece, panel)
        if np.isfinite(piece).all():
            shapes.append({**base, "path": _path(clipped)})
            continue
        # The four quadrants together are the whole plot; shading it would say nothing.
        if gate.kind != "quadrant":
            area = {"path": _path(clipped), "line": {"width": 0}, "fillcolor": colour, "opacity": 0.05}
            shapes.append({**base, **area, "name": f"{name}-area"})
        if sides := _finite_sides(piece, clipped):
            shapes.append({**base, "path": sides})
    return shapes


def gate_pieces(outline: Floats) -> list[Floats]:
    """Split an outline into closed pieces of vertices.

    Columns of NaN stand between pieces (kept stretches of time are several); a piece of two columns is a box given by
    opposite corners, as intervals are.
    """
    gaps = np.flatnonzero(np.isnan(outline).any(axis=0))
    pieces = []
    for part in np.split(outline, gaps, axis=1):
        piece = part[:, ~np.isnan(part).any(axis=0)]
        if piece.shape[1] == 2:
            (x0, x1), (y0, y1) = piece
            piece = np.array([[x0, x1, x1, x0], [y0, y0, y1, y1]])
        if piece.shape[1] > 2:
            pieces.append(piece)
    return pieces


def _finite_sides(piece: Floats, clipped: Floats) -> str:
    """Path along the sides that lie inside the plot; the gate goes on beyond an infinite one, so it gets no line."""
    closed = np.concatenate([piece, piece[:, :1]], axis=1)
    shown = np.concatenate([clipped, clipped[:, :1]], axis=1)
    sides = []
    for i in range(piece.shape[1]):
        infinite = [not math.isfinite(closed[k, i]) and closed[k, i] == closed[k, i + 1] for k in (0, 1)]
        if not any(infinite) and not np.array_equal(shown[:, i], shown[:, i + 1]):
            sides.append(f"M{shown[0, i]:.5g},{shown[1, i]:.5g}L{shown[0, i + 1]:.5g},{shown[1, i + 1]:.5g}")
    return "".join(sides)


def _clipped(outline: Floats, panel: PlotPanel) -> Floats:
    """Bring infinite sides to the plot's edges; finite vertices stay where they are (plotly clips what it draws)."""
    clipped: Floats = np.array(outline, np.float64)
    for row, axis in zip(clipped, (panel.x, panel.y), strict=True):
        row[np.isneginf(row)] = axis.lo
        row[np.isposinf(row)] = axis.hi
    return clipped


def _path(outline: Floats) -> str:
    return "M" + "L".join(f"{x:.5g},{y:.5g}" for x, y in outline.T) + "Z"


def gate_label(gate: GateShape, *, symbol: str = "") -> str:
    """Return the two lines of a gate's label: name; count and share of the parent."""
    return (
        f"{symbol}<b>{plot_text(gate.population, limit=_LABEL_CHARS)}</b><br>"
        f"{format_count(gate.events)} · {format_share(gate.events, gate.parent_events)}"
    )


def gate_placements(panel: PlotPanel) -> tuple[Placement, ...]:
    """Place the labels of a panel's gates, in units of the plot area (0 … 1)."""
    low = np.array([[panel.x.lo], [panel.y.lo]])
    span = np.array([[panel.x.hi - panel.x.lo], [panel.y.hi - panel.y.lo]])
    outlines = []
    for gate in panel.gates:
        pieces = [np.clip((_clipped(piece, panel) - low) / span, 0.0, 1.0) for piece in gate_pieces(gate.outline)]
        # A label goes with the largest piece.
        outlines.append(max(pieces, key=_box_area, default=np.zeros((2, 0))))
    sizes = [_label_size(gate) for gate in panel.gates]
    open_sided = [bool(np.isinf(gate.outline).any()) for gate in panel.gates]
    return place_labels(outlines, sizes, _busy(panel), target_bins(panel, _BUSY_BINS) > 0, open_sided=open_sided)


def _box_area(outline: Floats) -> float:
    width, height = np.ptp(outline, axis=1)
    return float(width * height)


def _symbol(gate: GateShape, panel: PlotPanel) -> str:
    """Show which points a list of events means; it has no outline that would."""
    if gate.kind != "members":
        return ""
    return "● " if gate.population == panel.target_name else "◇ "


def _label_size(gate: GateShape) -> tuple[float, float]:
    """Width and height of a gate's label on the smallest plot, as shares of the plot area."""
    name = (min(len(gate.population), _LABEL_CHARS) + 2 * (gate.kind == "members")) * _BOLD_PX
    numbers = len(f"{format_count(gate.events)} · {format_share(gate.events, gate.parent_events)}") * _CHAR_PX
    return ((max(name, numbers) + _PAD_PX) / _PLOT_PX, (2 * _LINE_PX + _PAD_PX) / _PLOT_PX)


def _busy(panel: PlotPanel) -> Floats:
    """Coarse log density, 0 … 1, for keeping labels off the events."""
    height, width = panel.density.shape
    coarse = panel.density.reshape(_BUSY_BINS, height // _BUSY_BINS, _BUSY_BINS, width // _BUSY_BINS).sum(axis=(1, 3))
    top = float(coarse.max(initial=0))
    busy: Floats = np.log1p(coarse) / math.log1p(top) if top else np.zeros(coarse.shape)
    return busy


def _leader_shapes(panel: PlotPanel, placements: Sequence[Placement]) -> list[Figure]:
    """Draw a line from each label that is away from its gate; it starts at the label's anchor, which never moves."""
    return [
        {
            "type": "path",
            "name": "leader",
            "layer": "above",
            "xref": "x",
            "yref": "y",
            "path": f"M{_in_axis(place.x, panel.x)},{_in_axis(place.y, panel.y)}"
            f"L{_in_axis(place.leader[0], panel.x)},{_in_axis(place.leader[1], panel.y)}",
            "line": {"color": THEMES["light"]["muted"], "width": 1},
        }
        for place in placements
        if place.leader is not None
    ]


def _gate_annotations(panel: PlotPanel, placements: Sequence[Placement]) -> list[Figure]:
    theme = THEMES["light"]
    annotations = []
    for gate, place in zip(panel.gates, placements, strict=True):
        is_target = gate.population == panel.target_name
        x, y = _in_axis(place.x, panel.x), _in_axis(place.y, panel.y)
        note: Figure = {
            "name": "label-target" if is_target else "label",
            "text": gate_label(gate, symbol=_symbol(gate, panel)),
            "x": x,
            "y": y,
            "xref": "x",
            "yref": "y",
            "xanchor": place.xanchor,
            "yanchor": place.yanchor,
            "showarrow": False,
            "align": "left",
            "borderpad": 2,
            "bordercolor": theme["target"] if is_target else "rgba(0,0,0,0)",
            "borderwidth": 1,
            "bgcolor": theme["label"],
            "font": {"size": _FONT_PX, "color": theme["ink"]},
        }
        annotations.append(note)
    return annotations


def _empty_note(panel: PlotPanel) -> Figure:
    return {
        "name": "note",
        "text": f"No events in {plot_text(panel.parent, limit=_LABEL_CHARS)}",
        "xref": "x domain",
        "yref": "y domain",
        "x": 0.5,
        "y": 0.5,
        "showarrow": False,
        "font": {"size": 13, "color": THEMES["light"]["muted"]},
    }


def _in_axis(share: float, axis: Axis) -> float:
    return round(axis.lo + share * (axis.hi - axis.lo), 5)


# ---------------------------------------------------------------------------------------------------------------- axes


def plot_axis(axis: Axis) -> Figure:
    """Make a plot's axis, linear in scaled units and labelled in channel values."""
    transform = make_transform(axis.transform)
    major, minor = ticks(transform, axis.lo, axis.hi)
    theme = THEMES["light"]
    return {
        "range": [axis.lo, axis.hi],
        "minallowed": axis.lo,
        "maxallowed": axis.hi,
        "title": {"text": plot_text(axis_title(axis)), "standoff": 6},
        "tickmode": "array",
        "tickvals": [round(position, 6) for position, _ in major],
        "ticktext": thinned_labels(major, axis.hi - axis.lo, keep_first=isinstance(transform, Linear)),
        "ticks": "outside",
        "ticklen": 6,
        "minor": {
            "tickmode": "array",
            "tickvals": [round(position, 5) for position in minor],
            "ticks": "outside",
            "ticklen": 3,
        },
        "tickcolor": theme["line"],
        "showgrid": False,
        "zeroline": False,
        "showline": True,
        "mirror": True,
        "linecolor": theme["line"],
        "linewidth": 1,
        "automargin": False,
    }


def thinned_labels(major: Sequence[tuple[float, str]], span: float, *, keep_first: bool = False) -> list[str]:
    """Blank the tick labels that would run into a neighbour.

    Zero and the high decades stay and the decades squeezed around zero go, as a reader needs the former; on a linear
    axis (`keep_first`) labels are kept from the left.
    """
    zero = next((position for position, label in major if label == "0"), -math.inf)

    def rank(index: int) -> tuple[int, float]:
        position, label = major[index]
        if keep_first:
            return (0, position)
        return (0 if label == "0" else 1, -abs(position - zero) if math.isfinite(zero) else -position)

    kept: list[int] = []
    for index in sorted(range(len(major)), key=rank):
        if all(abs(major[index][0] - major[other][0]) >= _TICK_GAP * span for other in kept):
            kept.append(index)
    return [label if index in kept else "" for index, (_, label) in enumerate(major)]


# -------------------------------------------------------------------------------------------------------------- series


def _line(x: Floats, y: Floats, xaxis: str, yaxis: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": "series",
        "x": typed(x.astype(np.float32)),
        "y": typed(y.astype(np.float32)),
        "xaxis": xaxis,
        "yaxis": yaxis,
        "line": {"width": 1.2, "color": THEMES["light"]["series"]},
        "hoverinfo": "skip",
    }


def _series_layout() -> Figure:
    theme = THEMES["light"]
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": theme["plot"],
        "font": {"family": FONT, "size": _FONT_PX, "color": theme["ink"]},
        "showlegend": False,
        "hovermode": False,
        "dragmode": "zoom",
    }


def _series_axis() -> Figure:
    theme = THEMES["light"]
    return {
        "showgrid": False,
        "zeroline": False,
        "showline": True,
        "linecolor": theme["line"],
        "tickcolor": theme["line"],
        "ticks": "outside",
        "ticklen": 4,
        "tickformat": "~s",
    }


def _flag_shape(span: tuple[float, float], x: str, y: str) -> Figure:
    return {
        "type": "rect",
        "name": "flag",
        "layer": "below",
        "xref": x,
        "yref": f"{y} domain",
        "x0": span[0],
        "x1": span[1],
        "y0": 0,
        "y1": 1,
        "line": {"width": 0},
        "fillcolor": THEMES["light"]["flag"],
    }
