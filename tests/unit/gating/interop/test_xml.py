"""Documents that nobody vouches for: what is refused, how clearly, and at what cost."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from flowmrd.errors import InputError
from flowmrd.gating.interop.load import detect
from flowmrd.gating.interop.tree import read_tree
from flowmrd.gating.interop.xml import MAX_BYTES, MAX_DEPTH, FreePaths, outermost, parse_xml, read_document

BOMB = (
    '<?xml version="1.0"?><!DOCTYPE bomb [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(10))
    + "]><bomb>&k;</bomb>"
)
REFUSED = {
    "an entity that expands": (BOMB, "declares a document type with an internal subset"),
    "an internal subset without entities": ("<!DOCTYPE a [<!ELEMENT a ANY>]><a/>", "with an internal subset"),
    "an external DTD": ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "with an external id"),
    "a public DTD": ('<!DOCTYPE a PUBLIC "-//X//Y" "http://localhost/x.dtd"><a/>', "with an external id"),
    "an external entity": ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "an internal subset"),
    "an entity that nobody defined": ("<a>&x;</a>", "not well-formed XML: undefined entity"),
    "an unclosed element": ("<a><b></a>", "not well-formed XML: mismatched tag"),
    "nothing": ("", "not well-formed XML: no element found"),
    "an unbound prefix": ("<g:a/>", "not well-formed XML: unbound prefix"),
    "too deep": ("<a>" * (MAX_DEPTH + 1) + "</a>" * (MAX_DEPTH + 1), "nested more than 256 deep"),
    "too wide": (f"<a {' '.join(f'b{i}={chr(34)}{chr(34)}' for i in range(300))}/>", "300 attributes, more than 256"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_dangerous_or_broken_document_gives_one_clear_message(fault: str) -> None:
    text, message = REFUSED[fault]
    with pytest.raises(InputError) as caught:
        parse_xml(text.encode(), "evil.xml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("evil.xml")
    assert "\n" not in str(caught.value)


def test_a_bare_document_type_as_flowjo_9_writes_it_is_ignored() -> None:
    root = parse_xml(
        b'<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE Workspace><Workspace a="1">text</Workspace>', "w"
    )
    assert (root.tag, root.get("a"), root.text) == ("Workspace", "1", "text")


def test_a_hundred_megabytes_are_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "large.xml"
    with path.open("wb") as handle:
        handle.write(b"<a>")
        handle.truncate(100_000_000)
    tracemalloc.start()
    with pytest.raises(InputError, match="the document has 100 MB, more than the 67 MB that are read"):
        read_document(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_the_outermost_element_is_told_without_reading_the_rest() -> None:
    assert outermost(b"<n:a xmlns:n='urn:x'><b></n:a>", "x") == "{urn:x}a"
    with pytest.raises(InputError, match="internal subset"):
        outermost(BOMB.encode(), "x")
    assert MAX_BYTES < 100_000_000


KINDS = {
    "gatingml": b"\xef\xbb\xbf<x:Gating-ML xmlns:x='http://www.isac-net.org/std/Gating-ML/v2.0/gating'/>",
    "flowjo": b"<?xml version='1.0'?><!DOCTYPE Workspace><Workspace/>",
    "diva": b"\n<bdfacs version='8'/>",
    "kaluza": b"PK\x03\x04rest",
    "opencyto": b"alias,pop,parent,dims,gating_method,gating_args\n",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_format_is_told_by_its_content(kind: str) -> None:
    assert detect(KINDS[kind], "no-suffix") == kind


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html/>", "its outermost element is 'html'"),
        (b"hello", "neither XML, nor a zip, nor an openCyto table"),
        (b"", "neither XML"),
        (b"<g:Gating-ML xmlns:g='http://www.isac-net.org/std/Gating-ML/v1.5/gating'/>", "v1.5/gating is not read"),
    ],
)
def test_what_is_no_gate_document_is_refused_with_what_was_expected(data: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        detect(data, "some.file")
    assert message in str(caught.value)
    assert "Gating-ML 2.0" in str(caught.value)


GML = 'xmlns:g="http://www.isac-net.org/std/Gating-ML/v2.0/gating"'
FLOODS = {
    "Gating-ML": (f"<g:Gating-ML {GML}>", '<g:RectangleGate g:id="A" g:parent_id="A"/>', "</g:Gating-ML>"),
    "FlowJo": (
        '<Workspace><SampleList><Sample><SampleNode name="s"><Subpopulations>',
        '<Population name="p"/>',
        "</Subpopulations></SampleNode></Sample></SampleList></Workspace>",
    ),
    "FACSDiva": (
        '<bdfacs><experiment><specimen><tube name="t"><gates>',
        '<gate fullname="a"><name>x</name></gate>',
        "</gates></tube></specimen></experiment></bdfacs>",
    ),
}


@pytest.mark.parametrize("program", FLOODS)
def test_a_flood_of_gates_is_refused_before_their_paths_are_worked_out(program: str, tmp_path: Path) -> None:
    start, one, end = FLOODS[program]
    path = tmp_path / "flood.xml"
    path.write_text(start + one * 20_000 + end, encoding="utf-8")
    with pytest.raises(InputError, match=r"flood.xml: the document has 20,000 gates, more than the 10,000 that are"):
        read_tree(path)


def test_names_that_repeat_are_numbered_and_every_path_is_given_once() -> None:
    paths = FreePaths()
    assert [paths.free(path) for path in ("/a", "/a", "/a #3", "/a", "/b")] == ["/a", "/a #2", "/a #3", "/a #4", "/b"]
