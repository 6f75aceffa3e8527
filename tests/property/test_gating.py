"""What holds for any file: children inside parents, order of events, names of channels, streaming, JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.fcs import Channel, FcsFile, Spillover, open_fcs, read_fcs, write_fcs
from flowmrd.gating.engine import GatingResult, apply_gates, apply_template
from flowmrd.gating.gates import Ellipsoid, Gate, Intervals, Polygon, Rectangle, gate_from_json, gate_to_json
from flowmrd.gating.template import GatingTemplate, find_template
from flowmrd.simulation import Parameters, simulate, write_simulated

TEMPLATES = ("ball-mrd-10c", "tbnk", "cart-persistence")
FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stained:
    """A simulated acquisition taken apart, so that it can be written in other ways."""

    template: GatingTemplate
    path: Path
    columns: NDArray[np.float32]
    channels: tuple[Channel, ...]
    spillover: Spillover | None
    keywords: dict[str, str]


def gate(fcs: FcsFile, template: GatingTemplate) -> GatingResult:
    panel = resolve_panel(template.channel, fcs.channels, tube=template.template.id)
    return apply_template(EventSource(fcs, panel, template.channel, spillover=fcs.spillover), template)


@pytest.fixture(scope="module", params=TEMPLATES)
def stained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stained:
    name: str = request.param
    # A seed whose run has a disturbed stretch, so that the time gate has something to do.
    case = simulate(Parameters(tube=name, events=12_000, scenario="normal"), 1020)
    path = write_simulated(case, tmp_path_factory.mktemp("stained"), name).fcs
    fcs = read_fcs(path)
    step = fcs.time_step or 1.0
    columns = np.concatenate([values.copy() for _, values in fcs.blocks()], axis=1)
    time = [i for i, channel in enumerate(fcs.channels) if channel.pnn == "Time"]
    columns[time] /= step
    keywords = {"$TIMESTEP": fcs.keywords["$TIMESTEP"]} if "$TIMESTEP" in fcs.keywords else {}
    return Stained(
        template=find_template(name),
        path=path,
        columns=columns.astype(np.float32),
        channels=fcs.channels,
        spillover=fcs.spillover,
        keywords=keywords,
    )


def written(
    stained: Stained,
    folder: Path,
    *,
    rows: Sequence[int] | NDArray[np.intp] | None = None,
    label: Callable[[Channel], Channel] = lambda channel: channel,
    spillover: Spillover | None = None,
) -> Path:
    path = folder / "other.fcs"
    columns = stained.columns if rows is None else stained.columns[:, rows]
    channels = [label(channel) for channel in stained.channels]
    matrix = spillover or stained.spillover
    write_fcs(path, list(columns), channels, spillover=matrix, keywords=stained.keywords)
    return path


def same_gates(one: GatingResult, other: GatingResult) -> None:
    assert one.counts == other.counts
    for name, placed in one.placed.items():
        assert placed.gate == other.placed[name].gate, name
        assert placed.found == other.placed[name].found, name
        assert placed.reason == other.placed[name].reason, name


@FEW
@given(start=st.integers(0, 11_000), size=st.integers(0, 3000))
def test_a_child_never_leaves_its_parent(stained: Stained, tmp_path: Path, start: int, size: int) -> None:
    rows = np.arange(start, min(start + size, 12_000))
    result = gate(open_fcs(written(stained, tmp_path, rows=rows)), stained.template)
    for row in result.template.population:
        child, parent = result.memberships.mask(row.name), result.memberships.mask(row.parent)
        assert not (child & ~parent).any(), row.name
        assert result.counts[row.name] == int(child.sum())


@FEW
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_events_changes_neither_gates_nor_members(stained: Stained, tmp_path: Path, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(stained.columns.shape[1])
    one = gate(open_fcs(stained.path), stained.template)
    other = gate(open_fcs(written(stained, tmp_path, rows=order)), stained.template)
    same_gates(one, other)
    for name in one.counts:
        np.testing.assert_array_equal(one.memberships.mask(name)[order], other.memberships.mask(name))


@FEW
@given(data=st.data())
def test_other_spellings_of_the_channels_change_nothing(stained: Stained, tmp_path: Path, data: st.DataObject) -> None:
    dyes = ("PE-Cy7", "BV605", "APC-R700", "PC7", "")
    number = {channel.pnn: place for place, channel in enumerate(stained.channels)}

    def label(channel: Channel) -> Channel:
        if not channel.pns:
            return channel
        dye = data.draw(st.sampled_from(dyes))
        spelled = data.draw(st.sampled_from([channel.pns, channel.pns.lower(), f"{channel.pns} {dye}".strip()]))
        return Channel(index=channel.index, pnn=f"FL{number[channel.pnn]}-A", pns=spelled, range=channel.range)

    spillover = stained.spillover
    if spillover is not None:
        names = tuple(f"FL{number[name]}-A" for name in spillover.channels)
        spillover = Spillover(channels=names, matrix=spillover.matrix, source=spillover.source)
    other = written(stained, tmp_path, label=label, spillover=spillover)
    same_gates(gate(open_fcs(stained.path), stained.template), gate(open_fcs(other), stained.template))


def test_streamed_and_in_memory_files_are_gated_the_same(stained: Stained) -> None:
    streamed, held = gate(open_fcs(stained.path), stained.template), gate(read_fcs(stained.path), stained.template)
    same_gates(streamed, held)
    for name in streamed.counts:
        np.testing.assert_array_equal(streamed.memberships.mask(name), held.memberships.mask(name))


def test_placed_gates_survive_json_and_give_the_same_members_again(stained: Stained) -> None:
    fcs = open_fcs(stained.path)
    result = gate(fcs, stained.template)
    panel = resolve_panel(stained.template.channel, fcs.channels, tube="again")
    source = EventSource(fcs, panel, stained.template.channel, spillover=fcs.spillover)
    parents: dict[str, str] = {row.name: row.parent for row in stained.template.population}
    gates: list[tuple[str, str, Gate]] = []
    done = {"root"}
    while len(gates) < len(parents):
        for name, parent in parents.items():
            one = gate_from_json(gate_to_json(result.placed[name].gate))
            needs = {parent, *(other for other, _ in getattr(one, "operands", ()))}
            if name not in done and needs <= done:
                gates.append((name, parent, one))
                done.add(name)
    counts, memberships = apply_gates(source, gates)
    assert counts == result.counts
    for name in parents:
        np.testing.assert_array_equal(memberships.mask(name), result.memberships.mask(name))


finite = st.floats(-2.0, 3.0, allow_nan=False)
corner = st.tuples(finite, finite)


@settings(max_examples=50, deadline=None)
@given(
    gate=st.one_of(
        st.builds(
            Rectangle,
            markers=st.just(("x", "y")),
            low=st.tuples(st.one_of(finite, st.just(float("-inf"))), finite),
            high=st.tuples(finite, st.one_of(finite, st.just(float("inf")))),
        ),
        st.builds(Intervals, marker=st.just("t"), ranges=st.lists(corner, max_size=4).map(tuple)),
        st.builds(Polygon, markers=st.just(("x", "y")), vertices=st.lists(corner, min_size=3, max_size=8).map(tuple)),
        st.builds(
            Ellipsoid,
            markers=st.just(("x", "y")),
            mean=corner,
            covariance=st.just(((0.3, 0.1), (0.1, 0.2))),
            distance_square=st.floats(0.01, 20.0),
        ),
    )
)
def test_any_gate_survives_json(gate: Gate) -> None:
    assert gate_from_json(gate_to_json(gate)) == gate
