"""The cost of a network as a table, and the points on which the U-Mamba paper and its released code disagree."""

from rich import box
from rich.table import Table

from umamba.networks.build import Architecture
from umamba.networks.cost import NetworkCost, StageCost, build_without_data
from umamba.networks.umamba import block_counts, has_full_resolution_skip, mamba_stages
from umamba.planning import Configuration
from umamba.settings import (
    SwinUNETRSettings,
    UMambaBotSettings,
    UMambaEncSettings,
    UNETRSettings,
    plain,
    read_architecture,
)


def cost_table(cost: NetworkCost, title: str, batch_size: int) -> Table:
    """Return a table with a row for each part of a network and their sums.

    Args:
        cost: cost of the network for one patch.
        title: title of the table.
        batch_size: patches of the batch whose cost the caption gives.
    """
    # Without vertical lines, so that it fits into 80 columns, which is also the width of a redirected output.
    table = Table(title=title, title_justify="left", show_footer=True, box=box.SIMPLE, show_edge=False, padding=0)
    table.add_column("part", "all", no_wrap=True)
    table.add_column("output", justify="right", no_wrap=True)
    table.add_column("parameters", f"{cost.parameters:,}", justify="right", no_wrap=True)
    table.add_column("GFLOPs", f"{cost.flops / 1e9:,.2f}", justify="right", no_wrap=True)
    table.add_column("MiB", _megabytes(cost.activation_bytes), justify="right", no_wrap=True)
    for stage in cost.stages:
        table.add_row(*_row(stage))
    table.caption_justify = "left"
    table.caption = (
        "Forward pass of one patch. Output: features x map, or tokens x width of a token.\n"
        "MiB: activations, float32 tensors that are kept for the backward pass.\n"
        f"A batch of {batch_size}: {batch_size * cost.flops / 1e9:,.1f} GFLOPs, "
        f"{batch_size * cost.activation_bytes / 2**30:,.2f} GiB of activations."
    )
    return table


def _row(stage: StageCost) -> tuple[str, ...]:
    output = " x ".join(map(str, (stage.features, *stage.size)))
    if stage.tokens:
        kind = "channels" if stage.scan == "channel" else "tokens"
        output = f"{stage.tokens:,} x {stage.width:,} {kind}"
    return (
        stage.name,
        output,
        f"{stage.parameters:,}",
        f"{stage.flops / 1e9:,.2f}",
        _megabytes(stage.activation_bytes),
    )


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f}"


def disagreements(architecture: Architecture, configuration: Configuration) -> list[str]:
    """Return the points on which paper and released code disagree about a network, and what this network does.

    Args:
        architecture: see `build_network`.
        configuration: the plan's configuration.

    Returns:
        One sentence or two for each point.

    Raises:
        UserError: an unknown architecture or option.
    """
    settings = read_architecture(architecture)
    if isinstance(settings, UMambaBotSettings | UMambaEncSettings):
        return _umamba(settings, configuration)
    found = []
    if isinstance(settings, UNETRSettings | SwinUNETRSettings):
        multiple = 16 if isinstance(settings, UNETRSettings) else 32
        found.append(
            f"patch: the paper's Table 2 gives one patch for all networks; the code rounds it up to multiples of "
            f"{multiple} in the plan. Here: the plan stays, the input is padded inside the network."
        )
    if isinstance(settings, SwinUNETRSettings) and configuration.dim == 3:
        found.append(
            "patch merging: MONAI 1.3, which the code pins, takes two of eight sub-grids twice and leaves two out; the "
            f"published SwinUNETR takes each once. Here: as MONAI {settings.monai_compat}."
        )
    return found


def _umamba(settings: UMambaBotSettings | UMambaEncSettings, configuration: Configuration) -> list[str]:
    encoder, decoder = block_counts(settings.blocks, configuration)
    official = block_counts("official", configuration)
    found = [
        f"residual blocks: paper, two in every stage; code, {_listed(official[0])} in the encoder and "
        f"{_listed(official[1])} in the decoder. Here: {_listed(encoder)} and {_listed(decoder)}.",
        "decoder: paper, transposed convolutions; code, nearest neighbour and a 1x1 convolution. "
        f"Here: {settings.decoder_upsampling}.",
        "around a Mamba layer: paper does not say; code, no residual. "
        f"Here: {'a residual' if settings.residual else 'no residual'}.",
    ]
    if configuration.dim == 2:
        taken = has_full_resolution_skip(settings, configuration)
        found.append(
            f"skip at full resolution: paper, drawn; code, left out in 2D. Here: {'taken' if taken else 'left out'}."
        )
    if isinstance(settings, UMambaEncSettings):
        found.append(
            f"Mamba layers: paper, all {configuration.num_stages} encoder stages; code, stages "
            f"{_listed(mamba_stages('official', configuration))}. Here: "
            f"{_listed(mamba_stages(settings.mamba_stages, configuration))}."
        )
        found.append(
            "tokens: paper, voxels; code, channels in stages whose feature map has no more voxels than channels, so "
            "that the weights fit one patch size only. Here: as the code."
        )
    if settings.mixer == "identity":
        found.append("Mamba layers: paper and code have them. Here: left out (architecture.mixer=identity).")
    elif settings.mixer != "mamba":
        found.append(f"Mamba layers: paper and code have them. Here: architecture.mixer={settings.mixer}.")
    return found


def beside_mamba(
    architecture: Architecture, configuration: Configuration, in_channels: int, num_classes: int
) -> str | None:
    """Return a sentence that compares the parameters of a U-Mamba with another mixer with those of the original.

    Args:
        architecture: see `build_network`.
        configuration: the plan's configuration.
        in_channels: image channels.
        num_classes: channels of the logits.

    Returns:
        The sentence; None for networks with Mamba layers, and for networks that are no U-Mamba.
    """
    settings = read_architecture(architecture)
    if not isinstance(settings, UMambaBotSettings | UMambaEncSettings) or settings.mixer == "mamba":
        return None
    of_mixers = ("mixer", "mamba", "match", "mixer_kernel", "head_width")
    original = read_architecture({name: each for name, each in plain(settings).items() if name not in of_mixers})
    own, mamba = (
        sum(p.numel() for p in build_without_data(each, configuration, in_channels, num_classes).parameters())
        for each in (settings, original)
    )
    return (
        f"Parameters: {own:,} with mixer={settings.mixer}, match={settings.match}; {mamba:,} with mixer=mamba "
        f"({own - mamba:+,}, {100 * (own - mamba) / mamba:+.2f} %)."
    )


def _listed(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values)) or "none"
