"""Composition and the maturation course."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from flowmrd.errors import SettingsError
from flowmrd.simulation import ChannelSet, Parameters, Simulated, simulate, simulate_marrow

STAGES = ("early_pro_b", "hematogone_1", "hematogone_2", "hematogone_3", "transitional_b", "naive_b")


Medians = Callable[[str], list[float]]


@pytest.fixture(scope="module")
def marrow() -> Simulated:
    return simulate_marrow(Parameters(events=150_000, scenario="recovery", channels=ChannelSet.COMPACT), 4)


@pytest.fixture(scope="module")
def medians(marrow: Simulated) -> Medians:
    def of_stages(marker: str) -> list[float]:
        values = marrow.compensated(marker)
        return [float(np.median(values[marrow.labels.is_population(stage)])) for stage in STAGES]

    return of_stages


def test_cd45_and_cd20_rise_along_the_course(medians: Medians) -> None:
    for marker in ("CD45", "CD20"):
        # Before CD20 appears its stages are equal up to the background.
        steps = np.diff(medians(marker))
        assert (steps > -60).all(), marker
        assert (steps[1:] > 0).all(), marker


def test_cd10_and_cd20_draw_the_letter_l(medians: Medians) -> None:
    cd10, cd20 = medians("CD10"), medians("CD20")
    first, third, naive = 1, 3, 5
    assert cd10[first] > 3 * cd10[third] > 3 * cd10[naive]
    assert cd20[first] < 0.1 * cd20[third] < cd20[naive]


def test_cd34_is_lost_before_cd38_falls(medians: Medians) -> None:
    cd34, cd38 = medians("CD34"), medians("CD38")
    assert cd34[2] < 0.1 * cd34[1]
    assert cd38[3] > 0.4 * cd38[2]
    assert cd38[5] < 0.2 * cd38[3]


def test_stages_merge_instead_of_being_separate_clouds(marrow: Simulated) -> None:
    labels, cd20 = marrow.labels, marrow.compensated("CD20")
    second, third = (np.log10(np.maximum(cd20[labels.is_population(s)], 1.0)) for s in STAGES[2:4])
    assert np.percentile(second, 95) > np.percentile(third, 5)


def test_a_regenerating_marrow_has_its_forced_share_mostly_of_one_stage() -> None:
    for seed in range(6):
        case = simulate(Parameters(events=40_000, scenario="regenerating", channels=ChannelSet.COMPACT), seed)
        stages = [case.truth["composition"][stage] for stage in STAGES[1:4]]
        assert 0.05 <= sum(stages) <= 0.15
        assert 0.6 <= max(stages) / sum(stages) <= 0.85
        assert not case.labels.blast.any()


def test_aplasia_leaves_early_precursors_and_no_b_cells() -> None:
    case = simulate(Parameters(events=100_000, scenario="aplasia", channels=ChannelSet.COMPACT), 2)
    groups = case.truth["groups"]
    assert groups["early_pro_b"] > 5 * (groups["mature_b"] + 1)
    assert groups["hematogones"] < 30


def test_a_composition_varies_between_samples_and_not_with_the_number_of_events() -> None:
    one, two = (simulate(Parameters(events=2000), seed).truth["composition"] for seed in (1, 2))
    more = simulate(Parameters(events=5000), 1).truth["composition"]
    assert one == more
    assert abs(np.log(one["cd4_t"] / two["cd4_t"])) > 0.01


def test_an_unknown_scenario_names_the_tubes_own() -> None:
    with pytest.raises(SettingsError) as caught:
        simulate(Parameters(scenario="peak"), 1)
    assert str(caught.value) == (
        "scenario: tube 'ball-mrd-10c' has no scenario 'peak' "
        "(one of: normal, induction, regenerating, aplasia, recovery, hemodilute, diagnosis)"
    )
