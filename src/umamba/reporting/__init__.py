"""The report of a study: tables in the paper's form, plots, gallery and cost, from the files of its runs alone."""

from umamba.reporting.compare import Number, numbers
from umamba.reporting.results import Results, gather
from umamba.reporting.write import write_report

__all__ = ["Number", "Results", "gather", "numbers", "write_report"]
