"""A fuzz target for each reader of foreign bytes: whatever the bytes, one UserError or a value, and nothing else.

hypothesis changes sound files and those of the corpus (make_corpus.py); the examples are the same in every run. A file
that breaks a reader belongs into the corpus.
"""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from umamba.inference.postprocessing import PostProcessing
from umamba.io import UserError, read_image, read_json
from umamba.io.image import voxel_count
from umamba.labels import LabelSet
from umamba.planning import Fingerprint, Plan
from umamba.planning.folds import fold_cases
from umamba.records.checkpoint import load_safely
from umamba.records.tables import read_curves, read_scores

HERE = Path(__file__).parent
CORPUS = sorted((HERE / "corpus").iterdir())
EXAMPLES = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(("put", "insert", "delete", "cut", "repeat")),
        st.floats(0, 1),
        st.one_of(
            st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff\xff\xff\xff", bytes(4), b"\x7f", b"-1", b"nan"])
        ),
    ),
    min_size=1,
    max_size=4,
)


def edited(content: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """Return bytes after some edits; places are shares of the length."""
    for kind, share, data in edits:
        at = int(share * len(content))
        if kind == "put":
            content = content[:at] + data + content[at + len(data) :]
        elif kind == "insert":
            content = content[:at] + data + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + len(data) :]
        elif kind == "cut":
            content = content[:at]
        else:
            content = content + content[:at]
    return content


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    """Return what was read and an empty message, or None and the message of the UserError."""
    try:
        return read(), ""
    except UserError as error:
        assert len(str(error)) > 10  # noqa: PT017
        return None, str(error)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_each_file_of_the_corpus_is_refused_in_one_sentence(path: Path, refusal: Callable[[Path], str]) -> None:
    refusal(path)
    voxel_count([path])


def test_the_corpus_is_what_its_script_makes() -> None:
    made = runpy.run_path(str(HERE / "make_corpus.py"))["files"]()
    assert {path.name for path in CORPUS} == made.keys()
    packed = (".gz", ".png", "bomb.nrrd")  # another zlib packs the same into other bytes
    assert [
        path.name for path in CORPUS if not path.name.endswith(packed) and path.read_bytes() != made[path.name]
    ] == []
    assert sum(map(len, made.values())) < 100_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """Return beginnings by the ending of their files: sound ones of fuzz.py, and those of the corpus."""
    fuzz, found = runpy.run_path(str(HERE / "fuzz.py")), dict[str, list[bytes]]()
    for path in CORPUS:
        found.setdefault("".join(path.suffixes), []).append(path.read_bytes())
    for container in fuzz["CONTAINERS"]:
        folder = tmp_path_factory.mktemp(container)
        geometry = fuzz["geometry_of"]("oblique")
        path, *_ = fuzz["_WRITERS"][container](np.random.default_rng(4), folder, container, "u2", "<", geometry)
        path = next(path.iterdir()) if path.is_dir() else path
        ending = "".join(path.suffixes).lower()
        found.setdefault(ending, []).append(path.read_bytes())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending",
    [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".tif", ".png", ".bmp", ".dcm"],
)
def test_images(ending: str, sound: dict[str, list[bytes]], tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"

    @EXAMPLES
    @given(beginning=st.sampled_from(sound[ending]), edits=EDITS)
    def target(beginning: bytes, edits: list[tuple[str, float, bytes]]) -> None:
        path.write_bytes(edited(beginning, edits))
        voxel_count([path])
        image, said = attempt(lambda: read_image([path], time_is_channels=True))
        assert "\n" not in said
        assert str(path) in said if image is None else np.isfinite(image.array).all()

    target()


@pytest.mark.slow
def test_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.arange(6.0)}, "umamba": {"format": 1}, "epoch": 3}, path)
    beginning = path.read_bytes()

    @EXAMPLES
    @given(edits=EDITS)
    def target(edits: list[tuple[str, float, bytes]]) -> None:
        path.write_bytes(edited(beginning, edits))
        content, said = attempt(lambda: load_safely(path))
        assert str(path) in said if said else torch.equal(content["state_dict"]["a"], torch.arange(6.0))

    target()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
RECORDS: dict[str, Callable[[Path], Any]] = {
    "plan": lambda path: Plan.from_json(read_json(path)),
    "fingerprint": lambda path: Fingerprint.from_json(read_json(path)),
    "labels": lambda path: LabelSet.from_json(read_json(path)),
    "splits": lambda path: fold_cases(["a", "b"], 0, path),
    "post_processing": PostProcessing.read,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDS)
def test_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    sound = {
        "splits": [{"train": ["a"], "val": ["b"]}],
        "post_processing": {"keep_largest_component": [[1]]},
        "labels": {"background": 0, "a": 1, "b": [1, 2]},
    }
    beginning = json.dumps(sound.get(name, {"spacings": [[1, 1, 1]], "shapes_after_crop": [[5, 5, 5]]})).encode()
    texts = st.one_of(
        JSON.map(lambda value: json.dumps(value).encode()),
        EDITS.map(lambda edits: edited(beginning, edits)),
        st.binary(max_size=60),
    )

    @EXAMPLES
    @given(content=texts)
    def target(content: bytes) -> None:
        path.write_bytes(content)
        attempt(lambda: RECORDS[name](path))

    target()


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_scores, read_curves])
def test_tables(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    beginning = b"case,label,epoch,dsc,nsd\na,liver,0,0.5,0.25\nb,=1+1,1,nan,\n"

    @EXAMPLES
    @given(content=st.one_of(EDITS.map(lambda edits: edited(beginning, edits)), st.binary(max_size=60)))
    def target(content: bytes) -> None:
        path.write_bytes(content)
        _, said = attempt(lambda: read(path))
        assert not said or str(path) in said

    target()
