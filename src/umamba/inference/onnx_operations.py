"""PyTorch's operations in ONNX: for each a function that adds it to the model and returns its output.

A function gets the builder, the shape of its output, and PyTorch's own arguments: a `Value` where they depend on the
image, else a tensor or plain value.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from umamba.inference.onnx_builder import Builder, UnexportableError, Value
from umamba.inference.onnx_scan import mamba_block, softplus

Shape = tuple[int, ...]


def _axes(given: Any, dim: int) -> list[int]:
    """Return a kernel, stride or padding with an entry for each of `dim` axes; PyTorch allows one for all."""
    entries = [int(each) for each in (given if isinstance(given, list | tuple) else [given])]
    return entries * dim if len(entries) == 1 else entries


def _convolution(b: Builder, shape: Shape, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):  # type: ignore[no-untyped-def]
    dim = len(shape) - 2
    if isinstance(padding, str):
        raise UnexportableError("it has a convolution with its padding given by a name")
    sides = _axes(padding, dim)
    return b.add(
        "Conv", [x, weight, bias], shape,
        kernel_shape=list(weight.shape[2:]), strides=_axes(stride, dim), pads=sides + sides,
        dilations=_axes(dilation, dim), group=groups,
    )  # fmt: skip


def _transposed(  # type: ignore[no-untyped-def]
    b: Builder, shape: Shape, x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    dim = len(shape) - 2
    sides = _axes(padding, dim)
    return b.add(
        "ConvTranspose", [x, weight, bias], shape,
        kernel_shape=list(weight.shape[2:]), strides=_axes(stride, dim), pads=sides + sides,
        output_padding=_axes(output_padding, dim), dilations=_axes(dilation, dim), group=groups,
    )  # fmt: skip


def _average(b: Builder, shape: Shape, x, kernel, stride=(), padding=0, ceil_mode=False, count=True, divisor=None):  # type: ignore[no-untyped-def]
    dim = len(shape) - 2
    if ceil_mode or divisor is not None:
        raise UnexportableError("it has an average pooling that rounds up or has a divisor of its own")
    size, sides = _axes(kernel, dim), _axes(padding, dim)
    return b.add(
        "AveragePool", [x], shape,
        kernel_shape=size, strides=_axes(stride, dim) if stride else size, pads=sides + sides,
        count_include_pad=int(count),
    )  # fmt: skip


def _nearest(b: Builder, shape: Shape, x, size, factors):  # type: ignore[no-untyped-def]
    if any(after % before for after, before in zip(shape[2:], x.shape[2:], strict=True)):
        raise UnexportableError("it has nearest-neighbour upsampling by a fraction")
    return b.add(
        "Resize", [x, None, None, b.sizes(shape)], shape,
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip


def _linear_resize(b: Builder, shape: Shape, x, size, align_corners, factors):  # type: ignore[no-untyped-def]
    if any(after % before for after, before in zip(shape[2:], x.shape[2:], strict=True)):
        raise UnexportableError("it has linear upsampling by a fraction")
    mode = "align_corners" if align_corners else "half_pixel"
    return b.add("Resize", [x, None, None, b.sizes(shape)], shape, mode="linear", coordinate_transformation_mode=mode)


def _over_channels(vector: torch.Tensor, rank: int) -> torch.Tensor:
    return vector.reshape(1, -1, *[1] * (rank - 2))


def _instance_norm(b: Builder, shape: Shape, x, weight, bias, mean, variance, of_input, momentum, eps, cudnn=True):  # type: ignore[no-untyped-def]
    if not of_input:
        raise UnexportableError("it has an instance norm with running statistics")
    scale = torch.ones(shape[1]) if weight is None else weight
    shift = torch.zeros(shape[1]) if bias is None else bias
    return b.add("InstanceNormalization", [x, scale, shift], shape, epsilon=float(eps))


def _group_norm(b: Builder, shape: Shape, x, groups, weight=None, bias=None, eps=1e-5, cudnn=True):  # type: ignore[no-untyped-def]
    grouped = b.reshape(x, (shape[0], groups, math.prod(shape[1:]) // groups))
    scale, shift = torch.ones(groups), torch.zeros(groups)
    y = b.add("InstanceNormalization", [grouped, scale, shift], grouped.shape, epsilon=float(eps))
    y = b.reshape(y, shape)
    y = y if weight is None else b.add("Mul", [y, _over_channels(weight, len(shape))], shape)
    return y if bias is None else b.add("Add", [y, _over_channels(bias, len(shape))], shape)


def _layer_norm(b: Builder, shape: Shape, x, normalized, weight=None, bias=None, eps=1e-5, cudnn=True):  # type: ignore[no-untyped-def]
    scale = torch.ones(*normalized) if weight is None else weight
    return b.add("LayerNormalization", [x, scale, bias], shape, axis=-len(normalized), epsilon=float(eps))


def _linear(b: Builder, shape: Shape, x, weight, bias=None):  # type: ignore[no-untyped-def]
    y = b.add("MatMul", [x, weight.t().contiguous()], shape)
    return y if bias is None else b.add("Add", [y, bias], shape)


def _leaky_relu(b: Builder, shape: Shape, x, slope=0.01):  # type: ignore[no-untyped-def]
    return b.add("LeakyRelu", [x], shape, alpha=float(slope))


def _gelu(b: Builder, shape: Shape, x, approximate="none"):  # type: ignore[no-untyped-def]
    if approximate != "none":
        raise UnexportableError("it has a GELU by tanh")
    erf = b.add("Erf", [b.add("Mul", [x, math.sqrt(0.5)], shape)], shape)
    return b.add("Mul", [b.add("Mul", [x, 0.5], shape), b.add("Add", [erf, 1.0], shape)], shape)


def _silu(b: Builder, shape: Shape, x):  # type: ignore[no-untyped-def]
    return b.add("Mul", [x, b.add("Sigmoid", [x], shape)], shape)


def _clamp(b: Builder, shape: Shape, x, low=None, high=None):  # type: ignore[no-untyped-def]
    return b.add("Clip", [x, low, high], shape)


def _softmax(b: Builder, shape: Shape, x, dim, dtype=None):  # type: ignore[no-untyped-def]
    return b.add("Softmax", [x], shape, axis=dim % len(shape))


def _unary(kind: str) -> Callable[..., Value]:
    return lambda b, shape, x: b.add(kind, [x], shape)


def _binary(kind: str) -> Callable[..., Value]:
    def add(b: Builder, shape: Shape, x: Any, y: Any, alpha: float = 1) -> Value:
        return b.add(kind, [x, y if alpha == 1 else b.add("Mul", [y, alpha], b.value(y).shape)], shape)

    return add


def _einsum(b: Builder, shape: Shape, equation, operands, path=None):  # type: ignore[no-untyped-def]
    return b.add("Einsum", list(operands), shape, equation=equation.replace(" ", ""))


def _concatenated(b: Builder, shape: Shape, parts, dim=0):  # type: ignore[no-untyped-def]
    return b.add("Concat", list(parts), shape, axis=dim % len(shape))


def _padded(b: Builder, shape: Shape, x, pad, mode="constant", value=None):  # type: ignore[no-untyped-def]
    if mode != "constant":
        raise UnexportableError(f"it pads by {mode}")
    if not any(pad):
        return x
    before, after = [0] * len(shape), [0] * len(shape)
    for index, (first, last) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        before[-1 - index], after[-1 - index] = int(first), int(last)
    if min(before + after) < 0:
        raise UnexportableError("it pads by less than nothing")
    return b.add("Pad", [x, b.sizes(before + after), float(value or 0)], shape, mode="constant")


def _constant_padded(b: Builder, shape: Shape, x, pad, value=0):  # type: ignore[no-untyped-def]
    return _padded(b, shape, x, pad, "constant", value)


def _sliced(b: Builder, shape: Shape, x, dim=0, start=None, end=None, step=1):  # type: ignore[no-untyped-def]
    return b.cut(x, dim, 0 if start is None else start, 2**31 if end is None else end, step)


def _selected(b: Builder, shape: Shape, x, dim, index):  # type: ignore[no-untyped-def]
    index %= x.shape[dim]
    return b.reshape(b.cut(x, dim, index, index + 1), shape)


def _unbound(b: Builder, shape: Shape, x, dim=0):  # type: ignore[no-untyped-def]
    rest = tuple(size for axis, size in enumerate(x.shape) if axis != dim % len(x.shape))
    return [_selected(b, rest, x, dim, index) for index in range(x.shape[dim])]


def _split(b: Builder, shape: Shape, x, size, dim=0):  # type: ignore[no-untyped-def]
    length = x.shape[dim]
    if isinstance(size, int):
        size = [min(size, length - start) for start in range(0, length, size)]
    return b.split(x, size, dim)


def _chunked(b: Builder, shape: Shape, x, chunks, dim=0):  # type: ignore[no-untyped-def]
    return _split(b, shape, x, math.ceil(x.shape[dim] / chunks), dim)


def _flipped(b: Builder, shape: Shape, x, dims):  # type: ignore[no-untyped-def]
    for axis in dims:
        x = b.cut(x, axis, 0, 0, -1)
    return x


def _rolled(b: Builder, shape: Shape, x, shifts, dims=()):  # type: ignore[no-untyped-def]
    if len(shifts) != len(dims):
        raise UnexportableError("it rolls a tensor without its axes")
    for shift, axis in zip(shifts, dims, strict=True):
        length = shape[axis]
        if shift % length:
            parts = [b.cut(x, axis, length - shift % length, length), b.cut(x, axis, 0, length - shift % length)]
            x = b.add("Concat", parts, shape, axis=axis % len(shape))
    return x


def _reshaped(b: Builder, shape: Shape, x, *_, **__):  # type: ignore[no-untyped-def]
    return b.reshape(x, shape)


def _permuted(b: Builder, shape: Shape, x, order):  # type: ignore[no-untyped-def]
    return b.permute(x, order)


def _swapped(b: Builder, shape: Shape, x, first, second):  # type: ignore[no-untyped-def]
    order = list(range(len(shape)))
    order[first], order[second] = order[second], order[first]
    return b.permute(x, order)


def _moved(b: Builder, shape: Shape, x, source, target):  # type: ignore[no-untyped-def]
    pairs = [(source, target)] if isinstance(source, int) else list(zip(source, target, strict=True))
    rank = len(shape)
    moved = {to % rank: start % rank for start, to in pairs}
    rest = iter(axis for axis in range(rank) if axis not in moved.values())
    return b.permute(x, [moved[place] if place in moved else next(rest) for place in range(rank)])


def _expanded(b: Builder, shape: Shape, x, *_, **__):  # type: ignore[no-untyped-def]
    return x if x.shape == shape else b.add("Expand", [x, b.sizes(shape)], shape)


def _same(b: Builder, shape: Shape, x, *_, **__):  # type: ignore[no-untyped-def]
    return x


def _cumulated(b: Builder, shape: Shape, x, dim, dtype=None):  # type: ignore[no-untyped-def]
    return b.add("CumSum", [x, np.array(dim % len(shape), dtype=np.int64)], shape)


def _filled(b: Builder, shape: Shape, x, mask, value):  # type: ignore[no-untyped-def]
    return b.add("Where", [mask, value, x], shape)


def _narrowed(b: Builder, shape: Shape, x, dim, start, length):  # type: ignore[no-untyped-def]
    return b.cut(x, dim, start, start + length)


def _softplus(b: Builder, shape: Shape, x, beta=1, threshold=20):  # type: ignore[no-untyped-def]
    if beta != 1:
        raise UnexportableError("it has a softplus with a slope of its own")
    return softplus(b, x)


def _log_sigmoid(b: Builder, shape: Shape, x):  # type: ignore[no-untyped-def]
    return b.add("Neg", [softplus(b, b.add("Neg", [x], shape))], shape)


def _rms_norm(b: Builder, shape: Shape, x, normalized, weight=None, eps=None):  # type: ignore[no-untyped-def]
    axes, of_mean = b.sizes(range(-len(normalized), 0)), (*shape[: -len(normalized)], *[1] * len(normalized))
    mean = b.add("ReduceMean", [b.add("Mul", [x, x], shape), axes], of_mean, keepdims=1)
    small = torch.finfo(torch.float32).eps if eps is None else eps
    y = b.add("Div", [x, b.add("Sqrt", [b.add("Add", [mean, small], of_mean)], of_mean)], shape)
    return y if weight is None else b.add("Mul", [y, weight], shape)


def _largest(b: Builder, shape: Shape, x, dim=(), keepdim=False):  # type: ignore[no-untyped-def]
    axes = [axis % len(x.shape) for axis in (dim or range(len(x.shape)))]
    return b.add("ReduceMax", [x, b.sizes(axes)], shape, keepdims=int(keepdim))


def _mean(b: Builder, shape: Shape, x, dim=None, keepdim=False, dtype=None):  # type: ignore[no-untyped-def]
    axes = range(len(x.shape)) if dim is None else dim
    return b.add("ReduceMean", [x, b.sizes([axis % len(x.shape) for axis in axes])], shape, keepdims=int(keepdim))


def _sum(b: Builder, shape: Shape, x, dim=None, keepdim=False, dtype=None):  # type: ignore[no-untyped-def]
    axes = range(len(x.shape)) if dim is None else dim
    return b.add("ReduceSum", [x, b.sizes([axis % len(x.shape) for axis in axes])], shape, keepdims=int(keepdim))


def _picked(b: Builder, shape: Shape, x, indices):  # type: ignore[no-untyped-def]
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if not isinstance(x, Value) or len(given) != 1 or not isinstance(given[0][1], torch.Tensor):
        raise UnexportableError("it picks values by several indices, or by indices that depend on the image")
    axis, index = given[0]
    index = torch.where(index < 0, index + x.shape[axis], index).numpy().astype(np.int64)
    return b.add("Gather", [x, index], shape, axis=axis)


def _in_float32(b: Builder, shape: Shape, x, *types, **named):  # type: ignore[no-untyped-def]
    wanted = [each for each in (*types, *named.values()) if isinstance(each, torch.dtype)]
    if any(each != torch.float32 for each in wanted):
        raise UnexportableError(f"it computes in {wanted[0]}")
    return x


def _same_twice(names: Sequence[str], function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Return entries of operations of the same function, each also in place."""
    found: dict[str, Callable[..., Any]] = {}
    for name in names:
        base, overload = name.rsplit(".", 1)
        found |= {f"aten.{name}": function, f"aten.{base}_.{overload}": function}
    return found


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{f"aten.conv{dim}d.default": _convolution for dim in (1, 2, 3)},
    **{f"aten.conv_transpose{dim}d.input": _transposed for dim in (2, 3)},
    **{f"aten.avg_pool{dim}d.default": _average for dim in (2, 3)},
    **{f"aten.upsample_nearest{dim}d.vec": _nearest for dim in (2, 3)},
    "aten.upsample_bilinear2d.vec": _linear_resize,
    "aten.upsample_trilinear3d.vec": _linear_resize,
    "aten.instance_norm.default": _instance_norm,
    "aten.group_norm.default": _group_norm,
    "aten.layer_norm.default": _layer_norm,
    "aten.linear.default": _linear,
    "aten.matmul.default": _binary("MatMul"),
    "aten.bmm.default": _binary("MatMul"),
    "aten.einsum.default": _einsum,
    **_same_twice(["leaky_relu.default"], _leaky_relu),
    **_same_twice(["relu.default"], _unary("Relu")),
    **_same_twice(["sigmoid.default"], _unary("Sigmoid")),
    **_same_twice(["tanh.default"], _unary("Tanh")),
    **_same_twice(["exp.default"], _unary("Exp")),
    **_same_twice(["neg.default"], _unary("Neg")),
    **_same_twice(["silu.default"], _silu),
    "aten.gelu.default": _gelu,
    "aten.softmax.int": _softmax,
    **_same_twice(["clamp.default"], _clamp),
    **_same_twice(["add.Tensor"], _binary("Add")),
    **_same_twice(["sub.Tensor"], _binary("Sub")),
    **_same_twice(["mul.Tensor"], _binary("Mul")),
    **_same_twice(["div.Tensor"], _binary("Div")),
    **{f"aten.{name.lower()}.default": _unary(name) for name in ("Abs", "Log", "Sqrt")},
    "aten.maximum.default": _binary("Max"),
    "aten.minimum.default": _binary("Min"),
    "aten.softplus.default": _softplus,
    "aten.log_sigmoid.default": _log_sigmoid,
    "aten.rms_norm.default": _rms_norm,
    "aten.cumsum.default": _cumulated,
    "aten.masked_fill.Scalar": _filled,
    "aten.narrow.int": _narrowed,
    "aten.amax.default": _largest,
    "aten.mean.dim": _mean,
    "aten.sum.dim_IntList": _sum,
    "aten.cat.default": _concatenated,
    "aten.pad.default": _padded,
    "aten.constant_pad_nd.default": _constant_padded,
    "aten.slice.Tensor": _sliced,
    "aten.select.int": _selected,
    "aten.unbind.int": _unbound,
    **{f"aten.split.{name}": _split for name in ("Tensor", "sizes")},
    "aten.split_with_sizes.default": _split,
    "aten.chunk.default": _chunked,
    "aten.flip.default": _flipped,
    "aten.roll.default": _rolled,
    **{
        f"aten.{name}": _reshaped
        for name in (
            *("reshape.default", "view.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int"),
            *("unsqueeze.default", "squeeze.dim", "squeeze.dims", "squeeze.default"),
        )
    },
    "aten.permute.default": _permuted,
    "aten.transpose.int": _swapped,
    **{f"aten.movedim.{name}": _moved for name in ("int", "intlist")},
    "aten.expand.default": _expanded,
    "aten.index.Tensor": _picked,
    **{
        f"aten.{name}": _same
        for name in (
            *("contiguous.default", "clone.default", "alias.default", "detach.default", "dropout.default"),
            *("feature_dropout.default", "dropout_.default", "lift_fresh_copy.default"),
        )
    },
    **{f"aten.to.{name}": _in_float32 for name in ("dtype", "dtype_layout", "device")},
    "aten._to_copy.default": _in_float32,
    "umamba.mamba_mix_cpu.default": mamba_block,
}
