"""FlowJo workspaces built by hand: scales, compensation, samples, complements, booleans, and documents that lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.cytometry.transforms import Hyperlog, Logicle
from flowmrd.errors import InputError
from flowmrd.fcs import Channel, FcsFile, read_fcs, write_fcs
from flowmrd.gating.engine import apply_template
from flowmrd.gating.interop import flowjo
from flowmrd.gating.interop.as_template import to_template
from flowmrd.gating.interop.document import evaluate
from flowmrd.gating.interop.vendor_scales import FlowJoLog, binning_bound, flowjo_biex
from flowmrd.gating.template import load_template

SPACES = (
    'xmlns:gating="http://www.isac-net.org/std/Gating-ML/v2.0/gating" '
    'xmlns:transforms="http://www.isac-net.org/std/Gating-ML/v2.0/transformations" '
    'xmlns:data-type="http://www.isac-net.org/std/Gating-ML/v2.0/datatypes"'
)
LINEAR = '<transforms:linear transforms:minRange="0" transforms:maxRange="1000" gain="1">{}</transforms:linear>'
PARAMETER = '<data-type:parameter data-type:name="{}"/>'


def axis(name: str, sides: str = "") -> str:
    inner = f'<data-type:fcs-dimension data-type:name="{name}"/>'
    return f"<gating:dimension {sides}>{inner}</gating:dimension>"


def vertex(*values: object) -> str:
    cells = "".join(f'<gating:coordinate data-type:value="{value}"/>' for value in values)
    return f"<gating:vertex>{cells}</gating:vertex>"


def population(name: str, gate: str, inner: str = "", count: int = -1) -> str:
    below = f"<Subpopulations>{inner}</Subpopulations>" if inner else ""
    return f'<Population name="{name}" owningGroup="" count="{count}"><Gate>{gate}</Gate>{below}</Population>'


def rectangle(*axes: str, inside: int = 1) -> str:
    return f'<gating:RectangleGate eventsInside="{inside}">{"".join(axes)}</gating:RectangleGate>'


def workspace(populations: str, *, name: str = "a.fcs", extra: str = "", before: str = "", scales: str = "") -> bytes:
    scales = scales or LINEAR.format(PARAMETER.format("X")) + LINEAR.format(PARAMETER.format("Y"))
    return f"""<?xml version="1.0"?>{before}
    <Workspace version="20.0" {SPACES}><SampleList><Sample>
    <DataSet uri="file:/C:/data/a%20copy.fcs" sampleID="7"/>{extra}
    <Transformations>{scales}</Transformations>
    <Keywords><Keyword name="$FIL" value="original.fcs"/></Keywords>
    <SampleNode name="{name}" count="400" sampleID="7"><Subpopulations>{populations}</Subpopulations></SampleNode>
    </Sample></SampleList></Workspace>""".encode()


@pytest.fixture
def fcs(tmp_path: Path) -> FcsFile:
    """Twenty by twenty points on a grid from 25 to 975."""
    side = np.arange(25.0, 1000.0, 50.0)
    x, y = (part.ravel() for part in np.meshgrid(side, side))
    channels = [Channel(index=0, pnn="X", range=1024.0), Channel(index=1, pnn="Y", range=1024.0)]
    write_fcs(tmp_path / "a.fcs", [x.astype(np.float32), y.astype(np.float32)], channels)
    return read_fcs(tmp_path / "a.fcs")


def counted(data: bytes, fcs: FcsFile) -> dict[str, int]:
    return dict(evaluate(flowjo.read_strategy(data, "w.wsp", fcs), fcs).counts)


def test_a_range_is_closed_below_and_open_above_and_a_missing_side_is_open(fcs: FcsFile) -> None:
    gate = rectangle(axis("X", 'gating:min="25" gating:max="75"'), axis("Y", 'gating:min="500"'))
    assert counted(workspace(population("p", gate)), fcs) == {"/p": 10}


def test_events_outside_a_gate_are_the_complement_of_what_was_drawn(fcs: FcsFile) -> None:
    gate = rectangle(axis("X", 'gating:max="75"'), inside=0)
    assert counted(workspace(population("p", gate, count=380)), fcs) == {"/p (drawn)": 20, "/p": 380}


def test_boolean_nodes_join_populations_by_their_paths(fcs: FcsFile) -> None:
    low = population("low", rectangle(axis("X", 'gating:max="500"')))
    near = population("near", rectangle(axis("Y", 'gating:max="100"')))
    depend = '<Dependents><Dependent name="low"/><Dependent name="near"/></Dependents>'
    nodes = (
        f'<AndNode name="and" count="20">{depend}</AndNode><OrNode name="or" count="220">{depend}</OrNode>'
        '<NotNode name="not" count="200"><Dependents><Dependent name="low"/></Dependents></NotNode>'
    )
    found = counted(workspace(low + near + nodes), fcs)
    assert found == {"/low": 200, "/near": 40, "/and": 20, "/or": 220, "/not": 200}


def test_booleans_in_a_circle_and_their_children_are_left_out_and_said(fcs: FcsFile) -> None:
    a = '<NotNode name="a"><Dependents><Dependent name="b"/></Dependents></NotNode>'
    b = '<NotNode name="b"><Dependents><Dependent name="a"/></Dependents></NotNode>'
    evaluation = evaluate(flowjo.read_strategy(workspace(a + b), "w.wsp", fcs), fcs)
    assert not evaluation.counts
    assert [finding.code for finding in evaluation.findings] == ["GATE_CIRCLE"]


def test_names_that_repeat_among_siblings_get_paths_of_their_own(fcs: FcsFile) -> None:
    twice = population("p", rectangle(axis("X", 'gating:max="75"'))) * 2
    assert list(counted(workspace(twice), fcs)) == ["/p", "/p #2"]


@pytest.mark.parametrize("bad", ["nan", "inf", "x", ""])
def test_a_vertex_that_is_no_number_leaves_the_gate_out_and_keeps_the_rest(fcs: FcsFile, bad: str) -> None:
    corners = vertex(0, 0) + vertex(bad, 500) + vertex(500, 0)
    polygon = f"<gating:PolygonGate>{axis('X')}{axis('Y')}{corners}</gating:PolygonGate>"
    good = population("good", rectangle(axis("X", 'gating:max="75"')))
    evaluation = evaluate(flowjo.read_strategy(workspace(population("bad", polygon) + good), "w.wsp", fcs), fcs)
    assert dict(evaluation.counts) == {"/good": 20}
    assert evaluation.findings[0].message.startswith("Gate bad is left out: ")


def test_what_needs_a_gate_that_is_left_out_says_so_and_the_strategy_is_incomplete(fcs: FcsFile) -> None:
    curly = f"<gating:CurlyQuad>{axis('X')}{axis('Y')}</gating:CurlyQuad>"
    either = '<OrNode name="either"><Dependents><Dependent name="curly"/><Dependent name="good"/></Dependents></OrNode>'
    good = population("good", rectangle(axis("X", 'gating:max="75"')))
    strategy = flowjo.read_strategy(workspace(population("curly", curly) + good + either), "w.wsp", fcs)
    evaluation = evaluate(strategy, fcs)
    assert dict(evaluation.counts) == {"/good": 20}
    assert strategy.unread == {"/curly"}
    assert [one.message for one in evaluation.findings] == [
        "Gate curly is left out: it is a curly quadrant, whose curve FlowJo does not publish; draw it as a quadrant.",
        "Gate either is left out: it needs /curly, which is left out.",
    ]


def test_an_ellipse_is_the_one_of_its_foci_and_its_farthest_edge_point(fcs: FcsFile) -> None:
    def at(value: float) -> float:
        return value / 1000.0 * 256.0

    foci = vertex(at(380), at(500)) + vertex(at(620), at(500))
    edge = vertex(at(300), at(500)) + vertex(at(700), at(500)) + vertex(at(500), at(661)) + vertex(at(500), at(339))
    shape = (
        f"<gating:EllipsoidGate>{axis('X')}{axis('Y')}<gating:foci>{foci}</gating:foci>"
        f"<gating:edge>{edge}</gating:edge></gating:EllipsoidGate>"
    )
    x, y = fcs.column(0), fcs.column(1)
    expected = int(np.count_nonzero(((x - 500) / 200) ** 2 + ((y - 500) / 160) ** 2 <= 1))
    assert counted(workspace(population("e", shape)), fcs) == {"/e": expected}


def test_a_prefix_means_the_samples_matrix_and_its_absence_raw_values(fcs: FcsFile) -> None:
    def row(dye: str, to_x: float, to_y: float) -> str:
        cells = "".join(
            f'<transforms:coefficient data-type:parameter="{name}" transforms:value="{value}"/>'
            for name, value in (("X", to_x), ("Y", to_y))
        )
        return f'<transforms:spillover data-type:parameter="{dye}">{cells}</transforms:spillover>'

    matrix = (
        '<transforms:spilloverMatrix prefix="Comp-" suffix="" name="M">'
        f"{row('X', 1, 0.5)}{row('Y', 0, 1)}</transforms:spilloverMatrix>"
    )
    pops = population("comp", rectangle(axis("Comp-Y", 'gating:min="0"'))) + population(
        "raw", rectangle(axis("Y", 'gating:min="0"'))
    )
    expected = int(np.count_nonzero(fcs.column(1) - 0.5 * fcs.column(0) >= 0))
    assert counted(workspace(pops, extra=matrix), fcs) == {"/comp": expected, "/raw": 400}


def test_the_sample_is_found_by_name_location_or_fil_or_asked_for(fcs: FcsFile) -> None:
    gate = population("p", rectangle(axis("X", 'gating:max="75"')))
    assert counted(workspace(gate, name="A.FCS"), fcs) == {"/p": 20}
    with pytest.raises(InputError, match="no sample of the workspace is this file"):
        flowjo.read_strategy(workspace(gate, name="other.fcs"), "w.wsp", fcs)
    chosen = flowjo.read_strategy(workspace(gate, name="other.fcs"), "w.wsp", fcs, tube="other.fcs")
    assert [one.path for one in chosen.gates] == ["/p"]
    with pytest.raises(InputError, match="no sample 'none' in the workspace"):
        flowjo.read_strategy(workspace(gate), "w.wsp", fcs, tube="none")


def test_a_channel_that_the_file_lacks_is_named_once_and_the_rest_counted(fcs: FcsFile) -> None:
    pops = population("gone", rectangle(axis("Z", 'gating:max="75"'))) + population(
        "here", rectangle(axis("X", 'gating:max="75"'))
    )
    evaluation = evaluate(flowjo.read_strategy(workspace(pops), "w.wsp", fcs), fcs)
    assert dict(evaluation.counts) == {"/here": 20}
    assert evaluation.findings[0].message == "Gate gone is left out: the file has no channel 'Z'; it has X, Y."


def test_a_scale_without_a_definition_leaves_polygons_out_but_not_rectangles(fcs: FcsFile) -> None:
    scales = f"<transforms:miltenyi>{PARAMETER.format('X')}</transforms:miltenyi>" + LINEAR.format(
        PARAMETER.format("Y")
    )
    corners = vertex(0, 0) + vertex(500, 500) + vertex(500, 0)
    polygon = f"<gating:PolygonGate>{axis('X')}{axis('Y')}{corners}</gating:PolygonGate>"
    pops = population("poly", polygon) + population("rect", rectangle(axis("X", 'gating:max="75"')))
    evaluation = evaluate(flowjo.read_strategy(workspace(pops, scales=scales), "w.wsp", fcs), fcs)
    assert dict(evaluation.counts) == {"/rect": 20}
    assert "'miltenyi' has no published definition" in evaluation.findings[0].message


def test_a_workspace_of_flowjo_9_shows_its_tree(fcs: FcsFile) -> None:
    data = (
        b'<!DOCTYPE Workspace><Workspace version="3.0"><Samples><Sample sampleID="1">'
        b'<SampleNode nodeName="a.fcs" count="10"><Population nodeName="p" count="4"><PolyRect/>'
        b'<Population nodeName="q" count="2"/></Population></SampleNode></Sample></Samples></Workspace>'
    )
    assert [(node.path, node.count) for node in flowjo.read_tree(data, "old.xml")] == [("/p", 4), ("/p/q", 2)]
    evaluation = evaluate(flowjo.read_strategy(data, "old.xml", fcs), fcs)
    assert not evaluation.counts
    assert "save the workspace again with FlowJo 10" in evaluation.findings[0].message


def test_entities_and_other_documents_are_refused(fcs: FcsFile) -> None:
    bomb = workspace("", before='<!DOCTYPE w [<!ENTITY a "aaaa">]>')
    with pytest.raises(InputError, match="document type"):
        flowjo.read_strategy(bomb, "w.wsp", fcs)
    with pytest.raises(InputError, match="expected a FlowJo workspace"):
        flowjo.read_tree(b"<bdfacs/>", "w.wsp")


@pytest.mark.parametrize("width", [-1.0, -10.0, -100.0, -1000.0])
@pytest.mark.parametrize(("top", "positive", "negative"), [(262144.0, 4.418539922, 0.0), (100000.0, 4.0, 1.0)])
def test_the_biexponential_is_flowjos_table(width: float, top: float, positive: float, negative: float) -> None:
    from flowkit._models.transforms._wsp_transforms import WSPBiexTransform

    theirs = WSPBiexTransform(negative=negative, width=width, positive=positive, max_value=top)
    ours = flowjo_biex(top=top, positive=positive, negative=negative, width=width)
    x = np.concatenate([-np.geomspace(0.1, top, 200)[::-1], [0.0], np.geomspace(0.1, 2 * top, 200)])
    np.testing.assert_allclose(ours.forward(x) * 4096, theirs.apply(x), rtol=0, atol=1e-7)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
@settings(max_examples=30, deadline=None)
def test_flowjos_scales_never_decrease(values: list[float]) -> None:
    x = np.sort(np.array(values))
    for scale in (
        flowjo_biex(top=262144.0, positive=4.4, negative=0.0, width=-100.0),
        FlowJoLog(offset=1.0, decades=5.0),
    ):
        assert np.all(np.diff(scale.forward(x)) >= 0)


def test_the_bound_counts_the_events_within_a_channel_of_an_edge(fcs: FcsFile) -> None:
    corners = vertex(0, 0) + vertex(502, 0) + vertex(502, 1000) + vertex(0, 1000)
    gate = f'<gating:PolygonGate gateResolution="20">{axis("X")}{axis("Y")}{corners}</gating:PolygonGate>'
    inner = population("inner", rectangle(axis("X", 'gating:max="400"')))
    strategy = flowjo.read_strategy(workspace(population("p", gate, inner)), "w.wsp", fcs)
    bound = binning_bound(strategy, fcs, evaluate(strategy, fcs).memberships)
    # A channel is 50 wide: columns 475 and 525 at the side, and the outer rows, columns of the grid lie within one.
    x, y = fcs.column(0), fcs.column(1)
    near = (np.abs(x - 502) <= 50) | (x <= 50) | (y <= 50) | (y >= 950)
    assert bound["/p"] == int(np.count_nonzero(near & (x <= 552)))
    assert bound["/p/inner"] == int(np.count_nonzero(near & (x < 400)))


# ------------------------------------------------------------------------------------------------------------- FlowJo 9


def old_shape(
    kind: str, *corners: tuple[float, float], axes: str = 'xAxisName="X" yAxisName="Y"', more: str = ""
) -> str:
    cells = "".join(f'<Vertex x="{x}" y="{y}"/>' for x, y in corners)
    return f"<PolygonGate><{kind} {axes} {more}><Polygon>{cells}</Polygon></{kind}></PolygonGate>"


def old_population(name: str, gate: str, inner: str = "", count: int = -1) -> str:
    return f'<Population nodeName="{name}" count="{count}">{gate}{inner}</Population>'


def old_boolean(specification: str, *paths: str) -> str:
    cells = "".join(f"<String>{path}</String>" for path in paths)
    body = f"<GatePaths><StringArray>{cells}</StringArray></GatePaths>"
    return f'<BooleanGate specification="{specification}">{body}</BooleanGate>'


PLAIN = '<Parameter name="X" range="1000" highValue="1000"/><Parameter name="Y" range="1000" highValue="1000"/>'


def old_workspace(
    populations: str, *, parameters: str = PLAIN, more: str = "", sample: str = "", apart: bool = False
) -> bytes:
    tree = f'nodeName="a.fcs" count="400" sampleID="3">{populations}'
    inside = "" if apart else f"<SampleNode {tree}</SampleNode>"
    outside = f"<SampleAnalyses><Sample {tree}</Sample></SampleAnalyses>" if apart else ""
    return (
        f'<!DOCTYPE Workspace><Workspace version="3.0">{more}<Samples><Sample sampleID="3" {sample}>'
        f"<Keywords><Keyword name='$FIL' value='a.fcs'/></Keywords>{parameters}{inside}</Sample></Samples>"
        f"{outside}</Workspace>"
    ).encode()


@pytest.mark.parametrize("apart", [False, True])
def test_gates_of_flowjo_9_are_read_in_linear_values(fcs: FcsFile, apart: bool) -> None:  # noqa: FBT001
    x, y = fcs.column(0), fcs.column(1)
    box = old_shape("PolyRect", (50, 100), (500, 100), (500, 700), (50, 700))
    pops = old_population(
        "box",
        box,
        old_population("range", old_shape("Range", (200, 0), (300, 0), axes='xAxisName="Y"'))
        + old_population("not", old_shape("Polygon", (0, 0), (400, 0), (400, 400), more='negated="1"'))
        + old_population("ellipse", old_shape("Ellipse", (100, 400), (500, 400), (300, 550), (300, 250))),
    )
    data = old_workspace(pops, apart=apart)
    inside = (x >= 50) & (x < 500) & (y >= 100) & (y < 700)
    counts = counted(data, fcs)
    assert counts["/box"] == np.count_nonzero(inside)
    assert counts["/box/range"] == np.count_nonzero(inside & (y >= 200) & (y < 300))
    assert counts["/box/not"] == np.count_nonzero(inside & ~((x < 400) & (y <= x)))
    assert counts["/box/ellipse"] == np.count_nonzero(inside & (((x - 300) / 200) ** 2 + ((y - 400) / 150) ** 2 <= 1))
    strategy = flowjo.read_strategy(data, "old.xml", fcs)
    assert [finding.code for finding in strategy.findings] == ["FLOWJO_9"]
    assert strategy.events == 400


@pytest.mark.parametrize("swapped", [False, True])
def test_an_edge_of_flowjo_9_is_straight_on_the_calibration_table(fcs: FcsFile, swapped: bool) -> None:  # noqa: FBT001
    channels = np.arange(257)
    values = np.sinh((channels - 40) / 30.0) * 2.0
    pairs = zip(values, channels, strict=True) if swapped else zip(channels, values, strict=True)
    table = ",".join(f"{a:.9g},{b:.9g}" for a, b in pairs)
    corners = ((20, 22), (900, 30), (200, 950))
    parameters = PLAIN.replace('name="X"', 'name="X" calibrationIndex="1" log="1"')
    parameters = parameters.replace('name="Y"', 'name="Y" calibrationIndex="1" log="1"')
    pops = old_population("p", old_shape("Polygon", *corners))
    tables = f"<CalibrationTables><Table>{table}</Table></CalibrationTables>"
    places = [np.interp(fcs.column(i), values, channels) for i in (0, 1)]
    edges = [tuple(np.interp(corner, values, channels)) for corner in corners]
    inside = np.ones(fcs.event_count, np.bool_)
    for (x0, y0), (x1, y1) in zip(edges, [*edges[1:], edges[0]], strict=True):
        inside &= (x1 - x0) * (places[1] - y0) - (y1 - y0) * (places[0] - x0) >= 0
    assert counted(old_workspace(pops, parameters=parameters, more=tables), fcs) == {"/p": np.count_nonzero(inside)}
    straight = counted(old_workspace(pops), fcs)["/p"]
    assert straight != np.count_nonzero(inside)


def test_a_linear_axis_of_18_bits_is_stored_on_4096_channels_by_flowjo_9(fcs: FcsFile) -> None:
    parameters = PLAIN.replace('range="1000" highValue="1000"', 'range="4096" highValue="4096"')
    wide = replace(fcs, channels=tuple(replace(channel, range=8192.0) for channel in fcs.channels))
    pops = old_population("p", old_shape("Range", (100, 0), (300, 0), axes='xAxisName="X"'))
    expected = np.count_nonzero((fcs.column(0) >= 200) & (fcs.column(0) < 600))
    assert counted(old_workspace(pops, parameters=parameters), wide) == {"/p": expected}
    far = old_population("p", old_shape("Range", (100, 0), (6000, 0), axes='xAxisName="X"'))
    assert counted(old_workspace(far, parameters=parameters), wide) == {"/p": np.count_nonzero(fcs.column(0) >= 100)}


def test_boolean_gates_of_flowjo_9_nest_and_name_paths(fcs: FcsFile) -> None:
    x, y = fcs.column(0), fcs.column(1)

    def band(name: str, low: float, high: float, side: str) -> str:
        return old_population(name, old_shape("Range", (low, 0), (high, 0), axes=f'xAxisName="{side}"'))

    top = old_population(
        "T",
        old_shape("Range", (100, 0), (900, 0), axes='xAxisName="X"'),
        band("A", 200, 600, "X")
        + band("B", 300, 800, "Y")
        + old_population("both", old_boolean("G0&G1", "/A", "T/B"))
        + old_population("odd", old_boolean("!G2 & !(G0 &amp; G1)", "/A", "/B", "//C").replace(" & ", " &amp; "))
        + old_population("lost", old_boolean("G0 | G5", "/A")),
    )
    data = old_workspace(top + band("C", 0, 250, "Y")).replace(b"G0&G1", b"G0&amp;G1")
    evaluation = evaluate(flowjo.read_strategy(data, "old.xml", fcs), fcs)
    t = (x >= 100) & (x < 900)
    a, b, c = t & (x >= 200) & (x < 600), t & (y >= 300) & (y < 800), y < 250
    assert evaluation.counts["/T/both"] == np.count_nonzero(a & b)
    assert evaluation.counts["/T/odd"] == np.count_nonzero(t & ~c & ~(a & b))
    messages = [one.message for one in evaluation.findings]
    assert "Gate lost is left out: 'G5' is none of the 1 populations that it lists." in messages


def test_a_matrix_of_flowjo_9_compensates_the_names_in_brackets(fcs: FcsFile) -> None:
    rows = "".join(
        f'<Channel name="{dye}">'
        + "".join(f'<ChannelValue name="{name}" value="{v}"/>' for name, v in zip("XY", row, strict=True))
        + "</Channel>"
        for dye, row in (("X", (1, 0.5)), ("Y", (0, 1)))
    )
    matrices = (
        '<CompensationMatrices><CompensationMatrix name="M" prefix="&lt;" suffix="&gt;">'
        f"{rows}</CompensationMatrix></CompensationMatrices>"
    )
    pops = old_population("comp", old_shape("Range", (0, 0), (9e9, 0), axes='xAxisName="&lt;Y&gt;"'))
    data = old_workspace(pops, more=matrices, sample='compensationID="1"')
    expected = np.count_nonzero(fcs.column(1) - 0.5 * fcs.column(0) >= 0)
    assert counted(data, fcs) == {"/comp": expected}
    # With another id the file's own compensation is meant, and this file has none.
    assert counted(old_workspace(pops, more=matrices, sample='compensationID="-1"'), fcs) == {"/comp": 400}


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("0,1,1", "is not a list of pairs"),
        ("0,a,1,b", "is not a list of numbers"),
        ("0,5,1,4,2,3", "does not rise"),
    ],
)
def test_a_calibration_table_that_makes_no_sense_leaves_its_polygons_out(fcs: FcsFile, table: str, why: str) -> None:
    parameters = PLAIN.replace('name="X"', 'name="X" calibrationIndex="1"')
    pops = old_population("p", old_shape("Polygon", (0, 0), (9, 0), (9, 9))) + old_population(
        "r", old_shape("Range", (0, 0), (75, 0), axes='xAxisName="X"')
    )
    data = old_workspace(
        pops, parameters=parameters, more=f"<CalibrationTables><Table>{table}</Table></CalibrationTables>"
    )
    evaluation = evaluate(flowjo.read_strategy(data, "old.xml", fcs), fcs)
    assert dict(evaluation.counts) == {"/r": 20}
    assert why in evaluation.findings[0].message


# ----------------------------------------------------------------------------------------------- other scales, and time


def test_flowjos_hyperlog_is_that_of_gating_ml(fcs: FcsFile) -> None:
    scales = "".join(
        f'<transforms:hyperlog transforms:length="256" transforms:T="1000" transforms:W="0.5" transforms:M="4" '
        f'transforms:A="0.2">{PARAMETER.format(name)}</transforms:hyperlog>'
        for name in "XY"
    )
    corners = vertex(30, 30) + vertex(900, 60) + vertex(200, 900)
    polygon = f"<gating:PolygonGate>{axis('X')}{axis('Y')}{corners}</gating:PolygonGate>"
    strategy = flowjo.read_strategy(workspace(population("p", polygon), scales=scales), "w.wsp", fcs)
    assert strategy.scales["X"] == Hyperlog(T=1000.0, W=0.5, M=4.0, A=0.2)
    scale = Hyperlog(T=1000.0, W=0.5, M=4.0, A=0.2)
    x, y = (scale.forward(fcs.column(i)) for i in (0, 1))
    points = scale.forward(np.array([[30, 30], [900, 60], [200, 900]], np.float64))
    inside = np.ones(x.size, np.bool_)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
    assert evaluate(strategy, fcs).counts == {"/p": np.count_nonzero(inside)}


def test_a_logicle_with_small_letters_is_read(fcs: FcsFile) -> None:
    letters = 'transforms:T="1000" transforms:w="0.5" transforms:m="4" transforms:a="0"'
    scales = f"<transforms:logicle {letters}>{{}}</transforms:logicle>"
    strategy = flowjo.read_strategy(
        workspace(
            population("p", rectangle(axis("X", 'gating:max="75"'))), scales=scales.format(PARAMETER.format("X"))
        ),
        "w.wsp",
        fcs,
    )
    assert strategy.scales["X"] == Logicle(T=1000.0, W=0.5, M=4.0)


@pytest.mark.parametrize(("gain", "second"), [("0.02", 0.02), ("1", 0.01)])
def test_flowjos_clock_is_stretched_by_the_gain_of_its_scale(tmp_path: Path, gain: str, second: float) -> None:
    """FlowJo stretches time to `$BTIM` … `$ETIM`; the gain of its scale is what a tick lasts then."""
    path = tmp_path / "a.fcs"
    ticks = np.arange(400.0)
    channels = [Channel(index=0, pnn="Time", range=400.0, gain=0.01), Channel(index=1, pnn="Y", range=1000.0)]
    write_fcs(path, [ticks, ticks], channels, keywords={"$TIMESTEP": "0.01"}, datatype="D")
    fcs = read_fcs(path)
    scales = (
        f'<transforms:linear transforms:minRange="0" transforms:maxRange="8" gain="{gain}">{{}}</transforms:linear>'
    )
    scales = scales.format(PARAMETER.format("Time")) + LINEAR.format(PARAMETER.format("Y"))
    corners = vertex(0, 0) + vertex(1.5, 0) + vertex(1.5, 900) + vertex(0, 900)
    polygon = f"<gating:PolygonGate>{axis('Time')}{axis('Y')}{corners}</gating:PolygonGate>"
    pops = population("r", rectangle(axis("Time", 'gating:min="0.5" gating:max="2"'))) + population("p", polygon)
    data = workspace(pops, scales=scales)
    time = ticks * second
    expected = {"/r": np.count_nonzero((time > 0.4999) & (time < 1.9999)), "/p": np.count_nonzero(time < 1.4999)}
    assert counted(data, fcs) == expected
    strategy = flowjo.read_strategy(data, "w.wsp", fcs)
    path = tmp_path / "t.toml"
    path.write_text(to_template(strategy, template_id="t", fcs=fcs).text, encoding="utf-8")
    template = load_template(path)
    source = EventSource(fcs, resolve_panel(template.channel, fcs.channels, tube="t"), template.channel, spillover=None)
    assert list(apply_template(source, template).counts.values()) == list(expected.values())
