"""The table of counts: what it may hold, and every fault at once with row and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowmrd.documents.counts import load_counts

HEADER = "subject,course,day,car_per_ul,lod_per_ul,ci_low,ci_high,cd19_per_ul,copies_per_ug"


def written(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "counts.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(ExceptionGroup) as caught:
        load_counts(path)
    return [str(fault) for fault in caught.value.exceptions]


def test_empty_cells_are_missing_and_the_course_is_the_first(tmp_path: Path) -> None:
    (row,) = load_counts(written(tmp_path, "S1,,-7.5,,0.2,,,85,")).rows
    assert (row.course, row.day, row.car_per_ul, row.cd19_per_ul) == (1, -7.5, None, 85.0)


def test_the_shortest_table_has_four_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "S1,7,12.5,0.2", header="subject,day,car_per_ul,lod_per_ul")
    assert load_counts(path).rows[0].car_per_ul == 12.5


def test_percentages_become_fractions_and_marks_answers(tmp_path: Path) -> None:
    header = "subject,day,car_per_ul,lod_per_ul,lod_pct_cd3,b_pct_lymph,terminal,visit"
    (row,) = load_counts(written(tmp_path, "S1,28,1,0.2,1.5,0.4,Y,D28", header=header)).rows
    assert (row.lod_fraction, row.b_fraction, row.terminal, row.visit) == (0.015, 0.004, True, "D28")


def test_all_faults_are_told_at_once_with_row_and_column(tmp_path: Path) -> None:
    path = written(tmp_path, "S1,1,seven,12,0.2,,,,", "S1,1,8,-3,0.2,,,,", "S1,0,9,1,0.2,5,2,,", ",1,9,1,0.2,,,,")
    hint = "(write decimals with a point; leave a missing value empty)"
    assert faults(path) == [
        f"counts.csv, row 2, column day: expected a number; got 'seven' {hint}",
        f"counts.csv, row 3, column car_per_ul: expected a number of at least 0; got '-3' {hint}",
        "counts.csv, row 4, column course: expected a whole number of at least 1; got '0'",
        "counts.csv, row 4, column ci_high: expected a value not below ci_low; got 2 below 5",
        "counts.csv, row 5, column subject: expected a pseudonym of at most 64 printable characters",
    ]


@pytest.mark.parametrize("cell", ["<0.2", "BLQ", "nd"])
def test_a_value_below_the_limit_is_told_how_to_be_written(tmp_path: Path, cell: str) -> None:
    (text,) = faults(written(tmp_path, f"S1,1,60,{cell},0.2,,,,"))
    assert text == (
        f"counts.csv, row 2, column car_per_ul: expected a number of at least 0; got {cell!r} "
        "(below the limit: write 0, and the limit in lod_per_ul)"
    )


def test_a_duplicate_visit_is_refused_and_no_pseudonym_is_repeated(tmp_path: Path) -> None:
    (text,) = faults(written(tmp_path, "PSN-9,1,28,12,0.2,,,,", "PSN-9,1,28.0,13,0.2,,,,", "PSN-9,2,28,1,0.2,,,,"))
    assert text == (
        "counts.csv, row 3, column day: duplicate visit: day 28 of the same subject and course stands in row 2 too "
        "(keep one result a day; a re-infusion is a course of its own)"
    )


def test_columns_are_checked_before_cells(tmp_path: Path) -> None:
    path = written(tmp_path, "S1,7,x", header="subject,days,car_per_ul")
    assert faults(path) == [
        "counts.csv, header: unknown column 'days' (did you mean day?)",
        "counts.csv, header: missing column day (required: subject, day, car_per_ul, lod_per_ul)",
        "counts.csv, header: missing column lod_per_ul (required: subject, day, car_per_ul, lod_per_ul)",
    ]


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    assert faults(written(tmp_path)) == ["counts.csv: expected at least one row below the header; got none"]
