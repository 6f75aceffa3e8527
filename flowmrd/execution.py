"""Run the pipeline over many acquisitions: one process or a pool, resumed from what the run folder already holds.

Results go to the run folder as each acquisition ends (temporary name, then rename): an interrupted run loses nothing.
The tables are built from the kept results in manifest order; the number of workers cannot show in them.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from flowmrd import __version__
from flowmrd.blasts import default_reference, searched
from flowmrd.errors import SettingsError
from flowmrd.gating.template import GatingTemplate, find_template
from flowmrd.pipeline import Acquisition, analyse
from flowmrd.quantification.kinetics import subject_courses
from flowmrd.records import (
    SCHEMA_VERSION,
    StoredResults,
    stored_key,
    table_rows,
    write_json,
    write_kinetics,
    write_membership,
    write_result,
    write_tables,
)
from flowmrd.settings import Settings

# Packages whose version can move a number.
NUMERIC_PACKAGES = ("flowkit", "flowutils", "numpy", "polars", "scikit-learn", "scipy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What the caller learns when one acquisition ends."""

    name: str
    events: int
    qc: str
    failed: bool
    reused: bool
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """How a run ended: per acquisition, the kept results in manifest order, and the content of `run.json`."""

    done: tuple[Done, ...]
    results: StoredResults
    record: Mapping[str, object]


def run(
    acquisitions: Sequence[Acquisition],
    out: Path,
    *,
    settings: Settings,
    jobs: int = 1,
    resume: bool = False,
    manifest_sha256: str = "",
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
    on_done : called in this process as each acquisition ends, in any order
    """
    folder = None if settings.templates is None else Path(settings.templates)
    templates = {tube: find_template(tube, folder) for tube in sorted({one.tube for one in acquisitions})}
    places = {one.name: out / "acquisitions" / one.name for one in acquisitions}
    if len(places) != len(acquisitions):
        raise SettingsError("two acquisitions have the same name", hint="name them apart in the manifest")
    finished: dict[str, Done] = {}
    todo = [(one, templates[one.tube], settings, places[one.name], out, resume) for one in acquisitions]
    for done in _each(todo, jobs):
        finished[done.name] = done
        on_done(done)
    results = StoredResults([places[one.name] for one in acquisitions])
    write_tables(table_rows(results), out)
    courses = subject_courses((one.subject, one.course, one.point) for one in results if one.point is not None)
    if courses:
        write_kinetics(courses, out)
    record = run_record(results, templates, settings, manifest_sha256)
    write_json(record, out / "run.json")
    return RunOutcome(done=tuple(finished[one.name] for one in acquisitions), results=results, record=record)


_Work = tuple[Acquisition, GatingTemplate, Settings, Path, Path, bool]


def _each(todo: Sequence[_Work], jobs: int) -> Iterator[Done]:
    if jobs <= 1 or len(todo) <= 1:
        for work in todo:
            yield _one(work)
        return
    # A fresh interpreter per worker: threads of numpy and polars do not survive a fork.
    with ProcessPoolExecutor(
        max_workers=min(jobs, len(todo)), mp_context=get_context("spawn"), initializer=_start_worker
    ) as pool:
        waiting = iter(todo)
        running: set[Future[Done]] = set()
        for work in waiting:
            running.add(pool.submit(_one, work))
            # No more than two files a worker are under way, however long the manifest.
            if len(running) >= 2 * jobs:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ended)
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ended)


def _start_worker() -> None:
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def _one(work: _Work) -> Done:
    """Analyse one acquisition and keep its result; runs in a worker."""
    from threadpoolctl import threadpool_limits

    acquisition, template, settings, place, out, resume = work
    key, sha256 = _key(acquisition, template, settings)
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
        )
    # One BLAS thread: the sums are then the same on every machine, and workers do not fight for cores.
    with threadpool_limits(1):
        analysis = analyse(acquisition, template, settings, sha256=sha256)
    if settings.membership and analysis.gating is not None:
        gating = analysis.gating
        write_membership({row.name: gating.memberships.mask(row.name) for row in template.population}, member_path)
    result = analysis.result
    write_result(result, place, key=key or "")
    return Done(
        name=result.acquisition,
        events=result.events,
        qc=result.qc,
        failed=analysis.failed,
        reused=False,
        summary="; ".join(result.wording) if not analysis.failed else result.findings[-1].message,
    )


def _key(acquisition: Acquisition, template: GatingTemplate, settings: Settings) -> tuple[str | None, str]:
    """Digest everything that one result depends on, and the file alone; no key when an input cannot be read."""
    from flowmrd.fcs import file_sha256

    sha256 = ""
    try:
        sha256 = file_sha256(acquisition.path)
        digests = [sha256]
        matrices = sorted({str(acquisition.matrix), settings.matrix} - {"None", "file", "none"})
        digests.extend(hashlib.sha256(Path(matrix).read_bytes()).hexdigest() for matrix in matrices)
        digests.extend(file_sha256(control.path) for control in acquisition.controls)
        reference = Path(settings.reference) if settings.reference else default_reference(template)
        digests.extend([file_sha256(str(reference))] if reference is not None and searched(template) else [])
    except (OSError, ValueError):
        return None, sha256
    own = acquisition.gate_set
    text = json.dumps(
        {
            "version": __version__,
            "schema": SCHEMA_VERSION,
            "inputs": digests,
            "template": template.digest,
            "acquisition": {
                **asdict(replace(acquisition, gate_set=None)),
                "path": Path(acquisition.path).name,
                "controls": [{**asdict(one), "path": Path(one.path).name} for one in acquisition.controls],
            },
            "gate_set": None if own is None else [own.path.name, own.content],
            "settings": settings.model_dump(mode="json", exclude={"membership", "templates", "reference"}),
        },
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(text.encode()).hexdigest(), sha256


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
        | {"matrix": settings.matrix if settings.matrix in {"file", "none"} else Path(settings.matrix).name},
        "templates": {
            tube: {"version": one.template.version, "sha256": one.digest, "approved_by": one.template.approved_by}
            for tube, one in sorted(templates.items())
        },
        "acquisitions": [
            {
                "acquisition": one.acquisition,
                "file": one.file_name,
                "sha256": one.file_sha256,
                "template": one.tube,
                "compensation": one.compensation,
                "events": one.events,
                "qc": one.qc,
                "gate_set": None if one.gate_set is None else asdict(one.gate_set),
            }
            for one in results
        ],
    }
