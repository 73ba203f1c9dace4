"""Prediction on a GPU without waiting for it: few copies, no questions, painting beside the next image."""

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from umamba.inference import Model, canvas, device_work, forward, prepared_image, slabs
from umamba.inference.canvas import Canvas, Placement, Slab, decide_part
from umamba.inference.device_work import aside, fetch, on_device, pinned
from umamba.inference.forward import at_once, fetched, tile_forward
from umamba.inference.memory import MemoryLimit
from umamba.inference.resize import axis_maps, whole
from umamba.inference.slabs import SlabLayout
from umamba.inference.tiling import LogitRows, whole_logits
from umamba.io import Geometry, Image
from umamba.labels import LabelSet
from umamba.settings import PredictionSettings

CPU, META = torch.device("cpu"), torch.device("meta")
LABELS = LabelSet(("a", "b"), ((1,), (2,)))


class Crossings(TorchDispatchMode):
    """Lists the operations that copy between the CPU and the device "meta"; asking that device for a value raises."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in (*args, result) if isinstance(each, Tensor)]
        if len({each.device.type for each in tensors}) > 1:
            self.copies.append(str(func))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tiles_are_added_on_the_device_without_copies(dtype: torch.dtype) -> None:
    """Three copies for all tiles of an image: the weights along each axis. The blank pass is known on the CPU."""
    image = torch.randn((1, 9, 30, 33), generator=torch.Generator().manual_seed(0))
    image[:, :4, :8, :8] = 0
    passes: list[int] = []
    tiles: list[int] = []

    def network(given: Tensor) -> Tensor:
        assert given.device == META
        passes.append(len(given))
        return given.new_empty((len(given), 3, *given.shape[2:]), dtype=torch.bfloat16)

    on_meta = image.to(META)
    with Crossings() as crossings:
        rows = LogitRows(
            at_once(network),
            image,
            (4, 8, 8),
            num_classes=3,
            columns=slice(0, 30),
            capacity=9,
            tile_step_size=0.5,
            tiles_per_pass=1,
            dtype=dtype,
            sums_on=META,
            on_device=on_meta,
            advance=tiles.append,
        )
        assert rows.take(0, 9).shape == (3, 9, 30, 33)
    assert len(passes) == sum(tiles) > 100
    assert crossings.copies == ["aten._to_copy.default"] * 3


@pytest.mark.parametrize("direct", [True, False])
def test_parts_are_decided_on_the_device_without_copies(direct: bool) -> None:
    """The maps reach the device once; labels and probabilities of a part are made without asking for a value."""
    grid, shape = (6, 7, 80), (9, 11, 150)
    maps = axis_maps(grid, shape, (1.5, 1.5, 1.9), (1, 1, 1))
    slabs = [Slab(torch.empty((3, *grid), device=META, dtype=torch.float16), (0, 0), maps) for _ in range(2)]
    slabs = slabs[:1] if direct else slabs
    box, sums = whole(shape), list[Tensor]()
    with Crossings() as crossings:
        decide_part(slabs, box, LABELS, direct, sums)
    assert crossings.copies  # the maps
    with Crossings() as crossings:
        labels, mean = decide_part(slabs, box, LABELS, direct, sums)
    assert not crossings.copies
    assert labels.shape == shape
    assert labels.device == META
    assert (mean is None) == direct
    assert {each.device for each in sums} == {META}


@pytest.mark.parametrize("keep_probabilities", [True, False])
def test_a_box_on_a_device_is_fetched_once(keep_probabilities: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part of the probabilities is written while the next one is computed; labels come in one piece."""
    shape = (4, 8, 16)
    maps = axis_maps(shape, shape, (1, 1, 1), (1, 1, 1))
    slab = Slab(torch.empty((3, *shape), device=META), (0, 0), maps)
    events: list[tuple[str, tuple[int, ...]]] = []

    def recorded(tensor: Tensor) -> Callable[[], Tensor]:
        events.append(("begun", tuple(tensor.shape)))

        def wait() -> Tensor:
            events.append(("there", tuple(tensor.shape)))
            return torch.ones(tensor.shape, dtype=tensor.dtype)

        return wait

    monkeypatch.setattr(canvas, "fetch", recorded)
    monkeypatch.setattr(canvas, "refuse_not_finite", lambda sums: sums.clear())
    monkeypatch.setattr(canvas, "_VOXELS_AT_ONCE", 3 * 128)
    probabilities = np.zeros((3, *shape), dtype=np.float32) if keep_probabilities else None
    painted = Canvas(Placement(shape, whole(shape)), LABELS, probabilities)
    painted.add(whole(shape), [slab])
    assert (painted.segmentation == 1).all()
    part = (3, 1, 8, 16)
    expected: list[tuple[str, tuple[int, ...]]] = [("begun", shape), ("there", shape)]
    if probabilities is not None:
        assert (probabilities == 1).all()
        ahead = [("begun", part), *[("begun", part), ("there", part)] * 3, ("there", part)]
        expected = [*ahead, *expected]
    assert events == expected


def test_passes_are_begun_before_the_logits_of_the_one_before_are_added(make_model: Callable[..., Model]) -> None:
    """Where the sums are on the CPU: the device computes a pass while another is copied and added; same sums."""
    events: list[str] = []

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            events.append("computed")
            return x * 2

    model = make_model(Network(), (4, 4, 4), 1)
    image = torch.randn((1, 4, 4, 12), generator=torch.Generator().manual_seed(0))

    def logits(crossing: bool) -> Tensor:
        start = at_once(model.torch_forward(False))
        rows = LogitRows(
            fetched(start) if crossing else start,
            image,
            (4, 4, 4),
            num_classes=1,
            columns=slice(0, 4),
            capacity=4,
            tile_step_size=1.0,
            tiles_per_pass=1,
            in_flight=forward.HOST_PASSES if crossing else 1,
            dtype=torch.float32,
            sums_on=CPU,
            advance=lambda tiles: events.append("added"),
        )
        return rows.take(0, 4)

    expected = logits(False)
    assert events == ["computed", "added"] * 3
    events.clear()
    assert torch.equal(logits(True), expected)
    assert events == ["computed", "computed", "added", "computed", "added", "added"]


def test_passes_of_a_device_are_fetched_for_sums_on_the_cpu(
    make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def on_host(start: forward.Start) -> forward.Start:
        def begin(tiles: Tensor) -> Callable[[], Tensor]:
            events.append("begun")

            def wait() -> Tensor:
                events.append("there")
                return torch.ones((len(tiles), 1, *tiles.shape[2:]))

            return wait

        return begin

    monkeypatch.setattr(slabs, "fetched", on_host)
    model = replace(make_model(nn.Identity(), (4, 4, 4), 1), device=META)
    image = torch.randn((1, 4, 4, 12), generator=torch.Generator().manual_seed(0))
    view = slabs.View(model, image, axis_maps((4, 4, 12), (4, 4, 12), (1, 1, 1), (1, 1, 1)))
    settings = PredictionSettings(tile_step_size=1.0)
    given = slabs.give_slabs([view], (4, 4, 12), SlabLayout(1, 4), settings, sums_on=CPU, advance=lambda tiles: None)
    ((_, (slab,)),) = given
    assert (slab.logits == 1).all()
    assert events == ["begun", "begun", "there", "begun", "there", "there"]


def test_whole_logits_on_a_device() -> None:
    image = torch.zeros((1, 4, 5, 6))
    given = {"tile_step_size": 0.5, "tiles_per_pass": 2, "device": META}
    logits = whole_logits(lambda tiles: tiles.to(META), image, (2, 2, 2), 1, **given, sums_on=META)  # type: ignore[arg-type]
    assert logits.device == META
    assert logits.shape == image.shape


def test_the_network_runs_with_its_device_current(
    make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that are no PyTorch operations run on the current GPU, which may be another one than the network's."""
    current: list[torch.device] = []

    @contextmanager
    def entered(device: torch.device) -> Any:
        current.append(device)
        yield
        current.pop()

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert current == [META]
            return x

    monkeypatch.setattr(forward, "on_device", entered)
    configuration = make_model(nn.Identity(), (2, 2, 2), 1).configuration
    assert tile_forward(Network(), configuration, META, "32-true")(torch.zeros((1, 1, 2, 2, 2))).device == META
    assert not current
    monkeypatch.setattr(torch.cuda, "device", entered)
    with on_device(torch.device("cuda:1")):
        assert current == [torch.device("cuda:1")]
    with on_device(CPU):
        assert not current


def test_an_image_is_kept_for_the_device_and_painted_aside(
    make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two networks of one plan share an image, which is pinned and copied once; tiles are cut on the device."""
    devices: list[torch.device] = []

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            devices.append(x.device)
            return x

    models = [replace(make_model(Network(), (4, 4, 4), 3), device=META, engine="torch") for _ in range(2)]
    geometry = Geometry((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0), (4, 6, 9), False)
    image = Image(np.random.default_rng(0).normal(size=(3, 4, 6, 9)).astype(np.float32), geometry)
    kept: list[tuple[Tensor, torch.device]] = []
    put_aside: list[torch.device] = []

    def pin(tensor: Tensor, device: torch.device) -> Tensor:
        kept.append((tensor, device))
        return tensor

    def put(device: torch.device, work: Callable[[], None]) -> Callable[[], None]:
        put_aside.append(device)
        return work

    monkeypatch.setattr(prepared_image, "pinned", pin)
    monkeypatch.setattr(prepared_image, "aside", put)
    monkeypatch.setattr(prepared_image, "place_sums", lambda *_: (META, SlabLayout(1, 4)))
    prepared = prepared_image.prepare_image(image, models)
    assert [device for _, device in kept] == [META]
    assert all(view.image.data_ptr() == kept[0][0].data_ptr() for view in prepared.views)
    painted = Canvas(prepared.placement, models[0].labels)
    with Crossings() as crossings:
        prepared_image.paint(prepared, painted, PredictionSettings(), MemoryLimit(None), lambda *_: None)
    assert put_aside == [META]
    assert set(devices) == {META}
    assert len(devices) > 4
    # The image once, and for each network the weights of the tiles along each axis.
    assert crossings.copies == ["aten._to_copy.default"] * (1 + 2 * 3)


class FakeCuda:
    """CUDA's streams and events, which only say what they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said = self.said = list[str]()

        class Event:
            def record(self, stream: object = None) -> None:
                said.append("event")

            def synchronize(self) -> None:
                said.append("waited for the event")

        class Stream:
            def __init__(self, device: torch.device) -> None:
                said.append(f"stream on {device}")

            def wait_event(self, event: Event) -> None:
                said.append("stream waits for the event")

            def synchronize(self) -> None:
                said.append("stream is done")

        for name, value in (
            *(("Event", Event), ("Stream", Stream), ("stream", lambda stream: nullcontext())),
            *(("current_stream", lambda device: None), ("device", lambda device: nullcontext())),
        ):
            monkeypatch.setattr(torch.cuda, name, value)


@pytest.mark.parametrize("fails", [False, True])
def test_painting_has_a_stream_of_its_own(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins after what the device was given before, and its memory is free only when the device is done."""
    fake = FakeCuda(monkeypatch)

    def work() -> None:
        fake.said.append("work")
        if fails:
            raise RuntimeError

    run = aside(torch.device("cuda:1"), work)
    assert fake.said == ["event"]
    with pytest.raises(RuntimeError) if fails else nullcontext():
        run()
    assert fake.said[1:] == ["stream on cuda:1", "stream waits for the event", "work", "stream is done"]
    assert aside(CPU, work) is work


def test_on_a_cpu_nothing_is_copied(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tensor = torch.ones(3)
    assert fetch(tensor)() is tensor
    assert pinned(tensor, CPU) is tensor

    def refused(self: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: out of memory\nmore")

    FakeCuda(monkeypatch)
    monkeypatch.setattr(Tensor, "pin_memory", refused)
    with caplog.at_level("WARNING", device_work.log.name):
        assert pinned(tensor, torch.device("cuda")) is tensor
    assert "page-locked memory (CUDA error: out of memory)" in caplog.text


def test_infinite_logits_of_a_member_are_refused() -> None:
    shape = (2, 3, 4)
    maps = axis_maps(shape, shape, (1, 1, 1), (1, 1, 1))
    good, bad = torch.zeros((3, *shape)), torch.zeros((3, *shape))
    bad[1, 0, 0, 0] = torch.inf
    placement = Placement(shape, whole(shape))
    for members in ([bad], [good, bad]):
        with pytest.raises(Exception, match="not finite"):
            Canvas(placement, LABELS).add(whole(shape), [Slab(each, (0, 0), maps) for each in members])
    assert replace(placement).crop_shape == shape
