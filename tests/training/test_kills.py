"""One SHA-256 of the weights: compiled code from the cache or not, any number of workers, killed five times or not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from umamba.runs import PreparedDataset

SETTINGS = [
    "trainer.limit_train_batches=2",
    "trainer.deterministic=true",
    "augmentation=nnunet",
    "predict.validation=false",
]
KILLS = 5


def trained(folder: Path, overrides: list[str], network: str) -> list[dict[str, Any]]:
    """Train a network in all ways of killed_runs.py; return a row for each, and print them as a table."""
    command = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(folder), json.dumps(overrides)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([*command, network], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items()), sep=", ")
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("network", ["unet", "umamba_bot", "umamba_enc"])
def test_caches_workers_and_kills_change_no_bit(
    small_settings: list[str], small_paths: Path, prepared: PreparedDataset, tmp_path: Path, network: str
) -> None:
    del prepared  # small_paths holds it
    folders = [f"paths.{kind}={small_paths / kind}" for kind in ("raw", "preprocessed")]
    rows = trained(tmp_path, [*small_settings, *folders, *SETTINGS], network)
    same = [row for row in rows if row["threads"] == 1]
    assert {(row["cache"], row["workers"]) for row in same} == {(c, w) for c in ("cold", "warm") for w in (0, 1, 2)}
    assert sorted(row["kills"] for row in same) == [0, 0, 0, KILLS, KILLS, KILLS]
    assert len({row["sha256"] for row in same}) == 1, rows
