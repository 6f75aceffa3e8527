"""The ISAC compliance suite for Gating-ML 2.0, set 1: membership of every event in each gate."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from flowmrd.fcs import FcsFile, read_fcs
from flowmrd.gating.gates import Polygon
from flowmrd.gating.interop.document import column_names, evaluate
from flowmrd.gating.interop.export import write_gatingml
from flowmrd.gating.interop.gatingml import read_gatingml

# Gates that the shared truth does not cover: FlowKit's ellipse, and the uncheated triangle of the official document.
WITHOUT_TRUTH = {"myEllipse2", "Polygon3"}
# FlowKit's document names this gate otherwise than its truth.
RENAMED = {"ParRectangle1": "ParQuadRect"}


@pytest.fixture(scope="module")
def suite(shared_fcs: Path) -> Path:
    return shared_fcs / "gatingml20"


@pytest.fixture(scope="module")
def fcs(suite: Path) -> FcsFile:
    return read_fcs(suite / "set_1" / "data1.fcs")


def truth(suite: Path, name: str, folders: tuple[str, ...]) -> NDArray[np.bool_]:
    for folder in folders:
        path = suite / "set_1" / folder / f"Results_{RENAMED.get(name, name)}.txt"
        if path.is_file():
            return np.loadtxt(path, dtype=np.int64).astype(np.bool_)
    raise AssertionError(f"no truth of {name}")


def test_all_sixty_gates_of_the_official_document_are_identical_event_by_event(suite: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "flowmrd", "gate", suite / "set_1" / "data1.fcs"),
            *("--strategy", suite / "gates1.xml", "--out", tmp_path, "--membership", "--no-report"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = pl.read_parquet(tmp_path / "membership" / "data1.parquet")
    files = sorted((suite / "set_1" / "truth").glob("Results_*.txt"))
    assert len(files) == 60
    for file in files:
        name = file.stem.removeprefix("Results_")
        assert np.array_equal(table[name].to_numpy(), truth(suite, name, ("truth",))), name
    counts = {row["population"]: row["events"] for row in pl.read_csv(tmp_path / "populations.csv").to_dicts()}
    assert counts == {name: int(table[name].sum()) for name in table.columns}


def test_every_document_of_flowkit_is_identical_event_by_event(suite: Path, fcs: FcsFile) -> None:
    checked = 0
    for document in sorted((suite / "set_1" / "gml").glob("*.xml")):
        strategy = read_gatingml(document.read_bytes(), document.name)
        evaluation = evaluate(strategy, fcs)
        assert len(evaluation.counts) == len(strategy.gates), document.name
        for path, name in column_names(strategy.gates).items():
            if name in WITHOUT_TRUTH:
                continue
            expected = truth(suite, name, ("truth_gml", "truth"))
            assert np.array_equal(evaluation.memberships.mask(path), expected), (document.name, name)
            checked += 1
    assert checked == 133


def test_the_boundary_of_a_polygon_is_inside_without_the_cheat_of_the_suite(suite: Path, fcs: FcsFile) -> None:
    """Polygon1 pushes an edge with events on it out by a millionth, for programs that would lose them."""
    strategy = read_gatingml((suite / "gates1.xml").read_bytes(), "gates1.xml")
    cheat = next(one for one in strategy.gates if one.name == "Polygon1")
    assert isinstance(cheat.gate, Polygon)
    assert cheat.gate.vertices[3:] == ((499.999999, 500.0), (5.0, 5.000001))
    honest = replace(cheat, gate=replace(cheat.gate, vertices=cheat.gate.vertices[:3]))
    mask = evaluate(replace(strategy, gates=(honest,)), fcs).memberships.mask("/Polygon1")
    assert np.array_equal(mask, truth(suite, "Polygon1", ("truth",)))


def test_the_suite_written_and_read_back_is_identical(suite: Path, fcs: FcsFile) -> None:
    strategy = read_gatingml((suite / "gates1.xml").read_bytes(), "gates1.xml")
    again = read_gatingml(write_gatingml(strategy), "again.xml")
    first, second = evaluate(strategy, fcs), evaluate(again, fcs)
    assert len(second.counts) == 61
    places = {one.name: one.path for one in again.gates}
    for one in strategy.gates:
        assert np.array_equal(first.memberships.mask(one.path), second.memberships.mask(places[one.name])), one.name
