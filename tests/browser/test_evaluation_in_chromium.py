"""The page of an evaluation as a reader meets it: drawn in both themes, sortable, silent, one click from the gates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flowmrd.cli.evaluate import command
from flowmrd.simulation import ChannelSet, Parameters, simulate, write_simulated

pytestmark = pytest.mark.browser

DRAW = """async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  for (const plot of document.querySelectorAll(".plot")) {
    plot.scrollIntoView({block: "center"});
    while (plot.dataset.state !== "drawn") await frame();
  }
}"""
# Relative luminance of what is drawn and of what it is drawn on (WCAG 2), for every text of every figure.
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => [r, g, b].map((v) => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const card = light(parse(getComputedStyle(document.querySelector(".panel")).backgroundColor));
  return [...document.querySelectorAll(".plot text")].filter((node) => node.textContent.trim()).map((node) => {
    const ink = light(parse(getComputedStyle(node).fill));
    return (Math.max(ink, card) + 0.05) / (Math.min(ink, card) + 0.05);
  });
}"""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    for seed, blasts in enumerate((0.0, 0.0, 0.01, 0.1)):
        case = Parameters(events=6_000, blasts=blasts, channels=ChannelSet.COMPACT)
        write_simulated(simulate(case, 40 + seed), folder / "set", f"case-{seed}")
    options = [str(folder / "set"), "-t", "ball-mrd-10c", "-o", str(folder / "out")]
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 0, result.output
    return folder / "out"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_and_readable(scheme: str, evaluated: Path, open_page: Callable[..., Any]) -> None:
    watched = open_page((evaluated / "report.html").as_uri(), scheme=scheme)
    page = watched.page
    page.evaluate(DRAW)
    assert page.locator(".plot .main-svg").count() >= 6
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 40
    assert min(ratios) >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert [url for url in watched.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_theme_button_recolours_the_figures(evaluated: Path, open_page: Callable[..., Any]) -> None:
    page = open_page((evaluated / "report.html").as_uri()).page
    page.evaluate(DRAW)
    colour = "getComputedStyle(document.querySelector('.plot .points path')).fill"
    before = page.evaluate(colour)
    page.click('[data-action="theme"]')
    page.wait_for_function(f"{colour} !== '{before}'")


def test_rows_sort_and_filter(evaluated: Path, open_page: Callable[..., Any]) -> None:
    page = open_page((evaluated / "report.html").as_uri()).page
    names = "[...document.querySelectorAll('.cases tbody tr:not([hidden]) th a')].map((a) => a.textContent)"
    assert page.evaluate(names) == ["case-0", "case-1", "case-2", "case-3"]
    heading = page.locator(".cases thead button", has_text="True events")
    heading.click()
    heading.click()
    assert page.evaluate(names)[:2] == ["case-3", "case-2"]
    page.fill('[data-action="filter"]', "negative")
    assert sorted(page.evaluate(names)) == ["case-0", "case-1"]


def test_a_figure_opens_large_and_closes_by_keyboard(evaluated: Path, open_page: Callable[..., Any]) -> None:
    page = open_page((evaluated / "report.html").as_uri()).page
    page.locator('[data-action="enlarge"]').first.click()
    page.wait_for_selector("dialog[open] .main-svg")
    assert page.inner_text("dialog h2") == "Result against truth"
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")


def test_a_point_and_a_row_lead_to_the_gates(evaluated: Path, open_page: Callable[..., Any]) -> None:
    page = open_page((evaluated / "report.html").as_uri()).page
    page.evaluate(DRAW)
    plot = page.locator("#figure-2-plot")
    plot.scroll_into_view_if_needed()
    plot.locator(".points path").last.hover(force=True)
    page.mouse.down()
    page.mouse.up()
    page.wait_for_url("**/gates/acquisitions/case-*.html")
    page.go_back()
    page.click(".cases tbody th a >> nth=0")
    page.wait_for_url("**/gates/acquisitions/case-0.html")
    assert page.inner_text("h1") == "case-0"
