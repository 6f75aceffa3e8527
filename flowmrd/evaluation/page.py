"""Evaluation → one HTML page without network or clock, and a page of gates for each file beside it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flowmrd import __version__
from flowmrd.evaluation import figures
from flowmrd.evaluation.batch import Evaluation, stated
from flowmrd.evaluation.defaults import load_defaults
from flowmrd.evaluation.scores import ASSESSED, Score
from flowmrd.evaluation.summary import ALL, NO_DISEASE, Metric, by_key, pairs_of
from flowmrd.evaluation.tables import (
    HEALTHY_HEAD,
    LEVEL_HEAD,
    agreement_rows,
    case_counts,
    fraction,
    healthy_row,
    level_rows,
    limit_rows,
    number,
    time_text,
    without_empty,
)
from flowmrd.records import StoredResults, written
from flowmrd.reporting.figures import CONFIG
from flowmrd.reporting.report import page_names, render_report

_PAGES = Path(__file__).resolve().parent / "pages"
_REPORT_PAGES = _PAGES.parents[1] / "reporting" / "pages"


def render_evaluation(evaluation: Evaluation, out: Path) -> Path:
    """Write `report.html`, and `gates/` where gated results were kept.

    Parameters
    ----------
    evaluation : as of `flowmrd.evaluation.batch.evaluate`
    out : its folder

    Returns
    -------
    path of `report.html`
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    links = _write_gates(evaluation, out)
    environment = Environment(
        loader=FileSystemLoader([_PAGES, _REPORT_PAGES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = environment.get_template("parts.html").module
    environment.globals.update({name: getattr(parts, name) for name in ("badge", "level", "tree")})
    page = evaluation_context(evaluation, links)
    text = environment.get_template("evaluation.html").render(**_shell(), page=page)
    place = out / "report.html"
    with written(place) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return place


def _write_gates(evaluation: Evaluation, out: Path) -> dict[str, str]:
    """Write the report of the gated files and return each case's address in it."""
    if not evaluation.kept:
        return {}
    names = [place.name for place in evaluation.kept]
    inner = {name: value for name, value in evaluation.record["evaluation"].items() if name != "cases"}
    render_report(StoredResults(evaluation.kept), {**evaluation.record, "evaluation": inner}, out / "gates")
    return {name: f"gates/acquisitions/{page}.html" for name, page in zip(names, page_names(names), strict=True)}


def _shell() -> dict[str, Any]:
    """What the page's frame needs: styles, scripts, and a policy that lets in nothing else."""
    script = (_PAGES / "evaluation.js").read_text(encoding="utf-8")
    plotly = _plotly_js()
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
        for text in (script, plotly)
    )
    style = (_REPORT_PAGES / "report.css").read_text(encoding="utf-8") + (_PAGES / "evaluation.css").read_text(
        encoding="utf-8"
    )
    return {
        "single_file": True,
        "root": "",
        "version": __version__,
        "settings": _markup(_json({"config": CONFIG, "themes": figures.THEMES})),
        "script": _markup(script),
        "plotly": _markup(plotly),
        "style": _markup(style),
        # plotly.js sets styles on its elements, hence 'unsafe-inline' for styles.
        "policy": f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; form-action 'none'; base-uri 'none'; object-src 'none'",
    }


def _plotly_js() -> str:
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _json(value: object) -> str:
    """Write JSON that may stand inside a script element: no character that HTML could read as markup."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)  # noqa: S704 -- only files of ours and output of _json come here


# ------------------------------------------------------------------------------------------------------------- content

_TRUTH = (
    "Each file with the interval of its result; the line is result = truth, dotted a factor of 2. Hollow: not "
    "assessable. Left: files without disease; bottom: nothing called."
)
_F1 = "Event by event, assessable files; the bar is the level's median."
_DIFFERENCE = "Assessable files with a count above 0; solid: mean of the differences, dashed: limits of agreement."
_DETECTION = (
    "Share of files called positive by level, with Wilson intervals, and the probit curve with its 95 % band; dashed: "
    "the level found in 95 %. Each file stands above (found) or below (not found). Review is not found."
)


def evaluation_context(evaluation: Evaluation, links: Mapping[str, str]) -> dict[str, Any]:
    """Gather everything that the page shows, as texts and figures.

    Parameters
    ----------
    evaluation : the scores and figures
    links : case → address of its gates
    """
    metrics, scores = evaluation.metrics, evaluation.scores
    others = [name for name in evaluation.methods if name != "template"]
    counts = case_counts(scores)
    return {
        "title": f"Evaluation of {evaluation.methods['template']}",
        "facts": [(name, value.replace("`", "")) for name, value in stated(evaluation).items() if value],
        "counts": [(name.replace("_", " "), f"{value:,}") for name, value in counts.items()],
        "cards": _cards(metrics),
        "figures": _figures(evaluation, links),
        "methods": [_method(evaluation, name, text) for name, text in evaluation.methods.items()],
        "others": others,
        "timed": any(one.outcome is not None and one.outcome.seconds is not None for one in scores),
        "grouped": list(dict.fromkeys(key for score in scores for key in score.groups)),
        "cases": [_case(score, others, links) for score in scores],
        "failed": [score for score in scores if score.status != ASSESSED],
        "record": evaluation.record,
    }


def _cards(metrics: Sequence[Metric]) -> list[tuple[str, str, str]]:
    """Choose the figures that stand at the top: (name, value, note)."""
    found = by_key(metrics)
    defaults = load_defaults()
    edge = f"{min(defaults.levels.from_fractions):.0e}".replace("e-0", "e-")
    levels = dict.fromkeys(one.level for one in metrics)
    level = f">= {edge}" if f">= {edge}" in levels else ALL
    where = f"at {level.replace('>=', '≥')}" if level != ALL else "all levels"

    def get(level: str, name: str) -> Metric | None:
        return found.get(("template", ALL, level, name))

    cards = [
        (f"F1, median, {where}", _plain(get(level, "f1_median"), 2), _of(get(level, "f1_median"))),
        (f"Sensitivity, {where}", _share(get(level, "sensitivity")), _of(get(level, "sensitivity"))),
        ("Specificity, review apart", _share(get(NO_DISEASE, "specificity")), _of(get(NO_DISEASE, "specificity"))),
        ("Review, without disease", _share(get(NO_DISEASE, "review")), _of(get(NO_DISEASE, "review"))),
        ("Limit of blank, by rank", _limit(get("", "lob_rank")), _of(get("", "lob_rank"))),
        ("Limit of detection, probit", _limit(get("", "lod_probit")), _bounds(get("", "lod_probit"))),
        (
            "Absolute log10 error, median",
            _plain(get("", "abs_log10_error_median"), 3),
            _of(get("", "abs_log10_error_median")),
        ),
        ("Interval covers the truth", _share(get(ALL, "coverage")), _of(get(ALL, "coverage"))),
    ]
    if (one := get("", "seconds_median")) is not None and one.value is not None:
        cards.append(("Seconds a file, median", f"{one.value:.1f}", _of(one)))
    return cards


def _of(one: Metric | None) -> str:
    if one is None or not one.n:
        return "no files" if one is None else (one.note if one.value is None else "")
    if one.value is None:
        return one.note
    bounds = "" if one.low is None or one.high is None else f"95% CI {one.low:.2f} to {one.high:.2f}; "
    return f"{bounds}{one.k} of {one.n}" if one.k is not None else f"{bounds}{one.n} files"


def _share(one: Metric | None) -> str:
    return "–" if one is None or one.value is None else f"{100 * one.value:.0f}%"


def _plain(one: Metric | None, digits: int) -> str:
    return "–" if one is None else number(one.value, digits)


def _limit(one: Metric | None) -> str:
    return "–" if one is None else fraction(one.value)


def _bounds(one: Metric | None) -> str:
    if one is None or one.value is None:
        return "no files" if one is None else one.note.removeprefix("EP17-A2, ")
    return f"95% CI {fraction(one.low)} to {fraction(one.high)}; {one.n} files"


def _figures(evaluation: Evaluation, links: Mapping[str, str]) -> list[dict[str, Any]]:
    by_method = {name: pairs_of(evaluation.scores, name) for name in evaluation.methods}
    pairs = by_method["template"]
    rules = load_defaults().statistics
    target = evaluation.rules.target_fraction
    others = " Open signs: medians of the other methods." if len(by_method) > 1 else ""
    drawn = [
        ("Result against truth", _TRUTH, figures.truth_figure(pairs, links)),
        ("F1 by level", _F1 + others, figures.f1_figure(by_method, evaluation.levels, links)),
        ("Difference (Bland–Altman)", _DIFFERENCE, figures.difference_figure(pairs, links)),
        ("Probability of detection", _DETECTION, figures.detection_figure(pairs, evaluation.levels, rules, links)),
        (
            "Files without disease",
            f"What is called where nothing is; dashed: limit of blank, dotted: the decision line, {fraction(target)}.",
            figures.blank_figure(pairs, evaluation.metrics, links, target=target),
        ),
        ("Time", "Seconds a file, from opening it to its result.", figures.time_figure(by_method)),
    ]
    return [
        {"id": f"figure-{i + 1}", "title": title, "caption": caption, "json": _markup(_json(figure))}
        for i, (title, caption, figure) in enumerate(drawn)
        if figure is not None
    ]


def _method(evaluation: Evaluation, name: str, text: str) -> dict[str, Any]:
    metrics = evaluation.metrics
    groups = []
    for group in dict.fromkeys(one.group for one in metrics):
        rows = level_rows(metrics, name, group)
        healthy = healthy_row(metrics, name, group)
        if not rows and healthy is None:
            continue
        head, body = without_empty(LEVEL_HEAD, rows)
        groups.append(
            {
                "title": "All files" if group == ALL else group,
                "level_head": head,
                "levels": body,
                "healthy_head": HEALTHY_HEAD,
                "healthy": healthy,
            }
        )
    return {
        "title": text,
        "time": time_text(metrics, name),
        "groups": groups,
        "limits": limit_rows(metrics, name, ALL),
        "agreement": agreement_rows(metrics, name, ALL),
    }


_CALL_WORDS = {"positive": "positive", "not_detected": "not detected", "review": "review"}
# How a call fits the truth, as a badge of the report: right, wrong, or to be decided.
_RIGHT, _WRONG, _OPEN = "pass", "fail", "warn"


def _case(score: Score, others: Sequence[str], links: Mapping[str, str]) -> dict[str, Any]:
    outcome = score.outcome
    found = {one.method: one for one in score.outcomes}
    interval = "–"
    if outcome is not None and outcome.ci_low is not None:
        interval = f"{fraction(outcome.ci_low)} to {fraction(outcome.ci_high)}"
    call = "" if outcome is None or outcome.status != ASSESSED else outcome.call
    return {
        "name": score.case,
        "href": links.get(score.case, ""),
        "events": "–" if score.events is None else f"{score.events:,}",
        "status": score.status,
        "reason": score.reason,
        "standing": score.standing.replace("_", " ") or "–",
        "level": "–" if score.level is None else f"{score.level:g}",
        "level_order": -1.0 if score.level is None else score.level,
        "truth_events": "–" if score.truth_events is None else f"{score.truth_events:,}",
        "truth_order": -1 if score.truth_events is None else score.truth_events,
        "truth": fraction(score.truth_fraction),
        "truth_fraction_order": -1.0 if score.truth_fraction is None else score.truth_fraction,
        "called": "–" if outcome is None or outcome.called_events is None else f"{outcome.called_events:,}",
        "called_order": -1 if outcome is None or outcome.called_events is None else outcome.called_events,
        "candidates": None if outcome is None or not outcome.candidate_events else f"{outcome.candidate_events:,}",
        "estimate": "–" if outcome is None else fraction(outcome.fraction),
        "estimate_order": -1.0 if outcome is None or outcome.fraction is None else outcome.fraction,
        "interval": interval,
        "call": _CALL_WORDS.get(call, call) or score.status,
        "badge": _verdict(score, call),
        "f1": _cell(None if outcome is None else outcome.f1),
        "precision": _cell(None if outcome is None else outcome.precision),
        "recall": _cell(None if outcome is None else outcome.recall),
        "error": _cell(None if outcome is None else outcome.log10_error),
        "covered": {True: "yes", False: "no", None: "–"}[None if outcome is None else outcome.covered],
        "qc": "" if outcome is None else outcome.qc,
        "seconds": _cell(None if outcome is None else outcome.seconds, 1),
        "others": [_cell(found[name].f1 if name in found else None) for name in others],
        "groups": list(score.groups.values()),
    }


def _verdict(score: Score, call: str) -> str:
    if call == "review" or not call or score.standing == "not_assessable":
        return _OPEN
    right = (call == "positive") == (score.standing == "positive")
    return _RIGHT if right else _WRONG


def _cell(value: float | None, digits: int = 2) -> tuple[str, float]:
    """Return a number's text, and what it sorts by (missing last when rising)."""
    return (number(value, digits), -1e9 if value is None else value)
