"""The template `tbnk` on a real six-colour tube of a FACSCanto II: what must hold in any blood, for want of counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.fcs import open_fcs
from flowmrd.gating.engine import GatingResult, apply_template
from flowmrd.gating.gates import Whole
from flowmrd.gating.template import find_template


@pytest.fixture(scope="module")
def gated(shared_fcs: Path) -> tuple[EventSource, GatingResult]:
    template = find_template("tbnk")
    fcs = open_fcs(shared_fcs / "blood_tcell" / "TBNK_6color_FACSCantoII.fcs")
    panel = resolve_panel(template.channel, fcs.channels, tube="tbnk")
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    return source, apply_template(source, template)


def test_the_label_cd16_plus_56_is_the_nk_channel(gated: tuple[EventSource, GatingResult]) -> None:
    source, _ = gated
    assert source.panel.channels["CD16+CD56"].pns == "CD16+56"
    assert set(source.panel.missing) == {"FSC-H", "FSC-W"}


def test_a_tube_without_pulse_height_keeps_all_events_as_singlets_with_a_finding(
    gated: tuple[EventSource, GatingResult],
) -> None:
    _, result = gated
    assert isinstance(result.placed["singlets"].gate, Whole)
    assert ("GATE_SKIPPED", "singlets") in {(finding.code, finding.where) for finding in result.findings}


def test_t_b_and_nk_cells_add_up_to_the_lymphocytes(gated: tuple[EventSource, GatingResult]) -> None:
    counts = gated[1].counts
    subsets = counts["cd3"] + counts["b_cells"] + counts["nk"]
    assert 0.95 <= subsets / counts["lymphocytes"] <= 1.0
    members = [gated[1].memberships.mask(name) for name in ("cd3", "b_cells", "nk")]
    assert np.sum(members, axis=0).max() == 1


def test_cd4_and_cd8_t_cells_and_those_with_neither_make_up_the_t_cells(
    gated: tuple[EventSource, GatingResult],
) -> None:
    counts = gated[1].counts
    assert counts["cd4"] + counts["cd8"] + counts["t_double_negative"] == pytest.approx(counts["cd3"], rel=0.02)


@pytest.mark.parametrize(
    ("population", "parent", "low", "high"),
    [  # wide adult and paediatric ranges: a gate in the wrong place leaves them
        ("lymphocytes", "leukocytes", 0.10, 0.60),
        ("monocytes", "leukocytes", 0.02, 0.20),
        ("cd3", "lymphocytes", 0.45, 0.85),
        ("b_cells", "lymphocytes", 0.05, 0.35),
        ("nk", "lymphocytes", 0.03, 0.30),
        ("cd4", "cd3", 0.35, 0.75),
        ("cd8", "cd3", 0.20, 0.55),
        ("t_double_negative", "cd3", 0.0, 0.15),
    ],
)
def test_subsets_are_those_of_blood(
    gated: tuple[EventSource, GatingResult], population: str, parent: str, low: float, high: float
) -> None:
    counts = gated[1].counts
    assert low < counts[population] / counts[parent] < high


def test_a_tube_without_beads_has_none(gated: tuple[EventSource, GatingResult]) -> None:
    assert gated[1].counts["beads"] < 10


def test_every_cut_was_found_on_the_sample_itself(gated: tuple[EventSource, GatingResult]) -> None:
    placed = gated[1].placed
    found = ("leukocytes", "t_seen", "ssc_low", "lymphocytes", "cd4", "cd8", "b_cells", "nk_border")
    assert [name for name in found if placed[name].fallback or placed[name].bound_hit] == []
