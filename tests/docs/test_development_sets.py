"""The glue of the score tables: patients stay apart, sets are not mixed, pages are of the templates as they are."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flowmrd.gating.template import find_template


@pytest.fixture(scope="module")
def development(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("development", repository / "tests" / "validation" / "development.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Frozen dataclasses look up their module while it is being made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_no_patient_is_in_training_and_in_testing(development: ModuleType, shared_fcs: Path) -> None:
    with (shared_fcs / "ball_gmm" / "samples.csv").open(encoding="utf-8") as stream:
        samples = list(csv.DictReader(stream))
    looked_at = frozenset({"BLN-P009", "VIE14-P015"})
    for centre in (None, "BLN"):
        half = development.split_patients(samples, looked_at, centre)
        assert set(half) == {row["id"] for row in samples}
        test = {development.patient_of(name) for name, part in half.items() if part == "test"}
        train = {development.patient_of(name) for name, part in half.items() if part == "train"}
        assert not test & train
        if centre is None:
            assert not test & looked_at
            assert {name.split("-")[0] for name in test} == {row["center"] for row in samples}
            assert 0.4 < len(test) / len(test | train) < 0.6
        else:
            assert {name.split("-")[0] for name in test} == {"BLN"}


def test_files_of_another_plan_are_not_mixed_in(development: ModuleType, tmp_path: Path) -> None:
    assert development.is_made(tmp_path, {"events": 10}) is False
    (tmp_path / "asked.json").write_text(json.dumps({"events": 10}), encoding="utf-8")
    assert development.is_made(tmp_path, {"events": 10}) is True
    with pytest.raises(SystemExit, match="holds files of another size or seed"):
        development.is_made(tmp_path, {"events": 20})


def test_a_page_has_the_words_the_tables_and_few_files_by_name(development: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "summary.md").write_text(
        "# Evaluation\n\n* template: t\n\n| level |\n|---|\n| all |\n", encoding="utf-8"
    )
    header = "case,status,truth_events,called_events,hit_events,f1,log10_error,covered,call\n"
    (tmp_path / "cases.csv").write_text(
        header + "a,assessed,1000,2000,900,0.6,0.30103,false,positive\nb,refused,,,,,,,review\n", encoding="utf-8"
    )
    one = next(one for one in development.SETS if one.name == "real")
    text = development.page(one, tmp_path)
    assert text.startswith("# Real marrows\n")
    assert "| a | 1,000 | 2,000 | 900 | 0.60 | 2.00 | no | positive |" in text
    assert "| b | – | – | – | – | – | – | review |" in text
    assert "| all |" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


def test_every_committed_page_is_of_the_shipped_template(development: ModuleType, repository: Path) -> None:
    known = {one.name: one.template for one in development.SETS}
    for page in sorted((repository / "docs" / "validation").glob("evaluate-*.md")):
        name = page.stem.removeprefix("evaluate-")
        template = known.get(name) or known[name.split("-")[0]]
        text = page.read_text(encoding="utf-8")
        assert re.search(rf"SHA-256 `{find_template(template).digest}`", text), (
            f"{page.name}: the template has changed: run `make validation`"
        )


def test_files_are_grouped_by_whether_their_aberrations_were_learnt(
    development: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifts = {"a": {"CD58": 0.5, "CD38": -1.0}, "b": {"CD38": -1.0}, "c": {"CD58": 0.5}, "d": None}
    for name, shift in shifts.items():
        kind = None if shift is None else {"shifts": shift}
        (tmp_path / f"{name}.truth.json").write_text(json.dumps({"immunophenotype": kind}), encoding="utf-8")
    files = [tmp_path / f"{name}.fcs" for name in shifts]
    monkeypatch.setattr(development, "simulated_good", lambda _options: files)
    options = type("Sizes", (), {"work": tmp_path})()
    assert development.left_out_options(options)[-2:] == ["--by", "aberration"]
    with (tmp_path / "left-out.csv").open(encoding="utf-8") as stream:
        found = {row["name"]: row["aberration"] for row in csv.DictReader(stream)}
    assert found == {"a": "one left out", "b": "only known ones", "c": "only left out ones", "d": "no blasts"}
