"""Every shipped YAML composes; help is quick and complete; Hydra's options and the user's own configs work."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from umamba import settings
from umamba.cli.compose import as_forced, config_folders, group_names, options_of, settings_of
from umamba.cli.help import command_help
from umamba.cli.hydra_options import hydra_arguments
from umamba.cli.main import COMMANDS, main
from umamba.settings import TrainSettings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OPTIONS = sorted(path.relative_to(CONFIGS) for path in CONFIGS.glob("*/*.yaml"))


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_composes(option: Path) -> None:
    group, name = option.parent.name, option.stem
    dataset = (
        []
        if group in ("dataset", "experiment")
        else ["dataset=flare" if name.startswith("paper") else "dataset=phantom"]
    )
    dataset += ["pretrained=run:before"] if name == "finetune" else []
    made = settings_of(TrainSettings, [*dataset, f"{group}={name}", "dataset.root=Dataset702_AbdomenMR"])
    assert made.architecture.name


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_file_opens_with_a_sentence_and_repeats_no_default(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("#")
    if path.parent == CONFIGS or path.parent.name in ("experiment", "paths", "dataset"):
        return
    given = yaml.safe_load(path.read_text())
    record = {entry.name: entry for entry in fields(TrainSettings)}[path.parent.name].default_factory()  # type: ignore[operator]
    plain = settings.plain(record)
    for key, value in given.items():
        choosing = key in ("name", "rules", "configuration", "device", "devices", "wandb")
        assert choosing or key == "defaults" or plain.get(key) != value, f"{path}: {key} repeats the default"


def test_groups_and_options_are_found() -> None:
    assert {"dataset", "recipe", "experiment"} <= set(group_names())
    assert options_of("recipe") == ["finetune", "nnunet", "segresnet", "swinunetr", "unetr"]
    for typed, forced in (
        ("recipe=unetr", "recipe=unetr"),
        ("recipe.precision=x", "++recipe.precision=x"),
        ("name=x", "++name='x'"),
        ("hydra.sweep.dir=x", "hydra.sweep.dir=x"),
    ):
        assert as_forced(TrainSettings, typed, config_folders()) == forced


def test_recipes_set_their_precision_and_the_trainer_overrides_it() -> None:
    for recipe, precision in (
        ("nnunet", "auto"),
        ("unetr", "32-true"),
        ("segresnet", "32-true"),
        ("swinunetr", "32-true"),
    ):
        assert settings_of(TrainSettings, ["dataset=phantom", f"recipe={recipe}"]).precision == precision
    given = ["dataset=phantom", "recipe=unetr", "trainer.precision=bf16-mixed"]
    assert settings_of(TrainSettings, given).precision == "bf16-mixed"


def test_a_folder_of_own_configs_adds_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs" / "recipe").mkdir(parents=True)
    (tmp_path / "configs" / "recipe" / "mine.yaml").write_text("# Mine.\nname: mine\noptimizer:\n  lr: 0.5\n")
    monkeypatch.chdir(tmp_path)
    assert settings_of(TrainSettings, ["dataset=phantom", "recipe=mine"]).recipe.optimizer.lr == 0.5
    assert "mine" in options_of("recipe")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_key_with_its_sentence(name: str) -> None:
    text = command_help(COMMANDS[name])
    assert COMMANDS[name].sentence in text
    record = COMMANDS[name].record
    assert ("--config-dir FOLDER" in text) == (record is not None)
    for entry in fields(getattr(settings, record)) if record else ():
        assert entry.name in text, entry.name


def test_help_loads_nothing_heavy(project_dir: Path) -> None:
    code = (
        "import sys; sys.argv = ['train.py', '--help']; sys.path.insert(0, '.'); "
        "from umamba.cli.main import main; code = main(['train', '--help']); "
        "assert code == 0 and not {'torch', 'lightning', 'torchio', 'monai', 'numpy', 'hydra'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project_dir, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "flare_umamba_enc" in done.stdout
    assert "recipe.optimizer.lr [0.01]" in done.stdout


def test_a_script_is_the_command_of_its_name(project_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(project_dir / "train.py"), "experiment=flare_umamba_enc", "paths.raw=nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nowhere/Dataset701_AbdomenCT" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_whole_configuration_is_shown(project_dir: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "umamba",
        "train",
        "experiment=quickstart",
        "recipe.optimizer.lr=0.5",
        "--cfg",
        "job",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert (shown["recipe"]["optimizer"]["lr"], shown["plan"]["patch_size"]) == (0.5, [16, 64, 64])


def test_completion_knows_commands_groups_options_and_keys() -> None:
    from umamba.cli.completion import candidates

    assert candidates(["pre"]) == ["pretrain", "prepare", "predict"]
    assert candidates(["train", "augmentation=n"]) == ["augmentation=nnunet", "augmentation=none"]
    assert "recipe.optimizer.lr=" in candidates(["train", "recipe.opt"])
    assert candidates(["slurm", "dry"]) == ["dry-run"]
    assert "table4_2d" in candidates(["slurm", "submit", "table4"])
    assert candidates(["predict", "tile_st"]) == ["tile_step_size="]


@pytest.fixture
def own_groups(tmp_path: Path) -> Path:
    """Write a folder of config groups: an option of a shipped group, a preset, and a new group."""
    for group, name, text in (
        ("recipe", "mine", "name: mine\noptimizer:\n  lr: 0.5\n"),
        ("experiment", "ours", "# @package _global_\ndefaults:\n  - override /dataset: phantom\nname: ours\nseed: 7\n"),
        ("lab", "night", "# @package _global_\ntrainer:\n  max_epochs: 3\n"),
    ):
        folder = tmp_path / "lab (é)" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    return tmp_path / "lab (é)"


@pytest.mark.parametrize("form", ["--config-dir", "searchpath"])
def test_own_config_groups_in_every_command(
    own_groups: Path, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = (
        ["--config-dir", str(own_groups)] if form == "--config-dir" else [f"hydra.searchpath=['file://{own_groups}']"]
    )
    own = ["experiment=ours", "recipe=mine", "lab=night"]
    assert main(["train", *given, *own, "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["name"], shown["seed"], shown["recipe"]["optimizer"]["lr"]) == ("ours", 7, 0.5)
    assert shown["trainer"]["max_epochs"] == 3
    for command in ("train", "prepare", "describe"):  # a mistyped key and option are still named
        assert main([command, *given, "experiment=ours", "sed=2", "recipe=mien"]) == 2
        said = capsys.readouterr().err
        assert "Did you mean 'seed'" in said
        assert "Did you mean mine" in said
    (tmp_path / "study").mkdir()
    study = "question: Q\nruns: [experiment=ours lab=night]\nfolds: [0]\nseeds: [0]\n"
    (tmp_path / "study" / "sweep.yaml").write_text(study)
    assert main(["study", str(tmp_path / "study"), *given]) == 0
    assert "0/3" in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM here
    assert main(["slurm", "dry-run", str(tmp_path / "study"), *given, "slurm.gpus=0", "paths.runs=R"]) == 0


def test_a_package_holds_config_groups(own_groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(own_groups.parent))
    own_groups.rename(own_groups.with_name("labconfigs"))
    made = settings_of(TrainSettings, ["hydra.searchpath=[pkg://labconfigs]", "experiment=ours", "recipe=mine"])
    assert (made.name, made.recipe.optimizer.lr) == ("ours", 0.5)


def test_hydra_gets_the_users_words(own_groups: Path) -> None:
    given = ["hydra.job.name=umamba-train", "dataset=phantom", "paths.runs=run (1)", "hydra/sweeper=optuna", "-m"]
    assert hydra_arguments(TrainSettings, given, sweep=True) == [
        *("hydra.job.name=umamba-train", "dataset=phantom", "++paths.runs='run (1)'", "hydra/sweeper=optuna"),
        *("hydra.sweeper.direction=maximize", "hydra.sweeper.max_failure_rate=1.0", "-m"),
    ]
    searched = hydra_arguments(TrainSettings, [*given[:2], f"hydra.searchpath=['{own_groups}']"], sweep=False)
    assert searched[-1] == f"hydra.searchpath=['file://{own_groups}']"
    named = hydra_arguments(TrainSettings, [given[0], "hydra.job.name=mine"], sweep=False)
    assert named == ["hydra.job.name=mine"]


def test_hydras_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dataset=phantom", "--cfg", "hydra", "--package", "hydra.job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "umamba-train"
    assert main(["train", "--cfg=job", "-p", "recipe.optimizer.lr"]) == 0
    assert capsys.readouterr().out == "0.01\n"
    assert main(["train", "--cfg", "job"]) == 0  # the dataset is the only value that a training asks for
    assert yaml.safe_load(capsys.readouterr().out)["dataset"]["root"] == "???"
    assert main(["train", "--cfg", "job", "-p", "recpie"]) == 2
    assert "recpie" in capsys.readouterr().err
