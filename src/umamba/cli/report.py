"""`umamba report`: write the report of a study."""

import logging

from umamba.settings import ReportSettings

log = logging.getLogger(__name__)


def main(settings: ReportSettings) -> None:
    """Read the run folders of a study and write the report.

    Args:
        settings: the study, and where its runs and the report are.

    Raises:
        UserError: the study does not exist, or a file of a run has an unexpected form.
    """
    from umamba.cli.planned_runs import planned_runs
    from umamba.cli.share import share
    from umamba.cli.words import override_of
    from umamba.reporting import gather, write_report
    from umamba.sweeps import read_study

    study = read_study(share("experiments"), settings.study)
    runs = planned_runs(study, (*settings.overrides, override_of("paths.runs", settings.paths.runs)))
    folder = settings.output or settings.paths.runs / "reports" / study.name
    results = gather(
        *(study.name, study.question, runs, study.published, settings.overrides, settings.images, study.comparisons)
    )
    log.info("Report: %s", write_report(results, folder, settings.margin, settings.pictures_mb).absolute())
