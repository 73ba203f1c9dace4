"""A run with a classification head: trained, continued bit for bit, predicted, scored, fine-tuned, and exported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from umamba.inference import Predictor, export_to_nnunet
from umamba.inference.checkpoints import find_checkpoints
from umamba.io import UserError
from umamba.labels.case_classes import CaseHeads, CaseTask
from umamba.planning import fold_cases
from umamba.records import RunFolder, read_checkpoint
from umamba.records.share import share_checkpoint
from umamba.records.tables import read_metrics
from umamba.runs import PreparedDataset, run
from umamba.runs.checks import check_fold
from umamba.settings import TrainSettings
from umamba.training.classification import case_loss, targets_of
from umamba.training.module import SegmentationModule

Make = Callable[..., TrainSettings]
Fit = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def table(prepared: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table in which one training case of fold 0 has no class."""
    path = tmp_path_factory.mktemp("classes") / "classes.csv"
    train, (held_out,) = fold_cases(prepared.store.case_ids, 0)
    rows = zip([held_out, *train], ("yes,1", "no,2", "yes,3", "no,1", ","), strict=True)
    path.write_text("\n".join(["case,ill,grade", *(f"{case},{cells}" for case, cells in rows)]))
    return path


@pytest.fixture(scope="module")
def joint(
    make_settings: Make, prepared: PreparedDataset, table: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """Return a trained and predicted run of two epochs."""
    folder = RunFolder(tmp_path_factory.mktemp("joint") / "run")
    run(make_settings(f"heads.case={table}", "predict.engine=torch"), prepared, folder)
    return folder


def state(folder: RunFolder) -> dict[str, Any]:
    return dict(torch.load(folder.last, weights_only=True)["state_dict"])


def test_checkpoint_tables_and_metrics_of_a_joint_run(joint: RunFolder, prepared: PreparedDataset) -> None:
    record = read_checkpoint(joint.last).record
    assert record.heads == CaseHeads((CaseTask("ill", ("no", "yes")), CaseTask("grade", ("1", "2", "3"))))
    assert {name for name in state(joint) if not name.startswith("network.")} == {
        f"case_head.tasks.{task}.{kind}" for task in (0, 1) for kind in ("weight", "bias")
    }
    row = read_metrics(joint.metrics)[-1]
    assert float(row["train/case_loss"]) > 0
    assert {"val/case_loss", "val/case_accuracy/ill", "val/case_accuracy/grade", "val/patch_dice"} <= row.keys()
    predicted = pandas.read_csv(joint.validation / "classes.csv")
    assert len(predicted) == len(list(joint.validation.glob("*.nii.gz"))) == 1
    assert predicted[["grade=1", "grade=2", "grade=3"]].sum(axis=1).iloc[0] == pytest.approx(1.0, abs=1e-5)
    scores = pandas.read_csv(joint.validation_classes)
    assert set(scores["metric"]) == {"auc", "accuracy", "brier", "ece"}
    assert joint.validation_classes.with_suffix(".png").exists()


def test_rows_that_an_interrupted_command_did_not_write_are_written(
    joint: RunFolder, prepared: PreparedDataset
) -> None:
    path = joint.validation / "classes.csv"
    before, written = path.read_text(), {file: file.stat().st_mtime_ns for file in joint.validation.glob("*.nii.gz")}
    path.unlink()
    (name,) = (file.name.removesuffix(".nii.gz") for file in written)
    cases = [case for case in prepared.dataset.training if case.case_id == name]
    predictor = Predictor.from_checkpoint(joint.last, device="cpu", engine="torch")
    predictor.predict_cases(cases, joint.validation, progress=False)
    assert path.read_text() == before
    assert {file: file.stat().st_mtime_ns for file in written} == written


def test_a_continued_run_ends_with_the_same_bits(joint: RunFolder, small_fit: Fit, table: Path) -> None:
    heads = f"heads.case={table}"
    small_fit("trainer.max_epochs=1", heads)
    resumed = small_fit(heads)
    ours, expected = state(resumed), state(joint)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_a_case_without_a_class_trains_the_segmentation_only(joint: RunFolder) -> None:
    checkpoint = read_checkpoint(joint.last)
    image = torch.randn(2, 1, *checkpoint.record.configuration.patch_size)
    label = torch.randint(0, 3, image.shape)
    batch = {"image": image, "label": label, "case_id": ["a", "b"]}
    gradients = []
    for heads in (None, checkpoint.record.heads):
        module = SegmentationModule(replace(checkpoint.record, heads=heads), classes={"c": (0, 1)})
        module.network.load_state_dict(checkpoint.weights)
        module.log = lambda *arguments, **named: None  # type: ignore[assignment]
        module.training_step(batch, 0).backward()
        gradients.append({name: p.grad for name, p in module.network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("alone", [False, True])
def test_the_losses_of_segmentation_and_classes_are_added(joint: RunFolder, alone: bool) -> None:
    """The classes count with their weight, in a training step and in the search for its non-finite values."""
    record = read_checkpoint(joint.last).record
    assert record.heads is not None
    record = replace(record, heads=replace(record.heads, alone=alone))
    module = SegmentationModule(record, classes={"a": (1, 2), "b": (0, -1)}, case_weight=3.0)
    module.log = lambda *arguments, **named: None  # type: ignore[assignment]
    image = torch.randn(2, 1, *record.configuration.patch_size)
    label = torch.randint(0, 3, image.shape)
    batch = {"image": image, "label": label, "case_id": ["a", "b"]}
    network: Any = module.network
    assert module.case_head is not None
    logits = module.case_head(network.bottleneck(image))
    # By hand: the first task has two cases, the second one.
    first = torch.nn.functional.cross_entropy(logits[0], torch.tensor([1, 0]))
    second = -logits[1][0].log_softmax(0)[2]
    classes = (first + second) / 2
    expected = classes if alone else module.loss(module(image), label) + 3 * classes
    loss = module.training_step(batch, 0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert module.loss_of(batch).item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.case_head.parameters())


def test_fine_tuning_with_and_without_a_head(
    joint: RunFolder, small_fit: Fit, table: Path, messages: pytest.LogCaptureFixture
) -> None:
    rest = ("trainer.max_epochs=1", "recipe.optimizer.lr=1e-30")
    plain = small_fit("trainer.max_epochs=1", name="plain")  # holds nothing of a head
    assert all(name.startswith("network.") for name in state(plain))
    assert "heads" not in torch.load(plain.last, weights_only=True)["umamba"]
    assert not [name for name in read_metrics(plain.metrics)[0] if "case_" in name]
    tuned = small_fit(*rest, f"heads.case={table}", f"pretrained={plain.last}", name="tuned")
    assert "The classification head begins anew, because that network has none" in messages.text
    before, after = state(plain), state(tuned)
    assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in before.items())
    again = small_fit(*rest, f"heads.case={table}", f"pretrained={joint.last}", name="again")
    assert "The classification head was loaded, too" in messages.text
    expected = state(joint)["case_head.tasks.1.weight"]
    assert torch.allclose(state(again)["case_head.tasks.1.weight"], expected, atol=1e-6)


def test_classes_alone_train_the_encoder_and_write_one_table(
    make_settings: Make, prepared: PreparedDataset, table: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    settings = make_settings(f"heads.case={table}", "heads.alone=true", "trainer.max_epochs=1", "predict.engine=torch")
    result = run(settings, prepared, folder)
    assert result.validation is None
    assert not folder.best.exists()
    assert sorted(path.name for path in folder.validation.glob("[!.]*")) == ["classes.csv", "prediction.json"]
    assert pandas.read_csv(folder.validation_classes)["cases"].eq(1).all()
    row = read_metrics(folder.metrics)[-1]
    assert float(row["train/loss"]) == pytest.approx(float(row["train/case_loss"]))
    assert "val/patch_dice" not in row
    optimizer = torch.load(folder.last, weights_only=True)["optimizer_states"][0]["state"]
    assert 0 < len(optimizer) < len(state(folder))  # the decoder has no momentum
    with pytest.raises(UserError, match="trained for classes alone"):
        export_to_nnunet(folder.last, tmp_path / "nnunet")


def test_another_table_of_classes_is_another_run(
    make_settings: Make, prepared: PreparedDataset, table: Path, joint: RunFolder, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text(table.read_text().replace("no,2", "yes,2"))
    for heads, message in ((f"heads.case={other}", r"heads\.classes: was"), ("heads.case=null", r"heads: was \{")):
        with pytest.raises(UserError, match=rf"holds a run that differs[\s\S]*{message}"):
            run(make_settings(heads, "predict.engine=torch"), prepared, joint)
    moved = tmp_path / "moved.csv"
    moved.write_text(table.read_text())
    run(make_settings(f"heads.case={moved}", "predict.engine=torch"), prepared, joint)


def test_shared_and_exported_checkpoints(joint: RunFolder, tmp_path: Path) -> None:
    shared = share_checkpoint(joint.last, tmp_path / "shared.ckpt")
    found = read_checkpoint(shared)
    assert found.record.heads == read_checkpoint(joint.last).record.heads
    weights = read_checkpoint(joint.last).head_weights
    assert all(torch.equal(found.head_weights[name], tensor) for name, tensor in weights.items())
    with pytest.raises(UserError, match=r"ill \(no, yes\).*segmentation_only=true"):
        export_to_nnunet(shared, tmp_path / "nnunet")
    assert export_to_nnunet(shared, tmp_path / "nnunet", segmentation_only=True).is_dir()
    content = torch.load(shared, weights_only=True)
    del content["state_dict"]["case_head.tasks.0.bias"]
    torch.save(content, tmp_path / "damaged.ckpt")
    with pytest.raises(UserError, match="classification head do not fit"):
        Predictor.from_checkpoint(tmp_path / "damaged.ckpt", device="cpu")
    assert find_checkpoints([shared]) == [shared]


def test_wrong_combinations_are_refused_together(make_settings: Make, table: Path) -> None:
    with pytest.raises(UserError, match=r"heads\.alone=true: needs classes"):
        make_settings("heads.alone=true")
    heads = (f"heads.case={table}", "heads.alone=true", "trainer.compile=true", "predict.probabilities=true")
    wrong = r"3 settings[\s\S]*trainer\.compile=true[\s\S]*predict\.probabilities=true[\s\S]*predict\.checkpoint=best"
    with pytest.raises(UserError, match=wrong):
        make_settings(*heads, "predict.checkpoint=best")


def test_a_fold_without_any_class_is_refused_before_anything_is_done(
    make_settings: Make, prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *others = prepared.store.case_ids
    folds = {0: (others, [first, second]), 1: ([first, *others], [second])}
    monkeypatch.setattr("umamba.runs.checks.run_cases", lambda settings, _: folds[settings.fold])
    (tmp_path / "classes.csv").write_text(f"case,ill\n{first},yes\n{second},no\n")
    given = (f"heads.case={tmp_path / 'classes.csv'}", "heads.alone=true")
    with pytest.raises(UserError, match=r"heads\.case=.*classes\.csv: no training case of fold 0 has a class there"):
        check_fold(make_settings(*given), prepared)
    check_fold(make_settings(*given, "fold=1"), prepared)


def test_what_a_head_logs_can_be_monitored(make_settings: Make, prepared: PreparedDataset, table: Path) -> None:
    def stopping(monitor: str, mode: str) -> tuple[str, ...]:
        return (f"heads.case={table}", f"trainer.callbacks=[{{name:EarlyStopping,monitor:{monitor},mode:{mode}}}]")

    make_settings("heads.alone=true", *stopping("val/case_loss", "min"))
    make_settings(*stopping("val/case_accuracy/ill", "max"))
    with pytest.raises(UserError, match="Give seen/case_loss with mode=min"):
        make_settings("heads.alone=true", "fold=all", *stopping("seen/patch_dice", "max"))


def test_what_is_never_logged_is_refused_before_the_training(
    make_settings: Make, prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def monitoring(monitor: str) -> TrainSettings:
        return make_settings(f"trainer.callbacks=[{{name:EarlyStopping,monitor:{monitor},mode:max}}]")

    label = prepared.labels.names[0]
    check_fold(monitoring(f"val/patch_dice/{label}"), prepared)
    with pytest.raises(UserError, match=rf"val/patch_dice/nosuch: the label=nosuch: must be one of .*{label}"):
        check_fold(monitoring("val/patch_dice/nosuch"), prepared)
    names = list(prepared.store.case_ids)
    monkeypatch.setattr("umamba.runs.checks.run_cases", lambda *_: (names, names[:1]))
    with pytest.raises(UserError, match=r"trains on some of its validation cases.*Give seen/patch_dice"):
        check_fold(monitoring("val/patch_dice"), prepared)


def test_patches_without_a_class_do_not_count() -> None:
    targets = targets_of(["a", "b", "x"], {"a": (1, -1), "b": (0, -1)}, 2, torch.device("cpu"))
    assert targets.tolist() == [[1, -1], [0, -1], [-1, -1]]
    logits = [
        torch.tensor([[0.0, 2.0], [1.0, 0.0], [9.0, 9.0]], requires_grad=True),
        torch.zeros(3, 4, requires_grad=True),
    ]
    loss = case_loss(logits, targets)
    by_hand = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2
    assert loss.item() == pytest.approx(by_hand / 2)  # the other task has no class, and counts as 0
    loss.backward()
    for task in logits:
        assert task.grad is not None
        assert (task.grad[2] == 0).all()
