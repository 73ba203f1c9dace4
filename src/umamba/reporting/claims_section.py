"""What the averages show: a sentence for each pair of methods, and the numbers behind it."""

import math
from collections.abc import Sequence

from umamba.io.escape import html
from umamba.reporting.compare import Claim
from umamba.reporting.names import claim_pair, claim_sentence

_COLUMNS = (
    *("comparison", "cases", "trainings", "difference", "95 % interval", "bootstrap interval", "r"),
    *("P(false claim)", "Holm's p", "equivalent within", "would be seen from"),
)
_MOST_OPEN = 8  # sentences that stand there without a click


def claims_section(claims: Sequence[Claim], remarks: Sequence[str]) -> str:
    """Return the comparisons of a dataset's methods.

    Args:
        claims: the comparisons of the averages.
        remarks: sentences on the comparisons, such as how well the dataset separates the methods.

    Returns:
        HTML; empty if there is no comparison.
    """
    if not claims:
        return ""
    shown = [claim for claim in claims if claim.survives]
    equal = [claim for claim in claims if claim.equivalent and not claim.survives]
    others = [claim for claim in claims if not (claim.survives or claim.equivalent)]
    parts = [
        f"<h3>What the averages show</h3><p>{len(claims)} comparison{'s' * (len(claims) > 1)} of two methods: "
        f"{len(shown)} with a difference that is shown, {len(equal)} shown to be equal within the margin, "
        f"{len(others)} open.</p>"
    ]
    parts += [f"<p>{html(sentence)}</p>" for sentence in remarks]
    for title, group in (("Shown", shown), ("Equivalent", equal), ("Open", others)):
        if len(group) > _MOST_OPEN:
            parts.append(
                f'<details class="printed"><summary>{title}: {len(group)} comparisons</summary>{_sentences(group)}'
                "</details>"
            )
        elif group:
            parts.append(_sentences(group))
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    rows = "".join(_row(claim) for claim in claims)
    parts.append(
        '<details class="printed"><summary>Numbers of the comparisons (also in claims.csv, there for each label, '
        "too)</summary>"
        f'<div class="scroll" tabindex="0"><table class="claims"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>'
        '</table></div><p class="note">Difference: the first method minus the second, mean over cases and trainings, '
        "with its 95 % interval over other cases and trainings (t) and over other cases alone (bootstrap of the mean). "
        "r: correlation of the methods' scores over cases. P(false claim): probability that the method with the "
        "better mean is not the better one. Holm's p: corrected for all comparisons of this dataset's averages. "
        "Equivalent within: the smallest margin within which both are shown to be equal (two one-sided tests at 5 %). "
        "Would be seen from: the difference that these cases and trainings show with a probability of 80 %.</p>"
        "</details>"
    )
    return "".join(parts)


def _sentences(claims: Sequence[Claim]) -> str:
    items = "".join(
        f"<li><strong>{html(claim_pair(claim))}.</strong> {html(claim_sentence(claim))}</li>" for claim in claims
    )
    return f"<ul>{items}</ul>"


def _row(claim: Claim) -> str:
    cells = [
        str(claim.n_cases),
        f"{claim.seeds[0]} and {claim.seeds[1]}",
        _number(claim.mean_difference, "+.4f"),
        _interval(claim.ci_t),
        _interval(claim.ci_bootstrap),
        _number(claim.correlation, ".2f"),
        *(_number(p_value, ".3g") for p_value in (claim.p_false, claim.p_holm)),
        *(_number(value, ".4f") for value in (claim.equivalent_within, claim.detectable)),
    ]
    attributes = "".join(
        f' data-{name}="{html(value)}"'
        for name, value in (("first", claim.a), ("second", claim.b), ("metric", claim.metric))
    )
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{attributes}><th scope="row">{html(claim_pair(claim))}</th>{body}</tr>'


def _interval(ends: tuple[float, float]) -> str:
    return "" if math.isnan(ends[0]) else f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
