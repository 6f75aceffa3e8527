"""Find groups of blasts in one sample: seeds from the scores, grown inside the sample, judged as groups.

1. Each candidate has a log density ratio z (blasts against normals, calibrated). The share of blasts that explains the
   sample's ratios best (EM over the mixing share, Saerens 2002) turns it into a probability.
2. Blasts of one sample lie closer together than blasts of all patients: a small mixture is fitted to the probable ones,
   a larger one to the rest, and the sample's own ratio joins z. So a group pulls in its paler members and sheds strays.
3. Groups of the rest that are far more abundant than in any normal are put forward as well.
4. Every group is judged by a logistic model on what it looks like: accepted, under review, or not a finding.
5. An accepted group grows once more, by this sample alone: what was learnt from other patients decided that there is
   leukemia, the sample's own density then decides which events belong to it. The grown group is judged again.
6. What is left, is not plainly normal and is many times as abundant as in the normals is named: blasts that look like a
   normal stage betray themselves by their number only, and that is for a person to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowmrd.gating.detection.align import find_shift
from flowmrd.gating.detection.mixtures import Mixture, fit_mixture, log_components, log_density
from flowmrd.gating.detection.scores import Calibration, Densities, ScoreModel, raw_scores

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FEATURES = ("log_events", "mean_ratio", "lower_ratio", "abundance", "log_share", "log_volume", "arrest")
_FEWEST = 5.0
_OWN_SHARE = 0.5
_RATIO_BOUND = 15.0
# From so many events on a second, third … group of blasts is looked for.
_MORE_COMPONENTS = (60.0, 300.0, 700.0, 2000.0)
# Growing an accepted group: weight of other patients' ratios beside the sample's own, components of its surroundings,
# EM steps, events that the prior on a covariance is worth, and the width of that prior (standardised units).
_REGROW_RATIO = 0.25
_REGROW_BACKGROUND = 24
_REGROW_STEPS = 6
_REGROW_STRENGTH = 15.0
_WIDE = 0.05
# What is left: the share of the nucleated cells from which on a component is no chance of the fit, and the mean ratio
# below which it is plainly normal.
_ABUNDANT_EACH = 0.01
_ABUNDANT_RATIO = -5.0
_ABUNDANT_COMPONENTS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """One group of events: `members` are rows of the candidates; `features` as named in `FEATURES`."""

    members: NDArray[np.intp]
    events: float
    mean: F64
    covariance: F64
    features: F64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """All groups of a sample, the probability of each candidate under the grown mixture, and the calibrated ratios."""

    groups: tuple[Group, ...]
    probability: F64
    ratio: F64


def mixing_share(ratio: F64, weight: F64 | None = None, start: float = 0.01) -> tuple[float, F64]:
    """Return the share of blasts that explains the ratios best, and each event's probability."""
    w = np.ones(len(ratio)) if weight is None else weight
    total = float(w.sum())
    share = start
    for _ in range(300):
        logit = ratio + np.log(share / (1.0 - share))
        probability = 1.0 / (1.0 + np.exp(-np.clip(logit, -40.0, 40.0)))
        following = float(np.clip((probability * w).sum() / total, 1e-8, 1.0 - 1e-6))
        if abs(following - share) < 1e-4 * share:
            break
        share = following
    logit = ratio + np.log(share / (1.0 - share))
    return share, 1.0 / (1.0 + np.exp(-np.clip(logit, -40.0, 40.0)))


def settle(
    x: F32,
    *,
    model: ScoreModel,
    calibration: Calibration,
    features: tuple[int, ...],
    seed: int,
    events: int = 8000,
) -> F64:
    """Return what to take off each feature of `features`, (d,), so that the unremarkable candidates lie on the normals.

    Blasts in number would pull the shift towards themselves: events that already look like blasts are left out, and
    what looks so is judged again after the first shift.
    """
    rng = np.random.default_rng(seed)
    columns = list(features)
    drawn = x if len(x) <= events else x[np.sort(rng.choice(len(x), events, replace=False))]
    shift = np.zeros(len(columns))
    densities = model.densities[features]
    for _ in range(2):
        moved = drawn.copy()
        moved[:, columns] -= shift.astype(np.float32)
        _, probability = mixing_share(np.clip(calibration(raw_scores(model, features, moved)), -15.0, 15.0))
        plain = drawn[probability < 0.2][:, columns]
        shift = find_shift(plain, densities, seed=seed)
    return shift


def search(
    x: F32,
    *,
    model: ScoreModel,
    calibration: Calibration,
    features: tuple[int, ...],
    nucleated: int,
    seed: int,
    draws: int = 6000,
) -> Search:
    """Find the groups of one sample.

    Parameters
    ----------
    x : (n, d) aligned candidates over the reference's features
    model, calibration : scores and what they are worth, for `features`
    features : the features that sample and reference share
    nucleated : size of the denominator
    seed : draws the events that mixtures are fitted to
    draws : events drawn of each kind for the fits
    """
    rng = np.random.default_rng(seed)
    densities = model.densities[features]
    ratio = np.clip(calibration(raw_scores(model, features, x)), -_RATIO_BOUND, _RATIO_BOUND)
    z = ((x[:, list(features)] - densities.centre) / densities.scale).astype(np.float32)
    share, probability = mixing_share(ratio)
    fitted = _grow(z, ratio, share, probability, densities, nucleated, rng, draws)
    if fitted is None:
        return Search(groups=(), probability=np.zeros(len(x)), ratio=ratio)
    probability, blast = fitted
    return Search(
        groups=_groups(z, ratio, probability, blast, densities, nucleated), probability=probability, ratio=ratio
    )


def _grow(
    z: F32,
    ratio: F64,
    share: float,
    probability: F64,
    densities: Densities,
    nucleated: int,
    rng: np.random.Generator,
    draws: int,
) -> tuple[F64, Mixture] | None:
    probable = probability > 0.2
    rest = np.flatnonzero(~probable)
    near = np.flatnonzero(probable)
    rest_drawn = rest if len(rest) <= draws else np.sort(rng.choice(rest, draws, replace=False))
    near_drawn = near if len(near) <= draws else np.sort(rng.choice(near, draws, replace=False))
    rows = np.concatenate([rest_drawn, near_drawn])
    weight = np.concatenate(
        [
            np.full(len(rest_drawn), len(rest) / max(len(rest_drawn), 1)),
            np.full(len(near_drawn), len(near) / max(len(near_drawn), 1)),
        ]
    )
    x, own, seen = z[rows], ratio[rows], probability[rows]
    d = z.shape[1]
    wide = np.eye(d) * _WIDE
    background = fit_mixture(x, weight * (1.0 - seen), 16, prior=np.eye(d) / 16, strength=20.0, iterations=12, rng=rng)
    seen = _with_abundant(x, weight, seen, own, background, densities, nucleated)
    if (weight * seen).sum() < _FEWEST:
        return None
    blast = None
    for _ in range(3):
        mass = weight * seen
        if mass.sum() < _FEWEST:
            return None
        some = seen > 1e-3
        count = 1 + int(np.searchsorted(_MORE_COMPONENTS, mass.sum()))
        middle = np.average(x[some], axis=0, weights=mass[some])
        tight = np.einsum("n,ni,nj->ij", mass[some], x[some] - middle, x[some] - middle) / mass[some].sum()
        blast = fit_mixture(x[some], mass[some], count, prior=0.5 * tight + wide, strength=30.0, iterations=10, rng=rng)
        background = fit_mixture(
            x,
            weight * (1.0 - seen),
            16,
            prior=np.eye(d) / 16,
            strength=20.0,
            iterations=5,
            rng=rng,
            start=background,
        )
        combined = _combined(x, own, blast, background)
        share, seen = mixing_share(combined, weight, min(max(share, 1e-6), 0.5))
    assert blast is not None
    combined = _combined(z, ratio, blast, background)
    logit = combined + np.log(share / (1.0 - share))
    return 1.0 / (1.0 + np.exp(-np.clip(logit, -40.0, 40.0))), blast


def _combined(x: F32, ratio: F64, blast: Mixture, background: Mixture) -> F64:
    own = log_density(x, blast) - np.logaddexp(log_density(x, background), np.log(1e-7))
    both: F64 = (1.0 - _OWN_SHARE) * ratio + _OWN_SHARE * np.clip(own, -_RATIO_BOUND, _RATIO_BOUND)
    return both


def abundance(x: F32, log_sample: F64, candidates: float, nucleated: int, densities: Densities) -> F64:
    """Return log(sample's density per nucleated cell / that of the second most abundant normal there), (n,)."""
    logs = log_components(
        x,
        Mixture(
            weight=np.ones(len(densities.normal.weight)),
            mean=densities.normal.mean,
            covariance=densities.normal.covariance,
        ),
    )
    top = logs.max(axis=1)
    by_normal = np.exp(logs - top[:, None]) @ densities.abundances.T
    worst = np.sort(by_normal, axis=1)[:, -min(2, by_normal.shape[1])]
    value: F64 = np.asarray(log_sample + np.log(candidates / nucleated) - top - np.log(worst + 1e-12))
    return value


def _beside_normals(
    x: F32, weight: F64, own: F64, fitted: Mixture, densities: Densities, nucleated: int
) -> tuple[F64, F64, F64, F64]:
    """Return what each component holds: belonging (n, k), events (k,), mean abundance and mean ratio (k,)."""
    logs = log_components(x, fitted)
    logs -= logs.max(axis=1, keepdims=True)
    belong = np.exp(logs)
    belong *= (weight / belong.sum(axis=1))[:, None]
    mass = belong.sum(axis=0)
    over = abundance(x, log_density(x, fitted), float(weight.sum()), nucleated, densities)
    mean_over = (belong * over[:, None]).sum(axis=0) / np.maximum(mass, 1.0)
    mean_own = (belong * own[:, None]).sum(axis=0) / np.maximum(mass, 1.0)
    return belong, mass, mean_over, mean_own


def _with_abundant(
    x: F32, weight: F64, seen: F64, own: F64, background: Mixture, densities: Densities, nucleated: int
) -> F64:
    """Put forward groups of the rest that are far more abundant than in the normals and not plainly normal."""
    belong, mass, mean_over, mean_own = _beside_normals(x, weight * (1.0 - seen), own, background, densities, nucleated)
    put = (mean_over > 1.5) & (mean_own > -1.0) & (mass > 1e-3 * nucleated)
    if not put.any():
        return seen
    share = belong[:, put].sum(axis=1) / np.maximum(weight, 1e-12)
    more: F64 = np.clip(seen + share, 0.0, 1.0)
    return more


def _groups(
    z: F32, ratio: F64, probability: F64, blast: Mixture, densities: Densities, nucleated: int
) -> tuple[Group, ...]:
    called = np.flatnonzero(probability > 0.5)
    if not called.size:
        return ()
    owner = log_components(z[called], blast).argmax(axis=1)
    owner = _joined(blast)[owner]
    usual = _usual_volume(densities)
    return tuple(
        _group(called[owner == k], z, ratio, probability, usual, densities, nucleated) for k in np.unique(owner)
    )


def _group(
    rows: NDArray[np.intp],
    z: F32,
    ratio: F64,
    probability: F64,
    usual: float,
    densities: Densities,
    nucleated: int,
) -> Group:
    mine = z[rows].astype(np.float64)
    mean = mine.mean(axis=0)
    spread = mine - mean
    covariance = (spread.T @ spread + 5.0 * np.eye(z.shape[1]) * _WIDE) / (len(rows) + 5.0)
    own = Mixture(weight=np.ones(1), mean=mean[None], covariance=covariance[None])
    over = abundance(z[rows], log_density(z[rows], own), float(len(rows)), nucleated, densities)
    r = ratio[rows]
    return Group(
        members=rows,
        events=float(probability[rows].sum()),
        mean=mean,
        covariance=covariance,
        features=np.array(
            [
                np.log10(max(len(rows), 1)),
                r.mean(),
                np.quantile(r, 0.25),
                float(np.clip(over.mean(), -10.0, 20.0)),
                np.log10(len(rows) / len(z)),
                0.5 * np.linalg.slogdet(covariance)[1] - usual,
                np.log10(len(rows) / nucleated),
            ]
        ),
    )


def _usual_volume(densities: Densities) -> float:
    return float(np.median(0.5 * np.linalg.slogdet(densities.normal.covariance)[1]))


def regrow(
    x: F32,
    found: Search,
    starts: Sequence[Group],
    *,
    model: ScoreModel,
    features: tuple[int, ...],
    nucleated: int,
    seed: int,
    draws: int = 6000,
) -> tuple[Group | None, ...]:
    """Let accepted groups grow by the density of this sample, each start for itself.

    Parameters
    ----------
    x, model, features, nucleated, seed, draws : as in `search`
    found : what `search` found in `x`
    starts : the groups to grow

    Returns
    -------
    For each start the grown group; `None` where it lost all its events to another or to the surroundings.
    """
    if not starts:
        return ()
    rng = np.random.default_rng(seed)
    densities = model.densities[features]
    z = ((x[:, list(features)] - densities.centre) / densities.scale).astype(np.float32)
    posterior = _grown(z, found.ratio, [one.members for one in starts], rng, draws)
    total = posterior.sum(axis=1)
    owner = np.where(total > 0.5, posterior.argmax(axis=1), -1)
    usual = _usual_volume(densities)
    grown: list[Group | None] = []
    for k in range(len(starts)):
        rows = np.flatnonzero(owner == k)
        grown.append(_group(rows, z, found.ratio, total, usual, densities, nucleated) if rows.size else None)
    return tuple(grown)


def abundant(
    x: F32,
    found: Search,
    left: NDArray[np.bool_],
    *,
    model: ScoreModel,
    features: tuple[int, ...],
    nucleated: int,
    seed: int,
    least_share: float,
    times: float,
    draws: int = 6000,
) -> tuple[Group, ...]:
    """Return groups of what is left that are far more abundant than in the normals and not plainly normal.

    Parameters
    ----------
    x, model, features, nucleated, seed, draws : as in `search`
    found : what `search` found in `x`
    left : (n,) which candidates nobody has called yet
    least_share : share of the nucleated cells that the groups must have together
    times : how many times as abundant as in the second most abundant normal a group must be
    """
    rows = np.flatnonzero(left)
    if len(rows) < max(least_share * nucleated, 200.0):
        return ()
    rng = np.random.default_rng(seed)
    densities = model.densities[features]
    z = ((x[:, list(features)] - densities.centre) / densities.scale).astype(np.float32)
    drawn = rows if len(rows) <= draws else np.sort(rng.choice(rows, draws, replace=False))
    weight = np.full(len(drawn), len(rows) / len(drawn))
    prior = np.eye(z.shape[1]) / _ABUNDANT_COMPONENTS
    fitted = fit_mixture(z[drawn], weight, _ABUNDANT_COMPONENTS, prior=prior, strength=20.0, iterations=12, rng=rng)
    _, mass, over, own = _beside_normals(z[drawn], weight, found.ratio[drawn], fitted, densities, nucleated)
    named = (mass >= _ABUNDANT_EACH * nucleated) & (over >= np.log(times)) & (own > _ABUNDANT_RATIO)
    if mass[named].sum() < least_share * nucleated:
        return ()
    nearest = log_components(z[rows], fitted).argmax(axis=1)
    rows, owner = rows[named[nearest]], _joined(fitted)[nearest[named[nearest]]]
    usual = _usual_volume(densities)
    return tuple(
        _group(rows[owner == k], z, found.ratio, found.probability, usual, densities, nucleated)
        for k in np.unique(owner)
    )


def _grown(z: F32, ratio: F64, starts: Sequence[NDArray[np.intp]], rng: np.random.Generator, draws: int) -> F64:
    """Return the probability of each event to belong to each start, (n, starts)."""
    size, d = z.shape
    inside = np.zeros(size, np.bool_)
    means, covariances = [], []
    for rows in starts:
        inside[rows] = True
        points = z[rows].astype(np.float64)
        means.append(points.mean(axis=0))
        spread = points - means[-1]
        prior = 2.0 * _REGROW_STRENGTH * _WIDE * np.eye(d)
        covariances.append((spread.T @ spread + prior) / (len(rows) + _REGROW_STRENGTH))
    blast = Mixture(
        weight=np.array([len(rows) / size for rows in starts]), mean=np.array(means), covariance=np.array(covariances)
    )
    # The neighbourhood in full, the rest as a draw: a small group must not be lost in it.
    nearest = log_components(z, blast).max(axis=1)
    reach = int(min(size, max(4 * inside.sum(), 4000)))
    close = inside.copy()
    close[np.argsort(-nearest, kind="stable")[:reach]] = True
    groups = [np.flatnonzero(close), np.flatnonzero(~close)]
    drawn = [rows if len(rows) <= draws else np.sort(rng.choice(rows, draws, replace=False)) for rows in groups]
    chosen = np.concatenate(drawn)
    weight = np.concatenate(
        [np.full(len(some), len(every) / max(len(some), 1)) for every, some in zip(groups, drawn, strict=True)]
    )
    x, own = z[chosen], ratio[chosen]
    prior = np.eye(d) / _REGROW_BACKGROUND
    background: Mixture | None = None
    # What lies within a start's own width may be its members: were it left to the surroundings, a component of theirs
    # would settle on it and keep it.
    seen = np.maximum(inside[chosen], _within(x, blast)).astype(np.float64)
    for step in range(_REGROW_STEPS + 1):
        background = fit_mixture(
            x,
            weight * np.clip(1.0 - seen, 0.0, 1.0) + 1e-9,
            _REGROW_BACKGROUND,
            prior=prior,
            strength=20.0,
            iterations=4 if step else 10,
            rng=rng,
            start=background,
        )
        if step == _REGROW_STEPS:
            break
        belong = _belonging(x, own, blast, background)
        mass = np.maximum((belong * weight[:, None]).sum(axis=0), 1.0)
        mean = (belong * weight[:, None]).T @ x / mass[:, None]
        covariance = np.empty((len(mass), d, d))
        for k in range(len(mass)):
            spread = x - mean[k]
            measured = (spread * (belong[:, k] * weight)[:, None]).T @ spread / mass[k]
            drawn_to = 0.5 * measured + _WIDE * np.eye(d)
            covariance[k] = (measured * mass[k] + _REGROW_STRENGTH * drawn_to) / (mass[k] + _REGROW_STRENGTH)
        share = mass / size
        blast = Mixture(weight=share * min(1.0, 0.97 / share.sum()), mean=mean, covariance=covariance)
        seen = belong.sum(axis=1)
    assert background is not None
    out = np.empty((size, len(starts)))
    for start in range(0, size, 65536):
        part = slice(start, start + 65536)
        out[part] = _belonging(z[part], ratio[part], blast, background)
    return out


def _within(x: F32, blast: Mixture) -> NDArray[np.bool_]:
    """Say which events lie where most of a component's events do (mean and two deviations of their distance)."""
    d = x.shape[1]
    near = np.zeros(len(x), np.bool_)
    for mean, covariance in zip(blast.mean, blast.covariance, strict=True):
        delta = x - mean
        near |= np.einsum("ni,ni->n", delta, np.linalg.solve(covariance, delta.T).T) < d + 2.0 * np.sqrt(2.0 * d)
    return near


def _belonging(x: F32, ratio: F64, blast: Mixture, background: Mixture) -> F64:
    """Return the probability of each event under each component beside the background, (n, k)."""
    around = np.logaddexp(log_density(x, background), np.log(1e-7))
    unweighted = Mixture(weight=np.ones(blast.components), mean=blast.mean, covariance=blast.covariance)
    own = np.clip(log_components(x, unweighted) - around[:, None], -2.0 * _RATIO_BOUND, 2.0 * _RATIO_BOUND)
    logit = np.log(blast.weight) + own + _REGROW_RATIO * ratio[:, None]
    top = np.maximum(logit.max(axis=1), 0.0)
    share = np.exp(logit - top[:, None])
    rest = np.exp(np.log(max(1e-6, 1.0 - float(blast.weight.sum()))) - top)
    belong: F64 = share / (share.sum(axis=1) + rest)[:, None]
    return belong


def _joined(blast: Mixture) -> NDArray[np.intp]:
    """Give components whose middles are very close (under one and a half of their own widths) one owner."""
    owner = np.arange(blast.components)
    for a in range(blast.components):
        for b in range(a):
            delta = blast.mean[a] - blast.mean[b]
            both = 0.5 * (blast.covariance[a] + blast.covariance[b])
            if float(delta @ np.linalg.solve(both, delta)) < 2.25:
                owner[owner == owner[a]] = owner[b]
    return owner
