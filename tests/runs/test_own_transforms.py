"""Training with the three transforms of the worked example: it runs, and a continued run ends with the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from umamba.io import UserError
from umamba.patches.extra import ApplyTorchIO
from umamba.records import RunFolder, read_checkpoint

Fit = Callable[..., RunFolder]


def test_a_run_with_the_example_continues_exactly(
    example_folder: Path, small_fit: Fit, make_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(example_folder)  # where configs/augmentation/mri.yaml is
    example = make_settings("augmentation=mri").augmentation.extra
    assert [extra.name for extra in example] == ["RandomBiasField", "RandomMotion", "RandomElasticDeformation"]
    applied: list[str] = []
    apply = ApplyTorchIO.apply_transform

    def counted(self: ApplyTorchIO, subject: Any) -> Any:
        applied.append(self.transform.name)
        return apply(self, subject)

    monkeypatch.setattr(ApplyTorchIO, "apply_transform", counted)
    given = ["augmentation=mri", "recipe.schedule.name=constant"]
    small_fit(*given, "trainer.max_epochs=1", name="killed")
    continued = small_fit(*given, name="killed")
    whole = small_fit(*given, name="whole")
    assert len(applied) == 2 * 2 * 3 * 2 * 3  # runs, epochs, batches, patches, transforms
    one, other = (read_checkpoint(folder.last).weights for folder in (continued, whole))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_transform_that_does_not_fit_the_plan_is_refused_before_preprocessing(make_settings: Any) -> None:
    from umamba.runs.checks import check_network
    from umamba.runs.preparation import plan_of

    settings = make_settings("augmentation.extra=[{name:RandomSwap,patch_size:12}]")
    with pytest.raises(UserError, match="RandomSwap: TorchIO cannot apply it to a patch of 8 x 16 x 16 voxels"):
        check_network(settings, plan_of(settings))
