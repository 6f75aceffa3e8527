"""What a score is worth: a rising log density ratio, bounded by how many normals were seen."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.gating.detection.grow import mixing_share
from flowmrd.gating.detection.scores import calibrate

RNG = np.random.default_rng


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    apart=st.floats(-2, 8),
    spread=st.floats(0.2, 4),
    marrows=st.integers(1, 6),
)
def test_a_higher_score_is_never_worth_less(seed: int, apart: float, spread: float, marrows: int) -> None:
    rng = RNG(seed)
    normals = [rng.normal(0, 1, 800) for _ in range(marrows)]
    blasts = [rng.normal(apart, spread, 300) for _ in range(marrows)]
    found = calibrate(normals, blasts)
    scores = np.linspace(-20, 30, 400)
    assert np.all(np.diff(found(scores)) >= 0)
    assert np.all(np.isfinite(found(scores)))
    assert np.abs(found(scores)).max() <= 20.0


def test_the_ratio_is_that_of_the_densities_where_both_are_seen() -> None:
    rng = RNG(1)
    found = calibrate([rng.normal(0, 1, 40_000) for _ in range(4)], [rng.normal(2, 1, 40_000) for _ in range(4)])
    for at in (0.0, 0.5, 1.0, 1.5, 2.0):
        # Two normal densities of the same width, two apart: the ratio is a straight line.
        assert abs(found(np.array([at]))[0] - (2 * at - 2)) < 0.3


def test_a_marrow_of_many_events_weighs_no_more_than_one_of_few() -> None:
    rng = RNG(2)
    blasts = [rng.normal(4, 1, 2000)]
    few, many = rng.normal(0, 1, 2000), rng.normal(3, 1, 200_000)
    found = calibrate([few, many], blasts)
    # Half of the normals lie about 3, whatever the number of their events.
    expected = np.log(np.exp(-0.5 * 0.5**2) / (0.5 * np.exp(-0.5 * 0.5**2)))
    assert abs(found(np.array([3.5]))[0] - expected) < 0.4


def test_the_share_of_blasts_is_found_from_the_ratios() -> None:
    rng = RNG(3)
    for share in (0.001, 0.05, 0.6):
        blast = rng.random(200_000) < share
        x = rng.normal(np.where(blast, 5.0, 0.0), 1.0)
        found, probability = mixing_share(5.0 * x - 12.5)
        assert abs(found - share) < 0.1 * share
        assert abs(probability.sum() - blast.sum()) < 0.1 * blast.sum()


def test_where_nothing_looks_like_a_blast_the_share_is_none() -> None:
    found, probability = mixing_share(np.full(10_000, -8.0))
    assert found < 1e-4
    assert probability.max() < 0.01
