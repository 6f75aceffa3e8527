"""Adverse events: read, grades that are mechanical derived and compared with the entered ones, incidence tabulated.

The toolkit does not diagnose toxicity. Rules and their sources are data (`safety.toml`, domain reference 5-response
5.7). An entered grade stays as it was entered; where its components say otherwise that is a finding.
"""

from __future__ import annotations

import re
import statistics
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from flowmrd.clinical.outcomes import Subject
from flowmrd.clinical.survival import Rate, rate
from flowmrd.documents.loader import CsvRow, nearest, raise_faults, read_csv
from flowmrd.errors import InputError, Level, QcFinding

REQUIRED = ("patient_id", "category", "term", "onset_day", "grade", "source")
CRS_COLUMNS = ("fever", "fever_masked", "temperature_c", "hypotension", "oxygen")
ICANS_COLUMNS = ("ice", "capd", "age_years", "consciousness", "seizure", "motor_weakness", "edema")
OTHER_COLUMNS = ("rcl", "clone_percent", "donor_chimerism_percent", "cd19_per_ul", "igg_g_l", "ivig")
EVENT_COLUMNS = (*REQUIRED, *CRS_COLUMNS, *ICANS_COLUMNS, *OTHER_COLUMNS)
_YES = {"Y": True, "YES": True, "TRUE": True, "1": True, "N": False, "NO": False, "FALSE": False, "0": False}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _Category(_Section):
    id: str
    title: str
    aliases: list[str]


class _Step(_Section):
    least: int = Field(alias="from")
    grade: int


class _Infusion(_Section):
    last_onset_day: int


class _Vector(_Section):
    rcl_visits: list[str]
    dominant_clone_percent: float


class _Crs(_Section):
    fever_celsius: float
    fever: int
    hypotension: dict[str, int]
    oxygen: dict[str, int]


class _Icans(_Section):
    ice: list[_Step]
    consciousness: dict[str, int]
    seizure: dict[str, int]
    motor_weakness: dict[str, int]
    edema: dict[str, int]
    capd_below_years: int
    capd: list[_Step]


class SafetyRules(_Section):
    """The shipped document of safety rules."""

    version: str
    category: list[_Category]
    infusion_reaction: _Infusion
    vector: _Vector
    crs: _Crs
    icans: _Icans

    def category_of(self, written: str) -> str | None:
        """Return the id of a category as it is written in a table; `None` is unknown."""
        wanted = re.sub(r"[\s_]+", " ", written.strip().casefold())
        for one in self.category:
            if wanted in {one.id.replace("_", " "), one.id, *one.aliases}:
                return one.id
        return None

    def title_of(self, category: str) -> str:
        """Return the title of a category by its id."""
        return next(one.title for one in self.category if one.id == category)


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedGrade:
    """A grade by rule: `grade` where the components decide it, else `None` with the least it can be."""

    grade: int | None
    at_least: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdverseEvent:
    """One row of the table of adverse events.

    `grade` is the entered one, or where none was entered the derived one. `counts` says whether it is an event of the
    reporting period (day 0 to `safety_last_day`); a grade of 0 or a negative test is an assessment, not an event.
    """

    row: int
    patient_id: str
    category: str
    term: str
    onset_day: int | None
    entered: int | None
    derived: DerivedGrade | None
    grade: int | None
    source: str
    counts: bool
    details: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Incidence:
    """Patients with an event of one category in the reporting period, by their worst grade; of `n` infused."""

    category: str
    title: str
    any: Rate
    severe: Rate
    by_grade: Mapping[int, int]
    ungraded: int
    first_onset: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Safety:
    """Adverse events with their tables."""

    events: tuple[AdverseEvent, ...]
    incidence: tuple[Incidence, ...]
    after_prior_allosct: Incidence | None
    rcl: Mapping[str, str]
    findings: tuple[QcFinding, ...]
    last_day: int
    rules: SafetyRules
    digest: str


def load_safety_rules() -> SafetyRules:
    """Read the safety rules that ship with flowmrd."""
    with (Path(__file__).parent / "safety.toml").open("rb") as stream:
        return SafetyRules.model_validate(tomllib.load(stream))


# -------------------------------------------------------------------------------------------------------------- grades


def crs_grade(
    *,
    fever: bool | None,
    hypotension: str | None,
    oxygen: str | None,
    fever_masked: bool = False,
    rules: SafetyRules | None = None,
) -> DerivedGrade:
    """Grade a cytokine release syndrome by ASTCT 2019.

    Parameters
    ----------
    fever : of 38.0 °C or more, not otherwise explained; `None` = not recorded
    hypotension : none, no_pressor, one_pressor (with or without vasopressin), multiple_pressors
    oxygen : none, low_flow (up to 6 L/min), high_flow (or mask), positive_pressure
    fever_masked : by antipyretics, tocilizumab or steroids after onset
    rules : by default the shipped ones

    Examples
    --------
    >>> crs_grade(fever=True, hypotension="no_pressor", oxygen="low_flow").grade
    2
    """
    rule = (rules or load_safety_rules()).crs
    if fever is False and not fever_masked:
        return DerivedGrade(grade=0, at_least=0)
    parts = [
        None if hypotension is None else rule.hypotension[hypotension],
        None if oxygen is None else rule.oxygen[oxygen],
        rule.fever if fever else 0 if fever_masked else None,
    ]
    known = max((part for part in parts if part is not None), default=0)
    if fever is None and not fever_masked:
        # Without fever there is no CRS at all: nothing can be said.
        return DerivedGrade(grade=None, at_least=0)
    return DerivedGrade(grade=None if None in parts and known < 4 else known, at_least=known)


def icans_grade(
    *,
    ice: int | None = None,
    capd: int | None = None,
    age_years: float | None = None,
    consciousness: str | None = None,
    seizure: str | None = None,
    motor_weakness: bool | None = None,
    edema: str | None = None,
    rules: SafetyRules | None = None,
) -> DerivedGrade:
    """Grade neurotoxicity by ASTCT 2019; children below 12 by CAPD instead of ICE.

    Signs (seizure, motor weakness, edema, depressed consciousness) are recorded where they were seen; without a score
    the grade is only known from below.

    Examples
    --------
    >>> icans_grade(ice=8).grade, icans_grade(ice=1, seizure="prolonged").grade, icans_grade(seizure="brief").grade
    (1, 4, None)
    """
    rule = (rules or load_safety_rules()).icans
    signs = [
        0 if consciousness is None else rule.consciousness[consciousness],
        0 if seizure is None else rule.seizure[seizure],
        0 if motor_weakness is None else rule.motor_weakness["Y" if motor_weakness else "N"],
        0 if edema is None else rule.edema[edema],
    ]
    child = age_years is not None and age_years < rule.capd_below_years
    score, steps = (capd, rule.capd) if child or (ice is None and capd is not None) else (ice, rule.ice)
    known = max(signs)
    if score is None:
        return DerivedGrade(grade=known if known == 4 else None, at_least=known)
    graded = next(step.grade for step in steps if score >= step.least)
    return DerivedGrade(grade=max(known, graded), at_least=max(known, graded))


# -------------------------------------------------------------------------------------------------------------- reading


class _CellError(Exception):
    pass


def read_adverse_events(
    path: Path,
    subjects: Sequence[Subject],
    *,
    last_day: int,
    prior_allosct: Mapping[str, bool | None] | None = None,
    ages: Mapping[str, float | None] | None = None,
    rules: SafetyRules | None = None,
) -> Safety:
    """Read adverse events, check their grades, and tabulate the reporting period.

    Parameters
    ----------
    path : CSV with the columns of `REQUIRED`; components of grades in further columns, others are ignored
    subjects : the infused patients, the denominator
    last_day : last day of the reporting period (day 0 is the infusion)
    prior_allosct, ages : of the baseline table, by patient
    rules : by default the shipped ones

    Raises
    ------
    InputError : the file cannot be read as a table
    ExceptionGroup : of `InputError`; missing columns, or every faulty cell
    """
    rules = rules or load_safety_rules()
    table = read_csv(path, error=InputError)
    source = path.name
    raise_faults(
        [
            InputError(
                f"expected a column {name!r}; got none", source=source, where="header", hint=nearest(name, table.header)
            )
            for name in REQUIRED
            if name not in table.header
        ],
        source=source,
    )
    patients = {one.patient_id: one for one in subjects}
    faults: list[InputError] = list(table.faults)
    findings: list[QcFinding] = []
    events: list[AdverseEvent] = []
    for row in table.rows:
        read = _Reader(row, source, rules, faults)
        one = _event(read, patients, last_day, ages or {}, findings)
        if one is not None:
            events.append(one)
    raise_faults(faults, source=source)
    unknown = Counter(row.cells["category"] for row in table.rows if rules.category_of(row.cells["category"]) is None)
    findings.extend(
        QcFinding(
            level=Level.INFO,
            code="CATEGORY_UNKNOWN",
            message=f"The category {name!r} ({count} rows) is none of the trial's: counted as other.",
            where=source,
        )
        for name, count in unknown.items()
    )
    findings.extend(_grade_findings(events, rules))
    after = None
    if prior_allosct is not None:
        before = [one.patient_id for one in subjects if prior_allosct.get(one.patient_id)]
        after = _incidence("donor_t_cells", events, before, rules)
        after = replace(
            after, category=f"{after.category}_prior_allosct", title="Donor T cells, of patients with a prior alloSCT"
        )
    everyone = [one.patient_id for one in subjects]
    return Safety(
        events=tuple(events),
        incidence=tuple(_incidence(one.id, events, everyone, rules) for one in rules.category),
        after_prior_allosct=after,
        rcl={one.patient_id: one.details["rcl"] for one in events if one.details.get("rcl")},
        findings=tuple(findings),
        last_day=last_day,
        rules=rules,
        digest=table.digest,
    )


class _Reader:
    """The cells of one row, each read as what it should be; faults are collected."""

    def __init__(self, row: CsvRow, source: str, rules: SafetyRules, faults: list[InputError]) -> None:
        self.row, self.source, self.rules, self.faults = row, source, rules, faults

    def cell(self, name: str) -> str:
        return self.row.cells.get(name, "")

    def fault(self, name: str, message: str, *, code: str = "") -> None:
        text = f"{code}: {message}" if code else message
        self.faults.append(InputError(text, source=self.source, where=f"row {self.row.number}, {name}"))

    def whole(self, name: str, least: int, most: int) -> int | None:
        cell = self.cell(name)
        if not cell:
            return None
        if not re.fullmatch(r"[+-]?\d+(\.0+)?", cell) or not least <= float(cell) <= most:
            self.fault(name, f"expected a whole number from {least} to {most} or an empty cell; got {cell!r}")
            return None
        return int(float(cell))

    def number(self, name: str) -> float | None:
        cell = self.cell(name)
        if not cell:
            return None
        if not re.fullmatch(r"\d+(\.\d+)?", cell):
            self.fault(name, f"expected a number from 0 on or an empty cell; got {cell!r}")
            return None
        return float(cell)

    def answer(self, name: str) -> bool | None:
        cell = self.cell(name)
        if not cell:
            return None
        if cell.upper() not in _YES:
            self.fault(name, f"expected Y, N or an empty cell; got {cell!r}")
        return _YES.get(cell.upper())

    def word(self, name: str, words: Mapping[str, int]) -> str | None:
        cell = self.cell(name).casefold().replace(" ", "_").replace("-", "_")
        if not cell:
            return None
        if cell not in words:
            self.fault(name, f"expected one of {', '.join(words)} or an empty cell; got {self.cell(name)!r}")
            return None
        return cell


def _event(
    read: _Reader,
    patients: Mapping[str, Subject],
    last_day: int,
    ages: Mapping[str, float | None],
    findings: list[QcFinding],
) -> AdverseEvent | None:
    number, patient = read.row.number, read.cell("patient_id")

    def warning(code: str, message: str, level: Level = Level.WARNING) -> None:
        findings.append(QcFinding(level=level, code=code, message=message, where=f"{read.source}, row {number}"))

    if patient not in patients:
        text = "expected an infused patient of the clinical table; got another"
        read.fault("patient_id", text, code="UNKNOWN_PATIENT")
        return None
    written = read.cell("category")
    category = read.rules.category_of(written)
    if not written:
        read.fault("category", "expected a category; got an empty cell")
        return None
    category = category or "other"
    if not read.cell("term"):
        read.fault("term", "expected a term; got an empty cell")
    onset = read.whole("onset_day", -3650, 7300)
    entered = read.whole("grade", 0, 5)
    derived = _derived(read, category, patient, ages)
    death = patients[patient].death_day
    if onset is not None and death is not None and onset > death:
        read.fault("onset_day", f"expected at most the day of death, {death}; got {onset}", code="EVENT_AFTER_DEATH")
    if onset is None and not read.cell("onset_day"):
        warning("ONSET_MISSING", "The day of onset is missing: the event is listed, but counts in no period.")
    elif onset is not None and onset < 0:
        warning("EVENT_BEFORE_INFUSION", f"Onset on day {onset}, before the infusion: not counted.", Level.INFO)
    limit = read.rules.infusion_reaction.last_onset_day
    if category == "infusion_reaction" and onset is not None and onset > limit:
        warning("INFUSION_REACTION_LATE", f"An infusion reaction begins within 24 h; got onset on day {onset}.")
    clone = read.number("clone_percent")
    most = read.rules.vector.dominant_clone_percent
    if clone is not None and clone > most:
        warning("CLONE_DOMINANT", f"One CAR clone makes up {clone:g}%, above {most:g}%.", Level.VIOLATION)
    rcl = read.cell("rcl").casefold()
    if rcl not in {"", "negative", "positive", "not_done"}:
        read.fault("rcl", f"expected negative, positive, not_done or an empty cell; got {read.cell('rcl')!r}")
    if rcl == "positive":
        warning("RCL_POSITIVE", "A test for replication-competent lentivirus is positive.", Level.VIOLATION)
    grade = entered if entered is not None else derived.grade if derived is not None else None
    happened = grade != 0 and not (grade is None and rcl in {"negative", "not_done"})
    return AdverseEvent(
        row=number,
        patient_id=patient,
        category=category,
        term=read.cell("term"),
        onset_day=onset,
        entered=entered,
        derived=derived,
        grade=grade,
        source=read.cell("source"),
        counts=happened and onset is not None and 0 <= onset <= last_day,
        details={name: read.cell(name) for name in (*CRS_COLUMNS, *ICANS_COLUMNS, *OTHER_COLUMNS) if read.cell(name)},
    )


def _derived(read: _Reader, category: str, patient: str, ages: Mapping[str, float | None]) -> DerivedGrade | None:
    """Derive a grade where its components were recorded."""
    if category == "crs" and any(read.cell(name) for name in CRS_COLUMNS):
        fever, celsius = read.answer("fever"), read.number("temperature_c")
        if fever is None and celsius is not None:
            fever = celsius >= read.rules.crs.fever_celsius
        return crs_grade(
            fever=fever,
            fever_masked=read.answer("fever_masked") is True,
            hypotension=read.word("hypotension", read.rules.crs.hypotension),
            oxygen=read.word("oxygen", read.rules.crs.oxygen),
            rules=read.rules,
        )
    if category == "neurotoxicity" and any(read.cell(name) for name in ICANS_COLUMNS if name != "age_years"):
        rule = read.rules.icans
        age = read.number("age_years")
        return icans_grade(
            ice=read.whole("ice", 0, 10),
            capd=read.whole("capd", 0, 32),
            age_years=ages.get(patient) if age is None else age,
            consciousness=read.word("consciousness", rule.consciousness),
            seizure=read.word("seizure", rule.seizure),
            motor_weakness=read.answer("motor_weakness"),
            edema=read.word("edema", rule.edema),
            rules=read.rules,
        )
    return None


def _grade_findings(events: Sequence[AdverseEvent], rules: SafetyRules) -> list[QcFinding]:
    found = []
    for one in events:
        if one.derived is None:
            continue
        where, title = f"row {one.row}", rules.title_of(one.category)
        derived, least = one.derived.grade, one.derived.at_least
        if one.entered is None or one.entered == 5:
            # Grade 5 is death, which no component says.
            if derived is None and one.entered is None:
                found.append(
                    QcFinding(
                        level=Level.WARNING,
                        code="GRADE_NOT_DERIVABLE",
                        message=f"{title}: no grade was entered, and the components only say at least {least}.",
                        where=where,
                    )
                )
        elif (derived is not None and derived != one.entered) or one.entered < least:
            shown = f"grade {derived}" if derived is not None else f"at least grade {least}"
            found.append(
                QcFinding(
                    level=Level.WARNING,
                    code="GRADE_MISMATCH",
                    message=f"{title}: grade {one.entered} was entered, its components say {shown}; entered counts.",
                    where=where,
                )
            )
    return found


# ------------------------------------------------------------------------------------------------------------ incidence


def _incidence(category: str, events: Sequence[AdverseEvent], patients: Sequence[str], rules: SafetyRules) -> Incidence:
    worst: dict[str, int | None] = {}
    onset: dict[str, int] = {}
    members = set(patients)
    for one in events:
        if not one.counts or one.category != category or one.patient_id not in members:
            continue
        before = worst.get(one.patient_id)
        worst[one.patient_id] = max((grade for grade in (before, one.grade) if grade is not None), default=None)
        assert one.onset_day is not None
        onset[one.patient_id] = min(one.onset_day, onset.get(one.patient_id, one.onset_day))
    counts: Counter[Any] = Counter(worst.values())
    return Incidence(
        category=category,
        title=rules.title_of(category),
        any=rate(len(worst), len(patients)),
        severe=rate(sum(grade is not None and grade >= 3 for grade in worst.values()), len(patients)),
        by_grade={grade: counts[grade] for grade in range(1, 6)},
        ungraded=counts[None],
        first_onset=statistics.median(onset.values()) if onset else None,
    )
