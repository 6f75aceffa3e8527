"""A foreign gating strategy as values, and its evaluation by our engine.

Every reader of this package (Gating-ML, FlowJo, FACSDiva, Kaluza) ends in a `ForeignStrategy`; every writer starts
from one. A dimension joins a channel, a compensation and a scale under a key; gates are the closed set of
`gating.gates` over such keys, so foreign gates are evaluated by the same code as our own.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.compensation import unmixing_matrix
from flowmrd.cytometry.events import BLOCK_EVENTS, Block
from flowmrd.errors import CompensationError, Level, QcFinding
from flowmrd.fcs import ChannelKind, FcsFile
from flowmrd.gating.engine import Memberships, apply_gates
from flowmrd.gating.gates import Boolean, Gate, gate_markers

F64 = NDArray[np.float64]

# The two compensation references that need no matrix of the document (Gating-ML 2.0).
FROM_FILE = "FCS"
UNCOMPENSATED = "uncompensated"
# Names that a message lists at most.
_NAMES = 12


class Scale(Protocol):
    """A display scale: linear values → scaled values."""

    def forward(self, x: F64, out: F64 | None = None) -> F64:
        """Scale linear values."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matrix:
    """A spillover or spectrum matrix of the document.

    `values[i, j]` is the share of fluorochrome i that falls into detector j; more detectors than fluorochromes make it
    a spectrum matrix, unmixed by least squares. Where `inverted`, `values` (detectors, fluorochromes) is the unmixing
    matrix itself: `fluorochromes = detectors @ values`.
    """

    id: str
    fluorochromes: tuple[str, ...]
    detectors: tuple[str, ...]
    values: F64
    inverted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One axis of gates: a channel (or a ratio of two), its compensation, and its scale.

    `channel` is a `$PnN`, a `$PnS`, or a fluorochrome of the matrix. `compensation` is `FCS`, `uncompensated` or a
    matrix id; `scale` the id of a scale, `None` for linear values, which `display` then is drawn on. `ratio` is
    (numerator, denominator, A, B, C) of Gating-ML's fratio: A * (x - B) / (y - C), over the two channels;
    `ratio_bounds` cut the ratio off before the scale sees it. With `ticks` a time channel has the file's own units
    divided by `$PnG`, which is what FCS calls its scale values and Gating-ML gates on (4.2); without, seconds
    (`$TIMESTEP`), as FlowJo and our templates have it.
    """

    key: str
    channel: str
    compensation: str = UNCOMPENSATED
    scale: str | None = None
    ratio: tuple[str, str, float, float, float] | None = None
    ratio_bounds: tuple[float, float] = (-math.inf, math.inf)
    display: str | None = None
    ticks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignGate:
    """One gate of the document.

    `id` is unique in the document's tree as `path`; `name` is what users see (it may repeat). `parent` is the `path` of
    the parent, empty at the top. Operands of a boolean are paths. `count` is what the foreign program stored.
    """

    name: str
    path: str
    parent: str
    gate: Gate
    count: int | None = None
    info: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignStrategy:
    """A whole document for one file: dimensions, scales, matrices, gates, and what was left out.

    `unread` are paths of gates that the reader left out, each with its finding; gates that need them are left out too.
    """

    source: str
    kind: str
    dimensions: Mapping[str, Dimension]
    scales: Mapping[str, Scale]
    matrices: Mapping[str, Matrix]
    gates: tuple[ForeignGate, ...]
    events: int | None = None
    findings: tuple[QcFinding, ...] = ()
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """Counts and members by path, in the document's order; gates that this file cannot be asked are findings."""

    counts: Mapping[str, int]
    memberships: Memberships
    parents: Mapping[str, str]
    findings: tuple[QcFinding, ...]


class DimensionSource:
    """Scaled values of a document's dimensions, block by block: what the engine needs of a source.

    Raises
    ------
    KeyError
        A dimension names a channel or matrix that is not there; `usable` tells beforehand.
    """

    def __init__(self, fcs: FcsFile, strategy: ForeignStrategy) -> None:
        self._fcs = fcs
        self._strategy = strategy
        self.event_count = fcs.event_count
        # Inputs from here on are time channels in ticks: input len(channels) + i is channel i.
        self._ticks_from = len(fcs.channels)
        self._rows: dict[str, tuple[tuple[int, ...], F64, Dimension]] = {}
        self._missing: dict[str, str] = {}
        unmixed: dict[str, tuple[Mapping[str, int], F64]] = {}
        for key, dimension in strategy.dimensions.items():
            try:
                self._rows[key] = self._resolve(dimension, unmixed)
            except LookupError as error:
                self._missing[key] = str(error.args[0])

    @property
    def markers(self) -> tuple[str, ...]:
        """Keys of the dimensions that this file has."""
        return tuple(self._rows)

    def label(self, key: str) -> str:
        """Return what an axis is called: the channel's stain, else its name, or the two channels of a ratio."""
        dimension = self._strategy.dimensions[key]
        if dimension.ratio is not None:
            return " / ".join(dimension.ratio[:2])
        try:
            channel = self._fcs.channels[self._channel(dimension.channel)]
        except LookupError:
            return dimension.channel
        return channel.pns.strip() or channel.pnn

    def weights(self, key: str) -> F64:
        """Return the weights (k,) of the file's channels that give a usable dimension's linear value (not of a ratio).

        Raises
        ------
        LookupError
            The dimension is not usable (`why_not` says why), or is a clock in ticks, which has no weights.
        """
        inputs, weights, dimension = self._rows[key]
        if max(inputs, default=0) >= self._ticks_from:
            raise LookupError(f"{dimension.channel!r} is a clock in ticks, not in seconds")
        full: F64 = np.zeros(len(self._fcs.channels))
        full[list(inputs)] = weights[0]
        return full

    def why_not(self, key: str) -> str:
        """Say why a dimension is not usable; empty where it is."""
        return self._missing.get(key, "" if key in self._rows else f"the document defines no dimension {key!r}")

    def _resolve(
        self, dimension: Dimension, unmixed: dict[str, tuple[Mapping[str, int], F64]]
    ) -> tuple[tuple[int, ...], F64, Dimension]:
        names = (dimension.channel,) if dimension.ratio is None else dimension.ratio[:2]
        if dimension.scale is not None and dimension.scale not in self._strategy.scales:
            raise LookupError(f"the document defines no transformation {dimension.scale!r}")
        columns = np.stack([self._column(str(name), dimension.compensation, unmixed) for name in names], axis=1)
        used = np.flatnonzero(np.any(columns != 0.0, axis=1))
        inputs = tuple(int(i) + (self._ticks_from if dimension.ticks and self._in_seconds(int(i)) else 0) for i in used)
        return inputs, np.ascontiguousarray(columns[used].T), dimension

    def _in_seconds(self, index: int) -> bool:
        channel = self._fcs.channels[index]
        # Only where seconds are not what FCS calls the scale value: the ticks divided by the gain.
        return channel.kind is ChannelKind.TIME and (self._fcs.time_step or 1.0) * channel.gain != 1.0

    def _column(self, name: str, compensation: str, unmixed: dict[str, tuple[Mapping[str, int], F64]]) -> F64:
        """Return the weights (k,) of the file's channels that give one linear value."""
        if compensation == UNCOMPENSATED or (compensation == FROM_FILE and self._fcs.spillover is None):
            return self._unit(name)
        if compensation == FROM_FILE:
            assert self._fcs.spillover is not None
            try:
                full = unmixing_matrix(self._fcs.spillover, self._fcs.channels)
            except CompensationError as error:
                raise LookupError(str(error)) from None
            return np.array(full[:, self._channel(name)])
        matrix = self._strategy.matrices.get(compensation)
        if matrix is None:
            raise LookupError(f"the document defines no matrix {compensation!r}")
        if compensation not in unmixed:
            unmixed[compensation] = self._unmix(matrix)
        place, columns = unmixed[compensation]
        if name in place:
            return np.array(columns[:, place[name]])
        index = self._channel(name)
        detectors = [self._channel(detector) for detector in matrix.detectors]
        if index not in detectors:
            # A channel that the matrix does not speak of (scatter, time) is used as recorded.
            return self._unit(name)
        if len(matrix.detectors) != len(matrix.fluorochromes):
            raise LookupError(f"{name!r} is a detector of {matrix.id!r}, which gives {', '.join(matrix.fluorochromes)}")
        # A square matrix pairs detectors and fluorochromes in their order; many documents name the detector.
        return np.array(columns[:, detectors.index(index)])

    def _unit(self, name: str) -> F64:
        weights: F64 = np.zeros(len(self._fcs.channels))
        weights[self._channel(name)] = 1.0
        return weights

    def _unmix(self, matrix: Matrix) -> tuple[Mapping[str, int], F64]:
        rows = [self._channel(name) for name in matrix.detectors]
        if len(set(rows)) != len(rows):
            raise LookupError(f"two detectors of matrix {matrix.id!r} are one channel of the file")
        columns = np.zeros((len(self._fcs.channels), len(matrix.fluorochromes)))
        columns[rows] = matrix.values if matrix.inverted else _unmixing(matrix)
        return {name: i for i, name in enumerate(matrix.fluorochromes)}, columns

    def _channel(self, name: str) -> int:
        for attribute in ("pnn", "pns"):
            hits = [channel.index for channel in self._fcs.channels if getattr(channel, attribute) == name]
            if len(hits) == 1:
                return hits[0]
            if len(hits) > 1:
                raise LookupError(f"{len(hits)} channels of the file are named {name!r}")
        folded = name.replace("/", "_").casefold()
        hits = [c.index for c in self._fcs.channels if c.pnn.replace("/", "_").casefold() == folded]
        if len(hits) == 1:
            return hits[0]
        raise LookupError(f"the file has no channel {name!r}; it has {', '.join(c.pnn for c in self._fcs.channels)}")

    def blocks(self, markers: Sequence[str], *, block_events: int = BLOCK_EVENTS) -> Iterator[tuple[int, Block]]:
        """Yield (first row, block); a block hands out scaled values of the wanted dimensions."""
        inputs = sorted({index for key in markers for index in self._rows[key][0]})
        if not inputs:
            for start in range(0, self.event_count, block_events):
                yield start, Block({}, {}, min(block_events, self.event_count - start))
            return
        place = {index: row for row, index in enumerate(inputs)}
        scales = {key: self._scale(key) for key in markers}
        for start, values in self._inputs(inputs, block_events):
            linear = {}
            for key in markers:
                rows, weights, dimension = self._rows[key]
                used = values[[place[index] for index in rows]]
                # A channel taken as recorded keeps its exact value.
                parts = used if weights.shape == (1, 1) and weights[0, 0] == 1.0 else _mixed(weights, used)
                if dimension.ratio is None:
                    linear[key] = parts[0]
                else:
                    _, _, a, b, c = dimension.ratio
                    with np.errstate(divide="ignore", invalid="ignore"):
                        ratio = a * ((parts[0] - b) / (parts[1] - c))
                    low, high = dimension.ratio_bounds
                    linear[key] = np.maximum(np.minimum(ratio, high), low)
            yield start, Block(linear, scales, values.shape[1])  # type: ignore[arg-type]

    def _inputs(self, inputs: Sequence[int], block_events: int) -> Iterator[tuple[int, F64]]:
        """Yield (first row, values (k, n)) of the file's channels, and of its time channels in ticks."""
        linear = [index for index in inputs if index < self._ticks_from]
        clocks = [index - self._ticks_from for index in inputs if index >= self._ticks_from]
        if not clocks:
            yield from self._fcs.blocks(linear, block_events=block_events)
            return
        gains = np.array([[self._fcs.channels[index].gain] for index in clocks])
        ticks = replace(self._fcs, time_step=None).blocks(clocks, block_events=block_events)
        if not linear:
            for start, values in ticks:
                yield start, values / gains
            return
        both = zip(self._fcs.blocks(linear, block_events=block_events), ticks, strict=True)
        for (start, values), (_, stamps) in both:
            yield start, np.concatenate([values, stamps / gains])

    def _scale(self, key: str) -> Scale:
        scale = self._rows[key][2].scale
        return _Linear() if scale is None else self._strategy.scales[scale]


def _unmixing(matrix: Matrix) -> F64:
    """Return the (detectors, fluorochromes) weights that undo a matrix, by least squares where it is not square."""
    rows, columns = matrix.values.shape
    if rows > columns or np.linalg.matrix_rank(matrix.values) < rows:
        raise LookupError(f"matrix {matrix.id!r} cannot be inverted: its spectra depend on one another")
    inverse = np.linalg.inv(matrix.values) if rows == columns else np.linalg.pinv(matrix.values)
    return np.asarray(inverse, np.float64)


def _mixed(weights: F64, detectors: F64) -> list[F64]:
    """Return the weighted sums of detectors, in one order whatever else is in the block, as `Block` does.

    A matrix product would be as fast, but its last bit depends on how many channels are asked for at once.
    """
    if detectors.shape[1] == 1:  # the one shape that einsum sums in another order
        return [one[:1] for one in _mixed(weights, np.repeat(detectors, 2, axis=1))]
    return [np.asarray(np.einsum("j,jn->n", row, detectors), np.float64) for row in weights]


class _Linear:
    """Values as they are."""

    def forward(self, x: F64, out: F64 | None = None) -> F64:
        """Return the values."""
        if out is None:
            return x
        out[:] = x
        return out


def evaluate(strategy: ForeignStrategy, fcs: FcsFile) -> Evaluation:
    """Evaluate a foreign strategy; a gate that this file cannot be asked is a finding, and so are its descendants."""
    source = DimensionSource(fcs, strategy)
    usable: list[tuple[str, str, Gate]] = []
    known = {""}
    findings = list(strategy.findings)
    if fcs.spillover is None and any(one.compensation == FROM_FILE for one in strategy.dimensions.values()):
        findings.append(
            QcFinding(
                level=Level.INFO,
                code="UNCOMPENSATED",
                message="The document asks for the file's own compensation and the file has none: values as recorded.",
                where="$SPILLOVER",
            )
        )
    waiting = {one.path: _needs(one) - known for one in strategy.gates}
    dependents: dict[str, list[ForeignGate]] = {}
    for one in strategy.gates:
        for path in waiting[one.path]:
            dependents.setdefault(path, []).append(one)
    ready = deque(one for one in strategy.gates if not waiting[one.path])
    reached = set()
    while ready:
        one = ready.popleft()
        reached.add(one.path)
        reason = next((why for key in gate_markers(one.gate) if (why := source.why_not(key))), "")
        if reason:
            findings.append(_left_out(one, reason))
            continue
        usable.append((one.path, one.parent or "root", _two_operators(one.gate)))
        known.add(one.path)
        for other in dependents.get(one.path, ()):
            waiting[other.path].discard(one.path)
            if not waiting[other.path]:
                ready.append(other)
    later = [one for one in strategy.gates if one.path not in reached]
    findings.extend(_unreachable(later, strategy, known))
    counts, memberships = apply_gates(source, usable)  # type: ignore[arg-type]
    order = [one.path for one in strategy.gates if one.path in known]
    return Evaluation(
        counts={path: counts[path] for path in order},
        memberships=memberships,
        parents={one.path: one.parent for one in strategy.gates if one.path in known},
        findings=tuple(findings),
    )


def _needs(one: ForeignGate) -> set[str]:
    return {one.parent} | ({name for name, _ in one.gate.operands} if isinstance(one.gate, Boolean) else set())


def _two_operators(gate: Gate) -> Gate:
    """Return a `not` as an `and` of the complement, which is what the engine knows."""
    if isinstance(gate, Boolean) and gate.operator == "not":
        return Boolean(operator="and", operands=tuple((name, not flag) for name, flag in gate.operands))
    return gate


def _unreachable(left: Sequence[ForeignGate], strategy: ForeignStrategy, known: set[str]) -> Iterator[QcFinding]:
    """Say of each gate why it was never reached; gates that refer to one another in a circle share one finding."""
    paths = {one.path: one for one in strategy.gates}
    waiting = {one.path: _needs(one) - known for one in left}
    told: set[str] = set()
    core = _core(waiting)
    for one in left:
        if one.path in told:
            continue
        circle = _circle(one.path, core)
        if circle:
            told.update(circle)
            shown = circle if len(circle) <= _NAMES else [*circle[:_NAMES], ""]
            names = " → ".join(paths[path].name if path else "…" for path in (*shown, circle[0]))
            yield QcFinding(
                level=Level.WARNING,
                code="GATE_CIRCLE",
                message=f"Gates refer to one another in a circle and are left out: {names}.",
                where=one.path,
            )
            continue
        lacking = sorted(waiting[one.path])
        unknown = [path for path in lacking if path not in paths and path not in strategy.unread]
        if unknown:
            yield _left_out(one, f"it refers to {', '.join(unknown)}, which the document does not have")
        else:
            names = ", ".join(paths[path].name if path in paths else path for path in lacking)
            yield _left_out(one, f"it needs {names}, which is left out")


def _core(needs: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return what is left when gates that need none of the others, or that none of them needs, are taken away."""
    core = {path: {other for other in others if other in needs} for path, others in needs.items()}
    back: dict[str, set[str]] = {path: set() for path in core}
    for path, others in core.items():
        for other in others:
            back[other].add(path)
    queue = deque(path for path in core if not core[path] or not back[path])
    while queue:
        path = queue.popleft()
        if path not in core:
            continue
        for other in core.pop(path):
            back[other].discard(path)
            if not back[other]:
                queue.append(other)
        for other in back.pop(path):
            core[other].discard(path)
            if not core[other]:
                queue.append(other)
    return core


def _circle(start: str, needs: Mapping[str, set[str]]) -> list[str]:
    """Return the gates on a way from `start` back to itself, or nothing."""
    came: dict[str, str] = {}
    queue = [start]
    while queue:
        here = queue.pop(0)
        for other in sorted(needs.get(here, ())):
            if other == start:
                way = [here]
                while way[0] != start:
                    way.insert(0, came[way[0]])
                return way
            if other not in came:
                came[other] = here
                queue.append(other)
    return []


def _left_out(one: ForeignGate, reason: str) -> QcFinding:
    return QcFinding(
        level=Level.WARNING, code="GATE_LEFT_OUT", message=f"Gate {one.name} is left out: {reason}.", where=one.path
    )


def column_names(gates: Sequence[ForeignGate]) -> Mapping[str, str]:
    """Return path → the name users see: the bare name for the first of a repeated name, the path for the others."""
    seen: set[str] = set()
    names = {}
    for one in gates:
        names[one.path] = one.path if one.name in seen else one.name
        seen.add(one.name)
    return names
