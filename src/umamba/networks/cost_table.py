"""A network's cost as a table, and where the U-Mamba paper and its released code disagree about it."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from umamba.networks.describe import NetworkCost, StageCost
from umamba.networks.options import parse_options
from umamba.networks.umamba import UMambaEncOptions, UMambaOptions, block_counts, mamba_stages
from umamba.planning import Configuration

_ROUNDED = {"unetr": 16, "swinunetr": 32}


def cost_table(cost: NetworkCost, title: str, batch_size: int) -> Table:
    """Return a row for each part, and the sums; FLOPs and activations are of one patch, the caption is of a batch."""
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("part", "all", no_wrap=True)
    for name in ("features", "map", "tokens x width", "scan"):
        table.add_column(name, justify="right")
    table.add_column("parameters", f"{cost.parameters:,}", justify="right")
    table.add_column("GFLOPs", f"{cost.flops / 1e9:,.2f}", justify="right")
    table.add_column("activations", _megabytes(cost.activation_bytes), justify="right")
    for stage in cost.stages:
        table.add_row(*_row(stage))
    table.caption_justify = "left"
    table.caption = (
        f"Forward pass of one patch; activations: what is kept for the backward pass, float32.\n"
        f"A batch of {batch_size}: {batch_size * cost.flops / 1e9:,.1f} GFLOPs, "
        f"{batch_size * cost.activation_bytes / 2**30:,.2f} GiB of activations."
    )
    return table


def _row(stage: StageCost) -> tuple[str, ...]:
    return (
        stage.name,
        str(stage.features),
        " x ".join(map(str, stage.size)),
        f"{stage.tokens:,} x {stage.width:,}" if stage.tokens else "",
        stage.scan or "",
        f"{stage.parameters:,}",
        f"{stage.flops / 1e9:,.2f}",
        _megabytes(stage.activation_bytes),
    )


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def disagreements(architecture: Mapping[str, Any], configuration: Configuration) -> list[str]:
    """Return where paper and released code disagree about a network at a plan, and which of both it is.

    Args:
        architecture: see `build_network`.
        configuration: the plan's configuration.
    """
    options = dict(architecture)
    name = str(options.pop("name"))
    if name in ("umamba_bot", "umamba_enc"):
        return _umamba(name, options, configuration)
    found = []
    if name in _ROUNDED:
        found.append(
            f"patch: the paper's Table 2 gives one patch for all networks; the code rounds it up to multiples of "
            f"{_ROUNDED[name]} in the plan. Here: the plan stays, the input is padded inside the network."
        )
    if name == "swinunetr" and configuration.dim == 3:
        found.append(
            "patch merging: MONAI 1.3, which the code pins, takes two of eight sub-grids twice and leaves two out; the "
            f"published SwinUNETR takes each once. Here: as MONAI {options.get('monai_compat', '1.3')}."
        )
    return found


def _umamba(name: str, options: Mapping[str, Any], configuration: Configuration) -> list[str]:
    is_enc = name == "umamba_enc"
    chosen = parse_options(UMambaEncOptions if is_enc else UMambaOptions, options, name)
    encoder, decoder = block_counts(chosen.blocks, configuration)
    official = block_counts("official", configuration)
    found = [
        f"residual blocks: paper, two in every stage; code, {_listed(official[0])} in the encoder and "
        f"{_listed(official[1])} in the decoder. Here: {_listed(encoder)} and {_listed(decoder)}.",
        "decoder: paper, transposed convolutions; code, nearest neighbour and a 1x1 convolution. "
        f"Here: {chosen.decoder_upsampling}.",
        "around a Mamba layer: paper does not say; code, no residual. "
        f"Here: {'a residual' if chosen.residual else 'no residual'}.",
    ]
    if configuration.dim == 2:
        taken = chosen.full_resolution_skip == "always"
        found.append(
            f"skip at full resolution: paper, drawn; code, left out in 2D. Here: {'taken' if taken else 'left out'}."
        )
    if isinstance(chosen, UMambaEncOptions):
        found.append(
            f"Mamba layers: paper, all {configuration.num_stages} encoder stages; code, stages "
            f"{_listed(mamba_stages('official', configuration))}. Here: "
            f"{_listed(mamba_stages(chosen.mamba_stages, configuration))}."
        )
        found.append(
            "tokens: paper, voxels; code, channels in stages whose map has no more voxels than features, which ties "
            "the weights to the patch. Here: as the code."
        )
    if chosen.mamba == "identity":
        found.append("Mamba layers are left out (architecture.mamba=identity): neither paper nor code.")
    return found


def _listed(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values)) or "none"
