"""The causal depthwise convolution of a Mamba block with its SiLU, compiled for CPUs, and the gradients.

Tokens are rows, (B, L, D), as in `cpu_kernels`, whose blocks and rooms are used here too. Tasks are segments of the
tokens of a sample; they depend only on the shapes, so that results are the same for any number of threads.
"""

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from umamba.networks.scan.cpu import Array, by_block
from umamba.networks.scan.cpu_kernels import CHUNK, compiled, give, inner, sigmoid, take, workspace
from umamba.networks.scan.vector_math import LANES, filled, fma, load, store
from umamba.networks.threads import in_threads

_SEGMENT, _MOST = 1024, 64  # tokens of a segment; segments of a sample, which are longer if they would be more
_SMALL = 50_000  # inputs; with fewer, a second thread starts later than the first one ends


def conv_into(x: Array, weight: Array, bias: Array, out: Array, *, threads: int = 1) -> None:
    """Fill out with silu(conv(x)), where the convolution is causal and depthwise.

    Args:
        x: input (B, L, D), float32 or float64 like all other arrays; any strides, but channels side by side are faster.
        weight: (D, taps); the last tap is that of the token itself.
        bias: (D,).
        out: is filled (B, L, D); it must not overlap x.
        threads: number of threads; the results do not depend on it.
    """
    kernel, taps, shift = _compiled_forward(x.dtype), by_block(weight), by_block(bias[:, None])[:, 0]

    def work(task: tuple[int, int, int]) -> None:
        kernel(x, taps, shift, *task, out)

    in_threads(work, _tasks(x.shape), threads if x.size > _SMALL else 1)


def conv_back_into(
    x: Array, weight: Array, bias: Array, grad: Array, grad_x: Array, *, threads: int = 1
) -> tuple[Array, Array]:
    """Fill grad_x for the gradient of `conv_into`'s output; return the gradients of weight (D, taps) and bias (D,)."""
    kernel, taps, shift = _compiled_backward(x.dtype), by_block(weight), by_block(bias[:, None])[:, 0]
    tasks = _tasks(x.shape)
    grad_taps, grad_shift = np.zeros((len(tasks), *taps.shape), x.dtype), np.zeros((len(tasks), *shift.shape), x.dtype)

    def work(number: int) -> None:
        kernel(x, taps, shift, *tasks[number], grad, grad_x, grad_taps[number], grad_shift[number])

    in_threads(work, range(len(tasks)), threads if x.size > _SMALL else 1)
    channels = x.shape[2]
    rows = grad_taps.sum(0).swapaxes(1, 2).reshape(-1, taps.shape[1])[:channels]
    return np.ascontiguousarray(rows), grad_shift.sum(0).reshape(-1)[:channels]


def _tasks(shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Return tasks (sample, first token, end)."""
    batch, length, _ = shape
    segment = max(_SEGMENT, -(-length // _MOST))
    return [(b, begin, min(begin + segment, length)) for b in range(batch) for begin in range(0, length, segment)]


@inner
def _convolve(count, room, weight, bias, taps, out):
    """Fill the rows of out with the convolution; room starts taps - 1 tokens earlier."""
    for t in range(count):
        total = bias
        for k in range(taps):
            total = fma(load(weight, k * LANES), load(room, (t + k) * LANES), total)
        store(out, t * LANES, total)


@inner
def _take_with_past(x, b, begin, count, past, channel, lanes, room):
    """Copy tokens begin - past:begin + count to the rows of room; those before the first one are zeros."""
    missing = max(0, past - begin)
    room[: missing * LANES] = 0
    take(x, b, begin - past + missing, count + past - missing, channel, lanes, room[missing * LANES :])


@compiled(cache=True)
def _forward(x, weight, bias, b, first, stop, out):
    """Fill out for the tokens first:stop of sample b; weight is (blocks, taps, LANES), bias (blocks, LANES)."""
    channels, taps = x.shape[2], weight.shape[1]
    rows = workspace(2 * CHUNK + taps, x.dtype)
    room, y = rows[: (CHUNK + taps) * LANES], rows[(CHUNK + taps) * LANES :]
    for begin in range(first, stop, CHUNK):
        count = min(CHUNK, stop - begin)
        for block in range(weight.shape[0]):
            channel = block * LANES
            lanes = min(LANES, channels - channel)
            _take_with_past(x, b, begin, count, taps - 1, channel, lanes, room)
            _convolve(count, room, weight[block].reshape(taps * LANES), load(bias, channel), taps, y)
            for t in range(0, count * LANES, LANES):
                value = load(y, t)
                store(y, t, value * sigmoid(value))
            give(y, out, b, begin, count, channel, lanes)


@compiled(cache=True)
def _backward(x, weight, bias, b, first, stop, grad, grad_x, grad_weight, grad_bias):
    """Fill grad_x for the tokens first:stop of sample b; add to grad_weight and grad_bias."""
    length, channels, taps = x.shape[1], x.shape[2], weight.shape[1]
    past, most = taps - 1, CHUNK + taps
    rows = workspace(2 * most + taps + CHUNK, x.dtype)
    room, slope, found = (
        rows[: (most + taps) * LANES],
        rows[(most + taps) * LANES : (2 * most + taps) * LANES],
        rows[(2 * most + taps) * LANES :],
    )
    gradient = workspace(most, x.dtype)
    for begin in range(first, stop, CHUNK):
        count = min(CHUNK, stop - begin)
        known = min(count + past, length - begin)  # tokens whose gradient reaches the inputs of the chunk
        for block in range(weight.shape[0]):
            channel = block * LANES
            lanes = min(LANES, channels - channel)
            w = weight[block].reshape(taps * LANES)
            _take_with_past(x, b, begin, known, past, channel, lanes, room)
            take(grad, b, begin, known, channel, lanes, gradient)
            _convolve(known, room, w, load(bias, channel), taps, slope)
            for t in range(0, known * LANES, LANES):
                value = load(slope, t)
                s = sigmoid(value)
                store(gradient, t, load(gradient, t) * (s + value * s * (filled(s, 1.0) - s)))
            gradient[known * LANES : (count + past) * LANES] = 0
            for t in range(count):
                total = filled(load(w, 0), 0.0)
                for k in range(taps):
                    total = fma(load(w, k * LANES), load(gradient, (t + past - k) * LANES), total)
                store(found, t * LANES, total)
            give(found, grad_x, b, begin, count, channel, lanes)
            for k in range(taps):
                place = (block * taps + k) * LANES
                total = load(grad_weight, place)
                for t in range(count):
                    total = fma(load(gradient, t * LANES), load(room, (t + k) * LANES), total)
                store(grad_weight, place, total)
            total = load(grad_bias, channel)
            for t in range(count):
                total = total + load(gradient, t * LANES)
            store(grad_bias, channel, total)


@functools.cache
def _compiled_forward(dtype: Any) -> Any:
    """Return the compiled function for a dtype; it does not check its arguments."""
    return _forward.compile(_signature(dtype))


@functools.cache
def _compiled_backward(dtype: Any) -> Any:
    real = numba.from_dtype(dtype)
    more = types.Array(real, 3, "A", readonly=True), types.Array(real, 3, "A")
    sums = types.Array(real, 3, "C"), types.Array(real, 2, "C")
    return _backward.compile((*_signature(dtype)[:-1], *more, *sums))


def _signature(dtype: Any) -> tuple[Any, ...]:
    real, number = numba.from_dtype(dtype), types.intp
    token, bias = types.Array(real, 3, "A", readonly=True), types.Array(real, 2, "A", readonly=True)
    return token, types.Array(real, 3, "C", readonly=True), bias, number, number, number, types.Array(real, 3, "A")
