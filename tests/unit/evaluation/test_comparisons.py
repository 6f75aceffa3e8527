"""Other methods beside the result: the hook of the gate methods, and the reference that is passed on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowmrd.errors import PluginError
from flowmrd.evaluation import scores
from flowmrd.evaluation.batch import Listed, evaluate, prepare
from flowmrd.evaluation.comparisons import backends, baselines_of
from flowmrd.evaluation.defaults import load_defaults
from flowmrd.evaluation.scores import Plan
from flowmrd.gating.methods import density
from flowmrd.gating.template import GatingTemplate, find_template
from flowmrd.pipeline import Analysis, analyse
from flowmrd.settings import Settings
from flowmrd.simulation import ChannelSet, Parameters, simulate, write_simulated

DEFAULTS = load_defaults()


@dataclass(frozen=True)
class EveryPrecursor:
    """A comparison method that calls everything in the parent of the numerator."""

    name: str = "every_precursor"
    title: str = "The whole parent"

    def vary(self, template: GatingTemplate, population: str) -> GatingTemplate:
        rows = tuple(
            row.model_copy(update={"method": "whole", "channels": (), "params": {}, "bounds": {}, "otherwise": ()})
            if row.name == population
            else row
            for row in template.population
        )
        return template.model_copy(update={"population": rows})


@pytest.fixture
def files(tmp_path: Path) -> tuple[Listed, ...]:
    case = simulate(Parameters(events=5_000, blasts=0.2, channels=ChannelSet.COMPACT), 3)
    path = write_simulated(case, tmp_path, "one").fcs
    return (Listed(name="one", path=path, labels=None),)


def plan_of(files: tuple[Listed, ...], **rest: Any) -> tuple[Any, Plan]:
    cases, reading, _ = prepare(files, defaults=DEFAULTS, column=None, positive=(), denominator=None, dataset=None)
    known: dict[str, Any] = {
        "template": find_template("ball-mrd-10c"),
        "analyte": "MRD",
        "settings": Settings(),
        "reading": reading,
        "comparisons": (),
        "reference": None,
        "levels": DEFAULTS.levels.fractions,
        "timed": False,
    }
    return cases, Plan(**{**known, **rest})


def test_a_method_that_the_gate_methods_offer_is_scored_beside_the_result(
    files: tuple[Listed, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(density, "BASELINES", (EveryPrecursor(),), raising=False)
    assert "every_precursor" in backends()
    template = find_template("ball-mrd-10c")
    compared = [one for one in baselines_of(template, "blasts") if one.name == "every_precursor"]
    cases, plan = plan_of(files, comparisons=tuple(compared))
    done = evaluate(cases, plan, tmp_path / "out", defaults=DEFAULTS, gates=False)
    own, other = done.scores[0].outcomes
    assert (own.method, other.method) == ("template", "every_precursor")
    assert own.called_events is not None
    assert other.called_events is not None
    assert other.hit_events is not None
    assert own.hit_events is not None
    assert other.called_events > own.called_events
    assert other.hit_events >= own.hit_events
    assert done.methods["every_precursor"] == "every_precursor: The whole parent"
    header = (tmp_path / "out" / "cases.csv").read_text("utf-8").splitlines()[0]
    assert "every_precursor_f1" in header.split(",")


def test_two_methods_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(density, "BASELINES", (EveryPrecursor(), EveryPrecursor()), raising=False)
    with pytest.raises(PluginError, match="two plugins are named 'every_precursor'"):
        backends()


def test_the_reference_reaches_the_pipeline_and_only_where_one_is_named(
    files: tuple[Listed, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def watched(*arguments: Any, **named: Any) -> Analysis:
        seen.append(named)
        return analyse(*arguments)

    monkeypatch.setattr(scores, "analyse", watched)
    reference = tmp_path / "normals.reference"
    reference.write_bytes(b"cells")
    for given in (None, reference):
        cases, plan = plan_of(files, reference=given)
        done = evaluate(cases, plan, tmp_path / "out", defaults=DEFAULTS, gates=False)
    assert seen == [{}, {"reference": reference}]
    assert done.provenance["reference_sha256"] == hashlib.sha256(b"cells").hexdigest()
