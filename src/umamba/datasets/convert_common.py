"""From a public archive to nnU-Net's raw layout: what all converters share.

A converter says which cases an archive holds and how one image and one label are read; this module writes them, each
file whole or not at all, so that an interrupted conversion continues. dataset.json comes last: a folder that has it is
complete, and no image of its training set stands in its test set.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import SimpleITK as sitk
from rich.console import Console
from rich.progress import Progress

from umamba.io import UserError, atomic_path, exclusive, write_json
from umamba.io.decode import decode

Result = TypeVar("Result")
Split = Literal["Tr", "Ts"]
# Organs 1 to 13 in the order of the paper's tables, which is FLARE22's own.
ORGANS = (
    *("liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland"),
    *("left adrenal gland", "gallbladder", "esophagus", "stomach", "duodenum", "left kidney"),
)


@dataclass(frozen=True)
class SourceCase:
    """One case of an archive.

    Attributes:
        case_id: its name in the new data set.
        split: Tr or Ts.
        image: its file.
        labels: its label files, several where each object has its own; empty if it has none.
    """

    case_id: str
    split: Split
    image: Path
    labels: tuple[Path, ...]


@dataclass(frozen=True)
class Converter:
    """How one public data set is converted.

    Attributes:
        folder: name of the new data set, as the authors of U-Mamba published it.
        channel_names: of the images.
        labels: names, in the order of their values from 1 on.
        file_ending: of images and labels.
        published: training and test cases of the paper; None: it has none of these.
        source: where each part is published.
        licence: of the data.
        find: lists the cases below a folder.
        read_image, read_label: read one case's image, and its label from all its label files.
        instances: also keep the label files as they are (instancesTr, instancesTs), for scores of instances.
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
    """Convert an archive's folder into raw/<folder> and return it; what is already there is not converted again.

    Raises:
        UserError: the source holds no training case, a label is missing, a file cannot be read, or the same image
            stands in training and test.
    """
    if not source.is_dir():
        raise UserError(f"source={source}: no such folder. Unpack the archive and pass its folder.")
    cases = converter.find(source)
    _check_cases(cases, source, converter)
    target = raw / converter.folder
    console = Console(soft_wrap=True)
    with exclusive(raw / f".{converter.folder}.lock", f"the conversion of {converter.folder}"):
        for case in cases:
            for kind in ("images", "labels", *(("instances",) if converter.instances else ())):
                (target / f"{kind}{case.split}").mkdir(parents=True, exist_ok=True)
        written = _over_cases(partial(_write_case, converter, target), cases, workers, "Converting")
        console.print(f"{converter.folder}: {sum(written)} cases converted, {len(cases) - sum(written)} were there.")
        digests = _over_cases(
            lambda case: content_digest(image_path(converter, target, case)), cases, workers, "Comparing"
        )
        for remark in check_content(dict(zip(cases, digests, strict=True))):
            console.print(remark)
        counts = {split: sum(case.split == split for case in cases) for split in ("Tr", "Ts")}
        for line in count_lines(converter, counts["Tr"], counts["Ts"]):
            console.print(line)
        write_json(target / "dataset.json", dataset_json(converter, counts["Tr"]))
    return target


def dataset_json(converter: Converter, num_training: int) -> dict[str, object]:
    """Return the dataset.json of a converted data set."""
    return {
        "channel_names": {str(index): name for index, name in enumerate(converter.channel_names)},
        "labels": {"background": 0} | {name: value for value, name in enumerate(converter.labels, start=1)},
        "numTraining": num_training,
        "file_ending": converter.file_ending,
        "licence": converter.licence,
        "reference": converter.source,
    }


def count_lines(converter: Converter, training: int, test: int) -> list[str]:
    """Return what was found beside the published numbers, and where what is missing is published."""
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
    """Return where the image of a case goes."""
    return target / f"images{case.split}" / f"{case.case_id}_0000{converter.file_ending}"


def content_digest(path: Path) -> str:
    """Return a hash of an image's voxels and size; names, compression and headers do not matter."""
    image = decode(path)
    total = hashlib.blake2b(repr((image.GetSize(), image.GetNumberOfComponentsPerPixel())).encode(), digest_size=16)
    total.update(sitk.GetArrayViewFromImage(image).tobytes())
    return total.hexdigest()


def check_content(digests: Mapping[SourceCase, str]) -> list[str]:
    """Return remarks on images that stand twice in one split.

    Raises:
        UserError: an image stands in training and test.
    """
    by_content: dict[str, list[SourceCase]] = defaultdict(list)
    for case, digest in digests.items():
        by_content[digest].append(case)
    twins = [cases for cases in by_content.values() if len(cases) > 1]
    leaks = [cases for cases in twins if len({case.split for case in cases}) > 1]
    if leaks:
        lines = "\n".join("  " + ", ".join(f"{case.case_id} ({case.split})" for case in cases) for cases in leaks)
        raise UserError(f"The same image stands in training and test:\n{lines}\nTake it out of one of the two.")
    return [f"The same image stands twice: {', '.join(case.case_id for case in cases)}." for cases in twins]


def _check_cases(cases: Sequence[SourceCase], source: Path, converter: Converter) -> None:
    training = [case for case in cases if case.split == "Tr"]
    if not training:
        raise UserError(f"source={source}: no training case was found. It is published at {converter.source}.")
    unlabelled = [case.case_id for case in training if not case.labels]
    if unlabelled:
        raise UserError(f"source={source}: these training cases have no label: {', '.join(unlabelled[:20])}.")
    names = [(case.split, case.case_id) for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"source={source}: several files for case {twice[0][1]}. Pass the folder of one archive.")


def _write_case(converter: Converter, target: Path, case: SourceCase) -> bool:
    """Write what a case lacks; return whether it lacked anything."""
    image = image_path(converter, target, case)
    label = target / f"labels{case.split}" / f"{case.case_id}{converter.file_ending}"
    lacks = False
    if not image.exists():
        _write(image, converter.read_image(case.image))
        lacks = True
    if case.labels and not label.exists():
        _write(label, converter.read_label(case.labels))
        lacks = True
    if converter.instances:
        for path in case.labels:
            copy = target / f"instances{case.split}" / f"{case.case_id}_label{path.suffix}"
            if not copy.exists():
                with atomic_path(copy) as temporary:
                    temporary.write_bytes(path.read_bytes())
    return lacks


def _write(path: Path, image: sitk.Image) -> None:
    with atomic_path(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def _over_cases(
    function: Callable[[SourceCase], Result], cases: Sequence[SourceCase], workers: int, title: str
) -> list[Result]:
    with (
        Progress(console=Console(stderr=True), transient=True) as progress,
        ThreadPoolExecutor(max(1, workers)) as pool,
    ):
        return list(progress.track(pool.map(function, cases), total=len(cases), description=title))


def by_name(files: Iterable[Path], ending: str) -> dict[str, Path]:
    """Return files by their names without the ending."""
    return {path.name.removesuffix(ending): path for path in sorted(files)}
