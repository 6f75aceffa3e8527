"""The engine: choices, fallbacks, bounds, borrowed cuts, booleans, empty parents, overrides; all of it explained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.errors import Level
from flowmrd.fcs import Channel, open_fcs, write_fcs
from flowmrd.gating.engine import GatingResult, apply_gates, apply_template
from flowmrd.gating.gates import Gate, Nothing, Rectangle, Whole
from flowmrd.gating.template import load_template

HEAD = """
[template]
id = "t"
version = "1.0.0"
title = "t"
specimens = ["BM"]
purpose = "t"
"""
CHANNEL = """
[[channel]]
marker = "{marker}"
required = {required}
transform = {{ kind = "linear", T = 1.0, A = 0.0 }}
"""
ROW = """
[[population]]
name = "{name}"
parent = "{parent}"
purpose = "."
{gate}
"""


def row(name: str, gate: str, parent: str = "root") -> str:
    return ROW.format(name=name, parent=parent, gate=gate)


class Bench:
    """Writes a file and a template, gates the one by the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def source(self, template: Path, **columns: NDArray[np.float64]) -> EventSource:
        path = self.folder / "events.fcs"
        channels = [Channel(index=i, pnn=f"D{i}-A", pns=marker, range=1.0) for i, marker in enumerate(columns)]
        write_fcs(path, [column.astype(np.float32) for column in columns.values()], channels)
        fcs = open_fcs(path)
        specs = load_template(template).channel
        return EventSource(fcs, resolve_panel(specs, fcs.channels, tube="t"), specs, spillover=None)

    def gate(
        self,
        rows: str,
        *,
        optional: tuple[str, ...] = (),
        overrides: dict[str, tuple[Gate, str]] | None = None,
        **columns: NDArray[np.float64],
    ) -> GatingResult:
        path = self.folder / "t.toml"
        markers = dict.fromkeys((*columns, *optional))
        heads = "".join(CHANNEL.format(marker=m, required="false" if m in optional else "true") for m in markers)
        path.write_text(HEAD + heads + rows, encoding="utf-8")
        return apply_template(self.source(path, **columns), load_template(path), overrides=overrides)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# Between the round numbers, so that no cut meets an event.
UNIFORM = (np.arange(1000) + 0.5) / 1000
INTERVAL = 'channels = ["X"]\nmethod = "interval"\nparams = {{ low = {low} }}'


def codes(result: GatingResult) -> list[tuple[Level, str, str]]:
    return [(finding.level, finding.code, finding.where) for finding in result.findings]


def test_counts_and_members_follow_the_tree_in_file_order(bench: Bench) -> None:
    rows = row("a", INTERVAL.format(low=0.5)) + row("b", INTERVAL.format(low=0.9), "a")
    result = bench.gate(rows, X=UNIFORM[::-1])
    assert result.counts == {"a": 500, "b": 100}
    np.testing.assert_array_equal(result.memberships.mask("b"), UNIFORM[::-1].astype(np.float32) >= 0.9)
    assert result.findings == ()
    assert result.placed["b"].reason == ""


def test_the_first_choice_whose_channels_are_there_is_taken_and_the_reason_kept(bench: Bench) -> None:
    rows = row(
        "singlets",
        'kind = "clean_up"\nchannels = ["Y"]\nmethod = "interval"\nparams = { low = 0.1 }\n'
        '[[population.otherwise]]\nchannels = ["X"]\nmethod = "interval"\nparams = { low = 0.2 }',
    )
    result = bench.gate(rows, optional=("Y",), X=UNIFORM)
    placed = result.placed["singlets"]
    assert (placed.method, placed.fallback, placed.channels) == ("interval", "interval", ("X",))
    assert placed.reason == "interval needs Y, not in this file"
    assert codes(result) == [(Level.INFO, "GATE_FALLBACK", "singlets")]


def test_a_clean_up_step_without_its_channels_keeps_the_whole_parent_and_says_so(bench: Bench) -> None:
    rows = row("singlets", 'kind = "clean_up"\nchannels = ["Y"]\nmethod = "interval"\nparams = { low = 0.1 }')
    result = bench.gate(rows, optional=("Y",), X=UNIFORM)
    assert result.placed["singlets"].gate == Whole()
    assert result.counts == {"singlets": 1000}
    assert [finding.message for finding in result.findings] == [
        "singlets keeps all of root: interval needs Y, not in this file."
    ]


def test_a_population_without_its_channels_counts_nothing_and_says_so(bench: Bench) -> None:
    rows = row("car", 'channels = ["Y"]\nmethod = "interval"\nparams = { low = 0.1 }')
    result = bench.gate(rows, optional=("Y",), X=UNIFORM)
    assert result.placed["car"].gate == Nothing()
    assert [finding.message for finding in result.findings] == [
        "car could not be evaluated and counts nothing: interval needs Y, not in this file."
    ]


def test_a_population_that_cannot_be_evaluated_drops_out_of_a_union(bench: Bench) -> None:
    rows = (
        row("cd22", 'channels = ["Y"]\nmethod = "interval"\nparams = { low = 0.1 }')
        + row("cd19", INTERVAL.format(low=0.75))
        + row("lineage", 'method = "boolean"\nparams = { operator = "or", populations = ["cd22", "cd19"] }')
    )
    assert bench.gate(rows, optional=("Y",), X=UNIFORM).counts["lineage"] == 250


def test_a_boolean_stays_inside_its_parent(bench: Bench) -> None:
    rows = (
        row("a", INTERVAL.format(low=0.5))
        + row("b", INTERVAL.format(low=0.2))
        + row("c", INTERVAL.format(low=0.7))
        + row("d", 'method = "boolean"\nparams = { operator = "and", populations = ["b", "!c"] }', "a")
        + row("e", 'method = "boolean"\nparams = { operator = "or", populations = ["b", "!c"] }', "a")
    )
    counts = bench.gate(rows, X=UNIFORM).counts
    assert (counts["d"], counts["e"]) == (200, 500)


def test_operands_may_stand_after_the_boolean_that_needs_them(bench: Bench) -> None:
    rows = row("d", 'method = "boolean"\nparams = { operator = "or", populations = ["z"] }') + row(
        "z", INTERVAL.format(low=0.9)
    )
    assert bench.gate(rows, X=UNIFORM).counts == {"d": 100, "z": 100}


VALLEY = 'channels = ["X"]\nmethod = "valley"\nparams = { keep = "above", search = [0.3, 0.7] }\n'
PEAKS = np.r_[np.random.default_rng(1).normal(0.2, 0.02, 600), np.random.default_rng(2).normal(0.8, 0.02, 400)]


def test_a_found_cut_outside_its_bounds_is_clamped_and_flagged(bench: Bench) -> None:
    result = bench.gate(row("p", VALLEY + "bounds = { cut = [0.55, 0.65] }"), X=PEAKS)
    placed = result.placed["p"]
    assert placed.found["cut"] == 0.55
    assert placed.bound_hit.startswith("cut 0.")
    assert placed.bound_hit.endswith("is outside 0.55 … 0.65")
    assert codes(result) == [(Level.WARNING, "GATE_BOUND_HIT", "p")]


def test_a_found_cut_outside_its_bounds_can_hand_over_to_the_next_choice(bench: Bench) -> None:
    gate = (
        VALLEY
        + 'bounds = { cut = [0.55, 0.65] }\non_bound = "next"\n'
        + '[[population.otherwise]]\nchannels = ["X"]\nmethod = "interval"\nparams = { low = 0.6 }'
    )
    placed = bench.gate(row("p", gate), X=PEAKS).placed["p"]
    assert (placed.method, placed.fallback, placed.bound_hit) == ("interval", "interval", "")
    assert "valley: cut 0." in placed.reason


def test_a_cut_is_lent_as_it_stands_after_its_bounds(bench: Bench) -> None:
    rows = row("p", VALLEY + "bounds = { cut = [0.55, 0.65] }") + row(
        "q", 'channels = ["X"]\nmethod = "interval"\nparams = { high = "p.cut" }'
    )
    result = bench.gate(rows, X=PEAKS)
    assert result.placed["q"].gate == Rectangle(markers=("X",), low=(float("-inf"),), high=(0.55,))
    assert result.counts["p"] + result.counts["q"] == 1000


def test_a_fixed_interval_lends_its_one_side_as_a_cut(bench: Bench) -> None:
    rows = row("p", INTERVAL.format(low=0.25)) + row(
        "q", 'channels = ["X"]\nmethod = "interval"\nparams = { high = "p.cut" }'
    )
    assert bench.gate(rows, X=UNIFORM).counts == {"p": 750, "q": 250}


def test_too_few_events_hand_over_to_the_next_choice_with_the_count(bench: Bench) -> None:
    gate = VALLEY + (
        'min_events = 5000\n[[population.otherwise]]\nchannels = ["X"]\nmethod = "interval"\nparams = { low = 0.5 }'
    )
    result = bench.gate(row("p", gate), X=PEAKS)
    assert result.counts["p"] == 400
    assert result.placed["p"].reason == "valley: root has 1000 events, fewer than 5000"
    assert codes(result) == [(Level.WARNING, "GATE_FALLBACK", "p")]


def test_a_reference_is_looked_at_wherever_it_hangs_in_the_tree(bench: Bench) -> None:
    rows = row("t_like", INTERVAL.format(low=0.9)) + row(
        "p",
        'channels = ["X"]\nmethod = "reference"\nparams = { keep = "above", population = "t_like", quantile = 0.0 }',
    )
    result = bench.gate(rows, X=UNIFORM)
    assert result.placed["p"].found["cut"] == pytest.approx(0.9005)
    assert result.counts["p"] == pytest.approx(100, abs=1)


def test_children_of_an_empty_population_are_empty_with_the_reason(bench: Bench) -> None:
    rows = (
        row("empty", INTERVAL.format(low=2.0))
        + row("child", VALLEY, "empty")
        + row("grandchild", INTERVAL.format(low=0.1), "child")
    )
    result = bench.gate(rows, X=UNIFORM)
    assert result.counts == {"empty": 0, "child": 0, "grandchild": 0}
    assert [finding.message for finding in result.findings] == ["child is empty because empty is."]


def test_an_override_replaces_the_gate_and_is_named(bench: Bench) -> None:
    gate = Rectangle(markers=("X",), low=(0.99,), high=(float("inf"),))
    result = bench.gate(row("p", VALLEY), X=UNIFORM, overrides={"p": (gate, "drawn by AB on visit D0")})
    assert result.counts == {"p": 10}
    assert result.placed["p"].fallback == "override"
    assert [(finding.code, finding.message) for finding in result.findings] == [
        ("GATE_OVERRIDDEN", "The gate of p is not the template's: drawn by AB on visit D0.")
    ]


def test_an_array_of_members_is_not_shared_with_the_engine(bench: Bench) -> None:
    memberships = bench.gate(row("p", INTERVAL.format(low=0.5)), X=UNIFORM).memberships
    memberships.mask("p")[:] = False
    assert memberships.mask("p").sum() == 500
    assert memberships.mask("root").all()
    assert "p" in memberships
    assert "q" not in memberships


def test_placed_gates_applied_again_give_the_same_members(bench: Bench) -> None:
    rows = row("p", VALLEY) + row("q", INTERVAL.format(low=0.8), "p")
    result = bench.gate(rows, X=PEAKS)
    source = bench.source(bench.folder / "t.toml", X=PEAKS)
    counts, memberships = apply_gates(
        source, [(name, result.template.row(name).parent, result.placed[name].gate) for name in ("p", "q")]
    )
    assert counts == result.counts
    for name in ("p", "q"):
        np.testing.assert_array_equal(memberships.mask(name), result.memberships.mask(name))
