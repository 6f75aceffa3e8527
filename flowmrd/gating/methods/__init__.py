"""Ways of placing a gate: each finds values from the parent's events and builds a gate from them.

A method is a `GateMethod`. `find` looks at data and returns named values (a cut, a slope); the engine checks them
against the template's bounds; `build` turns the accepted values into a gate. Geometric methods have no `find`. A method
that finds nothing raises `NotFound`, and the template's next choice is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from flowmrd.errors import GatingError
from flowmrd.gating.gates import Gate
from flowmrd.registry import discover

Columns = Mapping[str, NDArray[np.float32]]


class NotFound(GatingError):  # noqa: N818 - an outcome that the next choice answers, seldom an error
    """The events do not show what the method looks for."""


class Params(BaseModel):
    """Base of every method's parameters: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What a method may look at.

    `events` are the parent's scaled values by marker, `references` those of other populations, `found` the values that
    earlier gates found (population → name → value). `knowledge` is what a search may know besides the file: a
    reference of normals, the subject's own phenotype.
    """

    markers: tuple[str, ...]
    events: Columns
    references: Mapping[str, Columns]
    found: Mapping[str, Mapping[str, float]]
    count: int
    knowledge: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Named values, what `build` needs besides, and a note for the reviewer."""

    values: Mapping[str, float]
    extra: Any = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateMethod:
    """One way of placing a gate.

    `find` is `None` for geometric methods. `references` names the populations whose values `find` needs, `borrows`
    those whose found values `build` or `find` uses; `selects` says which of the channels the gate itself looks at,
    where `find` looks at more.

    A method with `lists` yields events instead of a shape: `lists` takes the parameters and what `find` found (or, with
    `shares`, what the named population's search found) and says which of the parent's events are meant. `optional`
    names channels that are looked at where the file has them; `columns` says which markers of which references.
    """

    name: str
    params: type[Params]
    build: Callable[[tuple[str, ...], Any, Found, Mapping[str, Mapping[str, float]]], Gate]
    find: Callable[[Sample, Any], Found] | None = None
    references: Callable[[Any], tuple[str, ...]] = field(default=lambda _params: ())
    borrows: Callable[[Any], tuple[str, ...]] = field(default=lambda _params: ())
    selects: Callable[[tuple[str, ...]], tuple[str, ...]] = field(default=lambda channels: channels)
    optional: Callable[[Any], tuple[str, ...]] = field(default=lambda _params: ())
    columns: Callable[[Any], tuple[tuple[str, str], ...]] | None = None
    lists: Callable[[Any, Found], NDArray[np.bool_]] | None = None
    shares: Callable[[Any], str] = field(default=lambda _params: "")


@cache
def methods() -> Mapping[str, GateMethod]:
    """Return all gate methods by name."""
    import flowmrd.gating.methods as package

    return discover(package, "METHODS")
