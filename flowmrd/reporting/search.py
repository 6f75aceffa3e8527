"""What the search for blasts found, as a section of an acquisition's page: answer, groups, aberrancies, views.

The views show each group over the normals of the reference, on the sample's own scales. Which views there are stands in
`maturation.toml`; one more shows the two markers in which the groups differ most.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import Level
from flowmrd.records import Aberration, AcquisitionResult, Axis, BlastGroup, DetectionRecord, MeasurementRow
from flowmrd.reporting.figures import (
    FONT,
    THEMES,
    Figure,
    axis_title,
    event_traces,
    normals_trace,
    plot_axis,
    plot_text,
)
from flowmrd.reporting.numbers import MISSING, counted, format_count, format_percent, supported_digits

_VIEWS = Path(__file__).with_name("maturation.toml")
STATUSES = ("accepted", "review", "rejected")
_WORDS = {"accepted": "Accepted", "review": "Under review", "rejected": "Rejected"}
_HEADS = {"positive": "Positive", "not_detected": "Not detected", "review": "Needs review"}
# Findings that are reasons to ask a person, beside what the record itself says.
_REASONS = ("REFERENCE_SMALL",)
# Deviations that a bar may reach: the least that holds all of a page's bars, the last for whatever is beyond.
_REACHES = (4, 6, 8, 12, 16, 20)
_LIMIT = 2.0  # deviations from which a marker differs (domain 1.4), drawn as a line
_NAMED = 9  # groups with a number in the views
_PLOT_PX = 290.0


def search_context(result: AcquisitionResult, scales: Mapping[str, Axis], *, key: str) -> dict[str, Any] | None:
    """Gather what the section shows, or `None` where the tube has no search.

    Parameters
    ----------
    result : one acquisition
    scales : marker → an axis that shows it
    key : prefix of the element ids
    """
    found = result.detection
    if found is None:
        lacking = next((one for one in result.findings if one.code == "NO_REFERENCE"), None)
        if lacking is None:
            return None
        return {
            "sentence": "Needs review: there was no reference of normals to search against.",
            "call": "review",
            "reasons": [lacking.message],
            "remarks": [],
            "reference": None,
        }
    row = searched_row(result)
    call = row.call if row is not None else _plain_call(found)
    reach = _reach(found.groups)
    rows = [_group(one, reach) for one in sorted(found.groups, key=lambda one: STATUSES.index(one.status))]
    views, drawn = _views(found, scales), _drawn(found)
    return {
        "sentence": answer(found, row),
        "call": call,
        "reasons": reasons(result) if call == "review" else [],
        "remarks": _remarks(found, call),
        "reference": {
            "name": found.reference,
            "sha256": found.reference_sha256,
            "simulated": found.simulated,
            "normals": format_count(found.normal_marrows),
            "diagnoses": format_count(found.diagnoses),
            "seed": found.seed,
        },
        "denominator": row.denominator if row is not None else "nucleated cells",
        "counts": [(status, sum(one.status == status for one in found.groups)) for status in STATUSES],
        "groups": [one for one in rows if one["status"] != "rejected"],
        "rejected": [one for one in rows if one["status"] == "rejected"],
        "reach": reach,
        "limit_low": 50 - 50 * _LIMIT / reach,
        "limit_high": 50 + 50 * _LIMIT / reach,
        "drawn": drawn,
        "part": len(found.owner) < sum(one.events for one in found.groups),
        "views": [
            {
                "id": f"{key}-view-{i + 1}",
                "title": f"{y.marker} × {x.marker}",
                "purpose": purpose,
                "text": f"{axis_title(y)} against {axis_title(x)}: {drawn}, over the normals of {found.reference}.",
                "figure": path_figure(found, x, y),
            }
            for i, (x, y, purpose) in enumerate(views)
        ],
    }


def searched_row(result: AcquisitionResult) -> MeasurementRow | None:
    """Return the measurement whose numerator the search found: the first with a list of events."""
    lists = {gate.population for gate in result.gates if gate.gate.get("kind") == "members"}
    return next((row for row in result.measurements if row.numerator in lists), None)


def answer(found: DetectionRecord, row: MeasurementRow | None) -> str:
    """Say in one sentence what the search proposes.

    Parameters
    ----------
    found : the search
    row : the measurement of its population, if the template has one
    """
    accepted = [one for one in found.groups if one.status == "accepted"]
    call = row.call if row is not None else _plain_call(found)
    events = sum(one.events for one in accepted)
    share, of = _share(events, sum(one.fraction for one in accepted)), row.denominator if row else "nucleated cells"
    if row is not None and row.numerator_events is not None:
        events = row.numerator_events
        share = _share(events, row.fraction)
    what = f"{format_count(events)} events in {counted(len(accepted), 'accepted group')}, {share} of {of}"
    nothing = "the search accepted no group of events"
    head = _HEADS.get(call, call)
    if not accepted:
        return f"{head}: {nothing}."
    if call == "not_detected":
        return f"{head}: {what}, too few for an answer above the limit of detection."
    return f"{head}: {what}."


def reasons(result: AcquisitionResult) -> list[str]:
    """Say why the answer is a person's to give."""
    found = result.detection
    out: list[str] = []
    if found is not None:
        out += [f"{doubt[:1].upper()}{doubt[1:]}." for doubt in found.doubts]
        if text := _waiting(found):
            out.append(text)
    out += [one.message for one in result.findings if one.code in _REASONS]
    out += [f"{one.code}: {one.message}" for one in result.findings if one.level is Level.VIOLATION]
    return out or ["See the findings."]


def _remarks(found: DetectionRecord, call: str) -> list[str]:
    """Say what stands beside an answer that is not a person's alone."""
    text = _waiting(found)
    return [text] if text and call != "review" else []


def _waiting(found: DetectionRecord) -> str:
    waiting = [one for one in found.groups if one.status == "review"]
    if not waiting:
        return ""
    verb = "waits" if len(waiting) == 1 else "wait"
    events = format_count(sum(one.events for one in waiting))
    return f"{counted(len(waiting), 'group')} with {events} events {verb} for a person's judgement."


def _plain_call(found: DetectionRecord) -> str:
    statuses = {one.status for one in found.groups}
    return (
        "review" if found.doubts or "review" in statuses else "positive" if "accepted" in statuses else "not_detected"
    )


def _share(events: int, fraction: float | None) -> str:
    if fraction is None:
        return MISSING
    return "0%" if fraction == 0 else format_percent(fraction, digits=supported_digits(events))


# -------------------------------------------------------------------------------------------------------------- groups


def _group(group: BlastGroup, reach: float) -> dict[str, Any]:
    ordered = sorted(group.aberrations, key=lambda one: (not one.aberrant, -abs(one.deviations), one.marker))
    aberrant = [one for one in ordered if one.aberrant]
    return {
        "name": group.name,
        "status": group.status,
        "word": _WORDS.get(group.status, group.status),
        "order": STATUSES.index(group.status),
        "events_value": group.events,
        "events": format_count(group.events),
        "fraction": group.fraction,
        "share": _share(group.events, group.fraction),
        "probability_value": group.probability,
        "probability": _probability(group.probability),
        "stage": group.stage,
        "most_value": group.normals_most,
        "most": _most(group.normals_most),
        "likeness": None if group.likeness is None else f"{100 * group.likeness:.0f}%",
        "aberrant": ", ".join(f"{one.marker} {one.direction}" for one in aberrant) or "none",
        "bars": [_bar(one, reach) for one in ordered],
        "text": f"{group.name}, {format_count(group.events)} events, against {group.stage}: "
        + ("; ".join(f"{one.marker} {_shift_text(one)}" for one in aberrant) or "no aberrant marker"),
    }


def _probability(value: float) -> str:
    if value >= 0.995:
        return "> 0.99"
    return "< 0.01" if value < 0.005 else f"{value:.2f}"


def _most(fraction: float) -> str:
    """Write the most that a normal has; below one in ten million a bound, as no marrow shows less."""
    return "< 0.00001%" if fraction < 1e-7 else format_percent(fraction)


def _reach(groups: Sequence[BlastGroup]) -> float:
    largest = max((abs(one.deviations) for group in groups for one in group.aberrations), default=0.0)
    return float(next((reach for reach in _REACHES if largest <= reach), _REACHES[-1]))


def _bar(one: Aberration, reach: float) -> dict[str, Any]:
    """Lay a marker's deviation on a bar from -reach to +reach, in percent of its width."""
    size = 50 * min(abs(one.deviations), reach) / reach
    return {
        "marker": one.marker,
        "aberrant": one.aberrant,
        "direction": one.direction,
        "x": round(50 - size if one.deviations < 0 else 50.0, 2),
        "width": round(size, 2),
        "beyond": abs(one.deviations) > reach,
        "deviations": _signed(one.deviations, 1),
        "log10": MISSING if one.shift_log10 is None else _signed(one.shift_log10, 2),
    }


def _shift_text(one: Aberration) -> str:
    decades = "" if one.shift_log10 is None else f", {_signed(one.shift_log10, 2)} log10"
    return f"{one.direction} by {abs(one.deviations):.1f} SD{decades}"


def _signed(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return MISSING
    text = f"{abs(value):.{decimals}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


# --------------------------------------------------------------------------------------------------------------- views


def _views(found: DetectionRecord, scales: Mapping[str, Axis]) -> list[tuple[Axis, Axis, str]]:
    """Return x, y and purpose of every view whose markers the search had and some plot has a scale for."""
    with _VIEWS.open("rb") as stream:
        wanted = [(one["x"], one["y"], one["purpose"]) for one in tomllib.load(stream)["view"]]
    if (most := _most_different(found)) is not None and set(most) not in [{x, y} for x, y, _ in wanted]:
        wanted.append((*most, "The two markers in which the groups differ most from the nearest normal stage."))
    known = set(found.features) & set(scales)
    return [(scales[x], scales[y], purpose) for x, y, purpose in wanted if {x, y} <= known]


def _most_different(found: DetectionRecord) -> tuple[str, str] | None:
    for status in STATUSES:
        total: dict[str, float] = {}
        for group in found.groups:
            if group.status != status:
                continue
            for one in group.aberrations:
                total[one.marker] = total.get(one.marker, 0.0) + abs(one.deviations) * group.events
        if len(total) > 1:
            first, second = sorted(total, key=lambda marker: (-total[marker], marker))[:2]
            return second, first
    return None


def shown_events(found: DetectionRecord, status: str, x: str, y: str) -> NDArray[np.float32]:
    """Return x and y (2, n) of the kept events of all groups of a status, in scaled units."""
    groups = [k for k, one in enumerate(found.groups) if one.status == status]
    columns = [found.features.index(x), found.features.index(y)]
    chosen: NDArray[np.float32] = found.events[np.isin(found.owner, groups)][:, columns].T
    return chosen


def _drawn(found: DetectionRecord) -> str:
    """Say how many events of each status are drawn, and of how many."""
    parts = []
    for status in STATUSES:
        groups = [k for k, one in enumerate(found.groups) if one.status == status]
        shown = int(np.count_nonzero(np.isin(found.owner, groups)))
        total = sum(found.groups[k].events for k in groups)
        if total:
            of = format_count(total) if shown == total else f"{format_count(shown)} of {format_count(total)}"
            parts.append(f"{of} {_WORDS[status].lower()}")
    return ", ".join(parts) or "no group"


def path_figure(found: DetectionRecord, x: Axis, y: Axis) -> Figure:
    """Draw the groups of a search over the normals of its reference.

    Normals are a grey density; events of accepted groups are dots, of groups under review open diamonds, of rejected
    ones crosses. Groups that are not rejected carry their number.

    Parameters
    ----------
    found : the search; both markers are among its features
    x, y : axes, as of the panels
    """
    theme = THEMES["light"]
    columns = [found.features.index(x.marker), found.features.index(y.marker)]
    normals = normals_trace(found.normals[:, columns].T, x, y)
    data = [] if normals is None else [normals]
    for status in reversed(STATUSES):
        data += event_traces(shown_events(found, status, x.marker, y.marker), x, y, status=status)
    return {
        "data": data,
        "layout": {
            "margin": {"l": 62, "r": 12, "t": 10, "b": 50, "pad": 0},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": theme["plot"],
            "font": {"family": FONT, "size": 11, "color": theme["ink"]},
            "showlegend": False,
            "hovermode": False,
            "dragmode": "zoom",
            "xaxis": plot_axis(x),
            "yaxis": plot_axis(y),
            "shapes": [],
            "annotations": _names(found, x, y),
        },
    }


def _names(found: DetectionRecord, x: Axis, y: Axis) -> list[Figure]:
    """Number the groups, each with a line to its middle, so that no number covers events or another number."""
    theme = THEMES["light"]
    named = [one for one in found.groups if one.status != "rejected"][:_NAMED]
    axes = ((x, 0), (y, 1))

    def place(values: NDArray[np.float64]) -> NDArray[np.float64]:
        low, high = (np.array([getattr(axis, end) for axis, _ in axes]) for end in ("lo", "hi"))
        placed: NDArray[np.float64] = np.clip((values - low) / (high - low), 0.0, 1.0) * _PLOT_PX
        return placed

    columns = [found.features.index(x.marker), found.features.index(y.marker)]
    # Numbers keep off the events of the groups; a thousand tell where those lie.
    step = max(1, len(found.events) // 1000)
    events = place(found.events[::step, columns].astype(np.float64))
    taken: list[NDArray[np.float64]] = []
    notes: list[Figure] = []
    for group in named:
        middle = np.array([group.middle[x.marker], group.middle[y.marker]])
        start = place(middle)
        angles = np.arange(0, 2 * math.pi, math.pi / 8)
        ends = [start + r * np.array([math.cos(a), math.sin(a)]) for r in (30.0, 48.0, 70.0) for a in angles]

        def cost(end: NDArray[np.float64], start: NDArray[np.float64] = start) -> float:
            out = float(np.sum(np.maximum(0.0, 12.0 - end) + np.maximum(0.0, end - (_PLOT_PX - 12.0)))) * 10
            near = float(np.count_nonzero(np.max(np.abs(events - end), axis=1) < 10.0))
            crowd = sum(100.0 for other in taken if float(np.max(np.abs(other - end))) < 22.0)
            return out + near + crowd + 0.05 * float(np.hypot(*(end - start)))

        best = min(ends, key=cost)
        taken.append(best)
        notes.append(
            {
                "name": "group",
                "text": f"<b>{plot_text(group.name.removeprefix('group '), limit=12)}</b>",
                "x": round(float(np.clip(middle[0], x.lo, x.hi)), 5),
                "y": round(float(np.clip(middle[1], y.lo, y.hi)), 5),
                "xref": "x",
                "yref": "y",
                "ax": round(float(best[0] - start[0]), 1),
                "ay": round(float(start[1] - best[1]), 1),
                "showarrow": True,
                "arrowhead": 0,
                "arrowwidth": 1,
                "arrowcolor": theme["ink"],
                "borderpad": 2,
                "bordercolor": theme["muted"],
                "borderwidth": 1,
                "bgcolor": theme["label"],
                "font": {"size": 11, "color": theme["ink"]},
            }
        )
    return notes
