"""The forward model in its order: composition, signals, detectors, artefacts, time; one acquisition with its truth.

Every part draws from its own stream, so that the number of events does not change a patient, nor the level of blasts
the instrument. Events are made in blocks in acquisition order; class never decides order, time or precision.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import SettingsError
from flowmrd.fcs import Channel, ChannelKind, Spillover
from flowmrd.simulation.blood import (
    BeadLot,
    CarReagent,
    assign_car,
    draw_bead_lot,
    draw_car_reagent,
    stain_car,
    with_leukocytes,
)
from flowmrd.simulation.cells import (
    CellModel,
    build_cell_model,
    draw_composition,
    draw_signals,
    keyed_streams,
    resolve_scenario,
)
from flowmrd.simulation.instrument import Detectors, autofluorescence, detect, draw_detectors, scatter_channels
from flowmrd.simulation.marrow import (
    Immunophenotype,
    TargetLoss,
    TargetStatus,
    add_blasts,
    draw_immunophenotype,
    draw_target_loss,
    for_tube,
    remaining_aberrations,
)
from flowmrd.simulation.profile import LoadedProfile, Profile, load_profile

SIMULATOR_VERSION = "1.1.0"  # of the forward model's code; a change that moves values raises it

_BLOCK = 65536
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


class PhenotypeDraw(StrEnum):
    """How a patient's immunophenotype is drawn: any, one of few weak aberrations, or any but those."""

    RANDOM = "random"
    HARD = "hard"
    PLAIN = "plain"


class ChannelSet(StrEnum):
    """Which scatter measures the file holds: all, or FSC-A, FSC-H, SSC-A."""

    FULL = "full"
    COMPACT = "compact"


_SCATTER = {
    ChannelSet.FULL: ("FSC-A", "FSC-H", "FSC-W", "SSC-A", "SSC-H"),
    ChannelSet.COMPACT: ("FSC-A", "FSC-H", "SSC-A"),
}


class Kind(StrEnum):
    """What an event is."""

    CELL = "cell"
    DEBRIS = "debris"
    DEAD = "dead"
    DOUBLET = "doublet"
    BEAD = "bead"
    ANUCLEATE = "anucleate"


KINDS = tuple(Kind)


class _Stream(IntEnum):
    """Names of the random streams; values are part of the reproducibility contract."""

    PHENOTYPE = 1
    POPULATIONS = 2
    PATIENT_MARKERS = 3
    TARGET = 4
    CAR_PATIENT = 5
    BLAST_SHIFT = 6
    LEVEL = 7
    PHENOTYPE_DRIFT = 8
    COMPOSITION = 10
    SHARES = 11
    DETECTORS = 12
    EVENTS = 13
    BLASTS = 14
    REAGENTS = 15
    RUN = 16
    CAR_SAMPLE = 17
    LABORATORY = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What to simulate.

    Attributes
    ----------
    tube : id of a shipped profile
    events : events in the file
    blasts : expected blasts as a fraction (0–1) of nucleated live single cells, their number is a Poisson draw;
        `None` = drawn from the scenario's range, 0 where it has none
    scenario : composition, one of the profile's
    phenotype : immunophenotype of the blasts, or how to draw it
    left_out : kinds of aberration that a drawn immunophenotype must not have: a marker (`"CD58"`), or a marker and a
        direction (`"CD10 up"`, `"CD10 down"`)
    drift : log10 sd of what has changed in each marker of the blasts since the diagnosis
    cd19 : what directed therapy left of its target on the blasts
    batch : strength of batch effects; 1 = well-run laboratory, 2.5 = bad day
    lab : laboratory id; adds one constant shift a marker to all its files
    car : CAR+ fraction (0–1) of T cells
    beads : counting beads; `None` = as the profile says
    leukocytes_per_ul : nucleated cells per µl of blood, which sets the beads' share; `None` = drawn
    fmo : leave the CAR reagent out
    channels : scatter measures in the file
    patient_seed : fixes the patient's constants over visits; `None` = the seed
    date : day of acquisition, `None` = the profile's
    profile : TOML file laid over the tube's profile
    """

    tube: str = "ball-mrd-10c"
    events: int = 100_000
    blasts: float | None = None
    scenario: str = "normal"
    phenotype: Immunophenotype | PhenotypeDraw = PhenotypeDraw.RANDOM
    left_out: tuple[str, ...] = ()
    drift: float = 0.0
    cd19: TargetStatus = TargetStatus.POSITIVE
    batch: float = 1.0
    lab: str = ""
    car: float = 0.0
    beads: bool | None = None
    leukocytes_per_ul: float | None = None
    fmo: bool = False
    channels: ChannelSet = ChannelSet.FULL
    patient_seed: int | None = None
    date: dt.date | None = None
    profile: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labels:
    """Truth of each event, in file order.

    `kind` indexes `KINDS`; `source` and `partner` index `names` (-1 = none): the cell type that an event comes from,
    and the second cell of a doublet. `blast`, `car`: live single cells only. `maturation`: t (0 … 1) of live single
    cells of the maturation course, blasts included, else NaN; `stages` are the course's stages with their middle t.
    """

    names: tuple[str, ...]
    kind: NDArray[np.int8]
    source: NDArray[np.int16]
    partner: NDArray[np.int16]
    blast: NDArray[np.bool_]
    car: NDArray[np.bool_]
    maturation: NDArray[np.float32]
    stages: Mapping[str, float]

    def __post_init__(self) -> None:
        for array in (self.kind, self.source, self.partner, self.blast, self.car, self.maturation):
            array.flags.writeable = False

    @property
    def stage(self) -> NDArray[np.int16]:
        """Index into `stages`: a normal cell's own stage, the nearest one of a blast; -1 off the course."""
        names = tuple(self.stages)
        result = np.full(len(self.kind), -1, np.int16)
        if not names:
            return result
        own = np.array([names.index(name) if name in names else -1 for name in self.names], np.int16)
        middles = np.array([self.stages[name] for name in names])
        cells = np.flatnonzero(~np.isnan(self.maturation))
        found = own[self.source[cells]]
        point = self.maturation[cells][found < 0]
        found[found < 0] = np.abs(point[:, None] - middles[None, :]).argmin(axis=1)
        result[cells] = found
        return result

    @property
    def nucleated(self) -> NDArray[np.bool_]:
        """Live single nucleated cells: the denominator of the true MRD."""
        mask: NDArray[np.bool_] = self.kind == KINDS.index(Kind.CELL)
        return mask

    def is_kind(self, kind: Kind) -> NDArray[np.bool_]:
        """Events of one kind."""
        mask: NDArray[np.bool_] = self.kind == KINDS.index(kind)
        return mask

    def is_population(self, *names: str) -> NDArray[np.bool_]:
        """Live single cells of the named populations.

        Raises
        ------
        SettingsError : the tube has no such population
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise SettingsError(f"no population {unknown[0]!r}", hint=f"one of: {', '.join(self.names)}")
        mask: NDArray[np.bool_] = self.nucleated & np.isin(self.source, [self.names.index(name) for name in names])
        return mask


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulated:
    """One acquisition: uncompensated `values` (channels, events) float32, labels and truth.

    `spillover` is what the file will say, not quite the true one; `keywords` are the acquisition's own TEXT entries.
    """

    values: NDArray[np.float32]
    channels: tuple[Channel, ...]
    spillover: Spillover
    keywords: Mapping[str, str]
    labels: Labels
    truth: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        self.values.flags.writeable = False

    def channel(self, name: str) -> NDArray[np.float32]:
        """Values of the channel with this `$PnN` or `$PnS`.

        Raises
        ------
        SettingsError : there is none
        """
        for row, channel in enumerate(self.channels):
            if name in (channel.pnn, channel.pns):
                values: NDArray[np.float32] = self.values[row]
                return values
        known = ", ".join(channel.pns or channel.pnn for channel in self.channels)
        raise SettingsError(f"no channel {name!r}", hint=f"one of: {known}")

    def compensated(self, name: str) -> NDArray[np.float64]:
        """Values of one stained channel (`$PnN` or `$PnS`), compensated by the matrix that the file will carry.

        Raises
        ------
        SettingsError : there is no such stained channel
        """
        stained = self._stained
        for column, row in enumerate(stained):
            if name in {self.channels[row].pnn, self.channels[row].pns}:
                weights = np.linalg.inv(self.spillover.matrix)[:, column]
                return np.asarray(weights @ self.values[stained].astype(np.float64), np.float64)
        known = ", ".join(self.channels[row].pns for row in stained)
        raise SettingsError(f"no stained channel {name!r}", hint=f"one of: {known}")

    def all_compensated(self) -> NDArray[np.float32]:
        """All values, (channels, events), the stained ones compensated by the matrix that the file will carry."""
        values = self.values.copy()
        stained, inverse = self._stained, np.linalg.inv(self.spillover.matrix).T
        for start in range(0, values.shape[1], _BLOCK):
            block = slice(start, start + _BLOCK)
            values[stained, block] = inverse @ self.values[stained, block].astype(np.float64)
        return values

    @property
    def _stained(self) -> list[int]:
        return [row for row, channel in enumerate(self.channels) if channel.pns]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sample:
    """Everything drawn for one sample before its events."""

    profile: Profile
    parameters: Parameters
    model: CellModel
    shares: NDArray[np.float64]
    detectors: Detectors
    debris: float
    dead: float
    doublet: float
    anucleate: float
    level: float
    drift: Mapping[str, float]
    car: CarReagent | None
    beads: BeadLot | None
    phenotype: Immunophenotype | None
    loss: TargetLoss | None
    shifts: Mapping[str, NDArray[np.float64]]
    events_per_second: float
    start_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Assigned:
    """What each event is, before it is measured; `carrier`: its cell has the receptor (dead and double ones, too)."""

    kind: NDArray[np.int8]
    source: NDArray[np.int16]
    partner: NDArray[np.int16]
    blast: NDArray[np.bool_]
    carrier: NDArray[np.bool_]


def simulate_marrow(parameters: Parameters, seed: int) -> Simulated:
    """Simulate a tube with leukemia in its profile; see `simulate`.

    Raises
    ------
    SettingsError : the tube has no leukemia
    """
    if load_profile(parameters.tube, override=parameters.profile).profile.leukemia is None:
        raise SettingsError(f"tube {parameters.tube!r} is not a leukemia tube", where="tube")
    return simulate(parameters, seed)


def simulate(parameters: Parameters, seed: int) -> Simulated:
    """Simulate one acquisition.

    Same parameters and seed give the same values, whatever the number of threads.

    Parameters
    ----------
    parameters : what to simulate
    seed : ≥ 0; of the sample, and of the patient where `patient_seed` is `None`

    Raises
    ------
    SettingsError : a parameter out of range, or one that the tube does not have

    Examples
    --------
    >>> case = simulate(Parameters(events=2000, blasts=0.1), 7)
    >>> case.values.shape, int(case.labels.blast.sum()) == case.truth["mrd"]["blasts"]
    ((17, 2000), True)
    """
    loaded = check_parameters(parameters, seed)
    sample = _draw_sample(loaded.profile, parameters, seed)
    assigned = _assign(sample, seed)
    values, maturation = _measure(sample, assigned, seed)
    labels = _labels(sample, assigned, maturation)
    return Simulated(
        values=values,
        channels=_channels(sample),
        spillover=Spillover(
            channels=tuple(channel.pnn for channel in loaded.profile.channel),
            matrix=sample.detectors.file_spillover,
            source="simulation",
        ),
        keywords=_keywords(sample),
        labels=labels,
        truth=_truth(loaded, sample, labels, seed),
    )


def check_parameters(parameters: Parameters, seed: int) -> LoadedProfile:
    """Check parameters without simulating, and load the profile that they name.

    Raises
    ------
    SettingsError : a parameter out of range, or one that the tube does not have
    """
    loaded = load_profile(parameters.tube, override=parameters.profile)
    _check(parameters, loaded.profile, seed)
    resolve_scenario(loaded.profile, parameters.scenario)
    return loaded


def parameter_record(parameters: Parameters) -> dict[str, Any]:
    """Parameters as plain values for the truth; the profile's override is recorded by its digest instead."""
    return {
        entry.name: _plain(getattr(parameters, entry.name))
        for entry in fields(parameters)
        # What only some cases state is recorded where it is stated: the truth of the others stays as it was.
        if entry.name != "profile" and (entry.name != "leukocytes_per_ul" or parameters.leukocytes_per_ul is not None)
    }


def _stream(seed: int, part: _Stream) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, int(part)])))


def _check(parameters: Parameters, profile: Profile, seed: int) -> None:
    def refuse(where: str, expected: str, got: object) -> None:
        raise SettingsError(f"expected {expected}, got {got!r}", where=where)

    if not isinstance(seed, int) or seed < 0:
        refuse("seed", "a whole number ≥ 0", seed)
    if parameters.patient_seed is not None and parameters.patient_seed < 0:
        refuse("patient-seed", "a whole number ≥ 0", parameters.patient_seed)
    if parameters.events < 1:
        refuse("events", "a whole number ≥ 1", parameters.events)
    if parameters.blasts is not None and not 0.0 <= parameters.blasts <= 1.0:
        refuse("blasts", "a fraction between 0 and 1 (1e-4 is 0.01 %)", parameters.blasts)
    if not 0.0 <= parameters.car <= 1.0:
        refuse("car", "a fraction between 0 and 1 of T cells", parameters.car)
    if not 0.0 <= parameters.batch <= 10.0:
        refuse("batch", "a strength between 0 and 10", parameters.batch)
    if not 0.0 <= parameters.drift <= 1.0:
        refuse("drift", "a log10 sd between 0 and 1", parameters.drift)
    tube = profile.profile.tube
    if parameters.blasts and profile.leukemia is None:
        raise SettingsError(f"tube {tube!r} has no leukemia in its profile", where="blasts", hint="leave it at 0")
    if parameters.left_out and profile.leukemia is None:
        raise SettingsError(f"tube {tube!r} has no leukemia in its profile", where="left-out", hint="leave it empty")
    if profile.leukemia is not None:
        remaining_aberrations(profile.leukemia, parameters.left_out)
        if isinstance(parameters.phenotype, Immunophenotype):
            for_tube(parameters.phenotype, profile)
    if profile.car is None and (parameters.car > 0 or parameters.fmo):
        raise SettingsError(f"tube {tube!r} has no CAR reagent", where="car", hint="use a CAR-T tube")
    if parameters.leukocytes_per_ul is not None:
        if not 0.0 < parameters.leukocytes_per_ul <= 1e6:
            refuse("leukocytes_per_ul", "cells per µl of blood above 0", parameters.leukocytes_per_ul)
        if profile.beads is None:
            raise SettingsError(f"tube {tube!r} has no beads in its profile", where="leukocytes_per_ul")
    if parameters.beads and profile.beads is None:
        raise SettingsError(f"tube {tube!r} has no beads in its profile", where="beads")


def _draw_sample(profile: Profile, parameters: Parameters, seed: int) -> _Sample:
    patient = seed if parameters.patient_seed is None else parameters.patient_seed
    count, variation = len(profile.channel), profile.variation
    rng = _stream(seed, _Stream.REAGENTS)
    scenario = resolve_scenario(profile, parameters.scenario)
    level = parameters.blasts
    if level is None:
        level = float(_stream(seed, _Stream.LEVEL).uniform(*scenario.blasts)) if scenario.blasts else 0.0
    shifts = {
        "antibody": rng.normal(0.0, variation.antibody * parameters.batch, count),
        "patient": _per_marker(_stream(patient, _Stream.PATIENT_MARKERS), variation.patient_marker, profile),
        "laboratory": np.zeros(count),
        "scatter": rng.normal(0.0, 1.0, 2) * [variation.fsc * parameters.batch, variation.ssc * parameters.batch],
    }
    if parameters.lab:
        digest = hashlib.sha256(parameters.lab.encode()).digest()
        own = _stream(int.from_bytes(digest[:8], "big"), _Stream.LABORATORY)
        shifts["laboratory"] = _per_marker(own, variation.laboratory_marker, profile)
    model = build_cell_model(
        profile,
        patient=_stream(patient, _Stream.POPULATIONS),
        marker_shift=shifts["antibody"] + shifts["patient"] + shifts["laboratory"],
        scatter_shift=shifts["scatter"],
    )
    phenotype = loss = None
    drift: dict[str, float] = {}
    if profile.leukemia is not None:
        if isinstance(parameters.phenotype, Immunophenotype):
            phenotype = for_tube(parameters.phenotype, profile)
        else:
            hard = {PhenotypeDraw.HARD: True, PhenotypeDraw.PLAIN: False}.get(parameters.phenotype)
            phenotype = draw_immunophenotype(
                profile, _stream(patient, _Stream.PHENOTYPE), hard=hard, left_out=parameters.left_out
            )
        loss = draw_target_loss(profile.leukemia, parameters.cd19, _stream(patient, _Stream.TARGET))
        if parameters.drift > 0:
            changed = _per_marker(_stream(seed, _Stream.PHENOTYPE_DRIFT), parameters.drift, profile)
            drift = {marker: round(float(by), 4) for marker, by in zip(profile.markers, changed, strict=True)}
            drift = {c.marker: drift[c.marker] for c in profile.channel if not (c.viability or c.nuclear)}
        model = add_blasts(model, profile, phenotype, loss, drift, _stream(patient, _Stream.BLAST_SHIFT))
    shares = draw_composition(profile, scenario, _stream(seed, _Stream.COMPOSITION))
    rng = _stream(seed, _Stream.SHARES)
    debris, dead, doublet = (
        float(rng.uniform(*kind.share))
        for kind in (profile.artefacts.debris, profile.artefacts.dead, profile.artefacts.doublet)
    )
    anucleate = float(rng.uniform(*profile.artefacts.anucleate.share))
    beads = draw_bead_lot(profile.beads, rng) if profile.beads is not None else None
    if profile.beads is None or not (profile.beads.default if parameters.beads is None else parameters.beads):
        beads = None
    if beads is not None and parameters.leukocytes_per_ul is not None:
        cells = 1.0 - debris - dead - doublet - anucleate
        beads = with_leukocytes(beads, per_ul=parameters.leukocytes_per_ul, cells=cells)
    car = None
    if profile.car is not None:
        car = draw_car_reagent(
            profile.car, patient=_stream(patient, _Stream.CAR_PATIENT), sample=_stream(seed, _Stream.CAR_SAMPLE)
        )
    rng = _stream(seed, _Stream.RUN)
    first, last = profile.instrument.start_hour
    return _Sample(
        profile=profile,
        parameters=parameters,
        model=model,
        shares=shares,
        detectors=draw_detectors(profile, batch=parameters.batch, rng=_stream(seed, _Stream.DETECTORS)),
        debris=debris,
        dead=dead,
        doublet=doublet,
        anucleate=anucleate,
        level=level,
        drift=drift,
        car=car,
        beads=beads,
        phenotype=phenotype,
        loss=loss,
        shifts=shifts,
        events_per_second=float(rng.uniform(*profile.instrument.events_per_second)),
        start_seconds=int(rng.integers(first * 3600, last * 3600)),
    )


def _per_marker(rng: np.random.Generator, sd: float, profile: Profile) -> NDArray[np.float64]:
    return np.array([stream.normal(0.0, sd) for stream in keyed_streams(rng, profile.markers)])


def _assign(sample: _Sample, seed: int) -> _Assigned:
    """What each event is."""
    parameters, profile = sample.parameters, sample.profile
    rng = _stream(seed, _Stream.BLASTS)
    events = parameters.events
    bead = sample.beads.share if sample.beads else 0.0
    artefacts = np.array([sample.debris, sample.dead, sample.doublet, sample.anucleate])
    edges = np.cumsum(np.append(artefacts * (1.0 - bead), bead))
    # Position in the cumulated shares: the artefacts in this order, beads, and everything above them is a cell.
    kinds = (Kind.DEBRIS, Kind.DEAD, Kind.DOUBLET, Kind.ANUCLEATE, Kind.BEAD, Kind.CELL)
    order = np.array([KINDS.index(kind) for kind in kinds], np.int8)
    kind = order[np.searchsorted(edges, rng.random(events), side="right")]
    source = _draw_populations(sample.shares, events, rng)
    partner = np.full(events, -1, dtype=np.intp)
    doublet = np.flatnonzero(kind == KINDS.index(Kind.DOUBLET))
    second = _draw_populations(sample.shares, len(doublet), rng)
    carrier = np.zeros(events, dtype=np.bool_)
    if profile.car is not None:
        carrier = assign_car(profile, source, parameters.car, sample.shares, rng)
    blast = np.zeros(events, dtype=np.bool_)
    if profile.leukemia is not None:
        code = len(profile.populations)
        live = np.flatnonzero(kind == KINDS.index(Kind.CELL))
        number = min(int(rng.poisson(sample.level * len(live))), len(live))
        blast[rng.choice(live, number, replace=False, shuffle=False)] = True
        # Fragments, dead cells and doublets come from random cells, so from blasts in proportion.
        other = (kind != KINDS.index(Kind.CELL)) & (rng.random(events) < sample.level)
        source[blast | other] = code
        second[rng.random(len(doublet)) < sample.level] = code
    partner[doublet] = second
    no_cell = np.isin(kind, [KINDS.index(Kind.BEAD), KINDS.index(Kind.ANUCLEATE)])
    source[no_cell], carrier[no_cell] = -1, False
    return _Assigned(
        kind=kind, source=source.astype(np.int16), partner=partner.astype(np.int16), blast=blast, carrier=carrier
    )


def _labels(sample: _Sample, assigned: _Assigned, maturation: NDArray[np.float32]) -> Labels:
    course = sample.profile.course
    live = assigned.kind == KINDS.index(Kind.CELL)
    return Labels(
        names=sample.model.names,
        kind=assigned.kind,
        source=assigned.source,
        partner=assigned.partner,
        blast=assigned.blast,
        car=assigned.carrier & live,
        maturation=np.where(live, maturation, np.float32(np.nan)),
        stages={name: middle for name, (middle, _) in course.stage.items()} if course else {},
    )


def _draw_populations(shares: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    cumulative = np.cumsum(shares)
    drawn = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    codes: NDArray[np.intp] = np.minimum(drawn, len(shares) - 1)
    return codes


def _measure(sample: _Sample, assigned: _Assigned, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Values of all channels, and maturation of every event's cell."""
    parameters, settings = sample.parameters, sample.profile.instrument
    rng = _stream(seed, _Stream.EVENTS)
    events = parameters.events
    arrival = np.sort(rng.random(events))
    names = [channel.pnn for channel in _channels(sample)]
    values, maturation = np.empty((len(names), events), dtype=np.float32), np.empty(events, dtype=np.float32)
    duration = events / sample.events_per_second
    values[-1] = np.floor(arrival * duration / settings.time_step_seconds)
    scatter = _SCATTER[parameters.channels]
    stained = slice(len(scatter), len(names) - 1)
    for start in range(0, events, _BLOCK):
        block = slice(start, min(start + _BLOCK, events))
        phase = arrival[block]
        antigens, pulses, maturation[block] = _block(sample, assigned, block, rng)
        background = autofluorescence(sample.profile, pulses["FSC-A"], pulses["SSC-A"], rng)
        values[stained, block] = detect(settings, sample.detectors, antigens, background, phase, rng)
        wanted = {name: pulses[name] for name in scatter}
        for row, pulse in enumerate(scatter_channels(settings, sample.detectors, wanted, phase, rng).values()):
            values[row, block] = pulse
    return values, maturation


def _block(
    sample: _Sample, assigned: _Assigned, block: slice, rng: np.random.Generator
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """Stain (channels, events) and scatter pulses of a block of events, in units, before any detector; maturation."""
    profile, artefacts, scatter = sample.profile, sample.profile.artefacts, sample.profile.instrument.scatter
    kind, source = assigned.kind[block], assigned.source[block].astype(np.intp)
    bead = np.flatnonzero(kind == KINDS.index(Kind.BEAD))
    source[source < 0] = 0  # no cells: overwritten below
    stain, fsc, ssc, maturation = _cells(sample, source, assigned.carrier[block], rng)
    count = len(source)
    width = 10.0 ** (scatter.width_sd * rng.standard_normal(count))

    debris = np.flatnonzero(kind == KINDS.index(Kind.DEBRIS))
    stain[:, debris] *= rng.beta(*artefacts.debris.stain_beta, len(debris))
    fsc[debris] = 10.0 ** rng.normal(*artefacts.debris.fsc, len(debris))
    ssc[debris] = 10.0 ** rng.normal(*artefacts.debris.ssc, len(debris))

    dead = np.flatnonzero(kind == KINDS.index(Kind.DEAD))
    fsc[dead] *= rng.uniform(*artefacts.dead.fsc_factor, len(dead))
    for row, channel in enumerate(profile.channel):
        if channel.viability:
            stain[row, dead] = 10.0 ** rng.normal(*artefacts.dead.dye, len(dead))
            continue
        if channel.nuclear:
            stain[row, dead] *= rng.uniform(*artefacts.dead.nuclear_factor, len(dead))
        stain[row, dead] += 10.0 ** rng.normal(*artefacts.dead.background, len(dead))

    plain = np.flatnonzero(kind == KINDS.index(Kind.ANUCLEATE))
    stain[:, plain] = 10.0 ** rng.normal(*profile.defaults.negative, (len(stain), len(plain)))
    fsc[plain] = 10.0 ** rng.normal(*artefacts.anucleate.fsc, len(plain))
    ssc[plain] = 10.0 ** rng.normal(*artefacts.anucleate.ssc, len(plain))

    if sample.beads is not None and profile.beads is not None:
        stain[:, bead] = 10.0 ** rng.normal(*profile.beads.signal, (len(stain), len(bead)))
        fsc[bead] = 10.0 ** rng.normal(*profile.beads.fsc, len(bead))
        ssc[bead] = 10.0 ** rng.normal(*profile.beads.ssc, len(bead))

    height = {"FSC": fsc * scatter.height_of_area, "SSC": ssc * scatter.height_of_area}
    doublet = np.flatnonzero(kind == KINDS.index(Kind.DOUBLET))
    if len(doublet):
        # The second cell: areas add, the height stays that of the bigger pulse, the width grows.
        second = assigned.partner[block].astype(np.intp)[doublet]
        other, other_fsc, other_ssc, _ = _cells(sample, second, np.zeros(len(doublet), dtype=np.bool_), rng)
        stain[:, doublet] += other
        fsc[doublet] += other_fsc
        ssc[doublet] += other_ssc
        height["FSC"][doublet] = np.maximum(height["FSC"][doublet], other_fsc * scatter.height_of_area)
        height["SSC"][doublet] = np.maximum(height["SSC"][doublet], other_ssc * scatter.height_of_area)
        width[doublet] *= rng.uniform(*artefacts.doublet.width_factor, len(doublet))
    for pulse in height.values():
        pulse *= 10.0 ** (scatter.height_sd * rng.standard_normal(count))
    pulses = {
        "FSC-A": fsc,
        "FSC-H": height["FSC"],
        "FSC-W": width * profile.instrument.width_full_scale / scatter.height_of_area,
        "SSC-A": ssc,
        "SSC-H": height["SSC"],
    }
    return stain, pulses, maturation


def _cells(
    sample: _Sample, population: NDArray[np.intp], carrier: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    signals, maturation = draw_signals(sample.model, population, rng)
    if sample.car is not None:
        stain_car(sample.profile, signals, population, carrier, sample.car, rng)
    linear = np.exp(signals * np.log(10.0))
    if sample.parameters.fmo:
        for row, channel in enumerate(sample.profile.channel):
            if channel.target == "car":
                linear[row] = 0.0  # no reagent, so no background of the reagent either
    return linear[:-2], linear[-2], linear[-1], maturation


def _channels(sample: _Sample) -> tuple[Channel, ...]:
    settings = sample.profile.instrument
    ticks = int(sample.parameters.events / sample.events_per_second / settings.time_step_seconds) + 1
    scatter = [(name, "", ChannelKind.SCATTER, settings.range) for name in _SCATTER[sample.parameters.channels]]
    stained = [(entry.pnn, entry.marker, ChannelKind.FLUOR, settings.range) for entry in sample.profile.channel]
    time = ("Time", "", ChannelKind.TIME, max(settings.range, 1 << ticks.bit_length()))
    return tuple(
        Channel(index=index, pnn=pnn, pns=pns, kind=kind, range=float(limit))
        for index, (pnn, pns, kind, limit) in enumerate([*scatter, *stained, time])
    )


def _keywords(sample: _Sample) -> dict[str, str]:
    settings = sample.profile.instrument
    seconds = sample.parameters.events / sample.events_per_second
    day = sample.parameters.date or dt.date.fromisoformat(settings.date)
    begin = dt.datetime.combine(day, dt.time()) + dt.timedelta(seconds=sample.start_seconds)
    end = begin + dt.timedelta(seconds=seconds)
    volume = seconds * settings.microlitres_per_second * 1000.0
    scatter = [settings.scatter.voltage[name.split("-")[0]] for name in _SCATTER[sample.parameters.channels]]
    stained = [entry.voltage for entry in sample.profile.channel]
    voltages = {f"$P{number}V": str(value) for number, value in enumerate([*scatter, *stained], start=1)}
    return {
        "$CYT": settings.cytometer,
        "$DATE": f"{day.day:02d}-{_MONTHS[day.month - 1]}-{day.year:04d}",
        "$BTIM": begin.strftime("%H:%M:%S.00"),
        "$ETIM": f"{end:%H:%M:%S}.{end.microsecond // 10_000:02d}",
        "$TIMESTEP": f"{settings.time_step_seconds:g}",
        "$VOL": f"{round(volume):010d}",
        "TUBE NAME": sample.profile.profile.tube,
        **voltages,
    }


def _truth(loaded: LoadedProfile, sample: _Sample, labels: Labels, seed: int) -> dict[str, Any]:
    profile, parameters = sample.profile, sample.parameters
    markers, detectors = profile.markers, sample.detectors
    live = labels.nucleated
    counts = {
        kind.value: _named_counts(labels.names, labels.source[labels.is_kind(kind)])
        for kind in KINDS
        if kind not in {Kind.BEAD, Kind.ANUCLEATE}
    }
    cells = counts[Kind.CELL.value]
    groups = {group: sum(cells.get(name, 0) for name in split) for group, split in profile.group.items()}
    denominator, blasts, car = int(live.sum()), int(labels.blast.sum()), int(labels.car.sum())
    truth: dict[str, Any] = {
        "simulator_version": SIMULATOR_VERSION,
        "numpy_version": np.__version__,
        "seed": seed,
        "parameters": {**parameter_record(parameters), "blasts": sample.level},
        "profile": {
            "tube": profile.profile.tube,
            "version": profile.profile.version,
            "sha256": loaded.digest,
            "override": parameters.profile.name if parameters.profile else None,
        },
        "events": {kind.value: int(labels.is_kind(kind).sum()) for kind in KINDS},
        "mrd": {
            "blasts": blasts,
            "denominator": denominator,
            "fraction": blasts / denominator if denominator else None,
            "level": sample.level,
        },
        "groups": groups,
        "populations": counts,
        "composition": dict(zip(profile.populations, sample.shares.tolist(), strict=True)),
        "immunophenotype": sample.phenotype.model_dump() if sample.phenotype and sample.level > 0 else None,
        "phenotype_drift_log10": dict(sample.drift) if sample.level > 0 else None,
        "target_loss": None,
        "artefact_shares": {
            "debris": sample.debris,
            "dead": sample.dead,
            "doublet": sample.doublet,
            "anucleate": sample.anucleate,
        },
        "marker_shift_log10": {
            name: dict(zip(markers, sample.shifts[name].tolist(), strict=True))
            for name in ("antibody", "patient", "laboratory")
        },
        "scatter_shift_log10": dict(zip(("FSC", "SSC"), sample.shifts["scatter"].tolist(), strict=True)),
        "detector_gain": dict(zip(markers, detectors.gain.tolist(), strict=True)),
        "detector_drift": dict(zip(markers, detectors.drift.tolist(), strict=True)),
        "clog": None,
        "spillover_true": {"channels": list(markers), "matrix": detectors.spillover.tolist()},
        "events_per_second": sample.events_per_second,
    }
    if sample.loss is not None and sample.level > 0:
        loss = sample.loss
        truth["target_loss"] = {
            "status": loss.status.value,
            "shift": loss.shift,
            "lost_fraction": loss.lost_fraction,
        }
    if detectors.clog is not None:
        truth["clog"] = dict(zip(("start", "length", "signal", "scatter"), detectors.clog, strict=True))
    if sample.car is not None and profile.car is not None:
        t_cells = sum(cells.get(name, 0) for name in profile.car.t_cells)
        truth["car"] = {
            "positive": car,
            "t_cells": t_cells,
            "fraction": car / t_cells if t_cells else None,
            "positive_log10": [sample.car.positive_mean, sample.car.positive_sd],
            "background_log10": [sample.car.background_mean, sample.car.background_sd],
            "sticky_share": sample.car.sticky_share,
        }
    if sample.beads is not None:
        beads = int(labels.is_kind(Kind.BEAD).sum())
        lot = sample.beads
        factor = lot.per_ul / beads if beads else None
        truth["beads"] = {
            "events": beads,
            "per_ul": lot.per_ul,
            "beads_added": round(lot.per_ul * lot.blood_volume_ul),
            "blood_volume_ul": lot.blood_volume_ul,
            "cells_per_ul": {group: number * factor if factor else None for group, number in groups.items()},
            "car_per_ul": car * factor if factor and profile.car else None,
        }
    return truth


def _plain(value: object) -> object:
    if isinstance(value, Immunophenotype):
        return value.model_dump()
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    return value.isoformat() if isinstance(value, dt.date) else value


def _named_counts(names: tuple[str, ...], codes: NDArray[np.int16]) -> dict[str, int]:
    counts = np.bincount(codes.astype(np.intp), minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}
