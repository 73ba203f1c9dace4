"""Train one small run in many ways from one warm process, and print a hash of each one's weights.

    python killed_runs.py FOLDER SETTINGS NETWORK... [--all]

SETTINGS is JSON: the overrides of the runs. A line of JSON for each run goes to the standard output: network, cache of
compiled code (cold or warm), worker processes, kills, threads, and the SHA-256 of the weights. Each cache is tried with
each number of workers, half of them killed and continued; with --all each is tried in both ways, and with two threads
of PyTorch, which round otherwise. The runs are forks of this process, which has imported all and compiled nothing, so
that each one takes a second.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numba
import torch
from numba.core.dispatcher import Dispatcher

import umamba.runs.whole_run  # noqa: F401
from umamba.cli import main as program
from umamba.cli.compose import settings_of
from umamba.settings import TrainSettings
from umamba.training.curves import ProgressPicture

# cache, workers, killed: the caches stand beside the runs, and the first cold run warms the shared one
RUNS = (("cold", 0, 0), ("warm", 0, 1), ("warm", 1, 0), ("cold", 1, 1), ("cold", 2, 0), ("warm", 2, 1))
KILLS = 5
LIMIT_S = 240
EPOCHS = 20  # more than five killed processes complete
LONGEST_EPOCH_S = 0.1  # an epoch in which code is compiled is longer, and the next ones are not


def forked(arguments: list[str], cache: Path, printed: int, threads: int = 1) -> int:
    """Start a training in a fork of this process, a process group of its own; return its number."""
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # parent and child both do this, because either may be first
            os.setpgid(child, child)
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        for descriptor in (1, 2):
            os.dup2(printed, descriptor)
        signal.alarm(LIMIT_S)
        torch.set_num_threads(threads)
        numba.config.CACHE_DIR = str(cache)  # type: ignore[attr-defined]
        for module in [module for name, module in sys.modules.items() if name.startswith("umamba.")]:
            for value in list(vars(module).values()):
                if isinstance(value, Dispatcher):
                    assert not value.signatures
                    value.enable_caching()  # in the cache of this run
        code = program.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(arguments: list[str], cache: Path, threads: int = 1) -> float:
    """Train to the end; return how many seconds that took."""
    with tempfile.TemporaryFile() as printed:
        began = time.monotonic()
        status = os.waitpid(forked(arguments, cache, printed.fileno(), threads), 0)[1]
        printed.seek(0)
        said = printed.read().decode(errors="replace")
    assert status == 0, said
    return time.monotonic() - began


def kill(arguments: list[str], cache: Path, last: Path, moment: float, begun: bool) -> bool:
    """Start a training and kill it; return whether it still ran.

    Args:
        arguments: the training.
        cache: folder of compiled code.
        last: its checkpoint.
        moment: when it is killed: this part of an epoch after its second save, or of 0.2 s.
        begun: whether it is killed after its second save, or before its first one.
    """
    with tempfile.TemporaryFile() as printed:
        child = forked(arguments, cache, printed.fileno())
        seen, saves, due = stamp(last), [time.monotonic()], time.monotonic() + LIMIT_S
        while begun and len(saves) < 3:
            if os.waitpid(child, os.WNOHANG)[0]:
                return False
            if stamp(last) not in (seen, 0):
                seen = stamp(last)
                saves.append(time.monotonic())
            assert time.monotonic() < due
            time.sleep(0.001)
        time.sleep(moment * (min(saves[2] - saves[1], LONGEST_EPOCH_S) if begun else 0.2))
        os.killpg(child, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def stamp(path: Path) -> int:
    """Return when a file was written; 0 if it is absent."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def weights(last: Path) -> str:
    """Return the SHA-256 of a checkpoint's weights."""
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["epoch"] == EPOCHS - 1
    found = hashlib.sha256()
    for name, tensor in sorted(checkpoint["state_dict"].items()):
        found.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    """Train all runs."""
    folder, overrides, *networks = Path(sys.argv[1]), json.loads(sys.argv[2]), *sys.argv[3:]
    every = "--all" in networks
    settings_of(TrainSettings, overrides)  # what this loads, the runs need not load again
    ProgressPicture.draw = lambda self: None  # type: ignore[method-assign]
    moments = random.Random(0)
    for network in [name for name in networks if name != "--all"]:
        shared = folder / f"cache-{network}"

        def train(cache: str, workers: int, kills: int, threads: int = 1, *, name: str, shared: Path = shared) -> None:
            more = [f"architecture={name}", f"data.num_workers={workers}", f"trainer.max_epochs={EPOCHS}"]
            run = f"{name}-{cache}-{workers}-{kills}-{threads}"
            arguments = ["train", *overrides, *more, f"name={run}", f"paths.runs={folder / 'runs'}"]
            last = folder / "runs" / run / "3d_fullres" / "fold_0" / "seed_0" / "checkpoints" / "last.ckpt"
            compiled = folder / f"cache-{run}" if cache == "cold" and shared.exists() else shared
            done, began = 0, time.monotonic()
            for number in range(kills):
                done += kill(arguments, compiled, last, moments.random(), begun=number > 0)
            finish(arguments, compiled, threads)
            facts = {"network": name, "cache": cache, "workers": workers, "kills": done, "threads": threads}
            seconds = round(time.monotonic() - began, 1)
            print(json.dumps({**facts, "seconds": seconds, "sha256": weights(last)}), flush=True)

        for cache, workers, killed in RUNS:
            train(cache, workers, KILLS * killed, name=network)
        if every:
            for cache, workers, killed in RUNS:
                train(cache, workers, KILLS * (1 - killed), name=network)
            train("warm", 0, 0, 2, name=network)


if __name__ == "__main__":
    main()
