"""HEADER, TEXT and the chain of data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmrd.errors import FcsError
from flowmrd.fcs import FcsFile, open_fcs, read_fcs
from flowmrd.fcs.segments import parse_pairs, quoted, to_integer, to_real

MakeFcs = Callable[..., Path]
DATA = np.arange(6, dtype="<f4").tobytes()


def codes(fcs: FcsFile) -> list[str]:
    return [f.code for f in fcs.findings]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/A/1/B/2/", [("A", "1"), ("B", "2")]),
        ("/A/1/B/2", [("A", "1"), ("B", "2")]),  # the last delimiter is often missing
        ("/A/1/B/2/   \x00", [("A", "1"), ("B", "2")]),
        ("/A/x//y/B/2/", [("A", "x/y"), ("B", "2")]),
        ("/A/x///B/2/", [("A", "x/"), ("B", "2")]),
        ("/A///x/B/2/", [("A", "/x"), ("B", "2")]),
        ("/A////B/2/", [("A", "/"), ("B", "2")]),
        ("/A//B//C/3/", [("A", ""), ("B", ""), ("C", "3")]),
        ("/A/1//", [("A", "1")]),
        ("/ $a /1/\n b/2/", [("$A", "1"), ("B", "2")]),
        ("\\A\\1\\\\2\\B\\3\\", [("A", "1\\2"), ("B", "3")]),
        ("|A|.*|B|[|", [("A", ".*"), ("B", "[")]),
    ],
)
def test_text_splits_at_its_own_delimiter_with_doubled_ones_and_empty_values(text: str, expected: Any) -> None:
    assert parse_pairs(text)[0] == expected


def test_the_strict_reading_keeps_a_doubled_delimiter_in_a_keyword() -> None:
    assert parse_pairs("/A//B/1/", doubled="strict")[0] == [("A/B", "1")]


@pytest.mark.parametrize("delimiter", ["|", "\\", "\x0c", "!", "\t", " ", "*", "^", ".", "~", "\x1e", "\n", ",", "["])
def test_any_delimiter_is_understood(make_fcs: MakeFcs, delimiter: str) -> None:
    names = ("FSC", "FL1")
    changes = {"$BYTEORD": "1,2,3,4".replace(",", ",," if delimiter == "," else ",")}
    changes |= {f"$P{i}E": "0,,0" if delimiter == "," else "0,0" for i in (1, 2)}
    fcs = read_fcs(make_fcs(DATA, changes, names=names, delimiter=delimiter))
    assert [c.pnn for c in fcs.channels] == list(names)
    assert fcs.events().tolist() == [[0, 2, 4], [1, 3, 5]]


def test_empty_values_are_read_as_empty_with_a_finding(make_fcs: MakeFcs) -> None:
    fcs = open_fcs(make_fcs(DATA, {"$OP": "", "$CELLS": "", "$COM": ""}))
    assert fcs.keywords["$OP"] == ""
    assert fcs.keywords["$CELLS"] == ""
    assert codes(fcs) == ["TEXT_EMPTY_VALUES", "TIME_MISSING"]
    assert fcs.verdict == "ok"


def test_a_doubled_delimiter_inside_a_value_is_the_delimiter_itself(make_fcs: MakeFcs) -> None:
    fcs = open_fcs(make_fcs(DATA, {"$P2S": "CD8//IgL"}))
    assert fcs.channels[1].pns == "CD8/IgL"


def test_empty_and_escaped_values_may_stand_in_one_file(make_fcs: MakeFcs) -> None:
    fcs = open_fcs(make_fcs(DATA, {"$OP": "", "$P2F": "530//30", "$SRC": "", "$P2S": "a//b"}))
    assert (fcs.keywords["$P2F"], fcs.keywords["$SRC"], fcs.channels[1].pns) == ("530/30", "", "a/b")


def test_keywords_keep_their_dollar_and_lose_their_case(make_fcs: MakeFcs) -> None:
    fcs = open_fcs(make_fcs(DATA, {"$fil": "x.fcs", "Fil": "other"}))
    assert (fcs.keywords["$FIL"], fcs.keywords["FIL"]) == ("x.fcs", "other")
    with pytest.raises(TypeError):
        fcs.keywords["$FIL"] = "y"  # type: ignore[index]


def test_utf8_and_latin1_values_are_read(make_fcs: MakeFcs) -> None:
    assert open_fcs(make_fcs(DATA, {"$P2S": "TCRγδ™"})).channels[1].pns == "TCRγδ™"
    old = open_fcs(make_fcs(DATA, {"$P2S": "Grün"}, encoding="latin-1"))
    assert old.channels[1].pns == "Grün"
    assert "TEXT_ENCODING" in codes(old)


def test_supplemental_text_is_merged_and_primary_text_wins(tmp_path: Path, make_fcs: MakeFcs) -> None:
    extra = b"/$P2S/CD19/$TOT/999/$CYT/machine/"
    path = make_fcs(DATA, {"$BEGINSTEXT": "0000000", "$ENDSTEXT": "0000000"}, tail=extra)
    raw = path.read_bytes()
    begin = len(raw) - len(extra)
    raw = raw.replace(b"$BEGINSTEXT/0000000", b"$BEGINSTEXT/%07d" % begin)
    raw = raw.replace(b"$ENDSTEXT/0000000", b"$ENDSTEXT/%07d" % (len(raw) - 1))
    path.write_bytes(raw)
    fcs = read_fcs(path)
    assert (fcs.channels[1].pns, fcs.event_count, fcs.keywords["$CYT"]) == ("CD19", 3, "machine")
    assert "STEXT_READ" in codes(fcs)


@pytest.mark.parametrize("end", ["99999999", "70"])
def test_supplemental_text_outside_the_file_is_a_finding(make_fcs: MakeFcs, end: str) -> None:
    begin = "9999990" if end == "99999999" else "10"
    found = codes(open_fcs(make_fcs(DATA, {"$BEGINSTEXT": begin, "$ENDSTEXT": end})))
    assert set(found) & {"STEXT_OUTSIDE", "STEXT_IS_TEXT"}


def test_a_structural_keyword_given_twice_is_a_warning(make_fcs: MakeFcs) -> None:
    fcs = open_fcs(make_fcs(DATA, text=lambda t: t + "$P1N/other/"))
    assert fcs.channels[0].pnn == "other"
    assert "TEXT_DUPLICATE_KEYWORD" in codes(fcs)


def test_a_last_keyword_without_value_is_a_warning_that_does_not_quote_it(make_fcs: MakeFcs) -> None:
    fcs = open_fcs(make_fcs(DATA, text=lambda t: t + "Jane Doe/"))
    (found,) = [f for f in fcs.findings if f.code == "TEXT_UNPAIRED"]
    assert "Jane" not in found.message


@pytest.mark.parametrize("version", ["FCS2.0", "FCS3.0", "FCS3.1", "FCS3.2"])
def test_every_version_is_read(make_fcs: MakeFcs, version: str) -> None:
    fcs = read_fcs(make_fcs(DATA, version=version))
    assert (fcs.version, fcs.event_count) == (version[3:], 3)


@pytest.mark.parametrize(
    ("magic", "message"),
    [
        ("XXX3.1", "not an FCS file: expected the letters FCS and a version in the first 6 bytes"),
        ("FCS4.0", "FCS version '4.0' is not one of 2.0, 3.0, 3.1, 3.2"),
        ("FCS1.0", "FCS version '1.0' is not one of 2.0, 3.0, 3.1, 3.2"),
    ],
)
def test_an_unknown_magic_is_refused_with_the_place(make_fcs: MakeFcs, magic: str, message: str) -> None:
    with pytest.raises(FcsError) as error:
        open_fcs(make_fcs(DATA, version=magic))
    assert error.value.message == message
    assert error.value.source == "made.fcs"
    assert error.value.where.startswith("byte ")
    assert error.value.hint


@pytest.mark.parametrize("size", [0, 5, 10, 57])
def test_a_file_shorter_than_a_header_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.fcs"
    path.write_bytes(b"FCS3.0    "[:size].ljust(size))
    with pytest.raises(FcsError, match=f"the file has {size} bytes, an FCS HEADER alone has 58"):
        open_fcs(path)


def test_text_beyond_the_end_of_the_file_is_refused(make_fcs: MakeFcs) -> None:
    path = make_fcs(DATA)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FcsError, match=r"TEXT should be at bytes 58-[0-9]+ of this data set, which has 200 bytes"):
        open_fcs(path)


def test_a_hostile_text_length_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "sparse.fcs"
    with path.open("wb") as out:
        out.write(b"FCS3.0          5899999999       0       0       0       0")
        out.truncate(100_000_010)
    with pytest.raises(FcsError, match="TEXT claims 99,999,942 bytes"):
        open_fcs(path)


def test_text_without_par_is_refused(make_fcs: MakeFcs) -> None:
    with pytest.raises(FcsError, match=r"TEXT has no \$PAR"):
        open_fcs(make_fcs(DATA, {"$PAR": None}))


def test_numbers_are_read_as_instruments_write_them() -> None:
    assert [to_integer(t) for t in (" 7 ", "+7", "7.0", "0007", "7.5", "x", "", None, "9" * 30)] == [
        7, 7, 7, 7, None, None, None, None, None,
    ]  # fmt: skip
    assert [to_real(t) for t in ("1e3", " .5", "nan", "inf", "1e999", "1,5")] == [1000.0, 0.5, None, None, None, None]
    assert quoted("12,3") == "'12,3'"
    assert quoted("Jane") == "a text of 4 characters"


# ---------------------------------------------------------------------------------------------------- several data sets


def chained(*sets: bytes, absolute: bool = False) -> bytes:
    """Data sets behind each other; `$NEXTDATA` of each must be the mark 0000000."""
    out = b""
    for i, part in enumerate(sets):
        step = len(part) if i + 1 < len(sets) else 0
        if absolute and step:
            step += len(out)
        out += part.replace(b"$NEXTDATA/0000000", b"$NEXTDATA/%07d" % step)
    return out


@pytest.mark.parametrize("absolute", [False, True])
def test_data_sets_are_found_relative_or_absolute(tmp_path: Path, make_fcs: MakeFcs, *, absolute: bool) -> None:
    parts = [
        make_fcs(np.full(2 * n, n, "<f4").tobytes(), {"$NEXTDATA": "0000000"}, events=n).read_bytes() for n in (2, 3, 4)
    ]
    path = tmp_path / "three.fcs"
    path.write_bytes(chained(*parts, absolute=absolute))
    for number, n in enumerate((2, 3, 4), 1):
        fcs = read_fcs(path, dataset=number)
        assert (fcs.dataset, fcs.datasets, fcs.event_count) == (number, 3, n)
        assert np.all(fcs.events() == n)
    first = open_fcs(path)
    assert (first.dataset, first.event_count) == (1, 2)
    assert "MULTIPLE_DATASETS" in codes(first)
    with pytest.raises(FcsError, match="there is no data set 4: the file has 3"):
        open_fcs(path, dataset=4)


@pytest.mark.parametrize("step", ["0000058", "0000012", "9999999", "-000500", "elsewhr"])
def test_a_next_data_set_that_is_not_there_is_a_finding(make_fcs: MakeFcs, step: str) -> None:
    fcs = open_fcs(make_fcs(DATA, {"$NEXTDATA": step}))
    assert (fcs.datasets, fcs.event_count) == (1, 3)
    assert "NEXTDATA_BROKEN" in codes(fcs)
    assert fcs.verdict == "warning"


def test_a_second_data_set_pointing_back_does_not_loop(tmp_path: Path, make_fcs: MakeFcs) -> None:
    first = make_fcs(DATA, {"$NEXTDATA": "0000000"}).read_bytes()
    second = make_fcs(DATA, {"$NEXTDATA": f"-{len(first):06d}"}).read_bytes()
    path = tmp_path / "loop.fcs"
    path.write_bytes(chained(first, second))
    fcs = open_fcs(path)
    assert fcs.datasets == 2
    assert "NEXTDATA_BROKEN" in codes(fcs)
