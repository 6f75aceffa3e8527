"""Scores → plotly figures, as plain dictionaries (pure functions; nothing here reads files or makes pages).

Fractions stand on linear axes of their log10 with ticks of our own, because files without disease and files where
nothing is called belong into the same picture and a logarithmic axis has no zero. A colour is a role, written `@role`;
the page gives it the value of its theme (`THEMES`), and `resolved` does so in Python.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from flowmrd.evaluation.defaults import StatisticDefaults
from flowmrd.evaluation.scores import ASSESSED, NEGATIVE, NOT_ASSESSABLE, POSITIVE, is_found
from flowmrd.evaluation.statistics import detection_curve, wilson
from flowmrd.evaluation.summary import (
    ALL,
    Metric,
    Pair,
    agreement_of,
    by_key,
    detection_of,
    level_name,
    quantified,
)
from flowmrd.evaluation.tables import fraction, number
from flowmrd.quantification.rare_events import Call
from flowmrd.reporting import figures as report_figures
from flowmrd.reporting.figures import FONT, plot_text

Figure: TypeAlias = dict[str, Any]

_ROLES = ("ink", "muted", "line", "plot", "target", "series")
THEMES: Mapping[str, Mapping[str, str]] = {
    "light": {
        **{role: str(report_figures.THEMES["light"][role]) for role in _ROLES},
        "positive": "#d55e00",
        "not_detected": "#1f5f99",
        "review": "#96468c",
        "grid": "#e6ebf0",
        "band": "rgba(213,94,0,0.16)",
    },
    "dark": {
        **{role: str(report_figures.THEMES["dark"][role]) for role in _ROLES},
        "positive": "#ff9a3c",
        "not_detected": "#7db4e8",
        "review": "#dd9ad2",
        "grid": "#26313d",
        "band": "rgba(255,154,60,0.20)",
    },
}
# Call → (word, symbol); shape and colour say the same, for print and for colour-blind readers.
CALLS = {
    str(Call.POSITIVE): ("positive", "circle"),
    str(Call.REVIEW): ("review", "diamond"),
    str(Call.NOT_DETECTED): ("not detected", "triangle-down"),
}
_OTHERS = ("square-open", "cross-open", "star-open", "hexagon-open", "triangle-up-open", "bowtie-open")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_ZERO_GAP = 0.8  # decades between the lowest value and the place that stands for zero


def resolved(figure: Any, theme: str) -> Any:
    """Give every `@role` of a figure its colour."""
    if isinstance(figure, dict):
        return {name: resolved(value, theme) for name, value in figure.items()}
    if isinstance(figure, list):
        return [resolved(value, theme) for value in figure]
    if isinstance(figure, str) and figure.startswith("@"):
        return THEMES[theme][figure[1:]]
    return figure


# ------------------------------------------------------------------------------------------------------------- figures


def truth_figure(pairs: Sequence[Pair], links: Mapping[str, str]) -> Figure | None:
    """Draw each file's result over its true fraction, both logarithmic with a place for zero.

    Parameters
    ----------
    pairs : files and what one method made of them
    links : case → address of its page, opened by a click
    """
    shown = [one for one in pairs if one.score.truth_fraction is not None and one.outcome.fraction is not None]
    if not shown:
        return None
    values = [
        value
        for one in shown
        for value in (one.score.truth_fraction, one.outcome.fraction)
        if value is not None and value > 0
    ]
    low, high, zero = _span(values)

    def place(value: float | None) -> float:
        return zero if not value else math.log10(value)

    # Files without disease share one place: spread by rank, not by chance, so that their intervals can be told apart.
    healthy = sorted((one for one in shown if not one.score.truth_fraction), key=lambda one: one.score.case)
    aside = {one.score.case: 0.4 * ((rank + 0.5) / len(healthy) - 0.5) * _ZERO_GAP for rank, one in enumerate(healthy)}

    data: list[Figure] = []
    for call, (word, symbol) in CALLS.items():
        mine = [one for one in shown if one.outcome.call == call]
        if not mine:
            continue
        y = [place(one.outcome.fraction) for one in mine]
        upper = [max(0.0, place(one.outcome.ci_high) - at) for one, at in zip(mine, y, strict=True)]
        lower = [max(0.0, at - max(place(one.outcome.ci_low), zero)) for one, at in zip(mine, y, strict=True)]
        data.append(
            {
                **_points(mine, links, word, symbol, f"@{call}"),
                "x": [round(place(one.score.truth_fraction) + aside.get(one.score.case, 0.0), 4) for one in mine],
                "y": [round(at, 4) for at in y],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [round(value, 4) for value in upper],
                    "arrayminus": [round(value, 4) for value in lower],
                    "color": f"@{call}",
                    "thickness": 1,
                    "width": 0,
                },
            }
        )
    axis = _log_axis(low, high, zero)
    return {
        "data": data,
        "layout": {
            **_layout(),
            "xaxis": {**axis, "title": {"text": "True fraction"}},
            "yaxis": {**axis, "title": {"text": "Result with its interval"}},
            "shapes": [
                _line((low, low), (high, high), "@ink", width=1.2),
                _line((low, low + math.log10(2)), (high - math.log10(2), high), "@muted", dash="dot"),
                _line((low + math.log10(2), low), (high, high - math.log10(2)), "@muted", dash="dot"),
            ],
        },
    }


def f1_figure(
    by_method: Mapping[str, Sequence[Pair]], levels: Sequence[float], links: Mapping[str, str]
) -> Figure | None:
    """Draw F1 of every assessable file by level with the level's median; other methods by their medians."""
    method, *others = by_method
    used = [
        level for level in sorted(levels) if any(_scored(one) and one.score.level == level for one in by_method[method])
    ]
    if not used:
        return None
    data: list[Figure] = []
    shapes: list[Figure] = []
    places: dict[str, float] = {}
    for i, level in enumerate(used):
        mine = sorted((one for one in by_method[method] if _scored(one) and one.score.level == level), key=_f1)
        # Spread by rank, not by chance: the same scores give the same picture.
        for rank, one in enumerate(mine):
            places[one.score.case] = i + (0 if len(mine) == 1 else 0.5 * ((rank * 0.618034) % 1 - 0.5))
        middle = float(np.median([_f1(one) for one in mine]))
        shapes.append(_line((i - 0.34, middle), (i + 0.34, middle), "@ink", width=2.2))
    for call, (word, symbol) in CALLS.items():
        mine = [
            one for one in by_method[method] if one.score.case in places and _scored(one) and one.outcome.call == call
        ]
        if mine:
            data.append(
                {
                    **_points(mine, links, word, symbol, f"@{call}"),
                    "x": [round(places[one.score.case], 4) for one in mine],
                    "y": [round(_f1(one), 4) for one in mine],
                }
            )
    for k, name in enumerate(others):
        medians = [
            (i, float(np.median(found)))
            for i, level in enumerate(used)
            if (found := [_f1(one) for one in by_method[name] if _scored(one) and one.score.level == level])
        ]
        if not medians:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plot_text(f"{name}, median", limit=28),
                "x": [i + 0.4 for i, _ in medians],
                "y": [round(value, 4) for _, value in medians],
                "hovertemplate": f"{plot_text(name)}: median F1 %{{y:.2f}}<extra></extra>",
                "marker": {"size": 9, "symbol": _OTHERS[k % len(_OTHERS)], "color": "@muted"},
            }
        )
    return {
        "data": data,
        "layout": {
            **_layout(),
            "xaxis": {
                **_axis(),
                "range": [-0.6, len(used) - 0.4],
                "tickmode": "array",
                "tickvals": list(range(len(used))),
                "ticktext": [_power(level) for level in used],
                "title": {"text": "Level (true fraction)"},
                "showgrid": False,
            },
            "yaxis": {**_axis(), "range": [-0.04, 1.04], "title": {"text": "F1 of events"}},
            "shapes": shapes,
        },
    }


def difference_figure(pairs: Sequence[Pair], links: Mapping[str, str]) -> Figure | None:
    """Draw log10(result / truth) over the geometric mean of both, with bias and limits of agreement."""
    known = quantified(pairs)
    if not known:
        return None
    one = agreement_of(pairs)
    middles = {
        item.score.case: 0.5 * math.log10((item.score.truth_fraction or 1.0) * (item.outcome.fraction or 1.0))
        for item in known
    }
    errors = [item.outcome.log10_error or 0.0 for item in known]
    low, high, _ = _span([10**value for value in middles.values()])
    bounds = [value for value in (one.low, one.high) if value is not None]
    most = max([0.35, *(abs(value) for value in (*errors, *bounds))]) * 1.12
    data: list[Figure] = []
    for call, (word, symbol) in CALLS.items():
        if mine := [item for item in known if item.outcome.call == call]:
            data.append(
                {
                    **_points(mine, links, word, symbol, f"@{call}"),
                    "x": [round(middles[item.score.case], 4) for item in mine],
                    "y": [round(item.outcome.log10_error or 0.0, 4) for item in mine],
                }
            )
    shapes = [_line((low, 0), (high, 0), "@line")]
    notes = []
    for value, name, dash in (
        (one.bias, "bias", "solid"),
        (one.low, "− 1.96 SD", "dash"),
        (one.high, "+ 1.96 SD", "dash"),
    ):
        if value is not None:
            shapes.append(_line((low, value), (high, value), "@ink", dash=dash, width=1.4))
            notes.append(_note(high, value, f"{name} ×{10**value:.2f}", xanchor="right", yanchor="bottom"))
    factors = [f for f in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if abs(math.log10(f)) <= most]
    return {
        "data": data,
        "layout": {
            **_layout(),
            "xaxis": {**_log_axis(low, high), "title": {"text": "Geometric mean of result and truth"}},
            "yaxis": {
                **_axis(),
                "range": [-most, most],
                "tickmode": "array",
                "tickvals": [round(math.log10(f), 5) for f in factors],
                "ticktext": [f"×{f:g}" for f in factors],
                "title": {"text": "Result by truth"},
            },
            "shapes": shapes,
            "annotations": notes,
        },
    }


def detection_figure(
    pairs: Sequence[Pair], levels: Sequence[float], rules: StatisticDefaults, links: Mapping[str, str]
) -> Figure | None:
    """Draw the share of files found by level, the probit curve with its band, and the level found in 95 %."""
    able = [one for one in pairs if one.score.standing == POSITIVE and one.score.truth_fraction]
    if not able:
        return None
    curve = detection_of(pairs, rules)
    healthy = [one for one in pairs if one.score.standing == NEGATIVE and one.outcome.status == ASSESSED]
    bounds = [value for value in (curve.lod, curve.low, curve.high) if value is not None and 1e-9 < value < 1]
    low, high, zero = _span([*(one.score.truth_fraction or 0.0 for one in able), *bounds])
    data: list[Figure] = []
    shapes: list[Figure] = []
    notes: list[Figure] = []
    if curve.slope is not None:
        x = np.linspace(low, high, 161)
        middle, lower, upper = detection_curve(curve, list(10**x), confidence=rules.confidence)
        grid = [round(float(value), 4) for value in x]
        flat = {"type": "scatter", "mode": "lines", "x": grid, "hoverinfo": "skip", "showlegend": False}
        data += [
            {**flat, "y": _rounded(upper), "line": {"width": 0, "color": "@target"}},
            {
                **flat,
                "y": _rounded(lower),
                "line": {"width": 0, "color": "@target"},
                "fill": "tonexty",
                "fillcolor": "@band",
            },
            {
                **flat,
                "y": _rounded(middle),
                "line": {"width": 2, "color": "@target"},
                "name": "probit",
                "showlegend": True,
            },
        ]
    if curve.lod is not None and low <= math.log10(curve.lod) <= high:
        at = math.log10(curve.lod)
        shapes.append(_line((at, 0), (at, rules.detection), "@target", dash="dash", width=1.4))
        shapes.append(_line((low, rules.detection), (at, rules.detection), "@target", dash="dash", width=1.4))
        notes.append(_note(at, 0.04, f"LoD {fraction(curve.lod)}", xanchor="left", yanchor="bottom"))
    elif curve.below is not None and curve.above is not None and curve.below <= curve.above:
        inside = {"type": "rect", "x0": math.log10(curve.below), "x1": math.log10(curve.above), "y0": 0, "y1": 1}
        shapes.append(
            {**inside, "xref": "x", "yref": "y", "layer": "below", "line": {"width": 0}, "fillcolor": "@band"}
        )
    shares = []
    for level in sorted(levels):
        mine = [one for one in able if one.score.level == level]
        if mine:
            at = float(np.mean([math.log10(one.score.truth_fraction or 1.0) for one in mine]))
            shares.append(
                (
                    at,
                    wilson(sum(is_found(one.outcome) for one in mine), len(mine), confidence=rules.confidence),
                    _power(level),
                )
            )
    if healthy:
        wrong = wilson(sum(is_found(one.outcome) for one in healthy), len(healthy), confidence=rules.confidence)
        shares.insert(0, (zero, wrong, "no disease"))
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "found, of files of a level",
            "x": [round(at, 4) for at, _, _ in shares],
            "y": [round(rate.value or 0.0, 4) for _, rate, _ in shares],
            "text": [f"{name}: {rate.k} of {rate.n} found" for _, rate, name in shares],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"size": 9, "symbol": "square", "color": "@ink"},
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [round((rate.high or 0.0) - (rate.value or 0.0), 4) for _, rate, _ in shares],
                "arrayminus": [round((rate.value or 0.0) - (rate.low or 0.0), 4) for _, rate, _ in shares],
                "color": "@ink",
                "thickness": 1.2,
                "width": 4,
            },
        }
    )
    for call, (word, symbol) in CALLS.items():
        if mine := [one for one in able if one.outcome.status == ASSESSED and one.outcome.call == call]:
            data.append(
                {
                    **_points(mine, links, word, symbol, f"@{call}"),
                    "x": [round(math.log10(one.score.truth_fraction or 1.0), 4) for one in mine],
                    "y": [1.06 if is_found(one.outcome) else -0.06 for one in mine],
                    "showlegend": False,
                    "opacity": 0.7,
                }
            )
    return {
        "data": data,
        "layout": {
            **_layout(),
            "xaxis": {**_log_axis(low, high, zero), "title": {"text": "True fraction"}},
            "yaxis": {
                **_axis(),
                "range": [-0.12, 1.12],
                "tickmode": "array",
                "tickvals": [0, 0.25, 0.5, 0.75, 0.95],
                "ticktext": ["0", "25 %", "50 %", "75 %", "95 %"],
                "title": {"text": "Probability of detection"},
            },
            "shapes": shapes,
            "annotations": notes,
        },
    }


def blank_figure(
    pairs: Sequence[Pair], metrics: Sequence[Metric], links: Mapping[str, str], *, target: float
) -> Figure | None:
    """Draw what is called in files without disease, in rising order, with limit of blank and decision line `target`."""
    healthy = sorted(
        (one for one in pairs if one.score.standing == NEGATIVE and one.outcome.fraction is not None),
        key=lambda one: (one.outcome.fraction or 0.0, one.score.case),
    )
    if not healthy:
        return None
    limit = by_key(metrics).get(("template", ALL, "", "lob_rank"))
    lob = limit.value if limit is not None else None
    low, high, zero = _span([one.outcome.fraction or 0.0 for one in healthy] + [lob or 0.0, target])
    order = {one.score.case: rank + 1 for rank, one in enumerate(healthy)}
    data: list[Figure] = []
    for call, (word, symbol) in CALLS.items():
        if mine := [one for one in healthy if one.outcome.call == call]:
            data.append(
                {
                    **_points(mine, links, word, symbol, f"@{call}"),
                    "x": [order[one.score.case] for one in mine],
                    "y": [
                        round(math.log10(value), 4) if (value := one.outcome.fraction or 0.0) > 0 else zero
                        for one in mine
                    ],
                }
            )
    count = len(healthy)
    shapes = [_line((0, math.log10(target)), (count + 1, math.log10(target)), "@muted", dash="dot")]
    notes = []
    if lob is not None:
        at = math.log10(lob) if lob > 0 else zero
        shapes.append(_line((0, at), (count + 1, at), "@ink", dash="dash", width=1.4))
        notes.append(_note(0.02 * count + 0.5, at, f"LoB {fraction(lob)}", xanchor="left", yanchor="bottom"))
    return {
        "data": data,
        "layout": {
            **_layout(),
            "xaxis": {
                **_axis(),
                "range": [0, count + 1],
                "title": {"text": "Files in rising order"},
            },
            "yaxis": {**_log_axis(low, high, zero), "title": {"text": "Called fraction"}},
            "shapes": shapes,
            "annotations": notes,
        },
    }


def time_figure(by_method: Mapping[str, Sequence[Pair]]) -> Figure | None:
    """Draw the seconds of each file over its events; `None` where time was not taken."""
    data: list[Figure] = []
    for k, (name, pairs) in enumerate(by_method.items()):
        mine = [
            (one.score.case, one.score.events, one.outcome.seconds)
            for one in pairs
            if one.outcome.status == ASSESSED and one.score.events and one.outcome.seconds is not None
        ]
        if mine:
            first = k == 0
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": "result" if first else plot_text(name, limit=28),
                    "x": [events for _, events, _ in mine],
                    "y": [seconds for _, _, seconds in mine],
                    "text": [plot_text(case) for case, _, _ in mine],
                    "hovertemplate": "%{text}<br>%{x:,} events, %{y:.1f} s<extra></extra>",
                    "marker": {
                        "size": 7,
                        "symbol": "circle" if first else _OTHERS[(k - 1) % len(_OTHERS)],
                        "color": "@series" if first else "@muted",
                    },
                }
            )
    if not data:
        return None
    return {
        "data": data,
        "layout": {
            **_layout(),
            "xaxis": {**_axis(), "rangemode": "tozero", "title": {"text": "Events of the file"}, "tickformat": "~s"},
            "yaxis": {**_axis(), "rangemode": "tozero", "title": {"text": "Seconds"}},
        },
    }


# --------------------------------------------------------------------------------------------------------------- parts


def _scored(one: Pair) -> bool:
    return one.score.standing == POSITIVE and one.outcome.status == ASSESSED and one.outcome.f1 is not None


def _f1(one: Pair) -> float:
    return one.outcome.f1 or 0.0


def _points(pairs: Sequence[Pair], links: Mapping[str, str], word: str, symbol: str, colour: str) -> Figure:
    """Return what a trace of files has besides its places: name, symbol, text under the pointer, page to open."""
    hollow = [one.score.standing == NOT_ASSESSABLE for one in pairs]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": word,
        "text": [_said(one) for one in pairs],
        "customdata": [links.get(one.score.case, "") for one in pairs],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "size": 8,
            "symbol": [f"{symbol}-open" if empty else symbol for empty in hollow],
            "color": colour,
            "line": {"width": 1, "color": colour},
            "opacity": 0.85,
        },
    }


def _said(one: Pair) -> str:
    score, outcome = one.score, one.outcome
    lines = [
        f"<b>{plot_text(score.case)}</b>",
        f"true {score.truth_events or 0:,} ({fraction(score.truth_fraction)})",
        f"called {outcome.called_events or 0:,} ({fraction(outcome.fraction)})",
    ]
    if outcome.f1 is not None:
        lines.append(f"F1 {number(outcome.f1)}")
    if score.standing == NOT_ASSESSABLE:
        lines.append("not assessable")
    return "<br>".join(lines)


def _span(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the ends of a logarithmic axis, and the place below it that stands for zero."""
    logs = [math.log10(value) for value in values if value > 0]
    low, high = (min(logs), max(logs)) if logs else (-5.0, -1.0)
    low, high = math.floor(low * 2 - 0.2) / 2, math.ceil(high * 2 + 0.2) / 2
    return low, high, low - _ZERO_GAP


def _log_axis(low: float, high: float, zero: float | None = None) -> Figure:
    marks = list(range(math.ceil(low), math.floor(high) + 1))
    places = [float(mark) for mark in marks]
    texts = [f"10{str(mark).translate(_SUPERSCRIPT)}" for mark in marks]
    if zero is not None:
        places.insert(0, zero)
        texts.insert(0, "0")
    start = low if zero is None else zero - 0.25
    return {**_axis(), "range": [start, high], "tickmode": "array", "tickvals": places, "ticktext": texts}


def _power(level: float) -> str:
    """Write a level for an axis: 10⁻⁴, 3·10⁻⁵."""
    text = level_name(level)
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{'' if mantissa == '1' else mantissa + '·'}10{exponent.translate(_SUPERSCRIPT)}"


def _axis() -> Figure:
    return {
        "showline": True,
        "linecolor": "@line",
        "tickcolor": "@line",
        "ticks": "outside",
        "ticklen": 4,
        "gridcolor": "@grid",
        "zeroline": False,
        "automargin": True,
    }


def _layout() -> Figure:
    return {
        "margin": {"l": 62, "r": 14, "t": 34, "b": 50},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "@plot",
        "font": {"family": FONT, "size": 12, "color": "@ink"},
        "hovermode": "closest",
        "dragmode": "zoom",
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1.01, "xanchor": "left", "yanchor": "bottom", "itemwidth": 30},
        "shapes": [],
        "annotations": [],
    }


def _line(
    start: tuple[float, float], end: tuple[float, float], colour: str, *, dash: str = "solid", width: float = 1
) -> Figure:
    return {
        "type": "line",
        "xref": "x",
        "yref": "y",
        "x0": start[0],
        "y0": start[1],
        "x1": end[0],
        "y1": end[1],
        "layer": "below",
        "line": {"color": colour, "width": width, "dash": dash},
    }


def _note(x: float, y: float, text: str, *, xanchor: str, yanchor: str) -> Figure:
    return {
        "x": x,
        "y": y,
        "xref": "x",
        "yref": "y",
        "xanchor": xanchor,
        "yanchor": yanchor,
        "showarrow": False,
        "text": text,
        "font": {"color": "@ink", "size": 11},
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]
