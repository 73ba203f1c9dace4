"""Show a plan as a table."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from umamba.io.escape import rich_text
from umamba.planning.plan import Configuration, Plan


def plan_table(plan: Plan, trained: str | None = None) -> Table:
    """Return a table of a plan with one column per configuration.

    Args:
        plan: the plan.
        trained: the configuration that is trained, whose column is marked; None: none.
    """
    table = Table(title=rich_text(f"Plan of {plan.dataset_name} by the rules {plan.rules}"), title_justify="left")
    table.add_column("")
    # A cascade that only repeats 3d_fullres is shown if it is trained.
    names = [name for name in plan.names if name in plan.configurations or name == trained]
    for name in names:
        chosen = name == trained
        table.add_column(rich_text(f"{name} (trained)" if chosen else name), style="bold" if chosen else "")
    rows = [_rows(plan.configuration(name)) for name in names]
    for label in rows[0]:
        table.add_row(label, *(column[label] for column in rows))
    order = " ".join("zyx"[axis] for axis in plan.transpose_forward)
    table.caption = f"axes {order}; median case {_sizes(plan.median_shape)} at {_sizes(plan.median_spacing)} mm"
    return table


def _rows(configuration: Configuration) -> dict[str, str]:
    schemes = [
        scheme.removesuffix("Normalization") + (" (masked)" if masked else "")
        for scheme, masked in zip(configuration.normalization, configuration.use_mask_for_norm, strict=True)
    ]
    return {
        "spacing (mm)": _sizes(configuration.spacing),
        "median size": _sizes(configuration.median_shape),
        "patch size": _sizes(configuration.patch_size),
        "batch size": str(configuration.batch_size),
        "batch Dice": "yes" if configuration.batch_dice else "no",
        "normalisation": ", ".join(dict.fromkeys(schemes)),
        "stages": str(configuration.num_stages),
        "features": " ".join(map(str, configuration.features_per_stage)),
        "poolings": _sizes([sum(step > 1 for step in axis) for axis in zip(*configuration.strides, strict=True)]),
        "kernels": " ".join(dict.fromkeys("x".join(map(str, kernel)) for kernel in configuration.kernel_sizes)),
        "encoder": ("residual " if configuration.residual_encoder else "")
        + " ".join(map(str, configuration.encoder_blocks)),
        "decoder": " ".join(map(str, configuration.decoder_blocks)),
    }


def _sizes(values: Sequence[Any]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
