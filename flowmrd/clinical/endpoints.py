"""The whole of the trial's endpoints: one table of estimates and one JSON object, from a clinical table.

Names in the JSON object are those of the domain reference's worked examples (W22, W23).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowmrd.clinical.outcomes import (
    CAUSES,
    Role,
    Subject,
    SurvivalAnalysis,
    TimeToEvent,
    VisitRates,
    cause_in_words,
    competing_times,
    courses_of,
    persistence_analyses,
    persistence_by_visit,
    relapse_summary,
    response_rates,
    subjects_of,
    survival_analyses,
    visit_rates,
)
from flowmrd.clinical.response import ResponseCall, alerts, classify
from flowmrd.clinical.rules import Criteria
from flowmrd.clinical.survival import (
    CumulativeIncidence,
    Rate,
    cumulative_incidence,
    event_free_at,
    incidence_at,
    kaplan_meier,
    rate,
    survival_at,
)
from flowmrd.clinical.table import Assessment, ClinicalTable
from flowmrd.documents.counts import CountTable
from flowmrd.errors import Level, QcFinding
from flowmrd.quantification.kinetics import Course


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table of endpoints. Percentages and probabilities say so in `unit`; days are days."""

    endpoint: str
    title: str
    role: Role
    visit: str
    k: int | None
    n: int
    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    unit: str
    method: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Everything of 5.5 that needs no safety data. `assessments` are the rows behind the calls, by their row number."""

    criteria: Criteria
    subjects: tuple[Subject, ...]
    calls: tuple[ResponseCall, ...]
    assessments: Mapping[int, Assessment]
    rates: Mapping[str, Rate]
    visits: tuple[VisitRates, ...]
    survival: Mapping[str, SurvivalAnalysis]
    incidence: CumulativeIncidence | None
    causes: tuple[TimeToEvent, ...]
    relapse: Mapping[str, Any]
    persistence: Mapping[str, SurvivalAnalysis]
    courses: tuple[Course, ...]
    rows: tuple[Row, ...]
    summary: Mapping[str, Any]
    findings: tuple[QcFinding, ...]


def outcomes_of(
    table: ClinicalTable,
    criteria: Criteria,
    *,
    not_infused: Sequence[str] = (),
    counts: CountTable | None = None,
    courses: Callable[[Sequence[Subject]], tuple[tuple[Course, ...], tuple[QcFinding, ...]]] | None = None,
) -> Outcomes:
    """Compute everything of 5.5 from a clinical table.

    Parameters
    ----------
    table : checked against the visits of the criteria
    criteria : rules and named keys
    not_infused : patients of the table who were not infused; they are in no denominator
    counts : CAR+ cells per µL over time, where there are any
    courses : instead of counts, what makes the kinetics of the subjects, with its findings
    """
    kept = tuple(one for one in table.assessments if one.patient_id not in set(not_infused))
    infused = ClinicalTable(assessments=kept, findings=table.findings, source=table.source, digest=table.digest)
    calls = classify(infused, criteria)
    other = classify(infused, criteria.with_keys(cri_rule="and_or"))
    subjects = subjects_of(infused, calls, criteria)
    rows = {one.row: one for one in kept}
    found: tuple[Course, ...] = ()
    said: tuple[QcFinding, ...] = ()
    if courses is not None:
        found, said = courses(subjects)
    elif counts is not None:
        found, said = courses_of(counts, subjects)
    return _outcomes(subjects, calls, other, criteria, found, (*table.findings, *said), rows)


def outcomes_of_subjects(subjects: Sequence[Subject], criteria: Criteria) -> Outcomes:
    """Compute the survival part of 5.5 from subjects that are already summarised; there are no visits to count."""
    return _outcomes(tuple(subjects), (), (), criteria, (), (), {})


def _outcomes(
    subjects: tuple[Subject, ...],
    calls: Sequence[ResponseCall],
    other: Sequence[ResponseCall],
    criteria: Criteria,
    courses: Sequence[Course],
    findings: Sequence[QcFinding],
    assessments: Mapping[int, Assessment],
) -> Outcomes:
    size = len(subjects)
    rates = response_rates(calls, other, criteria, infused=size) if calls else {}
    visits = tuple(visit_rates(calls, visit, infused=size) for visit in criteria.visits) if calls else ()
    survival = survival_analyses(subjects, criteria, visits=bool(calls))
    times, causes = competing_times(subjects)
    incidence = cumulative_incidence([one.day for one in times], causes, causes=len(CAUSES)) if times else None
    relapse = relapse_summary(subjects, criteria)
    persistence = persistence_analyses(courses, subjects, criteria) if courses else {}
    outcomes = Outcomes(
        criteria=criteria,
        subjects=subjects,
        calls=tuple(calls),
        assessments=assessments,
        rates=rates,
        visits=visits,
        survival=survival,
        incidence=incidence,
        causes=times,
        relapse=relapse,
        persistence=persistence,
        courses=tuple(courses),
        rows=(),
        summary={},
        findings=(*findings, *alerts(calls), *_findings(subjects)),
    )
    return replace(outcomes, rows=tuple(_rows(outcomes)), summary=_summary(outcomes))


def _findings(subjects: Sequence[Subject]) -> list[QcFinding]:
    found = []
    late = [
        one
        for one in subjects
        if one.remission_day is not None and one.allosct_day is not None and one.remission_day > one.allosct_day
    ]
    if late:
        found.append(
            QcFinding(
                level=Level.WARNING,
                code="REMISSION_AFTER_ALLOSCT",
                message=f"{len(late)} of {len(subjects)} patients reached their first remission after alloSCT. They "
                "stay in the disease-free survival population, censored at alloSCT: look whether they belong there.",
            )
        )
    lost = sum(one.followed_to is None for one in subjects)
    if lost:
        found.append(
            QcFinding(
                level=Level.WARNING,
                code="NO_FOLLOW_UP",
                message=f"{lost} of {len(subjects)} patients have neither a visit nor a last contact: they count in "
                "rates, but are in no survival analysis.",
            )
        )
    return found


def _pair(pair: tuple[float, float] | None) -> list[float] | None:
    return None if pair is None else list(pair)


def _summary(outcomes: Outcomes) -> dict[str, Any]:
    """Everything as one JSON object; names as in the worked examples of the domain reference."""
    keys = outcomes.criteria.keys
    horizon = keys.horizon_day
    found: dict[str, Any] = {"n_itt": len(outcomes.subjects)}
    if outcomes.calls:
        first = next(one for one in outcomes.visits if one.visit == keys.responder_visit)
        found[f"{keys.responder_visit.lower()}_counts"] = dict(first.classes)
    for name, one in outcomes.rates.items():
        found[name] = {"k": one.k, "n": one.n, "percent": one.percent, "cp95_percent": _pair(one.cp95_percent)}
        found[name]["wilson95_percent_for_contrast"] = _pair(one.wilson95_percent)
    for one_visit in outcomes.visits:
        found[f"mrdneg_cr_{one_visit.visit}"] = {
            "k_any": one_visit.any.k,
            "k_cart_only": one_visit.cart_only.k,
            "k_cr_only": one_visit.cr_only.k,
            "k_undetected": one_visit.undetected.k,
            "n_itt": one_visit.any.n,
            "n_evaluable": one_visit.evaluable,
            "itt_percent": one_visit.any.percent,
            "itt_cart_only_percent": one_visit.cart_only.percent,
            "evaluable_percent": one_visit.any_evaluable.percent,
            "evaluable_cart_only_percent": one_visit.cart_only_evaluable.percent,
            "cp95_itt_percent": _pair(one_visit.any.cp95_percent),
            "cp95_itt_cart_only_percent": _pair(one_visit.cart_only.cp95_percent),
        }
    for name, analysis in {**outcomes.survival, **outcomes.persistence}.items():
        read = analysis.horizon
        found[name] = {
            "n": len(analysis.times),
            "events": analysis.events,
            f"events_by_{horizon}": sum(one.event and one.day <= horizon for one in analysis.times),
            f"S{horizon}": None if read is None else read.value,
            "ci95_loglog": None if read is None else _pair(read.ci95),
            f"at_risk_{horizon}": 0 if read is None else read.at_risk,
            "median_days": analysis.median_days,
            "median_follow_up_days": analysis.follow_up_days,
            "role": analysis.role.value,
            "note": analysis.note,
        }
    if outcomes.incidence is not None:
        found[f"cif_{horizon}"] = {
            name: incidence_at(outcomes.incidence, horizon, cause).value for cause, name in enumerate(CAUSES, start=1)
        } | {"event_free": event_free_at(outcomes.incidence, horizon)}
        found[f"naive_1_minus_km_relapse_{horizon}"] = _naive(outcomes, horizon)
    found["relapse"] = dict(outcomes.relapse)
    if outcomes.courses:
        found["car_detected_by_visit"] = persistence_by_visit(outcomes.courses, outcomes.criteria)
    return found


def _naive(outcomes: Outcomes, horizon: int) -> float:
    """1 − Kaplan–Meier of relapse with the competing events as censorings: too high, shown for contrast only."""
    days = [one.day for one in outcomes.causes]
    return 1 - survival_at(kaplan_meier(days, [one.what == "relapse" for one in outcomes.causes]), horizon).value


def _rows(outcomes: Outcomes) -> Iterable[Row]:
    keys = outcomes.criteria.keys
    visit = keys.responder_visit
    titles = {
        "orr_evaluable_contrast": "Overall response, of the evaluable",
        "orr_incl_cri_contrast": f"Overall response, {' + '.join(keys.orr_with_cri_classes)}",
        "orr_any_cri_contrast": f"Overall response, {' + '.join(keys.orr_with_cri_classes)}, both counts low is CRi",
    }
    for name, one in outcomes.rates.items():
        title = titles.get(name, f"Overall response, {' + '.join(keys.responder_classes)}")
        role = Role.CONTRAST if name in titles else Role.PRIMARY
        yield _rate_row(name, title, role, visit, one)
    for found in outcomes.visits:
        name, title = f"mrdneg_cr_{found.visit}", "MRD-negative CR"
        yield _rate_row(f"{name}_cart_only", f"{title}, before alloSCT", Role.SECONDARY, found.visit, found.cart_only)
        yield _rate_row(name, f"{title}, any", Role.CONTRAST, found.visit, found.any)
        yield _rate_row(
            f"{name}_cart_only_evaluable",
            f"{title}, before alloSCT, of the evaluable",
            Role.CONTRAST,
            found.visit,
            found.cart_only_evaluable,
        )
        yield _rate_row(
            f"{name}_evaluable", f"{title}, any, of the evaluable", Role.CONTRAST, found.visit, found.any_evaluable
        )
        yield _rate_row(
            f"{name}_cr_only", f"{title}, CR only, before alloSCT", Role.CONTRAST, found.visit, found.cr_only
        )
        yield _rate_row(
            f"{name}_undetected",
            f"{title}, MRD undetected, before alloSCT",
            Role.CONTRAST,
            found.visit,
            found.undetected,
        )
    yield from _relapse_rows(outcomes)
    for analysis in (*outcomes.survival.values(), *outcomes.persistence.values()):
        yield from _survival_rows(analysis, keys.horizon_day)


def _rate_row(name: str, title: str, role: Role, visit: str, one: Rate) -> Row:
    low, high = one.cp95_percent or (None, None)
    return Row(
        endpoint=name,
        title=title,
        role=role,
        visit=visit,
        k=one.k,
        n=one.n,
        estimate=one.percent,
        ci_low=low,
        ci_high=high,
        unit="percent",
        method="Clopper–Pearson 95%",
        note="",
    )


def _relapse_rows(outcomes: Outcomes) -> Iterable[Row]:
    horizon = outcomes.criteria.keys.horizon_day
    found = outcomes.relapse
    crude = rate(found[f"relapses_before_sct_by_{horizon}"], found["n_remission"])
    yield _rate_row(
        "relapse_crude", f"Relapse by day {horizon} before alloSCT, of remissions", Role.SECONDARY, "", crude
    )
    if outcomes.incidence is not None:
        for cause, name in enumerate(CAUSES, start=1):
            read = incidence_at(outcomes.incidence, horizon, cause)
            low, high = read.ci95 or (None, None)
            yield Row(
                endpoint=f"cif_{name}",
                title=f"Cumulative incidence of {cause_in_words(cause)} at day {horizon}",
                role=Role.SECONDARY if cause == 1 else Role.EXTRA,
                visit="",
                k=int((outcomes.incidence.events[cause - 1][outcomes.incidence.time <= horizon]).sum()),
                n=outcomes.incidence.n,
                estimate=read.value,
                ci_low=low,
                ci_high=high,
                unit="probability",
                method="Aalen–Johansen, log(−log) 95%",
                note=f"At risk at day {horizon}: {read.at_risk}.",
            )
        yield Row(
            endpoint="naive_1_minus_km_relapse",
            title=f"1 − Kaplan–Meier of relapse at day {horizon}",
            role=Role.CONTRAST,
            visit="",
            k=None,
            n=outcomes.incidence.n,
            estimate=_naive(outcomes, horizon),
            ci_low=None,
            ci_high=None,
            unit="probability",
            method="Kaplan–Meier",
            note="Takes death and alloSCT for censorings: too high, for contrast only.",
        )
    median = found["median_time_to_relapse_of_relapsed"]
    spread = found["range_of_relapsed"]
    yield Row(
        endpoint="time_to_relapse",
        title="Time to relapse before alloSCT, relapsed patients: median and range",
        role=Role.SECONDARY,
        visit="",
        k=found["relapses_before_sct"],
        n=found["n_remission"],
        estimate=median,
        ci_low=None,
        ci_high=None,
        unit="days",
        method="median",
        note="" if spread is None else f"Range {spread[0]} to {spread[1]} days.",
    )


def _survival_rows(analysis: SurvivalAnalysis, horizon: int) -> Iterable[Row]:
    read = analysis.horizon
    low, high = (read.ci95 if read is not None else None) or (None, None)
    yield Row(
        endpoint=analysis.name,
        title=f"{analysis.title} at day {horizon}",
        role=analysis.role,
        visit="",
        k=analysis.events,
        n=len(analysis.times),
        estimate=None if read is None else read.value,
        ci_low=low,
        ci_high=high,
        unit="probability",
        method="Kaplan–Meier, log(−log) Greenwood 95%",
        note=f"{analysis.note} At risk at day {horizon}: {0 if read is None else read.at_risk}.",
    )
    for name, title, days, method in (
        ("median", "median time", analysis.median_days, "Kaplan–Meier"),
        ("follow_up", "median follow-up", analysis.follow_up_days, "reverse Kaplan–Meier"),
    ):
        yield Row(
            endpoint=f"{analysis.name}_{name}",
            title=f"{analysis.title}, {title}",
            role=analysis.role,
            visit="",
            k=None,
            n=len(analysis.times),
            estimate=days,
            ci_low=None,
            ci_high=None,
            unit="days",
            method=method,
            note="" if days is not None else "Not reached.",
        )
