"""Trained networks by name: their index, and their files by checksum."""

import hashlib
import json
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from umamba.inference import Predictor
from umamba.inference.checkpoints import find_checkpoints
from umamba.io import UserError
from umamba.records.official import find_checkpoint
from umamba.records.zoo import zoo_sample, zoo_weights
from umamba.runs import predict
from umamba.settings import InvalidSettings, PredictSettings
from umamba.settings.zoo import PACKAGED, zoo_networks

CONTENT = b"weights"


def entry(name: str, content: bytes = CONTENT, url: str | None = None) -> dict[str, Any]:
    return {"file": name, "sha256": hashlib.sha256(content).hexdigest(), "url": url}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of one's own networks."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    monkeypatch.setenv("UMAMBA_ZOO", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def index(folder: Path, *weights: dict[str, Any], **others: Any) -> None:
    network = {"sentence": "Lungs.", "licence": "CC0", "weights": list(weights), **others}
    (folder / "index.json").write_text(json.dumps({"lungs": network}))


def test_the_packaged_index_names_files_that_are_there() -> None:
    for name, network in zoo_networks().items():
        assert (PACKAGED / f"{name}.md").is_file(), "every network has a model card"
        for file in (*network.weights, *([network.sample] if network.sample else [])):
            path = PACKAGED / file.name
            assert path.is_file() or file.url is not None
            if path.is_file():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


def test_files_of_ones_own_folder(own: Path) -> None:
    index(own, entry("a.ckpt"), entry("b.ckpt"), sample=entry("s.png"))
    for name in ("a.ckpt", "b.ckpt", "s.png"):
        (own / name).write_bytes(CONTENT)
    assert zoo_weights(Path("zoo:lungs")) == [own / "a.ckpt", own / "b.ckpt"]
    assert zoo_sample(Path("zoo:lungs")) == own / "s.png"
    assert zoo_weights(own / "a.ckpt") == [own / "a.ckpt"]
    assert find_checkpoints([Path("zoo:lungs")]) == [own / "a.ckpt", own / "b.ckpt"]
    with pytest.raises(UserError, match=r"mean of 2 networks, and this needs one.*a\.ckpt"):
        find_checkpoint(Path("zoo:lungs"))


def test_predict_segments_the_sample(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index(own, entry("a.ckpt"), sample=entry("s.png"))
    for name in ("a.ckpt", "s.png"):
        (own / name).write_bytes(CONTENT)
    segmented = []

    class Stub:
        file_ending, num_channels, models = ".nii.gz", 1, ()

        def predict(self, input: Path, *arguments: Any, **named: Any) -> list[Path]:
            segmented.append(input)
            return []

    monkeypatch.setattr(Predictor, "from_checkpoint", lambda *arguments, **named: Stub())
    predict(PredictSettings(checkpoint=Path("zoo:lungs"), input=Path("zoo:lungs"), output=tmp_path, previews=0))
    assert segmented == [own / "s.png"]


def test_a_changed_file_is_refused(own: Path) -> None:
    index(own, entry("a.ckpt"))
    with pytest.raises(UserError, match=r"a\.ckpt: this file of a trained network is missing"):
        zoo_weights(Path("zoo:lungs"))
    (own / "a.ckpt").write_bytes(b"other")
    with pytest.raises(UserError, match=r"a\.ckpt: is damaged or another file"):
        zoo_weights(Path("zoo:lungs"))
    with pytest.raises(UserError, match="has no sample image"):
        zoo_sample(Path("zoo:lungs"))


def test_a_download_is_kept_only_with_the_right_checksum(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(own, entry("a.ckpt", url="https://example.org/a.ckpt"))
    asked, served = [], [b"other", CONTENT]

    def opened(url: str, timeout: float) -> BytesIO:
        asked.append(url)
        return BytesIO(served.pop(0))

    monkeypatch.setattr(urllib.request, "urlopen", opened)
    with pytest.raises(UserError, match="so it is not used"):
        zoo_weights(Path("zoo:lungs"))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    (kept,) = zoo_weights(Path("zoo:lungs"))
    assert kept.read_bytes() == CONTENT
    assert zoo_weights(Path("zoo:lungs")) == [kept]
    assert asked == ["https://example.org/a.ckpt"] * 2

    def unreachable(url: str, timeout: float) -> BytesIO:
        raise OSError("no network")

    kept.unlink()
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(UserError, match=r"cannot be downloaded \(no network\)\. Download it elsewhere"):
        zoo_weights(Path("zoo:lungs"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"file": "../a.ckpt"},
        {"file": "/a.ckpt"},
        {"sha256": "abc"},
        {"url": "http://example.org/a"},
        {"url": "file:///etc/passwd"},
        {"file": None},
    ],
)
def test_an_index_cannot_choose_a_path(own: Path, wrong: dict[str, Any]) -> None:
    index(own, {**entry("a.ckpt"), **wrong})
    with pytest.raises(UserError, match=r"index\.json: is no index of trained networks"):
        zoo_weights(Path("zoo:lungs"))


def test_unknown_names_are_refused_at_once(own: Path, tmp_path: Path) -> None:
    index(own, entry("a.ckpt"))
    with pytest.raises(InvalidSettings) as caught:
        PredictSettings(checkpoint=Path("zoo:lung"), input=Path("zoo:lungs"), output=tmp_path)
    (problem,) = caught.value.problems
    assert problem.startswith("checkpoint=zoo:lung: there is no trained network of this name, but zoo:")
    assert "Did you mean zoo:lungs?" in problem
    (own / "index.json").write_text("[]")
    with pytest.raises(InvalidSettings, match=r"index\.json"):
        PredictSettings(checkpoint=Path("zoo:lungs"), input=tmp_path, output=tmp_path)
