"""From channels to markers, and from raw to scaled events, block by block.

A tube's panel names markers; a file names detectors and whatever the operator typed. `resolve_panel` joins the two or
says why it cannot. `EventSource` then delivers compensated, scaled values of named markers in blocks that stay in
cache, from memory or from disk, so that a file of any size needs little more memory than its memberships.
"""

from __future__ import annotations

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

BLOCK_EVENTS = 65536

# A label is cut into tokens at anything that is not a letter or digit.
_TOKEN = re.compile(r"[A-Za-z0-9]+")
# What may stand beside a marker in a label without changing which marker it is: dyes, detectors, measures.
_DYE = re.compile(
    r"^(FL\d+|FITC|PE|PC\d|PC5|ECD|APC|A|H|W|AF\d*|ALEXA|FLUOR|BV\d*|BB\d*|BUV\d*|BRILLIANT|VIOLET|BLUE|PB|PO|PACB|PACO|KRO|KROME|ORANGE|"
    r"PACIFIC|PACIFICBLUE|V\d{3}|C|PERCP|CY\d*|CYANINE|TR|TEXAS|RED|TXRED|R\d{3}|H7|APCH7|AMCYAN|QDOT|QD\d*|"
    r"EF\d*|EFLUOR|VIOGREEN|VIOBLUE|VIO\d*|SNV\d*|SN|SUPER|NOVA|SB\d*|RB\d*|RY\d*|NFB\d*|NFR\d*|SPARK|FIRE|AREA|HEIGHT|WIDTH|"
    r"INT|PEAK|TOF|LIN|LOG|BIOTIN|STREPTAVIDIN|COMP|UV\d*|YG\d*|B\d{3}|\d)$"
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
    for spec in specs:
        scores = [(_score(spec, channel), channel) for channel in channels]
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
            if spec.role is Role.FLUOR and best <= 4:
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
        "_inputs",
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
        """Yield (first row, block) over the file; a block hands out scaled values of `markers`."""
        targets = [self._channel_index[marker] for marker in markers]
        if self._weights is None:
            inputs = sorted(set(targets))
            weights = None
        else:
            # Only the detectors that reach a wanted channel are decoded and multiplied.
            columns = self._weights[:, targets]
            inputs = [int(i) for i in np.flatnonzero(np.any(columns != 0.0, axis=1))]
            inputs = sorted(set(inputs) | set(targets))
            weights = np.ascontiguousarray(columns[inputs].T)
        if not targets:
            step = block_events
            for start in range(0, self.event_count, step):
                yield start, Block({}, {}, min(step, self.event_count - start))
            return
        place = {index: row for row, index in enumerate(inputs)}
        out: NDArray[np.float64] | None = None
        for start, values in self._fcs.blocks(inputs, block_events=block_events):
            size = values.shape[1]
            if weights is None:
                linear = {marker: values[place[t]] for marker, t in zip(markers, targets, strict=True)}
            else:
                if out is None:
                    out = np.empty((len(targets), block_events))
                # A column without spillover keeps its value exactly: its weights are a unit vector.
                product = np.matmul(weights, values, out=out[:, :size]) if size == block_events else weights @ values
                linear = {marker: product[row] for row, marker in enumerate(markers)}
            yield start, Block(linear, self.transforms, size)


class Block:
    """One block of events: linear values, scaled on demand for all rows or for some of them."""

    __slots__ = ("_cache", "_linear", "_transforms", "size")

    def __init__(
        self, linear: Mapping[str, NDArray[np.float64]], transforms: Mapping[str, Transform], size: int
    ) -> None:
        self._linear = linear
        self._transforms = transforms
        self._cache: dict[tuple[str, int], NDArray[np.float64]] = {}
        self.size = size

    def linear(self, marker: str) -> NDArray[np.float64]:
        """Compensated linear values (size,)."""
        return self._linear[marker]

    def scaled(self, marker: str, rows: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
        """Scaled values of `rows` (`None` = all); repeated requests for the same rows are answered from a cache."""
        whole = self._cache.get((marker, 0))
        if rows is None:
            if whole is None:
                whole = self._transforms[marker].forward(self._linear[marker])
                self._cache[marker, 0] = whole
            return whole
        if rows.size == self.size:
            return self.scaled(marker)
        if whole is not None:
            return whole[rows]
        key = (marker, id(rows))
        found = self._cache.get(key)
        if found is None:
            found = self._transforms[marker].forward(self._linear[marker][rows])
            self._cache[key] = found
        return found
