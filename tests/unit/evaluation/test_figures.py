"""Figures of an evaluation: what plotly accepts, what they show, and colours in both themes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from flowmrd.evaluation import figures
from flowmrd.evaluation.defaults import load_defaults
from flowmrd.evaluation.scores import Score
from flowmrd.evaluation.summary import pairs_of, summarise
from flowmrd.quantification.rare_events import load_rules

Make = Callable[..., Score]
DEFAULTS = load_defaults()
LEVELS = DEFAULTS.levels.fractions


@pytest.fixture
def scores(make_score: Make) -> list[Score]:
    made = [make_score(f"n{i:02}", 0, i % 4) for i in range(22)]
    made += [make_score("<b>odd</b>", 0, 40), make_score("unsure", 0, 30, call="review")]
    for i, (true, called) in enumerate([(30, 0), (40, 35), (60, 0), (80, 70), (300, 310), (1_000, 900)]):
        made.append(make_score(f"p{i}", true, called, others={"forest": true // 2}))
    made.append(make_score("four", 4, 0, nominal=3e-5))
    made.append(make_score("refused", 100, 0, refused=True))
    return made


def drawn(scores: list[Score]) -> dict[str, dict[str, Any]]:
    pairs = pairs_of(scores, "template")
    links = {score.case: f"gates/acquisitions/{i}.html" for i, score in enumerate(scores)}
    metrics = summarise(scores, rules=load_rules(), levels=LEVELS, defaults=DEFAULTS)
    by_method = {"template": pairs, "forest": pairs_of(scores, "forest")}
    made = {
        "truth": figures.truth_figure(pairs, links),
        "f1": figures.f1_figure(by_method, LEVELS, links),
        "difference": figures.difference_figure(pairs, links),
        "detection": figures.detection_figure(pairs, LEVELS, DEFAULTS.statistics, links),
        "blank": figures.blank_figure(pairs, metrics, links, target=1e-4),
        "time": figures.time_figure(by_method),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_plotly_accepts_every_figure_in_both_themes(theme: str, scores: list[Score]) -> None:
    import plotly.graph_objects as go

    made = drawn(scores)
    assert list(made) == ["truth", "f1", "difference", "detection", "blank", "time"]
    for name, figure in made.items():
        shown = figures.resolved(figure, theme)
        assert "@" not in json.dumps(shown), name
        json.dumps(figure, allow_nan=False)
        go.Figure(shown)


def test_both_themes_name_the_same_roles() -> None:
    assert set(figures.THEMES["light"]) == set(figures.THEMES["dark"])


def test_every_file_with_a_number_is_a_point_and_zero_has_a_place(scores: list[Score]) -> None:
    figure = drawn(scores)["truth"]
    points = {
        text.split("<br>")[0]: (x, y)
        for t in figure["data"]
        for text, x, y in zip(t["text"], t["x"], t["y"], strict=True)
    }
    assert len(points) == len(scores) - 1  # the refused one has no number
    zero = figure["layout"]["yaxis"]["tickvals"][0]
    assert figure["layout"]["yaxis"]["ticktext"][0] == "0"
    assert points["<b>p0</b>"] == (pytest.approx(math.log10(3e-4), abs=1e-4), pytest.approx(zero))
    assert points["<b>p4</b>"][1] == pytest.approx(math.log10(3.1e-3), abs=1e-4)
    # A name from a file is text, not markup.
    assert "<b>&lt;b&gt;odd&lt;/b&gt;</b>" in points


def test_intervals_reach_from_their_lower_to_their_upper_end(scores: list[Score]) -> None:
    figure = drawn(scores)["truth"]
    trace = next(t for t in figure["data"] if t["name"] == "positive")
    place = next(i for i, text in enumerate(trace["text"]) if text.startswith("<b>p5</b>"))
    outcome = next(score.outcome for score in scores if score.case == "p5")
    assert outcome is not None
    assert outcome.ci_high is not None
    assert outcome.ci_low is not None
    at = trace["y"][place]
    assert at + trace["error_y"]["array"][place] == pytest.approx(math.log10(outcome.ci_high), abs=2e-4)
    assert at - trace["error_y"]["arrayminus"][place] == pytest.approx(math.log10(outcome.ci_low), abs=2e-4)


def test_calls_differ_in_symbol_as_well_as_in_colour(scores: list[Score]) -> None:
    data = drawn(scores)["truth"]["data"]
    assert [(t["name"], t["marker"]["color"]) for t in data] == [
        ("positive", "@positive"),
        ("review", "@review"),
        ("not detected", "@not_detected"),
    ]
    symbols = [{symbol.removesuffix("-open") for symbol in t["marker"]["symbol"]} for t in data]
    assert symbols == [{"circle"}, {"diamond"}, {"triangle-down"}]
    hollow = [
        text for t in data for text, symbol in zip(t["text"], t["marker"]["symbol"], strict=True) if "open" in symbol
    ]
    assert [text.split("<br>")[0] for text in hollow] == ["<b>four</b>"]


def test_points_lead_to_the_gates_of_their_file(scores: list[Score]) -> None:
    trace = drawn(scores)["f1"]["data"][0]
    order = [score.case for score in scores]
    for text, address in zip(trace["text"], trace["customdata"], strict=True):
        case = text.removeprefix("<b>").split("</b>")[0]
        assert address == f"gates/acquisitions/{order.index(case)}.html"


def test_other_methods_stand_beside_by_their_medians(scores: list[Score]) -> None:
    figure = drawn(scores)["f1"]
    other = next(t for t in figure["data"] if t["name"] == "forest, median")
    # Half of the true events, all of them right: F1 = 2 · 0.5 / 1.5.
    assert other["y"][-1] == pytest.approx(2 / 3, abs=1e-3)


def test_the_detection_curve_has_its_limit_and_levels_their_shares(scores: list[Score]) -> None:
    figure = drawn(scores)["detection"]
    assert any(note["text"].startswith("LoD ") for note in figure["layout"]["annotations"])
    shares = next(t for t in figure["data"] if t.get("name") == "found, of files of a level")
    assert shares["text"][0] == "no disease: 1 of 24 found"
    assert "3·10⁻⁴: 1 of 2 found" in shares["text"]


def test_levels_that_do_not_overlap_show_the_gap_instead_of_a_curve(make_score: Make) -> None:
    scores = [make_score("a", 30, 0), make_score("b", 100, 100)]
    figure = figures.detection_figure(pairs_of(scores, "template"), LEVELS, DEFAULTS.statistics, {})
    assert figure is not None
    assert [shape["type"] for shape in figure["layout"]["shapes"]] == ["rect"]
    assert all(t.get("name") != "probit" for t in figure["data"])


def test_nothing_to_show_is_no_figure(make_score: Make) -> None:
    pairs = pairs_of([make_score("refused", 100, 0, refused=True)], "template")
    assert figures.truth_figure(pairs, {}) is None
    assert figures.f1_figure({"template": pairs}, LEVELS, {}) is None
    assert figures.difference_figure(pairs, {}) is None
    assert figures.blank_figure(pairs, (), {}, target=1e-4) is None
    assert figures.time_figure({"template": pairs}) is None
