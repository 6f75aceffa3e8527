"""A large synthetic tube for the benchmarks: 16 channels, 12 populations, doublets, margins, spillover, a planted clog.

The populations are well separated log-normals: speeds carry over to real files, accuracies do not.

usage: python -m tests.benchmarks.bench_events FOLDER EVENTS, in the repository's root
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flowmrd.fcs import Channel, ChannelKind, Spillover, write_fcs

SCATTER = ("FSC-A", "FSC-H", "FSC-W", "SSC-A", "SSC-H")
STAINS = {
    "FITC-A": "CD58",
    "PE-A": "CD10",
    "PerCP-Cy5-5-A": "CD34",
    "PE-Cy7-A": "CD19",
    "APC-A": "CD38",
    "APC-R700-A": "CD66c",
    "APC-H7-A": "CD20",
    "BV421-A": "CD81",
    "V500-C-A": "CD45",
    "BV605-A": "CD3",
}
RANGE = 262144
CHUNK = 250_000
# share, FSC, SSC, then log10 of each stain in the order above
POPULATIONS: tuple[tuple[float, float, float, tuple[float, ...]], ...] = (
    (0.540, 95e3, 130e3, (2.6, 3.0, 2.0, 2.0, 2.3, 3.9, 2.0, 2.6, 4.0, 2.0)),  # granulocytes
    (0.060, 105e3, 62e3, (3.5, 2.0, 2.0, 2.1, 3.6, 2.6, 2.1, 3.4, 4.4, 2.0)),  # monocytes
    (0.200, 62e3, 24e3, (3.0, 2.0, 2.0, 2.0, 2.9, 2.0, 2.0, 3.3, 4.7, 4.2)),  # T cells
    (0.040, 65e3, 27e3, (3.0, 2.0, 2.0, 2.0, 3.5, 2.0, 2.0, 3.2, 4.7, 2.0)),  # NK cells
    (0.060, 40e3, 16e3, (2.7, 2.0, 2.0, 2.0, 2.2, 2.0, 2.0, 2.4, 2.3, 2.0)),  # erythroid
    (0.040, 14e3, 9e3, (2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.4, 2.0)),  # debris
    (0.032, 60e3, 23e3, (2.6, 2.0, 2.0, 4.0, 2.7, 2.0, 4.4, 3.6, 4.6, 2.0)),  # mature B
    (0.002, 58e3, 20e3, (2.9, 4.3, 3.9, 3.6, 4.3, 2.0, 2.1, 4.3, 3.4, 2.0)),  # early hematogones
    (0.006, 59e3, 21e3, (2.7, 3.8, 2.0, 3.8, 4.3, 2.0, 3.4, 4.2, 4.0, 2.0)),  # late hematogones
    (0.001, 85e3, 35e3, (3.0, 2.0, 2.0, 3.4, 4.9, 2.0, 2.0, 3.6, 3.8, 2.0)),  # plasma cells
    (0.004, 80e3, 30e3, (3.4, 2.0, 4.0, 2.0, 3.8, 2.0, 2.0, 3.8, 3.8, 2.0)),  # other CD34+
    (1e-4, 66e3, 22e3, (3.9, 4.8, 4.2, 3.9, 3.0, 3.3, 2.2, 3.1, 3.1, 2.0)),  # blasts
)


def spillover() -> Spillover:
    """Neighbouring detectors share 2 to 22 %, half of the others up to 2 %."""
    rng = np.random.default_rng(7)
    k = len(STAINS)
    distance = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    weak = np.where(rng.random((k, k)) < 0.5, rng.uniform(0.0, 0.02, (k, k)), 0.0)
    matrix: NDArray[np.float64] = np.where(distance == 1, rng.uniform(0.02, 0.22, (k, k)), weak).round(5)
    np.fill_diagonal(matrix, 1.0)
    return Spillover(channels=tuple(STAINS), matrix=matrix, source="bench")


def channels() -> tuple[Channel, ...]:
    """Five scatter channels, ten stains, time."""
    names = (*SCATTER, *STAINS, "Time")
    kinds = [ChannelKind.SCATTER] * len(SCATTER) + [ChannelKind.FLUOR] * len(STAINS) + [ChannelKind.TIME]
    return tuple(
        Channel(index=i, pnn=name, pns=STAINS.get(name, ""), kind=kind, range=float(RANGE))
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    )


def draw_events(count: int, *, seed: int = 1) -> NDArray[np.float32]:
    """Values as stored, (16, count), in acquisition order: 15,000 events a second, $TIMESTEP 0.01."""
    rng = np.random.default_rng(seed)
    shares = np.array([row[0] for row in POPULATIONS])
    forward = np.array([row[1] for row in POPULATIONS])
    side = np.array([row[2] for row in POPULATIONS])
    level = np.array([row[3] for row in POPULATIONS])
    matrix = spillover().matrix
    out = np.empty((16, count), np.float32)
    for start in range(0, count, CHUNK):
        m = min(CHUNK, count - start)
        kind = rng.choice(len(POPULATIONS), m, p=shares / shares.sum())
        stain = 10 ** (level[kind] + rng.standard_normal((m, len(STAINS))) * 0.16)
        stain[level[kind] <= 2.0] *= 0.4
        fsc = forward[kind] * np.exp(rng.standard_normal(m) * 0.13)
        ssc = side[kind] * np.exp(rng.standard_normal(m) * 0.17)
        width = 70_000 * np.exp(rng.standard_normal(m) * 0.05)
        doublet = rng.random(m) < 0.03
        fsc[doublet] *= 1.9
        ssc[doublet] *= 1.8
        width[doublet] *= 1.6
        stain[doublet] *= 1.8
        signal = stain @ matrix
        signal += rng.standard_normal(signal.shape) * np.sqrt(6 * signal + 60**2)
        at = np.arange(start, start + m)
        clog = (at > 0.61 * count) & (at < 0.64 * count)
        signal[clog] *= 0.55
        part = out[:, start : start + m]
        part[0] = fsc
        part[1] = fsc * np.where(doublet, 0.55, 0.92) * np.exp(rng.standard_normal(m) * 0.03)
        part[2] = width
        part[3] = ssc
        part[4] = ssc * 0.9 * np.exp(rng.standard_normal(m) * 0.04)
        part[5:15] = signal.T
        part[15] = at / 150.0 + rng.random(m) * 0.004
        np.clip(part[:5], 0, RANGE - 1, out=part[:5])
        np.clip(part[5:15], -RANGE, RANGE - 1, out=part[5:15])
    return out


def main(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = draw_events(count)
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for byte_order in orders:
        write_fcs(
            folder / f"{byte_order}.fcs",
            columns,
            channels(),
            keywords={"$TIMESTEP": "0.01", "$CYT": "SYNTHETIC"},
            spillover=spillover(),
            byte_order=byte_order,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
