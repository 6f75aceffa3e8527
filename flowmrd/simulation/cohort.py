"""A whole cohort of a trial: clinical tables, adverse events, and every marrow and blood tube with its manifest.

What happens to a patient is a fate of `profiles/cohort.toml`, with the class that each visit must get: a scripted
truth.
Files are made on demand. Without them the counts of the truth are drawn instead, so that tables alone show a cohort.
"""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowmrd.clinical.response import OUTPUT, ResponseCall, classify
from flowmrd.clinical.rules import Criteria, load_criteria
from flowmrd.clinical.safety import EVENT_COLUMNS, load_safety_rules
from flowmrd.clinical.table import COLUMNS, read_clinical_table
from flowmrd.errors import SettingsError
from flowmrd.quantification.rare_events import load_rules
from flowmrd.simulation.courses import b_cells_back_day, course_rows, draw_curve, other_t_cells
from flowmrd.simulation.profile import packaged_document
from flowmrd.simulation.subject import SubjectDocument, document_of, write_subject, write_table
from flowmrd.simulation.writing import written_files

_DOCUMENT = "cohort"
TABLE_NAME, TRUE_TABLE_NAME, TRUTH_NAME = "clinical.csv", "true-clinical.csv", "truth.csv"
_MEASURED = ("mrd_events", "mrd_denominator", "cd19_indep_gating", "blast_cd19_pos_pct")
_TRUTH = (
    "patient_id",
    "fate",
    "timepoint",
    "day",
    "planned_response",
    "response",
    "mrd_category",
    "mrd_neg_1e4",
    "mrdneg_cr",
    "event",
    "cd19_status",
    "post_sct",
    "flags",
    "level",
    "mrd_events",
    "mrd_denominator",
    "acquisition",
)
# Blasts with the target, percent, as the simulator's two states have it (the threshold is a 99th percentile).
_WITH_TARGET, _WITHOUT_TARGET = 99, 1
# Kinds of randomness, apart from those of files and courses.
_DRAW, _COUNTS = 41, 42


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVisit:
    """One row of the clinical table, and the marrow behind it; `level` is the true fraction, `acquisition` the file."""

    cells: Mapping[str, object]
    response: str
    level: float = 0.0
    cd19: str = "positive"
    events: int = 0
    acquisition: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One patient of a cohort: the fate, the visits, the tables' rows, and the documents of the files."""

    name: str
    fate: str
    visits: tuple[PlannedVisit, ...]
    baseline: Mapping[str, object]
    events: tuple[Mapping[str, object], ...]
    tubes: tuple[Mapping[str, Any], ...] = field(repr=False)
    counts: tuple[Mapping[str, object], ...] = field(repr=False)


def plan_cohort(patients: int, seed: int = 1, *, events: int | None = None, lab: str = "") -> tuple[Patient, ...]:
    """Draw the patients of a cohort.

    Parameters
    ----------
    patients : how many are infused
    seed : of the cohort
    events : in each marrow's file; by default the document's
    lab : laboratory id of all files

    Raises
    ------
    SettingsError : no patient
    """
    if patients < 1:
        raise SettingsError(f"expected at least 1 patient; got {patients}", where="--cohort")
    document = tomllib.loads(packaged_document(_DOCUMENT))
    criteria = load_criteria()
    fates = _dealt(document["fate"], patients, seed)
    return tuple(
        _patient(number, fate, document, criteria, seed, events=events, lab=lab)
        for number, fate in enumerate(fates, start=1)
    )


def write_cohort(
    cohort: Sequence[Patient],
    out: Path,
    *,
    with_files: bool = True,
    seed: int = 1,
    jobs: int = 1,
    report: Callable[[str], None] | None = None,
) -> Path:
    """Write the cohort's tables, its truth, and with files the manifest and every tube.

    `clinical.csv` has no MRD: a run measures it. `true-clinical.csv` is the same table with the true counts,
    `truth.csv` what each visit truly is; `baseline.csv`, `adverse_events.csv` and `counts.csv` (true CAR+ cells per µl)
    lie beside them. One patient of the baseline table was not infused and is in no other table.

    Returns
    -------
    path of the clinical table

    Raises
    ------
    SettingsError : the folder cannot be written
    """
    if with_files:
        write_subject(_files(cohort), out, jobs=jobs, report=report)
    criteria = load_criteria()
    least = load_rules(criteria.keys.mrd_rules).lod_events
    share = float(tomllib.loads(packaged_document(_DOCUMENT))["mrd"]["cell_share"])
    rows: list[dict[str, object]] = []
    truths: list[tuple[Patient, PlannedVisit, dict[str, object]]] = []
    for place, patient in enumerate(cohort):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, place, _COUNTS])))
        for visit in patient.visits:
            blasts, size = _file_counts(visit, out) if with_files else _drawn_counts(visit, share, rng)
            measured = _measured(visit, blasts, size, least)
            rows.append({**visit.cells, **measured})
            truths.append((patient, visit, measured))
    without = [{name: "" if name in _MEASURED else cell for name, cell in row.items()} for row in rows]
    write_table(out / TABLE_NAME, COLUMNS, without)
    write_table(out / TRUE_TABLE_NAME, COLUMNS, rows)
    calls = classify(read_clinical_table(out / TRUE_TABLE_NAME, visits=criteria.visits), criteria)
    write_table(out / TRUTH_NAME, _TRUTH, [_truth(*one, call) for one, call in zip(truths, calls, strict=True)])
    baseline = [patient.baseline for patient in cohort]
    not_infused = {**baseline[0], "patient_id": f"C{len(cohort) + 1:03}", "infused": "N", "dose_per_kg": ""}
    write_table(out / "baseline.csv", list(baseline[0]), [*baseline, not_infused])
    adverse = [event for patient in cohort for event in patient.events]
    write_table(out / "adverse_events.csv", EVENT_COLUMNS, adverse)
    counts = [row for patient in cohort for row in patient.counts]
    write_table(out / "counts.csv", ["subject", "course", "day", "car_per_ul", "lod_per_ul", "cd19_per_ul"], counts)
    return out / TABLE_NAME


def read_truth(path: Path) -> list[dict[str, str]]:
    """Rows of a cohort's `truth.csv`."""
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


# ------------------------------------------------------------------------------------------------------------- drawing


def _dealt(fates: Sequence[Mapping[str, Any]], patients: int, seed: int) -> list[Mapping[str, Any]]:
    """Deal out fates by their shares, in random order; each 24 patients have every fate, fewer have the first ones."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _DRAW])))
    dealt: list[Mapping[str, Any]] = []
    while len(dealt) < patients:
        deck = [fate for fate in fates for _ in range(fate["per_24"])]
        dealt.extend(deck[index] for index in rng.permutation(len(deck)).tolist())
    return dealt[:patients]


def _patient(
    number: int,
    fate: Mapping[str, Any],
    document: Mapping[str, Any],
    criteria: Criteria,
    seed: int,
    *,
    events: int | None,
    lab: str,
) -> Patient:
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number, _DRAW])))
    name = f"C{number:03}"

    def whole(low: float, high: float) -> int:
        return int(rng.integers(int(low), int(high) + 1))

    before = whole(*fate.get("bl_bm_blast_pct", document["patient"]["bl_bm_blast_pct"]))
    death = whole(*fate["death"]) if "death" in fate else None
    contact = death if death is not None else whole(*fate["last_contact"])
    allosct = whole(*fate["allosct"]) if "allosct" in fate else None
    own = {
        "patient_id": name,
        "bl_bm_blast_pct": before,
        "bl_emd": 0,
        "allosct_day": "" if allosct is None else allosct,
        "death_day": "" if death is None else death,
        "last_contact_day": contact,
    }
    visits = []
    for planned in fate["visit"]:
        visit = criteria.visit(planned["name"])
        assert visit is not None
        jitter = document["patient"]["day_jitter"]
        day = planned.get("day", visit.target_day + whole(-jitter, jitter))
        visits.append(_visit(planned, {**own, "timepoint": visit.name}, min(day, contact), document, rng, events))
    last = min(day for day in (allosct, death, contact) if day is not None)
    patient_seed = 100_000 * seed + number
    tubes = _marrows(visits, name, before, patient_seed, document, lab)
    tubes += _blood(fate["course"], name, patient_seed, last, document, lab)
    baseline = _baseline(name, number, before, document, rng)
    return Patient(
        name=name,
        fate=fate["name"],
        visits=tuple(
            replace(visit, acquisition=_file_name(name, str(visit.cells["timepoint"]))) if visit.events else visit
            for visit in visits
        ),
        baseline=baseline,
        events=tuple(_adverse(baseline, death, document, rng)),
        tubes=tuple(tubes),
        counts=tuple(_counts(fate["course"], name, patient_seed, last, document)),
    )


def _visit(
    planned: Mapping[str, Any],
    own: Mapping[str, object],
    day: int,
    document: Mapping[str, Any],
    rng: np.random.Generator,
    events: int | None,
) -> PlannedVisit:
    state = document["state"][planned["state"]]
    cells: dict[str, object] = {**dict.fromkeys(COLUMNS, ""), **own, "bm_status": "not_done", "plt_tx_7d": "N"}
    cells |= {"lineage_switch": "N", "confirm_tests_ge1pct": 0}
    if planned["state"] == "absent":
        return PlannedVisit(cells=cells, response=planned["response"])

    def between(span: Sequence[float], digits: int) -> float:
        return round(float(rng.uniform(span[0], span[1])), digits)

    counts = document["counts"][planned["counts"]]
    cells |= {"day": day, "anc": between(counts["anc"], 2), "plt": round(between(counts["plt"], 0))}
    cells |= {"cns": planned.get("cns", "CNS1"), "emd": 0}
    cells["pb_blast_pct"] = round(between(state["blood"], 0)) if "blood" in state else 0
    if "marrow" not in state:
        return PlannedVisit(cells=cells, response=planned["response"])
    marrow = round(between(state["marrow"], 0))
    if planned.get("marrow") == "as before":
        marrow = int(str(own["bl_bm_blast_pct"]))
    cells |= {"bm_status": "done", "bm_blast_pct": marrow}
    level = 0.0
    if "level" in state:
        level = float(np.exp(rng.uniform(*np.log(state["level"]))))
    elif "level_of_marrow" in state:
        level = marrow / 100 * between(state["level_of_marrow"], 3)
    mrd = document["mrd"]
    size = mrd["few_events"] if planned.get("few") else mrd["events"]
    if events is not None:
        size = round(size * events / mrd["events"])
    return PlannedVisit(
        cells=cells,
        response=planned["response"],
        level=float(f"{level:.4g}"),
        cd19=planned.get("cd19", "positive"),
        events=size,
    )


def _file_name(patient: str, visit: str) -> str:
    return f"{patient}-{visit}".lower()


def _marrows(
    visits: Sequence[PlannedVisit], name: str, before: int, seed: int, document: Mapping[str, Any], lab: str
) -> list[dict[str, Any]]:
    mrd = document["mrd"]
    common = {
        "pseudonym": name,
        "patient_seed": seed,
        "tube": mrd["tube"],
        "channels": "compact",
        "lab": lab,
        "infusion_date": document["infusion_date"],
    }
    rows = [
        {
            **common,
            "name": _file_name(name, "BL"),
            "timepoint": "BL",
            "study_day": mrd["baseline_day"],
            "scenario": mrd["baseline_scenario"],
            "events": min(mrd["baseline_events"], max((one.events for one in visits), default=0) or 10**9),
            "blasts": before / 100,
            "seed": 10 * seed,
            "manifest": {"study_id": "SIMULATED", "prior_anti_cd19": "N"},
        }
    ]
    for place, visit in enumerate(visits, start=1):
        if not visit.events:
            continue
        timepoint = str(visit.cells["timepoint"])
        rows.append(
            {
                **common,
                "name": _file_name(name, timepoint),
                "timepoint": timepoint,
                "study_day": visit.cells["day"],
                "scenario": mrd["scenario"][timepoint],
                "events": visit.events,
                "blasts": visit.level,
                "cd19": visit.cd19,
                "seed": 10 * seed + place,
                "manifest": {"study_id": "SIMULATED", "prior_anti_cd19": "Y"},
            }
        )
    return rows


def _blood(kind: str, name: str, seed: int, last: int, document: Mapping[str, Any], lab: str) -> list[dict[str, Any]]:
    car = document["car"]
    days = [day for day in car["days"] if day <= last]
    if not days:
        return []
    return course_rows(
        kind,
        seed,
        pseudonym=name,
        events=car["events"],
        lab=lab,
        days=days,
        stem=f"{name.lower()}-cart",
        infusion=document["infusion_date"],
    )


def _counts(kind: str, name: str, seed: int, last: int, document: Mapping[str, Any]) -> list[dict[str, object]]:
    """True CAR+ cells per µl on the days of the tubes, with the limit that so many T cells can have."""
    car, curve = document["car"], draw_curve(kind, seed)
    rows = []
    for day in car["days"]:
        if day > last:
            break
        value, other = curve.at(day), other_t_cells(day)
        limit = 20 / car["t_cells"] * (value + other)
        rows.append(
            {
                "subject": name,
                "course": 1,
                "day": day,
                "car_per_ul": f"{value:.4g}",
                "lod_per_ul": f"{limit:.3g}",
                "cd19_per_ul": car["b_cells_per_ul"] if day >= b_cells_back_day(kind) else 0,
            }
        )
    return rows


def _baseline(
    name: str, number: int, before: int, document: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, object]:
    own = document["baseline"]
    age = round(float(rng.uniform(*document["patient"]["age_years"])), 1)
    low, high = np.log(own["dose_per_kg"])
    dose = float(np.exp(rng.uniform(low, high)))
    fludarabine, cyclophosphamide = own["fludarabine"], own["cyclophosphamide"]
    return {
        "patient_id": name,
        "infused": "Y",
        "age_years": age,
        "sex": "FM"[int(rng.integers(2))],
        "weight_kg": round(min(8 + 2.6 * age, 62) * float(rng.uniform(0.85, 1.2)), 1),
        "dose_per_kg": f"{own['deviating_dose'] if number % 24 == 9 else dose:.3g}",
        "fludarabine_days": own["deviating_fludarabine"] if number % 24 == 4 else fludarabine[0],
        "fludarabine_mg_m2": fludarabine[1],
        "cyclophosphamide_days": cyclophosphamide[0],
        "cyclophosphamide_mg_m2": cyclophosphamide[1],
        "bridging": "Y" if before >= own["bridging_from_marrow"] else "N",
        "prior_allosct": "Y" if rng.random() < own["prior_allosct"] else "N",
        "screening_bm_blast_pct": before,
        "screening_pb_blasts_per_ul": round(float(rng.uniform(*own["blood_blasts_per_ul"]))),
    }


def _adverse(
    baseline: Mapping[str, object], death: int | None, document: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[dict[str, object]]:
    """Draw the adverse events of one patient, with the components that make their grades."""
    child = load_safety_rules().icans.capd_below_years
    for kind in document["event"]:
        # Everything is drawn for everybody, so that one patient's answer moves no other draw.
        chance, onset = float(rng.random()), int(rng.integers(kind["onset"][0], kind["onset"][1] + 1))
        weights = np.array([grade["weight"] for grade in kind["grade"]], dtype=float)
        drawn = kind["grade"][int(rng.choice(len(weights), p=weights / weights.sum()))]
        if chance >= kind["chance"] or (death is not None and onset > death):
            continue
        if kind.get("only_prior_allosct") and baseline["prior_allosct"] != "Y":
            continue
        parts = {key: value for key, value in drawn.items() if key != "weight"}
        # Children below 12 are scored by CAPD, others by ICE.
        parts.pop("ice" if float(str(baseline["age_years"])) < child else "capd", None)
        yield {
            **dict.fromkeys(EVENT_COLUMNS, ""),
            "patient_id": baseline["patient_id"],
            "category": kind["category"],
            "term": kind["term"],
            "onset_day": onset,
            "source": "simulated",
            **parts,
        }


# --------------------------------------------------------------------------------------------------------------- truth


def _files(cohort: Sequence[Patient]) -> SubjectDocument:
    rows = [row for patient in cohort for row in patient.tubes]
    places = [f"file {row['name']}" for row in rows]
    return document_of(rows, source=f"{_DOCUMENT}.toml", places=places, folder=Path())


def _file_counts(visit: PlannedVisit, folder: Path) -> tuple[int, int]:
    """Return blasts and denominator of a visit's file, as its truth has them."""
    if not visit.events:
        return 0, 0
    truth = json.loads(written_files(folder, visit.acquisition).truth.read_text(encoding="utf-8"))["mrd"]
    return truth["blasts"], truth["denominator"]


def _drawn_counts(visit: PlannedVisit, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """Draw what a file would hold; `share` of its events are nucleated live single cells."""
    size = round(visit.events * share * float(rng.uniform(0.97, 1.03)))
    return int(rng.poisson(visit.level * size)), size


def _measured(visit: PlannedVisit, blasts: int, size: int, least: int) -> dict[str, object]:
    """Return the MRD columns of a visit; the share of blasts with the target from `least` blasts on."""
    if not visit.events:
        return dict.fromkeys(_MEASURED, "")
    target = _WITHOUT_TARGET if visit.cd19 == "negative" else _WITH_TARGET
    return {
        "mrd_events": blasts,
        "mrd_denominator": size,
        "cd19_indep_gating": "Y",
        "blast_cd19_pos_pct": target if blasts >= least else "",
    }


def _truth(
    patient: Patient, visit: PlannedVisit, measured: Mapping[str, object], call: ResponseCall
) -> dict[str, object]:
    cells = dict(zip(OUTPUT, call.cells(), strict=True))
    return {
        **{name: cells[name] for name in _TRUTH if name in cells},
        **{name: measured[name] for name in ("mrd_events", "mrd_denominator")},
        "fate": patient.fate,
        "day": visit.cells["day"],
        "planned_response": visit.response,
        "level": visit.level if visit.events else "",
        "acquisition": visit.acquisition,
    }
