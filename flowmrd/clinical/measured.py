"""A clinical table whose MRD columns come from measurements of a run; all other columns are the table's own.

Each visit takes the marrow sample of its own day, or the one nearest to it inside the visit's window. Where the table
and the run say different things it is a finding, never a silent choice: counts are the run's, days are the table's.
Pseudonyms are not repeated in messages; the table's row says where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from flowmrd.clinical.response import ResponseCall
from flowmrd.clinical.rules import Visit
from flowmrd.clinical.table import Assessment, ClinicalTable, by_patient
from flowmrd.errors import Level, QcFinding
from flowmrd.quantification.rare_events import Category

# What a run measures of a marrow; a table for `flowmrd run` need not have these columns.
MEASURED_COLUMNS = ("mrd_events", "mrd_denominator", "cd19_indep_gating", "blast_cd19_pos_pct")
# Findings of this module; they are made when a run's measurements meet the table, and kept with the completed table.
CODES = frozenset(
    {
        "CD19_GATING_CONFLICT",
        "CD19_SHARE_CONFLICT",
        "CD19_SHARE_FROM_TABLE",
        "MARROW_STATUS_DIFFERS",
        "MRD_CONFLICT",
        "MRD_FROM_TABLE",
        "MRD_NEEDS_REVIEW",
        "MRD_NOT_ASSESSED",
        "MRD_WITHHELD",
        "SAMPLE_AFTER_DEATH",
        "SAMPLE_NOT_IN_TABLE",
        "SEVERAL_MRD_SAMPLES",
        "SUBJECT_NOT_IN_TABLE",
        "VISIT_DAYS_DIFFER",
        "VISIT_WITHOUT_DAY",
    }
)
# A typed percentage has a decimal or two: this near to the measured one it is the same.
_SAME_PERCENT = Fraction(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The flow result of one marrow sample, as a run has it.

    `events` of `denominator_events` cells of the population `denominator`; both are `None` where the acquisition could
    not be assessed. `target_positive` of `target_cells` blasts have the therapy's target. `withheld` says why no result
    may be taken from the sample. `wording` is the result in words; `text` names file, digest, template and software.
    """

    acquisition: str
    subject: str
    study_day: int
    denominator: str
    events: int | None
    denominator_events: int | None
    target_independent: bool
    target_positive: int | None
    target_cells: int
    category: str
    mrd_neg_1e4: str
    call: str
    withheld: tuple[str, ...]
    wording: str
    text: str

    @property
    def usable(self) -> bool:
        """Whether a response may rest on it."""
        return self.events is not None and bool(self.denominator_events) and not self.withheld

    @property
    def target_percent(self) -> Fraction | None:
        """Blasts that have the target, percent."""
        if self.target_positive is None or not self.target_cells:
            return None
        return Fraction(100 * self.target_positive, self.target_cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTable:
    """The completed table, and the sample behind each of its rows (row of the table → sample)."""

    table: ClinicalTable
    samples: Mapping[int, Measured]


def with_measurements(table: ClinicalTable, measured: Sequence[Measured], visits: Sequence[Visit]) -> MeasuredTable:
    """Put the measurements of a run into a clinical table.

    Parameters
    ----------
    table : checked against `visits`; may hold MRD columns of its own, which count only where the run has no sample
    measured : one value a marrow sample, in any order
    visits : planned visits with their windows
    """
    windows = {visit.name: visit for visit in visits}
    groups = by_patient(table.assessments)
    own: dict[str, list[Measured]] = {}
    for one in measured:
        own.setdefault(one.subject, []).append(one)
    completed: dict[int, Assessment] = {}
    samples: dict[int, Measured] = {}
    findings: list[QcFinding] = []
    for patient, rows in groups.items():
        of_patient = own.get(patient, [])
        taken = {row.day for row in rows}
        used: set[str] = set()
        for row in rows:
            visit = windows[row.timepoint]
            candidates = _candidates(row, visit, of_patient, taken)
            used |= {one.acquisition for one in candidates}
            sample = _best(candidates)
            findings.extend(_sample_findings(row, sample, candidates))
            if sample is None or row.day is None:
                findings.extend(_unmeasured(row))
                continue
            findings.extend(_conflicts(row, sample))
            completed[row.row] = _completed(row, sample)
            samples[row.row] = sample
        left = [one for one in of_patient if one.acquisition not in used and one.study_day > 0]
        findings.extend(_unused(left, rows))
    strangers = sum(1 for name in own if name not in groups)
    if strangers:
        text = f"{strangers} measured {_of(strangers, 'subject has', 'subjects have')} no row in the clinical table."
        findings.append(QcFinding(level=Level.WARNING, code="SUBJECT_NOT_IN_TABLE", message=text, where=table.source))
    return MeasuredTable(
        table=replace(
            table,
            assessments=tuple(completed.get(one.row, one) for one in table.assessments),
            findings=(*table.findings, *sorted(findings, key=_place)),
        ),
        samples=samples,
    )


def agreement(calls: Sequence[ResponseCall], samples: Mapping[int, Measured]) -> tuple[QcFinding, ...]:
    """Compare each call's MRD category with that of the measurement behind it; rules that differ are a finding."""
    found = []
    for call in calls:
        sample = samples.get(call.row)
        if sample is None or not sample.usable or call.mrd is None:
            continue
        ours = (call.mrd.category.value, call.mrd.mrd_neg_1e4.value)
        # A lineage switch is the table's to say; the measurement cannot know it.
        switched = call.mrd.category is Category.UNDETECTED_GATING_INADEQUATE and sample.target_independent
        if ours != (sample.category, sample.mrd_neg_1e4) and not switched:
            text = (
                f"{sample.acquisition} was measured as {sample.category}, negative at 1e-4 {sample.mrd_neg_1e4}; "
                f"by the rules of the criteria it is {ours[0]}, {ours[1]}."
            )
            found.append(_finding("MRD_RULES_DIFFER", text, call.row))
    return tuple(found)


# ------------------------------------------------------------------------------------------------------- which sample


def _candidates(
    row: Assessment, visit: Visit, samples: Sequence[Measured], taken: set[int | None]
) -> tuple[Measured, ...]:
    """Samples of the row's day; else, of a visit in its window or without a day, those nearest inside the window."""
    same = tuple(one for one in samples if one.study_day == row.day)
    if same:
        return same
    if row.day is not None and not visit.holds(row.day):
        return ()
    inside = [one for one in samples if visit.holds(one.study_day) and one.study_day not in taken]
    if not inside:
        return ()
    target = visit.target_day if row.day is None else row.day
    nearest = max((one.study_day for one in inside), key=lambda day: (-abs(day - target), day))
    return tuple(one for one in inside if one.study_day == nearest)


def _best(candidates: Sequence[Measured]) -> Measured | None:
    """Of several samples of one day: one that shows most disease, else the one with the most cells; usable ones first.

    A tube that found nothing does not take back what another has found.
    """

    def order(one: Measured) -> tuple[bool, bool, Fraction, int, str]:
        size = one.denominator_events or 0
        found = one.category in {Category.DETECTED_BELOW_LLOQ, Category.QUANTIFIABLE}
        share = Fraction(one.events or 0, size) if found and size else Fraction(0)
        return (one.usable, found, share, size, one.acquisition)

    return max(candidates, key=order, default=None)


def _completed(row: Assessment, sample: Measured) -> Assessment:
    usable = sample.usable
    share = sample.target_percent if usable else None
    values: dict[str, object] = {
        "mrd_events": sample.events if usable else None,
        "mrd_denominator": sample.denominator_events if usable else None,
        "cd19_indep_gating": "Y" if usable and sample.target_independent else "N",
    }
    if share is not None or not usable:
        values["blast_cd19_pos_pct"] = share
    cells = {
        name: "" if value is None else f"{float(value):.10g}" if isinstance(value, Fraction) else str(value)
        for name, value in values.items()
    }
    return replace(
        row,
        **values,  # type: ignore[arg-type]
        cells={**row.cells, **cells},
        sources=dict.fromkeys(values, sample.acquisition),
        denominator=f"{sample.denominator} cells" if usable else "",
    )


# ------------------------------------------------------------------------------------------------------------- findings


def _finding(code: str, message: str, row: int, level: Level = Level.WARNING) -> QcFinding:
    return QcFinding(level=level, code=code, message=message, where=f"row {row}")


def _of(count: int, one: str, several: str) -> str:
    return one if count == 1 else several


def _place(finding: QcFinding) -> tuple[int, str]:
    number = finding.where.removeprefix("row ")
    return (int(number) if number.isdigit() else 0, finding.code)


def _sample_findings(row: Assessment, sample: Measured | None, candidates: Sequence[Measured]) -> Iterator[QcFinding]:
    if sample is None:
        return
    name = sample.acquisition
    if row.day is None:
        text = f"{name} is a marrow of day {sample.study_day}, but the table has no visit: the sample is not used."
        yield _finding("VISIT_WITHOUT_DAY", text, row.row, Level.VIOLATION)
        return
    if len(candidates) > 1:
        others = ", ".join(sorted(one.acquisition for one in candidates if one is not sample))
        yield _finding(
            "SEVERAL_MRD_SAMPLES",
            f"{name} counts for this visit, not {others}: most disease, else most cells.",
            row.row,
        )
    if sample.study_day != row.day:
        text = f"{name} is of day {sample.study_day}, the table's visit of day {row.day}: the table's day counts."
        yield _finding("VISIT_DAYS_DIFFER", text, row.row)
    if row.death_day is not None and sample.study_day > row.death_day:
        text = f"{name} is of day {sample.study_day}, after the day of death, {row.death_day}."
        yield _finding("SAMPLE_AFTER_DEATH", text, row.row, Level.VIOLATION)
    if row.bm_status != "done":
        text = f"{name} is a marrow, but bm_status is {row.bm_status}: flow counts, morphology is missing."
        yield _finding("MARROW_STATUS_DIFFERS", text, row.row)
    if sample.withheld:
        text = f"No MRD is taken from {name} without review: {'; '.join(sample.withheld)}.{_counted(sample)}"
        yield _finding("MRD_WITHHELD", text, row.row, Level.VIOLATION)
    elif not sample.usable:
        text = f"{name} could not be assessed: no flow result at this visit."
        yield _finding("MRD_NOT_ASSESSED", text, row.row, Level.VIOLATION)
    elif sample.call == "review":
        yield _finding("MRD_NEEDS_REVIEW", f"{name} waits for a person: the class rests on a proposal.", row.row)


def _counted(sample: Measured) -> str:
    """Say what a withheld sample has counted, for the reviewer: a relapse must not hide behind a faulty control."""
    if not sample.events or not sample.denominator_events:
        return ""
    share, percent = 100 * sample.events / sample.denominator_events, sample.target_percent
    lost = "" if percent is None else f", {float(percent):.3g}% of them with the therapy's target"
    return (
        f" It has counted {sample.events:,} blasts of {sample.denominator_events:,} {sample.denominator} cells "
        f"({share:.2g}%){lost}."
    )


def _conflicts(row: Assessment, sample: Measured) -> Iterator[QcFinding]:
    """What the table says otherwise; the run's value counts."""
    name = sample.acquisition
    given = (row.mrd_events, row.mrd_denominator)
    if given not in {(None, None), (sample.events, sample.denominator_events)}:
        typed = f"{row.mrd_events} of {row.mrd_denominator}"
        shown = f"{sample.events} of {sample.denominator_events}" if sample.usable else "no usable result"
        yield _finding(
            "MRD_CONFLICT",
            f"The table says {typed}, {name} says {shown}: the measurement counts.",
            row.row,
            Level.VIOLATION,
        )
    measured = "Y" if sample.target_independent else "N"
    typed = row.cells.get("cd19_indep_gating", "")
    if sample.usable and typed and typed != measured:
        text = f"The table says cd19_indep_gating {typed}, {name} {measured}: the measurement counts."
        yield _finding("CD19_GATING_CONFLICT", text, row.row)
    percent, share = row.blast_cd19_pos_pct, sample.target_percent if sample.usable else None
    if percent is None:
        return
    typed = row.cells["blast_cd19_pos_pct"]
    if share is not None and abs(percent - share) > _SAME_PERCENT:
        yield _finding(
            "CD19_SHARE_CONFLICT",
            f"The table says {typed}% of the blasts have CD19, {name} {float(share):.3g}%: the measurement counts.",
            row.row,
        )
    elif share is None and sample.usable:
        text = f"{name} gives no share of blasts with CD19; the table's {typed}% counts."
        yield _finding("CD19_SHARE_FROM_TABLE", text, row.row)
    elif share is None:
        text = f"The table's {typed}% of blasts with CD19 is not used: {name} has no usable result."
        yield _finding("CD19_SHARE_CONFLICT", text, row.row)


def _unmeasured(row: Assessment) -> Iterator[QcFinding]:
    if row.mrd_events is not None:
        yield _finding(
            "MRD_FROM_TABLE",
            f"The run has no marrow of this visit; the table's {row.mrd_events} of {row.mrd_denominator} count.",
            row.row,
        )


def _unused(left: Sequence[Measured], rows: Sequence[Assessment]) -> Iterator[QcFinding]:
    for one in sorted(left, key=lambda one: (one.study_day, one.acquisition)):
        text = f"{one.acquisition}, a marrow of day {one.study_day}, belongs to no row of the patient: it is not used."
        yield _finding("SAMPLE_NOT_IN_TABLE", text, rows[0].row)
