"""The scan in Triton. The sequence is divided into chunks, which are computed in parallel.

1. `chunk_totals` computes the state after each chunk as if the chunk started from zero, and the sum of its step sizes.
2. `carry_over` scans over the chunks of each channel and gives the true state at the start of each chunk. The decay of
   a chunk is exactly exp(A times the sum of its step sizes).
3. `outputs` computes each chunk again, from its true start.

Backward runs 1 and 2 from the end of the sequence for the gradients of the states, then `gradients` on each chunk,
which computes its states again. No array of size (B, D, N, L) is ever written.

A program computes one chunk of one sample for a range of channels that share B and C, which stay in its registers. In
backward it sums their gradients there, so that no two programs write to the same place and results repeat bit for bit.
Tiles are (states n, tokens t), with tokens side by side as in memory. Padded n and t hold zeros and steps of size 0,
which change nothing.

Arrays: u, delta, z, grad (B, D, L) with contiguous L, each followed by its strides of B and D; B, C (B, G, N, L), each
followed by its four strides; A (D, N), D and bias (D,), None if absent; out and the gradients of u, delta and z
(B, D, L), contiguous. States are float32, or float64 if the inputs are.
"""

import triton
import triton.language as tl


@triton.jit
def _after(decay_1, state_1, decay_2, state_2):
    """Compose two steps h -> decay h + state."""
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def _apart(x):
    """Split (n, t) into four arrays (n, lanes) with the first to fourth token of each lane; a lane is four tokens."""
    even, odd = tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 4, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _together(first, second, third, fourth):
    """Reverse `_apart`."""
    both = tl.join(tl.join(first, third), tl.join(second, fourth))
    return tl.reshape(both, [first.shape[0], first.shape[1] * 4])


@triton.jit
def _kept_states(decay, driven, start):
    """Return the decayed state before each token (n, t), given the state (n,) at the start of the chunk.

    It runs through the tokens of each lane, then scans over the lanes, then runs through the tokens of each lane again.
    """
    a0, a1, a2, a3 = _apart(decay)
    x0, x1, x2, x3 = _apart(driven)
    lane = tl.arange(0, x0.shape[1])[None, :]
    lane_decay = a0 * a1 * a2 * a3
    lane_end = a3 * (a2 * (a1 * x0 + x1) + x2) + x3
    lane_end += tl.where(lane == 0, lane_decay * start[:, None], 0)
    _, reached = tl.associative_scan((lane_decay, lane_end), 1, _after)
    before = tl.gather(reached, tl.broadcast_to(tl.maximum(lane - 1, 0), reached.shape), 1)
    kept0 = a0 * tl.where(lane == 0, start[:, None], before)
    kept1 = a1 * (kept0 + x0)
    kept2 = a2 * (kept1 + x1)
    return _together(kept0, kept1, kept2, a3 * (kept2 + x2))


@triton.jit
def _state_gradients(own, decay_after, end):
    """Return the gradient of each state (n, t): its own plus the decayed gradient of the next state.

    The mirror image of `_kept_states`; end (n,) is the gradient that comes from the next chunk. The lanes are reversed
    by hand, because Triton needs many more shuffles for a reverse scan.
    """
    a0, a1, a2, a3 = _apart(decay_after)
    g0, g1, g2, g3 = _apart(own)
    lane, last = tl.arange(0, g0.shape[1])[None, :], g0.shape[1] - 1
    turned = tl.broadcast_to(-lane + last, g0.shape)
    lane_decay = tl.gather(a0 * a1 * a2 * a3, turned, 1)
    lane_start = tl.gather(g0 + a0 * (g1 + a1 * (g2 + a2 * g3)), turned, 1)
    lane_start += tl.where(lane == 0, lane_decay * end[:, None], 0)
    _, reached = tl.associative_scan((lane_decay, lane_start), 1, _after)
    after = tl.gather(reached, tl.broadcast_to(tl.maximum(-lane + last - 1, 0), reached.shape), 1)
    g3 += a3 * tl.where(lane == last, end[:, None], after)
    g2 += a2 * g3
    g1 += a1 * g2
    return _together(g0 + a0 * g1, g1, g2, g3)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _softplus(x):
    """Return log(1 + exp(x)), accurate also if exp(x) is tiny; above 20 the identity, as in torch."""
    e = tl.exp(-tl.abs(x))
    if x.dtype == tl.float64:
        w = 1 + e
        log1p = tl.where(w == 1, e, tl.log(w) * e / tl.where(w == 1, 1, w - 1))
    else:  # 2 artanh(e / (2 + e)) as a series, long enough for float32
        s = e / (2 + e)
        q = s * s
        series = 1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15)))
        log1p = 2 * s * (1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * series))))
    return tl.where(x > 20, x, tl.maximum(x, 0) + log1p)


@triton.jit
def _steps(delta, bias, d, t, valid, SOFTPLUS: tl.constexpr, dtype: tl.constexpr):
    """Return the step sizes at tokens t, 0 outside the sequence, and the values before softplus."""
    raw = tl.load(delta + t, mask=valid, other=0).to(dtype)
    if bias is not None:
        raw += tl.load(bias + d).to(dtype)
    step = raw
    if SOFTPLUS:
        step = _softplus(raw)
    return tl.where(valid, step, 0), raw


@triton.jit
def _range(channels, groups, parts):
    """Return the sample, the group of channels, and the first and end channel of this program."""
    group, part = tl.program_id(1).to(tl.int64) // parts, tl.program_id(1).to(tl.int64) % parts
    in_group = channels // groups
    in_part = tl.cdiv(in_group, parts)
    first = group * in_group + part * in_part
    return tl.program_id(2).to(tl.int64), group, first, tl.minimum(first + in_part, (group + 1) * in_group)


@triton.jit
def _tile(matrix, b, group, n, t, stride_b, stride_g, stride_n, stride_t, inside, dtype: tl.constexpr):
    """Load a tile (n, t) of B or C in `dtype`."""
    start = matrix + b * stride_b + group * stride_g
    offsets = n[:, None].to(tl.int64) * stride_n + t[None, :].to(tl.int64) * stride_t
    return tl.load(start + offsets, mask=inside, other=0).to(dtype)


@triton.jit
def chunk_totals(
    x, x_b, x_d, delta, delta_b, delta_d, z, z_b, z_d, matrix, matrix_b, matrix_g, matrix_n, matrix_t,
    A, bias, totals, spans, channels, length, states, groups, parts,
    BACKWARD: tl.constexpr, SOFTPLUS: tl.constexpr, STATES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Fill totals (B, D, chunks, N) and spans (B, D, chunks), the sums of the step sizes.

    Forward: x is u, matrix is B, and a total is the state after the chunk if it starts from zero. BACKWARD: x is the
    gradient of the output, matrix is C, and a total is the gradient of the state before the chunk if no later chunk
    follows.
    """
    dtype: tl.constexpr = totals.dtype.element_ty
    b, group, first, stop = _range(channels, groups, parts)
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    n, t = tl.arange(0, STATES), chunk * TOKENS + tl.arange(0, TOKENS)
    valid, real = t < length, n < states
    before_end = (t + 1 < length) & (tl.arange(0, TOKENS) < TOKENS - 1)
    m = _tile(matrix, b, group, n, t, matrix_b, matrix_g, matrix_n, matrix_t, real[:, None] & valid[None, :], dtype)
    for d in range(first, stop):
        row = b * channels + d
        steps = delta + b * delta_b + d * delta_d
        a = tl.load(A + d * states + n, mask=real, other=0).to(dtype)
        step, _ = _steps(steps, bias, d, t, valid, SOFTPLUS, dtype)
        value = tl.load(x + b * x_b + d * x_d + t, mask=valid, other=0).to(dtype)
        if BACKWARD:
            reach = tl.cumsum(step, 0)
            if z is not None:
                gate = tl.load(z + b * z_b + d * z_d + t, mask=valid, other=0).to(dtype)
                value *= gate * _sigmoid(gate)
        else:
            later, _ = _steps(steps + 1, bias, d, t, before_end, SOFTPLUS, dtype)
            reach = tl.cumsum(later, 0, reverse=True)
            value *= step
        total = tl.sum(tl.exp(a[:, None] * reach[None, :]) * (m * value[None, :]), 1)
        tl.store(totals + (row * chunks + chunk) * states + n, total, mask=real)
        tl.store(spans + row * chunks + chunk, tl.sum(step, 0))


@triton.jit
def carry_over(
    totals, spans, A, carried, channels, chunks, states,
    BACKWARD: tl.constexpr, STATES: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Fill carried (B, D, chunks + 1, N) with the state at the start of each chunk and the final state.

    BACKWARD: fill it with the gradient of the state before each chunk; after the last chunk it is 0.
    """
    dtype: tl.constexpr = totals.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, STATES)
    real = n < states
    a = tl.load(A + (row % channels) * states + n, mask=real, other=0).to(dtype)
    out = carried + row * (chunks + 1) * states
    state = tl.zeros([STATES], dtype)
    if BACKWARD:
        tl.store(out + chunks * states + n, state, mask=real)
    else:
        tl.store(out + n, state, mask=real)
    for start in range(0, chunks, CHUNKS):
        i = start + tl.arange(0, CHUNKS)
        chunk, slot = i, i + 1
        if BACKWARD:
            chunk, slot = chunks - 1 - i, chunks - 1 - i
        inside = (i < chunks)[:, None] & real[None, :]
        span = tl.load(spans + row * chunks + chunk, mask=i < chunks, other=0)
        total = tl.load(totals + (row * chunks + chunk)[:, None] * states + n[None, :], mask=inside, other=0)
        decay = tl.exp(span[:, None] * a[None, :])
        so_far, reached = tl.associative_scan((decay, total), 0, _after)
        reached += so_far * state[None, :]
        tl.store(out + slot[:, None] * states + n[None, :], reached, mask=inside)
        state = tl.sum(tl.where((i == start + CHUNKS - 1)[:, None], reached, 0), 0)


@triton.jit
def outputs(
    u, u_b, u_d, delta, delta_b, delta_d, z, z_b, z_d, B, B_b, B_g, B_n, B_t, C, C_b, C_g, C_n, C_t,
    A, D, bias, carried, out, channels, length, states, groups, parts,
    SOFTPLUS: tl.constexpr, STATES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Fill out, given the states at the start of each chunk in `carried`."""
    dtype: tl.constexpr = carried.dtype.element_ty
    b, group, first, stop = _range(channels, groups, parts)
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    n, t = tl.arange(0, STATES), chunk * TOKENS + tl.arange(0, TOKENS)
    valid, real = t < length, n < states
    inside = real[:, None] & valid[None, :]
    b_nt = _tile(B, b, group, n, t, B_b, B_g, B_n, B_t, inside, dtype)
    c_nt = _tile(C, b, group, n, t, C_b, C_g, C_n, C_t, inside, dtype)
    for d in range(first, stop):
        row = b * channels + d
        a = tl.load(A + d * states + n, mask=real, other=0).to(dtype)
        start = tl.load(carried + (row * (chunks + 1) + chunk) * states + n, mask=real, other=0)
        step, _ = _steps(delta + b * delta_b + d * delta_d, bias, d, t, valid, SOFTPLUS, dtype)
        x = tl.load(u + b * u_b + d * u_d + t, mask=valid, other=0).to(dtype)
        decay = tl.exp(a[:, None] * step[None, :])
        driven = b_nt * (step * x)[None, :]
        y = tl.sum((_kept_states(decay, driven, start) + driven) * c_nt, 0)
        if D is not None:
            y += tl.load(D + d).to(dtype) * x
        if z is not None:
            gate = tl.load(z + b * z_b + d * z_d + t, mask=valid, other=0).to(dtype)
            y *= gate * _sigmoid(gate)
        tl.store(out + row * length + t, y, mask=valid)


@triton.jit
def gradients(
    u, u_b, u_d, delta, delta_b, delta_d, z, z_b, z_d, B, B_b, B_g, B_n, B_t, C, C_b, C_g, C_n, C_t,
    grad, grad_b, grad_d, A, D, bias, carried, carried_back,
    grad_u, grad_delta, grad_z, grad_A, grad_B, grad_C, grad_D, grad_bias,
    channels, length, states, groups, parts,
    SOFTPLUS: tl.constexpr, CONSTANT: tl.constexpr, STATES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Fill the gradients, given the states at the start of each chunk and the gradients of the states at its end.

    The caller sums grad_A (B, D, chunks, N), grad_D and grad_bias (B, D, chunks) over samples and chunks. It sums
    grad_B and grad_C (parts, B, G, N, L), or (parts, B, G, N, chunks) if B and C are CONSTANT (the same for all
    tokens), over parts.
    """
    dtype: tl.constexpr = carried.dtype.element_ty
    b, group, first, stop = _range(channels, groups, parts)
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    n, t = tl.arange(0, STATES), chunk * TOKENS + tl.arange(0, TOKENS)
    valid, real = t < length, n < states
    before_end = (t + 1 < length) & (tl.arange(0, TOKENS) < TOKENS - 1)
    inside = real[:, None] & valid[None, :]
    b_nt = _tile(B, b, group, n, t, B_b, B_g, B_n, B_t, inside, dtype)
    c_nt = _tile(C, b, group, n, t, C_b, C_g, C_n, C_t, inside, dtype)
    sum_b, sum_c = tl.zeros([STATES, TOKENS], dtype), tl.zeros([STATES, TOKENS], dtype)
    for d in range(first, stop):
        row = b * channels + d
        a = tl.load(A + d * states + n, mask=real, other=0).to(dtype)
        state_slot = (row * (chunks + 1) + chunk) * states + n
        start = tl.load(carried + state_slot, mask=real, other=0)
        from_right = tl.load(carried_back + state_slot + states, mask=real, other=0)
        steps = delta + b * delta_b + d * delta_d
        step, raw = _steps(steps, bias, d, t, valid, SOFTPLUS, dtype)
        later, _ = _steps(steps + 1, bias, d, t, before_end, SOFTPLUS, dtype)
        x = tl.load(u + b * u_b + d * u_d + t, mask=valid, other=0).to(dtype)
        grad_y = tl.load(grad + b * grad_b + d * grad_d + t, mask=valid, other=0).to(dtype)
        skip = tl.zeros([], dtype)
        if D is not None:
            skip = tl.load(D + d).to(dtype)

        drive = step * x
        driven = b_nt * drive[None, :]
        decay = tl.exp(a[:, None] * step[None, :])
        kept = _kept_states(decay, driven, start)
        h = kept + driven
        if z is not None:
            gate = tl.load(z + b * z_b + d * z_d + t, mask=valid, other=0).to(dtype)
            s = _sigmoid(gate)
            y = tl.sum(h * c_nt, 0) + skip * x
            tl.store(grad_z + row * length + t, grad_y * y * s * (1 + gate * (1 - s)), mask=valid)
            grad_y *= gate * s
        sum_c += h * grad_y[None, :]

        back = tl.exp(a[:, None] * later[None, :])
        grad_h = _state_gradients(c_nt * grad_y[None, :], back, from_right)
        sum_b += grad_h * drive[None, :]
        by_input = tl.sum(grad_h * b_nt, 0)
        through = grad_h * kept
        tl.store(grad_A + (row * chunks + chunk) * states + n, tl.sum(through * step[None, :], 1), mask=real)
        by_step = tl.sum(through * a[:, None], 0) + x * by_input
        if SOFTPLUS:
            by_step *= tl.where(raw > 20, 1, _sigmoid(raw))
        by_step = tl.where(valid, by_step, 0)
        tl.store(grad_u + row * length + t, grad_y * skip + step * by_input, mask=valid)
        tl.store(grad_delta + row * length + t, by_step, mask=valid)
        tl.store(grad_D + row * chunks + chunk, tl.sum(grad_y * x, 0))
        tl.store(grad_bias + row * chunks + chunk, tl.sum(by_step, 0))

    slot = ((tl.program_id(1) % parts) * tl.num_programs(2) + b) * groups + group
    if CONSTANT:
        offsets = (slot * states + n) * chunks + chunk
        tl.store(grad_B + offsets, tl.sum(sum_b, 1), mask=real)
        tl.store(grad_C + offsets, tl.sum(sum_c, 1), mask=real)
    else:
        offsets = (slot * states + n[:, None]) * length + t[None, :]
        tl.store(grad_B + offsets, sum_b, mask=inside)
        tl.store(grad_C + offsets, sum_c, mask=inside)
