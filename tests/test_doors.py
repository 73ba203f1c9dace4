"""`import umamba` is quick and offers its names lazily: each door opens, and nothing heavy is loaded before."""

import doctest
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import umamba

HEAVY = ("torch", "lightning", "hydra", "omegaconf", "SimpleITK", "numpy", "pandas", "rich", "monai", "numba")
DOORS = (
    *("Mamba", "Predictor", "UMambaBot", "UMambaEnc", "build_network", "evaluate", "plan_dataset", "read_dataset"),
    *("selective_scan", "train"),
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def test_the_import_loads_nothing_heavy() -> None:
    done = run("-X", "importtime", "-c", "import umamba, sys; print(*sys.modules)")
    loaded = set(done.stdout.split())
    assert "umamba" in loaded
    assert not loaded & set(HEAVY)
    assert {name for name in loaded if name.startswith("umamba.")} == set()
    assert "| umamba\n" in done.stderr  # importtime names what was imported
    assert "torch" not in done.stderr


def test_a_door_loads_its_room_only() -> None:
    done = run("-c", "import umamba, sys; umamba.read_dataset; print(*sys.modules)")
    loaded = set(done.stdout.split())
    assert "umamba.datasets" in loaded
    assert not loaded & {"torch", "lightning", "hydra", "umamba.networks", "umamba.training"}


def test_prediction_loads_nothing_that_it_may_not_need() -> None:
    done = run("-c", "import umamba.runs.prediction, sys; print(*sys.modules)")
    idle = {"scipy", "skimage", "pydicom", "blosc2", "pandas", "matplotlib", "lightning", "torchio", "monai", "numba"}
    assert not set(done.stdout.split()) & {*idle, "nibabel", "torch._dynamo", "einops"}


def test_the_settings_need_the_standard_library_only() -> None:
    done = run("-c", "import umamba.settings, sys; print(*sys.modules)")
    assert not set(done.stdout.split()) & {"torch", "lightning", "hydra", "SimpleITK", "pandas"}


@pytest.mark.parametrize("name", DOORS)
def test_each_door_opens(name: str) -> None:
    opened = getattr(umamba, name)
    assert callable(opened)
    assert opened.__name__ == name
    assert (opened.__doc__ or "").strip()
    assert opened.__module__.startswith("umamba.")


def test_the_names_are_listed() -> None:
    assert sorted(DOORS) == sorted(umamba.__all__)
    assert dir(umamba) == sorted([*DOORS, "__version__"])
    with pytest.raises(AttributeError, match="module 'umamba' has no attribute 'trian'"):
        umamba.trian  # noqa: B018


def test_from_imports_work() -> None:
    names = ", ".join(DOORS)
    assert run("-c", f"from umamba import {names}; print(train.__module__)").stdout.strip() == "umamba.runs.whole_run"


def test_a_network_is_one_line() -> None:
    with torch.device("meta"):
        network = umamba.build_network("umamba_enc", patch_size=(64, 160, 160), in_channels=1, num_classes=14)
        logits = network(torch.empty(1, 1, 64, 160, 160))
    assert isinstance(network, nn.Module)
    assert isinstance(network, umamba.UMambaEnc)
    assert isinstance(logits, list)
    assert logits[0].shape == (1, 14, 64, 160, 160)


def test_the_version_is_stated_once(project_dir: Path) -> None:
    project = tomllib.loads((project_dir / "pyproject.toml").read_text())
    version = project["project"].get("version")
    if version is None:  # hatchling reads it from the package
        assert "version" in project["project"]["dynamic"]
        assert project["tool"]["hatch"]["version"]["path"] == "src/umamba/__init__.py"
        assert f'__version__ = "{umamba.__version__}"' in (project_dir / "src/umamba/__init__.py").read_text()
    else:
        assert version == umamba.__version__


def test_the_example_of_the_package_runs() -> None:
    assert doctest.testmod(umamba).failed == 0
