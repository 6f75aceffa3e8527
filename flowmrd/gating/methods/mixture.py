"""Gaussian and Student-t mixtures in one and two dimensions, fitted to binned counts.

Binning makes the fit independent of event order and as fast for millions of events as for thousands. Components start
at quantiles, so no random number is drawn. With `tail_degrees` a Student-t weight (Peel & McLachlan 2000) keeps
outliers from widening a component.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flowmrd.gating.gates import Ellipsoid, Gate
from flowmrd.gating.methods import Found, GateMethod, NotFound, Params, Sample
from flowmrd.gating.methods.density import CENTRES, WIDTH, cut_gate, histogram
from flowmrd.gating.methods.geometric import Values

F64 = NDArray[np.float64]


class MixtureCutParams(Params):
    """Cut between two neighbouring components of a 1-D mixture, where they are equally likely.

    `between` counts components from the lowest, so 0 is the cut between the first and the second. `min_weight` is the
    least share of a component, `min_separation` the least distance of the two means in pooled standard deviations.
    """

    keep: Literal["above", "below"]
    components: int = Field(default=2, ge=2, le=8)
    between: int = Field(default=0, ge=0)
    min_weight: float = Field(default=0.002, gt=0, lt=1)
    min_separation: float = Field(default=2.0, gt=0)
    tail_degrees: float | None = Field(default=None, gt=0)
    search: tuple[float, float] = Field(default=(-0.5, 1.5))


def _fit_1d(x: F64, weight: F64, components: int, degrees: float | None) -> tuple[F64, F64, F64]:
    share = np.cumsum(weight) / weight.sum()
    mean = np.interp((np.arange(components) + 0.5) / components, share, x)
    overall = float(np.average((x - np.average(x, weights=weight)) ** 2, weights=weight))
    variance = np.full(components, max(overall, 1e-5) / components)
    part = np.full(components, 1.0 / components)
    last = -math.inf
    for _ in range(500):
        delta = (x[:, None] - mean) ** 2 / variance
        if degrees is None:
            logp = np.log(part) - 0.5 * (np.log(2 * np.pi * variance) + delta)
            robust = np.ones_like(delta)
        else:
            const = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - 0.5 * math.log(degrees * math.pi)
            logp = np.log(part) + const - 0.5 * np.log(variance) - (degrees + 1) / 2 * np.log1p(delta / degrees)
            robust = (degrees + 1) / (degrees + delta)
        top = logp.max(axis=1, keepdims=True)
        norm = top[:, 0] + np.log(np.exp(logp - top).sum(axis=1))
        likelihood = float((weight * norm).sum() / weight.sum())
        belong = np.exp(logp - norm[:, None]) * weight[:, None]
        mass = belong.sum(axis=0) + 1e-300
        pull = belong * robust
        mean = (pull * x[:, None]).sum(axis=0) / (pull.sum(axis=0) + 1e-300)
        # A floor of one bin keeps a component from collapsing onto a single bin.
        variance = np.maximum((pull * (x[:, None] - mean) ** 2).sum(axis=0) / mass, (2 * WIDTH) ** 2)
        part = np.maximum(mass / weight.sum(), 1e-12)
        part /= part.sum()
        if abs(likelihood - last) < 1e-9:
            break
        last = likelihood
    order = np.argsort(mean)
    return part[order], mean[order], variance[order]


def _find_cut(sample: Sample, params: MixtureCutParams) -> Found:
    counts: F64 = histogram(sample.events[sample.markers[0]])
    low, high = params.search
    inside = (low <= CENTRES) & (high >= CENTRES) & (counts > 0)
    if inside.sum() < 2 * params.components:
        raise NotFound(f"too few distinct values of {sample.markers[0]} for {params.components} components")
    part, mean, variance = _fit_1d(CENTRES[inside], counts[inside], params.components, params.tail_degrees)
    a = params.between
    if a + 1 >= params.components:
        raise NotFound(f"between = {a} needs more than {params.components} components")
    left, right = slice(a, a + 1), slice(a + 1, a + 2)
    separation = float((mean[right] - mean[left])[0] / math.sqrt(float((variance[left] + variance[right])[0]) / 2))
    lesser = float(min(part[left][0], part[right][0]))
    if lesser < params.min_weight or separation < params.min_separation:
        raise NotFound(
            f"components of {sample.markers[0]} do not separate: {separation:.1f} standard deviations apart, "
            f"the lesser holds {lesser:.2%}"
        )
    grid = np.linspace(mean[left][0], mean[right][0], 2001)

    def log_density(k: slice) -> F64:
        value: F64 = np.log(part[k][0]) - 0.5 * np.log(variance[k][0]) - (grid - mean[k][0]) ** 2 / (2 * variance[k][0])
        return value

    cut = float(grid[int(np.argmin(np.abs(log_density(left) - log_density(right))))])
    return Found(
        values={"cut": cut, "separation": separation, "lesser_share": lesser},
        note=f"{params.components} components, {separation:.1f} SD apart",
    )


class MixtureGateParams(Params):
    """An ellipse around one component of a 2-D mixture.

    The component whose mean is nearest to `target` is taken, without a target the one of most events; its ellipse holds
    `content` of it: of a normal distribution, or, with `tail_degrees`, of Student's t. `max_distance` is the farthest a
    component may lie from the target.
    """

    components: int = Field(default=3, ge=1, le=12)
    target: tuple[float, float] | None = Field(default=None)
    content: float = Field(default=0.95, gt=0, lt=1)
    max_distance: float = Field(default=0.25, gt=0)
    min_weight: float = Field(default=0.002, gt=0, lt=1)
    tail_degrees: float | None = Field(default=None, gt=0)


def _fit_2d(points: F64, weight: F64, components: int, degrees: float | None) -> tuple[F64, F64, F64]:
    total = weight.sum()
    centre = np.average(points, axis=0, weights=weight)
    spread = np.einsum("n,ni,nj->ij", weight, points - centre, points - centre) / total + 1e-6 * np.eye(2)
    # Start means: weighted farthest points from the centre, a deterministic k-means++.
    means = [centre]
    for _ in range(components - 1):
        distance = np.min([((points - m) ** 2).sum(axis=1) for m in means], axis=0)
        means.append(points[int(np.argmax(distance * np.sqrt(weight)))])
    mean = np.array(means)
    covariance = np.repeat(spread[None] / components, components, axis=0)
    part = np.full(components, 1.0 / components)
    last = -math.inf
    for _ in range(300):
        inverse = np.linalg.inv(covariance)
        centred = points[:, None, :] - mean
        delta = np.einsum("nki,kij,nkj->nk", centred, inverse, centred)
        logdet = np.log(np.linalg.det(covariance))
        if degrees is None:
            logp = np.log(part) - 0.5 * (2 * math.log(2 * math.pi) + logdet + delta)
            robust = np.ones_like(delta)
        else:
            const = math.lgamma((degrees + 2) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi)
            logp = np.log(part) + const - 0.5 * logdet - (degrees + 2) / 2 * np.log1p(delta / degrees)
            robust = (degrees + 2) / (degrees + delta)
        top = logp.max(axis=1, keepdims=True)
        norm = top[:, 0] + np.log(np.exp(logp - top).sum(axis=1))
        likelihood = float((weight * norm).sum() / total)
        belong = np.exp(logp - norm[:, None]) * weight[:, None]
        mass = belong.sum(axis=0) + 1e-300
        pull = belong * robust
        mean = np.einsum("nk,ni->ki", pull, points) / (pull.sum(axis=0)[:, None] + 1e-300)
        centred = points[:, None, :] - mean
        covariance = np.einsum("nk,nki,nkj->kij", pull, centred, centred) / mass[:, None, None]
        covariance += (2 * WIDTH) ** 2 * np.eye(2)
        part = np.maximum(mass / total, 1e-12)
        part /= part.sum()
        if abs(likelihood - last) < 1e-8:
            break
        last = likelihood
    return part, mean, covariance


def _find_component(sample: Sample, params: MixtureGateParams) -> Found:
    first, second = sample.markers
    step = 1.0 / 128
    x = np.floor(sample.events[first].astype(np.float64) / step)
    y = np.floor(sample.events[second].astype(np.float64) / step)
    inside = (np.abs(x) < 4 / step) & (np.abs(y) < 4 / step)
    key, counts = np.unique(np.stack([x[inside], y[inside]], axis=1), axis=0, return_counts=True)
    if len(key) < 5 * params.components:
        raise NotFound(f"too few distinct values for {params.components} components")
    centres = (key + 0.5) * step
    part, mean, covariance = _fit_2d(centres, counts.astype(np.float64), params.components, params.tail_degrees)
    if params.target is None:
        best = int(np.argmax(part))
    else:
        distance = np.sqrt(((mean - np.asarray(params.target)) ** 2).sum(axis=1))
        distance[part < params.min_weight] = np.inf
        best = int(np.argmin(distance))
        if not distance[best] <= params.max_distance:
            raise NotFound(f"no component within {params.max_distance:g} of {params.target}")
    return Found(
        values={
            "mean_x": float(mean[best, 0]),
            "mean_y": float(mean[best, 1]),
            "share": float(part[best]),
        },
        extra=tuple(tuple(float(v) for v in row) for row in covariance[best]),
        note=f"component {best + 1} of {params.components}, {part[best]:.1%} of the events",
    )


def _build_component(markers: tuple[str, ...], params: MixtureGateParams, found: Found, _values: Values) -> Gate:
    # The quantiles of the squared distance in two dimensions: chi-square's and, for Student's t, twice that of F(2, ν).
    nu, outside = params.tail_degrees, 1.0 - params.content
    limit = -2.0 * math.log(outside) if nu is None else nu * (outside ** (-2.0 / nu) - 1.0)
    return Ellipsoid(
        markers=markers,
        mean=(found.values["mean_x"], found.values["mean_y"]),
        covariance=found.extra,
        distance_square=limit,
    )


METHODS = (
    GateMethod(name="mixture_cut", params=MixtureCutParams, find=_find_cut, build=cut_gate),
    GateMethod(name="mixture_2d", params=MixtureGateParams, find=_find_component, build=_build_component),
)
