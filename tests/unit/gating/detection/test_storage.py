"""A reference as a file: the same bytes again, and one error for whatever is no sound reference."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowmrd.errors import ReferenceFileError
from flowmrd.gating.detection.storage import load_reference, to_bytes
from tests.conftest import SmallReference

Head = dict[str, Any]


def changed(source: Path, target: Path, **parts: bytes | None) -> Path:
    """Write a reference with some of its parts replaced, or left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            data = parts[info.filename] if info.filename in parts else old.read(info)
            if data is not None:
                new.writestr(info.filename, data)
    return target


def part(source: Path, name: str) -> bytes:
    with zipfile.ZipFile(source) as archive:
        return archive.read(name)


def array_bytes(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_a_reference_read_and_written_again_is_the_same_file(small_reference: SmallReference) -> None:
    one = load_reference(small_reference.file)
    assert to_bytes(one) == small_reference.file.read_bytes()
    assert (one.name, one.template, one.simulated) == ("small", "small-tube", True)
    assert (one.normals, one.diagnoses, len(one.inputs)) == (8, 8, 16)
    assert one.optional == ("CD58",)
    assert one.population == "candidates"


def test_a_reference_holds_neither_file_names_nor_code(small_reference: SmallReference) -> None:
    with zipfile.ZipFile(small_reference.file) as archive:
        everything = b"".join(archive.read(info) for info in archive.infolist())
        names = archive.namelist()
    assert b"normal-0" not in everything
    assert str(small_reference.normals.parent).encode() not in everything
    assert {Path(name).suffix for name in names} == {".json", ".npy"}
    # Nothing of the clock: the same numbers give the same bytes on another day.
    with zipfile.ZipFile(small_reference.file) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"FCS3.1", bytes(1000)], ids=["empty", "start", "fcs", "zeros"]
)
def test_what_is_no_archive_is_one_error_that_names_the_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "wrong.reference"
    path.write_bytes(content)
    with pytest.raises(ReferenceFileError, match="not a reference of format 1") as caught:
        load_reference(path)
    assert caught.value.source == "wrong.reference"
    assert "flowmrd reference build" in str(caught.value)


def test_a_reference_of_another_format_is_refused(small_reference: SmallReference, tmp_path: Path) -> None:
    head: Head = json.loads(part(small_reference.file, "reference.json"))
    newer = json.dumps({**head, "format": 99}).encode()
    path = changed(small_reference.file, tmp_path / "new.reference", **{"reference.json": newer})
    with pytest.raises(ReferenceFileError, match="not a reference of format 1: format 99"):
        load_reference(path)


def test_an_archive_that_would_fill_the_memory_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.reference"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("points.npy", "w") as stream:
        for _ in range(300):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ReferenceFileError, match="unpacks to more than"):
        load_reference(path)


def test_a_file_that_is_not_there_is_an_error_of_the_same_kind(tmp_path: Path) -> None:
    with pytest.raises(ReferenceFileError, match="the reference cannot be read: No such file"):
        load_reference(tmp_path / "none.reference")


def test_an_array_larger_than_its_bytes_or_of_objects_is_never_made(
    small_reference: SmallReference, tmp_path: Path
) -> None:
    header = array_bytes(np.zeros((2, 2), np.float32)).replace(b"(2, 2)", b"(9**9,)")
    huge = array_bytes(np.zeros((10, 1), np.float32)).replace(b"(10, 1), ", b"(10**12,)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        objects = io.BytesIO()
        np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    for data in (header, huge, objects.getvalue(), b"\x93NUMPY\x01\x00"):
        path = changed(small_reference.file, tmp_path / "array.reference", **{"points.npy": data})
        with pytest.raises(ReferenceFileError, match="not a reference of format 1"):
            load_reference(path)


def _children_before(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.zeros_like(array)


FAULTS: dict[str, tuple[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]]] = {
    "points of another width": ("points.npy", lambda a: a[:, :-1]),
    "trees that go in circles": ("trees.left.npy", _children_before),
    "trees that leave their nodes": ("trees.right.npy", lambda a: a + np.int32(10**6)),
    "trees of another feature": ("trees.feature.npy", lambda a: a + np.int32(100)),
    "fewer nodes": ("trees.value.npy", lambda a: a[:-1]),
    "no covariance": ("0.normal.covariance.npy", lambda a: -a),
    "fewer groups": ("0.normal.mean.npy", lambda a: a[1:]),
    "abundances of other groups": ("0.abundances.npy", lambda a: a[:, 1:]),
    "knots that fall": ("0.knots.npy", lambda a: a[::-1]),
    "no number": ("judge.weight.npy", lambda a: a * np.nan),
    "no scale": ("judge.scale.npy", lambda a: a * 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parts_that_do_not_fit_each_other_are_found_when_the_file_is_read(
    fault: str, small_reference: SmallReference, tmp_path: Path
) -> None:
    name, spoil = FAULTS[fault]
    data = np.load(io.BytesIO(part(small_reference.file, name)))
    path = changed(small_reference.file, tmp_path / "x.reference", **{name: array_bytes(spoil(data))})
    with pytest.raises(ReferenceFileError, match="not a reference of format 1"):
        load_reference(path)


@pytest.mark.parametrize("missing", ["reference.json", "points.npy", "0.knots.npy", "trees.first.npy"])
def test_a_part_that_is_missing_is_found_when_the_file_is_read(
    missing: str, small_reference: SmallReference, tmp_path: Path
) -> None:
    path = changed(small_reference.file, tmp_path / "x.reference", **{missing: None})
    with pytest.raises(ReferenceFileError, match="not a reference of format 1"):
        load_reference(path)


@pytest.mark.parametrize(
    "head", [b"[]", b"{", b'{"format": 1}', b"null", b"\xff\xfe", b'{"format": 1, "trials": 3}', b"[" * 100_000]
)
def test_a_head_that_says_nothing_is_an_error(head: bytes, small_reference: SmallReference, tmp_path: Path) -> None:
    path = changed(small_reference.file, tmp_path / "x.reference", **{"reference.json": head})
    with pytest.raises(ReferenceFileError, match="not a reference of format 1"):
        load_reference(path)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.floats(0, 1))
def test_a_damaged_file_is_read_as_it_was_or_is_one_error(
    where: float, byte: int, cut: float, small_reference: SmallReference, tmp_path: Path
) -> None:
    data = bytearray(small_reference.file.read_bytes())
    data[int(where * len(data))] = byte
    path = tmp_path / "damaged.reference"
    for content in (bytes(data), bytes(data[: int(cut * len(data))])):
        path.write_bytes(content)
        try:
            one = load_reference(path)
        except ReferenceFileError:
            continue
        # A byte that nothing reads (a date, say) may differ.
        assert to_bytes(one) == small_reference.file.read_bytes()
