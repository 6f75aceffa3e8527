"""A reference as one file of plain numbers: a zip of arrays and a JSON head, without code."""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import ReferenceFileError
from flowmrd.gating.detection.boosting import Trees
from flowmrd.gating.detection.grow import FEATURES
from flowmrd.gating.detection.mixtures import Mixture
from flowmrd.gating.detection.reference import Judge, Learnt
from flowmrd.gating.detection.scores import Calibration, Densities, ScoreModel

FORMAT = 1
_MOST_BYTES = 256 * 1024 * 1024
# What reading a file that is no sound reference may raise.
_UNSOUND = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlRange:
    """What normals show of an internal control: median over marrows (scaled units), spread, how many had it."""

    population: str
    marker: str
    median: float
    sd: float
    marrows: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """A learnt reference and where it comes from.

    Attributes
    ----------
    name : given by who built it
    template, template_version : the tube that it was built for
    population : the candidates that it knows
    optional : features that a sample may lack
    scatter : features that are ratios to the lymphocytes' median
    controls : ranges of the internal controls
    simulated : whether it was made from simulated marrows only
    normals, diagnoses : marrows that it was learnt from
    inputs : SHA-256 of the files, sorted
    seed, software : what it was made with
    trials : how held-out marrows fared (false positives, found, …)
    points : (m, d) normals for pictures, aligned features
    digest : SHA-256 of the file
    """

    name: str
    template: str
    template_version: str
    population: str
    optional: tuple[str, ...]
    scatter: tuple[str, ...]
    controls: tuple[ControlRange, ...]
    simulated: bool
    normals: int
    diagnoses: int
    inputs: tuple[str, ...]
    seed: int
    software: str
    trials: Mapping[str, float]
    points: NDArray[np.float32]
    learnt: Learnt
    digest: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        """Return the markers, in the order of the arrays."""
        return self.learnt.features


def to_bytes(reference: Reference) -> bytes:
    """Return the file's bytes; the same reference gives the same bytes."""
    learnt = reference.learnt
    arrays: dict[str, NDArray[np.generic]] = {"points": reference.points.astype(np.float32)}
    trees = learnt.model.trees
    for name in ("first", "value", "feature", "threshold", "missing_left", "left", "right", "leaf"):
        arrays[f"trees.{name}"] = getattr(trees, name)
    for i, pattern in enumerate(learnt.calibrations):
        one = learnt.model.densities[pattern]
        arrays[f"{i}.centre"], arrays[f"{i}.scale"], arrays[f"{i}.abundances"] = one.centre, one.scale, one.abundances
        for kind, mixture in (("normal", one.normal), ("blast", one.blast)):
            arrays[f"{i}.{kind}.weight"] = mixture.weight
            arrays[f"{i}.{kind}.mean"] = mixture.mean
            arrays[f"{i}.{kind}.covariance"] = mixture.covariance
        arrays[f"{i}.knots"], arrays[f"{i}.ratio"] = (
            learnt.calibrations[pattern].knots,
            learnt.calibrations[pattern].ratio,
        )
    judge = learnt.judge
    arrays["judge.centre"], arrays["judge.scale"], arrays["judge.weight"] = judge.centre, judge.scale, judge.weight
    head = {
        "format": FORMAT,
        "name": reference.name,
        "template": reference.template,
        "template_version": reference.template_version,
        "population": reference.population,
        "features": list(reference.features),
        "optional": list(reference.optional),
        "scatter": list(reference.scatter),
        "controls": [[c.population, c.marker, c.median, c.sd, c.marrows] for c in reference.controls],
        "simulated": reference.simulated,
        "normals": reference.normals,
        "diagnoses": reference.diagnoses,
        "inputs": list(reference.inputs),
        "seed": reference.seed,
        "software": reference.software,
        "trials": dict(reference.trials),
        "patterns": [list(p) for p in learnt.calibrations],
        "baseline": trees.baseline,
        "judge": [judge.intercept, judge.accept, judge.review, judge.relative_error],
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        archive.writestr(zipfile.ZipInfo("reference.json"), json.dumps(head, indent=1, sort_keys=True))
        for name, array in arrays.items():
            packed = io.BytesIO()
            np.lib.format.write_array(packed, np.ascontiguousarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, packed.getvalue())
    return out.getvalue()


def load_reference(path: Path) -> Reference:
    """Read a reference.

    Raises
    ------
    ReferenceFileError
        It is no reference, of another format, or damaged.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ReferenceFileError(f"larger than {_MOST_BYTES} bytes: no reference", source=path.name)
        data = path.read_bytes()
    except OSError as error:
        raise ReferenceFileError(f"the reference cannot be read: {error.strerror or error}", source=path.name) from None
    try:
        reference = _read(data)
        _check(reference)
    except _UNSOUND as error:
        raise ReferenceFileError(
            f"not a reference of format {FORMAT}: {error}",
            source=path.name,
            hint="make one with `flowmrd reference build`",
        ) from None
    return reference


def _array(data: bytes) -> NDArray[Any]:
    """Read one array of numbers; its header must agree with its bytes before anything is made of it."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    start = stream.tell()
    if dtype.kind not in "fiub" or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError("an array is not what its head says")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if columns_first else "C")


def _check(one: Reference) -> None:
    """Check that the parts of a reference fit each other, so that no search can stumble over them.

    Raises
    ------
    ValueError
        They do not.
    """
    learnt, d = one.learnt, len(one.features)

    def want(sound: object, what: str) -> None:
        if not sound:
            raise ValueError(f"its {what} do not fit")

    want(d and len(set(one.features)) == d, "markers")
    want({*one.optional, *one.scatter} <= set(one.features), "markers")
    want(one.points.ndim == 2 and one.points.shape[1] == d, "normal events")
    trees = learnt.model.trees
    size = len(trees.value)
    nodes = (trees.value, trees.feature, trees.threshold, trees.missing_left, trees.left, trees.right, trees.leaf)
    want(all(part.shape == (size,) for part in nodes) and math.isfinite(trees.baseline), "trees")
    first = trees.first
    want(first.ndim == 1 and len(first) >= 1 and first[0] == 0 and first[-1] == size, "trees")
    want(np.all(np.diff(first) > 0) and np.all(np.isfinite(trees.value)), "trees")
    inner = np.flatnonzero(~trees.leaf)
    tree = np.searchsorted(first, inner, side="right") - 1
    at, end = inner - first[tree], np.diff(first)[tree]
    for child in (trees.left[inner], trees.right[inner]):
        # Children stand behind their node: every walk ends, inside its tree.
        want(np.all(child > at) and np.all(child < end), "trees")
    want(np.all((trees.feature[inner] >= 0) & (trees.feature[inner] < d)), "trees")
    want(len(learnt.calibrations), "sets of markers")
    for pattern, calibration in learnt.calibrations.items():
        densities, k = learnt.model.densities[pattern], len(pattern)
        want(k and len(set(pattern)) == k and min(pattern) >= 0 and max(pattern) < d, "sets of markers")
        want(densities.centre.shape == (k,) and densities.scale.shape == (k,), "densities")
        want(np.all(np.isfinite(densities.centre)) and np.all(densities.scale > 0), "densities")
        for mixture in (densities.normal, densities.blast):
            m = mixture.weight.size
            want(m and mixture.weight.shape == (m,) and mixture.mean.shape == (m, k), "densities")
            want(mixture.covariance.shape == (m, k, k), "densities")
            # Fails here for what is no covariance, and not in the middle of a search.
            np.linalg.cholesky(mixture.covariance)
        abundances = densities.abundances
        want(
            abundances.ndim == 2 and abundances.shape[0] and abundances.shape[1] == densities.normal.components,
            "densities",
        )
        knots = calibration.knots
        want(knots.ndim == 1 and knots.size and calibration.ratio.shape == knots.shape, "calibrations")
        want(np.all(np.diff(knots) > 0) and np.all(np.isfinite(calibration.ratio)), "calibrations")
    judge = learnt.judge
    for part in (judge.centre, judge.scale, judge.weight):
        want(part.shape == (len(FEATURES),) and np.all(np.isfinite(part)), "judge of groups")
    want(np.all(judge.scale > 0) and 0.0 <= judge.review <= judge.accept <= 1.0, "judge of groups")
    want(math.isfinite(judge.intercept) and judge.relative_error >= 0.0, "judge of groups")


def _read(data: bytes) -> Reference:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
            raise ValueError(f"unpacks to more than {_MOST_BYTES} bytes")
        head = json.loads(archive.read("reference.json"))
        if head["format"] != FORMAT:
            raise ValueError(f"format {head['format']}")
        a = {
            info.filename.removesuffix(".npy"): _array(archive.read(info))
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
    trees = Trees(
        baseline=float(head["baseline"]),
        first=a["trees.first"],
        value=a["trees.value"],
        feature=a["trees.feature"],
        threshold=a["trees.threshold"],
        missing_left=a["trees.missing_left"],
        left=a["trees.left"],
        right=a["trees.right"],
        leaf=a["trees.leaf"],
    )
    densities, calibrations = {}, {}
    for i, listed in enumerate(head["patterns"]):
        pattern = tuple(int(f) for f in listed)

        def mixture(kind: str, i: int = i) -> Mixture:
            return Mixture(
                weight=a[f"{i}.{kind}.weight"], mean=a[f"{i}.{kind}.mean"], covariance=a[f"{i}.{kind}.covariance"]
            )

        densities[pattern] = Densities(
            features=pattern,
            centre=a[f"{i}.centre"],
            scale=a[f"{i}.scale"],
            normal=mixture("normal"),
            blast=mixture("blast"),
            abundances=a[f"{i}.abundances"],
        )
        calibrations[pattern] = Calibration(knots=a[f"{i}.knots"], ratio=a[f"{i}.ratio"])
    intercept, accept, review, error = (float(v) for v in head["judge"])
    return Reference(
        name=str(head["name"]),
        template=str(head["template"]),
        template_version=str(head["template_version"]),
        population=str(head["population"]),
        optional=tuple(str(m) for m in head["optional"]),
        scatter=tuple(str(m) for m in head["scatter"]),
        controls=tuple(
            ControlRange(population=str(p), marker=str(m), median=float(v), sd=float(s), marrows=int(n))
            for p, m, v, s, n in head["controls"]
        ),
        simulated=bool(head["simulated"]),
        normals=int(head["normals"]),
        diagnoses=int(head["diagnoses"]),
        inputs=tuple(str(one) for one in head["inputs"]),
        seed=int(head["seed"]),
        software=str(head["software"]),
        trials={str(k): float(v) for k, v in head["trials"].items()},
        points=a["points"],
        learnt=Learnt(
            features=tuple(str(m) for m in head["features"]),
            model=ScoreModel(trees=trees, densities=densities),
            calibrations=calibrations,
            judge=Judge(
                centre=a["judge.centre"],
                scale=a["judge.scale"],
                weight=a["judge.weight"],
                intercept=intercept,
                accept=accept,
                review=review,
                relative_error=error,
            ),
        ),
        digest=hashlib.sha256(data).hexdigest(),
    )
