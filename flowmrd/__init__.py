"""flowmrd: from raw FCS files to MRD, CAR-T persistence and response, with limits and provenance."""

__version__ = "0.1.0"
