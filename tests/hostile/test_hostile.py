"""Hostile and damaged inputs for every reader and command (run.py), in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.nightly
def test_no_hostile_input_escapes_or_breaks_a_reader() -> None:
    command = [sys.executable, str(Path(__file__).with_name("run.py"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("all ")]
    tried, refused, equal, *faults = (int(number) for number in line.split()[1:])
    assert tried == refused + equal > 900
    assert refused > 500
    assert not any(faults)
