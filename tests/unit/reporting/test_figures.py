"""Figures: valid plotly, all events drawn, gates labelled, axes in channel values."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.cytometry.transforms import make_transform
from flowmrd.records import AcquisitionResult, Axis, GateShape, PlotPanel, TimeSeries
from flowmrd.reporting import figures
from flowmrd.reporting.figures import (
    MARKERS_MAX,
    flagged_spans,
    gate_pieces,
    gate_placements,
    log_bytes,
    medians_figure,
    panel_figure,
    plot_text,
    rate_figure,
    thinned_labels,
)

Results = tuple[AcquisitionResult, ...]


def decoded(spec: Mapping[str, str]) -> NDArray[Any]:
    values = np.frombuffer(base64.b64decode(spec["bdata"]), spec["dtype"])
    return values.reshape([int(part) for part in spec["shape"].split(",")]) if "shape" in spec else values


def traces(figure: Mapping[str, Any], role: str) -> list[Mapping[str, Any]]:
    return [trace for trace in figure["data"] if trace["meta"] == role]


def panels(results: Results) -> list[PlotPanel]:
    return [panel for result in results for panel in result.panels]


def test_every_figure_is_valid_plotly(results: Results) -> None:
    from plotly.graph_objects import Figure

    for result in results:
        drawn = [panel_figure(panel) for panel in result.panels]
        if result.time is not None:
            rate = rate_figure(result.time)
            assert rate is not None
            drawn += [rate, medians_figure(result.time, {}, {})]
        for figure in drawn:
            # The constructor raises on any property or value that plotly does not know.
            assert len(Figure(figure).data) == len(figure["data"])


def test_figures_are_plain_json_and_the_same_each_time(results: Results) -> None:
    panel = results[0].panels[5]
    assert json.dumps(panel_figure(panel), allow_nan=False) == json.dumps(panel_figure(panel), allow_nan=False)


def test_the_density_shows_every_occupied_bin_where_its_events_are(results: Results) -> None:
    for panel in panels(results):
        drawn = traces(panel_figure(panel), "density")
        if not drawn:
            assert not panel.density.any()
            continue
        (density,) = drawn
        z = decoded(density["z"])
        bins = round((panel.x.hi - panel.x.lo) / density["dx"])
        counts = panel.density.reshape(bins, 256 // bins, bins, 256 // bins).sum(axis=(1, 3))
        left = round((density["x0"] - panel.x.lo) / density["dx"] - 0.5)
        low = round((density["y0"] - panel.y.lo) / density["dy"] - 0.5)
        shown = np.zeros_like(counts, dtype=np.bool_)
        shown[low : low + z.shape[0], left : left + z.shape[1]] = z > 0
        assert np.array_equal(shown, counts > 0)
        assert z.dtype == np.uint8


def test_more_events_never_look_fewer() -> None:
    counts = np.array([[0, 1, 2, 3], [10, 100, 1000, 70_000]])
    levels = log_bytes(counts)
    assert levels[0, 0] == 0
    assert levels[0, 1] >= 1
    assert levels[1, 3] == 255
    assert (np.diff(levels.astype(int).ravel()) > 0).all()


def test_zero_density_is_transparent_and_one_event_is_not(results: Results) -> None:
    (density,) = traces(panel_figure(results[0].panels[0]), "density")
    scale = density["colorscale"]
    assert scale[0] == [0, "rgba(0,0,0,0)"]
    assert scale[1][0] < 1 / 255 <= scale[2][0] + 1e-12
    assert scale[-1][0] == pytest.approx(1.0)


def test_every_target_event_is_visible(results: Results) -> None:
    for panel in panels(results):
        figure = panel_figure(panel)
        events = panel.target.shape[1]
        markers = traces(figure, "target")
        if events == 0:
            assert not markers
            assert not traces(figure, "target-raster")
        elif events <= MARKERS_MAX:
            (one,) = markers
            shown = np.stack([decoded(one["x"]), decoded(one["y"])])
            expected = np.stack(
                [
                    np.clip(panel.target[0], panel.x.lo, panel.x.hi),
                    np.clip(panel.target[1], panel.y.lo, panel.y.hi),
                ]
            )
            assert np.array_equal(shown[:, np.lexsort(shown)], expected[:, np.lexsort(expected)])
        else:
            (raster,) = traces(figure, "target-raster")
            z = decoded(raster["z"])
            assert (z > 0).sum() == (figures.target_bins(panel, 256) > 0).sum()
            assert figures.target_bins(panel, 256).sum() == events


def test_the_order_of_target_events_does_not_matter(results: Results) -> None:
    for panel in (results[0].panels[5], results[3].panels[5]):
        shuffled = dataclasses.replace(panel, target=panel.target[:, ::-1])
        assert panel_figure(shuffled) == panel_figure(panel)


def test_every_gate_is_labelled_with_name_count_and_share(results: Results) -> None:
    for panel in panels(results):
        figure = panel_figure(panel)
        texts = [note["text"] for note in figure["layout"]["annotations"] if note["name"].startswith("label")]
        assert len(texts) == len(panel.gates)
        for gate, text in zip(panel.gates, texts, strict=True):
            assert gate.population in text
            assert f"{gate.events:,}" in text
            assert text.endswith("%")


def test_labels_of_the_whole_strategy_stay_inside_and_apart(results: Results) -> None:
    for panel in panels(results):
        boxes = [place.box for place in gate_placements(panel)]
        for i, a in enumerate(boxes):
            assert min(a) >= 0
            assert max(a) <= 1
            for b in boxes[:i]:
                apart = min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])
                assert apart, (panel.parent, a, b)


def test_every_drawable_gate_is_drawn_on_linear_axes(results: Results) -> None:
    for panel in panels(results):
        layout = panel_figure(panel)["layout"]
        drawn = [shape for shape in layout["shapes"] if shape["name"] in {"gate", "gate-target"}]
        assert len(drawn) == sum(gate.outline.size > 0 for gate in panel.gates)
        assert all("inf" not in shape["path"] and "nan" not in shape["path"] for shape in drawn)
        assert "type" not in layout["xaxis"]


def gate(outline: list[list[float]], kind: str) -> GateShape:
    return GateShape(
        population="p",
        path="/p",
        kind=kind,
        outline=np.array(outline),
        events=1,
        parent_events=2,
        method="m",
        detail="",
    )


def with_gate(panel: PlotPanel, one: GateShape) -> list[dict[str, Any]]:
    shapes: list[dict[str, Any]] = panel_figure(dataclasses.replace(panel, gates=(one,)))["layout"]["shapes"]
    return shapes


def test_an_interval_given_by_its_ends_is_drawn_as_lines_with_a_shaded_side(results: Results) -> None:
    inf = math.inf
    area, line = with_gate(results[0].panels[4], gate([[0.25, 0.75], [-inf, inf]], "interval-x"))
    assert area["name"] == "gate-area"
    assert line["path"] == "M0.75,0L0.75,1M0.25,1L0.25,0"
    area, line = with_gate(results[0].panels[4], gate([[0.25, inf], [-inf, inf]], "interval-x"))
    assert line["path"] == "M0.25,1L0.25,0"
    area, line = with_gate(results[0].panels[4], gate([[-inf, inf], [-inf, 0.4]], "interval-y"))
    assert line["path"] == "M1,0.4L0,0.4"


def test_a_gate_of_several_stretches_is_drawn_in_pieces() -> None:
    nan, inf = math.nan, math.inf
    pieces = gate_pieces(np.array([[0.1, 0.2, nan, 0.5, 0.7], [-inf, inf, nan, -inf, inf]]))
    assert [piece[0].min() for piece in pieces] == [0.1, 0.5]
    assert gate_pieces(np.zeros((2, 0))) == []


def test_the_line_of_the_target_gate_is_the_targets_colour(results: Results) -> None:
    panel = results[0].panels[9]
    assert [shape["name"] for shape in panel_figure(panel)["layout"]["shapes"]] == ["gate-target"]


def test_axes_are_labelled_in_channel_values(results: Results) -> None:
    layout = panel_figure(results[0].panels[4])["layout"]
    axis = layout["xaxis"]
    assert axis["title"]["text"] == "CD19 (PE-Cy7-A)"
    ticks = dict(zip(axis["ticktext"], axis["tickvals"], strict=True))
    scale = make_transform(results[0].panels[4].x.transform)
    for text, value in (("0", 0.0), ("10³", 1e3), ("10⁴", 1e4), ("10⁵", 1e5)):
        assert ticks[text] == pytest.approx(float(scale.forward(value)), abs=1e-5)
    assert axis["minor"]["tickvals"]
    assert layout["yaxis"]["title"]["text"] == "SSC-A"


def test_tick_labels_that_would_touch_are_blanked_and_zero_stays() -> None:
    major = [(0.00, "−10³"), (0.05, "−10²"), (0.10, "0"), (0.16, "10²"), (0.30, "10³"), (0.60, "10⁴")]
    assert thinned_labels(major, 1.0) == ["−10³", "", "0", "", "10³", "10⁴"]


def test_names_from_files_cannot_bring_markup_into_a_plot(results: Results) -> None:
    hostile = '<a href="https://example.org">CD19</a><b>'
    panel = results[0].panels[4]
    renamed = dataclasses.replace(
        panel,
        parent=hostile,
        x=dataclasses.replace(panel.x, marker=hostile, channel="FL1<script>"),
        gates=tuple(dataclasses.replace(one, population=hostile) for one in panel.gates),
        density=np.zeros_like(panel.density),
    )
    text = json.dumps(panel_figure(renamed))
    assert "<a" not in text
    assert "<script" not in text
    assert plot_text("a\x00b\u202ec<&>") == "a�b�c&lt;&amp;&gt;"
    assert len(plot_text("x" * 99, limit=10)) == 10


def test_an_empty_parent_says_so(results: Results) -> None:
    panel = results[2].panels[10]
    assert panel.parent_events == 0
    figure = panel_figure(panel)
    assert figure["data"] == []
    assert figure["layout"]["annotations"][-1]["text"] == "No events in blasts"


def series(flagged: list[bool], rate: float = 100.0) -> TimeSeries:
    count = len(flagged)
    return TimeSeries(
        seconds=np.arange(count, dtype=np.float64) * 2 + 1,
        rate=np.full(count, rate),
        channels=("A", "B"),
        medians=np.full((count, 2), 0.5),
        flagged=np.array(flagged),
        time_source="Time",
    )


def test_neighbouring_flagged_bins_are_one_span() -> None:
    assert flagged_spans(series([True, False, True, True, False])) == ((1.0, 2.0), (4.0, 8.0))
    assert flagged_spans(series([False, False])) == ()
    assert flagged_spans(series([])) == ()


def test_without_a_clock_there_is_no_rate() -> None:
    assert rate_figure(series([False, False], rate=math.nan)) is None


def test_medians_are_labelled_in_channel_values_and_noise_is_not_magnified() -> None:
    axis = Axis(marker="CD19", channel="A", transform={"kind": "linear", "T": 1000.0}, lo=0.0, hi=1.0)
    layout = medians_figure(series([False] * 4), {"A": axis}, {"A": "CD19"})["layout"]
    assert layout["yaxis"]["ticktext"][1] == "500"
    assert layout["yaxis2"]["ticktext"][1] == "0.50"
    low, high = layout["yaxis"]["range"]
    assert high - low >= 0.1
    assert "<b>CD19</b>" in [note["text"] for note in layout["annotations"]]


def test_medians_of_another_shape_are_refused() -> None:
    wrong = dataclasses.replace(series([False] * 4), medians=np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"expected \(bins, channels\) = \(4, 2\); got \(2, 4\)"):
        medians_figure(wrong, {}, {})


def test_no_figure_may_be_sent_to_a_cloud_service(synthetic: ModuleType) -> None:
    assert figures.CONFIG["showSendToCloud"] is False
    assert figures.CONFIG["plotlyServerURL"] == ""
    assert figures.CONFIG["displaylogo"] is False
