"""The page of an audit: the cases in the order of the suspicion, what speaks against each, and pictures of the first.

It is one file that loads nothing and needs no script.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from umamba.evaluation.audit_ranking import (
    KINDS,
    RankedCase,
    part_sentence,
    ranked_pairs,
    ranked_parts,
    ranked_slices,
    reason,
    weakness,
)
from umamba.io.escape import anchor, html
from umamba.reporting.case_rows import panels_of
from umamba.reporting.document import made_with, write_document
from umamba.reporting.gallery import Drawing

_MOST_ROWS = 200  # rows of a table in the page; the CSV files have all
_PARTS_NAMED = 3  # parts that stand below the pictures of a case


@dataclass(frozen=True)
class AuditPicture:
    """The pictures of a case.

    Attributes:
        case: the case.
        drawing: the image, the labels and the segmentation.
    """

    case: str
    drawing: Drawing


def write_audit_page(
    path: Path,
    dataset: str,
    ranked: Sequence[RankedCase],
    names: Mapping[int, str],
    review: int,
    pictures: Sequence[AuditPicture],
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        dataset: name of the dataset.
        ranked: the cases, the most suspicious one first.
        names: label value -> name.
        review: how many of them are listed for review.
        pictures: of some cases, in the same order.
    """
    date = datetime.now(UTC).date().isoformat()
    drawn = {picture.case: picture.drawing for picture in pictures}
    shown = [(rank, each) for rank, each in enumerate(ranked, start=1) if each.case in drawn]
    body = [
        f'<header><p class="note">Audit of <time datetime="{date}">{date}</time></p>'
        f"<h1>Labels of {html(dataset)}</h1></header><main>",
        f"<p>{review} of {len(ranked)} cases are listed for review. Each case is compared with its segmentation by "
        "networks that were not trained on it. A score says how far a case lies from the ordinary one, in standard "
        "deviations; the networks may be wrong, too, so look before you change a label.</p>",
        *([f"<p><strong>{html(weak)}</strong></p>"] if (weak := weakness(ranked)) else []),
        '<nav><a href="#cases">Cases</a><a href="#pictures">Pictures</a><a href="#parts">Parts</a>'
        '<a href="#slices">Slices</a><a href="#pairs">Pairs of labels</a></nav>',
        '<h2 id="cases">Cases</h2>',
        _cases(ranked, names, review, drawn),
        '<h2 id="pictures">Pictures</h2>',
        '<p class="note">The slices are those in which labels and segmentation differ most.</p>',
        *(_figure(rank, each, names, drawn) for rank, each in shown),
        '<h2 id="parts">Parts</h2>',
        _parts(ranked, names, drawn),
        '<h2 id="slices">Slices</h2>',
        _slices(ranked, drawn),
        '<h2 id="pairs">Pairs of labels</h2>',
        _pairs(ranked, names, drawn),
        f"</main><footer>{made_with()}</footer>",
    ]
    write_document(path, f"Labels of {dataset}", "".join(body))


def _linked(case: str, drawn: Mapping[str, Drawing]) -> str:
    return f'<a href="#{anchor("case", case)}">{html(case)}</a>' if case in drawn else html(case)


def _cases(ranked: Sequence[RankedCase], names: Mapping[int, str], review: int, drawn: Mapping[str, Drawing]) -> str:
    rows = [
        (
            str(rank),
            _linked(each.case, drawn),
            _score(each.score),
            "review" if rank <= review else "",
            html(reason(each, names)),
            *(_score(each.score_of(kind)) for kind in KINDS),
        )
        for rank, each in enumerate(ranked, start=1)
    ]
    return _table(("rank", "case", "score", "", "reason", *KINDS), rows, words=(1, 3, 4))


def _parts(ranked: Sequence[RankedCase], names: Mapping[int, str], drawn: Mapping[str, Drawing]) -> str:
    rows = [
        (_linked(case, drawn), f"{part.size:.2f}", f"{part.margin:.2f}", html(part_sentence(part, names)))
        for case, part in ranked_parts(ranked)
    ]
    note = "size: depth relative to an ordinary object of the label, times the networks' margin."
    return f'<p class="note">{note}</p>{_table(("case", "size", "margin", "reason"), rows, words=(0, 3))}'


def _slices(ranked: Sequence[RankedCase], drawn: Mapping[str, Drawing]) -> str:
    rows = [
        (_linked(case, drawn), "zyx"[own.axis], str(own.index), f"{own.size:.2f}", str(own.voxels))
        for case, own in ranked_slices(ranked)
    ]
    note = "Along the stored axes. size: largest disc of differing voxels, relative to the largest labelled disc."
    return f'<p class="note">{note}</p>{_table(("case", "axis", "slice", "size", "voxels"), rows, words=(0,))}'


def _pairs(ranked: Sequence[RankedCase], names: Mapping[int, str], drawn: Mapping[str, Drawing]) -> str:
    text = {0: "background", **names}
    rows = [
        (
            html(text[pair.given]),
            html(text[pair.predicted]),
            *(str(pair.cases), str(pair.parts), str(pair.voxels)),
            f"{pair.size:.2f}",
            _linked(pair.worst, drawn),
        )
        for pair in ranked_pairs(ranked)
    ]
    return _table(("label", "segmentation", "cases", "parts", "voxels", "size", "worst case"), rows, words=(0, 1, 6))


def _score(score: float) -> str:
    return f"{round(score, 1) + 0.0:.1f}"  # no -0.0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int]) -> str:
    """Return a table of HTML cells; columns of words are aligned at the left, and reasons may break."""
    if not rows:
        return "<p>None.</p>"

    def cells(tag: str, row: Sequence[str]) -> str:
        long = {column for column in words if head[column] == "reason" and tag == "td"}
        kinds = ["words" if column in long else "name" * (column in words) for column in range(len(row))]
        return "".join(f'<{tag} class="{kind}">{cell}</{tag}>' for kind, cell in zip(kinds, row, strict=True))

    lines = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows[:_MOST_ROWS])
    more = f'<p class="note">The first {_MOST_ROWS} of {len(rows)}; the CSV file has all.</p>'
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{cells("th", head)}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{more if len(rows) > _MOST_ROWS else ''}"
    )


def _figure(rank: int, each: RankedCase, names: Mapping[int, str], drawn: Mapping[str, Drawing]) -> str:
    drawing = drawn[each.case]
    sentences = [part_sentence(part, names) for part in each.facts.parts[:_PARTS_NAMED]]
    parts = "".join(f"<li>{html(text)}</li>" for text in sentences if text != reason(each, names))
    return (
        f'<figure id="{anchor("case", each.case)}"><h3>{rank}. {html(each.case)}: {_score(each.score)}</h3>'
        f"<p>{html(reason(each, names))}</p>{panels_of(drawing, each.case)}"
        f"<figcaption>Shown: {html(drawing.place)}.{f'<ul>{parts}</ul>' if parts else ''}</figcaption></figure>"
    )
