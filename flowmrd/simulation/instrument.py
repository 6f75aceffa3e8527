"""From antigens to detector values: spillover, autofluorescence, noise, gain, drift, clogs, range ends.

Signals are `(channels, events)` float64 in units of the digital scale. Spillover is applied coefficient by coefficient,
not by a matrix product, so that the bytes do not depend on a numerical library's threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowmrd.simulation.profile import Instrument, Profile

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detectors:
    """The analyser on the day of one sample.

    `spillover` (channels, channels): row = source, true coefficients. `gain`, `drift` one a channel: factor, and
    relative change from start to end of the run. `clog`: start and length of the window as shares of the run, factor on
    fluorescence and on scatter; `None` without one. `file_spillover`: what `$SPILLOVER` says.
    """

    spillover: Floats
    file_spillover: Floats
    gain: Floats
    drift: Floats
    clog: tuple[float, float, float, float] | None

    def __post_init__(self) -> None:
        for array in (self.spillover, self.file_spillover, self.gain, self.drift):
            array.flags.writeable = False


def draw_detectors(profile: Profile, *, batch: float, rng: np.random.Generator) -> Detectors:
    """Draw gains, drift, clog window, true spillover and the slightly wrong matrix of the file.

    Parameters
    ----------
    batch : strength of batch effects, 1 = well-run laboratory
    """
    settings, markers = profile.instrument, profile.markers
    count = len(markers)
    gain = 10.0 ** rng.normal(0.0, profile.variation.gain * batch, count)
    drift = rng.normal(0.0, settings.drift.sd, count)
    true, written = np.eye(count), np.eye(count)
    for source, row in profile.spillover.items():
        for target, share in row.items():
            i, j = markers.index(source), markers.index(target)
            true[i, j] = share * np.exp(rng.normal(0.0, settings.matrix.between_samples_sd))
            # The matrix is measured behind the gains, and not exactly.
            seen = true[i, j] * gain[j] / gain[i]
            written[i, j] = round(float(seen * (1.0 + rng.normal(0.0, settings.matrix.file_error_sd))), 6)
    has_clog, length = rng.random() < settings.clog.chance, rng.uniform(*settings.clog.length)
    window = (
        float(rng.uniform(0.0, 1.0 - length)),
        float(length),
        float(rng.uniform(*settings.clog.signal)),
        float(rng.uniform(*settings.clog.fsc)),
    )
    return Detectors(spillover=true, file_spillover=written, gain=gain, drift=drift, clog=window if has_clog else None)


def autofluorescence(profile: Profile, fsc: Floats, ssc: Floats, rng: np.random.Generator) -> Floats:
    """Autofluorescence in units, (channels, events), from linear FSC and SSC areas."""
    settings = profile.instrument.autofluorescence
    size = np.exp(settings.fsc_power * np.log(np.maximum(fsc, 1.0) / 10.0**settings.fsc))
    grain = np.exp(settings.ssc_power * np.log(np.maximum(ssc / 10.0**settings.ssc, 1.0)))
    cell = np.exp(np.log(10.0) * settings.cell_sd * rng.standard_normal(len(fsc)))
    base = np.array([channel.autofluorescence for channel in profile.channel])
    product: Floats = base[:, None] * (size * grain * cell)
    return product


def detect(
    settings: Instrument,
    detectors: Detectors,
    antigens: Floats,
    background: Floats,
    phase: Floats,
    rng: np.random.Generator,
) -> Floats:
    """Fluorescence as the detectors report it.

    Parameters
    ----------
    antigens, background : (channels, events) stain and autofluorescence in units
    phase : (events,) position in the run, 0 … 1

    Returns
    -------
    (channels, events) between the instrument's floor and the top of its range
    """
    values = antigens + background
    for source, target in np.argwhere(detectors.spillover - np.diag(np.diag(detectors.spillover))):
        values[target] += detectors.spillover[source, target] * antigens[source]
    noise = settings.noise
    factor = np.sqrt(noise.photon_units * np.maximum(values, 0.0) + noise.electronic_sd**2)
    # Three independent normals, their variances added: photons, electronics, and a share of the signal itself.
    spread = np.hypot(factor, noise.multiplicative_sd * values)
    values += spread * rng.standard_normal(values.shape)
    values *= detectors.gain[:, None] * (1.0 + detectors.drift[:, None] * phase)
    if detectors.clog is not None:
        start, length, signal, _ = detectors.clog
        values[:, (phase >= start) & (phase < start + length)] *= signal
    np.clip(values, settings.floor, settings.range - 1.0, out=values)
    return values


def scatter_channels(
    settings: Instrument,
    detectors: Detectors,
    pulses: Mapping[str, Floats],
    phase: Floats,
    rng: np.random.Generator,
) -> dict[str, Floats]:
    """Scatter as reported: noise, clog, range ends, for every pulse measure given (name → units)."""
    result = {}
    weak = np.zeros(len(phase), dtype=np.bool_)
    factor = 1.0
    if detectors.clog is not None:
        start, length, _, factor = detectors.clog
        weak = (phase >= start) & (phase < start + length)
    for name, pulse in pulses.items():
        values = pulse.copy()
        if not name.endswith("-W"):  # a weak beam does not shorten the pulse
            values += settings.scatter.electronic_sd * rng.standard_normal(len(values))
            values[weak] *= factor
        result[name] = np.clip(values, settings.scatter.floor, settings.range - 1.0)
    return result
