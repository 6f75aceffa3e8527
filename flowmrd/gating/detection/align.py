"""Bring a sample's candidates onto the reference's scale.

First by internal controls: cells that every marrow has (T-like cells, granulocytes, mature B cells) tell how a marker
was stained today. Then by the candidates themselves: one shift a marker that brings the unremarkable ones onto the
normals. Composition must not move the shift, so the weights of the normal groups are the sample's own, and the least
likely events, blasts among them, are left out of the fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowmrd.gating.detection.mixtures import Mixture, log_components
from flowmrd.gating.detection.scores import Densities

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# A decade of scatter counts as 0.7 of a display scale; below this share of a lymphocyte nothing is told apart.
_SCATTER_UNIT = 0.3
_LEAST_SCATTER = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A population's middle in one marker (scaled units) and its number of events."""

    population: str
    marker: str
    median: float
    events: int


def on_features(
    columns: Mapping[str, F32],
    *,
    features: tuple[str, ...],
    scatter: Mapping[str, float],
    offsets: Mapping[str, float],
) -> F32:
    """Return candidates over the reference's features, (n, d); NaN where the file lacks one.

    Parameters
    ----------
    columns : marker → scaled values (n,)
    features : the reference's features, in order
    scatter : marker → lymphocytes' median (scaled, linear); such a marker becomes the log of its ratio to it
    offsets : marker → what to take off (scaled units)
    """
    size = len(next(iter(columns.values())))
    x = np.full((size, len(features)), np.nan, np.float32)
    for j, marker in enumerate(features):
        values = columns.get(marker)
        if values is None:
            continue
        if marker in scatter:
            x[:, j] = _SCATTER_UNIT * np.log(np.maximum(values, _LEAST_SCATTER) / max(scatter[marker], _LEAST_SCATTER))
        else:
            x[:, j] = values - np.float32(offsets.get(marker, 0.0))
    return x


def find_shift(
    x: F32, densities: Densities, *, seed: int, events: int = 6000, prior_sd: float = 0.25, trim: float = 0.1
) -> F64:
    """Return what to take off each feature so that the unremarkable candidates lie on the normals, (d,).

    Parameters
    ----------
    x : (n, d) candidates over the features of `densities`
    densities : the normals
    seed : draws the events that are looked at
    events : how many are looked at
    prior_sd : width of the prior on a shift, in standard deviations of the normals' feature
    trim : share of the least likely events that is left out
    """
    d = x.shape[1]
    if len(x) < 200:
        return np.zeros(d)
    rng = np.random.default_rng(seed)
    drawn = x if len(x) <= events else x[np.sort(rng.choice(len(x), events, replace=False))]
    z = ((drawn - densities.centre) / densities.scale).astype(np.float32)
    normal = densities.normal
    precision = np.linalg.inv(normal.covariance)
    weight = normal.weight
    shift = np.zeros(d)
    for _ in range(12):
        logs = log_components(
            (z - shift).astype(np.float32),
            Mixture(weight=weight, mean=normal.mean, covariance=normal.covariance),
        )
        top = logs.max(axis=1)
        density = top + np.log(np.exp(logs - top[:, None]).sum(axis=1))
        belong = np.exp(logs - density[:, None])
        belong[density <= np.quantile(density, trim)] = 0.0
        mass = belong.sum(axis=0)
        weight = 0.9 * mass / mass.sum() + 0.1 * normal.weight
        total = np.einsum("k,kij->ij", mass, precision) + len(z) * 0.02 * np.eye(d) / prior_sd**2
        pull = np.einsum("kij,kj->i", precision, belong.T @ z - mass[:, None] * normal.mean)
        shift = np.linalg.solve(total, pull)
    moved: F64 = shift * densities.scale
    return moved
