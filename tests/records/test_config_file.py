"""YAML of others: read within bounds and by omegaconf's rules, or refused in one sentence."""

from pathlib import Path

import pytest

from umamba.io import UserError
from umamba.records.config_file import read_config, read_yaml

YAML_BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (YAML_BOMB, r"line 2 holds an alias"),
        ("[" * 100_000, "more than 64 deep"),
        ("a: [1, 2", "not a valid YAML file"),
        ("a: 1\na: 2", "not a valid YAML file"),
        ("a: !!python/object/apply:os.system ['true']", "not a valid YAML file"),
        ("a: .nan", "a: holds nan"),
        ("a: ${", "not a valid YAML file"),
        ("\0", "not a valid YAML file"),
        ("a: " + "9" * 5000, "not a valid YAML file|integer"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as raised:
        read_yaml(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_yaml_is_read_by_omegaconfs_rules(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("lr: 1e-5\nname: ${oc.env:HOME}\nlist: [1, yes, null]\n")
    assert read_yaml(path) == {"lr": 1e-5, "name": "${oc.env:HOME}", "list": [1, True, None]}
    path.write_text("\n")
    assert read_yaml(path) is None


def test_a_config_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert read_config(tmp_path / "config.yaml") is None
    for text in ("", "a: [1", "[1, 2]", "3", YAML_BOMB, "\0"):
        (tmp_path / "config.yaml").write_text(text)
        assert read_config(tmp_path / "config.yaml") is None
    with (tmp_path / "config.yaml").open("wb") as stream:
        stream.truncate(2 << 30)
    assert read_config(tmp_path / "config.yaml") is None
