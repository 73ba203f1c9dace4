"""Choose the best of several trained configurations by cross-validation, and the post-processing that helps it.

python find_best.py candidates=[runs/A/3d_fullres,runs/B/3d_fullres] raw_dataset=PATH/Dataset701_NAME output=DIR
"""

from pathlib import Path

from omegaconf import DictConfig

from umamba.config import FindBestConfig
from umamba.entry import launch, typed


def main(composed: DictConfig) -> None:
    """Validate the candidates, print the ranking and the command that predicts with the best."""
    config = typed(composed, FindBestConfig)
    from rich.console import Console

    from umamba.datasets import read_dataset
    from umamba.selection import find_best, mean_score, ranking_table

    dataset = read_dataset(Path(config.raw_dataset))
    own = dataset.root / "splits_final.json"
    ranked, steps, scores = find_best(
        [Path(candidate) for candidate in config.candidates],
        dataset,
        Path(config.splits) if config.splits else own if own.exists() else None,
        Path(config.output),
        pairs=config.pairs,
        checkpoint=config.checkpoint,
        seed=config.seed,
        device=config.device,
        workers=config.workers,
        tile_step_size=config.tile_step_size,
        tta=config.tta,
        max_memory_gb=config.max_memory_gb,
    )
    console = Console(soft_wrap=True)
    console.print(ranking_table(ranked))
    said = ", then of ".join(str(list(values)) for values in steps.steps)
    kept = f"keep the largest component of labels {said}" if said else "none helps"
    console.print(f"Post-processing: {kept}; DSC {ranked[0].mean:.4f} before, {mean_score(scores):.4f} after")
    checkpoints = ",".join(str(path) for path in ranked[0].checkpoints)
    post_processing = Path(config.output) / "post_processing.json"
    print(
        f"To predict with it:\npython predict.py 'checkpoint=[{checkpoints}]' post_processing={post_processing} "
        "input=IMAGES output=DIR"
    )


if __name__ == "__main__":
    launch(main, "find_best", Path(__file__).parent / "configs")
