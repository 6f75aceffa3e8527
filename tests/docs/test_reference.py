"""The reference pages say what the code says."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flowmrd import records
from flowmrd.documents.manifest import ManifestRow
from flowmrd.errors import Level
from flowmrd.fcs import ChannelKind, Verdict, inspect_fcs
from flowmrd.gating.template import find_template, template_paths
from flowmrd.quantification.rare_events import Call, Category, Negativity


@pytest.fixture(scope="module")
def builder(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_reference", repository / "docs" / "build_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables(repository: Path) -> str:
    return (repository / "docs" / "reference" / "tables.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def words(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def vocabulary(text: str, column: str) -> set[str]:
    row = re.search(rf"^\| `{column}` \| ((?:`[^`]+`(?:, )?)+) \|$", text, re.MULTILINE)
    assert row is not None, column
    return words(row.group(1))


def test_the_generated_pages_are_current(repository: Path) -> None:
    # In a fresh interpreter: click remembers the help option of a command's first caller, which may be another test.
    check = [sys.executable, str(repository / "docs" / "build_reference.py"), "--check"]
    result = subprocess.run(check, capture_output=True, text=True, cwd=repository, check=False)
    assert result.returncode == 0, f"run `make docs`: {result.stdout}{result.stderr}"


@pytest.mark.parametrize("table", list(records.SCHEMAS))
def test_the_documented_columns_are_those_of_the_schema_in_its_order(table: str, tables: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (String|Int64|Float64|Boolean) \|", section(tables, table), re.MULTILINE)
    assert rows == list(records.SCHEMAS[table].items())


def test_the_documented_vocabularies_are_those_of_the_code(tables: str) -> None:
    text = section(tables, "measurements")
    assert vocabulary(text, "category") == {*Category, "NOT_DONE"}
    assert vocabulary(text, "mrd_neg_1e4") == set(Negativity)
    assert vocabulary(text, "call") == set(Call)
    levels = next(line for line in section(tables, "findings").splitlines() if line.startswith("| `level`"))
    assert words(levels) - {"level"} == set(Level)


def test_the_documented_keys_of_inspect_are_those_it_writes(tables: str, repository: Path) -> None:
    text = section(tables, "Schema of `inspect --json`")
    report = inspect_fcs(repository / "sample_fcs" / "normal.fcs")
    keys = {*report, *report["channels"][0], *report["spillover"], "level", "code", "message", "where"}
    assert words(text) == keys | set(Verdict) | set(ChannelKind) | {"pnn", "index", "kind"}
    assert json.dumps(report)


def test_every_manifest_column_is_documented(repository: Path) -> None:
    text = (repository / "docs" / "reference" / "manifest.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    known = set(ManifestRow.model_fields) - {"row", "fcs_path", "matrix_path"}
    assert documented == known


def test_every_shipped_template_names_its_sources_and_limits(repository: Path) -> None:
    page = (repository / "docs" / "reference" / "templates.md").read_text(encoding="utf-8")
    for name in template_paths():
        template = find_template(name)
        assert template.template.sources, name
        assert f"## {name}" in page


def test_the_changelog_lists_each_shipped_template_with_its_version(repository: Path) -> None:
    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    results = text.split("### Results", 1)[1].split("\n### ", 1)[0]
    for name in template_paths():
        assert f"`{name}` {find_template(name).template.version}" in results, name
