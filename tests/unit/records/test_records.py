"""The run folder keeps results whole: what is written is what is read, and half-written files do not appear."""

from __future__ import annotations

import csv
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flowmrd.gating.template import find_template
from flowmrd.pipeline import Acquisition, analyse
from flowmrd.records import (
    ABERRATIONS,
    BLAST_GROUPS,
    Aberration,
    AcquisitionResult,
    BlastGroup,
    DetectionRecord,
    read_result,
    stored_key,
    table_rows,
    write_result,
    write_tables,
    written,
)
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


def searched(*, groups: int) -> DetectionRecord:
    """A search over three features that found some groups, the odd ones accepted."""
    rng = np.random.default_rng(3)
    return DetectionRecord(
        reference="house",
        reference_sha256="ab" * 32,
        simulated=True,
        normal_marrows=24,
        diagnoses=9,
        seed=5,
        features=("SSC-A", "CD10", "CD20"),
        groups=tuple(
            BlastGroup(
                name=f"group {k + 1}",
                status=("accepted", "review")[k % 2],
                events=40 - k,
                fraction=(40 - k) / 3e5,
                probability=1 / 3,
                stage="hematogone, CD20-",
                normals_most=1e-7,
                middle={"SSC-A": 0.125, "CD10": 0.8125, "CD20": 1 / 3},
                aberrations=(
                    Aberration(
                        marker="CD10", shift=0.2, shift_log10=0.9, deviations=4.5, direction="over", aberrant=True
                    ),
                    Aberration(
                        marker="CD20", shift=-0.1, shift_log10=None, deviations=-1.5, direction="under", aberrant=False
                    ),
                ),
                likeness=0.25 if k else None,
            )
            for k in range(groups)
        ),
        doubts=("CD45 of t_like is +0.12 display units from the reference's",),
        normals=rng.random((50, 3), np.float32),
        events=rng.random((40 * groups, 3), np.float32),
        owner=np.repeat(np.arange(groups), 40).astype(np.int16),
    )


@pytest.mark.parametrize("groups", [0, 2])
def test_a_search_is_read_back_to_the_last_bit(result: AcquisitionResult, tmp_path: Path, groups: int) -> None:
    kept = replace(result, detection=searched(groups=groups))
    write_result(kept, tmp_path, key="k")
    assert same(read_result(tmp_path), kept)
    before = (tmp_path / "result.json").read_bytes(), (tmp_path / "arrays.npz").read_bytes()
    write_result(read_result(tmp_path), tmp_path, key="k")
    assert before == ((tmp_path / "result.json").read_bytes(), (tmp_path / "arrays.npz").read_bytes())


def test_groups_and_their_markers_are_rows_of_tables(result: AcquisitionResult, tmp_path: Path) -> None:
    without = replace(result, acquisition="b", detection=None)
    write_tables(table_rows([replace(result, detection=searched(groups=2)), without]), tmp_path)
    with (tmp_path / "blast_groups.csv").open(encoding="utf-8") as stream:
        groups = list(csv.DictReader(stream))
    assert list(groups[0]) == list(BLAST_GROUPS)
    assert [(row["acquisition"], row["group"], row["status"]) for row in groups] == [
        ("a", "group 1", "accepted"),
        ("a", "group 2", "review"),
    ]
    assert [(row["likeness"], row["aberrant_markers"], row["reference_simulated"]) for row in groups] == [
        ("", "1", "true"),
        ("0.25", "1", "true"),
    ]
    markers = pl.read_parquet(tmp_path / "aberrations.parquet")
    assert dict(zip(markers.columns, map(str, markers.dtypes), strict=True)) == dict(ABERRATIONS)
    assert markers.height == 4
    assert markers.row(1, named=True) == {
        "acquisition": "a",
        "group": "group 1",
        "status": "accepted",
        "marker": "CD20",
        "shift": -0.1,
        "shift_log10": None,
        "deviations": -1.5,
        "direction": "under",
        "aberrant": False,
    }


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
