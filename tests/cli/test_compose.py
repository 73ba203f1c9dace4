"""Every shipped YAML composes and is typed; wrong names and keys end in one message, quickly."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from umamba.config import PredictionConfig, TrainConfig
from umamba.entry import composition_problem, typed

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
OPTIONS = sorted(path.relative_to(CONFIGS) for path in CONFIGS.glob("*/*.yaml"))


def compose_typed(*overrides: str) -> TrainConfig:
    """Compose train.yaml and type it."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return typed(compose("train", list(overrides)), TrainConfig)


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_composes(option: Path) -> None:
    group, name = option.parent.name, option.stem
    config = compose_typed("dataset.root=somewhere", f"{group}={name}")
    assert config.architecture["name"]


@pytest.mark.parametrize(
    "option",
    [*OPTIONS, *(Path(f"{name}.yaml") for name in ("train", "predict", "find_best", "evaluate", "describe", "export"))],
    ids=str,
)
def test_every_key_of_a_group_has_a_sentence(option: Path) -> None:
    lines = (CONFIGS / option).read_text().splitlines()
    assert lines[0].startswith("#"), "the file opens with a sentence"
    if option.parent.name == "experiment":
        assert set(yaml.safe_load((CONFIGS / option).read_text())) - {"defaults"}
        return
    comments = sum(line.strip().startswith("#") for line in lines)
    keys = [line for line in lines if line and not line.startswith((" ", "#", "-")) and ":" in line]
    assert comments >= len(keys) / 2, f"{comments} sentences for {len(keys)} keys"


def test_predict_composes() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = typed(compose("predict", ["checkpoint=a", "input=b", "output=c"]), PredictionConfig)
    assert config.tta is False


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("architecture=umambabot", ["architecture/umambabot", "umamba_enc", "swinunetr"]),
        ("trainer.max_epoch=3", ["trainer.max_epoch", "Did you mean 'trainer.max_epochs'"]),
        ("plan.bath_size=3", ["Did you mean 'plan.batch_size'", "patch_size"]),
        ("sed=3", ["Unknown key 'sed'", "seed"]),
        ("experiment=flare", ["flare_umamba_enc"]),
    ],
)
def test_wrong_names_list_the_right_ones(override: str, parts: list[str]) -> None:
    problem = composition_problem([override], "train", CONFIGS)
    assert problem is not None
    assert all(part in problem for part in parts), problem


def test_keys_of_the_chosen_option_are_listed() -> None:
    problem = composition_problem(["recipe=segresnet", "recipe.optimizer.momentum=1"], "train", CONFIGS)
    assert problem is not None
    assert "eps" in problem


def run(project_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run train.py."""
    command = [sys.executable, str(project_dir / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trainer.max_epoch=3"], "trainer.max_epochs"),
        (["dataset.root=x", "plan.batch_size=many"], "batch_size"),
        ([], "dataset.root"),
        (["experiment=flare_umamba_enc", "paths.raw=nowhere"], "Dataset701_AbdomenCT"),
    ],
)
def test_a_mistake_is_one_message_without_traceback(project_dir: Path, arguments: list[str], said: str) -> None:
    result = run(project_dir, *arguments)
    assert result.returncode != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_help_lists_groups_and_loads_nothing_heavy(project_dir: Path) -> None:
    result = run(project_dir, "--help")
    assert result.returncode == 0
    assert "flare_umamba_enc" in result.stdout
    code = (
        "import sys; sys.argv=['train.py', '--help']; sys.path.insert(0, '.'); import train; "
        "assert not {'torch', 'lightning', 'torchio', 'monai'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=project_dir, check=False).returncode == 0
