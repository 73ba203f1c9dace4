"""Write the report as one HTML file with its styles and pictures; it needs neither scripts nor a network."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path

from umamba.io import atomic_path, provenance
from umamba.io.escape import anchor, html
from umamba.reporting.compare import Number, spread_sentences
from umamba.reporting.cost import Cost
from umamba.reporting.figures import box_plot, learning_curves
from umamba.reporting.gallery import gallery
from umamba.reporting.results import SPLIT, Results
from umamba.reporting.text_tables import BOLD, NumberTable, counted, difference, ours, tables, theirs
from umamba.sweeps.ledger import duration

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #1a7f37; --bad: #b35900; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { margin-bottom: .3rem; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas; padding-left: 0; }
td small { display: block; opacity: .75; } td a { color: inherit; text-decoration: none; }
.best { font-weight: 700; } .missing { opacity: .55; font-style: italic; }
img { max-width: 100%; height: auto; display: block; background: #fff; } figure { margin: 1rem 0; }
figcaption, .note { font-size: .85rem; opacity: .8; }
.remark { border-left: 4px solid var(--bad); padding: .2rem .8rem; }
nav a { margin-right: 1rem; } details { margin: .4rem 0; } summary { cursor: pointer; }
.failed { color: var(--bad); } .done { color: var(--good); } .scroll img { min-width: 44rem; }
@media (max-width: 40rem) {
  table { font-size: .78rem; } th, td { padding: .25rem .35rem; } td small span { display: block; }
}
"""
# With this policy a browser loads nothing from elsewhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(path: Path, results: Results, found: Sequence[Number], cost: Sequence[Cost]) -> None:
    """Write the page of a study.

    Args:
        path: the HTML file.
        results: the results of the study.
        found: the numbers of all tables.
        cost: the cost of each run.
    """
    done = sum(state.state == "done" for state in results.states)
    sections = [
        f"<h1>{html(results.name)}</h1><p>{html(results.question)}</p>",
        f"<p>{done} of {len(results.states)} runs are done. Numbers that are not measured yet are shown as "
        "missing.</p>",
        f'<p class="remark">{html(results.remark)}</p>' if results.remark else "",
        "<nav>" + "".join(f'<a href="#{_section(dataset)}">{html(dataset)}</a>' for dataset in results.datasets)
        + '<a href="#runs">runs</a><a href="#cost">cost</a><a href="#cases">cases</a></nav>',
        *(_dataset(results, dataset, found) for dataset in results.datasets),
        _spread(found),
        _runs(results),
        _cost(cost),
        _cases(results),
        _made_with(),
    ]  # fmt: skip
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html(results.name)}</title><style>{_STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _dataset(results: Results, dataset: str, found: Sequence[Number]) -> str:
    parts = [f'<h2 id="{_section(dataset)}">{html(dataset)}</h2>']
    own = [number for number in found if number.dataset == dataset]
    for table in tables(own):
        parts.append(f"<h3>{html(table.title)}</h3>{_table(table, own)}")
    parts.append(
        f'<p class="note">Scores of the {SPLIT} images. {html(results.rules(dataset))} Mean ± standard deviation over '
        "cases; below, the paper's number and, in brackets, ours minus the paper's. n: number of cases that have this "
        "score, where other scores have more. No case: the label is in no reference and no prediction. "
        f"{html(BOLD)}</p>"
    )
    for metric in dict.fromkeys(number.metric for number in own):
        parts.append(_figure(box_plot(results, dataset, metric), f"{metric.upper()} over cases"))
    parts.append(_figure(learning_curves(results, dataset), "Learning curves"))
    parts += [_figure(picture.png, picture.caption, "scroll") for picture in gallery(results, dataset)]
    return "".join(parts)


def _table(table: NumberTable, own: Sequence[Number]) -> str:
    head = "".join(
        f"<th>{number.metric.upper() if table.averages else html(number.method)}</th>" for number in table.rows[0]
    )
    body = "".join(
        f"<tr><td>{html(name)}</td>{''.join(_cell(number, own) for number in row)}</tr>"
        for name, row in zip(table.names, table.rows, strict=True)
    )
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(number: Number, own: Sequence[Number]) -> str:
    kind = "best" if number.best else ""
    attributes = "".join(
        f' data-{name}="{html(getattr(number, name))}"' for name in ("dataset", "method", "label", "metric")
    )
    behind = f" <span>({difference(number)})</span>" if difference(number) else ""
    paper = f"<small>paper {theirs(number)}{behind}</small>" if number.published else ""
    if math.isnan(number.mean):
        return f'<td class="missing"{attributes}>{ours(number)}{paper}</td>'
    link = (
        f'<a class="{kind}" href="#{_anchor(number.dataset, number.method)}">{ours(number)}</a>{counted(number, own)}'
    )
    return f"<td{attributes}>{link}{paper}</td>"


def _anchor(dataset: str, method: str) -> str:
    return anchor("cases", dataset, method)


def _section(dataset: str) -> str:
    return anchor("dataset", dataset)


def _figure(png: bytes | None, caption: str, kind: str = "whole") -> str:
    if png is None:
        return ""
    data = base64.b64encode(png).decode()
    text = html(caption)
    picture = f'<div class="{kind}"><img alt="{text}" src="data:image/png;base64,{data}"></div>'
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"


def _spread(found: Sequence[Number]) -> str:
    sentences = spread_sentences(found)
    items = "".join(f"<li>{html(sentence)}</li>" for sentence in sentences)
    return f"<h2>Differences and the spread of trainings</h2><ul>{items}</ul>" if sentences else ""


def _runs(results: Results) -> str:
    rows = "".join(
        f"<tr><td>{html(run.dataset)} {html(run.method)}</td><td>{run.fold}</td><td>{run.seed}</td>"
        f'<td class="{state.state}">{state.state}</td><td>{state.epochs}/{run.max_epochs}</td>'
        f"<td>{html(state.reason)}</td></tr>"
        for state in results.states
        for run in (state.run,)
    )
    head = "".join(f"<th>{name}</th>" for name in ("run", "fold", "seed", "state", "epoch", "remark"))
    return f'<h2 id="runs">Runs</h2><div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _cost(cost: Sequence[Cost]) -> str:
    head = "".join(
        f"<th>{name}</th>"
        for name in ("run", "fold", "seed", "epochs", "batches took", "memory", "parameters", "FLOPs of a step")
    )
    rows = "".join(
        f"<tr><td>{html(entry.dataset)} {html(entry.method)}</td><td>{entry.fold}</td><td>{entry.seed}</td>"
        f"<td>{entry.epochs}</td><td>{'' if math.isnan(entry.hours) else duration(3600 * entry.hours)}</td>"
        f"<td>{'not logged' if math.isnan(entry.memory_gb) else f'{entry.memory_gb:.1f} GB'}</td>"
        f"<td>{'' if entry.parameters is None else f'{entry.parameters:,}'}</td>"
        f"<td>{'' if entry.step_flops is None else f'{entry.step_flops / 1e9:,.1f} G'}</td></tr>"
        for entry in cost
    )
    total = sum(entry.hours for entry in cost if not math.isnan(entry.hours))
    return (
        f'<h2 id="cost">Cost</h2>'
        f"<p>All batches of the runs so far took {duration(3600 * total)}, on one device each. FLOPs: forward and "
        "backward of a batch, counted on tensors without data.</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
    )


def _cases(results: Results) -> str:
    parts = ['<h2 id="cases">Cases</h2>']
    for (dataset, method), rows in results.scores.groupby(["dataset", "method"], sort=False):
        wide = rows.pivot_table(index=["seed", "fold", "case"], columns=["label", "metric"], values="value", sort=False)
        head = "".join(f"<th>{html(label)} {metric.upper()}</th>" for label, metric in wide.columns)
        body = "".join(
            f"<tr><td>{html(str(case))}</td><td>{fold}</td><td>{seed}</td>"
            + "".join(f"<td>{'' if math.isnan(value) else f'{value:.4f}'}</td>" for value in values)
            + "</tr>"
            for (seed, fold, case), values in zip(wide.index, wide.to_numpy(), strict=True)
        )
        parts.append(
            f"<details><summary>{html(dataset)} {html(method)}: {len(wide)} cases</summary>"
            f'<div class="scroll" id="{_anchor(dataset, method)}"><table>'
            f"<tr><th>case</th><th>fold</th><th>seed</th>{head}</tr>{body}</table></div></details>"
        )
    return "".join(parts)


def _made_with() -> str:
    facts = provenance()
    git = facts["git"]
    revision = "" if git is None else f", revision {git['revision'][:12]}{' with changes' if git['dirty'] else ''}"
    return f'<p class="note">Made with umamba {html(str(facts["umamba"]))}{revision}, Python {facts["python"]}.</p>'
