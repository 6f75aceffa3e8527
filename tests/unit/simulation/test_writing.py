"""Files on disk: what the reader gives back, number formats, and no truth inside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flowmrd.errors import SettingsError
from flowmrd.fcs import Verdict, read_fcs
from flowmrd.simulation import SIMULATOR_VERSION, ByteOrder, DataType, Parameters, Simulated, simulate, write_simulated

CASE = Parameters(events=5000, blasts=0.05)


@pytest.fixture(scope="module")
def case() -> Simulated:
    return simulate(CASE, 3)


@pytest.mark.parametrize("byte_order", list(ByteOrder))
@pytest.mark.parametrize("datatype", list(DataType))
def test_every_number_format_reads_back(
    datatype: DataType, byte_order: ByteOrder, case: Simulated, tmp_path: Path
) -> None:
    files = write_simulated(case, tmp_path, "one", datatype=datatype, byte_order=byte_order)
    read = read_fcs(files.fcs)
    assert read.verdict is Verdict.OK
    assert read.event_count == 5000
    assert [(c.pnn, c.pns) for c in read.channels] == [(c.pnn, c.pns) for c in case.channels]
    assert read.spillover is not None
    assert read.spillover.channels == case.spillover.channels
    assert (read.spillover.matrix == case.spillover.matrix).all()
    expected = case.values[:-1].astype(np.float64)
    if datatype is DataType.INT:
        expected = np.clip(np.rint(expected), 0, 262_143)
    assert (read.events()[:-1] == expected).all()
    assert np.allclose(read.column(len(case.channels) - 1), case.values[-1] * 0.01)


def test_the_file_has_the_keywords_of_an_acquisition_and_names_no_person(case: Simulated, tmp_path: Path) -> None:
    keywords = read_fcs(write_simulated(case, tmp_path, "one").fcs).keywords
    for key in ("$CYT", "$DATE", "$BTIM", "$ETIM", "$TIMESTEP", "$VOL", "$P6V", "$P6S", "$P6R", "$P6E", "$SPILLOVER"):
        assert keywords[key], key
    assert keywords["$FIL"] == "one.fcs"
    private = {"$SRC", "$OP", "$INST", "$EXP", "$CELLS", "$SMNO", "PATIENT ID", "PATIENT NAME", "EXPORT USER NAME"}
    assert not private & {key.upper() for key in keywords}


def test_keywords_and_size_are_the_same_with_and_without_leukemia(case: Simulated, tmp_path: Path) -> None:
    positive = write_simulated(case, tmp_path / "a", "one").fcs
    negative = write_simulated(simulate(replace(CASE, blasts=0.0), 3), tmp_path / "b", "one").fcs
    assert dict(read_fcs(positive).keywords) == dict(read_fcs(negative).keywords)
    assert positive.stat().st_size == negative.stat().st_size


def test_the_same_case_gives_the_same_bytes_in_all_three_files(case: Simulated, tmp_path: Path) -> None:
    one, two = write_simulated(case, tmp_path / "a", "one"), write_simulated(simulate(CASE, 3), tmp_path / "b", "one")
    assert one.fcs.read_bytes() == two.fcs.read_bytes()
    assert one.labels.read_bytes() == two.labels.read_bytes()
    assert one.truth.read_bytes() == two.truth.read_bytes()


def test_labels_are_one_row_an_event_in_file_order(case: Simulated, tmp_path: Path) -> None:
    labels = pl.read_parquet(write_simulated(case, tmp_path, "one").labels)
    assert labels.schema == {
        "event": pl.UInt32,
        "population": pl.String,
        "kind": pl.String,
        "source": pl.String,
        "partner": pl.String,
        "blast": pl.Boolean,
        "car": pl.Boolean,
        "stage": pl.String,
        "maturation": pl.Float32,
    }
    assert (labels["event"].to_numpy() == np.arange(5000)).all()
    assert labels.height == 5000
    assert (labels["blast"].to_numpy() == case.labels.blast).all()
    blasts = labels.filter(pl.col("blast"))
    assert blasts["population"].unique().to_list() == ["blast"]
    assert blasts["kind"].unique().to_list() == ["cell"]
    artefacts = labels.filter(pl.col("kind") != "cell")
    assert (artefacts["population"] == artefacts["kind"]).all()
    assert (artefacts["source"] != "").all()
    doublets = labels.filter(pl.col("kind") == "doublet")
    assert (doublets["partner"] != "").all()
    assert labels.filter((pl.col("partner") != "") & (pl.col("kind") != "doublet")).is_empty()


def test_beads_come_from_no_cell(tmp_path: Path) -> None:
    tube = simulate(Parameters(tube="cart-persistence", events=3000), 1)
    labels = pl.read_parquet(write_simulated(tube, tmp_path, "one").labels)
    beads = labels.filter(pl.col("kind") == "bead")
    assert beads.height == tube.truth["beads"]["events"] > 0
    assert beads["source"].unique().to_list() == [""]
    assert beads["population"].unique().to_list() == ["bead"]


def test_the_truth_is_json_beside_the_file(case: Simulated, tmp_path: Path) -> None:
    files = write_simulated(case, tmp_path, "one", datatype=DataType.INT)
    truth = json.loads(files.truth.read_text(encoding="utf-8"))
    assert truth["seed"] == 3
    assert truth["parameters"]["blasts"] == 0.05
    assert truth["mrd"]["blasts"] == case.labels.blast.sum()
    assert truth["file"] == {"datatype": "int", "byte_order": "little"}
    assert truth["simulator_version"] == SIMULATOR_VERSION


@pytest.mark.parametrize("stem", ["", "../one", "a/b", ".one"])
def test_a_name_that_is_a_path_is_refused(stem: str, case: Simulated, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a plain file name"):
        write_simulated(case, tmp_path, stem)


def test_a_folder_that_is_a_file_is_refused(case: Simulated, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match="cannot be written"):
        write_simulated(case, tmp_path / "taken", "one")
