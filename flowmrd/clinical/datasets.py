"""Outcomes and safety as tables: what `flowmrd endpoints` writes, among them ADaM-like data sets for the statistician.

The column names of ADSL, ADRS and ADTTE are those of CDISC ADaM as far as they apply to a study without dates. A `…DY`
column counts as CDISC does, without a day 0 (the infusion is day 1, the day before is −1); `AVAL` of ADTTE and every
column that ends in `DPI` are days post infusion, where the infusion is day 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from flowmrd.clinical.baseline import BaselineTable, by_patient_id
from flowmrd.clinical.endpoints import Outcomes, Row
from flowmrd.clinical.outcomes import CAUSES, SurvivalAnalysis, visit_calls
from flowmrd.clinical.response import response_frame
from flowmrd.clinical.safety import Incidence, Safety
from flowmrd.errors import QcFinding

if TYPE_CHECKING:
    import polars as pl

_TEXT, _WHOLE, _REAL = "String", "Int64", "Float64"

ENDPOINTS: Mapping[str, str] = {
    "endpoint": _TEXT,
    "title": _TEXT,
    "role": _TEXT,
    "visit": _TEXT,
    "k": _WHOLE,
    "n": _WHOLE,
    "estimate": _REAL,
    "ci_low": _REAL,
    "ci_high": _REAL,
    "unit": _TEXT,
    "method": _TEXT,
    "note": _TEXT,
}
KAPLAN_MEIER: Mapping[str, str] = {
    "analysis": _TEXT,
    "day": _REAL,
    "at_risk": _WHOLE,
    "events": _WHOLE,
    "censored": _WHOLE,
    "survival": _REAL,
    "ci_low": _REAL,
    "ci_high": _REAL,
}
INCIDENCE: Mapping[str, str] = {
    "cause": _TEXT,
    "day": _REAL,
    "at_risk": _WHOLE,
    "events": _WHOLE,
    "incidence": _REAL,
    "se": _REAL,
    "event_free": _REAL,
}
SAFETY: Mapping[str, str] = {
    "category": _TEXT,
    "title": _TEXT,
    "k": _WHOLE,
    "n": _WHOLE,
    "percent": _REAL,
    "ci_low": _REAL,
    "ci_high": _REAL,
    "grade_1": _WHOLE,
    "grade_2": _WHOLE,
    "grade_3": _WHOLE,
    "grade_4": _WHOLE,
    "grade_5": _WHOLE,
    "ungraded": _WHOLE,
    "k_grade_3_up": _WHOLE,
    "median_onset_day": _REAL,
    "last_day": _WHOLE,
}
EVENTS: Mapping[str, str] = {
    "patient_id": _TEXT,
    "category": _TEXT,
    "term": _TEXT,
    "onset_day": _WHOLE,
    "grade": _WHOLE,
    "entered_grade": _WHOLE,
    "derived_grade": _WHOLE,
    "counts": _TEXT,
    "source": _TEXT,
}
BASELINE: Mapping[str, str] = {
    "patient_id": _TEXT,
    "infused": _TEXT,
    "age_years": _REAL,
    "sex": _TEXT,
    "weight_kg": _REAL,
    "dose_per_kg": _REAL,
    "dose_in_range": _TEXT,
    "lymphodepletion": _TEXT,
    "bridging": _TEXT,
    "prior_allosct": _TEXT,
    "screening_bm_blast_pct": _REAL,
    "screening_pb_blasts_per_ul": _REAL,
    "high_burden": _TEXT,
}
FINDINGS: Mapping[str, str] = {"level": _TEXT, "code": _TEXT, "message": _TEXT, "where": _TEXT}
ADSL: Mapping[str, str] = {
    "USUBJID": _TEXT,
    "ITTFL": _TEXT,
    "SAFFL": _TEXT,
    "AGE": _REAL,
    "SEX": _TEXT,
    "WEIGHTBL": _REAL,
    "DOSEKG": _REAL,
    "DOSERNFL": _TEXT,
    "LYMPHDEP": _TEXT,
    "BRIDGEFL": _TEXT,
    "PRSCTFL": _TEXT,
    "HIBURDFL": _TEXT,
    "BMBLBL": _REAL,
    "EMDBL": _TEXT,
    "RESPFL": _TEXT,
    "BOR": _TEXT,
    "CRFL": _TEXT,
    "CRDPI": _WHOLE,
    "MAINTAIN": _TEXT,
    "RELFL": _TEXT,
    "RELDPI": _WHOLE,
    "SCTFL": _TEXT,
    "SCTDPI": _WHOLE,
    "DTHFL": _TEXT,
    "DTHDPI": _WHOLE,
    "LSTDPI": _WHOLE,
}
ADRS: Mapping[str, str] = {
    "USUBJID": _TEXT,
    "PARAMCD": _TEXT,
    "PARAM": _TEXT,
    "AVISIT": _TEXT,
    "AVISITN": _WHOLE,
    "ADY": _WHOLE,
    "DPI": _WHOLE,
    "AVALC": _TEXT,
    "AVAL": _REAL,
    "ANL01FL": _TEXT,
    "POSTSCFL": _TEXT,
    "RULEID": _TEXT,
    "SRCROW": _WHOLE,
}
ADTTE: Mapping[str, str] = {
    "USUBJID": _TEXT,
    "PARAMCD": _TEXT,
    "PARAM": _TEXT,
    "STARTDPI": _WHOLE,
    "AVAL": _REAL,
    "AVALU": _TEXT,
    "CNSR": _WHOLE,
    "EVNTDESC": _TEXT,
    "CNSDTDSC": _TEXT,
}
# ADaM's parameter codes have at most eight characters; the names of the analyses are longer.
_CODES: Mapping[str, str] = {
    "dfs_censor_sct": "DFSCENS",
    "dfs_restricted": "DFSREST",
    "dfs_ignore_sct": "DFSIGN",
    "dfs_stringent": "DFSMRD",
    "dfs_landmark": "DFSLAND",
    "os_censor_sct": "OSCENS",
    "os_restricted": "OSREST",
    "os_ignore_sct": "OSIGN",
    "efs": "EFS",
    "car_persistence": "CARPERS",
    "b_cell_aplasia": "BCA",
}


def datasets(
    outcomes: Outcomes, *, baseline: BaselineTable | None = None, safety: Safety | None = None
) -> dict[str, pl.DataFrame]:
    """Return every table by its file name, without ending.

    Parameters
    ----------
    outcomes : of `flowmrd.clinical.endpoints`
    baseline, safety : where those tables were given
    """
    found = {
        "endpoints": _frame(ENDPOINTS, [_row(one) for one in outcomes.rows]),
        "km": _frame(KAPLAN_MEIER, _curve_rows({**outcomes.survival, **outcomes.persistence})),
        "cif": _frame(INCIDENCE, _incidence_rows(outcomes)),
        "adsl": _frame(ADSL, _adsl(outcomes, baseline)),
        "adtte": _frame(ADTTE, _adtte(outcomes)),
    }
    if outcomes.calls:
        found["responses"] = response_frame(outcomes.calls)
        found["adrs"] = _frame(ADRS, _adrs(outcomes))
    if baseline is not None:
        found["baseline"] = _frame(BASELINE, _baseline_rows(baseline))
    if safety is not None:
        found["safety"] = _frame(SAFETY, [_safety_row(one, safety.last_day) for one in incidences(safety)])
        found["adverse_events"] = _frame(EVENTS, _event_rows(safety))
    found["findings"] = _frame(FINDINGS, _finding_rows(all_findings(outcomes, baseline, safety)))
    return found


def all_findings(outcomes: Outcomes, baseline: BaselineTable | None, safety: Safety | None) -> tuple[QcFinding, ...]:
    """Gather the findings of all inputs."""
    return (
        *outcomes.findings,
        *(baseline.findings if baseline is not None else ()),
        *(safety.findings if safety is not None else ()),
    )


def incidences(safety: Safety) -> list[Incidence]:
    """Return the incidence of each category, and of donor T cells among patients with a prior transplant."""
    return [*safety.incidence, *([safety.after_prior_allosct] if safety.after_prior_allosct is not None else [])]


def _frame(schema: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame(
        [tuple(None if cell == "" else cell for cell in row) for row in rows],
        schema={name: getattr(pl, kind) for name, kind in schema.items()},
        orient="row",
    )


def _row(one: Row) -> tuple[Any, ...]:
    return tuple(
        value.value if field.name == "role" else value for field in fields(one) for value in (getattr(one, field.name),)
    )


def _curve_rows(analyses: Mapping[str, SurvivalAnalysis]) -> Iterable[tuple[Any, ...]]:
    for name, analysis in analyses.items():
        curve = analysis.estimate
        if curve is None:
            continue
        for i, day in enumerate(curve.time.tolist()):
            low, high = float(curve.ci_low[i]), float(curve.ci_high[i])
            yield (
                name,
                day,
                int(curve.at_risk[i]),
                int(curve.events[i]),
                int(curve.censored[i]),
                float(curve.survival[i]),
                None if low != low else low,  # noqa: PLR0124 -- NaN
                None if high != high else high,  # noqa: PLR0124
            )


def _incidence_rows(outcomes: Outcomes) -> Iterable[tuple[Any, ...]]:
    curve = outcomes.incidence
    if curve is None:
        return
    for k, cause in enumerate(CAUSES):
        for i, day in enumerate(curve.time.tolist()):
            yield (
                cause,
                day,
                int(curve.at_risk[i]),
                int(curve.events[k, i]),
                float(curve.incidence[k, i]),
                float(curve.se[k, i]),
                float(curve.event_free[i]),
            )


def _flag(value: object) -> str:
    return "" if value is None else "Y" if value else "N"


def _adsl(outcomes: Outcomes, baseline: BaselineTable | None) -> Iterable[tuple[Any, ...]]:
    before = by_patient_id(baseline)
    responder = visit_calls(outcomes.calls, outcomes.criteria.keys.responder_visit)
    first = {call.patient_id: call for call in reversed(outcomes.calls)}
    for one in outcomes.subjects:
        own = before.get(one.patient_id)
        call, any_call = responder.get(one.patient_id), first.get(one.patient_id)
        yield (
            one.patient_id,
            "Y",
            "Y",
            own.age_years if own else None,
            own.sex if own else "",
            own.weight_kg if own else None,
            own.dose_per_kg if own else None,
            _flag(own.dose_in_range) if own else "",
            own.lymphodepletion if own else "",
            _flag(own.bridging) if own else "",
            _flag(own.prior_allosct) if own else "",
            _flag(own.high_burden) if own else "",
            _baseline_blasts(outcomes, any_call.row if any_call else None),
            _baseline_emd(outcomes, any_call.row if any_call else None),
            "N" if call is None else _flag(call.responder_d28),
            one.best_response,
            _flag(one.remission),
            one.remission_day,
            one.maintained,
            _flag(one.relapse_day is not None),
            one.relapse_day,
            _flag(one.allosct_day is not None),
            one.allosct_day,
            _flag(one.death_day is not None),
            one.death_day,
            one.followed_to,
        )


def _baseline_blasts(outcomes: Outcomes, row: int | None) -> float | None:
    found = outcomes.assessments.get(row) if row is not None else None
    return None if found is None or found.bl_bm_blast_pct is None else float(found.bl_bm_blast_pct)


def _baseline_emd(outcomes: Outcomes, row: int | None) -> str:
    found = outcomes.assessments.get(row) if row is not None else None
    return "" if found is None or found.bl_emd is None else "Y" if found.bl_emd == "1" else "N"


def _study_day(day: int | None) -> int | None:
    """CDISC's study day: no day 0."""
    return None if day is None else day + 1 if day >= 0 else day


def _adrs(outcomes: Outcomes) -> Iterable[tuple[Any, ...]]:
    order = {visit.name: i for i, visit in enumerate(outcomes.criteria.visits, start=1)}
    chosen = {
        call.row for visit in outcomes.criteria.visits for call in visit_calls(outcomes.calls, visit.name).values()
    }
    for call in outcomes.calls:
        fraction = None if call.mrd is None or not call.mrd_category else call.mrd.fraction
        values: list[tuple[str, str, str, float | None]] = [
            ("OVRLRESP", "Overall response", call.response.value, None),
            ("MRDCAT", "MRD category", call.mrd_category, None),
            ("MRDFRAC", "MRD fraction as counted, blasts of the denominator", "", fraction),
            ("MRDNEG", "MRD-negative at 1e-4", call.mrd_neg_1e4.value, None),
            ("MRDNEGCR", "MRD-negative complete remission", _flag(call.mrdneg_cr), None),
            ("CD19STAT", "CD19 on blasts", call.cd19_status, None),
            ("EVENT", "Event shown by the visit", "" if call.event is None else call.event.value, None),
        ]
        if call.responder_d28 is not None:
            values.append(("RESPD28", "Responder at the responder visit", _flag(call.responder_d28), None))
        for code, title, text, number in values:
            if not text and number is None:
                continue
            yield (
                call.patient_id,
                code,
                title,
                call.timepoint,
                order[call.timepoint],
                _study_day(call.day),
                call.day,
                text,
                number,
                _flag(call.row in chosen),
                _flag(call.post_sct),
                call.rule_id,
                call.row,
            )


def _adtte(outcomes: Outcomes) -> Iterable[tuple[Any, ...]]:
    for name, analysis in {**outcomes.survival, **outcomes.persistence}.items():
        origin = outcomes.criteria.keys.landmark_day if name == "dfs_landmark" else 0
        for one in analysis.times:
            yield (
                one.patient_id,
                _CODES[name],
                f"{analysis.title}: {name}",
                origin,
                float(one.day - origin),
                "DAYS",
                0 if one.event else 1,
                one.what if one.event else "",
                "" if one.event else one.what,
            )


def _baseline_rows(table: BaselineTable) -> Iterable[tuple[Any, ...]]:
    for one in table.rows:
        yield tuple(
            _flag(value) if BASELINE[name] == _TEXT and (value is None or isinstance(value, bool)) else value
            for name in BASELINE
            for value in (getattr(one, name),)
        )


def _safety_row(one: Incidence, last_day: int) -> tuple[Any, ...]:
    low, high = one.any.cp95_percent or (None, None)
    return (
        one.category,
        one.title,
        one.any.k,
        one.any.n,
        one.any.percent,
        low,
        high,
        *(one.by_grade[grade] for grade in range(1, 6)),
        one.ungraded,
        one.severe.k,
        one.first_onset,
        last_day,
    )


def _event_rows(safety: Safety) -> Iterable[tuple[Any, ...]]:
    for one in safety.events:
        derived = None if one.derived is None else one.derived.grade
        yield (
            one.patient_id,
            one.category,
            one.term,
            one.onset_day,
            one.grade,
            one.entered,
            derived,
            _flag(one.counts),
            one.source,
        )


def _finding_rows(findings: Iterable[QcFinding]) -> Iterable[tuple[Any, ...]]:
    for one in findings:
        yield (one.level.value, one.code, one.message, one.where)
