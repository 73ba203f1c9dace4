"""Values reach the settings as the shell hands them over; a wrong form is answered with the right command."""

import shlex
from pathlib import Path

import pytest

from umamba.cli.compose import settings_of, sweep_problems
from umamba.cli.main import EXIT_USER_ERROR, main
from umamba.cli.words import override_of, parsed, readable, split, with_quotes
from umamba.io import UserError
from umamba.settings import (
    EvaluateSettings,
    InvalidSettings,
    PredictSettings,
    ReportSettings,
    SlurmSettings,
    TrainSettings,
)

NAMES = [
    *(
        "plain",
        "with space",
        "Müller",
        "医学",
        "copy (1)",
        "a,b",
        "a=b",
        "a#1",
        "it's",
        'say "ah"',
        "epoch=3-step=9.ckpt",
    ),
    *(
        "[old]",
        "{x}",
        "a]b",
        "x:y",
        "100%",
        "~tilde",
        "back\\slash",
        "ends\\",
        "a&b;c",
        "$HOME",
        "1e3",
        "007",
        "true",
        "!?*",
    ),
    *("(1", "a, b", "fold=0,1", "glob(*)", "choice(a,b)", "ünï'cö\"de\\", "@user", "+plus", "-minus", "emoji 🧠"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_stands(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    made = settings_of(PredictSettings, [f"checkpoint={folder}", f"input={folder}", f"output={folder}/out"])
    assert (made.checkpoints, made.input, made.output) == ((folder,), folder, folder / "out")


@pytest.mark.parametrize("name", ["copy (1)", "it's", "a=b", "ünï'cö\"de"])
def test_a_path_of_a_training_is_taken_as_it_stands(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    given = [f"dataset.root={name}", f"paths.runs={tmp_path / name}", f"pretrained={tmp_path / name}", f"name={name}"]
    made = settings_of(TrainSettings, given)
    assert (made.paths.runs, made.pretrained, made.name) == (tmp_path / name, tmp_path / name, name)
    assert made.dataset.root.name == name


@pytest.mark.parametrize("name", [name for name in NAMES if "," not in name and name not in ("[old]", "a]b")])
def test_a_list_or_mapping_of_paths_is_taken_as_it_stands(name: str, tmp_path: Path) -> None:
    for part in (name, "other"):
        (tmp_path / part).mkdir()
    both = (tmp_path / name, tmp_path / "other")
    text = f"checkpoint=[{both[0]},{both[1]}]"
    assert settings_of(PredictSettings, [text, f"input={tmp_path}", "output=o"]).checkpoints == both
    text = f"predictions={{umamba:{both[0]},unet: {both[1]}}}"
    made = settings_of(EvaluateSettings, [text, f"truth={tmp_path}", "output=o"])
    assert made.methods == {"umamba": both[0], "unet": both[1]}
    text = f"predictions={{umamba:[{both[0]}, {both[1]}],unet:{both[1]}}}"
    made = settings_of(EvaluateSettings, [text, f"truth={tmp_path}", "output=o"])
    assert made.methods == {"umamba_1": both[0], "umamba_2": both[1], "unet": both[1]}
    assert made.trainings == {"umamba_1": "umamba", "umamba_2": "umamba", "unet": "unet"}


def test_values_of_hydras_grammar_keep_their_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data")
    made = settings_of(
        TrainSettings,
        [
            *("dataset=phantom", "plan.patch_size=[16,32,32]", "fold=all", "recipe.optimizer.lr=1e-4", "smoke=true"),
            *("name='a b'", "paths.runs=${oc.env:SOMEWHERE}/runs", "pretrained=null", 'paths.raw="x y"'),
        ],
    )
    assert (made.plan.patch_size, made.fold, made.recipe.optimizer.lr, made.smoke) == ((16, 32, 32), "all", 1e-4, True)
    assert (made.name, made.paths.runs, made.pretrained) == ("a b", Path("/data/runs"), None)
    assert made.paths.raw == Path("x y")


def test_choices_of_a_sweep_stay_choices() -> None:
    assert readable(TrainSettings, "name", "a,b", sweep=True) == "a,b"
    assert readable(TrainSettings, "name", "a=b", sweep=True) == "'a=b'"
    assert readable(TrainSettings, "recipe.optimizer.lr", "interval(0.1,1)", sweep=True) == "interval(0.1,1)"
    assert not sweep_problems(TrainSettings, ["dataset=phantom", "name=a,b", "paths.runs=run (1)"])
    assert not sweep_problems(TrainSettings, ["dataset=phantom", "recipe.optimizer.lr=tag(log,interval(1e-4,0.1))"])
    assert not sweep_problems(TrainSettings, ["dataset=phantom", "plan.patch_size=choice([16,32,32],[16,48,48])"])
    (problem,) = sweep_problems(TrainSettings, ["dataset=phantom", "name=a=1,b=2"])
    shown = shlex.split(problem.rsplit(": ", 1)[1])[0]
    assert not sweep_problems(TrainSettings, ["dataset=phantom", shown])  # the command that the message shows works


def test_the_quoting_that_a_message_shows_is_right(tmp_path: Path) -> None:
    for name in ("[a", "{a", "'a", '"a'):
        with pytest.raises(InvalidSettings, match="quotes") as caught:
            settings_of(TrainSettings, ["dataset=phantom", f"name={name}"])
        (argument,) = shlex.split(str(caught.value).rsplit("around it: ", 1)[1])
        assert settings_of(TrainSettings, ["dataset=phantom", argument]).name == name
        assert argument == shlex.split(with_quotes(f"name={name}"))[0]


def test_names_of_methods_that_hydra_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="letters of English"):
        settings_of(EvaluateSettings, [f"predictions={{größe:{tmp_path}}}", f"truth={tmp_path}", "output=o"])


def test_a_sweeper_that_is_not_installed() -> None:
    (problem,) = sweep_problems(TrainSettings, ["dataset=phantom", "hydra/sweeper=nevergrad"])
    assert "pip install 'umamba[sweepers]'" in problem


def test_several_values_without_a_sweep_are_explained() -> None:
    with pytest.raises(InvalidSettings, match=r"fold=0,1: several values need a sweep, -m fold=0,1\."):
        settings_of(TrainSettings, ["dataset=phantom", "fold=0,1"])
    with pytest.raises(InvalidSettings, match="-m recipe=nnunet,unetr"):
        settings_of(TrainSettings, ["dataset=phantom", "recipe=nnunet,unetr"])


@pytest.mark.parametrize("value", NAMES)
def test_an_override_of_any_value_is_read_back(value: str) -> None:
    for text, expected in ((override_of("key", value), value), (override_of("key", [value, "x y"]), [value, "x y"])):
        found = parsed(text)
        assert found is not None
        assert found.value() == expected


def test_overrides_within_overrides_and_options_of_sbatch() -> None:
    texts = ["name=my run", "paths.runs=/é (1)/[a]=#", "plan.patch_size=[16,32,32]"]
    assert settings_of(ReportSettings, ["study=x", override_of("overrides", texts)]).overrides == tuple(texts)
    assert readable(SlurmSettings, "extra", "[--account=NAME,--qos=a b]", False) == "['--account=NAME','--qos=a b']"
    assert split("") == []


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("predict -i IN -o OUT", "umamba predict input=IN output=OUT checkpoint=..."),
        ("predict -i IN -o OUT checkpoint=a.ckpt", "umamba predict checkpoint=a.ckpt input=IN output=OUT"),
        ("predict --input IN --output=OUT checkpoint=a", "umamba predict checkpoint=a input=IN output=OUT"),
        ("predict a.ckpt images 'out (1)'", "umamba predict checkpoint=a.ckpt input=images 'output=out (1)'"),
        ("predict", "umamba predict checkpoint=... input=... output=..."),
        ("evaluate output=o", "umamba evaluate output=o predictions=... truth=..."),
        ("train", "umamba train dataset.root=..."),
        ("train data/Dataset004_X fold=1", "umamba train fold=1 dataset.root=data/Dataset004_X"),
        ("train --smoke dataset=phantom", "umamba train dataset=phantom smoke=true"),
        ("report", "umamba report study=..."),
        ("train -m fold=0,1", "umamba train fold=0,1 dataset.root=... -m"),
    ],
)
def test_the_right_command_is_shown(line: str, usage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line)) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert said.rstrip().endswith(f"Usage: {usage}"), said
    keys = [word.removesuffix("=...") for word in usage.split() if word.endswith("=...")]
    assert "-" in line or all(key in said.split("Usage:")[0] for key in keys)  # each missing key is named before, too


def test_folders_of_the_users_configs_that_do_not_exist() -> None:
    for path, said in (("[file:///nowhere]", "/nowhere"), ("[pkg://no.such]", "no.such"), ("{a:1}", "must be a list")):
        with pytest.raises(UserError, match=said):
            settings_of(TrainSettings, ["dataset=phantom", f"hydra.searchpath={path}"])
