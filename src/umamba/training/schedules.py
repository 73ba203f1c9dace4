"""Optimisers and learning-rate schedules of the recipes (nnU-Net's SGD; Adam and AdamW of the compared networks)."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch.optim import Optimizer

from umamba.settings import OptimizerSettings, ScheduleSettings

OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}

_LOWEST = 0.05  # factor with which the warm-up of wsd begins


def build_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: OptimizerSettings, fused: bool = False
) -> Optimizer:
    """Return the optimiser that `recipe.optimizer` describes.

    Args:
        parameters: the parameters that it updates.
        settings: its name and arguments.
        fused: one kernel for each step, which also skips a step by a value on the device (training/nonfinite.py).

    >>> build_optimizer([torch.nn.Parameter(torch.zeros(1))], OptimizerSettings(name="adamw", lr=1e-4)).defaults["lr"]
    0.0001
    """
    one_kernel = {"fused": True} if fused else {}
    return OPTIMIZERS[settings.name](parameters, **settings.arguments(), **one_kernel)  # type: ignore[arg-type]


def learning_rate_factor(settings: ScheduleSettings, max_epochs: float) -> Callable[[float], float]:
    """Return the factor on the learning rate as a function of the epoch (a time budget also gives fractions of one).

    Args:
        settings: `poly` is nnU-Net's rule, (1 - epoch / max_epochs) ** exponent; `cosine` goes from 1 down to
            `minimum` at the end; `constant` is 1; `wsd` (warm-up, stable, decay; Hu et al., 2024, MiniCPM) rises
            linearly, stays at 1, and falls linearly to 0.
        max_epochs: epochs of the whole training.

    >>> learning_rate_factor(ScheduleSettings(exponent=1.0), max_epochs=100)(25)
    0.75
    """
    if settings.name == "poly":
        return lambda epoch: max(0.0, 1 - epoch / max_epochs) ** settings.exponent
    if settings.name == "cosine":
        floor = settings.minimum
        return lambda epoch: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / max_epochs)))
    if settings.name == "wsd":
        return lambda epoch: _trapezium(settings, min(1.0, epoch / max_epochs))
    return lambda epoch: 1.0


def _trapezium(settings: ScheduleSettings, done: float) -> float:
    """Return the factor of wsd after a share of the training; the warm-up begins above 0, so that each step counts."""
    rising = _LOWEST + (1 - _LOWEST) * done / settings.warm_up if done < settings.warm_up else 1.0
    falling = (1 - done) / settings.decay if done > 1 - settings.decay else 1.0
    return min(rising, falling)
