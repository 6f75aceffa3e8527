"""T cells that carry an engineered receptor, the reagent that stains them, and counting beads.

Without the reagent's background and its sticky tail the limit of detection of such a tube comes out much too good; both
are constants of a patient, as are brightness and spread of the positives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flowmrd.simulation.profile import Beads, Car, Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class CarReagent:
    """The reagent in one sample: log10 mean and sd of positives and background, share and place of the sticky tail."""

    positive_mean: float
    positive_sd: float
    background_mean: float
    background_sd: float
    sticky_share: float
    sticky: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeadLot:
    """Beads of one file: share of its events, beads per µl of blood, blood volume in µl."""

    share: float
    per_ul: float
    blood_volume_ul: float


def draw_car_reagent(car: Car, *, patient: np.random.Generator, sample: np.random.Generator) -> CarReagent:
    """Patient's constants, with the background's small change from day to day."""
    return CarReagent(
        positive_mean=float(patient.uniform(*car.positive_mean)),
        positive_sd=float(patient.uniform(*car.positive_sd)),
        background_mean=float(patient.uniform(*car.background_mean)) + float(sample.normal(0.0, car.background_day_sd)),
        background_sd=car.background_sd,
        sticky_share=float(np.exp(patient.uniform(*np.log(car.sticky_share)))),
        sticky=car.sticky,
    )


def draw_bead_lot(beads: Beads, rng: np.random.Generator) -> BeadLot:
    """Share of events and concentration, drawn from the profile's ranges."""
    return BeadLot(
        share=float(rng.uniform(*beads.share)),
        per_ul=round(float(rng.uniform(*beads.per_ul)), 1),
        blood_volume_ul=beads.blood_volume_ul,
    )


def with_leukocytes(lot: BeadLot, *, per_ul: float, cells: float) -> BeadLot:
    """Give the beads the share that makes the live single cells `per_ul` in a microlitre of blood.

    Parameters
    ----------
    per_ul : nucleated cells per µl of blood
    cells : share of the events without beads that are live single cells
    """
    ratio = lot.per_ul / per_ul * cells
    return replace(lot, share=ratio / (1.0 + ratio))


def assign_car(
    profile: Profile,
    population: NDArray[np.intp],
    fraction: float,
    shares: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Make `fraction` of the T cells carriers: they take a memory or effector subset, in place.

    Parameters
    ----------
    population : (cells,) column of the cell model; changed for the carriers
    shares : share of every population, which weighs the subsets among themselves

    Returns
    -------
    (cells,) whether the cell carries the receptor
    """
    assert profile.car is not None
    names = profile.populations
    t_cells = np.isin(population, [names.index(name) for name in profile.car.t_cells])
    carrier = t_cells & (rng.random(len(population)) < fraction)
    subsets = np.array([names.index(name) for name in profile.car.carriers])
    cumulative = np.cumsum(shares[subsets])
    drawn = np.searchsorted(cumulative, rng.random(int(carrier.sum())) * cumulative[-1], side="right")
    population[carrier] = subsets[np.minimum(drawn, len(subsets) - 1)]
    return carrier


def stain_car(
    profile: Profile,
    signals: NDArray[np.float64],
    population: NDArray[np.intp],
    carrier: NDArray[np.bool_],
    reagent: CarReagent,
    rng: np.random.Generator,
) -> None:
    """Set the reagent's log10 signal of every cell, in place: background, sticky tail, positives."""
    assert profile.car is not None
    markers, names = profile.markers, profile.populations
    row = next(index for index, channel in enumerate(profile.channel) if channel.target == "car")
    cells = len(population)
    extra = np.array([profile.population[n].reagent_background if n in profile.population else 0.0 for n in names])
    level = reagent.background_mean + extra[population] + reagent.background_sd * rng.standard_normal(cells)
    t_cells = np.isin(population, [names.index(name) for name in profile.car.t_cells])
    sticky = t_cells & (rng.random(cells) < reagent.sticky_share)
    level[sticky] = reagent.sticky[0] + reagent.sticky[1] * rng.standard_normal(int(sticky.sum()))
    positive = reagent.positive_mean + reagent.positive_sd * rng.standard_normal(int(carrier.sum()))
    # A carrier has the background, too: the brighter of the two is what is seen.
    level[carrier] = np.maximum(positive, level[carrier])
    signals[row] = level
    for marker, amount in profile.car.carrier_shift.items():
        signals[markers.index(marker), carrier] += amount
