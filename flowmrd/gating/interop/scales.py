"""Gating-ML 2.0 transformations as scales: from the parameters of an element and back (section 6 of the standard)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from flowmrd.cytometry.transforms import Bounded, Transform, make_transform

# Element → our kind; the parameters have the same names.
_KINDS = {"flin": "linear", "flog": "log", "fasinh": "arcsinh", "logicle": "logicle", "hyperlog": "hyperlog"}
_ELEMENTS = {kind: element for element, kind in _KINDS.items()}
ELEMENTS = tuple(_KINDS)
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "flin": ("T", "A"),
    "flog": ("T", "M"),
    "fasinh": ("T", "M", "A"),
    "logicle": ("T", "W", "M", "A"),
    "hyperlog": ("T", "W", "M", "A"),
}


def scale_from(
    element: str, parameters: Mapping[str, float], low: float = -math.inf, high: float = math.inf
) -> Transform:
    """Build the scale that an element describes, cut off at `boundMin` and `boundMax` where they are given.

    Raises
    ------
    ValueError
        A parameter is missing or outside the range that the standard allows.
    """
    scale = make_transform({"kind": _KINDS[element], **parameters})
    if low == -math.inf and high == math.inf:
        return scale
    assert not isinstance(scale, Bounded)
    return Bounded(scale=scale, low=low, high=high)


def element_of(params: Mapping[str, float | str]) -> tuple[str, dict[str, float], dict[str, float]]:
    """Return the element, its parameters and its bounds, of a scale's `params()`.

    Raises
    ------
    ValueError
        The standard has no such transformation.
    """
    kind = str(params.get("kind"))
    if kind not in _ELEMENTS:
        raise ValueError(f"Gating-ML has no transformation for the scale {kind!r}")
    element = _ELEMENTS[kind]
    numbers = {name: float(value) for name, value in params.items() if name != "kind"}
    bounds: dict[str, float] = {name: numbers.pop(name) for name in ("boundMin", "boundMax") if name in numbers}
    return element, {name: numbers[name] for name in PARAMETERS[element]}, bounds
