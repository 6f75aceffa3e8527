"""Pages: files, wording, escaping, privacy, the same bytes for the same input."""

from __future__ import annotations

import dataclasses
import doctest
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from flowmrd.errors import Level, QcFinding
from flowmrd.records import AcquisitionResult, Axis, MeasurementRow
from flowmrd.reporting import report
from flowmrd.reporting.report import (
    acquisition_context,
    describe_cut,
    key_panel,
    limit_ruler,
    page_names,
    render_report,
    result_value,
    sorted_findings,
)

Results = tuple[AcquisitionResult, ...]


@pytest.fixture(scope="module")
def folder(results: Results, synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folder")
    assert render_report(results, synthetic.RUN, out) == out / "index.html"
    return out


def bytes_of(out: Path) -> dict[str, str]:
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}


def page_text(path: Path) -> str:
    return html.unescape(
        re.sub(r"\s+", " ", re.sub(r"<script.*?</script>|<[^>]+>", " ", path.read_text(), flags=re.DOTALL))
    )


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(report).failed == 0


def test_a_folder_holds_an_index_a_page_an_acquisition_and_one_plotly(folder: Path, results: Results) -> None:
    names = {f"acquisitions/{name}.html" for name in page_names([one.acquisition for one in results])}
    assert set(bytes_of(folder)) == names | {
        "index.html", "assets/report.css", "assets/report.js", "assets/plotly.min.js",
    }  # fmt: skip


def test_the_same_input_gives_the_same_bytes(
    folder: Path, results: Results, synthetic: ModuleType, tmp_path: Path
) -> None:
    render_report(results, synthetic.RUN, tmp_path)
    assert bytes_of(tmp_path) == bytes_of(folder)
    render_report(results, synthetic.RUN, tmp_path)
    assert bytes_of(tmp_path) == bytes_of(folder)


def test_pages_of_acquisitions_no_longer_in_the_run_are_removed(
    results: Results, synthetic: ModuleType, tmp_path: Path
) -> None:
    render_report(results[3:], synthetic.RUN, tmp_path)
    render_report(results[4:], synthetic.RUN, tmp_path)
    assert [page.name for page in (tmp_path / "acquisitions").iterdir()] == ["M6_truncated.html"]


def test_a_single_file_holds_everything_and_plotly_once(
    results: Results, synthetic: ModuleType, tmp_path: Path
) -> None:
    index = render_report(results, synthetic.RUN, tmp_path, single_file=True)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    text = index.read_text()
    assert text.count("* plotly.js v") == 1
    assert "src=" not in re.sub(
        r'<img src="data:image/png;base64,[^"]+"', "", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    )
    for result in results:
        assert html.escape(result.acquisition) in text


class Tags(HTMLParser):
    """Collect every start tag."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags_of(path: Path) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(path.read_text())
    return parser.tags


def test_no_page_refers_to_anything_outside_its_folder(folder: Path) -> None:
    for page in folder.rglob("*.html"):
        for tag, attributes in tags_of(page):
            for name in ("src", "href"):
                target = attributes.get(name)
                if target is None or target.startswith("#"):
                    continue
                if target.startswith("data:"):
                    assert tag == "img"
                    continue
                assert ":" not in target
                assert (page.parent / target).is_file(), (page.name, target)


def test_pages_have_no_inline_handlers_or_styles_and_a_strict_policy(folder: Path) -> None:
    for page in folder.rglob("*.html"):
        found = tags_of(page)
        assert not [a for _, attributes in found for a in attributes if a.startswith("on") or a == "style"]
        (policy,) = [a["content"] for t, a in found if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
        assert policy is not None
        assert policy.startswith("default-src 'none'; script-src 'self' file:; ")
        assert "connect-src 'none'; form-action 'none'" in policy
        assert "unsafe-eval" not in policy


def test_ids_are_unique_and_every_label_and_link_finds_its_target(
    results: Results, synthetic: ModuleType, tmp_path: Path
) -> None:
    found = tags_of(render_report(results, synthetic.RUN, tmp_path, single_file=True))
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found:
        if (href := attributes.get("href") or "").startswith("#"):
            assert href[1:] in ids
        if label := attributes.get("aria-labelledby"):
            assert label in ids
        if (figure := attributes.get("data-figure")) is not None:
            assert figure in ids


def test_hostile_names_are_text_and_nothing_else(results: Results, synthetic: ModuleType, tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    one = results[3]
    panel = one.panels[4]
    hostile = dataclasses.replace(
        one,
        acquisition=f"../{bad}",
        subject=bad,
        file_name=bad,
        markers={bad: bad},
        findings=(QcFinding(level=Level.INFO, code="X", message=bad, where=bad),),
        panels=(dataclasses.replace(panel, parent=bad, target_name=bad, x=dataclasses.replace(panel.x, marker=bad)),),
    )
    for single in (False, True):
        out = tmp_path / str(single)
        render_report([hostile], {"note": bad}, out, single_file=single)
        for page in out.rglob("*.html"):
            assert "alert(1)</script>" not in page.read_text()
            assert page.is_relative_to(out)
    assert [page.name for page in (tmp_path / "False" / "acquisitions").iterdir()] == [
        page_names([hostile.acquisition])[0] + ".html"
    ]


def test_page_names_are_safe_on_every_file_system_and_unique() -> None:
    names = page_names(["a b", "a_b", "A_B", "CON", "..", "", "%41#?", "naïve", "x" * 300, "a b"])
    assert len({name.casefold() for name in names}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name) and not name.startswith(".") for name in names)
    assert names[1] == "a_b"
    assert names[3] != "CON"


def test_the_header_states_file_template_compensation_and_qc(folder: Path, results: Results) -> None:
    one = results[0]
    text = page_text(folder / "acquisitions" / "D0_relapse.html")
    for part in (
        one.subject, one.visit, one.specimen_type, "ball-mrd-10c 1.0.0", one.template_digest, one.file_name,
        one.file_sha256, f"{one.events:,}", "QC WARN", one.compensation,
    ):  # fmt: skip
        assert part in text


def test_the_result_states_counts_interval_and_limits(folder: Path, results: Results) -> None:
    text = page_text(folder / "acquisitions" / "D0_relapse.html")
    row = results[0].measurements[0]
    assert results[0].wording[0] in text
    for part in (
        f"{row.numerator_events:,} blasts", f"{row.denominator_events:,} viable", "95% interval", "LOD", "LLOQ",
        "Detected, quantifiable QUANTIFIABLE", "Positive", "Computed, not reviewed",
    ):  # fmt: skip
        assert part in text


def test_strategy_and_provenance_are_stated(folder: Path, results: Results) -> None:
    text = page_text(folder / "acquisitions" / "D28_post.html")
    assert "3 of 3 blasts inside this parent" in text
    assert "Counts are of exact events. FlowJo bins polygon and ellipse gates" in text
    assert "bound: upper bound 0.38" in text
    assert "fallback: reference population too small; fixed cut" in text
    assert "20260101" in text
    assert (
        page_text(folder / "acquisitions" / "M3_tube_2_1-b6020a.html").count("0 of 0 blasts inside this parent") == 12
    )


def test_a_refused_file_has_a_page_with_its_finding(folder: Path) -> None:
    text = page_text(folder / "acquisitions" / "M6_truncated.html")
    assert "DATA holds 90,000 events, $TOT says 120,000" in text
    assert "QC FAIL" in text
    assert "No measurement was computed" in text


def row(**changes: Any) -> MeasurementRow:
    base = MeasurementRow(
        subject="s", visit="v", acquisition="a", analyte="MRD", numerator="blasts", numerator_events=359,
        denominator="viable", denominator_events=80_401, fraction=359 / 80_401, ci_low=0.0040, ci_high=0.00495,
        lod_fraction=20 / 80_401, lloq_fraction=50 / 80_401, category="QUANTIFIABLE", mrd_neg_1e4="N", call="positive",
        value=100 * 359 / 80_401, unit="%", status="computed",
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("0.45%", "")),
        ({"value": 12.345, "unit": "cells/µL", "numerator_events": 4000}, ("12 cells/µL", "")),
        ({"value": 12.345, "numerator_events": 9}, ("12%", "")),
        ({"value": 1.2345, "numerator_events": 9}, ("1%", "")),
        ({"value": None, "category": "DETECTED_BELOW_LLOQ"}, ("< 0.062%", "detected, below LLOQ")),
        ({"value": None, "category": "UNDETECTED", "numerator_events": 3}, ("< 0.025%", "below LOD")),
        ({"value": None, "category": "UNDETECTED_INSUFFICIENT"}, ("< 0.025%", "below LOD")),
        ({"value": None, "category": "UNDETECTED_GATING_INADEQUATE"}, ("Not evaluable", "")),
        ({"value": None, "category": "NOT_DONE", "numerator_events": None}, ("Not evaluable", "")),
    ],
)  # fmt: skip
def test_a_value_is_a_number_only_above_the_lloq(changes: Mapping[str, Any], expected: tuple[str, str]) -> None:
    assert result_value(row(**changes)) == expected


def test_below_the_lloq_the_page_gives_no_percentage_of_the_count(results: Results) -> None:
    low = results[3]
    card = acquisition_context(low, key="a1")["cards"][0]
    assert card["value"].startswith("<")
    assert not [name for name, _, _ in card["rest"] if name == "95% interval"]
    assert card["ruler"]["value"] is None


def test_the_index_hides_no_number_below_the_lloq(folder: Path, results: Results) -> None:
    index = (folder / "index.html").read_text()
    low, many = results[3].measurements[0].fraction, results[0].measurements[0].fraction
    assert str(many) in index
    assert str(low) not in index


def test_a_low_positive_is_never_shown_as_plainly_negative(results: Results) -> None:
    def negative(measurement: MeasurementRow) -> list[tuple[str, str]]:
        one = dataclasses.replace(results[3], measurements=(measurement,))
        rest = acquisition_context(one, key="a1")["cards"][0]["rest"]
        return [(value, note) for name, value, note in rest if name.startswith("Negative")]

    assert negative(row(mrd_neg_1e4="Y", category="DETECTED_BELOW_LLOQ", value=None)) == [
        ("Yes", "low positive: detected")
    ]
    assert negative(row(mrd_neg_1e4="Y", category="UNDETECTED", value=None)) == [("Yes", "undetected")]
    assert negative(row(mrd_neg_1e4="NE", category="UNDETECTED", value=None))[0][0] == "Not evaluable"


def test_the_ruler_keeps_order_and_stays_on_its_scale() -> None:
    ruler = limit_ruler(row())
    assert ruler is not None
    assert ruler["left"] < ruler["lod"] < ruler["lloq"] < ruler["value"] < ruler["right"]
    assert ruler["ci_low"] <= ruler["value"] <= ruler["ci_high"]
    assert limit_ruler(row(lod_fraction=None)) is None
    deep = limit_ruler(row(lod_fraction=4e-7, lloq_fraction=1e-6))
    assert deep is not None
    assert deep["left"] <= deep["lod"]
    assert deep["ticks"][0][1] == "0.00001%"


def test_findings_are_ordered_by_how_serious_they_are() -> None:
    levels = (Level.INFO, Level.VIOLATION, Level.WARNING, Level.INFO)
    findings = [QcFinding(level=level, code=f"C{i}", message="") for i, level in enumerate(levels)]
    assert [finding.code for finding in sorted_findings(findings)] == ["C1", "C2", "C0", "C3"]


def test_the_tree_puts_each_population_under_its_parent(results: Results) -> None:
    tree = acquisition_context(results[0], key="a1")["tree"]
    seen: list[str] = []
    for item in tree:
        del seen[item["depth"] :]
        seen.append(item["population"])
    names = [item["population"] for item in tree]
    assert names.index("mature_b") < names.index("lymphocytes")
    assert [item["population"] for item in tree if item["target"]] == ["blasts"]


def test_the_root_is_shown_where_the_populations_leave_it_out(results: Results) -> None:
    one = results[0]
    rows = tuple(dataclasses.replace(r, path=f"/{r.path}") for r in one.populations if r.parent)
    tree = acquisition_context(dataclasses.replace(one, populations=rows), key="a1")["tree"]
    assert (tree[0]["population"], tree[0]["events"], tree[0]["depth"]) == ("root", f"{one.events:,}", 0)
    assert tree[1]["depth"] == 1


SCALES = {
    "CD19": Axis(marker="CD19", channel="A", transform={"kind": "linear", "T": 1000.0}, lo=0.0, hi=1.0),
    "CD10": Axis(marker="CD10", channel="B", transform={"kind": "log", "T": 10_000.0, "M": 4.0}, lo=0.0, hi=1.0),
}


@pytest.mark.parametrize(
    ("gate", "text"),
    [
        ({"kind": "rectangle", "markers": ["CD19"], "low": [0.5], "high": [None]}, "CD19 ≥ 500"),
        ({"kind": "rectangle", "markers": ["CD19", "CD10"], "low": [0.1, None], "high": [0.5, 0.5]},
         "CD19 100 to 500, CD10 < 100"),
        ({"kind": "rectangle", "markers": ["CD3"], "low": [0.5], "high": [None]}, "CD3 ≥ 0.500 (scaled)"),
        ({"kind": "rectangle", "markers": ["CD3"], "low": [None], "high": [None]}, "whole parent"),
        ({"kind": "intervals", "marker": "CD19", "ranges": [[None, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]]},
         "CD19 < 200 or CD19 300 to 400 or CD19 500 to 600 and 1 more"),
        ({"kind": "polygon", "markers": ["CD19", "CD10"], "vertices": [[0, 0], [1, 0], [1, 1]]},
         "polygon of 3 vertices on CD19 × CD10"),
        ({"kind": "ellipsoid", "markers": ["CD19", "CD10"], "mean": [0.5, 0.5], "covariance": [[1, 0], [0, 1]],
          "distance_square": 1.0}, "ellipse on CD19 × CD10, centre 500, 100"),
        ({"kind": "boolean", "operator": "and", "operands": [{"population": "a", "complement": False},
                                                             {"population": "b", "complement": True}]}, "a and not b"),
        ({"kind": "boolean", "operator": "not", "operands": [{"population": "a", "complement": False}]}, "not a"),
        ({"kind": "whole"}, "whole parent"),
        ({"kind": "nothing"}, "not evaluable"),
    ],
)  # fmt: skip
def test_a_cut_is_described_in_channel_values(gate: Mapping[str, object], text: str) -> None:
    assert describe_cut(gate, SCALES) == text


def test_a_gate_that_brings_its_own_scales_is_described_on_them() -> None:
    gate = {
        "kind": "rectangle",
        "markers": ["CD19"],
        "low": [0.5],
        "high": [None],
        "scales": {"CD19": {"kind": "linear", "T": 20000.0, "A": 0.0}},
    }
    assert describe_cut(gate, SCALES) == "CD19 ≥ 10,000"
    assert describe_cut({**gate, "scales": {}}, SCALES) == "CD19 ≥ 0.500 (scaled)"


def test_the_key_panel_shows_all_target_events_among_others(results: Results) -> None:
    for result, parent in zip(results[:4], ("viable", "cd19", "cd19", "cd19"), strict=True):
        panel = key_panel(result.panels)
        assert panel is not None
        assert panel.parent == parent
    assert key_panel(()) is None
    alone = key_panel(results[0].panels[10:])
    assert alone is not None
    assert alone.parent == "blasts"


def test_an_acquisition_without_a_clock_still_shows_its_medians(results: Results) -> None:
    time = results[0].time
    assert time is not None
    blind = dataclasses.replace(results[0], time=dataclasses.replace(time, rate=np.full(time.rate.size, math.nan)))
    shown = acquisition_context(blind, key="a1")["time"]
    assert shown["rate"] is None
    assert '"text":"Event"' in shown["medians"]


def test_embedded_json_cannot_end_its_script_element() -> None:
    text = report._json({"a": "</script><!-- & \u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!-- & \u2028"}


def test_twenty_panels_are_small(results: Results, tmp_path: Path, synthetic: ModuleType) -> None:
    one = dataclasses.replace(results[0], panels=(*results[0].panels, *results[0].panels[:8]))
    render_report([one], synthetic.RUN, tmp_path)
    pages = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "plotly.min.js"]
    assert sum(path.stat().st_size for path in pages) <= 2_500_000
