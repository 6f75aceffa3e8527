"""A maker of FCS bytes that can be wrong in any way, which the strict writer cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

Pairs = Mapping[str, str | None]
MakeFcs = Callable[..., Path]


def raw_fcs(
    data: bytes = b"",
    changes: Pairs | None = None,
    *,
    names: tuple[str, ...] = ("FSC-A", "FL1-A"),
    events: int = 3,
    datatype: str = "F",
    bits: int = 32,
    byte_order: str = "1,2,3,4",
    version: str = "FCS3.1",
    delimiter: str = "/",
    text: Callable[[str], str] = lambda text: text,
    header_data: tuple[int, int] | str | None = None,
    shift: int = 0,
    gap: bytes = b"",
    tail: bytes = b"",
    encoding: str = "utf-8",
) -> bytes:
    """One data set. `changes` overrides keywords (None removes), `text` edits TEXT before it is placed.

    `shift` moves what TEXT says about DATA, `header_data` replaces what HEADER says ("blank" for nothing).
    """
    keywords: dict[str, str | None] = {
        "$BEGINDATA": "@BEGIN@",
        "$ENDDATA": "@FINAL@",
        "$BEGINSTEXT": "0",
        "$ENDSTEXT": "0",
        "$BEGINANALYSIS": "0",
        "$ENDANALYSIS": "0",
        "$NEXTDATA": "0",
        "$MODE": "L",
        "$DATATYPE": datatype,
        "$BYTEORD": byte_order,
        "$PAR": str(len(names)),
        "$TOT": str(events),
    }
    for i, name in enumerate(names, 1):
        keywords |= {f"$P{i}N": name, f"$P{i}B": str(bits), f"$P{i}E": "0,0", f"$P{i}R": "1024"}
    keywords |= dict(changes or {})
    body = delimiter + "".join(f"{k}{delimiter}{v}{delimiter}" for k, v in keywords.items() if v is not None)
    segment = text(body)
    begin = 58 + len(segment.encode(encoding)) + len(gap)
    end = begin + len(data) - 1
    # Both marks have seven characters, as have the numbers that replace them.
    segment = segment.replace("@BEGIN@", f"{begin + shift:07d}").replace("@FINAL@", f"{end + shift:07d}")
    encoded = segment.encode(encoding)
    if header_data == "blank":
        place = " " * 16
    else:
        assert not isinstance(header_data, str)
        place = "".join(f"{value:>8d}" for value in header_data or (begin, end))
    header = f"{version}    {58:>8d}{58 + len(encoded) - 1:>8d}{place}{0:>8d}{0:>8d}"
    return header.encode("ascii") + encoded + gap + data + tail


@pytest.fixture
def make_fcs(tmp_path: Path) -> MakeFcs:
    """Write the bytes of `raw_fcs` to a file and return its path."""

    def make(*args: object, name: str = "made.fcs", **kwargs: object) -> Path:
        path = tmp_path / name
        path.write_bytes(raw_fcs(*args, **kwargs))  # type: ignore[arg-type]
        return path

    return make
