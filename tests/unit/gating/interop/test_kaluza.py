"""Kaluza containers built by hand: caps on the zip, scales, compensation, gate kinds, and what may differ in real ones.

Counts of whole trees on real files are in `tests/real/test_kaluza_lmd.py`.
"""

from __future__ import annotations

import io
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.cytometry.transforms import Logicle
from flowmrd.errors import InputError
from flowmrd.fcs import Channel, FcsFile, read_fcs, write_fcs
from flowmrd.gating.gates import Boolean, Rectangle
from flowmrd.gating.interop import kaluza, kaluza_gates, kaluza_logic
from flowmrd.gating.interop.document import FROM_FILE, UNCOMPENSATED, evaluate

SCALES = (
    '<Scales><LinearScale DR="1024" OFF="0"/><LogScale D="4" DR="1024"/>'
    '<LogicleScale D="4.5" DR="1024" W="0.1"/></Scales>'
)


def gate(tag: str, name: str, axes: str, points: str, parent: str = "") -> str:
    items = "".join(f'<A M="{axis[:-1]}" S="{axis[-1]}"/>' for axis in axes.split(",") if axis)
    corners = "".join(f'<P O="{point}"/>' for point in points.split(";") if point)
    above = f' G="{parent}" J="0"' if parent else ""
    return f'<{tag} N="{name}"{above}><A>{items}</A><P>{corners}</P></{tag}>'


def analysis(
    gates: str, *, name: str = "a", compensation: str = "", entries: int = 1, constraints: str = "", total: int = 5
) -> bytes:
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
        f"<Metadata><Entry><Key>$TOT</Key><Value>{total}</Value></Entry></Metadata></DataSet>"
        f"<Protocol><Measurements>{measures}</Measurements><Gates>{gates}</Gates>"
        f"<GateConstraints>{constraints}</GateConstraints>{compensation}</Protocol></Entry>"
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
    left = {finding.where for finding in evaluation.findings if finding.code == "GATE_LEFT_OUT"}
    assert left == {"/quad", "/odd", "/nan", "/gone", "/quad/child"}


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


# ------------------------------------------------------------------------------------------------- kinds, in detail


def read(gates: str, fcs: FcsFile, **more: object) -> tuple[dict[str, int], set[str]]:
    """Return the counts by name, and the codes of what was found."""
    strategy = kaluza.read_strategy(zipped(a__xml=analysis(gates, **more)), "k.analysis", fcs)  # type: ignore[arg-type]
    evaluation = evaluate(strategy, fcs)
    names = {one.path: one.name for one in strategy.gates}
    counts = {names[path]: count for path, count in evaluation.counts.items()}
    return counts, {finding.code for finding in evaluation.findings}


def test_the_parts_of_a_divider_hold_what_lies_beyond_their_outer_ends(fcs: FcsFile) -> None:
    gates = gate("L", "N-", "FL1 INTI", "200,5;400,5") + gate("L", "N+", "FL1 INTI", "400,5;600,5")
    assert read(gates, fcs)[0] == {"N-": 0, "N+": 1}
    divider = '<HistogramDivider LG="N-" RG="N+"/>'
    assert read(gates, fcs, constraints=divider)[0] == {"N-": 3, "N+": 2}


def test_quadrants_part_all_events_whatever_their_outer_corners(fcs: FcsFile) -> None:
    gates = "".join(
        gate("R", name, "FL1 INTO,FL2 INTO", f"{x};{y}".replace(";", ",", 1) + f";{x2},{y2}")
        for name, x, y, x2, y2 in (
            ("A--", 10, 20, 500, 300),
            ("A+-", 500, 20, 900, 300),
            ("A-+", 10, 300, 500, 900),
            ("A++", 500, 300, 900, 900),
        )
    )
    corners = '<Staggered ULG="A-+" URG="A++" LLG="A--" LRG="A+-"/>'
    counts, codes = read(gates, fcs, constraints=corners)
    assert sum(counts.values()) == fcs.event_count
    assert counts == {"A--": 2, "A+-": 0, "A-+": 0, "A++": 3}
    assert not codes


def test_an_ellipse_is_read_and_marked_as_an_assumption(fcs: FcsFile) -> None:
    one = (
        '<E N="round"><A><A M="FL1 INT" S="I"/><A M="FL2 INT" S="I"/></A><P><P O="512,256"/></P>'
        "<Coefficients><D>{}</D><D>{}</D></Coefficients></E>"
    )
    counts, codes = read(one.format(100, 100), fcs)
    assert counts == {"round": 1}
    assert codes == {"KALUZA_ASSUMED"}
    turned = one.replace('N="round"', 'N="round" L="30"')
    assert read(turned.format(100, 100), fcs)[0] == {"round": 1}
    assert read(turned.format(100, 400), fcs)[1] == {"GATE_LEFT_OUT"}
    for wrong in ("<D>1</D>", "<D>0</D><D>4</D>", "<D>1e9</D><D>1e9</D>"):
        assert read(re.sub("<D>.*</D>", wrong, one), fcs)[1] == {"GATE_LEFT_OUT"}


def test_a_polygon_whose_corners_are_not_stored_is_left_out(fcs: FcsFile) -> None:
    assert read(gate("P", "H", "FL1 INTI,FL2 INTI", "0,0;0,0;0,0;0,0"), fcs)[1] == {"GATE_LEFT_OUT"}


def test_vertices_far_outside_the_plot_are_linear_values(fcs: FcsFile) -> None:
    """Kaluza 2 keeps values: the sides of this rectangle are those its documents have for a logicle's ends."""
    gates = gate("R", "all", "FL1 INTC,FL2 INTC", "-1103.887,-1103.887;1048410.375,1048410.875")
    low = gate("L", "half", "FL1 INTI", "262144,0;1048575,0")
    counts, _ = read(gates + low, fcs)
    assert counts == {"all": 5, "half": 2}


def test_a_width_is_a_share_of_the_scale() -> None:
    """The top sides of Kaluza 2's rectangles are a 65,536th of the plot below the top of a logicle.

    Stored as float32, 1048410.375 and 1048410.875 need widths of 0.54 to 0.73 and 0.96 to 1.01 decades; the widths that
    documents state are 0.1 to 0.23. Read as shares of 4.5 decades they are 0.45 to 1.03 decades, read as decades they
    would end at 1048410.25.
    """

    def end(width: str) -> float:
        measurement = kaluza_gates.Measurement(
            name="FL",
            channel="FL",
            detector="FL",
            pulse="A",
            top=1048576.0,
            scales={"logiclescale": {"D": "4.5", "W": width}},
        )
        axis = kaluza_gates._display("LogicleScale", measurement, kaluza_gates.Reading(measurements={}))
        assert isinstance(axis, Logicle)
        return float(np.float32(axis.inverse(np.array([1 - 1 / 65536]))[0]))

    assert end("0.15354363305182914") == 1048410.375
    assert end("0.2284155422841557") == 1048411.0
    assert end(repr(0.98 / 4.5)) == 1048410.875
    # More than a half of the scale cannot be a share.
    assert end("0.7") == end(repr(0.7 / 4.5))


# --------------------------------------------------------------------------------------------------- what may differ


def test_decimal_commas_other_cases_and_namespaces_are_read(fcs: FcsFile) -> None:
    polygon = gate("P", "p", "FL1 INTI,FL2 INTI", "400.5,100.5;700.5,100.5;700.5,700.5;400.5,700.5")
    data = analysis(polygon + gate("L", "l", "FL1 INTI", "400.5;700.5")).decode()
    changes: tuple[Callable[[str], str], ...] = (
        str,
        lambda text: re.sub(r'O="([\d.]+),([\d.]+)"', r'O="\1;\2"', text).replace(".5", ",5"),
        lambda text: re.sub(r'O="(\d+)\.5,(\d+)\.5"', r'O="\1,5,\2,5"', text),
        lambda text: text.replace('D="4.5"', 'D="4,5"'),
        lambda text: text.replace("<Analysis ", '<Analysis xmlns="urn:some:analysis" '),
        lambda text: text.replace("<A ", "<a ").replace("<Gates>", "<gates>").replace("</Gates>", "</gates>"),
        lambda text: text.replace(' N="', ' n="').replace(' S="', ' s="').replace(' O="', ' o="'),
        lambda text: text.replace('S="I"', 'S="i"'),
    )
    for change in changes:
        changed = change(data)
        strategy = kaluza.read_strategy(changed.encode(), "k", fcs)
        assert dict(evaluate(strategy, fcs).counts) == {"/p": 1, "/l": 1}, changed
        assert not strategy.findings


def test_a_protocol_alone_gates_any_file(fcs: FcsFile) -> None:
    whole = analysis(gate("L", "p", "FL1-AI", "0;600")).decode().replace("FL1 INT", "FL1-A").replace("FL2 INT", "FL2-A")
    protocol = whole[whole.index("<Protocol>") : whole.index("</Protocol>") + len("</Protocol>")]
    strategy = kaluza.read_strategy(protocol.encode(), "k.protocol", fcs)
    assert dict(evaluate(strategy, fcs).counts) == {"/p": 4}
    assert not strategy.findings
    assert len(kaluza.read_tree(protocol.encode(), "k.protocol")) == 1


def test_a_data_set_without_a_protocol_has_that_of_the_entry_around_it(fcs: FcsFile) -> None:
    inner = (
        '<Children><Entries><Entry><DataSet N="a"><Metadata/></DataSet></Entry></Entries></Children></Entry></Entries>'
    )
    data = analysis(gate("L", "p", "FL1 INTI", "0;300"), name="group").decode().replace("</Entry></Entries>", inner)
    strategy = kaluza.read_strategy(data.encode(), "k", fcs)
    assert [one.name for one in strategy.gates] == ["p"]
    assert not strategy.findings


def test_another_number_of_events_and_repeated_names_are_said(fcs: FcsFile) -> None:
    gates = (
        gate("L", "p", "FL1 INTI", "0;300")
        + gate("L", "p", "FL1 INTI", "300;1024")
        + gate("L", "child", "FL1 INTI", "0;9", "p")
    )
    strategy = kaluza.read_strategy(zipped(a__xml=analysis(gates, total=7)), "k", fcs)
    assert [(one.name, one.path) for one in strategy.gates] == [("p", "/p"), ("p", "/p (2)")]
    assert [finding.code for finding in strategy.findings] == ["OTHER_FILE", "GATE_LEFT_OUT"]
    assert "7 events, the file 5" in strategy.findings[0].message


def test_a_protocol_that_states_no_spillover_subtracts_none(fcs: FcsFile) -> None:
    gates = gate("L", "p", "FL1 INTI", "0;300")
    for compensation, used in (
        ("", UNCOMPENSATED if fcs.spillover is None else FROM_FILE),
        ("<Compensation><CompensatedDetectors><D>FL1</D></CompensatedDetectors><S/></Compensation>", UNCOMPENSATED),
    ):
        strategy = kaluza.read_strategy(analysis(gates, compensation=compensation), "k", fcs)
        assert {one.compensation for one in strategy.dimensions.values()} == {used}


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ('<SV S="FL2" C="FL1" V="much"/>', "MATRIX_UNUSED"),
        ('<SV S="FL2" C="FL1" V="1"/><SV S="FL1" C="FL2" V="1"/>', "MATRIX_UNUSED"),
        ('<SV S="FL2" C="FL1" V="0,5"/><SV S="FL9" C="FL1" V="0.5"/>', "KALUZA_ASSUMED"),
    ],
)
def test_a_compensation_that_cannot_be_used_is_said(cell: str, code: str, fcs: FcsFile) -> None:
    given = (
        "<Compensation><CompensatedDetectors><D>FL1</D><D>FL2</D><D>FL9</D></CompensatedDetectors>"
        f"<S>{cell}</S></Compensation>"
    )
    data = analysis(gate("L", "none", "FL2 INTI", "0;1"), compensation=given)
    strategy = kaluza.read_strategy(data, "k", fcs)
    assert code in {finding.code for finding in strategy.findings}
    assert dict(evaluate(strategy, fcs).counts) == {"/none": 5 if code == "KALUZA_ASSUMED" else 2}


def test_compensation_takes_the_background_away_and_gives_it_back(fcs: FcsFile) -> None:
    given = (
        "<Compensation><CompensatedDetectors><D>FL1</D><D>FL2</D></CompensatedDetectors>"
        '<AF><DA>0.25</DA>{}</AF><S><SV S="FL2" C="FL1" V="0.5"/></S></Compensation>'
    )
    data = analysis(gate("L", "none", "FL2 INTI", "0;1"), compensation=given.format(""))
    strategy = kaluza.read_strategy(data, "k", fcs)
    scale = strategy.scales["FL2 INT linear"]
    # Of a quarter of the range in both, half of FL1's quarter is not subtracted from FL2.
    np.testing.assert_allclose(scale.forward(np.array([1e5])), (1e5 + 0.125 * 1048576) / 1048576)
    np.testing.assert_allclose(strategy.matrices["kaluza"].values, [[1.0, 0.5], [0.0, 1.0]])
    named = analysis(gate("L", "none", "FL2 INTI", "0;1"), compensation=given.format('<DA D="FL1">0</DA>'))
    scale = kaluza.read_strategy(named, "k", fcs).scales["FL2 INT linear"]
    np.testing.assert_allclose(scale.forward(np.array([1e5])), 1e5 / 1048576)


# ----------------------------------------------------------------------------------------------------- expressions


EVENTS = {"a": {1, 2, 3}, "b": {2, 3, 4}, "b c": {3, 4, 5}, "CD19+": {1, 5}, "d": {6}}
ALL = {1, 2, 3, 4, 5, 6, 7}


def members(expression: kaluza_logic.Expression) -> set[int]:
    if isinstance(expression, kaluza_logic.Name):
        return ALL - EVENTS[expression.gate] if expression.complement else EVENTS[expression.gate]
    parts = [members(term) for term in expression.terms]
    assert len(parts) > 1
    assert not any(
        isinstance(term, kaluza_logic.Joined) and term.operator == expression.operator for term in expression.terms
    )
    return set.intersection(*parts) if expression.operator == "and" else set.union(*parts)


@st.composite
def written(draw: st.DrawFn, depth: int = 3) -> tuple[str, set[int]]:
    """Draw an expression as Kaluza would write it, and its members."""
    kind = draw(st.sampled_from(["name", "name", "not", "and", "or"] if depth else ["name"]))
    if kind == "name":
        label = draw(st.sampled_from(sorted(EVENTS)))
        quote = draw(st.sampled_from(['"{}"', "{}", "[{}]"]))
        return quote.format(label), EVENTS[label]
    if kind == "not":
        text, inside = draw(written(depth - 1))
        return f"({draw(st.sampled_from(['NOT', 'not', '!']))} {text})", ALL - inside
    parts = draw(st.lists(written(depth - 1), min_size=2, max_size=3))
    word = draw(st.sampled_from({"and": [" AND ", " and ", " & "], "or": [" OR ", " or ", " || "]}[kind]))
    joined = set.intersection if kind == "and" else set.union
    return f"({word.join(text for text, _ in parts)})", joined(*(inside for _, inside in parts))


@given(written())
@settings(max_examples=60, deadline=None)
def test_an_expression_means_what_it_says(one: tuple[str, set[int]]) -> None:
    text, inside = one
    assert members(kaluza_logic.parse(text, list(EVENTS))) == inside


def test_and_binds_before_or_and_names_may_hold_operators() -> None:
    assert members(kaluza_logic.parse("a OR b AND d", list(EVENTS))) == {1, 2, 3}
    found = kaluza_logic.parse('"A AND B" OR "it\'s (x)"', ["A AND B", "it's (x)", "A"])
    assert found == kaluza_logic.Joined("or", (kaluza_logic.Name("A AND B"), kaluza_logic.Name("it's (x)")))


@pytest.mark.parametrize(
    "text",
    [
        *("", "(", "a AND", "a b", "NOT", "(a OR b", "a) OR b", '"gone"', "gone AND a", "a AND OR b", "(" * 99 + "a"),
        " OR ".join(["a"] * 300),
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="its expression"):
        kaluza_logic.parse(text, list(EVENTS))


def test_an_expression_of_several_operators_becomes_populations_of_one_each(fcs: FcsFile) -> None:
    gates = (
        gate("L", "low", "FL1 INTI", "0;300")
        + gate("L", "mid", "FL1 INTI", "1;600")
        + gate("L", "high", "FL1 INTI", "300;1024")
        + '<B N="mixed"><ExpressionText>("low" AND (NOT "mid")) OR ("high" AND "mid")</ExpressionText></B>'
        + '<B N="same"><ExpressionText>"low"</ExpressionText></B>'
        + '<B N="below" G="mid" J="0"><ExpressionText>NOT ("low" AND "mid")</ExpressionText></B>'
    )
    strategy = kaluza.read_strategy(zipped(a__xml=analysis(gates)), "k", fcs)
    counts = dict(evaluate(strategy, fcs).counts)
    assert (counts["/low"], counts["/mid"]) == (3, 2)
    assert (counts["/mixed"], counts["/same"], counts["/mid/below"]) == (3, 3, 1)
    assert counts["/mixed (term 1)"] + counts["/mixed (term 2)"] == 3
    kinds = {one.name: one.gate for one in strategy.gates}
    assert isinstance(kinds["mixed"], Boolean)
    assert isinstance(kinds["low"], Rectangle)
    assert [finding.code for finding in strategy.findings] == ["BOOLEAN_SPLIT"]


# ---------------------------------------------------------------------------------------------------- damaged documents


def test_a_damaged_document_is_refused_or_read_as_far_as_it_goes(fcs: FcsFile) -> None:
    whole = analysis(
        gate("P", "p", "FL1 INTI,FL2 INTC", "1,2;500,7;700,600")
        + gate("L", "l", "FL1 INTO", "1,2;500,7", "p")
        + '<E N="e"><A><A M="FL1 INT" S="I"/><A M="FL2 INT" S="I"/></A><P><P O="5,5"/></P>'
        "<Coefficients><D>4</D><D>9</D></Coefficients></E>"
        '<B N="b"><ExpressionText>("p" AND (NOT "e")) OR "l"</ExpressionText></B>',
        constraints='<HistogramDivider LG="l" RG="p"/>',
        compensation="<Compensation><CompensatedDetectors><D>FL1</D><D>FL2</D></CompensatedDetectors>"
        '<AF><DA>0.0003</DA></AF><S><SV S="FL2" C="FL1" V="0.1"/></S></Compensation>',
    ).decode()
    values = list(re.finditer(r'(?<==")[^"]*(?=")|(?<=>)[^<>]+(?=<)', whole))
    rng = random.Random(7)
    wrong = ("", "nan", "inf", "-1", "0", "1e400", "1e-320", "-1e308", "x", "1,5", "1;2", "1,2,3", "\u00e9", "0x1")
    read_at_all = 0
    for _ in range(150):
        text = whole
        for match in sorted(rng.sample(values, rng.randint(1, 3)), key=lambda one: -one.start()):
            text = text[: match.start()] + rng.choice(wrong) + text[match.end() :]
        try:
            evaluate(kaluza.read_strategy(text.encode(), "k", fcs), fcs)
        except InputError:
            continue
        read_at_all += 1
    assert read_at_all > 100


def test_a_chain_of_parents_and_a_flood_of_gates_are_capped(fcs: FcsFile) -> None:
    chain = "".join(gate("L", f"g{i}", "FL1 INTI", "0;9", f"g{i - 1}" if i else "") for i in range(400))
    counts, codes = read(chain, fcs)
    assert 200 < len(counts) < 400
    assert codes == {"GATE_LEFT_OUT"}
    with pytest.raises(InputError, match="10,001 gates, more than the 10,000"):
        kaluza.read_tree(analysis('<L N="a"/>' * 10_001), "k")
