"""One acquisition: counts, reproducibility, clean-up rules, and truth that stays outside the file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from flowmrd.errors import SettingsError
from flowmrd.simulation import ChannelSet, Kind, Parameters, PhenotypeDraw, Simulated, simulate, simulate_marrow

CASE = Parameters(events=60_000, blasts=0.02, scenario="regenerating")


@pytest.fixture(scope="module")
def case() -> Simulated:
    return simulate_marrow(CASE, 21)


def test_channels_are_those_of_the_tube(case: Simulated) -> None:
    assert [channel.pnn for channel in case.channels[:5]] == ["FSC-A", "FSC-H", "FSC-W", "SSC-A", "SSC-H"]
    assert {channel.pns for channel in case.channels if channel.pns} == {
        "CD45", "CD19", "CD10", "CD20", "CD34", "CD38", "CD58", "CD66c+CD123", "CD22", "CD24", "Viability",
    }  # fmt: skip
    assert case.channels[-1].pnn == "Time"
    compact = simulate(replace(CASE, channels=ChannelSet.COMPACT, events=10), 21)
    assert [channel.pnn for channel in compact.channels if not channel.pns] == ["FSC-A", "FSC-H", "SSC-A", "Time"]


def test_the_truth_counts_what_the_labels_say(case: Simulated) -> None:
    labels, truth = case.labels, case.truth
    assert sum(truth["events"].values()) == 60_000
    assert truth["mrd"]["blasts"] == labels.blast.sum() == labels.is_population("blast").sum()
    assert truth["mrd"]["denominator"] == labels.nucleated.sum()
    assert truth["mrd"]["fraction"] == labels.blast.sum() / labels.nucleated.sum()
    assert not (labels.blast & ~labels.nucleated).any()
    assert truth["populations"]["cell"]["cd4_t"] == labels.is_population("cd4_t").sum()
    assert (labels.partner >= 0).sum() == truth["events"]["doublet"]


def test_the_number_of_blasts_is_a_poisson_draw_around_the_level() -> None:
    counts = [simulate(Parameters(events=4000, blasts=0.01), seed).truth["mrd"] for seed in range(60)]
    expected = np.mean([count["denominator"] for count in counts]) * 0.01
    blasts = np.array([count["blasts"] for count in counts])
    assert abs(blasts.mean() - expected) < 3 * np.sqrt(expected / 60)
    assert 0.5 < blasts.var() / expected < 1.7


def test_at_one_in_a_hundred_thousand_there_is_sometimes_no_blast() -> None:
    counts = [simulate(Parameters(events=3000, blasts=1e-4, channels=ChannelSet.COMPACT), s) for s in range(20)]
    assert any(case.truth["mrd"]["blasts"] == 0 for case in counts)
    assert simulate(Parameters(events=1000, blasts=1.0), 1).labels.nucleated.sum() > 700


def test_artefacts_are_in_the_range_of_a_routine_sample(case: Simulated) -> None:
    events = case.truth["events"]
    assert 0.035 < events["debris"] / 60_000 < 0.155
    assert 0.008 < events["dead"] / 60_000 < 0.055
    assert 0.008 < events["doublet"] / 60_000 < 0.04


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("phenotype", list(PhenotypeDraw))
def test_plain_clean_up_gates_remove_artefacts_and_lose_under_three_percent_of_blasts(
    seed: int, phenotype: PhenotypeDraw
) -> None:
    case = simulate(Parameters(events=40_000, blasts=0.05, phenotype=phenotype), seed)
    labels = case.labels
    ratio = case.channel("FSC-A") / np.maximum(case.channel("FSC-H"), 1.0)
    middle = np.median(ratio)
    singlet = np.abs(ratio - middle) < 5 * 1.4826 * np.median(np.abs(ratio - middle))
    large = case.channel("FSC-A") > 25_000
    alive = case.compensated("Viability") < 2500
    blasts = labels.blast
    for gate in (singlet, large, alive):
        assert (blasts & ~gate).sum() < 0.03 * blasts.sum()
    assert (blasts & singlet & large & alive).sum() > 0.97 * blasts.sum()
    assert (labels.is_kind(Kind.DOUBLET) & singlet).sum() < 0.1 * labels.is_kind(Kind.DOUBLET).sum()
    assert (labels.is_kind(Kind.DEBRIS) & large).sum() < 0.1 * labels.is_kind(Kind.DEBRIS).sum()
    assert (labels.is_kind(Kind.DEAD) & alive).sum() < 0.15 * labels.is_kind(Kind.DEAD).sum()


def test_the_same_seed_gives_the_same_values_and_another_seed_others(case: Simulated) -> None:
    again = simulate(CASE, 21)
    assert (again.values == case.values).all()
    assert (again.labels.source == case.labels.source).all()
    assert again.truth == case.truth
    assert (simulate(CASE, 22).values[0] != case.values[0]).mean() > 0.99


def test_the_number_of_threads_changes_no_bit(case: Simulated) -> None:
    script = (
        "import hashlib; from flowmrd.simulation import *;"
        "c = simulate(Parameters(events=60_000, blasts=0.02, scenario='regenerating'), 21);"
        "print(hashlib.sha256(c.values.tobytes()).hexdigest())"
    )
    for threads in ("1", "2"):
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, threads)}
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == hashlib.sha256(case.values.tobytes()).hexdigest()


def test_blasts_lie_in_no_special_place_of_the_run(case: Simulated) -> None:
    blast = case.labels.blast
    place = np.flatnonzero(blast) / len(blast)
    # Distance of the blasts' positions from evenly spread ones (Kolmogorov–Smirnov, 1 in 1000).
    ordered = np.arange(1, len(place) + 1) / len(place)
    assert np.abs(ordered - place).max() < 1.95 / np.sqrt(len(place))
    neighbours = (blast[1:] & blast[:-1]).sum()
    expected = blast.mean() ** 2 * len(blast)
    assert abs(neighbours - expected) < 5 * np.sqrt(expected)


def test_kinds_do_not_follow_one_another_in_any_pattern(case: Simulated) -> None:
    source = case.labels.source
    for name in ("cd4_t", "granulocyte_mature"):
        member = source == case.labels.names.index(name)
        correlation = np.corrcoef(member[1:], member[:-1])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(len(member))


def test_time_rises_and_says_nothing_about_the_kind_of_event(case: Simulated) -> None:
    time = case.channel("Time").astype(np.float64)
    assert (np.diff(time) >= 0).all()
    assert (time == np.floor(time)).all()
    gap = np.diff(time, prepend=0.0)
    blast = case.labels.blast
    assert abs(gap[blast].mean() - gap[~blast].mean()) < 5 * gap.std() / np.sqrt(blast.sum())


def test_the_last_digits_of_blasts_are_those_of_all_events(case: Simulated) -> None:
    blast = case.labels.blast
    for name in ("FSC-A", "CD58", "CD34"):
        bits = case.channel(name).view(np.uint32) & 0xF
        share = np.bincount(bits[blast], minlength=16) / blast.sum()
        assert np.abs(share - 1 / 16).max() < 5 * np.sqrt(1 / 16 / blast.sum())


def test_the_level_changes_neither_instrument_nor_header_nor_the_cells_that_are_not_blasts() -> None:
    with_blasts, without = simulate(CASE, 21), simulate(replace(CASE, blasts=0.0), 21)
    assert with_blasts.keywords == without.keywords
    assert with_blasts.channels == without.channels
    assert (with_blasts.spillover.matrix == without.spillover.matrix).all()
    assert (with_blasts.labels.kind == without.labels.kind).all()
    assert (with_blasts.channel("Time") == without.channel("Time")).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (Parameters(blasts=2.0), "blasts: expected a fraction between 0 and 1 (1e-4 is 0.01 %), got 2.0"),
        (Parameters(events=0), "events: expected a whole number ≥ 1, got 0"),
        (Parameters(batch=-1.0), "batch: expected a strength between 0 and 10, got -1.0"),
        (Parameters(car=0.1), "car: tube 'ball-mrd-10c' has no CAR reagent (use a CAR-T tube)"),
        (Parameters(beads=True), "beads: tube 'ball-mrd-10c' has no beads in its profile"),
        (
            Parameters(tube="tbnk", blasts=0.1),
            "blasts: tube 'tbnk' has no leukemia in its profile (leave it at 0)",
        ),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters: Parameters, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        simulate(parameters, 1)
    assert str(caught.value) == message


def test_a_blood_tube_is_no_marrow() -> None:
    with pytest.raises(SettingsError, match="is not a leukemia tube"):
        simulate_marrow(Parameters(tube="tbnk"), 1)


def test_names_that_do_not_exist_are_answered_with_those_that_do(case: Simulated) -> None:
    with pytest.raises(SettingsError, match="no channel 'CD99'"):
        case.channel("CD99")
    with pytest.raises(SettingsError, match="no population 'plasma'"):
        case.labels.is_population("plasma")
