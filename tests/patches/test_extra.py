"""TorchIO's transforms by name: arguments as TorchIO's signatures say, geometry by hand, the same patches always."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio

from umamba.cli.compose import settings_of
from umamba.io import UserError
from umamba.patches.augmentation import read_margin, read_size, training_transforms
from umamba.patches.extra import ApplyTorchIO, check_arguments, check_on_patch
from umamba.patches.preview import draw_preview
from umamba.settings import AugmentationSettings, ExtraTransform, InvalidSettings, TrainSettings, parse, plain
from umamba.settings.torchio_arguments import RESERVED, UNFIT, torchio_transforms

Make = Callable[..., Any]
OFF = AugmentationSettings.off()
THREE = [
    {"name": "RandomMotion", "p": 0.7, "degrees": 5, "translation": 2},
    {"name": "RandomBiasField", "p": 0.7, "place": "before"},
    {"name": "RandomNoise", "p": 0.7, "std": [0.1, 0.2]},
]


def with_extra(*extra: dict[str, Any], base: AugmentationSettings = OFF) -> AugmentationSettings:
    """Return settings with extra transforms."""
    return parse(AugmentationSettings, {**plain(base), "extra": list(extra)})


def apply(entry: dict[str, Any], image: np.ndarray, spacing: tuple[float, ...] = (1, 1, 1)) -> Any:
    """Return image and label (Z, Y, X) after one transform; the label is the rounded image."""
    (extra,) = with_extra(entry).extra
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(image.astype(np.float32))[None]),
        label=tio.LabelMap(tensor=torch.from_numpy(image.round().astype(np.int16))[None]),
    )
    subject = ApplyTorchIO(extra, spacing)(subject)
    assert subject.get_image("label").data.dtype == torch.int16
    return tuple(subject.get_image(name).data[0].numpy() for name in ("image", "label"))


def test_the_source_shows_the_arguments_that_python_sees() -> None:
    found = torchio_transforms()
    exported = [name for name in tio.transforms.__all__ if inspect.isclass(getattr(tio, name))]
    assert set(found) == set(exported)
    for name in set(exported) - set(UNFIT):
        parameters: dict[str, inspect.Parameter] = {}
        for kind in getattr(tio, name).__mro__:
            own = inspect.signature(kind.__init__).parameters if "__init__" in vars(kind) else {}
            for argument, parameter in own.items():
                if argument != "self" and parameter.kind.name in ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY"):
                    parameters.setdefault(argument, parameter)
        assert set(found[name].names) == set(parameters), name
        required = {argument for argument, each in parameters.items() if each.default is inspect.Parameter.empty}
        assert set(found[name].required) == required, name
    assert set(UNFIT) - set(exported) <= {"LabelTransform"}
    assert set(RESERVED) < {name for each in found.values() for name in each.names}


def test_wrong_transforms_are_refused_together_without_torchio() -> None:
    wrong: list[dict[str, Any]] = [
        {"name": "RandomMotion", "degres": 5},
        {"name": "RandomMotoin"},
        {"name": "Crop", "cropping": 3},
        {"name": "RandomAffine", "label_interpolation": "linear", "include": ["image"], "center": "origin"},
        {"name": "RandomFlip", "axes": ["LR"]},
        {"name": "Noise", "mean": 0, "std": 1},
        {"name": "RandomAffineElasticDeformation", "affine_kwargs": {"degree": 3}},
    ]
    with pytest.raises(InvalidSettings) as caught:
        with_extra(*wrong)
    text = str(caught.value)
    for part in (
        "9 settings cannot be used",
        "RandomMotion: TorchIO's transform has no argument degres. Did you mean degrees?",
        "augmentation.extra.name=RandomMotoin: must be one of ",
        "Crop: cannot be used here, because it changes the size of the patch",
        "label_interpolation=linear: must be nearest",
        "include cannot be set",
        "center=origin: must be image",
        "RandomFlip: axes=['LR']: give numbers",
        "Noise: TorchIO's transform also needs seed",
        "RandomAffine: TorchIO's transform has no argument degree. Did you mean degrees?",
    ):
        assert part in text
    with pytest.raises(InvalidSettings, match=r"augmentation\.device=gpu: TorchIO's transforms .* run on the CPU"):
        with_extra({"name": "RandomBlur"}, base=replace(OFF, device="gpu"))


def test_the_command_line_takes_them_and_torchio_checks_the_values() -> None:
    given = "augmentation.extra=[{name:RandomMotion,p:0.1,degrees:5},{name:RandomBiasField,p:0.2,place:before}]"
    settings = settings_of(TrainSettings, ["dataset.root=x", given])
    assert settings.augmentation.extra == (
        ExtraTransform("RandomMotion", "after", {"p": 0.1, "degrees": 5}),
        ExtraTransform("RandomBiasField", "before", {"p": 0.2}),
    )
    for wrong, said in (("p:3", "Probability must be a number"), ("num_transforms:0", "strictly positive")):
        with pytest.raises(UserError, match=rf"augmentation\.extra: RandomMotion: TorchIO refuses .*{said}"):
            settings_of(TrainSettings, ["dataset.root=x", f"augmentation.extra=[{{name:RandomMotion,{wrong}}}]"])


def test_axes_millimetres_and_degrees_are_torchios() -> None:
    """Axis 0 is X, the last of the patch; 3 mm are 2 voxels of 1.5 mm; a quarter turn about Z turns each slice."""
    image = np.zeros((5, 7, 9))
    image[1, 2, 3] = 4
    moved, label = apply({"name": "Affine", "scales": 1, "degrees": 0, "translation": [3, 0, 0]}, image, (1, 1, 1.5))
    assert np.array_equal(np.maximum(label, 0), moved.round())
    assert (label[:, :, :2] == -1).all()  # from beyond the image
    assert np.argwhere(moved > 3.99).tolist() == [[1, 2, 5]]
    flipped, label = apply({"name": "Flip", "axes": [0]}, image)
    assert np.array_equal(flipped, image[:, :, ::-1])
    assert np.array_equal(label, flipped)
    square = np.random.default_rng(0).uniform(0, 3, (4, 9, 9))
    turned, label = apply({"name": "Affine", "scales": 1, "degrees": [0, 0, 90], "translation": 0}, square)
    expected = np.rot90(square, -1, axes=(1, 2)) if turned[0, 0, 0] > square[0, -1, 0] - 1e-3 else None
    assert expected is not None
    np.testing.assert_allclose(turned, expected, atol=1e-4)
    assert np.array_equal(label, expected.round())


def test_intensity_transforms_leave_the_label_alone() -> None:
    image = np.random.default_rng(0).uniform(0, 3, (6, 8, 10))
    for name in ("RandomMotion", "RandomBiasField", "RandomGhosting", "RandomSpike", "RandomGamma", "RandomBlur"):
        torch.manual_seed(3)
        changed, label = apply({"name": name}, image)
        assert np.array_equal(label, image.round().astype(int)), name
        assert np.abs(changed - image).max() > 1e-4, name
    constant, _ = apply({"name": "ZNormalization"}, np.full((3, 4, 5), 2.0))  # TorchIO would divide by zero
    assert (constant == 2).all()


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("patch", [(8, 12, 10), (16, 12)])
def test_no_voxel_of_a_patch_comes_from_beyond_its_region(
    make_module: Make, make_cases: Make, place: str, rotated: bool, patch: tuple[int, ...]
) -> None:
    """Where the image is linear in its coordinates, a rotated, scaled and moved patch is, too, up to its last voxel."""
    shape = (90, 100, 110) if len(patch) == 3 else (1, 160, 170)
    store = make_cases([shape])
    case = store.cases["case_0"]
    case.image = np.indices(shape, dtype=np.float32)[[2]] * 0.5 + np.indices(shape, dtype=np.float32)[[1]] + 7
    case.label = np.ones((1, *shape), np.int16)
    case.foreground = {1: np.argwhere(np.ones((9,) * 3 if len(patch) == 3 else (1, 9, 9))).astype(np.int32) + 40}
    if len(patch) == 2:
        case.foreground[1][:, 0] = 0
    base = (
        parse(AugmentationSettings, {**plain(OFF), "rotation": {"p": 1.0}, "scaling": {"p": 1.0}}) if rotated else OFF
    )
    affine = {"name": "RandomAffine", "scales": [0.7, 1.3], "degrees": 35, "translation": 4, "place": place}
    augmentation = with_extra(affine, {"name": "RandomFlip", "place": place}, base=base)
    module = make_module(store, patch, iterations=8, batch_size=1, augmentation=augmentation, oversample_foreground=1.0)
    grid = np.indices(patch).reshape(len(patch), -1)
    design = np.vstack([grid, np.ones_like(grid[:1])]).T.astype(float)
    for batch in module.train_dataloader():
        assert batch["image"].shape[2:] == patch
        assert (batch["label"] == 1).all()
        values = batch["image"].double().numpy().ravel()
        fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
        np.testing.assert_allclose(values, fitted, atol=2e-3)


def test_the_border_covers_the_largest_elastic_displacement(monkeypatch: pytest.MonkeyPatch) -> None:
    """If every control point moves by the maximum, the patch is the image moved by that many millimetres."""
    monkeypatch.setattr(
        tio.RandomElasticDeformation,
        "get_params",
        staticmethod(lambda points, largest, locked: np.broadcast_to(np.array(largest), (*points, 3)).copy()),
    )
    elastic = {"name": "RandomElasticDeformation", "max_displacement": [3, 2, 4], "locked_borders": 0}
    augmentation = with_extra(elastic)
    patch, spacing = (6, 8, 10), (2.0, 1.0, 1.5)
    margin = read_margin(augmentation, patch, spacing)
    assert margin == (2, 2, 2)  # 4 / 2, 2 / 1 and 3 / 1.5 voxels of (Z, Y, X)
    ramp = np.indices([edge + 4 for edge in patch]).astype(np.float32)
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(ramp)),
        label=tio.LabelMap(tensor=torch.ones(1, *ramp.shape[1:], dtype=torch.int16)),
    )
    made = training_transforms(augmentation, patch, (False,) * 3, spacing)(subject).get_image("image").data.numpy()
    inner = ramp[:, 2:-2, 2:-2, 2:-2]
    np.testing.assert_allclose(np.abs(made - inner), 2, atol=1e-3)


def test_coarse_samples_do_not_end_inside_a_patch(make_module: Make, make_cases: Make) -> None:
    """TorchIO fills what lies beyond its last coarse sample with zeros; a patch must not have any."""
    store = make_cases([(60, 60, 60)])
    store.cases["case_0"].image[:] = 5
    coarse = {"name": "RandomAnisotropy", "downsampling": [2, 5]}
    loader = make_module(store, iterations=4, augmentation=with_extra(coarse)).train_dataloader()
    inside = [batch["image"][index] for batch in loader for index in range(3)]
    whole = [image for image in inside if image.max() == image.min() == 5]
    assert len(whole) == sum(bool((image > 0).any()) for image in inside) == 12


def test_the_place_of_a_patch_does_not_depend_on_extra_transforms(make_module: Make, store: Any) -> None:
    """A spatial transform that never happens leaves the patch as it is, although a larger region is read."""
    never = with_extra({"name": "RandomAffine", "p": 0, "place": "before"}, {"name": "RandomFlip", "p": 0})
    both = with_extra({"name": "RandomElasticDeformation", "p": 0}, base=never)
    assert read_size(never, (8, 10, 6)) == (8, 10, 6)
    for augmentation in (never, both):
        patches = make_module(store, augmentation=augmentation).train_patches
        assert max(patches.largest_size) > 10
        plain_patches = make_module(store).train_patches
        for number in range(6):
            for name in ("image", "label"):
                ours, theirs = (each[number].get_image(name).data for each in (patches, plain_patches))
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("spatial", [False, True])
def test_workers_epochs_and_resumes_make_no_difference(
    make_module: Make, store: Any, often: AugmentationSettings, spatial: bool
) -> None:
    extra = [*THREE, {"name": "RandomElasticDeformation", "max_displacement": 1, "p": 0.5}] if spatial else THREE
    augmentation = with_extra(*extra, base=often)

    def batches(workers: int, epoch: int) -> list[Any]:
        loader = make_module(store, iterations=2, augmentation=augmentation, num_workers=workers).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return list(loader)

    torch.manual_seed(5)
    state = torch.get_rng_state()
    expected = batches(0, 3)
    assert torch.equal(torch.get_rng_state(), state)
    for workers in (1, 2):
        for one, other in zip(batches(workers, 3), expected, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["label"], other["label"])
            assert set(one["label"].unique().tolist()) <= {0, 1, 2}
    assert not torch.equal(batches(0, 4)[0]["image"], expected[0]["image"])
    without = list(make_module(store, iterations=2, augmentation=often).train_dataloader())
    assert not torch.equal(without[0]["image"], expected[0]["image"])


def test_the_generators_of_gpus_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchIO's noise calls torch.manual_seed, which would seed the generators that a network on a GPU draws from."""
    events: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: "state")
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda state: events.append(state))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: events.append("seeded"))
    apply({"name": "RandomNoise"}, np.zeros((3, 4, 5)))
    assert events == ["seeded", "state"]


def test_what_never_happens_changes_nothing(make_module: Make, store: Any, often: AugmentationSettings) -> None:
    never = with_extra({"name": "RandomBlur", "p": 0}, {"name": "RandomMotion", "p": 0}, base=often)
    with_them, without = (list(make_module(store, augmentation=each).train_dataloader()) for each in (never, often))
    for one, other in zip(with_them, without, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])


def test_what_does_not_fit_the_patch_is_refused_before_training() -> None:
    check_arguments(with_extra(*THREE))
    check_on_patch(with_extra(*THREE), (8, 10, 12), (1, 1, 1))
    for entry, patch, said in (
        ({"name": "RandomSwap", "patch_size": 9}, (8, 10, 12), "RandomSwap: TorchIO cannot apply it to a patch of 8 x"),
        ({"name": "RandomSwap", "patch_size": [12, 10, 8]}, (8, 10, 12), "fills the network's patch"),
        ({"name": "RandomMotion"}, (16, 16), "it would move the image and not its label"),
        ({"name": "RandomAffine", "scales": [0, 1]}, (8, 8, 8), "scales: must be above 0"),
    ):
        with pytest.raises(UserError, match=said):
            check_on_patch(with_extra(entry), patch, (1.0,) * len(patch))


def test_the_preview_shows_them(store: Any, make_module: Make, tmp_path: Path) -> None:
    module = make_module(store)
    configuration: Any = type("C", (), {"patch_size": (8, 10, 6), "use_mask_for_norm": (False,), "spacing": (1, 1, 1)})
    pictures = []
    for index, augmentation in enumerate((OFF, with_extra({"name": "RandomAffine", "degrees": 45}))):
        path = tmp_path / f"{index}.png"
        draw_preview(store, configuration, module.train_patches.labels, augmentation, path, rows=1, columns=2)
        pictures.append(path.read_bytes())
    assert pictures[0] != pictures[1]
