"""CAR+ T cells as a share of their parent: background of a control subtracted, interval, limits, category.

Formulas and rules follow domain reference 4-cart (sections named below); the numbers in them are data
(`rules/cart.toml`). Fractions are 0…1; percent appears only in sentences and where a name says so.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flowmrd.errors import QuantificationError
from flowmrd.quantification.rare_events import Call, Category

Interval = tuple[float, float]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Detection(_Section):
    lod_events: int
    lloq_events: int
    confidence: float
    preliminary_fraction: float
    max_lod_fraction: float


class _Control(_Section):
    quantile: float
    leak_warn: float
    drift_warn_log10: float
    t_with_b_warn: float
    recovery_note: float


class _Blasts(_Section):
    min_events: int
    cluster_width: float


class _Subsets(_Section):
    min_parent_events: int


class _Dose(_Section):
    min_per_kg: float
    max_per_kg: float


class _Qpcr(_Section):
    pg_per_diploid_genome: float
    pg_per_ug: float


class CarRules(_Section):
    """The shipped document of rules, as read from `rules/cart.toml`."""

    version: str
    detection: _Detection
    control: _Control
    blasts: _Blasts
    subsets: _Subsets
    dose: _Dose
    qpcr: _Qpcr
    wording: dict[str, str]


def load_car_rules() -> CarRules:
    """Read the rules that ship with flowmrd (with their sources)."""
    with (Path(__file__).parent / "rules" / "cart.toml").open("rb") as stream:
        return CarRules.model_validate(tomllib.load(stream))


# ----------------------------------------------------------------------------------------------------------- intervals


def wilson(events: int, parent_events: int, *, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion.

    Parameters
    ----------
    events, parent_events : counts, 0 <= events <= parent_events, parent_events > 0
    confidence : nominal coverage, two-sided

    References
    ----------
    Wilson EB. J Am Stat Assoc 1927;22:209-212.
    """
    _check_counts(events, parent_events)
    z = normal_quantile(confidence)
    p, n = events / parent_events, parent_events
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half) if events else 0.0, min(1.0, centre + half) if events < n else 1.0


def newcombe(
    events: int, parent_events: int, control_events: int, control_parent_events: int, *, confidence: float = 0.95
) -> Interval:
    """Hybrid score interval of the difference of two independent proportions, sample minus control (4.4; W10).

    Parameters
    ----------
    events, parent_events : CAR+ and parent events of the sample
    control_events, control_parent_events : the same of the control
    confidence : nominal coverage, two-sided

    References
    ----------
    Newcombe RG. Stat Med 1998;17:873-890, method 10.

    Examples
    --------
    >>> low, high = newcombe(96, 41_000, 12, 38_000)
    >>> f"{100 * low:.6f} {100 * high:.6f}"
    '0.154078 0.255980'
    """
    return difference_interval(
        events / parent_events,
        wilson(events, parent_events, confidence=confidence),
        control_events / control_parent_events,
        wilson(control_events, control_parent_events, confidence=confidence),
    )


def wald_difference(
    events: int, parent_events: int, control_events: int, control_parent_events: int, *, confidence: float = 0.95
) -> Interval:
    """Normal-approximation interval of the difference, for contrast only."""
    _check_counts(events, parent_events)
    _check_counts(control_events, control_parent_events)
    p, q = events / parent_events, control_events / control_parent_events
    half = normal_quantile(confidence) * math.sqrt(p * (1 - p) / parent_events + q * (1 - q) / control_parent_events)
    return p - q - half, p - q + half


def difference_interval(first: float, of_first: Interval, second: float, of_second: Interval) -> Interval:
    """Interval of first - second from the intervals of two independent estimates (variances recovered from limits).

    References
    ----------
    Zou GY, Donner A. Stat Med 2008;27:1693-1702 (MOVER).
    """
    low = first - second - math.hypot(first - of_first[0], of_second[1] - second)
    high = first - second + math.hypot(of_first[1] - first, second - of_second[0])
    return low, high


def product_interval(first: float, of_first: Interval, second: float, of_second: Interval) -> Interval:
    """Interval of a product of two independent estimates, of which the second is positive.

    Worked on relative distances to the limits, so that a lower limit at or below 0 stays there.
    """
    value = first * second
    if first <= 0 or second <= 0 or of_second[0] <= 0:
        low = of_first[0] * (of_second[1] if of_first[0] < 0 else max(of_second[0], 0.0))
        return low, max(of_first[1], 0.0) * of_second[1]
    low = value * (1 - math.hypot(1 - of_first[0] / first, 1 - of_second[0] / second))
    high = value * (1 + math.hypot(of_first[1] / first - 1, of_second[1] / second - 1))
    return (max(low, 0.0) if of_first[0] >= 0 else low), high


def quotient_interval(first: float, of_first: Interval, second: float, of_second: Interval) -> Interval:
    """Interval of first / second, two independent estimates; the second's limits are above 0."""
    if of_second[0] <= 0 or second <= 0:
        raise QuantificationError(f"quotient: expected a divisor above 0; got {second:g} ({of_second[0]:g} at least)")
    return product_interval(first, of_first, 1 / second, (1 / of_second[1], 1 / of_second[0]))


def normal_quantile(confidence: float) -> float:
    """Two-sided quantile of the standard normal, 1.96 for 95 %."""
    from statistics import NormalDist

    if not 0 < confidence < 1:
        raise QuantificationError(f"confidence: expected a value inside 0…1; got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _check_counts(events: int, parent_events: int) -> None:
    if not 0 <= events <= parent_events or parent_events < 1:
        raise QuantificationError(
            f"counts: expected 0 <= events <= parent and a parent above 0; got {events} of {parent_events}"
        )


# ------------------------------------------------------------------------------------------------------ the measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """CAR+ events and parent events of one control, gated as the sample is, above the sample's cut."""

    events: int
    parent_events: int

    def __post_init__(self) -> None:
        _check_counts(self.events, self.parent_events)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A fraction from all intensities (`flowmrd.gating.control`), with its interval, in place of net = p - q."""

    fraction: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CarResult:
    """One CAR+ fraction with everything it rests on.

    `sample_fraction` is p, `background_fraction` q, `net_fraction` p - q with its Newcombe interval `net_interval`
    (4.4). `fraction`, `ci_low`, `ci_high` are the result: the net value, or the estimate from all intensities where one
    was given. None is floored at 0; `shown_fraction` is, for display. `lod_fraction`, `lloq_fraction` are the reported
    limits (the worse of this sample's and the assay's).
    """

    events: int
    parent_events: int
    parent: str
    sample_fraction: float | None
    background_fraction: float | None
    net_fraction: float | None
    net_interval: Interval | None
    fraction: float | None
    ci_low: float | None
    ci_high: float | None
    sample_lod_fraction: float | None
    lod_fraction: float | None
    lloq_fraction: float | None
    category: Category
    call: Call
    preliminary: bool
    flags: tuple[str, ...]
    wording: str

    @property
    def detected(self) -> bool:
        """Whether CAR-T cells are proved."""
        return self.category in {Category.DETECTED_BELOW_LLOQ, Category.QUANTIFIABLE}

    @property
    def proved(self) -> bool:
        """Whether the detection holds: with a control's background, or without one far above any usual background."""
        least = load_car_rules().detection.preliminary_fraction
        return self.detected and (not self.preliminary or (self.ci_low is not None and self.ci_low >= least))

    @property
    def evaluable(self) -> bool:
        """Whether "not detected" would prove anything (4.6): there are parent events, and their LOD is low enough."""
        return self.category is not Category.UNDETECTED_INSUFFICIENT

    @property
    def shown_fraction(self) -> float | None:
        """The result, floored at 0 for display."""
        return None if self.fraction is None else max(0.0, self.fraction)

    @property
    def value_percent(self) -> float | None:
        """The number to report, in percent; `None` below the LLOQ."""
        return 100 * self.fraction if self.category is Category.QUANTIFIABLE and self.fraction is not None else None


def pooled(controls: Iterable[Background]) -> Background | None:
    """Add the counts of controls of one kind; `None` for none (percentages are never averaged)."""
    found = list(controls)
    if not found:
        return None
    return Background(events=sum(one.events for one in found), parent_events=sum(one.parent_events for one in found))


def measure_car(
    *,
    events: int,
    parent_events: int,
    controls: Sequence[Background] = (),
    estimate: Estimate | None = None,
    parent: str = "CD3+ T cells",
    assay_lob: float | None = None,
    assay_lod: float | None = None,
    assay_lloq: float | None = None,
    rules: CarRules | None = None,
) -> CarResult:
    """Turn counts of sample and control into a CAR+ fraction (4.4; W10).

    Parameters
    ----------
    events, parent_events : CAR+ and parent (T-cell) events of the sample
    controls : the same of each control of one kind, pooled by adding counts; none = preliminary, with no background
    estimate : fraction from all intensities, where the cut's counts alone would lose dim cells
    parent : what the parent is, in words
    assay_lob, assay_lod, assay_lloq : limits of the assay from its validation, fractions of the parent
    rules : event rules and words; by default the shipped ones

    Raises
    ------
    QuantificationError : impossible counts or limits

    Examples
    --------
    >>> result = measure_car(events=96, parent_events=41_000, controls=[Background(events=12, parent_events=38_000)])
    >>> result.category.value, f"{100 * result.net_fraction:.6f}"
    ('QUANTIFIABLE', '0.202567')
    """
    rules = rules or load_car_rules()
    limits = rules.detection
    for name, value in (("assay_lob", assay_lob), ("assay_lod", assay_lod), ("assay_lloq", assay_lloq)):
        if value is not None and not 0 < value < 1:
            raise QuantificationError(f"{name}: expected a fraction inside 0…1; got {value}")
    background = pooled(controls)
    flags = set() if background else {"CONTROL_ABSENT"}
    if parent_events == 0 and events == 0:
        return CarResult(
            events=0,
            parent_events=0,
            parent=parent,
            sample_fraction=None,
            background_fraction=background.events / background.parent_events if background else None,
            net_fraction=None,
            net_interval=None,
            fraction=None,
            ci_low=None,
            ci_high=None,
            sample_lod_fraction=None,
            lod_fraction=None,
            lloq_fraction=None,
            category=Category.UNDETECTED_INSUFFICIENT,
            call=Call.REVIEW,
            preliminary=background is None,
            flags=tuple(sorted(flags | {"EMPTY_DENOMINATOR"})),
            wording=rules.wording["EMPTY"].format(denominator=parent),
        )
    _check_counts(events, parent_events)
    p = events / parent_events
    of_p = wilson(events, parent_events, confidence=limits.confidence)
    if background is None:
        q, net, interval = None, p, of_p
    else:
        q = background.events / background.parent_events
        net = p - q
        interval = newcombe(
            events, parent_events, background.events, background.parent_events, confidence=limits.confidence
        )
    sample_lod = limits.lod_events / parent_events
    lod = max(sample_lod, assay_lod or 0.0)
    lloq = max(limits.lloq_events / parent_events, assay_lloq or 0.0)
    fraction, low, high = (
        (estimate.fraction, estimate.ci_low, estimate.ci_high) if estimate else (net, interval[0], interval[1])
    )
    # The counts above the cut must prove it, and so must the estimate, where there is one.
    proved = events >= limits.lod_events and interval[0] > 0 and low > 0 and min(net, fraction) > (assay_lob or 0.0)
    if proved and events >= limits.lloq_events and fraction >= (assay_lloq or 0.0):
        category = Category.QUANTIFIABLE
    elif proved:
        category = Category.DETECTED_BELOW_LLOQ
    else:
        category = Category.UNDETECTED_INSUFFICIENT if lod > limits.max_lod_fraction else Category.UNDETECTED
    if events >= limits.lod_events and not proved:
        flags.add("WITHIN_BACKGROUND")
    call = Call.POSITIVE if proved else Call.NOT_DETECTED
    if category is Category.UNDETECTED_INSUFFICIENT or (background is None and proved):
        call = Call.REVIEW
    wording = rules.wording[category].format(
        denominator=parent,
        denominator_events=f"{parent_events:,}",
        lod=_percent(lod),
        lloq=_percent(lloq),
        fraction=_percent(fraction),
        ci_low=_percent(max(0.0, low)),
        ci_high=_percent(high),
    )
    if q is not None and category is Category.QUANTIFIABLE:
        wording += f", {rules.wording['BACKGROUND'].format(background=_percent(q))}"
    if not proved and high > lod:
        # Not detected is not below the LOD, where background or few events leave more room.
        wording += f"; {rules.wording['upper_limit'].format(ci_high=_percent(high))}"
    return CarResult(
        events=events,
        parent_events=parent_events,
        parent=parent,
        sample_fraction=p,
        background_fraction=q,
        net_fraction=net,
        net_interval=interval,
        fraction=fraction,
        ci_low=low,
        ci_high=high,
        sample_lod_fraction=sample_lod,
        lod_fraction=lod,
        lloq_fraction=lloq,
        category=category,
        call=call,
        preliminary=background is None,
        flags=tuple(sorted(flags)),
        wording=f"{wording} ({rules.wording['PRELIMINARY']})" if background is None else wording,
    )


def subset_shares(
    counts: Mapping[str, int], parent_events: int, *, rules: CarRules | None = None
) -> dict[str, float | None]:
    """Shares of subsets of CAR+ cells; `None` for each where the parent has too few events to report (4.3)."""
    least = (rules or load_car_rules()).subsets.min_parent_events
    return {name: number / parent_events if parent_events >= least else None for name, number in counts.items()}


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2g}%" if abs(100 * fraction) < 99.5 else f"{100 * fraction:.3g}%"


# ------------------------------------------------------------------------------------------------------- qPCR and dose


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorCopies:
    """What copies per microgram of DNA mean per cell (4.8)."""

    genomes_per_ug: float
    copies_per_cell: float
    car_fraction_of_nucleated: float | None


def vector_copies(
    copies_per_ug: float, *, copies_per_car_cell: float | None = None, rules: CarRules | None = None
) -> VectorCopies:
    """Turn vector copies per microgram of DNA into copies per cell (4.8; W13).

    Parameters
    ----------
    copies_per_ug : of genomic DNA
    copies_per_car_cell : vector copy number of the product; `None` = not known, so no CAR+ fraction
    rules : mass of a genome; by default the shipped one
    """
    mass = (rules or load_car_rules()).qpcr
    if copies_per_ug < 0 or (copies_per_car_cell is not None and copies_per_car_cell <= 0):
        raise QuantificationError("vector copies: expected copies of at least 0 and a copy number above 0")
    genomes = mass.pg_per_ug / mass.pg_per_diploid_genome
    per_cell = copies_per_ug / genomes
    return VectorCopies(
        genomes_per_ug=genomes,
        copies_per_cell=per_cell,
        car_fraction_of_nucleated=None if copies_per_car_cell is None else per_cell / copies_per_car_cell,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dose:
    """CAR-T cells of a product, per kilogram of body weight, and whether the dose lies in the trial's range."""

    car_t_total: float
    per_kg: float
    in_range: bool


def dose_per_kg(
    *,
    viable_cells_per_ml: float,
    volume_ml: float,
    cd3_fraction: float,
    car_fraction_of_cd3: float,
    weight_kg: float,
    rules: CarRules | None = None,
) -> Dose:
    """Dose of a product (W17)."""
    limits = (rules or load_car_rules()).dose
    if weight_kg <= 0 or min(viable_cells_per_ml, volume_ml, cd3_fraction, car_fraction_of_cd3) < 0:
        raise QuantificationError("dose: expected a weight above 0 and no negative count or share")
    total = viable_cells_per_ml * volume_ml * cd3_fraction * car_fraction_of_cd3
    per_kg = total / weight_kg
    return Dose(car_t_total=total, per_kg=per_kg, in_range=limits.min_per_kg <= per_kg <= limits.max_per_kg)
