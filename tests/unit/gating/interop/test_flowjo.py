"""FlowJo workspaces built by hand: scales, compensation, samples, complements, booleans, and documents that lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.errors import InputError
from flowmrd.fcs import Channel, FcsFile, read_fcs, write_fcs
from flowmrd.gating.interop import flowjo
from flowmrd.gating.interop.document import evaluate
from flowmrd.gating.interop.vendor_scales import FlowJoLog, binning_bound, flowjo_biex

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
