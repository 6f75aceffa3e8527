"""Build a reference from files: normals as they are, diagnoses with their blasts, through the template's own gates.

The candidates of each file are those that the template's search would see, so the reference knows what detection meets:
the same clean-up, the same wide gate, the same scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmrd import __version__
from flowmrd.errors import AnalysisError, InputError, SettingsError
from flowmrd.evaluation.defaults import load_defaults
from flowmrd.evaluation.labels import Reading, choose_positive, find_labels, read_labels, survey_labels
from flowmrd.fcs import file_sha256
from flowmrd.gating.detection.align import on_features
from flowmrd.gating.detection.reference import Marrow, Trial, learn, pseudo_diagnoses
from flowmrd.gating.detection.storage import ControlRange, Reference
from flowmrd.gating.engine import apply_template
from flowmrd.gating.methods.seed_and_grow import Collected, Collecting, SeedAndGrowParams
from flowmrd.gating.template import ROOT, GatingTemplate, Population, typed
from flowmrd.pipeline import Acquisition, open_acquisition
from flowmrd.settings import Settings

SEARCH = "seed_and_grow"
# Candidates kept of one marrow, and normals kept for pictures.
_MOST_CANDIDATES = 100_000
_POINTS = 4000
# From so many normals on a reference can tell what is unusual.
FEW_NORMALS = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One file's candidates: columns and controls as the search sees them, and which of them are blasts."""

    name: str
    sha256: str
    collected: Collected
    blast: NDArray[np.bool_]
    normal: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Built:
    """A reference, the trials behind its thresholds, the files left out with the reason, and remarks."""

    reference: Reference
    trials: tuple[Trial, ...]
    left_out: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]


def search_row(template: GatingTemplate) -> Population:
    """Return the population that is searched for.

    Raises
    ------
    SettingsError
        The template has none.
    """
    for row in template.population:
        if row.method == SEARCH:
            return row
    raise SettingsError(
        f"the template {template.template.id} has no population with method {SEARCH!r}: a reference is of no use to it"
    )


def read_source(
    path: Path,
    template: GatingTemplate,
    settings: Settings,
    *,
    normal: bool,
    labels: NDArray[np.bool_] | None = None,
) -> Source:
    """Gate one file up to its candidates.

    Without `labels` the blasts of a diagnosis are those of the template's static rule, which the search falls back to.
    """
    row = search_row(template)
    sha256 = file_sha256(str(path))
    opened = open_acquisition(
        Acquisition(name=path.stem, path=str(path), tube=template.template.id), template, settings
    )
    collecting = Collecting()
    gating = apply_template(opened.source, template, usable=opened.usable, knowledge=collecting)
    if collecting.collected is None:
        raise InputError("no candidates, or no internal control to align them by", source=path.name)
    parent = gating.memberships.mask(row.parent) if row.parent != ROOT else np.ones(opened.source.event_count, np.bool_)
    blast = gating.memberships.mask(row.name) if labels is None else labels
    return Source(
        name=path.stem,
        sha256=sha256,
        collected=collecting.collected,
        blast=np.zeros(int(parent.sum()), np.bool_) if normal else blast[parent],
        normal=normal,
    )


def _labels_of(
    files: Sequence[Path], *, column: str | None, positive: Sequence[str]
) -> tuple[dict[Path, tuple[Path, Reading]], list[str]]:
    """Find the labels beside the diagnoses and how to read them; remarks say what was decided."""
    defaults = load_defaults()
    found = {}
    for path in files:
        try:
            found[path] = find_labels(path, defaults.labels)
        except InputError:
            continue
    if not found:
        return {}, [
            "no labels beside the diagnoses: their blasts are those of the template's static rule"
        ] if files else []
    surveys = [survey_labels(labels, defaults.labels, column=column, events=None) for labels in found.values()]
    remarks = []
    try:
        values, absent = choose_positive(surveys, defaults.labels, positive)
    except SettingsError:
        if positive:
            raise
        # Which label means the disease is not stated: found below from what the static rule calls blasts.
        values, absent = (), ()
    if absent:
        # A batch to be scored may hold no disease; a diagnosis does.
        seen = ", ".join(dict.fromkeys(value for survey in surveys for value in survey.values))
        raise SettingsError(
            f"no event of any diagnosis is labelled {', '.join(absent)}; found: {seen}", where="--positive"
        )
    if values:
        remarks.append(f"blasts of the diagnoses are labelled {', '.join(values)}")
    return {path: (labels, Reading(positive=values, column=column)) for path, labels in found.items()}, remarks


def _most_alike(
    path: Path, labels: Path, template: GatingTemplate, settings: Settings, column: str | None
) -> dict[str, float]:
    """Return for each label value how well it agrees (Jaccard) with the template's static rule on one file."""
    defaults = load_defaults()
    opened = open_acquisition(
        Acquisition(name=path.stem, path=str(path), tube=template.template.id), template, settings
    )
    gating = apply_template(opened.source, template, usable=opened.usable)
    called = gating.memberships.mask(search_row(template).name)
    survey = survey_labels(labels, defaults.labels, column=column, events=opened.source.event_count)
    agreement = {}
    for value in survey.values:
        reading = Reading(positive=(value,), column=column)
        mask = read_labels(labels, reading, defaults.labels, events=opened.source.event_count).positive
        union = int(np.count_nonzero(mask | called))
        agreement[value] = float(np.count_nonzero(mask & called)) / union if union else 0.0
    return agreement


def build_reference(
    normals: Sequence[Path],
    diagnoses: Sequence[Path],
    template: GatingTemplate,
    settings: Settings,
    *,
    name: str,
    column: str | None = None,
    positive: Sequence[str] = (),
    simulated: bool = False,
    positives: int = 120,
    progress: Callable[[str], None] = lambda _text: None,
) -> Built:
    """Learn a reference.

    Parameters
    ----------
    normals : files without leukemia: normal, regenerating, after therapy; bad days included
    diagnoses : files with many blasts, labelled beside the file or found by the template's static rule
    template, settings : how the files are gated; `settings.seed` fixes every draw
    name : what the reference is called
    column, positive : how labels are read (`flowmrd evaluate`)
    simulated : whether all files are simulated
    positives : trials with held-out blasts put into held-out normals
    progress : told what is being done

    Raises
    ------
    SettingsError
        The template has no search, no normal can be used, or a file is given as normal and as diagnosis.
    """
    row = search_row(template)
    params = typed(row).params
    assert isinstance(params, SeedAndGrowParams)
    labelled, remarks = _labels_of(diagnoses, column=column, positive=positive)
    unstated = [path for path, (_, reading) in labelled.items() if not reading.positive]
    if unstated:
        votes: dict[str, float] = {}
        for path in unstated[:5]:
            for value, share in _most_alike(path, labelled[path][0], template, settings, column).items():
                votes[value] = votes.get(value, 0.0) + share
        value = max(sorted(votes), key=lambda v: votes[v])
        labelled = {
            p: (labels, reading if reading.positive else Reading(positive=(value,), column=column))
            for p, (labels, reading) in labelled.items()
        }
        remarks.append(
            f"--positive was not given: label {value!r} agrees best with the template's static rule and was taken"
        )
    sources: list[Source] = []
    left_out = []
    everything = [(path, True) for path in normals] + [(path, False) for path in diagnoses]
    for path, normal in everything:
        try:
            mask = None
            if path in labelled and not normal:
                labels, reading = labelled[path]
                opened = open_acquisition(
                    Acquisition(name=path.stem, path=str(path), tube=template.template.id), template, settings
                )
                mask = read_labels(labels, reading, load_defaults().labels, events=opened.source.event_count).positive
            one = read_source(path, template, settings, normal=normal, labels=mask)
        except (InputError, AnalysisError, OSError) as error:
            left_out.append((path.name, str(error)))
            continue
        progress(f"{path.stem} read")
        twin = next((other for other in sources if other.sha256 == one.sha256), None)
        if twin is not None and twin.normal != normal:
            raise SettingsError(f"{path.name} is given as normal and as diagnosis ({twin.name})")
        if twin is not None:
            # Counted twice it would pass for two marrows.
            remarks.append(f"{path.name} is the same file as {twin.name} and counts once")
        elif not normal and int(one.blast.sum()) < 20:
            left_out.append((path.name, "fewer than 20 blasts among its candidates"))
        else:
            sources.append(one)
    if not any(one.normal for one in sources):
        raise SettingsError("no normal could be used: " + "; ".join(f"{file}: {why}" for file, why in left_out[:5]))
    features = _features(row, params, sources)
    controls = _controls(sources)
    expected = {(one.population, one.marker): one.median for one in controls}
    rng = np.random.default_rng(settings.seed)
    marrows = [_marrow(one, features, params, expected, rng) for one in sources]
    marrows = _enough(marrows, rng)
    if sum(not m.normal for m in marrows) < 3:
        fluor = [j for j, marker in enumerate(features) if marker not in params.scatter]
        marrows += pseudo_diagnoses(marrows, fluor, seed=settings.seed)
        remarks.append("fewer than 3 diagnoses: off-path groups made from the normals themselves stand in for blasts")
    optional = [j for j, marker in enumerate(features) if marker in params.optional]
    learnt, trials = learn(
        marrows, features=features, optional=optional, seed=settings.seed, positives=positives, progress=progress
    )
    normal_files = [one for one in sources if one.normal]
    points = np.concatenate(
        [m.x[:: max(1, len(m.x) * sum(k.normal for k in marrows) // _POINTS)] for m in marrows if m.normal]
    )
    reference = Reference(
        name=name,
        template=template.template.id,
        template_version=template.template.version,
        population=row.parent,
        optional=tuple(marker for marker in features if marker in params.optional),
        scatter=tuple(marker for marker in features if marker in params.scatter),
        controls=controls,
        simulated=simulated,
        normals=len(normal_files),
        diagnoses=len(sources) - len(normal_files),
        inputs=tuple(sorted({one.sha256 for one in sources})),
        seed=settings.seed,
        software=__version__,
        trials=_summary(trials, learnt.judge),
        points=points[:_POINTS],
        learnt=learnt,
    )
    return Built(reference=reference, trials=tuple(trials), left_out=tuple(left_out), remarks=tuple(remarks))


def _features(row: Population, params: SeedAndGrowParams, sources: Sequence[Source]) -> tuple[str, ...]:
    """Required markers, and the optional ones that at least a normal has."""
    seen = {marker for one in sources if one.normal for marker in one.collected.columns}
    return tuple(marker for marker in (*row.channels, *params.optional) if marker in seen)


def _controls(sources: Sequence[Source]) -> tuple[ControlRange, ...]:
    values: dict[tuple[str, str], list[float]] = {}
    for one in sources:
        if one.normal:
            for key, control in one.collected.controls.items():
                values.setdefault(key, []).append(control.median)
    out = []
    for (population, marker), medians in sorted(values.items()):
        middle = float(np.median(medians))
        spread = 1.4826 * float(np.median(np.abs(np.asarray(medians) - middle)))
        out.append(ControlRange(population=population, marker=marker, median=middle, sd=spread, marrows=len(medians)))
    return tuple(out)


def _marrow(
    one: Source,
    features: tuple[str, ...],
    params: SeedAndGrowParams,
    expected: dict[tuple[str, str], float],
    rng: np.random.Generator,
) -> Marrow:
    seen = one.collected.controls
    scatter = {marker: seen[params.ruler, marker].median for marker in params.scatter}
    offsets = {
        marker: seen[population, marker].median - expected[population, marker]
        for marker, population in params.align.items()
        if (population, marker) in seen and (population, marker) in expected
    }
    size = len(one.blast)
    rows: Any = slice(None)
    if size > _MOST_CANDIDATES:
        rows = np.sort(rng.choice(size, _MOST_CANDIDATES, replace=False))
    columns = {marker: values[rows] for marker, values in one.collected.columns.items() if marker in features}
    x = on_features(columns, features=features, scatter=scatter, offsets=offsets)
    return Marrow(
        name=one.name,
        x=x,
        blast=one.blast[rows],
        nucleated=max(1, round(one.collected.nucleated * len(x) / max(size, 1))),
        normal=one.normal,
    )


def _enough(marrows: list[Marrow], rng: np.random.Generator) -> list[Marrow]:
    """Split few normals into parts, so that something can be held out; what is unusual in a marrow stays unknown."""
    normals = [m for m in marrows if m.normal]
    if len(normals) >= FEW_NORMALS:
        return marrows
    parts = -(-FEW_NORMALS // len(normals))
    split = []
    for one in normals:
        owner = rng.integers(0, parts, len(one.x))
        split += [
            Marrow(
                name=f"{one.name} part {k + 1}",
                x=one.x[owner == k],
                blast=one.blast[owner == k],
                nucleated=max(1, one.nucleated // parts),
                normal=True,
            )
            for k in range(parts)
        ]
    return split + [m for m in marrows if not m.normal]


def _summary(trials: Sequence[Trial], judge: Any) -> dict[str, float]:
    """How held-out marrows fared with the thresholds that were set on them."""

    def accepted(t: Trial) -> list[int]:
        return [i for i, f in enumerate(t.features) if judge.probability(f) >= judge.accept]

    blank = [t for t in trials if t.put_in == 0]
    false = sum(any(t.events[i] >= 20 for i in accepted(t)) for t in blank)
    out = {"normals_tried": float(len(blank)), "normals_called": float(false)}
    for low, high in ((1e-5, 1e-4), (1e-4, 1e-3), (1e-3, 1e-2), (1e-2, 1.0)):
        level = [t for t in trials if t.put_in >= 20 and low <= t.put_in / t.nucleated < high]
        if not level:
            continue
        f1 = []
        for t in level:
            kept = accepted(t)
            hit, called = float(t.found[kept].sum()), float(t.events[kept].sum())
            f1.append(2.0 * hit / (called + t.put_in))
        out[f"tried_from_{low:.0e}"] = float(len(level))
        out[f"median_f1_from_{low:.0e}"] = float(np.median(f1))
        out[f"found_from_{low:.0e}"] = float(np.mean(np.asarray(f1) > 0.5))
    return out
