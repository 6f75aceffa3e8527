"""Gates of other programs on the files they were drawn on, against the counts that those programs stored."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from flowmrd.cli import cli
from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.fcs import FcsFile, Spillover, read_fcs
from flowmrd.foreign import compare_counts, differing, gate_by_document
from flowmrd.gating.engine import apply_template
from flowmrd.gating.gates import Rectangle
from flowmrd.gating.interop import diva, flowjo, kaluza
from flowmrd.gating.interop.as_template import to_template
from flowmrd.gating.interop.document import Evaluation, ForeignStrategy, evaluate
from flowmrd.gating.interop.vendor_scales import BINS, binning_bound
from flowmrd.gating.template import load_template
from flowmrd.reporting.report import describe_cut

DIVA_47333 = {
    "P1": 88871,
    "P2": 88825,
    "P3": 87029,
    "Syto +": 84210,
    "Singlets": 81406,
    "Viable": 80401,
    "CD19+": 16189,
    "PZ": 576,
    "mature B-cells": 15149,
    "Blasts": 359,
    "P4": 20069,
    "Erythropoiese": 19205,
}
FLOWJO = (
    ("workspaces/flowkit_simple_diamond/simple_diamond_example_quad_gate.wsp", "test_data_diamond_01.fcs"),
    ("workspaces/flowkit_simple_diamond/test_data_diamond_asinh_rect.wsp", "test_data_diamond_01.fcs"),
    ("workspaces/flowkit_simple_diamond/test_data_diamond_asinh_rect2.wsp", "test_data_diamond_01.fcs"),
    ("workspaces/flowkit_simple_diamond/test_data_diamond_biex_rect.wsp", "test_data_diamond_01.fcs"),
    ("workspaces/flowkit_simple_line/simple_poly_and_rect.wsp", "data_set_simple_line_100.fcs"),
    ("workspaces/flowkit_simple_line/simple_poly_and_rect_v2_poly50.wsp", "data_set_simple_line_100.fcs"),
    ("workspaces/flowkit_simple_line/single_ellipse_51_events.wsp", "data_set_simple_line_100.fcs"),
    ("workspaces/flowsom_mouse_spleen/gating.wsp", "68983.fcs"),
    ("abscount/CellCounts.wsp", "CellCounts4L-NY071-1.fcs"),
    ("abscount/CellCounts.wsp", "CellCounts4L-NY072-1.fcs"),
)


def gated(reader: object, document: Path, fcs: FcsFile) -> tuple[ForeignStrategy, Evaluation]:
    strategy = reader.read_strategy(document.read_bytes(), document.name, fcs)  # type: ignore[attr-defined]
    return strategy, evaluate(strategy, fcs)


def test_divas_own_counts_of_47333_are_met_within_half_a_percent_and_two_blasts(shared_fcs: Path) -> None:
    fcs = read_fcs(shared_fcs / "ball_mrd_real/47333tubeB10001.fcs")
    strategy, evaluation = gated(diva, shared_fcs / "ball_mrd_real/47333_diva.xml", fcs)
    assert {one.name: one.count for one in strategy.gates} == DIVA_47333
    assert strategy.events == fcs.event_count == 90041
    for one in strategy.gates:
        assert evaluation.counts[one.path] == pytest.approx(one.count, rel=0.005), one.path
    blasts = next(one.path for one in strategy.gates if one.name == "Blasts")
    assert abs(evaluation.counts[blasts] - 359) <= 2


def test_a_file_whose_height_and_width_are_interchanged_is_gated_on_the_values_and_told(shared_fcs: Path) -> None:
    fcs = read_fcs(shared_fcs / "ball_mrd_real/47333tubeB10001.fcs")
    strategy, _ = gated(diva, shared_fcs / "ball_mrd_real/47333_diva.xml", fcs)
    assert [finding.code for finding in strategy.findings] == ["PULSE_COLUMNS_SWAPPED"]
    assert {d.channel for key, d in strategy.dimensions.items() if key.startswith("FSC-H")} == {"FSC-W"}


def test_a_file_whose_height_and_width_are_right_is_left_alone(shared_fcs: Path) -> None:
    folder = shared_fcs / "workspaces/diva_canto"
    fcs = read_fcs(folder / "124500.fcs")
    strategy, evaluation = gated(diva, folder / "PE_2.xml", fcs)
    assert strategy.findings == ()
    assert [one.count for one in strategy.gates] == [17902, 17543, 12334, 1160, 1100]
    bound = binning_bound(strategy, fcs, evaluation.memberships)
    for one in strategy.gates:
        assert one.count is not None
        assert evaluation.counts[one.path] == pytest.approx(one.count, rel=0.005)
        assert abs(evaluation.counts[one.path] - one.count) <= bound[one.path]


def test_the_tube_of_494_agrees_with_another_program_within_half_a_percent(shared_fcs: Path) -> None:
    fcs = read_fcs(shared_fcs / "ball_mrd_real/123991.fcs")
    strategy, evaluation = gated(diva, shared_fcs / "ball_mrd_real/494_diva.xml", fcs)
    with (shared_fcs / "ball_mrd_real/494.counts.csv").open() as stream:
        other = {row["gate"]: int(row["events"]) for row in csv.DictReader(stream)}
    # The worksheet holds no counts of this tube: the zeros it stores are not counts.
    assert {one.count for one in strategy.gates} == {None}
    names = {"Blasts": "blast"}
    for one in strategy.gates:
        theirs = other[names.get(one.name, one.name.casefold())]
        assert evaluation.counts[one.path] == pytest.approx(theirs, rel=0.005), one.path


@pytest.mark.parametrize(("workspace", "file"), FLOWJO)
def test_flowjos_counts_are_met_exactly_by_rectangles_and_within_the_raster_by_the_rest(
    shared_fcs: Path, workspace: str, file: str
) -> None:
    document = shared_fcs / workspace
    fcs = read_fcs(document.parent / file)
    strategy, evaluation = gated(flowjo, document, fcs)
    assert not strategy.findings
    assert strategy.events == fcs.event_count
    bound = binning_bound(strategy, fcs, evaluation.memberships)
    rastered = {one.path for one in strategy.gates if BINS in one.info}
    for one in strategy.gates:
        if one.count is None:
            continue
        exact = isinstance(one.gate, Rectangle) and not any(one.path.startswith(f"{path}/") for path in rastered)
        difference = abs(evaluation.counts[one.path] - one.count)
        assert difference <= (0 if exact else bound[one.path]), one.path
        # Real populations are off by less than one in five hundred; the hundred points on a line are all edge.
        if fcs.event_count > 100:
            assert difference <= max(5, one.count // 500), one.path


@pytest.mark.parametrize(
    ("reader", "document", "file"),
    [
        (flowjo, "workspaces/flowsom_mouse_spleen/gating.wsp", "workspaces/flowsom_mouse_spleen/68983.fcs"),
        (flowjo, "abscount/CellCounts.wsp", "abscount/CellCounts4L-NY071-1.fcs"),
        (diva, "ball_mrd_real/47333_diva.xml", "ball_mrd_real/47333tubeB10001.fcs"),
        (diva, "workspaces/diva_canto/PE_2.xml", "workspaces/diva_canto/124500.fcs"),
    ],
)
def test_a_document_becomes_a_small_template_that_holds_the_same_events(
    shared_fcs: Path, tmp_path: Path, reader: object, document: str, file: str
) -> None:
    fcs = read_fcs(shared_fcs / file)
    strategy, evaluation = gated(reader, shared_fcs / document, fcs)
    converted = to_template(strategy, template_id="t", fcs=fcs)
    assert converted.complete
    assert not [one for one in converted.findings if one.code != "PULSE_COLUMNS_SWAPPED"]
    assert len(converted.text) < 1000 * len(strategy.gates)
    path = tmp_path / "t.toml"
    path.write_text(converted.text, encoding="utf-8")
    template = load_template(path)
    panel = resolve_panel(template.channel, fcs.channels, tube="t")
    assert converted.matrix is not None
    channels, values = converted.matrix
    spillover = Spillover(channels=channels, matrix=values, source="document")
    result = apply_template(EventSource(fcs, panel, template.channel, spillover=spillover), template)
    for place, name in converted.names.items():
        ours, theirs = result.memberships.mask(name), evaluation.memberships.mask(place)
        assert int(np.count_nonzero(ours != theirs)) == 0, name


def test_a_workspace_without_its_files_lists_its_tree_and_counts(shared_fcs: Path) -> None:
    document = shared_fcs / "workspaces/flowjo_8color_counts_only/8_color_ICS.wsp"
    nodes = flowjo.read_tree(document.read_bytes(), document.name)
    assert len(nodes) == 42
    assert len({node.sample for node in nodes}) == 3
    first = nodes[0].sample
    counts = {node.path: node.count for node in nodes if node.sample == first}
    assert counts["/Time"] == 283968
    assert counts["/Time/Singlets/aAmine-/CD3+/CD8+/TNFa+"] == 827


def test_the_kaluza_container_is_read_into_its_whole_tree_with_scales(shared_fcs: Path) -> None:
    document = shared_fcs / "kaluza/example_tubeB8.analysis"
    nodes = kaluza.read_tree(document.read_bytes(), document.name)
    cells = "/Syto +/singlets/viable"
    assert [node.path for node in nodes] == [
        "/Syto +",
        "/Syto +/singlets",
        cells,
        f"{cells}/CD19+",
        f"{cells}/Erythroblasts",
        f"{cells}/CD19+/plasmacells",
        f"{cells}/CD19+/mature B-cells",
        f"{cells}/CD19+/Blasts",
    ]
    assert all(node.gate is not None for node in nodes)
    assert nodes[0].axes == ("FL9 INT", "FS INT")
    assert nodes[0].scales == ("O", "I")
    assert nodes[-1].scales == ("C", "C")


def listed(document: Path, tmp_path: Path) -> list[dict[str, str]]:
    out = tmp_path / "list.csv"
    done = CliRunner().invoke(cli, ["gates", "list", str(document), "--out", str(out)])
    assert done.exit_code == 0, done.output
    with out.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_document_is_listed_by_the_command_line_without_a_file(shared_fcs: Path, tmp_path: Path) -> None:
    rows = listed(shared_fcs / "workspaces/flowjo_8color_counts_only/8_color_ICS.wsp", tmp_path)
    assert len(rows) == 42
    assert len({row["sample"] for row in rows}) == 3
    assert next(row["their_events"] for row in rows if row["path"].endswith("/CD8+/TNFa+")) == "827"
    assert rows[1]["axes"] == "FSC-W × FSC-H"
    rows = listed(shared_fcs / "kaluza/example_tubeB8.analysis", tmp_path)
    assert len(rows) == 8
    assert (rows[0]["axes"], rows[0]["scales"]) == ("FL9 INT × FS INT", "log × linear")
    rows = listed(shared_fcs / "ball_mrd_real/47333_diva.xml", tmp_path)
    assert {row["path"].rpartition("/")[2]: int(row["their_events"]) for row in rows} == DIVA_47333
    assert {row["sample"] for row in rows} == {"47333/tubeB10"}
    assert len(listed(shared_fcs / "gatingml20/gates1.xml", tmp_path)) == 61


def test_the_kaluza_container_on_another_file_says_what_is_missing(shared_fcs: Path) -> None:
    fcs = read_fcs(shared_fcs / "instruments/Beckman Coulter - Gallios.LMD")
    _, evaluation = gated(kaluza, shared_fcs / "kaluza/example_tubeB8.analysis", fcs)
    assert not evaluation.counts
    codes = [finding.code for finding in evaluation.findings]
    assert codes[0] == "OTHER_FILE"
    assert codes.count("GATE_LEFT_OUT") == 8


def test_rectangles_of_a_workspace_are_drawn_on_the_display_scale_and_described_in_channel_values(
    shared_fcs: Path,
) -> None:
    folder = shared_fcs / "workspaces/flowsom_mouse_spleen"
    result = gate_by_document(folder / "68983.fcs", folder / "gating.wsp").result
    panel = next(one for one in result.panels if one.parent == "NK1_1-")
    assert (panel.x.marker, panel.x.channel, panel.x.transform["kind"]) == ("CD19", "PE-Cy5-A", "biex")
    assert all(np.all((gate.outline[0] > panel.x.lo) & (gate.outline[0] < panel.x.hi)) for gate in panel.gates)
    cuts = {gate.population: describe_cut(gate.gate, {}) for gate in result.gates}
    assert cuts["NK1_1+"] == "NK1/1 2,280 to 113,000, FSC-A 37,600 to 153,000"
    assert cuts["CD8 T cells"] == "CD4 −425 to 410, CD8 683 to 59,200"
    assert cuts["Lymphocytes"] == "polygon of 12 vertices on FSC-A × SSC-A"


def test_a_channel_on_two_scales_has_two_axes_with_names_of_their_own(shared_fcs: Path) -> None:
    folder = shared_fcs / "ball_mrd_real"
    result = gate_by_document(folder / "47333tubeB10001.fcs", folder / "47333_diva.xml").result
    markers = {axis.marker for panel in result.panels for axis in (panel.x, panel.y)}
    assert {"CD19", "CD19, log"} <= markers
    assert "CD19, log" in result.markers


def test_a_channel_with_and_without_compensation_has_two_axes_too(shared_fcs: Path) -> None:
    folder = shared_fcs / "gatingml20"
    result = gate_by_document(folder / "set_1/data1.fcs", folder / "gates1.xml", panels=False).result
    named = {"CD4 FITC", "CD4 FITC, compensated by FCS", "CD4 FITC, logicle", "CD4 FITC, logicle 2"}
    assert named <= set(result.markers)


def test_counts_that_differ_are_drawn_and_the_file_is_no_pass(shared_fcs: Path, tmp_path: Path) -> None:
    folder = shared_fcs / "workspaces/flowsom_mouse_spleen"
    text = (folder / "gating.wsp").read_text(encoding="utf-8", errors="surrogateescape")
    document = tmp_path / "gating.wsp"
    changed = re.sub(r'(<Population name="T cells"[^>]*count=")\d+"', r'\g<1>9999"', text)
    document.write_text(changed, encoding="utf-8", errors="surrogateescape")
    fcs = read_fcs(folder / "68983.fcs")
    run = gate_by_document(folder / "68983.fcs", document, panels=False)
    assert run.result.qc == "PASS"
    result = differing(run, fcs, compare_counts(run, fcs))
    assert result.qc == "WARN"
    assert [one.message for one in result.findings if one.code == "COUNT_DIFFERS"] == [
        "T cells: 10,747 events here, 9,999 in gating.wsp."
    ]
    assert [(panel.parent, [gate.population for gate in panel.gates]) for panel in result.panels] == [
        ("NK1_1-", ["B cells", "T cells"])
    ]
