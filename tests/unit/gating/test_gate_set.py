"""A gate set against its template: every fault has its key path, and a gate on one file says where it comes from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.documents.gate_set import GateSet, load_gate_set, version_in_range
from flowmrd.errors import GatingError, SettingsError
from flowmrd.fcs import read_fcs
from flowmrd.gating.engine import apply_template
from flowmrd.gating.gate_set import drawn_gate, gate_set_faults, subject_gates
from flowmrd.gating.gates import Rectangle
from flowmrd.gating.interop.export import strategy_of, write_gatingml
from flowmrd.gating.template import find_template

HEAD = """
[gate_set]
id = "dx"
subject = "PSN-0042"
template = "ball-mrd-10c"
author = "A. Reviewer"
date = 2026-03-01
source = "diagnosis of day -20"
reason = "CD10-dim blasts"
"""
CD19 = """
[[override]]
population = "cd19"
gate = { kind = "rectangle", markers = ["CD19"], low = [0.6], high = [inf] }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "dx.toml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str = HEAD + CD19) -> GateSet:
    return load_gate_set(write(folder, text), error=SettingsError)


def refused(folder: Path, text: str) -> list[str]:
    with pytest.raises(ExceptionGroup) as caught:
        load(folder, text)
    return [str(fault) for fault in caught.value.exceptions]


def faults(folder: Path, text: str) -> list[str]:
    read = load(folder, text)
    return [str(fault) for fault in gate_set_faults(read, find_template("ball-mrd-10c"), error=SettingsError)]


def test_a_gate_set_is_read_with_its_digest(tmp_path: Path) -> None:
    read = load(tmp_path)
    assert read.populations == ("cd19",)
    assert read.digest == hashlib.sha256((tmp_path / "dx.toml").read_bytes()).hexdigest()
    assert read.gate_set.date.isoformat() == "2026-03-01"
    assert not faults(tmp_path, HEAD + CD19)


def test_an_override_of_a_template_can_be_moved_here_as_it_stands(tmp_path: Path) -> None:
    more = 'subject = "PSN-0042"\nby = "B. Other"\nsource = "file of day -3"\n'
    assert not faults(tmp_path, HEAD + CD19 + more)
    assert refused(tmp_path, HEAD + CD19 + more.replace("0042", "0043")) == [
        (
            "dx.toml, override[0] (cd19).subject: expected gate_set.subject; got another subject "
            "(a gate set is of one subject)"
        )
    ]


def test_faults_inside_a_gate_set_are_all_told_with_their_keys(tmp_path: Path) -> None:
    text = (
        HEAD.replace('reason = "CD10-dim blasts"', 'template_versions = "1.x"')
        + "[[override]]\npopulation = 'cd19'\n"
        + "[[overide]]\n"
    )
    assert refused(tmp_path, text) == ["dx.toml, overide: unknown key (expected gate_set and override)"]
    found = refused(tmp_path, text.partition("[[overide")[0])
    assert [one.partition(":")[0] for one in found] == [
        "dx.toml, gate_set.template_versions",
        "dx.toml, gate_set.reason",
        "dx.toml, override[0].gate",
    ]
    document = "[[override]]\npopulation = 'cd34'\ngate = 'Blasts'\n"
    assert refused(tmp_path, HEAD + CD19 + CD19 + document + "document = 'none.xml'\n") == [
        "dx.toml, override[1] (cd19).population: expected each population once; got it twice",
        (
            "dx.toml, override[2] (cd34).document: none.xml cannot be read: No such file or directory "
            "(relative to the gate set's folder)"
        ),
    ]
    assert refused(tmp_path, HEAD + document) == [
        "dx.toml, override[0] (cd34).gate: expected a table with kind, markers … (a gate's name goes with document = …)"
    ]


def test_a_document_that_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gates.xml").write_text("<x/>")
    digest = hashlib.sha256(b"<x/>").hexdigest()
    text = HEAD + "[[override]]\npopulation = 'cd19'\ngate = 'B'\ndocument = 'gates.xml'\nsha256 = '%s'\n"
    assert load(tmp_path, text % digest).documents == {"gates.xml": digest}
    assert refused(tmp_path, text % ("0" * 64)) == [
        (
            f"dx.toml, override[0] (cd19).sha256: expected {'0' * 64} for gates.xml; got {digest} "
            "(the document changed since the gates were taken from it)"
        )
    ]


def test_the_content_changes_with_the_set_and_with_its_documents(tmp_path: Path) -> None:
    text = HEAD + "[[override]]\npopulation = 'cd19'\ngate = 'B'\ndocument = 'gates.xml'\n"
    contents = set()
    for document, gate in (("<x/>", "'B'"), ("<y/>", "'B'"), ("<y/>", "'C'")):
        (tmp_path / "gates.xml").write_text(document)
        contents.add(load(tmp_path, text.replace("'B'", gate)).content)
    assert len(contents) == 3


def test_what_does_not_fit_the_template_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    assert faults(tmp_path, HEAD.replace("ball-mrd-10c", "tbnk") + CD19) == [
        (
            "dx.toml, gate_set.template: expected a gate set for template 'ball-mrd-10c'; got one for 'tbnk' "
            "(a gate is drawn on one template's scales)"
        )
    ]
    versions = 'template_versions = ">=99.0.0"\n'
    text = HEAD + versions + CD19.replace('"cd19"', '"cd91"').replace('["CD19"]', '["CD91"]')
    found = faults(tmp_path, text)
    assert found[0].endswith("got one for >=99.0.0 (look at its gates on this version, then widen the range)")
    assert found[1:] == [
        f"dx.toml, override[0] (cd91).{key}: template ball-mrd-10c has no {what} (did you mean {near}?)"
        for key, what, near in (
            ("population", "population 'cd91'", "'cd19'"),
            ("gate", "channel for marker 'CD91'", "'CD19'"),
        )
    ]


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            {"kind": "circle"},
            "expected kind to be one of whole, nothing, rectangle, intervals, polygon, ellipsoid; got",
        ),
        ({"kind": "boolean", "operator": "and", "operands": []}, "expected a geometric gate; got a boolean one"),
        ({"kind": "rectangle", "markers": ["A"], "low": [0.1]}, "a rectangle needs high"),
        ({"kind": "polygon", "markers": ["A", "B"], "vertices": [], "open": 1}, "a polygon has no open; it has"),
        ({"kind": "rectangle", "markers": ["A"], "low": [0.5], "high": [0.1]}, "a rectangle needs low below high"),
        (
            {"kind": "rectangle", "markers": ["A"], "low": [0.5, 1], "high": [1]},
            "a rectangle needs one low and one high",
        ),
        ({"kind": "rectangle", "markers": "A", "low": [0.5], "high": [1]}, "expected names of markers"),
        ({"kind": "rectangle", "markers": ["A"], "low": ["0.5"], "high": [1]}, "expected numbers in low; got '0.5'"),
        ({"kind": "rectangle", "markers": ["A"], "low": [float("nan")], "high": [1]}, "expected finite numbers in low"),
        ({"kind": "polygon", "markers": ["A", "B"], "vertices": [[0, 0], [1, 1]]}, "a polygon needs three different"),
        (
            {"kind": "polygon", "markers": ["A", "B"], "vertices": [[0, 0, 0], [1, 1, 0]]},
            "a polygon needs markers, vert",
        ),
        (
            {"kind": "polygon", "markers": ["A", "B"], "vertices": [[0, 0], [1, float("inf")], [1, 0]]},
            "expected finite numbers in vertices; got inf",
        ),
        ({"kind": "intervals", "marker": "A", "ranges": []}, "intervals need ranges"),
        (
            {
                "kind": "ellipsoid",
                "markers": ["A", "B"],
                "mean": [0, 0],
                "covariance": [[1, 2], [2, 1]],
                "distance_square": 1,
            },
            "an ellipsoid needs a symmetric, positive definite covariance",
        ),
    ],
)
def test_a_bad_gate_is_one_clear_message(gate: dict[str, object], message: str) -> None:
    with pytest.raises(GatingError) as caught:
        drawn_gate(gate)
    assert str(caught.value).startswith(message)


def test_a_gate_says_who_drew_it_when_and_from_what(repository: Path, tmp_path: Path) -> None:
    path = repository / "sample_fcs" / "blasts-1e-2.fcs"
    fcs = read_fcs(path)
    template = find_template("ball-mrd-10c")
    panel = resolve_panel(template.channel, fcs.channels, tube="ball-mrd-10c")
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    placed = apply_template(source, template)
    (tmp_path / "gates.xml").write_bytes(write_gatingml(strategy_of(placed, source, fcs)))
    text = (
        HEAD
        + CD19
        + "[[override]]\npopulation = 'ssc_low'\ngate = 'ssc_low'\ndocument = 'gates.xml'\nby = 'B. Other'\n"
    )
    assert not faults(tmp_path, text)
    gates = subject_gates(load(tmp_path, text), fcs, source)
    start = "on 2026-03-01 from diagnosis of day -20; gate set dx"
    assert gates["cd19"].origin == f"drawn by A. Reviewer {start}"
    assert gates["ssc_low"].origin == f"drawn by B. Other {start}; gate 'ssc_low' of gates.xml"
    assert gates["cd19"].gate == Rectangle(markers=("CD19",), low=(0.6,), high=(float("inf"),))
    assert gates["ssc_low"].gate == placed.placed["ssc_low"].gate
    overrides = {name: (one.gate, one.origin) for name, one in gates.items()}
    assert apply_template(source, template, overrides=overrides).counts["ssc_low"] == placed.counts["ssc_low"]
    # A gate of the document that is not there is found before any file is opened.
    assert faults(tmp_path, text.replace("gate = 'ssc_low'", "gate = 'alive'")) == [
        "dx.toml, override[1] (ssc_low).gate: gates.xml has no gate 'alive'; it has "
        + faults(tmp_path, text.replace("gate = 'ssc_low'", "gate = 'alive'"))[0].partition("it has ")[2]
    ]
    (tmp_path / "gates.xml").write_text("<!DOCTYPE a [<!ENTITY b 'c'>]><a/>")
    (found,) = faults(tmp_path, text)
    assert found.startswith("dx.toml, override[1] (ssc_low).document: gates.xml")


def test_a_marker_that_the_file_lacks_stops_the_gating(repository: Path, tmp_path: Path) -> None:
    fcs = read_fcs(repository / "sample_fcs" / "blasts-1e-2.fcs")
    template = find_template("ball-mrd-10c")
    panel = resolve_panel(template.channel, fcs.channels, tube="ball-mrd-10c")
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    read = load(tmp_path, HEAD + CD19.replace('["CD19"]', '["CD999"]'))
    with pytest.raises(GatingError, match="gate set dx, cd19: the gate needs CD999, not in this file"):
        subject_gates(read, fcs, source)


@pytest.mark.parametrize(
    ("version", "wanted", "holds"),
    [
        ("1.2.3", "", True),
        ("1.2.3", ">=1.2.3,<1.2.4", True),
        ("1.10.0", "<1.9.0", False),
        ("1.2.3", "==1.2.3", True),
        ("1.2.3", "!=1.2.3", False),
    ],
)
def test_versions_compare_as_numbers(version: str, wanted: str, *, holds: bool) -> None:
    assert version_in_range(version, wanted) is holds
