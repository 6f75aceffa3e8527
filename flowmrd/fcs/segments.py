"""HEADER, TEXT and supplemental TEXT: from bytes to keywords, and the walk from data set to data set.

Nothing in a file is believed before it was checked against the file's size: offsets, lengths and counts of a hostile or
damaged file lead to an `FcsError`, never to a large allocation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from flowmrd.errors import FcsError, Level, QcFinding

VERSIONS = ("2.0", "3.0", "3.1", "3.2")
HEADER_BYTES = 58
MAX_TEXT_BYTES = 8 << 20  # of one TEXT segment; the largest real ones, of spectral instruments, have under 1 MiB
MAX_TOKENS = 1_000_000
MAX_ALL_TEXT_BYTES = 64 << 20  # of all data sets together
MAX_DATASETS = 10_000
MAX_PARAMETERS = 10_000

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?", re.ASCII)
_REAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_HARMLESS = re.compile(r"[0-9.,+\-eE *]{1,40}", re.ASCII)
_PADDING = " \t\r\n\x00"


def info(code: str, message: str, where: str = "") -> QcFinding:
    """A finding that explains."""
    return QcFinding(level=Level.INFO, code=code, message=message, where=where)


def warning(code: str, message: str, where: str = "") -> QcFinding:
    """A finding that asks for a look."""
    return QcFinding(level=Level.WARNING, code=code, message=message, where=where)


def violation(code: str, message: str, where: str = "") -> QcFinding:
    """A finding that blocks signing."""
    return QcFinding(level=Level.VIOLATION, code=code, message=message, where=where)


def to_integer(text: str | None) -> int | None:
    """Read an integer as instruments write it (padded, `+7`, `7.0`); `None` where it is not one."""
    if text is None or not _INTEGER.fullmatch(stripped := text.strip(_PADDING)):
        return None
    return int(stripped.split(".")[0])


def to_real(text: str | None) -> float | None:
    """Read a finite number; `None` where it is not one."""
    if text is None or not _REAL.fullmatch(stripped := text.strip(_PADDING)):
        return None
    value = float(stripped)
    return value if abs(value) < float("inf") else None


def quoted(text: str) -> str:
    """A keyword's value for a message: numbers as they are, anything else only by its length.

    A damaged TEXT segment can put any value behind any keyword, so free text could name a person.
    """
    text = text.strip(_PADDING)
    if not text:
        return "nothing"
    return f"'{text}'" if _HARMLESS.fullmatch(text) else f"a text of {len(text)} characters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The 58 bytes at the start of a data set; offsets are relative to it, `None` where blank or not a number."""

    base: int
    version: str
    text: tuple[int, int]
    data: tuple[int, int] | None
    analysis: tuple[int, int] | None


def read_at(handle: BinaryIO, offset: int, length: int) -> bytes:
    """Read up to `length` bytes at an absolute offset."""
    handle.seek(offset)
    parts = []
    while length > 0:
        part = handle.read(length)
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def read_header(handle: BinaryIO, base: int, size: int, source: str) -> tuple[Header, list[QcFinding]]:
    """Parse the HEADER at `base`.

    Raises
    ------
    FcsError : not an FCS file, a version nobody defined, or TEXT that cannot be found
    """
    raw = read_at(handle, base, HEADER_BYTES)
    if len(raw) < HEADER_BYTES or not raw.startswith(b"FCS"):
        expected = "expected the letters FCS and a version in the first 6 bytes"
        if len(raw) < HEADER_BYTES:
            message = f"the file has {len(raw)} bytes, an FCS HEADER alone has {HEADER_BYTES}"
        else:
            message = f"not an FCS file: {expected}"
        hint = "was the export interrupted?" if raw.startswith(b"FCS") or not raw else "is it another file type?"
        raise FcsError(message, source=source, where=f"byte {base:,}", hint=hint)
    version = raw[3:6].decode("latin-1")
    if version not in VERSIONS:
        shown = version if version.isprintable() else "unreadable"
        raise FcsError(
            f"FCS version {shown!r} is not one of {', '.join(VERSIONS)}",
            source=source,
            where=f"byte {base + 3:,}",
            hint="export the file again as FCS 3.0 or 3.1",
        )
    findings: list[QcFinding] = []
    fields = [_header_field(raw[10 + 8 * i : 18 + 8 * i]) for i in range(6)]
    if fields[0] is None or fields[1] is None:
        raise FcsError(
            "the HEADER does not say where TEXT is",
            source=source,
            where=f"bytes {base + 10:,}-{base + 25:,}",
            hint="the file is damaged; export it again",
        )
    text = (fields[0], fields[1])
    if not (HEADER_BYTES <= text[0] < text[1] and base + text[1] < size):
        raise FcsError(
            f"TEXT should be at bytes {text[0]:,}-{text[1]:,} of this data set, which has {size - base:,} bytes",
            source=source,
            where=f"bytes {base + 10:,}-{base + 25:,}",
            hint="the file is cut off or damaged; copy or export it again",
        )
    ranges: list[tuple[int, int] | None] = []
    for name, at in (("DATA", 2), ("ANALYSIS", 4)):
        begin, end = fields[at], fields[at + 1]
        if begin is None or end is None:
            if raw[10 + 8 * at : 26 + 8 * at].strip(b" \0") and name == "DATA":
                findings.append(
                    warning(
                        "HEADER_OFFSET_UNREADABLE", f"HEADER offsets of {name} are not numbers", f"byte {10 + 8 * at}"
                    )
                )
            ranges.append(None)
        else:
            ranges.append((begin, end))
    return Header(base=base, version=version, text=text, data=ranges[0], analysis=ranges[1]), findings


def _header_field(raw: bytes) -> int | None:
    value = to_integer(raw.decode("latin-1"))
    return None if value is None or value < 0 else value


def read_text(handle: BinaryIO, header: Header, size: int, source: str) -> tuple[dict[str, str], list[QcFinding]]:
    """Read TEXT and supplemental TEXT of one data set into keywords (upper case, `$` kept).

    Raises
    ------
    FcsError : too large to be TEXT, or no keywords in it
    """
    begin, end = header.text
    length = end - begin + 1
    where = f"bytes {header.base + begin:,}-{header.base + end:,}"
    if length > MAX_TEXT_BYTES:
        raise FcsError(
            f"TEXT claims {length:,} bytes; more than {MAX_TEXT_BYTES:,} cannot be keywords", source=source, where=where
        )
    raw = read_at(handle, header.base + begin, length)
    text, findings = _decoded(raw, where)
    if text[0] in _PADDING and text.lstrip(_PADDING)[:2].endswith("$"):
        text = text.lstrip(_PADDING)
        findings.append(info("TEXT_PADDED", "blanks stand before TEXT's delimiter", where))
    delimiter = text[0]
    if text.count(delimiter) > MAX_TOKENS:
        raise FcsError(f"TEXT has more than {MAX_TOKENS:,} delimiters", source=source, where=where)
    if delimiter.isalnum() or delimiter == "$":
        raise FcsError(
            "TEXT does not start with a delimiter", source=source, where=where, hint="the TEXT offset is wrong"
        )
    keywords = _chosen(text, findings, where)
    if "$PAR" not in keywords:
        raise FcsError(
            f"TEXT has no $PAR ({len(keywords)} keywords found)",
            source=source,
            where=where,
            hint="the TEXT offsets or the delimiter are wrong; export the file again",
        )
    _add_supplement(handle, header, size, delimiter, keywords, findings)
    return keywords, findings


def _decoded(raw: bytes, where: str) -> tuple[str, list[QcFinding]]:
    try:
        return raw.decode("utf-8"), []
    except UnicodeDecodeError:
        return raw.decode("latin-1"), [
            info("TEXT_ENCODING", "TEXT is not valid UTF-8 and was read as Latin-1; accented letters may differ", where)
        ]


def _chosen(text: str, findings: list[QcFinding], where: str) -> dict[str, str]:
    """Decide between the two readings of a doubled delimiter by which one yields the required keywords."""
    readings = [parse_pairs(text, doubled="tolerant")]
    if text[0] * 2 in text:
        readings += [parse_pairs(text, doubled=doubled) for doubled in ("strict", "empty")]
    scores = [_required_found(pairs) for pairs, _ in readings]
    best = max(range(len(readings)), key=lambda i: (scores[i], -i))
    pairs, leftover = readings[best]
    if best == 0 and len(readings) > 1 and pairs != readings[1][0]:
        empty = sum(1 for key, value in pairs if not value)
        findings.append(
            info(
                "TEXT_EMPTY_VALUES",
                f"{empty} keywords have empty values, which FCS does not allow; read as empty",
                where,
            )
        )
    elif best == 2:
        findings.append(
            info(
                "TEXT_UNESCAPED",
                "doubled delimiters were read as empty values: only so are required keywords found",
                where,
            )
        )
    if leftover:
        findings.append(
            warning("TEXT_UNPAIRED", f"TEXT ends with a keyword without value ({leftover} characters ignored)", where)
        )
    keywords: dict[str, str] = {}
    conflicting = []
    for key, value in pairs:
        if key in keywords and keywords[key].strip() != value.strip():
            conflicting.append(key)
        keywords[key] = value
    if conflicting:
        structural = sorted({key for key in conflicting if _STRUCTURAL.fullmatch(key)})
        names = ", ".join(structural[:5]) if structural else f"{len(set(conflicting))} keywords"
        make = warning if structural else info
        findings.append(
            make(
                "TEXT_DUPLICATE_KEYWORD", f"{names} stand more than once with different values; the last counts", where
            )
        )
    return keywords


_STRUCTURAL = re.compile(
    r"\$(?:PAR|TOT|MODE|DATATYPE|BYTEORD|NEXTDATA|BEGINDATA|ENDDATA|BEGINSTEXT|ENDSTEXT|TIMESTEP|SPILLOVER"
    r"|P[0-9]+(?:N|B|R|E|G|DATATYPE))",
    re.ASCII,
)


def _required_found(pairs: Iterable[tuple[str, str]]) -> int:
    """How many structural keywords this reading finds with a value of the right form."""
    found = 0
    for key, value in pairs:
        if not _STRUCTURAL.fullmatch(key):
            continue
        if re.fullmatch(r"\$(?:PAR|TOT|NEXTDATA|(?:BEGIN|END)S?(?:TEXT|DATA)|P[0-9]+B)", key, re.ASCII):
            found += to_integer(value) is not None
        else:
            found += bool(value.strip())
    return found


def parse_pairs(text: str, *, doubled: str = "tolerant") -> tuple[list[tuple[str, str]], int]:
    """Split a TEXT segment, its delimiter first, into keyword-value pairs.

    Parameters
    ----------
    text : the decoded segment
    doubled : what a doubled delimiter means. "strict": always the delimiter itself, as FCS says. "tolerant": the same
        in a value, but an empty value right after a keyword. "empty": always an empty string.

    Returns
    -------
    pairs : keywords upper-cased and trimmed, values as stored
    leftover : characters of a last keyword without value
    """
    delimiter = text[0]
    body = text[1:].rstrip(_PADDING.replace(delimiter, ""))
    if doubled == "empty":
        tokens = body.split(delimiter)
        if tokens and not tokens[-1]:
            tokens.pop()
    else:
        tokens = _escaped_tokens(body, delimiter, tolerant=doubled == "tolerant")
    keys = [token.strip(_PADDING).upper() for token in tokens[::2]]
    pairs = [(key, value) for key, value in zip(keys, tokens[1::2], strict=False) if key]
    leftover = len(keys[-1]) if len(tokens) % 2 else 0
    return pairs, leftover


def _escaped_tokens(body: str, delimiter: str, *, tolerant: bool) -> list[str]:
    """Tokens between single delimiters, where a run of delimiters may hold escaped ones.

    In a value a run of r delimiters is r // 2 of the character itself, followed by the end of the value if r is odd.
    After a keyword the tolerant reading takes the first of the run as the keyword's end, so `KEY//NEXT` is an empty
    value.
    """
    tokens: list[str] = []
    current = ""
    pieces = re.split(f"({re.escape(delimiter)}+)", body)
    for i in range(0, len(pieces), 2):
        current += pieces[i]
        run = len(pieces[i + 1]) if i + 1 < len(pieces) else 0
        if not run:
            break
        last = i + 2 >= len(pieces) - 1 and not pieces[-1]
        in_key = len(tokens) % 2 == 0
        if in_key and tolerant and run > 1 and current.strip(_PADDING):
            tokens.append(current)
            current = ""
            run -= 1
        escaped, ends = divmod(run, 2)
        if last and not ends:  # a stray delimiter after the one that ends the last value
            escaped, ends = escaped - 1, 1
        current += delimiter * escaped
        if ends:
            tokens.append(current)
            current = ""
    if current:
        tokens.append(current)
    return tokens


def _add_supplement(
    handle: BinaryIO,
    header: Header,
    size: int,
    delimiter: str,
    keywords: dict[str, str],
    findings: list[QcFinding],
) -> None:
    """Merge supplemental TEXT; primary TEXT wins."""
    begin, end = to_integer(keywords.get("$BEGINSTEXT")), to_integer(keywords.get("$ENDSTEXT"))
    if not begin or not end or end <= begin:
        return
    if begin <= header.text[1] and end >= header.text[0]:
        # Accuri writes the primary TEXT's own range here.
        findings.append(
            info("STEXT_IS_TEXT", "$BEGINSTEXT points into the primary TEXT; nothing more to read", "$BEGINSTEXT")
        )
        return
    if begin < HEADER_BYTES or header.base + end >= size or end - begin >= MAX_TEXT_BYTES:
        findings.append(
            warning(
                "STEXT_OUTSIDE", f"supplemental TEXT at bytes {begin:,}-{end:,} lies outside the file", "$BEGINSTEXT"
            )
        )
        return
    raw = read_at(handle, header.base + begin, end - begin + 1)
    text, _ = _decoded(raw, "$BEGINSTEXT")
    if text[0] != delimiter:
        findings.append(
            warning(
                "STEXT_UNREADABLE", "supplemental TEXT does not start with TEXT's delimiter; ignored", "$BEGINSTEXT"
            )
        )
        return
    extra: list[QcFinding] = []
    added = {k: v for k, v in _chosen(text, extra, "$BEGINSTEXT").items() if k not in keywords}
    keywords.update(added)
    findings.extend(extra)
    findings.append(info("STEXT_READ", f"{len(added)} keywords come from supplemental TEXT", "$BEGINSTEXT"))


def walk_datasets(
    handle: BinaryIO, size: int, source: str
) -> tuple[list[tuple[Header, dict[str, str], list[QcFinding]]], list[QcFinding]]:
    """Find every data set of a file by following `$NEXTDATA`.

    Returns
    -------
    datasets : HEADER, keywords and findings of each
    findings : of the chain itself (broken or looping `$NEXTDATA`)

    Raises
    ------
    FcsError : the first data set is unreadable
    """
    datasets: list[tuple[Header, dict[str, str], list[QcFinding]]] = []
    chain: list[QcFinding] = []
    base = all_text = 0
    while True:
        number = len(datasets) + 1
        try:
            header, findings = read_header(handle, base, size, source)
            all_text += header.text[1] - header.text[0]
            if datasets and all_text > MAX_ALL_TEXT_BYTES:
                raise FcsError("TEXT of all data sets is too long", source=source)  # noqa: TRY301  # ends the chain
            keywords, more = read_text(handle, header, size, source)
        except FcsError as error:
            if not datasets:
                raise
            chain.append(warning("NEXTDATA_BROKEN", f"data set {number} cannot be read: {error.message}", "$NEXTDATA"))
            break
        datasets.append((header, keywords, findings + more))
        stated = keywords.get("$NEXTDATA")
        step = to_integer(stated)
        if stated is not None and step is None and stated.strip(_PADDING):
            chain.append(warning("NEXTDATA_BROKEN", f"$NEXTDATA is not a number but {quoted(stated)}", "$NEXTDATA"))
            break
        if not step:
            break
        following = _next_base(handle, base, step, size)
        if following is None:
            chain.append(
                warning(
                    "NEXTDATA_BROKEN",
                    f"$NEXTDATA of data set {number} is {step:,}, but no FCS data set starts there",
                    "$NEXTDATA",
                )
            )
            break
        if number >= MAX_DATASETS:
            chain.append(
                warning("NEXTDATA_BROKEN", f"more than {MAX_DATASETS:,} data sets; the rest is ignored", "$NEXTDATA")
            )
            break
        base = following
    return datasets, chain


def _next_base(handle: BinaryIO, base: int, step: int, size: int) -> int | None:
    """Absolute start of the next data set: relative to this one as FCS says, else absolute as some write it."""
    for candidate in (base + step, step):
        # A data set starts after the one before it; this also ends every loop.
        if base + HEADER_BYTES < candidate < size and read_at(handle, candidate, 3) == b"FCS":
            return candidate
    return None


def positive_count(keywords: Mapping[str, str], key: str, source: str) -> int | None:
    """A keyword that must be a whole number from 0; `None` where absent or blank.

    Raises
    ------
    FcsError : it is something else
    """
    text = keywords.get(key)
    if text is None or not text.strip(_PADDING):
        return None
    value = to_integer(text)
    if value is None or value < 0:
        raise FcsError(f"{key} is {quoted(text)}, expected a whole number", source=source, where=key)
    return value
