"""Cases in memory: the same events as the file's, compensated or not, and aberrations that are left out."""

from __future__ import annotations

import numpy as np
import pytest

from flowmrd.errors import SettingsError
from flowmrd.simulation import Parameters, PhenotypeDraw, load_profile, simulate, simulate_case
from flowmrd.simulation.marrow import draw_immunophenotype, remaining_aberrations

PROFILE = load_profile("ball-mrd-10c").profile
LEUKEMIA = PROFILE.leukemia


def test_a_case_has_the_values_that_the_file_would_have() -> None:
    case = simulate_case(seed=5, level=0.05, events=3000, scenario="recovery", compensated=False)
    file = simulate(Parameters(events=3000, blasts=0.05, scenario="recovery"), 5)
    assert (case.values == file.values).all()
    assert case.names[0] == "FSC-A"
    assert case.names[-1] == "Time"
    assert case.pnn == tuple(channel.pnn for channel in file.channels)
    assert case.truth == file.truth
    assert not case.values.flags.writeable


def test_a_compensated_case_is_compensated_by_the_matrix_of_the_file() -> None:
    case = simulate_case(seed=5, events=3000)
    file = simulate(Parameters(events=3000), 5)
    for marker in ("CD34", "Viability"):
        seen = case.values[case.names.index(marker)]
        np.testing.assert_allclose(seen, file.compensated(marker), rtol=1e-4, atol=0.1)
    assert (case.values[0] == file.values[0]).all()


def test_hard_true_and_false_choose_the_kind_of_patient() -> None:
    truths = {h: simulate_case(seed=3, level=0.2, events=300, hard=h).truth for h in (True, False)}
    assert truths[True]["immunophenotype"]["hard"]
    assert not truths[False]["immunophenotype"]["hard"]
    assert truths[True]["parameters"]["phenotype"] == PhenotypeDraw.HARD.value


def test_a_patient_keeps_the_immunophenotype_between_diagnosis_and_follow_up() -> None:
    diagnosis = simulate_case(seed=1, patient_seed=9, level=0.5, events=300, scenario="induction")
    later = simulate_case(seed=2, patient_seed=9, level=0.1, events=300, scenario="aplasia", cd19="negative")
    assert diagnosis.truth["immunophenotype"] == later.truth["immunophenotype"]
    assert later.truth["target_loss"]["status"] == "negative"


def test_left_out_aberrations_are_never_drawn() -> None:
    assert LEUKEMIA is not None
    rng = np.random.default_rng(0)
    left_out = ("CD58", "CD10 up", "CD38 down")
    for hard in (False, True):
        for _ in range(300):
            drawn = draw_immunophenotype(PROFILE, rng, hard=hard, left_out=left_out)
            assert not {"CD58", "CD38"} & set(drawn.shifts)
            assert drawn.shifts.get("CD10", -1.0) < 0
    assert remaining_aberrations(LEUKEMIA, ())["CD10"][1] == list(LEUKEMIA.aberration["CD10"].range)


def test_leaving_nothing_out_changes_no_draw() -> None:
    one = simulate_case(seed=4, level=0.1, events=200)
    assert (one.values == simulate_case(seed=4, level=0.1, events=200, left_out=()).values).all()


def test_an_unknown_or_too_long_list_of_aberrations_is_refused() -> None:
    with pytest.raises(SettingsError, match="left-out: no aberration 'CD99'"):
        simulate_case(seed=4, events=10, left_out=("CD99",))
    assert LEUKEMIA is not None
    with pytest.raises(SettingsError, match="left-out: a patient needs 2 aberrations"):
        simulate_case(seed=4, events=10, left_out=tuple(LEUKEMIA.aberration)[1:])
    with pytest.raises(SettingsError, match="tube 'tbnk' has no leukemia"):
        simulate_case(seed=4, events=10, tube="tbnk", left_out=("CD58",))
