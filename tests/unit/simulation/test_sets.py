"""Labelled sets: shares of their parts, one patient a case, the same bytes for any number of processes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from flowmrd.documents.manifest import load_manifest
from flowmrd.errors import SettingsError
from flowmrd.simulation import (
    PhenotypeDraw,
    SetPlan,
    SubjectDocument,
    TargetStatus,
    load_cases,
    plan_set,
    read_cases,
    write_set,
)

COMMON = {"events": 600, "channels": "compact"}


def planned(**changes: object) -> SubjectDocument:
    return plan_set(SetPlan(**{"common": COMMON, **changes}))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_half_of_the_negatives_are_regenerating_and_none_has_blasts() -> None:
    visits = planned(negatives=50).visits
    assert Counter(visit.parameters.scenario for visit in visits)["regenerating"] == 25
    assert {visit.parameters.blasts for visit in visits} == {0.0}


def test_positives_are_spread_evenly_over_the_levels_and_a_quarter_of_each_lost_the_target() -> None:
    visits = planned(positives=96).visits
    levels = Counter(visit.parameters.blasts for visit in visits)
    assert levels == dict.fromkeys((1e-5, 3e-5, 1e-4, 1e-3, 1e-2, 1e-1), 16)
    lost = [visit for visit in visits if visit.parameters.cd19 is not TargetStatus.POSITIVE]
    assert Counter(visit.parameters.blasts for visit in lost) == dict.fromkeys(levels, 4)
    assert Counter(visit.parameters.cd19 for visit in lost) == {
        TargetStatus.NEGATIVE: 8, TargetStatus.DIM: 8, TargetStatus.MIXED: 8,
    }  # fmt: skip
    assert {visit.parameters.scenario for visit in lost} == {"aplasia", "recovery"}
    assert {visit.manifest["prior_anti_cd19"] for visit in lost} == {"Y"}


def test_every_case_is_a_patient_of_its_own_and_its_name_tells_nothing() -> None:
    visits = planned(negatives=10, positives=10).visits
    assert len({visit.parameters.patient_seed for visit in visits}) == 20
    assert [visit.name for visit in visits] == [f"case-{number:04d}" for number in range(1, 21)]
    roles = [bool(visit.parameters.blasts) for visit in visits]
    assert roles not in (sorted(roles), sorted(roles, reverse=True))
    assert planned(negatives=10, positives=10) == planned(negatives=10, positives=10)
    assert planned(negatives=10, positives=10, seed=2) != planned(negatives=10, positives=10)


def test_levels_laboratories_and_a_status_can_be_given() -> None:
    visits = planned(
        positives=6, levels=(1e-3,), laboratories=3, common={**COMMON, "cd19": "negative", "batch": 2.5}
    ).visits
    assert {visit.parameters.blasts for visit in visits} == {1e-3}
    assert {visit.parameters.cd19 for visit in visits} == {TargetStatus.NEGATIVE}
    assert {visit.parameters.batch for visit in visits} == {2.5}
    assert sorted(Counter(visit.parameters.lab for visit in visits).values()) == [2, 2, 2]


def test_a_diagnosis_file_shares_the_patient_and_has_lost_nothing_yet(tmp_path: Path) -> None:
    document = planned(positives=4, levels=(0.05,), diagnoses=True, common={**COMMON, "drift": 0.1})
    rows = read_cases(write_set(document, tmp_path))
    assert [row["role"] for row in rows] == ["positive", "diagnosis"] * 4
    for follow_up, diagnosis in zip(rows[::2], rows[1::2], strict=True):
        assert diagnosis["name"] == f"{follow_up['name']}-diagnosis"
        assert follow_up["pseudonym"] == diagnosis["pseudonym"]
        assert follow_up["aberrations"] == diagnosis["aberrations"]
        assert (diagnosis["cd19"], diagnosis["drift"], follow_up["drift"]) == ("positive", "0.0", "0.1")
        assert float(diagnosis["level"]) > 0.25
        assert int(diagnosis["blasts"]) > 100
    assert len(load_manifest(tmp_path / "manifest.csv").rows) == 8


def test_the_number_of_processes_changes_no_byte(tmp_path: Path) -> None:
    document = planned(negatives=2, positives=2, common={**COMMON, "datatype": "int"})
    write_set(document, tmp_path / "one")
    write_set(document, tmp_path / "two", jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 4 * 3 + 2


TABLE = """name,pseudonym,scenario,blasts,cd19,phenotype,left_out,events
first,A,diagnosis,,,hard,,
second,A,aplasia,0.02,negative,hard,,700
,,regenerating,0,,,CD58; CD10 up,
given,B,normal,0.1,,p.toml,,
"""


def test_a_table_makes_one_case_a_row_and_rows_of_one_pseudonym_are_one_patient(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(TABLE, encoding="utf-8")
    (tmp_path / "p.toml").write_text("start = 0.3\nspread = 0.02\nshifts = { CD58 = 0.6 }\n", encoding="utf-8")
    document = load_cases(table, common=COMMON, seed=5)
    first, second, third, fourth = (visit.parameters for visit in document.visits)
    assert first.patient_seed == second.patient_seed != third.patient_seed
    assert (first.blasts, second.blasts, second.cd19) == (None, 0.02, TargetStatus.NEGATIVE)
    assert first.phenotype is PhenotypeDraw.HARD
    assert third.left_out == ("CD58", "CD10 up")
    assert (first.events, second.events) == (600, 700)
    rows = read_cases(write_set(document, tmp_path / "out"))
    assert [row["name"] for row in rows] == ["first", "second", "case-0003", "given"]
    assert rows[0]["aberrations"] == rows[1]["aberrations"] != ""
    assert rows[3]["aberrations"] == "CD58 +0.6"
    assert fourth.blasts == 0.1


def test_faults_of_a_table_are_told_together_with_their_rows(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("name,blasts,sead\na,many,1\n../b,0,2\n", encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        load_cases(table, common=COMMON, seed=1)
    told = [str(error) for error in caught.value.exceptions]
    assert any(line.startswith("table.csv, row 2, blasts: Input should be a valid number") for line in told), told
    assert "table.csv, row 2, sead: unknown key" in told
    assert any(line.startswith("table.csv, row 3, name: ") for line in told)


def test_a_case_out_of_range_stops_before_the_first_file(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("blasts\n0.1\n1.5\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="visit case-0002, blasts: expected a fraction"):
        write_set(load_cases(table, common=COMMON, seed=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "negatives: expected at least one case"),
        ({"negatives": -1}, "negatives: expected a whole number ≥ 0, got -1"),
        ({"positives": 1, "levels": (2.0,)}, "levels: expected fractions above 0 and up to 1, got 2"),
        ({"negatives": 1, "common": {"tube": "tbnk"}}, "tube: tube 'tbnk' has no design of a set"),
    ],
)
def test_a_plan_out_of_range_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        planned(**changes)
