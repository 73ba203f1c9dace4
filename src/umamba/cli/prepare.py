"""`umamba prepare`: prepare a dataset as `umamba train` does before it trains."""

import logging

from umamba.io.errors import UserError
from umamba.settings import PrepareSettings

log = logging.getLogger(__name__)


def main(settings: PrepareSettings) -> None:
    """Prepare a dataset: fingerprint, plan, preprocessed cases.

    Args:
        settings: the settings of a training; dataset, planner, plan and paths matter here.

    Raises:
        UserError: the dataset is absent or has problems, which are reported together.
    """
    absent = None if settings.smoke else settings.dataset.absent()
    if absent:
        raise UserError(absent)
    from umamba.runs.preparation import prepare
    from umamba.runs.smoke import smoke_test

    if settings.smoke:
        settings = smoke_test(settings)
    prepared = prepare(settings, settings.explain, settings.nnunet_plans)
    log.info("Prepared: %d cases in %s", len(prepared.store.case_ids), prepared.store.path.absolute())
    if settings.preview:
        from umamba.patches.preview import draw_preview

        name = f"patches_{prepared.configuration.name}.png"
        path = settings.paths.preprocessed / prepared.dataset.name / name
        draw_preview(
            prepared.store, prepared.configuration, prepared.labels, settings.augmentation, path, seed=settings.seed
        )
        log.info("Augmented patches: %s", path.absolute())
