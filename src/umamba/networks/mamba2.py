"""The Mamba-2 block (Dao and Gu, Transformers are SSMs, 2024, section 7), in matrix products of plain PyTorch.

Parameter names, their order and initial weights are those of mamba_ssm.Mamba2 with one group.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba.networks.decayed_sums import CHUNK, decayed_sums
from umamba.networks.mamba import initial_step_biases
from umamba.networks.scan import without_autocast

_A_MIN, _A_MAX = 1.0, 16.0  # initial decay rates


class Mamba2(nn.Module):
    """A Mamba-2 block: one projection, causal convolution of x, B and C, SSD, gated RMSNorm, projection.

    Each head has one decay rate A, and all heads share B and C. Decays and states are float32 at least.

    Args:
        d_model: width of a token.
        d_state: state size of each channel.
        d_conv: kernel length of the causal convolution.
        inner: wanted inner width; it is rounded up to heads of equal width, see `heads_of`.
        head_width: wanted width of a head.

    >>> block = Mamba2(d_model=8, d_state=4, inner=16, head_width=8)
    >>> block(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, d_model: int, *, inner: int, d_state: int = 16, d_conv: int = 4, head_width: int = 64) -> None:
        super().__init__()
        self.heads, width = heads_of(inner, head_width)
        self.inner, self.d_state = self.heads * width, d_state
        mixed = self.inner + 2 * d_state
        self.in_proj = nn.Linear(d_model, self.inner + mixed + self.heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, d_conv, padding=d_conv - 1, groups=mixed)
        self.dt_bias = nn.Parameter(initial_step_biases(self.heads))
        self.A_log = nn.Parameter((torch.rand(self.heads) * (_A_MAX - _A_MIN) + _A_MIN).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        self.out_proj = nn.Linear(self.inner, d_model, bias=False)

    def forward(self, tokens_BLC: Tensor, chunk: int = CHUNK) -> Tensor:
        """Map tokens (B, L, d_model) to (B, L, d_model).

        Args:
            tokens_BLC: the tokens.
            chunk: tokens of a chunk; the result does not depend on it.
        """
        mixed = self.inner + 2 * self.d_state
        z, xBC, dt = self.in_proj(tokens_BLC).split([self.inner, mixed, self.heads], dim=-1)
        xBC = causal_convolution(self.conv1d, xBC)
        with without_autocast(xBC.device.type):
            x, B, C = at_least_float32(xBC).split([self.inner, self.d_state, self.d_state], dim=-1)
            dt = F.softplus(at_least_float32(dt) + self.dt_bias).transpose(1, 2)  # (B, H, L)
            x = split_heads(x, self.heads)
            decay = -dt * torch.exp(self.A_log.to(dt.dtype))[:, None]
            y, _ = decayed_sums(C[:, None], B[:, None], x * dt[..., None], decay, chunk=chunk)
            y = (y + x * self.D.to(x.dtype)[:, None, None]).transpose(1, 2).flatten(2)
            y = y * F.silu(z.to(y.dtype))
            y = F.rms_norm(y, (self.inner,), self.norm.weight.to(y.dtype), self.norm.eps)
        return self.out_proj(y.to(z.dtype))


def mamba2_parameters(d_model: int, *, inner: int, d_state: int, d_conv: int, head_width: int) -> int:
    """Return the number of parameters of `Mamba2` with the same arguments."""
    heads, width = heads_of(inner, head_width)
    inner = heads * width
    mixed = inner + 2 * d_state
    return d_model * (2 * inner + mixed + heads) + mixed * (d_conv + 1) + 3 * heads + inner


def heads_of(inner: int, head_width: int, multiple: int = 1) -> tuple[int, int]:
    """Return the number of heads and their equal width; together they are at least `inner` wide.

    Args:
        inner: wanted inner width.
        head_width: wanted width of a head; the true one is the next that divides the inner width.
        multiple: the width of a head is a multiple of this number.

    >>> heads_of(128, 64), heads_of(262, 64), heads_of(8, 64), heads_of(262, 64, multiple=4)
    ((2, 64), (4, 66), (1, 8), (4, 68))
    """
    heads = max(1, round(inner / head_width))
    return heads, multiple * math.ceil(inner / (heads * multiple))


def split_heads(x_BLC: Tensor, heads: int) -> Tensor:
    """Return (B, L, C) as (B, heads, L, C / heads)."""
    return x_BLC.unflatten(-1, (heads, -1)).transpose(1, 2)


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, and other types unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def causal_convolution(conv1d: nn.Conv1d, x_BLC: Tensor) -> Tensor:
    """Apply a convolution that is padded at both ends and SiLU to (B, L, C); no token sees a later one."""
    return F.silu(conv1d(x_BLC.transpose(1, 2))[..., : x_BLC.shape[1]]).transpose(1, 2)
