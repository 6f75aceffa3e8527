"""Small simulated acquisitions of every shipped tube, made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flowmrd.cytometry.events import EventSource, resolve_panel
from flowmrd.fcs import open_fcs
from flowmrd.gating.engine import GatingResult, apply_template
from flowmrd.gating.template import GatingTemplate, find_template
from flowmrd.simulation import Parameters, simulate, write_simulated

# What simulates a file for each template.
RECIPES: Mapping[str, Mapping[str, object]] = {
    **{
        tube: {"tube": tube, "scenario": "normal", "blasts": 0.01}
        for tube in (
            "aieop-bfm-syto",
            "ball-mrd-10c",
            "ball-mrd-post-cd19",
            "euroflow-bcp-mrd-1",
            "euroflow-bcp-mrd-2",
        )
    },
    "tbnk": {"tube": "tbnk", "scenario": "normal", "beads": True},
    "cart-persistence": {"tube": "cart-persistence", "scenario": "normal", "car": 0.1},
}

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make_tube(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a maker of simulated files: template id, seed, events, and what else the simulator takes."""
    folder = tmp_path_factory.mktemp("tubes")
    made: dict[str, Path] = {}

    def make(template: str, *, seed: int = 1, events: int = 30_000, **changes: object) -> Path:
        recipe = {**RECIPES[template], **changes}
        name = f"{template}-{seed}-{events}-" + "-".join(
            f"{key}.{value}" for key, value in sorted(changes.items()) if not isinstance(value, Path)
        )
        if name not in made:
            case = simulate(Parameters(events=events, **recipe), seed)  # type: ignore[arg-type]
            made[name] = write_simulated(case, folder, name).fcs
        return made[name]

    return make


@pytest.fixture(scope="session")
def gate_file() -> Callable[[Path, GatingTemplate | str], tuple[EventSource, GatingResult]]:
    """Return a gater of one file by a template or its id."""

    def gate(path: Path, template: GatingTemplate | str) -> tuple[EventSource, GatingResult]:
        one = find_template(template) if isinstance(template, str) else template
        fcs = open_fcs(path)
        panel = resolve_panel(one.channel, fcs.channels, tube=one.template.id)
        source = EventSource(fcs, panel, one.channel, spillover=fcs.spillover)
        return source, apply_template(source, one)

    return gate
