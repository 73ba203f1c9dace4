"""Write the report of a study: a page that needs no network, and tables in CSV, Markdown and LaTeX.

python report.py study=table3_organs_3d
python report.py study=table3_organs_3d paths.runs=FOLDER output=FOLDER
"""

from pathlib import Path

from omegaconf import DictConfig

from umamba.config import ReportConfig
from umamba.entry import launch, typed


def main(composed: DictConfig) -> None:
    """Read what the study's runs have left, and write the report."""
    config = typed(composed, ReportConfig)
    from umamba.reporting import gather, write_report
    from umamba.study import planned_runs, project_folder
    from umamba.sweeps import read_study

    study = read_study(project_folder() / "experiments", config.study)
    runs = planned_runs(study, (*config.overrides, f"paths.runs={config.paths.runs}"))
    folder = Path(config.output) if config.output else Path(config.paths.runs) / "reports" / study.name
    results = gather(study.name, study.question, runs, study.published, config.overrides)
    page = write_report(results, folder)
    print(f"Report: {page.absolute()}")


if __name__ == "__main__":
    launch(main, "report", Path(__file__).parent / "configs")
