"""`flowmrd run --clinical` and `flowmrd endpoints RUN`: responses whose MRD is the run's own."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import polars as pl
import pytest

from flowmrd.gating.detection.storage import load_reference, to_bytes

COLUMNS = (
    "patient_id,timepoint,day,bl_bm_blast_pct,bl_emd,bm_status,bm_blast_pct,confirm_tests_ge1pct,pb_blast_pct,anc,plt,"
    "plt_tx_7d,cns,emd,lineage_switch,allosct_day,death_day,last_contact_day,initials"
)
ROWS = [
    "S001,D28,28,80,0,done,1,0,0,1.6,140,N,CNS1,0,N,,,190,SECRET",
    "S001,M6,183,80,0,done,32,0,4,0.7,40,N,CNS1,0,N,,,190,SECRET",
    "S002,D28,28,60,0,done,2,0,0,2.0,150,N,CNS1,0,N,,,35,SECRET",
]


def flowmrd(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowmrd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def study(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A remission, a CD19-negative relapse, and a file that is no FCS file."""
    folder = tmp_path_factory.mktemp("study")
    samples = repository / "sample_fcs"
    shutil.copy(samples / "normal.fcs", folder / "s001-d28.fcs")
    shutil.copy(samples / "blasts-cd19-negative.fcs", folder / "s001-m6.fcs")
    (folder / "s002-d28.fcs").write_bytes(b"not an FCS file at all")
    lines = ["patient_pseudonym,specimen_type,study_day,tube,fcs_filename"]
    lines += [
        f"{name[:4].upper()},BM,{day},ball-mrd-10c,{name}.fcs"
        for name, day in (("s001-d28", 28), ("s001-m6", 182), ("s002-d28", 28))
    ]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "clinical.csv").write_text("\n".join([COLUMNS, *ROWS]) + "\n", encoding="utf-8")
    (folder / "adverse_events.csv").write_text(
        "patient_id,category,term,onset_day,grade,source,reporter\nS001,CRS,CRS,3,2,chart,SECRET\n", encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("out") / "run"
    return out, flowmrd("run", study / "manifest.csv", "--out", out, "--clinical", study / "clinical.csv")


def test_responses_rest_on_the_runs_measurements_with_rule_evidence_and_flags(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, result = finished
    assert result.returncode == 3, result.stderr  # one file could not be assessed
    found = {(row["patient_id"], row["timepoint"]): row for row in rows_of(out / "responses.csv")}
    first, relapse, broken = (found[key] for key in (("S001", "D28"), ("S001", "M6"), ("S002", "D28")))
    # 38,000 cells prove nothing at 1e-4.
    assert (first["response"], first["mrd_category"], first["mrd_neg_1e4"]) == ("CR", "UNDETECTED_INSUFFICIENT", "NE")
    assert (relapse["response"], relapse["event"], relapse["cd19_status"]) == ("REL-BM", "RELAPSE", "CD19neg")
    assert (relapse["rule_id"], relapse["mrd_acquisition"]) == ("S6-REL-BM", "s001-m6")
    assert (broken["response"], broken["mrd_category"], broken["mrd_neg_1e4"]) == ("CR", "NOT_DONE", "NE")
    measured = {row["acquisition"]: row for row in rows_of(out / "measurements.csv") if row["analyte"] == "MRD"}
    evidence = [row for row in rows_of(out / "response_evidence.csv") if row["acquisition"] == "s001-m6"]
    events = {row["cell"] for row in evidence if row["column"] == "mrd_events"}
    assert events == {measured["s001-m6"]["numerator_events"]}
    codes = {row["code"] for row in rows_of(out / "response_findings.csv")}
    assert {"CD19_NEGATIVE_RELAPSE", "MRD_NOT_ASSESSED", "VISIT_DAYS_DIFFER"} <= codes
    assert "CD19_NEGATIVE_RELAPSE" in result.stderr
    assert pl.read_parquet(out / "responses.parquet").height == 3


def test_an_absence_that_a_person_has_to_judge_is_no_proof_of_negativity(repository: Path, tmp_path: Path) -> None:
    """Enough cells, no blasts called, but a reference of three normals: the class rests on morphology alone."""
    shipped = load_reference(repository / "gating_templates" / "references" / "ball-mrd-10c.reference")
    few = tmp_path / "few.reference"
    few.write_bytes(to_bytes(replace(shipped, normals=3)))
    made = flowmrd("simulate", "--events", 260_000, "--blasts", 0, "--seed", 3, "--name", "d28", "--out", tmp_path)
    assert made.returncode == 0, made.stderr
    manifest = "patient_pseudonym,specimen_type,study_day,tube,fcs_filename\nS001,BM,28,ball-mrd-10c,d28.fcs\n"
    (tmp_path / "manifest.csv").write_text(manifest, encoding="utf-8")
    (tmp_path / "clinical.csv").write_text("\n".join([COLUMNS, ROWS[0]]) + "\n", encoding="utf-8")
    ended = flowmrd(
        *("run", tmp_path / "manifest.csv", "--out", tmp_path / "run", "--clinical", tmp_path / "clinical.csv"),
        *("--reference", few),
    )
    assert ended.returncode in {0, 3}, ended.stderr
    measured = next(row for row in rows_of(tmp_path / "run" / "measurements.csv") if row["analyte"] == "MRD")
    assert int(measured["denominator_events"]) >= 200_000
    assert (measured["call"], measured["category"]) == ("review", "UNDETECTED_GATING_INADEQUATE")
    visit = rows_of(tmp_path / "run" / "responses.csv")[0]
    assert (visit["mrd_category"], visit["mrd_neg_1e4"]) == ("NOT_DONE", "NE")
    assert visit["mrdneg_cr"] != "Y"
    assert "MRD_WITHHELD" in {row["code"] for row in rows_of(tmp_path / "run" / "response_findings.csv")}


def test_the_record_names_criteria_tables_and_each_rule(
    finished: tuple[Path, subprocess.CompletedProcess[str]], study: Path
) -> None:
    out, _ = finished
    text = (out / "run.json").read_text(encoding="utf-8")
    record = json.loads(text)["clinical"]
    assert record["criteria"]["id"] == "mbcart19"
    assert record["inputs"]["table"]["sha256"] == sha256((study / "clinical.csv").read_bytes()).hexdigest()
    assert [one["rule_id"] for one in record["responses"]] == ["S8-CR", "S6-REL-BM", "S8-CR"]
    assert str(study) not in text


def test_columns_that_are_not_read_go_nowhere(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, result = finished
    for path in sorted(out.rglob("*")):
        if path.is_file():
            assert b"SECRET" not in path.read_bytes(), path.name
    assert "SECRET" not in result.stdout + result.stderr


def test_the_completed_table_gives_the_same_responses_again(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out, _ = finished
    again = flowmrd("respond", out / "clinical.csv", "--out", tmp_path / "again.csv")
    assert again.returncode == 0, again.stderr
    for before, after in zip(rows_of(out / "responses.csv"), rows_of(tmp_path / "again.csv"), strict=True):
        assert after == {name: before[name] for name in after}


def test_endpoints_take_a_run_folder(
    finished: tuple[Path, subprocess.CompletedProcess[str]], study: Path, tmp_path: Path
) -> None:
    out, _ = finished
    done = flowmrd("endpoints", out, "--out", tmp_path / "own")
    assert done.returncode == 0, done.stderr
    assert "2 of 2, 100.0%" in done.stdout
    assert "VISIT_DAYS_DIFFER" in done.stderr
    assert {row["category"] for row in rows_of(tmp_path / "own" / "safety.csv") if row["k"] == "1"} == {"crs"}
    record = json.loads((tmp_path / "own" / "endpoints.json").read_text(encoding="utf-8"))
    assert record["inputs"]["run"]["sha256"] == sha256((out / "run.json").read_bytes()).hexdigest()
    flowmrd("endpoints", out, "--clinical", study / "clinical.csv", "--out", tmp_path / "given")
    for name in ("endpoints.csv", "adrs.csv", "adsl.csv", "safety.csv", "findings.csv"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "given" / name).read_bytes(), name


def test_a_run_without_a_clinical_table_keeps_nothing_of_an_earlier_one(
    finished: tuple[Path, subprocess.CompletedProcess[str]], study: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    flowmrd("run", study / "manifest.csv", "--out", out, "--resume", "--no-report")
    left = {path.name for path in out.iterdir()}
    assert not left & {"clinical.csv", "responses.csv", "response_evidence.csv", "adverse_events.csv"}
    assert "clinical" not in json.loads((out / "run.json").read_text(encoding="utf-8"))
    refused = flowmrd("endpoints", out, "--out", tmp_path / "x")
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: run: expected clinical.csv of a run with `--clinical`; got none "
        "(give the clinical table: --clinical TABLE.csv)\n"
    )


def test_a_faulty_table_stops_the_run_before_the_first_file(study: Path, tmp_path: Path) -> None:
    slip = tmp_path / "slip.csv"
    slip.write_text("\n".join([COLUMNS, ROWS[0].replace("1.6,140", "1600,140")]) + "\n", encoding="utf-8")
    done = flowmrd("run", study / "manifest.csv", "--out", tmp_path / "run", "--clinical", slip)
    assert (done.returncode, "ANC_UNIT" in done.stderr, (tmp_path / "run").exists()) == (2, True, False)
    lost = flowmrd("run", study / "manifest.csv", "--out", tmp_path / "run", "--criteria", "eliana")
    assert lost.returncode == 2
    assert "--criteria needs --clinical" in lost.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    done = flowmrd("endpoints", tmp_path, "--out", tmp_path / "x")
    assert done.returncode == 2
    assert "expected a run folder with run.json; got another folder" in done.stderr
