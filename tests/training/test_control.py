"""Options of a training: pretrained weights, accumulation, weight averaging, less memory, several processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from umamba.inference import Predictor, decide_labels, tile_forward, tile_window, whole_logits
from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.networks.build import architecture_names
from umamba.planning import Configuration, fold_cases
from umamba.records import RunFolder
from umamba.records.tables import read_metrics, read_scores
from umamba.runs import PreparedDataset
from umamba.settings import InvalidSettings, read_architecture
from umamba.training.activation_checkpointing import checkpoint_stages
from umamba.training.pretrained import load_pretrained

Fit = Callable[..., RunFolder]
TWO = LabelSet(("a", "b"), ((1,), (2,)))


def checkpoint(folder: RunFolder) -> dict[str, Any]:
    """Return a run's last checkpoint."""
    return dict(torch.load(folder.last, weights_only=True))


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    """Return the weights of a run's last checkpoint."""
    return dict(checkpoint(folder)["state_dict"])


def rows(folder: RunFolder) -> list[dict[str, str]]:
    """Return the rows of metrics.csv."""
    return read_metrics(folder.metrics)


def small_unet(prepared: PreparedDataset, classes: int, channels: int = 1) -> nn.Module:
    """Return the network of the small runs."""
    return build_network("unet", prepared.configuration, channels, classes)


def test_a_run_starts_from_pretrained_weights(small_fit: Fit, messages: pytest.LogCaptureFixture) -> None:
    first = small_fit(name="first")
    # This rate is zero in float32, so that the weights stay.
    still = ["recipe.optimizer.lr=1e-300", "recipe.optimizer.momentum=0", "recipe.optimizer.nesterov=false"]
    tuned = small_fit(f"pretrained={first.last}", *still, "trainer.max_epochs=1", name="tuned")
    assert all(torch.equal(tensor, weights(tuned)[name]) for name, tensor in weights(first).items())
    assert "with its heads" in messages.text
    fresh = small_fit(*still, "trainer.max_epochs=1", name="fresh")
    assert not all(torch.equal(tensor, weights(fresh)[name]) for name, tensor in weights(first).items())


def test_heads_begin_anew_if_the_classes_differ(small_fit: Fit, prepared: PreparedDataset) -> None:
    path = small_fit("trainer.max_epochs=1").last
    network = small_unet(prepared, 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    said = load_pretrained(path, network, lambda classes: small_unet(prepared, classes), TWO)
    heads = {name for name in before if ".seg_layers." in name}
    assert f"{len(heads)} tensors of the heads begin anew" in said
    assert heads
    latest = torch.load(path, weights_only=True)["state_dict"]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if name in heads else latest[f"network.{name}"]), name


def test_heads_of_as_many_other_classes_begin_anew(small_fit: Fit, prepared: PreparedDataset) -> None:
    labels = prepared.dataset.labels
    other = LabelSet(tuple(f"other {name}" for name in labels.names), labels.values)
    network = small_unet(prepared, labels.num_classes)
    path = small_fit("trainer.max_epochs=1").last
    assert "begin anew" in load_pretrained(path, network, lambda classes: small_unet(prepared, classes), other)


def test_official_checkpoints_can_be_fine_tuned(prepared: PreparedDataset, tmp_path: Path) -> None:
    source, target = small_unet(prepared, 3), small_unet(prepared, 3)
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"network_weights": state, "logging": [torch.tensor(1.0).numpy()[()]]}, tmp_path / "final.pth")
    load_pretrained(tmp_path / "final.pth", target, lambda classes: small_unet(prepared, classes), TWO)
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_unfit_weights_are_refused(prepared: PreparedDataset, tmp_path: Path) -> None:
    def build(classes: int) -> nn.Module:
        return small_unet(prepared, classes)

    torch.save({"network_weights": small_unet(prepared, 3, channels=2).state_dict()}, tmp_path / "channels.pth")
    with pytest.raises(UserError, match=r"number of channels:\n.*\(4, 2, 3, 3, 3\) in the file, \(4, 1, 3, 3, 3\)"):
        load_pretrained(tmp_path / "channels.pth", build(3), build, TWO)
    torch.save({"some": 1}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no weights"):
        load_pretrained(tmp_path / "other.pth", build(3), build, TWO)
    with pytest.raises(UserError, match=r"nowhere\.ckpt: no such file"):
        load_pretrained(tmp_path / "nowhere.ckpt", build(3), build, TWO)


def test_accumulated_batches_equal_one_large_batch(small_fit: Fit) -> None:
    """Two batches of 2 patches equal one of the same 4, because loss and gradients are means over patches."""
    common = ["recipe.oversample_foreground=1.0", "plan.batch_dice=false", "trainer.max_epochs=1"]
    large = ["plan.batch_size=4", "trainer.limit_train_batches=2"]
    small = ["plan.batch_size=2", "trainer.limit_train_batches=4"]
    expected = weights(small_fit(*common, *large, name="large", cases=None))
    accumulated = small_fit(*common, *small, "trainer.accumulate_grad_batches=2", name="accumulated", cases=None)
    apart = weights(small_fit(*common, *small, name="apart", cases=None))
    assert checkpoint(accumulated)["global_step"] == 2
    for name, tensor in weights(accumulated).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(apart[name], tensor, rtol=1e-4, atol=1e-6) for name, tensor in expected.items())


def test_averaged_weights_are_what_is_validated_and_saved(small_fit: Fit) -> None:
    """Compare with the average computed here from the weights after each step, which a run of so many steps saves."""
    plain = [
        weights(small_fit("trainer.max_epochs=1", f"trainer.limit_train_batches={steps}", name=f"after_{steps}"))
        for steps in (1, 2, 3)
    ]
    averaged = small_fit("trainer.max_epochs=1", "recipe.weight_averaging=0.5", name="averaged")
    for name, tensor in weights(averaged).items():
        # The average begins with the weights after the first step.
        expected = 0.5 * (0.5 * plain[0][name] + 0.5 * plain[1][name]) + 0.5 * plain[2][name]
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
    content = checkpoint(averaged)
    assert all(torch.equal(tensor, plain[2][name]) for name, tensor in content["current_model_state"].items())
    whole = small_fit("recipe.weight_averaging=0.5", name="whole")
    continued = small_fit("recipe.weight_averaging=0.5", name="averaged")
    # Only the keys agree: the first epoch of the continued run was planned as its only one, with other learning rates.
    assert checkpoint(continued).keys() == checkpoint(whole).keys()


@pytest.mark.parametrize("name", architecture_names())
def test_recomputed_stages_give_the_same_gradients_from_less_memory(name: str) -> None:
    configuration = Configuration(
        name="3d_fullres",
        spacing=(1.0, 1.0, 1.0),
        patch_size=(64, 32, 32),
        batch_size=2,
        batch_dice=False,
        normalization=("ZScoreNormalization",),
        use_mask_for_norm=(False,),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 3,
        features_per_stage=(4, 8, 8),
        encoder_blocks=(2, 2, 2),
        decoder_blocks=(2, 2),
        median_shape=(64.0, 32.0, 32.0),
        residual_encoder=False,
    )
    options: dict[str, dict[str, Any]] = {
        "segresnet": {"init_filters": 8},
        "unetr": {"feature_size": 8, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2},
        "swinunetr": {"feature_size": 12},
    }
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        architecture = read_architecture({"name": name, **options.get(name, {})})
        network = build_network(architecture, configuration, 1, 3, deep_supervision=False)
        if recompute:
            assert checkpoint_stages(network) > 1
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(torch.linspace(-1, 1, 2 * 32**3).reshape(1, 1, 64, 32, 32)).square().mean()
        held = kept
        loss.backward()
        results.append((held, {key: p.grad for key, p in network.named_parameters()}))
    (whole, expected), (less, gradients) = results
    assert less < 0.7 * whole
    assert expected.keys() == gradients.keys(), "parameters keep their names"
    for key, gradient in expected.items():
        torch.testing.assert_close(gradients[key], gradient)


@pytest.mark.slow
def test_a_compiled_run_trains_alike(small_fit: Fit) -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()  # what earlier tests compiled changes how the same code is compiled again
    counters.clear()
    plain = small_fit(name="plain")
    assert not counters["stats"]["unique_graphs"]
    compiled = small_fit("trainer.compile=true", name="compiled")
    assert counters["stats"]["unique_graphs"], "the network was compiled"
    assert weights(plain).keys() == weights(compiled).keys()
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], tensor, rtol=1e-2, atol=1e-4)


def test_the_learning_rate_is_found_once(small_fit: Fit, messages: pytest.LogCaptureFixture) -> None:
    folder = small_fit("trainer.find_lr=true", "trainer.max_epochs=1")
    rate = folder.status()["found_lr"]
    assert 1e-6 <= rate <= 1
    assert float(rows(folder)[0]["lr"]) == pytest.approx(rate, rel=1e-5), "the schedule starts at it"
    assert folder.learning_rate_search.stat().st_size > 5_000
    assert f"Learning rate {rate:.3g}" in messages.text
    before = folder.learning_rate_search.stat().st_mtime_ns
    folder = small_fit("trainer.find_lr=true")
    assert float(rows(folder)[1]["lr"]) == pytest.approx(rate * 0.5**0.9, rel=1e-5), "continued with the same"
    assert folder.learning_rate_search.stat().st_mtime_ns == before
    # The search changes nothing else: a run with this rate in its recipe ends with the same weights.
    given = small_fit(f"recipe.optimizer.lr={rate}", "trainer.max_epochs=1", name="given")
    again = small_fit("trainer.find_lr=true", "trainer.max_epochs=1", name="again")
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(given).items())


def test_a_profile_is_written(small_fit: Fit) -> None:
    folder = small_fit("trainer.profiler=simple", "trainer.max_epochs=1")
    assert "optimizer_step" in (folder.path / "fit-profile.txt").read_text()
    with pytest.raises(InvalidSettings, match=r"trainer\.profiler=slow: must be one of simple, advanced, pytorch"):
        small_fit("trainer.profiler=slow")


def test_only_held_out_cases_are_called_validation(small_fit: Fit) -> None:
    columns = set(rows(small_fit("fold=all", "data.validate_cases_every=1", name="all"))[0])
    assert not [name for name in columns if name.startswith("val/")]
    assert {"seen/loss", "seen/patch_dice", "seen/ema_patch_dice"} <= columns


def test_whole_cases_are_validated_every_few_epochs(small_fit: Fit, prepared: PreparedDataset) -> None:
    folder = small_fit("data.validate_cases_every=2", "data.validation_cases=1")
    table = rows(folder)
    assert [bool(row["val/case_dice"]) for row in table] == [False, True]
    assert folder.curves.stat().st_size > 10_000
    # The same case by the saved weights, with the Dice of each label counted here.
    case = prepared.store.load(fold_cases(prepared.store.case_ids, 0)[1][0])
    labels = prepared.dataset.labels
    (model,) = Predictor.from_checkpoint(folder.last, device="cpu", precision="32-true").models
    image = torch.from_numpy(case.image[:])
    forward = tile_forward(model.network, model.configuration, torch.device("cpu"), "32-true")
    window, classes = tile_window(model.configuration), labels.num_classes
    logits = whole_logits(forward, image, window, classes, tile_step_size=0.5, tiles_per_pass=1)
    predicted, true = decide_labels(len(logits), logits.__getitem__, labels).numpy(), case.label[:][0]
    dices = []
    for (value,) in labels.values:
        total = (predicted == value).sum() + (true == value).sum()
        if total:
            dices.append(2 * ((predicted == value) & (true == value)).sum() / total)
    assert float(table[1]["val/case_dice"]) == pytest.approx(sum(dices) / len(dices), abs=1e-5)


DDP_STEPS = ["trainer.max_epochs=20", "trainer.limit_train_batches=1", "plan.batch_size=4"]


def command(project_dir: Path, small: list[str], paths: Path, *overrides: str, sweep: bool = False) -> None:
    """Run train.py with the small settings as a program of its own."""
    folders = [f"paths.{name}={paths / name}" for name in ("raw", "preprocessed", "runs")]
    result = subprocess.run(
        [sys.executable, str(project_dir / "train.py"), *(["-m"] if sweep else []), *small, *folders, *overrides],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("batch_dice", [False, True])
def test_two_processes_train_as_one(
    small_settings: list[str], small_paths: Path, prepared: PreparedDataset, project_dir: Path, batch_dice: bool
) -> None:
    del prepared  # small_paths holds it
    losses = []
    variants: dict[str, list[str]] = {"one": [], "two": ["trainer=ddp", "trainer.devices=2"]}
    for name, more in variants.items():
        dice = f"plan.batch_dice={str(batch_dice).lower()}"
        full = [*DDP_STEPS, dice, f"name={name}_{batch_dice}", "predict.validation=false"]
        command(project_dir, small_settings, small_paths, *more, *full)
        (folder,) = (small_paths / "runs" / f"{name}_{batch_dice}").glob("*/*/*")
        losses.append([(float(row["train/loss"]), float(row["val/patch_dice"])) for row in rows(RunFolder(folder))])
    assert len(losses[0]) == 20
    difference = (torch.tensor(losses[0]) - torch.tensor(losses[1])).abs().nan_to_num(0)
    assert difference[:, 0].max() <= 1e-5
    assert difference[:, 1].max() <= 1e-2
    assert torch.tensor(losses[0])[:, 0].std() > 1e-3, "the weights change from step to step"


@pytest.mark.slow
def test_cross_validation_is_a_sweep(
    small_settings: list[str], small_paths: Path, prepared: PreparedDataset, project_dir: Path
) -> None:
    command(project_dir, small_settings, small_paths, "fold=0,1,2,3,4", "name=cv", "trainer.max_epochs=1", sweep=True)
    assert (small_paths / "runs" / "multirun.yaml").exists(), "and not where the command was given"
    (pooled,) = (small_paths / "runs" / "cv").glob("*/cross_validation_seed_0.csv")
    table = read_scores(pooled)
    assert sorted(table["case"].unique()) == sorted(prepared.store.case_ids), "every case is scored"
    assert not table.duplicated(["case", "label"]).any(), "and only once"
    assert set(table["fold"]) == set("01234")
