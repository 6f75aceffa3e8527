"""CAR-T and lymphocyte tubes: background, sticky tail, FMO, beads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.simulation import Kind, Parameters, Simulated, simulate

TUBE = Parameters(tube="cart-persistence", events=60_000, scenario="aplasia", car=0.1)


@pytest.fixture(scope="module")
def case() -> Simulated:
    return simulate(TUBE, 3)


def t_cells(case: Simulated) -> NDArray[np.bool_]:
    names = [name for name in case.labels.names if name.startswith(("cd4_", "cd8_")) or name in {"dn_t", "nkt"}]
    return case.labels.is_population(*names)


def test_the_car_fraction_is_of_t_cells(case: Simulated) -> None:
    truth = case.truth["car"]
    assert truth["t_cells"] == t_cells(case).sum()
    assert truth["positive"] == case.labels.car.sum()
    assert abs(truth["fraction"] - 0.1) < 0.01
    assert not (case.labels.car & ~t_cells(case)).any()


def test_carriers_are_memory_and_effector_cells_with_less_cd3(case: Simulated) -> None:
    assert not (case.labels.car & case.labels.is_population("cd4_naive", "cd8_naive")).any()
    subset = case.labels.is_population("cd8_effector_memory")
    cd3 = case.compensated("CD3")
    carriers, others = cd3[subset & case.labels.car], cd3[subset & ~case.labels.car]
    assert abs(np.log10(np.median(carriers) / np.median(others)) + 0.08) < 0.03


def test_a_sticky_tail_of_t_cells_reaches_far_above_the_background(tmp_path: Path) -> None:
    tails = {}
    for share in (1e-9, 2e-3):
        profile = tmp_path / "sticky.toml"
        profile.write_text(
            f"[car]\nbackground_mean = [1.6, 1.6]\nsticky_share = [{share}, {share}]\n", encoding="utf-8"
        )
        sample = simulate(replace(TUBE, car=0.0, profile=profile), 4)
        tails[share] = sample.compensated("CAR")[t_cells(sample)]
    assert (tails[2e-3] > 900).mean() > 5e-4
    assert (tails[1e-9] > 900).mean() < 1e-4
    assert abs(np.median(tails[2e-3]) - np.median(tails[1e-9])) < 5


def test_the_pre_infusion_sample_has_the_background_but_no_car_cells(case: Simulated) -> None:
    before = simulate(replace(TUBE, car=0.0, scenario="normal", patient_seed=3), 31)
    assert before.truth["car"]["positive"] == 0
    assert before.truth["car"]["sticky_share"] == case.truth["car"]["sticky_share"]
    assert before.truth["car"]["positive_log10"] == case.truth["car"]["positive_log10"]
    day = before.truth["car"]["background_log10"][0] - case.truth["car"]["background_log10"][0]
    assert 0 < abs(day) < 0.25


def test_an_fmo_has_no_reagent_background_so_its_threshold_is_too_low(case: Simulated) -> None:
    stained = simulate(replace(TUBE, car=0.0), 3)
    fmo = simulate(replace(TUBE, car=0.0, fmo=True), 3)
    threshold = np.percentile(fmo.compensated("CAR")[t_cells(fmo)], 99.9)
    assert (stained.compensated("CAR")[t_cells(stained)] > threshold).mean() > 0.005


def test_dim_constructs_overlap_their_negatives() -> None:
    overlaps = []
    for seed in range(8):
        case = simulate(replace(TUBE, events=15_000, car=0.2), seed)
        car = case.compensated("CAR")
        cut = np.percentile(car[t_cells(case) & ~case.labels.car], 99)
        overlaps.append(float((car[case.labels.car] < cut).mean()))
    assert max(overlaps) > 0.05
    assert min(overlaps) < 0.02


def test_beads_are_bright_everywhere_with_low_fsc_and_the_top_of_ssc(case: Simulated) -> None:
    beads = case.labels.is_kind(Kind.BEAD)
    assert 0.008 < beads.mean() < 0.052
    for marker in ("CD45", "CD3", "CAR", "Viability"):
        assert np.percentile(case.compensated(marker)[beads], 1) > 15_000
    assert np.median(case.channel("FSC-A")[beads]) < 25_000
    assert (case.channel("SSC-A")[beads] > 200_000).mean() > 0.99
    truth = case.truth["beads"]
    assert 900 <= truth["per_ul"] <= 1100
    assert abs(truth["car_per_ul"] - case.labels.car.sum() / beads.sum() * truth["per_ul"]) < 1e-9


def test_b_cells_are_absent_in_aplasia_and_back_in_recovery() -> None:
    absent, back = (simulate(replace(TUBE, scenario=s), 5).truth["groups"]["b_cells"] for s in ("aplasia", "recovery"))
    assert absent < 20 < back


def test_a_lymphocyte_tube_has_beads_only_when_asked() -> None:
    plain, beads = (simulate(Parameters(tube="tbnk", events=5000, beads=flag), 2) for flag in (None, True))
    assert "beads" not in plain.truth
    assert not plain.labels.is_kind(Kind.BEAD).any()
    assert beads.labels.is_kind(Kind.BEAD).sum() > 100
    assert not any(channel.pns == "Viability" for channel in plain.channels)
