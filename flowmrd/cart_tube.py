"""What a tube with engineered T cells gives beyond its gates: fraction by controls, cells per µl, aplasia, a course.

The path gates a file as any other. Then the cut of the receptor is anchored on the controls, what other dyes leak into
its channel is taken out, and counts become the rows of `measurements`. Nothing here knows a marker or a population by
name: the template says which are meant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.events import DataState, EventSource, Panel, Role
from flowmrd.errors import GatingError, Level, QcFinding
from flowmrd.fcs import Spillover
from flowmrd.gating.control import Anchored, Intensities, anchored, control_quantile, residual_spillover
from flowmrd.gating.engine import GatingResult
from flowmrd.gating.template import ROOT, Counts, GatingTemplate, Measurement, depends_on
from flowmrd.quantification.absolute import (
    AbsoluteCount,
    Platform,
    RecordedVolume,
    Share,
    check_blood_count_time,
    compare_platforms,
    count_by_beads,
    dual_platform_count,
    part_of,
    share_of,
    volume_count,
)
from flowmrd.quantification.cart import (
    Background,
    CarResult,
    Estimate,
    load_car_rules,
    measure_car,
    newcombe,
    subset_shares,
    wilson,
)
from flowmrd.quantification.kinetics import Sample, is_aplastic, load_kinetics_rules
from flowmrd.quantification.rare_events import Call, Category, clopper_pearson
from flowmrd.records import Axis, ControlOverlay, MeasurementRow


class Aplasia(StrEnum):
    """Category of a B-cell aplasia row."""

    APLASIA = "APLASIA"
    NO_APLASIA = "NO_APLASIA"
    NOT_DONE = "NOT_DONE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reagent:
    """The detection reagent of the receptor: part of a result's key, since reagents are not interchangeable."""

    name: str | None = None
    clone: str | None = None
    lot: str | None = None

    @property
    def text(self) -> str:
        """Reagent, clone and lot as far as stated."""
        return ", ".join(part for part in (self.kind, self.lot and f"lot {self.lot}") if part)

    @property
    def kind(self) -> str:
        """Reagent and clone: what two results must share to be compared."""
        return ", ".join(part for part in (self.name, self.clone) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A control acquisition of a sample, and what it is (`pre_infusion`, `fmo`, `healthy_donor`, …)."""

    name: str
    path: str
    kind: str
    tube: str
    matrix: str | None = None
    sha256: str | None = None
    reagent: Reagent = Reagent()


@dataclass(frozen=True, slots=True, kw_only=True)
class Specimen:
    """What the worklist says of a blood sample besides its file. `in_course` is false for what only is a control."""

    course: int = 1
    in_course: bool = True
    collected_at: datetime | None = None
    reagent: Reagent = Reagent()
    beads_lot: str | None = None
    beads_added: float | None = None
    blood_volume_ul: float | None = None
    dilution_factor: float | None = None
    wbc_1e9_l: float | None = None
    wbc_at: datetime | None = None
    lymph_pct: float | None = None
    copies_per_ug: float | None = None


# Kinds of negative controls from best to worst, and those whose result stays preliminary (4-cart 4.4).
NEGATIVE_KINDS = ("pre_infusion", "fmo", "healthy_donor", "untransduced")
POSITIVE_KIND = "positive"
WEAK_KINDS = {"fmo"}
DRIFTED = "DRIFTED"


def car_measurement(template: GatingTemplate) -> Measurement | None:
    """Return the template's measurement that needs controls, if it has one."""
    return next((one for one in template.measurement if one.kind == "car"), None)


def chosen_controls(
    controls: Sequence[Control], reagent: Reagent
) -> tuple[tuple[Control, ...], Control | None, tuple[QcFinding, ...]]:
    """Choose the controls of the best kind there is and the positive one; refuse those of another reagent.

    Returns
    -------
    negative controls of one kind, the positive control, findings
    """
    findings: list[QcFinding] = []
    usable: list[Control] = []
    for one in controls:
        differs = [
            word
            for word, ours, theirs in (
                ("reagent", reagent.name, one.reagent.name),
                ("clone", reagent.clone, one.reagent.clone),
            )
            if ours and theirs and ours.casefold() != theirs.casefold()
        ]
        if differs:
            text = f"The control {one.name} has another {' and '.join(differs)} than the sample and is not used."
            findings.append(
                QcFinding(level=Level.WARNING, code="CONTROL_REAGENT_DIFFERS", message=text, where=one.name)
            )
            continue
        if reagent.lot and one.reagent.lot and reagent.lot != one.reagent.lot:
            text = f"The control {one.name} was stained with lot {one.reagent.lot}, the sample with {reagent.lot}."
            findings.append(QcFinding(level=Level.WARNING, code="CONTROL_LOT_DIFFERS", message=text, where=one.name))
        usable.append(one)
    positive = next((one for one in usable if one.kind == POSITIVE_KIND), None)
    for kind in NEGATIVE_KINDS:
        negative = tuple(one for one in usable if one.kind == kind)
        if negative:
            if kind in WEAK_KINDS:
                text = (
                    f"The only controls are of the kind {kind}: without the reagent they do not have its background, "
                    "which is underestimated then; the result is preliminary."
                )
                findings.append(QcFinding(level=Level.WARNING, code="CONTROL_WEAK", message=text, where="car"))
            return negative, positive, tuple(findings)
    text = "No control is linked: the cut rests on the sample alone and no background is subtracted; preliminary."
    findings.append(QcFinding(level=Level.WARNING, code="CONTROL_ABSENT", message=text, where="car"))
    return (), positive, tuple(findings)


def reduced(template: GatingTemplate, one: Measurement, *, also: Sequence[str] = ()) -> GatingTemplate:
    """Return the template with what the parent and strata of a measurement and `also` need, and nothing else."""
    needed: set[str] = set()
    waiting = [one.denominator, *one.strata, *also]
    while waiting:
        name = waiting.pop()
        if name == ROOT or name in needed:
            continue
        needed.add(name)
        row = template.row(name)
        waiting.append(row.parent)
        waiting.extend(other for choice in row.choices for other in depends_on(choice))
    kept = tuple(row for row in template.population if row.name in needed)
    return template.model_copy(update={"population": kept})


def other_colours(source: EventSource, template: GatingTemplate, one: Measurement) -> tuple[str, ...]:
    """Colours besides the reagent's whose leak into its channel can be measured: none where values are not linear."""
    roles = {spec.marker: spec.role for spec in template.channel}
    if source.state is not DataState.RAW:
        return ()
    return tuple(marker for marker in source.markers if roles[marker] is Role.FLUOR and marker != one.channel)


def parent_cells(
    source: EventSource,
    gating: GatingResult,
    template: GatingTemplate,
    one: Measurement,
    *,
    population: str | None = None,
) -> Intensities:
    """Read the parent's events of one acquisition: the reagent's channel, the other colours, the strata.

    `population` takes the parent's place.
    """
    wanted_events = population or one.denominator
    others = other_colours(source, template, one)
    wanted = tuple(marker for marker in source.markers if marker == one.channel or marker in others)
    members = gating.memberships
    columns: dict[str, list[NDArray[np.float64]]] = {marker: [] for marker in wanted}
    codes: list[NDArray[np.intp]] = []
    for start, block in source.blocks(wanted):
        rows = np.flatnonzero(members.mask(wanted_events, start, block.size))
        for marker in wanted:
            columns[marker].append(np.array(block.linear(marker, rows), np.float64))
        code = np.zeros(rows.size, np.intp)
        for bit, name in enumerate(one.strata):
            code |= members.mask(name, start, block.size)[rows].astype(np.intp) << bit
        codes.append(code)
    joined = {marker: np.concatenate(parts) if parts else np.empty(0) for marker, parts in columns.items()}
    stack = np.stack([joined[marker] for marker in others]) if others else np.empty((0, joined[one.channel].size))
    return Intensities(
        values=joined[one.channel],
        others=stack,
        strata=np.concatenate(codes) if codes else np.empty(0, np.intp),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anchor:
    """How the receptor's cut was anchored: on the scaled axis, by which controls, with what left of other dyes.

    `result` is `None` where only a quantile of the controls could be taken; `background` are its counts then.
    """

    cut: float
    origin: str
    controls: tuple[str, ...]
    weak: bool
    leaks: Mapping[str, float]
    background: Background
    result: Anchored | None
    overlay: ControlOverlay
    findings: tuple[QcFinding, ...]
    blast_background: Background | None = None

    @property
    def drift_factor(self) -> float:
        """How many times one is brighter than the other, at least 1: sample and the control that differs most."""
        gains = [match.gain for match in self.result.matches] if self.result is not None else []
        return max((max(gain, 1.0 / gain) for gain in gains), default=1.0)


OVERLAY_BINS = 160
OVERLAY_RANGE = (-0.1, 1.05)


def _overlay(
    source: EventSource,
    channel: str,
    cut: float,
    sample: NDArray[np.float64],
    control: NDArray[np.float64],
    weights: NDArray[np.float64],
    names: tuple[str, ...],
    origin: str,
) -> ControlOverlay:
    """Bin sample and control along the channel; `weights` sum to the sample's negative events."""
    scale = source.transforms[channel]
    edges = np.linspace(*OVERLAY_RANGE, OVERLAY_BINS + 1)

    def binned(values: NDArray[np.float64], weight: NDArray[np.float64] | None) -> tuple[float, ...]:
        inside = np.clip(scale.forward(values), OVERLAY_RANGE[0], OVERLAY_RANGE[1] - 1e-9)
        counts, _ = np.histogram(inside, edges, weights=weight)
        return tuple(round(float(count), 4) for count in counts)

    return ControlOverlay(
        axis=Axis(
            marker=channel,
            channel=source.panel.channels[channel].pnn,
            transform=scale.params(),
            lo=OVERLAY_RANGE[0],
            hi=OVERLAY_RANGE[1],
        ),
        cut=cut,
        sample=binned(sample, None),
        control=binned(control, weights),
        controls=names,
        text=origin,
    )


def place_anchor(
    source: EventSource,
    one: Measurement,
    sample: Intensities,
    controls: Sequence[tuple[Control, Intensities]],
    positive: tuple[Control, Intensities] | None,
    markers: Sequence[str],
) -> Anchor | None:
    """Anchor the cut on the controls, else take their quantile; `None` where neither can be done.

    Parameters
    ----------
    sample : of `parent_cells`
    controls : negative controls of one kind, with their cells
    positive : the positive control
    markers : of the rows of `sample.others`
    """
    if not controls or sample.values.size == 0:
        return None
    names = tuple(control.name for control, _ in controls)
    kind = controls[0][0].kind.replace("_", " ")
    scale = source.transforms[one.channel]
    limits = load_car_rules().control
    findings: list[QcFinding] = []
    try:
        found = _anchored_on(source, sample, controls, positive)
    except GatingError as error:
        cells = [one_control.values for _, one_control in controls if one_control.values.size]
        if not cells:
            return None
        cut = control_quantile(cells, limits.quantile)
        text = f"The cut is the {100 * limits.quantile:g}th percentile of the controls, not anchored: {error}."
        findings.append(QcFinding(level=Level.WARNING, code="CONTROL_NOT_ANCHORED", message=text, where=one.numerator))
        above = sum(int(np.count_nonzero(values > cut)) for values in cells)
        origin = f"placed at a quantile of {', '.join(names)} ({kind})"
        joined = np.concatenate(cells)
        return Anchor(
            cut=float(scale.forward(cut)),
            origin=origin,
            overlay=_overlay(
                source,
                one.channel,
                float(scale.forward(cut)),
                sample.values,
                joined,
                np.full(joined.size, sample.values.size / joined.size),
                names,
                origin,
            ),
            controls=names,
            weak=controls[0][0].kind in WEAK_KINDS,
            leaks={},
            background=Background(events=above, parent_events=sum(values.size for values in cells)),
            result=None,
            findings=tuple(findings),
        )
    leaks = {marker: float(share) for marker, share in zip(markers, found.spillover, strict=True) if abs(share) > 1e-6}
    if leaks:
        worst = max(leaks, key=lambda marker: abs(leaks[marker]))
        text = (
            f"What other dyes leave in {one.channel} after compensation was measured on negative cells and taken out; "
            f"the most is {100 * leaks[worst]:.2g}% of {worst}."
        )
        level = Level.WARNING if abs(leaks[worst]) > limits.leak_warn else Level.INFO
        findings.append(QcFinding(level=level, code="RESIDUAL_SPILLOVER", message=text, where=one.channel))
    apart = max(abs(np.log10(match.gain)) for match in found.matches)
    if apart > limits.drift_warn_log10:
        gains = ", ".join(f"{match.gain:.2f}" for match in found.matches)
        text = f"Sample and controls differ much in brightness (factor {gains}): check voltages and reagent."
        findings.append(QcFinding(level=Level.WARNING, code="CONTROL_DRIFTED", message=text, where=one.channel))
    if positive is None and found.recovery < limits.recovery_note:
        text = (
            f"About {100 * (1 - found.recovery):.0f}% of the cells lie below the cut by the brightness expected of "
            "them; a positive control (the product) would say it better."
        )
        findings.append(QcFinding(level=Level.INFO, code="RECOVERY_ASSUMED", message=text, where=one.numerator))
    origin = f"anchored on {', '.join(names)} ({kind})" + (f", brightness of {positive[0].name}" if positive else "")
    negative = sample.values.size * (1.0 - min(max(found.fraction, 0.0), 1.0))
    return Anchor(
        cut=float(scale.forward(found.cut)),
        origin=origin,
        overlay=_overlay(
            source,
            one.channel,
            float(scale.forward(found.cut)),
            sample.values - found.spillover @ sample.others,
            found.negatives,
            found.negative_weights * (negative / found.negative_weights.sum()),
            names,
            origin,
        ),
        controls=names,
        weak=controls[0][0].kind in WEAK_KINDS,
        leaks=leaks,
        background=Background(events=found.background_events, parent_events=found.background_parent_events),
        result=found,
        findings=tuple(findings),
    )


def suspects_of(template: GatingTemplate) -> str | None:
    """Name the population among whose cells the receptor would be an alarm, if the template has one."""
    name = template.counts.car_blasts
    return None if name is None else template.row(name).parent


def blast_background(
    anchor: Anchor, source: EventSource, one: Measurement, controls: Sequence[tuple[Intensities, Intensities]]
) -> Background | None:
    """Count the controls' blast-like cells above the sample's cut; `None` without any.

    Parameters
    ----------
    controls : parent's and blast-like cells of each negative control, in the order they were anchored
    """
    events = parents = 0
    for place, (parent, suspects) in enumerate(controls):
        values = suspects.values
        if anchor.result is None:
            above = values > float(source.transforms[one.channel].inverse(np.array([anchor.cut]))[0])
        else:
            match = anchor.result.matches[place]
            values = values - residual_spillover(parent.values, parent.others) @ suspects.others
            above = match.gain * values + match.offset > anchor.result.cut
        events += int(np.count_nonzero(above))
        parents += values.size
    return Background(events=events, parent_events=parents) if parents else None


def car_on_blasts(
    source: EventSource, gating: GatingResult, template: GatingTemplate, anchor: Anchor | None
) -> tuple[QcFinding, ...]:
    """Warn of blast-like cells that carry the receptor, clustered and more than the controls have (2-antigen-loss 2.4).

    Without a control the reagent's background on B cells looks the same: that is only noted, and only where they are
    more than the share that is taken for CAR-T without one.
    """
    name, one, rules = template.counts.car_blasts, car_measurement(template), load_car_rules()
    if name is None or one is None or one.channel not in source.markers:
        return ()
    events, parent = gating.counts[name], gating.counts[template.row(name).parent]
    if events < rules.blasts.min_events or parent == 0:
        return ()
    background = anchor.blast_background if anchor is not None else None
    if background is not None:
        expected = parent * background.events / background.parent_events
        low, _ = newcombe(events, parent, background.events, background.parent_events)
        against = f"{expected:.0f} expected by the controls"
    else:
        expected = rules.detection.preliminary_fraction * parent
        against = "without a control this may be background of the reagent"
        low = wilson(events, parent)[0] - rules.detection.preliminary_fraction
    if low <= 0 or events - expected < rules.blasts.min_events:
        return ()
    roles = {spec.marker: spec.role for spec in template.channel}
    markers = tuple(m for m in source.markers if roles[m] is Role.FLUOR and m != one.channel)
    parts = [
        np.stack([block.scaled(m)[gating.memberships.mask(name, start, block.size)] for m in markers])
        for start, block in source.blocks(markers)
    ]
    values = np.concatenate(parts, axis=1)
    near = np.abs(values - np.median(values, axis=1, keepdims=True)) <= rules.blasts.cluster_width
    clustered = int(np.count_nonzero(near.all(axis=0)))
    if clustered < rules.blasts.min_events:
        return ()
    text = (
        f"{events:,} blast-like cells without CD3 carry the CAR, {clustered:,} of them alike; {against}: a transduced "
        "blast hides its CD19. Look at them and at a marrow by CD22 and CD10; they are not counted as CAR-T."
    )
    level = Level.INFO if background is None else Level.WARNING
    return (QcFinding(level=level, code="CAR_POS_BLAST", message=text, where=name),)


def _anchored_on(
    source: EventSource,
    sample: Intensities,
    controls: Sequence[tuple[Control, Intensities]],
    positive: tuple[Control, Intensities] | None,
) -> Anchored:
    if source.state is DataState.SCALED:
        raise GatingError("values on a display scale cannot be anchored")
    return anchored(sample, [cells for _, cells in controls], product=positive[1] if positive else None)


def without_leaks(spillover: Spillover | None, panel: Panel, channel: str, leaks: Mapping[str, float]) -> Spillover:
    """Return the matrix that compensates as before and takes `leaks` of other markers out of one channel besides."""
    pnn = {marker: panel.channels[marker].pnn for marker in (channel, *leaks)}
    names = list(spillover.channels) if spillover is not None else []
    names += [name for name in pnn.values() if name not in names]
    matrix = np.eye(len(names))
    if spillover is not None:
        size = len(spillover.channels)
        matrix[:size, :size] = spillover.matrix
    mixing = np.eye(len(names))
    for marker, share in leaks.items():
        mixing[names.index(pnn[marker]), names.index(pnn[channel])] += share
    return Spillover(channels=tuple(names), matrix=mixing @ matrix, source="adjusted to the sample")


# ------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True, kw_only=True)
class CartOutcome:
    """Rows and sentences in the template's order, findings, and the point of the subject's course."""

    rows: Mapping[str, tuple[MeasurementRow, str]]
    findings: tuple[QcFinding, ...]
    sample: Sample | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What every row of an acquisition repeats."""

    subject: str
    visit: str
    acquisition: str
    study_day: int | None


def measure_cart(
    key: Key,
    template: GatingTemplate,
    gating: GatingResult,
    *,
    specimen: Specimen,
    anchor: Anchor | None,
    markers: Collection[str],
    volume: RecordedVolume,
    verdict: str,
) -> CartOutcome:
    """Turn counts into the rows of an engineered-cell tube; `markers` are those that the file has."""
    counts, names = gating.counts, template.counts
    findings: list[QcFinding] = [*volume.findings] if specimen.dilution_factor else []
    measured = car_measurement(template)
    car = None
    if measured is not None and measured.channel not in markers:
        text = f"The file has no channel of {measured.channel}: nothing is said about cells that carry it."
        findings.append(
            QcFinding(level=Level.WARNING, code="REAGENT_CHANNEL_MISSING", message=text, where=measured.channel)
        )
    elif measured is not None:
        car = _car(measured, gating, anchor)
        # In a later course the cells of the one before may still be there.
        if car.detected and specimen.course == 1 and specimen.in_course and (key.study_day or 0) < 0:
            text = "No CAR-T cell can be there before the infusion: this is background of the reagent or leak of a dye."
            findings.append(
                QcFinding(level=Level.WARNING, code="CAR_BEFORE_INFUSION", message=text, where=measured.numerator)
            )
    absolute, more = _absolute_counts(names, gating, specimen, volume, car)
    findings.extend(more)
    findings.extend(_both_lineages(names, counts))
    rows: dict[str, tuple[MeasurementRow, str]] = {}
    b_count = _b_cells(names, gating, template, absolute)
    for one in template.measurement:
        if one.kind == "car" and car is not None:
            rows[one.analyte] = _fraction_row(key, one, car, verdict, anchor)
            findings.extend(
                QcFinding(
                    level=Level.INFO,
                    code=flag,
                    message=f"{one.analyte}: {flag.replace('_', ' ').lower()}.",
                    where=one.numerator,
                )
                for flag in car.flags
                if flag not in {"CONTROL_ABSENT", DRIFTED}  # said where the controls were chosen and matched
            )
        elif one.kind == "car_detected" and car is not None:
            rows[one.analyte] = _detected_row(key, one, car, verdict)
        elif one.kind in {"car", "car_detected"} or (one.kind == "car_absolute" and car is None):
            rows[one.analyte] = _not_done_row(key, one, counts)
        elif one.kind == "car_absolute":
            rows[one.analyte] = _absolute_row(key, one, names, counts, absolute.get(names.car or ""), car, verdict)
        elif one.kind == "aplasia":
            rows[one.analyte] = _aplasia_row(key, one, counts, b_count, verdict)
        if one.kind.startswith("car") and one.analyte in rows:
            row, wording = rows[one.analyte]
            rows[one.analyte] = replace(row, reagent=specimen.reagent.text), wording
    sample = None
    if specimen.in_course and key.study_day is not None:
        sample = _point(key, names, gating, specimen, car, absolute.get(names.car or ""), b_count)
    return CartOutcome(rows=rows, findings=tuple(findings), sample=sample)


def _both_lineages(names: Counts, counts: Mapping[str, int]) -> list[QcFinding]:
    """Warn of many events with the markers of T and of B cells (7-qc 7.3)."""
    if names.t_with_b is None or names.t_cells is None or not counts[names.t_cells]:
        return []
    share = counts[names.t_with_b] / counts[names.t_cells]
    least = load_car_rules().control.t_with_b_warn
    if share <= least:
        return []
    text = f"{100 * share:.2g}% of T cells have a B-cell marker, more than {100 * least:g}%: doublets or trogocytosis."
    return [QcFinding(level=Level.WARNING, code="T_WITH_B_MARKER", message=text, where=names.t_with_b)]


def _car(one: Measurement, gating: GatingResult, anchor: Anchor | None) -> CarResult:
    estimate = None
    if anchor is not None and anchor.result is not None:
        found = anchor.result
        estimate = Estimate(fraction=found.fraction, ci_low=found.ci_low, ci_high=found.ci_high)
    result = measure_car(
        events=gating.counts[one.numerator],
        parent_events=gating.counts[one.denominator],
        controls=[anchor.background] if anchor is not None else [],
        estimate=estimate,
        assay_lob=one.assay_lob,
        assay_lod=one.assay_lod,
        assay_lloq=one.assay_lloq,
    )
    if anchor is not None and anchor.weak:
        words = load_car_rules().wording["WEAK"]
        call = Call.REVIEW if result.detected else result.call
        result = replace(result, preliminary=True, call=call, wording=f"{result.wording} ({words})")
    # A sample full of dim CAR+ cells can be matched as one that is merely brighter: no absence rests on such a match,
    # nor does a small share.
    if anchor is not None and anchor.drift_factor > 10 ** load_car_rules().control.drift_warn_log10:
        words = load_car_rules().wording[DRIFTED].format(factor=f"{anchor.drift_factor:.1f}")
        absent = result.category is Category.UNDETECTED
        result = replace(
            result,
            category=Category.UNDETECTED_INSUFFICIENT if absent else result.category,
            call=Call.REVIEW,
            preliminary=True,
            flags=(*result.flags, DRIFTED),
            wording=f"CAR-T not evaluable: {words}" if absent else f"{result.wording} (preliminary: {words})",
        )
    return result


def _absolute_counts(
    names: Counts, gating: GatingResult, specimen: Specimen, volume: RecordedVolume, car: CarResult | None
) -> tuple[dict[str, tuple[AbsoluteCount, ...]], list[QcFinding]]:
    """Counts per µl of parent, engineered and B cells on each platform there is, the single platform first."""
    findings: list[QcFinding] = []
    found: dict[str, list[AbsoluteCount]] = {}
    targets = [name for name in (names.t_cells, names.b_cells) if name is not None]
    beads = gating.counts[names.beads] if names.beads else 0
    for place, name in enumerate(targets):
        counted = count_by_beads(
            target_events=gating.counts[name],
            bead_events=beads,
            beads_added=specimen.beads_added,
            beads_lot=specimen.beads_lot,
            sample_volume_ul=specimen.blood_volume_ul,
            dilution_factor=specimen.dilution_factor,
            where=names.beads or "beads",
        )
        if place == 0:
            findings.extend(counted.findings)
        if counted.count is not None:
            found.setdefault(name, []).append(counted.count)
        elif volume.microlitres is not None and specimen.dilution_factor is not None:
            kept = 1.0
            if names.whole is not None and gating.memberships.root_count:
                kept = gating.counts[names.whole] / gating.memberships.root_count
            if kept > 0:
                found.setdefault(name, []).append(
                    volume_count(
                        target_events=gating.counts[name],
                        volume_ul=volume.microlitres * kept,
                        dilution_factor=specimen.dilution_factor,
                    )
                )
    if specimen.wbc_1e9_l is not None and specimen.lymph_pct is not None and names.lymphocytes is not None:
        usable, more = check_blood_count_time(specimen.wbc_at, specimen.collected_at)
        findings.extend(more)
        parent = gating.counts[names.lymphocytes]
        if usable and parent:
            for name in targets:
                found.setdefault(name, []).append(
                    dual_platform_count(
                        wbc_1e9_l=specimen.wbc_1e9_l,
                        lymph_pct=specimen.lymph_pct,
                        shares=(share_of(gating.counts[name], parent),),
                        lod_fraction=load_car_rules().detection.lod_events / parent,
                        lloq_fraction=load_car_rules().detection.lloq_events / parent,
                    )
                )
    if car is not None and names.car and names.t_cells and car.fraction is not None:
        assert car.ci_low is not None
        assert car.ci_high is not None
        share = Share(fraction=max(car.fraction, 0.0), ci_low=max(car.ci_low, 0.0), ci_high=max(car.ci_high, 0.0))
        found[names.car] = [
            part_of(one, share, lod_fraction=car.lod_fraction or 0.0, lloq_fraction=car.lloq_fraction or 0.0)
            for one in found.get(names.t_cells, [])
        ]
        own = found[names.car]
        if len(own) > 1:
            findings.extend(compare_platforms(own[0], own[1], where=names.car))
    return {name: tuple(many) for name, many in found.items()}, findings


@dataclass(frozen=True, slots=True, kw_only=True)
class _BCount:
    count: AbsoluteCount | None
    fraction: float | None
    interval: tuple[float, float] | None
    events: int
    parent_events: int


def can_be_found(template: GatingTemplate, gating: GatingResult, name: str) -> bool:
    """Say whether a population's gate could be placed on the file; one of alternatives is enough."""
    placed = gating.placed[name]
    if placed.method == "nothing":
        return False
    if placed.method != "boolean":
        return True
    choice = next(one for one in template.row(name).choices if one.method == "boolean")
    needed = [str(one) for one in choice.params["populations"] if not str(one).startswith("!")]
    found = [can_be_found(template, gating, one) for one in needed]
    return any(found) if choice.params["operator"] == "or" else all(found)


def _b_cells(
    names: Counts,
    gating: GatingResult,
    template: GatingTemplate,
    absolute: Mapping[str, tuple[AbsoluteCount, ...]],
) -> _BCount | None:
    if names.b_cells is None or names.lymphocytes is None or not can_be_found(template, gating, names.b_cells):
        return None
    events, parent = gating.counts[names.b_cells], gating.counts[names.lymphocytes]
    counted = absolute.get(names.b_cells, ())
    return _BCount(
        count=counted[0] if counted else None,
        fraction=events / parent if parent else None,
        interval=clopper_pearson(events, parent) if parent else None,
        events=events,
        parent_events=parent,
    )


def _status(verdict: str, call: Call) -> str:
    return "needs_check" if verdict == "FAIL" or call is Call.REVIEW else "computed"


def _guarded(verdict: str, result: CarResult) -> Call:
    """A failed acquisition proves no absence."""
    if verdict == "FAIL" and result.call is Call.NOT_DETECTED:
        return Call.REVIEW
    return result.call


def _fraction_row(
    key: Key, one: Measurement, car: CarResult, verdict: str, anchor: Anchor | None
) -> tuple[MeasurementRow, str]:
    call = _guarded(verdict, car)
    wording = car.wording
    if (
        anchor is not None
        and anchor.result is not None
        and car.detected
        and anchor.result.recovery < load_car_rules().control.recovery_note
    ):
        wording += f"; {100 * anchor.result.recovery:.0f}% of CAR+ cells lie above the cut, corrected"
    row = _row(
        key,
        one,
        numerator_events=car.events,
        denominator_events=car.parent_events,
        fraction=car.fraction,
        ci_low=car.ci_low,
        ci_high=car.ci_high,
        lod_fraction=car.lod_fraction,
        lloq_fraction=car.lloq_fraction,
        category=str(car.category),
        call=str(call),
        value=car.value_percent,
        status=_status(verdict, call),
    )
    return row, wording


def _detected_row(key: Key, one: Measurement, car: CarResult, verdict: str) -> tuple[MeasurementRow, str]:
    call = _guarded(verdict, car)
    doubtful = car.detected and not car.proved
    value = None if doubtful or not (car.evaluable or car.detected) else float(car.detected)
    words = "not evaluable" if value is None else "detected" if car.detected else "not detected"
    lod = f"{100 * car.lod_fraction:.2g}%" if car.lod_fraction is not None else "unknown"
    row = _row(
        key,
        one,
        numerator_events=car.events,
        denominator_events=car.parent_events,
        fraction=None,
        ci_low=None,
        ci_high=None,
        lod_fraction=car.lod_fraction,
        lloq_fraction=car.lloq_fraction,
        category=str(car.category),
        call=str(call),
        value=value,
        status=_status(verdict, call),
    )
    return row, f"CAR-T persistence: {words} (LOD {lod} of {car.parent})" + ("; preliminary" if car.preliminary else "")


def _not_done_row(key: Key, one: Measurement, counts: Mapping[str, int]) -> tuple[MeasurementRow, str]:
    row = _row(
        key,
        one,
        numerator_events=None,
        denominator_events=counts.get(one.denominator),
        fraction=None,
        ci_low=None,
        ci_high=None,
        lod_fraction=None,
        lloq_fraction=None,
        category=Aplasia.NOT_DONE.value,
        call=str(Call.REVIEW),
        value=None,
        status=_status("", Call.REVIEW),
    )
    return row, "CAR-T not evaluable: the file has no channel of the reagent"


_PLATFORM_WORDS = {Platform.BEADS: "counting beads", Platform.VOLUME: "recorded volume", Platform.DUAL: "blood count"}


def _absolute_row(
    key: Key,
    one: Measurement,
    names: Counts,
    counts: Mapping[str, int],
    counted: tuple[AbsoluteCount, ...] | None,
    car: CarResult | None,
    verdict: str,
) -> tuple[MeasurementRow, str]:
    best = counted[0] if counted else None
    call = _guarded(verdict, car) if car is not None and best is not None else Call.REVIEW
    shown = best is not None and car is not None and car.category is Category.QUANTIFIABLE
    if best is None:
        wording = "CAR-T per µl not determined: no counting beads, recorded volume or blood count to rest on"
    elif car is not None and car.detected:
        wording = (
            f"CAR-T {best.cells_per_ul:.3g} cells/µl (95% CI {best.ci_low:.3g} to {best.ci_high:.3g}) by "
            f"{_PLATFORM_WORDS[best.platform]}"
        )
        if counted is not None and len(counted) > 1:
            wording += f"; {counted[1].cells_per_ul:.3g} by {_PLATFORM_WORDS[counted[1].platform]}"
    else:
        head = "not detected" if car is not None and car.evaluable else "not evaluable"
        # The estimate's upper limit can lie above the LOD: then it, and not the LOD, is what the cells are below.
        most = max(best.lod_per_ul, best.ci_high)
        wording = f"CAR-T {head}: below {most:.2g} cells/µl by {_PLATFORM_WORDS[best.platform]}"
    # What the count rests on: beads, the stretch of time that the recorded volume is of, or the analyser's lymphocytes.
    rests_on = {Platform.VOLUME: names.whole, Platform.DUAL: names.lymphocytes}
    denominator = (rests_on.get(best.platform) if best is not None else None) or one.denominator
    row = _row(
        key,
        one,
        denominator=denominator,
        numerator_events=counts[one.numerator],
        denominator_events=counts.get(denominator),
        fraction=None,
        ci_low=best.ci_low if best else None,
        ci_high=best.ci_high if best else None,
        lod_fraction=best.lod_per_ul if best else None,
        lloq_fraction=best.lloq_per_ul if best else None,
        category=str(car.category) if car is not None and best is not None else "NOT_DONE",
        call=str(call),
        value=best.cells_per_ul if shown and best is not None else None,
        status=_status(verdict, call),
    )
    return row, wording


def _aplasia_row(
    key: Key, one: Measurement, counts: Mapping[str, int], b_cells: _BCount | None, verdict: str
) -> tuple[MeasurementRow, str]:
    rules = load_kinetics_rules().b_cells
    state: bool | None = None
    if b_cells is not None:
        state = is_aplastic(
            Sample(
                day=0.0,
                cd19_per_ul=b_cells.count.cells_per_ul if b_cells.count else None,
                b_fraction=b_cells.fraction,
            )
        )
    if state is None or b_cells is None:
        wording = "B-cell aplasia not evaluable: no B-cell marker in this file, or no lymphocytes"
        category, call = Aplasia.NOT_DONE, Call.REVIEW
    else:
        category, call = (Aplasia.APLASIA, Call.POSITIVE) if state else (Aplasia.NO_APLASIA, Call.NOT_DETECTED)
        head = "B-cell aplasia" if state else "No B-cell aplasia"
        if b_cells.count is not None:
            wording = f"{head}: {b_cells.count.cells_per_ul:.3g} B cells/µl (aplasia below {rules.aplasia_per_ul:g})"
        else:
            share = 100 * (b_cells.fraction or 0.0)
            wording = f"{head}: B cells {share:.2g}% of lymphocytes (aplasia below {100 * rules.aplasia_fraction:g}%)"
    interval = b_cells.interval if b_cells is not None and b_cells.interval is not None else (None, None)
    row = _row(
        key,
        one,
        numerator_events=counts[one.numerator],
        denominator_events=counts[one.denominator],
        fraction=b_cells.fraction if b_cells else None,
        ci_low=interval[0],
        ci_high=interval[1],
        lod_fraction=None,
        lloq_fraction=None,
        category=str(category),
        call=str(call),
        value=b_cells.count.cells_per_ul if b_cells is not None and b_cells.count is not None else None,
        status=_status(verdict, call),
    )
    return row, wording


def _row(
    key: Key,
    one: Measurement,
    *,
    numerator_events: int | None,
    denominator_events: int | None,
    fraction: float | None,
    ci_low: float | None,
    ci_high: float | None,
    lod_fraction: float | None,
    lloq_fraction: float | None,
    category: str,
    call: str,
    value: float | None,
    status: str,
    denominator: str | None = None,
) -> MeasurementRow:
    return MeasurementRow(
        subject=key.subject,
        visit=key.visit,
        acquisition=key.acquisition,
        analyte=one.analyte,
        numerator=one.numerator,
        numerator_events=numerator_events,
        denominator=denominator or one.denominator,
        denominator_events=denominator_events,
        fraction=fraction,
        ci_low=ci_low,
        ci_high=ci_high,
        lod_fraction=lod_fraction,
        lloq_fraction=lloq_fraction,
        category=category,
        mrd_neg_1e4="",
        call=call,
        value=value,
        unit=one.unit,
        status=status,
    )


def _point(
    key: Key,
    names: Counts,
    gating: GatingResult,
    specimen: Specimen,
    car: CarResult | None,
    counted: tuple[AbsoluteCount, ...] | None,
    b_cells: _BCount | None,
) -> Sample:
    """Gather what the course of the subject takes from this acquisition."""
    assert key.study_day is not None
    # A detection that only a control could prove is no point of a course, nor is an absence that none can.
    if car is not None and not car.proved and (car.detected or DRIFTED in car.flags):
        car = None
    best = counted[0] if counted else None
    shares: dict[str, float | None] = {}
    ratio = None
    if car is not None and car.detected and names.car:
        parent = gating.counts[names.car]
        shares = subset_shares({name: gating.counts[population] for name, population in names.memory.items()}, parent)
        if names.ratio is not None and parent >= load_car_rules().subsets.min_parent_events:
            first, second = (gating.counts[name] for name in names.ratio)
            ratio = first / second if second else None
    return Sample(
        day=float(key.study_day),
        car_per_ul=max(best.cells_per_ul, 0.0) if best is not None and car is not None else None,
        lod_per_ul=best.lod_per_ul if best is not None and car is not None else None,
        ci_low=max(best.ci_low, 0.0) if best is not None and car is not None else None,
        ci_high=best.ci_high if best is not None and car is not None else None,
        car_fraction=car.fraction if car is not None else None,
        lod_fraction=car.lod_fraction if car is not None else None,
        detected=car.detected if car is not None and car.parent_events else None,
        cd19_per_ul=b_cells.count.cells_per_ul if b_cells is not None and b_cells.count is not None else None,
        b_fraction=b_cells.fraction if b_cells is not None else None,
        copies_per_ug=specimen.copies_per_ug,
        cd4_cd8_ratio=ratio,
        memory_shares=tuple(shares.items()),
        label=key.visit,
        reagent=specimen.reagent.kind,
    )
