"""The files of an evaluation: one row a case, one row a figure, and the same figures as a page of text.

Columns and their order are a contract (docs/reference/evaluate.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from flowmrd.evaluation.scores import ASSESSED, NEGATIVE, NOT_ASSESSABLE, POSITIVE, REFUSED, UNLABELLED, Outcome, Score
from flowmrd.evaluation.summary import ALL, NO_DISEASE, Metric, by_key, level_name
from flowmrd.records import FINDINGS, written

_TEXT, _COUNT, _REAL, _TRUTH = "String", "Int64", "Float64", "Boolean"

CASES: Mapping[str, str] = {
    "case": _TEXT,
    "file": _TEXT,
    "sha256": _TEXT,
    "labels": _TEXT,
    "labels_sha256": _TEXT,
    "status": _TEXT,
    "reason": _TEXT,
    "events": _COUNT,
    "truth_events": _COUNT,
    "truth_denominator_events": _COUNT,
    "truth_denominator": _TEXT,
    "truth_fraction": _REAL,
    "nominal_fraction": _REAL,
    "level": _TEXT,
    "standing": _TEXT,
    "call": _TEXT,
    "category": _TEXT,
    "qc": _TEXT,
    "called_events": _COUNT,
    "hit_events": _COUNT,
    "candidate_events": _COUNT,
    "candidate_hit_events": _COUNT,
    "denominator": _TEXT,
    "denominator_events": _COUNT,
    "kept_true_events": _COUNT,
    "fraction": _REAL,
    "ci_low": _REAL,
    "ci_high": _REAL,
    "lod_fraction": _REAL,
    "lloq_fraction": _REAL,
    "lod_events": _COUNT,
    "precision": _REAL,
    "recall": _REAL,
    "f1": _REAL,
    "f1_with_candidates": _REAL,
    "log10_error": _REAL,
    "covered": _TRUTH,
    "covered_nominal": _TRUTH,
    "seconds": _REAL,
    "template": _TEXT,
    "template_version": _TEXT,
    "template_sha256": _TEXT,
    "reference_sha256": _TEXT,
    "simulator_version": _TEXT,
    "flowmrd": _TEXT,
}
# What each comparison method adds, as `<method>_<column>`.
COMPARED: Mapping[str, str] = {
    "status": _TEXT,
    "call": _TEXT,
    "called_events": _COUNT,
    "hit_events": _COUNT,
    "fraction": _REAL,
    "precision": _REAL,
    "recall": _REAL,
    "f1": _REAL,
    "log10_error": _REAL,
    "covered": _TRUTH,
    "seconds": _REAL,
}
SUMMARY: Mapping[str, str] = {
    "method": _TEXT,
    "group": _TEXT,
    "level": _TEXT,
    "metric": _TEXT,
    "value": _REAL,
    "low": _REAL,
    "high": _REAL,
    "k": _COUNT,
    "n": _COUNT,
    "note": _TEXT,
}
_OF_OUTCOME = {one.name for one in fields(Outcome)} - {"method", "status", "reason"}


def case_rows(
    scores: Sequence[Score], methods: Sequence[str], provenance: Mapping[str, str]
) -> tuple[dict[str, str], list[tuple[object, ...]]]:
    """Return the schema and the rows of `cases.csv`.

    Parameters
    ----------
    scores : in order of the batch
    methods : names of the comparison methods
    provenance : template, template_version, template_sha256, reference_sha256, flowmrd
    """
    keys = list(dict.fromkeys(key for score in scores for key in score.groups))
    schema = {
        **CASES,
        **{f"{name}_{column}": kind for name in methods for column, kind in COMPARED.items()},
        **{f"by_{key}": _TEXT for key in keys},
    }
    rows = []
    for score in scores:
        outcome = score.outcome
        values: dict[str, object] = {}
        for column in CASES:
            if column in provenance:
                values[column] = provenance[column]
            elif column in _OF_OUTCOME:
                values[column] = None if outcome is None else getattr(outcome, column)
            elif column == "level":
                values[column] = None if score.level is None else level_name(score.level)
            else:
                values[column] = getattr(score, column)
        others = {one.method: one for one in score.outcomes[1:]}
        for name in methods:
            for column in COMPARED:
                values[f"{name}_{column}"] = getattr(others[name], column) if name in others else None
        values |= {f"by_{key}": score.groups.get(key, "") for key in keys}
        rows.append(tuple(values[column] for column in schema))
    return schema, rows


def finding_rows(scores: Sequence[Score]) -> list[tuple[object, ...]]:
    """Return the rows of `findings.csv`: each file's findings, in order."""
    return [
        (score.case, str(finding.level), finding.code, finding.message, finding.where)
        for score in scores
        for finding in score.findings
    ]


def write_table(schema: Mapping[str, str], rows: Sequence[tuple[object, ...]], path: Path) -> None:
    """Write a table as CSV: UTF-8, fixed header, nothing between commas where a value is missing."""
    import polars as pl

    frame = pl.DataFrame(
        [tuple(None if value == "" else value for value in row) for row in rows],
        schema={column: getattr(pl, kind) for column, kind in schema.items()},
        orient="row",
    )
    with written(path) as temporary:
        frame.write_csv(temporary)


def write_case_tables(
    scores: Sequence[Score], methods: Sequence[str], provenance: Mapping[str, str], out: Path
) -> None:
    """Write `cases.csv` and `findings.csv`."""
    schema, rows = case_rows(scores, methods, provenance)
    write_table(schema, rows, out / "cases.csv")
    write_table(FINDINGS, finding_rows(scores), out / "findings.csv")


def write_summary_table(metrics: Sequence[Metric], out: Path) -> None:
    """Write `summary.csv`."""
    write_table(SUMMARY, [tuple(getattr(one, name) for name in SUMMARY) for one in metrics], out / "summary.csv")


# ----------------------------------------------------------------------------------------------------------- as text


def case_counts(scores: Sequence[Score]) -> dict[str, int]:
    """Count the files by what became of them and by what they can show."""
    return {
        "files": len(scores),
        **{status: sum(one.status == status for one in scores) for status in (ASSESSED, REFUSED, UNLABELLED)},
        **{kind: sum(one.standing == kind for one in scores) for kind in (NEGATIVE, POSITIVE, NOT_ASSESSABLE)},
    }


def number(value: float | None, digits: int = 2) -> str:
    """Write a ratio; missing is a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def fraction(value: float | None) -> str:
    """Write a fraction of cells with two digits: 3.2e-5; missing is a dash."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def rate(metric: Metric | None) -> str:
    """Write a rate with its interval and its counts: 0.93 (0.81–0.98) 26/28."""
    if metric is None or metric.value is None:
        return "–"
    bounds = "" if metric.low is None or metric.high is None else f" ({metric.low:.2f}–{metric.high:.2f})"
    return f"{metric.value:.2f}{bounds} {metric.k}/{metric.n}"


def ranged(metric: Metric | None, digits: int = 2) -> str:
    """Write a value with its interval: 0.95 (0.93–0.97)."""
    if metric is None or metric.value is None:
        return "–"
    if metric.low is None or metric.high is None:
        return number(metric.value, digits)
    return f"{metric.value:.{digits}f} ({metric.low:.{digits}f}–{metric.high:.{digits}f})"


def limit(metric: Metric | None, *, events: bool = False) -> str:
    """Write a limit, as a fraction or as events, with its interval where it has one."""
    if metric is None or metric.value is None:
        return "–"
    write = (lambda value: f"{value:.0f}") if events else fraction
    bounds = "" if metric.low is None or metric.high is None else f" ({write(metric.low)}–{write(metric.high)})"
    return f"{write(metric.value)}{bounds}"


def count(metric: Metric | None) -> str:
    """Write a count; missing is 0."""
    return "0" if metric is None or metric.value is None else f"{metric.value:,.0f}"


def some(metric: Metric | None) -> str:
    """Write a count; none is a dash, so that a column of nothing is left out."""
    return "–" if metric is None or not metric.value else count(metric)


LIMITS = {
    "lob_rank": "LoB, by rank",
    "lob_normal": "LoB, normal",
    "lod_ep17": "LoD, classical",
    "lod_ep17_corrected": "LoD, classical, few results",
    "lod_probit": "LoD, probit",
    "lod_probit_events": "LoD, probit, true events",
    "lloq": "LLOQ",
}
AGREEMENT = {
    "log10_bias": "log10 bias, mean (limits of agreement)",
    "log10_bias_median": "log10 bias, median",
    "abs_log10_error_median": "absolute log10 error, median",
    "log10_sd": "SD of the log10 error",
    "r2": "R², squared correlation",
    "r2_identity": "R² against estimate = truth",
}
LEVEL_HEAD = (
    "level", "files", "not assessable", "refused", "sensitivity", "review", "F1 median", "F1 mean", "F1 > 0.5",
    "abs. log10 error", "coverage", "coverage, nominal",
)  # fmt: skip


def level_rows(metrics: Sequence[Metric], method: str, group: str) -> list[tuple[str, ...]]:
    """Return the table of a method and group by level, under `LEVEL_HEAD`."""
    found = by_key(metrics)
    levels = dict.fromkeys(
        one.level for one in metrics if (one.method, one.group) == (method, group) and one.level not in {"", NO_DISEASE}
    )
    rows: list[tuple[str, ...]] = []
    for level in levels:

        def get(name: str, level: str = level) -> Metric | None:
            return found.get((method, group, level, name))

        mean = get("f1_mean")
        rows.append(
            (
                level.replace(">=", "≥"),
                count(get("cases")),
                count(get("not_assessable")),
                some(get("refused")),
                rate(get("sensitivity")),
                rate(get("review")),
                ranged(get("f1_median")),
                number(mean.value if mean else None),
                rate(get("f1_above_half")),
                ranged(get("abs_log10_error_median")),
                rate(get("coverage")),
                rate(get("coverage_nominal")),
            )
        )
    return rows


def without_empty(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Leave out the columns that say nothing in any row."""
    keep = [i for i in range(len(head)) if i == 0 or any(row[i] != "–" for row in rows)]
    return [head[i] for i in keep], [[row[i] for i in keep] for row in rows]


HEALTHY_HEAD = (
    "files without disease",
    "refused",
    "specificity",
    "false positive",
    "review",
    "p95 called",
    "most called",
)


def healthy_row(metrics: Sequence[Metric], method: str, group: str) -> tuple[str, ...] | None:
    """Return the row of files without disease, under `HEALTHY_HEAD`."""
    found = by_key(metrics)

    def get(name: str) -> Metric | None:
        return found.get((method, group, NO_DISEASE, name))

    if get("cases") is None:
        return None
    return (
        count(get("cases")),
        count(get("refused")),
        rate(get("specificity")),
        rate(get("false_positive")),
        rate(get("review")),
        limit(get("called_fraction_p95")),
        limit(get("called_fraction_max")),
    )


def limit_rows(metrics: Sequence[Metric], method: str, group: str) -> list[tuple[str, str, str]]:
    """Return (limit, value, how) of a method and group."""
    found = by_key(metrics)
    rows = []
    for name, title in LIMITS.items():
        one = found.get((method, group, "", name))
        if one is not None:
            rows.append((title, limit(one, events=name == "lod_probit_events"), one.note))
    return rows


def agreement_rows(metrics: Sequence[Metric], method: str, group: str) -> list[tuple[str, str, str]]:
    """Return (figure, value, files) of a method and group."""
    found = by_key(metrics)
    return [
        (title, ranged(one, 3), f"{one.n}")
        for name, title in AGREEMENT.items()
        if (one := found.get((method, group, "", name))) is not None and one.value is not None
    ]


def time_text(metrics: Sequence[Metric], method: str) -> str:
    """Say in one line how long a file took; nothing where time was not taken."""
    found = by_key(metrics)
    one = found.get((method, ALL, "", "seconds_median"))
    if one is None or one.value is None:
        return ""
    most, rate_ = found[method, ALL, "", "seconds_max"], found.get((method, ALL, "", "events_per_second"))
    speed = f", {rate_.value:,.0f} events a second" if rate_ is not None and rate_.value is not None else ""
    return f"{one.value:.1f} s a file (median of {one.n}), at most {most.value:.1f} s{speed}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown."""
    clean = [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in clean)])


def summary_text(
    metrics: Sequence[Metric],
    scores: Sequence[Score],
    provenance: Mapping[str, object],
    *,
    methods: Mapping[str, str],
    title: str = "Evaluation",
) -> str:
    """Return `summary.md`: what was scored on what, then the tables of each method and group.

    Parameters
    ----------
    metrics, scores : of the evaluation
    provenance : words and digests shown at the top, in order
    methods : name → title of each method
    title : of the page
    """
    counts = case_counts(scores)
    lines = [f"# {title}", ""]
    lines += [f"* {name}: {value}" for name, value in provenance.items() if value]
    words = {name.replace("_", " "): f"{value:,}" for name, value in counts.items()}
    lines += [f"* {', '.join(f'{name} {value}' for name, value in words.items())}", ""]
    groups = list(dict.fromkeys(one.group for one in metrics))
    for method, text in methods.items():
        lines += [f"## {text}", ""]
        if taken := time_text(metrics, method):
            lines += [f"Time: {taken}.", ""]
        for group in groups:
            tables = _group_tables(metrics, method, group)
            if tables:
                lines += [f"### {'All files' if group == ALL else group}", "", *tables]
    failed = [score for score in scores if score.status != ASSESSED]
    if failed:
        lines += ["## Files without a result", ""]
        rows = [(score.file, score.status, score.reason) for score in failed]
        lines += [markdown_table(("file", "status", "why"), rows), ""]
    text = (
        "Intervals: Wilson for rates, order statistics for medians, delta method for the probit LoD; 95 %. Review is "
        "not found in sensitivity and left out of specificity. Not assessable: fewer true events than the detection "
        "rule asks for, or a draw without a blast."
    )
    lines += [text, ""]
    return "\n".join(lines)


def _group_tables(metrics: Sequence[Metric], method: str, group: str) -> list[str]:
    lines: list[str] = []
    if rows := level_rows(metrics, method, group):
        lines += [markdown_table(*without_empty(LEVEL_HEAD, rows)), ""]
    if (row := healthy_row(metrics, method, group)) is not None:
        lines += [markdown_table(HEALTHY_HEAD, [row]), ""]
    if lines and group == ALL:
        lines += [markdown_table(("limit", "value", "how"), limit_rows(metrics, method, group)), ""]
        if figures := agreement_rows(metrics, method, group):
            lines += [markdown_table(("agreement with the truth", "value", "files"), figures), ""]
    return lines
