"""Plots of scores: every line is explained, and a thousand labels do not make a thousand plots."""

from pathlib import Path

import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure

from umamba.evaluation import plots


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    return drawn


def table(labels: int, cases: int = 3) -> pandas.DataFrame:
    random = np.random.default_rng(0)
    rows = [
        (f"c{case}", f"l{label:03d}", label / labels, label, label + 1.0)
        for case in range(cases)
        for label in range(labels)
    ]
    frame = pandas.DataFrame(rows, columns=["case", "label", "dsc", "volume_ml", "true_volume_ml"])
    return frame.assign(dsc=frame["dsc"] + random.uniform(0, 1e-3, len(frame)))


def test_box_plots_show_the_labels_with_the_lowest_scores(figures: list[Figure]) -> None:
    plots.box_plots({"m": table(999)}, {"dsc": "DSC"}, Path("unused"))
    shown = [text.get_text() for text in figures[0].axes[0].get_xticklabels()]
    assert shown == [f"l{label:03d}" for label in range(40)]
    assert "40 of 999 labels, those with the lowest scores" in figures[0].get_suptitle()
    assert "line: median" in figures[0].get_suptitle()


def test_every_label_is_drawn_where_there_are_few(figures: list[Figure]) -> None:
    plots.box_plots({"m": table(13), "n": table(13)}, {"dsc": "DSC", "volume_ml": "ml"}, Path("unused"))
    assert len(figures[0].axes) == 2
    assert len(figures[0].axes[0].get_xticklabels()) == 13
    assert " of " not in figures[0].get_suptitle().split("\n", 1)[-1] or "\n" not in figures[0].get_suptitle()


def test_bland_altman_leaves_out_what_is_not_annotated(figures: list[Figure]) -> None:
    partly = table(2)
    partly.loc[partly["case"].eq("c0") & partly["label"].eq("l001"), ["volume_ml", "true_volume_ml"]] = np.nan
    plots.bland_altman(partly, Path("unused"))
    assert {axes.get_title() for axes in figures[0].axes} == {"l000: -1.00 ± 0.00 ml", "l001: -1.00 ± 0.00 ml"}
    plots.bland_altman(partly.assign(volume_ml=np.nan), Path("unused"))
    assert len(figures) == 1, "there is nothing to draw"


def test_bland_altman_shows_the_labels_that_differ_most(figures: list[Figure]) -> None:
    plots.bland_altman(table(125), Path("unused"))
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_visible()]
    assert [title.split(":")[0] for title in titles] == [f"l{label:03d}" for label in range(16)]  # smallest volumes
    assert titles[0] == "l000: -1.00 ± 0.00 ml"
    assert "dashed: 1.96 standard deviations" in figures[0].get_suptitle()
    lines = figures[0].axes[0].get_lines()
    assert [line.get_ydata()[0] for line in lines[1:]] == [-1, -1, -1, 0]  # type: ignore[index]
