"""Score folders of segmentations: tables, confidence intervals, tests between methods, and pictures.

python evaluate.py predictions=DIR truth=DIR output=DIR protocol=generic      # or abdomen, endoscopy, cell
python evaluate.py predictions='{umamba:DIR,unet:DIR}' truth=DIR output=DIR   # compares methods
"""

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from umamba.config import EvaluationConfig
from umamba.entry import launch, typed
from umamba.io import UserError


def main(composed: DictConfig) -> None:
    """Score what can be scored, then name what cannot."""
    config = typed(composed, EvaluationConfig)
    from umamba.evaluation import Rules
    from umamba.evaluation.evaluate import evaluate, label_names

    given = config.predictions
    folders = given if isinstance(given, Mapping) else {Path(str(given)).name or "predictions": given}
    truth, names = Path(config.truth), config.dataset_json
    rules = Rules(
        label_names(truth, None if names is None else Path(names), config.protocol),
        config.protocol,
        config.tolerance_mm,
        details=True,
        strict_official=config.strict_official,
        iou_threshold=config.iou_threshold,
        count_edge_cells=config.count_edge_cells,
    )
    output = Path(config.output)
    images = None if config.images is None else Path(config.images)
    methods = {str(name): Path(str(folder)) for name, folder in folders.items()}
    problems = evaluate(methods, truth, output, rules, images, config.workers)
    print(f"Tables and pictures: {output.absolute()}")
    if problems:
        raise UserError("These cases could not be scored; the others are:\n" + "\n".join(problems))


if __name__ == "__main__":
    launch(main, "evaluate", Path(__file__).parent / "configs")
