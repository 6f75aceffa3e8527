"""Courses after CAR-T: curves of the reference's shape, tubes whose truth follows them, controls linked."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from flowmrd.documents.manifest import ControlKind, load_manifest
from flowmrd.errors import SettingsError
from flowmrd.simulation import write_subject
from flowmrd.simulation.courses import course_document, course_kinds, course_rows, draw_curve

SEEDS = range(1, 40)


def test_four_courses_ship() -> None:
    assert course_kinds() == ("responder", "non-responder", "cd19-positive-relapse", "cd19-negative-relapse")


def test_a_responder_rises_from_below_detection_to_a_peak_in_the_second_week_and_falls_in_two_steps() -> None:
    for seed in SEEDS:
        curve = draw_curve("responder", seed)
        assert curve.at(2.9) == 0
        assert 8 <= curve.tmax <= 15
        assert curve.at(curve.tmax) == pytest.approx(curve.cmax)
        early, late = curve.at(22) / curve.at(25), curve.at(40) / curve.at(43)
        assert early >= late >= 1
        assert curve.at(365) > 0


def test_a_non_responder_peaks_later_and_lower_and_is_gone_within_weeks() -> None:
    def median(kind: str) -> float:
        return sorted(draw_curve(kind, seed).cmax for seed in SEEDS)[len(SEEDS) // 2]

    assert median("non-responder") < 0.7 * median("responder")
    for seed in SEEDS:
        curve = draw_curve("non-responder", seed)
        assert curve.tmax > 15
        assert curve.at(60) < 0.05


def test_with_cd19_the_cells_are_lost_and_b_cells_come_back_without_it_neither() -> None:
    lost, kept = (course_rows(kind, 5, pseudonym="S") for kind in ("cd19-positive-relapse", "cd19-negative-relapse"))
    late = {row["study_day"]: row for row in lost if row["study_day"] >= 100}
    assert {row["car"] for row in late.values()} == {0.0}
    assert {row["scenario"] for row in late.values()} == {"recovery"}
    assert all(row["car"] > 0 and row["scenario"] != "recovery" for row in kept if row["study_day"] >= 28)


def test_an_unknown_course_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"no course 'cure' \(one of: responder, non-responder"):
        draw_curve("cure", 1)


def test_the_same_seed_gives_the_same_document_and_another_another() -> None:
    assert course_document("responder", 3) == course_document("responder", 3)
    assert draw_curve("responder", 3) != draw_curve("responder", 4)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("course")
    write_subject(course_document("non-responder", 2, events=3_000), folder)
    return folder


def test_the_manifest_links_controls_that_exist_and_names_their_kind(course: Path) -> None:
    rows = load_manifest(course / "manifest.csv").rows
    (day14,) = (row for row in rows if row.acquisition == "non-responder-2-d14")
    assert day14.control_kind == (
        ControlKind.PRE_INFUSION,
        ControlKind.PRE_INFUSION,
        ControlKind.POSITIVE,
        ControlKind.FMO,
    )
    assert day14.beads_added is not None
    assert day14.collected_at is not None
    assert day14.car_reagent == "CD19 protein"


def test_true_cells_per_microlitre_follow_the_curve(course: Path) -> None:
    curve = draw_curve("non-responder", 2)
    checked = 0
    with (course / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            truth = json.loads((course / row["fcs_filename"]).with_suffix(".truth.json").read_text("utf-8"))
            day, wanted = int(row["study_day"]), curve.at(int(row["study_day"]))
            if day <= 0 or truth["parameters"]["fmo"] or wanted < 5:
                continue
            # Composition differs from sample to sample (log-normal, sd 0.45 a population), and the tubes are small.
            assert truth["beads"]["car_per_ul"] == pytest.approx(wanted, rel=0.6)
            checked += 1
    assert checked >= 2
