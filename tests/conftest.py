"""Fixtures that the tests of several rooms share; the small runs are trained in this process."""

import json
import logging
import os
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Before torch is imported: processes that test at the same time share the CPUs, and so do the commands they start.
if (processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))

import torch

from umamba.cli.compose import settings_of
from umamba.settings import TrainSettings

if TYPE_CHECKING:  # imported where they are used, because they import more than most tests need
    from umamba.records import RunFolder
    from umamba.runs import PreparedDataset

if not torch.cuda.is_available():  # Triton then runs kernels in its interpreter; it reads this when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

PROJECT = Path(__file__).resolve().parents[1]
# Overrides of a small run: a phantom of five cases, a tiny U-Net, two epochs of three batches, float32 on the CPU.
SMALL = [
    "dataset=phantom",
    "dataset.phantom.num_training=5",
    "dataset.phantom.num_test=0",
    "dataset.phantom.voxel_mm=8.0",
    "architecture=unet",
    "plan.patch_size=[8,16,16]",
    "plan.features_per_stage=[4,8,8]",
    "plan.strides=[[1,1,1],[1,2,2],[2,2,2]]",
    "plan.kernel_sizes=[[3,3,3],[3,3,3],[3,3,3]]",
    "plan.encoder_blocks=[1,1,1]",
    "plan.decoder_blocks=[1,1]",
    "plan.batch_size=2",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "data.num_workers=0",
    "data.prepare_workers=1",
    "augmentation=none",
    "logger=csv",
    "logger.panels_every=0",
]


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what predictions store for the user (measured engines, compiled networks) out of the user's cache folder."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def project_dir() -> Path:
    """Return the root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Return the folder of reference data that travels with the project."""
    return PROJECT / "tests" / "reference"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of large reference data beside the checkout (`UMAMBA_SHARED` overrides it); skip without it."""
    folder = Path(os.environ.get("UMAMBA_SHARED", PROJECT.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip("needs the shared reference folder beside the checkout")
    return folder


@pytest.fixture(scope="session")
def command_server(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., AbstractContextManager[Any]]:
    """Return the context of a function that runs `umamba WORDS` in processes without the seconds that imports take.

    The arguments of the context are packages that the commands cannot import. Those of the function are the words, the
    folder to work in, the folders of further packages, a file (soon after this is there, the command is killed), and
    the bytes that a file may have at most. One thread computes.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    @contextmanager
    def serving(*absent: str) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
        command = [sys.executable, str(PROJECT / "tests" / "command_server.py"), *absent]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        requests, answers = server.stdin, server.stdout
        assert requests is not None
        assert answers is not None
        written = tmp_path_factory.mktemp("commands")
        files = {name: written / name for name in ("stdout", "stderr")}

        def run(
            words: Sequence[str],
            folder: Path,
            modules: Sequence[Path] = (),
            kill_after: Path | None = None,
            file_limit: int | None = None,
        ) -> subprocess.CompletedProcess[str]:
            request = {
                "words": list(words),
                "folder": str(folder),
                "environment": {"PYTHONPATH": os.pathsep.join(map(str, modules))},
                "modules": list(map(str, modules)),
                "kill_after": kill_after and str(kill_after),
                "file_limit": file_limit,
                **{name: str(file) for name, file in files.items()},
            }
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            code = int(answers.readline())
            said = (file.read_text(encoding="utf-8") for file in files.values())
            return subprocess.CompletedProcess(["umamba", *words], code, *said)

        yield run
        requests.close()
        server.wait()
        answers.close()

    return serving


@pytest.fixture(scope="session")
def fork_command(
    command_server: Callable[..., AbstractContextManager[Any]],
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Return the function of `command_server`, for commands that import everything."""
    with command_server() as run:
        yield run


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language, indentation of list items taken off."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in body.splitlines()) + "\n" for indent, body in found]


def write_example(folder: Path) -> Path:
    """Write the package into folder/mypackage as if it were installed, and the configs into folder/configs.

    Args:
        folder: where the user works.

    Returns:
        The folder that must be on the path of modules.
    """
    architecture, loss, transforms = (
        (PROJECT / "docs" / f"own-{name}.md").read_text() for name in ("architecture", "loss", "transforms")
    )
    network, test = blocks(architecture, "python")
    (project,) = blocks(architecture, "toml")
    (of_network,), (of_augmentation,) = blocks(architecture, "yaml"), blocks(transforms, "yaml")
    (losses,) = blocks(loss, "python")
    entry_points = tomllib.loads(project)["project"]["entry-points"]
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in names.items())
        for group, names in entry_points.items()
    ]
    files = {
        "mypackage/pyproject.toml": project,
        "mypackage/mypackage/__init__.py": "",
        "mypackage/mypackage/networks.py": network,
        "mypackage/mypackage/losses.py": losses,
        "mypackage/tests/test_networks.py": test,
        "mypackage/mypackage-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: mypackage\nVersion: 1.0\n",
        "mypackage/mypackage-1.0.dist-info/entry_points.txt": "\n".join(groups),
        "configs/architecture/plain_net.yaml": of_network,
        "configs/augmentation/mri.yaml": of_augmentation,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "mypackage"


@pytest.fixture(scope="session")
def example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package and the configs of the documentation's worked examples."""
    folder = tmp_path_factory.mktemp("example")
    write_example(folder)
    return folder


@pytest.fixture
def mypackage(example_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of the example's package, which can be imported in this test."""
    monkeypatch.syspath_prepend(example_folder / "mypackage")
    yield example_folder / "mypackage"
    for name in [name for name in sys.modules if name.split(".")[0] == "mypackage"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _quiet_again() -> Iterator[None]:
    """Undo what a command that ran in this process did to the program's logger (`umamba.io.voice`)."""
    logger = logging.getLogger("umamba")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Return the capture of the program's messages, information included."""
    caplog.set_level(logging.INFO, logger="umamba")
    return caplog


@pytest.fixture(scope="session")
def small_settings() -> list[str]:
    """Return the overrides of the small runs."""
    return list(SMALL)


@pytest.fixture(scope="session")
def small_paths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the phantom and its prepared cases."""
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="session")
def make_settings(small_paths: Path) -> Callable[..., TrainSettings]:
    """Return a function that makes the settings of a small run from further overrides."""

    def make(*overrides: str) -> TrainSettings:
        paths = [f"paths.{name}={small_paths / name}" for name in ("raw", "preprocessed", "runs")]
        return settings_of(TrainSettings, [*SMALL, *paths, *overrides])

    return make


@pytest.fixture(scope="session")
def prepared(make_settings: Callable[..., TrainSettings]) -> "PreparedDataset":
    """Return the prepared phantom."""
    from umamba.runs import prepare

    return prepare(make_settings())


@pytest.fixture
def small_fit(
    make_settings: Callable[..., TrainSettings], prepared: "PreparedDataset", tmp_path: Path
) -> "Callable[..., RunFolder]":
    """Return a function that trains in the folder `name` and returns it; `cases=None` prepares its own plan."""
    from umamba.records import RunFolder
    from umamba.runs import prepare
    from umamba.runs.fit import fit
    from umamba.runs.identity import checkpoint_record

    def run(*overrides: str, name: str = "run", cases: "PreparedDataset | None" = prepared) -> "RunFolder":
        settings = make_settings(*overrides)
        cases = prepare(settings) if cases is None else cases
        folder = RunFolder(tmp_path / name)
        with folder.lock():
            fit(settings, cases, folder, checkpoint_record(settings, cases))
        return folder

    return run


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Return a context in which the operating system refuses longer files (bytes), as a full disk does."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
