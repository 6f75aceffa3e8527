"""The reference page of evaluations says what the code writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flowmrd.evaluation.defaults import load_defaults
from flowmrd.evaluation.tables import CASES, COMPARED, SUMMARY


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "reference" / "evaluate.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("heading", "schema"), [("cases.csv", CASES), ("summary.csv", SUMMARY)])
def test_the_documented_columns_are_those_of_the_schema_in_its_order(
    heading: str, schema: dict[str, str], page: str
) -> None:
    part = page.split(f"\n### {heading}\n", 1)[1].split("\n## ", 1)[0].split("\n### ", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| (String|Int64|Float64|Boolean) \|", part, re.MULTILINE)
    assert rows == list(schema.items())


def test_the_columns_of_a_comparison_are_named(page: str) -> None:
    sentence = page.split("`<method>_status`", 1)[1].split(";", 1)[0]
    assert ["status", *re.findall(r"`_(\w+)`", sentence)] == list(COMPARED)


def test_the_names_that_labels_are_recognised_by_are_those_of_the_defaults(page: str) -> None:
    defaults = load_defaults().labels
    for name in (*defaults.columns, *defaults.positive, *defaults.denominator):
        assert f"`{name}`" in page, name
    for suffix in defaults.suffixes:
        assert f"`{suffix.removeprefix('.labels')}`" in page or f"<stem>{suffix}" in page, suffix
