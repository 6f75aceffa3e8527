"""Events that lie where the subject's own blasts lay at the diagnosis; the search of another population found them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowmrd.errors import GatingError
from flowmrd.gating.gates import Gate
from flowmrd.gating.methods import Found, GateMethod, NotFound, Params
from flowmrd.gating.methods.geometric import Values
from flowmrd.gating.methods.seed_and_grow import Detection

NO_PHENOTYPE = "the subject's earlier blasts are not known"


class SearchOwnParams(Params):
    """What the search of another population of the same parent found by the subject's own phenotype.

    Without such a phenotype (no earlier sample with enough blasts) the population holds nothing.
    """

    population: str


def _no_shape(_markers: tuple[str, ...], _params: object, _found: Found, _values: Values) -> Gate:
    raise GatingError("this method lists events; it has no shape")


def _own(_params: object, found: Found) -> NDArray[np.bool_]:
    assert isinstance(found.extra, Detection)
    if found.extra.own is None:
        raise NotFound(NO_PHENOTYPE)
    mask = np.zeros(len(found.extra.x), np.bool_)
    mask[found.extra.own.members] = True
    return mask


METHODS = (
    GateMethod(
        name="search_own",
        params=SearchOwnParams,
        build=_no_shape,
        borrows=lambda params: (params.population,),
        lists=_own,
        shares=lambda params: params.population,
    ),
)
