"""The clinical table: what cannot be is refused by name, with row and column, all at once; the rest asks for a look."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

from flowmrd.clinical.rules import load_criteria
from flowmrd.clinical.table import COLUMNS, ClinicalTable, read_clinical_table
from flowmrd.errors import InputError

VISITS = load_criteria().visits
DAYS = {"D28": "28", "M3": "91", "M6": "183", "M12": "365"}
CLEAN = {
    "patient_id": "P1",
    "timepoint": "D28",
    "bl_bm_blast_pct": "80",
    "bl_emd": "0",
    "bm_status": "done",
    "bm_blast_pct": "1",
    "mrd_events": "0",
    "mrd_denominator": "500000",
    "cd19_indep_gating": "Y",
    "confirm_tests_ge1pct": "0",
    "pb_blast_pct": "0",
    "anc": "2.0",
    "plt": "150",
    "plt_tx_7d": "N",
    "cns": "CNS1",
    "emd": "0",
    "lineage_switch": "N",
    "last_contact_day": "400",
}


def written(folder: Path, *rows: Mapping[str, str], header: tuple[str, ...] = COLUMNS) -> Path:
    path = folder / "clinical.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        out = csv.DictWriter(stream, header, extrasaction="ignore", restval="")
        out.writeheader()
        for row in rows:
            cells = {**CLEAN, **row}
            cells.setdefault("day", DAYS.get(cells["timepoint"], ""))
            out.writerow(cells)
    return path


def read(folder: Path, *rows: Mapping[str, str]) -> ClinicalTable:
    return read_clinical_table(written(folder, *rows), visits=VISITS)


def faults(folder: Path, *rows: Mapping[str, str]) -> list[str]:
    with pytest.raises(ExceptionGroup) as caught:
        read(folder, *rows)
    assert all(isinstance(fault, InputError) for fault in caught.value.exceptions)
    return [str(fault) for fault in caught.value.exceptions]


NO_VISIT = dict.fromkeys(CLEAN, "") | {"patient_id": "P1", "day": "", "last_contact_day": "400"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [{"anc": "1600"}],
            (
                "clinical.csv, row 2, anc: ANC_UNIT: expected 10⁹/L, at most 100; got 1600 "
                "(a count in /µL? 1600/µL is 1.6 × 10⁹/L)"
            ),
        ),
        (
            [{"mrd_denominator": "1e400"}],
            "clinical.csv, row 2, mrd_denominator: expected at most 1e+09; got 1e400",
        ),
        (
            [{"anc": "２.0"}],  # digits of another script
            (
                "clinical.csv, row 2, anc: expected a number or an empty cell; got '２.0' "
                "(leave the cell empty where the value is missing)"
            ),
        ),
        (
            [{"plt": "120000"}],
            (
                "clinical.csv, row 2, plt: PLT_UNIT: expected 10⁹/L, at most 3000; got 120000 "
                "(a count in /µL? 120000/µL is 120 × 10⁹/L)"
            ),
        ),
        (
            [{"day": "-3"}],
            (
                "clinical.csv, row 2, day: VISIT_BEFORE_INFUSION: expected day 0 or later; got -3 "
                "(days count from the infusion, which is day 0)"
            ),
        ),
        (
            [{"day": "2024-02-30"}],
            (
                "clinical.csv, row 2, day: IMPOSSIBLE_DAY: expected a whole number of days or an empty cell; "
                "got '2024-02-30' (days count from the infusion, which is day 0)"
            ),
        ),
        (
            [{"last_contact_day": "45321"}],
            (
                "clinical.csv, row 2, last_contact_day: IMPOSSIBLE_DAY: expected at most day 7300; got 45321 "
                "(days count from the infusion, which is day 0)"
            ),
        ),
        (
            [{"death_day": "70", "timepoint": "M3"}],
            "clinical.csv, row 2, day: DEATH_BEFORE_VISIT: expected a visit up to the day of death, 70; got day 91",
        ),
        (
            [{"timepoint": "M3", "day": "85"}, {"timepoint": "M3", "day": "95"}],
            (
                "clinical.csv, row 3, timepoint: TWO_MARROWS_IN_WINDOW: expected one row for M3; got another in row 2 "
                "(keep the one nearest to day 91, of two as near the later)"
            ),
        ),
        (
            [
                {"timepoint": "M3", "day": "85"},
                {"timepoint": "M3", "day": "95", "bm_status": "not_done", "bm_blast_pct": ""},
            ],
            (
                "clinical.csv, row 3, timepoint: DUPLICATE_ROW: expected one row for M3; got another in row 2 "
                "(keep the one nearest to day 91, of two as near the later)"
            ),
        ),
        (
            [{"timepoint": "M3", "day": "120"}, {"timepoint": "M3", "day": "120"}],
            "clinical.csv, row 3, day: DUPLICATE_ROW: expected one row for day 120; got another in row 2",
        ),
        (
            [{"allosct_day": "-200"}],
            (
                "clinical.csv, row 2, allosct_day: ALLOSCT_BEFORE_INFUSION: expected a day after infusion; got -200 "
                "(an earlier transplant belongs in the baseline table (`prior_allosct`))"
            ),
        ),
        (
            [{"allosct_day": "90", "death_day": "60"}],
            "clinical.csv, row 2, allosct_day: ALLOSCT_AFTER_DEATH: expected at most the day of death, 60; got 90",
        ),
        (
            [{"mrd_denominator": ""}],
            (
                "clinical.csv, row 2, mrd_denominator: MRD_PAIR: expected both mrd_events and mrd_denominator or "
                "neither; "
                "got one (0 events is a result)"
            ),
        ),
        (
            [{"mrd_denominator": "0"}],
            "clinical.csv, row 2, mrd_denominator: MRD_COUNTS: expected at least 1 cell in the denominator; got 0",
        ),
        (
            [{"mrd_events": "600000"}],
            (
                "clinical.csv, row 2, mrd_events: MRD_COUNTS: expected at most as many events as the denominator has; "
                "got 600000 of 500000"
            ),
        ),
        (
            [{}, {"timepoint": "M3", "bl_bm_blast_pct": ""}],
            (
                "clinical.csv, row 3, bl_bm_blast_pct: PATIENT_VALUES_DIFFER: expected the value of the patient's "
                "row 2, 80; "
                "got empty"
            ),
        ),
        (
            [{**NO_VISIT, "timepoint": "M3", "anc": "0"}],
            (
                "clinical.csv, row 2, anc: RESULTS_WITHOUT_VISIT: expected an empty cell where no visit took place "
                "(no day); "
                "got '0'"
            ),
        ),
        (
            [{"anc": "1,6"}],
            "clinical.csv, row 2, anc: expected a number or an empty cell; got '1,6' (write decimals with a point)",
        ),
        (
            [{"plt": "NA"}],
            (
                "clinical.csv, row 2, plt: expected a number or an empty cell; got 'NA' "
                "(leave the cell empty where the value is missing)"
            ),
        ),
        ([{"bm_blast_pct": "101"}], "clinical.csv, row 2, bm_blast_pct: expected a percentage from 0 to 100; got 101"),
        (
            [{"pb_blast_pct": "-1"}],
            "clinical.csv, row 2, pb_blast_pct: expected a number from 0 on or an empty cell; got '-1'",
        ),
        (
            [{"mrd_events": "1.5"}],
            "clinical.csv, row 2, mrd_events: expected a whole number from 0 on or an empty cell; got '1.5'",
        ),
        (
            [{"cns": "CNS 1"}],
            (
                "clinical.csv, row 2, cns: expected one of CNS1, CNS2, CNS3 or an empty cell; got 'CNS 1' (did you "
                "mean CNS1?)"
            ),
        ),
        (
            [{"timepoint": "M2", "day": "60"}],
            "clinical.csv, row 2, timepoint: expected one of D28, M3, M6, M12; got 'M2'",
        ),
        ([{"patient_id": ""}], "clinical.csv, row 2, patient_id: expected a pseudonym of 1 to 64 printable characters"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(rows: list[Mapping[str, str]], expected: str, tmp_path: Path) -> None:
    assert faults(tmp_path, *rows) == [expected]


def test_all_faults_are_told_at_once_in_the_order_of_rows(tmp_path: Path) -> None:
    found = faults(
        tmp_path, {"anc": "1600", "cns": "x"}, {"timepoint": "M3", "plt": "-"}, {"timepoint": "M6", "day": "-1"}
    )
    assert [text.split(": ")[0] for text in found] == [
        "clinical.csv, row 2, anc",
        "clinical.csv, row 2, cns",
        "clinical.csv, row 3, plt",
        "clinical.csv, row 4, day",
    ]


def test_a_missing_column_is_named_with_what_may_be_meant(tmp_path: Path) -> None:
    header = tuple(
        "platelets" if name == "plt_tx_7d" else "lineage" if name == "lineage_switch" else name for name in COLUMNS
    )
    with pytest.raises(ExceptionGroup) as caught:
        read_clinical_table(written(tmp_path, {}, header=header), visits=VISITS)
    assert [str(one) for one in caught.value.exceptions] == [
        "clinical.csv, header: expected a column 'plt_tx_7d'; got none",
        "clinical.csv, header: expected a column 'lineage_switch'; got none (did you mean lineage?)",
    ]


def test_other_columns_are_ignored_and_whole_numbers_may_be_written_as_decimals(tmp_path: Path) -> None:
    path = written(
        tmp_path, {"day": "28.0", "mrd_events": "0.0", "bl_emd": "0.0"}, header=(*COLUMNS, "title", "exp_response")
    )
    (one,) = read_clinical_table(path, visits=VISITS).assessments
    assert (one.day, one.mrd_events, one.bl_emd) == (28, 0, "0")


def test_an_empty_cell_is_missing_and_a_zero_is_a_zero(tmp_path: Path) -> None:
    empty = {name: "" for name in CLEAN if name not in {"patient_id", "timepoint"}}
    (one,) = read(tmp_path, {**empty, "day": "28"}).assessments
    assert [one.bm_blast_pct, one.mrd_events, one.anc, one.plt, one.pb_blast_pct, one.emd, one.cns] == [None] * 7
    assert (one.bm_status, one.cd19_indep_gating, one.plt_tx_7d, one.lineage_switch, one.confirm_tests_ge1pct) == (
        ("not_done", "N", "N", "N", 0)
    )
    (zero,) = read(tmp_path, {"bm_blast_pct": "0", "anc": "0", "mrd_events": "0"}).assessments
    assert [zero.bm_blast_pct, zero.anc, zero.mrd_events] == [0, 0, 0]


@pytest.mark.parametrize(
    ("rows", "code", "where"),
    [
        ([{"anc": "45"}], "ANC_UNUSUAL", "row 2"),
        ([{"bm_status": "inadequate"}], "BLASTS_WITHOUT_MARROW", "row 2"),
        ([{"last_contact_day": "20"}], "LAST_CONTACT_BEFORE_VISIT", "row 2"),
        ([{"death_day": "300", "last_contact_day": "301"}], "CONTACT_AFTER_DEATH", "row 2"),
        ([{"last_contact_day": ""}], "LAST_CONTACT_MISSING", "row 2"),
        ([{"timepoint": "M3", "day": "91"}, {"timepoint": "M6", "day": "100"}], "TWO_MARROWS_IN_WINDOW", "row 3"),
    ],
)
def test_what_can_be_but_asks_for_a_look_is_a_finding(
    rows: list[Mapping[str, str]], code: str, where: str, tmp_path: Path
) -> None:
    assert [(one.code, one.where) for one in read(tmp_path, *rows).findings] == [(code, where)]


def test_an_unscheduled_visit_may_stand_beside_the_planned_one(tmp_path: Path) -> None:
    found = read(tmp_path, {"timepoint": "M3", "day": "91"}, {"timepoint": "M3", "day": "130"})
    assert [one.day for one in found.assessments] == [91, 130]
    assert found.findings == ()


def test_no_pseudonym_is_repeated_in_a_message(tmp_path: Path) -> None:
    rows = [{"patient_id": "SECRET-7", "anc": "999"}, {"patient_id": "SECRET-7", "timepoint": "M3", "bl_emd": "1"}]
    assert not any("SECRET" in text for text in faults(tmp_path, *rows))


def test_an_empty_table_and_a_row_of_another_length_are_told(tmp_path: Path) -> None:
    assert faults(tmp_path) == ["clinical.csv: expected at least one row below the header; got none"]
    path = tmp_path / "short.csv"
    path.write_text(",".join(COLUMNS) + "\nP1,D28\n", encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        read_clinical_table(path, visits=VISITS)
    assert "expected 22 cells as in the header; got 2" in str(caught.value.exceptions[0])
