"""Labels beside a file: formats, columns, values, and one clear message for each fault."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flowmrd.errors import InputError, SettingsError
from flowmrd.evaluation.defaults import load_defaults
from flowmrd.evaluation.labels import Labels, Reading, Survey, choose_positive, find_labels, read_labels, survey_labels

DEFAULTS = load_defaults().labels
TRUTH = np.array([False, True, False, True, True])


def read(path: Path, *positive: str, events: int = 5, **rest: Any) -> Labels:
    """Survey and read one document, as a batch of one file does."""
    survey = survey_labels(path, DEFAULTS, column=rest.get("column"), events=events)
    values, _ = choose_positive([survey], DEFAULTS, positive)
    return read_labels(path, Reading(positive=values, **rest), DEFAULTS, events=events)


def text(folder: Path, content: str, name: str = "a.labels.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "0\n1\n0\n1\n1\n",
        "0\n1\n0\n1\n1",
        "blast\n0\n1\n0\n1\n1\n",
        "anything\r\n0\r\n1\r\n0\r\n1\r\n1\r\n",
        "\ufefflabel\n0\n1\n0\n1\n1\n",
        "0\n0\n1\n0\n1\n1\n",
        "label\n0.0\n1.0\n0.0\n1.0\n1.0\n",
        "label\nfalse\ntrue\nfalse\ntrue\ntrue\n",
        "label\nFalse\nTrue\nFalse\nTrue\nTrue\n",
        '"label"\n"0"\n"1"\n"0"\n"1"\n"1"\n',
        "nonB\nblast\nnonB\nblast\nblast\n",
        "population\nnonB\nblast\nnormal_B\nblast\nblast\n",
        "population\nT cell\nBlasts\nB cell\nBlasts\nBlasts\n",
        "intact,cd19,blast\n1,0,0\n1,1,1\n0,0,0\n1,1,1\n1,0,1\n",
        "cd19;blasts\n0;0\n1;1\n0;0\n1;1\n0;1\n",
        "cd19\tblast\n0\t0\n1\t1\n0\t0\n1\t1\n0\t1\n",
    ],
)
def test_text_of_many_programs_is_read(content: str, tmp_path: Path) -> None:
    assert (read(text(tmp_path, content)).positive == TRUTH).all()


def test_a_compressed_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.labels.csv.gz"
    path.write_bytes(gzip.compress(b"blast\n0\n1\n0\n1\n1\n"))
    assert (read(path).positive == TRUTH).all()


@pytest.mark.parametrize(
    "array",
    [
        TRUTH,
        TRUTH.astype(np.int8),
        TRUTH.astype(np.uint64),
        TRUTH.astype(np.float32),
        TRUTH.astype(np.int64).reshape(-1, 1),
        np.where(TRUTH, "blast", "other"),
        np.where(TRUTH, b"blast", b"other"),
        np.array(list(zip(TRUTH, range(5), strict=True)), dtype=[("blast", "?"), ("cluster", "i4")]),
    ],
)
def test_arrays_of_every_kind_are_read(array: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.labels.npy"
    np.save(path, array)
    assert (read(path).positive == TRUTH).all()


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("blast", TRUTH),
        pl.Series("blast", TRUTH.astype(np.int8)),
        pl.Series("x", np.where(TRUTH, "blast", "other"), dtype=pl.Categorical),
        pl.Series("x", np.where(TRUTH, "blast", "other"), dtype=pl.Enum(["blast", "other"])),
    ],
)
def test_parquet_of_every_kind_is_read(column: pl.Series, tmp_path: Path) -> None:
    path = tmp_path / "a.labels.parquet"
    pl.DataFrame([column]).write_parquet(path)
    assert (read(path).positive == TRUTH).all()


def test_named_values_of_a_named_column_are_the_disease(tmp_path: Path) -> None:
    path = text(tmp_path, "a,kind\n1,0\n1,2\n1,1\n1,2\n1,7\n")
    assert (read(path, "2", "7", column="kind").positive == TRUTH).all()
    assert (read(path, "2.0", column="kind").positive == [False, True, False, True, False]).all()


def test_a_column_of_intact_cells_is_the_denominator(tmp_path: Path) -> None:
    path = text(tmp_path, "intact,blast\n1,0\n1,1\n0,0\n1,1\n0,1\n")
    labels = read(path)
    assert labels.denominator is not None
    assert labels.denominator_column == "intact"
    assert labels.denominator.tolist() == [True, True, False, True, False]
    # A column of that name that holds other things says nothing.
    assert read(text(tmp_path, "viable,blast\n3,0\n1,1\n0,0\n1,1\n0,1\n")).denominator is None
    chosen = read(text(tmp_path, "cd45,blast\n1,0\n1,1\n0,0\n1,1\n0,1\n"), denominator="cd45")
    assert chosen.denominator is not None


def test_labels_are_found_beside_the_file(tmp_path: Path) -> None:
    fcs = tmp_path / "tube.1.fcs"
    with pytest.raises(InputError) as none:
        find_labels(fcs, DEFAULTS)
    assert str(none.value) == (
        "tube.1.fcs: no labels beside the file (expected tube.1.labels.{parquet,npy,csv.gz,csv}, or --labels FILE)"
    )
    text(tmp_path, "0\n", "tube.1.labels.csv")
    assert find_labels(fcs, DEFAULTS).name == "tube.1.labels.csv"
    np.save(tmp_path / "tube.1.labels.npy", TRUTH)
    with pytest.raises(InputError, match=r"several labels beside the file: tube\.1\.labels\.npy, tube\.1\.labels\.csv"):
        find_labels(fcs, DEFAULTS)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("blast\n0\n1\n0\n1\n", {}, "a.labels.csv: 4 labels for 5 events; expected one row an event, in file order"),
        ("kind\nB\nB\nblast\nB\n", {}, "a.labels.csv: 4 labels for 5 events; expected one row an event, in file order"),
        ("0\n1\n", {}, "a.labels.csv: 2 labels for 5 events; expected one row an event, in file order"),
        ("x\n0\n1\n0\n1\n1\n0\n", {}, "a.labels.csv: 6 labels for 5 events; expected one row an event, in file order"),
        (
            "cd19,blast\n0,0\n1,1\n0,0\n1,1\n0,1\n",
            {"column": "blasts"},
            "a.labels.csv, --column: no column 'blasts'; the columns are cd19, blast (did you mean blast?)",
        ),
        (
            "cd19,leukemia\n0,0\n1,1\n0,0\n1,1\n0,1\n",
            {},
            "a.labels.csv: several columns: cd19, leukemia (name one with --column NAME)",
        ),
        ("x\n0\n1\n\n1\n1\n", {}, "a.labels.csv, column 'x': no label in row 3"),
        ("a,blast\n0,0\n1,1\n0,\n1,1\n0,1\n", {}, "a.labels.csv, column 'blast': no label in row 3"),
        ("x\n0\n0.5\n0\n1\n1\n", {}, "a.labels.csv, column 'x': expected whole numbers or words; got 0.5"),
        ("x\n0\nnan\n0\n1\n1\n", {}, "a.labels.csv, column 'x': expected whole numbers or words; got nan"),
        ("", {}, "a.labels.csv: the file is empty"),
        (
            "a,blast\n0,0\n1,1\n2,0\n1,1\n0,1\n",
            {"denominator": "a"},
            "a.labels.csv, column 'a': expected 0 and 1; got 0, 1, 2",
        ),
        (
            "a,blast\n0,0\n1,1\n2,0\n1,1\n0,1\n",
            {"denominator": "viable"},
            "a.labels.csv, --denominator: no column 'viable'; the columns are a, blast",
        ),
    ],
)
def test_each_fault_is_one_message(content: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as fault:
        read(text(tmp_path, content), **options)
    assert str(fault.value) == message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.labels.npy", b"no array", r"a\.labels\.npy: not a readable \.npy file: "),
        ("a.labels.parquet", b"no table", r"a\.labels\.parquet: not a readable \.parquet file: "),
        ("a.labels.csv.gz", b"not packed", r"a\.labels\.csv\.gz: not a readable \.gz file: "),
        ("a.labels.txt", b"0\n", r"a\.labels\.txt: unknown format of labels; expected \.npy, \.csv, \.csv\.gz, \.parq"),
    ],
)
def test_a_file_of_another_kind_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(path)


def test_objects_and_tables_of_numbers_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.labels.npy"
    np.save(path, np.zeros((5, 3)))
    with pytest.raises(InputError, match=re.escape("expected one label an event; got an array of shape (5, 3)")):
        read(path)
    np.save(path, np.array([None, 1], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"not a readable \.npy file"):
        read(path)


# ------------------------------------------------------------------------------------------- one reading for the batch


def surveyed(kind: str, *values: str) -> Survey:
    return Survey(column="x", values=values, kind=kind, rows=5, sha256="")


def test_numbers_beyond_one_need_a_word_from_the_user() -> None:
    # A drawn marrow without blasts holds 0 and 1 only, where 1 is a normal B cell; another file of the batch says so.
    batch = [surveyed("numbers", "0", "1"), surveyed("numbers", "0", "1", "2")]
    with pytest.raises(SettingsError) as fault:
        choose_positive(batch, DEFAULTS, ())
    assert str(fault.value) == (
        "--positive: which label means the disease? The labels are 0, 1, 2 "
        "(name it: --positive VALUE, as often as needed)"
    )
    assert choose_positive(batch, DEFAULTS, ("2",)) == (("2",), ())


def test_words_that_no_one_knows_need_a_word_from_the_user() -> None:
    with pytest.raises(SettingsError, match="The labels are B cell, tumor"):
        choose_positive([surveyed("words", "B cell", "tumor")], DEFAULTS, ())


def test_a_value_that_no_file_has_is_told_apart_from_a_misspelt_one() -> None:
    batch = [surveyed("words", "B cell", "tumor")]
    assert choose_positive(batch, DEFAULTS, ("leukemia",)) == (("leukemia",), ("leukemia",))
    with pytest.raises(SettingsError, match=r"no event of any file is labelled 'tumour'.*did you mean tumor\?"):
        choose_positive(batch, DEFAULTS, ("tumour",))
    with pytest.raises(SettingsError, match="no event of any file is labelled 'leukemia'; found: nonB, blast"):
        choose_positive([surveyed("words", "nonB", "blast")], DEFAULTS, ("leukemia",))
    # A batch of drawn marrows without a blast: right, and told.
    assert choose_positive([surveyed("numbers", "0", "1")], DEFAULTS, ("2",)) == (("2",), ("2",))


def test_truth_values_may_be_named_as_words() -> None:
    assert choose_positive([surveyed("truth values", "0", "1")], DEFAULTS, ("True",)) == (("1",), ())
    assert choose_positive([], DEFAULTS, ()) == ((), ())
