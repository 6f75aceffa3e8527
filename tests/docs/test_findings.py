"""Every finding code in the source is explained in docs/reference/findings.md, and nothing else is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from flowmrd import errors
from flowmrd.errors import AnalysisError, Level
from flowmrd.gating.template import find_template, template_paths

# Where findings are made; the command line and the report only show them.
MAKERS = (
    "fcs",
    "cytometry",
    "documents",
    "gating",
    "quantification",
    "clinical",
    "assessment.py",
    "blasts.py",
    "cart_tube.py",
    "memory.py",
    "pipeline.py",
    "panels.py",
    "execution.py",
    "followup.py",
    "foreign.py",
    "evaluation",
)
CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")
# Functions that make a finding, and which of their arguments is the code.
CALLS = {"info": 0, "warning": 0, "violation": 0, "_finding": 1, "add": 1}


def _strings(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def _enum_values(tree: ast.Module) -> set[str]:
    """Return what closed vocabularies hold: categories and answers are no findings."""
    return {
        text
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any("Enum" in ast.dump(base) for base in node.bases)
        for text in _strings(node)
    }


def codes_in(path: Path) -> set[str]:
    """Return the codes one module can make: words handed to a maker, and UPPER_SNAKE words of no vocabulary."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        places = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        if name in CALLS and len(node.args) > CALLS[name]:
            places.append(node.args[CALLS[name]])
        found |= {text for place in places for text in _strings(place) if CODE.fullmatch(text)}
    exported = {
        text
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.dump(node.targets[0]).count("__all__")
        for text in _strings(node)
    }
    words = {text for text in _strings(tree) if CODE.fullmatch(text) and "_" in text}
    return found | (words - _enum_values(tree) - exported)


def codes_of_source(repository: Path) -> set[str]:
    package = repository / "flowmrd"
    paths = [
        path
        for name in MAKERS
        for path in ([package / name] if name.endswith(".py") else (package / name).rglob("*.py"))
    ]
    found: set[str] = set()
    for path in paths:
        found |= codes_in(path)
    # An analysis that fails names its error; a therapy's target names its warning.
    found |= {
        f"{name.removesuffix('Error').upper()}_FAILED"
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, AnalysisError)
    }
    for name in template_paths():
        found |= {f"{one.therapy_target}_GATED_ONLY" for one in find_template(name).measurement if one.therapy_target}
    # Verdicts and the category of a file that was not assessed are no findings.
    return found - {"PASS", "WARN", "FAIL", "NOT_DONE"}


def documented(repository: Path) -> dict[str, str]:
    """Return code → levels of the page's tables."""
    text = (repository / "docs" / "reference" / "findings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| ([^|]*) \|", text, re.MULTILINE)
    codes = [code for code, _ in rows]
    assert len(codes) == len(set(codes)), "a code is explained twice"
    return {code: levels.strip() for code, levels in rows}


def test_every_finding_code_of_the_source_is_explained(repository: Path) -> None:
    missing = codes_of_source(repository) - set(documented(repository))
    assert not missing, f"explain in docs/reference/findings.md: {', '.join(sorted(missing))}"


def test_no_code_is_explained_that_the_source_does_not_have(repository: Path) -> None:
    gone = set(documented(repository)) - codes_of_source(repository)
    assert not gone, f"no longer in the source: {', '.join(sorted(gone))}"


def test_each_explained_code_names_levels_that_exist(repository: Path) -> None:
    levels = {str(level) for level in Level}
    for code, named in documented(repository).items():
        assert set(named.split(", ")) <= levels, (code, named)
