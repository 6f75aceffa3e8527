"""The run folder keeps results whole: what is written is what is read, and half-written files do not appear."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest

from flowmrd.gating.template import find_template
from flowmrd.pipeline import Acquisition, analyse
from flowmrd.records import AcquisitionResult, read_result, stored_key, write_result, written
from flowmrd.settings import Settings


def same(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if is_dataclass(a) and is_dataclass(b):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


@pytest.fixture(scope="module")
def result(repository: Path) -> AcquisitionResult:
    path = next(iter(sorted((repository / "sample_fcs").glob("*blasts-1e-2*.fcs"))))
    acquisition = Acquisition(name="a", path=str(path), tube="ball-mrd-10c", subject="S1", visit="D28", study_day=28)
    return analyse(acquisition, find_template("ball-mrd-10c"), Settings()).result


def test_a_result_is_read_back_as_it_was_written(result: AcquisitionResult, tmp_path: Path) -> None:
    write_result(result, tmp_path, key="k")
    again = read_result(tmp_path)
    assert stored_key(tmp_path) == "k"
    for field in fields(AcquisitionResult):
        assert same(getattr(again, field.name), getattr(result, field.name)), field.name


def test_every_event_of_a_parent_is_in_its_panel(result: AcquisitionResult) -> None:
    counts = {row.population: row.events for row in result.populations}
    assert result.panels
    for panel in result.panels:
        assert panel.density.sum() == panel.parent_events
        assert panel.parent_events == counts.get(panel.parent, result.events)


def test_every_target_event_of_a_parent_is_handed_to_the_plot(result: AcquisitionResult) -> None:
    counts = {row.population: row.events for row in result.populations}
    ancestors = next(row.path for row in result.populations if row.population == "blasts").split("/")
    for panel in result.panels:
        assert panel.target_name == "blasts"
        if panel.parent in ancestors or panel.parent == "root":
            assert panel.target.shape == (2, counts["blasts"])


def write_half(path: Path) -> None:
    with written(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise RuntimeError("power cut")


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError, match="power cut"):
        write_half(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["table.csv"]
