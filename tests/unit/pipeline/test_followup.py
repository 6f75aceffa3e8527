"""What a subject's other acquisitions add: an antigen's baseline, blood of the same day; in any order, and twice."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from flowmrd.followup import follow_up
from flowmrd.gating.template import GatingTemplate, find_template
from flowmrd.records import AntigenRow, KeptTables

TUBE = "ball-mrd-10c"


@pytest.fixture(scope="module")
def templates() -> dict[str, GatingTemplate]:
    return {TUBE: find_template(TUBE)}


def antigen(acquisition: str, **changes: object) -> AntigenRow:
    base = AntigenRow(
        subject="S1",
        visit="",
        acquisition=acquisition,
        antigen="CD19",
        population="blasts",
        events=500,
        positive_events=495,
        share=0.99,
        ci_low=0.98,
        ci_high=1.0,
        status="CD19pos",
        strength="normal",
        indicative="N",
        mfi=4000.0,
        positive_mfi=4000.0,
        threshold=200.0,
        negative_mfi=50.0,
        normal_mfi=6000.0,
        normal_from=acquisition,
        baseline="",
        baseline_mfi=None,
        ratio=None,
        therapy="given",
        masked="",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def kept(acquisition: str, day: int, *rows: AntigenRow, visit: str = "", **changes: object) -> KeptTables:
    base = KeptTables(
        acquisition=acquisition,
        subject="S1",
        visit=visit,
        study_day=day,
        specimen_type="BM",
        tube=TUBE,
        counts={},
        unplaced=(),
        antigens=rows,
        wording=("MRD 1%",),
        findings=(),
        hemodilution="",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


LOST = {
    "status": "CD19neg",
    "share": 0.02,
    "positive_events": 10,
    "mfi": 100.0,
    "positive_mfi": 300.0,
    "normal_mfi": None,
    "normal_from": "",
    "strength": "",
}


def test_the_baseline_is_the_visit_bl_and_its_normal_cells_are_the_yardstick(
    templates: dict[str, GatingTemplate],
) -> None:
    course = [
        kept("early", -40, antigen("early", mfi=9000.0), visit="UNS"),
        kept("dx", -20, antigen("dx"), visit="BL"),
        kept("d28", 28, antigen("d28", **LOST), visit="D28"),
    ]
    done = follow_up(course, templates)["d28"]
    (row,) = done.antigens
    assert (row.baseline, row.baseline_mfi, row.ratio) == ("dx", 4000.0, 0.025)
    assert (row.normal_from, row.normal_mfi, row.strength) == ("dx", 6000.0, "dim")
    assert row.masked == "possible"
    told = {finding.code: finding.message for finding in done.findings}
    assert "CD19pos then, CD19neg now" in told["ANTIGEN_CHANGED"]
    assert "0.025 of the baseline (dx)" in told["ANTIGEN_STATUS"]


def test_without_a_baseline_visit_the_earliest_sample_with_blasts_counts(templates: dict[str, GatingTemplate]) -> None:
    course = [
        kept("d7", 7, antigen("d7", events=19)),
        kept("d14", 14, antigen("d14", mfi=2000.0)),
        kept("d28", 28, antigen("d28")),
    ]
    done = follow_up(course, templates)
    assert done["d28"].antigens[0].baseline == "d14"
    assert done["d28"].antigens[0].ratio == 2.0
    assert done["d14"].antigens[0].baseline == ""  # nothing before it has enough blasts


def test_a_later_sample_is_never_a_baseline(templates: dict[str, GatingTemplate]) -> None:
    done = follow_up([kept("d28", 28, antigen("d28")), kept("d60", 60, antigen("d60"), visit="BL")], templates)
    assert done["d28"].antigens[0].baseline == ""
    assert done["d60"].antigens[0].baseline == "d28"


def test_another_subject_and_another_tube_are_left_out(templates: dict[str, GatingTemplate]) -> None:
    both = {**templates, "other": templates[TUBE]}
    course = [
        kept("x", -20, antigen("x"), subject="S2"),
        kept("y", -20, antigen("y"), tube="other"),
        kept("none", -20, antigen("none"), subject=""),
        kept("d28", 28, antigen("d28")),
    ]
    assert follow_up(course, both)["d28"].antigens[0].baseline == ""


def test_order_and_repetition_change_nothing(templates: dict[str, GatingTemplate]) -> None:
    course = [
        kept("dx", -20, antigen("dx"), visit="BL"),
        kept("d28", 28, antigen("d28", **LOST)),
        kept("m3", 90, antigen("m3", mfi=1500.0)),
        kept("m6", 180, antigen("m6", events=30, indicative="Y")),
    ]
    first = follow_up(course, templates)
    mixed = list(course)
    random.Random(4).shuffle(mixed)
    assert follow_up(mixed, templates) == first
    again = [first.get(one.acquisition, one) for one in course]
    assert follow_up(again, templates) == {}
    # A baseline that has gone takes its comparison with it.
    assert follow_up(again[1:], templates)["d28"].antigens[0].baseline == ""


COUNTS = {"viable": 100_000, "nucleated_red": 300, "progenitors": 40, "plasma_cells": 300, "t_like": 30_000}


@pytest.mark.parametrize(("blood", "status"), [(None, "SUSPECT"), (40_000, "SUSPECT"), (25_000, "UNCERTAIN")])
def test_blood_of_the_same_day_bounds_what_of_a_marrow_is_blood(
    blood: int | None, status: str, templates: dict[str, GatingTemplate]
) -> None:
    course = [kept("bm", 28, counts=COUNTS, hemodilution="UNCERTAIN")]
    if blood is not None:
        counts = {"viable": 100_000, "t_like": blood}
        course.append(kept("pb", 28, counts=counts, specimen_type="PB"))
    done = follow_up(course, templates).get("bm", course[0])
    assert done.hemodilution == status
    assert done.wording[0].endswith("suspected") == (status == "SUSPECT")


def test_few_t_cells_against_the_blood_clear_a_marrow(templates: dict[str, GatingTemplate]) -> None:
    counts = {**COUNTS, "t_like": 10_000}
    course = [
        kept("bm", 28, counts=counts, hemodilution="SUSPECT", wording=("MRD 1%; hemodiluted sample suspected",)),
        kept("pb", 28, counts={"viable": 100_000, "t_like": 70_000}, specimen_type="PB"),
    ]
    done = follow_up(course, templates)["bm"]
    assert done.hemodilution == "OK"
    assert done.wording == ("MRD 1%",)
