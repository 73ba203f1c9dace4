"""exp and log1p for compiled code that LLVM can vectorise.

For float32 they are polynomials, accurate to about float32's rounding; for float64 they are the functions of libm.
"""

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

# Minimax coefficients of exp(r) for |r| <= ln(2) / 2, starting with that of r^2 (Cephes, expf)
_EXP = (5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_LOWEST, _HIGHEST = -87.0, 88.0  # arguments are clamped here, where exp is almost the smallest and largest float32


@intrinsic  # type: ignore[untyped-decorator]
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    """Return the float32 that has the bits of an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


def exp(x: float) -> float:
    """Return e to the power of x; compiled code only."""
    raise NotImplementedError("compiled code only")


def log1p(x: float) -> float:
    """Return log(1 + x) for x from 0 to 1; compiled code only."""
    raise NotImplementedError("compiled code only")


@overload(exp, inline="always")  # type: ignore[untyped-decorator]
def _exp(x):  # type: ignore[no-untyped-def]
    if x != types.float32:
        return lambda x: math.exp(x)
    c0, c1, c2, c3, c4, c5 = (np.float32(c) for c in _EXP)
    log2_e, high, low = np.float32(_LOG2_E), np.float32(_LN2_HIGH), np.float32(_LN2_LOW)
    lowest, highest, half, one = np.float32(_LOWEST), np.float32(_HIGHEST), np.float32(0.5), np.float32(1)

    def polynomial(x):  # type: ignore[no-untyped-def]
        x = min(max(x, lowest), highest)
        k = np.floor(x * log2_e + half)
        r = (x - k * high) - k * low
        p = ((((c5 * r + c4) * r + c3) * r + c2) * r + c1) * r + c0
        return ((p * r) * r + r + one) * _float_of_bits((np.int32(k) + np.int32(127)) << np.int32(23))

    return polynomial


@overload(log1p, inline="always")  # type: ignore[untyped-decorator]
def _log1p(x):  # type: ignore[no-untyped-def]
    if x != types.float32:
        return lambda x: math.log1p(x)
    c3, c5, c7, c9, c11, c13, c15 = (np.float32(1 / odd) for odd in (3, 5, 7, 9, 11, 13, 15))
    one, two = np.float32(1), np.float32(2)

    def series(x):  # type: ignore[no-untyped-def]  # log(1 + x) = 2 artanh(s), s = x / (2 + x) <= 1/3
        s = x / (two + x)
        q = s * s
        p = ((((((c15 * q + c13) * q + c11) * q + c9) * q + c7) * q + c5) * q + c3) * q + one
        return two * s * p

    return series
