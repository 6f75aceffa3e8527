"""`flowmrd evaluate` as a laboratory meets it: files, figures, exit codes, messages, workers, resumption."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flowmrd.evaluation.tables import CASES, SUMMARY
from flowmrd.fcs import read_fcs
from flowmrd.gating.template import find_template
from flowmrd.records import FINDINGS
from flowmrd.simulation import ChannelSet, Parameters, simulate, write_simulated

Row = Mapping[str, str]


def flowmrd(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flowmrd", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def figure(out: Path, level: str, metric: str, *, method: str = "template", group: str = "all") -> Row:
    key = (method, group, level, metric)
    return next(r for r in rows(out / "summary.csv") if (r["method"], r["group"], r["level"], r["metric"]) == key)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated marrows with blasts, two without, and a file that is no FCS file but has labels."""
    folder = tmp_path_factory.mktemp("labelled")
    cases = {
        "many": Parameters(events=8_000, blasts=0.2, channels=ChannelSet.COMPACT),
        "few": Parameters(events=8_000, blasts=5e-4, channels=ChannelSet.COMPACT),
        "none": Parameters(events=8_000, channels=ChannelSet.COMPACT),
        "recovering": Parameters(events=8_000, scenario="regenerating", batch=2.5, channels=ChannelSet.COMPACT),
    }
    for seed, (name, parameters) in enumerate(cases.items()):
        write_simulated(simulate(parameters, 11 + seed), folder, name)
    (folder / "broken.fcs").write_bytes(b"no FCS file")
    np.save(folder / "broken.labels.npy", np.zeros(10, np.int8))
    return folder


@pytest.fixture(scope="module")
def finished(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("one_job") / "out"
    return out, flowmrd(
        "evaluate", labelled, "-t", "ball-mrd-10c", "--out", out, "--no-time", "--by", "parameters.batch"
    )


def test_a_bad_file_is_a_finding_and_the_others_are_scored(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, result = finished
    assert result.returncode == 3, result.stderr
    assert "4 of 5 files assessed" in result.stdout
    by_case = {row["case"]: row for row in rows(out / "cases.csv")}
    assert list(by_case) == ["broken", "few", "many", "none", "recovering"]
    assert by_case["broken"]["status"] == "refused"
    assert "broken.fcs" in by_case["broken"]["reason"]
    findings = [
        row for row in rows(out / "findings.csv") if row["case" if "case" in row else "acquisition"] == "broken"
    ]
    assert (findings[0]["level"], findings[0]["code"]) == ("violation", "FILE_REFUSED")


def test_the_scores_are_those_of_the_memberships_that_gate_writes(
    finished: tuple[Path, subprocess.CompletedProcess[str]], labelled: Path, tmp_path: Path
) -> None:
    out, _ = finished
    gated = flowmrd("gate", labelled / "many.fcs", "-t", "ball-mrd-10c", "-o", tmp_path, "--membership", "--no-report")
    assert gated.returncode == 0, gated.stderr
    member = pl.read_parquet(tmp_path / "membership" / "many.parquet")["blasts"].to_numpy()
    true = pl.read_parquet(labelled / "many.labels.parquet")["blast"].to_numpy()
    row = next(row for row in rows(out / "cases.csv") if row["case"] == "many")
    measured = rows(tmp_path / "measurements.csv")[0]
    hits = int((member & true).sum())
    assert (int(row["truth_events"]), int(row["called_events"]), int(row["hit_events"])) == (
        int(true.sum()),
        int(member.sum()),
        hits,
    )
    assert float(row["f1"]) == pytest.approx(2 * hits / (member.sum() + true.sum()))
    for column in ("fraction", "ci_low", "ci_high", "lod_fraction", "lloq_fraction", "category", "call"):
        assert row[column] == measured[column], column
    assert row["sha256"] == hashlib.sha256((labelled / "many.fcs").read_bytes()).hexdigest()


def test_the_simulators_truth_gives_denominator_level_and_groups(
    finished: tuple[Path, subprocess.CompletedProcess[str]], labelled: Path
) -> None:
    out, _ = finished
    by_case = {row["case"]: row for row in rows(out / "cases.csv")}
    truth = json.loads((labelled / "many.truth.json").read_text("utf-8"))
    assert int(by_case["many"]["truth_denominator_events"]) == truth["mrd"]["denominator"]
    assert by_case["many"]["truth_denominator"] == "truth document"
    assert float(by_case["many"]["nominal_fraction"]) == 0.2
    assert by_case["many"]["standing"] == "positive"
    assert by_case["few"]["standing"] == "not_assessable"
    assert by_case["none"]["standing"] == "negative"
    assert (by_case["recovering"]["by_parameters.batch"], by_case["none"]["by_parameters.batch"]) == ("2.5", "1")
    assert by_case["many"]["simulator_version"] == truth["simulator_version"]
    assert figure(out, "0", "cases")["value"] == "2.0"
    assert figure(out, "0", "cases", group="parameters.batch = 2.5")["value"] == "1.0"
    assert figure(out, "all", "not_assessable")["value"] == "1.0"


def test_the_tables_have_the_documented_columns(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = finished
    assert list(rows(out / "cases.csv")[0]) == [*CASES, "by_parameters.batch"]
    assert list(rows(out / "summary.csv")[0]) == list(SUMMARY)
    assert list(rows(out / "findings.csv")[0]) == list(FINDINGS)
    document = json.loads((out / "summary.json").read_text("utf-8"))
    template = find_template("ball-mrd-10c")
    assert document["provenance"]["template_sha256"] == template.digest
    assert document["provenance"]["template_version"] == template.template.version
    assert document["methods"]["template"]["all"]["0"]["cases"]["value"] == 2
    assert document["cases"]["files"] == 5
    assert (out / "summary.md").read_text("utf-8").startswith("# Evaluation\n")


def test_the_number_of_workers_does_not_show_in_any_byte(
    finished: tuple[Path, subprocess.CompletedProcess[str]], labelled: Path, tmp_path: Path
) -> None:
    out, _ = finished
    again = tmp_path / "out"
    options = ("--no-time", "--by", "parameters.batch")
    flowmrd("evaluate", labelled, "-t", "ball-mrd-10c", "--out", again, *options, "--jobs", 2)
    assert digests(again) == digests(out)
    # And what is kept is kept as it was.
    kept = flowmrd("evaluate", labelled, "-t", "ball-mrd-10c", "--out", again, *options, "--resume")
    assert kept.stderr.count("(kept)") == 5
    assert digests(again) == digests(out)


def test_the_report_is_one_file_that_links_to_each_files_gates(
    finished: tuple[Path, subprocess.CompletedProcess[str]], labelled: Path
) -> None:
    out, _ = finished
    page = (out / "report.html").read_text("utf-8")
    assert str(labelled.parent) not in page
    assert "http-equiv" in page
    assert 'href="gates/acquisitions/many.html"' in page
    assert (out / "gates" / "acquisitions" / "many.html").is_file()
    assert "connect-src &#39;none&#39;" in page or "connect-src 'none'" in page


def test_resume_scores_only_what_changed(labelled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("many", "none"):
        for path in labelled.glob(f"{name}.*"):
            (folder / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    quick = ("-t", "ball-mrd-10c", "--out", out, "--no-report")
    flowmrd("evaluate", folder, *quick)
    seconds = [row["seconds"] for row in rows(out / "cases.csv")]
    assert all(float(value) > 0 for value in seconds)
    labels = pl.read_parquet(folder / "none.labels.parquet")
    labels.with_columns(blast=pl.int_range(pl.len()) < 30).write_parquet(folder / "none.labels.parquet")
    second = flowmrd("evaluate", folder, *quick, "--resume")
    lines = [line for line in second.stderr.splitlines() if line.startswith("[")]
    assert ["(kept)" in line for line in lines] == [True, False]
    assert "30 true" in lines[1]
    third = flowmrd("evaluate", folder, *quick, "--resume", "--seed", "2")
    assert "(kept)" not in third.stderr


def test_another_template_is_scored_beside_the_result(labelled: Path, tmp_path: Path) -> None:
    other = tmp_path / "half.toml"
    text = (Path(__file__).parents[3] / "gating_templates" / "ball-mrd-10c.toml").read_text("utf-8")
    other.write_text(text.replace('id = "ball-mrd-10c"', 'id = "other"'), encoding="utf-8")
    out = tmp_path / "out"
    ended = flowmrd(
        "evaluate", labelled / "many.fcs", "-t", "ball-mrd-10c", "--compare", other, "--out", out, "--no-gates"
    )
    assert ended.returncode == 0, ended.stderr
    row = rows(out / "cases.csv")[0]
    # A template of another name has no reference of its own: its static rule answers.
    assert 0.0 < float(row["other_f1"]) < float(row["f1"])
    assert figure(out, "all", "sensitivity", method="other")["k"] == "0"  # an answer for a person: not found
    assert "F1, other" in (out / "report.html").read_text("utf-8")


def test_labels_in_another_place_and_of_another_form(labelled: Path, tmp_path: Path) -> None:
    kinds = pl.read_parquet(labelled / "many.labels.parquet")["population"]
    codes = np.where(kinds == "blast", 2, np.where(kinds.str.contains("_b"), 1, 0)).astype(np.int8)
    labels = tmp_path / "expert.npy"
    np.save(labels, codes)
    out = tmp_path / "out"
    command = ("evaluate", labelled / "many.fcs", "-t", "ball-mrd-10c", "--labels", labels, "-o", out, "--no-report")
    asked = flowmrd(*command)
    assert asked.returncode == 2
    assert asked.stderr.strip() == (
        "error: --positive: which label means the disease? The labels are 0, 1, 2 "
        "(name it: --positive VALUE, as often as needed)"
    )
    assert not out.exists()
    assert flowmrd(*command, "--positive", "2").returncode == 0
    assert int(rows(out / "cases.csv")[0]["truth_events"]) == int((codes == 2).sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--analyte", "CART"], "error: --analyte: template ball-mrd-10c measures MRD"),
        (["--column", "blst"], "0 of 1 files assessed"),
        (
            ["--positive", "blsat", "--column", "population"],
            "error: --positive: no event of any file is labelled 'blsat'",
        ),
        (["--levels", "1e-4,x"], "expected fractions separated by commas, got '1e-4,x'"),
        (["--labels", "{labels}", "--labels", "{labels}"], "error: --labels: 2 for 1 files"),
        (["--groups", "{table}"], "error: --groups: needs --by NAME: which of its columns?"),
        (["--compare", "tbnk"], "error: --compare: template tbnk does not measure MRD"),
        (["--matrix", "nowhere"], "--matrix: no file 'nowhere'"),
    ],
)
def test_each_mistake_is_one_message(arguments: list[str], message: str, labelled: Path, tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("file,centre\nmany,Vienna\n", encoding="utf-8")
    filled = [one.format(labels=labelled / "many.labels.parquet", table=table) for one in arguments]
    ended = flowmrd(
        "evaluate", labelled / "many.fcs", "-t", "ball-mrd-10c", "-o", tmp_path / "out", "--no-report", *filled
    )
    assert ended.returncode in {2, 3}
    assert message in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr


def test_labels_of_another_length_are_a_finding_before_anything_is_gated(labelled: Path, tmp_path: Path) -> None:
    for name in ("many", "none"):
        (tmp_path / f"{name}.fcs").write_bytes((labelled / f"{name}.fcs").read_bytes())
    (tmp_path / "many.labels.csv").write_text("blast\n" + "1\n" * 7_999, encoding="utf-8")
    (tmp_path / "none.labels.csv").write_text("0\n" * 8_000, encoding="utf-8")
    (tmp_path / "spare.fcs").write_bytes((labelled / "none.fcs").read_bytes())
    out = tmp_path / "out"
    ended = flowmrd("evaluate", tmp_path, "-t", "ball-mrd-10c", "-o", out, "--no-report")
    assert ended.returncode == 3
    by_case = {row["case"]: row for row in rows(out / "cases.csv")}
    assert by_case["many"]["reason"] == (
        "many.labels.csv: 7,999 labels for 8,000 events; expected one row an event, in file order"
    )
    assert by_case["spare"]["reason"].startswith("spare.fcs: no labels beside the file")
    assert by_case["none"]["status"] == "assessed"
    codes = {(row["acquisition"], row["code"]) for row in rows(out / "findings.csv") if row["level"] == "violation"}
    assert {("many", "LABELS_REFUSED"), ("spare", "LABELS_REFUSED")} <= codes


def test_an_empty_folder_is_nothing_to_do(tmp_path: Path) -> None:
    ended = flowmrd("evaluate", tmp_path, "-o", tmp_path / "out")
    assert ended.returncode == 5
    assert ended.stderr.strip() == "nothing to do: no FCS file in the folders named"


def test_files_of_one_name_are_told_apart_by_their_folders(labelled: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for path in labelled.glob("none.*"):
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    ended = flowmrd("evaluate", tmp_path / "a", tmp_path / "b", "-t", "ball-mrd-10c", "-o", out, "--no-report")
    assert ended.returncode == 0, ended.stderr
    assert [row["case"] for row in rows(out / "cases.csv")] == ["a-none", "b-none"]


def test_groups_come_from_a_table(labelled: Path, tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("file,centre,age\nmany.fcs,Vienna,3\nnone,Berlin,4\n", encoding="utf-8")
    out = tmp_path / "out"
    files = [labelled / "many.fcs", labelled / "none.fcs"]
    ended = flowmrd(
        "evaluate", *files, "-t", "ball-mrd-10c", "-o", out, "--no-report", "--groups", table, "--by", "centre"
    )
    assert ended.returncode == 0, ended.stderr
    assert [row["by_centre"] for row in rows(out / "cases.csv")] == ["Vienna", "Berlin"]
    wrong = flowmrd("evaluate", *files, "-t", "ball-mrd-10c", "-o", out, "--groups", table, "--by", "center")
    assert wrong.returncode == 2
    assert "groups.csv: no column 'center'; the columns are file, centre, age" in wrong.stderr


def test_the_template_is_chosen_by_the_markers(labelled: Path, tmp_path: Path) -> None:
    ended = flowmrd("evaluate", labelled / "none.fcs", "-o", tmp_path / "out", "--no-report")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.startswith("template: ball-mrd-10c, by the markers of the first file\n")


# ------------------------------------------------------------------------------------------------------- real files


def test_the_dilutions_of_a_real_marrow_are_scored_against_the_clinics_gates(shared_fcs: Path, tmp_path: Path) -> None:
    folder, out = shared_fcs / "ball_mrd_dilution", tmp_path / "out"
    ended = flowmrd("evaluate", folder, "-o", out, "--no-report", "--jobs", 2)
    assert ended.returncode == 0, ended.stderr
    truth = {row["sample"]: row for row in rows(folder / "P494_dilution_truth.csv")}
    found = rows(out / "cases.csv")
    assert len(found) == 4
    for row in found:
        expected = truth[row["case"]]
        assert (row["events"], row["truth_denominator_events"], row["truth_events"]) == (
            expected["events"],
            expected["intact"],
            expected["blasts"],
        )
        assert row["truth_denominator"] == "labels, intact"
        assert 100 * float(row["truth_fraction"]) == pytest.approx(float(expected["mrd_pct_of_intact"]), abs=5e-5)
        assert row["template"] == "aieop-bfm-syto"


def test_simulated_marrows_with_words_as_labels_are_scored(shared_fcs: Path, tmp_path: Path) -> None:
    folder, out = shared_fcs / "ball_mrd_sim", tmp_path / "out"
    ended = flowmrd("evaluate", folder, "-o", out, "--no-report", "--jobs", 2)
    assert ended.returncode == 0, ended.stderr
    truth = {row["sample"]: int(row["blast"]) for row in rows(folder / "truth.csv")}
    assert {row["case"]: int(row["truth_events"]) for row in rows(out / "cases.csv")} == truth


def test_marrows_drawn_from_models_need_the_number_of_a_blast(shared: Path, tmp_path: Path) -> None:
    drawn, out = tmp_path / "drawn", tmp_path / "out"
    models = shared / "fcs" / "ball_gmm" / "gmm_models.jsonl.gz"
    tool = [sys.executable, str(shared / "tools" / "marrow_from_model.py"), str(models)]
    names = ("VIE14-P055-1", "VIE14-P171-2")
    subprocess.run(
        [*tool, "--out", str(drawn), "--events", "20000", "--seed", "1", "--id", *names],
        check=True,
        capture_output=True,
    )
    ended = flowmrd("evaluate", drawn, "-o", out, "--positive", "2", "--no-report")
    assert ended.returncode == 0, ended.stderr
    for row in rows(out / "cases.csv"):
        labels = np.load(drawn / f"{row['case']}.labels.npy")
        assert int(row["truth_events"]) == int((labels == 2).sum())
        assert read_fcs(drawn / row["file"]).event_count == int(row["events"])
        assert row["truth_denominator"] == "gated viable"
    # The one without blasts alone: 2 stands in no file, which is right, and is told.
    alone = flowmrd("evaluate", drawn / "VIE14-P055-1.fcs", "-o", out, "--positive", "2", "--no-report")
    assert alone.returncode == 0, alone.stderr
    assert (
        "warning: No event of any file is labelled 2: right where no file holds disease, else a mistake."
        in alone.stderr
    )
    assert rows(out / "cases.csv")[0]["standing"] == "negative"
