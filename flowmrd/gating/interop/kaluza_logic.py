"""Kaluza's boolean expressions over gates, `("A" AND (NOT "B"))`, as boolean gates of one operator each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Kaluza allows 16 terms in an expression; what is far larger was not written by it.
MAX_TERMS = 256
MAX_DEPTH = 64

_SPACE = re.compile(r"\s*")
_WORDS = (
    ("and", re.compile(r"AND\b|&&?", re.IGNORECASE)),
    ("or", re.compile(r"OR\b|\|\|?", re.IGNORECASE)),
    ("not", re.compile(r"NOT\b|!|~", re.IGNORECASE)),
    ("(", re.compile(r"\(")),
    (")", re.compile(r"\)")),
)
_QUOTES = {'"': '"', "'": "'", "[": "]", "\u201c": "\u201d"}


@dataclass(frozen=True, slots=True)
class Name:
    """A gate, or all that it does not hold."""

    gate: str
    complement: bool = False


@dataclass(frozen=True, slots=True)
class Joined:
    """Terms joined by one operator, `and` or `or`; a term never has the same operator itself."""

    operator: str
    terms: tuple[Name | Joined, ...]


Expression = Name | Joined


def parse(text: str, labels: Sequence[str]) -> Expression:
    """Read an expression: names with or without quotes, NOT before AND before OR, parentheses.

    Parameters
    ----------
    text : the expression
    labels : names of the gates there are; without quotes the longest that fits is meant

    Raises
    ------
    ValueError
        It is not an expression over these gates; the message says where.
    """
    return _joined(_Parser(text, labels).whole(), complement=False)


def negated(expression: Expression) -> Expression:
    """Return the complement, with the complements at the names (De Morgan)."""
    return _joined(expression, complement=True)


def _joined(expression: Expression, *, complement: bool) -> Expression:
    """Bring complements down to the names and join nested terms of one operator."""
    if isinstance(expression, Name):
        return Name(expression.gate, expression.complement is not complement)
    operator = expression.operator
    if complement:
        operator = "or" if operator == "and" else "and"
    terms: list[Expression] = []
    for term in expression.terms:
        inner = _joined(term, complement=complement)
        terms.extend(inner.terms if isinstance(inner, Joined) and inner.operator == operator else (inner,))
    return Joined(operator, tuple(terms))


class _Parser:
    """Recursive descent over the text; every level is a precedence."""

    def __init__(self, text: str, labels: Sequence[str]) -> None:
        self._text = text
        self._labels = sorted(labels, key=len, reverse=True)
        self._folded = {label.casefold(): label for label in self._labels}
        self._at = 0
        self._terms = 0

    def whole(self) -> Expression:
        found = self._level("or", lambda depth: self._level("and", self._term, depth), 0)
        self._skip()
        if self._at < len(self._text):
            raise self._unexpected()
        return found

    def _level(self, operator: str, below: Callable[[int], Expression], depth: int) -> Expression:
        terms = [below(depth)]
        while self._take(operator):
            terms.append(below(depth))
        return terms[0] if len(terms) == 1 else Joined(operator, tuple(terms))

    def _term(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise ValueError(f"its expression is nested more than {MAX_DEPTH} deep")
        label = self._label()
        if label is not None:
            self._terms += 1
            if self._terms > MAX_TERMS:
                raise ValueError(f"its expression has more than {MAX_TERMS} terms")
            return Name(label)
        if self._take("not"):
            return negated(self._term(depth + 1))
        if self._take("("):
            inner = self._level("or", lambda one: self._level("and", self._term, one), depth + 1)
            if not self._take(")"):
                raise self._unexpected()
            return inner
        raise self._unexpected()

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _take(self, kind: str) -> bool:
        self._skip()
        match = dict(_WORDS)[kind].match(self._text, self._at)
        if match is None:
            return False
        self._at = match.end()
        return True

    def _label(self) -> str | None:
        self._skip()
        rest = self._text[self._at :]
        closing = _QUOTES.get(rest[:1])
        if closing is not None:
            # A gate's name may itself hold the quote, so the names there are come first.
            for label in self._labels:
                if rest.startswith(label + closing, 1):
                    self._at += len(label) + 2
                    return label
            given = rest[1:].partition(closing)[0]
            label = self._folded.get(given.strip().casefold(), "")
            if not label:
                raise ValueError(f"its expression names {given!r}, which is no gate")
            self._at += len(given) + 2
            return label
        for label in self._labels:
            after = rest[len(label) : len(label) + 1]
            if rest.startswith(label) and not (after.isalnum() or after == "_"):
                self._at += len(label)
                return label
        return None

    def _unexpected(self) -> ValueError:
        rest = self._text[self._at :].strip()
        shown = repr(rest[:40]) if rest else "its end"
        return ValueError(f"its expression cannot be read from {shown} on")
