"""Make the validation table of the CAR-T tube: the shipped template and method on simulated tubes of known truth.

    python tests/validation/cart.py            measures what is missing and writes docs/validation/cart-persistence.md
    python tests/validation/cart.py --page     writes the page from what was measured

Every figure of the page is computed here; none is typed in. Each tube is written as an FCS file, read, gated by the
template and measured against its patient's own controls, by the functions that `flowmrd run` uses. Measured tubes are
kept under `build/validation/cart` by what they depend on; an interrupted run goes on where it was. The page's words
stand in `cart-page.md` beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowmrd.cart_tube import Control, car_measurement, parent_cells, place_anchor, reduced
from flowmrd.gating.control import (
    AnchorSettings,
    Intensities,
    control_quantile,
    residual_spillover,
    tail_of_sample,
)
from flowmrd.gating.engine import apply_template
from flowmrd.gating.template import find_template
from flowmrd.pipeline import Acquisition, open_acquisition
from flowmrd.quantification.cart import Background, Estimate, load_car_rules, measure_car
from flowmrd.settings import Settings
from flowmrd.simulation import SIMULATOR_VERSION, ChannelSet, Parameters, simulate, write_simulated
from flowmrd.simulation.profile import load_profile

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = "cart-persistence"
WORDS = Path(__file__).with_name("cart-page.md")
PAGE = REPOSITORY / "docs" / "validation" / f"{TEMPLATE}.md"
KEPT = REPOSITORY / "build" / "validation" / "cart"

# log10 background of the reagent on T cells, the low, middle and high end of the simulator's range.
BACKGROUNDS = {"low": 1.5, "middle": 1.8, "high": 2.1}
PATIENTS = 10  # of each background
FIRST_PATIENT = 9100  # no patient below was looked at while the method was written
EVENTS = 400_000
PRODUCT_EVENTS = 150_000
CONTROL_BATCH = 2.0  # controls are stained and acquired on worse days than samples: drift of reagent and detectors
SCENARIOS = ("aplasia", "expansion", "normal", "recovery")
# CAR+ fraction of T cells → tubes a patient.
LEVELS = {0.0: 4, 0.001: 2, 0.003: 1, 0.01: 2, 0.05: 1, 0.2: 1, 0.6: 1}
WAYS = {
    "two + product": "two samples from before the infusion, and the product",
    "two": "two samples from before the infusion",
    "one": "one sample from before the infusion",
}
DETECTABLE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Tube:
    """One tube to simulate."""

    name: str
    patient: int
    background: str
    seed: int
    scenario: str
    car: float
    events: int
    batch: float


def tubes_of(patient: int, background: str) -> Iterator[Tube]:
    """Controls, product and samples of one patient."""

    def tube(name: str, seed: int, scenario: str, car: float, events: int = EVENTS, batch: float = 1.0) -> Tube:
        return Tube(
            name=name,
            patient=patient,
            background=background,
            seed=patient * 100 + seed,
            scenario=scenario,
            car=car,
            events=events,
            batch=batch,
        )

    yield tube("pre-1", 1, "normal", 0.0, batch=CONTROL_BATCH)
    yield tube("pre-2", 2, "normal", 0.0, batch=CONTROL_BATCH)
    yield tube("product", 3, "expansion", 0.35, PRODUCT_EVENTS, CONTROL_BATCH)
    seed = 10
    for car, number in LEVELS.items():
        for step in range(number):
            scenario = "expansion" if car >= 0.05 else SCENARIOS[(step + patient) % len(SCENARIOS)]
            yield tube(f"car-{car:g}-{step + 1}", seed, scenario, car)
            seed += 1


def without_leaks(one: Intensities) -> Intensities:
    """Take out once what other dyes leave, as every call of `anchored` would."""
    values = one.values - residual_spillover(one.values, one.others) @ one.others
    return Intensities(values=values, others=np.empty((0, values.size)), strata=one.strata)


def measured_patient(patient: int, background: str, folder: Path) -> list[dict[str, Any]]:
    """Simulate, gate and measure all tubes of one patient."""
    template = find_template(TEMPLATE)
    one = car_measurement(template)
    assert one is not None
    small, settings = reduced(template, one), Settings()
    override = folder / "profile.toml"
    level = BACKGROUNDS[background]
    override.write_text(f"[car]\nbackground_mean = [{level}, {level}]\n", encoding="utf-8")
    cells: dict[str, Intensities] = {}
    clean: dict[str, Intensities] = {}
    rows: list[dict[str, Any]] = []
    for tube in tubes_of(patient, background):
        parameters = Parameters(
            tube=TEMPLATE,
            events=tube.events,
            scenario=tube.scenario,
            car=tube.car,
            batch=tube.batch,
            channels=ChannelSet.COMPACT,
            patient_seed=tube.patient,
            profile=override,
        )
        case = simulate(parameters, tube.seed)
        truth = case.truth["car"]
        files = write_simulated(case, folder, tube.name)
        del case
        opened = open_acquisition(Acquisition(name=tube.name, path=str(files.fcs), tube=TEMPLATE), template, settings)
        gating = apply_template(opened.source, small, usable=opened.usable)
        own = parent_cells(opened.source, gating, template, one)
        if not tube.name.startswith("car-"):
            cells[tube.name] = own
            clean[tube.name] = without_leaks(own)
        else:
            row = {
                "patient": patient,
                "background": background,
                "scenario": tube.scenario,
                "car": tube.car,
                "true_fraction": truth["fraction"],
                "brightness": truth["positive_log10"][0],
                "sticky": truth["sticky_share"],
                "t_cells": int(own.values.size),
            }
            ready = without_leaks(own)
            for way in WAYS:
                controls = [
                    (Control(name=name, path="", kind="pre_infusion", tube=TEMPLATE), clean[name])
                    for name in (("pre-1",) if way == "one" else ("pre-1", "pre-2"))
                ]
                product = (Control(name="product", path="", kind="positive", tube=TEMPLATE), clean["product"])
                anchor = place_anchor(opened.source, one, ready, controls, product if "product" in way else None, ())
                assert anchor is not None
                assert anchor.result is not None
                found = anchor.result
                result = measure_car(
                    events=found.events,
                    parent_events=found.parent_events,
                    controls=[anchor.background],
                    estimate=Estimate(fraction=found.fraction, ci_low=found.ci_low, ci_high=found.ci_high),
                    assay_lob=one.assay_lob,
                )
                rows.append(
                    {
                        **row,
                        "way": way,
                        "fraction": found.fraction,
                        "ci_low": found.ci_low,
                        "ci_high": found.ci_high,
                        "net": result.net_fraction,
                        "recovery": found.recovery,
                        "detected": result.detected,
                    }
                )
            for way, cut in (
                ("quantile", control_quantile([cells["pre-1"].values, cells["pre-2"].values], 0.999)),
                ("tail", tail_of_sample(own.values)),
            ):
                above = [int((cells[name].values > cut).sum()) for name in ("pre-1", "pre-2")]
                sizes = [cells[name].values.size for name in ("pre-1", "pre-2")]
                plain = measure_car(
                    events=int((own.values > cut).sum()),
                    parent_events=own.values.size,
                    controls=[Background(events=n, parent_events=t) for n, t in zip(above, sizes, strict=True)]
                    if way == "quantile"
                    else [],
                )
                rows.append(
                    {
                        **row,
                        "way": way,
                        "fraction": plain.fraction,
                        "ci_low": plain.ci_low,
                        "ci_high": plain.ci_high,
                        "net": plain.net_fraction,
                        "recovery": None,
                        "detected": plain.detected,
                    }
                )
        for path in (files.fcs, files.labels, files.truth):
            path.unlink(missing_ok=True)
    return rows


def key() -> str:
    """Digest of what the measured rows depend on."""
    template = find_template(TEMPLATE)
    one = car_measurement(template)
    assert one is not None
    # What other populations, words, plots and checks say moves no number here, nor do markers the tubes do not have.
    small, simulated = reduced(template, one), {channel.marker for channel in load_profile(TEMPLATE).profile.channel}
    channels = [spec.model_dump_json() for spec in small.channel if spec.required or spec.marker in simulated]
    recipe = small.model_dump_json(include={"population"}) + "".join(channels) + one.model_dump_json()
    code = (REPOSITORY / "flowmrd" / "gating" / "control.py").read_bytes()
    design = repr((BACKGROUNDS, EVENTS, PRODUCT_EVENTS, CONTROL_BATCH, SCENARIOS, LEVELS, AnchorSettings()))
    parts = (recipe.encode(), code, SIMULATOR_VERSION.encode(), design.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def measure_one(patient: int, background: str, target: Path) -> str:
    """Measure one patient and keep the rows."""
    with tempfile.TemporaryDirectory() as temporary:
        rows = measured_patient(patient, background, Path(temporary))
    draft = target.with_suffix(".part")
    draft.write_text(json.dumps(rows), encoding="utf-8")
    draft.replace(target)
    return f"{patient} ({background} background): {len(rows)} results"


def measure(*, patients: int, jobs: int) -> None:
    """Measure what is missing."""
    folder = KEPT / key()
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [
        (patient, background, target)
        for number in range(patients)
        for place, background in enumerate(BACKGROUNDS)
        if not (target := folder / f"{(patient := FIRST_PATIENT + 10 * number + place)}.json").is_file()
    ]
    with ProcessPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(measure_one, *one) for one in waiting]):
            print(future.result(), flush=True)


def kept_rows() -> list[dict[str, Any]]:
    """Read what was measured."""
    return [row for path in sorted((KEPT / key()).glob("*.json")) for row in json.loads(path.read_text("utf-8"))]


# ----------------------------------------------------------------------------------------------------------------- page


def relative_error(rows: Sequence[Mapping[str, Any]]) -> float:
    """Median absolute error relative to the sample's true fraction; NaN for no sample."""
    if not rows:
        return math.nan
    return float(statistics.median(abs(row["fraction"] / row["true_fraction"] - 1) for row in rows))


def coverage(rows: Sequence[Mapping[str, Any]], *, of: str) -> float:
    """Share of intervals that hold the truth: the sampled blood's (`car`) or this tube's own (`true_fraction`)."""
    return statistics.fmean(row["ci_low"] <= row[of] <= row["ci_high"] for row in rows)


def percent(value: float, digits: int = 2) -> str:
    """Write a fraction as a percentage."""
    return f"{100 * value:.{digits}g} %"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def level_table(rows: Sequence[Mapping[str, Any]], way: str) -> str:
    """Error, bias, coverage and detection at each level."""
    body = []
    for car in LEVELS:
        own = [row for row in rows if row["way"] == way and row["car"] == car]
        if not own:
            continue
        detected = f"{sum(row['detected'] for row in own)} of {len(own)}"
        if car == 0:
            highest = percent(float(np.quantile([row["fraction"] for row in own], 0.95)))
            body.append(["0", str(len(own)), "–", "–", f"{100 * coverage(own, of='car'):.0f} %", highest, detected])
            continue
        bias = statistics.median(row["fraction"] / row["true_fraction"] - 1 for row in own)
        ends = np.quantile([row["fraction"] / row["true_fraction"] for row in own], (0.1, 0.9))
        body.append(
            [
                f"{100 * car:g} %",
                str(len(own)),
                f"{100 * relative_error(own):.1f} %",
                f"{100 * bias:+.1f} %",
                f"{100 * coverage(own, of='car'):.0f} %",
                f"{ends[0]:.2f} – {ends[1]:.2f}",
                detected,
            ]
        )
    head = [
        "CAR+ of CD3+",
        "tubes",
        "median error",
        "median bias",
        "coverage",
        "estimate / truth (10th – 90th)",
        "detected",
    ]
    return table(head, body)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Fill the page's words with the figures."""
    best = [row for row in rows if row["way"] == "two + product"]
    without = [row for row in best if row["car"] == 0]
    with_car = [row for row in best if row["car"] > 0]
    upper = [row for row in with_car if row["car"] >= DETECTABLE]
    low = [row for row in with_car if row["car"] == 0.001]
    goals = [
        ["median relative error at ≥ 1 % CAR+", "≤ 5 %", f"{100 * relative_error(upper):.1f} % ({len(upper)} tubes)"],
        ["median relative error at 0.1 %", "≤ 15 %", f"{100 * relative_error(low):.1f} % ({len(low)} tubes)"],
        [
            "intervals that hold the fraction of the sampled blood",
            "93 – 97 %",
            f"{100 * coverage(with_car, of='car'):.0f} % ({len(with_car)} tubes)",
        ],
        [
            "samples without CAR-T called detected",
            "≤ 2 of 60",
            f"{sum(row['detected'] for row in without)} of {len(without)}",
        ],
    ]
    by_background = []
    for background in BACKGROUNDS:
        own = [row for row in best if row["background"] == background]
        by_background.append(
            [
                f"{background} ({BACKGROUNDS[background]:g})",
                f"{100 * relative_error([row for row in own if row['car'] >= DETECTABLE]):.1f} %",
                f"{100 * relative_error([row for row in own if row['car'] == 0.001]):.1f} %",
                f"{100 * coverage([row for row in own if row['car'] > 0], of='car'):.0f} %",
                f"{sum(row['detected'] for row in own if row['car'] == 0)} of {sum(row['car'] == 0 for row in own)}",
            ]
        )
    ways = []
    names = {**WAYS, "quantile": "99.9th percentile of the two, not brought together", "tail": "the sample alone"}
    for way, words in names.items():
        own = [row for row in rows if row["way"] == way]
        ways.append(
            [
                words,
                f"{100 * relative_error([row for row in own if row['car'] >= DETECTABLE]):.1f} %",
                f"{100 * relative_error([row for row in own if row['car'] == 0.001]):.1f} %",
                f"{100 * coverage([row for row in own if row['car'] > 0], of='car'):.0f} %",
                f"{sum(row['detected'] for row in own if row['car'] == 0)} of {sum(row['car'] == 0 for row in own)}",
            ]
        )
    dim = [row for row in best if row["brightness"] < 3.1]
    bright = [row for row in best if row["brightness"] >= 3.1]
    head = ["error ≥ 1 %", "error 0.1 %", "coverage", "detected without CAR-T"]
    template = find_template(TEMPLATE)
    net = [row["net"] for row in without]
    values = {
        "tubes": len(best),
        "patients": len({row["patient"] for row in best}),
        "events": f"{EVENTS:,}",
        "t_cells": f"{int(np.median([row['t_cells'] for row in best])):,}",
        "t_low": f"{min(row['t_cells'] for row in best):,}",
        "t_high": f"{max(row['t_cells'] for row in best):,}",
        "control_batch": f"{CONTROL_BATCH:g}",
        "simulator": SIMULATOR_VERSION,
        "template": template.digest,
        "version": template.template.version,
        "rules": load_car_rules().version,
        "goal_table": table(["goal", "asked for", "reached"], goals),
        "level_table": level_table(rows, "two + product"),
        "two_table": level_table(rows, "two"),
        "one_table": level_table(rows, "one"),
        "background_table": table(["reagent background (log10)", *head], by_background),
        "way_table": table(["controls", *head], ways),
        "dim_error": f"{100 * relative_error([row for row in dim if row['car'] >= DETECTABLE]):.1f} %",
        "bright_error": f"{100 * relative_error([row for row in bright if row['car'] >= DETECTABLE]):.1f} %",
        "dim_low": f"{100 * relative_error([row for row in dim if row['car'] == 0.001]):.0f} %",
        "bright_low": f"{100 * relative_error([row for row in bright if row['car'] == 0.001]):.0f} %",
        "net95": percent(float(np.quantile(net, 0.95))),
        "own_coverage": f"{100 * coverage(with_car, of='true_fraction'):.0f} %",
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
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--patients", type=int, default=PATIENTS, help="of each background")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    if not options.page:
        measure(patients=options.patients, jobs=options.jobs)
    options.out.write_text(page(kept_rows()), encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
