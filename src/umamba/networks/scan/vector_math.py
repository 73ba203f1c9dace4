"""Vectors of sixteen numbers for Numba's compiled code, and the functions of them that the CPU kernels need.

Numba leaves vectorisation to LLVM, which misses it in loops over several arrays and uses half of AVX-512's width.
Here a value of the type `Vector` is one LLVM vector, so that each operation is one instruction with AVX-512, two with
AVX2 and four with NEON. The functions `splat`, `load`, `store`, `pick` and `put` address an array by the number of
elements from its first one, in any layout, without a check.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, overload, register_model

LANES = 16

# 2^f = 1 + f (c1 + c2 f + ...) for |f| <= 1/2. float32: minimax of the relative error, 1e-7; float64: Taylor series.
_EXP2_SINGLE = (0.6931469776, 0.2402224209, 0.0555073374, 0.0096715126, 0.0013264727)
_EXP2_DOUBLE = tuple(math.log(2) ** k / math.factorial(k) for k in range(1, 15))
# log(1 + e) = e (c0 + c1 e + ...) for 0 <= e <= 1: minimax of the relative error, 3e-8
_LOG1P = (
    0.9999999699, -0.4999949314, 0.3331909678, -0.2484298203, 0.1910600603,
    -0.1366324424, 0.0782259335, -0.0295052275, 0.0052326915,
)  # fmt: skip
LOG2_E = math.log2(math.e)


class Vector(types.Type):
    """Numba's type of a vector of `LANES` floating-point numbers."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_scalar(fe_type.dtype), LANES))


def _scalar(dtype: Any) -> Any:
    return ir.FloatType() if dtype == types.float32 else ir.DoubleType()


def _integers(dtype: Any) -> Any:
    return ir.VectorType(ir.IntType(dtype.bitwidth), LANES)


def _constant(vector: Any, value: float) -> Any:
    return ir.Constant(vector, [value] * LANES)


def _define(operation: Any, emit: Callable[..., Any]) -> None:
    """Let an operator work on two vectors."""

    class Template(AbstractTemplate):  # type: ignore[misc]
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    infer_global(operation)(Template)
    lower_builtin(operation, Vector, Vector)(lambda context, builder, sig, args: emit(builder, *args))


for _operation, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define(_operation, lambda builder, a, b, name=_name: getattr(builder, name)(a, b))


def _spread(builder: Any, scalar: Any, vector: Any) -> Any:
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), mask)


@intrinsic  # type: ignore[untyped-decorator]
def splat(typing_context: Any, number: Any) -> Any:
    """Return a vector with the same number in each lane."""
    return Vector(number)(number), lambda context, builder, sig, args: _spread(
        builder, args[0], context.get_value_type(sig.return_type)
    )


@intrinsic  # type: ignore[untyped-decorator]
def filled(typing_context: Any, like: Any, number: Any) -> Any:
    """Return a vector of the type of another one with the same number in each lane."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        scalar = context.cast(builder, args[1], sig.args[1], like.dtype)
        return _spread(builder, scalar, args[0].type)

    return like(like, number), generate


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, pointee: Any) -> Any:
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), pointee.as_pointer())


@intrinsic  # type: ignore[untyped-decorator]
def load(typing_context: Any, array: Any, offset: Any) -> Any:
    """Return the `LANES` elements of an array from an offset."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = context.get_value_type(sig.return_type)
        return builder.load(_address(context, builder, sig.args[0], *args, vector), align=array.dtype.bitwidth // 8)

    return Vector(array.dtype)(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing_context: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Write a vector to the `LANES` elements of an array from an offset."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = _address(context, builder, sig.args[0], *args[:2], args[2].type)
        builder.store(args[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic  # type: ignore[untyped-decorator]
def pick(typing_context: Any, array: Any, offset: Any) -> Any:
    """Return the element of an array at an offset."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], *args, _scalar(array.dtype)))

    return array.dtype(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def put(typing_context: Any, array: Any, offset: Any, number: Any) -> Any:
    """Write the element of an array at an offset."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, sig.args[0], *args[:2], args[2].type))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), generate


@intrinsic  # type: ignore[untyped-decorator]
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once where the machine can."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        name = f"llvm.fmuladd.v{LANES}f{a.dtype.bitwidth}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(function, args)

    return a(a, b, c), generate


@intrinsic  # type: ignore[untyped-decorator]
def larger(typing_context: Any, limit: Any, x: Any) -> Any:
    """Return the larger number in each lane, x where it is NaN."""
    return x(limit, x), lambda context, builder, sig, args: builder.select(builder.fcmp_ordered(">", *args), *args)


@intrinsic  # type: ignore[untyped-decorator]
def smaller(typing_context: Any, limit: Any, x: Any) -> Any:
    """Return the smaller number in each lane, x where it is NaN."""
    return x(limit, x), lambda context, builder, sig, args: builder.select(builder.fcmp_ordered("<", *args), *args)


@intrinsic  # type: ignore[untyped-decorator]
def where_larger(typing_context: Any, x: Any, limit: Any, above: Any, otherwise: Any) -> Any:
    """Return `above` in the lanes where x is larger than a limit, else `otherwise`."""
    return x(x, limit, above, otherwise), lambda context, builder, sig, args: builder.select(
        builder.fcmp_ordered(">", *args[:2]), *args[2:]
    )


@intrinsic  # type: ignore[untyped-decorator]
def _times_power(typing_context: Any, p: Any, shifted: Any) -> Any:
    """Return p * 2^k, where k stands in the low bits of `shifted`, the sum of k and 1.5 * 2^(bits of the mantissa)."""
    bits = 23 if p.dtype == types.float32 else 52

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        integers = _integers(p.dtype)
        power = builder.shl(builder.bitcast(args[1], integers), _constant(integers, bits))
        return builder.bitcast(builder.add(builder.bitcast(args[0], integers), power), args[0].type)

    return p(p, shifted), generate


@intrinsic  # type: ignore[untyped-decorator]
def sums_of_rows(typing_context: Any, array: Any, offset: Any) -> Any:
    """Return a vector whose lane i is the sum of row i of a matrix (LANES, LANES) that starts at an offset."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = context.get_value_type(sig.return_type)
        indices = ir.VectorType(ir.IntType(32), LANES)

        def row(i: int) -> Any:
            place = builder.add(args[1], ir.Constant(args[1].type, i * LANES))
            pointer = _address(context, builder, sig.args[0], args[0], place, vector)
            return builder.load(pointer, align=array.dtype.bitwidth // 8)

        # Each round joins two vectors: the sums of neighbouring pieces of the one and of the other, piece by piece.
        found, width = [row(i) for i in range(LANES)], 1
        while len(found) > 1:
            lanes = [i for i in range(LANES) if i // width % 2 == 0]
            halves = []
            for extra in (0, width):
                mask = [0] * LANES
                for i in lanes:
                    mask[i], mask[i + width] = i + extra, LANES + i + extra
                halves.append(ir.Constant(indices, mask))
            found = [
                builder.fadd(*(builder.shuffle_vector(found[i], found[i + 1], half) for half in halves))
                for i in range(0, len(found), 2)
            ]
            width *= 2
        return found[0]

    return Vector(array.dtype)(array, types.intp), generate


def exp2(x: Any) -> Any:
    """Return 2 to the power of each lane, clamped near the smallest and largest normal number; compiled code only."""
    raise NotImplementedError("compiled code only")


@overload(exp2, inline="always")  # type: ignore[untyped-decorator]
def _exp2(x):  # type: ignore[no-untyped-def]
    single = x.dtype == types.float32
    number = np.float32 if single else np.float64
    lowest, highest = (number(-126), number(127.4)) if single else (number(-1022), number(1023.4))
    magic, one = number(1.5 * 2 ** (23 if single else 52)), number(1)  # x + magic rounds x to a whole number
    first, *rest = (number(c) for c in reversed(_EXP2_SINGLE if single else _EXP2_DOUBLE))
    others = (*rest, one)

    def polynomial(x):  # type: ignore[no-untyped-def]
        y = smaller(splat(highest), larger(splat(lowest), x))
        shifted = y + splat(magic)
        f = y - (shifted - splat(magic))
        p = splat(first)
        for c in others:
            p = fma(p, f, splat(c))
        return _times_power(p, shifted)

    return polynomial


def log1p(e: Any) -> Any:
    """Return log(1 + e) of each lane, for e from 0 to 1; compiled code only."""
    raise NotImplementedError("compiled code only")


@overload(log1p, inline="always")  # type: ignore[untyped-decorator]
def _log1p(e):  # type: ignore[no-untyped-def]
    if e.dtype != types.float32:
        two, odd = 2.0, tuple(1 / k for k in range(41, 0, -2))

        def series(e):  # type: ignore[no-untyped-def]  # 2 artanh(s), s = e / (2 + e) <= 1/3
            s = e / (splat(two) + e)
            q = s * s
            p = splat(0.0)
            for c in odd:
                p = fma(p, q, splat(c))
            return (s + s) * p

        return series
    first, *rest = (np.float32(c) for c in reversed(_LOG1P))
    others = tuple(rest)

    def polynomial(e):  # type: ignore[no-untyped-def]
        p = splat(first)
        for c in others:
            p = fma(p, e, splat(c))
        return p * e

    return polynomial
