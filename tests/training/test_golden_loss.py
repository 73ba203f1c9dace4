"""The losses of a tiny training equal the reviewed ones in tests/reference/golden/phantom_loss.csv."""

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def comparer(reference_dir: Path) -> ModuleType:
    """Return compare.py as a module."""
    spec = spec_from_file_location("golden_compare", reference_dir / "golden" / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_losses_are_the_golden_ones(reference_dir: Path) -> None:
    # A process of its own, because deterministic algorithms stay switched on in the process that asks for them.
    result = subprocess.run(
        [sys.executable, str(reference_dir / "golden" / "compare.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Largest relative difference" in result.stdout


def test_the_comparer_finds_the_largest_difference(comparer: ModuleType) -> None:
    golden = comparer.read_losses(comparer.GOLDEN)
    assert set(golden["architecture"]) == set(comparer.ARCHITECTURES)
    assert comparer.largest_difference(golden, golden)[0] == 0
    changed = golden.copy()
    changed.loc[4, "val/loss"] *= 1.01
    changed.loc[1, "train/loss"] *= 1.002
    difference, where = comparer.largest_difference(changed, golden)
    assert difference == pytest.approx(0.01)
    assert where == "umamba_bot, epoch 1, val/loss"
    with pytest.raises(ValueError, match="networks or epochs"):
        comparer.largest_difference(golden[:-1], golden)


def test_a_change_of_results_is_reported_and_can_be_written(
    comparer: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = comparer.read_losses(comparer.GOLDEN)
    changed = golden.assign(**{"train/loss": golden["train/loss"] * 1.002})
    monkeypatch.setattr(comparer, "measure", lambda folder: changed)
    monkeypatch.setattr(comparer, "GOLDEN", tmp_path / "phantom_loss.csv")
    golden.to_csv(comparer.GOLDEN, index=False)
    assert comparer.main([]) == 1
    assert "compare.py --update" in capsys.readouterr().out
    assert comparer.main(["--update"]) == 0
    assert comparer.main([]) == 0
