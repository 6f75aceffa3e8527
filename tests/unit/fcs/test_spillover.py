"""Spillover in every dialect that instruments write, and what is said about broken ones."""

from __future__ import annotations

import numpy as np
import pytest

from flowmrd.errors import Level, QcFinding
from flowmrd.fcs import Channel, Spillover, channel_kind, check_spillover, parse_spillover
from flowmrd.fcs.spillover import read_dfc, read_spillover

NAMES = ["FSC-A", "SSC-A", "FL1-A", "FL2-A", "FL3-A", "Time"]
CHANNELS = [Channel(index=i, pnn=n, pns=f"CD{i}", kind=channel_kind(n)) for i, n in enumerate(NAMES)]
MATRIX = [[1.0, 0.12], [0.05, 1.0]]


def parsed(text: str, channels: list[Channel] = CHANNELS) -> tuple[Spillover | None, list[QcFinding]]:
    findings: list[QcFinding] = []
    return parse_spillover(text, channels, source="$SPILLOVER", findings=findings), findings


@pytest.mark.parametrize(
    "text",
    [
        "2,FL1-A,FL2-A,1,0.12,0.05,1",
        "2, FL1-A , FL2-A , 1.000, 0.12, 5e-2, 1",
        "2,fl1-a,FL2-A,1,.12,0.05,1",
        "2,3,4,1,0.12,0.05,1",  # parameter numbers
        "2,CD2,CD3,1,0.12,0.05,1",  # labels
        "2,Comp-FL1-A,Comp-FL2-A,1,0.12,0.05,1",
        "2,FL1-A,FL2-A,1,000,0,120,0,050,1,000",  # decimal commas
        "2;FL1-A;FL2-A;1,0;0,12;0,05;1,0",
        "2,FL1-A,FL2-A,1,0.12,0.05,1,",
        "2,FL1-A,CD3,1,0.12,0.05,1\n",
    ],
)
def test_every_dialect_gives_the_same_matrix(text: str) -> None:
    spillover, findings = parsed(text)
    assert spillover is not None
    assert spillover.channels == ("FL1-A", "FL2-A")
    assert np.allclose(spillover.matrix, MATRIX, atol=0)
    assert findings == []
    with pytest.raises(ValueError, match="read-only"):
        spillover.matrix[0, 0] = 2


def test_names_with_commas_are_put_together_again() -> None:
    channels = [Channel(index=0, pnn="PE,CF594-A"), Channel(index=1, pnn="APC-A")]
    spillover, _ = parsed("2,PE,CF594-A,APC-A,1,0.12,0.05,1", channels)
    assert spillover is not None
    assert spillover.channels == ("PE,CF594-A", "APC-A")


def test_numbers_that_are_names_are_names() -> None:
    channels = [Channel(index=0, pnn="2"), Channel(index=1, pnn="1")]
    spillover, _ = parsed("2,1,2,1,0.12,0.05,1", channels)
    assert spillover is not None
    assert spillover.channels == ("1", "2")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("6,FL2-A,FL2-H,FL4-A", "6 channels need 6 names and 36 numbers, got 3 fields in all"),
        ("2,FL1-A,FL2-A,1,0.1,0.2", "2 channels need 2 names and 4 numbers, got 5 fields in all"),
        ("2,FL1-A,FL2-A,1,0.1,x,1", "2 channels need 2 names and 4 numbers, got 6 fields in all"),
        ("2,FL1-A,FL2-A,1,nan,0,1", "2 channels need 2 names and 4 numbers, got 6 fields in all"),
        ("many", "it does not start with the number of channels"),
        ("999999,a", "it does not start with the number of channels"),
        ("-1", "it does not start with the number of channels"),
    ],
)
def test_a_malformed_matrix_is_a_warning_and_uncompensated(text: str, why: str) -> None:
    spillover, findings = parsed(text)
    assert spillover is None
    (found,) = findings
    assert (found.level, found.code, found.where) == (Level.WARNING, "SPILLOVER_MALFORMED", "$SPILLOVER")
    assert found.message == f"$SPILLOVER cannot be read ({why}); the data are uncompensated"


def test_unknown_and_repeated_channels_are_violations() -> None:
    for text, code in (
        ("2,FL1-A,FL9-A,1,0,0,1", "SPILLOVER_UNKNOWN_CHANNEL"),
        ("2,FL1-A,FL1-A,1,0,0,1", "SPILLOVER_DUPLICATE"),
        ("2,3,77,1,0,0,1", "SPILLOVER_UNKNOWN_CHANNEL"),
    ):
        spillover, findings = parsed(text)
        assert spillover is None
        assert [(f.level, f.code) for f in findings] == [(Level.VIOLATION, code)]


def test_a_matrix_without_names_is_for_all_parameters_or_all_fluorescence() -> None:
    three = "3,1,.1,0,0,1,0,0,0,1"
    spillover, findings = parsed(three)
    assert spillover is not None
    assert spillover.channels == ("FL1-A", "FL2-A", "FL3-A")
    assert [f.code for f in findings] == ["SPILLOVER_UNLABELLED"]
    whole = np.eye(6)
    whole[2, 3] = 0.1
    spillover, _ = parsed("6," + ",".join(map(str, whole.ravel())))
    assert spillover is not None
    assert spillover.matrix[0, 1] == 0.1
    assert parsed("4," + ",".join(["1"] * 16))[0] is None


@pytest.mark.parametrize("key", ["$SPILLOVER", "SPILL", "SPILLOVER", "$SPILL", "$COMP"])
def test_every_keyword_is_found_and_named_as_source(key: str) -> None:
    spillover, findings = read_spillover({key: "2,FL1-A,FL2-A,1,0.12,0.05,1"}, CHANNELS)
    assert spillover is not None
    assert (spillover.source, findings) == (key, [])


def test_a_broken_keyword_is_not_silently_replaced_by_another() -> None:
    keywords = {"$SPILLOVER": "2,FL1-A", "SPILL": "2,FL1-A,FL2-A,1,0.12,0.05,1"}
    spillover, findings = read_spillover(keywords, CHANNELS)
    assert spillover is None
    assert [f.code for f in findings] == ["SPILLOVER_MALFORMED"]


def judged(matrix: list[list[float]]) -> list[tuple[Level, str]]:
    names = tuple(f"F{i}" for i in range(len(matrix)))
    return [(f.level, f.code) for f in check_spillover(Spillover(channels=names, matrix=np.array(matrix), source="m"))]


def test_matrices_are_judged() -> None:
    assert judged(MATRIX) == []
    assert judged([[1, 0], [0, 1]]) == []
    assert judged(np.eye(3).tolist()) == [(Level.VIOLATION, "SPILLOVER_IDENTITY")]
    assert judged([[1, 1], [1, 1]]) == [(Level.VIOLATION, "SPILLOVER_SINGULAR")]
    assert judged([[1, 0.9999], [0.9999, 1]]) == [(Level.VIOLATION, "SPILLOVER_ILL_CONDITIONED")]
    assert judged([[1, 2.5], [0, 1]]) == [(Level.WARNING, "SPILLOVER_RANGE")]
    assert judged([[1, -0.06], [0, 1]]) == [(Level.WARNING, "SPILLOVER_RANGE")]
    assert judged([[0.9, 0.1], [0, 1]]) == [(Level.WARNING, "SPILLOVER_RANGE")]


def test_a_spillover_that_is_not_square_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="a spillover matrix of 2 channels must be square"):
        Spillover(channels=("a", "b"), matrix=np.eye(3), source="x")


DFC = {"$DFC1TO2": "12.0", "$DFC2TO1": "5", "$DFC1TO1": "0.0", "$DFC9TO1": "3", "$DFC3TO1": "x"}


def test_dfc_is_percent_of_detector_i_in_detector_j() -> None:
    findings: list[QcFinding] = []
    spillover = read_dfc(DFC, CHANNELS, findings)
    assert spillover is not None
    assert (spillover.channels, spillover.source) == (("FL1-A", "FL2-A", "FL3-A"), "$DFCiTOj")
    assert spillover.matrix.tolist() == [[1, 0.12, 0], [0.05, 1, 0], [0, 0, 1]]
    assert [f.code for f in findings] == ["SPILLOVER_DFC"]


def test_dfc_of_coarse_values_alone_is_not_applied_a_second_time() -> None:
    spillover, findings = read_spillover(DFC, CHANNELS)
    assert spillover is None
    assert [(f.level, f.code) for f in findings] == [(Level.WARNING, "DFC_APPLIED")]
    assert read_spillover({"$DFC1TO2": "0.0"}, CHANNELS) == (None, [])


def test_dfc_with_a_detector_stored_twice_is_not_guessed() -> None:
    channels = [Channel(index=0, pnn="FL1 LOG"), Channel(index=1, pnn="FL1 LIN"), Channel(index=2, pnn="FL2 LOG")]
    findings: list[QcFinding] = []
    assert read_dfc(DFC, channels, findings) is None
    assert [f.code for f in findings] == ["SPILLOVER_MALFORMED"]
