"""Trees as plain arrays: the same score as the estimator that they were taken from, by either way of walking them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from flowmrd.gating.detection import boosting
from flowmrd.gating.detection.boosting import fit_trees, score, walk

RNG = np.random.default_rng


def labelled(size: int = 3000, seed: int = 3) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rng = RNG(seed)
    x = rng.normal(size=(size, 5)).astype(np.float32)
    positive = (x[:, 0] * x[:, 1] > 0.4) | (x[:, 2] > 1.5)
    x[rng.random(size) < 0.15, 3] = np.nan
    return x, positive


def test_the_score_is_that_of_scikit_learn_with_values_missing() -> None:
    x, positive = labelled()
    weight = RNG(4).uniform(0.5, 2.0, len(x))
    trees = fit_trees(x, positive, iterations=25, seed=5, weight=weight)
    model = HistGradientBoostingClassifier(
        max_iter=25, learning_rate=0.08, max_leaf_nodes=31, l2_regularization=1.0, early_stopping=False, random_state=5
    ).fit(x, positive, sample_weight=weight)
    unseen, _ = labelled(seed=6)
    unseen[::7] = np.nan
    unseen[::11] *= np.float32(50.0)
    np.testing.assert_allclose(score(trees, unseen), model.decision_function(unseen), rtol=0, atol=1e-9)


def test_walking_the_trees_by_hand_gives_the_same_score() -> None:
    x, positive = labelled()
    trees = fit_trees(x, positive, iterations=12, seed=5)
    np.testing.assert_allclose(walk(trees, x), score(trees, x), rtol=0, atol=1e-9)


def test_without_the_compiled_predictor_the_trees_are_walked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    x, positive = labelled(500)
    trees = fit_trees(x, positive, iterations=4, seed=5)
    expected = score(trees, x)
    monkeypatch.setattr(boosting, "_compiled", lambda _trees: None)
    np.testing.assert_allclose(score(trees, x), expected, rtol=0, atol=1e-9)


def test_no_events_have_no_scores() -> None:
    x, positive = labelled(500)
    trees = fit_trees(x, positive, iterations=3, seed=5)
    assert score(trees, x[:0]).shape == (0,)
    assert walk(trees, x[:0]).shape == (0,)
