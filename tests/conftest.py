"""Shared fixtures: where the real files are."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference material beside the repository."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference folder shared/ is not beside the repository")
    return folder


@pytest.fixture(scope="session")
def shared_fcs(shared: Path) -> Path:
    """Return the folder of real FCS files beside the repository."""
    folder = shared / "fcs"
    if not folder.is_dir():
        pytest.skip("the real FCS files (shared/fcs) are not beside the repository")
    return folder
