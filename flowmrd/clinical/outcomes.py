"""Response calls → times and rates: who reached what, relapse, survival, competing risks, CAR-T persistence.

Definitions: domain reference 5-response 5.5, decisions D1 to D11; the choices among them are named keys of the
criteria. Day 0 is the infusion and the origin of every time. Nothing here classes a visit again; the one contrast that
needs other classes is handed in.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from flowmrd.clinical.response import ResponseCall
from flowmrd.clinical.rules import Criteria, Event, Flag, Response, Visit
from flowmrd.clinical.survival import (
    Estimate,
    KaplanMeier,
    Rate,
    kaplan_meier,
    median_follow_up,
    median_time,
    rate,
    survival_at,
)
from flowmrd.clinical.table import Assessment, ClinicalTable, by_patient
from flowmrd.documents.counts import CountRow, CountTable
from flowmrd.errors import InputError, Level, QcFinding
from flowmrd.quantification.kinetics import Course, Persistence, Sample, course_kinetics, joined_samples
from flowmrd.quantification.rare_events import Category

CAUSES = ("relapse", "death_in_remission", "allosct_in_remission")


class Role(StrEnum):
    """What an estimate is for. Only `primary` and `secondary` are endpoints of the trial."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    CONTRAST = "contrast"
    SENSITIVITY = "sensitivity"
    EXTRA = "extra"


class Handling(StrEnum):
    """What a transplant does to a time (D4)."""

    CENSOR = "censor"
    RESTRICT = "restrict"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One infused patient, as the survival analyses see them; days after infusion, `None` is not or never.

    `failure_day` is the day of the assessment that showed no response (EFS). `followed_to` is the last day on which the
    patient was known.
    """

    patient_id: str
    remission: bool
    remission_day: int | None
    relapse_day: int | None
    mrd_relapse_day: int | None
    failure_day: int | None
    allosct_day: int | None
    death_day: int | None
    followed_to: int | None
    best_response: str
    maintained: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeToEvent:
    """Time of one patient: an event or a censoring on `day`, and which (`what`)."""

    patient_id: str
    day: int
    event: bool
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalAnalysis:
    """One Kaplan–Meier analysis with what it rests on. Estimates are `None` without a patient."""

    name: str
    title: str
    role: Role
    note: str
    times: tuple[TimeToEvent, ...]
    estimate: KaplanMeier | None
    horizon: Estimate | None
    median_days: float | None
    follow_up_days: float | None

    @property
    def events(self) -> int:
        """Number of events."""
        return sum(one.event for one in self.times)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitRates:
    """MRD-negative complete remission at one visit: of all infused, of the evaluable, without transplant, CR only."""

    visit: str
    row: int
    evaluable: int
    any: Rate
    cart_only: Rate
    any_evaluable: Rate
    cart_only_evaluable: Rate
    cr_only: Rate
    undetected: Rate
    classes: Mapping[str, int]


# ------------------------------------------------------------------------------------------------------------- subjects


def subjects_of(table: ClinicalTable, calls: Sequence[ResponseCall], criteria: Criteria) -> tuple[Subject, ...]:
    """Follow each patient through their calls, in the order in which patients appear in the table.

    Visits outside their window count here: they show remission and relapse, though no class of a planned visit.
    """
    by_row = {call.row: call for call in calls}
    places = {visit.name: (visit.target_day, place) for place, visit in enumerate(criteria.visits)}
    subjects = []
    for patient, rows in by_patient(table.assessments).items():
        # As in the response procedure: two visits of one day in the order of the plan, wherever their rows stand.
        ordered = sorted(
            rows,
            key=lambda one: (
                places[one.timepoint][0] if one.day is None else one.day,
                places[one.timepoint][1],
            ),
        )
        subjects.append(_subject(patient, ordered, [by_row[one.row] for one in ordered], criteria))
    return tuple(subjects)


def _subject(patient: str, rows: Sequence[Assessment], calls: Sequence[ResponseCall], criteria: Criteria) -> Subject:
    keys = criteria.keys
    seen = [call for call in calls if call.day is not None]
    remission = next((call.day for call in seen if call.unseen in keys.remission_classes), None)
    failure = next(
        (
            call.day
            for call in seen
            if call.timepoint == keys.responder_visit and call.in_window and call.response in keys.efs_failure_classes
        ),
        None,
    )
    first = rows[0]
    days = [call.day for call in seen if call.day is not None]
    known = [day for day in (first.last_contact_day, max(days, default=None)) if day is not None]
    followed = first.death_day if first.death_day is not None else max(known, default=None)
    order = [Response.CR, Response.CRH, Response.CRI, Response.MLFS, Response.NR, Response.PD]
    classes = {call.unseen for call in seen}
    best = next((one for one in order if one in classes), Response.NE)
    return Subject(
        patient_id=patient,
        remission=remission is not None,
        remission_day=remission,
        relapse_day=next((call.day for call in seen if call.event is Event.RELAPSE), None),
        mrd_relapse_day=next((call.day for call in seen if call.event is Event.MRD_RELAPSE), None),
        failure_day=failure,
        allosct_day=first.allosct_day,
        death_day=first.death_day,
        followed_to=followed,
        best_response=best.value,
        maintained=_maintained(seen, remission, criteria),
    )


def _maintained(seen: Sequence[ResponseCall], remission: int | None, criteria: Criteria) -> str:
    """Y: a later assessment at least 28 days on shows no relapse; N: relapse before that; else not confirmed (5.4)."""
    if remission is None:
        return ""
    for call in seen:
        assert call.day is not None
        if call.day <= remission:
            continue
        if call.event is Event.RELAPSE:
            return "N"
        if call.unseen is not Response.NE and call.day >= remission + criteria.keys.maintained_days:
            return "Y"
    return "not confirmed"


def subjects_from_rows(rows: Iterable[Mapping[str, str]], *, source: str = "table") -> tuple[Subject, ...]:
    """Read subjects that are already summarised, one row a patient.

    Parameters
    ----------
    rows : `patient_id` (or `id`), `remission` (1 or 0), `remission_day`, `relapse_day`, `death_day`, `allosct_day`,
        `last_contact_day`; an empty cell is not or never

    Raises
    ------
    InputError : a cell that is no day, or a remission that is neither 1 nor 0
    """
    subjects = []
    for number, row in enumerate(rows, start=2):

        def day(name: str, row: Mapping[str, str] = row, number: int = number) -> int | None:
            cell = str(row.get(name) or "").strip()
            if not cell:
                return None
            if not cell.isdigit():
                raise InputError(
                    f"expected whole days after infusion or an empty cell; got {cell!r}",
                    source=source,
                    where=f"row {number}, {name}",
                )
            return int(cell)

        answer = str(row.get("remission") or "").strip()
        if answer not in {"0", "1"}:
            raise InputError(f"expected 1 or 0; got {answer!r}", source=source, where=f"row {number}, remission")
        death, contact, relapse = day("death_day"), day("last_contact_day"), day("relapse_day")
        known = [one for one in (contact, relapse) if one is not None]
        subjects.append(
            Subject(
                patient_id=str(row.get("patient_id") or row.get("id") or number),
                remission=answer == "1",
                remission_day=day("remission_day"),
                relapse_day=relapse,
                mrd_relapse_day=None,
                failure_day=None,
                allosct_day=day("allosct_day"),
                death_day=death,
                followed_to=death if death is not None else max(known, default=None),
                best_response="",
                maintained="",
            )
        )
    return tuple(subjects)


# ------------------------------------------------------------------------------------------------------ times to events


def overall_times(subjects: Sequence[Subject], handling: Handling) -> tuple[TimeToEvent, ...]:
    """Times to death of all infused; otherwise censored at the last contact (5.5)."""
    return _times(subjects, handling, lambda one: [(one.death_day, "death")])


def disease_free_times(
    subjects: Sequence[Subject], handling: Handling, *, stringent: bool = False
) -> tuple[TimeToEvent, ...]:
    """Times to relapse or death in remission of those who reached remission; stringent: MRD relapse counts, too."""

    def events(one: Subject) -> list[tuple[int | None, str]]:
        found: list[tuple[int | None, str]] = [(one.relapse_day, "relapse"), (one.death_day, "death in remission")]
        return [*found, (one.mrd_relapse_day, "MRD relapse")] if stringent else found

    return _times([one for one in subjects if one.remission], handling, events)


def event_free_times(subjects: Sequence[Subject], handling: Handling) -> tuple[TimeToEvent, ...]:
    """Times to no response, relapse or death of all infused (5.5, extra)."""
    return _times(
        subjects,
        handling,
        lambda one: [(one.failure_day, "no response"), (one.relapse_day, "relapse"), (one.death_day, "death")],
    )


def _times(subjects: Sequence[Subject], handling: Handling, events: Any) -> tuple[TimeToEvent, ...]:
    found = []
    for one in subjects:
        if handling is Handling.RESTRICT and one.allosct_day is not None:
            continue
        # The first event named wins a tie: a relapse on the day of death is a relapse.
        dated = [(day, i, what) for i, (day, what) in enumerate(events(one)) if day is not None]
        day, _, what = min(dated, default=(None, 0, ""))
        transplanted = handling is Handling.CENSOR and one.allosct_day is not None
        if transplanted and one.allosct_day is not None and (day is None or one.allosct_day < day):
            ends = [(one.allosct_day, "alloSCT")]
            if one.followed_to is not None:
                ends.append((one.followed_to, "last contact"))
            last, why = min(ends)
            found.append(TimeToEvent(patient_id=one.patient_id, day=last, event=False, what=why))
        elif day is not None:
            found.append(TimeToEvent(patient_id=one.patient_id, day=day, event=True, what=what))
        elif one.followed_to is not None:
            found.append(TimeToEvent(patient_id=one.patient_id, day=one.followed_to, event=False, what="last contact"))
    return tuple(found)


def cause_in_words(cause: int) -> str:
    """Name a competing cause (1 …) for readers.

    Examples
    --------
    >>> cause_in_words(3)
    'alloSCT in remission'
    """
    return CAUSES[cause - 1].replace("_", " ").replace("allosct", "alloSCT")


def competing_times(subjects: Sequence[Subject]) -> tuple[tuple[TimeToEvent, ...], tuple[int, ...]]:
    """Times to the first of relapse, death in remission and alloSCT in remission, and which (0 = censored)."""
    times, causes = [], []
    for one in subjects:
        if not one.remission:
            continue
        dated = [
            (day, cause)
            for cause, day in enumerate((one.relapse_day, one.death_day, one.allosct_day), start=1)
            if day is not None
        ]
        if dated:
            day, cause = min(dated)
            what = cause_in_words(cause)
        elif one.followed_to is not None:
            day, cause, what = one.followed_to, 0, "last contact"
        else:
            continue
        times.append(TimeToEvent(patient_id=one.patient_id, day=day, event=cause > 0, what=what))
        causes.append(cause)
    return tuple(times), tuple(causes)


def analyse_survival(
    name: str, title: str, times: Sequence[TimeToEvent], *, role: Role, note: str, horizon_day: float, origin: int = 0
) -> SurvivalAnalysis:
    """Estimate one survival curve and read it at the horizon; `origin` moves time zero (a landmark)."""
    days, events = [one.day - origin for one in times], [one.event for one in times]
    estimate = kaplan_meier(days, events) if times else None
    return SurvivalAnalysis(
        name=name,
        title=title,
        role=role,
        note=note,
        times=tuple(times),
        estimate=estimate,
        horizon=None if estimate is None else survival_at(estimate, horizon_day - origin),
        median_days=None if estimate is None else median_time(estimate),
        follow_up_days=median_follow_up(days, events) if times else None,
    )


def survival_analyses(
    subjects: Sequence[Subject], criteria: Criteria, *, visits: bool = True
) -> dict[str, SurvivalAnalysis]:
    """All survival analyses of 5.5, the primary one first; names as in the worked examples.

    Parameters
    ----------
    visits : whether the subjects come from visits; without them MRD relapse and non-response are not known, and the
        analyses that need them are left out
    """
    keys = criteria.keys
    horizon = keys.horizon_day
    notes = {
        Handling.CENSOR: "Censored at alloSCT.",
        Handling.RESTRICT: "Patients with an alloSCT at any time are left out: this conditions on the future.",
        Handling.IGNORE: "alloSCT is ignored.",
    }
    suffix = {Handling.CENSOR: "censor_sct", Handling.RESTRICT: "restricted", Handling.IGNORE: "ignore_sct"}
    primary = Handling(keys.allosct)
    found: dict[str, SurvivalAnalysis] = {}

    def add(name: str, title: str, times: Sequence[TimeToEvent], role: Role, note: str, origin: int = 0) -> None:
        found[name] = analyse_survival(name, title, times, role=role, note=note, horizon_day=horizon, origin=origin)

    for handling in sorted(Handling, key=lambda one: one is not primary):
        role = Role.SECONDARY if handling is primary else Role.CONTRAST
        add(
            f"dfs_{suffix[handling]}",
            "Disease-free survival",
            disease_free_times(subjects, handling),
            role,
            notes[handling],
        )
        add(f"os_{suffix[handling]}", "Overall survival", overall_times(subjects, handling), role, notes[handling])
    if visits:
        add(
            "dfs_stringent",
            "Disease-free survival, MRD relapse counts",
            disease_free_times(subjects, primary, stringent=True),
            Role.CONTRAST,
            f"MRD relapse is an event. {notes[primary]}",
        )
        add(
            "efs",
            "Event-free survival",
            event_free_times(subjects, primary),
            Role.EXTRA,
            f"All infused; {', '.join(keys.efs_failure_classes)} at {keys.responder_visit} is an event on its day. "
            f"{notes[primary]}",
        )
    landmark = keys.landmark_day
    early = [one for one in subjects if one.remission_day is not None and one.remission_day <= landmark]
    times = [one for one in disease_free_times(early, primary) if one.day > landmark]
    add(
        "dfs_landmark",
        f"Disease-free survival from day {landmark}",
        times,
        Role.SENSITIVITY,
        f"Remission by day {landmark} and still at risk then; time counts from there, without the immortal time before "
        f"remission. {notes[primary]}",
        origin=landmark,
    )
    return found


# ---------------------------------------------------------------------------------------------------------------- rates


def visit_calls(calls: Sequence[ResponseCall], visit: str) -> dict[str, ResponseCall]:
    """Return each patient's row for a planned visit; a row outside the window only where there is no other."""
    found: dict[str, ResponseCall] = {}
    for call in calls:
        if call.timepoint != visit:
            continue
        other = found.get(call.patient_id)
        if other is None or Flag.OUT_OF_WINDOW in other.flags:
            found[call.patient_id] = call
    return found


def response_rates(
    calls: Sequence[ResponseCall], other: Sequence[ResponseCall], criteria: Criteria, *, infused: int
) -> dict[str, Rate]:
    """Overall response rates at the responder visit: the primary one and its contrasts.

    Parameters
    ----------
    calls : under the criteria
    other : of the same table with `cri_rule` and_or
    infused : number of patients infused, the denominator
    """
    keys = criteria.keys
    here = visit_calls(calls, keys.responder_visit)
    there = visit_calls(other, keys.responder_visit)
    responders = sum(call.response in keys.responder_classes for call in here.values())
    with_cri = sum(call.response in keys.orr_with_cri_classes for call in here.values())
    any_cri = sum(call.response in keys.orr_with_cri_classes for call in there.values())
    evaluable = sum(call.response is not Response.NE for call in here.values())
    primary = f"orr_{'_'.join(keys.responder_classes).lower()}"
    size = infused if keys.orr_denominator == "infused" else evaluable
    return {
        primary: rate(responders, size),
        "orr_evaluable_contrast": rate(responders, evaluable),
        "orr_incl_cri_contrast": rate(with_cri, size),
        "orr_any_cri_contrast": rate(any_cri, size),
    }


def visit_rates(calls: Sequence[ResponseCall], visit: Visit, *, infused: int) -> VisitRates:
    """Rates of MRD-negative CR at one visit; patients without a row count as not achieved (W23)."""
    here = list(visit_calls(calls, visit.name).values())
    evaluable = sum(call.response is not Response.NE for call in here)
    reached = [call for call in here if call.mrdneg_cr]
    without = [call for call in reached if not call.post_sct]
    return VisitRates(
        visit=visit.name,
        row=len(here),
        evaluable=evaluable,
        any=rate(len(reached), infused),
        cart_only=rate(len(without), infused),
        any_evaluable=rate(len(reached), evaluable),
        cart_only_evaluable=rate(len(without), evaluable),
        cr_only=rate(sum(call.response is Response.CR for call in without), infused),
        undetected=rate(sum(call.mrd_category == Category.UNDETECTED for call in without), infused),
        classes=dict(Counter(call.response.value for call in here)),
    )


def relapse_summary(subjects: Sequence[Subject], criteria: Criteria) -> dict[str, Any]:
    """Crude relapse rate and time to relapse, without relapses after alloSCT (5.5)."""
    horizon = criteria.keys.horizon_day
    remitters = [one for one in subjects if one.remission]
    # On the day of the transplant it still is a relapse after CAR-T cells (as in 5.4 step 11: same day, not after).
    days = [
        one.relapse_day
        for one in remitters
        if one.relapse_day is not None and (one.allosct_day is None or one.relapse_day <= one.allosct_day)
    ]
    by = [day for day in days if day <= horizon]
    crude = rate(len(by), len(remitters))
    return {
        "n_remission": len(remitters),
        "relapses_before_sct": len(days),
        f"relapses_before_sct_by_{horizon}": len(by),
        f"rate_percent_by_{horizon}": crude.percent,
        "cp95_percent": None if crude.cp95_percent is None else list(crude.cp95_percent),
        f"median_time_to_relapse_of_relapsed_by_{horizon}": statistics.median(by) if by else None,
        f"range_of_relapsed_by_{horizon}": [min(by), max(by)] if by else None,
        "median_time_to_relapse_of_relapsed": statistics.median(days) if days else None,
        "range_of_relapsed": [min(days), max(days)] if days else None,
    }


# ---------------------------------------------------------------------------------------------------------- persistence


def courses_of(table: CountTable, subjects: Sequence[Subject]) -> tuple[tuple[Course, ...], tuple[QcFinding, ...]]:
    """Kinetics of every subject and course of a table of counts: `courses_of_samples` of its rows."""
    rows = ((row.subject, row.course, _sample(row)) for row in table.rows)
    return courses_of_samples(rows, subjects, where=table.path.name)


def courses_of_samples(
    samples: Iterable[tuple[str, int, Sample]], subjects: Sequence[Subject], *, where: str
) -> tuple[tuple[Course, ...], tuple[QcFinding, ...]]:
    """Kinetics of every subject and course, censored at transplant, death and re-infusion (4.6).

    Parameters
    ----------
    samples : subject, course and what was measured, in any order
    subjects : the infused patients
    where : what a finding about the samples names

    Returns
    -------
    the courses, and findings: those of the kinetics, and one for samples of nobody in the clinical table
    """
    patients = {one.patient_id: one for one in subjects}
    groups: dict[str, dict[int, list[Sample]]] = {}
    unknown = 0
    for subject, course, sample in samples:
        if subject in patients:
            groups.setdefault(subject, {}).setdefault(course, []).append(sample)
        else:
            unknown += 1
    courses: list[Course] = []
    findings: list[QcFinding] = []
    if unknown:
        findings.append(
            QcFinding(
                level=Level.WARNING,
                code="COUNTS_OF_NOBODY",
                message=f"{unknown} rows of the counts are of no infused patient of the clinical table; left out.",
                where=where,
            )
        )
    for subject, numbered in groups.items():
        ends = [(day, what) for day, what in _ends(patients[subject]) if day is not None]
        day, what = min(ends, default=(None, ""))
        own = [
            course_kinetics(
                joined_samples(rows),
                subject=subject,
                course=course,
                # Days of a later course count from its own infusion; the patient's days from the first.
                censor_day=day if course == 1 else None,
                censored_by=what if course == 1 else "",
            )
            for course, rows in sorted(numbered.items())
        ]
        # A re-infusion ends the observation of the course before it; courses are never joined.
        kept = [
            replace(one, kinetics=replace(one.kinetics, censored_by="re-infusion"))
            if one.kinetics.persistence_lost is False
            else one
            for one in own[:-1]
        ] + own[-1:]
        courses.extend(kept)
        findings.extend(
            replace(finding, where=f"{subject}, {finding.where}") for one in kept for finding in one.findings
        )
    return tuple(courses), tuple(findings)


def _ends(subject: Subject) -> list[tuple[int | None, str]]:
    return [(subject.allosct_day, "alloSCT"), (subject.death_day, "death")]


def _sample(row: CountRow) -> Sample:
    return Sample(
        day=row.day,
        car_per_ul=row.car_per_ul,
        lod_per_ul=row.lod_per_ul,
        ci_low=row.ci_low,
        ci_high=row.ci_high,
        lod_fraction=row.lod_fraction,
        cd19_per_ul=row.cd19_per_ul,
        b_fraction=row.b_fraction,
        copies_per_ug=row.copies_per_ug,
        cd4_cd8_ratio=row.cd4_cd8_ratio,
        terminal=row.terminal,
        label=row.visit,
    )


def persistence_analyses(
    courses: Sequence[Course], subjects: Sequence[Subject], criteria: Criteria
) -> dict[str, SurvivalAnalysis]:
    """Kaplan–Meier of CAR-T persistence and of B-cell aplasia over first courses (domain reference 4-cart 4.6, 4.7).

    Parameters
    ----------
    courses : kinetics of each subject's courses, censored at transplant, re-infusion and death
    """
    patients = {one.patient_id for one in subjects}
    first = [one for one in courses if one.kinetics.course == 1 and one.kinetics.subject in patients]
    car, aplasia = [], []
    for one in first:
        found = one.kinetics
        if found.persistence_days is not None:
            car.append(
                TimeToEvent(
                    patient_id=found.subject,
                    day=round(found.persistence_days),
                    event=bool(found.persistence_lost),
                    what="loss of persistence" if found.persistence_lost else found.censored_by,
                )
            )
        if found.bca_ever:
            last = max((row.day for row in one.visits if row.aplasia is not None), default=0)
            recovered = found.recovery_day
            aplasia.append(
                TimeToEvent(
                    patient_id=found.subject,
                    day=round(last if recovered is None else recovered),
                    event=recovered is not None,
                    what="last sample" if recovered is None else "B-cell recovery",
                )
            )
    horizon = criteria.keys.horizon_day
    return {
        "car_persistence": analyse_survival(
            "car_persistence",
            "CAR-T persistence",
            car,
            role=Role.SECONDARY,
            note="First infusion; event is the first of not-detected samples at least 14 days apart; censored at "
            "alloSCT, re-infusion, death or the last sample. Who never had CAR-T cells detected is left out.",
            horizon_day=horizon,
        ),
        "b_cell_aplasia": analyse_survival(
            "b_cell_aplasia",
            "B-cell aplasia",
            aplasia,
            role=Role.EXTRA,
            note="Functional persistence; event is the confirmed return of B cells.",
            horizon_day=horizon,
        ),
    }


def persistence_by_visit(courses: Sequence[Course], criteria: Criteria) -> dict[str, dict[str, int]]:
    """Count, per planned visit, subjects with CAR-T cells detected, not detected and not evaluable."""
    found: dict[str, dict[str, int]] = {}
    for visit in criteria.visits:
        counts: Counter[str] = Counter()
        for course in courses:
            if course.kinetics.course != 1:
                continue
            rows = [row for row in course.visits if visit.first_day <= row.day <= visit.last_day]
            if rows:
                target = visit.target_day
                counts[max(rows, key=lambda row: (-abs(row.day - target), row.day)).persistence.value] += 1
        found[visit.name] = {state.value: counts[state.value] for state in Persistence}
    return found
