"""The cohort's validation, small: one simulated patient from FCS files to responses, compared with the truth."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from flowmrd.simulation.cohort import plan_cohort, read_truth, write_cohort

SEED, EVENTS = 20, 30_000


@pytest.fixture(scope="module")
def cohort(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("cohort", repository / "tests" / "validation" / "cohort.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Frozen dataclasses look up their module while it is being made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_responses_from_files_are_the_truth_where_the_sample_permits_and_not_evaluable_where_not(
    cohort: ModuleType, tmp_path: Path
) -> None:
    (patient,) = plan_cohort(1, SEED, events=EVENTS)
    assert patient.fate == "MRD relapse at M3, overt at M6, CAR-T lost"
    marrows = tuple(tube for tube in patient.tubes if tube["tube"] == cohort.TEMPLATE and tube["study_day"] > 0)
    write_cohort([replace(patient, tubes=marrows)], tmp_path / "files", seed=SEED)
    files, out = tmp_path / "files", tmp_path / "run"
    arguments = ("run", files / "manifest.csv", "--clinical", files / "clinical.csv", "--out", out, "--no-report")
    command = [sys.executable, "-m", "flowmrd", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    truth = read_truth(tmp_path / "files" / "truth.csv")
    compared = cohort.compare(truth, tmp_path / "run")
    assert [(one.truth["timepoint"], one.differing) for one in compared if one.differing] == []
    assert [one.found["response"] for one in compared] == ["CR", "CR", "REL-BM", "DEATH"]
    # 27,000 cells prove nothing at 1e-4, but two in a thousand are seen.
    assert [one.found["mrd_neg_1e4"] for one in compared] == ["NE", "N", "N", "NE"]
    assert compared[0].found["mrd_category"] == "UNDETECTED_INSUFFICIENT"
    assert compared[1].found["mrd_category"] == "QUANTIFIABLE"
    page = cohort.page(tmp_path / "files", tmp_path / "run")
    assert "Class as scripted: 4 of 4 visits." in page
    assert "{" not in page


def test_a_difference_is_named_with_its_counts_and_findings(cohort: ModuleType) -> None:
    truth = dict.fromkeys(
        ("patient_id", "timepoint", "acquisition", "level", "mrd_events", "mrd_denominator", "cd19_status"), ""
    )
    truth |= {
        "patient_id": "P",
        "timepoint": "M6",
        "acquisition": "p-m6",
        "level": "0.4",
        "mrd_category": "QUANTIFIABLE",
    }
    truth |= {"mrd_events": "400", "mrd_denominator": "1000", "cd19_status": "CD19neg"}
    one = cohort.Compared(
        truth=truth,
        found={"mrd_category": "NOT_DONE"},
        measured={"numerator_events": "399", "denominator_events": "1000"},
        permits=True,
        differing=("mrd_category",),
        codes=("MRD_WITHHELD",),
    )
    assert cohort.level_of(one) == "blasts of 1 % or more, CD19 lost"
    row = "| P M6 | mrd_category: NOT_DONE, true QUANTIFIABLE | 399 of 1000 | 400 of 1000 | `MRD_WITHHELD` |"
    assert row in cohort.difference_table([one])
    assert cohort.difference_table([]) == "None."


@pytest.mark.parametrize(
    ("events", "size", "category", "negative"),
    [("19", "200000", "UNDETECTED", "Y"), ("19", "199999", "UNDETECTED_INSUFFICIENT", "NE"), ("20", "9", "X", "X")],
)
def test_the_samples_own_denominator_decides_what_can_be_expected(
    cohort: ModuleType, events: str, size: str, category: str, negative: str
) -> None:
    truth = {"mrd_events": events, "mrd_category": "X", "mrd_neg_1e4": "X", "mrdneg_cr": "X", "response": "CR"}
    expected = cohort.expected_of(truth, {"denominator_events": size})
    assert (expected["mrd_category"], expected["mrd_neg_1e4"]) == (category, negative)


def test_the_page_is_of_the_shipped_criteria_and_says_of_which_template(repository: Path, cohort: ModuleType) -> None:
    page = (repository / "docs" / "validation" / "cohort.md").read_text(encoding="utf-8")
    assert re.search(
        rf"template `{cohort.TEMPLATE}` \d+\.\d+\.\d+ \(SHA-256 `[0-9a-f]{{64}}`\)", " ".join(page.split())
    )
    assert cohort.load_criteria().digest in page, "the criteria have changed: run `make validation`"
