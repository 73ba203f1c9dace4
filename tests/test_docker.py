"""The Dockerfile keeps the rules of containers for hospitals and challenges, and its entry point says what is wrong."""

import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def steps(project_dir: Path) -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, as docker/check.py reads them."""
    spec = importlib.util.spec_from_file_location("docker_check", project_dir / "docker" / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.instructions((project_dir / "Dockerfile").read_text()))


def test_rules_of_the_dockerfile(project_dir: Path, steps: list[tuple[str, str]]) -> None:
    names = [name for name, _ in steps]
    assert names[-1] == "ENTRYPOINT"
    assert [rest for name, rest in steps if name == "USER"] == ["1000"]
    assert "ADD" not in names
    assert all(":" in rest and "latest" not in rest for name, rest in steps if name == "FROM")
    for name, rest in steps:
        assert (
            name != "RUN" or "pip install" not in rest or rest.count("pip install --no-cache-dir") == rest.count("pip ")
        )
    ignored = (project_dir / ".dockerignore").read_text().splitlines()
    for rest in (rest for name, rest in steps if name == "COPY" and "--from" not in rest):
        for source in rest.split()[:-1]:
            assert (project_dir / source).exists(), source
            assert f"!{source.split('/')[0]}" in ignored, source
    assert not any("/weights" in rest or ".ckpt" in rest for name, rest in steps if name == "COPY")


@pytest.fixture
def segment(project_dir: Path, tmp_path: Path) -> Callable[..., tuple[int, list[str], str]]:
    """Return the function that runs the entry point with a program `umamba` that prints its arguments."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "umamba"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)

    def run(*arguments: str, missing: str = "") -> tuple[int, list[str], str]:
        places = {name: str(tmp_path / name.lower()) for name in ("INPUT", "OUTPUT", "WEIGHTS")}
        for name, folder in places.items():
            if name != missing:
                Path(folder).mkdir(exist_ok=True)
        done = subprocess.run(
            ["/bin/sh", str(project_dir / "docker" / "segment.sh"), *arguments],
            env={**places, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


def test_the_entry_point_segments_with_all_weights(
    segment: Callable[..., tuple[int, list[str], str]], tmp_path: Path
) -> None:
    common = [f"input={tmp_path}/input", f"output={tmp_path}/output", "previews=0"]
    assert segment("tta=true")[1] == ["predict", f"checkpoint={tmp_path}/weights", *common, "tta=true"]
    (tmp_path / "weights" / "a b.ckpt").touch()
    assert segment()[1] == ["predict", f"checkpoint={tmp_path}/weights/a b.ckpt", *common]
    (tmp_path / "weights" / "c.pth").touch()
    both = f"checkpoint=[{tmp_path}/weights/a b.ckpt,{tmp_path}/weights/c.pth]"
    assert segment()[1] == ["predict", both, *common]


def test_a_missing_mount_is_named(segment: Callable[..., tuple[int, list[str], str]], tmp_path: Path) -> None:
    code, _, said = segment(missing="WEIGHTS")
    assert code == 2
    assert f"there is no folder {tmp_path}/weights. Mount it" in said
