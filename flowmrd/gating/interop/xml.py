"""Read XML that nobody vouches for: no DTD, no entities, and a cap on everything that can grow.

Gate documents come from other programs and other hospitals. A document type declaration can define entities that expand
without end or fetch files, so one with an internal subset or an external id is refused; a bare `<!DOCTYPE name>`, as
FlowJo 9 writes it, defines nothing and is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from flowmrd.errors import InputError

# Real workspaces stay under 30 MB; a tree in memory takes about ten times its text.
MAX_BYTES = 64 * 2**20
# A container holds the list-mode data beside the gates.
MAX_ARCHIVE_BYTES = 512 * 2**20
ZIP_START = b"PK\x03\x04"
MAX_DEPTH = 256
MAX_ATTRIBUTES = 256
MAX_ELEMENTS = 2_000_000
MAX_GATES = 10_000

_SEPARATOR = "}"


def read_document(path: Path) -> bytes:
    """Return the bytes of a gate document.

    Raises
    ------
    InputError
        The file is not there, cannot be read, or is larger than `MAX_BYTES` (a zip: `MAX_ARCHIVE_BYTES`); a larger file
        is not read into memory.
    """
    try:
        with path.open("rb") as handle:
            start = handle.read(len(ZIP_START))
            limit = MAX_ARCHIVE_BYTES if start == ZIP_START else MAX_BYTES
            size = path.stat().st_size
            data = b"" if size > limit else start + handle.read(limit + 1 - len(start))
    except OSError as error:
        raise InputError(f"the document cannot be read: {error.strerror or error}", source=path.name) from None
    if max(size, len(data)) > limit:
        raise _too_large(max(size, len(data)), path.name, limit)
    return data


def _too_large(size: int, name: str, limit: int = MAX_BYTES) -> InputError:
    return InputError(
        f"the document has {size / 1e6:.0f} MB, more than the {limit / 1e6:.0f} MB that are read",
        source=name,
        hint="export the gates of fewer samples",
    )


class _Enough(Exception):  # noqa: N818 - the way out of the parser, once the first element is known
    """The outermost element has been seen."""


def outermost(data: bytes, name: str) -> str:
    """Return the tag of the outermost element, `{namespace}name`, reading no further.

    Raises
    ------
    InputError
        As `parse_xml`, as far as the document was read.
    """
    found: list[str] = []

    def seen(tag: str) -> None:
        found.append(tag)
        raise _Enough

    try:
        _parse(data, name, seen)
    except _Enough:
        return found[0]
    raise InputError("not well-formed XML: it has no element", source=name)


def parse_xml(data: bytes, name: str) -> Element:
    """Parse an untrusted document; tags and attributes are `{namespace}name`.

    Parameters
    ----------
    data : the document's bytes
    name : file name, for messages

    Raises
    ------
    InputError
        It is not well-formed, declares a document type that defines or fetches anything, or is too large, too deep or
        too wide.
    """
    return _parse(data, name, None)


def _parse(data: bytes, name: str, on_first: Callable[[str], None] | None) -> Element:
    if len(data) > MAX_BYTES:
        raise _too_large(len(data), name)
    parser = expat.ParserCreate(namespace_separator=_SEPARATOR)
    builder = TreeBuilder()
    depth = elements = 0

    def refuse(what: str, hint: str = "") -> InputError:
        return InputError(what, source=name, where=f"line {parser.CurrentLineNumber}", hint=hint)

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth, elements
        depth += 1
        elements += 1
        if depth > MAX_DEPTH:
            raise refuse(f"elements are nested more than {MAX_DEPTH} deep", "no gate document is that deep")
        if elements > MAX_ELEMENTS:
            raise refuse(f"the document has more than {MAX_ELEMENTS:,} elements", "export the gates of fewer samples")
        if len(attributes) > MAX_ATTRIBUTES:
            raise refuse(f"an element has {len(attributes)} attributes, more than {MAX_ATTRIBUTES}")
        if on_first is not None:
            on_first(_qualified(tag))
        builder.start(_qualified(tag), {_qualified(key): value for key, value in attributes.items()})

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_qualified(tag))

    def doctype(_root: str, system: str | None, public: str | None, internal: int) -> None:
        if internal or system is not None or public is not None:
            what = "with an internal subset" if internal else "with an external id"
            raise refuse(
                f"the document declares a document type {what}, which is refused",
                "save it again without <!DOCTYPE …>; gate documents need none",
            )

    def entity(*_declaration: Any) -> None:
        raise refuse("the document declares entities, which is refused", "save it again without them")

    def outside(_context: str, _base: str | None, _system: str | None, _public: str | None) -> int:
        raise refuse("the document refers to an external entity, which is refused", "save it again without it")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = doctype
    parser.EntityDeclHandler = entity
    parser.ExternalEntityRefHandler = outside
    parser.SkippedEntityHandler = entity
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(
            f"not well-formed XML: {expat.ErrorString(error.code)}",
            source=name,
            where=f"line {error.lineno}, column {error.offset + 1}",
        ) from None
    except (LookupError, ValueError) as error:
        raise InputError(f"not readable XML: {error}", source=name) from None
    root: Element = builder.close()
    return root


def _qualified(tag: str) -> str:
    return "{" + tag if _SEPARATOR in tag else tag


def check_gates(count: int, name: str) -> None:
    """Refuse more gates than are evaluated, before paths and references are worked out.

    Raises
    ------
    InputError
        There are more than `MAX_GATES`.
    """
    if count > MAX_GATES:
        raise InputError(
            f"the document has {count:,} gates, more than the {MAX_GATES:,} that are evaluated", source=name
        )


class FreePaths:
    """Hands out each path once: one that is taken gets ` #2`, ` #3` …, also in a flood of one name without delay."""

    def __init__(self, mark: str = " #") -> None:
        self._mark = mark
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}

    def free(self, path: str) -> str:
        """Return the path, or the first numbered one that is free, and take it."""
        found, number = path, self._next.get(path, 2)
        while found in self._taken:
            found, number = f"{path}{self._mark}{number}", number + 1
        self._next[path] = number
        self._taken.add(found)
        return found


def local(tag: str) -> str:
    """Return a tag or attribute without its namespace."""
    return tag.rpartition("}")[2]
