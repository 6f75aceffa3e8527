"""Bytes to `FcsFile` and back: read FCS 2.0 to 3.2, write 3.1, and say whether a file can be trusted."""

from __future__ import annotations

from flowmrd.fcs.fcsfile import Channel, ChannelKind, FcsFile, Spillover, Verdict, channel_kind
from flowmrd.fcs.reader import file_sha256, inspect_fcs, open_fcs, read_fcs, scan_values
from flowmrd.fcs.spillover import check_spillover, parse_spillover
from flowmrd.fcs.writer import write_fcs

__all__ = [
    "Channel",
    "ChannelKind",
    "FcsFile",
    "Spillover",
    "Verdict",
    "channel_kind",
    "check_spillover",
    "file_sha256",
    "inspect_fcs",
    "open_fcs",
    "parse_spillover",
    "read_fcs",
    "scan_values",
    "write_fcs",
]
