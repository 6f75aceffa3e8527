"""Labelled, physically plausible acquisitions without patient data: a forward model with its truth beside the file."""

from __future__ import annotations

from flowmrd.simulation.acquisition import (
    KINDS,
    SIMULATOR_VERSION,
    ChannelSet,
    Kind,
    Labels,
    Parameters,
    PhenotypeDraw,
    Simulated,
    simulate,
    simulate_marrow,
)
from flowmrd.simulation.cases import Case, simulate_case
from flowmrd.simulation.marrow import Bimodal, Immunophenotype, TargetStatus, load_immunophenotype
from flowmrd.simulation.profile import Profile, load_profile, tube_ids
from flowmrd.simulation.sets import SetPlan, load_cases, parse_levels, plan_set, read_cases, write_set
from flowmrd.simulation.subject import SubjectDocument, Visit, demo_subject, load_subject, write_subject
from flowmrd.simulation.writing import (
    ByteOrder,
    DataType,
    WrittenFiles,
    labels_frame,
    write_simulated,
    written_files,
)

__all__ = [
    "KINDS",
    "SIMULATOR_VERSION",
    "Bimodal",
    "ByteOrder",
    "Case",
    "ChannelSet",
    "DataType",
    "Immunophenotype",
    "Kind",
    "Labels",
    "Parameters",
    "PhenotypeDraw",
    "Profile",
    "SetPlan",
    "Simulated",
    "SubjectDocument",
    "TargetStatus",
    "Visit",
    "WrittenFiles",
    "demo_subject",
    "labels_frame",
    "load_cases",
    "load_immunophenotype",
    "load_profile",
    "load_subject",
    "parse_levels",
    "plan_set",
    "read_cases",
    "simulate",
    "simulate_case",
    "simulate_marrow",
    "tube_ids",
    "write_set",
    "write_simulated",
    "write_subject",
    "written_files",
]
