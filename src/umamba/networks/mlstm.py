"""The mLSTM block (Beck et al., xLSTM, 2024, section 2.3 and Figure 10), in matrix products of plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba.networks.decayed_sums import CHUNK, decayed_sums
from umamba.networks.mamba2 import at_least_float32, causal_convolution, heads_of, split_heads
from umamba.networks.scan import without_autocast

_BLOCK = 4  # channels that a projection to q, k or v mixes
_EPS = 1e-5


class MLSTM(nn.Module):
    """An mLSTM block: projection, causal convolution, matrix memory with exponential gates, gate, projection.

    Input gate exp, forget gate sigmoid. Gates and states are float32 at least.

    Args:
        d_model: width of a token.
        inner: wanted inner width; it is rounded up to heads of equal width, multiples of 4, see `heads_of`.
        d_conv: kernel length of the causal convolution.
        head_width: wanted width of a head; the state of a head is a square of this width.

    >>> block = MLSTM(d_model=8, inner=16, head_width=8)
    >>> block(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, d_model: int, *, inner: int, d_conv: int = 4, head_width: int = 64) -> None:
        super().__init__()
        self.heads, self.width = heads_of(inner, head_width, _BLOCK)
        self.inner = self.heads * self.width
        self.up_proj = nn.Linear(d_model, 2 * self.inner, bias=False)
        self.conv1d = nn.Conv1d(self.inner, self.inner, d_conv, padding=d_conv - 1, groups=self.inner)
        blocks = self.inner // _BLOCK
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Parameter(torch.randn(blocks, _BLOCK, _BLOCK) * (2 / (5 * _BLOCK)) ** 0.5) for _ in range(3)
        )
        self.gates = nn.Linear(3 * self.inner, 2 * self.heads)  # the input gates, then the forget gates
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias[: self.heads].normal_(0, 0.1)
            self.gates.bias[self.heads :] = torch.linspace(3, 6, self.heads)  # nearly open
        self.norm_weight = nn.Parameter(torch.ones(self.inner))
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.down_proj = nn.Linear(self.inner, d_model, bias=False)

    def forward(self, tokens_BLC: Tensor, chunk: int = CHUNK) -> Tensor:
        """Map tokens (B, L, d_model) to (B, L, d_model).

        Args:
            tokens_BLC: the tokens.
            chunk: tokens of a chunk; the result does not depend on it.
        """
        x, z = self.up_proj(tokens_BLC).chunk(2, dim=-1)
        convolved = causal_convolution(self.conv1d, x)
        q, k, v = (
            _in_blocks(each, weight)
            for each, weight in ((convolved, self.q_proj), (convolved, self.k_proj), (x, self.v_proj))
        )
        with without_autocast(x.device.type):
            q, k, v = (at_least_float32(each) for each in (q, k, v))
            weight, bias = (at_least_float32(each) for each in (self.gates.weight, self.gates.bias))
            gates = F.linear(torch.cat([q, k, v], dim=-1), weight, bias).transpose(1, 2)
            log_input, forget = gates.split(self.heads, dim=1)  # (B, H, L)
            q, k, v = (split_heads(each, self.heads) for each in (q, k, v))
            h = matrix_memory(q, k * self.width**-0.5, v, F.logsigmoid(forget), log_input, chunk=chunk)
            h = F.layer_norm(h, (self.width,), eps=_EPS).transpose(1, 2).flatten(2) * self.norm_weight.to(h.dtype)
        return self.down_proj((h.to(z.dtype) + self.skip * convolved) * F.silu(z))


def matrix_memory(
    q: Tensor, k: Tensor, v: Tensor, log_forget: Tensor, log_input: Tensor, *, chunk: int = CHUNK
) -> Tensor:
    """Return what the matrix memory of each head answers to its queries (Beck et al., equations 19 to 27).

        C_t = f_t C_(t-1) + i_t v_t k_t^T      n_t = f_t n_(t-1) + i_t k_t      h_t = C_t q_t / max(|n_t . q_t|, 1)

    Args:
        q: (B, H, L, N).
        k: (B, H, L, N), already divided by the root of N.
        v: (B, H, L, P).
        log_forget: (B, H, L), logarithm of the forget gate, at most 0.
        log_input: (B, H, L), logarithm of the input gate, of any size.
        chunk: tokens of a chunk.

    Returns:
        (B, H, L, P).
    """
    sums, scale = decayed_sums(q, k, F.pad(v, (0, 1), value=1.0), log_forget, log_input, chunk=chunk)
    assert isinstance(scale, Tensor)
    one = torch.exp(-scale).clamp(min=torch.finfo(sums.dtype).tiny)  # 1 in the scale of the sums
    return sums[..., :-1] / torch.maximum(sums[..., -1].abs(), one)[..., None]


def mlstm_parameters(d_model: int, *, inner: int, d_conv: int, head_width: int) -> int:
    """Return the number of parameters of `MLSTM` with the same arguments."""
    heads, width = heads_of(inner, head_width, _BLOCK)
    inner = heads * width
    gates = 2 * heads * (3 * inner + 1)
    return 3 * d_model * inner + inner * (d_conv + 1) + 3 * inner * _BLOCK + gates + 2 * inner


def _in_blocks(x_BLC: Tensor, weight: Tensor) -> Tensor:
    """Apply a block-diagonal matrix, given as (blocks, out, in), to (B, L, C)."""
    return torch.einsum("blgi,goi->blgo", x_BLC.unflatten(-1, weight.shape[::2]), weight).flatten(2)
