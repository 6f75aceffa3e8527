"""Display scales: logicle, hyperlog, arcsinh, linear, log as Gating-ML 2.0 defines them, and FlowJo's biex; 0..1.

A scale maps channel values (raw or compensated) to scaled units, where 0…1 is the drawn range: `T`, the top of the
scale, always becomes 1. Gates live in scaled units, axis labels in channel values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]

# Events per pass: the five work buffers stay in the second-level cache, and each is small enough for the allocator to
# hand out again without asking the kernel (page faults cost more than the arithmetic).
_CHUNK = 8192
# A segment of the logicle table is what shares the top 32-15 bits of a float32: 256 segments an octave, where the cubic
# errs by less than 2e-12 (measured against flowutils in tests/unit/cytometry/test_transforms.py).
_SHIFT = 15
_LN10 = math.log(10.0)
# M - 2 W of decimal fractions can come out smaller than the same number written as A.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """`(x + A) / (T + A)`: A channel values below zero are still on the scale.

    Parameters
    ----------
    T : channel value that becomes 1
    A : channel value below zero that becomes 0 (as a positive number), 0 <= A <= T

    Examples
    --------
    >>> float(Linear(T=1000.0).forward(250.0))
    0.25

    References
    ----------
    Spidlen J et al., Gating-ML 2.0, section 6.1 (flin).
    """

    kind: ClassVar[str] = "linear"
    T: float
    A: float = 0.0

    def __post_init__(self) -> None:
        _check_finite(self)
        _require(self.T > 0, self, "T > 0", self.T)
        _require(0 <= self.A <= self.T, self, "0 <= A <= T", self.A)

    def forward(self, x: ArrayLike, out: Floats | None = None) -> Floats:
        """Channel values to scaled units; `out` may be `x` itself."""
        y = np.add(np.asarray(x, np.float64), self.A, out=out)
        return np.divide(y, self.T + self.A, out=out)

    def inverse(self, y: ArrayLike) -> Floats:
        """Scaled units to channel values."""
        return np.asarray(y, np.float64) * (self.T + self.A) - self.A

    def params(self) -> dict[str, float | str]:
        """Return the kind and its parameters, as `make_transform` takes them."""
        return _params(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """`log10(x / T) / M + 1`: M decades below T become 0.

    Values of zero and below have no logarithm; they become -inf, which is below every finite edge of a gate.

    Parameters
    ----------
    T : channel value that becomes 1
    M : decades on the scale

    Examples
    --------
    >>> float(Log(T=10000.0, M=4.0).forward(100.0))
    0.5

    References
    ----------
    Spidlen J et al., Gating-ML 2.0, section 6.2 (flog).
    """

    kind: ClassVar[str] = "log"
    T: float
    M: float

    def __post_init__(self) -> None:
        _check_finite(self)
        _require(self.T > 0, self, "T > 0", self.T)
        _require(self.M > 0, self, "M > 0", self.M)

    def forward(self, x: ArrayLike, out: Floats | None = None) -> Floats:
        """Channel values to scaled units; `out` may be `x` itself."""
        # A clip at zero turns negatives into the -inf that zero gives, and lets NaN through.
        y = np.maximum(np.asarray(x, np.float64), 0.0, out=out)
        y = np.divide(y, self.T, out=out)
        with np.errstate(divide="ignore"):
            y = np.log10(y, out=out)
        y = np.divide(y, self.M, out=out)
        return np.add(y, 1.0, out=out)

    def inverse(self, y: ArrayLike) -> Floats:
        """Scaled units to channel values."""
        return np.asarray(self.T * np.power(10.0, (np.asarray(y, np.float64) - 1.0) * self.M))

    def params(self) -> dict[str, float | str]:
        """Return the kind and its parameters, as `make_transform` takes them."""
        return _params(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arcsinh:
    """`(asinh(x sinh(M ln 10) / T) + A ln 10) / ((M + A) ln 10)`: linear around zero, logarithmic above.

    Parameters
    ----------
    T : channel value that becomes 1
    M : decades above the linear part
    A : additional decades of negative values on the scale

    Examples
    --------
    >>> float(Arcsinh(T=1000.0, M=4.0, A=1.0).forward(0.0).round(9))
    0.2

    References
    ----------
    Spidlen J et al., Gating-ML 2.0, section 6.3 (fasinh).
    """

    kind: ClassVar[str] = "arcsinh"
    T: float
    M: float
    A: float = 0.0

    def __post_init__(self) -> None:
        _check_finite(self)
        _require(self.T > 0, self, "T > 0", self.T)
        _require(self.M > 0, self, "M > 0", self.M)
        _require(0 <= self.A <= self.M, self, "0 <= A <= M", self.A)

    def forward(self, x: ArrayLike, out: Floats | None = None) -> Floats:
        """Channel values to scaled units; `out` may be `x` itself."""
        y = np.multiply(np.asarray(x, np.float64), math.sinh(self.M * _LN10) / self.T, out=out)
        y = np.arcsinh(y, out=out)
        y = np.divide(y, (self.M + self.A) * _LN10, out=out)
        # Added last, so that zero lies exactly at A / (M + A).
        return np.add(y, self.A / (self.M + self.A), out=out)

    def inverse(self, y: ArrayLike) -> Floats:
        """Scaled units to channel values."""
        angle = np.asarray(y, np.float64) * ((self.M + self.A) * _LN10) - self.A * _LN10
        return np.asarray(np.sinh(angle) * (self.T / math.sinh(self.M * _LN10)))

    def params(self) -> dict[str, float | str]:
        """Return the kind and its parameters, as `make_transform` takes them."""
        return _params(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Logicle:
    """The logicle scale, a biexponential that is straight around zero; zero becomes `(A + W) / (M + A)`.

    `forward` reads a table of cubics (7 ns a value, error below 2e-12 scaled units) up to four times T and solves what
    lies beyond exactly; `inverse` is the closed formula.

    Parameters
    ----------
    T : channel value that becomes 1
    W : decades of the straight part, 0 <= W <= M / 2
    M : decades of the whole scale
    A : additional decades of negative values, -W <= A <= M - 2 W

    Examples
    --------
    >>> float(Logicle(T=262144.0, W=0.5, M=4.5).forward(262144.0).round(9))
    1.0

    References
    ----------
    Moore WA, Parks DR. Update for the logicle data scale including operational code implementations.
    Cytometry A 2012;81A:273-277. Spidlen J et al., Gating-ML 2.0, section 6.4.
    """

    kind: ClassVar[str] = "logicle"
    T: float
    W: float
    M: float
    A: float = 0.0
    _curve: _Biexponential = field(init=False, repr=False, compare=False)
    _table: _Table = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_finite(self)
        _require(self.T > 0, self, "T > 0", self.T)
        _require(self.M > 0, self, "M > 0", self.M)
        _require(0 <= self.W <= self.M / 2, self, "0 <= W <= M / 2", self.W)
        _require(-self.W <= self.A <= self.M - 2 * self.W + _ROUNDING, self, "-W <= A <= M - 2 W", self.A)
        curve = _biexponential(T=self.T, W=self.W, M=self.M, A=self.A)
        object.__setattr__(self, "_curve", curve)
        object.__setattr__(self, "_table", _tabulate(curve, top=4.0 * self.T))

    def forward(self, x: ArrayLike, out: Floats | None = None) -> Floats:
        """Channel values to scaled units; `out` (C-contiguous, same shape) may be `x` itself."""
        values = np.asarray(x)
        if values.dtype.kind != "f":
            values = values.astype(np.float64)
        if out is None:
            out = np.empty(values.shape, np.float64)
        if out.shape != values.shape or not out.flags.c_contiguous:
            raise ValueError(f"out must be C-contiguous of shape {values.shape}; got {out.shape}")
        _look_up(self._table, self._curve, values.reshape(-1), out.reshape(-1))
        return out

    def inverse(self, y: ArrayLike) -> Floats:
        """Scaled units to channel values."""
        return _biexponential_value(self._curve, np.asarray(y, np.float64))

    def params(self) -> dict[str, float | str]:
        """Return the kind and its parameters, as `make_transform` takes them."""
        return _params(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperlog:
    """The hyperlog scale: a logarithm plus a straight line around zero; zero becomes `(A + W) / (M + A)`.

    `inverse` is the closed formula, `forward` solves it to the last bits.

    Parameters
    ----------
    T : channel value that becomes 1
    W : decades of the straight part, 0 < W <= M / 2
    M : decades of the whole scale
    A : additional decades of negative values, -W <= A <= M - 2 W

    Examples
    --------
    >>> float(Hyperlog(T=10000.0, W=1.0, M=4.5).forward(10000.0).round(9))
    1.0

    References
    ----------
    Bagwell CB. Hyperlog: a flexible log-like transform for negative, zero, and positive valued data.
    Cytometry A 2005;64A:34-42. Spidlen J et al., Gating-ML 2.0, section 6.5.
    """

    kind: ClassVar[str] = "hyperlog"
    T: float
    W: float
    M: float
    A: float = 0.0
    _curve: _LogAndLine = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_finite(self)
        _require(self.T > 0, self, "T > 0", self.T)
        _require(self.M > 0, self, "M > 0", self.M)
        _require(0 < self.W <= self.M / 2, self, "0 < W <= M / 2", self.W)
        _require(-self.W <= self.A <= self.M - 2 * self.W + _ROUNDING, self, "-W <= A <= M - 2 W", self.A)
        object.__setattr__(self, "_curve", _log_and_line(T=self.T, W=self.W, M=self.M, A=self.A))

    def forward(self, x: ArrayLike, out: Floats | None = None) -> Floats:
        """Channel values to scaled units; `out` may be `x` itself."""
        values = np.asarray(x, np.float64)
        if out is None:
            out = np.empty(values.shape)
        flat, result = values.reshape(-1), out.reshape(-1)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            result[start : start + _CHUNK] = _hyperlog_position(self._curve, part)
        return out

    def inverse(self, y: ArrayLike) -> Floats:
        """Scaled units to channel values."""
        curve, scaled = self._curve, np.asarray(y, np.float64)
        below = scaled < curve.x1
        z = np.where(below, 2 * curve.x1 - scaled, scaled)
        x = curve.a * np.exp(curve.b * z) + curve.c * z - curve.f
        return np.where(below, -x, x)

    def params(self) -> dict[str, float | str]:
        """Return the kind and its parameters, as `make_transform` takes them."""
        return _params(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Biex:
    """FlowJo's biexponential: a table of 4097 channels, straight between them and beyond both ends.

    Channel k of n holds the value `T / exp(P) * (exp(k P / (n + 1)) - s exp(-k N / (n + 1)) - c)`, where P is the
    positive range in natural logarithms, N the root of `2 ln(N / P) + w (P + N) = 0`, and s, c make the curve pass
    through zero with a symmetric slope at the zero channel; below it the table is the mirror image. FlowJo cuts its
    axis off at both ends: that is this scale with `boundMin = 0`, `boundMax = 1`.

    Parameters
    ----------
    T : top of the scale (FlowJo's `maxRange`); the last channel holds a little less
    pos : decades above zero
    neg : extra decades below zero
    width : width basis, a negative number

    Examples
    --------
    >>> round(float(Biex(T=262144.0, pos=4.5, neg=0.0, width=-10.0).forward(0.0)) * 4096)
    455

    References
    ----------
    Parks DR, Roederer M, Moore WA. A new "Logicle" display method avoids deceptive effects of logarithmic scaling for
    low signals and compensated data. Cytometry A 2006;69:541-551. Checked against FlowKit's table in the tests.
    """

    kind: ClassVar[str] = "biex"
    T: float
    pos: float
    neg: float = 0.0
    width: float = -10.0
    _values: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_finite(self)
        _require(self.T > 0, self, "T > 0", self.T)
        _require(self.pos > 0, self, "pos > 0", self.pos)
        _require(self.width < 0, self, "width < 0", self.width)
        _require(self.width > -(10.0 ** min(2 * self.pos, 300.0)), self, "width > -10 ** (2 pos)", self.width)
        values = _biex_table(T=self.T, pos=self.pos, neg=self.neg, width=self.width)
        rising = bool(np.all(np.isfinite(values)) and np.all(np.diff(values) > 0))
        _require(rising, self, "parameters that give a rising curve", self.width)
        object.__setattr__(self, "_values", values)

    @property
    def M(self) -> float:  # noqa: N802 - as the other scales call their decades
        """Decades of the whole scale, as far above zero as it is logarithmic."""
        return _biex_parts(self.pos, self.neg, self.width)[1]

    def forward(self, x: ArrayLike, out: Floats | None = None) -> Floats:
        """Channel values to scaled units; `out` may be `x` itself."""
        x = np.asarray(x, np.float64)
        y = _along(x, self._values, _BIEX_PLACES) / _BIEX_CHANNELS
        if out is None:
            return np.asarray(y)
        out[...] = y
        return out

    def inverse(self, y: ArrayLike) -> Floats:
        """Scaled units to channel values."""
        return _along(np.asarray(y, np.float64) * _BIEX_CHANNELS, _BIEX_PLACES, self._values)

    def params(self) -> dict[str, float | str]:
        """Return the kind and its parameters, as `make_transform` takes them."""
        return _params(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """A scale cut off at one or both ends: `max(min(scale(x), high), low)`.

    Parameters
    ----------
    scale : the scale that is cut off
    low, high : ends in scaled units; infinite where the scale is open

    References
    ----------
    Spidlen J et al., Gating-ML 2.0, section 6 (boundMin and boundMax).
    """

    scale: Logicle | Hyperlog | Arcsinh | Linear | Log | Biex
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if math.isnan(self.low) or math.isnan(self.high):
            raise ValueError(f"transform {self.kind}: expected numbers as bounds; got {self.low}, {self.high}")

    @property
    def kind(self) -> str:
        """Kind of the scale that is cut off."""
        return self.scale.kind

    def forward(self, x: ArrayLike, out: Floats | None = None) -> Floats:
        """Channel values to scaled units; NaN stays NaN."""
        y = self.scale.forward(x, out)
        return np.asarray(np.maximum(np.minimum(y, self.high, out=out), self.low, out=out))

    def inverse(self, y: ArrayLike) -> Floats:
        """Scaled units to channel values; NaN beyond the ends, which no channel value reaches."""
        scaled = np.asarray(y, np.float64)
        return np.where((scaled >= self.low) & (scaled <= self.high), self.scale.inverse(scaled), math.nan)

    def params(self) -> dict[str, float | str]:
        """Return the kind and its parameters, as `make_transform` takes them."""
        ends = {"boundMin": self.low, "boundMax": self.high}
        return {**self.scale.params(), **{name: end for name, end in ends.items() if math.isfinite(end)}}


Transform: TypeAlias = Logicle | Hyperlog | Arcsinh | Linear | Log | Biex | Bounded
_Open: TypeAlias = Logicle | Hyperlog | Arcsinh | Linear | Log | Biex
_KINDS: Mapping[str, type[_Open]] = {kind.kind: kind for kind in (Logicle, Hyperlog, Arcsinh, Linear, Log, Biex)}


def make_transform(params: Mapping[str, float | str]) -> Transform:
    """Build the transform that `params` describes; the inverse of `Transform.params`.

    Parameters
    ----------
    params : `kind` (logicle, hyperlog, arcsinh, linear, log, biex) and that kind's parameters in channel values and
        decades; `boundMin` and `boundMax`, in scaled units, cut the scale off

    Raises
    ------
    ValueError
        unknown kind or parameter, a missing parameter, or a value outside its range; says what was expected and got

    Examples
    --------
    >>> make_transform({"kind": "linear", "T": 1024}).params()
    {'kind': 'linear', 'T': 1024.0, 'A': 0.0}
    """
    kind = params.get("kind")
    if kind not in _KINDS:
        raise ValueError(f"transform kind: expected one of {', '.join(_KINDS)}; got {kind!r}")
    factory = _KINDS[str(kind)]
    ends = {name: _as_number(str(kind), name, params[name]) for name in ("boundMin", "boundMax") if name in params}
    if ends:
        inner = make_transform({name: value for name, value in params.items() if name not in ends})
        assert not isinstance(inner, Bounded)
        return Bounded(scale=inner, low=ends.get("boundMin", -math.inf), high=ends.get("boundMax", math.inf))
    known = {item.name: item.default is MISSING for item in fields(factory) if item.init}
    if unknown := sorted(set(params) - set(known) - {"kind"}):
        raise ValueError(f"transform {kind}: expected parameters {', '.join(known)}; got {', '.join(unknown)}")
    if missing := [name for name, required in known.items() if required and name not in params]:
        raise ValueError(f"transform {kind}: expected parameters {', '.join(known)}; missing {', '.join(missing)}")
    values: dict[str, Any] = {}
    for name in known:
        if name in params:
            values[name] = _as_number(str(kind), name, params[name])
    return factory(**values)


def _as_number(kind: str, name: str, value: float | str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"transform {kind}: expected {name} as a number; got {value!r}")  # noqa: TRY004
    return float(value)


def ticks(transform: Transform, lo: float, hi: float) -> tuple[list[tuple[float, str]], list[float]]:
    """Where an axis gets its labels: positions in scaled units, labels in channel values.

    Parameters
    ----------
    transform : scale of the axis
    lo, hi : ends of the axis, scaled units

    Returns
    -------
    major ticks as (position, label), ascending, and the positions of the minor ticks; all inside lo…hi

    Examples
    --------
    >>> [label for _, label in ticks(Logicle(T=262144.0, W=0.5, M=4.5), 0.0, 1.0)[0]]
    ['−10²', '0', '10²', '10³', '10⁴', '10⁵']
    """
    if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
        raise ValueError(f"axis: expected finite lo < hi; got {lo}, {hi}")
    if isinstance(transform, Bounded):
        return ticks(transform.scale, lo, hi)
    if isinstance(transform, Linear):
        return _linear_ticks(transform, lo, hi)
    return _decade_ticks(transform, lo, hi)


# ---------------------------------------------------------------------------------------------------------- parameters


def _params(transform: _Open) -> dict[str, float | str]:
    values = {item.name: float(getattr(transform, item.name)) for item in fields(transform) if item.init}
    return {"kind": transform.kind, **values}


def _check_finite(transform: _Open) -> None:
    for item in fields(transform):
        if item.init:
            value = getattr(transform, item.name)
            _require(math.isfinite(value), transform, f"{item.name} finite", value)


def _require(holds: bool, transform: _Open, expected: str, got: float) -> None:  # noqa: FBT001
    if not holds:
        raise ValueError(f"transform {transform.kind}: expected {expected}; got {got:g}")


# ------------------------------------------------------------------------------------------------------------- logicle


@dataclass(frozen=True, slots=True, kw_only=True)
class _Biexponential:
    """`a exp(b y) - c exp(-d y) + f` for y >= x1, and its mirror image below x1 (where the value is zero)."""

    a: float
    b: float
    c: float
    d: float
    f: float
    x1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Cubics over |x|, found by the top bits of `float32(|x| + offset)`.

    A float's bit pattern is a piecewise linear log2, so equal steps of the index are equal relative steps of
    |x| + offset: the knots are dense where the logicle bends. `c0` … `c3` are the coefficients in |x| - knot.
    """

    offset: float
    first: int
    top: float
    knot: Floats
    c0: Floats
    c1: Floats
    c2: Floats
    c3: Floats


def _biexponential(*, T: float, W: float, M: float, A: float) -> _Biexponential:
    w = W / (M + A)
    x2 = A / (M + A)
    x1 = (A + W) / (M + A)
    x0 = x2 + 2 * w
    b = (M + A) * _LN10
    d = _solve_d(b, w)
    c_over_a = math.exp(x0 * (b + d))
    minus_f_over_a = math.exp(b * x1) - c_over_a * math.exp(-d * x1)
    a = T / ((math.exp(b) - minus_f_over_a) - c_over_a * math.exp(-d))
    return _Biexponential(a=a, b=b, c=c_over_a * a, d=d, f=-minus_f_over_a * a, x1=x1)


def _solve_d(b: float, w: float) -> float:
    """Root of `2 ln(d / b) + w (b + d)` in (0, b], by Newton kept inside a shrinking bracket."""
    if w == 0.0:
        return b
    low, high, d = 0.0, b, b / 2
    for _ in range(200):
        value = 2 * math.log(d / b) + w * (b + d)
        low, high = (d, high) if value < 0 else (low, d)
        step = d - value / (2 / d + w)
        nearer = step if low < step < high else (low + high) / 2
        if abs(nearer - d) <= 1e-16 * b:
            return nearer
        d = nearer
    return d


def _biexponential_value(curve: _Biexponential, y: Floats) -> Floats:
    below = y < curve.x1
    z = np.where(below, 2 * curve.x1 - y, y)
    x = curve.a * np.exp(curve.b * z) - curve.c * np.exp(-curve.d * z) + curve.f
    return np.where(below, -x, x)


def _solve(curve: _Biexponential, magnitude: Floats) -> Floats:
    """Position of each |x|, to the last bits. The curve rises and is convex above x1, so Newton cannot fail."""
    with np.errstate(divide="ignore"):
        y = np.maximum(np.log(magnitude / curve.a) / curve.b, curve.x1)
    for _ in range(40):
        rise, fall = curve.a * np.exp(curve.b * y), curve.c * np.exp(-curve.d * y)
        step = (rise - fall + curve.f - magnitude) / (curve.b * rise + curve.d * fall)
        y = np.maximum(y - step, curve.x1)
        if np.max(np.abs(step), initial=0.0) < 1e-15:
            break
    return y


def _tabulate(curve: _Biexponential, *, top: float) -> _Table:
    # The slope at zero over b is the width, in channel values, of the part that is nearly straight: below it wider
    # segments lose nothing. A power of two keeps the segments of one octave equal.
    slope = curve.a * curve.b * math.exp(curve.b * curve.x1) + curve.c * curve.d * math.exp(-curve.d * curve.x1)
    offset = 2.0 ** math.floor(math.log2(slope / curve.b))
    first, last = (int(np.float32(value).view(np.int32)) >> _SHIFT for value in (offset, offset + top))
    bits = np.arange(first, last + 2, dtype=np.int32) << _SHIFT
    knot = bits.view(np.float32).astype(np.float64) - offset
    y = _solve(curve, knot)
    derivative = 1.0 / (curve.a * curve.b * np.exp(curve.b * y) + curve.c * curve.d * np.exp(-curve.d * y))
    width = np.diff(knot)
    mean = np.diff(y) / width
    # Zero itself lies exactly at x1, on which gates are drawn; the solver leaves its last bit.
    y[0] = curve.x1
    left, right = derivative[:-1], derivative[1:]
    table = _Table(
        offset=offset,
        first=first,
        top=float(knot[-1]),
        knot=knot[:-1],
        c0=y[:-1] - curve.x1,
        c1=left.copy(),
        c2=(3 * mean - 2 * left - right) / width,
        c3=(left + right - 2 * mean) / width**2,
    )
    for name in ("knot", "c0", "c1", "c2", "c3"):
        getattr(table, name).flags.writeable = False
    return table


def _look_up(table: _Table, curve: _Biexponential, x: NDArray[Any], out: Floats) -> None:
    size = min(_CHUNK, x.size)
    magnitude, result, part = np.empty(size), np.empty(size), np.empty(size)
    shifted, index = np.empty(size, np.float32), np.empty(size, np.int64)
    for start in range(0, x.size, _CHUNK):
        values = x[start : start + _CHUNK]
        n = values.size
        v, r, p, s, i = magnitude[:n], result[:n], part[:n], shifted[:n], index[:n]
        np.abs(values, out=v)
        s[...] = v
        s += np.float32(table.offset)
        np.right_shift(s.view(np.int32), _SHIFT, out=i)
        i -= table.first
        np.take(table.knot, i, out=p, mode="clip")
        v -= p
        np.take(table.c3, i, out=r, mode="clip")
        for coefficients in (table.c2, table.c1, table.c0):
            r *= v
            np.take(coefficients, i, out=p, mode="clip")
            r += p
        # The index of what lies beyond the table (infinities and NaN too) is larger than the last segment's.
        if i.max() >= table.knot.size:
            beyond = np.flatnonzero(i >= table.knot.size)
            far = np.abs(values[beyond]).astype(np.float64)
            finite = np.isfinite(far)
            exact = far.copy()  # infinite stays infinite, NaN stays NaN
            exact[finite] = _solve(curve, far[finite]) - curve.x1
            r[beyond] = exact
        np.copysign(r, values, out=r)
        np.add(r, curve.x1, out=out[start : start + n])


# ------------------------------------------------------------------------------------------------------------ hyperlog


@dataclass(frozen=True, slots=True, kw_only=True)
class _LogAndLine:
    """`a exp(b y) + c y - f` for y >= x1, and its mirror image below x1 (where the value is zero)."""

    a: float
    b: float
    c: float
    f: float
    x1: float


def _log_and_line(*, T: float, W: float, M: float, A: float) -> _LogAndLine:
    w = W / (M + A)
    x2 = A / (M + A)
    x1 = (A + W) / (M + A)
    x0 = x2 + 2 * w
    b = (M + A) * _LN10
    c_over_a = math.exp(b * x0) / w
    f_over_a = math.exp(b * x1) + c_over_a * x1
    a = T / (math.exp(b) + c_over_a - f_over_a)
    return _LogAndLine(a=a, b=b, c=c_over_a * a, f=f_over_a * a, x1=x1)


def _hyperlog_position(curve: _LogAndLine, x: Floats) -> Floats:
    """Solve for the position of each value. The curve rises and is convex above x1, so Newton cannot fail."""
    magnitude = np.abs(x)
    finite = np.isfinite(magnitude)
    wanted = magnitude if finite.all() else np.where(finite, magnitude, 0.0)
    # Both parts alone reach the value later than their sum, so the nearer of the two starts above the root.
    zero = curve.a * math.exp(curve.b * curve.x1)
    y = np.minimum(np.log(wanted / zero + 1.0) / curve.b, wanted / curve.c) + curve.x1
    for _ in range(60):
        rise = curve.a * np.exp(curve.b * y)
        step = (rise + curve.c * y - curve.f - wanted) / (curve.b * rise + curve.c)
        y -= step
        if np.max(np.abs(step), initial=0.0) < 1e-15:
            break
    # Zero itself lies exactly at x1, on which gates are drawn; the solver leaves its last bit.
    y = np.copysign(np.where(wanted == 0.0, 0.0, np.maximum(y - curve.x1, 0.0)), x) + curve.x1
    return y if finite.all() else np.where(finite, y, x)


# ---------------------------------------------------------------------------------------------------------------- biex

_BIEX_CHANNELS = 4096
_BIEX_PLACES = np.arange(_BIEX_CHANNELS + 1, dtype=np.float64)
_BIEX_PLACES.flags.writeable = False


def _biex_parts(pos: float, neg: float, width: float) -> tuple[int, float]:
    """Return the channel of zero, and the decades that the whole axis would span if it were logarithmic."""
    half_width = math.log10(-width) / 2.0
    above, below = pos - half_width, max(neg, 0.0) + half_width
    zero = int(min(int(below * _BIEX_CHANNELS / (below + above)), _BIEX_CHANNELS / 2))
    return zero, below * _BIEX_CHANNELS / zero if zero > 0 else above


def _biex_table(*, T: float, pos: float, neg: float, width: float) -> Floats:
    """Return the value of each channel, (4097,), read-only."""
    half_width = math.log10(-width) / 2.0
    zero, decades = _biex_parts(pos, neg, width)
    share = half_width / decades
    rise = _LN10 * decades
    fall = _solve_d(rise, share) if share > 0 else rise
    k = _BIEX_PLACES / (_BIEX_CHANNELS + 1)
    with np.errstate(all="ignore"):
        middle = np.exp((rise + fall) * (share + (max(neg, 0.0) + half_width) / decades))
        up, down = np.exp(k * rise), np.exp(-k * fall) * middle
        values = T / np.exp(rise) * (up - down - (up[zero] - down[zero]))
    values[:zero] = -values[2 * zero : zero : -1]
    values.flags.writeable = False
    return np.asarray(values)


def _along(x: Floats, places: Floats, values: Floats) -> Floats:
    """Interpolate linearly, and go straight on beyond the ends, where `np.interp` stops."""
    y = np.asarray(np.interp(x, places, values))
    for end, beside, beyond in ((0, 1, x < places[0]), (-1, -2, x > places[-1])):
        if np.any(beyond):
            slope = (values[end] - values[beside]) / (places[end] - places[beside])
            y = np.where(beyond, values[end] + (x - places[end]) * slope, y)
    return y


# --------------------------------------------------------------------------------------------------------------- ticks

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MAJOR_GAP, _MINOR_GAP = 0.045, 0.004  # least distance between ticks, as a share of the axis: labels stay apart


def _decade_ticks(
    transform: Logicle | Hyperlog | Arcsinh | Log | Biex, lo: float, hi: float
) -> tuple[list[tuple[float, str]], list[float]]:
    ends = transform.inverse(np.array([lo, hi]))
    reach = max(abs(float(ends[0])), abs(float(ends[1])))
    signed = not isinstance(transform, Log)
    zero = float(transform.forward(0.0)) if signed else -math.inf
    top = math.floor(math.log10(reach) + 1e-9)
    bottom = top - 9 if signed else math.floor(math.log10(float(ends[0])) + 1e-9)
    gap = _MAJOR_GAP * (hi - lo)
    major: list[tuple[float, str]] = [(zero, "0")] if lo <= zero <= hi else []
    minor: list[float] = []
    for sign in (1, -1) if signed else (1,):
        last = zero
        for exponent in range(bottom, top + 1):
            steps = transform.forward(sign * np.arange(1.0, 10.0) * 10.0**exponent)
            position = float(steps[0])
            if _inside(position, lo, hi) and abs(position - last) >= gap:
                label = ("−" if sign < 0 else "") + f"10{str(exponent).translate(_SUPERSCRIPT)}"
                major.append((position, label))
                last = position
            elif abs(position - zero) >= _MINOR_GAP * (hi - lo) and _inside(position, lo, hi):
                minor.append(position)
            spread = abs(float(steps[-1]) - position)
            if spread >= 8 * _MINOR_GAP * (hi - lo):
                minor.extend(float(step) for step in steps[1:] if _inside(float(step), lo, hi))
    return sorted(major), sorted(minor)


def _linear_ticks(transform: Linear, lo: float, hi: float) -> tuple[list[tuple[float, str]], list[float]]:
    first, last = (float(value) for value in transform.inverse(np.array([lo, hi])))
    raw = (last - first) / 6
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * (1 - 1e-9))
    major, minor = [], []
    fifth = step / 5
    for count in range(math.ceil(first / fifth - 1e-9), math.floor(last / fifth + 1e-9) + 1):
        position = float(transform.forward(count * fifth))
        if count % 5:
            minor.append(position)
        else:
            major.append((position, _number(count // 5 * step)))
    return major, minor


def _inside(position: float, lo: float, hi: float) -> bool:
    return lo - 1e-12 <= position <= hi + 1e-12


def _number(value: float) -> str:
    """Short form of a round number: 50K, 1.5M, 0.2."""
    for limit, suffix in ((1e6, "M"), (1e3, "K")):
        if abs(value) >= limit:
            return f"{value / limit:g}{suffix}".replace("-", "−")
    return f"{value:.10g}".replace("-", "−")
