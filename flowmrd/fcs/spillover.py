"""Spillover as instruments write it: by names, by numbers, for some channels, with decimal commas, or broken.

A matrix that cannot be read is a finding and `None`, never a crash and never a guess: the caller then states that the
data are uncompensated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import QcFinding
from flowmrd.fcs.fcsfile import Channel, ChannelKind, Spillover
from flowmrd.fcs.segments import info, to_integer, to_real, violation, warning

# In order of trust: the standard's keyword, Becton Dickinson's, others', and FCS 3.0's nameless matrix.
KEYWORDS = ("$SPILLOVER", "SPILL", "SPILLOVER", "$SPILL", "$COMP", "COMP")
_NAMELESS = {"$COMP", "COMP"}
MAX_CONDITION = 1e3
MAX_CHANNELS = 500
_DFC = re.compile(r"\$DFC([0-9]{1,3})TO([0-9]{1,3})", re.ASCII)
_DETECTOR = re.compile(r"^FL ?0*([0-9]{1,3})(?![0-9])", re.ASCII)


def read_spillover(
    keywords: Mapping[str, str], channels: Sequence[Channel]
) -> tuple[Spillover | None, list[QcFinding]]:
    """Find and check the spillover of a data set.

    Returns
    -------
    spillover : as the file states it, `None` where there is none or it cannot be used
    findings : where it came from, and everything wrong with it
    """
    findings: list[QcFinding] = []
    for key in KEYWORDS:
        text = keywords.get(key)
        if text is None or not text.strip() or text.strip() == "0":
            continue
        spillover = parse_spillover(text, channels, source=key, findings=findings)
        if spillover is not None:
            findings.extend(check_spillover(spillover))
            return spillover, findings
        if key not in _NAMELESS:
            return None, findings  # a broken matrix is not silently replaced by an older one
    if any(_DFC.fullmatch(key) and to_real(text) for key, text in keywords.items()):
        # In files with both data sets the coarse values equal the fine ones compensated by $DFCiTOj, so compensating
        # the coarse ones again would be wrong. The pair reader uses `read_dfc` on the fine ones.
        findings.append(
            warning(
                "DFC_APPLIED",
                "$DFCiTOj percentages are, in every file that shows both, already applied to these coarse values;"
                " no spillover is taken from them",
                "$DFCiTOj",
            )
        )
    return None, findings


def parse_spillover(
    text: str, channels: Sequence[Channel], *, source: str, findings: list[QcFinding]
) -> Spillover | None:
    """Parse `n,name1,…,namen,v11,v12,…` in the dialects that exist; add a finding where it cannot be.

    Dialects: names or parameter numbers, no names at all (all parameters, or all fluorescence channels), `;` between
    the fields, decimal commas, blanks around names, prefix `Comp-`, names that contain commas.
    """
    tokens = [token.strip() for token in (text.split(";") if text.count(";") > 2 else text.split(","))]
    n = to_integer(tokens[0])
    if n is None or not 1 <= n <= MAX_CHANNELS:
        findings.append(_malformed(source, "it does not start with the number of channels"))
        return None
    rest = tokens[1:]
    while rest and not rest[-1]:
        rest.pop()
    split = _split(rest, n, channels)
    if split is None:
        why = f"{n} channels need {n} names and {n * n} numbers, got {len(rest)} fields in all"
        findings.append(_malformed(source, why))
        return None
    names, values = split
    matrix = np.array(values, np.float64).reshape(n, n)
    if names is None:
        return _nameless(matrix, channels, source, findings)
    resolved, unknown = _resolved(names, channels)
    if unknown:
        findings.append(
            violation(
                "SPILLOVER_UNKNOWN_CHANNEL",
                f"{source} names {unknown} of {n} channels that the file does not have; the data are uncompensated",
                source,
            )
        )
        return None
    if len(set(resolved)) != n:
        findings.append(
            violation("SPILLOVER_DUPLICATE", f"{source} names a channel twice; the data are uncompensated", source)
        )
        return None
    return Spillover(channels=tuple(channels[i].pnn for i in resolved), matrix=matrix, source=source)


def _malformed(source: str, why: str) -> QcFinding:
    return warning("SPILLOVER_MALFORMED", f"{source} cannot be read ({why}); the data are uncompensated", source)


def _split(rest: Sequence[str], n: int, channels: Sequence[Channel]) -> tuple[list[str] | None, list[float]] | None:
    """Names and values of the fields after the count; names are `None` where the dialect has none."""
    cells = n * n
    for count, joined in ((cells, False), (2 * cells, True)):
        for names in (n, 0):
            if len(rest) == names + count:
                values = _numbers(rest[names:], joined=joined)
                if values is not None:
                    return (list(rest[:names]) if names else None), values
    if len(rest) > n + cells:
        values = _numbers(rest[-cells:], joined=False)
        labels = _rejoined(rest[:-cells], n, channels)
        if values is not None and labels is not None:
            return labels, values
    return None


def _numbers(fields: Sequence[str], *, joined: bool) -> list[float] | None:
    """Numbers of the fields; `joined` puts pairs split at a decimal comma together again."""
    if joined:
        if not all(re.fullmatch(r"-?[0-9]+", a) and b.isascii() and b.isdigit() for a, b in _pairs(fields)):
            return None
        fields = [f"{a}.{b}" for a, b in _pairs(fields)]
    values = [to_real(field.replace(",", ".")) for field in fields]
    return None if any(value is None for value in values) else [value for value in values if value is not None]


def _pairs(fields: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(fields[::2], fields[1::2], strict=True))


def _rejoined(fields: Sequence[str], n: int, channels: Sequence[Channel]) -> list[str] | None:
    """Names that contain commas, put together again by what the file calls its channels."""
    known = {_plain(c.pnn) for c in channels}
    names: list[str] = []
    at = 0
    while at < len(fields):
        for width in range(len(fields) - at, 0, -1):
            name = ",".join(fields[at : at + width])
            if _plain(name) in known or _plain(", ".join(fields[at : at + width])) in known:
                names.append(name)
                at += width
                break
        else:
            return None
    return names if len(names) == n else None


def _plain(name: str) -> str:
    """A name for comparison: without blanks and case."""
    return "".join(name.split()).casefold()


def _resolved(names: Sequence[str], channels: Sequence[Channel]) -> tuple[list[int], int]:
    """Channel index of each name; how many are unknown."""
    labels = [_plain(c.pns) for c in channels]
    keys = (
        {c.pnn: c.index for c in channels},
        {_plain(c.pnn): c.index for c in channels},
        {label: i for i, label in enumerate(labels) if label and labels.count(label) == 1},
    )
    found = [
        next((key[form] for key in keys for form in (name, _plain(name), _plain(name[5:])) if form in key), None)
        if name.startswith("Comp-")
        else next((key[form] for key in keys for form in (name, _plain(name)) if form in key), None)
        for name in names
    ]
    unknown = sum(i is None for i in found)
    numbers = [to_integer(name) for name in names]
    if unknown and all(number is not None and 1 <= number <= len(channels) for number in numbers):
        return [number - 1 for number in numbers if number is not None], 0
    return [i for i in found if i is not None], unknown


def _nameless(
    matrix: NDArray[np.float64], channels: Sequence[Channel], source: str, findings: list[QcFinding]
) -> Spillover | None:
    fluor = [c.index for c in channels if c.kind is ChannelKind.FLUOR]
    if len(matrix) == len(channels) and fluor:
        matrix = matrix[np.ix_(fluor, fluor)]
    elif len(matrix) != len(fluor):
        why = f"{len(matrix)} channels without names, but the file has {len(fluor)} of fluorescence"
        findings.append(_malformed(source, why))
        return None
    findings.append(
        warning(
            "SPILLOVER_UNLABELLED",
            f"{source} has no channel names; applied to the fluorescence channels in order",
            source,
        )
    )
    return Spillover(channels=tuple(channels[i].pnn for i in fluor), matrix=matrix, source=source)


def detector_number(pnn: str) -> int | None:
    """The n of a detector called `FLn …`, as Beckman's keywords count them."""
    match = _DETECTOR.match(pnn.strip().upper())
    return int(match[1]) if match else None


def read_dfc(keywords: Mapping[str, str], channels: Sequence[Channel], findings: list[QcFinding]) -> Spillover | None:
    """Beckman's `$DFCiTOj`: percent of detector i seen in detector j.

    Where a detector is stored more than once (`FL1 LOG`, `FL1 LIN`, `FL1-A`), each copy gets the same column and none
    spills into another copy of itself.
    """
    entries: dict[tuple[int, int], float] = {}
    for key, text in keywords.items():
        match = _DFC.fullmatch(key)
        value = to_real(text.replace(",", ".")) if match else None
        if match and value is not None:
            entries[int(match[1]), int(match[2])] = round(value / 100.0, 12)  # 11.2 % is 0.112, not 0.11199999999999999
    if not entries:
        return None
    found = [(number, c) for c in channels if (number := detector_number(c.pnn)) is not None]
    copies: dict[int, list[Channel]] = {}
    for number, channel in found:
        copies.setdefault(number, []).append(channel)
    first = [(number, group[0]) for number, group in sorted(copies.items())]
    if len(first) < 2:
        return None
    if any(len(group) > 1 for group in copies.values()):
        findings.append(
            warning(
                "SPILLOVER_MALFORMED",
                "$DFCiTOj counts detectors, but some detectors are stored more than once; the data are uncompensated",
                "$DFCiTOj",
            )
        )
        return None
    matrix = np.eye(len(first))
    for a, (i, _) in enumerate(first):
        for b, (j, _) in enumerate(first):
            if a != b:
                matrix[a, b] = entries.get((i, j), 0.0)
    findings.append(
        info(
            "SPILLOVER_DFC",
            f"spillover of {len(first)} detectors is taken from $DFCiTOj (percent of i in j)",
            "$DFCiTOj",
        )
    )
    return Spillover(channels=tuple(c.pnn for _, c in first), matrix=matrix, source="$DFCiTOj")


def check_spillover(spillover: Spillover) -> list[QcFinding]:
    """Judge a matrix: identity, diagonal, range, singular, badly conditioned."""
    matrix, source = spillover.matrix, spillover.source
    n = len(matrix)
    findings: list[QcFinding] = []
    if np.array_equal(matrix, np.eye(n)):
        if n > 2:
            findings.append(
                violation(
                    "SPILLOVER_IDENTITY",
                    f"{source} of {n} channels is the identity: the file carries no compensation",
                    source,
                )
            )
        return findings
    off = matrix[~np.eye(n, dtype=bool)]
    if not np.allclose(np.diag(matrix), 1.0, atol=1e-6) or (off.size and (off.min() < -0.05 or off.max() > 2.0)):
        findings.append(
            warning("SPILLOVER_RANGE", f"{source} has a diagonal other than 1, or spill outside -0.05 to 2", source)
        )
    condition = float(np.linalg.cond(matrix)) if np.all(np.isfinite(matrix)) else float("inf")
    if not np.isfinite(condition) or condition > 1 / np.finfo(np.float64).eps:
        findings.append(violation("SPILLOVER_SINGULAR", f"{source} cannot be inverted", source))
    elif condition > MAX_CONDITION:
        findings.append(
            violation(
                "SPILLOVER_ILL_CONDITIONED",
                f"{source} has condition number {condition:.3g}, at most {MAX_CONDITION:g} is trusted",
                source,
            )
        )
    return findings
