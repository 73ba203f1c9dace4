"""The scan compiled for CPUs. One call computes some blocks of channels of one sample, chunk of tokens by chunk.

Tokens are rows, (B, L, D), as linear layers want them. Sixteen neighbouring channels are one vector (a block), whose N
states are updated one after another; so sums over states need no exchange between lanes, and B and C are read as single
numbers. Chunks of a block are first copied to a workspace, where channels that a last block lacks are zeros. Forward
keeps the states at the start of each chunk; backward computes the states in between again.

Arrays: u, delta, z, out (B, L, D) in any strides; B, C (B, L, G, N) with contiguous N, for G groups of channels; A
(blocks, N, LANES), times log2(e); D and bias (blocks, LANES), zeros if absent; z has length 0 if absent. Blocks of a
group follow each other. Per state and block of a token, forward takes 16 arithmetic vector instructions with AVX-512
(counted in the compiled code for float32), of which 12 are exp2, and backward 30, of which 16 compute the states again
and 6 add up the gradients of B and C.
"""

import functools

import numba
import numpy as np
from numba import types

from umamba.networks.scan.vector_math import (
    LANES,
    LOG2_E,
    exp2,
    filled,
    fma,
    larger,
    load,
    log1p,
    pick,
    put,
    splat,
    store,
    sums_of_rows,
    where_larger,
)  # fmt: skip

LN_2 = 1 / LOG2_E
CHUNK = 32  # tokens; the states and decays of a chunk fit the first two caches
compiled = functools.partial(numba.njit, nogil=True, error_model="numpy")
# The inner functions become part of their callers. As functions of their own they would be compiled twice, and which of
# the two is called, with its own rounding, would depend on whether the code came from Numba's cache.
inner = compiled(forceinline=True)


@inner
def workspace(rows, dtype):
    """Return an array of rows of LANES numbers; each row is one line of the cache in float32."""
    room = np.empty(rows * LANES + 64, dtype)
    start = (-room.ctypes.data % 64) // room.itemsize
    return room[start : start + rows * LANES]


@inner
def copy(rows, target):
    """Copy rows. A slice assignment would also compile the text of its error, which takes seconds."""
    for n in range(0, rows.size, LANES):
        store(target, n, load(rows, n))


@inner
def take(array, b, begin, count, channel, lanes, room):
    """Copy tokens begin:begin + count of the channels from `channel` to the rows of room."""
    token, across = array.strides[1] // array.itemsize, array.strides[2] // array.itemsize
    start = b * (array.strides[0] // array.itemsize) + begin * token + channel * across
    if across == 1 and lanes == LANES:
        for t in range(count):
            store(room, t * LANES, load(array, start + t * token))
        return
    if lanes < LANES:
        room[: count * LANES] = 0
    for lane in range(lanes):
        for t in range(count):
            put(room, t * LANES + lane, pick(array, start + t * token + lane * across))


@inner
def give(room, array, b, begin, count, channel, lanes):
    """Copy the rows of room to tokens begin:begin + count of the channels from `channel`."""
    token, across = array.strides[1] // array.itemsize, array.strides[2] // array.itemsize
    start = b * (array.strides[0] // array.itemsize) + begin * token + channel * across
    if across == 1 and lanes == LANES:
        for t in range(count):
            store(array, start + t * token, load(room, t * LANES))
        return
    for lane in range(lanes):
        for t in range(count):
            put(array, start + t * token + lane * across, pick(room, t * LANES + lane))


@inner
def sigmoid(x):
    """Return 1 / (1 + exp(-x)) of each lane."""
    one = filled(x, 1.0)
    return one / (one + exp2(x * filled(x, -LOG2_E)))


@inner
def _step_sizes(bias, softplus, count, dt, slope):
    """Turn the rows of dt, at first delta, into step sizes; fill slope with their derivatives if it has rows."""
    for t in range(count):
        x = load(dt, t * LANES) + bias
        zero, one, linear = (
            filled(x, 0.0),
            filled(x, 1.0),
            filled(x, 20.0),
        )  # above 20, torch's softplus is the identity
        step, derivative = x, one
        if softplus:
            e = exp2(larger(x, zero - x) * filled(x, -LOG2_E))
            step = where_larger(x, linear, x, larger(zero, x) + log1p(e))
            derivative = where_larger(x, linear, one, where_larger(x, zero, one, e) / (one + e))
        store(dt, t * LANES, step)
        if slope.size > 0:
            store(slope, t * LANES, derivative)


@inner
def _advance(count, dt, driven, a, start_B, step_B, B, start_C, step_C, C, N, state, y):
    """Run the states through the chunk and add their output to y."""
    for t in range(count):
        row = t * LANES
        step, x, total = load(dt, row), load(driven, row), load(y, row)
        at_B, at_C = start_B + t * step_B, start_C + t * step_C
        for n in range(N):
            decay = exp2(step * load(a, n * LANES))
            new = fma(load(state, n * LANES), decay, x * splat(pick(B, at_B + n)))
            store(state, n * LANES, new)
            total = fma(new, splat(pick(C, at_C + n)), total)
        store(y, row, total)


@inner
def _replay(count, dt, driven, a, start_B, step_B, B, start_C, step_C, C, N, states, decays, y):
    """Run the states through the chunk again: fill states[1:] and decays, and add the output to y."""
    for t in range(count):
        row = t * LANES
        step, x, total = load(dt, row), load(driven, row), load(y, row)
        at_B, at_C = start_B + t * step_B, start_C + t * step_C
        for n in range(N):
            place = (t * N + n) * LANES
            decay = exp2(step * load(a, n * LANES))
            new = fma(load(states, place), decay, x * splat(pick(B, at_B + n)))
            store(decays, place, decay)
            store(states, place + N * LANES, new)
            total = fma(new, splat(pick(C, at_C + n)), total)
        store(y, row, total)


@inner
def _back(
    count, dt, driven, a, start_B, step_B, B, start_C, step_C, C, N, states, decays, grad_y,
    carry, grad_a, by_input, by_step, products, grad_B, grad_C, start_grad, step_grad,
):  # fmt: skip
    """Run the gradient of the states, carry, back through the chunk.

    It is added to grad_a, and to grad_B and grad_C at start_grad; by_input and by_step get the sums over the states.
    """
    padded = (N + LANES - 1) // LANES * LANES
    for t in range(count - 1, -1, -1):
        row = t * LANES
        gy, step, x = load(grad_y, row), load(dt, row), load(driven, row)
        input_total = filled(gy, 0.0)
        step_total = filled(gy, 0.0)
        at_B, at_C = start_B + t * step_B, start_C + t * step_C
        for n in range(N):
            line, place = n * LANES, (t * N + n) * LANES
            gradient = fma(gy, splat(pick(C, at_C + n)), load(carry, line))
            store(products, line, x * gradient)
            store(products, padded * LANES + line, gy * load(states, place + N * LANES))
            input_total = fma(gradient, splat(pick(B, at_B + n)), input_total)
            back = gradient * load(decays, place)
            store(carry, line, back)
            kept = back * load(states, place)
            store(grad_a, line, fma(kept, step, load(grad_a, line)))
            step_total = fma(kept, load(a, line), step_total)
        store(by_input, row, input_total)
        store(by_step, row, step_total)
        for n in range(0, padded, LANES):
            place = start_grad + t * step_grad + n
            store(grad_B, place, load(grad_B, place) + sums_of_rows(products, n * LANES))
            store(grad_C, place, load(grad_C, place) + sums_of_rows(products, (padded + n) * LANES))


@inner
def _start_and_step(array, b, begin, group):
    """Return where a chunk of B or C begins, and how far its tokens are apart, both in elements."""
    size = array.itemsize
    token = array.strides[1] // size
    return b * (array.strides[0] // size) + begin * token + group * (array.strides[2] // size), token


@inner
def _skip_and_drive(count, u, dt, skip, driven, y):
    """Fill driven with dt * u and y with D * u."""
    for t in range(count):
        x = load(u, t * LANES)
        store(driven, t * LANES, x * load(dt, t * LANES))
        store(y, t * LANES, x * skip)


@compiled(cache=True)
def forward(u, delta, A, B, C, D, z, bias, softplus, b, first, stop, out, last, starts):
    """Fill out, last and starts for the blocks first:stop of sample b.

    last (B, blocks, N, LANES) is the last state, starts (B, chunks, blocks, N, LANES) the state at the start of each
    chunk; starts is not filled if it has no chunks. The other arrays are described in the module's first lines.
    """
    length, channels, groups, N = u.shape[1], u.shape[2], B.shape[2], A.shape[1]
    in_group, blocks = channels // groups, A.shape[0] // groups
    rows = workspace(4 * CHUNK + N, u.dtype)
    dt, driven, y, room, state = (
        rows[: CHUNK * LANES],
        rows[CHUNK * LANES : 2 * CHUNK * LANES],
        rows[2 * CHUNK * LANES : 3 * CHUNK * LANES],
        rows[3 * CHUNK * LANES : 4 * CHUNK * LANES],
        rows[4 * CHUNK * LANES :],
    )
    keeps, gated = starts.shape[1] > 0, z.shape[1] > 0
    last[b, first:stop] = 0
    for chunk in range((length + CHUNK - 1) // CHUNK):
        begin = chunk * CHUNK
        count = min(CHUNK, length - begin)
        for block in range(first, stop):
            group, inside = block // blocks, block % blocks * LANES
            channel, lanes = group * in_group + inside, min(LANES, in_group - inside)
            take(delta, b, begin, count, channel, lanes, dt)
            take(u, b, begin, count, channel, lanes, room)
            _step_sizes(load(bias, block * LANES), softplus, count, dt, room[:0])
            _skip_and_drive(count, room, dt, load(D, block * LANES), driven, y)
            kept = last[b, block].reshape(N * LANES)
            copy(kept, state)
            if keeps:
                copy(state, starts[b, chunk, block].reshape(N * LANES))
            start_B, step_B = _start_and_step(B, b, begin, group)
            start_C, step_C = _start_and_step(C, b, begin, group)
            a = A[block].reshape(N * LANES)
            _advance(count, dt, driven, a, start_B, step_B, B, start_C, step_C, C, N, state, y)
            copy(state, kept)
            if gated:
                take(z, b, begin, count, channel, lanes, room)
                for t in range(count):
                    gate = load(room, t * LANES)
                    store(y, t * LANES, load(y, t * LANES) * gate * sigmoid(gate))
            give(y, out, b, begin, count, channel, lanes)


@compiled(cache=True)
def backward(
    u, delta, A, B, C, D, z, bias, softplus, b, first, stop, starts, grad,
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias,
):  # fmt: skip
    """Compute the gradients of the blocks first:stop of sample b.

    grad is the gradient of out; starts comes from `forward`. grad_u, grad_delta and grad_z (B, L, D), in any strides,
    are filled. The gradients are added to grad_A (blocks, N, LANES), grad_D and grad_bias (blocks, LANES), grad_B and
    grad_C (L, G, N, rounded up to LANES), which no other call may use at the same time.
    """
    length, channels, groups, N = u.shape[1], u.shape[2], B.shape[2], A.shape[1]
    in_group, blocks = channels // groups, A.shape[0] // groups
    gated = z.shape[1] > 0
    padded = grad_B.shape[2]
    size, line = CHUNK * LANES, N * LANES
    rows = workspace(9 * CHUNK + (2 * CHUNK + 2 + stop - first) * N + 2 * padded, u.dtype)
    u_t, dt, slope, driven, y, grad_y, gate, by_input, by_step = (
        rows[:size],
        rows[size : 2 * size],
        rows[2 * size : 3 * size],
        rows[3 * size : 4 * size],
        rows[4 * size : 5 * size],
        rows[5 * size : 6 * size],
        rows[6 * size : 7 * size],
        rows[7 * size : 8 * size],
        rows[8 * size : 9 * size],
    )
    rest = rows[9 * size :]
    decays, states = rest[: CHUNK * line], rest[CHUNK * line : (2 * CHUNK + 1) * line]
    grad_a, carries = rest[(2 * CHUNK + 1) * line : (2 * CHUNK + 2) * line], rest[(2 * CHUNK + 2) * line :]
    products = carries[(stop - first) * line :]
    carries[:] = 0
    for chunk in range((length + CHUNK - 1) // CHUNK - 1, -1, -1):
        begin = chunk * CHUNK
        count = min(CHUNK, length - begin)
        for block in range(first, stop):
            group, inside = block // blocks, block % blocks * LANES
            channel, lanes = group * in_group + inside, min(LANES, in_group - inside)
            take(delta, b, begin, count, channel, lanes, dt)
            take(u, b, begin, count, channel, lanes, u_t)
            take(grad, b, begin, count, channel, lanes, grad_y)
            skip = load(D, block * LANES)
            _step_sizes(load(bias, block * LANES), softplus, count, dt, slope)
            _skip_and_drive(count, u_t, dt, skip, driven, y)
            copy(starts[b, chunk, block].reshape(line), states)
            start_B, step_B = _start_and_step(B, b, begin, group)
            start_C, step_C = _start_and_step(C, b, begin, group)
            a = A[block].reshape(line)
            _replay(count, dt, driven, a, start_B, step_B, B, start_C, step_C, C, N, states, decays, y)
            if gated:
                take(z, b, begin, count, channel, lanes, gate)
                _gate_back(count, gate, y, grad_y)
                give(gate, grad_z, b, begin, count, channel, lanes)
            grad_a[:] = 0
            _back(
                count, dt, driven, a, start_B, step_B, B, start_C, step_C, C, N, states, decays, grad_y,
                carries[(block - first) * line :], grad_a, by_input, by_step, products,
                grad_B, grad_C, (begin * groups + group) * padded, groups * padded,
            )  # fmt: skip
            for n in range(0, line, LANES):
                place = block * line + n
                store(grad_A, place, load(grad_A, place) + load(grad_a, n))
            total_D, total_bias = load(grad_D, block * LANES), load(grad_bias, block * LANES)
            for t in range(0, count * LANES, LANES):
                x, gy, driving = load(u_t, t), load(grad_y, t), load(by_input, t)
                total_D = fma(gy, x, total_D)
                by_size = fma(x, driving, load(by_step, t) * filled(x, LN_2)) * load(slope, t)
                total_bias = total_bias + by_size
                store(u_t, t, fma(gy, skip, load(dt, t) * driving))
                store(dt, t, by_size)
            store(grad_D, block * LANES, total_D)
            store(grad_bias, block * LANES, total_bias)
            give(u_t, grad_u, b, begin, count, channel, lanes)
            give(dt, grad_delta, b, begin, count, channel, lanes)


@inner
def _gate_back(count, gate, y, grad_y):
    """Turn grad_y, at first the gradient of the gated output, into that of y, and gate into its own gradient."""
    for t in range(0, count * LANES, LANES):
        z, gradient = load(gate, t), load(grad_y, t)
        s = sigmoid(z)
        weight = z * s
        store(grad_y, t, gradient * weight)
        store(gate, t, gradient * load(y, t) * (s + weight * (filled(s, 1.0) - s)))


@compiled(cache=True)
def add_parts(parts, out):
    """Fill out (B, L, G, N), with contiguous N, with the sums of parts (parts, B, L, G, N rounded up to LANES)."""
    batch, length, groups, N = out.shape
    padded, size = parts.shape[4], batch * length * groups * parts.shape[4]
    steps = out.strides[0] // out.itemsize, out.strides[1] // out.itemsize, out.strides[2] // out.itemsize
    room = np.empty(LANES, out.dtype)
    for b in range(batch):
        for t in range(length):
            for group in range(groups):
                place = b * steps[0] + t * steps[1] + group * steps[2]
                for n in range(0, N, LANES):
                    start = ((b * length + t) * groups + group) * padded + n
                    total = load(parts, start)
                    for part in range(1, parts.shape[0]):
                        total = total + load(parts, part * size + start)
                    if n + LANES <= N:
                        store(out, place + n, total)
                    else:
                        store(room, 0, total)
                        for i in range(N - n):
                            put(out, place + n + i, room[i])


def signature_of_forward(dtype):
    """Return the types of `forward`'s arguments for arrays of a NumPy dtype."""
    real = numba.from_dtype(np.dtype(dtype))
    token, block, matrix = (types.Array(real, ndim, "A", readonly=True) for ndim in (3, 2, 4))
    kept = types.Array(real, 3, "C", readonly=True)
    whole, number = types.Array(real, 3, "A"), types.intp
    return (
        token, token, kept, matrix, matrix, block, token, block, types.boolean, number, number, number,
        whole, types.Array(real, 4, "C"), types.Array(real, 5, "C"),
    )  # fmt: skip


def signature_of_backward(dtype):
    """Return the types of `backward`'s arguments for arrays of a NumPy dtype."""
    real = numba.from_dtype(np.dtype(dtype))
    three, two = types.Array(real, 3, "C"), types.Array(real, 2, "C")
    whole, token = types.Array(real, 3, "A"), types.Array(real, 3, "A", readonly=True)
    inputs = signature_of_forward(dtype)[:12]
    return (*inputs, types.Array(real, 5, "C"), token, whole, whole, three, three, three, two, whole, two)


def signature_of_parts(dtype):
    """Return the types of `add_parts`'s arguments for arrays of a NumPy dtype."""
    real = numba.from_dtype(np.dtype(dtype))
    return types.Array(real, 5, "C"), types.Array(real, 4, "A")
