"""Subject documents, their manifest, the shipped demo and the committed sample files."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flowmrd.clinical.baseline import read_baseline
from flowmrd.clinical.outcomes import subjects_of
from flowmrd.clinical.response import classify
from flowmrd.clinical.rules import load_criteria
from flowmrd.clinical.safety import read_adverse_events
from flowmrd.clinical.table import read_clinical_table
from flowmrd.errors import SettingsError
from flowmrd.fcs import read_fcs
from flowmrd.simulation import Visit, demo_subject, load_subject, simulate, write_subject
from flowmrd.simulation.subject import write_demo_tables

DOCUMENT = """
[subject]
pseudonym = "S-1"
patient_seed = 9
events = 800
channels = "compact"
manifest = { study_id = "T" }

[[visit]]
name = "s-1-d28"
timepoint = "D28"
study_day = 28
scenario = "aplasia"
seed = 1
manifest = { prior_anti_cd19 = "Y" }

[[visit]]
name = "s-1-cart"
study_day = 28
tube = "cart-persistence"
car = 0.1
seed = 2
"""


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "subject.toml"
    path.write_text(DOCUMENT, encoding="utf-8")
    return path


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def test_a_subject_becomes_files_and_a_manifest(document: Path, tmp_path: Path) -> None:
    manifest = write_subject(load_subject(document), tmp_path / "out")
    first, second = rows(manifest)
    assert first["accession"] == "S-1-D28"
    assert (first["patient_pseudonym"], first["specimen_type"], first["study_day"]) == ("S-1", "BM", "28")
    assert (first["tube"], first["fcs_filename"], first["study_id"]) == ("ball-mrd-10c", "s-1-d28.fcs", "T")
    assert first["prior_anti_cd19"] == "Y"
    assert second["prior_anti_cd19"] == ""
    assert second["specimen_type"] == "PB"
    file = tmp_path / "out" / first["fcs_filename"]
    assert first["fcs_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert int(second["beads_added"]) > 40_000
    assert read_fcs(file).keywords["$DATE"] == "08-APR-2024"


def test_equal_files_are_referred_to_and_changed_ones_made_again(document: Path, tmp_path: Path) -> None:
    write_subject(load_subject(document), tmp_path / "have")
    lines: list[str] = []
    document.write_text(DOCUMENT.replace("car = 0.1", "car = 0.2"), encoding="utf-8")
    manifest = write_subject(load_subject(document), tmp_path / "out", reuse=tmp_path / "have", report=lines.append)
    assert [row["fcs_filename"] for row in rows(manifest)] == ["../have/s-1-d28.fcs", "s-1-cart.fcs"]
    assert [line.endswith("(as it was)") for line in lines] == [True, False]


def test_faults_of_a_document_are_told_together_with_their_places(document: Path) -> None:
    text = DOCUMENT.replace("seed = 1", "sead = 1").replace('study_id = "T"', 'studie = "T"')
    document.write_text(text, encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        load_subject(document)
    assert [str(error) for error in caught.value.exceptions] == [
        f"{document}, visit 1, seed: Field required",
        f"{document}, visit 1, sead: unknown key",
        f"{document}, visit 1, manifest: unknown manifest column 'studie'",
        f"{document}, visit 2, manifest: unknown manifest column 'studie'",
    ]


def test_a_document_without_visits_or_with_two_of_one_name_is_refused(document: Path) -> None:
    document.write_text("[subject]\npseudonym = 'A'\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"at least one \[\[visit\]\]"):
        load_subject(document)
    document.write_text(DOCUMENT.replace("s-1-cart", "s-1-d28"), encoding="utf-8")
    with pytest.raises(SettingsError, match="name 's-1-d28' occurs twice"):
        load_subject(document)


def test_a_visit_out_of_range_stops_before_the_first_file(document: Path, tmp_path: Path) -> None:
    document.write_text(DOCUMENT.replace("car = 0.1", "car = 10.0"), encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        write_subject(load_subject(document), tmp_path / "out")
    assert str(caught.value) == "visit s-1-cart, car: expected a fraction between 0 and 1 of T cells, got 10.0"
    assert not (tmp_path / "out").exists()


def test_a_visit_whose_name_is_a_path_is_refused(document: Path) -> None:
    document.write_text(DOCUMENT.replace("s-1-cart", "../s-1-cart"), encoding="utf-8")
    with pytest.raises(SettingsError, match="visit 2, name"):
        load_subject(document)


def test_the_demo_is_one_patient_from_before_infusion_to_a_cd19_negative_relapse() -> None:
    visits = [one for one in demo_subject().visits if one.parameters.tube == "ball-mrd-10c"]
    assert [visit.timepoint for visit in visits] == ["BL", "D28", "M3", "M6", "M12"]
    assert [visit.study_day for visit in visits] == [0, 28, 91, 183, 365]
    assert [visit.parameters.blasts for visit in visits] == [0.08, None, None, None, 2e-3]
    assert visits[-1].parameters.cd19 == "negative"
    assert len({(v.parameters.patient_seed, str(v.parameters.phenotype), v.pseudonym) for v in visits}) == 1
    assert [v.parameters.events for v in visits if v.timepoint != "D28"] == [500_000] * 4


@pytest.fixture(scope="module")
def samples() -> Path:
    folder = Path(__file__).resolve().parents[3] / "sample_fcs"
    assert (folder / "subject.toml").is_file()
    return folder


def sample_visits() -> list[Visit]:
    return list(load_subject(Path(__file__).resolve().parents[3] / "sample_fcs" / "subject.toml").visits)


@pytest.mark.parametrize("visit", sample_visits(), ids=lambda visit: visit.name)
def test_a_committed_sample_is_what_its_document_says(visit: Visit, samples: Path) -> None:
    made = simulate(visit.parameters, visit.seed)
    read = read_fcs(samples / f"{visit.name}.fcs")
    values = made.values[:-1].astype(np.float64)
    if visit.datatype == "int":
        values = np.clip(np.rint(values), 0, 262_143)
    # Another processor may round a last digit otherwise; anything more is another file.
    assert np.allclose(read.events()[:-1], values, rtol=1e-6, atol=1.0 if visit.datatype == "int" else 1e-3)
    labels = pl.read_parquet(samples / f"{visit.name}.labels.parquet")
    assert (labels["blast"].to_numpy() == made.labels.blast).all()
    truth = json.loads((samples / f"{visit.name}.truth.json").read_text(encoding="utf-8"))
    assert truth["mrd"] == made.truth["mrd"]


def test_the_sample_manifest_has_the_right_digests(samples: Path) -> None:
    listed = rows(samples / "manifest.csv")
    assert [row["fcs_filename"] for row in listed] == [f"{visit.name}.fcs" for visit in sample_visits()]
    for row in listed:
        assert row["fcs_sha256"] == hashlib.sha256((samples / row["fcs_filename"]).read_bytes()).hexdigest()


def test_the_demos_car_t_tubes_are_of_the_same_patient_and_follow_a_course_that_is_lost() -> None:
    tubes = [one for one in demo_subject().visits if one.parameters.tube == "cart-persistence"]
    assert {one.parameters.patient_seed for one in tubes} == {2019}
    after = {one.study_day: one.parameters.car for one in tubes if one.study_day > 0}
    assert max(after, key=lambda day: after[day]) == 10
    assert after[365] == 0.0
    linked = [one for one in tubes if one.study_day > 0]
    assert all(one.manifest["control_acquisition"] for one in linked)
    assert {one.name for one in tubes} >= set(str(linked[0].manifest["control_acquisition"]).split(";"))


def test_the_demos_marrow_of_day_28_has_no_blasts_and_can_prove_one_in_ten_thousand() -> None:
    demo = next(visit for visit in demo_subject().visits if visit.timepoint == "D28")
    assert demo.parameters.tube == "ball-mrd-10c"
    truth = simulate(demo.parameters, demo.seed).truth
    assert truth["mrd"]["blasts"] == 0
    assert truth["mrd"]["denominator"] >= 250_000


def test_the_samples_stay_under_30_megabytes(samples: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in samples.iterdir() if path.is_file()}
    assert sum(sizes.values()) <= 30_000_000
    assert not [name for name, size in sizes.items() if size > 6_000_000], "let `make demo` simulate what is larger"


def test_the_demo_has_clinical_tables_that_say_what_its_files_do_not(tmp_path: Path) -> None:
    criteria = load_criteria()
    table = read_clinical_table(write_demo_tables(tmp_path), visits=criteria.visits)
    days = {one.name: one.study_day for one in demo_subject().visits if one.parameters.tube == "ball-mrd-10c"}
    assert [one.day for one in table.assessments] == [day for day in days.values() if day > 0]
    assert {one.mrd_events for one in table.assessments} == {None}
    assert table.findings == ()
    baseline = read_baseline(tmp_path / "baseline.csv", criteria)
    assert (baseline.rows[0].dose_in_range, baseline.rows[0].high_burden, baseline.findings) == (True, True, ())
    calls = classify(table, criteria)
    outcome = subjects_of(table, calls, criteria)
    safety = read_adverse_events(tmp_path / "adverse_events.csv", outcome, last_day=30)
    assert ({one.category for one in safety.events}, safety.findings) == ({"crs", "b_cell_depletion"}, ())
