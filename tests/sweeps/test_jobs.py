"""What is handed to sbatch, the record of a task, and the check of a request."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from umamba.cli.words import override_of
from umamba.io import UserError, read_json, write_json
from umamba.networks import configuration_for_patch
from umamba.planning import Intensity, Plan
from umamba.records import RunFolder
from umamba.settings import SlurmSettings
from umamba.sweeps import PlannedRun
from umamba.sweeps.jobs import (
    Submission,
    launched,
    prepared_overrides,
    queued_tasks,
    read_task,
    submission,
    submit,
    task_name,
    write_list,
)
from umamba.sweeps.preflight import Partition, cluster_obstacles, largest_array, partitions, preflight, seconds
from umamba.sweeps.task import failure, run_task


def runs(folder: Path, count: int = 3) -> list[PlannedRun]:
    """Return runs of two datasets."""
    return [
        PlannedRun(
            (f"a={index}", "fold=0"), RunFolder(folder / f"run_{index}"), "d", "m", 0, 0, 5, 10, f"data{index % 2}"
        )
        for index in range(count)
    ]


def test_lists_are_numbered_and_hold_what_a_task_needs(tmp_path: Path) -> None:
    first = write_list(tmp_path, "study", runs(tmp_path))
    second = write_list(tmp_path, "study", runs(tmp_path, 1))
    assert (first.name, second.name) == ("list_001.json", "list_002.json")
    assert read_task(first, 2) == (["a=2", "fold=0"], RunFolder(tmp_path / "run_2"))
    assert read_json(first)["prepare"] == [["a=0", "fold=0"], ["a=1", "fold=0"]]  # one for each preparation
    with pytest.raises(UserError, match="0 to 2"):
        read_task(first, 3)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"tasks": 3}', '{"study": "s", "tasks": [{"folder": 1}], "prepare": []}']
)
def test_damaged_lists_end_in_one_sentence(tmp_path: Path, content: str) -> None:
    path = write_list(tmp_path, "study", runs(tmp_path))
    path.with_name("list_001_jobs.json").write_text('{"train": "7"}')
    path.write_text(content)
    for read in (lambda: read_task(path, 0), lambda: prepared_overrides(path), lambda: queued_tasks(tmp_path)):
        with pytest.raises(UserError, match=r"list_001\.json: .*submit the study again"):
            read()
    jobs = write_list(tmp_path / "other", "study", runs(tmp_path)).with_name("list_001_jobs.json")
    jobs.write_text(content)
    with pytest.raises(UserError, match=r"list_001_jobs\.json: .*Put back a copy"):
        queued_tasks(jobs.parent)


def test_the_array_asks_for_what_the_request_says(tmp_path: Path) -> None:
    list_file = write_list(tmp_path, "study", runs(tmp_path))
    request = SlurmSettings(
        partition="gpu", prepare_partition="cpu", gpus=2, cpus=26, max_parallel=2, extra=("--account=x",)
    )
    jobs = submission(list_file, request, ("/bin/python", "-m", "umamba"), tmp_path / "array.sh", ["study=study"])
    for option in (
        *("--array=0-2%2", "--requeue", "--signal=B:USR1@120", "--partition=gpu", "--gres=gpu:2", "--account=x"),
        *("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=13", "--open-mode=append"),
    ):
        assert option in jobs.train, option
    assert jobs.train[-3:] == [str(tmp_path / "array.sh"), "/bin/python", str(list_file)]
    assert "--partition=cpu" in jobs.prepare
    assert not any(option.startswith("--gres") for option in (*jobs.prepare, *jobs.collect))


def test_several_tasks_are_started_together_and_joined() -> None:
    alone = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1", "SLURM_CPUS_PER_TASK": "4"}
    assert launched(["python", "train.py", "a=1"], alone) == ["python", "train.py", "a=1"]
    two_by_four = {**alone, "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"}
    command = launched(["python", "train.py", "a=1"], two_by_four)
    assert command[0] == "srun"
    assert "--cpus-per-task=4" in command
    assert command[-5:] == ["train.py", "a=1", "trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2"]


def test_a_task_knows_itself_from_its_environment() -> None:
    assert task_name({"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_JOB_ID": "17"}) == (4, "17_4")
    with pytest.raises(UserError, match="SLURM"):
        task_name({})


@pytest.mark.parametrize(
    ("code", "state", "said"),
    [
        ("pass", "done", None),
        ("raise SystemExit(3)", "failed", "exit code 3"),
        ("import sys; print('Error: no such key', file=sys.stderr); sys.exit(2)", "failed", "exit code 2: no such key"),
        ("raise ValueError('odd')", "failed", "exit code 1: ValueError: odd"),
        ("import os; os.kill(os.getpid(), 9)", "failed", "SIGKILL"),
        ("raise SystemExit(128 + 15)", "stopped", "took the node back"),  # a training that was told itself
    ],
)
def test_a_task_records_how_it_ended(tmp_path: Path, code: str, state: str, said: str | None) -> None:
    assert run_task([sys.executable, "-c", code], RunFolder(tmp_path)) == state
    record = read_json(tmp_path / "task.json")
    assert record["state"] == state
    assert said is None or said in record["reason"]


@pytest.mark.parametrize(
    ("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False), (signal.SIGINT, False)]
)
def test_a_warned_task_stops_its_training_and_asks_for_a_requeue(
    tmp_path: Path, number: signal.Signals, requeued: bool
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    training = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(60)"
    code = (
        "import sys; from pathlib import Path; from umamba.records import RunFolder; "
        "from umamba.sweeps.task import run_task; "
        f"command = [sys.executable, '-c', {training!r}, '{tmp_path}/begun']; "
        f"print(run_task(command, RunFolder(Path('{tmp_path}')), '17_4'))"
    )
    environment = {**os.environ, "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    limit = time.monotonic() + 30
    while not (tmp_path / "begun").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.communicate(timeout=30)[0].strip() == "stopped"
    assert read_json(tmp_path / "task.json")["state"] == "stopped"
    assert (tmp_path / "asked").exists() == requeued
    if requeued:
        assert (tmp_path / "asked").read_text() == "requeue 17_4\n"


def test_a_run_that_another_process_trains_keeps_its_record(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.task_file, {"state": "running", "host": "gpu-node-1"})
    with folder.lock():
        assert folder.in_use()
        assert run_task([sys.executable, "-c", "raise SystemExit(1)"], folder) == "elsewhere"
    assert read_json(folder.task_file) == {"state": "running", "host": "gpu-node-1"}
    assert not folder.in_use()
    assert run_task([sys.executable, "-c", "pass"], folder) == "done"


def test_a_training_has_all_its_time_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the signal comes: also just before a heartbeat."""
    monkeypatch.setattr("umamba.sweeps.task.HEARTBEAT_S", 0.5)
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    training = (
        "import signal, sys, time; from pathlib import Path\n"
        "def stop(*_): time.sleep(2.5); Path(sys.argv[2]).touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); Path(sys.argv[1]).touch(); time.sleep(60)"
    )

    def signalled() -> None:
        while not begun.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=signalled)
    sender.start()
    assert run_task([sys.executable, "-c", training, str(begun), str(ended)], RunFolder(tmp_path)) == "stopped"
    sender.join()
    assert ended.exists()


def test_a_training_that_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umamba.sweeps.task.STOP_S", 1.0)
    training = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.kill(os.getppid(), 15); time.sleep(60)"
    before = time.monotonic()
    assert run_task([sys.executable, "-c", training], RunFolder(tmp_path)) == "stopped"
    assert time.monotonic() - before < 30


def test_reasons() -> None:
    assert failure(2, ["Error: a\n", "later line\n"]) == "exit code 2: a"
    assert failure(1, []) == "exit code 1: no message"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 1800), ("30:00", 1800), ("24:00:00", 86400), ("2-12", 216000), ("1-00:30:00", 88200), ("UNLIMITED", None)],
)
def test_time_limits_as_slurm_writes_them(text: str, expected: float | None) -> None:
    assert seconds(text) == expected
    with pytest.raises(UserError, match="24:00:00"):
        seconds("a day")


def test_a_good_request_passes_and_a_poor_one_is_told_what_to_ask_for(tmp_path: Path) -> None:
    offered = [Partition("gpu*", 32, 256.0, 4, 86400.0)]
    assert preflight(runs(tmp_path), SlurmSettings(), offered) == []
    poor = SlurmSettings(partition="gpux", cpus=2, memory_gb=2, gpus=1)
    remarks = "\n".join(preflight(runs(tmp_path), poor, offered))
    assert all(part in remarks for part in ("Ask for 13", "memory 2 GB", "partition gpux", "Choose one of gpu"))
    too_much = SlurmSettings(cpus=64, memory_gb=999, gpus=8, time_limit="7-00:00:00")
    remarks = "\n".join(preflight(runs(tmp_path), too_much, offered))
    assert all(part in remarks for part in ("more than 32", "more than 256", "more than 4", "allows 1 d"))


def test_a_time_limit_of_an_epoch_is_refused_once_the_epoch_is_known(tmp_path: Path) -> None:
    planned = runs(tmp_path)
    planned[0].folder.path.mkdir()
    planned[0].folder.metrics.write_text("epoch,time/iteration_s\n0,60\n")  # ten batches: ten minutes
    assert "epoch" in "\n".join(preflight(planned, SlurmSettings(time_limit="00:20:00"), []))
    assert preflight(planned, SlurmSettings(time_limit="10:00:00"), []) == []


def test_memory_grows_with_the_planned_batch(tmp_path: Path) -> None:
    planned = runs(tmp_path, 1)
    folder = tmp_path / "name" / "3d_fullres" / "fold_0" / "seed_0"
    folder.mkdir(parents=True)
    intensity = Intensity(mean=0, median=0, std=1, min=-1, max=1, percentile_00_5=-1, percentile_99_5=1)
    configurations = {"3d_fullres": replace(configuration_for_patch((256, 256, 256)), batch_size=8)}
    order, millimetres, voxels = (0, 1, 2), (1.0, 1.0, 1.0), (300.0, 300.0, 300.0)
    plan = Plan("name", "nnunet", order, order, millimetres, voxels, (intensity,), configurations).to_json()
    (folder / "plan.json").write_text(json.dumps(plan))
    large = replace(planned[0], folder=RunFolder(folder))
    assert preflight(planned, SlurmSettings(), []) == []
    assert "memory" in preflight([large], SlurmSettings(), [])[0]
    for damaged in ("", "[]", '{"configurations": 3}', json.dumps({**plan, "configurations": {"3d_fullres": {}}})):
        (folder / "plan.json").write_text(damaged)
        assert preflight([large], SlurmSettings(), []) == []


SBATCH = """#!/bin/sh
echo "$@" >> {folder}/asked
case "$*" in *{refused}*) echo "sbatch: error: Invalid job array specification" >&2; exit 1;; esac
echo $(wc -l < {folder}/asked)
"""


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, refused: str = "nothing", max_array: int = 1001) -> Path:
    """Put stand-ins of SLURM's commands on the path; return the file of what sbatch and scancel were asked."""
    (folder / "bin").mkdir()
    scripts = {
        "sbatch": SBATCH.format(folder=folder, refused=refused),
        "scancel": f'#!/bin/sh\necho "scancel $@" >> {folder}/asked\n',
        "scontrol": f'#!/bin/sh\necho "MaxArraySize            = {max_array}"\n',
        "sinfo": '#!/bin/sh\necho "gpu*|32|256000|gpu:4|infinite|up"\n',
        "squeue": "#!/bin/sh\n",
    }
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    return folder / "asked"


def submissions(folder: Path, counts: list[int]) -> list[Submission]:
    """Return a submission for each list of so many runs."""
    lists = [write_list(folder, "study", runs(folder, count)) for count in counts]
    return [submission(path, SlurmSettings(), ("p",), folder / "array.sh", ["study=s"]) for path in lists]


@pytest.mark.parametrize(
    ("refused", "cancelled"), [("--array=", "1"), ("umamba-report", "1 2"), ("umamba-prepare", "")]
)
def test_a_refused_job_leaves_nothing_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, cancelled: str
) -> None:
    asked = fake_slurm(tmp_path, monkeypatch, refused)
    with pytest.raises(UserError, match="Invalid job array specification") as caught:
        submit(submissions(tmp_path / "lists", [3]))
    scancels = [line for line in asked.read_text().splitlines() if line.startswith("scancel")]
    assert scancels == ([f"scancel {cancelled}"] if cancelled else [])
    assert ("were cancelled" in str(caught.value)) == bool(cancelled)
    assert not list((tmp_path / "lists").glob("list_*"))


def test_jobs_that_cannot_be_cancelled_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm(tmp_path, monkeypatch, "--array=")
    (tmp_path / "bin" / "scancel").write_text("#!/bin/sh\necho 'scancel: not allowed' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"still in the queue \(scancel: not allowed\)\. Cancel them: scancel 1"):
        submit(submissions(tmp_path / "lists", [3]))


def test_arrays_of_one_study_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_slurm(tmp_path, monkeypatch, max_array=2)
    assert largest_array() == 2
    numbers = submit(submissions(tmp_path / "lists", [2, 1]))
    assert numbers == [
        {"prepare": "1", "train": "2", "collect": "5"},
        {"prepare": "3", "train": "4", "collect": "5"},
    ]
    lines = asked.read_text().splitlines()
    assert len(lines) == 5
    assert "--array=0-1%8" in lines[1]
    assert "--dependency=afterok:1 " in lines[1]
    assert "--array=0-0%8" in lines[3]
    assert "--dependency=afterok:3,afterany:2 " in lines[3]
    assert "--dependency=afterany:2:4 " in lines[4]
    assert read_json(tmp_path / "lists" / "list_002_jobs.json") == numbers[1]


def test_paths_of_logs_and_reports_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "100% (é)"
    list_file = write_list(folder, "study", runs(folder, 1))
    collect = [override_of("paths.runs", folder), override_of("overrides", ["name=my run"])]
    jobs = submission(list_file, SlurmSettings(), ("python", "-m", "umamba"), folder / "array.sh", collect)
    (output,) = (option for option in jobs.train if option.startswith("--output="))
    assert output == f"--output={tmp_path}/100%% (é)/logs/%A_%a.log"
    wrapped = shlex.split(jobs.collect[-1].removeprefix("--wrap="))
    assert wrapped == ["python", "-m", "umamba", "report", f"paths.runs='{folder}'", "overrides=['name=my run']"]


def test_the_nodes_of_a_partition_are_taken_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm(tmp_path, monkeypatch)
    lines = (
        "big|64|257024|gpu:a100:4|1-00:00:00|up",
        "cpu*|8|16384|(null)|infinite|up",
        "big|96|131072|(null)|1-00:00:00|down",
    )
    (tmp_path / "bin" / "sinfo").write_text("#!/bin/sh\n" + "".join(f'echo "{line}"\n' for line in lines))
    assert partitions() == [Partition("cpu*", 8, 16.0, 0, None), Partition("big", 96, 251.0, 4, 86400.0)]


def test_what_the_cluster_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_slurm(tmp_path, monkeypatch)
    offered = partitions()
    assert cluster_obstacles(offered) == []
    assert offered == [Partition("gpu*", 32, 250.0, 4, None)]
    (no_partition,) = cluster_obstacles([])
    assert "sinfo names no partition" in no_partition
    (remark,) = preflight(runs(tmp_path), SlurmSettings(), [Partition("gpu", 32, 256.0, 4, None)])
    assert "no default. Give slurm.partition, one of gpu" in remark
    (remark,) = preflight(runs(tmp_path), SlurmSettings(), [Partition("gpu*", 32, 256.0, 4, None, up=False)])
    assert "partition gpu: it is down" in remark
    monkeypatch.setenv("PATH", str(tmp_path))
    assert partitions() == []
    (no_sbatch,) = cluster_obstacles([])
    assert "sbatch was not found" in no_sbatch
