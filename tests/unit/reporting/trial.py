"""A small trial over drawn results: a relapse after remission, a withheld sample, a patient without files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flowmrd.clinical.rules import load_criteria
from flowmrd.quantification.kinetics import Sample
from flowmrd.records import AcquisitionResult
from flowmrd.trial import Trial, conclude, load_inputs

COLUMNS = (
    "patient_id,timepoint,day,bl_bm_blast_pct,bl_emd,bm_status,bm_blast_pct,confirm_tests_ge1pct,pb_blast_pct,anc,plt,"
    "plt_tx_7d,cns,emd,lineage_switch,allosct_day,death_day,last_contact_day"
)
ROWS = (
    "PSN-0042,D28,28,80,0,done,1,0,0,0.8,71,N,CNS1,0,N,100,,400",
    "PSN-0042,M3,91,80,0,done,2,0,0,2.0,150,N,CNS1,0,N,100,,400",
    "PSN-0042,M6,183,80,0,done,46,0,12,0.4,30,N,CNS1,0,N,100,,400",
    "PSN-0042,M12,365,80,0,done,60,0,20,0.4,30,N,CNS1,0,N,100,,400",
    "PSN-0007,D28,28,60,0,done,1,0,0,2.0,150,N,CNS1,0,N,,60,60",
    "PSN-0007,M3,,60,0,not_done,,0,,,,N,,,N,,60,60",
    "PSN-0099,D28,40,60,0,done,1,0,0,2.0,150,N,CNS1,0,N,,,90",
)
EVENTS = (
    "patient_id,category,term,onset_day,grade,source,fever,hypotension,oxygen",
    "PSN-0042,CRS,cytokine release syndrome,4,1,chart,Y,no_pressor,none",
)
BASELINE = (
    "patient_id,infused,age_years,dose_per_kg,prior_allosct,screening_bm_blast_pct",
    "PSN-0042,Y,9,5e6,N,80",
    "PSN-0007,Y,12,1e6,N,60",
    "PSN-0099,Y,4,4e6,Y,60",
)


def trial_results(made: Sequence[AcquisitionResult]) -> tuple[AcquisitionResult, ...]:
    """Take four drawn results as one patient's D28, M3 and M6 and another's withheld D28; blood tubes beside them."""
    first, second, third, other = made[1], made[2], made[0], made[3]
    day = {"D28": 28, "M3": 91, "M6": 183}
    results = [
        replace(first, visit="D28", study_day=day["D28"]),
        replace(second, visit="M3", study_day=day["M3"]),
        replace(third, visit="M6", study_day=day["M6"]),
        replace(other, visit="D28", study_day=28, withheld=("no normal lymphocytes",)),
    ]
    blood = replace(first, acquisition="blood", specimen_type="PB", measurements=(), wording=(), findings=())
    results += [
        replace(
            blood,
            acquisition=f"blood-{number}",
            study_day=number,
            point=Sample(day=float(number), car_per_ul=value, lod_per_ul=0.5, cd19_per_ul=0.0),
        )
        for number, value in ((7, 40.0), (14, 90.0), (28, 8.0), (91, 1.0))
    ]
    return tuple(results)


def make_trial(folder: Path, results: Sequence[AcquisitionResult]) -> Trial:
    """Write the tables and put the results into them."""
    for name, lines in (("clinical", (COLUMNS, *ROWS)), ("adverse_events", EVENTS), ("baseline", BASELINE)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    inputs = load_inputs(
        folder / "clinical.csv",
        load_criteria(),
        baseline=folder / "baseline.csv",
        adverse_events=folder / "adverse_events.csv",
    )
    return conclude(inputs, results)
