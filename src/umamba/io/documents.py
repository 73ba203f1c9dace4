"""Read JSON that others may have written, and check other values of theirs: bounded in size, depth and numbers.

A file of a few megabytes may otherwise cost gigabytes, end the interpreter's stack, or hold values that no later step
expects: NaN, integers of thousands of digits, text that cannot be encoded, a key twice in one object.
"""

import json
import math
import os
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from umamba.io.errors import UserError

MOST_BYTES = 16 << 20  # of a file that people or other programs wrote
OWN_BYTES = 512 << 20  # of lists that this project writes itself: an entry for each file of a dataset
_UNSIZED = 1 << 16  # bytes that are read of a file whose size the system does not say
_BYTES_PER_VALUE = 16  # a file of the largest size may hold a value for so many bytes
MOST_DEPTH = 64
_MOST_BITS = 64


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        most_bytes: size from which on it is refused, unread.

    Raises:
        UserError: the file is missing, too large, not text, not valid JSON, nested too deeply, or holds NaN, infinity,
            an integer of more than 64 bits, or a key twice in one object; the message names the line or the key.
    """
    path = Path(path)
    text = bounded_text(path, most_bytes)
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return found

    most = max(1, most_bytes // _BYTES_PER_VALUE)
    if sum(map(text.count, ",[{")) > most:
        raise UserError(f"{path}: holds more than {most} values. Check that it is the right file.")
    try:
        content = json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        if not text.strip():
            raise UserError(f"{path}: the file is empty. Put back a copy, or make it again.") from None
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: not valid JSON ({error.msg} at {where}). Correct that line.") from None
    except RecursionError:
        raise UserError(f"{path}: is nested more than {MOST_DEPTH} deep. Check that it is the right file.") from None
    except ValueError:  # Python refuses to convert integers of more than 4300 digits
        raise UserError(f"{path}: holds an integer of thousands of digits. Correct it.") from None
    if repeated:
        raise UserError(f"{path}: {_listed(repeated)} in one object; keep one.")
    check_values(content, str(path), most_values=most)
    return content


def _listed(repeated: list[str]) -> str:
    names = [f'"{name[:60]}"' for name in dict.fromkeys(repeated)]
    return f"{', '.join(names[:10])} {'occurs' if len(names) == 1 else 'occur'} twice"


def bounded_text(path: Path, most_bytes: int) -> str:
    """Return the text of a regular file.

    Args:
        path: the file.
        most_bytes: size from which on it is refused, unread.

    Raises:
        UserError: the file is missing, no regular file, too large, or no UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file but a folder, pipe or device. Give a file.")
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size  # because read(n) reserves n bytes before it reads any
            content = stream.read(min(most_bytes, max(size, _UNSIZED)) + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file. Check the path.") from None
    except OSError as error:
        reason = f"{error.strerror or error}"
        raise UserError(f"{path}: cannot be read as text ({reason}). Check the file and its permissions.") from None
    if len(content) > most_bytes:
        raise UserError(
            f"{path}: has more than {most_bytes >> 10} KiB, far more than such a file needs. Check that it is the "
            "right file."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[1:2] == b"\0" or content[:1] == b"\0"
        reason = "UTF-16 or UTF-32" if wide else f"byte {error.start} is no UTF-8"
        raise UserError(f"{path}: cannot be read as text ({reason}). Save it as UTF-8, or put back a copy.") from None


def check_values(content: Any, what: str, most_values: int = MOST_BYTES // _BYTES_PER_VALUE, nan: bool = False) -> None:
    """Refuse nested plain values that later steps cannot hold; what is accepted can be copied, printed and encoded.

    Args:
        content: what a file held: dicts with text as keys, lists, tuples, numbers, text, None.
        what: the file, which begins the message.
        most_values: number of values, those of shared lists counted as often as they occur.
        nan: whether NaN and infinity are accepted.

    Raises:
        UserError: it is nested too deeply, has too many values or other types, or holds NaN, infinity, an integer of
            more than 64 bits or text that cannot be encoded; the message names the key.
    """
    level, depth, count = [content], 0, 1
    while level:
        depth += 1
        if depth > MOST_DEPTH:
            raise UserError(f"{what}: is nested more than {MOST_DEPTH} deep. Check that it is the right file.")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
                wrong = next((fault for key in value if (fault := _fault_of_key(key))), None)
            elif isinstance(value, list | tuple):
                inner.extend(value)
                wrong = None
            else:
                wrong = _fault(value, nan)
            if wrong:
                place = next((place for place, found in _places(content) if found is value), "")
                raise UserError(f"{what}: {place + ': ' if place else ''}{wrong}. Correct it.")
            if count + len(inner) > most_values:
                raise UserError(f"{what}: holds more than {most_values} values. Check that it is the right file.")
        count += len(inner)
        level = inner


def _fault(value: Any, nan: bool) -> str:
    """Return what is wrong with a single value; empty if nothing is."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        return _fault_of_text(value)
    if isinstance(value, int):
        return "" if value.bit_length() <= _MOST_BITS else f"holds an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return "" if nan or math.isfinite(value) else f"holds {value}, which is no number"
    return f"holds a value of type {type(value).__name__}"


def _fault_of_key(key: Any) -> str:
    return _fault_of_text(key) if isinstance(key, str) else f"has a key of type {type(key).__name__}"


def _fault_of_text(text: str) -> str:
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds text that cannot be encoded"
    return ""


def _places(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield each value with its dotted key."""
    left: deque[tuple[str, Any]] = deque([("", content)])  # level by level, because a deeper part may hold itself
    while left:
        place, value = left.popleft()
        yield place, value
        if isinstance(value, dict):
            left += [(f"{place}.{str(key)[:60]}" if place else str(key)[:60], entry) for key, entry in value.items()]
        elif isinstance(value, list | tuple):
            left += [(f"{place}[{index}]", entry) for index, entry in enumerate(value)]
