"""Counting rules, limits and tables on scores made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from flowmrd.evaluation.defaults import load_defaults
from flowmrd.evaluation.scores import Score, nearest_level, score_from_json, score_to_json
from flowmrd.evaluation.summary import (
    Metric,
    as_tree,
    by_key,
    groups_of,
    low_positives,
    pairs_of,
    summarise,
)
from flowmrd.evaluation.tables import CASES, case_rows, summary_text
from flowmrd.quantification.rare_events import blank_limits, load_rules

DEFAULTS = load_defaults()
Make = Callable[..., Score]


def figures(scores: list[Score], **kept: Any) -> dict[tuple[str, str, str], Metric]:
    """Return (level, metric) figures of the template on all files, or of another method or group."""
    metrics = summarise(scores, rules=load_rules(), levels=DEFAULTS.levels.fractions, defaults=DEFAULTS)
    method, group = kept.get("method", "template"), kept.get("group", "all")
    return {(one.group, one.level, one.metric): one for one in metrics if (one.method, one.group) == (method, group)}


def test_review_is_counted_apart_and_in_sensitivity_not_found(make_score: Make) -> None:
    scores = [
        make_score("found", 100, 100),
        make_score("reviewed", 100, 100, call="review"),
        make_score("missed", 100, 0),
        make_score("refused", 100, 0, refused=True),
        make_score("clear", 0, 0),
        make_score("unsure", 0, 30, call="review"),
        make_score("wrong", 0, 40),
    ]
    found = figures(scores)
    sensitivity = found["all", "all", "sensitivity"]
    assert (sensitivity.k, sensitivity.n) == (1, 4)
    assert (found["all", "all", "review"].k, found["all", "all", "review"].n) == (1, 4)
    assert (found["all", "all", "not_detected"].k, found["all", "all", "refused"].value) == (1, 1)
    specificity = found["all", "0", "specificity"]
    assert (specificity.k, specificity.n) == (1, 2)
    assert (found["all", "0", "false_positive"].k, found["all", "0", "false_positive"].n) == (1, 3)
    assert (found["all", "0", "review"].k, found["all", "0", "review"].n) == (1, 3)
    # 0, 30 and 40 of 100,000.
    assert found["all", "0", "called_fraction_max"].value == pytest.approx(4e-4)


def test_what_a_sample_cannot_hold_is_neither_found_nor_missed(make_score: Make) -> None:
    scores = [
        make_score("drawn-without-a-blast", 0, 0, nominal=1e-5),
        make_score("four-blasts", 4, 4, nominal=1e-5),
        make_score("nineteen", 19, 25, nominal=1e-4),
        make_score("twenty", 20, 20, nominal=1e-4),
    ]
    assert [one.standing for one in scores] == ["not_assessable", "not_assessable", "not_assessable", "positive"]
    found = figures(scores)
    assert (found["all", "all", "sensitivity"].k, found["all", "all", "sensitivity"].n) == (1, 1)
    assert found["all", "all", "not_assessable"].value == 3
    assert (found["all", "all", "found_not_assessable"].k, found["all", "all", "found_not_assessable"].n) == (1, 3)
    assert found["all", "1e-5", "cases"].value == 2
    assert ("all", "1e-5", "sensitivity") not in found
    # No file is without disease: a draw of a low level that holds no blast is no proof of specificity.
    assert ("all", "0", "specificity") not in found


def test_levels_are_pooled_from_the_decision_line_by_what_was_drawn(make_score: Make) -> None:
    # 95 of 1,000,000 is below 1e-4, but the level was 1e-4.
    scores = [
        make_score("low", 30, 30, nominal=3e-5, cells=1_000_000),
        make_score("line", 95, 95, nominal=1e-4, cells=1_000_000),
        make_score("high", 5_000, 5_000, nominal=5e-3, cells=1_000_000),
    ]
    found = figures(scores)
    assert found["all", ">= 1e-4", "cases"].value == 2
    assert found["all", "< 1e-4", "cases"].value == 1
    assert found["all", ">= 1e-3", "cases"].value == 1


def test_the_nearest_level_is_on_a_logarithmic_scale() -> None:
    levels = DEFAULTS.levels.fractions
    assert nearest_level(0.0, levels) == 0.0
    assert nearest_level(None, levels) is None
    assert nearest_level(1.6e-4, levels) == 1e-4
    assert nearest_level(1.8e-4, levels) == 3e-4
    assert nearest_level(1e-9, levels) == 1e-5
    assert nearest_level(0.9, levels) == 1.0


def test_f1_coverage_and_time_are_pooled(make_score: Make) -> None:
    scores = [
        make_score(f"f{i}", 1_000, called, nominal=1e-2) for i, called in enumerate((1_000, 1_010, 500, 300, 2_000))
    ]
    found = figures(scores)
    assert found["all", "all", "f1_median"].value == pytest.approx(2 / 3)
    assert (found["all", "all", "f1_above_half"].k, found["all", "all", "f1_above_half"].n) == (4, 5)
    assert (found["all", "all", "coverage"].k, found["all", "all", "coverage"].n) == (2, 5)
    assert (found["all", "all", "coverage_nominal"].k, found["all", "all", "coverage_nominal"].n) == (2, 5)
    assert found["all", "", "seconds_median"].value == 1.5
    assert found["all", "", "events_per_second"].value == pytest.approx(200_000 / 1.5)


def test_limits_are_those_of_the_quantification_formulas(make_score: Make) -> None:
    called = [0, 2, 1, 0, 3, 1, 2, 0, 1, 4, 2, 1, 0, 1, 2, 3, 1, 0, 2, 1]
    low = [(28, 30), (32, 30), (30, 27), (31, 35), (29, 29), (30, 33)]
    blanks = [make_score(f"n{i}", 0, count, cells=1_000_000) for i, count in enumerate(called)]
    weak = [make_score(f"p{i}", true, found, cells=1_000_000, nominal=3e-5) for i, (true, found) in enumerate(low)]
    strong = [make_score(f"q{i}", 100, 100 + i, cells=1_000_000, nominal=1e-4) for i in range(4)]
    found = figures([*blanks, *weak, *strong])
    # The blanks are those of the worked example W06: mean 1.35, SD 1.136708, LoB 3.219885 per million.
    assert found["all", "", "lob_normal"].value == pytest.approx(3.219884795e-6)
    # Rank 0.5 + 0.95 × 20 = 19.5: between 3 and 4.
    assert found["all", "", "lob_rank"].value == pytest.approx(3.5e-6)
    results = [3e-5 + (b - a) / 1e6 for a, b in low]
    expected = blank_limits([count / 1e6 for count in called], results)
    assert found["all", "", "lod_ep17"].value == pytest.approx(expected.lod)
    assert found["all", "", "lod_ep17_corrected"].value == pytest.approx(expected.lod_corrected)
    assert "6 files at 3e-5" in found["all", "", "lod_ep17"].note
    # 30 events are too few for a number; at 1e-4 recovery is 1.00 to 1.03 with at least 100 events.
    assert found["all", "", "lloq"].value == 1e-4


def test_too_few_files_give_no_limit_and_say_so(make_score: Make) -> None:
    found = figures([make_score("n", 0, 0), make_score("p", 100, 100)])
    assert found["all", "", "lob_rank"].value is None
    assert found["all", "", "lob_rank"].note == "blanks: expected at least 20 results; got 1"
    assert found["all", "", "lob_normal"].note == "blanks: expected at least 20 results; got 1"
    assert found["all", "", "lod_ep17"].note == "needs a level with 5 assessable files"
    assert found["all", "", "lloq"].note == "needs a level with 3 assessable files"
    assert found["all", "", "lod_probit"].note == (
        "EP17-A2, probit: every sample was found: the limit lies below the lowest level; lowest found 0.001"
    )


def test_low_positives_are_the_lowest_level_with_enough_files(make_score: Make) -> None:
    scores = [make_score(f"a{i}", 100, 110, nominal=1e-3) for i in range(5)]
    scores += [make_score("b", 30, 30, nominal=3e-4)]
    level, results = low_positives(pairs_of(scores, "template"), 5) or (0.0, [])
    assert level == 1e-3
    assert results == pytest.approx([1e-3 + 1e-4] * 5)
    assert low_positives(pairs_of(scores, "template"), 6) is None


def test_groups_and_methods_have_figures_of_their_own(make_score: Make) -> None:
    scores = [
        make_score("a", 100, 100, groups={"batch": "1"}, others={"forest": 0}),
        make_score("b", 100, 0, groups={"batch": "2.5"}, others={"forest": 100}),
        make_score("c", 100, 100, groups={"batch": "10"}, others={"forest": 100}),
    ]
    assert [name for name, _ in groups_of(scores)] == ["all", "batch = 1", "batch = 2.5", "batch = 10"]
    assert figures(scores, group="batch = 2.5")["batch = 2.5", "all", "sensitivity"].k == 0
    assert figures(scores, method="forest")["all", "all", "sensitivity"].k == 2
    assert figures(scores)["all", "all", "sensitivity"].k == 2


def test_the_tree_for_json_holds_every_figure(make_score: Make) -> None:
    scores = [make_score("a", 100, 100), make_score("n", 0, 0)]
    metrics = summarise(scores, rules=load_rules(), levels=DEFAULTS.levels.fractions, defaults=DEFAULTS)
    tree = json.loads(json.dumps(as_tree(metrics), allow_nan=False))
    assert tree["template"]["all"]["all"]["sensitivity"] == {"value": 1.0, "k": 1, "n": 1} | {
        "low": by_key(metrics)["template", "all", "all", "sensitivity"].low,
        "high": 1.0,
        "note": "review and refused files are not found",
    }
    assert tree["template"]["all"]["overall"]["lob_rank"]["value"] is None


def test_a_kept_score_reads_back_as_it_was(make_score: Make) -> None:
    score = make_score("a", 100, 90, groups={"batch": "1"}, others={"forest": 3}, nominal=1e-3)
    assert score_from_json(json.loads(json.dumps(score_to_json(score)))) == score


def test_the_case_table_has_the_documented_columns_and_the_comparisons(make_score: Make) -> None:
    scores = [make_score("a", 100, 90, groups={"batch": "1"}, others={"forest": 3})]
    known = {"template": "t", "template_version": "1", "template_sha256": "2", "reference_sha256": "", "flowmrd": "3"}
    schema, rows = case_rows(scores, ["forest"], known)
    row = dict(zip(schema, rows[0], strict=True))
    assert list(schema)[: len(CASES)] == list(CASES)
    assert (row["case"], row["truth_events"], row["called_events"], row["level"]) == ("a", 100, 90, "1e-3")
    assert (row["forest_called_events"], row["by_batch"], row["template_version"]) == (3, "1", "1")


def test_the_text_names_what_was_left_out(make_score: Make) -> None:
    scores = [make_score("a", 100, 90), make_score("bad|name", 100, 0, refused=True), make_score("n", 0, 0)]
    metrics = summarise(scores, rules=load_rules(), levels=DEFAULTS.levels.fractions, defaults=DEFAULTS)
    text = summary_text(metrics, scores, {"flowmrd": "0", "reference": ""}, methods={"template": "tube 1.0.0"})
    assert "files 3, assessed 2, refused 1" in text
    assert "| bad/name.fcs | refused | wrong panel |" in text
    assert "reference" not in text
    assert "| 1e-3 | 2 | 0 | 1 | 0.50 (0.09–0.91) 1/2 |" in text
