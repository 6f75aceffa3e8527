"""Every tutorial runs as it is written, in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).resolve().parents[2] / "docs" / "tutorials").glob("*.md"))
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: its language, its options (`file=…`, `exit=…`) and its text."""

    language: str
    options: dict[str, str]
    text: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        language, options, body = match.groups()
        pairs = dict(option.split("=", 1) for option in options.split())
        yield Block(language=language, options=pairs, text=body, line=text[: match.start()].count("\n") + 1)


def assert_shown(expected: str, printed: str, where: str) -> None:
    """Assert that each expected line was printed, in order; `…` stands for anything."""
    rest = [line.strip() for line in printed.splitlines()]
    for line in expected.splitlines():
        wanted = re.compile(".*".join(re.escape(part) for part in line.strip().split("…")))
        while rest and not wanted.fullmatch(rest[0]):
            rest.pop(0)
        assert rest, f"{where}: {line.strip()!r} was not printed; got\n{printed}"


def run(command: list[str], folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **one_thread, "PATH": path, "PYTHONPATH": str(folder), "COLUMNS": "120"}
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )


def run_console(block: Block, folder: Path, where: str) -> None:
    wanted = int(block.options.get("exit", "0"))
    steps = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    for number, step in enumerate(steps):
        command, _, expected = step.partition("\n")
        ended = run(["bash", "-c", command], folder)
        last = number == len(steps) - 1
        assert ended.returncode == (wanted if last else 0), f"{where}: {command}\n{ended.stdout}"
        assert_shown(expected, ended.stdout, where)


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_the_tutorial_runs_as_written(tutorial: Path, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "sample_fcs").symlink_to(repository / "sample_fcs")
    text = tutorial.read_text(encoding="utf-8")
    if "file=flowmrd/" in text:
        # A tutorial for contributors adds to the package: it gets a copy of the checkout.
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / "flowmrd", tmp_path / "flowmrd", ignore=ignored)
        shutil.copytree(repository / "gating_templates", tmp_path / "gating_templates")
    # Python blocks are one program, so that names carry over; it runs again from the start for each block's output.
    program = ""
    printed = ""
    for block in blocks(text):
        where = f"{tutorial.name}, line {block.line}"
        if "file" in block.options:
            path = tmp_path / block.options["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            run_console(block, tmp_path, where)
        elif block.language == "python":
            before = printed
            program += block.text + "\n"
            ended = run([sys.executable, "-W", "error", "-"], tmp_path, program)
            assert ended.returncode == 0, f"{where}\n{ended.stdout}"
            printed = ended.stdout
            assert printed.startswith(before), f"{where}: the program does not print the same twice"
            new = printed[len(before) :]
        elif block.language == "text":
            assert_shown(block.text, new, where)
