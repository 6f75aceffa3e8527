"""Foreign gates on a template's markers and scales hold the same events, or are refused with the reason."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowmrd.cytometry.events import DataState, EventSource, resolve_panel
from flowmrd.cytometry.transforms import Arcsinh, Bounded, Linear, Logicle
from flowmrd.errors import GatingError
from flowmrd.fcs import FcsFile, Spillover, read_fcs
from flowmrd.gating.engine import apply_gates
from flowmrd.gating.gates import Boolean, Ellipsoid, Gate, Intervals, Polygon, Rectangle
from flowmrd.gating.interop.document import (
    FROM_FILE,
    UNCOMPENSATED,
    Dimension,
    ForeignGate,
    ForeignStrategy,
    Matrix,
    Scale,
    evaluate,
)
from flowmrd.gating.interop.load import load_strategy
from flowmrd.gating.interop.onto_template import find_gate, onto_template
from flowmrd.gating.interop.vendor_scales import diva_biexponential, flowjo_biex
from flowmrd.gating.template import find_template

X, Y = "PE-Cy7-A", "APC-A"
SCALES: dict[str, Scale | None] = {
    "the same": Logicle(T=262144.0, W=1.0, M=4.5),
    "wider logicle": Logicle(T=262144.0, W=0.5, M=4.5),
    "arcsinh": Arcsinh(T=262144.0, M=4.0, A=1.0),
    "FlowJo": flowjo_biex(top=262144.0, positive=4.5, negative=0.5, width=-100.0),
    "Diva": diva_biexponential(300.0),
    "bounded": Bounded(scale=Logicle(T=262144.0, W=0.6, M=4.5), low=0.0, high=1.0),
}
DIAMOND = Polygon(markers=("x", "y"), vertices=((0.1, 0.2), (0.6, 0.05), (0.9, 0.5), (0.5, 0.9)))
ELLIPSE = Ellipsoid(markers=("x", "y"), mean=(0.5, 0.4), covariance=((0.03, 0.01), (0.01, 0.02)), distance_square=1.5)
GATES: dict[str, Gate] = {
    "rectangle": Rectangle(markers=("x", "y"), low=(0.3, -np.inf), high=(0.8, 0.6)),
    "intervals": Intervals(marker="x", ranges=((0.1, 0.3), (0.5, 0.7))),
    "polygon": DIAMOND,
    "ellipse": ELLIPSE,
}


@pytest.fixture(scope="module")
def fcs(repository: Path) -> FcsFile:
    return read_fcs(repository / "sample_fcs" / "blasts-1e-2.fcs")


@pytest.fixture(scope="module")
def source(fcs: FcsFile) -> EventSource:
    template = find_template("ball-mrd-10c")
    panel = resolve_panel(template.channel, fcs.channels, tube="ball-mrd-10c")
    return EventSource(fcs, panel, template.channel, spillover=fcs.spillover)


def strategy(gate: Gate, scale: Scale | None, *, compensation: str = FROM_FILE, channel: str = X) -> ForeignStrategy:
    name = None if scale is None else "s"
    return ForeignStrategy(
        source="dx.xml",
        kind="test",
        dimensions={
            "x": Dimension(key="x", channel=channel, compensation=compensation, scale=name),
            "y": Dimension(key="y", channel=Y, compensation=compensation, scale=name),
        },
        scales={} if scale is None else {"s": scale},
        matrices={},
        gates=(ForeignGate(name="Blasts", path="/Blasts", parent="", gate=gate),),
    )


def differing(one: ForeignStrategy, fcs: FcsFile, source: EventSource) -> tuple[int, int, Gate]:
    """Return how many events the document's gate holds, in how many the carried gate differs, and that gate."""
    theirs = evaluate(one, fcs).memberships.mask("/Blasts")
    gate, _ = onto_template(one.gates[0], one, fcs, source)
    ours = apply_gates(source, [("mine", "root", gate)])[1].mask("mine")
    return int(theirs.sum()), int((ours != theirs).sum()), gate


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_gate_drawn_on_another_scale_holds_the_same_events(
    scale: str, kind: str, fcs: FcsFile, source: EventSource
) -> None:
    inside, off, gate = differing(strategy(GATES[kind], SCALES[scale]), fcs, source)
    assert inside > 100
    assert off == 0
    assert not isinstance(gate, Polygon) or len(gate.vertices) < 3000


def test_a_gate_on_linear_values_is_bent_to_the_scale(fcs: FcsFile, source: EventSource) -> None:
    drawn = Polygon(markers=("x", "y"), vertices=((-500.0, -300.0), (30_000.0, 0.0), (9_000.0, 20_000.0), (0.0, 4_000)))
    inside, off, gate = differing(strategy(drawn, None), fcs, source)
    assert (inside > 1000, off) == (True, 0)
    assert isinstance(gate, Polygon)
    assert 50 < len(gate.vertices) < 3000


def test_an_ellipse_between_straight_scales_stays_one(fcs: FcsFile, source: EventSource) -> None:
    one = strategy(ELLIPSE, Linear(T=100_000.0))
    one = replace(
        one,
        dimensions={
            key: replace(dimension, channel=name, compensation=UNCOMPENSATED)
            for (key, dimension), name in zip(one.dimensions.items(), ("FSC-A", "SSC-A"), strict=True)
        },
    )
    inside, off, gate = differing(one, fcs, source)
    assert isinstance(gate, Ellipsoid)
    assert (inside > 0, off) == (True, 0)


def test_the_same_scale_leaves_the_geometry_as_it_is(fcs: FcsFile, source: EventSource) -> None:
    shown = {key: source.transforms[marker] for key, marker in (("x", "CD19"), ("y", "CD10"))}
    one = strategy(DIAMOND, shown["x"])
    one = replace(
        one,
        scales={"s": shown["x"], "t": shown["y"]},
        dimensions={**one.dimensions, "y": replace(one.dimensions["y"], scale="t")},
    )
    gate, note = onto_template(one.gates[0], one, fcs, source)
    assert (gate, note) == (replace(DIAMOND, markers=("CD19", "CD10")), "")


def test_a_matrix_of_the_document_that_is_the_files_own_is_the_same_compensation(
    fcs: FcsFile, source: EventSource
) -> None:
    own = fcs.spillover
    assert own is not None
    same = Matrix(id="m", fluorochromes=own.channels, detectors=own.channels, values=np.array(own.matrix))
    one = replace(strategy(DIAMOND, SCALES["FlowJo"], compensation="m"), matrices={"m": same})
    assert differing(one, fcs, source)[1] == 0
    rounded = replace(one, matrices={"m": replace(same, values=np.round(own.matrix, 4))})
    note = onto_template(rounded.gates[0], rounded, fcs, source)[1]
    assert re.fullmatch(r"edges bent to .* within 1e-06, the document's matrix differs by up to \de-05", note)
    other = replace(one, matrices={"m": replace(same, values=np.eye(len(own.channels)))})
    with pytest.raises(GatingError, match=r"channel 'PE-Cy7-A' \(CD19\) is not compensated as here but by m"):
        onto_template(other.gates[0], other, fcs, source)


def test_what_a_template_cannot_hold_is_refused_with_the_reason(fcs: FcsFile, source: EventSource) -> None:
    scale = SCALES["FlowJo"]

    def reason(one: ForeignStrategy, where: EventSource = source) -> str:
        with pytest.raises(GatingError) as caught:
            onto_template(one.gates[0], one, fcs, where)
        return str(caught.value)

    both = Boolean(operator="and", operands=(("/a", False), ("/b", False)))
    assert reason(strategy(both, scale)) == "gate 'Blasts' is boolean; only a geometric gate can be taken"
    assert "no channel 'Z'" in reason(strategy(DIAMOND, scale, channel="Z"))
    assert reason(strategy(DIAMOND, scale, compensation=UNCOMPENSATED)).endswith("as here but by uncompensated")
    assert reason(strategy(DIAMOND, scale, channel=Y)) == "two dimensions are the same channel"
    ratio = strategy(DIAMOND, scale)
    ratio = replace(
        ratio, dimensions={**ratio.dimensions, "x": replace(ratio.dimensions["x"], ratio=(X, Y, 1.0, 0.0, 0.0))}
    )
    assert reason(ratio).endswith("is a ratio of two channels, which a template does not have")
    template = find_template("ball-mrd-10c")
    scaled = EventSource(fcs, source.panel, template.channel, spillover=None, state=DataState.SCALED)
    assert reason(strategy(DIAMOND, scale), scaled).startswith("the data are declared scaled")


def test_a_gate_is_found_by_name_or_path_and_never_guessed(fcs: FcsFile) -> None:
    one = strategy(DIAMOND, None)
    twice = replace(one, gates=(*one.gates, replace(one.gates[0], path="/B/Blasts")), unread=frozenset({"/lost"}))
    assert find_gate(one, "Blasts").path == "/Blasts"
    assert find_gate(twice, "B/Blasts").path == "/B/Blasts"
    for name, message in (
        ("blasts", "dx.xml has no gate 'blasts'; it has Blasts (did you mean 'Blasts'?)"),
        ("lost", "gate 'lost' of dx.xml could not be read"),
    ):
        with pytest.raises(GatingError) as caught:
            find_gate(twice, name)
        assert str(caught.value) == message
    three = replace(twice, gates=tuple(replace(g, path="/C" + g.path) for g in twice.gates))
    with pytest.raises(GatingError, match="2 gates named 'Blasts'; give one's path: /C/Blasts, /C/B/Blasts"):
        find_gate(three, "Blasts")
    assert isinstance(fcs.spillover, Spillover)


def test_an_operators_gates_in_diva_hold_the_same_events_on_the_tubes_template(shared_fcs: Path) -> None:
    folder = shared_fcs / "ball_mrd_real"
    fcs = read_fcs(folder / "47333tubeB10001.fcs")
    one = load_strategy(folder / "47333_diva.xml", fcs)
    template = find_template("aieop-bfm-syto")
    panel = resolve_panel(template.channel, fcs.channels, tube="aieop-bfm-syto")
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    theirs = evaluate(replace(one, gates=tuple(replace(gate, parent="") for gate in one.gates)), fcs).memberships
    off = {}
    for gate in one.gates:
        carried, _ = onto_template(gate, one, fcs, source)
        ours = apply_gates(source, [("mine", "root", carried)])[1].mask("mine")
        off[gate.name] = int(np.count_nonzero(ours != theirs.mask(gate.path)))
    assert len(off) == 12
    # The document's matrix is the file's, rounded to four decimals.
    assert max(off.values()) <= 5, off
