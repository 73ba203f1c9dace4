"""Each command on a disk that fills, that is read-only, or whose names are links: whole or absent, then repeated."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

# Commands that share a process, and the random points of each. `UMAMBA_DISK_POINTS=20` tries as many everywhere.
GROUPS = (
    {"convert": 20, "export": 20, "train": 5},
    {"predict": 20, "prepare": 5, "evaluate": 4, "report": 4},
)
# What a run that is continued writes again; everything else has its final content from the beginning.
STATE = (
    *("config.yaml", "last.ckpt", "previous.ckpt", "best.ckpt", "metrics.csv", "run.json", "progress.png"),
    "prediction.json",  # names the cases that are done
)
JOURNAL = ".prediction_cases.jsonl"  # of a prediction that has not ended

Points = dict[str, list[dict[str, Any]]]


def campaign(folder: Path, counts: dict[str, int]) -> list[dict[str, Any]]:
    """Run the points of several commands in one warm process; skip if this system lets a user mount nothing."""
    script = Path(__file__).with_name("full_disk.py")
    wanted = os.environ.get("UMAMBA_DISK_POINTS")
    given = [f"{name}={wanted or number}" for name, number in counts.items()]
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    command = [sys.executable, str(script), str(folder), *given]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, check=False)
    assert done.returncode == 0, done.stderr
    first, *points = [json.loads(line) for line in done.stdout.splitlines()]
    if "failed" in first:
        pytest.skip(f"no file system can be mounted here without root: {first['failed'].strip().splitlines()[-1]}")
    return points


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Points:
    """Return what happened at each point of each command; the first one is undisturbed."""
    if sys.platform != "linux":
        pytest.skip("needs Linux, which can mount a small file system")
    folders = [tmp_path_factory.mktemp("disk") for _ in GROUPS]
    with ThreadPoolExecutor() as pool:
        found = [point for part in pool.map(campaign, folders, GROUPS) for point in part]
    return {name: [point for point in found if point["command"] == name] for group in GROUPS for name in group}


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("command", [name for group in GROUPS for name in group])
def test_a_full_disk_leaves_nothing_incomplete_and_the_repeated_command_ends_as_an_undisturbed_one(
    command: str, points: Points
) -> None:
    undisturbed, *others = points[command]
    assert "failed" not in undisturbed, undisturbed["failed"]
    whole = undisturbed["runs"][0]["tree"]
    assert undisturbed["runs"][0]["code"] == 0, undisturbed["runs"][0]["said"]
    assert not [text for text in whole.values() if text.startswith("DAMAGED")]
    full = 0
    for point in others:
        where = f"{command}, {point['options']}, home {point.get('home')}"
        assert "failed" not in point, f"{where}\n{point['failed']}"
        assert point["escaped"] == [], where
        first, last = point["runs"][0], point["runs"][-1]
        assert "Traceback" not in first["said"], f"{where}\n{first['said']}"
        if first["code"]:
            full += 1
            assert first["code"] == 2, f"{where}\n{first['said']}"
            assert "Error: " in first["said"], where
            reason = "shared memory" if point["options"] == "shm" else "not be written"
            assert reason in first["said"].replace("cannot", "could not"), f"{where}\n{first['said']}"
        else:
            assert first["tree"] == whole, f"{where}\n{first['said']}"
        if point["options"] != "links":
            for name, text in first["tree"].items():
                if Path(name).name == JOURNAL:
                    continue
                assert name in whole, f"{where}: {name}"
                again = Path(name).name in STATE and not text.startswith("DAMAGED")
                assert again or text == whole[name], f"{where}: {name} {text}"
        assert last["code"] == 0, f"{where}\n{last['said']}"
        assert last["tree"] == whole, where
    assert full > len(others) / 4, "most disks were too small"
    links = next(point for point in others if point["options"] == "links")
    assert len(links["runs"]) == 1, links["runs"][0]["said"]
