"""A user's own package: its backbone and loss train, its run continues, and its checkpoint needs trust."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from umamba.cli.check_backbone import main as check_backbone
from umamba.cli.compose import settings_of
from umamba.cli.main import main
from umamba.inference import Predictor
from umamba.inference.nnunet_export import export_to_nnunet
from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.records import RunFolder, read_checkpoint
from umamba.settings import (
    CustomArchitectureSettings,
    InvalidSettings,
    LossSettings,
    RecipeSettings,
    TrainSettings,
    parse,
    plain,
    read_architecture,
)
from umamba.training.losses import build_loss

OWN = ["architecture.name=plain_net", "architecture.width=4"]
Fit = Callable[..., RunFolder]


def recorded(folder: Path, architecture: dict[str, Any]) -> Path:
    """Write a checkpoint whose record names an architecture; it has no weights."""
    plan: Any = {"plan": {}, "configuration": "2d", "labels": {}, "channel_names": ["a"], "file_ending": ".nii.gz"}
    path = folder / "forged.ckpt"
    torch.save({"umamba": {"format": 1, **plan, "architecture": architecture, "recipe": {}}, "state_dict": {}}, path)
    return path


def test_an_entry_point_becomes_its_function(mypackage: Path) -> None:
    settings = settings_of(TrainSettings, ["dataset.root=x", *OWN, "recipe.loss.name=log_cosh_dice"])
    assert settings.architecture == CustomArchitectureSettings("mypackage.networks:build", {"width": 4})
    assert plain(settings.architecture) == {"name": "mypackage.networks:build", "width": 4}
    assert settings.recipe.loss.name == "mypackage.losses:build"
    assert parse(RecipeSettings, plain(settings.recipe)) == settings.recipe


def test_mistakes_are_refused_when_the_settings_are_composed(mypackage: Path) -> None:
    for given, said in (
        (["architecture.name=plain_nte"], r"plain_nte: must be one of .*plain_net.* Did you mean plain_net\?"),
        ([*OWN, "architecture.widht=3"], r"Unknown key 'architecture\.widht'. Did you mean 'architecture\.width'\?"),
        (["architecture.name=mypackage.networks:biuld"], "the module mypackage.networks has no function biuld"),
        (["architecture.name=mypackage.absent:build"], "there is no module mypackage.absent. Install its package"),
        (["architecture.name=absent:build"], r"there is no module absent\. Install its package"),
        (["architecture.name=mypackage/networks:build"], "must be package.module:function"),
        (["recipe.loss.name=log_cosh"], "must be package.module:function, or the name of an installed entry point"),
        (["recipe.loss.name=log_cosh_dice", "recipe.loss.smoth=1"], r"Did you mean 'recipe\.loss\.smooth'"),
        (
            ["recipe.loss.name=log_cosh_dice", "recipe.loss.smooth=0"],
            r"loss\.smooth=0: must be a number above 0",
        ),
        (["recipe.loss.name=log_cosh_dice", "recipe.loss.focal_gamma=2"], "belongs to the soft Dice and cross-entropy"),
        (["recipe.loss.smooth=1"], r"Unknown key 'recipe\.loss\.smooth'"),
    ):
        with pytest.raises(UserError, match=said):
            settings_of(TrainSettings, ["dataset.root=x", *given])


@pytest.mark.parametrize(
    "name", ["umamba.runs.whole_run:train", "umamba.cli.main:main", "os:system()", "../evil:build", "", "a b:c"]
)
def test_names_that_can_be_no_backbone_are_refused(name: str) -> None:
    with pytest.raises(InvalidSettings, match=r"architecture\.name"):
        read_architecture({"name": name})


def test_two_packages_with_one_name_are_told_apart(mypackage: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[umamba.backbones]\nplain_net = other.nets:build\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(InvalidSettings, match=r"several packages offer it. Give one of mypackage\S+, other\.nets:"):
            read_architecture("plain_net")
    finally:
        sys.path.remove(str(tmp_path))


def test_the_example_loss_is_the_formula(mypackage: Path) -> None:
    labels = LabelSet(("one", "two"), ((1,), (2,)))
    settings = LossSettings(name="log_cosh_dice", options={"smooth": 0.5})
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 3, (2, 1, 4, 5), generator=torch.Generator().manual_seed(1))
    power = np.exp(logits.numpy().astype(np.float64))
    probabilities = power / power.sum(1, keepdims=True)
    terms = []
    for value in (1, 2):
        for image in range(2):
            truth, found = label[image, 0].numpy() == value, probabilities[image, value]
            dice = (2 * (truth * found).sum() + 0.5) / (truth.sum() + found.sum() + 0.5)
            terms.append(np.log(np.cosh(1 - dice)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = build_loss(labels, False, settings)(logits, label)
    assert loss.item() == pytest.approx(np.mean(terms), abs=1e-6)
    with pytest.raises(UserError, match="takes neither regions nor an ignore label"):
        build_loss(LabelSet(("one",), ((1,),), ignore=2), False, settings)


def test_a_loss_that_is_no_scalar_is_refused(mypackage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = build_loss(LabelSet(("one",), ((1,),)), True, LossSettings(name="log_cosh_dice"))
    monkeypatch.setattr(loss.loss, "forward", lambda logits, label: logits)
    with pytest.raises(UserError, match=r"recipe\.loss\.name=mypackage\.losses:build: the loss must be a scalar"):
        loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3, dtype=torch.int64))


def test_an_own_run_trains_continues_and_needs_trust_elsewhere(
    mypackage: Path, small_fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [*OWN, "recipe.loss.name=log_cosh_dice", "recipe.schedule.name=constant"]
    once = small_fit(*own, name="once")
    small_fit(*own, "trainer.max_epochs=1", name="resumed")
    resumed = small_fit(*own, name="resumed")  # without trust, because the command names the function
    weights = read_checkpoint(once.last, "mypackage").weights
    assert {name.split(".")[0] for name in weights} == {"layers"}
    again = read_checkpoint(resumed.last, "mypackage").weights
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    recipe = read_checkpoint(once.last, "mypackage").record.recipe
    assert recipe is not None
    assert recipe.loss == LossSettings(name="mypackage.losses:build")

    for name in [name for name in sys.modules if name.split(".")[0] == "mypackage"]:
        del sys.modules[name]
    said = r"its network is built by mypackage\.networks:build.*nothing was imported.*add trust=mypackage"
    for trust in ((), "mypack", ["mypackage.network"], "other", ""):
        with pytest.raises(UserError, match=said):
            Predictor.from_checkpoint(once.last, device="cpu", trust=trust)
    with pytest.raises(UserError, match=r"architecture mypackage\.networks:build; nnU-Net itself has unet and"):
        export_to_nnunet(once.last, tmp_path / "exported")
    for command in (
        f"predict checkpoint={once.last} input={tmp_path} output={tmp_path / 'out'}",
        f"describe checkpoint={once.last}",
    ):
        assert main(command.split()) == 2
        assert "add trust=mypackage" in capsys.readouterr().err
    assert "mypackage" not in sys.modules
    for trust in ("mypackage", ["other", "mypackage.networks"]):
        (model,) = Predictor.from_checkpoint(once.last, device="cpu", trust=trust).models
        assert type(model.network).__module__ == "mypackage.networks"
        assert all(torch.equal(value, weights[name]) for name, value in model.network.state_dict().items())
    assert main(["describe", f"checkpoint={once.last}", "trust=mypackage"]) == 0


def test_a_forged_checkpoint_runs_nothing(mypackage: Path, tmp_path: Path) -> None:
    """A file may name a module that runs code when it is imported; it is refused before."""
    (tmp_path / "trap.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.sprung').touch()\n")
    sys.path.insert(0, str(tmp_path))
    try:
        for name in ("trap:build", "plain_net", "umamba.cli.main:main"):
            with pytest.raises(UserError):
                read_checkpoint(recorded(tmp_path, {"name": name}))
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "trap.sprung").exists()
    assert not {"trap", "mypackage"} & set(sys.modules)


def test_the_command_checks_an_own_backbone(
    mypackage: Path, monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    assert check_backbone(["plain_net", "width=3", "--dim=2"]) == 0
    table: Any = messages.records[-1].msg
    assert list(table.columns[0].cells) == [
        *("output sizes", "odd sizes", "tiles of another size", "gradients", "bfloat16 autocast"),
        *("weights saved and loaded", "images of a batch", "torch.compile", "memory"),
    ]
    assert set(table.columns[2].cells) == {"pass"}
    network: Any = sys.modules["mypackage.networks"]
    monkeypatch.setattr(network.PlainNet, "forward", lambda self, image: self.layers(image)[..., 1:])
    assert check_backbone(["mypackage.networks:build", "--dim=2"]) == 1
    for wrong, said in (
        ([], "give one backbone"),
        (["plain_net", "unet"], "give one backbone"),
        (["plain_net", "--dims=2"], "Write --dim=2 or --dim=3"),
        (["plain_net", "widht=3"], r"Did you mean 'architecture\.width'"),
        (["absent.networks:build"], "there is no module absent"),
    ):
        with pytest.raises(UserError, match=said):
            check_backbone(wrong)
