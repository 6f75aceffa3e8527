"""A headless Chromium, and reports rendered once: as a folder and as a single file."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from flowmrd.reporting.report import render_report

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class Watched:
    """A page and everything it complained of or asked for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def _synthetic() -> ModuleType:
    name = "flowmrd_tests_reporting_synthetic"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "unit" / "reporting" / "synthetic.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `folder/` and `single/`, the same results in both forms, and `searched/`."""
    out = tmp_path_factory.mktemp("reports")
    synthetic = _synthetic()
    results = synthetic.make_results()
    render_report(results, synthetic.RUN, out / "folder")
    render_report(results, synthetic.RUN, out / "single", single_file=True)
    searched = [synthetic.make_searched(call) for call in ("positive", "not_detected", "review")]
    render_report(searched, synthetic.RUN, out / "searched")
    return out


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start the system's Chromium (or the one that CHROMIUM names)."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("no Chromium on this machine: `make browser` installs it, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Return a function that opens an address and watches it; the test fails if a page complains."""
    opened: list[Watched] = []

    def open_(address: str, *, width: int = 1280, scheme: Literal["light", "dark"] = "light") -> Watched:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        watched = Watched(page=context.new_page())
        watched.page.on("console", lambda m: watched.errors.append(m.text) if m.type in {"error", "warning"} else None)
        watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
        watched.page.on("dialog", lambda dialog: watched.errors.append(f"dialog: {dialog.message}"))
        watched.page.on("request", lambda request: watched.requests.append(request.url))
        opened.append(watched)
        watched.page.goto(address)
        return watched

    yield open_
    for watched in opened:
        watched.page.context.close()
    assert [watched.errors for watched in opened if watched.errors] == []
