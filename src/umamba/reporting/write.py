"""Write all files of a report: index.html, its numbers as CSV, tables.md and tables.tex."""

from dataclasses import asdict, fields
from pathlib import Path

import pandas

from umamba.evaluation.equivalence import MARGIN
from umamba.io import atomic_path
from umamba.io.tabular import write_table
from umamba.reporting.compare import claims_of, numbers, remarks_on_claims
from umamba.reporting.complement import complement
from umamba.reporting.cost import Cost, costs
from umamba.reporting.page import write_page
from umamba.reporting.records import write_curves, write_records
from umamba.reporting.results import Results
from umamba.reporting.text_tables import latex, markdown, write_claims, write_csv


def write_report(results: Results, folder: Path, margin: float = MARGIN, pictures_mb: float = 3.0) -> Path:
    """Write the report of a study.

    numbers.csv holds the numbers of the tables, claims.csv those of the comparisons, scores.csv each score of each
    case and training, cost.csv the cost of each training, complement.csv how methods complement each other, curves.csv
    the learning curves, and runs.json how each run was started and with which versions.

    Args:
        results: the results of the study.
        folder: folder of the report; it is created if it does not exist.
        margin: the largest difference between methods that does not matter.
        pictures_mb: largest size of all pictures of cases in the page, MB; 0: none.

    Returns:
        Path of index.html.
    """
    claims, cost = claims_of(results, margin), costs(results)
    found = numbers(results, claims)
    write_csv(folder / "numbers.csv", found)
    write_claims(folder / "claims.csv", claims)
    write_table(folder / "scores.csv", results.scores)
    columns = [field.name for field in fields(Cost)]
    write_table(folder / "cost.csv", pandas.DataFrame([asdict(entry) for entry in cost], columns=columns))
    write_table(folder / "complement.csv", complement(results))
    write_curves(folder / "curves.csv", results)
    write_records(folder / "runs.json", results)
    remarks = [sentence for dataset in results.datasets for sentence in remarks_on_claims(results, dataset)]
    texts = {
        "tables.md": markdown(found, results.remark, claims, remarks),
        "tables.tex": latex(found, results.remark),
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_page(folder / "index.html", results, found, claims, cost, pictures_mb)
    return folder / "index.html"
