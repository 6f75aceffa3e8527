"""How much of a therapy's target is left on blasts: share above an internal negative, brightness, course.

Implements domain reference 2-antigen-loss 2.3. Brightness is the median of linear compensated values; the threshold is
a quantile of the same tube's internal negatives, so it moves with the staining of the day.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from flowmrd.quantification.rare_events import clopper_pearson

Values = NDArray[np.floating[Any]]


class Presence(StrEnum):
    """Whether a population carries an antigen; with the antigen's name before it, a value of `cd19_status` (5.4a)."""

    POSITIVE = "pos"
    PARTIAL = "partial"
    NEGATIVE = "neg"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Threshold(_Section):
    quantile: float
    min_negatives: int


class _Status(_Section):
    positive: float
    partial: float
    confidence: float
    indicative_events: int


class _Dim(_Section):
    ratio: float
    min_normals: int
    min_positives: int


class _Baseline(_Section):
    min_events: int
    loss_ratio: float


class _LineageSwitch(_Section):
    min_events: int


class _Wording(_Section):
    switch_possible: str
    switch_not_excluded: str


class AntigenRules(_Section):
    """The shipped rules, as read from `rules/antigen.toml`."""

    version: str
    threshold: _Threshold
    status: _Status
    dim: _Dim
    baseline: _Baseline
    lineage_switch: _LineageSwitch
    wording: _Wording


def load_antigen_rules() -> AntigenRules:
    """Read the rules that ship with flowmrd (with their sources)."""
    with (Path(__file__).parent / "rules" / "antigen.toml").open("rb") as stream:
        return AntigenRules.model_validate(tomllib.load(stream))


@dataclass(frozen=True, slots=True, kw_only=True)
class AntigenIndex:
    """One antigen on one population of one acquisition. Values are linear, compensated.

    `threshold` is `None` where the internal negatives are too few, and then there is no share and no presence.
    `ci_low`, `ci_high` is the exact interval of the share. `dim` is `None` where there is no yardstick for it.
    """

    events: int
    threshold: float | None
    positive_events: int | None
    share: float | None
    ci_low: float | None
    ci_high: float | None
    presence: Presence | None
    indicative: bool
    mfi: float | None
    positive_mfi: float | None
    negative_mfi: float | None
    normal_mfi: float | None
    normal_events: int
    dim: bool | None


def antigen_index(
    values: Values, negatives: Values, normals: Values | None = None, *, rules: AntigenRules | None = None
) -> AntigenIndex:
    """Measure an antigen on a population (2.3).

    Parameters
    ----------
    values : (n,) linear compensated values of the blasts
    negatives : (m,) the same of the tube's internal negatives
    normals : (k,) the same of the normal cells that carry the antigen; `None` where the tube does not name them
    rules : by default the shipped ones

    Examples
    --------
    >>> import numpy as np
    >>> blasts, t_cells = np.full(80, 900.0), np.linspace(0.0, 100.0, 200)
    >>> index = antigen_index(blasts, t_cells, np.full(60, 2000.0))
    >>> str(index.presence), index.share, index.dim, index.indicative
    ('pos', 1.0, True, False)
    """
    rules = rules or load_antigen_rules()
    size = int(values.size)
    negatives_known = negatives.size >= rules.threshold.min_negatives
    threshold = float(np.quantile(negatives, rules.threshold.quantile)) if negatives_known else None
    normal_events = 0 if normals is None else int(normals.size)
    normal_mfi = _median(normals) if normals is not None and normal_events >= rules.dim.min_normals else None
    unknown = AntigenIndex(
        events=size,
        threshold=threshold,
        positive_events=None,
        share=None,
        ci_low=None,
        ci_high=None,
        presence=None,
        indicative=size < rules.status.indicative_events,
        mfi=_median(values),
        positive_mfi=None,
        negative_mfi=_median(negatives) if negatives_known else None,
        normal_mfi=normal_mfi,
        normal_events=normal_events,
        dim=None,
    )
    if threshold is None or size == 0:
        return unknown
    above = values > threshold
    positive = int(np.count_nonzero(above))
    low, high = clopper_pearson(positive, size, confidence=rules.status.confidence)
    positive_mfi = _median(values[above]) if positive >= rules.dim.min_positives else None
    return replace(
        unknown,
        positive_events=positive,
        share=positive / size,
        ci_low=low,
        ci_high=high,
        presence=presence(positive / size, rules=rules),
        positive_mfi=positive_mfi,
        dim=is_dim(positive_mfi, normal_mfi, rules=rules),
    )


def presence(share: float, *, rules: AntigenRules | None = None) -> Presence:
    """Name a share of positive events (2.3).

    Examples
    --------
    >>> [str(presence(share)) for share in (0.8, 0.79, 0.2, 0.19)]
    ['pos', 'partial', 'partial', 'neg']
    """
    limits = (rules or load_antigen_rules()).status
    if share >= limits.positive:
        return Presence.POSITIVE
    return Presence.PARTIAL if share >= limits.partial else Presence.NEGATIVE


def is_dim(positive_mfi: float | None, normal_mfi: float | None, *, rules: AntigenRules | None = None) -> bool | None:
    """Say whether the positive part is dimmer than half of the normal cells' median; `None` where either is missing.

    Normal cells whose median is not above 0 are no yardstick.
    """
    if positive_mfi is None or normal_mfi is None or normal_mfi <= 0:
        return None
    return positive_mfi < (rules or load_antigen_rules()).dim.ratio * normal_mfi


def change(mfi: float | None, baseline_mfi: float | None) -> float | None:
    """Return a median as a part of the baseline's; `None` where there is none or the baseline is not above 0.

    Examples
    --------
    >>> change(150.0, 3000.0), change(150.0, -4.0)
    (0.05, None)
    """
    if mfi is None or baseline_mfi is None or baseline_mfi <= 0:
        return None
    return mfi / baseline_mfi


def _median(values: Values) -> float | None:
    if values.size == 0:
        return None
    middle = float(np.median(values))
    return middle if math.isfinite(middle) else None
