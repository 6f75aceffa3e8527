"""Cells per microlitre of blood: by counting beads, by the volume the instrument recorded, by a blood count beside.

Every count carries its interval (counting errors of target and beads propagated) and its limits; what makes a count
impossible or doubtful is a finding with a name. Rules: domain reference 4-cart 4.5, as data in `rules/absolute.toml`.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flowmrd.errors import Level, QcFinding, QuantificationError
from flowmrd.quantification.cart import Interval, load_car_rules, normal_quantile, product_interval, wilson


class Platform(StrEnum):
    """How a count came to be."""

    BEADS = "beads"
    VOLUME = "volume"
    DUAL = "dual_platform"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Beads(_Section):
    min_events: int
    warn_events: int


class _Dual(_Section):
    max_hours: float
    wbc_cv_percent: float
    lymph_cv_percent: float


class _Disagreement(_Section):
    above_per_ul: float
    max_relative: float


class _Quirk(_Section):
    cytometer: str
    ul_per_unit: float


class _Volume(_Section):
    nl_per_ul: float
    min_ul_per_minute: float
    max_ul_per_minute: float
    quirk: tuple[_Quirk, ...] = ()


class AbsoluteRules(_Section):
    """The shipped document of rules, as read from `rules/absolute.toml`."""

    version: str
    confidence: float
    beads: _Beads
    dual_platform: _Dual
    disagreement: _Disagreement
    volume: _Volume


def load_absolute_rules() -> AbsoluteRules:
    """Read the rules that ship with flowmrd."""
    with (Path(__file__).parent / "rules" / "absolute.toml").open("rb") as stream:
        return AbsoluteRules.model_validate(tomllib.load(stream))


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsoluteCount:
    """Cells per µL of blood with interval and limits (the event rule's counts per µL).

    `per_event` is what one event stands for, cells per µL; `None` on the dual platform.
    """

    cells_per_ul: float
    ci_low: float
    ci_high: float
    lod_per_ul: float
    lloq_per_ul: float
    platform: Platform
    per_event: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A count, or `None` where the rules forbid one, and what there is to say about it."""

    count: AbsoluteCount | None
    findings: tuple[QcFinding, ...] = ()


def rate_interval(events: int, reference_events: int, *, confidence: float = 0.95) -> Interval:
    """Interval of the ratio of two Poisson means (target to beads), by the score interval of target among both.

    Parameters
    ----------
    events, reference_events : counts; the reference has at least one

    References
    ----------
    Given their sum, one of two Poisson counts is binomial: Przyborowski J, Wilenski H. Biometrika 1940;31:313-323.
    """
    if events < 0 or reference_events < 1:
        raise QuantificationError(f"ratio of counts: expected beads above 0; got {events} and {reference_events}")
    low, high = wilson(events, events + reference_events, confidence=confidence)
    return low / (1 - low), high / (1 - high) if high < 1 else math.inf


def bead_count(
    *,
    target_events: int,
    bead_events: int,
    beads_added: float,
    sample_volume_ul: float,
    dilution_factor: float = 1.0,
    lod_events: int | None = None,
    lloq_events: int | None = None,
    rules: AbsoluteRules | None = None,
) -> AbsoluteCount:
    """Single-platform count (4.5; W08).

    Parameters
    ----------
    target_events, bead_events : of the same acquisition and the same stretches of time
    beads_added : beads in the tube: lot concentration times volume pipetted, or the tube's lot count
    sample_volume_ul : volume of the sample in the tube, µL; of blood, or of a dilution of it
    dilution_factor : final to initial volume, where the sample was diluted before it was pipetted
    lod_events, lloq_events : event rule; by default that of CAR+ counts

    Raises
    ------
    QuantificationError : no beads, or volumes that are not above 0

    Examples
    --------
    >>> bead_count(target_events=1842, bead_events=12_500, beads_added=52_300, sample_volume_ul=100).cells_per_ul
    77.06928
    """
    rules = rules or load_absolute_rules()
    if bead_events < 1 or target_events < 0 or min(beads_added, sample_volume_ul, dilution_factor) <= 0:
        raise QuantificationError(
            "bead count: expected bead events, beads added, volume and dilution above 0; "
            f"got {bead_events}, {beads_added:g}, {sample_volume_ul:g} and {dilution_factor:g}"
        )
    per_bead = beads_added / sample_volume_ul * dilution_factor
    per_event = per_bead / bead_events
    low, high = rate_interval(target_events, bead_events, confidence=rules.confidence)
    lod, lloq = _event_rule(lod_events, lloq_events)
    return AbsoluteCount(
        cells_per_ul=target_events / bead_events * per_bead,
        ci_low=low * per_bead,
        ci_high=high * per_bead,
        lod_per_ul=lod * per_event,
        lloq_per_ul=lloq * per_event,
        platform=Platform.BEADS,
        per_event=per_event,
    )


def count_by_beads(
    *,
    target_events: int,
    bead_events: int,
    beads_added: float | None,
    beads_lot: str | None,
    sample_volume_ul: float | None,
    dilution_factor: float | None = None,
    where: str = "beads",
    rules: AbsoluteRules | None = None,
) -> Counted:
    """Count by beads as far as the rules allow (4.5).

    No count without beads seen, beads stated or a volume, or from too few beads; a missing lot number is a warning.
    """
    rules = rules or load_absolute_rules()
    findings: list[QcFinding] = []

    def say(level: Level, code: str, message: str) -> None:
        findings.append(QcFinding(level=level, code=code, message=message, where=where))

    stated = beads_added is not None
    if not stated and bead_events < rules.beads.min_events:
        # Neither in the tube nor on the worklist: a tube without beads.
        return Counted(count=None)
    if beads_added is None:
        say(Level.WARNING, "BEADS_NOT_STATED", f"{bead_events:,} bead events, but beads_added is missing: no count.")
        return Counted(count=None, findings=tuple(findings))
    if not beads_lot:
        say(Level.WARNING, "BEAD_LOT_MISSING", "The bead lot is not stated: the count cannot be traced to it.")
    if sample_volume_ul is None:
        say(Level.WARNING, "BLOOD_VOLUME_MISSING", "Beads are stated, but blood_volume_ul is missing: no count.")
        return Counted(count=None, findings=tuple(findings))
    if bead_events == 0:
        say(Level.VIOLATION, "BEADS_ABSENT", "Beads are stated, but none was found in the acquisition: no count.")
        return Counted(count=None, findings=tuple(findings))
    if bead_events < rules.beads.min_events:
        text = f"{bead_events:,} bead events, fewer than {rules.beads.min_events:,}: no count from so few."
        say(Level.VIOLATION, "BEADS_TOO_FEW", text)
        return Counted(count=None, findings=tuple(findings))
    if bead_events < rules.beads.warn_events:
        text = f"{bead_events:,} bead events, fewer than {rules.beads.warn_events:,}: the count is imprecise."
        say(Level.WARNING, "BEADS_FEW", text)
    count = bead_count(
        target_events=target_events,
        bead_events=bead_events,
        beads_added=beads_added,
        sample_volume_ul=sample_volume_ul,
        dilution_factor=dilution_factor or 1.0,
        rules=rules,
    )
    return Counted(count=count, findings=tuple(findings))


# --------------------------------------------------------------------------------------------------- recorded volume


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedVolume:
    """Volume that the instrument says it took, µL (`None` = not recorded, or not to be trusted)."""

    microlitres: float | None
    findings: tuple[QcFinding, ...] = ()


def recorded_volume(
    keywords: Mapping[str, str], *, seconds: float | None, rules: AbsoluteRules | None = None
) -> RecordedVolume:
    """Read `$VOL`, which FCS 3.1 defines in nanolitres; some instruments write microlitres.

    Parameters
    ----------
    keywords : of the file, upper-case names; `$VOL` and `$CYT` are read
    seconds : length of the acquisition; `None` = not known, then only a known quirk of the cytometer is judged
    """
    limits = (rules or load_absolute_rules()).volume
    text = keywords.get("$VOL", "").strip()
    if not text:
        return RecordedVolume(microlitres=None)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0 or math.isinf(value):
        finding = QcFinding(
            level=Level.INFO, code="VOLUME_UNUSABLE", message="$VOL holds no volume above 0.", where="$VOL"
        )
        return RecordedVolume(microlitres=None, findings=(finding,))

    def plausible(microlitres: float) -> bool:
        if seconds is None or seconds <= 0:
            return microlitres >= limits.min_ul_per_minute
        return limits.min_ul_per_minute <= microlitres * 60 / seconds <= limits.max_ul_per_minute

    by_standard = value / limits.nl_per_ul
    if plausible(by_standard):
        return RecordedVolume(microlitres=by_standard)
    cytometer = keywords.get("$CYT", "").casefold()
    for quirk in limits.quirk:
        if quirk.cytometer.casefold() in cytometer and plausible(value * quirk.ul_per_unit):
            message = (
                f"$VOL is {value:g}: in nanolitres, as FCS 3.1 says, no flow of sample would be so slow. "
                f"{quirk.cytometer} files hold microlitres; read so."
            )
            finding = QcFinding(level=Level.WARNING, code="VOLUME_IN_MICROLITRES", message=message, where="$VOL")
            return RecordedVolume(microlitres=value * quirk.ul_per_unit, findings=(finding,))
    message = f"$VOL is {value:g} nl, which fits no flow of sample: no count by volume."
    finding = QcFinding(level=Level.WARNING, code="VOLUME_IMPLAUSIBLE", message=message, where="$VOL")
    return RecordedVolume(microlitres=None, findings=(finding,))


def acquisition_seconds(keywords: Mapping[str, str]) -> float | None:
    """Length of an acquisition by `$BTIM` and `$ETIM` (over midnight, too); `None` where they do not say."""
    times = []
    for name in ("$BTIM", "$ETIM"):
        match = re.match(r"\s*(\d{1,2}):(\d{2}):(\d{2})(?:[.:](\d+))?", keywords.get(name, ""))
        if match is None:
            return None
        hours, minutes, seconds, rest = match.groups()
        # A fourth field after a colon is in sixtieths (FCS 3.0), after a point a decimal fraction; both are below 1 s.
        times.append(int(hours) * 3600 + int(minutes) * 60 + int(seconds) + (float(f"0.{rest}") if rest else 0.0))
    length = times[1] - times[0]
    return length + 86400 if length < 0 else length or None


def volume_count(
    *,
    target_events: int,
    volume_ul: float,
    dilution_factor: float = 1.0,
    lod_events: int | None = None,
    lloq_events: int | None = None,
    rules: AbsoluteRules | None = None,
) -> AbsoluteCount:
    """Count by the volume the instrument took: events over volume, times the dilution of the blood.

    Parameters
    ----------
    target_events : events of the whole acquisition (no stretch of time left out)
    volume_ul : of the sample as it was taken in
    dilution_factor : volume of the stained sample over that of the blood in it
    """
    from scipy.special import gammaincinv

    rules = rules or load_absolute_rules()
    if target_events < 0 or min(volume_ul, dilution_factor) <= 0:
        raise QuantificationError(
            f"volume count: expected a volume and a dilution above 0; got {volume_ul:g} and {dilution_factor:g}"
        )
    per_event = dilution_factor / volume_ul
    tail = (1 - rules.confidence) / 2
    lod, lloq = _event_rule(lod_events, lloq_events)
    return AbsoluteCount(
        cells_per_ul=target_events * per_event,
        ci_low=float(gammaincinv(target_events, tail)) * per_event if target_events else 0.0,
        ci_high=float(gammaincinv(target_events + 1, 1 - tail)) * per_event,
        lod_per_ul=lod * per_event,
        lloq_per_ul=lloq * per_event,
        platform=Platform.VOLUME,
        per_event=per_event,
    )


# ------------------------------------------------------------------------------------------------------ dual platform


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A fraction with its interval."""

    fraction: float
    ci_low: float
    ci_high: float


def share_of(events: int, parent_events: int, *, confidence: float = 0.95) -> Share:
    """Fraction of two counts with its score interval."""
    low, high = wilson(events, parent_events, confidence=confidence)
    return Share(fraction=events / parent_events, ci_low=low, ci_high=high)


def lymphocytes_per_ul(*, wbc_1e9_l: float, lymph_pct: float, rules: AbsoluteRules | None = None) -> Share:
    """Lymphocytes per µL of an analyser, with its imprecision (4.5; W09): WBC × 1000 × lymphocyte percentage / 100."""
    rules = rules or load_absolute_rules()
    if wbc_1e9_l < 0 or not 0 <= lymph_pct <= 100:
        raise QuantificationError(
            f"dual platform: expected WBC of at least 0 and 0 to 100 % lymphocytes; got {wbc_1e9_l:g} and {lymph_pct:g}"
        )
    value = wbc_1e9_l * 1000 * lymph_pct / 100
    cv = math.hypot(rules.dual_platform.wbc_cv_percent, rules.dual_platform.lymph_cv_percent) / 100
    # Imprecision in proportion: limits at equal ratios keep the lower one above 0.
    spread = math.exp(normal_quantile(rules.confidence) * cv)
    return Share(fraction=value, ci_low=value / spread, ci_high=value * spread)


def dual_platform_count(
    *,
    wbc_1e9_l: float,
    lymph_pct: float,
    shares: tuple[Share, ...],
    lod_fraction: float | None = None,
    lloq_fraction: float | None = None,
    rules: AbsoluteRules | None = None,
) -> AbsoluteCount:
    """Dual-platform count: lymphocytes per µL times each share of its own parent (4.5; W09).

    Parameters
    ----------
    wbc_1e9_l, lymph_pct : leukocytes (10⁹/l) and lymphocytes (percent of them) of the analyser
    shares : nested shares below the lymphocytes, such as CD3+ of lymphocytes, CAR+ of CD3+
    lod_fraction, lloq_fraction : limits of the last share; 0 without

    Examples
    --------
    >>> shares = (Share(fraction=0.81, ci_low=0.8, ci_high=0.82), Share(fraction=0.225, ci_low=0.22, ci_high=0.23))
    >>> round(dual_platform_count(wbc_1e9_l=3.2, lymph_pct=24, shares=shares).cells_per_ul, 3)
    139.968
    """
    start = lymphocytes_per_ul(wbc_1e9_l=wbc_1e9_l, lymph_pct=lymph_pct, rules=rules)
    above, value, interval = start.fraction, start.fraction, (start.ci_low, start.ci_high)
    for place, one in enumerate(shares):
        interval = product_interval(one.fraction, (one.ci_low, one.ci_high), value, interval)
        value *= one.fraction
        if place < len(shares) - 1:
            above *= one.fraction
    return AbsoluteCount(
        cells_per_ul=value,
        ci_low=interval[0],
        ci_high=interval[1],
        lod_per_ul=(lod_fraction or 0.0) * above,
        lloq_per_ul=(lloq_fraction or 0.0) * above,
        platform=Platform.DUAL,
    )


def check_blood_count_time(
    wbc_at: datetime | None, collected_at: datetime | None, *, rules: AbsoluteRules | None = None
) -> tuple[bool, tuple[QcFinding, ...]]:
    """Say whether a blood count may be used for a flow sample, and why not (4.5: within 24 h).

    Times that are not stated are a warning; the count is used.
    """
    most = (rules or load_absolute_rules()).dual_platform.max_hours
    where = "wbc_at"
    if wbc_at is None or collected_at is None:
        text = "When the blood count or the sample was drawn is not stated: whether they belong together is not known."
        return True, (QcFinding(level=Level.WARNING, code="WBC_TIME_UNKNOWN", message=text, where=where),)
    hours = abs((wbc_at - collected_at).total_seconds()) / 3600
    if hours <= most:
        return True, ()
    text = f"The blood count lies {hours:.1f} h from the flow sample, more than {most:g} h: no dual-platform count."
    return False, (QcFinding(level=Level.WARNING, code="WBC_TOO_OLD", message=text, where=where),)


def compare_platforms(
    single: AbsoluteCount | None,
    dual: AbsoluteCount | None,
    *,
    where: str = "",
    rules: AbsoluteRules | None = None,
) -> tuple[QcFinding, ...]:
    """Warn where single and dual platform disagree by more than the rule allows, relative to the single (4.5)."""
    limits = (rules or load_absolute_rules()).disagreement
    if single is None or dual is None or max(single.cells_per_ul, dual.cells_per_ul) <= limits.above_per_ul:
        return ()
    if single.cells_per_ul > 0:
        apart = abs(dual.cells_per_ul / single.cells_per_ul - 1)
        if apart <= limits.max_relative:
            return ()
    message = (
        f"{single.cells_per_ul:.3g} cells/µl by {single.platform.value.replace('_', ' ')} and "
        f"{dual.cells_per_ul:.3g} by dual platform: more than {100 * limits.max_relative:g} % apart."
    )
    return (QcFinding(level=Level.WARNING, code="COUNTS_DISAGREE", message=message, where=where),)


def part_of(count: AbsoluteCount, share: Share, *, lod_fraction: float, lloq_fraction: float) -> AbsoluteCount:
    """Count of a part of counted cells, such as CAR+ of CD3+, with both errors."""
    low, high = product_interval(
        share.fraction, (share.ci_low, share.ci_high), count.cells_per_ul, (count.ci_low, count.ci_high)
    )
    return AbsoluteCount(
        cells_per_ul=count.cells_per_ul * share.fraction,
        ci_low=low,
        ci_high=high,
        lod_per_ul=count.cells_per_ul * lod_fraction,
        lloq_per_ul=count.cells_per_ul * lloq_fraction,
        platform=count.platform,
        per_event=count.per_event,
    )


def _event_rule(lod_events: int | None, lloq_events: int | None) -> tuple[int, int]:
    rules = load_car_rules().detection
    return lod_events or rules.lod_events, lloq_events or rules.lloq_events
