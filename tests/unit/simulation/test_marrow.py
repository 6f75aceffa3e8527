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
    rng = np.random.default_rng(0)
    return [draw_immunophenotype(PROFILE, rng, hard=hard) for _ in range(count)]


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


def test_an_immunophenotype_of_another_tube_counts_as_far_as_this_one_can_see_it() -> None:
    wide = PLAIN.model_copy(
        update={
            "shifts": {"CD58": 0.5, "CD81": -0.6},
            "bimodal": Bimodal(marker="CD81", fraction=0.5, shift=-1.0),
        }
    )
    seen = simulate_marrow(Parameters(events=500, blasts=0.1, phenotype=wide), 1).truth["immunophenotype"]
    assert seen["shifts"] == {"CD58": 0.5}
    assert seen["bimodal"] is None


def test_an_immunophenotype_that_the_tube_cannot_see_or_nobody_knows_is_refused(tmp_path: Path) -> None:
    toml = tmp_path / "p.toml"
    toml.write_text("start = 0.12\nspread = 0.02\nshifts = { CD81 = -0.5 }\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"shifts: tube 'ball-mrd-10c' holds none of CD81 \(one of: CD58"):
        load_immunophenotype(toml, PROFILE)
    toml.write_text("start = 0.12\nspread = 0.02\nshifts = { CD58 = 0.5, CD999 = -0.5 }\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"'CD999' is not a marker of tube 'ball-mrd-10c' \(one of: CD58"):
        load_immunophenotype(toml, PROFILE)
    toml.write_text("start = 1.2\nspread = 0.02\nshifts = {}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="start: Input should be less than or equal to 1"):
        load_immunophenotype(toml, PROFILE)


def test_two_tubes_of_one_patient_see_the_same_leukemia() -> None:
    agree = []
    for patient in range(40):
        one, two = (
            simulate_marrow(Parameters(tube=tube, events=10, blasts=0.5, patient_seed=patient), seed).truth
            for seed, tube in enumerate(("euroflow-bcp-mrd-1", "euroflow-bcp-mrd-2"))
        )
        first, second = one["immunophenotype"], two["immunophenotype"]
        assert first["start"] == second["start"]
        assert one["marker_shift_log10"]["patient"]["CD19"] == two["marker_shift_log10"]["patient"]["CD19"]
        for marker in set(first["shifts"]) & set(second["shifts"]):
            assert first["hard"] != second["hard"] or first["shifts"][marker] == second["shifts"][marker]
        common = {"CD38", "CD10", "CD45", "CD20", "CD34", "CD19", "CD81"}
        agree.append(common & set(first["shifts"]) == common & set(second["shifts"]))
    assert np.mean(agree) > 0.7


def test_a_bimodal_marker_goes_where_there_is_room() -> None:
    assert PROFILE.course is not None
    for patient in drawn(1000, hard=False):
        if patient.bimodal is None:
            continue
        marker = patient.bimodal.marker
        normal = np.interp(patient.start, PROFILE.course.knots, PROFILE.course.marker[marker].mean)
        level = normal + patient.shifts[marker] + patient.bimodal.shift
        assert 1.0 < level < 5.2, (marker, level)
    means = simulate_marrow(
        Parameters(events=20_000, blasts=0.3, phenotype=PLAIN.model_copy(update={"shifts": {"CD10": 3.0}}), batch=0.0),
        1,
    )
    assert np.median(means.channel("CD10")[means.labels.blast]) < 10**5.1


def test_what_has_changed_since_the_diagnosis_moves_the_blasts_and_nothing_else() -> None:
    still, moved = (
        simulate_marrow(Parameters(events=20_000, blasts=0.2, phenotype=PLAIN, drift=drift), 4) for drift in (0.0, 0.3)
    )
    by = moved.truth["phenotype_drift_log10"]
    assert still.truth["phenotype_drift_log10"] == {}
    assert set(by) == set(PROFILE.markers) - {"Viability"}
    normal = ~still.labels.blast
    assert (still.channel("FSC-A") == moved.channel("FSC-A")).all()
    for marker in ("CD10", "CD58"):
        before, after = (case.compensated(marker) for case in (still, moved))
        seen = np.log10(np.median(after[moved.labels.blast]) / np.median(before[still.labels.blast]))
        assert abs(seen - by[marker]) < 0.06, marker
        assert np.allclose(before[normal & still.labels.nucleated], after[normal & still.labels.nucleated])


def test_a_marrow_at_diagnosis_is_mostly_leukemia_unless_a_level_is_given() -> None:
    drawn_levels = [
        simulate_marrow(Parameters(events=500, scenario="diagnosis"), s).truth["mrd"]["level"] for s in range(8)
    ]
    assert min(drawn_levels) >= 0.30
    assert max(drawn_levels) <= 0.92
    assert len(set(drawn_levels)) == 8
    low = simulate_marrow(Parameters(events=500, scenario="diagnosis", blasts=0.05), 1).truth["mrd"]
    assert low["level"] == 0.05
    assert simulate_marrow(Parameters(events=500), 1).truth["mrd"]["blasts"] == 0
