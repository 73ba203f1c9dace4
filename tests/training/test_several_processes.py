"""Processes that train together: none waits for another one that gave up, and all begin at the same checkpoint."""

import datetime
import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from umamba.io import UserError
from umamba.labels import LabelSet
from umamba.training.checkpoints import newest_readable
from umamba.training.losses import DeepSupervisionLoss, DiceCrossEntropy
from umamba.training.nonfinite import first_nonfinite
from umamba.training.same_start import SameStart


def examine(rank: int, port: int, late: bool, found: Any) -> None:
    """Look for the first non-finite value as one of two processes; the first one has a NaN in its image."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=60)
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=wait)
    network = torch.nn.Conv2d(1, 2, 1)
    loss = DeepSupervisionLoss(DiceCrossEntropy(LabelSet(("a",), ((1,),)), batch_dice=True))

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.as_tensor(loss(network(batch["image"]), batch["label"]))

    batch = {"image": torch.ones(1, 1, 4, 4), "label": torch.zeros(1, 1, 4, 4, dtype=torch.long)}
    if rank == 0:
        batch["image"][0, 0, 0, 0] = torch.nan
    module = SimpleNamespace(network=network, loss_of=loss_of)
    trainer: Any = SimpleNamespace(precision_plugin=SimpleNamespace(forward_context=nullcontext))
    found.put((rank, first_nonfinite(module, batch, trainer, late=late)))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("late", [False, True])
def test_all_processes_look_for_the_first_non_finite_value_together(late: bool) -> None:
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found: Any = context.Queue()
    started = [context.Process(target=examine, args=(rank, port, late, found)) for rank in range(2)]
    for process in started:
        process.start()
    results = dict(found.get(timeout=120) for _ in started)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0]
    assert results == {0: "the image", 1: "the loss"}, "the sums of the Dice are those of both"


@pytest.mark.parametrize(("epochs", "refused"), [([3, 3], False), ([0, 0], False), ([0, 3], True)])
def test_processes_that_found_different_checkpoints_do_not_train(
    epochs: list[int], refused: bool, tmp_path: Path
) -> None:
    strategy = SimpleNamespace(root_device=torch.device("cpu"), all_gather=lambda own: torch.tensor(epochs))
    trainer: Any = SimpleNamespace(strategy=strategy)
    module: Any = None
    for own in epochs:
        callback = SameStart(tmp_path, own)
        if refused:
            with pytest.raises(UserError, match=r"different checkpoints, of 0, 3 completed epochs"):
                callback.setup(trainer, module, "fit")
        else:
            callback.setup(trainer, module, "fit")


def test_a_damaged_checkpoint_that_another_process_renamed_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from umamba.records import RunFolder

    folder = RunFolder(tmp_path)
    folder.last.parent.mkdir(parents=True)
    folder.last.write_bytes(b"damaged")
    torch.save({"epoch": 4, "state_dict": {}, "umamba": {}}, folder.previous)
    monkeypatch.setattr("umamba.training.checkpoints.stored_patch_dice", lambda content: folder.last.unlink())
    monkeypatch.setattr("umamba.training.checkpoints.network_weights", lambda content: content)
    assert newest_readable(folder) == (folder.previous, 5)


def test_a_run_compares_its_processes(small_fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(SameStart, "setup", lambda self, *_, **__: found.append((self.folder, self.epochs)))
    first = small_fit("trainer.max_epochs=1")
    small_fit("trainer.max_epochs=2")
    assert found == [(first.path, 0), (first.path, 1)]
