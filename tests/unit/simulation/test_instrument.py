"""Detectors: spread of compensated negatives, the file's matrix, drift, clogs, range ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowmrd.simulation import ChannelSet, Immunophenotype, Parameters, simulate


def spread(values: NDArray[np.float64]) -> float:
    low, high = np.percentile(values, [16, 84])
    return float(high - low) / 2


def test_compensated_negatives_spread_with_the_brightness_of_a_neighbour() -> None:
    # CD34 spills into CD19: with more CD34 the CD19-negative blasts of one patient spread more, around the same place.
    widths, centres = [], []
    for shift in (-2.0, 0.0, 0.8):
        phenotype = Immunophenotype(start=0.08, spread=0.01, shifts={"CD34": shift, "CD19": -3.0})
        case = simulate(Parameters(events=20_000, blasts=0.3, phenotype=phenotype, batch=0.0), 6)
        cd19 = case.compensated("CD19")[case.labels.blast]
        widths.append(spread(cd19))
        centres.append(float(np.median(cd19)))
    assert widths[0] < widths[1] < widths[2]
    assert widths[2] > 2 * widths[0]
    assert max(centres) - min(centres) < widths[2]


def test_compensated_negatives_go_below_zero() -> None:
    case = simulate(Parameters(events=30_000, scenario="recovery"), 2)
    hematogones = case.labels.is_population("hematogone_1", "hematogone_2")
    assert 0.2 < (case.compensated("Viability")[hematogones] < 0).mean() < 0.9


def test_the_matrix_of_the_file_is_near_the_true_one_but_not_equal() -> None:
    case = simulate(Parameters(events=100, batch=0.0), 3)
    true = np.array(case.truth["spillover_true"]["matrix"])
    written = case.spillover.matrix
    spilling = (true > 0) & (true < 1)
    ratio = written[spilling] / true[spilling]
    assert 0.005 < np.abs(ratio - 1).mean() < 0.04
    assert (written[~spilling] == true[~spilling]).all()
    assert np.linalg.cond(written) < 10


def test_the_matrix_is_measured_behind_the_gains_of_the_detectors() -> None:
    case = simulate(Parameters(events=40_000, batch=3.0), 4)
    gain = np.array(list(case.truth["detector_gain"].values()))
    assert gain.max() / gain.min() > 1.5
    # Granulocytes carry no CD22, into which CD24 spills: after compensation the one does not follow the other.
    cells = case.labels.is_population("granulocyte_mature")
    source, target = case.compensated("CD24")[cells], case.compensated("CD22")[cells]
    assert abs(np.polyfit(source, target, 1)[0]) < 0.02
    raw = np.polyfit(source, case.channel("CD22")[cells], 1)[0]
    assert abs(raw) > 0.05


def test_a_clog_lowers_the_signals_of_its_window_only(tmp_path: Path) -> None:
    profile = tmp_path / "clog.toml"
    profile.write_text("[instrument.clog]\nchance = 1.0\nlength = [0.08, 0.08]\n", encoding="utf-8")
    case = simulate(Parameters(events=60_000, profile=profile), 5)
    clog = case.truth["clog"]
    phase = case.channel("Time") / case.channel("Time")[-1]
    inside = (phase > clog["start"] + 0.005) & (phase < clog["start"] + clog["length"] - 0.005)
    outside = (phase < clog["start"] - 0.005) | (phase > clog["start"] + clog["length"] + 0.005)
    cd45 = case.channel("CD45")
    cells = case.labels.is_population("cd4_t", "cd8_t")
    ratio = np.median(cd45[cells & inside]) / np.median(cd45[cells & outside])
    assert abs(ratio - clog["signal"]) < 0.05
    fsc = case.channel("FSC-A")
    assert abs(np.median(fsc[cells & inside]) / np.median(fsc[cells & outside]) - clog["scatter"]) < 0.05


def test_values_stay_within_the_range_and_scatter_is_never_negative() -> None:
    case = simulate(Parameters(tube="cart-persistence", events=20_000, batch=2.5), 9)
    assert case.values.max() <= 262_143
    assert case.values.min() >= -900
    for name in ("FSC-A", "FSC-H", "FSC-W", "SSC-A", "SSC-H"):
        assert case.channel(name).min() >= 0


def test_a_bad_day_shifts_reagents_more_and_a_laboratory_shifts_all_its_files_alike() -> None:
    def shifts(name: str, parameters: Parameters, seed: int) -> list[float]:
        return list(simulate(parameters, seed).truth["marker_shift_log10"][name].values())

    tiny = Parameters(events=10, channels=ChannelSet.COMPACT)
    good = np.std([shifts("antibody", tiny, seed) for seed in range(20)])
    bad = np.std([shifts("antibody", Parameters(events=10, batch=2.5), seed) for seed in range(20)])
    assert abs(bad / good - 2.5) < 1e-9
    assert 0.04 < good < 0.06
    a1, a2, b = (
        shifts("laboratory", Parameters(events=10, lab=lab), seed) for lab, seed in (("A", 1), ("A", 2), ("B", 1))
    )
    assert a1 == a2
    assert a1 != b
    assert not any(shifts("laboratory", tiny, 1))
