"""Pairs of data sets, scans, pickling and what `flowmrd inspect` says."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from flowmrd.cli.inspect_ import command
from flowmrd.fcs import inspect_fcs, open_fcs, read_fcs, scan_values

MakeFcs = Callable[..., Path]
COARSE = np.array([[1, 1023, 4], [512, 3, 5], [0, 7, 6]], "<u2")
FINE = COARSE.astype("<u4") * 1000 + 1


@pytest.fixture
def pair(tmp_path: Path, make_fcs: MakeFcs) -> Callable[..., Path]:
    """A Beckman file: the same events in 10 bits with marker names, and in 20 bits without."""

    def make(coarse: dict[str, str] | None = None, fine: dict[str, str] | None = None, fine_events: int = 3) -> Path:
        first = make_fcs(
            COARSE.tobytes(),
            {"$P2S": "CD3-FITC", "$P3S": "CD4-PE", "$P1S": "FS Lin", "$NEXTDATA": "0000000", "$CYT": "XL"}
            | {"$BEGINDATA": None, "$ENDDATA": None}
            | (coarse or {}),
            names=("FS Lin", "FL1 Log", "FL2 Log"),
            datatype="I", bits=16, byte_order="1,2", version="FCS2.0",
        ).read_bytes()  # fmt: skip
        second = make_fcs(
            FINE[:fine_events].tobytes(),
            {f"$P{i}R": "1048576" for i in (1, 2, 3)} | (fine or {}),
            names=("FS", "FL1", "FL2"), events=fine_events, datatype="I", version="FCS3.0",
        ).read_bytes()  # fmt: skip
        path = tmp_path / "pair.lmd"
        path.write_bytes(first.replace(b"$NEXTDATA/0000000", b"$NEXTDATA/%07d" % len(first)) + second)
        return path

    return make


def test_a_beckman_pair_is_read_as_one(pair: Callable[..., Path]) -> None:
    path = pair({"$DFC1TO2": "11.2", "$DFC2TO1": "0.9"})
    fcs = read_fcs(path)
    assert (fcs.pair, fcs.dataset, fcs.datasets, fcs.version) == (True, 2, 2, "3.0")
    assert np.array_equal(fcs.events(), FINE.T)
    assert [(c.pnn, c.pns) for c in fcs.channels] == [("FS", ""), ("FL1", "CD3-FITC"), ("FL2", "CD4-PE")]
    assert fcs.keywords["$CYT"] == "XL"
    assert fcs.keywords["$P2R"] == "1048576"
    assert fcs.spillover is not None
    assert (fcs.spillover.source, fcs.spillover.channels) == ("$DFCiTOj", ("FL1", "FL2"))
    assert fcs.spillover.matrix.tolist() == [[1, 0.112], [0.009, 1]]
    (found,) = [f for f in fcs.findings if f.code == "LMD_PAIR"]
    assert found.message == (
        "two data sets of the same 3 events read as one: values of the second, 2 channel names of the first,"
        " spillover of $DFCiTOj"
    )


def test_the_second_data_sets_own_matrix_comes_first(pair: Callable[..., Path]) -> None:
    fcs = open_fcs(pair({"$DFC1TO2": "11.2"}, {"$SPILLOVER": "2,2,3,1,0.2,0,1"}))
    assert fcs.spillover is not None
    assert (fcs.spillover.source, fcs.spillover.channels) == ("$SPILLOVER", ("FL1", "FL2"))


def test_each_data_set_of_a_pair_can_be_read_alone(pair: Callable[..., Path]) -> None:
    path = pair({"$DFC1TO2": "11.2"})
    first, second = read_fcs(path, dataset=1), read_fcs(path, dataset=2)
    assert np.array_equal(first.events(), COARSE.T)
    assert np.array_equal(second.events(), FINE.T)
    assert not first.pair
    assert second.channels[1].pns == ""
    assert first.spillover is None
    assert "DFC_APPLIED" in [f.code for f in first.findings]


def test_data_sets_with_other_counts_are_not_a_pair(pair: Callable[..., Path]) -> None:
    fcs = open_fcs(pair(fine_events=2))
    assert (fcs.pair, fcs.dataset, fcs.event_count) == (False, 1, 3)
    assert "MULTIPLE_DATASETS" in [f.code for f in fcs.findings]


def test_a_pair_whose_fine_values_are_cut_off_is_read_as_its_first(pair: Callable[..., Path]) -> None:
    path = pair()
    path.write_bytes(path.read_bytes()[:-5])
    fcs = open_fcs(path)
    assert (fcs.pair, fcs.dataset, fcs.verdict) == (False, 1, "warning")


def test_scanning_adds_value_findings_once(make_fcs: MakeFcs) -> None:
    values = np.ones((5, 2), "<f4")
    values[1, 1] = np.nan
    path = make_fcs(values.tobytes(), events=5)
    opened = open_fcs(path)
    assert opened.verdict == "ok"
    scanned, held = scan_values(opened), read_fcs(path)
    assert scanned.verdict == "warning"
    assert scanned.findings == held.findings == scan_values(held).findings


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 1000])
def test_a_scan_sees_every_event(make_fcs: MakeFcs, count: int) -> None:
    for row in {0, count // 2, count - 1}:
        values = np.ones((count, 2), "<f4")
        values[row, 0] = np.inf
        fcs = scan_values(open_fcs(make_fcs(values.tobytes(), events=count)))
        assert "VALUES_INFINITE" in [f.code for f in fcs.findings]


def test_a_file_crosses_process_borders(make_fcs: MakeFcs) -> None:
    for fcs in (read_fcs(make_fcs(bytes(24))), open_fcs(make_fcs(bytes(24)))):
        copy = pickle.loads(pickle.dumps(fcs))
        assert dict(copy.keywords) == dict(fcs.keywords)
        assert np.array_equal(copy.events(), fcs.events())
        with pytest.raises(TypeError):
            copy.keywords["$TOT"] = "1"


def test_inspecting_gives_the_contract(make_fcs: MakeFcs) -> None:
    path = make_fcs(bytes(24), {"$SPILLOVER": "2,FSC-A,FL1-A,1,0.5,0,1", "$P2S": "CD19"})
    report = inspect_fcs(path)
    assert list(report) == [
        "file", "dataset", "datasets", "version", "events", "channels", "spillover", "findings", "sha256", "verdict",
    ]  # fmt: skip
    assert report["channels"] == [
        {"index": 0, "pnn": "FSC-A", "pns": "", "kind": "scatter"},
        {"index": 1, "pnn": "FL1-A", "pns": "CD19", "kind": "fluor"},
    ]
    assert report["spillover"] == {"channels": ["FSC-A", "FL1-A"], "matrix": [[1, 0.5], [0, 1]]}
    assert report["findings"] == [
        {"level": "info", "code": "TIME_MISSING", "message": "the file has no time channel", "where": ""}
    ]
    assert (report["dataset"], report["datasets"], report["version"], report["events"]) == (1, 1, "3.1", 3)
    assert (report["verdict"], len(report["sha256"])) == ("ok", 64)


def test_inspecting_a_refused_file_says_why(make_fcs: MakeFcs) -> None:
    path = make_fcs(bytes(24))
    path.write_bytes(path.read_bytes()[:-1])
    report = inspect_fcs(path)
    assert (report["verdict"], report["version"], report["events"], report["channels"]) == ("refused", "3.1", None, [])
    (found,) = report["findings"]
    assert (found["level"], found["code"]) == ("violation", "REFUSED")
    assert "DATA is cut off" in found["message"]


def test_the_command_prints_json_and_its_exit_code_tells_refusals(make_fcs: MakeFcs, tmp_path: Path) -> None:
    good, bad = make_fcs(bytes(24), name="good.fcs"), tmp_path / "bad.fcs"
    bad.write_bytes(b"nothing")
    run = CliRunner().invoke(command, ["--json", str(good)])
    assert (run.exit_code, [r["verdict"] for r in json.loads(run.output)]) == (0, ["ok"])
    run = CliRunner().invoke(command, ["--json", str(good), str(bad)])
    assert (run.exit_code, [r["verdict"] for r in json.loads(run.output)]) == (3, ["ok", "refused"])
    assert CliRunner().invoke(command, [str(tmp_path / "none.fcs")]).exit_code == 2
    assert CliRunner().invoke(command, [str(tmp_path)]).exit_code == 2
    assert CliRunner().invoke(command, []).exit_code == 2
    assert CliRunner().invoke(command, ["--dataset", "0", str(good)]).exit_code == 2
    assert CliRunner().invoke(command, ["--dataset", "2", str(good)]).exit_code == 3


def test_the_command_prints_a_table_for_people(make_fcs: MakeFcs) -> None:
    path = make_fcs(bytes(24), {"$P2S": "CD19\x1b[2J"})
    run = CliRunner().invoke(command, [str(path)])
    lines = run.output.splitlines()
    assert lines[0] == "made.fcs: ok"
    assert lines[1] == "  FCS 3.1, 3 events, 2 channels, no spillover"
    assert lines[3] == "  info      TIME_MISSING: the file has no time channel"
    assert lines[6].split() == ["2", "FL1-A", "CD19?[2J", "fluor"]


def test_starting_inspect_imports_nothing_heavy() -> None:
    code = (
        "import sys, flowmrd.cli.inspect_, flowmrd.fcs;"
        "heavy = {'pandas', 'flowkit', 'flowio', 'scipy', 'polars', 'sklearn', 'pydantic', 'plotly'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
