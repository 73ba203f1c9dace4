"""Whole-case validation: the labels that the predictor gives on the plan's grid, with the settings of prediction."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from umamba.evaluation import dice
from umamba.inference import Model, Predictor
from umamba.io import Geometry, Image
from umamba.labels import LabelSet
from umamba.networks import build_network, configuration_for_patch
from umamba.planning import Plan
from umamba.settings import PredictionSettings, SlidingWindowSettings
from umamba.training.case_validation import CaseValidation

CPU = torch.device("cpu")
LABELS = LabelSet(("a", "b"), ((1,), (2,)))
SHAPE = (7, 21, 19)
IMAGE = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
TRUTH = np.random.default_rng(1).integers(-1, 3, (1, *SHAPE))


class Store:
    """A store of one preprocessed case."""

    def load(self, case_id: str) -> Any:
        return SimpleNamespace(image=IMAGE, label=TRUTH, previous=None)


class Shapes(nn.Module):
    """Remembers the shapes of the tiles that a network sees."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Any:
        self.seen.append(tuple(x.shape))
        return self.network(x)


def make_model(dim: int, mirror_axes: tuple[int, ...] | None = None) -> Model:
    """Return a small random network under a plan whose grid is the image's."""
    planned = configuration_for_patch((4, 16, 16)[3 - dim :])
    stages = planned.num_stages
    configuration = replace(
        planned,
        features_per_stage=(4,) * stages,
        encoder_blocks=(1,) * stages,
        decoder_blocks=(1,) * (stages - 1),
        normalization=("NoNormalization",),
    )
    plan = Plan(
        dataset_name="Dataset001_Test",
        rules="nnunet",
        transpose_forward=(0, 1, 2),
        transpose_backward=(0, 1, 2),
        median_spacing=(1.0, 1.0, 1.0),
        median_shape=(7.0, 21.0, 19.0),
        intensity=(),
        configurations={configuration.name: configuration},
    )
    torch.manual_seed(0)
    network = build_network("umamba_bot", configuration, 1, LABELS.num_classes)
    return Model(network, plan, configuration, LABELS, 1, CPU, precision="32-true", mirror_axes=mirror_axes)


def validation(model: Model, settings: SlidingWindowSettings) -> CaseValidation:
    """Return the callback for a model."""
    store: Any = Store()
    return CaseValidation(
        store, ["case"], model.configuration, LABELS, 1, settings, model.mirror_axes, tile_scale=model.tile_scale
    )


def predicted(model: Model, settings: SlidingWindowSettings) -> np.ndarray:
    """Return the predictor's label map of the case."""
    geometry = Geometry((1.0, 1.0, 1.0), (0.0,) * 3, tuple(np.eye(3).ravel()), SHAPE, False)
    asked = PredictionSettings(tile_step_size=settings.tile_step_size, tta=settings.tta)
    return Predictor((model,)).predict_image(Image(IMAGE, geometry), asked)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [SlidingWindowSettings(), SlidingWindowSettings(tile_step_size=1.0), SlidingWindowSettings(tta=True)],
    ids=["default", "steps of a patch", "mirrored"],
)
def test_the_labels_are_the_predictors(dim: int, settings: SlidingWindowSettings) -> None:
    model = make_model(dim, mirror_axes=(dim - 1,))
    labels = validation(model, settings).segment(model.network, torch.from_numpy(IMAGE), CPU, "32-true")
    np.testing.assert_array_equal(labels, predicted(model, settings))
    assert len(np.unique(labels)) == 3


def test_tiles_of_several_patches_are_the_predictors() -> None:
    model = replace(make_model(2), tile_scale=2)
    shapes = Shapes(model.network)
    labels = validation(model, SlidingWindowSettings()).segment(shapes, torch.from_numpy(IMAGE), CPU, "32-true")
    np.testing.assert_array_equal(labels, predicted(model, SlidingWindowSettings()))
    assert {shape[2:] for shape in shapes.seen} == {(32, 32)}


def test_the_settings_of_prediction_reach_the_score() -> None:
    model = make_model(3)
    shapes = Shapes(model.network)
    choices = (
        SlidingWindowSettings(),
        SlidingWindowSettings(tile_step_size=0.25),
        SlidingWindowSettings(tile_step_size=0.25, tta=True),
    )
    scores, tiles = [], []
    for settings in choices:
        shapes.seen.clear()
        scores.append(validation(model, settings).score(shapes, "case", CPU, "32-true"))
        tiles.append(sum(shape[0] for shape in shapes.seen))
        assert {shape[1:] for shape in shapes.seen} == {(1, 4, 16, 16)}
    # Starts along the axes: 3, 2, 2 with half a patch between them; 4, 3, 2 with a quarter; eight flips.
    assert tiles == [12, 24, 8 * 24]
    assert len(set(scores)) == 3


def test_the_score_is_the_mean_dice_over_labels() -> None:
    model = make_model(2)
    settings = SlidingWindowSettings()
    labels, truth = predicted(model, settings), np.maximum(TRUTH[0], 0)
    expected = np.mean([dice(labels == value, truth == value) for value in (1, 2)])
    assert validation(model, settings).score(model.network, "case", CPU, "32-true") == pytest.approx(expected)


def test_partly_labelled_cases_are_scored_by_what_they_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    configuration: Any = SimpleNamespace(dim=3)
    store: Any = Store()
    predicted = np.where(TRUTH[0] == 1, 0, np.maximum(TRUTH[0], 0))
    monkeypatch.setattr(CaseValidation, "segment", lambda *_: predicted)
    for annotated, expected in ((None, 0.5), ({"x": ("b",)}, 1.0), ({"x": ("a",)}, 0.0)):
        checked = CaseValidation(store, ["x"], configuration, LABELS, 1, SlidingWindowSettings(), annotated=annotated)
        assert checked.score(nn.Identity(), "x", CPU, "32-true") == expected
