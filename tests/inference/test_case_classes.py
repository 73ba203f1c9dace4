"""Classes of whole images: the weighted mean over tiles, against a slow version; and their table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from umamba.inference import Model, Predictor
from umamba.inference.case_classes import Probabilities, classify, image_logits, read_classes, write_classes
from umamba.inference.prepared_image import PreparedImage
from umamba.io import Geometry, Image, UserError
from umamba.labels.case_classes import CaseHeads, CaseTask
from umamba.networks.heads import build_case_head
from umamba.settings import PredictionSettings

TASKS = (CaseTask("grade", ("low", "high")), CaseTask("=side", ("l", "m", "r")))
HEADS = CaseHeads((CaseTask("grade", ("low", "high")), CaseTask("side", ("l", "m", "r"))))
DEFAULT = torch.get_num_threads()


class Deep(nn.Module):
    """A network whose bottleneck is a convolution, and whose logits are zero."""

    deep_supervision = supports_deep_supervision = False
    fixed_patch_size = None
    bottleneck_channels = 4

    def __init__(self, dim: int) -> None:
        super().__init__()
        torch.manual_seed(dim)
        self.layer = (nn.Conv2d if dim == 2 else nn.Conv3d)(1, 4, 3, padding=1)

    def bottleneck(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))

    def segment_with_bottleneck(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self(x), self.bottleneck(x)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x * 0, x * 0], dim=1)


def with_head(made: Model, network: nn.Module, **changes: Any) -> Model:
    """Return a model with a head of random weights."""
    made.heads, made.case_head = HEADS, build_case_head(network, "deep", HEADS.sizes).eval()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("tta", [False, True])
def test_the_logits_are_the_mean_over_tiles_weighted_by_their_part_of_the_image(
    make_model: Callable[..., Model], dim: int, tta: bool
) -> None:
    network = Deep(dim)
    patch = (6, 8, 7)[3 - dim :]
    model = with_head(make_model(network, patch, 2, num_channels=1, forward=(1, 0, 2)), network, mirror_axes=(0,))
    image = torch.randn(1, 9, 8, 5)
    # Slowly: along the network's axes, voxel by voxel; each voxel shares itself among its tiles by their Gaussians.
    turned = image.permute(0, 2, 1, 3)
    window = (1,) * (3 - dim) + patch
    starts, gaussians = [], []
    for length, size in zip(turned.shape[1:], window, strict=True):
        count = 1 if length <= size else -(-(length - size) // size) + 1
        first = -((size - length) // 2) if length < size else 0
        starts.append([first + round(index * (length - size) / max(1, count - 1)) for index in range(count)])
        gaussians.append(np.exp(-0.5 * ((np.arange(size) - size // 2) / (size / 8)) ** 2))
    total, weights = torch.zeros(5, dtype=torch.float64), 0.0
    mass = np.zeros(turned.shape[1:])
    places = [(z, y, x) for z in starts[0] for y in starts[1] for x in starts[2]]

    def bump(place: tuple[int, ...]) -> np.ndarray:
        axes = []
        for start, gaussian, length in zip(place, gaussians, turned.shape[1:], strict=True):
            line = np.zeros(length)
            for index, value in enumerate(gaussian):
                if 0 <= start + index < length:
                    line[start + index] = value
            axes.append(line)
        return np.einsum("i,j,k->ijk", *axes)

    for place in places:
        mass += bump(place)
    for place in places:
        share = float((bump(place) / mass).sum() / mass.size)
        tile = torch.zeros(1, *window)
        for index in np.ndindex(*window):
            voxel = tuple(start + step for start, step in zip(place, index, strict=True))
            if all(0 <= at < length for at, length in zip(voxel, turned.shape[1:], strict=True)):
                tile[(0, *index)] = turned[(0, *voxel)]
        given = (tile[:, 0] if dim == 2 else tile)[None]
        views = [given, given.flip(2)] if tta else [given]
        assert model.case_head is not None
        with torch.no_grad():
            logits = torch.stack([torch.cat(model.case_head(network.bottleneck(view)), 1)[0] for view in views]).mean(0)
        total += share * logits.double()
        weights += share
    assert weights == pytest.approx(1.0)
    found = image_logits(model, image, tta)
    assert [len(task) for task in found] == [2, 3]
    assert torch.allclose(torch.cat(found), total, atol=1e-5)


def image() -> Image:
    array = np.random.default_rng(0).standard_normal((1, 9, 10, 11)).astype(np.float32)
    return Image(array, Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()), (9, 10, 11), False))


def test_several_networks_give_the_mean_of_their_probabilities(make_model: Callable[..., Model]) -> None:
    models = []
    for dim, patch in ((3, (6, 8, 7)), (2, (8, 7))):
        network = Deep(dim)
        models.append(with_head(make_model(network, patch, 2, num_channels=1), network))
    each = [Predictor((model,)).classify_image(image()) for model in models]
    both = Predictor(tuple(models)).classify_image(image())
    for task in HEADS.tasks:
        assert sum(both[task.name].values()) == pytest.approx(1.0)
        for name in task.classes:
            assert both[task.name][name] == pytest.approx((each[0][task.name][name] + each[1][task.name][name]) / 2)
    models[1].heads = None
    with pytest.raises(UserError, match="the networks differ in heads"):
        Predictor(tuple(models))


def test_the_bits_do_not_depend_on_the_threads(make_model: Callable[..., Model]) -> None:
    network = Deep(3)
    model = with_head(make_model(network, (6, 8, 7), 2, num_channels=1), network, reproducible=True)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(Predictor((model,)).classify_image(image()))
    torch.set_num_threads(DEFAULT)
    assert found[0] == found[1]


def test_networks_for_classes_alone_segment_nothing(make_model: Callable[..., Model]) -> None:
    network = Deep(3)
    model = with_head(make_model(network, (6, 8, 7), 2, num_channels=1), network, heads=CaseHeads(HEADS.tasks, True))
    predictor = Predictor((model,))
    with pytest.raises(UserError, match="Use classify_image"):
        predictor.predict_image(image())
    with pytest.raises(UserError, match="segments nothing"):
        predictor.predict_cases([], Path("nowhere"), PredictionSettings(probabilities=True))
    assert set(predictor.classify_image(image())) == {"grade", "side"}


def test_classes_belong_to_one_image(make_model: Callable[..., Model], tmp_path: Path) -> None:
    """Another image of the same name is refused; with overwrite=true its row is made again, and the others stay."""
    network = Deep(3)
    model = with_head(make_model(network, (6, 8, 7), 2, num_channels=1), network, heads=CaseHeads(HEADS.tasks, True))
    predictor, output = Predictor((model,)), tmp_path / "out"
    folders = [tmp_path / name for name in ("first", "second")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        voxels = np.random.default_rng(number).normal(number, size=(8, 9, 10)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(folder / "image.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(voxels + 1), str(folder / f"other{number}.nii.gz"))
    predictor.predict(folders[0], output, progress=False)
    table = (output / "classes.csv").read_text()
    predictor.predict(folders[0], output, progress=False)
    with pytest.raises(
        UserError, match=r"classes in \S*classes\.csv of other images than these.*: image\. Give another"
    ):
        predictor.predict(folders[1], output, progress=False)
    assert (output / "classes.csv").read_text() == table
    predictor.predict(folders[1], output, PredictionSettings(overwrite=True), progress=False)
    predictor.predict(folders[1], tmp_path / "fresh", progress=False)
    rows, fresh = (read_classes(path / "classes.csv", HEADS.tasks) for path in (output, tmp_path / "fresh"))
    assert rows == {**fresh, "other0": rows["other0"]}


def test_a_kill_keeps_the_classes_so_far(make_model: Callable[..., Model], tmp_path: Path) -> None:
    network = Deep(3)
    model = with_head(make_model(network, (6, 8, 7), 2, num_channels=1), network, heads=CaseHeads(HEADS.tasks, True))
    (tmp_path / "images").mkdir()
    for name in "abc":
        volume = sitk.GetImageFromArray(np.random.default_rng(ord(name)).normal(size=(8, 9, 10)).astype(np.float32))
        sitk.WriteImage(volume, str(tmp_path / "images" / f"{name}.nii.gz"))
    seen: list[list[str]] = []

    def dying(prepared: PreparedImage, models: Sequence[Model], tta: bool) -> Probabilities:
        seen.append(sorted(read_classes(tmp_path / "out" / "classes.csv", HEADS.tasks)))
        return classify(prepared, models, tta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("umamba.inference.case_classes._WRITE_S", 0.0)
        patch.setattr("umamba.inference.case_classes.classify", dying)
        Predictor((model,)).predict(tmp_path / "images", tmp_path / "out", progress=False)
    assert seen == [[], ["a"], ["a", "b"]]


def test_the_table_keeps_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    rows = {"=b": ((0.25, 0.75), (0.2, 0.5, 0.3)), "a": ((1.0, 0.0), (0.1, 0.1, 0.8))}
    write_classes(path, TASKS, rows)
    lines = path.read_text().splitlines()
    assert lines[0] == "case,grade,grade=low,grade=high,'=side,'=side=l,'=side=m,'=side=r"
    assert lines[1] == "'=b,high,0.250000,0.750000,m,0.200000,0.500000,0.300000"
    assert read_classes(path, TASKS) == rows
    assert read_classes(path, TASKS[:1]) == {}
    path.write_text(path.read_text()[:-20])
    assert read_classes(path, TASKS) == {}
