"""Write one HTML file of what is expected of segmentations, the worst first; it loads nothing and has no script."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from umamba.evaluation.quality import Calibration
from umamba.evaluation.quality_estimates import Estimate
from umamba.io.escape import anchor, html
from umamba.reporting.document import made_with, scrolled_table, write_document


def write_quality_page(
    path: Path,
    calibration: Calibration,
    estimates: Sequence[Estimate],
    order: Sequence[str],
    pictures: Mapping[str, Path],
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        calibration: what was learned.
        estimates: of all cases.
        order: the cases, those to look at first.
        pictures: case -> PNG file, of the cases that were drawn.
    """
    by_case: dict[str, list[Estimate]] = {case: [] for case in order}
    for own in estimates:
        by_case[own.case].append(own)
    looked = [case for case in order if any(own.review for own in by_case[case])]
    several = len(calibration.names) > 1
    body = [
        "<header><h1>How far to trust these segmentations</h1></header><main>",
        f"<p>{len(looked)} of {len(order)} should be looked at. {html(_meaning(calibration))}</p>",
        _table(calibration, by_case, order),
    ]
    drawn = [case for case in order if case in pictures]
    body += ["<h2>Pictures</h2>" if drawn else "", *(_picture(case, pictures[case], by_case[case]) for case in drawn)]
    if several:
        body.append("<h2>By label</h2>")
        body += [_labels(case, by_case[case], case in looked) for case in order]
    body.append(f"</main><footer>{made_with()}</footer>")
    write_document(path, "How far to trust these segmentations", "".join(body))


def _meaning(calibration: Calibration) -> str:
    return (
        f"The score of {100 * calibration.coverage:.0f} % of segmentations is in the interval in brackets, if the "
        f"images are like the {calibration.cases} that were calibrated. {calibration.rules} Research software, no "
        "medical device: an expected score does not replace a look at the image."
    )


def _table(calibration: Calibration, by_case: Mapping[str, Sequence[Estimate]], order: Sequence[str]) -> str:
    lines = []
    for case in order:
        rows = by_case[case]
        whole = next(own for own in rows if own.label == calibration.overall)
        reasons = [own for own in rows if own.review and own.label != whole.label and own.reason != whole.reason]
        words = "".join(f"<br>{html(f'{own.label}: {own.reason}')}" for own in reasons)
        review = any(own.review for own in rows)
        mark = '<td class="failed">look</td>' if review else '<td class="done">no</td>'
        lines.append(
            f'<tr><th scope="row">{_linked(case, len(calibration.names) > 1)}</th>{mark}{_numbers(whole)}'
            f'<td class="words">{html(whole.reason)}{words}</td></tr>'
        )
    return scrolled_table(("case", "look at it?", "expected DSC", "expected NSD", "reason"), "".join(lines))


def _linked(case: str, several: bool) -> str:
    return f'<a href="#{anchor("case", case)}">{html(case)}</a>' if several else html(case)


def _numbers(own: Estimate) -> str:
    cells = []
    for metric in ("dsc", "nsd"):
        if metric in own.scores:
            expected, low, high = own.scores[metric]
            cells.append(f"<td>{expected:.3f} ({low:.3f} to {high:.3f})</td>")
        else:
            cells.append('<td class="missing">no number</td>')
    return "".join(cells)


def _picture(case: str, path: Path, rows: Sequence[Estimate]) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    reason = (
        "; ".join(dict.fromkeys(own.reason for own in rows if own.review))
        or "no sign that it is worse than usual in the calibration"
    )
    return (
        f'<figure><img alt="{html(case)} with its segmentation" src="data:image/png;base64,{content}">'
        f"<figcaption>{html(f'{case}: {reason}')}</figcaption></figure>"
    )


def _labels(case: str, rows: Sequence[Estimate], shown: bool) -> str:
    lines = "".join(
        f'<tr><th scope="row">{html(own.label)}</th>{_numbers(own)}<td class="words">{html(own.reason)}</td></tr>'
        for own in rows
    )
    table = scrolled_table(("label", "expected DSC", "expected NSD", "reason"), lines)
    state = " open" if shown else ""
    return f'<details id="{anchor("case", case)}"{state}><summary>{html(case)}</summary>{table}</details>'
