"""The validation page is of the templates as they are, and its arithmetic is right."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from flowmrd.gating.template import find_template


@pytest.fixture(scope="module")
def aieop(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("aieop", repository / "tests" / "validation" / "aieop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Frozen dataclasses look up their module while it is being made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_of_the_shipped_template(repository: Path, aieop: ModuleType) -> None:
    page = (repository / "docs" / "validation" / "aieop-bfm-syto.md").read_text(encoding="utf-8")
    assert find_template(aieop.TEMPLATE).digest in page, "the template has changed: run `make validation`"


def test_f1_is_one_for_the_same_events_and_nothing_where_nothing_is_true(aieop: ModuleType) -> None:
    true = np.array([True, True, False, False])
    assert aieop.f1_score(true, true) == 1.0
    assert aieop.f1_score(np.array([True, False, True, False]), true) == 0.5
    assert aieop.f1_score(true, np.zeros(4, np.bool_)) is None


def test_drawn_patients_are_spread_over_cohorts_and_levels_and_none_was_looked_at(aieop: ModuleType) -> None:
    rows = [
        {"id": f"{cohort}-P{patient:03}-{sample}", "center": cohort, "mrd_pct_of_intact": str(patient / 10)}
        for cohort in aieop.COHORTS
        for patient in range(1, 200, 2)
        for sample in (1, 2)
    ]
    chosen = aieop.chosen_samples(rows)
    patients = [name.rsplit("-", 1)[0] for name in chosen]
    assert len(set(patients)) == len(aieop.COHORTS) * aieop.EACH
    assert not set(patients) & aieop.DEVELOPMENT
    for cohort in aieop.COHORTS:
        levels = [int(name.split("-P")[1]) for name in patients if name.startswith(cohort)]
        assert levels == sorted(levels)
        assert levels[0] < 50
        assert levels[-1] > 150


def test_divas_own_counts_are_read_from_its_xml(aieop: ModuleType, shared_fcs: Path) -> None:
    counts = aieop.diva_counts(shared_fcs / "ball_mrd_real" / "47333_diva.xml", "BCP")
    assert counts == {"singlets": 81406, "viable": 80401, "cd19": 16189, "mature_b": 15149, "blasts": 359}


def test_long_lines_of_the_page_are_broken_and_tables_are_not(aieop: ModuleType) -> None:
    text = "| " + "x " * 100 + "|\n* " + "word " * 50
    lines = aieop.wrapped(text).splitlines()
    assert len(lines[0]) > 120
    assert all(len(line) <= 120 for line in lines[1:])
    assert lines[2].startswith("  word")
