"""Studies: every shipped one composes to runs of its own, and mistakes in a sweep file are named."""

import csv
from pathlib import Path

import pytest

from umamba.cli.compose import settings_of
from umamba.cli.planned_runs import planned_runs
from umamba.cli.slurm import _read
from umamba.io import UserError
from umamba.records import RunFolder
from umamba.settings import SlurmSettings, TrainSettings
from umamba.sweeps import PlannedRun, list_studies, read_study

GOOD = """question: Why?
runs:
  - experiment=flare_unet
  - experiment=flare_umamba_bot architecture.mamba=identity name=flare_umamba_bot_identity
folds: [0, all]
seeds: [0, 1, 2]
"""
COUNTS = {
    "ablation_mamba": 24,
    "baseline_longer": 1,
    "baseline_swaps": 30,
    "controls_hippocampus": 21,
    "controls_hippocampus_time": 21,
    "controls_nuclei": 24,
    "controls_nuclei_time": 24,
    "folds": 90,
    "learning_curve": 48,
    "table3_organs_3d": 12,
    "table4_2d": 18,
    "table5_organs_ct": 6,
    "table6_organs_mr": 6,
    "table7_organs_mr_2d": 6,
}


def study_folder(tmp_path: Path, text: str) -> Path:
    """Write a study and return the folder of studies."""
    (tmp_path / "mine").mkdir(exist_ok=True)
    (tmp_path / "mine" / "sweep.yaml").write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def shipped(project_dir: Path) -> dict[str, list[PlannedRun]]:
    """Return the runs of each shipped study; composing them takes seconds."""
    experiments = project_dir / "experiments"
    return {name: list(planned_runs(read_study(experiments, name))) for name in list_studies(experiments)}


def test_shipped_studies_have_the_runs_that_their_readme_counts(
    project_dir: Path, shipped: dict[str, list[PlannedRun]]
) -> None:
    experiments = project_dir / "experiments"
    assert {name: len(runs) for name, runs in shipped.items()} == COUNTS
    readme = (experiments / "README.md").read_text()
    for name, count in COUNTS.items():
        assert f"| [{name}]({name}) | {count} " in readme
        own = (experiments / name / "README.md").read_text()
        assert all(f"**{part}.**" in own for part in ("Question", "Command", "Cost", "Result")), name
        assert f"{count} training" in own


def test_estimated_hours_of_a_study_are_the_sum_of_its_trainings(
    project_dir: Path, shipped: dict[str, list[PlannedRun]]
) -> None:
    experiments = project_dir / "experiments"
    with (experiments / "gpu_hours.csv").open(newline="") as file:
        hours = {row["experiment"]: float(row["gpu_hours"]) for row in csv.DictReader(file)}
    for name in COUNTS:
        if "trainer.accelerator=cpu" in shipped[name][0].overrides:
            continue
        total = sum(hours[run.folder.path.parts[-4]] for run in shipped[name])
        assert f"about {total:.0f} GPU hours" in (experiments / name / "README.md").read_text(), name


def test_runs_are_named_by_what_they_are(tmp_path: Path) -> None:
    runs = planned_runs(read_study(study_folder(tmp_path, GOOD), "mine"), ("paths.runs=R",))
    assert len(runs) == 2 * 2 * 3
    assert {(run.dataset, run.method) for run in runs} == {("flare", "unet"), ("flare", "umamba_bot_identity")}
    assert runs[0].folder.path == Path("R/flare_unet/3d_fullres/fold_0/seed_0")
    assert runs[0].overrides == ("experiment=flare_unet", "paths.runs=R", "fold=0", "seed=0")
    assert (runs[0].max_epochs, runs[0].batches) == (1000, 300)
    assert len({run.preparation for run in runs}) == 1  # one plan serves both
    small = planned_runs(read_study(tmp_path, "mine"), ("+smoke=true",))
    assert (small[0].method, small[0].folder.path.parts[1]) == ("unet", "smoke_flare_unet")
    assert (small[0].max_epochs, small[0].batches) == (2, 6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("question", "quest"), "must have the keys"),
        (GOOD.replace("[0, all]", "[7]"), "folds: 7"),
        (GOOD.replace("[0, 1, 2]", "[]"), "seeds must be a list"),
        (GOOD.replace("[0, 1, 2]", "[a]"), "seeds: a must be an integer"),
        (GOOD.replace("folds: [", "folds: ]["), "not a valid YAML"),
        (GOOD + "comparisons: []\n", "comparisons must be a list with at least one entry"),
        (GOOD + "comparisons: [unet]\n", "comparisons: unet must be two names of methods"),
        (GOOD + "comparisons: [[unet, 3]]\n", "must be two names of methods: "),
        (GOOD + "comparisons: [[unet, unet]]\n", "must be two methods, and stand there once"),
        (GOOD + "comparisons: [[unet, bot], [bot, unet]]\n", "must be two methods, and stand there once"),
    ],
)
def test_mistakes_in_a_sweep_file_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        read_study(study_folder(tmp_path, text), "mine")


def test_what_runs_have_in_common_is_written_once(tmp_path: Path) -> None:
    common = "common: plan.batch_size=3\n  trainer.max_epochs=7\n"
    text = common + GOOD.replace("experiment=flare_unet\n", "experiment=flare_unet trainer.max_epochs=9\n")
    runs = planned_runs(read_study(study_folder(tmp_path, text), "mine"))
    assert {run.method: run.max_epochs for run in runs} == {"unet": 9, "umamba_bot_identity": 7}
    assert {settings_of(TrainSettings, run.overrides).plan.batch_size for run in runs[::6]} == {3}
    with pytest.raises(UserError, match="no line of overrides"):
        read_study(study_folder(tmp_path, "common: [a]\n" + GOOD), "mine")


def test_the_comparisons_of_a_study_are_between_its_methods(tmp_path: Path) -> None:
    study = read_study(study_folder(tmp_path, GOOD + "comparisons:\n  - [unet, umamba_bot_identity]\n"), "mine")
    assert study.comparisons == (("unet", "umamba_bot_identity"),)
    assert planned_runs(study)
    study = read_study(study_folder(tmp_path, GOOD + "comparisons:\n  - [unet, umamba_bot_identiti]\n"), "mine")
    with pytest.raises(UserError, match=r"umamba_bot_identiti: must be one of unet.* Did you mean umamba_bot_identity"):
        planned_runs(study)


def test_runs_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    text = GOOD.replace(" name=flare_umamba_bot_identity", "").replace("flare_unet", "flare_umamba_bot")
    with pytest.raises(UserError, match="share"):
        planned_runs(read_study(study_folder(tmp_path, text), "mine"))
    with pytest.raises(UserError, match="flare_umamba_enc"):
        planned_runs(read_study(study_folder(tmp_path, GOOD.replace("flare_unet", "flare_umet")), "mine"))


def test_an_unknown_study_lists_the_known_ones(project_dir: Path) -> None:
    with pytest.raises(UserError, match="table3_organs_3d"):
        read_study(project_dir / "experiments", "table9")


def test_plan_paper_looks_into_the_folder_where_the_run_is(tmp_path: Path) -> None:
    """plan=paper leaves the configuration to the table; the study used to look into runs/flare_unet/None."""
    text = GOOD.replace("experiment=flare_unet\n", "experiment=flare_unet plan=paper\n")
    runs = planned_runs(read_study(study_folder(tmp_path, text), "mine"), ("paths.runs=R",))
    assert runs[0].folder.path == Path("R/flare_unet/3d_fullres/fold_0/seed_0")
    assert runs[0].folder == RunFolder.of(settings_of(TrainSettings, runs[0].overrides))


def test_the_request_of_a_submission_is_read_as_it_is_typed() -> None:
    """YAML would take 24:00:00 for 86400, which SLURM would take for minutes."""
    verb, study, request, overrides = _read(
        ["submit", "slurm.time_limit=24:00:00", "table4_2d", "slurm.extra=[--account=x]", "smoke=true", "slurm.gpus=2"]
    )
    assert (verb, study, overrides) == ("submit", "table4_2d", ("smoke=true",))
    assert request == SlurmSettings(time_limit="24:00:00", extra=("--account=x",), gpus=2)
