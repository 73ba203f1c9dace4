"""`umamba slurm`: what preflight says, refusals before anything is queued, and overrides with any characters."""

import json
import shlex
from pathlib import Path

import pytest

from umamba.cli.main import EXIT_USER_ERROR, main
from umamba.cli.slurm import EXIT_FAILED, _read
from umamba.settings import SlurmSettings

STUDY = "question: Q\nruns: [experiment=quickstart 'name=my run']\nfolds: [0, 1, 2]\nseeds: [0]\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder with a study whose name needs quotes, and stand-ins of SLURM's commands that take all jobs."""
    (tmp_path / "a=b (é)").mkdir()
    (tmp_path / "a=b (é)" / "sweep.yaml").write_text(STUDY)
    (tmp_path / "bin").mkdir()
    for name, line in (
        ("sbatch", f'printf "%s\\n" "$*" >> {tmp_path}/asked; wc -l < {tmp_path}/asked'),
        ("sinfo", 'echo "gpu*|32|256000|gpu:4|infinite|up"'),
        ("scontrol", 'echo "MaxArraySize = 2"'),
        ("squeue", "true"),
        ("scancel", f'echo scancel "$@" >> {tmp_path}/asked'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_more_runs_than_an_array_may_have(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", "submit", "a=b (é)", "paths.runs=runs [x]=#", "trainer.max_epochs=2"]) == 0
    assert "Submitted 3 of 3 runs: jobs 1 3 (prepare), 2 4 (train), 5 (report)" in capsys.readouterr().out
    lists = slurm / "runs [x]=#" / "slurm" / "a=b (é)"
    tasks = [json.loads((lists / f"list_00{number}.json").read_text())["tasks"] for number in (1, 2)]
    assert [len(entry) for entry in tasks] == [2, 1]
    assert tasks[1][0]["folder"] == str(slurm / "runs [x]=#" / "my run" / "3d_fullres" / "fold_2" / "seed_0")
    assert tasks[1][0]["overrides"][:2] == ["experiment=quickstart", "name=my run"]


def test_the_report_job_takes_the_same_words(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["name=my run", "paths.preprocessed=/é & (1)/[a]=#", "plan.patch_size=[16,32,32]"]
    assert main(["slurm", "dry-run", "a=b (é)", *given, "paths.runs=run (1)"]) == 0
    (last,) = (line for line in capsys.readouterr().out.splitlines() if "umamba-report" in line)
    (wrap,) = (word.removeprefix("--wrap=") for word in shlex.split(last) if word.startswith("--wrap="))
    words = shlex.split(wrap)
    from umamba.cli.compose import settings_of
    from umamba.settings import ReportSettings

    made = settings_of(ReportSettings, words[words.index("report") + 1 :])
    assert made.overrides == (*given, "paths.runs=run (1)")
    assert (made.paths.runs, Path(made.study)) == (slurm / "run (1)", slurm / "a=b (é)")
    assert not list((slurm / "run (1)" / "slurm" / "a=b (é)").glob("list_*"))


def test_preflight_says_what_is_missing(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slurm", "preflight", "a=b (é)"]) == 0
    assert "The request fits the study." in capsys.readouterr().out
    assert main(["slurm", "preflight", "a=b (é)", "slurm.partition=cpu"]) == 0
    assert "partition cpu: does not exist. Choose one of gpu." in capsys.readouterr().out
    given = ["table5_organs_ct", "paths.raw=nowhere"]
    assert main(["slurm", "preflight", *given]) == EXIT_FAILED
    said = capsys.readouterr().out
    assert said.count("there is no folder") == 1
    assert f"{slurm}/nowhere/Dataset701_AbdomenCT" in said
    assert "paths.raw=FOLDER or dataset.root=FOLDER" in said
    assert main(["slurm", "submit", *given]) == EXIT_USER_ERROR
    assert "there is no folder" in capsys.readouterr().err
    assert main(["slurm", "preflight", *given, "smoke=true"]) == 0  # a phantom is made
    monkeypatch.setenv("PATH", str(slurm))
    assert main(["slurm", "preflight", "a=b (é)"]) == EXIT_FAILED
    assert "sbatch was not found" in capsys.readouterr().out
    assert not (slurm / "asked").exists()


def test_the_report_of_runs_in_a_folder_that_needs_quotes(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "study=a=b (é)", "paths.runs=run (1)", "overrides=['name=other run']"]) == 0
    assert str(slurm / "run (1)" / "reports" / "a=b (é)") in capsys.readouterr().out
    assert (slurm / "run (1)" / "reports" / "a=b (é)" / "index.html").is_file()


def test_words_of_a_request(slurm: Path) -> None:
    assert _read(["task", "a=b (é)/list_001.json"])[:2] == ("task", "a=b (é)/list_001.json")
    verb, study, request, overrides = _read(
        ["submit", "slurm.extra=[--account=a b,'--qos=x,y']", "a=b (é)", "slurm.partition=null", "name=my run"]
    )
    assert (verb, study, overrides) == ("submit", "a=b (é)", ("name=my run",))
    assert request == SlurmSettings(extra=("--account=a b", "--qos=x,y"))
