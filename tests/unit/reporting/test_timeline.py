"""The timeline: every series has its own panel, marker and line; limits, visits and the infusion are drawn."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from flowmrd.quantification.kinetics import Course, Sample, course_kinetics
from flowmrd.reporting.timeline import Event, Kind, Point, course_timeline, render_timeline, timeline_figure

MRD = [
    Point(day=0, value=0.08, low=0.07, high=0.09, limit=1e-4),
    Point(day=28, value=0.0, low=0.0, high=1e-5, limit=5e-5, found=False),
]


@pytest.fixture(scope="module")
def course() -> Course:
    values = ((2, 0.4), (7, 118), (10, 342), (14, 210), (21, 61), (28, 24), (60, 5.1), (90, 2.0), (183, 0.1))
    return course_kinetics(
        [
            Sample(
                day=day,
                car_per_ul=value,
                lod_per_ul=0.2,
                ci_low=value * 0.8,
                ci_high=value * 1.2,
                cd19_per_ul=80 if day < 7 else 0.0 if day < 90 else 30,
                copies_per_ug=100 * value,
            )
            for day, value in values
        ],
        subject="<S&1>",
    )


@pytest.fixture(scope="module")
def figure(course: Course) -> dict[str, Any]:
    return timeline_figure(course_timeline(course, mrd=MRD, events=[Event(day=120, name="alloSCT")]))


def marks(figure: dict[str, Any], kind: Kind) -> dict[str, Any]:
    return next(trace for trace in figure["data"] if trace["meta"] == f"{kind}-mark")


def test_every_series_has_an_axis_a_marker_and_a_line_of_its_own(figure: dict[str, Any]) -> None:
    lines = {kind: next(trace for trace in figure["data"] if trace["meta"] == str(kind)) for kind in Kind}
    assert len({trace["yaxis"] for trace in lines.values()}) == len(Kind)
    assert len({trace["line"]["dash"] for trace in lines.values()}) == len(Kind)
    assert len({marks(figure, kind)["marker"]["symbol"][0] for kind in Kind}) == len(Kind)
    assert len({trace["line"]["color"] for trace in lines.values()}) == len(Kind)


def test_panels_do_not_overlap_and_are_logarithmic(figure: dict[str, Any]) -> None:
    axes = [value for key, value in figure["layout"].items() if key.startswith("yaxis")]
    assert {axis["type"] for axis in axes} == {"log"}
    domains = sorted(axis["domain"] for axis in axes)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(domains))


def test_what_was_not_detected_is_an_open_triangle_at_its_limit_without_a_bar(figure: dict[str, Any]) -> None:
    trace = marks(figure, Kind.CAR)
    assert trace["marker"]["symbol"][-1] == "triangle-down-open"
    assert trace["y"][-1] == 0.2
    assert (trace["error_y"]["array"][-1], trace["error_y"]["arrayminus"][-1]) == (0.0, 0.0)
    assert trace["error_y"]["array"][1] == pytest.approx(0.2 * 118)


def test_mrd_is_drawn_in_percent_with_its_decision_line(figure: dict[str, Any]) -> None:
    assert marks(figure, Kind.MRD)["y"] == [8.0, pytest.approx(0.005)]
    levels = [shape["y0"] for shape in figure["layout"]["shapes"] if shape["name"] == "level"]
    assert levels == [10.0, 0.01]


def test_limits_visits_and_events_are_drawn_and_named(figure: dict[str, Any]) -> None:
    shapes = [shape["name"] for shape in figure["layout"]["shapes"]]
    assert shapes.count("window") == 3
    assert shapes.count("event") == 2
    assert "band" in shapes
    texts = {note["text"] for note in figure["layout"]["annotations"]}
    assert {"D28", "M3", "M6", "<b>Infusion</b>", "<b>alloSCT</b>", "aplasia &lt; 10"} <= texts


def test_nothing_lies_outside_its_panel(figure: dict[str, Any]) -> None:
    for trace in figure["data"]:
        low, high = figure["layout"][f"yaxis{trace['yaxis'][1:]}"]["range"]
        assert all(low <= math.log10(value) <= high for value in trace["y"]), trace["meta"]


def test_a_short_course_has_a_linear_axis_and_a_long_one_says_that_it_has_not(figure: dict[str, Any]) -> None:
    short = course_kinetics([Sample(day=7, car_per_ul=80, lod_per_ul=0.2)], subject="S")
    title = timeline_figure(course_timeline(short))["layout"]["xaxis"]["title"]["text"]
    assert title == "Days from the infusion"
    assert figure["layout"]["xaxis"]["title"]["text"] == "Days from the infusion (square-root scale)"


def test_a_course_without_any_point_is_drawn_empty() -> None:
    assert timeline_figure(course_timeline(course_kinetics([], subject="S")))["data"] == []


def test_the_page_escapes_names_and_shows_parameters_and_values(course: Course, tmp_path: Path) -> None:
    page = render_timeline([course_timeline(course)], tmp_path / "timeline.html").read_text("utf-8")
    assert "&lt;S&amp;1&gt;, course 1" in page
    assert "<S&1>" not in page
    assert "342/µl on day 10" in page
    assert "&lt; 0.200" in page


def test_keys_of_lower_panels_stand_above_them_where_no_point_can_lie(figure: dict[str, Any]) -> None:
    keys = [one for one in figure["layout"]["annotations"] if one["name"] == "key"]
    assert len(keys) > 1
    assert [one["yanchor"] for one in keys] == ["top", *["bottom"] * (len(keys) - 1)]
