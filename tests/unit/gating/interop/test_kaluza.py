"""Kaluza containers built by hand: caps on the zip, scales, compensation, gate kinds."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from flowmrd.errors import InputError
from flowmrd.fcs import Channel, FcsFile, read_fcs, write_fcs
from flowmrd.gating.interop import kaluza
from flowmrd.gating.interop.document import evaluate

SCALES = (
    '<Scales><LinearScale DR="1024" OFF="0"/><LogScale D="4" DR="1024"/>'
    '<LogicleScale D="4.5" DR="1024" W="0.1"/></Scales>'
)


def gate(tag: str, name: str, axes: str, points: str, parent: str = "") -> str:
    items = "".join(f'<A M="{axis[:-1]}" S="{axis[-1]}"/>' for axis in axes.split(",") if axis)
    corners = "".join(f'<P O="{point}"/>' for point in points.split(";") if point)
    above = f' G="{parent}" J="0"' if parent else ""
    return f'<{tag} N="{name}"{above}><A>{items}</A><P>{corners}</P></{tag}>'


def analysis(gates: str, *, name: str = "a", compensation: str = "", entries: int = 1) -> bytes:
    columns = "".join(
        f'<Column N="{label}"><Detector>{label[:3]}</Detector><OriginalName>{original}</OriginalName></Column>'
        for label, original in (("FL1 INT", "FL1-A"), ("FL2 INT", "FL2-A"))
    )
    measures = "".join(
        f'<Measurement N="{label}" T="A"><Detector>{label[:3]}</Detector><Range>1048576</Range>{SCALES}</Measurement>'
        for label in ("FL1 INT", "FL2 INT")
    )
    entry = (
        f'<Entry><DataSet N="{name}"><Columns>{columns}</Columns>'
        "<Metadata><Entry><Key>$TOT</Key><Value>5</Value></Entry>"
        f"</Metadata></DataSet><Protocol><Measurements>{measures}</Measurements><Gates>{gates}</Gates>{compensation}"
        "</Protocol></Entry>"
    )
    return f'<Analysis Version="199"><Worklist><Entries>{entry * entries}</Entries></Worklist></Analysis>'.encode()


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


@pytest.fixture
def fcs(tmp_path: Path) -> FcsFile:
    """Five events: below zero, the lowest decade, the middle of four decades, half of the range, and saturated."""
    top = 1048576.0
    x = np.array([-500.0, top / 1e4, top / 100.0, top / 2, top - 1], np.float32)
    channels = [Channel(index=0, pnn="FL1-A", range=top), Channel(index=1, pnn="FL2-A", range=top)]
    write_fcs(tmp_path / "a.fcs", [x, (x * 0.5).astype(np.float32)], channels)
    return read_fcs(tmp_path / "a.fcs")


def counted(gates: str, fcs: FcsFile) -> dict[str, int]:
    return dict(evaluate(kaluza.read_strategy(zipped(a__xml=analysis(gates)), "k.analysis", fcs), fcs).counts)


def test_an_axis_is_linear_log_or_logicle_over_1024_channels(fcs: FcsFile) -> None:
    gates = (
        gate("L", "linear", "FL1 INTI", "400;600")
        + gate("L", "log", "FL1 INTO", "500;600")
        + gate("L", "logicle", "FL1 INTC", "0;102")
    )
    # Half the range is channel 512; a hundredth of it is the middle of four decades; zero lies at W = 0.1 of the scale.
    assert counted(gates, fcs) == {"/linear": 1, "/log": 1, "/logicle": 1}


def test_a_gate_drawn_to_the_border_holds_what_lies_beyond_it(fcs: FcsFile) -> None:
    gates = gate("R", "all", "FL1 INTI,FL2 INTI", "0,0;1023.5,1024") + gate(
        "P", "poly", "FL1 INTO,FL2 INTO", "0.5,0.5;1023.5,0.5;1023.5,1023.5;0.5,1023.5", "all"
    )
    assert counted(gates, fcs) == {"/all": 5, "/all/poly": 5}


def test_spillover_of_a_colour_is_seen_in_a_detector(fcs: FcsFile) -> None:
    given = (
        "<Compensation><CompensatedDetectors><D>FL1</D><D>FL2</D></CompensatedDetectors>"
        '<S><SV S="FL2" C="FL1" V="0.5"/></S></Compensation>'
    )
    data = analysis(gate("L", "none", "FL2 INTI", "0;1"), compensation=given)
    strategy = kaluza.read_strategy(zipped(a__xml=data), "k", fcs)
    matrix = strategy.matrices["kaluza"]
    assert matrix.fluorochromes == ("FL1-A", "FL2-A")
    np.testing.assert_allclose(matrix.values, [[1.0, 0.5], [0.0, 1.0]])
    # FL2 is half of FL1 and nothing else, so nothing is left.
    assert dict(evaluate(strategy, fcs).counts) == {"/none": 5}


def test_expressions_over_gates_are_read_and_what_is_not_known_is_said(fcs: FcsFile) -> None:
    low, high = gate("L", "low", "FL1 INTI", "0;300"), gate("L", "high", "FL1 INTI", "300;1024")
    gates = (
        low
        + high
        + '<B N="both"><E>low OR high</E></B><B N="neither"><E>NOT low AND NOT high</E></B>'
        + gate("Q", "quad", "FL1 INTI,FL2 INTI", "500,500")
        + gate("L", "child", "FL1 INTI", "0;10", "quad")
        + gate("L", "odd", "FL1 INTX", "0;10")
        + gate("L", "nan", "FL1 INTI", "nan;10")
        + gate("L", "gone", "FL9 INTI", "0;10")
    )
    evaluation = evaluate(kaluza.read_strategy(zipped(a__xml=analysis(gates)), "k", fcs), fcs)
    assert dict(evaluation.counts) == {"/low": 3, "/high": 2, "/both": 5, "/neither": 0}
    assert {finding.where for finding in evaluation.findings} == {"/quad", "/odd", "/nan", "/gone", "/quad/child"}


def test_parents_in_a_circle_are_said(fcs: FcsFile) -> None:
    gates = gate("L", "a", "FL1 INTI", "0;300", "b") + gate("L", "b", "FL1 INTI", "0;300", "a")
    evaluation = evaluate(kaluza.read_strategy(zipped(a__xml=analysis(gates)), "k", fcs), fcs)
    assert not evaluation.counts
    assert all("circle" in finding.message for finding in evaluation.findings)


def test_the_data_set_is_found_by_name_or_events_or_asked_for(fcs: FcsFile) -> None:
    gates = gate("L", "p", "FL1 INTI", "0;300")
    assert kaluza.read_strategy(analysis(gates, name="other"), "k", fcs).gates
    assert kaluza.read_strategy(analysis(gates), "k", fcs, tube="a").events == 5
    with pytest.raises(InputError, match="no data set 'b' in the analysis"):
        kaluza.read_strategy(analysis(gates), "k", fcs, tube="b")
    with pytest.raises(InputError, match="2 data sets of the analysis are this file"):
        kaluza.read_strategy(analysis(gates, entries=2), "k", fcs)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(InputError, match="times its size, more than the 200 allowed"):
        kaluza.read_tree(zipped(a__xml=b" " * 8_000_000), "k")


@pytest.mark.parametrize("name", ["../a.xml", "/etc/a.xml", "C:/a.xml", "b/../../a.xml"])
def test_a_member_that_would_leave_the_container_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="absolute path or one that leaves it"):
        kaluza.read_tree(zipped(**{name: b"<Analysis/>"}), "k")


def test_too_many_members_a_torn_zip_and_other_documents_are_refused() -> None:
    many = zipped(**{f"m{i}": b"" for i in range(kaluza.MAX_ENTRIES + 1)})
    with pytest.raises(InputError, match="members, more than the"):
        kaluza.read_tree(many, "k")
    with pytest.raises(InputError, match="not a readable zip"):
        kaluza.read_tree(zipped(a__xml=analysis(""))[:60], "k")
    with pytest.raises(InputError, match="no Kaluza analysis"):
        kaluza.read_tree(zipped(a__xml=b"<x/>"), "k")
    with pytest.raises(InputError, match="expected a Kaluza container"):
        kaluza.read_tree(b"<x/>", "k")
    with pytest.raises(InputError, match="document type"):
        kaluza.read_tree(zipped(a__xml=b'<!DOCTYPE a [<!ENTITY b "c">]><Analysis/>'), "k")
