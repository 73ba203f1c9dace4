"""The machine code of the Triton kernels, for GPUs that need not be here: no spilled registers, few instructions."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
if not all((TOOLS / name).is_file() for name in ("ptxas", "cuobjdump")):
    pytest.skip("this build of Triton has no ptxas and cuobjdump", allow_module_level=True)

Counts = Callable[..., dict[str, Any]]


@pytest.fixture
def counts(project_dir: Path) -> Counts:
    """Return a function that compiles all kernels, outside the interpreter, which this process may use."""

    def compiled(arch: int, dtype: str) -> dict[str, Any]:
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join([str(project_dir / "src"), os.environ.get("PYTHONPATH", "")])
        script = project_dir / "benchmarks" / "scan_instructions.py"
        command = [sys.executable, str(script), "--json", "--arch", str(arch), "--dtype", dtype]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return compiled


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [
        (90, "fp32"),
        pytest.param(80, "fp32", marks=pytest.mark.slow),
        pytest.param(120, "fp32", marks=pytest.mark.slow),
        pytest.param(90, "bf16", marks=pytest.mark.slow),
    ],
)
def test_few_instructions_and_no_spilled_registers(counts: Counts, arch: int, dtype: str) -> None:
    found = counts(arch, dtype)
    kernels, elements = found["kernels"], found["elements"]
    assert {name: kernel["stack"] for name, kernel in kernels.items() if kernel["stack"]} == {}
    assert [loop for kernel in kernels.values() for loop in kernel["loops"] if loop["spills"]] == []
    for name in ("chunk_totals", "outputs", "chunk_totals_back"):
        loop = kernels[name]["loops"][0]
        assert (loop["shuffles"], loop["barriers"]) == (0, 0), name
        assert kernels[name]["registers"] <= 128, name  # 16 warps of a multiprocessor
    longest = max(kernels["gradients"]["loops"], key=lambda loop: loop["instructions"])
    assert (longest["shuffles"], longest["barriers"]) == (31 * 3, 0)  # 31 for each of three tokens
    if dtype == "fp32":
        assert elements["forward"] <= 18, elements
        assert elements["backward"] <= 62, elements
    # The convolution: well below what moving its arrays takes.
    assert kernels["convolution"]["loops"][0]["instructions"] / 8 <= 40
    assert kernels["convolution_back"]["loops"][0]["instructions"] / 8 <= 80
