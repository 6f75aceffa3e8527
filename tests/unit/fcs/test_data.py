"""Types, widths, byte orders and scales of DATA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowmrd.errors import FcsError
from flowmrd.fcs import ChannelKind, FcsFile, channel_kind, open_fcs, read_fcs

MakeFcs = Callable[..., Path]


def codes(fcs: FcsFile) -> list[str]:
    return [f.code for f in fcs.findings]


def both(path: Path) -> FcsFile:
    """The file streamed and read, which must agree."""
    streamed, held = open_fcs(path), read_fcs(path)
    assert np.array_equal(streamed.events(), held.events(), equal_nan=True)
    return held


@pytest.mark.parametrize("order", ["1,2,3,4", "4,3,2,1", "1,2", "2,1"])
@pytest.mark.parametrize(("bits", "kind"), [(8, "u1"), (16, "u2"), (32, "u4"), (64, "u8")])
def test_integers_of_whole_words_in_both_orders(make_fcs: MakeFcs, order: str, bits: int, kind: str) -> None:
    sign = "<" if order.startswith("1") else ">"
    values = np.array([[1, 200], [3, 255], [0, 7]])
    path = make_fcs(values.astype(sign + kind).tobytes(), datatype="I", bits=bits, byte_order=order)
    assert both(path).events().tolist() == values.T.tolist()


@pytest.mark.parametrize("order", ["1,2,3,4", "4,3,2,1"])
def test_integers_of_24_bits(make_fcs: MakeFcs, order: str) -> None:
    values = np.array([[1, 70_000], [16_000_000, 2], [255, 256]])
    words = values.astype("<u4" if order[0] == "1" else ">u4").view(np.uint8).reshape(3, 2, 4)
    part = words[..., :3] if order[0] == "1" else words[..., 1:]
    path = make_fcs(part.tobytes(), {"$P1R": "16777216", "$P2R": "16777216"}, datatype="I", bits=24, byte_order=order)
    assert both(path).events().tolist() == values.T.tolist()


@pytest.mark.parametrize(("order", "places"), [("3,4,1,2", [2, 3, 0, 1]), ("2,1,4,3", [1, 0, 3, 2])])
def test_mixed_byte_orders_of_32_bits(make_fcs: MakeFcs, order: str, places: list[int]) -> None:
    values = np.array([[0x01020304, 5], [70_000, 2], [9, 0xFFFFFFFF]])
    words = values.astype("<u4").view(np.uint8).reshape(3, 2, 4)
    # $BYTEORD gives the significance of each byte as it comes.
    path = make_fcs(
        words[..., places].tobytes(),
        {"$P1R": "4294967296", "$P2R": "4294967296"},
        datatype="I",
        byte_order=order,
    )
    assert both(path).events().tolist() == values.T.tolist()


def test_a_mixed_byte_order_of_another_width_is_refused(make_fcs: MakeFcs) -> None:
    with pytest.raises(FcsError, match=r"\$BYTEORD 3,4,1,2 does not say how 16 bits are ordered"):
        open_fcs(make_fcs(bytes(12), datatype="I", bits=16, byte_order="3,4,1,2"))


@pytest.mark.parametrize("order", ["1,1,2", "x", "", "0,1"])
def test_a_byte_order_that_is_none_is_refused(make_fcs: MakeFcs, order: str) -> None:
    with pytest.raises(FcsError, match=r"\$BYTEORD is .*, expected an order of bytes"):
        open_fcs(make_fcs(bytes(12), {"$BYTEORD": order}, datatype="I", bits=16))


def test_widths_may_differ_between_parameters(make_fcs: MakeFcs) -> None:
    rows = np.array([(1, 70_000, 9), (2, 3, 500)], dtype=[("a", "<u1"), ("b", "<u4"), ("c", "<u2")])
    changes = {"$P1B": "8", "$P1R": "256", "$P2B": "32", "$P2R": "262144", "$P3B": "16", "$P3R": "1024"}
    fcs = both(make_fcs(rows.tobytes(), changes, names=("A", "B", "C"), events=2, datatype="I"))
    assert fcs.events().tolist() == [[1, 2], [70_000, 3], [9, 500]]
    assert [c.bits for c in fcs.channels] == [8, 32, 16]


def test_types_may_differ_between_parameters_in_fcs_3_2(make_fcs: MakeFcs) -> None:
    rows = np.array([(1.5, 70_000, 0.1), (-2.5, 3, 1e300)], dtype=[("a", "<f4"), ("b", "<u4"), ("c", "<f8")])
    changes = {
        "$P2DATATYPE": "I", "$P2R": "4294967296", "$P2N": "Time", "$P3DATATYPE": "D", "$P3B": "64", "$TIMESTEP": "0.01",
    }  # fmt: skip
    fcs = both(make_fcs(rows.tobytes(), changes, names=("A", "B", "C"), events=2, version="FCS3.2"))
    assert fcs.events().tolist() == [[1.5, -2.5], [700.0, 0.03], [0.1, 1e300]]
    older = both(make_fcs(rows.tobytes(), changes, names=("A", "B", "C"), events=2))
    assert np.array_equal(older.events(), fcs.events())
    assert "DATATYPE_PER_PARAMETER" in codes(older)


@pytest.mark.parametrize("order", ["1,2", "2,1"])
@pytest.mark.parametrize("bits", [3, 10, 12, 20])
def test_integers_packed_bit_by_bit(make_fcs: MakeFcs, order: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    values = rng.integers(0, 2**bits, (37, 3))
    big = order == "2,1"
    places = np.arange(bits)[::-1] if big else np.arange(bits)
    stream = ((values.reshape(-1, 1) >> places) & 1).astype(np.uint8).reshape(-1)
    data = np.packbits(stream, bitorder="big" if big else "little").tobytes()
    changes = {f"$P{i}R": str(2**bits) for i in (1, 2, 3)}
    path = make_fcs(data, changes, names=("A", "B", "C"), events=37, datatype="I", bits=bits, byte_order=order)
    fcs = both(path)
    assert "DATA_PACKED" in codes(fcs)
    assert fcs.events().tolist() == values.T.tolist()


def test_ten_bits_in_sixteen_are_found_from_the_size_of_data(make_fcs: MakeFcs) -> None:
    values = np.array([[1, 1023], [512, 3], [0, 7]])
    fcs = both(make_fcs((values | 0xFC00).astype("<u2").tobytes(), datatype="I", bits=10, byte_order="1,2"))
    assert fcs.events().tolist() == values.T.tolist()
    assert "WIDTH_ROUNDED" in codes(fcs)
    assert [c.bits for c in fcs.channels] == [16, 16]


def test_integers_are_masked_by_the_next_power_of_two_of_their_range(make_fcs: MakeFcs) -> None:
    values = np.array([[0xF000 | 999, 0x0400], [0xF000 | 1023, 3], [0xF000, 65535]])
    changes = {"$P1R": "1000", "$P2R": "65536"}
    fcs = both(make_fcs(values.astype("<u2").tobytes(), changes, datatype="I", bits=16))
    assert fcs.events().tolist() == [[999, 1023, 0], [1024, 3, 65535]]
    assert codes(fcs) == ["TIME_MISSING", "RANGE_EXCEEDED", "BITS_MASKED"]


def test_a_few_masked_values_are_a_warning_and_tags_in_all_are_not(make_fcs: MakeFcs) -> None:
    tags = np.full((300, 2), 0x8001, "<u2")
    few = np.ones((300, 2), "<u2")
    few[7, 1] = 0x8001
    for table, level in ((tags, "info"), (few, "warning")):
        fcs = read_fcs(make_fcs(table.tobytes(), datatype="I", bits=16, events=300))
        (found,) = [f for f in fcs.findings if f.code == "BITS_MASKED"]
        assert found.level == level


def test_a_range_of_zero_masks_nothing(make_fcs: MakeFcs) -> None:
    fcs = both(make_fcs(np.arange(6, dtype="<u2").tobytes(), {"$P1R": "0"}, datatype="I", bits=16))
    assert fcs.events()[0].tolist() == [0, 2, 4]
    assert fcs.channels[0].range == 0
    assert "RANGE_INVALID" in codes(fcs)


@pytest.mark.parametrize(("pne", "offset"), [("4,1", 1.0), ("4,0", 1.0), (" 4.0,0.1024", 0.1024)])
@pytest.mark.parametrize("bits", [16, 32])
def test_integers_on_a_log_scale_become_linear(make_fcs: MakeFcs, pne: str, offset: float, bits: int) -> None:
    values = np.array([[0, 0], [512, 1], [1023, 2]])
    fcs = both(make_fcs(values.astype(f"<u{bits // 8}").tobytes(), {"$P1E": pne}, datatype="I", bits=bits))
    assert np.array_equal(fcs.events()[0], 10 ** (4 * values[:, 0] / 1024) * offset)
    assert fcs.channels[0].log_offset == offset
    assert ("AMPLIFICATION_ZERO" in codes(fcs)) == (pne == "4,0")


def test_float_data_ignore_a_log_scale_with_a_warning(make_fcs: MakeFcs) -> None:
    values = np.array([[193.2, 1], [2, 3], [4, 5]], "<f4")
    fcs = both(make_fcs(values.tobytes(), {"$P1E": "4,1"}))
    assert np.array_equal(fcs.events(), values.T)
    (found,) = [f for f in fcs.findings if f.code == "FLOAT_WITH_LOG"]
    assert (found.level, found.where) == ("warning", "$PnE")


def test_gain_divides_linear_channels_only(make_fcs: MakeFcs) -> None:
    values = np.array([[100, 100], [300, 300], [500, 500]])
    changes = {"$P1G": "8", "$P2G": "8", "$P2E": "4,1"}
    fcs = both(make_fcs(values.astype("<u2").tobytes(), changes, datatype="I", bits=16))
    assert fcs.events()[0].tolist() == [12.5, 37.5, 62.5]
    assert np.array_equal(fcs.events()[1], 10 ** (4 * values[:, 1] / 1024))
    assert "GAIN_WITH_LOG" in codes(fcs)


@pytest.mark.parametrize("gain", ["0", "-1", "x", "nan"])
def test_an_impossible_gain_counts_as_one(make_fcs: MakeFcs, gain: str) -> None:
    fcs = both(make_fcs(np.arange(6, dtype="<f4").tobytes(), {"$P1G": gain}))
    assert fcs.events()[0].tolist() == [0, 2, 4]
    assert fcs.channels[0].gain == 1.0


def test_time_is_in_seconds_where_timestep_says_so_and_has_no_gain(make_fcs: MakeFcs) -> None:
    ticks = np.array([[5, 1], [7, 2], [16_777_215, 3]], "<f4")
    names = ("Time", "FL1-A")
    fcs = both(make_fcs(ticks.tobytes(), {"$TIMESTEP": "0.01", "$P1G": "0.01"}, names=names))
    assert np.array_equal(fcs.column(0), ticks[:, 0].astype(np.float64) * 0.01)
    assert (fcs.time_step, codes(fcs)) == (0.01, [])
    for text in ("xxxx", "", "0", "-1"):
        fcs = both(make_fcs(ticks.tobytes(), {"$TIMESTEP": text}, names=names))
        assert fcs.column(0).tolist() == ticks[:, 0].tolist()
        assert fcs.time_step is None
        assert "TIME_TICKS" in codes(fcs)


def test_events_are_float32_only_where_that_is_exact(make_fcs: MakeFcs) -> None:
    floats = np.array([[0.1, 1], [2, 3], [4, 5]], "<f4").tobytes()
    assert read_fcs(make_fcs(floats)).events().dtype == np.float32
    assert read_fcs(make_fcs(floats, {"$P1G": "2"})).events().dtype == np.float64
    assert read_fcs(make_fcs(floats, {"$P1G": "2"})).events([1]).dtype == np.float32
    words = np.array([[1, 1], [2, 3], [4, 5]], "<u4").tobytes()
    assert read_fcs(make_fcs(words, datatype="I")).events().dtype == np.float32
    assert read_fcs(make_fcs(words, {"$P1R": "4294967296"}, datatype="I")).events().dtype == np.float64
    doubles = np.full((3, 2), 0.1, "<f8").tobytes()
    assert read_fcs(make_fcs(doubles, datatype="D", bits=64)).events()[0, 0] == 0.1


def test_events_are_read_only_and_reading_floats_copies_nothing(make_fcs: MakeFcs) -> None:
    fcs = read_fcs(make_fcs(np.arange(6, dtype="<f4").tobytes()))
    values = fcs.events()
    assert fcs.stored is not None
    assert np.shares_memory(values, fcs.stored[0])
    with pytest.raises(ValueError, match="read-only"):
        values[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        fcs.stored[0][0] = 1


@pytest.mark.parametrize("block", [1, 7, 4096, 5000, 65536])
@pytest.mark.parametrize("held", [False, True])
def test_blocks_cover_every_event_once_in_order(make_fcs: MakeFcs, block: int, *, held: bool) -> None:
    n = 12_345
    values = np.arange(3 * n, dtype="<f4").reshape(n, 3)
    path = make_fcs(values.tobytes(), names=("A", "B", "C"), events=n)
    fcs = read_fcs(path) if held else open_fcs(path)
    if block == 1:
        n, block = 3, 1
        fcs = open_fcs(make_fcs(values[:3].tobytes(), names=("A", "B", "C")))
    row = 0
    for start, part in fcs.blocks([2, 0], block_events=block):
        assert start == row
        assert part.shape[1] == min(block, n - row)
        assert np.array_equal(part, values[row : row + part.shape[1]].T[[2, 0]])
        row += part.shape[1]
    assert row == n


def test_blocks_refuse_channels_that_are_not_there(make_fcs: MakeFcs) -> None:
    fcs = open_fcs(make_fcs(bytes(24)))
    with pytest.raises(IndexError, match=r"channel index 2 is outside 0\.\.1"):
        fcs.blocks([2])
    with pytest.raises(ValueError, match="block_events must be positive"):
        fcs.blocks(block_events=0)


def test_a_file_that_changes_after_opening_is_noticed(make_fcs: MakeFcs) -> None:
    path = make_fcs(bytes(24))
    fcs = open_fcs(path)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(FcsError, match="the file changed after it was opened"):
        list(fcs.blocks())


@pytest.mark.parametrize(
    ("pnn", "pns", "kind"),
    [
        ("FSC-A", "", "scatter"), ("SSC-W", "", "scatter"), ("FS INT", "", "scatter"), ("FS TOF", "", "scatter"),
        ("SS INT LIN", "", "scatter"), ("FS-A", "", "scatter"), ("FSCW", "", "scatter"), ("VSSC-A", "", "scatter"),
        ("SSC-B_2-A", "", "scatter"), ("488-FSC1-Height", "", "scatter"), ("405nm 405SSC (405/10) LogH", "", "scatter"),
        ("Time", "", "time"), ("TIME", "Time LSW", "time"), ("HDR-TM", "Time", "time"),
        ("HDR-T", "HDR-T", "other"), ("Event #", "", "other"), ("Time MSW", "", "other"), ("TIME2", "", "other"),
        ("FL2-W", "", "other"), ("BL1-W", "CD3-W", "other"), ("Width", "", "other"), ("L3 450-50W", "", "other"),
        ("Index", "", "other"), ("Event_length", "", "other"), ("Unused6", " ", "other"),
        ("FL1 INT LOG", "CD19-PC7", "fluor"), ("BV421-A", "", "fluor"), ("PE-A", "Time course", "fluor"),
        ("Ir(190.960)-Dual", "191-DNA", "fluor"), ("FL3", "", "fluor"),
    ],
)  # fmt: skip
def test_kinds_are_judged_by_detector_names(pnn: str, pns: str, kind: str) -> None:
    assert channel_kind(pnn, pns) is ChannelKind(kind)
