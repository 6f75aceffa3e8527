"""What only a subject's other acquisitions can tell: targets against the baseline, dilution against blood of the day.

It is worked out from kept results once all acquisitions of a run are done, so neither the order nor the number of
workers can show in it. Doing it again gives the same: what an earlier run added is taken away first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flowmrd.assessment import antigen_finding, dilution, dilution_finding, marrow_shares, with_dilution
from flowmrd.documents.manifest import load_visits
from flowmrd.errors import Level, QcFinding
from flowmrd.gating.template import GatingTemplate
from flowmrd.quantification.antigen import AntigenRules, Presence, change, is_dim, load_antigen_rules
from flowmrd.quantification.rare_events import mature_cell_bound
from flowmrd.records import AntigenRow, KeptTables

_STATUS = "ANTIGEN_STATUS"
_ADDED = "ANTIGEN_CHANGED"
_DILUTION = "HEMODILUTION"
_BLOOD, _MARROW = "PB", "BM"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """An antigen of one acquisition, with the day it is from and its place among the subject's samples."""

    row: AntigenRow
    day: int
    order: tuple[bool, int, str]


def follow_up(kept: Iterable[KeptTables], templates: Mapping[str, GatingTemplate]) -> dict[str, KeptTables]:
    """Complete the tables of acquisitions by what the same subject's others tell.

    Parameters
    ----------
    kept : tables of all acquisitions of a run, in any order
    templates : by tube

    Returns
    -------
    acquisition → its completed tables, where they differ from those given
    """
    rules = load_antigen_rules()
    subjects: dict[str, list[KeptTables]] = {}
    for one in kept:
        if one.subject:
            subjects.setdefault(one.subject, []).append(one)
    changed = {}
    for own in subjects.values():
        history = _history(own)
        for one in own:
            done = _with_dilution(_with_baseline(one, history, rules), own, templates)
            if done != one:
                changed[one.acquisition] = done
    return changed


# ------------------------------------------------------------------------------------------------------------- antigens


def _history(own: Sequence[KeptTables]) -> dict[tuple[str, str, str], list[_Seen]]:
    """Return every antigen of a subject by (tube, antigen, population): baseline visits first, then by day."""
    baseline = load_visits().baseline
    history: dict[tuple[str, str, str], list[_Seen]] = {}
    for one in own:
        if one.study_day is None:
            continue
        for row in one.antigens:
            seen = _Seen(
                row=_alone(row),
                day=one.study_day,
                order=(one.visit != baseline, one.study_day, one.acquisition),
            )
            history.setdefault((one.tube, row.antigen, row.population), []).append(seen)
    for rows in history.values():
        rows.sort(key=lambda seen: seen.order)
    return history


def _alone(row: AntigenRow) -> AntigenRow:
    """Take away what an earlier run added from other acquisitions."""
    row = replace(row, baseline="", baseline_mfi=None, ratio=None)
    if row.normal_from not in {"", row.acquisition}:
        row = replace(row, normal_mfi=None, normal_from="", strength="")
    return _masked(row)


def _masked(row: AntigenRow) -> AntigenRow:
    positive = f"{row.antigen}{Presence.POSITIVE}"
    hidden = row.therapy == "given" and row.status and (row.status != positive or row.strength == "dim")
    return replace(row, masked="possible" if hidden else "")


def _with_baseline(
    one: KeptTables, history: Mapping[tuple[str, str, str], Sequence[_Seen]], rules: AntigenRules
) -> KeptTables:
    rows: list[AntigenRow] = []
    added: list[QcFinding] = []
    least = rules.baseline.min_events
    for kept in one.antigens:
        row = _alone(kept)
        before = [
            seen.row
            for seen in history.get((one.tube, row.antigen, row.population), ())
            if one.study_day is not None and seen.day < one.study_day
        ]
        first = next((other for other in before if other.events >= least and other.mfi is not None), None)
        if first is not None:
            row = replace(row, baseline=first.acquisition, baseline_mfi=first.mfi, ratio=change(row.mfi, first.mfi))
        yardstick = next((other for other in before if other.normal_mfi is not None), None)
        if row.normal_mfi is None and yardstick is not None and row.status:
            dim = is_dim(row.positive_mfi, yardstick.normal_mfi, rules=rules)
            row = replace(
                row,
                normal_mfi=yardstick.normal_mfi,
                normal_from=yardstick.acquisition,
                strength="" if dim is None else "dim" if dim else "normal",
            )
        row = _masked(row)
        rows.append(row)
        if row.status:
            added.append(antigen_finding(row))
            if first is not None:
                added.extend(_changed(row, first, rules))
    return replace(one, antigens=tuple(rows), findings=_put(one.findings, {_STATUS, _ADDED}, added))


def _changed(row: AntigenRow, first: AntigenRow, rules: AntigenRules) -> list[QcFinding]:
    """Tell a loss against the baseline: fewer positive blasts, or dimmer ones."""
    positive = f"{row.antigen}{Presence.POSITIVE}"
    fewer = first.status == positive and row.status != positive
    dimmer = row.ratio is not None and row.ratio < rules.baseline.loss_ratio
    if not (fewer or dimmer):
        return []
    then = first.status or "not judged"
    text = f"{row.antigen} against the baseline {first.acquisition}: {then} then, {row.status} now"
    if row.ratio is not None:
        text += f"; the median is {row.ratio:.2g} of the baseline's"
    if row.indicative == "Y":
        text += "; indicative, few events"
    return [QcFinding(level=Level.WARNING, code=_ADDED, message=f"{text}.", where=row.population)]


def _put(findings: Sequence[QcFinding], codes: set[str], new: Sequence[QcFinding]) -> tuple[QcFinding, ...]:
    """Put findings in the place of those of the same codes; at the end where there was none."""
    place = next((i for i, finding in enumerate(findings) if finding.code in codes), len(findings))
    before = [finding for finding in findings[:place] if finding.code not in codes]
    return (*before, *new, *(finding for finding in findings[place:] if finding.code not in codes))


# ------------------------------------------------------------------------------------------------------------- dilution


def _with_dilution(one: KeptTables, own: Sequence[KeptTables], templates: Mapping[str, GatingTemplate]) -> KeptTables:
    """Judge a marrow's dilution again with the T cells of the same day's blood, where that was measured."""
    template = templates[one.tube]
    if not one.hemodilution or one.specimen_type != _MARROW:
        return one
    shares = marrow_shares(template, one.counts, set(one.unplaced))
    if shares is None:
        return one
    marrow = _blood_share(one, template)
    blood = [
        share
        for other in sorted(own, key=lambda other: other.acquisition)
        if other.specimen_type == _BLOOD
        and other.study_day == one.study_day
        and (share := _blood_share(other, templates[other.tube]))
    ]
    bound = None
    if marrow is not None and blood:
        bound = mature_cell_bound(percent_marrow=100 * marrow, percent_blood=100 * blood[0])
    status, text = dilution(shares, bound=bound)
    return replace(
        one,
        hemodilution=str(status),
        wording=tuple(with_dilution(sentence, str(status)) for sentence in one.wording),
        findings=_put(one.findings, {_DILUTION}, [dilution_finding(status, text)]),
    )


def _blood_share(one: KeptTables, template: GatingTemplate) -> float | None:
    """Share of the cells that are mostly in blood; `None` where the tube does not have them."""
    quality = template.quality
    if quality.blood is None or quality.denominator is None or not one.counts.get(quality.denominator):
        return None
    return one.counts[quality.blood] / one.counts[quality.denominator]
