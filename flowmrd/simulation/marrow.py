"""Leukemia in marrow: a patient's immunophenotype, drawn or given, placed on the maturation course."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowmrd.errors import SettingsError
from flowmrd.simulation.cells import CellModel, SecondMode, keyed_streams
from flowmrd.simulation.profile import Fraction, Leukemia, Profile, read_toml, specimen_markers

AberrationRange = tuple[float, float, float]  # weight, low, high


class TargetStatus(StrEnum):
    """What directed therapy left of its target on the blasts (`--cd19`)."""

    POSITIVE = "positive"
    DIM = "dim"
    NEGATIVE = "negative"
    MIXED = "mixed"


class Bimodal(BaseModel):
    """A part of the blasts shifted further in one marker (log10)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    marker: str
    fraction: Fraction
    shift: float


class Immunophenotype(BaseModel):
    """A patient's blasts: point and spread on the course, width of the cloud, shifts (log10) from the normal stage.

    The same keys are read from a TOML or JSON file (`--phenotype FILE`) and written to the truth.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    start: Fraction
    spread: Annotated[float, Field(ge=0.0)]
    sd_factor: Annotated[float, Field(gt=0.0)] = 1.0
    shifts: Mapping[str, float]
    bimodal: Bimodal | None = None
    hard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLoss:
    """How the therapy's target looks on the blasts: shift of all (log10), part that lost it."""

    status: TargetStatus
    shift: float
    lost_fraction: float


def remaining_aberrations(
    leukemia: Leukemia, left_out: tuple[str, ...]
) -> dict[str, tuple[float, list[AberrationRange]]]:
    """Aberrations that may be drawn: chance and ranges (weight, low, high) of each marker, those left out taken away.

    Parameters
    ----------
    left_out : a marker, or a marker with ` up` or ` down`: the direction of the shift that must not be drawn

    Raises
    ------
    SettingsError : an unknown kind, or too few kinds left for a patient
    """
    known = [kind for marker in leukemia.aberration for kind in (marker, f"{marker} up", f"{marker} down")]
    unknown = [kind for kind in left_out if kind not in known]
    if unknown:
        markers = ", ".join(leukemia.aberration)
        raise SettingsError(
            f"no aberration {unknown[0]!r}", where="left-out", hint=f"MARKER, 'MARKER up' or 'MARKER down' of {markers}"
        )
    result = {}
    for marker, entry in leukemia.aberration.items():
        ranges = [
            span
            for span in entry.range
            if marker not in left_out and f"{marker} {'up' if span[1] + span[2] > 0 else 'down'}" not in left_out
        ]
        result[marker] = (entry.chance if ranges else 0.0, ranges)
    least = max(leukemia.count[0], leukemia.hard_count)
    if sum(chance > 0 for chance, _ in result.values()) < least:
        raise SettingsError(f"a patient needs {least} aberrations", where="left-out", hint="leave fewer kinds out")
    return result


def draw_immunophenotype(
    profile: Profile, rng: np.random.Generator, *, hard: bool | None = None, left_out: tuple[str, ...] = ()
) -> Immunophenotype:
    """Draw a patient's immunophenotype.

    What a marker does comes from a stream of its own, so that two tubes of one patient mostly agree in the markers that
    both hold (one of the two may need another try to come to its number of aberrations).

    Parameters
    ----------
    hard : forces or forbids a case of few weak aberrations; `None` draws it
    left_out : kinds of aberration that must not occur, see `remaining_aberrations`
    """
    leukemia = profile.leukemia
    assert leukemia is not None
    possible = remaining_aberrations(leukemia, left_out)
    names = list(possible)
    streams = keyed_streams(rng, names)
    drawn_hard, has_mode, up = rng.random(3)
    start, spread = float(rng.choice(leukemia.start)), round(float(rng.uniform(*leukemia.spread)), 4)
    sd_factor = round(float(rng.uniform(*leukemia.sd_factor)), 4)
    mode_fraction, mode_shift = rng.uniform(*leukemia.bimodal_fraction), rng.uniform(*leukemia.bimodal_shift)
    is_hard = bool(drawn_hard < leukemia.hard_share) if hard is None else hard
    scale = leukemia.hard_scale if is_hard else 1.0
    shifts = {}
    for name, stream in zip(names, streams, strict=True):
        ranges = possible[name][1]
        which, where = stream.random(2)
        if ranges:
            edges = np.cumsum([span[0] for span in ranges])
            _, low, high = ranges[int(np.searchsorted(edges, which * edges[-1], side="right"))]
            shifts[name] = round((low + (high - low) * float(where)) * scale, 4)
    chances = np.array([chance for chance, _ in possible.values()])
    ranks = np.array([stream.random() for stream in streams])
    if is_hard:
        # As many as wanted, likelier ones first: the order of exponential races with rate = chance.
        times = np.array([stream.exponential() for stream in streams]) / np.maximum(chances, 1e-9)
        chosen = sorted(np.argsort(times)[: leukemia.hard_count].tolist())
    else:
        chosen, (least, most) = [], leukemia.count
        while not least <= len(chosen) <= most:
            chosen = np.flatnonzero([s.random() < c for s, c in zip(streams, chances, strict=True)]).tolist()
    shifts = {names[index]: shifts[names[index]] for index in chosen}
    bimodal = None
    if has_mode < leukemia.bimodal_share:
        marker = names[min(chosen, key=lambda index: ranks[index])]
        place = _level(profile, marker, start) + shifts[marker]
        amount = scale * float(mode_shift)
        room_up, room_down = leukemia.brightest - place, place - profile.defaults.negative[0]
        upwards = room_up > room_down if min(room_up, room_down) < amount else up < 0.5
        bimodal = Bimodal(
            marker=marker, fraction=round(float(mode_fraction), 4), shift=round(amount if upwards else -amount, 4)
        )
    return Immunophenotype(
        start=start, spread=spread, sd_factor=sd_factor, shifts=shifts, bimodal=bimodal, hard=is_hard
    )


def _level(profile: Profile, marker: str, point: float) -> float:
    """Normal log10 level of a marker at a point of the course."""
    assert profile.course is not None
    if marker not in profile.course.marker:
        return profile.defaults.negative[0]
    return float(np.interp(point, profile.course.knots, profile.course.marker[marker].mean))


def load_immunophenotype(path: Path, profile: Profile) -> Immunophenotype:
    """Immunophenotype from TOML or JSON; a truth file of an earlier simulation is accepted, too.

    Raises
    ------
    SettingsError : unreadable, unknown keys, an unknown marker, or none that the tube has
    """
    document: dict[str, Any]
    if path.suffix.lower() == ".json":
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"cannot be read: {error.strerror or error}", source=str(path)) from error
        except ValueError as error:
            raise SettingsError(f"is not JSON: {error}", source=str(path)) from error
    else:
        document = read_toml(path)
    if isinstance(document, dict) and "immunophenotype" in document:
        document = document["immunophenotype"]
    try:
        phenotype = Immunophenotype.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(step) for step in fault["loc"])
        raise SettingsError(
            fault["msg"], source=str(path), where=where, hint="keys: start, spread, sd_factor, shifts, bimodal, hard"
        ) from error
    try:
        for_tube(phenotype, profile)
    except SettingsError as error:
        raise SettingsError(error.message, source=str(path), where=error.where, hint=error.hint) from error
    return phenotype


def for_tube(phenotype: Immunophenotype, profile: Profile) -> Immunophenotype:
    """What a tube sees of an immunophenotype: aberrations in markers that it does not hold are left away.

    Raises
    ------
    SettingsError : a marker that neither the tube nor its specimen's document knows, or nothing left to see
    """
    markers = profile.markers
    known = {*markers, *specimen_markers(profile)}
    bimodal = phenotype.bimodal
    for marker in (*phenotype.shifts, *([bimodal.marker] if bimodal else [])):
        if marker not in known:
            raise SettingsError(
                f"{marker!r} is not a marker of tube {profile.profile.tube!r}",
                where="shifts",
                hint=f"one of: {', '.join(markers)}",
            )
    shifts = {marker: shift for marker, shift in phenotype.shifts.items() if marker in markers}
    if phenotype.shifts and not shifts:
        raise SettingsError(
            f"tube {profile.profile.tube!r} holds none of {', '.join(phenotype.shifts)}",
            where="shifts",
            hint=f"one of: {', '.join(markers)}",
        )
    return phenotype.model_copy(
        update={"shifts": shifts, "bimodal": bimodal if bimodal and bimodal.marker in markers else None}
    )


def draw_target_loss(leukemia: Leukemia, status: TargetStatus, rng: np.random.Generator) -> TargetLoss:
    """How far the therapy's target is lost: drawn for `dim` and `mixed`, certain for the others."""
    shift, lost = float(rng.uniform(*leukemia.target.dim)), float(rng.uniform(*leukemia.target.mixed_fraction))
    lost_fraction = {TargetStatus.NEGATIVE: 1.0, TargetStatus.MIXED: round(lost, 4)}.get(status, 0.0)
    return TargetLoss(
        status=status, shift=round(shift, 4) if status is TargetStatus.DIM else 0.0, lost_fraction=lost_fraction
    )


def add_blasts(
    model: CellModel,
    profile: Profile,
    phenotype: Immunophenotype,
    loss: TargetLoss,
    drift: Mapping[str, float],
    rng: np.random.Generator,
) -> CellModel:
    """Model with the blasts as one more population, last in order.

    They share the course's shifts of patient and batch, get their own small one, then the patient's aberrations and
    what has changed since the diagnosis (`drift`, log10).
    """
    assert profile.leukemia is not None
    assert profile.course is not None
    markers = profile.markers
    first = len(profile.population)
    shift, sd = model.mean[:, first].copy(), model.sd[:, first].copy()
    shift[: len(markers)] += [s.normal(0.0, profile.variation.patient_population) for s in keyed_streams(rng, markers)]
    sd[: len(markers)] *= [1.0 if c.viability or c.nuclear else phenotype.sd_factor for c in profile.channel]
    for marker, amount in (*phenotype.shifts.items(), *drift.items()):
        shift[markers.index(marker)] += amount
    target = markers.index(profile.leukemia.target.marker)
    shift[target] += loss.shift
    floor = np.append(np.full(len(markers), profile.defaults.negative[0]), [-np.inf, -np.inf])
    ceiling = np.append(np.full(len(markers), profile.leukemia.brightest), [np.inf, np.inf])
    modes = []
    if phenotype.bimodal is not None:
        row = markers.index(phenotype.bimodal.marker)
        modes.append(SecondMode(row=row, fraction=phenotype.bimodal.fraction, shift=phenotype.bimodal.shift))
    if loss.lost_fraction > 0:
        modes.append(SecondMode(row=target, fraction=loss.lost_fraction, shift=None))
    code = len(model.names)
    return replace(
        model,
        names=(*model.names, profile.leukemia.population),
        mean=np.column_stack([model.mean, shift]),
        sd=np.column_stack([model.sd, sd]),
        stage=np.column_stack([model.stage, [phenotype.start, phenotype.spread]]),
        floor=np.column_stack([model.floor, floor]),
        ceiling=np.column_stack([model.ceiling, ceiling]),
        second_modes={**model.second_modes, code: tuple(modes)},
    )
