"""The simulator must not be too easy: simple detectors rank blasts well, and still fail on hard cases."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numpy.typing import NDArray

from flowmrd.simulation import ChannelSet, Parameters, PhenotypeDraw, Simulated, simulate_marrow

MARKERS = ("CD45", "CD19", "CD10", "CD20", "CD34", "CD38", "CD58", "CD66c+CD123", "CD22", "CD24")
PATIENTS = 5

Scores = dict[str, list[float]]


def best_f1(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order])
    called = np.arange(1, len(truth) + 1)
    return float((2 * hits / (called + truth.sum())).max())


@pytest.fixture(scope="module")
def scores() -> dict[PhenotypeDraw, Scores]:
    """Best possible F1 of three detectors on blasts at 1 %, thresholds chosen with the truth in hand."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    def candidates(case: Simulated) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        linear = {marker: case.compensated(marker) for marker in MARKERS}
        wide = (linear["CD19"] > 600) | (linear["CD10"] > 1500) | (linear["CD34"] > 1500)
        kept = case.labels.nucleated & (case.channel("SSC-A") < 35_000) & wide
        return np.arcsinh(np.column_stack([values[kept] for values in linear.values()]) / 150), case.labels.blast[kept]

    def marrow(
        seed: int, *, scenario: str, blasts: float = 0.0, draw: PhenotypeDraw = PhenotypeDraw.RANDOM
    ) -> Simulated:
        parameters = Parameters(
            events=20_000, scenario=scenario, blasts=blasts, phenotype=draw, channels=ChannelSet.COMPACT
        )
        return simulate_marrow(parameters, seed)

    result: dict[PhenotypeDraw, Scores] = {}
    with threadpool_limits(int(os.environ.get("OMP_NUM_THREADS", "1"))):
        scenarios = ("normal", "regenerating", "recovery", "regenerating", "aplasia")
        normals = np.vstack([candidates(marrow(50 + i, scenario=s))[0] for i, s in enumerate(scenarios)])
        others = [candidates(marrow(200 + i, scenario="induction", blasts=0.02)) for i in range(12)]
        blasts = np.vstack([events[truth] for events, truth in others])
        neighbours = NearestNeighbors(n_neighbors=10).fit(normals)
        model = HistGradientBoostingClassifier(max_iter=30, random_state=0).fit(
            np.vstack([normals, blasts]), np.repeat([0, 1], [len(normals), len(blasts)])
        )
        for draw in (PhenotypeDraw.RANDOM, PhenotypeDraw.HARD):
            result[draw] = {"neighbours": [], "contour": [], "supervised": []}
            for patient in range(PATIENTS):
                events, truth = candidates(marrow(700 + patient, scenario="regenerating", blasts=0.01, draw=draw))
                result[draw]["neighbours"].append(best_f1(truth, neighbours.kneighbors(events)[0].mean(axis=1)))
                result[draw]["supervised"].append(best_f1(truth, model.predict_proba(events)[:, 1]))
                result[draw]["contour"].append(max(_contours(normals, events, truth)))
    return result


def _contours(normals: NDArray[np.float64], events: NDArray[np.float64], truth: NDArray[np.bool_]) -> list[float]:
    found = []
    for a in range(len(MARKERS)):
        for b in range(a):
            density, *edges = np.histogram2d(normals[:, a], normals[:, b], bins=30)
            cells = [np.searchsorted(edge, events[:, c]) - 1 for edge, c in zip(edges, (a, b), strict=True)]
            outside = np.any([(cell < 0) | (cell >= 30) for cell in cells], axis=0)
            inside = density[tuple(np.clip(cell, 0, 29) for cell in cells)]
            found.append(best_f1(truth, -np.where(outside, 0.0, inside)))
    return found


def test_most_patients_can_be_found_by_some_detector(scores: dict[PhenotypeDraw, Scores]) -> None:
    best = np.max(list(scores[PhenotypeDraw.RANDOM].values()), axis=0)
    assert np.median(best) > 0.8


def test_no_detector_separates_all_patients_perfectly(scores: dict[PhenotypeDraw, Scores]) -> None:
    for name, values in scores[PhenotypeDraw.RANDOM].items():
        assert min(values) < 0.95, name


def test_hard_patients_stay_hard_for_every_detector(scores: dict[PhenotypeDraw, Scores]) -> None:
    for name, values in scores[PhenotypeDraw.HARD].items():
        assert np.median(values) < 0.8, name
        assert np.median(values) < np.median(scores[PhenotypeDraw.RANDOM][name]), name
