"""Labelled sets: many acquisitions from a table or from a few numbers, for training, calibration and scoring.

Each case is its own patient. Files have neutral names in random order; `cases.csv` beside them says what each one is. A
set is planned before its first file is made, so the number of processes cannot show in it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowmrd.documents.loader import read_csv
from flowmrd.errors import SettingsError
from flowmrd.simulation.marrow import load_immunophenotype
from flowmrd.simulation.profile import SetDesign, load_profile
from flowmrd.simulation.subject import SubjectDocument, Visit, document_of, write_subject, write_table
from flowmrd.simulation.writing import written_files

CASES_NAME = "cases.csv"
CASE_COLUMNS = (
    "name",
    "role",
    "pseudonym",
    "patient_seed",
    "seed",
    "tube",
    "scenario",
    "level",
    "blasts",
    "denominator",
    "fraction",
    "hard",
    "aberrations",
    "bimodal",
    "cd19",
    "drift",
    "batch",
    "lab",
    "events",
    "simulator_version",
)
_TIMES = {True: ("BL", 0), False: ("D28", 28)}  # at diagnosis, at follow-up: visit name and study day


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPlan:
    """How many cases of which kind.

    Attributes
    ----------
    negatives, positives : cases without and with blasts
    levels : blasts as a fraction of nucleated live singlets, spread evenly over the positives; empty = the design's
    diagnoses : whether each positive gets a file at diagnosis, too
    laboratories : cases are spread evenly over that many laboratories of their own; 0 = none
    seed : of the whole set
    common : parameters that all cases share (keys of `Parameters` and of `Visit`)
    """

    negatives: int = 0
    positives: int = 0
    levels: tuple[float, ...] = ()
    diagnoses: bool = False
    laboratories: int = 0
    seed: int = 1
    common: Mapping[str, Any]


def plan_set(plan: SetPlan) -> SubjectDocument:
    """Lay out a set: scenarios, levels and losses of the target by the shares of the tube's design, in random order.

    Raises
    ------
    SettingsError : a number out of range, or a tube without a design
    """
    for name, value in (("negatives", plan.negatives), ("positives", plan.positives)):
        if value < 0:
            raise SettingsError(f"expected a whole number ≥ 0, got {value}", where=name)
    if plan.negatives + plan.positives == 0:
        raise SettingsError("expected at least one case", where="negatives", hint="--negatives N --positives N")
    for level in plan.levels:
        if not 0.0 < level <= 1.0:
            raise SettingsError(f"expected fractions above 0 and up to 1, got {level:g}", where="levels")
    profile = load_profile(plan.common.get("tube", "ball-mrd-10c"), override=plan.common.get("profile")).profile
    design = profile.set
    if design is None or (plan.positives and profile.leukemia is None):
        raise SettingsError(
            f"tube {profile.profile.tube!r} has no design of a set", where="tube", hint="write a table for --cases"
        )
    rng = np.random.Generator(np.random.PCG64([plan.seed, 0x5E7]))
    rows = _negatives(plan, design, rng) + _positives(plan, design, rng)
    order = rng.permutation(len(rows))
    seeds = rng.integers(2**31, size=(len(rows), 3))
    laboratory = rng.permutation(len(rows)) % max(plan.laboratories, 1)
    result = []
    for number, place in enumerate(order.tolist(), start=1):
        name = f"case-{number:04d}"
        patient, seed, at_diagnosis = (int(value) for value in seeds[place])
        shared = {**plan.common, "pseudonym": f"SIM-{plan.seed}-{number:04d}", "patient_seed": patient}
        if plan.laboratories:
            shared["lab"] = f"set-{plan.seed}-{int(laboratory[place]) + 1}"
        row = {**shared, **rows[place], "seed": seed, "name": name}
        result.append(_at_time(row, treated=rows[place]["scenario"] in design.treated, diagnosis=False))
        if plan.diagnoses and rows[place]["blasts"] > 0:
            first = {**shared, "scenario": design.diagnosis, "seed": at_diagnosis, "name": f"{name}-diagnosis"}
            # Before therapy: nothing has been lost or has changed yet.
            first |= {"drift": 0.0, "cd19": "positive"}
            result.append(_at_time(first, treated=False, diagnosis=True))
    return document_of(result, source="set", places=[row["name"] for row in result], folder=Path())


def load_cases(path: Path, *, common: Mapping[str, Any], seed: int) -> SubjectDocument:
    """Cases of a CSV table.

    Its columns are keys of `Parameters` and `Visit`; an empty cell or a missing column means `common`. `left_out` holds
    kinds separated by `;`, `phenotype` a word or a file (relative to the table). Without a column `name` cases are
    numbered, without `seed` and `patient_seed` they get their own from `seed`; rows of one `pseudonym` are one patient.

    Raises
    ------
    SettingsError : unreadable, or one fault
    ExceptionGroup : several faults
    """
    table = read_csv(path, error=SettingsError)
    if table.faults:
        raise ExceptionGroup(f"{path.name}: {len(table.faults)} faults", list(table.faults))
    if not table.rows:
        raise SettingsError("expected at least one row", source=path.name)
    rows: list[dict[str, Any]] = []
    patients: dict[str, int] = {}
    for number, line in enumerate(table.rows, start=1):
        own = np.random.Generator(np.random.PCG64([seed, 0xCA5, number])).integers(2**31, size=2).tolist()
        row: dict[str, Any] = {**common, "name": f"case-{number:04d}", "study_day": 0}
        row |= {key: cell for key, cell in line.cells.items() if cell}
        row.setdefault("seed", own[0])
        row.setdefault("pseudonym", f"SIM-{seed}-{number:04d}")
        row.setdefault("patient_seed", patients.setdefault(row["pseudonym"], own[1]))
        if isinstance(row.get("left_out"), str):
            row["left_out"] = tuple(kind.strip() for kind in row["left_out"].split(";") if kind.strip())
        phenotype = row.get("phenotype")
        if isinstance(phenotype, str) and Path(phenotype).suffix.lower() in {".toml", ".json"}:
            profile = load_profile(row.get("tube", "ball-mrd-10c"), override=row.get("profile")).profile
            row["phenotype"] = load_immunophenotype(path.parent / phenotype, profile)
        rows.append(row)
    places = [f"row {line.number}" for line in table.rows]
    return document_of(rows, source=path.name, places=places, folder=path.parent)


def write_set(
    document: SubjectDocument, out: Path, *, jobs: int = 1, report: Callable[[str], None] | None = None
) -> Path:
    """Write all files of a set, `manifest.csv` for `flowmrd run`, and `cases.csv`: what each file is.

    Returns
    -------
    path of `cases.csv`

    Raises
    ------
    SettingsError : a parameter out of range (nothing is written then), or the folder cannot be written
    """
    write_subject(document, out, jobs=jobs, report=report)
    return write_table(out / CASES_NAME, CASE_COLUMNS, [_case(visit, out) for visit in document.visits])


def read_cases(path: Path) -> list[dict[str, str]]:
    """Rows of a set's `cases.csv`."""
    with path.open(encoding="utf-8", newline="") as text:
        return list(csv.DictReader(text))


def _negatives(plan: SetPlan, design: SetDesign, rng: np.random.Generator) -> list[dict[str, Any]]:
    scenarios = _apportioned(design.negative, plan.negatives, rng)
    return [{"scenario": scenario, "blasts": 0.0} for scenario in scenarios]


def _positives(plan: SetPlan, design: SetDesign, rng: np.random.Generator) -> list[dict[str, Any]]:
    levels = plan.levels or design.levels
    given = sorted(levels[index % len(levels)] for index in range(plan.positives))
    share = 0.0 if "cd19" in plan.common else design.lost_share
    # In order of level, so that every level has its part of cases that lost the target.
    steps = np.floor(np.arange(plan.positives + 1) * share + 0.5)
    lost = np.diff(steps) > 0
    plain = iter(_apportioned(design.positive, int((~lost).sum()), rng))
    after = iter(_apportioned(design.lost, int(lost.sum()), rng))
    status = iter([design.lost_status[index % len(design.lost_status)] for index in range(int(lost.sum()))])
    rows: list[dict[str, Any]] = []
    for level, is_lost in zip(given, lost.tolist(), strict=True):
        row: dict[str, Any] = {"scenario": next(after if is_lost else plain), "blasts": level}
        if is_lost:
            row["cd19"] = next(status)
        rows.append(row)
    return rows


def _apportioned(weights: Mapping[str, float], count: int, rng: np.random.Generator) -> list[str]:
    """Return `count` names by their weights (largest remainders), in random order."""
    names, share = list(weights), np.array(list(weights.values())) / sum(weights.values()) * count
    numbers = np.floor(share).astype(int)
    remainders = np.argsort(numbers - share, kind="stable")
    numbers[remainders[: count - int(numbers.sum())]] += 1
    listed = [name for name, number in zip(names, numbers.tolist(), strict=True) for _ in range(number)]
    return [listed[index] for index in rng.permutation(count).tolist()]


def _at_time(row: Mapping[str, Any], *, treated: bool, diagnosis: bool) -> dict[str, Any]:
    timepoint, day = _TIMES[diagnosis]
    return {
        **row,
        "timepoint": timepoint,
        "study_day": day,
        "manifest": {"study_id": "SIMULATED", "prior_anti_cd19": "Y" if treated else "N"},
    }


def _case(visit: Visit, out: Path) -> dict[str, object]:
    truth = json.loads(written_files(out, visit.name).truth.read_text(encoding="utf-8"))
    parameters, phenotype, mrd = truth["parameters"], truth["immunophenotype"] or {}, truth["mrd"]
    shifts: Mapping[str, float] = phenotype.get("shifts", {})
    role = "positive" if mrd["level"] > 0 else "negative"
    return {
        "name": visit.name,
        "role": "diagnosis" if visit.timepoint == _TIMES[True][0] and role == "positive" else role,
        "pseudonym": visit.pseudonym,
        "seed": truth["seed"],
        "level": mrd["level"],
        "blasts": mrd["blasts"],
        "denominator": mrd["denominator"],
        "fraction": mrd["fraction"],
        "hard": phenotype.get("hard", ""),
        "aberrations": ";".join(f"{marker} {shift:+g}" for marker, shift in shifts.items()),
        "bimodal": (phenotype.get("bimodal") or {}).get("marker", ""),
        "simulator_version": truth["simulator_version"],
        **{
            key: parameters[key]
            for key in ("patient_seed", "tube", "scenario", "cd19", "drift", "batch", "lab", "events")
        },
    }


def parse_levels(text: str) -> tuple[float, ...]:
    """Levels from a list with commas.

    Raises
    ------
    SettingsError : not a number
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise SettingsError(f"expected numbers with commas between them, got {text!r}", where="levels") from None
