"""Immunophenotypes: drawn, given, and after loss of the therapy's target."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flowmrd.errors import SettingsError
from flowmrd.simulation import (
    Bimodal,
    ChannelSet,
    Immunophenotype,
    Parameters,
    PhenotypeDraw,
    TargetStatus,
    load_immunophenotype,
    load_profile,
    simulate_marrow,
)
from flowmrd.simulation.marrow import draw_immunophenotype

PROFILE = load_profile("ball-mrd-10c").profile
PLAIN = Immunophenotype(start=0.12, spread=0.02, shifts={"CD58": 0.5, "CD38": -0.8})


def drawn(count: int, *, hard: bool | None = None) -> list[Immunophenotype]:
    assert PROFILE.leukemia is not None
    rng = np.random.default_rng(0)
    return [draw_immunophenotype(PROFILE.leukemia, rng, hard=hard) for _ in range(count)]


def test_a_fifth_of_patients_are_hard_and_a_third_have_one_bimodal_marker() -> None:
    patients = drawn(2000)
    assert 0.17 < np.mean([p.hard for p in patients]) < 0.23
    assert 0.30 < np.mean([p.bimodal is not None for p in patients]) < 0.37


def test_patients_have_two_to_six_aberrations_and_hard_ones_two_weak_ones() -> None:
    assert {len(p.shifts) for p in drawn(1000, hard=False)} == {2, 3, 4, 5, 6}
    hard = drawn(1000, hard=True)
    assert {len(p.shifts) for p in hard} == {2}
    assert max(p.shifts.get("CD58", 0.0) for p in hard) <= 0.6 * 0.75


def test_a_drawn_immunophenotype_lands_in_the_range_of_its_marker() -> None:
    for patient in drawn(300, hard=False):
        assert 0.30 <= patient.shifts.get("CD58", 0.30) <= 0.75
        assert -1.2 <= patient.shifts.get("CD38", -0.35) <= -0.35


def test_the_shift_of_a_given_immunophenotype_is_seen_in_the_blasts() -> None:
    parameters = Parameters(
        events=60_000, blasts=0.1, scenario="recovery", phenotype=PLAIN, batch=0.0, channels=ChannelSet.COMPACT
    )
    case = simulate_marrow(parameters, 3)
    stage = case.labels.is_population("hematogone_1")
    for marker, shift in PLAIN.shifts.items():
        values = case.compensated(marker)
        seen = np.log10(np.median(values[case.labels.blast]) / np.median(values[stage]))
        assert abs(seen - shift) < 0.25, marker


def test_a_bimodal_marker_has_its_two_modes() -> None:
    phenotype = PLAIN.model_copy(update={"bimodal": Bimodal(marker="CD34", fraction=0.4, shift=-1.5)})
    case = simulate_marrow(Parameters(events=40_000, blasts=0.2, phenotype=phenotype), 5)
    low = case.compensated("CD34")[case.labels.blast] < 1500
    assert 0.35 < low.mean() < 0.45


@pytest.mark.parametrize(
    ("status", "low", "high"),
    [
        (TargetStatus.POSITIVE, 0.97, 1.0),
        (TargetStatus.DIM, 0.2, 1.0),
        (TargetStatus.NEGATIVE, 0.0, 0.05),
        (TargetStatus.MIXED, 0.25, 0.75),
    ],
)
def test_the_status_of_cd19_decides_how_many_blasts_carry_it(status: TargetStatus, low: float, high: float) -> None:
    case = simulate_marrow(Parameters(events=40_000, blasts=0.1, phenotype=PLAIN, cd19=status), 8)
    cd19 = case.compensated("CD19")
    threshold = np.percentile(cd19[case.labels.is_population("cd4_t", "cd8_t")], 99)
    assert low <= (cd19[case.labels.blast] > threshold).mean() <= high


def test_dim_blasts_are_dimmer_than_positive_ones() -> None:
    bright, dim = (
        np.median(case.compensated("CD19")[case.labels.blast])
        for case in (
            simulate_marrow(Parameters(events=20_000, blasts=0.2, phenotype=PLAIN, cd19=status), 8)
            for status in (TargetStatus.POSITIVE, TargetStatus.DIM)
        )
    )
    assert 0.05 < dim / bright < 0.35


def test_the_patient_seed_keeps_the_immunophenotype_over_visits() -> None:
    visits = [
        simulate_marrow(Parameters(events=2000, blasts=0.1, patient_seed=77, scenario=scenario), seed).truth
        for seed, scenario in enumerate(["normal", "aplasia", "recovery"])
    ]
    assert visits[0]["immunophenotype"] == visits[1]["immunophenotype"] == visits[2]["immunophenotype"]
    assert visits[0]["composition"] != visits[2]["composition"]
    assert visits[0]["marker_shift_log10"]["patient"] == visits[2]["marker_shift_log10"]["patient"]
    assert visits[0]["marker_shift_log10"]["antibody"] != visits[2]["marker_shift_log10"]["antibody"]


def test_hard_is_hard_for_every_patient() -> None:
    for seed in range(5):
        truth = simulate_marrow(Parameters(events=500, blasts=0.5, phenotype=PhenotypeDraw.HARD), seed).truth
        assert truth["immunophenotype"]["hard"]


def test_an_immunophenotype_is_read_from_toml_and_from_a_truth_file(tmp_path: Path) -> None:
    toml = tmp_path / "p.toml"
    toml.write_text("start = 0.12\nspread = 0.02\n[shifts]\nCD58 = 0.5\nCD38 = -0.8\n", encoding="utf-8")
    assert load_immunophenotype(toml, PROFILE) == PLAIN
    truth = tmp_path / "t.json"
    case = simulate_marrow(Parameters(events=500, blasts=0.1, phenotype=PLAIN), 1)
    truth.write_text(json.dumps(case.truth), encoding="utf-8")
    assert load_immunophenotype(truth, PROFILE) == PLAIN


def test_an_immunophenotype_of_another_tube_is_refused(tmp_path: Path) -> None:
    toml = tmp_path / "p.toml"
    toml.write_text("start = 0.12\nspread = 0.02\nshifts = { CD81 = -0.5 }\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"'CD81' is not a marker of tube 'ball-mrd-10c' \(one of: CD58"):
        load_immunophenotype(toml, PROFILE)
    toml.write_text("start = 1.2\nspread = 0.02\nshifts = {}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="start: Input should be less than or equal to 1"):
        load_immunophenotype(toml, PROFILE)
