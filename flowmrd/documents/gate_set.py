"""A gate set: gates that a person drew for one subject, which stand in for a template's; who, when and from what.

`docs/reference/gate-set.md` lists the keys. What a gate is, and which populations there are, is not known here: see
`flowmrd.gating.gate_set`.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from flowmrd.documents.loader import load_toml, raise_faults, validate
from flowmrd.errors import InputError

_VERSION = r"\d+\.\d+\.\d+"
_BOUND = rf"(>=|<=|==|!=|>|<)\s*{_VERSION}"
_SHA256 = r"^[0-9a-f]{64}$"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class GateSetHead(_Document):
    """Whose gates these are, for which template, and who drew them, when, from what and why."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    subject: str = Field(min_length=1)
    template: str = Field(min_length=1)
    template_versions: str = Field(default="", pattern=rf"^({_BOUND}(\s*,\s*{_BOUND})*)?$")
    author: str = Field(min_length=1, max_length=200)
    date: dt.date
    source: str = Field(min_length=1, max_length=500)
    reason: str = Field(min_length=1, max_length=2000)

    @field_validator("date", mode="before")
    @classmethod
    def _as_date(cls, value: object) -> object:
        """Take a date written as text, too."""
        if isinstance(value, dt.datetime):
            return value.date()
        if isinstance(value, str):
            try:
                return dt.date.fromisoformat(value)
            except ValueError:
                raise ValueError("expected a date such as 2026-03-01") from None
        return value

    @field_validator("author", "source", "reason")
    @classmethod
    def _one_line(cls, value: str) -> str:
        """Fold white space: these words stand beside the gate in the report."""
        folded = " ".join(value.split())
        if not folded or not folded.isprintable():
            raise ValueError("expected printable text")
        return folded


class GateSetOverride(_Document):
    """One gate in place of the template's: the JSON form of `flowmrd.gating.gates`, or a gate's name in `document`.

    `tube` says which tube or sample of the document. `subject`, `by` and `source` are those of the head where they are
    left out, so that an `[[override]]` of a template can be moved here as it stands.
    """

    population: str = Field(min_length=1)
    gate: Any
    document: str | None = Field(default=None, min_length=1)
    tube: str | None = Field(default=None, min_length=1)
    sha256: str | None = Field(default=None, pattern=_SHA256)
    subject: str | None = None
    by: str | None = Field(default=None, min_length=1, max_length=200)
    source: str | None = Field(default=None, min_length=1, max_length=500)


class GateSet(_Document):
    """A gate-set file.

    `digest` is the SHA-256 of its bytes, `documents` the SHA-256 of each document that it takes gates from. `path` is
    where it lies; documents are relative to its folder.
    """

    gate_set: GateSetHead
    override: tuple[GateSetOverride, ...] = Field(default=(), strict=False)
    path: Path
    digest: str
    documents: Mapping[str, str] = Field(default_factory=dict)

    @property
    def populations(self) -> tuple[str, ...]:
        """Return the populations whose gates the set replaces."""
        return tuple(one.population for one in self.override)

    @property
    def content(self) -> str:
        """Return a digest of the set and of every document it takes gates from."""
        parts = [self.digest, *(f"{name}:{digest}" for name, digest in sorted(self.documents.items()))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load_gate_set(path: Path, *, error: type[InputError]) -> GateSet:
    """Read a gate set; documents that it names must exist and have the digest that it states.

    Parameters
    ----------
    path : the TOML file
    error : class of the errors to raise

    Raises
    ------
    InputError : of class `error`; the file cannot be read as TOML
    ExceptionGroup : of `error`, one a fault, each with its key path
    """
    document = load_toml(path, error=error)
    known = {"gate_set", "override"}
    faults: list[InputError] = [
        error("unknown key", source=path.name, where=name, hint=f"expected {' and '.join(sorted(known))}")
        for name in document.data
        if name not in known
    ]
    raise_faults(faults, source=path.name)
    read = validate(GateSet, {**document.data, "path": path, "digest": document.digest}, source=path.name, error=error)
    digests: dict[str, str] = {}
    raise_faults(_faults(read, path, error, digests), source=path.name)
    return read.model_copy(update={"documents": digests})


def _faults(read: GateSet, path: Path, error: type[InputError], digests: dict[str, str]) -> Iterator[InputError]:
    """Check what the models cannot: overrides against each other and the head, and the documents' digests."""
    if not read.override:
        yield error("expected at least one gate; got none", source=path.name, where="override")
    seen: set[str] = set()
    for number, one in enumerate(read.override):
        key = f"override[{number}] ({one.population})"

        def fault(where: str, message: str, hint: str = "", key: str = key) -> InputError:
            return error(message, source=path.name, where=f"{key}.{where}", hint=hint)

        if one.population in seen:
            yield fault("population", "expected each population once; got it twice")
        seen.add(one.population)
        if one.subject is not None and one.subject != read.gate_set.subject:
            yield fault("subject", "expected gate_set.subject; got another subject", "a gate set is of one subject")
        if one.document is None:
            if not isinstance(one.gate, Mapping):
                yield fault("gate", "expected a table with kind, markers …", "a gate's name goes with document = …")
            for name in ("tube", "sha256"):
                if getattr(one, name) is not None:
                    yield fault(name, "expected with document only")
            continue
        if not isinstance(one.gate, str) or not one.gate:
            yield fault("gate", f"expected the name of a gate in {one.document}")
        if one.document not in digests:
            try:
                digests[one.document] = hashlib.sha256((path.parent / one.document).read_bytes()).hexdigest()
            except (OSError, ValueError) as refusal:
                why = refusal.strerror if isinstance(refusal, OSError) else "no file name"
                yield fault("document", f"{one.document} cannot be read: {why}", "relative to the gate set's folder")
                continue
        if one.sha256 is not None and one.sha256 != digests[one.document]:
            yield fault(
                "sha256",
                f"expected {one.sha256} for {one.document}; got {digests[one.document]}",
                "the document changed since the gates were taken from it",
            )


def version_in_range(version: str, wanted: str) -> bool:
    """Say whether a version meets every bound of a range; any does where the range is empty.

    Examples
    --------
    >>> version_in_range("1.4.0", ">=1.0.0, <2.0.0"), version_in_range("2.0.0", ">=1.0.0, <2.0.0")
    (True, False)
    """
    have = _numbers(version)
    tests = {
        ">=": have.__ge__,
        "<=": have.__le__,
        "==": have.__eq__,
        "!=": have.__ne__,
        ">": have.__gt__,
        "<": have.__lt__,
    }
    bounds = re.findall(rf"(>=|<=|==|!=|>|<)\s*({_VERSION})", wanted)
    return all(tests[sign](_numbers(text)) for sign, text in bounds)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
