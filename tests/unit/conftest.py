"""A drawn cohort of 24 patients as four tables: visits, baseline, adverse events, CAR-T counts."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowmrd.clinical.table import COLUMNS

WINDOWS = {"D28": (24, 28, 35), "M3": (77, 91, 105), "M6": (162, 183, 204), "M12": (335, 365, 395)}
COUNT_DAYS = (2, 4, 7, 10, 14, 21, 28, 60, 91, 183, 365)


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(header)
        out.writerows(rows)


def draw_cohort(folder: Path, *, patients: int = 24, seed: int = 5) -> None:
    """Write the four tables; courses are made up, but none contradicts itself."""
    rng = random.Random(seed)
    visits: list[list[object]] = []
    baseline: list[list[object]] = []
    events: list[list[object]] = []
    counts: list[list[object]] = []
    for i in range(1, patients + 1):
        name = f"S{i:02}"
        fate = rng.choices(["cr", "relapse", "refractory", "sct", "death"], [8, 6, 3, 4, 2])[0]
        relapse = rng.choice([91, 183, 365]) if fate == "relapse" else None
        sct = rng.choice([70, 110, 140]) if fate == "sct" else None
        death = {"refractory": rng.choice([60, 110, 150]), "death": rng.choice([55, 120])}.get(fate)
        if relapse and rng.random() < 0.4:
            death = relapse + rng.randint(20, 120)
        followed = death or rng.randint(300, 420)
        blasts = round(rng.choice([8, 30, 55, 80, 92]) * rng.uniform(0.8, 1.05), 1)
        for visit, (_, target, _) in WINDOWS.items():
            day = target + rng.randint(-3, 3)
            row: dict[str, object] = dict.fromkeys(COLUMNS, "")
            row |= {
                "patient_id": name,
                "timepoint": visit,
                "bl_bm_blast_pct": blasts,
                "bl_emd": int(rng.random() < 0.1),
            }
            row |= {"allosct_day": sct or "", "death_day": death or "", "last_contact_day": followed}
            row["bl_emd"] = 0
            if day > followed:
                visits.append([row[column] for column in COLUMNS])
                continue
            ill = fate == "refractory" or (relapse is not None and target >= relapse)
            size = rng.choice([150_000, 400_000, 800_000, 1_200_000])
            low = rng.choice([0, 0, 1, 3, 30, 70])
            row |= {
                "day": day,
                "bm_status": "done" if ill or rng.random() < 0.93 else "not_done",
                "cd19_indep_gating": "N" if rng.random() < 0.05 else "Y",
                "mrd_denominator": size,
                "mrd_events": int(size * rng.uniform(0.05, 0.7)) if ill else low,
                "bm_blast_pct": round(rng.uniform(12, 80), 1) if ill else rng.choice([0, 1, 2, 3]),
                "blast_cd19_pos_pct": rng.choice([2, 97]) if ill else "",
                "pb_blast_pct": rng.choice([0, 5]) if ill else 0,
                "anc": round(rng.uniform(0.2, 0.9) if ill else rng.uniform(0.6, 3), 2),
                "plt": rng.randint(10, 60) if ill else rng.choice([40, 70, 120, 180, 220]),
                "plt_tx_7d": "N",
                "cns": "CNS1",
                "emd": 0,
                "lineage_switch": "N",
                "confirm_tests_ge1pct": 0,
            }
            if row["bm_status"] != "done":
                row |= {"bm_blast_pct": "", "mrd_denominator": "", "mrd_events": "", "bm_status": "not_done"}
            visits.append([row[column] for column in COLUMNS])
        weight = round(rng.uniform(12, 70), 1)
        dose = rng.choice([1.6e6, 3e6, 5e6, 9e6, 1.5e7])
        days = rng.choice(["-5;-4;-3;-2"] * 9 + ["-5;-4;-3"])
        baseline.append(
            [
                name,
                "Y",
                rng.randint(2, 24),
                rng.choice("FM"),
                weight,
                f"{dose:.0f}",
                days,
                30,
                "-3;-2",
                500,
                rng.choice("YN"),
                rng.choice("NNNY"),
                blasts,
                rng.choice([0, 200, 15000, ""]),
            ]
        )
        grade = rng.choices([0, 1, 2, 3, 4], [2, 6, 5, 2, 1])[0]
        if grade:
            parts = {
                1: ("none", "none"),
                2: ("no_pressor", "none"),
                3: ("one_pressor", "low_flow"),
                4: ("none", "positive_pressure"),
            }
            events.append(
                [name, "CRS", "cytokine release syndrome", rng.randint(1, 8), grade, "chart", "Y", *parts[grade], ""]
            )
        if rng.random() < 0.3:
            ice = rng.choice([8, 5, 2])
            events.append(
                [name, "ICANS", "neurotoxicity", rng.randint(3, 9), {8: 1, 5: 2, 2: 3}[ice], "chart", "", "", "", ice]
            )
        if rng.random() < 0.8:
            events.append([name, "B-cell depletion", "B-cell aplasia", 14, 2, "lab", "", "", "", ""])
        if rng.random() < 0.1:
            events.append([name, "allergy", "urticaria", 0, 1, "chart", "", "", "", ""])
        if rng.random() < 0.4:
            events.append([name, "infection", "bacteraemia", rng.randint(2, 40), 3, "chart", "", "", "", ""])
        peak, fall = rng.lognormvariate(5, 1), rng.uniform(0.02, 0.15)
        for day in COUNT_DAYS:
            if day > followed:
                break
            value = peak * (min(day, 10) / 10) ** 3 * math.exp(-fall * max(day - 10, 0)) * rng.lognormvariate(0, 0.2)
            cells = 0 if day < 60 or rng.random() < 0.6 else rng.randint(5, 150)
            counts.append([name, 1, day, round(max(value, 0.001), 3), 0.2, cells])
    write(folder / "clinical.csv", COLUMNS, visits)
    header = [
        "patient_id",
        "infused",
        "age_years",
        "sex",
        "weight_kg",
        "dose_per_kg",
        "fludarabine_days",
        "fludarabine_mg_m2",
    ]
    header += ["cyclophosphamide_days", "cyclophosphamide_mg_m2", "bridging", "prior_allosct", "screening_bm_blast_pct"]
    write(folder / "baseline.csv", [*header, "screening_pb_blasts_per_ul"], baseline)
    header = ["patient_id", "category", "term", "onset_day", "grade", "source", "fever", "hypotension", "oxygen", "ice"]
    write(folder / "adverse_events.csv", header, events)
    write(folder / "counts.csv", ["subject", "course", "day", "car_per_ul", "lod_per_ul", "cd19_per_ul"], counts)


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `clinical.csv` and the three tables beside it."""
    folder = tmp_path_factory.mktemp("cohort")
    draw_cohort(folder)
    return folder
