"""The report as a reader meets it: opened by double-click, readable, usable by keyboard, silent on the network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

pytestmark = pytest.mark.browser

# Where the labels and axis texts of every drawn plot really are, in pixels.
LAYOUT = """() => [...document.querySelectorAll("section.page:not([hidden]) .panels .plot")].map((plot) => {
  const box = (node) => { const r = node.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const boxes = (selector) => [...plot.querySelectorAll(selector)].map(box);
  return {
    name: plot.getAttribute("aria-label").split(":")[0],
    figure: plot.dataset.figure,
    card: box(plot.closest(".panel")),
    area: box(plot.querySelector(".bglayer rect, .plotbg rect, .draglayer .nsewdrag, .xy .plot") || plot),
    labels: boxes(".annotation-text-g"),
    texts: [...plot.querySelectorAll(".annotation-text-g")].map((node) => node.textContent),
    gates: plot.querySelectorAll(".shapelayer path").length,
    images: plot.querySelectorAll(".heatmaplayer image").length,
    points: plot.querySelectorAll(".scatterlayer .points path").length,
    xticks: boxes(".xaxislayer-above .xtick text"),
    yticks: boxes(".yaxislayer-above .ytick text"),
    xtexts: [...plot.querySelectorAll(".xaxislayer-above .xtick text")].map((node) => node.textContent),
    titles: boxes(".g-xtitle, .g-ytitle"),
    titleTexts: [...plot.querySelectorAll(".g-xtitle, .g-ytitle")].map((node) => node.textContent),
  };
})"""

DRAWN = (
    "() => [...document.querySelectorAll('section.page:not([hidden]) .plot')].every((p) => p.dataset.state === 'drawn')"
)


SCROLL = """async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  for (const plot of document.querySelectorAll("section.page:not([hidden]) .plot")) {
    plot.scrollIntoView({block: "center"});
    while (plot.dataset.state !== "drawn") await frame();
  }
}"""


def draw_all(page: Page) -> list[dict[str, Any]]:
    """Scroll over the page as a reader would and return the layout of every panel."""
    page.evaluate(SCROLL)
    layout: list[dict[str, Any]] = page.evaluate(LAYOUT)
    return layout


def address(path: Path) -> str:
    return path.as_uri()


def intersect(a: list[float], b: list[float], *, slack: float = 0.5) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > slack and min(a[3], b[3]) - max(a[1], b[1]) > slack


def within(inner: list[float], outer: list[float], *, slack: float = 1.5) -> bool:
    return (
        inner[0] >= outer[0] - slack
        and inner[1] >= outer[1] - slack
        and inner[2] <= outer[2] + slack
        and inner[3] <= outer[3] + slack
    )


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("D0_relapse", 1280, "light"),
        ("D0_relapse", 1800, "dark"),
        ("D28_post", 1280, "dark"),
        ("M12_lowpos", 1800, "light"),
    ],
)
def test_every_axis_count_and_gate_is_drawn_and_nothing_overlaps(
    open_page: Callable[..., Any], reports: Path, name: str, width: int, scheme: str
) -> None:
    watched = open_page(address(reports / "folder" / "acquisitions" / f"{name}.html"), width=width, scheme=scheme)
    panels = draw_all(watched.page)
    assert len(panels) == 12
    assert len({round(panel["card"][0]) for panel in panels}) == (3 if width == 1280 else 4)
    for panel in panels:
        where = (name, panel["name"])
        figure = watched.page.evaluate("(id) => JSON.parse(document.getElementById(id).textContent)", panel["figure"])
        assert panel["gates"] == len(figure["layout"]["shapes"]), where
        assert panel["images"] == sum(trace["type"] == "heatmap" for trace in figure["data"]), where
        assert len(panel["texts"]) == len(figure["layout"]["annotations"]), where
        assert panel["titleTexts"] == [figure["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")], where
        assert [t for t in panel["xtexts"] if t] == [t for t in figure["layout"]["xaxis"]["ticktext"] if t], where
        labels = panel["labels"]
        for i, label in enumerate(labels):
            assert within(label, panel["area"]), (where, panel["texts"][i], label, panel["area"])
            assert not any(intersect(label, other) for other in labels[:i]), (where, panel["texts"])
        for ticks in (panel["xticks"], panel["yticks"]):
            visible = [tick for tick in ticks if tick[2] > tick[0]]
            assert len(visible) >= 3, where
            assert not any(intersect(a, b) for i, a in enumerate(visible) for b in visible[:i]), where
            assert not any(intersect(a, b) for a in visible for b in panel["titles"]), where
        for text in (*panel["titles"], *panel["xticks"], *panel["yticks"]):
            assert within(text, panel["card"]), where


def test_three_blasts_are_three_points_in_every_ancestor(open_page: Callable[..., Any], reports: Path) -> None:
    watched = open_page(address(reports / "folder" / "acquisitions" / "D28_post.html"))
    panels = draw_all(watched.page)
    assert [panel["points"] for panel in panels] == [3] * 12


def test_the_density_has_the_pixels_of_its_occupied_bins(open_page: Callable[..., Any], reports: Path) -> None:
    watched = open_page(address(reports / "folder" / "acquisitions" / "D0_relapse.html"))
    draw_all(watched.page)
    share = watched.page.evaluate(
        """async () => {
          const plot = document.querySelectorAll(".panels .plot")[5];
          const image = new Image();
          image.src = plot.querySelector(".heatmaplayer image").getAttribute("href")
            || plot.querySelector(".heatmaplayer image").getAttributeNS("http://www.w3.org/1999/xlink", "href");
          await image.decode();
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
          let seen = 0;
          for (let i = 3; i < pixels.length; i += 4) seen += pixels[i] > 0;
          const z = JSON.parse(document.getElementById(plot.dataset.figure).textContent).data[0].z;
          const bytes = Uint8Array.from(atob(z.bdata), (c) => c.charCodeAt(0));
          return [seen / (canvas.width * canvas.height), bytes.filter((v) => v > 0).length / bytes.length];
        }"""
    )
    assert share[0] == pytest.approx(share[1], abs=0.02)


def test_plots_are_drawn_when_they_come_into_view_and_not_before(open_page: Callable[..., Any], reports: Path) -> None:
    page = open_page(address(reports / "folder" / "acquisitions" / "D0_relapse.html")).page
    page.wait_for_timeout(500)
    states = "() => document.querySelectorAll('.plot[data-state]').length"
    before = page.evaluate(states)
    assert before < 14
    draw_all(page)
    assert page.evaluate(states) == 14


@pytest.mark.parametrize("form", ["folder", "single"])
def test_nothing_is_asked_of_any_network(open_page: Callable[..., Any], reports: Path, form: str) -> None:
    watched = open_page(address(reports / form / "index.html"))
    watched.page.get_by_role("link", name="D0_relapse").click()
    draw_all(watched.page)
    watched.page.get_by_role("button", name="Enlarge cd19").first.click()
    watched.page.wait_for_timeout(300)
    inside = (reports / form).as_uri()
    assert [url for url in watched.requests if not url.startswith((inside, "data:", "blob:"))] == []
    assert len([url for url in watched.requests if url.startswith("file:")]) == (8 if form == "folder" else 1)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name of the method it overrides
        pass


@pytest.fixture
def served(reports: Path) -> Iterator[str]:
    """Serve the reports on a free loopback port, stopped with the test."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(reports)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("form", ["folder", "single"])
def test_the_report_works_from_a_web_server_too(open_page: Callable[..., Any], served: str, form: str) -> None:
    watched = open_page(f"{served}/{form}/index.html")
    watched.page.get_by_role("link", name="M12_lowpos").click()
    assert len(draw_all(watched.page)) == 12
    assert [url for url in watched.requests if not url.startswith((served, "data:", "blob:"))] == []


def test_the_policy_stops_injected_scripts_and_requests(browser: Any, reports: Path) -> None:
    page = browser.new_page()
    page.goto(address(reports / "folder" / "index.html"))
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.injected = 1";
          document.body.append(script);
        }"""
    )
    assert page.evaluate("() => window.injected") is None
    assert page.evaluate("() => fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'stopped')") == "stopped"
    page.close()


def test_there_is_no_button_that_shares_a_chart(open_page: Callable[..., Any], reports: Path) -> None:
    page = open_page(address(reports / "folder" / "acquisitions" / "D0_relapse.html")).page
    draw_all(page)
    assert page.locator(".modebar-btn").count() == 0
    page.get_by_role("button", name="Enlarge cd19").first.click()
    page.locator("dialog .modebar-btn").first.wait_for()
    titles = [button.get_attribute("data-title") for button in page.locator("dialog .modebar-btn").all()]
    assert titles == ["Zoom", "Pan", "Reset axes", "Download plot as a PNG"]
    assert page.locator("dialog [data-attr='sendChartToCloud'], dialog .modebar-btn--logo").count() == 0


def test_the_theme_button_restyles_page_and_plots_and_is_remembered(
    open_page: Callable[..., Any], reports: Path
) -> None:
    page = open_page(address(reports / "folder" / "acquisitions" / "D28_post.html")).page
    draw_all(page)
    look = """() => [getComputedStyle(document.body).backgroundColor,
      document.querySelectorAll(".panels .plot")[4].layout.plot_bgcolor,
      document.querySelectorAll(".panels .plot")[4].data[0].colorscale.at(-1)[1]]"""
    light = page.evaluate(look)
    page.get_by_role("button", name="Dark theme").click()
    page.wait_for_function("() => document.querySelectorAll('.panels .plot')[4].layout.plot_bgcolor !== '#ffffff'")
    page.wait_for_function(DRAWN)
    dark = page.evaluate(look)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    page.reload()
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    assert page.get_by_role("button", name="Light theme").is_visible()


def test_a_dark_system_gets_the_dark_theme_at_once(open_page: Callable[..., Any], reports: Path) -> None:
    page = open_page(address(reports / "folder" / "index.html"), scheme="dark").page
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(11, 16, 22)"
    assert page.get_by_role("button", name="Light theme").is_visible()


def focused(page: Page) -> str:
    text: str = page.evaluate(
        "() => document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
    )
    return text.strip()


def test_everything_is_reached_by_keyboard_in_reading_order(open_page: Callable[..., Any], reports: Path) -> None:
    page = open_page(address(reports / "folder" / "index.html")).page
    order = []
    for _ in range(20):
        page.keyboard.press("Tab")
        order.append(focused(page))
    assert order[:5] == ["Skip to the content", "flowmrd report", "Print", "Dark theme", ""]
    assert order[5:12] == ["Acquisition", "Subject", "Visit", "Specimen, tube", "Result", "QC", "Findings"]
    assert order[12:17] == ["D0_relapse", "D28_post", "M3 (tube 2) #1", "M12_lowpos", "M6_truncated"]
    page.get_by_role("link", name="D28_post").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/D28_post.html")
    page.get_by_role("button", name="Enlarge root").focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog.enlarged").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("dialog.enlarged").is_hidden()
    assert focused(page).startswith("Enlarge root")


def test_the_skip_link_moves_to_the_content(open_page: Callable[..., Any], reports: Path) -> None:
    page = open_page(address(reports / "single" / "index.html")).page
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.id") == "main"
    assert page.locator("#index").is_visible()


def test_tables_sort_by_what_they_show(open_page: Callable[..., Any], reports: Path) -> None:
    page = open_page(address(reports / "folder" / "index.html")).page

    def names() -> list[str]:
        return [link.inner_text() for link in page.locator(".acquisitions tbody a").all()]

    page.get_by_role("button", name="Result").click()
    assert names()[-2:] == ["M12_lowpos", "D0_relapse"]
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Result").press("Enter")
    assert names()[0] == "D0_relapse"
    page.get_by_role("button", name="QC").click()
    assert set(names()[:2]) == {"D28_post", "M6_truncated"}
    page.get_by_label("Show only rows with").fill("psn-0007")
    visible = page.locator(".acquisitions tbody tr:visible")
    assert visible.count() == 1
    assert page.locator(".filter-count").inner_text() == "1 of 5 shown"


def test_thumbnails_are_pictures(open_page: Callable[..., Any], reports: Path) -> None:
    page = open_page(address(reports / "folder" / "index.html")).page
    sizes = page.evaluate(
        "() => [...document.querySelectorAll('.thumb img')].map((i) => [i.naturalWidth, Boolean(i.alt)])"
    )
    assert sizes == [[128, True]] * 4


def test_the_target_can_be_hidden_and_shown(open_page: Callable[..., Any], reports: Path) -> None:
    page = open_page(address(reports / "folder" / "acquisitions" / "D28_post.html")).page
    draw_all(page)
    page.get_by_label("Show blasts").uncheck()
    page.wait_for_function("() => document.querySelectorAll('.panels .scatterlayer .points path').length === 0")
    page.get_by_label("Show blasts").check()
    page.wait_for_function("() => document.querySelectorAll('.panels .scatterlayer .points path').length === 36")


def test_printing_draws_every_plot_in_the_light_theme(open_page: Callable[..., Any], reports: Path) -> None:
    page = open_page(address(reports / "folder" / "acquisitions" / "D28_post.html"), scheme="dark").page
    page.evaluate(
        """() => addEventListener("afterprint", () => {
          window.printed = [...document.querySelectorAll(".plot")].map((p) => p.layout && p.layout.plot_bgcolor);
        }, {capture: true})"""
    )
    assert len(page.pdf()) > 100_000
    page.wait_for_function("() => window.printed")
    assert page.evaluate("() => window.printed") == ["#ffffff"] * 14


def test_the_single_file_shows_one_page_at_a_time(open_page: Callable[..., Any], reports: Path) -> None:
    page = open_page(address(reports / "single" / "index.html")).page
    assert page.locator("section.page:visible").count() == 1
    page.get_by_role("link", name="D28_post").click()
    assert page.title() == "D28_post · flowmrd report"
    assert page.locator("section.page:visible").count() == 1
    assert len(draw_all(page)) == 12
    page.get_by_role("link", name="M3 (tube 2) #1 ›").click()
    assert page.locator("section.page:visible h1").inner_text() == "PSN-0042 · M3"
    page.locator("section.page:visible").get_by_role("link", name="Populations").click()
    assert page.locator("section.page:visible h1").inner_text() == "PSN-0042 · M3"
    page.go_back()
    page.go_back()
    assert page.locator("section.page:visible h1").inner_text() == "PSN-0042 · D28"
    page.get_by_role("link", name="All acquisitions").click()
    assert page.locator("section.page:visible h1").inner_text() == "Acquisitions"


# Points of each status in every view of the search, and what a reader without colours has to tell them apart.
SEARCH = """() => [...document.querySelectorAll(".search .views .plot")].map((plot) => ({
  figure: plot.dataset.figure,
  traces: [...plot.querySelectorAll(".scatterlayer .trace")].map((trace) => {
    const marks = [...trace.querySelectorAll(".points path")];
    const look = getComputedStyle(marks[0]);
    return {
      count: marks.length,
      shape: marks[0].getAttribute("d").replace(/[\\d.,-]+/g, ""),
      filled: Number(look.fillOpacity) > 0 && look.fill !== "none",
    };
  }),
  normals: plot.querySelectorAll(".heatmaplayer image").length,
  names: [...plot.querySelectorAll(".annotation-text-g")].map((node) => node.textContent),
}))"""


@pytest.mark.parametrize(("call", "width", "scheme"), [("review", 1280, "light"), ("review", 1800, "dark")])
def test_groups_of_a_search_are_told_apart_by_their_symbols(
    open_page: Callable[..., Any], reports: Path, call: str, width: int, scheme: str
) -> None:
    watched = open_page(address(reports / "searched" / "acquisitions" / f"{call}.html"), width=width, scheme=scheme)
    draw_all(watched.page)
    views = watched.page.evaluate(SEARCH)
    assert len(views) == 5
    for view in views:
        assert view["normals"] == 1
        assert view["names"] == ["2", "3"]
        # Rejected below, then under review, accepted on top.
        assert [trace["count"] for trace in view["traces"]] == [80, 25, 40]
        looks = {(trace["shape"], trace["filled"]) for trace in view["traces"]}
        assert len(looks) == 3
    assert watched.page.evaluate("document.documentElement.scrollWidth") == width


def test_the_search_says_its_answer_and_shows_bars_that_differ_in_more_than_colour(
    open_page: Callable[..., Any], reports: Path
) -> None:
    watched = open_page(address(reports / "searched" / "acquisitions" / "positive.html"))
    section = watched.page.locator("section.search")
    assert section.locator(".sentence").inner_text() == "Positive: 300 events in 1 accepted group, 0.59% of viable."
    assert section.locator(".level-warning").inner_text().split()[-1] == "simulated"
    fills = section.locator(".deviation rect").evaluate_all("(all) => all.map((one) => getComputedStyle(one).fill)")
    assert [fill == "none" for fill in fills] == [False, False, True, True, True]
    widths = section.locator(".deviation rect").evaluate_all(
        "(all) => all.map((one) => one.getBoundingClientRect().width)"
    )
    assert widths[0] > widths[1] > widths[2] > 20
    watched.page.locator('.contents a[href$="-search"]').click()
    assert 0 <= section.locator("h2").bounding_box()["y"] < 200


def test_a_review_opens_its_rejected_groups_and_enlarges_a_view(open_page: Callable[..., Any], reports: Path) -> None:
    watched = open_page(address(reports / "searched" / "acquisitions" / "review.html"))
    section = watched.page.locator("section.search")
    assert section.locator(".reasons li").all_inner_texts() == [
        "CD45 of t_like is +0.12 display units from the reference's.",
        "1 group with 25 events waits for a person's judgement.",
    ]
    assert not section.locator(".rejected table").first.is_visible()
    section.locator(".rejected summary").click()
    assert section.locator(".rejected table").first.is_visible()
    section.locator(".views button").first.click()
    watched.page.wait_for_selector("dialog[open] .enlarged-plot .scatterlayer")
    assert watched.page.locator("dialog h2").inner_text() == "CD10 × CD20"
    watched.page.keyboard.press("Escape")
    assert {request.split(":")[0] for request in watched.requests} <= {"file", "data", "blob"}
