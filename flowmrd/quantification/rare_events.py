"""Counts of rare events as results: fraction, exact interval, limits of this sample, category and wording.

Formulas and rules follow domain reference 3-sensitivity (sections named below); the numbers in them are data
(`rules/mrd.toml`). Fractions are 0…1 everywhere; percent appears only in sentences and where a name says so.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from flowmrd.errors import QuantificationError


class Category(StrEnum):
    """What the counts prove (3.4). Too few events is never "negative"."""

    UNDETECTED = "UNDETECTED"
    UNDETECTED_INSUFFICIENT = "UNDETECTED_INSUFFICIENT"
    UNDETECTED_GATING_INADEQUATE = "UNDETECTED_GATING_INADEQUATE"
    DETECTED_BELOW_LLOQ = "DETECTED_BELOW_LLOQ"
    QUANTIFIABLE = "QUANTIFIABLE"


class Negativity(StrEnum):
    """Whether the sample is MRD-negative at the target: yes, no, not evaluable."""

    YES = "Y"
    NO = "N"
    NOT_EVALUABLE = "NE"


class ElnClass(StrEnum):
    """MRD response of ELN ALL 2024 (Blood 143:1891)."""

    COMPLETE = "COMPLETE"
    FAILURE = "FAILURE"
    OTHER = "OTHER"


class Call(StrEnum):
    """What the automatic path proposes until a person has signed."""

    POSITIVE = "positive"
    NOT_DETECTED = "not_detected"
    REVIEW = "review"


class Hemodilution(StrEnum):
    """Whether blood has diluted the marrow (3.5)."""

    OK = "OK"
    UNCERTAIN = "UNCERTAIN"
    SUSPECT = "SUSPECT"


# --------------------------------------------------------------------------------------------------------------- rules


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _RuleSet(_Section):
    lod_events: int
    lloq_events: int
    source: str


class _Decision(_Section):
    target_fraction: float
    min_clustered_share: float
    confidence: float


class _Blank(_Section):
    normal_quantile: float
    min_blanks: int


class _Lloq(_Section):
    max_cv_percent: float
    max_bias_percent: float


class _Hemodilution(_Section):
    suspect_blood_fraction: float
    ok_blood_fraction: float
    suspect_failed_checks: int
    least_share: dict[str, float]


class RuleBook(_Section):
    """The shipped document of rules, as read from `rules/mrd.toml`."""

    version: str
    default: str
    rule_set: dict[str, _RuleSet]
    decision: _Decision
    blank: _Blank
    lloq: _Lloq
    wording: dict[str, str]
    hemodilution: _Hemodilution


@dataclass(frozen=True, slots=True, kw_only=True)
class RareEventRules:
    """When a count is a detection and when a number (3.1).

    Parameters
    ----------
    lod_events : detected from this many events
    lloq_events : quantifiable from this many events
    target_fraction : the decision line of `mrd_neg_1e4`
    name : name of the rule set, for the record

    Raises
    ------
    QuantificationError : limits that are not 1 <= LOD <= LLOQ, or a target outside 0…1
    """

    lod_events: int
    lloq_events: int
    target_fraction: float = 1e-4
    name: str = "custom"

    def __post_init__(self) -> None:
        if not 1 <= self.lod_events <= self.lloq_events:
            raise QuantificationError(
                f"event rules: expected 1 <= lod_events <= lloq_events; got {self.lod_events} and {self.lloq_events}"
            )
        if not 0 < self.target_fraction < 1:
            raise QuantificationError(f"event rules: expected a target fraction inside 0…1; got {self.target_fraction}")


def load_rule_book() -> RuleBook:
    """Read the rules that ship with flowmrd (with their sources)."""
    with (Path(__file__).parent / "rules" / "mrd.toml").open("rb") as stream:
        return RuleBook.model_validate(tomllib.load(stream))


def load_rules(name: str | None = None) -> RareEventRules:
    """Return a named rule set; the default one without a name.

    Raises
    ------
    QuantificationError : unknown name

    Examples
    --------
    >>> load_rules("euroflow_10_40").lloq_events
    40
    """
    book = load_rule_book()
    name = name or book.default
    if name not in book.rule_set:
        raise QuantificationError(f"event rules: expected one of {', '.join(book.rule_set)}; got {name!r}")
    found = book.rule_set[name]
    return RareEventRules(
        lod_events=found.lod_events,
        lloq_events=found.lloq_events,
        target_fraction=book.decision.target_fraction,
        name=name,
    )


# ----------------------------------------------------------------------------------------------------------- intervals


def clopper_pearson(numerator_events: int, denominator_events: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided binomial interval of a fraction (3.3).

    Parameters
    ----------
    numerator_events, denominator_events : counts, 0 <= numerator <= denominator, denominator > 0
    confidence : coverage, at least

    References
    ----------
    Clopper CJ, Pearson ES. Biometrika 1934;26:404-413.

    Examples
    --------
    >>> low, high = clopper_pearson(0, 750_000)
    >>> low, f"{high:.4e}"
    (0.0, '4.9185e-06')
    """
    from scipy.special import betaincinv

    n, size = _counts(numerator_events, denominator_events)
    tail = (1 - confidence) / 2
    low = float(betaincinv(n, size - n + 1, tail)) if n > 0 else 0.0
    high = float(betaincinv(n + 1, size - n, 1 - tail)) if n < size else 1.0
    return low, high


def poisson_interval(
    numerator_events: int, denominator_events: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Exact two-sided Poisson interval of a count, over the denominator (3.3).

    References
    ----------
    Garwood F. Biometrika 1936;28:437-442.
    """
    from scipy.special import gammaincinv

    n, size = _counts(numerator_events, denominator_events)
    tail = (1 - confidence) / 2
    low = float(gammaincinv(n, tail)) / size if n > 0 else 0.0
    return low, float(gammaincinv(n + 1, 1 - tail)) / size


def upper_limit(numerator_events: int, denominator_events: int, *, confidence: float = 0.95) -> float:
    """One-sided exact upper limit of a fraction; `1 - 0.05**(1/D)`, about 3/D, for no events (3.3)."""
    from scipy.special import betaincinv

    n, size = _counts(numerator_events, denominator_events)
    if n == 0:
        return -math.expm1(math.log1p(-confidence) / size)
    return float(betaincinv(n + 1, size - n, confidence)) if n < size else 1.0


def rule_of_three(denominator_events: int) -> float:
    """Approximate one-sided 95 % upper limit for no events: 3/D."""
    _, size = _counts(0, denominator_events)
    return 3 / size


def counting_cv_percent(events: int) -> float | None:
    """Imprecision of a count by Poisson statistics, 100/√n percent (3.1); `None` for no events."""
    return 100 / math.sqrt(events) if events > 0 else None


def _counts(numerator_events: int, denominator_events: int) -> tuple[int, int]:
    if not 0 <= numerator_events <= denominator_events or denominator_events < 1:
        raise QuantificationError(
            "counts: expected 0 <= numerator <= denominator and a denominator above 0; "
            f"got {numerator_events} of {denominator_events}"
        )
    return numerator_events, denominator_events


# ----------------------------------------------------------------------------------------------------- the measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class MrdResult:
    """One MRD measurement with everything it rests on.

    `fraction` and the limits are `None` where the denominator is empty. `lod_fraction`, `lloq_fraction` are the
    reported limits (the worse of this sample's and the assay's), `sample_*` this sample's own. `flags` are sorted.
    """

    numerator_events: int
    denominator_events: int
    denominator: str
    fraction: float | None
    ci_low: float | None
    ci_high: float | None
    sample_lod_fraction: float | None
    sample_lloq_fraction: float | None
    lod_fraction: float | None
    lloq_fraction: float | None
    category: Category
    mrd_neg_1e4: Negativity
    eln_class: ElnClass | None
    call: Call
    flags: tuple[str, ...]
    wording: str
    counting_cv_percent: float | None
    rules: RareEventRules

    @property
    def value_percent(self) -> float | None:
        """The number to report, in percent; `None` below the LLOQ."""
        return 100 * self.fraction if self.category is Category.QUANTIFIABLE and self.fraction is not None else None


def measure_mrd(
    *,
    numerator_events: int,
    denominator_events: int,
    rules: RareEventRules,
    analyte: str = "MRD",
    denominator: str = "nucleated cells",
    assay_lod: float | None = None,
    assay_lloq: float | None = None,
    cd19_independent: bool | None,
    after_cd19_therapy: bool,
    lineage_switch: bool = False,
    clustered_share: float | None = None,
    book: RuleBook | None = None,
) -> MrdResult:
    """Turn a pair of counts into an MRD result (3.1 to 3.4).

    Parameters
    ----------
    numerator_events, denominator_events : blasts and the gated denominator of the same tube
    rules : events for detection and quantification, and the decision line
    analyte : what is measured, for the sentence
    denominator : what the denominator is, in words
    assay_lod, assay_lloq : limits of the assay from its validation, as fractions; `None` = not validated
    cd19_independent : whether the blast gate was reached by a path that does not need the antigen; `None` = unknown,
        which counts as no
    after_cd19_therapy : whether the specimen was taken after therapy against that antigen
    lineage_switch : a B-lineage gate cannot see the leukaemia any more
    clustered_share : share of the numerator inside one density cluster; `None` = not determined
    book : rules of wording and of the cluster share; by default the shipped ones

    Raises
    ------
    QuantificationError : impossible counts, or assay limits that are not fractions

    Examples
    --------
    >>> result = measure_mrd(numerator_events=137, denominator_events=1_250_000, rules=load_rules(),
    ...                      cd19_independent=True, after_cd19_therapy=True)
    >>> result.category.value, result.mrd_neg_1e4.value, result.wording
    ('QUANTIFIABLE', 'N', 'MRD 0.011% of nucleated cells (95% CI 0.0092% to 0.013%)')
    """
    book = book or load_rule_book()
    for name, limit in (("assay_lod", assay_lod), ("assay_lloq", assay_lloq)):
        if limit is not None and not 0 < limit < 1:
            raise QuantificationError(f"{name}: expected a fraction inside 0…1; got {limit}")
    n, size = numerator_events, denominator_events
    if n < 0 or size < 0 or n > size:
        raise QuantificationError(f"counts: expected 0 <= numerator <= denominator; got {n} of {size}")
    gated_only = after_cd19_therapy and cd19_independent is not True
    inadequate = gated_only or lineage_switch
    flags = {"CD19_GATED_ONLY"} if gated_only else set()
    flags |= {"LINEAGE_SWITCH"} if lineage_switch else set()
    if size == 0:
        return MrdResult(
            numerator_events=0,
            denominator_events=0,
            denominator=denominator,
            fraction=None,
            ci_low=None,
            ci_high=None,
            sample_lod_fraction=None,
            sample_lloq_fraction=None,
            lod_fraction=None,
            lloq_fraction=None,
            category=Category.UNDETECTED_GATING_INADEQUATE if inadequate else Category.UNDETECTED_INSUFFICIENT,
            mrd_neg_1e4=Negativity.NOT_EVALUABLE,
            eln_class=None,
            call=Call.REVIEW,
            flags=tuple(sorted(flags | {"EMPTY_DENOMINATOR"})),
            wording=book.wording["EMPTY"].format(denominator=denominator),
            counting_cv_percent=None,
            rules=rules,
        )
    fraction = n / size
    sample_lod, sample_lloq = rules.lod_events / size, rules.lloq_events / size
    lod, lloq = max(sample_lod, assay_lod or 0.0), max(sample_lloq, assay_lloq or 0.0)
    category = _category(n, fraction, rules, lod=lod, lloq=lloq, inadequate=inadequate)
    negativity = _negativity(n, fraction, rules, sample_lod=sample_lod, sample_lloq=sample_lloq, inadequate=inadequate)
    detected = n >= rules.lod_events
    if detected and fraction < rules.target_fraction:
        flags.add("MRD_LOW_POSITIVE")
    if detected and assay_lod is not None and fraction < assay_lod:
        flags.add("BELOW_ASSAY_LOD")
    if n >= rules.lloq_events and assay_lloq is not None and fraction < assay_lloq:
        flags.add("BELOW_ASSAY_LLOQ")
    if detected and clustered_share is not None and clustered_share < book.decision.min_clustered_share:
        flags.add("EVENTS_SCATTERED")
    ci_low, ci_high = clopper_pearson(n, size, confidence=book.decision.confidence)
    wording = book.wording[category].format(
        analyte=analyte,
        fraction=_percent(fraction),
        denominator=denominator,
        denominator_events=f"{size:,}",
        lod=_percent(lod),
        lloq=_percent(lloq),
        target=f"{100 * rules.target_fraction:g}%",
        ci_low=_percent(ci_low),
        ci_high=_percent(ci_high),
    )
    return MrdResult(
        numerator_events=n,
        denominator_events=size,
        denominator=denominator,
        fraction=fraction,
        ci_low=ci_low,
        ci_high=ci_high,
        sample_lod_fraction=sample_lod,
        sample_lloq_fraction=sample_lloq,
        lod_fraction=lod,
        lloq_fraction=lloq,
        category=category,
        mrd_neg_1e4=negativity,
        eln_class=_eln_class(category, fraction, rules),
        call=_call(category, flags),
        flags=tuple(sorted(flags)),
        wording=wording,
        counting_cv_percent=counting_cv_percent(n),
        rules=rules,
    )


def _category(n: int, fraction: float, rules: RareEventRules, *, lod: float, lloq: float, inadequate: bool) -> Category:
    if n < rules.lod_events:
        # The order matters: an inadequate gate says nothing, however many cells were seen.
        if inadequate:
            return Category.UNDETECTED_GATING_INADEQUATE
        return Category.UNDETECTED_INSUFFICIENT if lod > rules.target_fraction else Category.UNDETECTED
    # A number below the assay's validated LLOQ is not reported as one, however many events carry it.
    return Category.QUANTIFIABLE if n >= rules.lloq_events and fraction >= lloq else Category.DETECTED_BELOW_LLOQ


def _negativity(
    n: int, fraction: float, rules: RareEventRules, *, sample_lod: float, sample_lloq: float, inadequate: bool
) -> Negativity:
    if n >= rules.lod_events and fraction >= rules.target_fraction:
        return Negativity.NO
    proof = sample_lod if n < rules.lod_events else sample_lloq
    return Negativity.YES if proof <= rules.target_fraction and not inadequate else Negativity.NOT_EVALUABLE


def _eln_class(category: Category, fraction: float, rules: RareEventRules) -> ElnClass:
    if category is Category.UNDETECTED:
        return ElnClass.COMPLETE
    if category is Category.QUANTIFIABLE and fraction >= rules.target_fraction:
        return ElnClass.FAILURE
    return ElnClass.OTHER


def _call(category: Category, flags: Iterable[str]) -> Call:
    if category is Category.UNDETECTED_GATING_INADEQUATE or {"BELOW_ASSAY_LOD", "EVENTS_SCATTERED"} & set(flags):
        return Call.REVIEW
    detected = category in {Category.DETECTED_BELOW_LLOQ, Category.QUANTIFIABLE}
    return Call.POSITIVE if detected else Call.NOT_DETECTED


def _percent(fraction: float) -> str:
    """Two significant digits, without an exponent (3.4)."""
    if fraction == 0:
        return "0%"
    percent = 100 * fraction
    decimals = max(0, 1 - math.floor(math.log10(float(f"{percent:.1e}"))))
    return f"{percent:.{decimals}f}%"


# -------------------------------------------------------------------------------------------------- required events


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredDenominator:
    """How many denominator events a target sensitivity takes (3.2).

    With `min_denominator` the rule is met on average, which succeeds only with `p_at_min`; `expected_events` and
    `denominator_events` give it with the assurance asked for.
    """

    min_denominator: int
    p_at_min: float
    expected_events: float
    denominator_events: int


def required_denominator(rule_events: int, *, target_fraction: float, assurance: float = 0.95) -> RequiredDenominator:
    """Events to acquire so that a fraction of `target_fraction` meets the event rule (3.2).

    Parameters
    ----------
    rule_events : events that the rule asks for
    target_fraction : true fraction that is to be found
    assurance : probability of finding it

    Examples
    --------
    >>> required_denominator(20, target_fraction=1e-4).denominator_events
    278793
    """
    from scipy.special import gammainc, gammaincinv

    if rule_events < 1 or not 0 < target_fraction < 1 or not 0 < assurance < 1:
        raise QuantificationError(
            "required denominator: expected at least 1 event, and target and assurance inside 0…1; "
            f"got {rule_events}, {target_fraction}, {assurance}"
        )
    # P(Poisson(m) >= k) is the regularised gamma function P(k, m).
    expected = float(gammaincinv(rule_events, assurance))
    return RequiredDenominator(
        min_denominator=_round_up(rule_events / target_fraction),
        p_at_min=float(gammainc(rule_events, rule_events)),
        expected_events=expected,
        denominator_events=_round_up(expected / target_fraction),
    )


def _round_up(value: float) -> int:
    # 20 / 1e-5 may come out a bit above the whole number that it is.
    return math.ceil(value * (1 - 1e-12))


# ------------------------------------------------------------------------------------------------------ assay limits


@dataclass(frozen=True, slots=True, kw_only=True)
class BlankLimits:
    """Limits of blank and detection of an assay, in the unit of the results (3.2, CLSI EP17-A2 style).

    `lod` uses the plain normal quantile, `lod_corrected` the one corrected for few results (`c_p` of EP17).
    """

    blank_mean: float
    blank_sd: float
    lob: float
    low_sd: float
    low_cv_percent: float
    lod: float
    lod_corrected: float


def blank_limits(
    blanks: Sequence[float], low_positives: Sequence[float], *, samples: int = 1, book: RuleBook | None = None
) -> BlankLimits:
    """LOB from blanks, LOD from blanks and low positives, both taken as normal (3.2).

    Parameters
    ----------
    blanks : results of specimens without disease, at least 20
    low_positives : results of low-positive specimens
    samples : number of different low-positive specimens; 1 where the results carry no specimen id
    book : quantile and least number of blanks; by default the shipped rules

    Raises
    ------
    QuantificationError : too few results, or results that are not numbers
    """
    rules = (book or load_rule_book()).blank
    blank, low = _results(blanks, "blanks", least=rules.min_blanks), _results(low_positives, "low positives", least=2)
    freedom = low.size - samples
    if samples < 1 or freedom < 1:
        raise QuantificationError(
            f"low positives: expected more results than specimens; got {low.size} results of {samples} specimens"
        )
    lob = float(blank.mean()) + rules.normal_quantile * float(blank.std(ddof=1))
    low_sd = float(low.std(ddof=1))
    corrected = rules.normal_quantile / (1 - 1 / (4 * freedom))
    return BlankLimits(
        blank_mean=float(blank.mean()),
        blank_sd=float(blank.std(ddof=1)),
        lob=lob,
        low_sd=low_sd,
        low_cv_percent=100 * low_sd / float(low.mean()) if low.mean() else math.inf,
        lod=lob + rules.normal_quantile * low_sd,
        lod_corrected=lob + corrected * low_sd,
    )


def rank_limit_of_blank(blanks: Sequence[float], *, book: RuleBook | None = None) -> float:
    """LOB of blanks that are not normal: their 95th percentile, by rank 0.5 + 0.95 B between order statistics (3.2).

    Examples
    --------
    >>> rank_limit_of_blank([float(value) for value in range(1, 21)])
    19.5
    """
    values = np.sort(_results(blanks, "blanks", least=(book or load_rule_book()).blank.min_blanks))
    rank = min(0.5 + 0.95 * values.size, float(values.size))
    below = math.floor(rank)
    above = min(below + 1, values.size)
    return float(values[below - 1] + (rank - below) * (values[above - 1] - values[below - 1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Replicates at one level of a dilution: the level's true fraction, each result, each numerator count."""

    expected: float
    results: tuple[float, ...]
    events: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LloqSearch:
    """Lowest level that meets the goals (`None`: no level does), and higher levels that do not."""

    lloq: float | None
    failing_above: tuple[float, ...]


def find_lloq(
    levels: Sequence[Level],
    *,
    rules: RareEventRules,
    max_cv_percent: float | None = None,
    max_bias_percent: float | None = None,
) -> LloqSearch:
    """Lowest level with imprecision and bias within the goals and enough events in each replicate (3.2).

    Parameters
    ----------
    levels : replicates of a dilution series, in any order
    rules : the least number of events
    max_cv_percent, max_bias_percent : goals; by default the shipped ones
    """
    goals = load_rule_book().lloq
    cv_goal = goals.max_cv_percent if max_cv_percent is None else max_cv_percent
    bias_goal = goals.max_bias_percent if max_bias_percent is None else max_bias_percent
    passing: list[float] = []
    failing: list[float] = []
    for level in levels:
        results = _results(level.results, f"level {level.expected:g}", least=2)
        if level.expected <= 0 or len(level.events) != results.size:
            raise QuantificationError(
                f"level {level.expected:g}: expected a level above 0 and one count a result; "
                f"got {results.size} results and {len(level.events)} counts"
            )
        mean = float(results.mean())
        good = (
            mean > 0
            and 100 * float(results.std(ddof=1)) / mean <= cv_goal
            and 100 * abs(mean / level.expected - 1) <= bias_goal
            and min(level.events) >= rules.lloq_events
        )
        (passing if good else failing).append(level.expected)
    lowest = min(passing, default=None)
    return LloqSearch(
        lloq=lowest, failing_above=tuple(sorted(value for value in failing if lowest is not None and value > lowest))
    )


def _results(values: Sequence[float], what: str, *, least: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    array = np.asarray(values, np.float64).reshape(-1)
    if array.size < least:
        raise QuantificationError(f"{what}: expected at least {least} results; got {array.size}")
    if not np.isfinite(array).all():
        raise QuantificationError(f"{what}: expected numbers; got NaN or infinity")
    return array


# -------------------------------------------------------------------------------------------------------- denominators


def per_nucleated(fraction_of_mnc: float, *, mnc_share_of_nucleated: float) -> float:
    """Convert a fraction of mononuclear cells into one of nucleated cells (domain reference 1-mrd 1.6)."""
    _check_share("mnc_share_of_nucleated", mnc_share_of_nucleated)
    return fraction_of_mnc * mnc_share_of_nucleated


def per_leukocytes(fraction_of_nucleated: float, *, nucleated_events: int, nucleated_red_events: int) -> float:
    """Convert a fraction of nucleated cells into one of leukocytes: nucleated without nucleated red cells (1.6)."""
    if not 0 <= nucleated_red_events < nucleated_events:
        raise QuantificationError(
            "leukocytes: expected 0 <= nucleated red cells < nucleated cells; "
            f"got {nucleated_red_events} of {nucleated_events}"
        )
    return fraction_of_nucleated * nucleated_events / (nucleated_events - nucleated_red_events)


def two_tube_fraction(
    *, target_events: int, lineage_events: int, reference_lineage_events: int, reference_denominator_events: int
) -> float:
    """Fraction of a denominator that only another tube measures, joined through a lineage gate in both tubes (1.6).

    Invalid where the target lies (partly) outside the lineage gate; then use `two_tube_fraction_by_singlets`.

    Parameters
    ----------
    target_events, lineage_events : target and lineage events of the MRD tube
    reference_lineage_events, reference_denominator_events : lineage and denominator events of the other tube
    """
    if min(lineage_events, reference_denominator_events) <= 0 or min(target_events, reference_lineage_events) < 0:
        raise QuantificationError(
            "two tubes: expected lineage events in the first and denominator events in the second; "
            f"got {lineage_events} and {reference_denominator_events}"
        )
    if target_events > lineage_events:
        raise QuantificationError(
            f"two tubes: expected the target inside the lineage gate; got {target_events} of {lineage_events}"
        )
    return target_events / lineage_events * (reference_lineage_events / reference_denominator_events)


def two_tube_fraction_by_singlets(
    *, target_events: int, singlet_events: int, reference_denominator_events: int, reference_singlet_events: int
) -> float:
    """Fraction of another tube's denominator, joined through the singlets of both tubes (1.6)."""
    if min(singlet_events, reference_denominator_events, reference_singlet_events) <= 0 or target_events < 0:
        raise QuantificationError(
            "two tubes: expected singlets in both and denominator events in the second; "
            f"got {singlet_events}, {reference_singlet_events} and {reference_denominator_events}"
        )
    return target_events / (singlet_events * (reference_denominator_events / reference_singlet_events))


def pool_replicates(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Pool replicate tubes of one specimen by adding counts; percentages are never averaged (1.6).

    Parameters
    ----------
    counts : (numerator, denominator) events of each tube, gated for the same phenotype and denominator
    """
    pairs = [_counts(*pair) for pair in counts]
    if not pairs:
        raise QuantificationError("replicates: expected at least one tube; got none")
    return sum(n for n, _ in pairs), sum(size for _, size in pairs)


# -------------------------------------------------------------------------------------------------------- hemodilution


def blood_fraction(*, rbc_marrow: float, rbc_blood: float, wbc_blood: float, nucleated_marrow: float) -> float:
    """Share of the marrow's nucleated cells that come from blood (3.5).

    Parameters
    ----------
    rbc_marrow, rbc_blood : red cells, both in the same unit
    wbc_blood, nucleated_marrow : leukocytes and nucleated cells, both in the same unit

    References
    ----------
    Holdrinet RS et al. Acta Haematol 1985;74:70.
    """
    if min(rbc_blood, nucleated_marrow) <= 0 or min(rbc_marrow, wbc_blood) < 0:
        raise QuantificationError(
            "blood fraction: expected counts above 0; "
            f"got red cells {rbc_marrow:g} and {rbc_blood:g}, nucleated {wbc_blood:g} and {nucleated_marrow:g}"
        )
    return rbc_marrow / rbc_blood * (wbc_blood / nucleated_marrow)


def mature_cell_bound(*, percent_marrow: float, percent_blood: float) -> float:
    """Upper bound of the blood fraction from a cell type that is mostly in blood, mature T cells (3.5)."""
    if percent_blood <= 0 or percent_marrow < 0:
        raise QuantificationError(
            f"blood fraction bound: expected cells in blood; got {percent_blood:g}%, and {percent_marrow:g}% in marrow"
        )
    return percent_marrow / percent_blood


def corrected_for_blood(value: float, *, blood: float) -> float:
    """What the value would be without the blood, `value / (1 - F)`: a comment, never the result (3.5)."""
    if not 0 <= blood < 1:
        raise QuantificationError(f"blood fraction: expected 0 <= F < 1 to correct by; got {blood:g}")
    return value / (1 - blood)


def failed_marrow_checks(shares: Mapping[str, float | None], *, book: RuleBook | None = None) -> tuple[str, ...]:
    """Names of the cell types that are too rare for an undiluted marrow (3.5); unmeasured ones do not count.

    Parameters
    ----------
    shares : cell type (a name under `hemodilution.least_share` of the rules) → share of nucleated cells
    book : least shares; by default the shipped rules
    """
    least = (book or load_rule_book()).hemodilution.least_share
    if unknown := sorted(set(shares) - set(least)):
        raise QuantificationError(f"marrow checks: expected among {', '.join(least)}; got {', '.join(unknown)}")
    return tuple(name for name, limit in least.items() if (share := shares.get(name)) is not None and share < limit)


def classify_hemodilution(
    *, blood: float | None, bound: float | None, failed_checks: int, book: RuleBook | None = None
) -> Hemodilution:
    """Judge dilution by blood (3.5). It comments on a result and never changes the number.

    Parameters
    ----------
    blood : of `blood_fraction`, or `None`
    bound : of `mature_cell_bound`, or `None`
    failed_checks : number of `failed_marrow_checks`
    book : limits; by default the shipped rules
    """
    limits = (book or load_rule_book()).hemodilution
    if blood is not None:
        if blood >= limits.suspect_blood_fraction:
            return Hemodilution.SUSPECT
        return Hemodilution.OK if blood < limits.ok_blood_fraction else Hemodilution.UNCERTAIN
    # A blood fraction is never above its bound. Two rare cell types are suspect (table of 3.5), unless the bound is
    # known and bounds nothing.
    if bound is not None and bound < limits.ok_blood_fraction:
        return Hemodilution.OK
    if (bound is None or bound < 1) and failed_checks >= limits.suspect_failed_checks:
        return Hemodilution.SUSPECT
    return Hemodilution.UNCERTAIN


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise QuantificationError(f"{name}: expected a share inside 0…1; got {value}")
