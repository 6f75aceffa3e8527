"""Whole courses after engineered T cells: the tubes of one subject from before the infusion to a year after it.

A curve of cells per µl is drawn from the numbers of `profiles/courses.toml`; each day becomes a tube whose share of
CAR+ cells, beads and B cells follow from it. Controls (two samples from before the infusion, the product, one tube
without the reagent) are linked in the manifest.
"""

from __future__ import annotations

import datetime as dt
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flowmrd.errors import SettingsError
from flowmrd.simulation.cells import resolve_scenario
from flowmrd.simulation.profile import load_profile, packaged_document
from flowmrd.simulation.subject import SubjectDocument, document_of

_DOCUMENT = "courses"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """CAR+ cells per µl over days: exponential rise to a peak, fast fall to day 28, slow fall after it."""

    lag: float
    doubling: float
    tmax: float
    cmax: float
    fast: float
    slow: float
    floor: float
    lost_day: float

    def at(self, day: float) -> float:
        """Cells per µl on a day; 0 before the lag ends and from the day of the loss on."""
        if day < self.lag or day >= self.lost_day:
            return 0.0
        if day <= self.tmax:
            return float(self.cmax * 2.0 ** ((day - self.tmax) / self.doubling))
        bend = max(28.0, self.tmax + 7.0)
        value = self.cmax * 0.5 ** ((min(day, bend) - self.tmax) / self.fast)
        return float(max(value * 0.5 ** (max(day - bend, 0.0) / self.slow), self.floor))


def course_kinds() -> tuple[str, ...]:
    """Names of the courses that ship."""
    return tuple(_numbers()["course"])


def draw_curve(kind: str, seed: int) -> Curve:
    """Draw one subject's curve.

    Raises
    ------
    SettingsError : no such course
    """
    numbers = _numbers()["course"]
    if kind not in numbers:
        raise SettingsError(f"no course {kind!r}", where="course", hint=f"one of: {', '.join(numbers)}")
    own = numbers[kind]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 31])))
    median, spread = own["cmax"]
    low, high = own["cmax_limits"]
    return Curve(
        lag=float(rng.uniform(*own["lag_days"])),
        doubling=float(rng.uniform(*own["doubling_days"])),
        tmax=float(rng.uniform(*own["tmax"])),
        cmax=float(np.clip(median * math.exp(rng.normal(0.0, math.log(spread))), low, high)),
        fast=float(rng.uniform(*own["fast_half_life"])),
        slow=float(rng.uniform(*own["slow_half_life"])),
        floor=float(own.get("floor_per_ul", 0.0)),
        lost_day=float(own.get("lost_day", math.inf)),
    )


def course_document(
    kind: str, seed: int, *, pseudonym: str = "", events: int | None = None, lab: str = ""
) -> SubjectDocument:
    """Return the tubes of one subject's course, controls first.

    Parameters
    ----------
    kind : one of `course_kinds`
    seed : of the subject: its curve, its cells and its reagent
    pseudonym : by default made of kind and seed
    events : in each file; by default the document's
    lab : laboratory id

    Raises
    ------
    SettingsError : no such course
    """
    rows = course_rows(kind, seed, pseudonym=pseudonym or f"{kind}-{seed}".upper(), events=events, lab=lab)
    places = [f"visit {number}" for number in range(1, len(rows) + 1)]
    return document_of(rows, source=f"{_DOCUMENT}.toml", places=places, folder=Path())


def other_t_cells(day: float) -> float:
    """T cells without the receptor, per µl, on a day of any course."""
    numbers = _numbers()["other_t"]
    return float(np.interp(day, numbers["days"], numbers["per_ul"]))


def b_cells_back_day(kind: str) -> float:
    """Day from which a course has B cells again; infinite where they stay away."""
    return float(_numbers()["course"][kind].get("b_cells_back_day", math.inf))


def course_rows(
    kind: str,
    seed: int,
    *,
    pseudonym: str,
    events: int | None = None,
    lab: str = "",
    days: Sequence[int] | None = None,
    stem: str = "",
    infusion: dt.date | None = None,
) -> list[dict[str, Any]]:
    """Return the visits of a course as a subject document holds them.

    `days` of the samples and `infusion` date are by default the document's; `stem` begins the files' names.
    """
    numbers = _numbers()
    curve, own = draw_curve(kind, seed), numbers["course"][kind]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 32])))
    stem = stem or f"{kind}-{seed}"
    infusion = infusion or numbers["infusion_date"]
    assert isinstance(infusion, dt.date)
    common = {
        "pseudonym": pseudonym,
        "patient_seed": seed,
        "tube": numbers["tube"],
        "events": events or numbers["events"],
        "channels": "compact",
        "lab": lab,
        "infusion_date": infusion,
    }
    reagent = dict(numbers["reagent"])
    step = 1000 * seed
    rows: list[dict[str, Any]] = []

    def add(name: str, day: int, scenario: str, manifest: Mapping[str, Any], **parameters: Any) -> None:
        collected = dt.datetime.combine(infusion + dt.timedelta(days=day), dt.time(8, 30), dt.UTC)
        rows.append(
            {
                **common,
                "name": f"{stem}-{name}",
                "seed": step + len(rows),
                "study_day": day,
                "scenario": scenario,
                **parameters,
                "manifest": {**reagent, "collected_at": collected.isoformat(), **manifest},
            }
        )

    before = numbers["before"]
    controls = [f"pre{place}" for place in range(1, len(before["days"]) + 1)]
    for name, day in zip(controls, before["days"], strict=True):
        add(name, day, "normal", {}, leukocytes_per_ul=round(float(rng.uniform(*before["leukocytes_per_ul"]))))
    share = round(float(rng.uniform(*before["product_car"])), 3)
    add("product", before["days"][-1], "expansion", {"specimen_type": "PRODUCT"}, car=share, beads=False)
    linked = {
        "control_acquisition": ";".join(f"{stem}-{name}" for name in [*controls, "product"]),
        "control_kind": ";".join(["pre_infusion"] * len(controls) + ["positive"]),
    }
    for day in numbers["days"] if days is None else days:
        if day > own.get("last_day", math.inf):
            break
        car = curve.at(day)
        other = other_t_cells(day)
        back = day >= b_cells_back_day(kind)
        scenario = "recovery" if back else "normal" if day < 7 else "expansion" if car > 0.1 * other else "aplasia"
        t_share = _t_share(numbers["tube"], scenario)
        leukocytes = (car + other) / t_share
        fraction, leukocytes = round(car / (car + other), 6), round(leukocytes, 1)
        controls_of = dict(linked)
        if day == numbers["fmo_day"]:
            add(f"d{day}-fmo", day, scenario, {}, car=fraction, fmo=True, leukocytes_per_ul=leukocytes)
            controls_of = {
                "control_acquisition": f"{linked['control_acquisition']};{stem}-d{day}-fmo",
                "control_kind": f"{linked['control_kind']};fmo",
            }
        add(f"d{day}", day, scenario, controls_of, car=fraction, leukocytes_per_ul=leukocytes)
    return rows


@cache
def _t_share(tube: str, scenario: str) -> float:
    """Expected share of T cells among nucleated cells of a scenario."""
    profile = load_profile(tube).profile
    assert profile.car is not None
    share = resolve_scenario(profile, scenario).share
    split = {group: members for group, members in profile.group.items() if share.get(group)}
    t_groups = [group for group, members in split.items() if set(members) <= set(profile.car.t_cells)]
    return sum(share[group] for group in t_groups) / sum(share[group] for group in split)


@cache
def _numbers() -> dict[str, Any]:
    return tomllib.loads(packaged_document(_DOCUMENT))
