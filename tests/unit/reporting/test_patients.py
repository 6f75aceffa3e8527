"""A run with a clinical table: a page for each patient, one for the cohort, and the way from each to the others."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flowmrd.reporting.report import render_report


def _module(name: str) -> ModuleType:
    key = f"flowmrd_tests_reporting_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        spec.loader.exec_module(module)
    return sys.modules[key]


synthetic, drawn = _module("synthetic"), _module("trial")
RUN = {**synthetic.RUN, "clinical": {"criteria": {"id": "mbcart19"}, "responses": [{"patient_id": "PSN-0042"}]}}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial")
    results = drawn.trial_results(synthetic.make_results())
    trial = drawn.make_trial(folder, results)
    render_report(results, RUN, folder / "report", trial=trial)
    render_report(results, RUN, folder / "single", trial=trial, single_file=True)
    return folder


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def links_of(path: Path) -> set[str]:
    return set(re.findall(r'href="([^"]+)"', text_of(path)))


def test_every_link_between_the_pages_leads_somewhere(report: Path) -> None:
    pages = sorted((report / "report").rglob("*.html"))
    assert {page.name for page in pages} >= {"PSN-0042.html", "PSN-0007.html", "PSN-0099.html", "cohort.html"}
    for page in pages:
        for link in links_of(page):
            name, _, place = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.is_file(), (page.name, link)
            if place and target.suffix == ".html":
                assert f'id="{place}"' in text_of(target), (page.name, link)
    single = text_of(report / "single" / "index.html")
    ids = set(re.findall(r'id="([^"]+)"', single))
    assert {link[1:] for link in links_of(report / "single" / "index.html") if link.startswith("#")} <= ids
    written = re.findall(r' id="([^"]+)"', single)
    assert [one for one in set(written) if written.count(one) > 1] == []


def test_a_patients_page_tells_each_class_its_rule_and_the_measurement_behind_it(report: Path) -> None:
    page = text_of(report / "report" / "patients" / "PSN-0042.html")
    for words in (
        "Marrow in remission, no disease elsewhere, neutrophils and platelets partly recovered.",
        "In remission before; confirmed disease in the marrow.",
        "A relapse was called at an earlier visit.",
        "Evidence (S6-REL-BM)",
        "SHA-256",
        "cytokine release syndrome",
    ):
        assert words in page
    assert 'measured: <a href="../acquisitions/D0_relapse.html">D0_relapse</a>' in page
    assert re.search(r'href="\.\./acquisitions/D28_post\.html#a\d+-panel-\d+">singlets', page), (
        "a gate is one click away"
    )
    assert "GRADE_MISMATCH" in page
    assert "GRADE_MISMATCH" not in text_of(report / "report" / "patients" / "PSN-0007.html")


def test_a_withheld_sample_is_an_alert_on_the_patients_page(report: Path) -> None:
    page = text_of(report / "report" / "patients" / "PSN-0007.html")
    alert = re.search(r'role="alert">(.*?)</p>', page)
    assert alert is not None
    assert "No MRD is taken from M12_lowpos without review: no normal lymphocytes. It has counted 35 blasts" in alert[0]


def test_an_acquisition_leads_to_its_patient_and_the_index_to_all(report: Path) -> None:
    assert "../patients/PSN-0042.html" in links_of(report / "report" / "acquisitions" / "D28_post.html")
    index = report / "report" / "index.html"
    assert {"cohort.html", "patients/PSN-0042.html", "patients/PSN-0099.html"} <= links_of(index)
    assert "MRD withheld at D28" in text_of(index)
    assert '"patient_id"' not in text_of(index), "calls are shown on the patients' pages"
    assert "Courses after CAR-T" not in text_of(index)
    assert "CAR-T cells, B cells and MRD" in text_of(report / "report" / "patients" / "PSN-0042.html")


def test_the_same_trial_gives_the_same_bytes_and_pages_of_an_earlier_one_go(report: Path, tmp_path: Path) -> None:
    results = drawn.trial_results(synthetic.make_results())
    render_report(results, RUN, tmp_path / "report", trial=drawn.make_trial(tmp_path, results))
    for page in (tmp_path / "report").rglob("*.html"):
        assert page.read_bytes() == (report / "report" / page.relative_to(tmp_path / "report")).read_bytes(), page
    render_report(results, synthetic.RUN, tmp_path / "report")
    assert not (tmp_path / "report" / "cohort.html").exists()
    assert list((tmp_path / "report" / "patients").iterdir()) == []
    assert "patients/" not in text_of(tmp_path / "report" / "index.html")


def test_the_pages_ask_for_nothing_from_any_network(report: Path) -> None:
    for page in (report / "report").rglob("*.html"):
        text = text_of(page)
        assert "http://" not in text
        assert "https://" not in text
        assert "default-src &#39;none&#39;" in text
