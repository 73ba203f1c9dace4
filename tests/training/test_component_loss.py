"""The loss of single components against loops over regions and voxels, and against sums by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from umamba.inference import Predictor
from umamba.labels import LabelSet
from umamba.labels.component_regions import component_regions
from umamba.patches import PatchDataModule
from umamba.records import RunFolder
from umamba.records.tables import read_metrics
from umamba.runs import PreparedDataset
from umamba.settings import (
    AugmentationSettings,
    DatasetSettings,
    InvalidSettings,
    LossSettings,
    RecipeSettings,
    TrainSettings,
)
from umamba.training.component_loss import ComponentLoss, component_loss
from umamba.training.losses import build_loss

PLAIN = LabelSet.from_json({"background": 0, "a": 1, "b": 2})
IGNORE = LabelSet.from_json({"background": 0, "a": 1, "b": 2, "ignore": 3})
REGIONS = LabelSet.from_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
# A run of one step that does not change its weights.
STILL = [
    *("trainer.max_epochs=1", "trainer.limit_train_batches=1", "recipe.optimizer.lr=1e-300"),
    *("recipe.deep_supervision=false", "fold=all"),
]
SETTINGS = LossSettings(component_weight=2.0, dice_weight=0.5, cross_entropy_weight=3.0)


def batch_of(label: torch.Tensor, labels: LabelSet) -> dict[str, Any]:
    """Return what the workers make of labels (B, 1, *S)."""
    flat = label.ndim == 4
    regions = [component_regions((own if not flat else own[:, None])[0].numpy(), labels, (1, 1, 1)) for own in label]
    components = torch.stack([torch.from_numpy(own[:, 0] if flat else own) for own in regions])
    return {"label": label, "components": components, "component_count": int(components.max())}


def slow_loss(logits: torch.Tensor, batch: dict[str, Any], labels: LabelSet) -> float:
    """Loop over samples, labels and components, and sum over the voxels of each region."""
    logits = logits.double()
    chances = logits.sigmoid() if labels.has_regions else logits.softmax(1)[:, 1:]
    means = []
    for sample in range(len(logits)):
        truth = batch["label"][sample, 0]
        for number, values in enumerate(labels.values):
            regions, losses = batch["components"][sample, number], []
            for component in range(1, int(regions.max()) + 1):
                common = predicted = true = entropy = 0.0
                voxels = 0
                for voxel in (regions == component).nonzero().tolist():
                    value = int(truth[tuple(voxel)])
                    if value == labels.ignore:
                        continue
                    p, wanted = float(chances[(sample, number, *voxel)]), value in values
                    common, predicted, true = common + p * wanted, predicted + p, true + wanted
                    entropy -= math.log(p if wanted else 1 - p)
                    voxels += 1
                dice = (2 * common + 1e-5) / (predicted + true + 1e-5)
                losses.append(3.0 * entropy / voxels - 0.5 * dice)
            if losses:
                means.append(sum(losses) / len(losses))
    return 2.0 * sum(means) / len(means)


@pytest.mark.parametrize("labels", [PLAIN, IGNORE, REGIONS], ids=["labels", "ignore", "regions"])
@pytest.mark.parametrize("shape", [(7, 8), (3, 5, 6)])
def test_it_equals_the_loop_over_components(shape: tuple[int, ...], labels: LabelSet) -> None:
    generator = torch.Generator().manual_seed(1)
    label = torch.where(torch.rand(3, 1, *shape, generator=generator) < 0.12, 1, 0)
    label[:2][torch.rand(2, 1, *shape, generator=generator) < 0.1] = 2  # the last sample has no label 2
    if labels.ignore is not None:
        label[..., -1:] = torch.where(label[..., -1:] == 0, labels.ignore, label[..., -1:])
    logits = torch.randn(3, labels.num_classes, *shape, generator=generator, requires_grad=True)
    batch = batch_of(label, labels)
    assert batch["components"].amax() > 2
    loss = ComponentLoss(labels, SETTINGS)([logits, logits[..., ::2]], batch)
    assert loss.item() == pytest.approx(slow_loss(logits.detach(), batch, labels), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_missed_voxel_counts_as_much_as_a_missed_organ() -> None:
    """One object of one voxel and one of twelve; missing either raises the Dice term by one half."""
    label = torch.zeros(1, 1, 6, 12, dtype=torch.long)
    label[0, 0, 1, 1] = 1
    label[0, 0, 1:5, 8:11] = 1
    labels = LabelSet.from_json({"background": 0, "a": 1})
    settings = LossSettings(component_weight=1.0, cross_entropy_weight=0.0)
    batch = batch_of(label, labels)

    def loss(found: torch.Tensor) -> float:
        margin = torch.where(found, 60.0, -60.0)
        return ComponentLoss(labels, settings)(torch.cat([-margin / 2, margin / 2], dim=1), batch).item()

    small, large = label.clone(), label.clone()
    small[..., :5] = 0
    large[..., 5:] = 0
    assert loss(label == 1) == pytest.approx(-1.0, abs=1e-5)
    assert loss(small == 1) == pytest.approx(-0.5, abs=1e-4)
    assert loss(large == 1) == pytest.approx(-0.5, abs=1e-4)


def test_a_batch_without_foreground_adds_zero() -> None:
    label = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = ComponentLoss(PLAIN, SETTINGS)(logits, batch_of(label, PLAIN))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_it_is_off_by_default() -> None:
    assert component_loss(PLAIN, LossSettings()) is None
    assert component_loss(PLAIN, SETTINGS) is not None


def test_a_run_adds_it_to_its_loss(small_fit: Callable[..., RunFolder], prepared: PreparedDataset) -> None:
    labels, settings = prepared.dataset.labels, LossSettings(component_weight=2.0)
    own = small_fit(*STILL, "recipe.loss.component_weight=2.0", name="own")
    cases = prepared.store.case_ids
    module = PatchDataModule(
        prepared.store, prepared.configuration, labels, cases, cases, seed=0, augmentation=AugmentationSettings.off(),
        iterations=1, component_regions=True,
    )  # fmt: skip
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    with torch.no_grad():
        logits = Predictor.from_checkpoint(own.last, device="cpu").models[0].network(batch["image"])
    whole = build_loss(labels, prepared.configuration.batch_dice, LossSettings())(logits, batch["label"]).item()
    components = ComponentLoss(labels, settings)(logits, batch).item()
    assert abs(components) > 0.1
    assert float(read_metrics(own.metrics)[-1]["train/loss"]) == pytest.approx(whole + components, abs=1e-4)


def test_it_needs_the_processes_that_make_patches() -> None:
    with pytest.raises(InvalidSettings, match=r"recipe\.loss\.component_weight=1: .*augmentation\.device=auto or cpu"):
        TrainSettings(
            dataset=DatasetSettings(root=Path("a")),
            recipe=RecipeSettings(loss=LossSettings(component_weight=1.0)),
            augmentation=AugmentationSettings(device="gpu"),
        )
