"""Kaluza containers made from the real example for real LMD files, against counts worked out beside the package."""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree as ET

import numpy as np
import polars as pl
import pytest
from flowutils import transforms
from numpy.typing import NDArray

from flowmrd.cli import main
from flowmrd.fcs import read_fcs
from flowmrd.gating.interop import gatingml, kaluza
from flowmrd.gating.interop.document import evaluate

FC500 = "instruments/Beckman Coulter - Cytomics FC500.LMD"
GALLIOS = "instruments/Beckman Coulter - Gallios.LMD"
FULL = 1048576.0
BACKGROUND = 0.000309 * FULL
WIDTH = 0.15354363305182914
SPILL = np.array([[1.0, 0.112], [0.009, 1.0]])
CORNER = {"--": (0.0, 300.25, 0.0, 280.75), "+-": (300.25, 1024.0, 0.0, 280.75)}
CORNER |= {"-+": (0.0, 300.25, 280.75, 1024.0), "++": (300.25, 1024.0, 280.75, 1024.0)}
CELLS = ((120.5, 20.5), (700.25, 20.5), (900.75, 800.5), (150.5, 420.5))
BORDER = ((0.5, 0.5), (0.5, 400.25), (250.75, 330.5), (310.25, 0.5))
MIXED = ((350.5, 180.25), (760.5, 200.5), (820.25, 690.75), (420.5, 640.25), (600.5, 430.5))

Columns = Mapping[str, NDArray[np.float64]]
Mask = NDArray[np.bool_]


# ------------------------------------------------------------------------------------------- the file, read on its own


def second_data_set(path: Path) -> dict[str, NDArray[np.float64]]:
    """Decode the 20-bit data set of an LMD file: little-endian words, cut off at `$PnR`."""
    data = path.read_bytes()
    start = data.index(b"FCS3.0")
    begin, end = (int(data[start + at : start + at + 8]) for at in (10, 18))
    text = data[start + begin : start + end + 1].decode("latin-1")
    parts = text[1:].split(text[0])
    words = dict(zip((key.strip().upper() for key in parts[::2]), (v.strip() for v in parts[1::2]), strict=False))
    count, events = int(words["$PAR"]), int(words["$TOT"])
    values = np.frombuffer(data, "<u4", count * events, start + int(words["$BEGINDATA"])).reshape(events, count)
    return {
        words[f"$P{i}N"]: (values[:, i - 1] & (int(words[f"$P{i}R"]) - 1)).astype(np.float64)
        for i in range(1, count + 1)
    }


def pinned(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return display channels; what lies beyond the plot is on its border, inside of gates drawn along it."""
    return np.clip(share * 1024.0, 0.6, 1023.4)


def displayed(raw: Columns, *, background: float = BACKGROUND) -> dict[str, NDArray[np.float64]]:
    """Return the display channels of the axes that the gates below use."""
    light = (np.stack([raw["FL1"], raw["FL2"]], axis=1) - background) @ np.linalg.inv(SPILL) + background
    tiny = np.maximum(light, 1e-9)
    logicle = transforms.logicle(light.copy(), [0], t=FULL, m=4.5, w=WIDTH * 4.5)
    logicle = transforms.logicle(logicle, [1], t=FULL, m=4.5, w=0.1 * 4.5)
    return {
        "FS": pinned(raw["FS"] / FULL),
        "SS": pinned(raw["SS"] / FULL),
        "TIME": pinned(raw["TIME"] / 1024.0),
        "FL1 log": pinned(1 + np.log10(tiny[:, 0] / FULL) / 4),
        "FL2 log": pinned(1 + np.log10(tiny[:, 1] / FULL) / 4),
        "FL1 logicle": pinned(logicle[:, 0]),
        "FL2 logicle": pinned(logicle[:, 1]),
    }


def within(x: NDArray[np.float64], y: NDArray[np.float64], corners: tuple[tuple[float, float], ...]) -> Mask:
    """Count how often a ray to the right crosses the polygon."""
    inside = np.zeros(x.size, np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def truth(raw: Columns, *, background: float = BACKGROUND) -> dict[str, Mask]:
    """Return the members of every gate of `GATES`, worked out here."""
    d = displayed(raw, background=background)
    cells = within(d["FS"], d["SS"], CELLS)
    box = cells & (d["FS"] >= 200.5) & (d["FS"] < 600.25) & (d["SS"] < 500.5)
    cd3 = box & (d["FL1 log"] >= 390.5) & (d["FL1 log"] < 800.25)
    mixed = cells & within(d["FL1 logicle"], d["FL2 log"], MIXED)
    found = {
        "cells": cells,
        "box": box,
        "CD3 +": cd3,
        "border": within(d["FL1 logicle"], d["FL2 logicle"], BORDER),
        "mixed": mixed,
        "N-": d["FL2 logicle"] < 290.5,
        "N+": d["FL2 logicle"] >= 290.5,
        "early": (d["TIME"] >= 10.5) & (d["TIME"] < 333.25),
        "round": ((d["FS"] - 400.5) / 145.0) ** 2 + ((d["SS"] - 150.25) / 90.0) ** 2 <= 1.0,
    }
    for name, (low, high, bottom, top) in CORNER.items():
        x, y = d["FL1 logicle"], d["FL2 logicle"]
        found[f"A{name}"] = cells & (x >= low) & (x < high) & (y >= bottom) & (y < top)
    found["not CD3"] = box & ~cd3
    found["several"] = (cd3 | found["A++"]) & ~found["early"]
    found["inside several"] = found["several"] & (d["SS"] >= 100.5) & (d["SS"] < 300.25)
    return found


# -------------------------------------------------------------------------------------------------------- the container


def drawn(tag: str, name: str, axes: str, points: list[tuple[float, float]], parent: str = "", more: str = "") -> str:
    """Write a gate as the example writes it."""
    lines = "".join(f'<A M="{axis[:-2]}" S="{axis[-1]}"/>' for axis in axes.split(";"))
    corners = "".join(f'<P O="{x!r},{y!r}"/>' for x, y in points)
    above = f' G="{parent}" J="0"' if parent else ""
    return (
        f'<{tag} C="SFF00FF00" F="A"{above} N="{name}" U="N"><A>{lines}</A>'
        f"<LabelOffset>-243,-20</LabelOffset><P>{corners}</P>{more}</{tag}>"
    )


def logic(name: str, expression: str, parent: str = "") -> str:
    above = f' G="{parent}" J="0"' if parent else ""
    return f'<B C="SFF00FF00"{above} N="{name}" U="N"><ExpressionText>{expression}</ExpressionText></B>'


def quadrants() -> str:
    return "".join(
        drawn("R", f"A{name}", "FL1 INT C;FL2 INT C", [(low, bottom), (high, top)], "cells")
        for name, (low, high, bottom, top) in CORNER.items()
    )


GATES = (
    drawn("P", "cells", "FS INT I;SS INT I", list(CELLS))
    + drawn("R", "box", "FS INT I;SS INT I", [(200.5, 0.0), (600.25, 500.5)], "cells")
    + drawn("L", "CD3 +", "FL1 INT O", [(390.5, 812.0), (800.25, 812.0)], "box")
    + drawn("P", "border", "FL1 INT C;FL2 INT C", list(BORDER))
    + drawn("P", "mixed", "FL1 INT C;FL2 INT O", list(MIXED), "cells")
    + drawn("L", "N-", "FL2 INT C", [(33.5, 500.0), (290.5, 500.0)])
    + drawn("L", "N+", "FL2 INT C", [(290.5, 500.0), (990.25, 500.0)])
    + drawn("L", "early", "TIME I", [(10.5, 1.0), (333.25, 1.0)])
    + drawn(
        "E",
        "round",
        "FS INT I;SS INT I",
        [(400.5, 150.25)],
        more="<Coefficients><D>21025</D><D>8100</D></Coefficients>",
    )
    + quadrants()
    + logic("not CD3", '("box" AND (NOT "CD3 +"))')
    + logic("several", '(("CD3 +" OR "A++") AND (NOT "early"))')
    + drawn("L", "inside several", "SS INT I", [(100.5, 1.0), (300.25, 1.0)], "several")
)
CONSTRAINTS = '<HistogramDivider LG="N-" RG="N+"/><Staggered ULG="A-+" URG="A++" LLG="A--" LRG="A+-"/>'


def set_text(element: ET.Element | None, text: str) -> None:
    assert element is not None
    element.text = text


def container(
    example: Path,
    lmd: Path,
    out: Path,
    gates: str = GATES,
    *,
    constraints: str = CONSTRAINTS,
    change: Callable[[ET.Element], None] | None = None,
    events: int = 27072,
    suffix: str = "",
) -> Path:
    """Write the example's container anew for another file: its names, its matrix, these gates, the file within.

    `suffix` is what the file's names have for the area of a pulse.
    """
    with zipfile.ZipFile(example) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = ET.fromstring(members["000036.xml"].decode("utf-8-sig"))
    entry = root.find(".//Worklist/Entries/Entry")
    assert entry is not None
    data_set = entry.find("DataSet")
    assert data_set is not None
    data_set.set("N", lmd.stem)
    for pair in data_set.findall("Metadata/Entry"):
        new = {"$TOT": str(events), "$FIL": lmd.name, "@FILEGUID": ""}.get(pair.findtext("Key", ""))
        if new is not None:
            set_text(pair.find("Value"), new)
    for column in data_set.findall("Columns/Column"):
        name = column.find("OriginalName")
        given = column.findtext("OriginalName") or ""
        set_text(name, given.removesuffix("-A") + suffix if given.endswith("-A") else given)
    for measurement in entry.findall("Protocol/Measurements/Measurement"):
        if measurement.get("N") == "TIME" and not suffix:
            set_text(measurement.find("Range"), "1024")
        if measurement.get("N") == "FL1 INT":
            scale = measurement.find("Scales/LogicleScale")
            assert scale is not None
            scale.set("W", repr(WIDTH))
    protocol = entry.find("Protocol")
    assert protocol is not None
    for tag, content in (("Gates", gates), ("GateConstraints", constraints)):
        old = protocol.find(tag)
        assert old is not None
        protocol.insert(list(protocol).index(old), ET.fromstring(f"<{tag}>{content}</{tag}>"))
        protocol.remove(old)
    detectors, cells = protocol.find("Compensation/CompensatedDetectors"), protocol.find("Compensation/S")
    assert detectors is not None
    assert cells is not None
    for element in list(detectors):
        if element.text not in {"FL1", "FL2"}:
            detectors.remove(element)
    for element in list(cells):
        cells.remove(element)
    ET.SubElement(cells, "SV", {"S": "FL2", "C": "FL1", "V": "0.112"})
    ET.SubElement(cells, "SV", {"S": "FL1", "C": "FL2", "V": "0.009"})
    if change is not None:
        change(root)
    members["000036.xml"] = b"\xef\xbb\xbf" + ET.tostring(root, encoding="utf-8", xml_declaration=True)
    members["000017.fcs"] = lmd.read_bytes()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return out


# ------------------------------------------------------------------------------------------------------------- the runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def flowmrd(*arguments: object) -> Done:
    """Run the command line in this process, which spares its imports."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["flowmrd", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    assert isinstance(code, int)
    return Done(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def example(shared_fcs: Path) -> Path:
    return shared_fcs / "kaluza/example_tubeB8.analysis"


@pytest.fixture(scope="module")
def lmd(shared_fcs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the LMD file under a name without the cytometer's."""
    path = tmp_path_factory.mktemp("lmd") / "CD3-CD4.LMD"
    path.write_bytes((shared_fcs / FC500).read_bytes())
    return path


@pytest.fixture(scope="module")
def raw(lmd: Path) -> Columns:
    return second_data_set(lmd)


def differences(members: Mapping[str, Mask], expected: Mapping[str, Mask]) -> dict[str, int]:
    return {name: int(np.count_nonzero(members[name] != mask)) for name, mask in expected.items()}


def test_every_kind_of_gate_has_the_members_worked_out_beside_us(
    example: Path, lmd: Path, raw: Columns, tmp_path: Path
) -> None:
    document = container(example, lmd, tmp_path / "tube.analysis")
    done = flowmrd("gate", lmd, "--strategy", document, "--out", tmp_path / "out", "--membership", "--no-report")
    assert done.returncode == 0, done.stderr
    table = pl.read_csv(tmp_path / "out" / "populations.csv")
    frame = pl.read_parquet(tmp_path / "out" / "membership" / f"{lmd.stem}.parquet")
    expected = truth(raw)
    assert set(expected) <= set(table["population"])
    members = {name: frame[name].to_numpy() for name in expected}
    assert differences(members, expected) == dict.fromkeys(expected, 0)
    # None of the gates is trivial, so equality says something.
    assert all(50 < np.count_nonzero(mask) < 27_000 for mask in expected.values())
    assert table["parent"].to_list()[:3] == ["root", "cells", "box"]
    codes = pl.read_csv(tmp_path / "out" / "findings.csv")["code"].to_list()
    assert {"BACKGROUND_KEPT", "BOOLEAN_SPLIT", "KALUZA_ASSUMED"} <= set(codes)
    assert "OTHER_FILE" not in codes


def test_a_gallios_file_is_gated_by_the_names_that_the_example_has(
    example: Path, shared_fcs: Path, tmp_path: Path
) -> None:
    lmd = tmp_path / "beads.LMD"
    lmd.write_bytes((shared_fcs / GALLIOS).read_bytes())
    gates = (
        drawn("P", "beads", "FS INT I;SS INT I", list(CELLS))
        + drawn("L", "bright", "FL1 INT O", [(600.5, 1.0), (1023.5, 1.0)], "beads")
        + drawn("L", "late", "TIME I", [(512.5, 1.0), (1024.0, 1.0)])
    )
    document = container(example, lmd, tmp_path / "beads.analysis", gates, constraints="", events=26383, suffix="-A")
    done = flowmrd("gate", lmd, "--strategy", document, "--out", tmp_path / "out", "--membership", "--no-report")
    assert done.returncode == 0, done.stderr
    raw = second_data_set(lmd)
    beads = within(pinned(raw["FS-A"] / FULL), pinned(raw["SS-A"] / FULL), CELLS)
    light = (np.stack([raw["FL1-A"], raw["FL2-A"]], axis=1) - BACKGROUND) @ np.linalg.inv(SPILL)[:, 0] + BACKGROUND
    expected = {
        "beads": beads,
        "bright": beads & (pinned(1 + np.log10(np.maximum(light, 1e-9) / FULL) / 4) >= 600.5),
        "late": raw["TIME"] >= 512.5 * 1024.0,
    }
    frame = pl.read_parquet(tmp_path / "out" / "membership" / "beads.parquet")
    members = {name: frame[name].to_numpy() for name in expected}
    assert differences(members, expected) == dict.fromkeys(expected, 0)
    assert all(np.count_nonzero(mask) > 50 for mask in expected.values())


def test_gates_exported_as_gating_ml_have_the_same_members(
    example: Path, lmd: Path, raw: Columns, tmp_path: Path
) -> None:
    document = container(example, lmd, tmp_path / "tube.analysis")
    done = flowmrd("gates", "convert", document, "--fcs", lmd, "--to", "gatingml", "--out", tmp_path / "tube.xml")
    assert done.returncode in {0, 3}, done.stderr
    fcs = read_fcs(lmd)
    data = (tmp_path / "tube.xml").read_bytes()
    strategy = gatingml.read_strategy(data, "tube.xml", fcs)
    evaluation = evaluate(strategy, fcs)
    paths = {one.name: one.path for one in strategy.gates}
    expected = {name: mask for name, mask in truth(raw).items() if name != "round"}
    members = {name: evaluation.memberships.mask(paths[name]) for name in expected}
    assert differences(members, expected) == dict.fromkeys(expected, 0)


def test_compare_lists_every_population_though_no_counts_are_stored(example: Path, lmd: Path, tmp_path: Path) -> None:
    document = container(example, lmd, tmp_path / "tube.analysis")
    done = flowmrd("gates", "compare", document, lmd, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("cells", "CD3 +", "A++", "several"))


def test_what_cannot_be_read_is_a_finding_and_the_rest_is_written(
    example: Path, lmd: Path, raw: Columns, tmp_path: Path
) -> None:
    wrong = (
        drawn("P", "no channel", "FL6 INT C;SS INT I", list(CELLS))
        + drawn("P", "no number", "FS INT I;SS INT I", [(1.0, 2.0), (float("nan"), 5.0), (9.0, 9.0)])
        + drawn("Z", "no kind", "FS INT I;SS INT I", list(CELLS))
        + drawn("P", "no scale", "FS INT X;SS INT I", list(CELLS))
        + drawn("P", "hinged", "FS INT I;SS INT I", [(0.0, 0.0)] * 4)
        + drawn("P", "below no kind", "FS INT I;SS INT I", list(CELLS), "no kind")
        + logic("no term", '("cells" AND "gone")')
        + logic("no end", '("cells" AND')
    )
    document = container(example, lmd, tmp_path / "tube.analysis", GATES + wrong)
    done = flowmrd("gate", lmd, "--strategy", document, "--out", tmp_path / "out", "--no-report")
    assert done.returncode == 3
    counts = dict(pl.read_csv(tmp_path / "out" / "populations.csv").select("population", "events").iter_rows())
    expected = truth(raw)
    assert {name: counts[name] for name in expected} == {n: np.count_nonzero(m) for n, m in expected.items()}
    left = pl.read_csv(tmp_path / "out" / "findings.csv").filter(pl.col("code") == "GATE_LEFT_OUT")
    assert set(left["where"]) == {
        "/no channel",
        "/no number",
        "/no kind",
        "/no scale",
        "/hinged",
        "/no kind/below no kind",
        "/no term",
        "/no end",
    }
    assert "Traceback" not in done.stderr


def test_kaluza_2_vertices_are_linear_values(example: Path, lmd: Path, raw: Columns, tmp_path: Path) -> None:
    """The same gates with their vertices in values, as Kaluza 2 keeps them, have the same members."""
    grid = np.arange(0.0, 1025.0, 0.25)
    logicle = {
        name: transforms.logicle_inverse(np.column_stack([grid / 1024.0]), [0], t=FULL, m=4.5, w=w * 4.5)[:, 0]
        for name, w in (("FL1 INT C", WIDTH), ("FL2 INT C", 0.1))
    }

    def value(axis: str, channel: float) -> float:
        if axis in logicle:
            return float(np.interp(channel, grid, logicle[axis]))
        if axis.endswith("O"):
            return float(FULL * 10 ** (4 * (channel / 1024.0 - 1)))
        return channel * (1.0 if axis.startswith("TIME") else 1024.0)

    def change(root: ET.Element) -> None:
        for gate in root.findall(".//Gates/*"):
            axes = [f"{one.get('M')} {one.get('S')}" for one in gate.findall("A/A")]
            for point in gate.findall("P/P"):
                x, y = (float(part) for part in str(point.get("O")).split(","))
                placed = value(axes[0], x), value(axes[1], y) if len(axes) == 2 else y
                point.set("O", f"{placed[0]!r},{placed[1]!r}")
            for one, scale in zip(gate.findall("Coefficients/*"), (1024.0**2,) * 2, strict=False):
                one.text = repr(float(one.text or "") * scale)

    document = container(example, lmd, tmp_path / "tube.analysis", change=change)
    fcs = read_fcs(lmd)
    strategy = kaluza.read_strategy(document.read_bytes(), document.name, fcs)
    evaluation = evaluate(strategy, fcs)
    expected = truth(raw)
    paths = {one.name: one.path for one in strategy.gates}
    members = {name: evaluation.memberships.mask(paths[name]) for name in expected}
    # The vertices went through a table of quarter channels.
    assert max(differences(members, expected).values()) <= 2


def test_a_data_set_is_found_by_the_copy_of_the_file_in_the_container(example: Path, lmd: Path, tmp_path: Path) -> None:
    """Two data sets of as many events, neither named like the file: the one that holds its bytes is taken."""

    def change(root: ET.Element) -> None:
        entries = root.find(".//Worklist/Entries")
        assert entries is not None
        first = entries[0]
        other = copy.deepcopy(first)
        for number, entry in enumerate((first, other)):
            data_set = entry.find("DataSet")
            assert data_set is not None
            data_set.set("N", f"renamed {number}")
            for pair in data_set.findall("Metadata/Entry"):
                if pair.findtext("Key") == "$FIL":
                    set_text(pair.find("Value"), f"renamed {number}.LMD")
        segment, gates = other.find("DataSet/Segments/Segment"), other.find("Protocol/Gates")
        assert segment is not None
        assert gates is not None
        segment.set("N", "000018.fcs")
        gates.remove(gates[-1])
        entries.append(other)

    document = container(example, lmd, tmp_path / "tube.analysis", change=change)
    copied = tmp_path / "my own name.LMD"
    copied.write_bytes(lmd.read_bytes())
    fcs = read_fcs(copied)
    strategy = kaluza.read_strategy(document.read_bytes(), document.name, fcs)
    assert "inside several" in {one.name for one in strategy.gates}
    assert not any(one.code == "OTHER_FILE" for one in strategy.findings)
    second = kaluza.read_strategy(document.read_bytes(), document.name, fcs, tube="renamed 1")
    assert "inside several" not in {one.name for one in second.gates}


def test_the_coarse_data_set_of_the_file_gives_nearly_the_same_scatter_gates(
    example: Path, lmd: Path, raw: Columns, tmp_path: Path
) -> None:
    """Axes of the other data set of the pair end at their own range; its values are compensated already."""
    document = container(example, lmd, tmp_path / "tube.analysis")
    fcs = read_fcs(lmd, dataset=1)
    strategy = kaluza.read_strategy(document.read_bytes(), document.name, fcs)
    assert "MATRIX_UNUSED" in {one.code for one in strategy.findings}
    evaluation = evaluate(strategy, fcs)
    expected = truth(raw)
    for name in ("cells", "box", "CD3 +"):
        path = next(one.path for one in strategy.gates if one.name == name)
        true = np.count_nonzero(expected[name])
        assert abs(evaluation.counts[path] - true) < 0.02 * true, name


def test_the_cytometer_itself_keeps_a_background_of_324_when_it_compensates(shared_fcs: Path, raw: Columns) -> None:
    """The 10-bit values of an LMD file are the cytometer's own compensation of the 20-bit ones.

    Kaluza's default autofluorescence, 0.000309 of the range, is 324 of 1,048,576. Taken away before the matrix and
    given back after it, it explains nearly every coarse value of the detector that has spillover; without it three of
    four are off by more than rounding.
    """
    coarse = read_fcs(shared_fcs / FC500, dataset=1)
    column = [channel.pnn for channel in coarse.channels].index("FL2 Log")
    values = np.concatenate([block[0] for _, block in coarse.blocks([column])])
    channels = np.round(np.log10(values / 0.1024) * 256)
    seen = (channels > 10) & (channels < 1020)

    def explained(background: float) -> float:
        light = (np.stack([raw["FL1"], raw["FL2"]], axis=1) - background) @ np.linalg.inv(SPILL) + background
        exact = 1024 * (1 + np.log10(np.maximum(light[:, 1], 1e-9) / FULL) / 4)
        return float(np.mean(np.abs(exact - channels - 0.5)[seen] <= 1.5))

    assert explained(BACKGROUND) > 0.94
    assert explained(0.0) < 0.3
    assert explained(2 * BACKGROUND) < 0.3
