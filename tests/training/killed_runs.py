"""Train one small run in many ways from one warm process, and print a hash of each one's weights.

    python killed_runs.py FOLDER SETTINGS NETWORK... [--all]

SETTINGS is JSON: the overrides of the runs. A line of JSON for each run goes to the standard output: network, the cache
of compiled code (cold or warm) and the number of worker processes of each of its processes, how many functions each one
compiled, kills, threads, and the SHA-256 of the weights. A cold process of the first network compiles all, in an empty
folder of its own; that of another network finds what the first network uses (patches, loss), and compiles its own
kernels. One run is killed five times, and each of its six processes has another cache and number of workers. With --all
there are more: for each kind of process a run that is not killed and one that is killed five times, and a run with two
threads of PyTorch, which round otherwise. The processes are forks of this one, which has imported all and compiled
nothing, so that a warm one takes a second.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
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

Kinds = tuple[tuple[str, int], ...]
# Cache and workers of each process of a run; all but the last one are killed. The first run warms the shared cache.
# The process that is killed before its first save is a cold one, because it never has to compile to the end.
RUNS: tuple[Kinds, ...] = (
    (("cold", 0),),
    (("warm", 2),),
    (("cold", 0), ("cold", 1), ("warm", 1), ("cold", 2), ("warm", 2), ("warm", 0)),
)
KINDS = tuple((cache, workers) for cache in ("cold", "warm") for workers in (0, 1, 2))
ALL_RUNS: tuple[Kinds, ...] = (*RUNS, *((kind,) * (1 + kills) for kind in KINDS for kills in (0, 5)))
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


def finish(arguments: list[str], cache: Path, threads: int = 1) -> None:
    """Train to the end."""
    with tempfile.TemporaryFile() as printed:
        status = os.waitpid(forked(arguments, cache, printed.fileno(), threads), 0)[1]
        printed.seek(0)
        said = printed.read().decode(errors="replace")
    assert status == 0, said


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
    first = folder / "cache-first"
    for network in [name for name in networks if name != "--all"]:
        runs = [(kinds, 1) for kinds in (ALL_RUNS if every else RUNS)]
        for number, (kinds, threads) in enumerate([*runs, *([(RUNS[1], 2)] if every else [])]):
            began = time.monotonic()
            arguments = ["train", *overrides, f"architecture={network}", f"trainer.max_epochs={EPOCHS}"]
            arguments += [f"name={network}-{number}", f"paths.runs={folder / 'runs'}"]
            run = folder / "runs" / f"{network}-{number}" / "3d_fullres" / "fold_0" / "seed_0"
            last = run / "checkpoints" / "last.ckpt"
            kills, functions = 0, list[int]()
            for process, (cache, workers) in enumerate(kinds):
                own = cache == "cold" and number + process > 0
                compiled = folder / (f"cache-{network}-{number}-{process}" if own else f"cache-{network}")
                if not compiled.exists() and first.exists():
                    shutil.copytree(first, compiled)
                before = len(list(compiled.rglob("*.nbc")))
                given = [*arguments, f"data.num_workers={workers}"]
                if process < len(kinds) - 1:
                    kills += kill(given, compiled, last, moments.random(), begun=process > 0)
                else:
                    finish(given, compiled, threads)
                functions.append(len(list(compiled.rglob("*.nbc"))) - before)
            seconds = round(time.monotonic() - began, 1)
            facts = {"network": network, "kinds": kinds, "compiled": functions, "kills": kills, "threads": threads}
            print(json.dumps({**facts, "seconds": seconds, "sha256": weights(last)}), flush=True)
        if not first.exists():
            (folder / f"cache-{network}").rename(first)


if __name__ == "__main__":
    main()
