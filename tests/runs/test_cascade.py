"""The cascade end to end on the phantom: planned, trained on what the first stage finds, predicted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.datasets import RawCase
from umamba.io import UserError, write_json
from umamba.planning import split_folds
from umamba.records import RunFolder, read_checkpoint
from umamba.records.begin import begin
from umamba.runs import RunResult, predict, train
from umamba.runs.cascade import check_first_stage, with_first_stage
from umamba.runs.first_stage import first_stage
from umamba.runs.preparation import PreparedDataset, plan_of
from umamba.settings import InvalidSettings, PredictionSettings, PredictSettings, TrainSettings

Make = Callable[..., TrainSettings]
# The rules plan no 3d_lowres for such small images; a pinned spacing forces it.
LOWRES = ["plan.configuration=3d_lowres", "plan.spacing=[10,12,12]"]
CASCADE = ["plan.configuration=3d_cascade_fullres"]
SHORT = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "data.validate_cases_every=1", "predict.engine=torch"]


def test_settings_that_do_not_fit_a_cascade(make_settings: Make, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"previous_stage=.*: is for plan\.configuration=3d_cascade_fullres only"):
        make_settings(f"previous_stage={tmp_path}")
    with pytest.raises(InvalidSettings, match="a cascade needs a trained first one"):
        make_settings(*CASCADE, "smoke=true")
    with pytest.raises(InvalidSettings, match="first stage are augmented on the CPU"):
        make_settings(*CASCADE, "augmentation.device=gpu")
    with pytest.raises(InvalidSettings, match=r"planner\.measure: the second stage of a cascade"):
        make_settings("plan.configuration=3d_cascade_fullres", "planner.measure=true")


def test_the_first_stage_must_be_trained(make_settings: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such configuration, because it has no 3d_lowres"):
        plan_of(make_settings(*CASCADE, f"paths.runs={tmp_path}"))


def write_run(run: Path, state: str) -> None:
    """Write the folder of a run; the checkpoint only holds its name."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").write_text(str(run))
    write_json(run / "run.json", {"state": state})


def test_folders_of_the_first_stage(make_settings: Make, tmp_path: Path) -> None:
    settings = make_settings(*CASCADE, f"paths.runs={tmp_path}", "name=both", "seed=3")
    folder = tmp_path / "both" / "3d_lowres"
    for fold, seed, state in ((0, 3, "finished"), (1, 3, "training"), (2, 4, "finished"), (3, 3, "predicting")):
        write_run(folder / f"fold_{fold}" / f"seed_{seed}", state)
    stage = first_stage(settings)
    assert stage is not None
    assert (stage.folder, sorted(stage.runs)) == (folder, [0, 3])
    with pytest.raises(UserError, match="fold 1 of the first stage is not trained"):
        stage.checkpoint(1)
    assert first_stage(make_settings(f"paths.runs={tmp_path}")) is None
    with pytest.raises(UserError, match=r"previous_stage=.*both: holds no run whose .* \(fold_<k>/seed_0\)"):
        first_stage(make_settings(*CASCADE, f"previous_stage={tmp_path / 'both'}"))


def test_every_case_needs_a_fold_that_holds_it_out(
    make_settings: Make, prepared: PreparedDataset, tmp_path: Path
) -> None:
    settings = make_settings(*CASCADE, f"paths.runs={tmp_path}")
    with pytest.raises(UserError, match=r"5 of 5 cases, such as .* \(trained folds: none\)"):
        check_first_stage(settings, prepared)


def test_each_case_gets_the_labels_of_the_fold_that_held_it_out(
    make_settings: Make, prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(*CASCADE, f"paths.runs={tmp_path}", "name=both")
    for fold in range(5):
        write_run(tmp_path / "both" / "3d_lowres" / f"fold_{fold}" / "seed_0", "finished")

    def only_fold(path: Path, *_: Any, **__: Any) -> int:
        return int(path.parents[2].name.removeprefix("fold_"))

    def labels(model: int, case: RawCase, shape: tuple[int, ...], how: PredictionSettings) -> np.ndarray:
        return np.full(shape, model, np.uint8)

    monkeypatch.setattr("umamba.runs.cascade.Model.from_checkpoint", only_fold)
    monkeypatch.setattr("umamba.runs.cascade.labels_on_grid", labels)
    store = with_first_stage(settings, prepared).store
    names = [case.case_id for case in prepared.dataset.training]
    for fold, split in enumerate(split_folds(names)):
        for case_id in split["val"]:
            found: Any = store.load(case_id).previous
            assert (found[:] == fold).all()
    assert len(store.case_ids) == 5


def test_a_run_keeps_the_labels_that_it_began_with(
    make_settings: Make, prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever `predict` says when its test images are segmented again; other checkpoints are refused at once."""
    given = (*CASCADE, f"paths.runs={tmp_path}", "name=both")
    for fold in range(5):
        write_run(tmp_path / "both" / "3d_lowres" / f"fold_{fold}" / "seed_0", "finished")
    asked: list[bool] = []

    def labels(model: Any, case: RawCase, shape: tuple[int, ...], how: PredictionSettings) -> np.ndarray:
        asked.append(how.tta)
        return np.zeros(shape, np.uint8)

    monkeypatch.setattr("umamba.runs.cascade.Model.from_checkpoint", lambda *_, **__: None)
    monkeypatch.setattr("umamba.runs.cascade.labels_on_grid", labels)
    first = make_settings(*given)
    store = with_first_stage(first, prepared).store
    assert asked == [False] * 5
    folder = RunFolder.of(first)
    folder.last.parent.mkdir(parents=True)
    folder.last.write_bytes(b"weights")
    assert store.previous is not None
    begin(folder, {"plan": {}, "previous_stage": store.previous.name}, first, 0)
    again = make_settings(*given, "predict.tta=true")
    assert with_first_stage(again, prepared).store.previous == store.previous
    assert len(asked) == 5, "nothing is segmented again"
    (tmp_path / "both" / "3d_lowres" / "fold_2" / "seed_0" / "checkpoints" / "last.ckpt").write_bytes(b"others")
    with pytest.raises(UserError, match=r"was trained with other labels of the first stage than the checkpoints in"):
        with_first_stage(again, prepared)
    assert len(asked) == 5
    assert with_first_stage(replace(again, restart=True), prepared).store.previous != store.previous
    assert asked[5:] == [True] * 5


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the phantom and its runs."""
    return tmp_path_factory.mktemp("runs")


def trained(make_settings: Make, runs: Path, *overrides: str) -> RunResult:
    """Train a short run of the experiment."""
    folders = [f"paths.{name}={runs / name}" for name in ("raw", "preprocessed", "runs")]
    options = [*folders, "name=both", "dataset.phantom.num_test=1", *SHORT]
    return train(make_settings(*options, *overrides), progress=False)


@pytest.mark.slow
def test_a_cascade_end_to_end(make_settings: Make, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such configuration, because it has no 3d_lowres"):
        trained(make_settings, runs, *CASCADE)
    for fold in range(4):
        trained(make_settings, runs, *LOWRES, f"fold={fold}", "predict.validation=false")
    with pytest.raises(UserError, match=r"1 of 5 cases, .*trained folds: 0, 1, 2, 3"):
        trained(make_settings, runs, *CASCADE)
    first = trained(make_settings, runs, *LOWRES, "fold=4")
    second = trained(make_settings, runs, *CASCADE)
    assert second.scores is not None
    assert second.validation is not None
    record = read_checkpoint(second.checkpoint).record
    assert record.configuration.previous_stage == "3d_lowres"
    assert record.plan.configuration("3d_lowres") == read_checkpoint(first.checkpoint).record.configuration
    assert record.input_channels == 1 + len(record.labels.foreground)
    assert Path(record.provenance["previous_stage"]) == runs / "runs" / "both" / "3d_lowres"
    again = trained(make_settings, runs, *CASCADE)  # finished: the same command only reports
    assert again.scores is not None
    assert list(again.scores["case"]) == list(second.scores["case"])

    raw = make_settings(f"paths.raw={runs / 'raw'}").dataset.root
    ways: list[dict[str, Any]] = [
        {"previous_checkpoint": first.folder.path.parents[1] / "fold_0" / "seed_0"},
        {"previous_stage": second.folder.previous_stage / "predictions"},
    ]
    for given in ways:
        output = tmp_path / next(iter(given))
        settings = PredictSettings(
            checkpoint=second.checkpoint, input=raw / "imagesTs", output=output, previews=0, engine="torch", **given
        )
        (path,) = predict(settings)
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(second.folder.predictions / path.name)))
        np.testing.assert_array_equal(found, theirs)
