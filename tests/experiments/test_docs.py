"""The docs: commands are understood and (slow) run, the worked example trains as it stands, links and options exist."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from umamba import settings
from umamba.cli.compose import sweep_problems
from umamba.cli.main import COMMANDS, with_first_key
from umamba.cli.slurm import VERBS
from umamba.datasets.convert_endovis import endovis
from umamba.datasets.phantom_2d import write_picture
from umamba.datasets.phantom_archives import WRITERS
from umamba.io import write_image, write_json
from umamba.settings import SlurmSettings, TrainSettings
from umamba.settings.entry_points import BACKBONES, LOSSES, installed
from umamba.sweeps import list_studies

PROJECT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(path.relative_to(PROJECT))
    for pattern in ("README.md", "docs/*.md", "experiments/*.md", "experiments/*/README.md", "slurm/README.md")
    for path in PROJECT.glob(pattern)
)
STUDY = "table3_organs_3d"
GLOB = re.compile(r"experiment=glob\(([^,)]+)")
TRAININGS = ("train", "pretrain")
# What makes a documented training short; a value of the command itself stays.
SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1")
Fork = Callable[..., subprocess.CompletedProcess[str]]


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language, indentation of list items taken off."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in body.splitlines()) + "\n" for indent, body in found]


def commands(text: str, program: str = "python") -> list[list[str]]:
    """Return the commands of a page that begin with a program."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines() if line.startswith(f"{program} ")]
    return [shlex.split(line.replace("STUDY", STUDY), comments=True) for line in lines]


def umamba_commands(text: str) -> list[list[str]]:
    """Return the commands of this program on a page as `umamba` takes them: python train.py ... is train ..."""
    found = [[script.removesuffix(".py"), *rest] for _, script, *rest in commands(text) if is_shim(script)]
    return found + [rest for _, *rest in commands(text, "umamba")]


def is_shim(script: str) -> bool:
    """Return whether a script is one of the shims at the top level."""
    return script.removesuffix(".py").replace("_", "-") in COMMANDS


def entry_commands() -> list[list[str]]:
    """Return every command of this program in the docs, each once."""
    found = {tuple(rest): None for page in PAGES for rest in umamba_commands((PROJECT / page).read_text())}
    return [list(rest) for rest in found]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(
    page: str, example_folder: Path, mypackage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(example_folder)  # the package and configs that the worked examples make
    text = (PROJECT / page).read_text()
    targets = (PROJECT / "Makefile").read_text()
    for _, target, *_ in commands(text, "make"):
        assert f"\n{target}:" in targets, target
    for _, script, *rest in commands(text):
        if (script, rest[:1]) == ("-m", ["pytest"]):
            assert (PROJECT / rest[1]).is_file()
        else:
            assert (PROJECT / script).is_file(), script
    for name, *rest in umamba_commands(text):
        command = COMMANDS[name.replace("_", "-")]
        if "--help" in rest or command.record is None:
            check_words(name, rest)
        else:
            check_overrides(command.record, with_first_key(command, rest))


def power_keys(given: list[str]) -> dict[str, object]:
    """Return the values of `power.KEY=VALUE` among the words of a command."""
    pairs = (text.removeprefix("power.").split("=", 1) for text in given if text.startswith("power."))
    return {key: yaml.safe_load(value) for key, value in pairs}


def check_words(name: str, given: list[str]) -> None:
    """Check the words of a command without settings of its own."""
    if (name, given[:1]) == ("study", ["power"]):
        assert settings.parse(settings.PowerSettings, power_keys(given))
        given = [text for text in given[1:] if not text.startswith("power.")]
    if (name, given[:1]) == ("study", ["run"]):
        given = given[1:]
    words = [text for text in given if "=" not in text and not text.startswith("-")]
    assert name != "slurm" or (not given or "--help" in given or words[0] in VERBS), given
    studies = list_studies(PROJECT / "experiments")
    if name in ("slurm", "study") and "--help" not in given:
        assert all(word in studies for word in words[name == "slurm" :]), given
        own = [text for text in given if text.startswith("slurm.")]
        assert all(text.split("=")[0].removeprefix("slurm.") in SlurmSettings.__dataclass_fields__ for text in own), own
        overrides = [text for text in given if "=" in text and text not in own]
        assert not unreal(sweep_problems(TrainSettings, ["experiment=flare_unet", *overrides])), given


def check_overrides(record: str, given: list[str]) -> None:
    """Check that the arguments of a command compose; files need not exist."""
    given = [text for text in given if text != "-m"]
    names = [path.stem for path in (PROJECT / "configs" / "experiment").glob("*.yaml")]
    for text in given:
        if match := GLOB.match(text):
            assert fnmatch.filter(names, match[1]), text
    overrides = [text for text in given if not GLOB.match(text)]
    assert not unreal(sweep_problems(getattr(settings, record), overrides)), given


def unreal(problems: list[str]) -> list[str]:
    """Return the problems that are not about files of the reader, which are not here, or values they fill in."""
    return [text for text in problems if "no such file or folder" not in text and "A required value" not in text]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    path = PROJECT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).resolve().exists(), target


def test_options_that_the_docs_name_exist() -> None:
    for page in PAGES:
        for key in re.findall(r"`architecture\.(\w+)=", (PROJECT / page).read_text()):
            own = page == "docs/own-architecture.md"  # its options are those of the example on that page
            assert own or key in settings.UMambaEncSettings.__dataclass_fields__, key
    numbers = " / ".join(map(str, endovis(crop=False, videos="official").published or ()))
    assert numbers in (PROJECT / "docs" / "datasets.md").read_text()


def test_the_preset_of_an_own_dataset_composes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder `configs` where the command is given adds options to the program's."""
    (tmp_path / "configs" / "dataset").mkdir(parents=True)
    (tmp_path / "configs" / "experiment").mkdir()
    shutil.copy(PROJECT / "configs" / "dataset" / "nnunet.yaml", tmp_path / "configs" / "dataset" / "mine.yaml")
    (preset,) = blocks((PROJECT / "docs" / "own-dataset.md").read_text(), "yaml")
    (tmp_path / "configs" / "experiment" / "mine_umamba_enc.yaml").write_text(preset)
    monkeypatch.chdir(tmp_path)
    assert not unreal(sweep_problems(TrainSettings, ["experiment=mine_umamba_enc"]))


def test_the_example_package_is_what_the_pages_say(mypackage: Path) -> None:
    """The installed names of the worked example are those that its pages use."""
    assert installed(BACKBONES)["plain_net"] == ("mypackage.networks:build",)
    assert installed(LOSSES)["log_cosh_dice"] == ("mypackage.losses:build",)
    for page in ("own-architecture.md", "own-loss.md", "own-transforms.md"):
        assert commands((PROJECT / "docs" / page).read_text()) or page == "own-transforms.md"


@pytest.mark.slow
def test_the_example_package_passes_its_own_test(mypackage: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{mypackage}"}
    result = subprocess.run(command, cwd=mypackage, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "18 passed" in result.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, example_folder: Path, fork_command: Fork) -> Path:
    """Return a folder with each archive's phantom, two folds of a small U-Net, its export and its segmentations.

    It also has the package and the configs of the worked examples.
    """
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(example_folder, folder, dirs_exist_ok=True)
    for archive, write in WRITERS.items():
        write(folder / archive, 5, 2, 0)
    write_layouts(folder)
    said = run(fork_command, folder, ["train", "-m", "experiment=flare_unet", "fold=0,1", "smoke=true", *SHORT])
    assert "Run folder" in said
    run(fork_command, folder, ["train", "experiment=cell_unet", "fold=0", "smoke=true", *SHORT])
    for text in ("export checkpoint=PATH output=DIR", "predict checkpoint=PATH input=IMAGES output=DIR"):
        name, *rest = filled(text.split(), folder)
        run(fork_command, folder, [name, *rest[:-1], "output=nnunet" if name == "export" else "output=segmentations"])
    return folder


def write_layouts(folder: Path) -> None:
    """Write a case or two in each layout that convert reads, under the names that the docs give."""
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(4, 5, 6)).astype(np.float32), rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    brain = "sub-01/anat/sub-01"
    volumes = {
        "Task04_Hippocampus/imagesTr/a": image,
        "Task04_Hippocampus/labelsTr/a": label,
        "totalsegmentator/s1/ct": image,
        "totalsegmentator/s1/segmentations/liver": (label == 1).astype(np.uint8),
        "totalsegmentator/s1/segmentations/spleen": (label == 2).astype(np.uint8),
        f"bids/{brain}_T1w": image,
        f"bids/{brain}_FLAIR": image,
        f"bids/derivatives/manual/{brain}_dseg": label,
        "folders/p1/p1_t1ce": image,
        "folders/p1/p1_flair": image,
        "folders/p1/p1_seg": label,
        "Dataset500_Mine/imagesTr/a_0000": image,
        "Dataset500_Mine/labelsTr/a": label,
    }
    for name, array in volumes.items():
        write_image(folder / f"{name}.nii.gz", sitk.GetImageFromArray(array))
    facts = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    }
    write_json(folder / "Task04_Hippocampus" / "dataset.json", facts)
    (folder / "classes.csv").write_text("case,grade\na,low\nb,high\n")
    nucleus = folder / "nuclei" / "stage1_train" / "ab"
    write_picture(nucleus / "images" / "ab.png", rng.integers(0, 256, (32, 32, 3)).astype(np.uint8))
    write_picture(nucleus / "masks" / "1.png", np.pad(np.full((9, 9), 255, np.uint8), 8))


def run(fork_command: Fork, folder: Path, rest: list[str]) -> str:
    """Run `umamba ...` in a folder; return what it prints."""
    result = fork_command(rest, folder, (PROJECT / "src", folder / "mypackage"))
    asks = rest[:2] == ["slurm", "preflight"]  # the exit code says whether this machine's cluster can run the jobs
    assert result.returncode in ((0, 1) if asks else (0,)), f"{rest}\n{result.stdout}\n{result.stderr}"
    return result.stdout + (result.stderr if asks else "")


def filled(rest: list[str], folder: Path) -> list[str]:
    """Return a command with the placeholders filled in, short: trainings as smoke runs, submissions as dry runs."""
    name = rest[0]
    if "--help" in rest:
        return rest
    if name == "calibrate" or any(text.startswith("quality=") for text in rest):
        return [name, "--help"]  # needs more cases than a phantom has; tests/runs/test_calibration.py runs it
    if name == "convert":
        archive = next(text.removeprefix("archive=") for text in rest if text.startswith("archive="))
        return [text.replace("source=FOLDER", f"source={archive}") for text in rest]
    if name in ("train", "prepare", "pretrain"):
        own = {text.split("=")[0].lstrip("+") for text in rest}
        short = [text for text in SHORT if text.split("=")[0] not in own and name != "prepare"]
        pretrained = next((folder / "runs").glob("smoke_flare_unet/*/fold_0/seed_0/checkpoints/last.ckpt"))
        kept = [f"pretrained={pretrained}" if text.startswith("pretrained=") else text for text in rest]
        further = folder / "data" / "raw" / "Dataset991_SmokeFlare" / "imagesTs"
        kept = [f"images=[{further}]" if text.startswith("images=") else text for text in kept]
        if name == "train":  # the pages show different runs of one dataset and one name, which are not one run
            kept = [text for text in kept if not text.startswith("name=")]
            kept.append(f"name=docs_{zlib.crc32(' '.join(rest).encode()):08x}")
        kept = [two_of(text) if "-m" in rest else text for text in kept]
        return [text.replace("=PATH", "=there") for text in kept] + short + ["smoke=true"] * ("smoke" not in own)
    if COMMANDS[name.replace("_", "-")].record is not None and name != "report":
        cells = any(text.startswith("instances=") for text in rest)
        given = [each.split("=", 1) for each in with_first_key(COMMANDS[name.replace("_", "-")], rest[1:])]
        return [name, *(f"{key}={value_of(key, text, folder, cells)}" for key, text in given)]
    if rest[:2] == ["study", "run"]:  # days of training; tests/cli/test_study_run.py says what it does
        return ["study", *rest[2:]]
    return ["dry-run" if text == "submit" else text for text in rest]


def two_of(text: str) -> str:
    """Return a sweep over more than two values or experiments as one over two of them."""
    if match := GLOB.match(text):
        excluded = re.search(r"exclude=([^)]+)", text)
        names = sorted(path.stem for path in (PROJECT / "configs" / "experiment").glob(f"{match[1]}.yaml"))
        chosen = [name for name in names if not (excluded and fnmatch.fnmatch(name, excluded[1]))]
        return f"experiment=glob([{','.join(chosen[-2:])}])"
    key, equals, values = text.partition("=")
    return text if re.search(r"[\[({]", values) else f"{key}{equals}{','.join(values.split(',')[:2])}"


def value_of(key: str, text: str, folder: Path, cells: bool) -> str:
    """Return what stands for a placeholder in the workspace, of cells or of organs; others as they are."""
    raw = folder / "data" / "raw" / ("Dataset994_SmokeCell" if cells else "Dataset991_SmokeFlare")
    runs = next((folder / "runs").glob("smoke_cell_unet/*" if cells else "smoke_flare_unet/*"))
    first, second = (runs / f"fold_{fold}" / "seed_0" / "checkpoints" / "last.ckpt" for fold in (0, 1))
    exported = [path.parents[1] for path in folder.glob("nnunet/*/*/fold_0/checkpoint_final.pth")]
    if key == "checkpoint":
        if text.startswith("["):
            return f"[{first},{second}]"
        official = text.endswith(".pth") or "nnUNet" in text
        return str(
            exported[0] / ("fold_0/checkpoint_final.pth" if text.endswith(".pth") else "") if official else first
        )
    if key == "output":
        made = tempfile.mkdtemp(dir=folder)
        return f"{made}/{text}" if text.endswith(".ckpt") else made
    if key == "plan.from_file":
        return str(exported[0] / "plans.json")
    if text == "IMAGES":
        return str(raw / "imagesTs")
    known = {
        "input": raw / "imagesTs",
        "predictions": folder / "segmentations",
        "truth": raw / "labelsTs",
        "raw_dataset": raw,
        "dataset.root": raw,
        "candidates": f"[{runs}]",
        "runs": runs,
    }
    return str(known.get(key, text))


def commands_to_run() -> list[Any]:
    """Return every command; the trainings that the first page does not name are for the night."""
    first_page = umamba_commands((PROJECT / "README.md").read_text())
    return [
        pytest.param(rest, marks=pytest.mark.nightly if rest[0] in TRAININGS and rest not in first_page else ())
        for rest in entry_commands()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("rest", commands_to_run(), ids=lambda rest: " ".join(rest))
def test_every_command_runs(rest: list[str], workspace: Path, fork_command: Fork) -> None:
    if "input=SERIES" in rest:
        pytest.skip("needs a DICOM series, which tests/inference/test_dicom_results.py writes")
    assert run(fork_command, workspace, filled(rest, workspace)).strip()
