"""`flowmrd run` on CAR-T tubes: controls linked by the manifest, four analytes, kinetics, doubts by name."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from flowmrd.cli.run import command
from flowmrd.simulation import ChannelSet, Parameters, simulate, write_simulated
from flowmrd.simulation.acquisition import KINDS, Simulated

HEADER = (
    "acquisition,patient_pseudonym,specimen_type,study_day,tube,fcs_filename,control_acquisition,control_kind,"
    "course,car_reagent,car_lot,beads_lot,beads_added,blood_volume_ul,collected_at,wbc_1e9_l,wbc_at,lymph_pct,copies_per_ug"
)


def tube(name: str, *, seed: int, **changes: object) -> tuple[str, Parameters, int]:
    parameters = Parameters(
        tube="cart-persistence",
        events=36_000,
        channels=ChannelSet.COMPACT,
        patient_seed=9,
        leukocytes_per_ul=8_000,  # a tenth of the events are beads
        **changes,  # type: ignore[arg-type]
    )
    return name, parameters, seed


TUBES = (
    tube("pre", seed=1),
    tube("product", seed=2, scenario="expansion", car=0.35),
    tube("d14", seed=3, scenario="expansion", car=0.3),
    tube("fmo", seed=4, scenario="expansion", car=0.3, fmo=True),
    tube("d91", seed=5, scenario="recovery", car=0.0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cart")
    for name, parameters, seed in TUBES:
        write_simulated(simulate(parameters, seed), path, name)
    return path


def row(name: str, file: str, day: int, specimen: str = "PB", **cells: object) -> str:
    given: dict[str, object] = {
        "acquisition": name,
        "patient_pseudonym": "S1",
        "specimen_type": specimen,
        "study_day": day,
        "tube": "cart-persistence",
        "fcs_filename": f"{file}.fcs",
        "car_reagent": "CD19 protein",
        "car_lot": "A",
        "beads_lot": "B1",
        "beads_added": 50_000,
        "blood_volume_ul": 50,
        "collected_at": "2026-03-12T08:00:00+01:00",
        **cells,
    }
    return ",".join(str(given.get(column, "")) for column in HEADER.split(","))


def run(folder: Path, out: Path, *rows: str) -> Result:
    manifest = folder / f"{out.name}.csv"
    manifest.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return CliRunner().invoke(command, [str(manifest), "--out", str(out), "--no-report"], catch_exceptions=False)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def codes(out: Path, acquisition: str) -> set[str]:
    return {line["code"] for line in table(out / "findings.csv") if line["acquisition"] == acquisition}


CONTROLS = {"control_acquisition": "pre;product", "control_kind": "pre_infusion;positive"}
BASE = (row("pre", "pre", -3), row("product", "product", -1, "PRODUCT", beads_added="", blood_volume_ul=""))


@pytest.fixture(scope="module")
def course(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "course"
    result = run(
        folder,
        out,
        *BASE,
        row("d14", "d14", 14, **CONTROLS, copies_per_ug=40_000),
        row("fmo", "fmo", 14),
        row("d91", "d91", 91, control_acquisition="pre;product;fmo", control_kind="pre_infusion;positive;fmo"),
    )
    assert result.exit_code == 0, result.output
    return out


def test_the_fraction_is_that_of_the_truth_and_rests_on_the_linked_controls(course: Path) -> None:
    rows = {(line["acquisition"], line["analyte"]): line for line in table(course / "measurements.csv")}
    found = rows["d14", "CART-PCT-CD3"]
    assert float(found["fraction"]) == pytest.approx(0.30, rel=0.05)
    assert float(found["ci_low"]) < 0.30 < float(found["ci_high"])
    assert (found["category"], found["call"]) == ("QUANTIFIABLE", "positive")
    gates = [line for line in table(course / "findings.csv") if line["code"] == "GATE_OVERRIDDEN"]
    assert any("anchored on pre (pre infusion), brightness of product" in line["message"] for line in gates)


def test_each_acquisition_has_four_analytes(course: Path) -> None:
    rows = [line for line in table(course / "measurements.csv") if line["acquisition"] == "d14"]
    assert [line["analyte"] for line in rows] == ["CART-PCT-CD3", "CART-ABS", "CART-DET", "BCA"]
    assert [line["unit"] for line in rows] == ["%", "/uL", "1", "/uL"]
    assert float(rows[2]["value"]) == 1.0
    assert rows[3]["category"] == "APLASIA"
    # Results of different reagents are not interchangeable: reagent and lot stand in the row, not only in the manifest.
    assert [line["reagent"] for line in rows] == ["CD19 protein, lot A"] * 3 + [""]


def test_without_car_t_cells_nothing_is_detected_and_b_cells_are_back(course: Path) -> None:
    rows = {line["analyte"]: line for line in table(course / "measurements.csv") if line["acquisition"] == "d91"}
    assert rows["CART-DET"]["value"] == "0.0"
    assert rows["CART-PCT-CD3"]["value"] == ""
    assert rows["CART-ABS"]["value"] == ""
    assert rows["BCA"]["category"] == "NO_APLASIA"


def test_the_course_leaves_out_product_and_controls(course: Path) -> None:
    samples = table(course / "kinetics_samples.csv")
    assert [(line["day"], line["persistence"]) for line in samples] == [
        ("-3.0", "NOT_DETECTED" if samples[0]["car_per_ul"] else "NE"),
        ("14.0", "DETECTED"),
        ("91.0", "NOT_DETECTED"),
    ]
    (kinetics,) = table(course / "kinetics.csv")
    assert (kinetics["subject"], kinetics["tmax"], kinetics["copies_tmax"]) == ("S1", "14.0", "14.0")
    assert kinetics["recovery_day"] == ""  # one sample does not confirm it


def test_the_run_twice_gives_the_same_bytes_and_resumes(folder: Path, course: Path) -> None:
    manifest = folder / "course.csv"
    before = {path.name: path.read_bytes() for path in course.glob("*.csv")}
    result = CliRunner().invoke(command, [str(manifest), "--out", str(course), "--no-report", "--resume"])
    assert result.exit_code == 0, result.output
    assert result.output.count(": kept,") == 5
    assert {path.name: path.read_bytes() for path in course.glob("*.csv")} == before


def test_every_doubt_about_counts_and_controls_has_its_name(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "doubts"
    result = run(
        folder,
        out,
        *BASE,
        row("lot", "d14", 14, **CONTROLS, car_lot="B", beads_lot=""),
        row("reagent", "d14", 21, **CONTROLS, car_reagent="protein L", beads_added="", blood_volume_ul=""),
        row("fmo", "fmo", 14),
        row(
            "weak",
            "d14",
            28,
            control_acquisition="fmo",
            control_kind="fmo",
            wbc_1e9_l=3,
            lymph_pct=40,
            wbc_at="2026-03-13T09:00:00+01:00",
        ),
    )
    assert result.exit_code == 0, result.output
    assert {"CONTROL_LOT_DIFFERS", "BEAD_LOT_MISSING", "FILE_REPEATED"} <= codes(out, "lot") | codes(out, "reagent")
    assert {"CONTROL_REAGENT_DIFFERS", "CONTROL_ABSENT", "BEADS_NOT_STATED"} <= codes(out, "reagent")
    assert {"CONTROL_WEAK", "WBC_TOO_OLD"} <= codes(out, "weak")
    weak = next(line for line in table(out / "measurements.csv") if line["acquisition"] == "weak")
    assert weak["call"] == "review"


def test_a_reinfusion_is_a_course_of_its_own(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    result = run(folder, out, *BASE, row("a", "d14", 14, **CONTROLS), row("b", "d14", 10, **CONTROLS, course=2))
    assert result.exit_code == 0, result.output
    rows = table(out / "kinetics.csv")
    assert [(line["course"], line["tmax"]) for line in rows] == [("1", "14.0"), ("2", "10.0")]
    assert [line["reagent"] for line in table(out / "kinetics_samples.csv")][-1] == "CD19 protein"


def test_two_tubes_of_one_day_are_a_duplicate_visit_and_the_first_counts(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "twice"
    result = run(folder, out, *BASE, row("a", "d14", 14, **CONTROLS), row("b", "d91", 14, **CONTROLS))
    assert result.exit_code == 0, result.output
    assert "DUPLICATE_VISIT" in {line["code"] for line in table(out / "kinetics_findings.csv")}
    (kinetics,) = table(out / "kinetics.csv")
    assert float(kinetics["cmax"]) > 0


def with_receptor_on_b_cells(case: Simulated, cells: int) -> Simulated:
    """Give the first live single B cells the receptor, as a transduced blast has it, with its spillover."""
    names = case.labels.names
    single = case.labels.kind == KINDS.index("cell")
    b_cells = np.flatnonzero(single & (case.labels.source == names.index("b_cell")))[:cells]
    assert b_cells.size == cells
    values = np.array(case.values)
    channels = [channel.pnn for channel in case.channels]
    row = case.spillover.matrix[case.spillover.channels.index("PE-A")]
    for name, share in zip(case.spillover.channels, row, strict=True):
        values[channels.index(name), b_cells] += np.float32(20_000 * share)
    return replace(case, values=values)


def test_a_cluster_of_car_positive_blast_like_cells_is_an_alert_and_no_car_t(folder: Path, tmp_path: Path) -> None:
    case = simulate(TUBES[4][1], TUBES[4][2])
    write_simulated(with_receptor_on_b_cells(case, 80), folder, "blasts")
    out = tmp_path / "blasts"
    result = run(folder, out, *BASE, row("blasts", "blasts", 91, **CONTROLS), row("d91", "d91", 92, **CONTROLS))
    assert result.exit_code == 0, result.output
    assert "CAR_POS_BLAST" in codes(out, "blasts")
    assert not {"CAR_POS_BLAST"} & (codes(out, "d91") | codes(out, "product"))
    rows = {line["analyte"]: line for line in table(out / "measurements.csv") if line["acquisition"] == "blasts"}
    assert rows["CART-DET"]["value"] == "0.0"


def test_counts_without_beads_name_what_they_rest_on(folder: Path, tmp_path: Path) -> None:
    write_simulated(simulate(replace(TUBES[2][1], beads=False, leukocytes_per_ul=None), TUBES[2][2]), folder, "bare")
    blood = {"wbc_1e9_l": "8", "lymph_pct": "50", "wbc_at": "2026-03-12T09:00:00+01:00"}
    out = tmp_path / "bare"
    result = run(
        folder,
        out,
        *BASE,
        row("stated", "bare", 14, **CONTROLS),
        row("blood", "bare", 15, **CONTROLS, **blood, beads_added="", beads_lot=""),
    )
    assert result.exit_code == 0, result.output
    rows = {line["acquisition"]: line for line in table(out / "measurements.csv") if line["analyte"] == "CART-ABS"}
    assert "BEADS_ABSENT" in codes(out, "stated")
    assert (rows["stated"]["value"], rows["stated"]["category"]) == ("", "NOT_DONE")
    assert rows["blood"]["denominator"] == "lymphocytes"
    assert int(rows["blood"]["denominator_events"]) > int(rows["blood"]["numerator_events"]) > 0
    assert float(rows["blood"]["value"]) == pytest.approx(0.3 * 8000 * 0.5, rel=0.2)


def test_a_detection_before_the_infusion_is_named_for_what_it_is(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "early"
    result = run(folder, out, row("early", "d14", -3))
    assert result.exit_code == 0, result.output
    assert {"CAR_BEFORE_INFUSION", "CONTROL_ABSENT"} <= codes(out, "early")


def test_no_absence_rests_on_a_sample_of_another_brightness_than_its_controls(folder: Path, tmp_path: Path) -> None:
    case = simulate(TUBES[4][1], TUBES[4][2])
    values = np.array(case.values)
    values[[channel.pnn for channel in case.channels].index("PE-A")] *= np.float32(3.0)
    write_simulated(replace(case, values=values), folder, "bright")
    out = tmp_path / "bright"
    assert run(folder, out, *BASE, row("bright", "bright", 91, **CONTROLS)).exit_code == 0
    rows = {line["analyte"]: line for line in table(out / "measurements.csv") if line["acquisition"] == "bright"}
    assert "CONTROL_DRIFTED" in codes(out, "bright")
    assert (rows["CART-DET"]["value"], rows["CART-DET"]["call"]) == ("", "review")
    assert rows["CART-PCT-CD3"]["call"] == "review"
    assert [line["persistence"] for line in table(out / "kinetics_samples.csv") if line["day"] == "91.0"] == ["NE"]
