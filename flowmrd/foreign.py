"""Gate files by the document of another program, and compare its counts with ours.

The same engine evaluates the document's gates, and the outcome is an ordinary `AcquisitionResult` without measurements,
so that tables, run folder and report are those of every other run.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry import quality
from flowmrd.errors import AnalysisError, FcsError, Level, QcFinding
from flowmrd.fcs import ChannelKind, FcsFile, file_sha256, open_fcs, scan_values
from flowmrd.gating.gates import Ellipsoid, Gate, Intervals, Polygon, Rectangle, gate_markers, gate_to_json
from flowmrd.gating.interop.display import as_displayed
from flowmrd.gating.interop.document import (
    UNCOMPENSATED,
    Dimension,
    DimensionSource,
    Evaluation,
    ForeignStrategy,
    column_names,
    evaluate,
)
from flowmrd.gating.interop.export import native_scale
from flowmrd.gating.interop.load import load_strategy
from flowmrd.quantification.absolute import acquisition_seconds, recorded_volume
from flowmrd.records import (
    BINS,
    SCHEMA_VERSION,
    AcquisitionResult,
    Axis,
    GateShape,
    PlacedGate,
    PlotPanel,
    PopulationRow,
    table_rows,
    write_json,
    write_tables,
    written,
)

if TYPE_CHECKING:
    from flowmrd.fcs import Channel

F64 = NDArray[np.float64]
_ROOT = "root"
_ELLIPSE_POINTS = 72
# An axis spans all but this share of the events at either end, and every finite edge of a gate.
_TAIL = 0.001
_SAMPLE_EVENTS = 200_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForeignRun:
    """One file gated by a document.

    `names` is path → population as users see it, of the gates that were evaluated; `complete` is false where a gate was
    left out or the file could not be read. `strategy` and `evaluation` are `None` where nothing could be evaluated.
    """

    result: AcquisitionResult
    strategy: ForeignStrategy | None
    evaluation: Evaluation | None
    names: Mapping[str, str]
    complete: bool

    def memberships(self) -> dict[str, NDArray[np.bool_]]:
        """Return each population's members, in file order."""
        if self.evaluation is None:
            return {}
        return {name: self.evaluation.memberships.mask(path) for path, name in self.names.items()}


def gate_by_document(
    path: Path, document: Path, *, tube: str | None = None, dataset: int | None = None, panels: bool = True
) -> ForeignRun:
    """Gate one file by a foreign document.

    A file that cannot be read, or that the document has no gates for, becomes a violation finding.

    Parameters
    ----------
    path : FCS file
    document : see `flowmrd.gating.interop.load.load_strategy`
    tube : which tube or sample of the document
    dataset : which data set of the file, from 1
    panels : make the plots of the report

    Raises
    ------
    InputError
        The document itself is unusable.
    """
    sha256 = ""
    try:
        sha256 = file_sha256(path)
        fcs = scan_values(open_fcs(path, dataset=dataset))
    except (FcsError, OSError) as error:
        return _failed(path, document, sha256, error)
    try:
        strategy = load_strategy(document, fcs, tube=tube)
    except AnalysisError as error:
        return _failed(path, document, sha256, error)
    evaluation = evaluate(strategy, fcs)
    names = {key: name for key, name in column_names(strategy.gates).items() if key in evaluation.counts}
    drawn = _Drawn(strategy, fcs)
    # No stretch of time is left out here, so that the whole recorded volume is that of the counts.
    volume = recorded_volume(fcs.keywords, seconds=acquisition_seconds(fcs.keywords))
    findings = (*fcs.findings, *evaluation.findings, *volume.findings)
    if not strategy.gates and not strategy.unread:
        message = f"{strategy.source} has no gates for this file."
        findings += (QcFinding(level=Level.WARNING, code="NO_GATES", message=message, where=strategy.source),)
    result = replace(
        _empty(path, document, sha256),
        events=fcs.event_count,
        qc=quality.overall(findings),
        compensation=_compensation(strategy),
        populations=_populations(strategy, evaluation, names, fcs.event_count),
        gates=_placed(drawn, names),
        findings=findings,
        panels=_panels(drawn, evaluation, names) if panels else (),
        markers={drawn.labels[key]: one.channel for key, one in drawn.strategy.dimensions.items()},
        volume_ul=volume.microlitres,
    )
    complete = bool(strategy.gates) and not strategy.unread and len(names) == len(strategy.gates)
    complete &= not any(one.code in {"GATE_LEFT_OUT", "GATE_CIRCLE"} for one in evaluation.findings)
    return ForeignRun(result=result, strategy=strategy, evaluation=evaluation, names=names, complete=complete)


def _empty(path: Path, document: Path, sha256: str) -> AcquisitionResult:
    """Return the record of a file of which nothing is known yet."""
    return AcquisitionResult(
        acquisition=path.stem,
        subject="",
        visit="",
        study_day=None,
        specimen_type="",
        tube=document.name,
        template_version="",
        template_digest=file_sha256(document),
        file_name=path.name,
        file_sha256=sha256,
        events=0,
        qc="FAIL",
        compensation="none: the file was not gated",
        populations=(),
        gates=(),
        measurements=(),
        wording=(),
        findings=(),
        panels=(),
        time=None,
        margins=(),
        markers={},
    )


def _failed(path: Path, document: Path, sha256: str, error: Exception) -> ForeignRun:
    code = "FILE_REFUSED" if isinstance(error, FcsError | OSError) else "GATING_FAILED"
    message = (
        f"{path.name} cannot be read: {error.strerror or error}"
        if isinstance(error, OSError) and not isinstance(error, FcsError)
        else str(error)
    )
    finding = QcFinding(level=Level.VIOLATION, code=code, message=message, where=getattr(error, "where", ""))
    result = replace(_empty(path, document, sha256), findings=(finding,))
    return ForeignRun(result=result, strategy=None, evaluation=None, names={}, complete=False)


def _compensation(strategy: ForeignStrategy) -> str:
    used = sorted({one.compensation for one in strategy.dimensions.values()})
    return f"as {strategy.source} states: {', '.join(used) or 'none'}"


def _populations(
    strategy: ForeignStrategy, evaluation: Evaluation, names: Mapping[str, str], events: int
) -> tuple[PopulationRow, ...]:
    return tuple(
        PopulationRow(
            population=names[one.path],
            path=one.path,
            parent=names[one.parent] if one.parent else _ROOT,
            events=evaluation.counts[one.path],
            parent_events=evaluation.counts[one.parent] if one.parent else events,
        )
        for one in strategy.gates
        if one.path in names
    )


class _Drawn:
    """A document's gates as they are drawn: on the display scale of their channels, under names of axes that differ."""

    def __init__(self, strategy: ForeignStrategy, fcs: FcsFile) -> None:
        self.fcs = fcs
        displayed = as_displayed(strategy)
        used = dict.fromkeys(key for one in displayed.gates for key in gate_markers(one.gate))
        self.strategy = replace(displayed, dimensions={key: displayed.dimensions[key] for key in used})
        self.source = DimensionSource(fcs, self.strategy)
        self.scales = {key: self._scale(key) for key in self.strategy.dimensions}
        # A channel that is drawn on two scales, or with and without compensation, has two axes, and each its name.
        self.labels: dict[str, str] = {}
        meant: dict[str, tuple[object, ...]] = {}
        for key, one in self.strategy.dimensions.items():
            plain = self.source.label(key)
            mine = (one.compensation, one.scale, one.ticks, one.ratio)
            other = meant.get(plain, mine)
            what = str((self.scales[key] or {"kind": "own scale"})["kind"])
            if other[1:] == mine[1:]:
                what = UNCOMPENSATED if one.compensation == UNCOMPENSATED else f"compensated by {one.compensation}"
            tries = itertools.chain((plain, f"{plain}, {what}"), (f"{plain}, {what} {n}" for n in itertools.count(2)))
            label = next(name for name in tries if meant.get(name, mine) == mine)
            meant[label] = mine
            self.labels[key] = label

    def _scale(self, key: str) -> Mapping[str, float | str] | None:
        """Return the scale as ours; nothing where only the foreign program has it."""
        name = self.strategy.dimensions[key].scale
        if name is None:
            return {"kind": "linear", "T": 1.0, "A": 0.0}
        native = native_scale(self.strategy.scales[name])
        return None if native is None else native.params()

    def gate(self, gate: Gate) -> dict[str, object]:
        """Return a gate's JSON under the names of its axes, with their scales."""
        data = gate_to_json(gate)
        keys = gate_markers(gate)
        if "markers" in data:
            data["markers"] = [self.labels[key] for key in keys]
        elif "marker" in data:
            data["marker"] = self.labels[keys[0]]
        data["scales"] = {self.labels[key]: dict(scale) for key in keys if (scale := self.scales[key]) is not None}
        return data


def _placed(drawn: _Drawn, names: Mapping[str, str]) -> tuple[PlacedGate, ...]:
    return tuple(
        PlacedGate(
            population=names[one.path],
            path=one.path,
            parent=names[one.parent] if one.parent else _ROOT,
            method=type(one.gate).__name__.lower(),
            purpose="",
            channels=tuple(drawn.labels[key] for key in gate_markers(one.gate)),
            parameters={},
            gate=drawn.gate(one.gate),
            found={},
            bound_hit="",
            fallback="",
            reason=f"drawn in {drawn.strategy.source}",
        )
        for one in drawn.strategy.gates
        if one.path in names
    )


def write_runs(runs: Sequence[ForeignRun], document: Path, out: Path) -> dict[str, object]:
    """Write the tables and `run.json` of files gated by one document; return what `run.json` says."""
    from flowmrd import __version__

    out.mkdir(parents=True, exist_ok=True)
    write_tables(table_rows(run.result for run in runs), out)
    record: dict[str, object] = {
        "schema": SCHEMA_VERSION,
        "flowmrd": __version__,
        "strategy": {
            "file": document.name,
            "sha256": file_sha256(document),
            "kind": next((run.strategy.kind for run in runs if run.strategy is not None), ""),
        },
        "acquisitions": [
            {
                "acquisition": run.result.acquisition,
                "file": run.result.file_name,
                "sha256": run.result.file_sha256,
                "template": run.result.tube,
                "compensation": run.result.compensation,
                "events": run.result.events,
                "qc": run.result.qc,
            }
            for run in runs
        ],
    }
    write_json(record, out / "run.json")
    return record


# ------------------------------------------------------------------------------------------------------------ comparing


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRow:
    """One population's count in the document and here.

    `difference` is a fraction of their count; `raster_events` is how far off a program may be that evaluates this gate
    on the raster of its display. `agrees` is `None` where either count is missing.
    """

    acquisition: str
    population: str
    path: str
    their_events: int | None
    our_events: int | None
    difference: float | None
    raster_events: int
    agrees: bool | None


COMPARISON: Mapping[str, str] = {
    "acquisition": "String",
    "population": "String",
    "path": "String",
    "their_events": "Int64",
    "our_events": "Int64",
    "difference": "Float64",
    "raster_events": "Int64",
    "agrees": "Boolean",
}


def compare_counts(run: ForeignRun, fcs: FcsFile, *, tolerance: float = 0.0) -> tuple[CountRow, ...]:
    """Set the counts that the document stores beside ours.

    Parameters
    ----------
    run : a file gated by the document
    fcs : the file
    tolerance : largest difference, as a fraction of their count, that still agrees; within the raster of the foreign
        program's display counts agree anyway
    """
    from flowmrd.gating.interop.vendor_scales import BINS as RASTER
    from flowmrd.gating.interop.vendor_scales import binning_bound

    if run.strategy is None or run.evaluation is None:
        return ()
    rows = []
    every = column_names(run.strategy.gates)
    raster: Mapping[str, int] = {}
    if any(RASTER in one.info for one in run.strategy.gates):
        raster = binning_bound(run.strategy, fcs, run.evaluation.memberships)
    for one in run.strategy.gates:
        ours, theirs = run.evaluation.counts.get(one.path), one.count
        difference = agrees = None
        if ours is not None and theirs is not None:
            difference = (ours - theirs) / theirs if theirs else (0.0 if ours == 0 else math.inf)
            agrees = abs(ours - theirs) <= max(tolerance * theirs, raster.get(one.path, 0))
        rows.append(
            CountRow(
                acquisition=run.result.acquisition,
                population=every[one.path],
                path=one.path,
                their_events=theirs,
                our_events=ours,
                difference=difference,
                raster_events=raster.get(one.path, 0),
                agrees=agrees,
            )
        )
    return tuple(rows)


def write_comparison(rows: Sequence[CountRow], folder: Path) -> None:
    """Write `comparison` as CSV and Parquet."""
    import polars as pl

    folder.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(
        [tuple(getattr(row, column) for column in COMPARISON) for row in rows],
        schema={column: getattr(pl, kind) for column, kind in COMPARISON.items()},
        orient="row",
    )
    with written(folder / "comparison.csv") as temporary:
        frame.write_csv(temporary)
    with written(folder / "comparison.parquet") as temporary:
        frame.write_parquet(temporary, compression="zstd")


def differing(run: ForeignRun, fcs: FcsFile, rows: Sequence[CountRow]) -> AcquisitionResult:
    """Return the result with a panel for each gate whose counts differ, and a finding that says by how much."""
    off = [row for row in rows if row.agrees is False]
    if run.strategy is None or run.evaluation is None:
        return run.result
    findings = tuple(
        QcFinding(
            level=Level.WARNING,
            code="COUNT_DIFFERS",
            message=f"{row.population}: {row.our_events:,} events here, {row.their_events:,} in {run.strategy.source}.",
            where=row.path,
        )
        for row in off
    )
    notes = tuple(
        QcFinding(
            level=Level.INFO,
            code="COUNT_WITHIN_RASTER",
            message=f"{row.population}: {row.our_events:,} events here, {row.their_events:,} in {run.strategy.source}; "
            f"its display raster alone can move {row.raster_events:,}.",
            where=row.path,
        )
        for row in rows
        if row.agrees and row.our_events != row.their_events and row.raster_events
    )
    panels = _panels(_Drawn(run.strategy, fcs), run.evaluation, run.names, only=[row.path for row in off])
    told = (*run.result.findings, *findings, *notes)
    return replace(run.result, findings=told, qc=quality.overall(told), panels=panels)


# --------------------------------------------------------------------------------------------------------------- panels


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    parent: str
    x: str
    y: str


def _panels(
    drawn: _Drawn, evaluation: Evaluation, names: Mapping[str, str], *, only: Iterable[str] | None = None
) -> tuple[PlotPanel, ...]:
    """Return a panel a parent and pair of dimensions: every event of the parent, and the gates drawn there.

    `only` limits it to views that show one of these gates (paths).
    """
    fcs = drawn.fcs
    other = _second_axis(fcs.channels)
    beside = {**drawn.strategy.dimensions, **{one.key: one for one in other}}
    strategy = replace(drawn.strategy, dimensions=beside)
    views: dict[_View, list[str]] = {}
    gates = {one.path: one for one in strategy.gates if one.path in names}
    for path, one in gates.items():
        view = _view(one.parent, one.gate, strategy, other)
        if view is not None:
            flipped = _View(parent=view.parent, x=view.y, y=view.x)
            views.setdefault(flipped if flipped in views else view, []).append(path)
    if only is not None:
        wanted = set(only)
        views = {view: paths for view, paths in views.items() if wanted & set(paths)}
    if not views or fcs.event_count == 0:
        return ()
    source = DimensionSource(fcs, strategy)
    keys = tuple(key for key in source.markers if any(key in (view.x, view.y) for view in views))
    axes = _axes(source, strategy, keys, [gates[path].gate for path in gates], drawn)
    density = _densities(source, evaluation, keys, axes, list(views))
    panels = []
    for view, paths in views.items():
        count = evaluation.counts[view.parent] if view.parent else fcs.event_count
        panels.append(
            PlotPanel(
                parent=names.get(view.parent, _ROOT),
                parent_path=view.parent or f"/{_ROOT}",
                parent_events=count,
                x=axes[view.x],
                y=axes[view.y],
                density=density[view],
                gates=tuple(
                    _shape(gates[path].gate, view, names[path], path, evaluation.counts[path], count, strategy.source)
                    for path in paths
                ),
                target=np.empty((2, 0), np.float32),
                target_name="",
            )
        )
    return tuple(panels)


def _second_axis(channels: tuple[Channel, ...]) -> tuple[Dimension, ...]:
    """Return linear scatter dimensions, against which gates of one dimension are drawn."""
    scatter = [one for one in channels if one.kind is ChannelKind.SCATTER]
    return tuple(Dimension(key=f"{one.pnn} (axis)", channel=one.pnn) for one in reversed(scatter or channels))


def _view(parent: str, gate: Gate, strategy: ForeignStrategy, other: tuple[Dimension, ...]) -> _View | None:
    keys = list(dict.fromkeys(gate_markers(gate)))
    if not keys:
        return None
    if len(keys) == 1:
        mine = strategy.dimensions[keys[0]].channel
        beside = next((one.key for one in other if one.channel != mine), None)
        if beside is None:
            return None
        keys.append(beside)
    return _View(parent=parent, x=keys[0], y=keys[1])


def _axes(
    source: DimensionSource, strategy: ForeignStrategy, keys: tuple[str, ...], gates: list[Gate], drawn: _Drawn
) -> dict[str, Axis]:
    step = max(1, source.event_count // _SAMPLE_EVENTS)
    parts: dict[str, list[F64]] = {key: [] for key in keys}
    for _, block in source.blocks(keys):
        for key in keys:
            parts[key].append(block.scaled(key)[::step])
    axes = {}
    for key in keys:
        values = np.concatenate(parts[key])
        values = values[np.isfinite(values)]
        ends = [float(end) for end in np.quantile(values, (_TAIL, 1 - _TAIL))] if values.size else [0.0, 1.0]
        ends.extend(edge for gate in gates for edge in _edges(gate, key))
        low, high = min(ends), max(ends)
        margin = 0.03 * (high - low) or 0.5
        dimension = strategy.dimensions[key]
        axes[key] = Axis(
            marker=drawn.labels.get(key, source.label(key)),
            channel=dimension.channel,
            # A scale that only the foreign program has is ticked in its own units.
            transform=drawn.scales.get(key) or {"kind": "linear", "T": 1.0, "A": 0.0},
            lo=low - margin,
            hi=high + margin,
        )
    return axes


def _edges(gate: Gate, key: str) -> list[float]:
    """Return the finite ends of a gate along one dimension."""
    ends: list[float] = []
    match gate:
        case Rectangle(markers=markers, low=low, high=high):
            ends = [v for m, lo, hi in zip(markers, low, high, strict=True) if m == key for v in (lo, hi)]
        case Intervals(marker=marker, ranges=ranges) if marker == key:
            ends = [v for pair in ranges for v in pair]
        case Polygon(markers=markers, vertices=vertices):
            ends = [corner[i] for i, m in enumerate(markers) if m == key for corner in vertices]
        case Ellipsoid(markers=markers, mean=mean, covariance=covariance, distance_square=limit):
            reach = [math.sqrt(max(covariance[i][i] * limit, 0.0)) for i in range(len(mean))]
            ends = [mean[i] + s * reach[i] for i, m in enumerate(markers) if m == key for s in (-1, 1)]
        case _:
            pass
    return [float(end) for end in ends if math.isfinite(end)]


def _densities(
    source: DimensionSource,
    evaluation: Evaluation,
    keys: tuple[str, ...],
    axes: Mapping[str, Axis],
    views: list[_View],
) -> dict[_View, NDArray[np.uint32]]:
    density = {view: np.zeros(BINS * BINS, np.uint32) for view in views}
    for start, block in source.blocks(keys):
        bins = {}
        for key in keys:
            axis = axes[key]
            with np.errstate(invalid="ignore"):
                place = (block.scaled(key) - axis.lo) * (BINS / (axis.hi - axis.lo))
            bins[key] = np.clip(np.nan_to_num(place, nan=0.0), 0, BINS - 1).astype(np.uint16)
        for view in views:
            pair = (bins[view.y] << 8) | bins[view.x]
            if view.parent:
                pair = pair[evaluation.memberships.mask(view.parent, start, block.size)]
            density[view] += np.bincount(pair, minlength=BINS * BINS).astype(np.uint32)
    return {view: counts.reshape(BINS, BINS) for view, counts in density.items()}


def _shape(gate: Gate, view: _View, name: str, path: str, events: int, parent_events: int, source: str) -> GateShape:
    kind, outline = _outline(gate, view)
    return GateShape(
        population=name,
        path=path,
        kind=kind,
        outline=outline,
        events=events,
        parent_events=parent_events,
        method=type(gate).__name__.lower(),
        detail=f"drawn in {source}",
    )


def _box(x: tuple[float, float], y: tuple[float, float]) -> F64:
    return np.array([[x[0], x[1], x[1], x[0]], [y[0], y[0], y[1], y[1]]])


def _outline(gate: Gate, view: _View) -> tuple[str, F64]:
    whole = (-math.inf, math.inf)
    match gate:
        case Rectangle(markers=markers, low=low, high=high):
            sides: dict[str, tuple[float, float]] = {}
            for marker, lo, hi in zip(markers, low, high, strict=True):
                before = sides.get(marker, whole)
                sides[marker] = (max(lo, before[0]), min(hi, before[1]))
            if view.x in sides and view.y in sides:
                return "rectangle", _box(sides[view.x], sides[view.y])
            if view.x in sides:
                return "interval-x", _box(sides[view.x], whole)
            return "interval-y", _box(whole, sides[view.y])
        case Intervals(marker=marker, ranges=ranges) if ranges:
            ends = (ranges[0][0], ranges[-1][1])
            return ("interval-x", _box(ends, whole)) if marker == view.x else ("interval-y", _box(whole, ends))
        case Polygon(markers=markers, vertices=vertices):
            corners = np.array(vertices).T
            return "polygon", corners if markers[0] == view.x else corners[::-1]
        case Ellipsoid(markers=markers, mean=mean, covariance=covariance, distance_square=limit) if len(markers) == 2:
            matrix = np.asarray(covariance)
            if np.array_equal(matrix, matrix.T) and np.linalg.eigvalsh(matrix).min() > 0:
                angle = np.linspace(0.0, 2.0 * math.pi, _ELLIPSE_POINTS, endpoint=False)
                reach = np.linalg.cholesky(matrix) * math.sqrt(limit)
                outline = reach @ np.stack([np.cos(angle), np.sin(angle)]) + np.asarray(mean)[:, None]
                return "ellipse", outline if markers[0] == view.x else outline[::-1]
        case _:
            pass
    return "boolean", np.empty((2, 0))
