"""The end of the process: threads, exit functions, output and exit code are kept, and nothing is taken apart."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from umamba import settings
from umamba.cli import main

CODE = """
import atexit, sys, threading, time
from umamba.cli import main

class Global:
    def __del__(self, write=sys.stderr.write):
        write("taken apart ")

def command(words):
    def work():
        time.sleep(0.3)
        print("thread", end=" ")
    global kept
    kept = Global()
    atexit.register(lambda: print("called", end=" "))
    threading.Thread(target=work).start()
    print(*words, end=" ")
    {end}

main.main = command
{before}
main.program("first")
"""


@pytest.mark.parametrize(
    ("before", "end", "code", "taken_apart"),
    [
        ("", "return 3", 3, False),
        ("", "return 0", 0, False),
        ("sys.settrace(lambda *_: None)", "return 3", 3, True),  # a debugger sees the usual end
        ("", "raise SystemExit(4)", 4, True),
        ("", "1 / 0", 1, True),
    ],
)
def test_the_end_of_a_command(before: str, end: str, code: int, taken_apart: bool, tmp_path: Path) -> None:
    words = [sys.executable, "-c", CODE.format(before=before, end=end), "second", "third=3"]
    found = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == code, found.stderr
    assert found.stdout == "first second third=3 thread called "
    assert ("taken apart" in found.stderr) == taken_apart
    assert ("ZeroDivisionError" in found.stderr) == (end == "1 / 0")


@pytest.mark.parametrize("lines", [1, 100_000])  # so few that they are written at the end, and more than a pipe holds
def test_a_reader_that_has_seen_enough_gets_no_traceback(lines: int, tmp_path: Path) -> None:
    code = CODE.format(before="", end=f"print(*['line'] * {lines}, sep=chr(10)); return 0")
    command = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait() == 141


def test_another_broken_pipe_is_an_error_of_the_command(tmp_path: Path) -> None:
    code = CODE.format(before="", end="raise BrokenPipeError('a worker ended')")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 1
    assert "a worker ended" in found.stderr


@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        (
            "prepare",
            lambda: np.empty(1 << 60, np.uint8),
            "prepare: the memory does not suffice (Unable to allocate 1.00 EiB for an array with shape "
            "(1152921504606846976,) and data type uint8). Give the program more memory, or lower data.prepare_workers.",
        ),
        (
            "predict",
            lambda: torch.empty(1 << 60, dtype=torch.uint8),
            "you tried to allocate 1152921504606846976 bytes. Error code 12 (Cannot allocate memory)). "
            "Give the program more memory, or lower max_memory_gb or workers.",
        ),
        (
            "doctor",
            MemoryError(),
            "doctor: the memory does not suffice (no further text). Give the program more memory.",
        ),
        (
            "find_best",
            torch.OutOfMemoryError("CUDA out of memory."),
            "find-best: the memory does not suffice (CUDA out",
        ),
        ("train", OSError(errno.ENOMEM, "Cannot allocate memory"), "or lower plan.batch_size or plan.patch_size or"),
    ],
)
def test_a_lack_of_memory_ends_a_command_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, error: Any, message: str
) -> None:
    def exhausted(name: str, arguments: list[str]) -> int:
        if callable(error):
            error()
        raise error

    monkeypatch.setattr(main, "_run", exhausted)
    assert main.main([command]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("Error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), ValueError("allocate memory"), OSError(errno.ENOENT, "No such file")]
)
def test_another_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(name: str, arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(main, "_run", broken)
    with pytest.raises(type(error)) as raised:
        main.main(["prepare"])
    assert raised.value is error


@pytest.mark.parametrize("name", [name for name, command in main.COMMANDS.items() if command.memory])
def test_the_keys_that_lower_the_memory_exist(name: str) -> None:
    command = main.COMMANDS[name]
    for key in command.memory:
        record: Any = getattr(settings, str(command.record))
        for part in key.split("."):
            record = get_type_hints(record)[part]


def test_ctrl_c_ends_a_command_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(name: str, arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_run", interrupted)
    assert main.main(["prepare"]) == 130
    assert capsys.readouterr().err == "Stopped by Ctrl-C.\n"
