"""A trial's pages of a run report as a reviewer meets them: drawn in both themes, one click to the gates, quiet."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowmrd.reporting.report import render_report

pytestmark = pytest.mark.browser

DRAW = """async () => {
  const shown = document.querySelector("section.page:not([hidden])");
  const charts = () => [...shown.querySelectorAll(".chart, .course-plot")];
  for (const chart of charts()) {
    chart.scrollIntoView({block: "center"});
    while (chart.dataset.state !== "drawn") await new Promise((done) => requestAnimationFrame(done));
  }
  return charts().map((chart) => chart.querySelectorAll("text").length);
}"""


def _module(name: str) -> ModuleType:
    key = f"flowmrd_tests_reporting_{name}"
    if key not in sys.modules:
        path = Path(__file__).parents[1] / "unit" / "reporting" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(key, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    synthetic, drawn = _module("synthetic"), _module("trial")
    results = drawn.trial_results(synthetic.make_results())
    trial = drawn.make_trial(folder, results)
    render_report(results, synthetic.RUN, folder / "report", trial=trial)
    render_report(results, synthetic.RUN, folder / "single", trial=trial, single_file=True)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["patients/PSN-0042.html", "patients/PSN-0007.html", "cohort.html", "index.html"])
def test_every_figure_is_drawn_and_the_page_fits_its_width(
    report: Path, open_page: Callable[..., Any], scheme: str, name: str
) -> None:
    watched = open_page((report / "report" / name).as_uri(), scheme=scheme)
    texts = watched.page.evaluate(DRAW)
    assert all(count > 0 for count in texts)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert all(address.startswith(("file:", "data:", "blob:")) for address in watched.requests)


def test_from_the_index_to_a_patient_to_a_gate_in_three_clicks(report: Path, open_page: Callable[..., Any]) -> None:
    watched = open_page((report / "report" / "index.html").as_uri())
    page = watched.page
    page.click("a:has-text('PSN-0042')")
    page.wait_for_url("**/patients/PSN-0042.html")
    page.click(".gate-row a:has-text('blasts')")
    page.wait_for_url("**/acquisitions/*.html#*")
    assert page.locator("a:has-text('Patient PSN-0042')").count() == 1


def test_the_single_file_shows_one_page_at_a_time(report: Path, open_page: Callable[..., Any]) -> None:
    watched = open_page((report / "single" / "index.html").as_uri())
    page = watched.page
    page.click("a[href='#patient-1']")
    page.wait_for_selector("#patient-1:not([hidden])")
    assert page.locator("section.page:not([hidden])").count() == 1
    assert all(count > 0 for count in page.evaluate(DRAW))
    page.click("#patient-1 a[href='#cohort']")
    page.wait_for_selector("#cohort:not([hidden])")
    assert all(count > 0 for count in page.evaluate(DRAW))
