"""Properties of reading and writing: what is written reads back exactly, and no bytes make the reader crash."""

from __future__ import annotations

import math
import string
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowmrd.errors import FcsError
from flowmrd.fcs import Channel, Spillover, inspect_fcs, open_fcs, read_fcs, scan_values, write_fcs
from flowmrd.fcs.segments import parse_pairs

DELIMITERS = "|/\\\x0c~^!\t\x1e*,. ;:@#%&()[]{}'\"`<>?=+-_\n"
NAME = st.text(string.ascii_letters + string.digits + " -/()|\\é™", min_size=1, max_size=12).map(str.strip)
VALUE = st.text(string.printable + "µé™", min_size=1, max_size=20)


@st.composite
def acquisitions(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `write_fcs` that are allowed."""
    datatype = draw(st.sampled_from("FDI"))
    names = draw(st.lists(NAME.filter(bool), min_size=1, max_size=5, unique=True))
    n = draw(st.integers(0, 40))
    channels, columns = [], []
    for i, name in enumerate(names):
        log = datatype == "I" and draw(st.booleans())
        bits = draw(st.sampled_from([8, 16, 24, 32])) if datatype == "I" else 32
        span = draw(st.integers(1, 2**bits))
        channels.append(
            Channel(
                index=i,
                pnn=name,
                pns=draw(st.one_of(st.just(""), VALUE.filter(lambda t: bool(t.strip())))),
                range=float(span),
                gain=1.0 if log else draw(st.sampled_from([1.0, 2.0, 0.01])),
                bits=bits,
                log_decades=4.0 if log else 0.0,
                log_offset=1.0 if log else 0.0,
            )
        )
        if datatype == "I":
            columns.append(np.array(draw(st.lists(st.integers(0, span - 1), min_size=n, max_size=n)), np.uint64))
        else:
            number = st.floats(-1e300, 1e300) if datatype == "D" else st.floats(-(2.0**120), 2.0**120, width=32)
            columns.append(np.array(draw(st.lists(number, min_size=n, max_size=n)), np.float64))
    keywords = draw(st.dictionaries(st.text(string.ascii_uppercase + "#@", min_size=1, max_size=8), VALUE, max_size=4))
    taken = {"SPILL", "SPILLOVER", "COMP"}  # these would be read as a matrix
    text = "".join(keywords) + "".join(f"$P{i}N" for i in range(10)) + "$BEGINSTEXT"
    spill = None
    if len(names) > 1 and draw(st.booleans()):
        cells = st.floats(-0.05, 2, allow_nan=False)
        matrix = np.eye(2)
        matrix[0, 1], matrix[1, 0] = draw(cells), draw(cells)
        spill = Spillover(channels=(names[1], names[0]), matrix=matrix, source="$SPILLOVER")
    return {
        "columns": columns,
        "channels": channels,
        "keywords": {k: v for k, v in keywords.items() if k not in taken},
        "spillover": spill,
        "datatype": datatype,
        "byte_order": draw(st.sampled_from(["little", "big"])),
        "delimiter": draw(st.sampled_from([None, *(d for d in DELIMITERS if d not in text)])),
    }


@given(acquisitions())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_what_is_written_reads_back_exactly(arguments: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.fcs"
        write_fcs(path, **arguments)
        fcs = read_fcs(path)
        streamed = open_fcs(path)
        values = streamed.events()
        assert np.array_equal(fcs.events(), values)
    channels, columns = arguments["channels"], arguments["columns"]
    assert [(c.pnn, c.pns, c.range, c.gain) for c in fcs.channels] == [
        (c.pnn, c.pns, c.range, c.gain) for c in channels
    ]
    assert fcs.event_count == len(columns[0])
    assert fcs.stored is not None
    for stored, column in zip(fcs.stored, columns, strict=True):
        assert np.array_equal(stored, column.astype(stored.dtype))
    assert fcs.keywords.items() >= arguments["keywords"].items()
    assert not {f.code for f in fcs.findings} & {"OFFSETS_DISAGREE", "TOT_MISMATCH", "TEXT_UNPAIRED", "BITS_MASKED"}
    if arguments["spillover"] is not None:
        assert fcs.spillover is not None
        assert fcs.spillover.channels == arguments["spillover"].channels
        assert np.array_equal(fcs.spillover.matrix, arguments["spillover"].matrix)
    for c, column, linear in zip(channels, columns, values, strict=True):
        if fcs.channels[c.index].kind == "time":
            continue
        stored = column.astype(np.float32 if arguments["datatype"] == "F" else np.float64).astype(np.float64)
        expected = 10 ** (4.0 * stored / c.range) if c.log_decades else stored / c.gain
        assert np.array_equal(linear.astype(np.float64), expected)


def _small() -> list[bytes]:
    """Valid files of a few hundred bytes to damage."""
    rng = np.random.default_rng(5)
    files = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.fcs"
        for datatype, bits, byte_order, delimiter in (
            ("F", 32, "little", "|"),
            ("D", 32, "big", "/"),
            ("I", 16, "little", "\\"),
            ("I", 24, "big", "\x0c"),
        ):
            channels = [
                Channel(index=i, pnn=name, bits=bits, range=1000.0) for i, name in enumerate(("FSC-A", "FL1-A", "Time"))
            ]
            write_fcs(
                path,
                rng.integers(0, 1000, (3, 17)),
                channels,
                keywords={"$TIMESTEP": "0.1"},
                spillover=Spillover(channels=("FSC-A", "FL1-A"), matrix=np.array([[1, 0.1], [0, 1]]), source=""),
                datatype=datatype,  # type: ignore[arg-type]
                byte_order=byte_order,  # type: ignore[arg-type]
                delimiter=delimiter,
            )
            files.append(path.read_bytes())
    return files


SMALL = _small()
TOKENS = [
    b"$TOT", b"$PAR", b"99999999", b"0", b"-1", b"1e9", b"nan", b"A", b"C", b"D", b"3,4,1,2", b"2,1", b"10", b"64",
    b"$NEXTDATA", b"$BEGINSTEXT", b"$P1DATATYPE", b"4,0", b"9" * 400, b"\xff", b"\x00", b"||", b"2.0", b"3.2", b"FCS",
]  # fmt: skip
DAMAGE = st.tuples(
    st.sampled_from(["byte", "token", "insert", "delete", "cut", "repeat"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
    st.sampled_from(TOKENS),
)


def damaged(raw: bytes, hits: list[tuple[str, float, int, bytes]]) -> bytes:
    out = bytearray(raw)
    for what, place, byte, token in hits:
        if not out:
            break
        at = math.floor(place**2 * len(out))  # mostly in HEADER and TEXT
        if what == "byte":
            out[at] = byte
        elif what == "token":
            out[at : at + len(token)] = token
        elif what == "insert":
            out[at:at] = token
        elif what == "delete":
            del out[at : at + byte % 20 + 1]
        elif what == "cut":
            del out[at:]
        else:
            out += raw
    return bytes(out)


@given(st.sampled_from(SMALL), st.lists(DAMAGE, min_size=1, max_size=6))
@settings(max_examples=500, deadline=None)
def test_damaged_files_are_read_with_findings_or_refused_but_never_crash(
    raw: bytes, hits: list[tuple[str, float, int, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.fcs"
        path.write_bytes(damaged(raw, hits))
        report = inspect_fcs(path)
        if report["verdict"] == "refused":
            with pytest.raises(FcsError) as error:
                read_fcs(path)
            assert error.value.source == "a.fcs"
            assert folder not in str(error.value)
            return
        held = read_fcs(path)
        assert report["verdict"] == held.verdict
        streamed = scan_values(open_fcs(path))
        assert streamed.findings == held.findings
        assert np.array_equal(streamed.events(), held.events(), equal_nan=True)
        assert report["events"] == held.event_count


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_or_read(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.fcs"
        for start in (b"", b"FCS3.1          58      99"):
            path.write_bytes(start + raw)
            assert inspect_fcs(path)["verdict"] in {"ok", "warning", "refused"}


@given(
    st.lists(st.tuples(st.text("AB$ é", min_size=1, max_size=5), st.text("AB/| ", max_size=6)), max_size=6),
    st.sampled_from("/|"),
)
@settings(max_examples=200, deadline=None)
def test_keywords_and_values_survive_escaping(pairs: list[tuple[str, str]], delimiter: str) -> None:
    pairs = [(f"K{i}{key.strip().upper()}", value) for i, (key, value) in enumerate(pairs)]
    text = delimiter + "".join(f"{k}{delimiter}{v.replace(delimiter, delimiter * 2)}{delimiter}" for k, v in pairs)
    assert parse_pairs(text)[0] == pairs
