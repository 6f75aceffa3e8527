"""Scores made by hand, as the pipeline would make them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import pytest

from flowmrd.evaluation.defaults import load_defaults
from flowmrd.evaluation.scores import (
    ASSESSED,
    NEGATIVE,
    NOT_ASSESSABLE,
    POSITIVE,
    REFUSED,
    Outcome,
    Score,
    nearest_level,
)
from flowmrd.quantification.rare_events import clopper_pearson

MakeScore: TypeAlias = Callable[..., Score]
LOD_EVENTS = 20
CELLS = 100_000


def outcome_of(
    true_events: int,
    called_events: int,
    *,
    hits: int | None = None,
    call: str = "",
    method: str = "template",
    cells: int = CELLS,
    refused: bool = False,
    nominal: float | None = None,
) -> Outcome:
    """Return what a method makes of a file that calls `called_events`, `hits` of them rightly."""
    hits = min(true_events, called_events) if hits is None else hits
    call = call or ("positive" if called_events >= LOD_EVENTS else "not_detected")
    if refused:
        return Outcome(
            method=method, status=REFUSED, reason="wrong panel", call="review", category="NOT_DONE", qc="FAIL",
            denominator="viable", seconds=0.5,
        )  # fmt: skip
    low, high = clopper_pearson(called_events, cells)
    truth = true_events / cells
    return Outcome(
        method=method,
        status=ASSESSED,
        reason="",
        call=call,
        category="QUANTIFIABLE",
        qc="PASS",
        called_events=called_events,
        hit_events=hits,
        denominator="viable",
        denominator_events=cells,
        kept_true_events=true_events,
        fraction=called_events / cells,
        ci_low=low,
        ci_high=high,
        lod_fraction=LOD_EVENTS / cells,
        lloq_fraction=50 / cells,
        precision=hits / called_events if called_events else None,
        recall=hits / true_events if true_events else None,
        f1=2 * hits / (called_events + true_events) if true_events else None,
        log10_error=math.log10(called_events / true_events) if called_events and true_events else None,
        covered=low <= truth <= high,
        covered_nominal=None if nominal is None else low <= nominal <= high,
        seconds=1.5,
    )


@pytest.fixture
def make_score() -> MakeScore:
    """Return a function (name, true events, called events, …) → score; `others` are further methods' called events."""

    def make(
        name: str,
        true_events: int,
        called_events: int,
        *,
        nominal: float | None = None,
        groups: Mapping[str, str] | None = None,
        others: Mapping[str, int] | None = None,
        **rest: Any,
    ) -> Score:
        cells = rest.get("cells", CELLS)
        fraction = true_events / cells
        standing = POSITIVE
        if true_events == 0:
            standing = NOT_ASSESSABLE if nominal else NEGATIVE
        elif true_events < LOD_EVENTS:
            standing = NOT_ASSESSABLE
        outcomes = [outcome_of(true_events, called_events, nominal=nominal, **rest)]
        outcomes += [outcome_of(true_events, called, method=other) for other, called in (others or {}).items()]
        return Score(
            case=name,
            file=f"{name}.fcs",
            sha256="00",
            labels=f"{name}.labels.npy",
            labels_sha256="11",
            status=outcomes[0].status,
            reason=outcomes[0].reason,
            events=2 * cells,
            truth_events=true_events,
            truth_denominator_events=cells,
            truth_denominator="labels, intact",
            truth_fraction=fraction,
            nominal_fraction=nominal,
            level=nearest_level(nominal or fraction, load_defaults().levels.fractions),
            standing=standing,
            lod_events=LOD_EVENTS,
            simulator_version="",
            groups=groups or {},
            outcomes=tuple(outcomes),
            findings=(),
        )

    return make
