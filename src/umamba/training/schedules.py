"""Optimisers and learning-rate schedules of the recipes (nnU-Net's SGD; Adam and AdamW of the compared networks)."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from umamba.io import UserError

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


def build_optimizer(parameters: Iterable[torch.nn.Parameter], settings: Mapping[str, Any]) -> Optimizer:
    """Return the optimiser that `recipe.optimizer` describes.

    Args:
        parameters: what it updates.
        settings: `name` (sgd, adam, adamw) and that optimiser's own arguments.

    Raises:
        UserError: unknown name, or an argument that the optimiser does not take.
    """
    arguments = dict(settings)
    name = arguments.pop("name")
    if name not in OPTIMIZERS:
        raise UserError(f"recipe.optimizer.name={name} is unknown. Choose one of: {', '.join(OPTIMIZERS)}.")
    try:
        return OPTIMIZERS[name](parameters, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"recipe.optimizer does not fit {name}: {error}") from error


def learning_rate_factor(settings: Mapping[str, Any], max_epochs: int) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the epoch (constant within one).

    `poly`: (1 - epoch / max_epochs) ** exponent, nnU-Net's rule. `cosine`: from 1 down to `minimum` (a fraction of the
    initial rate) at the end. `constant`: 1.

    Raises:
        UserError: unknown name.
    """
    name = settings["name"]
    if name == "poly":
        exponent = float(settings["exponent"])
        return lambda epoch: max(0.0, 1 - epoch / max_epochs) ** exponent
    if name == "cosine":
        floor = float(settings["minimum"])
        return lambda epoch: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / max_epochs)))
    if name == "constant":
        return lambda epoch: 1.0
    raise UserError(f"recipe.schedule.name={name} is unknown. Choose one of: poly, cosine, constant.")
