"""One labelled file: gated as `flowmrd gate` does, and compared with its labels event by event."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import FcsError, InputError, Level, QcFinding
from flowmrd.evaluation.comparisons import Comparison
from flowmrd.evaluation.defaults import Defaults
from flowmrd.evaluation.labels import Reading, Survey, find_labels, read_labels, survey_labels
from flowmrd.evaluation.statistics import overlap
from flowmrd.fcs import open_fcs
from flowmrd.gating.template import GatingTemplate, Measurement
from flowmrd.pipeline import Acquisition, Analysis, analyse
from flowmrd.quantification.rare_events import Call, load_rules
from flowmrd.records import AcquisitionResult, MeasurementRow
from flowmrd.settings import Settings

# What a case can say of the method: there is disease to find, there is none, or too little for any method to find.
POSITIVE, NEGATIVE, NOT_ASSESSABLE = "positive", "negative", "not_assessable"
ASSESSED, REFUSED, UNLABELLED = "assessed", "refused", "unlabelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nominal:
    """What the simulator's truth document says besides the labels."""

    numerator_events: int | None
    denominator_events: int | None
    fraction: float | None
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of work: a file, its labels, what is known of it, or why it cannot be compared (`fault`).

    `diagnosis` is an earlier file of the same subject, to learn the subject's own blasts from; empty where none is.
    """

    name: str
    path: str
    labels: str
    survey: Survey | None
    nominal: Nominal | None
    groups: Mapping[str, str]
    fault: QcFinding | None
    diagnosis: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one method made of a file. Everything is `None` where the file was refused; `reason` then says why.

    `hit_events` are the true events among those called, `candidate_hit_events` among those under review (`None` where
    the template has no such population), `kept_true_events` those inside the gated denominator.
    """

    method: str
    status: str
    reason: str
    call: str
    category: str
    qc: str
    called_events: int | None = None
    hit_events: int | None = None
    candidate_events: int | None = None
    candidate_hit_events: int | None = None
    denominator: str
    denominator_events: int | None = None
    kept_true_events: int | None = None
    fraction: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    lod_fraction: float | None = None
    lloq_fraction: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    f1_with_candidates: float | None = None
    log10_error: float | None = None
    covered: bool | None = None
    covered_nominal: bool | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A file's truth and what each method made of it; the first outcome is the template's own."""

    case: str
    file: str
    sha256: str
    labels: str
    labels_sha256: str
    status: str
    reason: str
    events: int | None
    truth_events: int | None
    truth_denominator_events: int | None
    truth_denominator: str
    truth_fraction: float | None
    nominal_fraction: float | None
    level: float | None
    standing: str
    lod_events: int
    simulator_version: str
    groups: Mapping[str, str]
    outcomes: tuple[Outcome, ...]
    findings: tuple[QcFinding, ...]

    @property
    def outcome(self) -> Outcome | None:
        """Return what the template made of it."""
        return self.outcomes[0] if self.outcomes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How every file of a batch is gated and compared."""

    template: GatingTemplate
    analyte: str
    settings: Settings
    reading: Reading
    comparisons: tuple[Comparison, ...]
    reference: Path | None
    levels: tuple[float, ...]
    timed: bool

    @property
    def measurement(self) -> Measurement:
        """Return the measurement that is scored."""
        return next(one for one in self.template.measurement if one.analyte == self.analyte)

    @property
    def lod_events(self) -> int:
        """Return how many events make a detection."""
        one = self.measurement
        return one.lod_events or load_rules(one.rules).lod_events


# ------------------------------------------------------------------------------------------------------- preparing


def make_case(
    name: str,
    path: Path,
    labels: Path | None,
    *,
    defaults: Defaults,
    column: str | None,
    dataset: int | None,
    by: Sequence[str],
    groups: Mapping[str, str],
) -> Case:
    """Look at a file's labels and truth document; a fault becomes part of the case.

    Parameters
    ----------
    name : of the case, unique in the batch
    path, labels : the file and its labels; `None` looks beside the file
    defaults : the shipped assumptions
    column : of the labels
    dataset : of the file
    by : keys of the truth document to group results by
    groups : further groups of this file
    """
    survey: Survey | None = None
    nominal: Nominal | None = None
    found: dict[str, str] = {}
    fault: QcFinding | None = None
    where = ""
    try:
        labels = labels or find_labels(path, defaults.labels)
        where = labels.name
        nominal, found = _truth(path, defaults, by)
        try:
            events = open_fcs(path, dataset=dataset).event_count
        except (FcsError, OSError):
            events = None  # the pipeline says what is wrong with it
        survey = survey_labels(labels, defaults.labels, column=column, events=events)
    except InputError as error:
        fault = QcFinding(level=Level.VIOLATION, code="LABELS_REFUSED", message=str(error), where=where)
    return Case(
        name=name,
        path=str(path),
        labels="" if labels is None else str(labels),
        survey=survey,
        nominal=nominal,
        # In order of name: a kept score, which is read back from JSON, must not differ from a fresh one.
        groups=dict(sorted({**found, **groups}.items())),
        fault=fault,
    )


def _truth(path: Path, defaults: Defaults, by: Sequence[str]) -> tuple[Nominal | None, dict[str, str]]:
    """Read what the simulator wrote beside a file; any other document of that name is left alone."""
    place = path.with_name(f"{path.stem}{defaults.truth.suffix}")
    if not place.is_file():
        return None, {}
    try:
        document = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"not a readable truth document: {error}", source=place.name) from None
    words = defaults.truth
    version = _at(document, words.version)
    if not isinstance(version, str):
        return None, {}
    groups = {key: _text(_at(document, key)) for key in by}
    numerator, denominator = (_at(document, key) for key in (words.numerator, words.denominator))
    fraction = next((value for key in words.nominal if (value := _at(document, key)) is not None), None)
    nominal = Nominal(
        numerator_events=numerator if isinstance(numerator, int) else None,
        denominator_events=denominator if isinstance(denominator, int) else None,
        fraction=float(fraction) if isinstance(fraction, int | float) else None,
        version=version,
    )
    return nominal, groups


def _at(document: Any, path: str) -> Any:
    """Return what stands at a dotted path; `None` where nothing does."""
    node: Any = document
    for key in path.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------------- comparing


def score_case(case: Case, plan: Plan, defaults: Defaults) -> tuple[Score, AcquisitionResult | None]:
    """Gate one file by the plan's template and its comparisons, and compare each with the labels.

    Returns the score, and the gated result for the report (`None` where the labels cannot be used).
    """
    if case.fault is not None or case.survey is None:
        return _unlabelled(case, plan, case.fault), None
    started = time.perf_counter()
    analysis = _gated(case, plan, plan.template)
    seconds = time.perf_counter() - started
    result = analysis.result
    events = result.events if not analysis.failed else _event_count(case.path, plan.settings.dataset)
    if events is None:
        return _unread(case, plan, analysis), result
    try:
        labels = read_labels(Path(case.labels), plan.reading, defaults.labels, events=events)
    except InputError as error:
        where = Path(case.labels).name
        fault = QcFinding(level=Level.VIOLATION, code="LABELS_REFUSED", message=str(error), where=where)
        return _unlabelled(case, plan, fault, findings=result.findings), result
    true_events = int(np.count_nonzero(labels.positive))
    nominal = case.nominal
    if nominal is not None and nominal.numerator_events != true_events:
        nominal = None  # other labels than those that the truth document is about
    scored = None if analysis.failed else _row(analysis, plan.analyte)
    gated = None if scored is None else scored.denominator_events
    size, source = None, ""
    if labels.denominator is not None:
        size, source = int(np.count_nonzero(labels.denominator)), f"labels, {labels.denominator_column}"
    elif nominal is not None and nominal.denominator_events:
        size, source = nominal.denominator_events, "truth document"
    elif gated:
        size, source = gated, f"gated {plan.measurement.denominator}"
    fraction = true_events / size if size else None
    expected = nominal.fraction if nominal else None
    level = expected or fraction
    truth = _Truth(mask=labels.positive, events=true_events, fraction=fraction, nominal=expected)
    outcomes = [_outcome("template", analysis, plan, truth, defaults, seconds)]
    for one in plan.comparisons:
        started = time.perf_counter()
        other = _gated(case, plan, one.template)
        outcomes.append(_outcome(one.name, other, plan, truth, defaults, time.perf_counter() - started))
    score = Score(
        case=case.name,
        file=Path(case.path).name,
        sha256=result.file_sha256,
        labels=Path(case.labels).name,
        labels_sha256=case.survey.sha256,
        status=REFUSED if analysis.failed or scored is None else ASSESSED,
        reason=outcomes[0].reason,
        events=events,
        truth_events=true_events,
        truth_denominator_events=size,
        truth_denominator=source,
        truth_fraction=fraction,
        nominal_fraction=expected,
        level=nearest_level(level, plan.levels),
        standing=_standing(true_events, fraction, expected, plan),
        lod_events=plan.lod_events,
        simulator_version=case.nominal.version if case.nominal else "",
        groups=case.groups,
        outcomes=tuple(outcomes),
        findings=result.findings,
    )
    return score, result


def nearest_level(fraction: float | None, levels: Sequence[float]) -> float | None:
    """Return the level that is nearest on a logarithmic scale; 0 for no disease, `None` for an unknown fraction."""
    if fraction is None:
        return None
    if fraction <= 0:
        return 0.0
    return min(levels, key=lambda level: (abs(math.log10(fraction / level)), level))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Truth:
    mask: NDArray[np.bool_]
    events: int
    fraction: float | None
    nominal: float | None


def _gated(case: Case, plan: Plan, template: GatingTemplate) -> Analysis:
    acquisition = Acquisition(
        name=case.name, path=case.path, tube=template.template.id, diagnosis=case.diagnosis or None
    )
    if plan.reference is None:
        return analyse(acquisition, template, plan.settings)
    passed: dict[str, Any] = {"reference": plan.reference}
    return analyse(acquisition, template, plan.settings, **passed)


def _event_count(path: str, dataset: int | None) -> int | None:
    try:
        return open_fcs(path, dataset=dataset).event_count
    except (FcsError, OSError):
        return None


def _row(analysis: Analysis, analyte: str) -> MeasurementRow | None:
    """Return the row that is scored; `None` where this file has none, such as a route that needs a diagnosis."""
    return next((row for row in analysis.result.measurements if row.analyte == analyte), None)


def _standing(events: int, fraction: float | None, nominal: float | None, plan: Plan) -> str:
    """Say what the file can show: a draw without a single blast is no proof of specificity and no miss either."""
    if events == 0:
        return NOT_ASSESSABLE if nominal else NEGATIVE
    limit = plan.measurement.assay_lod
    below = limit is not None and fraction is not None and fraction < limit
    return NOT_ASSESSABLE if events < plan.lod_events or below else POSITIVE


def _outcome(method: str, analysis: Analysis, plan: Plan, truth: _Truth, defaults: Defaults, seconds: float) -> Outcome:
    row = _row(analysis, plan.analyte)
    taken = round(seconds, 3) if plan.timed else None
    if analysis.failed or analysis.gating is None or row is None:
        findings = analysis.result.findings
        reason = findings[-1].message if analysis.failed and findings else f"{plan.analyte} was not measured"
        return Outcome(
            method=method,
            status=REFUSED,
            reason=reason,
            call=row.call if row else str(Call.REVIEW),
            category=row.category if row else "NOT_DONE",
            qc=analysis.result.qc,
            denominator=row.denominator if row else plan.measurement.denominator,
            seconds=taken,
        )
    members = analysis.gating.memberships
    called = members.mask(row.numerator)
    shared = overlap(called, truth.mask)
    candidates: int | None = None
    candidate_hits: int | None = None
    widened = shared
    if defaults.populations.candidates in members:
        under_review = members.mask(defaults.populations.candidates) & ~called
        apart = overlap(under_review, truth.mask)
        candidates, candidate_hits = apart.found_events, apart.hit_events
        widened = overlap(called | under_review, truth.mask)
    error = None
    if row.fraction and truth.fraction:
        error = math.log10(row.fraction / truth.fraction)
    return Outcome(
        method=method,
        status=ASSESSED,
        reason="",
        call=row.call,
        category=row.category,
        qc=analysis.result.qc,
        called_events=shared.found_events,
        hit_events=shared.hit_events,
        candidate_events=candidates,
        candidate_hit_events=candidate_hits,
        denominator=row.denominator,
        denominator_events=row.denominator_events,
        kept_true_events=int(np.count_nonzero(members.mask(row.denominator) & truth.mask)),
        fraction=row.fraction,
        ci_low=row.ci_low,
        ci_high=row.ci_high,
        lod_fraction=row.lod_fraction,
        lloq_fraction=row.lloq_fraction,
        precision=shared.precision,
        recall=shared.recall,
        f1=shared.f1,
        f1_with_candidates=None if candidates is None else widened.f1,
        log10_error=error,
        covered=_covers(row.ci_low, row.ci_high, truth.fraction),
        covered_nominal=_covers(row.ci_low, row.ci_high, truth.nominal),
        seconds=taken,
    )


def _covers(low: float | None, high: float | None, fraction: float | None) -> bool | None:
    if low is None or high is None or fraction is None:
        return None
    return low <= fraction <= high


def _unlabelled(case: Case, plan: Plan, fault: QcFinding | None, *, findings: Sequence[QcFinding] = ()) -> Score:
    """Return the score of a file whose labels cannot be used: no figures, and why."""
    return _empty(case, plan, UNLABELLED, fault.message if fault else "", (*findings, *((fault,) if fault else ())))


def _unread(case: Case, plan: Plan, analysis: Analysis) -> Score:
    """Return the score of a file that cannot be opened: nobody knows whether its labels fit."""
    findings = analysis.result.findings
    return _empty(case, plan, REFUSED, findings[-1].message, findings, sha256=analysis.result.file_sha256)


def _empty(
    case: Case, plan: Plan, status: str, reason: str, findings: Sequence[QcFinding], *, sha256: str = ""
) -> Score:
    return Score(
        case=case.name,
        file=Path(case.path).name,
        sha256=sha256,
        labels=Path(case.labels).name if case.labels else "",
        labels_sha256=case.survey.sha256 if case.survey else "",
        status=status,
        reason=reason,
        events=None,
        truth_events=None,
        truth_denominator_events=None,
        truth_denominator="",
        truth_fraction=None,
        nominal_fraction=None,
        level=None,
        standing="",
        lod_events=plan.lod_events,
        simulator_version="",
        groups=case.groups,
        outcomes=(),
        findings=tuple(findings),
    )


# ------------------------------------------------------------------------------------------------------ kept scores


def score_to_json(score: Score) -> dict[str, Any]:
    """Return a score as plain JSON."""
    from dataclasses import asdict

    return asdict(score)


def score_from_json(data: Mapping[str, Any]) -> Score:
    """Undo `score_to_json`."""
    return Score(
        **{
            **data,
            "outcomes": tuple(Outcome(**one) for one in data["outcomes"]),
            "findings": tuple(QcFinding(**{**one, "level": Level(one["level"])}) for one in data["findings"]),
        }
    )


def is_found(outcome: Outcome) -> bool:
    """Return whether a method says without a person's help that there is disease."""
    return outcome.status == ASSESSED and outcome.call == str(Call.POSITIVE)
