"""Write all files of a report: index.html, numbers.csv, tables.md and tables.tex."""

from pathlib import Path

from umamba.io import atomic_path
from umamba.reporting.compare import numbers
from umamba.reporting.cost import costs
from umamba.reporting.page import write_page
from umamba.reporting.results import Results
from umamba.reporting.text_tables import latex, markdown, write_csv


def write_report(results: Results, folder: Path) -> Path:
    """Write the report of a study.

    Args:
        results: the results of the study.
        folder: folder of the report; it is created if it does not exist.

    Returns:
        Path of index.html.
    """
    found = numbers(results)
    write_csv(folder / "numbers.csv", found)
    for name, text in (("tables.md", markdown(found, results.remark)), ("tables.tex", latex(found, results.remark))):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_page(folder / "index.html", results, found, costs(results))
    return folder / "index.html"
