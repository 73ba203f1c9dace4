"""A training step as on a GPU: it never waits for the device, its loss keeps little, its graph is known beforehand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks import architecture_names, build_network
from umamba.networks.blocks import CellMean3d, _CellMean
from umamba.networks.conformance import small_configuration
from umamba.records import RunFolder
from umamba.runs import PreparedDataset, checks
from umamba.runs.trainer import SEVERAL, build_trainer, check_deterministic
from umamba.settings import InvalidSettings, LossSettings, TrainerSettings, TrainSettings
from umamba.training import backward_graph as backward_graph_module
from umamba.training import softmax_sums
from umamba.training.backward_graph import BackwardGraph, backward_graph, freeze
from umamba.training.component_loss import ComponentLoss
from umamba.training.losses import DiceCrossEntropy, region_targets
from umamba.training.module import SegmentationModule

Make = Callable[..., TrainSettings]
Fit = Callable[..., RunFolder]
PLAIN = LabelSet.from_json({"background": 0, "a": 1, "b": 2})
IGNORE = LabelSet.from_json({"background": 0, "a": 1, "b": 2, "ignore": 3})
REGIONS = LabelSet.from_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])


class NoWaiting(TorchDispatchMode):
    """Refuses operations that read a value of the device, have a shape that depends on one, or bring a constant."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.", "lift_fresh", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(each in name for each in self.WAITING):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "more",
    [
        (),
        (
            "recipe.loss.focal_gamma=2",
            "recipe.loss.class_weights=[1,2,1,1,1,1]",
            "recipe.loss.component_weight=1",
        ),
    ],
)
def test_a_step_never_waits_for_the_device(
    small_fit: Fit, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(SegmentationModule, "fused", True)
    monkeypatch.setattr(softmax_sums, "compiled", lambda: False)  # the loss of other devices
    original, steps = SegmentationModule.optimizer_step, []

    def watched(self: SegmentationModule, *arguments: Any, **keywords: Any) -> None:
        steps.append(self.global_step)
        if len(steps) == 1:  # Lightning makes its sums at the first step
            return original(self, *arguments, **keywords)
        with NoWaiting():
            return original(self, *arguments, **keywords)

    monkeypatch.setattr(SegmentationModule, "optimizer_step", watched)
    small_fit("trainer.max_epochs=1", "trainer.limit_train_batches=4", *more)
    assert len(steps) == 4


def test_the_watch_finds_waiting() -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        bool(torch.ones(1) > 0)
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        torch.ones(2).new_tensor([1.0])


def test_validation_batches_reduce_nothing_over_the_ranks(small_fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

    calls: list[bool] = []  # in a validation step
    inside = [False]
    step, update = SegmentationModule.validation_step, _ResultMetric.update

    def counted(self: Any, value: Any, batch_size: int) -> None:
        def reduce(tensor: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
            calls.append(inside[0])
            return tensor

        if inside[0]:
            self.meta.sync._fn = reduce
        update(self, value, batch_size)

    def validation(self: SegmentationModule, *arguments: Any) -> None:
        inside[0] = True
        step(self, *arguments)
        inside[0] = False

    monkeypatch.setattr(_ResultMetric, "update", counted)
    monkeypatch.setattr(SegmentationModule, "validation_step", validation)
    small_fit("trainer.max_epochs=1", "trainer.limit_val_batches=3")
    assert calls, "the loss is reduced at the end of the epoch"
    assert not any(calls)


@pytest.mark.parametrize("labels", [PLAIN, IGNORE], ids=["plain", "ignore"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("settings", [LossSettings(), LossSettings(focal_gamma=2.0, class_weights=(1.0, 0.5, 2.0))])
def test_the_loss_of_other_devices_is_that_of_float64(
    labels: LabelSet, dtype: torch.dtype, settings: LossSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax_sums, "compiled", lambda: False)
    generator = torch.Generator().manual_seed(5)
    logits = (3 * torch.randn(2, 3, 4, 5, 6, generator=generator)).to(dtype)
    label = torch.randint(0, 3 + (labels.ignore is not None), (2, 1, 4, 5, 6), generator=generator)
    leaf, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    found = DiceCrossEntropy(labels, False, settings)(leaf, label)
    found.backward()

    counts = torch.ones_like(label) if labels.ignore is None else (label != labels.ignore).long()
    true = F.one_hot((label * counts)[:, 0], 3).movedim(-1, 1) * counts
    p = exact.softmax(1) * counts
    losses = -(exact.log_softmax(1) * true).sum(1, keepdim=True)
    weights = counts.double()
    if settings.class_weights is not None:
        losses = (1 - torch.exp(-losses)) ** 2 * losses
        weights = (torch.tensor(settings.class_weights, dtype=torch.float64).view(1, 3, 1, 1, 1) * true).sum(1, True)
    entropy = (losses * weights).sum() / weights.sum()
    overlap, together = (p * true).flatten(2).sum(-1)[:, 1:], (p + true).flatten(2).sum(-1)[:, 1:]
    expected = entropy - ((2 * overlap + 1e-5) / (together + 1e-5)).mean()
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), abs=2e-6)
    assert leaf.grad is not None
    assert exact.grad is not None
    assert leaf.grad.dtype == dtype
    error = (leaf.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < {torch.bfloat16: 4e-3, torch.float16: 1e-3}.get(dtype, 1e-5)


def test_the_loss_keeps_its_inputs_only() -> None:
    logits = torch.randn(1, 5, 8, 8, requires_grad=True)
    label = torch.randint(0, 5, (1, 1, 8, 8))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        softmax_sums.DeviceSums.apply(logits, label, None)
    assert sum(kept.values()) == logits.numel() * 4 + label.numel() * 8


def test_regions_are_unions_of_label_values() -> None:
    label = torch.tensor([[[0, 1, 2, 3]]])
    assert region_targets(label, REGIONS).tolist() == [[[0.0, 1, 1, 0], [0, 0, 1, 0]]]
    with NoWaiting():
        region_targets(label, REGIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kernel", [(2, 2, 2), (1, 2, 3)])
def test_the_mean_of_cells_is_exactly_pytorchs(kernel: tuple[int, ...], dtype: torch.dtype) -> None:
    x, results = torch.randn(2, 3, 5, 6, 7).to(dtype), []
    size = [axis // step for axis, step in zip(x.shape[2:], kernel, strict=True)]
    cotangent = torch.randn(2, 3, *size).to(dtype)
    for pool in (lambda x: _CellMean.apply(x, kernel), lambda x: F.avg_pool3d(x, kernel, kernel)):
        leaf = x.clone().requires_grad_()
        y = pool(leaf)
        results.append([y, *torch.autograd.grad(y, leaf, cotangent)])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("architecture", architecture_names())
def test_every_backbone_has_a_deterministic_gradient(architecture: str, dim: int) -> None:
    sizes: dict[str, Any] = (
        {"patch_size": (64, 32) if dim == 2 else (32, 64, 32)} if architecture == "swinunetr" else {}
    )
    graph = backward_graph(architecture, small_configuration(dim, **sizes), 1, 3, True)
    assert graph.nondeterministic == ()
    assert "Convolution" in graph.operations
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("mixer", ["mamba2", "mlstm", "convolution", "identity"])
def test_every_mixer_has_a_deterministic_gradient(mixer: str) -> None:
    for dim in (2, 3):
        graph = backward_graph({"name": "umamba_enc", "mixer": mixer}, small_configuration(dim), 1, 3, True)
        assert graph.nondeterministic == ()


def test_operations_without_a_deterministic_gradient_are_refused(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CellMean3d, "forward", torch.nn.AvgPool3d.forward)
    graph = backward_graph("resenc_unet", small_configuration(3), 1, 3, True)
    assert graph.nondeterministic == ("AvgPool3D",)
    settings = make_settings("architecture=resenc_unet", "trainer.deterministic=true")
    with pytest.raises(UserError, match=r"trainer\.deterministic=true: resenc_unet.*AvgPool3D.*deterministic=warn"):
        check_deterministic(settings, graph.nondeterministic)
    settings = make_settings("architecture=umamba_bot", "architecture.scan_backend=cuda")
    with pytest.raises(UserError, match=r"scan_backend=cuda adds gradients in a changing order.*scan_backend=auto"):
        check_deterministic(settings, ())
    with pytest.raises(UserError, match=r"AvgPool3D, and architecture\.scan_backend=cuda"):
        check_deterministic(settings, ("AvgPool3D",))
    check_deterministic(make_settings("architecture=umamba_bot"), ())


@pytest.mark.parametrize("labels", [PLAIN, IGNORE, REGIONS], ids=["plain", "ignore", "regions"])
@pytest.mark.parametrize("focal_gamma", [0.0, 2.0])
def test_the_loss_has_a_deterministic_gradient(labels: LabelSet, focal_gamma: float) -> None:
    logits = torch.randn(1, 2 if labels.has_regions else 3, 4, 4, 4, requires_grad=True)
    label = torch.randint(0, 3, (1, 1, 4, 4, 4))
    loss = DiceCrossEntropy(labels, False, LossSettings(focal_gamma=focal_gamma))(logits, label)
    operations, _ = backward_graph_module._walk([loss])
    assert operations, "the loss has a gradient"
    assert BackwardGraph(operations, ()).nondeterministic == ()


@pytest.mark.parametrize("labels", [PLAIN, REGIONS], ids=["plain", "regions"])
def test_the_loss_of_components_has_a_deterministic_gradient(labels: LabelSet) -> None:
    logits = torch.randn(1, 2 if labels.has_regions else 3, 4, 4, 4, requires_grad=True)
    batch = {"label": torch.randint(0, 3, (1, 1, 4, 4, 4)), "components": torch.ones(1, 2, 4, 4, 4, dtype=torch.int32)}
    loss = ComponentLoss(labels, LossSettings(component_weight=1.0))(logits, {**batch, "component_count": 1})
    operations, _ = backward_graph_module._walk([loss])
    assert operations, "the loss has a gradient"
    assert BackwardGraph(operations, ()).nondeterministic == ()


def test_they_are_refused_before_preprocessing(
    make_settings: Make, prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "trains_on_cuda", lambda settings: True)
    monkeypatch.setattr(CellMean3d, "forward", torch.nn.AvgPool3d.forward)
    checks.check_network(make_settings("architecture=resenc_unet", "trainer.deterministic=warn"), prepared)
    with pytest.raises(UserError, match=r"trainer\.deterministic=true: resenc_unet"):
        checks.check_network(make_settings("architecture=resenc_unet", "trainer.deterministic=true"), prepared)


def test_parameters_without_gradient_are_known_before_training() -> None:
    configuration = small_configuration(3)
    graph = backward_graph("unet", configuration, 1, 3, True)
    network = build_network("unet", configuration, 1, 3)
    outputs = network(torch.randn(1, 1, *configuration.patch_size))
    torch.stack([output.square().mean() for output in outputs[:-1]]).sum().backward()
    assert set(graph.idle) == {name for name, p in network.named_parameters() if p.grad is None}
    assert len(graph.idle) == 2, "weight and bias of the lowest head"
    freeze(network, graph.idle)
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == set(graph.idle)
    assert backward_graph("umamba_enc", configuration, 1, 3, True).idle == graph.idle
    assert backward_graph("segresnet", configuration, 1, 3, True).idle == ()


def test_several_devices_record_the_graph_where_it_does_not_change(
    make_settings: Make, prepared: PreparedDataset, tmp_path: Path
) -> None:
    def arguments(*overrides: str) -> dict[str, Any]:
        trainer = build_trainer(make_settings("trainer.devices=2", *overrides), prepared, RunFolder(tmp_path), [])
        assert isinstance(trainer.strategy, DDPStrategy)
        return dict(trainer.strategy._ddp_kwargs)

    recorded = {"find_unused_parameters": False, "static_graph": True, "gradient_as_bucket_view": True}
    assert arguments() == recorded
    assert arguments("trainer=ddp", "trainer.devices=2") == recorded
    assert arguments("trainer.accumulate_grad_batches=2") == {"find_unused_parameters": True}
    schedule = "trainer.callbacks=[{name:GradientAccumulationScheduler,scheduling:{0:2}}]"
    assert arguments(schedule) == {"find_unused_parameters": True}
    assert arguments(f"trainer.strategy={SEVERAL}") == {"find_unused_parameters": True}


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ((), True),
        (("trainer.deterministic=true",), False),
        (("trainer.deterministic=warn",), False),
        (("trainer.benchmark=false",), False),
    ],
)
def test_cudnn_tries_its_algorithms_unless_results_must_repeat(
    make_settings: Make,
    prepared: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: tuple[str, ...],
    wanted: bool,
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr("umamba.runs.trainer.lightning.Trainer", lambda **arguments: given.update(arguments))
    build_trainer(make_settings(*overrides), prepared, RunFolder(tmp_path), [])
    assert given["benchmark"] is wanted


def test_both_at_once_are_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"trainer\.benchmark=true.*deterministic"):
        TrainerSettings(benchmark=True, deterministic=True)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("norm_is_known", [False, True])
def test_gradients_are_clipped_as_pytorch_does(
    algorithm: str, norm_is_known: bool, small_fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of a step, clipped by the module, are those that PyTorch's own function clips."""
    original, compared = SegmentationModule.configure_gradient_clipping, []

    def watched(self: SegmentationModule, optimizer: Any, gradient_clip_val: float, **named: Any) -> None:
        trained = [p for p in self.parameters() if p.grad is not None]

        def gradients() -> list[Tensor]:
            return [p.grad.clone() for p in trained if p.grad is not None]

        before = gradients()
        assert self.gradient_norm is not None
        if not norm_is_known:
            self.gradient_norm = None
        original(self, optimizer, gradient_clip_val, **named)
        after = gradients()
        for p, gradient in zip(trained, before, strict=True):
            p.grad = gradient.clone()
        clip = torch.nn.utils.clip_grad_value_ if algorithm == "value" else torch.nn.utils.clip_grad_norm_
        clip(trained, gradient_clip_val)
        assert all(torch.equal(wanted, found) for wanted, found in zip(gradients(), after, strict=True))
        compared.append(any(not torch.equal(p, q) for p, q in zip(before, after, strict=True)))

    monkeypatch.setattr(SegmentationModule, "configure_gradient_clipping", watched)
    own = ("recipe.gradient_clip_norm=1e-3", f"trainer.gradient_clip_algorithm={algorithm}")
    small_fit("trainer.max_epochs=1", "trainer.limit_train_batches=2", *own)
    assert compared == [True, True]


def test_a_checkpoint_continues_with_the_optimizer_of_this_device(
    small_fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k, fused in enumerate((True, False, True)):
        monkeypatch.setattr(SegmentationModule, "fused", fused)
        folder = small_fit(f"trainer.max_epochs={k + 1}", "recipe.optimizer.name=adam")
        state = torch.load(folder.last, weights_only=True)["optimizer_states"][0]
        assert {bool(group["fused"]) for group in state["param_groups"]} == {fused}
        assert all(float(slots["step"]) == 3 * (k + 1) for slots in state["state"].values())
