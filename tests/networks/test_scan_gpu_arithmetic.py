"""The arithmetic of benchmarks/scan_gpu.py, which itself needs a GPU, against the review's figures by hand."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def benchmark(project_dir: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("scan_gpu", project_dir / "benchmarks" / "scan_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scan_gpu"] = module  # its dataclass looks itself up there
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["scan_gpu"]
    return module


def test_bytes_exponentials_and_floor_of_the_first_ct_stage(benchmark: ModuleType) -> None:
    batch, channels, length = benchmark.layer_shape(benchmark.PLANS["abdomen_ct"], 0)
    assert (batch, channels, length) == (2, 64, 40 * 224 * 192)
    array = 2 * 64 * 1_720_320 * 4  # bytes of u: 0.88 GB; B and C have a quarter of it each
    assert benchmark.bytes_to_move(batch, channels, length) == 4 * array + array // 2 + 7 * array + array
    elements = 2 * 64 * 1_720_320 * 16
    # An H100 at 1.755 GHz computes 3.71e12 exponentials in a second and copies 3.0 TB/s.
    assert pytest.approx(3.71e12, rel=1e-3) == 16 * 132 * 1.755e9
    least = benchmark.floor_s(4 * array + array // 2 + 8 * array, elements, 3.0e12, 132, 1.755e9)
    assert least == pytest.approx(12.5 * array / 3.0e12)
    assert benchmark.floor_s(0, elements, 3.0e12, 132, 1.755e9) == pytest.approx(2 * elements / 3.71e12, rel=1e-3)
