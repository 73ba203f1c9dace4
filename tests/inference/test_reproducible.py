"""`reproducible=true`: the same bits for any number of threads, tiles at a time, memory and workers."""

import hashlib
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from umamba.inference import Model, Predictor
from umamba.inference.forward import by_single_threads
from umamba.inference.slabs import SlabLayout
from umamba.io import read_image
from umamba.networks import build_network
from umamba.preprocessing import preprocess_case
from umamba.settings import PredictionSettings

MakeModel = Callable[..., Any]


@pytest.mark.parametrize(("dim", "members"), [(3, 1), (2, 2)])
def test_bits_are_equal_over_24_settings(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None, dim: int, members: int
) -> None:
    """Threads, tiles at a time, slabs and strips of scarce memory, workers.

    Labels and probabilities are compared, of one network and of the mean of two.
    """
    patch, spacing = ((8, 12, 12), (1.0, 0.8, 0.9)) if dim == 3 else ((16, 16), (0.8, 0.9))
    image = sitk.GetImageFromArray(np.random.default_rng(1).normal(size=(5, 13, 17)).astype(np.float32))
    (tmp_path / "images").mkdir()
    sitk.WriteImage(image, str(tmp_path / "images" / "a_0000.nii.gz"))
    made = make_model(torch.nn.Identity(), patch, 3, num_channels=1, spacing=spacing)

    def model(seed: int) -> Model:
        torch.manual_seed(seed)
        network = build_network("unet", made.configuration, 1, 3, deep_supervision=False)
        return Model(network, made.plan, made.configuration, made.labels, 1, made.device, reproducible=True)

    predictor = Predictor(tuple(model(seed) for seed in range(members)))
    found = set()
    choices = list(itertools.product((1, 2, 3), (False, True), (False, True), (1, 2)))
    assert len(choices) == 24
    for number, (count, one_by_one, scarce, workers) in enumerate(choices):
        torch.set_num_threads(count)
        with monkeypatch.context() as patched:
            if one_by_one:
                patched.setattr(Model, "in_flight", lambda *_: 1)
            if scarce:
                patched.setattr("umamba.inference.memory.choose_layout", lambda *_: SlabLayout(2, 2))
            settings = PredictionSettings(workers=workers, max_memory_gb=64.0 if scarce else None, probabilities=True)
            (path,) = predictor.predict(tmp_path / "images", tmp_path / str(number), settings, progress=False)
        with np.load(path.with_name("a.npz")) as file:
            probabilities = file["probabilities"].tobytes()
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).tobytes()
        found.add(hashlib.sha256(labels + probabilities).hexdigest())
    assert len(found) == 1


def test_matrices_are_multiplied_by_one_thread_while_images_are_resampled(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenBLAS's kernels for AVX2 give other bits with another number of threads."""
    made = make_model(torch.nn.Identity(), (8, 8, 8), 2, num_channels=1)
    path = tmp_path / "a_0000.nii.gz"
    sitk.WriteImage(
        sitk.GetImageFromArray(np.random.default_rng(1).normal(size=(8, 8, 8)).astype(np.float32)), str(path)
    )
    seen = set[int]()

    def watched(*given: Any, **named: Any) -> Any:
        seen.update(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return preprocess_case(*given, **named)

    monkeypatch.setattr("umamba.inference.prepared_image.preprocess_case", watched)
    for reproducible, threads in ((True, 1), (False, 3)):
        network = build_network("unet", made.configuration, 1, 2, deep_supervision=False)
        rest = (made.plan, made.configuration, made.labels, 1, made.device)
        predictor = Predictor((Model(network, *rest, reproducible=reproducible),))
        with threadpool_limits(3, "blas"):
            predictor.predict_image(read_image([path]))
            assert seen == {threads}
            seen.clear()
            predictor.predict(path, tmp_path / str(threads), progress=False)
            assert seen == {threads}
        seen.clear()


def test_passes_of_single_threads_have_the_bits_of_one_thread(threads: None) -> None:
    """Plain convolutions of this size differ between numbers of threads on processors with AVX-512."""
    torch.manual_seed(0)
    network, tiles = torch.nn.Conv3d(32, 64, 3, padding=1), torch.randn(4, 1, 32, 8, 16, 16)

    def forward(tile: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network(tile)  # type: ignore[no-any-return]

    torch.set_num_threads(1)
    expected = [forward(tile) for tile in tiles]
    for count in (2, 3):
        torch.set_num_threads(count)
        start = by_single_threads(forward, count)
        begun = [start(tile) for tile in tiles]
        assert all(torch.equal(wait(), wanted) for wait, wanted in zip(begun, expected, strict=True))
        assert torch.get_num_threads() == count
        with ThreadPoolExecutor(1) as pool:  # of other parts of the program
            assert pool.submit(torch.get_num_threads).result() == count
