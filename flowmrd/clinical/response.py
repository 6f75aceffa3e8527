"""Clinical table → response calls: class, flags, events of every visit, each with its rule and evidence.

The procedure is domain reference 5-response 5.4; its numbers and order are the criteria document. This module knows
rows and what lies before them, the document knows medicine. MRD categories come from `flowmrd.quantification`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from flowmrd.clinical.engine import Engine, Line, Value, compile_criteria, in_words
from flowmrd.clinical.rules import FIELDS, NOT_DONE, Case, Clause, Criteria, Event, Flag, Response, Rule
from flowmrd.clinical.table import Assessment, ClinicalTable, by_patient, clinical_table_of
from flowmrd.errors import Level, QcFinding
from flowmrd.quantification.rare_events import (
    MrdResult,
    Negativity,
    RareEventRules,
    RuleBook,
    load_rule_book,
    load_rules,
    measure_mrd,
)

if TYPE_CHECKING:
    import polars as pl

# Columns of `flowmrd respond`, in order; all text, a null is an empty cell.
OUTPUT = (
    "patient_id",
    "timepoint",
    "response",
    "marrow_grade",
    "mrd_category",
    "mrd_neg_1e4",
    "mrdneg_cr",
    "responder_d28",
    "event",
    "cd19_status",
    "post_sct",
    "flags",
    "rule_id",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Why a rule fired: what was asked, and the cell that answers. `row` is the table's (the header is 1).

    `acquisition` is the measurement that the cell comes from; empty where it is the table's own.
    """

    statement: str
    column: str
    row: int
    cell: str
    acquisition: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseCall:
    """What one row of the table yields.

    `response` and the columns after it are what is shown (5.4a); `unseen` is the class that a visit outside its window
    has for later visits. `mrd` is the row's own measurement, also where the row is shown blank; `cd19_negative_event`
    says that a relapse or MRD relapse came with CD19-negative blasts.
    """

    row: int
    patient_id: str
    timepoint: str
    day: int | None
    response: Response
    marrow_grade: str
    mrd_category: str
    mrd_neg_1e4: Negativity
    mrdneg_cr: bool
    responder_d28: bool | None
    event: Event | None
    cd19_status: str
    post_sct: bool
    flags: tuple[Flag, ...]
    rule_id: str
    sentence: str
    label: str
    evidence: tuple[Evidence, ...]
    unseen: Response
    cd19_negative_event: bool
    mrd: MrdResult | None

    @property
    def in_window(self) -> bool:
        """Whether a visit took place in its window."""
        return self.day is not None and Flag.OUT_OF_WINDOW not in self.flags

    def cells(self) -> tuple[str | None, ...]:
        """Return the output row, in the order of `OUTPUT`."""
        return (
            self.patient_id,
            self.timepoint,
            self.response.value,
            self.marrow_grade or None,
            self.mrd_category or None,
            self.mrd_neg_1e4.value,
            _yes(self.mrdneg_cr),
            None if self.responder_d28 is None else _yes(self.responder_d28),
            None if self.event is None else self.event.value,
            self.cd19_status or None,
            _yes(self.post_sct),
            "|".join(flag.value for flag in self.flags) or None,
            self.rule_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """What earlier rows of the patient have shown, each with the row that showed it first."""

    remission: tuple[int, str] | None = None
    relapse: tuple[int, str] | None = None
    mrd_negative: tuple[int, str] | None = None


def respond(frame: pl.DataFrame, criteria: Criteria) -> pl.DataFrame:
    """Class every visit of a clinical table.

    Parameters
    ----------
    frame : columns of `flowmrd.clinical.table.COLUMNS`, as text or numbers; others are ignored
    criteria : of `flowmrd.clinical.rules.load_criteria`

    Returns
    -------
    one row an input row, in the input's order, with the columns of `OUTPUT`

    Raises
    ------
    ExceptionGroup : of `InputError`, every faulty cell
    """
    return response_frame(classify(clinical_table_of(frame, visits=criteria.visits), criteria))


def response_frame(calls: Sequence[ResponseCall]) -> pl.DataFrame:
    """Return calls as the table that `flowmrd respond` writes."""
    import polars as pl

    return pl.DataFrame([call.cells() for call in calls], schema=dict.fromkeys(OUTPUT, pl.String), orient="row")


def evidence_frame(calls: Sequence[ResponseCall], *, acquisitions: bool = False) -> pl.DataFrame:
    """Return one row a piece of evidence: the rule in words, what was asked, and the cell that answered.

    With `acquisitions`, a last column names the measurement that a cell comes from.
    """
    import polars as pl

    schema = {
        "patient_id": pl.String,
        "timepoint": pl.String,
        "response": pl.String,
        "rule_id": pl.String,
        "sentence": pl.String,
        "statement": pl.String,
        "row": pl.Int64,
        "column": pl.String,
        "cell": pl.String,
    }
    rows = [
        (
            call.patient_id,
            call.timepoint,
            call.response.value,
            call.rule_id,
            call.sentence,
            one.statement,
            one.row,
            one.column or None,
            one.cell or None,
            one.acquisition or None,
        )
        for call in calls
        for one in call.evidence
    ]
    frame = pl.DataFrame(rows, schema=schema | {"acquisition": pl.String}, orient="row")
    return frame if acquisitions else frame.drop("acquisition")


def alerts(calls: Sequence[ResponseCall]) -> tuple[QcFinding, ...]:
    """Return what must not be overlooked: each relapse that has lost the target of the therapy."""
    return tuple(
        QcFinding(
            level=Level.WARNING,
            code="CD19_NEGATIVE_RELAPSE",
            message=f"{'Relapse' if call.event is Event.RELAPSE else 'MRD relapse'} with CD19-negative blasts at "
            f"{call.timepoint}, day {call.day}: the target is lost; a second reader is mandatory.",
            where=f"row {call.row}",
        )
        for call in calls
        if call.cd19_negative_event
    )


def classify(table: ClinicalTable, criteria: Criteria) -> tuple[ResponseCall, ...]:
    """Class every visit of a checked table, in the order of its rows.

    Parameters
    ----------
    table : checked against the visits of the same criteria
    criteria : rules and named keys
    """
    engine = compile_criteria(criteria)
    rules = replace(load_rules(criteria.keys.mrd_rules), target_fraction=criteria.keys.mrd_target_fraction)
    book = load_rule_book()
    position = {visit.name: (visit.target_day, i) for i, visit in enumerate(criteria.visits)}
    calls: dict[int, ResponseCall] = {}
    for rows in by_patient(table.assessments).values():
        before = _Before()
        # An empty day stands for the target day; two visits on one day come in the order of the planned visits.
        for one in sorted(rows, key=lambda one: (_day_or(one, position[one.timepoint][0]), position[one.timepoint][1])):
            call = _call(one, before, engine, rules, book)
            calls[one.row] = call
            before = _after(call, one, before, criteria)
    return tuple(calls[one.row] for one in table.assessments)


def _day_or(one: Assessment, target: int) -> int:
    return target if one.day is None else one.day


def _after(call: ResponseCall, one: Assessment, before: _Before, criteria: Criteria) -> _Before:
    if one.day is None:
        return before
    shown = (one.row, call.unseen.value)
    negative = call.mrd is not None and call.mrd.mrd_neg_1e4 is Negativity.YES
    return _Before(
        remission=before.remission or (shown if call.unseen in criteria.keys.remission_classes else None),
        relapse=before.relapse or (shown if call.unseen in _RELAPSES else None),
        mrd_negative=before.mrd_negative or ((one.row, Negativity.YES.value) if negative else None),
    )


_RELAPSES = frozenset({Response.REL_BM, Response.REL_EM, Response.REL_COMB})


def _yes(value: bool) -> str:  # noqa: FBT001 -- the value itself, not a switch
    return "Y" if value else "N"


# -------------------------------------------------------------------------------------------------------------- one row


def _call(one: Assessment, before: _Before, engine: Engine, rules: RareEventRules, book: RuleBook) -> ResponseCall:
    criteria = engine.criteria
    mrd = _measure(one, rules, book)
    known = _known(one, before, mrd, criteria)
    because: dict[str, _Reasons] = {}
    for fact, cases in engine.facts:
        case, reasons = _first(cases, known)
        known[fact.name] = case.value
        known[f"{fact.name}_case"] = case.id
        because[fact.name] = because[f"{fact.name}_case"] = reasons
    fired = _fired(engine, known)
    rule, line = fired[0]
    unseen = fired[-1][0].response
    evidence = tuple(_evidence(line.reasons(known), known, because, one, before, criteria))
    # Flags and events look at the row's own class, shown or not.
    known["response"], known["step"] = unseen.value, fired[-1][0].step
    event = None
    if one.day is not None:
        event = next((Event(row.event) for row, clauses in engine.events if clauses.holds(known)), None)
    flags = set(rule.flags)
    if not rule.blank:
        flags |= {row.flag for row, clauses in engine.flags if clauses.holds(known)}
    blank = rule.blank
    negativity = mrd.mrd_neg_1e4 if mrd is not None and not blank else Negativity.NOT_EVALUABLE
    keys = criteria.keys
    return ResponseCall(
        row=one.row,
        patient_id=one.patient_id,
        timepoint=one.timepoint,
        day=one.day,
        response=rule.response,
        marrow_grade="" if blank else str(known["marrow_grade"]),
        mrd_category="" if blank else str(known["mrd_category"]),
        mrd_neg_1e4=negativity,
        mrdneg_cr=rule.response in keys.mrdneg_cr_classes and negativity is Negativity.YES,
        responder_d28=rule.response in keys.responder_classes if one.timepoint == keys.responder_visit else None,
        event=event,
        cd19_status="" if blank else str(known["cd19_status"]),
        post_sct=one.day is not None and one.allosct_day is not None and one.allosct_day < one.day,
        flags=tuple(sorted(flags)),
        rule_id=rule.id,
        sentence=rule.sentence,
        label=rule.label,
        evidence=evidence,
        unseen=unseen,
        cd19_negative_event=event is not None and known["cd19_status"] == "CD19neg",
        mrd=mrd,
    )


class _Reasons(NamedTuple):
    """Why a fact is as it is: clauses that hold, or where no case but the last held, what the others asked."""

    clauses: tuple[Clause, ...]
    last: bool


def _first(cases: Sequence[tuple[Case, Line]], known: Mapping[str, Value]) -> tuple[Case, _Reasons]:
    asked: list[Clause] = []
    for case, line in cases:
        if line.holds(known):
            last = not (case.all or case.any)
            return case, _Reasons(tuple(asked) if last else line.reasons(known), last)
        asked.extend((*case.all, *case.any))
    raise AssertionError("the last case of a fact has no clause")


def _fired(engine: Engine, known: Mapping[str, Value]) -> list[tuple[Rule, Line]]:
    """Return the rule that decides what is shown, and after rules that continue the one that decides unseen."""
    fired: list[tuple[Rule, Line]] = []
    for rule, line in engine.rules:
        if line.holds(known):
            fired.append((rule, line))
            if not rule.continues:
                return fired
    raise AssertionError("the last rule has no clause")


def _measure(one: Assessment, rules: RareEventRules, book: RuleBook) -> MrdResult | None:
    if one.mrd_events is None or one.mrd_denominator is None:
        return None
    return measure_mrd(
        numerator_events=one.mrd_events,
        denominator_events=one.mrd_denominator,
        rules=rules,
        denominator=one.denominator or "counted cells",  # a table does not say which
        cd19_independent=one.cd19_indep_gating == "Y",
        after_cd19_therapy=True,  # after infusion every visit is (3-sensitivity 3.4)
        lineage_switch=one.lineage_switch == "Y",
        book=book,
    )


def _known(one: Assessment, before: _Before, mrd: MrdResult | None, criteria: Criteria) -> dict[str, Value]:
    """What clauses may ask about one row; `None` is missing."""
    visit = criteria.visit(one.timepoint)
    assert visit is not None
    state = "none" if one.day is None else "inside" if visit.holds(one.day) else "outside"
    fraction = detected = None
    if mrd is not None:
        fraction = Fraction(mrd.numerator_events, mrd.denominator_events)
        detected = _yes(mrd.numerator_events >= mrd.rules.lod_events)
    unsupported = one.plt
    if one.plt is not None and one.plt_tx_7d == "Y" and criteria.keys.platelets_after_transfusion == "zero":
        unsupported = Fraction(0)
    return {
        "visit_state": state,
        "died_by_window_end": _yes(one.death_day is not None and one.death_day <= visit.last_day),
        "day": None if one.day is None else Fraction(one.day),
        "blast_percent": one.blasts,
        "baseline_blast_percent": one.bl_bm_blast_pct,
        "flow_percent": None if fraction is None else 100 * fraction if detected == "Y" else Fraction(0),
        "mrd_events": None if one.mrd_events is None else Fraction(one.mrd_events),
        "mrd_denominator": None if one.mrd_denominator is None else Fraction(one.mrd_denominator),
        "mrd_fraction": fraction,
        "mrd_detected": detected,
        "mrd_category": NOT_DONE if mrd is None else mrd.category.value,
        "mrd_negative": Negativity.NOT_EVALUABLE.value if mrd is None else mrd.mrd_neg_1e4.value,
        "cd19_independent": one.cd19_indep_gating,
        "cd19_positive_percent": one.blast_cd19_pos_pct,
        "confirm_tests": Fraction(one.confirm_tests_ge1pct),
        "blood_blast_percent": one.pb_blast_pct,
        "neutrophils": one.anc,
        "platelets": one.plt,
        "platelets_unsupported": unsupported,
        "platelets_transfused": one.plt_tx_7d,
        "cns": one.cns,
        "extramedullary_disease": one.emd,
        "baseline_extramedullary": one.bl_emd,
        "lineage_switch": one.lineage_switch,
        "timepoint": one.timepoint,
        "remission_before": _yes(before.remission is not None),
        "relapsed_before": _yes(before.relapse is not None),
        "mrd_negative_before": _yes(before.mrd_negative is not None),
    }


_HISTORY = {"remission_before": "remission", "relapsed_before": "relapse", "mrd_negative_before": "mrd_negative"}


def _evidence(
    clauses: Sequence[Clause],
    known: Mapping[str, Value],
    because: Mapping[str, _Reasons],
    one: Assessment,
    before: _Before,
    criteria: Criteria,
) -> Iterator[Evidence]:
    """Follow clauses through facts down to the cells that made them hold."""
    seen: set[tuple[str, str, int]] = set()

    def follow(clauses: Sequence[Clause], instead: str = "") -> Iterator[Evidence]:
        for clause in clauses:
            statement = instead or in_words(clause, criteria)
            if clause.field in because:
                yield from once(Evidence(statement=statement, column="", row=one.row, cell=str(known[clause.field])))
                name = clause.field.removesuffix("_case").replace("_", " ")
                reasons = because[clause.field]
                yield from follow(reasons.clauses, f"no other case of {name}" if reasons.last else "")
                continue
            if clause.field in _HISTORY:
                earlier = getattr(before, _HISTORY[clause.field])
                row, cell = earlier or (one.row, "none before")
                yield from once(Evidence(statement=statement, column="", row=row, cell=cell))
                continue
            columns = FIELDS[clause.field].columns + (FIELDS[clause.other].columns if clause.other else ())
            for column in columns:
                source = one.sources.get(column, "")
                yield from once(
                    Evidence(
                        statement=statement, column=column, row=one.row, cell=one.cells[column], acquisition=source
                    )
                )

    def once(evidence: Evidence) -> Iterator[Evidence]:
        key = (evidence.statement, evidence.column, evidence.row)
        if key not in seen:
            seen.add(key)
            yield evidence

    yield from follow(clauses)
