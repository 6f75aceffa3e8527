"""Synthetic results for the report's tests, made once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flowmrd.records import AcquisitionResult


def load_synthetic() -> ModuleType:
    """Import the neighbouring module by its place: test folders are no packages."""
    name = "flowmrd_tests_reporting_synthetic"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("synthetic.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """Return the module that makes synthetic results."""
    return load_synthetic()


@pytest.fixture(scope="session")
def results(synthetic: ModuleType) -> tuple[AcquisitionResult, ...]:
    """Return results with many, three and no target events, a low positive, and a refused file."""
    made: tuple[AcquisitionResult, ...] = synthetic.make_results()
    return made
