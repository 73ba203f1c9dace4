"""Hostile folders, names and records of runs, given to the commands as a user gives them."""

import contextlib
import csv
import io
import json
import os
import runpy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from umamba.cli.compose import settings_of
from umamba.cli.main import main
from umamba.inference.postprocessing import PostProcessing
from umamba.io import UserError, read_json, read_label
from umamba.planning import Fingerprint, Plan, read_nnunet_plans
from umamba.planning.folds import fold_cases
from umamba.preprocessing import open_store
from umamba.records import RunFolder
from umamba.records.config_file import read_config
from umamba.records.tables import read_curves, read_metrics, read_scores
from umamba.reporting.results import read_published
from umamba.runs import prepare
from umamba.settings import TrainSettings
from umamba.sweeps import read_study

for _name in (
    "cli.planned_runs",
    "cli.predict",
    "datasets.archives",
    "evaluation.evaluate",
    "reporting",
    "runs.prediction",
):
    import_module(f"umamba.{_name}")  # before the processes are forked

Made = Callable[[], None]
_SETTINGS = settings_of(TrainSettings, ["dataset.root=.", "data.prepare_workers=1"])  # composing takes long
_CHECKPOINTS = runpy.run_path(str(Path(__file__).with_name("of_checkpoints.py")))
_NAMES = {
    "up": "../../escaped",
    "absolute": "/tmp/escaped",
    "NUL": "a\0b",
    "device": "CON",
    "long": "x" * 5000,
    "long name of a file": "x" * 240,
    "right to left": "\u202egpj.exe",
    "escape codes": "\x1b[2J\x1b[31mred",
    "line breaks": "a\r\nb",
    "formula": "=cmd|' /C calc'!A0",
    "formula @": "@SUM(1+1)",
    "HTML": "<script>alert(1)</script>",
    "attribute": '" onload="alert(1)',
    "LaTeX": "\\input{/etc/passwd}",
    "markup": "[/bold][link=file:///etc/passwd]x",
    "mathtext": "$\\frac{1}{$",
    "quotes": "a'b\"c`d",
    "spaces": "   ",
    "dots": "..",
    "surrogate": "a\udcffb",
    "emoji": "\U0001f600" * 50,
    "backslash": "..\\..\\escaped",
    "dash": "--help",
    "percent": "%s%n%d{0}{x}",
}


def items() -> list[tuple[str, str, Callable[[Path, Made], str]]]:
    """Return the inputs."""
    found: list[tuple[str, str, Callable[[Path, Made], str]]] = []
    for what, name in _NAMES.items():
        found.append(("name: of a label, predicted", what, partial(_label_name, name)))
        found.append(("name: of a dataset, exported", what, partial(_dataset_name, name)))
        found.append(("name: of a case in dataset.json", what, partial(_listed_case, name)))
        if "/" not in name and "\0" not in name and len(name) < 250 and name not in ("..",):
            found.append(("name: of an image file, predicted", what, partial(_image_name, name)))
            found.append(("name: of a patient, converted", what, partial(_patient, name)))
        found.append(("name: of a case in scores, reported", what, partial(_reported, name)))
    for what, change in _folders():
        found.append(("predict: hostile folder", what, partial(_predict, change)))
        found.append(("evaluate: hostile folder", what, partial(_evaluate, change)))
    for what, facts in _decathlon():
        found.append(("convert: hostile archive", what, partial(_convert, facts)))
    for what, change in _datasets():
        found.append(("prepare: hostile dataset", what, partial(_prepare, change)))
    for file, read in _READERS.items():
        for what, content in _contents(file).items():
            found.append(("records: damaged, foreign", f"{file} {what}", partial(_record, file, read, content)))
    for what, text in _studies():
        found.append(("study: hostile YAML", what, partial(_study, text)))
    return found


def command(*arguments: str) -> str:
    """Run a command; return what it printed. Exit code 2 becomes the UserError that it printed."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(list(arguments))
    text = said.getvalue()
    if code == 2:
        raise UserError(text[text.index("Error: ") + 7 :].strip())
    if code != 0:
        raise RuntimeError(f"exit code {code}: {text}")
    return text


def volume(path: Path, shape: tuple[int, ...] = (3, 20, 24), kind: Any = np.float32, high: int = 100) -> Path:
    """Write a volume of random values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(3).integers(0, high, shape).astype(kind)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    return path


def _checkpoint(box: Path, **changes: Any) -> Path:
    torch.save(_CHECKPOINTS["content"](**changes), box / "net.ckpt")
    return box / "net.ckpt"


def _shown(text: str) -> str:
    """Return what is wrong with text for a terminal; empty if nothing is."""
    wrong = [character for character in text if ord(character) < 32 and character not in "\n\t\r"]
    return f"different: control characters {wrong[:3]} were printed" if wrong else ""


def _cells(folder: Path) -> str:
    """Return what is wrong with tables that were written; empty if nothing is."""
    for path in folder.rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.reader(stream):
                for cell in row:
                    number = cell.replace(".", "").replace("-", "").replace("e", "").replace("+", "").isdigit()
                    if cell.startswith(("=", "+", "@", "-", "\t", "\r")) and not number:
                        return f"different: {path.name} has the formula {cell[:50]}"
    return ""


class _Page(HTMLParser):
    """Collects what could run on a page."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note attributes that run code."""
        self.wrong += [f"{tag} {name}" for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        """Note scripts."""
        if self.lasttag == "script" and "alert(1)" in data:
            self.wrong.append("script")


def _predict_with(box: Path, made: Made, **changes: Any) -> str:
    checkpoint = _checkpoint(box, **changes)
    volume(box / "images" / "a_0000.nii.gz")
    made()
    said = command("predict", f"checkpoint={checkpoint}", f"input={box / 'images'}", f"output={box / 'out'}",
                   "device=cpu", "precision=32-true", "tta=false")  # fmt: skip
    found = read_label(box / "out" / "a.nii.gz").array
    if found.shape != (1, 3, 20, 24):
        return f"different: shape {found.shape}"
    return _shown(said) or _cells(box / "out") or "equal"


def _label_name(name: str, box: Path, made: Made) -> str:
    labels = {"labels": {"background": 0, name: 1, "lesion": 2}, "regions_class_order": None}
    return _predict_with(box, made, labels=labels)


def _dataset_name(name: str, box: Path, made: Made) -> str:
    checkpoint = _checkpoint(box, plan={**_CHECKPOINTS["RECORD"]["plan"], "dataset_name": name})
    made()
    said = command("export", f"checkpoint={checkpoint}", f"output={box / 'out'}")
    (plans,) = (box / "out").rglob("plans.json")
    if plans.relative_to(box / "out").parts[0] != name or read_json(plans)["dataset_name"] != name:
        return "different: another name"
    return _shown(said) or "equal"


def _dataset(box: Path, **changes: Any) -> Path:
    root = box / "Dataset001_Mine"
    for case in ("a", "b"):
        volume(root / "imagesTr" / f"{case}_0000.nii.gz")
        volume(root / "labelsTr" / f"{case}.nii.gz", kind=np.uint8, high=3)
    declared = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(declared))
    return root


def _prepared(root: Path, box: Path) -> str:
    paths = replace(_SETTINGS.paths, **{name: box / "out" / name for name in ("raw", "preprocessed", "runs")})
    prepare(replace(_SETTINGS, dataset=replace(_SETTINGS.dataset, root=root), paths=paths))
    (store,) = (box / "out").rglob("store.json")
    for case in open_store(store.parent).case_ids:
        opened = open_store(store.parent).load(case)
        if opened.image.shape[1:] != opened.label.shape[1:]:
            return "different: image and label of a case"
    return "equal"


def _listed_case(name: str, box: Path, made: Made) -> str:
    entry = {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    other = {"images": ["imagesTr/b_0000.nii.gz"], "label": "labelsTr/b.nii.gz"}
    root = _dataset(box, dataset={name: entry, "b": other})
    made()
    return _prepared(root, box)


def _image_name(name: str, box: Path, made: Made) -> str:
    checkpoint = _checkpoint(box)
    volume(box / "images" / "a_0000.nii.gz")
    os.rename(box / "images" / "a_0000.nii.gz", box / "images" / f"{name}_0000.nii.gz")
    made()
    said = command("predict", f"checkpoint={checkpoint}", f"input={box / 'images'}", f"output={box / 'out'}",
                   "device=cpu", "precision=32-true", "tta=false")  # fmt: skip
    if not (box / "out" / f"{name}.nii.gz").is_file():
        return f"different: {sorted(os.listdir(box / 'out'))}"
    return _shown(said) or _cells(box / "out") or "equal"


def _patient(name: str, box: Path, made: Made) -> str:
    for patient in ("one", "other"):
        volume(box / "source" / patient / "t1.nii.gz")
        volume(box / "source" / patient / "seg.nii.gz", kind=np.uint8, high=3)
    os.rename(box / "source" / "one", box / "source" / name)  # ITK does not write below a name that is no text
    made()
    said = command("convert", "archive=folders", f"source={box / 'source'}", "name=Dataset500_Mine",
                   f"paths.raw={box / 'out'}", "workers=1")  # fmt: skip
    images = sorted((box / "out" / "Dataset500_Mine" / "imagesTr").iterdir())
    same = all(
        np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(path))), _voxels()) for path in images
        if path.name.isascii()
    )  # fmt: skip
    return _shown(said) or ("equal" if len(images) == 2 and same else f"different: {images}")


def _voxels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 100, (3, 20, 24)).astype(np.float32)


def _study_folder(box: Path, text: str | None = None) -> Path:
    (box / "study").mkdir()
    lines = {"question": "Q?", "runs": ["experiment=quickstart name=toy"], "folds": [0], "seeds": [0]}
    (box / "study" / "sweep.yaml").write_text(json.dumps(lines) if text is None else text)
    return box / "study"


def _reported(name: str, box: Path, made: Made) -> str:
    """A finished run whose scores, and a published table, have this name for the case and the label."""
    from umamba.cli.planned_runs import planned_runs
    from umamba.reporting import gather, write_report

    _study_folder(box)
    (run,) = planned_runs(read_study(box, "study"), (f"paths.runs={box / 'runs'}",))
    folder = run.folder.path
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"state": "finished", "max_epochs": 2, "parameters": 12}))
    (folder / "metrics.csv").write_text("epoch,train/loss,time/iteration_s\n0,1.0,2.0\n1,0.5,4.0\n")
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
        csv.writer(stream).writerows([("case", "label", "dsc", "nsd"), (name, name, 0.5, 0.25), ("b", name, 0.5, 0.75)])
    made()
    results = gather("study", f"Is {name} good?", [run], None)
    page = write_report(results, box / "out")
    parser = _Page()
    parser.feed(page.read_text(encoding="utf-8"))
    if parser.wrong:
        return f"different: runs on the page: {parser.wrong[:3]}"
    for path in (box / "out").rglob("*.tex"):
        if "\\input{" in path.read_text(encoding="utf-8"):
            return "different: a LaTeX command"
    return _cells(box / "out") or "equal"


def _folders() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yield changes of the file a.nii.gz (or a_0000.nii.gz) in a folder of sound images."""

    def replace(content: bytes) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            path.write_bytes(content)

        return write

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:200])

    def pipe(path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def link(path: Path) -> None:
        path.unlink()
        path.symlink_to("/dev/zero")

    def loop(path: Path) -> None:
        path.unlink()
        path.symlink_to(path)

    def folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def other_shape(path: Path) -> None:
        volume(path, (2, 5, 6), np.uint8, 3)

    def large_labels(path: Path) -> None:
        sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 20, 24), 4_000_000_000, np.uint32)), str(path))

    def negative(path: Path) -> None:
        sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 20, 24), -5, np.int16)), str(path))

    def nan(path: Path) -> None:
        sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 20, 24), np.nan, np.float32)), str(path))

    def huge_spacing(path: Path) -> None:
        image = sitk.GetImageFromArray(np.zeros((3, 20, 24), np.uint8))
        image.SetSpacing((1e7, 1e7, 1e-7))
        sitk.WriteImage(image, str(path))

    def colours(path: Path) -> None:
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 20, 24, 3), np.uint8), isVector=True), str(path))

    yield from {
        "empty": replace(b""),
        "text": replace(b"not an image, however long this may be" * 10),
        "cut": cut,
        "pipe": pipe,
        "link to a device": link,
        "link to itself": loop,
        "folder": folder,
        "another shape": other_shape,
        "values of 4e9": large_labels,
        "negative values": negative,
        "NaN": nan,
        "spacing of 1e7 and 1e-7": huge_spacing,
        "colours": colours,
    }.items()


def _predict(change: Callable[[Path], None], box: Path, made: Made) -> str:
    """One of two images is hostile: it is refused by name and the other segmented, or both are segmented."""
    checkpoint = _checkpoint(box)
    for case in ("a", "b"):
        volume(box / "images" / f"{case}_0000.nii.gz")
    change(box / "images" / "a_0000.nii.gz")
    made()
    try:
        said = command("predict", f"checkpoint={checkpoint}", f"input={box / 'images'}", f"output={box / 'out'}",
                       "device=cpu", "precision=32-true", "tta=false", "previews=0")  # fmt: skip
    except UserError as error:
        if "a_0000" not in str(error) and "\na: " not in str(error):
            return f"traceback: does not name the image: {error}"
        if not (box / "out" / "b.nii.gz").is_file() and "no regular file" not in str(error):
            return f"different: the sound image was not segmented: {error}"
        raise
    return _shown(said) or "equal"


def _evaluate(change: Callable[[Path], None], box: Path, made: Made) -> str:
    for folder in ("truth", "found"):
        for case in ("a", "b"):
            volume(box / folder / f"{case}.nii.gz", kind=np.uint8, high=3)
    labels = {"labels": {"background": 0, "one": 1, "two": 2}, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    (box / "dataset.json").write_text(json.dumps(labels))
    change(box / "found" / "a.nii.gz")
    made()
    said = command("evaluate", f"predictions={box / 'found'}", f"truth={box / 'truth'}", f"output={box / 'out'}",
                   f"dataset_json={box / 'dataset.json'}", "workers=1")  # fmt: skip
    return _shown(said) or _cells(box / "out") or "equal"


def _decathlon() -> Iterator[tuple[str, dict[str, Any]]]:
    sound = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    yield "sound", {}
    for what, path in {
        "up": "../secret.nii.gz",
        "absolute": "/etc/passwd",
        "deep up": "imagesTr/../../secret.nii.gz",
        "device": "/dev/zero",
        "empty": "",
        "folder": "imagesTr",
        "NUL": "a\0b.nii.gz",
        "long": "x" * 5000,
    }.items():
        yield f"image {what}", {"training": [sound, {"image": path, "label": "./labelsTr/a.nii.gz"}]}
        yield f"label {what}", {"training": [{"image": "./imagesTr/a.nii.gz", "label": path}]}
    of_keys: dict[str, tuple[Any, ...]] = {
        "training": (None, {}, "x", [None], [5], [{"image": 5, "label": 6}], [[]] * 10),
        "test": ("x", [5], ["../secret.nii.gz"]),
        "labels": ({}, [], {"0": "background", "-1": "x"}, {"0": "b", "9" * 5000: "x"}, {"0": "b", "4000000000": "x"}),
        "modality": ({}, "CT", {"0": None}, {"5": "CT"}, {"x": "CT"}),
        "licence": ("\x1b[2J", None, {"a": 1}),
    }
    for key, values in of_keys.items():
        for value in values:
            yield f"{key}={value!r:.40}", {key: value}


def _convert(facts: dict[str, Any], box: Path, made: Made) -> str:
    root = box / "Task77_Toy"
    volume(root / "imagesTr" / "a.nii.gz")
    volume(root / "labelsTr" / "a.nii.gz", kind=np.uint8, high=3)
    volume(box / "secret.nii.gz")
    sound = {
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": [],
        "labels": {"0": "background", "1": "one", "2": "two"},
        "modality": {"0": "CT"},
    }
    (root / "dataset.json").write_text(json.dumps({**sound, **facts}))
    made()
    said = command("convert", "archive=msd", f"source={root}", f"paths.raw={box / 'out'}", "workers=1")
    images = list((box / "out").rglob("*_0000.nii.gz"))
    if [path.name for path in images] != ["a_0000.nii.gz"]:
        return f"different: {images}"
    same = np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(images[0]))), _voxels())
    return _shown(said) or ("equal" if same else "different: voxels")


def _datasets() -> Iterator[tuple[str, Callable[[Path], None]]]:
    def on(name: str, change: Callable[[Path], None], root: Path) -> None:
        change(root / name)

    chosen = ("empty", "cut", "pipe", "link to a device", "another shape", "values of 4e9", "negative values", "NaN",
              "spacing of 1e7 and 1e-7", "colours")  # fmt: skip
    for what, change in _folders():
        if what in chosen:
            yield f"image {what}", partial(on, "imagesTr/a_0000.nii.gz", change)
            yield f"label {what}", partial(on, "labelsTr/a.nii.gz", change)


def _prepare(change: Callable[[Path], None], box: Path, made: Made) -> str:
    root = _dataset(box)
    change(root)
    made()
    return _prepared(root, box)


_PLAIN: Any = _CHECKPOINTS["RECORD"]
_READERS: dict[str, Callable[[Path], Any]] = {
    "dataset.json": lambda path: __import__("umamba.datasets", fromlist=["x"]).read_dataset(path.parent),
    "plans.json": read_nnunet_plans,
    "plan.json": lambda path: Plan.from_json(read_json(path)),
    "fingerprint.json": lambda path: Fingerprint.from_json(read_json(path)),
    "splits_final.json": lambda path: fold_cases(["a", "b"], 0, path),
    "post_processing.json": PostProcessing.read,
    "store.json": lambda path: (open_store(path.parent), open_store(path.parent).plan, open_store(path.parent).labels),
    "run.json": lambda path: (RunFolder(path.parent).status(), RunFolder(path.parent).trained()),
    "config.yaml": read_config,
    "metrics.csv": lambda path: (read_metrics(path), read_curves(path)),
    "scores.csv": read_scores,
    "published.csv": read_published,
}


def _contents(file: str) -> dict[str, bytes]:
    """Return contents that no such file has; each must be refused, or (YAML, run.json) taken for absent."""
    any_file = {
        "binary": bytes(range(256)) * 4,
        "UTF-16": "{}".encode("utf-16"),
        "NUL": bytes(300),
        "empty": b"",
    }
    if file.endswith(".csv"):
        return {
            **any_file,
            "cut": b"case,label,dsc,epoch\na,liver,0.",
            "other columns": b"x,y\n1,2\n",
            "a quote": b'case,label,dsc,epoch\n"a,liver,0.5\n' * 3,
            "1e5 columns": b",".join(b"%d" % number for number in range(100_000)),
            "words for numbers": b"epoch,case,label,dsc\nx,a,b,<script>\n",
            "a field of 1 MB": b"case,label,dsc,epoch\n" + b"x" * 1_000_000,
        }
    return {
        **any_file,
        "list": b"[1, 2]",
        "number": b"5",
        "null": b"null",
        "text": b'"x"',
        "cut": b'{"a": [1, 2',
        "nested 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
        "objects nested 50,000 deep": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "integer of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
        "NaN": b'{"a": NaN}',
        "other keys": b'{"x": 1}',
        "1e5 keys": json.dumps({str(number): number for number in range(100_000)}).encode(),
    }


def _record(file: str, read: Callable[[Path], Any], content: bytes, box: Path, made: Made) -> str:
    (box / file).write_bytes(content)
    made()
    found = read(box / file)
    if file == "config.yaml" or (file == "run.json" and found == ({}, False)):
        return "equal"
    if file.endswith(".csv"):
        text = repr(found)
        return "different: numbers that are not there" if "0.9" in text else "equal"
    return (
        "equal"
        if file == "run.json" and isinstance(json.loads(content), dict)
        else f"different: read as {found!r:.100}"
    )


def _studies() -> Iterator[tuple[str, str]]:
    sound = "question: Q?\nruns: [name=toy]\nfolds: [0]\nseeds: [0]\n"
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
    )
    yield from {
        "object": "question: !!python/object/apply:os.system ['touch $HOSTILE_MARK']\n" + sound[13:],
        "object new": "!!python/object/new:os.system [touch x]",
        "name": sound.replace("Q?", "!!python/name:os.system"),
        "module": sound.replace("Q?", "!!python/module:antigravity"),
        "billion laughs": laughs + sound,
        "anchor of itself": "question: &x [*x]\n" + sound[13:],
        "deep": "question: " + "[" * 3000 + "]" * 3000 + "\n" + sound[13:],
        "tabs": "\tquestion: x",
        "interpolation": sound.replace("Q?", "${oc.env:HOME}"),
        "resolver": sound.replace("Q?", "${oc.decode:x}").replace("name=toy", "${a}"),
        "folds": sound.replace("[0]", "[9]", 1),
        "folds of text": sound.replace("[0]", "['../x']", 1),
        "seeds": sound.replace("seeds: [0]", "seeds: [-1]"),
        "seeds of 1e30": sound.replace("seeds: [0]", f"seeds: [{10**30}]"),
        "runs with a quote": sound.replace("[name=toy]", '["name=\'toy"]'),
        "runs of numbers": sound.replace("[name=toy]", "[5, null]"),
        "runs leave the folder": sound.replace("[name=toy]", "[name=../../x]"),
        "twice": sound + sound,
        "binary": "\x00\x01",
        "list": "[1]",
        "empty": "",
    }.items()


def _study(text: str, box: Path, made: Made) -> str:
    from umamba.cli.planned_runs import planned_runs

    _study_folder(box, text)
    made()
    study = read_study(box, "study")
    runs = planned_runs(study, (f"paths.runs={box / 'out'}",))
    outside = [run for run in runs if not run.folder.path.resolve().is_relative_to(box / "out")]
    return f"escaped: {outside[0].folder.path}" if outside else "equal"
