"""Cells before any instrument: what a sample is made of, and the true log10 signal of every cell.

Rows are markers in channel order, then FSC and SSC; columns are cells. Populations of a course are drawn at a
maturation point t and interpolated between the knots, so that stages merge instead of being separate clouds.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import SettingsError
from flowmrd.simulation.profile import Profile, Scenario

SCATTER_ROWS = 2  # FSC and SSC, the last two rows of every signal matrix

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondMode:
    """A part of a population whose one marker sits elsewhere: shifted by log10, or negative when `shift` is `None`."""

    row: int
    fraction: float
    shift: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CellModel:
    """Means and spreads of every population of one sample, all shifts of patient and batch included.

    `mean`, `sd` (rows, populations): for a population of the course `mean` is the shift to add to the interpolated
    course. `stage` (2, populations): mean and sd of t, NaN off the course. `floor`, `ceiling` (rows, populations):
    limits of a mean of the course, after all shifts.
    """

    names: tuple[str, ...]
    mean: Floats
    sd: Floats
    stage: Floats
    knots: Floats
    course: Floats
    floor: Floats
    ceiling: Floats
    negative: tuple[float, float]
    cell_factor: Floats
    second_modes: Mapping[int, tuple[SecondMode, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for array in (
            self.mean,
            self.sd,
            self.stage,
            self.knots,
            self.course,
            self.floor,
            self.ceiling,
            self.cell_factor,
        ):
            array.flags.writeable = False


def keyed_streams(rng: np.random.Generator, names: Sequence[str]) -> list[np.random.Generator]:
    """One stream a name, from one draw of `rng`: what a marker gets does not depend on the tube's other markers."""
    root = int(rng.integers(2**63))
    return [np.random.Generator(np.random.PCG64([root, zlib.crc32(name.encode())])) for name in names]


def resolve_scenario(profile: Profile, name: str) -> Scenario:
    """Scenario with its base filled in.

    Raises
    ------
    SettingsError : the tube has no such scenario
    """
    if name not in profile.scenario:
        known = ", ".join(profile.scenario)
        raise SettingsError(
            f"tube {profile.profile.tube!r} has no scenario {name!r}", where="scenario", hint=f"one of: {known}"
        )
    scenario = profile.scenario[name]
    if not scenario.base:
        return scenario
    base = profile.scenario[scenario.base]
    return Scenario(
        share={**base.share, **scenario.share},
        forced={**base.forced, **scenario.forced},
        dominant={**base.dominant, **scenario.dominant},
        split={**base.split, **scenario.split},
        blasts=scenario.blasts or base.blasts,
    )


def draw_composition(profile: Profile, scenario: Scenario, rng: np.random.Generator) -> Floats:
    """Share of each population (order of `profile.populations`) among nucleated live single cells, before blasts.

    Each share is the scenario's, times a log-normal factor, normalised; then forced groups are brought to a share drawn
    from their range and the others give way.
    """
    names = profile.populations
    shares = np.zeros(len(names))
    members: dict[str, NDArray[np.intp]] = {}
    for group, split in profile.group.items():
        share = scenario.share.get(group, 0.0)
        split = scenario.split.get(group, split)
        total = sum(split.values())
        index = np.array([names.index(name) for name in split], dtype=np.intp)
        members[group] = index
        # A forced group needs a relative share inside the group only; its size is set below.
        weight = (share or float(group in scenario.forced)) / total
        shares[index] += weight * np.array(list(split.values()))
    shares *= np.exp(rng.normal(0.0, profile.variation.composition, len(names)))
    forced = np.zeros(len(names), dtype=np.bool_)
    wanted: dict[str, float] = {}
    for group, (low, high) in scenario.forced.items():
        wanted[group] = float(rng.uniform(low, high))
        forced[members[group]] = True
    for group, (low, high) in scenario.dominant.items():
        index = members[group]
        one = int(rng.integers(len(index)))
        part, total = rng.uniform(low, high), shares[index].sum()
        others = np.delete(index, one)
        shares[others] *= (1.0 - part) * total / shares[others].sum()
        shares[index[one]] = part * total
    for group, share in wanted.items():
        index = members[group]
        shares[index] *= share / shares[index].sum()
    shares[~forced] *= (1.0 - sum(wanted.values())) / shares[~forced].sum()
    return shares


def build_cell_model(
    profile: Profile,
    *,
    patient: np.random.Generator,
    marker_shift: Floats,
    scatter_shift: Floats,
) -> CellModel:
    """Populations of the profile with the shifts of this sample.

    Parameters
    ----------
    patient : stream of the patient's constants; gives each population (the course counts as one) its own small shift
    marker_shift : log10, one a channel: reagents, patient and laboratory together
    scatter_shift : log10, FSC and SSC
    """
    markers, names = profile.markers, profile.populations
    rows = len(markers) + SCATTER_ROWS
    shift = np.concatenate([marker_shift, scatter_shift])
    mean, sd = np.empty((rows, len(names))), np.empty((rows, len(names)))
    stage = np.full((2, len(names)), np.nan)
    lone, lone_sd = _background(profile)
    own = np.array(
        [
            stream.normal(0.0, profile.variation.patient_population, len(profile.population) + 1)
            for stream in keyed_streams(patient, markers)
        ]
    )
    for column, (name, population) in enumerate(profile.population.items()):
        mean[:, column], sd[:, column] = lone, lone_sd
        for marker, (value, width) in population.marker.items():
            row = markers.index(marker)
            mean[row, column], sd[row, column] = value, width
        mean[-2:, column] = population.fsc, population.ssc
        sd[-2:, column] = (
            profile.defaults.fsc_sd if population.fsc_sd is None else population.fsc_sd,
            profile.defaults.ssc_sd if population.ssc_sd is None else population.ssc_sd,
        )
        mean[: len(markers), column] += own[:, column]
        mean[:, column] += shift
        assert names[column] == name
    knots, course = np.zeros(1), np.zeros((rows, 1))
    if profile.course is not None:
        knots = np.array(profile.course.knots)
        course = np.repeat(lone[:, None], len(knots), axis=1)
        course_sd = lone_sd.copy()
        for marker, entry in profile.course.marker.items():
            row = markers.index(marker)
            course[row], course_sd[row] = entry.mean, entry.sd
        course[-2:] = profile.course.fsc, profile.course.ssc
        course_sd[-2:] = profile.course.fsc_sd, profile.course.ssc_sd
        whole = np.append(own[:, -1], [0.0, 0.0])
        for column, point in enumerate(profile.course.stage.values(), start=len(profile.population)):
            mean[:, column], sd[:, column], stage[:, column] = shift + whole, course_sd, point
    # One factor on all antigens of a cell, part of it on FSC; dyes do not follow it.
    factor = np.array(
        [0.0 if c.viability or c.nuclear else profile.variation.cell for c in profile.channel] + [0.0, 0.0]
    )
    factor[-2] = profile.variation.cell * profile.variation.cell_fsc
    return CellModel(
        names=names,
        mean=mean,
        sd=sd,
        stage=stage,
        knots=knots,
        course=course,
        floor=np.full((rows, len(names)), -np.inf),
        ceiling=np.full((rows, len(names)), np.inf),
        negative=profile.defaults.negative,
        cell_factor=factor,
    )


def draw_signals(model: CellModel, population: NDArray[np.intp], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """True log10 signal of each cell, and its maturation.

    Parameters
    ----------
    population : (cells,) column of `model` for each cell

    Returns
    -------
    (rows, cells) : markers in channel order, then FSC and SSC
    (cells,) : maturation t (0 … 1), NaN off the course
    """
    rows, cells = model.mean.shape[0], len(population)
    means = model.mean[:, population]
    maturation = np.full(cells, np.nan)
    on_course = np.flatnonzero(~np.isnan(model.stage[0, population]))
    if len(on_course):
        codes = population[on_course]
        point = model.stage[0, codes] + model.stage[1, codes] * rng.standard_normal(len(on_course))
        # Reflected at the ends, so that no cells pile up at exactly 0 or 1.
        point = np.clip(1.0 - np.abs(1.0 - np.abs(point)), 0.0, 1.0)
        maturation[on_course] = point
        for row in range(rows):
            means[row, on_course] += np.interp(point, model.knots, model.course[row])
    absent: list[tuple[int, NDArray[np.intp]]] = []
    for code, modes in model.second_modes.items():
        index = np.flatnonzero(population == code)
        for mode in modes:
            hit = index[rng.random(len(index)) < mode.fraction]
            if mode.shift is None:
                absent.append((mode.row, hit))
            else:
                means[mode.row, hit] += mode.shift
    if len(on_course):
        means[:, on_course] = np.clip(means[:, on_course], model.floor[:, codes], model.ceiling[:, codes])
    signals = rng.standard_normal((rows, cells))
    signals *= model.sd[:, population]
    signals += means
    for row, hit in absent:
        level, width = model.negative
        signals[row, hit] = level + width * rng.standard_normal(len(hit))
    signals += model.cell_factor[:, None] * rng.standard_normal(cells)
    return signals, maturation


def _background(profile: Profile) -> tuple[Floats, Floats]:
    level, width = profile.defaults.negative
    mean, sd = np.full(len(profile.channel) + SCATTER_ROWS, level), np.full(len(profile.channel) + SCATTER_ROWS, width)
    for row, channel in enumerate(profile.channel):
        if channel.viability and profile.defaults.viability is not None:
            mean[row], sd[row] = profile.defaults.viability
        if channel.nuclear and profile.defaults.nuclear is not None:
            mean[row], sd[row] = profile.defaults.nuclear
    return mean, sd
