"""Whether a GPU computes norm, sum and LeakyReLU by the kernels of fused_norm_triton.py: a check on it decides."""

import logging
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba.networks.fused_norm import channels_last
from umamba.networks.own_autograd import own_autograd

log = logging.getLogger(__name__)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TOLERANCE = 2e-2  # relative error in the check: above bfloat16's rounding, below any mistake
# One part and several; voxels that 16 divides, for which Triton compiles other code, and that it does not divide
_SIZES = ((2, 3, 3, 5, 7), (1, 16, 5, 16, 32))


def fused_on_gpu(x: Tensor) -> bool:
    """Return whether the kernels compute this map (B, C, *S); the first call on a device checks them there.

    While a network is compiled, exported or traced they do not: it should see PyTorch's operators only.
    """
    if x.device.type != "cuda" or x.dtype not in _DTYPES:
        return False
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    return _works(x.device)


@cache
def _works(device: torch.device) -> bool:
    """Check the kernels on a device, and log once why they are not used there."""
    what = f"InstanceNorm with LeakyReLU on {device}: PyTorch's separate operators, which are slower, because"
    try:
        refusal = disagreement(device)
    except ModuleNotFoundError as error:
        log.info("%s %s is not installed.", what, error.name)
        return False
    except Exception as error:  # a broken build can raise anything; its message is the reason
        lines = str(error).strip().splitlines()
        refusal = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    if refusal:
        log.warning("%s the fused kernels do not work here: %s", what, refusal)
    return not refusal


def disagreement(device: torch.device) -> str | None:
    """Return in which result the kernels differ from PyTorch in float64 on small maps; None if all agree.

    Args:
        device: a CUDA device; a CPU in Triton's interpreter.
    """
    layouts = (torch.contiguous_format, channels_last(3))
    generator = torch.Generator().manual_seed(0)
    with own_autograd(device.type):
        for dtype, size, layout in product((torch.float32, torch.bfloat16), _SIZES, layouts):
            for name, error in _errors(device, dtype, size, layout, generator).items():
                if not error < _TOLERANCE:  # NaN too
                    return f"{name} in {dtype} differs by {error:.1e} of its size."
    return None


def _errors(
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, ...],
    layout: torch.memory_format,
    generator: torch.Generator,
) -> dict[str, float]:
    """Return the relative error of each result of the kernels on random numbers."""
    from umamba.networks.fused_norm_triton import norm_activation

    x, residual, cotangent = (torch.randn(size, generator=generator).to(dtype) for _ in range(3))
    weight, bias = (torch.rand(size[1], generator=generator) + k for k in (0.5, -0.5))
    values = [x.contiguous(memory_format=layout), residual, weight, bias]
    leaves = [value.to(device).requires_grad_() for value in values]
    y = norm_activation(leaves[0], leaves[1], leaves[2], leaves[3], 0.01, 1e-5)
    found = [y, *torch.autograd.grad(y, leaves, cotangent.to(device))]
    exact = [value.double().requires_grad_() for value in values]
    z = F.instance_norm(exact[0], None, None, exact[2], exact[3], eps=1e-5) + exact[1]
    right = F.leaky_relu(z, 0.01)
    expected = [right, *torch.autograd.grad(right, exact, cotangent.double())]
    names = ("the output", *(f"the gradient of {name}" for name in ("x", "residual", "weight", "bias")))
    return {
        name: float((one.detach().double().cpu() - other.detach()).norm() / other.detach().norm())
        for name, one, other in zip(names, found, expected, strict=True)
    }
