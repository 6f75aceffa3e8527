"""A trial's pages of a run report: one for each patient, one for the cohort.

A patient's page puts together what the run measured and what the clinical table says: the course on one picture, the
class of each visit with its rule in words and the cells behind it, and every gate one click away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowmrd.clinical.baseline import by_patient_id
from flowmrd.clinical.outcomes import Subject, visit_calls
from flowmrd.clinical.response import ResponseCall
from flowmrd.errors import Level, QcFinding
from flowmrd.records import AcquisitionResult
from flowmrd.reporting import cohort
from flowmrd.reporting.cohort_page import baseline_facts, cohort_context, figure_context, patient_facts, visit_context
from flowmrd.reporting.numbers import MISSING, format_count
from flowmrd.reporting.report import sorted_findings
from flowmrd.reporting.timeline import Event, Point, Window, course_timeline, timeline_context
from flowmrd.trial import Trial

# A result that waits for a person stands where nobody can overlook it.
_WITHHELD = "MRD_WITHHELD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a patient's page needs of one acquisition; `gates` are population → address of the plot that draws it."""

    name: str
    subject: str
    visit: str
    study_day: int | None
    specimen: str
    tube: str
    qc: str
    events: str
    wording: tuple[str, ...]
    thumbnail: str
    thumbnail_text: str
    href: str
    gates: tuple[tuple[str, str], ...]


def shown_of(result: AcquisitionResult, row: Mapping[str, Any], *, href: str, key: str) -> Shown:
    """Keep of an acquisition what a patient's page shows.

    Parameters
    ----------
    result : the acquisition
    row : its row of the report's index
    href : address of its page, from a patient's page
    key : prefix of the element ids of its page
    """
    page, _, _ = href.partition("#")
    gates: dict[str, str] = {}
    for number, panel in enumerate(result.panels, start=1):
        for gate in panel.gates:
            gates.setdefault(gate.population, f"{page}#{key}-panel-{number}")
    return Shown(
        name=result.acquisition,
        subject=result.subject,
        visit=result.visit,
        study_day=result.study_day,
        specimen=result.specimen_type,
        tube=row["tube"],
        qc=result.qc,
        events=format_count(result.events),
        wording=result.wording,
        thumbnail=row["thumbnail"],
        thumbnail_text=row["thumbnail_text"],
        href=href,
        gates=tuple(gates.items()),
    )


def patient_context(
    trial: Trial,
    subject: Subject,
    acquisitions: Sequence[Shown],
    mrd: Sequence[Point],
    *,
    key: str,
) -> dict[str, Any]:
    """Gather everything that one patient's page shows, as texts and figures.

    Parameters
    ----------
    trial : of the run
    subject : the patient
    acquisitions : the patient's, in the order of the run
    mrd : the patient's MRD, as fractions over days
    key : prefix of the page's element ids, unique in the document
    """
    outcomes = trial.outcomes
    visits = outcomes.criteria.visits
    targets = {visit.name: visit.target_day for visit in visits}
    calls = sorted(
        (call for call in outcomes.calls if call.patient_id == subject.patient_id),
        key=lambda call: (targets[call.timepoint] if call.day is None else call.day, call.row),
    )
    links = {one.name: one.href for one in acquisitions}
    baseline = by_patient_id(trial.baseline).get(subject.patient_id)
    rows = {call.row for call in calls}
    events = (
        [] if trial.safety is None else [one for one in trial.safety.events if one.patient_id == subject.patient_id]
    )
    return {
        "key": key,
        "title": subject.patient_id,
        "calls": [
            {"timepoint": call.timepoint, "response": call.response.value, "kind": cohort.kind_of(call.response)}
            for call in calls
        ],
        "alerts": [
            *(_alert(call) for call in calls if call.cd19_negative_event),
            *(one.message for one in trial.outcomes.findings if one.code == _WITHHELD and _row(one) in rows),
        ],
        "facts": {
            **patient_facts(subject, outcomes.criteria),
            **({} if baseline is None else baseline_facts(baseline)),
        },
        "courses": _courses(trial, subject, calls, mrd, key),
        "figure": None
        if not calls
        else figure_context(f"{key}-response", lambda theme: cohort.timeline_figure(subject, calls, visits, theme)),
        "visits": [_visit(call, trial, acquisitions, links) for call in calls],
        "acquisitions": sorted(
            acquisitions, key=lambda one: (one.study_day is None, one.study_day or 0, one.specimen, one.name)
        ),
        "events": [
            {
                "category": trial.safety.rules.title_of(one.category),
                "term": one.term,
                "onset": MISSING if one.onset_day is None else one.onset_day,
                "grade": MISSING if one.grade is None else one.grade,
                "counts": "yes" if one.counts else "no",
            }
            for one in events
            if trial.safety is not None
        ],
        "findings": [_finding(one) for one in _findings(trial, subject, rows, {one.row for one in events})],
        "criteria": f"{outcomes.criteria.document.criteria.title} ({outcomes.criteria.id} {outcomes.criteria.version})",
        "criteria_digest": outcomes.criteria.digest,
        "inputs": {name: dict(one) for name, one in trial.inputs.digests.items()},
    }


def index_rows(trial: Trial) -> list[dict[str, Any]]:
    """Return one row a patient for the report's index: the class of each planned visit, alerts and events."""
    outcomes = trial.outcomes
    by_visit = {visit.name: visit_calls(outcomes.calls, visit.name) for visit in outcomes.criteria.visits}
    withheld = {_row(one) for one in outcomes.findings if one.code == _WITHHELD}
    rows = []
    for subject in outcomes.subjects:
        calls = [found.get(subject.patient_id) for found in by_visit.values()]
        own = [call for call in outcomes.calls if call.patient_id == subject.patient_id]
        notes = [f"{call.event.value} at {call.timepoint}" for call in own if call.event is not None]
        notes += [f"CD19-negative at {call.timepoint}" for call in own if call.cd19_negative_event]
        notes += [f"MRD withheld at {call.timepoint}" for call in own if call.row in withheld]
        rows.append(
            {
                "id": subject.patient_id,
                "calls": [
                    None if call is None else {"response": call.response.value, "kind": cohort.kind_of(call.response)}
                    for call in calls
                ],
                "notes": notes,
            }
        )
    return rows


def report_cohort_context(
    trial: Trial, pages: Mapping[str, str], links: Mapping[tuple[str, str], str], *, index_href: str
) -> dict[str, Any]:
    """Return the cohort page's content for a report.

    Parameters
    ----------
    trial : of the run
    pages : patient → address of their page
    links : (patient, timepoint) → address of the page with the gates behind the visit
    index_href : address of the report's index
    """
    return cohort_context(
        trial.outcomes,
        baseline=trial.baseline,
        safety=trial.safety,
        inputs=trial.inputs.digests,
        links=links,
        pages=pages,
        section="cohort",
        index_href=index_href,
    )


def _alert(call: ResponseCall) -> str:
    what = "Relapse" if call.response.value.startswith("REL") or call.unseen.value.startswith("REL") else "MRD relapse"
    return f"{what} with CD19-negative blasts at {call.timepoint}, day {call.day}: the target of the therapy is lost."


def _courses(
    trial: Trial, subject: Subject, calls: Sequence[ResponseCall], mrd: Sequence[Point], key: str
) -> list[dict[str, Any]]:
    """Draw each course of the patient with the class of each visit in its window, and with what else happened."""
    happened = {
        "alloSCT": subject.allosct_day,
        "relapse": subject.relapse_day,
        "death": subject.death_day,
    }
    classes = {call.timepoint: call.response.value for call in calls if call.in_window}
    events = [Event(day=float(day), name=name) for name, day in happened.items() if day is not None]
    own = [one for one in trial.outcomes.courses if one.kinetics.subject == subject.patient_id]
    found = []
    for one in own:
        first = one.kinetics.course == own[0].kinetics.course
        days = [row.day for row in one.visits] + ([point.day for point in mrd] if first else [])
        last = max([*days, 28.0])
        windows = [
            Window(
                name=f"{visit.name} {classes.get(visit.name, '')}".strip(),
                first_day=visit.first_day,
                last_day=visit.last_day,
            )
            for visit in trial.outcomes.criteria.visits
            if visit.first_day <= last
        ]
        timeline = course_timeline(
            one,
            mrd=mrd if first else (),
            windows=windows,
            # Days of a later course count from its own infusion.
            events=[event for event in events if event.day <= last] if first else (),
        )
        found.append(timeline_context(timeline, f"{key}-course-{one.kinetics.course}"))
    return found


def _visit(call: ResponseCall, trial: Trial, acquisitions: Sequence[Shown], links: Mapping[str, str]) -> dict[str, Any]:
    source = trial.source_of(call)
    sample = trial.samples.get(call.row)
    visit = trial.outcomes.criteria.visit(call.timepoint)
    assert visit is not None
    own = [
        one
        for one in acquisitions
        if one.study_day is not None
        and (
            one.study_day == call.day or (call.day is not None and visit.holds(call.day) and visit.holds(one.study_day))
        )
    ]
    return {
        **visit_context(call, {}),
        "href": links.get(source, ""),
        "source": source,
        # The run's own sentence: its interval also holds the error of the search.
        **({} if sample is None or not sample.wording else {"mrd": sample.wording}),
        "sample": "" if sample is None else sample.text,
        "gates": [(one.name, f"{one.specimen} day {one.study_day}", one.href) for one in own],
        "evidence": [
            {
                "statement": one.statement,
                "cell": one.cell or "empty",
                "column": one.column,
                "row": one.row,
                "acquisition": one.acquisition,
                "href": links.get(one.acquisition, ""),
            }
            for one in call.evidence
        ],
    }


def _finding(one: QcFinding) -> dict[str, Any]:
    return {"level": one.level.value, "code": one.code, "message": one.message, "where": one.where}


def _findings(trial: Trial, subject: Subject, rows: set[int], event_rows: set[int]) -> list[QcFinding]:
    """Return the findings of this patient: of their rows of the tables, and warnings of their courses."""
    mine = f"{subject.patient_id}, "
    found = [
        one
        for one in trial.outcomes.findings
        if _row(one) in rows or (one.where.startswith(mine) and one.level is not Level.INFO)
    ]
    of_events = () if trial.safety is None else trial.safety.findings
    return sorted_findings([*found, *(one for one in of_events if _row(one) in event_rows)])


def _row(one: QcFinding) -> int | None:
    found = re.search(r"row (\d+)$", one.where)
    return int(found.group(1)) if found else None
