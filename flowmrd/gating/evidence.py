"""What a template says about its own trustworthiness: antigens to follow, internal controls, phenotypes to keep.

These tables place no gate. They name populations of the template and say what is expected of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from flowmrd.errors import TemplateError
from flowmrd.registry import nearest

# A limit in scaled units, or the cut that a gate found ("cd19.cut").
Limit = float | str


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Antigen(_Document):
    """A target whose presence on a population is followed from visit to visit.

    `negative` is the tube's internal negative, `normal` the population that carries the antigen in health.
    """

    marker: str
    population: str
    negative: str
    normal: str | None = None


class InternalControl(_Document):
    """What normal cells of every sample must look like: a limit on the side of which nearly all or half of them lie.

    A limit of a marker is broken when more than `share` of the population's events lie below `low` or above `high`;
    0.5 judges the median. Limits may be relative to the median of another population (`against`), so that they hold on
    every instrument. `above` names markers and what must be dimmer than they are on at least `1 - share` of the cells:
    an antigen that the cells have, and one that they lack. With `together` the control fails only where all its limits
    are broken. Fewer than `min_events` events, or fewer than `needs` asks of other populations, prove nothing. `beside`
    are markers without which the control is not needed: they are what its marker could be taken for. Events of
    `without` do not count where they are at least `without_from` of the denominator: overt disease may lie where the
    normal cells of a control do, and is no measure of the staining. Fewer are judged with the rest, for exchanged
    reagents make normal cells look like a few blasts.
    """

    population: str
    against: str | None = None
    share: float = Field(default=0.5, gt=0, lt=1)
    min_events: int = Field(default=100, gt=0)
    low: dict[str, Limit] = Field(default_factory=dict)
    high: dict[str, Limit] = Field(default_factory=dict)
    above: dict[str, str] = Field(default_factory=dict)
    together: bool = False
    needs: dict[str, int] = Field(default_factory=dict)
    beside: tuple[str, ...] = ()
    without: str | None = None
    without_from: float = Field(default=0.05, ge=0, le=1)
    purpose: str

    @property
    def markers(self) -> tuple[str, ...]:
        """Markers that are looked at, each once."""
        return tuple(dict.fromkeys((*self.low, *self.high, *self.above, *self.above.values())))


class Phenotype(_Document):
    """A box of scaled values whose events no clean-up step may take away in number."""

    name: str
    low: dict[str, Limit] = Field(default_factory=dict)
    high: dict[str, Limit] = Field(default_factory=dict)

    @property
    def markers(self) -> tuple[str, ...]:
        """Markers that are looked at, each once."""
        return tuple(dict.fromkeys((*self.low, *self.high)))


def limits_of(limits: Mapping[str, Limit], found: Mapping[str, Mapping[str, float]]) -> dict[str, float] | None:
    """Return limits as numbers; `None` where a cut that is borrowed was not found on this file."""
    numbers: dict[str, float] = {}
    for marker, limit in limits.items():
        if isinstance(limit, str):
            population, _, name = limit.partition(".")
            value = found.get(population, {}).get(name)
            if value is None:
                return None
            numbers[marker] = value
        else:
            numbers[marker] = float(limit)
    return numbers


class _Fault(Protocol):
    def __call__(self, where: str, message: str, hint: str = "") -> TemplateError: ...


class _Evidence(Protocol):
    """What `evidence_faults` reads of a template."""

    @property
    def antigen(self) -> tuple[Antigen, ...]: ...
    @property
    def internal_control(self) -> tuple[InternalControl, ...]: ...
    @property
    def quality(self) -> _Phenotypes: ...


class _Phenotypes(Protocol):
    @property
    def lacking(self) -> tuple[str, ...]: ...
    @property
    def phenotypes(self) -> tuple[Phenotype, ...]: ...


def evidence_faults(
    template: _Evidence, *, markers: tuple[str, ...], populations: tuple[str, ...], fault: _Fault
) -> Iterable[TemplateError]:
    """Yield a fault for each marker or population that the template does not have, and each control without a limit."""

    def population(where: str, name: str) -> Iterable[TemplateError]:
        if name not in populations:
            yield fault(where, f"no population {name!r}", nearest(name, populations))

    def limits(where: str, one: InternalControl | Phenotype) -> Iterable[TemplateError]:
        if not one.markers:
            yield fault(where, "expected a limit in low, high or above; got none")
        for side in (one.low, one.high):
            for marker, limit in side.items():
                if marker not in markers:
                    yield fault(where, f"no channel for marker {marker!r}", nearest(marker, markers))
                if isinstance(limit, str):
                    name, _, value = limit.partition(".")
                    if not value:
                        yield fault(where, f"expected a number or population.value; got {limit!r}")
                    else:
                        yield from population(where, name)

    for number, antigen in enumerate(template.antigen):
        where = f"antigen[{number}] ({antigen.marker})"
        if antigen.marker not in markers:
            yield fault(
                f"{where}.marker", f"no channel for marker {antigen.marker!r}", nearest(antigen.marker, markers)
            )
        for field in ("population", "negative", "normal"):
            if (name := getattr(antigen, field)) is not None:
                yield from population(f"{where}.{field}", name)
    for number, control in enumerate(template.internal_control):
        where = f"internal_control[{number}] ({control.population})"
        yield from population(f"{where}.population", control.population)
        if control.against is not None:
            yield from population(f"{where}.against", control.against)
        if control.without is not None:
            yield from population(f"{where}.without", control.without)
        yield from limits(where, control)
        for name in control.needs:
            yield from population(f"{where}.needs", name)
        for marker in (*control.beside, *control.above, *control.above.values()):
            if marker not in markers:
                yield fault(where, f"no channel for marker {marker!r}", nearest(marker, markers))
    for marker in template.quality.lacking:
        if marker not in markers:
            yield fault("quality.lacking", f"no channel for marker {marker!r}", nearest(marker, markers))
    for number, phenotype in enumerate(template.quality.phenotypes):
        yield from limits(f"quality.phenotypes[{number}] ({phenotype.name})", phenotype)
