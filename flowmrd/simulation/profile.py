"""A tube's profile: every number of the forward model, read from TOML and cross-checked once.

`profiles/instrument.toml` is the base, `profiles/<tube>.toml` lies over it, a user's file lies over both. Tables merge
key by key; lists replace lists. A tube may name a specimen document (`base`) between the first two: the cell types of
that specimen with all markers known for them, of which the tube takes those that it has a channel for. Nothing here
knows a marker or a population by name.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError

from flowmrd.errors import SettingsError

_BASE = "instrument"
_DOCUMENTS = (
    "instrument",
    "marrow",
    "demo-subject",
    "demo-clinical",
    "courses",
    "cohort",
)  # TOML files of the folder that are not tubes

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Pair = Annotated[tuple[float, float], Field(strict=False)]
FractionPair = Annotated[tuple[Fraction, Fraction], Field(strict=False)]
Floats = Annotated[tuple[float, ...], Field(strict=False)]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Identity(_Document):
    """Which tube, which version of its numbers, what specimen it is stained on, and which document describes that."""

    tube: str
    version: str
    specimen_type: str
    base: str = ""


class DetectorChannel(_Document):
    """One fluorescence channel: `marker` is `$PnS`, `pnn` `$PnN`, autofluorescence in units, voltage `$PnV`."""

    marker: str
    pnn: str
    autofluorescence: PositiveFloat
    voltage: int
    viability: bool = False  # a dye that enters dead cells
    nuclear: bool = False  # a dye that stains nuclei: all cells, but no anucleate events
    target: str = ""  # "car": the reagent whose background and positives the [car] table describes


class Scatter(_Document):
    """Pulse shape of a single cell, and `$PnV` of the two scatter detectors."""

    voltage: Mapping[str, int]
    height_of_area: PositiveFloat
    height_sd: float
    width_sd: float
    electronic_sd: float
    floor: float


class Noise(_Document):
    """Detector noise."""

    photon_units: float
    electronic_sd: float
    multiplicative_sd: float


class Autofluorescence(_Document):
    """How autofluorescence grows with a cell's scatter."""

    fsc: float
    fsc_power: float
    ssc: float
    ssc_power: float
    cell_sd: float


class Drift(_Document):
    """Slow change of the detectors over a run."""

    sd: float


class Clog(_Document):
    """A window of the run with weak signals."""

    chance: Fraction
    length: FractionPair
    signal: Pair
    fsc: Pair


class MatrixError(_Document):
    """How spillover varies between samples, and how far the file's matrix is from the true one."""

    between_samples_sd: float
    file_error_sd: float


class Instrument(_Document):
    """The analyser and its acquisition."""

    cytometer: str
    range: int
    floor: float
    time_step_seconds: PositiveFloat
    events_per_second: Pair
    microlitres_per_second: PositiveFloat
    date: str
    start_hour: Annotated[tuple[int, int], Field(strict=False)]
    width_full_scale: PositiveFloat
    scatter: Scatter
    noise: Noise
    autofluorescence: Autofluorescence
    drift: Drift
    clog: Clog
    matrix: MatrixError


class Debris(_Document):
    """Fragments."""

    share: FractionPair
    fsc: Pair
    ssc: Pair
    stain_beta: Pair


class Dead(_Document):
    """Dead cells."""

    share: FractionPair
    dye: Pair
    fsc_factor: Pair
    background: Pair
    nuclear_factor: Pair


class Anucleate(_Document):
    """Red cells, ghosts and platelets, in tubes whose nuclear dye tells them apart: no nucleus, no antigen."""

    share: FractionPair
    fsc: Pair
    ssc: Pair


class Doublet(_Document):
    """Two cells in one pulse."""

    share: FractionPair
    width_factor: Pair


class Artefacts(_Document):
    """Events that are not live single cells."""

    debris: Debris
    dead: Dead
    doublet: Doublet
    anucleate: Anucleate


class Variation(_Document):
    """Standard deviations between batches, patients, laboratories and cells (log10; composition log e)."""

    antibody: float
    gain: float
    fsc: float
    ssc: float
    patient_marker: float
    patient_population: float
    laboratory_marker: float
    cell: float
    cell_fsc: float
    composition: float


class Defaults(_Document):
    """What a population does not name."""

    negative: Pair
    fsc_sd: float
    ssc_sd: float
    viability: Pair | None = None
    nuclear: Pair | None = None


class Population(_Document):
    """Mean and sd (log10) of the markers and scatter of one cell type."""

    fsc: float
    ssc: float
    fsc_sd: float | None = None
    ssc_sd: float | None = None
    marker: Mapping[str, Pair]
    reagent_background: float = 0.0  # log10 added to the background of the CAR reagent


class CourseMarker(_Document):
    """One marker along the course."""

    mean: Floats
    sd: float


class Course(_Document):
    """A continuous maturation: means between knots, stages as normal draws of t."""

    knots: Floats
    fsc: Floats
    fsc_sd: float
    ssc: Floats
    ssc_sd: float
    marker: Mapping[str, CourseMarker]
    stage: Mapping[str, Pair]


class Scenario(_Document):
    """Shares of nucleated live single cells, by group; `blasts` is the level drawn where none is asked for."""

    base: str = ""
    share: Mapping[str, float]
    forced: Mapping[str, FractionPair] = {}
    dominant: Mapping[str, FractionPair] = {}
    split: Mapping[str, Mapping[str, float]] = {}
    blasts: FractionPair | None = None


class Aberration(_Document):
    """How often and how far blasts shift in one marker; ranges are (weight, low, high), log10."""

    chance: Fraction
    range: Annotated[tuple[Annotated[tuple[float, float, float], Field(strict=False)], ...], Field(strict=False)]


class TargetAntigen(_Document):
    """The antigen that directed therapy may remove from the blasts."""

    marker: str
    dim: Pair
    mixed_fraction: FractionPair


class Leukemia(_Document):
    """How a patient's immunophenotype is drawn."""

    population: str
    start: Floats
    spread: Pair
    sd_factor: Pair
    count: Annotated[tuple[int, int], Field(strict=False)]
    hard_share: Fraction
    hard_count: int
    hard_scale: float
    bimodal_share: Fraction
    bimodal_fraction: FractionPair
    bimodal_shift: Pair
    brightest: float  # log10: no antigen is denser than that, however it is shifted
    aberration: Mapping[str, Aberration]
    target: TargetAntigen


class Car(_Document):
    """Reagent for the receptor of engineered T cells: positives, background, sticky tail (log10)."""

    t_cells: tuple[str, ...] = Field(strict=False)
    carriers: tuple[str, ...] = Field(strict=False)
    positive_mean: Pair
    positive_sd: Pair
    background_mean: Pair
    background_sd: float
    background_day_sd: float
    sticky_share: FractionPair
    sticky: Pair
    carrier_shift: Mapping[str, float]


class Beads(_Document):
    """Counting beads; `per_ul` is the concentration in the blood of the tube."""

    default: bool
    share: FractionPair
    per_ul: Pair
    blood_volume_ul: float
    fsc: Pair
    ssc: Pair
    signal: Pair


class SetDesign(_Document):
    """What a labelled set is made of: scenarios with their weights, levels, and how the therapy's target is lost.

    `lost_share` of the positives have one of `lost_status`, in scenarios of `lost`; patients of the scenarios `treated`
    have had that therapy; `diagnosis` is the scenario of files at diagnosis.
    """

    negative: Mapping[str, float]
    positive: Mapping[str, float]
    levels: Floats
    lost: Mapping[str, float]
    lost_share: Fraction
    lost_status: Annotated[tuple[str, ...], Field(strict=False)]
    treated: Annotated[tuple[str, ...], Field(strict=False)]
    diagnosis: str


class Profile(_Document):
    """All numbers of one tube."""

    profile: Identity
    instrument: Instrument
    artefacts: Artefacts
    variation: Variation
    defaults: Defaults
    channel: Annotated[tuple[DetectorChannel, ...], Field(strict=False)]
    spillover: Mapping[str, Mapping[str, float]]
    population: Mapping[str, Population]
    group: Mapping[str, Mapping[str, float]]
    scenario: Mapping[str, Scenario]
    course: Course | None = None
    leukemia: Leukemia | None = None
    car: Car | None = None
    beads: Beads | None = None
    set: SetDesign | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """Markers in channel order."""
        return tuple(channel.marker for channel in self.channel)

    @property
    def populations(self) -> tuple[str, ...]:
        """Names of all cell populations: the fixed ones, then the stages of the course."""
        return (*self.population, *(self.course.stage if self.course else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedProfile:
    """A profile with the digest of its numbers, which goes into the truth."""

    profile: Profile
    digest: str


def tube_ids() -> tuple[str, ...]:
    """Ids of the tubes that a profile ships for, sorted."""
    names = (entry.name for entry in resources.files("flowmrd.simulation").joinpath("profiles").iterdir())
    return tuple(sorted(n[:-5] for n in names if n.endswith(".toml") and n[:-5] not in _DOCUMENTS))


def packaged_document(name: str) -> str:
    """Text of a TOML file of the profiles folder.

    Raises
    ------
    SettingsError : no such document ships
    """
    entry = resources.files("flowmrd.simulation").joinpath("profiles").joinpath(f"{name}.toml")
    if not entry.is_file():
        raise SettingsError(f"no simulator document {name!r}", hint=f"one of: {', '.join(tube_ids())}")
    return entry.read_text(encoding="utf-8")


def load_instrument() -> Instrument:
    """Numbers of the shipped analyser."""
    return Instrument.model_validate(tomllib.loads(packaged_document(_BASE))["instrument"])


def specimen_markers(profile: Profile) -> tuple[str, ...]:
    """Markers that leukemia can change in the specimen of a tube, whether the tube holds them or not."""
    if not profile.profile.base:
        return ()
    return tuple(tomllib.loads(packaged_document(profile.profile.base))["leukemia"]["aberration"])


def read_toml(path: Path) -> dict[str, Any]:
    """TOML file as a mapping.

    Raises
    ------
    SettingsError : the file cannot be read or is not TOML
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot be read: {error.strerror or error}", source=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"is not TOML: {error}", source=str(path)) from error


def load_profile(tube: str, *, override: Path | None = None) -> LoadedProfile:
    """Numbers of a tube, with a user's file laid over them.

    Parameters
    ----------
    tube : id of a shipped profile
    override : TOML file with the keys to change; unknown keys are errors

    Raises
    ------
    SettingsError : unknown tube, unreadable override, or one faulty value
    ExceptionGroup : several faulty values
    """
    if tube not in tube_ids():
        raise SettingsError(f"unknown tube {tube!r}", where="tube", hint=f"one of: {', '.join(tube_ids())}")
    own, source = tomllib.loads(packaged_document(tube)), f"{tube}.toml"
    if override is not None:
        own, source = _merged(own, read_toml(override)), str(override)
    document = tomllib.loads(packaged_document(_BASE))
    specimen = own["profile"].get("base")
    if specimen:
        channels = own.get("channel", [])
        markers = (
            {row.get("marker") for row in channels if isinstance(row, dict)} if isinstance(channels, list) else set()
        )
        document = _merged(document, _of_markers(tomllib.loads(packaged_document(specimen)), markers))
    document = _merged(document, own)
    try:
        profile = Profile.model_validate(document)
    except ValidationError as error:
        faults = [(".".join(str(step) for step in fault["loc"]), fault["msg"]) for fault in error.errors()]
    else:
        faults = list(_cross_check(profile))
        if not faults:
            canonical = json.dumps(document, sort_keys=True, ensure_ascii=True)
            return LoadedProfile(profile=profile, digest=hashlib.sha256(canonical.encode()).hexdigest())
    errors = [SettingsError(message, source=source, where=where) for where, message in faults]
    if len(errors) == 1:
        raise errors[0]
    raise ExceptionGroup(f"{source}: {len(errors)} faults", errors)


def _of_markers(specimen: dict[str, Any], markers: set[Any]) -> dict[str, Any]:
    """Specimen document with these markers only."""

    def kept(table: Mapping[str, Any]) -> dict[str, Any]:
        return {marker: value for marker, value in table.items() if marker in markers}

    result = {**specimen, "course": {**specimen["course"], "marker": kept(specimen["course"]["marker"])}}
    result["population"] = {
        name: {**population, "marker": kept(population["marker"])}
        for name, population in specimen["population"].items()
    }
    result["leukemia"] = {**specimen["leukemia"], "aberration": kept(specimen["leukemia"]["aberration"])}
    return result


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _cross_check(profile: Profile) -> Iterator[tuple[str, str]]:
    markers, populations = set(profile.markers), set(profile.populations)
    if len(markers) != len(profile.channel) or len({c.pnn for c in profile.channel}) != len(profile.channel):
        yield "channel", "each marker and each pnn must occur once"
    for source, row in profile.spillover.items():
        for marker in (source, *row):
            if marker not in markers:
                yield f"spillover.{source}", f"{marker!r} is not a marker of the tube"
    for name, population in profile.population.items():
        for marker in population.marker:
            if marker not in markers:
                yield f"population.{name}", f"{marker!r} is not a marker of the tube"
    if profile.course:
        lengths = {len(profile.course.fsc), len(profile.course.ssc), len(profile.course.knots)}
        lengths |= {len(entry.mean) for entry in profile.course.marker.values()}
        if len(lengths) != 1 or list(profile.course.knots) != sorted(profile.course.knots):
            yield "course", "knots must rise and every row must have one value a knot"
        for marker in profile.course.marker:
            if marker not in markers:
                yield "course.marker", f"{marker!r} is not a marker of the tube"
    for group, split in profile.group.items():
        for name in split:
            if name not in populations:
                yield f"group.{group}", f"{name!r} is not a population"
    for name, scenario in profile.scenario.items():
        if scenario.base and (scenario.base not in profile.scenario or profile.scenario[scenario.base].base):
            yield f"scenario.{name}", f"base {scenario.base!r} must be a scenario without a base"
        if scenario.blasts and profile.leukemia is None:
            yield f"scenario.{name}", "blasts need leukemia in the profile"
        for group in (*scenario.share, *scenario.forced, *scenario.dominant, *scenario.split):
            if group not in profile.group:
                yield f"scenario.{name}", f"{group!r} is not a group"
    if profile.leukemia:
        if profile.course is None:
            yield "leukemia", "needs a course to start from"
        for marker in (*profile.leukemia.aberration, profile.leukemia.target.marker):
            if marker not in markers:
                yield "leukemia", f"{marker!r} is not a marker of the tube"
    if profile.set:
        design = profile.set
        for name in (*design.negative, *design.positive, *design.lost, *design.treated, design.diagnosis):
            if name not in profile.scenario:
                yield "set", f"{name!r} is not a scenario"
    if profile.car:
        for name in (*profile.car.t_cells, *profile.car.carriers):
            if name not in populations:
                yield "car", f"{name!r} is not a population"
        if sum(channel.target == "car" for channel in profile.channel) != 1:
            yield "car", 'exactly one channel must have target = "car"'
