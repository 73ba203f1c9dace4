"""Compare the losses of a tiny training with phantom_loss.csv: python tests/reference/golden/compare.py [--update]

A U-Net and U-Mamba Bot train three epochs of four batches on the phantom, with nnU-Net's augmentation, in float32 on
the CPU, with fixed seeds. A change that should not alter results leaves every loss as it is. Another CPU or another
version of PyTorch may round differently, so losses count as equal up to TOLERANCE. The learning rate is a tenth of
nnU-Net's, because large steps amplify rounding.

With --update the file gets the new losses. Do this only where a change of results is meant, and say so in the commit.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas

from umamba.cli.compose import settings_of
from umamba.records.tables import read_metrics
from umamba.runs import train
from umamba.settings import TrainSettings

GOLDEN = Path(__file__).with_name("phantom_loss.csv")
ARCHITECTURES = ("unet", "umamba_bot")
LOSSES = ("train/loss", "val/loss")
TOLERANCE = 1e-3  # relative
OVERRIDES = (
    *(
        "dataset=phantom",
        "dataset.phantom.num_training=5",
        "dataset.phantom.num_test=0",
        "dataset.phantom.voxel_mm=8.0",
    ),
    *("plan.patch_size=[8,32,32]", "plan.features_per_stage=[8,16,32,32]", "plan.batch_size=2"),
    *("trainer.max_epochs=3", "trainer.limit_train_batches=4", "trainer.limit_val_batches=2"),
    *(
        "recipe.optimizer.lr=0.001",
        "trainer.precision=32-true",
        "trainer.accelerator=cpu",
        "trainer.deterministic=true",
    ),
    *("fold=0", "seed=0", "data.num_workers=0", "data.prepare_workers=1", "data.validate_cases_every=0"),
    *("logger=csv", "logger.panels_every=0", "predict.validation=false"),
)


def read_losses(path: Path) -> pandas.DataFrame:
    """Return a table of losses: architecture, epoch, and one column for each loss."""
    return pandas.read_csv(path, dtype={"architecture": str})


def measure(folder: Path) -> pandas.DataFrame:
    """Train both networks and return their losses.

    Args:
        folder: an empty folder for the dataset and the runs.
    """
    rows: list[dict[str, object]] = []
    for architecture in ARCHITECTURES:
        paths = [f"paths.{name}={folder / name}" for name in ("raw", "preprocessed", "runs")]
        settings = settings_of(TrainSettings, [*OVERRIDES, *paths, f"architecture={architecture}"])
        for row in read_metrics(train(settings, progress=False).folder.metrics):
            losses = {name: float(row[name]) for name in LOSSES}
            rows.append({"architecture": architecture, "epoch": int(row["epoch"]), **losses})
    return pandas.DataFrame(rows)


def largest_difference(found: pandas.DataFrame, golden: pandas.DataFrame) -> tuple[float, str]:
    """Return the largest relative difference between two tables of losses, and where it is.

    Raises:
        ValueError: the tables do not have the same networks and epochs.
    """
    keys = ["architecture", "epoch"]
    if not found[keys].equals(golden[keys]):
        raise ValueError("the networks or epochs differ")
    differences = ((found[list(LOSSES)] - golden[list(LOSSES)]) / golden[list(LOSSES)]).abs()
    row, column = divmod(int(differences.to_numpy().argmax()), len(LOSSES))
    where = f"{found['architecture'][row]}, epoch {found['epoch'][row]}, {LOSSES[column]}"
    return float(differences.iloc[row, column]), where


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare or update; return 1 if the losses differ by more than TOLERANCE."""
    parser = argparse.ArgumentParser(description="Compare the losses of a tiny training with phantom_loss.csv.")
    parser.add_argument("--update", action="store_true", help="write the new losses, because results change on purpose")
    update = parser.parse_args(arguments).update
    with TemporaryDirectory() as folder:
        found = measure(Path(folder))
    print(found.to_string(index=False))
    try:
        difference, where = largest_difference(found, read_losses(GOLDEN))
        print(f"Largest relative difference from {GOLDEN.name}: {difference:.3g} ({where})")
    except (ValueError, FileNotFoundError) as error:
        difference = float("inf")
        print(f"Cannot be compared with {GOLDEN.name}: {error}.")
    if update:
        found.to_csv(GOLDEN, index=False, float_format="%.6g")
        print(f"Written: {GOLDEN}")
        return 0
    if difference > TOLERANCE:
        print(
            f"The losses differ by more than {TOLERANCE:g}. If your change should alter results, write the new ones by "
            "`python tests/reference/golden/compare.py --update` and explain the change in the commit. If not, look "
            "for the mistake."
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
