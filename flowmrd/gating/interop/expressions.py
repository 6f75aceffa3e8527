"""Boolean expressions over names, as `A & !(B | C)`: openCyto's boolGate, and the gates of FlowJo 9."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARKS = re.compile(r"\s*([()&|!])\s*")
_MAX_NESTING = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A `name`, the complement of a term (`not`), or terms joined by `and` or `or`."""

    operator: str
    name: str = ""
    parts: tuple[Term, ...] = ()


def parse_expression(text: str) -> Term:
    """Read an expression; `|` binds weaker than `&`, `!` strongest, and a doubled mark is a single one.

    Raises
    ------
    ValueError
        It breaks off, has more than it needs, or is nested too deep.

    Examples
    --------
    >>> [part.operator for part in parse_expression("A & !B").parts]
    ['name', 'not']
    """
    tokens = [part.strip() for part in _MARKS.split(text) if part.strip()]
    term, place = _joined(tokens, 0, 0, "|")
    if place != len(tokens):
        raise ValueError("the expression has more than it needs")
    return term


def _joined(tokens: Sequence[str], place: int, depth: int, mark: str) -> tuple[Term, int]:
    if depth > _MAX_NESTING:
        raise ValueError("the expression is nested too deep")
    parts = []
    while True:
        part, place = _joined(tokens, place, depth, "&") if mark == "|" else _atom(tokens, place, depth)
        parts.append(part)
        if place >= len(tokens) or tokens[place] != mark:
            break
        while place < len(tokens) and tokens[place] == mark:
            place += 1
    if len(parts) == 1:
        return parts[0], place
    return Term(operator="or" if mark == "|" else "and", parts=tuple(parts)), place


def _atom(tokens: Sequence[str], place: int, depth: int) -> tuple[Term, int]:
    if place >= len(tokens) or tokens[place] in {"&", "|", ")"}:
        raise ValueError("the expression breaks off")
    if depth > _MAX_NESTING:
        raise ValueError("the expression is nested too deep")
    if tokens[place] == "!":
        inner, place = _atom(tokens, place + 1, depth + 1)
        return Term(operator="not", parts=(inner,)), place
    if tokens[place] == "(":
        inner, place = _joined(tokens, place + 1, depth + 1, "|")
        if place >= len(tokens) or tokens[place] != ")":
            raise ValueError("a parenthesis is not closed")
        return inner, place + 1
    return Term(operator="name", name=tokens[place]), place + 1
