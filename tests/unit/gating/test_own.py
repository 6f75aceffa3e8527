"""A subject's own phenotype: learnt, kept as text, and looked for among normal cells that lie close to it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flowmrd.gating.detection.mixtures import Mixture
from flowmrd.gating.detection.own import OwnPhenotype, fit_phenotype, phenotype_from_json, search_own
from flowmrd.gating.detection.scores import Densities

FEATURES = ("CD45", "CD19", "CD10", "CD34", "CD38", "CD58")
NORMAL = np.array([0.6, 0.55, 0.6, 0.4, 0.7, 0.45])
BLASTS = np.array([0.45, 0.55, 0.8, 0.55, 0.45, 0.62])
WIDTH = 0.05


def densities() -> Densities:
    d = len(FEATURES)
    normal = Mixture(weight=np.ones(1), mean=np.zeros((1, d)), covariance=np.eye(d)[None])
    return Densities(
        features=tuple(range(d)),
        centre=NORMAL,
        scale=np.full(d, WIDTH),
        normal=normal,
        blast=normal,
        abundances=np.ones((2, 1)),
    )


def cells(middle: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(middle, WIDTH, (count, len(FEATURES))).astype(np.float32)


def learnt() -> OwnPhenotype:
    return fit_phenotype(
        cells(BLASTS, 3000, 1),
        FEATURES,
        seed=1,
        acquisition="diagnosis",
        visit="BL",
        file_sha256="0" * 64,
        template="tube",
        reference="1" * 64,
    )


def sample(middle: np.ndarray, blasts: int, normals: int = 60_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = np.concatenate([cells(NORMAL, normals, 2), cells(middle, blasts, 3)])
    truth = np.arange(len(x)) >= normals
    # What the general scores know: not enough for so few events.
    ratio = np.where(truth, 6.0, -4.0) + np.random.default_rng(4).normal(0.0, 2.0, len(x))
    return x, ratio, truth


def test_a_phenotype_survives_its_way_through_json_with_the_same_digest() -> None:
    own = learnt()
    again = phenotype_from_json(json.loads(json.dumps(own.to_json())))
    assert again.digest == own.digest
    assert again.features == own.features
    assert again.middle["CD10"] == pytest.approx(BLASTS[2], abs=0.02)


@pytest.mark.parametrize(("key", "value"), [("format", 7), ("mean", [[0.0]]), ("features", ["CD19"]), ("weight", None)])
def test_a_damaged_phenotype_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"no personal|format|belong"):
        phenotype_from_json({**learnt().to_json(), key: value})


def test_own_blasts_are_found_among_many_normals_and_nothing_among_normals_alone() -> None:
    x, ratio, truth = sample(BLASTS, 30)
    found = search_own(x, ratio, FEATURES, learnt(), densities(), targets=("CD19",), drift=0.03, seed=1)
    assert found is not None
    assert truth[found.members].sum() >= 27
    assert len(found.members) <= 33
    x, ratio, _ = sample(BLASTS, 0)
    nothing = search_own(x, ratio, FEATURES, learnt(), densities(), targets=("CD19",), drift=0.03, seed=1)
    assert nothing is not None
    assert len(nothing.members) < 5


def test_blasts_that_moved_a_little_are_found_and_the_shift_is_told() -> None:
    moved = BLASTS + np.array([0.0, 0.0, -0.05, 0.0, 0.0, 0.04])
    x, ratio, truth = sample(moved, 200)
    found = search_own(x, ratio, FEATURES, learnt(), densities(), targets=("CD19",), drift=0.03, seed=1)
    assert found is not None
    assert truth[found.members].mean() > 0.95
    assert found.shift[FEATURES.index("CD10")] == pytest.approx(-0.05, abs=0.02)
    assert found.shift[FEATURES.index("CD58")] == pytest.approx(0.04, abs=0.02)
    # A target is not followed; the others are known well.
    assert np.delete(found.error, FEATURES.index("CD19")).max() < 0.01


def test_blasts_that_lost_the_therapys_target_are_found_and_the_loss_is_told() -> None:
    lost = BLASTS.copy()
    lost[FEATURES.index("CD19")] = 0.1
    x, ratio, truth = sample(lost, 100)
    found = search_own(x, ratio, FEATURES, learnt(), densities(), targets=("CD19",), drift=0.03, seed=1)
    assert found is not None
    assert truth[found.members].sum() >= 90
    assert found.lost["CD19"] > 0.9
    # Without the leave to lose it they are too far away.
    strict = search_own(x, ratio, FEATURES, learnt(), densities(), targets=(), drift=0.03, seed=1)
    assert strict is not None
    assert len(strict.members) < 10


def test_the_overlap_of_a_group_says_whether_it_is_the_same_leukemia() -> None:
    x, ratio, truth = sample(BLASTS, 100)
    groups = (np.flatnonzero(truth), np.flatnonzero(~truth)[:500])
    found = search_own(x, ratio, FEATURES, learnt(), densities(), targets=(), drift=0.03, seed=1, groups=groups)
    assert found is not None
    assert found.likeness[0] > 0.8
    assert found.likeness[1] < 0.05


def test_a_phenotype_of_another_panel_is_not_compared() -> None:
    x, ratio, _ = sample(BLASTS, 10)
    names = ("CD45", "X1", "X2", "X3", "X4", "X5")
    assert search_own(x, ratio, names, learnt(), densities(), targets=(), drift=0.03, seed=1) is None
