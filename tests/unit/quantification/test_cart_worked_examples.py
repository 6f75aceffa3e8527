"""CAR fraction, bead and dual-platform counts, qPCR, dose, kinetics and half-life of the domain's worked examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowmrd.quantification.absolute import Share, bead_count, dual_platform_count, lymphocytes_per_ul
from flowmrd.quantification.cart import Background, dose_per_kg, measure_car, vector_copies, wald_difference
from flowmrd.quantification.kinetics import Sample, course_kinetics, is_aplastic

TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def examples(shared: Path) -> dict[str, Any]:
    return {one["id"]: one for one in json.loads((shared / "domain" / "worked_examples.json").read_text("utf-8"))}


def near(expected: Any) -> Any:
    return pytest.approx(expected, rel=TOLERANCE, abs=0)


def test_w08_single_platform_bead_count(examples: dict[str, Any]) -> None:
    one = examples["W08"]
    count = bead_count(**one["inputs"])
    expected = one["expected"]
    assert count.cells_per_ul == near(expected["cells_per_ul"])
    assert count.lod_per_ul == near(expected["lod_cells_per_ul_20"])
    assert count.lloq_per_ul == near(expected["lloq_cells_per_ul_50"])
    assert count.ci_low < count.cells_per_ul < count.ci_high


def test_w09_dual_platform_counts(examples: dict[str, Any]) -> None:
    given, expected = examples["W09"]["inputs"], examples["W09"]["expected"]
    blood = {"wbc_1e9_l": given["wbc_1e9_per_l"], "lymph_pct": given["lymph_percent_of_wbc"]}

    def exact(percent: float) -> Share:
        return Share(fraction=percent / 100, ci_low=percent / 100, ci_high=percent / 100)

    cd3, car, cd19 = (
        exact(given[name]) for name in ("cd3_percent_of_lymph", "car_percent_of_cd3", "cd19_percent_of_lymph")
    )
    assert lymphocytes_per_ul(**blood).fraction == near(expected["lymph_per_ul"])
    assert dual_platform_count(**blood, shares=(cd3,)).cells_per_ul == near(expected["cd3_per_ul"])
    assert dual_platform_count(**blood, shares=(cd3, car)).cells_per_ul == near(expected["car_per_ul"])
    assert dual_platform_count(**blood, shares=(cd19,)).cells_per_ul == near(expected["cd19_per_ul"])


def test_w10_background_subtracted_share(examples: dict[str, Any]) -> None:
    given, expected = examples["W10"]["inputs"], examples["W10"]["expected"]
    control = Background(events=given["control_car_events"], parent_events=given["control_cd3_events"])
    result = measure_car(events=given["car_events"], parent_events=given["cd3_events"], controls=[control])
    assert result.sample_fraction is not None
    assert result.background_fraction is not None
    assert result.net_fraction is not None
    assert result.net_interval is not None
    assert 100 * result.sample_fraction == near(expected["sample_percent"])
    assert 100 * result.background_fraction == near(expected["background_percent"])
    assert 100 * result.net_fraction == near(expected["net_percent"])
    assert [100 * limit for limit in result.net_interval] == near(expected["newcombe95_percent"])
    wald = wald_difference(given["car_events"], given["cd3_events"], control.events, control.parent_events)
    assert [100 * limit for limit in wald] == near(expected["wald95_percent"])
    assert result.detected is expected["detected"]


@pytest.mark.parametrize("name", ["W11", "W12"])
def test_w11_and_w12_kinetics_and_half_life(examples: dict[str, Any], name: str) -> None:
    given, expected = examples[name]["inputs"], examples[name]["expected"]
    samples = [
        Sample(day=day, car_per_ul=value, lod_per_ul=given["lod_per_ul"])
        for day, value in zip(given["days"], given["car_per_ul"], strict=True)
    ]
    found = course_kinetics(samples, subject="S").kinetics
    for key, value in expected.items():
        assert getattr(found, key) == near(value), key
    assert found.lambda_z_points == len(given["lambda_z_point_indices"])


def test_w13_copies_per_cell(examples: dict[str, Any]) -> None:
    given, expected = examples["W13"]["inputs"], examples["W13"]["expected"]
    found = vector_copies(given["copies_per_ug"], copies_per_car_cell=given["vcn_per_car_cell"])
    assert found.genomes_per_ug == near(expected["genomes_per_ug"])
    assert found.copies_per_cell == near(expected["copies_per_cell"])
    assert found.car_fraction_of_nucleated is not None
    assert 100 * found.car_fraction_of_nucleated == near(expected["car_fraction_percent_of_nucleated"])


def test_w17_dose(examples: dict[str, Any]) -> None:
    given, expected = examples["W17"]["inputs"], examples["W17"]["expected"]
    found = dose_per_kg(
        viable_cells_per_ml=given["viable_cells_per_ml"],
        volume_ml=given["volume_ml"],
        cd3_fraction=given["cd3_percent"] / 100,
        car_fraction_of_cd3=given["car_percent_of_cd3"] / 100,
        weight_kg=given["weight_kg"],
    )
    assert found.car_t_total == near(expected["car_t_total"])
    assert found.per_kg == near(expected["dose_per_kg"])
    assert found.in_range is expected["in_range_2e6_2e7"]


def test_w20_aplasia_and_recovery(examples: dict[str, Any]) -> None:
    given, expected = examples["W20"]["inputs"], examples["W20"]["expected"]
    samples = [Sample(day=one["day"], cd19_per_ul=one["cd19_per_ul"]) for one in given["series"]]
    found = course_kinetics(samples, subject="S").kinetics
    assert [is_aplastic(one) for one in samples] == expected["aplasia_by_sample"]
    assert found.recovery_day == expected["recovery_day"]
    assert found.early_recovery_within_180d is expected["early_recovery_within_180d"]
