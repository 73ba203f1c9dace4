"""Every record of the settings: sentences, round trips, and the Trainer's arguments of the installed Lightning."""

import inspect
import json
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch.callbacks
import pytest

import umamba.settings
from umamba.settings import (
    ARCHITECTURES,
    ArchitectureSettings,
    AugmentationSettings,
    CustomArchitectureSettings,
    DatasetSettings,
    EvaluateSettings,
    OptimizerSettings,
    PlanSettings,
    PredictSettings,
    RecipeSettings,
    Settings,
    TrainerSettings,
    TrainSettings,
    UMambaEncSettings,
    parse,
    plain,
)
from umamba.settings.lightning_arguments import (
    REFUSED_CALLBACKS,
    RESERVED,
    callback_arguments,
    callback_modules,
    trainer_arguments,
)


def records(base: type[Settings] = Settings) -> Iterator[type[Settings]]:
    """Yield the public records of umamba.settings, groups within groups included."""
    for record in base.__subclasses__():
        if record.__module__.startswith("umamba.settings.") and not record.__name__.startswith("_"):
            yield record
        yield from records(record)


RECORDS = sorted(set(records()), key=lambda record: record.__name__)
EXISTING = ("checkpoint", "images", "input", "labels", "predictions", "truth", "raw_dataset", "runs", "source")


def example(record: type[Settings], folder: Path) -> Settings:
    """Return a record with its required keys given."""
    values: dict[str, Any] = dict.fromkeys(EXISTING, str(folder))
    values |= {"candidates": [str(folder)], "archive": "amos", "study": "folds", "root": "there", "output": "out"}
    own = record.__name__ == "CustomArchitectureSettings"
    values |= {"name": "mypackage:build" if own else "RandomBlur", "dataset": {"root": "there"}}
    required = ["name"] * own
    required += ["checkpoint", "images", "labels"] * (record.__name__ == "CalibrateSettings")
    required += [each.name for each in fields(record) if each.default is MISSING and each.default_factory is MISSING]
    return parse(record, {name: values[name] for name in required})


@pytest.mark.parametrize("record", RECORDS)
def test_every_record_and_every_key_has_a_sentence(record: type[Settings]) -> None:
    assert (record.__doc__ or "").strip().endswith("."), record
    for entry in fields(record):
        if entry.name == getattr(record, "open_field", ""):
            continue
        sentence = entry.metadata["key"].sentence
        assert len(sentence.split()) > 1, f"{record}.{entry.name}: {sentence}"
        assert "\n" not in sentence


def test_every_group_of_a_command_is_a_record_with_its_section() -> None:
    hints = typing.get_type_hints(TrainSettings)
    for entry in fields(TrainSettings):
        if is_dataclass(hints[entry.name]):
            assert hints[entry.name].section == entry.name
    for record in RECORDS:
        hints = typing.get_type_hints(record)
        for entry in fields(record):
            if is_dataclass(hints[entry.name]) and record.section:
                assert hints[entry.name].section == f"{record.section}.{entry.name}"


def test_the_records_are_exported() -> None:
    kinds = typing.get_type_hints(AugmentationSettings)
    of_augmentation = {
        kinds[entry.name].__name__ for entry in fields(AugmentationSettings) if is_dataclass(kinds[entry.name])
    }
    names = {record.__name__ for record in RECORDS} - of_augmentation - {"DeviceSettings"}  # a part of two records
    assert names <= set(umamba.settings.__all__)
    assert {record.__name__ for record in ARCHITECTURES.values()} <= names


@pytest.mark.parametrize("record", RECORDS)
def test_plain_values_make_the_same_record(record: type[Settings], tmp_path: Path) -> None:
    made = example(record, tmp_path)
    values = plain(made)
    assert json.loads(json.dumps(values)) == values
    assert parse(record, values) == made


@pytest.mark.parametrize(
    "made",
    [
        RecipeSettings(optimizer=OptimizerSettings(name="adamw", betas=(0.8, 0.9), eps=1e-6), gradient_clip_norm=None),
        RecipeSettings(optimizer=OptimizerSettings(momentum=0.0)),
        AugmentationSettings.off(),
        PlanSettings(strides=((1, 1, 1), (1, 2, 2)), batch_dice=True, normalization=("CTNormalization",)),
        TrainerSettings(
            devices=(0, 1), limit_train_batches=0.5, max_time="01:00:00:00", further={"fast_dev_run": True}
        ),
        TrainSettings(
            dataset=DatasetSettings(root=Path("a")), fold="all", architecture=UMambaEncSettings(mamba_stages=(0, 2))
        ),
        TrainSettings(
            dataset=DatasetSettings(root=Path("a")),
            architecture=CustomArchitectureSettings("umamba.networks.mine:build", {"width": 3, "deep": {"a": [1]}}),
        ),
    ],
)
def test_other_values_than_the_defaults_make_the_same_record(made: Settings) -> None:
    values = json.loads(json.dumps(plain(made)))
    assert parse(type(made), values) == made


def test_several_paths_make_the_same_record(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    file.touch()
    predict = PredictSettings(checkpoint=(file, file), input=tmp_path, output=Path("out"))
    assert parse(PredictSettings, plain(predict)) == predict
    evaluate = EvaluateSettings(predictions={"a": str(tmp_path)}, truth=tmp_path, output=Path("out"))
    assert parse(EvaluateSettings, plain(evaluate)) == evaluate


def test_the_trainers_arguments_are_those_of_the_installed_lightning() -> None:
    found = trainer_arguments()
    signature = inspect.signature(lightning.Trainer)
    assert list(found) == list(signature.parameters)
    assert set(RESERVED) <= set(found)
    assert set(REFUSED_CALLBACKS) <= set(callback_modules()) == {"Callback", *lightning.pytorch.callbacks.__all__}
    parameters = inspect.signature(lightning.pytorch.callbacks.EarlyStopping).parameters
    assert callback_arguments("EarlyStopping") == (tuple(parameters), ("monitor",))
    assert found["detect_anomaly"] == {bool}
    assert found["max_steps"] == {int}
    assert found["fast_dev_run"] == {int, bool}
    assert found["check_val_every_n_epoch"] == {int, type(None)}
    assert found["logger"] is None  # takes other types, too


def test_what_the_trainer_group_declares_is_the_trainers_or_used_by_this_project() -> None:
    from umamba.runs.trainer import _OWN

    declared = {entry.name for entry in fields(TrainerSettings)} - {"further"}
    own = {"find_lr", "compile", "activation_checkpointing", "ddp_batch"}
    assert declared - set(trainer_arguments()) == own
    assert declared & _OWN == _OWN - {"further"}
    assert not declared & set(RESERVED)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name])
def test_each_architecture_is_named_as_its_record(name: str) -> None:
    made = ARCHITECTURES[name]()
    assert isinstance(made, ArchitectureSettings)
    assert made.name == name
