"""The contract that every backbone fulfils in 2D and 3D, as checks that run on small networks.

The tests of this project run them on its own backbones, and `umamba check-backbone` runs them on a user's.
"""

import copy
import gc
import io
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from umamba.io import UserError
from umamba.networks.build import Architecture, build_network
from umamba.networks.cost import network_cost
from umamba.planning import Configuration

CHANNELS, CLASSES = 2, 3
_MIXING = 1e-3  # largest difference between a batch and its images alone, relative to the largest logit

# Small plans. The odd ones have axes of different length, a stride of three, a kernel of one voxel, and channel tokens
# in the last stage of U-Mamba Enc.
_PLANS: dict[tuple[int, bool], dict[str, Any]] = {
    (2, False): {
        "patch_size": (40, 24),
        "strides": ((1, 1), (2, 2), (2, 2)),
        "kernel_sizes": ((3, 3), (3, 3), (3, 3)),
        "features_per_stage": (4, 6, 8),
    },
    (3, False): {
        "patch_size": (4, 40, 8),
        "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        "kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        "features_per_stage": (4, 6, 8),
    },
    (2, True): {
        "patch_size": (12, 40),
        "strides": ((1, 1), (2, 2), (3, 2)),
        "kernel_sizes": ((3, 3), (3, 1), (1, 3)),
        "features_per_stage": (4, 6, 20),
    },
    (3, True): {
        "patch_size": (4, 6, 40),
        "strides": ((1, 1, 1), (1, 1, 2), (2, 3, 4)),
        "kernel_sizes": ((1, 3, 3), (3, 1, 3), (3, 3, 3)),
        "features_per_stage": (4, 6, 20),
    },
}


class Nonconforming(Exception):
    """A network does not fulfil the contract; the text says what is wrong."""


@dataclass(frozen=True)
class Check:
    """One part of the contract.

    Attributes:
        name: a few words for the table.
        run: checks an architecture at a configuration; it returns a remark for the table, or raises `Nonconforming`.
        odd: the configuration is the odd one.
    """

    name: str
    run: Callable[[Architecture, Configuration], str]
    odd: bool = False


@dataclass(frozen=True)
class Outcome:
    """The result of a check.

    Attributes:
        check: name of the check.
        dim: 2 or 3.
        passed: whether the network fulfils this part of the contract.
        remark: a figure, or what is wrong.
    """

    check: str
    dim: int
    passed: bool
    remark: str


def small_configuration(dim: int, odd: bool = False, **changes: Any) -> Configuration:
    """Return a small configuration of three stages.

    Args:
        dim: 2 or 3 axes.
        odd: edges, strides and kernels that differ between the axes.
        changes: fields of the configuration that are replaced.
    """
    fields: dict[str, Any] = {
        "name": "2d" if dim == 2 else "3d_fullres",
        "spacing": (1.0,) * dim,
        "median_shape": (40.0,) * dim,
        "batch_size": 2,
        "batch_dice": False,
        "normalization": ("ZScoreNormalization",),
        "use_mask_for_norm": (False,),
        "encoder_blocks": (2, 2, 2),
        "decoder_blocks": (2, 2),
        "residual_encoder": False,
        **_PLANS[dim, odd],
    }
    return Configuration(**{**fields, **changes})


def check_sizes(architecture: Architecture, configuration: Configuration) -> str:
    """Logits have the patch's size; with deep supervision, a list of them has the sizes of the plan's stages."""
    network = _seeded(architecture, configuration).eval()
    size = list(configuration.patch_size)
    with torch.no_grad():
        image = _images(configuration, 1)
        outputs = network(image)
        _require(network.deep_supervision == network.supports_deep_supervision, "it does not keep deep_supervision")
        network.deep_supervision = False
        alone = network(image)
    _require(isinstance(alone, Tensor), "without deep supervision the output is no tensor")
    _require(list(alone.shape) == [1, CLASSES, *size], f"the logits are {list(alone.shape)}, not {[1, CLASSES, *size]}")
    _require(torch.equal(alone, _listed(outputs)[0]), "deep supervision changes the logits at full resolution")
    if not network.supports_deep_supervision:
        _require(isinstance(outputs, Tensor), "it returns a list although it does not support deep supervision")
        return "one output"
    _require(isinstance(outputs, list), "with deep supervision the output is no list")
    for output in outputs:
        _require(output.shape[:2] == (1, CLASSES), f"an output has the shape {list(output.shape)}")
        factors = [whole / part for whole, part in zip(size, output.shape[2:], strict=True)]
        _require(all(factor >= 1 for factor in factors), f"an output has the size {list(output.shape[2:])}")
    volumes = [output.shape[2:].numel() for output in outputs]
    _require(volumes == sorted(volumes, reverse=True), "the outputs are not in the order of their resolution")
    return f"{len(outputs)} outputs"


def check_gradients(architecture: Architecture, configuration: Configuration) -> str:
    """In a batch of one, every parameter gets a finite gradient."""
    network = _seeded(architecture, configuration).train()
    outputs = _listed(network(_images(configuration, 1)))
    torch.stack([(output * torch.randn_like(output)).sum() for output in outputs]).sum().backward()
    without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    _require(not without, f"no gradient reaches {', '.join(without[:3])}")
    _check_finite_gradients(network)
    return f"{sum(1 for _ in network.parameters())} tensors"


def check_autocast(architecture: Architecture, configuration: Configuration) -> str:
    """Outputs and gradients are finite under bfloat16 autocast."""
    network = _seeded(architecture, configuration).train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = _listed(network(_images(configuration)))
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    _require(all(bool(output.isfinite().all()) for output in outputs), "outputs are not finite")
    _check_finite_gradients(network)
    return ""


def check_round_trip(architecture: Architecture, configuration: Configuration) -> str:
    """The same seed gives the same network; its weights, saved and loaded, and its copy compute the same."""
    network, twin = (_seeded(architecture, configuration).eval() for _ in range(2))
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    same = all(torch.equal(tensor, state[name]) for name, tensor in twin.state_dict().items())
    _require(same, "the same seed gives other weights")
    torch.manual_seed(8)
    other = _built(architecture, configuration).eval()
    other.load_state_dict(state, strict=True)
    image = _images(configuration)
    with torch.no_grad():
        first, second, loaded, copied = (
            _listed(each(image))[0] for each in (network, network, other, copy.deepcopy(network))
        )
    _require(torch.equal(first, second), "two passes over one image differ in evaluation mode")
    _require(torch.equal(first, loaded), "with the same weights, another network computes something else")
    _require(torch.equal(first, copied), "a copy computes something else")
    return ""


def check_batch(architecture: Architecture, configuration: Configuration) -> str:
    """In evaluation mode, the images of a batch do not mix."""
    network = _seeded(architecture, configuration).eval()
    network.deep_supervision = False
    image = _images(configuration)
    with torch.no_grad():
        together, alone = network(image), torch.cat([network(image[:1]), network(image[1:])])
    # Not equality: kernels differ by batch size, and a Mamba layer without residual amplifies float32 noise.
    difference = float((together - alone).abs().max() / together.abs().max().clamp_min(1e-12))
    _require(difference <= _MIXING, f"an image's logits differ by {difference:.1g} of the largest when it is alone")
    return ""


def check_other_sizes(architecture: Architecture, configuration: Configuration) -> str:
    """A tile of twice the size gives logits of that size, or a message that names the patch size."""
    network = _seeded(architecture, configuration).eval()
    network.deep_supervision = False
    size = tuple(2 * axis for axis in configuration.patch_size)
    image = torch.randn(1, CHANNELS, *size)
    fixed = network.fixed_patch_size
    with torch.no_grad():
        if fixed is None:
            _require(network(image).shape[2:] == size, "the logits of a larger tile have another size")
            return "any size"
        _require(tuple(fixed) == tuple(configuration.patch_size), f"fixed_patch_size is {fixed}, not the plan's patch")
        try:
            network(image)
        except UserError as error:
            _require("patch size" in str(error), f"the message about a larger tile names no patch size: {error}")
            return "the plan's patch only"
    raise Nonconforming("fixed_patch_size is set, but a larger tile is not refused")


def check_compiled(architecture: Architecture, configuration: Configuration) -> str:
    """Compiled by torch.compile, it computes the same outputs and gradients."""
    network = _seeded(architecture, configuration).double()  # rounding must not be mistaken for a difference
    image = _images(configuration).double()
    torch.compiler.reset()  # what was compiled before counts towards the limit after which nothing is compiled
    results = []
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Dynamo detected a call to a `functools.lru_cache`"
        )  # constants, traced rightly
        for forward in (network, torch.compile(network, backend="aot_eager")):
            network.zero_grad()
            outputs = _listed(forward(image))
            torch.stack([output.square().mean() for output in outputs]).sum().backward()
            results.append([*outputs, *(parameter.grad for parameter in network.parameters())])
    for eager, compiled in zip(*results, strict=True):
        if (eager is None) != (compiled is None):
            raise Nonconforming("compiled, other parameters get a gradient")
        if eager is not None and compiled is not None:
            difference = float((compiled - eager).detach().abs().max())
            _require(
                torch.allclose(compiled, eager, rtol=1e-6, atol=1e-9), f"compiled, values differ by {difference:.1g}"
            )
    return ""


def check_memory(architecture: Architecture, configuration: Configuration) -> str:
    """Its cost can be measured without data, and after a step it keeps neither activations nor outputs."""
    network = _seeded(architecture, configuration).train()
    image = _images(configuration)
    outputs = _listed(network(image))
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    kept = [weakref.ref(tensor) for tensor in (image, *outputs)]
    del image, outputs
    gc.collect()
    _require(not any(reference() is not None for reference in kept), "it keeps an image or an output after a step")
    cost = network_cost(architecture, configuration, CHANNELS, CLASSES)
    return f"{cost.parameters:,} parameters, {cost.activation_bytes / 2**20:.1f} MiB of activations"


CHECKS = (
    Check("output sizes", check_sizes),
    Check("odd sizes", check_sizes, odd=True),
    Check("tiles of another size", check_other_sizes, odd=True),
    Check("gradients", check_gradients),
    Check("bfloat16 autocast", check_autocast),
    Check("weights saved and loaded", check_round_trip),
    Check("images of a batch", check_batch),
    Check("torch.compile", check_compiled),
    Check("memory", check_memory),
)


def run_checks(architecture: Architecture, dims: Sequence[int] = (2, 3)) -> Iterator[Outcome]:
    """Run all checks and yield their results; what a network raises is a failed check.

    Args:
        architecture: see `build_network`.
        dims: 2, 3 or both.

    Raises:
        UserError: the architecture's module or options are wrong.
    """
    for check in CHECKS:
        for dim in dims:
            try:
                remark, passed = check.run(architecture, small_configuration(dim, check.odd)), True
            except Nonconforming as error:
                remark, passed = str(error), False
            except Exception as error:  # whatever a user's network raises
                lines = str(error).strip().splitlines() or [""]
                remark, passed = f"{type(error).__name__}: {lines[0]}", False
            yield Outcome(check.name, dim, passed, remark)


def _built(architecture: Architecture, configuration: Configuration) -> Any:
    """Build a network; Any, because `deep_supervision` is set on it."""
    return build_network(architecture, configuration, CHANNELS, CLASSES)


def _seeded(architecture: Architecture, configuration: Configuration) -> Any:
    torch.manual_seed(7)
    return _built(architecture, configuration)


def _images(configuration: Configuration, batch: int = 2) -> Tensor:
    """Return random images of the plan's patch size."""
    return torch.randn(batch, CHANNELS, *configuration.patch_size, generator=torch.Generator().manual_seed(1))


def _listed(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _require(fulfilled: bool, problem: str) -> None:
    if not fulfilled:
        raise Nonconforming(problem)


def _check_finite_gradients(network: Any) -> None:
    wrong = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    _require(not wrong, f"gradients are not finite: {', '.join(wrong[:3])}")
