"""Labels added to a trained network: what it starts from and what its frozen copy teaches, against loops in float64."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from umamba.inference import Predictor
from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.planning import Fingerprint
from umamba.records import RunFolder
from umamba.records.checkpoint import read_checkpoint, store_record
from umamba.records.identity import identity_differences
from umamba.runs import PreparedDataset
from umamba.runs.checks import check_fold, check_network
from umamba.runs.identity import checkpoint_record, run_identity
from umamba.runs.preparation import make_plan
from umamba.runs.trainer import build_datamodule
from umamba.settings import LossSettings, TrainSettings
from umamba.training.added_class import Teacher, channels_of, read_teacher, start_from_teacher
from umamba.training.losses import deep_supervision_weights, resize_label
from umamba.training.module import SegmentationModule

Fit = Callable[..., RunFolder]
MakeSettings = Callable[..., TrainSettings]
OLD = LabelSet.from_json({"background": 0, "left": 1, "gone": 2, "right": 3})
NEW = LabelSet.from_json({"background": 0, "tumour": 1, "right": 2, "left": 3})
# The plan is the teacher's, so that the small runs' own values of the plan are taken back.
OF_TEACHER = [
    f"plan.{name}=null"
    for name in ("patch_size", "features_per_stage", "strides", "kernel_sizes", "encoder_blocks", "decoder_blocks")
] + ["plan.batch_size=null"]
NO_FINGERPRINT = Fingerprint((), (), (), 1.0)
REGIONS_OLD = LabelSet.from_json({"background": 0, "whole": [1, 2], "core": 2}, regions_class_order=[1, 2])
REGIONS_NEW = LabelSet.from_json({"background": 0, "core": 2, "rest": [1, 3], "whole": [1, 2, 3]}, [2, 3, 1])


def teacher_of(old: LabelSet, new: LabelSet, network: nn.Module | None = None) -> Teacher:
    """Return a teacher whose network is a 1x1 convolution of two channels."""
    channels = channels_of(old, new.names)
    first = 0 if old.has_regions else 1
    dropped = tuple(set(range(first, old.num_classes)) - set(channels))
    return Teacher(network or head(old), new, channels, dropped)


def head(labels: LabelSet) -> nn.Module:
    """Return a network of one layer."""
    return nn.Conv2d(2, labels.num_classes, 1)


def divergence_of_classes(
    teacher: Teacher, logits: torch.Tensor, frozen: torch.Tensor, label: torch.Tensor, taught: torch.Tensor
) -> float:
    """Kullback-Leibler divergence of merged classes, voxel by voxel."""
    p, q = (x.detach().double().softmax(1).flatten(2).tolist() for x in (logits, frozen))
    found, voxels = 0.0, 0
    for b, truth in enumerate(label.flatten(1).tolist()):
        names = [k for k, teaches in enumerate(taught[b]) if teaches]
        for v in [v for v, true in enumerate(truth) if true == 0 and names]:
            new = {k: p[b][k + 1][v] for k in names}
            old = {k: q[b][teacher.channels[k] or 0][v] for k in names}
            new[-1], old[-1] = 1 - sum(new.values()), 1 - sum(old.values())
            found += sum(old[k] * math.log(old[k] / new[k]) for k in old)
            voxels += 1
    return found / voxels


def test_divergence_equals_the_sum_over_voxels() -> None:
    teacher = teacher_of(OLD, NEW)
    assert teacher.channels == (None, 3, 1)
    assert teacher.dropped == (2,)
    generator = torch.Generator().manual_seed(1)
    logits, frozen = (torch.randn(3, 4, 3, 4, generator=generator) for _ in range(2))
    label = torch.randint(0, 2, (3, 1, 3, 4), generator=generator)
    taught = torch.tensor([[False, True, True], [False, True, False], [False, False, False]])
    found = teacher.divergence(logits, frozen, label, taught)
    assert found.item() == pytest.approx(divergence_of_classes(teacher, logits, frozen, label, taught), abs=1e-6)
    exact = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: teacher.divergence(x, frozen.double(), label, taught), exact)


def test_regions_are_taught_one_by_one() -> None:
    teacher = teacher_of(REGIONS_OLD, REGIONS_NEW)
    assert teacher.channels == (1, None, 0)
    generator = torch.Generator().manual_seed(2)
    logits, frozen = torch.randn(2, 3, 3, 4, generator=generator), torch.randn(2, 2, 3, 4, generator=generator)
    label = torch.zeros(2, 1, 3, 4, dtype=torch.long)
    taught = torch.tensor([[True, False, False], [True, False, True]])
    p, q = logits.double().sigmoid(), frozen.double().sigmoid()
    pairs = [(p[0, 0], q[0, 1]), (p[1, 0], q[1, 1]), (p[1, 2], q[1, 0])]
    expected = sum(float((b * (b / a).log() + (1 - b) * ((1 - b) / (1 - a)).log()).mean()) for a, b in pairs) / 3
    assert teacher.divergence(logits, frozen, label, taught).item() == pytest.approx(expected, abs=1e-6)


def started(old: LabelSet, new: LabelSet, own: float) -> tuple[Teacher, nn.Module, str]:
    """Return a teacher, the network that begins with its weights, and what was said; all new weights are `own`."""
    teacher, network = teacher_of(old, new), head(new)
    nn.init.constant_(network.weight, own)  # type: ignore[arg-type]
    said = start_from_teacher(network, teacher.network.state_dict(), lambda classes: nn.Conv2d(2, classes, 1), teacher)
    return teacher, network, said


def test_it_starts_with_the_segmentation_of_the_frozen_network() -> None:
    teacher, network, said = started(OLD, NEW, own=0)
    assert said == "Labels that are kept: right, left; added: tumour."
    image = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        old, new = teacher.network(image).softmax(1), network(image).softmax(1)
    # "gone" is no label of the new run: its share is spread over the others
    assert torch.allclose(new[:, 3] / new[:, 2], old[:, 1] / old[:, 3], rtol=1e-5)
    assert torch.allclose((new[:, 0] + new[:, 1]) / new[:, 2], old[:, 0] / old[:, 3], rtol=1e-5)
    assert torch.allclose(new[:, 1] / (new[:, 0] + new[:, 1]), torch.tensor(0.05))
    label, taught = torch.zeros(2, 1, 5, 5, dtype=torch.long), torch.tensor([[False, True, True]] * 2)
    kept, network, _ = started(LabelSet(("left", "right"), ((1,), (2,))), NEW, own=0)
    divergence = kept.divergence(network(image), kept.network(image), label, taught)
    assert divergence.item() == pytest.approx(0, abs=1e-6)
    two, network, _ = started(LabelSet(("left",), ((1,),)), NEW, own=0)
    with torch.no_grad():
        found = network(image).softmax(1)
    assert torch.allclose(found[:, 1:3] / found[:, :3].sum(1, keepdim=True), torch.tensor(0.025))
    assert torch.allclose(found[:, 3], two.network(image).softmax(1)[:, 1], rtol=1e-5)


def test_the_features_of_a_new_label_have_a_gradient_at_the_start() -> None:
    """With the background's own weights a voxel of the new label would move nothing but the head."""
    old, new = LabelSet(("left",), ((1,),)), LabelSet(("left", "tumour"), ((1,), (2,)))
    for own, moves in ((0.0, False), (0.5, True)):
        teacher, network, _ = started(old, new, own)
        assert torch.equal(network.weight[2], teacher.network.weight[0] + own)  # type: ignore[index, union-attr, operator]
        with torch.no_grad():
            network.bias[1] = -100  # type: ignore[index, operator]  # nobody takes the voxel for the old label
        features = torch.randn(1, 2, 1, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
        nn.functional.cross_entropy(network(features), torch.full((1, 1, 1), 2)).backward()
        assert features.grad is not None
        assert bool(features.grad.abs().max() > 1e-3) == moves


def test_new_regions_keep_their_random_weights() -> None:
    teacher, network = teacher_of(REGIONS_OLD, REGIONS_NEW), head(REGIONS_NEW)
    before = network.state_dict()["weight"].clone()
    start_from_teacher(network, teacher.network.state_dict(), lambda classes: nn.Conv2d(2, classes, 1), teacher)
    after, old = network.state_dict()["weight"], teacher.network.state_dict()["weight"]
    assert torch.equal(after, torch.stack([old[1], before[1], old[0]]))


def test_nothing_is_taught_where_cases_carry_all_labels() -> None:
    teacher = teacher_of(OLD, NEW)
    image, label = torch.randn(2, 2, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.long)
    outputs = torch.randn(2, 4, 4, 4)
    assert teacher.loss(image, outputs, label, None) == 0
    assert teacher.loss(image, outputs, label, torch.tensor([[False, True, True]] * 2)) == 0
    taught = torch.tensor([[True, True, False]] * 2)
    alone = teacher.divergence(outputs, teacher.network(image), label, torch.tensor([[False, False, True]] * 2))
    assert torch.equal(teacher.loss(image, outputs, label, taught), alone.detach())


@pytest.fixture
def carried(prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    """Return the phantom with label maps of its first label only, which is all that its cases declare."""
    load = type(prepared.store).load
    (value,) = prepared.labels.values[0]

    def masked(store: Any, case_id: str) -> Any:
        case = load(store, case_id)
        label = case.label[:]
        label[label > 0] *= label[label > 0] == value
        return replace(case, label=label, foreground={k: v for k, v in case.foreground.items() if k == value})

    monkeypatch.setattr(type(prepared.store), "load", masked)
    annotated = dict.fromkeys(prepared.store.case_ids, prepared.labels.names[:1])
    return replace(prepared, dataset=replace(prepared.dataset, annotated=annotated))


@pytest.fixture(scope="module")
def checkpoint(
    make_settings: MakeSettings, prepared: PreparedDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the checkpoint of an untrained network for the phantom's labels."""
    record = checkpoint_record(make_settings(), prepared)
    torch.manual_seed(0)
    content = {"state_dict": SegmentationModule(record).state_dict()}
    store_record(content, record)
    path = tmp_path_factory.mktemp("teacher") / "last.ckpt"
    torch.save(content, path)
    return path


def test_a_training_step_adds_what_the_frozen_network_teaches(
    make_settings: MakeSettings, carried: PreparedDataset, checkpoint: Path
) -> None:
    record = checkpoint_record(make_settings(*OF_TEACHER, f"teacher={checkpoint}"), carried)
    teacher, read = read_teacher(checkpoint, record)
    module = SegmentationModule(record, teacher=teacher)
    alone = SegmentationModule(record)
    assert module.state_dict().keys() == alone.state_dict().keys()  # the frozen network is no part of a checkpoint
    alone.load_state_dict(module.state_dict())
    size = record.configuration.patch_size
    image = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(4))
    label = torch.zeros(2, 1, *size, dtype=torch.long)
    annotated = torch.ones(2, len(record.labels.names), dtype=torch.bool)
    annotated[0, 1:] = False
    batch = {"image": image, "label": label, "annotated": annotated}
    added = module.loss_of(batch) - alone.loss_of(batch)
    outputs, frozen = module(image), teacher.network(image)
    taught = ~annotated
    weights = deep_supervision_weights(len(outputs))
    expected = sum(
        weight * divergence_of_classes(teacher, output, example, resize_label(label, output.shape[2:]), taught)
        for weight, output, example in zip(weights, outputs, frozen, strict=True)
        if weight
    )
    assert added.item() == pytest.approx(10 * expected, abs=1e-4)  # recipe.loss.distillation_weight
    assert not any(tensor.requires_grad for tensor in teacher.network.parameters())
    module.network.load_state_dict(read.weights)
    assert (module.loss_of(batch) - module.loss(module(image), label, batch["annotated"])).item() == pytest.approx(0)


def test_plan_identity_and_refusals(
    make_settings: MakeSettings, carried: PreparedDataset, prepared: PreparedDataset, checkpoint: Path, tmp_path: Path
) -> None:
    settings = make_settings(*OF_TEACHER, f"teacher={checkpoint}")
    plan_of_teacher, name = make_plan(settings, carried.dataset, NO_FINGERPRINT)
    assert (plan_of_teacher.configuration(name), name) == (prepared.configuration, "3d_fullres")
    now = run_identity(settings, carried, checkpoint_record(settings, carried))
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(checkpoint.read_bytes())
    elsewhere = replace(settings, teacher=moved)
    assert identity_differences(now, run_identity(elsewhere, carried, checkpoint_record(elsewhere, carried))) == []
    former = {key: value for key, value in now.items() if key != "teacher"}
    assert [line.split(":")[0] for line in identity_differences(former, now)] == [
        "teacher (content of that checkpoint)"
    ]

    with pytest.raises(UserError, match=r"no training case of fold 0 carries .*teacher=CHECKPOINT"):
        check_fold(make_settings(), carried)
    check_fold(settings, carried)
    with pytest.raises(UserError, match="would teach nothing"):
        check_fold(settings, prepared)
    own = replace(settings.recipe, loss=LossSettings(name="torch.nn:CrossEntropyLoss"))
    with pytest.raises(UserError, match="a loss of your own does not know"):
        check_network(replace(settings, recipe=own), carried)
    other = make_settings(*OF_TEACHER, f"teacher={checkpoint}", "plan.configuration=2d")
    with pytest.raises(UserError, match=r"trained with plan\.configuration=3d_fullres"):
        make_plan(other, carried.dataset, NO_FINGERPRINT)


@pytest.mark.slow
def test_a_run_adds_a_label_and_keeps_the_others(
    small_fit: Fit,
    carried: PreparedDataset,
    prepared: PreparedDataset,
    checkpoint: Path,
    messages: pytest.LogCaptureFixture,
) -> None:
    still = ["recipe.optimizer.lr=1e-300", "recipe.optimizer.momentum=0", "recipe.optimizer.nesterov=false"]
    kept = small_fit(*OF_TEACHER, f"teacher={checkpoint}", "trainer.max_epochs=1", *still, cases=carried)
    assert "Labels that are kept: " in messages.text
    before, after = (read_checkpoint(path) for path in (checkpoint, kept.last))
    assert before.weights.keys() == after.weights.keys()
    assert all(torch.equal(tensor, after.weights[name]) for name, tensor in before.weights.items())
    assert after.record.pretrained == str(checkpoint)
    assert Predictor.from_checkpoint(kept.last, device="cpu").models[0].labels == prepared.labels


def test_the_batches_of_a_run_say_what_their_cases_carry(make_settings: MakeSettings, carried: PreparedDataset) -> None:
    settings = make_settings("data.num_workers=0", "trainer.limit_train_batches=1")
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    names = list(carried.store.case_ids)
    datamodule = build_datamodule(settings, carried, trainer, names[1:], names[:1])
    batch = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    kept = [name in carried.labels.names[:1] for name in carried.labels.names]
    assert batch["annotated"].tolist() == [kept] * len(batch["image"])
    with pytest.raises(UserError, match=r"recipe\.loss\.component_weight=1: is for cases that carry all labels"):
        check_network(make_settings("recipe.loss.component_weight=1"), carried)


def test_what_contradicts_a_teacher_is_refused(make_settings: MakeSettings, tmp_path: Any) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        make_settings(f"teacher={path}", f"pretrained={path}", "smoke=true")
    for part in ("pretrained: the weights", "smoke=true: its tiny", "plan: the plan is that of teacher"):
        assert part in str(caught.value)
