"""An acquisition on disk: `<stem>.fcs`, and its truth beside it in `<stem>.labels.parquet` and `<stem>.truth.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import SettingsError
from flowmrd.fcs import write_fcs
from flowmrd.simulation.acquisition import KINDS, Kind, Labels, Simulated

if TYPE_CHECKING:
    import polars as pl


class DataType(StrEnum):
    """Number format of the file: 32-bit floats, or 32-bit unsigned integers (negative values become 0)."""

    FLOAT = "float"
    INT = "int"


class ByteOrder(StrEnum):
    """Byte order of the file."""

    LITTLE = "little"
    BIG = "big"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFiles:
    """Paths of one written acquisition."""

    fcs: Path
    labels: Path
    truth: Path


def written_files(folder: Path, stem: str) -> WrittenFiles:
    """Where an acquisition of this name lies in a folder."""
    return WrittenFiles(
        fcs=folder / f"{stem}.fcs", labels=folder / f"{stem}.labels.parquet", truth=folder / f"{stem}.truth.json"
    )


def write_simulated(
    simulated: Simulated,
    folder: Path,
    stem: str,
    *,
    datatype: DataType = DataType.FLOAT,
    byte_order: ByteOrder = ByteOrder.LITTLE,
) -> WrittenFiles:
    """Write an acquisition, its labels and its truth; existing files of that name are replaced.

    Parameters
    ----------
    folder : made if it does not exist
    stem : file name without ending; becomes `$FIL`

    Raises
    ------
    SettingsError : the stem is not a plain file name, or the folder cannot be written
    """
    if not stem or Path(stem).name != stem or stem.startswith("."):
        raise SettingsError(f"expected a plain file name, got {stem!r}", where="name")
    files = written_files(folder, stem)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(simulated, files.fcs, datatype=datatype, byte_order=byte_order)
        labels_frame(simulated.labels).write_parquet(files.labels, compression="zstd", statistics=False)
        document = {**simulated.truth, "file": {"datatype": datatype.value, "byte_order": byte_order.value}}
        files.truth.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot be written: {error.strerror or error}", source=str(folder)) from error
    return files


def labels_frame(labels: Labels) -> pl.DataFrame:
    """Labels as a table in file order.

    Returns
    -------
    event : place in the file, from 0
    population : the cell type of a live single cell, else what the event is (debris, dead, doublet, bead, anucleate)
    kind : cell, debris, dead, doublet, bead or anucleate
    source, partner : cell types that the event comes from, empty where there is none
    blast, car : live single blasts, live single CAR+ cells
    stage : stage of the maturation course: a normal cell's own, the nearest one of a blast; empty off the course
    maturation : place on the course (0 … 1) of a live single cell, missing off the course
    """
    import polars as pl

    kinds = [kind.value for kind in KINDS]
    kind = labels.kind.astype(np.uint32)
    # Codes into one list of words: kinds other than cell first, then the cell types.
    words = [*kinds, *labels.names]
    population = np.where(labels.kind == KINDS.index(Kind.CELL), labels.source.astype(np.int64) + len(kinds), kind)
    return pl.DataFrame(
        {
            "event": np.arange(len(kind), dtype=np.uint32),
            "population": _words(population, words),
            "kind": _words(kind, kinds),
            "source": _words(labels.source + 1, ["", *labels.names]),
            "partner": _words(labels.partner + 1, ["", *labels.names]),
            "blast": labels.blast,
            "car": labels.car,
            "stage": _words(labels.stage + 1, ["", *labels.stages]),
            "maturation": pl.Series(labels.maturation, nan_to_null=True),
        }
    )


def _words(codes: NDArray[np.integer], words: list[str]) -> pl.Series:
    import polars as pl

    return pl.Series(words).gather(codes.astype(np.uint32))


def _write(simulated: Simulated, path: Path, *, datatype: DataType, byte_order: ByteOrder) -> None:
    columns: list[NDArray[np.float32]] = list(simulated.values)
    if datatype is DataType.INT:
        # Unsigned numbers hold no negative values: an integer instrument cuts the lower half of a negative peak.
        columns = [
            np.clip(np.rint(column), 0.0, channel.range - 1.0)
            for column, channel in zip(simulated.values, simulated.channels, strict=True)
        ]
    write_fcs(
        path,
        columns,
        simulated.channels,
        keywords={"$FIL": path.name, **simulated.keywords},
        spillover=simulated.spillover,
        datatype="F" if datatype is DataType.FLOAT else "I",
        byte_order="little" if byte_order is ByteOrder.LITTLE else "big",
    )
