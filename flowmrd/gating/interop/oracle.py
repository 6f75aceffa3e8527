"""Our placed gates as a FlowKit strategy: a second, independent program evaluates them on the same file.

FlowKit reads the bytes, compensates and scales by itself, and tests every event against every gate; of our own path it
shares the polygon test that we use beside an edge (flowutils). Where both agree event by event, an error would have to
be in both. FlowKit is imported inside functions only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.events import EventSource
from flowmrd.cytometry.transforms import Arcsinh, Linear, Log, Logicle
from flowmrd.errors import GatingError
from flowmrd.gating.engine import GatingResult
from flowmrd.gating.gates import Boolean, Ellipsoid, Gate, Intervals, MemberList, Nothing, Polygon, Rectangle, Whole
from flowmrd.gating.template import ROOT

_MATRIX = "matrix"


def to_flowkit(result: GatingResult, source: EventSource) -> Any:
    """Return a `flowkit.GatingStrategy` with every population's gate, under the template's names and paths.

    Lists of events have no counterpart there: they and what needs them are left out (`without_lists`). A range of
    several stretches becomes one rectangle a stretch (named `population#1` …) and a boolean over them; a gate that
    keeps everything or nothing becomes a rectangle without sides or without width.

    Parameters
    ----------
    result : placed gates
    source : the file's panel, scales and matrix, as the gates were placed with

    Raises
    ------
    GatingError
        A scale has no counterpart in FlowKit.
    """
    import flowkit

    strategy = flowkit.GatingStrategy()
    for marker, transform in source.transforms.items():
        strategy.add_transform(marker, _transform(marker, transform))
    compensated: frozenset[str] = frozenset()
    if source.spillover is not None:
        names = list(source.spillover.channels)
        compensated = frozenset(names)
        strategy.add_comp_matrix(_MATRIX, flowkit.Matrix(np.array(source.spillover.matrix), names, names))
    for name in without_lists(result):
        path = _path(result, name)
        for gate, place in _gates(name, path, result, source, compensated):
            strategy.add_gate(gate, place)
    return strategy


def flowkit_membership(strategy: Any, result: GatingResult, path: Path) -> Mapping[str, NDArray[np.bool_]]:
    """Gate a file with FlowKit, from its own reading of the bytes; return population → membership (n,).

    Populations that rest on a list of events are not in the answer.

    Parameters
    ----------
    strategy : from `to_flowkit`
    result : whose populations are asked for
    path : the FCS file
    """
    import flowkit

    sample = flowkit.Sample(str(path), sample_id="file", ignore_offset_error=True, subsample=1)
    # A logarithm of zero or less is -inf or NaN there; either is outside every gate with a lower side.
    with np.errstate(divide="ignore", invalid="ignore"):
        gated = strategy.gate_sample(sample)
    return {
        name: np.asarray(gated.get_gate_membership(name, gate_path=_path(result, name)), np.bool_)
        for name in without_lists(result)
    }


def without_lists(result: GatingResult) -> tuple[str, ...]:
    """Return the populations that no list of events is needed for, each after its parent and operands."""
    lists: set[str] = set()
    kept = []
    for name in _in_order(result):
        gate = result.placed[name].gate
        needs = {result.template.row(name).parent}
        if isinstance(gate, Boolean):
            needs.update(other for other, _ in gate.operands)
        if isinstance(gate, MemberList) or needs & lists:
            lists.add(name)
        else:
            kept.append(name)
    return tuple(kept)


def _path(result: GatingResult, name: str) -> tuple[str, ...]:
    """Return the ancestors of a population, root first."""
    return (ROOT, *result.template.path(name).strip("/").split("/")[:-1])


def _in_order(result: GatingResult) -> Iterator[str]:
    """Yield populations after their parents and the operands of their gates."""
    left = [row.name for row in result.template.population]
    done = {ROOT}
    while left:
        ready = []
        for name in left:
            gate = result.placed[name].gate
            needs = {result.template.row(name).parent}
            if isinstance(gate, Boolean):
                needs.update(other for other, _ in gate.operands)
            if needs <= done:
                ready.append(name)
        assert ready, "the template is a tree; checked at load"
        done.update(ready)
        left = [name for name in left if name not in done]
        yield from ready


def _transform(marker: str, transform: object) -> Any:
    from flowkit import transforms

    match transform:
        case Logicle(T=t, W=w, M=m, A=a):
            return transforms.LogicleTransform(param_t=t, param_w=w, param_m=m, param_a=a)
        case Linear(T=t, A=a):
            return transforms.LinearTransform(param_t=t, param_a=a)
        case Arcsinh(T=t, M=m, A=a):
            return transforms.AsinhTransform(param_t=t, param_m=m, param_a=a)
        case Log(T=t, M=m):
            return transforms.LogTransform(param_t=t, param_m=m)
        case _:
            raise GatingError(f"the scale of {marker} ({type(transform).__name__}) has no counterpart in FlowKit")


def _gates(
    name: str, path: tuple[str, ...], result: GatingResult, source: EventSource, compensated: frozenset[str]
) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Yield the FlowKit gates of one population with their paths; the population's own comes last."""
    from flowkit import Dimension, gates

    def side(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def dimension(marker: str, low: float = -math.inf, high: float = math.inf) -> Any:
        channel = source.panel.channels[marker].pnn
        return Dimension(
            channel,
            compensation_ref=_MATRIX if channel in compensated else "uncompensated",
            transformation_ref=marker,
            range_min=side(low),
            range_max=side(high),
        )

    gate: Gate = result.placed[name].gate
    match gate:
        case Whole() | Nothing():
            # Any marker will do; a range from 0 up to (and without) 0 is empty.
            ends = (-math.inf, math.inf) if isinstance(gate, Whole) else (0.0, 0.0)
            yield gates.RectangleGate(name, [dimension(source.markers[0], *ends)]), path
        case Rectangle(markers=markers, low=low, high=high):
            sides = [dimension(*one) for one in zip(markers, low, high, strict=True)]
            yield gates.RectangleGate(name, sides), path
        case Intervals(marker=marker, ranges=ranges):
            parts = [f"{name}#{number}" for number in range(1, len(ranges) + 1)]
            for part, (lo, hi) in zip(parts, ranges, strict=True):
                yield gates.RectangleGate(part, [dimension(marker, lo, hi)]), path
            yield gates.BooleanGate(name, "or", [_reference(part, path) for part in parts]), path
        case Polygon(markers=markers, vertices=vertices):
            yield gates.PolygonGate(name, [dimension(marker) for marker in markers], [list(v) for v in vertices]), path
        case Ellipsoid():
            yield (
                gates.EllipsoidGate(
                    name,
                    [dimension(marker) for marker in gate.markers],
                    list(gate.mean),
                    [list(row) for row in gate.covariance],
                    gate.distance_square,
                ),
                path,
            )
        case Boolean(operator=operator, operands=operands):
            references = [_reference(other, _path(result, other), complement=flag) for other, flag in operands]
            yield gates.BooleanGate(name, operator, references), path


def _reference(name: str, path: tuple[str, ...], *, complement: bool = False) -> dict[str, Any]:
    return {"ref": name, "path": path, "complement": complement}
