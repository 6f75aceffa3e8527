"""Figures of a cohort and its page: valid, complete, in both themes, without anything from outside."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from markupsafe import escape

from flowmrd.clinical.baseline import read_baseline
from flowmrd.clinical.endpoints import Outcomes, outcomes_of, outcomes_of_subjects
from flowmrd.clinical.outcomes import subjects_from_rows
from flowmrd.clinical.rules import load_criteria
from flowmrd.clinical.safety import read_adverse_events
from flowmrd.clinical.table import read_clinical_table
from flowmrd.documents.counts import load_counts
from flowmrd.reporting import cohort
from flowmrd.reporting.cohort import Drawn, Theme
from flowmrd.reporting.cohort_page import cohort_context, percent, render_cohort

CRITERIA = load_criteria()


@pytest.fixture(scope="module")
def outcomes(cohort_folder: Path) -> Outcomes:
    table = read_clinical_table(cohort_folder / "clinical.csv", visits=CRITERIA.visits)
    return outcomes_of(table, CRITERIA, counts=load_counts(cohort_folder / "counts.csv"))


def drawn_of(outcomes: Outcomes, theme: Theme) -> dict[str, Drawn]:
    survival = outcomes.survival
    waterfall = cohort.waterfall_figure(outcomes, theme)
    assert waterfall is not None
    subject = outcomes.subjects[8]
    calls = [call for call in outcomes.calls if call.patient_id == subject.patient_id]
    return {
        "swimmer": cohort.swimmer_figure(outcomes, theme),
        "os": cohort.survival_figure(
            survival["os_censor_sct"],
            [survival["os_restricted"], survival["os_ignore_sct"]],
            horizon_day=365,
            theme=theme,
        ),
        "cif": cohort.incidence_figure(outcomes, theme),
        "mrd": cohort.mrd_figure(outcomes, theme),
        "car": cohort.car_figure(outcomes.courses, theme),
        "waterfall": waterfall,
        "timeline": cohort.timeline_figure(subject, calls, CRITERIA.visits, theme),
    }


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, float):
        yield value


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_is_valid_for_plotly_and_finite(outcomes: Outcomes, theme: Theme) -> None:
    for name, drawn in drawn_of(outcomes, theme).items():
        go.Figure(drawn.figure)
        assert drawn.text, name
        assert all(math.isfinite(value) for value in numbers(drawn.figure)), name
        json.dumps(drawn.figure, allow_nan=False)


def test_the_themes_differ_in_colours_only(outcomes: Outcomes) -> None:
    light, dark = drawn_of(outcomes, "light"), drawn_of(outcomes, "dark")
    assert set(cohort.COLOURS["light"]) == set(cohort.COLOURS["dark"])
    for name, drawn in light.items():
        for ours, theirs in zip(drawn.figure["data"], dark[name].figure["data"], strict=True):
            assert (ours.get("x"), ours.get("y"), ours.get("name")) == (
                theirs.get("x"),
                theirs.get("y"),
                theirs.get("name"),
            )


def test_every_class_has_its_own_symbol() -> None:
    assert len(set(cohort.SYMBOLS.values())) == len(cohort.SYMBOLS)


def test_the_swimmer_has_a_lane_and_an_end_for_each_patient(outcomes: Outcomes) -> None:
    figure = cohort.swimmer_figure(outcomes).figure
    bars = figure["data"][0]
    assert sorted(bars["x"]) == sorted(one.followed_to or 0 for one in outcomes.subjects)
    assert bars["x"] == sorted(bars["x"], reverse=True)
    named = {trace["name"]: trace for trace in figure["data"][1:]}
    deaths, alive = named["Death"]["x"], named["Alive at last contact"]["x"]
    assert len(deaths) + len(alive) == len(outcomes.subjects)
    visits = sum(
        len(trace["x"]) for name, trace in named.items() if name in {*cohort.SYMBOLS, "Relapse", "Not evaluable"}
    )
    assert visits == sum(call.day is not None and call.unseen.value != "POST-REL" for call in outcomes.calls)


def test_the_risk_table_counts_who_is_left_on_each_day(outcomes: Outcomes) -> None:
    analysis = outcomes.survival["os_censor_sct"]
    figure = cohort.survival_figure(analysis, horizon_day=365).figure
    table = {note["x"]: note["text"] for note in figure["layout"]["annotations"] if note["text"].isdigit()}
    assert table[0] == str(len(analysis.times))
    assert table[365] == str(analysis.horizon.at_risk if analysis.horizon else None)
    for day, text in table.items():
        assert int(text) == sum(one.day >= day for one in analysis.times)


def test_the_band_encloses_the_curve_and_the_curve_never_rises(outcomes: Outcomes) -> None:
    high, low, curve = cohort.survival_figure(outcomes.survival["os_censor_sct"], horizon_day=365).figure["data"][:3]
    assert all(a <= b for a, b in zip(low["y"], high["y"], strict=True))
    assert all(a >= b for a, b in zip(curve["y"], curve["y"][1:], strict=False))
    assert curve["y"][0] == 1


def test_the_stack_of_incidences_ends_at_one(outcomes: Outcomes) -> None:
    figure = cohort.incidence_figure(outcomes).figure
    areas = [trace for trace in figure["data"] if trace.get("fill")]
    assert [trace["name"] for trace in areas] == ["Relapse", "Death in remission", "alloSCT in remission", "Event-free"]
    assert all(value == pytest.approx(1) for value in areas[-1]["y"])
    assert len({trace["fillpattern"]["shape"] for trace in areas}) == 4


def test_what_was_not_detected_is_drawn_at_the_samples_own_limit(outcomes: Outcomes) -> None:
    figure = cohort.mrd_figure(outcomes).figure
    places = {trace["name"]: trace for trace in figure["data"] if trace.get("name")}
    undetected = [
        call
        for call in outcomes.calls
        if call.mrd is not None and call.mrd.category == "UNDETECTED" and call.day is not None
    ]
    limits = sorted(round(math.log10(call.mrd.sample_lod_fraction or 0), 4) for call in undetected if call.mrd)
    assert sorted(places["Not detected, at the sample's LOD"]["y"]) == limits


def test_bars_to_a_limit_are_hatched(outcomes: Outcomes) -> None:
    drawn = cohort.waterfall_figure(outcomes)
    assert drawn is not None
    shapes = [shape for trace in drawn.figure["data"] for shape in trace["marker"]["pattern"]["shape"]]
    detected = [
        call.mrd.numerator_events >= 20
        for call in outcomes.calls
        if call.timepoint == "D28" and call.mrd is not None and call.in_window
    ]
    assert shapes.count("") == sum(detected)
    assert shapes.count("/") == len(detected) - sum(detected)


def test_texts_of_a_table_are_escaped(cohort_folder: Path) -> None:
    table = read_clinical_table(cohort_folder / "clinical.csv", visits=CRITERIA.visits)
    bad = "<a href='x'>S01</a>"
    rows = tuple(replace(one, patient_id=bad) if one.patient_id == "S01" else one for one in table.assessments)
    found = outcomes_of(replace(table, assessments=rows), CRITERIA)
    for drawn in (cohort.swimmer_figure(found), cohort.mrd_figure(found)):
        assert "<a href" not in json.dumps(drawn.figure)


# ------------------------------------------------------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def page(outcomes: Outcomes, cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    baseline = read_baseline(cohort_folder / "baseline.csv", CRITERIA)
    safety = read_adverse_events(cohort_folder / "adverse_events.csv", outcomes.subjects, last_day=30)
    path = render_cohort(
        outcomes,
        tmp_path_factory.mktemp("page") / "cohort.html",
        baseline=baseline,
        safety=safety,
        links={("S01", "D28"): "report/acquisitions/S01_D28.html"},
    )
    return path.read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_and_offers_no_upload(page: str) -> None:
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "https://" not in own
    assert "http://" not in own
    assert re.findall(r"<(?:link|img|iframe)\b", own) == []
    assert "connect-src &#39;none&#39;" in own
    settings = json.loads(re.search(r'id="report-settings">(.*?)</script>', page, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert settings["config"]["showSendToCloud"] is False
    assert settings["config"]["plotlyServerURL"] == ""


def test_the_page_has_every_section_patient_and_rule_in_words(page: str, outcomes: Outcomes) -> None:
    for section in (
        "response",
        "course",
        "survival",
        "relapse",
        "mrd",
        "car",
        "safety",
        "baseline",
        "patients",
        "findings",
    ):
        assert f'id="{section}"' in page
    for call in outcomes.calls:
        assert str(escape(call.sentence)) in page
        assert f"Evidence ({call.rule_id})" in page
    assert all(f"<b>{one.patient_id}</b>" in page for one in outcomes.subjects)
    assert 'href="report/acquisitions/S01_D28.html"' in page
    assert "count_boundary" in page


def test_the_same_cohort_gives_the_same_bytes(outcomes: Outcomes, tmp_path: Path) -> None:
    paths = [render_cohort(outcomes, tmp_path / name) for name in ("a.html", "b.html")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_cohort_without_visits_or_without_patients_has_a_page(tmp_path: Path) -> None:
    rows = [{"id": "A", "remission": "1", "remission_day": "28", "relapse_day": "90", "last_contact_day": "200"}]
    some = cohort_context(outcomes_of_subjects(subjects_from_rows(rows), CRITERIA))
    assert (some["response"], some["mrd"], some["waterfall"]) == (None, None, None)
    none = outcomes_of_subjects((), CRITERIA)
    assert render_cohort(none, tmp_path / "none.html").is_file()


def test_percentages_have_one_decimal() -> None:
    assert [percent(value) for value in (0.0, 66.666, 100.0, None)] == ["0%", "66.7%", "100%", "–"]
