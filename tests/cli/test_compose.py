"""Every shipped YAML composes; help is quick and complete; Hydra's options and the user's own configs work."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from umamba import settings
from umamba.cli.compose import as_forced, group_names, options_of, settings_of
from umamba.cli.help import command_help
from umamba.cli.main import COMMANDS
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
    assert options_of("recipe") == ["nnunet", "segresnet", "swinunetr", "unetr"]
    assert as_forced("recipe=unetr") == "recipe=unetr"
    assert as_forced("recipe.name=x") == "++recipe.name=x"
    assert as_forced("hydra.sweep.dir=x") == "hydra.sweep.dir=x"


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

    assert candidates(["pre"]) == ["prepare", "predict"]
    assert candidates(["train", "augmentation=n"]) == ["augmentation=nnunet", "augmentation=none"]
    assert "recipe.optimizer.lr=" in candidates(["train", "recipe.opt"])
    assert candidates(["slurm", "dry"]) == ["dry-run"]
    assert "table4_2d" in candidates(["slurm", "submit", "table4"])
    assert candidates(["predict", "tile"]) == ["tile_step_size="]
