"""Walk the strategy: place gates where their data are known, evaluate them block by block, keep memberships as bits.

Each pass over the file evaluates every gate that is known and gathers the events that the next gates need to be placed.
Memory is a bit an event and population, plus the gathered columns; so the size of the file hardly matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.events import Block, EventSource
from flowmrd.errors import GatingError, Level, QcFinding
from flowmrd.gating.containment import Members, Test, prepare
from flowmrd.gating.gates import (
    Boolean,
    Gate,
    Mask,
    MemberList,
    Nothing,
    Rectangle,
    Whole,
    gate_markers,
    member_list,
)
from flowmrd.gating.methods import Found, NotFound, Sample
from flowmrd.gating.template import ROOT, Choice, GatingTemplate, Population, operands, typed


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A population's gate and how it came to be."""

    population: str
    method: str
    channels: tuple[str, ...]
    params: Mapping[str, object]
    gate: Gate
    found: Mapping[str, float]
    bound_hit: str
    fallback: str
    reason: str


class Memberships:
    """One bit an event and population, in file order.

    `usable` (n,) leaves events out of the root, and so of everything: those with a value that is no number.
    """

    __slots__ = ("_bits", "event_count", "root_count")

    def __init__(self, event_count: int, *, usable: NDArray[np.bool_] | None = None) -> None:
        self.event_count = event_count
        self.root_count = event_count if usable is None else int(np.count_nonzero(usable))
        self._bits: dict[str, NDArray[np.uint8]] = {} if usable is None else {ROOT: np.packbits(usable)}

    def add(self, population: str) -> NDArray[np.uint8]:
        """Return the empty bits of a new population, for the engine to fill."""
        bits = np.zeros((self.event_count + 7) // 8, np.uint8)
        self._bits[population] = bits
        return bits

    def mask(self, population: str, start: int = 0, size: int | None = None) -> NDArray[np.bool_]:
        """Membership of events start … start + size; `start` is a multiple of 8."""
        size = self.event_count - start if size is None else size
        if population == ROOT and ROOT not in self._bits:
            return np.ones(size, np.bool_)
        part = self._bits[population][start // 8 : (start + size + 7) // 8]
        return np.unpackbits(part, count=size).view(np.bool_)

    def __contains__(self, population: str) -> bool:
        return population in self._bits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GatingResult:
    """Every population's gate, count and members; `details` is what a search found besides its events."""

    template: GatingTemplate
    placed: Mapping[str, Placed]
    counts: Mapping[str, int]
    memberships: Memberships
    findings: tuple[QcFinding, ...]
    details: Mapping[str, object]


def apply_template(
    source: EventSource,
    template: GatingTemplate,
    *,
    overrides: Mapping[str, tuple[Gate, str]] | None = None,
    usable: NDArray[np.bool_] | None = None,
    knowledge: object = None,
) -> GatingResult:
    """Place and evaluate every population of a template.

    Parameters
    ----------
    source : scaled events of the file
    template : the strategy
    overrides : population → (gate, who drew it and on what) that replaces the template's
    usable : (n,) false for events that no gate may see; all are usable when `None`
    knowledge : what a search may know besides the file (`flowmrd.gating.detection.Knowledge`)

    Raises
    ------
    GatingError
        A gate cannot be evaluated at all.
    """
    walk = _Walk(source, template, overrides or {}, usable, knowledge)
    walk.run()
    return GatingResult(
        template=template,
        placed={row.name: walk.placed[row.name] for row in template.population},
        counts={row.name: walk.counts[row.name] for row in template.population},
        memberships=walk.memberships,
        findings=tuple(walk.findings),
        details={name: found.extra for name, found in walk.searched.items()},
    )


def apply_gates(source: EventSource, gates: Sequence[tuple[str, str, Gate]]) -> tuple[Mapping[str, int], Memberships]:
    """Evaluate known gates, given as (name, parent, gate) with parents first, in one pass.

    Returns the counts and the memberships.
    """
    memberships = Memberships(source.event_count)
    counts = dict.fromkeys((name for name, _, _ in gates), 0)
    bits = {name: memberships.add(name) for name, _, _ in gates}
    wanted = _in_order(source, {m for _, _, gate in gates for m in gate_markers(gate)})
    tests: dict[str, Test] = {}
    lists: dict[str, Mask] = {}
    for start, block in source.blocks(wanted):
        _evaluate_block(gates, block, start, memberships, bits, counts, tests, lists)
    return counts, memberships


def _in_order(source: EventSource, markers: Iterable[str]) -> tuple[str, ...]:
    wanted = set(markers)
    return tuple(marker for marker in source.markers if marker in wanted)


def _evaluate_block(
    gates: Sequence[tuple[str, str, Gate]],
    block: Block,
    start: int,
    memberships: Memberships,
    bits: Mapping[str, NDArray[np.uint8]],
    counts: dict[str, int],
    tests: dict[str, Test],
    lists: dict[str, Mask],
) -> dict[str, Members]:
    """Evaluate gates on one block; return the members of each population that was touched.

    `tests` holds the gates made ready, `lists` the lists of events unpacked; both are filled as they are first needed.
    """
    seen: dict[str, Members] = {}
    for name, parent, gate in gates:
        inside = _members(seen, parent, memberships, start, block.size)
        if inside.count == 0:
            mask = inside.mask
        elif isinstance(gate, Boolean):
            mask = inside.mask & _joined(gate, seen, memberships, start, block.size)
        elif isinstance(gate, MemberList):
            mask = inside.mask & _listed(gate, lists, name, memberships.event_count)[start : start + block.size]
        else:
            if name not in tests:
                tests[name] = prepare(gate, block.transforms, event_count=memberships.event_count)
            mask = tests[name](block, inside)
        mine = seen[name] = inside if mask is inside.mask else Members(mask)
        counts[name] += mine.count
        if mine.count:
            bits[name][start // 8 : (start + block.size + 7) // 8] = np.packbits(mask)
    return seen


def _listed(gate: MemberList, lists: dict[str, Mask], name: str, event_count: int) -> Mask:
    if name not in lists:
        if gate.event_count != event_count:
            raise GatingError(f"{name} lists events of a file of {gate.event_count}, this one has {event_count}")
        lists[name] = gate.mask
    return lists[name]


def _joined(gate: Boolean, seen: dict[str, Members], memberships: Memberships, start: int, size: int) -> Mask:
    masks = [_members(seen, name, memberships, start, size).mask ^ flag for name, flag in gate.operands]
    join = np.logical_and if gate.operator == "and" else np.logical_or
    for mask in masks[1:]:
        join(masks[0], mask, out=masks[0])
    return masks[0]


def _members(seen: dict[str, Members], name: str, memberships: Memberships, start: int, size: int) -> Members:
    if name not in seen:
        seen[name] = Members(memberships.mask(name, start, size))
    return seen[name]


class _Walk:
    """The state of one placement: what is placed, what is evaluated, what is still to do."""

    def __init__(
        self,
        source: EventSource,
        template: GatingTemplate,
        overrides: Mapping[str, tuple[Gate, str]],
        usable: NDArray[np.bool_] | None,
        knowledge: object,
    ) -> None:
        self.knowledge = knowledge
        self.searched: dict[str, Found] = {}
        self.source = source
        self.template = template
        self.overrides = overrides
        self.placed: dict[str, Placed] = {}
        self.counts: dict[str, int] = {}
        self.memberships = Memberships(source.event_count, usable=usable)
        self.findings: list[QcFinding] = []
        self.markers = frozenset(source.markers)

    def run(self) -> None:
        for row in self.template.population:
            if row.name in self.overrides:
                gate, origin = self.overrides[row.name]
                self._accept(row, row, gate, Found(values={}), "", "override", origin)
        while len(self.counts) < len(self.template.population):
            self._place_known()
            ready = self._ready()
            reachable = {*self.counts, *(name for name, _, _ in ready), ROOT}
            wanting = [
                row
                for row in self.template.population
                if row.name not in self.placed and self._collectable(row, reachable)
            ]
            if not ready and not wanting:
                left = [row.name for row in self.template.population if row.name not in self.counts]
                raise GatingError(f"populations cannot be placed: {', '.join(left)}")
            gathered = self._pass(ready, wanting)
            for row in wanting:
                self._place_from(row, gathered)

    # -- which choices a file allows ------------------------------------------------------------------------------

    def _available(self, row: Population) -> list[Choice]:
        return [choice for choice in row.choices if self._has(choice)]

    def _has(self, choice: Choice) -> bool:
        return self.markers.issuperset(choice.channels)

    def _missing_note(self, row: Population) -> str:
        notes = []
        for choice in row.choices:
            absent = [marker for marker in choice.channels if marker not in self.markers]
            if absent:
                notes.append(f"{choice.method} needs {', '.join(absent)}, not in this file")
        return "; ".join(notes)

    def _place_known(self) -> None:
        """Place rows whose first available choice needs no data (until nothing changes: cuts may be borrowed)."""
        moved = True
        while moved:
            moved = False
            for row in self.template.population:
                if row.name in self.placed:
                    continue
                choices = self._available(row)
                if not choices:
                    self._last_resort(row, self._missing_note(row))
                    moved = True
                    continue
                one = typed(choices[0])
                if one.method.shares(one.params):
                    moved |= self._place_shared(row, choices[0])
                    continue
                lenders = [name for name in one.method.borrows(one.params) if name != row.name]
                if one.method.find is None and choices[0].min_events is None and all(n in self.placed for n in lenders):
                    try:
                        gate = one.method.build(choices[0].channels, one.params, Found(values={}), self._found())
                    except GatingError as error:
                        if len(choices) > 1:
                            continue
                        self._last_resort(row, str(error))
                    else:
                        self._accept(row, choices[0], gate, Found(values={}), "", *self._why(row, choices[0], []))
                    moved = True

    def _place_shared(self, row: Population, choice: Choice) -> bool:
        """Place a list of events that another population's search found; say whether that could be done."""
        one = typed(choice)
        lender = one.method.shares(one.params)
        if lender not in self.placed:
            return False
        if lender not in self.searched or self.template.row(lender).parent != row.parent:
            self._last_resort(row, f"{lender} was not searched for")
            return True
        assert one.method.lists is not None
        try:
            gate = self._listed(row, one.method.lists(one.params, self.searched[lender]))
        except NotFound as error:
            self._last_resort(row, str(error), routine=True)
            return True
        self._accept(row, choice, gate, Found(values={"events": float(gate.count)}), "", *self._why(row, choice, []))
        return True

    def _listed(self, row: Population, chosen: NDArray[np.bool_]) -> MemberList:
        """Turn a choice among the parent's events into a list of events of the file."""
        whole = np.zeros(self.memberships.event_count, np.bool_)
        whole[np.flatnonzero(self.memberships.mask(row.parent))[chosen]] = True
        return member_list(whole)

    def _found(self) -> dict[str, Mapping[str, float]]:
        return {name: placed.found for name, placed in self.placed.items()}

    def _ready(self) -> list[tuple[str, str, Gate]]:
        """Placed gates whose parent and operands are evaluated or in this list, parents first."""
        ready: list[tuple[str, str, Gate]] = []
        known = {ROOT, *self.counts}
        moved = True
        while moved:
            moved = False
            for row in self.template.population:
                if row.name in known or row.name not in self.placed or row.parent not in known:
                    continue
                gate = self.placed[row.name].gate
                if isinstance(gate, Boolean) and any(name not in known for name, _ in gate.operands):
                    continue
                ready.append((row.name, row.parent, gate))
                known.add(row.name)
                moved = True
        return ready

    def _collectable(self, row: Population, reachable: set[str]) -> bool:
        if row.parent not in reachable:
            return False
        for choice in self._available(row):
            one = typed(choice)
            if any(name not in reachable for name in one.method.references(one.params)):
                return False
            if any(name not in self.placed for name in one.method.borrows(one.params) if name != row.name):
                return False
            if any(name not in reachable for name in operands(choice)):
                return False
        return True

    # -- one pass ---------------------------------------------------------------------------------------------------

    def _pass(
        self, ready: list[tuple[str, str, Gate]], wanting: list[Population]
    ) -> dict[tuple[str, str], NDArray[np.float32]]:
        """Evaluate `ready` and gather the columns that `wanting` looks at, keyed by (population, marker)."""
        wanted: dict[tuple[str, str], list[NDArray[np.float32]]] = {}
        for row in wanting:
            for choice in self._available(row):
                one = typed(choice)
                if one.method.find is None:
                    continue
                for key in self._columns(row, choice):
                    wanted.setdefault(key, [])
        bits = {name: self.memberships.add(name) for name, _, _ in ready}
        self.counts.update(dict.fromkeys(bits, 0))
        needed = {m for _, _, gate in ready for m in gate_markers(gate)} | {marker for _, marker in wanted}
        tests: dict[str, Test] = {}
        lists: dict[str, Mask] = {}
        for start, block in self.source.blocks(_in_order(self.source, needed)):
            seen = _evaluate_block(ready, block, start, self.memberships, bits, self.counts, tests, lists)
            for (population, marker), parts in wanted.items():
                here = _members(seen, population, self.memberships, start, block.size)
                if here.count:
                    parts.append(block.scaled(marker, here.rows).astype(np.float32))
        gathered = {}
        for key in list(wanted):
            # The parts go as they are joined, so that no more than one column is held twice.
            parts = wanted.pop(key)
            gathered[key] = np.concatenate(parts) if parts else np.empty(0, np.float32)
        return gathered

    def _columns(self, row: Population, choice: Choice) -> list[tuple[str, str]]:
        """Return (population, marker) of every column that a choice's search looks at."""
        one = typed(choice)
        mine = [(row.parent, marker) for marker in self._looked_at(choice)]
        if one.method.columns is None:
            return mine + [(name, marker) for name in one.method.references(one.params) for marker in choice.channels]
        return mine + [key for key in one.method.columns(one.params) if key[1] in self.markers]

    def _looked_at(self, choice: Choice) -> tuple[str, ...]:
        one = typed(choice)
        return (*choice.channels, *(m for m in one.method.optional(one.params) if m in self.markers))

    # -- placing ----------------------------------------------------------------------------------------------------

    def _place_from(self, row: Population, gathered: Mapping[tuple[str, str], NDArray[np.float32]]) -> None:
        count = self.memberships.root_count if row.parent == ROOT else self.counts[row.parent]
        notes: list[str] = []
        for choice in self._available(row):
            one = typed(choice)
            fewest = choice.min_events if choice.min_events is not None else (1 if one.method.find else 0)
            if count < fewest:
                notes.append(f"{choice.method}: {row.parent} has {count} events, fewer than {fewest}")
                continue
            try:
                found = Found(values={})
                if one.method.find is not None:
                    found = one.method.find(self._sample(row, choice, gathered, count), one.params)
                found, hit = _bounded(found, choice)
                if hit and choice.on_bound == "next":
                    notes.append(f"{choice.method}: {hit}")
                    continue
                if one.method.lists is not None:
                    gate: Gate = self._listed(row, one.method.lists(one.params, found))
                    self.searched[row.name] = found
                else:
                    gate = one.method.build(choice.channels, one.params, found, self._found())
            except NotFound as error:
                notes.append(f"{choice.method}: {error}")
                continue
            except GatingError as error:
                notes.append(str(error))
                continue
            self._accept(row, choice, gate, found, hit, *self._why(row, choice, notes))
            return
        self._last_resort(row, "; ".join(filter(None, (self._missing_note(row), *notes))), empty=count == 0)

    def _sample(
        self, row: Population, choice: Choice, gathered: Mapping[tuple[str, str], NDArray[np.float32]], count: int
    ) -> Sample:
        one = typed(choice)

        columns: dict[str, dict[str, NDArray[np.float32]]] = {name: {} for name in one.method.references(one.params)}
        columns[row.parent] = {}
        for population, marker in self._columns(row, choice):
            columns[population][marker] = gathered[population, marker]
        return Sample(
            markers=self._looked_at(choice),
            events=columns[row.parent],
            references={name: columns[name] for name in one.method.references(one.params)},
            found=self._found(),
            count=count,
            knowledge=self.knowledge,
        )

    def _why(self, row: Population, choice: Choice, notes: Sequence[str]) -> tuple[str, str]:
        """Return (fallback, reason): what stood in for the row's own method, and why."""
        if choice is row:
            return "", ""
        passed = []
        for other in row.choices:
            if other is choice:
                break
            absent = [marker for marker in other.channels if marker not in self.markers]
            if absent:
                passed.append(f"{other.method} needs {', '.join(absent)}, not in this file")
        because = [choice.because] if choice.because else []
        return choice.method, "; ".join((*passed, *notes, *because))

    def _last_resort(self, row: Population, reason: str, *, empty: bool = False, routine: bool = False) -> None:
        gate: Gate = Whole() if row.last_resort == "whole" else Nothing()
        self._accept(row, row, gate, Found(values={}), "", row.last_resort, reason, empty=empty, routine=routine)

    def _accept(
        self,
        row: Population,
        choice: Choice,
        gate: Gate,
        found: Found,
        bound_hit: str,
        fallback: str,
        reason: str,
        *,
        empty: bool = False,
        routine: bool = False,
    ) -> None:
        found = _with_cut(found, gate)
        method = fallback if fallback in {"whole", "nothing", "override"} else choice.method
        stated = "; ".join(filter(None, (reason, found.note)))
        self.placed[row.name] = Placed(
            population=row.name,
            method=method,
            channels=choice.channels,
            params=choice.params,
            gate=gate,
            found=found.values,
            bound_hit=bound_hit,
            fallback=fallback,
            reason=stated,
        )
        where = row.name
        if bound_hit:
            self._note(
                Level.WARNING, "GATE_BOUND_HIT", f"The gate of {where} met its validated bound: {bound_hit}.", where
            )
        if fallback == "override":
            self._note(Level.INFO, "GATE_OVERRIDDEN", f"The gate of {where} is not the template's: {reason}.", where)
        elif fallback == "whole":
            self._note(Level.INFO, "GATE_SKIPPED", f"{where} keeps all of {row.parent}: {reason}.", where)
        elif fallback == "nothing" and empty:
            self._note(Level.INFO, "PARENT_EMPTY", f"{where} is empty because {row.parent} is.", where)
        elif fallback == "nothing":
            level = Level.INFO if routine or self._routine(row, reason) else Level.WARNING
            self._note(level, "GATE_NOT_PLACED", f"{where} could not be evaluated and counts nothing: {reason}.", where)
        elif fallback:
            level = Level.INFO if self._routine(row, reason) else Level.WARNING
            text = f"{where} was placed by {_way(choice)} instead of {_way(row)}: {reason}."
            self._note(level, "GATE_FALLBACK", text, where)

    def _routine(self, row: Population, reason: str) -> bool:
        """Say whether markers that the file lacks are the whole reason; a method that found nothing deserves a look."""
        if row.kind in {"control", "clean_up"}:
            return True
        return all("not in this file" in part or "was not found on this file" in part for part in reason.split("; "))

    def _note(self, level: Level, code: str, message: str, where: str) -> None:
        self.findings.append(QcFinding(level=level, code=code, message=message, where=where))


def _way(choice: Choice) -> str:
    return f"{choice.method} on {', '.join(choice.channels)}" if choice.channels else choice.method


def _with_cut(found: Found, gate: Gate) -> Found:
    """Give a one-sided interval of fixed value a `cut`, so that others can borrow it as they would a found one."""
    if "cut" in found.values or not isinstance(gate, Rectangle) or len(gate.markers) != 1:
        return found
    sides = [side for side in (*gate.low, *gate.high) if math.isfinite(side)]
    return (
        Found(values={**found.values, "cut": sides[0]}, extra=found.extra, note=found.note)
        if len(sides) == 1
        else found
    )


def _bounded(found: Found, choice: Choice) -> tuple[Found, str]:
    """Clamp found values to the choice's bounds; say which bound was hit."""
    hits = []
    values = dict(found.values)
    for name, (low, high) in choice.bounds.items():
        value = values.get(name)
        if value is None:
            continue
        if value < low or value > high:
            values[name] = min(max(value, low), high)
            hits.append(f"{name} {value:.3f} is outside {low:g} … {high:g}")
    if not hits:
        return found, ""
    return Found(values=values, extra=found.extra, note=found.note), "; ".join(hits)
