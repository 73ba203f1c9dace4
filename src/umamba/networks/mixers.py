"""The layer between the convolutions of U-Mamba: Mamba, or what takes its place in a controlled comparison.

`architecture.mixer` chooses it: mamba, mamba2 and mlstm map a sequence of tokens; convolution is the Mamba block with a
large depthwise convolution instead of the scan (the gated block of Yu and Wang, MambaOut, 2024); identity is nothing.
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from umamba.networks.blocks import on_fast_path, ones, operators, saturated
from umamba.networks.mamba import MambaLayer
from umamba.networks.mamba2 import Mamba2, mamba2_parameters
from umamba.networks.mlstm import MLSTM, mlstm_parameters
from umamba.settings import UMambaBotSettings, UMambaEncSettings

UMambaSettings = UMambaBotSettings | UMambaEncSettings


def mixer_layer(options: UMambaSettings, num_axes: int, features: int, voxels: int | None = None) -> nn.Module:
    """Build the layer that `mixer` of the settings chooses; it maps (B, C, *S) to (B, C, *S).

    Args:
        options: the settings.
        num_axes: number of spatial axes.
        features: channels of the feature map.
        voxels: voxels of the feature map if the channels are the tokens, else None. A convolution has no tokens: it
            always runs over the voxels.
    """
    width = features if voxels is None else voxels
    inner = _inner_width(options, num_axes, features, width)
    if options.mixer == "identity":
        return nn.Identity()
    if options.mixer == "convolution":
        return ConvolutionLayer(features, inner, (options.mixer_kernel,) * num_axes, options.residual)
    shared = {"inner": inner, "d_conv": options.d_conv, "head_width": options.head_width}
    blocks: dict[str, Callable[[int], nn.Module]] = {
        "mamba2": partial(Mamba2, d_state=options.d_state, **shared),
        "mlstm": partial(MLSTM, **shared),
    }
    return MambaLayer(
        width,
        channel_token=voxels is not None,
        d_state=options.d_state,
        d_conv=options.d_conv,
        expand=options.expand,
        residual=options.residual,
        scan_backend=options.scan_backend,
        scan_directions=options.scan_directions,
        num_axes=num_axes,
        block=blocks.get(options.mixer),
    )


class ConvolutionLayer(nn.Module):
    """Layer norm, projection, large depthwise convolution, gate, projection, on a feature map.

    Args:
        features: channels of the feature map.
        inner: channels of the depthwise convolution.
        kernel: its odd size along each axis.
        residual: add the input to the output.
    """

    def __init__(self, features: int, inner: int, kernel: tuple[int, ...], residual: bool = False) -> None:
        super().__init__()
        dim = len(kernel)
        self.residual = residual
        self.norm = nn.LayerNorm(features)
        self.in_proj = nn.Linear(features, inner, bias=False)
        self.gate_proj = nn.Linear(features, inner, bias=False)
        padding = tuple(size // 2 for size in kernel)
        self.conv = operators(dim).conv(inner, inner, kernel, ones(dim), padding, groups=inner)
        self.out_proj = nn.Linear(inner, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *S) to (B, C, *S)."""
        tokens = self.norm(x.movedim(1, -1))  # (B, *S, C)
        mixed = self.conv(_as_map(saturated(self.in_proj(tokens)))).movedim(1, -1)
        y = _as_map(self.out_proj(saturated(F.silu(mixed) * F.silu(self.gate_proj(tokens)))))
        return saturated(x + y if self.residual else y)


def _as_map(tokens: Tensor) -> Tensor:
    """Return (B, *S, C) as (B, C, *S), where convolutions compute on channels last without a copy."""
    turned = tokens.movedim(-1, 1)
    return turned if on_fast_path(turned) else turned.contiguous()


def _inner_width(options: UMambaSettings, num_axes: int, features: int, width: int) -> int:
    """Return the inner width of a mixer for tokens of this width; with match=parameters, the one nearest to Mamba."""
    own = features if options.mixer == "convolution" else width
    count = _counter(options, num_axes, own)
    if options.match == "none" or count is None:
        return options.expand * own
    wanted = mamba_parameters(width, options.d_state, options.d_conv, options.expand)
    low, high = 1, 2
    while count(high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:  # count(low) is less than wanted (or low is 1), count(high) is not
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < wanted else (low, middle)
    return min((low, high), key=lambda inner: abs(count(inner) - wanted))


def _counter(options: UMambaSettings, num_axes: int, width: int) -> Callable[[int], int] | None:
    """Return the function from the inner width to a mixer's parameters; None: its width is not free."""
    if options.mixer == "mamba2":
        return lambda inner: mamba2_parameters(
            width, inner=inner, d_state=options.d_state, d_conv=options.d_conv, head_width=options.head_width
        )
    if options.mixer == "mlstm":
        return lambda inner: mlstm_parameters(width, inner=inner, d_conv=options.d_conv, head_width=options.head_width)
    if options.mixer == "convolution":
        return lambda inner: inner * (3 * width + options.mixer_kernel**num_axes + 1)
    return None


def mamba_parameters(d_model: int, d_state: int, d_conv: int, expand: int) -> int:
    """Return the number of parameters of `Mamba` with the same arguments."""
    inner, rank = expand * d_model, -(-d_model // 16)
    return inner * (3 * d_model + d_conv + 1 + 2 * (rank + d_state) + d_state + 2)


def is_mixer(module: nn.Module) -> bool:
    """Return whether a module is one of the layers that `mixer_layer` builds, beside the identity."""
    return isinstance(module, MambaLayer | ConvolutionLayer)
