"""The shipped assumptions of an evaluation (`defaults.toml`), as values."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LabelDefaults(_Section):
    """Names that labels are recognised by."""

    suffixes: tuple[str, ...]
    columns: tuple[str, ...]
    positive: tuple[str, ...]
    denominator: tuple[str, ...]


class TruthDefaults(_Section):
    """Where the simulator's truth file says what."""

    suffix: str
    version: str
    numerator: str
    denominator: str
    nominal: tuple[str, ...]


class LevelDefaults(_Section):
    """True fractions that results are pooled by."""

    fractions: tuple[float, ...]
    from_fractions: tuple[float, ...]


class StatisticDefaults(_Section):
    """Conventions of the figures."""

    confidence: float
    good_f1: float
    percentile: float
    min_low_cases: int
    min_level_cases: int
    detection: float


class GroupDefaults(_Section):
    """Columns of a table of groups."""

    keys: tuple[str, ...]


class PopulationDefaults(_Section):
    """Names of populations that all MRD templates share."""

    candidates: str


class Defaults(_Section):
    """The whole document."""

    version: str
    populations: PopulationDefaults
    labels: LabelDefaults
    truth: TruthDefaults
    levels: LevelDefaults
    groups: GroupDefaults
    statistics: StatisticDefaults


def load_defaults() -> Defaults:
    """Read what ships with flowmrd."""
    with (Path(__file__).parent / "defaults.toml").open("rb") as stream:
        return Defaults.model_validate(tomllib.load(stream))
