"""`flowmrd gate --strategy` and `flowmrd gates` as a lab scientist meets them: files, exit codes, messages."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import pytest

from flowmrd.cli import main
from flowmrd.fcs import Channel, Spillover, write_fcs
from flowmrd.foreign import COMPARISON
from flowmrd.records import FINDINGS, MEASUREMENTS, POPULATIONS

SPACE = "http://www.isac-net.org/std/Gating-ML/v2.0/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


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
    return Done(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def gatingml(path: Path, *gates: str) -> Path:
    path.write_text(
        f'<g:Gating-ML xmlns:g="{SPACE}gating" xmlns:t="{SPACE}transformations" xmlns:d="{SPACE}datatypes">'
        + "".join(gates)
        + "</g:Gating-ML>",
        encoding="utf-8",
    )
    return path


def gate(name: str, channel: str, low: float, parent: str = "") -> str:
    above = f' g:parent_id="{parent}"' if parent else ""
    return (
        f'<g:RectangleGate g:id="{name}"{above}><g:dimension g:compensation-ref="FCS" g:min="{low}">'
        f'<d:fcs-dimension d:name="{channel}"/></g:dimension></g:RectangleGate>'
    )


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "tube.fcs"
    rng = np.random.default_rng(1)
    channels = [Channel(index=i, pnn=name, range=1e4) for i, name in enumerate(("FSC-A", "SSC-A", "FL1-A", "FL2-A"))]
    matrix = Spillover(channels=("FL1-A", "FL2-A"), matrix=np.array([[1, 0.2], [0.1, 1]]), source="$SPILLOVER")
    write_fcs(path, rng.normal(1000, 800, (4, 2000)), channels, spillover=matrix)
    return path


def test_a_foreign_document_gates_a_file_and_writes_the_tables(events: Path, tmp_path: Path) -> None:
    document = gatingml(
        tmp_path / "gates.xml",
        gate("A", "FL1-A", 900),
        gate("same", "FL2-A", 500, "A"),
        gate("B", "FL1-A", 100),
        gate("same", "FL2-A", 700, "B"),
    )
    done = flowmrd("gate", events, "--strategy", document, "--out", tmp_path / "out", "--membership")
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(tmp_path / "out" / "populations.csv")
    assert table.columns == list(POPULATIONS)
    assert table["population"].to_list() == ["A", "same", "B", "/B/same"]
    assert table["path"].to_list() == ["/A", "/A/same", "/B", "/B/same"]
    assert table["parent"].to_list() == ["root", "A", "root", "B"]
    members = pl.read_parquet(tmp_path / "out" / "membership" / "tube.parquet")
    assert members.columns == table["population"].to_list()
    assert set(members.dtypes) == {pl.Boolean}
    assert members.height == 2000
    assert [int(members[name].sum()) for name in members.columns] == table["events"].to_list()
    assert pl.read_csv(tmp_path / "out" / "findings.csv").columns == list(FINDINGS)
    measurements = pl.read_csv(tmp_path / "out" / "measurements.csv")
    assert (measurements.columns, measurements.height) == (list(MEASUREMENTS), 0)
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert record["strategy"]["file"] == "gates.xml"
    assert (tmp_path / "out" / "report" / "index.html").is_file()


def test_a_gate_that_cannot_be_evaluated_is_a_finding_and_the_exit_code_is_3(events: Path, tmp_path: Path) -> None:
    document = gatingml(
        tmp_path / "gates.xml", gate("A", "FL1-A", 900), gate("X", "FL9-A", 0), gate("Y", "FL1-A", 0, "X")
    )
    done = flowmrd("gate", events, "--strategy", document, "--out", tmp_path / "out", "--membership", "--no-report")
    assert done.returncode == 3
    assert "Gate X is left out: the file has no channel 'FL9-A'" in done.stderr
    assert pl.read_csv(tmp_path / "out" / "populations.csv")["population"].to_list() == ["A"]
    assert pl.read_parquet(tmp_path / "out" / "membership" / "tube.parquet").columns == ["A"]
    findings = pl.read_csv(tmp_path / "out" / "findings.csv").filter(pl.col("code") == "GATE_LEFT_OUT")
    assert findings["where"].to_list() == ["/X", "/X/Y"]


def test_a_document_without_gates_for_the_file_is_told_and_the_exit_code_is_3(events: Path, tmp_path: Path) -> None:
    done = flowmrd(
        "gate", events, "--strategy", gatingml(tmp_path / "none.xml"), "--out", tmp_path / "out", "--no-report"
    )
    assert done.returncode == 3
    assert "none.xml has no gates for this file." in done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["acquisitions"][0]["qc"] == "WARN"


def test_a_document_is_listed_without_a_file_and_what_cannot_be_read_stands_beside_its_gate(tmp_path: Path) -> None:
    document = gatingml(
        tmp_path / "gates.xml", gate("A", "FL1-A", 900), gate("same", "FL2-A", 500, "A"), gate("X", "FL1-A", 0, "Y")
    )
    done = flowmrd("gates", "list", document, "--out", tmp_path / "list.csv")
    assert done.returncode == 3
    assert "/A/same  -  rectangle FL2-A (linear)" in done.stdout
    assert "left out: Gate X is left out: its parent 'Y' is not in the document." in done.stdout
    table = pl.read_csv(tmp_path / "list.csv")
    assert table["path"].to_list() == ["/A", "/A/same", "/X"]
    template = tmp_path / "cells.csv"
    template.write_text(
        "alias,pop,parent,dims,gating_method,gating_args\nlymph,+,root,FSC-A,mindensity,\nodd,+,lymph,FSC-A,magic,\n",
        encoding="utf-8",
    )
    done = flowmrd("gates", "list", template)
    assert done.returncode == 3
    assert "/lymph  -  valley FSC-A" in done.stdout
    assert re.search(r"/lymph/odd  -  left out: NOT MAPPED from openCyto's magic", done.stdout)


def test_a_file_that_is_no_fcs_file_is_a_finding_and_the_others_are_gated(events: Path, tmp_path: Path) -> None:
    document = gatingml(tmp_path / "gates.xml", gate("A", "FL1-A", 900))
    (tmp_path / "broken.fcs").write_bytes(b"not an FCS file at all")
    done = flowmrd(
        "gate", tmp_path / "broken.fcs", events, "--strategy", document, "--out", tmp_path / "out", "--no-report"
    )
    assert done.returncode == 3
    assert "1 of 2 files gated" in done.stdout
    assert pl.read_csv(tmp_path / "out" / "populations.csv")["acquisition"].to_list() == ["tube"]
    assert "FILE_REFUSED" in pl.read_csv(tmp_path / "out" / "findings.csv")["code"].to_list()


def large(path: Path) -> Path:
    with path.open("wb") as handle:
        handle.write(b"<a>")
        handle.truncate(100_000_000)
    return path


def test_a_document_that_cannot_be_trusted_or_read_ends_in_one_line(events: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.xml"
    bomb.write_text('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text("hello", encoding="utf-8")
    for document, message in (
        (bomb, "document type with an internal subset"),
        (other, "not a gate document"),
        (large(tmp_path / "large.xml"), "the document has 100 MB"),
    ):
        done = flowmrd("gate", events, "--strategy", document, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --template and --strategy"),
        (("--strategy", "{doc}", "--template", "tbnk"), "give one of --template and --strategy"),
        (("--strategy", "{doc}", "--matrix", "none"), "--matrix: the document of --strategy decides this itself"),
        (("--template", "tbnk", "--tube", "1"), "--tube goes with --strategy"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(
    arguments: tuple[str, ...], message: str, events: Path, tmp_path: Path
) -> None:
    document = gatingml(tmp_path / "gates.xml", gate("A", "FL1-A", 900))
    done = flowmrd("gate", events, "--out", tmp_path / "out", *(one.format(doc=document) for one in arguments))
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_gates_become_a_template_that_gates_alike(events: Path, tmp_path: Path) -> None:
    document = gatingml(tmp_path / "gates.xml", gate("Big-Cells", "FSC-A", 900), gate("A+", "FL1-A", 500, "Big-Cells"))
    template = tmp_path / "mine.toml"
    done = flowmrd("gates", "convert", document, "--to", "template", "--fcs", events, "--out", template)
    assert done.returncode == 0, done.stderr
    assert "--matrix file" in done.stdout
    assert flowmrd("template", "check", template).returncode == 0
    for option, name in (("--strategy", document), ("--template", template)):
        done = flowmrd("gate", events, option, name, "--out", tmp_path / option, "--membership", "--no-report")
        assert done.returncode == 0, done.stderr
    theirs, ours = (
        pl.read_parquet(tmp_path / option / "membership" / "tube.parquet") for option in ("--strategy", "--template")
    )
    assert ours.columns == ["big_cells", "a_pos"]
    assert theirs.rename(dict(zip(theirs.columns, ours.columns, strict=True))).equals(ours)


def test_a_matrix_of_the_document_is_written_beside_the_template(events: Path, tmp_path: Path) -> None:
    names = "".join(f'<d:fcs-dimension d:name="{name}"/>' for name in ("FL1-A", "FL2-A"))
    rows = "".join(
        f'<t:spectrum><t:coefficient t:value="{a}"/><t:coefficient t:value="{b}"/></t:spectrum>'
        for a, b in ((1, 0.5), (0.25, 1))
    )
    dyes = '<d:fcs-dimension d:name="FITC"/><d:fcs-dimension d:name="PE"/>'
    matrix = (
        f'<t:spectrumMatrix t:id="M"><t:fluorochromes>{dyes}</t:fluorochromes>'
        f"<t:detectors>{names}</t:detectors>{rows}</t:spectrumMatrix>"
    )
    document = gatingml(tmp_path / "gates.xml", matrix, gate("A", "PE", 500).replace('"FCS"', '"M"'))
    done = flowmrd("gates", "convert", document, "--to", "template", "--fcs", events, "--out", tmp_path / "t.toml")
    assert done.returncode == 0, done.stderr
    counts = []
    for options in (
        ("--strategy", document),
        ("--template", tmp_path / "t.toml", "--matrix", tmp_path / "t.matrix.tsv"),
    ):
        assert flowmrd("gate", events, *options, "--out", tmp_path / "o", "--no-report").returncode == 0
        counts.append(pl.read_csv(tmp_path / "o" / "populations.csv")["events"].to_list())
    assert counts[0] == counts[1]


def test_a_conversion_that_leaves_a_gate_of_a_workspace_out_ends_with_3(events: Path, tmp_path: Path) -> None:
    gates = (
        '<Population name="good"><Gate><g:RectangleGate><g:dimension g:min="0"><d:fcs-dimension d:name="FSC-A"/>'
        '</g:dimension></g:RectangleGate></Gate></Population><Population name="curly"><Gate><g:CurlyQuad/></Gate>'
        "</Population>"
    )
    document = tmp_path / "w.wsp"
    document.write_text(
        f'<Workspace xmlns:g="{SPACE}gating" xmlns:d="{SPACE}datatypes"><SampleList><Sample><Transformations/>'
        f'<SampleNode name="tube.fcs"><Subpopulations>{gates}</Subpopulations></SampleNode></Sample></SampleList>'
        "</Workspace>",
        encoding="utf-8",
    )
    for target, out in (("gatingml", "g.xml"), ("template", "t.toml")):
        done = flowmrd("gates", "convert", document, "--to", target, "--fcs", events, "--out", tmp_path / out)
        assert done.returncode == 3, target
        assert "Gate curly is left out: it is a curly quadrant" in done.stderr
        assert (tmp_path / out).is_file()


def test_a_template_as_placed_becomes_gatingml_and_back(repository: Path, tmp_path: Path) -> None:
    path = repository / "sample_fcs" / "blasts-1e-2.fcs"
    document = tmp_path / "placed.xml"
    done = flowmrd("gates", "convert", "ball-mrd-10c", "--to", "gatingml", "--fcs", path, "--out", document)
    assert done.returncode == 0, done.stderr
    for option, name in (("--strategy", document), ("--template", "ball-mrd-10c")):
        assert flowmrd("gate", path, option, name, "--out", tmp_path / option, "--no-report").returncode == 0
    theirs, ours = (pl.read_csv(tmp_path / option / "populations.csv") for option in ("--strategy", "--template"))
    counts = dict(zip(theirs["population"], theirs["events"], strict=True))
    # What the search found is a list of events, which Gating-ML cannot say: there stands the static rule.
    searched = {"blasts", "blast_candidates", "blasts_cd19_pos", "hematogones"}
    mine = dict(zip(ours["population"], ours["events"], strict=True))
    assert {name: counts[name] for name in mine if name not in searched} == {
        name: events for name, events in mine.items() if name not in searched
    }


def test_converting_without_the_file_that_is_needed_says_so(repository: Path, tmp_path: Path) -> None:
    done = flowmrd("gates", "convert", "ball-mrd-10c", "--to", "gatingml", "--out", tmp_path / "x.xml")
    assert done.returncode == 2
    assert "give it as --fcs" in " ".join(done.stderr.split())
    workspace = tmp_path / "w.wsp"
    workspace.write_text("<Workspace/>", encoding="utf-8")
    done = flowmrd("gates", "convert", workspace, "--to", "template", "--out", tmp_path / "x.toml")
    assert done.returncode == 2
    assert "say which with --fcs" in " ".join(done.stderr.split())


def test_stored_counts_are_compared_and_a_difference_is_drawn(shared_fcs: Path, tmp_path: Path) -> None:
    folder = shared_fcs / "workspaces" / "diva_canto"
    path = folder / "124500.fcs"
    done = flowmrd("gates", "compare", folder / "PE_2.xml", path, "--tolerance", "0.005")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 stored counts agree" in done.stdout
    document = tmp_path / "changed.xml"
    text = (folder / "PE_2.xml").read_text(encoding="utf-8")
    assert "<num_events>1160</num_events>" in text
    document.write_text(
        text.replace("<num_events>1160</num_events>", "<num_events>1600</num_events>"), encoding="utf-8"
    )
    done = flowmrd("gates", "compare", document, path, "--tolerance", "0.005", "--out", tmp_path / "out")
    assert done.returncode == 3
    assert re.search(r"P4 +1,600 +1,1\d\d +-2\d\.\d\d % .*differs", done.stdout)
    table = pl.read_csv(tmp_path / "out" / "comparison.csv")
    assert table.columns == list(COMPARISON)
    assert table["agrees"].to_list().count(False) == 1
    findings = pl.read_csv(tmp_path / "out" / "findings.csv").filter(pl.col("code") == "COUNT_DIFFERS")
    assert findings.height == 1
    (page,) = (tmp_path / "out" / "report" / "acquisitions").glob("*.html")
    assert page.read_text(encoding="utf-8").count('class="panel') >= 1


def test_a_document_without_counts_has_nothing_to_compare(events: Path, tmp_path: Path) -> None:
    document = gatingml(tmp_path / "gates.xml", gate("A", "FL1-A", 900))
    done = flowmrd("gates", "compare", document, events)
    assert done.returncode == 0
    assert "gates.xml stores no counts" in done.stdout
