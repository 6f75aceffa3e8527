"""What a page shows of the sample's own evidence: target antigens, clean-up by phenotype, controls, dilution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flowmrd.errors import Level
from flowmrd.records import AcquisitionResult, AntigenRow, CleanupRow, ControlRow
from flowmrd.reporting.numbers import MISSING, format_count, format_percent, significant

# Findings that belong beside the antigens: therapy, routes, limits of the lineage, who must read.
_REMARKS = (
    "THERAPY_HISTORY",
    "LINEAGE_ROUTES",
    "NORMAL_B_CELLS",
    "ANTIGEN_CHANGED",
    "ANTIGEN_MASKED",
    "ANTIGEN_GATED",
    "ANTIGEN_NOT_JUDGED",
    "SECOND_READER",
    "LINEAGE_SWITCH_POSSIBLE",
    "LINEAGE_SWITCH_NOT_EXCLUDED",
)
_THERAPY = {"given": "Given", "not_given": "Not given", "not_stated": "Not stated"}


def evidence_context(result: AcquisitionResult) -> dict[str, Any]:
    """Gather texts of the antigens' card and of the tables of clean-up and controls; empty lists where there are none.

    Parameters
    ----------
    result : one acquisition
    """
    remarks = {code: [item for item in result.findings if item.code == code] for code in _REMARKS}
    dilution = next((item for item in result.findings if item.code == "HEMODILUTION"), None)
    return {
        "antigens": [_antigen(row) for row in result.antigens],
        "antigen_remarks": [
            {"text": item.message, "mark": item.level is not Level.INFO} for code in _REMARKS for item in remarks[code]
        ],
        "dilution": "" if dilution is None else dilution.message,
        **_cleanup(result.cleanup),
        **_controls(result.internal_controls),
    }


def _antigen(row: AntigenRow) -> dict[str, Any]:
    flags = []
    if row.strength == "dim":
        flags.append("dim")
    if row.masked:
        flags.append("masking possible")
    if row.indicative == "Y" and row.status:
        flags.append("indicative: few events")
    interval = ""
    if row.ci_low is not None and row.ci_high is not None:
        interval = f"{format_percent(row.ci_low)} – {format_percent(row.ci_high)}"
    return {
        "antigen": row.antigen,
        "status": row.status or "Not judged",
        "flags": ", ".join(flags),
        "share": format_percent(row.share) if row.share is not None else MISSING,
        "interval": interval,
        "events": f"{format_count(row.positive_events)} of {format_count(row.events)}"
        if row.positive_events is not None
        else format_count(row.events),
        "population": row.population,
        "mfi": _value(row.mfi),
        "negative": _value(row.negative_mfi),
        "threshold": _value(row.threshold),
        "normal": _value(row.normal_mfi),
        "normal_from": "" if row.normal_from in {"", row.acquisition} else f"of {row.normal_from}",
        "ratio": MISSING if row.ratio is None else f"{significant(row.ratio, 2)} ×",
        "baseline": row.baseline and f"{row.baseline}: {_value(row.baseline_mfi)}",
        "therapy": _THERAPY.get(row.therapy, row.therapy),
    }


def _value(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def _cleanup(rows: Sequence[CleanupRow]) -> dict[str, Any]:
    """Pivot the clean-up: a line a gate, a column a phenotype."""
    phenotypes = list(dict.fromkeys(row.phenotype for row in rows))
    lines = []
    for gate in dict.fromkeys(row.gate for row in rows):
        own = {row.phenotype: row for row in rows if row.gate == gate}
        first = next(iter(own.values()))
        lines.append(
            {
                "gate": gate,
                "all": _part(first.removed_all_events, first.all_events),
                "cells": [
                    {
                        "text": _part(own[name].removed_events, own[name].events),
                        "note": f"{format_count(own[name].removed_events)} of {format_count(own[name].events)}",
                        "mark": own[name].verdict != "PASS",
                    }
                    for name in phenotypes
                ],
            }
        )
    return {"cleanup_phenotypes": phenotypes, "cleanup": lines}


def _part(events: int, whole: int) -> str:
    return format_percent(events / whole) if whole else MISSING


def _controls(rows: Sequence[ControlRow]) -> dict[str, Any]:
    words = {"PASS": "as expected", "FAIL": "out of range", "UNSEEN": "too few cells"}
    lines = [
        {
            "population": row.population,
            "against": row.against,
            "marker": row.marker,
            "events": format_count(row.events),
            "median": MISSING if row.median is None else f"{row.median:+.2f}" if row.against else f"{row.median:.2f}",
            "limits": " … ".join(MISSING if limit is None else f"{limit:g}" for limit in (row.low, row.high)),
            "beyond": MISSING if row.beyond is None else format_percent(row.beyond),
            "verdict": words.get(row.verdict, row.verdict),
            "mark": row.verdict == "FAIL",
            "purpose": row.purpose,
        }
        for row in rows
    ]
    broken = sum(row.verdict == "FAIL" for row in rows)
    unseen = sum(row.verdict == "UNSEEN" for row in rows)
    summary = f"{len(rows) - broken - unseen} of {len(rows)} as expected"
    summary += f", {broken} out of range" if broken else ""
    summary += f", {unseen} without cells to judge" if unseen else ""
    return {"controls": lines, "controls_summary": summary}
