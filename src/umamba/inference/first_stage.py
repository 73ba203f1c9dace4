"""Prediction with a cascade: its first stage segments the images before the second one (nnU-Net's 3d_lowres)."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from umamba.datasets import RawCase
from umamba.inference.predictor import Predictor
from umamba.inference.problems import UnsegmentedCases
from umamba.io import UserError
from umamba.io.voice import showing
from umamba.settings import PredictionSettings

log = logging.getLogger(__name__)

Asked = TypeVar("Asked", bound=PredictionSettings)


def segment_first(
    second: Predictor,
    checkpoints: Sequence[Path],
    cases: Sequence[RawCase],
    output: Path,
    settings: Asked,
    *,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    trust: str | Sequence[str] = (),
    reproducible: bool = False,
) -> Asked:
    """Segment images with the first stage, and return the settings with which the second one segments them.

    An image that cannot be segmented is named in a warning; the second stage then cannot segment it either.

    Args:
        second: the networks of the second stage.
        checkpoints: of the first stage; several decide by the mean of their probabilities.
        cases: the raw cases.
        output: folder of the first stage's segmentations.
        settings: how both stages segment.
        device: auto, cpu, cuda, ...
        engine: auto, torch or openvino.
        precision: of the networks (see `Predictor.from_checkpoint`).
        trust: packages whose functions may build the networks.
        reproducible: the same bits for any number of threads (see `Model`).

    Raises:
        UserError: the checkpoints are no first stage, or one of other labels or channels than those of the second.
    """
    predictor = Predictor.from_checkpoint(
        checkpoints, device, precision, trust=trust, engine=engine, reproducible=reproducible
    )
    source = predictor.models[0].source
    if any(model.configuration.previous_stage is not None for model in predictor.models):
        raise UserError(f"{source}: is itself the second stage of a cascade. Give the checkpoints of its first stage.")
    wrong = [name for name in ("labels", "num_channels") if getattr(predictor, name) != getattr(second, name)]
    if wrong:
        raise UserError(
            f"{source}: has other {' and '.join(wrong).replace('num_', '')} than {second.models[0].source}, so it is "
            "not its first stage. Give the checkpoints of its first stage."
        )
    plain = PredictionSettings(
        tile_step_size=settings.tile_step_size,
        tta=settings.tta,
        max_memory_gb=settings.max_memory_gb,
        overwrite=settings.overwrite,
        workers=settings.workers,
    )
    log.info("The first stage of the cascade, %s:", source)
    try:
        predictor.predict_cases(cases, output, plain, progress=showing())
    except UnsegmentedCases as error:
        log.warning("The first stage of the cascade: %s", error)
    log.info("The second stage:")
    return replace(settings, previous_stage=output)
