"""What one acquisition yields, as values: tables with declared schemas, drawn panels, provenance.

`AcquisitionResult` is what the pipeline hands to the run folder, the report and later the review station. It holds
everything a page needs, so nothing downstream reads an FCS file again or recomputes a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import QcFinding

BINS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a plot: marker, channel and scale.

    `transform` is {"kind": "logicle"|"arcsinh"|"log"|"linear", "T": …, "W": …, "M": …, "A": …} (the parameters of that
    kind), as of `flowmrd.cytometry.transforms`; `lo`, `hi` bound the axis in scaled units (0 … 1 is the scale's range).
    """

    marker: str
    channel: str
    transform: Mapping[str, float | str]
    lo: float
    hi: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GateShape:
    """One drawn gate with its counts.

    `kind` is interval-x, interval-y, rectangle, polygon, ellipse or quadrant. `outline` (2, n) are the vertices in scaled
    units, closed implicitly; for intervals, quadrants and open rectangles infinite sides are kept as ±inf and the plot
    clips them. Gates without a drawable shape (boolean, members) have an empty outline.
    """

    population: str
    path: str
    kind: str
    outline: NDArray[np.float64]
    events: int
    parent_events: int
    method: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlotPanel:
    """Density of **all** events of `parent` on two axes, the gates drawn on it, and every target event inside it.

    `density` (BINS, BINS) uint32 counts, `density[iy, ix]`, bins equal in scaled units between the axes' `lo` and `hi`;
    events outside are counted in the border bins. `target` (2, n) float32: x and y of each event of the target
    population (scaled units), `target_name` its name.
    """

    parent: str
    parent_path: str
    parent_events: int
    x: Axis
    y: Axis
    density: NDArray[np.uint32]
    gates: tuple[GateShape, ...]
    target: NDArray[np.float32]
    target_name: str
    purpose: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeSeries:
    """Acquisition over time: events per second and each channel's median per bin, with the bins that QC flagged."""

    seconds: NDArray[np.float64]
    rate: NDArray[np.float64]
    channels: tuple[str, ...]
    medians: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    time_source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginCount:
    """Events at the upper and lower end of one channel's range."""

    channel: str
    marker: str
    low_events: int
    high_events: int
    events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationRow:
    """One row of `populations` (the acquisition and template columns are added by the table builder)."""

    population: str
    path: str
    parent: str
    events: int
    parent_events: int

    @property
    def fraction_of_parent(self) -> float | None:
        """Share of the parent, `None` where the parent is empty."""
        return self.events / self.parent_events if self.parent_events else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedGate:
    """How one gate came to be: method, parameters, value found, and whether a bound or fallback was hit, and why."""

    population: str
    path: str
    parent: str
    method: str
    purpose: str
    channels: tuple[str, ...]
    parameters: Mapping[str, object]
    gate: Mapping[str, object]
    found: Mapping[str, float]
    bound_hit: str
    fallback: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementRow:
    """One row of `measurements`; names and vocabularies are the contract of docs/reference/tables.md."""

    subject: str
    visit: str
    acquisition: str
    analyte: str
    numerator: str
    numerator_events: int
    denominator: str
    denominator_events: int
    fraction: float | None
    ci_low: float | None
    ci_high: float | None
    lod_fraction: float | None
    lloq_fraction: float | None
    category: str
    mrd_neg_1e4: str
    call: str
    value: float | None
    unit: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AcquisitionResult:
    """Everything computed from one acquisition."""

    acquisition: str
    subject: str
    visit: str
    study_day: int | None
    specimen_type: str
    tube: str
    template_version: str
    template_digest: str
    file_name: str
    file_sha256: str
    events: int
    qc: str                                   # PASS | WARN | FAIL
    compensation: str                         # where the matrix came from, in words
    populations: tuple[PopulationRow, ...]
    gates: tuple[PlacedGate, ...]
    measurements: tuple[MeasurementRow, ...]
    wording: tuple[str, ...]                  # one sentence per measurement row, of domain 3.4
    findings: tuple[QcFinding, ...]
    panels: tuple[PlotPanel, ...]
    time: TimeSeries | None
    margins: tuple[MarginCount, ...]
    markers: Mapping[str, str]                # marker -> channel (pnn)
