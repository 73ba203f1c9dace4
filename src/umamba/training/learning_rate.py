"""Find the learning rate before a run starts: Lightning's tuner raises it batch by batch and records the loss."""

import copy
from pathlib import Path

import lightning
from lightning.pytorch.tuner import Tuner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from umamba.io import UserError, atomic_path
from umamba.patches import PatchDataModule
from umamba.records import RunFolder
from umamba.training.module import SegmentationModule
from umamba.training.trial import trial_trainer

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100


def found_learning_rate(
    folder: RunFolder, module: SegmentationModule, datamodule: PatchDataModule, trainer: lightning.Trainer
) -> float:
    """Return the learning rate in run.json; if there is none, find it and write it there.

    The search trains a copy of the module, so that the weights of the run do not change. It also keeps the state of
    torch's random numbers.

    Args:
        folder: the run folder; the search writes `found_lr` into run.json and draws learning_rate.png.
        module: the module, which is copied.
        datamodule: the training patches.
        trainer: the Trainer of the run, whose device, precision and gradient clipping the search uses.

    Raises:
        UserError: several devices train, or the losses suggest no rate.
    """
    known = folder.status().get("found_lr")
    if known is not None:
        return float(known)
    if trainer.world_size > 1:
        raise UserError("trainer.find_lr=true searches on one device: find the rate with trainer.devices=1 first.")
    with trial_trainer(trainer, max_epochs=-1, check_val_every_n_epoch=STEPS) as searcher:
        finder = Tuner(searcher).lr_find(
            copy.deepcopy(module),
            datamodule=datamodule,
            min_lr=LOWEST,
            max_lr=HIGHEST,
            num_training=STEPS,
            update_attr=False,
        )
    rate = finder.suggestion() if finder is not None else None
    if finder is None or rate is None:
        raise UserError("trainer.find_lr=true: the losses suggest no rate. Set recipe.optimizer.lr, and find_lr=false.")
    draw_search(finder.results["lr"], finder.results["loss"], rate, folder.learning_rate_search)
    folder.set_status(found_lr=rate)
    return float(rate)


def draw_search(rates: list[float], losses: list[float], rate: float, path: Path) -> None:
    """Draw the smoothed losses over the rates, with the rate that was chosen, into a PNG.

    Args:
        rates: learning rate of each batch of the search.
        losses: smoothed loss of each batch.
        rate: the chosen learning rate.
        path: the PNG file.
    """
    figure = Figure(figsize=(7, 4), layout="constrained", dpi=90)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(rates, losses, color="tab:blue")
    axes.axvline(rate, color="tab:red", label=f"chosen: {rate:.3g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
