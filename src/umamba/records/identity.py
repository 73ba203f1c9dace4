"""What makes a run itself: everything that changes what is learnt, and nothing else.

Two commands with the same identity continue one run. Keys that only change speed, place or display (workers, devices,
scan backend, loggers) are not part of it, nor are those that say when training ends (max_epochs, max_time, early
stopping), so that a run can be trained longer.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from umamba.io import UserError
from umamba.records.config_file import read_config
from umamba.settings import (
    AugmentationSettings,
    DataSettings,
    RecipeSettings,
    Settings,
    TrainerSettings,
    TrainSettings,
    parse,
    plain,
    read_architecture,
)
from umamba.settings.duration import duration_seconds
from umamba.settings.training import AfterTrainingSettings

# Further arguments of Lightning's Trainer that do not change what is learnt. Any other one counts.
_HARMLESS = frozenset(
    {
        *("detect_anomaly", "inference_mode", "model_registry", "barebones", "min_epochs"),
        *("check_val_every_n_epoch", "val_check_interval", "limit_test_batches", "limit_predict_batches"),
    }
)
# Callbacks that only look on, or only say when training ends.
_ONLOOKERS = frozenset(
    {"EarlyStopping", "LearningRateMonitor", "DeviceStatsMonitor", "ModelSummary", "RichModelSummary"}
)
_EARLY_STOPPING = "EarlyStopping"
# Keys of recipe.loss -> the part of an identity without which they change nothing.
_NEEDS = {"exclusion_weight": "partly_labelled", "distillation_weight": "teacher"}
# The keys that a part of the identity follows from, for messages.
_KEYS = {
    "precision": "trainer.precision (or recipe.precision)",
    "batches_per_epoch": "training batches of an epoch (data.iterations_per_epoch, trainer.limit_train_batches)",
    "batches_per_step": "whole batches of a step (trainer.ddp_batch=multiply, trainer.devices)",
    "budget": "time budget (budget in seconds, or finish_by)",
    "split": "cases of the fold (splits_final.json)",
    "groups": "groups of cases (groups.csv, or groups in dataset.json)",
    "fingerprint_hash": "content of the dataset",
    "teacher": "teacher (content of that checkpoint)",
}


def learnt_settings(settings: TrainSettings, processes: int = 1) -> dict[str, Any]:
    """Return the settings that change what is learnt, beside architecture, plan and dataset.

    Args:
        settings: the settings of the run.
        processes: processes that train together; they count only where each gets a whole batch.

    >>> from umamba.settings import DatasetSettings
    >>> learnt_settings(TrainSettings(dataset=DatasetSettings(root="a")))["batches_per_epoch"]
    250
    """
    trainer = settings.trainer
    further = {name: value for name, value in trainer.further.items() if name not in _HARMLESS and value is not None}
    return {
        "fold": settings.fold,
        "seed": settings.seed,
        "precision": settings.precision,
        "batches_per_epoch": settings.train_batches,
        "batches_per_step": processes if trainer.ddp_batch == "multiply" else 1,
        "recipe": _without(plain(settings.recipe), "name", "precision"),
        "augmentation": _without(plain(settings.augmentation), "device"),
        "trainer": {
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "find_lr": trainer.find_lr,
            "callbacks": [plain(entry) for entry in trainer.callbacks if entry.get("name") not in _ONLOOKERS],
            **plain(further),
        },
        **({"budget": _budget(settings)} if settings.timed else {}),
        **({} if settings.pretrained_parts == "all" else {"pretrained_parts": settings.pretrained_parts}),
    }


def _budget(settings: TrainSettings) -> str | float | None:
    """Return the seconds of the time budget, or the text that says when it ends."""
    return duration_seconds(settings.budget) if settings.budget is not None else settings.finish_by


def early_stopping(settings: TrainSettings) -> list[dict[str, Any]]:
    """Return the options of the early stopping that the settings ask for.

    Args:
        settings: the settings of the run.
    """
    return [plain(entry) for entry in settings.trainer.callbacks if entry.get("name") == _EARLY_STOPPING]


def scoring_settings(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings that the scores of a trained run depend on.

    Args:
        settings: the settings of the run.
    """
    dataset = settings.dataset
    return {"predict": plain(settings.predict), "protocol": dataset.protocol, "tolerance_mm": dataset.tolerance_mm}


def former_settings(config: Path, settings: TrainSettings) -> TrainSettings | None:
    """Return a run's settings from its config.yaml, for runs whose run.json does not hold them.

    Args:
        config: the run's config.yaml.
        settings: the settings of the present command; what the file does not hold is taken from them.

    Returns:
        The settings; None: the file is missing or damaged, or this version does not know its keys.
    """
    content = read_config(config)
    if content is None:
        return None
    groups: dict[str, type[Settings]] = {
        "recipe": RecipeSettings,
        "augmentation": AugmentationSettings,
        "data": DataSettings,
        "trainer": TrainerSettings,
        "predict": AfterTrainingSettings,
    }
    try:
        values: dict[str, Any] = {name: parse(kind, content[name]) for name, kind in groups.items() if name in content}
        values |= {name: content[name] for name in ("fold", "seed") if name in content}
        scored = {name: content["dataset"][name] for name in ("protocol", "tolerance_mm") if name in content["dataset"]}
        return replace(settings, dataset=replace(settings.dataset, **scored), **values)
    except (UserError, TypeError, KeyError, ValueError):
        return None


def identity_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line `key: was ..., is ...` for each value of two identities that differs.

    Options that are newer than the former identity have their defaults in it, and the teacher is none. Other parts that
    it does not hold at all are not compared, nor weights of losses that this run does not have.

    Args:
        before: the identity in run.json.
        now: the identity of the present command; `partly_labelled` is there if some cases do not carry all labels.
    """
    former, present = {"teacher": None, **_comparable(before)}, _comparable(now)
    unused = [name for name, part in _NEEDS.items() if not now.get(part)]
    for each in (former, present):
        if isinstance(recipe := each.get("recipe"), Mapping) and isinstance(loss := recipe.get("loss"), Mapping):
            each["recipe"] = {**recipe, "loss": _without(dict(loss), *unused)}
    lines = []
    for name, value in present.items():
        if name in former:
            lines += differences(_KEYS.get(name, name), former[name], value)
    return lines


def scoring_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting of the scores that differs.

    Args:
        before: what `scoring_settings` returned for the scores of a run.
        now: that of the present command.
    """
    try:
        predict = plain(parse(AfterTrainingSettings, before.get("predict", {})))
    except UserError:
        predict = before.get("predict", {})
    return differences("", {**before, "predict": predict}, now)


def differs(before: Any, now: Any) -> bool:
    """Return whether two values differ in JSON, where a tuple equals a list and an integer equals its float.

    Args:
        before: a JSON-able value.
        now: another one.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return before.keys() != now.keys() or any(differs(before[key], now[key]) for key in before)
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        return len(before) != len(now) or any(differs(a, b) for a, b in zip(before, now, strict=True))
    return bool(before != now)


def differences(name: str, before: Any, now: Any) -> list[str]:
    """Return a line for each value that differs.

    Args:
        name: dotted name of the value.
        before: a JSON-able value.
        now: another one.

    >>> differences("recipe", {"lr": 0.1, "eps": None}, {"lr": 0.2, "eps": None})
    ['recipe.lr: was 0.1, is 0.2']
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = list(dict.fromkeys([*before, *now]))
        prefix = f"{name}." if name else ""
        return [line for key in keys for line in differences(f"{prefix}{key}", before.get(key), now.get(key))]
    return [f"{name}: was {_text(before)}, is {_text(now)}"] if differs(before, now) else []


def _comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity without what may vary, and with the defaults of options that it does not know."""
    found = {"budget": None, "heads": None, "masking": None, "pretrained_parts": "all", **identity}
    if found.get("architecture"):
        found["architecture"] = _without(plain(read_architecture(found["architecture"])), "scan_backend")
    records: tuple[tuple[str, type[Settings], tuple[str, ...]], ...] = (
        ("recipe", RecipeSettings, ("name", "precision")),
        ("augmentation", AugmentationSettings, ("device",)),
    )
    for name, record, left_out in records:
        if name in found:
            try:
                found[name] = _without(plain(parse(record, found[name])), *left_out)
            except UserError:  # another version wrote it
                continue
    if "trainer" in found:
        found["trainer"] = {"accumulate_grad_batches": 1, "find_lr": False, "callbacks": [], **found["trainer"]}
    return found


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _text(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
