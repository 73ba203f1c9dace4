"""Write all files of a report: index.html, numbers.csv, claims.csv, tables.md and tables.tex."""

from pathlib import Path

from umamba.evaluation.equivalence import MARGIN
from umamba.io import atomic_path
from umamba.reporting.compare import claims_of, numbers, suitability_sentences
from umamba.reporting.cost import costs
from umamba.reporting.page import write_page
from umamba.reporting.results import Results
from umamba.reporting.text_tables import latex, markdown, write_claims, write_csv


def write_report(results: Results, folder: Path, margin: float = MARGIN) -> Path:
    """Write the report of a study.

    Args:
        results: the results of the study.
        folder: folder of the report; it is created if it does not exist.
        margin: the largest difference between methods that does not matter.

    Returns:
        Path of index.html.
    """
    claims = claims_of(results, margin)
    found = numbers(results, claims)
    write_csv(folder / "numbers.csv", found)
    write_claims(folder / "claims.csv", claims)
    texts = {
        "tables.md": markdown(found, results.remark, claims, suitability_sentences(results)),
        "tables.tex": latex(found, results.remark),
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_page(folder / "index.html", results, found, costs(results))
    return folder / "index.html"
