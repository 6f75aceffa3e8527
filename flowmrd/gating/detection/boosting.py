"""Boosted trees kept as plain arrays: fitted by scikit-learn, stored without code, evaluated by its own predictor.

A fitted estimator can only be stored by pickling, and a pickle runs code when it is read. The trees themselves are one
structured array each; they are written as numbers and handed back to scikit-learn's predictor, or walked here where
this version of it has another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_FIELDS = ("value", "feature", "threshold", "missing_left", "left", "right", "leaf")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trees:
    """Boosted trees: node arrays joined end to end, the first node of each tree, and the score before any tree."""

    baseline: float
    first: NDArray[np.int64]
    value: F64
    feature: NDArray[np.int32]
    threshold: F64
    missing_left: NDArray[np.bool_]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    leaf: NDArray[np.bool_]


def fit_trees(x: F32, positive: NDArray[np.bool_], *, iterations: int, seed: int, weight: F64 | None = None) -> Trees:
    """Fit boosted trees that tell positives; missing values are NaN, `weight` is what each event counts."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        max_iter=iterations,
        learning_rate=0.08,
        max_leaf_nodes=31,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=seed,
    )
    model.fit(x, positive, sample_weight=weight)
    nodes = [stage[0].nodes for stage in model._predictors]  # noqa: SLF001 - see the module's first lines
    first = np.cumsum([0, *(len(one) for one in nodes)])
    joined = np.concatenate(nodes)
    return Trees(
        baseline=float(np.ravel(model._baseline_prediction)[0]),  # noqa: SLF001
        first=first.astype(np.int64),
        value=joined["value"].astype(np.float64),
        feature=joined["feature_idx"].astype(np.int32),
        threshold=joined["num_threshold"].astype(np.float64),
        missing_left=joined["missing_go_to_left"].astype(np.bool_),
        left=joined["left"].astype(np.int32),
        right=joined["right"].astype(np.int32),
        leaf=joined["is_leaf"].astype(np.bool_),
    )


def score(trees: Trees, x: F32) -> F64:
    """Return the log odds of being positive, (n,); the same to rounding by either way of walking the trees."""
    compiled = _compiled(trees)
    if compiled is None:
        return walk(trees, x)
    total = np.full(len(x), trees.baseline)
    values = np.ascontiguousarray(x, np.float64)
    bitsets = np.zeros((0, 8), np.uint32)
    mapped = np.zeros(x.shape[1], np.uint32)
    for tree in compiled:
        total += tree.predict(values, bitsets, mapped, 1)
    return total


def _compiled(trees: Trees) -> list[Any] | None:
    try:
        from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE
        from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor
    except ImportError:
        return None
    needed = {"value", "feature_idx", "num_threshold", "missing_go_to_left", "left", "right", "is_leaf"}
    if not needed <= set(PREDICTOR_RECORD_DTYPE.names or ()):
        return None
    nodes = np.zeros(len(trees.value), PREDICTOR_RECORD_DTYPE)
    nodes["value"], nodes["feature_idx"], nodes["num_threshold"] = trees.value, trees.feature, trees.threshold
    nodes["missing_go_to_left"], nodes["left"], nodes["right"] = trees.missing_left, trees.left, trees.right
    nodes["is_leaf"] = trees.leaf
    empty = np.zeros((0, 8), np.uint32)
    return [
        TreePredictor(nodes[start:end].copy(), empty, empty)
        for start, end in zip(trees.first[:-1], trees.first[1:], strict=True)
    ]


def walk(trees: Trees, x: F32) -> F64:
    """Return the log odds by following every tree in numpy (slow; the reference for `score`)."""
    total = np.full(len(x), trees.baseline)
    for start in trees.first[:-1]:
        at = np.full(len(x), start)
        while True:
            rows = np.flatnonzero(~trees.leaf[at])
            if not rows.size:
                break
            node = at[rows]
            seen = x[rows, trees.feature[node]].astype(np.float64)
            left = np.where(np.isnan(seen), trees.missing_left[node], seen <= trees.threshold[node])
            at[rows] = start + np.where(left, trees.left[node], trees.right[node])
        total += trees.value[at]
    return total
