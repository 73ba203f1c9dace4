"""The validator: what records take, what they refuse, and what their messages say."""

# ruff: noqa: RUF009

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from umamba.io import UserError
from umamba.settings import (
    AfterTrainingSettings,
    AugmentationSettings,
    CalibrateSettings,
    DatasetSettings,
    EvaluateSettings,
    InvalidSettings,
    OptimizerSettings,
    PlanSettings,
    PredictSettings,
    RecipeSettings,
    SlurmSettings,
    TrainerSettings,
    TrainSettings,
    UMambaBotSettings,
    UMambaEncSettings,
    UNetSettings,
    parse,
    plain,
    read_architecture,
)
from umamba.settings.fields import Key, key
from umamba.settings.validate import Settings, described


@dataclass(frozen=True)
class Inner(Settings):
    """A group within a group."""

    section: ClassVar[str] = "toy.inner"
    low: float = key(0.0, "Lower end.", low=0)
    high: float = key(1.0, "Upper end.", low=0)

    def conflicts(self) -> Iterator[str]:
        """Yield ends in the wrong order."""
        if self.low > self.high:
            yield f"toy.inner.low={self.low:g}: must not be above toy.inner.high={self.high:g}."


@dataclass(frozen=True)
class Toy(Settings):
    """One key of each kind."""

    section: ClassVar[str] = "toy"
    whole: int = key(3, "A whole number.", low=1, high=9)
    share: float = key(0.5, "A number.", above=0, below=1)
    flag: bool = key(False, "A switch.")
    text: str = key("a", "Text.")
    choice: Literal["red", "green"] = key("red", "A choice.")
    optional: Literal["red", "green"] | None = key(None, "A choice, or none.")
    version: Literal["1.3", "1.6"] = key("1.3", "A choice that looks like a number.")
    either: Literal[True, "identity"] = key(True, "A choice with a truth value.")
    count: int | Literal["auto"] | None = key(None, "A number or a word.", low=0)
    sizes: tuple[int, ...] = key((1, 2), "A list.", low=1, lengths=(2, 3))
    pair: tuple[float, float] = key((0.0, 1.0), "A pair.", low=0)
    steps: tuple[tuple[int, ...], ...] = key(((1, 1),), "A list of lists.", low=1)
    colours: tuple[Literal["red", "green"], ...] = key((), "A list of choices.")
    where: Path = key(Path("here"), "A path.")
    mapping: Path | Mapping[str, str] = key(Path("here"), "A path, or several by name.")
    inner: Inner = key(Inner, "A group.")
    off: Inner = key(Inner, "A group that null switches off.", null={"high": 0.0})


@dataclass(frozen=True)
class Open(Settings):
    """A record that keeps keys it does not declare."""

    section: ClassVar[str] = "open"
    open_field: ClassVar[str] = "further"
    known: int = key(1, "A known key.")
    further: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Needy(Settings):
    """A record with a required key."""

    section: ClassVar[str] = "needy"
    root: Path = key(sentence="Required.")
    number: int = key(1, "Optional.", low=0)

    def conflicts(self) -> Iterator[str]:
        """Yield a root and a number that do not go together."""
        if self.number == 7:
            yield "needy.number=7: does not go with anything."


def problems(record: type[Settings], **values: Any) -> tuple[str, ...]:
    """Return the mistakes that plain values have."""
    with pytest.raises(InvalidSettings) as found:
        parse(record, values)
    return found.value.problems


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("whole", 9, 9),
        ("share", 0.25, 0.25),
        ("flag", True, True),
        ("text", 12, "12"),
        ("choice", "green", "green"),
        ("optional", None, None),
        ("version", 1.6, "1.6"),
        ("either", True, True),
        ("either", "identity", "identity"),
        ("count", 0, 0),
        ("count", "auto", "auto"),
        ("count", None, None),
        ("sizes", [4, 5, 6], (4, 5, 6)),
        ("pair", [0, 2], (0.0, 2.0)),
        ("steps", [[1, 2], [3]], ((1, 2), (3,))),
        ("colours", ["red", "red"], ("red", "red")),
        ("where", "there", Path("there")),
        ("where", 12, Path("12")),
        ("mapping", {"a": "b"}, {"a": "b"}),
        ("inner", {"high": 2}, Inner(high=2.0)),
        ("off", None, Inner(high=0.0)),
    ],
)
def test_right_values_are_converted(name: str, given: Any, kept: Any) -> None:
    parsed = getattr(parse(Toy, {name: given}), name)
    assert parsed == kept
    assert type(parsed) is type(kept)
    assert getattr(Toy(**{name: given}), name) == kept  # a record made in Python checks itself in the same way


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("whole", 0, "toy.whole=0: must be a whole number from 1 to 9."),
        ("whole", 10, "toy.whole=10: must be a whole number from 1 to 9."),
        ("whole", 2.0, "toy.whole=2.0: must be a whole number from 1 to 9."),
        ("whole", True, "toy.whole=true: must be a whole number from 1 to 9."),
        ("whole", None, "toy.whole=null: must be a whole number from 1 to 9."),
        ("whole", "3", "toy.whole=3: must be a whole number from 1 to 9."),
        ("share", 0, "toy.share=0: must be a number above 0 and below 1."),
        ("share", 1.0, "toy.share=1.0: must be a number above 0 and below 1."),
        ("share", float("nan"), "toy.share=nan: must be a number above 0 and below 1."),
        ("share", False, "toy.share=false: must be a number above 0 and below 1."),
        ("flag", 1, "toy.flag=1: must be true or false."),
        ("flag", "true", "toy.flag=true: must be true or false."),
        ("text", True, "toy.text=true: must be text."),
        ("choice", "gren", "toy.choice=gren: must be one of red, green. Did you mean green?"),
        ("choice", None, "toy.choice=null: must be one of red, green."),
        ("optional", "blue", "toy.optional=blue: must be one of red, green, null."),
        ("version", 1.7, "toy.version=1.7: must be one of 1.3, 1.6. Did you mean 1.6?"),
        ("either", False, "toy.either=false: must be one of true, identity."),
        ("either", "True", "toy.either=True: must be one of true, identity. Did you mean true?"),
        ("count", -1, "toy.count=-1: must be a whole number from 0 on, auto, or null."),
        ("count", "all", "toy.count=all: must be a whole number from 0 on, auto, or null."),
        ("sizes", 3, "toy.sizes=3: must be a list of 2 or 3 whole numbers from 1 on."),
        ("sizes", [1], "toy.sizes=[1]: must be a list of 2 or 3 whole numbers from 1 on."),
        ("sizes", [1, 0], "toy.sizes=[1, 0]: must be a list of 2 or 3 whole numbers from 1 on."),
        ("sizes", "12", "toy.sizes=12: must be a list of 2 or 3 whole numbers from 1 on."),
        ("pair", [1.0], "toy.pair=[1.0]: must be a list of 2 numbers from 0 on."),
        ("pair", [0, -1], "toy.pair=[0, -1]: must be a list of 2 numbers from 0 on."),
        ("steps", [1, 2], "toy.steps=[1, 2]: must be a list of lists of whole numbers from 1 on."),
        ("steps", [[1, 0]], "toy.steps=[[1, 0]]: must be a list of lists of whole numbers from 1 on."),
        ("colours", ["blue"], "toy.colours=['blue']: must be a list of names out of red, green."),
        ("where", "", "toy.where=: must be a path."),
        ("where", None, "toy.where=null: must be a path."),
        ("mapping", [1], "toy.mapping=[1]: must be a path, or a group of keys."),
        ("inner", 3, "toy.inner=3: must hold keys, such as toy.inner.low."),
        ("inner", None, "toy.inner=null: must hold keys, such as toy.inner.low."),
        ("inner", {"low": -1}, "toy.inner.low=-1: must be a number from 0 on."),
        ("inner", {"low": 3}, "toy.inner.low=3: must not be above toy.inner.high=1."),
        ("off", {"hihg": 3}, "Unknown key 'toy.off.hihg'. Did you mean 'toy.off.high'? Keys of toy.off: high, low."),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(name: str, given: Any, message: str) -> None:
    assert problems(Toy, **{name: given}) == (message,)
    with pytest.raises(InvalidSettings) as found:
        Toy(**{name: given})
    assert found.value.problems == (message,)


def test_an_unknown_key_is_named_with_the_nearest_one() -> None:
    (message,) = problems(RecipeSettings, gradient_clip=1)
    assert message.startswith("Unknown key 'recipe.gradient_clip'. Did you mean 'recipe.gradient_clip_norm'? Keys of")
    (message,) = problems(RecipeSettings, zzz=1)
    assert message.startswith("Unknown key 'recipe.zzz'. Keys of recipe: deep_supervision,")
    assert problems(Needy, root="a", nubmer=1) == (
        "Unknown key 'needy.nubmer'. Did you mean 'needy.number'? Keys of needy: number, root.",
    )
    with pytest.raises(InvalidSettings, match=r"Unknown key 'rot'\. Did you mean 'root'\? Keys of the configuration"):
        parse(Needy, {"root": "a", "rot": "b"}, section="")


def test_a_required_key_is_asked_for() -> None:
    missing = ("A required value is not given: needy.root. Add it to the command: needy.root=...",)
    assert problems(Needy) == missing
    assert problems(Needy, root="???") == missing
    assert parse(Needy, {"root": "a", "number": "???"}) == Needy(root=Path("a"))
    with pytest.raises(TypeError, match="root"):
        Needy()  # type: ignore[call-arg]


def test_all_mistakes_come_together() -> None:
    found = problems(Toy, whole=0, choice="blue", inner={"low": -1, "hig": 2}, zzz=1)
    assert found == (
        "toy.whole=0: must be a whole number from 1 to 9.",
        "toy.choice=blue: must be one of red, green.",
        "toy.inner.low=-1: must be a number from 0 on.",
        "Unknown key 'toy.inner.hig'. Did you mean 'toy.inner.high'? Keys of toy.inner: high, low.",
        found[-1],
    )
    assert found[-1].startswith("Unknown key 'toy.zzz'. Keys of toy: ")
    error = InvalidSettings(found)
    assert isinstance(error, UserError)
    assert str(error).startswith("5 settings cannot be used:\n  toy.whole=0: ")
    assert str(InvalidSettings(["one mistake"])) == "one mistake"


def test_conflicts_are_shown_beside_single_mistakes() -> None:
    assert problems(Needy, root="a", number=7, zzz=1) == (
        "Unknown key 'needy.zzz'. Keys of needy: number, root.",
        "needy.number=7: does not go with anything.",
    )
    found = problems(
        TrainSettings,
        dataset={"root": "a"},
        name="a/b",
        plan={"configuration": "2d", "patch_size": [8, 8, 8]},
        logger={"wandb": False, "upload_model": True},
        trainer={"max_epochs": 0},
    )
    assert [message.split(":")[0] for message in found] == [
        "plan.patch_size=[8, 8, 8]",
        "trainer.max_epochs=0",
        "logger.upload_model=true",
        "name=a/b",
    ]


def test_conflicts_are_not_guessed_where_a_choice_is_wrong_or_a_required_key_is_missing() -> None:
    assert problems(OptimizerSettings, name="sgdd", betas=[0.9, 0.99]) == (
        "recipe.optimizer.name=sgdd: must be one of sgd, adam, adamw. Did you mean sgd?",
    )
    assert len(problems(Needy, number=7)) == 1


def test_the_variant_is_chosen_by_name() -> None:
    def architecture(values: Any) -> Any:
        return parse(TrainSettings, {"dataset": {"root": "a"}, "architecture": values}).architecture

    assert architecture({"name": "umamba_enc", "mamba_stages": [0, 2]}) == UMambaEncSettings(mamba_stages=(0, 2))
    assert architecture({"name": "unet"}) == UNetSettings()
    assert architecture(UMambaBotSettings(d_state=4)).d_state == 4
    custom = architecture({"name": "umamba.networks.mine:build", "width": 8})
    assert custom.options == {"width": 8}
    assert read_architecture("segresnet").name == "segresnet"


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (
            {"name": "umambabot"},
            "architecture.name=umambabot: must be one of umamba_bot, umamba_enc, unet, resenc_unet",
        ),
        ({"name": "umambabot"}, "Did you mean umamba_bot?"),
        ({}, "architecture.name=null: must be one of umamba_bot"),
        (3, "architecture.name=3: must be one of umamba_bot"),
        ({"name": "unet", "d_state": 3}, "Unknown key 'architecture.d_state'. Keys of architecture: name."),
        ({"name": "umamba_enc", "mamba_stages": "al"}, "architecture.mamba_stages=al: must be one of official, all"),
        ({"name": "umamba_enc", "mamba_stages": [-1]}, "architecture.mamba_stages=[-1]: must be one of official, all"),
        ({"name": "segresnet", "init_filters": 12}, "must be a multiple of 8"),
        (RecipeSettings(), "architecture: RecipeSettings is no ArchitectureSettings."),
    ],
)
def test_a_wrong_variant_is_refused(values: Any, part: str) -> None:
    (message,) = problems(TrainSettings, dataset={"root": "a"}, architecture=values)
    assert part in message


def test_an_open_record_keeps_keys_that_it_does_not_declare() -> None:
    opened = parse(Open, {"known": 2, "other": [1], "more": {"a": None}})
    assert opened == Open(2, {"other": [1], "more": {"a": None}})
    assert plain(opened) == {"known": 2, "other": [1], "more": {"a": None}}
    assert parse(TrainerSettings, {"detect_anomaly": True}).further == {"detect_anomaly": True}


def test_lightning_checks_what_is_added_to_the_trainer() -> None:
    assert problems(TrainerSettings, logger=False) == (
        "trainer.logger: cannot be set, use the logger group (logger=wandb or logger=csv).",
    )
    assert problems(TrainerSettings, detect_anomly=True)[0].startswith(
        "Unknown key 'trainer.detect_anomly'. Did you mean 'trainer.detect_anomaly'?"
    )
    (message,) = problems(TrainerSettings, detect_anomaly="yes")
    assert message.startswith("trainer.detect_anomaly=yes: Lightning's Trainer takes true or false")


def test_an_engine_that_cannot_compute_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.ckpt"
    file.touch()
    good = {"checkpoint": str(file), "input": tmp_path, "output": "out"}
    monkeypatch.setattr("umamba.settings.prediction.find_spec", lambda name: object())
    assert parse(PredictSettings, {"engine": "openvino", **good}).engine == "openvino"
    assert problems(PredictSettings, engine="openvino", device="cuda:1", **good) == (
        "engine=openvino: computes on the CPU, not on device=cuda:1. Give device=cpu or engine=torch.",
    )
    monkeypatch.setattr("umamba.settings.prediction.find_spec", lambda name: None)
    install = "openvino is not installed. Install it with pip install 'umamba[cpu]', or give"
    assert problems(PredictSettings, engine="openvino", **good) == (f"engine=openvino: {install} engine=auto.",)
    assert problems(AfterTrainingSettings, engine="openvino") == (
        f"predict.engine=openvino: {install} predict.engine=auto.",
    )


def test_paths_that_must_exist(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    file.touch()
    good = {"input": tmp_path, "output": "out"}
    assert parse(PredictSettings, {"checkpoint": str(file), **good}).checkpoints == (file,)
    assert parse(PredictSettings, {"checkpoint": [str(file), str(file)], **good}).checkpoints == (file, file)
    absent = tmp_path / "b.ckpt"
    wanted = (f"checkpoint={absent}: there is no such file or folder. Check the path.",)
    assert problems(PredictSettings, checkpoint=str(absent), **good) == wanted
    assert problems(PredictSettings, checkpoint=[str(file), str(absent)], **good) == wanted
    folders = {"truth": tmp_path, "output": "out"}
    assert EvaluateSettings(predictions={"a": tmp_path}, **folders).methods == {"a": tmp_path}  # type: ignore[arg-type, dict-item]
    assert problems(EvaluateSettings, predictions={"a": str(absent)}, **folders) == (
        f"predictions.a={absent}: there is no such folder. Check the path.",
    )


@pytest.mark.parametrize(
    ("record", "values", "part"),
    [
        (OptimizerSettings, {"name": "adam", "momentum": 0.9}, "recipe.optimizer.momentum=0.9: adam has no momentum."),
        (OptimizerSettings, {"betas": [0.9, 0.99]}, "recipe.optimizer.betas=[0.9, 0.99]: sgd has no betas."),
        (OptimizerSettings, {"nesterov": True, "momentum": 0}, "needs recipe.optimizer.momentum above 0"),
        (RecipeSettings, {"loss": {"dice_weight": 0, "cross_entropy_weight": 0}}, "are both 0"),
        (AugmentationSettings, {"scaling": {"factor": [1.4, 0.7]}}, "augmentation.scaling.factor=[1.4, 0.7]"),
        (PlanSettings, {"configuration": None}, "plan.configuration=null: choose"),
        (PlanSettings, {"strides": [[2, 2, 2]]}, "the first stage must not be strided"),
        (PlanSettings, {"kernel_sizes": [[3, 3, 2]]}, "plan.kernel_sizes: 2 is even"),
        (PlanSettings, {"features_per_stage": [8, 16], "decoder_blocks": [1, 1]}, "the same number of stages"),
        (TrainerSettings, {"max_time": "1 hour"}, "must be [DD:]HH:MM:SS"),
        (TrainerSettings, {"limit_train_batches": 1.5}, "or a fraction up to 1"),
        (TrainerSettings, {"devices": 0}, "trainer.devices: must be 1 or more"),
        (SlurmSettings, {"time_limit": "soon"}, "must be written as SLURM does"),
        (SlurmSettings, {"extra": ["account"]}, "is no option of sbatch"),
    ],
)
def test_combinations_that_cannot_work(record: type[Settings], values: dict[str, Any], part: str) -> None:
    (message,) = problems(record, **values)
    assert part in message


def test_combinations_across_groups() -> None:
    found = problems(
        TrainSettings,
        dataset={"root": "a"},
        plan={"configuration": "2d"},
        augmentation={"mirror": {"axes": [2]}},
        data={"val_iterations": 0},
        predict={"checkpoint": "best"},
    )
    assert [message.split(":")[0] for message in found] == ["augmentation.mirror.axes=[2]", "predict.checkpoint=best"]


def test_records_are_frozen_and_changed_by_replace() -> None:
    settings = TrainSettings(dataset=DatasetSettings(root=Path("a")))
    with pytest.raises(AttributeError):
        settings.seed = 3  # type: ignore[misc]
    assert replace(settings, seed=3).seed == 3
    with pytest.raises(InvalidSettings, match="seed=-1: must be a whole number from 0 to 4294967295"):
        replace(settings, seed=-1)


@pytest.mark.parametrize(
    ("kind", "limits", "words"),
    [
        (int, Key(), "a whole number"),
        (int, Key(low=1), "a whole number from 1 on"),
        (float, Key(above=0, high=1), "a number above 0 and up to 1"),
        (float, Key(low=0, below=1), "a number from 0 and below 1"),
        (float | None, Key(high=2), "a number up to 2, or null"),
        (bool | Literal["warn"], Key(), "true or false, or warn"),
        (tuple[Path, ...], Key(), "a list of paths"),
        (Path | tuple[Path, ...], Key(), "a path, or a list of paths"),
        (tuple[str, ...] | None, Key(), "a list of names, or null"),
        (Literal["a", "b"] | tuple[int, ...], Key(low=0), "one of a, b, or a list of whole numbers from 0 on"),
        (tuple[Literal[0, 1, 2], ...] | None, Key(), "a list of numbers out of 0, 1, 2, or null"),
        (Inner, Key(), "a group of keys"),
        (Mapping[str, str], Key(), "a group of keys"),
    ],
)
def test_what_a_key_takes_in_words(kind: Any, limits: Key, words: str) -> None:
    assert described(kind, limits) == words


def test_a_path_without_a_file_is_the_only_fault(tmp_path: Path) -> None:
    """A missing file used to count as not given, so that a second sentence asked for what was there."""
    with pytest.raises(InvalidSettings) as caught:
        parse(CalibrateSettings, {"candidates": [str(tmp_path / "no")], "raw_dataset": str(tmp_path), "output": "out"})
    (problem,) = caught.value.problems
    assert problem.startswith("candidates=")
    assert "there is no such file or folder" in problem
