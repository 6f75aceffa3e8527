"""`flowmrd run` and `flowmrd gate` as a lab scientist meets them: files, exit codes, messages, resumption."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from flowmrd.records import FINDINGS, MEASUREMENTS, POPULATIONS

HEADER = "patient_pseudonym,specimen_type,study_day,tube,fcs_filename"


def flowmrd(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flowmrd", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sample(repository: Path, pattern: str) -> Path:
    return next(iter(sorted((repository / "sample_fcs").glob(pattern))))


@pytest.fixture(scope="module")
def manifest(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three acquisitions: two good marrows, and a file that is no FCS file."""
    folder = tmp_path_factory.mktemp("study")
    for name, pattern in (("d0", "*blasts-1e-2*.fcs"), ("d28", "*normal*.fcs")):
        (folder / f"{name}.fcs").write_bytes(sample(repository, pattern).read_bytes())
    (folder / "broken.fcs").write_bytes(b"not an FCS file at all")
    rows = [
        "S001,BM,0,ball-mrd-10c,d0.fcs",
        "S001,BM,28,ball-mrd-10c,d28.fcs",
        "S002,BM,28,ball-mrd-10c,broken.fcs",
    ]
    path = folder / "manifest.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("one_job") / "run"
    return out, flowmrd("run", manifest, "--out", out, "--membership")


def test_a_bad_file_is_a_finding_and_the_others_go_on(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, result = finished
    assert result.returncode == 3, result.stderr
    findings = pl.read_csv(out / "findings.csv")
    refused = findings.filter(pl.col("acquisition") == "broken").row(0, named=True)
    assert (refused["level"], refused["code"]) == ("violation", "FILE_REFUSED")
    assert "broken.fcs" in refused["message"]
    measured = pl.read_csv(out / "measurements.csv")
    assert measured.filter(pl.col("analyte") == "MRD")["acquisition"].to_list() == ["d0", "d28", "broken"]


def test_the_tables_have_the_documented_columns_in_both_formats(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = finished
    for name, schema in (("populations", POPULATIONS), ("measurements", MEASUREMENTS), ("findings", FINDINGS)):
        frame = pl.read_parquet(out / f"{name}.parquet")
        assert {column: str(kind) for column, kind in frame.schema.items()} == dict(schema)
        assert pl.read_csv(out / f"{name}.csv").columns == list(schema)
        assert pl.read_csv(out / f"{name}.csv").height == frame.height


def test_the_number_of_workers_does_not_show_in_any_byte(
    finished: tuple[Path, subprocess.CompletedProcess[str]], manifest: Path, tmp_path: Path
) -> None:
    out, _ = finished
    again = tmp_path / "run"
    flowmrd("run", manifest, "--out", again, "--membership", "--jobs", 2)
    assert digests(again) == digests(out)


def test_the_record_names_versions_digests_seed_and_settings_but_no_folder(
    finished: tuple[Path, subprocess.CompletedProcess[str]], manifest: Path
) -> None:
    out, _ = finished
    text = (out / "run.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["manifest_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert record["seed"] == 1
    assert record["acquisitions"][0]["sha256"] == hashlib.sha256((manifest.parent / "d0.fcs").read_bytes()).hexdigest()
    assert set(record["templates"]["ball-mrd-10c"]) >= {"version", "sha256"}
    assert str(manifest.parent) not in text


def test_resume_redoes_only_what_changed(manifest: Path, tmp_path: Path, repository: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    for path in manifest.parent.iterdir():
        (study / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "run"
    flowmrd("run", study / "manifest.csv", "--out", out, "--no-report")
    second = flowmrd("run", study / "manifest.csv", "--out", out, "--no-report", "--resume")
    assert [line.split(": ")[1].split(",")[0] for line in second.stderr.splitlines() if line.startswith("[")] == [
        "kept",
        "kept",
        "kept",
    ]
    (study / "d28.fcs").write_bytes(sample(repository, "*regenerating*.fcs").read_bytes())
    third = flowmrd("run", study / "manifest.csv", "--out", out, "--no-report", "--resume")
    states = {
        line.split("] ")[1].split(":")[0]: line.split(": ")[1].split(",")[0]
        for line in third.stderr.splitlines()
        if line.startswith("[")
    }
    assert states["d0"] == "kept"
    assert states["d28"] != "kept"


def test_all_faults_of_a_manifest_are_listed_before_any_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(f"{HEADER}\nS1,BM,28,ball-mrd-10d,a.fcs\nS2,XX,later,ball-mrd-10c,b.fcs\n", encoding="utf-8")
    result = flowmrd("run", path, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "ball-mrd-10d" in result.stderr
    assert "ball-mrd-10c" in result.stderr
    assert "later" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_fail_on_qc_changes_the_exit_code_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    path = sample(repository, "*normal*.fcs")
    plain = flowmrd("gate", path, "--template", "ball-mrd-10c", "--out", tmp_path / "a")
    strict = flowmrd("gate", path, "--template", "ball-mrd-10c", "--out", tmp_path / "b", "--fail-on-qc")
    assert (plain.returncode, strict.returncode) == (0, 4)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_gate_leaves_subject_and_visit_empty(repository: Path, tmp_path: Path) -> None:
    flowmrd("gate", sample(repository, "*normal*.fcs"), "-t", "ball-mrd-10c", "-o", tmp_path, "--no-report")
    line = (tmp_path / "measurements.csv").read_text(encoding="utf-8").splitlines()[1]
    assert line.startswith(",,")


def test_two_files_of_one_stem_are_refused(repository: Path, tmp_path: Path) -> None:
    first = sample(repository, "*normal*.fcs")
    second = tmp_path / first.name
    second.write_bytes(first.read_bytes())
    result = flowmrd("gate", first, second, "--template", "ball-mrd-10c", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "two files have the name" in result.stderr


def test_a_typo_in_the_template_is_answered_with_the_nearest_name(repository: Path, tmp_path: Path) -> None:
    result = flowmrd("gate", sample(repository, "*normal*.fcs"), "--template", "ball-mrd-10", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.strip() == "error: no template 'ball-mrd-10' (did you mean 'ball-mrd-10c'?)"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['flowmrd', '--help']\n"
        "import flowmrd.cli\n"
        "try:\n    flowmrd.cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'polars', 'scipy', 'sklearn', 'flowkit', 'flowutils', 'plotly', 'pydantic', 'pandas'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "simulate" in result.stdout
