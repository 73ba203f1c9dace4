"""Signs of trust: they equal those from whole probabilities and label maps, and change no segmentation."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import entr
from torch import nn

from umamba.datasets import RawCase
from umamba.evaluation import dice
from umamba.inference import Model, Predictor
from umamba.inference.agreement import Agreement, CaseSigns, further_views
from umamba.inference.likeness import distances
from umamba.inference.prepared_image import prepare_image
from umamba.inference.resize import whole
from umamba.io import Geometry, Image, UserError, read_label, write_segmentation
from umamba.planning import Intensity
from umamba.settings import PredictionSettings

SHAPE = (13, 17, 19)
EYE = tuple(np.eye(3).ravel())


def predicted(models: list[Model], source: Image, folder: Path, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities and the segmentation that are written for the image."""
    folder.mkdir(parents=True)
    write_segmentation(folder / "image.mha", source.array[0], source.geometry)
    case = RawCase("case", (folder / "image.mha",), None)
    chosen = PredictionSettings(probabilities=True, **settings)
    (path,) = Predictor(tuple(models)).predict_cases([case], folder / "out", chosen, progress=False)
    with np.load(folder / "out" / "case.npz") as content:
        return content["probabilities"], read_label(path).array[0]


def mask(segmentation: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    return np.isin(segmentation, values)


def compare(
    signs: CaseSigns, model: Model, maps: list[np.ndarray], decided: np.ndarray, mean: np.ndarray, sure: np.ndarray
) -> None:
    """Compare signs with those of whole label maps and probabilities."""
    if model.labels.has_regions:
        entropy = (entr(mean) + entr(1 - mean)).mean(0) / math.log(2)
        sure = np.maximum(sure, 1 - sure).mean(0)
    else:
        entropy = entr(mean).sum(0) / math.log(len(mean))
        sure = sure.max(0)
    found = 0
    for name, values in zip(model.labels.names, model.labels.values, strict=True):
        own, inside = signs.labels[name], mask(decided, values)
        if not inside.any():
            assert own == {"disagreement": None, "entropy": None, "confidence": None}
            continue
        pairs = [dice(mask(one, values), mask(two, values)) for i, one in enumerate(maps) for two in maps[i + 1 :]]
        assert own["disagreement"] == pytest.approx(1 - np.nanmean(pairs))
        assert own["entropy"] == pytest.approx(entropy[inside].mean(), abs=1e-5)
        assert own["confidence"] == pytest.approx(sure[inside].mean(), abs=1e-5)
        found += 1
    assert found >= 2


@pytest.mark.parametrize("regions", [False, True])
def test_of_several_networks(
    members: Callable[..., list[Model]], cropped_image: Image, tmp_path: Path, regions: bool
) -> None:
    models = members(regions)
    own = [predicted([model], cropped_image, tmp_path / str(number)) for number, model in enumerate(models)]
    mean, segmentation = predicted(models, cropped_image, tmp_path / "all", agreement=True)
    np.testing.assert_array_equal(segmentation, predicted(models, cropped_image, tmp_path / "without")[1])
    crop = (slice(None), slice(2, 12), slice(1, 15), slice(3, 18))
    signs = CaseSigns.read(tmp_path / "all" / "out" / "agreement" / "case.json")
    assert (signs.views, signs.networks) == ("networks", 3)
    assert not (tmp_path / "without" / "out" / "agreement").exists()
    maps = [found[crop[1:]] for _, found in own]
    compare(signs, models[0], maps, segmentation[crop[1:]], mean[crop], mean[crop])


def test_of_one_network_mirrored_and_with_other_tiles(
    members: Callable[..., list[Model]], cropped_image: Image, tmp_path: Path
) -> None:
    """A mirrored view is the view of a network whose kernel is mirrored."""
    (model,) = members()[1:2]
    own = [predicted([model], cropped_image, tmp_path / "own")]
    network: Any = model.network
    weights = network.layer.weight.data.clone()
    for axis in range(3):
        network.layer.weight.data = weights.flip(axis + 2)
        own.append(predicted([model], cropped_image, tmp_path / f"flip{axis}"))
    network.layer.weight.data = weights
    own.append(predicted([model], cropped_image, tmp_path / "coarse", tile_step_size=1.0))
    _, segmentation = predicted([model], cropped_image, tmp_path / "all", agreement=True)
    np.testing.assert_array_equal(segmentation, own[0][1])
    signs = CaseSigns.read(tmp_path / "all" / "out" / "agreement" / "case.json")
    assert (signs.views, signs.networks) == ("one network", 1)
    crop = (slice(None), slice(2, 12), slice(1, 15), slice(3, 18))
    mean = np.mean([found[crop] for found, _ in own], axis=0)
    compare(signs, model, [found[crop[1:]] for _, found in own], segmentation[crop[1:]], mean, own[0][0][crop])


def test_a_network_of_slices_is_mirrored_along_its_own_axes(
    members: Callable[..., list[Model]], cropped_image: Image
) -> None:
    model = members()[2]  # sees (Z, Y) slices across X: transpose_forward (2, 0, 1)
    views = prepare_image(cropped_image, [model]).views
    assert [view.flip for view in further_views(views, 0.5)] == [0, 1, None]
    model.mirror_axes = (1,)
    assert [view.flip for view in further_views(views, 0.5)] == [1, None]
    model.mirror_axes = ()
    assert [view.tile_step_size for view in further_views(views, 0.5)] == [1.0]
    assert further_views(views, 1.0) == ()
    assert further_views(views * 2, 0.5) == ()


@pytest.mark.parametrize("count", [1, 3])
def test_the_memory_limit_changes_nothing(
    members: Callable[..., list[Model]], cropped_image: Image, count: int
) -> None:
    from umamba.inference.canvas import Canvas
    from umamba.inference.slabs import choose_layout, give_slabs, logits_bytes

    models = members()[:count]
    prepared = prepare_image(cropped_image, models)
    views = (*prepared.views, *further_views(prepared.views, 0.5))
    shape, cpu = prepared.placement.crop_shape, torch.device("cpu")
    one = choose_layout(views, shape, None)
    assert one is not None
    cut = choose_layout(views, shape, 0.6 * sum(logits_bytes(view, shape, one) for view in views))
    assert cut not in (None, one)
    found = []
    for layout in (one, cut):
        assert layout is not None
        agreement, canvas = Agreement(models[0].labels, count, len(views)), Canvas(prepared.placement, models[0].labels)
        settings = PredictionSettings()
        for box, slabs in give_slabs(views, shape, layout, settings, sums_on=cpu, advance=lambda tiles: None):
            agreement.add(box, slabs)
            canvas.add(box, slabs[:count])
            del slabs
        found.append(agreement.signs())
    for name, signs in found[0].items():
        assert found[1][name] == pytest.approx(signs, rel=1e-6)


def test_one_view_has_nothing_that_agrees(
    cropped_image: Image, mixed: Callable[[int, int, int], nn.Module], make_model: Callable[..., Model], tmp_path: Path
) -> None:
    model = make_model(mixed(3, 3, 0), (16, 16, 16), 3, num_channels=1)
    model.mirror_axes = ()
    predicted([model], cropped_image, tmp_path / "all", agreement=True, tile_step_size=1.0)
    signs = CaseSigns.read(tmp_path / "all" / "out" / "agreement" / "case.json")
    assert {own["disagreement"] for own in signs.labels.values()} == {None}
    assert any(own["entropy"] is not None for own in signs.labels.values())


def test_signs_are_added_to_a_folder_and_kept(
    members: Callable[..., list[Model]], cropped_image: Image, tmp_path: Path
) -> None:
    """A case without signs is segmented again; one that has them is not."""
    source = cropped_image
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write_segmentation(tmp_path / "in" / f"{name}.mha", source.array[0], source.geometry)
    predictor = Predictor(tuple(members()[:2]))
    predictor.predict(tmp_path / "in", tmp_path / "out", PredictionSettings(), progress=False)
    before = read_label(tmp_path / "out" / "a.nii.gz").array
    settings = PredictionSettings(agreement=True)
    predictor.predict(tmp_path / "in", tmp_path / "out", settings, progress=False)
    np.testing.assert_array_equal(read_label(tmp_path / "out" / "a.nii.gz").array, before)
    file = tmp_path / "out" / "agreement" / "a.json"
    written = file.stat().st_mtime_ns
    (tmp_path / "out" / "agreement" / "b.json").unlink()
    predictor.predict(tmp_path / "in", tmp_path / "out", settings, progress=False)
    assert file.stat().st_mtime_ns == written
    assert (tmp_path / "out" / "agreement" / "b.json").exists()
    settings = PredictionSettings(overwrite=True)
    predictor.predict(tmp_path / "in", tmp_path / "out", settings, progress=False)
    assert not file.exists()  # it would be of another segmentation


def test_distances_by_hand(mixed: Callable[[int, int, int], nn.Module], make_model: Callable[..., Model]) -> None:
    model = make_model(mixed(3, 3, 0), (8, 8, 8), 3, num_channels=1)  # training: 1 mm, 16 voxels along each axis
    array = np.linspace(0, 100, 8 * 16 * 16).reshape(1, 8, 16, 16)
    source = Image(array, Geometry((3.0, 1.0, 0.5), (0.0, 0.0, 0.0), EYE, array.shape[1:], False))  # type: ignore[arg-type]
    found = distances(source, whole(array.shape[1:]), model)
    assert found["spacing"] == pytest.approx(math.log(3))
    assert found["field_of_view"] == pytest.approx(math.log(2))  # 24, 16 and 8 mm; the median is 16 mm
    assert found["intensities"] == 0.0
    object.__setattr__(model.plan, "intensity", (Intensity(50, 50, 20, 0, 100, 10, 59.5),))
    found = distances(source, whole(array.shape[1:]), model)
    assert found["intensities"] == pytest.approx(math.log(2), abs=0.01)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"a": 1}},
        {"labels": {"a": {"entropy": "much"}}},
        {"distances": {"spacing": None}},
        {"views": "dreams"},
        {"networks": 1.5},
    ],
)
def test_damaged_signs_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    signs = CaseSigns("networks", 2, {"a": {"entropy": 0.5}}, {"spacing": 0.0}, ())
    path = tmp_path / "case.json"
    path.write_text(json.dumps(signs.to_json()))
    assert CaseSigns.read(path) == signs
    path.write_text(json.dumps({**signs.to_json(), **change}))
    with pytest.raises(UserError, match=r"case\.json: .*Delete case\.json"):
        CaseSigns.read(path)
