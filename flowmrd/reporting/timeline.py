"""One subject's course on one picture: CAR+ cells, B cells, MRD and vector copies over the days from the infusion.

Every series has a panel of its own with its unit, and its own marker and line, so that nothing hangs on colour. Values
below a limit are open triangles at the limit. Days are drawn on a square-root scale where the course is long: the first
weeks, when most happens, would be a line otherwise. The page is one HTML file without network.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmrd.documents.manifest import load_visits
from flowmrd.quantification.kinetics import Course, Kinetics, VisitRow, load_kinetics_rules
from flowmrd.reporting.figures import FONT, THEMES, Figure
from flowmrd.reporting.numbers import MISSING, significant

if TYPE_CHECKING:
    from flowmrd.records import AcquisitionResult

LONG_COURSE_DAYS = 60.0
_MRD = "MRD"


class Kind(StrEnum):
    """What a series is: names its panel, its marker and its role in a theme."""

    CAR = "car"
    COPIES = "copies"
    B_CELLS = "b-cells"
    MRD = "mrd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value with its interval and limit of detection; `found` is false where the value is below that limit."""

    day: float
    value: float
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    found: bool = True
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A planned visit: its name and its days, ends included."""

    name: str
    first_day: float
    last_day: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened on a day, such as a transplant."""

    day: float
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What is drawn of one subject and course. `slope` is (first day, value, last day, value) of the terminal fit."""

    title: str
    series: Mapping[Kind, Sequence[Point]]
    windows: Sequence[Window] = ()
    events: Sequence[Event] = ()
    aplasia_per_ul: float | None = None
    decision_fraction: float | None = None
    slope: tuple[float, float, float, float] | None = None
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    table: Sequence[Sequence[str]] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    title: str
    unit: str
    symbol: str
    dash: str
    share: float
    found: str
    absent: str


_LOOKS: Mapping[Kind, _Look] = {
    Kind.CAR: _Look(
        title="CAR+ T cells",
        unit="per µl",
        symbol="circle",
        dash="solid",
        share=0.44,
        found="● detected, bar: 95% interval",
        absent="▽ not detected, at its LOD",
    ),
    Kind.COPIES: _Look(
        title="Copies",
        unit="per µg DNA",
        symbol="x",
        dash="dot",
        share=0.16,
        found="✕ qPCR",
        absent="▽ not detected",
    ),
    Kind.B_CELLS: _Look(
        title="B cells",
        unit="per µl",
        symbol="square",
        dash="dash",
        share=0.22,
        found="■ CD19+ CD3−",
        absent="▽ none counted",
    ),
    Kind.MRD: _Look(
        title="MRD",
        unit="percent",
        symbol="diamond",
        dash="dashdot",
        share=0.24,
        found="◆ detected, bar: 95% interval",
        absent="▽ not detected, at its LOD",
    ),
}
_SCALE: Mapping[Kind, float] = {Kind.MRD: 100.0}
_GAP = 0.055


def timeline_figure(timeline: Timeline) -> Figure:
    """Draw a course.

    Returns
    -------
    {"data": …, "layout": …} as plotly.js takes them, in the light theme. Traces name their role in `meta`, shapes and
    annotations in `name`, so that a page can restyle them.
    """
    kinds = [kind for kind in _LOOKS if timeline.series.get(kind)]
    place, ticks, title = _days(timeline, kinds)
    theme = THEMES["light"]
    data: list[Figure] = []
    shapes: list[Figure] = []
    notes: list[Figure] = []
    layout: Figure = {
        "margin": {"l": 84, "r": 16, "t": 40, "b": 48, "pad": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": theme["plot"],
        "font": {"family": FONT, "size": 12, "color": theme["ink"]},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": "zoom",
        "xaxis": {
            **_axis(),
            "title": {"text": title, "standoff": 6},
            "range": [place(ticks[0][0]) - _edge(place, ticks), place(ticks[-1][0]) + _edge(place, ticks)],
            "tickvals": [place(day) for day, _ in ticks],
            "ticktext": [text for _, text in ticks],
            "anchor": "y" if len(kinds) < 2 else f"y{len(kinds)}",
        },
    }
    total = sum(_LOOKS[kind].share for kind in kinds) or 1.0
    top = 1.0
    for number, kind in enumerate(kinds, start=1):
        look, name = _LOOKS[kind], "y" if number == 1 else f"y{number}"
        height = (1.0 - _GAP * (len(kinds) - 1)) * look.share / total
        low, high = _bounds(timeline, kind)
        layout[f"yaxis{name[1:]}"] = {
            **_axis(),
            "type": "log",
            "domain": [max(top - height, 0.0), top],
            "range": [math.log10(low), math.log10(high)],
            "title": {"text": f"{look.title}<br>{look.unit}", "standoff": 8},
            "tickvals": [10.0**power for power in _powers(low, high, kind)],
            "ticktext": [_number(10.0**power) for power in _powers(low, high, kind)],
        }
        data.extend(_traces(timeline.series[kind], kind, name, place, foot=low))
        shapes.extend(_limit_band(timeline.series[kind], kind, name, place, low))
        shapes.extend(_lines(timeline, kind, name, notes))
        key = _note(f"{look.found}   {look.absent}", x=1.0, y=high, yref=name, xanchor="right", name="key")
        # Above the panel, where no point lies; above the first one stand the visits, and its peak is early.
        notes.append(key if number == 1 else {**key, "yanchor": "bottom", "yshift": 1})
        if kind is Kind.CAR and timeline.slope is not None:
            data.append(_slope(timeline.slope, name, place))
        top -= height + _GAP
    shapes = [*_windows(timeline, notes, place), *shapes]
    layout["shapes"], layout["annotations"] = shapes, notes
    return {"data": data, "layout": layout}


def _powers(low: float, high: float, kind: Kind) -> range:
    """Powers of ten to label, every second or third one where a panel is too low for all."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    step = max(1, math.ceil((last - first + 1) / (6 if kind is Kind.CAR else 4)))
    return range(first, last + 1, step)


def _axis() -> Figure:
    theme = THEMES["light"]
    return {
        "showgrid": False,
        "zeroline": False,
        "showline": True,
        "linecolor": theme["line"],
        "tickcolor": theme["line"],
        "ticks": "outside",
        "ticklen": 4,
        "automargin": False,
    }


def _days(timeline: Timeline, kinds: Sequence[Kind]) -> tuple[Callable[[float], float], list[tuple[float, str]], str]:
    """Place of a day on the axis, its ticks, its title."""
    days = [point.day for kind in kinds for point in timeline.series[kind]] + [event.day for event in timeline.events]
    last = max([*days, 28.0])
    first = min([*days, 0.0])
    long = last > LONG_COURSE_DAYS

    def place(day: float) -> float:
        return math.copysign(math.sqrt(abs(day)), day) if long else day

    wanted = [0.0, 7.0, 14.0, 28.0]
    wanted += [day for day in (60.0, 91.0, 183.0, 274.0, 365.0, 548.0, 730.0, 1095.0) if day < 1.08 * last]
    if last > 1.08 * wanted[-1]:
        wanted.append(math.ceil(last))
    if first < -0.5:
        wanted.insert(0, math.floor(first))
    ticks = [(day, f"{day:g}".replace("-", "−")) for day in wanted if day <= max(last, 28.0) * 1.08]
    title = "Days from the infusion" + (" (square-root scale)" if long else "")
    return place, ticks, title


def _edge(place: Callable[[float], float], ticks: Sequence[tuple[float, str]]) -> float:
    return 0.025 * (place(ticks[-1][0]) - place(ticks[0][0]))


def _shown(point: Point, kind: Kind) -> float:
    """What a point's place is on the axis: its value, or its limit where it was not found."""
    value = point.value if point.found and point.value > 0 else (point.limit or 0.0)
    return value * _SCALE.get(kind, 1.0)


def _bounds(timeline: Timeline, kind: Kind) -> tuple[float, float]:
    factor = _SCALE.get(kind, 1.0)
    points = timeline.series[kind]
    values = [_shown(point, kind) for point in points]
    values += [limit * factor for point in points for limit in (point.low, point.high, point.limit) if limit]
    if kind is Kind.B_CELLS and timeline.aplasia_per_ul:
        values.append(timeline.aplasia_per_ul)
    if kind is Kind.MRD and timeline.decision_fraction:
        values.append(timeline.decision_fraction * factor)
    above = [value for value in values if value > 0] or [1.0]
    low, high = min(above), max(above)
    # A lower end of an interval may be next to 0: a good decade below the lowest value is enough.
    shown = [value for value in (_shown(point, kind) for point in points) if value > 0]
    floor = max(low, min(shown, default=low) * 0.05)
    # Room above for the key of the panel.
    return 10.0 ** (math.floor(4 * (math.log10(floor) - 0.35)) / 4), high * 10 ** (
        0.25 + 0.17 * math.log10(high / floor + 10)
    )


def _traces(
    points: Sequence[Point], kind: Kind, yaxis: str, place: Callable[[float], float], *, foot: float
) -> list[Figure]:
    look, factor = _LOOKS[kind], _SCALE.get(kind, 1.0)
    ordered = sorted(points, key=lambda point: point.day)
    theme = THEMES["light"]["timeline"][kind.value]
    # What was looked for and not found, without a limit, lies at the panel's foot.
    lowest = foot * 1.6
    xs = [place(point.day) for point in ordered]
    ys = [_shown(point, kind) or lowest for point in ordered]
    found = [point.found and point.value > 0 for point in ordered]
    line: Figure = {
        "type": "scatter",
        "mode": "lines",
        "meta": kind.value,
        "x": xs,
        "y": ys,
        "yaxis": yaxis,
        "hoverinfo": "skip",
        "line": {"color": theme, "width": 1.8, "dash": look.dash},
    }
    marks: Figure = {
        "type": "scatter",
        "mode": "markers",
        "meta": f"{kind.value}-mark",
        "x": xs,
        "y": ys,
        "yaxis": yaxis,
        "marker": {
            "symbol": [look.symbol if yes else "triangle-down-open" for yes in found],
            "size": [9 if yes else 10 for yes in found],
            "color": theme,
            "line": {"color": theme, "width": [1.0 if yes else 2.0 for yes in found]},
        },
        "cliponaxis": False,
        "hovertemplate": "%{text}<extra></extra>",
        "text": [html.escape(point.text) for point in ordered],
    }
    bars = [
        (max(value - point.low * factor, 0.0), max(point.high * factor - value, 0.0))
        if yes and point.low is not None and point.high is not None
        else (0.0, 0.0)
        for point, yes, value in zip(ordered, found, ys, strict=True)
    ]
    if any(up or down for down, up in bars):
        # Nothing is below 0 on a logarithmic axis; a bar that would reach it ends at the edge of the panel.
        marks["error_y"] = {
            "type": "data",
            "symmetric": False,
            "color": theme,
            "thickness": 1.5,
            "width": 5,
            "array": [up for _, up in bars],
            "arrayminus": [min(down, value * (1 - 1e-6)) for (down, _), value in zip(bars, ys, strict=True)],
        }
    return [line, marks]


def _limit_band(
    points: Sequence[Point], kind: Kind, yaxis: str, place: Callable[[float], float], low: float
) -> list[Figure]:
    """Shade what lies below the limit of detection, each sample's limit holding to half way to the next."""
    factor = _SCALE.get(kind, 1.0)
    known = sorted((place(point.day), point.limit * factor) for point in points if point.limit)
    if not known:
        return []
    shapes = []
    for index, (x, limit) in enumerate(known):
        left = x - 0.3 if index == 0 else (known[index - 1][0] + x) / 2
        right = x + 0.3 if index == len(known) - 1 else (known[index + 1][0] + x) / 2
        shapes.append(
            {
                "type": "rect",
                "name": "band",
                "xref": "x",
                "yref": yaxis,
                "layer": "below",
                "line": {"width": 0},
                "x0": left,
                "x1": right,
                "y0": low,
                "y1": limit,
                "fillcolor": THEMES["light"]["timeline"]["band"],
            }
        )
        shapes.append(
            {
                "type": "line",
                "name": "limit",
                "xref": "x",
                "yref": yaxis,
                "x0": left,
                "x1": right,
                "y0": limit,
                "y1": limit,
                "line": {"color": THEMES["light"]["muted"], "width": 1, "dash": "dot"},
            }
        )
    return shapes


def _lines(
    timeline: Timeline,
    kind: Kind,
    yaxis: str,
    notes: list[Figure],
) -> list[Figure]:
    """Draw the levels that decide: B-cell aplasia, MRD."""
    level, text = None, ""
    if kind is Kind.B_CELLS and timeline.aplasia_per_ul:
        level, text = timeline.aplasia_per_ul, f"aplasia < {timeline.aplasia_per_ul:g}"
    if kind is Kind.MRD and timeline.decision_fraction:
        level = 100 * timeline.decision_fraction
        text = f"{level:g}%"
    if level is None:
        return []
    notes.append(_note(text, x=0.0, y=level, yref=yaxis, xanchor="left", name="level"))
    return [
        {
            "type": "line",
            "name": "level",
            "xref": "paper",
            "yref": yaxis,
            "x0": 0,
            "x1": 1,
            "y0": level,
            "y1": level,
            "line": {"color": THEMES["light"]["ink"], "width": 1.2, "dash": "longdash"},
        }
    ]


def _windows(timeline: Timeline, notes: list[Figure], place: Callable[[float], float]) -> list[Figure]:
    shapes: list[Figure] = []
    for one in timeline.windows:
        left, right = place(one.first_day), place(one.last_day)
        shapes.append(
            {
                "type": "rect",
                "name": "window",
                "xref": "x",
                "yref": "paper",
                "layer": "below",
                "line": {"width": 0},
                "x0": left,
                "x1": right,
                "y0": 0,
                "y1": 1,
                "fillcolor": THEMES["light"]["timeline"]["window"],
            }
        )
        notes.append(_note(one.name, x=(left + right) / 2, y=1.0, yref="paper", xanchor="center", name="visit"))
    for event in (Event(day=0.0, name="Infusion"), *timeline.events):
        shapes.append(
            {
                "type": "line",
                "name": "event",
                "xref": "x",
                "yref": "paper",
                "x0": place(event.day),
                "x1": place(event.day),
                "y0": 0,
                "y1": 1,
                "line": {"color": THEMES["light"]["ink"], "width": 2},
            }
        )
        notes.append(
            _note(
                f"<b>{html.escape(event.name)}</b>",
                x=place(event.day),
                y=1.0,
                yref="paper",
                xanchor="center",
                name="event",
            )
        )
    return shapes


def _slope(slope: tuple[float, float, float, float], yaxis: str, place: Callable[[float], float]) -> Figure:
    """Draw the terminal fit, which is straight in days and so bends on the square-root scale."""
    first, start, last, end = slope
    steps = [first + (last - first) * step / 24 for step in range(25)]
    rate = math.log(end / start) / (last - first)
    return {
        "type": "scatter",
        "mode": "lines",
        "meta": "slope",
        "yaxis": yaxis,
        "hoverinfo": "skip",
        "x": [place(day) for day in steps],
        "y": [start * math.exp(rate * (day - first)) for day in steps],
        "line": {"color": THEMES["light"]["ink"], "width": 1.2, "dash": "longdashdot"},
    }


def _note(text: str, *, x: float, y: float, yref: str, xanchor: str, name: str) -> Figure:
    paper = yref == "paper"
    theme = THEMES["light"]
    return {
        "name": name,
        "text": text if name == "event" else html.escape(text),
        "showarrow": False,
        "xref": "x" if paper else "paper",
        "x": x,
        "yref": yref,
        # A position on a logarithmic axis is its logarithm.
        "y": y if paper else math.log10(y),
        "xanchor": xanchor,
        "yanchor": "top" if name in {"key", "level"} else "bottom",
        "yshift": {"event": 16, "key": -2, "level": -1}.get(name, 2),
        "font": {"size": 11, "color": theme["ink"] if name in {"event", "visit"} else theme["muted"]},
    }


def _number(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:g}"


# -------------------------------------------------------------------------------------------------------- from results


def course_timeline(
    course: Course,
    *,
    mrd: Sequence[Point] = (),
    windows: Sequence[Window] | None = None,
    events: Sequence[Event] = (),
) -> Timeline:
    """Turn the kinetics of one course into what is drawn of it.

    Parameters
    ----------
    course : samples and parameters
    mrd : MRD of the same subject, as fractions
    windows : planned visits; by default the shipped calendar's that the course reaches
    events : what else happened
    """
    rules = load_kinetics_rules()
    kinetics = course.kinetics
    series: dict[Kind, list[Point]] = {Kind.CAR: [], Kind.COPIES: [], Kind.B_CELLS: [], Kind.MRD: list(mrd)}
    for sample, row in zip(course.samples, course.visits, strict=True):
        if sample.car_per_ul is not None and (sample.day > 0 or sample.is_detected):
            series[Kind.CAR].append(
                Point(
                    day=sample.day,
                    value=sample.car_per_ul,
                    low=sample.ci_low,
                    high=sample.ci_high,
                    limit=sample.lod_per_ul,
                    found=sample.is_detected,
                    text=f"day {sample.day:g}: {_car_text(row)}",
                )
            )
        if sample.cd19_per_ul is not None:
            text = f"day {sample.day:g}: {_amount(sample.cd19_per_ul)} B cells/µl"
            series[Kind.B_CELLS].append(
                Point(day=sample.day, value=sample.cd19_per_ul, found=sample.cd19_per_ul > 0, text=text)
            )
        if sample.copies_per_ug is not None:
            text = f"day {sample.day:g}: {_amount(sample.copies_per_ug)} copies/µg"
            series[Kind.COPIES].append(
                Point(day=sample.day, value=sample.copies_per_ug, found=sample.copies_per_ug > 0, text=text)
            )
    last = max((point.day for points in series.values() for point in points), default=28.0)
    if windows is None:
        calendar = load_visits()
        windows = [
            Window(name=one.name, first_day=one.first_day, last_day=one.last_day)
            for one in calendar.windows
            if one.first_day <= max(last, 28.0)
        ]
    slope = None
    if course.slope is not None and course.slope.accepted and kinetics.clast:
        fit = course.slope
        logs = [
            math.log(sample.car_per_ul) + fit.per_day * sample.day
            for sample in course.samples
            if fit.from_day <= sample.day <= fit.to_day and sample.is_detected and sample.car_per_ul
        ]
        level = math.fsum(logs) / len(logs)
        slope = (
            fit.from_day,
            math.exp(level - fit.per_day * fit.from_day),
            fit.to_day,
            math.exp(level - fit.per_day * fit.to_day),
        )
    return Timeline(
        title=f"{kinetics.subject}, course {kinetics.course}",
        series={kind: points for kind, points in series.items() if points},
        windows=windows,
        events=events,
        aplasia_per_ul=rules.b_cells.aplasia_per_ul,
        decision_fraction=1e-4 if mrd else None,
        slope=slope,
        facts=_facts(kinetics),
        notes=("Line of long dashes and dots: terminal slope.",) if slope else (),
        table=_table(course.visits),
    )


def mrd_points(result: AcquisitionResult) -> list[Point]:
    """Return the MRD of one acquisition as points of a course; none where it was not assessed."""
    points = []
    for row in result.measurements:
        if row.analyte != _MRD or row.fraction is None or result.study_day is None:
            continue
        found = row.category in {"DETECTED_BELOW_LLOQ", "QUANTIFIABLE"}
        shown = f"{significant(100 * row.fraction, 2)}%" if found else "not detected"
        limit = f" (LOD {significant(100 * row.lod_fraction, 2)}%)" if row.lod_fraction else ""
        points.append(
            Point(
                day=float(result.study_day),
                value=row.fraction,
                low=row.ci_low,
                high=row.ci_high,
                limit=row.lod_fraction,
                found=found,
                text=f"day {result.study_day}: MRD {shown}{limit}",
            )
        )
    return points


def _amount(value: float | None) -> str:
    return MISSING if value is None else significant(value, 3)


def _car_text(row: VisitRow) -> str:
    if row.persistence == "DETECTED":
        interval = f" ({_amount(row.ci_low)} to {_amount(row.ci_high)})" if row.ci_low is not None else ""
        return f"{_amount(row.car_per_ul)} CAR+ cells/µl{interval}"
    words = "CAR-T not evaluable" if row.persistence == "NE" else "CAR-T not detected"
    return f"{words} (LOD {_amount(row.lod_per_ul)}/µl)"


def _facts(kinetics: Kinetics) -> list[tuple[str, str]]:
    """Parameters in the order a clinician asks for them."""
    if kinetics.tmax is None:
        peak = "not detected" if kinetics.cmax is not None else MISSING
    else:
        peak = f"{_amount(kinetics.cmax)}/µl on day {kinetics.tmax:g}"
    facts = [("Peak (Cmax, Tmax)", peak)]
    if kinetics.tlast is not None:
        facts.append(("Last detected", f"{_amount(kinetics.clast)}/µl on day {kinetics.tlast:g}"))
    for name, value, status, end in (
        ("AUC 0–28", kinetics.auc0_28_linup_logdown, kinetics.auc0_28_status, kinetics.auc0_28_to_day),
        ("AUC 0–90", kinetics.auc0_90_linup_logdown, kinetics.auc0_90_status, kinetics.auc0_90_to_day),
    ):
        if value is not None:
            partial = f", PARTIAL: to day {end:g}" if status == "PARTIAL" else ""
            facts.append((name, f"{significant(value, 3)} cells/µl × d{partial}"))
    if kinetics.lambda_z_points is not None:
        quality = f"{kinetics.lambda_z_points} points, adj. R² {kinetics.adj_r2:.2f}"
        half = f"{_amount(kinetics.half_life_days)} d ({quality})"
        facts.append(("Half-life", half if kinetics.half_life_days is not None else f"not accepted ({quality})"))
    if kinetics.persistence_days is not None:
        how = "lost" if kinetics.persistence_lost else f"censored: {kinetics.censored_by}"
        facts.append(("Persistence", f"{kinetics.persistence_days:g} d, {how}"))
    if kinetics.bca_ever is not None:
        if kinetics.recovery_day is not None:
            early = ", EARLY LOSS" if kinetics.early_recovery_within_180d else ""
            state = f"recovered on day {kinetics.recovery_day:g}{early}"
        else:
            state = "ongoing" if kinetics.bca_last else "not confirmed ended" if kinetics.bca_ever else "none seen"
        facts.append(("B-cell aplasia", state))
    if kinetics.copies_cmax is not None and kinetics.copies_tmax is not None:
        facts.append(("Peak copies", f"{_amount(kinetics.copies_cmax)}/µg on day {kinetics.copies_tmax:g}"))
    return facts


def _table(rows: Sequence[VisitRow]) -> list[list[str]]:
    head = [
        "Day",
        "Visit",
        "CAR+ cells/µl",
        "95% interval",
        "LOD/µl",
        "Persistence",
        "B cells/µl",
        "Aplasia",
        "CD4:CD8",
        "Copies/µg",
    ]
    words = {True: "yes", False: "no", None: MISSING}
    body = []
    for row in rows:
        found = row.persistence == "DETECTED"
        value = _amount(row.car_per_ul) if found else f"< {_amount(row.lod_per_ul)}" if row.lod_per_ul else MISSING
        shown = found and row.ci_low is not None and row.ci_high is not None
        body.append(
            [
                f"{row.day:g}",
                row.visit or MISSING,
                value,
                f"{_amount(row.ci_low)} – {_amount(row.ci_high)}" if shown else MISSING,
                _amount(row.lod_per_ul),
                row.persistence.value.replace("_", " ").lower() if row.persistence != "NE" else "not evaluable",
                _amount(row.cd19_per_ul),
                words[row.aplasia],
                _amount(row.cd4_cd8_ratio),
                _amount(row.copies_per_ug),
            ]
        )
    return [head, *body]


# ---------------------------------------------------------------------------------------------------------------- page


def render_timeline(timelines: Sequence[Timeline], out: Path, *, heading: str = "Course after CAR-T") -> Path:
    """Write one HTML file with the picture, the parameters and the values of every course.

    Parameters
    ----------
    timelines : in the order of the page
    out : the file to write
    """
    from flowmrd.reporting import report

    environment = report._environment()  # noqa: SLF001 -- one frame for all pages
    shell = report._shell(single_file=True)  # noqa: SLF001
    text = environment.get_template("timeline.html").render(
        **shell,
        root="",
        heading=heading,
        courses=[timeline_context(one, f"t{i}") for i, one in enumerate(timelines, 1)],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    report._write(out, text.encode())  # noqa: SLF001
    return out


def timeline_context(timeline: Timeline, key: str) -> dict[str, Any]:
    """Gather what a page shows of one course, as texts and a figure."""
    from flowmrd.reporting import report

    return {
        "key": key,
        "title": timeline.title,
        "facts": list(timeline.facts),
        "notes": list(timeline.notes),
        "table": [list(row) for row in timeline.table],
        "text": f"{timeline.title}: " + "; ".join(f"{name} {value}" for name, value in timeline.facts),
        "figure": report._markup(report._json(timeline_figure(timeline))),  # noqa: SLF001
    }
