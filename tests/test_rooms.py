"""The rooms of the package import only from rooms before them, and optional dependencies stay in their backends."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOMS = (
    *("io", "settings", "labels", "datasets", "planning", "preprocessing", "patches", "networks", "records"),
    *("inference", "evaluation", "training", "sweeps", "reporting", "runs", "cli"),
)
# Rooms that import from fewer rooms than their place in the order allows. Reporting reads files only: it builds no
# network, predicts nothing and trains nothing.
NARROWER = {
    "settings": {"io"},
    "evaluation": {"io", "settings", "labels"},
    "networks": {"io", "settings", "planning"},
    "sweeps": {"io", "settings", "records"},
    "reporting": {"io", "labels", "datasets", "records", "evaluation", "sweeps"},
}
OPTIONAL = {
    "mamba_ssm": {"networks/scan/cuda.py"},
    "numba": {
        *("inference/half_sums.py", "inference/winners.py", "networks/scan", "networks/fused_norm_kernels.py"),
        *("networks/one_pass_kernels.py", "training/softmax_kernels.py"),
        *("patches/blur.py", "patches/sampling.py", "patches/warp.py"),
    },
    "monai": {"networks/monai_nets.py"},
    "wandb": {"training/loggers.py"},
    "triton": {"networks/scan/triton", "networks/fused_norm_triton"},
    "highdicom": {"inference/dicom_seg.py", "inference/secondary_capture.py"},
    "openvino": {"inference/openvino_"},
    "onnx": {"inference/onnx_"},
    "onnxruntime": {"inference/onnx_"},
    "hydra": {"cli/"},
    "omegaconf": {"cli/", "records/config_file.py"},
}


@cache
def tree_of(path: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(path.read_text())


@cache
def imported_modules(path: Path) -> set[str]:
    """Return the absolute names of all modules that a file imports."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def sources(project_dir: Path) -> list[Path]:
    """Return the package's files."""
    return sorted((project_dir / "src" / "umamba").rglob("*.py"))


def test_rooms_import_only_from_their_left(project_dir: Path) -> None:
    wrong = []
    for path in sources(project_dir):
        relative = path.relative_to(project_dir / "src" / "umamba")
        room = relative.parts[0]
        if room not in ROOMS:
            continue
        allowed = NARROWER.get(room, set(ROOMS[: ROOMS.index(room)])) | {room}
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] == "umamba" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{relative} imports {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dependency", OPTIONAL)
def test_optional_dependencies_stay_in_their_backend(project_dir: Path, dependency: str) -> None:
    root = project_dir / "src" / "umamba"
    for path in sources(project_dir):
        if dependency in {module.split(".")[0] for module in imported_modules(path)}:
            relative = path.relative_to(root).as_posix()
            assert any(relative.startswith(place) for place in OPTIONAL[dependency]), f"{relative} imports {dependency}"


def test_no_module_is_longer_than_five_hundred_lines(project_dir: Path) -> None:
    long = [path.name for path in sources(project_dir) if len(path.read_text().splitlines()) > 500]
    assert not long


def test_every_top_level_module_is_known(project_dir: Path) -> None:
    root = project_dir / "src" / "umamba"
    assert {path.stem for path in root.glob("*.py")} == {"__init__", "__main__"}
    assert {path.name for path in root.iterdir() if (path / "__init__.py").exists()} <= set(ROOMS)


def test_runs_know_no_command_line_and_print_nothing(project_dir: Path) -> None:
    for path in sources(project_dir):
        room = path.relative_to(project_dir / "src" / "umamba").parts[0]
        if room not in ("runs", "training", "inference", "evaluation", "records"):
            continue
        tree = tree_of(path)
        calls = [
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        assert "print" not in calls, path
        if room == "runs":
            attributes = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
            assert "argv" not in attributes, path


def test_no_configuration_is_a_dict(project_dir: Path) -> None:
    """Configuration is typed: nobody takes a `recipe`, `trainer` or `augmentation` that is a mapping."""
    groups = {"recipe", "trainer", "augmentation", "architecture", "optimizer", "schedule", "phantom", "config"}
    for path in sources(project_dir):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.arg | ast.AnnAssign):
                name = node.arg if isinstance(node, ast.arg) else getattr(node.target, "id", "")
                kind = ast.unparse(node.annotation) if node.annotation is not None else ""
                allowed = path.name in ("build.py", "architecture.py")  # read plain values of a checkpoint
                assert name not in groups or "Any]" not in kind or allowed, f"{path}: {name}: {kind}"
