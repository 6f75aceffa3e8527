"""Panels count every event of their parent, and show every target event."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.fcs import Channel, ChannelKind, Spillover, open_fcs, write_fcs
from flowmrd.gating.engine import GatingResult, apply_template
from flowmrd.gating.template import load_template
from flowmrd.panels import build_panels
from flowmrd.records import BINS

TEMPLATE = """
[template]
id = "two"
version = "1.0.0"
title = "Two markers"
specimens = ["BM"]
purpose = "Test."

[[channel]]
marker = "SSC-A"
role = "scatter"
transform = { kind = "linear", T = 262144.0 }

[[channel]]
marker = "Time"
role = "time"
transform = { kind = "linear", T = 1.0 }

[[channel]]
marker = "CD19"
transform = { kind = "logicle", T = 262144.0, W = 0.5, M = 4.5 }

[[channel]]
marker = "CD45"
transform = { kind = "logicle", T = 262144.0, W = 0.5, M = 4.5 }

[[population]]
name = "cells"
parent = "root"
channels = ["SSC-A"]
method = "interval"
params = { low = 0.02 }
purpose = "Nearly all events."

[[population]]
name = "rare"
parent = "cells"
kind = "target"
channels = ["CD19", "CD45"]
method = "rectangle"
params = { low = { CD19 = 0.8 }, high = { CD45 = 0.6 } }
purpose = "A few."

[[population]]
name = "rarer"
parent = "rare"
channels = ["CD19"]
method = "interval"
params = { high = 0.9 }
purpose = "Fewer."

[[population]]
name = "none"
parent = "rare"
channels = ["CD45"]
method = "interval"
params = { low = 2.0 }
purpose = "None."

[[plot]]
parent = "none"
x = "CD19"
y = "CD45"

[[plot]]
parent = "root"
x = "Time"
y = "CD19"
"""
EVENTS = 150_000  # more than two blocks


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> tuple[EventSource, GatingResult]:
    folder = tmp_path_factory.mktemp("panels")
    rng = np.random.default_rng(4)
    columns = np.stack(
        [
            rng.uniform(0, 262143, EVENTS),
            np.sort(rng.uniform(0, 500, EVENTS)),
            rng.normal(0, 300, EVENTS) + 10 ** rng.normal(3, 0.8, EVENTS),
            rng.normal(0, 300, EVENTS) + 10 ** rng.normal(4, 0.5, EVENTS),
        ]
    ).astype(np.float32)
    names = (("SSC-A", "", ChannelKind.SCATTER), ("Time", "", ChannelKind.TIME), ("B-A", "CD19", ChannelKind.FLUOR))
    channels = [
        Channel(index=i, pnn=pnn, pns=pns, kind=kind)
        for i, (pnn, pns, kind) in enumerate((*names, ("V-A", "CD45", ChannelKind.FLUOR)))
    ]
    spillover = Spillover(channels=("B-A", "V-A"), matrix=np.array([[1.0, 0.2], [0.1, 1.0]]), source="test")
    write_fcs(folder / "a.fcs", columns, channels, spillover=spillover, keywords={"$TIMESTEP": "0.01"})
    (folder / "two.toml").write_text(TEMPLATE)
    template = load_template(folder / "two.toml")
    fcs = open_fcs(folder / "a.fcs")
    panel = resolve_panel(template.channel, fcs.channels, tube="two")
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    return source, apply_template(source, template)


def scaled(source: EventSource, marker: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.concatenate([block.scaled(marker).copy() for _, block in source.blocks(source.markers)])


def test_every_panel_counts_each_event_of_its_parent_in_its_place(gated: tuple[EventSource, GatingResult]) -> None:
    source, result = gated
    panels = build_panels(source, result)
    assert {panel.parent for panel in panels} == {"root", "cells", "rare", "none"}
    for panel in panels:
        mask = result.memberships.mask(panel.parent)
        assert panel.density.sum() == mask.sum() == panel.parent_events
        places = []
        for axis in (panel.y, panel.x):
            place = (scaled(source, axis.marker)[mask] - axis.lo) * (BINS / (axis.hi - axis.lo))
            places.append(np.clip(place, 0, BINS - 1).astype(int))
        expected = np.zeros((BINS, BINS), int)
        np.add.at(expected, tuple(places), 1)
        # A few values in a million lie so near to an edge that float32 puts them on its other side.
        assert np.abs(panel.density.astype(int) - expected).sum() <= 2 * max(3, 2e-4 * mask.sum())


def test_every_target_event_inside_the_parent_is_shown(gated: tuple[EventSource, GatingResult]) -> None:
    source, result = gated
    rare = result.memberships.mask("rare")
    assert rare.sum() > 100
    for panel in build_panels(source, result):
        inside = rare & result.memberships.mask(panel.parent)
        expected = [scaled(source, axis.marker)[inside] for axis in (panel.x, panel.y)]
        np.testing.assert_array_equal(panel.target, np.stack(expected).astype(np.float32))


def test_the_size_of_the_blocks_does_not_show(
    gated: tuple[EventSource, GatingResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, result = gated
    whole = build_panels(source, result)
    monkeypatch.setattr("flowmrd.panels._BLOCK_EVENTS", 4096)
    monkeypatch.setattr("flowmrd.panels._COUNT_AT_ONCE", 10_000)
    for one, other in zip(whole, build_panels(source, result), strict=True):
        np.testing.assert_array_equal(one.density, other.density)
        np.testing.assert_array_equal(one.target, other.target)
