"""The Mamba-1 block (Gu and Dao, 2023) and the layer that applies it, or another block, to feature maps.

Parameter names and initial weights are those of mamba_ssm.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba.networks.blocks import LARGEST_HALF
from umamba.networks.scan import resolve_backend, selective_scan, without_autocast

_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4  # initial step sizes
_MOST_TAPS = 8  # of a convolution in scan/triton_conv.py, which unrolls them


class Mamba(nn.Module):
    """A Mamba block: projection, causal depthwise convolution, selective scan, gate, projection.

    Arguments and parameter names are those of `mamba_ssm.Mamba`, whose weights can be loaded. It runs on CPUs too.

    Args:
        d_model: width of a token.
        d_state: state size of each channel.
        d_conv: kernel length of the causal convolution.
        expand: inner width as a multiple of `d_model`.
        scan_backend: see `selective_scan`.

    >>> block = Mamba(d_model=8, d_state=4)
    >>> block(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, *, scan_backend: str = "auto"
    ) -> None:
        super().__init__()
        inner = expand * d_model
        self.d_state = d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.scan_backend = scan_backend
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, padding=d_conv - 1, groups=inner)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self._initialise_step_sizes()

    def _initialise_step_sizes(self) -> None:
        bound = self.dt_rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        with torch.no_grad():
            self.dt_proj.bias.copy_(initial_step_biases(self.dt_proj.out_features))

    def forward(self, tokens_BLC: Tensor) -> Tensor:
        """Map tokens (B, L, d_model) to (B, L, d_model)."""
        length = tokens_BLC.shape[1]
        xz = self.in_proj(tokens_BLC)  # (B, L, 2 inner)
        device = xz.device.type
        shape = None if torch.compiler.is_compiling() else (len(xz), xz.shape[2] // 2, length)
        backend = resolve_backend(str(xz.device), self.scan_backend, shape)
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        triton = backend == "triton" and self.conv1d.kernel_size[0] <= _MOST_TAPS
        if not autocast and (triton or (backend == "cpu" and xz.dtype in (torch.float32, torch.float64))):
            return self.out_proj(self._fused(xz, backend))
        x, z = xz.transpose(1, 2).chunk(2, dim=1)  # (B, inner, L) each
        x = F.silu(self.conv1d(x)[..., :length])
        parameters = F.linear(x.transpose(1, 2), self.x_proj.weight)  # (B, L, dt_rank + 2 d_state)
        dt, B, C = parameters.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.linear(dt, self.dt_proj.weight).transpose(1, 2)
        y = selective_scan(
            x,
            delta,
            -torch.exp(self.A_log),
            B.transpose(1, 2),
            C.transpose(1, 2),
            self.D,
            z,
            self.dt_proj.bias,
            delta_softplus=True,
            backend=backend,
        )
        assert isinstance(y, Tensor)
        return self.out_proj(y.transpose(1, 2))

    def _fused(self, xz: Tensor, backend: str) -> Tensor:
        """Map the output of in_proj (B, L, 2 inner) to the gated output of the scan (B, L, inner) in one operation."""
        assert self.conv1d.bias is not None
        weights = (self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight, self.dt_proj.bias)
        A = -torch.exp(self.A_log)
        if backend == "cpu":
            from umamba.networks.scan import cpu_layer

            return cpu_layer.mix(xz, *weights, A, self.D)
        from umamba.networks.scan import triton_layer

        return triton_layer.mix(xz, *weights, A, self.D)


def initial_step_biases(count: int) -> Tensor:
    """Draw biases whose softplus, the initial step sizes, are log-uniform between _DT_MIN and _DT_MAX."""
    low, high = math.log(_DT_MIN), math.log(_DT_MAX)
    steps = torch.exp(torch.rand(count) * (high - low) + low).clamp(min=_DT_FLOOR)
    return steps + torch.log(-torch.expm1(-steps))  # the inverse of softplus


class MambaLayer(nn.Module):
    """Layer norm and a Mamba block on a feature map; the tokens are its voxels in C order, or its channels.

    It computes in float32 under any autocast, as the released code intends, and in float64 if the input is float64. The
    output has the memory format of the input. Voxel tokens of a channels-last map are views of it, so is the output;
    any other map is copied once at either end.

    Args:
        dim: width of a token: the number of channels, or with `channel_token` the number of voxels.
        channel_token: take channels as tokens (the deep stages of U-Mamba Enc); the weights then fit one size only.
        d_state: see `Mamba`.
        d_conv: see `Mamba`.
        expand: see `Mamba`.
        residual: add the input to the output; the released code does not.
        scan_backend: see `selective_scan`.
        scan_directions: order of the voxels. forward: C order (released code). bidirectional: also from the end. axes:
            once with each axis running fastest; has no effect on channel tokens. Each direction has its own Mamba
            block; the outputs are averaged.
        num_axes: number of spatial axes.
        block: makes the block that maps tokens (B, L, width) to (B, L, width), from the width; None: a Mamba block.
    """

    def __init__(
        self,
        dim: int,
        *,
        channel_token: bool = False,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        residual: bool = False,
        scan_backend: str = "auto",
        scan_directions: str = "forward",
        num_axes: int = 3,
        block: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.channel_token = channel_token
        self.residual = residual
        axes = range(-1, -num_axes - 1, -1) if scan_directions == "axes" and not channel_token else (-1,)
        reversed_too = scan_directions == "bidirectional"
        # For each scan: the axis that runs fastest, and whether it starts from the end.
        self.scans = [(axis, backward) for axis in axes for backward in ((False, True) if reversed_too else (False,))]
        self.norm = nn.LayerNorm(dim)
        make = block or (lambda width: Mamba(width, d_state, d_conv, expand, scan_backend=scan_backend))
        self.mamba = make(dim)
        self.other_mambas = nn.ModuleList(make(dim) for _ in self.scans[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *S) to (B, C, *S), in float32 (or float64)."""
        device = x.device.type
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        half = autocast and torch.get_autocast_dtype(device) == torch.float16
        last = channels_last(x.ndim)
        given = last if x.is_contiguous(memory_format=last) and not x.is_contiguous() else torch.contiguous_format
        with without_autocast(device):
            dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
            x = x.to(dtype, memory_format=torch.contiguous_format if self.channel_token else last)
            y = self._scan(self.mamba, x, *self.scans[0])
            for block, scan in zip(self.other_mambas, self.scans[1:], strict=True):
                y = y + self._scan(block, x, *scan)
            y = y / len(self.scans) if len(self.scans) > 1 else y
            y = x + y if self.residual else y
            y = y.clamp(-LARGEST_HALF, LARGEST_HALF) if half else y  # the next layer converts it to float16
            return y.contiguous(memory_format=given)

    def _scan(self, block: nn.Module, x: Tensor, axis: int, backward: bool) -> Tensor:
        """Apply one block to (B, C, *S), with one axis running fastest; the shape stays."""
        turned = x.movedim(axis, -1)
        flat = turned.flatten(2)
        tokens = self.norm(flat if self.channel_token else flat.transpose(1, 2))
        mixed = block(tokens.flip(1)).flip(1) if backward else block(tokens)
        return (mixed if self.channel_token else mixed.transpose(1, 2)).reshape(turned.shape).movedim(-1, axis)


def channels_last(ndim: int) -> torch.memory_format:
    """Return the memory format with channels side by side of a map with `ndim` axes, 4 or 5."""
    return torch.channels_last if ndim == 4 else torch.channels_last_3d
