"""Links inside the repository lead somewhere, and the pages keep to the rules of the house."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "sample_fcs" / "README.md"]
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """Return the anchors that headings make on the usual forges."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(REPOSITORY), f"{link}: outside the repository"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link}: no such heading"


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    top = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("\n## ", 1)[0]
    assert top.index("make demo") < top.index("make test")


def test_every_make_target_that_a_page_names_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        # `make x y` in code, or a line of a shell block.
        for named in re.findall(r"(?:`|^)make ([a-z ]+?)(?:`|\s*#|$)", text, re.MULTILINE):
            assert set(named.split()) <= targets, (page.name, named)


def test_the_readme_has_the_exit_codes_of_the_reference() -> None:
    codes = re.compile(r"^\| (\d+) \|", re.MULTILINE)
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    reference = (REPOSITORY / "docs" / "reference" / "cli.md").read_text(encoding="utf-8").split("## Exit codes")[1]
    assert codes.findall(readme) == codes.findall(reference)


def test_the_licence_is_the_whole_apache_licence() -> None:
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
