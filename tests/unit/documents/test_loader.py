"""Documents say where their faults are."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from flowmrd.documents.loader import key_path, load_toml, nearest, raise_faults, read_csv, read_table, validate
from flowmrd.errors import InputError, ManifestError, SettingsError


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "doc.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_toml_is_read_with_its_digest(tmp_path: Path) -> None:
    path = write(tmp_path, 'name = "x"\n[a]\nb = 1e-4\n')
    document = load_toml(path, error=SettingsError)
    assert document.data == {"name": "x", "a": {"b": 1e-4}}
    assert (document.path, len(document.digest)) == (path, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a = 1\nb = \n", "doc.txt, line 2, column 5: not valid TOML: Invalid value"),
        (b"a = 1\nb = '\xff'\n", "doc.txt, line 2: expected UTF-8 text; got byte 0xff (save the file as UTF-8)"),
    ],
)
def test_broken_toml_is_located(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_toml(write(tmp_path, content), error=SettingsError)
    assert str(caught.value) == message


def test_an_absent_and_a_huge_document_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: cannot be read: No such file or directory"):
        load_toml(tmp_path / "none.toml", error=SettingsError)
    with pytest.raises(SettingsError, match="expected a document of at most 50 MB; got more"):
        load_toml(write(tmp_path, b"#" * 50_000_001), error=SettingsError)


def test_csv_rows_keep_the_numbers_of_the_spreadsheet(tmp_path: Path) -> None:
    text = '\ufeffa, b ,c\r\n1,"x, y",3\r\n\r\n,,\r\n"two\nlines"," 2 ","say ""hi"""\r\n'
    table = read_csv(write(tmp_path, text), error=ManifestError)
    assert table.header == ("a", "b", "c")
    assert [(row.number, dict(row.cells)) for row in table.rows] == [
        (2, {"a": "1", "b": "x, y", "c": "3"}),
        (5, {"a": "two\nlines", "b": "2", "c": 'say "hi"'}),
    ]
    assert table.faults == ()


def test_unusual_line_separators_inside_a_cell_do_not_end_a_row(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, "a,b\n1,x\u2028y\x0bz\n"), error=ManifestError)
    assert [row.cells["b"] for row in table.rows] == ["x\u2028y\x0bz"]


def test_rows_of_another_length_are_faults_beside_the_good_rows(tmp_path: Path) -> None:
    table = read_csv(write(tmp_path, "a,b\n1,2\n1,2,3\n4\n"), error=ManifestError)
    assert len(table.rows) == 1
    assert [str(fault) for fault in table.faults] == [
        "doc.txt, row 3: expected 2 cells as in the header; got 3 (quote cells that contain a comma)",
        "doc.txt, row 4: expected 2 cells as in the header; got 1 (quote cells that contain a comma)",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n \n", "doc.txt: expected a header row; got an empty file"),
        (
            "a;b\n1;2\n",
            (
                "doc.txt, row 1: expected commas between columns; got another separator "
                "(save the table as comma-separated CSV, UTF-8)"
            ),
        ),
        ("a,,c\n", "doc.txt, row 1: expected a name in every column of the header; got none in column 2"),
        ("a,b,a\n", "doc.txt, row 1: expected each column once; got a twice"),
        ('a,b\n"1,2\n', "doc.txt, line 2: not valid CSV: unexpected end of data"),
        (b"a,b\n\xe9,2\n", "doc.txt, line 2: expected UTF-8 text; got byte 0xe9 (save the file as UTF-8)"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_csv(write(tmp_path, content), error=ManifestError)
    assert str(caught.value) == message


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    depth: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    items: list[Inner] = []


def test_faults_of_a_document_are_collected_with_their_key_paths() -> None:
    data = {"nam": "x", "items": [{"depth": 1}, {"depth": "deep", "wide": 2}]}
    with pytest.raises(ExceptionGroup, match=r"s\.toml: 4 faults") as caught:
        validate(Outer, data, source="s.toml", error=SettingsError)
    assert all(isinstance(error, SettingsError) for error in caught.value.exceptions)
    assert sorted(str(error) for error in caught.value.exceptions) == [
        "s.toml, items[1].depth: Input should be a valid integer, unable to parse string as an integer; got 'deep'",
        "s.toml, items[1].wide: unknown key",
        "s.toml, nam: unknown key (did you mean name?)",
        "s.toml, name: expected this key; got nothing",
    ]
    assert validate(Outer, {"name": "x"}, source="s.toml", error=SettingsError).items == []


def test_faults_are_raised_together_and_none_raise_nothing() -> None:
    raise_faults([], source="x")
    faults = [InputError("one"), InputError("two")]
    with pytest.raises(ExceptionGroup, match="x: 2 faults") as caught:
        raise_faults(faults, source="x")
    assert list(caught.value.exceptions) == faults


def test_names_and_paths() -> None:
    assert nearest("Specimen", ["specimen_type", "tube"]) == "did you mean specimen_type?"
    assert nearest("zzz", ["tube"]) == ""
    assert key_path(["population", 2, "params", "cut"]) == "population[2].params.cut"


def test_json_rows_are_read_as_csv_rows_with_numbers_as_they_are_written(tmp_path: Path) -> None:
    text = '\ufeff [{"a": " x ", "b": 28, "c": null}, {}, {"a": 1.50e-4, "d": "y"}]'
    table = read_table(write(tmp_path, text), error=ManifestError)
    assert table.header == ("a", "b", "c", "d")
    assert [(row.number, dict(row.cells)) for row in table.rows] == [
        (1, {"a": "x", "b": "28", "c": "", "d": ""}),
        (3, {"a": "1.50e-4", "b": "", "c": "", "d": "y"}),
    ]
    assert table.faults == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "doc.txt: expected a list of row objects; got an object (write [ {…}, {…} ])"),
        ('[\n{"a" 1}]', "doc.txt, line 2, column 6: not valid JSON: Expecting ':' delimiter"),
        ("[" * 100_000, "doc.txt: expected a list of row objects; got values nested too deep"),
    ],
)
def test_json_that_is_no_list_of_rows_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_table(write(tmp_path, text), error=ManifestError)
    assert str(caught.value) == message


def test_json_faults_of_shape_are_collected(tmp_path: Path) -> None:
    text = '[{"a": true}, 3, {"a": 1, "a": 2}, {"a": [1]}]'
    table = read_table(write(tmp_path, text), error=ManifestError)
    assert [str(fault) for fault in table.faults] == [
        "doc.txt, row 1, column a: expected a string, a number or null; got true or false",
        "doc.txt, row 2: expected an object; got the number 3",
        "doc.txt, row 3, column a: expected each column once; got it twice",
        "doc.txt, row 4, column a: expected a string, a number or null; got a list",
    ]
