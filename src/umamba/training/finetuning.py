"""How a training from pretrained weights begins: the decoder alone, then a warm-up of all weights.

nnssl fine-tunes its encoders with a warm-up in nnU-Net; a frozen encoder before it keeps the gradients of a decoder
with random weights away from what the encoder has learnt. Both phases are functions of the share of the training that
is done, so that a continued run does the same.
"""

from collections.abc import Callable
from dataclasses import replace

from umamba.io import UserError
from umamba.networks.build import Architecture
from umamba.networks.cost import build_without_data
from umamba.planning import Configuration
from umamba.settings import FinetuneSettings, ScheduleSettings
from umamba.training.backward_graph import backward_graph
from umamba.training.schedules import learning_rate_factor

_DIGITS = 9  # of an epoch: 0.1 * 30 must end with epoch 3, not a little later


def phases(finetune: FinetuneSettings, max_epochs: int) -> tuple[float, float]:
    """Return the epochs at which the frozen phase and the warm-up end.

    Args:
        finetune: their shares of the training.
        max_epochs: epochs of the whole training.

    >>> phases(FinetuneSettings(frozen=0.1, warm_up=0.2), 30)
    (3.0, 9.0)
    """
    ends = finetune.frozen * max_epochs, (finetune.frozen + finetune.warm_up) * max_epochs
    return round(ends[0], _DIGITS), round(ends[1], _DIGITS)


def finetuning_factor(
    finetune: FinetuneSettings, schedule: ScheduleSettings, max_epochs: int
) -> Callable[[float], float]:
    """Return the factor on the learning rate as a function of the epoch (or of a fraction of one).

    It rises linearly to 1 within each of the two phases, and then follows the schedule over the rest of the epochs,
    without a warm-up of the schedule (wsd), because the second phase is one. An
    epoch has the rate of its end, so that a phase of one epoch has the whole rate.

    Args:
        finetune: shares of the two phases.
        schedule: of the rest.
        max_epochs: epochs of the whole training.

    >>> rate = finetuning_factor(FinetuneSettings(frozen=0.2, warm_up=0.2), ScheduleSettings(exponent=1.0), 100)
    >>> [round(rate(epoch), 3) for epoch in (0, 9, 19, 20, 29, 39, 40, 70, 100)]
    [0.05, 0.5, 1.0, 0.05, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    frozen, begun = phases(finetune, max_epochs)
    rest = learning_rate_factor(replace(schedule, warm_up=0.0) if begun else schedule, max_epochs - begun)

    def factor(epoch: float) -> float:
        if epoch >= begun:
            return rest(epoch - begun)
        first, last = (0.0, frozen) if epoch < frozen else (frozen, begun)
        return min(1.0, (epoch + 1 - first) / (last - first))

    return factor


def encoder_names(
    architecture: Architecture, configuration: Configuration, in_channels: int, num_classes: int
) -> tuple[str, ...]:
    """Return the names of the parameters on which the bottleneck of a network depends.

    Args:
        architecture: see `build_network`.
        configuration: the plan's configuration.
        in_channels: image channels.
        num_classes: channels of the logits.

    Raises:
        UserError: the backbone does not give its bottleneck.
    """
    network = build_without_data(architecture, configuration, in_channels, num_classes)
    if not hasattr(network, "bottleneck"):
        raise UserError(
            "recipe.finetune.frozen: the architecture has no bottleneck, which tells the encoder from the decoder. "
            "Give recipe.finetune.frozen=0, or add one (docs/own-architecture.md)."
        )
    graph = backward_graph(architecture, configuration, in_channels, num_classes, False, encoder_only=True)
    return tuple(name for name, _ in network.named_parameters() if name not in set(graph.idle))
