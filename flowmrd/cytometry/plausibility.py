"""Whether events can be what their tube says: compensation, clean-up, age of the specimen. No check sees a result.

Unlike the checks of `quality`, these look at cells: the brightest of each channel, the internal negatives, phenotypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmrd.cytometry.quality import AdequacyLimits, CleanUpLimits, LeakLimits, OverCompensationLimits
from flowmrd.errors import Level, QcFinding

Columns = Mapping[str, NDArray[np.floating[Any]]]

_MAD_TO_SD = 1.4826
# The fewest brightest events whose median is worth the name.
_FEWEST_BRIGHT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """What compensation leaves (above zero) or takes too much in `channel` of the signal in `source`, as a share of it.

    Of `over_compensation` the sign is turned: it finds nothing but what is taken too much.
    """

    source: str
    channel: str
    share: float


def over_compensation(linear: Columns, scaled: Columns, *, limits: OverCompensationLimits) -> tuple[Residual, ...]:
    """Find pairs of channels where the cells brightest in one lie below zero in the other, the worst first.

    Cells may be bright in two channels for good reasons, but nothing in biology makes them less than unstained. So
    where their median lies below zero and below nearly all other cells, by a good part of the bright signal, a
    coefficient is too high or belongs to another pair (a transposed matrix).

    Parameters
    ----------
    linear : compensated values of cells by marker, all of one length
    scaled : the same on the display scale
    limits : how many cells stand for a stain, and how bright they must be; residuals up to `warn` are left out
    """
    found = []
    # A baseline restored below zero lowers all cells alike: it is no residual.
    floor = {
        channel: min(0.0, float(np.quantile(values, limits.floor_quantile))) if values.size else 0.0
        for channel, values in linear.items()
    }
    for source, values in linear.items():
        if values.size < _FEWEST_BRIGHT:
            continue
        count = max(_FEWEST_BRIGHT, int(limits.bright_share * values.size))
        brightest = np.argpartition(values, values.size - count)[values.size - count :]
        signal = float(np.median(values[brightest]))
        if signal <= 0 or float(np.median(scaled[source][brightest])) < limits.bright_least:
            continue
        for channel, others in linear.items():
            if channel != source:
                share = (floor[channel] - float(np.median(others[brightest]))) / signal
                if share > limits.warn:
                    found.append(Residual(source=source, channel=channel, share=share))
    return tuple(sorted(found, key=lambda one: (-one.share, one.source, one.channel)))


def leaks(linear: Columns, scaled: Columns, negative: tuple[str, ...], *, limits: LeakLimits) -> tuple[Residual, ...]:
    """Find what of one channel is left, or taken too much, in another that the cells are negative in; the worst first.

    Internal negatives (T cells) lack some antigens, however much they have of others. So where those with the most of
    `source` differ in a negative channel from those with the least, the coefficient of that pair is wrong: a residual
    of single stain (7.2), measured on the sample itself. A coefficient is the same share at every brightness, so the
    smaller of two counts: of the cells with much of `source`, and of the brightest among them. Other cells among the
    negatives (of more autofluorescence, say) also differ, but the less of a share the brighter they are.

    Parameters
    ----------
    linear : compensated values of the internal negatives by marker, all of one length
    scaled : the same on the display scale
    negative : markers that these cells lack
    limits : how much of a source there must be, and how far the negatives must move, before a share is believed;
        shares up to `warn` are left out
    """
    found = []
    for source, values in linear.items():
        if values.size < limits.events_least:
            continue
        low, high = np.quantile(values, (limits.tail, 1.0 - limits.tail))
        least, most = values <= low, values >= high
        brightest = values >= np.quantile(values, 1.0 - limits.brightest)
        bottom, top = float(np.median(values[least])), float(np.median(values[most]))
        beyond = float(np.median(values[brightest]))
        if top < limits.range_least * max(bottom, 1.0) or float(np.median(scaled[source][most])) < limits.bright_least:
            continue
        for channel in negative:
            if channel == source:
                continue
            others = linear[channel]
            base = float(np.median(others[least]))
            moved = float(np.median(others[most])) - base
            spread = _MAD_TO_SD * float(np.median(np.abs(others - np.median(others))))
            shares = (moved / (top - bottom), (float(np.median(others[brightest])) - base) / (beyond - bottom))
            share = min(shares, key=abs) if shares[0] * shares[1] > 0 else 0.0
            if abs(moved) > limits.move_least * spread and abs(share) > limits.warn:
                found.append(Residual(source=source, channel=channel, share=share))
    return tuple(sorted(found, key=lambda one: (-abs(one.share), one.source, one.channel)))


def check_leaks(residuals: tuple[Residual, ...], *, limits: LeakLimits) -> tuple[QcFinding, ...]:
    """Judge what `leaks` found; empty where it found nothing."""
    if not residuals:
        return ()
    failed = abs(residuals[0].share) > limits.fail
    shown = "; ".join(f"{100 * one.share:+.0f} % of {one.source} in {one.channel}" for one in residuals[:4])
    more = f" and {len(residuals) - 4} more" if len(residuals) > 4 else ""
    text = (
        f"Internal negatives with much of one marker differ from those with little in channels that they are negative "
        f"in: {shown}{more}; expected at most {100 * (limits.fail if failed else limits.warn):g} %. The matrix was not "
        "applied, was applied twice, or does not fit this sample."
    )
    level = Level.VIOLATION if failed else Level.WARNING
    return (QcFinding(level=level, code="COMPENSATION_RESIDUAL", message=text, where=residuals[0].channel),)


def share_far_below(
    values: NDArray[np.floating[Any]], negatives: NDArray[np.floating[Any]], *, rsd: float
) -> float | None:
    """Share of events below the internal negatives' median by more than `rsd` robust SDs; `None` without negatives."""
    if values.size == 0 or negatives.size < _FEWEST_BRIGHT:
        return None
    middle = float(np.median(negatives))
    spread = _MAD_TO_SD * float(np.median(np.abs(negatives - middle)))
    return float(np.mean(values < middle - rsd * spread))


def check_over_compensation(
    residuals: tuple[Residual, ...], far_below: Mapping[str, float], *, limits: OverCompensationLimits
) -> tuple[QcFinding, ...]:
    """Judge what `over_compensation` and `share_far_below` found; a PASS finding where nothing was.

    Parameters
    ----------
    residuals : worst first
    far_below : share of all cells far below the negatives, by marker
    limits : shares that warn and fail
    """
    low = {marker: share for marker, share in far_below.items() if share > limits.far_below_warn}
    if not residuals and not low:
        text = "No channel is over-compensated: no bright cells lie below zero in another channel."
        return (QcFinding(level=Level.INFO, code="OVER_COMPENSATED", message=text, where=""),)
    findings = []
    if residuals:
        failed = residuals[0].share > limits.fail
        shown = "; ".join(f"{one.channel} by {100 * one.share:.0f} % of {one.source}" for one in residuals[:4])
        more = f" and {len(residuals) - 4} more" if len(residuals) > 4 else ""
        text = (
            f"Cells bright in one channel lie below zero in another: {shown}{more}; expected at most "
            f"{100 * (limits.fail if failed else limits.warn):g} %. "
            "The matrix takes too much, or its rows and columns are exchanged."
        )
        level = Level.VIOLATION if failed else Level.WARNING
        findings.append(QcFinding(level=level, code="OVER_COMPENSATED", message=text, where=residuals[0].channel))
    for marker, share in low.items():
        text = (
            f"{100 * share:.0f} % of viable events lie far below the negatives in {marker}; expected at most "
            f"{100 * limits.far_below_warn:g} %."
        )
        findings.append(QcFinding(level=Level.WARNING, code="OVER_COMPENSATED", message=text, where=marker))
    return tuple(findings)


def clean_up_verdict(events: int, removed: int, all_events: int, removed_all: int, *, limits: CleanUpLimits) -> str:
    """Judge how much of a phenotype a clean-up gate took: PASS, WARN or FAIL.

    Parameters
    ----------
    events, removed : of the phenotype, before the gate, and of them removed
    all_events, removed_all : the same of all events
    limits : shares that are told

    Examples
    --------
    >>> from flowmrd.cytometry.quality import load_limits
    >>> limits = load_limits().clean_up
    >>> [clean_up_verdict(200, n, 10_000, 500, limits=limits) for n in (20, 90, 188)]
    ['PASS', 'WARN', 'FAIL']
    """
    if events < limits.events_least or all_events == 0:
        return "PASS"
    share = removed / events
    if share - removed_all / all_events <= limits.excess or share <= limits.warn:
        return "PASS"
    return "FAIL" if share > limits.fail and events > limits.fail_share_of_all * all_events else "WARN"


def check_age(hours: float | None, viable_share: float | None, *, limits: AdequacyLimits) -> tuple[QcFinding, ...]:
    """Judge the time from collection to staining (3.6); empty where it is not known.

    Parameters
    ----------
    hours : from `collected_at` to `stained_at`
    viable_share : viable of single events, or `None`; a late specimen is reported only if it is viable
    limits : hours that warn, and from which a remark is due
    """
    if hours is None:
        return ()
    text = f"The specimen was stained {hours:.0f} h after it was collected"
    if hours <= limits.age_hours_warn:
        return (QcFinding(level=Level.INFO, code="SPECIMEN_AGE", message=f"{text}.", where="stained_at"),)
    if hours <= limits.age_hours_late:
        message = f"{text}; expected at most {limits.age_hours_warn:g} h."
        return (QcFinding(level=Level.WARNING, code="SPECIMEN_AGE", message=message, where="stained_at"),)
    message = f"{text}; beyond {limits.age_hours_late:g} h it is reported with a remark, and only if viable."
    level = Level.VIOLATION if viable_share is None or viable_share < limits.viable_share_late else Level.WARNING
    return (QcFinding(level=level, code="SPECIMEN_AGE", message=message, where="stained_at"),)
