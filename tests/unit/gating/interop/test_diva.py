"""FACSDiva experiments built by hand: regions, derived gates, scales, tubes and worksheets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.errors import InputError
from flowmrd.fcs import Channel, FcsFile, read_fcs, write_fcs
from flowmrd.gating.engine import apply_template
from flowmrd.gating.interop import diva
from flowmrd.gating.interop.as_template import to_template
from flowmrd.gating.interop.document import evaluate
from flowmrd.gating.interop.vendor_scales import diva_biexponential, diva_linear, diva_log
from flowmrd.gating.template import load_template

ALL = (
    '<gate fullname="All Events" type="EventSource_Classifier"><name>All Events</name>'
    "<num_events>{}</num_events></gate>"
)


def region(kind: str, x: str, y: str, points: list[tuple[object, object]]) -> str:
    inner = "".join(f'<point x="{px}" y="{py}"/>' for px, py in points)
    return f'<region xparm="{x}" yparm="{y}" type="{kind}_REGION"><points>{inner}</points></region>'


def gate(
    path: str, body: str, *, kind: str = "Region", parent: str = "All Events", count: int = 0, scaled: str = ""
) -> str:
    flags = "".join(
        f"<is_{axis}_parameter_scaled>{'true' if axis in scaled else 'false'}</is_{axis}_parameter_scaled>"
        f"<is_{axis}_parameter_log>{'true' if axis.upper() in scaled else 'false'}</is_{axis}_parameter_log>"
        f"<{axis}_parameter_scale_value>100</{axis}_parameter_scale_value>"
        for axis in "xy"
    )
    name = path.rpartition("\\")[2]
    return (
        f'<gate fullname="{path}" type="{kind}_Classifier"><name>{name}</name><num_events>{count}</num_events>'
        f"<parent>{parent}</parent>{body}{flags}</gate>"
    )


def experiment(gates: str, *, file: str = "a.fcs", events: int = 400, before: str = "", more: str = "") -> bytes:
    return (
        f"<?xml version='1.0'?>{before}<bdfacs><experiment name='e'>{more}<specimen name='s'><tube name='t'>"
        f"<data_filename>{file}</data_filename><gates>{ALL.format(events)}{gates}</gates>"
        "</tube></specimen></experiment></bdfacs>"
    ).encode()


@pytest.fixture
def fcs(tmp_path: Path) -> FcsFile:
    """Twenty by twenty points on a grid from 25 to 975."""
    side = np.arange(25.0, 1000.0, 50.0)
    x, y = (part.ravel() for part in np.meshgrid(side, side))
    channels = [Channel(index=0, pnn="X", range=262144.0), Channel(index=1, pnn="Y", range=262144.0)]
    write_fcs(tmp_path / "a.fcs", [x.astype(np.float32), y.astype(np.float32)], channels)
    return read_fcs(tmp_path / "a.fcs")


def counted(data: bytes, fcs: FcsFile) -> dict[str, int]:
    return dict(evaluate(diva.read_strategy(data, "d.xml", fcs), fcs).counts)


CORNER = region("RECTANGLE", "X", "Y", [(0, 0), (100, 0), (100, 100), (0, 100)])


def test_rectangles_intervals_and_polygons_hold_what_they_enclose(fcs: FcsFile) -> None:
    gates = (
        gate("All Events\\r", CORNER, count=4)
        + gate("All Events\\r\\i", region("INTERVAL", "X", "", [(30, 40), (100, 40)]), parent="All Events\\r")
        + gate("All Events\\p", region("POLYGON", "X", "Y", [(0, 0), (1000, 0), (0, 1000)]))
    )
    assert counted(experiment(gates), fcs) == {"/r": 4, "/r/i": 2, "/p": 210}


def test_derived_gates_follow_their_inputs(fcs: FcsFile) -> None:
    rest = gate("All Events\\rest", "<input>All Events\\r</input>", kind="RestOf")
    either = gate("All Events\\any", "<input>All Events\\r</input><input>All Events\\rest</input>", kind="JoinOf")
    both = gate("All Events\\no", "<input>All Events\\r</input><input>All Events\\rest</input>", kind="IntersectionOf")
    odd = gate("All Events\\odd", "<input>All Events\\r</input>", kind="Magic")
    data = experiment(gate("All Events\\r", CORNER) + rest + either + both + odd)
    evaluation = evaluate(diva.read_strategy(data, "d.xml", fcs), fcs)
    assert dict(evaluation.counts) == {"/r": 4, "/rest": 396, "/any": 400, "/no": 0}
    assert evaluation.findings[0].message == "Gate odd is left out: Diva's gate type 'Magic' is not known."


def inputs(*paths: str) -> str:
    return "".join(f"<input>All Events\\{path}</input>" if path else "<input>All Events</input>" for path in paths)


# x < 500 (200 events) and y < 300 (120), which share 60; `corner` (4) lies beneath the first.
HALVES = (
    gate("All Events\\x", region("INTERVAL", "X", "", [(0, 9), (500, 9)]))
    + gate("All Events\\y", region("INTERVAL", "Y", "", [(0, 9), (300, 9)]))
    + gate("All Events\\x\\corner", CORNER, parent="All Events\\x")
)
DERIVED = [
    ("AND", ("x", "y"), 60),
    ("Intersect", ("x", "y"), 60),
    ("OR", ("x", "y"), 260),
    ("Join", ("x", "y"), 260),
    ("NOT", ("x",), 200),
    ("Invert", ("x",), 200),
    ("RestOf", ("x", "y"), 140),
    # Populations of different parents: each is met as the population that it is.
    ("OR", ("x\\corner", "y"), 120),
    ("AND", ("x\\corner", "y"), 4),
    ("NOT", ("x\\corner",), 396),
    ("OR", ("x", "y", "x\\corner"), 260),
    ("AND", ("", "y"), 120),
]


@pytest.mark.parametrize(("kind", "of", "count"), DERIVED)
def test_join_intersect_invert_and_rest_of_hold_what_their_inputs_say(
    fcs: FcsFile, kind: str, of: tuple[str, ...], count: int
) -> None:
    # Listed before its inputs: Diva's order is that of the tree as it is shown.
    made = gate("All Events\\made", inputs(*of), kind=kind)
    assert counted(experiment(made + HALVES), fcs)["/made"] == count


def test_derived_gates_lie_within_their_parent_and_nest(fcs: FcsFile) -> None:
    made = (
        gate("All Events\\y\\NOT(x)", inputs("x"), kind="NOT", parent="All Events\\y")
        + gate("All Events\\x|y", inputs("x", "y"), kind="OR")
        + gate("All Events\\neither", inputs("x|y"), kind="NOT")
        + gate("All Events\\x|y\\below", CORNER, parent="All Events\\x|y")
        + gate("All Events\\odd one", inputs("neither", "x|y\\below"), kind="Join")
    )
    assert counted(experiment(HALVES + made), fcs) == {
        "/x": 200,
        "/y": 120,
        "/x/corner": 4,
        "/y/NOT(x)": 60,
        "/x|y": 260,
        "/neither": 140,
        "/x|y/below": 4,
        "/odd one": 144,
    }


def test_derived_gates_stay_derived_in_a_template(fcs: FcsFile, tmp_path: Path) -> None:
    made = (
        gate("All Events\\both", inputs("x", "y"), kind="AND")
        + gate("All Events\\either", inputs("x\\corner", "y"), kind="Join")
        + gate("All Events\\rest", inputs("x", "y"), kind="RestOf")
        + gate("All Events\\y\\other", inputs("x"), kind="NOT", parent="All Events\\y")
    )
    strategy = diva.read_strategy(experiment(made + HALVES), "d.xml", fcs)
    path = tmp_path / "t.toml"
    path.write_text(to_template(strategy, template_id="t", fcs=fcs).text, encoding="utf-8")
    template = load_template(path)
    assert {row.name: row.params for row in template.population if row.method == "boolean"} == {
        "both": {"operator": "and", "populations": ("x", "y")},
        "either": {"operator": "or", "populations": ("corner", "y")},
        "rest": {"operator": "and", "populations": ("!x", "!y")},
        "other": {"operator": "and", "populations": ("!x",)},
    }
    source = EventSource(fcs, resolve_panel(template.channel, fcs.channels, tube="t"), template.channel, spillover=None)
    counts = {"x": 200, "y": 120, "corner": 4, "both": 60, "either": 120, "rest": 140, "other": 60}
    assert apply_template(source, template).counts == counts


@pytest.mark.parametrize(
    ("kind", "of", "why"),
    [
        ("OR", ("", "x"), "it is made of all events, which is no gate"),
        ("NOT", ("",), "it is made of all events, which is no gate"),
        ("AND", ("",), "it is made of all events, which is no gate"),
        ("AND", ("x", "z"), r"it is made of All Events\z, which is not there"),
        ("RestOf", (), "it is made of nothing, which is not there"),
    ],
)
def test_derived_gates_that_are_none_are_left_out(fcs: FcsFile, kind: str, of: tuple[str, ...], why: str) -> None:
    made = gate("All Events\\made", inputs(*of), kind=kind)
    evaluation = evaluate(diva.read_strategy(experiment(HALVES + made), "d.xml", fcs), fcs)
    assert "/made" not in evaluation.counts
    assert [one.message for one in evaluation.findings] == [f"Gate made is left out: {why}."]


def test_derived_gates_that_are_made_of_one_another_are_left_out(fcs: FcsFile) -> None:
    made = gate("All Events\\a", inputs("b"), kind="NOT") + gate("All Events\\b", inputs("a", "x"), kind="OR")
    evaluation = evaluate(diva.read_strategy(experiment(HALVES + made), "d.xml", fcs), fcs)
    assert set(evaluation.counts) == {"/x", "/y", "/x/corner"}
    assert [one.code for one in evaluation.findings] == ["GATE_CIRCLE"]


def test_the_input_of_a_region_is_its_parent(fcs: FcsFile) -> None:
    child = gate("All Events\\y\\c", CORNER + inputs("y"), parent="")
    assert counted(experiment(HALVES + child), fcs)["/y/c"] == 4


def test_quadrants_share_their_cross_and_hold_every_event(fcs: FcsFile) -> None:
    far = 262144
    parts = {
        "Q1": [(500, 500), (0, 500), (0, far), (500, far)],
        "Q2": [(500, 500), (500, far), (far, far), (far, 500)],
        "Q3": [(500, 500), (500, 0), (0, 0), (0, 500)],
        "Q4": [(500, 500), (far, 500), (far, 0), (500, 0)],
    }
    cross = gate("All Events\\$1", region("BINNER", "X", "Y", [(500, 500)]), kind="Composite")
    quads = "".join(gate(f"All Events\\{n}", region("POLYGON", "X", "Y", list(p))) for n, p in parts.items())
    assert counted(experiment(cross + quads), fcs) == {"/Q1": 100, "/Q2": 100, "/Q3": 100, "/Q4": 100}


def test_a_biexponential_axis_counts_in_4096_display_channels_and_a_log_axis_in_decades(fcs: FcsFile) -> None:
    channel = float(diva_biexponential(100.0).forward(np.array([500.0]))[0]) * 4096
    gates = gate("All Events\\b", region("INTERVAL", "X", "", [(0, 0), (channel, 0)]), scaled="xX") + gate(
        "All Events\\l", region("INTERVAL", "X", "", [(math.log10(500), 0), (5.4, 0)]), scaled="X"
    )
    assert counted(experiment(gates), fcs) == {"/b": 200, "/l": 200}


def test_the_scale_value_is_the_reference_value_of_the_logicle_definition() -> None:
    scale = diva_biexponential(2621.44)
    assert pytest.approx((4.5 - 2.0) / 2) == scale.scale.W  # type: ignore[union-attr]
    assert diva_biexponential(0.0).scale.W == 0.0  # type: ignore[union-attr]
    assert diva_biexponential(-1.0).scale.W == 0.0  # type: ignore[union-attr]


def test_what_lies_beyond_an_axis_piles_up_at_its_end() -> None:
    x = np.array([-1e6, 1e6])
    for scale in (diva_linear(), diva_biexponential(100.0), diva_log()):
        low, high = scale.forward(x)
        assert 0.0 < low < 0.25 / 4096 + 1e-12
        assert 4094.0 / 4096 < high < 1.0


def test_gates_in_a_worksheet_are_found_through_the_tube_and_counts_of_another_tube_are_not_counts(
    fcs: FcsFile,
) -> None:
    corner = gate("All Events\\r", CORNER, count=3)
    worksheet = (
        "<acquisition_worksheets><worksheet_template name='W'><data_filename>z.fcs</data_filename>"
        f"<gates>{ALL.format(77)}{corner}</gates></worksheet_template>"
        "</acquisition_worksheets>"
    )
    data = experiment("", more=worksheet).replace(
        b"</data_filename><gates>", b"</data_filename><pref_global_worksheet>W</pref_global_worksheet><gates>"
    )
    # The worksheet's own file name comes first in the text; only the tube's gets the preference.
    data = data.replace(
        b"z.fcs</data_filename><pref_global_worksheet>W</pref_global_worksheet>", b"z.fcs</data_filename>"
    )
    strategy = diva.read_strategy(data, "d.xml", fcs)
    assert [(one.path, one.count) for one in strategy.gates] == [("/r", None)]
    assert strategy.events == 400
    with pytest.raises(InputError, match="the document does not hold"):
        diva.read_strategy(data.replace(b"name='W'", b"name='V'"), "d.xml", fcs)


def test_the_tube_is_found_by_file_then_events_or_asked_for(fcs: FcsFile) -> None:
    gates = gate("All Events\\r", CORNER)
    assert counted(experiment(gates, file="b.fcs"), fcs) == {"/r": 4}
    with pytest.raises(InputError, match="no tube of the experiment is this file"):
        diva.read_strategy(experiment(gates, file="b.fcs", events=5), "d.xml", fcs)
    assert diva.read_strategy(experiment(gates, file="b.fcs", events=5), "d.xml", fcs, tube="s/t").gates
    with pytest.raises(InputError, match="no tube 'u' in the experiment"):
        diva.read_strategy(experiment(gates), "d.xml", fcs, tube="u")


@pytest.mark.parametrize("bad", ["nan", "x", "inf"])
def test_a_vertex_that_is_no_number_leaves_the_gate_and_its_children_out(fcs: FcsFile, bad: str) -> None:
    gates = gate("All Events\\r", region("POLYGON", "X", "Y", [(0, 0), (bad, 1), (1, 1)])) + gate(
        "All Events\\r\\c", CORNER, parent="All Events\\r"
    )
    evaluation = evaluate(diva.read_strategy(experiment(gates), "d.xml", fcs), fcs)
    assert not evaluation.counts
    assert [finding.where for finding in evaluation.findings] == ["/r", "/r/c"]


def test_a_parent_that_is_not_there_and_parents_in_a_circle_are_said(fcs: FcsFile) -> None:
    gates = (
        gate("All Events\\o", CORNER, parent="All Events\\none")
        + gate("a", CORNER, parent="b")
        + gate("b", CORNER, parent="a")
    )
    evaluation = evaluate(diva.read_strategy(experiment(gates), "d.xml", fcs), fcs)
    assert not evaluation.counts
    assert [finding.code for finding in evaluation.findings] == ["GATE_LEFT_OUT", "GATE_CIRCLE"]


def test_entities_and_other_documents_are_refused(fcs: FcsFile) -> None:
    with pytest.raises(InputError, match="document type"):
        diva.read_strategy(experiment("", before='<!DOCTYPE b [<!ENTITY a "x">]>'), "d.xml", fcs)
    with pytest.raises(InputError, match="expected a FACSDiva experiment"):
        diva.read_strategy(b"<Workspace/>", "d.xml", fcs)
