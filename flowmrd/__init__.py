"""flowmrd: from raw FCS files to MRD, CAR-T persistence and response, with limits and provenance."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name → module. Imported when first asked for, so that the command line starts at once.
_PUBLIC = {
    "Acquisition": "flowmrd.pipeline",
    "AcquisitionResult": "flowmrd.records",
    "FcsFile": "flowmrd.fcs",
    "FlowmrdError": "flowmrd.errors",
    "GatingTemplate": "flowmrd.gating.template",
    "Level": "flowmrd.errors",
    "QcFinding": "flowmrd.errors",
    "Settings": "flowmrd.settings",
    "Spillover": "flowmrd.fcs",
    "analyse": "flowmrd.pipeline",
    "find_template": "flowmrd.gating.template",
    "load_manifest": "flowmrd.documents.manifest",
    "load_template": "flowmrd.gating.template",
    "measure_mrd": "flowmrd.quantification.rare_events",
    "open_fcs": "flowmrd.fcs",
    "read_fcs": "flowmrd.fcs",
    "render_report": "flowmrd.reporting.report",
    "run": "flowmrd.execution",
    "write_fcs": "flowmrd.fcs",
}
__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604  (a mapping of names)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'flowmrd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
