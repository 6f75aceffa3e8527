"""A reference: normals and other patients' blasts, learnt once and kept as one file of numbers.

The file is a zip of plain arrays and a JSON head, without code; its SHA-256 is its identity. Everything in it was
measured on the marrows that it was given; what calibrates a score or judges a group was measured on marrows that the
models of that fold had not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flowmrd.gating.detection.align import find_shift
from flowmrd.gating.detection.grow import FEATURES, Search, search
from flowmrd.gating.detection.scores import (
    Calibration,
    Pool,
    ScoreModel,
    calibrate,
    fit_densities,
    fit_trees_to,
    pattern_of,
    raw_scores,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

FOLDS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Marrow:
    """Control-aligned candidates of one marrow, and which of them are blasts (none of a normal's are)."""

    name: str
    x: F32
    blast: NDArray[np.bool_]
    nucleated: int
    normal: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judge:
    """Logistic model of a group: from `accept` on it is accepted, from `review` on it goes to a person."""

    centre: F64
    scale: F64
    weight: F64
    intercept: float
    accept: float
    review: float
    relative_error: float

    def probability(self, features: F64) -> float:
        """Return the probability that most of a group's events are blasts."""
        z = float(((features - self.centre) / self.scale) @ self.weight + self.intercept)
        return float(1.0 / (1.0 + np.exp(-np.clip(z, -40.0, 40.0))))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learnt:
    """What detection needs: scores, calibrations by set of features, and the judge of groups."""

    features: tuple[str, ...]
    model: ScoreModel
    calibrations: Mapping[tuple[int, ...], Calibration]
    judge: Judge


def _shifted(marrows: Sequence[Marrow], model: Mapping[tuple[int, ...], object], seed: int) -> list[Marrow]:
    out = []
    for one in marrows:
        pattern = pattern_of(one.x)
        densities = model.get(pattern)
        others = one.x[~one.blast]
        if densities is None or len(others) < 500:
            out.append(one)
            continue
        shift = np.zeros(one.x.shape[1])
        shift[list(pattern)] = find_shift(others[:, list(pattern)], densities, seed=seed)  # type: ignore[arg-type]
        out.append(replace(one, x=(one.x - shift).astype(np.float32)))
    return out


def pools(marrows: Iterable[Marrow]) -> list[Pool]:
    """Return each marrow's normal candidates (of normals) and blasts (of diagnoses) as pools."""
    out = []
    for one in marrows:
        if one.normal:
            out.append(Pool(name=one.name, x=one.x, blast=False, nucleated=one.nucleated))
        elif one.blast.sum() >= 20:
            out.append(Pool(name=one.name, x=one.x[one.blast], blast=True, nucleated=one.nucleated))
    return out


def pseudo_diagnoses(
    marrows: Sequence[Marrow], shiftable: Sequence[int], *, seed: int, patients: int = 48
) -> list[Marrow]:
    """Make groups that leave the normal path: a tight patch of normal cells, two to six markers moved.

    They stand in for blasts where no diagnosis is at hand, so that the scores learn what "off the path" means in every
    direction; a reference made so knows no leukemia.
    """
    rng = np.random.default_rng(seed)
    normals = [m.x for m in marrows if m.normal and len(m.x) >= 500]
    out = []
    for k in range(patients if normals else 0):
        x = normals[int(rng.integers(len(normals)))]
        drawn = x if len(x) <= 20_000 else x[rng.choice(len(x), 20_000, replace=False)]
        scale = np.nanstd(drawn, axis=0) + 1e-6
        anchor = drawn[int(rng.integers(len(drawn)))]
        near = np.argsort(np.nansum(np.square((drawn - anchor) / scale), axis=1), kind="stable")[:150]
        events = drawn[near[rng.integers(0, len(near), 1200)]].astype(np.float64)
        events += rng.normal(0.0, 0.25, events.shape) * np.nanstd(drawn[near], axis=0)
        moved = rng.choice(shiftable, min(int(rng.integers(2, 7)), len(shiftable)), replace=False)
        events[:, moved] += rng.choice([-1.0, 1.0], len(moved)) * rng.uniform(0.08, 0.45, len(moved))
        out.append(
            Marrow(
                name=f"pseudo {k + 1}",
                x=events.astype(np.float32),
                blast=np.ones(len(events), np.bool_),
                nucleated=len(events),
                normal=False,
            )
        )
    return out


def _some(x: F32, count: int, rng: np.random.Generator) -> F32:
    return x if len(x) <= count else x[np.sort(rng.choice(len(x), count, replace=False))]


def align_marrows(marrows: Sequence[Marrow], patterns: Sequence[tuple[int, ...]], seed: int) -> list[Marrow]:
    """Bring all marrows onto one scale: fit the normals, shift every marrow onto them."""
    first = {p: fit_densities(pools(marrows), p, seed=seed, components=24, events=30_000) for p in patterns}
    return _shifted(marrows, first, seed)


def fit_model(
    given: Sequence[Pool], patterns: Sequence[tuple[int, ...]], optional: Sequence[int], seed: int
) -> ScoreModel:
    """Fit trees and densities."""
    return ScoreModel(
        trees=fit_trees_to(given, optional=optional, seed=seed),
        densities={p: fit_densities(given, p, seed=seed) for p in patterns},
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """One in-silico sample: what was put in, what came out."""

    normal: str
    put_in: int
    nucleated: int
    features: F64
    purity: F64
    events: F64
    found: F64


def trials(
    model: ScoreModel,
    calibrations: Mapping[tuple[int, ...], Calibration],
    normals: Sequence[Pool],
    blasts: Sequence[Pool],
    *,
    seed: int,
    positives: int,
) -> list[Trial]:
    """Search held-out normals as they are, and with held-out blasts put in at levels from a dozen events to 30 %.

    Each normal is searched on all the features that it has and that some blasts have too.
    """
    rng = np.random.default_rng(seed)

    def shared(normal: Pool) -> tuple[tuple[int, ...], list[Pool]]:
        having = set(pattern_of(normal.x))
        for pattern in sorted(calibrations, key=lambda p: (-len(p), p)):
            fitting = [b for b in blasts if set(pattern) <= set(pattern_of(b.x))]
            if set(pattern) <= having and fitting:
                return pattern, fitting
        return (), []

    usable = [(normal, *shared(normal)) for normal in normals]
    usable = [one for one in usable if one[1]]
    plan: list[tuple[Pool, tuple[int, ...], Pool | None, int]] = [(n, pattern, None, 0) for n, pattern, _ in usable]
    for i in range(positives if usable else 0):
        normal, pattern, fitting = usable[i % len(usable)]
        blast = fitting[int(rng.integers(len(fitting)))]
        most = min(len(blast.x), int(0.3 * normal.nucleated))
        count = int(np.exp(rng.uniform(np.log(12.0), np.log(max(most, 13)))))
        plan.append((normal, pattern, blast, min(count, len(blast.x))))
    out = []
    for normal, pattern, source, count in plan:
        x, truth = normal.x, np.zeros(len(normal.x), np.bool_)
        if source is not None:
            rows = rng.choice(len(source.x), count, replace=False)
            x = np.concatenate([x, source.x[rows]])
            truth = np.concatenate([truth, np.ones(count, np.bool_)])
        found: Search = search(
            x,
            model=model,
            calibration=calibrations[pattern],
            features=pattern,
            nucleated=normal.nucleated + count,
            seed=seed,
        )
        out.append(
            Trial(
                normal=normal.name,
                put_in=count,
                nucleated=normal.nucleated + count,
                features=np.array([g.features for g in found.groups]).reshape(-1, len(FEATURES)),
                purity=np.array([truth[g.members].mean() for g in found.groups]),
                events=np.array([len(g.members) for g in found.groups]),
                found=np.array([truth[g.members].sum() for g in found.groups]),
            )
        )
    return out


def fit_judge(all_trials: Sequence[Trial], *, least: int) -> Judge:
    """Fit the judge of groups; its thresholds are set on the normals, and its error is measured on what it accepts."""
    from sklearn.linear_model import LogisticRegression

    x = np.concatenate([t.features for t in all_trials])
    y = np.concatenate([t.purity > 0.5 for t in all_trials])
    if len(x) < 10 or y.all() or not y.any():
        return Judge(
            centre=np.zeros(len(FEATURES)),
            scale=np.ones(len(FEATURES)),
            weight=np.array([1.0, 0.3, 0.3, 0.2, 0.0, 0.0, 0.0]),
            intercept=-4.0,
            accept=0.9,
            review=0.5,
            relative_error=0.3,
        )
    centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-9
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit((x - centre) / scale, y)
    judge = Judge(
        centre=centre,
        scale=scale,
        weight=fitted.coef_[0].astype(np.float64),
        intercept=float(fitted.intercept_[0]),
        accept=0.5,
        review=0.2,
        relative_error=0.3,
    )
    worst = []
    for t in all_trials:
        if t.put_in == 0:
            high = [judge.probability(f) for f, n in zip(t.features, t.events, strict=True) if n >= least]
            worst.append(max(high, default=0.0))
    accept = max(0.5, float(np.quantile(worst, 0.99, method="higher")) + 1e-6 if worst else 0.5)
    accept = min(accept, 0.95)
    review = max(0.2, min(float(np.quantile(worst, 0.95)) if worst else 0.2, accept))
    errors = []
    for t in all_trials:
        if t.put_in < 100:
            continue
        kept = [i for i, f in enumerate(t.features) if judge.probability(f) >= accept]
        if kept:
            errors.append(np.log(t.events[kept].sum() / t.put_in))
    # Such that 95 % of the trials lie inside 1.96 of it: errors of a search have long tails.
    error = float(np.quantile(np.abs(errors), 0.95)) / 1.96 if len(errors) >= 20 else 0.15
    error = min(max(error, 0.005), 0.35)
    return replace(judge, accept=accept, review=review, relative_error=error)


def learn(
    marrows: Sequence[Marrow],
    *,
    features: tuple[str, ...],
    optional: Sequence[int],
    seed: int,
    least: int = 20,
    positives: int = 120,
    progress: object = None,
) -> tuple[Learnt, list[Trial]]:
    """Learn a reference from control-aligned marrows.

    Returns what detection needs, and the trials on held-out marrows that set its thresholds.
    """
    say = progress if callable(progress) else (lambda _text: None)
    present = sorted({pattern_of(m.x) for m in marrows}, key=lambda p: (-len(p), p))
    full = present[0]
    wanted = dict.fromkeys([*present, *(tuple(f for f in full if f != o) for o in optional if o in full)])
    wanted[tuple(f for f in full if f not in optional)] = None
    patterns = [
        p
        for p in wanted
        if sum(m.normal and set(p) <= set(pattern_of(m.x)) for m in marrows) >= 3
        and sum((not m.normal) and m.blast.sum() >= 20 and set(p) <= set(pattern_of(m.x)) for m in marrows) >= 3
    ]
    marrows = align_marrows(marrows, patterns, seed)
    everything = pools(marrows)
    say("aligned")
    raw_normal: dict[tuple[int, ...], list[F64]] = {p: [] for p in patterns}
    raw_blast: dict[tuple[int, ...], list[F64]] = {p: [] for p in patterns}
    folds: list[tuple[ScoreModel, list[Pool]]] = []
    rng = np.random.default_rng(seed)
    for k in range(FOLDS):
        seen = [p for i, p in enumerate(everything) if i % FOLDS != k]
        unseen = [p for i, p in enumerate(everything) if i % FOLDS == k]
        model = fit_model(seen, patterns, optional, seed + k)
        folds.append((model, unseen))
        for p in unseen:
            whole = pattern_of(p.x)
            for pattern in patterns:
                if set(pattern) <= set(whole):
                    # Patterns that only might come are calibrated on fewer events than those that are there.
                    x = _some(p.x, 60_000 if pattern in present else 20_000, rng)
                    (raw_blast if p.blast else raw_normal)[pattern].append(raw_scores(model, pattern, x))
        say(f"fold {k + 1} of {FOLDS}")
    calibrations = {p: calibrate(raw_normal[p], raw_blast[p]) for p in patterns}
    done: list[Trial] = []
    for k, (model, unseen) in enumerate(folds):
        normals, blasts = [u for u in unseen if not u.blast], [u for u in unseen if u.blast]
        done += trials(model, calibrations, normals, blasts, seed=seed + k, positives=positives // FOLDS)
        say(f"trials {k + 1} of {FOLDS}")
    judge = fit_judge(done, least=least)
    return (
        Learnt(
            features=features,
            model=fit_model(everything, patterns, optional, seed),
            calibrations=calibrations,
            judge=judge,
        ),
        done,
    )
