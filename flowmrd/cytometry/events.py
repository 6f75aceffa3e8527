"""From channels to markers, and from raw to scaled events, block by block.

A tube's panel names markers; a file names detectors and whatever the operator typed. `resolve_panel` joins the two or
says why it cannot. `EventSource` then delivers compensated, scaled values of named markers in blocks that stay in
cache, from memory or from disk, so that a file of any size needs little more memory than its memberships.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from flowmrd.cytometry.compensation import unmixing_matrix
from flowmrd.cytometry.transforms import Linear, Transform, make_transform
from flowmrd.errors import Level, PanelMismatchError, QcFinding
from flowmrd.fcs import Channel, FcsFile, Spillover

# Events a block: few enough for the caches, enough that a call of numpy costs little against its work.
BLOCK_EVENTS = 32768
# Fewer rows than this share of a block are compensated on their own; of more, gathering would cost more than all.
_FEW = 1 / 6

# A label is cut into tokens at anything that is not a letter or digit.
_TOKEN = re.compile(r"[A-Za-z0-9]+")
# Up to this score (see `_score`) a label names a marker only among others.
_SHARED = 4
# What may stand beside a marker in a label without changing which marker it is: dyes, detectors, measures.
_DYE = re.compile(
    r"^(FL\d+|FITC|PE|PC\d|PC5|ECD|APC|A|H|W|AF\d*|ALEXA|FLUOR|BV\d*|BB\d*|BUV\d*|BRILLIANT|VIOLET|BLUE|PB|PO|PACB|PACO|KRO|KROME|ORANGE|"
    r"PACIFIC|PACIFICBLUE|V\d{3}|C|PERCP|CY\d*|CYANINE|TR|TEXAS|RED|TXRED|R\d{3}|H7|APCH7|AMCYAN|QDOT|QD\d*|"
    r"EF\d*|EFLUOR|VIOGREEN|VIOBLUE|VIO\d*|SNV\d*|SN|SUPER|NOVA|SB\d*|RB\d*|RY\d*|NFB\d*|NFR\d*|SPARK|FIRE|AREA|HEIGHT|WIDTH|"
    r"INT|PEAK|TOF|LIN|LOG|BIOTIN|STREPTAVIDIN|COMP|UV\d*|YG\d*|B\d{3}|[4-8]\d{2}|\d)$"
)


class Role(StrEnum):
    """What a marker measures, which decides how labels are compared and whether compensation applies."""

    FLUOR = "fluor"
    SCATTER = "scatter"
    TIME = "time"


class DataState(StrEnum):
    """What the values are: `raw` detector values, `compensated` linear values, or already `scaled` for display."""

    RAW = "raw"
    COMPENSATED = "compensated"
    SCALED = "scaled"


class MarkerSpec(BaseModel):
    """One marker of a tube: accepted labels and display scale.

    `transform` holds the kind and its parameters; `T = "range"` takes the channel's own $PnR, so one template serves
    instruments of 18 and 20 bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    marker: str = Field(min_length=1)
    aliases: tuple[str, ...] = Field(default=(), strict=False)
    role: Role = Field(default=Role.FLUOR, strict=False)
    required: bool = True
    transform: dict[str, float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Which channel carries each marker of a tube.

    `channels` maps marker → channel; optional markers that the file lacks are in `missing`.
    """

    channels: Mapping[str, Channel]
    missing: tuple[str, ...]
    findings: tuple[QcFinding, ...]


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(token.upper() for token in _TOKEN.findall(text))


def _alias_score(alias: str, label: str) -> int:
    """Return how well a label names an alias: 4 the same, 3 beside dyes, 2 one antibody of several, 0 not at all."""
    want, have = _tokens(alias), _tokens(label)
    if not want or not have:
        return 0
    if "".join(want) == "".join(have):
        return 4
    for start in range(len(have) - len(want) + 1):
        if have[start : start + len(want)] == want:
            rest = have[:start] + have[start + len(want) :]
            return 3 if all(_DYE.match(token) for token in rest) else 2
    return 0


def _score(spec: MarkerSpec, channel: Channel) -> int:
    """Return the best score of a channel for a marker; the stain label counts before the detector name."""
    best = 0
    for alias in (spec.marker, *spec.aliases):
        if spec.role is Role.FLUOR:
            stain = _alias_score(alias, channel.pns)
            # Detector names that happen to read like a marker count only where no stain label says otherwise.
            detector = _alias_score(alias, channel.pnn) if not channel.pns.strip() or stain else 0
            best = max(best, 2 * stain, 2 * detector - 1)
        else:
            same = any(
                "".join(_tokens(alias)) == "".join(_tokens(label))
                for label in (channel.pnn, channel.pns)
                if label.strip()
            )
            best = max(best, 8 if same else 0)
    return best


def _candidates(channels: Sequence[Channel]) -> str:
    return ", ".join(f"{c.pnn} ({c.pns})" if c.pns.strip() else c.pnn for c in channels)


def resolve_panel(specs: Sequence[MarkerSpec], channels: Sequence[Channel], *, tube: str) -> Panel:
    """Find the one channel of each marker.

    Raises
    ------
    PanelMismatchError
        A required marker has no channel, or a marker has two equally good ones; all faults in one message.
    """
    chosen: dict[str, Channel] = {}
    missing: list[str] = []
    faults: list[str] = []
    findings: list[QcFinding] = []
    marks = {spec.marker: [_score(spec, channel) for channel in channels] for spec in specs}
    # A label that names one marker of the tube in full ("CD14+CD16+CD56") is not a channel of another that it mentions.
    named = [max((row[i] for row in marks.values()), default=0) > _SHARED for i in range(len(channels))]
    for spec in specs:
        scores = [
            (0 if taken and score <= _SHARED else score, channel)
            for score, channel, taken in zip(marks[spec.marker], channels, named, strict=True)
        ]
        best = max((score for score, _ in scores), default=0)
        hits = [channel for score, channel in scores if score == best]
        if best <= 0:
            missing.append(spec.marker)
            if spec.required:
                faults.append(f"no channel for {spec.marker}")
        elif len(hits) > 1:
            faults.append(f"{len(hits)} channels for {spec.marker}: {_candidates(hits)}")
        else:
            chosen[spec.marker] = hits[0]
            if spec.role is Role.FLUOR and best <= _SHARED:
                findings.append(
                    QcFinding(
                        level=Level.INFO,
                        code="CHANNEL_SHARED",
                        message=f"{spec.marker} is read from {_candidates(hits)}, which names more than this marker.",
                        where=hits[0].pnn,
                    )
                )
    # `missing` keeps optional markers only once every required one is there.
    if faults:
        raise PanelMismatchError(
            f"the file does not fit the tube {tube}: {'; '.join(faults)}. "
            f"The file has {_candidates(channels)}. Add an alias to the template or choose the tube that was stained."
        )
    if missing:
        findings.append(
            QcFinding(
                level=Level.INFO,
                code="MARKERS_ABSENT",
                message=f"Optional markers of the tube that this file lacks: {', '.join(missing)}.",
                where="panel",
            )
        )
    return Panel(channels=chosen, missing=tuple(missing), findings=tuple(findings))


def scale_of(
    spec: MarkerSpec, channel: Channel, *, state: DataState, scaled_range: tuple[float, float] | None
) -> Transform:
    """Build the display scale of one marker on one channel.

    Data declared as `scaled` are only mapped to 0…1 by `scaled_range` (default 0 … $PnR).
    """
    if state is DataState.SCALED:
        low, high = scaled_range or (0.0, channel.range)
        # Gating-ML flin: (x + A) / (T + A).
        return Linear(T=high, A=-low)
    params = dict(spec.transform)
    if params.get("T") == "range":
        params["T"] = float(channel.range)
    return make_transform(params)


class EventSource:
    """Scaled values of named markers, block by block.

    Parameters
    ----------
    fcs : the opened or read file
    panel : marker → channel
    specs : the tube's markers
    spillover : the matrix to apply, or `None`
    state : what the values are
    """

    __slots__ = (
        "_channel_index",
        "_fcs",
        "_weights",
        "event_count",
        "panel",
        "spillover",
        "state",
        "transforms",
    )

    def __init__(
        self,
        fcs: FcsFile,
        panel: Panel,
        specs: Sequence[MarkerSpec],
        *,
        spillover: Spillover | None,
        state: DataState = DataState.RAW,
        scaled_range: tuple[float, float] | None = None,
    ) -> None:
        self._fcs = fcs
        self.panel = panel
        self.spillover = spillover if state is DataState.RAW else None
        self.state = state
        self.event_count = fcs.event_count
        self.transforms: dict[str, Transform] = {
            spec.marker: scale_of(spec, panel.channels[spec.marker], state=state, scaled_range=scaled_range)
            for spec in specs
            if spec.marker in panel.channels
        }
        self._channel_index = {marker: channel.index for marker, channel in panel.channels.items()}
        self._weights: NDArray[np.float64] | None = None
        if self.spillover is not None:
            self._weights = unmixing_matrix(self.spillover, fcs.channels)

    @property
    def markers(self) -> tuple[str, ...]:
        """Markers that can be asked for."""
        return tuple(self._channel_index)

    @property
    def seconds_known(self) -> bool:
        """Say whether the time channel is in seconds ($TIMESTEP was given)."""
        return self._fcs.time_step is not None

    def blocks(self, markers: Sequence[str], *, block_events: int = BLOCK_EVENTS) -> Iterator[tuple[int, Block]]:
        """Yield (first row, block) over the file; a block hands out values of `markers` until the next is asked for."""
        targets = {marker: self._channel_index[marker] for marker in markers}
        mixed = {} if self._weights is None else {m: self._weights[:, t] for m, t in targets.items() if self._mixes(t)}
        # Only the detectors that reach a wanted channel are decoded; channels without spillover keep their exact value.
        reach = np.flatnonzero(np.any([column != 0.0 for column in mixed.values()], axis=0)) if mixed else ()
        detectors = [int(i) for i in reach]
        inputs = detectors + sorted({t for m, t in targets.items() if m not in mixed} - set(detectors))
        place = {index: row for row, index in enumerate(inputs)}
        weights = {marker: np.ascontiguousarray(column[detectors]) for marker, column in mixed.items()}
        if not inputs:
            for start in range(0, self.event_count, block_events):
                yield start, Block({}, {}, min(block_events, self.event_count - start))
            return
        for start, values in self._fcs.blocks(inputs, block_events=block_events):
            linear = {marker: values[place[t]] for marker, t in targets.items() if marker not in mixed}
            mixture = Mixture(detectors=values[: len(detectors)], weights=weights) if mixed else None
            yield start, Block(linear, self.transforms, values.shape[1], mixture)

    def _mixes(self, target: int) -> bool:
        """Say whether compensation changes a channel."""
        assert self._weights is not None
        column = self._weights[:, target]
        return bool(column[target] != 1.0 or np.count_nonzero(column) != 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """Raw values of the detectors (s, size), and each marker's share of them (s,): what compensation is made of."""

    detectors: NDArray[np.float64]
    weights: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A value on a scale, and how far a linear value must be from it for its side to be known without scaling.

    Linear values below `below` are surely below the edge, those from `above` on surely at it or above. Both are NaN
    where the scale cannot be inverted.
    """

    value: float
    below: float
    above: float


def edge_on(transform: object, value: float) -> Edge:
    """Find an edge's linear surroundings: a billionth of the scale, a thousand times what scaling can err."""
    if not isinstance(transform, Transform):
        return Edge(value=value, below=math.nan, above=math.nan)
    margin = 1e-9 * max(1.0, abs(value))
    with np.errstate(over="ignore", invalid="ignore"):
        below, above = (float(x) for x in transform.inverse(np.array([value - margin, value + margin])))
    return Edge(value=value, below=below, above=above)


class Block:
    """One block of events: linear values, scaled on demand for all rows or for some of them.

    `rows` are ascending row numbers within the block, each once; `None` means all.
    """

    __slots__ = ("_gathered", "_linear", "_mixture", "_scaled", "size", "transforms")

    def __init__(
        self,
        linear: Mapping[str, NDArray[np.float64]],
        transforms: Mapping[str, Transform],
        size: int,
        mixture: Mixture | None = None,
    ) -> None:
        self._linear = dict(linear)
        self._mixture = mixture
        self._gathered: tuple[NDArray[np.intp], NDArray[np.float64]] | None = None
        self._scaled: dict[str, NDArray[np.float64]] = {}
        self.transforms = transforms
        self.size = size

    def linear(self, marker: str, rows: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
        """Compensated linear values of `rows`; not to be written to."""
        whole = self._linear.get(marker)
        if whole is None:
            assert self._mixture is not None
            weights = self._mixture.weights[marker]
            if rows is not None and rows.size < self.size * _FEW:
                return _mix(weights, self._detectors(rows))
            whole = self._linear[marker] = _mix(weights, self._mixture.detectors)
        return whole if rows is None or rows.size == self.size else whole[rows]

    def compensate_together(self, markers: Sequence[str]) -> None:
        """Compensate all events for several markers in one matrix product, where a last bit does not matter (pictures).

        It is faster than one by one, but the last bit of a value then depends on what else is asked for.
        """
        if self._mixture is None:
            return
        mixed = [m for m in markers if m not in self._linear]
        if len(mixed) > 1:
            product = np.stack([self._mixture.weights[m] for m in mixed]) @ self._mixture.detectors
            self._linear.update(zip(mixed, product, strict=True))

    def scaled(self, marker: str, rows: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
        """Scaled values of `rows`; not to be written to."""
        whole = self._scaled.get(marker)
        if rows is None or rows.size == self.size:
            if whole is None:
                whole = self._scaled[marker] = self.transforms[marker].forward(self.linear(marker))
            return whole
        return self.transforms[marker].forward(self.linear(marker, rows)) if whole is None else whole[rows]

    def at_least(self, marker: str, edge: Edge, rows: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """Say exactly where `scaled >= edge`; only values within a billionth of the edge are scaled for it."""
        if math.isnan(edge.below + edge.above):
            return self.scaled(marker, rows) >= edge.value
        linear = self.linear(marker, rows)
        sure = linear >= edge.above
        near = linear >= edge.below
        if np.count_nonzero(near) != np.count_nonzero(sure):
            at = np.flatnonzero(near != sure)
            sure[at] = self.transforms[marker].forward(linear[at]) >= edge.value
        return sure

    def under(self, marker: str, edge: Edge, rows: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """Say exactly where `scaled < edge`; only values within a billionth of the edge are scaled for it."""
        if math.isnan(edge.below + edge.above):
            return self.scaled(marker, rows) < edge.value
        linear = self.linear(marker, rows)
        sure = linear < edge.below
        near = linear < edge.above
        if np.count_nonzero(near) != np.count_nonzero(sure):
            at = np.flatnonzero(near != sure)
            sure[at] = self.transforms[marker].forward(linear[at]) < edge.value
        return sure

    def maybe_within(
        self, marker: str, low: Edge, high: Edge, rows: NDArray[np.intp] | None = None
    ) -> NDArray[np.bool_]:
        """Say where `low <= scaled <= high` may hold, without scaling; it does not hold elsewhere."""
        if math.isnan(low.below + high.above):
            scaled = self.scaled(marker, rows)
            return (scaled >= low.value) & (scaled <= high.value)
        linear = self.linear(marker, rows)
        inside = linear >= low.below
        inside &= linear < high.above
        return inside

    def _detectors(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Gather the detectors of `rows`, once for all markers that are asked for the same rows in turn."""
        assert self._mixture is not None
        if self._gathered is None or self._gathered[0] is not rows:
            self._gathered = rows, np.take(self._mixture.detectors, rows, axis=1)
        return self._gathered[1]


def _mix(weights: NDArray[np.float64], detectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted sum of detectors (s, n), event by event in the same order whatever else is in the block.

    The last bit of a matrix product depends on how many events and channels are asked for at once.
    """
    if detectors.shape[1] == 1:  # the one shape that einsum sums in another order
        return _mix(weights, np.repeat(detectors, 2, axis=1))[:1]
    mixed: NDArray[np.float64] = np.einsum("j,jn->n", weights, detectors)
    return mixed
