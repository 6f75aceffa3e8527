"""Small pictures of a panel for lists, as PNG bytes (an imaging library for one 3 kB picture would be too much)."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from flowmrd.records import PlotPanel
from flowmrd.reporting.figures import THEMES, log_bytes, target_bins

PIXELS = 128
_LEVELS = 24


def panel_thumbnail(panel: PlotPanel) -> bytes:
    """Draw a panel's density and target events, without axes.

    Parameters
    ----------
    panel : any panel; its density is a multiple of 128 bins wide and high

    Returns
    -------
    PNG of 128 × 128 pixels, the same bytes for the same panel
    """
    height, width = panel.density.shape
    counts = panel.density.reshape(PIXELS, height // PIXELS, PIXELS, width // PIXELS).sum(axis=(1, 3))
    levels = log_bytes(counts).astype(np.int64)
    pixels = np.where(levels > 0, 1 + (levels - 1) * _LEVELS // 255, 0)
    if panel.target.shape[1]:
        hit = target_bins(panel, PIXELS) > 0
        # Drawn three pixels wide, so that a single event is seen at this size.
        wide = np.pad(hit, 1)
        spread = np.zeros_like(hit)
        for dy in range(3):
            for dx in range(3):
                spread |= wide[dy : dy + PIXELS, dx : dx + PIXELS]
        pixels[spread if panel.target.shape[1] <= 2000 else hit] = _LEVELS + 1
    theme = THEMES["light"]
    ramp = np.array([_rgb(colour) for colour in theme["density"]], np.float64)
    stops = np.linspace(0, 1, len(ramp))
    steps = np.linspace(0, 1, _LEVELS)
    blues = np.stack([np.interp(steps, stops, ramp[:, k]) for k in range(3)], axis=1).round().astype(np.uint8)
    palette = np.concatenate([[_rgb(theme["plot"])], blues, [_rgb(theme["target"])]]).astype(np.uint8)
    return encode_png(pixels[::-1].astype(np.uint8), palette)


def encode_png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Encode an indexed picture.

    Parameters
    ----------
    pixels : (height, width) palette indices, top row first
    palette : (colours, 3) red, green, blue
    """
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    # Each row starts with its filter type; 0 leaves the row as it is.
    rows = np.zeros((height, width + 1), np.uint8)
    rows[:, 1:] = pixels
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, body)
        for kind, body in (
            (b"IHDR", header),
            (b"PLTE", palette.tobytes()),
            (b"IDAT", zlib.compress(rows.tobytes(), 9)),
            (b"IEND", b""),
        )
    )


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _rgb(colour: str) -> tuple[int, int, int]:
    return (int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16))
