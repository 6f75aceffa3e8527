"""PNG thumbnails."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from flowmrd.records import AcquisitionResult
from flowmrd.reporting.thumbnails import PIXELS, encode_png, panel_thumbnail


def decode(png: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read an indexed PNG with unfiltered rows, checking every chunk's sum."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        kind, body = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        assert struct.unpack(">I", png[place + 8 + size : place + 12 + size]) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        place += 12 + size
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colour) == (8, 3)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:], np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)


def test_an_indexed_picture_reads_back() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    palette = np.array([[255, 255, 255], [0, 10, 20], [200, 100, 0]], np.uint8)
    read, colours = decode(encode_png(pixels, palette))
    assert np.array_equal(read, pixels)
    assert np.array_equal(colours, palette)


def test_a_single_target_event_is_seen_in_the_thumbnail(results: tuple[AcquisitionResult, ...]) -> None:
    panel = results[1].panels[9]  # three target events
    pixels, palette = decode(panel_thumbnail(panel))
    target = len(palette) - 1
    assert pixels.shape == (PIXELS, PIXELS)
    assert (pixels == target).sum() >= 9
    # The picture's first row is the top: the blasts lie in the upper right of this panel.
    rows, columns = np.nonzero(pixels == target)
    assert rows.mean() < PIXELS / 2 < columns.mean()


def test_every_occupied_part_of_the_density_is_coloured(results: tuple[AcquisitionResult, ...]) -> None:
    panel = results[2].panels[5]
    pixels, _ = decode(panel_thumbnail(panel))
    occupied = panel.density.reshape(PIXELS, 2, PIXELS, 2).sum(axis=(1, 3)) > 0
    assert np.array_equal(pixels[::-1] > 0, occupied)
