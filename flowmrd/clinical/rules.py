"""Response criteria as a document: named keys, visit windows, and ordered rules over a closed list of operators.

A rule is a sentence with clauses `field operator value`, joined by all and any. Nothing in a document is evaluated as
code. The order of rules is their precedence, and the last rule has no clause, so that exactly one rule fires for any
visit. Numbers are compared exactly, as the decimals that were written: 6.1 − 1.1 is 5 here, not 4.999….
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from flowmrd.documents.loader import key_path, load_toml, nearest, raise_faults, validate
from flowmrd.errors import CriteriaError, InputError
from flowmrd.quantification.rare_events import Category, load_rule_book

FOLDER = Path(__file__).parent / "criteria"
DEFAULT = "mbcart19"
NOT_DONE = "NOT_DONE"  # category of a visit without a flow result


class Response(StrEnum):
    """Response classes: from best to worst, then what is no assessment of the disease."""

    CR = "CR"
    CRH = "CRh"
    CRI = "CRi"
    MLFS = "MLFS"
    NR = "NR"
    PD = "PD"
    REL_BM = "REL-BM"
    REL_EM = "REL-EM"
    REL_COMB = "REL-COMB"
    POST_REL = "POST-REL"
    DEATH = "DEATH"
    NE = "NE"


class Flag(StrEnum):
    """Remarks on a response call; the only ones that exist."""

    CD19_GATED_ONLY = "CD19_GATED_ONLY"
    CNS2 = "CNS2"
    CONFIRM_REQUIRED = "CONFIRM_REQUIRED"
    COUNTS_MISSING = "COUNTS_MISSING"
    LINEAGE_SWITCH = "LINEAGE_SWITCH"
    MORPH_FLOW_DISCORDANT = "MORPH_FLOW_DISCORDANT"
    MRD_GE_1PCT = "MRD_GE_1PCT"
    MRD_LOW_POSITIVE = "MRD_LOW_POSITIVE"
    NO_MARROW = "NO_MARROW"
    NO_VISIT = "NO_VISIT"
    OUT_OF_WINDOW = "OUT_OF_WINDOW"
    PB_ONLY = "PB_ONLY"
    PLT_TRANSFUSED = "PLT_TRANSFUSED"


class Event(StrEnum):
    """What a visit can show for the survival analyses; death comes from the table's `death_day`."""

    RELAPSE = "RELAPSE"
    MRD_RELAPSE = "MRD_RELAPSE"


class Operator(StrEnum):
    """What a clause can ask. A missing value fulfils nothing but `missing`."""

    IS = "is"
    IS_NOT = "is_not"
    ONE_OF = "one_of"
    KNOWN = "known"
    MISSING = "missing"
    BELOW = "below"
    AT_MOST = "at_most"
    ABOVE = "above"
    AT_LEAST = "at_least"
    EXCEEDS = "exceeds"
    AT_LEAST_TIMES = "at_least_times"
    AT_LEAST_PLUS = "at_least_plus"


Number: TypeAlias = int | float

_COMPARE = {Operator.BELOW, Operator.AT_MOST, Operator.ABOVE, Operator.AT_LEAST, Operator.EXCEEDS}
RELATIVE = {Operator.AT_LEAST_TIMES, Operator.AT_LEAST_PLUS}
PRESENCE = {Operator.KNOWN, Operator.MISSING}
WORDS = {Operator.IS, Operator.IS_NOT, Operator.ONE_OF}

_YES_NO = ("Y", "N")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSpec:
    """A field that clauses may name: the table columns behind it, and its words (`None` = a number)."""

    columns: tuple[str, ...]
    words: tuple[str, ...] | None = None


# What the engine knows about one row; facts of a document add to it.
FIELDS: Mapping[str, FieldSpec] = {
    "visit_state": FieldSpec(columns=("day", "timepoint"), words=("none", "inside", "outside")),
    "died_by_window_end": FieldSpec(columns=("death_day", "timepoint"), words=_YES_NO),
    "day": FieldSpec(columns=("day",)),
    "blast_percent": FieldSpec(columns=("bm_blast_pct", "bm_status")),
    "baseline_blast_percent": FieldSpec(columns=("bl_bm_blast_pct",)),
    "flow_percent": FieldSpec(columns=("mrd_events", "mrd_denominator")),
    "mrd_events": FieldSpec(columns=("mrd_events",)),
    "mrd_denominator": FieldSpec(columns=("mrd_denominator",)),
    "mrd_fraction": FieldSpec(columns=("mrd_events", "mrd_denominator")),
    "mrd_detected": FieldSpec(columns=("mrd_events",), words=_YES_NO),
    "mrd_category": FieldSpec(
        columns=("mrd_events", "mrd_denominator", "cd19_indep_gating", "lineage_switch"),
        words=(NOT_DONE, *Category),
    ),
    "mrd_negative": FieldSpec(columns=("mrd_events", "mrd_denominator"), words=("Y", "N", "NE")),
    "cd19_independent": FieldSpec(columns=("cd19_indep_gating",), words=_YES_NO),
    "cd19_positive_percent": FieldSpec(columns=("blast_cd19_pos_pct",)),
    "confirm_tests": FieldSpec(columns=("confirm_tests_ge1pct",)),
    "blood_blast_percent": FieldSpec(columns=("pb_blast_pct",)),
    "neutrophils": FieldSpec(columns=("anc",)),
    "platelets": FieldSpec(columns=("plt",)),
    "platelets_unsupported": FieldSpec(columns=("plt", "plt_tx_7d")),
    "platelets_transfused": FieldSpec(columns=("plt_tx_7d",), words=_YES_NO),
    "cns": FieldSpec(columns=("cns",), words=("CNS1", "CNS2", "CNS3")),
    "extramedullary_disease": FieldSpec(columns=("emd",), words=("0", "1")),
    "baseline_extramedullary": FieldSpec(columns=("bl_emd",), words=("0", "1")),
    "lineage_switch": FieldSpec(columns=("lineage_switch",), words=_YES_NO),
    "timepoint": FieldSpec(columns=("timepoint",), words=()),
    "remission_before": FieldSpec(columns=(), words=_YES_NO),
    "relapsed_before": FieldSpec(columns=(), words=_YES_NO),
    "mrd_negative_before": FieldSpec(columns=(), words=_YES_NO),
}
# Known only once the rule has fired: for flags and events.
AFTER: Mapping[str, FieldSpec] = {
    "response": FieldSpec(columns=(), words=tuple(Response)),
    "step": FieldSpec(columns=(), words=()),
}
# Facts that become columns of the output; every document defines them.
COLUMN_FACTS: Mapping[str, tuple[str, ...]] = {
    "marrow_grade": ("M1", "M2", "M3", ""),
    "cd19_status": ("CD19pos", "CD19partial", "CD19neg", ""),
}


# ------------------------------------------------------------------------------------------------------- the document


# TOML has no words of its own: vocabularies are read from strings, everything else strictly.
_Operator = Annotated[Operator, Field(strict=False)]
_Response = Annotated[Response, Field(strict=False)]
_Flag = Annotated[Flag, Field(strict=False)]
_Event = Annotated[Event, Field(strict=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Clause(_Section):
    """`field operator value`; `at_least_times` and `at_least_plus` compare with the field `other`."""

    field: str
    operator: _Operator
    value: Number | str | list[str] | None = None
    other: str | None = None


class Case(_Section):
    """One line of a fact: the value it gives if its clauses hold."""

    id: str
    value: str
    all: list[Clause] = []
    any: list[Clause] = []


class Fact(_Section):
    """A small decision table. Later clauses may name its result, `name`, and the case that fired, `name_case`."""

    name: str
    sentence: str
    case: list[Case] = Field(min_length=1)


class Rule(_Section):
    """A response rule.

    `step` names the step of the source that it implements. A rule with `continues` decides what is shown, but the rules
    after it are still run, unseen, for what later visits need to know. `blank` leaves the row's own columns empty.
    `when` switches a rule by a named key. `label` is a remark such as a sub-class; it changes nothing.
    """

    id: str
    step: str
    sentence: str
    response: _Response
    all: list[Clause] = []
    any: list[Clause] = []
    flags: list[_Flag] = []
    blank: bool = False
    continues: bool = False
    when: dict[str, str] = {}
    label: str = ""


class FlagRule(_Section):
    """When a flag is raised beside those of the rule that fired."""

    flag: _Flag
    sentence: str
    all: list[Clause] = []
    any: list[Clause] = []


class EventRule(_Section):
    """When a visit is an event; the first that holds counts."""

    event: _Event
    sentence: str
    all: list[Clause] = []
    any: list[Clause] = []


class Visit(_Section):
    """A planned visit: days after infusion, ends included."""

    name: str
    target_day: int
    first_day: int
    last_day: int

    def holds(self, day: int) -> bool:
        """Whether the day is inside the window."""
        return self.first_day <= day <= self.last_day


class Head(_Section):
    """What the document is."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    title: str
    sources: list[str] = Field(min_length=1)
    notes: str = ""


class Keys(_Section):
    """The decisions that have a name; each is printed with every result."""

    count_boundary: Literal["strict", "inclusive"]
    cri_rule: Literal["either", "and_or"]
    platelets_after_transfusion: Literal["zero", "as_measured"]
    mrd_rules: str
    mrd_target_fraction: float = Field(gt=0, lt=1)
    responder_visit: str
    responder_classes: list[_Response] = Field(min_length=1)
    orr_with_cri_classes: list[_Response] = Field(min_length=1)
    mrdneg_cr_classes: list[_Response] = Field(min_length=1)
    remission_classes: list[_Response] = Field(min_length=1)
    efs_failure_classes: list[_Response]
    orr_denominator: Literal["infused", "evaluable"]
    allosct: Literal["censor", "restrict", "ignore"]
    horizon_day: int = Field(gt=0)
    landmark_day: int = Field(gt=0)
    maintained_days: int = Field(gt=0)
    safety_last_day: int = Field(gt=0)
    dose_low_per_kg: float = Field(gt=0)
    dose_high_per_kg: float = Field(gt=0)
    high_burden_logic: Literal["and", "or"]
    high_burden_marrow_above_percent: float
    high_burden_blood_at_least_per_ul: float


class Drug(_Section):
    """One drug of the lymphodepletion: dose a day and the days on which it is given (infusion = 0)."""

    name: str
    mg_per_m2: float = Field(gt=0)
    days: list[int] = Field(min_length=1)


class CriteriaDocument(_Section):
    """A criteria file as written."""

    criteria: Head
    keys: Keys
    visit: list[Visit] = Field(min_length=1)
    fact: list[Fact]
    rule: list[Rule] = Field(min_length=1)
    flag: list[FlagRule] = []
    event: list[EventRule] = []
    lymphodepletion: list[Drug] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """A checked criteria document; `digest` is the SHA-256 of the file's bytes."""

    document: CriteriaDocument
    digest: str
    source: str
    changed: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name of the criteria."""
        return self.document.criteria.id

    @property
    def version(self) -> str:
        """Version of the criteria."""
        return self.document.criteria.version

    @property
    def keys(self) -> Keys:
        """Named decisions."""
        return self.document.keys

    @property
    def visits(self) -> tuple[Visit, ...]:
        """Planned visits, in order."""
        return tuple(self.document.visit)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Rules that the keys leave in force, in order."""
        keys = self.keys
        return tuple(
            rule
            for rule in self.document.rule
            if all(getattr(keys, name) == wanted for name, wanted in rule.when.items())
        )

    def visit(self, name: str) -> Visit | None:
        """Return a visit by its name."""
        return next((visit for visit in self.document.visit if visit.name == name), None)

    def with_keys(self, **changes: str) -> Criteria:
        """Return these criteria with some keys set otherwise, for a contrast; the change is recorded.

        Examples
        --------
        >>> load_criteria().with_keys(cri_rule="and_or").keys.cri_rule
        'and_or'
        """
        keys = Keys.model_validate({**self.keys.model_dump(), **changes})
        document = self.document.model_copy(update={"keys": keys})
        return Criteria(document=document, digest=self.digest, source=self.source, changed={**self.changed, **changes})


def criteria_paths() -> dict[str, Path]:
    """Return the shipped criteria, id → file."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def load_criteria(which: str | Path | None = None) -> Criteria:
    """Read and check criteria: a shipped id, a TOML file, or the default.

    Raises
    ------
    CriteriaError : no such criteria, or the file cannot be read as TOML
    ExceptionGroup : of `CriteriaError`, every fault with its key path

    Examples
    --------
    >>> load_criteria().id
    'mbcart19'
    """
    shipped = criteria_paths()
    name = str(which) if which is not None else DEFAULT
    path = shipped.get(name, Path(name))
    if name not in shipped and not path.is_file():
        near = nearest(name, shipped)
        raise CriteriaError(
            f"expected one of {', '.join(shipped)} or a TOML file; got {name!r}",
            hint=near or "see docs/reference/criteria.md",
        )
    read = load_toml(path, error=CriteriaError)
    document = validate(CriteriaDocument, read.data, source=path.name, error=CriteriaError)
    raise_faults(_faults(document, path.name), source=path.name)
    return Criteria(document=document, digest=read.digest, source=path.name)


# ---------------------------------------------------------------------------------------------------------- the checks


def _faults(document: CriteriaDocument, source: str) -> list[InputError]:
    """Check what spans several keys: names, vocabularies, order, windows."""
    found: list[tuple[str, str, str]] = []
    found.extend(_visit_faults(document))
    found.extend(_key_faults(document))
    known: dict[str, FieldSpec] = dict(FIELDS)
    known["timepoint"] = FieldSpec(columns=("timepoint",), words=tuple(visit.name for visit in document.visit))
    for i, fact in enumerate(document.fact):
        where: list[str | int] = ["fact", i]
        if fact.name in known or fact.name in AFTER:
            found.append((key_path([*where, "name"]), f"the name {fact.name!r} is taken", "choose another"))
        found.extend(_total_faults([len(case.all) + len(case.any) for case in fact.case], [*where, "case"], "case"))
        found.extend(_unique_faults([case.id for case in fact.case], [*where, "case"]))
        for j, case in enumerate(fact.case):
            found.extend(_clause_faults(case, [*where, "case", j], known))
        if fact.name in COLUMN_FACTS:
            allowed = COLUMN_FACTS[fact.name]
            found.extend(
                (key_path([*where, "case", j, "value"]), f"expected one of {allowed}; got {case.value!r}", "")
                for j, case in enumerate(fact.case)
                if case.value not in allowed
            )
        known[fact.name] = FieldSpec(columns=(), words=tuple(dict.fromkeys(case.value for case in fact.case)))
        known[f"{fact.name}_case"] = FieldSpec(columns=(), words=tuple(case.id for case in fact.case))
    found.extend(
        ("fact", f"expected a fact {name!r}, which is a column of the output; got none", "")
        for name in COLUMN_FACTS
        if name not in known
    )
    found.extend(_rule_faults(document, known))
    after = known | dict(AFTER)
    after["step"] = FieldSpec(columns=(), words=tuple(dict.fromkeys(rule.step for rule in document.rule)))
    for i, flag in enumerate(document.flag):
        found.extend(_clause_faults(flag, ["flag", i], after))
    for i, event in enumerate(document.event):
        found.extend(_clause_faults(event, ["event", i], after))
    return [CriteriaError(message, source=source, where=where, hint=hint) for where, message, hint in found]


def _visit_faults(document: CriteriaDocument) -> Iterator[tuple[str, str, str]]:
    yield from _unique_faults([visit.name for visit in document.visit], ["visit"], "name")
    last: Visit | None = None
    for i, visit in enumerate(document.visit):
        if not visit.first_day <= visit.target_day <= visit.last_day:
            yield (
                key_path(["visit", i]),
                f"expected target_day from {visit.first_day} to {visit.last_day}; got {visit.target_day}",
                "",
            )
        if visit.first_day <= 0:
            yield key_path(["visit", i, "first_day"]), f"expected a day after infusion; got {visit.first_day}", ""
        if last is not None and visit.first_day <= last.last_day:
            yield (
                key_path(["visit", i, "first_day"]),
                f"expected a window after that of {last.name}, to day {last.last_day}; got {visit.first_day}",
                "windows are in order and do not overlap",
            )
        last = visit


def _key_faults(document: CriteriaDocument) -> Iterator[tuple[str, str, str]]:
    keys = document.keys
    yield from _word_faults(
        [keys.responder_visit], [visit.name for visit in document.visit], ["keys", "responder_visit"]
    )
    yield from _word_faults([keys.mrd_rules], list(load_rule_book().rule_set), ["keys", "mrd_rules"])
    if keys.dose_low_per_kg >= keys.dose_high_per_kg:
        yield (
            "keys.dose_low_per_kg",
            f"expected less than dose_high_per_kg; got {keys.dose_low_per_kg:g} and {keys.dose_high_per_kg:g}",
            "",
        )


def _rule_faults(document: CriteriaDocument, known: Mapping[str, FieldSpec]) -> Iterator[tuple[str, str, str]]:
    yield from _unique_faults([rule.id for rule in document.rule], ["rule"])
    # Rules that a key switches off must not leave a hole at the end.
    yield from _total_faults([len(rule.all) + len(rule.any) for rule in document.rule], ["rule"], "rule")
    for i, rule in enumerate(document.rule):
        where: list[str | int] = ["rule", i]
        yield from _clause_faults(rule, where, known)
        for name, wanted in rule.when.items():
            if name not in Keys.model_fields:
                yield key_path([*where, "when"]), f"unknown key {name!r}", nearest(name, Keys.model_fields)
            else:
                try:
                    Keys.model_validate({**document.keys.model_dump(), name: wanted})
                except ValueError:
                    yield key_path([*where, "when", name]), f"the key never has the value {wanted!r}", ""
        if rule.continues and not rule.blank:
            yield key_path([*where, "continues"]), "expected blank = true beside continues = true; got false", ""
    last = len(document.rule) - 1
    final = document.rule[last]
    if final.when or final.continues:
        yield key_path(["rule", last]), "expected a last rule that always decides; got `when` or `continues`", ""
    if final.response is not Response.NE:
        yield (
            key_path(["rule", last, "response"]),
            f"expected NE in the last rule; got {final.response}",
            "what no rule foresees is not evaluable",
        )


def _total_faults(clauses: Sequence[int], where: Sequence[str | int], word: str) -> Iterator[tuple[str, str, str]]:
    """Only the last row has no clause, so that exactly one always fires."""
    for i, count in enumerate(clauses):
        last = i == len(clauses) - 1
        if last and count:
            yield (
                key_path([*where, i]),
                f"expected a last {word} without clauses, so that one always fires; got {count}",
                "",
            )
        if not last and not count:
            yield (
                key_path([*where, i]),
                f"expected at least one clause; a {word} without clauses hides those after it",
                "",
            )


def _unique_faults(names: Sequence[str], where: Sequence[str | int], key: str = "id") -> Iterator[tuple[str, str, str]]:
    for i, name in enumerate(names):
        if name in names[:i]:
            yield key_path([*where, i, key]), f"expected a name of its own; {name!r} is used twice", ""


def _word_faults(
    words: Sequence[str], allowed: Sequence[str], where: Sequence[str | int]
) -> Iterator[tuple[str, str, str]]:
    for word in words:
        if word not in allowed:
            expected = ", ".join(str(one) for one in allowed)
            yield key_path(where), f"expected one of {expected}; got {word!r}", nearest(word, allowed)


def _clause_faults(
    row: Case | Rule | FlagRule | EventRule, where: Sequence[str | int], known: Mapping[str, FieldSpec]
) -> Iterator[tuple[str, str, str]]:
    for joint, clauses in (("all", row.all), ("any", row.any)):
        for i, clause in enumerate(clauses):
            yield from _one_clause_faults(clause, [*where, joint, i], known)


def _one_clause_faults(
    clause: Clause, where: Sequence[str | int], known: Mapping[str, FieldSpec]
) -> Iterator[tuple[str, str, str]]:
    spec = known.get(clause.field)
    if spec is None:
        yield key_path([*where, "field"]), f"unknown field {clause.field!r}", nearest(clause.field, known)
        return
    operator = clause.operator
    numeric = spec.words is None
    if operator in PRESENCE:
        if clause.value is not None or clause.other is not None:
            yield key_path(where), f"`{operator}` takes neither value nor other", ""
        return
    if numeric == (operator in WORDS):
        kind = "a number" if numeric else f"one of {', '.join(repr(word) for word in spec.words or ())}"
        yield key_path([*where, "operator"]), f"`{operator}` does not fit {clause.field}, which is {kind}", ""
        return
    if (clause.other is not None) != (operator in RELATIVE):
        needs = "needs" if operator in RELATIVE else "does not take"
        yield key_path([*where, "other"]), f"`{operator}` {needs} a field to compare with", ""
    if clause.other is not None and (other := known.get(clause.other)) is None:
        yield key_path([*where, "other"]), f"unknown field {clause.other!r}", nearest(clause.other, known)
    elif clause.other is not None and other is not None and other.words is not None:
        yield key_path([*where, "other"]), f"expected a number; {clause.other} is a word", ""
    if operator in WORDS:
        wanted = clause.value if isinstance(clause.value, list) else [clause.value]
        if isinstance(clause.value, list) != (operator is Operator.ONE_OF):
            yield (
                key_path([*where, "value"]),
                f"`{operator}` takes {'a list' if operator is Operator.ONE_OF else 'one word'}",
                "",
            )
        for word in wanted:
            if not isinstance(word, str) or word not in (spec.words or ()):
                expected = ", ".join(repr(one) for one in spec.words or ())
                yield key_path([*where, "value"]), f"expected one of {expected}; got {word!r}", ""
    elif not isinstance(clause.value, int | float):
        yield key_path([*where, "value"]), f"`{operator}` takes a number; got {clause.value!r}", ""
