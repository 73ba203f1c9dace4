"""Small tables that people write: which cells are read, with which line, and what is refused."""

from pathlib import Path

import pytest

from umamba.io import UserError
from umamba.io.rows import find_columns, read_columns


def test_columns_are_found_whatever_their_order_with_the_line_of_each_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbf\nage; b ;a\r\n\r\n1;"x;y"; z \r\n\n2\n3;"two\nlines";w;more\n')
    assert read_columns(path, ("a", "b"), ",;") == [(4, ("z", "x;y")), (6, ("", "")), (8, ("w", "two\nlines"))]
    assert find_columns(path, ("a", "c"), ",;") is None
    assert find_columns(path, ("a", "b"), ",") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,c\n1,2\n", r"must name the columns: a,b \(separated by a comma\)\. Ask for it\."),
        (b"a,b,a\n1,2,3\n", "must name the columns"),
        (b"\n", "must name the columns"),
        (b"a,b\n\xfc,2\n", "byte 4 is no UTF-8"),
        (b"a,b\n1,\x002\n", "zero bytes"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
        (b"a,b\n" + b"x" * 200_000 + b",2\n", "cannot be read as a table"),
        (b"a,b\n" * (5 << 20), "far more than such a file needs"),
    ],
)
def test_what_is_no_such_table_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"t\.csv: .*{said}"):
        read_columns(tmp_path / "t.csv", ("a", "b"), remedy="Ask for it.")


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match=f"{path}: "):
            read_columns(path, ("a",))
