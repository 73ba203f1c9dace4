"""The docs: the worked example of a backbone is run as it stands, commands compose, links and options exist."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from umamba.datasets.convert_endovis import endovis
from umamba.entry import composition_problem
from umamba.slurm import arguments
from umamba.sweeps import list_studies

PAGES = (
    "datasets",
    "own-dataset",
    "own-architecture",
    "nnunet",
    "cluster",
    "reproducing",
    "differences",
    "troubleshooting",
)


def page(project_dir: Path, name: str) -> str:
    """Return a page's text."""
    return (project_dir / "docs" / f"{name}.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language, indentation of list items taken off."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in body.splitlines()) + "\n" for indent, body in found]


def commands(text: str) -> list[list[str]]:
    """Return the Python commands of a page, with placeholders filled in."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines() if line.startswith("python ")]
    return [shlex.split(line.replace("STUDY", "table3_organs_3d"), comments=True) for line in lines]


@pytest.mark.parametrize("name", PAGES)
def test_every_command_is_understood(project_dir: Path, name: str) -> None:
    shown = commands(page(project_dir, name))
    for _, script, *rest in shown:
        if script == "-m":
            if rest == ["umamba.doctor"]:
                continue
            assert rest[0] == "umamba.slurm"
            parsed, overrides = arguments(rest[1:])
            assert parsed.study in list_studies(project_dir / "experiments")
            assert composition_problem(list(overrides), "train", project_dir / "configs") is None
            continue
        assert (project_dir / script).is_file()
        config = {"prepare.py": "prepare"}.get(script, script.removesuffix(".py"))
        rest = [text for text in rest if text != "architecture=plain_net"]  # made by the page itself
        overrides = [text for text in rest if text != "-m" and not re.search(r"=glob\(|=\d(,\d)+$", text)]
        assert composition_problem(list(overrides), config, project_dir / "configs") is None, rest
    if name in ("datasets", "own-dataset", "own-architecture", "cluster", "reproducing", "troubleshooting"):
        assert shown


@pytest.mark.parametrize("name", [*(f"docs/{name}" for name in PAGES), "experiments/README", "slurm/README"])
def test_links_lead_to_files(project_dir: Path, name: str) -> None:
    path = project_dir / f"{name}.md"
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).resolve().exists(), target


def test_options_that_the_docs_name_exist(project_dir: Path) -> None:
    for name in PAGES:
        for group, key in re.findall(r"`(architecture)\.(\w+)=", page(project_dir, name)):
            assert f"\n{key}:" in (project_dir / "configs" / group / "umamba_enc.yaml").read_text(), key
    numbers = " / ".join(map(str, endovis(crop=False).published))
    assert numbers in page(project_dir, "datasets")


def test_the_preset_of_an_own_dataset_composes(project_dir: Path, tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(project_dir / "configs", configs)
    shutil.copy(configs / "dataset" / "nnunet.yaml", configs / "dataset" / "mine.yaml")
    (preset,) = blocks(page(project_dir, "own-dataset"), "yaml")
    (configs / "experiment" / "mine_umamba_enc.yaml").write_text(preset)
    assert composition_problem(["experiment=mine_umamba_enc"], "train", configs) is None


@pytest.mark.slow
def test_the_worked_example_of_a_backbone_trains(project_dir: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(project_dir / "configs", checkout / "configs")
    shutil.copytree(project_dir / "src", checkout / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(project_dir / "train.py", checkout)
    text = page(project_dir, "own-architecture")
    (module,), (options,), ((_, script, *overrides),) = blocks(text, "python"), blocks(text, "yaml"), commands(text)
    (checkout / "src" / "umamba" / "networks" / "plain_net.py").write_text(module)
    (checkout / "configs" / "architecture" / "plain_net.yaml").write_text(options)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, str(checkout / script), *overrides]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "umamba.networks.plain_net:build" in result.stdout
    (scores,) = tmp_path.glob("runs/smoke_flare_plain_net/3d_fullres/fold_all/seed_0/scores.csv")
    assert len(scores.read_text().splitlines()) > 2
