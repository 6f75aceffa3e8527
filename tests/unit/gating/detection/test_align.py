"""Alignment: a shift that was put in is found, whatever the sample is made of."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.gating.detection.align import find_shift, on_features
from flowmrd.gating.detection.describe import on_display
from flowmrd.gating.detection.grow import settle
from flowmrd.gating.detection.scores import Pool, fit_densities
from flowmrd.gating.detection.storage import Reference, load_reference
from tests.conftest import SmallReference

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def reference(small_reference: SmallReference) -> Reference:
    return load_reference(small_reference.file)


def full_pattern(reference: Reference) -> tuple[int, ...]:
    return max(reference.learnt.calibrations, key=len)


def normals(reference: Reference) -> NDArray[np.float32]:
    points = reference.points
    return np.asarray(points[~np.isnan(points).any(axis=1)], np.float32)


def test_a_shift_of_every_marker_is_found(reference: Reference) -> None:
    pattern = full_pattern(reference)
    densities = reference.learnt.model.densities[pattern]
    x = normals(reference)[:, list(pattern)]
    before = find_shift(x, densities, seed=1)
    put_in = RNG(5).uniform(-0.5, 0.5, len(pattern)) * densities.scale * 0.4
    moved = (x + put_in).astype(np.float32)
    np.testing.assert_allclose(find_shift(moved, densities, seed=1) - before, put_in, atol=0.02)


def test_another_composition_is_no_shift() -> None:
    """Nine tenths of one cell type instead of a half must not pull the shift towards it."""
    rng = RNG(6)
    centres = np.array([[0.2, 0.3], [0.7, 0.5]])

    def cells(first: int, second: int) -> NDArray[np.float32]:
        owner = np.repeat([0, 1], [first, second])
        made: NDArray[np.float32] = (centres[owner] + rng.normal(0, 0.04, (len(owner), 2))).astype(np.float32)
        return made

    pools = [Pool(name=str(i), x=cells(2000, 2000), blast=False, nucleated=40_000) for i in range(4)]
    pools.append(Pool(name="b", x=cells(400, 400) + np.float32(0.5), blast=True))
    densities = fit_densities(pools, (0, 1), seed=1, components=2)
    for first, second in ((3600, 400), (400, 3600)):
        x = cells(first, second) + np.array([0.03, -0.05], np.float32)
        np.testing.assert_allclose(find_shift(x, densities, seed=1), [0.03, -0.05], atol=0.012)


def test_few_events_are_left_where_they_are(reference: Reference) -> None:
    pattern = full_pattern(reference)
    densities = reference.learnt.model.densities[pattern]
    x = normals(reference)[:100, list(pattern)] + np.float32(0.3)
    assert not find_shift(x, densities, seed=1).any()


def test_blasts_in_number_do_not_pull_the_shift_towards_themselves(reference: Reference) -> None:
    pattern = full_pattern(reference)
    calibration = reference.learnt.calibrations[pattern]
    x = normals(reference)
    index = reference.features.index
    blasts = x[RNG(8).choice(len(x), len(x) // 2)].copy()
    for marker, shift in (("CD10", 0.25), ("CD38", -0.3), ("CD66c+CD123", 0.35), ("CD58", 0.2)):
        blasts[:, index(marker)] += np.float32(shift)
    known = {"model": reference.learnt.model, "calibration": calibration, "features": pattern, "seed": 1}
    alone = settle(x, **known)  # type: ignore[arg-type]
    together = settle(np.concatenate([x, blasts]), **known)  # type: ignore[arg-type]
    # A tenth of the blasts' own shift at most.
    np.testing.assert_allclose(together, alone, atol=0.04)


def test_scatter_is_measured_by_the_lymphocytes_and_markers_that_lack_are_missing() -> None:
    columns = {
        "FSC-A": np.array([0.1, 0.2, 0.4], np.float32),
        "CD45": np.array([0.5, 0.6, 0.7], np.float32),
        "other": np.zeros(3, np.float32),
    }
    features = ("FSC-A", "CD45", "CD58")
    x = on_features(columns, features=features, scatter={"FSC-A": 0.2}, offsets={"CD45": 0.1})
    np.testing.assert_allclose(x[:, 0], 0.3 * np.log([0.5, 1.0, 2.0]), atol=1e-6)
    np.testing.assert_allclose(x[:, 1], [0.4, 0.5, 0.6], atol=1e-6)
    assert np.isnan(x[:, 2]).all()
    # A gain twice as high changes nothing.
    doubled = on_features(
        {**columns, "FSC-A": columns["FSC-A"] * 2}, features=features, scatter={"FSC-A": 0.4}, offsets={"CD45": 0.1}
    )
    np.testing.assert_allclose(doubled[:, 0], x[:, 0], atol=1e-6)
    back = on_display(x[:, :2].copy(), np.array([0.0, 0.1]), ("FSC-A", "CD45"), {"FSC-A": 0.2}.get)
    np.testing.assert_allclose(back, np.stack([columns["FSC-A"], columns["CD45"]], axis=1), atol=1e-6)
