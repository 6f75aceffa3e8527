"""Laws of the manifest: what is valid is read back, what is not never gets through, and nothing crashes."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from flowmrd.documents.manifest import COLUMNS, REQUIRED, acquisition_name_fault, load_manifest, visit_of
from flowmrd.errors import ManifestError

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,20}[A-Za-z0-9]", fullmatch=True).filter(
    # Words for "missing" are refused in any cell, as a name as well.
    lambda name: not acquisition_name_fault(name) and name.casefold() not in {"na", "nan", "null", "none", "missing"}
)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(
        st.tuples(NAMES, st.integers(-400, 4000)), min_size=1, max_size=6, unique_by=lambda r: r[0].casefold()
    )
)
def test_a_valid_manifest_is_read_as_it_was_written(rows: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "one.fcs").touch()
        path = folder / "m.csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow([*REQUIRED, "acquisition"])
            writer.writerows(["P 1", "BM", day, "t", "one.fcs", acquisition] for acquisition, day in rows)
        found = load_manifest(path).rows
    assert [(row.acquisition, row.study_day) for row in found] == rows
    assert [row.visit for row in found] == [visit_of(day) for _, day in rows]


@settings(max_examples=60, deadline=None)
@given(column=st.sampled_from(COLUMNS), cell=st.text(max_size=30))
def test_any_text_in_any_cell_is_read_or_told_never_a_crash(column: str, cell: str) -> None:
    row = {"patient_pseudonym": "P", "specimen_type": "BM", "study_day": "3", "tube": "t", "fcs_filename": "one.fcs"}
    row[column] = cell
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "one.fcs").touch()
        path = folder / "m.csv"
        with path.open("w", encoding="utf-8", errors="replace", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row))
            writer.writeheader()
            writer.writerow(row)
        try:
            assert len(load_manifest(path).rows) == 1
        except* ManifestError:  # alone or as every fault of a group; anything else goes through
            pass


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_manifest_or_an_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "m.csv"
        path.write_bytes(content)
        try:
            load_manifest(path)
        except (ManifestError, ExceptionGroup):
            return
    raise AssertionError


@settings(max_examples=40, deadline=None)
@given(day=st.integers(-1000, 5000), timepoint=st.sampled_from(["BL", "D7", "D14", "D28", "M3", "M6", "M12", "UNS"]))
def test_a_planned_timepoint_never_moves_a_day_between_windows(day: int, timepoint: str) -> None:
    by_day = visit_of(day)
    assert visit_of(day, timepoint) == by_day or (by_day == "UNS" and visit_of(day, timepoint) == timepoint)
