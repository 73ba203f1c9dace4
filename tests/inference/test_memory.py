"""The memory limit holds for many classes on a large grid, and it is lower than the size of all logits."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from umamba.inference import Model, Predictor
from umamba.inference.memory import MemoryLimit, measure_limit
from umamba.inference.resize import axis_maps
from umamba.inference.slabs import SlabLayout, View, choose_layout, logits_bytes
from umamba.io import Geometry, Image, UserError
from umamba.settings import PredictionSettings

# Segments 104 classes with a limit above the memory that the process has before. Prints the growth in GiB and whether
# the labels are correct.
GROWTH = """
import sys, torch, numpy as np
sys.path.insert(0, sys.argv[1])
from conftest import _make_model
from umamba.inference import Predictor
from umamba.io import Geometry, Image
from umamba.io.resources import peak_resident_bytes, resident_bytes
from umamba.settings import PredictionSettings

class Bands(torch.nn.Module):
    def forward(self, x):
        return torch.cat([-(x - label).abs() for label in range(104)], 1)

limit, *shape = float(sys.argv[2]), *map(int, sys.argv[3:])
shape = tuple(shape)
array = np.random.default_rng(0).integers(1, 104, (1, *shape)).astype(np.uint8)
image = Image(array, Geometry((1.0, 1.0, 1.0), (0.0,) * 3, tuple(np.eye(3).ravel()), shape, False))
model = _make_model(Bands(), (16, 16, 16), 104, num_channels=1)
torch.zeros(1) + 1
before = resident_bytes()
found = Predictor((model,)).predict_image(image, PredictionSettings(max_memory_gb=before / 2**30 + limit))
print(max(peak_resident_bytes() - before, 0) / 2**30, (found == array[0]).all())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what the process holds from /proc")
@pytest.mark.parametrize(
    ("limit", "shape"), [(0.7, (96, 160, 160)), (0.72, (40, 480, 160))], ids=["slabs", "slabs of two strips"]
)
def test_growth_stays_within_the_limit(limit: float, shape: tuple[int, ...]) -> None:
    arguments = [str(Path(__file__).parent), str(limit), *map(str, shape)]
    result = subprocess.run([sys.executable, "-c", GROWTH, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    growth, right = result.stdout.split()
    assert right == "True"
    assert float(growth) < limit
    assert 104 * np.prod(shape) * 4 / 2**30 > 0.95  # GiB of all logits


def test_a_hundred_classes_on_a_large_ct_by_arithmetic(make_model: Callable[..., Model]) -> None:
    """600 x 512 x 512 voxels, not resampled, tiles of 128^3 voxels, half precision: the sums take less than 5 GiB."""
    model = make_model(torch.nn.Identity(), (128, 128, 128), 104, num_channels=1, precision="bf16-mixed")
    shape = (600, 512, 512)
    view = View(model, torch.empty((1, *shape), device="meta"), axis_maps(shape, shape, (1, 1, 1), (1, 1, 1)))
    assert logits_bytes(view, shape, SlabLayout(1, 600)) == 104 * 2 * 600 * 512 * 512  # 30 GiB
    layout = choose_layout([view], shape, 5 * 2**30)
    assert layout is not None
    assert layout.strips == 2
    assert logits_bytes(view, shape, layout) <= 5 * 2**30
    # The sums hold the rows of a window and a slab, and half of the columns.
    assert logits_bytes(view, shape, layout) == 104 * 2 * (128 + layout.rows) * 256 * 512


def test_a_limit_that_is_too_low_is_named(make_model: Callable[..., Model]) -> None:
    model = make_model(torch.nn.Identity(), (4, 4, 4), 2)
    array = np.ones((2, 5, 6, 7), dtype=np.float32)
    image = Image(array, Geometry((1.0, 1.0, 1.0), (0.0,) * 3, tuple(np.eye(3).ravel()), (5, 6, 7), False))
    with pytest.raises(UserError, match="max_memory_gb: too little"):
        Predictor((model,)).predict_image(image, PredictionSettings(max_memory_gb=0.001))


def test_large_images_go_one_after_the_other(make_model: Callable[..., Model]) -> None:
    models = [make_model(torch.nn.Identity(), (4, 4, 4), 2)]
    assert MemoryLimit().cases_at_once(3, 10**12) == 3
    assert measure_limit(None, models, tta=False) == MemoryLimit()
    limit = measure_limit(8, models, tta=False)
    assert limit.bytes == 8 * 2**30
    assert limit.cases_at_once(2, 64**3) == 2
    assert limit.cases_at_once(2, 600 * 512 * 512) == 0


@pytest.mark.parametrize(("compiled", "expected"), [(None, 400), (object(), 100)])
def test_what_openvino_keeps_counts_once(compiled: object, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 bytes more at the peak of a pass, of which 300 stay: with PyTorch they may be given back at any time."""
    resident = [100]

    def start(tiles: torch.Tensor) -> Callable[[], torch.Tensor]:
        resident[0] = 400
        return lambda: tiles

    model = SimpleNamespace(
        compiled=compiled, tiles_per_pass=1, input_channels=1, window=(1, 1, 1), start=lambda _: start,
        in_flight=lambda _: 2,
    )  # fmt: skip
    monkeypatch.setattr("umamba.inference.memory.resident_bytes", lambda: resident[0])
    monkeypatch.setattr("umamba.inference.memory.peak_resident_bytes", lambda: 500)
    assert measure_limit(1, [cast(Model, model)], False).pass_bytes == expected
