"""A group beside the normals: nearest stage, the shift that was put in, and how many cells a normal has there."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.gating.detection.describe import Portrait, portray
from flowmrd.gating.detection.storage import Reference, load_reference
from tests.conftest import SmallReference

STAGES = {
    "immature": {"CD10": (0.5, 9.0), "CD20": (-9.0, 0.5)},
    "mature": {"CD20": (0.5, 9.0), "CD10": (-9.0, 0.45)},
}


@pytest.fixture(scope="module")
def reference(small_reference: SmallReference) -> Reference:
    return load_reference(small_reference.file)


def group_at(reference: Reference, component: int, shifts: dict[str, float]) -> tuple[NDArray[np.float32], Portrait]:
    """Return events about the middle of a group of normals, some markers moved, and their portrait."""
    pattern = max(reference.learnt.calibrations, key=len)
    densities = reference.learnt.model.densities[pattern]
    middle = densities.normal.mean[component] * densities.scale + densities.centre
    events = np.random.default_rng(1).normal(0, 0.01, (200, len(pattern))) + middle
    names = [reference.features[j] for j in pattern]
    for marker, shift in shifts.items():
        events[:, names.index(marker)] += shift
    x = events.astype(np.float32)
    return x, portray(x, reference, densities, stages=STAGES, directions={"CD38": "under", "CD58": "over"})


def largest(reference: Reference) -> int:
    pattern = max(reference.learnt.calibrations, key=len)
    return int(np.argmax(reference.learnt.model.densities[pattern].normal.weight))


def test_a_group_where_normals_are_has_no_aberrant_marker(reference: Reference) -> None:
    _, found = group_at(reference, largest(reference), {})
    assert not any(shift.aberrant for shift in found.shifts)
    assert found.distance < 1.0
    assert found.normals_most > 1e-4


def test_scatter_is_no_marker_of_a_phenotype(reference: Reference) -> None:
    _, found = group_at(reference, largest(reference), {})
    names = [shift.marker for shift in found.shifts]
    assert not set(names) & set(reference.scatter)
    assert len(names) == len(reference.features) - len(reference.scatter)


def test_a_marker_that_moved_is_named_with_its_shift_and_direction(reference: Reference) -> None:
    _, found = group_at(reference, largest(reference), {"CD58": 0.5})
    shift = next(one for one in found.shifts if one.marker == "CD58")
    # The nearest normal group may be one that has some more of it.
    assert 0.25 < shift.shift < 0.6
    assert shift.aberrant
    assert found.distance > 2.0


def test_a_shift_against_the_known_direction_is_not_called_aberrant(reference: Reference) -> None:
    for marker, right in (("CD38", -1.0), ("CD58", 1.0)):
        for sign in (-1.0, 1.0):
            _, found = group_at(reference, largest(reference), {marker: sign * 0.4})
            shift = next(one for one in found.shifts if one.marker == marker)
            if abs(shift.deviations) >= 2 and np.sign(shift.shift) == sign:
                assert shift.aberrant == (sign == right), marker


def test_the_stage_is_the_first_whose_ranges_hold_the_nearest_normal_group(reference: Reference) -> None:
    pattern = max(reference.learnt.calibrations, key=len)
    densities = reference.learnt.model.densities[pattern]
    names = [reference.features[j] for j in pattern]
    middles = densities.normal.mean * densities.scale + densities.centre
    for component in range(densities.normal.components):
        if densities.normal.weight[component] < 0.002:
            continue
        place = dict(zip(names, middles[component], strict=True))
        expected = next(
            (s for s, ranges in STAGES.items() if all(low <= place[m] < high for m, (low, high) in ranges.items())),
            "other normal cells",
        )
        assert group_at(reference, component, {})[1].stage == expected
