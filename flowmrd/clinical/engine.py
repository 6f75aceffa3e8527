"""Criteria made ready: clauses become tests over what is known of a row. Nothing here knows medicine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from flowmrd.clinical.rules import (
    PRESENCE,
    RELATIVE,
    WORDS,
    Case,
    Clause,
    Criteria,
    EventRule,
    Fact,
    FlagRule,
    Operator,
    Rule,
)

Value: TypeAlias = Fraction | str | None
Known: TypeAlias = Mapping[str, Value]
Predicate: TypeAlias = Callable[[Known], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A case, rule, flag or event made ready to be evaluated: its clauses with their tests."""

    all: tuple[tuple[Clause, Predicate], ...]
    any: tuple[tuple[Clause, Predicate], ...]

    def holds(self, known: Known) -> bool:
        """Whether all of `all`, and at least one of `any` where there are any, hold."""
        for _, test in self.all:
            if not test(known):
                return False
        if not self.any:
            return True
        return any(test(known) for _, test in self.any)

    def reasons(self, known: Known) -> tuple[Clause, ...]:
        """Return the clauses that hold: why the line fired."""
        return tuple(clause for clause, test in (*self.all, *self.any) if test(known))


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Criteria made ready: facts, rules, flags and events with compiled clauses, in order."""

    criteria: Criteria
    facts: tuple[tuple[Fact, tuple[tuple[Case, Line], ...]], ...]
    rules: tuple[tuple[Rule, Line], ...]
    flags: tuple[tuple[FlagRule, Line], ...]
    events: tuple[tuple[EventRule, Line], ...]


def compile_criteria(criteria: Criteria) -> Engine:
    """Make criteria ready to be evaluated many times."""
    inclusive = criteria.keys.count_boundary == "inclusive"

    def line(row: Case | Rule | FlagRule | EventRule) -> Line:
        return Line(
            all=tuple((clause, _predicate(clause, inclusive=inclusive)) for clause in row.all),
            any=tuple((clause, _predicate(clause, inclusive=inclusive)) for clause in row.any),
        )

    document = criteria.document
    return Engine(
        criteria=criteria,
        facts=tuple((fact, tuple((case, line(case)) for case in fact.case)) for fact in document.fact),
        rules=tuple((rule, line(rule)) for rule in criteria.rules),
        flags=tuple((flag, line(flag)) for flag in document.flag),
        events=tuple((event, line(event)) for event in document.event),
    )


def exact(value: float | str) -> Fraction:
    """Return the number that was written, exactly.

    Examples
    --------
    >>> exact(6.1) - exact("1.1") == 5
    True
    """
    return Fraction(str(value))


def _predicate(clause: Clause, *, inclusive: bool) -> Predicate:
    name, operator = clause.field, clause.operator
    if operator is Operator.KNOWN:
        return lambda known: known.get(name) is not None
    if operator is Operator.MISSING:
        return lambda known: known.get(name) is None
    if operator in WORDS:
        words = frozenset(clause.value if isinstance(clause.value, list) else [clause.value])
        if operator is Operator.IS_NOT:
            return lambda known: (word := known.get(name)) is not None and word not in words
        return lambda known: known.get(name) in words
    assert isinstance(clause.value, int | float)
    limit = exact(clause.value)
    if operator in RELATIVE:
        other = clause.other
        assert other is not None
        times = operator is Operator.AT_LEAST_TIMES

        def relative(known: Known) -> bool:
            value, base = known.get(name), known.get(other)
            if not isinstance(value, Fraction) or not isinstance(base, Fraction):
                return False
            return value >= (base * limit if times else base + limit)

        return relative
    if operator is Operator.EXCEEDS:
        operator = Operator.AT_LEAST if inclusive else Operator.ABOVE
    if operator is Operator.BELOW:
        return lambda known: isinstance(value := known.get(name), Fraction) and value < limit
    if operator is Operator.AT_MOST:
        return lambda known: isinstance(value := known.get(name), Fraction) and value <= limit
    if operator is Operator.ABOVE:
        return lambda known: isinstance(value := known.get(name), Fraction) and value > limit
    return lambda known: isinstance(value := known.get(name), Fraction) and value >= limit


def in_words(clause: Clause, criteria: Criteria) -> str:
    """Write a clause as people say it.

    Examples
    --------
    >>> from flowmrd.clinical.rules import load_criteria
    >>> in_words(Clause(field="neutrophils", operator="exceeds", value=1.0), load_criteria())
    'neutrophils above 1'
    """
    name, operator = clause.field.replace("_", " "), clause.operator
    value = ", ".join(clause.value) if isinstance(clause.value, list) else clause.value
    shown = f"{value:g}" if isinstance(value, int | float) else str(value)
    if operator in PRESENCE:
        return f"{name} {operator}"
    if operator is Operator.EXCEEDS:
        return f"{name} {'at least' if criteria.keys.count_boundary == 'inclusive' else 'above'} {shown}"
    if operator is Operator.AT_LEAST_TIMES:
        return f"{name} at least {shown} × {(clause.other or '').replace('_', ' ')}"
    if operator is Operator.AT_LEAST_PLUS:
        return f"{name} at least {(clause.other or '').replace('_', ' ')} + {shown}"
    return f"{name} {str(operator).replace('_', ' ')} {shown}"
