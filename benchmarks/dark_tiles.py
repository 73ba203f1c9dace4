"""What larger tiles are worth where InstanceNorm lifts the noise of dark tiles: scores of one network, tile by tile.

python benchmarks/dark_tiles.py RUN/checkpoints/last.ckpt data/raw/Dataset703_Nuclei out [--scales 1 2] [--dark 10]

The same checkpoint segments the test pictures with each tile_scale. The table shows the mean F1, PQ and AP over all
pictures, and over the darkest ones the mean F1 and the sum of wrong cells. `out` receives the segmentations, and for
each of the darkest pictures a PNG with the reference and the prediction. Nothing is trained, so that the difference is
that of the tiles alone. The checkpoint is that of `python train.py experiment=nuclei_unet`, for example; DATASET has
imagesTs and instancesTs.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas
from measuring import machine

from umamba.evaluation import Rules, score_folder
from umamba.evaluation.overlay import case_figure, write_overlay
from umamba.inference import Predictor
from umamba.io import oriented_like, read_image, read_label
from umamba.settings import PredictionSettings


def main() -> None:
    """Predict with each scale, score, draw, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dark", type=int, default=10)
    arguments = parser.parse_args()
    images = {path.stem.removesuffix("_0000"): path for path in sorted((arguments.dataset / "imagesTs").glob("*.png"))}
    if not images:
        parser.error(f"{arguments.dataset / 'imagesTs'} holds no PNG")
    truths = {case: arguments.dataset / "instancesTs" / f"{case}_label.tiff" for case in images}
    darkness = {case: float(np.mean(read_image([path]).array)) for case, path in images.items()}
    dark = sorted(darkness, key=darkness.__getitem__)[: arguments.dark]
    print(f"{machine()}; {len(images)} pictures, the {len(dark)} darkest have means of {darkness[dark[0]]:.1f} to "
          f"{darkness[dark[-1]]:.1f} grey levels\n")  # fmt: skip
    print("| tile_scale | F1 | PQ | AP | F1, dark | wrong cells, dark |\n" + "| --- " * 6 + "|")
    for scale in arguments.scales:
        predictor = Predictor.from_checkpoint(arguments.checkpoint, tile_scale=scale)
        folder = arguments.output / f"scale_{scale}"
        predictor.predict(arguments.dataset / "imagesTs", folder, PredictionSettings(overwrite=True), progress=False)
        rules = Rules(predictor.labels, "whole_cells", objects=True)
        scores = score_folder(folder, truths, rules, predictor.file_ending, workers=1)
        of_dark = scores[scores["case"].isin(dark)]
        means = [scores[name].mean() for name in ("f1", "pq", "ap_mean")]
        row = [*(f"{mean:.3f}" for mean in means), f"{of_dark['f1'].mean():.3f}", f"{of_dark['wrong_cells'].sum():.0f}"]
        print(f"| {scale} | " + " | ".join(row) + " |")
        for case in dark:
            segmentation = folder / f"{case}{predictor.file_ending}"
            _draw(case, images[case], truths[case], segmentation, rules, scores, folder)


def _draw(
    case: str,
    image: Path,
    truth: Path,
    found: Path,
    rules: Rules,
    scores: pandas.DataFrame,
    folder: Path,
) -> None:
    picture = read_image([image])
    true, prediction = (oriented_like(read_label(path), picture.geometry).array[0] for path in (truth, found))
    figure = case_figure(picture, true, prediction, rules, scores, case)
    (folder / "dark").mkdir(exist_ok=True)
    write_overlay(figure, folder / "dark" / f"{case}.png")


if __name__ == "__main__":
    main()
