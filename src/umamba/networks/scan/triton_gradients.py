"""The scan's backward pass in Triton; see triton_kernels.py for the arrays and for the division into chunks.

1. `chunk_totals_back` and `carry_over` give the gradient of the state after each chunk.
2. `gradients` walks through each chunk forward, from the state that the forward pass kept, and notes the state before
   every third token. Then it walks back, three tokens at a time, whose states it computes again in registers.

The gradients of B and C are sums over channels, that is over lanes. Each of the five rounds of `over_lanes` halves
the number of sums that a lane holds, until it holds its own. Blocks of lanes write to different places, which the
caller adds; so nothing is added atomically, and results repeat bit for bit.
"""

import triton
import triton.language as tl

from umamba.networks.scan.triton_kernels import (
    LANES,
    UNROLLED,
    column,
    matrix_start,
    per_channel,
    place,
    sigmoid,
    slope_of_softplus,
    state_offsets,
    step_of,
    unaligned,
)

BLOCK = tl.constexpr(3)  # tokens whose states are in registers; with four, they do not fit
_LN_2 = tl.constexpr(0.6931471805599453)


@unaligned
def chunk_totals_back(
    grad, grad_b, grad_t, grad_d, delta, delta_b, delta_t, delta_d, z, z_b, z_t, z_d, C, C_b, C_t, C_g, C_n,
    A, bias, totals, spans, channels, length, groups, tokens,
    SOFTPLUS: tl.constexpr, CONSTANT: tl.constexpr, STATES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Fill totals (B, chunks, N, D) with the gradients of the state before each chunk if no later chunk follows.

    spans (B, chunks, D) are the sums of the step sizes.
    """
    dtype: tl.constexpr = totals.dtype.element_ty
    chunk, chunks = tl.program_id(0), tl.num_programs(0)
    b, group, d, real, begin, count = place(channels, length, groups, tokens, chunk)
    own, row = tl.minimum(d, (group + 1) * (channels // groups) - 1), (begin + count - 1).to(tl.int64)
    at, inside = state_offsets(b * chunks + chunk, d, channels, real, STATES, PADDED)
    n_at, n_inside = state_offsets(0, d, channels, real, STATES, PADDED)
    a = tl.load(A + n_at, mask=n_inside, other=0)
    shift = per_channel(bias, d, real, dtype)
    pg = grad + b * grad_b + row * grad_t + own.to(tl.int64) * grad_d
    pd = delta + b * delta_b + row * delta_t + own.to(tl.int64) * delta_d
    pc = matrix_start(C, C_b, C_t, C_g, b, row, group, CONSTANT)
    pz = pg
    if z is not None:
        pz = z + b * z_b + row * z_t + own.to(tl.int64) * z_d
    gh, span = tl.zeros([PADDED, LANES], dtype), tl.zeros([LANES], dtype)
    for size in tl.static_range(UNROLLED, 0, 1 - UNROLLED):  # by eight tokens, then the rest by one
        for _ in range(0, count // size):
            for token in tl.static_range(size):  # noqa: B007
                step = step_of(tl.load(pd).to(dtype) + shift, SOFTPLUS)
                gy = tl.load(pg).to(dtype)
                if z is not None:
                    gate = tl.load(pz).to(dtype)
                    gy *= gate * sigmoid(gate)
                    pz -= z_t
                c_t = column(pc, C_g, C_n, own, CONSTANT, STATES, PADDED, dtype)
                gh = (gh + c_t * gy[None, :]) * tl.exp2(a * step[None, :])
                span += step
                pg, pd, pc = pg - grad_t, pd - delta_t, pc - C_t
        count = count % size
    tl.store(totals + at, gh, mask=inside)
    tl.store(spans + (b * chunks + chunk) * channels + d, span, mask=real)


@triton.jit
def _halves(x):
    """Return the upper and the lower half of the rows."""
    return tl.split(tl.permute(tl.reshape(x, [2, x.shape[0] // 2, x.shape[1]]), (1, 2, 0)))


@triton.jit
def _halved(first, second, bit):
    """Add pairs of lanes that differ in a bit: the one without it gets the sums of `first`, the other of `second`."""
    lane = tl.arange(0, LANES)[None, :]
    upper = (lane & bit) != 0
    kept, sent = tl.where(upper, second, first), tl.where(upper, first, second)
    return kept + tl.gather(sent, tl.broadcast_to(lane ^ bit, sent.shape), 1)


@triton.jit
def over_lanes(first, second):
    """Sum the rows of two arrays (N, lanes) over the lanes; result (2 N / lanes, lanes).

    Row r of the 2 N rows is at column r // (2 N / lanes); no lane has more than its share of the additions.
    """
    x = _halved(first, second, 16)
    first, second = _halves(x)
    x = _halved(first, second, 8)
    first, second = _halves(x)
    x = _halved(first, second, 4)
    first, second = _halves(x)
    x = _halved(first, second, 2)
    first, second = _halves(x)
    return _halved(first, second, 1)


@unaligned
def gradients(
    u, u_b, u_t, u_d, delta, delta_b, delta_t, delta_d, z, z_b, z_t, z_d, B, B_b, B_t, B_g, B_n,
    C, C_b, C_t, C_g, C_n, grad, grad_b, grad_t, grad_d, A, D, bias, carried, carried_back, starts,
    grad_u, grad_delta, grad_z, grad_z_b, grad_z_t, grad_z_d, parts, grad_A, grad_B, grad_C, grad_D, grad_bias,
    channels, length, groups, tokens, chunks, first,
    SOFTPLUS: tl.constexpr, CONSTANT: tl.constexpr, STATES: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Fill the gradients, given the states at the start of each chunk and the gradients of the states at its end.

    grad_u and grad_delta are (B, L, D), contiguous; grad_z has strides. The caller adds up grad_A (B, chunks, N, D),
    grad_D and grad_bias (B, chunks, D) over samples and chunks, and parts (blocks of lanes, B, L, G, 2 N), the
    gradients of B and C side by side, over the blocks. If B and C are CONSTANT, grad_B and grad_C (B, chunks, N, D) are
    filled in their place. starts (programs, tokens // BLOCK + BLOCK - 1, N, lanes) is room for states. The programs
    compute the chunks from `first`; few enough at a time, so that their room stays in the cache.
    """
    dtype: tl.constexpr = carried.dtype.element_ty
    n, lane = tl.arange(0, PADDED), tl.arange(0, LANES)
    program = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0)
    room = starts + (program + tl.program_id(0)) * (tokens // BLOCK + BLOCK - 1) * (PADDED * LANES)
    tile = n[:, None] * LANES + lane[None, :]
    share: tl.constexpr = 2 * PADDED // LANES
    columns = lane[None, :] * share + tl.arange(0, share)[:, None]
    chunk = first + tl.program_id(0)
    b, group, d, real, begin, count = place(channels, length, groups, tokens, chunk)
    own, row = tl.minimum(d, (group + 1) * (channels // groups) - 1), begin.to(tl.int64)
    at, inside = state_offsets(b * (chunks + 1) + chunk, d, channels, real, STATES, PADDED)
    n_at, n_inside = state_offsets(0, d, channels, real, STATES, PADDED)
    a = tl.load(A + n_at, mask=n_inside, other=0)
    shift = per_channel(bias, d, real, dtype)
    skip = per_channel(D, d, real, dtype)
    pu = u + b * u_b + row * u_t + own.to(tl.int64) * u_d
    pd = delta + b * delta_b + row * delta_t + own.to(tl.int64) * delta_d
    pb = matrix_start(B, B_b, B_t, B_g, b, row, group, CONSTANT)

    h = tl.load(carried + at, mask=inside, other=0)
    for size in tl.static_range(BLOCK, 0, 1 - BLOCK):  # by blocks, then the rest by one
        for _ in range(0, count // size if size > 1 else count % BLOCK):
            tl.store(room + tile, h)
            room += PADDED * LANES
            for token in tl.static_range(size):  # noqa: B007
                step = step_of(tl.load(pd).to(dtype) + shift, SOFTPLUS)
                drive = step * tl.load(pu).to(dtype)
                b_t = column(pb, B_g, B_n, own, CONSTANT, STATES, PADDED, dtype)
                h = tl.exp2(a * step[None, :]) * h + b_t * drive[None, :]
                pu, pd, pb = pu + u_t, pd + delta_t, pb + B_t
    tl.debug_barrier()

    # Pointers of what is read or written on the way back stand at the last token.
    pu, pd, pb = pu - u_t, pd - delta_t, pb - B_t
    row += count - 1
    pg = grad + b * grad_b + row * grad_t + own.to(tl.int64) * grad_d
    pc = matrix_start(C, C_b, C_t, C_g, b, row, group, CONSTANT)
    pz, pgz = pg, pg
    if z is not None:
        pz = z + b * z_b + row * z_t + own.to(tl.int64) * z_d
        pgz = grad_z + b * grad_z_b + row * grad_z_t + own.to(tl.int64) * grad_z_d
    at_d = (b * length + row) * channels + d
    block = tl.program_id(1) % (tl.num_programs(1) // groups)
    part = (block * tl.num_programs(2) + b) * length + row
    pp = parts
    if not CONSTANT:
        pp = parts + (part * groups + group) * (2 * PADDED) + columns
    gh = tl.load(carried_back + at + STATES * channels, mask=inside, other=0)
    sum_a = tl.zeros([PADDED, LANES], dtype)
    sum_d, sum_bias = tl.zeros([LANES], dtype), tl.zeros([LANES], dtype)
    sum_b, sum_c = sum_d, sum_d
    if CONSTANT:
        sum_b, sum_c = sum_a, sum_a
    for size in tl.static_range(1, BLOCK + 1, BLOCK - 1):  # the rest by one token, then by blocks
        for _ in range(0, count // size if size > 1 else count % BLOCK):
            room -= PADDED * LANES
            h = tl.load(room + tile)
            kept, xs, raws, steps = (), (), (), ()
            for i in tl.static_range(size):
                raw = tl.load(pd - (size - 1 - i) * delta_t).to(dtype) + shift
                x = tl.load(pu - (size - 1 - i) * u_t).to(dtype)
                step = step_of(raw, SOFTPLUS)
                h = tl.exp2(a * step[None, :]) * h
                kept, xs, raws, steps = kept + (h,), xs + (x,), raws + (raw,), steps + (step,)  # noqa: RUF005
                if i < size - 1:
                    b_t = column(pb - (size - 1 - i) * B_t, B_g, B_n, own, CONSTANT, STATES, PADDED, dtype)
                    h += b_t * (step * x)[None, :]
            for i in tl.static_range(size - 1, -1, -1):
                x, raw, step = xs[i], raws[i], steps[i]
                drive = step * x
                b_t = column(pb, B_g, B_n, own, CONSTANT, STATES, PADDED, dtype)
                c_t = column(pc, C_g, C_n, own, CONSTANT, STATES, PADDED, dtype)
                h = kept[i] + b_t * drive[None, :]
                gy = tl.where(real, tl.load(pg).to(dtype), 0)
                if z is not None:
                    gate = tl.load(pz).to(dtype)
                    s = sigmoid(gate)
                    y = tl.sum(h * c_t, 0) + skip * x
                    tl.store(pgz, gy * y * s * (1 + gate * (1 - s)), mask=real)
                    gy *= gate * s
                    pz, pgz = pz - z_t, pgz - grad_z_t
                gh += c_t * gy[None, :]
                by_b, by_c = gh * drive[None, :], h * gy[None, :]
                if CONSTANT:
                    sum_b, sum_c = sum_b + by_b, sum_c + by_c
                else:
                    tl.store(pp, over_lanes(by_b, by_c))
                    pp -= groups * (2 * PADDED)
                by_input = tl.sum(gh * b_t, 0)
                through = gh * kept[i]
                by_step = tl.sum(through * a, 0) * _LN_2 + x * by_input
                if SOFTPLUS:
                    by_step *= slope_of_softplus(raw)
                tl.store(grad_u + at_d, gy * skip + step * by_input, mask=real)
                tl.store(grad_delta + at_d, by_step, mask=real)
                sum_a, sum_d, sum_bias = sum_a + through * step[None, :], sum_d + gy * x, sum_bias + by_step
                gh *= tl.exp2(a * step[None, :])
                pb, pc, pg, at_d = pb - B_t, pc - C_t, pg - grad_t, at_d - channels
            pu, pd = pu - size * u_t, pd - size * delta_t
    sums, inside = state_offsets(b * chunks + chunk, d, channels, real, STATES, PADDED)
    tl.store(grad_A + sums, sum_a, mask=inside)
    if CONSTANT:
        tl.store(grad_B + sums, sum_b, mask=inside)
        tl.store(grad_C + sums, sum_c, mask=inside)
    tl.store(grad_D + (b * chunks + chunk) * channels + d, sum_d, mask=real)
    tl.store(grad_bias + (b * chunks + chunk) * channels + d, sum_bias, mask=real)
