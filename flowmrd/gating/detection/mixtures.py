"""Gaussian mixtures of weighted events, fitted by EM with a prior on the covariance.

scikit-learn's mixture takes no event weights; here each event carries a share of belonging, and a sample of a large
population carries more than one. All sums are matrix products over events, so that a fit of some ten thousand events
takes about a second on one core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_ROWS = 65536


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """Weights (k,), means (k, d) and covariances (k, d, d) of a Gaussian mixture."""

    weight: F64
    mean: F64
    covariance: F64

    @property
    def components(self) -> int:
        """Return the number of components."""
        return len(self.weight)


@cache
def _triangle(d: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    first, second = np.triu_indices(d)
    return first, second


def log_components(x: F32, mixture: Mixture) -> F64:
    """Return log(weight × density) of each event under each component, (n, k)."""
    lower = np.linalg.cholesky(mixture.covariance)
    whiten = np.linalg.inv(lower)
    k, d = mixture.mean.shape
    level = (
        np.log(np.maximum(mixture.weight, 1e-300))
        - np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
        - 0.5 * d * math.log(2.0 * math.pi)
    )
    turn = whiten.transpose(2, 0, 1).reshape(d, k * d).astype(np.float32)
    shift = np.einsum("kij,kj->ki", whiten, mixture.mean).reshape(k * d).astype(np.float32)
    out = np.empty((len(x), k))
    for start in range(0, len(x), _ROWS):
        part = x[start : start + _ROWS]
        white = part @ turn
        white -= shift
        out[start : start + len(part)] = level - 0.5 * np.square(white).reshape(len(part), k, d).sum(axis=2)
    return out


def log_density(x: F32, mixture: Mixture) -> F64:
    """Return the log density of each event, (n,)."""
    out = np.empty(len(x))
    for start in range(0, len(x), _ROWS):
        logs = log_components(x[start : start + _ROWS], mixture)
        top = logs.max(axis=1)
        out[start : start + len(logs)] = top + np.log(np.exp(logs - top[:, None]).sum(axis=1))
    return out


def _update(x: F32, products: F32, belong: F32, prior: F64, strength: float) -> Mixture:
    mass = belong.sum(axis=0, dtype=np.float64) + 1e-9
    d = x.shape[1]
    mean = (belong.T @ x) / mass[:, None]
    second = (belong.T @ products) / mass[:, None]
    first, other = _triangle(d)
    spread = second - mean[:, first] * mean[:, other]
    covariance = np.empty((len(mass), d, d))
    covariance[:, first, other] = spread
    covariance[:, other, first] = spread
    covariance = (covariance * mass[:, None, None] + strength * prior) / (mass + strength)[:, None, None]
    return Mixture(weight=mass / mass.sum(), mean=mean.astype(np.float64), covariance=covariance)


def _spread_out(x: F32, weight: F32, components: int, rng: np.random.Generator) -> F32:
    """Start means far from each other (k-means++)."""
    share = weight.astype(np.float64)
    centres = [x[rng.choice(len(x), p=share / share.sum())]]
    distance = np.square(x - centres[0]).sum(axis=1)
    for _ in range(components - 1):
        chance = share * distance
        total = chance.sum()
        pick = rng.choice(len(x), p=chance / total) if total > 0 else int(rng.integers(len(x)))
        centres.append(x[pick])
        distance = np.minimum(distance, np.square(x - centres[-1]).sum(axis=1))
    return np.stack(centres)


def fit_mixture(
    x: F32,
    weight: F64,
    components: int,
    *,
    prior: F64,
    strength: float,
    iterations: int,
    rng: np.random.Generator,
    start: Mixture | None = None,
) -> Mixture:
    """Fit a mixture to weighted events.

    Parameters
    ----------
    x : (n, d) standardised values
    weight : (n,) ≥ 0, the events that each row stands for
    components : number of components (ignored with `start`)
    prior : (d, d) covariance towards which each component is drawn
    strength : events that the prior is worth
    iterations : EM steps
    rng : draws the start means
    start : mixture to go on from
    """
    first, second = _triangle(x.shape[1])
    products = x[:, first] * x[:, second]
    w = weight.astype(np.float32)
    if start is None:
        centres = _spread_out(x, w, components, rng)
        nearest = (np.square(centres).sum(axis=1) - 2.0 * (x @ centres.T)).argmin(axis=1)
        belong = np.zeros((len(x), components), np.float32)
        belong[np.arange(len(x)), nearest] = w
        mixture = _update(x, products, belong, prior, strength)
    else:
        mixture = start
    for _ in range(iterations):
        logs = log_components(x, mixture)
        logs -= logs.max(axis=1, keepdims=True)
        share = np.exp(logs)
        share *= (w / share.sum(axis=1))[:, None]
        mixture = _update(x, products, share.astype(np.float32), prior, strength)
    return mixture
