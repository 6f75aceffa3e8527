"""Compensation against flowutils and FlowKit, matrix files, and the judgement of a matrix."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flowmrd.cytometry.compensation import check_spillover, matrix_digest, read_matrix_file, unmixing_matrix
from flowmrd.errors import CompensationError, InputError, Level
from flowmrd.fcs.fcsfile import Channel, ChannelKind, Spillover

NAMES = ("FSC-A", "FITC-A", "PE-A", "APC-A", "Time")
KINDS = (ChannelKind.SCATTER, ChannelKind.FLUOR, ChannelKind.FLUOR, ChannelKind.FLUOR, ChannelKind.TIME)
CHANNELS = tuple(Channel(index=i, pnn=name, kind=kind) for i, (name, kind) in enumerate(zip(NAMES, KINDS, strict=True)))
MATRIX = np.array([[1.0, 0.2, 0.0], [0.05, 1.0, 0.01], [0.0, 0.3, 1.0]])


def spillover(
    matrix: NDArray[np.float64] = MATRIX, names: tuple[str, ...] = ("FITC-A", "PE-A", "APC-A"), source: str = "test"
) -> Spillover:
    return Spillover(channels=names, matrix=matrix, source=source)


def test_compensation_undoes_the_spill_and_leaves_scatter_and_time_alone() -> None:
    rng = np.random.default_rng(1)
    true = rng.uniform(0, 1e5, (500, 5))
    raw = true.copy()
    raw[:, 1:4] = true[:, 1:4] @ MATRIX
    assert raw @ unmixing_matrix(spillover(), CHANNELS) == pytest.approx(true, rel=1e-9)


def test_the_order_of_names_comes_from_the_matrix_not_from_the_file() -> None:
    order = [2, 0, 1]
    shuffled = spillover(MATRIX[np.ix_(order, order)], tuple(np.array(("FITC-A", "PE-A", "APC-A"))[order]))
    assert unmixing_matrix(shuffled, CHANNELS) == pytest.approx(unmixing_matrix(spillover(), CHANNELS), abs=1e-15)
    assert matrix_digest(shuffled) == matrix_digest(spillover())


def test_compensation_equals_flowutils_and_flowkit() -> None:
    import flowkit
    from flowutils import compensate

    # FlowKit stores events as float32
    raw = np.random.default_rng(2).normal(2000, 8000, (2000, 5)).astype(np.float32).astype(np.float64)
    ours = raw @ unmixing_matrix(spillover(), CHANNELS)
    assert ours == pytest.approx(compensate.compensate(raw, MATRIX, [1, 2, 3]), rel=1e-12, abs=1e-9)
    matrix = flowkit.Matrix(MATRIX, ["FITC-A", "PE-A", "APC-A"])
    sample = flowkit.Sample(raw, sample_id="t", channel_labels=list(NAMES))
    assert ours == pytest.approx(matrix.apply(sample), rel=1e-12, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_compensation_is_linear(seed: int, a: float, b: float) -> None:
    rng = np.random.default_rng(seed)
    matrix = np.eye(3) + rng.uniform(0, 0.3, (3, 3)) * (1 - np.eye(3))
    unmixing = unmixing_matrix(spillover(matrix), CHANNELS)
    x, y = rng.normal(0, 1e4, (2, 50, 5))
    assert (a * x + b * y) @ unmixing == pytest.approx(a * (x @ unmixing) + b * (y @ unmixing), abs=1e-6)


@pytest.mark.parametrize("name", ["comp-fitc-a", "FITC-A ", "Comp-FITC-A"])
def test_flowjo_spellings_of_a_channel_are_found(name: str) -> None:
    found = unmixing_matrix(spillover(names=(name, "PE-A", "APC-A")), CHANNELS)
    assert np.array_equal(found, unmixing_matrix(spillover(), CHANNELS))


def test_a_label_serves_where_no_detector_has_the_name() -> None:
    labelled = (Channel(index=0, pnn="FL1", pns="CD10"), Channel(index=1, pnn="FL2", pns="CD19"))
    full = unmixing_matrix(spillover(np.array([[1.0, 0.5], [0.0, 1.0]]), ("CD19", "CD10")), labelled)
    assert full.tolist() == [[1.0, 0.0], [-0.5, 1.0]]


def test_a_dye_that_the_file_lacks_is_an_error_naming_both_sides() -> None:
    expected = (
        "spillover of m.csv: names BV421-A, which the file does not have; "
        "expected names among FSC-A, FITC-A, PE-A, APC-A, Time"
    )
    with pytest.raises(CompensationError, match=f"^{re.escape(expected)}$"):
        unmixing_matrix(spillover(names=("FITC-A", "BV421-A", "APC-A"), source="m.csv"), CHANNELS)


def test_two_names_of_one_channel_are_an_error() -> None:
    with pytest.raises(CompensationError, match=re.escape("Comp-PE-A (a second name of PE-A)")):
        unmixing_matrix(spillover(names=("FITC-A", "PE-A", "Comp-PE-A")), CHANNELS)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((3, 3)), "expected a matrix that can be inverted; got a singular one"),
        (np.diag([1.0, np.nan, 1.0]), "expected finite numbers; got NaN or infinite entries"),
    ],
)
def test_a_matrix_without_inverse_is_refused(matrix: NDArray[np.float64], message: str) -> None:
    with pytest.raises(CompensationError, match=message):
        unmixing_matrix(spillover(matrix), CHANNELS)


def codes(matrix: NDArray[np.float64], names: tuple[str, ...] = ("FITC-A", "PE-A", "APC-A")) -> set[tuple[str, Level]]:
    return {(finding.code, finding.level) for finding in check_spillover(spillover(matrix, names), CHANNELS)}


def changed(i: int, j: int, value: float) -> NDArray[np.float64]:
    matrix = MATRIX.copy()
    matrix[i, j] = value
    return matrix


def test_a_good_matrix_passes_with_its_condition_number() -> None:
    (finding,) = check_spillover(spillover(source="$SPILLOVER"), CHANNELS)
    assert finding.level is Level.INFO
    assert finding.message == "The matrix of $SPILLOVER covers 3 channels, condition number 1.49."


@pytest.mark.parametrize(
    ("matrix", "code", "level"),
    [
        (changed(0, 0, 0.9), "SPILLOVER_DIAGONAL", Level.WARNING),
        (changed(0, 1, -0.051), "SPILLOVER_RANGE", Level.WARNING),
        (changed(0, 1, 2.001), "SPILLOVER_RANGE", Level.WARNING),
        (np.ones((3, 3)), "SPILLOVER_SINGULAR", Level.VIOLATION),
        (changed(0, 1, np.inf), "SPILLOVER_NOT_FINITE", Level.VIOLATION),
        (np.array([[1.0, 0.999, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), "SPILLOVER_ILL_CONDITIONED", Level.VIOLATION),
        (np.eye(3), "SPILLOVER_IDENTITY", Level.VIOLATION),
    ],
)
def test_each_fault_of_a_matrix_has_its_finding(matrix: NDArray[np.float64], code: str, level: Level) -> None:
    assert codes(matrix) == {(code, level)}


@pytest.mark.parametrize("value", [-0.05, 2.0])
def test_the_ends_of_the_allowed_range_are_allowed(value: float) -> None:
    assert codes(changed(0, 1, value)) == {("SPILLOVER_CONDITION", Level.INFO)}


def test_identity_is_fine_for_two_colours_and_unknown_or_scatter_channels_are_not() -> None:
    assert codes(np.eye(2), ("FITC-A", "PE-A")) == {("SPILLOVER_CONDITION", Level.INFO)}
    assert codes(MATRIX, ("FITC-A", "PE-A", "BV421-A")) == {("SPILLOVER_UNKNOWN_CHANNEL", Level.VIOLATION)}
    assert codes(MATRIX, ("FITC-A", "PE-A", "FSC-A")) == {("SPILLOVER_SCATTER", Level.WARNING)}


def test_the_digest_depends_on_values_and_names() -> None:
    base = matrix_digest(spillover())
    assert len(base) == 64
    assert matrix_digest(spillover(source="elsewhere")) == base
    assert matrix_digest(spillover(changed(0, 1, 0.2000001))) != base
    assert matrix_digest(spillover(names=("FITC-A", "PE-A", "APC-H"))) != base
    assert matrix_digest(spillover(changed(0, 2, -0.0))) == base


WIDE = "FITC-A,PE-A\n1,0.2\n0.05,1\n"


@pytest.mark.parametrize(
    "text",
    [
        WIDE,
        "# FITC-A,PE-A\n1,0.2\n0.05,1\n",
        ",FITC-A,PE-A\nFITC-A,1,0.2\nPE-A,0.05,1\n",
        "\tFITC-A\tPE-A\nPE-A\t0.05\t1\nFITC-A\t1\t0.2\n",
        "name;FITC-A;PE-A\nFITC-A;1;2e-1\nPE-A;.05;1.000\n",
        "\ufeffFITC-A,PE-A\r\n1,0.2\r\n0.05,1\r\n\r\n",
        '"FITC-A :: CD10","PE-A :: CD19"\n1,0.2\n0.05,1\n',
        "2,FITC-A,PE-A,1,0.2,0.05,1",
        ",FITC-A,PE-A\nFITC-A,100,20\nPE-A,5,100\n",
    ],
)
def test_the_forms_in_which_matrices_come_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text, encoding="utf-8")
    found = read_matrix_file(path)
    assert found.channels == ("FITC-A", "PE-A")
    assert found.matrix == pytest.approx(np.array([[1.0, 0.2], [0.05, 1.0]]))
    assert found.source == ("m.csv (percent)" if "100" in text else "m.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.csv: expected a header row and one row a channel; got an empty file"),
        ("FITC-A,PE-A\n1,0.2\n", "m.csv: expected 2 rows below the header, one a channel; got 1"),
        ("FITC-A,PE-A\n1,0.2,3\n0,1\n", "m.csv, line 2: expected 2 numbers; got 3"),
        ("FITC-A,PE-A\n1,x\n0,1\n", "m.csv, line 2, column 2: expected a number; got 'x'"),
        ("FITC-A,PE-A\n1,nan\n0,1\n", "m.csv, line 2, column 2: expected a finite number; got 'nan'"),
        (
            "FITC-A;PE-A\n1;0,2\n0;1\n",
            "m.csv, line 2, column 2: expected a number; got '0,2' (write decimals with a point)",
        ),
        ("A,A\n1,0\n0,1\n", "m.csv, line 1: expected each channel once; got A more than once"),
        ("1,0\n0,1\n", "m.csv, line 1: expected a header row of channel names; got numbers"),
        (",A,B\nA,1,0\nC,0,1\n", "m.csv, line 3: expected a row for one of B; got 'C'"),
        ("2,A,B,1,0,0", "m.csv, line 1: expected 7 cells for 2 channels; got 6"),
        (
            "hello",
            (
                "m.csv, line 1: expected a header row and one row a channel, "
                "or the text of a $SPILLOVER keyword; got one line"
            ),
        ),
        ("A\n1\n", "m.csv, line 1: expected a header row of channel names separated by comma, tab or semicolon"),
        (",A,\nA,1,0\nB,0,1\n", "m.csv, line 1: expected a channel name in every column; got an empty one"),
    ],
)
def test_a_faulty_matrix_file_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_matrix_file(path)
    assert str(caught.value) == message


def test_an_absent_a_binary_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: cannot be read: No such file"):
        read_matrix_file(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"A,B\n\xff\xfe")
    with pytest.raises(InputError, match=r"b\.csv, byte 4: expected UTF-8 text; got byte 0xff"):
        read_matrix_file(tmp_path / "b.csv")
    (tmp_path / "h.csv").write_bytes(b"1" * 4_000_001)
    with pytest.raises(InputError, match="at most 4 MB"):
        read_matrix_file(tmp_path / "h.csv")


def test_a_flowjo_matrix_of_eight_colours_is_read(shared_fcs: Path) -> None:
    found = read_matrix_file(shared_fcs / "workspaces" / "flowjo_8color_counts_only" / "den_comp.csv")
    assert len(found.channels) == 8
    assert found.channels[0] == "TNFa FITC FLR-A"
    assert found.matrix[0, 1] == 0.014139
    assert np.all(np.diag(found.matrix) == 1.0)
