"""Hostile and damaged inputs for every reader and command, and what became of them.

    python tests/hostile/run.py [--only WORD] [--all]

The files `of_*.py` beside this one make the inputs. Each input is (kind, name, function): the function gets an empty
folder, writes the input there, calls `made`, reads the input as a user would, and returns "equal" or "different: why".
Whether what was read is right is decided by the function, from what it wrote or from another library. Outcomes:

    refused     one UserError (or exit code 2 of a command) whose sentence says what is wrong and what to do
    equal       read, and equal to what it must be
    different   read, but otherwise: a silent difference
    traceback   any other exception
    crash       the process died
    slow        over 10 s of a processor, or over 30 s of waiting
    large       over 1 GB of memory beyond what the libraries take
    escaped     a file outside the folder `out` was made, changed or removed, or code of the input ran

Processes that read many inputs one after the other are forked from one that has imported all libraries. They have a
limit of address space, an alarm, and a working, home and temporary folder of their own.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # not where pytest imports this module to look for doctests
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("MPLBACKEND", "agg")

SECONDS, WAITING, BYTES, PROCESSES = 10.0, 30.0, 1 << 30, 2
OUTCOMES = ("tried", "refused", "equal", "different", "traceback", "crash", "slow", "large", "escaped")
FAULTS = OUTCOMES[3:]
MARK = "ran-code-of-the-input"  # a hostile input that runs makes a file of this name
Item = tuple[str, str, Callable[[Path, Callable[[], None]], str]]


class TooSlow(BaseException):
    """Raised by the alarm; no reader catches it."""


def every_item(only: str = "") -> list[Item]:
    """Return the inputs of all files beside this one.

    Args:
        only: keep the inputs whose kind or name contains this.
    """
    found: list[Item] = []
    for path in sorted(Path(__file__).parent.glob("of_*.py")):
        found += runpy.run_path(str(path))["items"]()
    return [item for item in found if only in item[0] or only in item[1]]


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return each path below a folder, but for those in `out`, with what tells whether it was changed."""
    found: dict[str, tuple[Any, ...]] = {}
    for place, folders, names in os.walk(folder):
        if Path(place) == folder / "box":
            folders[:] = [name for name in folders if name != "out"]
        for name in (*folders, *names):
            path = Path(place) / name
            facts = path.lstat()
            own = () if path.is_dir() and not path.is_symlink() else (facts.st_size, facts.st_mtime_ns)
            found[str(path.relative_to(folder))] = (facts.st_mode, *own)
    return found


def outcome(item: Item, folder: Path) -> tuple[str, str]:
    """Read one input in this process.

    Args:
        item: the input.
        folder: an empty folder.

    Returns:
        The outcome and its reason.
    """
    box = folder / "box"
    for name in ("box", "box/out", "home", "tmp"):
        (folder / name).mkdir()
    (folder / "secret.txt").write_text("secret")
    os.chdir(box)
    os.environ.update(HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"), HOSTILE_MARK=str(folder / MARK))
    tempfile.tempdir = None
    before: dict[str, tuple[Any, ...]] = {}

    def made() -> None:
        before.update(tree(folder))

    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")  # reset the peak of resident memory
    held = _resident("VmRSS")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            answer = item[2](box, made)
    except Exception as error:
        answer = _refusal(error)
    large = _resident("VmHWM") - held
    after = {path: facts for path, facts in tree(folder).items() if not path.startswith(("home/", "tmp/"))}
    changed = [path for path in after if before and before.get(path) != after[path]]
    changed += [path for path in before if path not in after and not path.startswith(("home/", "tmp/"))]
    if (folder / MARK).exists():
        return "escaped", "code of the input ran"
    if before and changed:
        return "escaped", f"changed outside out: {', '.join(sorted(changed)[:5])}"
    if large > BYTES:
        return "large", f"{large / 1e9:.2f} GB; {answer}"
    word, _, reason = answer.partition(": ")
    return word, reason


def _refusal(error: Exception) -> str:
    from umamba.io import UserError

    if isinstance(error, MemoryError):
        return f"large: {error}"
    if not isinstance(error, UserError):
        return f"traceback: {''.join(traceback.format_exception(error)[-6:])}"
    return judged(str(error))


def judged(message: str) -> str:
    """Return "refused", or what is wrong with a message: empty, with raw control characters, or endless.

    Args:
        message: of a UserError.
    """
    if len(message) < 15 or len(message) > 6000:
        return f"traceback: a message of {len(message)} characters: {message[:300]}"
    if any(ord(character) < 32 and character not in "\n\t" for character in message):
        return f"traceback: a message with control characters: {message!r:.300}"
    if "Traceback (most recent" in message:
        return f"traceback: {message}"
    return f"refused: {message}"


def _resident(entry: str) -> int:
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(entry + ":"))


def _worker(items: list[Item], numbers: list[int], root: Path, answers: int) -> None:
    """Read inputs one after the other; send a line before and after each."""
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    with open("/proc/self/status") as stream:
        virtual = next(int(line.split()[1]) * 1024 for line in stream if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, (virtual + 2 * BYTES, virtual + 2 * BYTES))  # resident memory is measured
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def alarm(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, alarm)
    signal.signal(signal.SIGPROF, alarm)
    for number in numbers:
        os.write(answers, (json.dumps([number, None, "", 0]) + "\n").encode())
        folder = root / str(number)
        folder.mkdir()
        began = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, WAITING)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            word, reason = outcome(items[number], folder)
        except TooSlow:
            word, reason = "slow", "the alarm"
        except BaseException as error:
            word, reason = "traceback", f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.chdir(root)
        shutil.rmtree(folder, ignore_errors=True)
        os.write(answers, (json.dumps([number, word, reason[:1500], time.process_time() - began]) + "\n").encode())
    os._exit(0)


def run(
    items: list[Item], root: Path, tell: Callable[[Item, tuple[str, str, float]], None], processes: int = PROCESSES
) -> list[tuple[str, str, float]]:
    """Read all inputs in a few processes; one that dies is replaced, and the input it read counts as a crash.

    Args:
        items: the inputs.
        root: a folder for them.
        tell: is called with each input and what became of it.
        processes: how many read at the same time.

    Returns:
        Outcome, reason and seconds of each input.
    """
    found: dict[int, tuple[str, str, float]] = {}
    waiting = [list(range(start, len(items), processes)) for start in range(processes)]
    running: dict[int, dict[str, Any]] = {}  # descriptor -> process
    while waiting or running:
        while waiting and len(running) < processes:
            numbers = waiting.pop()
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                _worker(items, numbers, root, writing)
            os.close(writing)
            os.set_blocking(reading, False)
            running[reading] = {"pid": pid, "numbers": numbers, "text": b"", "at": None, "heard": time.monotonic()}
        time.sleep(0.02)
        for descriptor, process in list(running.items()):
            ended = False
            with contextlib.suppress(BlockingIOError):
                part = os.read(descriptor, 1 << 16)
                ended = not part
                process["text"] += part
                process["heard"] = time.monotonic()
            *lines, process["text"] = process["text"].split(b"\n")
            for line in lines:
                number, word, reason, seconds = json.loads(line)
                process["at"] = number
                if word is not None:
                    found[number], process["at"] = (word, reason, seconds), None
                    tell(items[number], found[number])
            stuck = time.monotonic() - process["heard"] > 2 * WAITING
            if not ended and not stuck:
                continue
            if stuck:
                os.kill(process["pid"], signal.SIGKILL)
            _, status = os.waitpid(process["pid"], 0)
            os.close(descriptor)
            del running[descriptor]
            left = [number for number in process["numbers"] if number not in found]
            if process["at"] is not None:
                why = "no answer to the alarm" if stuck else f"ended by signal {os.WTERMSIG(status)}"
                found[process["at"]] = ("slow" if stuck else "crash", why, 0.0)
                tell(items[process["at"]], found[process["at"]])
                left.remove(process["at"])
            if left:
                waiting.append(left)
    return [found[number] for number in range(len(items))]


def table(items: list[Item], found: list[tuple[str, str, float]]) -> Iterator[str]:
    """Yield the lines of the table: kind and the number of each outcome."""
    counts: dict[str, Counter[str]] = {}
    for (kind, *_), (word, *_) in zip(items, found, strict=True):
        counts.setdefault(kind, Counter()).update(("tried", word))
    counts["all"] = sum(counts.values(), Counter())
    width = max(map(len, counts))
    yield f"{'kind':{width}} " + " ".join(f"{word:>9}" for word in OUTCOMES)
    for kind, count in counts.items():
        yield f"{kind:{width}} " + " ".join(f"{count[word]:9}" for word in OUTCOMES)


def _is_fault(word: str) -> bool:
    return word in FAULTS or word not in OUTCOMES


def main() -> int:
    """Read all inputs, print faults and the table; return 1 after a fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="only inputs whose kind or name contains this")
    parser.add_argument("--all", action="store_true", help="print the outcome of each input")
    arguments = parser.parse_args()
    items = every_item(arguments.only)

    def tell(item: Item, found: tuple[str, str, float]) -> None:
        if arguments.all or _is_fault(found[0]):
            mark = "FAULT" if _is_fault(found[0]) else "     "
            print(f"{mark} {item[0]} / {item[1]}: {found[0]}, {found[2]:.1f} s: {found[1]}", flush=True)

    with tempfile.TemporaryDirectory(prefix="hostile-") as root:
        began = time.monotonic()
        found = run(items, Path(root), tell)
    faults = sum(_is_fault(word) for word, *_ in found)
    print(*table(items, found), sep="\n")
    slowest = max(seconds for *_, seconds in found)
    print(f"{len(items)} inputs, {faults} faults, slowest {slowest:.1f} s, together {time.monotonic() - began:.0f} s")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
