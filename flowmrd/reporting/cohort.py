"""A cohort → plotly figures, as plain dictionaries (pure functions; nothing here reads files or makes pages).

Every builder takes the theme, `light` or `dark`. What a colour says, a symbol, dash or pattern says as well: the
figures are read in print and by people who see colours differently. Percentages of MRD lie on a linear axis of log10
with ticks of its own, since a logarithmic axis has no place for "not detected". Texts from tables are HTML-escaped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from flowmrd.clinical.endpoints import Outcomes
from flowmrd.clinical.outcomes import CAUSES, Subject, SurvivalAnalysis, cause_in_words, visit_calls
from flowmrd.clinical.response import ResponseCall
from flowmrd.clinical.rules import Event, Response, Visit
from flowmrd.clinical.survival import kaplan_meier
from flowmrd.quantification.kinetics import Course
from flowmrd.reporting.figures import FONT, Figure, plot_text
from flowmrd.reporting.numbers import counted, significant

Theme: TypeAlias = Literal["light", "dark"]

# Okabe and Ito's colours, shifted for contrast on white and on near black.
COLOURS: Mapping[str, Mapping[str, str]] = {
    "light": {
        "ink": "#1c2530",
        "muted": "#5b6876",
        "line": "#8592a0",
        "grid": "#e4e9ee",
        "plot": "#ffffff",
        "bar": "#d3dbe3",
        "first": "#17548a",
        "second": "#b3450a",
        "third": "#00795a",
        "band": "rgba(23,84,138,0.16)",
        "one": "rgba(91,104,118,0.55)",
        "CR": "#0a5a94",
        "CRh": "#2f8fc9",
        "CRi": "#7cb8dd",
        "MLFS": "#8592a0",
        "NR": "#d98c00",
        "PD": "#b3450a",
        "REL": "#c22f6b",
        "NE": "#5b6876",
        "event": "#1c2530",
        "fill1": "rgba(194,47,107,0.55)",
        "fill2": "rgba(28,37,48,0.55)",
        "fill3": "rgba(0,121,90,0.45)",
        "fill0": "rgba(23,84,138,0.10)",
    },
    "dark": {
        "ink": "#e6ebf1",
        "muted": "#9fadbc",
        "line": "#66758a",
        "grid": "#26313d",
        "plot": "#10161e",
        "bar": "#33404e",
        "first": "#7db4e8",
        "second": "#ff9a3c",
        "third": "#5fd0a8",
        "band": "rgba(125,180,232,0.22)",
        "one": "rgba(159,173,188,0.55)",
        "CR": "#4fa3e3",
        "CRh": "#8cc8f2",
        "CRi": "#c4e2f7",
        "MLFS": "#9fadbc",
        "NR": "#f0b429",
        "PD": "#ff9a3c",
        "REL": "#ff7fb0",
        "NE": "#9fadbc",
        "event": "#e6ebf1",
        "fill1": "rgba(255,127,176,0.60)",
        "fill2": "rgba(230,235,241,0.55)",
        "fill3": "rgba(95,208,168,0.50)",
        "fill0": "rgba(125,180,232,0.12)",
    },
}
# Response class → symbol; all relapses share one, since where it was is said by the hover text and the table.
SYMBOLS: Mapping[str, str] = {
    "CR": "circle",
    "CRh": "square",
    "CRi": "diamond",
    "MLFS": "triangle-up",
    "NR": "x",
    "PD": "cross",
    "REL": "triangle-down",
    "NE": "circle-open",
}
# Last part of an analysis' name → what its line is called beside the others.
_SHORT = {"censor_sct": "alloSCT: censored", "restricted": "alloSCT: left out", "ignore_sct": "alloSCT: ignored"}
_ROW_PX = 24
_FONT_PX = 12
_MRD_FLOOR = 1e-6  # fraction; nothing is drawn below it


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A figure with the height it needs, and what it shows, for readers who do not see it."""

    figure: Figure
    height: int
    text: str


# ---------------------------------------------------------------------------------------------------------------- frame


def _layout(theme: Theme, *, height: int, margin: Mapping[str, int] | None = None, **more: Any) -> Figure:
    look = COLOURS[theme]
    layout: Figure = {
        "height": height,
        "margin": {"l": 70, "r": 20, "t": 12, "b": 52, **(margin or {})},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": look["plot"],
        "font": {"family": FONT, "size": _FONT_PX, "color": look["ink"]},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": look["plot"], "bordercolor": look["line"], "font": {"color": look["ink"]}},
        "dragmode": False,
        "showlegend": True,
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "itemclick": False,
            "itemdoubleclick": False,
            "traceorder": "normal",
        },
        "shapes": [],
        "annotations": [],
    }
    layout.update(more)
    return layout


def _axis(theme: Theme, title: str = "", **more: Any) -> Figure:
    look = COLOURS[theme]
    axis: Figure = {
        "linecolor": look["line"],
        "tickcolor": look["line"],
        "gridcolor": look["grid"],
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "fixedrange": True,
        "title": {"text": title, "standoff": 8},
    }
    axis.update(more)
    return axis


def _day_axis(theme: Theme, last: float, *, title: str = "Days after infusion", **more: Any) -> Figure:
    ticks = day_ticks(last)
    return _axis(theme, title, range=[-last * 0.015, last * 1.03], tickmode="array", tickvals=ticks, **more)


def day_ticks(last: float) -> list[int]:
    """Choose days to label, so that the visits of a trial lie on them.

    Examples
    --------
    >>> day_ticks(400), day_ticks(95)
    ([0, 60, 120, 180, 240, 300, 365], [0, 20, 40, 60, 80])
    """
    if last <= 120:
        step = next(one for one in (7, 14, 20, 30) if last / one <= 6)
        return list(range(0, int(last) + 1, step))
    if last <= 440:
        return [day for day in (0, 60, 120, 180, 240, 300, 365, 420) if day <= last]
    step = next((one for one in (180, 365, 730) if last / one <= 8), 1460)
    return list(range(0, int(last) + 1, step))


def _day_line(day: float, theme: Theme, text: str, *, last: float, low: bool = False) -> tuple[Figure, Figure]:
    """Return a line at a day and its label, at the lower end where curves run along the upper."""
    look = COLOURS[theme]
    shape = {
        "type": "line",
        "x0": day,
        "x1": day,
        "yref": "y domain",
        "y0": 0,
        "y1": 1,
        "line": {"color": look["line"], "width": 1, "dash": "dot"},
        "layer": "below",
    }
    left = day > 0.85 * last  # no room beside the line at the right end
    note = {
        "x": day,
        "xanchor": "right" if left else "left",
        "xshift": -4 if left else 4,
        "yref": "y domain",
        "y": 0.03 if low else 1,
        "yanchor": "bottom" if low else "top",
        "text": text,
        "showarrow": False,
        "font": {"color": look["muted"], "size": 11},
    }
    return shape, note


def kind_of(response: Response) -> str:
    """Return the class as figures tell it apart: all relapses, and what comes after one, are `REL`."""
    if response in {Response.REL_BM, Response.REL_EM, Response.REL_COMB, Response.POST_REL}:
        return "REL"
    return response.value


# -------------------------------------------------------------------------------------------------------------- swimmer


def swimmer_figure(outcomes: Outcomes, theme: Theme = "light") -> Drawn:
    """One lane a patient, longest follow-up on top: class at each visit, relapse, alloSCT, death, ongoing."""
    look = COLOURS[theme]
    subjects = sorted(outcomes.subjects, key=lambda one: (-(one.followed_to or 0), one.patient_id))
    lane = {one.patient_id: i for i, one in enumerate(reversed(subjects))}
    last = max((one.followed_to or 0 for one in subjects), default=1) or 1
    data: list[Figure] = [
        {
            "type": "bar",
            "orientation": "h",
            "y": [lane[one.patient_id] for one in subjects],
            "x": [one.followed_to or 0 for one in subjects],
            "width": 0.42,
            "marker": {"color": look["bar"], "line": {"width": 0}},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    data.extend(_class_traces(outcomes.calls, lane, theme))
    marks: list[tuple[str, str, str, list[tuple[str, int]]]] = [
        ("MRD relapse", "triangle-down-open", "REL", _days(subjects, "mrd_relapse_day")),
        ("alloSCT", "hexagon2", "third", _days(subjects, "allosct_day")),
        ("Death", "x-thin-open", "event", _days(subjects, "death_day")),
        (
            "Alive at last contact",
            "triangle-right",
            "muted",
            [(one.patient_id, one.followed_to) for one in subjects if one.death_day is None and one.followed_to],
        ),
    ]
    if not outcomes.calls:
        marks.insert(0, ("Relapse", "triangle-down", "REL", _days(subjects, "relapse_day")))
        marks.insert(0, ("Remission", "circle", "CR", _days(subjects, "remission_day")))
    for name, symbol, colour, places in marks:
        if places:
            heavy = symbol.endswith("-open")
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "x": [day for _, day in places],
                    "y": [lane[patient] for patient, _ in places],
                    "marker": {
                        "symbol": symbol,
                        "size": 11 if heavy else 12,
                        "color": look[colour],
                        "line": {"width": 2.5 if heavy else 1, "color": look[colour] if heavy else look["plot"]},
                    },
                    "text": [f"{plot_text(patient)}, day {day}: {name}" for patient, day in places],
                    "hovertemplate": "%{text}<extra></extra>",
                    "cliponaxis": False,
                }
            )
    height = _ROW_PX * max(len(subjects), 3) + 120
    layout = _layout(
        theme,
        height=height,
        margin={"l": 96, "t": 44},
        xaxis=_day_axis(theme, last),
        yaxis=_axis(
            theme,
            range=[-0.7, len(subjects) - 0.3],
            tickmode="array",
            tickvals=list(lane.values()),
            ticktext=[plot_text(one, limit=14) for one in lane],
            showgrid=False,
            ticks="",
        ),
        barmode="overlay",
    )
    text = (
        f"Swimmer plot of {len(subjects)} patients: response at each visit, relapse, alloSCT, death and last contact."
    )
    return Drawn(figure={"data": data, "layout": layout}, height=height, text=text)


def _days(subjects: Sequence[Subject], name: str) -> list[tuple[str, int]]:
    return [(one.patient_id, day) for one in subjects if (day := getattr(one, name)) is not None]


def _class_traces(calls: Sequence[ResponseCall], lane: Mapping[str, int], theme: Theme) -> Iterable[Figure]:
    look = COLOURS[theme]
    for name, symbol in SYMBOLS.items():
        # The first visit of a relapse is drawn as one; the visits after it say nothing new.
        here = [
            call
            for call in calls
            if call.day is not None
            and call.patient_id in lane
            and kind_of(call.unseen) == name
            and call.unseen is not Response.POST_REL
        ]
        if not here:
            continue
        title = {"REL": "Relapse", "NE": "Not evaluable"}.get(name, name)
        hollow = symbol.endswith("-open")
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": title,
            "x": [call.day for call in here],
            "y": [lane[call.patient_id] for call in here],
            "marker": {
                "symbol": symbol,
                "size": 13,
                "color": look[name],
                "line": {"width": 2 if hollow else 1, "color": look[name] if hollow else look["plot"]},
            },
            "text": [_call_text(call) for call in here],
            "hovertemplate": "%{text}<extra></extra>",
            "cliponaxis": False,
        }


def _call_text(call: ResponseCall) -> str:
    shown = (
        call.unseen.value if call.response is Response.NE and call.unseen is not Response.NE else call.response.value
    )
    place = "" if call.in_window else ", outside the window"
    flags = f" ({', '.join(call.flags)})" if call.flags else ""
    return f"{plot_text(call.patient_id)}, day {call.day}, {call.timepoint}{place}: {shown}{flags}"


# ------------------------------------------------------------------------------------------------------------- survival


def survival_figure(
    analysis: SurvivalAnalysis,
    others: Sequence[SurvivalAnalysis] = (),
    *,
    horizon_day: int,
    origin: int = 0,
    theme: Theme = "light",
) -> Drawn:
    """Kaplan–Meier curve with its pointwise band, censorings, risk table; other analyses of the same as broken lines.

    Parameters
    ----------
    analysis : drawn in full
    others : drawn as lines, for contrast
    horizon_day : marked; days after infusion
    origin : day of time zero, where it is not the infusion
    """
    look = COLOURS[theme]
    curve = analysis.estimate
    shown = [one for one in (analysis, *others) if one.estimate is not None]
    last = (
        max((float(one.estimate.time[-1]) for one in shown if one.estimate is not None), default=horizon_day) + origin
    )
    last = max(last, horizon_day)
    data: list[Figure] = []
    if curve is not None:
        days = [day + origin for day in curve.time.tolist()]
        low = [
            1.0 if math.isnan(one) and s == 1 else None if math.isnan(one) else one
            for one, s in zip(curve.ci_low.tolist(), curve.survival.tolist(), strict=True)
        ]
        high = [
            1.0 if math.isnan(one) and s == 1 else None if math.isnan(one) else one
            for one, s in zip(curve.ci_high.tolist(), curve.survival.tolist(), strict=True)
        ]
        # Where S is 0 the band does not exist: it ends with the last one that does.
        known = [i for i, one in enumerate(low) if one is not None]
        band_days = [float(origin), *(days[i] for i in known)]
        end = [days[-1]] if known and known[-1] < len(days) - 1 else []
        for values, fill in ((high, None), (low, "tonexty")):
            steps = [1.0, *(values[i] for i in known)]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [*band_days, *end],
                    "y": [*steps, *(steps[-1:] if end else [])],
                    "line": {"shape": "hv", "width": 0, "color": look["first"]},
                    **({"fill": fill, "fillcolor": look["band"]} if fill else {}),
                    "hoverinfo": "skip",
                    "showlegend": False,
                }
            )
        data.append(_step(analysis, "solid", look["first"], "Estimate, 95% band", origin))
        censored = [i for i in range(len(days)) if curve.censored[i] > 0]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "Censored",
                "x": [days[i] for i in censored],
                "y": [float(curve.survival[i]) for i in censored],
                "marker": {"symbol": "line-ns-open", "size": 9, "color": look["first"], "line": {"width": 1.6}},
                "text": [f"day {days[i]:g}: {int(curve.censored[i])} censored" for i in censored],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    for other, dash, colour in zip(others, ("dash", "dot", "dashdot"), ("second", "third", "muted"), strict=False):
        if other.estimate is not None:
            data.append(_step(other, dash, look[colour], _SHORT.get(other.name.split("_", 1)[1], other.title), origin))
    read = analysis.horizon
    upper = read is None or read.value > 0.5
    shape, note = _day_line(horizon_day, theme, f"day {horizon_day}", last=last, low=upper)
    layout = _layout(
        theme,
        height=400,
        margin={"b": 104, "t": 56},
        xaxis=_day_axis(theme, last),
        yaxis=_axis(theme, "Probability", range=[-0.02, 1.04], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1]),
        shapes=[shape],
        annotations=[note, *_risk_table(analysis, last, origin, theme)],
    )
    value = "no estimate" if read is None else f"{100 * read.value:.1f} % at day {horizon_day}, {read.at_risk} at risk"
    whole = counted(len(analysis.times), "patient")
    text = f"{analysis.title}: {value}, {counted(analysis.events, 'event')} in {whole}. {analysis.note}"
    return Drawn(figure={"data": data, "layout": layout}, height=400, text=text)


def _step(analysis: SurvivalAnalysis, dash: str, colour: str, name: str, origin: int) -> Figure:
    assert analysis.estimate is not None
    days = [float(origin), *(day + origin for day in analysis.estimate.time.tolist())]
    values = [1.0, *analysis.estimate.survival.tolist()]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": days,
        "y": values,
        "line": {"shape": "hv", "width": 2.4 if dash == "solid" else 1.8, "dash": dash, "color": colour},
        "hovertemplate": "day %{x}: %{y:.1%}<extra></extra>",
    }


def _risk_table(analysis: SurvivalAnalysis, last: float, origin: int, theme: Theme) -> Iterable[Figure]:
    """Numbers at risk under the axis, each under its day."""
    look = COLOURS[theme]
    days = np.array([one.day for one in analysis.times], dtype=np.float64)
    base = {"xref": "x", "yref": "paper", "yshift": -62, "y": 0, "yanchor": "top", "showarrow": False}
    yield {
        **base,
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "xshift": -64,
        "yshift": -46,
        "text": "At risk",
        "font": {"color": look["muted"], "size": 11},
    }
    for day in day_ticks(last):
        if day < origin:
            continue
        left = int((days >= day).sum()) if day > origin else len(days)
        yield {**base, "x": day, "text": str(left), "font": {"color": look["ink"], "size": 12}}


def incidence_figure(outcomes: Outcomes, theme: Theme = "light") -> Drawn:
    """Competing events stacked, what is event-free on top; 1 − Kaplan–Meier of relapse as a broken line, too high."""
    look = COLOURS[theme]
    curve = outcomes.incidence
    horizon = outcomes.criteria.keys.horizon_day
    data: list[Figure] = []
    last = float(horizon)
    if curve is not None:
        last = max(last, float(curve.time[-1]))
        days = [0.0, *curve.time.tolist(), last]
        lower = np.zeros(len(days))
        patterns = ("/", "x", ".", "")
        fills = [*curve.incidence, curve.event_free]
        for k, values in enumerate(fills):
            first = 1.0 if k == len(CAUSES) else 0.0
            upper = lower + np.concatenate([[first], values, values[-1:]])
            free = k == len(CAUSES)
            title = "Event-free" if free else cause_in_words(k + 1).capitalize().replace("Allosct", "alloSCT")
            data.append(_edge(days, lower.tolist(), look["line"], None))
            data.append(
                {
                    **_edge(days, upper.tolist(), look["line"], "tonexty"),
                    "name": title,
                    "fillcolor": look["fill0"] if free else look[f"fill{k + 1}"],
                    "fillpattern": {
                        "shape": patterns[k],
                        "size": 7,
                        "solidity": 0.28,
                        "fgcolor": look["plot"],
                        "fillmode": "overlay",
                    },
                    "showlegend": True,
                    "text": [f"{title}: {100 * (u - v):.1f} %" for u, v in zip(upper, lower, strict=True)],
                    "hoverinfo": "x+text",
                }
            )
            lower = upper
        naive = kaplan_meier([one.day for one in outcomes.causes], [one.what == "relapse" for one in outcomes.causes])
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "1 − Kaplan–Meier of relapse (too high)",
                "x": [0.0, *naive.time.tolist()],
                "y": [0.0, *(1 - naive.survival).tolist()],
                "line": {"shape": "hv", "dash": "dash", "width": 2, "color": look["ink"]},
                "hovertemplate": "day %{x}: %{y:.1%}<extra></extra>",
            }
        )
    shape, note = _day_line(horizon, theme, f"day {horizon}", last=last)
    layout = _layout(
        theme,
        height=400,
        margin={"t": 56},
        xaxis=_day_axis(theme, last),
        yaxis=_axis(theme, "Probability", range=[0, 1.0], tickformat=".0%", tickvals=[0, 0.25, 0.5, 0.75, 1]),
        shapes=[{**shape, "layer": "above"}],
        annotations=[note],
    )
    return Drawn(
        figure={"data": data, "layout": layout},
        height=400,
        text="Cumulative incidence of relapse, death in remission and alloSCT in remission; the rest is event-free.",
    )


def _edge(days: Sequence[float], values: Sequence[float], colour: str, fill: str | None) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": list(days),
        "y": list(values),
        "line": {"shape": "hv", "width": 1, "color": colour},
        "hoverinfo": "skip",
        "showlegend": False,
        **({"fill": fill} if fill else {}),
    }


# ------------------------------------------------------------------------------------------------------------ spaghetti


def mrd_figure(outcomes: Outcomes, theme: Theme = "light") -> Drawn:
    """MRD of every patient over time, not detected at the sample's own LOD; medians at the planned visits."""
    look = COLOURS[theme]
    own: dict[str, list[ResponseCall]] = {}
    for call in outcomes.calls:
        if call.mrd is not None and call.day is not None:
            own.setdefault(call.patient_id, []).append(call)
    data: list[Figure] = []
    found = [(call, *_mrd_place(call)) for calls in own.values() for call in calls]
    for calls in own.values():
        ordered = sorted(calls, key=lambda call: call.day or 0)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [call.day for call in ordered],
                "y": [_log(_mrd_place(call)[0]) for call in ordered],
                "line": {"width": 1, "color": look["one"]},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    kinds = (
        ("Quantifiable", "QUANTIFIABLE", "circle", "second"),
        ("Detected, below LLOQ", "DETECTED_BELOW_LLOQ", "diamond-open", "second"),
        ("Not detected, at the sample's LOD", "UNDETECTED", "triangle-down-open", "first"),
        ("Not detected, proves nothing (LOD or gating)", "", "x-thin-open", "muted"),
    )
    for name, category, symbol, colour in kinds:
        here = [
            (call, value)
            for call, value, _ in found
            if call.mrd is not None
            and (call.mrd.category == category if category else call.mrd.category.startswith("UNDETECTED_"))
        ]
        if here:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "x": [call.day for call, _ in here],
                    "y": [_log(value) for _, value in here],
                    "marker": {"symbol": symbol, "size": 9, "color": look[colour], "line": _outline(symbol, theme)},
                    "text": [
                        f"{plot_text(call.patient_id)}, day {call.day}: {plot_text(call.mrd.wording, limit=120)}"
                        for call, _ in here
                        if call.mrd is not None
                    ],
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
    data.extend(_mrd_medians(outcomes, theme))
    last = max((call.day for call, _, _ in found if call.day is not None), default=outcomes.criteria.keys.horizon_day)
    ticks = list(range(-6, 1))
    target = outcomes.criteria.keys.mrd_target_fraction
    layout = _layout(
        theme,
        height=430,
        margin={"l": 84, "t": 44},
        xaxis=_day_axis(theme, float(last)),
        yaxis=_axis(
            theme,
            "MRD (% of the denominator)",
            range=[-6.1, 0.15],
            tickmode="array",
            tickvals=ticks,
            ticktext=[f"{significant(100 * 10.0**one, 1)}%" for one in ticks],
        ),
        shapes=[_level_line(_log(target), theme)],
        annotations=[_level_note(_log(target), f"{100 * target:g}%", theme)],
    )
    text = f"MRD over time of {len(own)} patients; the dotted line is {100 * target:g} %."
    return Drawn(figure={"data": data, "layout": layout}, height=430, text=text)


def _mrd_place(call: ResponseCall) -> tuple[float, bool]:
    """Fraction at which a result is drawn, and whether blasts were detected; not detected lies at the sample's LOD."""
    assert call.mrd is not None
    detected = call.mrd.numerator_events >= call.mrd.rules.lod_events
    value = call.mrd.fraction if detected else call.mrd.sample_lod_fraction
    return max(value or 0.0, _MRD_FLOOR), detected


def _log(value: float) -> float:
    return round(math.log10(min(max(value, _MRD_FLOOR), 1.0)), 4)


def _mrd_medians(outcomes: Outcomes, theme: Theme) -> Iterable[Figure]:
    look = COLOURS[theme]
    places = []
    for visit in outcomes.criteria.visits:
        here = [call for call in visit_calls(outcomes.calls, visit.name).values() if call.mrd and call.in_window]
        if len(here) < 3:
            continue
        # Not detected ranks below every detected value; a median among them is drawn at the median LOD.
        ranked = sorted((_mrd_place(call) for call in here), key=lambda one: (one[1], one[0]))
        middle = ranked[(len(ranked) - 1) // 2 : len(ranked) // 2 + 1]
        value = math.exp(statistics.fmean(math.log(one[0]) for one in middle))
        word = "" if all(one[1] for one in middle) else "not detected, "
        places.append((visit.target_day, value, f"{visit.name}, median of {len(here)}: {word}{100 * value:.2g} %"))
    if places:
        yield {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "Median at the visit",
            "x": [one[0] for one in places],
            "y": [_log(one[1]) for one in places],
            "line": {"width": 3, "color": look["ink"]},
            "marker": {"symbol": "line-ew-open", "size": 24, "color": look["ink"], "line": {"width": 4}},
            "text": [one[2] for one in places],
            "hovertemplate": "%{text}<extra></extra>",
        }


def _outline(symbol: str, theme: Theme) -> Figure:
    """Filled markers get an edge of the plot's colour, so that crowded ones stay apart; open ones are their edge."""
    return {"width": 1.8} if symbol.endswith("-open") else {"width": 0.8, "color": COLOURS[theme]["plot"]}


def _level_line(level: float, theme: Theme) -> Figure:
    return {
        "type": "line",
        "xref": "x domain",
        "x0": 0,
        "x1": 1,
        "y0": level,
        "y1": level,
        "line": {"color": COLOURS[theme]["line"], "width": 1.2, "dash": "dot"},
        "layer": "below",
    }


def _level_note(level: float, text: str, theme: Theme) -> Figure:
    return {
        "xref": "x domain",
        "x": 0,
        "xanchor": "left",
        "xshift": 4,
        "y": level,
        "yanchor": "bottom",
        "text": text,
        "showarrow": False,
        "font": {"color": COLOURS[theme]["muted"], "size": 11},
    }


def car_figure(courses: Sequence[Course], theme: Theme = "light") -> Drawn:
    """CAR+ cells per µL of every first course over time, below the LOD at the LOD; medians of days that three share."""
    look = COLOURS[theme]
    first = [one for one in courses if one.kinetics.course == 1]
    data: list[Figure] = []
    seen: dict[float, list[tuple[float, float]]] = {}
    found: list[tuple[float, float, bool, str]] = []
    for course in first:
        points = []
        for one in course.samples:
            if one.car_per_ul is None or one.day <= 0:
                continue
            detected = one.is_detected
            drawn = one.car_per_ul if detected else one.lod_per_ul or one.car_per_ul
            if drawn <= 0:
                continue
            points.append((one.day, drawn))
            seen.setdefault(one.day, []).append((one.car_per_ul if detected else 0.0, drawn))
            word = f"{one.car_per_ul:.3g} CAR+ cells/µl" if detected else f"not detected (LOD {drawn:.2g})"
            found.append((one.day, drawn, detected, f"{plot_text(course.kinetics.subject)}, day {one.day:g}: {word}"))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [one[0] for one in points],
                "y": [math.log10(one[1]) for one in points],
                "line": {"width": 1, "color": look["one"]},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
    for name, wanted, symbol, colour in (
        ("Detected", True, "circle", "second"),
        ("Not detected, at the sample's LOD", False, "triangle-down-open", "first"),
    ):
        here = [one for one in found if one[2] is wanted]
        if here:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "x": [one[0] for one in here],
                    "y": [math.log10(one[1]) for one in here],
                    "marker": {"symbol": symbol, "size": 8, "color": look[colour], "line": _outline(symbol, theme)},
                    "text": [one[3] for one in here],
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
    medians = []
    for day, values in sorted(seen.items()):
        if len(values) < 3:
            continue
        middle = statistics.median(one[0] for one in values)
        drawn = middle or statistics.median(one[1] for one in values)
        word = f"{middle:.3g}" if middle else "not detected"
        medians.append((day, drawn, f"day {day:g}, median of {len(values)}: {word}"))
    if medians:
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "Median of the day",
                "x": [one[0] for one in medians],
                "y": [math.log10(one[1]) for one in medians],
                "line": {"width": 3, "color": look["ink"]},
                "marker": {"symbol": "line-ew-open", "size": 14, "color": look["ink"], "line": {"width": 3}},
                "text": [one[2] for one in medians],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    low = math.floor(min((math.log10(one[1]) for one in found), default=-1))
    high = math.ceil(max((math.log10(one[1]) for one in found), default=3))
    last = max((one[0] for one in found), default=90.0)
    layout = _layout(
        theme,
        height=430,
        margin={"l": 84, "t": 44},
        xaxis=_day_axis(theme, float(last)),
        yaxis=_axis(
            theme,
            "CAR+ T cells per µl of blood",
            range=[low - 0.1, high + 0.1],
            tickmode="array",
            tickvals=list(range(low, high + 1)),
            ticktext=[f"{10.0**one:,g}" for one in range(low, high + 1)],
        ),
    )
    text = f"CAR-positive T cells per microlitre over time of {len(first)} patients."
    return Drawn(figure={"data": data, "layout": layout}, height=430, text=text)


# ------------------------------------------------------------------------------------------------------------ waterfall


def waterfall_figure(outcomes: Outcomes, theme: Theme = "light") -> Drawn | None:
    """Change from the blasts before infusion to flow MRD at the responder visit, in powers of ten, a bar a patient.

    Not detected is drawn to the sample's LOD with a hatched bar: the fall is at least that. `None` where nobody has
    both values. Their denominators differ; a bar shows an order of magnitude, not a measurement.
    """
    look = COLOURS[theme]
    visit = outcomes.criteria.keys.responder_visit
    bars = []
    for call in visit_calls(outcomes.calls, visit).values():
        before = outcomes.assessments[call.row].bl_bm_blast_pct
        if call.mrd is None or not call.in_window or not before:
            continue
        value, detected = _mrd_place(call)
        bars.append((round(math.log10(value / (float(before) / 100)), 3), detected, call))
    if not bars:
        return None
    bars.sort(key=lambda one: (-one[0], one[2].patient_id))
    data: list[Figure] = []
    order = [call.patient_id for _, _, call in bars]
    classes = {call.patient_id: call.response.value for _, _, call in bars}
    for name in SYMBOLS:
        here = [one for one in bars if kind_of(one[2].response) == name]
        if here:
            data.append(
                {
                    "type": "bar",
                    "name": {"REL": "Relapse", "NE": "Not evaluable"}.get(name, name),
                    "x": [order.index(call.patient_id) for _, _, call in here],
                    "y": [change for change, _, _ in here],
                    "width": 0.72,
                    "marker": {
                        "color": look[name],
                        "line": {"width": 1, "color": look["line"]},
                        "pattern": {
                            "shape": ["" if detected else "/" for _, detected, _ in here],
                            "fgcolor": look["plot"],
                            "fillmode": "overlay",
                            "solidity": 0.35,
                            "size": 7,
                        },
                    },
                    "text": [f"{plot_text(call.patient_id)}: {_call_text(call)}" for _, _, call in here],
                    "textposition": "none",
                    "hovertemplate": "%{text}<br>%{y:.1f} log10<extra></extra>",
                }
            )
    low = min(-1.0, math.floor(min(change for change, _, _ in bars)))
    high = max(0.5, max(change for change, _, _ in bars) + 0.3)
    layout = _layout(
        theme,
        height=380,
        margin={"t": 44, "b": 84},
        xaxis=_axis(
            theme,
            range=[-0.7, len(bars) - 0.3],
            tickmode="array",
            tickvals=list(range(len(order))),
            ticktext=[f"{plot_text(one, limit=12)} {classes[one]}" for one in order],
            tickangle=-60 if len(order) > 12 else 0,
            showgrid=False,
            ticks="",
        ),
        yaxis=_axis(
            theme, "Change (log10)", range=[low - 0.1, high], dtick=1, zeroline=True, zerolinecolor=look["line"]
        ),
        barmode="overlay",
    )
    text = f"Change of blasts from before infusion to {visit} in {len(bars)} patients, in powers of ten."
    return Drawn(figure={"data": data, "layout": layout}, height=380, text=text)


# --------------------------------------------------------------------------------------------------------- one patient


def timeline_figure(
    subject: Subject, calls: Sequence[ResponseCall], visits: Sequence[Visit], theme: Theme = "light"
) -> Drawn:
    """One patient over time: class at each visit above, MRD below, windows shaded, events as lines."""
    look = COLOURS[theme]
    lane = {subject.patient_id: 0}
    seen = [call for call in calls if call.day is not None]
    days = [call.day for call in seen if call.day is not None]
    last = float(max([*days, subject.followed_to or 0, visits[0].last_day]))
    data: list[Figure] = []
    for trace in _class_traces(seen, lane, theme):
        shown = [call for call in seen if call.day in trace["x"]]
        data.append({**trace, "yaxis": "y2", "mode": "markers+text", "textposition": "top center"})
        data[-1]["customdata"] = trace["text"]
        data[-1]["hovertemplate"] = "%{customdata}<extra></extra>"
        by_day = {call.day: call for call in shown}
        data[-1]["text"] = [by_day[day].unseen.value for day in trace["x"]]
        data[-1]["textfont"] = {"size": 11, "color": look["ink"]}
    measured = sorted((call for call in seen if call.mrd is not None), key=lambda call: call.day or 0)
    if measured:
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [call.day for call in measured],
                "y": [_log(_mrd_place(call)[0]) for call in measured],
                "line": {"width": 1.5, "color": look["one"]},
                "marker": {
                    "symbol": ["circle" if _mrd_place(call)[1] else "triangle-down-open" for call in measured],
                    "size": 9,
                    "color": [look["second"] if _mrd_place(call)[1] else look["first"] for call in measured],
                    "line": {"width": 1.8},
                },
                "text": [plot_text(call.mrd.wording, limit=120) for call in measured if call.mrd is not None],
                "hovertemplate": "day %{x}: %{text}<extra></extra>",
            }
        )
    shapes: list[Figure] = [
        {
            "type": "rect",
            "x0": visit.first_day,
            "x1": visit.last_day,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "fillcolor": look["fill0"],
            "line": {"width": 0},
            "layer": "below",
        }
        for visit in visits
        if visit.first_day <= last
    ]
    notes: list[Figure] = []
    for name, day in (("alloSCT", subject.allosct_day), ("death", subject.death_day)):
        if day is not None:
            shape, note = _day_line(day, theme, name, last=last)
            shapes.append({**shape, "yref": "paper", "line": {**shape["line"], "color": look["ink"], "dash": "solid"}})
            notes.append({**note, "yref": "paper", "y": 0.02, "yanchor": "bottom"})
    ticks = list(range(-6, 1, 2))
    layout = _layout(
        theme,
        height=230,
        margin={"t": 10, "b": 44},
        showlegend=False,
        xaxis=_day_axis(theme, last, anchor="y"),
        yaxis=_axis(
            theme,
            "MRD",
            domain=[0, 0.62],
            range=[-6.2, 0.3],
            tickmode="array",
            tickvals=ticks,
            ticktext=[f"{significant(100 * 10.0**one, 1)}%" for one in ticks],
        ),
        yaxis2=_axis(
            theme, domain=[0.68, 1], range=[-0.8, 1.6], showticklabels=False, ticks="", showgrid=False, anchor="x"
        ),
        shapes=shapes,
        annotations=notes,
    )
    relapse = next((call for call in seen if call.event is Event.RELAPSE), None)
    text = f"Timeline to day {last:g}: " + ", ".join(f"{call.timepoint} {call.response.value}" for call in calls)
    if relapse is not None:
        text += f"; relapse on day {relapse.day}"
    return Drawn(figure={"data": data, "layout": layout}, height=230, text=text)
