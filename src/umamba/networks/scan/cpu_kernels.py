"""The scan compiled for CPUs. One call computes a range of channels of one sample, one chunk of tokens after another.

Sixteen states of a channel lie side by side, so that vector instructions update them together. B and C of a chunk stay
in the cache while all channels use them. Forward keeps the states at the start of each chunk; backward computes the
states in between again, so that memory grows with B D L only, not with B D L N.

Arrays: u, delta, z, out (B, D, L); A (K, D, LANES) for K groups of states; B, C (B, G, K, L, LANES), with one sample
and one token if they are the same for all tokens. D and bias are (D,), zeros if absent; z has length 0 if absent. The
inner functions compute one chunk of one channel and one group of states, with tokens as the first axis. They are small
and simple, because LLVM vectorises only such loops.
"""

import numba
import numpy as np

from umamba.networks.scan.vector_math import exp, log1p

CHUNK = 128  # tokens
LANES = 16  # states of a group; the last group is padded with zeros
# The inner functions become part of their callers. As functions of their own they would be compiled twice, and which of
# the two is called, with its own rounding, would depend on whether the code came from Numba's cache.
_compile = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}, forceinline=True
)


@_compile
def _step_sizes(delta, bias, softplus, dt):
    """Fill dt with the step sizes of a chunk."""
    zero, linear = dt.dtype.type(0), dt.dtype.type(20)  # above 20, torch's softplus is the identity
    for t in range(delta.shape[0]):
        x = delta[t] + bias
        if softplus:
            soft = max(x, zero) + log1p(exp(-abs(x)))
            x = x if x > linear else soft
        dt[t] = x


@_compile
def _advance(u, dt, a, B, C, state, y):
    """Run the state through the chunk and add its output to y."""
    for t in range(u.shape[0]):
        step, driven = dt[t], dt[t] * u[t]
        total = y[t]
        for n in range(LANES):
            new = exp(step * a[n]) * state[n] + driven * B[t, n]
            state[n] = new
            total += new * C[t, n]
        y[t] = total


@_compile
def _decays(dt, a, decay):
    """Fill decay with the factor by which each step multiplies a state."""
    for t in range(dt.shape[0]):
        step = dt[t]
        for n in range(LANES):
            decay[t, n] = exp(step * a[n])


@_compile
def _replay(driven, decay, B, state, states):
    """Run the state through the chunk and fill states[1:]."""
    for t in range(driven.shape[0]):
        x = driven[t]
        for n in range(LANES):
            new = decay[t, n] * state[n] + x * B[t, n]
            state[n] = new
            states[t + 1, n] = new


@_compile
def _read_out(states, C, y):
    """Add the output of the states to y."""
    for t in range(y.shape[0]):
        total = y[t]
        for n in range(LANES):
            total += states[t + 1, n] * C[t, n]
        y[t] = total


# Backward over a chunk is several small passes, because LLVM would not vectorise one pass over all arrays.


@_compile
def _step_back(grad_y, C, decay, carry, dh):
    """Run the gradient `carry` back through the chunk and fill dh, the gradient of each state."""
    for t in range(grad_y.shape[0] - 1, -1, -1):
        gy = grad_y[t]
        for n in range(LANES):
            gradient = carry[n] + gy * C[t, n]
            dh[t, n] = gradient
            carry[n] = gradient * decay[t, n]


@_compile
def _add_scaled(scale, matrix, total):
    """Add scale[t] * matrix[t] to total[t]."""
    for t in range(scale.shape[0]):
        factor = scale[t]
        for n in range(LANES):
            total[t, n] += factor * matrix[t, n]


@_compile
def _project(dh, B, by_input):
    """Add the sum over states of dh * B to by_input."""
    for t in range(by_input.shape[0]):
        total = by_input[t]
        for n in range(LANES):
            total += dh[t, n] * B[t, n]
        by_input[t] = total


@_compile
def _through_decay(dt, a, dh, decay, states, grad_a, by_step):
    """Add the gradient that flows through the decay to grad_a and by_step."""
    for t in range(by_step.shape[0]):
        step, total = dt[t], by_step[t]
        for n in range(LANES):
            kept = dh[t, n] * decay[t, n] * states[t, n]
            grad_a[n] += kept * step
            total += kept * a[n]
        by_step[t] = total


@_compile
def _gate(y, z, out):
    """Fill out with y * silu(z)."""
    one = y.dtype.type(1)
    for t in range(out.shape[0]):
        out[t] = y[t] * z[t] * (one / (one + exp(-z[t])))


@_compile
def _gate_back(grad, z, y, grad_y, grad_z):
    """Fill the gradients of y and z."""
    one = y.dtype.type(1)
    for t in range(grad.shape[0]):
        s = one / (one + exp(-z[t]))
        grad_y[t] = grad[t] * z[t] * s
        grad_z[t] = grad[t] * y[t] * s * (one + z[t] * (one - s))


@_compile
def _softplus_back(delta, bias, grad_delta):
    """Multiply the gradient of the step sizes by the slope of softplus."""
    one, linear = delta.dtype.type(1), delta.dtype.type(20)
    for t in range(delta.shape[0]):
        x = delta[t] + bias
        slope = one / (one + exp(-x))
        grad_delta[t] *= one if x > linear else slope


@_compile
def _inputs_back(u, dt, grad_y, factor, by_input, by_step, grad_u, grad_dt):
    """Fill the gradients of u and of the step sizes; return the sum of grad_y * u."""
    total = u.dtype.type(0)
    for t in range(u.shape[0]):
        grad_u[t] = grad_y[t] * factor + dt[t] * by_input[t]
        grad_dt[t] = by_step[t] + u[t] * by_input[t]
        total += grad_y[t] * u[t]
    return total


@_compile
def _sum(values):
    """Return the sum."""
    total = values.dtype.type(0)
    for t in range(values.shape[0]):
        total += values[t]
    return total


@_compile
def _chunk_of(matrix, sample, group, k, begin, end, constant, room):
    """Return the chunk (tokens, LANES) of B or C; if it is the same for all tokens, repeat it in `room`."""
    if not constant:
        return matrix[sample, group, k, begin:end]
    for t in range(end - begin):
        for n in range(LANES):
            room[t, n] = matrix[0, group, k, 0, n]
    return room[: end - begin]


@_compile
def forward(u, delta, A, B, C, D, z, bias, softplus, constant, b, first, stop, out, last, starts):
    """Fill out, last and starts for the channels first:stop of sample b.

    last (B, D, K, LANES) is the last state, starts (B, D, chunks, K, LANES) the state at the start of each chunk;
    starts is not filled if it has no chunks. The other arrays are described in the module's first lines.
    """
    length, channels, groups = u.shape[2], u.shape[1], B.shape[1]
    dt, y = np.empty(CHUNK, u.dtype), np.empty(CHUNK, u.dtype)
    a, state = np.empty(LANES, u.dtype), np.empty(LANES, u.dtype)
    room_B, room_C = np.empty((CHUNK, LANES), u.dtype), np.empty((CHUNK, LANES), u.dtype)
    keeps, gated = starts.shape[2] > 0, z.shape[2] > 0
    last[b, first:stop] = 0
    for chunk in range((length + CHUNK - 1) // CHUNK):
        begin, end = chunk * CHUNK, min(length, (chunk + 1) * CHUNK)
        count = end - begin
        for d in range(first, stop):
            group = d * groups // channels
            u_t, out_t = u[b, d, begin:end], out[b, d, begin:end]
            _step_sizes(delta[b, d, begin:end], bias[d], softplus, dt)
            for t in range(count):
                y[t] = D[d] * u_t[t]
            for k in range(A.shape[0]):
                a[:] = A[k, d]
                state[:] = last[b, d, k]
                if keeps:
                    starts[b, d, chunk, k] = state
                B_t = _chunk_of(B, b, group, k, begin, end, constant, room_B)
                C_t = _chunk_of(C, b, group, k, begin, end, constant, room_C)
                _advance(u_t, dt, a, B_t, C_t, state, y)
                last[b, d, k] = state
            if gated:
                _gate(y, z[b, d, begin:end], out_t)
            else:
                out_t[:] = y[:count]


@_compile
def backward(
    u, delta, A, B, C, D, z, bias, softplus, constant, b, first, stop, starts, grad,
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias,
):  # fmt: skip
    """Compute the gradients of the channels first:stop of sample b.

    grad is the gradient of out; starts comes from `forward`. grad_u, grad_delta and grad_z (B, D, L) are filled. The
    gradients are added to grad_A (K, D, LANES), grad_D and grad_bias (D,), and to grad_B and grad_C (G, K, L or 1,
    LANES), which no other call may use at the same time.
    """
    length, channels, groups, state_groups = u.shape[2], u.shape[1], B.shape[1], A.shape[0]
    dtype, gated = u.dtype, z.shape[2] > 0
    dt, grad_y, y = np.empty(CHUNK, dtype), np.empty(CHUNK, dtype), np.empty(CHUNK, dtype)
    driven, by_input, by_step = np.empty(CHUNK, dtype), np.empty(CHUNK, dtype), np.empty(CHUNK, dtype)
    a, grad_a, carry = np.empty(LANES, dtype), np.empty(LANES, dtype), np.empty(LANES, dtype)
    states = np.empty((state_groups, CHUNK + 1, LANES), dtype)
    decay, dh = np.empty((state_groups, CHUNK, LANES), dtype), np.empty((CHUNK, LANES), dtype)
    carried = np.zeros((stop - first, state_groups, LANES), dtype)
    room_B, room_C = np.empty((CHUNK, LANES), dtype), np.empty((CHUNK, LANES), dtype)
    room_grad_B, room_grad_C = np.empty((CHUNK, LANES), dtype), np.empty((CHUNK, LANES), dtype)
    for chunk in range((length + CHUNK - 1) // CHUNK - 1, -1, -1):
        begin, end = chunk * CHUNK, min(length, (chunk + 1) * CHUNK)
        count = end - begin
        for d in range(first, stop):
            group = d * groups // channels
            u_t, g_t = u[b, d, begin:end], grad[b, d, begin:end]
            delta_t, grad_u_t, grad_delta_t = (
                delta[b, d, begin:end],
                grad_u[b, d, begin:end],
                grad_delta[b, d, begin:end],
            )
            _step_sizes(delta_t, bias[d], softplus, dt)
            y_t = y[:count]
            for t in range(count):
                y_t[t] = D[d] * u_t[t]
                driven[t] = dt[t] * u_t[t]
            for k in range(state_groups):
                a[:] = A[k, d]
                states[k, 0] = starts[b, d, chunk, k]
                B_t = _chunk_of(B, b, group, k, begin, end, constant, room_B)
                carry[:] = states[k, 0]
                _decays(dt[:count], a, decay[k])
                _replay(driven[:count], decay[k], B_t, carry, states[k])
                if gated:
                    C_t = _chunk_of(C, b, group, k, begin, end, constant, room_C)
                    _read_out(states[k], C_t, y_t)
            if gated:
                _gate_back(g_t, z[b, d, begin:end], y_t, grad_y, grad_z[b, d, begin:end])
            else:
                grad_y[:count] = g_t
            by_input[:] = 0
            by_step[:] = 0
            for k in range(state_groups):
                a[:] = A[k, d]
                grad_a[:] = 0
                carry[:] = carried[d - first, k]
                B_t = _chunk_of(B, b, group, k, begin, end, constant, room_B)
                C_t = _chunk_of(C, b, group, k, begin, end, constant, room_C)
                if constant:
                    grad_B_t, grad_C_t = room_grad_B[:count], room_grad_C[:count]
                    grad_B_t[:] = 0
                    grad_C_t[:] = 0
                else:
                    grad_B_t, grad_C_t = grad_B[group, k, begin:end], grad_C[group, k, begin:end]
                _step_back(grad_y[:count], C_t, decay[k], carry, dh)
                _add_scaled(grad_y[:count], states[k, 1:], grad_C_t)
                _add_scaled(driven[:count], dh, grad_B_t)
                _project(dh, B_t, by_input[:count])
                _through_decay(dt, a, dh, decay[k], states[k], grad_a, by_step[:count])
                if constant:
                    for t in range(count):
                        for n in range(LANES):
                            grad_B[group, k, 0, n] += grad_B_t[t, n]
                            grad_C[group, k, 0, n] += grad_C_t[t, n]
                carried[d - first, k] = carry
                for n in range(LANES):
                    grad_A[k, d, n] += grad_a[n]
            grad_D[d] += _inputs_back(u_t, dt, grad_y, D[d], by_input, by_step, grad_u_t, grad_delta_t)
            if softplus:
                _softplus_back(delta_t, bias[d], grad_delta_t)
            grad_bias[d] += _sum(grad_delta_t)
