"""The search section says what was found, why a person has to decide, and shows every group over the normals."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from flowmrd.errors import Level, QcFinding
from flowmrd.records import AcquisitionResult, DetectionRecord
from flowmrd.reporting.figures import MARKERS_MAX, SYMBOLS, event_traces
from flowmrd.reporting.report import acquisition_context, render_report
from flowmrd.reporting.search import answer, path_figure, search_context, searched_row, shown_events

Searched = dict[str, AcquisitionResult]


@pytest.fixture(scope="module")
def searched(synthetic: ModuleType) -> Searched:
    return {call: synthetic.make_searched(call) for call in ("positive", "not_detected", "review")}


def section(result: AcquisitionResult) -> dict[str, Any]:
    found: dict[str, Any] = acquisition_context(result, key="a1")["search"]
    return found


def record(result: AcquisitionResult) -> DetectionRecord:
    assert result.detection is not None
    return result.detection


def points(trace: dict[str, Any]) -> int:
    return len(base64.b64decode(trace["x"]["bdata"])) // 4


def test_a_tube_without_a_search_has_no_section(results: tuple[AcquisitionResult, ...]) -> None:
    assert acquisition_context(results[0], key="a1")["search"] is None


def test_the_sentence_gives_the_answer_with_its_count_and_share(searched: Searched) -> None:
    assert section(searched["positive"])["sentence"] == "Positive: 300 events in 1 accepted group, 0.59% of viable."
    assert section(searched["not_detected"])["sentence"] == "Not detected: the search accepted no group of events."
    assert section(searched["review"])["sentence"] == "Needs review: 40 events in 1 accepted group, 0.078% of viable."


def test_too_few_accepted_events_are_said_to_be_too_few(searched: Searched) -> None:
    result = searched["positive"]
    row = searched_row(result)
    assert row is not None
    few = replace(row, call="not_detected", numerator_events=12, fraction=12 / 50_000)
    assert answer(record(result), few) == (
        "Not detected: 12 events in 1 accepted group, 0.02% of viable, "
        "too few for an answer above the limit of detection."
    )


def test_a_review_names_every_reason(searched: Searched) -> None:
    bad = QcFinding(level=Level.VIOLATION, code="DENOMINATOR", message="49,000 viable events.", where="viable")
    small = QcFinding(level=Level.WARNING, code="REFERENCE_SMALL", message="The reference knows 3 normals.", where="b")
    told = section(replace(searched["review"], findings=(bad, small)))["reasons"]
    assert told == [
        "CD45 of t_like is +0.12 display units from the reference's.",
        "1 group with 25 events waits for a person's judgement.",
        "The reference knows 3 normals.",
        "DENOMINATOR: 49,000 viable events.",
    ]
    assert section(searched["positive"])["reasons"] == []


def test_a_positive_answer_still_shows_that_a_group_waits(searched: Searched) -> None:
    result = searched["review"]
    rows = tuple(replace(row, call="positive") for row in result.measurements)
    assert section(replace(result, measurements=rows))["remarks"] == [
        "1 group with 25 events waits for a person's judgement."
    ]


def test_without_a_reference_the_section_says_so(results: tuple[AcquisitionResult, ...]) -> None:
    lacking = QcFinding(level=Level.WARNING, code="NO_REFERENCE", message="No reference of normals.", where="blasts")
    told = section(replace(results[0], findings=(lacking,)))
    assert told["sentence"] == "Needs review: there was no reference of normals to search against."
    assert told["reasons"] == ["No reference of normals."]
    assert told["reference"] is None


def test_groups_come_by_decision_with_rejected_ones_apart(searched: Searched) -> None:
    told = section(searched["review"])
    assert [(one["name"], one["word"], one["events"]) for one in told["groups"]] == [
        ("group 2", "Accepted", "40"),
        ("group 3", "Under review", "25"),
    ]
    assert [(one["name"], one["word"]) for one in told["rejected"]] == [("group 1", "Rejected")]
    first = told["groups"][0]
    assert (first["probability"], first["most"], first["stage"]) == ("> 0.99", "0.0012%", "hematogone, CD20-")
    assert first["aberrant"] == "CD10 over, CD38 under"


def test_bars_start_with_the_aberrant_markers_and_are_told_apart_without_colour(searched: Searched) -> None:
    told = section(searched["positive"])
    bars = told["groups"][0]["bars"]
    assert [(one["marker"], one["aberrant"], one["deviations"], one["log10"]) for one in bars] == [
        ("CD10", True, "+5.1", "+0.90"),
        ("CD38", True, "−3.0", "−0.66"),
        ("CD34", False, "−2.6", "–"),
        ("CD20", False, "0.0", "+0.01"),
        ("CD45", False, "0.0", "0.00"),
    ]
    assert told["reach"] == 6
    over, under = bars[0], bars[1]
    assert (over["x"], over["width"]) == (50.0, 42.5)
    assert (under["x"], under["width"]) == (25.0, 25.0)


def test_a_deviation_beyond_the_widest_bar_is_cut_and_marked(searched: Searched) -> None:
    found = record(searched["positive"])
    group = found.groups[0]
    far = replace(group.aberrations[0], deviations=55.0)
    wide = replace(found, groups=(replace(group, aberrations=(far,)),))
    told = section(replace(searched["positive"], detection=wide))
    bar = told["groups"][0]["bars"][0]
    assert (told["reach"], bar["width"], bar["beyond"], bar["deviations"]) == (20, 50.0, True, "+55.0")


def test_the_views_are_those_of_the_path_and_of_the_markers_that_differ_most(searched: Searched) -> None:
    views = section(searched["positive"])["views"]
    assert [one["title"] for one in views] == [
        "CD10 × CD20",
        "CD38 × CD34",
        "CD10 × CD45",
        "CD20 × CD45",
        "CD10 × CD38",
    ]


def test_views_of_markers_that_the_search_lacks_are_left_out(searched: Searched) -> None:
    found = record(searched["positive"])
    keep = [i for i, name in enumerate(found.features) if name != "CD45"]
    less = replace(
        found,
        features=tuple(found.features[i] for i in keep),
        normals=found.normals[:, keep],
        events=found.events[:, keep],
    )
    views = section(replace(searched["positive"], detection=less))["views"]
    assert [one["title"] for one in views] == ["CD10 × CD20", "CD38 × CD34", "CD10 × CD38"]


def test_every_kept_event_is_a_point_with_the_symbol_of_its_decision(searched: Searched, synthetic: ModuleType) -> None:
    found = record(searched["review"])
    figure = path_figure(found, synthetic.axis("CD20"), synthetic.axis("CD10"))
    traces = {trace["meta"]: trace for trace in figure["data"]}
    assert list(traces) == ["normals", "group-rejected", "group-review", "group-accepted"]
    drawn = {name: points(trace) for name, trace in traces.items() if name != "normals"}
    assert drawn == {"group-rejected": 80, "group-review": 25, "group-accepted": 40}
    symbols = [trace["marker"].get("symbol", "circle") for trace in figure["data"][1:]]
    assert len(set(symbols)) == 3
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["<b>2</b>", "<b>3</b>"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "CD20 (V500-A)"
    assert {"10³", "10⁴", "10⁵"} <= set(figure["layout"]["yaxis"]["ticktext"])


def test_a_crowd_is_a_raster_of_all_events_with_some_symbols(synthetic: ModuleType) -> None:
    rng = np.random.default_rng(1)
    many = rng.normal(0.5, 0.05, (2, 4_000)).astype(np.float32)
    x, y = synthetic.axis("CD20"), synthetic.axis("CD10")
    raster, marks = event_traces(many, x, y, status="review")
    assert (raster["meta"], marks["meta"]) == ("group-review-raster", "group-review")
    assert marks["marker"]["symbol"] == SYMBOLS["review"]
    assert 100 <= points(marks) <= MARKERS_MAX + 200
    assert event_traces(np.empty((2, 0), np.float32), x, y, status="accepted") == []


def test_events_beyond_an_axis_lie_on_its_edge(synthetic: ModuleType) -> None:
    x, y = synthetic.axis("CD20"), synthetic.axis("CD10")
    (trace,) = event_traces(np.array([[-3.0, 9.0], [0.5, 0.5]], np.float32), x, y, status="accepted")
    assert np.frombuffer(base64.b64decode(trace["x"]["bdata"]), np.float32).tolist() == [x.lo, x.hi]


def test_a_list_of_events_has_a_label_a_reason_and_no_outline(searched: Searched) -> None:
    context = acquisition_context(searched["review"], key="a1")
    (panel,) = [one for one in context["panels"] if one["lists"]]
    assert panel["lists"] == [
        "blasts: list of events found by seed_and_grow; reference house (abababababab), 1 of 3 groups accepted",
        "blast_candidates: list of events found by search_rest against reference house (abababababab)",
    ]
    assert panel["undrawn"] == ""
    assert panel["waiting"]
    figure = json.loads(panel["figure"])
    labels = [note["text"] for note in figure["layout"]["annotations"]]
    assert labels[0].startswith("● <b>blasts</b><br>40 · ")
    assert labels[1].startswith("◇ <b>blast_candidates</b><br>25 · ")
    assert not any(shape["name"].startswith("gate") for shape in figure["layout"]["shapes"])
    waiting = next(trace for trace in figure["data"] if trace["meta"] == "target-review")
    assert points(waiting) == 25
    assert waiting["marker"]["symbol"] == "diamond-open"
    cuts = {row["population"]: row["cut"] for row in context["tree"]}
    assert cuts["blast_candidates"] == "list of 25 events"


def test_the_kept_events_of_a_decision_are_all_of_its_groups(searched: Searched) -> None:
    found = record(searched["review"])
    chosen = shown_events(found, "rejected", "CD20", "CD10")
    assert chosen.shape == (2, 80)
    column = found.features.index("CD20")
    assert np.array_equal(chosen[0], found.events[found.owner == 0, column])


def test_the_page_names_the_reference_and_says_that_it_is_simulated(searched: Searched, tmp_path: Path) -> None:
    render_report([searched["positive"], searched["review"]], {}, tmp_path)
    page = (tmp_path / "acquisitions" / "positive.html").read_text(encoding="utf-8")
    text = page.split('class="block search"', 1)[1].split("</section>", 1)[0]
    assert "house" in text
    assert "ab" * 32 in text
    assert re.search(r"level-warning[^>]*>.*?simulated</span>", text)
    assert 'href="#a1-search"' in page
    other = (tmp_path / "acquisitions" / "review.html").read_text(encoding="utf-8")
    text = other.split('class="block search"', 1)[1].split("</section>", 1)[0]
    assert "Why a person has to decide" in text
    assert "1 rejected group" in text


def test_a_name_from_a_reference_cannot_become_markup(searched: Searched, tmp_path: Path) -> None:
    found = replace(record(searched["positive"]), reference="<img src=x onerror=alert(1)>")
    render_report([replace(searched["positive"], detection=found)], {}, tmp_path)
    assert "<img src=x" not in (tmp_path / "acquisitions" / "positive.html").read_text(encoding="utf-8")


def test_the_section_is_the_same_for_the_same_input(searched: Searched, synthetic: ModuleType) -> None:
    assert section(synthetic.make_searched("review")) == section(searched["review"])
    assert search_context(searched["review"], {}, key="k") is not None
