"""Simpler ways to find blasts, set beside the search by `flowmrd evaluate --baselines`.

Each sees what the search sees: the same candidates, aligned by the same controls, and the same reference. None adapts
its decision to the sample: a cut is fixed by the reference's normals. They are no method for a patient's result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flowmrd.errors import GatingError
from flowmrd.gating.detection.boosting import score
from flowmrd.gating.detection.mixtures import log_density
from flowmrd.gating.detection.scores import Densities
from flowmrd.gating.gates import Gate
from flowmrd.gating.methods import Found, GateMethod, NotFound, Sample
from flowmrd.gating.methods.geometric import Values
from flowmrd.gating.methods.seed_and_grow import (
    METHODS as SEARCHES,
)
from flowmrd.gating.methods.seed_and_grow import (
    Prepared,
    SeedAndGrowParams,
    prepare,
)
from flowmrd.gating.template import Choice, GatingTemplate, Population, typed

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# The share of the normals' values that the tail beyond them is told by.
_TAIL = 0.05
_FEWEST_POINTS = 200


class FixedCutParams(SeedAndGrowParams):
    """What the search takes, and `blank`: the share of nucleated cells that a normal may have beyond the cut."""

    blank: float = Field(default=1e-5, gt=0, lt=0.01)


class ClustersParams(SeedAndGrowParams):
    """What the search takes, the number of clusters, and the fewest events of one that is called."""

    clusters: int = Field(default=150, ge=2, le=1000)
    smallest: int = Field(default=10, ge=1)


def tail_cut(normals: F64, share: float) -> float:
    """Return the value that a share of the normals exceeds, beyond the largest of them if it must be.

    The upper 5 % are described by a generalised Pareto tail (probability-weighted moments, Hosking and Wallis 1987).

    Parameters
    ----------
    normals : (n,) values of normal events, larger is more unusual
    share : of the normals beyond the cut, 0 … 1
    """
    ordered = np.sort(normals)
    if share >= _TAIL:
        return float(np.quantile(ordered, 1.0 - share))
    start = float(np.quantile(ordered, 1.0 - _TAIL))
    beyond = ordered[ordered > start] - start
    n = len(beyond)
    if n < 2 or beyond[-1] <= 0.0:
        return float(np.nextafter(ordered[-1], np.inf))
    first = float(beyond.mean())
    second = float((beyond * (n - np.arange(1, n + 1) + 0.35) / n).mean())
    if first <= 2.0 * second:
        # Heavier than any tail with a mean: the largest value is all that is known.
        return float(np.nextafter(ordered[-1], np.inf))
    shape = first / (first - 2.0 * second) - 2.0
    width = 2.0 * first * second / (first - 2.0 * second)
    ratio = share / _TAIL
    far = -np.log(ratio) if abs(shape) < 1e-6 else (1.0 - ratio**shape) / shape
    return start + float(width * far)


def _normal_points(one: Prepared) -> F32:
    """Return normal candidates of the reference that have all features of the sample, (m, d of the pattern)."""
    points = one.reference.points[:, list(one.pattern)]
    points = points[~np.isnan(points).any(axis=1)]
    if len(points) < _FEWEST_POINTS:
        raise NotFound(f"the reference keeps {len(points)} normal events over these markers")
    return np.asarray(points, np.float32)


def _densities(one: Prepared) -> Densities:
    return one.reference.learnt.model.densities[one.pattern]


def _standard(x: F32, densities: Densities) -> F32:
    return ((x - densities.centre) / densities.scale).astype(np.float32)


def _full(x: F32, one: Prepared) -> F32:
    """Put values of the pattern's features among all features of the reference; the others are missing."""
    out = np.full((len(x), len(one.reference.features)), np.nan, np.float32)
    out[:, list(one.pattern)] = x
    return out


def _cut_on(
    scored: Callable[[Prepared], tuple[F64, F64]],
) -> Callable[[Sample, FixedCutParams], Found]:
    """Make the `find` of a method that scores normals and candidates, and calls what lies beyond the normals' cut."""

    def find(sample: Sample, params: FixedCutParams) -> Found:
        one = prepare(sample, params)
        normals, candidates = scored(one)
        # Candidates are some share of a normal marrow's nucleated cells; the cut is meant for the latter.
        usual = float(np.median(_densities(one).abundances.sum(axis=1)))
        cut = tail_cut(normals, min(params.blank / max(usual, params.blank), 0.5))
        called = candidates > cut
        return Found(
            values={"level": cut, "events": float(np.count_nonzero(called))},
            extra=called,
            note=f"reference {one.reference.name} ({one.reference.digest[:12]})",
        )

    return find


def _by_mixture(one: Prepared) -> tuple[F64, F64]:
    densities = _densities(one)
    points = _standard(_normal_points(one), densities)
    return -log_density(points, densities.normal), -log_density(_standard(one.x, densities), densities.normal)


def _by_trees(one: Prepared) -> tuple[F64, F64]:
    trees = one.reference.learnt.model.trees
    return score(trees, _full(_normal_points(one), one)), score(trees, _full(one.x, one))


def _by_isolation(one: Prepared) -> tuple[F64, F64]:
    from sklearn.ensemble import IsolationForest

    densities = _densities(one)
    points = _standard(_normal_points(one), densities)
    forest = IsolationForest(n_estimators=100, max_samples=256, random_state=one.seed, n_jobs=1).fit(points)
    return -forest.score_samples(points), -forest.score_samples(_standard(one.x, densities))


def _by_clusters(sample: Sample, params: ClustersParams) -> Found:
    """Over-cluster the candidates; call clusters that are more abundant than the normals differ from each other.

    How many of its cells a normal has in a cluster follows from its share of each group of the normals' mixture. The
    cut is the largest lead that any normal has over the second most abundant one, anywhere among the clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    one = prepare(sample, params)
    densities = _densities(one)
    z = _standard(one.x, densities)
    count = min(params.clusters, len(z))
    if count < 2:
        return Found(values={"events": 0.0}, extra=np.zeros(len(z), np.bool_))
    fitted = MiniBatchKMeans(
        n_clusters=count, random_state=one.seed, batch_size=4096, n_init=1, max_iter=20, compute_labels=False
    ).fit(z)
    owner = fitted.predict(z)
    held = np.bincount(owner, minlength=count)
    by_normal = _in_clusters(densities, fitted.predict, count, np.random.default_rng(one.seed))
    # One event in a hundred thousand is what no reference of this size can exclude.
    floor = 1e-5
    ranked = np.sort(by_normal, axis=0) + floor
    most = ranked[-1]
    lead = float((ranked[-1] / ranked[-min(2, len(ranked))]).max())
    least = held - 2.0 * np.sqrt(held)
    called = (held >= params.smallest) & (least / max(one.nucleated, 1) > lead * most)
    chosen = called[owner]
    return Found(
        values={"lead": lead, "clusters": float(called.sum()), "events": float(np.count_nonzero(chosen))},
        extra=chosen,
        note=f"reference {one.reference.name} ({one.reference.digest[:12]}), {int(called.sum())} of {count} clusters",
    )


def _in_clusters(
    densities: Densities, predict: Callable[[F32], NDArray[np.int32]], clusters: int, rng: np.random.Generator
) -> F64:
    """Return the share of nucleated cells that each normal has in each cluster, (normals, clusters)."""
    draws = 2000
    normal = densities.normal
    lower = np.linalg.cholesky(normal.covariance)
    share = np.empty((normal.components, clusters))
    for k in range(normal.components):
        events = normal.mean[k] + rng.standard_normal((draws, normal.mean.shape[1])) @ lower[k].T
        share[k] = np.bincount(predict(events.astype(np.float32)), minlength=clusters) / draws
    value: F64 = densities.abundances @ share
    return value


def _no_shape(_markers: tuple[str, ...], _params: object, _found: Found, _values: Values) -> Gate:
    raise GatingError("this method lists events; it has no shape")


def _called(_params: object, found: Found) -> NDArray[np.bool_]:
    return np.asarray(found.extra, np.bool_)


def _method(
    name: str, params: type[SeedAndGrowParams], find: Callable[[Sample, FixedCutParams], Found] | None
) -> GateMethod:
    search = SEARCHES[0]
    return GateMethod(
        name=name,
        params=params,
        find=find,
        build=_no_shape,
        references=search.references,
        optional=search.optional,
        columns=search.columns,
        lists=_called,
    )


METHODS = (
    _method("normal_mixture_cut", FixedCutParams, _cut_on(_by_mixture)),
    _method("boosting_cut", FixedCutParams, _cut_on(_by_trees)),
    _method("isolation_forest_cut", FixedCutParams, _cut_on(_by_isolation)),
    _method("clusters_against_normals", ClustersParams, _by_clusters),  # type: ignore[arg-type]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A comparison: another method in the place of the search; without `method`, what the template falls back to."""

    name: str
    title: str
    method: str = ""

    def vary(self, template: GatingTemplate, population: str) -> GatingTemplate | None:
        """Return the template with the population placed by this method; `None` where it is not searched for."""
        row = template.row(population)
        if row.method != SEARCHES[0].name:
            return None
        # Bounds and fewest events are those of the search; a method that finds nothing holds nothing.
        if self.method:
            varied = row.model_copy(update={"method": self.method, "otherwise": (), "last": "nothing"})
        elif row.otherwise:
            first = row.otherwise[0]
            kept = {name: getattr(first, name) for name in Choice.model_fields}
            varied = row.model_copy(update={**kept, "otherwise": row.otherwise[1:]})
        else:
            return None
        rest = {one.name for one in template.population if _shares(one) == population}
        rows = tuple(
            varied if one.name == population else _emptied(one, population) if one.name in rest else one
            for one in template.population
        )
        kept_measurements = tuple(one for one in template.measurement if one.numerator not in rest)
        return template.model_copy(update={"population": rows, "measurement": kept_measurements})


def _shares(row: Population) -> str:
    """Return the population whose search a row lists events of, or nothing."""
    one = typed(row)
    return one.method.shares(one.params)


def _emptied(row: Population, population: str) -> Population:
    """Leave a population empty: what it lists was left over by the search that does not take place."""
    empty = {"operator": "and", "populations": (population, f"!{population}")}
    return row.model_copy(update={"method": "boolean", "params": empty, "otherwise": ()})


BASELINES = (
    Baseline(
        name="normal_mixture",
        title="mixture of the reference's normals, fixed cut",
        method="normal_mixture_cut",
    ),
    Baseline(name="boosting", title="boosted trees of the reference, fixed cut", method="boosting_cut"),
    Baseline(
        name="clusters",
        title="clusters of candidates that are more abundant than in the normals",
        method="clusters_against_normals",
    ),
    Baseline(
        name="isolation_forest",
        title="isolation forest on the reference's normals, fixed cut",
        method="isolation_forest_cut",
    ),
    Baseline(name="static_rule", title="the template's static rule"),
)
