"""`umamba prepare`: prepare a dataset as `umamba train` does before it trains."""

import logging
import time
from typing import TYPE_CHECKING

from umamba.cli.absent import refuse_absent_dataset
from umamba.settings import PrepareSettings

if TYPE_CHECKING:
    from umamba.runs.preparation import PreparedDataset

log = logging.getLogger(__name__)


def main(settings: PrepareSettings) -> None:
    """Prepare a dataset: fingerprint, plan, preprocessed cases.

    Args:
        settings: the settings of a training; dataset, planner, plan and paths matter here.

    Raises:
        UserError: the dataset is absent or has problems, which are reported together.
    """
    began = time.monotonic()
    refuse_absent_dataset(settings)
    from umamba.runs.preparation import prepare
    from umamba.runs.smoke import smoke_test

    if settings.smoke:
        settings = smoke_test(settings)
    prepared = prepare(settings, settings.explain, settings.nnunet_plans)
    if settings.preview:
        from umamba.patches.preview import draw_preview

        name = f"patches_{prepared.configuration.name}.png"
        path = settings.paths.preprocessed / prepared.dataset.name / name
        draw_preview(
            prepared.store, prepared.configuration, prepared.labels, settings.augmentation, path, seed=settings.seed
        )
        log.info("Augmented patches: %s", path.absolute())
    log.info(summary(prepared, time.monotonic() - began))


def summary(prepared: "PreparedDataset", seconds: float) -> str:
    """Return the last line of the command: cases, labels, findings, time, and where the cases are.

    Args:
        prepared: the prepared dataset.
        seconds: time since the command began.
    """
    dataset = prepared.dataset
    names = ", ".join(dataset.labels.names)
    labels = "label" if len(dataset.labels.names) == 1 else "labels"
    found = "findings not kept"
    if prepared.findings is not None:
        found = f"{len(prepared.findings)} finding{'' if len(prepared.findings) == 1 else 's'}"
    return (
        f"Prepared {dataset.name}: {len(prepared.store.case_ids)} training and {len(dataset.test)} test cases, "
        f"{len(dataset.labels.names)} {labels} ({names}), {found}, {seconds:.0f} s, in {prepared.store.path.absolute()}"
    )
