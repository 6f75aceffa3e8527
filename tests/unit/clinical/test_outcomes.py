"""From calls to endpoints: the reference's cohorts, and who counts where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowmrd.clinical.endpoints import outcomes_of, outcomes_of_subjects
from flowmrd.clinical.outcomes import (
    Handling,
    Role,
    Subject,
    competing_times,
    courses_of,
    disease_free_times,
    event_free_times,
    overall_times,
    relapse_summary,
    subjects_from_rows,
    visit_calls,
)
from flowmrd.clinical.rules import load_criteria
from flowmrd.clinical.table import ClinicalTable, read_clinical_table
from flowmrd.clinical.visits import assign_visits, visit_of_day
from flowmrd.documents.counts import load_counts
from flowmrd.errors import InputError

CRITERIA = load_criteria()


@pytest.fixture(scope="module")
def examples(shared: Path) -> dict[str, dict[str, Any]]:
    entries = json.loads((shared / "domain" / "worked_examples.json").read_text(encoding="utf-8"))
    return {entry["id"]: entry for entry in entries}


def assert_as_expected(expected: object, got: object, where: str = "") -> None:
    if isinstance(expected, Mapping):
        assert isinstance(got, Mapping), where
        for name, value in expected.items():
            assert name in got, f"{where}/{name}"
            assert_as_expected(value, got[name], f"{where}/{name}")
    elif isinstance(expected, list):
        assert isinstance(got, list)
        assert len(got) == len(expected), where
        for i, value in enumerate(expected):
            assert_as_expected(value, got[i], f"{where}[{i}]")
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=1e-9), where
    else:
        assert got == expected, where


def test_survival_relapse_and_incidence_of_the_reference_cohort(examples: dict[str, dict[str, Any]]) -> None:
    given = examples["W22"]["inputs"]
    rows = [dict(zip(given["columns"], map(str, row), strict=True)) for row in given["rows"]]
    found = outcomes_of_subjects(subjects_from_rows(rows), CRITERIA)
    assert_as_expected(examples["W22"]["expected"], found.summary)


def test_rates_of_the_vignettes(shared: Path, examples: dict[str, dict[str, Any]]) -> None:
    table = read_clinical_table(shared / "domain" / "vignettes.csv", visits=CRITERIA.visits)
    assert_as_expected(examples["W23"]["expected"], outcomes_of(table, CRITERIA).summary)


def test_days_are_assigned_to_visits(examples: dict[str, dict[str, Any]]) -> None:
    expected = dict(examples["W19"]["expected"])
    found = assign_visits(examples["W19"]["inputs"]["days"], CRITERIA.visits)
    assert list(found.unassigned) == expected.pop("unassigned")
    assert found.chosen == expected
    assert assign_visits([], CRITERIA.visits).chosen == {}
    edges = {24: "D28", 35: "D28", 23: None, 36: None, 335: "M12", 395: "M12", 396: None}
    assert {day: getattr(visit_of_day(day, CRITERIA.visits), "name", None) for day in edges} == edges


# --------------------------------------------------------------------------------------------------------- who counts


def subject(**values: Any) -> Subject:
    base = Subject(
        patient_id="P",
        remission=True,
        remission_day=28,
        relapse_day=None,
        mrd_relapse_day=None,
        failure_day=None,
        allosct_day=None,
        death_day=None,
        followed_to=400,
        best_response="CR",
        maintained="Y",
    )
    return replace(base, **values)


@pytest.mark.parametrize(
    ("values", "handling", "expected"),
    [
        ({}, Handling.CENSOR, (400, False, "last contact")),
        ({"relapse_day": 100, "death_day": 200, "followed_to": 200}, Handling.CENSOR, (100, True, "relapse")),
        ({"death_day": 200, "followed_to": 200}, Handling.CENSOR, (200, True, "death in remission")),
        ({"relapse_day": 200, "death_day": 200}, Handling.CENSOR, (200, True, "relapse")),
        ({"allosct_day": 90, "relapse_day": 100}, Handling.CENSOR, (90, False, "alloSCT")),
        ({"allosct_day": 90, "relapse_day": 100}, Handling.IGNORE, (100, True, "relapse")),
        ({"allosct_day": 100, "relapse_day": 100}, Handling.CENSOR, (100, True, "relapse")),
        ({"allosct_day": 300, "relapse_day": 100}, Handling.CENSOR, (100, True, "relapse")),
        ({"allosct_day": 300, "relapse_day": 100}, Handling.RESTRICT, None),
        ({"allosct_day": 500}, Handling.CENSOR, (400, False, "last contact")),
        ({"remission": False}, Handling.CENSOR, None),
        ({"mrd_relapse_day": 50}, Handling.CENSOR, (400, False, "last contact")),
        ({"followed_to": None}, Handling.CENSOR, None),
    ],
)
def test_disease_free_times(values: dict[str, Any], handling: Handling, expected: tuple[int, bool, str] | None) -> None:
    found = [(one.day, one.event, one.what) for one in disease_free_times([subject(**values)], handling)]
    assert found == ([expected] if expected else [])


def test_an_mrd_relapse_is_an_event_of_the_stringent_analysis_only() -> None:
    one = subject(mrd_relapse_day=50, relapse_day=100)
    assert [time.day for time in disease_free_times([one], Handling.CENSOR)] == [100]
    assert [time.what for time in disease_free_times([one], Handling.CENSOR, stringent=True)] == ["MRD relapse"]


def test_overall_survival_counts_all_infused_and_only_death() -> None:
    one = subject(remission=False, relapse_day=50, death_day=120, followed_to=120)
    assert [(time.day, time.event) for time in overall_times([one], Handling.CENSOR)] == [(120, True)]
    transplanted = subject(allosct_day=90, death_day=120, followed_to=120)
    assert [(time.day, time.event) for time in overall_times([transplanted], Handling.CENSOR)] == [(90, False)]
    assert [(time.day, time.event) for time in overall_times([transplanted], Handling.IGNORE)] == [(120, True)]
    same_day = subject(allosct_day=120, death_day=120, followed_to=120)
    assert [(time.day, time.event) for time in overall_times([same_day], Handling.CENSOR)] == [(120, True)]


def test_no_response_is_an_event_of_event_free_survival() -> None:
    one = subject(remission=False, failure_day=28, death_day=120, followed_to=120)
    assert [(time.day, time.what) for time in event_free_times([one], Handling.CENSOR)] == [(28, "no response")]


def test_the_first_of_competing_events_counts_and_relapse_wins_a_tie() -> None:
    several = [
        subject(relapse_day=90, allosct_day=90, death_day=90),
        subject(allosct_day=80, relapse_day=90),
        subject(death_day=70, followed_to=70),
        subject(),
        subject(remission=False, death_day=20),
    ]
    times, causes = competing_times(several)
    assert causes == (1, 3, 2, 0)
    assert [one.day for one in times] == [90, 80, 70, 400]


def test_relapses_after_transplant_are_not_counted_those_on_its_day_are() -> None:
    several = [subject(relapse_day=day, allosct_day=100) for day in (99, 100, 101)] + [subject(relapse_day=366)]
    found = relapse_summary(several, CRITERIA)
    assert (found["relapses_before_sct"], found["relapses_before_sct_by_365"], found["n_remission"]) == (3, 2, 4)
    assert found["median_time_to_relapse_of_relapsed_by_365"] == 99.5
    assert found["range_of_relapsed"] == [99, 366]
    assert relapse_summary([subject(remission=False)], CRITERIA)["rate_percent_by_365"] is None


# ----------------------------------------------------------------------------------------------------- from the table


@pytest.fixture(scope="module")
def cohort(cohort_folder: Path) -> ClinicalTable:
    return read_clinical_table(cohort_folder / "clinical.csv", visits=CRITERIA.visits)


def test_the_order_of_rows_changes_no_estimate(cohort: ClinicalTable) -> None:
    turned = replace(cohort, assessments=tuple(reversed(cohort.assessments)))
    ours, theirs = outcomes_of(cohort, CRITERIA), outcomes_of(turned, CRITERIA)
    assert ours.summary == theirs.summary
    assert {one.patient_id: one for one in ours.subjects} == {one.patient_id: one for one in theirs.subjects}


def test_patients_not_infused_are_in_no_denominator(cohort: ClinicalTable) -> None:
    every, fewer = outcomes_of(cohort, CRITERIA), outcomes_of(cohort, CRITERIA, not_infused=("S01", "S02"))
    assert (len(every.subjects), len(fewer.subjects)) == (24, 22)
    assert {row.n for row in fewer.rows if row.endpoint in {"orr_cr_crh", "os_censor_sct"}} == {22}
    assert not {"S01", "S02"} & {call.patient_id for call in fewer.calls}


def test_each_estimate_says_what_it_is_for(cohort: ClinicalTable) -> None:
    found = {row.endpoint: row for row in outcomes_of(cohort, CRITERIA).rows}
    assert [name for name, row in found.items() if row.role is Role.PRIMARY] == ["orr_cr_crh"]
    assert found["dfs_restricted"].role is Role.CONTRAST
    assert "conditions on the future" in found["dfs_restricted"].note
    assert found["dfs_landmark"].role is Role.SENSITIVITY
    assert found["naive_1_minus_km_relapse"].role is Role.CONTRAST
    assert all("At risk at day 365" in row.note for row in found.values() if row.method.startswith("Kaplan–Meier, log"))


def test_keys_move_the_endpoints_they_name(cohort: ClinicalTable) -> None:
    ignoring = outcomes_of(cohort, CRITERIA.with_keys(allosct="ignore"))
    assert [name for name, one in ignoring.survival.items() if one.role is Role.SECONDARY] == [
        "dfs_ignore_sct",
        "os_ignore_sct",
    ]
    evaluable = outcomes_of(cohort, CRITERIA.with_keys(orr_denominator="evaluable"))
    assert evaluable.rates["orr_cr_crh"].n == outcomes_of(cohort, CRITERIA).rates["orr_evaluable_contrast"].n


def test_a_planned_visit_is_taken_before_an_unscheduled_one(shared: Path) -> None:
    table = read_clinical_table(shared / "domain" / "vignettes.csv", visits=CRITERIA.visits)
    first = next(one for one in table.assessments if (one.patient_id, one.timepoint) == ("V01", "M3"))
    extra = replace(first, row=99, day=130)
    rows = (extra, *table.assessments)
    calls = outcomes_of(replace(table, assessments=rows), CRITERIA).calls
    assert visit_calls(calls, "M3")["V01"].day == 92


def test_remission_after_a_transplant_is_told(cohort: ClinicalTable) -> None:
    late = [
        replace(one, allosct_day=10, cells={**one.cells}) if one.patient_id == "S07" else one
        for one in cohort.assessments
    ]
    found = outcomes_of(replace(cohort, assessments=tuple(late)), CRITERIA)
    assert "REMISSION_AFTER_ALLOSCT" in {one.code for one in found.findings}


def test_persistence_is_estimated_over_first_courses(cohort: ClinicalTable, cohort_folder: Path) -> None:
    counts = load_counts(cohort_folder / "counts.csv")
    found = outcomes_of(cohort, CRITERIA, counts=counts)
    assert set(found.persistence) == {"car_persistence", "b_cell_aplasia"}
    assert len(found.persistence["car_persistence"].times) == 24
    visits = found.summary["car_detected_by_visit"]
    assert visits["D28"]["DETECTED"] == 24
    assert all(set(states) == {"DETECTED", "NOT_DETECTED", "NE"} for states in visits.values())


def test_persistence_ends_at_death_transplant_and_reinfusion(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    lines = ["subject,course,day,car_per_ul,lod_per_ul"]
    lines += [f"{name},1,{day},50,0.2" for name in ("A", "B", "C") for day in (7, 28, 60, 120)]
    lines += ["C,2,7,90,0.2", "Z,1,7,1,0.2"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    patients = [
        replace(subject(), patient_id="A", allosct_day=100),
        replace(subject(), patient_id="B", death_day=40),
        replace(subject(), patient_id="C"),
    ]
    courses, findings = courses_of(load_counts(path), patients)
    ends = {
        (one.kinetics.subject, one.kinetics.course): (one.kinetics.persistence_days, one.kinetics.censored_by)
        for one in courses
    }
    assert ends == {
        ("A", 1): (60, "alloSCT"),
        ("B", 1): (28, "death"),
        ("C", 1): (120, "re-infusion"),
        ("C", 2): (7, "last sample"),
    }
    assert [one.code for one in findings if one.code == "COUNTS_OF_NOBODY"] == ["COUNTS_OF_NOBODY"]


def test_subjects_that_are_summarised_are_checked() -> None:
    with pytest.raises(InputError) as caught:
        subjects_from_rows([{"id": "A", "remission": "1", "relapse_day": "soon"}], source="cohort.csv")
    assert str(caught.value) == (
        "cohort.csv, row 2, relapse_day: expected whole days after infusion or an empty cell; got 'soon'"
    )
    with pytest.raises(InputError) as caught:
        subjects_from_rows([{"id": "A", "remission": "yes"}], source="cohort.csv")
    assert str(caught.value) == "cohort.csv, row 2, remission: expected 1 or 0; got 'yes'"
