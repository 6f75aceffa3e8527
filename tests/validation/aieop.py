"""Make the validation table of a tube: the shipped template, unchanged, on labelled marrows, through the command line.

    python tests/validation/aieop.py                                    writes docs/validation/aieop-bfm-syto.md
    python tests/validation/aieop.py --own DIR --template ID --out FILE   the same table for a laboratory's own files

Every figure of the page is computed here; none is typed in. Each file goes through `flowmrd gate --membership`, and its
memberships are compared with the labels, event by event. The page's words stand in `aieop-page.md` beside this file.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
TEMPLATE = "aieop-bfm-syto"
WORDS = Path(__file__).with_name("aieop-page.md")
PAGE = REPOSITORY / "docs" / "validation" / f"{TEMPLATE}.md"

# ------------------------------------------------------------------------------------------- which marrows are drawn

COHORTS = ("VIE14", "VIE16", "VIE19", "BLN", "BUE")
EACH = 4
DRAWN_EVENTS = 250_000
DRAWN_SEED = 1
# Patients whose drawn marrows were looked at while the template was written; the table must not rest on them.
LOOKED_AT = {
    "BLN": (9, 11, 13, 23, 41, 45, 49, 53, 61, 63),
    "BUE": (7, 9, 11, 15, 23, 39, 43, 47, 49, 51),
    "VIE14": (15, 73, 77, 89, 103, 115, 139, 161, 185, 187),
    "VIE16": (1, 3, 29, 49, 53, 97, 105, 107, 113, 121),
    "VIE19": (1, 3, 15, 23, 27, 33, 65, 73, 75, 83),
}
DEVELOPMENT = frozenset(f"{cohort}-P{number:03}" for cohort, numbers in LOOKED_AT.items() for number in numbers)

# The clinic's and our names of what is compared, in the order of the table.
POPULATIONS = {"singlets": "singlets", "viable": "viable", "cd19": "CD19+", "mature_b": "mature B", "blasts": "blasts"}
# The page is on the gates: a template that searches keeps the population of its fixed rule beside it.
FIXED_RULE = "static_blasts"
DIVA = {
    "Singlets": "singlets",
    "Viable": "viable",
    "CD19+": "cd19",
    "mature B-cells": "mature_b",
    "Blasts": "blasts",
}
# Files with fewer true blasts are judged by their count, not by a ratio: chance alone moves a small count by more.
ENOUGH = 50
# Events from which on a result counts as detected (the rule 20/50).
DETECTED = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A file, what is true of its events, and the counts to compare with where they do not follow from the labels."""

    name: str
    group: str
    path: Path
    truth: Mapping[str, Mask]
    counts: Mapping[str, int] = field(default_factory=dict)

    def expected(self, population: str) -> int | None:
        """Return the count that is aimed at, or `None` where nobody knows it."""
        if population in self.counts:
            return self.counts[population]
        mask = self.truth.get(population)
        return None if mask is None else int(mask.sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What the command line wrote about one file.

    `counts` and `member` of "blasts" are those of the fixed rule where the template has one beside a search; `searched`
    is what the search called.
    """

    case: Case
    counts: Mapping[str, int]
    member: Mapping[str, Mask]
    measurement: Mapping[str, str]
    searched: int
    findings: tuple[Mapping[str, str], ...]

    @property
    def ratio(self) -> float | None:
        """Found blasts by true blasts."""
        expected = self.case.expected("blasts")
        return self.counts["blasts"] / expected if expected else None

    @property
    def fraction(self) -> float:
        """Found blasts by the measurement's denominator."""
        return self.counts["blasts"] / int(self.measurement["denominator_events"])

    @property
    def f1(self) -> float | None:
        """Event-level F1 of the blasts; `None` where there are none to find."""
        return f1_score(self.member["blasts"], self.case.truth["blasts"])


def f1_score(found: Mask, true: Mask) -> float | None:
    """Return 2·TP / (found + true), or `None` where nothing is true."""
    if not true.any():
        return None
    return 2 * int((found & true).sum()) / (int(found.sum()) + int(true.sum()))


# ------------------------------------------------------------------------------------------------------- the marrows


def _columns(path: Path) -> dict[str, NDArray[np.str_]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = list(csv.reader(data.decode("utf-8").splitlines()))
    table = np.array(rows[1:])
    return {name: table[:, number] for number, name in enumerate(rows[0])}


def diva_counts(path: Path, template: str) -> dict[str, int]:
    """Read the counts that Diva stored with the gates of one worksheet template."""
    root = ET.parse(path).getroot()
    sheet = next(node for node in root.iter("worksheet_template") if node.get("name") == template)
    found: dict[str, int] = {}
    for gate in sheet.iter("gate"):
        name, events = gate.findtext("name"), gate.findtext("num_events")
        if name in DIVA and events is not None:
            found[DIVA[name]] = int(events)
    return found


def real_cases(fcs: Path) -> Iterator[Case]:
    """Yield the two day-15 marrows with the clinic's gates, and the four dilutions of the second."""
    folder = fcs / "ball_mrd_real"
    labels = _columns(folder / "47333.gate_labels.csv.gz")
    names = {
        "singlets": "singlets",
        "viable": "intact",
        "cd19": "cd19+",
        "mature_b": "matureb-cells",
        "blasts": "blast",
    }
    yield Case(
        name="47333",
        group="real",
        path=folder / "47333tubeB10001.fcs",
        truth={ours: labels[theirs] == "1" for ours, theirs in names.items()},
        counts=diva_counts(folder / "47333_diva.xml", "BCP"),
    )
    labels = _columns(folder / "494.gate_labels.csv.gz")
    names = {"singlets": "singlets", "viable": "intact", "cd19": "cd19", "mature_b": "cd20", "blasts": "blast"}
    yield Case(
        name="123991 (494)",
        group="real",
        path=folder / "123991.fcs",
        truth={ours: labels[theirs] == "1" for ours, theirs in names.items()},
    )
    folder = fcs / "ball_mrd_dilution"
    paths = {
        path.name.removeprefix("P494_mrd").removesuffix("pct.fcs").replace("p", "."): path
        for path in folder.glob("*.fcs")
    }
    for level in sorted(paths, key=float, reverse=True):
        path = paths[level]
        labels = _columns(path.with_name(f"{path.stem}.labels.csv.gz"))
        names = {"viable": "intact", "cd19": "cd19", "blasts": "blast"}
        yield Case(
            name=f"494 diluted to {level} %",
            group="diluted",
            path=path,
            truth={ours: labels[theirs] == "1" for ours, theirs in names.items()},
        )


def _intact(blast: Mask, b_cell: Mask) -> dict[str, Mask]:
    """Truth of a file that holds intact single cells only."""
    every = np.ones(blast.size, np.bool_)
    return {"singlets": every, "viable": every, "cd19": b_cell, "blasts": blast}


def simulated_cases(fcs: Path) -> Iterator[Case]:
    """Yield the four simulated marrows."""
    for path in sorted((fcs / "ball_mrd_sim").glob("*.fcs")):
        kind = next(iter(_columns(path.with_name(f"{path.stem}.labels.csv.gz")).values()))
        yield Case(name=path.stem, group="simulated", path=path, truth=_intact(kind == "blast", kind != "nonB"))


def chosen_samples(samples: Iterable[Mapping[str, str]]) -> list[str]:
    """Choose the samples to draw, by the rule that the page states."""
    rows = [row for row in samples if row["id"].rsplit("-", 1)[0] not in DEVELOPMENT]
    chosen: list[str] = []
    for cohort in COHORTS:
        mine = sorted((float(row["mrd_pct_of_intact"]), row["id"]) for row in rows if row["center"] == cohort)
        patients: set[str] = set()
        for part in range(EACH):
            place = (2 * part + 1) * len(mine) // (2 * EACH)
            sample = next(name for _, name in mine[place:] if name.rsplit("-", 1)[0] not in patients)
            patients.add(sample.rsplit("-", 1)[0])
            chosen.append(sample)
    return chosen


def drawn_cases(shared: Path, work: Path) -> Iterator[Case]:
    """Draw the chosen marrows from their mixture models into `work` and yield them."""
    models = shared / "fcs" / "ball_gmm"
    with (models / "samples.csv").open(encoding="utf-8") as stream:
        names = chosen_samples(csv.DictReader(stream))
    folder = work / "drawn"
    tool = [sys.executable, str(shared / "tools" / "marrow_from_model.py"), str(models / "gmm_models.jsonl.gz")]
    subprocess.run(
        [*tool, "--out", str(folder), "--events", str(DRAWN_EVENTS), "--seed", str(DRAWN_SEED), "--id", *names],
        check=True,
    )
    for name in names:
        labels = np.load(folder / f"{name}.labels.npy")
        yield Case(name=name, group="drawn", path=folder / f"{name}.fcs", truth=_intact(labels == 2, labels > 0))


def own_cases(folder: Path) -> Iterator[Case]:
    """Yield a laboratory's files: NAME.fcs with NAME.labels.csv (or .csv.gz) of 0/1 columns named as populations."""
    for path in sorted(folder.glob("*.fcs")):
        found = [path.with_name(path.stem + suffix) for suffix in (".labels.csv", ".labels.csv.gz")]
        labels = next((candidate for candidate in found if candidate.is_file()), None)
        if labels is None:
            raise SystemExit(f"{path.name}: no {found[0].name} beside it")
        columns = _columns(labels)
        unknown = sorted(set(columns) - set(POPULATIONS))
        if unknown or "blasts" not in columns:
            wanted = ", ".join(POPULATIONS)
            raise SystemExit(f"{labels.name}: columns are {', '.join(columns)}; known are {wanted}; blasts is required")
        yield Case(
            name=path.stem, group="own", path=path, truth={name: column == "1" for name, column in columns.items()}
        )


# ------------------------------------------------------------------------------------------------ the product's answer


def outcomes(cases: Sequence[Case], template: str, out: Path, jobs: int) -> list[Outcome]:
    """Run `flowmrd gate` once over all files and read what it wrote.

    Raises
    ------
    SystemExit
        The command ended otherwise than with 0, or the labels do not fit a file.
    """
    import polars as pl

    command = [sys.executable, "-m", "flowmrd", "gate", *(str(case.path) for case in cases)]
    command += ["--template", template, "--out", str(out), "--membership", "--no-report", "--jobs", str(jobs)]
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=REPOSITORY, check=False, env={**os.environ, **one_thread})
    if ended.returncode:
        raise SystemExit(f"flowmrd gate ended with {ended.returncode}")
    tables = {name: _rows(out / f"{name}.csv") for name in ("populations", "measurements", "findings")}
    result = []
    for case in cases:
        stem = case.path.stem
        frame = pl.read_parquet(out / "membership" / f"{stem}.parquet")
        if any(mask.size != frame.height for mask in case.truth.values()):
            raise SystemExit(f"{case.path.name}: {frame.height} events, but its labels have another number of rows")
        mine = {name: [row for row in rows if row["acquisition"] == stem] for name, rows in tables.items()}
        counts = {row["population"]: int(row["events"]) for row in mine["populations"]}
        member = {name: frame[name].to_numpy() for name in frame.columns}
        searched = counts["blasts"]
        if FIXED_RULE in member:
            counts["blasts"], member["blasts"] = counts[FIXED_RULE], member[FIXED_RULE]
        result.append(
            Outcome(
                case=case,
                counts=counts,
                member=member,
                searched=searched,
                measurement=next(row for row in mine["measurements"] if row["analyte"] == "MRD"),
                findings=tuple(mine["findings"]),
            )
        )
    return result


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# -------------------------------------------------------------------------------------------------------------- tables


def _pair(expected: int | None, found: int | None) -> str:
    if found is None:
        return ""
    if expected is None:
        return f"– → {found:,}"
    change = f" ({100 * (found / expected - 1):+.1f} %)" if expected >= ENOUGH else ""
    return f"{expected:,} → {found:,}{change}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(fraction: str) -> str:
    return f"{100 * float(fraction):.2g} %" if fraction else "–"


def main_table(done: Sequence[Outcome]) -> str:
    """Return the table of truth → found."""
    lines = [
        "| file | events | " + " | ".join(POPULATIONS.values()) + " | found / true | F1 | LOD | search |",
        "|---|---" + "|---" * len(POPULATIONS) + "|---|---|---|---|",
    ]
    for one in done:
        cells = [_pair(one.case.expected(name), one.counts.get(name)) for name in POPULATIONS]
        ratio = one.ratio if (one.case.expected("blasts") or 0) >= ENOUGH else None
        limit, call = _percent(one.measurement["lod_fraction"]), one.measurement["call"].replace("_", " ")
        cells += [_number(ratio), _number(one.f1), limit, f"{one.searched:,}, {call}"]
        lines.append(f"| {one.case.name} | {one.member['blasts'].size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


STEPS = {
    "clean-up": "not among our viable events: time, size, doublet or clump gate",
    "side scatter": "viable, but above the side-scatter border",
    "CD19": "below the CD19 border and not CD10+ CD34+",
    "CD10 border": "CD19+, but neither CD10+ (with CD45 no higher than mature B cells) nor CD34+ CD20-",
    "named normal": "taken for hematogones or plasma cells",
}


def losses(one: Outcome) -> dict[str, int]:
    """Count the true blasts that each step loses."""
    true, member = one.case.truth["blasts"], one.member
    left = true & member["viable"]
    low = left & member["ssc_low"]
    reached = low & member["precursors"]
    return {
        "clean-up": int((true & ~member["viable"]).sum()),
        "side scatter": int((left & ~member["ssc_low"]).sum()),
        "CD19": int((low & ~member["precursors"] & ~member["cd19"]).sum()),
        "CD10 border": int((low & ~member["precursors"] & member["cd19"]).sum()),
        "named normal": int((reached & ~member["blasts"]).sum()),
    }


ROUTES = {
    "CD10+": "cd10_pos",
    "CD34+ CD10-": "cd10_neg_precursors",
    "CD10+ CD34+ CD19-": "cd19_neg_precursors",
}


def wrong_by_route(one: Outcome) -> dict[str, int]:
    """Count the events wrongly called blasts by the route they came in; an event may come by several."""
    wrong = one.member["blasts"] & ~one.case.truth["blasts"]
    return {route: int((wrong & one.member[population]).sum()) for route, population in ROUTES.items()}


def loss_table(done: Sequence[Outcome]) -> str:
    """Return where true blasts go missing and what else is called a blast."""
    lines = [
        "| file | true blasts | found of them | lost: "
        + " | lost: ".join(STEPS)
        + " | wrongly found | of these B cells | by "
        + " | by ".join(ROUTES)
        + " |",
        "|---|---|---" + "|---" * len(STEPS) + "|---|---" + "|---" * len(ROUTES) + "|",
    ]
    for one in done:
        true, found = one.case.truth["blasts"], one.member["blasts"]
        wrong = found & ~true
        numbers = [int(true.sum()), int((true & found).sum()), *losses(one).values(), int(wrong.sum())]
        numbers += [int((wrong & one.case.truth["cd19"]).sum()), *wrong_by_route(one).values()]
        lines.append(f"| {one.case.name} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What was asked for, what came out, and whether that is enough."""

    what: str
    asked: str
    found: str
    met: bool


def goals(done: Sequence[Outcome]) -> list[Goal]:
    """Compare with what was asked of the template before it was written."""
    by_name = {one.case.name: one for one in done}
    result = []
    limits = {"singlets": 0.05, "viable": 0.05, "cd19": 0.05, "mature_b": 0.10, "blasts": 0.25}
    one = by_name["47333"]
    for name, limit in limits.items():
        result.append(_near(one, name, limit, f"47333, {POPULATIONS[name]} against Diva's count"))
    result.append(_near(by_name["123991 (494)"], "blasts", 0.15, "123991, blasts against the clinic's gate"))
    diluted = [one for one in done if one.case.group == "diluted"]
    fractions = [one.fraction for one in diluted]
    result.append(
        Goal(
            what="the four dilutions",
            asked="in the right order",
            found=" > ".join(f"{100 * value:.3g} %" for value in fractions),
            met=all(a > b for a, b in pairwise(fractions)),
        )
    )
    return result


def _near(one: Outcome, name: str, limit: float, what: str) -> Goal:
    expected, found = one.case.expected(name), one.counts[name]
    assert expected
    change = found / expected - 1
    return Goal(
        what=what,
        asked=f"{expected:,} within {limit:.0%}",
        found=f"{found:,} ({change:+.1%})",
        met=abs(change) <= limit,
    )


def goal_table(items: Sequence[Goal]) -> str:
    """Return the goals as a table."""
    lines = ["| what | asked | found | met |", "|---|---|---|---|"]
    lines += [f"| {one.what} | {one.asked} | {one.found} | {'yes' if one.met else '**no**'} |" for one in items]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------- page


def _judged(done: Sequence[Outcome]) -> list[Outcome]:
    return [one for one in done if (one.case.expected("blasts") or 0) >= ENOUGH]


def summary(done: Sequence[Outcome]) -> str:
    """Say in sentences how the files of each kind came out."""
    kinds = {"real": "real files", "diluted": "dilutions", "simulated": "simulated marrows", "drawn": "drawn marrows"}
    lines = []
    for group, text in kinds.items():
        mine = [one for one in done if one.case.group == group]
        judged = _judged(mine)
        near = sum(abs((one.ratio or 0) - 1) <= 0.25 for one in judged)
        scores = [one.f1 or 0.0 for one in judged]
        lines.append(
            f"* {text}: {len(judged)} of {len(mine)} hold at least {ENOUGH} true blasts. Of these {near} are within "
            f"25 % of the true count; F1 median {np.median(scores):.2f}, lowest {min(scores):.2f}."
        )
    few = [
        one for one in done if one.case.group in {"simulated", "drawn"} and (one.case.expected("blasts") or 0) < ENOUGH
    ]
    pairs = [f"{one.case.name} {one.case.expected('blasts')} → {one.counts['blasts']:,}" for one in few]
    lines.append(
        f"* Simulated and drawn marrows with fewer than {ENOUGH} true blasts, truth → found: {', '.join(pairs)}."
    )
    return "\n".join(lines)


def misses(done: Sequence[Outcome]) -> str:
    """List the judged files whose count is off by more than a quarter, each with what costs most."""
    lines = []
    for one in _judged(done):
        if abs((one.ratio or 0) - 1) <= 0.25:
            continue
        lost, routes = losses(one), wrong_by_route(one)
        true, found = one.case.truth["blasts"], one.member["blasts"]
        wrong = int((found & ~true).sum())
        step, route = max(lost, key=lambda name: lost[name]), max(routes, key=lambda name: routes[name])
        if wrong > lost[step]:
            why = f"{wrong:,} events that are not labelled blasts are counted, {routes[route]:,} of them by {route}"
        else:
            why = f"{lost[step]:,} of {int(true.sum()):,} are lost at: {step}"
        lines.append(f"* {one.case.name}, found / true {one.ratio:.2f}: {why}.")
    return "\n".join(lines) or "* none"


def figures(done: Sequence[Outcome], run: Mapping[str, object]) -> dict[str, object]:
    """Return every figure that the page's words name."""
    templates = run["templates"]
    assert isinstance(templates, dict)
    head = templates[TEMPLATE]
    by_name = {one.case.name: one for one in done}
    drawn = [one for one in done if one.case.group == "drawn"]
    judged = _judged(drawn)
    # Shares a file, then averaged, so that the patients with most blasts do not speak for all.
    means = {
        name: float(np.mean([losses(one)[name] / int(one.case.truth["blasts"].sum()) for one in judged]))
        for name in STEPS
    }
    free = [one for one in done if one.case.group in {"simulated", "drawn"} and not one.case.truth["blasts"].any()]
    called = [one for one in free if one.counts["blasts"] >= DETECTED]
    routes = {route: sum(wrong_by_route(one)[route] for one in called) for route in ROUTES}
    worst = max(free, key=lambda one: one.fraction)
    without = [
        one for one in done if any(row["code"] == "MARKERS_ABSENT" and "CD58" in row["message"] for row in one.findings)
    ]
    first, whole = by_name["47333"], by_name["123991 (494)"]
    zero = next(one for one in done if one.case.group == "diluted" and not one.case.truth["blasts"].any())
    return {
        "template": TEMPLATE,
        "version": head["version"],
        "sha256": head["sha256"],
        "flowmrd": run["flowmrd"],
        "files": len(done),
        "reapplied_cd19": int(first.case.truth["cd19"].sum()),
        "diva_cd19": first.case.expected("cd19"),
        "drawn_files": len(drawn),
        "cohorts": ", ".join(COHORTS),
        "each": EACH,
        "drawn_events": DRAWN_EVENTS,
        "drawn_seed": DRAWN_SEED,
        "enough": ENOUGH,
        "main_table": main_table(done),
        "goal_table": goal_table(goals(done)),
        "summary": summary(done),
        "misses": misses(done),
        "loss_table": loss_table(done),
        "steps": "\n".join(f"* **{name}**: {text}." for name, text in STEPS.items()),
        "judged_drawn": len(judged),
        "mean_losses": ", ".join(
            f"{name} {share:.1%}" for name, share in sorted(means.items(), key=lambda item: -item[1])
        ),
        "free_files": len(free),
        "free_detected": len(called),
        "free_names": ", ".join(one.case.name for one in called) or "none",
        "free_routes": ", ".join(f"{route} {count:,}" for route, count in routes.items()),
        "worst_name": worst.case.name,
        "worst_events": worst.counts["blasts"],
        "worst_percent": 100 * worst.fraction,
        "without_cd58": len(without),
        "first_count": first.counts["blasts"],
        "first_diva": first.case.expected("blasts"),
        "first_true": int(first.case.truth["blasts"].sum()),
        "first_hit": int((first.case.truth["blasts"] & first.member["blasts"]).sum()),
        **{f"first_{name}": count for name, count in _edges(first).items()},
        "zero_found": zero.counts["blasts"],
        **{f"zero_{name}": count for name, count in _edges(zero).items()},
        "whole_share": float(whole.case.truth["blasts"].sum() / whole.case.truth["viable"].sum()),
    }


def _edges(one: Outcome) -> dict[str, int]:
    """Count the wrongly found events by where they lie in the clinic's gates."""
    wrong = one.member["blasts"] & ~one.case.truth["blasts"]
    intact, cd19 = one.case.truth["viable"], one.case.truth["cd19"]
    return {
        "wrong": int(wrong.sum()),
        "outside": int((wrong & ~intact).sum()),
        "no_cd19": int((wrong & intact & ~cd19).sum()),
        "inside": int((wrong & intact & cd19).sum()),
    }


def wrapped(text: str) -> str:
    """Break the lines of paragraphs and list items at 120 characters; tables and headings stay."""
    lines = []
    for line in text.splitlines():
        if line.startswith(("|", "#")):
            lines.append(line)
            continue
        indent = "  " if line.startswith("* ") else ""
        lines += textwrap.wrap(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [
            ""
        ]
    return "\n".join(lines) + "\n"


def page(done: Sequence[Outcome], run: Mapping[str, object]) -> str:
    """Return the whole page."""
    return wrapped(WORDS.read_text(encoding="utf-8").format_map(figures(done, run)))


def main() -> None:
    """Draw, gate, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of the reference files")
    parser.add_argument("--own", type=Path, help="folder of your own files: NAME.fcs with NAME.labels.csv beside it")
    parser.add_argument("--template", default=TEMPLATE, help="template id or .toml file (with --own)")
    parser.add_argument("--out", type=Path, default=PAGE, help="page to write")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if args.own is not None:
            if args.out == PAGE:
                parser.error("--own needs --out: your table must not overwrite the shipped one")
            done = outcomes(list(own_cases(args.own)), args.template, work / "run", args.jobs)
            text = f"# {args.template} on {len(done)} labelled files\n\n{main_table(done)}\n"
        else:
            if not (args.shared / "fcs").is_dir():
                parser.error("the reference files (shared/fcs) are not beside the repository; name them with --shared")
            fcs = args.shared / "fcs"
            cases = [*real_cases(fcs), *simulated_cases(fcs), *drawn_cases(args.shared, work)]
            done = outcomes(cases, TEMPLATE, work / "run", args.jobs)
            text = page(done, json.loads((work / "run" / "run.json").read_text(encoding="utf-8")))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
