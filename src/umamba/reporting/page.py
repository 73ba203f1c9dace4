"""Write the report as one HTML file that holds its styles, pictures and script, and loads nothing else.

The script (page.js) only adds the panel that shows a case when its point in a plot is clicked. Without the script the
page shows all numbers, too.
"""

import base64
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from umamba.io.escape import anchor, html, without_folders
from umamba.reporting.case_rows import case_figure, case_ids, case_tables
from umamba.reporting.claims_section import claims_section
from umamba.reporting.compare import Claim, Number, remarks_on_claims
from umamba.reporting.cost import Cost
from umamba.reporting.document import made_with, scrolled_table, write_document
from umamba.reporting.figures import Curves, learning_curves
from umamba.reporting.gallery import gallery
from umamba.reporting.names import UNET_NOTE, dataset_name, method_name, metric_name
from umamba.reporting.results import AVERAGE, HELD_OUT, Results
from umamba.reporting.score_plot import score_plot
from umamba.reporting.text_tables import NumberTable, counted, difference, legend, ours, tables, theirs
from umamba.sweeps.ledger import duration

# Lengths of the strokes and gaps of a line in the key of the learning curves, in pixels.
_DASHES = {"solid": "none", "dashed": "8 3", "dotted": "3 3", "dashdot": "8 3 3 3"}


def write_page(
    path: Path,
    results: Results,
    found: Sequence[Number],
    claims: Sequence[Claim],
    cost: Sequence[Cost],
    pictures_mb: float,
) -> None:
    """Write the page of a study.

    Args:
        path: the HTML file.
        results: the results of the study.
        found: the numbers of all tables.
        claims: the comparisons of the methods.
        cost: the cost of each run.
        pictures_mb: largest size of all pictures of cases, MB.
    """
    done = sum(state.state == "done" for state in results.states)
    date = datetime.now(UTC).date().isoformat()
    most_bytes = pictures_mb * 1e6 / max(1, len(results.datasets))
    links = "".join(f'<a href="#{_section(dataset)}">{html(dataset_name(dataset))}</a>' for dataset in results.datasets)
    body = [
        f'<header><p class="note">Study {html(results.name)}, report of <time datetime="{date}">{date}</time></p>'
        f"<h1>{html(results.question or results.name)}</h1></header><main>",
        f"<p>{done} of {len(results.states)} runs are done. Numbers that are not measured yet are shown as "
        "missing.</p>",
        f'<p class="remark">{html(results.remark)}</p>' if results.remark else "",
        f'<nav>{links}<a href="#runs">Runs</a><a href="#cost">Cost</a></nav>',
        *(_dataset(results, dataset, found, claims, most_bytes) for dataset in results.datasets),
        _runs(results),
        _cost(cost),
        f"</main><footer>{made_with()}</footer>",
    ]
    script = files("umamba.reporting").joinpath("page.js").read_text("utf-8")
    write_document(path, results.name, "".join(body), script)


def _dataset(
    results: Results, dataset: str, found: Sequence[Number], claims: Sequence[Claim], most_bytes: float
) -> str:
    own = [number for number in found if number.dataset == dataset]
    parts = [f'<section class="dataset"><h2 id="{_section(dataset)}">{html(dataset_name(dataset))}</h2>']
    parts += [_table(table, own, results) for table in tables(own)]
    parts.append(_explanation(results, dataset, own))
    averages = [claim for claim in claims if claim.dataset == dataset and claim.label == AVERAGE]
    parts.append(claims_section(averages, remarks_on_claims(results, dataset)))
    ids = case_ids(results, dataset)
    if ids:
        parts.append("<h3>Scores over cases</h3>")
        for metric in dict.fromkeys(number.metric for number in own):
            parts.append(f'<div id="{_plot(dataset, metric)}">{score_plot(results, dataset, metric, ids)}</div>')
        parts.append('<div class="case" hidden tabindex="-1" role="region" aria-label="The chosen case"></div>')
        parts.append(
            f"<details><summary>Scores of each of the {len(ids)} cases (also in scores.csv)</summary>"
            f"{case_tables(results, dataset, ids)}</details>"
        )
    parts.append(_curves(learning_curves(results, dataset)))
    figures = [(picture.rank, case_figure(picture, ids)) for picture in gallery(results, dataset, most_bytes)]
    if figures:
        named, others = ([figure for rank, figure in figures if bool(rank) == wanted] for wanted in (True, False))
        parts.append(f"<h3>Pictures</h3>{''.join(named)}")
        if others:
            parts.append(f"<details><summary>{len(others)} further cases</summary>{''.join(others)}</details>")
    return "".join([*parts, "</section>"])


def _explanation(results: Results, dataset: str, own: Sequence[Number]) -> str:
    """Say how the numbers of the tables were made, and what their marks mean."""
    unet = f" {UNET_NOTE}" if any(number.method == "unet" for number in own) else ""
    rules = results.rules(dataset)
    if not rules and any(number.metric == "nsd" and number.cases for number in own):
        rules = "The tolerance of the NSD was not recorded."
    paper = (
        " Below, the paper's number and, in brackets, ours minus the paper's."
        if any(number.published for number in own)
        else ""
    )
    return (
        f'<p class="note">Scores of the {html(_images(results))}. {html(rules)} Mean ± standard deviation over cases '
        f"and trainings.{paper} n: number of cases that have this score, where other scores have more. No case: the "
        f"label is in no reference and no prediction. {html(legend(own))}{unet}</p>"
    )


def _images(results: Results) -> str:
    """Name the images that were scored."""
    if results.images == HELD_OUT:
        return "test images and of the validation cases, which no training of the fold saw"
    return f"{results.images} images"


def _table(table: NumberTable, own: Sequence[Number], results: Results) -> str:
    first = table.rows[0][0]
    absent = results.absent(first.dataset)
    tolerances = results.tolerances(first.dataset) if first.metric == "nsd" and not table.averages else {}
    head = "".join(
        f'<th scope="col">{metric_name(number.metric) if table.averages else html(method_name(number.method))}</th>'
        for number in table.rows[0]
    )
    lines = []
    for name, row in zip(table.names, table.rows, strict=True):
        remarks = [] if table.averages else [tolerances.get(name, ""), "in no reference" if name in absent else ""]
        remark = "".join(f"<br><small>{html(text)}</small>" for text in remarks if text)
        cells = "".join(_cell(number, own) for number in row)
        lines.append(f'<tr><th scope="row">{html(name)}{remark}</th>{cells}</tr>')
    title = "Averages over labels" if table.averages else f"{metric_name(first.metric)} by label"
    title += ", with the NSD's tolerance" if tolerances else ""
    return (
        f'<h3>{title}</h3><div class="scroll" tabindex="0"><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(number: Number, own: Sequence[Number]) -> str:
    attributes = "".join(
        f' data-{name}="{html(getattr(number, name))}"' for name in ("dataset", "method", "label", "metric")
    )
    behind = f" <span>({difference(number)})</span>" if difference(number) else ""
    paper = f"<small>paper {_breakable(theirs(number))}{behind}</small>" if number.published else ""
    if math.isnan(number.mean):
        return f'<td class="missing"{attributes}>{ours(number)}{paper}</td>'
    kind = ' class="best"' if number.best else ""
    text = f"{_breakable(ours(number))}{counted(number, own)}"
    return f'<td{attributes}><a{kind} href="#{_plot(number.dataset, number.metric)}">{text}</a>{paper}</td>'


def _breakable(text: str) -> str:
    """Return mean ± deviation so that a narrow column may break it before the sign."""
    return text.replace("±", "<wbr>±")


def _plot(dataset: str, metric: str) -> str:
    return anchor("scores", dataset, metric)


def _section(dataset: str) -> str:
    return anchor("dataset", dataset)


def _curves(curves: Curves | None) -> str:
    if curves is None:
        return ""
    plots = "".join(
        f'<div><p>{title}</p><img alt="{title} over epochs" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></div>'
        for title, png in curves.plots
    )
    key = "".join(
        f'<li><svg width="26" height="8" aria-hidden="true"><line x2="26" y1="4" y2="4" stroke="{colour}" '
        f'stroke-width="3" stroke-dasharray="{_DASHES[dashes]}"/></svg>{html(name)}</li>'
        for name, colour, dashes in curves.lines
    )
    return f'<h3>Learning curves</h3><div class="curves">{plots}</div><ul class="key">{key}</ul>'


def _runs(results: Results) -> str:
    rows = "".join(
        f'<tr><th scope="row">{html(_run_name(run.dataset, run.method))}</th><td>{run.fold}</td><td>{run.seed}</td>'
        f'<td class="{state.state}">{state.state}</td><td>{state.epochs}/{run.max_epochs}</td>'
        f'<td class="words">{html(without_folders(state.reason))}</td></tr>'
        for state in results.states
        for run in (state.run,)
    )
    return f'<h2 id="runs">Runs</h2>{scrolled_table(("run", "fold", "seed", "state", "epoch", "remark"), rows)}'


def _cost(cost: Sequence[Cost]) -> str:
    names = ("run", "fold", "seed", "epochs", "batches took", "memory", "parameters", "FLOPs of a step")
    rows = "".join(
        f'<tr><th scope="row">{html(_run_name(entry.dataset, entry.method))}</th><td>{entry.fold}</td>'
        f"<td>{entry.seed}</td><td>{entry.epochs}</td>"
        f"<td>{'' if math.isnan(entry.hours) else duration(3600 * entry.hours)}</td>"
        f"<td>{'not logged' if math.isnan(entry.memory_gb) else f'{entry.memory_gb:.1f} GB'}</td>"
        f"<td>{'' if entry.parameters is None else f'{entry.parameters:,}'}</td>"
        f"<td>{'' if entry.step_flops is None else f'{entry.step_flops / 1e9:,.1f} G'}</td></tr>"
        for entry in cost
    )
    total = sum(entry.hours for entry in cost if not math.isnan(entry.hours))
    return (
        f'<h2 id="cost">Cost</h2>'
        f"<p>All batches of the runs so far took {duration(3600 * total)}, on one device each. FLOPs: forward and "
        f"backward of a batch, counted on tensors without data.</p>{scrolled_table(names, rows)}"
    )


def _run_name(dataset: str, method: str) -> str:
    return f"{dataset_name(dataset)}, {method_name(method)}"
