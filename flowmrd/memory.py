"""A subject's memory: the phenotype learnt from the blasts of one acquisition, and what it says of a later one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowmrd.blasts import detection_of
from flowmrd.cytometry.events import EventSource
from flowmrd.errors import InputError, Level, QcFinding
from flowmrd.gating.detection.own import OwnPhenotype, OwnSearch, fit_phenotype, phenotype_from_json
from flowmrd.gating.engine import GatingResult
from flowmrd.gating.methods.seed_and_grow import Detection
from flowmrd.gating.template import GatingTemplate, Measurement
from flowmrd.quantification.rare_events import Call
from flowmrd.records import Drift, MeasurementRow, OwnRecord

# So many standard errors make a shift sure.
_SURE = 3.0
_ENDING = ".json"


def own_measurement(template: GatingTemplate) -> Measurement | None:
    """Return the template's measurement by the subject's own phenotype, if it has one."""
    return next((one for one in template.measurement if one.kind == "own"), None)


def remembers(template: GatingTemplate) -> bool:
    """Say whether an earlier sample of the subject matters to this tube."""
    return own_measurement(template) is not None


def is_phenotype(path: str) -> bool:
    """Say whether a file is a kept phenotype, and not an acquisition."""
    return Path(path).suffix.lower() == _ENDING


def read_phenotype(path: str) -> OwnPhenotype:
    """Read a phenotype that a run kept (`acquisitions/NAME/phenotype.json`).

    Raises
    ------
    InputError
        It cannot be read, or is none.
    """
    source = Path(path).name
    try:
        return phenotype_from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", source=source) from None
    except ValueError as error:
        raise InputError(f"not a phenotype: {error}", source=source) from None


def learn_phenotype(
    gating: GatingResult, *, acquisition: str, visit: str, file_sha256: str, template: str
) -> OwnPhenotype | None:
    """Learn the phenotype of the accepted blasts; `None` where there was no search, or they are too few."""
    found = detection_of(gating)
    if found is None or np.count_nonzero(found.accepted) < found.params.own_least:
        return None
    return fit_phenotype(
        found.x[found.accepted],
        found.features,
        seed=found.seed,
        acquisition=acquisition,
        visit=visit,
        file_sha256=file_sha256,
        template=template,
        reference=found.reference.digest,
    )


def as_json(own: OwnPhenotype | None) -> Mapping[str, Any] | None:
    """Return a phenotype as it is kept."""
    return None if own is None else own.to_json()


def own_record(gating: GatingResult, source: EventSource) -> OwnRecord | None:
    """Return what the own route found, and what has changed since the diagnosis; `None` where it did not run."""
    found = detection_of(gating)
    if found is None or found.own is None:
        return None
    own = found.own
    return OwnRecord(
        acquisition=own.phenotype.acquisition,
        visit=own.phenotype.visit,
        file_sha256=own.phenotype.file_sha256,
        phenotype_sha256=own.phenotype.digest,
        blasts=own.phenotype.events,
        events=len(own.members),
        expected=own.events,
        shared=int(np.count_nonzero(found.accepted[own.members])),
        drift=_drift(found, own, source),
        lost=dict(own.lost),
    )


def _drift(found: Detection, own: OwnSearch, source: EventSource) -> tuple[Drift, ...]:
    """Compare the medians of the events found today with the diagnosis, both on the reference's scale."""
    if len(own.members) < found.params.own_least // 5:
        return ()
    columns = {marker: j for j, marker in enumerate(found.features)}
    was = own.phenotype.middle
    rows = []
    for marker in own.features:
        values = found.x[own.members, columns[marker]].astype(np.float64)
        now = float(np.median(values))
        shift = now - was[marker]
        # Of a median; a few equal values must not make it look sure.
        error = 1.2533 * float(np.std(values)) / math.sqrt(len(values)) + 1e-3
        decades = None
        if marker not in found.reference.scatter:
            offset = found.offsets.get(marker, 0.0)
            here, there = (
                float(v) for v in source.transforms[marker].inverse(np.array([now + offset, was[marker] + offset]))
            )
            decades = math.log10(here / there) if here > 0 and there > 0 else None
        sure = abs(shift) >= max(found.params.own_moved, _SURE * error)
        rows.append(
            Drift(
                marker=marker,
                shift=shift,
                error=error,
                shift_log10=decades,
                moved=bool(sure and marker not in found.reference.scatter),
            )
        )
    return tuple(rows)


def own_findings(
    record: OwnRecord | None, gating: GatingResult, template: GatingTemplate, own: OwnPhenotype | None
) -> list[QcFinding]:
    """Say what the own route rests on, what it found beside the general one, and what has changed."""
    one = own_measurement(template)
    found = detection_of(gating)
    if one is None or own is None:
        return []
    if record is None or found is None:
        why = "there was no search" if found is None else "it was aligned by another reference, or shares few markers"
        text = f"The phenotype of {own.acquisition} cannot be used here: {why}."
        return [QcFinding(level=Level.WARNING, code="OWN_UNUSABLE", message=text, where=one.numerator)]
    general = int(np.count_nonzero(found.accepted))
    at = f"{record.acquisition} ({record.visit})" if record.visit else record.acquisition
    text = (
        f"By the subject's own phenotype ({record.blasts:,} blasts of {at}): {record.events:,} events; by the general "
        f"search: {general:,}; by both: {record.shared:,}."
    )
    findings = [QcFinding(level=Level.INFO, code="OWN_ROUTE", message=text, where=one.numerator)]
    moved = [row for row in record.drift if row.moved]
    if moved:
        listed = ", ".join(
            f"{row.marker} {row.shift_log10:+.2f} log10"
            if row.shift_log10 is not None
            else f"{row.marker} {row.shift:+.2f} display units"
            for row in moved
        )
        text = f"Since {at} the blasts have moved: {listed}."
        findings.append(QcFinding(level=Level.INFO, code="OWN_DRIFT", message=text, where=one.numerator))
    for marker, share in record.lost.items():
        if record.events >= found.params.own_least // 5 and share >= found.params.own_lost:
            text = f"{share:.0%} of the events found by the own phenotype have lost {marker} since {at}."
            findings.append(QcFinding(level=Level.WARNING, code="OWN_TARGET_LOST", message=text, where=one.numerator))
    return findings


def reviewed(
    rows: Sequence[MeasurementRow], template: GatingTemplate
) -> tuple[tuple[MeasurementRow, ...], list[QcFinding]]:
    """Leave a negative answer to a person where the own route is positive; numbers stay as they are."""
    one = own_measurement(template)
    own = next((row for row in rows if one is not None and row.analyte == one.analyte), None)
    if own is None or own.call != Call.POSITIVE:
        return tuple(rows), []
    judged, findings = [], []
    kinds = {measured.analyte: measured.kind for measured in template.measurement}
    for row in rows:
        if kinds.get(row.analyte) == "mrd" and row.call == Call.NOT_DETECTED:
            text = (
                f"{row.analyte} was not detected, but {own.numerator_events:,} events lie where the subject's own "
                "blasts lay: a person has to decide."
            )
            findings.append(
                QcFinding(level=Level.WARNING, code="OWN_ROUTE_POSITIVE", message=text, where=own.numerator)
            )
            row = replace(row, call=str(Call.REVIEW), status="needs_check")
        judged.append(row)
    return tuple(judged), findings
