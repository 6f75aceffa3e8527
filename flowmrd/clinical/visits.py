"""Which of several assessments belongs to which planned visit. The infusion is day 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowmrd.clinical.rules import Visit


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitAssignment:
    """One day for each planned visit that has any in its window, and the days that belong to none, in order."""

    chosen: dict[str, int]
    unassigned: tuple[int, ...]


def visit_of_day(day: int, visits: Sequence[Visit]) -> Visit | None:
    """Return the visit whose window holds the day; `None` is an unscheduled day."""
    return next((visit for visit in visits if visit.holds(day)), None)


def assign_visits(days: Sequence[int], visits: Sequence[Visit]) -> VisitAssignment:
    """Choose for each planned visit the day nearest to its target, of two as near the later (5-response 5.3).

    Parameters
    ----------
    days : days after infusion on which one subject was assessed
    visits : planned visits, whose windows do not overlap

    Examples
    --------
    >>> from flowmrd.clinical.rules import load_criteria
    >>> assign_visits([14, 26, 30, 84], load_criteria().visits)
    VisitAssignment(chosen={'D28': 30, 'M3': 84}, unassigned=(14, 26))
    """
    chosen: dict[str, int] = {}
    for visit in visits:
        inside = [day for day in days if visit.holds(day)]
        if inside:
            target = visit.target_day
            chosen[visit.name] = max(inside, key=lambda day: (-abs(day - target), day))
    taken = set(chosen.values())
    return VisitAssignment(chosen=chosen, unassigned=tuple(sorted(day for day in set(days) if day not in taken)))
