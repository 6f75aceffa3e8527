"""Profiles: shipped ones are whole, faulty ones are refused with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowmrd.errors import SettingsError
from flowmrd.simulation import Parameters, load_profile, simulate, tube_ids

SCENARIOS = [(tube, scenario) for tube in tube_ids() for scenario in load_profile(tube).profile.scenario]


def test_a_profile_ships_for_every_template() -> None:
    templates = Path(__file__).resolve().parents[3] / "gating_templates"
    assert tube_ids() == tuple(sorted(path.stem for path in templates.glob("*.toml")))


@pytest.mark.parametrize(("tube", "scenario"), SCENARIOS)
def test_every_scenario_of_every_tube_simulates(tube: str, scenario: str) -> None:
    case = simulate(Parameters(tube=tube, scenario=scenario, events=3000), 1)
    assert case.values.shape[1] == 3000
    assert abs(sum(case.truth["composition"].values()) - 1.0) < 1e-9


def test_an_unknown_tube_names_the_known_ones() -> None:
    with pytest.raises(SettingsError) as caught:
        load_profile("ball-mrd-99c")
    assert str(caught.value) == ("tube: unknown tube 'ball-mrd-99c' (one of: " + ", ".join(tube_ids()) + ")")


def test_an_override_changes_one_number_and_the_digest(tmp_path: Path) -> None:
    override = tmp_path / "mine.toml"
    override.write_text("[instrument.noise]\nphoton_units = 20.0\n", encoding="utf-8")
    plain, changed = load_profile("ball-mrd-10c"), load_profile("ball-mrd-10c", override=override)
    assert changed.profile.instrument.noise.photon_units == 20.0
    assert changed.profile.instrument.noise.electronic_sd == plain.profile.instrument.noise.electronic_sd
    assert changed.digest != plain.digest


def test_a_misspelt_key_is_refused_with_its_path(tmp_path: Path) -> None:
    override = tmp_path / "mine.toml"
    override.write_text("[instrument.noise]\nfoton_units = 20.0\n", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_profile("ball-mrd-10c", override=override)
    assert caught.value.where == "instrument.noise.foton_units"
    assert caught.value.source == str(override)


def test_several_faults_are_told_together(tmp_path: Path) -> None:
    override = tmp_path / "mine.toml"
    override.write_text("[spillover]\nCD99 = { CD45 = 0.1 }\n[group]\nnew = { nobody = 1.0 }\n", encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        load_profile("ball-mrd-10c", override=override)
    assert [str(error) for error in caught.value.exceptions] == [
        f"{override}, spillover.CD99: 'CD99' is not a marker of the tube",
        f"{override}, group.new: 'nobody' is not a population",
    ]


def test_text_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    override = tmp_path / "mine.toml"
    override.write_text("= 3", encoding="utf-8")
    with pytest.raises(SettingsError, match="is not TOML"):
        load_profile("tbnk", override=override)
