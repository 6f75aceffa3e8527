"""Weighted mixtures against scikit-learn's, on events of equal weight."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from flowmrd.gating.detection.mixtures import Mixture, fit_mixture, log_components, log_density

RNG = np.random.default_rng


def three_groups(size: int = 3000, seed: int = 1) -> NDArray[np.float32]:
    rng = RNG(seed)
    centres = np.array([[0.0, 0.0, 0.0], [3.0, 1.0, -1.0], [-2.0, 2.5, 1.0]])
    turn = np.array([[1.0, 0.4, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 0.6]])
    x: NDArray[np.float64] = centres[rng.choice(3, size, p=[0.5, 0.3, 0.2])] + rng.normal(size=(size, 3)) @ turn
    return x.astype(np.float32)


def start_of(x: NDArray[np.float32]) -> Mixture:
    return Mixture(
        weight=np.array([0.4, 0.3, 0.3]),
        mean=x[[0, len(x) // 2, -1]].astype(np.float64),
        covariance=np.stack([np.eye(3)] * 3),
    )


def sklearn_from(start: Mixture, x: NDArray[np.float32], steps: int) -> GaussianMixture:
    model = GaussianMixture(
        3,
        weights_init=start.weight,
        means_init=start.mean,
        precisions_init=np.linalg.inv(start.covariance),
        reg_covar=0.0,
        tol=0.0,
        max_iter=steps,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x.astype(np.float64))


@pytest.mark.parametrize("steps", [1, 10, 40])
def test_without_prior_and_weights_the_fit_is_that_of_scikit_learn(steps: int) -> None:
    x = three_groups()
    start = start_of(x)
    ours = fit_mixture(x, np.ones(len(x)), 3, prior=np.eye(3), strength=0.0, iterations=steps, rng=RNG(0), start=start)
    theirs = sklearn_from(start, x, steps)
    np.testing.assert_allclose(ours.weight, theirs.weights_, atol=2e-4)
    np.testing.assert_allclose(ours.mean, theirs.means_, atol=2e-3)
    np.testing.assert_allclose(ours.covariance, theirs.covariances_, atol=3e-3)


def test_the_density_is_that_of_scikit_learn() -> None:
    x = three_groups()
    model = sklearn_from(start_of(x), x, 20)
    ours = Mixture(weight=model.weights_, mean=model.means_, covariance=model.covariances_)
    far = np.concatenate([x, x * 6.0]).astype(np.float32)
    np.testing.assert_allclose(
        log_density(far, ours), model.score_samples(far.astype(np.float64)), rtol=1e-4, atol=1e-3
    )
    joint = log_components(x, ours)
    share = np.exp(joint - log_density(x, ours)[:, None])
    np.testing.assert_allclose(share, model.predict_proba(x.astype(np.float64)), atol=1e-4)


def test_an_event_of_weight_three_counts_as_three_events() -> None:
    x = three_groups(600)
    weight = RNG(2).integers(1, 4, len(x)).astype(np.float64)
    settings = {"prior": np.eye(3), "strength": 5.0, "iterations": 8}
    start = start_of(x)
    weighted = fit_mixture(x, weight, 3, rng=RNG(0), start=start, **settings)  # type: ignore[arg-type]
    many = np.repeat(x, weight.astype(int), axis=0)
    repeated = fit_mixture(many, np.ones(len(many)), 3, rng=RNG(0), start=start, **settings)  # type: ignore[arg-type]
    np.testing.assert_allclose(weighted.mean, repeated.mean, atol=1e-3)
    np.testing.assert_allclose(weighted.covariance, repeated.covariance, atol=1e-3)
    np.testing.assert_allclose(weighted.weight, repeated.weight, atol=1e-4)


def test_the_prior_keeps_a_component_of_few_events_wide() -> None:
    x = np.zeros((4, 3), np.float32)
    fitted = fit_mixture(x, np.ones(4), 1, prior=0.3 * np.eye(3), strength=30.0, iterations=3, rng=RNG(0))
    np.testing.assert_allclose(fitted.covariance[0], 0.3 * np.eye(3) * 30 / 34, rtol=1e-5)


def test_the_same_seed_draws_the_same_start() -> None:
    x = three_groups(800)
    fits = [
        fit_mixture(x, np.ones(len(x)), 5, prior=np.eye(3), strength=5.0, iterations=6, rng=RNG(7)) for _ in range(2)
    ]
    np.testing.assert_array_equal(fits[0].mean, fits[1].mean)
    np.testing.assert_array_equal(fits[0].covariance, fits[1].covariance)
