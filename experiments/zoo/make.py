"""Train the networks of the zoo, and write their checkpoints, model cards and index.

python experiments/zoo/make.py RAW OUTPUT [--networks NAME ...] [--url PREFIX]

RAW holds the raw datasets. OUTPUT gets runs/ and preprocessed/ of the trainings, and zoo/ with the files to publish.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from umamba.evaluation.statistics import bootstrap_interval
from umamba.records import RunFolder
from umamba.records.share import share_checkpoint

NOT_MEDICAL = "Research software, not a medical device. Nobody has checked it for any use on patients."


@dataclass(frozen=True)
class Network:
    """A network to train.

    Attributes:
        sentence: what it segments.
        licence: of the weights.
        data: the training data and its licence.
        arguments: of `umamba train`, without fold and paths.
        configuration: of the plan.
        folds: of the split that are trained.
        sample: whether a test image may travel with the weights.
    """

    sentence: str
    licence: str
    data: str
    arguments: tuple[str, ...]
    configuration: str = "3d_fullres"
    folds: tuple[str, ...] = ("0",)
    sample: bool = False


HIPPOCAMPUS = "Hippocampus MR of the Medical Segmentation Decathlon (Task04), CC-BY-SA 4.0."
FIVE = ("0", "1", "2", "3", "4")
# A patch holds nearly a whole volume. AdamW, because nnU-Net's SGD with a momentum of 0.99 needs more iterations.
SMALL = (
    *("plan.patch_size=[40,56,40]", "plan.batch_size=2", "plan.features_per_stage=[16,32,64,128]"),
    *("recipe.optimizer.name=adamw", "recipe.optimizer.lr=0.001", "trainer.max_epochs=10"),
)
NETWORKS = {
    "phantom": Network(
        "Organs of the embedded phantom, an invented CT.",
        "Apache-2.0",
        "The abdomen phantom of this project, which is computed.",
        ("experiment=quickstart", "plan.features_per_stage=[16,32,48,64,64]", "trainer.max_epochs=8"),
        sample=True,
    ),
    "hippocampus": Network(
        "Front and back of the hippocampus in MR volumes that are cropped around it.",
        "CC-BY-SA-4.0",
        HIPPOCAMPUS,
        ("experiment=hippocampus_umamba_bot", *SMALL),
        folds=FIVE,
    ),
    "hippocampus_unet": Network(
        "Front and back of the hippocampus in MR volumes that are cropped around it, by a plain U-Net.",
        "CC-BY-SA-4.0",
        HIPPOCAMPUS,
        ("experiment=hippocampus_unet", *SMALL),
        folds=FIVE,
    ),
    "nuclei": Network(
        "Nuclei in light microscopy: interior and boundary.",
        "CC0-1.0",
        "Nuclei of the Data Science Bowl 2018 (BBBC038), CC0.",
        ("experiment=nuclei_umamba_bot",),
        configuration="2d",
        folds=("all",),
    ),
}


def main() -> None:
    """Read the arguments and make the networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--url", help="where the files will be downloaded from; their names are appended")
    given = parser.parse_args()
    index = {name: make(name, NETWORKS[name], given.raw, given.output, given.url) for name in given.networks}
    (given.output / "zoo" / "index.json").write_text(json.dumps(index, indent=2) + "\n")


def make(name: str, network: Network, raw: Path, output: Path, url: str | None) -> dict[str, object]:
    """Train a network, write its files and card, and return its entry of the index."""
    folder = output / "zoo"
    folder.mkdir(parents=True, exist_ok=True)
    weights, scores = [], []
    for fold in network.folds:
        run = train(name, network, fold, raw, output)
        file = folder / (f"{name}.ckpt" if len(network.folds) == 1 else f"{name}_fold_{fold}.ckpt")
        file.unlink(missing_ok=True)
        share_checkpoint(run.checkpoint("last"), file, half=True)
        weights.append(entry(file, url))
        scores.append(pandas.read_csv(run.scores))
    sample = None
    if network.sample:
        (dataset,) = raw.glob("Dataset*_Phantom")
        image = min((dataset / "imagesTs").iterdir())
        sample = entry(Path(shutil.copy(image, folder / f"{name}_{image.name.rpartition('_')[2]}")), url)
    (folder / f"{name}.md").write_text(card(name, network, scores))
    return {"sentence": network.sentence, "licence": network.licence, "weights": weights, "sample": sample}


def train(name: str, network: Network, fold: str, raw: Path, output: Path) -> RunFolder:
    """Train one fold, or continue it; return its finished run."""
    paths = [f"paths.raw={raw}", f"paths.preprocessed={output / 'preprocessed'}", f"paths.runs={output / 'runs'}"]
    arguments = [*network.arguments, f"name={name}", f"fold={fold}", *paths]
    subprocess.run([sys.executable, "-m", "umamba", "train", *arguments], check=True)
    return RunFolder(output / "runs" / name / network.configuration / f"fold_{fold}" / "seed_0")


def entry(file: Path, url: str | None) -> dict[str, str | None]:
    """Return a file's entry of the index."""
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"file": file.name, "sha256": sha256, "url": None if url is None else f"{url.rstrip('/')}/{file.name}"}


def card(name: str, network: Network, scores: Sequence[pandas.DataFrame]) -> str:
    """Return the model card: use, data, and the scores of each network alone on the test images."""
    lines = [
        f"# {name}\n\n{network.sentence}\n",
        f"- **Use:** to try the program and to compare methods. {NOT_MEDICAL}",
        f"- **Training data:** {network.data}",
        f"- **Licence of the weights:** {network.licence}",
        f"- **Made by:** `python experiments/zoo/make.py RAW OUTPUT --networks {name}`, that is `umamba train "
        f"{' '.join(network.arguments)}`, fold {', '.join(network.folds)}",
        "\nScores on test images that took no part in training, of each network alone; 95 % intervals of the mean over "
        "images (bootstrap).\n",
        "| label | score | images | mean | interval |\n| --- | --- | --- | --- | --- |",
    ]
    every = pandas.concat(scores)
    metrics = [metric for metric in ("dsc", "nsd", "f1") if metric in every and every[metric].notna().any()]
    for (label, metric), values in (
        ((label, metric), rows.groupby("case")[metric].mean().dropna().to_numpy())
        for label, rows in every.groupby("label", sort=False)
        for metric in metrics
    ):
        if len(values):
            low, high = bootstrap_interval(np.asarray(values, dtype=float))
            interval = f"{low:.3f} to {high:.3f}"
            lines.append(f"| {label} | {metric.upper()} | {len(values)} | {values.mean():.3f} | {interval} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
