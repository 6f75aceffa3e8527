"""A subject's own gates as a lab scientist meets them: counts, provenance, report, resumption, faults."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import polars as pl
import pytest

from flowmrd.cli import main
from flowmrd.records import read_result

HEADER = "patient_pseudonym,specimen_type,study_day,tube,fcs_filename,gate_set"
SET = """
[gate_set]
id = "psn-7-dx"
subject = "PSN-7"
template = "ball-mrd-10c"
template_versions = ">=1.0.0, <99.0.0"
author = "Dr <A> Reviewer"
date = 2026-03-01
source = "diagnosis tube of day -20"
reason = "the blasts are CD10-high and CD34-dim"

[[override]]
population = "blasts"
gate = { kind = "polygon", markers = ["CD10", "CD34"], vertices = [[0.6, 0.2], [1.0, 0.2], [1.0, 0.7], [0.6, 0.7]] }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str


def flowmrd(*arguments: object) -> Done:
    """Run the command line in this process, which spares its imports."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["flowmrd", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    assert isinstance(code, int)
    return Done(code=code, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="module")
def study(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two visits of one subject and one of another; the set is named in the later row of the first only."""
    folder = tmp_path_factory.mktemp("study")
    for name, sample in (("d0", "blasts-1e-2"), ("d28", "normal"), ("other", "blasts-1e-2")):
        (folder / f"{name}.fcs").write_bytes((repository / "sample_fcs" / f"{sample}.fcs").read_bytes())
    (folder / "dx.toml").write_text(SET, encoding="utf-8")
    rows = ["PSN-7,BM,0,ball-mrd-10c,d0.fcs,", "PSN-7,BM,28,ball-mrd-10c,d28.fcs,dx.toml"]
    rows.append("PSN-8,BM,0,ball-mrd-10c,other.fcs,")
    (folder / "manifest.csv").write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    done = flowmrd("run", study / "manifest.csv", "--out", out)
    assert done.code == 0, done.err
    return out


def test_a_set_named_in_one_row_changes_the_counts_of_its_subject_and_of_nobody_else(finished: Path) -> None:
    counts = {
        row["acquisition"]: row["events"]
        for row in pl.read_csv(finished / "populations.csv").iter_rows(named=True)
        if row["population"] == "blasts"
    }
    # d0 and other are the same file under two subjects.
    assert counts["d0"] != counts["other"]
    rows = {row["acquisition"]: row for row in pl.read_csv(finished / "measurements.csv").iter_rows(named=True)}
    assert rows["d0"]["numerator_events"] == counts["d0"]
    digest = hashlib.sha256(SET.encode()).hexdigest()
    assert rows["d0"]["gate_set"] == rows["d28"]["gate_set"] == f"psn-7-dx (SHA-256 {digest[:12]}): blasts"
    assert rows["other"]["gate_set"] is None


def test_the_record_says_whose_gates_by_whom_when_and_from_what(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    first, second, third = record["acquisitions"]
    assert first["gate_set"] == second["gate_set"] == {
        "id": "psn-7-dx",
        "file": "dx.toml",
        "sha256": hashlib.sha256(SET.encode()).hexdigest(),
        "subject": "PSN-7",
        "template_versions": ">=1.0.0, <99.0.0",
        "author": "Dr <A> Reviewer",
        "date": "2026-03-01",
        "source": "diagnosis tube of day -20",
        "reason": "the blasts are CD10-high and CD34-dim",
        "populations": ["blasts"],
        "documents": {},
    }  # fmt: skip
    assert third["gate_set"] is None
    kept = read_result(finished / "acquisitions" / "d0")
    assert kept.gate_set is not None
    assert kept.gate_set.populations == ("blasts",)
    placed = next(gate for gate in kept.gates if gate.population == "blasts")
    assert (placed.method, placed.channels, placed.parameters) == ("override", ("CD10", "CD34"), {})
    panel = next(p for p in kept.panels if any(g.population == "blasts" for g in p.gates))
    assert ({panel.x.marker, panel.y.marker}, panel.gates[0].kind) == ({"CD10", "CD34"}, "polygon")


def test_the_report_names_the_author_beside_the_gate(finished: Path) -> None:
    page = (finished / "report" / "acquisitions" / "d0.html").read_text(encoding="utf-8")
    said = "drawn by Dr &lt;A&gt; Reviewer on 2026-03-01 from diagnosis tube of day -20"
    captions = re.findall(r"<figcaption>.*?</figcaption>", page, re.DOTALL)
    assert sum(f"blasts: {said}; gate set psn-7-dx" in caption for caption in captions) == 1
    assert f"psn-7-dx: blasts {said}" in page
    assert "Dr <A>" not in page
    other = (finished / "report" / "acquisitions" / "other.html").read_text(encoding="utf-8")
    assert "Reviewer" not in other


def states(done: Done) -> dict[str, bool]:
    lines = [line for line in done.err.splitlines() if line.startswith("[")]
    return {line.split("] ")[1].split(":")[0]: ": kept," in line for line in lines}


def test_a_changed_set_is_not_resumed_over(study: Path, tmp_path: Path) -> None:
    for path in study.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    out, arguments = tmp_path / "run", (tmp_path / "manifest.csv", "--no-report", "--resume", "--out", tmp_path / "run")
    flowmrd("run", *arguments)
    assert states(flowmrd("run", *arguments)) == {"d0": True, "d28": True, "other": True}
    (tmp_path / "dx.toml").write_text(SET.replace("0.7]", "0.8]"), encoding="utf-8")
    assert states(flowmrd("run", *arguments)) == {"d0": False, "d28": False, "other": True}
    assert json.loads((out / "run.json").read_text())["acquisitions"][0]["gate_set"]["sha256"].startswith(
        hashlib.sha256((tmp_path / "dx.toml").read_bytes()).hexdigest()
    )


def test_a_set_that_does_not_fit_its_template_stops_the_run_before_any_file_is_opened(
    study: Path, tmp_path: Path
) -> None:
    for path in study.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = SET.replace('"blasts"', '"blast"').replace('["CD10", "CD34"]', '["CD10", "CD35"]').replace(">=1", ">=90")
    (tmp_path / "dx.toml").write_text(text, encoding="utf-8")
    done = flowmrd("run", tmp_path / "manifest.csv", "--out", tmp_path / "out")
    assert done.code == 2
    lines = done.err.splitlines()
    start = "error: manifest.csv, row 3, column gate_set: dx.toml, "
    assert all(line.startswith(start) for line in lines)
    assert [line.removeprefix(start).partition(":")[0] for line in lines] == [
        "gate_set.template_versions",
        "override[0] (blast).population",
        "override[0] (blast).gate",
    ]
    assert not (tmp_path / "out").exists()


def test_gates_of_another_program_stand_in_and_give_its_counts(study: Path, tmp_path: Path) -> None:
    """The template's gates, exported and taken back by name, count the same; a dry run names the set."""
    file = study / "d0.fcs"
    document, own = tmp_path / "gates.xml", tmp_path / "own.toml"
    flowmrd("gates", "convert", "ball-mrd-10c", "--to", "gatingml", "--fcs", file, "--out", document)
    arguments = ("gates", "convert", document, "--to", "gate-set", "--template", "ball-mrd-10c", "--out", own)
    assert flowmrd(*arguments).err.strip().endswith("--to gate-set needs --subject, --author, --reason")
    about = ("--subject", "PSN-7", "--author", "A", "--reason", "as at diagnosis", "--fcs", file)
    done = flowmrd(*arguments, *about)
    assert done.code == 3  # booleans are no geometric gates, and are listed
    assert "left out: " in done.err
    assert flowmrd("gate", file, "--template", "ball-mrd-10c", "--out", tmp_path / "a", "--no-report").code == 0
    set_too = ("--gate-set", own, "--no-report")
    done = flowmrd("gate", file, "--template", "ball-mrd-10c", "--out", tmp_path / "b", *set_too)
    assert done.code == 0, done.err
    tables = [(tmp_path / name / "populations.csv").read_bytes() for name in "ab"]
    assert tables[0] == tables[1]
    placed = read_result(tmp_path / "b" / "acquisitions" / "d0").gates
    assert {"override"} == {gate.method for gate in placed if f'population = "{gate.population}"' in own.read_text()}
    document.write_bytes(document.read_bytes() + b"\n")
    done = flowmrd("gate", file, "--template", "ball-mrd-10c", "--out", tmp_path / "c", *set_too)
    assert done.code == 2
    assert "sha256: expected" in done.err
    assert not (tmp_path / "c").exists()


def test_pairs_take_a_gate_for_a_population_of_another_name(study: Path, tmp_path: Path) -> None:
    document, own = tmp_path / "gates.xml", tmp_path / "own.toml"
    flowmrd("gates", "convert", "ball-mrd-10c", "--to", "gatingml", "--fcs", study / "d0.fcs", "--out", document)
    about = ("-t", "ball-mrd-10c", "--subject", "PSN-7", "--author", "A", "--reason", "r", "--out", own)
    done = flowmrd("gates", "convert", document, "--to", "gate-set", *about, "--gate", "cd19=cd22")
    assert (done.code, done.out) == (0, f"{own}: gate set, cd19\n")
    assert 'population = "cd19"\ndocument = "gates.xml"' in own.read_text(encoding="utf-8")
    done = flowmrd("gates", "convert", document, "--to", "gate-set", *about, "--gate", "cd91=cd22")
    assert "no population 'cd91' (did you mean 'cd19'?)" in done.err
    assert flowmrd("gates", "convert", document, "--to", "template", "--author", "A", "--out", own).code == 2


def test_a_set_for_a_foreign_document_run_is_refused(study: Path, tmp_path: Path) -> None:
    done = flowmrd("gate", study / "d0.fcs", "-s", study / "dx.toml", "--gate-set", study / "dx.toml", "-o", tmp_path)
    assert "--gate-set goes with --template" in done.err
