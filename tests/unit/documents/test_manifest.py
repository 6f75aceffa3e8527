"""The manifest: what is accepted, and that each fault is told with its row, column and reason."""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from flowmrd.documents.manifest import (
    COLUMNS,
    REQUIRED,
    Answer,
    ControlKind,
    Manifest,
    SpecimenType,
    Timepoint,
    acquisition_name_fault,
    load_manifest,
    load_visits,
    visit_of,
)
from flowmrd.errors import ManifestError

GOOD = {
    "patient_pseudonym": "PSN-0042",
    "specimen_type": "BM",
    "study_day": "28",
    "tube": "ball-mrd-10c",
    "fcs_filename": "a.fcs",
}

GATE_SET = """
[gate_set]
id = "own"
subject = "PSN-0042"
template = "ball-mrd-10c"
author = "A. Reviewer"
date = 2026-03-01
source = "diagnosis, day -20"
reason = "the blasts are CD10-dim"

[[override]]
population = "cd19"
gate = { kind = "rectangle", markers = ["CD19"], low = [0.9], high = [2.0] }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.fcs", "b.fcs", "sub/c.fcs", "with space (1).fcs", "weird#.fcs", "m.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture(autouse=True)
def _own_gates(folder: Path) -> None:
    (folder / "own.toml").write_text(GATE_SET, encoding="utf-8")


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def write(folder: Path, *rows: dict[str, str]) -> Path:
    """Write rows over the good one; an empty string leaves a cell empty."""
    full = [{**GOOD, **row} for row in rows]
    header = list(dict.fromkeys(name for row in full for name in row))
    lines = [",".join(header), *(",".join(quoted(row.get(name, "")) for name in header) for row in full)]
    path = folder / "manifest.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(folder: Path, *rows: dict[str, str], known_tubes: tuple[str, ...] | None = None) -> Manifest:
    return load_manifest(write(folder, *rows), known_tubes=known_tubes)


def faults(folder: Path, *rows: dict[str, str], known_tubes: tuple[str, ...] | None = None) -> list[str]:
    with pytest.raises(ExceptionGroup) as caught:
        load(folder, *rows, known_tubes=known_tubes)
    assert all(isinstance(error, ManifestError) for error in caught.value.exceptions)
    return [str(error) for error in caught.value.exceptions]


def test_the_five_required_columns_are_enough(folder: Path) -> None:
    manifest = load(folder, {})
    (row,) = manifest.rows
    assert (row.acquisition, row.visit, row.matrix, row.row) == ("a", "D28", "file", 2)
    assert (row.specimen_type, row.study_day, row.tube) == (SpecimenType.BM, 28, "ball-mrd-10c")
    assert row.fcs_path == folder / "a.fcs"
    assert row.after_cd19_therapy
    assert (manifest.warnings, len(manifest.digest)) == ({}, 64)


def test_every_optional_column_is_read_into_its_type(folder: Path) -> None:
    row = load(
        folder,
        {
            "acquisition": "S42 D28",
            "accession": "ACC-1",
            "study_id": "T1",
            "site": "K",
            "specimen_site": "left iliac crest",
            "pull_number": "1",
            "collected_at": "2026-03-12T08:30:00+01:00",
            "received_at": "2026-03-12T07:31:00Z",
            "stained_at": "2026-03-12T10:00+01:00",
            "acquired_at": "2026-03-12 12:00:00+01:00",
            "timepoint": "D28",
            "visit": "day 28",
            "infusion_date_offset": "-2",
            "course": "1",
            "panel_id": "p",
            "panel_version": "1.0",
            "instrument_id": "i",
            "cytometer_setup_id": "c",
            "fcs_sha256": "AB" * 32,
            "gate_set": "own.toml",
            "gate_set_sha256": hashlib.sha256(GATE_SET.encode()).hexdigest(),
            "control_acquisition": "b; c",
            "control_kind": "pre_infusion;fmo",
            "car_reagent": "r",
            "car_clone": "Y45",
            "car_lot": "7",
            "beads_lot": "L",
            "beads_added": "52300",
            "blood_volume_ul": "100",
            "dilution_factor": "1",
            "wbc_1e9_l": "3.2",
            "wbc_at": "2026-03-12T08:00:00+01:00",
            "lymph_pct": "24",
            "copies_per_ug": "3.47e4",
            "prior_anti_cd19": "Y",
            "prior_anti_cd22": "N",
            "prior_anti_cd20": "U",
            "prior_anti_cd38": "N",
            "priority": "high",
            "requester": "ward",
            "comment": "NA, never parsed",
            "matrix": "m.csv",
        },
        {"fcs_filename": "b.fcs"},
        {"fcs_filename": "sub/c.fcs", "study_day": "-5", "prior_anti_cd19": "Y"},
    ).rows
    first, _, third = row
    assert set(first.model_dump()) == {*COLUMNS, "row", "fcs_path", "matrix_path"}
    assert None not in first.model_dump().values()
    assert first.collected_at == datetime(2026, 3, 12, 7, 30, tzinfo=UTC)
    assert (first.timepoint, first.visit, first.infusion_date_offset) == (Timepoint.D28, "day 28", -2)
    assert first.fcs_sha256 == "ab" * 32
    assert first.control_acquisition == ("b", "c")
    assert first.control_kind == (ControlKind.PRE_INFUSION, ControlKind.FMO)
    assert (first.beads_added, first.wbc_1e9_l, first.copies_per_ug) == (52300.0, 3.2, 34700.0)
    assert first.prior_anti_cd20 is Answer.UNKNOWN
    assert (first.matrix, first.matrix_path) == ("m.csv", folder / "m.csv")
    assert (third.acquisition, third.visit, third.after_cd19_therapy) == ("c", "BL", True)


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated(folder: Path) -> None:
    path = write(folder, {})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(load_manifest(path).rows) == 1


def test_empty_is_missing_and_never_zero(folder: Path) -> None:
    (row,) = load(folder, {"wbc_1e9_l": "", "beads_added": "", "comment": "", "timepoint": ""}).rows
    assert (row.wbc_1e9_l, row.beads_added, row.comment, row.timepoint) == (None, None, None, None)


def test_rows_cannot_be_changed_and_cross_process_borders(folder: Path) -> None:
    manifest = load(folder, {})
    with pytest.raises(ValidationError):
        manifest.rows[0].__setattr__("study_day", 3)
    assert pickle.loads(pickle.dumps(manifest)) == manifest


def test_a_missing_and_an_unknown_column_reject_the_file(folder: Path) -> None:
    path = folder / "m2.csv"
    path.write_text("patient_pseudonym,specimen,study_day,tube,fcs_filename\nP,BM,1,t,a.fcs\n", encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        load_manifest(path)
    assert [str(error) for error in caught.value.exceptions] == [
        "m2.csv, header: unknown column 'specimen' (did you mean specimen_type?)",
        (
            "m2.csv, header: missing column specimen_type "
            "(required are patient_pseudonym, specimen_type, study_day, tube, fcs_filename)"
        ),
    ]


def test_all_faults_of_all_rows_are_told_at_once_in_the_order_of_rows(folder: Path) -> None:
    found = faults(
        folder,
        {"study_day": "28d", "specimen_type": "bm", "fcs_filename": "no.fcs"},
        {"fcs_filename": "b.fcs", "wbc_1e9_l": "3,2", "tube": ""},
    )
    assert found == [
        "manifest.csv, row 2, column specimen_type: expected one of BM, PB, CSF, PRODUCT; got 'bm' (write BM)",
        "manifest.csv, row 2, column study_day: expected a whole number; got '28d'",
        (
            "manifest.csv, row 2, column fcs_filename: expected an existing file; got 'no.fcs' "
            "(names are relative to the manifest's folder)"
        ),
        "manifest.csv, row 3, column tube: expected a value; got an empty cell",
        (
            "manifest.csv, row 3, column wbc_1e9_l: expected a number of at least 0; got '3,2' "
            "(write decimals with a point)"
        ),
    ]


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("study_day", "1.5", "expected a whole number; got '1.5'"),
        ("study_day", "", "expected a value; got an empty cell"),
        ("study_day", "NA", "expected an empty cell for a missing value; got 'NA'"),
        ("site", "-", "expected an empty cell for a missing value; got '-'"),
        ("pull_number", "0", "expected a whole number of at least 1; got 0"),
        ("beads_added", "0", "expected a number above 0; got 0"),
        ("beads_added", "many", "expected a number above 0; got 'many'"),
        ("beads_added", "inf", "expected a number above 0; got 'inf'"),
        ("wbc_1e9_l", "-1", "expected a number of at least 0; got -1"),
        ("lymph_pct", "101", "expected a number from 0 to 100; got 101"),
        (
            "collected_at",
            "2026-03-12",
            "expected an ISO 8601 time such as 2026-03-12T08:30:00+01:00; got '2026-03-12'",
        ),
        (
            "collected_at",
            "12.03.2026 08:30",
            "expected an ISO 8601 time such as 2026-03-12T08:30:00+01:00; got '12.03.2026 08:30'",
        ),
        (
            "collected_at",
            "2026-03-12T08:30",
            "expected a time with its offset from UTC; got '2026-03-12T08:30' (append +01:00, or Z for UTC)",
        ),
        ("timepoint", "D29", "expected one of BL, D7, D14, D28, M3, M6, M12, UNS; got 'D29'"),
        ("prior_anti_cd19", "yes", "expected one of Y, N, U; got 'yes'"),
        ("fcs_sha256", "abc", "expected 64 hexadecimal digits (SHA-256); got 3 characters"),
        ("control_acquisition", "a;;b", "expected names separated by single semicolons; got 'a;;b'"),
        ("control_acquisition", "a", "expected another acquisition; got the row's own"),
        ("control_acquisition", "z", "expected an acquisition of this manifest; got 'z'"),
        (
            "control_kind",
            "blank",
            "expected one of pre_infusion, fmo, healthy_donor, untransduced, positive; got 'blank'",
        ),
        ("control_kind", "fmo;fmo", "expected one kind for all controls, or one for each of control_acquisition"),
        ("matrix", "None", "expected an empty cell for a missing value; got 'None'"),
        ("matrix", "gone.csv", "expected file, none, or an existing matrix file; got 'gone.csv'"),
        ("patient_pseudonym", "X" * 65, "expected a short label of at most 64 printable characters"),
        (
            "patient_pseudonym",
            "born 01.02.2013",
            "expected a pseudonym; got something with a full date in it (a birth date names a person)",
        ),
        ("acquisition", "a/b", "expected letters, digits, blanks and . _ - ( ) + , = @; got '/'"),
        ("acquisition", "-x", "expected a letter or digit first, and no blank or point last; got '-x'"),
        ("acquisition", "con", "expected another name than 'con', which Windows reserves"),
        ("fcs_filename", "sub", "expected an existing file; got 'sub' (names are relative to the manifest's folder)"),
        ("fcs_filename", "sub\\c.fcs", "expected an existing file; got 'sub\\\\c.fcs' (write / instead of \\)"),
        (
            "fcs_filename",
            "weird#.fcs",
            (
                "the file's name cannot name the acquisition: expected letters, digits, blanks and "
                ". _ - ( ) + , = @; got '#' (fill the column acquisition)"
            ),
        ),
    ],
)
def test_each_kind_of_cell_says_what_it_expects(folder: Path, column: str, cell: str, reason: str) -> None:
    assert faults(folder, {column: cell}) == [f"manifest.csv, row 2, column {column}: {reason}"]


def test_cells_that_may_name_a_person_are_not_repeated(folder: Path) -> None:
    for column in ("patient_pseudonym", "requester"):
        (message,) = faults(folder, {column: "Erika Mustermann 01.02.2013\x07"})
        assert "Erika" not in message


def test_times_of_a_specimen_do_not_run_backwards(folder: Path) -> None:
    times = {"collected_at": "2026-03-12T08:30:00+01:00", "acquired_at": "2026-03-12T08:29:00+01:00"}
    assert faults(folder, times) == [
        (
            "manifest.csv, row 2, column acquired_at: expected a time not before collected_at; "
            "got 2026-03-12T08:29:00+01:00 before 2026-03-12T08:30:00+01:00"
        )
    ]
    # The same clock reading further west is later.
    assert load(folder, {**times, "acquired_at": "2026-03-12T08:29:00+00:00"}).rows


def test_two_rows_cannot_be_one_acquisition_not_even_in_another_case(folder: Path) -> None:
    expected = (
        "manifest.csv, row 3, column acquisition: expected each acquisition once; got {0!r} in row 2 too "
        "(the name is the file's stem unless the column acquisition gives another)"
    )
    assert faults(folder, {}, {}) == [expected.format("a")]
    assert faults(folder, {"acquisition": "X"}, {"acquisition": "x"}) == [expected.format("x")]


def test_the_same_file_under_two_names_is_a_warning(folder: Path) -> None:
    manifest = load(folder, {"acquisition": "one"}, {"acquisition": "two", "tube": "other"})
    (finding,) = manifest.warnings["two"]
    assert finding.code == "FILE_REPEATED"
    assert finding.message == "The same file is listed for one (row 2) too."


def test_an_accession_belongs_to_one_specimen(folder: Path) -> None:
    rows = [{"accession": "A1"}, {"accession": "A1", "fcs_filename": "b.fcs"}]
    assert len(load(folder, *rows).rows) == 2
    assert faults(folder, rows[0], {**rows[1], "study_day": "29"}) == [
        (
            "manifest.csv, row 3, column accession: expected one specimen for an accession; "
            "row 2 has another patient, specimen type or day"
        )
    ]


def test_an_unknown_tube_names_the_nearest(folder: Path) -> None:
    known = ("ball-mrd-10c", "tbnk")
    assert load(folder, {}, known_tubes=known).rows
    assert faults(folder, {"tube": "ball-mrd-8c"}, known_tubes=known) == [
        (
            "manifest.csv, row 2, column tube: expected the id of a gating template; got 'ball-mrd-8c' "
            "(did you mean ball-mrd-10c?)"
        )
    ]
    assert faults(folder, {"tube": "xyz"}, known_tubes=known)[0].endswith("(known are ball-mrd-10c, tbnk)")


def test_names_with_blanks_and_folders_are_fine(folder: Path) -> None:
    rows = load(folder, {"fcs_filename": "with space (1).fcs"}, {"fcs_filename": "sub/c.fcs"}).rows
    assert [row.acquisition for row in rows] == ["with space (1)", "c"]


def test_a_header_without_rows_is_refused(folder: Path) -> None:
    path = folder / "empty.csv"
    path.write_text(",".join(REQUIRED) + "\n", encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        load_manifest(path)
    assert [str(error) for error in caught.value.exceptions] == [
        "empty.csv: expected at least one row below the header; got none"
    ]


def test_a_short_row_is_reported_beside_the_other_faults(folder: Path) -> None:
    path = folder / "short.csv"
    path.write_text(",".join(REQUIRED) + "\nP,BM,1,t\nP,XX,1,t,a.fcs\n", encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        load_manifest(path)
    assert [re.match(r"short\.csv, row \d", str(error)) is not None for error in caught.value.exceptions] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("day", "timepoint", "visit"),
    [
        (-30, None, "BL"),
        (0, None, "BL"),
        (1, None, "UNS"),
        (23, None, "UNS"),
        (24, None, "D28"),
        (35, None, "D28"),
        (36, None, "UNS"),
        (77, None, "M3"),
        (105, None, "M3"),
        (162, None, "M6"),
        (204, None, "M6"),
        (335, None, "M12"),
        (395, None, "M12"),
        (396, "M12", "UNS"),
        (7, None, "UNS"),
        (7, "D7", "D7"),
        (11, "D7", "UNS"),
        (14, "D14", "D14"),
        (28, "UNS", "D28"),
    ],
)
def test_the_day_decides_the_visit(day: int, timepoint: str | None, visit: str) -> None:
    assert visit_of(day, timepoint) == visit


def test_windows_do_not_overlap() -> None:
    windows = sorted(load_visits().windows, key=lambda window: window.first_day)
    assert all(a.last_day < b.first_day for a, b in itertools.pairwise(windows))


def test_a_timepoint_or_label_that_contradicts_the_day_is_a_warning(folder: Path) -> None:
    manifest = load(
        folder,
        {"timepoint": "M3"},
        {"fcs_filename": "b.fcs", "visit": "M6"},
        {"fcs_filename": "sub/c.fcs", "timepoint": "D28", "visit": "relapse work-up"},
    )
    assert [finding.message for finding in manifest.warnings["a"]] == [
        "The timepoint is M3, but day 28 belongs to D28; the day counts."
    ]
    (finding,) = manifest.warnings["b"]
    assert (finding.code, finding.where) == ("VISIT_MISMATCH", "row 3, column visit")
    assert "c" not in manifest.warnings
    assert [row.visit for row in manifest.rows] == ["D28", "M6", "relapse work-up"]


def test_acquisition_names_fit_every_file_system() -> None:
    for good in ("47333tubeB10001", "A01 KC-A-W---91-US", "x", "Donor1", "P494_mrd0p05pct", "a.b"):
        assert acquisition_name_fault(good) == ""
    for bad in ("", ".", "..", ".x", "a ", "a.", "a\\b", "a:b", "ü", "NUL.fcs", "x" * 121, "a\n"):
        assert acquisition_name_fault(bad) != ""


def test_every_column_is_documented(repository: Path) -> None:
    text = (repository / "docs" / "reference" / "manifest.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(COLUMNS)


def write_json(folder: Path, rows: object) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_a_json_list_of_rows_means_the_same_as_csv(folder: Path) -> None:
    plain = {**GOOD, "study_day": 28, "lymph_pct": 24.5, "comment": None, "control_acquisition": "b"}
    manifest = load_manifest(write_json(folder, [plain, {**GOOD, "fcs_filename": "b.fcs"}]))
    same = load(folder, {"lymph_pct": "24.5", "control_acquisition": "b"}, {"fcs_filename": "b.fcs"})
    assert [row.model_dump(exclude={"row"}) for row in manifest.rows] == [
        row.model_dump(exclude={"row"}) for row in same.rows
    ]
    assert [row.row for row in manifest.rows] == [1, 2]


def test_faults_of_a_json_manifest_name_row_and_column_too(folder: Path) -> None:
    rows = [
        {**GOOD, "study_day": "later", "lymph_pct": 101, "specimen_type": True},
        {"patient_pseudonym": "PSN-1", "specimen_type": "bm", "tube": "x", "fcs_filename": "b.fcs"},
    ]
    with pytest.raises(ExceptionGroup) as caught:
        load_manifest(write_json(folder, rows))
    assert [str(error).partition(";")[0] for error in caught.value.exceptions] == [
        "manifest.json, row 1, column specimen_type: expected a string, a number or null",
        "manifest.json, row 1, column specimen_type: expected a value",
        "manifest.json, row 1, column study_day: expected a whole number",
        "manifest.json, row 1, column lymph_pct: expected a number from 0 to 100",
        "manifest.json, row 2, column specimen_type: expected one of BM, PB, CSF, PRODUCT",
        "manifest.json, row 2, column study_day: expected a value",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "manifest.json: expected at least one row; got none"),
        ([{"tube": 1, "ward": 2}], "manifest.json, header: unknown column 'ward'"),
    ],
)
def test_an_empty_json_manifest_and_an_unknown_column_are_refused(
    rows: list[dict[str, object]], message: str, folder: Path
) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        load_manifest(write_json(folder, rows))
    assert str(caught.value.exceptions[0]) == message


def test_a_gate_set_applies_to_every_acquisition_of_its_subject_and_tube(folder: Path) -> None:
    manifest = load(
        folder,
        {},
        {"fcs_filename": "b.fcs", "study_day": "91", "gate_set": "own.toml"},
        {"fcs_filename": "sub/c.fcs", "tube": "tbnk"},
        {"fcs_filename": "weird#.fcs", "acquisition": "w", "patient_pseudonym": "PSN-0043"},
    )
    sets = [manifest.gate_set_of(row) for row in manifest.rows]
    assert [one and one.gate_set.id for one in sets] == ["own", "own", None, None]
    assert sets[0] is not None
    assert sets[0].populations == ("cd19",)
    assert sets[0].digest == hashlib.sha256(GATE_SET.encode()).hexdigest()


def test_a_gate_set_of_another_subject_or_tube_is_a_fault_that_repeats_no_pseudonym(folder: Path) -> None:
    found = faults(
        folder,
        {"patient_pseudonym": "PSN-0043", "gate_set": "own.toml"},
        {"fcs_filename": "b.fcs", "tube": "tbnk", "gate_set": "own.toml"},
        {"fcs_filename": "sub/c.fcs", "gate_set": "none.toml"},
        {"fcs_filename": "weird#.fcs", "acquisition": "w", "gate_set": "own.toml", "gate_set_sha256": "0" * 64},
        {"fcs_filename": "with space (1).fcs", "gate_set_sha256": "0" * 64},
    )
    digest = hashlib.sha256(GATE_SET.encode()).hexdigest()
    assert found == [
        (
            "manifest.csv, row 2, column gate_set: expected a gate set of the row's patient_pseudonym; "
            "got one of another subject (compare gate_set.subject in own.toml)"
        ),
        (
            "manifest.csv, row 3, column gate_set: expected a gate set for the row's tube 'tbnk'; got one for "
            "'ball-mrd-10c' (name own.toml in a row of that tube, or correct gate_set.template in it)"
        ),
        (
            "manifest.csv, row 4, column gate_set: expected an existing gate set; got 'none.toml' "
            "(names are relative to the manifest's folder)"
        ),
        (
            f"manifest.csv, row 5, column gate_set_sha256: expected {'0' * 64} for own.toml; got {digest} "
            "(the gate set changed since it was listed)"
        ),
        "manifest.csv, row 6, column gate_set_sha256: expected a file in column gate_set; got none",
    ]


def test_two_gate_sets_for_one_subject_and_tube_are_a_fault(folder: Path) -> None:
    (folder / "copy.toml").write_text(GATE_SET, encoding="utf-8")
    (folder / "other.toml").write_text(GATE_SET.replace('"own"', '"other"'), encoding="utf-8")
    rows = [{"gate_set": "own.toml"}, {"fcs_filename": "b.fcs", "gate_set": "copy.toml"}]
    assert load(folder, *rows).gate_sets["PSN-0042", "ball-mrd-10c"].row == 2
    assert faults(folder, *rows, {"fcs_filename": "sub/c.fcs", "gate_set": "other.toml"}) == [
        (
            "manifest.csv, row 4, column gate_set: expected one gate set for a subject and tube; got other.toml, and "
            "own.toml in row 2 (a set named in one row applies to all acquisitions of subject and tube)"
        )
    ]


def test_faults_of_a_gate_set_are_told_in_the_row_that_names_it(folder: Path) -> None:
    (folder / "own.toml").write_text(GATE_SET.replace("date = 2026-03-01", 'date = "March"\nwhen = 1'))
    assert faults(folder, {"gate_set": "own.toml"}, {"fcs_filename": "b.fcs", "gate_set": "own.toml"}) == [
        (
            "manifest.csv, row 2, column gate_set: own.toml, gate_set.date: expected a date such as "
            "2026-03-01; got 'March'"
        ),
        "manifest.csv, row 2, column gate_set: own.toml, gate_set.when: unknown key",
    ]
