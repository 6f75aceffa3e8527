"""What the concept pages claim of every shipped template and of the engine holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.fcs import FcsFile, read_fcs
from flowmrd.gating.engine import apply_template
from flowmrd.gating.template import find_template, requires_marker, template_paths

MRD = [name for name in template_paths() if any(one.analyte == "MRD" for one in find_template(name).measurement)]
SHARED_NAMES = {"singlets", "viable", "cd19", "b_lineage", "mature_b", "hematogones", "plasma_cells", "blasts"}
ROUTE_MARKERS = {"CD22", "CD24", "CD79a"}


def counts_of(fcs: FcsFile) -> dict[str, int]:
    template = find_template("ball-mrd-10c")
    panel = resolve_panel(template.channel, fcs.channels, tube=template.template.id)
    source = EventSource(fcs, panel, template.channel, spillover=fcs.spillover)
    return dict(apply_template(source, template).counts)


def test_the_order_of_events_changes_no_count(repository: Path) -> None:
    fcs = read_fcs(repository / "sample_fcs" / "blasts-1e-2.fcs")
    assert fcs.stored is not None
    order = np.random.default_rng(1).permutation(fcs.event_count)
    shuffled = replace(fcs, stored=tuple(column[order] for column in fcs.stored))
    assert counts_of(shuffled) == counts_of(fcs)


@pytest.mark.parametrize("name", MRD)
def test_every_mrd_template_reaches_its_blasts_by_a_path_without_cd19(name: str) -> None:
    template = find_template(name)
    for one in template.measurement:
        assert not requires_marker(template, one.numerator, "CD19")


@pytest.mark.parametrize("name", MRD)
def test_every_mrd_template_names_the_antigen_whose_loss_would_hide_blasts_and_true_routes_only(name: str) -> None:
    # Without the antigen a tube counts as independent of CD19, and an empty gate would be called negative.
    for one in find_template(name).measurement:
        assert one.therapy_target == "CD19", f'{name}: set therapy_target = "CD19" in [[measurement]]'
        assert all(set(route.markers) & ROUTE_MARKERS for route in one.routes)


@pytest.mark.parametrize("name", MRD)
def test_every_mrd_template_has_the_names_that_all_share(name: str) -> None:
    assert {row.name for row in find_template(name).population} >= SHARED_NAMES
