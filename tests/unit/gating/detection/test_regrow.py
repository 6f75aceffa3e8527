"""An accepted group grows by the density of its own sample: paler members join it, the surroundings do not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowmrd.gating.detection.boosting import Trees
from flowmrd.gating.detection.grow import FEATURES, Group, Search, regrow
from flowmrd.gating.detection.mixtures import Mixture
from flowmrd.gating.detection.scores import Densities, ScoreModel

DIMENSIONS = 6
FEATURE_SET = tuple(range(DIMENSIONS))
NORMALS, BLASTS = 9_000, 120


def normal_model() -> ScoreModel:
    """Normals lie in one round group at 0, as the sample's do; nothing is known of blasts."""
    one = Mixture(weight=np.ones(1), mean=np.zeros((1, DIMENSIONS)), covariance=np.eye(DIMENSIONS)[None])
    nothing = np.zeros(0)
    trees = Trees(
        baseline=0.0,
        first=np.zeros(1, np.int64),
        value=nothing,
        feature=nothing.astype(np.int32),
        threshold=nothing,
        missing_left=nothing.astype(np.bool_),
        left=nothing.astype(np.int32),
        right=nothing.astype(np.int32),
        leaf=nothing.astype(np.bool_),
    )
    densities = Densities(
        features=FEATURE_SET,
        centre=np.zeros(DIMENSIONS),
        scale=np.ones(DIMENSIONS),
        normal=one,
        blast=one,
        abundances=np.array([[0.1], [0.1]]),
    )
    return ScoreModel(trees=trees, densities={FEATURE_SET: densities})


def sample() -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rng = np.random.default_rng(11)
    x = rng.normal(size=(NORMALS + BLASTS, DIMENSIONS)).astype(np.float32)
    x[NORMALS:] = rng.normal((3.0, -3.0, 2.5, 0.0, 0.0, 0.0), 0.35, (BLASTS, DIMENSIONS))
    return x, np.arange(len(x)) >= NORMALS


def start_of(members: NDArray[np.intp]) -> Group:
    return Group(
        members=members,
        events=float(len(members)),
        mean=np.zeros(DIMENSIONS),
        covariance=np.eye(DIMENSIONS),
        features=np.zeros(len(FEATURES)),
    )


def grow(x: NDArray[np.float32], starts: list[Group], seed: int = 1) -> tuple[Group | None, ...]:
    found = Search(groups=tuple(starts), probability=np.zeros(len(x)), ratio=np.zeros(len(x)))
    return regrow(x, found, starts, model=normal_model(), features=FEATURE_SET, nucleated=50_000, seed=seed)


def test_a_group_found_in_part_grows_to_all_its_members() -> None:
    x, blast = sample()
    (grown,) = grow(x, [start_of(np.arange(NORMALS, NORMALS + 20))])
    assert grown is not None
    hit = int(blast[grown.members].sum())
    assert hit >= 0.95 * BLASTS
    assert len(grown.members) - hit <= 0.05 * BLASTS


def test_two_groups_never_share_an_event() -> None:
    x, _ = sample()
    x[:100] = np.random.default_rng(3).normal((-3.0, 3.0, 0.0, 3.0, 0.0, 0.0), 0.3, (100, DIMENSIONS))
    first, second = grow(x, [start_of(np.arange(NORMALS, NORMALS + 30)), start_of(np.arange(25))])
    assert first is not None
    assert second is not None
    assert not np.intersect1d(first.members, second.members).size
    assert 80 <= len(second.members) <= 105


def test_normal_cells_that_were_taken_for_a_group_do_not_pull_in_the_whole_marrow() -> None:
    x, _ = sample()
    nearest = np.argsort(np.square(x[:NORMALS] - 1.0).sum(axis=1), kind="stable")[:15]
    (grown,) = grow(x, [start_of(np.sort(nearest))])
    assert grown is None or len(grown.members) < 0.05 * NORMALS


def test_growing_nothing_gives_nothing() -> None:
    x, _ = sample()
    assert grow(x, []) == ()


def test_the_seed_decides_nothing_but_draws() -> None:
    x, blast = sample()
    (one,), (other,) = (grow(x, [start_of(np.arange(NORMALS, NORMALS + 20))], seed=seed) for seed in (1, 2))
    assert one is not None
    assert other is not None
    assert abs(int(blast[one.members].sum()) - int(blast[other.members].sum())) <= 5
