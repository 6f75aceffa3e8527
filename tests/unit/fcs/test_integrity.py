"""Offsets, counts, cut files, names, CRC: what is refused, what becomes a finding, and that nothing is silent."""

from __future__ import annotations

import binascii
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowmrd.errors import FcsError, Level
from flowmrd.fcs import FcsFile, open_fcs, read_fcs

MakeFcs = Callable[..., Path]
VALUES = np.arange(1, 21, dtype="<f4").reshape(10, 2)
DATA = VALUES.tobytes()


def level_of(fcs: FcsFile, code: str) -> Level:
    (found,) = [f for f in fcs.findings if f.code == code]
    return found.level


def codes(fcs: FcsFile) -> list[str]:
    return [f.code for f in fcs.findings if f.code != "TIME_MISSING"]


def test_a_file_as_the_standard_wants_it_has_no_findings(make_fcs: MakeFcs) -> None:
    fcs = read_fcs(make_fcs(DATA, events=10))
    assert codes(fcs) == []
    assert fcs.verdict == "ok"
    assert np.array_equal(fcs.events(), VALUES.T)


@pytest.mark.parametrize(
    ("stated", "name"), [(20, "twice"), (5, "half"), (9_999_999_999, "absurd"), (99, "ten"), (0, "0")]
)
def test_a_wrong_tot_is_a_violation_and_the_bytes_are_counted(make_fcs: MakeFcs, stated: int, name: str) -> None:
    fcs = read_fcs(make_fcs(DATA, {"$TOT": str(stated)}))
    assert fcs.event_count == 10, name
    assert level_of(fcs, "TOT_MISMATCH") is Level.VIOLATION
    assert fcs.verdict == "warning"
    (found,) = [f for f in fcs.findings if f.code == "TOT_MISMATCH"]
    assert found.message == (f"$TOT says {stated:,} events, DATA holds 10 (80 bytes of 8 each); 10 events are read")


def test_a_wrong_par_is_refused_or_flagged(make_fcs: MakeFcs) -> None:
    one = read_fcs(make_fcs(DATA, {"$PAR": "1"}, events=10))
    assert (one.event_count, level_of(one, "TOT_MISMATCH")) == (20, Level.VIOLATION)
    assert "PARAMETERS_BEYOND_PAR" in codes(one)
    with pytest.raises(FcsError, match="DATA has 80 bytes, which is not \\$TOT 10 events of 12 bytes"):
        open_fcs(make_fcs(DATA, {"$PAR": "3"}, events=10))
    for par in ("0", "99999"):
        with pytest.raises(FcsError, match="expected 1 to 10,000 parameters"):
            open_fcs(make_fcs(DATA, {"$PAR": par}, events=10))
    with pytest.raises(FcsError, match=r"\$PAR is a text of 3 characters, expected a whole number"):
        open_fcs(make_fcs(DATA, {"$PAR": "Jon"}, events=10))


def test_a_cut_file_is_refused_with_expected_and_found_bytes(make_fcs: MakeFcs) -> None:
    path = make_fcs(DATA, events=10)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(FcsError) as error:
        read_fcs(path)
    assert error.value.message.startswith("DATA is cut off: 80 bytes expected from byte ")
    assert error.value.message.endswith(", 50 in the file (6 of 10 events)")
    assert "copy or export the file again" in error.value.hint


def test_a_missing_tot_is_counted_from_the_bytes(make_fcs: MakeFcs) -> None:
    fcs = read_fcs(make_fcs(DATA, {"$TOT": None}))
    assert fcs.event_count == 10
    assert codes(fcs) == ["TOT_MISSING"]


@pytest.mark.parametrize("extra", [1, -1])
def test_an_end_one_byte_off_is_information(make_fcs: MakeFcs, extra: int) -> None:
    begin = len(make_fcs(DATA, events=10).read_bytes()) - 80
    changes = {"$BEGINDATA": f"{begin:07d}", "$ENDDATA": f"{begin + 79 + extra:07d}"}
    fcs = read_fcs(make_fcs(DATA, changes, events=10, header_data=(begin, begin + 79 + extra)))
    assert codes(fcs) == ["DATA_END_OFF_BY_ONE"]
    assert np.array_equal(fcs.events(), VALUES.T)


def test_a_crc_counted_as_data_is_not_read(make_fcs: MakeFcs) -> None:
    fcs = read_fcs(make_fcs(DATA + b"00000000", events=10))
    assert (fcs.event_count, codes(fcs)) == (10, ["DATA_PADDED"])


@pytest.mark.parametrize("where", ["header", "text"])
def test_offsets_that_point_outside_the_file_lose_to_those_that_fit(make_fcs: MakeFcs, where: str) -> None:
    if where == "header":
        path = make_fcs(DATA, events=10, header_data=(99_000, 99_079))
    else:
        path = make_fcs(DATA, events=10, shift=90_000)
    fcs = read_fcs(path)
    assert np.array_equal(fcs.events(), VALUES.T)
    assert level_of(fcs, "OFFSETS_DISAGREE") is Level.WARNING


def test_between_two_possible_places_plausible_values_decide(make_fcs: MakeFcs) -> None:
    # Both ranges hold 10 events inside the file; two bytes off, floats are absurd.
    fcs = read_fcs(make_fcs(DATA, events=10, shift=2, tail=bytes(8)))
    assert np.array_equal(fcs.events(), VALUES.T)
    (found,) = [f for f in fcs.findings if f.code == "OFFSETS_DISAGREE"]
    assert found.message.endswith("only the values at HEADER's are plausible")


@pytest.mark.parametrize(("gap", "chosen"), [(b" " * 16, "TEXT"), (b"\x01" * 16, "HEADER")])
def test_between_two_plausible_places_the_bytes_before_decide(make_fcs: MakeFcs, gap: bytes, chosen: str) -> None:
    table = np.arange(20, dtype="<u2")
    wide = {"$P1R": "65536", "$P2R": "65536"}
    begin = len(make_fcs(table.tobytes(), wide, events=10, datatype="I", bits=16).read_bytes()) - 40
    path = make_fcs(
        table.tobytes(),
        wide,
        events=10,
        datatype="I",
        bits=16,
        gap=gap,
        header_data=(begin, begin + 39),
        tail=bytes(16),
    )
    fcs = read_fcs(path)
    (found,) = [f for f in fcs.findings if f.code == "OFFSETS_DISAGREE"]
    assert f"so {chosen}'s is used" in found.message
    first = fcs.events()[0, 0]
    assert first == (0 if chosen == "TEXT" else int.from_bytes(gap[:2], "little"))


def test_a_blank_header_or_missing_text_offsets_are_enough_alone(make_fcs: MakeFcs) -> None:
    fcs = read_fcs(make_fcs(DATA, events=10, header_data="blank"))
    assert (fcs.event_count, codes(fcs)) == (10, ["HEADER_OFFSETS_MISSING"])
    fcs = read_fcs(make_fcs(DATA, {"$BEGINDATA": None, "$ENDDATA": None}, events=10))
    assert (fcs.event_count, codes(fcs)) == (10, ["TEXT_OFFSETS_MISSING"])
    fcs = read_fcs(make_fcs(DATA, {"$BEGINDATA": None, "$ENDDATA": None}, events=10, version="FCS2.0"))
    assert codes(fcs) == []
    with pytest.raises(FcsError, match="neither HEADER nor TEXT says where DATA is"):
        open_fcs(make_fcs(DATA, {"$BEGINDATA": None, "$ENDDATA": None}, events=10, header_data="blank"))


def test_a_wrong_end_is_a_violation_where_tot_fills_the_file(make_fcs: MakeFcs) -> None:
    path = make_fcs(DATA, {"$BEGINDATA": None, "$ENDDATA": None}, events=10, version="FCS2.0")
    begin = len(path.read_bytes()) - 80
    path = make_fcs(
        DATA, {"$BEGINDATA": None, "$ENDDATA": None}, events=10, version="FCS2.0", header_data=(begin, begin + 5000)
    )
    fcs = read_fcs(path)
    assert level_of(fcs, "DATA_END_WRONG") is Level.VIOLATION
    assert np.array_equal(fcs.events(), VALUES.T)


def test_data_over_text_is_refused(make_fcs: MakeFcs) -> None:
    with pytest.raises(FcsError, match="DATA cannot be where it is said to be"):
        open_fcs(make_fcs(DATA, {"$BEGINDATA": "60", "$ENDDATA": "139"}, events=10, header_data=(60, 139)))


@pytest.mark.parametrize("header_data", [(0, 0), "blank"])
def test_a_file_without_events_is_readable(make_fcs: MakeFcs, header_data: tuple[int, int] | str) -> None:
    fcs = read_fcs(make_fcs(b"", {"$BEGINDATA": "0", "$ENDDATA": "0"}, events=0, header_data=header_data))
    assert fcs.event_count == 0
    assert fcs.events().shape == (2, 0)
    assert list(fcs.blocks()) == []
    assert fcs.column(1).shape == (0,)
    assert codes(fcs) == ["NO_EVENTS"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"$MODE": "C"}, r"the data set holds a histogram \(\$MODE C\), not events"),
        ({"$MODE": "U"}, r"the data set holds a histogram \(\$MODE U\), not events"),
        ({"$DATATYPE": "A"}, r"the data are stored as ASCII text \(type A\)"),
        ({"$DATATYPE": "X"}, r"\$DATATYPE is a text of 1 characters, expected I, F or D"),
        ({"$DATATYPE": None}, r"\$DATATYPE is missing"),
        ({"$TOT": "many"}, r"\$TOT is a text of 4 characters, expected a whole number"),
        ({"$DATATYPE": "I", "$P2B": "65"}, r"\$P2B is '65', expected the bits of an integer"),
        ({"$DATATYPE": "I", "$P2B": "*"}, r"\$P2B is '\*', expected the bits of an integer"),
        ({"$DATATYPE": "I", "$P1B": None}, r"\$P1B is nothing, expected the bits of an integer"),
    ],
)
def test_what_cannot_be_decoded_is_refused(make_fcs: MakeFcs, changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(FcsError, match=message):
        open_fcs(make_fcs(DATA, changes, events=10))


def test_missing_and_odd_parameter_keywords_are_findings(make_fcs: MakeFcs) -> None:
    changes = {"$P1N": None, "$P2R": None, "$P1E": "x", "$P2B": "16", "$MODE": None}
    fcs = read_fcs(make_fcs(DATA, changes, events=10))
    assert np.array_equal(fcs.events(), VALUES.T)
    assert [c.pnn for c in fcs.channels] == ["P1", "FL1-A"]
    assert codes(fcs) == ["MODE_UNKNOWN", "WIDTH_IGNORED", "NAME_MISSING", "RANGE_MISSING", "AMPLIFICATION_INVALID"]
    assert read_fcs(make_fcs(DATA, {"$MODE": None}, events=10, version="FCS3.2")).verdict == "ok"


def test_doubles_called_floats_are_found_by_width_and_size(make_fcs: MakeFcs) -> None:
    fcs = read_fcs(make_fcs(VALUES.astype("<f8").tobytes(), events=10, bits=64))
    assert np.array_equal(fcs.events(), VALUES.T)
    assert level_of(fcs, "DATATYPE_BY_SIZE") is Level.WARNING
    # Without the widths' word it is a wrong $TOT, and no guess.
    fcs = read_fcs(make_fcs(VALUES.astype("<f8").tobytes(), events=10))
    assert (fcs.event_count, level_of(fcs, "TOT_MISMATCH")) == (20, Level.VIOLATION)


def test_a_duplicate_name_is_a_violation_and_a_duplicate_label_a_warning(make_fcs: MakeFcs) -> None:
    fcs = read_fcs(make_fcs(DATA, {"$P2N": "FSC-A"}, events=10))
    assert level_of(fcs, "DUPLICATE_PNN") is Level.VIOLATION
    fcs = read_fcs(make_fcs(DATA, {"$P1S": "CD19", "$P2S": "CD19"}, events=10))
    assert level_of(fcs, "DUPLICATE_PNS") is Level.WARNING
    assert codes(read_fcs(make_fcs(DATA, {"$P1S": " ", "$P2S": " "}, events=10))) == []


def test_nan_and_infinity_are_violations_counted_per_channel(make_fcs: MakeFcs) -> None:
    values = VALUES.copy()
    values[2:5, 1] = np.nan
    values[7, 0] = -np.inf
    fcs = read_fcs(make_fcs(values.tobytes(), events=10))
    messages = {f.code: f.message for f in fcs.findings if f.level is Level.VIOLATION}
    assert messages == {
        "VALUES_NAN": "3 values are NaN (FL1-A: 3); their events cannot be gated",
        "VALUES_INFINITE": "1 values are infinite (FSC-A: 1); their events cannot be gated",
    }
    assert fcs.verdict == "warning"
    assert np.array_equal(fcs.events(), values.T, equal_nan=True)


def test_values_beyond_the_range_are_reported(make_fcs: MakeFcs) -> None:
    high = read_fcs(make_fcs((VALUES * 1000).tobytes(), events=10))
    assert level_of(high, "RANGE_PASSED") is Level.INFO
    words = np.full((10, 2), 1001, "<u2")
    fcs = read_fcs(make_fcs(words.tobytes(), {"$P1R": "1000"}, events=10, datatype="I", bits=16))
    assert level_of(fcs, "RANGE_EXCEEDED") is Level.WARNING


@pytest.mark.parametrize("start", [0, 0xFFFF])
def test_a_crc_is_checked_where_a_program_wrote_one(make_fcs: MakeFcs, start: int) -> None:
    path = make_fcs(DATA, events=10)
    raw = path.read_bytes()
    path.write_bytes(raw + f"{binascii.crc_hqx(raw, start):08d}".encode())
    assert codes(open_fcs(path)) == ["CRC_OK"]
    path.write_bytes(raw + b"   12345")
    assert level_of(open_fcs(path), "CRC_MISMATCH") is Level.WARNING
    for none in (b"00000000", b"        ", b"", b"12", b"99999999", b"3     37"):
        path.write_bytes(raw + none)
        assert codes(open_fcs(path)) == []


def said(path: Path) -> str:
    """Everything that reading a file says about it."""
    try:
        fcs = read_fcs(path)
    except FcsError as error:
        return str(error)
    return " ".join(f.message + f.where for f in fcs.findings)


@pytest.mark.parametrize("datatype", ["F", "I"])
def test_no_message_ever_holds_a_keyword_that_may_name_a_person(make_fcs: MakeFcs, datatype: str) -> None:
    name = "Doe Jane"
    person = dict.fromkeys(["$SRC", "PATIENT ID", "$OP", "$INST", "$FIL", "$SMNO"], name)
    structural = ["$TOT", "$PAR", "$BYTEORD", "$DATATYPE", "$NEXTDATA", "$P1B", "$P1R", "$P1G", "$P1E", "$TIMESTEP"]
    for key in [*structural, "$MODE", "$SPILLOVER", "$BEGINDATA", "$P1DATATYPE", "$DFC1TO2", "$BEGINSTEXT"]:
        path = make_fcs(DATA, person | {"$P2N": "Time", key: name}, events=10, datatype=datatype)
        assert "Doe" not in said(path), key
