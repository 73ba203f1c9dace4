"""Which engine computes a network: the faster one that agrees with PyTorch; a folder keeps the one that began it."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from umamba.datasets import RawCase
from umamba.inference import Model, Predictor, engine, predictor
from umamba.inference.digests import weights_digest
from umamba.inference.engine_cache import Kept, cache_folder, kind_of
from umamba.inference.engine_record import begun_engine
from umamba.inference.model import FreedNetwork
from umamba.inference.tiling import LogitRows
from umamba.io import Geometry, Image, UserError
from umamba.networks import build_network
from umamba.records import CheckpointRecord
from umamba.records.checkpoint import NETWORK, store_record
from umamba.settings import PredictionSettings, UNetSettings

MakeModel = Callable[..., Model]
PLANS = {
    "3d": ((8, 6, 4), (0, 1, 2)),
    "3d transposed": ((8, 6, 4), (2, 0, 1)),
    "2d": ((6, 4), (0, 1, 2)),
    "2d transposed": ((6, 4), (1, 2, 0)),
}


class Compiled:
    """Has the form of a network in OpenVINO; PyTorch computes it. Fails if it gets another shape or too many passes."""

    def __init__(self, model: Model, requests: int = 1, scale: float = 1.0) -> None:
        self.network, self.shape, self.requests, self.scale = model.network, model.tile_shape, requests, scale
        self.begun, self.most, self.passes, self.closed = 0, 0, 0, False

    def start(self, tiles: Tensor) -> Any:
        """Begin a pass."""
        assert tuple(tiles.shape) == self.shape
        assert tiles.is_contiguous()
        assert self.begun < self.requests
        self.begun, self.passes = self.begun + 1, self.passes + 1
        self.most = max(self.most, self.begun)
        outer = self

        class Handle:
            def wait(self) -> Tensor:
                outer.begun -= 1
                with torch.inference_mode():
                    logits: Tensor = outer.network(tiles)
                return logits * outer.scale

        return Handle()

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


class Trials:
    """What a test says OpenVINO does, and what was tried."""

    def __init__(self) -> None:
        self.seconds: list[float] = []  # of the next measurements
        self.scale, self.refusal = 1.0, ""
        self.made: list[Compiled] = []

    def compiled(self, model: Model, folder: Path | None, threads: int) -> Compiled:
        """Stand in place of the compilation."""
        if self.refusal:
            raise engine._Refused(self.refusal)
        self.made.append(Compiled(model, scale=self.scale))
        return self.made[-1]

    def fastest(self, run: Callable[[], object]) -> float:
        """Stand in place of a measurement."""
        run()
        return self.seconds.pop(0)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trials:
    """Networks that PyTorch seems to compute slowly, and an own cache folder."""
    made = Trials()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engine, "_compiled", made.compiled)
    monkeypatch.setattr(engine, "_fastest", made.fastest)
    return made


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Messages of the engine."""
    logger = logging.getLogger("umamba")
    before, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, "umamba"):
        yield caplog
    logger.propagate = before


def net(dim: int = 3, classes: int = 2) -> nn.Module:
    """Return a convolution with random weights, always the same ones."""
    torch.manual_seed(0)
    return (nn.Conv3d if dim == 3 else nn.Conv2d)(2, classes, 3, padding=1)


def image(shape: tuple[int, int, int] = (9, 10, 11)) -> Image:
    """Return noise of two channels."""
    array = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    return Image(array, Geometry((1.0, 1.0, 1.0), (0.0,) * 3, tuple(np.eye(3).ravel()), shape, False))


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_passes_in_flight_give_the_logits_of_torch(make_model: MakeModel, plan: str, tta: bool) -> None:
    patch, forward = PLANS[plan]
    made = make_model(net(len(patch)), patch, 2, forward=forward)
    expected = Predictor((made,)).predict_image(image(), PredictionSettings(tta=tta))
    compiled = Compiled(made, requests=3)
    made.use(compiled)  # type: ignore[arg-type]
    found = Predictor((made,)).predict_image(image(), PredictionSettings(tta=tta))
    np.testing.assert_array_equal(found, expected)
    assert compiled.most == 3
    assert compiled.begun == 0
    assert len(np.unique(found)) == 2


def test_the_faster_engine_is_chosen_and_the_choice_is_kept(
    make_model: MakeModel, trials: Trials, messages: pytest.LogCaptureFixture
) -> None:
    trials.seconds = [1.57, 0.36]
    for _ in range(2):  # the second time nothing is measured
        made = make_model(net(), (8, 6, 4), 2)
        engine.settle_engines([made])
        assert made.compiled is trials.made[-1]
        assert messages.messages[-1] == "Engine: openvino, 0.36 s a tile against 1.6 s by torch."
    assert trials.made[1].passes == 0  # nor compared with PyTorch
    engine.settle_engines([made])
    assert len(trials.made) == 2


def test_torch_is_chosen_where_it_is_hardly_slower(
    make_model: MakeModel, trials: Trials, messages: pytest.LogCaptureFixture
) -> None:
    trials.seconds = [0.40, 0.38]
    for _ in range(2):
        made = make_model(net(), (8, 6, 4), 2)
        engine.settle_engines([made])
        assert made.compiled is None
        assert messages.messages[-1] == "Engine: torch, 0.4 s a tile against 0.38 s by openvino."
    assert [compiled.closed for compiled in trials.made] == [True]


def test_openvino_is_not_even_loaded_for_a_short_pass(
    make_model: MakeModel, trials: Trials, messages: pytest.LogCaptureFixture
) -> None:
    trials.seconds = [0.004]
    engine.settle_engines([make_model(net(), (8, 6, 4), 2)])
    assert not trials.made
    assert messages.messages == ["Engine: torch, because a pass of the network takes only 4 ms."]


def test_a_disagreement_falls_back_loudly(
    make_model: MakeModel, trials: Trials, messages: pytest.LogCaptureFixture
) -> None:
    trials.seconds, trials.scale = [1.0], 1.01
    made = make_model(net(), (8, 6, 4), 2)
    engine.settle_engines([made])
    assert made.compiled is None
    assert trials.made[0].closed
    (record,) = messages.records
    assert record.levelno == logging.WARNING
    assert "Engine: torch, because the logits of openvino differ from PyTorch's by 1.0e-02" in record.getMessage()
    made.engine = "openvino"
    with pytest.raises(UserError, match=r"engine=openvino: the logits of openvino differ .* Give engine=auto"):
        engine.settle_engines([made])


def test_half_precision_may_differ_as_much_as_that_of_torch(make_model: MakeModel, trials: Trials) -> None:
    trials.seconds, trials.scale = [1.0, 0.1], 1.009  # under 1 %
    made = make_model(net(), (8, 6, 4), 2, precision="bf16-mixed")
    engine.settle_engines([made])
    assert made.compiled is not None


def test_a_network_that_cannot_be_converted(
    make_model: MakeModel, trials: Trials, messages: pytest.LogCaptureFixture
) -> None:
    trials.seconds, trials.refusal = [1.0], "OpenVINO cannot compute this network (no such layer)"
    for _ in range(2):  # loud each time, tried once
        made = make_model(net(), (8, 6, 4), 2)
        engine.settle_engines([made])
        assert messages.records[-1].levelno == logging.WARNING
        assert messages.messages[-1] == "Engine: torch, because OpenVINO cannot compute this network (no such layer)."
    made.engine = "openvino"
    with pytest.raises(UserError, match="no such layer"):
        engine.settle_engines([made])


def test_openvino_that_is_not_installed(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    monkeypatch.setattr("umamba.inference.model.find_spec", lambda name: None)
    monkeypatch.setattr(engine, "_SHORT_S", 0.0)
    made = make_model(net(), (8, 6, 4), 2)
    engine.settle_engines([made])
    assert made.compiled is None
    assert "openvino is not installed; pip install 'umamba[cpu]' makes" in messages.messages[0]
    made.engine = "openvino"
    with pytest.raises(UserError, match=r"Install it with pip install 'umamba\[cpu\]'"):
        engine.settle_engines([made])


def test_gpus_are_left_to_torch(make_model: MakeModel, trials: Trials) -> None:
    made = make_model(net(), (8, 6, 4), 2)
    made.device = torch.device("meta")
    engine.settle_engines([made])
    assert made.compiled is None
    assert not trials.made
    with pytest.raises(UserError, match=r"engine=openvino: computes on the CPU, not on device=meta"):
        Model(net(), made.plan, made.configuration, made.labels, 2, torch.device("meta"), engine="openvino")
    with pytest.raises(UserError, match=r"engine=openvin: must be one of auto.*Did you mean openvino\?"):
        Model(net(), made.plan, made.configuration, made.labels, 2, torch.device("cpu"), engine="openvin")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two images of two channels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b"):
        for channel in range(2):
            sitk.WriteImage(sitk.GetImageFromArray(image().array[channel]), str(folder / f"{name}_000{channel}.nii.gz"))
    return folder


def test_no_image_is_read_while_engines_are_measured(
    make_model: MakeModel, trials: Trials, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    read_channels = predictor.read_channels

    def noted(case: RawCase, model: Model) -> Image:
        read.append(case.case_id)
        return read_channels(case, model)

    monkeypatch.setattr(predictor, "read_channels", noted)

    def predict(number: int, **settings: Any) -> None:
        made = make_model(net(), (8, 6, 4), 2)
        Predictor((made,)).predict(images, tmp_path / f"out{number}", PredictionSettings(**settings), progress=False)

    trials.seconds = [1.57, 0.36]
    predict(0)
    assert read == []
    predict(1)  # the times are known now
    assert read == ["a"]
    predict(2, max_memory_gb=4)
    assert read == ["a"], "an image that is read before the limit is measured may be too much"


def test_a_folder_keeps_the_engine_that_began_it(
    make_model: MakeModel, trials: Trials, images: Path, tmp_path: Path, messages: pytest.LogCaptureFixture
) -> None:
    def predict(**changes: Any) -> dict[str, Any]:
        made = make_model(net(), (8, 6, 4), 2)
        for name, value in changes.items():
            setattr(made, name, value)
        Predictor((made,)).predict(images, tmp_path / "out", progress=False)
        record: dict[str, Any] = json.loads((tmp_path / "out" / "prediction.json").read_text())
        (tmp_path / "out" / "b.nii.gz").unlink()
        return record

    trials.seconds = [1.0, 0.1]
    assert predict()["engine"] == "openvino"
    assert predict()["precision"] == "32-true"
    with pytest.raises(UserError, match=r"engine=torch: .*prediction.json says that engine=openvino made"):
        predict(engine="torch")
    assert (tmp_path / "out" / "a.nii.gz").exists()
    trials.refusal = "openvino is not installed"
    assert predict()["engine"] == ["openvino", "torch"]
    assert [record.getMessage() for record in messages.records if record.levelno == logging.WARNING] == [
        "Engine: torch, because openvino is not installed."
    ]
    trials.refusal = ""
    file = tmp_path / "out" / "prediction.json"
    record = json.loads(file.read_text())
    del record["engine"], record["precision"]
    file.write_text(json.dumps(record))  # as earlier versions wrote it
    (tmp_path / "out" / "b.nii.gz").unlink(missing_ok=True)
    assert predict()["engine"] == "torch"
    assert "precision" not in json.loads(file.read_text())
    assert "Engine: torch, which made the segmentations that are there already." in messages.messages


def test_a_record_of_another_form_is_no_traceback(make_model: MakeModel, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prediction.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="holds segmentations of another network or other settings"):
        Predictor((make_model(net(), (8, 6, 4), 2),)).predict(images, tmp_path / "out", progress=False)


def test_nothing_is_deleted_for_an_engine_that_cannot_compute(
    make_model: MakeModel, trials: Trials, images: Path, tmp_path: Path
) -> None:
    made = make_model(net(), (8, 6, 4), 2)
    made.engine = "torch"
    written = Predictor((made,)).predict(images, tmp_path / "out", progress=False)
    made.engine, trials.refusal = "openvino", "OpenVINO cannot compute this network (no such layer)"
    with pytest.raises(UserError, match="no such layer"):
        Predictor((made,)).predict(images, tmp_path / "out", PredictionSettings(overwrite=True), progress=False)
    assert all(path.exists() for path in written)


def test_another_engine_for_some_images_is_refused_without_a_remedy_that_is_given_already(
    make_model: MakeModel, tmp_path: Path
) -> None:
    made = make_model(net(), (8, 6, 4), 2)
    made.engine = "torch"
    record = {"engine": "openvino"}
    with pytest.raises(UserError, match="or overwrite=true to make them again"):
        begun_engine(record, tmp_path / "prediction.json", [made], overwrite=False)
    with pytest.raises(UserError, match=r"of other images\. Give engine=openvino or auto, or another fold"):
        begun_engine(record, tmp_path / "prediction.json", [made], overwrite=True)


def save(path: Path, made: Model, weights: nn.Module) -> Path:
    """Write the checkpoint of a U-Net."""
    record = CheckpointRecord(made.plan, "3d_fullres", UNetSettings(), made.labels, ("T1", "T2"), ".nii.gz")
    content: dict[str, Any] = {"state_dict": {f"{NETWORK}{key}": value for key, value in weights.state_dict().items()}}
    store_record(content, record)
    torch.save(content, path)
    return path


def test_weights_are_freed_and_read_again(make_model: MakeModel, trials: Trials, tmp_path: Path) -> None:
    made = make_model(net(), (8, 8, 8), 2)
    network = build_network("unet", made.configuration, 2, 2, deep_supervision=False)
    path = save(tmp_path / "last.ckpt", made, network)
    expected = Predictor.from_checkpoint(path, device="cpu", precision="32-true", engine="torch").predict_image(image())
    trials.seconds = [1.0, 0.1]
    predictor = Predictor.from_checkpoint(path, device="cpu", precision="32-true")
    np.testing.assert_array_equal(predictor.predict_image(image()), expected)
    assert isinstance(predictor.models[0].network, FreedNetwork)
    predictor.models[0].use(None)
    assert trials.made[0].closed
    assert weights_digest(predictor.models[0].network.state_dict()) == weights_digest(network.state_dict())
    np.testing.assert_array_equal(predictor.predict_image(image()), expected)
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(UserError, match="changed since it was read"):
        predictor.models[0].use(None)


def test_what_a_choice_depends_on(make_model: MakeModel) -> None:
    made = make_model(net(), (8, 6, 4), 2)
    kind = kind_of(made, 2)
    assert kind == kind_of(make_model(net(), (8, 6, 4), 2), 2)
    assert kind != kind_of(made, 1)
    assert kind != kind_of(make_model(net(), (8, 6, 6), 2), 2)
    assert kind != kind_of(make_model(net(), (8, 6, 4), 2, precision="bf16-mixed"), 2)
    assert kind != kind_of(make_model(nn.Sequential(net(), nn.ReLU()), (8, 6, 4), 2), 2)
    changed = net()
    next(changed.parameters()).data[0, 0, 0, 0, 0] += 1e-3
    hashes = [weights_digest(each.state_dict()) for each in (net(), net(), changed)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_cache_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = cache_folder()
    assert folder == tmp_path / "cache" / "umamba" / "openvino"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)  # somebody else could put a network there
    assert cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert cache_folder() is None
    nowhere = Kept(None, "a")
    nowhere.write({"engine": "torch"})
    assert nowhere.read() == {}


def test_a_damaged_record_counts_as_none(tmp_path: Path) -> None:
    kept = Kept(tmp_path, "a")
    kept.write({"engine": "torch"})
    assert kept.read() == {"engine": "torch"}
    for damaged in ("[1]", "{", "\0"):
        (tmp_path / "a.json").write_text(damaged)
        assert kept.read() == {}


def test_blank_passes_are_computed_once() -> None:
    """Of the three passes along the first axis two are blank with the same value and one with another."""
    seen: list[Tensor] = []

    def start(tiles: Tensor) -> Callable[[], Tensor]:
        seen.append(tiles)
        return lambda: tiles * torch.arange(1, 5)[:, None, None]

    picture = torch.zeros((1, 20, 4, 4))
    picture[:, 8:12] = torch.rand(1, 4, 4, 4)
    picture[:, 16:] = 3
    tiles: list[int] = []
    rows = LogitRows(
        start,
        picture,
        (4, 4, 4),
        num_classes=1,
        columns=slice(0, 4),
        capacity=20,
        tile_step_size=1.0,
        tiles_per_pass=1,
        advance=tiles.append,
        dtype=torch.float32,
        sums_on=torch.device("cpu"),
    )
    expected = picture * torch.arange(1, 5).repeat(5)[:, None, None]
    torch.testing.assert_close(rows.take(0, 20), expected)
    assert sum(tiles) == 5
    assert len(seen) == 3  # zeros once, the noise, the threes


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_openvino_gives_the_labels_of_torch(make_model: MakeModel, precision: str) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("umamba.inference.openvino_network")
    torch.manual_seed(0)
    made = make_model(net(), (8, 8, 8), 3, num_channels=2, precision=precision)
    network = build_network("unet", made.configuration, 2, 3, deep_supervision=False)
    found = []
    for name in ("torch", "openvino"):
        model = Model(
            *(network, made.plan, made.configuration, made.labels, 2, torch.device("cpu")),
            precision=precision,
            engine=name,
        )
        found.append(Predictor((model,)).predict_image(image((18, 20, 22))))
        assert (model.compiled is not None) == (name == "openvino")
    assert len(np.unique(found[0])) == 3
    equal = (found[0] == found[1]).mean()
    # Of an untrained network, whose logits are hardly apart; benchmarks/prediction.py compares trained ones.
    assert equal >= (0.9999 if precision == "32-true" else 0.97)
