"""Run the pipeline over many acquisitions: one process or a pool, resumed from what the run folder already holds.

Results go to the run folder as each acquisition ends (temporary name, then rename): an interrupted run loses nothing.
The tables are built from the kept results in manifest order; the number of workers cannot show in them.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from flowmrd import __version__
from flowmrd.blasts import default_reference, searched
from flowmrd.errors import SettingsError
from flowmrd.followup import follow_up
from flowmrd.gating.detection.own import OwnPhenotype, phenotype_from_json
from flowmrd.gating.template import GatingTemplate, find_template
from flowmrd.memory import remembers
from flowmrd.pipeline import Acquisition, analyse
from flowmrd.quantification.kinetics import subject_courses
from flowmrd.records import (
    SCHEMA_VERSION,
    StoredResults,
    amend_result,
    read_tables,
    stored_key,
    table_rows,
    write_json,
    write_kinetics,
    write_membership,
    write_result,
    write_tables,
)
from flowmrd.settings import Settings
from flowmrd.trial import Inputs, Trial, conclude, remove_trial, trial_record, write_trial

# The visit of a diagnosis comes before all others of a subject.
_DIAGNOSIS = "BL"
# Packages whose version can move a number.
NUMERIC_PACKAGES = ("flowkit", "flowutils", "numpy", "polars", "scikit-learn", "scipy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What the caller learns when one acquisition ends; `phenotype` are the blasts found, for later samples."""

    name: str
    events: int
    qc: str
    failed: bool
    reused: bool
    summary: str
    phenotype: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run ended: per acquisition, the kept results in manifest order, and the content of `run.json`.

    `trial` is what a clinical table made of it, where there was one.
    """

    done: tuple[Done, ...]
    results: StoredResults
    record: Mapping[str, object]
    trial: Trial | None = None


def run(
    acquisitions: Sequence[Acquisition],
    out: Path,
    *,
    settings: Settings,
    jobs: int = 1,
    resume: bool = False,
    manifest_sha256: str = "",
    clinical: Inputs | None = None,
    on_done: Callable[[Done], None] = lambda _done: None,
) -> RunOutcome:
    """Analyse all acquisitions, write the tables and `run.json`.

    Parameters
    ----------
    acquisitions : in manifest order, names unique
    out : run folder; made if it is not there
    settings : what can change a number
    jobs : worker processes; memory is bounded by this many files' memberships and panels
    resume : keep results whose inputs, template, settings and software are the same
    clinical : checked clinical tables: the run also classes responses and computes endpoints
    on_done : called in this process as each acquisition ends, in any order
    """
    folder = None if settings.templates is None else Path(settings.templates)
    templates = {tube: find_template(tube, folder) for tube in sorted({one.tube for one in acquisitions})}
    places = {one.name: out / "acquisitions" / one.name for one in acquisitions}
    if len(places) != len(acquisitions):
        raise SettingsError("two acquisitions have the same name", hint="name them apart in the manifest")
    finished: dict[str, Done] = {}
    todo = [_Work(one, templates[one.tube], settings, places[one.name], out, resume, None) for one in acquisitions]
    for done in _each(_by_memory(todo), jobs):
        finished[done.name] = done
        on_done(done)
    results = StoredResults([places[one.name] for one in acquisitions])
    for name, tables in follow_up(map(read_tables, places.values()), templates).items():
        amend_result(places[name], tables)
    write_tables(table_rows(results), out)
    courses = subject_courses((one.subject, one.course, one.point) for one in results if one.point is not None)
    if courses:
        write_kinetics(courses, out)
    record = run_record(results, templates, settings, manifest_sha256)
    trial = None
    if clinical is None:
        remove_trial(out)
    else:
        trial = conclude(clinical, results)
        write_trial(trial, out)
        record["clinical"] = trial_record(trial)
    write_json(record, out / "run.json")
    return RunOutcome(
        done=tuple(finished[one.name] for one in acquisitions), results=results, record=record, trial=trial
    )


class _Work(NamedTuple):
    """One acquisition to analyse, where its result goes, and the subject's own blasts as far as they are known."""

    acquisition: Acquisition
    template: GatingTemplate
    settings: Settings
    place: Path
    out: Path
    resume: bool
    own: Mapping[str, Any] | None


@dataclass(slots=True, kw_only=True)
class _Chain:
    """Acquisitions of one subject and tube, the diagnosis first; those after the first one with blasts know them.

    What an acquisition knows depends on the manifest and on the files alone, not on who ends first.
    """

    waiting: list[_Work]
    own: Mapping[str, Any] | None = None

    def start(self) -> list[_Work]:
        """Return what can be done now: the next one, or all once the blasts are known."""
        count = len(self.waiting) if self.own is not None else 1
        ready, self.waiting = self.waiting[:count], self.waiting[count:]
        return [work._replace(own=self.own) for work in ready]


def _by_memory(todo: Sequence[_Work]) -> list[_Chain]:
    """Line up each subject's acquisitions of one tube: visit of diagnosis first, then by day; all others alone."""
    chains: dict[tuple[str, ...], list[_Work]] = {}
    for number, work in enumerate(todo):
        one = work.acquisition
        linked = bool(one.subject) and one.diagnosis is None and remembers(work.template)
        chains.setdefault((one.subject, one.tube) if linked else ("", "", str(number)), []).append(work)
    return [_Chain(waiting=sorted(works, key=_when)) for works in chains.values()]


def _when(work: _Work) -> tuple[bool, bool, int]:
    one = work.acquisition
    return one.visit != _DIAGNOSIS, one.study_day is None, one.study_day or 0


def _each(chains: Sequence[_Chain], jobs: int) -> Iterator[Done]:
    ready = deque((work, chain) for chain in chains for work in chain.start())

    def ended(done: Done, chain: _Chain) -> None:
        if chain.own is None:
            chain.own = done.phenotype
        # Those that waited come next: the subject's files end together.
        ready.extendleft((work, chain) for work in reversed(chain.start() if chain.waiting else []))

    if jobs <= 1 or sum(1 + len(chain.waiting) for chain in chains) <= 1:
        while ready:
            work, chain = ready.popleft()
            done = _one(work)
            yield done
            ended(done, chain)
        return
    # A fresh interpreter per worker: threads of numpy and polars do not survive a fork.
    with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn"), initializer=_start_worker) as pool:
        running: dict[Future[Done], _Chain] = {}
        while ready or running:
            # No more than two files a worker are under way, however long the manifest.
            while ready and len(running) < 2 * jobs:
                work, chain = ready.popleft()
                running[pool.submit(_one, work)] = chain
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                chain = running.pop(future)
                done = future.result()
                yield done
                ended(done, chain)


def _start_worker() -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _one(work: _Work) -> Done:
    """Analyse one acquisition and keep its result; runs in a worker."""
    from threadpoolctl import threadpool_limits

    acquisition, template, settings, place, out, resume, kept_own = work
    own = None if kept_own is None else phenotype_from_json(kept_own)
    key, sha256 = _key(acquisition, template, settings, own)
    member_path = out / "membership" / f"{Path(acquisition.path).stem}.parquet"
    if resume and key is not None and stored_key(place) == key and (not settings.membership or member_path.is_file()):
        from flowmrd.records import read_result

        kept = read_result(place)
        return Done(
            name=kept.acquisition,
            events=kept.events,
            qc=kept.qc,
            failed=not kept.populations,
            reused=True,
            summary="; ".join(kept.wording),
            phenotype=kept.phenotype,
        )
    # One BLAS thread: the sums are then the same on every machine, and workers do not fight for cores.
    with threadpool_limits(1):
        analysis = analyse(acquisition, template, settings, sha256=sha256, own=own)
    if settings.membership and analysis.gating is not None:
        gating = analysis.gating
        write_membership({row.name: gating.memberships.mask(row.name) for row in template.population}, member_path)
    result = analysis.result
    write_result(result, place, key=key or "")
    if result.phenotype is not None:
        write_json(result.phenotype, place / "phenotype.json")
    else:
        (place / "phenotype.json").unlink(missing_ok=True)
    return Done(
        name=result.acquisition,
        events=result.events,
        qc=result.qc,
        failed=analysis.failed,
        reused=False,
        summary="; ".join(result.wording) if not analysis.failed else result.findings[-1].message,
        phenotype=result.phenotype,
    )


def _key(
    acquisition: Acquisition, template: GatingTemplate, settings: Settings, own: OwnPhenotype | None
) -> tuple[str | None, str]:
    """Digest everything that one result depends on, and the file alone; no key when an input cannot be read."""
    from flowmrd.fcs import file_sha256

    sha256 = ""
    try:
        sha256 = file_sha256(acquisition.path)
        digests = [sha256]
        matrices = sorted({str(acquisition.matrix), settings.matrix} - {"None", "file", "none"})
        digests.extend(hashlib.sha256(Path(matrix).read_bytes()).hexdigest() for matrix in matrices)
        digests.extend(file_sha256(control.path) for control in acquisition.controls)
        digests.extend([] if acquisition.diagnosis is None else [file_sha256(acquisition.diagnosis)])
        reference = Path(settings.reference) if settings.reference else default_reference(template)
        digests.extend([file_sha256(str(reference))] if reference is not None and searched(template) else [])
    except (OSError, ValueError):
        return None, sha256
    gates = acquisition.gate_set
    text = json.dumps(
        {
            "version": __version__,
            "schema": SCHEMA_VERSION,
            "inputs": digests,
            "template": template.digest,
            "acquisition": {
                **asdict(replace(acquisition, gate_set=None)),
                "path": Path(acquisition.path).name,
                "diagnosis": acquisition.diagnosis and Path(acquisition.diagnosis).name,
                "controls": [{**asdict(one), "path": Path(one.path).name} for one in acquisition.controls],
            },
            "gate_set": None if gates is None else [gates.path.name, gates.content],
            "own": None if own is None else own.digest,
            "settings": settings.model_dump(mode="json", exclude={"membership", "templates", "reference"}),
        },
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(text.encode()).hexdigest(), sha256


def _reference_sha256(template: GatingTemplate, settings: Settings) -> str | None:
    """Return the SHA-256 of the reference that a template's search uses; `None` where there is none."""
    from flowmrd.fcs import file_sha256

    reference = Path(settings.reference) if settings.reference else default_reference(template)
    if reference is None or not searched(template):
        return None
    try:
        return file_sha256(str(reference))
    except OSError:
        return None


def run_record(
    results: StoredResults, templates: Mapping[str, GatingTemplate], settings: Settings, manifest_sha256: str
) -> dict[str, object]:
    """Return what `run.json` says: versions, digests, settings and seed; nothing that changes from run to run."""
    from importlib.metadata import version

    return {
        "schema": SCHEMA_VERSION,
        "flowmrd": __version__,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in NUMERIC_PACKAGES},
        "manifest_sha256": manifest_sha256,
        "seed": settings.seed,
        # Folder names of this machine are no part of a result.
        "settings": settings.model_dump(mode="json", exclude={"templates"})
        | {
            "matrix": settings.matrix if settings.matrix in {"file", "none"} else Path(settings.matrix).name,
            "reference": Path(settings.reference).name if settings.reference else settings.reference,
        },
        "templates": {
            tube: {"version": one.template.version, "sha256": one.digest, "approved_by": one.template.approved_by}
            for tube, one in sorted(templates.items())
        },
        "references": {tube: _reference_sha256(one, settings) for tube, one in sorted(templates.items())},
        "acquisitions": [
            {
                "acquisition": one.acquisition,
                "file": one.file_name,
                "sha256": one.file_sha256,
                "template": one.tube,
                "compensation": one.compensation,
                "events": one.events,
                "qc": one.qc,
                **({"reagent": one.reagent} if one.reagent else {}),
                "gate_set": None if one.gate_set is None else asdict(one.gate_set),
            }
            for one in results
        ],
    }
