"""The search for blasts as the pipeline sees it: which reference, what the answer rests on, what a reader is shown."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.events import EventSource
from flowmrd.errors import Level, QcFinding
from flowmrd.gating.detection.describe import on_display, portray
from flowmrd.gating.detection.own import OwnPhenotype
from flowmrd.gating.detection.storage import Reference, load_reference
from flowmrd.gating.engine import GatingResult
from flowmrd.gating.methods.seed_and_grow import Detection, Knowledge, SeedAndGrowParams
from flowmrd.gating.template import GatingTemplate, template_folder, typed
from flowmrd.records import Aberration, BlastGroup, DetectionRecord
from flowmrd.settings import Settings

SEARCH = "seed_and_grow"
# Fewer normals than this cannot say what is unusual among marrows.
FEW_NORMALS = 6
_SHOWN = 3000


def searched(template: GatingTemplate) -> str:
    """Return the population that the template searches for, or nothing."""
    return next((row.name for row in template.population if row.method == SEARCH), "")


def uses_reference(template: GatingTemplate) -> bool:
    """Say whether a population of the template is found against a reference, by the search or a method beside it."""
    return any(isinstance(typed(row).params, SeedAndGrowParams) for row in template.population)


def default_reference(template: GatingTemplate) -> Path | None:
    """Return the reference that ships for a template, if one does."""
    path = template_folder() / "references" / f"{template.template.id}.reference"
    return path if path.is_file() else None


@lru_cache(maxsize=4)
def _loaded(path: str, _stamp: tuple[int, int]) -> Reference:
    return load_reference(Path(path))


def knowledge_for(template: GatingTemplate, settings: Settings, *, own: OwnPhenotype | None = None) -> Knowledge | None:
    """Return what the template's search may know, the subject's own blasts among it; `None` if it needs no reference.

    Raises
    ------
    ReferenceFileError
        The reference cannot be read.
    """
    if not uses_reference(template):
        return None
    path = Path(settings.reference) if settings.reference else default_reference(template)
    if path is None:
        return Knowledge(reference=None, seed=settings.seed)
    targets = tuple(dict.fromkeys(one.therapy_target for one in template.measurement if one.therapy_target))
    try:
        seen = path.stat()
        stamp = (seen.st_mtime_ns, seen.st_size)
    except OSError:
        stamp = (0, 0)
    return Knowledge(reference=_loaded(str(path), stamp), seed=settings.seed, own=own, targets=targets)


def detection_of(gating: GatingResult) -> Detection | None:
    """Return what the search of this acquisition found, if there was one."""
    return next((one for one in gating.details.values() if isinstance(one, Detection)), None)


def is_small(reference: Reference) -> bool:
    """Say whether a reference has too few normals to know what is unusual."""
    return reference.normals < FEW_NORMALS


def reasons_to_review(template: GatingTemplate, gating: GatingResult) -> tuple[str, ...]:
    """Return why no answer of the search stands without a person; empty where it does."""
    name = searched(template)
    if not name or gating.placed[name].method == "override":
        return ()
    detection = detection_of(gating)
    if detection is None:
        return ("there is no reference of normals for this tube: the static rule is not enough for an answer",)
    reasons = list(detection.reasons)
    if is_small(detection.reference):
        reasons.append(f"the reference knows {detection.reference.normals} normals only")
    return tuple(reasons)


def search_findings(template: GatingTemplate, gating: GatingResult) -> list[QcFinding]:
    """Say what the search rests on, and what makes its answer a person's."""
    name = searched(template)
    if not name or gating.placed[name].method == "override":
        return []
    detection = detection_of(gating)
    if detection is None:
        text = (
            "No reference of normals: blasts are those of the template's static rule, and the answer is a person's. "
            "Build one with `flowmrd reference build`."
        )
        return [QcFinding(level=Level.WARNING, code="NO_REFERENCE", message=text, where=name)]
    reference = detection.reference
    findings = []
    if reference.simulated:
        text = (
            f"The reference {reference.name} was made from simulated marrows: it says nothing of how this laboratory's "
            "normals look. Build one from your own with `flowmrd reference build`."
        )
        findings.append(QcFinding(level=Level.WARNING, code="REFERENCE_SIMULATED", message=text, where=name))
    if is_small(reference):
        text = f"The reference knows {reference.normals} normals; from {FEW_NORMALS} on it can tell what is unusual."
        findings.append(QcFinding(level=Level.WARNING, code="REFERENCE_SMALL", message=text, where=name))
    if reference.template != template.template.id:
        text = f"The reference was built with the template {reference.template} {reference.template_version}."
        findings.append(QcFinding(level=Level.INFO, code="REFERENCE_OTHER_TEMPLATE", message=text, where=name))
    moved = {m: v for m, v in detection.offsets.items() if abs(v) > 0.03 and m not in reference.scatter}
    if moved:
        listed = ", ".join(f"{marker} {value:+.2f}" for marker, value in sorted(moved.items()))
        text = f"Brought onto the reference's scale (display units): {listed}."
        findings.append(QcFinding(level=Level.INFO, code="REFERENCE_ALIGNED", message=text, where=name))
    findings.extend(
        QcFinding(level=Level.WARNING, code="REFERENCE_OUT_OF_RANGE", message=f"{doubt}.", where=name)
        for doubt in detection.doubts
    )
    for reason in detection.unexplained:
        text = f"{reason}. Blasts that resemble a normal stage show by their number only."
        findings.append(QcFinding(level=Level.WARNING, code="PRECURSORS_ABUNDANT", message=text, where=name))
    waiting = [group for group in detection.groups if group.status == "review"]
    if waiting:
        events = sum(len(group.group.members) for group in waiting)
        text = f"{len(waiting)} groups with {events:,} events wait for a person's judgement (blast_candidates)."
        findings.append(QcFinding(level=Level.WARNING, code="BLAST_CANDIDATES", message=text, where=name))
    return findings


def detection_record(detection: Detection, source: EventSource, nucleated: int) -> DetectionRecord:
    """Return what a reader is shown of a search: the groups beside the normals, on the sample's own scales."""
    reference, params = detection.reference, detection.params
    densities = reference.learnt.model.densities[detection.pattern]
    offsets = np.array([detection.offsets.get(marker, 0.0) for marker in detection.features])

    def displayed(points: NDArray[np.float32]) -> NDArray[np.float32]:
        return on_display(points.astype(np.float32), offsets, detection.features, detection.rulers.get)

    groups, shown, owner = [], [], []
    for k, one in enumerate(detection.groups):
        events = detection.x[one.group.members]
        portrait = portray(events, reference, densities, stages=params.stages, directions=params.directions)
        middles = displayed(np.median(events, axis=0)[None])[0]
        aberrations = []
        for shift in portrait.shifts:
            scale = source.transforms[shift.marker]
            offset = detection.offsets.get(shift.marker, 0.0)
            here, there = (
                float(v) for v in scale.inverse(np.array([shift.expected + shift.shift, shift.expected]) + offset)
            )
            aberrations.append(
                Aberration(
                    marker=shift.marker,
                    shift=shift.shift,
                    shift_log10=float(np.log10(here / there)) if here > 0 and there > 0 else None,
                    deviations=shift.deviations,
                    direction="over" if shift.shift > 0 else "under",
                    aberrant=shift.aberrant,
                )
            )
        groups.append(
            BlastGroup(
                name=f"group {k + 1}",
                status=one.status,
                events=len(one.group.members),
                fraction=len(one.group.members) / nucleated if nucleated else 0.0,
                probability=one.probability,
                stage=portrait.stage,
                normals_most=portrait.normals_most,
                middle={marker: float(v) for marker, v in zip(detection.features, middles, strict=True)},
                aberrations=tuple(aberrations),
                likeness=detection.own.likeness[k] if detection.own is not None else None,
                distance=portrait.distance,
            )
        )
        step = -(-len(events) // _SHOWN)
        part = events[:: max(step, 1)]
        shown.append(displayed(part))
        owner.append(np.full(len(part), k, np.int16))
    width = len(detection.features)
    points = reference.points[:, list(detection.pattern)]
    points = points[~np.isnan(points).any(axis=1)][:_SHOWN]
    return DetectionRecord(
        reference=reference.name,
        reference_sha256=reference.digest,
        simulated=reference.simulated,
        normal_marrows=reference.normals,
        diagnoses=reference.diagnoses,
        seed=detection.seed,
        features=detection.features,
        groups=tuple(groups),
        doubts=detection.reasons,
        normals=displayed(points),
        events=np.concatenate(shown) if shown else np.empty((0, width), np.float32),
        owner=np.concatenate(owner) if owner else np.empty(0, np.int16),
    )
