"""Evaluate many files: find them, choose one reading of their labels, score them in parallel, write the tables.

Scores are kept as each file ends (temporary name, then rename), so an interrupted evaluation goes on where it was. The
tables are made from the scores in the order of the files; the number of workers cannot show in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from flowmrd import __version__
from flowmrd.blasts import default_reference, uses_reference
from flowmrd.cytometry.events import resolve_panel
from flowmrd.documents.loader import read_csv
from flowmrd.errors import FcsError, Level, PanelMismatchError, QcFinding, SettingsError
from flowmrd.evaluation.comparisons import Comparison
from flowmrd.evaluation.defaults import Defaults
from flowmrd.evaluation.labels import Reading, choose_positive
from flowmrd.evaluation.scores import Case, Plan, Score, make_case, score_case, score_from_json, score_to_json
from flowmrd.evaluation.summary import Metric, as_tree, methods_of, summarise
from flowmrd.evaluation.tables import (
    case_counts,
    summary_text,
    write_case_tables,
    write_summary_table,
)
from flowmrd.execution import run_record
from flowmrd.fcs import file_sha256, open_fcs
from flowmrd.gating.template import GatingTemplate, find_template, template_paths
from flowmrd.quantification.rare_events import RareEventRules, load_rules
from flowmrd.records import StoredResults, write_json, write_result, written

FCS_ENDINGS = (".fcs", ".lmd")
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A file to evaluate, with the name of its case and its labels (`None`: beside the file)."""

    name: str
    path: Path
    labels: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What the caller learns when one file ends."""

    name: str
    score: Score
    reused: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """A finished evaluation: scores in the order of the files, figures, and what they rest on."""

    scores: tuple[Score, ...]
    metrics: tuple[Metric, ...]
    methods: Mapping[str, str]
    provenance: Mapping[str, str]
    rules: RareEventRules
    levels: tuple[float, ...]
    record: Mapping[str, Any]
    kept: tuple[Path, ...]


# ---------------------------------------------------------------------------------------------------------- the files


def list_files(inputs: Sequence[Path], labels: Sequence[Path]) -> tuple[Listed, ...]:
    """Find the files of a batch: files as given, and those of each folder in order of name.

    Parameters
    ----------
    inputs : files and folders
    labels : none, or one for each input, which then are files

    Raises
    ------
    SettingsError : as many labels as files are wanted, or two files have the same name and folder name
    """
    paths: list[Path] = []
    for one in inputs:
        if one.is_dir():
            inside = [path for path in one.rglob("*") if path.suffix.lower() in FCS_ENDINGS and path.is_file()]
            paths += sorted(inside, key=lambda path: path.relative_to(one).parts)
        else:
            paths.append(one)
    if labels and (len(labels) != len(paths) or any(one.is_dir() for one in inputs)):
        raise SettingsError(
            f"{len(labels)} for {len(paths)} files",
            where="--labels",
            hint="name one for each file, in the same order; labels of a folder lie beside its files",
        )
    stems = [path.stem for path in paths]
    names = [
        path.stem if stems.count(path.stem) == 1 else f"{path.resolve().parent.name}-{path.stem}" for path in paths
    ]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(
            f"several files have the name {repeated[0]!r}; their results would overwrite each other",
            hint="evaluate them apart, or rename one",
        )
    return tuple(
        Listed(name=name, path=path, labels=labels[i] if labels else None)
        for i, (name, path) in enumerate(zip(names, paths, strict=True))
    )


def read_groups(path: Path, by: Sequence[str], defaults: Defaults) -> dict[str, dict[str, str]]:
    """Read a table of groups: a column that names files or cases, and the columns to group by.

    Raises
    ------
    SettingsError : no column that names files, an unknown column, or a file named twice
    """
    table = read_csv(path, error=SettingsError)
    if table.faults:
        raise table.faults[0]
    key = next((name for name in defaults.groups.keys if name in table.header), defaults.groups.keys[0])
    for name in (key, *by):
        if name not in table.header:
            raise SettingsError(f"no column {name!r}; the columns are {', '.join(table.header)}", source=path.name)
    found: dict[str, dict[str, str]] = {}
    for row in table.rows:
        name = row.cells[key]
        if name in found:
            raise SettingsError(f"{name} stands twice", source=path.name, where=f"row {row.number}")
        found[name] = {column: row.cells[column] for column in by}
    return found


def read_diagnoses(path: Path) -> dict[str, Path]:
    """Read which file is the diagnosis of which, by file name or name of the case.

    The table has columns `file` (or `name`) and `diagnosis`, a path relative to the table; or it is the `cases.csv` of
    a simulated set, whose rows of role `diagnosis` belong to those of the same `pseudonym`.

    Raises
    ------
    SettingsError : other columns, a file named twice, or a diagnosis that does not exist
    """
    table = read_csv(path, error=SettingsError)
    if table.faults:
        raise table.faults[0]
    key = next((name for name in ("file", "name") if name in table.header), None)
    rows = [(row.number, row.cells) for row in table.rows]
    if key is not None and "diagnosis" in table.header:
        pairs = [(number, cells[key], cells["diagnosis"]) for number, cells in rows if cells["diagnosis"]]
    elif key is not None and {"role", "pseudonym"} <= set(table.header):
        first = {cells["pseudonym"]: f"{cells[key]}.fcs" for _, cells in rows if cells["role"] == "diagnosis"}
        pairs = [
            (number, cells[key], first[cells["pseudonym"]])
            for number, cells in rows
            if cells["role"] != "diagnosis" and cells["pseudonym"] in first
        ]
    else:
        raise SettingsError("needs columns file and diagnosis, or the cases.csv of a simulated set", source=path.name)
    found: dict[str, Path] = {}
    for number, name, diagnosis in pairs:
        place = path.parent / diagnosis
        if name in found:
            raise SettingsError(f"{name} stands twice", source=path.name, where=f"row {number}")
        if not place.is_file():
            raise SettingsError(f"no file {diagnosis}", source=path.name, where=f"row {number}, column diagnosis")
        found[name] = place
    return found


def with_diagnoses(cases: Sequence[Case], diagnoses: Mapping[str, Path]) -> tuple[Case, ...]:
    """Give each case the diagnosis that the table names for it, by file name, name or stem; none to a diagnosis."""
    given = []
    for case in cases:
        path = Path(case.path)
        mine = next((diagnoses[name] for name in (path.name, case.name, path.stem) if name in diagnoses), None)
        given.append(case if mine is None or mine.resolve() == path.resolve() else replace(case, diagnosis=str(mine)))
    return tuple(given)


def choose_template(files: Sequence[Listed], *, analyte: str, folder: Path | None, dataset: int | None) -> str:
    """Choose the template that the first readable file fits: it knows most of its markers, and misses fewest.

    Raises
    ------
    SettingsError : no template that measures the analyte fits, or several know as many markers
    """
    for one in files:
        try:
            channels = open_fcs(one.path, dataset=dataset).channels
        except (FcsError, OSError):
            continue
        known: dict[str, tuple[int, int]] = {}
        for name in template_paths(folder):
            template = find_template(name, folder)
            if any(measured.analyte == analyte for measured in template.measurement):
                try:
                    found = len(resolve_panel(template.channel, channels, tube=name).channels)
                except PanelMismatchError:
                    continue
                known[name] = (found, found - len(template.channel))
        best = [name for name, fit in known.items() if fit == max(known.values())]
        if len(best) == 1:
            return best[0]
        raise SettingsError(
            f"{one.path.name} fits {' and '.join(best) if best else 'none'} of the templates that measure {analyte}",
            where="--template",
            hint="name one; `flowmrd template list` shows them",
        )
    raise SettingsError("no file can be read to choose a template by", where="--template", hint="name one")


# ----------------------------------------------------------------------------------------------------------- the plan


def prepare(
    files: Sequence[Listed],
    *,
    defaults: Defaults,
    column: str | None,
    positive: Sequence[str],
    denominator: str | None,
    dataset: int | None,
    by: Sequence[str] = (),
    groups: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[tuple[Case, ...], Reading, tuple[str, ...]]:
    """Look at all labels before any file is gated, and choose one reading for the batch.

    Returns the cases, the reading, and named values that no file has.

    Raises
    ------
    SettingsError : nothing says which label means the disease, or all files have the same fault
    """
    cases = []
    for one in files:
        mine = (groups or {}).get(one.path.name) or (groups or {}).get(one.name) or (groups or {}).get(one.path.stem)
        cases.append(
            make_case(
                one.name,
                one.path,
                one.labels,
                defaults=defaults,
                column=column,
                dataset=dataset,
                by=() if groups is not None else by,
                groups=mine or {},
            )
        )
    surveys = [case.survey for case in cases if case.survey is not None]
    values, absent = choose_positive(surveys, defaults.labels, positive)
    return tuple(cases), Reading(positive=values, column=column, denominator=denominator), absent


# ------------------------------------------------------------------------------------------------------------ the run


def evaluate(
    cases: Sequence[Case],
    plan: Plan,
    out: Path,
    *,
    defaults: Defaults,
    jobs: int = 1,
    gates: bool = True,
    resume: bool = False,
    absent: Sequence[str] = (),
    on_done: Callable[[Done], None] = lambda _done: None,
) -> Evaluation:
    """Score all cases, write the tables, and return what they rest on.

    Parameters
    ----------
    cases : in the order of the tables, names unique
    plan : how each is gated and compared
    out : folder; made if it is not there
    defaults : the shipped assumptions
    jobs : worker processes
    gates : keep each gated result for the report's pages
    resume : keep scores whose inputs, template, settings and software are the same
    absent : values meant as disease that no label has, for the record
    on_done : called in this process as each file ends, in any order
    """
    # Scores rest on the shipped reference where none is named: another one is another evaluation.
    shipped = default_reference(plan.template) if uses_reference(plan.template) else None
    reference = plan.reference or shipped
    reference_sha256 = "" if reference is None else file_sha256(reference)
    places = {case.name: out / "acquisitions" / case.name for case in cases}
    work = [
        _Work(
            case=case,
            plan=plan,
            defaults=defaults,
            place=places[case.name],
            gates=gates,
            resume=resume,
            reference_sha256=reference_sha256,
        )
        for case in cases
    ]
    finished: dict[str, Done] = {}
    for done in _each(work, jobs):
        finished[done.name] = done
        on_done(done)
    scores = tuple(finished[case.name].score for case in cases)
    head = plan.template.template
    provenance = {
        "template": head.id,
        "template_version": head.version,
        "template_sha256": plan.template.digest,
        "reference_sha256": reference_sha256,
        "flowmrd": __version__,
    }
    one = plan.measurement
    named = load_rules(one.rules)
    rules = RareEventRules(
        lod_events=one.lod_events or named.lod_events,
        lloq_events=one.lloq_events or named.lloq_events,
        target_fraction=one.target_fraction,
        name=named.name,
    )
    metrics = summarise(scores, rules=rules, levels=plan.levels, defaults=defaults)
    titles = {
        "template": f"{head.id} {head.version}",
        **{comparison.name: f"{comparison.name}: {comparison.title}" for comparison in plan.comparisons},
    }
    used = methods_of(scores)
    kept = tuple(places[case.name] for case in cases if (places[case.name] / "result.json").is_file())
    record = _record(cases, scores, plan, defaults, provenance, absent)
    evaluation = Evaluation(
        scores=scores,
        metrics=metrics,
        methods={name: text for name, text in titles.items() if name in used} or {"template": titles["template"]},
        provenance=provenance,
        rules=rules,
        levels=plan.levels,
        record=record,
        kept=kept if gates else (),
    )
    write_tables(evaluation, out)
    return evaluation


def write_tables(evaluation: Evaluation, out: Path) -> None:
    """Write `cases.csv`, `findings.csv`, `summary.csv`, `summary.json`, `summary.md` and `run.json`."""
    others = [name for name in evaluation.methods if name != "template"]
    write_case_tables(evaluation.scores, others, evaluation.provenance, out)
    write_summary_table(evaluation.metrics, out)
    write_json(
        {
            "schema": SCHEMA_VERSION,
            "provenance": dict(evaluation.provenance),
            "simulator_versions": evaluation.record["simulator_versions"],
            "cases": case_counts(evaluation.scores),
            "methods": as_tree(evaluation.metrics),
        },
        out / "summary.json",
    )
    text = summary_text(evaluation.metrics, evaluation.scores, stated(evaluation), methods=evaluation.methods)
    with written(out / "summary.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(evaluation.record, out / "run.json")


def stated(evaluation: Evaluation) -> dict[str, str]:
    """Return what an evaluation rests on, in words."""
    known = evaluation.provenance
    labels = evaluation.record["evaluation"]["labels"]
    return {
        "template": f"{known['template']} {known['template_version']}, SHA-256 `{known['template_sha256']}`",
        "reference": f"SHA-256 `{known['reference_sha256']}`" if known["reference_sha256"] else "",
        "flowmrd": known["flowmrd"],
        "simulator": ", ".join(evaluation.record["simulator_versions"]),
        "labels that mean the disease": ", ".join(labels["positive"]),
        "labels not seen in any file": ", ".join(labels["not_seen"]),
        "detection rule": f"{evaluation.rules.lod_events} events; a number from {evaluation.rules.lloq_events} events",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    case: Case
    plan: Plan
    defaults: Defaults
    place: Path
    gates: bool
    resume: bool
    reference_sha256: str


def _each(work: Sequence[_Work], jobs: int) -> Iterator[Done]:
    if jobs <= 1 or len(work) <= 1:
        for one in work:
            yield _one(one)
        return
    # A fresh interpreter per worker: threads of numpy and polars do not survive a fork.
    pool = ProcessPoolExecutor(
        max_workers=min(jobs, len(work)), mp_context=get_context("spawn"), initializer=_start_worker
    )
    try:
        for future in as_completed([pool.submit(_one, one) for one in work]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _one(work: _Work) -> Done:
    """Score one file and keep what came out; runs in a worker."""
    from threadpoolctl import threadpool_limits

    case, place = work.case, work.place
    key = _key(work)
    if work.resume and (kept := _kept(place, key, gates=work.gates)) is not None:
        return Done(name=case.name, score=kept, reused=True)
    # One BLAS thread: the sums are then the same on every machine, and workers do not fight for cores.
    with threadpool_limits(1):
        score, result = score_case(case, work.plan, work.defaults)
    (place / "result.json").unlink(missing_ok=True)
    if work.gates and result is not None:
        write_result(result, place, key=key)
    write_json({"schema": SCHEMA_VERSION, "key": key, "score": score_to_json(score)}, place / "score.json")
    return Done(name=case.name, score=score, reused=False)


def _kept(place: Path, key: str, *, gates: bool) -> Score | None:
    try:
        document = json.loads((place / "score.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if document.get("schema") != SCHEMA_VERSION or document.get("key") != key:
        return None
    score = score_from_json(document["score"])
    if gates and score.outcomes and not (place / "result.json").is_file():
        return None
    return score


def _sha256(path: str) -> str:
    try:
        return file_sha256(path)
    except OSError:
        return ""


def _key(work: _Work) -> str:
    """Digest everything that one score depends on."""
    case, plan = work.case, work.plan
    sha256 = _sha256(case.path)
    matrix = plan.settings.matrix
    matrix_sha256 = "" if matrix in {"file", "none"} else file_sha256(matrix)
    text = json.dumps(
        {
            "version": __version__,
            "schema": SCHEMA_VERSION,
            "case": [case.name, Path(case.path).name, sha256],
            "diagnosis": [Path(case.diagnosis).name, _sha256(case.diagnosis)] if case.diagnosis else [],
            "labels": [Path(case.labels).name, case.survey.sha256 if case.survey else ""],
            "fault": case.fault.message if case.fault else "",
            "nominal": str(case.nominal),
            "groups": dict(case.groups),
            "reading": str(plan.reading),
            "analyte": plan.analyte,
            "templates": [_template_key(plan.template), *(_compared(one) for one in plan.comparisons)],
            "settings": plan.settings.model_dump(mode="json", exclude={"membership", "templates"}),
            "matrix": matrix_sha256,
            "reference": work.reference_sha256,
            "levels": plan.levels,
            "timed": plan.timed,
            "defaults": work.defaults.model_dump(mode="json"),
        },
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _compared(one: Comparison) -> list[str]:
    return [one.name, _template_key(one.template)]


def _template_key(template: GatingTemplate) -> str:
    # A varied template keeps the digest of its document, so the content counts.
    return hashlib.sha256(template.model_dump_json().encode()).hexdigest()


def _record(
    cases: Sequence[Case],
    scores: Sequence[Score],
    plan: Plan,
    defaults: Defaults,
    provenance: Mapping[str, str],
    absent: Sequence[str],
) -> dict[str, Any]:
    """Return what `run.json` says: versions, digests, settings; nothing that changes from run to run."""
    record = run_record(StoredResults([]), {plan.template.template.id: plan.template}, plan.settings, "")
    return {
        **{
            name: value
            for name, value in record.items()
            if name not in {"acquisitions", "manifest_sha256", "references"}
        },
        "simulator_versions": sorted({score.simulator_version for score in scores} - {""}),
        "evaluation": {
            "defaults": defaults.version,
            "analyte": plan.analyte,
            "numerator": plan.measurement.numerator,
            "denominator": plan.measurement.denominator,
            "reference_sha256": provenance["reference_sha256"],
            "levels": list(plan.levels),
            "labels": {
                "column": plan.reading.column,
                "denominator": plan.reading.denominator,
                "positive": list(plan.reading.positive),
                "not_seen": list(absent),
            },
            "comparisons": {
                one.name: {"title": one.title, "template": one.template.template.id, "sha256": one.template.digest}
                for one in plan.comparisons
            },
            "cases": [
                {
                    "case": score.case,
                    "file": score.file,
                    "sha256": score.sha256,
                    "labels": score.labels,
                    "labels_sha256": score.labels_sha256,
                    "column": case.survey.column if case.survey else None,
                }
                for case, score in zip(cases, scores, strict=True)
            ],
        },
    }


def absent_finding(values: Sequence[str]) -> QcFinding:
    """Say that a value meant as disease stands in no labels document."""
    return QcFinding(
        level=Level.WARNING,
        code="LABELS_VALUE_NOT_SEEN",
        message=(
            f"No event of any file is labelled {', '.join(values)}: right where no file holds disease, else a mistake."
        ),
        where="--positive",
    )
