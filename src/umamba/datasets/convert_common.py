"""Convert a public archive to nnU-Net's raw layout: the part that all converters share.

A converter lists the cases of an archive and reads an image and a label. This module writes them atomically, so that an
interrupted conversion continues. It writes dataset.json last, so a folder with this file is complete, and none of its
training images is also a test image. A file of an earlier conversion is kept only if it was made from the same files in
the same way (see `made_from`).
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import SimpleITK as sitk

from umamba.datasets.declared import dataset_json
from umamba.datasets.made_from import begin, origin
from umamba.io import UserError, below, exclusive, make_folder, read_json, write_image, write_json
from umamba.io.decode import decode
from umamba.io.voice import tracked

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Item = TypeVar("Item")
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
        images: its image files: several if each channel has its own.
        labels: its label files: several if each object has its own, none if it has no label.
        group: what it shares with other cases, such as the patient; empty: nothing.
    """

    case_id: str
    split: Split
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    group: str = ""


@dataclass(frozen=True)
class Converter:
    """How one public dataset is converted.

    Attributes:
        folder: name of the converted dataset, as U-Mamba's authors published it.
        channel_names: names of the image channels.
        labels: names of the labels 1, 2, ...
        file_ending: ending of the converted images and labels.
        published: number of training and test cases in the paper; None for a dataset that is not in the paper.
        source: where the archive is published; empty for a dataset of the user's.
        licence: licence of the data.
        made_with: everything but the source files that decides what the converted files hold: the archive's kind, the
            label values in their order, a crop. Plain values. If it changes, the cases are converted again.
        find: lists the cases in a folder.
        read_image: reads an image file of a case; a 4D image has the channels along its last axis.
        read_label: reads the label map of a case from all its label files.
        read_instances: reads the numbered instances of a case from all its label files; they are also written to
            instancesTr and instancesTs, for scores of instances. None: the labels are no instances.
        channel_files: number of image files of a converted case: 1, or one for each channel.
    """

    folder: str
    channel_names: tuple[str, ...]
    labels: tuple[str, ...]
    file_ending: str
    published: tuple[int, int] | None
    source: str
    licence: str
    made_with: Mapping[str, Any]
    find: Callable[[Path], list[SourceCase]]
    read_image: Callable[[Path], sitk.Image]
    read_label: Callable[[tuple[Path, ...]], sitk.Image]
    read_instances: Callable[[tuple[Path, ...]], sitk.Image] | None = None
    channel_files: int = 1


def convert(converter: Converter, source: Path, raw: Path, workers: int) -> Path:
    """Convert an archive to a dataset in nnU-Net's raw layout.

    Files of an earlier conversion that were made from the same source files in the same way are kept. Its other files
    are replaced, or removed if the source no longer has their case.

    Args:
        converter: how to convert it.
        source: folder of the unpacked archive.
        raw: folder of all raw datasets.
        workers: threads.

    Returns:
        The dataset's folder, raw/<converter.folder>.

    Raises:
        UserError: the source holds no training case, a label is missing, two labels have one name, a file cannot be
            read, an image is both a training and a test image, or the dataset's folder holds files of unknown origin.
    """
    if not source.is_dir():
        raise UserError(f"source={source}: no such folder. Unpack the archive and pass its folder.")
    cases = converter.find(source)
    _check_cases(cases, source, converter)
    counts = {split: sum(case.split == split for case in cases) for split in ("Tr", "Ts")}
    content = _content(converter, cases, counts["Tr"], source)
    target = below(raw, converter.folder)
    files = planned_files(converter, target, cases)
    with exclusive(raw / f".{converter.folder}.lock", f"the conversion of {converter.folder}"):
        begin(target, files)
        for case in cases:
            for kind in ("images", "labels", *(("instances",) if converter.read_instances else ())):
                make_folder(target / f"{kind}{case.split}")
        written = in_threads(partial(_write_case, converter, target), cases, workers, "Converting")
        done = len(cases) - sum(written)
        log.info("%s: %d cases converted, %d were converted before.", converter.folder, sum(written), done)
        channels = range(converter.channel_files)
        digests = in_threads(
            lambda case: content_digest(*(image_path(converter, target, case, channel) for channel in channels)),
            *(cases, workers, "Comparing"),
        )
        for remark in check_content(dict(zip(cases, digests, strict=True))):
            log.info(remark)
        for line in count_lines(converter, counts["Tr"], counts["Ts"]):
            log.info(line)
        path = target / "dataset.json"
        if not path.exists() or read_json(path) != content:  # its time tells when the conversion was complete
            write_json(path, content)
    return target


def _content(converter: Converter, cases: Sequence[SourceCase], training: int, source: Path) -> dict[str, Any]:
    """Return the content of dataset.json."""
    facts = {"licence": converter.licence, "reference": converter.source}
    facts = {name: text for name, text in facts.items() if text}
    try:
        content = dataset_json(converter.channel_names, converter.labels, training, converter.file_ending, **facts)
    except UserError as error:
        raise UserError(f"source={source}: {error}") from None
    groups = {case.case_id: case.group for case in cases if case.group and case.split == "Tr"}
    if len(set(groups.values())) < len(groups):
        content["groups"] = groups
    return content


def planned_files(converter: Converter, target: Path, cases: Sequence[SourceCase]) -> dict[str, str]:
    """Return the files that a conversion writes, below the dataset's folder, and what each is made from (`origin`).

    Args:
        converter: how it is converted.
        target: the dataset's folder.
        cases: the cases of the archive.

    Raises:
        UserError: a case's name cannot be a file name, or a source file does not exist.
    """
    files: dict[Path, str] = {}
    for case in cases:
        images, label, instances = _paths(converter, target, case)
        files |= dict.fromkeys(images, origin(converter.made_with, case.images))
        if case.labels:
            made = origin(converter.made_with, case.labels)
            files |= {path: made for path in (label, instances) if path is not None}
    return {path.relative_to(target).as_posix(): made for path, made in files.items()}


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


def image_path(converter: Converter, target: Path, case: SourceCase, channel: int = 0) -> Path:
    """Return the path of a converted image.

    Args:
        converter: the dataset.
        target: the dataset's folder.
        case: the case.
        channel: number of the channel.

    Raises:
        UserError: the case's name cannot be a file name.
    """
    return below(target, f"images{case.split}", f"{case.case_id}_{channel:04d}{converter.file_ending}")


def content_digest(*paths: Path) -> str:
    """Return a hash of an image's size and voxels, which does not depend on name, compression or other headers.

    Args:
        paths: its files, one for each channel or one of all.
    """
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        image = decode(path)
        total.update(repr((image.GetSize(), image.GetNumberOfComponentsPerPixel())).encode())
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
        published = f" It is published at {converter.source}." if converter.source else ""
        raise UserError(f"source={source}: no training case was found.{published}")
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
    images, label, instances = _paths(converter, target, case)
    was_missing = False
    if not all(image.exists() for image in images):
        for image, channel in zip(images, _channels(converter, case), strict=True):
            write_image(image, channel)
        was_missing = True
    if case.labels and not label.exists():
        write_image(label, converter.read_label(case.labels))
        was_missing = True
    if converter.read_instances and instances and case.labels and not instances.exists():
        write_image(instances, converter.read_instances(case.labels))
    return was_missing


def _paths(converter: Converter, target: Path, case: SourceCase) -> tuple[list[Path], Path, Path | None]:
    """Return the files of a case: images, label map, and numbered instances if the converter writes them."""
    images = [image_path(converter, target, case, channel) for channel in range(converter.channel_files)]
    label = below(target, f"labels{case.split}", f"{case.case_id}{converter.file_ending}")
    if converter.read_instances is None:
        return images, label, None
    return images, label, below(target, f"instances{case.split}", f"{case.case_id}_label.tiff")


def _channels(converter: Converter, case: SourceCase) -> list[sitk.Image]:
    """Return the images of a case that are written to a file each."""
    channels = []
    for path in case.images:
        image = converter.read_image(path)
        if image.GetDimension() == 4 and image.GetNumberOfComponentsPerPixel() == 1:
            channels += [image[..., index] for index in range(image.GetSize()[3])]
        else:
            channels.append(image)
    if len(channels) != converter.channel_files:
        expected = f"{converter.channel_files} ({', '.join(converter.channel_names)})"
        found = f"{len(channels)} channel{'' if len(channels) == 1 else 's'}"
        raise UserError(f"{case.images[0]}: the case has {found}, but must have {expected}.")
    return channels


def in_threads(function: Callable[[Item], Result], cases: Sequence[Item], workers: int, title: str) -> list[Result]:
    """Return function(case) for each case, in their order.

    Args:
        function: called in threads.
        cases: the cases.
        workers: threads.
        title: text of the progress bar, which appears if messages are shown.
    """
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(tracked(pool.map(function, cases), title, len(cases)))


def by_name(files: Iterable[Path], ending: str) -> dict[str, Path]:
    """Return files by their names without the ending.

    Args:
        files: the files.
        ending: the end of their names, which is removed.
    """
    return {path.name.removesuffix(ending): path for path in sorted(files)}
