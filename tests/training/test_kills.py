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
NETWORKS = ["unet", "umamba_bot", "umamba_enc"]
KILLS = 5


def trained(folder: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """Train the networks in all ways of killed_runs.py; return a row for each run, and print them as a table."""
    command = [sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(folder), json.dumps(overrides)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([*command, *NETWORKS], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    rows: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items()), sep=", ")
    return rows


@pytest.mark.slow
def test_caches_workers_and_kills_change_no_bit(
    small_settings: list[str], small_paths: Path, prepared: PreparedDataset, tmp_path: Path
) -> None:
    del prepared  # small_paths holds it
    folders = [f"paths.{kind}={small_paths / kind}" for kind in ("raw", "preprocessed")]
    rows = trained(tmp_path, [*small_settings, *folders, *SETTINGS])
    for network in NETWORKS:
        own = [row for row in rows if row["network"] == network]
        assert [row["kills"] for row in own] == [0, 0, KILLS]
        kinds = {(cache, workers) for cache in ("cold", "warm") for workers in (0, 1, 2)}
        assert {tuple(kind) for kind in own[-1]["kinds"]} == kinds
        for row in own:
            for number, ((cache, _), functions) in enumerate(zip(row["kinds"], row["compiled"], strict=True)):
                killed_early = row["kills"] > 0 and number == 0
                assert killed_early or (functions > 0) == (cache == "cold"), row
        assert len({row["sha256"] for row in own}) == 1, own
