"""Compare a simulated trial's responses, from FCS files through `flowmrd run --clinical`, with the simulator's truth.

    python tests/validation/cohort.py            makes what is missing and writes docs/validation/cohort.md
    python tests/validation/cohort.py --page     writes the page from what was made

Every figure of the page is computed here; none is typed in. Files (2 GB, which may be deleted afterwards) and results
are kept under `build/validation/cohort`; an interrupted run goes on where it was. The page's words stand in
`cohort-page.md` beside this file.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowmrd.clinical.endpoints import outcomes_of
from flowmrd.clinical.rules import load_criteria
from flowmrd.clinical.table import read_clinical_table
from flowmrd.gating.template import find_template
from flowmrd.quantification.rare_events import load_rules
from flowmrd.simulation import SIMULATOR_VERSION
from flowmrd.simulation.cohort import TRUE_TABLE_NAME, plan_cohort, read_truth, write_cohort

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = "ball-mrd-10c"
WORDS = Path(__file__).with_name("cohort-page.md")
PAGE = REPOSITORY / "docs" / "validation" / "cohort.md"
KEPT = REPOSITORY / "build" / "validation" / "cohort"
PATIENTS, SEED = 24, 1
# What a visit's row says, compared cell by cell.
CLINICAL = ("response", "event", "post_sct", "responder_d28", "marrow_grade")
FLOW = ("mrd_category", "mrd_neg_1e4", "mrdneg_cr", "cd19_status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One visit: the truth's row, the run's, and the cells in which they differ; `permits` as of `expected_of`."""

    truth: Mapping[str, str]
    found: Mapping[str, str]
    measured: Mapping[str, str]
    permits: bool
    differing: tuple[str, ...]
    codes: tuple[str, ...]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def make(folder: Path, *, patients: int, seed: int, events: int | None, jobs: int) -> Path:
    """Simulate the cohort where it is not there yet, run it, and return the run folder."""
    files, out = folder / "files", folder / "run"
    if not (files / "truth.csv").is_file():
        write_cohort(plan_cohort(patients, seed, events=events), files, seed=seed, jobs=jobs, report=print)
    command = ["run", files / "manifest.csv", "--clinical", files / "clinical.csv", "--out", out, "--resume"]
    done = subprocess.run(
        [sys.executable, "-m", "flowmrd", *map(str, command), "--jobs", str(jobs), "--no-report"], check=False
    )
    if done.returncode not in {0, 3}:
        raise SystemExit(done.returncode)
    return out


def expected_of(truth: Mapping[str, str], measured: Mapping[str, str]) -> dict[str, str]:
    """Return the truth of one visit as a sample of this size can show it.

    A sample in which the limit of detection lies above 1e-4 cannot be negative at 1e-4, whatever is true; one that
    holds fewer true blasts than the rule's events has none to find. Both are what the truth's own counts say, but the
    measured denominator decides on which side of the limit the sample lies.
    """
    expected = dict(truth)
    rules = load_rules(load_criteria().keys.mrd_rules)
    if truth["mrd_events"] and int(truth["mrd_events"]) < rules.lod_events and measured.get("denominator_events"):
        enough = rules.lod_events / int(measured["denominator_events"]) <= rules.target_fraction
        expected["mrd_category"] = "UNDETECTED" if enough else "UNDETECTED_INSUFFICIENT"
        expected["mrd_neg_1e4"] = "Y" if enough else "NE"
        expected["mrdneg_cr"] = "Y" if enough and truth["response"] in {"CR", "CRh"} else "N"
        # Shown blank on rows outside their window and without a visit.
        if not truth["mrd_category"]:
            expected |= {"mrd_category": "", "mrd_neg_1e4": "NE", "mrdneg_cr": "N"}
    return expected


def compare(truth: Sequence[Mapping[str, str]], run: Path) -> list[Compared]:
    """Compare the responses of a run with the truth, visit by visit."""
    found = {(row["patient_id"], row["timepoint"]): row for row in rows_of(run / "responses.csv")}
    measured = {row["acquisition"]: row for row in rows_of(run / "measurements.csv") if row["analyte"] == "MRD"}
    table = rows_of(run / "clinical.csv")
    places = {(row["patient_id"], row["timepoint"]): f"row {number}" for number, row in enumerate(table, start=2)}
    codes: dict[str, list[str]] = {}
    for finding in rows_of(run / "response_findings.csv"):
        codes.setdefault(finding["where"], []).append(finding["code"])
    compared = []
    for row in truth:
        key = (row["patient_id"], row["timepoint"])
        own = found[key]
        sample = measured.get(row["acquisition"], {})
        expected = expected_of(row, sample)
        names = [name for name in (*CLINICAL, *FLOW) if name in expected]
        compared.append(
            Compared(
                truth=row,
                found=own,
                measured=sample,
                permits=expected["mrd_neg_1e4"] != "NE",
                differing=tuple(name for name in names if own[name] != expected[name]),
                codes=tuple(codes.get(places[key], ())),
            )
        )
    return compared


def level_of(one: Compared) -> str:
    """Name the kind of visit by what is truly in the marrow."""
    if not one.truth["acquisition"]:
        return "no marrow"
    level = float(one.truth["level"])
    if level == 0:
        return "no blasts, LOD above 1e-4" if not one.permits else "no blasts"
    return "blasts below 1 %" if level < 0.01 else f"blasts of 1 % or more, CD19 {cd19_of(one)}"


def cd19_of(one: Compared) -> str:
    return "lost" if one.truth["cd19_status"] == "CD19neg" else "kept"


ORDER = (
    "no marrow",
    "no blasts, LOD above 1e-4",
    "no blasts",
    "blasts below 1 %",
    "blasts of 1 % or more, CD19 kept",
    "blasts of 1 % or more, CD19 lost",
)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def visit_table(compared: Sequence[Compared]) -> str:
    rows = []
    for level in ORDER:
        own = [one for one in compared if level_of(one) == level]
        if not own:
            continue
        cells: list[object] = [level, len(own)]
        for names in (("response",), ("event",), ("mrd_category",), ("mrd_neg_1e4",), ("cd19_status",)):
            same = sum(not set(names) & set(one.differing) for one in own)
            cells.append(f"{same} of {len(own)}")
        cells.append(sum("MRD_WITHHELD" in one.codes for one in own))
        rows.append(cells)
    head = ["marrow", "visits", "class", "event", "MRD category", "negative at 1e-4", "CD19 status", "withheld"]
    return table(head, rows)


def difference_table(compared: Sequence[Compared]) -> str:
    rows = []
    for one in compared:
        if not one.differing:
            continue
        shown = "; ".join(
            f"{name}: {one.found[name] or 'empty'}, true {one.truth[name] or 'empty'}" for name in one.differing
        )
        counted = f"{one.measured.get('numerator_events', '')} of {one.measured.get('denominator_events', '')}"
        true = f"{one.truth['mrd_events']} of {one.truth['mrd_denominator']}"
        codes = ", ".join(f"`{code}`" for code in sorted(set(one.codes))) or "none"
        rows.append([f"{one.truth['patient_id']} {one.truth['timepoint']}", shown, counted, true, codes])
    return table(["visit", "differs", "counted", "true", "findings"], rows) if rows else "None."


def endpoint_table(truth: Path, run: Path) -> str:
    """Put the cohort's endpoints from the true table beside those of the run."""
    criteria = load_criteria()
    sources = [outcomes_of(read_clinical_table(path, visits=criteria.visits), criteria) for path in (truth, run)]
    wanted = ("orr_cr_crh", *(f"mrdneg_cr_{visit.name}_cart_only" for visit in criteria.visits), "relapse_crude")
    wanted += ("cif_relapse", "dfs_censor_sct", "os_censor_sct")
    by_name = [{row.endpoint: row for row in one.rows} for one in sources]
    rows = []
    for name in wanted:
        cells = []
        for source in by_name:
            row = source[name]
            scale = 1 if row.unit == "percent" else 100
            estimate = "–" if row.estimate is None else f"{scale * row.estimate:.1f} %"
            cells.append(f"{row.k} of {row.n}: {estimate}")
        title = by_name[0][name]
        rows.append([f"{title.title}{f' at {title.visit}' if title.visit else ''}", *cells])
    return table(["endpoint", "truth", "run"], rows)


def car_figures(files: Path, run: Path) -> dict[str, object]:
    """Compare CAR+ cells per µl with the truth: detection, and the median ratio where there are at least 1 per µl."""
    true = {(row["subject"], float(row["day"])): float(row["car_per_ul"]) for row in rows_of(files / "counts.csv")}
    path = run / "kinetics_samples.csv"
    measured = {(row["subject"], float(row["day"])): row for row in rows_of(path)} if path.is_file() else {}
    states = Counter[tuple[bool, str]]()
    ratios = []
    for key, value in true.items():
        row = measured.get(key)
        if row is None or not row["lod_per_ul"]:
            continue
        above = value >= float(row["lod_per_ul"])
        states[above, row["persistence"]] += 1
        if value >= 1 and row["persistence"] == "DETECTED" and row["car_per_ul"]:
            ratios.append(float(row["car_per_ul"]) / value)
    return {
        "car_samples": sum(states.values()),
        "car_above": sum(count for (above, _), count in states.items() if above),
        "car_found": states[True, "DETECTED"],
        "car_below": sum(count for (above, _), count in states.items() if not above),
        "car_false": states[False, "DETECTED"],
        "car_ratio": f"{statistics.median(ratios):.2f}" if ratios else "–",
        "car_ratios": len(ratios),
    }


def page(files: Path, run: Path) -> str:
    """Fill the page's words with the figures."""
    truth = read_truth(files / "truth.csv")
    compared = compare(truth, run)
    template = find_template(TEMPLATE)
    criteria = load_criteria()
    sizes = [int(one.measured["denominator_events"]) for one in compared if one.measured.get("denominator_events")]
    permits = [one for one in compared if one.truth["acquisition"] and one.permits]
    values = {
        "patients": len({row["patient_id"] for row in truth}),
        "visits": len(compared),
        "acquisitions": len(rows_of(files / "manifest.csv")),
        "marrows": len(sizes),
        "median_size": f"{statistics.median(sizes):,.0f}",
        "simulator": SIMULATOR_VERSION,
        "version": template.template.version,
        "template": template.digest,
        "criteria": f"{criteria.id} {criteria.version}",
        "criteria_sha256": criteria.digest,
        "same_class": sum("response" not in one.differing for one in compared),
        "same_all": sum(not one.differing for one in compared),
        "same_permitted": sum(not one.differing for one in permits),
        "permitted": len(permits),
        "visit_table": visit_table(compared),
        "difference_table": difference_table(compared),
        "endpoint_table": endpoint_table(files / TRUE_TABLE_NAME, run / "clinical.csv"),
        **car_figures(files, run),
    }
    text = WORDS.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return wrapped(text)


def wrapped(text: str) -> str:
    """Break long lines; tables stay."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("|") or len(line) <= 120:
            lines.append(line)
            continue
        lines.extend(textwrap.wrap(line, 120, subsequent_indent="  " if line.startswith("* ") else ""))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make, run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--patients", type=int, default=PATIENTS)
    parser.add_argument("--events", type=int, help="in a full marrow")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=KEPT)
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args()
    if not given.page:
        make(given.folder, patients=given.patients, seed=given.seed, events=given.events, jobs=given.jobs)
    given.out.write_text(page(given.folder / "files", given.folder / "run"), encoding="utf-8")
    print(given.out)


if __name__ == "__main__":
    main()
