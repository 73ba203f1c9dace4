"""Runs on regions and on partial annotation: the reported loss against one computed here from the same batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from umamba.inference import Predictor
from umamba.labels import LabelSet
from umamba.patches import PatchDataModule
from umamba.preprocessing import CaseStore
from umamba.records import RunFolder
from umamba.records.tables import MetricsRow, read_metrics
from umamba.runs import PreparedDataset
from umamba.settings import AugmentationSettings

Fit = Callable[..., RunFolder]
STILL = [
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "recipe.optimizer.lr=1e-300",  # zero in float32, so that the weights stay
    "recipe.deep_supervision=false",
    "fold=all",
]
SMOOTH = 1e-5


@dataclass
class ChangedStore:
    """A store whose labels a function changes.

    With `labelled`, the case lists the voxels that have a label, as the store of a partly annotated dataset does.
    """

    store: CaseStore
    change: Callable[[np.ndarray], np.ndarray]
    labelled: bool = False

    @property
    def case_ids(self) -> tuple[str, ...]:
        return tuple(self.store.case_ids)

    def letters(self, case_id: str) -> tuple[str, str, str] | None:
        return self.store.letters(case_id)

    def load(self, case_id: str) -> Any:
        case = self.store.load(case_id)
        label = self.change(case.label[:])
        foreground = dict(case.foreground)
        if self.labelled:
            foreground[-1] = np.argwhere(label[0] != label.max()).astype(np.int32)
        return replace(case, label=label, foreground=foreground)


def first_batch(prepared: PreparedDataset) -> dict[str, Any]:
    """Return the first training batch of a run on all cases, seed 0, without augmentation."""
    module = PatchDataModule(
        prepared.store,
        prepared.configuration,
        prepared.dataset.labels,
        prepared.store.case_ids,
        prepared.store.case_ids,
        seed=0,
        augmentation=AugmentationSettings.off(),
        iterations=1,
    )
    return module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)


def logits_of(folder: RunFolder, image: torch.Tensor) -> np.ndarray:
    """Return the logits of the run's network, float64."""
    with torch.no_grad():
        logits: torch.Tensor = Predictor.from_checkpoint(folder.last, device="cpu").models[0].network(image)
        return logits.double().numpy()


def dice_of(probability: np.ndarray, truth: np.ndarray) -> float:
    """Return the soft Dice of one channel of one patch."""
    return float((2 * (probability * truth).sum() + SMOOTH) / (probability.sum() + truth.sum() + SMOOTH))


def region_loss(logits: np.ndarray, label: np.ndarray, regions: Sequence[Sequence[int]]) -> float:
    """Return binary cross-entropy of every region in every voxel, minus the mean Dice."""
    entropies, dices = [], []
    for patch, truth in zip(logits, label[:, 0], strict=True):
        for channel, values in zip(patch, regions, strict=True):
            probability, wanted = 1 / (1 + np.exp(-channel)), np.isin(truth, values)
            entropies.append(-np.log(np.where(wanted, probability, 1 - probability)).mean())
            dices.append(dice_of(probability, wanted))
    return float(np.mean(entropies) - np.mean(dices))


def partial_loss(logits: np.ndarray, label: np.ndarray, ignore: int) -> float:
    """Return cross-entropy and Dice of the voxels that have a label."""
    entropies, dices = [], []
    for patch, truth in zip(logits, label[:, 0], strict=True):
        counted = truth != ignore
        scores = patch[:, counted]  # (classes, voxels)
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=0)
        entropies += [-np.log(probabilities[value, i]) for i, value in enumerate(truth[counted])]
        dices += [dice_of(probabilities[k], truth[counted] == k) for k in range(1, len(patch))]
    return float(np.mean(entropies) - np.mean(dices))


def test_a_run_on_regions(small_fit: Fit, prepared: PreparedDataset) -> None:
    values = [value for (value,) in prepared.dataset.labels.values]
    regions = LabelSet(("all", "core"), (tuple(values), (values[0],)), None, (values[1], values[0]))
    cases = replace(prepared, dataset=replace(prepared.dataset, labels=regions))
    folder = small_fit(*STILL, cases=cases)
    batch = first_batch(cases)
    logits = logits_of(folder, batch["image"])
    assert logits.shape[1] == 2, "one output for each region, none for the background"
    row = metrics(folder)
    assert float(row["train/loss"]) == pytest.approx(
        region_loss(logits, batch["label"].numpy(), regions.values), abs=2e-5
    )
    assert {"seen/patch_dice/all", "seen/patch_dice/core"} <= row.keys()


def test_a_run_on_partial_annotation(small_fit: Fit, prepared: PreparedDataset) -> None:
    former = prepared.dataset.labels
    ignore = former.all_values[-1] + 1
    labels = LabelSet(former.names, former.values, ignore)

    def half(label: np.ndarray) -> np.ndarray:
        changed = label.copy()
        changed[..., ::2] = ignore
        return changed

    store: Any = ChangedStore(prepared.store, half, labelled=True)
    cases = replace(prepared, dataset=replace(prepared.dataset, labels=labels), store=store)
    folder = small_fit(*STILL, cases=cases)
    batch = first_batch(cases)
    assert 0.4 < (batch["label"] == ignore).float().mean() < 0.6
    logits = logits_of(folder, batch["image"])
    assert logits.shape[1] == len(former.names) + 1, "the ignore label has no output"
    expected = partial_loss(logits, batch["label"].numpy(), ignore)
    assert float(metrics(folder)["train/loss"]) == pytest.approx(expected, abs=2e-5)


def metrics(folder: RunFolder) -> MetricsRow:
    """Return the last row of metrics.csv."""
    return read_metrics(folder.metrics)[-1]
