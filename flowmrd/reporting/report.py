"""Results → HTML: a folder of pages sharing one plotly.min.js, or a single file.

No network and no clock: the same input gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowmrd import __version__
from flowmrd.cytometry.transforms import make_transform
from flowmrd.errors import Level, QcFinding
from flowmrd.gating.gates import Boolean, Ellipsoid, Intervals, Nothing, Polygon, Rectangle, Whole, gate_from_json
from flowmrd.quantification.kinetics import Sample, subject_courses
from flowmrd.records import (
    AcquisitionResult,
    Axis,
    ControlOverlay,
    DetectionRecord,
    GateSetRecord,
    MarginCount,
    MeasurementRow,
    PlacedGate,
    PlotPanel,
    PopulationRow,
    TimeSeries,
)
from flowmrd.reporting import figures
from flowmrd.reporting.evidence import evidence_context
from flowmrd.reporting.numbers import (
    MISSING,
    format_channel_value,
    format_count,
    format_percent,
    format_share,
    significant,
    supported_digits,
)
from flowmrd.reporting.search import search_context, shown_events
from flowmrd.reporting.thumbnails import panel_thumbnail
from flowmrd.reporting.timeline import Point, course_timeline, mrd_points, timeline_context

if TYPE_CHECKING:
    from jinja2 import Environment

    from flowmrd.reporting.patients import Shown
    from flowmrd.trial import Trial

_PAGES = Path(__file__).resolve().parent / "pages"
_LEVELS = (Level.VIOLATION, Level.WARNING, Level.INFO)
_QC_ORDER = {"FAIL": 0, "WARN": 1, "PASS": 2}
# Names that Windows keeps for devices, whatever the suffix.
_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\.|$)")

# The words of the result codes (docs/reference/tables.md); a code without words is shown as it is.
_CATEGORY = {
    "APLASIA": "B-cell aplasia",
    "NO_APLASIA": "No B-cell aplasia",
    "NOT_DONE": "Not done",
    "UNDETECTED": "Not detected",
    "UNDETECTED_INSUFFICIENT": "Not detected, sensitivity insufficient",
    "UNDETECTED_GATING_INADEQUATE": "Not evaluable, gating inadequate",
    "DETECTED_BELOW_LLOQ": "Detected, below LLOQ",
    "QUANTIFIABLE": "Detected, quantifiable",
}
_CALL = {"positive": "Positive", "not_detected": "Not detected", "review": "Needs review"}
_STATUS = {
    "computed": "Computed, not reviewed",
    "needs_check": "Needs a check",
    "in_review": "In review",
    "approved": "Approved",
    "amended": "Amended",
    "refused": "Refused",
}
# What stood in for a gate (flowmrd.gating.engine), in words; any other fallback is the name of a method.
_STAND_INS = {"whole": "whole parent kept", "nothing": "not evaluable", "override": "overridden for this acquisition"}
_NEGATIVE = {"Y": "Yes", "N": "No", "NE": "Not evaluable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """One acquisition and where its page lies (`name` is safe in a file name and in an address)."""

    key: str
    name: str
    result: AcquisitionResult


def render_report(
    results: Sequence[AcquisitionResult],
    run: Mapping[str, object],
    out: Path,
    *,
    single_file: bool = False,
    trial: Trial | None = None,
) -> Path:
    """Write the report of a run.

    Every file is written under a temporary name and renamed, the index last: a reader never sees half a page.

    Parameters
    ----------
    results : one value per acquisition, in the order of the index; gone through once
    run : content of run.json (versions, digests, settings, seed), shown as provenance
    out : folder, made if absent. Holds `index.html` and, unless `single_file`, `acquisitions/` and `assets/`
    single_file : put everything, plotly.js once, into `index.html`
    trial : what a clinical table made of the run: a page for each patient and one for the cohort

    Returns
    -------
    path of `index.html`

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> render_report([], {"seed": 1}, Path(mkdtemp())).name
    'index.html'
    """
    environment = _environment()
    out.mkdir(parents=True, exist_ok=True)
    shell = _shell(single_file=single_file, trial=trial is not None)
    patients = _PatientPages(trial, single_file=single_file)
    rows: list[dict[str, Any]] = []
    bodies: list[str] = []
    kept: set[str] = set()
    course_points: list[tuple[str, int, Sample]] = []
    mrd: dict[tuple[str, int], list[Point]] = {}
    if not single_file:
        _write_assets(out / "assets", trial=trial is not None)
        (out / "acquisitions").mkdir(exist_ok=True)
    for previous, page, following in _with_neighbours(_pages(results)):
        rows.append(_index_row(page, single_file=single_file))
        if page.result.point is not None:
            course_points.append((page.result.subject, page.result.course, page.result.point))
        mrd.setdefault((page.result.subject, page.result.course), []).extend(mrd_points(page.result))
        patients.add(page, rows[-1])
        context = acquisition_context(page.result, key=page.key)
        context |= {
            "subject": page.result.subject,
            "patient_href": patients.href(page.result.subject, root="../"),
            "index_href": "#index" if single_file else "../index.html",
            "previous": _neighbour(previous, single_file=single_file),
            "next": _neighbour(following, single_file=single_file),
            # Every page would repeat the list of all acquisitions; it stands on the index.
            "run": None
            if single_file
            else {name: run[name] for name in run if name not in {"acquisitions", "clinical"}},
        }
        body = environment.get_template("body.html").render(page=context)
        if single_file:
            bodies.append(body)
            continue
        text = environment.get_template("acquisition.html").render(
            **shell, root="../", page=context, body=_markup(body)
        )
        _write(out / "acquisitions" / f"{page.name}.html", text.encode())
        kept.add(f"{page.name}.html")
    if not single_file:
        # A page of an acquisition that is no longer in the run would be taken for a current result.
        for stale in sorted((out / "acquisitions").glob("*.html")):
            if stale.name not in kept:
                stale.unlink()
    if trial is not None:
        bodies.extend(patients.render(environment, shell, out, mrd))
    elif not single_file:
        _remove_trial_pages(out)
    text = environment.get_template("index.html").render(
        **shell,
        root="",
        rows=rows,
        summary=_summary(rows),
        run=_shown_run(run),
        bodies=[_markup(body) for body in bodies],
        **patients.index_context(),
        # A patient's course stands on their own page.
        courses=[
            timeline_context(
                course_timeline(one, mrd=mrd.get((one.kinetics.subject, one.kinetics.course), ())),
                f"course-{number}",
            )
            for number, one in enumerate(subject_courses(course_points), start=1)
            if not patients.href(one.kinetics.subject, root="")
        ],
    )
    index = out / "index.html"
    _write(index, text.encode())
    return index


class _PatientPages:
    """The pages of a trial's patients and of its cohort, gathered while the acquisitions' pages are written."""

    def __init__(self, trial: Trial | None, *, single_file: bool) -> None:
        self.trial, self.single_file = trial, single_file
        names = [] if trial is None else [one.patient_id for one in trial.outcomes.subjects]
        self.names = dict(zip(names, page_names(names), strict=True))
        self.keys = {name: f"patient-{number}" for number, name in enumerate(names, start=1)}
        self.shown: dict[str, list[Shown]] = {}

    def href(self, subject: str, *, root: str) -> str:
        """Return the address of a patient's page; empty where there is none."""
        if subject not in self.names:
            return ""
        return f"#{self.keys[subject]}" if self.single_file else f"{root}patients/{self.names[subject]}.html"

    def add(self, page: _Page, row: Mapping[str, Any]) -> None:
        if page.result.subject in self.names:
            from flowmrd.reporting.patients import shown_of

            href = f"#{page.key}" if self.single_file else f"../acquisitions/{page.name}.html"
            shown = shown_of(page.result, row, href=href, key=page.key)
            self.shown.setdefault(page.result.subject, []).append(shown)

    def index_context(self) -> dict[str, Any]:
        """Return what the index shows of the patients."""
        if self.trial is None:
            return {"patients": []}
        from flowmrd.reporting.patients import index_rows

        rules = self.trial.inputs.criteria
        return {
            "patients": [{**row, "href": self.href(row["id"], root="")} for row in index_rows(self.trial)],
            "visit_names": [visit.name for visit in rules.visits],
            "criteria": f"{rules.document.criteria.title} ({rules.id} {rules.version})",
            "cohort_href": "#cohort" if self.single_file else "cohort.html",
        }

    def render(
        self,
        environment: Environment,
        shell: Mapping[str, Any],
        out: Path,
        mrd: Mapping[tuple[str, int], Sequence[Point]],
    ) -> list[str]:
        """Write the pages; in the single file hand back their bodies instead."""
        from flowmrd.reporting.patients import patient_context, report_cohort_context

        trial = self.trial
        assert trial is not None
        bodies = []
        pages = [*self.names]
        for number, subject in enumerate(trial.outcomes.subjects):
            name = subject.patient_id
            context = patient_context(
                trial, subject, self.shown.get(name, ()), mrd.get((name, 1), ()), key=self.keys[name]
            )
            near = {"previous": number - 1, "next": number + 1}
            context |= {
                which: {"name": pages[place], "href": self._beside(pages[place])} if 0 <= place < len(pages) else None
                for which, place in near.items()
            }
            context |= {
                "index_href": "#index" if self.single_file else "../index.html",
                "cohort_href": "#cohort" if self.single_file else "../cohort.html",
            }
            bodies.append(environment.get_template("patient.html").render(page=context))
            if not self.single_file:
                self._write(environment, shell, out / "patients" / f"{self.names[name]}.html", context, bodies.pop())
        links = {
            (call.patient_id, call.timepoint): one.href.removeprefix("../")
            for call in trial.outcomes.calls
            for one in self.shown.get(call.patient_id, ())
            if one.name == trial.source_of(call)
        }
        context = report_cohort_context(
            trial,
            {name: self.href(name, root="") for name in self.names},
            links,
            index_href="#index" if self.single_file else "index.html",
        )
        bodies.append(environment.get_template("cohort_body.html").render(page=context))
        if not self.single_file:
            self._write(environment, shell, out / "cohort.html", context, bodies.pop())
            for stale in sorted((out / "patients").glob("*.html")):
                if stale.stem not in self.names.values():
                    stale.unlink()
        return bodies

    def _beside(self, subject: str) -> str:
        return f"#{self.keys[subject]}" if self.single_file else f"{self.names[subject]}.html"

    def _write(
        self, environment: Environment, shell: Mapping[str, Any], path: Path, context: Mapping[str, Any], body: str
    ) -> None:
        path.parent.mkdir(exist_ok=True)
        root = "" if path.name == "cohort.html" else "../"
        text = environment.get_template("trial_page.html").render(**shell, root=root, page=context, body=_markup(body))
        _write(path, text.encode())


def _remove_trial_pages(out: Path) -> None:
    """Take away pages that an earlier run with a clinical table left."""
    (out / "cohort.html").unlink(missing_ok=True)
    for stale in sorted((out / "patients").glob("*.html")):
        stale.unlink()


def _shown_run(run: Mapping[str, object]) -> dict[str, object]:
    """Leave out of the shown record what the patients' pages show better."""
    clinical = run.get("clinical")
    if not isinstance(clinical, Mapping):
        return dict(run)
    return {**run, "clinical": {name: item for name, item in clinical.items() if name != "responses"}}


def acquisition_context(result: AcquisitionResult, *, key: str) -> dict[str, Any]:
    """Gather everything that one acquisition's page shows, as texts and figures.

    Parameters
    ----------
    result : one acquisition
    key : prefix of the page's element ids, unique in the document
    """
    heading = " · ".join(part for part in (result.subject, result.visit) if part) or result.acquisition
    target = next((panel.target_name for panel in result.panels if panel.target_name), "")
    scales = _scales(result.panels)
    return {
        "key": key,
        "title": result.acquisition,
        "heading": heading,
        "qc": result.qc,
        "facts": _facts(result),
        "gate_set": _gate_set(result.gate_set),
        "compensation": result.compensation or MISSING,
        "sha256": result.file_sha256 or MISSING,
        "template_digest": result.template_digest or MISSING,
        "cards": [_card(row, sentence) for row, sentence in zip(result.measurements, result.wording, strict=True)],
        "findings": [
            {
                "order": _LEVELS.index(item.level),
                "level": item.level.value,
                "code": item.code,
                "message": item.message,
                "where": item.where,
            }
            for item in sorted_findings(result.findings)
        ],
        "target": target,
        "panels": [_panel(panel, result, f"{key}-panel-{i + 1}") for i, panel in enumerate(result.panels)],
        "tree": _tree(result, scales, target),
        "overlay": _overlay(result.overlay, key),
        "search": _search(result, scales, key),
        "time": _time(result.time, result),
        **_margins(result.margins),
        **evidence_context(result),
        "gates": [_gate_row(gate) for gate in result.gates],
        "markers": dict(result.markers),
    }


def sorted_findings(findings: Sequence[QcFinding]) -> list[QcFinding]:
    """Order findings: violations, warnings, infos; within a level by code and place."""
    return sorted(findings, key=lambda item: (_LEVELS.index(item.level), item.code, item.where, item.message))


def page_names(acquisitions: Sequence[str]) -> list[str]:
    """Name each acquisition's page: safe in any file system and address, and unique without regard to case.

    Examples
    --------
    >>> page_names(["D28", "M3 (tube 2) #1", "d28"])
    ['D28', 'M3_tube_2_1-b6020a', 'd28-2']
    """
    taken: set[str] = set()
    return [_page_name(acquisition, taken) for acquisition in acquisitions]


# --------------------------------------------------------------------------------------------------------------- pages


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = environment.get_template("parts.html").module
    environment.globals.update({name: getattr(parts, name) for name in ("badge", "level", "symbol", "tree")})
    return environment


def _markup(text: str) -> Any:
    """Mark text that a template of ours rendered as HTML that needs no second escaping."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704 -- only output of our own autoescaping templates and of _json comes here


def _shell(*, single_file: bool, trial: bool = False) -> dict[str, Any]:
    """What every page's frame needs: the content-security policy, settings, and in the single file the assets."""
    shell: dict[str, Any] = {
        "single_file": single_file,
        "trial": trial,
        "version": __version__,
        "settings": _markup(_json({"config": figures.CONFIG, "themes": figures.THEMES})),
    }
    if single_file:
        more = "cohort" if trial else ""
        script = _asset_text("report.js") + (_asset_text(f"{more}.js") if more else "")
        style = _asset_text("report.css") + (_asset_text(f"{more}.css") if more else "")
        plotly = _plotly_js().decode()
        hashes = " ".join(f"'sha256-{_sha256_base64(text)}'" for text in (script, plotly))
        shell |= {"script": _markup(script), "plotly": _markup(plotly), "style": _markup(style)}
        scripts, styles = hashes, "'unsafe-inline'"
    else:
        # A page opened by double-click has the scheme file: and no origin; not every browser lets 'self' match it.
        scripts, styles = "'self' file:", "'self' file: 'unsafe-inline'"
    # plotly.js sets styles on its elements, hence 'unsafe-inline' for styles; its heat maps are data: images.
    shell["policy"] = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src data: blob:; "
        "connect-src 'none'; form-action 'none'; base-uri 'none'; object-src 'none'"
    )
    return shell


def _asset_text(name: str) -> str:
    return (_PAGES / name).read_text(encoding="utf-8")


def _plotly_js() -> bytes:
    """Read plotly.min.js of the installed plotly package (found, not imported: the import costs more than the page)."""
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_bytes()


def _sha256_base64(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _json(value: object) -> str:
    """Write JSON that may stand inside a script element: no character that HTML could read as markup."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _write_assets(folder: Path, *, trial: bool) -> None:
    folder.mkdir(exist_ok=True)
    names = ["report.css", "report.js", *(["cohort.css", "cohort.js"] if trial else [])]
    assets = {name: _asset_text(name).encode() for name in names} | {"plotly.min.js": _plotly_js()}
    for name, content in assets.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            _write(path, content)


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)  # noqa: PTH105 -- the atomic form; Path.replace is the same call


def _pages(results: Sequence[AcquisitionResult]) -> Iterator[_Page]:
    taken: set[str] = set()
    for i, result in enumerate(results):
        yield _Page(key=f"a{i + 1}", name=_page_name(result.acquisition, taken), result=result)


def _page_name(acquisition: str, taken: set[str]) -> str:
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", acquisition).strip("._")[:80]
    if not name or name != acquisition or _RESERVED.match(name):
        name = f"{name}-{hashlib.sha256(acquisition.encode()).hexdigest()[:6]}".lstrip("-")
    unique, number = name, 1
    while unique.casefold() in taken:
        number += 1
        unique = f"{name}-{number}"
    taken.add(unique.casefold())
    return unique


def _with_neighbours(pages: Iterator[_Page]) -> Iterator[tuple[_Page | None, _Page, _Page | None]]:
    previous: _Page | None = None
    current = next(pages, None)
    while current is not None:
        following = next(pages, None)
        yield previous, current, following
        previous, current = current, following


def _neighbour(page: _Page | None, *, single_file: bool) -> dict[str, str] | None:
    if page is None:
        return None
    return {"name": page.result.acquisition, "href": f"#{page.key}" if single_file else f"{page.name}.html"}


# --------------------------------------------------------------------------------------------------------------- index


def _index_row(page: _Page, *, single_file: bool) -> dict[str, Any]:
    result = page.result
    panel = key_panel(result.panels)
    picture = base64.b64encode(panel_thumbnail(panel)).decode("ascii") if panel else ""
    levels = Counter(item.level for item in result.findings)
    first = result.measurements[0] if result.measurements else None
    return {
        "href": f"#{page.key}" if single_file else f"acquisitions/{page.name}.html",
        "acquisition": result.acquisition,
        "events": format_count(result.events),
        "subject": result.subject,
        "visit": result.visit,
        "study_day": result.study_day,
        "visit_order": result.study_day if result.study_day is not None else -1,
        "specimen": result.specimen_type,
        "tube": f"{result.tube} {result.template_version}".strip(),
        "results": [
            {
                "wording": sentence,
                "category": _CATEGORY.get(row.category, row.category),
                "status": _STATUS.get(row.status, row.status),
            }
            for row, sentence in zip(result.measurements, result.wording, strict=True)
        ],
        "result_order": _result_order(first),
        "qc": result.qc,
        "qc_order": _QC_ORDER.get(result.qc, 3),
        "findings": [{"level": level.value, "count": levels[level]} for level in _LEVELS if levels[level]],
        "findings_order": levels[Level.VIOLATION] * 1_000_000 + levels[Level.WARNING] * 1_000 + levels[Level.INFO],
        "thumbnail": picture,
        "thumbnail_text": _thumbnail_text(panel) if panel else "",
    }


def _result_order(row: MeasurementRow | None) -> float:
    """Rank a result for sorting; below LLOQ by its limit, since the page gives no number there, not even hidden."""
    if row is None or row.fraction is None:
        return -1.0
    if row.value is not None:
        return row.fraction
    return (row.lod_fraction or 0.0) if row.category == "DETECTED_BELOW_LLOQ" else 0.0


def key_panel(panels: Sequence[PlotPanel]) -> PlotPanel | None:
    """Choose the panel that shows a result best: the last one with all target events among other events.

    "Among others" is at least as many again; where no panel has that, the last one with all target events.
    """
    most = max((panel.target.shape[1] for panel in panels), default=0)
    whole = [panel for panel in panels if panel.target.shape[1] == most and panel.parent_events]
    among_others = [panel for panel in whole if panel.parent_events >= 2 * most]
    return next((group[-1] for group in (among_others, whole) if group), None)


def _thumbnail_text(panel: PlotPanel) -> str:
    return f"{panel.parent}: {figures.axis_title(panel.y)} against {figures.axis_title(panel.x)}"


def _summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    counts = Counter(row["qc"] for row in rows)
    return [{"qc": word, "count": counts[word]} for word in sorted(counts, key=lambda w: _QC_ORDER.get(w, 3))]


# -------------------------------------------------------------------------------------------------------- acquisition


def _facts(result: AcquisitionResult) -> list[tuple[str, str]]:
    visit = result.visit or MISSING
    if result.study_day is not None:
        visit = f"{result.visit} (day {result.study_day})" if result.visit else f"day {result.study_day}"
    return [
        ("Subject", result.subject or MISSING),
        ("Visit", visit),
        ("Specimen", result.specimen_type or MISSING),
        ("Acquisition", result.acquisition),
        ("Tube (template)", f"{result.tube} {result.template_version}".strip() or MISSING),
        *((("Detection reagent", result.reagent),) if result.reagent else ()),
        ("File", result.file_name or MISSING),
        ("Events", format_count(result.events)),
    ]


def _card(row: MeasurementRow, sentence: str) -> dict[str, Any]:
    value, note = result_value(row)
    detected = row.category in {"DETECTED_BELOW_LLOQ", "QUANTIFIABLE"}
    rest: list[tuple[str, str, str]] = []
    counted = row.fraction is not None and row.numerator_events is not None and row.denominator_events
    plain = counted and row.fraction == (row.numerator_events or 0) / (row.denominator_events or 1)
    if row.value is not None and row.ci_low is not None and row.ci_high is not None:
        # A difference of two shares may reach below 0; nothing does on the page.
        interval = f"{_limit(row, max(row.ci_low, 0.0))} – {_limit(row, row.ci_high)}"
        of = f" of the share of {row.denominator}" if row.unit == _PER_UL and row.fraction is not None else ""
        rest.append(
            (f"95% interval{of}", interval, "exact, counting only" if plain else "counting, background and method")
        )
    rest.extend(
        (name, _limit(row, limit), f"limit of {what}, this sample")
        for name, limit, what in (
            ("LOD", row.lod_fraction, "detection"),
            ("LLOQ", row.lloq_fraction, "quantitation"),
        )
        if limit is not None
    )
    if row.category:
        rest.append(("Category", _CATEGORY.get(row.category, row.category), row.category))
    if row.mrd_neg_1e4:
        # "Yes" covers low positives too, so it never stands alone.
        known = row.mrd_neg_1e4 == "Y"
        rest.append(
            (
                "Negative at 10⁻⁴",
                _NEGATIVE.get(row.mrd_neg_1e4, row.mrd_neg_1e4),
                ("low positive: detected" if detected else "undetected") if known else "mrd_neg_1e4",
            )
        )
    if row.gate_set:
        rest.append(("Subject's own gates", row.gate_set.partition(": ")[2], row.gate_set.partition(": ")[0]))
    if row.call:
        rest.append(("Call", _CALL.get(row.call, row.call), "proposed by the automatic path"))
    rest.append(("Status", _STATUS.get(row.status, row.status or MISSING), ""))
    return {
        "wording": sentence,
        "analyte": row.analyte,
        "value": value,
        "value_note": note,
        "numerator": row.numerator,
        "numerator_events": format_count(row.numerator_events),
        "denominator": row.denominator,
        "denominator_events": format_count(row.denominator_events),
        "rest": rest,
        "ruler": limit_ruler(row),
    }


_PER_UL = "/uL"
_YES_NO = "1"


def _limit(row: MeasurementRow, value: float) -> str:
    """Write a limit of a row: a share as percent, unless the row counts cells per µl."""
    if row.unit == _PER_UL and row.fraction is None:
        return f"{significant(value, 2)}/µl"
    return format_percent(value)


def result_value(row: MeasurementRow) -> tuple[str, str]:
    """Write a measurement's value and a note on it; below LLOQ a limit with its comparator stands for the number."""
    if row.unit == _YES_NO and row.value is not None:
        return ("Detected" if row.value else "Not detected", "")
    if row.unit == _PER_UL and row.value is not None:
        return (f"{significant(row.value, 3 if row.value >= 1 else 2)} cells/µl", "")
    if row.unit == _PER_UL and row.fraction is not None:
        return (format_percent(row.fraction), f"of {row.denominator}")
    if row.value is not None:
        text = significant(row.value, min(2, supported_digits(row.numerator_events or 0)))
        return (f"{text}%" if row.unit == "%" else f"{text} {row.unit}".strip(), "")
    if row.category == "DETECTED_BELOW_LLOQ" and row.lloq_fraction is not None:
        return (f"< {_limit(row, row.lloq_fraction)}", "detected, below LLOQ")
    if row.category in {"UNDETECTED", "UNDETECTED_INSUFFICIENT"} and row.lod_fraction is not None:
        return (f"< {_limit(row, row.lod_fraction)}", "below LOD")
    return ("Not evaluable", "")


def limit_ruler(row: MeasurementRow) -> dict[str, Any] | None:
    """Lay LOD, LLOQ and the result on a logarithmic scale, in the drawing's units; `None` where limits are missing."""
    lod, lloq = row.lod_fraction, row.lloq_fraction
    if row.fraction is None or lod is None or lloq is None or not 0 < lod <= lloq < 1:
        return None
    width, left, right = 900.0, 24.0, 876.0
    lowest = min(-5, math.floor(math.log10(lod)))

    def place(fraction: float) -> float:
        share = 1 - math.log10(max(fraction, 10.0**lowest)) / lowest
        return round(left + min(1.0, max(0.0, share)) * (right - left), 1)

    shown = row.value is not None and row.fraction is not None and row.fraction > 0
    assert row.fraction is not None or not shown
    return {
        "width": int(width),
        "left": left,
        "right": right,
        "lod": place(lod),
        "lloq": place(lloq),
        "ticks": [(place(10.0**k), f"{10.0 ** (k + 2):.{max(0, -k - 2)}f}%") for k in range(lowest, 1)],
        "value": place(row.fraction) if shown and row.fraction is not None else None,
        "ci_low": place(row.ci_low or 0.0),
        "ci_high": place(row.ci_high or 0.0),
        "text": f"LOD {format_percent(lod)}, LLOQ {format_percent(lloq)}, result {result_value(row)[0]}",
    }


def _panel(panel: PlotPanel, result: AcquisitionResult, panel_id: str) -> dict[str, Any]:
    axes = f"{figures.axis_title(panel.y)} against {figures.axis_title(panel.x)}"
    gates = "; ".join(
        f"{gate.population} {format_count(gate.events)} ({format_share(gate.events, gate.parent_events)})"
        for gate in panel.gates
    )
    target = ""
    if panel.target_name:
        total = next((row.events for row in result.populations if row.population == panel.target_name), None)
        of = f" of {format_count(total)}" if total is not None else ""
        target = f"{format_count(panel.target.shape[1])}{of} {panel.target_name} inside this parent"
    waiting = _waiting_events(panel, result.detection)
    return {
        "id": panel_id,
        "title": panel.parent,
        "path": panel.parent_path.strip("/").replace("/", " › "),
        "events": format_count(panel.parent_events),
        "axes": axes,
        "text": f"{panel.parent}, {format_count(panel.parent_events)} events: {axes}. Gates: {gates or 'none'}. "
        f"{target}".rstrip(),
        "target": target,
        "purpose": panel.purpose,
        "own": [f"{gate.population}: {gate.detail}" for gate in panel.gates if gate.method == "override"],
        "lists": _lists(panel, result.detection),
        "waiting": waiting is not None,
        "undrawn": ", ".join(
            gate.population for gate in panel.gates if gate.outline.size == 0 and gate.kind != "members"
        ),
        "figure": _markup(_json(figures.panel_figure(panel, review=waiting))),
    }


def _lists(panel: PlotPanel, found: DetectionRecord | None) -> list[str]:
    """Say of each list of events that it has no outline, and where it comes from."""
    against = f" against reference {found.reference} ({found.reference_sha256[:12]})" if found is not None else ""
    return [
        f"{gate.population}: {gate.detail or 'list of events'}"
        + ("" if found is not None and found.reference in gate.detail else against)
        for gate in panel.gates
        if gate.kind == "members" and gate.method != "override"
    ]


def _waiting_events(panel: PlotPanel, found: DetectionRecord | None) -> NDArray[np.float32] | None:
    """Return x and y of the events under review, on the panels that list them; `None` elsewhere."""
    lists = [gate for gate in panel.gates if gate.kind == "members" and gate.population != panel.target_name]
    if found is None or not lists or not {panel.x.marker, panel.y.marker} <= set(found.features):
        return None
    events = shown_events(found, "review", panel.x.marker, panel.y.marker)
    return events if events.shape[1] else None


def _search(result: AcquisitionResult, scales: Mapping[str, Axis], key: str) -> dict[str, Any] | None:
    context = search_context(result, scales, key=key)
    for view in (context or {}).get("views", ()):
        view["figure"] = _markup(_json(view["figure"]))
    return context


def _gate_set(record: GateSetRecord | None) -> dict[str, Any] | None:
    """Say whose gates stand in for the template's, for the head of the page and for its provenance."""
    if record is None:
        return None
    return {
        "text": f"{record.id}: {', '.join(record.populations)} drawn by {record.author} on {record.date} "
        f"from {record.source}. Reason: {record.reason}",
        "sha256": record.sha256,
        "tree": {field.name: getattr(record, field.name) for field in fields(record)},
    }


def _overlay(overlay: ControlOverlay | None, key: str) -> dict[str, Any] | None:
    if overlay is None:
        return None
    return {
        "id": f"{key}-overlay",
        "title": f"{overlay.axis.marker}: sample and control",
        "text": f"{overlay.axis.marker} of sample and of {', '.join(overlay.controls)}. The cut was {overlay.text}.",
        "figure": _markup(_json(figures.overlay_figure(overlay))),
    }


def _tree(result: AcquisitionResult, scales: Mapping[str, Axis], target: str) -> list[dict[str, Any]]:
    placed = {gate.path: gate for gate in result.gates}
    rows: list[dict[str, Any]] = []
    for row in _depth_first(_with_root(result)):
        gate = placed.get(row.path)
        rows.append(
            {
                "population": row.population,
                "depth": min(row.path.strip("/").count("/"), 16),
                "target": bool(target) and row.population == target,
                "events": format_count(row.events),
                "share": format_share(row.events, row.parent_events) if row.parent else MISSING,
                "percent": round(100 * row.events / row.parent_events, 2) if row.parent and row.parent_events else 0,
                "cut": describe_cut(gate.gate, scales) if gate else MISSING,
                "method": gate.method if gate else MISSING,
                "notes": _notes(gate) if gate else [],
                "reason": gate.reason if gate else "",
            }
        )
    return rows


def _with_root(result: AcquisitionResult) -> Sequence[PopulationRow]:
    """Put the root, all events, on top where the table of populations leaves it out."""
    rows = result.populations
    if not rows or any(not row.parent for row in rows):
        return rows
    top = min(rows, key=lambda row: row.path.strip("/").count("/"))
    path = top.path.rpartition("/")[0]
    root = PopulationRow(population=top.parent, path=path, parent="", events=result.events, parent_events=result.events)
    return (root, *rows)


def _depth_first(populations: Sequence[PopulationRow]) -> list[PopulationRow]:
    """Order populations so that each stands under its parent; siblings keep their order."""
    place = {row.path: i for i, row in enumerate(populations)}

    def key(row: PopulationRow) -> tuple[int, ...]:
        parts = row.path.split("/")
        return tuple(place.get("/".join(parts[: k + 1]), -1) for k in range(len(parts)))

    return sorted(populations, key=key)


def _notes(gate: PlacedGate) -> list[str]:
    """Say what a reader should look at: a bound that held the cut, a method that stood in, a gate not placed."""
    notes = []
    if gate.bound_hit:
        notes.append(f"bound: {gate.bound_hit}")
    if gate.fallback and gate.fallback not in _STAND_INS:
        notes.append(f"fallback: {gate.fallback}")
    elif gate.fallback:
        notes.append(_STAND_INS[gate.fallback])
    return notes


def _scales(panels: Sequence[PlotPanel]) -> dict[str, Axis]:
    """Marker → an axis that shows it, for writing cuts in channel values."""
    return {axis.marker: axis for panel in panels for axis in (panel.x, panel.y)}


def describe_cut(gate: Mapping[str, object], scales: Mapping[str, Axis]) -> str:
    """Say where a gate lies, in channel values where the marker's scale is known.

    Parameters
    ----------
    gate : JSON form of a gate (`flowmrd.gating.gates.gate_to_json`); its own `scales` (marker → scale) come first
    scales : marker → axis

    Raises
    ------
    GatingError
        the gate's kind is unknown
    """
    own = gate.get("scales")
    if isinstance(own, Mapping):
        scales = {
            str(name): Axis(marker=str(name), channel="", transform=scale, lo=0.0, hi=1.0)
            for name, scale in own.items()
        }
    if gate["kind"] == "members":
        # Unpacking the list would cost more than the page.
        return f"list of {format_count(int(str(gate['count'])))} events"
    match gate_from_json(gate):
        case Rectangle(markers=markers, low=low, high=high):
            parts = [_range_text(*side, scales) for side in zip(markers, low, high, strict=True)]
            return ", ".join(part for part in parts if part) or "whole parent"
        case Intervals(marker=marker, ranges=ranges):
            parts = [_range_text(marker, low_end, high_end, scales) for low_end, high_end in ranges[:3]]
            more = f" and {len(ranges) - 3} more" if len(ranges) > 3 else ""
            return (" or ".join(part for part in parts if part) or "whole parent") + more
        case Polygon(markers=(x, y), vertices=vertices):
            return f"polygon of {len(vertices)} vertices on {x} × {y}"
        case Ellipsoid(markers=markers, mean=mean):
            centre = ", ".join(_value_text(*place, scales) for place in zip(markers, mean, strict=True))
            return f"ellipse on {' × '.join(markers)}, centre {centre}"
        case Boolean(operator=operator, operands=operands):
            names = [f"not {name}" if complement else name for name, complement in operands]
            return f"not {names[0]}" if operator == "not" else f" {operator} ".join(names)
        case Nothing():
            return "not evaluable"
        case Whole() | _:
            return "whole parent"


def _range_text(marker: str, low: float, high: float, scales: Mapping[str, Axis]) -> str:
    if not math.isfinite(low) and not math.isfinite(high):
        return ""
    if not math.isfinite(high):
        return f"{marker} ≥ {_value_text(marker, low, scales)}"
    if not math.isfinite(low):
        return f"{marker} < {_value_text(marker, high, scales)}"
    return f"{marker} {_value_text(marker, low, scales)} to {_value_text(marker, high, scales)}"


def _value_text(marker: str, scaled: float, scales: Mapping[str, Axis]) -> str:
    axis = scales.get(marker)
    if axis is None:
        return f"{scaled:.3f} (scaled)"
    return format_channel_value(float(make_transform(axis.transform).inverse(scaled)))


def _gate_row(gate: PlacedGate) -> dict[str, Any]:
    return {
        "population": gate.population,
        "parent": gate.parent,
        "method": gate.method,
        "purpose": gate.purpose,
        "channels": ", ".join(gate.channels) or MISSING,
        "parameters": _pairs(gate.parameters),
        "found": _pairs(gate.found),
        "notes": _notes(gate),
        "reason": gate.reason,
    }


def _pairs(values: Mapping[str, object]) -> str:
    return "; ".join(f"{name} = {_plain(value)}" for name, value in values.items()) or MISSING


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_plain(item)}" for name, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return MISSING if value is None else str(value)


def _time(time: TimeSeries | None, result: AcquisitionResult) -> dict[str, Any] | None:
    if time is None or time.seconds.size == 0:
        return None
    flagged = int(time.flagged.sum())
    shaded = f"{flagged} of {time.flagged.size} bins flagged (shaded)" if flagged else "no bin flagged"
    axes = {
        name: axis for panel in result.panels for axis in (panel.x, panel.y) for name in (axis.channel, axis.marker)
    }
    rate = figures.rate_figure(time)
    labels = {channel: marker for marker, channel in result.markers.items()}
    return {
        "bins": time.seconds.size,
        "channels": len(time.channels),
        "rows": min(8, max(1, math.ceil(len(time.channels) / 4))),
        "text": f"Events per second over the acquisition; {shaded}",
        "note": f"Time from: {time.time_source}; {shaded}.",
        "rate": None if rate is None else _markup(_json(rate)),
        "medians": _markup(_json(figures.medians_figure(time, axes, labels))) if time.channels else None,
    }


def _margins(margins: Sequence[MarginCount]) -> dict[str, Any]:
    shares = [max(row.low_events, row.high_events) / row.events for row in margins if row.events]
    # Bars reach a round percentage, so that 1 % does not look like everything on a clean file.
    scale = next((limit for limit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if max(shares, default=0) <= limit), 1.0)

    def width(events: int, total: int) -> float:
        return round(100 * events / total / scale, 1) if total else 0.0

    return {
        "margin_scale": f"{100 * scale:.0f}%",
        "margins": [
            {
                "marker": row.marker or row.channel,
                "channel": row.channel,
                "low_events": row.low_events,
                "high_events": row.high_events,
                "low": format_count(row.low_events),
                "low_share": format_share(row.low_events, row.events),
                "low_width": width(row.low_events, row.events),
                "high": format_count(row.high_events),
                "high_share": format_share(row.high_events, row.events),
                "high_width": width(row.high_events, row.events),
            }
            for row in margins
        ],
    }
