"""Sums over all earlier tokens that decay by one factor per head and token, computed by matrix products in chunks.

Mamba-2 (Dao and Gu, 2024, section 6) and mLSTM (Beck et al., 2024, section 2.3) are both such sums:

    y_t = sum over s <= t of exp(gain_s + decay_(s+1) + ... + decay_t) (q_t . k_s) v_s

Inside a chunk, the sum is one masked matrix product. Each chunk leaves a state (the sum of k v^T), and the states of
all earlier chunks are summed in the same way in groups, and the groups again, so that no loop runs over the tokens.
A gain may be of any size: every sum is kept with the logarithm of a scale, so that no exponential overflows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # tokens of a chunk, and chunks of a group


def decayed_sums(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, log_gain: Tensor | None = None, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor | float]:
    """Return the sums of all tokens, and the logarithm of their scale.

    Args:
        q: (B, H or 1, L, N); with 1, all heads share it.
        k: (B, H or 1, L, N).
        v: (B, H, L, P).
        log_decay: (B, H, L), at most 0: what is before a token is multiplied by the exponential of its value.
        log_gain: (B, H, L): a token counts with the exponential of its value. None: every token counts once.
        chunk: tokens of a chunk; it changes the speed and the memory, not the result.

    Returns:
        Sums (B, H, L, P), which must be multiplied by exp(scale), and the scale (B, H, L), at least 0 and without a
        gradient, or 0.0 if there are no gains. A quotient of two sums of the same token does not depend on it.
    """
    length = q.shape[2]
    chunk = min(chunk, length)
    q, k, v = (_chunks(x, chunk) for x in (q, k, v))  # (B, H, C, K, ...)
    decay = _chunks(log_decay[..., None], chunk)[..., 0]  # (B, H, C, K)
    sums = segment_sums(decay)  # (B, H, C, K, K)
    if log_gain is not None:
        sums = sums + _chunks(log_gain[..., None], chunk)[..., 0][..., None, :]
    to_end = sums[..., -1, :]
    scale = _scale(to_end.amax(-1)) if log_gain is not None else 0.0
    states = (k * torch.exp(to_end - _column(scale))[..., None]).transpose(-1, -2) @ v  # (B, H, C, N, P)
    before, scale_before = _before(states.flatten(-2), decay.sum(-1), scale)
    from_start = running_sum(decay, -1) + _column(scale_before)  # decay of what is before the chunk
    scale = _scale(torch.maximum(sums.amax(-1), from_start)) if log_gain is not None else 0.0
    inside = (torch.exp(sums - _column(scale)) * (q @ k.transpose(-1, -2))) @ v
    outside = torch.exp(from_start - scale)[..., None] * (q @ before.unflatten(-1, states.shape[-2:]))
    y = (inside + outside).flatten(2, 3)[:, :, :length]
    return y, scale.flatten(2, 3)[:, :, :length] if isinstance(scale, Tensor) else scale


def segment_sums(x: Tensor) -> Tensor:
    """Return (..., K, K): entry [t, s] is x[s + 1] + ... + x[t], 0 for s = t, and minus infinity for s > t.

    Each entry is summed by itself. A difference of two sums from the start would lose the digits of a short segment
    behind a large value.

    Args:
        x: (..., K).

    >>> segment_sums(torch.tensor([1.0, 2.0, 3.0]))
    tensor([[0., -inf, -inf],
            [2., 0., -inf],
            [5., 3., 0.]])
    """
    size = x.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    columns = x[..., None].expand(*x.shape, size).masked_fill(~below.tril(-1), 0)
    return running_sum(columns, -2).masked_fill(~below, float("-inf"))


def running_sum(x: Tensor, dim: int) -> Tensor:
    """Return the sum of each entry and all before it, also in deterministic mode, where PyTorch has no cumsum on CUDA.

    Args:
        x: (..., K) or (..., K, M).
        dim: -1 or -2.
    """
    if x.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return x.cumsum(dim)
    return sum_by_doubling(x, dim)


def sum_by_doubling(x: Tensor, dim: int) -> Tensor:
    """Return `running_sum` by sums of neighbours, of sums of two, of four and so on."""
    stride = 1
    while stride < x.shape[dim]:
        before = x.narrow(dim, 0, x.shape[dim] - stride)
        x = x + F.pad(before, (stride, 0) if dim == -1 else (0, 0, stride, 0))
        stride *= 2
    return x


def _before(states: Tensor, decay: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor | float]:
    """Return for each of the states (..., C, F) the decayed sum of those before it, and the logarithm of its scale.

    The decay (..., C) acts on what is before a state; the scale (..., C) is that of the states.
    """
    count = states.shape[-2]
    size = min(CHUNK, count)
    rest = -count % size
    states = F.pad(states, (0, 0, 0, rest)).unflatten(-2, (-1, size))  # (..., G, size, F)
    decay = F.pad(decay, (0, rest)).unflatten(-1, (-1, size))
    with_scale = isinstance(scale, Tensor)
    sums = segment_sums(decay)
    if isinstance(scale, Tensor):
        sums = sums + F.pad(scale, (0, rest)).unflatten(-1, (-1, size))[..., None, :]
    inside = F.pad(sums[..., :-1, :], (0, 0, 1, 0), value=float("-inf"))  # [t, s]: what s adds before the decay of t
    if states.shape[-3] == 1:
        scale = _scale(inside.amax(-1)) if with_scale else 0.0
        before = torch.exp(inside - _column(scale)) @ states
    else:
        to_end = sums[..., -1, :]
        of_groups = _scale(to_end.amax(-1)) if with_scale else 0.0
        totals = (torch.exp(to_end - _column(of_groups))[..., None, :] @ states)[..., 0, :]
        outer, outer_scale = _before(totals, decay.sum(-1), of_groups)
        from_start = F.pad(running_sum(decay, -1)[..., :-1], (1, 0)) + _column(outer_scale)
        scale = _scale(torch.maximum(inside.amax(-1), from_start)) if with_scale else 0.0
        before = torch.exp(inside - _column(scale)) @ states
        before = before + torch.exp(from_start - scale)[..., None] * outer[..., None, :]
    found = scale.flatten(-2)[..., :count] if isinstance(scale, Tensor) else scale
    return before.flatten(-3, -2)[..., :count, :], found


def _chunks(x: Tensor, size: int) -> Tensor:
    """Return (B, H, L, N) as (B, H, C, size, N); zeros fill the last chunk, which nothing before them sees."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def _scale(largest: Tensor) -> Tensor:
    """Return the scale for sums whose largest logarithm is given: never below 0, so that a small sum stays small."""
    return largest.detach().clamp(min=0)


def _column(scale: Tensor | float) -> Tensor | float:
    return scale[..., None] if isinstance(scale, Tensor) else scale
