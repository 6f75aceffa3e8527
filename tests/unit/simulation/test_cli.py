"""The command: files, exit codes, messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowmrd.cli import main
from flowmrd.cli.simulate import command
from flowmrd.fcs import read_fcs
from flowmrd.simulation import read_cases


def test_one_acquisition_is_three_files(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--events", "900", "--blasts", "0.1", "--seed", "4", "--datatype", "int"]
    result = CliRunner().invoke(command, [*arguments, "--byte-order", "big", "--lab", "L1", "--batch", "2.5"])
    assert result.exit_code == 0, result.output
    stem = "ball-mrd-10c-normal-4"
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{stem}.fcs", f"{stem}.labels.parquet", f"{stem}.truth.json",
    }  # fmt: skip
    assert result.output.strip() == str(tmp_path / f"{stem}.fcs")
    assert read_fcs(tmp_path / f"{stem}.fcs").keywords["$BYTEORD"] == "4,3,2,1"


def test_a_phenotype_file_is_used(tmp_path: Path) -> None:
    phenotype = tmp_path / "p.toml"
    phenotype.write_text("start = 0.3\nspread = 0.02\nshifts = { CD58 = 0.6 }\n", encoding="utf-8")
    arguments = ["--out", str(tmp_path), "--name", "x", "--events", "500", "--blasts", "0.2"]
    result = CliRunner().invoke(command, [*arguments, "--phenotype", str(phenotype)])
    assert result.exit_code == 0, result.output
    assert '"CD58": 0.6' in (tmp_path / "x.truth.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--blasts", "2"], "error: blasts: expected a fraction between 0 and 1 (1e-4 is 0.01 %), got 2.0"),
        (["--tube", "x"], "error: tube: unknown tube 'x' (one of: aieop-bfm-syto, ball-mrd-10c"),
        (["--scenario", "x", "--tube", "tbnk"], "error: scenario: tube 'tbnk' has no scenario 'x'"),
        (["--phenotype", "x"], "error: --phenotype: no file 'x' (random, hard, plain, or a TOML/JSON file)"),
        (["--cd19", "x"], "Error: Invalid value for '--cd19': 'x' is not one of"),
        (["--seed", "-1"], "error: seed: expected a whole number ≥ 0, got -1"),
        (["--name", "a/b"], "error: name: expected a plain file name, got 'a/b'"),
        (["--demo", "x"], "error: --demo: stands alone, without --subject and --out"),
        (["--reuse", "."], "error: --reuse: needs --subject, --demo or --course"),
        (["--levels", "1e-3"], "error: --levels: needs --negatives and --positives"),
        (
            ["--positives", "2", "--levels", "a,b"],
            "error: levels: expected numbers with commas between them, got 'a,b'",
        ),
        (["--negatives", "2", "--name", "x"], "error: --name: cannot be combined with --negatives and --positives"),
        (["--left-out", "CD99"], "error: left-out: no aberration 'CD99'"),
    ],
)
def test_a_usage_error_is_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["flowmrd", "simulate", "--out", str(tmp_path / "out"), "--events", "50", *arguments]
    )
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_set_is_made_in_one_command_from_numbers_or_from_a_table(tmp_path: Path) -> None:
    arguments = ["--negatives", "1", "--positives", "2", "--levels", "1e-2,1e-1", "--events", "400", "--seed", "3"]
    result = CliRunner().invoke(command, [*arguments, "--left-out", "CD58", "--out", str(tmp_path / "set")])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(tmp_path / "set" / "cases.csv")
    rows = read_cases(tmp_path / "set" / "cases.csv")
    assert sorted(float(row["level"]) for row in rows) == [0.0, 0.01, 0.1]
    assert not any("CD58" in row["aberrations"] for row in rows)
    table = tmp_path / "table.csv"
    table.write_text("name,blasts\na,0.1\nb,\n", encoding="utf-8")
    arguments = ["--cases", str(table), "--events", "300", "--tube", "aieop-bfm-syto", "--out", str(tmp_path / "table")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert [(row["name"], row["tube"]) for row in read_cases(tmp_path / "table" / "cases.csv")] == [
        ("a", "aieop-bfm-syto"),
        ("b", "aieop-bfm-syto"),
    ]


def test_options_that_a_subject_document_would_override_are_refused(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "flowmrd", "simulate", "--demo", str(tmp_path / "out"), "--blasts", "0.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.strip() == (
        "error: --blasts: cannot be combined with --subject or --demo (write it into the subject document)"
    )
