"""`flowmrd kinetics`: a table of counts in, one row a subject and course out, values of the worked examples."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flowmrd.cli.kinetics import command
from flowmrd.quantification.kinetics import KINETICS_COLUMNS


def run(counts: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(command, [str(counts), "--out", str(out), *options])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def counts(tmp_path: Path, shared: Path) -> Path:
    rows = ["subject,course,day,car_per_ul,lod_per_ul"]
    for one in examples(shared):
        given = one["inputs"]
        rows += [
            f"{one['id']},1,{day},{value},{given['lod_per_ul']}"
            for day, value in zip(given["days"], given["car_per_ul"], strict=True)
        ]
    path = tmp_path / "counts.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def examples(shared: Path) -> list[dict[str, Any]]:
    every = json.loads((shared / "domain" / "worked_examples.json").read_text("utf-8"))
    return [one for one in every if one["topic"] == "kinetics"]


def test_one_row_a_subject_with_the_worked_examples_values(counts: Path, tmp_path: Path, shared: Path) -> None:
    result = run(counts, tmp_path / "out", "--no-report")
    assert result.exit_code == 0, result.output
    rows = {row["subject"]: row for row in table(tmp_path / "out" / "kinetics.csv")}
    for one in examples(shared):
        row = rows[one["id"]]
        assert row["course"] == "1"
        for name, value in one["expected"].items():
            assert float(row[name]) == pytest.approx(value, rel=1e-9), (one["id"], name)


def test_the_columns_are_the_contract(counts: Path, tmp_path: Path) -> None:
    run(counts, tmp_path / "out", "--no-report")
    assert tuple(table(tmp_path / "out" / "kinetics.csv")[0]) == KINETICS_COLUMNS
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "kinetics.csv",
        "kinetics.parquet",
        "kinetics_findings.csv",
        "kinetics_findings.parquet",
        "kinetics_samples.csv",
        "kinetics_samples.parquet",
    ]


def test_the_same_table_gives_the_same_bytes(counts: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        run(counts, tmp_path / folder)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_the_timeline_asks_for_nothing_from_any_network(counts: Path, tmp_path: Path) -> None:
    run(counts, tmp_path / "out")
    page = (tmp_path / "out" / "timeline.html").read_text("utf-8")
    assert "default-src &#39;none&#39;" in page
    assert 'src="http' not in page
    assert '<link rel="stylesheet"' not in page


def test_courses_stay_apart_and_missing_values_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text(
        "subject,course,day,car_per_ul,lod_per_ul\nA,1,7,90,0.2\nA,2,7,3,0.2\nB,1,7,0,0.2\n", encoding="utf-8"
    )
    result = run(path, tmp_path / "out", "--no-report")
    assert result.exit_code == 0, result.output
    rows = table(tmp_path / "out" / "kinetics.csv")
    assert [(row["subject"], row["course"], row["cmax"]) for row in rows] == [
        ("A", "1", "90.0"),
        ("A", "2", "3.0"),
        ("B", "1", "0.0"),
    ]
    assert rows[0]["half_life_days"] == ""
    assert rows[2]["tmax"] == ""


def test_warnings_are_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_text("subject,day,car_per_ul,lod_per_ul\nA,0,9,0.2\nA,-3,,\nA,7,90,\n", encoding="utf-8")
    result = run(path, tmp_path / "out", "--no-report")
    assert "warning: DAY_ZERO_POSITIVE" in result.output
    assert "(course 1 of the subject in row 2)" in result.output
    assert "warning: LOD_MISSING" in result.output
    found = table(tmp_path / "out" / "kinetics_findings.csv")
    assert [row["code"] for row in found] == ["NEGATIVE_DAY", "DAY_ZERO_POSITIVE", "LOD_MISSING"]
