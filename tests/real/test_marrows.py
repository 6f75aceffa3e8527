"""The unchanged AIEOP template on real marrows, against the clinic's own counts and labels.

Targets and their spread are those of the reference set's README: Diva's counts stand in the workspace of 47333, the
counts of 494 in its table; two correct programs differ by about 3 % on CD19+.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flowmrd.execution import run
from flowmrd.pipeline import Acquisition
from flowmrd.settings import Settings

DIVA_47333 = {"singlets": 81406, "viable": 80401, "cd19": 16189, "mature_b": 15149, "static_blasts": 359}
TOLERANCE = {"singlets": 0.05, "viable": 0.05, "cd19": 0.05, "mature_b": 0.10, "static_blasts": 0.10}


@pytest.fixture(scope="module")
def gated(shared_fcs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the two marrows and the four dilutions once."""
    files = [
        *sorted((shared_fcs / "ball_mrd_real").glob("*.fcs")),
        *sorted((shared_fcs / "ball_mrd_dilution").glob("*.fcs")),
    ]
    out = tmp_path_factory.mktemp("marrows")
    run(
        [Acquisition(name=path.stem, path=str(path), tube="aieop-bfm-syto") for path in files],
        out,
        settings=Settings(membership=True),
    )
    return out


def counts(out: Path, acquisition: str) -> dict[str, int]:
    table = pl.read_csv(out / "populations.csv", schema_overrides={"acquisition": pl.String})
    rows = table.filter(pl.col("acquisition") == acquisition)
    return dict(zip(rows["population"], rows["events"], strict=True))


def labels(path: Path) -> dict[str, np.ndarray]:
    with gzip.open(path, "rt") as stream:
        rows = list(csv.reader(stream))
    return {name: np.array([row[i] for row in rows[1:]]) == "1" for i, name in enumerate(rows[0])}


@pytest.mark.parametrize("population", DIVA_47333)
def test_the_clinics_own_counts_of_47333_are_met(gated: Path, population: str) -> None:
    found = counts(gated, "47333tubeB10001")[population]
    assert found == pytest.approx(DIVA_47333[population], rel=TOLERANCE[population])


def test_the_same_template_finds_the_blasts_of_494(gated: Path) -> None:
    assert counts(gated, "123991")["static_blasts"] == pytest.approx(34174, rel=0.15)


def test_events_called_blasts_in_494_are_those_the_clinic_called_so(gated: Path, shared_fcs: Path) -> None:
    truth = labels(shared_fcs / "ball_mrd_real" / "494.gate_labels.csv.gz")["blast"]
    ours = pl.read_parquet(gated / "membership" / "123991.parquet")["static_blasts"].to_numpy()
    both = np.count_nonzero(truth & ours)
    assert 2 * both / (truth.sum() + ours.sum()) > 0.97


def test_membership_has_one_boolean_column_a_population_in_file_order(gated: Path) -> None:
    frame = pl.read_parquet(gated / "membership" / "47333tubeB10001.parquet")
    expected = counts(gated, "47333tubeB10001")
    assert frame.columns == list(expected)
    assert set(frame.dtypes) == {pl.Boolean}
    assert frame.height == 90041
    assert {name: int(frame[name].sum()) for name in frame.columns} == expected


def test_the_dilutions_come_out_in_their_order(gated: Path) -> None:
    found = [counts(gated, f"P494_mrd{level}pct")["static_blasts"] for level in ("0", "0p05", "0p5", "5")]
    assert found == sorted(found)
    assert len(set(found)) == 4


def test_each_blast_that_was_added_to_a_dilution_is_seen_as_added(gated: Path) -> None:
    """The files share their background, so differences between them are the added blasts."""
    background = counts(gated, "P494_mrd0pct")["static_blasts"]
    for level, added in (("0p5", 218), ("5", 2278)):
        assert counts(gated, f"P494_mrd{level}pct")["static_blasts"] - background == pytest.approx(added, rel=0.10)


def test_the_measurement_carries_pair_interval_and_limits(gated: Path) -> None:
    table = pl.read_csv(gated / "measurements.csv", schema_overrides={"acquisition": pl.String})
    row = table.filter(pl.col("acquisition") == "47333tubeB10001").row(0, named=True)
    assert row["analyte"] == "MRD"
    assert row["numerator_events"] / row["denominator_events"] == row["fraction"]
    assert row["ci_low"] < row["fraction"] < row["ci_high"]
    assert row["lod_fraction"] == 20 / row["denominator_events"]
    assert row["lloq_fraction"] == 50 / row["denominator_events"]
    assert (row["category"], row["mrd_neg_1e4"], row["call"], row["unit"]) == ("QUANTIFIABLE", "N", "positive", "%")


def test_a_tube_of_another_panel_is_a_finding_that_names_the_markers(shared_fcs: Path, tmp_path: Path) -> None:
    path = shared_fcs / "blood_tcell" / "TBNK_6color_FACSCantoII.fcs"
    outcome = run([Acquisition(name="tbnk", path=str(path), tube="aieop-bfm-syto")], tmp_path, settings=Settings())
    assert outcome.done[0].failed
    finding = pl.read_csv(tmp_path / "findings.csv").row(0, named=True)
    assert finding["code"] == "PANELMISMATCH_FAILED"
    assert "no channel for SYTO; no channel for CD10; no channel for CD20" in finding["message"]
    row = pl.read_csv(tmp_path / "measurements.csv").row(0, named=True)
    assert (row["category"], row["mrd_neg_1e4"], row["call"]) == ("NOT_DONE", "NE", "review")
