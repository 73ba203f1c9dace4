"""Hostile checkpoints and results folders: code, bombs, cut files, flipped bits, other shapes, tampered records."""

import copy
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from umamba.inference import Predictor, export_to_nnunet
from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.networks import build_network
from umamba.planning import Configuration, Intensity, Plan
from umamba.records import read_checkpoint
from umamba.records.share import share_checkpoint
from umamba.training.pretrained import load_pretrained

Made = Callable[[], None]
_CONFIGURATION = Configuration(
    name="2d",
    spacing=(1.2, 1.1),
    median_shape=(40.0, 50.0),
    patch_size=(16, 16),
    batch_size=2,
    batch_dice=False,
    normalization=("CTNormalization",),
    use_mask_for_norm=(False,),
    strides=((1, 1), (2, 2)),
    kernel_sizes=((3, 3),) * 2,
    features_per_stage=(4, 6),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
    residual_encoder=False,
)
_PLAN = Plan(
    dataset_name="Dataset901_Hostile",
    rules="nnunet",
    transpose_forward=(0, 1, 2),
    transpose_backward=(0, 1, 2),
    median_spacing=(3.0, 1.2, 1.1),
    median_shape=(20.0, 40.0, 50.0),
    intensity=(Intensity(20.0, 20.0, 60.0, -500.0, 500.0, -90.0, 140.0),),
    configurations={"2d": _CONFIGURATION},
)
RECORD: dict[str, Any] = {
    "format": 1,
    "plan": _PLAN.to_json(),
    "configuration": "2d",
    "architecture": {"name": "unet"},
    "labels": {"labels": {"background": 0, "organ": 1, "lesion": 2}, "regions_class_order": None},
    "channel_names": ["CT"],
    "file_ending": ".nii.gz",
    "orientations": ["LPS"],
    "recipe": {},
    "pretrained": None,
    "mirror_axes": [0, 1],
    "provenance": {"umamba": "1.0", "git": None},
    "fingerprint_hash": "0123abcd",
    "scores": {"ema_patch_dice": 0.5},
}
DATASET = {"channel_names": {"0": "CT"}, "labels": RECORD["labels"]["labels"], "file_ending": ".nii.gz"}


def weights() -> dict[str, torch.Tensor]:
    """Return the weights of a small network, always the same."""
    torch.manual_seed(0)
    return build_network("unet", _CONFIGURATION, 1, 3).state_dict()


def content(**changes: Any) -> dict[str, Any]:
    """Return the content of a sound checkpoint, or of one with other entries in its record."""
    state = {f"network.{name}": value for name, value in weights().items()}
    return {"umamba": json.loads(json.dumps({**RECORD, **changes})), "state_dict": state, "epoch": 3}


class Runs:
    """Runs a function when it is unpickled; the functions here make the file that the test looks for."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.made


_CODE = "__import__('pathlib').Path(__import__('os').environ['HOSTILE_MARK']).touch()"


def items() -> list[tuple[str, str, Callable[[Path, Made], str]]]:
    """Return the inputs."""
    found: list[tuple[str, str, Callable[[Path, Made], str]]] = []
    for name, write in _code():
        found.append(("checkpoint: code inside", name, partial(_checkpoint, write)))
    for name, write in _damaged():
        found.append(("checkpoint: cut, bombs, other archives", name, partial(_checkpoint, write)))
    for number in range(40):
        found.append(("checkpoint: flipped bits", f"{number:03d}", partial(_checkpoint, partial(_flip, number))))
    for name, write in _shapes():
        found.append(("checkpoint: weights that do not fit", name, partial(_checkpoint, write)))
    for name, changes in _records():
        found.append(("checkpoint: tampered record", name, partial(_tampered, changes)))
    for name, change in _results():
        found.append(("results folder of nnU-Net", name, partial(_official, change)))
    return found


def _checkpoint(write: Callable[[Path], None], box: Path, made: Made) -> str:
    """Predict with it, and fine-tune it; what is accepted must be the weights of the sound checkpoint."""
    path = box / "last.ckpt"
    write(path)
    made()
    expected, said = weights(), []
    for read in (_build, _tune):
        try:
            found = read(path)
        except UserError as error:
            said.append(error)
            continue
        if found.keys() != expected.keys():
            return "different: other weights"
        if not all(torch.equal(found[name], value) for name, value in expected.items()):
            return "different: values of weights"
    if said:
        raise said[0]
    return "equal"


def _build(path: Path) -> Mapping[str, torch.Tensor]:
    return Predictor.from_checkpoint(path, device="cpu", precision="32-true").models[0].network.state_dict()


def _tune(path: Path) -> Mapping[str, torch.Tensor]:
    network, labels = build_network("unet", _CONFIGURATION, 1, 3), LabelSet(("organ", "lesion"), ((1,), (2,)))
    load_pretrained(path, network, lambda classes: build_network("unet", _CONFIGURATION, 1, classes), labels)
    return network.state_dict()


def _tampered(changes: Mapping[str, Any], box: Path, made: Made) -> str:
    """Build, share and export; a record that is accepted must be kept as it was written."""
    path = box / "last.ckpt"
    written = content()
    for place, value in changes.items():
        _put(written["umamba"], place, value)
    torch.save(written, path)
    made()
    record = read_checkpoint(path).record
    _build(path)
    share_checkpoint(path, box / "out" / "shared.ckpt")
    export_to_nnunet(path, box / "out" / "results")
    ours, given = record.to_json(), written["umamba"]
    for content_of in (ours, given):  # numbers become text where text is due; without regions they have no order
        content_of["file_ending"] = str(content_of["file_ending"])
        content_of["plan"]["dataset_name"] = str(content_of["plan"]["dataset_name"])
        content_of["labels"] = content_of["labels"]["labels"]
    names = ("plan", "configuration", "labels", "channel_names", "file_ending", "mirror_axes")
    other = [name for name in names if ours[name] != given.get(name, ours[name])]
    return f"different: {', '.join(other)}: {[ours[name] for name in other]}" if other else "equal"


def _put(value: Any, place: str, new: Any) -> None:
    *path, last = place.split("/")
    for name in path:
        value = value[int(name) if isinstance(value, list) else name]
    if new is _ABSENT:
        del value[last]
    else:
        value[int(last) if isinstance(value, list) else last] = copy.deepcopy(new)


def _official(change: Callable[[Path], None], box: Path, made: Made) -> str:
    """A results folder as nnU-Net writes it, of which something is changed."""
    folder = box / "results"
    path = box / "sound.ckpt"
    torch.save(content(), path)
    network = export_to_nnunet(path, folder)
    path.unlink()
    change(network)
    made()
    found = Predictor.from_checkpoint(network, device="cpu", precision="32-true").models[0]
    own = _PLAN.to_json()
    plan = {**own, **{name: found.plan.to_json()[name] for name in ("rules", "dataset_name")}}
    declared = json.dumps(change.args[2]) if isinstance(change, partial) and len(change.args) == 3 else "-"
    as_declared = declared in json.dumps(found.plan.to_json()["configurations"]["2d"])
    sound = (found.plan.to_json() == plan or as_declared) and found.labels.names == ("organ", "lesion")
    equal = all(torch.equal(value, weights()[name]) for name, value in found.network.state_dict().items())
    return "equal" if sound and equal else "different: plan, labels or weights"


def _code() -> Iterator[tuple[str, Callable[[Path], None]]]:
    hooks = {
        "eval": Runs(eval, _CODE),
        "exec": Runs(exec, _CODE),
        "os.system": Runs(__import__("os").system, "touch $HOSTILE_MARK"),
        "subprocess": Runs(__import__("subprocess").call, ["touch", "-r", "/", "$HOSTILE_MARK"]),
        "getattr": Runs(getattr, 5, "real"),
        "torch.load": Runs(torch.load, "/etc/passwd"),
        "torch.hub": Runs(torch.hub.load, ".", "x"),
        "numpy.load": Runs(np.load, "/etc/passwd", None, True),
        "path": Runs(Path, "/etc/passwd"),
        "open": Runs(open, "/etc/passwd"),
        "compile": Runs(compile, _CODE, "x", "exec"),
        "partial": Runs(partial, eval, _CODE),
        "import": Runs(__import__, "antigravity"),
    }

    def inside(hook: Any, path: Path) -> None:
        torch.save({**content(), "extra": hook}, path)

    def legacy(hook: Any, path: Path) -> None:
        torch.save({**content(), "extra": hook}, path, _use_new_zipfile_serialization=False)

    def plain(hook: Any, protocol: int, path: Path) -> None:
        path.write_bytes(pickle.dumps(hook, protocol))

    def in_record(hook: Any, path: Path) -> None:
        made = content()
        made["umamba"]["plan"]["dataset_name"] = hook
        torch.save(made, path)

    for name, hook in hooks.items():
        yield f"{name} inside", partial(inside, hook)
        yield f"{name} in the record", partial(in_record, hook)
    for name in ("eval", "os.system", "torch.load"):
        yield f"{name}, legacy file", partial(legacy, hooks[name])
        for protocol in (0, 2, 4, 5):
            yield f"{name}, plain pickle {protocol}", partial(plain, hooks[name], protocol)


def _parts(path: Path) -> list[tuple[str, bytes]]:
    torch.save(content(), path)
    with zipfile.ZipFile(path) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def _rewritten(
    change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], path: Path, packed: bool = False
) -> None:
    parts = change(_parts(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, data in parts:
            archive.writestr(name, data)


def _and_part(name: str, parts: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [*parts, (name, b"x")]


def _pickled_as(data: bytes, parts: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [(name, data if name.endswith("data.pkl") else part) for name, part in parts]


def _set(key: Any, value: Any, state: dict[Any, Any]) -> None:
    state[key] = value


def _damaged() -> Iterator[tuple[str, Callable[[Path], None]]]:
    def cut(share: float, path: Path) -> None:
        torch.save(content(), path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])

    for share in (0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999):
        yield f"cut at {share}", partial(cut, share)

    def middle(path: Path) -> None:
        torch.save(content(), path)
        whole = path.read_bytes()
        path.write_bytes(whole[:3000] + whole[5000:])

    yield "without its middle", middle

    def zeros(path: Path) -> None:
        torch.save(content(), path)
        whole = bytearray(path.read_bytes())
        whole[4096:8192] = bytes(4096)
        path.write_bytes(whole)

    yield "a page of zeros", zeros

    def bomb(name: str, path: Path) -> None:
        parts = _parts(path)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for part, data in parts:
                archive.writestr(part, data)
            with archive.open(f"archive/{name}", "w", force_zip64=True) as stream:
                for _ in range(40):
                    stream.write(bytes(10_000_000))

    yield "400 MB of zeros deflated, unused", partial(bomb, "unused")

    def declared(size: int, path: Path) -> None:
        torch.save(content(), path)
        whole = bytearray(path.read_bytes())
        at = whole.find(b"PK\x01\x02")
        struct.pack_into("<II", whole, at + 20, size, size)
        path.write_bytes(whole)

    yield "a part that declares 4 GB", partial(declared, 0xFFFFFFF0)
    yield "a part that declares 0 bytes", partial(declared, 0)

    renamed = {
        "up": "../../escaped",
        "absolute": "/tmp/escaped",
        "NUL": "archive/a\0b",
        "long": "archive/" + "x" * 60000,
        "device": "archive/CON",
    }
    for what, name in renamed.items():
        yield f"a part named {what}", partial(_rewritten, partial(_and_part, name))
    yield "a part twice", partial(_rewritten, lambda parts: [*parts, (parts[3][0], b"\1" * len(parts[3][1]))])
    yield "a part too short", partial(_rewritten, lambda parts: [(n, d[:8] if "/data/0" in n else d) for n, d in parts])
    yield "without weights", partial(_rewritten, lambda parts: [(n, d) for n, d in parts if "/data/" not in n])
    yield "without pickle", partial(_rewritten, lambda parts: [(n, d) for n, d in parts if not n.endswith(".pkl")])
    yield "empty archive", partial(_rewritten, lambda parts: [])
    pickles = {
        "nested 100,000 deep": b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".",
        "lists 1000 deep": b"\x80\x02" + b"]" * 1000 + b"a" * 999 + b".",
        "memo of 4e9": b"\x80\x02r\xff\xff\xff\xff.",
        "text of 4 GB": b"\x80\x02X\xff\xff\xff\xffabc.",
        "integer of 1e6 digits": b"\x80\x02\x8b" + struct.pack("<i", 400_000) + b"\x7f" * 400_000 + b".",
        "negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
        "protocol 200": b"\x80\xc8N.",
        "nothing": b"",
        "None": b"\x80\x02N.",
        "a set": pickle.dumps({1, 2}, 2),
        "stack underflow": b"\x80\x020000.",
    }
    for what, data in pickles.items():
        yield (
            f"pickle: {what}",
            partial(_rewritten, partial(_pickled_as, data)),
        )

    def torchscript(path: Path) -> None:
        network = torch.nn.Conv2d(1, 1, 1)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 1, 2, 2)), buffer)
        path.write_bytes(buffer.getvalue())

    yield "TorchScript", torchscript


def _flip(number: int, path: Path) -> None:
    torch.save(content(), path)
    whole = bytearray(path.read_bytes())
    place = int(np.random.default_rng([17, number]).integers(8 * len(whole)))
    whole[place // 8] ^= 1 << place % 8
    path.write_bytes(whole)


def _shapes() -> Iterator[tuple[str, Callable[[Path], None]]]:
    def with_state(change: Callable[[dict[str, Any]], None], path: Path) -> None:
        made = content()
        change(made["state_dict"])
        torch.save(made, path)

    first = next(f"network.{name}" for name, value in weights().items() if value.ndim == 4)
    values = {
        "transposed": torch.zeros(1, 4, 3, 3),
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0),
        "1e12 elements of stride 0": torch.zeros(1).expand(1_000_000, 1_000_000),
        "text": "weights",
        "None": None,
        "list": [1, 2],
        "complex": torch.zeros(4, 1, 3, 3, dtype=torch.complex64),
        "sparse": torch.eye(4).to_sparse(),
        "meta": torch.zeros(4, 1, 3, 3, device="meta"),
        "bool": torch.zeros(4, 1, 3, 3, dtype=torch.bool),
    }
    for what, value in values.items():
        yield f"one is {what}", partial(with_state, partial(_set, first, value))
    yield "one missing", partial(with_state, lambda state: state.pop(first))
    yield "one more", partial(with_state, lambda state: state.update({"network.more": torch.zeros(3)}))
    yield (
        "a name of 1e6 letters",
        partial(with_state, lambda state: state.update({"network." + "x" * 10**6: torch.zeros(3)})),
    )
    yield (
        "a name of control characters",
        partial(with_state, lambda state: state.update({"network.\x1b[2J\n": torch.zeros(3)})),
    )
    yield "a number as name", partial(with_state, partial(_set, 7, torch.zeros(3)))
    yield "none at all", partial(with_state, lambda state: state.clear())

    def not_a_dict(value: Any, path: Path) -> None:
        torch.save({**content(), "state_dict": value}, path)

    for what, value in (("a list", [1]), ("text", "abc"), ("a tensor", torch.zeros(3))):
        yield f"state is {what}", partial(not_a_dict, value)
        yield f"file is {what}", partial(torch.save, value)

    def record_is(value: Any, path: Path) -> None:
        torch.save({**content(), "umamba": value}, path)

    for what, value in (("a list", [1]), ("text", "abc"), ("empty", {}), ("None", None)):
        yield f"record is {what}", partial(record_is, value)


_ABSENT = object()
_DEEP: Any = 0
for _level in range(300):
    _DEEP = [_DEEP]


def _records() -> Iterator[tuple[str, dict[str, Any]]]:
    here = "plan/configurations/2d/"
    places: dict[str, tuple[Any, ...]] = {
        "format": (2, "1", None, _ABSENT, 1e400),
        "configuration": ("../2d", "", 5, None, "3d_fullres"),
        "architecture": ("unet", [], {"name": "../unet"}, {"name": "os:system"}, {"name": "unet", "x": 1}, {}),
        "labels": ([], {}, {"labels": {"background": 0, "a": 4_000_000_000}, "regions_class_order": None}, None),
        "labels/labels/organ": (-1, 4_000_000_000, 1.5, "1", True, None, [1, 2], 10**30, []),
        "labels/regions_class_order": ([1, 2, 3], "12", [10**30, 1], 7),
        "channel_names": ([], "CT", None, ["CT"] * 100_000, [None], {"0": "CT"}),
        "file_ending": ("../x.nii.gz", "/etc/passwd", "", ".exe", None, ".nii.gz/..", 5),
        "mirror_axes": ([5], [-1], "01", [0.5], [0, 0], [10**30], {}),
        "recipe": ("x", {"x": 1}, [], {"deep_supervision": "no"}),
        "scores": ("x", [1], {"ema_patch_dice": "x"}),
        "provenance": ("x", [1], {"umamba": _DEEP}),
        "plan": (None, [], {}, "plan", _DEEP),
        "plan/dataset_name": ("../../x", "/abs", "a\0b", "", 5, "x" * 10_000, "CON", "\u202ereversed"),
        "plan/transpose_forward": ([0, 0, 0], [0, 1], [2, 1, 0, 3], [-1, 0, 1], "012", [10**30, 0, 1]),
        "plan/configurations": ({}, [], {"2d": 5}, {"2d": _DEEP}),
        here + "spacing": ([0, 1], [-1, 1], [1], [1e-6, 1e-6], ["nan", 1], [float("nan"), 1], [float("inf"), 1]),
        here + "patch_size": ([100_000, 100_000], [0, 16], [-16, 16], [16], [16.5, 16], [10**30, 16], "16"),
        here + "batch_size": (0, -1, 2.5, "2", None, 10**30),
        here + "strides": ([], [[1, 1]] * 100_000, [[1, 1], [0, 2]], [[1, 1], [16, 16]], [[1, 1], [2]], 5),
        here + "kernel_sizes": ([[3, 3]], [[0, 3]] * 2, [[10**6, 10**6]] * 2, [[2, 2]] * 2, "33"),
        here + "features_per_stage": ([10**9, 10**9], [0, 6], [-4, 6], [4], [4.5, 6], [4, 6, 8]),
        here + "encoder_blocks": ([10**6, 1], [0, 1], [1], [-1, 1], ["1", 1]),
        here + "decoder_blocks": ([10**6], [], [0], [1, 1]),
        here + "normalization": ([], ["Unknown"], ["ZScoreNormalization"] * 2, "CT", [None]),
        here + "use_mask_for_norm": ([], [True, False], ["no"], None),
    }
    for place, values in places.items():
        for value in values:
            shown = "absent" if value is _ABSENT else f"{value!r:.50}"
            yield f"{place}={shown}", {place: value}


def _results() -> Iterator[tuple[str, Callable[[Path], None]]]:
    def json_file(name: str, place: str, value: Any, folder: Path) -> None:
        read = json.loads((folder / name).read_text())
        _put(read, place, value)
        (folder / name).write_text(json.dumps(read))

    plans: dict[str, tuple[Any, ...]] = {
        "configurations": ([], {}, "x", {"2d": _DEEP}),
        "configurations/2d": (None, {}, {"inherits_from": "2d"}, {"inherits_from": "../x"}, _DEEP),
        "configurations/2d/patch_size": ("16", [16], [100_000, 100_000], None),
        "configurations/2d/spacing": ([0, 0], ["a", 1], [1e-9, 1e-9]),
        "configurations/2d/architecture": (None, {}, "x"),
        "configurations/2d/architecture/network_class_name": ("os.system", "", None, "../x"),
        "configurations/2d/architecture/arch_kwargs/strides": ([[0, 0]] * 2, "x", [[1, 1]] * 100_000),
        "configurations/2d/architecture/arch_kwargs/features_per_stage": ([10**9] * 2, [-1, 5], "45"),
        "configurations/2d/architecture/arch_kwargs/kernel_sizes": ([[10**6] * 2] * 2, None),
        "configurations/2d/preprocessor_name": ("Other", None),
        "configurations/2d/resampling_fn_data": ("os.system", None),
        "image_reader_writer": ("os.system", None, 5),
        "transpose_forward": ([0, 0, 0], "012", None),
        "foreground_intensity_properties_per_channel": ({}, [], {"0": {}}, {"0": {"mean": "x"}}, None),
        "dataset_name": ("../../x", None, 5),
        "plans_name": ("../../x", None, 5),
    }
    for place, values in plans.items():
        for value in values:
            yield f"plans.json {place}={value!r:.40}", partial(json_file, "plans.json", place, value)
    dataset: dict[str, tuple[Any, ...]] = {
        "channel_names": ({}, [], "CT", {"0": "CT", "x": "MR"}, {"-1": "CT"}, {"5": "CT"}),
        "labels": ({}, [], {"background": 0}, {"background": 0, "a": 10**10, "b": 2}, {"a": 1}),
        "file_ending": ("../../x.nii.gz", None, 7, ".exe", ""),
        "regions_class_order": ("12", [9], {}),
    }
    for place, values in dataset.items():
        for value in values:
            yield f"dataset.json {place}={value!r:.40}", partial(json_file, "dataset.json", place, value)
    contents = {
        "empty": b"",
        "binary": bytes(range(256)),
        "UTF-16": "{}".encode("utf-16"),
        "cut": b'{"labels": {"backgr',
        "number": b"5",
        "nested 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
        "integer of 5,000 digits": b'{"labels": ' + b"9" * 5000 + b"}",
        "NaN": b'{"labels": NaN}',
    }

    def replaced(name: str, data: bytes, folder: Path) -> None:
        (folder / name).write_bytes(data)

    for what, data in contents.items():
        for name in ("plans.json", "dataset.json"):
            yield f"{name} is {what}", partial(replaced, name, data)

    def official(place: str, value: Any, folder: Path) -> None:
        file = next(folder.rglob("checkpoint_final.pth"))
        read = torch.load(file, weights_only=False)
        _put(read, place, value)
        for name in ("plans.json", "dataset.json"):
            if place.startswith("init_args"):
                (folder / name).unlink()
        torch.save(read, file)

    for place, values in {
        "init_args": (None, [], {}, "x"),
        "init_args/configuration": (None, "../x", 5, "3d_cascade"),
        "init_args/plans": (None, [], {"configurations": {"2d": {}}}),
        "init_args/dataset_json": (None, [], {"labels": 5, "channel_names": {"0": "a"}}),
        "network_weights": (None, [], {}, {"x": torch.zeros(2)}, {7: torch.zeros(2)}, {"x": 5}),
        "inference_allowed_mirroring_axes": ("x", [7], [-1], 5, [0.5]),
        "trainer_name": (None, 5, "../x\x1b[2J"),
    }.items():
        for value in values:
            yield f"checkpoint_final {place}={value!r:.40}", partial(official, place, value)

    def script(folder: Path) -> None:
        file = next(folder.rglob("checkpoint_final.pth"))
        read = torch.load(file, weights_only=False)
        torch.save({**read, "logging": Runs(eval, _CODE)}, file)

    yield "checkpoint_final with code", script
