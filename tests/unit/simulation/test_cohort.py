"""A simulated trial: every fate reaches its scripted classes, the tables agree, and the files' truth is the truth's."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from flowmrd.cli.simulate import command
from flowmrd.clinical.baseline import read_baseline
from flowmrd.clinical.endpoints import outcomes_of
from flowmrd.clinical.rules import Response, load_criteria
from flowmrd.clinical.safety import load_safety_rules, read_adverse_events
from flowmrd.clinical.table import read_clinical_table
from flowmrd.documents.counts import load_counts
from flowmrd.documents.manifest import load_manifest
from flowmrd.gating.template import template_paths
from flowmrd.simulation.cohort import plan_cohort, read_truth, write_cohort

CRITERIA = load_criteria()


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of 24 patients, without files."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(plan_cohort(24), folder, with_files=False)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_visit_gets_the_class_that_its_fate_scripts(tables: Path) -> None:
    truth = read_truth(tables / "truth.csv")
    assert len(truth) == 96
    assert [row["response"] for row in truth] == [row["planned_response"] for row in truth]


@pytest.mark.parametrize("seed", range(2, 6))
def test_whatever_the_seed(seed: int, tmp_path: Path) -> None:
    write_cohort(plan_cohort(30, seed), tmp_path, with_files=False, seed=seed)
    truth = read_truth(tmp_path / "truth.csv")
    assert [row["response"] for row in truth] == [row["planned_response"] for row in truth]


def test_24_patients_have_every_fate_that_a_trial_must_cope_with(tables: Path) -> None:
    truth = read_truth(tables / "truth.csv")
    classes = Counter(row["response"] for row in truth)
    assert set(classes) >= {Response.CR, Response.CRH, Response.CRI, Response.NR, Response.PD, Response.REL_BM}
    assert set(classes) >= {Response.REL_EM, Response.POST_REL, Response.DEATH, Response.NE}
    assert {row["cd19_status"] for row in truth if row["event"] == "RELAPSE"} == {"CD19neg", "CD19pos", ""}
    assert {"MRD_RELAPSE", "RELAPSE"} <= {row["event"] for row in truth}
    assert {"UNDETECTED_INSUFFICIENT", "NOT_DONE"} <= {row["mrd_category"] for row in truth}
    assert {row["flags"] for row in truth} >= {"NO_VISIT", "NO_MARROW", "OUT_OF_WINDOW", "MORPH_FLOW_DISCORDANT"}
    assert {"Y", "N"} == {row["post_sct"] for row in truth}


def test_the_tables_are_read_without_a_fault_and_feed_every_endpoint(tables: Path) -> None:
    table = read_clinical_table(tables / "true-clinical.csv", visits=CRITERIA.visits)
    baseline = read_baseline(tables / "baseline.csv", CRITERIA)
    assert len(baseline.not_infused) == 1
    assert {one.code for one in baseline.findings} == {"DOSE_OUT_OF_RANGE", "LYMPHODEPLETION_DEVIATES"}
    outcomes = outcomes_of(table, CRITERIA, not_infused=baseline.not_infused, counts=load_counts(tables / "counts.csv"))
    assert len(outcomes.subjects) == 24
    assert len(outcomes.courses) == 24
    safety = read_adverse_events(
        tables / "adverse_events.csv",
        outcomes.subjects,
        last_day=30,
        prior_allosct={one.patient_id: one.prior_allosct for one in baseline.rows},
        ages={one.patient_id: one.age_years for one in baseline.rows},
    )
    # Components and grades agree: no finding but the category that the trial does not name.
    assert {one.code for one in safety.findings} == {"CATEGORY_UNKNOWN"}
    assert {one.category for one in safety.events} == {one.id for one in load_safety_rules().category}


def test_the_table_for_a_run_is_the_true_one_without_what_a_run_measures(tables: Path) -> None:
    for given, true in zip(rows_of(tables / "clinical.csv"), rows_of(tables / "true-clinical.csv"), strict=True):
        differing = {name for name in given if given[name] != true[name]}
        assert differing <= {"mrd_events", "mrd_denominator", "cd19_indep_gating", "blast_cd19_pos_pct"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_patients(tables: Path, tmp_path: Path) -> None:
    for name, seed in (("again", 1), ("other", 2)):
        write_cohort(plan_cohort(24, seed), tmp_path / name, with_files=False, seed=seed)
    for path in tables.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert (tables / "truth.csv").read_bytes() != (tmp_path / "other" / "truth.csv").read_bytes()


def test_files_come_with_a_manifest_and_their_truth_is_that_of_the_tables(tmp_path: Path) -> None:
    arguments = ["--cohort", "1", "--out", str(tmp_path), "--events", "6000", "--seed", "3"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    manifest = load_manifest(tmp_path / "manifest.csv", known_tubes=tuple(template_paths(None)))
    marrows = {row.acquisition: row for row in manifest.rows if row.specimen_type == "BM"}
    truth = read_truth(tmp_path / "truth.csv")
    for row in truth:
        if not row["acquisition"]:
            continue
        own = json.loads((tmp_path / f"{row['acquisition']}.truth.json").read_text(encoding="utf-8"))["mrd"]
        assert (int(row["mrd_events"]), int(row["mrd_denominator"])) == (own["blasts"], own["denominator"])
        listed = marrows[row["acquisition"]]
        assert (listed.patient_pseudonym, listed.study_day) == (row["patient_id"], int(row["day"]))
        assert listed.fcs_sha256 == hashlib.sha256(listed.fcs_path.read_bytes()).hexdigest()
    assert {row.visit for row in marrows.values()} == {"BL"} | {row["timepoint"] for row in truth if row["acquisition"]}
    blood = [row for row in manifest.rows if row.tube == "cart-persistence"]
    assert {row.control_acquisition for row in blood if row.study_day > 0} != {()}


def test_options_that_a_cohort_decides_itself_are_refused(tmp_path: Path) -> None:
    refused = CliRunner().invoke(command, ["--cohort", "2", "--out", str(tmp_path), "--blasts", "0.1"])
    assert "cannot be combined with --cohort" in str(refused.exception)
    lost = CliRunner().invoke(command, ["--no-files", "--out", str(tmp_path)])
    assert "needs --cohort" in str(lost.exception)
