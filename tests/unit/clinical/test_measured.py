"""A clinical table meets the measurements of a run: which sample counts, and what is said where the two differ."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from flowmrd.clinical.measured import CODES, MEASURED_COLUMNS, Measured, MeasuredTable, agreement, with_measurements
from flowmrd.clinical.response import ResponseCall, classify
from flowmrd.clinical.rules import load_criteria
from flowmrd.clinical.table import COLUMNS, read_clinical_table

CRITERIA = load_criteria()
CLEAN = {
    "bl_bm_blast_pct": "80", "bl_emd": "0", "bm_status": "done", "bm_blast_pct": "1", "pb_blast_pct": "0", "anc": "2.0",
    "plt": "150", "cns": "CNS1", "emd": "0", "last_contact_day": "400",
}  # fmt: skip
NEGATIVE = Measured(
    acquisition="a1", subject="P", study_day=28, denominator="viable", events=0, denominator_events=300_000,
    target_independent=True, target_positive=None, target_cells=0, category="UNDETECTED", mrd_neg_1e4="Y",
    call="not_detected", withheld=(), wording="", text="a1.fcs",
)  # fmt: skip
POSITIVE = replace(
    NEGATIVE,
    events=900,
    category="QUANTIFIABLE",
    mrd_neg_1e4="N",
    call="positive",
    target_positive=90,
    target_cells=900,
)


@pytest.fixture
def table(tmp_path: Any) -> Any:
    def write(*rows: dict[str, object], columns: tuple[str, ...] = COLUMNS) -> Any:
        lines = [",".join(columns)]
        for row in rows:
            cells: dict[str, object] = {"patient_id": "P", "timepoint": "D28", "day": "28", **CLEAN, **row}
            lines.append(",".join(str(cells.get(name, "")) for name in columns))
        path = tmp_path / "clinical.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return read_clinical_table(path, visits=CRITERIA.visits, optional=MEASURED_COLUMNS)

    return write


def merged(table: Any, *samples: Measured) -> tuple[MeasuredTable, tuple[ResponseCall, ...], list[str]]:
    found = with_measurements(table, samples, CRITERIA.visits)
    codes = [one.code for one in found.table.findings]
    assert {code for code in codes if code != "LAST_CONTACT_MISSING"} <= CODES
    return found, classify(found.table, CRITERIA), codes


def test_mrd_comes_from_the_sample_of_the_day_and_the_evidence_names_it(table: Any) -> None:
    without = tuple(name for name in COLUMNS if name not in MEASURED_COLUMNS)
    found, calls, codes = merged(table({}, columns=without), POSITIVE)
    assert (calls[0].response, calls[0].mrd_category, calls[0].cd19_status) == ("CR", "QUANTIFIABLE", "CD19neg")
    assert found.table.assessments[0].blast_cd19_pos_pct == Fraction(10)
    assert codes == []
    again = classify(with_measurements(table({"bm_blast_pct": "30"}), [POSITIVE], CRITERIA.visits).table, CRITERIA)[0]
    assert again.response == "NR"
    cells = {(one.column, one.cell, one.acquisition) for one in again.evidence}
    assert ("bm_blast_pct", "30", "") in cells
    assert ("mrd_events", "900", "a1") in cells


def test_a_sample_of_another_day_in_the_window_counts_and_is_said(table: Any) -> None:
    _, calls, codes = merged(table({}), replace(NEGATIVE, study_day=30))
    assert (calls[0].mrd_category, codes) == ("UNDETECTED", ["VISIT_DAYS_DIFFER"])


def test_a_sample_outside_the_window_counts_for_no_visit(table: Any) -> None:
    _, calls, codes = merged(table({}), replace(NEGATIVE, study_day=45))
    assert (calls[0].mrd_category, codes) == ("NOT_DONE", ["SAMPLE_NOT_IN_TABLE"])


def test_an_unscheduled_visit_takes_only_the_sample_of_its_day(table: Any) -> None:
    rows = [{}, {"timepoint": "M3", "day": "60"}]
    found, _, codes = merged(table(*rows), NEGATIVE, replace(POSITIVE, acquisition="a2", study_day=60))
    assert [found.samples[number].acquisition for number in (2, 3)] == ["a1", "a2"]
    assert codes == []


def test_a_tube_that_found_nothing_does_not_take_back_what_another_found(table: Any) -> None:
    bigger = replace(NEGATIVE, acquisition="a2", denominator_events=900_000)
    found, calls, codes = merged(table({}), bigger, POSITIVE)
    assert (found.samples[2].acquisition, calls[0].mrd_neg_1e4, codes) == ("a1", "N", ["SEVERAL_MRD_SAMPLES"])


@pytest.mark.parametrize(
    ("cells", "sample", "codes"),
    [
        ({"mrd_events": 5, "mrd_denominator": 300000}, NEGATIVE, ["MRD_CONFLICT"]),
        ({"mrd_events": 0, "mrd_denominator": 300000}, NEGATIVE, []),
        ({"mrd_events": 0, "mrd_denominator": 300000}, None, ["MRD_FROM_TABLE"]),
        ({"cd19_indep_gating": "N"}, NEGATIVE, ["CD19_GATING_CONFLICT"]),
        ({"blast_cd19_pos_pct": "97"}, POSITIVE, ["CD19_SHARE_CONFLICT"]),
        ({"blast_cd19_pos_pct": "10.2"}, POSITIVE, []),
        ({"blast_cd19_pos_pct": "2"}, NEGATIVE, ["CD19_SHARE_FROM_TABLE"]),
        ({"bm_status": "not_done", "bm_blast_pct": ""}, NEGATIVE, ["MARROW_STATUS_DIFFERS"]),
        ({}, replace(NEGATIVE, call="review"), ["MRD_NEEDS_REVIEW"]),
        ({}, replace(NEGATIVE, subject="Q"), ["SUBJECT_NOT_IN_TABLE"]),
        ({"death_day": 29, "last_contact_day": 29}, replace(NEGATIVE, study_day=31),
         ["SAMPLE_AFTER_DEATH", "VISIT_DAYS_DIFFER"]),
    ],
)  # fmt: skip
def test_every_difference_is_a_finding(table: Any, cells: Any, sample: Measured | None, codes: list[str]) -> None:
    found, _, said = merged(table(cells), *([] if sample is None else [sample]))
    assert said == codes
    row = found.table.assessments[0]
    if sample is not None and sample.subject == "P":
        assert (row.mrd_events, row.mrd_denominator, row.cd19_indep_gating) == (sample.events, 300_000, "Y")


@pytest.mark.parametrize("why", ["withheld", "not assessed"])
def test_an_unusable_sample_leaves_flow_missing_whatever_the_table_says(table: Any, why: str) -> None:
    sample = (
        replace(POSITIVE, withheld=("no normal lymphocytes",))
        if why == "withheld"
        else replace(NEGATIVE, events=None, denominator_events=None, category="NOT_DONE", mrd_neg_1e4="NE")
    )
    found, calls, codes = merged(table({"mrd_events": 0, "mrd_denominator": 300000, "blast_cd19_pos_pct": "3"}), sample)
    assert (calls[0].mrd_category, calls[0].mrd_neg_1e4, calls[0].cd19_status) == ("NOT_DONE", "NE", "")
    if why == "withheld":
        said = next(one for one in found.table.findings if one.code == "MRD_WITHHELD")
        assert said.message == (
            "No MRD is taken from a1 without review: no normal lymphocytes. It has counted 900 blasts of 300,000 "
            "viable cells (0.3%), 10% of them with the therapy's target."
        )
    assert codes == sorted(
        ["MRD_CONFLICT", "CD19_SHARE_CONFLICT", {"withheld": "MRD_WITHHELD"}.get(why, "MRD_NOT_ASSESSED")]
    )


def test_a_sample_of_a_visit_that_the_table_says_did_not_happen_is_a_violation_and_not_used(table: Any) -> None:
    empty = dict.fromkeys(("bm_status", "bm_blast_pct", "pb_blast_pct", "anc", "plt", "cns", "emd"), "")
    found, calls, codes = merged(table({"day": "", **empty}), NEGATIVE)
    assert (calls[0].rule_id, codes, dict(found.samples)) == ("S1-NO-VISIT", ["VISIT_WITHOUT_DAY"], {})
    assert found.table.findings[0].level == "violation"


def test_rules_of_the_template_that_differ_from_the_criteria_are_a_finding(table: Any) -> None:
    found, calls, _ = merged(table({}), replace(NEGATIVE, category="UNDETECTED_INSUFFICIENT", mrd_neg_1e4="NE"))
    said = agreement(calls, found.samples)
    assert [one.code for one in said] == ["MRD_RULES_DIFFER"]
    assert "a1 was measured as UNDETECTED_INSUFFICIENT" in said[0].message


def test_a_lineage_switch_is_the_tables_to_say(table: Any) -> None:
    found, calls, _ = merged(table({"lineage_switch": "Y"}), NEGATIVE)
    assert (calls[0].mrd_category, calls[0].mrd_neg_1e4) == ("UNDETECTED_GATING_INADEQUATE", "NE")
    assert agreement(calls, found.samples) == ()
