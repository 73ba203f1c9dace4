"""The `recipe` group: optimiser, schedule, loss, clipping, precision. Defaults are nnU-Net's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from umamba.settings.entry_points import LOSSES, name_problem, resolved
from umamba.settings.fields import key
from umamba.settings.validate import Settings
from umamba.settings.wording import unknown_name

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
# Arguments of each optimiser besides lr and weight_decay, by PyTorch's names.
_OPTIMIZER_KEYS = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adam": ("betas", "eps", "amsgrad"),
    "adamw": ("betas", "eps", "amsgrad"),
}
_SCHEDULE_KEYS = {"poly": ("exponent",), "cosine": ("minimum",), "constant": (), "wsd": ("warm_up", "decay")}


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """The optimiser. Sentences name the optimisers that have a key; null keeps PyTorch's default."""

    section: ClassVar[str] = "recipe.optimizer"
    name: Literal["sgd", "adam", "adamw"] = key("sgd", "The optimiser.")
    lr: float = key(0.01, "Learning rate of the first epoch.", low=0)
    weight_decay: float = key(3e-5, "Weight decay (for adam an L2 penalty, for adamw decoupled).", low=0)
    momentum: float | None = key(None, "Momentum (sgd); null: nnU-Net's 0.99.", low=0, below=1)
    dampening: float | None = key(None, "Dampening of the momentum (sgd).", low=0)
    nesterov: bool | None = key(None, "Nesterov momentum (sgd); null: true, as in nnU-Net.")
    betas: tuple[float, float] | None = key(None, "Decay of the two running means (adam, adamw).", low=0, below=1)
    eps: float | None = key(None, "Number added to the denominator (adam, adamw).", above=0)
    amsgrad: bool | None = key(None, "AMSGrad: use the largest second moment so far (adam, adamw).")

    def __post_init__(self) -> None:
        """Check every value, and set nnU-Net's momentum for SGD if none is given.

        Raises:
            InvalidSettings: all mistakes of this record.
        """
        super().__post_init__()
        if self.name == "sgd":
            object.__setattr__(self, "momentum", 0.99 if self.momentum is None else self.momentum)
            nesterov = bool(self.momentum) and not self.dampening
            object.__setattr__(self, "nesterov", nesterov if self.nesterov is None else self.nesterov)

    def arguments(self) -> dict[str, object]:
        """Return the keyword arguments of PyTorch's optimiser."""
        names = ("lr", "weight_decay", *_OPTIMIZER_KEYS[self.name])
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def conflicts(self) -> Iterator[str]:
        """Yield keys that the optimiser does not have, and values that contradict each other."""
        others = {name for names in _OPTIMIZER_KEYS.values() for name in names} - set(_OPTIMIZER_KEYS[self.name])
        for name in sorted(others):
            value = getattr(self, name)
            if value is not None:
                yield (
                    f"recipe.optimizer.{name}={_text(value)}: {self.name} has no {name}. Give "
                    f"recipe.optimizer.{name}=null, or another recipe.optimizer.name."
                )
        if self.name == "sgd" and self.nesterov and (self.momentum == 0 or self.dampening):
            yield (
                "recipe.optimizer.nesterov=true: needs recipe.optimizer.momentum above 0 and no dampening. Give "
                "recipe.optimizer.nesterov=false."
            )


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """The learning rate over the epochs."""

    section: ClassVar[str] = "recipe.schedule"
    name: Literal["poly", "cosine", "constant", "wsd"] = key(
        "poly",
        "poly: (1 - epoch / max_epochs) ** exponent, as in nnU-Net. cosine: half a cosine down to the minimum. "
        "constant: the first rate for all epochs. wsd: warm-up, stable, decay; a budget trains with it.",
    )
    exponent: float = key(0.9, "Exponent of poly.", above=0)
    minimum: float = key(0.0, "Last rate of cosine as a fraction of the first one.", low=0, high=1)
    warm_up: float = key(0.02, "Share of the training in which the rate of wsd rises to the first one.", low=0, below=1)
    decay: float = key(0.3, "Share of the training at its end in which the rate of wsd falls to 0.", low=0, high=1)

    def foreign(self) -> Iterator[str]:
        """Yield keys of other schedules that are given and would do nothing."""
        own = _SCHEDULE_KEYS[self.name]
        for name in (name for names in _SCHEDULE_KEYS.values() for name in names if name not in own):
            value, default = getattr(self, name), getattr(type(self), name)
            if value != default:
                yield (
                    f"recipe.schedule.{name}={value:g}: recipe.schedule.name={self.name} has no {name}. Give "
                    f"{name}={default:g}, which is the default, or another name."
                )

    def conflicts(self) -> Iterator[str]:
        """Yield shares that overlap."""
        if self.warm_up + self.decay > 1:
            yield (
                f"recipe.schedule: warm_up={self.warm_up:g} and decay={self.decay:g} are together more than the whole "
                "training. Give shares with a sum up to 1."
            )


@dataclass(frozen=True)
class FinetuneSettings(Settings):
    """The beginning of a training from pretrained weights; afterwards recipe.schedule takes the rest of the epochs.

    The order is that of nnssl: the decoder alone, a warm-up of all weights, and then the training.
    """

    section: ClassVar[str] = "recipe.finetune"
    frozen: float = key(
        0.0,
        "Share of the training at its beginning in which the encoder stays as it is, while the rate of the decoder and "
        "the heads rises.",
        low=0,
        below=1,
    )
    warm_up: float = key(
        0.0, "Share of the training after that in which the rate of all weights rises.", low=0, below=1
    )

    @property
    def on(self) -> bool:
        """Whether the training begins in another way than one from random weights."""
        return self.frozen > 0 or self.warm_up > 0

    def conflicts(self) -> Iterator[str]:
        """Yield shares that leave nothing for the training itself."""
        if self.frozen + self.warm_up >= 1:
            yield (
                f"recipe.finetune: frozen={self.frozen:g} and warm_up={self.warm_up:g} together are the whole "
                "training. Give shares with a sum below 1."
            )


@dataclass(frozen=True)
class LossSettings(Settings):
    """Soft Dice plus cross-entropy, or a loss of the user's own, whose options are further keys."""

    section: ClassVar[str] = "recipe.loss"
    open_field: ClassVar[str] = "options"
    name: str | None = key(
        None,
        "A loss of your own instead: package.module:function, or an entry point of the group umamba.losses; null: soft "
        "Dice plus cross-entropy.",
    )
    dice_weight: float = key(1.0, "Factor of the soft Dice.", low=0)
    cross_entropy_weight: float = key(1.0, "Factor of the cross-entropy.", low=0)
    class_weights: tuple[float, ...] | None = key(
        None, "Factors of the classes in the cross-entropy, background first (or of the regions); null: all 1.", low=0
    )
    focal_gamma: float = key(
        0.0, "Exponent of the focal factor on the cross-entropy, commonly 2 (Lin et al., 2017); 0: none.", low=0
    )
    tversky: tuple[float, float] | None = key(
        None,
        "Factors of false positives and false negatives in the Dice term, such as [0.3, 0.7] (Salehi et al., 2017); "
        "null: Dice.",
        low=0,
    )
    exclusion_weight: float = key(
        0.0,
        "Factor of the exclusion loss of partly labelled cases (annotated_labels): labels that a case does not carry "
        "are not predicted where another label is known; 0: none.",
        low=0,
    )
    distillation_weight: float = key(
        10.0, "Factor of the loss by which the frozen network of `teacher` keeps its labels.", low=0
    )

    component_weight: float = key(
        0.0,
        "Factor of a further Dice plus cross-entropy for small objects: that of each component of the reference in the "
        "region that is nearest to it, which counts every object the same (CC-DiceCE, arXiv 2511.17146); 0: none.",
        low=0,
    )

    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every value, and replace an entry point by its function, so that a record says which code it needs.

        Raises:
            InvalidSettings: all mistakes of this record.
        """
        if isinstance(self.name, str):
            object.__setattr__(self, "name", resolved(self.name, LOSSES))
        super().__post_init__()

    def conflicts(self) -> Iterator[str]:
        """Yield weights for which the loss is zero or not defined, and keys that the chosen loss does not have."""
        own = {entry.name: entry.default for entry in fields(self) if entry.name not in ("name", "options")}
        if self.name is None:
            yield from (unknown_name(name, self.section, [*own, "name"]) for name in self.options)
        else:
            problem = name_problem(self.name, "recipe.loss.name", LOSSES)
            if problem is not None:
                yield problem
            for name, default in own.items():
                if getattr(self, name) != default:
                    yield (
                        f"recipe.loss.{name}: belongs to the soft Dice and cross-entropy, which recipe.loss.name="
                        f"{self.name} replaces. Take it out, or give an option of your loss another name."
                    )
        if not self.dice_weight and not self.cross_entropy_weight:
            yield "recipe.loss: dice_weight and cross_entropy_weight are both 0. Give one of them a factor above 0."
        if not self.cross_entropy_weight:
            for name in ("class_weights", "focal_gamma"):
                if getattr(self, name):
                    yield f"recipe.loss.{name}: changes the cross-entropy, but cross_entropy_weight is 0. Drop one."
        if not self.dice_weight and self.tversky is not None:
            yield "recipe.loss.tversky: changes the Dice term, but dice_weight is 0. Leave out one of the two."
        if self.class_weights is not None and not any(self.class_weights):
            yield (
                f"recipe.loss.class_weights={list(self.class_weights)}: one must be above 0. Give "
                "cross_entropy_weight=0 to train with the Dice alone."
            )
        if self.tversky is not None and not max(self.tversky):
            yield "recipe.loss.tversky=[0, 0]: one factor must be above 0, such as [0.3, 0.7]."


@dataclass(frozen=True)
class RecipeSettings(Settings):
    """Recipe of a training; the defaults are nnU-Net's, which U-Mamba's own trainers use."""

    section: ClassVar[str] = "recipe"
    name: str = key("nnunet", "Name of the recipe, recorded with the run.")
    optimizer: OptimizerSettings = key(OptimizerSettings, "The optimiser and its arguments.")
    schedule: ScheduleSettings = key(ScheduleSettings, "Learning rate over the epochs.")
    finetune: FinetuneSettings = key(FinetuneSettings, "How a training from pretrained weights begins.")
    loss: LossSettings = key(LossSettings, "The loss.")
    precision: Precision = key(
        "auto",
        "Precision of training. auto: bfloat16 autocast where the device computes it fast, float16 autocast on older "
        "GPUs, else float32. trainer.precision overrides it.",
    )
    deep_supervision: bool = key(
        True, "Deep supervision: a loss at every decoder stage, if the network has such outputs."
    )
    gradient_clip_norm: float | None = key(
        12.0, "Largest norm of the gradients; larger ones are clipped; null: no clipping.", above=0
    )
    oversample_foreground: float = key(
        0.33, "Share of the patches of a batch that must contain foreground.", low=0, high=1
    )
    ema_momentum: float = key(
        0.9, "Momentum of the smoothed patch Dice, which chooses the best checkpoint.", low=0, below=1
    )
    weight_averaging: float | None = key(
        None,
        "Decay of a moving average of the weights, such as 0.999; validation and checkpoints then use the average; "
        "null: no average.",
        above=0,
        below=1,
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)
