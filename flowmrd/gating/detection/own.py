"""A subject's own blasts: where they lay at the diagnosis, and which events of a later sample lie there.

The phenotype is a small mixture over aligned features. In a later sample each candidate has two densities: under the
phenotype, widened because blasts and staining drift, and under the sample's normal cells. The share of own blasts that
explains all candidates best (EM) turns their ratio into a probability; the same EM finds by how much the whole
phenotype has moved, so that many events narrow what was widened. A therapy's target may be lost: beside the phenotype
as it was stands the one that says nothing of that marker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmrd.gating.detection.grow import mixing_share
from flowmrd.gating.detection.mixtures import Mixture, fit_mixture, log_components, log_density
from flowmrd.gating.detection.scores import Densities

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FORMAT = 1
# Squared distance from the phenotype (χ² of the features) beyond which no event is looked at.
_FAR = 3.0
# How the log ratios are bounded, and how much of the own one joins the ratio of all patients' blasts. The own one knows
# where, but its normals are thin there: by itself it would take normal neighbours of the phenotype for blasts.
_MOST = 20.0
_OWN_SHARE = 0.35
# How likely a target is to be lost, before anything is seen; share of events that belong to no population.
_LOST = 0.3
_STRAY = 1e-3
_STEPS = 5
# Standard deviations that a drift may reach.
_DRIFT_MOST = 2.5
_FEWEST_MARKERS = 4
# Standard deviations below the phenotype from which on a target is lost.
_LOST_FROM = 2.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnPhenotype:
    """Where a subject's blasts lay, in aligned display units.

    Attributes
    ----------
    features : markers, in the order of the mixture's columns
    mixture : over those features
    events : blasts that it was fitted to
    acquisition, visit, file_sha256 : where they were found
    template, reference : tube, and digest of the reference that aligned them
    """

    features: tuple[str, ...]
    mixture: Mixture
    events: int
    acquisition: str
    visit: str
    file_sha256: str
    template: str
    reference: str

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def middle(self) -> Mapping[str, float]:
        """Return the mean of each marker."""
        mean = self.mixture.weight @ self.mixture.mean
        return {marker: float(value) for marker, value in zip(self.features, mean, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; numbers keep nine digits, so that a round trip changes nothing."""
        return {
            "format": FORMAT,
            "features": list(self.features),
            "weight": [_short(value) for value in self.mixture.weight],
            "mean": [[_short(value) for value in row] for row in self.mixture.mean],
            "covariance": [[[_short(value) for value in row] for row in one] for one in self.mixture.covariance],
            "events": self.events,
            "acquisition": self.acquisition,
            "visit": self.visit,
            "file_sha256": self.file_sha256,
            "template": self.template,
            "reference": self.reference,
        }


def _short(value: float) -> float:
    return float(f"{value:.9g}")


def phenotype_from_json(document: Mapping[str, Any]) -> OwnPhenotype:
    """Read a phenotype back.

    Raises
    ------
    ValueError
        It is none, of another format, or its numbers are no mixture.
    """
    try:
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}")
        features = tuple(str(name) for name in document["features"])
        mixture = Mixture(
            weight=np.array(document["weight"], np.float64),
            mean=np.array(document["mean"], np.float64),
            covariance=np.array(document["covariance"], np.float64),
        )
        own = OwnPhenotype(
            features=features,
            mixture=mixture,
            events=int(document["events"]),
            acquisition=str(document["acquisition"]),
            visit=str(document["visit"]),
            file_sha256=str(document["file_sha256"]),
            template=str(document["template"]),
            reference=str(document["reference"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"no personal immunophenotype: {error!r}") from None
    k, d = mixture.weight.size, len(features)
    if not k or (mixture.weight.shape, mixture.mean.shape, mixture.covariance.shape) != ((k,), (k, d), (k, d, d)):
        raise ValueError("its means and covariances do not belong to its features")
    try:
        np.linalg.cholesky(mixture.covariance)
        if not (np.isfinite(mixture.weight).all() and np.isfinite(mixture.mean).all()):
            raise ValueError("its numbers are no numbers")
    except np.linalg.LinAlgError:
        raise ValueError("its covariances are none") from None
    return own


def fit_phenotype(
    x: F32,
    features: tuple[str, ...],
    *,
    seed: int,
    acquisition: str,
    visit: str,
    file_sha256: str,
    template: str,
    reference: str,
    draws: int = 20_000,
) -> OwnPhenotype:
    """Fit a phenotype to accepted blasts.

    Parameters
    ----------
    x : (n, d) aligned blasts
    features : names of the columns
    seed : draws the events and the start
    acquisition, visit, file_sha256, template, reference : as kept (`OwnPhenotype`)
    draws : most events that are fitted to
    """
    rng = np.random.default_rng(seed)
    drawn = x if len(x) <= draws else x[np.sort(rng.choice(len(x), draws, replace=False))]
    centre = np.median(drawn, axis=0).astype(np.float64)
    scale = 1.4826 * np.median(np.abs(drawn - centre), axis=0).astype(np.float64) + 1e-4
    z = ((drawn - centre) / scale).astype(np.float32)
    # A stray among the blasts would widen the phenotype: what lies far from their middle is left out.
    near = np.square(np.clip(z, -10.0, 10.0)).mean(axis=1) < _FAR
    z = z[near] if near.sum() >= 20 else z
    count = 1 if len(z) < 200 else 2 if len(z) < 1000 else 3
    mixture = fit_mixture(
        z, np.ones(len(z)), count, prior=np.cov(z.T) + 1e-3 * np.eye(z.shape[1]), strength=20.0, iterations=25, rng=rng
    )
    return OwnPhenotype(
        features=features,
        mixture=Mixture(
            weight=mixture.weight,
            mean=mixture.mean * scale + centre,
            covariance=mixture.covariance * np.outer(scale, scale),
        ),
        events=len(x),
        acquisition=acquisition,
        visit=visit,
        file_sha256=file_sha256,
        template=template,
        reference=reference,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnSearch:
    """What the own-phenotype route found among the candidates.

    Attributes
    ----------
    phenotype : the subject's
    members : rows of the candidates that are called
    events : expected number, Σ probability
    features : markers that were compared
    shift, error : (d,) by how much the whole phenotype has moved, and how well that is known; display units
    lost : marker of a therapy's target → share of the called events that have lost it
    likeness : (n groups,) share of each group of the general route inside the phenotype
    """

    phenotype: OwnPhenotype
    members: NDArray[np.intp]
    events: float
    features: tuple[str, ...]
    shift: F64
    error: F64
    lost: Mapping[str, float]
    likeness: tuple[float, ...]


def _on(mixture: Mixture, columns: NDArray[np.intp]) -> Mixture:
    return Mixture(
        weight=mixture.weight,
        mean=mixture.mean[:, columns],
        covariance=mixture.covariance[:, columns[:, None], columns],
    )


def _moved(mixture: Mixture, shift: F64, widening: F64) -> Mixture:
    return Mixture(
        weight=mixture.weight, mean=mixture.mean + shift, covariance=mixture.covariance + np.diag(np.square(widening))
    )


def _distance(z: F32, mixture: Mixture) -> F64:
    """Return the squared Mahalanobis distance of each event to the nearest component."""
    flat = Mixture(
        weight=np.exp(0.5 * np.linalg.slogdet(mixture.covariance)[1]), mean=mixture.mean, covariance=mixture.covariance
    )
    d = z.shape[1]
    # The weights cancel the determinants, so what is left is the distance and a constant.
    nearest: F64 = -2.0 * log_components(z, flat).max(axis=1) - d * np.log(2.0 * np.pi)
    return nearest


def _adapted(z: F32, normal: Mixture, rng: np.random.Generator, draws: int = 8000) -> Mixture:
    """Give the normals' groups the weights that they have in this sample."""
    drawn = z if len(z) <= draws else z[np.sort(rng.choice(len(z), draws, replace=False))]
    weight = normal.weight
    for _ in range(8):
        logs = log_components(drawn, Mixture(weight=weight, mean=normal.mean, covariance=normal.covariance))
        logs -= logs.max(axis=1, keepdims=True)
        belong = np.exp(logs)
        belong /= belong.sum(axis=1, keepdims=True)
        weight = 0.95 * belong.mean(axis=0) + 0.05 * normal.weight
    return Mixture(weight=weight / weight.sum(), mean=normal.mean, covariance=normal.covariance)


def _standardised(mixture: Mixture, centre: F64, scale: F64) -> Mixture:
    return Mixture(
        weight=mixture.weight,
        mean=(mixture.mean - centre) / scale,
        covariance=mixture.covariance / np.outer(scale, scale),
    )


def _route(
    z: F32,
    near: NDArray[np.intp],
    distance: F64,
    own: Mixture,
    normal: Mixture,
    kept: NDArray[np.intp],
    drift: F64,
    rng: np.random.Generator,
) -> _Route:
    """Set up the EM: densities of the events near the phenotype under the reference's normals and strays."""
    d = z.shape[1]
    adapted = _adapted(z, normal, rng)
    some = z[:: max(1, len(z) // 20_000)]
    wide = Mixture(
        weight=np.ones(1),
        mean=some.mean(axis=0, dtype=np.float64)[None],
        covariance=(4.0 * np.cov(some.T) + 1e-3 * np.eye(d))[None],
    )
    mine = z[near]
    mine_kept = np.ascontiguousarray(mine[:, kept])

    def under(events: F32, columns: NDArray[np.intp]) -> F64:
        value: F64 = np.logaddexp(
            log_density(events, _on(adapted, columns)), log_density(events, _on(wide, columns)) + np.log(_STRAY)
        )
        return value

    everything = np.arange(d)
    return _Route(
        z=mine,
        z_kept=mine_kept,
        distance=distance[near],
        own=own,
        kept=kept,
        targets=np.setdiff1d(everything, kept),
        drift=drift,
        shift=np.zeros(d),
        error=drift.copy(),
        normals=under(mine, everything),
        normals_kept=under(mine_kept, kept),
    )


def _beside(
    route: _Route,
    before: tuple[F64, F64],
    probability: F64,
    share: float,
    rng: np.random.Generator,
    draws: int = 12_000,
) -> tuple[F64, F64]:
    """Join to the reference's normals what the sample itself has beside the phenotype."""
    m = len(route.z)
    if m < 200:
        return before
    rows, each = np.arange(m), np.ones(m)
    if m > draws:
        # All of those next to the phenotype, where it matters, and some of the others, each for many.
        order = np.argsort(route.distance, kind="stable")
        others = rng.choice(order[draws // 2 :], draws // 2, replace=False)
        rows = np.concatenate([order[: draws // 2], others])
        each = np.concatenate([np.ones(draws // 2), np.full(len(others), (m - draws // 2) / len(others))])
    drawn = route.z[rows]
    local = fit_mixture(
        drawn,
        each * (1.0 - probability[rows]) + 1e-9,
        20 if m > 5000 else 4,
        prior=np.cov(drawn.T) / 4.0 + 1e-3 * np.eye(drawn.shape[1]),
        strength=30.0,
        iterations=8,
        rng=rng,
    )
    level = np.log(share)
    return (
        np.logaddexp(before[0], log_density(route.z, local) + level) - np.log(2.0),
        np.logaddexp(before[1], log_density(route.z_kept, _on(local, route.kept)) + level) - np.log(2.0),
    )


def _lost(route: _Route, column: int, called: NDArray[np.bool_]) -> float:
    """Return the share of the called events that lie far below the phenotype in one marker."""
    middle = float(route.own.weight @ route.own.mean[:, column])
    width = float(route.own.weight @ (route.own.covariance[:, column, column]))
    width = float(np.sqrt(width + np.square(route.own.mean[:, column] - middle).max() + route.drift[column] ** 2))
    return float(np.mean(route.z[called, column] < middle - _LOST_FROM * width))


def _inside(z: F32, mixture: Mixture, kept: NDArray[np.intp], rng: np.random.Generator, draws: int = 4000) -> float:
    """Return the share of events inside the 95 % region of a mixture, the targets left out."""
    one = _on(mixture, kept)
    owner = rng.choice(one.components, draws, p=one.weight / one.weight.sum())
    lower = np.linalg.cholesky(one.covariance)
    drawn = one.mean[owner] + np.einsum("nij,nj->ni", lower[owner], rng.normal(size=(draws, len(kept))))
    border = np.quantile(log_density(drawn.astype(np.float32), one), 0.05)
    return float(np.mean(log_density(np.ascontiguousarray(z[:, kept]), one) >= border)) if len(z) else 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Route:
    """State of the EM: events near the phenotype, their densities under normal cells, and where the phenotype lies.

    `z` (m, d) are standardised; `distance` (m,) is that to the phenotype (squared), `kept`
    are the columns that no therapy takes, `targets` the others; `normals` and
    `normals_kept` (m,) log densities over all columns and over the kept ones.
    """

    z: F32
    z_kept: F32
    distance: F64
    own: Mixture
    kept: NDArray[np.intp]
    targets: NDArray[np.intp]
    drift: F64
    shift: F64
    error: F64
    normals: F64
    normals_kept: F64

    def ratios(self) -> F64:
        """Return the log ratio of each event; the phenotype has its targets, or may have lost them."""
        current = _moved(self.own, self.shift, self.error)
        as_was = log_density(self.z, current) - self.normals
        if not self.targets.size:
            return as_was
        silent = log_density(self.z_kept, _on(current, self.kept)) - self.normals_kept
        ratio: F64 = np.logaddexp(as_was + np.log(1.0 - _LOST), silent + np.log(_LOST))
        return ratio

    def move(self, probability: F64) -> None:
        """Find by how much the phenotype has moved, given each event's probability; a prior holds it back.

        A target stays where it was: whether it is lost or dim is another question than drift.
        """
        kept = self.kept
        still = _on(self.own, kept)
        logs = log_components(self.z_kept, _on(_moved(self.own, self.shift, self.error), kept))
        logs -= logs.max(axis=1, keepdims=True)
        belong = np.exp(logs)
        belong *= (probability / belong.sum(axis=1))[:, None]
        mass, precision = belong.sum(axis=0), np.linalg.inv(still.covariance)
        total = np.einsum("k,kij->ij", mass, precision) + np.diag(1.0 / np.square(self.drift[kept]))
        pull = np.einsum("kij,kj->i", precision, belong.T @ self.z_kept - mass[:, None] * still.mean)
        # Beyond what drifts, it would be another population that is followed.
        most = _DRIFT_MOST * self.drift[kept]
        self.shift[kept] = np.clip(np.linalg.solve(total, pull), -most, most)
        self.error[kept] = np.sqrt(np.diag(np.linalg.inv(total)))


def search_own(
    x: F32,
    ratio: F64,
    features: tuple[str, ...],
    phenotype: OwnPhenotype,
    densities: Densities,
    *,
    targets: tuple[str, ...],
    drift: float,
    seed: int,
    groups: tuple[NDArray[np.intp], ...] = (),
) -> OwnSearch | None:
    """Find the events that lie where the subject's blasts lay; `None` where too few markers are shared.

    Parameters
    ----------
    x : (n, d) aligned candidates
    ratio : (n,) their log density ratio, blasts of all patients against normals
    features : names of the columns, those of `densities`
    phenotype : the subject's, aligned by the same reference
    densities : the normals
    targets : markers that a therapy may have taken
    drift : by how much a marker may move between two samples, standard deviation in display units
    seed : draws the events that normal cells are fitted to
    groups : rows of each group of the general route, for `likeness`
    """
    places = {marker: j for j, marker in enumerate(phenotype.features)}
    columns = np.array([j for j, marker in enumerate(features) if marker in places], np.intp)
    if len(columns) < _FEWEST_MARKERS or not len(x):
        return None
    names = tuple(features[j] for j in columns)
    centre, scale = densities.centre[columns], densities.scale[columns]
    theirs = np.array([places[name] for name in names], np.intp)
    own = _standardised(_on(phenotype.mixture, theirs), centre, scale)
    rng = np.random.default_rng(seed)
    z = ((x[:, columns] - centre) / scale).astype(np.float32)
    kept = np.array([j for j, name in enumerate(names) if name not in targets], np.intp)
    drifts = drift / scale
    distance = _distance(np.ascontiguousarray(z[:, kept]), _on(_moved(own, np.zeros(len(names)), drifts), kept))
    near = np.flatnonzero(distance < _FAR * len(kept))
    route = _route(z, near, distance, own, _on(densities.normal, columns), kept, drifts, rng)
    general, rest = ratio[near], float(len(z) - len(near))
    beside = np.append(np.ones(len(near)), rest)
    probability = np.zeros(len(near))
    before = (route.normals, route.normals_kept)
    for step in range(_STEPS if len(near) else 0):
        joined = _OWN_SHARE * np.clip(route.ratios(), -_MOST, _MOST) + general
        _, both = mixing_share(np.append(np.clip(joined, -_MOST, _MOST), -40.0), beside)
        probability = both[:-1]
        route.move(probability)
        if step + 1 < _STEPS:
            route.normals, route.normals_kept = _beside(route, before, probability, len(near) / len(z), rng)
    called = probability > 0.5
    mass = float(probability[called].sum())
    lost = {names[j]: _lost(route, j, called) for j in route.targets} if mass else {}
    moved = _moved(own, route.shift, route.error)
    return OwnSearch(
        phenotype=phenotype,
        members=near[called],
        events=float(probability.sum()),
        features=names,
        shift=route.shift * scale,
        error=route.error * scale,
        lost=lost,
        likeness=tuple(_inside(z[rows], moved, kept, rng) for rows in groups),
    )
