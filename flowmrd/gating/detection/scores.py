"""How unlike normal an event is: two scores, and what they are worth.

`ScoreModel` holds boosted trees (normals against other patients' blasts) and, for each set of markers, a mixture of the
normals and one of the blasts. Their sum ranks events well but its scale is arbitrary; `Calibration` turns it into the
log ratio of the densities of blasts and normals at that score, as measured on marrows that the models had not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowmrd.gating.detection.boosting import Trees, fit_trees, score
from flowmrd.gating.detection.mixtures import Mixture, fit_mixture, log_components, log_density

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Weight of the mixtures beside the trees, and the bounds of a log density ratio that one event may carry.
_MIXTURE_SHARE = 0.5
_MOST = 20.0
# Normals that the trees see at most, over all marrows.
_MOST_NORMALS = 160_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Aligned candidates of one marrow: `x` (n, d) over the reference's features, NaN where the marrow lacks one."""

    name: str
    x: F32
    blast: bool
    nucleated: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Densities:
    """Mixtures of normals and blasts over some of the features, in standardised values.

    `abundances` (normals, k) is how many of its nucleated cells each normal has in each of its mixture's groups.
    """

    features: tuple[int, ...]
    centre: F64
    scale: F64
    normal: Mixture
    blast: Mixture
    abundances: F64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreModel:
    """Trees over all features, densities by set of features."""

    trees: Trees
    densities: Mapping[tuple[int, ...], Densities]


def pattern_of(x: F32) -> tuple[int, ...]:
    """Return the features that a marrow has."""
    return tuple(int(i) for i in np.flatnonzero(~np.isnan(x[:1]).all(axis=0)))


def _drawn(x: F32, count: int, rng: np.random.Generator) -> F32:
    return x if len(x) <= count else x[np.sort(rng.choice(len(x), count, replace=False))]


def fit_trees_to(
    pools: Sequence[Pool], *, optional: Sequence[int], seed: int, events: int = 4000, iterations: int = 250
) -> Trees:
    """Fit the trees on equal shares of every marrow; hard normals count in full, and optional features go missing.

    The first fit finds the normals that look most like blasts; the second sees all of those, each for one, and a draw
    of the rest, each for many.
    """
    rng = np.random.default_rng(seed)
    normals = [p.x for p in pools if not p.blast]
    # Many marrows share what a few would get, so that the fit stays within minutes.
    events = min(events, max(_MOST_NORMALS // max(len(normals), 1), 900))
    patients = sum(p.blast for p in pools)
    each = min(events // 3, max(_MOST_NORMALS // (2 * max(patients, 1)), 300))
    blasts = np.concatenate([_drawn(p.x, each, rng) for p in pools if p.blast])
    easy = np.concatenate([_drawn(x, events // 2, rng) for x in normals])
    first = fit_trees(
        np.concatenate([easy, blasts]), np.arange(len(easy) + len(blasts)) >= len(easy), iterations=60, seed=seed
    )
    parts, weights = [], []
    for x in normals:
        seen = _drawn(x, 60_000, rng)
        order = np.argsort(-score(first, seen), kind="stable")
        hard, rest = seen[order[: events // 3]], seen[order[events // 3 :]]
        drawn = _drawn(rest, events - len(hard), rng)
        parts += [hard, drawn]
        weights += [np.ones(len(hard)), np.full(len(drawn), len(rest) / max(len(drawn), 1))]
    normal, weight = np.concatenate(parts), np.concatenate(weights)
    # Hard normals must not drown among easy ones: the square root keeps their share within reach.
    weight = np.sqrt(weight)
    x = np.concatenate([normal, blasts])
    w = np.concatenate([weight, np.full(len(blasts), weight.sum() / max(len(blasts), 1))])
    x = x.copy()
    for feature in optional:
        x[rng.random(len(x)) < 0.2, feature] = np.nan
    return fit_trees(x, np.arange(len(x)) >= len(normal), iterations=iterations, seed=seed, weight=w / w.mean())


def fit_densities(
    pools: Sequence[Pool], features: tuple[int, ...], *, seed: int, components: int = 40, events: int = 60_000
) -> Densities:
    """Fit the mixtures of normals and of blasts over some features, on the marrows that have them all."""
    rng = np.random.default_rng(seed)
    having = [p for p in pools if set(features) <= set(pattern_of(p.x))]
    columns = list(features)

    def joined(*, blast: bool, most: int) -> F32:
        group = [p.x[:, columns] for p in having if p.blast == blast]
        return np.concatenate([_drawn(x, max(most // max(len(group), 1), 50), rng) for x in group])

    normal, blast = joined(blast=False, most=events), joined(blast=True, most=events // 2)
    centre, scale = normal.mean(axis=0, dtype=np.float64), normal.std(axis=0, dtype=np.float64)

    def fitted(x: F32, k: int) -> Mixture:
        z = ((x - centre) / scale).astype(np.float32)
        d = z.shape[1]
        prior = np.eye(d) / k
        return fit_mixture(z, np.ones(len(z)), k, prior=prior, strength=20.0, iterations=16, rng=rng)

    mixture = fitted(normal, max(1, min(components, len(normal) // 200)))
    abundances = []
    for p in having:
        if p.blast:
            continue
        z = ((_drawn(p.x[:, columns], 5000, rng) - centre) / scale).astype(np.float32)
        logs = log_components(z, mixture)
        logs -= logs.max(axis=1, keepdims=True)
        share = np.exp(logs)
        share /= share.sum(axis=1, keepdims=True)
        abundances.append(share.mean(axis=0) * len(p.x) / max(p.nucleated, len(p.x), 1))
    return Densities(
        features=features,
        centre=centre,
        scale=scale,
        normal=mixture,
        blast=fitted(blast, max(1, min(components, len(blast) // 200))),
        abundances=np.array(abundances),
    )


def raw_scores(model: ScoreModel, features: tuple[int, ...], x: F32) -> F64:
    """Return the combined score of each event over the features of a fitted set."""
    masked = np.full_like(x, np.nan)
    columns = list(features)
    masked[:, columns] = x[:, columns]
    one = model.densities[features]
    z = ((x[:, columns] - one.centre) / one.scale).astype(np.float32)
    ratio = np.clip(log_density(z, one.blast) - log_density(z, one.normal), -_MOST, _MOST)
    total: F64 = score(model.trees, masked) + _MIXTURE_SHARE * ratio
    return total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Score → log(density of blasts / density of normals), as a rising line through knots."""

    knots: F64
    ratio: F64

    def __call__(self, raw: F64) -> F64:
        """Return the calibrated log density ratio."""
        value: F64 = np.interp(raw, self.knots, self.ratio)
        return value


def calibrate(normals: Sequence[F64], blasts: Sequence[F64]) -> Calibration:
    """Compare the held-out scores of normals and of blasts, each marrow weighing the same.

    Densities are smoothed counts on a grid of scores, made rising by pooling neighbours; beyond the last normal the
    ratio is bounded by what so many normals can exclude (one event in all of them).
    """
    from sklearn.isotonic import isotonic_regression

    joined = np.concatenate([*normals, *blasts])
    low, high = np.quantile(joined, [0.001, 1.0])
    edges = np.linspace(low, high + 1e-6, 161)
    width = edges[1] - edges[0]

    def density(groups: Sequence[F64]) -> F64:
        shares = [np.histogram(np.clip(g, edges[0], edges[-1]), edges)[0] / max(len(g), 1) for g in groups]
        mean: F64 = np.mean(shares, axis=0)
        return mean

    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
    kernel /= kernel.sum()
    floor = 1.0 / sum(len(g) for g in normals)
    normal = np.convolve(np.pad(density(normals), 6, mode="edge"), kernel, "valid")
    blast = np.convolve(np.pad(density(blasts), 6, mode="edge"), kernel, "valid")
    # One event more in either group: what was not seen may still be there.
    ratio = np.log(blast + 1e-4 / len(edges)) - np.log(normal + floor / 4.0)
    weight = normal + blast + 1e-9
    rising = isotonic_regression(np.clip(ratio, -_MOST, _MOST), sample_weight=weight)
    return Calibration(knots=edges[:-1] + width / 2.0, ratio=np.asarray(rising, np.float64))
