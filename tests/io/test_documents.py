"""JSON of others: read within bounds of size, depth and digits, or refused in one sentence."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umamba.io import UserError, read_json
from umamba.io.documents import MOST_BYTES, OWN_BYTES, check_values

REFUSED = {
    "empty": (b"", "the file is empty"),
    "spaces": (b" \n ", "the file is empty"),
    "cut": (b'{"a": [1, 2', "not valid JSON .* line 1, column 12"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "UTF-16"),
    "utf-32": ('{"a": 1}'.encode("utf-32-be"), "UTF-16 or UTF-32|not valid JSON"),
    "binary": (bytes(range(256)), "UTF-16|byte 128|not valid JSON"),
    "latin-1": ('{"\xe9": 1}'.encode("latin-1"), "byte 2 is no UTF-8"),
    "deep list": (b"[" * 100_000 + b"]" * 100_000, "nested"),
    "deep object": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested"),
    "deep and open": (b"[" * 1_000_000, "nested"),
    "rather deep": (b"[" * 70 + b"]" * 70, "nested more than 64"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
    "long integer": (b'{"a": {"b": ' + b"9" * 100 + b"}}", r"a\.b: holds an integer of 333 bits"),
    "nan": (b'{"a": [1, NaN]}', r"a\[1\]: holds nan"),
    "infinity": (b'{"a": -Infinity}', "a: holds -inf"),
    "large exponent": (b'{"a": 1e999}', "a: holds inf"),
    "twice": (b'{"a": {"b": 1, "b": 2}}', '"b" occurs twice in one object; keep one'),
    "surrogate": (b'{"a": "\\ud800"}', "a: holds text that cannot be encoded"),
    "surrogate key": (b'{"\\udfff": 1}', "cannot be encoded"),
    "many": (b"[" + b"1," * (MOST_BYTES // 16) + b"1]", "holds more than 1048576 values"),
    "large": (b" " * (MOST_BYTES + 1), "has more than 16384 KiB"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_json_is_refused(tmp_path: Path, name: str) -> None:
    content, said = REFUSED[name]
    path = tmp_path / "a.json"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=said) as raised:
        read_json(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(raised.value).startswith(f"{path}: ")
    assert len(str(raised.value)) < 600
    assert peak < 200e6


def test_files_of_gigabytes_pipes_and_folders_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.json").open("wb") as stream:
        stream.truncate(2 << 30)
    os.mkfifo(tmp_path / "pipe.json")
    for name, said in (
        ("sparse.json", "more than 16384 KiB"),
        ("pipe.json", "no regular file"),
        (".", "no regular file"),
        ("none.json", "no such file"),
        ("sparse.json/a", "no such file"),
    ):
        with pytest.raises(UserError, match=said):
            read_json(tmp_path / name)


@pytest.mark.parametrize("value", [{}, [], {"a": [1, -2.5, None, True, "\u00e9\u4e2d"]}, 2**63, "text", 1e308, [[[1]]]])
def test_what_json_can_hold_is_read(tmp_path: Path, value: Any) -> None:
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "a.json").write_text(json.dumps(value, ensure_ascii=False), encoding=encoding)
        assert read_json(tmp_path / "a.json") == value


def bomb(depth: int) -> Any:
    """Return lists that hold each other twice: 2 to the power of depth values in a few bytes."""
    value: Any = 1
    for _ in range(depth):
        value = [value, value]
    return value


def itself() -> Any:
    """Return a list that holds itself."""
    value: list[Any] = [1.0]
    value.append({"a": value})
    return value


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: bomb(60), "more than .* values"),
        (itself, "nested"),
        (lambda: {"a": 1j}, "a: holds a value of type complex"),
        (lambda: {"a": {1: 2}}, "a: has a key of type int"),
        (lambda: {"a": [0, b"x"]}, r"a\[1\]: holds a value of type bytes"),
        (lambda: [itself(), b"x"], "holds a value of type bytes"),
    ],
)
def test_values_that_no_file_of_json_holds(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=f"file: .*{said}|file: {said}"):
        check_values(make(), "file")


def test_a_small_file_reserves_little_memory_whatever_it_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    tracemalloc.start()
    try:
        assert read_json(path, OWN_BYTES) == {"a": 1}
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    path.write_text(json.dumps("b" * 200_000))  # more than one read of a file without a size
    assert len(read_json(path)) == 200_000
