"""Other methods on the same files: what `--baselines` and `--compare` set beside the template's own result.

A comparison is the same file gated by another template: by a document that the user names, or by the template itself
with its numerator placed by another method. The second kind is offered by the gate methods: each module of
`flowmrd.gating.methods` may hold `BASELINES`, a tuple of values with

    name    a word, unique, for columns and figures
    title   one line for people
    vary    function of (template, population) → the template with that population placed by the other method, or
            `None` where the method has no sense for it

The comparison is then gated, counted and measured exactly as the template's own result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flowmrd.errors import SettingsError
from flowmrd.gating.template import GatingTemplate, find_template
from flowmrd.registry import discover


class Backend(Protocol):
    """What a gate method's module offers for comparison."""

    @property
    def name(self) -> str:
        """Return the word for columns."""

    @property
    def title(self) -> str:
        """Return one line for people."""

    def vary(self, template: GatingTemplate, population: str) -> GatingTemplate | None:
        """Return the template with this population placed by the other method; `None` where that has no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A method to set beside the result: name for columns, title for people, and the template that is it."""

    name: str
    title: str
    template: GatingTemplate


def backends() -> Mapping[str, Backend]:
    """Return the comparison methods that the gate methods offer, by name."""
    import flowmrd.gating.methods as package

    found: Mapping[str, Backend] = discover(package, "BASELINES")
    return found


def baselines_of(template: GatingTemplate, population: str) -> tuple[Comparison, ...]:
    """Return the template with its numerator placed by each comparison method."""
    varied = ((name, one.title, one.vary(template, population)) for name, one in sorted(backends().items()))
    return tuple(Comparison(name=name, title=title, template=other) for name, title, other in varied if other)


def comparison_templates(
    names: Sequence[str], *, analyte: str, folder: Path | None, taken: Sequence[str] = ()
) -> tuple[Comparison, ...]:
    """Load the templates that the user wants beside the result.

    Parameters
    ----------
    names : template ids or .toml files
    analyte : what each must measure
    folder : where templates lie, if not the shipped ones
    taken : names of comparisons there are already

    Raises
    ------
    SettingsError : one does not measure the analyte, or two have the same id
    """
    found: list[Comparison] = []
    for name in names:
        template = find_template(name, folder)
        head = template.template
        if all(one.analyte != analyte for one in template.measurement):
            raise SettingsError(f"template {head.id} does not measure {analyte}", where="--compare")
        if head.id in {*taken, *(one.name for one in found)}:
            raise SettingsError(f"two comparisons are named {head.id}", where="--compare")
        found.append(Comparison(name=head.id, title=f"{head.title} ({head.version})", template=template))
    return tuple(found)
