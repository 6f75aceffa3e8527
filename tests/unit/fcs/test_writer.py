"""The writer: what it writes reads back exactly, and what FCS 3.1 forbids it refuses."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowmrd.errors import FcsError
from flowmrd.fcs import Channel, Spillover, read_fcs, write_fcs
from flowmrd.fcs.writer import _head

flowio = pytest.importorskip("flowio")

CHANNELS = [Channel(index=0, pnn="FSC-A"), Channel(index=1, pnn="PE-A", pns="CD10"), Channel(index=2, pnn="Time")]
VALUES = np.array([[1.5, 2, 3, 4], [-5, 6, 7.25, 8], [0, 1, 2, 3]], np.float32)
SPILLOVER = Spillover(channels=("PE-A", "FSC-A"), matrix=np.array([[1, 0.1 + 0.2], [1e-5, 1]]), source="test")


@pytest.mark.parametrize("byte_order", ["little", "big"])
@pytest.mark.parametrize("datatype", ["F", "D"])
def test_a_written_file_reads_back_without_findings(tmp_path: Path, datatype: Any, byte_order: Any) -> None:
    path = tmp_path / "a.fcs"
    keywords = {"$TIMESTEP": "0.5", "$CYT": "a/b|c\\d~e^f!g\x0ch", "custom": "ü"}
    write_fcs(path, VALUES, CHANNELS, keywords=keywords, spillover=SPILLOVER, datatype=datatype, byte_order=byte_order)
    fcs = read_fcs(path)
    assert fcs.findings == ()
    assert (fcs.version, fcs.event_count) == ("3.1", 4)
    assert np.array_equal(fcs.events([0, 1]), VALUES[:2])
    assert fcs.column(2).tolist() == [0, 0.5, 1, 1.5]
    assert [(c.pnn, c.pns) for c in fcs.channels] == [(c.pnn, c.pns) for c in CHANNELS]
    assert fcs.spillover is not None
    assert fcs.spillover.channels == SPILLOVER.channels
    assert np.array_equal(fcs.spillover.matrix, SPILLOVER.matrix)
    assert (fcs.keywords["$CYT"], fcs.keywords["CUSTOM"]) == ("a/b|c\\d~e^f!g\x0ch", "ü")


def test_flowio_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.fcs"
    write_fcs(path, VALUES, CHANNELS, keywords={"$TIMESTEP": "0.5"})
    data = flowio.FlowData(path)
    assert np.array_equal(data.as_array(), read_fcs(path).events().T)
    assert data.pnn_labels == [c.pnn for c in CHANNELS]
    ints = [replace(c, bits=16, range=1024.0) for c in CHANNELS]
    write_fcs(path, np.array([[1, 1023], [0, 5], [7, 8]]), ints, datatype="I", byte_order="big")
    assert np.array_equal(flowio.FlowData(path).as_array(), [[1, 0, 7], [1023, 5, 8]])


def test_integers_of_every_width_and_scale_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.fcs"
    channels = [
        Channel(index=i, pnn=f"W{bits}", bits=bits, range=float(2**bits)) for i, bits in enumerate((8, 16, 24, 32, 64))
    ]
    channels.append(Channel(index=5, pnn="L", bits=16, range=1000.0, log_decades=4.0, log_offset=0.1))
    columns = [np.array([0, 2**c.bits - 1 if c.bits < 64 else 2**53, 7], np.uint64) for c in channels]
    columns[5] = np.array([0, 999, 500], np.uint64)
    for byte_order in ("little", "big"):
        write_fcs(path, columns, channels, datatype="I", byte_order=byte_order)
        fcs = read_fcs(path)
        assert [f.code for f in fcs.findings] == ["TIME_MISSING"]
        assert fcs.events()[:5].tolist() == [c.astype(float).tolist() for c in columns[:5]]
        assert np.array_equal(fcs.column(5), 10 ** (4.0 * columns[5] / 1000.0) * 0.1)


def test_widths_that_share_a_word_are_written_each_in_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.fcs"
    channels = [Channel(index=i, pnn=f"C{i}", bits=bits, range=1000.0) for i, bits in enumerate((32, 24, 32))]
    write_fcs(path, np.array([[1, 2], [3, 4], [5, 6]]), channels, datatype="I")
    assert read_fcs(path).events().tolist() == [[1, 2], [3, 4], [5, 6]]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    digests = set()
    for name in ("a.fcs", "b.fcs"):
        write_fcs(tmp_path / name, VALUES, CHANNELS, keywords={"$CYT": "x"}, spillover=SPILLOVER)
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_file_without_events_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "a.fcs"
    write_fcs(path, np.empty((3, 0)), CHANNELS)
    fcs = read_fcs(path)
    assert fcs.event_count == 0
    assert [f.code for f in fcs.findings] == ["NO_EVENTS", "TIME_TICKS"]


@pytest.mark.parametrize("data_bytes", [1, 99_999_000, 99_999_999, 100_000_000, 123_456_789_012])
def test_offsets_are_right_at_any_size(data_bytes: int) -> None:
    header, text = _head([("$PAR", "1"), ("$CYT", "x|y")], "|", data_bytes, "x")
    begin = 58 + len(text)
    end = begin + data_bytes - 1
    assert text.endswith(f"$BEGINDATA|{begin}|$ENDDATA|{end}|".encode())
    assert int(header[10:18]) == 58
    assert int(header[18:26]) == begin - 1
    stated = (int(header[26:34]), int(header[34:42]))
    assert stated == ((begin, end) if end <= 99_999_999 else (0, 0))
    assert len(header) == 58
    assert b"x||y" in text


@pytest.mark.slow
def test_a_file_beyond_99_999_999_bytes_reads_back(tmp_path: Path) -> None:
    n = 7_000_000
    channels = [Channel(index=i, pnn=f"C{i}") for i in range(4)]
    columns = [np.arange(n, dtype=np.float32) + i for i in range(4)]
    write_fcs(tmp_path / "big.fcs", columns, channels)
    with (tmp_path / "big.fcs").open("rb") as handle:
        raw = handle.read(58)
    assert raw[26:42] == b"       0       0"
    fcs = read_fcs(tmp_path / "big.fcs")
    assert [f.code for f in fcs.findings] == ["TIME_MISSING", "RANGE_PASSED"]
    assert fcs.stored is not None
    assert all(np.array_equal(stored, column) for stored, column in zip(fcs.stored, columns, strict=True))


def one(**changes: Any) -> list[Channel]:
    return [replace(Channel(index=0, pnn="A", bits=16, range=1024.0), **changes)]


@pytest.mark.parametrize(
    ("channels", "values", "options", "message"),
    [
        (one(pnn="A,B"), [1.0], {}, "'A,B' cannot be a $PnN"),
        (one(pnn=""), [1.0], {}, "'' cannot be a $PnN"),
        (one(range=0.0), [1.0], {}, "range 0 is not positive"),
        (one(range=float("nan")), [1.0], {}, "range nan is not positive"),
        (one(gain=0.0), [1.0], {}, "gain 0 is not positive"),
        (one(log_decades=4.0, log_offset=1.0), [1.0], {}, "float values are linear"),
        (one(log_decades=4.0), [1.0], {"datatype": "I"}, "a log scale needs positive decades and a positive offset"),
        (one(log_decades=4.0, log_offset=1.0, gain=2.0), [1.0], {"datatype": "I"}, "on a log scale has no gain"),
        (one(bits=12), [1.0], {"datatype": "I"}, "12 bits; integers have one of (8, 16, 24, 32, 64)"),
        (one(range=65537.0), [1.0], {"datatype": "I"}, "range 65537 is not a whole number up to 2^16"),
        (one(), [float("nan")], {}, "values must be finite"),
        (one(), [float("-inf")], {}, "values must be finite"),
        (one(), [1e39], {}, "a value is too large for float32"),
        (one(), [1.5], {"datatype": "I"}, "values of an integer file must be whole numbers"),
        (one(), [-1.0], {"datatype": "I"}, "integers must lie in 0..1023, got -1..-1"),
        (one(), [1024.0], {"datatype": "I"}, "integers must lie in 0..1023, got 1024..1024"),
        (one(), ["x"], {}, "are not numbers"),
        (one(), [[1.0]], {}, "columns must be one-dimensional and of equal length"),
        (one() + one(), [1.0], {}, "got 1 columns for 2 channels"),
        (one(), [1.0], {"datatype": "A"}, "datatype must be F, D or I"),
        (one(), [1.0], {"keywords": {"$TOT": "7"}}, "keyword $TOT follows from the data or stands twice"),
        (one(), [1.0], {"keywords": {"$P1N": "B"}}, "keyword $P1N follows from the data or stands twice"),
        (one(), [1.0], {"keywords": {"a": "1", "A": "2"}}, "keyword A follows from the data or stands twice"),
        (one(), [1.0], {"keywords": {"a": ""}}, "a keyword needs a text that is not empty"),
        (one(), [1.0], {"keywords": {"": "x"}}, "'' cannot be a keyword"),
        (one(), [1.0], {"keywords": {"é": "x"}}, "cannot be a keyword"),
        (one(), [1.0], {"keywords": {"a": "\x00"}}, "keywords must not hold NUL"),
        (one(), [1.0], {"delimiter": "$"}, "'$' cannot be the delimiter"),
        (one(), [1.0], {"delimiter": "ab"}, "'ab' cannot be the delimiter"),
        (one(), [1.0], {"keywords": {"a/b": "x"}, "delimiter": "/"}, "the delimiter '/' stands in a keyword"),
        (one(), [1.0], {"spillover": SPILLOVER}, "spillover names a channel twice or one that is not written"),
    ],
)  # fmt: skip
def test_what_the_standard_forbids_is_refused(
    tmp_path: Path, channels: list[Channel], values: list[Any], options: dict[str, Any], message: str
) -> None:
    path = tmp_path / "a.fcs"
    path.write_bytes(b"before")
    with pytest.raises(FcsError) as error:
        write_fcs(path, [np.array(values)], channels, **options)
    assert message in str(error.value)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.fcs"]


def test_a_repeated_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FcsError, match=r"a \$PnN may stand only once"):
        write_fcs(tmp_path / "a.fcs", np.ones((2, 1)), [*one(), *one()])


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_fcs(tmp_path / "a.fcs", VALUES, CHANNELS)
    assert list(tmp_path.iterdir()) == []
