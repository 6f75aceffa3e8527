"""The one path from an FCS file to a result, as named steps over immutable values.

An `FcsError` or `AnalysisError` of one acquisition is caught here and nowhere else: it becomes a violation finding, the
assessment is not evaluable, and the batch goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowmrd.assessment import Key as SampleKey
from flowmrd.assessment import Request, assess, with_dilution, withhold
from flowmrd.blasts import (
    detection_of,
    detection_record,
    knowledge_for,
    reasons_to_review,
    search_findings,
    searched,
)
from flowmrd.cart_tube import (
    Anchor,
    CartOutcome,
    Control,
    Key,
    Specimen,
    blast_background,
    car_measurement,
    car_on_blasts,
    chosen_controls,
    measure_cart,
    other_colours,
    parent_cells,
    place_anchor,
    reduced,
    suspects_of,
    without_leaks,
)
from flowmrd.cytometry import quality
from flowmrd.cytometry.compensation import check_spillover, matrix_digest, read_matrix_file
from flowmrd.cytometry.events import DataState, EventSource, Panel, Role, resolve_panel
from flowmrd.documents.gate_set import GateSet
from flowmrd.errors import AnalysisError, FcsError, InputError, Level, QcFinding
from flowmrd.fcs import ChannelKind, FcsFile, Spillover, file_sha256, open_fcs, scan_values
from flowmrd.gating.control import Intensities
from flowmrd.gating.detection.own import OwnPhenotype
from flowmrd.gating.engine import GatingResult, apply_template
from flowmrd.gating.gate_set import subject_gates
from flowmrd.gating.gates import Gate, Rectangle, Whole, gate_from_json, gate_markers, gate_to_json
from flowmrd.gating.template import ROOT, GatingTemplate, Measurement, depends_on
from flowmrd.memory import (
    as_json,
    is_phenotype,
    learn_phenotype,
    own_findings,
    own_record,
    read_phenotype,
    remembers,
    reviewed,
)
from flowmrd.panels import build_panels
from flowmrd.quantification.absolute import acquisition_seconds, recorded_volume
from flowmrd.quantification.rare_events import Call, Category, RareEventRules, load_rules, measure_mrd
from flowmrd.records import (
    AcquisitionResult,
    DetectionRecord,
    GateSetRecord,
    MarginCount,
    MeasurementRow,
    PlacedGate,
    PopulationRow,
    TimeSeries,
)
from flowmrd.settings import Settings

# The gate method whose population is the time-QC mask.
_TIME_MASK = "time_stable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """One line of work: a file, the tube it was stained as, and what is known of the specimen.

    `gate_set` holds gates that stand in for the template's; it has been checked against the template. `diagnosis` is an
    earlier file of the subject, or a phenotype that a run kept, to learn the subject's own blasts from. `controls` are
    gated beside the acquisition where its template measures against controls.
    """

    name: str
    path: str
    tube: str
    subject: str = ""
    visit: str = ""
    study_day: int | None = None
    specimen_type: str = ""
    after_cd19_therapy: bool | None = None
    matrix: str | None = None
    expected_sha256: str | None = None
    gate_set: GateSet | None = None
    diagnosis: str | None = None
    specimen: Specimen = field(default_factory=Specimen)
    request: Request = field(default_factory=Request)
    controls: tuple[Control, ...] = ()
    findings: tuple[QcFinding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Analysis:
    """A result, the memberships behind it (`None` where the file could not be gated), and whether it failed."""

    result: AcquisitionResult
    gating: GatingResult | None
    failed: bool


def analyse(
    acquisition: Acquisition,
    template: GatingTemplate,
    settings: Settings,
    *,
    sha256: str = "",
    reference: Path | None = None,
    own: OwnPhenotype | None = None,
) -> Analysis:
    """Run the whole path on one acquisition; an untrustworthy file becomes a finding, never an exception.

    `sha256` is the file's digest where it is known already; `reference` stands in for the settings' one. `own` are the
    subject's blasts as an earlier acquisition showed them; without it they are learnt from `acquisition.diagnosis`.
    """
    if reference is not None:
        settings = settings.model_copy(update={"reference": str(reference)})
    try:
        sha256 = sha256 or file_sha256(acquisition.path)
        _check_identity(acquisition, sha256)
        return _analyse(acquisition, template, settings, sha256, own)
    except (InputError, AnalysisError, OSError) as error:
        return Analysis(result=_failed(acquisition, template, sha256, error), gating=None, failed=True)


def _check_identity(acquisition: Acquisition, sha256: str) -> None:
    if acquisition.expected_sha256 and acquisition.expected_sha256.lower() != sha256:
        raise FcsError(
            f"SHA-256 {sha256} is not the manifest's {acquisition.expected_sha256.lower()}",
            source=Path(acquisition.path).name,
            hint="the file changed since it was listed, or the manifest names another file",
        )


def _analyse(
    acquisition: Acquisition, template: GatingTemplate, settings: Settings, sha256: str, own: OwnPhenotype | None
) -> Analysis:
    opened = open_acquisition(acquisition, template, settings)
    fcs, panel, source, statement = opened.fcs, opened.panel, opened.source, opened.statement
    overrides = _overrides(acquisition, template, fcs, source)
    own, memory_findings = _remembered(acquisition, template, settings, own)
    knowledge = knowledge_for(template, settings, own=own)
    gating = apply_template(source, template, overrides=overrides, usable=opened.usable, knowledge=knowledge)
    anchor, anchor_findings = _anchor(acquisition, template, settings, source, gating, overrides)
    if anchor is not None:
        gated = car_measurement(template)
        assert gated is not None
        if anchor.leaks:
            spillover = without_leaks(source.spillover, panel, gated.channel, anchor.leaks)
            source = _source(fcs, panel, template, spillover, settings)
            statement += f"; {gated.channel} adjusted to the sample"
        cut = Rectangle(markers=(gated.channel,), low=(anchor.cut,), high=(math.inf,))
        overrides = {**overrides, gated.numerator: (cut, anchor.origin)}
        gating = apply_template(source, template, overrides=overrides, usable=opened.usable)
    time = _time_quality(source, template)
    beads = gating.counts[template.counts.beads] if template.counts.beads else 0
    margins, margin_findings = _margins(fcs, source, template, beads=beads)
    findings = [
        *acquisition.findings,
        *fcs.findings,
        *panel.findings,
        *opened.findings,
        *anchor_findings,
        *(time.findings if time else ()),
        *margin_findings,
        *_count_findings(fcs, gating, template),
        *gating.findings,
        *search_findings(template, gating),
        *memory_findings,
    ]
    if time is not None and template.quality.denominator:
        findings = list(
            quality.lower_time_failures(
                findings,
                kept_share=float(np.mean(time.kept)) if time.kept.size else 1.0,
                denominator_events=int(
                    np.count_nonzero(gating.memberships.mask(template.quality.denominator) & time.kept)
                ),
                limits=quality.load_limits(),
            )
        )
    findings.extend(_carry_over(gating, template, source))
    verdict = quality.overall(findings)
    cart = _cart(acquisition, template, gating, fcs, anchor, source.markers, verdict)
    findings.extend(cart.findings)
    findings.extend(car_on_blasts(source, gating, template, anchor))
    found = detection_of(gating)
    measured = [
        (*cart.rows[one.analyte], ())
        if one.analyte in cart.rows
        else _measure(acquisition, template, one, gating, source, verdict)
        for one in template.measurement
        if one.kind != "own" or (found is not None and found.own is not None)
    ]
    for _, _, extra in measured:
        findings.extend(extra)
    rows, said = reviewed([row for row, _, _ in measured], template)
    findings.extend(said)
    record = own_record(gating, source)
    findings.extend(own_findings(record, gating, template, own))
    untimed = _without_time_quality(
        acquisition, template, settings, opened, source, overrides, gating, verdict, measured
    )
    findings.extend(finding for _, _, extra in untimed for finding in extra)
    sample = assess(_sample_key(acquisition), acquisition.request, template, gating, source)
    findings.extend(sample.findings)
    withheld = (*sample.withheld, *(found.unexplained if found is not None else ()))
    held = [
        withhold(row, text, withheld)
        for row, text in zip(
            (*rows, *(row for row, _, _ in untimed)), (text for _, text, _ in (*measured, *untimed)), strict=True
        )
    ]
    result = replace(
        _unassessed(acquisition, template, sha256),
        events=fcs.event_count,
        qc=quality.overall(findings),
        compensation=statement,
        populations=_population_rows(gating, template),
        gates=_placed_rows(gating, template),
        measurements=tuple(row for row, _ in held),
        wording=tuple(with_dilution(text, sample.hemodilution) for _, text in held),
        findings=tuple(findings),
        panels=build_panels(source, gating),
        detection=_detection(template, gating, source),
        own=record,
        phenotype=as_json(_learnt(acquisition, template, gating, sha256)),
        time=_time_series(time),
        margins=margins,
        markers={marker: channel.pnn for marker, channel in panel.channels.items()},
        overlay=anchor.overlay if anchor is not None else None,
        point=cart.sample,
        antigens=sample.antigens,
        cleanup=sample.cleanup,
        internal_controls=sample.internal_controls,
        hemodilution=sample.hemodilution,
        withheld=withheld,
    )
    return Analysis(result=result, gating=gating, failed=False)


# ---------------------------------------------------------------------------------------------------------------- steps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """A file ready to be gated: its channels named, its matrix chosen, its unusable events known."""

    fcs: FcsFile
    panel: Panel
    source: EventSource
    usable: NDArray[np.bool_] | None
    statement: str
    findings: tuple[QcFinding, ...]


def open_acquisition(acquisition: Acquisition, template: GatingTemplate, settings: Settings) -> Opened:
    """Open a file, name its channels, choose its matrix, and say which of its events cannot be used."""
    fcs = scan_values(open_fcs(acquisition.path, dataset=settings.dataset))
    panel = resolve_panel(template.channel, fcs.channels, tube=template.template.id)
    spillover, statement, matrix_findings = _compensation(acquisition, fcs, settings)
    source = _source(fcs, panel, template, spillover, settings)
    usable, unusable = _usable(fcs, source)
    return Opened(
        fcs=fcs,
        panel=panel,
        source=source,
        usable=usable,
        statement=statement,
        findings=(*unusable, *matrix_findings),
    )


def _remembered(
    acquisition: Acquisition, template: GatingTemplate, settings: Settings, own: OwnPhenotype | None
) -> tuple[OwnPhenotype | None, tuple[QcFinding, ...]]:
    """Return the subject's own blasts: as given, else read or learnt from the diagnosis that is named."""
    if own is not None or acquisition.diagnosis is None or not remembers(template):
        return own, ()
    name = Path(acquisition.diagnosis).name
    try:
        if is_phenotype(acquisition.diagnosis):
            return read_phenotype(acquisition.diagnosis), ()
        learnt = phenotype_of(acquisition.diagnosis, template, settings, matrix=acquisition.matrix)
        why = "too few blasts were accepted, or there is no reference to search against"
    except (InputError, AnalysisError, OSError) as error:
        learnt, why = None, str(error)
    if learnt is not None:
        return learnt, ()
    text = f"The subject's own blasts could not be learnt from {name}: {why}."
    return None, (QcFinding(level=Level.WARNING, code="OWN_UNUSABLE", message=text, where=name),)


def phenotype_of(
    path: str, template: GatingTemplate, settings: Settings, *, matrix: str | None = None
) -> OwnPhenotype | None:
    """Learn a subject's own blasts from a file; `None` where too few are accepted.

    Raises
    ------
    InputError, AnalysisError
        The file cannot be read or gated.
    """
    one = Acquisition(name=Path(path).stem, path=path, tube=template.template.id, matrix=matrix)
    opened = open_acquisition(one, template, settings)
    gating = apply_template(opened.source, template, usable=opened.usable, knowledge=knowledge_for(template, settings))
    return _learnt(one, template, gating, file_sha256(path))


def _learnt(
    acquisition: Acquisition, template: GatingTemplate, gating: GatingResult, sha256: str
) -> OwnPhenotype | None:
    if not remembers(template):
        return None
    return learn_phenotype(
        gating,
        acquisition=acquisition.name,
        visit=acquisition.visit,
        file_sha256=sha256,
        template=template.template.id,
    )


def _without_time_quality(
    acquisition: Acquisition,
    template: GatingTemplate,
    settings: Settings,
    opened: Opened,
    source: EventSource,
    overrides: Mapping[str, tuple[Gate, str]],
    gating: GatingResult,
    verdict: str,
    measured: Sequence[tuple[MeasurementRow, str, tuple[QcFinding, ...]]],
) -> list[tuple[MeasurementRow, str, tuple[QcFinding, ...]]]:
    """Measure residual disease as if no stretch of time had been left out.

    Where none was, the row repeats the counts; else all is gated again with the mask's population taken as whole.
    """
    masks = [row for row in template.population if row.method == _TIME_MASK]
    kinds = {one.analyte: one for one in template.measurement if one.kind == "mrd"}
    wanted = [(kinds[found[0].analyte], found) for found in measured if found[0].analyte in kinds]
    if not masks or not wanted:
        return []
    counts = {ROOT: gating.memberships.root_count, **gating.counts}
    removed = sum(counts[row.parent] - counts[row.name] for row in masks)
    again = gating
    if removed:
        whole = {row.name: (Whole(), "all of the acquisition, for comparison") for row in masks}
        again = apply_template(
            source,
            template,
            overrides={**overrides, **whole},
            usable=opened.usable,
            knowledge=knowledge_for(template, settings),
        )
    out: list[tuple[MeasurementRow, str, tuple[QcFinding, ...]]] = []
    for one, (row, text, _) in wanted:
        other = one.model_copy(update={"analyte": f"{one.analyte}-NOTIMEQC"})
        if not removed:
            said = text.replace(one.analyte, other.analyte, 1)
            out.append((replace(row, analyte=other.analyte, mrd_neg_1e4=""), said, ()))
            continue
        open_row, said, _ = _measure(acquisition, template, other, again, source, verdict)
        out.append((replace(open_row, mrd_neg_1e4=""), said, _differ(row, open_row, removed)))
    return out


def _differ(row: MeasurementRow, other: MeasurementRow, removed: int) -> tuple[QcFinding, ...]:
    """Say where a result hangs on the time-QC mask: the two intervals have nothing in common."""
    limits = (row.ci_low, row.ci_high, other.ci_low, other.ci_high)
    if None in limits:
        return ()
    low, high, other_low, other_high = (float(limit) for limit in limits if limit is not None)
    if low <= other_high and other_low <= high:
        return ()
    text = (
        f"{row.analyte} hangs on what the time check left out ({removed:,} events): {100 * (row.fraction or 0):.2g} % "
        f"with it, {100 * (other.fraction or 0):.2g} % without."
    )
    return (QcFinding(level=Level.WARNING, code="TIME_QC_MATTERS", message=text, where=row.numerator),)


def _source(
    fcs: FcsFile, panel: Panel, template: GatingTemplate, spillover: Spillover | None, settings: Settings
) -> EventSource:
    return EventSource(
        fcs, panel, template.channel, spillover=spillover, state=settings.state, scaled_range=settings.scaled_range
    )


def _anchor(
    acquisition: Acquisition,
    template: GatingTemplate,
    settings: Settings,
    source: EventSource,
    gating: GatingResult,
    overrides: Mapping[str, tuple[Gate, str]],
) -> tuple[Anchor | None, tuple[QcFinding, ...]]:
    """Anchor the cut of a template that measures against controls; a person's own gate is left as it is."""
    one = car_measurement(template)
    if one is None or one.channel not in source.markers or one.numerator in overrides:
        return None, ()
    negative, positive, findings = chosen_controls(acquisition.controls, acquisition.specimen.reagent)
    said = list(findings)
    suspects = suspects_of(template)
    small = reduced(template, one, also=(suspects,) if suspects else ())
    cells: dict[str, Intensities] = {}
    blast_like: dict[str, Intensities] = {}
    for control in (*negative, *((positive,) if positive else ())):
        try:
            cells[control.name], blast_like[control.name] = _control_cells(control, small, one, settings, suspects)
        except (InputError, AnalysisError, OSError) as error:
            text = f"The control {control.name} cannot be used: {error}"
            said.append(QcFinding(level=Level.WARNING, code="CONTROL_UNUSABLE", message=text, where=control.name))
    anchor = place_anchor(
        source,
        one,
        parent_cells(source, gating, template, one),
        [(control, cells[control.name]) for control in negative if control.name in cells],
        (positive, cells[positive.name]) if positive is not None and positive.name in cells else None,
        other_colours(source, template, one),
    )
    if anchor is not None and suspects:
        beside = [(cells[name], blast_like[name]) for name in anchor.controls]
        anchor = replace(anchor, blast_background=blast_background(anchor, source, one, beside))
    return anchor, (*said, *(anchor.findings if anchor else ()))


def _control_cells(
    control: Control, template: GatingTemplate, one: Measurement, settings: Settings, suspects: str | None
) -> tuple[Intensities, Intensities]:
    """Gate a control as the sample is and read its parent's events, and those of `suspects`."""
    acquisition = Acquisition(
        name=control.name, path=control.path, tube=control.tube, matrix=control.matrix, expected_sha256=control.sha256
    )
    if control.sha256:
        _check_identity(acquisition, file_sha256(control.path))
    opened = open_acquisition(acquisition, template, settings)
    gating = apply_template(opened.source, template, usable=opened.usable)
    parent = parent_cells(opened.source, gating, template, one)
    return parent, parent_cells(opened.source, gating, template, one, population=suspects) if suspects else parent


def _cart(
    acquisition: Acquisition,
    template: GatingTemplate,
    gating: GatingResult,
    fcs: FcsFile,
    anchor: Anchor | None,
    markers: tuple[str, ...],
    verdict: str,
) -> CartOutcome:
    """Rows of engineered cells, absolute counts and B cells, where the template has such."""
    if not any(one.kind in {"car", "car_detected", "car_absolute", "aplasia"} for one in template.measurement):
        return CartOutcome(rows={}, findings=(), sample=None)
    return measure_cart(
        Key(
            subject=acquisition.subject,
            visit=acquisition.visit,
            acquisition=acquisition.name,
            study_day=acquisition.study_day,
        ),
        template,
        gating,
        specimen=acquisition.specimen,
        anchor=anchor,
        markers=markers,
        volume=recorded_volume(fcs.keywords, seconds=acquisition_seconds(fcs.keywords)),
        verdict=verdict,
    )


def _compensation(
    acquisition: Acquisition, fcs: FcsFile, settings: Settings
) -> tuple[Spillover | None, str, tuple[QcFinding, ...]]:
    """Choose the matrix: the manifest's, else the settings', and say in words what was applied."""
    wanted = acquisition.matrix or settings.matrix
    if settings.state is not DataState.RAW:
        return None, f"none applied: the data are declared {settings.state}", ()
    if wanted == "none":
        return None, "none applied: declared so", ()
    if wanted == "file":
        if fcs.spillover is None:
            colours = sum(channel.kind is ChannelKind.FLUOR for channel in fcs.channels)
            level = Level.WARNING if colours > 1 else Level.INFO
            finding = QcFinding(
                level=level,
                code="UNCOMPENSATED",
                message="The file carries no usable spillover matrix and none was given: values are used as recorded.",
                where="$SPILLOVER",
            )
            return None, "none applied: the file carries no usable matrix", (finding,)
        digest = matrix_digest(fcs.spillover)
        return (
            fcs.spillover,
            f"{fcs.spillover.source} of the file, {len(fcs.spillover.channels)} channels, SHA-256 {digest[:12]}",
            (),
        )
    spillover = read_matrix_file(Path(wanted))
    findings = check_spillover(spillover, fcs.channels)
    digest = matrix_digest(spillover)
    return (
        spillover,
        f"matrix file {Path(wanted).name}, {len(spillover.channels)} channels, SHA-256 {digest[:12]}",
        findings,
    )


def _overrides(
    acquisition: Acquisition, template: GatingTemplate, fcs: FcsFile, source: EventSource
) -> dict[str, tuple[Gate, str]]:
    """Return the subject's own gates: the template's for this subject, and over them those of the gate set."""
    overrides = {
        one.population: (
            gate_from_json(one.gate),
            " ".join(filter(None, (f"drawn by {one.by}", one.source and f"from {one.source}"))),
        )
        for one in template.override
        if one.subject == acquisition.subject
    }
    if acquisition.gate_set is not None:
        own = subject_gates(acquisition.gate_set, fcs, source)
        overrides |= {population: (one.gate, one.origin) for population, one in own.items()}
    return overrides


def _gate_set_record(acquisition: Acquisition) -> GateSetRecord | None:
    if (read := acquisition.gate_set) is None:
        return None
    head = read.gate_set
    return GateSetRecord(
        id=head.id,
        file=read.path.name,
        sha256=read.digest,
        subject=head.subject,
        template_versions=head.template_versions,
        author=head.author,
        date=head.date.isoformat(),
        source=head.source,
        reason=head.reason,
        populations=read.populations,
        documents=dict(read.documents),
    )


def _provenance(acquisition: Acquisition, template: GatingTemplate, one: Measurement) -> str:
    """Name the gate set, its digest and its populations that a measurement rests on; empty where it rests on none."""
    if acquisition.gate_set is None:
        return ""
    own = set(acquisition.gate_set.populations)
    seen: set[str] = set()
    waiting = [one.numerator, one.denominator]
    while waiting:
        name = waiting.pop()
        if name == ROOT or name in seen:
            continue
        seen.add(name)
        row = template.row(name)
        waiting.append(row.parent)
        if name not in own:
            waiting.extend(other for choice in row.choices for other in depends_on(choice))
    used = [name for name in acquisition.gate_set.populations if name in seen]
    head = f"{acquisition.gate_set.gate_set.id} (SHA-256 {acquisition.gate_set.digest[:12]})"
    return f"{head}: {', '.join(used)}" if used else ""


def _usable(fcs: FcsFile, source: EventSource) -> tuple[NDArray[np.bool_] | None, tuple[QcFinding, ...]]:
    """Say which events have a number in every marker of the panel; `None` where the file holds nothing else."""
    if not {finding.code for finding in fcs.findings} & {"VALUES_NAN", "VALUES_INFINITE"}:
        return None, ()
    usable = np.ones(source.event_count, np.bool_)
    for start, block in source.blocks(source.markers):
        for marker in source.markers:
            usable[start : start + block.size] &= np.isfinite(block.linear(marker))
    lost = int(usable.size - np.count_nonzero(usable))
    if lost == 0:
        return None, ()
    message = f"{lost:,} events have a value that is no number in a marker of the panel; no gate counts them."
    return usable, (QcFinding(level=Level.WARNING, code="EVENTS_EXCLUDED", message=message, where="root"),)


def _scaled_blocks(source: EventSource, markers: tuple[str, ...]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    for start, block in source.blocks(markers):
        yield start, np.stack([block.scaled(marker) for marker in markers]) if markers else np.empty((0, block.size))


def _time_quality(source: EventSource, template: GatingTemplate) -> quality.TimeQuality | None:
    """Judge clock, rate and signal over time on the fluorescence channels of the panel."""
    if source.event_count == 0:
        return None
    roles = {spec.marker: spec.role for spec in template.channel}
    markers = tuple(marker for marker in source.markers if roles[marker] is Role.FLUOR)
    clock = next((marker for marker in source.markers if roles[marker] is Role.TIME), None)
    seconds: NDArray[np.float32] | None = None
    if clock is not None:
        seconds = np.empty(source.event_count, np.float32)
        for start, block in source.blocks((clock,)):
            seconds[start : start + block.size] = block.linear(clock)
    return quality.time_quality(
        seconds,
        _scaled_blocks(source, markers),
        event_count=source.event_count,
        scales={marker: source.transforms[marker] for marker in markers},
        in_seconds=source.seconds_known,
        gating=template.quality.gating_markers or None,
    )


def _time_series(time: quality.TimeQuality | None) -> TimeSeries | None:
    if time is None or time.flagged.size == 0:
        return None
    return TimeSeries(
        seconds=time.seconds,
        rate=time.rate,
        channels=time.channels,
        medians=time.medians,
        flagged=time.flagged,
        time_source=time.time_source,
    )


def _margins(
    fcs: FcsFile, source: EventSource, template: GatingTemplate, *, beads: int = 0
) -> tuple[tuple[MarginCount, ...], tuple[QcFinding, ...]]:
    """Count events at the ends of each channel's range; counting beads may lie there and are not judged."""
    roles = {spec.marker: spec.role for spec in template.channel}
    by_channel = {
        channel.index: marker for marker, channel in source.panel.channels.items() if roles[marker] is not Role.TIME
    }
    indices = sorted(by_channel)
    if not indices or source.state is DataState.SCALED:
        return (), ()
    channels = [fcs.channels[index] for index in indices]
    counted = quality.margin_counts(fcs.blocks(indices), channels)
    gating = {source.panel.channels[m].pnn for m in template.quality.gating_markers if m in source.panel.channels}
    judged = [replace(one, high_events=max(one.high_events - beads, 0)) for one in counted] if beads else counted
    findings = quality.check_margins(judged, limits=quality.load_limits().margin, gating=gating or None)
    names = {fcs.channels[index].pnn: marker for index, marker in by_channel.items()}
    return (
        tuple(
            MarginCount(
                channel=one.channel,
                marker=names.get(one.channel, ""),
                low_events=one.low_events,
                high_events=one.high_events,
                events=one.events,
            )
            for one in counted
        ),
        findings,
    )


def _count_findings(fcs: FcsFile, gating: GatingResult, template: GatingTemplate) -> list[QcFinding]:
    """Judge acquired events, singlets, viability and the denominator by their counts; none looks at the numerator."""
    limits = quality.load_limits()
    wanted = template.quality
    findings: list[QcFinding] = []
    aborted = fcs.keywords.get("$ABRT", "")
    findings.extend(
        quality.check_abort(int(aborted) if aborted.strip().isdigit() else None, fcs.event_count, limits=limits.abort)
    )
    if wanted.singlets:
        findings.append(
            quality.check_share(
                gating.counts[wanted.singlets],
                gating.counts[wanted.singlets_of] if wanted.singlets_of else fcs.event_count,
                code="SINGLET_SHARE",
                what=f"singlets of {wanted.singlets_of or 'all events'}",
                limits=limits.singlets,
                where=wanted.singlets,
            )
        )
    if wanted.viable and wanted.singlets:
        findings.append(
            quality.check_share(
                gating.counts[wanted.viable],
                gating.counts[wanted.singlets],
                code="VIABILITY",
                what="viable of single events",
                limits=limits.viability,
                where=wanted.viable,
            )
        )
    if wanted.denominator:
        tube = "mrd" if any(one.analyte == "MRD" for one in template.measurement) else "car"
        findings.append(
            quality.check_denominator(
                gating.counts[wanted.denominator], name=wanted.denominator, limits=limits.events, tube=tube
            )
        )
    return findings


def _carry_over(gating: GatingResult, template: GatingTemplate, source: EventSource) -> list[QcFinding]:
    """Look for target events that crowd at the start of the acquisition; only where events come in order of time."""
    if not template.measurement or gating.placed[template.measurement[0].numerator].method == "nothing":
        return []
    clock = any(spec.role is Role.TIME and spec.marker in source.markers for spec in template.channel)
    first = int(source.event_count * quality.load_limits().carry_over.first_share) // 8 * 8
    if not clock or first == 0:
        return []
    one = template.measurement[0]
    members = gating.memberships
    head_target, head_all = (int(np.count_nonzero(members.mask(n, 0, first))) for n in (one.numerator, one.denominator))
    return [
        quality.check_carry_over(
            first_target=head_target,
            first_events=head_all,
            rest_target=gating.counts[one.numerator] - head_target,
            rest_events=gating.counts[one.denominator] - head_all,
            limits=quality.load_limits().carry_over,
        )
    ]


def _rules(one: Measurement) -> RareEventRules:
    rules = load_rules(one.rules)
    return RareEventRules(
        lod_events=one.lod_events or rules.lod_events,
        lloq_events=one.lloq_events or rules.lloq_events,
        target_fraction=one.target_fraction,
        name=rules.name,
    )


def _detection(template: GatingTemplate, gating: GatingResult, source: EventSource) -> DetectionRecord | None:
    found = detection_of(gating)
    if found is None:
        return None
    nucleated = gating.counts[template.quality.denominator] if template.quality.denominator else source.event_count
    return detection_record(found, source, nucleated)


def _measure(
    acquisition: Acquisition,
    template: GatingTemplate,
    one: Measurement,
    gating: GatingResult,
    source: EventSource,
    verdict: str,
) -> tuple[MeasurementRow, str, tuple[QcFinding, ...]]:
    """Counts → one measurement with its limits, its sentence and its findings."""
    numerator, denominator = gating.counts[one.numerator], gating.counts[one.denominator]
    routes = [route.name for route in one.routes if set(route.markers) <= set(source.markers)]
    # Where the therapy is not stated, no proof of negativity may rest on a gate that needs its target.
    stated = acquisition.after_cd19_therapy
    by_search = one.kind == "own" or one.numerator == searched(template)
    detection = detection_of(gating) if by_search else None
    result = measure_mrd(
        numerator_events=numerator,
        denominator_events=denominator,
        rules=_rules(one),
        analyte=one.analyte,
        denominator=f"{one.denominator} cells",
        assay_lod=one.assay_lod,
        assay_lloq=one.assay_lloq,
        cd19_independent=bool(routes) or not one.therapy_target,
        after_cd19_therapy=bool(stated),
        # The search lists groups of one place each: all of its events are inside a density cluster.
        clustered_share=1.0 if detection is not None and numerator else None,
    )
    low, high = result.ci_low, result.ci_high
    if detection is not None and numerator:
        low, high = _with_model_error(result.fraction, low, high, detection.reference.learnt.judge.relative_error)
    negative = str(result.mrd_neg_1e4) if one.kind == "mrd" else ""
    findings = [
        QcFinding(
            level=Level.INFO,
            code=flag,
            message=f"{one.analyte}: {flag.replace('_', ' ').lower()}.",
            where=one.numerator,
        )
        for flag in result.flags
        if not flag.endswith("_GATED_ONLY")  # said below, with the target's name
    ]
    target = one.therapy_target
    if target and routes:
        text = f"Ways to the lineage that do not need {target}: {', '.join(routes)}."
        findings.append(QcFinding(level=Level.INFO, code="LINEAGE_ROUTES", message=text, where=one.numerator))
    elif target:
        text = f"The tube proves a negative result by {target} only: not after therapy directed at {target}."
        level = Level.WARNING if stated else Level.INFO
        findings.append(QcFinding(level=level, code=f"{target}_GATED_ONLY", message=text, where=one.numerator))
        if stated is None and negative == "Y":
            negative = "NE"
            text = f"Whether therapy directed at {target} was given is not stated, so a low result is not proved."
            findings.append(QcFinding(level=Level.INFO, code="THERAPY_NOT_STATED", message=text, where=one.numerator))
    call = result.call
    if verdict == "FAIL" and call is Call.NOT_DETECTED and result.category is not Category.UNDETECTED_INSUFFICIENT:
        call = Call.REVIEW
    if by_search:
        call = _search_call(call, template, gating, one)
    value = result.value_percent
    row = MeasurementRow(
        subject=acquisition.subject,
        visit=acquisition.visit,
        acquisition=acquisition.name,
        analyte=one.analyte,
        numerator=one.numerator,
        numerator_events=numerator,
        denominator=one.denominator,
        denominator_events=denominator,
        fraction=result.fraction,
        ci_low=low,
        ci_high=high,
        lod_fraction=result.lod_fraction,
        lloq_fraction=result.lloq_fraction,
        category=str(result.category),
        mrd_neg_1e4=negative,
        call=str(call),
        value=value,
        unit=one.unit,
        status="needs_check" if verdict == "FAIL" or call is Call.REVIEW else "computed",
        gate_set=_provenance(acquisition, template, one),
    )
    wording = result.wording
    if by_search and call is Call.REVIEW:
        reasons = _reasons(template, gating)
        if result.call is Call.NOT_DETECTED:
            # What waits for a person may be leukemia: nothing is proved absent. Too few cells prove nothing anyway.
            held, wording = withhold(row, wording, reasons)
            few = result.category is Category.UNDETECTED_INSUFFICIENT
            row = replace(held, category=row.category) if few else held
        elif reasons:
            wording = f"{wording}; needs review: {'; '.join(reasons)}"
    return row, wording, tuple(findings)


def _reasons(template: GatingTemplate, gating: GatingResult) -> tuple[str, ...]:
    """Say why a person has to look at what the search found."""
    reasons = reasons_to_review(template, gating)
    detection = detection_of(gating)
    waiting = 0 if detection is None else int(np.count_nonzero(detection.review))
    if waiting:
        reasons = (*reasons, f"{waiting:,} events wait for a person's judgement")
    return reasons


def _search_call(call: Call, template: GatingTemplate, gating: GatingResult, one: Measurement) -> Call:
    """Leave to a person what the search cannot answer for: no reference, controls out of range, groups to be judged."""
    if reasons_to_review(template, gating):
        return Call.REVIEW
    detection = detection_of(gating)
    if call is Call.NOT_DETECTED and detection is not None and one.kind != "own":
        waiting = int(np.count_nonzero(detection.review)) + gating.counts[one.numerator]
        if waiting >= _rules(one).lod_events and np.any(detection.review):
            return Call.REVIEW
    return call


def _with_model_error(
    fraction: float | None, low: float | None, high: float | None, relative: float
) -> tuple[float | None, float | None]:
    """Widen a counting interval by the search's own error on held-out marrows (quadrature of logarithms)."""
    if not fraction or low is None or high is None:
        return low, high
    model = 1.96 * relative
    below = math.hypot(math.log(fraction / low), model) if low > 0 else math.inf
    above = math.hypot(math.log(high / fraction), model)
    return (fraction * math.exp(-below) if math.isfinite(below) else low), min(1.0, fraction * math.exp(above))


def _sample_key(acquisition: Acquisition) -> SampleKey:
    return SampleKey(
        subject=acquisition.subject,
        visit=acquisition.visit,
        acquisition=acquisition.name,
        specimen_type=acquisition.specimen_type,
    )


def _population_rows(gating: GatingResult, template: GatingTemplate) -> tuple[PopulationRow, ...]:
    counts: Mapping[str, int] = {ROOT: gating.memberships.root_count, **gating.counts}
    return tuple(
        PopulationRow(
            population=row.name,
            path=template.path(row.name),
            parent=row.parent,
            events=counts[row.name],
            parent_events=counts[row.parent],
        )
        for row in template.population
    )


def _placed_rows(gating: GatingResult, template: GatingTemplate) -> tuple[PlacedGate, ...]:
    rows = []
    for row in template.population:
        placed = gating.placed[row.name]
        # The channels and parameters of the template's own method say nothing about a gate that took its place.
        own = placed.method == "override"
        rows.append(
            PlacedGate(
                population=row.name,
                path=template.path(row.name),
                parent=row.parent,
                method=placed.method,
                purpose=" ".join(row.purpose.split()),
                channels=gate_markers(placed.gate) if own else placed.channels,
                parameters={} if own else dict(placed.params),
                gate=gate_to_json(placed.gate),
                found={name: float(value) for name, value in placed.found.items()},
                bound_hit=placed.bound_hit,
                fallback=placed.fallback,
                reason=placed.reason,
            )
        )
    return tuple(rows)


def _failed(acquisition: Acquisition, template: GatingTemplate, sha256: str, error: Exception) -> AcquisitionResult:
    """Return the record of a file that could not be assessed: no number, not evaluable, and why."""
    code = (
        "FILE_REFUSED"
        if isinstance(error, FcsError)
        else type(error).__name__.removesuffix("Error").upper() + "_FAILED"
    )
    if isinstance(error, OSError) and not isinstance(error, InputError):
        message, where = f"{Path(acquisition.path).name} cannot be read: {error.strerror or error}", ""
    else:
        message, where = str(error), getattr(error, "where", "")
    finding = QcFinding(level=Level.VIOLATION, code=code, message=message, where=where)
    return replace(
        _unassessed(acquisition, template, sha256),
        findings=(*acquisition.findings, finding),
    )


def _unassessed(acquisition: Acquisition, template: GatingTemplate, sha256: str) -> AcquisitionResult:
    """Return what is known of an acquisition before its file is opened: every result not done, nothing counted."""
    rows = tuple(
        MeasurementRow(
            subject=acquisition.subject,
            visit=acquisition.visit,
            acquisition=acquisition.name,
            analyte=one.analyte,
            numerator=one.numerator,
            numerator_events=None,
            denominator=one.denominator,
            denominator_events=None,
            fraction=None,
            ci_low=None,
            ci_high=None,
            lod_fraction=None,
            lloq_fraction=None,
            category="NOT_DONE",
            mrd_neg_1e4="NE" if one.kind == "mrd" else "",
            call="review",
            value=None,
            unit=one.unit,
            status="needs_check",
            gate_set=_provenance(acquisition, template, one),
            reagent=acquisition.specimen.reagent.text if one.kind.startswith("car") else "",
        )
        for one in template.measurement
        if one.kind != "own"
    )
    return AcquisitionResult(
        acquisition=acquisition.name,
        subject=acquisition.subject,
        visit=acquisition.visit,
        study_day=acquisition.study_day,
        specimen_type=acquisition.specimen_type,
        tube=template.template.id,
        template_version=template.template.version,
        template_digest=template.digest,
        file_name=Path(acquisition.path).name,
        file_sha256=sha256,
        events=0,
        qc="FAIL",
        compensation="none: the file was not assessed",
        populations=(),
        gates=(),
        measurements=rows,
        wording=tuple("not evaluable: the file could not be assessed" for _ in rows),
        findings=acquisition.findings,
        panels=(),
        time=None,
        margins=(),
        markers={},
        gate_set=_gate_set_record(acquisition),
        course=acquisition.specimen.course,
        reagent=acquisition.specimen.reagent.text,
    )
