"""Shared fixtures: where the real files are, and one small reference of simulated normals."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

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


# Blasts that a reference of few marrows can tell: four clear aberrancies.
MARKED = """
start = 0.12
spread = 0.02
[shifts]
CD58 = 0.6
CD38 = -0.9
CD10 = 0.4
"CD66c+CD123" = 1.4
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallReference:
    """A reference built by the command line from small simulated marrows, and what it was built from.

    `template` is `ball-mrd-10c` with CD58 optional. `mrd` has 1 % of blasts, `clear` none; both come with labels.
    """

    file: Path
    template: Path
    normals: Path
    diagnoses: Path
    mrd: Path
    clear: Path
    printed: str


def _optional_marker(text: str, marker: str) -> str:
    """Let the search of a template look at a marker where the file has it."""
    start = text.index('name = "blasts"')
    head, row = text[:start], text[start:]
    row = row.replace(f'"{marker}", ', "", 1).replace("optional = []", f'optional = ["{marker}"]', 1)
    channel = f'[[channel]]\nmarker = "{marker}"\n'
    assert channel in head
    return head.replace(channel, f"{channel}required = false\n", 1) + row


def _build_small_reference(folder: Path) -> None:
    """Simulate eight normals, eight diagnoses and two samples, and build the reference."""
    from flowmrd.cli import main
    from flowmrd.simulation import Parameters, load_immunophenotype, load_profile, simulate, write_simulated

    places = {name: folder / name for name in ("normals", "diagnoses", "samples")}
    for place in places.values():
        place.mkdir(parents=True)
    scenarios = ("normal", "regenerating", "recovery", "normal", "regenerating", "aplasia", "normal", "induction")
    for i, scenario in enumerate(scenarios):
        case = simulate(Parameters(events=20_000, scenario=scenario, blasts=0.0), 5100 + i)
        write_simulated(case, places["normals"], f"normal-{i}")
        case = simulate(Parameters(events=5_000, scenario="diagnosis", blasts=0.5), 5200 + i)
        write_simulated(case, places["diagnoses"], f"diagnosis-{i}")
    marked = folder / "marked.toml"
    marked.write_text(MARKED, encoding="utf-8")
    phenotype = load_immunophenotype(marked, load_profile("ball-mrd-10c").profile)
    for name, share in (("mrd", 0.01), ("clear", 0.0)):
        case = simulate(Parameters(events=30_000, scenario="normal", blasts=share, phenotype=phenotype), 5300)
        write_simulated(case, places["samples"], name)
    shipped = REPOSITORY / "gating_templates" / "ball-mrd-10c.toml"
    text = shipped.read_text(encoding="utf-8").replace('id = "ball-mrd-10c"', 'id = "small-tube"', 1)
    (folder / "small-tube.toml").write_text(_optional_marker(text, "CD58"), encoding="utf-8")
    command = ["flowmrd", "reference", "build", str(places["normals"]), "--diagnoses", str(places["diagnoses"])]
    command += ["--template", str(folder / "small-tube.toml"), "--seed", "1", "--simulated"]
    command += ["--out", str(folder / "small.reference")]
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        contextlib.suppress(SystemExit),
    ):
        main()
    assert (folder / "small.reference").is_file(), printed.getvalue()
    (folder / "printed.txt").write_text(printed.getvalue(), encoding="utf-8")


@pytest.fixture(scope="session")
def small_reference(tmp_path_factory: pytest.TempPathFactory) -> SmallReference:
    """Build a reference from eight normals and eight diagnoses (some 20 s), once for all workers."""
    import fcntl

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "small-reference"
    with (base / "small-reference.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "printed.txt").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            _build_small_reference(folder)
    return SmallReference(
        file=folder / "small.reference",
        template=folder / "small-tube.toml",
        normals=folder / "normals",
        diagnoses=folder / "diagnoses",
        mrd=folder / "samples" / "mrd.fcs",
        clear=folder / "samples" / "clear.fcs",
        printed=(folder / "printed.txt").read_text(encoding="utf-8"),
    )
