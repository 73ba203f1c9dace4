"""The scores and the pictures of each case as HTML: one group of rows for each case, its methods below each other."""

import base64
import math
from collections.abc import Mapping, Sequence

import pandas

from umamba.io.escape import html
from umamba.reporting.gallery import CasePicture, Drawing
from umamba.reporting.names import method_name, metric_name
from umamba.reporting.results import Results

_MOST_LABELS = 8  # columns of scores of one table, so that it fits on a printed page


def case_ids(results: Results, dataset: str) -> dict[str, str]:
    """Return the id of each case's rows.

    Args:
        results: the results of the study.
        dataset: the benchmark.

    Returns:
        Case -> id, in the order of the cases.
    """
    cases = sorted(results.scores.loc[results.scores["dataset"] == dataset, "case"].astype(str).unique())
    number = results.datasets.index(dataset)
    return {case: f"case-{number}-{index}" for index, case in enumerate(cases)}


def case_tables(results: Results, dataset: str, ids: Mapping[str, str]) -> str:
    """Return the scores of all cases: a table for each score, and several if there are many labels.

    Args:
        results: the results of the study.
        dataset: the benchmark.
        ids: case -> id of its rows in the first table.
    """
    rows = results.scores[results.scores["dataset"] == dataset]
    tables: list[str] = []
    for metric in rows["metric"].unique():
        own = rows[rows["metric"] == metric]
        wide = own.pivot_table(index=["case", "method", "fold", "seed"], columns="label", values="value", sort=False)
        labels = list(wide.columns)
        for start in range(0, len(labels), _MOST_LABELS):
            part = wide[labels[start : start + _MOST_LABELS]]
            tables.append(_table(part, str(metric), ids, results.methods(dataset), first=not tables))
    return "".join(tables)


def _table(wide: pandas.DataFrame, metric: str, ids: Mapping[str, str], methods: Sequence[str], first: bool) -> str:
    head = "".join(f'<th scope="col">{html(str(label))}</th>' for label in wide.columns)
    groups: dict[str, list[str]] = {case: [] for case in ids}
    order = {method: position for position, method in enumerate(methods)}
    entries = sorted(zip(wide.index, wide.to_numpy(), strict=True), key=lambda entry: order[entry[0][1]])
    for (case, method, fold, seed), values in entries:
        names = f'<th scope="row">{html(case)}</th><td class="name">{html(method_name(method))}</td>'
        cells = "".join(f"<td>{'' if math.isnan(value) else f'{value:.4f}'}</td>" for value in values)
        groups[case].append(f"<tr>{names}<td>{fold}</td><td>{seed}</td>{cells}</tr>")
    named = {case: f' id="{ids[case]}"' if first else "" for case in groups}
    bodies = "".join(
        f'<tbody data-of="{ids[case]}" data-case="{html(case)}"{named[case]}>{"".join(lines)}</tbody>'
        for case, lines in groups.items()
        if lines or first
    )
    columns = '<th scope="col">case</th><th scope="col" class="name">method</th>'
    columns += '<th scope="col">fold</th><th scope="col">seed</th>'
    return (
        f'<div class="scroll" tabindex="0"><table data-metric="{html(metric)}"><caption>{metric_name(metric)}</caption>'
        f"<thead><tr>{columns}{head}</tr></thead>{bodies}</table></div>"
    )


def case_figure(picture: CasePicture, ids: Mapping[str, str]) -> str:
    """Return the pictures of a case, a panel a method, with the key of the labels.

    Args:
        picture: the pictures.
        ids: case -> id of its rows.
    """
    rank = (
        f"{picture.rank.capitalize()} mean {metric_name(picture.metric)}"
        if picture.rank
        else f"Mean {metric_name(picture.metric)}"
    )
    return (
        f'<figure data-of="{ids[picture.case]}"><h4>{html(picture.case)}</h4>'
        f"{panels_of(picture.drawing, picture.case)}"
        f"<figcaption>{html(rank)} over methods and labels: {picture.score:.3f}. Shown: {html(picture.drawing.place)}."
        "</figcaption></figure>"
    )


def panels_of(drawing: Drawing, case: str) -> str:
    """Return pictures beside each other, and the key of their labels.

    Args:
        drawing: the pictures.
        case: the case, for readers who cannot see them.
    """
    panels = "".join(
        f"<div><p>{html(panel.title)}</p>"
        f'<img alt="{html(f"{case}: {panel.title}")}" '
        f'src="data:image/webp;base64,{base64.b64encode(panel.webp).decode()}"></div>'
        for panel in drawing.panels
    )
    key = "".join(
        f'<li><b style="background:rgb({red},{green},{blue})"></b>{html(name)}</li>'
        for name, (red, green, blue) in drawing.legend
    )
    return f'<div class="panels">{panels}</div><ul class="key">{key}</ul>'
