"""Adverse events: mechanical grades against the reference, entered grades checked, patients counted once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowmrd.clinical.baseline import dose_per_kg, high_burden, read_baseline
from flowmrd.clinical.outcomes import Subject
from flowmrd.clinical.rules import load_criteria
from flowmrd.clinical.safety import Safety, crs_grade, icans_grade, load_safety_rules, read_adverse_events
from flowmrd.errors import InputError

HEADER = "patient_id,category,term,onset_day,grade,source"
PARTS = (
    ",fever,fever_masked,temperature_c,hypotension,oxygen,ice,capd,consciousness,seizure,motor_weakness,edema"
    ",rcl,clone_percent"
)
CRITERIA = load_criteria()


@pytest.fixture(scope="module")
def examples(shared: Path) -> dict[str, dict[str, Any]]:
    entries = json.loads((shared / "domain" / "worked_examples.json").read_text(encoding="utf-8"))
    return {entry["id"]: entry for entry in entries}


def patient(name: str, death: int | None = None) -> Subject:
    return Subject(
        patient_id=name,
        remission=True,
        remission_day=28,
        relapse_day=None,
        mrd_relapse_day=None,
        failure_day=None,
        allosct_day=None,
        death_day=death,
        followed_to=400,
        best_response="CR",
        maintained="",
    )


def safety(folder: Path, *rows: str, parts: bool = False, **more: Any) -> Safety:
    path = folder / "adverse_events.csv"
    path.write_text("\n".join([HEADER + (PARTS if parts else ""), *rows]) + "\n", encoding="utf-8")
    subjects = [patient("A"), patient("B"), patient("C"), patient("D", death=20)]
    return read_adverse_events(path, subjects, last_day=30, **more)


def parts(**values: object) -> str:
    names = PARTS.strip(",").split(",")
    return "," + ",".join(str(values.get(name, "")) for name in names)


# -------------------------------------------------------------------------------------------------------------- grades


def test_grades_of_the_reference(examples: dict[str, dict[str, Any]]) -> None:
    given, expected = examples["W21"]["inputs"]["cases"], examples["W21"]["expected"]["grades"]
    for case, grades in zip(given, expected, strict=True):
        crs = crs_grade(
            fever=case["fever"],
            fever_masked=case.get("fever_masked", False),
            hypotension=case["hypotension"],
            oxygen=case["oxygen"],
        )
        assert {"crs": crs.grade, "icans": icans_grade(ice=case["ice"], seizure=case.get("seizure")).grade} == grades


@pytest.mark.parametrize(
    ("values", "grade", "at_least"),
    [
        ({"fever": True, "hypotension": "none", "oxygen": "none"}, 1, 1),
        ({"fever": True, "hypotension": "multiple_pressors", "oxygen": "none"}, 4, 4),
        ({"fever": True, "hypotension": "none", "oxygen": "high_flow"}, 3, 3),
        ({"fever": False, "fever_masked": True, "hypotension": "none", "oxygen": "none"}, 0, 0),
        ({"fever": True, "hypotension": None, "oxygen": "low_flow"}, None, 2),
        ({"fever": True, "hypotension": None, "oxygen": "positive_pressure"}, 4, 4),
        ({"fever": None, "hypotension": "one_pressor", "oxygen": "none"}, None, 0),
    ],
)
def test_crs_is_graded_by_its_worst_component_and_needs_fever(
    values: dict[str, Any], grade: int | None, at_least: int
) -> None:
    found = crs_grade(**values)
    assert (found.grade, found.at_least) == (grade, at_least)


@pytest.mark.parametrize(
    ("values", "grade"),
    [
        *(({"ice": ice}, grade) for ice, grade in [(10, 0), (9, 1), (7, 1), (6, 2), (3, 2), (2, 3), (0, 3)]),
        ({"ice": 0, "consciousness": "coma"}, 4),
        ({"ice": 10, "consciousness": "voice"}, 2),
        ({"ice": 10, "consciousness": "alert"}, 0),
        ({"ice": 10, "seizure": "brief"}, 3),
        ({"ice": 10, "motor_weakness": True}, 4),
        ({"ice": 10, "edema": "focal"}, 3),
        ({"ice": 10, "edema": "diffuse"}, 4),
        ({"consciousness": "tactile"}, None),
        ({"motor_weakness": True}, 4),
        ({}, None),
        # below 12 years the ICE score does not count
        ({"ice": 2, "capd": 9, "age_years": 11.9}, 3),
        ({"ice": 2, "capd": 8, "age_years": 11.9}, 1),
        ({"ice": 2, "capd": 8, "age_years": 11.9, "consciousness": "voice"}, 2),
        ({"ice": 2, "capd": 0, "age_years": 5}, 0),
        ({"ice": 2, "capd": 20, "age_years": 12}, 3),
        ({"ice": 10, "age_years": 5}, None),
    ],
)
def test_neurotoxicity_is_graded_by_its_worst_component(values: dict[str, Any], grade: int | None) -> None:
    assert icans_grade(**values).grade == grade


# ------------------------------------------------------------------------------------------------------------ the table


def test_each_patient_counts_once_a_category_by_the_worst_grade_of_the_period(tmp_path: Path) -> None:
    found = safety(
        tmp_path,
        "A,CRS,fever,2,1,chart",
        "A,cytokine release syndrome,hypotension,4,3,chart",
        "B,crs,fever,30,1,chart",
        "C,crs,fever,31,4,chart",
        "C,ICANS,confusion,5,,chart",
        "D,neurotoxicity,none seen,5,0,chart",
        "D,headache,headache,3,2,chart",
    )
    by = {one.category: one for one in found.incidence}
    crs = by["crs"]
    assert (crs.any.k, crs.any.n, crs.severe.k) == (2, 4, 1)
    assert dict(crs.by_grade) == {1: 1, 2: 0, 3: 1, 4: 0, 5: 0}
    assert crs.first_onset == 16
    assert (by["neurotoxicity"].any.k, by["neurotoxicity"].ungraded) == (1, 1)
    assert by["other"].any.k == 1
    assert [(one.code, one.message) for one in found.findings] == [
        ("CATEGORY_UNKNOWN", "The category 'headache' (1 rows) is none of the trial's: counted as other.")
    ]
    assert [one.counts for one in found.events] == [True, True, True, False, True, False, True]


def test_all_six_categories_of_the_protocol_are_in_the_table_also_without_an_event(tmp_path: Path) -> None:
    found = safety(tmp_path, "A,allergy,rash,0,1,chart")
    assert [one.category for one in found.incidence] == [
        "b_cell_depletion",
        "infusion_reaction",
        "crs",
        "neurotoxicity",
        "donor_t_cells",
        "vector",
        "other",
    ]
    none = found.incidence[5]
    assert (none.any.k, none.any.n, (none.any.cp95_percent or (9,))[0]) == (0, 4, 0)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("A,crs,CRS,2,2,chart" + parts(fever="Y", hypotension="one_pressor", oxygen="none"), "GRADE_MISMATCH"),
        ("A,crs,CRS,2,1,chart" + parts(fever="Y", oxygen="low_flow"), "GRADE_MISMATCH"),
        ("A,crs,CRS,2,,chart" + parts(fever="Y", oxygen="low_flow"), "GRADE_NOT_DERIVABLE"),
        ("A,icans,ICANS,2,1,chart" + parts(ice=5), "GRADE_MISMATCH"),
        ("A,infusion reaction,rash,2,1,chart" + parts(), "INFUSION_REACTION_LATE"),
        ("A,vector,clone,20,,lab" + parts(clone_percent=21), "CLONE_DOMINANT"),
        ("A,vector,RCL,20,,lab" + parts(rcl="positive"), "RCL_POSITIVE"),
        ("A,crs,CRS,,2,chart" + parts(), "ONSET_MISSING"),
        ("A,crs,CRS,-2,2,chart" + parts(), "EVENT_BEFORE_INFUSION"),
    ],
)
def test_what_does_not_fit_is_a_finding(row: str, code: str, tmp_path: Path) -> None:
    assert [one.code for one in safety(tmp_path, row, parts=True).findings] == [code]


def test_an_entered_grade_stays_and_a_derived_one_fills_a_gap(tmp_path: Path) -> None:
    found = safety(
        tmp_path,
        "A,crs,CRS,2,2,chart" + parts(fever="Y", hypotension="one_pressor", oxygen="none"),
        "B,crs,CRS,2,,chart" + parts(temperature_c="38.0", hypotension="one_pressor", oxygen="none"),
        "C,crs,CRS,2,5,chart" + parts(fever="Y", hypotension="one_pressor", oxygen="none"),
        "D,vector,RCL,10,,lab" + parts(rcl="negative"),
        parts=True,
    )
    assert [one.grade for one in found.events] == [2, 3, 5, None]
    assert [one.counts for one in found.events] == [True, True, True, False]
    assert [one.code for one in found.findings] == ["GRADE_MISMATCH"]
    assert dict(found.rcl) == {"D": "negative"}


def test_children_are_graded_by_the_age_of_the_baseline(tmp_path: Path) -> None:
    row = "A,icans,ICANS,2,1,chart" + parts(ice=2, capd=5)
    assert [one.code for one in safety(tmp_path, row, parts=True).findings] == ["GRADE_MISMATCH"]
    assert safety(tmp_path, row, parts=True, ages={"A": 6.0}).findings == ()


def test_donor_t_cells_are_also_counted_among_patients_with_a_prior_transplant(tmp_path: Path) -> None:
    found = safety(tmp_path, "A,GVHD,acute GVHD,20,2,chart", prior_allosct={"A": True, "B": False, "C": None})
    assert found.after_prior_allosct is not None
    assert (found.after_prior_allosct.any.k, found.after_prior_allosct.any.n) == (1, 1)
    assert next(one for one in found.incidence if one.category == "donor_t_cells").any.n == 4


def test_faults_are_told_together_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        safety(
            tmp_path,
            "Z,crs,CRS,2,1,chart",
            "D,crs,CRS,21,1,chart",
            "A,crs,CRS,two,9,chart",
            "A,,CRS,2,1,chart",
        )
    assert [str(one) for one in caught.value.exceptions] == [
        (
            "adverse_events.csv, row 2, patient_id: UNKNOWN_PATIENT: expected an infused patient of the "
            "clinical table; "
            "got another"
        ),
        "adverse_events.csv, row 3, onset_day: EVENT_AFTER_DEATH: expected at most the day of death, 20; got 21",
        "adverse_events.csv, row 4, onset_day: expected a whole number from -3650 to 7300 or an empty cell; got 'two'",
        "adverse_events.csv, row 4, grade: expected a whole number from 0 to 5 or an empty cell; got '9'",
        "adverse_events.csv, row 5, category: expected a category; got an empty cell",
    ]
    with pytest.raises(ExceptionGroup) as caught:
        safety(tmp_path, "A,crs,CRS,2,1,chart" + parts(oxygen="mask", fever="maybe"), parts=True)
    assert [str(one) for one in caught.value.exceptions] == [
        "adverse_events.csv, row 2, fever: expected Y, N or an empty cell; got 'maybe'",
        (
            "adverse_events.csv, row 2, oxygen: expected one of none, low_flow, high_flow, positive_pressure or "
            "an empty cell; "
            "got 'mask'"
        ),
    ]


def test_a_missing_column_stops_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "adverse_events.csv"
    path.write_text("patient_id,category,term,onset,grade,source\n", encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        read_adverse_events(path, [patient("A")], last_day=30)
    assert str(caught.value.exceptions[0]) == (
        "adverse_events.csv, header: expected a column 'onset_day'; got none (did you mean onset?)"
    )


def test_every_category_has_one_title_and_no_alias_twice() -> None:
    rules = load_safety_rules()
    aliases = [alias for one in rules.category for alias in {one.id.replace("_", " "), *one.aliases}]
    assert len(set(aliases)) == len(aliases)
    assert rules.category_of("B_Cell_Depletion") == rules.category_of(" b-cell  aplasia ") == "b_cell_depletion"


# ------------------------------------------------------------------------------------------------------------ baseline


def test_the_dose_of_the_reference(examples: dict[str, dict[str, Any]]) -> None:
    found = dose_per_kg(**examples["W17"]["inputs"])
    expected = examples["W17"]["expected"]
    assert found.car_t_total == pytest.approx(expected["car_t_total"], rel=1e-9)
    assert found.per_kg == pytest.approx(expected["dose_per_kg"], rel=1e-9)
    with pytest.raises(InputError, match="a weight above 0"):
        dose_per_kg(viable_cells_per_ml=1, volume_ml=1, cd3_percent=1, car_percent_of_cd3=1, weight_kg=0)


@pytest.mark.parametrize(
    ("marrow", "blood", "by_or", "by_and"),
    [
        (25.1, 9_999, True, False),
        (25.0, 10_000, True, False),
        (25.1, 10_000, True, True),
        (25.0, 9_999, False, False),
        (80.0, None, True, None),
        (10.0, None, None, False),
        (None, None, None, None),
    ],
)
def test_high_burden_joins_its_inputs_as_the_key_says(
    marrow: float | None,
    blood: float | None,
    by_or: bool | None,  # noqa: FBT001 -- an expected value
    by_and: bool | None,  # noqa: FBT001
) -> None:
    assert high_burden(marrow_percent=marrow, blood_per_ul=blood, criteria=CRITERIA) is by_or
    both = CRITERIA.with_keys(high_burden_logic="and")
    assert high_burden(marrow_percent=marrow, blood_per_ul=blood, criteria=both) is by_and


def baseline(folder: Path, header: str, *rows: str) -> Path:
    path = folder / "baseline.csv"
    path.write_text("\n".join([f"patient_id,{header}", *rows]) + "\n", encoding="utf-8")
    return path


def test_doses_at_the_ends_of_the_range_are_inside(tmp_path: Path) -> None:
    path = baseline(tmp_path, "dose_per_kg", "A,2e6", "B,2e7", "C,1999999", "D,20000001", "E,")
    found = read_baseline(path, CRITERIA)
    assert [one.dose_in_range for one in found.rows] == [True, True, False, False, None]
    assert [(one.code, one.where) for one in found.findings] == [
        ("DOSE_OUT_OF_RANGE", "baseline.csv, row 4"),
        ("DOSE_OUT_OF_RANGE", "baseline.csv, row 5"),
    ]


def test_a_dose_is_computed_from_the_product_and_compared(tmp_path: Path) -> None:
    header = "viable_cells_per_ml,volume_ml,cd3_percent,car_percent_of_cd3,weight_kg,dose_per_kg"
    path = baseline(
        tmp_path, header, "A,8000000,30,98,42,22.5,", "B,8000000,30,98,42,22.5,4390400", "C,8e6,30,98,42,22.5,9e6"
    )
    found = read_baseline(path, CRITERIA)
    assert [one.dose_per_kg for one in found.rows] == [4390400.0, 4390400.0, 9e6]
    assert [one.code for one in found.findings] == ["DOSE_MISMATCH"]


def test_lymphodepletion_is_compared_with_the_schedule(tmp_path: Path) -> None:
    header = "fludarabine_days,fludarabine_mg_m2,cyclophosphamide_days,cyclophosphamide_mg_m2,infused"
    path = baseline(
        tmp_path,
        header,
        "A,-5;-4;-3;-2,30,-3;-2,500,Y",
        "B,-5;-4;-3,30,-3;-2,500,Y",
        "C,-5;-4;-3;-2,25,,,Y",
        "D,,,,,N",
    )
    found = read_baseline(path, CRITERIA)
    assert [one.lymphodepletion for one in found.rows] == ["as planned", "deviates", "deviates", ""]
    assert found.not_infused == ("D",)
    assert [one.message for one in found.findings] == [
        "Fludarabine on days -5, -4, -3, planned -5, -4, -3, -2.",
        "Fludarabine 25 mg/m² a day, planned 30.",
    ]


def test_faults_of_the_baseline_are_told(tmp_path: Path) -> None:
    path = baseline(tmp_path, "age_years,infused,cd3_percent", "A,old,Y,50", "A,5,Y,50", "B,5,maybe,101")
    with pytest.raises(ExceptionGroup) as caught:
        read_baseline(path, CRITERIA)
    assert [str(one) for one in caught.value.exceptions] == [
        "baseline.csv, row 2, age_years: expected a number from 0 on or an empty cell; got 'old'",
        "baseline.csv, row 3, patient_id: expected one row a patient; got another",
        "baseline.csv, row 4, cd3_percent: expected a percentage from 0 to 100; got 101",
        "baseline.csv, row 4, infused: expected Y, N or an empty cell; got 'maybe'",
    ]
