"""T, B and NK cells of real blood with the T-cell part of the CAR-T template; cells per µl of a recorded volume."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from flowmrd.cli.gate import command as gate
from flowmrd.cytometry.events import DataState
from flowmrd.fcs import open_fcs
from flowmrd.foreign import gate_by_document
from flowmrd.gating.template import find_template
from flowmrd.pipeline import Acquisition, Analysis, analyse
from flowmrd.quantification.absolute import acquisition_seconds, recorded_volume, volume_count
from flowmrd.settings import Settings

TEMPLATE = "cart-persistence"
Mask = NDArray[np.bool_]
# The files' values are on the display scale of the program that exported them, 0 to 10,000.
DISPLAY = Settings(state=DataState.SCALED, scaled_range=(0.0, 10_000.0))


def gated(path: Path, settings: Settings | None = None) -> Analysis:
    return analyse(
        Acquisition(name=path.stem, path=str(path), tube=TEMPLATE), find_template(TEMPLATE), settings or Settings()
    )


def codes(analysis: Analysis) -> set[str]:
    return {finding.code for finding in analysis.result.findings}


# --------------------------------------------------------------------------------- lymphoid screening tubes with labels


def labelled(path: Path) -> dict[str, Mask]:
    """Return what an expert called each event: intact single cells, T cells and their subsets, B cells."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        labels = [line.strip().casefold() for line in stream][1:]
    return {
        "clean": np.array([not ("debris" in name or "doublet" in name or name == "events") for name in labels]),
        "cd3": np.array([name.startswith(("cd4+", "cd8+", "tcrgd")) or name == "t cells" for name in labels]),
        "cd4": np.array([name.startswith("cd4+") for name in labels]),
        "cd8": np.array([name.startswith("cd8+") for name in labels]),
        "cd19": np.array(["sig" in name or name == "b cells" for name in labels]),
    }


@pytest.mark.parametrize("name", ["LST_05_HD", "LST_09_HD", "LST_36_HD", "LST_22_MCL"])
def test_t_and_b_cells_are_within_three_points_of_the_labels(shared_fcs: Path, name: str) -> None:
    folder = shared_fcs / "lst_optimalflow"
    analysis = gated(folder / f"{name}.fcs", DISPLAY)
    assert analysis.gating is not None
    truth = labelled(folder / f"{name}.labels.csv.gz")
    clean = truth["clean"]
    populations = [("cd3", "cd3"), ("cd4", "cd4"), ("cd8", "cd8"), ("cd19", "b_lineage"), ("cd19", "b_cells")]
    for key, population in populations:
        found = analysis.gating.memberships.mask(population) & clean
        share, expected = found.sum() / clean.sum(), (truth[key] & clean).sum() / clean.sum()
        assert share == pytest.approx(expected, abs=0.03), key


def test_healthy_b_cells_are_those_of_the_lymphocyte_gate(shared_fcs: Path) -> None:
    folder = shared_fcs / "lst_optimalflow"
    analysis = gated(folder / "LST_36_HD.fcs", DISPLAY)
    assert analysis.gating is not None
    truth = labelled(folder / "LST_36_HD.labels.csv.gz")
    clean = truth["clean"]
    found = analysis.gating.memberships.mask("b_cells") & clean
    assert found.sum() / clean.sum() == pytest.approx((truth["cd19"] & clean).sum() / clean.sum(), abs=0.01)


def test_a_tube_without_the_reagent_has_no_car_result_and_says_so(shared_fcs: Path) -> None:
    analysis = gated(shared_fcs / "lst_optimalflow" / "LST_05_HD.fcs", DISPLAY)
    rows = {row.analyte: row for row in analysis.result.measurements}
    assert "REAGENT_CHANNEL_MISSING" in codes(analysis)
    for analyte in ("CART-PCT-CD3", "CART-ABS", "CART-DET"):
        assert (rows[analyte].category, rows[analyte].value, rows[analyte].call) == ("NOT_DONE", None, "review")
    assert rows["BCA"].category == "NO_APLASIA"


# ------------------------------------------------------------------------------------------------------------ blood


def test_a_six_colour_tube_gives_the_subsets_of_blood(shared_fcs: Path) -> None:
    analysis = gated(shared_fcs / "blood_tcell" / "TBNK_6color_FACSCantoII.fcs")
    assert analysis.gating is not None
    counts = analysis.gating.counts
    assert (counts["cd3"] + counts["b_cells"] + counts["nk"]) / counts["lymphocytes"] == pytest.approx(0.95, abs=0.05)
    assert 0.45 < counts["cd3"] / counts["lymphocytes"] < 0.85
    assert 0.05 < counts["b_cells"] / counts["lymphocytes"] < 0.35
    assert 0.85 < (counts["cd4"] + counts["cd8"]) / counts["cd3"] < 1.0


def test_both_templates_count_the_same_t_cells_in_one_tube(shared_fcs: Path) -> None:
    path = shared_fcs / "blood_tcell" / "TBNK_6color_FACSCantoII.fcs"
    ours = gated(path).gating
    other = analyse(Acquisition(name="x", path=str(path), tube="tbnk"), find_template("tbnk"), Settings()).gating
    assert ours is not None
    assert other is not None
    for name in ("cd3", "cd4", "cd8", "b_cells"):
        assert ours.counts[name] == pytest.approx(other.counts[name], rel=0.08), name


def test_a_tube_of_four_t_cell_markers_is_gated_and_says_what_it_lacks(shared_fcs: Path) -> None:
    analysis = gated(shared_fcs / "blood_tcell" / "MACSQuant_CD45_CD3_CD4_CD8.fcs")
    assert analysis.gating is not None
    assert {"UNCOMPENSATED", "REAGENT_CHANNEL_MISSING"} <= codes(analysis)
    assert 0.10 < analysis.gating.counts["cd3"] / analysis.gating.counts["lymphocytes"] < 0.85
    aplasia = next(row for row in analysis.result.measurements if row.analyte == "BCA")
    assert (aplasia.category, aplasia.value) == ("NOT_DONE", None)


# ---------------------------------------------------------------------------------------------------- recorded volume


@pytest.mark.parametrize(("name", "counted", "volume"), [("NY071", 2193, 30.5), ("NY072", 2983, 30.29)])
def test_cells_per_microlitre_of_an_aurora_are_flowjos_count_over_its_volume(
    shared_fcs: Path, name: str, counted: int, volume: float
) -> None:
    path = shared_fcs / "abscount" / f"CellCounts4L-{name}-1.fcs"
    run = gate_by_document(path, shared_fcs / "abscount" / "CellCounts.wsp", tube=None)
    assert run.evaluation is not None
    events = next(row.events for row in run.result.populations if row.path.endswith("/CD45+"))
    keywords = open_fcs(path).keywords
    read = recorded_volume(keywords, seconds=acquisition_seconds(keywords))
    assert [finding.code for finding in read.findings] == ["VOLUME_IN_MICROLITRES"]
    assert read.microlitres == volume
    per_ul = volume_count(target_events=events, volume_ul=read.microlitres).cells_per_ul
    assert per_ul == pytest.approx(counted / volume, rel=0.01)


def test_the_command_line_gives_counts_per_microlitre_and_names_the_vendors_unit(
    shared_fcs: Path, tmp_path: Path
) -> None:
    folder = shared_fcs / "abscount"
    files = [str(path) for path in sorted(folder.glob("*.fcs"))]
    document = str(folder / "CellCounts.wsp")
    result = CliRunner().invoke(gate, [*files, "--strategy", document, "--out", str(tmp_path / "out"), "--no-report"])
    assert result.exit_code == 0, result.output
    with (tmp_path / "out" / "populations.csv").open(encoding="utf-8", newline="") as stream:
        found = [float(row["per_ul"]) for row in csv.DictReader(stream) if row["population"] == "CD45+"]
    # FlowJo's counts of CD45+ events over the recorded volume.
    assert found == pytest.approx([2193 / 30.5, 2983 / 30.29], rel=0.01)
    with (tmp_path / "out" / "findings.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["code"] for row in csv.DictReader(stream)] == ["VOLUME_IN_MICROLITRES"] * 2


def test_files_that_write_nanolitres_as_the_standard_says_are_read_so(shared_fcs: Path) -> None:
    for path in (shared_fcs / "instruments").glob("*.fcs"):
        keywords = open_fcs(path).keywords
        if "$VOL" not in keywords or "Aurora" in keywords.get("$CYT", ""):
            continue
        read = recorded_volume(keywords, seconds=acquisition_seconds(keywords))
        assert read.microlitres == pytest.approx(float(keywords["$VOL"]) / 1000), path.name
        assert read.findings == ()
