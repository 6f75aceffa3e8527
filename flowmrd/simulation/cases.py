"""Cases drawn into memory: events, labels and truth without a file, for development that needs hundreds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmrd.fcs import Spillover
from flowmrd.simulation.acquisition import ChannelSet, Labels, Parameters, PhenotypeDraw, simulate
from flowmrd.simulation.marrow import Immunophenotype, TargetStatus


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One simulated acquisition in memory.

    Attributes
    ----------
    values : (channels, events) float32, units of the digital scale, Time in ticks
    names : name of each row: the marker of a stained channel, else `$PnN` (FSC-A …, Time)
    pnn : `$PnN` of each row
    spillover : matrix that the file would carry; its channels are `$PnN`
    compensated : whether `values` are compensated by that matrix
    labels : truth of each event
    truth : all drawn parameters and counts
    """

    values: NDArray[np.float32]
    names: tuple[str, ...]
    pnn: tuple[str, ...]
    spillover: Spillover
    compensated: bool
    labels: Labels
    truth: Mapping[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        self.values.flags.writeable = False

    @property
    def blast(self) -> NDArray[np.bool_]:
        """Live single blasts, (events,)."""
        return self.labels.blast


def simulate_case(
    *,
    seed: int,
    tube: str = "ball-mrd-10c",
    scenario: str = "normal",
    level: float | None = None,
    events: int = 100_000,
    strength: float = 1.0,
    laboratory: str = "",
    hard: bool | None = None,
    cd19: TargetStatus | str = TargetStatus.POSITIVE,
    left_out: Sequence[str] = (),
    drift: float = 0.0,
    phenotype: Immunophenotype | None = None,
    patient_seed: int | None = None,
    compensated: bool = True,
    channels: ChannelSet | str = ChannelSet.FULL,
    profile: Path | None = None,
) -> Case:
    """Draw one case into memory; same arguments, same values.

    Parameters
    ----------
    seed : ≥ 0; of the sample, and of the patient where `patient_seed` is `None`
    tube : id of a shipped profile
    scenario : composition, one of the profile's
    level : expected blasts as a fraction (0–1) of nucleated live single cells, their number is a Poisson draw; `None` =
        drawn from the scenario's range (`diagnosis`), 0 where it has none
    events : events of the acquisition, artefacts included
    strength : of batch effects; 1 = well-run laboratory, 2.5 = bad day
    laboratory : laboratory id; one constant shift a marker
    hard : only, or no, immunophenotypes of two weak aberrations; `None` = a fifth of patients
    cd19 : positive, dim, negative or mixed
    left_out : kinds of aberration not to draw: `"CD58"`, or with a direction `"CD10 up"`
    drift : log10 sd of what has changed in each marker of the blasts since the diagnosis
    phenotype : a given immunophenotype instead of a drawn one
    patient_seed : the same for a patient's diagnosis and follow-ups: they share immunophenotype and marker shifts
    compensated : compensate the stained channels by the matrix of the file, else detector values as acquired
    channels : `full` or `compact` scatter
    profile : TOML file laid over the tube's numbers

    Raises
    ------
    SettingsError : an argument out of range, or one that the tube does not have

    Examples
    --------
    >>> case = simulate_case(seed=7, level=1e-2, events=2000)
    >>> case.values.shape, int(case.blast.sum()) == case.truth["mrd"]["blasts"]
    ((17, 2000), True)
    """
    draw = {None: PhenotypeDraw.RANDOM, True: PhenotypeDraw.HARD, False: PhenotypeDraw.PLAIN}[hard]
    simulated = simulate(
        Parameters(
            tube=tube,
            events=events,
            blasts=level,
            scenario=scenario,
            phenotype=draw if phenotype is None else phenotype,
            left_out=tuple(left_out),
            drift=drift,
            cd19=TargetStatus(cd19),
            batch=strength,
            lab=laboratory,
            channels=ChannelSet(channels),
            patient_seed=patient_seed,
            profile=profile,
        ),
        seed,
    )
    return Case(
        values=simulated.all_compensated() if compensated else simulated.values,
        names=tuple(channel.pns or channel.pnn for channel in simulated.channels),
        pnn=tuple(channel.pnn for channel in simulated.channels),
        spillover=simulated.spillover,
        compensated=compensated,
        labels=simulated.labels,
        truth=simulated.truth,
    )
