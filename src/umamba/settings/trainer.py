"""The `trainer` group: duration and devices of a training; other arguments of Lightning's Trainer can be added."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from umamba.settings.fields import key
from umamba.settings.lightning_arguments import (
    ELSEWHERE,
    REFUSED_CALLBACKS,
    RESERVED,
    callback_arguments,
    callback_modules,
    trainer_arguments,
)
from umamba.settings.recipe import Precision
from umamba.settings.validate import Settings, unknown_name, wrong_choice

_TIME = re.compile(r"(?:(\d+):)?(\d+):([0-5]?\d):([0-5]?\d)")
# What EarlyStopping can monitor; a label's own is val/patch_dice/LABEL, a task's val/case_accuracy/TASK.
MONITORED = (
    *(f"{part}/{name}" for part in ("val", "seen") for name in ("loss", "patch_dice", "ema_patch_dice", "case_loss")),
    *("val/case_dice", "train/loss"),
)
_OF_ONE = ("val/patch_dice/", "seen/patch_dice/", "val/case_accuracy/", "seen/case_accuracy/")
_WORDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}


@dataclass(frozen=True)
class TrainerSettings(Settings):
    """Duration and devices of a training, and further arguments of Lightning's Trainer."""

    section: ClassVar[str] = "trainer"
    open_field: ClassVar[str] = "further"
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = key("auto", "Kind of device.")
    devices: int | Literal["auto"] | tuple[int, ...] = key(
        1, "Devices that train one run together: their number, a list of their indices, or auto for all.", low=0
    )
    num_nodes: int = key(1, "Nodes that train one run together.", low=1)
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"] = key(
        "auto",
        "How several devices share a run. auto: DistributedDataParallel as soon as there are several, with a graph "
        "that is recorded once where the network allows it.",
    )
    precision: Precision | None = key(None, "Precision of training; null: the recipe's.")
    max_epochs: int = key(1000, "Epochs of the whole training.", low=1)
    max_time: str | None = key(
        None,
        'Largest time of the training with all its continuations, "[DD:]HH:MM:SS"; it ends after the last epoch that '
        "fits; null: no limit.",
    )
    find_lr: bool = key(
        False,
        "Before a new run starts, find the learning rate by Lightning's tuner (100 steps); it replaces the recipe's.",
    )
    profiler: Literal["simple", "advanced", "pytorch"] | None = key(
        None, "Lightning's profiler; it writes fit-profile.txt into the run folder; null: none."
    )
    accumulate_grad_batches: int = key(
        1, "Number of batches whose gradients are added up for each step of the optimiser.", low=1
    )
    callbacks: tuple[Mapping[str, Any], ...] = key(
        (),
        "Further callbacks: Lightning's by their name with their arguments, such as [{name: EarlyStopping, monitor: "
        "val/patch_dice, mode: max, patience: 50}], or classes of an installed package, [{name: 'module:Class'}].",
    )
    compile: bool = key(
        False, "Compile the network (torch.compile), which takes minutes at the start and makes steps faster."
    )
    activation_checkpointing: bool = key(
        False,
        "Compute the activations of the network's stages again in the backward pass: less memory, slower steps.",
    )
    ddp_batch: Literal["divide", "multiply"] = key(
        "divide",
        "With several devices: divide the plan's batch between them (as in nnU-Net), or give each device a whole "
        "batch.",
    )
    limit_train_batches: int | float | None = key(
        None, "Lowers data.iterations_per_epoch: a number of batches, or a fraction.", above=0
    )
    limit_val_batches: int | float | None = key(
        None, "Lowers data.val_iterations: a number of batches, or a fraction; 0: no validation.", low=0
    )
    deterministic: bool | Literal["warn"] = key(False, "Bit-identical results on one machine; slower on a GPU.")
    benchmark: bool | None = key(
        None,
        "cuDNN tries its algorithms in the first steps and keeps the fastest; null: unless trainer.deterministic, as "
        "nnU-Net.",
    )
    num_sanity_val_steps: int = key(0, "Validation batches before training, as a test; -1: all.", low=-1)
    log_every_n_steps: int = key(50, "Steps between two points of a curve in W&B.", low=0)
    enable_model_summary: bool = key(False, "Print Lightning's table of layers.")
    enable_checkpointing: Literal[False] = key(False, "Off, because this project's callback saves checkpoints.")
    enable_progress_bar: bool = key(
        True, "Show a progress bar on a terminal, or write a line each epoch to a log file."
    )
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def max_seconds(self) -> float | None:
        """max_time in seconds."""
        match = None if self.max_time is None else _TIME.fullmatch(self.max_time)
        if match is None:
            return None
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)

    @property
    def dry_run(self) -> bool:
        """Whether Lightning's fast_dev_run is on: a few batches as a test, in a run folder of their own."""
        return bool(self.further.get("fast_dev_run"))

    def conflicts(self) -> Iterator[str]:
        """Yield arguments that Lightning's Trainer does not have, and values that contradict each other."""
        if self.max_time is not None and _TIME.fullmatch(self.max_time) is None:
            yield f"trainer.max_time={self.max_time}: must be [DD:]HH:MM:SS, such as '12:00:00', or null."
        for name, value in (("train", self.limit_train_batches), ("val", self.limit_val_batches)):
            if isinstance(value, float) and value > 1:
                yield (
                    f"trainer.limit_{name}_batches={value}: must be a whole number of batches, or a fraction up to 1."
                )
        if self.devices in (0, ()):
            yield (
                "trainer.devices: must be 1 or more, a list of indices, or auto; trainer.accelerator=cpu trains "
                "without a GPU."
            )
        if self.benchmark and self.deterministic is True:
            yield (
                "trainer.benchmark=true: another algorithm may win each time, which trainer.deterministic=true rules "
                "out. Give trainer.benchmark=null."
            )
        if self.find_lr and (self.num_nodes > 1 or self.strategy != "auto" or self.devices != 1):
            yield "trainer.find_lr=true: works on one device only. Find the learning rate with trainer.devices=1 first."
        for index, entry in enumerate(self.callbacks):
            yield from self._wrong_callback(f"trainer.callbacks[{index}]", dict(entry))
        yield from self._wrong_further()

    def _wrong_callback(self, where: str, given: dict[str, Any]) -> Iterator[str]:
        """Yield what is wrong with the name or the arguments of a callback."""
        name = str(given.pop("name", given.get("_target_", "")))
        known = callback_modules()
        if name in REFUSED_CALLBACKS:
            yield f"{where}: {name} cannot be used, {REFUSED_CALLBACKS[name]}."
        elif ":" in name:  # a class of the user's, imported before the run starts
            return
        elif "_target_" in given:
            yield f"{where}: give name: {name.rpartition('.')[2]} instead of _target_."
        elif name not in known:
            allowed = sorted(set(known) - set(REFUSED_CALLBACKS))
            yield wrong_choice(f"{where}.name", name or "(not given)", allowed) + " Or module:Class of your own."
        else:
            arguments = callback_arguments(name)
            if arguments is not None:
                accepted, needed = arguments
                yield from (unknown_name(str(key), where, accepted) for key in given if key not in accepted)
                yield from (f"{where}: {name} needs {key}: ..." for key in needed if key not in given)
            monitor = given.get("monitor")
            own = any(":" in str(entry.get("name")) for entry in self.callbacks)  # may log further values
            label = str(monitor).startswith(_OF_ONE)
            if name == "EarlyStopping" and monitor is not None and monitor not in MONITORED and not label and not own:
                yield wrong_choice(f"{where}.monitor", monitor, [*MONITORED, "val/patch_dice/LABEL"])

    def _wrong_further(self) -> Iterator[str]:
        """Yield further arguments that Lightning's Trainer does not have, or that this project sets itself."""
        known = trainer_arguments()
        for name, value in self.further.items():
            if name in RESERVED or name in ELSEWHERE:
                yield f"trainer.{name}: cannot be set, {RESERVED.get(name) or ELSEWHERE[name]}."
            elif name not in known:
                own = set(vars(self)) - {"further"}
                yield unknown_name(name, "trainer", own | set(known) - set(RESERVED))
            else:
                types = known[name]
                if types is not None and type(value) not in types:
                    words = ", ".join(word for kind, word in _WORDS.items() if kind in types)
                    yield f"trainer.{name}={value}: Lightning's Trainer takes {words}."
