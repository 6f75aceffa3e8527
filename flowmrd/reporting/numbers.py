"""How counts and shares are written: plain decimals, and never more digits than the count behind them supports."""

from __future__ import annotations

import math

MISSING = "–"


def format_count(events: int | None) -> str:
    """Write a count with thousands separators; missing is a dash.

    Examples
    --------
    >>> format_count(34174)
    '34,174'
    """
    return MISSING if events is None else f"{events:,}"


def significant(value: float, digits: int) -> str:
    """Write a number with `digits` significant digits, without an exponent.

    Parameters
    ----------
    value : a finite number
    digits : significant digits, at least 1; digits before the decimal point are never rounded away

    Examples
    --------
    >>> significant(0.44650, 2), significant(0.0996, 2), significant(34.17, 2), significant(1234.5, 2)
    ('0.45', '0.10', '34', '1234')
    """
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    # Rounding up may carry into the next power of ten (0.0996 → 0.10) and would then print one digit too many.
    if round(abs(value), max(decimals, 0)) >= 10.0 ** (digits - decimals):
        decimals -= 1
    return f"{value:.{max(decimals, 0)}f}"


def supported_digits(events: int) -> int:
    """Significant digits that a count of `events` carries, by its Poisson error 1/√n: 20 % for two, 2 % for three.

    Examples
    --------
    >>> supported_digits(3), supported_digits(359), supported_digits(34174)
    (1, 2, 3)
    """
    if events < 25:
        return 1
    return 2 if events < 2500 else 3


def format_share(events: int, parent_events: int) -> str:
    """Write `events / parent_events` as a percentage with the digits that the count supports.

    A share that is not the whole never prints as 100 %, and an empty parent has no share.

    Examples
    --------
    >>> format_share(359, 16189), format_share(3, 80401), format_share(88825, 88871), format_share(0, 0)
    ('2.2%', '0.004%', '99.9%', '–')
    """
    if parent_events == 0:
        return MISSING
    if events in {0, parent_events}:
        return "0%" if events == 0 else "100%"
    text = significant(100 * events / parent_events, supported_digits(events))
    if float(text) >= 100:
        decimals = next(d for d in range(1, 12) if round(100 * events / parent_events, d) < 100)
        # Two decimals say "almost all" as well as ten do.
        text = f"{100 * events / parent_events:.{decimals}f}" if decimals <= 2 else "> 99.99"
    return f"{text}%"


def counted(count: int, what: str) -> str:
    """Write a count with its noun, whose plural takes an s.

    Examples
    --------
    >>> counted(1, "patient"), counted(24, "patient")
    ('1 patient', '24 patients')
    """
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def format_percent(fraction: float | None, *, digits: int = 2) -> str:
    """Write a fraction as a percentage with `digits` significant digits; missing is a dash.

    Examples
    --------
    >>> format_percent(0.0044650), format_percent(20 / 80401), format_percent(None)
    ('0.45%', '0.025%', '–')
    """
    return MISSING if fraction is None else f"{significant(100 * fraction, digits)}%"


def format_channel_value(value: float) -> str:
    """Write a value on a channel's scale, short enough for a table: three digits, powers of ten with a superscript.

    Examples
    --------
    >>> format_channel_value(3254.2), format_channel_value(-812.0), format_channel_value(52311.0)
    ('3,250', '−812', '52,300')
    """
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) < 1e-9:
        return "0"
    sign = "−" if value < 0 else ""
    size = abs(value)
    if size >= 1000:
        step = 10 ** (math.floor(math.log10(size)) - 2)
        return f"{sign}{round(size / step) * step:,.0f}"
    return sign + significant(size, 3)
