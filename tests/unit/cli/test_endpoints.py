"""`flowmrd respond` and `flowmrd endpoints` as a user calls them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from flowmrd.cli.endpoints import command as endpoints
from flowmrd.cli.respond import command as respond
from flowmrd.clinical.datasets import ADRS, ADSL, ADTTE, BASELINE, ENDPOINTS, SAFETY
from flowmrd.clinical.response import OUTPUT


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def flowmrd(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowmrd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_respond_gives_the_vignettes_one_row_a_row_in_their_order(shared: Path, tmp_path: Path) -> None:
    table, out = shared / "domain" / "vignettes.csv", tmp_path / "out.csv"
    done = flowmrd("respond", table, "--out", out, "--evidence", tmp_path / "why.csv")
    assert done.returncode == 0, done.stderr
    assert f"40 visits of 15 patients classed by mbcart19 1.0.0; table: {out}" in done.stdout
    given, found = rows_of(table), rows_of(out)
    assert list(found[0]) == list(OUTPUT)
    for before, after in zip(given, found, strict=True):
        assert (before["patient_id"], before["timepoint"]) == (after["patient_id"], after["timepoint"])
        for name, cell in before.items():
            if name.startswith("exp_"):
                assert after[name.removeprefix("exp_")] == cell, (before["patient_id"], before["timepoint"], name)
    assert {row["rule_id"] for row in rows_of(tmp_path / "why.csv")} == {row["rule_id"] for row in found}


def test_the_same_table_gives_the_same_bytes(shared: Path, tmp_path: Path) -> None:
    table = str(shared / "domain" / "vignettes.csv")
    for name in ("a", "b"):
        CliRunner().invoke(respond, [table, "--out", str(tmp_path / f"{name}.csv")], catch_exceptions=False)
        CliRunner().invoke(endpoints, [table, "--out", str(tmp_path / name)], catch_exceptions=False)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_faulty_cell_stops_respond_before_anything_is_written(shared: Path, tmp_path: Path) -> None:
    text = (shared / "domain" / "vignettes.csv").read_text(encoding="utf-8")
    table = tmp_path / "slip.csv"
    table.write_text(text.replace(",2.1,180,", ",2100,180,"), encoding="utf-8")
    done = flowmrd("respond", table, "--out", tmp_path / "out.csv")
    assert done.returncode == 2
    assert done.stderr == (
        "error: slip.csv, row 2, anc: ANC_UNIT: expected 10⁹/L, at most 100; got 2100 "
        "(a count in /µL? 2100/µL is 2.1 × 10⁹/L)\n"
    )
    assert not (tmp_path / "out.csv").exists()


def test_other_criteria_are_named_by_id_or_file(shared: Path, tmp_path: Path) -> None:
    table, out = str(shared / "domain" / "vignettes.csv"), tmp_path / "out.csv"
    result = CliRunner().invoke(respond, [table, "--out", str(out), "--criteria", "eliana"], catch_exceptions=False)
    assert "classed by eliana 1.0.0" in result.output
    assert {row["response"] for row in rows_of(out)} >= {"CR", "CRi"}
    assert "CRh" not in {row["response"] for row in rows_of(out)}
    done = flowmrd("respond", table, "--out", out, "--criteria", "nobody")
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected one of eliana, eln2024, mbcart19, ponte-di-legno or a TOML file")


def test_findings_of_the_table_go_to_standard_error(shared: Path, tmp_path: Path) -> None:
    done = flowmrd("respond", shared / "domain" / "vignettes.csv", "--out", tmp_path / "out.csv")
    assert done.stderr == (
        "warning: row 8: CD19_NEGATIVE_RELAPSE: Relapse with CD19-negative blasts at M6, day 178: the target is lost; "
        "a second reader is mandatory.\n"
    )


def test_endpoints_writes_every_table_as_csv_and_parquet(cohort_folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        endpoints, [str(cohort_folder / "clinical.csv"), "--out", str(tmp_path)], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert "24 patients by mbcart19 1.0.0" in done.output
    names = {
        "endpoints",
        "km",
        "cif",
        "adsl",
        "adrs",
        "adtte",
        "responses",
        "baseline",
        "safety",
        "adverse_events",
        "findings",
    }
    assert {path.stem for path in tmp_path.glob("*.csv")} == names
    for name in names:
        frame = pl.read_parquet(tmp_path / f"{name}.parquet")
        assert frame.height == len(rows_of(tmp_path / f"{name}.csv"))
    for name, schema in {
        "endpoints": ENDPOINTS,
        "adsl": ADSL,
        "adrs": ADRS,
        "adtte": ADTTE,
        "safety": SAFETY,
        "baseline": BASELINE,
    }.items():
        assert dict(pl.read_parquet(tmp_path / f"{name}.parquet").schema) == {
            column: getattr(pl, kind) for column, kind in schema.items()
        }
    assert len(rows_of(tmp_path / "adsl.csv")) == 24
    codes = {row["PARAMCD"] for row in rows_of(tmp_path / "adtte.csv")}
    assert all(len(code) <= 8 for code in codes | {row["PARAMCD"] for row in rows_of(tmp_path / "adrs.csv")})
    assert (tmp_path / "cohort.html").stat().st_size > 1_000_000


def test_the_tables_beside_the_clinical_one_are_taken_and_said(cohort_folder: Path, tmp_path: Path) -> None:
    done = flowmrd("endpoints", cohort_folder / "clinical.csv", "--out", tmp_path, "--no-page")
    assert [line for line in done.stderr.splitlines() if "found beside" in line] == [
        "baseline: baseline.csv, found beside clinical.csv",
        "adverse events: adverse_events.csv, found beside clinical.csv",
        "counts: counts.csv, found beside clinical.csv",
    ]
    assert not (tmp_path / "cohort.html").exists()
    summary = json.loads((tmp_path / "endpoints.json").read_text(encoding="utf-8"))
    assert set(summary["inputs"]) == {"table", "baseline", "adverse_events", "counts"}
    assert summary["criteria"]["keys"]["cri_rule"] == "either"


def test_endpoints_of_the_vignettes_are_those_of_the_reference(shared: Path, tmp_path: Path) -> None:
    done = flowmrd("endpoints", shared / "domain" / "vignettes.csv", "--out", tmp_path, "--no-page")
    assert done.returncode == 0
    assert "Overall response, CR + CRh at D28: 10 of 15, 66.7% (95% CI 38.4 to 88.2%)" in done.stdout
    found = {row["endpoint"]: row for row in rows_of(tmp_path / "endpoints.csv")}
    assert float(found["orr_cr_crh"]["estimate"]) == pytest.approx(66.66666667, rel=1e-9)
    assert (found["mrdneg_cr_M6_cart_only"]["k"], found["mrdneg_cr_M6"]["k"]) == ("2", "3")


def test_subjects_that_are_summarised_give_survival_without_visits(tmp_path: Path) -> None:
    table = tmp_path / "subjects.csv"
    table.write_text(
        "patient_id,remission,remission_day,relapse_day,death_day,allosct_day,last_contact_day\n"
        "A,1,28,100,,,300\nB,1,28,,,,400\nC,0,,,50,,50\n",
        encoding="utf-8",
    )
    result = CliRunner().invoke(endpoints, [str(table), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0
    found = {row["endpoint"] for row in rows_of(tmp_path / "out" / "endpoints.csv")}
    assert {"dfs_censor_sct", "os_censor_sct", "cif_relapse"} <= found
    assert not {"efs", "dfs_stringent"} & found
    assert not (tmp_path / "out" / "responses.csv").exists()


def test_a_table_that_cannot_be_written_is_one_line(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = flowmrd("respond", shared / "domain" / "vignettes.csv", "--out", tmp_path / "file" / "out.csv")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    done = flowmrd("endpoints", shared / "domain" / "vignettes.csv", "--out", tmp_path / "file" / "out", "--no-page")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
