"""Structural checks of one data set: which parameters there are, where DATA lies, and whether the counts agree.

The rule throughout: where HEADER and TEXT disagree, evidence decides (does the range hold `$TOT` events, does it lie
inside the file, are the values plausible), and the rule that was used becomes a finding. Where no reading is supported
by evidence the file is refused.
"""

from __future__ import annotations

import binascii
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from flowmrd.errors import FcsError, QcFinding
from flowmrd.fcs.data import DataLayout, Packing, iter_chunks, straight
from flowmrd.fcs.fcsfile import Channel, ChannelKind, channel_kind
from flowmrd.fcs.segments import (
    HEADER_BYTES,
    MAX_PARAMETERS,
    Header,
    info,
    positive_count,
    quoted,
    read_at,
    to_integer,
    to_real,
    violation,
    warning,
)

_HEADER_LIMIT = 99_999_999
_MANY = 5  # names listed in a message before "and n more"


def listed(names: Iterable[str]) -> str:
    """Names for a message, the first few."""
    names = list(names)
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What TEXT says about the columns."""

    channels: tuple[Channel, ...]
    types: tuple[str, ...]
    bits: tuple[int, ...]
    byte_order: tuple[int, ...]
    masks: tuple[int, ...]


def read_parameters(header: Header, keywords: Mapping[str, str], source: str) -> tuple[Parameters, list[QcFinding]]:
    """Channels, types, widths and byte order of one data set.

    Raises
    ------
    FcsError : no or impossible `$PAR`, histogram or ASCII data, an impossible width or byte order
    """
    findings: list[QcFinding] = []
    k = positive_count(keywords, "$PAR", source)
    if not k or k > MAX_PARAMETERS:
        shown = "missing" if k is None else f"{k:,}"
        raise FcsError(f"$PAR is {shown}, expected 1 to {MAX_PARAMETERS:,} parameters", source=source, where="$PAR")
    _check_mode(header, keywords, findings, source)
    default = _data_type(keywords.get("$DATATYPE"), "$DATATYPE", source)
    types, bits = [], []
    for i in range(1, k + 1):
        own = keywords.get(f"$P{i}DATATYPE")
        kind = _data_type(own, f"$P{i}DATATYPE", source) if own is not None and own.strip() else default
        if kind is None:
            raise FcsError(
                "$DATATYPE is missing, so the events cannot be decoded",
                source=source,
                where="$DATATYPE",
                hint="export the file again",
            )
        types.append(kind)
        bits.append(_width(keywords, i, kind, findings, source))
    if header.version != "3.2" and any(f"$P{i}DATATYPE" in keywords for i in range(1, k + 1)):
        message = f"$PnDATATYPE belongs to FCS 3.2, the file says {header.version}; the types it gives are used"
        findings.append(warning("DATATYPE_PER_PARAMETER", message, "$PnDATATYPE"))
    byte_order = _byte_order(keywords, bits, types, source)
    channels, masks = [], []
    blank: dict[str, list[str]] = {"N": [], "R": []}
    bad: dict[str, list[str]] = {"R": [], "G": [], "E": [], "E0": []}
    for i in range(1, k + 1):
        channel, mask = _channel(keywords, i, types[i - 1], bits[i - 1], blank, bad)
        channels.append(channel)
        masks.append(mask)
    _report_names(channels, blank, bad, findings)
    _report_amplification(channels, types, findings)
    beyond = sorted(
        {int(m[1]) for key in keywords if (m := re.fullmatch(r"\$P([0-9]{1,6})N", key, re.ASCII)) and int(m[1]) > k}
    )
    if beyond:
        findings.append(
            info(
                "PARAMETERS_BEYOND_PAR",
                f"$PnN is given for parameters {listed(map(str, beyond))}, but $PAR is {k}; those keywords are ignored",
                "$PAR",
            )
        )
    return (
        Parameters(
            channels=tuple(channels), types=tuple(types), bits=tuple(bits), byte_order=byte_order, masks=tuple(masks)
        ),
        findings,
    )


def _check_mode(header: Header, keywords: Mapping[str, str], findings: list[QcFinding], source: str) -> None:
    mode = keywords.get("$MODE", "").strip().upper()
    if mode in {"C", "U"}:
        raise FcsError(
            f"the data set holds a histogram ($MODE {mode}), not events",
            source=source,
            where="$MODE",
            hint="export list mode data",
        )
    if mode != "L" and not (header.version == "3.2" and not mode):  # FCS 3.2 has list mode only
        findings.append(warning("MODE_UNKNOWN", "$MODE is not L; read as list mode", "$MODE"))


def _data_type(text: str | None, where: str, source: str) -> str | None:
    kind = (text or "").strip().upper()
    if not kind:
        return None
    if kind == "A":
        raise FcsError(
            "the data are stored as ASCII text (type A), which FCS 3.1 withdrew",
            source=source,
            where=where,
            hint="export the file again as integer or float",
        )
    if kind not in {"I", "F", "D"}:
        raise FcsError(f"{where} is {quoted(kind)}, expected I, F or D", source=source, where=where)
    return kind


def _width(keywords: Mapping[str, str], i: int, kind: str, findings: list[QcFinding], source: str) -> int:
    key = f"$P{i}B"
    width = to_integer(keywords.get(key))
    if kind == "I":
        if width is None or not 1 <= width <= 64:
            raise FcsError(
                f"{key} is {quoted(keywords.get(key, ''))}, expected the bits of an integer (1 to 64)",
                source=source,
                where=key,
            )
        return width
    expected = 32 if kind == "F" else 64
    if width != expected:
        findings.append(
            warning(
                "WIDTH_IGNORED",
                f"{key} is {quoted(keywords.get(key, ''))}; type {kind} always has {expected} bits",
                key,
            )
        )
    return expected


def _byte_order(keywords: Mapping[str, str], bits: list[int], types: list[str], source: str) -> tuple[int, ...]:
    text = keywords.get("$BYTEORD", "")
    order = tuple(to_integer(part) or 0 for part in text.split(","))
    if sorted(order) != list(range(1, len(order) + 1)):
        if set(bits) == {8} and set(types) == {"I"}:
            return (1,)
        raise FcsError(
            f"$BYTEORD is {quoted(text)}, expected an order of bytes such as 1,2,3,4 or 4,3,2,1",
            source=source,
            where="$BYTEORD",
            hint="without it every value could be wrong",
        )
    wide = {b for b in bits if b > 8}
    if len(order) == 1 and wide:
        raise FcsError(
            f"$BYTEORD names one byte, but parameters have up to {max(wide)} bits", source=source, where="$BYTEORD"
        )
    if not straight(order) and wide - {8 * len(order)}:
        raise FcsError(
            f"$BYTEORD {text.strip()} does not say how {max(wide)} bits are ordered", source=source, where="$BYTEORD"
        )
    return order


def _channel(
    keywords: Mapping[str, str],
    i: int,
    kind: str,
    bits: int,
    blank: dict[str, list[str]],
    bad: dict[str, list[str]],
) -> tuple[Channel, int]:
    """One channel and the mask of its integers; remember what was odd."""
    pnn, pns = keywords.get(f"$P{i}N", ""), keywords.get(f"$P{i}S", "")
    if not pnn.strip():
        blank["N"].append(f"$P{i}N")
        pnn = f"P{i}"
    stated = keywords.get(f"$P{i}R")
    span = to_real(stated)
    if stated is None or not stated.strip():
        blank["R"].append(f"$P{i}R")
    elif span is None or span <= 0:
        bad["R"].append(f"$P{i}R")
    span = span if span is not None and span > 0 else 0.0
    mask = 0
    if kind == "I" and 0 < span <= 2.0 ** (bits - 1):
        # FCS: a range that is not a power of two is masked by the next one.
        mask = (1 << (int(np.ceil(span)) - 1).bit_length()) - 1 or 1
    gain = to_real(keywords.get(f"$P{i}G"))
    if gain is None or gain <= 0:
        if keywords.get(f"$P{i}G", "").strip() and gain != 0:
            bad["G"].append(f"$P{i}G")
        gain = 1.0
    decades, offset = _amplification(keywords.get(f"$P{i}E"), f"$P{i}E", bad)
    channel = Channel(
        index=i - 1,
        pnn=pnn,
        pns=pns,
        kind=channel_kind(pnn, pns),
        range=span,
        gain=gain,
        bits=bits,
        log_decades=decades,
        log_offset=offset,
    )
    return channel, mask


def _amplification(text: str | None, key: str, bad: dict[str, list[str]]) -> tuple[float, float]:
    if text is None or not text.strip():
        return 0.0, 0.0
    parts = [to_real(part) for part in text.split(",")]
    if len(parts) != 2 or parts[0] is None or parts[1] is None or parts[0] < 0 or parts[1] < 0 or parts[0] > 30:
        bad["E"].append(key)
        return 0.0, 0.0
    decades, offset = parts[0], parts[1]
    if not decades:
        return 0.0, 0.0
    if not offset:
        bad["E0"].append(key)
        offset = 1.0
    return decades, offset


def _report_names(
    channels: list[Channel], blank: dict[str, list[str]], bad: dict[str, list[str]], findings: list[QcFinding]
) -> None:
    if blank["N"]:
        findings.append(warning("NAME_MISSING", f"{listed(blank['N'])} missing; named by number", blank["N"][0]))
    if blank["R"]:
        findings.append(
            warning(
                "RANGE_MISSING", f"{listed(blank['R'])} missing; the range of these channels is unknown", blank["R"][0]
            )
        )
    if bad["R"]:
        findings.append(
            warning("RANGE_INVALID", f"{listed(bad['R'])} not a positive number; the range is unknown", bad["R"][0])
        )
    if bad["G"]:
        findings.append(warning("GAIN_INVALID", f"{listed(bad['G'])} not a positive number; taken as 1", bad["G"][0]))
    if bad["E"]:
        findings.append(
            warning(
                "AMPLIFICATION_INVALID",
                f"{listed(bad['E'])} not of the form decades,offset; read as linear",
                bad["E"][0],
            )
        )
    if bad["E0"]:
        findings.append(
            info(
                "AMPLIFICATION_ZERO",
                f"{listed(bad['E0'])} have offset 0 on a log scale; read as 1, as FCS says",
                bad["E0"][0],
            )
        )
    for code, attribute, keyword in (("DUPLICATE_PNN", "pnn", "$PnN"), ("DUPLICATE_PNS", "pns", "$PnS")):
        counts = Counter(name for c in channels if (name := getattr(c, attribute).strip()))
        twice = {name for name, count in counts.items() if count > 1}
        if not twice:
            continue
        numbers = [str(c.index + 1) for c in channels if getattr(c, attribute).strip() in twice]
        make = violation if attribute == "pnn" else warning
        message = f"{keyword} {listed(sorted(twice))} stands more than once (parameters {listed(numbers)})"
        findings.append(make(code, message, keyword))


def _report_amplification(channels: list[Channel], types: list[str], findings: list[QcFinding]) -> None:
    ignored = [c.pnn for c, kind in zip(channels, types, strict=True) if kind != "I" and c.log_decades > 0]
    if ignored:
        findings.append(
            warning(
                "FLOAT_WITH_LOG",
                f"$PnE of {listed(ignored)} says log, but the values are float and therefore linear; $PnE ignored",
                "$PnE",
            )
        )
    both = [
        c.pnn
        for c, kind in zip(channels, types, strict=True)
        if kind == "I" and c.log_decades > 0 and c.gain != 1.0 and c.kind is not ChannelKind.TIME
    ]
    if both:
        findings.append(info("GAIN_WITH_LOG", f"$PnG of {listed(both)} ignored: the channel is on a log scale", "$PnG"))
    unknown = [
        c.pnn for c, kind in zip(channels, types, strict=True) if kind == "I" and c.log_decades > 0 and not c.range
    ]
    if unknown:
        findings.append(
            violation(
                "LOG_WITHOUT_RANGE",
                f"{listed(unknown)} is on a log scale but has no $PnR, so its values stay channel numbers",
                "$PnR",
            )
        )


# ---------------------------------------------------------------------------------------------------------------- DATA


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """A place where DATA is said to be; bytes are relative to the data set, `end` inclusive."""

    name: str
    begin: int
    end: int

    @property
    def length(self) -> int:
        return max(0, self.end - self.begin + 1)

    def __str__(self) -> str:
        return f"{self.name} {self.begin:,}-{self.end:,}"


def locate_data(
    handle: BinaryIO, header: Header, keywords: Mapping[str, str], parameters: Parameters, *, size: int, source: str
) -> tuple[DataLayout, Parameters, list[QcFinding]]:
    """Find DATA by evidence, and how many events it holds.

    Parameters
    ----------
    size : bytes of the whole file

    Returns
    -------
    layout, parameters (widths corrected where the bytes prove others), findings

    Raises
    ------
    FcsError : DATA is cut off, lies outside the file, or fits neither `$TOT` nor a whole number of events
    """
    findings: list[QcFinding] = []
    total = positive_count(keywords, "$TOT", source)
    if total is None:
        findings.append(info("TOT_MISSING", "$TOT is missing; events are counted from the bytes of DATA", "$TOT"))
    ranges = _stated_ranges(header, keywords, findings)
    if header.analysis is not None and header.base + max(header.analysis) >= size:
        findings.append(info("ANALYSIS_OUTSIDE", "the ANALYSIS segment lies outside the file; not read", "bytes 42-57"))
    layout = DataLayout(
        begin=0,
        events=0,
        types=parameters.types,
        bits=parameters.bits,
        byte_order=parameters.byte_order,
        masks=parameters.masks,
    )
    if not ranges:
        if total == 0 or (total is None and header.data is not None):
            findings.append(warning("NO_EVENTS", "the data set holds no events", "$TOT"))
            return layout, parameters, findings
        raise FcsError(
            "neither HEADER nor TEXT says where DATA is",
            source=source,
            where="$BEGINDATA",
            hint="the file is damaged; export it again",
        )
    if total == 0 and all(r.length <= 8 for r in ranges):
        findings.append(warning("NO_EVENTS", "the data set holds no events", "$TOT"))
        return layout, parameters, findings
    available = size - header.base
    fits = [
        (option, place, slack)
        for option in _packings(layout)
        for place in ranges
        if total is not None and (slack := _fit(place, option, total, available, header)) is not None
    ]
    other = _other_floats(layout, keywords)
    if not fits and other is not None and total is not None:
        fits = [(other, place, 0) for place in ranges if _fit(place, other, total, available, header) in {0, 1}]
        if fits:
            message = (
                f"$DATATYPE is {layout.types[0]}, but $PnB and the size of DATA are those of type {other.types[0]}"
            )
            findings.append(warning("DATATYPE_BY_SIZE", f"{message}; read so", "$DATATYPE"))
            parameters = replace(parameters, types=other.types, bits=other.bits)
    if fits:
        chosen, place = _choose(fits, ranges, handle, header, total or 0, findings, source)
    else:
        chosen, place, total = _count_from_bytes(layout, ranges, total, available, header, findings, source)
    layout = replace(chosen, begin=header.base + place.begin, events=total or 0)
    if layout.bits != parameters.bits:
        findings.append(
            warning(
                "WIDTH_ROUNDED",
                f"$PnB of {min(parameters.bits)} bits, but DATA holds $TOT events only if every value takes whole words"
                f" ({max(layout.bits)} bits); read so",
                "$PnB",
            )
        )
        parameters = replace(
            parameters,
            bits=layout.bits,
            channels=tuple(replace(c, bits=b) for c, b in zip(parameters.channels, layout.bits, strict=True)),
        )
    if not layout.events:
        findings.append(warning("NO_EVENTS", "the data set holds no events", "$TOT"))
    return layout, parameters, findings


def _stated_ranges(header: Header, keywords: Mapping[str, str], findings: list[QcFinding]) -> list[_Range]:
    ranges: list[_Range] = []
    if header.data is not None and header.data[1] > 0:
        ranges.append(_Range(name="HEADER", begin=header.data[0], end=header.data[1]))
    begin, end = to_integer(keywords.get("$BEGINDATA")), to_integer(keywords.get("$ENDDATA"))
    if begin and end and end > 0 and begin > 0:
        ranges.append(_Range(name="TEXT", begin=begin, end=end))
    elif header.version != "2.0" and ranges:
        findings.append(
            info("TEXT_OFFSETS_MISSING", "$BEGINDATA and $ENDDATA are missing; HEADER's are used", "$BEGINDATA")
        )
    if len(ranges) == 1 and ranges[0].name == "TEXT":
        if header.data is None or ranges[0].end <= _HEADER_LIMIT:
            findings.append(
                info("HEADER_OFFSETS_MISSING", "HEADER does not say where DATA is; $BEGINDATA is used", "bytes 26-41")
            )
    elif len(ranges) == 2 and ranges[0].end == ranges[1].end and ranges[0].begin == ranges[1].begin:
        ranges.pop()
    return ranges


def _packings(layout: DataLayout) -> list[DataLayout]:
    """Ways in which parameters of these widths may lie in bytes, the standard's first."""
    if all(bits % 8 == 0 for bits in layout.bits):
        return [layout]
    words = tuple(next(w for w in (8, 16, 32, 64) if bits <= w) for bits in layout.bits)
    # A width that is no whole byte bounds the value as $PnR does.
    masks = tuple(
        (mask or (1 << bits) - 1) if bits != word else mask
        for mask, bits, word in zip(layout.masks, layout.bits, words, strict=True)
    )
    options = [replace(layout, packing=Packing.BITS), replace(layout, packing=Packing.PADDED_BITS)]
    if sum(layout.bits) % 8 == 0:
        options.pop()
    return [*options, replace(layout, bits=words, masks=masks)]


def _other_floats(layout: DataLayout, keywords: Mapping[str, str]) -> DataLayout | None:
    """The layout with the other float type, where every `$PnB` contradicts `$DATATYPE`."""
    kinds = set(layout.types)
    if kinds not in ({"F"}, {"D"}):
        return None
    k = len(layout.types)
    kind, width = ("D", 64) if kinds == {"F"} else ("F", 32)
    if any(to_integer(keywords.get(f"$P{i}B")) != width for i in range(1, k + 1)):
        return None
    return replace(layout, types=(kind,) * k, bits=(width,) * k)


def _fit(place: _Range, option: DataLayout, total: int, available: int, header: Header) -> int | None:
    """Bytes by which the stated range exceeds `total` events; `None` where they cannot lie there."""
    need = replace(option, events=total).nbytes
    slack = place.length - need
    if not -1 <= slack <= 8:  # one byte off either way, or a CRC counted in
        return None
    inside = place.begin >= HEADER_BYTES and place.begin + need <= available
    apart = place.begin > header.text[1] or place.begin + need <= header.text[0]
    return slack if inside and apart else None


def _choose(
    fits: list[tuple[DataLayout, _Range, int]],
    ranges: list[_Range],
    handle: BinaryIO,
    header: Header,
    total: int,
    findings: list[QcFinding],
    source: str,
) -> tuple[DataLayout, _Range]:
    fits.sort(key=lambda fit: abs(fit[2]))  # stable: exact first, then HEADER before TEXT
    option, place, slack = fits[0]
    rivals = [fit for fit in fits if fit[1].begin != place.begin and fit[0] is option]
    if rivals and total:
        option, place, slack = _by_plausibility([fits[0], rivals[0]], handle, header, total, findings, source)
    elif len(ranges) == 2:
        other = ranges[1] if place is ranges[0] else ranges[0]
        if other.begin == place.begin:
            how = f"only {place.name} fits $TOT" if slack == 0 else f"{place.name} is nearer to $TOT"
        else:
            how = f"only {place.name} holds $TOT events inside the file and apart from TEXT"
        findings.append(
            warning(
                "OFFSETS_DISAGREE", f"DATA is said to be at {ranges[0]} and {ranges[1]}; {how}, so it is used", "DATA"
            )
        )
    if slack == 1:
        findings.append(info("DATA_END_OFF_BY_ONE", f"{place.name} states the byte after DATA as its end", "DATA"))
    elif slack == -1:
        findings.append(
            info("DATA_END_OFF_BY_ONE", f"{place.name} states an end one byte short of $TOT events", "DATA")
        )
    elif slack > 1:
        findings.append(info("DATA_PADDED", f"{slack} bytes follow the last event inside DATA; not read", "DATA"))
    if option.packing is not Packing.BYTES:
        findings.append(info("DATA_PACKED", "integers are packed bit by bit", "$PnB"))
    return option, place


def _by_plausibility(
    rivals: list[tuple[DataLayout, _Range, int]],
    handle: BinaryIO,
    header: Header,
    total: int,
    findings: list[QcFinding],
    source: str,
) -> tuple[DataLayout, _Range, int]:
    """Between two places that both could hold the events, take the one whose values and surroundings make sense."""
    odd = []
    for option, place, _ in rivals:
        layout = replace(option, begin=header.base + place.begin, events=min(total, 4096))
        odd.append(_implausible(handle, layout, source))
    if odd[0] != odd[1]:
        best = int(odd[1] < odd[0])
        why = f"only the values at {rivals[best][1].name}'s are plausible"
    else:
        # Between TEXT and DATA a program writes padding. Anything else there is already DATA.
        early = 0 if rivals[0][1].begin < rivals[1][1].begin else 1
        gap = rivals[1 - early][1].begin - rivals[early][1].begin
        between = read_at(handle, header.base + rivals[early][1].begin, min(gap, 1 << 16))
        padding = not between.strip(b" \0")
        best = 1 - early if padding else early
        what = "only padding stands" if padding else "values stand"
        why = f"{what} in the {gap:,} bytes before {rivals[1 - early][1].name}'s, so {rivals[best][1].name}'s is used"
    message = f"DATA is said to be at {rivals[0][1]} and {rivals[1][1]}; {why}"
    findings.append(warning("OFFSETS_DISAGREE", message, "DATA"))
    return rivals[best]


def _implausible(handle: BinaryIO, layout: DataLayout, source: str) -> float:
    """Share of values that no instrument writes: integers above the range, floats not finite or of absurd size."""
    unmasked = replace(layout, masks=(0,) * len(layout.masks))
    odd = count = 0
    for _, columns in iter_chunks(handle, unmasked, source=source):
        for i, (kind, mask) in enumerate(zip(layout.types, layout.masks, strict=True)):
            values = np.asarray(columns[i])
            if kind == "I":
                odd += int(np.count_nonzero(values > mask)) if mask else 0
            else:
                size = np.abs(values)
                odd += int(np.count_nonzero(~np.isfinite(size) | (size > 1e15) | ((size > 0) & (size < 1e-15))))
            count += values.size
    return odd / max(count, 1)


def _count_from_bytes(
    layout: DataLayout,
    ranges: list[_Range],
    total: int | None,
    available: int,
    header: Header,
    findings: list[QcFinding],
    source: str,
) -> tuple[DataLayout, _Range, int]:
    """`$TOT` is absent or fits no stated range: believe the bytes, or refuse."""
    usable = [
        r
        for r in ranges
        if r.begin >= HEADER_BYTES
        and r.length > 0
        and r.begin + r.length <= available + 1
        and (r.begin > header.text[1] or r.end < header.text[0])
    ]
    if not usable:
        for place in ranges:
            need = replace(layout, events=total or 0).nbytes
            after = available - place.begin - need
            if total and place.begin > header.text[1] and after in {0, 8}:
                message = f"{place} lies outside the file, but from byte {place.begin:,} exactly $TOT events fill it"
                findings.append(violation("DATA_END_WRONG", message, "DATA"))
                return layout, place, total
        _refuse_cut(ranges[-1], layout, total, available, header, source)
        raise FcsError(
            f"DATA cannot be where it is said to be ({'; '.join(map(str, ranges))}; file {available:,} bytes)",
            source=source,
            where="DATA",
            hint="the file is damaged; export it again",
        )
    for option in _packings(layout):
        for place in usable:
            length = min(place.length, available - place.begin)
            counted, rest = divmod(length * 8, option.event_bits)
            if option.packing is Packing.BITS:
                rest = 0 if rest < 8 else rest
            if rest not in {0, 8} or not counted:
                continue
            if rest:
                findings.append(
                    info("DATA_END_OFF_BY_ONE", f"{place.name} states the byte after DATA as its end", "DATA")
                )
            if total is not None:
                findings.append(
                    violation(
                        "TOT_MISMATCH",
                        f"$TOT says {total:,} events, DATA holds {counted:,} ({length:,} bytes of"
                        f" {option.event_bits / 8:g} each); {counted:,} events are read",
                        "$TOT",
                    )
                )
            return option, place, counted
    place = usable[-1]
    if place.begin + place.length > available:
        _refuse_cut(place, layout, total, available, header, source)
    stated = f"$TOT {total:,}" if total is not None else "a whole number of"
    raise FcsError(
        f"DATA has {place.length:,} bytes, which is not {stated} events of {layout.event_bits / 8:g} bytes",
        source=source,
        where="DATA",
        hint="a channel was lost or the file is damaged; export it again",
    )


def _refuse_cut(
    place: _Range, layout: DataLayout, total: int | None, available: int, header: Header, source: str
) -> None:
    """Raise where the events that `$TOT` promises would reach beyond the end of the file."""
    need = place.length if total is None else replace(_packings(layout)[0], events=total).nbytes
    have = max(0, available - place.begin)
    if need <= have:
        return
    complete = have * 8 // layout.event_bits
    of = "" if total is None else f" ({complete:,} of {total:,} events)"
    raise FcsError(
        f"DATA is cut off: {need:,} bytes expected from byte {place.begin:,}, {have:,} in the file{of}",
        source=source,
        where=f"byte {header.base + place.begin:,}",
        hint="copy or export the file again; a part of a tube is not analysed as the whole",
    )


def check_crc(handle: BinaryIO, header: Header, last: int) -> list[QcFinding]:
    """Compare the CRC after the last segment, where a program wrote one.

    `last` is the absolute byte of the last segment's end. `00000000`, blanks or nothing mean that there is none.
    """
    if header.version == "2.0":
        return []
    stated = read_at(handle, last + 1, 8)
    if not re.fullmatch(rb" *[0-9]+", stated) or len(stated) < 8 or not 0 < int(stated) <= 0xFFFF:
        return []  # none, or digits of something else: a CRC has 16 bits
    sums = [0, 0xFFFF]  # programs differ in the value to start from
    position = header.base
    while position <= last:
        part = read_at(handle, position, min(1 << 20, last + 1 - position))
        if not part:
            break
        sums = [binascii.crc_hqx(part, value) for value in sums]
        position += len(part)
    where = f"byte {last + 1:,}"
    if int(stated) in sums:
        return [info("CRC_OK", "the CRC of the data set is right", where)]
    return [warning("CRC_MISMATCH", "the CRC of the data set does not match its bytes; the file may be damaged", where)]
