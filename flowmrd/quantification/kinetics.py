"""Cellular kinetics of one infusion course: peak, exposure, decline, persistence, B-cell aplasia and recovery.

Rules: domain reference 4-cart 4.6 and 4.7, as data in `rules/kinetics.toml`. Days are counted from the infusion (day 0)
and may be decimal. A value below its LOD counts as 0 at every time; a missing sample is no point. Courses are never
joined: a re-infusion restarts the clock.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flowmrd.errors import Level, QcFinding, QuantificationError
from flowmrd.quantification.cart import CarRules, load_car_rules

_Say = Callable[[Level, str, str], None]


class Persistence(StrEnum):
    """Whether CAR-T cells are there at a visit."""

    DETECTED = "DETECTED"
    NOT_DETECTED = "NOT_DETECTED"
    NOT_EVALUABLE = "NE"


class Completeness(StrEnum):
    """Whether an area under the curve reaches its end."""

    COMPLETE = "COMPLETE"
    PARTIAL = "PARTIAL"


class Trapezoid(StrEnum):
    """How the area between two samples is taken."""

    LINEAR = "linear"
    LINUP_LOGDOWN = "linup_logdown"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Auc(_Section):
    name: str
    to_day: float
    complete_from: float


class _LambdaZ(_Section):
    min_points: int
    max_points: int
    min_adj_r2: float


class _Persistence(_Section):
    loss_days: float
    max_lod_fraction: float


class _BCells(_Section):
    aplasia_per_ul: float
    aplasia_fraction: float
    confirm_days: float
    early_loss_day: float


class KineticsRules(_Section):
    """The shipped document of rules, as read from `rules/kinetics.toml`."""

    version: str
    auc: tuple[_Auc, ...]
    lambda_z: _LambdaZ
    persistence: _Persistence
    b_cells: _BCells


def load_kinetics_rules() -> KineticsRules:
    """Read the rules that ship with flowmrd."""
    with (Path(__file__).parent / "rules" / "kinetics.toml").open("rb") as stream:
        return KineticsRules.model_validate(tomllib.load(stream))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was measured in blood on one day of a course; `None` is not measured.

    `day` from the infusion. `car_per_ul` with its interval and `lod_per_ul`; `lod_fraction` the LOD as a fraction of
    CD3+ (above 1 % "not detected" proves nothing). `detected`, where the counts have decided it (4.4); else a value at
    or above the LOD is detected. `cd19_per_ul` B cells, `b_fraction` of lymphocytes where there is no absolute count.
    `terminal` marks the points that a person chose for the terminal slope; `label` the visit, for display;
    `reagent` what CAR+ cells were detected with (reagent, clone).
    """

    day: float
    car_per_ul: float | None = None
    lod_per_ul: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    car_fraction: float | None = None
    lod_fraction: float | None = None
    detected: bool | None = None
    cd19_per_ul: float | None = None
    b_fraction: float | None = None
    copies_per_ug: float | None = None
    cd4_cd8_ratio: float | None = None
    memory_shares: tuple[tuple[str, float | None], ...] = ()
    terminal: bool | None = None
    label: str = ""
    reagent: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.day):
            raise QuantificationError(f"kinetics: expected a day; got {self.day}")
        for name in ("car_per_ul", "lod_per_ul", "cd19_per_ul", "b_fraction", "copies_per_ug"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise QuantificationError(f"kinetics: expected {name} of at least 0; got {value}")

    @property
    def quantity(self) -> float | None:
        """CAR+ cells per µL as kinetics counts them: 0 below the LOD or where not detected."""
        if self.car_per_ul is None:
            return None
        return self.car_per_ul if self.is_detected else 0.0

    @property
    def is_detected(self) -> bool:
        """Whether CAR-T cells are proved: as the counts decided, else by the LOD."""
        if self.detected is False or self.car_per_ul is None:
            return bool(self.detected)
        return self.car_per_ul > 0 and (self.lod_per_ul is None or self.car_per_ul >= self.lod_per_ul)


# ------------------------------------------------------------------------------------------------------------ exposure


@dataclass(frozen=True, slots=True, kw_only=True)
class Auc:
    """Area under the curve from day 0 (cells/µL × days), and the day it reaches: never beyond the last sample."""

    value: float
    to_day: float
    completeness: Completeness


def area_under_curve(
    points: Sequence[tuple[float, float]], *, to_day: float, complete_from: float, method: Trapezoid
) -> Auc | None:
    """Area from day 0 to `to_day`, by the trapezoidal rule (4.6; W11, W12).

    Parameters
    ----------
    points : (day, value) with rising days; values below the LOD are 0. Those before day 0 are left out; day 0 is 0
    to_day : end point; where no sample falls on it, its value is interpolated with the rule of that interval
    complete_from : the last sample must not be earlier, else the area is PARTIAL and ends there
    method : linear, or logarithmic where both ends are above 0 and falling

    Returns
    -------
    `None` without a sample after day 0
    """
    after = [(day, value) for day, value in points if day > 0]
    if not after:
        return None
    course = [(0.0, 0.0), *after]
    total = 0.0
    for (t1, c1), (t2, c2) in itertools.pairwise(course):
        if t1 >= to_day:
            break
        logarithmic = method is Trapezoid.LINUP_LOGDOWN and c1 > c2 > 0
        if t2 > to_day:
            # The interval keeps its own rule: a fall to 0 stays linear, though its cut end lies above 0.
            t2, c2 = to_day, _between(t1, c1, t2, c2, at=to_day, logarithmic=logarithmic)
        total += (t2 - t1) * ((c1 - c2) / math.log(c1 / c2) if logarithmic else (c1 + c2) / 2)
    last = course[-1][0]
    return Auc(
        value=total,
        to_day=min(last, to_day),
        completeness=Completeness.COMPLETE if last >= complete_from else Completeness.PARTIAL,
    )


def _between(t1: float, c1: float, t2: float, c2: float, *, at: float, logarithmic: bool) -> float:
    share = (at - t1) / (t2 - t1)
    return c1 * (c2 / c1) ** share if logarithmic else c1 + (c2 - c1) * share


# ------------------------------------------------------------------------------------------------------ terminal slope


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSlope:
    """Regression of ln(value) on days after the peak. `half_life_days` is `None` where the fit is not accepted."""

    per_day: float
    half_life_days: float | None
    points: int
    adj_r2: float
    from_day: float
    to_day: float
    accepted: bool


def terminal_slope(
    points: Sequence[tuple[float, float]], *, tmax: float, rules: KineticsRules | None = None
) -> TerminalSlope | None:
    """Slope of the last points after the peak (4.6; W11, W12).

    Parameters
    ----------
    points : (day, value) with rising days, values below the LOD as 0
    tmax : day of the peak; points up to it are left out, as are zeros

    Returns
    -------
    `None` with fewer points than the rule asks for
    """
    rule = (rules or load_kinetics_rules()).lambda_z
    eligible = [(day, value) for day, value in points if day > tmax and value > 0]
    return fit_slope(eligible[-rule.max_points :], rules=rules) if len(eligible) >= rule.min_points else None


def fit_slope(points: Sequence[tuple[float, float]], *, rules: KineticsRules | None = None) -> TerminalSlope | None:
    """Fit ln(value) on days by least squares over exactly these points; `None` with fewer than the rule asks for."""
    rule = (rules or load_kinetics_rules()).lambda_z
    n = len(points)
    if n < rule.min_points:
        return None
    days, logs = [day for day, _ in points], [math.log(value) for _, value in points]
    mean_day, mean_log = math.fsum(days) / n, math.fsum(logs) / n
    across = math.fsum((day - mean_day) ** 2 for day in days)
    total = math.fsum((value - mean_log) ** 2 for value in logs)
    slope = math.fsum((d - mean_day) * (v - mean_log) for d, v in zip(days, logs, strict=True)) / across
    left = math.fsum((v - mean_log - slope * (d - mean_day)) ** 2 for d, v in zip(days, logs, strict=True))
    adj_r2 = 1 - (left / total) * (n - 1) / (n - 2) if total > 0 else 0.0
    accepted = adj_r2 >= rule.min_adj_r2 and slope < 0
    return TerminalSlope(
        per_day=-slope,
        half_life_days=math.log(2) / -slope if accepted else None,
        points=n,
        adj_r2=adj_r2,
        from_day=days[0],
        to_day=days[-1],
        accepted=accepted,
    )


# --------------------------------------------------------------------------------------------------------- persistence


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """How long CAR-T cells persisted: `days` to the loss (`lost`), or to the last day they were looked for."""

    days: float
    lost: bool
    censored_by: str


def persistence_at(sample: Sample, *, rules: KineticsRules | None = None) -> Persistence:
    """Detected, not detected, or not evaluable: without a result, or none found with an LOD above 1 % of CD3+ (4.6)."""
    if sample.is_detected:
        return Persistence.DETECTED
    most = (rules or load_kinetics_rules()).persistence.max_lod_fraction
    insensitive = sample.lod_fraction is not None and sample.lod_fraction > most
    unknown = sample.car_per_ul is None and sample.detected is None
    return Persistence.NOT_EVALUABLE if unknown or insensitive else Persistence.NOT_DETECTED


def loss_of_persistence(samples: Sequence[Sample], *, rules: KineticsRules | None = None) -> float | None:
    """Day of the loss: the first of not-detected samples that follow one another over at least 14 days (4.6).

    Samples that are not evaluable neither confirm nor interrupt. A loss needs a detection before it.
    """
    rule = rules or load_kinetics_rules()
    seen, since = False, None
    for sample in samples:
        if sample.day <= 0:
            continue
        match persistence_at(sample, rules=rule):
            case Persistence.DETECTED:
                seen, since = True, None
            case Persistence.NOT_DETECTED if seen:
                since = sample.day if since is None else since
                if sample.day - since >= rule.persistence.loss_days:
                    return since
            case _:
                pass
    return None


def persistence_duration(
    samples: Sequence[Sample],
    *,
    censor_day: float | None = None,
    censored_by: str = "",
    rules: KineticsRules | None = None,
) -> Duration | None:
    """Time to the loss of persistence, or censored at the last evaluable sample or at an event before it (4.6).

    Parameters
    ----------
    samples : with rising days
    censor_day, censored_by : day and name of an event that ends the observation (transplant, re-infusion, death)

    Returns
    -------
    `None` where CAR-T cells were never detected
    """
    rule = rules or load_kinetics_rules()
    kept = [one for one in samples if one.day > 0 and (censor_day is None or one.day <= censor_day)]
    judged = [one for one in kept if persistence_at(one, rules=rule) is not Persistence.NOT_EVALUABLE]
    if not any(one.is_detected for one in judged):
        return None
    loss = loss_of_persistence(judged, rules=rule)
    if loss is not None:
        return Duration(days=loss, lost=True, censored_by="")
    ends = censor_day is not None and len(kept) < len([one for one in samples if one.day > 0])
    return Duration(days=judged[-1].day, lost=False, censored_by=censored_by if ends else "last sample")


# ------------------------------------------------------------------------------------------------------ B-cell aplasia


def is_aplastic(sample: Sample, *, rules: KineticsRules | None = None) -> bool | None:
    """B-cell aplasia by the absolute count, else by the share of lymphocytes; `None` without either (4.7)."""
    rule = (rules or load_kinetics_rules()).b_cells
    if sample.cd19_per_ul is not None:
        return sample.cd19_per_ul < rule.aplasia_per_ul
    return None if sample.b_fraction is None else sample.b_fraction < rule.aplasia_fraction


def recovery_day(samples: Sequence[Sample], *, rules: KineticsRules | None = None) -> float | None:
    """First day after infusion without aplasia, confirmed at least 14 days later, none aplastic between (4.7; W20)."""
    rule = rules or load_kinetics_rules()
    since: float | None = None
    for sample in samples:
        aplastic = is_aplastic(sample, rules=rule)
        if sample.day <= 0 or aplastic is None:
            continue
        if aplastic:
            since = None
            continue
        since = sample.day if since is None else since
        if sample.day - since >= rule.b_cells.confirm_days:
            return since
    return None


# ---------------------------------------------------------------------------------------------------------- one course


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitRow:
    """One sample of a course with what follows from it; a row of `kinetics_visits`."""

    subject: str
    course: int
    day: float
    visit: str
    car_per_ul: float | None
    ci_low: float | None
    ci_high: float | None
    lod_per_ul: float | None
    car_fraction: float | None
    lod_fraction: float | None
    persistence: Persistence
    cd19_per_ul: float | None
    b_fraction: float | None
    aplasia: bool | None
    cd4_cd8_ratio: float | None
    naive: float | None
    central_memory: float | None
    effector_memory: float | None
    temra: float | None
    copies_per_ug: float | None
    copies_per_cell: float | None
    reagent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinetics:
    """Parameters of one subject and course; a row of `kinetics` (its columns are these names, in this order).

    Concentrations in cells/µL, times in days, areas in cells/µL × days. `None` is not reached or not evaluable.
    `flags` joined with `|`, sorted.
    """

    subject: str
    course: int
    samples: int
    cmax: float | None
    tmax: float | None
    clast: float | None
    tlast: float | None
    auc0_28_linear: float | None
    auc0_28_linup_logdown: float | None
    auc0_28_status: Completeness | None
    auc0_28_to_day: float | None
    auc0_90_linear: float | None
    auc0_90_linup_logdown: float | None
    auc0_90_status: Completeness | None
    auc0_90_to_day: float | None
    lambda_z_per_day: float | None
    half_life_days: float | None
    adj_r2: float | None
    lambda_z_points: int | None
    lambda_z_accepted: bool | None
    persistence_last: Persistence | None
    loss_day: float | None
    persistence_days: float | None
    persistence_lost: bool | None
    censored_by: str
    bca_ever: bool | None
    bca_last: bool | None
    recovery_day: float | None
    early_recovery_within_180d: bool | None
    copies_cmax: float | None
    copies_tmax: float | None
    copies_auc0_28_linear: float | None
    flags: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Everything that follows from the samples of one course."""

    kinetics: Kinetics
    visits: tuple[VisitRow, ...]
    samples: tuple[Sample, ...]
    slope: TerminalSlope | None
    findings: tuple[QcFinding, ...]


KINETICS_COLUMNS = tuple(field.name for field in fields(Kinetics))
VISIT_COLUMNS = tuple(field.name for field in fields(VisitRow))
MEMORY = ("naive", "central_memory", "effector_memory", "temra")


def course_kinetics(
    samples: Sequence[Sample],
    *,
    subject: str,
    course: int = 1,
    censor_day: float | None = None,
    censored_by: str = "",
    rules: KineticsRules | None = None,
    car_rules: CarRules | None = None,
) -> Course:
    """All parameters of one infusion course.

    Parameters
    ----------
    samples : in any order; of several on one day the first counts, with a finding
    subject, course : for the rows
    censor_day, censored_by : an event that ends the observation of persistence

    Examples
    --------
    >>> one = course_kinetics([Sample(day=7, car_per_ul=80, lod_per_ul=0.2), Sample(day=28, car_per_ul=0.1,
    ...                       lod_per_ul=0.2)], subject="S1")
    >>> one.kinetics.cmax, one.kinetics.tmax, one.kinetics.auc0_28_linear, one.kinetics.half_life_days
    (80, 7, 1120.0, None)
    """
    rule = rules or load_kinetics_rules()
    findings: list[QcFinding] = []
    where = f"course {course}"

    def say(level: Level, code: str, message: str) -> None:
        findings.append(QcFinding(level=level, code=code, message=message, where=where))

    ordered = _one_a_day(samples, say)
    early = [one for one in ordered if one.day < 0]
    if early:
        text = f"{len(early)} of {len(ordered)} samples lie before the infusion (day 0): no part of the kinetics."
        say(Level.INFO, "NEGATIVE_DAY", text)
    zero = next((one for one in ordered if one.day == 0 and one.quantity), None)
    if zero is not None:
        text = f"Day 0 has {zero.quantity:.3g} CAR+ cells/µl; the value before the infusion counts as 0."
        say(Level.WARNING, "DAY_ZERO_POSITIVE", text)
    reagents = sorted({one.reagent for one in ordered if one.day > 0 and one.car_per_ul is not None and one.reagent})
    if len(reagents) > 1:
        text = f"The samples were stained with different reagents ({'; '.join(reagents)}): not interchangeable."
        say(Level.WARNING, "REAGENT_CHANGED", text)
    if any(one.car_per_ul is not None and one.lod_per_ul is None for one in ordered if one.day > 0):
        say(Level.WARNING, "LOD_MISSING", "A count has no LOD: any value above 0 is taken as detected.")
    points = [(one.day, quantity) for one in ordered if one.day > 0 and (quantity := one.quantity) is not None]
    peak = max(points, key=lambda point: (point[1], -point[0]), default=None)
    found = peak is not None and peak[1] > 0
    last = next((point for point in reversed(points) if point[1] > 0), None)
    slope = _slope(ordered, points, peak, say, rule) if peak is not None and found else None
    areas = {
        (auc.name, method): area_under_curve(points, to_day=auc.to_day, complete_from=auc.complete_from, method=method)
        for auc in rule.auc
        for method in Trapezoid
    }
    flags = {finding.code for finding in findings}
    for auc in rule.auc:
        area = areas[auc.name, Trapezoid.LINEAR]
        if area is not None and area.completeness is Completeness.PARTIAL:
            flags.add(f"PARTIAL_{auc.name.upper()}")
    judged = [one for one in ordered if one.day > 0]
    duration = persistence_duration(judged, censor_day=censor_day, censored_by=censored_by, rules=rule)
    aplasia = [state for one in judged if (state := is_aplastic(one, rules=rule)) is not None]
    recovered = recovery_day(ordered, rules=rule)
    early_loss = recovered is not None and recovered <= rule.b_cells.early_loss_day
    if early_loss:
        text = f"B cells are back from day {recovered:g}, up to day {rule.b_cells.early_loss_day:g}: early loss."
        say(Level.WARNING, "EARLY_B_CELL_RECOVERY", text)
        flags.add("EARLY_B_CELL_RECOVERY")
    if points and not found:
        flags.add("NEVER_DETECTED")
    copies = [(one.day, one.copies_per_ug) for one in judged if one.copies_per_ug is not None]
    top = max(copies, key=lambda point: (point[1], -point[0]), default=None)
    states = [persistence_at(one, rules=rule) for one in judged]

    def area_of(name: str, method: Trapezoid) -> Auc | None:
        return areas.get((name, method))

    short, long = area_of("auc0_28", Trapezoid.LINEAR), area_of("auc0_90", Trapezoid.LINEAR)
    kinetics = Kinetics(
        subject=subject,
        course=course,
        samples=len(judged),
        cmax=peak[1] if peak else None,
        tmax=peak[0] if peak and found else None,
        clast=last[1] if last else None,
        tlast=last[0] if last else None,
        auc0_28_linear=_value(short),
        auc0_28_linup_logdown=_value(area_of("auc0_28", Trapezoid.LINUP_LOGDOWN)),
        auc0_28_status=short.completeness if short else None,
        auc0_28_to_day=short.to_day if short else None,
        auc0_90_linear=_value(long),
        auc0_90_linup_logdown=_value(area_of("auc0_90", Trapezoid.LINUP_LOGDOWN)),
        auc0_90_status=long.completeness if long else None,
        auc0_90_to_day=long.to_day if long else None,
        lambda_z_per_day=slope.per_day if slope else None,
        half_life_days=slope.half_life_days if slope else None,
        adj_r2=slope.adj_r2 if slope else None,
        lambda_z_points=slope.points if slope else None,
        lambda_z_accepted=slope.accepted if slope else None,
        persistence_last=states[-1] if states else None,
        loss_day=duration.days if duration and duration.lost else None,
        persistence_days=duration.days if duration else None,
        persistence_lost=duration.lost if duration else None,
        censored_by=duration.censored_by if duration else "",
        bca_ever=any(aplasia) if aplasia else None,
        bca_last=aplasia[-1] if aplasia else None,
        recovery_day=recovered,
        early_recovery_within_180d=early_loss if aplasia else None,
        copies_cmax=top[1] if top else None,
        copies_tmax=top[0] if top and top[1] else None,
        copies_auc0_28_linear=_value(
            area_under_curve(
                copies,
                to_day=rule.auc[0].to_day,
                complete_from=rule.auc[0].complete_from,
                method=Trapezoid.LINEAR,
            )
        ),
        flags="|".join(sorted(flags)),
    )
    rows = tuple(_visit_row(one, subject, course, rule, car_rules or load_car_rules()) for one in ordered)
    return Course(kinetics=kinetics, visits=rows, samples=tuple(ordered), slope=slope, findings=tuple(findings))


def _one_a_day(samples: Sequence[Sample], say: _Say) -> list[Sample]:
    ordered: list[Sample] = []
    for one in sorted(samples, key=lambda sample: sample.day):
        if ordered and ordered[-1].day == one.day:
            say(Level.WARNING, "DUPLICATE_VISIT", f"Day {one.day:g} has two results; the first listed counts.")
            continue
        ordered.append(one)
    return ordered


def _slope(
    samples: Sequence[Sample],
    points: Sequence[tuple[float, float]],
    peak: tuple[float, float],
    say: _Say,
    rules: KineticsRules,
) -> TerminalSlope | None:
    """Fit the points that a person marked, else the last ones after the peak."""
    marked = {one.day for one in samples if one.terminal}
    if marked:
        chosen = [point for point in points if point[0] in marked and point[0] > peak[0] and point[1] > 0]
        if len(chosen) < len(marked):
            text = "Points marked for the terminal slope at or before the peak, or below the LOD, are left out."
            say(Level.WARNING, "TERMINAL_POINTS_LEFT_OUT", text)
        slope = fit_slope(chosen, rules=rules)
    else:
        slope = terminal_slope(points, tmax=peak[0], rules=rules)
    least = rules.lambda_z.min_adj_r2
    if slope is not None and not slope.accepted:
        why = f"adjusted R² {slope.adj_r2:.2f}, below {least:g}" if slope.adj_r2 < least else "the slope does not fall"
        say(Level.INFO, "HALF_LIFE_REFUSED", f"No half-life: {why} over {slope.points} points.")
    return slope


def _value(area: Auc | None) -> float | None:
    return area.value if area else None


def _visit_row(sample: Sample, subject: str, course: int, rules: KineticsRules, car_rules: CarRules) -> VisitRow:
    from flowmrd.quantification.cart import vector_copies

    memory = dict(sample.memory_shares)
    copies = sample.copies_per_ug
    return VisitRow(
        subject=subject,
        course=course,
        day=sample.day,
        visit=sample.label,
        car_per_ul=sample.car_per_ul,
        ci_low=sample.ci_low,
        ci_high=sample.ci_high,
        lod_per_ul=sample.lod_per_ul,
        car_fraction=sample.car_fraction,
        lod_fraction=sample.lod_fraction,
        persistence=persistence_at(sample, rules=rules),
        cd19_per_ul=sample.cd19_per_ul,
        b_fraction=sample.b_fraction,
        aplasia=is_aplastic(sample, rules=rules),
        cd4_cd8_ratio=sample.cd4_cd8_ratio,
        naive=memory.get("naive"),
        central_memory=memory.get("central_memory"),
        effector_memory=memory.get("effector_memory"),
        temra=memory.get("temra"),
        copies_per_ug=copies,
        copies_per_cell=None if copies is None else vector_copies(copies, rules=car_rules).copies_per_cell,
        reagent=sample.reagent,
    )


def subject_courses(entries: Iterable[tuple[str, int, Sample]]) -> tuple[Course, ...]:
    """Compute every subject's courses, in the order in which the subjects first occur.

    Courses are never joined. A re-infusion ends the observation of the course before it. Samples of one day that
    complement one another (CAR-T of one tube, B cells of another) become one; others are duplicates.

    Parameters
    ----------
    entries : subject, course and sample, in any order
    """
    grouped: dict[str, dict[int, list[Sample]]] = {}
    for subject, course, sample in entries:
        grouped.setdefault(subject, {}).setdefault(course, []).append(sample)
    courses: list[Course] = []
    for subject, own in grouped.items():
        ordered = [
            course_kinetics(joined_samples(samples), subject=subject, course=course)
            for course, samples in sorted(own.items())
        ]
        courses.extend(
            replace(one, kinetics=replace(one.kinetics, censored_by="re-infusion"))
            if one.kinetics.persistence_lost is False
            else one
            for one in ordered[:-1]
        )
        courses.extend(ordered[-1:])
    return tuple(courses)


def joined_samples(samples: Sequence[Sample]) -> list[Sample]:
    """Join samples of one day of which no value is given twice."""
    found: list[Sample] = []
    for sample in samples:
        place = next(
            (i for i, other in enumerate(found) if other.day == sample.day and _complements(other, sample)), None
        )
        if place is None:
            found.append(sample)
            continue
        first = found[place]
        found[place] = replace(
            first,
            **{
                field.name: getattr(sample, field.name)
                for field in fields(Sample)
                if field.name != "day" and not _given(getattr(first, field.name))
            },
        )
    return found


def _given(value: object) -> bool:
    return value is not None and value not in ("", ())


def _complements(first: Sample, second: Sample) -> bool:
    results = ("car_per_ul", "detected", "cd19_per_ul", "b_fraction", "copies_per_ug")
    return not any(_given(getattr(first, name)) and _given(getattr(second, name)) for name in results)
