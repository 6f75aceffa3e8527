"""The oracle: FlowKit, given our placed gates, finds the same events in every population.

FlowKit reads the file, compensates and scales it by itself. Not one event may differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flowmrd.blasts import knowledge_for
from flowmrd.cytometry.events import DataState, EventSource, resolve_panel
from flowmrd.fcs import open_fcs
from flowmrd.gating.engine import GatingResult, apply_template
from flowmrd.gating.gates import Boolean, Ellipsoid, Gate, Intervals, MemberList, Nothing, Polygon, Rectangle, Whole
from flowmrd.gating.interop.oracle import flowkit_membership, to_flowkit, without_lists
from flowmrd.gating.template import find_template, load_template
from flowmrd.settings import Settings
from flowmrd.simulation import Parameters, simulate, write_simulated


def gated(path: Path, name: str, *, state: DataState = DataState.RAW) -> tuple[EventSource, GatingResult]:
    template = find_template(name)
    fcs = open_fcs(path)
    panel = resolve_panel(template.channel, fcs.channels, tube=name)
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover, state=state)
    return source, apply_template(source, template)


def demand_the_same_events(path: Path, source: EventSource, result: GatingResult) -> None:
    theirs = flowkit_membership(to_flowkit(result, source), result, path)
    assert set(theirs) == set(without_lists(result))
    differing = {
        name: int(np.count_nonzero(theirs[name] != result.memberships.mask(name)))
        for name in theirs
        if not np.array_equal(theirs[name], result.memberships.mask(name))
    }
    assert differing == {}


REAL = [
    ("aieop-bfm-syto", "ball_mrd_real/47333tubeB10001.fcs", "blasts"),
    ("aieop-bfm-syto", "ball_mrd_real/123991.fcs", "blasts"),
    ("aieop-bfm-syto", "ball_mrd_dilution/P494_mrd0p5pct.fcs", "blasts"),
    ("aieop-bfm-syto", "ball_mrd_sim/SIMS01.fcs", "blasts"),
    ("tbnk", "blood_tcell/TBNK_6color_FACSCantoII.fcs", "nk"),
]


@pytest.mark.parametrize(("template", "file", "population"), REAL, ids=[file for _, file, _ in REAL])
def test_flowkit_finds_the_same_events_on_real_files(
    shared_fcs: Path, template: str, file: str, population: str
) -> None:
    path = shared_fcs / file
    source, result = gated(path, template)
    assert result.counts[population] > 0
    assert set(without_lists(result)) == set(result.counts)
    demand_the_same_events(path, source, result)


SIMULATED = [
    ("ball-mrd-10c", {"tube": "ball-mrd-10c", "scenario": "regenerating", "blasts": 0.01}, 3, "blasts"),
    # Seeds whose run has a clog: the time gate drops a stretch.
    ("ball-mrd-10c", {"tube": "ball-mrd-10c", "scenario": "normal"}, 1020, "hematogones"),
    ("cart-persistence", {"tube": "cart-persistence", "scenario": "expansion", "car": 0.1}, 3, "car"),
    ("cart-persistence", {"tube": "cart-persistence", "scenario": "normal", "car": 0.1}, 1020, "car"),
    ("tbnk", {"tube": "tbnk", "scenario": "normal", "beads": True}, 3, "beads"),
]


@pytest.mark.parametrize(
    ("template", "recipe", "seed", "population"), SIMULATED, ids=[f"{name}-{seed}" for name, _, seed, _ in SIMULATED]
)
def test_flowkit_finds_the_same_events_on_simulated_files(
    tmp_path: Path, template: str, recipe: dict[str, object], seed: int, population: str
) -> None:
    case = simulate(Parameters(events=60_000, **recipe), seed)  # type: ignore[arg-type]
    path = write_simulated(case, tmp_path, "case").fcs
    source, result = gated(path, template)
    assert result.counts[population] > 0
    demand_the_same_events(path, source, result)


def test_beside_what_a_search_lists_flowkit_finds_the_same_events(tmp_path: Path) -> None:
    case = simulate(Parameters(tube="ball-mrd-10c", scenario="regenerating", blasts=0.01, events=60_000), 3)
    path = write_simulated(case, tmp_path, "case").fcs
    template = find_template("ball-mrd-10c")
    fcs = open_fcs(path)
    panel = resolve_panel(template.channel, fcs.channels, tube="case")
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    result = apply_template(source, template, knowledge=knowledge_for(template, Settings()))
    assert result.counts["blasts"] > 0
    lists = {name for name, placed in result.placed.items() if isinstance(placed.gate, MemberList)}
    assert lists == {"blasts", "blast_candidates"}
    # What is made of the blasts is left out with them: hematogones are precursors that are none.
    left_out = set(result.counts) - set(without_lists(result))
    assert lists < left_out
    assert {"b_lineage", "precursors", "mature_b", "viable"} <= set(without_lists(result))
    demand_the_same_events(path, source, result)


# ------------------------------------------------------------------------------------------------- every kind of gate

EVERY_KIND = """
[template]
id = "every-kind"
version = "1.0.0"
title = "Every kind of gate"
specimens = ["BM"]
purpose = "For the oracle."

[[channel]]
marker = "FSC-A"
role = "scatter"
transform = { kind = "linear", T = "range", A = 0.0 }
[[channel]]
marker = "Time"
role = "time"
transform = { kind = "linear", T = 1.0, A = 0.0 }
[[channel]]
marker = "CD45"
transform = { kind = "logicle", T = "range", W = 0.5, M = 4.5, A = 0.0 }
[[channel]]
marker = "CD19"
transform = { kind = "arcsinh", T = "range", M = 4.0, A = 1.0 }
[[channel]]
marker = "CD10"
transform = { kind = "log", T = "range", M = 4.5 }
[[channel]]
marker = "CD99"
required = false
transform = { kind = "linear", T = 1.0, A = 0.0 }

[[population]]
name = "time"
parent = "root"
channels = ["Time", "CD45", "FSC-A"]
method = "time_stable"
purpose = "Several stretches."
[[population]]
name = "whole"
parent = "time"
kind = "clean_up"
channels = ["CD99"]
method = "interval"
purpose = "A clean-up step without its channel."
[[population]]
name = "nothing"
parent = "whole"
channels = ["CD99"]
method = "interval"
purpose = "A population without its channel."
[[population]]
name = "rectangle"
parent = "whole"
channels = ["CD45", "FSC-A"]
method = "rectangle"
params = { low = { CD45 = 0.3 }, high = { FSC-A = 0.4 } }
purpose = "Half open, two scales."
[[population]]
name = "polygon"
parent = "rectangle"
channels = ["CD19", "CD45"]
method = "polygon"
params = { vertices = [[0.2, 0.3], [0.9, 0.4], [0.5, 0.6], [0.8, 0.95], [0.1, 0.9]] }
purpose = "With a dent."
[[population]]
name = "ellipse"
parent = "whole"
channels = ["CD45", "CD19"]
method = "ellipse"
params = { mean = [0.7, 0.3], covariance = [[0.01, 0.003], [0.003, 0.02]], distance_square = 3.0 }
purpose = "Leaning."
[[population]]
name = "ellipsoid"
parent = "whole"
channels = ["CD45", "CD19", "FSC-A"]
method = "ellipse"
params = { mean = [0.7, 0.3, 0.2], covariance = [[0.01, 0, 0], [0, 0.02, 0], [0, 0, 0.005]], distance_square = 4.0 }
purpose = "Of three markers."
[[population]]
name = "log"
parent = "whole"
channels = ["CD10"]
method = "interval"
params = { low = 0.2, high = 0.7 }
purpose = "Values of zero and below have no logarithm."
[[population]]
name = "and"
parent = "rectangle"
method = "boolean"
params = { operator = "and", populations = ["ellipse", "!polygon", "log"] }
purpose = "Operands of other branches."
[[population]]
name = "or"
parent = "ellipsoid"
method = "boolean"
params = { operator = "or", populations = ["!and", "nothing", "whole"] }
purpose = "Of booleans, of whole and of nothing."
"""


@pytest.fixture
def every_kind(tmp_path: Path) -> Callable[[], tuple[Path, EventSource, GatingResult]]:
    def make() -> tuple[Path, EventSource, GatingResult]:
        (tmp_path / "every-kind.toml").write_text(EVERY_KIND, encoding="utf-8")
        template = load_template(tmp_path / "every-kind.toml")
        case = simulate(Parameters(tube="ball-mrd-10c", events=60_000, scenario="normal", blasts=0.05), 1020)
        path = write_simulated(case, tmp_path, "case").fcs
        fcs = open_fcs(path)
        panel = resolve_panel(template.channel, fcs.channels, tube="every-kind")
        source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
        return path, source, apply_template(source, template)

    return make


def test_every_kind_of_gate_and_scale_means_the_same_to_flowkit(
    every_kind: Callable[[], tuple[Path, EventSource, GatingResult]],
) -> None:
    path, source, result = every_kind()
    kinds: set[type[Gate]] = {type(placed.gate) for placed in result.placed.values()}
    assert kinds == {Whole, Nothing, Rectangle, Intervals, Polygon, Ellipsoid, Boolean}
    time = result.placed["time"].gate
    assert isinstance(time, Intervals)
    assert len(time.ranges) > 1
    assert all(0 < result.counts[name] < 60_000 for name in result.counts if name != "nothing")
    demand_the_same_events(path, source, result)


def test_a_wrong_gate_is_noticed(every_kind: Callable[[], tuple[Path, EventSource, GatingResult]]) -> None:
    path, source, result = every_kind()
    strategy = to_flowkit(result, source)
    gate = strategy.get_gate("rectangle", ("root", "time", "whole"))
    gate.dimensions[0].min = 0.301
    theirs = flowkit_membership(strategy, result, path)
    assert not np.array_equal(theirs["rectangle"], result.memberships.mask("rectangle"))


def test_values_that_are_compensated_already_are_not_compensated_again_by_flowkit(shared_fcs: Path) -> None:
    path = shared_fcs / "ball_mrd_real" / "123991.fcs"
    source, result = gated(path, "aieop-bfm-syto", state=DataState.COMPENSATED)
    demand_the_same_events(path, source, result)
