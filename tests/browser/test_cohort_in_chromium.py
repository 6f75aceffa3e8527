"""The cohort page as a reader meets it: drawn in both themes, readable at 1280 px, silent on the network."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowmrd.clinical.baseline import read_baseline
from flowmrd.clinical.endpoints import outcomes_of
from flowmrd.clinical.rules import load_criteria
from flowmrd.clinical.safety import read_adverse_events
from flowmrd.clinical.table import read_clinical_table
from flowmrd.documents.counts import load_counts
from flowmrd.reporting.cohort_page import render_cohort

pytestmark = pytest.mark.browser

DRAW = """async () => {
  for (const chart of document.querySelectorAll(".chart")) {
    if (!chart.checkVisibility({contentVisibilityAuto: true})) continue;
    chart.scrollIntoView({block: "center"});
    while (chart.dataset.state !== "drawn") await new Promise((done) => requestAnimationFrame(done));
  }
  return [...document.querySelectorAll(".chart[data-state=drawn]")].map((chart) => {
    const box = (node) => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
    return {
      name: chart.dataset.chart,
      width: chart.clientWidth,
      card: box(chart.closest(".panel")),
      texts: [...chart.querySelectorAll("text")].map(box),
      marks: chart.querySelectorAll(".points path, .barlayer path, .lines path").length,
      background: getComputedStyle(chart.querySelector(".bglayer rect, .plotbg rect") || chart).fill,
    };
  });
}"""


def _conftest() -> ModuleType:
    name = "flowmrd_tests_unit_conftest"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "unit" / "conftest.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    _conftest().draw_cohort(folder)
    criteria = load_criteria()
    table = read_clinical_table(folder / "clinical.csv", visits=criteria.visits)
    outcomes = outcomes_of(table, criteria, counts=load_counts(folder / "counts.csv"))
    return render_cohort(
        outcomes,
        folder / "cohort.html",
        baseline=read_baseline(folder / "baseline.csv", criteria),
        safety=read_adverse_events(folder / "adverse_events.csv", outcomes.subjects, last_day=30),
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_drawn_inside_its_card_and_the_page_asks_for_nothing(
    page: Path, open_page: Callable[..., Any], scheme: str
) -> None:
    watched = open_page(page.as_uri(), scheme=scheme)
    watched.page.evaluate("document.querySelectorAll('details.patient').forEach((one, i) => { one.open = i < 2; })")
    charts = watched.page.evaluate(DRAW)
    assert len(charts) >= 9
    for chart in charts:
        assert chart["marks"] > 0, chart["name"]
        left, top, right, bottom = chart["card"]
        for box in chart["texts"]:
            assert left - 1 <= box[0], chart["name"]
            assert box[2] <= right + 1, chart["name"]
            assert top - 1 <= box[1], chart["name"]
            assert box[3] <= bottom + 1, chart["name"]
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert [one for one in watched.requests if not one.startswith(("file:", "data:", "blob:"))] == []
    assert watched.page.evaluate("document.querySelectorAll('a[data-title*=Share], [data-title*=cloud]').length") == 0


def test_the_theme_button_draws_the_charts_anew(page: Path, open_page: Callable[..., Any]) -> None:
    watched = open_page(page.as_uri())
    before = {one["name"]: one["background"] for one in watched.page.evaluate(DRAW)}
    watched.page.click('[data-action="theme"]')
    watched.page.wait_for_timeout(500)
    after = {one["name"]: one["background"] for one in watched.page.evaluate(DRAW)}
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


def test_a_patient_opens_by_keyboard_with_the_rule_in_words(page: Path, open_page: Callable[..., Any]) -> None:
    watched = open_page(page.as_uri())
    watched.page.focus("#p1 > summary")
    watched.page.keyboard.press("Enter")
    watched.page.wait_for_selector("#p1 .chart[data-state=drawn]")
    assert watched.page.is_visible("#p1 .visits")
    assert "Evidence (S" in watched.page.inner_text("#p1 .visits")
