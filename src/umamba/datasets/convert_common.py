"""Convert a public archive to nnU-Net's raw layout: the part that all converters share.

A converter lists the cases of an archive and reads an image and a label. This module writes them atomically, so that an
interrupted conversion continues. It writes dataset.json last, so a folder with this file is complete, and none of its
training images is also a test image.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import SimpleITK as sitk

from umamba.datasets.declared import dataset_json
from umamba.datasets.nnunet_raw import FIRST_CHANNEL
from umamba.io import UserError, atomic_path, exclusive, make_folder, write_image, write_json
from umamba.io.decode import decode
from umamba.io.voice import tracked

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Split = Literal["Tr", "Ts"]
# Organs 1 to 13 in the order of the paper's tables, which is FLARE22's order.
ORGANS = (
    *("liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland"),
    *("left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney"),
)


@dataclass(frozen=True)
class SourceCase:
    """One case of an archive.

    Attributes:
        case_id: its name in the converted dataset.
        split: "Tr" for training, "Ts" for test.
        image: its image file.
        labels: its label files: several if each object has its own, none if it has no label.
    """

    case_id: str
    split: Split
    image: Path
    labels: tuple[Path, ...]


@dataclass(frozen=True)
class Converter:
    """How one public dataset is converted.

    Attributes:
        folder: name of the converted dataset, as U-Mamba's authors published it.
        channel_names: names of the image channels.
        labels: names of the labels 1, 2, ...
        file_ending: ending of the converted images and labels.
        published: number of training and test cases in the paper; None for a dataset that is not in the paper.
        source: where the archive is published.
        licence: licence of the data.
        find: lists the cases in a folder.
        read_image: reads the image of a case.
        read_label: reads the label map of a case from all its label files.
        instances: also copy the label files to instancesTr and instancesTs, for scores of instances.
    """

    folder: str
    channel_names: tuple[str, ...]
    labels: tuple[str, ...]
    file_ending: str
    published: tuple[int, int] | None
    source: str
    licence: str
    find: Callable[[Path], list[SourceCase]]
    read_image: Callable[[Path], sitk.Image]
    read_label: Callable[[tuple[Path, ...]], sitk.Image]
    instances: bool = False


def convert(converter: Converter, source: Path, raw: Path, workers: int) -> Path:
    """Convert an archive to a dataset in nnU-Net's raw layout; files that exist are not converted again.

    Args:
        converter: how to convert it.
        source: folder of the unpacked archive.
        raw: folder of all raw datasets.
        workers: threads.

    Returns:
        The dataset's folder, raw/<converter.folder>.

    Raises:
        UserError: the source holds no training case, a label is missing, a file cannot be read, or an image is both a
            training and a test image.
    """
    if not source.is_dir():
        raise UserError(f"source={source}: no such folder. Unpack the archive and pass its folder.")
    cases = converter.find(source)
    _check_cases(cases, source, converter)
    target = raw / converter.folder
    with exclusive(raw / f".{converter.folder}.lock", f"the conversion of {converter.folder}"):
        for case in cases:
            for kind in ("images", "labels", *(("instances",) if converter.instances else ())):
                make_folder(target / f"{kind}{case.split}")
        written = _in_threads(partial(_write_case, converter, target), cases, workers, "Converting")
        done = len(cases) - sum(written)
        log.info("%s: %d cases converted, %d were converted before.", converter.folder, sum(written), done)
        digests = _in_threads(
            lambda case: content_digest(image_path(converter, target, case)), cases, workers, "Comparing"
        )
        for remark in check_content(dict(zip(cases, digests, strict=True))):
            log.info(remark)
        counts = {split: sum(case.split == split for case in cases) for split in ("Tr", "Ts")}
        for line in count_lines(converter, counts["Tr"], counts["Ts"]):
            log.info(line)
        content = dataset_json(
            converter.channel_names,
            converter.labels,
            counts["Tr"],
            converter.file_ending,
            licence=converter.licence,
            reference=converter.source,
        )
        write_json(target / "dataset.json", content)
    return target


def count_lines(converter: Converter, training: int, test: int) -> list[str]:
    """Compare the number of cases with the paper's, in one line of text per split.

    Args:
        converter: the dataset.
        training: number of training cases found.
        test: number of test cases found.

    Returns:
        The lines; where cases are missing, they say where these are published.
    """
    lines = []
    if converter.published is None:
        return [f"training cases: {training}, test cases: {test}."]
    for name, found, expected in zip(("training", "test"), (training, test), converter.published, strict=True):
        line = f"{name} cases: {found}, the paper has {expected}."
        if found < expected:
            line += f" {expected - found} are missing; they are published at {converter.source}."
        elif found > expected:
            line += " There are more than the paper used."
        lines.append(line)
    return lines


def image_path(converter: Converter, target: Path, case: SourceCase) -> Path:
    """Return the path of a converted image.

    Args:
        converter: the dataset.
        target: the dataset's folder.
        case: the case.
    """
    return target / f"images{case.split}" / f"{case.case_id}{FIRST_CHANNEL}{converter.file_ending}"


def content_digest(path: Path) -> str:
    """Return a hash of an image's size and voxels, which does not depend on name, compression or other headers.

    Args:
        path: the image file.
    """
    image = decode(path)
    total = hashlib.blake2b(repr((image.GetSize(), image.GetNumberOfComponentsPerPixel())).encode(), digest_size=16)
    total.update(sitk.GetArrayViewFromImage(image).tobytes())
    return total.hexdigest()


def check_content(digests: Mapping[SourceCase, str]) -> list[str]:
    """Find equal images.

    Args:
        digests: hash of each case's image.

    Returns:
        A sentence for each image that occurs twice in one split.

    Raises:
        UserError: an image is both a training and a test image.
    """
    by_content: dict[str, list[SourceCase]] = defaultdict(list)
    for case, digest in digests.items():
        by_content[digest].append(case)
    twins = [cases for cases in by_content.values() if len(cases) > 1]
    leaks = [cases for cases in twins if len({case.split for case in cases}) > 1]
    if leaks:
        lines = "\n".join("  " + ", ".join(f"{case.case_id} ({case.split})" for case in cases) for cases in leaks)
        raise UserError(f"The same image is a training and a test image:\n{lines}\nRemove it from one of the two.")
    return [f"The same image occurs twice: {', '.join(case.case_id for case in cases)}." for cases in twins]


def _check_cases(cases: Sequence[SourceCase], source: Path, converter: Converter) -> None:
    training = [case for case in cases if case.split == "Tr"]
    if not training:
        raise UserError(f"source={source}: no training case was found. It is published at {converter.source}.")
    unlabelled = [case.case_id for case in training if not case.labels]
    if unlabelled:
        raise UserError(
            f"source={source}: these training cases have no label: {', '.join(unlabelled[:20])}. Add their labels, "
            "or remove their images."
        )
    names = [(case.split, case.case_id) for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"source={source}: case {twice[0][1]} has several files. Pass the folder of one archive.")


def _write_case(converter: Converter, target: Path, case: SourceCase) -> bool:
    """Write the missing files of a case; return whether its image or label was missing."""
    image = image_path(converter, target, case)
    label = target / f"labels{case.split}" / f"{case.case_id}{converter.file_ending}"
    was_missing = False
    if not image.exists():
        write_image(image, converter.read_image(case.image))
        was_missing = True
    if case.labels and not label.exists():
        write_image(label, converter.read_label(case.labels))
        was_missing = True
    if converter.instances:
        for path in case.labels:
            copy = target / f"instances{case.split}" / f"{case.case_id}_label{path.suffix}"
            if not copy.exists():
                content = path.read_bytes()
                with atomic_path(copy) as temporary:
                    temporary.write_bytes(content)
    return was_missing


def _in_threads(
    function: Callable[[SourceCase], Result], cases: Sequence[SourceCase], workers: int, title: str
) -> list[Result]:
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(tracked(pool.map(function, cases), title, len(cases)))


def by_name(files: Iterable[Path], ending: str) -> dict[str, Path]:
    """Return files by their names without the ending.

    Args:
        files: the files.
        ending: the end of their names, which is removed.
    """
    return {path.name.removesuffix(ending): path for path in sorted(files)}
