"""`umamba study run`: which runs are trained, in which order, and what a failed or stopped one does."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from umamba.cli import study_run
from umamba.cli.compose import settings_of
from umamba.cli.main import main
from umamba.cli.study_run import study_run as run_study
from umamba.io import UserError, write_json
from umamba.records import RunFolder
from umamba.records.tables import write_metrics
from umamba.settings import ReportSettings

STUDY = """question: Why?
common: dataset=phantom trainer.max_epochs=2
runs:
  - name=phantom_a
  - name=phantom_b architecture=unet
folds: [0]
seeds: [0, 1]
"""
ALL = [("phantom_a", 0), ("phantom_b", 0), ("phantom_a", 1), ("phantom_b", 1)]


class Trainings:
    """Stands in for the trainings: notes each one and ends it as it is told."""

    def __init__(self, ends: Sequence[str] = ()) -> None:
        self.ends, self.seen = list(ends), list[tuple[str, int]]()

    def __call__(self, command: Sequence[str], folder: RunFolder) -> str:
        """Note the run and return how it ended."""
        assert list(command[1:4]) == ["-m", "umamba", "train"]
        assert "trainer.max_epochs=2" in command
        self.seen.append((folder.path.parts[-4], int(folder.path.name.removeprefix("seed_"))))
        return self.ends.pop(0) if self.ends else "done"


@pytest.fixture
def study(tmp_path: Path) -> list[str]:
    """Return the arguments for a study of two runs and two seeds."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sweep.yaml").write_text(STUDY)
    return [str(tmp_path / "mine"), f"paths.runs={tmp_path / 'runs'}"]


def trained(study: list[str], monkeypatch: pytest.MonkeyPatch, *ends: str) -> tuple[int, list[tuple[str, int]]]:
    """Run the study; return the exit code, and name and seed of each training in their order."""
    trainings = Trainings(ends)
    monkeypatch.setattr(study_run, "run_task", trainings)
    return run_study(study), trainings.seen


def test_all_methods_are_trained_with_one_seed_before_the_next(
    study: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained(study, monkeypatch) == (0, ALL)


def test_finished_runs_are_left_alone(study: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = RunFolder(tmp_path / "runs" / "phantom_b" / "3d_fullres" / "fold_0" / "seed_0")
    write_json(done.status_file, {"state": "finished", "max_epochs": 2})
    write_metrics(done.metrics, [{"epoch": "0"}, {"epoch": "1"}])
    assert trained(study, monkeypatch) == (0, [run for run in ALL if run != ("phantom_b", 0)])


def test_a_run_of_another_process_is_left_alone(
    study: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = RunFolder(tmp_path / "runs" / "phantom_a" / "3d_fullres" / "fold_0" / "seed_1")
    write_json(other.task_file, {"state": "running"})
    with caplog.at_level("INFO", "umamba"):
        assert trained(study, monkeypatch) == (0, [run for run in ALL if run != ("phantom_a", 1)])
    assert "1 run elsewhere" in caplog.text


def test_a_failed_run_keeps_no_other_from_its_work(study: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(study, monkeypatch, "failed") == (1, ALL)


def test_nothing_is_trained_after_a_stop(study: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert trained(study, monkeypatch, "done", "stopped") == (1, ALL[:2])


def test_a_study_must_be_named_and_its_dataset_must_be_there(study: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give one study"):
        run_study([])
    absent = [*study, "dataset.kind=nnunet", f"dataset.root={tmp_path / 'none'}"]
    with pytest.raises(UserError, match=r"dataset\.root: there is no folder .* is with dataset\.root=FOLDER"):
        run_study(absent)
    assert main(["study", "run", *absent]) == 2


def test_a_study_whose_runs_would_have_one_end_is_refused(study: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="finish_by=07:30: the first of several runs"):
        trained([*study, "finish_by='07:30'"], monkeypatch)


def test_a_study_that_would_begin_again_forever_is_refused(study: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"restart=true would train a run afresh.*Delete the run folders"):
        trained([*study, "restart=true"], monkeypatch)


def test_a_run_that_another_command_takes_meanwhile_is_left_to_it(
    study: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(Trainings):
        def __call__(self, command: Sequence[str], folder: RunFolder) -> str:
            other = RunFolder(tmp_path / "runs" / "phantom_b" / "3d_fullres" / "fold_0" / "seed_1")
            write_json(other.task_file, {"state": "running"})
            return super().__call__(command, folder)

    trainings = Elsewhere()
    monkeypatch.setattr(study_run, "run_task", trainings)
    assert run_study(study) == 0
    assert trainings.seen == [run for run in ALL if run != ("phantom_b", 1)]


def test_the_report_that_is_named_is_of_these_runs(
    study: list[str], monkeypatch: pytest.MonkeyPatch, messages: pytest.LogCaptureFixture
) -> None:
    trained([*study, "smoke=true"], monkeypatch)
    line = messages.messages[-1].removeprefix("Report: ")
    program, command, *given = shlex.split(line)
    assert (program, command) == ("umamba", "report")
    settings = settings_of(ReportSettings, given)
    assert (settings.study, str(settings.paths.runs)) == (study[0], study[1].removeprefix("paths.runs="))
    assert list(settings.overrides) == ["smoke=true"]
