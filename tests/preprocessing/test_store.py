"""The store: its content, when a new one is made, and how an interrupted preparation continues."""

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from umamba.datasets import dataset_digest, read_dataset
from umamba.io import UserError, read_image, read_label
from umamba.planning import Plan
from umamba.preprocessing import CaseStore, open_store, prepare_store, preprocess_case
from umamba.preprocessing.store import _damaged, _is_whole, chunk_shapes, open_array, write_array

Maker = Callable[..., Plan]


def prepare(raw: Path, plan: Plan, root: Path, workers: int = 1) -> CaseStore:
    """Prepare the dataset with its present content."""
    dataset = read_dataset(raw)
    return prepare_store(dataset, dataset_digest(dataset, None), plan, next(iter(plan.configurations)), root, workers)


@pytest.mark.parametrize("spacing", [(2.0, 0.8, 0.8), (0.8, 0.8)])
def test_stored_cases_are_the_preprocessed_ones(
    raw: Path, tmp_path: Path, make_plan: Maker, spacing: tuple[float, ...]
) -> None:
    plan = make_plan(spacing)
    store = prepare(raw, plan, tmp_path / "out")
    assert store.case_ids == ("a", "b", "c")
    dataset = read_dataset(raw)
    image, label, properties = preprocess_case(
        read_image(dataset.training[1].images),
        read_label(raw / "labelsTr" / "b.nii.gz"),
        plan,
        next(iter(plan.configurations.values())),
        dataset.labels,
        "b",
    )
    assert label is not None
    case = store.load("b")
    assert case.properties == properties
    assert case.image.shape == image.shape
    assert np.array_equal(case.image[:], image)
    assert np.array_equal(case.label[:], label)
    assert np.array_equal(case.image[:, 1:3, 2:9, 4:5], image[:, 1:3, 2:9, 4:5])
    for value in (1, 2):
        voxels = case.foreground[value]
        assert len(voxels) == len(np.unique(voxels, axis=0)) == np.count_nonzero(label == value)
        assert (label[0][tuple(voxels.T)] == value).all()
    assert Plan.from_json(json.loads((store.path / "store.json").read_text())["plan"]) == plan
    opened = open_store(store.path)
    assert (opened.plan, opened.labels) == (plan, dataset.labels)
    assert opened.configuration == next(iter(plan.configurations.values()))


def test_a_store_is_reused_until_its_content_would_change(raw: Path, tmp_path: Path, make_plan: Maker) -> None:
    plan = make_plan((2.0, 1.0, 1.0))
    first = prepare(raw, plan, tmp_path / "out", workers=2)
    before = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    larger = replace(plan.configuration("3d_fullres"), patch_size=(8, 8, 8), batch_size=9)
    assert prepare(raw, replace(plan, configurations={"3d_fullres": larger}), tmp_path / "out").path == first.path
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == before
    assert prepare(raw, make_plan((2.0, 1.5, 1.5)), tmp_path / "out").path != first.path
    label = sitk.ReadImage(str(raw / "labelsTr" / "a.nii.gz"))
    label[7, 7, 3] = 2
    sitk.WriteImage(label, str(raw / "labelsTr" / "a.nii.gz"))
    assert prepare(raw, plan, tmp_path / "out").path != first.path
    assert open_store(first.path) == first


def test_all_cases_that_fail_are_named_and_the_others_kept(raw: Path, tmp_path: Path, make_plan: Maker) -> None:
    for case_id in "ac":
        label = sitk.ReadImage(str(raw / "labelsTr" / f"{case_id}.nii.gz"))
        sitk.WriteImage(label[:-1], str(raw / "labelsTr" / f"{case_id}.nii.gz"))
    with pytest.raises(UserError, match=r"(?s)a_0000.nii.gz: .*differs.*c_0000.nii.gz: .*differs"):
        prepare(raw, make_plan((2.0, 1.0, 1.0)), tmp_path / "out")
    (folder,) = [path for path in (tmp_path / "out" / raw.name).iterdir() if path.is_dir()]
    assert sorted(path.name for path in folder.iterdir()) == ["b.image.b2nd", "b.label.b2nd"]
    with pytest.raises(UserError, match="no complete set"):
        open_store(folder)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 99 GiB"),
        RuntimeError("Exception thrown in SimpleITK:\nx.hxx:179:\nFailed to allocate memory for image."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_case_without_memory_is_named_and_the_others_kept(
    raw: Path, tmp_path: Path, make_plan: Maker, monkeypatch: pytest.MonkeyPatch, error: Exception, workers: int
) -> None:
    def preprocess(*arguments: Any) -> Any:
        if arguments[-1] == "b":
            raise error
        return preprocess_case(*arguments)

    monkeypatch.setattr("umamba.preprocessing.store.preprocess_case", preprocess)
    monkeypatch.setattr("umamba.datasets.parallel._context", lambda function: multiprocessing.get_context("fork"))
    with pytest.raises(UserError) as raised:
        prepare(raw, make_plan((2.0, 1.0, 1.0)), tmp_path / "out", workers)
    said = str(error).splitlines()[-1].rstrip(".")
    remedy = (
        "Give the"
        if workers == 1
        else "Set data.prepare_workers below 3, because each worker holds a case, or give the"
    )
    assert str(raised.value).splitlines()[1:] == [
        f"b: the memory does not suffice ({said}). {remedy} program more memory."
    ]
    (folder,) = [path for path in (tmp_path / "out" / raw.name).iterdir() if path.is_dir()]
    assert sorted(path.name[0] for path in folder.iterdir()) == ["a", "a", "c", "c"]


def test_another_error_of_a_case_is_not_taken_for_a_lack_of_memory(
    raw: Path, tmp_path: Path, make_plan: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def preprocess(*arguments: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("umamba.preprocessing.store.preprocess_case", preprocess)
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        prepare(raw, make_plan((2.0, 1.0, 1.0)), tmp_path / "out")


def test_a_killed_preparation_is_continued(raw: Path, tmp_path: Path, make_plan: Maker) -> None:
    plan = make_plan((2.0, 0.3, 0.3))
    process = multiprocessing.get_context("spawn").Process(target=prepare, args=(raw, plan, tmp_path / "out"))
    process.start()
    limit = time.monotonic() + 60
    while not list((tmp_path / "out").rglob("a.image.b2nd")) and time.monotonic() < limit:
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (done,) = (tmp_path / "out").rglob("a.image.b2nd")
    before = done.stat().st_mtime_ns
    store = prepare(raw, plan, tmp_path / "out")
    assert done.stat().st_mtime_ns == before
    names = sorted(path.name for path in store.path.iterdir())
    assert names == [*(f"{case}.{what}.b2nd" for case in "abc" for what in ("image", "label")), "store.json"]
    whole = prepare(raw, plan, tmp_path / "whole")
    for case_id in "abc":
        assert np.array_equal(store.load(case_id).image[:], whole.load(case_id).image[:])


def test_a_damaged_file_is_named(raw: Path, tmp_path: Path, make_plan: Maker) -> None:
    store = prepare(raw, make_plan((2.0, 1.0, 1.0)), tmp_path / "out")
    (store.path / "a.image.b2nd").write_bytes(b"nothing")
    with pytest.raises(UserError, match="prepared files of a cannot be read"):
        store.load("a")


def test_a_process_forked_after_reading_can_read(tmp_path: Path) -> None:
    """Forked workers read patches, and threads that the parent started do not exist in them."""
    many_blocks = np.random.default_rng(0).random((1, 96, 96, 96), dtype=np.float32)
    write_array(tmp_path / "x.b2nd", many_blocks, False)
    opened = open_array(tmp_path / "x.b2nd")
    assert np.array_equal(opened[:], many_blocks)
    reader = multiprocessing.get_context("fork").Process(target=lambda: opened[:])
    reader.start()
    reader.join(10)
    code = reader.exitcode
    reader.kill()
    assert code == 0


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("shape", [(1, 100, 512, 512), (3, 1, 1000, 900), (4, 5, 6, 7), (1, 300, 20, 20)])
def test_blocks_are_small_and_divide_chunks(shape: tuple[int, ...], flat: bool) -> None:
    chunks, blocks = chunk_shapes(shape, flat)
    assert all(b <= c <= s for b, c, s in zip(blocks, chunks, shape, strict=True))
    assert np.prod(blocks) <= 40_000
    assert blocks[1] == 1 or not flat


def flip_a_bit(path: Path, place: float) -> None:
    """Invert one bit of a file, at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << int(1000 * place) % 8
    path.write_bytes(content)


@pytest.mark.parametrize("place", np.random.default_rng(0).uniform(0, 1, 4))
def test_a_flipped_bit_is_found_and_its_case_prepared_again(
    raw: Path, tmp_path: Path, make_plan: Maker, place: float, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan((2.0, 1.0, 1.0))
    store = prepare(raw, plan, tmp_path / "out")
    expected = {case: (store.load(case).image[:], store.load(case).label[:]) for case in store.case_ids}
    files = sorted(store.path.glob("*.b2nd"))
    flip_a_bit(files[int(1e6 * place) % len(files)], place)
    assert prepare(raw, plan, tmp_path / "out") == store
    assert "damaged on the disk, and prepared again: " in caplog.text
    for case, (image, label) in expected.items():
        assert np.array_equal(store.load(case).image[:], image)
        assert np.array_equal(store.load(case).label[:], label)
    caplog.clear()
    prepare(raw, plan, tmp_path / "out")
    assert not caplog.text, "it is whole again"


@pytest.mark.parametrize("content", ["", "[]", '{"cases": ["a", "b"]}', "\0", '{"cases": ["a"], "plan": {"na'])
def test_a_damaged_list_of_a_store_is_written_again(
    raw: Path, tmp_path: Path, make_plan: Maker, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan((2.0, 0.8, 0.8))
    store = prepare(raw, plan, tmp_path / "out")
    path = store.path / "store.json"
    whole, times = path.read_text(), [file.stat().st_mtime_ns for file in sorted(store.path.glob("*.b2nd"))]
    path.write_text(content)
    with pytest.raises(UserError, match=r"store\.json: .*Delete this file, and prepare the dataset again"):
        open_store(store.path)
    with caplog.at_level("WARNING", logger="umamba"):
        assert prepare(raw, plan, tmp_path / "out") == store
    assert "store.json is damaged" in caplog.text
    assert path.read_text() == whole
    assert [file.stat().st_mtime_ns for file in sorted(store.path.glob("*.b2nd"))] == times


def test_a_store_of_version_0_1_has_no_checksums(raw: Path, tmp_path: Path, make_plan: Maker) -> None:
    plan = make_plan((2.0, 1.0, 1.0))
    store = prepare(raw, plan, tmp_path / "out")
    content = json.loads((store.path / "store.json").read_text())
    del content["checksums"], content["checksum"]
    (store.path / "store.json").write_text(json.dumps(content))
    before = {path: path.stat().st_mtime_ns for path in store.path.iterdir()}
    assert prepare(raw, plan, tmp_path / "out") == store
    assert {path: path.stat().st_mtime_ns for path in store.path.iterdir()} == before


def test_300_flipped_bits_are_found_or_harmless(raw: Path, tmp_path: Path, make_plan: Maker) -> None:
    """A bit of store.json may be flipped in white space; bits of the other files are all found."""
    plan = make_plan((2.0, 1.0, 1.0))
    store = prepare(raw, plan, tmp_path / "out")
    files = sorted(store.path.iterdir())
    lengths = [path.stat().st_size for path in files]
    before = json.loads((store.path / "store.json").read_text())
    rng = np.random.default_rng(1)
    found = harmless = 0
    for number in range(300):
        # As many in store.json as in each of the larger files; places of the others by their lengths.
        path = (
            store.path / "store.json"
            if number % 6 == 0
            else files[rng.choice(len(files), p=np.divide(lengths, sum(lengths)))]
        )
        whole = path.read_bytes()
        place = int(rng.integers(8 * len(whole)))
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        if path.name != "store.json":
            assert _damaged(store, 1) == {path.name.partition(".")[0]}
            found += 1
        elif not _is_whole(store):
            found += 1
        else:
            harmless += 1
            content = json.loads(path.read_text())
            assert {**content, "checksum": 0} == {**before, "checksum": 0}
        path.write_bytes(whole)
    assert found + harmless == 300
    assert found > 290
    print(f"300 flipped bits: {found} found, {harmless} harmless")


@pytest.mark.parametrize("content", [b"", b"{", b"5", b"{}", b'{"cases": 5, "checksum": 0}'])
def test_a_damaged_store_json_is_made_again(raw: Path, tmp_path: Path, make_plan: Maker, content: bytes) -> None:
    plan = make_plan((2.0, 1.0, 1.0))
    store = prepare(raw, plan, tmp_path / "out")
    path = store.path / "store.json"
    before = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"store\.json"):
        open_store(store.path)
    assert prepare(raw, plan, tmp_path / "out") == store
    assert path.read_bytes() == before
