"""Cuts by control acquisitions: residual spillover, drift, composition and recovery on drawn intensities."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.errors import GatingError
from flowmrd.gating.control import (
    Anchored,
    Intensities,
    _share,
    anchored,
    control_quantile,
    residual_spillover,
    tail_of_sample,
)

CELLS = 60_000


def drawn(
    seed: int,
    *,
    fraction: float = 0.0,
    background: float = 1.8,
    sticky: float = 0.0006,
    brightness: float = 3.4,
    gain: float = 1.0,
    leak: float = 0.0,
    naive: float = 0.4,
    cells: int = CELLS,
) -> tuple[Intensities, NDArray[np.bool_]]:
    """T cells of two subsets; a dye of the first leaks and widens the channel; positives are in the second."""
    rng = np.random.default_rng(seed)
    first = rng.random(cells) < naive
    positive = ~first & (rng.random(cells) < fraction / (1 - naive))
    other = np.where(first, 10 ** rng.normal(4.2, 0.15, cells), 10 ** rng.normal(2.3, 0.3, cells))
    reagent = 10 ** rng.normal(background, 0.35, cells)
    stuck = rng.random(cells) < sticky
    reagent[stuck] = 10 ** rng.normal(2.9, 0.35, int(stuck.sum()))
    reagent[positive] = 10 ** rng.normal(brightness, 0.3, int(positive.sum()))
    noise = rng.normal(0.0, 30.0 + 60.0 * first, cells)
    values = gain * (85.0 + reagent) + noise + leak * other
    return Intensities(values=values, others=other[None], strata=first.astype(np.intp)), positive


def measured(sample: Intensities, seed: int, **kinds: float) -> Anchored:
    controls = [drawn(seed + step, naive=0.6)[0] for step in (1, 2)]
    product = drawn(seed + 3, fraction=0.3, cells=20_000, brightness=kinds.get("brightness", 3.4))[0]
    return anchored(sample, controls, product=product)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_the_fraction_is_found_within_five_percent_through_drift_leak_and_another_composition(fraction: float) -> None:
    sample, positive = drawn(10, fraction=fraction, gain=1.2, leak=0.004)
    found = measured(sample, 20)
    truth = float(positive.mean())
    assert found.fraction == pytest.approx(truth, rel=0.05)
    assert found.ci_low <= truth <= found.ci_high


def test_without_the_population_the_interval_holds_zero() -> None:
    sample, _ = drawn(30, gain=0.85, leak=-0.004)
    found = measured(sample, 40)
    assert found.ci_low <= 0 <= found.ci_high
    assert found.fraction < 0.0005


def test_dim_positives_are_counted_for_the_share_that_hides_below_the_cut() -> None:
    sample, positive = drawn(50, fraction=0.1, brightness=2.95)
    found = measured(sample, 60, brightness=2.95)
    assert found.recovery < 0.9
    assert found.events / found.parent_events < 0.95 * positive.mean()
    assert found.fraction == pytest.approx(float(positive.mean()), rel=0.08)


def test_what_leaks_of_another_dye_is_measured_on_the_negative_events() -> None:
    sample, _ = drawn(70, fraction=0.3, leak=0.006)
    assert residual_spillover(sample.values, sample.others)[0] == pytest.approx(0.006, abs=0.0012)


def test_the_counts_above_the_cut_are_those_of_the_cleaned_values() -> None:
    sample, _ = drawn(80, fraction=0.05)
    found = measured(sample, 90)
    cleaned = sample.values - found.spillover @ sample.others
    assert found.events == int((cleaned > found.cut).sum())
    assert found.parent_events == CELLS


def test_the_same_events_give_the_same_cut() -> None:
    sample, _ = drawn(80, fraction=0.05, cells=5000)
    assert measured(sample, 90).cut == measured(sample, 90).cut


def test_a_quantile_of_controls_is_that_of_their_joined_events() -> None:
    assert control_quantile([np.arange(0.0, 500.0), np.arange(500.0, 1001.0)], 0.99) == 990.0


def test_the_tail_of_the_sample_lies_above_its_background_and_below_bright_positives() -> None:
    sample, positive = drawn(100, fraction=0.2)
    cut = tail_of_sample(sample.values)
    assert (sample.values[positive] > cut).mean() > 0.85
    assert (sample.values[~positive] > cut).mean() < 0.01


def test_no_control_and_too_few_events_are_refused() -> None:
    sample, _ = drawn(110, cells=500)
    few, _ = drawn(111, cells=50)
    with pytest.raises(GatingError, match="expected at least one control"):
        anchored(sample, [])
    with pytest.raises(GatingError, match="at least 200 events in the control; got 50"):
        anchored(sample, [few])
    with pytest.raises(GatingError, match="expected events in the controls"):
        control_quantile([], 0.999)


@pytest.mark.parametrize(("background", "gain", "naive"), [(2.1, 0.7, 0.1), (2.1, 0.7, 0.05), (1.5, 1.2, 0.1)])
def test_with_a_product_a_sample_full_of_dim_positives_is_not_taken_for_a_brighter_one(
    background: float, gain: float, naive: float
) -> None:
    sample, positive = drawn(30, fraction=0.55, brightness=2.9, background=background, gain=gain, naive=naive)
    control = drawn(31, background=background, naive=0.6)[0]
    product = drawn(32, fraction=0.3, brightness=2.9, background=background, cells=20_000)[0]
    assert anchored(sample, [control], product=product).fraction == pytest.approx(float(positive.mean()), rel=0.3)


def test_without_a_product_dim_positives_are_found_or_the_match_is_far_off() -> None:
    for naive in (0.1, 0.05):
        sample, positive = drawn(30, fraction=0.55, brightness=2.9, background=2.1, gain=0.7, naive=naive)
        found = anchored(sample, [drawn(31, background=2.1, naive=0.6)[0]])
        assert found.fraction == pytest.approx(float(positive.mean()), rel=0.2) or found.matches[0].gain > 2.0


@pytest.mark.parametrize("seed", range(40, 46))
def test_one_control_and_no_product_give_no_positives_where_there_are_none(seed: int) -> None:
    sample, _ = drawn(seed, gain=0.8 + 0.1 * (seed % 5), sticky=0.001, background=2.0, naive=0.3)
    found = anchored(sample, [drawn(seed + 100, sticky=0.001, background=2.0, naive=0.6)[0]])
    assert found.ci_low <= 0
    assert abs(found.fraction) < 0.002


def test_the_product_of_a_brighter_day_says_how_dim_the_samples_positives_are() -> None:
    sample, positive = drawn(50, fraction=0.02, brightness=3.1, background=2.1)
    controls = [drawn(51 + step, background=2.1, naive=0.6)[0] for step in (0, 1)]
    product = drawn(53, fraction=0.3, brightness=3.1, background=2.1, gain=1.5, cells=20_000)[0]
    found = anchored(sample, controls, product=product)
    assert found.fraction == pytest.approx(float(positive.mean()), rel=0.1)
    assert found.ci_low <= positive.mean() <= found.ci_high


def test_an_interval_on_assumed_brightness_is_wider_upwards() -> None:
    sample, _ = drawn(60, fraction=0.0015, brightness=3.3)
    found = anchored(sample, [drawn(61, naive=0.6)[0]])
    assert found.ci_high - found.fraction > found.fraction - found.ci_low


@pytest.mark.parametrize("logit", [-1e6, -750.0, -40.0, 0.0, 40.0, 750.0, 1e6])
def test_a_share_is_defined_however_far_a_search_for_it_ran(logit: float) -> None:
    # A sample without positives, matched badly by one of the starts: the search runs to a share of e^-710 and beyond.
    share = _share(logit)
    assert 0 < share < 1
    assert share == pytest.approx(1 / (1 + np.exp(-np.float64(logit).clip(-500, 500))), abs=1e-12)
