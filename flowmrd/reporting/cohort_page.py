"""A cohort's outcomes → one self-contained HTML page, with plotly.js inside. No network and no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowmrd import __version__
from flowmrd.clinical.baseline import Baseline, BaselineTable
from flowmrd.clinical.datasets import all_findings, incidences
from flowmrd.clinical.endpoints import Outcomes, Row
from flowmrd.clinical.outcomes import Role, Subject, SurvivalAnalysis, persistence_by_visit
from flowmrd.clinical.response import Evidence, ResponseCall
from flowmrd.clinical.rules import Criteria, Response
from flowmrd.clinical.safety import Incidence, Safety
from flowmrd.clinical.survival import Rate
from flowmrd.reporting import cohort, figures
from flowmrd.reporting.cohort import Drawn, Theme
from flowmrd.reporting.numbers import MISSING, counted, significant
from flowmrd.reporting.report import (
    _asset_text,
    _environment,
    _json,
    _markup,
    _plotly_js,
    _sha256_base64,
    _write,
    sorted_findings,
)

_CLASSES = tuple(one.value for one in Response)
_ROLE = {
    Role.PRIMARY: "Primary endpoint",
    Role.SECONDARY: "Secondary endpoint",
    Role.CONTRAST: "Contrast",
    Role.SENSITIVITY: "Sensitivity",
    Role.EXTRA: "Extra",
}


def render_cohort(
    outcomes: Outcomes,
    path: Path,
    *,
    baseline: BaselineTable | None = None,
    safety: Safety | None = None,
    inputs: Mapping[str, object] | None = None,
    links: Mapping[tuple[str, str], str] | None = None,
) -> Path:
    """Write the cohort page.

    Parameters
    ----------
    outcomes : of `flowmrd.clinical.endpoints`
    path : HTML file; written under a temporary name and renamed
    baseline, safety : where those tables were given
    inputs : names and digests of the input files, for the provenance
    links : (patient, timepoint) → address of the report page with the gates behind the visit

    Returns
    -------
    `path`
    """
    environment = _environment()
    script = _asset_text("report.js") + _asset_text("cohort.js")
    plotly = _plotly_js().decode()
    hashes = " ".join(f"'sha256-{_sha256_base64(text)}'" for text in (script, plotly))
    text = environment.get_template("cohort.html").render(
        single_file=True,
        root="",
        version=__version__,
        settings=_markup(_json({"config": figures.CONFIG, "themes": figures.THEMES})),
        script=_markup(script),
        plotly=_markup(plotly),
        style=_markup(_asset_text("report.css") + _asset_text("cohort.css")),
        policy=(
            f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
            "connect-src 'none'; form-action 'none'; base-uri 'none'; object-src 'none'"
        ),
        page=cohort_context(outcomes, baseline=baseline, safety=safety, inputs=inputs, links=links),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, text.encode())
    return path


def cohort_context(
    outcomes: Outcomes,
    *,
    baseline: BaselineTable | None = None,
    safety: Safety | None = None,
    inputs: Mapping[str, object] | None = None,
    links: Mapping[tuple[str, str], str] | None = None,
    pages: Mapping[str, str] | None = None,
    section: str = "index",
    index_href: str = "",
) -> dict[str, Any]:
    """Gather everything the cohort page shows, as texts and figures in both themes.

    `pages` (patient → address) are the patients' own pages, where there are any; `section` is the page's element id,
    `index_href` the address of the report that it belongs to.
    """
    criteria = outcomes.criteria
    survival = outcomes.survival
    horizon, primary = criteria.keys.horizon_day, criteria.keys.allosct
    suffix = {"censor": "censor_sct", "restrict": "restricted", "ignore": "ignore_sct"}[primary]

    def analyses(stem: str) -> tuple[SurvivalAnalysis, list[SurvivalAnalysis]]:
        own = [
            one
            for name, one in survival.items()
            if name.startswith(stem) and one.role in {Role.SECONDARY, Role.CONTRAST}
        ]
        own = [one for one in own if one.name != "dfs_stringent"]
        return survival[f"{stem}_{suffix}"], [one for one in own if one.name != f"{stem}_{suffix}"]

    overall, free = analyses("os"), analyses("dfs")
    return {
        "section": section,
        "index_href": index_href,
        "title": f"Cohort of {counted(len(outcomes.subjects), 'patient')}",
        "criteria": f"{criteria.document.criteria.title} ({criteria.id} {criteria.version})",
        "cards": [_card(row) for row in _headline(outcomes)],
        "swimmer": figure_context("swimmer", lambda theme: cohort.swimmer_figure(outcomes, theme))
        if outcomes.subjects
        else None,
        "response": _response_table(outcomes),
        "rates": [_endpoint(row) for row in outcomes.rows if row.unit == "percent" and row.endpoint.startswith("orr")],
        "mrd_rates": [_visit_row(outcomes, i) for i in range(len(outcomes.visits))],
        "survival": [
            _survival("os", "Overall survival", *overall, horizon),
            _survival("dfs", "Disease-free survival", *free, horizon),
        ],
        "incidence": None
        if outcomes.incidence is None
        else figure_context("cif", lambda theme: cohort.incidence_figure(outcomes, theme)),
        "relapse_rows": [
            _endpoint(row) for row in outcomes.rows if row.endpoint.startswith(("relapse", "cif_", "naive", "time_to"))
        ],
        "contrasts": [
            _endpoint(row)
            for row in outcomes.rows
            if row.unit == "probability" and row.endpoint in {*survival, *outcomes.persistence}
        ],
        "mrd": figure_context("mrd", lambda theme: cohort.mrd_figure(outcomes, theme))
        if any(call.mrd is not None for call in outcomes.calls)
        else None,
        "waterfall": _waterfall(outcomes),
        "waterfall_visit": criteria.keys.responder_visit,
        "car": _car(outcomes, horizon),
        "safety": None if safety is None else _safety(safety),
        "baseline": None if baseline is None else _baseline(baseline, outcomes),
        "patients": [_patient(outcomes, i, links or {}, pages or {}) for i in range(len(outcomes.subjects))],
        "findings": [
            {"level": one.level.value, "code": one.code, "where": one.where, "message": one.message}
            for one in sorted_findings(all_findings(outcomes, baseline, safety))
        ],
        "provenance": {
            "criteria": {
                "id": criteria.id,
                "version": criteria.version,
                "sha256": criteria.digest,
                "sources": list(criteria.document.criteria.sources),
                "notes": criteria.document.criteria.notes,
                "keys": criteria.keys.model_dump(mode="json"),
            },
            "inputs": dict(inputs or {}),
            "software": f"flowmrd {__version__}",
        },
    }


def figure_context(key: str, draw: Callable[[Theme], Drawn]) -> dict[str, Any]:
    """Draw a figure in both themes, as the page's script wants it."""
    light, dark = draw("light"), draw("dark")
    return {
        "key": key,
        "height": light.height,
        "text": light.text,
        "json": _markup(_json({"light": light.figure, "dark": dark.figure})),
    }


# --------------------------------------------------------------------------------------------------------------- tables


def percent(value: float | None) -> str:
    """Write a percentage with one decimal, as rates of a cohort are reported; missing is a dash.

    Examples
    --------
    >>> percent(66.6667), percent(100.0), percent(None)
    ('66.7%', '100%', '–')
    """
    if value is None:
        return MISSING
    return f"{value:.0f}%" if value in {0, 100} else f"{value:.1f}%"


def _interval(low: float | None, high: float | None, *, scale: float = 1.0) -> str:
    return MISSING if low is None or high is None else f"{percent(scale * low)} to {percent(scale * high)}"


def _estimate(row: Row) -> str:
    if row.estimate is None:
        return "not reached" if row.unit == "days" else MISSING
    if row.unit == "days":
        return f"{row.estimate:g} days"
    return percent(row.estimate if row.unit == "percent" else 100 * row.estimate)


def _endpoint(row: Row) -> dict[str, Any]:
    scale = 1.0 if row.unit == "percent" else 100.0
    return {
        "title": row.title,
        "role": _ROLE[row.role],
        "main": row.role in {Role.PRIMARY, Role.SECONDARY},
        "visit": row.visit,
        "count": f"{row.n}" if row.k is None else f"{row.k} / {row.n}",
        "estimate": _estimate(row),
        "interval": MISSING if row.unit == "days" else _interval(row.ci_low, row.ci_high, scale=scale),
        "method": row.method,
        "note": row.note,
    }


def _headline(outcomes: Outcomes) -> list[Row]:
    """Choose the rows for the cards: the primary endpoint, MRD-negative CR, relapse, one-year DFS and OS."""
    keys = outcomes.criteria.keys
    suffix = {"censor": "censor_sct", "restrict": "restricted", "ignore": "ignore_sct"}[keys.allosct]
    by_name = {row.endpoint: row for row in outcomes.rows}
    wanted = [
        next((row.endpoint for row in outcomes.rows if row.role is Role.PRIMARY), ""),
        f"mrdneg_cr_{keys.responder_visit}_cart_only",
        "cif_relapse",
        f"dfs_{suffix}",
        f"os_{suffix}",
        f"os_{suffix}_follow_up",
    ]
    return [by_name[name] for name in wanted if name in by_name]


def _card(row: Row) -> dict[str, str]:
    shown = _endpoint(row)
    whole = counted(row.n, "patient")
    count = f"{row.k} of {whole}" if row.k is not None and row.unit == "percent" else whole
    if row.unit == "probability":
        count = f"{counted(row.k or 0, 'event')} in {whole}"
    title = f"{row.title} at {row.visit}" if row.visit else row.title
    return {
        "title": title,
        "value": shown["estimate"],
        "interval": "" if shown["interval"] == MISSING else f"95% CI {shown['interval']}",
        "count": count,
        "role": shown["role"],
        "note": row.note,
    }


def _response_table(outcomes: Outcomes) -> dict[str, Any] | None:
    """Count classes at each planned visit; patients without a row are a class of their own."""
    if not outcomes.visits:
        return None
    present = [name for name in _CLASSES if any(visit.classes.get(name) for visit in outcomes.visits)]
    rows = [
        {
            "visit": visit.visit,
            "counts": [visit.classes.get(name, 0) for name in present],
            "none": len(outcomes.subjects) - visit.row,
            "evaluable": visit.evaluable,
        }
        for visit in outcomes.visits
    ]
    return {"classes": present, "rows": rows}


def _visit_row(outcomes: Outcomes, i: int) -> dict[str, Any]:
    visit = outcomes.visits[i]
    return {
        "visit": visit.visit,
        "cart_only": _rate(visit.cart_only),
        "any": _rate(visit.any),
        "evaluable": _rate(visit.cart_only_evaluable),
        "cr_only": _rate(visit.cr_only),
        "undetected": _rate(visit.undetected),
    }


def _rate(one: Rate) -> dict[str, str]:
    interval = MISSING if one.cp95_percent is None else _interval(*one.cp95_percent)
    return {"count": f"{one.k} / {one.n}", "percent": percent(one.percent), "interval": interval}


def _survival(
    key: str, title: str, main: SurvivalAnalysis, others: Sequence[SurvivalAnalysis], horizon: int
) -> dict[str, Any]:
    read = main.horizon
    return {
        "title": title,
        "figure": figure_context(
            key, lambda theme: cohort.survival_figure(main, others, horizon_day=horizon, theme=theme)
        ),
        "note": main.note,
        "day": horizon,
        "value": MISSING if read is None else percent(100 * read.value),
        "interval": MISSING
        if read is None or read.ci95 is None
        else _interval(read.ci95[0], read.ci95[1], scale=100.0),
        "at_risk": 0 if read is None else read.at_risk,
        "median": "not reached" if main.median_days is None else f"{main.median_days:g} days",
        "follow_up": MISSING if main.follow_up_days is None else f"{main.follow_up_days:g} days",
    }


def _waterfall(outcomes: Outcomes) -> dict[str, Any] | None:
    if cohort.waterfall_figure(outcomes) is None:
        return None

    def draw(theme: Theme) -> Drawn:
        drawn = cohort.waterfall_figure(outcomes, theme)
        assert drawn is not None
        return drawn

    return figure_context("waterfall", draw)


def _car(outcomes: Outcomes, horizon: int) -> dict[str, Any] | None:
    if not outcomes.courses:
        return None
    persistence = outcomes.persistence["car_persistence"]
    return {
        "figure": figure_context("car", lambda theme: cohort.car_figure(outcomes.courses, theme)),
        "curve": None
        if persistence.estimate is None
        else _survival("persistence", persistence.title, persistence, (), horizon),
        "visits": [
            {"visit": visit, **{state.lower(): count for state, count in counts.items()}}
            for visit, counts in persistence_by_visit(outcomes.courses, outcomes.criteria).items()
        ],
    }


def _safety(safety: Safety) -> dict[str, Any]:
    return {
        "last_day": safety.last_day,
        "rows": [_incidence(one) for one in incidences(safety)],
        "events": [
            {
                "patient": one.patient_id,
                "category": safety.rules.title_of(one.category),
                "term": one.term,
                "onset": MISSING if one.onset_day is None else one.onset_day,
                "onset_order": -1 if one.onset_day is None else one.onset_day,
                "grade": MISSING if one.grade is None else one.grade,
                "grade_order": -1 if one.grade is None else one.grade,
                "derived": _derived(one.derived.grade, one.derived.at_least) if one.derived else MISSING,
                "counts": "yes" if one.counts else "no",
            }
            for one in safety.events
        ],
    }


def _derived(grade: int | None, at_least: int) -> str:
    return str(grade) if grade is not None else f"≥ {at_least}"


def _incidence(one: Incidence) -> dict[str, Any]:
    return {
        "title": one.title,
        "any": _rate(one.any),
        "grades": [one.by_grade[grade] for grade in range(1, 6)],
        "ungraded": one.ungraded,
        "severe": f"{one.severe.k} / {one.severe.n}",
        "onset": MISSING if one.first_onset is None else f"{one.first_onset:g}",
    }


def _baseline(table: BaselineTable, outcomes: Outcomes) -> dict[str, Any]:
    keys = outcomes.criteria.keys
    infused = [one for one in table.rows if one.infused]
    logic = keys.high_burden_logic
    doses = sorted(one.dose_per_kg for one in infused if one.dose_per_kg is not None)
    ages = sorted(one.age_years for one in infused if one.age_years is not None)
    schedule = Counter(one.lymphodepletion or "not stated" for one in infused)
    facts = {
        "In the table": str(len(table.rows)),
        "Infused": str(len(infused)),
        "Age, median (range)": _spread(ages, "years"),
        "Dose, median (range)": _spread([one / 1e6 for one in doses], "× 10⁶ CAR-T/kg"),
        f"Dose in {keys.dose_low_per_kg / 1e6:g} to {keys.dose_high_per_kg / 1e6:g} × 10⁶/kg": _answers(
            one.dose_in_range for one in infused
        ),
        "Lymphodepletion": ", ".join(f"{count} {state}" for state, count in sorted(schedule.items())),
        "Bridging": _answers(one.bridging for one in infused),
        "Prior alloSCT": _answers(one.prior_allosct for one in infused),
        f"High burden: marrow > {keys.high_burden_marrow_above_percent:g}% {logic} blood ≥ "
        f"{keys.high_burden_blood_at_least_per_ul:,.0f}/µl": _answers(one.high_burden for one in infused),
    }
    return {"facts": facts, "rows": [_baseline_row(one) for one in table.rows]}


def _baseline_row(one: Baseline) -> dict[str, str]:
    def number(value: float | None, digits: int = 3) -> str:
        return MISSING if value is None else f"{value:.{digits}g}"

    return {
        "patient": one.patient_id,
        "infused": _answer(one.infused),
        "age": number(one.age_years),
        "dose": MISSING if one.dose_per_kg is None else f"{significant(one.dose_per_kg / 1e6, 3)} × 10⁶",
        "in_range": _answer(one.dose_in_range),
        "lymphodepletion": one.lymphodepletion or MISSING,
        "bridging": _answer(one.bridging),
        "prior_allosct": _answer(one.prior_allosct),
        "marrow": MISSING if one.screening_bm_blast_pct is None else f"{number(one.screening_bm_blast_pct)}%",
        "blood": MISSING if one.screening_pb_blasts_per_ul is None else f"{one.screening_pb_blasts_per_ul:,.0f}/µl",
        "burden": _answer(one.high_burden),
    }


def _answer(value: bool | None) -> str:  # noqa: FBT001 -- the value itself, not a switch
    return MISSING if value is None else "yes" if value else "no"


def _answers(values: Any) -> str:
    counts = Counter(_answer(value) for value in values)
    text = f"{counts['yes']} yes, {counts['no']} no"
    return text if not counts[MISSING] else f"{text}, {counts[MISSING]} not stated"


def _spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return MISSING
    middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
    return f"{middle:.3g} ({values[0]:.3g} to {values[-1]:.3g}) {unit}"


# ------------------------------------------------------------------------------------------------------------- patients


def _patient(
    outcomes: Outcomes, i: int, links: Mapping[tuple[str, str], str], pages: Mapping[str, str]
) -> dict[str, Any]:
    subject = outcomes.subjects[i]
    order = {visit.name: visit.target_day for visit in outcomes.criteria.visits}
    calls = sorted(
        (call for call in outcomes.calls if call.patient_id == subject.patient_id),
        key=lambda call: order[call.timepoint] if call.day is None else call.day,
    )
    visits = outcomes.criteria.visits
    page = pages.get(subject.patient_id, "")
    line = " · ".join(f"{call.timepoint} {call.response.value}" for call in calls)
    return {
        "id": subject.patient_id,
        "key": f"p{i + 1}",
        "page": page,
        "line": line or _day(subject.remission_day),
        "facts": patient_facts(subject, outcomes.criteria),
        "figure": figure_context(f"p{i + 1}", lambda theme: cohort.timeline_figure(subject, calls, visits, theme))
        if calls and not page
        else None,
        "visits": [visit_context(call, links) for call in calls],
    }


def patient_facts(subject: Subject, criteria: Criteria) -> dict[str, str]:
    """Say what became of a patient; what is not or never is left out."""
    facts = {
        "Best response": subject.best_response or MISSING,
        "First remission": _day(subject.remission_day),
        f"Maintained {criteria.keys.maintained_days} days": subject.maintained or MISSING,
        "Relapse": _day(subject.relapse_day),
        "MRD relapse": _day(subject.mrd_relapse_day),
        "alloSCT": _day(subject.allosct_day),
        "Death": _day(subject.death_day),
        "Followed to": _day(subject.followed_to),
    }
    return {name: text for name, text in facts.items() if text != MISSING}


def baseline_facts(one: Baseline) -> dict[str, str]:
    """Say what is known of a patient before the infusion."""
    row = _baseline_row(one)
    facts = {
        "Age": MISSING if one.age_years is None else f"{row['age']} years",
        "CAR-T/kg": row["dose"] if one.dose_in_range is not False else f"{row['dose']}, out of range",
        "Lymphodepletion": row["lymphodepletion"],
        "Prior alloSCT": row["prior_allosct"],
        "High burden at screening": row["burden"],
    }
    return {name: text for name, text in facts.items() if text != MISSING}


def _day(day: int | None) -> str:
    return MISSING if day is None else f"day {day}"


def visit_context(call: ResponseCall, links: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Say what one visit yields, as the pages show it; `links` as of `render_cohort`."""
    unseen = call.unseen.value if call.day is not None and not call.in_window else ""
    return {
        "timepoint": call.timepoint,
        "day": "no visit" if call.day is None else f"day {call.day}",
        "response": call.response.value,
        "kind": cohort.kind_of(call.response),
        "unseen": unseen,
        "label": call.label,
        "sentence": call.sentence,
        "rule": call.rule_id,
        "marrow": call.marrow_grade or MISSING,
        "mrd": call.mrd.wording if call.mrd is not None and call.mrd_category else MISSING,
        "negative": {"Y": "yes", "N": "no", "NE": "not evaluable"}[call.mrd_neg_1e4.value],
        "cd19": call.cd19_status or MISSING,
        "event": "" if call.event is None else call.event.value,
        "cd19_negative": call.cd19_negative_event,
        "post_sct": call.post_sct,
        "flags": [flag.value for flag in call.flags],
        "evidence": [_evidence(one) for one in call.evidence],
        "href": links.get((call.patient_id, call.timepoint), ""),
    }


def _evidence(one: Evidence) -> str:
    if not one.column:
        return f"{one.statement}: {one.cell} (row {one.row})"
    place = f"measured: {one.acquisition}" if one.acquisition else f"row {one.row}"
    return f"{one.statement}: {one.column} = {one.cell or 'empty'} ({place})"
