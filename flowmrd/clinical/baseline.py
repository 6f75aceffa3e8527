"""The baseline table: who was infused, the dose, lymphodepletion, bridging, prior transplant, burden at screening.

Values are checked against the named keys of the criteria (domain reference 5-response 5.7); a deviation is a finding,
and the patient is still analysed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowmrd.clinical.rules import Criteria
from flowmrd.documents.loader import CsvRow, raise_faults, read_csv
from flowmrd.errors import InputError, Level, QcFinding

NUMBERS = (
    "age_years",
    "weight_kg",
    "viable_cells_per_ml",
    "volume_ml",
    "cd3_percent",
    "car_percent_of_cd3",
    "dose_per_kg",
    "screening_bm_blast_pct",
    "screening_pb_blasts_per_ul",
)
ANSWERS = ("infused", "bridging", "prior_allosct")
TEXTS = ("sex",)
_DOSE = ("viable_cells_per_ml", "volume_ml", "cd3_percent", "car_percent_of_cd3", "weight_kg")
_DOSE_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Dose:
    """CAR-T cells given: in all, and for each kg."""

    car_t_total: float
    per_kg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """One patient before infusion; `None` is missing. `high_burden` is `None` where the inputs do not decide it."""

    patient_id: str
    infused: bool
    age_years: float | None
    sex: str
    weight_kg: float | None
    dose_per_kg: float | None
    dose_in_range: bool | None
    lymphodepletion: str
    bridging: bool | None
    prior_allosct: bool | None
    screening_bm_blast_pct: float | None
    screening_pb_blasts_per_ul: float | None
    high_burden: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineTable:
    """Baseline rows in file order."""

    rows: tuple[Baseline, ...]
    findings: tuple[QcFinding, ...]
    digest: str

    @property
    def not_infused(self) -> tuple[str, ...]:
        """Patients who were not infused: in the disposition, in no denominator."""
        return tuple(one.patient_id for one in self.rows if not one.infused)


def dose_per_kg(
    *, viable_cells_per_ml: float, volume_ml: float, cd3_percent: float, car_percent_of_cd3: float, weight_kg: float
) -> Dose:
    """CAR-T cells per kg: viable cells/mL × mL × CD3% × CAR% / kg (5.7, W17).

    Raises
    ------
    InputError : a weight of 0 or less, or a negative or impossible value

    Examples
    --------
    >>> dose_per_kg(viable_cells_per_ml=8e6, volume_ml=30, cd3_percent=98, car_percent_of_cd3=42, weight_kg=22.5).per_kg
    4390400.0
    """
    if weight_kg <= 0 or min(viable_cells_per_ml, volume_ml, cd3_percent, car_percent_of_cd3) < 0:
        raise InputError("dose: expected values from 0 on and a weight above 0")
    if max(cd3_percent, car_percent_of_cd3) > 100:
        raise InputError("dose: expected percentages up to 100")
    total = viable_cells_per_ml * volume_ml * (cd3_percent / 100) * (car_percent_of_cd3 / 100)
    return Dose(car_t_total=total, per_kg=total / weight_kg)


def high_burden(*, marrow_percent: float | None, blood_per_ul: float | None, criteria: Criteria) -> bool | None:
    """High burden at screening: M3 marrow and/or 10,000 blasts/µL blood, joined as `high_burden_logic` says (D10).

    `None` where a missing input could still decide it.

    Examples
    --------
    >>> from flowmrd.clinical.rules import load_criteria
    >>> high_burden(marrow_percent=80, blood_per_ul=None, criteria=load_criteria())
    True
    """
    keys = criteria.keys
    marrow = None if marrow_percent is None else marrow_percent > keys.high_burden_marrow_above_percent
    blood = None if blood_per_ul is None else blood_per_ul >= keys.high_burden_blood_at_least_per_ul
    decides = keys.high_burden_logic == "or"
    if decides in {marrow, blood}:
        return decides
    return None if marrow is None or blood is None else not decides


def baseline_columns(criteria: Criteria) -> tuple[str, ...]:
    """Return the columns of a baseline table that are read; those of the drugs follow from the criteria."""
    drugs = [f"{drug.name}_{what}" for drug in criteria.document.lymphodepletion for what in ("days", "mg_m2")]
    return ("patient_id", *ANSWERS, *NUMBERS, *TEXTS, *drugs)


def read_baseline(path: Path, criteria: Criteria) -> BaselineTable:
    """Read the baseline table.

    Columns: `patient_id`, and any of `infused`, `age_years`, `sex`, `weight_kg`, `viable_cells_per_ml`, `volume_ml`,
    `cd3_percent`, `car_percent_of_cd3`, `dose_per_kg`, `bridging`, `prior_allosct`, `screening_bm_blast_pct`,
    `screening_pb_blasts_per_ul`, and for each drug of the lymphodepletion `<drug>_days` (such as `-5;-4;-3;-2`) and
    `<drug>_mg_m2` (a day). Others are ignored.

    Raises
    ------
    InputError : the file cannot be read as a table
    ExceptionGroup : of `InputError`, every faulty cell
    """
    table = read_csv(path, error=InputError)
    source = path.name
    faults: list[InputError] = list(table.faults)
    if "patient_id" not in table.header:
        faults.append(InputError("expected a column 'patient_id'; got none", source=source, where="header"))
    raise_faults([one for one in faults if one.where == "header"], source=source)
    findings: list[QcFinding] = []
    rows: list[Baseline] = []
    seen: set[str] = set()
    for row in table.rows:
        patient = row.cells["patient_id"]
        if not patient or patient in seen:
            text = (
                "expected a pseudonym; got an empty cell" if not patient else "expected one row a patient; got another"
            )
            faults.append(InputError(text, source=source, where=f"row {row.number}, patient_id"))
            continue
        seen.add(patient)
        rows.append(_baseline(row, source, criteria, faults, findings))
    raise_faults(faults, source=source)
    return BaselineTable(rows=tuple(rows), findings=tuple(findings), digest=table.digest)


def _baseline(
    row: CsvRow, source: str, criteria: Criteria, faults: list[InputError], findings: list[QcFinding]
) -> Baseline:
    where = f"{source}, row {row.number}"

    def fault(name: str, message: str) -> None:
        faults.append(InputError(message, source=source, where=f"row {row.number}, {name}"))

    def warning(code: str, message: str, level: Level = Level.WARNING) -> None:
        findings.append(QcFinding(level=level, code=code, message=message, where=where))

    def number(name: str) -> float | None:
        cell = row.cells.get(name, "")
        if not cell:
            return None
        if not re.fullmatch(r"\d+(\.\d+)?([eE]\+?\d+)?", cell):
            fault(name, f"expected a number from 0 on or an empty cell; got {cell!r}")
            return None
        value = float(cell)
        if (name.endswith(("_percent", "_pct")) or "_percent_" in name) and value > 100:
            fault(name, f"expected a percentage from 0 to 100; got {cell}")
            return None
        return value

    def answer(name: str) -> bool | None:
        cell = row.cells.get(name, "").upper()
        if cell not in {"", "Y", "N"}:
            fault(name, f"expected Y, N or an empty cell; got {row.cells[name]!r}")
        return None if not cell else cell == "Y"

    values = {name: number(name) for name in NUMBERS}
    infused = answer("infused") is not False
    given = values["dose_per_kg"]
    parts = {name: value for name in _DOSE if (value := values[name]) is not None}
    if len(parts) == len(_DOSE) and parts["weight_kg"] > 0:
        computed = dose_per_kg(**parts).per_kg
        if given is not None and abs(given - computed) > _DOSE_TOLERANCE * computed:
            warning(
                "DOSE_MISMATCH", f"{given:.3g} CAR-T cells/kg were entered, but the product data give {computed:.3g}."
            )
        given = computed if given is None else given
    keys = criteria.keys
    in_range = None if given is None else keys.dose_low_per_kg <= given <= keys.dose_high_per_kg
    if in_range is False and infused:
        warning(
            "DOSE_OUT_OF_RANGE",
            f"{given:.3g} CAR-T cells/kg, outside {keys.dose_low_per_kg:g} to {keys.dose_high_per_kg:g}: a deviation; "
            "still analysed.",
        )
    return Baseline(
        patient_id=row.cells["patient_id"],
        infused=infused,
        age_years=values["age_years"],
        sex=row.cells.get("sex", ""),
        weight_kg=values["weight_kg"],
        dose_per_kg=given,
        dose_in_range=in_range,
        lymphodepletion=_lymphodepletion(row, criteria, fault, warning),
        bridging=answer("bridging"),
        prior_allosct=answer("prior_allosct"),
        screening_bm_blast_pct=values["screening_bm_blast_pct"],
        screening_pb_blasts_per_ul=values["screening_pb_blasts_per_ul"],
        high_burden=high_burden(
            marrow_percent=values["screening_bm_blast_pct"],
            blood_per_ul=values["screening_pb_blasts_per_ul"],
            criteria=criteria,
        ),
    )


def _lymphodepletion(row: CsvRow, criteria: Criteria, fault: object, warning: object) -> str:
    """Compare days and doses with the schedule: `as planned`, `deviates`, or empty where nothing was recorded."""
    assert callable(fault)
    assert callable(warning)
    states = []
    for drug in criteria.document.lymphodepletion:
        cell, dose = row.cells.get(f"{drug.name}_days", ""), row.cells.get(f"{drug.name}_mg_m2", "")
        if not cell and not dose:
            continue
        days = [part.strip().replace("−", "-") for part in re.split(r"[;,\s]+", cell) if part.strip()]
        if any(not re.fullmatch(r"[+-]?\d+", day) for day in days) or (dose and not re.fullmatch(r"\d+(\.\d+)?", dose)):
            fault(f"{drug.name}_days", f"expected days such as -5;-4 and a dose in mg/m²; got {cell!r} and {dose!r}")
            continue
        wrong = []
        if cell and sorted(map(int, days)) != sorted(drug.days):
            wrong.append(f"on days {', '.join(days)}, planned {', '.join(map(str, drug.days))}")
        if dose and float(dose) != drug.mg_per_m2:
            wrong.append(f"{dose} mg/m² a day, planned {drug.mg_per_m2:g}")
        if wrong:
            warning("LYMPHODEPLETION_DEVIATES", f"{drug.name.capitalize()} {'; '.join(wrong)}.")
        states.append("deviates" if wrong else "as planned")
    if not states:
        return ""
    return "deviates" if "deviates" in states else "as planned"


def by_patient_id(table: BaselineTable | None) -> Mapping[str, Baseline]:
    """Return the baseline rows by patient; empty without a table."""
    return {} if table is None else {one.patient_id: one for one in table.rows}
