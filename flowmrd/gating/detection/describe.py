"""What a group looks like beside the normals: nearest stage, each marker's shift, and how rare it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowmrd.gating.detection.mixtures import log_components
from flowmrd.gating.detection.scores import Densities
from flowmrd.gating.detection.storage import Reference

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# A marker differs from here on (domain: numeric aberrancy score, in robust standard deviations).
_DIFFERS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """One marker against the nearest normal stage: shift in display units and in its deviations, and its middle."""

    marker: str
    shift: float
    deviations: float
    expected: float
    aberrant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Portrait:
    """A group beside the normals: nearest stage, how far it is, shifts by marker, the most that a normal has there."""

    stage: str
    shifts: tuple[Shift, ...]
    normals_most: float
    distance: float


def portray(
    events: F32,
    reference: Reference,
    densities: Densities,
    *,
    stages: Mapping[str, Mapping[str, tuple[float, float]]],
    directions: Mapping[str, str],
) -> Portrait:
    """Describe a group.

    Parameters
    ----------
    events : (n, d) aligned events of the group over the features of `densities`
    reference, densities : the normals, and their mixture over those features
    stages : name → marker → (low, high) in the reference's display units; the first that holds a normal group names it
    directions : marker → over, under or both: where blasts are known to go
    """
    middle = np.median(events, axis=0).astype(np.float64)
    z = (middle - densities.centre) / densities.scale
    normal = densities.normal
    delta = normal.mean - z
    distance = np.einsum("ki,kij,kj->k", delta, np.linalg.inv(normal.covariance), delta)
    # A group of next to no cells is no stage to compare with.
    distance[normal.weight < 0.002] = np.inf
    nearest = int(np.argmin(distance))
    names = [reference.features[j] for j in densities.features]
    expected = normal.mean[nearest] * densities.scale + densities.centre
    sd = np.sqrt(np.diagonal(normal.covariance[nearest])) * densities.scale
    shifts = []
    for j, marker in enumerate(names):
        if marker in reference.scatter:
            continue
        shift = float(middle[j] - expected[j])
        deviations = shift / float(max(sd[j], 1e-6))
        known = directions.get(marker, "both")
        right = known == "both" or (known == "over") == (shift > 0)
        shifts.append(
            Shift(
                marker=marker,
                shift=shift,
                deviations=deviations,
                expected=float(expected[j]),
                aberrant=abs(deviations) >= _DIFFERS and right,
            )
        )
    place = dict(zip(names, expected, strict=True))
    stage = next(
        (
            name
            for name, ranges in stages.items()
            if all(low <= place.get(marker, np.nan) < high for marker, (low, high) in ranges.items())
        ),
        "other normal cells",
    )
    return Portrait(
        stage=stage,
        shifts=tuple(shifts),
        normals_most=_most(events, densities),
        distance=float(np.sqrt(distance[nearest])),
    )


def _most(events: F32, densities: Densities) -> float:
    """Return the largest share of nucleated cells that a normal has where the group lies."""
    z = ((events - densities.centre) / densities.scale).astype(np.float32)
    logs = log_components(z, densities.normal)
    logs -= logs.max(axis=1, keepdims=True)
    belong = np.exp(logs)
    belong /= belong.sum(axis=1, keepdims=True)
    share = belong.mean(axis=0)
    # The normal groups that the events fall into, by how much of the group falls into each.
    inside = share > 0.05
    return float(densities.abundances[:, inside].sum(axis=1).max()) if inside.any() else 0.0


def on_display(points: F32, offsets: F64, features: tuple[str, ...], ruler: Callable[[str], float | None]) -> F32:
    """Bring aligned events back onto the sample's own display scale, (n, d); scatter ratios become scatter again."""
    out = points + offsets.astype(np.float32)
    for j, marker in enumerate(features):
        middle = ruler(marker)
        if middle is not None:
            out[:, j] = middle * np.exp(out[:, j] / np.float32(0.3))
    return out
