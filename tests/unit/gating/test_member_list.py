"""Lists of events as gates: they survive JSON, and the engine keeps them inside their parent."""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.errors import GatingError
from flowmrd.fcs import Channel, open_fcs, write_fcs
from flowmrd.gating.engine import apply_gates
from flowmrd.gating.gates import MemberList, Rectangle, gate_from_json, gate_to_json, member_list
from flowmrd.gating.template import find_template


@settings(max_examples=40)
@given(mask=st.integers(0, 200).flatmap(lambda size: arrays(np.bool_, size)))
def test_a_list_of_events_survives_json(mask: NDArray[np.bool_]) -> None:
    gate = member_list(mask)
    back = gate_from_json(json.loads(json.dumps(gate_to_json(gate))))
    assert isinstance(back, MemberList)
    np.testing.assert_array_equal(back.mask, mask)
    assert (back.event_count, back.count) == (mask.size, int(mask.sum()))
    assert back == gate


def test_a_list_that_contradicts_itself_is_refused() -> None:
    document = gate_to_json(member_list(np.arange(100) % 3 == 0))
    with pytest.raises(GatingError, match="34 events, 35 stated"):
        gate_from_json({**document, "count": 35})
    with pytest.raises(GatingError, match="13 bytes"):
        gate_from_json({**document, "events": 1000})


def test_a_small_text_cannot_fill_the_memory() -> None:
    bits = b64encode(zlib.compress(bytes(50_000_000), 9)).decode()
    assert len(bits) < 100_000
    with pytest.raises(GatingError, match="1 expected for 8 events"):
        gate_from_json({"kind": "members", "events": 8, "count": 0, "bits": bits})


@pytest.fixture
def source(tmp_path: Path) -> EventSource:
    """Return 5,000 events, read in several blocks, whose first channel counts them."""
    template = find_template("ball-mrd-10c")
    names = [spec.marker for spec in template.channel if spec.required or spec.marker == "Time"]
    columns = [np.linspace(0, 1000, 5000, dtype=np.float32) for _ in names]
    channels = [Channel(index=i, pnn=name, pns=name, range=1024.0) for i, name in enumerate(names)]
    path = tmp_path / "count.fcs"
    write_fcs(path, columns, channels)
    fcs = open_fcs(path)
    panel = resolve_panel(template.channel, fcs.channels, tube="test")
    return EventSource(fcs, panel, template.channel, spillover=None)


def test_the_engine_evaluates_a_list_in_file_order_and_inside_its_parent(source: EventSource) -> None:
    chosen = np.random.default_rng(1).random(source.event_count) < 0.1
    half = Rectangle(markers=("FSC-A",), low=(0.5,), high=(np.inf,))
    counts, memberships = apply_gates(
        source, [("all", "root", member_list(chosen)), ("half", "root", half), ("some", "half", member_list(chosen))]
    )
    np.testing.assert_array_equal(memberships.mask("all"), chosen)
    np.testing.assert_array_equal(memberships.mask("some"), chosen & memberships.mask("half"))
    assert 0 < counts["some"] < counts["all"] == chosen.sum()


def test_a_list_of_another_file_is_refused(source: EventSource) -> None:
    with pytest.raises(GatingError, match="lists events of a file of 4999, this one has 5000"):
        apply_gates(source, [("all", "root", member_list(np.ones(4999, np.bool_)))])
