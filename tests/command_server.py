"""Run commands of umamba, each in a fork of this process, which has imported what takes seconds to import.

A line of standard input is a JSON object: `words` after umamba, `folder` to work in, `environment` and `modules`
(folders of further packages) to add, `stdout` and `stderr` (files to write), `file_limit` (no file may have more bytes,
as on a full disk) or null, and `kill_after` (a file; soon after it is there, the command and its workers get SIGKILL)
or null. The answer is a line with the exit code. Packages that are given as arguments cannot be imported.
"""

import json
import os
import resource
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

PRELOADED = (
    "monai.networks.nets",
    "umamba.cli.main",
    "umamba.evaluation.plots",
    "umamba.inference.predictor",
    "umamba.reporting",
    "umamba.runs.whole_run",
)
WITHOUT_TRAINING = ("umamba.cli.main", "umamba.inference.predictor")


def serve() -> None:
    """Answer until standard input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            run(request)
        if request["kill_after"] is not None:
            kill_after(Path(request["kill_after"]), child)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def kill_after(file: Path, child: int) -> None:
    """Kill a command and its workers a moment after a file is there, unless it ends before."""
    while not file.exists() and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.02)
    time.sleep(0.2)  # in the midst of what follows
    if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        os.killpg(child, signal.SIGKILL)


def run(request: dict[str, Any]) -> None:
    """Run a command in this process, and end it as Python would."""
    os.setsid()
    for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    if request["file_limit"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], request["file_limit"]))
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    sys.path[:0] = request["modules"]
    sys.argv = [str(Path(sys.executable).with_name("umamba")), *request["words"]]
    sys.exit(import_module("umamba.cli.main").main(request["words"]))


if __name__ == "__main__":
    absent = sys.argv[1:]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: the import fails
    for module in WITHOUT_TRAINING if absent else PRELOADED:
        import_module(module)
    serve()
